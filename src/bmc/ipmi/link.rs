//! A UDP socket towards one BMC, on which a question is repeated until it is answered.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::timing::Timing;
use crate::wire::ipmi::MAX_DATAGRAM;

/// Why a question went unanswered.
#[derive(Debug)]
pub(super) enum Unanswered {
    /// All tries were sent, no answer came.
    Silence,
    /// The kernel says that the BMC is not there.
    Io(io::Error),
}

/// A connected socket: the kernel drops what others send, and reports ICMP errors.
pub(super) struct Link {
    socket: UdpSocket,
}

impl Link {
    pub(super) async fn connect(peer: SocketAddr) -> io::Result<Self> {
        let any: IpAddr = match peer {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0)).await?;
        socket.connect(peer).await?;
        Ok(Self { socket })
    }

    /// Sends what `ask` makes of `state` up to `tries` times; returns what `listen` makes of the first datagram that is
    /// an answer. A datagram for which `listen` returns nothing is not one, and the wait goes on.
    pub(super) async fn exchange<S, T>(
        &self,
        timing: &Timing,
        tries: u32,
        state: &mut S,
        ask: impl Fn(&mut S) -> Vec<u8>,
        listen: impl Fn(&mut S, &[u8]) -> Option<T>,
    ) -> Result<T, Unanswered> {
        let mut buffer = [0; MAX_DATAGRAM];
        for attempt in 0..tries {
            let [jitter] = random();
            self.socket.send(&ask(state)).await.map_err(Unanswered::Io)?;
            let deadline = Instant::now() + timing.timeout(attempt, jitter);
            // Every pass takes one datagram from the socket, and the deadline ends them all.
            while let Ok(received) = timeout_at(deadline, self.socket.recv(&mut buffer)).await {
                let len = received.map_err(Unanswered::Io)?;
                if let Some(answer) = buffer.get(..len).and_then(|datagram| listen(state, datagram)) {
                    return Ok(answer);
                }
            }
        }
        Err(Unanswered::Silence)
    }

    /// Sends once, without waiting for anything: also from a destructor.
    pub(super) fn send_and_forget(&self, datagram: &[u8]) {
        if let Err(error) = self.socket.try_send(datagram) {
            tracing::trace!(%error, "last datagram was not sent");
        }
    }
}

/// `N` octets of the kernel's randomness.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut octets = [0; N];
    getrandom::fill(&mut octets).expect("the kernel has randomness once it has started processes");
    octets
}
