//! Keeps the hardware watchdog fed.
//!
//! An edge: it owns the device. Whether it is fed is decided by [`Supervisor::feeds`](crate::supervise::Supervisor::feeds).

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::sys::watchdog::Watchdog;
use crate::time::Uptime;

const DEVICE: &str = "/dev/watchdog0";
/// How often it is looked for while it is not there: its module may come later.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// The watchdog, or the wish for one.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    wanted: Option<Duration>,
    device: Option<Watchdog>,
    due: Uptime,
}

impl Keeper {
    /// Begins to look for a watchdog whose time shall be `wanted`, and opens it when it is there.
    pub(super) fn start(&mut self, now: Uptime, wanted: Option<Duration>) -> io::Result<()> {
        self.wanted = wanted;
        self.turn(now, true)
    }

    pub(super) fn deadline(&self) -> Option<Uptime> {
        self.wanted.map(|_| self.due)
    }

    /// Feeds it when that is due and `feeds`; opens it when it has come.
    ///
    /// # Errors
    ///
    /// That it can't be opened or fed; `NotFound` is no news.
    pub(super) fn turn(&mut self, now: Uptime, feeds: bool) -> io::Result<()> {
        let Some(wanted) = self.wanted.filter(|_| now >= self.due) else { return Ok(()) };
        match &self.device {
            Some(device) => {
                self.due = now + device.timeout() / 3;
                if feeds { device.feed() } else { Ok(()) }
            }
            None => {
                self.due = now + LOOK_AGAIN;
                let device = Watchdog::open(Path::new(DEVICE), wanted)?;
                device.feed()?;
                self.due = now + device.timeout() / 3;
                self.device = Some(device);
                Ok(())
            }
        }
    }

    /// One more time before the end, so that the last steps have all of it.
    pub(super) fn feed_last(&self) {
        if let Some(device) = &self.device {
            // A device that does not take it resets the machine: where we are going anyway.
            let _ = device.feed();
        }
    }

    /// Its time; `None` while there is none.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.device.as_ref().map(Watchdog::timeout)
    }

    /// Whether it ended the run before.
    pub(super) fn fired(&self) -> bool {
        self.device.as_ref().is_some_and(Watchdog::fired)
    }
}
