//! When a service that ended is started again.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Uptime;

/// Pause after the first failure; each further one doubles it.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// No pause is longer, so that a repaired cause is felt soon.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Who ran this long is healthy: the count begins anew.
pub const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// So many failures within [`WINDOW`] make a service degraded.
pub const DEGRADED_AFTER: usize = 8;
/// See [`DEGRADED_AFTER`].
pub const WINDOW: Duration = Duration::from_secs(5 * 60);
/// A degraded service is tried this often: the box heals itself, without burning its processor.
pub const DEGRADED_PAUSE: Duration = Duration::from_secs(60);

/// The failures of one service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Failures since it was last healthy.
    failures: u32,
    /// The last [`DEGRADED_AFTER`] of them, oldest first.
    recent: VecDeque<Uptime>,
}

/// When it is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restart {
    /// Not before.
    pub at: Uptime,
    /// Whether it fails so often that people should know.
    pub degraded: bool,
}

impl History {
    /// Takes the end of a run that lasted `ran` (zero when it could not be started) and says when the next one begins.
    ///
    /// `jitter` spreads the pause evenly over 75 to 125 percent, so that services that fell together do not rise together.
    /// An exit with code 0 counts: a service that ends is a fault.
    pub fn ended(&mut self, now: Uptime, ran: Duration, jitter: u8) -> Restart {
        if ran >= HEALTHY_AFTER {
            *self = Self::default();
        }
        self.failures = self.failures.saturating_add(1);
        if self.recent.len() == DEGRADED_AFTER {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
        let full = self.recent.len() == DEGRADED_AFTER;
        let degraded = full && self.recent.front().is_some_and(|oldest| now.since(*oldest) <= WINDOW)
            // Tried every minute, eight failures take longer than the window: it stays degraded until it is healthy.
            || self.failures > u32::try_from(DEGRADED_AFTER).expect("a small number");
        let pause = if degraded {
            DEGRADED_PAUSE
        } else {
            let doubled = FIRST_PAUSE.saturating_mul(1_u32.checked_shl(self.failures - 1).unwrap_or(u32::MAX));
            spread(doubled.min(LONGEST_PAUSE), jitter).min(LONGEST_PAUSE)
        };
        Restart { at: now + pause, degraded }
    }
}

fn spread(pause: Duration, jitter: u8) -> Duration {
    pause * 3 / 4 + pause * u32::from(jitter) / 510
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIDDLE: u8 = 128;

    #[test]
    fn pauses_double_until_a_service_is_degraded() {
        let mut history = History::default();
        let mut now = Uptime::from_secs(10);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let restart = history.ended(now, Duration::ZERO, MIDDLE);
            pauses.push((restart.at.since(now).as_millis() / 100, restart.degraded));
            now = restart.at;
        }
        assert_eq!(
            pauses,
            [
                (1, false),
                (2, false),
                (4, false),
                (8, false),
                (16, false),
                (32, false),
                (64, false),
                (600, true),
                (600, true),
                (600, true)
            ]
        );
    }

    #[test]
    fn a_healthy_minute_forgives_everything() {
        let mut history = History::default();
        let now = Uptime::from_secs(1000);
        for _ in 0..9 {
            history.ended(now, Duration::ZERO, MIDDLE);
        }
        let restart = history.ended(now, HEALTHY_AFTER, 0);
        assert_eq!(restart, Restart { at: now + Duration::from_millis(75), degraded: false });
    }

    #[test]
    fn no_jitter_makes_a_pause_longer_than_the_longest() {
        for jitter in 0..=255 {
            let mut history = History::default();
            let mut now = Uptime::from_secs(1);
            for failure in 0..7 {
                let restart = history.ended(now, Duration::from_secs(50), jitter);
                let pause = restart.at.since(now);
                let middle = (FIRST_PAUSE * (1 << failure)).min(LONGEST_PAUSE);
                assert!(pause >= middle * 3 / 4 && pause <= (middle * 5 / 4).min(LONGEST_PAUSE));
                now = restart.at + Duration::from_secs(50);
            }
        }
    }
}
