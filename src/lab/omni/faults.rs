//! Faults that a test, or the lab's user, tells the double to have.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::Code;

use super::collection::Stored;
use super::port::{Port, PortError};
use super::state::State;
use crate::resource::{Kind, NAMESPACE_DEFAULT, NAMESPACE_INFRA_PROVIDER};
use crate::time::UnixTime;

/// The knobs; all of them harmless at first. They act on calls that begin after they were set.
#[derive(Debug)]
pub struct Faults {
    state: State,
    grpc: Port,
    factory: Port,
    knobs: std::sync::Arc<Knobs>,
}

/// What the services look at.
#[derive(Debug, Default)]
pub(super) struct Knobs {
    conflicts: AtomicU32,
    delay_ms: AtomicU64,
    clock_offset: AtomicI64,
    refuse: Mutex<Option<(Code, String)>>,
    /// The management service answers Unimplemented, as an Omni before 1.8.
    pub(super) no_management: AtomicBool,
    /// The image factory answers 503.
    pub(super) factory_unavailable: AtomicBool,
    /// Every account is suspended.
    pub(super) suspended: AtomicBool,
    old: AtomicBool,
    /// What the kinds that Omni caches held when the cache stopped.
    cache: Mutex<Option<HashMap<Kind, Vec<Arc<Stored>>>>>,
}

/// The kinds that Get and List read through Omni's cache, where nobody asks whose they are.
///
/// Source: contract omni-wire.md section 3.5.
pub(super) fn is_cached(kind: &Kind) -> bool {
    matches!(
        (kind.namespace.as_str(), kind.r#type.as_str()),
        (NAMESPACE_INFRA_PROVIDER, "ConfigPatchRequests.omni.sidero.dev" | "ProviderJoinConfigs.omni.sidero.dev")
            | (
                NAMESPACE_DEFAULT,
                "SiderolinkAPIConfigs.omni.sidero.dev"
                    | "ConnectionParams.omni.sidero.dev"
                    | "Machines.omni.sidero.dev"
            )
    )
}

fn cached_kinds() -> [Kind; 5] {
    let default = |name: &str| Kind::new(NAMESPACE_DEFAULT, format!("{name}.omni.sidero.dev"));
    [
        Kind::omni("ConfigPatchRequests"),
        Kind::omni("ProviderJoinConfigs"),
        default("SiderolinkAPIConfigs"),
        default("ConnectionParams"),
        default("Machines"),
    ]
}

impl Knobs {
    /// The double's wall clock.
    pub(super) fn now(&self) -> UnixTime {
        let real = UnixTime::now();
        let offset = self.clock_offset.load(Ordering::Relaxed);
        let distance = Duration::from_secs(offset.unsigned_abs());
        if offset < 0 {
            UnixTime::from_millis(real.as_millis().saturating_sub(distance.as_millis() as u64))
        } else {
            real + distance
        }
    }

    /// How long a call waits before it is served.
    pub(super) fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.load(Ordering::Relaxed))
    }

    /// The refusal that every call gets.
    pub(super) fn refusal(&self) -> Option<tonic::Status> {
        let refuse = self.refuse.lock().unwrap_or_else(PoisonError::into_inner);
        refuse.as_ref().map(|(code, text)| tonic::Status::new(*code, text.as_str()))
    }

    /// An Omni from before 1.8: calls and types that came later are missing.
    pub(super) fn set_old(&self, old: bool) {
        self.old.store(old, Ordering::Relaxed);
        self.no_management.store(old, Ordering::Relaxed);
    }

    /// Whether [`Self::set_old`] was said.
    pub(super) fn is_old(&self) -> bool {
        self.old.load(Ordering::Relaxed)
    }

    /// What a stopped cache holds of a kind that is cached; `None` while it runs.
    pub(super) fn cached(&self, kind: &Kind) -> Option<Vec<Arc<Stored>>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.get(kind).cloned()
    }

    /// Whether this update is to conflict; takes one from the number that was asked for.
    pub(super) fn take_conflict(&self) -> bool {
        self.conflicts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

impl Faults {
    pub(super) fn new(state: State, grpc: Port, factory: Port, knobs: std::sync::Arc<Knobs>) -> Self {
        Self { state, grpc, factory, knobs }
    }

    /// Cuts every connection to the API, streams and all; new ones are accepted.
    pub async fn drop_streams(&self) {
        self.grpc.drop_connections().await;
    }

    /// Restarts Omni: bookmarks become invalid, provider health is lost, connections are cut.
    pub async fn restart(&self) {
        self.state.restart();
        self.grpc.drop_connections().await;
    }

    /// Ends every watch with an ERRORED event, as after a buffer overrun.
    pub fn overrun_watches(&self) {
        self.state.overrun();
    }

    /// The next `updates` updates of providers meet a version conflict.
    pub fn conflict(&self, updates: u32) {
        self.knobs.conflicts.store(updates, Ordering::Relaxed);
    }

    /// Makes every bookmark invalid, as etcd's compaction does; what stands goes on.
    pub fn invalidate_bookmarks(&self) {
        self.state.invalidate_bookmarks();
    }

    /// Stops the cache through which Omni reads join configs, config patch requests, machines and parameters: Get and List
    /// of them answer with what was there at this moment, watches go on.
    pub fn stop_cache(&self) {
        let held = cached_kinds().into_iter().map(|kind| (kind.clone(), self.state.list(&kind))).collect();
        *self.knobs.cache.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    /// Ends [`Self::stop_cache`].
    pub fn run_cache(&self) {
        *self.knobs.cache.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Suspends the Omni account, payment due: everybody may read and nobody write.
    pub fn suspend(&self, suspended: bool) {
        self.knobs.suspended.store(suspended, Ordering::Relaxed);
    }

    /// Every signed call is refused with this code and text: `PermissionDenied`, `Unavailable`, `DeadlineExceeded`, or
    /// `FailedPrecondition` for an EULA that nobody accepted.
    pub fn refuse(&self, code: Code, text: &str) {
        *self.knobs.refuse.lock().unwrap_or_else(PoisonError::into_inner) = Some((code, text.to_owned()));
    }

    /// Ends [`Self::refuse`].
    pub fn serve_again(&self) {
        *self.knobs.refuse.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Every signed call waits `delay` before it is served.
    pub fn slow(&self, delay: Duration) {
        self.knobs.delay_ms.store(delay.as_millis() as u64, Ordering::Relaxed);
    }

    /// The double's clock is ahead by so many seconds; behind, if negative.
    pub fn clock_offset(&self, seconds: i64) {
        self.knobs.clock_offset.store(seconds, Ordering::Relaxed);
    }

    /// The management service answers Unimplemented, as before Omni 1.8.
    pub fn no_management(&self, absent: bool) {
        self.knobs.no_management.store(absent, Ordering::Relaxed);
    }

    /// Closes the API's listener and every connection; clients are refused. The state stays.
    pub async fn go_away(&self) {
        self.grpc.close().await;
    }

    /// Listens again, on the port from before.
    ///
    /// # Errors
    ///
    /// [`PortError`] when somebody took the port meanwhile.
    pub async fn come_back(&self) -> Result<(), PortError> {
        self.grpc.open().await
    }

    /// The image factory answers every request with 503.
    pub fn factory_unavailable(&self, unavailable: bool) {
        self.knobs.factory_unavailable.store(unavailable, Ordering::Relaxed);
    }

    /// Closes the image factory's listener; clients are refused.
    pub async fn factory_away(&self) {
        self.factory.close().await;
    }

    /// The image factory listens again, on the port from before.
    ///
    /// # Errors
    ///
    /// [`PortError`] when somebody took the port meanwhile.
    pub async fn factory_back(&self) -> Result<(), PortError> {
        self.factory.open().await
    }
}
