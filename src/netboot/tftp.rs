//! The TFTP service: boot files from memory, on one socket per address.
//!
//! The transfer engine is async-tftp behind [`Engine`]. It ignores a client's ERROR and holds the client's port until its
//! retries end, so both are kept short; and it knows no limits, so the gate in front of it does.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use async_tftp::packet;
use async_tftp::server::{Handler, TftpServerBuilder};
use async_trait::async_trait;
use bytes::{Buf, Bytes};
use futures_lite::{AsyncRead, io::Sink};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::boot::files::BootFiles;
use crate::netboot::Counters;
use crate::telemetry::Pulse;
use crate::time::Uptime;

/// Transfers that one address may have under way. EDK2 leaves one behind when it asks for the size first.
const TRANSFERS_PER_PEER: usize = 8;
/// Transfers that may be under way in all.
const TRANSFERS: usize = 512;

/// What kept the service from starting or going on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket could not be bound.
    #[error("TFTP socket {address} can't be bound")]
    Bind {
        /// Its address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The engine gave up on its socket.
    #[error("TFTP engine failed")]
    Engine(#[source] async_tftp::Error),
    /// A socket's task ended by itself.
    #[error("TFTP socket task ended")]
    TaskEnded(#[source] Option<tokio::task::JoinError>),
}

/// The bound sockets.
#[derive(Debug)]
pub struct Sockets(Vec<(std::net::UdpSocket, Pulse)>);

impl Sockets {
    /// Binds one socket per address. Name each address of ours rather than 0.0.0.0: from there the kernel chooses the source of
    /// the answers, and firmware drops those that come from another address than it asked.
    ///
    /// # Errors
    ///
    /// [`Error::Bind`] for the first that fails.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Self, Error> {
        let bind = |address: &SocketAddr| {
            let socket = std::net::UdpSocket::bind(address);
            let socket = socket.map_err(|source| Error::Bind { address: *address, source })?;
            Ok((socket, Pulse::new(Uptime::now())))
        };
        addresses.iter().map(bind).collect::<Result<_, _>>().map(Self)
    }

    /// Whether their loops turn.
    pub fn pulses(&self) -> Vec<Pulse> {
        self.0.iter().map(|(_, pulse)| pulse.clone()).collect()
    }

    /// Where they listen.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.0.iter().filter_map(|(socket, _)| socket.local_addr().ok()).collect()
    }
}

/// Something that runs TFTP transfers on one socket.
#[async_trait]
pub trait Engine: Send + Sync {
    /// Serves requests that arrive at `socket` until it fails.
    ///
    /// # Errors
    ///
    /// Always ends with one; the caller starts it again.
    async fn serve(&self, socket: std::net::UdpSocket) -> Result<(), Error>;
}

/// async-tftp with the limits that boot firmware bears.
#[derive(Clone, Debug)]
pub struct AsyncTftp {
    files: Arc<BootFiles>,
    gate: Gate,
    counters: Counters,
}

impl AsyncTftp {
    /// An engine that serves `files`.
    ///
    /// Counters: `tftp_requests`, `tftp_sent` (all octets were taken), `tftp_abandoned` (they were not, as with EDK2's
    /// question for the size), `tftp_unknown_name`, `tftp_busy`, `tftp_write_refused`.
    pub fn new(files: Arc<BootFiles>, counters: Counters) -> Self {
        Self { files, gate: Gate::default(), counters }
    }
}

#[async_trait]
impl Engine for AsyncTftp {
    async fn serve(&self, socket: std::net::UdpSocket) -> Result<(), Error> {
        let server = TftpServerBuilder::with_handler(Requests(self.clone()))
            .std_socket(socket)
            .map_err(Error::Engine)?
            // Firmware waits a second or more; a lost block should not cost it more than that.
            .timeout(Duration::from_secs(1))
            .ignore_client_timeout()
            .max_send_retries(4)
            // An Ethernet frame without fragments, options of tunnels included.
            .block_size_limit(1468)
            .window_size_limit(32)
            .build()
            .await
            .map_err(Error::Engine)?;
        server.serve().await.map_err(Error::Engine)
    }
}

/// Serves until `cancel`. An engine that fails is started again on the same socket after a second.
///
/// # Errors
///
/// [`Error::TaskEnded`] when a socket's task panicked.
pub async fn run(sockets: Sockets, engine: Arc<dyn Engine>, cancel: CancellationToken) -> Result<(), Error> {
    let mut tasks = JoinSet::new();
    for (socket, pulse) in sockets.0 {
        let serving = keep_serving(socket, Arc::clone(&engine), cancel.clone());
        tasks.spawn(async move { pulse.around(serving).await });
    }
    if tasks.is_empty() {
        cancel.cancelled().await;
    }
    while let Some(ended) = tasks.join_next().await {
        if !cancel.is_cancelled() {
            return Err(Error::TaskEnded(ended.err()));
        }
    }
    Ok(())
}

async fn keep_serving(socket: std::net::UdpSocket, engine: Arc<dyn Engine>, cancel: CancellationToken) {
    info!(address = ?socket.local_addr().ok(), "TFTP listens");
    loop {
        let ended = match socket.try_clone() {
            Ok(copy) => tokio::select! {
                // Transfers under way end with the engine: a machine that is cut off asks again.
                () = cancel.cancelled() => return,
                ended = engine.serve(copy) => ended,
            },
            Err(source) => Err(Error::Bind { address: SocketAddr::from(([0, 0, 0, 0], 0)), source }),
        };
        warn!(error = ?ended.err(), "TFTP engine ended, starts again");
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}

/// Counts transfers under way, per address and in all.
#[derive(Clone, Debug, Default)]
struct Gate(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One transfer's place.
#[derive(Debug)]
struct Place {
    gate: Gate,
    peer: IpAddr,
}

impl Gate {
    /// A place for `peer`; `None` when it, or the whole, has its fill.
    fn enter(&self, peer: IpAddr) -> Option<Place> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if places.values().sum::<usize>() >= TRANSFERS {
            return None;
        }
        let taken = places.entry(peer).or_default();
        if *taken >= TRANSFERS_PER_PEER {
            return None;
        }
        *taken += 1;
        Some(Place { gate: self.clone(), peer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut places = self.gate.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(taken) = places.get_mut(&self.peer) {
            *taken -= 1;
            if *taken == 0 {
                places.remove(&self.peer);
            }
        }
    }
}

/// Opens what clients ask for.
struct Requests(AsyncTftp);

impl Handler for Requests {
    type Reader = FileReader;
    type Writer = Sink;

    async fn read_req_open(
        &mut self,
        client: &SocketAddr,
        path: &Path,
    ) -> Result<(FileReader, Option<u64>), packet::Error> {
        let AsyncTftp { files, gate, counters } = &self.0;
        counters.count("tftp_requests");
        let name = path.to_string_lossy();
        let Some(octets) = files.get(&name) else {
            counters.count("tftp_unknown_name");
            debug!(%client, %name, "TFTP file unknown");
            // Cut short: a name may fill the request, and an ERROR must fit a frame.
            let shown: String = name.chars().filter(|char| !char.is_control()).take(100).collect();
            return Err(packet::Error::Msg(format!("file \"{shown}\" not found")));
        };
        let Some(place) = gate.enter(client.ip()) else {
            counters.count("tftp_busy");
            debug!(%client, %name, "TFTP busy");
            return Err(packet::Error::Msg("busy, ask again".to_owned()));
        };
        debug!(%client, %name, octets = octets.len(), "TFTP transfer starts");
        let size = octets.len() as u64;
        Ok((FileReader { octets, counters: counters.clone(), _place: place }, Some(size)))
    }

    async fn write_req_open(
        &mut self,
        client: &SocketAddr,
        _path: &Path,
        _size: Option<u64>,
    ) -> Result<Sink, packet::Error> {
        self.0.counters.count("tftp_write_refused");
        debug!(%client, "TFTP write refused");
        Err(packet::Error::Msg("read only".to_owned()))
    }
}

/// The rest of a file. Dropped by the engine when the transfer ends, one way or the other.
struct FileReader {
    octets: Bytes,
    counters: Counters,
    _place: Place,
}

impl AsyncRead for FileReader {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let len = buffer.len().min(self.octets.len());
        self.octets.copy_to_slice(&mut buffer[..len]);
        Poll::Ready(Ok(len))
    }
}

impl Drop for FileReader {
    fn drop(&mut self) {
        self.counters.count(if self.octets.is_empty() { "tftp_sent" } else { "tftp_abandoned" });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_eight_places_and_gets_them_back() {
        let (gate, peer) = (Gate::default(), IpAddr::from([127, 0, 0, 1]));
        let mut places: Vec<Place> = (0..TRANSFERS_PER_PEER).map(|_| gate.enter(peer).unwrap()).collect();
        assert!(gate.enter(peer).is_none());
        assert!(gate.enter(IpAddr::from([127, 0, 0, 2])).is_some());
        places.pop();
        assert!(gate.enter(peer).is_some());
        drop(places);
        assert!(gate.0.lock().unwrap().is_empty());
    }

    #[test]
    fn the_whole_has_its_limit() {
        let gate = Gate::default();
        let places: Vec<Option<Place>> = (0..TRANSFERS + 1)
            .map(|index| gate.enter(IpAddr::from([127, 1, (index >> 8) as u8, index as u8])))
            .collect();
        assert!(places[..TRANSFERS].iter().all(Option::is_some) && places[TRANSFERS].is_none());
    }
}
