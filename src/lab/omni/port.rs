//! A listener that can be closed and opened again, and whose connections can be cut.
//!
//! Edge: it owns sockets and tasks.

use std::net::SocketAddr;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

/// A port cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// Somebody else has it, or it is not ours to take.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The server has been shut down.
    #[error("the server on {0} has been shut down")]
    ShutDown(SocketAddr),
}

/// A handle on the task that serves one port; clones share it. When the last one is gone the server ends.
#[derive(Clone, Debug)]
pub struct Port {
    address: SocketAddr,
    commands: mpsc::Sender<Command>,
}

/// A port that is taken and not served yet.
#[derive(Debug)]
pub struct Bound {
    address: SocketAddr,
    listener: TcpListener,
}

impl Bound {
    /// Where it will listen, with the real port.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `router` over HTTP/1.1 and HTTP/2 without TLS, in a task of its own.
    pub fn serve(self, router: Router) -> Port {
        let (commands, receiver) = mpsc::channel(8);
        tokio::spawn(run(self.address, self.listener, receiver, router));
        Port { address: self.address, commands }
    }
}

#[derive(Debug)]
enum Command {
    Cut(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
    Open(oneshot::Sender<Result<(), PortError>>),
    ShutDown(oneshot::Sender<()>),
}

impl Port {
    /// Takes `address`; port 0 is a free one. Nothing is accepted before [`Bound::serve`].
    ///
    /// # Errors
    ///
    /// [`PortError::Bind`].
    pub async fn bind(address: SocketAddr) -> Result<Bound, PortError> {
        let listener = bind(address).await?;
        let address = listener.local_addr().map_err(|source| PortError::Bind { address, source })?;
        Ok(Bound { address, listener })
    }

    /// Where it listens, with the real port.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection.
    pub async fn drop_connections(&self) {
        self.tell(Command::Cut).await;
    }

    /// Stops listening and cuts every connection.
    pub async fn close(&self) {
        self.tell(Command::Close).await;
    }

    /// Listens again.
    ///
    /// # Errors
    ///
    /// [`PortError`].
    pub async fn open(&self) -> Result<(), PortError> {
        self.tell(Command::Open).await.unwrap_or(Err(PortError::ShutDown(self.address)))
    }

    /// Ends the server, whoever else holds a handle.
    pub async fn shutdown(&self) {
        self.tell(Command::ShutDown).await;
    }

    async fn tell<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (done, answer) = oneshot::channel();
        self.commands.send(command(done)).await.ok()?;
        answer.await.ok()
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, PortError> {
    // tokio sets SO_REUSEADDR, so a port whose connections were just cut can be had again at once.
    TcpListener::bind(address).await.map_err(|source| PortError::Bind { address, source })
}

async fn run(address: SocketAddr, listener: TcpListener, mut commands: mpsc::Receiver<Command>, router: Router) {
    let mut listener = Some(listener);
    let mut connections = JoinSet::new();
    loop {
        // Each arm is cancel-safe: receiving, accepting and joining lose nothing when another arm wins.
        tokio::select! {
            command = commands.recv() => match command {
                None => break,
                Some(Command::Cut(done)) => {
                    connections.shutdown().await;
                    let _ = done.send(());
                }
                Some(Command::Close(done)) => {
                    listener = None;
                    connections.shutdown().await;
                    let _ = done.send(());
                }
                Some(Command::Open(done)) => {
                    let opened = match listener {
                        Some(_) => Ok(()),
                        None => bind(address).await.map(|opened| listener = Some(opened)),
                    };
                    let _ = done.send(opened);
                }
                Some(Command::ShutDown(done)) => {
                    drop(listener);
                    connections.shutdown().await;
                    let _ = done.send(());
                    return;
                }
            },
            accepted = accept(listener.as_ref()) => match accepted {
                Ok(stream) => drop(connections.spawn(serve(stream, router.clone()))),
                Err(error) => {
                    tracing::debug!(%address, %error, "connection not accepted");
                    // Out of descriptors, most likely; the pause keeps the loop from spinning meanwhile.
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => (),
        }
    }
    connections.shutdown().await;
}

async fn accept(listener: Option<&TcpListener>) -> std::io::Result<TcpStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

async fn serve(stream: TcpStream, router: Router) {
    let _ = stream.set_nodelay(true);
    let mut builder = Builder::new(TokioExecutor::new());
    // hyper's limits suit strangers: 200 streams per connection, and its end when a peer resets more than 20 of them at
    // once. A fleet of machines that shares a connection, and that drops its questions when it boots, does both.
    builder
        .http2()
        .max_concurrent_streams(10_000)
        .max_pending_accept_reset_streams(10_000)
        .max_local_error_reset_streams(10_000)
        .initial_stream_window_size(1 << 20);
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router)).await {
        tracing::debug!(error, "connection ended");
    }
}
