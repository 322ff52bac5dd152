//! How a simulated BMC misbehaves on request.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Knobs of a running BMC. Each count is used up one reply at a time; 0 switches the fault off.
#[derive(Debug, Default)]
pub struct Faults {
    lost: AtomicU32,
    late: AtomicU32,
    late_millis: AtomicU64,
    doubled: AtomicU32,
    damaged: AtomicU32,
    busy: AtomicU32,
    without_suite_17: AtomicBool,
    restart: AtomicBool,
}

/// What becomes of one reply.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fate {
    lost: bool,
    damaged: bool,
    pub(super) copies: u32,
    pub(super) delay: Option<Duration>,
}

impl Faults {
    /// The next `replies` replies are lost on their way; what was asked for is done all the same.
    pub fn lose(&self, replies: u32) {
        self.lost.store(replies, Relaxed);
    }

    /// The next `replies` replies are sent `delay` later; those behind them may overtake.
    pub fn delay(&self, replies: u32, delay: Duration) {
        self.late_millis.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Relaxed);
        self.late.store(replies, Relaxed);
    }

    /// The next `replies` replies arrive twice.
    pub fn double(&self, replies: u32) {
        self.doubled.store(replies, Relaxed);
    }

    /// The next `replies` replies arrive with their last bit flipped: in a session, that of the integrity code.
    pub fn damage(&self, replies: u32) {
        self.damaged.store(replies, Relaxed);
    }

    /// The next `commands` chassis commands end with `node busy` (C0h) and do nothing.
    pub fn busy(&self, commands: u32) {
        self.busy.store(commands, Relaxed);
    }

    /// Whether cipher suite 17 is refused, as old firmware does.
    pub fn refuse_suite_17(&self, refuse: bool) {
        self.without_suite_17.store(refuse, Relaxed);
    }

    /// Restarts the BMC's firmware: it knows no session any more. The machine is not affected.
    pub fn restart(&self) {
        self.restart.store(true, Relaxed);
    }

    pub(super) fn refuses_suite_17(&self) -> bool {
        self.without_suite_17.load(Relaxed)
    }

    pub(super) fn take_restart(&self) -> bool {
        self.restart.swap(false, Relaxed)
    }

    pub(super) fn take_busy(&self) -> bool {
        take(&self.busy)
    }

    pub(super) fn next_fate(&self) -> Fate {
        Fate {
            lost: take(&self.lost),
            damaged: take(&self.damaged),
            copies: if take(&self.doubled) { 2 } else { 1 },
            delay: take(&self.late).then(|| Duration::from_millis(self.late_millis.load(Relaxed))),
        }
    }
}

impl Fate {
    /// What is left of `reply`.
    pub(super) fn apply(self, mut reply: Vec<u8>) -> Option<Vec<u8>> {
        if self.lost {
            return None;
        }
        if let Some(last) = reply.last_mut().filter(|_| self.damaged) {
            *last ^= 1;
        }
        Some(reply)
    }
}

/// Takes one off `count`; whether there was one.
fn take(count: &AtomicU32) -> bool {
    count.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
}
