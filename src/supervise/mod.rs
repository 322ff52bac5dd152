//! What PID 1 does next: the service table, restarts, mounts, shutdown.
//!
//! [`Supervisor`] is told what happened and answers with what to do, as values; `init` performs them. It never waits for
//! a service: a service that hangs costs itself.

pub mod disk;
pub mod flags;
pub mod modules;
pub mod mounts;
pub mod restart;
pub mod services;
pub mod shutdown;
pub mod storage;
#[cfg(test)]
mod transcripts;

use std::fmt;
use std::time::Duration;

use crate::time::Uptime;
use mounts::{Directory, LINKS, MOUNTS, Mount};
use restart::History;
use services::Service;

/// How the box's run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It starts anew.
    Reboot,
    /// It goes dark.
    PowerOff,
    /// It stops and stays powered.
    Halt,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// What happened. `jitter` is any random octet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// PID 1 begins.
    Boot,
    /// The process of [`Action::Prepare`] runs, or could not be started.
    Preparing(Option<i32>),
    /// A service runs.
    Started {
        /// Which.
        service: &'static str,
        /// Its process.
        pid: i32,
    },
    /// A service could not be started.
    SpawnFailed {
        /// Which.
        service: &'static str,
        /// Spreads the next attempt.
        jitter: u8,
    },
    /// A process ended and was reaped.
    ChildExited {
        /// Which.
        pid: i32,
        /// How.
        exit: Exit,
        /// Spreads the next attempt.
        jitter: u8,
    },
    /// PID 1 has no children any more.
    ChildrenGone,
    /// [`Supervisor::deadline`] has come.
    Deadline,
    /// Someone who may asks for the end.
    TerminationRequested(Ending),
}

/// A signal to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It should end.
    Term,
    /// It ends.
    Kill,
}

/// What to do, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Mount, unless something is mounted there.
    Mount(Mount),
    /// Make a directory.
    MakeDirectory(Directory),
    /// Make a symbolic link, unless something has that name.
    Link {
        /// The link.
        path: &'static str,
        /// What it points to.
        target: &'static str,
    },
    /// Load modules and mount the data partition, in a process of its own, and report [`Event::Preparing`].
    Prepare,
    /// Start a service and report [`Event::Started`] or [`Event::SpawnFailed`].
    Spawn(Service),
    /// Signal one process and all it started (its process group).
    Signal {
        /// Which.
        pid: i32,
        /// With what.
        signal: Signal,
    },
    /// Signal every process but PID 1.
    KillAll(Signal),
    /// Write out what the kernel still holds.
    Sync,
    /// Unmount, lazily when it is busy.
    Unmount(&'static str),
    /// The last one; it does not return.
    Reboot(Ending),
    /// Tell people.
    Report(Report),
}

/// What people should know of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// A process ended that was left behind by another. For debugging only.
    Stray {
        /// Which.
        pid: i32,
        /// How it ended.
        exit: Exit,
    },
    /// A service runs.
    Running {
        /// Which.
        service: &'static str,
        /// Its process.
        pid: i32,
    },
    /// A service ended or could not be started, and is started again.
    Restarting {
        /// Which.
        service: &'static str,
        /// How it ended; `None` when it could not be started.
        exit: Option<Exit>,
        /// After which pause.
        pause: Duration,
        /// Whether it fails so often that it counts as broken.
        degraded: bool,
    },
    /// The end begins.
    Ending(Ending),
    /// A service ended in the course of the shutdown.
    Stopped {
        /// Which.
        service: &'static str,
        /// How.
        exit: Exit,
    },
    /// Even SIGKILL does not end a service; it is left behind.
    Stuck {
        /// Which.
        service: &'static str,
        /// Its process.
        pid: i32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// For those it depends on.
    Waiting,
    /// The word to start it is given.
    Starting,
    Running {
        pid: i32,
        since: Uptime,
    },
    Pausing {
        until: Uptime,
    },
    /// The box ends.
    Stopped,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// Modules and the data partition come first.
    Preparing {
        pid: Option<i32>,
    },
    Running,
    /// A wave of services was asked to end.
    Terminating {
        ending: Ending,
        wave: Vec<&'static str>,
        deadline: Uptime,
    },
    /// What was left of the wave was killed.
    Killing {
        ending: Ending,
        wave: Vec<&'static str>,
        deadline: Uptime,
    },
    /// What no service answers for was asked to end.
    TerminatingStrays {
        ending: Ending,
        deadline: Uptime,
    },
    /// What was left of it was killed.
    KillingStrays {
        ending: Ending,
        deadline: Uptime,
    },
    Over,
}

#[derive(Clone, Debug)]
struct Entry {
    service: Service,
    state: State,
    history: History,
    degraded: bool,
}

/// How a service fares, for the status page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Which.
    pub service: &'static str,
    /// Its process, while it runs.
    pub pid: Option<i32>,
    /// Whether it fails so often that it counts as broken; until it has run a healthy minute.
    pub degraded: bool,
}

/// PID 1's mind.
#[derive(Clone, Debug)]
pub struct Supervisor {
    entries: Vec<Entry>,
    phase: Phase,
}

impl Supervisor {
    /// A supervisor of `services`, each of which stands after those that it depends on. Nothing is started before
    /// [`Event::Boot`].
    pub fn new(services: &[Service]) -> Self {
        let entry = |service: &Service| Entry {
            service: *service,
            state: State::Waiting,
            history: History::default(),
            degraded: false,
        };
        Self { entries: services.iter().map(entry).collect(), phase: Phase::Preparing { pid: None } }
    }

    /// Takes one event; returns what to do now, in order. `now` is when it happened.
    pub fn on(&mut self, now: Uptime, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::Boot => {
                actions.extend(MOUNTS.iter().copied().map(Action::Mount));
                actions.extend(LINKS.iter().map(|(path, target)| Action::Link { path, target }));
                actions.push(Action::Prepare);
            }
            Event::Preparing(pid @ Some(_)) => self.phase = Phase::Preparing { pid },
            Event::Preparing(None) => self.prepared(&mut actions),
            Event::ChildExited { pid, .. } if self.phase == (Phase::Preparing { pid: Some(pid) }) => {
                self.prepared(&mut actions);
            }
            Event::Started { service, pid } => {
                if let Some(entry) = self.entries.iter_mut().find(|entry| entry.service.name == service) {
                    entry.state = State::Running { pid, since: now };
                    actions.push(Action::Report(Report::Running { service, pid }));
                }
            }
            Event::SpawnFailed { service, jitter } => {
                if let Some(entry) = self.entries.iter_mut().find(|entry| entry.service.name == service) {
                    actions.push(entry.pause(now, None, Duration::ZERO, jitter));
                }
            }
            Event::ChildExited { pid, exit, jitter } => actions.push(self.child_exited(now, pid, exit, jitter)),
            Event::ChildrenGone | Event::Deadline => {}
            Event::TerminationRequested(ending) => {
                // Asked again, the first wish stands: the services are on their way down.
                if matches!(self.phase, Phase::Preparing { .. } | Phase::Running) {
                    actions.push(Action::Report(Report::Ending(ending)));
                    self.next_wave(now, ending, &mut actions);
                }
            }
        }
        self.proceed(now, event, &mut actions);
        actions
    }

    /// When [`Event::Deadline`] is due, if at all.
    pub fn deadline(&self) -> Option<Uptime> {
        match &self.phase {
            Phase::Running => self
                .entries
                .iter()
                .filter_map(|entry| match entry.state {
                    State::Pausing { until } => Some(until),
                    State::Waiting | State::Starting | State::Running { .. } | State::Stopped => None,
                })
                .min(),
            Phase::Terminating { deadline, .. }
            | Phase::Killing { deadline, .. }
            | Phase::TerminatingStrays { deadline, .. }
            | Phase::KillingStrays { deadline, .. } => Some(*deadline),
            Phase::Preparing { .. } | Phase::Over => None,
        }
    }

    /// How each service fares at `now`, in the table's order.
    pub fn status(&self, now: Uptime) -> Vec<Status> {
        let status = |entry: &Entry| {
            let (pid, healthy) = match entry.state {
                State::Running { pid, since } => (Some(pid), now.since(since) >= restart::HEALTHY_AFTER),
                State::Waiting | State::Starting | State::Pausing { .. } | State::Stopped => (None, false),
            };
            Status { service: entry.service.name, pid, degraded: entry.degraded && !healthy }
        };
        self.entries.iter().map(status).collect()
    }

    fn child_exited(&mut self, now: Uptime, pid: i32, exit: Exit, jitter: u8) -> Action {
        let running = self.phase == Phase::Running;
        for entry in &mut self.entries {
            match entry.state {
                State::Running { pid: own, since } if own == pid => {
                    if running {
                        return entry.pause(now, Some(exit), now.since(since), jitter);
                    }
                    entry.state = State::Stopped;
                    return Action::Report(Report::Stopped { service: entry.service.name, exit });
                }
                State::Waiting | State::Starting | State::Running { .. } | State::Pausing { .. } | State::Stopped => {}
            }
        }
        Action::Report(Report::Stray { pid, exit })
    }

    /// What follows from the state as it is after `event`.
    fn proceed(&mut self, now: Uptime, event: Event, actions: &mut Vec<Action>) {
        match self.phase.clone() {
            Phase::Running => self.start_due(now, actions),
            Phase::Terminating { ending, wave, deadline } => {
                let left = self.alive(&wave);
                if left.is_empty() {
                    self.next_wave(now, ending, actions);
                } else if now >= deadline {
                    actions.extend(left.iter().map(|(_, pid)| Action::Signal { pid: *pid, signal: Signal::Kill }));
                    self.phase = Phase::Killing { ending, wave, deadline: now + shutdown::VANISH };
                }
            }
            Phase::Killing { ending, wave, deadline } => {
                let left = self.alive(&wave);
                if now >= deadline {
                    for (service, pid) in &left {
                        actions.push(Action::Report(Report::Stuck { service, pid: *pid }));
                    }
                    self.entries
                        .iter_mut()
                        .filter(|entry| wave.contains(&entry.service.name))
                        .for_each(|entry| entry.state = State::Stopped);
                }
                if left.is_empty() || now >= deadline {
                    self.next_wave(now, ending, actions);
                }
            }
            Phase::TerminatingStrays { ending, deadline } => {
                if event == Event::ChildrenGone {
                    self.finish(ending, actions);
                } else if now >= deadline {
                    actions.push(Action::KillAll(Signal::Kill));
                    self.phase = Phase::KillingStrays { ending, deadline: now + shutdown::VANISH };
                }
            }
            Phase::KillingStrays { ending, deadline } => {
                if event == Event::ChildrenGone || now >= deadline {
                    self.finish(ending, actions);
                }
            }
            Phase::Preparing { .. } | Phase::Over => {}
        }
    }

    /// However it went: a box that has only memory still has a page.
    fn prepared(&mut self, actions: &mut Vec<Action>) {
        actions.extend(mounts::directories().into_iter().map(Action::MakeDirectory));
        self.phase = Phase::Running;
    }

    fn start_due(&mut self, now: Uptime, actions: &mut Vec<Action>) {
        // Tried once is enough: a service that can't start keeps no other from trying.
        let tried: Vec<_> = self
            .entries
            .iter()
            .filter(|entry| match entry.state {
                State::Running { .. } | State::Pausing { .. } | State::Stopped => true,
                State::Waiting | State::Starting => false,
            })
            .map(|entry| entry.service.name)
            .collect();
        for entry in &mut self.entries {
            let due = match entry.state {
                State::Waiting => entry.service.depends_on.iter().all(|name| tried.contains(name)),
                State::Pausing { until } => now >= until,
                State::Starting | State::Running { .. } | State::Stopped => false,
            };
            if due {
                entry.state = State::Starting;
                actions.push(Action::Spawn(entry.service));
            }
        }
    }

    /// The running services among `names` and their processes.
    fn alive(&self, names: &[&'static str]) -> Vec<(&'static str, i32)> {
        let pid = |entry: &Entry| match entry.state {
            State::Running { pid, .. } => Some((entry.service.name, pid)),
            State::Waiting | State::Starting | State::Pausing { .. } | State::Stopped => None,
        };
        self.entries.iter().filter(|entry| names.contains(&entry.service.name)).filter_map(pid).collect()
    }

    fn next_wave(&mut self, now: Uptime, ending: Ending, actions: &mut Vec<Action>) {
        let services: Vec<_> = self.entries.iter().map(|entry| entry.service).collect();
        let names: Vec<_> = services.iter().map(|service| service.name).collect();
        let alive: Vec<_> = self.alive(&names).into_iter().map(|(name, _)| name).collect();
        let wave = shutdown::wave(&services, &alive);
        if wave.is_empty() {
            actions.push(Action::KillAll(Signal::Term));
            self.phase = Phase::TerminatingStrays { ending, deadline: now + shutdown::VANISH };
        } else {
            let pids = self.alive(&wave);
            actions.extend(pids.into_iter().map(|(_, pid)| Action::Signal { pid, signal: Signal::Term }));
            self.phase = Phase::Terminating { ending, wave, deadline: now + shutdown::GRACE };
        }
    }

    fn finish(&mut self, ending: Ending, actions: &mut Vec<Action>) {
        actions.push(Action::Sync);
        actions.extend(MOUNTS.iter().rev().map(|mount| Action::Unmount(mount.target)));
        actions.push(Action::Sync);
        actions.push(Action::Reboot(ending));
        self.phase = Phase::Over;
    }
}

impl Entry {
    fn pause(&mut self, now: Uptime, exit: Option<Exit>, ran: Duration, jitter: u8) -> Action {
        let next = self.history.ended(now, ran, jitter);
        self.state = State::Pausing { until: next.at };
        self.degraded = next.degraded;
        let pause = next.at.since(now);
        Action::Report(Report::Restarting { service: self.service.name, exit, pause, degraded: next.degraded })
    }
}
