//! PID 1's part in the journal: it owns the sockets, keeps the journal's process running, and connects the services'
//! output to it.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt};
use nix::sys::stat::fstat;

use super::journal::ARGUMENT;
use super::log::{Level, Log};
use crate::journal::{NATIVE_SOCKET, QUERY_SOCKET, STREAM_SOCKET, SYSLOG_SOCKET, UID};
use crate::supervise::Exit;
use crate::supervise::restart::History;
use crate::supervise::seccomp::{self, Filter};
use crate::supervise::services::SOCKETS_GID;
use crate::sys::process::{self, Confinement, Wiring};
use crate::time::Uptime;
use crate::wire::journal::{DEFAULT_PRIORITY, stream};

/// What the kernel holds of messages while the journal restarts.
const NATIVE_BUFFER: usize = 8 * 1024 * 1024;
const OTHER_BUFFER: usize = 1024 * 1024;
/// Files that the journal may hold open: connections, and what one message passes.
const FILES: u64 = 1024;
/// Init's own binary, wherever it lies by now.
const PROGRAM: &str = "/proc/self/exe";

#[derive(Debug)]
enum State {
    Due(Uptime),
    Running {
        pid: i32,
        since: Uptime,
    },
    /// The run ends.
    Over,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Logging {
    /// By the name under which the journal gets them; open for as long as PID 1 runs.
    sockets: Vec<(&'static str, OwnedFd)>,
    state: State,
    history: History,
}

impl Logging {
    /// Opens the sockets. What can't be opened is said; the box runs without.
    pub(super) fn open(now: Uptime, log: &Log) -> Self {
        let mut sockets = Vec::new();
        for (name, path, opened) in [
            ("native", NATIVE_SOCKET, datagrams(NATIVE_SOCKET, 0o666, 0, NATIVE_BUFFER)),
            ("syslog", SYSLOG_SOCKET, datagrams(SYSLOG_SOCKET, 0o666, 0, OTHER_BUFFER)),
            ("stream", STREAM_SOCKET, connections(STREAM_SOCKET)),
            ("query", QUERY_SOCKET, datagrams(QUERY_SOCKET, 0o660, SOCKETS_GID, OTHER_BUFFER)),
            ("kmsg", "/dev/kmsg", kernel_log()),
        ] {
            match opened {
                Ok(descriptor) => sockets.push((name, descriptor)),
                Err(error) => log.line(Level::Warning, &format!("journal: goes without {path}: {error}")),
            }
        }
        Self { sockets, state: State::Due(now), history: History::default() }
    }

    /// Starts the journal if it is due.
    pub(super) fn turn(&mut self, now: Uptime, jitter: u8, log: &Log) {
        if !matches!(self.state, State::Due(at) if at <= now) {
            return;
        }
        match self.start() {
            Ok(pid) => {
                log.line(Level::Info, &format!("journal: runs as {pid}"));
                self.state = State::Running { pid, since: now };
            }
            Err(error) => {
                let next = self.history.ended(now, std::time::Duration::ZERO, jitter);
                log.line(Level::Error, &format!("journal: cannot start: {error}"));
                self.state = State::Due(next.at);
            }
        }
    }

    /// When [`Self::turn`] has something to do.
    pub(super) const fn deadline(&self) -> Option<Uptime> {
        match self.state {
            State::Due(at) => Some(at),
            State::Running { .. } | State::Over => None,
        }
    }

    /// Takes note that process `pid` ended.
    pub(super) fn ended(&mut self, now: Uptime, pid: i32, exit: Exit, jitter: u8, log: &Log) {
        let State::Running { pid: own, since } = self.state else { return };
        if own != pid {
            return;
        }
        let next = self.history.ended(now, now.since(since), jitter);
        let pause = next.at.since(now).as_millis();
        log.line(Level::Error, &format!("journal: ended by {exit}; starts again in {pause} ms"));
        self.state = State::Due(next.at);
    }

    /// The run ends: the journal goes with the last processes, and is not started again.
    pub(super) fn stop(&mut self) {
        self.state = State::Over;
    }

    /// Somewhere for a service's output to go: a panic's text is worth keeping. With it, what `JOURNAL_STREAM` says, by
    /// which a program knows that its output is the journal's already.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when the journal is behind with its connections.
    pub(super) fn output(&self, service: &str) -> io::Result<(OwnedFd, String)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let output = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        // It waits for nobody: the connection lies in the listener's queue until the journal takes it.
        connect(output.as_raw_fd(), &UnixAddr::new(STREAM_SOCKET)?)?;
        let header =
            stream::Header { identifier: service.to_owned(), priority: DEFAULT_PRIORITY, level_prefix: true }.encode();
        if nix::unistd::write(&output, &header)? != header.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        fcntl(&output, FcntlArg::F_SETFL(OFlag::empty()))?;
        let stat = fstat(&output)?;
        Ok((output, format!("{}:{}", stat.st_dev, stat.st_ino)))
    }

    fn start(&self) -> io::Result<i32> {
        let arguments = self.sockets.iter().map(|(name, socket)| format!("{name}={}", socket.as_raw_fd()));
        let arguments: Vec<_> = std::iter::once(ARGUMENT.to_owned()).chain(arguments).collect();
        let inherited: Vec<BorrowedFd<'_>> = self.sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
        let confinement = Confinement {
            uid: UID,
            gid: UID,
            groups: vec![],
            capabilities: vec![],
            files: FILES,
            filter: seccomp::program(Filter { exec: true, packets: false, clock: false }),
            cgroup: None,
        };
        let wiring = Wiring { output: None, inherited: &inherited };
        process::spawn(Path::new(PROGRAM), &arguments, &[], confinement, wiring)
    }
}

fn datagrams(path: &str, mode: u32, gid: u32, buffer: usize) -> io::Result<OwnedFd> {
    remove(path)?;
    let socket = UnixDatagram::bind(path)?;
    socket.set_nonblocking(true)?;
    setsockopt(&socket, sockopt::PassCred, &true)?;
    // Without the power to force it, the kernel's own limit stands.
    setsockopt(&socket, sockopt::RcvBufForce, &buffer).or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &buffer))?;
    setsockopt(&socket, sockopt::SndBufForce, &OTHER_BUFFER)
        .or_else(|_| setsockopt(&socket, sockopt::SndBuf, &OTHER_BUFFER))?;
    chown(path, Some(0), Some(gid))?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(socket.into())
}

fn connections(path: &str) -> io::Result<OwnedFd> {
    remove(path)?;
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener.into())
}

/// Opened here, since the journal's user may not. Where it stands is kept with the open file: after a restart the journal
/// goes on where it was.
fn kernel_log() -> io::Result<OwnedFd> {
    let file: File = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg")?;
    Ok(file.into())
}

fn remove(path: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
