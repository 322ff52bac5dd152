//! What the services ask of each other over their sockets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::images::{AssetPath, Cache, Images, Index, IndexError, SchematicId, Unavailable};
use crate::ipc;
use crate::status::{Link, Snapshot};
use crate::store::{Batch, Store, Tree};

/// A schematic may have to be registered first, an asset downloaded.
const IMAGES_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the images service is asked when it ends while it works on an answer. Asking twice changes nothing.
const IMAGES_ATTEMPTS: u32 = 3;
/// How often the web service asks for the provider's state.
const STATUS_PACE: Duration = Duration::from_millis(500);
/// After this the page says that the provider is gone.
const STATUS_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Serialize, Deserialize)]
enum ImagesRequest {
    Schematic(String),
    Text { schematic: String, version: String, file: String },
}

type ImagesResponse = Result<String, String>;

/// The image cache of the images service.
pub(super) struct ImagesClient(ipc::Client<ImagesRequest, ImagesResponse>);

impl ImagesClient {
    pub(super) fn connect(path: &Path) -> Self {
        Self(ipc::Client::new(path, IMAGES_TIMEOUT))
    }

    async fn ask(&self, request: &ImagesRequest) -> Result<String, Unavailable> {
        let mut attempt = 1;
        loop {
            match self.0.call(request).await {
                Ok(answer) => return answer.map_err(|reason| Unavailable { reason }),
                Err(ipc::Error::Lost { .. }) if attempt < IMAGES_ATTEMPTS => attempt += 1,
                Err(error) => return Err(Unavailable::because(&error)),
            }
        }
    }
}

#[async_trait]
impl Images for ImagesClient {
    async fn schematic(&self, yaml: &str) -> Result<SchematicId, Unavailable> {
        let id = self.ask(&ImagesRequest::Schematic(yaml.to_owned())).await?;
        id.parse().map_err(|error| Unavailable::because(&error))
    }

    async fn text(&self, path: &AssetPath) -> Result<String, Unavailable> {
        let (schematic, version) = (path.schematic().as_str().to_owned(), path.version().to_owned());
        self.ask(&ImagesRequest::Text { schematic, version, file: path.file() }).await
    }
}

/// Answers for the image cache until `cancel`.
pub(super) async fn serve_images(
    listener: UnixListener,
    allowed: Vec<u32>,
    cache: Arc<Cache>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let answer = move |_: ipc::Peer, request: ImagesRequest| {
        let cache = Arc::clone(&cache);
        async move { answer_images(&cache, request).await.map_err(|error| error.reason) }
    };
    ipc::serve(listener, allowed, cancel, answer).await;
    Ok(())
}

async fn answer_images(cache: &Cache, request: ImagesRequest) -> Result<String, Unavailable> {
    match request {
        ImagesRequest::Schematic(yaml) => Images::schematic(cache, &yaml).await.map(|id| id.as_str().to_owned()),
        ImagesRequest::Text { schematic, version, file } => {
            let path = AssetPath::parse(&schematic, &version, &file).map_err(|error| Unavailable::because(&error))?;
            Images::text(cache, &path).await
        }
    }
}

/// Answers with the provider's latest snapshot until `cancel`. JSON, since the two sides may be of different versions
/// for a moment of an update.
pub(super) async fn serve_status(
    listener: UnixListener,
    allowed: Vec<u32>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let answer = move |_: ipc::Peer, (): ()| {
        let snapshot = Arc::clone(&snapshots.borrow());
        async move { serde_json::to_string(&*snapshot).unwrap_or_default() }
    };
    ipc::serve(listener, allowed, cancel, answer).await;
    Ok(())
}

/// Follows the provider's snapshots. While the provider is away the last one stands, marked so.
pub(super) async fn follow_status(
    path: PathBuf,
    sender: watch::Sender<Arc<Snapshot>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let client: ipc::Client<(), String> = ipc::Client::new(&path, STATUS_TIMEOUT);
    while !cancel.is_cancelled() {
        let answer = client.call(&()).await.map(|json| serde_json::from_str::<Snapshot>(&json));
        match answer {
            Ok(Ok(snapshot)) => {
                sender.send_if_modified(|last| {
                    let new = **last != snapshot;
                    *last = Arc::new(snapshot);
                    new
                });
            }
            Ok(Err(_)) | Err(_) => {
                let last = Arc::clone(&sender.borrow());
                let trouble = "the provider service does not answer; it is being restarted".to_owned();
                if last.omni.trouble != trouble {
                    let omni = Link { connected: false, trouble, ..last.omni.clone() };
                    sender.send_replace(Arc::new(Snapshot { omni, ..(*last).clone() }));
                }
            }
        }
        // Cancel-safe: both only wait.
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(STATUS_PACE) => {}
        }
    }
    Ok(())
}

/// The image index over the store's tree.
pub(super) struct StoreIndex(Arc<dyn Store>);

impl StoreIndex {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }
}

#[async_trait]
impl Index for StoreIndex {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, IndexError> {
        self.0.get(Tree::Image, key).await.map_err(|error| IndexError(Arc::new(error)))
    }

    async fn put(&self, key: &str, value: Vec<u8>) -> Result<(), IndexError> {
        let batch = Batch::new().put(Tree::Image, key, value);
        self.0.commit(batch).await.map_err(|error| IndexError(Arc::new(error)))
    }

    async fn remove(&self, key: &str) -> Result<(), IndexError> {
        let batch = Batch::new().remove(Tree::Image, key);
        self.0.commit(batch).await.map_err(|error| IndexError(Arc::new(error)))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<(String, Vec<u8>)>, IndexError> {
        let mut all = self.0.list(Tree::Image).await.map_err(|error| IndexError(Arc::new(error)))?;
        all.retain(|(key, _)| key.starts_with(prefix));
        Ok(all)
    }
}
