//! How long an IPMI client waits, and how often it asks.

use std::time::Duration;

/// The clocks of one client. [`Timing::default`] suits a management network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long the first try waits for its answer; each further one waits half as long again.
    pub first_timeout: Duration,
    /// No try waits longer.
    pub longest_timeout: Duration,
    /// How often a question is sent before it counts as unanswered.
    pub tries: u32,
    /// How often a command is sent in a session that was used before: it may have died, and a new one is cheap.
    pub tries_when_reused: u32,
    /// How long to wait before a command that a busy BMC turned away is sent again; doubles each time.
    pub busy_pause: Duration,
    /// How often a command is sent to a busy BMC.
    pub busy_tries: u32,
    /// A session unused for longer is not trusted: BMCs drop theirs after 60 ± 3 seconds (IPMI 2.0 6.12.15).
    pub session_idle: Duration,
    /// Least time between two commands to one BMC: old ones wedge when they are rushed.
    pub spacing: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first_timeout: Duration::from_secs(1),
            longest_timeout: Duration::from_secs(5),
            tries: 5,
            tries_when_reused: 3,
            busy_pause: Duration::from_millis(500),
            busy_tries: 5,
            session_idle: Duration::from_secs(50),
            spacing: Duration::from_millis(200),
        }
    }
}

impl Timing {
    /// How long try number `attempt`, from 0, waits. `jitter` is any octet: 0 takes an eighth off, 255 adds almost one.
    pub fn timeout(&self, attempt: u32, jitter: u8) -> Duration {
        let mut timeout = self.first_timeout;
        for _ in 0..attempt.min(16) {
            timeout = timeout.saturating_mul(3) / 2;
        }
        spread(timeout.min(self.longest_timeout), jitter)
    }

    /// How long to pause after the BMC was busy for the `attempt`th time, from 0.
    pub fn pause(&self, attempt: u32, jitter: u8) -> Duration {
        spread(self.busy_pause.saturating_mul(1 << attempt.min(6)), jitter)
    }
}

/// `duration` times 7/8 to 9/8.
fn spread(duration: Duration, jitter: u8) -> Duration {
    duration.saturating_mul(7 * 128 + u32::from(jitter)) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_try_waits_longer_up_to_a_cap() {
        let timing = Timing::default();
        let millis: Vec<_> = (0..6).map(|attempt| timing.timeout(attempt, 128).as_millis()).collect();
        assert_eq!(millis, [1000, 1500, 2250, 3375, 5000, 5000]);
        assert_eq!(timing.timeout(0, 0), Duration::from_millis(875));
        assert!(timing.timeout(u32::MAX, 255) < Duration::from_millis(5625));
    }

    #[test]
    fn a_busy_bmc_is_given_twice_as_long_each_time() {
        let timing = Timing::default();
        let millis: Vec<_> = (0..3).map(|attempt| timing.pause(attempt, 128).as_millis()).collect();
        assert_eq!(millis, [500, 1000, 2000]);
    }
}
