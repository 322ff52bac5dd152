//! The connections of those whose standard output goes to the journal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::socket::{getsockopt, setsockopt, sockopt};

use crate::sys::socket::{self, Received};
use crate::wire::journal::stream::{Line, Splitter};

/// Most connections.
const MOST: usize = 128;
/// Most connections of one user.
const MOST_OF_ONE: usize = 32;
/// Connections that are taken in one turn.
const TURN: usize = 16;
/// Octets that are taken from a connection in one turn.
const PIECE: usize = 16 * 1024;

struct Stream {
    socket: UnixStream,
    uid: u32,
    splitter: Splitter,
}

/// All connections.
#[derive(Default)]
pub(super) struct Streams(Vec<Stream>);

impl Streams {
    /// Takes in who waits on `listener`; returns how many were refused.
    pub(super) fn accept(&mut self, listener: &UnixListener) -> u64 {
        let mut refused = 0;
        for _ in 0..TURN {
            let Ok((socket, _)) = listener.accept() else { break };
            match self.take_in(socket) {
                Ok(true) => {}
                Ok(false) | Err(_) => refused += 1,
            }
        }
        refused
    }

    fn take_in(&mut self, socket: UnixStream) -> io::Result<bool> {
        let uid = getsockopt(&socket, sockopt::PeerCredentials)?.uid();
        let of_one = self.0.iter().filter(|stream| stream.uid == uid).count();
        // PID 1 connects for every service, and as often as they restart.
        if self.0.len() >= MOST || uid != 0 && of_one >= MOST_OF_ONE {
            return Ok(false);
        }
        setsockopt(&socket, sockopt::PassCred, &true)?;
        self.0.push(Stream { socket, uid, splitter: Splitter::new() });
        Ok(true)
    }

    /// What there is to wait for.
    pub(super) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().map(|stream| stream.socket.as_fd())
    }

    /// Reads a piece of each; hands `take` who wrote, who connected, and the lines. Returns how many pieces there were.
    pub(super) fn read(&mut self, buffer: &mut [u8], mut take: impl FnMut(&Received, u32, Vec<Line>)) -> usize {
        let piece = buffer.len().min(PIECE);
        let Some(buffer) = buffer.get_mut(..piece) else { return 0 };
        let mut pieces = 0;
        let mut kept = Vec::with_capacity(self.0.len());
        for mut stream in std::mem::take(&mut self.0) {
            let received = match socket::receive(&stream.socket, buffer) {
                Ok(None) => {
                    kept.push(stream);
                    continue;
                }
                Ok(Some(received)) => received,
                Err(_) => nothing(),
            };
            pieces += 1;
            if received.length == 0 {
                take(
                    &Received { sender: None, ..received },
                    stream.uid,
                    stream.splitter.finish().into_iter().collect(),
                );
                continue;
            }
            // A header that is none closes the connection.
            if let Ok(lines) = stream.splitter.push(buffer.get(..received.length).unwrap_or_default()) {
                take(&received, stream.uid, lines);
                kept.push(stream);
            }
        }
        self.0 = kept;
        pieces
    }
}

fn nothing() -> Received {
    Received { length: 0, whole: true, sender: None, from: None, descriptors: vec![] }
}
