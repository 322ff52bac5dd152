//! The TFTP client of a boot ROM: one file, octet mode, lock step.
//!
//! Source: RFC 1350, 2347 (options), 2348 (blksize), 2349 (tsize).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::time::timeout;

/// What ROMs ask for: an Ethernet frame's worth.
const BLOCK: u16 = 1468;
/// No NBP is bigger.
const LIMIT: usize = 16 * 1024 * 1024;
/// Sends of one packet before the transfer is given up.
const TRIES: u32 = 5;
/// Datagrams that do not move the transfer on (duplicates, strangers) before it is given up.
const STRAYS: u32 = 10_000;

/// Why a file did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum TftpError {
    /// No socket on the machine's address.
    #[error("no socket on {address}")]
    Bind {
        /// The machine's address.
        address: Ipv4Addr,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The kernel refused to send or receive.
    #[error("no exchange with {server}")]
    Exchange {
        /// The server.
        server: SocketAddr,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The server sent an ERROR packet.
    #[error("{file}: server says error {code}: {text}")]
    Refused {
        /// The file asked for.
        file: String,
        /// RFC 1350 error code.
        code: u16,
        /// The server's words, at most 128 characters.
        text: String,
    },
    /// Nothing came after five sends.
    #[error("{file}: server is silent")]
    Silent {
        /// The file asked for.
        file: String,
    },
    /// More octets than any boot program has.
    #[error("{file}: more than {LIMIT} octets")]
    TooBig {
        /// The file asked for.
        file: String,
    },
    /// Fewer or more octets than the server announced with `tsize`.
    #[error("{file}: {got} octets, {announced} announced")]
    Length {
        /// The file asked for.
        file: String,
        /// Octets received.
        got: usize,
        /// `tsize`.
        announced: usize,
    },
    /// The server broke the protocol.
    #[error("{file}: {what}")]
    Misbehaved {
        /// The file asked for.
        file: String,
        /// How.
        what: &'static str,
    },
}

/// A packet from a server.
#[derive(Debug, PartialEq, Eq)]
enum Packet<'a> {
    Data { block: u16, octets: &'a [u8] },
    Error { code: u16, text: String },
    Oack { blksize: Option<usize>, tsize: Option<usize> },
}

fn decode(octets: &[u8]) -> Option<Packet<'_>> {
    let (head, rest) = octets.split_at_checked(4)?;
    let second = u16::from_be_bytes([head[2], head[3]]);
    match u16::from_be_bytes([head[0], head[1]]) {
        3 => Some(Packet::Data { block: second, octets: rest }),
        5 => {
            let text = rest.split(|octet| *octet == 0).next().unwrap_or_default();
            Some(Packet::Error { code: second, text: String::from_utf8_lossy(text).chars().take(128).collect() })
        }
        6 => {
            let (mut blksize, mut tsize) = (None, None);
            let mut words = octets[2..].split(|octet| *octet == 0);
            while let (Some(name), Some(value)) = (words.next(), words.next()) {
                let value = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
                match name.to_ascii_lowercase().as_slice() {
                    b"blksize" => blksize = value,
                    b"tsize" => tsize = value,
                    _ => {}
                }
            }
            Some(Packet::Oack { blksize, tsize })
        }
        _ => None,
    }
}

/// Fetches `file` from `server`, from a port of its own on `address`.
///
/// `probe` asks for the size first and breaks that transfer off with ERROR 8, as EDK2 does before it allocates. `wait` is
/// how long one packet is waited for; a packet is sent five times.
///
/// # Errors
///
/// [`TftpError`] says what went wrong; nothing of a broken transfer is kept.
pub(super) async fn fetch(
    address: Ipv4Addr,
    server: SocketAddr,
    file: &str,
    probe: bool,
    wait: Duration,
) -> Result<Vec<u8>, TftpError> {
    if probe {
        transfer(address, server, file, true, wait).await?;
    }
    transfer(address, server, file, false, wait).await
}

async fn transfer(
    address: Ipv4Addr,
    server: SocketAddr,
    file: &str,
    size_only: bool,
    wait: Duration,
) -> Result<Vec<u8>, TftpError> {
    let misbehaved = |what| TftpError::Misbehaved { file: file.into(), what };
    let exchange = |source| TftpError::Exchange { server, source };
    let socket =
        UdpSocket::bind((IpAddr::V4(address), 0)).await.map_err(|source| TftpError::Bind { address, source })?;
    let mut last = request(file);
    let mut peer: Option<SocketAddr> = None;
    let (mut block_size, mut announced) = (512, None);
    let mut expected: u16 = 1;
    let mut body = Vec::new();
    let mut buffer = vec![0; usize::from(BLOCK) + 5];
    let (mut tries, mut strays) = (0, 0);
    let mut resend = true;
    loop {
        if resend {
            if tries == TRIES {
                return Err(TftpError::Silent { file: file.into() });
            }
            tries += 1;
            socket.send_to(&last, peer.unwrap_or(server)).await.map_err(exchange)?;
            resend = false;
        }
        let (length, from) = match timeout(wait, socket.recv_from(&mut buffer)).await {
            Err(_) => {
                resend = true;
                continue;
            }
            Ok(received) => received.map_err(exchange)?,
        };
        strays += 1;
        if strays > STRAYS {
            return Err(misbehaved("thousands of packets, no progress"));
        }
        // A reply's port is the transfer's identity (RFC 1350 section 4); it is learnt from the first one.
        if from.ip() != server.ip() || peer.is_some_and(|peer| peer != from) {
            continue;
        }
        match decode(&buffer[..length]) {
            None => continue,
            Some(Packet::Error { code, text }) => return Err(TftpError::Refused { file: file.into(), code, text }),
            Some(Packet::Oack { blksize, tsize }) => {
                if expected != 1 || !body.is_empty() {
                    continue;
                }
                peer = Some(from);
                if size_only {
                    let _ = socket.send_to(b"\0\x05\0\x08User aborted the transfer\0", from).await;
                    return Ok(Vec::new());
                }
                if let Some(agreed) = blksize {
                    if !(8..=usize::from(BLOCK)).contains(&agreed) {
                        return Err(misbehaved("OACK with a blksize that was not asked for"));
                    }
                    block_size = agreed;
                }
                announced = tsize;
                if announced.is_some_and(|announced| announced > LIMIT) {
                    return Err(TftpError::TooBig { file: file.into() });
                }
                last = vec![0, 4, 0, 0];
            }
            Some(Packet::Data { block, octets }) => {
                peer = Some(from);
                if size_only {
                    let _ = socket.send_to(b"\0\x05\0\0User aborted the transfer\0", from).await;
                    return Ok(Vec::new());
                }
                if octets.len() > block_size {
                    return Err(misbehaved("a block is longer than agreed"));
                }
                if block != expected {
                    // A duplicate is answered by no packet, else both sides double every packet from here on.
                    continue;
                }
                if body.len() + octets.len() > LIMIT {
                    return Err(TftpError::TooBig { file: file.into() });
                }
                body.extend_from_slice(octets);
                let [high, low] = block.to_be_bytes();
                last = vec![0, 4, high, low];
                if octets.len() < block_size {
                    socket.send_to(&last, from).await.map_err(exchange)?;
                    return match announced {
                        Some(announced) if announced != body.len() => {
                            Err(TftpError::Length { file: file.into(), got: body.len(), announced })
                        }
                        _ => Ok(body),
                    };
                }
                expected = expected.wrapping_add(1);
            }
        }
        (tries, strays, resend) = (0, 0, true);
    }
}

fn request(file: &str) -> Vec<u8> {
    let mut octets = vec![0, 1];
    let size = BLOCK.to_string();
    for word in [file, "octet", "tsize", "0", "blksize", &size] {
        octets.extend(word.bytes().filter(|octet| *octet != 0));
        octets.push(0);
    }
    octets
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_request_asks_for_size_and_block_size() {
        assert_eq!(request("snp.efi"), b"\x00\x01snp.efi\x00octet\x00tsize\x000\x00blksize\x001468\x00");
    }

    #[test]
    fn packets_decode() {
        assert_eq!(
            decode(b"\x00\x06tsize\x00100\x00BLKSIZE\x001468\x00"),
            Some(Packet::Oack { blksize: Some(1468), tsize: Some(100) })
        );
        assert_eq!(decode(b"\0\x05\0\x01gone\0"), Some(Packet::Error { code: 1, text: "gone".into() }));
        assert_eq!(decode(b"\0\x03\0\x02ab"), Some(Packet::Data { block: 2, octets: b"ab" }));
        assert_eq!(decode(b"\0\x03\0"), None);
    }

    #[tokio::test]
    async fn files_arrive_whole_from_a_server_that_this_project_did_not_write() {
        let directory = tempfile::tempdir().unwrap();
        let sizes = [0, 1, 1467, 1468, 1469, 4 * 1468, 300_000];
        for size in sizes {
            let body: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            std::fs::write(directory.path().join(size.to_string()), body).unwrap();
        }
        let server = async_tftp::server::TftpServerBuilder::with_dir_ro(directory.path()).unwrap();
        let server = server.bind("127.0.0.1:0".parse().unwrap()).build().await.unwrap();
        let address = server.listen_addr().unwrap();
        let serving = tokio::spawn(server.serve());
        let (from, wait) = (Ipv4Addr::new(127, 9, 3, 1), Duration::from_secs(2));
        for size in sizes {
            for probe in [false, true] {
                let body = fetch(from, address, &size.to_string(), probe, wait).await.unwrap();
                assert_eq!(body.len(), size);
                assert!(body.iter().enumerate().all(|(at, octet)| *octet == (at % 251) as u8), "{size}");
            }
        }
        assert!(matches!(fetch(from, address, "missing", false, wait).await, Err(TftpError::Refused { code: 1, .. })));
        serving.abort();
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_after_five_sends() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let wait = Duration::from_millis(5);
        let address = server.local_addr().unwrap();
        assert!(matches!(fetch(Ipv4Addr::LOCALHOST, address, "f", false, wait).await, Err(TftpError::Silent { .. })));
        let mut buffer = [0; 100];
        let sent = std::iter::from_fn(|| server.try_recv(&mut buffer).ok()).count();
        assert_eq!(sent, 5);
    }

    proptest! {
        #[test]
        fn any_octets_are_a_packet_or_nothing(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = decode(&octets);
        }
    }
}
