//! What the loop listens to.

use std::os::fd::BorrowedFd;

use crate::supervise::Event;
use crate::time::Uptime;

/// Something that the loop listens to. To add one: implement this, and put it into `Init::sources`.
///
/// Nothing here may wait: a turn takes a bounded share of what is there and comes back. What is left makes the next turn
/// due at once.
pub(super) trait Source {
    /// The descriptors that make it due when they can be read, or end.
    fn descriptors(&self, now: Uptime) -> Vec<BorrowedFd<'_>>;

    /// When it is due without that.
    fn deadline(&self, _now: Uptime) -> Option<Uptime> {
        None
    }

    /// Its turn: whenever the loop was woken, by whatever. Returns what the supervisor should know.
    fn turn(&mut self, now: Uptime) -> Vec<Event>;
}
