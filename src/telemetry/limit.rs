//! [`Limit`]: how many lines a stranger may cause.

use std::sync::Mutex;
use std::time::Duration;

use crate::time::Uptime;

/// Lets `burst` lines through at once and one more per `interval`; counts those it holds back.
///
/// For lines that someone outside can cause at will. One limit per message is enough: a stranger changes addresses.
#[derive(Debug)]
pub struct Limit {
    burst: u32,
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    left: u32,
    /// From when on the next line is earned.
    since: Uptime,
    held_back: u64,
}

impl Limit {
    /// A limit of `burst` lines at once (at least one), refilled by one per `interval`.
    pub const fn new(burst: u32, interval: Duration) -> Self {
        let burst = if burst == 0 { 1 } else { burst };
        let state = State { left: burst, since: Uptime::from_millis(0), held_back: 0 };
        Self { burst, interval, state: Mutex::new(state) }
    }

    /// Whether a line may be written at `now`: then how many were held back since the last one.
    pub fn allow(&self, now: Uptime) -> Option<u64> {
        let mut state = self.state.lock().expect("no code panics while it holds this lock");
        let interval = self.interval.max(Duration::from_nanos(1));
        let earned = now.since(state.since).as_nanos() / interval.as_nanos();
        if earned >= u128::from(self.burst - state.left) {
            state.left = self.burst;
            state.since = now;
        } else {
            let earned = u32::try_from(earned).expect("it is less than the burst");
            state.left += earned;
            state.since = state.since + interval * earned;
        }
        if state.left == 0 {
            state.held_back += 1;
            return None;
        }
        state.left -= 1;
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_then_one_per_interval() {
        let limit = Limit::new(2, Duration::from_secs(10));
        let at = |secs| limit.allow(Uptime::from_secs(secs));
        assert_eq!([at(100), at(100), at(100), at(109)], [Some(0), Some(0), None, None]);
        assert_eq!([at(110), at(111), at(119), at(120)], [Some(2), None, None, Some(2)]);
        assert_eq!([at(1000), at(1000), at(1000)], [Some(0), Some(0), None]);
    }

    #[test]
    fn a_clock_that_stands_still_lets_the_burst_through_only() {
        let limit = Limit::new(3, Duration::from_secs(1));
        let passed = (0..100).filter(|_| limit.allow(Uptime::from_secs(5)).is_some()).count();
        assert_eq!(passed, 3);
    }
}
