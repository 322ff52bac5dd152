//! Tunnels come and go.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use pilotlight::agent::{CallError, CloseReason, Limits, Refused, Retry, TunnelState};
use pilotlight::proto::tunnel::tunnel_service_client::TunnelServiceClient;
use pilotlight::wire::tunnel::Violation;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;
use tonic::metadata::MetadataValue;
use tower::ServiceExt as _;

use super::*;

#[tokio::test]
async fn response_headers_come_at_once_and_say_negotiate() {
    let provider = Provider::start().await;
    let raw = Raw::dial(provider.address, machine(1).as_str()).await.unwrap();
    assert_eq!(raw.headers.get("grpctunnel-negotiate").unwrap(), "on");
}

#[tokio::test]
async fn no_call_finds_a_tunnel_before_its_settings() {
    let mut provider = Provider::start().await;
    let raw = Raw::dial(provider.address, machine(1).as_str()).await.unwrap();
    assert!(!provider.tunnels.is_open(&machine(1)));
    let early = provider.tunnels.hello(&machine(1), PATIENCE).await.unwrap_err();
    assert!(matches!(early, CallError::NoTunnel { .. }) && early.retry() == Retry::OnceOpen);
    raw.send(-1, settings(&[0, 1, 7], 65_536)).await;
    assert!(matches!(provider.event(&machine(1)).await, TunnelState::Opened { peer } if peer.ip().is_loopback()));
    assert!(provider.tunnels.is_open(&machine(1)));
}

#[tokio::test]
async fn an_agent_that_sends_no_settings_is_ended() {
    let limits = Limits { settings_timeout: Duration::from_millis(50), ..Limits::default() };
    let provider = Provider::with_limits(limits).await;
    let mut raw = Raw::dial(provider.address, machine(1).as_str()).await.unwrap();
    assert_eq!(raw.outer_status().await.code(), Code::DeadlineExceeded);
    assert_eq!(provider.refused(Refused::SettingsTimeout), 1);
}

#[tokio::test]
async fn bad_settings_end_the_tunnel_with_unknown_and_their_text() {
    let provider = Provider::start().await;
    for (id, frame, text) in [
        (0, settings(&[0, 1], 9), "settings frame had bad stream ID (0)"),
        (-1, up::Frame::WindowUpdate(1), "first frame was not settings"),
        (-1, settings(&[], 9), "no supported protocol revision in common"),
        (-1, settings(&[5], 9), "no supported protocol revision in common"),
    ] {
        let mut raw = Raw::dial(provider.address, machine(1).as_str()).await.unwrap();
        raw.send(id, frame).await;
        let status = raw.outer_status().await;
        assert_eq!(status.code(), Code::Unknown);
        assert!(status.message().contains(text), "{status}");
    }
    assert_eq!(provider.refused(Refused::Violation), 4);
    assert!(provider.tunnels.machines().is_empty());
}

#[tokio::test]
async fn a_machine_id_must_be_one_uuid() {
    let provider = Provider::start().await;
    let dial = |values: Vec<MetadataValue<tonic::metadata::Ascii>>| {
        Raw::dial_with(provider.address, |headers| {
            for value in values {
                headers.append("machine-id", value);
            }
        })
    };
    let text = |text: &str| text.parse::<MetadataValue<_>>().unwrap();
    let id = text(machine(1).as_str());
    for (values, reason) in [
        (vec![], Refused::MissingMachineId),
        (vec![text("")], Refused::InvalidMachineId),
        (vec![text("00000000-0000-0000-0000-000000000000")], Refused::InvalidMachineId),
        (vec![MetadataValue::try_from(&b"\xff\xfe"[..]).unwrap()], Refused::InvalidMachineId),
        (vec![id.clone(), id.clone()], Refused::RepeatedMachineId),
    ] {
        let before = provider.refused(reason);
        let status = dial(values).await.err().unwrap();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(provider.refused(reason), before + 1);
    }
}

#[tokio::test]
async fn admission_and_the_limit_refuse_clearly() {
    let limits = Limits { tunnels_max: 1, ..Limits::default() };
    let mut provider = Provider::with_limits(limits).await;
    let status = Raw::dial(provider.address, machine(666).as_str()).await.err().unwrap();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "not in this rack"));
    let _first = provider.open(&machine(1)).await;
    let status = Raw::dial(provider.address, machine(2).as_str()).await.err().unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!((provider.refused(Refused::NotAdmitted), provider.refused(Refused::TooManyTunnels)), (1, 1));
}

#[tokio::test]
async fn forward_tunnels_are_unimplemented() {
    let provider = Provider::start().await;
    let mut client = TunnelServiceClient::connect(format!("http://{}", provider.address)).await.unwrap();
    let status = within(client.open_tunnel(tokio_stream::empty())).await.err().unwrap();
    assert_eq!((status.code(), status.message()), (Code::Unimplemented, "forward tunnels not supported"));
}

#[tokio::test]
async fn the_newest_tunnel_wins_and_the_older_ones_end_leaves_it() {
    let mut provider = Provider::start().await;
    let id = machine(1);
    let mut older = provider.open(&id).await;
    let mut newer = provider.open(&id).await;
    assert_eq!(older.outer_status().await.code(), Code::Aborted);
    assert!(provider.tunnels.is_open(&id));
    let tunnels = provider.tunnels.clone();
    let call = tokio::spawn(async move { tunnels.hello(&machine(1), PATIENCE).await });
    let (stream, method, _) = newer.accept().await;
    assert_eq!(method, "/management.AgentService/Hello");
    newer.answer(stream, b"").await;
    within(call).await.unwrap().unwrap();
    drop(newer);
    // Agents that vanish reset their stream or end it; either is a close.
    assert!(matches!(provider.event(&id).await, TunnelState::Closed { .. }));
    assert!(!provider.tunnels.is_open(&id));
}

#[tokio::test]
async fn while_a_tunnel_stands_no_other_address_gets_one() {
    let mut provider = Provider::start().await;
    let id = machine(1);
    let agent = provider.open(&id).await;
    let elsewhere = IpAddr::from([127, 0, 0, 2]);
    let mut stranger = Raw::dial_from(elsewhere, provider.address, id.as_str()).await.unwrap();
    stranger.send(-1, settings(&[0, 1], 65_536)).await;
    let status = stranger.outer_status().await;
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    assert_eq!(provider.refused(Refused::Occupied), 1);
    assert!(provider.tunnels.peer(&id).unwrap().ip() != elsewhere);
    // One that was let in before and waits with its settings is none the better for it.
    drop(agent);
    assert!(matches!(provider.event(&id).await, TunnelState::Closed { .. }));
    let mut early = Raw::dial_from(elsewhere, provider.address, id.as_str()).await.unwrap();
    let agent = provider.open(&id).await;
    early.send(-1, settings(&[0, 1], 65_536)).await;
    assert_eq!(early.outer_status().await.code(), Code::AlreadyExists);
    // And once the tunnel is gone, so is what it held.
    drop(agent);
    assert!(matches!(provider.event(&id).await, TunnelState::Closed { .. }));
    let moved = Raw::dial_from(elsewhere, provider.address, id.as_str()).await.unwrap();
    moved.send(-1, settings(&[0, 1], 65_536)).await;
    assert!(matches!(provider.event(&id).await, TunnelState::Opened { peer } if peer.ip() == elsewhere));
}

#[tokio::test]
async fn a_cut_tunnel_fails_its_calls_at_once_and_leaves_the_registry() {
    let mut provider = Provider::start().await;
    let id = machine(1);
    let mut raw = provider.open(&id).await;
    let tunnels = provider.tunnels.clone();
    let call = tokio::spawn(async move { tunnels.wipe_disks(&machine(1), true, PATIENCE * 100).await });
    raw.accept().await;
    drop(raw);
    assert!(matches!(within(call).await.unwrap(), Err(CallError::Closed { .. })));
    assert!(matches!(provider.event(&id).await, TunnelState::Closed { .. }));
    assert!(matches!(provider.tunnels.hello(&id, PATIENCE).await, Err(CallError::NoTunnel { .. })));
}

#[tokio::test]
async fn a_frame_for_a_stream_never_created_ends_the_tunnel_and_all_its_calls() {
    let mut provider = Provider::start().await;
    let id = machine(1);
    let mut raw = provider.open(&id).await;
    let tunnels = provider.tunnels.clone();
    let call = tokio::spawn(async move { tunnels.hello(&machine(1), PATIENCE).await });
    let (stream, ..) = raw.accept().await;
    raw.send(stream + 2, close(0, "")).await;
    let status = raw.outer_status().await;
    assert_eq!(status.code(), Code::Unknown);
    assert_eq!(status.message(), "received frame for stream ID 3: stream never created");
    assert!(matches!(within(call).await.unwrap(), Err(CallError::Closed { .. })));
    let reason = CloseReason::Violation(Violation::NeverCreated(3));
    assert_eq!(provider.event(&id).await, TunnelState::Closed { reason });
}

#[tokio::test]
async fn an_agents_half_close_and_a_dismissal_end_the_tunnel() {
    let mut provider = Provider::start().await;
    let id = machine(1);
    let Raw { to, mut from, .. } = provider.open(&id).await;
    drop(to);
    assert!(within(from.message()).await.unwrap().is_none(), "the outer status is OK");
    assert_eq!(provider.event(&id).await, TunnelState::Closed { reason: CloseReason::Ended });

    let mut raw = provider.open(&id).await;
    provider.tunnels.close(&id);
    assert_eq!(raw.outer_status().await.code(), Code::Aborted);
    assert_eq!(provider.event(&id).await, TunnelState::Closed { reason: CloseReason::Dismissed });
}

#[tokio::test]
async fn shutdown_ends_every_tunnel_and_takes_no_new_one() {
    let mut provider = Provider::start().await;
    let mut raw = provider.open(&machine(1)).await;
    let tunnels = provider.tunnels.clone();
    let call = tokio::spawn(async move { tunnels.hello(&machine(1), PATIENCE).await });
    raw.accept().await;
    provider.tunnels.close_all();
    assert!(matches!(within(call).await.unwrap(), Err(CallError::Closed { .. })));
    assert_eq!(raw.outer_status().await.code(), Code::Unavailable);
    within(provider.tunnels.closed()).await;
    assert_eq!(provider.event(&machine(1)).await, TunnelState::Closed { reason: CloseReason::Shutdown });
    let status = Raw::dial(provider.address, machine(2).as_str()).await.err().unwrap();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test]
async fn a_late_subscriber_starts_with_what_is_open() {
    let mut provider = Provider::start().await;
    let _raw = provider.open(&machine(1)).await;
    let mut events = provider.tunnels.events();
    let event = within(events.next()).await;
    assert!(event.machine == machine(1) && matches!(event.state, TunnelState::Opened { .. }));
}

/// `ServerToClient` with response headers of any octets.
#[derive(Clone, PartialEq, prost::Message)]
struct Unchecked {
    #[prost(int64, tag = "1")]
    stream_id: i64,
    #[prost(bytes = "vec", tag = "2")]
    response_headers: Vec<u8>,
}

#[tokio::test]
async fn headers_that_are_no_utf_8_or_too_long_cost_their_own_tunnel_alone() {
    let mut provider = Provider::start().await;
    let mut well = provider.open(&machine(1)).await;
    let not_utf_8 = b"\x0a\x04\x0a\x02\xff\xfe".to_vec();
    for (response_headers, code) in [(not_utf_8, Code::Internal), (vec![0; 1 << 20], Code::OutOfRange)] {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", provider.address)).unwrap();
        let mut client = tonic::client::Grpc::new(channel.connect().await.unwrap());
        client.ready().await.unwrap();
        let frames = tokio_stream::iter([Unchecked { stream_id: -1, response_headers }]);
        let mut request = Request::new(tokio_stream::StreamExt::chain(frames, tokio_stream::pending()));
        request.metadata_mut().insert("machine-id", machine(2).as_str().parse().unwrap());
        let path = http::uri::PathAndQuery::from_static("/grpctunnel.v1.TunnelService/OpenReverseTunnel");
        let codec = tonic_prost::ProstCodec::<Unchecked, ClientToServer>::default();
        let mut from = within(client.streaming(request, path, codec)).await.unwrap().into_inner();
        assert_eq!(within(from.message()).await.unwrap_err().code(), code);
    }
    assert_eq!(provider.tunnels.machines(), [machine(1)]);
    let tunnels = provider.tunnels.clone();
    let call = tokio::spawn(async move { tunnels.hello(&machine(1), PATIENCE).await });
    let (stream, ..) = well.accept().await;
    well.answer(stream, b"").await;
    within(call).await.unwrap().unwrap();
}

/// Copies octets between two sockets until `freeze`, and then keeps both open and silent.
async fn pass(client: TcpStream, provider: SocketAddr, freeze: CancellationToken) {
    let mut client = client;
    let mut server = TcpStream::connect(provider).await.unwrap();
    tokio::select! {
        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
        () = freeze.cancelled() => std::future::pending().await,
    }
}

#[tokio::test]
async fn a_dead_peer_is_found_by_keepalive() {
    let keepalive = (Duration::from_millis(500), Duration::from_secs(1));
    let mut provider = Provider::with_keepalive(Limits::default(), Some(keepalive)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let through = listener.local_addr().unwrap();
    let (freeze, address) = (CancellationToken::new(), provider.address);
    let frozen = freeze.clone();
    let proxy = tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        pass(client, address, frozen).await;
    });
    let raw = Raw::dial(through, machine(1).as_str()).await.unwrap();
    raw.send(-1, settings(&[0, 1], 65_536)).await;
    assert!(matches!(provider.event(&machine(1)).await, TunnelState::Opened { .. }));
    freeze.cancel();
    assert!(matches!(provider.event(&machine(1)).await, TunnelState::Closed { .. }));
    // Both sockets were open all the while.
    assert!(!proxy.is_finished());
    proxy.abort();
    drop(raw);
}

#[tokio::test]
async fn one_port_serves_http_1_and_tunnels_and_the_peer_comes_from_axum() {
    let tunnels = Tunnels::new(std::sync::Arc::new(Doorman));
    let routes = tonic::service::Routes::new(tunnels.service()).into_axum_router();
    let routes = routes.route("/healthz", axum::routing::get(|| async { "fine" }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        loop {
            let (socket, peer) = listener.accept().await.unwrap();
            let routes = routes.clone();
            let service = hyper::service::service_fn(move |mut request: http::Request<hyper::body::Incoming>| {
                request.extensions_mut().insert(axum::extract::ConnectInfo(peer));
                routes.clone().oneshot(request.map(axum::body::Body::new))
            });
            tokio::spawn(async move {
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                let _ = builder.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    let mut events = tunnels.events();
    let raw = Raw::dial(address, machine(1).as_str()).await.unwrap();
    raw.send(-1, settings(&[0, 1], 65_536)).await;
    let event = within(events.next()).await;
    assert!(matches!(event.state, TunnelState::Opened { peer } if peer.ip().is_loopback()));
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    within(socket.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("fine"), "{answer}");
    server.abort();
}
