//! A simulated agent: dials a provider, ours or the Go one, and answers its calls from simulated hardware.
//!
//! An edge: one task per tunnel between a gRPC stream and a [`Responder`], which holds the rules. Nothing here is
//! global, so hundreds of agents fit in a process, and one fits in a machine's PID 1.
//!
//! Source: contract agent-tunnel.md, sections 2 and 3.

mod address;
mod calls;

use std::net::{IpAddr, Ipv4Addr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Streaming};

pub use address::{InvalidAddress, Target};

use crate::machine::MachineId;
use crate::proto::tunnel::tunnel_service_client::TunnelServiceClient;
use crate::proto::tunnel::{ClientToServer, ServerToClient};
use crate::secret::Secret;
use crate::wire::tunnel::{
    Accepted, HEADER_MACHINE_ID, HEADER_NEGOTIATE, Limits, NEGOTIATE_ON, Responder, StreamId, Violation,
};
use calls::{Flights, METHODS};

/// How long Talos waits before it starts an ended agent again (contract 3.5).
pub const RESTART_DELAY: Duration = Duration::from_secs(5);
/// Frames that wait for the connection; all others wait inside the state machine.
const FRAMES_MAX: usize = 16;
/// HTTP/2 windows of the connection and its one stream, octets: the calls are tiny and the agents many.
const HTTP2_WINDOW: u32 = 65_535;
/// How long dialling, and then the provider's response headers, may take. The real agent would wait for ever.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// A BMC's LAN interface and its users, as the local IPMI device shows them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BmcLan {
    /// IPv4 address.
    pub address: Ipv4Addr,
    /// UDP port.
    pub port: u16,
    /// Names of all slots; an empty slot has an empty name.
    pub users: Vec<String>,
}

/// The machine around an agent.
#[async_trait::async_trait]
pub trait Hardware: Send + Sync + 'static {
    /// Wipes all disks, with zeroes or just their signatures.
    ///
    /// # Errors
    ///
    /// What Talos would say; goes to the provider as code 2 after "failed to wipe disks: ".
    async fn wipe(&self, zeroes: bool) -> Result<(), String>;

    /// The BMC; `None` for a machine in test mode, which is managed by the API.
    async fn bmc(&self) -> Option<BmcLan>;

    /// Makes `name` an administrator of the BMC. Not asked in test mode.
    ///
    /// # Errors
    ///
    /// What the agent would say, such as "no slot available for user"; goes out as code 2.
    async fn set_bmc_user(&self, name: &str, password: &Secret<String>) -> Result<(), String>;

    /// Begins a power cycle and returns: Talos answers before it goes down.
    async fn reboot(&self);
}

/// Why an agent's process would have exited with an error.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// `metal.provider.address` is no address that the real agent could dial.
    #[error("provider address {address:?}")]
    Address {
        /// The argument.
        address: String,
        /// What is wrong with it.
        #[source]
        source: InvalidAddress,
    },
    /// The address asks for TLS.
    #[error("{address}: the simulated agent does not speak TLS; give it the provider's plaintext port")]
    TlsUnsupported {
        /// The argument.
        address: String,
    },
    /// Nobody listens there.
    #[error("dialling {address}")]
    Dial {
        /// Host and port.
        address: String,
        /// What tonic says.
        #[source]
        source: tonic::transport::Error,
    },
    /// Dialling, or the provider's answer, took too long.
    #[error("{address} did not answer in time")]
    OpenTimeout {
        /// Host and port.
        address: String,
    },
    /// The provider refused the tunnel.
    #[error("{address} refused the tunnel")]
    Refused {
        /// Host and port.
        address: String,
        /// The provider's status.
        #[source]
        source: Box<tonic::Status>,
    },
    /// The tunnel broke, or the provider ended it with an error.
    #[error("the tunnel to {address} ended")]
    Ended {
        /// Host and port.
        address: String,
        /// The outer status.
        #[source]
        source: Box<tonic::Status>,
    },
    /// The provider broke the tunnel's rules.
    #[error("{address} misbehaved")]
    Violation {
        /// Host and port.
        address: String,
        /// Which rule.
        #[source]
        source: Violation,
    },
}

/// Lives one tunnel's life for machine `id`: dials `address` (a `metal.provider.address`), from `local_bind` if given,
/// and answers calls until the provider ends the tunnel well or `cancel` fires.
///
/// # Errors
///
/// [`AgentError`]. A real agent's process exits then, and Talos starts it again.
pub async fn run(
    address: &str,
    id: &MachineId,
    hardware: Arc<dyn Hardware>,
    local_bind: Option<IpAddr>,
    cancel: CancellationToken,
) -> Result<(), AgentError> {
    // Cancel-safe: an agent that is cancelled drops both halves of its tunnel, as a dying process does.
    tokio::select! {
        ended = live(address, id, hardware, local_bind) => ended,
        () = cancel.cancelled() => Ok(()),
    }
}

/// As [`run`], over and over, `delay` apart ([`RESTART_DELAY`] on a real machine), until `cancel` fires.
pub async fn run_forever(
    address: &str,
    id: &MachineId,
    hardware: Arc<dyn Hardware>,
    local_bind: Option<IpAddr>,
    delay: Duration,
    cancel: CancellationToken,
) {
    while !cancel.is_cancelled() {
        match run(address, id, hardware.clone(), local_bind, cancel.clone()).await {
            Ok(()) => tracing::debug!(machine = %id, "agent ended"),
            Err(error) => tracing::debug!(machine = %id, error = &error as &dyn std::error::Error, "agent ended"),
        }
        // Cancel-safe: neither arm takes anything.
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = cancel.cancelled() => {}
        }
    }
}

async fn live(
    address: &str,
    id: &MachineId,
    hardware: Arc<dyn Hardware>,
    local_bind: Option<IpAddr>,
) -> Result<(), AgentError> {
    let invalid = |source| AgentError::Address { address: address.to_owned(), source };
    let target: Target = address.parse().map_err(invalid)?;
    if target.tls {
        return Err(AgentError::TlsUnsupported { address: address.to_owned() });
    }
    let address = target.authority;
    let dial = |source| AgentError::Dial { address: address.clone(), source };
    let late = |_| AgentError::OpenTimeout { address: address.clone() };

    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(dial)?
        .local_address(local_bind)
        .buffer_size(4)
        .initial_stream_window_size(HTTP2_WINDOW)
        .initial_connection_window_size(HTTP2_WINDOW);
    let channel = timeout(OPEN_TIMEOUT, endpoint.connect()).await.map_err(late)?.map_err(dial)?;

    let (frames, outgoing) = mpsc::channel(FRAMES_MAX);
    let mut request = Request::new(ReceiverStream::new(outgoing));
    request.metadata_mut().insert(HEADER_NEGOTIATE, MetadataValue::from_static(NEGOTIATE_ON));
    let name = id.as_str().parse().expect("a UUID is a header value");
    request.metadata_mut().insert(HEADER_MACHINE_ID, name);
    let mut client = TunnelServiceClient::new(channel);
    // Resolves at the response headers: the agent sends nothing before it has them.
    let response = timeout(OPEN_TIMEOUT, client.open_reverse_tunnel(request))
        .await
        .map_err(late)?
        .map_err(|status| AgentError::Refused { address: address.clone(), source: Box::new(status) })?;
    let negotiates = response.metadata().get(HEADER_NEGOTIATE).is_some_and(|value| value == NEGOTIATE_ON);

    serve(negotiates, hardware, response.into_inner(), frames).await.map_err(|end| match end {
        End::Status(status) => AgentError::Ended { address: address.clone(), source: status },
        End::Violation(source) => AgentError::Violation { address: address.clone(), source },
    })
}

/// How a tunnel ends badly.
enum End {
    Status(Box<tonic::Status>),
    Violation(Violation),
}

async fn serve(
    negotiates: bool,
    hardware: Arc<dyn Hardware>,
    mut inbound: Streaming<ClientToServer>,
    frames: mpsc::Sender<ServerToClient>,
) -> Result<(), End> {
    let mut responder = Responder::new(negotiates, METHODS, Limits::default());
    let mut flights = Flights::default();
    let mut running = FuturesUnordered::new();
    let mut deadlines = FuturesUnordered::new();
    loop {
        let wants_transmit = responder.wants_transmit();
        tokio::select! {
            // Cancel-safe: `message` keeps a partial message in the stream itself.
            frame = inbound.message() => match frame {
                Ok(Some(frame)) => match responder.receive(frame) {
                    Ok(Accepted::Start(request)) => {
                        if let Some(after) = request.timeout {
                            let id = request.id;
                            deadlines.push(tokio::time::sleep(after).map(move |()| id).boxed());
                        }
                        if let Some(flight) = flights.join(request.id, request.method, &request.message) {
                            let hardware = hardware.clone();
                            running.push(async move {
                                let run = calls::run(&*hardware, request.method, request.message);
                                // A panic in simulated hardware costs its call and nothing else.
                                let outcome = AssertUnwindSafe(run).catch_unwind().await;
                                (flight, outcome.unwrap_or_else(|_| Err((Code::Internal, "panic".to_owned()))))
                            });
                        }
                    }
                    Ok(Accepted::Cancelled(id)) => {
                        for sharer in flights.leave(id) {
                            responder.respond(sharer, Err((Code::Unknown, "context canceled".to_owned())));
                        }
                    }
                    Ok(Accepted::Progress(_) | Accepted::Rejected(..) | Accepted::Late) => {}
                    Err(violation) => return Err(End::Violation(violation)),
                },
                Ok(None) => return Ok(()),
                Err(status) => return Err(End::Status(Box::new(status))),
            },
            // Cancel-safe: a permit that is not taken goes back.
            permit = frames.reserve(), if wants_transmit => match permit {
                Ok(permit) => if let Some(frame) = responder.transmit() { permit.send(frame) },
                // The transport is gone; `inbound` tells why.
                Err(_) => return inbound.message().await.map(drop).map_err(|status| End::Status(Box::new(status))),
            },
            // Cancel-safe: `next` takes nothing unless it returns.
            Some((flight, outcome)) = running.next(), if !running.is_empty() => {
                let outcome: Result<Bytes, (Code, String)> = outcome;
                for id in flights.land(flight) {
                    responder.respond(id, outcome.clone());
                }
            },
            // Cancel-safe: `next` takes nothing unless it returns.
            Some(id) = deadlines.next(), if !deadlines.is_empty() => {
                let id: StreamId = id;
                if responder.respond(id, Err((Code::Unknown, "context deadline exceeded".to_owned()))) {
                    for sharer in flights.leave(id) {
                        responder.respond(sharer, Err((Code::Unknown, "context deadline exceeded".to_owned())));
                    }
                }
            },
        }
    }
}
