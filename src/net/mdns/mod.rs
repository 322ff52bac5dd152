//! Multicast DNS: the box is found as `pilotlight-….local` without any server (RFC 6762).
//!
//! [`wire`] reads and writes messages, [`responder`] decides. The rest of this module is an edge: it owns a socket a link.

pub mod responder;
pub mod wire;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::service::{NamedLink, Surroundings};
use super::wire::sleep_until;
use crate::netboot::address;
use crate::time::Uptime;
use responder::{Responder, To};
use wire::{MOST_OCTETS, Message};

/// The port, and the group of IPv4.
const PORT: u16 = 5353;
const GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);

/// Answers on every link until `cancel`.
///
/// # Errors
///
/// None; the type is that of the process' tasks.
pub async fn run(mut surroundings: watch::Receiver<Surroundings>, cancel: CancellationToken) -> anyhow::Result<()> {
    let mut answering: BTreeMap<u32, Answering> = BTreeMap::new();
    loop {
        let now = surroundings.borrow_and_update().clone();
        answering.retain(|index, answering| {
            now.links.contains_key(index) && answering.host == now.hostname && !answering.task.is_finished()
        });
        for (index, link) in &now.links {
            if let Some(answering) = answering.get(index) {
                answering.link.send_if_modified(|last| std::mem::replace(last, link.clone()) != *link);
                continue;
            }
            match open(*index, &link.name) {
                Ok(socket) => {
                    let (sender, seen) = watch::channel(link.clone());
                    let responder = Responder::new(&now.hostname);
                    let task = tokio::spawn(answer(socket, responder, seen));
                    answering.insert(*index, Answering { host: now.hostname.clone(), link: sender, task });
                }
                Err(error) => tracing::warn!(link = link.name, %error, "no name on this link"),
            }
        }
        // Cancel-safe: both only wait.
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            changed = surroundings.changed() => if changed.is_err() { return Ok(()) },
        }
    }
}

/// A link that is answered on.
struct Answering {
    host: String,
    link: watch::Sender<NamedLink>,
    task: JoinHandle<()>,
}

impl Drop for Answering {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn open(index: u32, name: &str) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.nonblocking().cloexec(), Some(Protocol::UDP))?;
    // Each link has its own; all listen on one port.
    socket.set_reuse_address(true)?;
    socket.bind_device(Some(name.as_bytes()))?;
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)).into())?;
    socket.join_multicast_v4_n(&GROUP, &socket2::InterfaceIndexOrAddress::Index(index))?;
    socket.set_multicast_ttl_v4(255)?;
    socket.set_multicast_loop_v4(false)?;
    UdpSocket::from_std(socket.into())
}

async fn answer(socket: UdpSocket, mut responder: Responder, mut link: watch::Receiver<NamedLink>) {
    let mut buffer = vec![0; MOST_OCTETS];
    responder.on_addresses(Uptime::now(), addresses(&link.borrow_and_update()));
    loop {
        let due = responder.deadline();
        // All are cancel-safe: what is not received stays in the socket.
        tokio::select! {
            changed = link.changed() => {
                if changed.is_err() {
                    return;
                }
                let addresses = addresses(&link.borrow_and_update());
                responder.on_addresses(Uptime::now(), addresses);
            }
            () = sleep_until(due) => {
                if let Some(message) = responder.on_deadline(Uptime::now()) {
                    send(&socket, &message, (GROUP, PORT).into()).await;
                }
            }
            received = socket.recv_from(&mut buffer) => {
                // The link may be down for a moment.
                let Ok((len, from)) = received else { continue };
                // From elsewhere an answer would be a reflector (section 11).
                if !is_near(&link.borrow(), from.ip()) {
                    continue;
                }
                let Some(message) = Message::decode(&buffer[..len]) else { continue };
                if let Some((answer, to)) = responder.on_message(Uptime::now(), &message, from.port() != PORT) {
                    let to = if to == To::All { (GROUP, PORT).into() } else { from };
                    send(&socket, &answer, to).await;
                }
            }
        }
    }
}

/// Whether the address is of one of the link's networks.
fn is_near(link: &NamedLink, from: IpAddr) -> bool {
    let IpAddr::V4(from) = from else { return false };
    link.addresses.iter().any(|prefix| prefix.contains(from))
}

/// The link's IPv4 addresses, and the IPv6 addresses that the kernel gave it.
fn addresses(link: &NamedLink) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = link.addresses.iter().map(|prefix| prefix.address().into()).collect();
    let own = address::list().unwrap_or_default();
    let six = own.into_iter().filter(|entry| entry.interface == link.name && entry.address.is_ipv6());
    // Without IPv4 nothing can be sent yet.
    if !addresses.is_empty() {
        addresses.extend(six.map(|entry| entry.address));
    }
    addresses
}

/// Sends a message; one that is lost is asked for again.
async fn send(socket: &UdpSocket, message: &Message, to: SocketAddr) {
    if let Err(error) = socket.send_to(&message.encode(), to).await {
        tracing::debug!(%error, "a name's message is not sent");
    }
}
