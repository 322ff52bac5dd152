//! The journal's own process: receives what is logged, remembers it, writes it down, answers questions.
//!
//! An edge, because it owns sockets and files. It runs from init's binary under a user of its own without any power, since
//! it reads what anyone sends: a crash is one of its own, a descriptor whose closing blocks or a disk that hangs holds up
//! nobody but itself, and PID 1 keeps the sockets, so that what is sent meanwhile waits in them. Doing this within PID 1
//! and forking for each write was rejected: even closing a stranger's descriptor may block.

mod descriptor;
mod disk;
mod kmsg;
mod streams;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::ExitCode;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::journal::entry::Draft;
use crate::journal::intake::{self, Peer};
use crate::journal::keep::Keeper;
use crate::journal::query::{self, Health, Query};
use crate::journal::rate::{Rates, Sender};
use crate::journal::ring::Ring;
use crate::journal::{DIRECTORY, chunk};
use crate::sys::signal::Signals;
use crate::sys::socket::{self, Received};
use crate::time::{UnixTime, Uptime};
use crate::wire::journal::{native, syslog};
use disk::Disk;
use streams::Streams;

/// The argument by which init's binary becomes the journal.
pub const ARGUMENT: &str = "journal";
/// Datagrams that are taken from one socket before the others have their turn.
const TURN: usize = 64;
/// Turns that are made for what lies in the sockets at the end.
const LAST_TURNS: usize = 64;
/// How long the disk may take at the start to say what is on it.
const RECALL: Duration = Duration::from_secs(2);
/// How long the disk may take at the end; then PID 1 kills.
const LAST_WRITE: Duration = Duration::from_millis(1500);
/// Names of processes that are remembered; a process that logs much is looked at once.
const MAX_NAMES: usize = 64;

/// What PID 1 hands over, by number in the arguments: `native=5 syslog=6 …`. What could not be opened is missing.
#[derive(Debug, Default)]
struct Sockets {
    native: Option<OwnedFd>,
    syslog: Option<OwnedFd>,
    stream: Option<UnixListener>,
    query: Option<OwnedFd>,
    kmsg: Option<OwnedFd>,
}

/// Runs the journal until SIGTERM.
pub fn run(arguments: &[String]) -> ExitCode {
    // For those who list processes; what it was started as is but "exe".
    let _ = nix::sys::prctl::set_name(c"journal");
    let mut sockets = Sockets::default();
    for (name, number) in arguments.iter().filter_map(|argument| argument.split_once('=')) {
        let Some(descriptor) = number.parse().ok().and_then(|number| socket::inherited(number).ok()) else { continue };
        match name {
            "native" => sockets.native = Some(descriptor),
            "syslog" => sockets.syslog = Some(descriptor),
            "stream" => sockets.stream = Some(UnixListener::from(descriptor)),
            "query" => sockets.query = Some(descriptor),
            "kmsg" => sockets.kmsg = Some(descriptor),
            _ => {}
        }
    }
    // Before the disk's thread is made: it must not take the signal.
    let Ok(signals) = Signals::take(&[Signal::SIGTERM]) else { return ExitCode::FAILURE };
    match Journal::new(sockets).and_then(|mut journal| journal.run(&signals)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

struct Journal {
    sockets: Sockets,
    streams: Streams,
    kernel: kmsg::Reader,
    memory: Memory,
    disk: Disk,
    names: BTreeMap<u32, String>,
    /// A longest message and one octet more, so that a longer one shows.
    buffer: Vec<u8>,
}

/// What was received, and how much of it may be.
struct Memory {
    ring: Ring,
    rates: Rates,
    keeper: Keeper,
    health: Health,
}

impl Journal {
    fn new(sockets: Sockets) -> io::Result<Self> {
        let mut disk = Disk::start(DIRECTORY.into())?;
        let recalled = disk.recall(RECALL);
        let mut memory = Memory {
            ring: Ring::recall(recalled.entries, UnixTime::now().as_millis()),
            rates: Rates::default(),
            keeper: Keeper::new(Uptime::now()),
            health: Health::default(),
        };
        if recalled.damaged > 0 {
            memory.own(4, format!("{} chunks on disk were damaged and are gone", recalled.damaged));
        }
        if let Some(trouble) = recalled.trouble {
            memory.own(4, format!("what was logged before can't be read: {trouble}"));
        }
        let buffer = vec![0; native::MAX_MESSAGE + 1];
        let (streams, kernel, names) = (Streams::default(), kmsg::Reader::default(), BTreeMap::new());
        Ok(Self { sockets, streams, kernel, memory, disk, names, buffer })
    }

    fn run(&mut self, signals: &Signals) -> io::Result<()> {
        loop {
            self.wait(signals)?;
            if signals.next()? == Some(Signal::SIGTERM) {
                break;
            }
            self.turn();
            self.write_if_due();
        }
        for _ in 0..LAST_TURNS {
            if self.turn() == 0 {
                break;
            }
        }
        self.write_rest();
        Ok(())
    }

    fn wait(&self, signals: &Signals) -> io::Result<()> {
        let mut waiting: Vec<BorrowedFd<'_>> = vec![signals.as_fd(), self.disk.as_fd()];
        let Sockets { native, syslog, stream, query, kmsg } = &self.sockets;
        waiting.extend([native, syslog, query, kmsg].into_iter().flatten().map(AsFd::as_fd));
        waiting.extend(stream.iter().map(AsFd::as_fd));
        waiting.extend(self.streams.descriptors());
        let mut polled: Vec<_> = waiting.into_iter().map(|one| PollFd::new(one, PollFlags::POLLIN)).collect();
        let deadlines = [self.memory.keeper.deadline(), self.memory.rates.deadline()];
        let timeout = deadlines.into_iter().flatten().min().map_or(PollTimeout::NONE, |deadline| {
            let millis = deadline.since(Uptime::now()).as_millis().saturating_add(1).min(60_000);
            PollTimeout::try_from(u32::try_from(millis).unwrap_or(60_000)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut polled, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes a bounded share of what every socket holds; returns how much that was.
    fn turn(&mut self) -> usize {
        let mut taken = self.take_native() + self.take_syslog() + self.take_streams() + self.take_kernel();
        taken += self.answer();
        for (sender, dropped) in self.memory.rates.report(Uptime::now()) {
            self.memory.health.dropped = self.memory.health.dropped.saturating_add(dropped);
            self.memory.own(4, format!("dropped {dropped} entries of {}: it logs too much", name(sender)));
        }
        taken
    }

    fn take_native(&mut self) -> usize {
        let Some(socket) = &self.sockets.native else { return 0 };
        for taken in 0..TURN {
            let Ok(Some(received)) = socket::receive(socket, &mut self.buffer) else { return taken };
            let peer = peer(&received, &mut self.names);
            let Received { length, whole, mut descriptors, .. } = received;
            let file = descriptors.pop();
            let length = match file {
                None if whole => Some(length),
                // Either octets or one descriptor; who sends both, or more, is no client of this protocol.
                Some(file) if length == 0 && descriptors.is_empty() => descriptor::read(file, &mut self.buffer).ok(),
                _ => None,
            };
            let Some(octets) = length.and_then(|length| self.buffer.get(..length)) else {
                self.memory.health.refused += 1;
                continue;
            };
            // An empty one is how a client asks whether someone listens.
            let message = native::decode(octets);
            self.memory.health.refused += u64::from(message.refused) + u64::from(message.fault.is_some());
            for fields in &message.entries {
                if let Some(draft) = intake::native(fields, &peer) {
                    self.memory.admit(Sender::User(peer.uid), draft);
                }
            }
        }
        TURN
    }

    fn take_syslog(&mut self) -> usize {
        let Some(socket) = &self.sockets.syslog else { return 0 };
        for taken in 0..TURN {
            let Ok(Some(received)) = socket::receive(socket, &mut self.buffer) else { return taken };
            let peer = peer(&received, &mut self.names);
            let octets = self.buffer.get(..received.length).unwrap_or_default();
            if let Some(draft) = intake::syslog(&syslog::decode(octets), &peer) {
                self.memory.admit(Sender::User(peer.uid), draft);
            }
        }
        TURN
    }

    fn take_streams(&mut self) -> usize {
        if let Some(listener) = &self.sockets.stream {
            self.memory.health.refused += self.streams.accept(listener);
        }
        let (names, memory) = (&mut self.names, &mut self.memory);
        self.streams.read(&mut self.buffer, |received, known_uid, lines| {
            let peer = peer(received, names);
            // At the end nobody sends; then it was who connected.
            let uid = if received.sender.is_some() { peer.uid } else { known_uid };
            let peer = Peer { uid, ..peer };
            for line in lines {
                memory.admit(Sender::User(peer.uid), intake::stream(&line, &peer));
            }
        })
    }

    fn take_kernel(&mut self) -> usize {
        let Some(kmsg) = &self.sockets.kmsg else { return 0 };
        for taken in 0..TURN {
            match self.kernel.next(kmsg) {
                Some(kmsg::Got::Record(record)) => self.memory.admit(Sender::Kernel, intake::kernel(&record)),
                Some(kmsg::Got::Gap(missing)) => {
                    self.memory.own(4, format!("{missing} records of the kernel's log were overwritten unread"));
                }
                None => return taken,
            }
        }
        TURN
    }

    fn answer(&mut self) -> usize {
        let Some(socket) = &self.sockets.query else { return 0 };
        for taken in 0..TURN {
            let mut buffer = [0; query::MAX_QUERY + 1];
            let Ok(Some(received)) = socket::receive(socket, &mut buffer) else { return taken };
            let Received { length, sender, from, .. } = received;
            let may = sender.is_some_and(|(_, uid)| uid == 0 || intake::service(uid) == "web");
            let asked = buffer.get(..length).map(Query::decode);
            if let (true, Some(Ok(asked)), Some(from)) = (may, asked, from) {
                let answer = query::answer(&self.memory.ring, &asked, self.memory.health.clone());
                // Who asks and does not read gets none.
                let _ = socket::send_to(socket, &answer.encode(), &from);
            } else {
                self.memory.health.refused += 1;
            }
        }
        TURN
    }

    fn write_if_due(&mut self) {
        let now = Uptime::now();
        if let Some(written) = self.disk.result() {
            self.memory.note(now, written);
        }
        if self.disk.is_idle() && self.memory.keeper.due(now).is_some() {
            self.write(now);
        }
    }

    /// Hands the next chunk to the disk; whether there was one.
    fn write(&mut self, now: Uptime) -> bool {
        let entries = self.memory.ring.unkept(chunk::FULL);
        let (Some(first), Some(last)) = (entries.first().map(|e| e.sequence), entries.last().map(|e| e.sequence))
        else {
            return false;
        };
        let octets = entries.iter().map(|entry| entry.size()).sum();
        match chunk::encode(&entries) {
            Ok(packed) => {
                self.disk.write(disk::Job { first, last, octets, packed });
                let left = self.memory.ring.unkept_after(last);
                self.memory.keeper.started(now, left);
            }
            // Impossible by the limits of a message; it must not be tried for ever.
            Err(chunk::TooLarge) => self.memory.ring.mark_kept(last),
        }
        true
    }

    /// At the end: all that is not on disk, as far as it goes in time.
    fn write_rest(&mut self) {
        let end = Uptime::now() + LAST_WRITE;
        loop {
            let now = Uptime::now();
            if !self.disk.is_idle() {
                match self.disk.wait(end.since(now)) {
                    Some(written) if written.outcome.is_ok() => self.memory.note(now, written),
                    _ => return,
                }
            }
            if end <= now || !self.write(now) {
                return;
            }
        }
    }
}

impl Memory {
    fn admit(&mut self, sender: Sender, draft: Draft) {
        let now = Uptime::now();
        let size = draft.clone().finish(0, UnixTime::default(), 0).size();
        if self.rates.admit(now, sender, size, draft.priority) {
            self.push(now, draft);
        }
    }

    /// One of our own. They are few by themselves: each tells of a change, or of many events at once.
    fn own(&mut self, priority: u8, message: String) {
        self.push(Uptime::now(), Draft::own(priority, message));
    }

    fn push(&mut self, now: Uptime, draft: Draft) {
        let millis = u64::try_from(now.as_duration().as_millis()).unwrap_or(u64::MAX);
        let entry = draft.finish(self.ring.next_sequence(), UnixTime::now(), millis);
        self.keeper.received(now, entry.size(), entry.priority);
        self.ring.push(entry);
    }

    fn note(&mut self, now: Uptime, written: disk::Written) {
        match written.outcome {
            Ok(size) => {
                self.ring.mark_kept(written.last);
                self.keeper.written(now, size);
                if self.health.trouble.take().is_some() {
                    self.own(6, "writes to disk again".to_owned());
                }
            }
            Err(error) => {
                let pause = self.keeper.failed(now, written.octets);
                let text = format!("cannot write to disk: {error}");
                if self.health.trouble.as_ref() != Some(&text) {
                    self.own(3, format!("{text}; it stays in memory and is tried again in {} s", pause.as_secs()));
                    self.health.trouble = Some(text);
                }
            }
        }
    }
}

fn name(sender: Sender) -> String {
    match sender {
        Sender::Kernel => "the kernel".to_owned(),
        Sender::User(uid) => intake::service(uid),
        Sender::Others => "many users".to_owned(),
    }
}

/// Who sent it. Its name alone is looked up: reading another process' command line waits for locks that it may hold.
fn peer(received: &Received, names: &mut BTreeMap<u32, String>) -> Peer {
    // Without credentials, nobody: 65534 has no rights anywhere.
    let (pid, uid) = received.sender.unwrap_or((0, 65_534));
    let comm = names.get(&pid).cloned().or_else(|| {
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned();
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        names.insert(pid, name.clone());
        Some(name)
    });
    Peer { uid, pid, comm }
}
