//! The hardware watchdog: a timer that resets the machine unless it is fed.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::libc::c_int;

/// `WDIOF_CARDRESET` of `linux/watchdog.h`: the last reset was the watchdog's.
const CARD_RESET: c_int = 0x20;

mod calls {
    use nix::libc::c_int;

    nix::ioctl_read!(boot_status, b'W', 2, c_int);
    nix::ioctl_readwrite!(set_timeout, b'W', 6, c_int);
    nix::ioctl_read!(timeout, b'W', 7, c_int);
}

/// An open watchdog: it runs from here on. Dropping it does not stop it, as the letter that would is never written.
#[derive(Debug)]
pub struct Watchdog {
    device: File,
    timeout: Duration,
}

impl Watchdog {
    /// Opens `device` and sets its time to `wanted`, or to whatever it takes.
    ///
    /// # Errors
    ///
    /// That it can't be opened. A device that can't be set keeps its time; one that does not tell it is taken to have 15 s.
    pub fn open(device: &Path, wanted: Duration) -> io::Result<Self> {
        let device = OpenOptions::new().write(true).open(device)?;
        let mut seconds = c_int::try_from(wanted.as_secs()).unwrap_or(c_int::MAX);
        // SAFETY: the call reads and writes one integer, which lives during it.
        if unsafe { calls::set_timeout(device.as_raw_fd(), &raw mut seconds) }.is_err() {
            seconds = 0;
        }
        let mut told = 0;
        // SAFETY: the call writes one integer, which lives during it.
        if unsafe { calls::timeout(device.as_raw_fd(), &raw mut told) }.is_ok() {
            seconds = told;
        }
        let seconds = u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).unwrap_or(15);
        Ok(Self { device, timeout: Duration::from_secs(seconds) })
    }

    /// Its time.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Whether it says that it ended the run before.
    pub fn fired(&self) -> bool {
        let mut status = 0;
        // SAFETY: the call writes one integer, which lives during it.
        let told = unsafe { calls::boot_status(self.device.as_raw_fd(), &raw mut status) };
        told.is_ok() && status & CARD_RESET != 0
    }

    /// Starts its time anew.
    ///
    /// # Errors
    ///
    /// The device's.
    pub fn feed(&self) -> io::Result<()> {
        (&self.device).write_all(&[0])
    }
}
