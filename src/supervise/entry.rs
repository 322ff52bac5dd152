//! One service's state, and what is due about it.

use std::time::Duration;

use super::budget::PATIENCE;
use super::control::ServiceStatus;
use super::event::{Action, Exit, Report, Signal};
use super::notify::Notice;
use super::restart::{HEALTHY_AFTER, History};
use super::services::Service;
use super::shutdown::{GRACE, VANISH};
use crate::time::Uptime;

/// Those that depend on a service wait no longer for it to be ready.
pub const READY_LIMIT: Duration = Duration::from_secs(30);
/// A service that is not ready by then hangs.
pub const START_LIMIT: Duration = Duration::from_secs(90);
/// How long a service may take to die of SIGABRT.
pub const ABORT_GRACE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// For those it depends on.
    Waiting,
    /// The word to start it is given.
    Starting,
    Running {
        pid: i32,
        /// When it was started; later by what the machine stood still since.
        since: Uptime,
        ready: Ready,
        /// When it last said that it is well; at first, when it was started.
        heard: Uptime,
    },
    /// Its watchdog ran out.
    Aborting {
        pid: i32,
        since: Uptime,
        ready: Ready,
        step: Abort,
    },
    Pausing {
        until: Uptime,
    },
    /// The box ends.
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ready {
    Since(Uptime),
    /// Others wait for it until then.
    Awaited(Uptime),
    /// Others wait no longer.
    Overdue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Abort {
    Asked {
        until: Uptime,
    },
    Killed {
        until: Uptime,
    },
    /// The kernel holds it.
    Stuck,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) service: Service,
    pub(super) state: State,
    pub(super) degraded: bool,
    /// Whether those that depend on it need not wait any more.
    pub(super) tried: bool,
    pub(super) last: Option<Exit>,
    /// Whether it reaches what it is for; `None` when it does not say.
    pub(super) reaches: Option<bool>,
    history: History,
    restarts: u32,
    says: String,
    /// Whether its end is wanted, and no failure.
    renewing: bool,
    /// When it is too late to hope for a critical service.
    doom: Option<Uptime>,
}

impl Entry {
    pub(super) fn new(service: &Service) -> Self {
        Self {
            service: *service,
            state: State::Waiting,
            degraded: false,
            tried: false,
            last: None,
            reaches: None,
            history: History::default(),
            restarts: 0,
            says: String::new(),
            renewing: false,
            doom: None,
        }
    }

    pub(super) fn started(&mut self, now: Uptime, pid: i32) -> Action {
        self.state = State::Running { pid, since: now, ready: Ready::Awaited(now + READY_LIMIT), heard: now };
        self.reaches = None;
        Action::Report(Report::Running { service: self.service.name, pid })
    }

    pub(super) fn pid(&self) -> Option<i32> {
        match self.state {
            State::Running { pid, .. } | State::Aborting { pid, .. } => Some(pid),
            State::Waiting | State::Starting | State::Pausing { .. } | State::Stopped => None,
        }
    }

    /// Whether it has been ready for a healthy while.
    pub(super) fn healthy(&self, now: Uptime) -> bool {
        matches!(self.state, State::Running { ready: Ready::Since(since), .. } if now.since(since) >= HEALTHY_AFTER)
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Running { ready: Ready::Since(_), .. })
    }

    /// From when on it will have been ready for a healthy while.
    pub(super) fn healthy_at(&self) -> Option<Uptime> {
        match self.state {
            State::Running { ready: Ready::Since(since), .. } => Some(since + HEALTHY_AFTER),
            State::Running { .. }
            | State::Aborting { .. }
            | State::Waiting
            | State::Starting
            | State::Pausing { .. }
            | State::Stopped => None,
        }
    }

    /// Whether it is critical and broken.
    pub(super) fn in_trouble(&self, now: Uptime) -> bool {
        let stuck = matches!(self.state, State::Aborting { step: Abort::Stuck, .. });
        self.service.critical && (stuck || self.degraded && !self.healthy(now))
    }

    pub(super) fn noticed(&mut self, now: Uptime, notice: Notice, actions: &mut Vec<Action>) {
        let State::Running { pid, since, ready, heard } = &mut self.state else { return };
        if notice.alive || notice.ready {
            *heard = now;
        }
        if let Some(status) = notice.status {
            self.says = status;
        }
        self.reaches = notice.reaches.or(self.reaches);
        if notice.ready && !matches!(ready, Ready::Since(_)) {
            *ready = Ready::Since(now);
            self.tried = true;
            actions.push(Action::Report(Report::Ready { service: self.service.name, after: now.since(*since) }));
        }
        if notice.broken {
            let pid = *pid;
            self.abort(now, pid, actions);
        }
    }

    /// It could not run for so long, nor say anything: what it had left of its time, it has now.
    pub(super) fn stood_still(&mut self, time: Duration) {
        let State::Running { since, ready, heard, .. } = &mut self.state else { return };
        (*since, *heard) = (*since + time, *heard + time);
        if let Ready::Awaited(until) = ready {
            *until = *until + time;
        }
    }

    /// It is wanted anew, with what it is told now. What failed before says nothing of that.
    pub(super) fn renew(&mut self, now: Uptime, actions: &mut Vec<Action>) {
        self.history = History::default();
        (self.degraded, self.doom) = (false, None);
        match self.state {
            State::Running { pid, since, ready, .. } => {
                actions.push(Action::Signal { pid, signal: Signal::Term });
                self.renewing = true;
                self.state = State::Aborting { pid, since, ready, step: Abort::Asked { until: now + GRACE } };
            }
            State::Pausing { .. } => self.state = State::Pausing { until: now },
            // It is started with what it is told then, or is on its way down.
            State::Waiting | State::Starting | State::Aborting { .. } | State::Stopped => {}
        }
    }

    /// Its process has ended, or could not be started.
    pub(super) fn ended(&mut self, now: Uptime, exit: Option<Exit>, jitter: u8) -> Action {
        if std::mem::take(&mut self.renewing) {
            self.state = State::Pausing { until: now };
            self.last = exit.or(self.last);
            let (service, pause) = (self.service.name, Duration::ZERO);
            return Action::Report(Report::Restarting { service, exit, pause, degraded: false });
        }
        // Only time in which it did its work speaks for it.
        let ran = match self.state {
            State::Running { ready: Ready::Since(since), .. } | State::Aborting { ready: Ready::Since(since), .. } => {
                now.since(since)
            }
            State::Running { .. }
            | State::Aborting { .. }
            | State::Waiting
            | State::Starting
            | State::Pausing { .. }
            | State::Stopped => Duration::ZERO,
        };
        let next = self.history.ended(now, ran, jitter);
        self.state = State::Pausing { until: next.at };
        self.tried = true;
        self.last = exit.or(self.last);
        self.restarts = self.restarts.saturating_add(1);
        self.degraded = next.degraded;
        if !next.degraded {
            self.doom = None;
        } else if self.service.critical && self.doom.is_none() {
            self.doom = Some(now + PATIENCE);
        }
        let pause = next.at.since(now);
        Action::Report(Report::Restarting { service: self.service.name, exit, pause, degraded: next.degraded })
    }

    /// When [`Self::tend`] has something to do.
    pub(super) fn deadline(&self) -> Option<Uptime> {
        let own = match self.state {
            State::Running { ready: Ready::Awaited(until), .. } => Some(until.min(self.silent_until())),
            State::Running { .. } => Some(self.silent_until()),
            State::Aborting { step: Abort::Asked { until } | Abort::Killed { until }, .. } => Some(until),
            State::Pausing { until } => Some(until),
            State::Aborting { step: Abort::Stuck, .. } | State::Waiting | State::Starting | State::Stopped => None,
        };
        [own, self.doom].into_iter().flatten().min()
    }

    /// How long it may say nothing, while it runs.
    fn silent_until(&self) -> Uptime {
        match self.state {
            State::Running { ready: Ready::Since(_), heard, .. } => heard + self.service.watchdog,
            State::Running { since, .. } => since + START_LIMIT,
            State::Waiting | State::Starting | State::Aborting { .. } | State::Pausing { .. } | State::Stopped => {
                Uptime::default()
            }
        }
    }

    /// Does what is due about a service that is silent. Starting it is not its own affair.
    pub(super) fn tend(&mut self, now: Uptime, actions: &mut Vec<Action>) {
        let service = self.service.name;
        let silent_until = self.silent_until();
        match &mut self.state {
            State::Running { pid, .. } if now >= silent_until => {
                let pid = *pid;
                self.abort(now, pid, actions);
            }
            State::Running { ready, .. } => {
                if matches!(ready, Ready::Awaited(until) if now >= *until) {
                    *ready = Ready::Overdue;
                    self.tried = true;
                    actions.push(Action::Report(Report::Slow { service }));
                }
            }
            State::Aborting { pid, step, .. } => match *step {
                Abort::Asked { until } if now >= until => {
                    actions.push(Action::Signal { pid: *pid, signal: Signal::Kill });
                    actions.push(Action::KillLeftovers(service));
                    *step = Abort::Killed { until: now + VANISH };
                }
                Abort::Killed { until } if now >= until => {
                    actions.push(Action::Report(Report::Stuck { service, pid: *pid }));
                    *step = Abort::Stuck;
                    if self.service.critical {
                        self.doom = Some(now);
                    }
                }
                Abort::Asked { .. } | Abort::Killed { .. } | Abort::Stuck => {}
            },
            State::Waiting | State::Starting | State::Pausing { .. } | State::Stopped => {}
        }
    }

    /// Whether it is too late to hope for it. Says so once.
    pub(super) fn doomed(&mut self, now: Uptime) -> bool {
        if self.doom.is_none_or(|doom| now < doom) {
            return false;
        }
        self.doom = match self.state {
            State::Running { .. } if self.healthy(now) => None,
            // It may yet come back; what it says in a healthy while decides.
            State::Running { since, .. } if now.since(since) < HEALTHY_AFTER + READY_LIMIT => {
                Some(since + HEALTHY_AFTER + READY_LIMIT)
            }
            State::Running { .. }
            | State::Waiting
            | State::Starting
            | State::Aborting { .. }
            | State::Pausing { .. }
            | State::Stopped => {
                self.doom = None;
                return true;
            }
        };
        false
    }

    fn abort(&mut self, now: Uptime, pid: i32, actions: &mut Vec<Action>) {
        let State::Running { since, ready, .. } = self.state else { return };
        actions.push(Action::Report(Report::Hung { service: self.service.name, pid }));
        actions.push(Action::Signal { pid, signal: Signal::Abort });
        self.tried = true;
        self.state = State::Aborting { pid, since, ready, step: Abort::Asked { until: now + ABORT_GRACE } };
    }

    pub(super) fn status(&self, now: Uptime) -> ServiceStatus {
        let since = match self.state {
            State::Running { since, .. } | State::Aborting { since, .. } => Some(since),
            State::Waiting | State::Starting | State::Pausing { .. } | State::Stopped => None,
        };
        ServiceStatus {
            name: self.service.name.to_owned(),
            pid: self.pid(),
            ready: self.is_ready(),
            degraded: self.degraded && !self.healthy(now),
            uptime: since.map_or(0, |since| now.since(since).as_secs()),
            restarts: self.restarts,
            last_exit: self.last.map(|exit| exit.to_string()).unwrap_or_default(),
            says: self.says.clone(),
            memory: None,
            anonymous: None,
        }
    }
}
