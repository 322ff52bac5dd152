//! Hears of what is plugged in and pulled, and has it looked at by a process of its own.
//!
//! An edge: it owns the kernel's socket and that process. When a look is due says [`crate::supervise::plugs`].

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::source::Source;
use super::sticks;
use crate::supervise::Event;
use crate::supervise::plugs::Looks;
use crate::sys::process;
use crate::sys::uevent::Uevents;
use crate::time::Uptime;

/// How long after the start what is plugged in already is looked at: the page comes first.
const FIRST: Duration = Duration::from_secs(15);

/// What the kernel says, and the process that looks.
pub(super) struct Plugs {
    uevents: Uevents,
    looks: Looks,
    /// Ends with the process.
    process: Option<UnixStream>,
}

impl Plugs {
    /// Listens from now on; what is plugged in already is looked at, too.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn listen(now: Uptime) -> io::Result<Self> {
        let mut looks = Looks::default();
        looks.heard(now + FIRST);
        Ok(Self { uevents: Uevents::listen()?, looks, process: None })
    }

    /// Starts the process. Its output says nothing; that it ends does.
    fn look() -> io::Result<UnixStream> {
        let (own, theirs) = UnixStream::pair()?;
        own.set_nonblocking(true)?;
        process::spawn_self(&[sticks::ARGUMENT], Some(OwnedFd::from(theirs)))?;
        Ok(own)
    }
}

impl Source for Plugs {
    fn descriptors(&self, _now: Uptime) -> Vec<BorrowedFd<'_>> {
        [self.uevents.as_fd()].into_iter().chain(self.process.as_ref().map(UnixStream::as_fd)).collect()
    }

    fn deadline(&self, _now: Uptime) -> Option<Uptime> {
        self.looks.due()
    }

    fn turn(&mut self, now: Uptime) -> Vec<Event> {
        // A fault of the socket is one that a look may find the cause of.
        if self.uevents.drain().unwrap_or(true) {
            self.looks.heard(now);
        }
        let ended = self.process.as_mut().is_some_and(|process| match process.read(&mut [0; 64]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        });
        if ended {
            self.process = None;
            self.looks.ended();
        }
        if self.looks.begin(now) {
            self.process = Self::look().ok();
            if self.process.is_none() {
                // Nothing more was said since; the next word has it looked at again.
                self.looks.ended();
            }
        }
        Vec::new()
    }
}
