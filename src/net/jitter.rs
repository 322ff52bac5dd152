//! [`Jitter`]: small random numbers for rules that must stay functions of their arguments.

use std::time::Duration;

/// A generator (SplitMix64) that an edge seeds from the kernel. For delays and transaction IDs, not for secrets.
#[derive(Clone, Debug)]
pub struct Jitter(u64);

impl Jitter {
    /// A generator whose numbers follow from `seed` alone.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn next_u32(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) as u32
    }

    /// A number below `bound`; 0 when that is 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        ((u64::from(self.next_u32()) * u64::from(bound)) >> 32) as u32
    }

    /// A duration from `least` up to `most`, to the millisecond.
    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let span = u32::try_from(most.saturating_sub(least).as_millis()).unwrap_or(u32::MAX);
        least + Duration::from_millis(u64::from(self.below(span.saturating_add(1))))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_stay_in_their_bounds(seed in any::<u64>(), bound in 1_u32.., least in 0_u64..5000, span in 0_u64..5000) {
            let mut jitter = Jitter::new(seed);
            prop_assert!(jitter.below(bound) < bound);
            let (least, most) = (Duration::from_millis(least), Duration::from_millis(least + span));
            prop_assert!((least..=most).contains(&jitter.between(least, most)));
        }
    }
}
