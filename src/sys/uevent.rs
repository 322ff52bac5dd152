//! The kernel's word that a device came or went.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};

/// Octets of a message, as the kernel limits them (`UEVENT_BUFFER_SIZE` of linux/kobject.h, and the path before).
const LONGEST: usize = 4096;

/// A socket on which the kernel tells of devices. Of what it says, no more than the kind is read: sysfs is looked at instead.
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
            Ok(_) => self.drain().map(|_| true),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes away all that was said. Says whether it may have been about a disk.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn drain(&self) -> io::Result<bool> {
        let mut octets = [0; LONGEST];
        let mut of_disks = false;
        loop {
            match recv(self.0.as_raw_fd(), &mut octets, MsgFlags::empty()) {
                Ok(length) => of_disks |= is_of_disk(octets.get(..length).unwrap_or_default()),
                Err(Errno::EINTR) => {}
                // What was lost may have been anything.
                Err(Errno::ENOBUFS) => of_disks = true,
                Err(Errno::EAGAIN) => return Ok(of_disks),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Whether a message is about a block device, or about one on a bus that has no driver yet: `NAME=value` texts, each with a
/// zero behind it (lib/kobject_uevent.c).
fn is_of_disk(message: &[u8]) -> bool {
    let mut texts = message.split(|octet| *octet == 0);
    texts.any(|text| text == b"SUBSYSTEM=block" || text.starts_with(b"MODALIAS="))
}

impl AsFd for Uevents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_and_what_may_become_one_are_told_from_the_rest() {
        assert!(is_of_disk(b"add@/devices/x/block/sdb\0ACTION=add\0SUBSYSTEM=block\0DEVTYPE=disk\0"));
        assert!(is_of_disk(b"add@/devices/usb1\0MODALIAS=usb:v0781p5581\0SUBSYSTEM=usb\0"));
        assert!(!is_of_disk(b"add@/devices/virtual/net/veth0\0ACTION=add\0SUBSYSTEM=net\0"));
        assert!(!is_of_disk(b"") && !is_of_disk(b"XSUBSYSTEM=block"));
    }
}
