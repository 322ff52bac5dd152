//! [`Discipline`]: what is done to the clock when it is known to be off.

use std::time::Duration;

use super::sntp::Sample;

/// From here on a clock is set rather than steered (RFC 5905 figure 27, STEPT).
const STEP: Duration = Duration::from_millis(128);
/// So often in a row must a clock that was right be found far off before it is set again: one wrong answer is not enough.
const ASTRAY: u8 = 3;
/// Pauses: after a failure, doubled up to the longest, and once the clock is right.
const FIRST_RETRY: Duration = Duration::from_secs(4);
const LONGEST_RETRY: Duration = Duration::from_secs(256);
const STEADY: Duration = Duration::from_secs(512);
/// While it was only just set, or is being found astray.
const BRISK: Duration = Duration::from_secs(64);

/// What is to be done to the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Set it forward by so many nanoseconds, or back.
    Step(i64),
    /// Let the kernel steer it by so many microseconds; it may be wrong by the error.
    Slew(i64, Duration),
    /// Leave it: it was right and this says that it is far off, which is believed only when it is said again.
    Wait,
}

/// The clock's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Discipline {
    /// Whether it was set or found right by servers that agree.
    known: bool,
    astray: u8,
    failures: u32,
}

impl Discipline {
    /// Whether the time is known.
    pub const fn is_known(&self) -> bool {
        self.known
    }

    /// What to do about a sample that was agreed upon.
    pub fn on_sample(&mut self, sample: Sample) -> Order {
        self.failures = 0;
        let off = Duration::from_nanos(sample.offset.unsigned_abs());
        if off <= STEP {
            (self.known, self.astray) = (true, 0);
            return Order::Slew(sample.offset / 1000, sample.error);
        }
        self.astray = self.astray.saturating_add(1);
        if self.known && self.astray < ASTRAY {
            return Order::Wait;
        }
        (self.known, self.astray) = (true, 0);
        Order::Step(sample.offset)
    }

    /// No majority of servers answered.
    pub fn on_failure(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    /// How often servers were asked in vain since one answered.
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// How long until servers are asked again.
    pub fn pause(&self) -> Duration {
        match self.failures {
            0 if self.astray > 0 => BRISK,
            0 => STEADY,
            failures => FIRST_RETRY.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_RETRY),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn off(millis: i64) -> Sample {
        Sample { offset: millis * 1_000_000, error: Duration::from_millis(1) }
    }

    #[test]
    fn the_clock_is_set_once_and_steered_from_then_on() {
        let mut clock = Discipline::default();
        assert_eq!(clock.on_sample(off(500_000)), Order::Step(500_000_000_000));
        assert_eq!(clock.on_sample(off(-100)), Order::Slew(-100_000, Duration::from_millis(1)));
        assert_eq!((clock.is_known(), clock.pause()), (true, STEADY));
    }

    #[test]
    fn a_known_clock_is_set_again_only_when_it_is_found_astray_three_times() {
        let mut clock = Discipline::default();
        clock.on_sample(off(1));
        assert_eq!((clock.on_sample(off(9_000)), clock.pause()), (Order::Wait, BRISK));
        clock.on_sample(off(1));
        let orders = [9_000; 3].map(|millis| clock.on_sample(off(millis)));
        assert_eq!(orders, [Order::Wait, Order::Wait, Order::Step(9_000_000_000)]);
    }

    #[test]
    fn servers_that_do_not_answer_are_asked_less_and_less_often() {
        let mut clock = Discipline::default();
        let pauses: Vec<_> = (0..9)
            .map(|_| {
                clock.on_failure();
                clock.pause().as_secs()
            })
            .collect();
        assert_eq!(pauses, [4, 8, 16, 32, 64, 128, 256, 256, 256]);
    }
}
