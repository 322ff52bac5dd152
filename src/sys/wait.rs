//! Waiting for descriptors with a limit.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Waits until one of `descriptors` can be read or has ended, or until `limit` is over (never, without one). May return early.
///
/// # Errors
///
/// The kernel's.
pub fn readable(descriptors: &[BorrowedFd<'_>], limit: Option<Duration>) -> io::Result<()> {
    let timeout = match limit {
        // Rounded up, so that the limit is over afterwards; capped, since the kernel counts in 31 bits.
        Some(limit) => {
            let millis = limit.as_micros().div_ceil(1000).min(3_600_000);
            PollTimeout::try_from(u32::try_from(millis).expect("it is capped")).expect("an hour fits")
        }
        None => PollTimeout::NONE,
    };
    let mut polled: Vec<_> = descriptors.iter().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
