//! What the box has seen of each machine since it started: sightings, verdicts, timelines. In memory, bounded.

use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::panic::Location;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, watch};

use super::addresses::{Addresses, Sighting};
use crate::machine::{MachineId, PowerState};
use crate::status::{self, Stage};
use crate::time::{UnixTime, Uptime};

/// Moments kept a machine.
const TIMELINE_CAP: usize = 40;
/// Machines kept that Omni does not know: a stranger can make up as many UUIDs as he likes.
const STRANGERS_CAP: usize = 256;

/// What one machine's plan last came to.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Where it stands.
    pub stage: Option<Stage>,
    /// Power, as last observed.
    pub power: PowerState,
    /// Whether the agent answers.
    pub agent: bool,
    /// What it boots next.
    pub boot_mode: &'static str,
    /// The verdict in words.
    pub verdict: &'static str,
    /// The line that decided.
    pub decided_at: Option<&'static Location<'static>>,
    /// When the plan looks again.
    pub next_attempt: Option<UnixTime>,
    /// The last failure, in words.
    pub trouble: String,
    /// BMC address and port.
    pub bmc: String,
    /// Cluster.
    pub cluster: String,
}

#[derive(Debug)]
struct Entry {
    /// Whether a plan has reported on it.
    known: bool,
    /// Whether a task waits on `wake`: such an entry must stay, or the task would never be woken again.
    driven: bool,
    addresses: Addresses,
    sign_of_life: Uptime,
    /// When the machine was last sent to its agent, or its agent came or went.
    agent_due: Option<Uptime>,
    report: Report,
    timeline: VecDeque<Moment>,
    wake: Arc<Notify>,
}

/// A [`status::Moment`] as it is kept: most are one of the plan's own sentences.
#[derive(Clone, Debug)]
struct Moment {
    at: UnixTime,
    what: Cow<'static, str>,
}

/// All machines that the box has heard of. A cheap handle.
#[derive(Clone, Debug)]
pub struct Rack {
    /// Boxed: a map leaves up to half of its places empty, and an entry is large.
    entries: Arc<Mutex<BTreeMap<MachineId, Box<Entry>>>>,
    changed: watch::Sender<()>,
}

impl Default for Rack {
    fn default() -> Self {
        Self { entries: Arc::default(), changed: watch::Sender::new(()) }
    }
}

impl Rack {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<MachineId, Box<Entry>>> {
        self.entries.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn entry<'a>(
        &self,
        entries: &'a mut MutexGuard<'_, BTreeMap<MachineId, Box<Entry>>>,
        id: &MachineId,
        now: Uptime,
    ) -> &'a mut Entry {
        if !entries.contains_key(id) {
            let strangers = entries.values().filter(|entry| entry.is_stranger()).count();
            if strangers >= STRANGERS_CAP {
                let oldest = entries
                    .iter()
                    .filter(|(_, entry)| entry.is_stranger())
                    .min_by_key(|(_, entry)| entry.sign_of_life)
                    .map(|(id, _)| id.clone());
                if let Some(oldest) = oldest {
                    entries.remove(&oldest);
                }
            }
        }
        entries.entry(id.clone()).or_insert_with(|| Box::new(Entry::new(now)))
    }

    /// A machine asked what to boot. Returns its addresses if this one is new.
    pub fn saw_boot(
        &self,
        id: &MachineId,
        sighting: Sighting,
        what: String,
        now: Uptime,
        at: UnixTime,
    ) -> Option<Addresses> {
        let mut entries = self.lock();
        let entry = self.entry(&mut entries, id, now);
        let news = entry.addresses.booted(sighting, at).then(|| entry.addresses.clone());
        entry.sign_of_life = now;
        push(&mut entry.timeline, at, what.into());
        entry.wake.notify_one();
        drop(entries);
        self.changed.send_replace(());
        news
    }

    /// The agent of a machine that Omni knows has a tunnel from `address`. Returns its addresses if that is new.
    pub fn served(&self, id: &MachineId, address: IpAddr, now: Uptime, at: UnixTime) -> Option<Addresses> {
        let mut entries = self.lock();
        let entry = self.entry(&mut entries, id, now);
        entry.addresses.served(address, at).then(|| entry.addresses.clone())
    }

    /// Addresses of the last run: the machine may still be booting. Those of this run are newer.
    pub fn restore(&self, id: &MachineId, earlier: Addresses, now: Uptime) {
        let mut entries = self.lock();
        self.entry(&mut entries, id, now).addresses.restore(earlier);
    }

    /// Something else was heard of a machine: its tunnel opened or closed, it was powered.
    pub fn saw(&self, id: &MachineId, what: impl Into<String>, now: Uptime, at: UnixTime) {
        let mut entries = self.lock();
        let entry = self.entry(&mut entries, id, now);
        entry.sign_of_life = now;
        push(&mut entry.timeline, at, what.into().into());
        entry.wake.notify_one();
        drop(entries);
        self.changed.send_replace(());
    }

    /// The machine's agent came or went, or the machine was sent to it: from now on it has some time to come.
    pub fn expect_agent(&self, id: &MachineId, now: Uptime) {
        let mut entries = self.lock();
        self.entry(&mut entries, id, now).agent_due = Some(now);
    }

    /// When [`Self::expect_agent`] was last said of the machine.
    pub fn agent_due(&self, id: &MachineId) -> Option<Uptime> {
        self.lock().get(id)?.agent_due
    }

    /// A line for the timeline that is no sign of life.
    pub fn note(&self, id: &MachineId, what: impl Into<String>, now: Uptime, at: UnixTime) {
        let mut entries = self.lock();
        push(&mut self.entry(&mut entries, id, now).timeline, at, what.into().into());
        drop(entries);
        self.changed.send_replace(());
    }

    /// The plan's verdict on a machine. A new verdict is a moment of its timeline.
    pub fn report(&self, id: &MachineId, report: Report, now: Uptime, at: UnixTime) {
        let mut entries = self.lock();
        let entry = self.entry(&mut entries, id, now);
        entry.known = true;
        if entry.report.verdict != report.verdict {
            push(&mut entry.timeline, at, report.verdict.into());
        }
        entry.report = report;
        drop(entries);
        self.changed.send_replace(());
    }

    /// The machine is gone from Omni and has been let go.
    pub fn forget(&self, id: &MachineId) {
        self.lock().remove(id);
        self.changed.send_replace(());
    }

    /// Where the machine may dial in from: where it booted lately and where its agent worked.
    pub fn addresses(&self, id: &MachineId) -> Addresses {
        self.lock().get(id).map(|entry| entry.addresses.clone()).unwrap_or_default()
    }

    /// Whether some machine booted from `address` lately.
    pub fn booted_from(&self, address: IpAddr) -> bool {
        self.lock().values().any(|entry| entry.addresses.counts(address))
    }

    /// Whether anything was heard of the machine.
    pub fn knows(&self, id: &MachineId) -> bool {
        self.lock().contains_key(id)
    }

    /// What wakes the machine's plan: the same for everyone who asks, until the machine is forgotten.
    pub fn wake(&self, id: &MachineId, now: Uptime) -> Arc<Notify> {
        let mut entries = self.lock();
        // No stranger, and so not counted among them: a rack's first sync makes thousands of these at once.
        let entry = entries.entry(id.clone()).or_insert_with(|| Box::new(Entry::new(now)));
        entry.driven = true;
        Arc::clone(&entry.wake)
    }

    /// Changes whenever something here does; the value itself is read with [`Self::machines`].
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// All machines, as the page shows them.
    pub fn machines(&self) -> Vec<status::Machine> {
        self.lock()
            .iter()
            .map(|(id, entry)| status::Machine {
                id: id.clone(),
                stage: entry.report.stage.unwrap_or(Stage::Discovered),
                power: entry.report.power,
                agent: entry.report.agent,
                boot_mode: if entry.known { entry.report.boot_mode } else { "agent" }.to_owned(),
                verdict: if entry.known { entry.report.verdict } else { crate::reconcile::Reason::NotInOmni.as_str() }
                    .to_owned(),
                decided_at: entry
                    .report
                    .decided_at
                    .map(|decided| format!("{}:{}", decided.file(), decided.line()))
                    .unwrap_or_default(),
                next_attempt: entry.report.next_attempt,
                trouble: entry.report.trouble.clone(),
                mac: entry.addresses.last().map(|sighting| sighting.mac.clone()).unwrap_or_default(),
                address: entry.addresses.last().map(|sighting| sighting.address.to_string()).unwrap_or_default(),
                bmc: entry.report.bmc.clone(),
                cluster: entry.report.cluster.clone(),
                timeline: entry.timeline.iter().map(Moment::shown).collect(),
            })
            .collect()
    }
}

impl Entry {
    fn new(now: Uptime) -> Self {
        Self {
            known: false,
            driven: false,
            addresses: Addresses::default(),
            sign_of_life: now,
            agent_due: None,
            report: Report::default(),
            timeline: VecDeque::new(),
            wake: Arc::default(),
        }
    }

    /// No task drives it, and neither Omni nor the last run knew it.
    fn is_stranger(&self) -> bool {
        !self.known && !self.driven && !self.addresses.iter().any(|seen| seen.served)
    }
}

impl Moment {
    fn shown(&self) -> status::Moment {
        status::Moment { at: self.at, what: self.what.clone().into_owned() }
    }
}

fn push(timeline: &mut VecDeque<Moment>, at: UnixTime, what: Cow<'static, str>) {
    if timeline.len() == TIMELINE_CAP {
        timeline.pop_front();
    }
    timeline.push_back(Moment { at, what });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> MachineId {
        format!("4c4c4544-0042-3510-8054-{number:012x}").parse().unwrap()
    }

    fn sighting() -> Sighting {
        Sighting { mac: "52-54-00-00-00-01".into(), address: IpAddr::from([127, 0, 0, 2]) }
    }

    #[test]
    fn strangers_push_out_strangers_and_never_a_known_machine() {
        let rack = Rack::default();
        rack.report(&id(0), Report::default(), Uptime::from_secs(0), UnixTime::default());
        for number in 1..1_000 {
            rack.saw_boot(
                &id(number),
                sighting(),
                "booted".into(),
                Uptime::from_secs(number.into()),
                UnixTime::default(),
            );
        }
        let machines = rack.machines();
        assert_eq!(machines.len(), STRANGERS_CAP + 1);
        assert_eq!(machines[0].id, id(0));
        assert_eq!(machines[1].id, id(1_000 - STRANGERS_CAP as u32));
    }

    #[test]
    fn thousands_of_machines_keep_what_wakes_them_before_any_is_planned() {
        let rack = Rack::default();
        let wakes: Vec<_> = (0..1_000).map(|number| rack.wake(&id(number), Uptime::default())).collect();
        for number in 1_000..2_000 {
            rack.saw_boot(&id(number), sighting(), "booted".into(), Uptime::from_secs(1), UnixTime::default());
        }
        let again = |number: usize| rack.wake(&id(number as u32), Uptime::default());
        assert!(wakes.iter().enumerate().all(|(number, wake)| Arc::ptr_eq(wake, &again(number))));
        assert_eq!(rack.machines().len(), 1_000 + STRANGERS_CAP);
    }

    #[test]
    fn a_timeline_is_bounded_and_keeps_the_newest() {
        let rack = Rack::default();
        for number in 0..100 {
            rack.note(&id(1), format!("{number}"), Uptime::default(), UnixTime::default());
        }
        let timeline = &rack.machines()[0].timeline;
        assert_eq!((timeline.len(), timeline[TIMELINE_CAP - 1].what.as_str()), (TIMELINE_CAP, "99"));
    }

    #[test]
    fn only_a_new_verdict_is_a_moment() {
        let rack = Rack::default();
        for verdict in ["wiping", "wiping", "ready"] {
            let report = Report { verdict, ..Report::default() };
            rack.report(&id(1), report, Uptime::default(), UnixTime::default());
        }
        let what: Vec<_> = rack.machines()[0].timeline.iter().map(|moment| moment.what.clone()).collect();
        assert_eq!(what, ["wiping", "ready"]);
    }
}
