//! The control socket: one request a connection, one answer, the end.
//!
//! An edge: it owns sockets. Who may ask what is decided in [`crate::supervise::control`].

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::supervise::control::{MAX_REQUEST, Reply, Request, SOCKET, decode, encode, may};
use crate::supervise::services::SOCKETS_GID;
use crate::time::Uptime;

/// Connections at a time; further ones wait in the kernel's queue, which is as long.
const CONNECTIONS: usize = 16;
/// How long a connection may say nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an answer may take that waits for a disk.
const DISK_LIMIT: Duration = Duration::from_secs(60);

struct Connection {
    socket: Socket,
    uid: u32,
    until: Uptime,
    /// It has asked, and this is how its question is called.
    asked: Option<u64>,
}

/// The socket and those who are connected.
pub(super) struct Control {
    listener: Socket,
    connections: Vec<Connection>,
    questions: u64,
}

impl Control {
    /// Binds the socket; the services' group may connect.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn open() -> io::Result<Self> {
        match fs::remove_file(SOCKET) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
        listener.set_nonblocking(true)?;
        listener.bind(&SockAddr::unix(Path::new(SOCKET))?)?;
        chown(SOCKET, Some(0), Some(SOCKETS_GID))?;
        fs::set_permissions(SOCKET, Permissions::from_mode(0o660))?;
        listener.listen(CONNECTIONS as i32)?;
        Ok(Self { listener, connections: Vec::new(), questions: 0 })
    }

    pub(super) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let room = (self.connections.len() < CONNECTIONS).then(|| self.listener.as_fd());
        let silent = self.connections.iter().filter(|one| one.asked.is_none());
        silent.map(|one| one.socket.as_fd()).chain(room).collect()
    }

    pub(super) fn deadline(&self) -> Option<Uptime> {
        self.connections.iter().map(|one| one.until).min()
    }

    /// Takes the requests that are there, at most one a connection, and answers each that may be asked with `answer`. Where
    /// that returns nothing, the answer comes by [`Self::reply`] under the ticket.
    pub(super) fn turn(&mut self, now: Uptime, mut answer: impl FnMut(u64, u32, Request) -> Option<Reply>) {
        while self.connections.len() < CONNECTIONS {
            let Ok((socket, _)) = self.listener.accept() else { break };
            // Who can't be asked for its user is nobody.
            let Ok(peer) = getsockopt(&socket, sockopt::PeerCredentials) else { continue };
            if socket.set_nonblocking(true).is_ok() {
                self.connections.push(Connection { socket, uid: peer.uid(), until: now + PATIENCE, asked: None });
            }
        }
        let questions = &mut self.questions;
        self.connections.retain_mut(|one| {
            if one.asked.is_some() {
                return now < one.until;
            }
            let mut octets = [0; MAX_REQUEST + 1];
            match nix::unistd::read(&one.socket, &mut octets) {
                Ok(length) => {
                    let reply = match octets.get(..length).map(decode::<Request>) {
                        Some(Ok(request)) if may(one.uid, &request) => {
                            *questions += 1;
                            let Some(reply) = answer(*questions, one.uid, request) else {
                                (one.asked, one.until) = (Some(*questions), now + DISK_LIMIT);
                                return true;
                            };
                            reply
                        }
                        Some(Ok(_)) => Reply::Denied,
                        Some(Err(error)) => Reply::Failed(error.to_string()),
                        None => return false,
                    };
                    send(&one.socket, &reply);
                    false
                }
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => now < one.until,
                Err(_) => false,
            }
        });
    }

    /// Answers the question that was called `ticket`, unless whoever asked is gone.
    pub(super) fn reply(&mut self, ticket: u64, reply: &Reply) {
        self.connections.retain(|one| {
            let meant = one.asked == Some(ticket);
            if meant {
                send(&one.socket, reply);
            }
            !meant
        });
    }
}

/// Whoever does not take the answer at once goes without.
fn send(socket: &Socket, reply: &Reply) {
    let _ = socket.send_with_flags(&encode(reply), nix::libc::MSG_NOSIGNAL);
}
