//! The answering side.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::FutureExt;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{Error, Fault, UNWELCOME, WELCOME, frame};

/// Connections at a time; the services are fewer than ten.
const CONNECTIONS: usize = 64;
/// Requests of one connection that are answered at a time; more stay in the socket.
const REQUESTS: usize = 64;

/// Who asks, as the kernel says (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The effective user when it connected.
    pub uid: u32,
    /// Its process, if that is in a namespace visible from here.
    pub pid: Option<i32>,
}

/// Listens on `path` with mode 0660: owner and group may connect. The group is that of the directory when it has its
/// set-group-ID bit.
///
/// A socket that a dead process left is replaced.
///
/// # Errors
///
/// [`Error::InUse`] when a living process listens there, [`Error::NotASocket`] when it is a file.
pub fn bind(path: &Path) -> Result<UnixListener, Error> {
    let failed = |op| move |source| Error::Socket { op, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => return Err(Error::NotASocket { path: path.to_owned() }),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(Error::InUse { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed("replace"))?;
            }
            Err(error) => return Err(failed("probe")(error)),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("inspect")(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    // Until here the umask rules, which never gives more than this.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed("protect"))?;
    Ok(listener)
}

/// Answers the requests of peers whose user is in `allowed`, until `cancel`; then takes the socket's name away.
///
/// Each request runs on its own; a panic in `answer` costs that request only.
pub async fn serve<Request, Response, Answer, Answered>(
    listener: UnixListener,
    allowed: Vec<u32>,
    cancel: CancellationToken,
    answer: Answer,
) where
    Request: DeserializeOwned + Send + 'static,
    Response: Serialize + Send + 'static,
    Answer: Fn(Peer, Request) -> Answered + Send + Sync + 'static,
    Answered: Future<Output = Response> + Send + 'static,
{
    let _name = Name(listener.local_addr().ok().and_then(|addr| addr.as_pathname().map(Path::to_owned)));
    let answer = Arc::new(answer);
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // Every arm is cancel-safe: a token, a permit and accept lose nothing when dropped.
        let permit = tokio::select! {
            () = cancel.cancelled() => break,
            permit = Arc::clone(&permits).acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) => {
                let answer = Arc::clone(&answer);
                let allowed = allowed.clone();
                connections.spawn(async move {
                    let _permit = permit;
                    if let Err(error) = connection(stream, &allowed, answer).await {
                        tracing::debug!(error = &error as &dyn std::error::Error, "ipc: a connection ended");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, mostly: others must end first.
                tracing::warn!(error = &error as &dyn std::error::Error, "ipc: cannot accept");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    connections.shutdown().await;
}

/// Removes the socket's name when the server ends.
struct Name(Option<PathBuf>);

impl Drop for Name {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It may be gone with its directory.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn connection<Request, Response, Answer, Answered>(
    mut stream: UnixStream,
    allowed: &[u32],
    answer: Arc<Answer>,
) -> Result<(), Error>
where
    Request: DeserializeOwned + Send + 'static,
    Response: Serialize + Send + 'static,
    Answer: Fn(Peer, Request) -> Answered + Send + Sync + 'static,
    Answered: Future<Output = Response> + Send + 'static,
{
    let credentials = stream.peer_cred().map_err(Error::Read)?;
    let peer = Peer { uid: credentials.uid(), pid: credentials.pid() };
    if !allowed.contains(&peer.uid) {
        tracing::debug!(uid = peer.uid, pid = peer.pid, "ipc: a user is refused");
        return stream.write_all(&UNWELCOME).await.map_err(Error::Write);
    }
    stream.write_all(&WELCOME).await.map_err(Error::Write)?;
    let (mut input, mut output) = stream.into_split();
    let (answers, mut outgoing) = mpsc::channel::<Vec<u8>>(REQUESTS);
    // One set for all that belongs to this connection: it ends as a whole.
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        while let Some(octets) = outgoing.recv().await {
            if output.write_all(&octets).await.is_err() {
                break;
            }
        }
    });
    let permits = Arc::new(Semaphore::new(REQUESTS));
    loop {
        let permit = Arc::clone(&permits).acquire_owned().await.expect("this semaphore is never closed");
        while tasks.try_join_next().is_some() {}
        let Some((id, body)) = frame::read(&mut input).await? else { return Ok(()) };
        let answers = answers.clone();
        let answer = Arc::clone(&answer);
        tasks.spawn(async move {
            let _permit = permit;
            let reply = match frame::decode::<Request>(&body) {
                Ok(request) => {
                    let answered = AssertUnwindSafe(async { answer(peer, request).await }).catch_unwind().await;
                    answered.map_err(|_panic| Fault::Panicked)
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "ipc: a request does not decode");
                    Err(Fault::Malformed)
                }
            };
            let octets = frame::encode(id, &reply)
                .or_else(|_| frame::encode(id, &Err::<Response, _>(Fault::AnswerTooLarge)))
                .expect("a fault always encodes");
            // The peer may be gone.
            let _ = answers.send(octets).await;
        });
    }
}
