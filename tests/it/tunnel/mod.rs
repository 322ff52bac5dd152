//! The agent's reverse tunnel over loopback: our provider's side against a scripted agent and the simulated one.
//! The rows are those of contract agent-tunnel.md section 6.2.

mod calls;
mod opening;
pub mod simulated;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use pilotlight::agent::{Admission, Events, Limits, Refusal, Refused, TunnelState, Tunnels};
use pilotlight::machine::MachineId;
use pilotlight::proto::tunnel::tunnel_service_client::TunnelServiceClient;
use pilotlight::proto::tunnel::{
    ClientToServer, CloseStream, MessageData, Metadata, RpcStatus, ServerToClient, Settings, client_to_server as down,
    server_to_client as up,
};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

/// Longer than anything here takes; a wait that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it does not take this long")
}

pub fn machine(number: u32) -> MachineId {
    format!("4c4c4544-0042-3510-8054-b7c0{number:08x}").parse().unwrap()
}

/// Admits all machines but number 666.
pub struct Doorman;

impl Admission for Doorman {
    fn admit(&self, id: &MachineId, _peer: SocketAddr) -> Result<(), Refusal> {
        if *id == machine(666) { Err(Refusal { reason: "not in this rack".into() }) } else { Ok(()) }
    }
}

/// A provider on a loopback port; the server stops when this is dropped.
pub struct Provider {
    pub tunnels: Tunnels,
    pub events: Events,
    pub address: SocketAddr,
    _server: DropGuard,
}

impl Provider {
    pub async fn start() -> Self {
        Self::with_limits(Limits::default()).await
    }

    pub async fn with_limits(limits: Limits) -> Self {
        Self::with_keepalive(limits, None).await
    }

    /// `keepalive` is how often a silent connection is asked, and how long it may take to answer.
    pub async fn with_keepalive(limits: Limits, keepalive: Option<(Duration, Duration)>) -> Self {
        let tunnels = Tunnels::with_limits(Arc::new(Doorman), limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(keepalive.map(|(interval, _)| interval))
            .http2_keepalive_timeout(keepalive.map(|(_, timeout)| timeout))
            .add_service(tunnels.service())
            .serve_with_incoming(TcpListenerStream::new(listener));
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = server => ended.unwrap(),
                () = stopped.cancelled() => {}
            }
        });
        let events = tunnels.events();
        Self { tunnels, events, address, _server: stop.drop_guard() }
    }

    pub fn refused(&self, reason: Refused) -> u64 {
        self.tunnels.refused().find(|(other, _)| *other == reason).unwrap().1
    }

    /// The next event, which must be about `id`.
    pub async fn event(&mut self, id: &MachineId) -> TunnelState {
        let event = within(self.events.next()).await;
        assert_eq!(event.machine, *id);
        event.state
    }

    /// A scripted agent whose tunnel is open.
    pub async fn open(&mut self, id: &MachineId) -> Raw {
        let raw = Raw::dial(self.address, id.as_str()).await.unwrap();
        raw.send(-1, settings(&[0, 1], 65_536)).await;
        assert!(matches!(self.event(id).await, TunnelState::Opened { .. }));
        raw
    }
}

/// A scripted agent: the test writes its frames.
pub struct Raw {
    pub to: mpsc::Sender<ServerToClient>,
    pub from: Streaming<ClientToServer>,
    pub headers: tonic::metadata::MetadataMap,
}

impl Raw {
    pub async fn dial(address: SocketAddr, id: &str) -> Result<Self, Status> {
        Self::dial_with(address, |headers| {
            headers.insert("grpctunnel-negotiate", "on".parse().unwrap());
            headers.insert("machine-id", id.parse().unwrap());
        })
        .await
    }

    /// As [`Self::dial`], from an address of this machine's own choice.
    pub async fn dial_from(source: IpAddr, address: SocketAddr, id: &str) -> Result<Self, Status> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap().local_address(Some(source));
        Self::open_with(TunnelServiceClient::new(endpoint.connect().await.unwrap()), |headers| {
            headers.insert("grpctunnel-negotiate", "on".parse().unwrap());
            headers.insert("machine-id", id.parse().unwrap());
        })
        .await
    }

    /// Resolves once the response headers are here; no frame has been sent then.
    pub async fn dial_with(
        address: SocketAddr,
        headers: impl FnOnce(&mut tonic::metadata::MetadataMap),
    ) -> Result<Self, Status> {
        Self::open_with(TunnelServiceClient::connect(format!("http://{address}")).await.unwrap(), headers).await
    }

    async fn open_with(
        mut client: TunnelServiceClient<Channel>,
        headers: impl FnOnce(&mut tonic::metadata::MetadataMap),
    ) -> Result<Self, Status> {
        let (to, outgoing) = mpsc::channel(256);
        let mut request = Request::new(ReceiverStream::new(outgoing));
        headers(request.metadata_mut());
        let response = within(client.open_reverse_tunnel(request)).await?;
        let headers = response.metadata().clone();
        Ok(Self { to, from: response.into_inner(), headers })
    }

    pub async fn send(&self, stream_id: i64, frame: up::Frame) {
        self.to.send(ServerToClient { stream_id, frame: Some(frame) }).await.unwrap();
    }

    pub async fn receive(&mut self) -> (i64, down::Frame) {
        let frame = within(self.from.message()).await.unwrap().expect("the tunnel is open");
        (frame.stream_id, frame.frame.unwrap())
    }

    /// Reads until a call's request is complete; returns its stream and the request's octets.
    pub async fn accept(&mut self) -> (i64, String, Vec<u8>) {
        let (id, frame) = self.receive().await;
        let down::Frame::NewStream(new) = frame else { panic!("want new_stream, got {frame:?}") };
        let mut request = Vec::new();
        loop {
            match self.receive().await {
                (same, down::Frame::RequestMessage(first)) if same == id => request.extend_from_slice(&first.data),
                (same, down::Frame::MoreRequestData(more)) if same == id => request.extend_from_slice(&more),
                (same, down::Frame::HalfClose(())) if same == id => return (id, new.method_name, request),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Answers a call well, as the Go agent does.
    pub async fn answer(&self, id: i64, message: &[u8]) {
        self.send(id, up::Frame::ResponseHeaders(Metadata::default())).await;
        self.send(id, whole(message)).await;
        self.send(id, close(0, "")).await;
    }

    /// The outer status, once the provider has ended the tunnel.
    pub async fn outer_status(&mut self) -> Status {
        loop {
            match within(self.from.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

pub fn settings(revisions: &[i32], window: u32) -> up::Frame {
    up::Frame::Settings(Settings { supported_protocol_revisions: revisions.to_vec(), initial_window_size: window })
}

pub fn whole(message: &[u8]) -> up::Frame {
    up::Frame::ResponseMessage(MessageData { size: message.len() as u32, data: message.to_vec().into() })
}

pub fn close(code: i32, text: &str) -> up::Frame {
    let status = (code != 0).then(|| RpcStatus { code, message: text.into(), details: vec![] });
    up::Frame::CloseStream(CloseStream { response_trailers: Some(Metadata::default()), status })
}
