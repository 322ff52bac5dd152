//! What PID 1 does next: the service table, restarts, watchdogs, limits, mounts, settings, shutdown.
//!
//! [`Supervisor`] is told what happened and answers with what to do, as values; `init` performs them. It never waits for
//! a service: a service that hangs costs itself.

pub mod budget;
pub mod cgroup;
pub mod clock;
pub mod cmdline;
pub mod control;
pub mod disk;
mod entry;
mod event;
pub mod flags;
pub mod install;
pub mod memory;
pub mod modules;
pub mod mounts;
pub mod notify;
pub mod plugs;
pub mod restart;
pub mod seccomp;
pub mod seed;
pub mod services;
pub mod shutdown;
pub mod slots;
pub mod storage;
pub mod sysctl;
pub mod terminals;
#[cfg(test)]
mod transcripts;
pub mod volume;

use std::time::Duration;

use crate::slots::Target;
use crate::time::Uptime;
use budget::{Budget, Previous, Refusal};
use control::ServiceStatus;
pub use entry::READY_LIMIT;
use entry::{Entry, State};
pub use event::{Action, Ending, Event, Exit, Place, Report, Signal, Why};
use mounts::{LINKS, MOUNTS};
use services::Service;
use slots::{Slots, View};
use sysctl::{HOSTNAME, SYSCTLS};

/// A machine that runs wakes PID 1 sooner than that after its time.
const LATE: Duration = Duration::from_secs(1);

/// For how long the machine may have stood still when PID 1, which went to wait at `began` until `due` at the latest, is woken
/// at `woken`; `None` when that was in time. What was overdue before it waited is PID 1's own delay.
pub fn stood_still(began: Uptime, due: Uptime, woken: Uptime) -> Option<Duration> {
    (woken.since(due.max(began)) >= LATE).then(|| woken.since(began))
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Mounts are made; what was before is not known yet.
    Early,
    Running,
    /// A wave of services was asked to end.
    Terminating {
        wave: Vec<&'static str>,
        deadline: Uptime,
    },
    /// What was left of the wave was killed.
    Killing {
        wave: Vec<&'static str>,
        deadline: Uptime,
    },
    /// What no service answers for was asked to end.
    TerminatingStrays {
        deadline: Uptime,
    },
    /// What was left of it was killed.
    KillingStrays {
        deadline: Uptime,
    },
    Over,
}

/// PID 1's mind.
#[derive(Clone, Debug)]
pub struct Supervisor {
    entries: Vec<Entry>,
    phase: Phase,
    /// The process of [`Action::Prepare`].
    preparing: Option<i32>,
    budget: Budget,
    previous: Previous,
    slots: Slots,
    recovery: bool,
    /// How the run ends, why, and since when it does.
    end: Option<(Ending, Why, Uptime)>,
}

impl Supervisor {
    /// A supervisor of `services`, each of which stands after those that it depends on. Nothing is started before
    /// [`Event::Recalled`].
    pub fn new(services: &[Service]) -> Self {
        Self {
            entries: services.iter().map(Entry::new).collect(),
            phase: Phase::Early,
            preparing: None,
            budget: Budget::default(),
            previous: Previous::default(),
            slots: Slots::default(),
            recovery: false,
            end: None,
        }
    }

    /// Takes one event; returns what to do now, in order. `now` is when it happened.
    pub fn on(&mut self, now: Uptime, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let children_gone = event == Event::ChildrenGone;
        match event {
            Event::Boot => {
                actions.extend(MOUNTS.iter().copied().map(Action::Mount));
                actions.push(Action::Orient);
            }
            Event::Oriented { place, watchdog, booted, trial } => {
                if let Some(watchdog) = watchdog {
                    self.entries.iter_mut().for_each(|entry| entry.service.watchdog = watchdog);
                }
                if let Some(booted) = booted.as_ref().filter(|booted| booted.target == Target::Recovery) {
                    self.recovery = true;
                    self.entries.retain(|entry| entry.service.in_recovery);
                    actions.push(Action::Report(Report::Recovery(booted.why)));
                }
                self.slots.oriented(booted, trial);
                boot(place, &mut actions);
            }
            Event::Recalled(previous) => {
                self.budget = Budget::of(&previous, now);
                actions.push(Action::Report(Report::Previous(previous.clone())));
                actions.push(Action::Remember(self.budget.running()));
                self.previous = previous;
                // It may have been told to end before it began.
                if self.phase == Phase::Early {
                    self.phase = Phase::Running;
                    self.slots.began(now);
                }
            }
            Event::SlotsRead(records) => self.slots.read(records, &mut actions),
            Event::SlotsWritten { outcome, records } => {
                let outcome = self.slots.written(now, outcome, records, &mut actions);
                self.follow(now, outcome, &mut actions);
            }
            Event::Wished { ticket, uid, wish } => self.slots.wish(ticket, uid, wish, &mut actions),
            Event::Started { service, pid } => {
                actions.extend(self.entry(service).map(|entry| entry.started(now, pid)));
            }
            Event::SpawnFailed { service, jitter } => {
                actions.extend(self.entry(service).map(|entry| entry.ended(now, None, jitter)));
            }
            Event::Noticed { pid, notice } => {
                if let Some(entry) = self.entries.iter_mut().find(|entry| entry.pid() == Some(pid))
                    && self.phase == Phase::Running
                {
                    entry.noticed(now, notice, &mut actions);
                }
            }
            Event::Preparing(None) => self.prepared(&mut actions),
            Event::Preparing(pid) => self.preparing = pid,
            Event::ChildExited { pid, .. } if self.preparing == Some(pid) => self.prepared(&mut actions),
            Event::ChildExited { pid, exit, jitter } => self.child_exited(now, pid, exit, jitter, &mut actions),
            Event::StoodStill(time) => {
                self.entries.iter_mut().for_each(|entry| entry.stood_still(time));
                actions.push(Action::Report(Report::StoodStill(time)));
            }
            Event::ChildrenGone | Event::Deadline => {}
            Event::RestartRequested(service) => {
                if let Some(entry) = self.entry(service)
                    && entry.state != State::Stopped
                {
                    entry.renew(now, &mut actions);
                }
            }
            Event::TerminationRequested(ending, why) => self.terminate(now, ending, why, &mut actions),
        }
        self.proceed(now, children_gone, &mut actions);
        actions
    }

    /// The disk is as ready as it gets: a box that has only memory still has a page.
    fn prepared(&mut self, actions: &mut Vec<Action>) {
        self.preparing = None;
        // It may have been told to end meanwhile.
        if self.phase == Phase::Early {
            furnish(actions);
        }
    }

    /// When [`Event::Deadline`] is due, if at all.
    pub fn deadline(&self) -> Option<Uptime> {
        match &self.phase {
            Phase::Running => {
                let entries = self.entries.iter().filter_map(Entry::deadline);
                entries.chain(self.budget.deadline()).chain(self.slots.deadline()).min()
            }
            Phase::Terminating { deadline, .. }
            | Phase::Killing { deadline, .. }
            | Phase::TerminatingStrays { deadline, .. }
            | Phase::KillingStrays { deadline, .. } => Some(*deadline),
            Phase::Early | Phase::Over => None,
        }
    }

    /// Whether the hardware watchdog is fed at `now`. That the loop asks shows that it turns; a critical service that can't be
    /// brought back is dealt with by a reboot in order, within its budget, which the hardware does not know of. An end that
    /// takes longer than all its steps may is left to the hardware.
    pub fn feeds(&self, now: Uptime) -> bool {
        self.end.is_none_or(|(_, _, since)| now.since(since) < shutdown::LIMIT)
    }

    /// How each service fares at `now`, in the table's order. Of memory nothing is known here.
    pub fn status(&self, now: Uptime) -> Vec<ServiceStatus> {
        self.entries.iter().map(|entry| entry.status(now)).collect()
    }

    /// The service whose main process `pid` is.
    pub fn service_of(&self, pid: i32) -> Option<&'static str> {
        self.entries.iter().find(|entry| entry.pid() == Some(pid)).map(|entry| entry.service.name)
    }

    /// What is known of the run before.
    pub fn previous(&self) -> &Previous {
        &self.previous
    }

    /// Whether this is recovery.
    pub fn is_recovery(&self) -> bool {
        self.recovery
    }

    /// What the slot records say.
    pub fn slot_records(&self) -> Option<control::SlotRecords> {
        self.slots.status()
    }

    /// Runs in a row that ended by themselves.
    pub fn in_a_row(&self) -> u8 {
        self.budget.in_a_row
    }

    fn entry(&mut self, service: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.service.name == service)
    }

    fn child_exited(&mut self, now: Uptime, pid: i32, exit: Exit, jitter: u8, actions: &mut Vec<Action>) {
        let running = self.phase == Phase::Running;
        let Some(entry) = self.entries.iter_mut().find(|entry| entry.pid() == Some(pid)) else {
            actions.push(Action::Report(Report::Stray { pid, exit }));
            return;
        };
        // Nothing of it may hold its ports and files when it starts again.
        actions.push(Action::KillLeftovers(entry.service.name));
        if running {
            actions.push(entry.ended(now, Some(exit), jitter));
        } else {
            entry.state = State::Stopped;
            entry.last = Some(exit);
            actions.push(Action::Report(Report::Stopped { service: entry.service.name, exit }));
        }
    }

    /// What follows from the state as it is.
    fn proceed(&mut self, now: Uptime, children_gone: bool, actions: &mut Vec<Action>) {
        match self.phase.clone() {
            Phase::Early | Phase::Over => {}
            Phase::Running => self.tend(now, actions),
            Phase::Terminating { wave, deadline } => {
                let left = self.alive(&wave);
                if left.is_empty() {
                    self.next_wave(now, actions);
                } else if now >= deadline {
                    for (service, pid) in left {
                        actions.push(Action::Signal { pid, signal: Signal::Kill });
                        actions.push(Action::KillLeftovers(service));
                    }
                    self.phase = Phase::Killing { wave, deadline: now + shutdown::VANISH };
                }
            }
            Phase::Killing { wave, deadline } => {
                let left = self.alive(&wave);
                if now >= deadline {
                    for (service, pid) in &left {
                        actions.push(Action::Report(Report::Stuck { service, pid: *pid }));
                    }
                    self.entries
                        .iter_mut()
                        .filter(|entry| wave.contains(&entry.service.name))
                        .filter(|entry| entry.pid().is_some())
                        .for_each(|entry| (entry.state, entry.last) = (State::Stopped, Some(Exit::Never)));
                }
                if left.is_empty() || now >= deadline {
                    self.next_wave(now, actions);
                }
            }
            Phase::TerminatingStrays { deadline } => {
                if children_gone {
                    self.finish(now, actions);
                } else if now >= deadline {
                    actions.push(Action::KillAll(Signal::Kill));
                    self.phase = Phase::KillingStrays { deadline: now + shutdown::VANISH };
                }
            }
            Phase::KillingStrays { deadline } => {
                if children_gone || now >= deadline {
                    self.finish(now, actions);
                }
            }
        }
    }

    fn tend(&mut self, now: Uptime, actions: &mut Vec<Action>) {
        for entry in &mut self.entries {
            entry.tend(now, actions);
        }
        let doomed = self.entries.iter_mut().find_map(|entry| entry.doomed(now).then_some(entry.service.name));
        if let Some(service) = doomed {
            match self.budget.may_reboot() {
                _ if self.recovery => {
                    actions.push(Action::Report(Report::StaysUp { service, refusal: Refusal::Recovery }));
                }
                _ if self.slots.on_trial() => self.slots.doom(service),
                Ok(()) => return self.terminate(now, Ending::Reboot, Why::Critical(service), actions),
                Err(Refusal::Spent) if self.slots.rescue(service) => {}
                Err(refusal) => actions.push(Action::Report(Report::StaysUp { service, refusal })),
            }
        }
        let outcome = self.slots.tend(now, self.view(), actions);
        self.follow(now, outcome, actions);
        if self.phase != Phase::Running {
            return;
        }
        let trouble = self.entries.iter().any(|entry| entry.in_trouble(now));
        if self.budget.forgive(now, trouble) {
            actions.push(Action::Remember(self.budget.running()));
        }
        self.start_due(now, actions);
    }

    /// Does what a write of the slot records leads to.
    fn follow(&mut self, now: Uptime, outcome: slots::Outcome, actions: &mut Vec<Action>) {
        if let Some(service) = outcome.not_rescued {
            actions.push(Action::Report(Report::StaysUp { service, refusal: Refusal::Spent }));
        }
        if let Some((ending, why)) = outcome.end {
            self.terminate(now, ending, why, actions);
        }
    }

    /// What the services say that matters to the slots.
    fn view(&self) -> View {
        let of = |name| self.entries.iter().find(|entry| entry.service.name == name);
        let (net, web, provider) = (of("net"), of("web"), of("provider"));
        let ready = |entry: Option<&Entry>| entry.is_some_and(Entry::is_ready);
        View {
            // One that does not say what it reaches is believed to.
            net: ready(net) && net.is_some_and(|entry| entry.reaches != Some(false)),
            web: ready(web),
            provider: ready(provider),
            omni: ready(provider) && provider.is_some_and(|entry| entry.reaches == Some(true)),
            lasts_at: web.and_then(Entry::healthy_at),
        }
    }

    fn start_due(&mut self, now: Uptime, actions: &mut Vec<Action>) {
        // Its chance is enough: a service that can't start keeps no other from trying.
        let tried: Vec<_> = self.entries.iter().filter(|entry| entry.tried).map(|entry| entry.service.name).collect();
        let all: Vec<_> = self.entries.iter().map(|entry| entry.service.name).collect();
        for entry in &mut self.entries {
            let due = match entry.state {
                // In recovery not every service is there.
                State::Waiting => {
                    entry.service.depends_on.iter().all(|name| tried.contains(name) || !all.contains(name))
                }
                State::Pausing { until } => now >= until,
                State::Starting | State::Running { .. } | State::Aborting { .. } | State::Stopped => false,
            };
            if due {
                entry.state = State::Starting;
                actions.push(Action::Spawn(entry.service));
            }
        }
    }

    /// The running services among `names` and their processes.
    fn alive(&self, names: &[&'static str]) -> Vec<(&'static str, i32)> {
        let entries = self.entries.iter().filter(|entry| names.contains(&entry.service.name));
        entries.filter_map(|entry| Some((entry.service.name, entry.pid()?))).collect()
    }

    fn terminate(&mut self, now: Uptime, ending: Ending, why: Why, actions: &mut Vec<Action>) {
        // Asked again, the first wish stands: the services are on their way down.
        if self.end.is_none() {
            self.end = Some((ending, why, now));
            actions.push(Action::Report(Report::Ending(ending, why)));
            self.next_wave(now, actions);
        }
    }

    fn next_wave(&mut self, now: Uptime, actions: &mut Vec<Action>) {
        let services: Vec<_> = self.entries.iter().map(|entry| entry.service).collect();
        let names: Vec<_> = services.iter().map(|service| service.name).collect();
        let alive: Vec<_> = self.alive(&names).into_iter().map(|(name, _)| name).collect();
        let wave = shutdown::wave(&services, &alive);
        if wave.is_empty() {
            actions.push(Action::KillAll(Signal::Term));
            self.phase = Phase::TerminatingStrays { deadline: now + shutdown::VANISH };
        } else {
            let pids = self.alive(&wave);
            actions.extend(pids.into_iter().map(|(_, pid)| Action::Signal { pid, signal: Signal::Term }));
            self.phase = Phase::Terminating { wave, deadline: now + shutdown::GRACE };
        }
    }

    fn finish(&mut self, now: Uptime, actions: &mut Vec<Action>) {
        let (ending, why, _) = self.end.unwrap_or((Ending::Reboot, Why::Signal, now));
        let exits =
            self.entries.iter().filter_map(|entry| Some((entry.service.name.to_owned(), entry.last?.to_string())));
        actions.push(Action::Remember(self.budget.ended(ending, why, now.as_duration(), exits.collect())));
        actions.push(Action::Sync);
        actions.extend(MOUNTS.iter().rev().map(|mount| Action::Unmount(mount.target)));
        actions.push(Action::Sync);
        actions.push(Action::Reboot(ending));
        self.phase = Phase::Over;
    }
}

/// All between the mounts and the data partition. In a container the kernel's settings and the hardware are left alone.
fn boot(place: Place, actions: &mut Vec<Action>) {
    if place == Place::Machine {
        actions.push(Action::OpenWatchdog);
    }
    actions.extend(LINKS.iter().map(|(path, target)| Action::Link { path, target }));
    if place == Place::Machine {
        actions.extend(SYSCTLS.iter().copied().map(Action::Tune));
        actions.push(Action::Hostname(HOSTNAME));
    }
    actions.push(Action::LoopbackUp);
    match place {
        Place::Machine => actions.push(Action::Prepare),
        Place::Container => furnish(actions),
    }
}

/// What services need of the file system.
fn furnish(actions: &mut Vec<Action>) {
    actions.extend(mounts::directories().into_iter().map(Action::MakeDirectory));
    actions.extend([Action::MakeCgroups, Action::ListenToServices, Action::ReadSlots, Action::Recall]);
}

/// What [`Supervisor::feeds`] allows must outlast the steps of an end.
const _: () = assert!(shutdown::LIMIT.as_secs() > 4 * (shutdown::GRACE.as_secs() + shutdown::VANISH.as_secs()));
