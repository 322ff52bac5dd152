//! One port's packet sockets, and the task that drives its [`Port`].
//!
//! An edge, because it owns sockets and a timer. The port decides.

use std::io::{self, Read, Write};
use std::time::Duration;

use socket2::{SockFilter, Socket};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::frame::{Arp, CLIENT_PORT, decode_dhcp};
use super::port::{Facts, Note, Output, Port};
use crate::sys::packet;
use crate::time::Uptime;

/// EtherTypes of the two sockets.
const IPV4: u16 = 0x0800;
const ARP: u16 = 0x0806;
/// The longest frame that is read; a DHCP message has at most 1500 octets with its headers.
const FRAME: usize = 1514;
/// The pause after the interface refused a frame: it goes down, or its queue is full.
const REFUSED: Duration = Duration::from_millis(200);

/// What the service tells a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The link came up or went down.
    Carrier(bool),
}

/// What a port tells the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The link's number.
    pub index: u32,
    /// What the port has come to.
    pub facts: Facts,
    /// What people want to know, oldest first.
    pub notes: Vec<Note>,
}

/// The sockets of one link.
#[derive(Debug)]
pub struct Sockets {
    arp: AsyncFd<Socket>,
    dhcp: AsyncFd<Socket>,
}

impl Sockets {
    /// Opens them.
    ///
    /// # Errors
    ///
    /// The kernel's: without CAP_NET_RAW, or when the link is gone.
    pub fn open(index: u32) -> io::Result<Self> {
        #[allow(deprecated, reason = "its successor is the same as an unsafe function; a Socket keeps its descriptor")]
        let open = |protocol, filter: &[SockFilter]| AsyncFd::new(packet::open(index, protocol, filter)?);
        Ok(Self { arp: open(ARP, &[])?, dhcp: open(IPV4, &dhcp_filter())? })
    }
}

/// Lets unfragmented UDP to port 68 through, and nothing else: all other IPv4 traffic of the box passes here too.
fn dhcp_filter() -> [SockFilter; 9] {
    // Offsets count from the Ethernet header; the opcodes are those of bpf(4).
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_HALF_AFTER_X: u16 = 0x48;
    const LOAD_IP_HEADER_LENGTH: u16 = 0xb1;
    const IF_EQUAL: u16 = 0x15;
    const IF_ANY_BIT: u16 = 0x45;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_BYTE, 0, 0, 23),
        SockFilter::new(IF_EQUAL, 0, 6, 17),
        SockFilter::new(LOAD_HALF, 0, 0, 20),
        SockFilter::new(IF_ANY_BIT, 4, 0, 0x3fff),
        SockFilter::new(LOAD_IP_HEADER_LENGTH, 0, 0, 14),
        SockFilter::new(LOAD_HALF_AFTER_X, 0, 0, 16),
        SockFilter::new(IF_EQUAL, 0, 1, CLIENT_PORT as u32),
        SockFilter::new(RETURN, 0, 0, FRAME as u32),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

/// Drives `port` until `commands` ends or the link is gone.
pub async fn run(
    index: u32,
    mut port: Port,
    sockets: Sockets,
    mut commands: mpsc::Receiver<Command>,
    reports: mpsc::Sender<Report>,
) {
    let mut told = None;
    let (mut arp, mut dhcp) = ([0; FRAME], [0; FRAME]);
    loop {
        let due = port.deadline();
        // All are cancel-safe: what is not read stays in its socket or channel.
        let outputs = tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Carrier(up)) => port.on_carrier(Uptime::now(), up),
                None => return,
            },
            () = sleep_until(due) => port.on_deadline(Uptime::now()),
            read = receive(&sockets.arp, &mut arp) => match read {
                Ok(len) => Arp::decode(&arp[..len]).map_or_else(Vec::new, |packet| port.on_arp(Uptime::now(), &packet)),
                Err(error) if lasts(&error) => return,
                Err(_) => Vec::new(),
            },
            read = receive(&sockets.dhcp, &mut dhcp) => match read {
                Ok(len) => decode_dhcp(&dhcp[..len])
                    .map_or_else(Vec::new, |(station, message)| port.on_dhcp(Uptime::now(), station, &message)),
                Err(error) if lasts(&error) => return,
                Err(_) => Vec::new(),
            },
        };
        let mut notes = Vec::new();
        for output in outputs {
            match output {
                Output::Frame(octets) => send(&sockets.arp, &octets).await,
                Output::Note(note) => notes.push(note),
            }
        }
        let facts = port.facts();
        if !notes.is_empty() || told.as_ref() != Some(&facts) {
            told = Some(facts.clone());
            if reports.send(Report { index, facts, notes }).await.is_err() {
                return;
            }
        }
    }
}

/// Waits until `at`; for ever without one.
pub async fn sleep_until(at: Option<Uptime>) {
    match at {
        Some(at) => tokio::time::sleep(at.since(Uptime::now())).await,
        None => std::future::pending().await,
    }
}

/// Whether the interface is gone. That it is down is told once and passes.
fn lasts(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::ENXIO | nix::libc::EBADF))
}

async fn receive(socket: &AsyncFd<Socket>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = socket.readable().await?;
        if let Ok(read) = ready.try_io(|socket| socket.get_ref().read(buffer)) {
            return read;
        }
    }
}

/// Sends a frame. One that the interface refuses is lost, as on a wire; whoever asked asks again.
async fn send(socket: &AsyncFd<Socket>, octets: &[u8]) {
    let written = tokio::time::timeout(REFUSED, async {
        loop {
            let mut ready = socket.writable().await?;
            if let Ok(written) = ready.try_io(|socket| socket.get_ref().write(octets)) {
                return written;
            }
        }
    });
    match written.await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(error = &error as &dyn std::error::Error, "a frame is refused"),
        Err(_) => tracing::debug!("a frame waits too long"),
    }
}
