//! Waiting for signals with a limit.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Signals that are taken from a descriptor instead of interrupting.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Blocks `signals` in this thread; from now on [`Self::wait`] yields them.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn take(signals: &[Signal]) -> io::Result<Self> {
        let set: SigSet = signals.iter().copied().collect();
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?))
    }

    /// The next signal, or `None` when `limit` is over (never, without one). May return `None` early.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<Option<Signal>> {
        if let Some(signal) = self.next()? {
            return Ok(Some(signal));
        }
        let timeout = match limit {
            // Rounded up, so that the limit is over afterwards; capped, since the kernel counts in 31 bits.
            Some(limit) => {
                let millis = limit.as_micros().div_ceil(1000).min(3_600_000);
                PollTimeout::try_from(u32::try_from(millis).expect("it is capped")).expect("an hour fits")
            }
            None => PollTimeout::NONE,
        };
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            Ok(_) | Err(Errno::EINTR) => self.next(),
            Err(error) => Err(error.into()),
        }
    }

    /// The next signal that has come, if any.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn next(&self) -> io::Result<Option<Signal>> {
        let Some(info) = self.0.read_signal()? else { return Ok(None) };
        Ok(i32::try_from(info.ssi_signo).ok().and_then(|number| Signal::try_from(number).ok()))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
