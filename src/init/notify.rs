//! The sockets on which services say that they are ready and well: one a service.
//!
//! An edge: it owns sockets. What a datagram means is decided in [`crate::supervise::notify`].

use std::fs::{self, Permissions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixCredentials, recvmsg, setsockopt, sockopt};

use super::source::Source;
use crate::supervise::Event;
use crate::supervise::notify::{Allowance, MAX_DATAGRAM, Notice, parse};
use crate::supervise::services::Service;
use crate::time::Uptime;

/// Datagrams of one service that are read in one turn.
const PER_TURN: usize = 16;

struct Ear {
    uid: u32,
    socket: UnixDatagram,
    allowance: Allowance,
}

/// All of them.
pub(super) struct Notify(Vec<Ear>);

impl Notify {
    /// Binds a socket for each of `services`, to which that service alone may write. Returns what could not be bound, too.
    pub(super) fn open(services: &[Service]) -> (Self, Vec<(&'static str, io::Error)>) {
        let (mut ears, mut failed) = (Vec::new(), Vec::new());
        for service in services {
            match bind(service) {
                Ok(socket) => ears.push(Ear { uid: service.uid, socket, allowance: Allowance::default() }),
                Err(error) => failed.push((service.name, error)),
            }
        }
        (Self(ears), failed)
    }
}

fn bind(service: &Service) -> io::Result<UnixDatagram> {
    let path = service.notify_socket();
    let path = Path::new(&path);
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let socket = UnixDatagram::bind(path)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    chown(path, Some(service.uid), Some(0))?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(socket)
}

impl Source for Notify {
    fn descriptors(&self, now: Uptime) -> Vec<BorrowedFd<'_>> {
        self.0.iter().filter(|ear| ear.allowance.resumes(now).is_none()).map(|ear| ear.socket.as_fd()).collect()
    }

    fn deadline(&self, now: Uptime) -> Option<Uptime> {
        self.0.iter().filter_map(|ear| ear.allowance.resumes(now)).min()
    }

    fn turn(&mut self, now: Uptime) -> Vec<Event> {
        let mut events = Vec::new();
        for ear in &mut self.0 {
            for _ in 0..PER_TURN {
                if ear.allowance.resumes(now).is_some() {
                    break;
                }
                let Some(received) = receive(&ear.socket) else { break };
                ear.allowance.take(now);
                // The supervisor knows whether the process is its service's own; a child of it is not heard.
                if let Some((credentials, notice)) = received
                    && credentials.uid() == ear.uid
                {
                    events.push(Event::Noticed { pid: credentials.pid(), notice });
                }
            }
        }
        events
    }
}

/// The next datagram; `None` when there is none, `Some(None)` when it does not count: too long, or from nobody known.
fn receive(socket: &UnixDatagram) -> Option<Option<(UnixCredentials, Notice)>> {
    let mut octets = [0; MAX_DATAGRAM];
    // Room for credentials alone: descriptors that come along are closed by the kernel.
    let mut control = cmsg_space!(UnixCredentials);
    let mut parts = [IoSliceMut::new(&mut octets)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
        Ok(message) => message,
        Err(Errno::EINTR) => return Some(None),
        Err(_) => return None,
    };
    let (length, cut) = (message.bytes, message.flags.intersects(MsgFlags::MSG_TRUNC));
    let credentials = message.cmsgs().ok().and_then(|mut all| {
        all.find_map(|one| match one {
            ControlMessageOwned::ScmCredentials(credentials) => Some(credentials),
            _ => None,
        })
    });
    let octets = octets.get(..length).filter(|_| !cut);
    Some(octets.and_then(|octets| Some((credentials?, parse(octets)))))
}
