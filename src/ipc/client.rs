//! The asking side.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::{Error, Fault, UNWELCOME, WELCOME, frame};

/// Requests that may wait for a connection; more wait for room.
const WAITING: usize = 256;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long a server may take to greet.
const GREETING: Duration = Duration::from_secs(5);

/// Asks the server behind one socket. Clones share the connection, which is made when first needed and made again, with
/// a growing pause between attempts, when it breaks. It ends with the last clone.
pub struct Client<Request, Response> {
    calls: mpsc::Sender<Call>,
    path: Arc<Path>,
    timeout: Duration,
    types: PhantomData<fn(Request) -> Response>,
}

impl<Request, Response> Clone for Client<Request, Response> {
    fn clone(&self) -> Self {
        Self { calls: self.calls.clone(), path: Arc::clone(&self.path), timeout: self.timeout, types: PhantomData }
    }
}

struct Call {
    /// The message with number zero; the connection gives it its own.
    octets: Vec<u8>,
    answer: oneshot::Sender<Result<Vec<u8>, Broken>>,
}

/// Why a call ended without an answer.
#[derive(Clone, Copy)]
enum Broken {
    Lost,
    Denied,
    Foreign,
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<Vec<u8>, Broken>>>>>;

impl<Request: Serialize, Response: DeserializeOwned> Client<Request, Response> {
    /// A client of the socket at `path`, which need not exist yet. Must be called inside a runtime.
    ///
    /// `timeout` bounds each call, the wait for a connection included.
    pub fn new(path: &Path, timeout: Duration) -> Self {
        let (calls, incoming) = mpsc::channel(WAITING);
        tokio::spawn(run(path.to_owned(), incoming));
        Self { calls, path: path.into(), timeout, types: PhantomData }
    }

    /// Asks, and awaits the answer.
    ///
    /// # Errors
    ///
    /// After [`Error::Lost`] and [`Error::Timeout`] the request may have been carried out all the same.
    pub async fn call(&self, request: &Request) -> Result<Response, Error> {
        let path = || self.path.to_path_buf();
        let octets = frame::encode(0, request)?;
        let asked = async {
            let (answer, answered) = oneshot::channel();
            self.calls.send(Call { octets, answer }).await.map_err(|_| Error::Ended { path: path() })?;
            match answered.await {
                Ok(Ok(body)) => Ok(body),
                Ok(Err(Broken::Denied)) => Err(Error::Denied { path: path() }),
                Ok(Err(Broken::Foreign)) => Err(Error::Foreign { path: path() }),
                Ok(Err(Broken::Lost)) | Err(_) => Err(Error::Lost { path: path() }),
            }
        };
        let body = tokio::time::timeout(self.timeout, asked)
            .await
            .map_err(|_| Error::Timeout { path: path(), after: self.timeout })??;
        let reply: Result<Response, Fault> = frame::decode(&body)?;
        reply.map_err(|source| Error::Fault { path: path(), source })
    }
}

/// Owns the connection until the last client is dropped.
async fn run(path: PathBuf, mut calls: mpsc::Receiver<Call>) {
    let mut pause = FIRST_PAUSE;
    let mut next_id = 0;
    // Nothing is connected before someone asks.
    while let Some(first) = next_call(&mut calls).await {
        let mut first = Some(first);
        while let Some(call) = first.take() {
            match connect(&path).await {
                Ok(stream) => {
                    pause = FIRST_PAUSE;
                    connected(stream, call, &mut calls, &mut next_id).await;
                }
                Err(Some(broken)) => {
                    // The caller may be gone.
                    let _ = call.answer.send(Err(broken));
                }
                Err(None) => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    first = (!call.answer.is_closed()).then_some(call);
                }
            }
        }
    }
}

/// The next call whose caller still waits.
async fn next_call(calls: &mut mpsc::Receiver<Call>) -> Option<Call> {
    loop {
        let call = calls.recv().await?;
        if !call.answer.is_closed() {
            return Some(call);
        }
    }
}

/// A connection whose server has greeted. `Err(None)` when there is no server yet.
async fn connect(path: &Path) -> Result<UnixStream, Option<Broken>> {
    let mut stream = UnixStream::connect(path).await.map_err(|error| {
        tracing::debug!(path = %path.display(), error = &error as &dyn std::error::Error, "ipc: cannot connect");
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Some(Broken::Denied),
            _ => None,
        }
    })?;
    let mut greeting = [0; WELCOME.len()];
    match tokio::time::timeout(GREETING, stream.read_exact(&mut greeting)).await {
        Ok(Ok(_)) if greeting == WELCOME => Ok(stream),
        Ok(Ok(_)) if greeting == UNWELCOME => Err(Some(Broken::Denied)),
        Ok(Ok(_)) => Err(Some(Broken::Foreign)),
        // It ended while we connected, or hangs.
        Ok(Err(_)) | Err(_) => Err(None),
    }
}

/// Sends calls and hands out answers until the connection breaks or no client is left.
async fn connected(stream: UnixStream, first: Call, calls: &mut mpsc::Receiver<Call>, next_id: &mut u64) {
    let (mut input, mut output) = stream.into_split();
    let pending: Pending = Arc::default();
    let lock = || pending.lock().expect("no code panics while it holds this lock");
    let sending = async {
        let mut next = Some(first);
        while let Some(mut call) = next {
            *next_id += 1;
            let id = *next_id;
            call.octets[4..12].copy_from_slice(&id.to_le_bytes());
            {
                let mut pending = lock();
                // Callers that gave up leave their entry behind; it goes when the next call comes.
                pending.retain(|_, answer| !answer.is_closed());
                pending.insert(id, call.answer);
            }
            if output.write_all(&call.octets).await.is_err() {
                return;
            }
            next = next_call(calls).await;
        }
    };
    let receiving = async {
        while let Ok(Some((id, body))) = frame::read(&mut input).await {
            if let Some(answer) = lock().remove(&id) {
                // The caller may have given up.
                let _ = answer.send(Ok(body));
            }
        }
    };
    // Whichever ends first ends the connection, and the other is never resumed.
    tokio::select! {
        () = sending => {}
        () = receiving => {}
    }
    for (_, answer) in lock().drain() {
        let _ = answer.send(Err(Broken::Lost));
    }
}
