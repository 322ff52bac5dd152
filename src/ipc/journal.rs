//! Asks the journal. It answers from memory, so that a blocking call is short.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{UnixAddr, bind};

use crate::journal::query::{Answer, MAX_ANSWER, Query};

/// The answer to `query` of the journal that listens on `socket`, within `limit`.
///
/// # Errors
///
/// `ConnectionRefused` or `NotFound` where no journal listens, `WouldBlock` when it does not answer or does not speak to
/// this user, `InvalidData` when its answer is of another version.
pub fn ask(socket: &Path, query: &Query, limit: Duration) -> io::Result<Answer> {
    let client = UnixDatagram::unbound()?;
    // A name of the kernel's choice, for the answer to find.
    bind(client.as_raw_fd(), &UnixAddr::new_unnamed())?;
    client.connect(socket)?;
    client.set_read_timeout(Some(limit))?;
    client.set_write_timeout(Some(limit))?;
    client.send(&query.encode())?;
    let mut buffer = vec![0; MAX_ANSWER + 1];
    let length = client.recv(&mut buffer)?;
    Answer::decode(buffer.get(..length).unwrap_or_default())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}
