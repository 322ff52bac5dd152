//! Serves a router over HTTP/1.1 and cleartext HTTP/2 on one port, with the limits that a provisioning network needs.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use http::Version;
use http::header::CONTENT_TYPE;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpConnectInfo;
use tower::ServiceExt;
use tracing::{debug, info, warn};

/// Connections at a time; a further one waits in the kernel's queue.
const CONNECTIONS: usize = 1024;
/// Connections over TLS at a time: each holds some 50 KiB, in a service whose memory is limited.
const TLS_CONNECTIONS: usize = 128;
/// How long a client may take to send a request's header, or for the handshake of TLS.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long connections may take to end when the service does.
const DRAIN: Duration = Duration::from_secs(5);

/// What handlers find with a request that came over TLS.
#[derive(Clone, Debug)]
pub struct OverTls {
    /// The fingerprint of the certificate that the client saw.
    pub fingerprint: Arc<str>,
}

/// How connections are encrypted.
#[derive(Clone)]
struct Tls {
    acceptor: TlsAcceptor,
    over: OverTls,
}

/// Serves `router` on `listener` until `cancel`, then waits up to five seconds for requests under way.
///
/// Handlers find the peer as axum's [`ConnectInfo<SocketAddr>`] and as tonic's [`TcpConnectInfo`]. HTTP/2 connections are
/// pinged every 20 seconds, so that an agent that lost its power is noticed.
pub async fn serve(listener: TcpListener, router: Router, cancel: CancellationToken) {
    run(listener, None, CONNECTIONS, router, cancel).await;
}

/// [`serve`], over TLS. Handlers find [`OverTls`] besides.
pub async fn serve_tls(
    listener: TcpListener,
    config: Arc<ServerConfig>,
    over: OverTls,
    router: Router,
    cancel: CancellationToken,
) {
    let tls = Tls { acceptor: TlsAcceptor::from(config), over };
    run(listener, Some(tls), TLS_CONNECTIONS, router, cancel).await;
}

async fn run(listener: TcpListener, tls: Option<Tls>, most: usize, router: Router, cancel: CancellationToken) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(10))
        .max_concurrent_streams(128);
    let builder = Arc::new(builder);
    let permits = Arc::new(Semaphore::new(most));
    let mut connections = JoinSet::new();
    info!(address = ?listener.local_addr().ok(), "HTTP listens");
    loop {
        let accepted = tokio::select! {
            // Cancel-safe: a permit not taken is given back, a connection not accepted stays in the queue.
            () = cancel.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept(&listener, &permits) => accepted,
        };
        match accepted {
            Ok((stream, peer, permit)) => {
                let (builder, router, cancel, tls) =
                    (Arc::clone(&builder), router.clone(), cancel.clone(), tls.clone());
                connections.spawn(async move {
                    let info = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: Some(peer) };
                    match tls {
                        None => connection(&builder, stream, (peer, info, None), router, cancel).await,
                        Some(Tls { acceptor, over }) => match timeout(HEADER_TIMEOUT, acceptor.accept(stream)).await {
                            Ok(Ok(stream)) => {
                                connection(&builder, stream, (peer, info, Some(over)), router, cancel).await;
                            }
                            Ok(Err(error)) => debug!(%peer, %error, "TLS handshake failed"),
                            Err(_) => debug!(%peer, "TLS handshake not finished"),
                        },
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: those that end make room.
                warn!(%error, "HTTP accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    let drained = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        connections.shutdown().await;
    }
}

/// One router of HTTP routes and gRPC services: HTTP/2 with a content type of `application/grpc…` is gRPC, all else is not.
///
/// Merging them instead would let tonic's fallback answer every unknown path with 200.
///
/// Source: contract section 5.1.
pub fn beside_grpc(http: Router, grpc: Router) -> Router {
    Router::new().fallback(move |request: axum::extract::Request| {
        let content_type = request.headers().get(CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
        let is_grpc = request.version() == Version::HTTP_2 && content_type.starts_with(b"application/grpc");
        if is_grpc { grpc.clone() } else { http.clone() }.oneshot(request)
    })
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok((stream, peer, permit))
}

async fn connection(
    builder: &auto::Builder<TokioExecutor>,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    (peer, info, over): (SocketAddr, TcpConnectInfo, Option<OverTls>),
    router: Router,
    cancel: CancellationToken,
) {
    let asked = Arc::new(AtomicBool::new(false));
    let service = {
        let asked = Arc::clone(&asked);
        hyper::service::service_fn(move |mut request: http::Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            request.extensions_mut().insert(ConnectInfo(peer));
            request.extensions_mut().insert(info.clone());
            if let Some(over) = &over {
                request.extensions_mut().insert(over.clone());
            }
            router.clone().oneshot(request.map(axum::body::Body::new))
        })
    };
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    // The header timeout starts with HTTP/1.1; a client that does not even say which version it speaks is met here.
    let silent = tokio::time::sleep(HEADER_TIMEOUT);
    tokio::pin!(silent);
    let mut waiting = true;
    let mut draining = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!(%peer, error, "HTTP connection ended");
                }
                return;
            }
            () = silent.as_mut(), if waiting => {
                if !asked.load(Ordering::Relaxed) {
                    debug!(%peer, "HTTP connection without a request closed");
                    return;
                }
                waiting = false;
            }
            () = cancel.cancelled(), if !draining => {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
