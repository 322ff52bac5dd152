//! The kernel's word that a device came or went.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

/// A socket on which the kernel tells of devices. What it says is not read: sysfs is looked at instead.
#[derive(Debug)]
pub struct Uevents(OwnedFd);

impl Uevents {
    /// Listens from now on.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn listen() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let protocol = SockProtocol::NetlinkKObjectUEvent;
        let socket = socket(AddressFamily::Netlink, SockType::Datagram, flags, protocol)?;
        // Group 1 is the kernel's own.
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        Ok(Self(socket))
    }

    /// Waits no longer than `limit` until something changed; says whether it did. All that was said until then is taken
    /// away.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let millis = u16::try_from(limit.as_millis()).unwrap_or(u16::MAX);
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], PollTimeout::from(millis)) {
            Ok(0) | Err(Errno::EINTR) => Ok(false),
            Ok(_) => self.drain().map(|()| true),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes away all that was said.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn drain(&self) -> io::Result<()> {
        let mut ignored = [0; 64];
        loop {
            match recv(self.0.as_raw_fd(), &mut ignored, MsgFlags::empty()) {
                // An overrun means that something was said.
                Ok(_) | Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
