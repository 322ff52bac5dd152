//! Which machine has which tunnel.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::events::{CloseReason, Events, Mailbox, TunnelState};
use super::{Admission, Limits};
use crate::machine::MachineId;
use crate::telemetry::Counters;
use crate::wire::tunnel::{CallFailure, CallRefusal};

/// Calls that wait for a tunnel's task to take them.
pub(super) const COMMANDS_MAX: usize = 64;

/// Why a tunnel was not taken, or was ended by us for what its agent did. One counter each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refused {
    /// No `machine-id` header.
    MissingMachineId,
    /// More than one `machine-id` header.
    RepeatedMachineId,
    /// The `machine-id` is no machine's UUID.
    InvalidMachineId,
    /// The server does not know where the request came from.
    UnknownPeer,
    /// [`Admission`] said no.
    NotAdmitted,
    /// The machine has a tunnel from another address.
    Occupied,
    /// As many tunnels as are allowed.
    TooManyTunnels,
    /// The provider shuts down.
    Shutdown,
    /// A forward tunnel, which we do not serve.
    ForwardTunnel,
    /// No settings in time.
    SettingsTimeout,
    /// A frame against the tunnel's rules.
    Violation,
    /// A frame against a stream's rules, which cost that call.
    StreamFault,
}

impl Refused {
    /// All reasons, in declaration order.
    pub const ALL: [Self; 12] = [
        Self::MissingMachineId,
        Self::RepeatedMachineId,
        Self::InvalidMachineId,
        Self::UnknownPeer,
        Self::NotAdmitted,
        Self::Occupied,
        Self::TooManyTunnels,
        Self::Shutdown,
        Self::ForwardTunnel,
        Self::SettingsTimeout,
        Self::Violation,
        Self::StreamFault,
    ];

    /// The counter's name, `tunnel_…`.
    pub const fn counter(self) -> &'static str {
        match self {
            Self::MissingMachineId => "tunnel_missing_machine_id",
            Self::RepeatedMachineId => "tunnel_repeated_machine_id",
            Self::InvalidMachineId => "tunnel_invalid_machine_id",
            Self::UnknownPeer => "tunnel_unknown_peer",
            Self::NotAdmitted => "tunnel_not_admitted",
            Self::Occupied => "tunnel_occupied",
            Self::TooManyTunnels => "tunnel_too_many",
            Self::Shutdown => "tunnel_shutdown",
            Self::ForwardTunnel => "tunnel_forward",
            Self::SettingsTimeout => "tunnel_settings_timeout",
            Self::Violation => "tunnel_violation",
            Self::StreamFault => "tunnel_stream_fault",
        }
    }
}

/// How a tunnel's task says that a call failed.
#[derive(Debug)]
pub(super) enum Failed {
    NotStarted(CallRefusal),
    Ended(CallFailure),
}

/// A call on its way to a tunnel's task.
pub(super) struct Command {
    pub method: &'static str,
    pub request: Bytes,
    pub answer: oneshot::Sender<Result<Bytes, Failed>>,
    /// Ends without a value when the caller no longer waits.
    pub gone: oneshot::Receiver<()>,
}

/// How to end a tunnel's task, and why.
#[derive(Clone)]
pub(super) struct Stop {
    pub token: CancellationToken,
    reason: Arc<OnceLock<CloseReason>>,
}

impl Stop {
    /// Not ended; `token` is a child of the shutdown's.
    pub fn new(token: CancellationToken) -> Self {
        Self { token, reason: Arc::default() }
    }

    /// Ends the tunnel; the first reason counts.
    pub fn end(&self, reason: CloseReason) {
        self.reason.get_or_init(|| reason);
        self.token.cancel();
    }

    /// Why it ended.
    pub fn reason(&self) -> CloseReason {
        self.reason.get().copied().unwrap_or(CloseReason::Shutdown)
    }
}

/// An open tunnel.
struct Entry {
    serial: u64,
    peer: SocketAddr,
    commands: mpsc::Sender<Command>,
    stop: Stop,
}

#[derive(Default)]
struct Registry {
    entries: BTreeMap<MachineId, Entry>,
    subscribers: Vec<Weak<Mailbox>>,
}

/// What all tunnels share.
pub(super) struct Shared {
    pub admission: Arc<dyn Admission>,
    pub limits: Limits,
    /// One permit per tunnel, from its first header to its task's end.
    pub room: Arc<Semaphore>,
    pub tasks: TaskTracker,
    /// Ends every tunnel.
    pub shutdown: CancellationToken,
    registry: Mutex<Registry>,
    serial: AtomicU64,
    counters: Counters,
}

impl Shared {
    pub fn new(admission: Arc<dyn Admission>, limits: Limits, counters: Counters) -> Self {
        Self {
            admission,
            limits,
            room: Arc::new(Semaphore::new(limits.tunnels_max)),
            tasks: TaskTracker::new(),
            shutdown: CancellationToken::new(),
            registry: Mutex::default(),
            serial: AtomicU64::new(0),
            counters,
        }
    }

    pub fn count(&self, reason: Refused) {
        self.counters.count(reason.counter());
    }

    pub fn refused(&self) -> impl Iterator<Item = (Refused, u64)> + use<> {
        let counters = self.counters.clone();
        Refused::ALL.into_iter().map(move |reason| (reason, counters.value(reason.counter())))
    }

    pub fn subscribe(&self) -> Events {
        let mailbox = Arc::new(Mailbox::default());
        let mut registry = self.lock();
        for (machine, entry) in &registry.entries {
            mailbox.put(machine, TunnelState::Opened { peer: entry.peer });
        }
        registry.subscribers.push(Arc::downgrade(&mailbox));
        Events::new(mailbox)
    }

    pub fn peer(&self, machine: &MachineId) -> Option<SocketAddr> {
        self.lock().entries.get(machine).map(|entry| entry.peer)
    }

    pub fn machines(&self) -> Vec<MachineId> {
        self.lock().entries.keys().cloned().collect()
    }

    pub fn commands(&self, machine: &MachineId) -> Option<mpsc::Sender<Command>> {
        self.lock().entries.get(machine).map(|entry| entry.commands.clone())
    }

    pub fn close(&self, machine: &MachineId) {
        if let Some(entry) = self.lock().entries.get(machine) {
            entry.stop.end(CloseReason::Dismissed);
        }
    }

    pub fn close_all(&self) {
        self.shutdown.cancel();
        self.tasks.close();
    }

    /// Makes a tunnel the one of its machine, and ends the older one from the same address. Returns its serial for
    /// [`Self::withdraw`], or `None` while the machine has a tunnel from another address.
    pub fn publish(
        &self,
        machine: &MachineId,
        peer: SocketAddr,
        commands: mpsc::Sender<Command>,
        stop: Stop,
    ) -> Option<u64> {
        let mut registry = self.lock();
        // A machine that really moved is let in once keepalive has found its older tunnel dead; its agent dials again
        // until then.
        if registry.entries.get(machine).is_some_and(|older| older.peer.ip() != peer.ip()) {
            return None;
        }
        // Under the lock, so that the newest tunnel has the largest serial.
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        if let Some(older) = registry.entries.insert(machine.clone(), Entry { serial, peer, commands, stop }) {
            older.stop.end(CloseReason::Replaced);
        }
        registry.tell(machine, TunnelState::Opened { peer });
        Some(serial)
    }

    /// Takes a tunnel out, if it is still its machine's, then runs `fail` to fail its calls, then tells the subscribers.
    /// All under one lock, so that the event cannot overtake the one of a newer tunnel.
    pub fn withdraw(&self, machine: &MachineId, serial: u64, reason: CloseReason, fail: impl FnOnce()) {
        let mut registry = self.lock();
        let current = registry.entries.get(machine).is_some_and(|entry| entry.serial == serial);
        if current {
            registry.entries.remove(machine);
        }
        fail();
        if current {
            registry.tell(machine, TunnelState::Closed { reason });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn tell(&mut self, machine: &MachineId, state: TunnelState) {
        self.subscribers.retain(|subscriber| match subscriber.upgrade() {
            Some(mailbox) => {
                mailbox.put(machine, state);
                true
            }
            None => false,
        });
    }
}
