//! Builds the status snapshot and publishes it a few times a second while something changes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::controller::rack::Rack;
use crate::controller::records::confirmed;
use crate::omni::Mirror;
use crate::omni::mirror::Freshness;
use crate::status::{Link, Service, Snapshot};
use crate::telemetry::Counters;
use crate::time::{UnixTime, Uptime};

/// The least time between two snapshots.
const PACE: Duration = Duration::from_millis(250);
/// A snapshot is made this often though nothing changed: counters move on their own.
const REFRESH: Duration = Duration::from_secs(5);

/// What goes into a snapshot.
pub struct Sources {
    /// The provider's ID.
    pub provider_id: String,
    /// Omni's endpoint, as configured.
    pub endpoint: String,
    /// When this process started.
    pub started: UnixTime,
    /// The machines.
    pub rack: Rack,
    /// Omni's resources.
    pub mirror: Mirror,
    /// Why the provider could not be registered, or what ails its key; empty when nothing does.
    pub omni_trouble: watch::Receiver<String>,
    /// Why Omni did not take the last heartbeat; empty when it did.
    pub heartbeat_trouble: watch::Receiver<String>,
    /// When the service account key expires.
    pub key_expires: Option<UnixTime>,
    /// The services.
    pub services: watch::Receiver<Vec<Service>>,
    /// The counters.
    pub counters: Counters,
}

impl Sources {
    /// The snapshot at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let now = Uptime::now();
        let connected = confirmed(&self.mirror, now);
        let watch_trouble =
            self.mirror.kinds(now).into_iter().map(|kind| kind.trouble).find(|trouble| !trouble.is_empty());
        let heartbeat_trouble = self.heartbeat_trouble.borrow().clone();
        let registration_trouble = self.omni_trouble.borrow().clone();
        let trouble = [watch_trouble.unwrap_or_default(), heartbeat_trouble.clone(), registration_trouble];
        let trouble = trouble.into_iter().find(|trouble| !trouble.is_empty()).unwrap_or_default();
        let synced = match self.mirror.freshness(now) {
            Freshness::Confirmed(ago) => Some(UnixTime::from_millis(
                UnixTime::now().as_millis().saturating_sub(u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
            )),
            Freshness::Stored(at) => Some(at),
            Freshness::Unknown => None,
        };
        Snapshot {
            provider_id: self.provider_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: self.started,
            omni: Link {
                endpoint: self.endpoint.clone(),
                connected: connected && heartbeat_trouble.is_empty(),
                trouble,
                synced,
                key_expires: self.key_expires,
            },
            services: self.services.borrow().clone(),
            machines: self.rack.machines(),
            appliance: None,
            counters: self.counters.snapshot().into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }

    /// Publishes snapshots until `cancel`.
    pub async fn publish(mut self, snapshots: watch::Sender<Arc<Snapshot>>, cancel: CancellationToken) {
        let mut machines = self.rack.changes();
        while !cancel.is_cancelled() {
            let snapshot = self.snapshot();
            let connected = snapshot.omni.connected;
            snapshots.send_replace(Arc::new(snapshot));
            // Cancel-safe: all arms only wait.
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = machines.changed() => {}
                _ = self.services.changed() => {}
                Ok(()) = self.omni_trouble.changed() => {}
                () = turn(&self.mirror, connected) => {}
                () = tokio::time::sleep(REFRESH) => {}
            }
            tokio::time::sleep(PACE).await;
        }
    }
}

/// Waits until Omni is connected no more, or again. Asked for now and then, since a connection that says nothing for a
/// while counts as lost without an event.
async fn turn(mirror: &Mirror, connected: bool) {
    while confirmed(mirror, Uptime::now()) == connected {
        tokio::time::sleep(PACE).await;
    }
}
