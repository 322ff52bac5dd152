//! The seed that randomness of the last run leaves to the next one: SeedRNG's algorithm.
//!
//! A seed is used once: it is unlinked, and that is on disk, before the kernel is told that it is worth anything. Else a
//! power cut would give two runs the same randomness. The image holds none, or all boxes would.

use sha2::{Digest, Sha256};

use crate::sys::random::SEED;
use crate::time::{UnixTime, Uptime};

/// Where seeds are kept, by root for root.
pub const DIRECTORY: &str = "/data/pilotlight/seed";
/// A seed that was drawn when the kernel's generator was ready.
pub const CREDITABLE: &str = "seed.credit";
/// Any other.
pub const UNCREDITABLE: &str = "seed.no-credit";
/// One that is being written.
pub const NEW: &str = "seed.new";
/// Most octets of a file that are looked at.
pub const MAX_FILE: usize = 512;

/// Gathers what is known into one value; each part with its length, so that no two lists give the same octets.
#[derive(Clone)]
pub struct Mixture(Sha256);

impl Mixture {
    /// With the two clocks in it.
    pub fn new(uptime: Uptime, time: UnixTime) -> Self {
        let mixture = Self(Sha256::new_with_prefix(b"pilotlight seed 1\0"));
        mixture.with(&uptime.as_duration().as_nanos().to_le_bytes()).with(&time.as_millis().to_le_bytes())
    }

    /// With one more part.
    #[must_use]
    pub fn with(mut self, part: &[u8]) -> Self {
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    /// What goes to the kernel, or to the disk.
    pub fn finish(self) -> [u8; SEED] {
        self.0.finalize().into()
    }
}

/// Whether a file of that name and contents is worth entropy.
pub fn creditable(name: &str, contents: &[u8]) -> bool {
    name == CREDITABLE && contents.len() >= SEED
}

/// The name of a new seed: whether it was drawn from a `ready` generator.
pub const fn name(ready: bool) -> &'static str {
    if ready { CREDITABLE } else { UNCREDITABLE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture() -> Mixture {
        Mixture::new(Uptime::from_secs(1), UnixTime::from_secs(2))
    }

    #[test]
    fn every_part_and_its_bounds_count() {
        let all = [
            mixture().finish(),
            mixture().with(b"").finish(),
            mixture().with(b"ab").finish(),
            mixture().with(b"a").with(b"b").finish(),
            mixture().with(b"b").with(b"a").finish(),
            Mixture::new(Uptime::from_secs(2), UnixTime::from_secs(2)).finish(),
            Mixture::new(Uptime::from_secs(1), UnixTime::from_secs(3)).finish(),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[..index].contains(one), "{index}");
        }
        assert_eq!(mixture().with(b"ab").finish(), mixture().with(b"ab").finish());
    }

    #[test]
    fn only_whole_seeds_of_a_ready_generator_count() {
        assert!(creditable(name(true), &[0; SEED]));
        assert!(!creditable(name(true), &[0; SEED - 1]) && !creditable(name(false), &[0; SEED]));
    }
}
