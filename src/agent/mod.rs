//! The agent's reverse tunnel, provider side, and the five calls made through it.
//!
//! An edge: each tunnel is a task between a gRPC stream and a [`crate::wire::tunnel::Caller`], which holds the rules.
//! Agents dial in and name their machine; nothing proves the name but [`Admission`], so it decides who may. The newest
//! tunnel of a machine is the one that is used, and the older one is ended; from another address none is taken while it
//! stands.
//!
//! Source: contract agent-tunnel.md.

mod calls;
mod error;
mod events;
mod registry;
mod serve;
mod service;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub use calls::{IpmiAccess, PowerManagement};
pub use error::{CallError, Retry};
pub use events::{CloseReason, Events, TunnelEvent, TunnelState};
pub use registry::Refused;
pub use service::Endpoint;

use crate::machine::MachineId;
use crate::proto::tunnel::tunnel_service_server::TunnelServiceServer;
use crate::telemetry::Counters;
use registry::Shared;

/// Longest frame in either direction, octets. An agent's pieces are 16 KiB; the rest is room for errors with many words.
///
/// gRPC's usual 4 MiB would let each of 4096 tunnels hold that much of a frame that never ends.
const FRAME_MAX: usize = 256 << 10;

/// Decides whose tunnels are taken.
pub trait Admission: Send + Sync {
    /// Whether a tunnel that claims to be `machine`'s may come from `peer`. Asked once per tunnel, before anything is
    /// read from it; must not block.
    ///
    /// # Errors
    ///
    /// [`Refusal`], whose reason the agent is told.
    fn admit(&self, machine: &MachineId, peer: SocketAddr) -> Result<(), Refusal>;
}

/// Why a tunnel is not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In words for the agent's log and ours; must hold no secret.
    pub reason: Cow<'static, str>,
}

/// How much strangers may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most tunnels at once, those that are still opening among them.
    pub tunnels_max: usize,
    /// How long an agent may take to send its settings.
    pub settings_timeout: Duration,
    /// Rules within each tunnel.
    pub tunnel: crate::wire::tunnel::Limits,
}

impl Default for Limits {
    fn default() -> Self {
        Self { tunnels_max: 4096, settings_timeout: Duration::from_secs(10), tunnel: Default::default() }
    }
}

/// All tunnels of this provider. Clones are the same tunnels.
#[derive(Clone)]
pub struct Tunnels {
    shared: Arc<Shared>,
}

impl Tunnels {
    /// No tunnels yet; `admission` decides about each.
    pub fn new(admission: Arc<dyn Admission>) -> Self {
        Self::with_limits(admission, Limits::default())
    }

    /// As [`Self::new`], with other limits.
    pub fn with_limits(admission: Arc<dyn Admission>, limits: Limits) -> Self {
        Self::counting(admission, limits, Counters::new())
    }

    /// As [`Self::with_limits`]; what is refused is counted in `counters`, under [`Refused::counter`].
    pub fn counting(admission: Arc<dyn Admission>, limits: Limits, counters: Counters) -> Self {
        Self { shared: Arc::new(Shared::new(admission, limits, counters)) }
    }

    /// The gRPC service that agents dial, to be added to the routes of the API port.
    ///
    /// It needs the peer's address: tonic's own server provides it; under axum or hyper the connection's service must
    /// put `axum::extract::ConnectInfo<SocketAddr>` into each request's extensions.
    pub fn service(&self) -> TunnelServiceServer<Endpoint> {
        TunnelServiceServer::new(Endpoint::new(self.shared.clone()))
            .max_decoding_message_size(FRAME_MAX)
            .max_encoding_message_size(FRAME_MAX)
    }

    /// What opens and closes from now on; starts with an `Opened` for each tunnel that is open.
    pub fn events(&self) -> Events {
        self.shared.subscribe()
    }

    /// Whether a call to `machine` would find a tunnel.
    pub fn is_open(&self, machine: &MachineId) -> bool {
        self.peer(machine).is_some()
    }

    /// Where `machine`'s tunnel comes from.
    pub fn peer(&self, machine: &MachineId) -> Option<SocketAddr> {
        self.shared.peer(machine)
    }

    /// The machines with an open tunnel, in order.
    pub fn machines(&self) -> Vec<MachineId> {
        self.shared.machines()
    }

    /// How many tunnels were refused or ended by us, per reason.
    pub fn refused(&self) -> impl Iterator<Item = (Refused, u64)> + use<> {
        self.shared.refused()
    }

    /// Ends the tunnel of `machine`, for instance because it is admitted no longer. Its agent will dial again.
    pub fn close(&self, machine: &MachineId) {
        self.shared.close(machine);
    }

    /// Ends all tunnels, fails their calls, and takes no new ones. For shutdown.
    pub fn close_all(&self) {
        self.shared.close_all();
    }

    /// Returns when every tunnel's task has ended after [`Self::close_all`].
    pub async fn closed(&self) {
        self.shared.tasks.wait().await;
    }
}
