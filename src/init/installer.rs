//! PID 1's end of an installation: a process of its own does the work and tells how far it is.
//!
//! An edge: it owns the socket to that process. What it tells becomes what those who ask see in
//! [`crate::supervise::install`].

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use socket2::{Domain, Socket, Type};

use super::log::{Level, Log};
use super::{install, record};
use crate::supervise::control::{Reply, Status, decode};
use crate::supervise::install::{Ask, Installation, Installer, LONGEST, Told, plain};
use crate::supervise::mounts::INIT_STATE_DIR;
use crate::sys::process;

/// Most octets of what is told at one time: the longest list of disks.
const MAX_TOLD: usize = 16 << 10;
/// What is heard in one turn of the loop.
const MOST_AT_ONCE: usize = 16;
/// The file that says which disk an installation was begun on.
const NAME: &str = "install";

/// Starts the process, and listens to it.
#[derive(Default)]
pub(super) struct Runner {
    installer: Installer,
    socket: Option<Socket>,
}

impl Runner {
    /// Reads whether an earlier run of the box was cut off in the middle.
    pub(super) fn recall(&mut self) {
        if let Some(disk) = intent() {
            self.installer.recalled(disk);
        }
    }

    /// Takes what somebody wants; returns the answer when it is known at once.
    pub(super) fn ask(&mut self, ticket: u64, ask: &Ask, status: &Status, log: &Log) -> Option<Reply> {
        let arguments = match self.installer.ask(ticket, ask, status) {
            Ok(arguments) => arguments,
            Err(why) => return Some(Reply::Refused(why)),
        };
        match start(&arguments) {
            Ok(socket) => {
                self.socket = Some(socket);
                None
            }
            Err(error) => {
                log.line(Level::Error, &format!("installation: cannot start: {error}"));
                self.installer.ended().map(|(_, reply)| reply)
            }
        }
    }

    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(Socket::as_fd)
    }

    /// Hears what the process tells; returns who is to be answered what.
    pub(super) fn turn(&mut self, log: &Log) -> Vec<(u64, Reply)> {
        let mut replies = Vec::new();
        for _ in 0..MOST_AT_ONCE {
            let Some(socket) = &self.socket else { break };
            let mut octets = vec![0; MAX_TOLD];
            let told = match (&*socket).read(&mut octets) {
                Ok(0) => None,
                Ok(length) => decode::<Told>(&octets[..length]).ok(),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => break,
                Err(_) => None,
            };
            match told {
                Some(told) => replies.extend(self.installer.told(told)),
                None => {
                    self.socket = None;
                    let ran = self.installer.shown().running();
                    replies.extend(self.installer.ended());
                    if let Some(job) = self.installer.shown().job.filter(|_| ran) {
                        log.line(Level::Error, &job.to_string());
                    }
                }
            }
        }
        replies
    }

    pub(super) fn shown(&self) -> Installation {
        self.installer.shown()
    }
}

/// Starts the process; what it writes to its output comes out of the socket.
fn start(arguments: &[String]) -> io::Result<Socket> {
    let (own, theirs) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None)?;
    own.set_nonblocking(true)?;
    let arguments: Vec<_> = [install::ARGUMENT].into_iter().chain(arguments.iter().map(String::as_str)).collect();
    process::spawn_self(&arguments, Some(OwnedFd::from(theirs)))?;
    Ok(own)
}

fn path() -> PathBuf {
    PathBuf::from(INIT_STATE_DIR).join(NAME)
}

/// The disk that an installation was begun on, in words; none where the last one ended well.
fn intent() -> Option<String> {
    let mut text = String::new();
    File::open(path()).ok()?.take(4 * LONGEST as u64).read_to_string(&mut text).ok()?;
    Some(plain(&text)).filter(|disk| !disk.is_empty())
}

/// Notes that an installation begins on `disk`, on the medium when this returns.
///
/// # Errors
///
/// The file system's.
pub(super) fn begin(disk: &str) -> io::Result<()> {
    record::save(NAME, disk.as_bytes())
}

/// Notes that it has ended well.
///
/// # Errors
///
/// The file system's.
pub(super) fn end() -> io::Result<()> {
    fs::remove_file(path())?;
    File::open(INIT_STATE_DIR)?.sync_all()
}
