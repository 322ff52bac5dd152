//! The store over a socket: one process owns it, the others ask.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::{Batch, Error, Health, Store, Tree};
use crate::ipc;

/// How long a call may take, a restart of the store's process included.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How often a call is made when the connection breaks under it.
const ATTEMPTS: u32 = 3;
/// Bytes of keys and values in one page of a list.
const PAGE: usize = 1024 * 1024;

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Get { tree: Tree, key: String },
    List { tree: Tree, after: Option<String> },
    Commit(Batch),
    Export,
    Health,
}

#[derive(Debug, Serialize, Deserialize)]
enum Response {
    Value(Option<Vec<u8>>),
    Page { records: Vec<(String, Vec<u8>)>, more: bool },
    Done,
    Health(Health),
    Failed { reason: String, transient: bool },
}

/// Answers for `store` on `listener` to the users in `allowed`, until `cancel`.
pub async fn serve(store: Arc<dyn Store>, listener: UnixListener, allowed: Vec<u32>, cancel: CancellationToken) {
    let answer = move |_: ipc::Peer, request: Request| {
        let store = Arc::clone(&store);
        async move {
            answer(store.as_ref(), request)
                .await
                .unwrap_or_else(|error| Response::Failed { transient: error.is_transient(), reason: chain(&error) })
        }
    };
    ipc::serve(listener, allowed, cancel, answer).await;
}

async fn answer(store: &dyn Store, request: Request) -> Result<Response, Error> {
    Ok(match request {
        Request::Get { tree, key } => Response::Value(store.get(tree, &key).await?),
        Request::List { tree, after } => page(store.list(tree).await?, after.as_deref()),
        Request::Commit(batch) => {
            store.commit(batch).await?;
            Response::Done
        }
        Request::Export => {
            store.export().await?;
            Response::Done
        }
        Request::Health => Response::Health(store.health().await?),
    })
}

fn page(all: Vec<(String, Vec<u8>)>, after: Option<&str>) -> Response {
    let mut records = Vec::new();
    let mut bytes = 0;
    for (key, value) in all {
        if after.is_some_and(|after| key.as_str() <= after) {
            continue;
        }
        if bytes >= PAGE {
            return Response::Page { records, more: true };
        }
        bytes += key.len() + value.len();
        records.push((key, value));
    }
    Response::Page { records, more: false }
}

/// An error and its causes in one line, for the other side of a socket.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The store of another process.
///
/// Every call may be repeated when the connection breaks under it: reads change nothing, and a batch has the same
/// outcome when it is applied twice in a row.
#[derive(Clone)]
pub struct StoreClient {
    client: ipc::Client<Request, Response>,
}

impl StoreClient {
    /// The store that is served at `path`, now or soon; calls wait for it. Must be called inside a runtime.
    pub fn connect(path: &Path) -> Self {
        Self { client: ipc::Client::new(path, TIMEOUT) }
    }

    async fn call(&self, request: Request) -> Result<Response, Error> {
        let mut attempt = 1;
        loop {
            match self.client.call(&request).await {
                Ok(Response::Failed { reason, transient }) => return Err(Error::Refused { reason, transient }),
                Ok(response) => return Ok(response),
                Err(ipc::Error::Lost { .. }) if attempt < ATTEMPTS => attempt += 1,
                Err(source) => return Err(Error::Unreachable { source }),
            }
        }
    }

    async fn call_for_done(&self, request: Request) -> Result<(), Error> {
        match self.call(request).await? {
            Response::Done => Ok(()),
            _ => Err(Error::Misbehaved),
        }
    }
}

#[async_trait]
impl Store for StoreClient {
    async fn get(&self, tree: Tree, key: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.call(Request::Get { tree, key: key.to_owned() }).await? {
            Response::Value(value) => Ok(value),
            _ => Err(Error::Misbehaved),
        }
    }

    /// Comes in pages: what changes meanwhile may be in it or not.
    async fn list(&self, tree: Tree) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let mut all: Vec<(String, Vec<u8>)> = Vec::new();
        loop {
            let after = all.last().map(|(key, _)| key.clone());
            let Response::Page { records, more } = self.call(Request::List { tree, after: after.clone() }).await?
            else {
                return Err(Error::Misbehaved);
            };
            // Without progress this would never end.
            if more && records.last().map(|(key, _)| key) <= after.as_ref() {
                return Err(Error::Misbehaved);
            }
            all.extend(records);
            if !more {
                return Ok(all);
            }
        }
    }

    async fn commit(&self, batch: Batch) -> Result<(), Error> {
        batch.check()?;
        self.call_for_done(Request::Commit(batch)).await
    }

    async fn export(&self) -> Result<(), Error> {
        self.call_for_done(Request::Export).await
    }

    async fn health(&self) -> Result<Health, Error> {
        match self.call(Request::Health).await? {
            Response::Health(health) => Ok(health),
            _ => Err(Error::Misbehaved),
        }
    }
}
