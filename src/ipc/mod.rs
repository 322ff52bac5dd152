//! Typed messages between the services over Unix sockets, peer credentials checked.
//!
//! An edge, because it owns sockets. A server binds with [`bind`] and answers with [`serve`]; a [`Client`] keeps one
//! connection, on which any number of requests wait for their answers at a time, and makes a new one when it is lost.
//! On connecting the server greets with six octets, so that a refused client knows that it is refused.

mod blocking;
mod client;
mod frame;
pub mod init;
pub mod journal;
mod server;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use blocking::ask_at;
pub use client::Client;
pub use server::{Peer, bind, serve};

/// Longest message, in bytes, without its length.
pub const MAX_FRAME: usize = 8 * 1024 * 1024;

/// What the server says first: the protocol, its version and whether the peer may speak.
const WELCOME: [u8; 6] = *b"PLIP\x01+";
const UNWELCOME: [u8; 6] = *b"PLIP\x01-";

/// Why a server could not answer a request that reached it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Fault {
    /// It does not decode: the two sides are of different versions.
    #[error("the request does not decode")]
    Malformed,
    /// The answer would not fit a message.
    #[error("the answer exceeds {MAX_FRAME} bytes")]
    AnswerTooLarge,
    /// The code that answers panicked.
    #[error("answering panicked")]
    Panicked,
}

/// Why a message did not get through.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be made.
    #[error("cannot {op} {}", path.display())]
    Socket {
        /// What was tried, as a verb.
        op: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A living process listens there.
    #[error("another process listens on {}", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something else than a socket has that name; it is left alone.
    #[error("{} is no socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The server does not speak to this user.
    #[error("{} refuses this user", path.display())]
    Denied {
        /// The socket's path.
        path: PathBuf,
    },
    /// What answers there speaks something else, or another version.
    #[error("{} speaks another protocol", path.display())]
    Foreign {
        /// The socket's path.
        path: PathBuf,
    },
    /// The connection broke before the answer came; the request may have been carried out.
    #[error("the connection to {} broke", path.display())]
    Lost {
        /// The socket's path.
        path: PathBuf,
    },
    /// No answer came in time; the request may have been carried out.
    #[error("{} did not answer within {} ms", path.display(), after.as_millis())]
    Timeout {
        /// The socket's path.
        path: PathBuf,
        /// How long it was waited for.
        after: Duration,
    },
    /// The client was dropped or its runtime ends.
    #[error("the client of {} has ended", path.display())]
    Ended {
        /// The socket's path.
        path: PathBuf,
    },
    /// The server got the request and could not answer it.
    #[error("{} could not answer", path.display())]
    Fault {
        /// The socket's path.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Fault,
    },
    /// The message exceeds [`MAX_FRAME`].
    #[error("a message of {size} bytes, more than {MAX_FRAME}")]
    TooLarge {
        /// Its size.
        size: usize,
    },
    /// The message is shorter than its own header.
    #[error("a message of {size} bytes is no message")]
    TooShort {
        /// Its size.
        size: usize,
    },
    /// The message does not encode.
    #[error("the message does not encode")]
    Encode(#[source] postcard::Error),
    /// The message does not decode.
    #[error("the message does not decode")]
    Decode(#[source] postcard::Error),
    /// The message has octets after its end.
    #[error("the message has {extra} octets too many")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// Octets could not be read.
    #[error("cannot read from the peer")]
    Read(#[source] io::Error),
    /// Octets could not be written.
    #[error("cannot write to the peer")]
    Write(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::task::JoinHandle;
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn my_uid() -> u32 {
        nix::unistd::geteuid().as_raw()
    }

    /// Doubles numbers; 13 panics; 100 makes an answer that is too large.
    fn start(path: &Path, allowed: Vec<u32>) -> (CancellationToken, JoinHandle<()>) {
        let cancel = CancellationToken::new();
        let listener = bind(path).unwrap();
        let answer = |_: Peer, request: u64| async move {
            assert_ne!(request, 13, "unlucky");
            if request == 100 { vec![0_u64; MAX_FRAME] } else { vec![request * 2] }
        };
        let token = cancel.clone();
        (cancel, tokio::spawn(async move { serve(listener, allowed, token, answer).await }))
    }

    fn client(path: &Path) -> Client<u64, Vec<u64>> {
        Client::new(path, Duration::from_secs(60))
    }

    #[tokio::test]
    async fn concurrent_requests_get_their_own_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let (cancel, server) = start(&path, vec![my_uid()]);
        let client = Arc::new(client(&path));
        let calls: Vec<_> = (200..400)
            .map(|number| {
                let client = Arc::clone(&client);
                tokio::spawn(async move { (number, client.call(&number).await.unwrap()) })
            })
            .collect();
        for call in calls {
            let (number, answer) = call.await.unwrap();
            assert_eq!(answer, [number * 2]);
        }
        cancel.cancel();
        server.await.unwrap();
        assert!(!path.exists(), "a server that ends takes its socket away");
    }

    #[tokio::test]
    async fn a_panic_and_a_huge_answer_cost_one_request_each() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let (_cancel, _server) = start(&path, vec![my_uid()]);
        let client = client(&path);
        assert!(matches!(client.call(&13).await, Err(Error::Fault { source: Fault::Panicked, .. })));
        assert!(matches!(client.call(&100).await, Err(Error::Fault { source: Fault::AnswerTooLarge, .. })));
        assert_eq!(client.call(&4).await.unwrap(), [8]);
    }

    #[tokio::test]
    async fn a_user_who_is_not_allowed_is_told_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let (_cancel, _server) = start(&path, vec![my_uid() + 1]);
        assert!(matches!(client(&path).call(&1).await, Err(Error::Denied { .. })));
    }

    #[tokio::test]
    async fn a_client_survives_its_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let client = client(&path);
        // Asked before anyone listens: the call waits.
        let early = tokio::spawn({
            let client = client.clone();
            async move { client.call(&21).await }
        });
        tokio::task::yield_now().await;
        let (cancel, server) = start(&path, vec![my_uid()]);
        assert_eq!(early.await.unwrap().unwrap(), [42]);
        cancel.cancel();
        server.await.unwrap();
        let (_cancel, _server) = start(&path, vec![my_uid()]);
        // The first call may still be sent into the old connection.
        let answer = match client.call(&3).await {
            Err(Error::Lost { .. }) => client.call(&3).await,
            other => other,
        };
        assert_eq!(answer.unwrap(), [6]);
    }

    #[tokio::test]
    async fn without_a_server_a_call_ends_at_its_timeout() {
        let dir = tempfile::tempdir().unwrap();
        let client: Client<u64, u64> = Client::new(&dir.path().join("none.sock"), Duration::from_millis(50));
        assert!(matches!(client.call(&1).await, Err(Error::Timeout { .. })));
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_living_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let listener = bind(&path).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o660);
        assert!(matches!(bind(&path), Err(Error::InUse { .. })));
        drop(listener);
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(matches!(bind(&file), Err(Error::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
    }

    #[tokio::test]
    async fn a_hostile_peer_loses_its_connection_and_nobody_elses() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let (_cancel, _server) = start(&path, vec![my_uid()]);
        let cases: [&[u8]; 3] = [b"\xff\xff\xff\xff", b"\x03\0\0\0abc", b"\0\0\0\0"];
        for octets in cases {
            let mut stream = UnixStream::connect(&path).await.unwrap();
            let mut greeting = [0; 6];
            stream.read_exact(&mut greeting).await.unwrap();
            assert_eq!(greeting, WELCOME);
            stream.write_all(octets).await.unwrap();
            let mut rest = Vec::new();
            // A reset is as good as an end.
            let _ = stream.read_to_end(&mut rest).await;
            assert!(rest.is_empty());
        }
        // A well-framed request that does not decode is answered with a fault.
        let wrong: Client<String, Vec<u64>> = Client::new(&path, Duration::from_secs(10));
        let answer = wrong.call(&"\u{7f}".repeat(300)).await;
        assert!(matches!(answer, Err(Error::Fault { source: Fault::Malformed, .. })), "{answer:?}");
        assert_eq!(client(&path).call(&5).await.unwrap(), [10]);
    }

    #[tokio::test]
    async fn what_answers_in_another_protocol_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let seen = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(b"SSH-2.0-other\r\n").await;
            }
        });
        assert!(matches!(client(&path).call(&1).await, Err(Error::Foreign { .. })));
        assert!(seen.load(Ordering::SeqCst) >= 1);
    }
}
