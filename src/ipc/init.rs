//! Asks PID 1 of the appliance, over its control socket.

use std::io;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::supervise::control::{MAX_REPLY, Reply, Request, SOCKET, decode, encode};

/// PID 1 answers at once or not at all,
const PATIENCE: Duration = Duration::from_secs(2);
/// but for what has to be on a disk first.
const DISK_PATIENCE: Duration = Duration::from_secs(60);

/// Asks `request` and awaits the answer.
///
/// # Errors
///
/// `NotFound` where init is not PID 1, `PermissionDenied` for strangers, `WouldBlock` when it does not answer within two
/// seconds, or a minute where it has to write, `InvalidData` when it is of another version.
pub async fn ask(request: Request) -> io::Result<Reply> {
    // The runtime knows no sockets of this type.
    let asked = tokio::task::spawn_blocking(move || ask_at(Path::new(SOCKET), &request));
    asked.await.map_err(io::Error::other)?
}

/// Asks `request` at the socket `path`, and blocks for the answer.
///
/// # Errors
///
/// As those of [`ask`].
pub fn ask_at(path: &Path, request: &Request) -> io::Result<Reply> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    let immediate = matches!(request, Request::Status | Request::Reboot | Request::PowerOff);
    socket.set_read_timeout(Some(if immediate { PATIENCE } else { DISK_PATIENCE }))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.connect(&SockAddr::unix(path)?)?;
    socket.send(&encode(request))?;
    let mut octets = vec![0; MAX_REPLY];
    let length = io::Read::read(&mut &socket, &mut octets)?;
    octets.truncate(length);
    decode(&octets).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
