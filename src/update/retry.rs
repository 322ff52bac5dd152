//! How often and when a source that fails is asked again.

use std::time::Duration;

/// Attempts in a row that bring nothing; after that the source counts as gone.
pub const ATTEMPTS: u32 = 9;
/// What an attempt must bring to count: a server that sends an octet a minute is as good as gone.
pub const PROGRESS: u64 = 64 << 10;
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);

/// Counts attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    failed: u32,
    brought: u64,
}

impl Attempts {
    /// Octets arrived.
    pub fn brought(&mut self, octets: u64) {
        self.brought = self.brought.saturating_add(octets);
        if self.brought >= PROGRESS {
            self.failed = 0;
        }
    }

    /// An attempt failed: how long to wait before the next, and its number; nothing when it was the last.
    ///
    /// `jitter` spreads the pause by up to a quarter, so that boxes that lost a server together do not return together.
    pub fn failed(&mut self, jitter: u8) -> Option<(Duration, u32)> {
        self.brought = 0;
        self.failed += 1;
        if self.failed >= ATTEMPTS {
            return None;
        }
        let pause = Duration::from_secs(1 << (self.failed - 1).min(6)).min(LONGEST);
        Some((pause + pause * u32::from(jitter) / 1024, self.failed + 1))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pauses_grow_and_end() {
        let mut attempts = Attempts::default();
        let pauses: Vec<_> = std::iter::from_fn(|| attempts.failed(0)).map(|(pause, _)| pause.as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
    }

    #[test]
    fn what_arrives_gives_new_attempts_unless_it_drips() {
        let mut attempts = Attempts::default();
        for _ in 0..100 {
            attempts.brought(PROGRESS);
            assert_eq!(attempts.failed(0), Some((Duration::from_secs(1), 2)));
        }
        let dripped = (0..).take_while(|_| {
            attempts.brought(1);
            attempts.failed(0).is_some()
        });
        assert_eq!(dripped.count(), 7);
    }

    proptest! {
        #[test]
        fn a_pause_is_bounded(jitter: u8, brought in proptest::collection::vec(any::<u64>(), 0..30)) {
            let mut attempts = Attempts::default();
            for octets in brought {
                attempts.brought(octets);
                let Some((pause, attempt)) = attempts.failed(jitter) else { break };
                prop_assert!(pause <= LONGEST * 5 / 4 && attempt <= ATTEMPTS);
            }
        }
    }
}
