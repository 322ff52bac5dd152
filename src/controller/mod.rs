//! Drives the plan of each machine: observe, plan, act, record.
//!
//! An edge: it owns tasks and reads the clocks. The decisions are [`crate::reconcile::plan`]'s.

mod act;
mod actor;
pub mod addresses;
pub mod desk;
pub mod orphans;
pub mod publish;
pub mod rack;
pub mod records;
pub mod sightings;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::agent::{TunnelEvent, TunnelState, Tunnels};
use crate::config::Config;
use crate::machine::MachineId;
use crate::resource::Kind;
use crate::telemetry::Counters;
use crate::time::{UnixTime, Uptime};
use actor::{Actor, Site};
use rack::Rack;
use records::{Records, chain};

/// A level-based controller must not trust its notifications alone: all machines are looked at this often.
const RESYNC: Duration = Duration::from_secs(60);

/// How long plans wait for the first contents of all kinds: a rack's take a second or two, and a plan on half of them would
/// be made for nothing. Without Omni they begin then, on what the store knows.
const FIRST_CONTENTS: Duration = Duration::from_secs(3);

/// How often it is looked whether Omni's word has become fresh again.
const CONFIRMED_LOOK: Duration = Duration::from_millis(250);

/// The kinds that the controller mirrors from Omni.
pub fn kinds(provider_id: &str) -> Vec<Kind> {
    let own = records::Record::ALL.into_iter().map(|record| Kind::private(record.name(), provider_id));
    let omni = ["InfraMachines", "InfraMachineStatuses", "BMCConfigs", "ProviderJoinConfigs"].map(Kind::omni);
    own.chain(omni).collect()
}

/// Runs one task for each machine until `cancel`.
///
/// # Errors
///
/// [`records::Error`] when the intents of the last run can't be read: acting without them could repeat something.
pub async fn run(
    config: &Config,
    records: Records,
    rack: Rack,
    tunnels: Tunnels,
    counters: Counters,
    cancel: CancellationToken,
) -> Result<(), records::Error> {
    match records.sightings().load(UnixTime::now()).await {
        Ok(seen) => {
            for (id, addresses) in seen {
                rack.restore(&id, addresses, Uptime::now());
            }
        }
        // Machines that were booting must boot again then; the others are not concerned.
        Err(error) => tracing::warn!(error = %chain(&error), "who was booting is not known"),
    }
    let mut unfinished: BTreeSet<_> = records.unfinished().await?.into_iter().collect();
    let mut changes = records.mirror().subscribe();
    let mut tunnel_events = tunnels.events();
    let site = Arc::new(Site {
        records: records.clone(),
        rack: rack.clone(),
        tunnels,
        counters,
        timing: config.timing,
        wipe_with_zeroes: config.wipe_with_zeroes,
        pxe_mode: config.pxe_mode,
        labels: config.labels.clone(),
        started: Uptime::now(),
    });
    let mut actors = Actors {
        site,
        cancel: cancel.clone(),
        tasks: JoinSet::new(),
        running: BTreeMap::new(),
        collecting: JoinSet::new(),
    };
    let mut resync = tokio::time::interval(RESYNC);
    let mut look = tokio::time::interval(CONFIRMED_LOOK);
    let mut was_confirmed = false;
    let begin = Uptime::now() + FIRST_CONTENTS;
    let (mut begun, mut synced) = (false, false);
    loop {
        // Cancel-safe: each arm but the last only waits; an event that was taken is handled in the same turn.
        tokio::select! {
            () = cancel.cancelled() => break,
            changed = changes.next(), if begun => {
                for change in changed {
                    actors.changed(&change.kind, change.id, &mut unfinished);
                }
            }
            event = tunnel_events.next() => heard(&rack, &records, &event).await,
            _ = look.tick(), if begun => {
                let is_confirmed = records::confirmed(records.mirror(), Uptime::now());
                if is_confirmed && !was_confirmed {
                    // What waited for Omni's word goes on, though no resource may have changed.
                    actors.resync(&mut unfinished);
                }
                was_confirmed = is_confirmed;
            }
            _ = resync.tick(), if begun => {
                actors.resync(&mut unfinished);
                actors.collect_orphans();
            }
            () = records.mirror().synced(), if !synced => {
                (synced, begun) = (true, true);
                actors.collect_orphans();
            }
            () = tokio::time::sleep(begin.since(Uptime::now())), if !begun => begun = true,
            Some(ended) = actors.tasks.join_next_with_id() => actors.ended(ended, &mut unfinished),
        }
    }
    // A wipe may take a day; what was begun is in the store, so that ending need not wait for it.
    actors.tasks.shutdown().await;
    while actors.collecting.join_next().await.is_some() {}
    Ok(())
}

struct Actors {
    site: Arc<Site>,
    cancel: CancellationToken,
    tasks: JoinSet<()>,
    running: BTreeMap<MachineId, tokio::task::Id>,
    /// At most one task, which collects what forgotten machines left.
    collecting: JoinSet<()>,
}

impl Actors {
    fn changed(&mut self, kind: &Kind, id: Arc<str>, unfinished: &mut BTreeSet<MachineId>) {
        if kind.r#type.starts_with("ProviderJoinConfigs.") {
            return;
        }
        match MachineId::try_from(Arc::clone(&id)) {
            Ok(id) => self.look_at(id, unfinished),
            Err(error) => tracing::warn!(%kind, %id, %error, "resource is about no machine"),
        }
    }

    fn look_at(&mut self, id: MachineId, unfinished: &mut BTreeSet<MachineId>) {
        if self.running.contains_key(&id) {
            self.site.rack.wake(&id, Uptime::now()).notify_one();
        } else if self.site.records.desired(&id).is_some() || unfinished.remove(&id) {
            let actor = Box::new(Actor::new(id.clone(), Arc::clone(&self.site)));
            let task = self.tasks.spawn(actor.run());
            self.running.insert(id, task.id());
        }
    }

    fn resync(&mut self, unfinished: &mut BTreeSet<MachineId>) {
        let known = self.site.records.mirror().ids(&Kind::omni("InfraMachines"));
        let known = known.into_iter().filter_map(|id| id.try_into().ok());
        let all: Vec<MachineId> = known.chain(unfinished.iter().cloned()).collect();
        for id in all {
            self.look_at(id, unfinished);
        }
    }

    fn collect_orphans(&mut self) {
        while self.collecting.try_join_next().is_some() {}
        if !self.collecting.is_empty() {
            return;
        }
        let records = &self.site.records;
        let orphans = orphans::orphans(
            records::confirmed(records.mirror(), Uptime::now()),
            &records.known(),
            &records.owners(),
            |id| self.running.contains_key(id),
        );
        if orphans.is_empty() {
            return;
        }
        let (site, cancel) = (Arc::clone(&self.site), self.cancel.clone());
        self.collecting.spawn(async move {
            for id in orphans {
                match cancel.run_until_cancelled(site.records.collect(&id)).await {
                    None => return,
                    Some(Ok(true)) => {
                        tracing::info!(machine = %id, "Omni has forgotten the machine; its records are removed");
                        site.counters.count("orphan_collected");
                    }
                    Some(Ok(false)) => {}
                    Some(Err(error)) => {
                        tracing::warn!(machine = %id, error = %chain(&error), "records of a forgotten machine stay for now");
                    }
                }
            }
        });
    }

    fn ended(
        &mut self,
        ended: Result<(tokio::task::Id, ()), tokio::task::JoinError>,
        unfinished: &mut BTreeSet<MachineId>,
    ) {
        let task = match &ended {
            Ok((task, ())) => *task,
            Err(error) => error.id(),
        };
        let Some(id) = self.running.iter().find(|(_, running)| **running == task).map(|(id, _)| id.clone()) else {
            return;
        };
        self.running.remove(&id);
        if let Err(error) = ended {
            // One machine's defect must not stop the rack. Its intent is in the store; the next resync starts it anew.
            tracing::error!(machine = %id, error = %error, "a machine's task panicked");
            self.site.counters.count("machine_task_panicked");
            self.site.rack.note(&id, "internal fault; starting over", Uptime::now(), UnixTime::now());
            return;
        }
        // It may have come back to Omni while its task was ending.
        if self.site.records.desired(&id).is_some() {
            self.look_at(id, unfinished);
        }
    }
}

async fn heard(rack: &Rack, records: &Records, event: &TunnelEvent) {
    let machine = &event.machine;
    if let TunnelState::Opened { peer } = &event.state
        && records.desired(machine).is_some()
        && let Some(addresses) = rack.served(machine, peer.ip(), Uptime::now(), UnixTime::now())
        && let Err(error) = records.sightings().keep(machine, &addresses).await
    {
        tracing::warn!(%machine, error = %chain(&error), "where the agent works from is not kept");
    }
    let what = match &event.state {
        TunnelState::Opened { peer } => {
            tracing::info!(%machine, %peer, "agent connected");
            format!("agent connected from {}", peer.ip())
        }
        TunnelState::Closed { reason } => {
            tracing::info!(%machine, ?reason, "agent disconnected");
            "agent disconnected".to_owned()
        }
    };
    let now = Uptime::now();
    rack.expect_agent(machine, now);
    rack.saw(machine, what, now, UnixTime::now());
}
