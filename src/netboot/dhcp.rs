//! The proxyDHCP sockets: receive, decode, decide, send.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::boot::firmware::Client;
use crate::boot::proxy::{self, BootView, Decision, Input, Port, Reason};
use crate::machine::MachineId;
use crate::netboot::Counters;
use crate::telemetry::Pulse;
use crate::time::Uptime;
use crate::wire::dhcp::{HardwareAddress, MAX_OCTETS, Message};

/// Where to listen.
#[derive(Clone, Debug)]
pub struct Config {
    /// One entry per provisioning network.
    pub listen: Vec<Listen>,
    /// 67. `None` leaves broadcasts to a DHCP server on this host (`--disable-dhcp-proxy-broadcast`).
    pub dhcp_port: Option<u16>,
    /// 4011.
    pub binl_port: u16,
}

/// One network to listen on.
#[derive(Clone, Debug)]
pub struct Listen {
    /// The interface that the sockets are bound to (SO_BINDTODEVICE); `None` for every interface.
    pub interface: Option<String>,
    /// The address that they are bound to. Broadcasts arrive at 0.0.0.0 alone.
    pub address: Ipv4Addr,
}

impl Listen {
    /// Everything that arrives on the interface `name`.
    pub fn on_interface(name: &str) -> Self {
        Self { interface: Some(name.to_owned()), address: Ipv4Addr::UNSPECIFIED }
    }
}

/// What ended, or never started, the service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket could not be opened, configured or bound.
    #[error("DHCP socket {address}{} can't be opened{}", on(interface.as_deref()), hint(source))]
    Bind {
        /// Its address.
        address: SocketAddrV4,
        /// Its interface.
        interface: Option<String>,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A socket's task ended by itself.
    #[error("DHCP socket task ended")]
    TaskEnded(#[source] Option<tokio::task::JoinError>),
}

fn on(interface: Option<&str>) -> String {
    interface.map(|name| format!(" on {name}")).unwrap_or_default()
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => " (another DHCP server on this host? see --disable-dhcp-proxy-broadcast)",
        io::ErrorKind::PermissionDenied => " (needs CAP_NET_BIND_SERVICE and CAP_NET_RAW)",
        _ => "",
    }
}

/// What became of one message; for the status page.
#[derive(Clone, Debug)]
pub struct Event {
    /// The card that sent it.
    pub mac: HardwareAddress,
    /// What the machine may be called, likeliest first; may be empty.
    pub machine: Vec<MachineId>,
    /// The port that it came to.
    pub port: Port,
    /// What was done.
    pub outcome: Outcome,
}

/// What was done with a message.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A reply was sent.
    Answered {
        /// Who asked.
        client: Client,
        /// What it was told to boot.
        boot_file: String,
        /// Where the reply went.
        to: SocketAddrV4,
    },
    /// Nothing was sent.
    Ignored(Reason),
}

/// The bound sockets.
#[derive(Debug)]
pub struct Sockets(Vec<(Port, Option<String>, UdpSocket, Pulse)>);

impl Sockets {
    /// Opens two sockets per network, or one without the broadcast port.
    ///
    /// # Errors
    ///
    /// [`Error::Bind`] for the first that fails.
    pub fn bind(config: &Config) -> Result<Self, Error> {
        let ports = [(Port::Dhcp, config.dhcp_port), (Port::Binl, Some(config.binl_port))];
        let mut sockets = Vec::new();
        for listen in &config.listen {
            for (port, number) in ports {
                let Some(number) = number else { continue };
                let address = SocketAddrV4::new(listen.address, number);
                let socket = open(address, listen.interface.as_deref()).map_err(|source| Error::Bind {
                    address,
                    interface: listen.interface.clone(),
                    source,
                })?;
                sockets.push((port, listen.interface.clone(), socket, Pulse::new(Uptime::now())));
            }
        }
        Ok(Self(sockets))
    }

    /// Whether their loops turn.
    pub fn pulses(&self) -> Vec<Pulse> {
        self.0.iter().map(|(_, _, _, pulse)| pulse.clone()).collect()
    }

    /// Where they listen, in the order of the configuration, 67 before 4011.
    pub fn addresses(&self) -> Vec<(Port, SocketAddr)> {
        self.0.iter().filter_map(|(port, _, socket, _)| Some((*port, socket.local_addr().ok()?))).collect()
    }
}

fn open(address: SocketAddrV4, interface: Option<&str>) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    socket.set_broadcast(true)?;
    // A DHCP server may hold the same ports on another interface of this host.
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if let Some(interface) = interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    socket.bind(&SocketAddr::V4(address).into())?;
    UdpSocket::from_std(socket.into())
}

/// Serves until `cancel`. `view` is read anew for each message. An event that finds `events` full is dropped.
///
/// Counters: `dhcp_offers`, `dhcp_acks`, `dhcp_malformed`, `dhcp_send_failed`, `dhcp_receive_failed` and one per [`Reason`].
///
/// # Errors
///
/// [`Error::TaskEnded`] when a socket's task panicked; the caller restarts the service.
pub async fn run(
    sockets: Sockets,
    view: watch::Receiver<BootView>,
    events: mpsc::Sender<Event>,
    counters: Counters,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let mut tasks = JoinSet::new();
    for (port, interface, socket, pulse) in sockets.0 {
        info!(?port, interface, address = ?socket.local_addr().ok(), "DHCP proxy listens");
        let serving = serve(port, socket, view.clone(), events.clone(), counters.clone(), cancel.clone());
        tasks.spawn(async move { pulse.around(serving).await });
    }
    // Without sockets there is nothing to do until we are told to end.
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

async fn serve(
    port: Port,
    socket: UdpSocket,
    view: watch::Receiver<BootView>,
    events: mpsc::Sender<Event>,
    counters: Counters,
    cancel: CancellationToken,
) {
    // One octet more than is decoded, so that a longer datagram shows itself instead of being cut.
    let mut buffer = [0; MAX_OCTETS + 1];
    loop {
        let received = tokio::select! {
            // Both arms are cancel-safe: a datagram is taken whole or left in the socket.
            () = cancel.cancelled() => return,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (len, from) = match received {
            Ok((len, SocketAddr::V4(from))) => (len, from),
            Ok((_, SocketAddr::V6(_))) => continue,
            Err(error) => {
                // An ICMP error of an earlier send shows here too; a socket that only fails must not spin.
                counters.count("dhcp_receive_failed");
                debug!(?port, %error, "DHCP receive failed");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        let message = match Message::decode(&buffer[..len]) {
            Ok(message) => message,
            Err(error) => {
                counters.count("dhcp_malformed");
                debug!(?port, %from, %error, "DHCP message malformed");
                continue;
            }
        };
        let input = Input { port, message: &message, from };
        let decision = proxy::decide(&view.borrow(), input);
        let outcome = perform(port, &socket, decision, &message, &counters).await;
        let Some(outcome) = outcome else { continue };
        // A full channel drops the event: answering comes first.
        let _ = events.try_send(Event { mac: message.chaddr, machine: input.machine(), port, outcome });
    }
}

/// Sends a reply; `None` when it could not be.
async fn perform(
    port: Port,
    socket: &UdpSocket,
    decision: Decision,
    request: &Message,
    counters: &Counters,
) -> Option<Outcome> {
    let mac = request.chaddr;
    let reply = match decision {
        Decision::Reply(reply) => *reply,
        Decision::Ignore(reason) => {
            counters.count(reason.counter());
            debug!(?port, %mac, %reason, "DHCP message ignored");
            return Some(Outcome::Ignored(reason));
        }
    };
    let sent = match reply.message.encode() {
        Ok(octets) => socket.send_to(&octets, reply.to).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    match sent {
        Ok(_) => {
            counters.count(match port {
                Port::Dhcp => "dhcp_offers",
                Port::Binl => "dhcp_acks",
            });
            debug!(?port, %mac, firmware = %reply.client.firmware, boot_file = reply.boot_file, to = %reply.to, "DHCP answered");
            Some(Outcome::Answered { client: reply.client, boot_file: reply.boot_file, to: reply.to })
        }
        Err(error) => {
            counters.count("dhcp_send_failed");
            if counters.value("dhcp_send_failed").is_power_of_two() {
                warn!(?port, %mac, to = %reply.to, error, "DHCP answer not sent");
            }
            None
        }
    }
}
