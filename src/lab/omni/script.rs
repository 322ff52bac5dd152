//! The director: what people do with each machine of the lab, step by step, and which step each machine has reached.
//!
//! Edge: it runs one task per machine. Each step waits for a condition on what Omni knows, never for time, except where a
//! person would look away for a moment.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::controller::Controller;
use super::lifecycle::{Allocation, OmniMachine};
use super::people::{Impossible, People};
use crate::proto::lab::report_request::Event;
use crate::proto::specs::InfraMachineStatusSpec;
use crate::proto::specs::infra_machine_config_spec::AcceptanceStatus;
use crate::time::UnixTime;

/// What the lives have in common.
#[derive(Clone, Debug)]
pub struct Plan {
    /// UUIDs in order; a machine's place decides its variant. Machines that are not listed take the places after these,
    /// in the order in which they join.
    pub fleet: Vec<String>,
    /// How long a machine stays rejected, or cordoned.
    pub pause: Duration,
    /// Talos version of the cluster, without `v`.
    pub talos_version: String,
    /// System extensions of the cluster's machines.
    pub extensions: Vec<String>,
    /// Whether a machine that joins again after it was removed begins another life.
    pub repeat: bool,
}

impl Default for Plan {
    /// Whoever joins, half a second, Talos 1.11.2, no extensions.
    fn default() -> Self {
        let pause = Duration::from_millis(500);
        Self { fleet: Vec::new(), pause, talos_version: "1.11.2".to_owned(), extensions: Vec::new(), repeat: false }
    }
}

/// What is special about one life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// Nothing.
    Plain,
    /// Rejected first, accepted later.
    RejectedFirst,
    /// Accepted with a cordon, which is lifted a moment later.
    Cordoned,
    /// The user asks for a reboot while it is in its cluster.
    Rebooted,
}

impl Variant {
    /// The variant of the machine at `index` in a fleet of `fleet` machines: the last of three or more is rejected
    /// first, every tenth from 7 cordoned, every tenth from 8 rebooted.
    pub const fn of(index: usize, fleet: usize) -> Self {
        match index % 10 {
            _ if fleet >= 3 && index + 1 == fleet => Self::RejectedFirst,
            7 => Self::Cordoned,
            8 => Self::Rebooted,
            _ => Self::Plain,
        }
    }
}

/// Where a life is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// It has not joined yet.
    Joining,
    /// It was rejected for a moment.
    Rejected,
    /// Its user accepts it.
    Accepting,
    /// It is cordoned for a moment.
    Cordoned,
    /// The provider wipes it, makes it ready and turns it off.
    Preparing,
    /// It belongs to a cluster, and Talos installs itself.
    Installing,
    /// A user asked for a reboot.
    Rebooting,
    /// A user powered it off.
    PoweringOff,
    /// A user powered it on again.
    PoweringOn,
    /// Its cluster lets it go: Talos resets it.
    Resetting,
    /// The provider wipes it again, makes it ready and turns it off.
    Wiping,
    /// Its user removed it, and the provider lets go.
    Removing,
    /// Omni has forgotten it.
    Done,
    /// Omni refused what the script wanted.
    Failed,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Joining => "joining",
            Self::Rejected => "rejected",
            Self::Accepting => "accepting",
            Self::Cordoned => "cordoned",
            Self::Preparing => "preparing",
            Self::Installing => "installing",
            Self::Rebooting => "rebooting",
            Self::PoweringOff => "powering off",
            Self::PoweringOn => "powering on",
            Self::Resetting => "resetting",
            Self::Wiping => "wiping",
            Self::Removing => "removing",
            Self::Done => "done",
            Self::Failed => "failed",
        })
    }
}

/// One machine's progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The machine.
    pub uuid: String,
    /// Which life it has.
    pub variant: Variant,
    /// Where it is.
    pub step: Step,
    /// Since when.
    pub since: UnixTime,
    /// What has to happen next; empty when it is done.
    pub waiting_for: String,
}

/// The progress of all lives; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<BoardInner>);

#[derive(Debug, Default)]
struct BoardInner {
    lives: Mutex<BTreeMap<String, Progress>>,
    bell: watch::Sender<()>,
}

impl Board {
    /// Every life, ordered by UUID.
    pub fn snapshot(&self) -> Vec<Progress> {
        self.0.lives.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn is_done(&self, uuid: &str) -> bool {
        let lives = self.0.lives.lock().unwrap_or_else(PoisonError::into_inner);
        lives.get(uuid).is_some_and(|life| life.step == Step::Done)
    }

    /// Rings after every step of every life.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.0.bell.subscribe()
    }

    fn set(&self, uuid: &str, variant: Variant, step: Step, waiting_for: String) {
        tracing::debug!(machine = uuid, ?step, waiting_for, "script");
        let progress = Progress { uuid: uuid.to_owned(), variant, step, since: UnixTime::now(), waiting_for };
        self.0.lives.lock().unwrap_or_else(PoisonError::into_inner).insert(uuid.to_owned(), progress);
        self.0.bell.send_replace(());
    }
}

/// Plays a life with every machine that joins. Runs until it is dropped.
pub(super) async fn direct(plan: Plan, controller: Controller, people: People, board: Board) {
    let plan = Arc::new(plan);
    let mut lives = JoinSet::new();
    let mut cast = BTreeSet::new();
    let mut population = controller.population();
    let start = |lives: &mut JoinSet<()>, index: usize, uuid: &str| {
        let variant = Variant::of(index, plan.fleet.len());
        let life = Life {
            uuid: uuid.to_owned(),
            variant,
            plan: Arc::clone(&plan),
            controller: controller.clone(),
            people: people.clone(),
            board: board.clone(),
        };
        life.enter(Step::Joining, "the machine to join");
        lives.spawn(life.play());
    };
    for uuid in &plan.fleet {
        let uuid = uuid.to_ascii_lowercase();
        if cast.insert(uuid.clone()) {
            start(&mut lives, cast.len() - 1, &uuid);
        }
    }
    loop {
        for machine in controller.machines() {
            if plan.repeat && board.is_done(&machine.uuid) {
                cast.remove(&machine.uuid);
            }
            if cast.insert(machine.uuid.clone()) {
                start(&mut lives, cast.len() - 1, &machine.uuid);
            }
        }
        // Cancel-safe both: a ring that is not heard now is heard next time.
        tokio::select! {
            rung = population.changed() => if rung.is_err() { return },
            Some(_) = lives.join_next() => (),
        }
    }
}

struct Life {
    uuid: String,
    variant: Variant,
    plan: Arc<Plan>,
    controller: Controller,
    people: People,
    board: Board,
}

impl Life {
    async fn play(self) {
        match self.script().await {
            Ok(()) => self.enter(Step::Done, ""),
            Err(impossible) => self.enter(Step::Failed, &impossible.to_string()),
        }
    }

    async fn script(&self) -> Result<(), Impossible> {
        let uuid = &self.uuid;
        self.controller.wait(uuid, |machine| machine.map(drop)).await;

        if self.variant == Variant::RejectedFirst {
            self.enter(Step::Rejected, "the user to change their mind");
            self.people.reject(uuid)?;
            self.until(|machine| machine.acceptance == AcceptanceStatus::Rejected).await;
            tokio::time::sleep(self.plan.pause).await;
        }
        if self.variant == Variant::Cordoned {
            self.people.cordon(uuid, true)?;
        }
        self.enter(Step::Accepting, "Omni to note the acceptance");
        self.people.accept(uuid)?;
        self.until(|machine| machine.acceptance == AcceptanceStatus::Accepted).await;
        if self.variant == Variant::Cordoned {
            self.enter(Step::Cordoned, "the user to lift the cordon");
            tokio::time::sleep(self.plan.pause).await;
            self.people.cordon(uuid, false)?;
            self.until(|machine| !machine.cordoned).await;
        }

        self.enter(Step::Preparing, "status ready_to_use, not installed, power OFF");
        let idle =
            |machine: &OmniMachine| machine.is_off() && of(machine, |status| status.ready_to_use && !status.installed);
        let before = self.events_when(idle).await;

        self.enter(Step::Installing, "Talos to report BOOTED_FROM_DISK, status installed, power ON");
        self.people.allocate(uuid, self.allocation())?;
        let before = self.events_when(booted_after(before)).await;

        let before = if self.variant == Variant::Rebooted {
            let id = self.people.reboot(uuid)?;
            self.enter(Step::Rebooting, &format!("status last_reboot_id {id}, and a boot from disk"));
            let booted = booted_after(before);
            self.events_when(|machine| booted(machine) && of(machine, |status| status.last_reboot_id == id)).await
        } else {
            before
        };

        let id = self.people.power_off(uuid)?;
        self.enter(Step::PoweringOff, &format!("status last_power_off_id {id}, power OFF"));
        let acknowledged =
            |machine: &OmniMachine| machine.is_off() && of(machine, |status| status.last_power_off_id == id);
        let before = self.events_when(acknowledged).await.max(before);

        self.enter(Step::PoweringOn, "a boot from disk, status power ON, no last_power_off_id");
        self.people.power_on(uuid)?;
        let booted = booted_after(before);
        let on_again =
            |machine: &OmniMachine| booted(machine) && of(machine, |status| status.last_power_off_id.is_empty());
        self.until(on_again).await;

        self.enter(Step::Resetting, "Talos to report RESET_DONE");
        self.people.deallocate(uuid)?;
        let released = |machine: Option<&OmniMachine>| {
            machine.filter(|machine| machine.allocation.is_none()).map(|machine| machine.node_unique_token.clone())
        };
        // Remembered, since a wiped machine may come back with another one.
        let token = self.controller.wait(uuid, released).await;

        self.enter(Step::Wiping, "status ready_to_use, not installed, the wiped node unique token, power OFF");
        let wiped =
            |machine: &OmniMachine| idle(machine) && of(machine, |status| status.wiped_node_unique_token == token);
        self.until(wiped).await;

        self.enter(Step::Removing, "the provider to remove its finalizers");
        self.people.remove(uuid)?;
        self.controller.wait(uuid, |machine| machine.is_none().then_some(())).await;
        Ok(())
    }

    fn allocation(&self) -> Allocation {
        Allocation {
            cluster: "lab".to_owned(),
            machine_set: "lab-workers".to_owned(),
            control_plane: false,
            talos_version: self.plan.talos_version.clone(),
            extensions: self.plan.extensions.clone(),
        }
    }

    fn enter(&self, step: Step, waiting_for: &str) {
        self.board.set(&self.uuid, self.variant, step, waiting_for.to_owned());
    }

    async fn until(&self, condition: impl Fn(&OmniMachine) -> bool) {
        self.events_when(condition).await;
    }

    /// Waits for `condition`; returns the install event counter of that moment.
    async fn events_when(&self, condition: impl Fn(&OmniMachine) -> bool) -> u64 {
        let met = |machine: Option<&OmniMachine>| {
            machine.filter(|machine| condition(machine)).map(|machine| machine.install_event_id)
        };
        self.controller.wait(&self.uuid, met).await
    }
}

fn of(machine: &OmniMachine, condition: impl Fn(&InfraMachineStatusSpec) -> bool) -> bool {
    machine.status.as_ref().is_some_and(condition)
}

/// Whether the machine booted from its disk after its counter stood at `before`, and the provider knows.
fn booted_after(before: u64) -> impl Fn(&OmniMachine) -> bool {
    move |machine| {
        machine.install_event_id > before
            && machine.last_report == Some(Event::BootedFromDisk)
            && machine.is_on()
            && of(machine, |status| status.installed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_branch_is_played_in_a_fleet_of_ten() {
        let variants: Vec<_> = (0..10).map(|index| Variant::of(index, 10)).collect();
        assert_eq!(variants[7..], [Variant::Cordoned, Variant::Rebooted, Variant::RejectedFirst]);
        assert!(variants[..7].iter().all(|variant| *variant == Variant::Plain));
        assert_eq!(Variant::of(1, 2), Variant::Plain);
    }
}
