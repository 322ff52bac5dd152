//! What opened and what closed, for whoever wants to know.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tonic::Code;

use crate::machine::MachineId;
use crate::wire::tunnel::Violation;

/// Why a tunnel ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The agent's half of the stream ended: it said goodbye, or it was reset with CANCEL or given up by keepalive,
    /// which hyper does not tell apart.
    Ended,
    /// The connection broke, or brought what is no frame; the code is the transport's.
    Disconnected(Code),
    /// The agent broke the tunnel's rules.
    Violation(Violation),
    /// The agent did not send its settings in time.
    SettingsTimeout,
    /// The same machine opened another tunnel.
    Replaced,
    /// The machine had a tunnel from another address, so that this one never opened.
    Occupied,
    /// We ended this tunnel.
    Dismissed,
    /// The provider shuts down.
    Shutdown,
}

/// Whether a machine has a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TunnelState {
    /// Calls can be made.
    Opened {
        /// Where the tunnel comes from.
        peer: SocketAddr,
    },
    /// Calls fail at once.
    Closed {
        /// Why the last tunnel ended.
        reason: CloseReason,
    },
}

/// A change of a machine's tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelEvent {
    /// Whose tunnel.
    pub machine: MachineId,
    /// What it is now.
    pub state: TunnelState,
}

/// A subscription: every machine's latest state arrives, states in between may not.
///
/// A slow reader costs at most one waiting event per machine: a newer state takes the place of an older one, and a
/// tunnel that closed before anyone read of its opening is not mentioned. A second `Opened` in a row means that a
/// newer tunnel took over.
pub struct Events {
    mailbox: Arc<Mailbox>,
}

impl Events {
    /// The next change; waits for one. Cancel-safe: an event is either returned or still waiting.
    pub async fn next(&mut self) -> TunnelEvent {
        loop {
            if let Some(event) = self.mailbox.lock().pop() {
                return event;
            }
            self.mailbox.woken.notified().await;
        }
    }

    pub(super) const fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox }
    }
}

/// What one subscriber has not read yet.
#[derive(Default)]
pub(super) struct Mailbox {
    waiting: Mutex<Waiting>,
    /// Holds a permit while something may wait.
    woken: Notify,
}

#[derive(Default)]
struct Waiting {
    order: VecDeque<MachineId>,
    states: BTreeMap<MachineId, TunnelState>,
    /// Machines whose last event read was `Opened`.
    read_open: BTreeSet<MachineId>,
}

impl Mailbox {
    pub(super) fn put(&self, machine: &MachineId, state: TunnelState) {
        self.lock().put(machine, state);
        self.woken.notify_one();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn put(&mut self, machine: &MachineId, state: TunnelState) {
        if matches!(state, TunnelState::Closed { .. }) && !self.read_open.contains(machine) {
            self.states.remove(machine);
            self.order.retain(|waiting| waiting != machine);
        } else if self.states.insert(machine.clone(), state).is_none() {
            self.order.push_back(machine.clone());
        }
    }

    fn pop(&mut self) -> Option<TunnelEvent> {
        let machine = self.order.pop_front()?;
        let state = self.states.remove(&machine)?;
        match state {
            TunnelState::Opened { .. } => self.read_open.insert(machine.clone()),
            TunnelState::Closed { .. } => self.read_open.remove(&machine),
        };
        Some(TunnelEvent { machine, state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_the_latest_state_and_no_end_of_what_it_never_saw_begin() {
        let machine: MachineId = "4c4c4544-0042-3510-8054-b7c04f333132".parse().unwrap();
        let opened = |port| TunnelState::Opened { peer: SocketAddr::from(([127, 0, 0, 1], port)) };
        let closed = TunnelState::Closed { reason: CloseReason::Ended };
        let mut waiting = Waiting::default();
        waiting.put(&machine, opened(1));
        waiting.put(&machine, closed);
        assert_eq!(waiting.pop(), None);
        waiting.put(&machine, opened(2));
        assert_eq!(waiting.pop().unwrap().state, opened(2));
        waiting.put(&machine, closed);
        waiting.put(&machine, opened(3));
        assert_eq!(waiting.pop().unwrap().state, opened(3));
        waiting.put(&machine, closed);
        assert_eq!(waiting.pop().unwrap().state, closed);
        assert_eq!(waiting.pop(), None);
    }
}
