//! Asks PID 1 of the appliance, over its control socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::supervise::control::{MAX_REPLY, Reply, Request, SOCKET, decode, encode};

/// PID 1 answers at once or not at all.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks `request` and awaits the answer.
///
/// # Errors
///
/// `NotFound` where init is not PID 1, `PermissionDenied` for strangers, `WouldBlock` when it does not answer within two
/// seconds, `InvalidData` when it is of another version.
pub async fn ask(request: Request) -> io::Result<Reply> {
    // The runtime knows no sockets of this type.
    let asked = tokio::task::spawn_blocking(move || ask_at(Path::new(SOCKET), &request, PATIENCE));
    asked.await.map_err(io::Error::other)?
}

/// Asks `request` at the socket `path` and blocks for the answer, `patience` long: what has to reach a slow medium first
/// takes its time.
///
/// # Errors
///
/// As those of [`ask`].
pub fn ask_at(path: &Path, request: &Request, patience: Duration) -> io::Result<Reply> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.send(&encode(request))?;
    let mut octets = vec![0; MAX_REPLY];
    let length = io::Read::read(&mut &socket, &mut octets)?;
    octets.truncate(length);
    decode(&octets).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
