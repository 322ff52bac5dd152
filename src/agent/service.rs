//! Who may open a tunnel.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::extract::ConnectInfo;
use futures_util::{FutureExt as _, Stream};
use tokio::sync::{mpsc, oneshot};
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Request, Response, Status, Streaming};

use super::Refusal;
use super::registry::{Refused, Shared};
use super::serve::Tunnel;
use crate::machine::MachineId;
use crate::proto::tunnel::tunnel_service_server::TunnelService;
use crate::proto::tunnel::{ClientToServer, ServerToClient};
use crate::wire::tunnel::{HEADER_MACHINE_ID, HEADER_NEGOTIATE, NEGOTIATE_ON};

/// Frames that wait for the connection to take them; all others wait inside the state machine, which is bounded.
const FRAMES_MAX: usize = 16;

/// The gRPC service behind [`super::Tunnels::service`].
pub struct Endpoint {
    shared: Arc<Shared>,
}

impl Endpoint {
    pub(super) const fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn refuse(&self, reason: Refused, peer: Option<SocketAddr>, status: Status) -> Status {
        self.shared.count(reason);
        tracing::debug!(?reason, ?peer, error = status.message(), "tunnel refused");
        status
    }
}

/// The machine that a request's headers name.
fn machine_id(headers: &MetadataMap) -> Result<MachineId, (Refused, Status)> {
    let mut values = headers.get_all(HEADER_MACHINE_ID).iter();
    let invalid = |reason, text: &str| (reason, Status::invalid_argument(format!("{HEADER_MACHINE_ID}: {text}")));
    let value = values.next().ok_or_else(|| invalid(Refused::MissingMachineId, "the header is missing"))?;
    if values.next().is_some() {
        return Err(invalid(Refused::RepeatedMachineId, "there is more than one"));
    }
    let text = value.to_str().map_err(|_| invalid(Refused::InvalidMachineId, "not a text"))?;
    text.parse::<MachineId>().map_err(|error| invalid(Refused::InvalidMachineId, &error.to_string()))
}

#[tonic::async_trait]
impl TunnelService for Endpoint {
    type OpenTunnelStream = tokio_stream::Empty<Result<ServerToClient, Status>>;
    type OpenReverseTunnelStream = Frames;

    async fn open_tunnel(
        &self,
        request: Request<Streaming<ClientToServer>>,
    ) -> Result<Response<Self::OpenTunnelStream>, Status> {
        let status = Status::unimplemented("forward tunnels not supported");
        Err(self.refuse(Refused::ForwardTunnel, request.remote_addr(), status))
    }

    /// Answers with headers at once: the agent says nothing before it has them, so the settings are awaited by the
    /// tunnel's own task.
    async fn open_reverse_tunnel(
        &self,
        request: Request<Streaming<ServerToClient>>,
    ) -> Result<Response<Frames>, Status> {
        let peer = request
            .remote_addr()
            .or_else(|| request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(peer)| *peer));
        // A dual-stack listener shows IPv4 peers as mapped addresses, which would equal no address that booted.
        let peer = peer.map(|peer| SocketAddr::new(peer.ip().to_canonical(), peer.port()));
        let machine = machine_id(request.metadata()).map_err(|(reason, status)| self.refuse(reason, peer, status))?;
        let Some(peer) = peer else {
            let status = Status::internal("the server does not know its peer's address");
            return Err(self.refuse(Refused::UnknownPeer, None, status));
        };
        if self.shared.shutdown.is_cancelled() {
            let status = Status::unavailable("server is shutting down");
            return Err(self.refuse(Refused::Shutdown, Some(peer), status));
        }
        if let Err(Refusal { reason }) = self.shared.admission.admit(&machine, peer) {
            return Err(self.refuse(Refused::NotAdmitted, Some(peer), Status::permission_denied(reason)));
        }
        let Ok(permit) = self.shared.room.clone().try_acquire_owned() else {
            let status = Status::resource_exhausted("too many tunnels");
            return Err(self.refuse(Refused::TooManyTunnels, Some(peer), status));
        };

        let negotiates = request.metadata().get(HEADER_NEGOTIATE).is_some_and(|value| value == NEGOTIATE_ON);
        let (frames, outgoing) = mpsc::channel(FRAMES_MAX);
        let (end, ended) = oneshot::channel();
        let tunnel = Tunnel::new(self.shared.clone(), machine, peer, negotiates);
        let inbound = request.into_inner();
        self.shared.tasks.spawn(async move {
            let status = tunnel.run(inbound, frames).await;
            // The connection may be gone, and then nobody is told.
            let _ = end.send(status);
            drop(permit);
        });

        let mut response = Response::new(Frames { frames: outgoing, end: Some(ended) });
        response.metadata_mut().insert(HEADER_NEGOTIATE, MetadataValue::from_static(NEGOTIATE_ON));
        Ok(response)
    }
}

/// Frames towards one agent, then the tunnel's status.
///
/// The end comes before frames that still wait: they are for a tunnel that is over.
pub struct Frames {
    frames: mpsc::Receiver<ClientToServer>,
    /// `None` once it was seen.
    end: Option<oneshot::Receiver<Option<Status>>>,
}

impl Stream for Frames {
    type Item = Result<ClientToServer, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(end) = &mut self.end else { return Poll::Ready(None) };
        if let Poll::Ready(status) = end.poll_unpin(cx) {
            self.end = None;
            return Poll::Ready(status.ok().flatten().map(Err));
        }
        match ready!(self.frames.poll_recv(cx)) {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            // The task dropped its sender and is about to send the end, which wakes us.
            None => Poll::Pending,
        }
    }
}
