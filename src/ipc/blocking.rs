//! One question from who has no runtime.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Error, Fault, MAX_FRAME, UNWELCOME, WELCOME, frame};
use crate::time::Uptime;

/// How long after a failed attempt the next is made: the server may not have started.
const PAUSE: Duration = Duration::from_millis(200);
/// Octets before the body: length and number.
const HEAD: usize = 12;

/// Asks the server at the socket `path`, and blocks for the answer. Waits for a server that does not listen yet; all of it
/// takes no longer than `limit`, more or less.
///
/// # Errors
///
/// After [`Error::Lost`] the request may have been carried out all the same.
pub fn ask_at<Request: Serialize, Response: DeserializeOwned>(
    path: &Path,
    request: &Request,
    limit: Duration,
) -> Result<Response, Error> {
    let end = Uptime::now() + limit;
    let lost = |_| Error::Lost { path: path.to_owned() };
    let mut stream = loop {
        match UnixStream::connect(path) {
            Ok(stream) => break stream,
            Err(_) if Uptime::now() < end => std::thread::sleep(PAUSE),
            Err(_) => return Err(Error::Timeout { path: path.to_owned(), after: limit }),
        }
    };
    let left = end.since(Uptime::now()).max(PAUSE);
    stream.set_read_timeout(Some(left)).map_err(lost)?;
    stream.set_write_timeout(Some(left)).map_err(lost)?;
    let mut greeting = [0; WELCOME.len()];
    stream.read_exact(&mut greeting).map_err(lost)?;
    match greeting {
        WELCOME => {}
        UNWELCOME => return Err(Error::Denied { path: path.to_owned() }),
        _ => return Err(Error::Foreign { path: path.to_owned() }),
    }
    stream.write_all(&frame::encode(0, request)?).map_err(lost)?;
    let mut head = [0; HEAD];
    stream.read_exact(&mut head).map_err(lost)?;
    let size = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
    let wanted = size.checked_sub(HEAD - 4).ok_or(Error::TooShort { size })?;
    if size > MAX_FRAME {
        return Err(Error::TooLarge { size });
    }
    let mut body = Vec::new();
    stream.take(wanted as u64).read_to_end(&mut body).map_err(lost)?;
    let reply: Result<Response, Fault> = frame::decode(&body)?;
    reply.map_err(|source| Error::Fault { path: path.to_owned(), source })
}
