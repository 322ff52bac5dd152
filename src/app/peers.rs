//! What the services ask of each other over their sockets.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::health;
use crate::images::{AssetPath, Cache, Images, Index, IndexError, SchematicId, Unavailable};
use crate::ipc;
use crate::status::{Link, Service, Snapshot};
use crate::store::{Batch, Store, Tree};
use crate::supervise::control::{Reply, Request, ServiceStatus, Status};

/// A schematic may have to be registered first, an asset downloaded.
const IMAGES_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the images service is asked when it ends while it works on an answer. Asking twice changes nothing.
const IMAGES_ATTEMPTS: u32 = 3;
/// How often the web service asks for the provider's state.
const STATUS_PACE: Duration = Duration::from_millis(500);
/// Without these no machine boots.
const FOR_BOOTS: [&str; 4] = ["store", "images", "dhcp", "tftp"];
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

/// Follows the provider's snapshots and, in the appliance, PID 1's view of the box. While the provider is away its last
/// snapshot stands, marked so.
pub(super) async fn follow_status(
    path: PathBuf,
    sender: watch::Sender<Arc<Snapshot>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let client: ipc::Client<(), String> = ipc::Client::new(&path, STATUS_TIMEOUT);
    let mut provider = Snapshot::default();
    while !cancel.is_cancelled() {
        let appliance = match ipc::init::ask(Request::Status).await {
            Ok(Reply::Status(status)) => Some(status),
            Ok(_) | Err(_) => None,
        };
        publish(&sender, with_appliance(provider.clone(), appliance.clone()));
        match client.call(&()).await.map(|json| serde_json::from_str::<Snapshot>(&json)) {
            Ok(Ok(snapshot)) => provider = snapshot,
            Ok(Err(_)) | Err(_) => {
                let trouble = "the provider service does not answer; it is being restarted".to_owned();
                provider.omni = Link { connected: false, trouble, ..provider.omni };
            }
        }
        publish(&sender, with_appliance(provider.clone(), appliance));
        // Cancel-safe: both only wait.
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(STATUS_PACE) => {}
        }
    }
    Ok(())
}

/// Follows what machines need to boot beside this process. What has had no chance yet is not down.
pub(super) async fn follow_services(
    sender: watch::Sender<Vec<Service>>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    while !cancel.is_cancelled() {
        if let Ok(Reply::Status(status)) = ipc::init::ask(Request::Status).await {
            let needed = |of: &&ServiceStatus| FOR_BOOTS.contains(&of.name.as_str());
            let tried = |of: &ServiceStatus| match of.restarts {
                0 => Service { up: true, ..service(of) },
                _ => service(of),
            };
            let services: Vec<_> = status.services.iter().filter(needed).map(tried).collect();
            sender.send_if_modified(|last| {
                let changed = *last != services;
                *last = services;
                changed
            });
        }
        // Cancel-safe: both only wait.
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(health::PACE) => {}
        }
    }
    Ok(())
}

fn publish(sender: &watch::Sender<Arc<Snapshot>>, snapshot: Snapshot) {
    sender.send_if_modified(|last| {
        let new = **last != snapshot;
        if new {
            *last = Arc::new(snapshot);
        }
        new
    });
}

/// The provider's snapshot with all services of the box in place of its own.
fn with_appliance(mut snapshot: Snapshot, mut appliance: Option<Status>) -> Snapshot {
    if let Some(status) = &mut appliance {
        snapshot.services = status.services.iter().map(service).collect();
        // What the box's disks hold is for those who have entered the setup code.
        status.installation.disks.clear();
    }
    Snapshot { appliance, ..snapshot }
}

/// A service of the box in a few words that do not change by themselves.
fn service(of: &ServiceStatus) -> Service {
    let state = match (of.degraded, of.ready, of.pid) {
        (true, _, _) => "fails again and again",
        (false, true, _) => "",
        (false, false, Some(_)) => "starts",
        (false, false, None) => "waits to be started",
    };
    let past = match of.restarts {
        0 => String::new(),
        1 => format!("restarted once after {}", of.last_exit),
        count => format!("restarted {count} times, last after {}", of.last_exit),
    };
    let words: Vec<_> = [of.says.as_str(), state, &past].into_iter().filter(|text| !text.is_empty()).collect();
    Service { name: of.name.clone(), up: of.ready && !of.degraded, detail: words.join("; ") }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_services_of_the_box_are_shown_with_what_ails_them() {
        let of = |name: &str, ready, restarts, says: &str| ServiceStatus {
            name: name.into(),
            pid: Some(7),
            ready,
            restarts,
            last_exit: "signal 9".into(),
            says: says.into(),
            ..ServiceStatus::default()
        };
        let degraded = ServiceStatus { degraded: true, pid: None, ..of("web", false, 9, "") };
        let services =
            vec![of("store", true, 0, "/data"), of("tftp", true, 1, "port 69"), of("dhcp", false, 0, ""), degraded];
        let own = vec![Service { name: "provider".into(), up: true, detail: String::new() }];
        let provider = Snapshot { services: own, ..Snapshot::default() };
        assert_eq!(with_appliance(provider.clone(), None), provider);
        let shown = with_appliance(provider, Some(Status { services, ..Status::default() })).services;
        let shown: Vec<_> = shown.iter().map(|one| format!("{} {} {}", one.name, one.up, one.detail)).collect();
        assert_eq!(
            shown,
            [
                "store true /data",
                "tftp true port 69; restarted once after signal 9",
                "dhcp false starts",
                "web false fails again and again; restarted 9 times, last after signal 9"
            ]
        );
    }
}
