//! One tunnel's life: a task between a gRPC stream and the state machine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};
use tonic::{Status, Streaming};

use super::events::CloseReason;
use super::registry::{COMMANDS_MAX, Command, Failed, Refused, Shared, Stop};
use crate::machine::MachineId;
use crate::proto::tunnel::{ClientToServer, ServerToClient};
use crate::wire::tunnel::{CallFailure, Caller, Headers, Received, Revision, StreamId};

/// One tunnel. Dropping it takes it out of the registry and fails its calls, however its task ends.
pub(super) struct Tunnel {
    shared: Arc<Shared>,
    machine: MachineId,
    peer: SocketAddr,
    caller: Caller,
    stop: Stop,
    /// Set once the tunnel is in the registry.
    serial: Option<u64>,
    waiting: BTreeMap<StreamId, oneshot::Sender<Result<Bytes, Failed>>>,
    /// Each yields its stream once the caller no longer waits.
    gone: FuturesUnordered<BoxFuture<'static, StreamId>>,
    reason: CloseReason,
}

impl Tunnel {
    pub fn new(shared: Arc<Shared>, machine: MachineId, peer: SocketAddr, negotiates: bool) -> Self {
        let caller = Caller::new(negotiates, shared.limits.tunnel);
        let stop = Stop::new(shared.shutdown.child_token());
        Self {
            shared,
            machine,
            peer,
            caller,
            stop,
            serial: None,
            waiting: BTreeMap::new(),
            gone: FuturesUnordered::new(),
            // What is true if the task is torn down from outside.
            reason: CloseReason::Shutdown,
        }
    }

    /// Serves the tunnel to its end, between the agent's frames and ours. Returns the outer call's status; `None` is OK.
    pub async fn run(
        mut self,
        inbound: Streaming<ServerToClient>,
        frames: mpsc::Sender<ClientToServer>,
    ) -> Option<Status> {
        self.reason = self.serve(inbound, frames).await;
        tracing::debug!(machine = %self.machine, peer = %self.peer, reason = ?self.reason, "tunnel ended");
        match self.reason {
            CloseReason::Ended => None,
            // Read only if the connection is well and a frame was too long or no frame at all.
            CloseReason::Disconnected(code) => Some(Status::new(code, "reading the tunnel failed")),
            CloseReason::Violation(violation) => {
                self.shared.count(Refused::Violation);
                Some(Status::unknown(violation.to_string()))
            }
            CloseReason::SettingsTimeout => {
                self.shared.count(Refused::SettingsTimeout);
                Some(Status::deadline_exceeded("failed to read settings from server: timed out"))
            }
            CloseReason::Replaced => Some(Status::aborted("a newer tunnel of this machine took over")),
            CloseReason::Occupied => {
                self.shared.count(Refused::Occupied);
                Some(Status::already_exists("the machine has a tunnel from another address"))
            }
            CloseReason::Dismissed => Some(Status::aborted("the provider ended this tunnel")),
            CloseReason::Shutdown => Some(Status::unavailable("server is shutting down")),
        }
    }

    async fn serve(
        &mut self,
        mut inbound: Streaming<ServerToClient>,
        frames: mpsc::Sender<ClientToServer>,
    ) -> CloseReason {
        let (commands_in, mut commands) = mpsc::channel(COMMANDS_MAX);
        let mut settings_timeout = pin!(tokio::time::sleep(self.shared.limits.settings_timeout));
        let stopped = self.stop.token.clone();
        if let Some(revision) = self.caller.revision()
            && !self.publish(revision, commands_in.clone())
        {
            return CloseReason::Occupied;
        }
        loop {
            let wants_transmit = self.caller.wants_transmit();
            tokio::select! {
                // Cancel-safe: waiting for a token takes nothing.
                () = stopped.cancelled() => return self.stop.reason(),
                // Cancel-safe: the timer is pinned outside of the loop.
                () = &mut settings_timeout, if self.serial.is_none() => return CloseReason::SettingsTimeout,
                // Cancel-safe: `message` keeps a partial message in the stream itself.
                frame = inbound.message() => match frame {
                    Ok(Some(frame)) => match self.caller.receive(frame) {
                        Ok(Received::Opened(revision)) => {
                            if !self.publish(revision, commands_in.clone()) {
                                return CloseReason::Occupied;
                            }
                        }
                        Ok(Received::Completed(id, outcome)) => self.complete(id, outcome),
                        Ok(Received::Progress(_) | Received::Late) => {}
                        Err(violation) => return CloseReason::Violation(violation),
                    },
                    Ok(None) => return CloseReason::Ended,
                    Err(status) => return CloseReason::Disconnected(status.code()),
                },
                // Cancel-safe: a permit that is not taken goes back.
                permit = frames.reserve(), if wants_transmit => match permit {
                    Ok(permit) => if let Some(frame) = self.caller.transmit() { permit.send(frame) },
                    Err(_) => return CloseReason::Disconnected(tonic::Code::Cancelled),
                },
                // Cancel-safe: `recv` takes nothing unless it returns. `commands_in` keeps the channel open.
                Some(command) = commands.recv() => self.start(command),
                // Cancel-safe: `next` takes nothing unless it returns.
                Some(id) = self.gone.next(), if !self.gone.is_empty() => {
                    // False for a call that has ended, whose caller is gone because it has its answer.
                    if self.caller.cancel(id) {
                        self.waiting.remove(&id);
                    }
                },
            }
        }
    }

    /// Opens the tunnel, unless the machine has one from another address.
    fn publish(&mut self, revision: Revision, commands: mpsc::Sender<Command>) -> bool {
        self.serial = self.shared.publish(&self.machine, self.peer, commands, self.stop.clone());
        tracing::debug!(machine = %self.machine, peer = %self.peer, ?revision, opened = self.serial.is_some(), "tunnel ready");
        self.serial.is_some()
    }

    fn start(&mut self, command: Command) {
        let Command { method, request, answer, gone } = command;
        if answer.is_closed() {
            return;
        }
        match self.caller.call(method, Headers::default(), request) {
            Ok(id) => {
                self.waiting.insert(id, answer);
                self.gone.push(Box::pin(async move {
                    // Never a value: the sender is dropped.
                    let _ = gone.await;
                    id
                }));
            }
            // The caller may have left meanwhile.
            Err(refusal) => drop(answer.send(Err(Failed::NotStarted(refusal)))),
        }
    }

    fn complete(&mut self, id: StreamId, outcome: Result<Bytes, CallFailure>) {
        if let Err(CallFailure::Fault(fault)) = &outcome {
            self.shared.count(Refused::StreamFault);
            tracing::debug!(machine = %self.machine, %fault, "call failed");
        }
        if let Some(answer) = self.waiting.remove(&id) {
            // The caller may have left meanwhile.
            let _ = answer.send(outcome.map_err(Failed::Ended));
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if let Some(serial) = self.serial {
            let waiting = std::mem::take(&mut self.waiting);
            self.shared.withdraw(&self.machine, serial, self.reason, || drop(waiting));
        }
    }
}
