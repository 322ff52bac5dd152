//! The trial of a new system: when init commits it, and when it gives it up.

use std::time::Duration;

use crate::time::Uptime;

/// How long a trial takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How long a new system may take until it is healthy.
    pub window: Duration,
    /// How long all must be healthy, without a break, for the system to be committed.
    pub quiet: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { window: Duration::from_secs(600), quiet: Duration::from_secs(60) }
    }
}

/// What init sees of the system on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// The network service is ready and the box has an address.
    pub net: bool,
    /// The page answers.
    pub web: bool,
    /// The provider is ready.
    pub provider: bool,
    /// Omni answers; nothing when the system before did not reach it either, so that nobody waits for it.
    pub omni: Option<bool>,
}

/// What is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Missing {
    /// No network.
    #[error("the network did not come up")]
    Net,
    /// No page.
    #[error("the page does not answer")]
    Web,
    /// No provider.
    #[error("the provider is not ready")]
    Provider,
    /// No Omni.
    #[error("Omni, which the system before reached, is not reached")]
    Omni,
}

impl Health {
    /// The first thing that is missing.
    pub fn missing(self) -> Option<Missing> {
        [
            (self.net, Missing::Net),
            (self.web, Missing::Web),
            (self.provider, Missing::Provider),
            (self.omni != Some(false), Missing::Omni),
        ]
        .into_iter()
        .find_map(|(there, missing)| (!there).then_some(missing))
    }
}

/// What becomes of the system on trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Ask again at this moment, or when something changes.
    Wait(Uptime),
    /// Commit it.
    Commit,
    /// Record the failure and reboot into the committed slot.
    GiveUp(Missing),
}

/// Judges the trial: healthy for `quiet` commits, `window` after `began` without that gives up.
///
/// `since` is when `health` last became whole; it means nothing while something is missing. A system that became whole
/// just before the end of the window gets its quiet time, so that the last verdict falls at `window + quiet`.
pub fn judge(now: Uptime, began: Uptime, health: Health, since: Uptime, limits: Limits) -> Verdict {
    let end = began + limits.window;
    match health.missing() {
        None if now.since(since) >= limits.quiet => Verdict::Commit,
        None => Verdict::Wait(since + limits.quiet),
        Some(missing) if now >= end => Verdict::GiveUp(missing),
        Some(_) => Verdict::Wait(end),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(600);
    const QUIET: Duration = Duration::from_secs(60);

    fn judged(now: Uptime, began: Uptime, health: Health, since: Uptime) -> Verdict {
        judge(now, began, health, since, Limits::default())
    }

    const WHOLE: Health = Health { net: true, web: true, provider: true, omni: Some(true) };

    #[test]
    fn a_whole_system_is_committed_after_a_minute() {
        let at = Uptime::from_secs;
        assert_eq!(judged(at(30), at(5), WHOLE, at(20)), Verdict::Wait(at(80)));
        assert_eq!(judged(at(80), at(5), WHOLE, at(20)), Verdict::Commit);
    }

    #[test]
    fn what_is_missing_at_the_end_is_named() {
        let at = Uptime::from_secs;
        let health = Health { omni: Some(false), ..WHOLE };
        assert_eq!(judged(at(604), at(5), health, at(0)), Verdict::Wait(at(605)));
        assert_eq!(judged(at(605), at(5), health, at(0)), Verdict::GiveUp(Missing::Omni));
        assert_eq!(judged(at(605), at(5), Health { web: false, ..health }, at(0)), Verdict::GiveUp(Missing::Web));
        let unknown = Health { omni: None, ..WHOLE };
        assert_eq!(judged(at(605), at(5), unknown, at(500)), Verdict::Commit);
    }

    proptest! {
        #[test]
        fn every_trial_ends(changes in proptest::collection::vec((0..200u64, any::<bool>(), any::<bool>()), 0..40)) {
            let began = Uptime::from_secs(10);
            let (mut now, mut since, mut whole) = (began, began, false);
            let mut changes = changes.into_iter();
            loop {
                let health = Health { web: whole, ..WHOLE };
                match judged(now, began, health, since) {
                    Verdict::Wait(then) => {
                        prop_assert!(then > now);
                        let (step, net, _) = changes.next().unwrap_or((u64::MAX, whole, false));
                        let next = then.min(now + Duration::from_secs(step.min(100_000)));
                        if net != whole && next < then {
                            whole = net;
                            since = next;
                        }
                        now = next;
                    }
                    Verdict::Commit => {
                        prop_assert!(whole && now.since(since) >= QUIET);
                        break;
                    }
                    Verdict::GiveUp(_) => {
                        prop_assert!(now >= began + WINDOW);
                        break;
                    }
                }
                prop_assert!(now <= began + WINDOW + QUIET);
            }
        }
    }
}
