//! What every static provider does in Omni: says that it exists, that it is alive, and learns how machines join.
//!
//! Source: contract omni-wire.md sections 4.2 to 4.4, 7.2 and 8.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::error::{Call, Error};
use super::state::State;
use super::watch::{jittered, random};
use crate::proto::specs;
use crate::resource::{
    Kind, LABEL_INFRA_PROVIDER_ID, LABEL_IS_STATIC_INFRA_PROVIDER, NAMESPACE_INFRA_PROVIDER_EPHEMERAL, Resource,
};
use crate::secret::Secret;
use crate::time::UnixTime;

/// Omni calls a provider connected for 31 s after a heartbeat.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(20);
/// After a failed heartbeat, at most, so that a second try still falls into Omni's window.
const HEARTBEAT_RETRY: Duration = Duration::from_secs(5);
/// A heartbeat that takes longer than the rest of Omni's window is better sent anew.
const HEARTBEAT_DEADLINE: Duration = Duration::from_secs(5);

/// What Omni's users see of a provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registration {
    /// Display name.
    pub name: String,
    /// One line about it.
    pub description: String,
    /// SVG image in base64.
    pub icon: String,
    /// Version of the program.
    pub version: String,
}

/// The kind of provider statuses.
pub fn provider_status_kind() -> Kind {
    Kind::omni("InfraProviderStatuses")
}

/// The kind of provider health statuses, which Omni keeps in memory alone.
pub fn health_status_kind() -> Kind {
    Kind::new(NAMESPACE_INFRA_PROVIDER_EPHEMERAL, "InfraProviderHealthStatuses.omni.sidero.dev")
}

/// The owner of the health status, the same as the Go provider's: `<id>.ProviderHealthStatusController`.
pub fn health_owner(provider_id: &str) -> String {
    format!("{provider_id}.ProviderHealthStatusController")
}

/// Creates or updates the status that makes Omni take `provider_id` for a static provider; returns it as stored. Omni
/// hands out no machine before that.
///
/// # Errors
///
/// As for [`State::put`].
pub async fn register(state: &State, provider_id: &str, registration: &Registration) -> Result<Resource, Error> {
    let spec = specs::InfraProviderStatusSpec {
        schema: String::new(),
        name: registration.name.clone(),
        description: registration.description.clone(),
        icon: registration.icon.clone(),
        version: registration.version.clone(),
    };
    let fresh = Resource::new(provider_status_kind(), provider_id, &spec);
    let change = |resource: &mut Resource| {
        resource.spec = fresh.spec.clone();
        // Omni sets the provider's label itself; sending it keeps a comparison with the stored resource honest.
        resource.labels.insert(LABEL_INFRA_PROVIDER_ID.to_owned(), provider_id.to_owned());
        resource.labels.insert(LABEL_IS_STATIC_INFRA_PROVIDER.to_owned(), String::new());
    };
    state.put(&fresh, "", change).await
}

/// Beats once at `now`: writes the health status with `trouble` (empty for healthy) over `last`, or anew.
///
/// # Errors
///
/// As for [`State::put`].
pub async fn beat(
    state: &State,
    provider_id: &str,
    last: Option<&Resource>,
    trouble: &str,
    now: UnixTime,
) -> Result<Resource, Error> {
    let spec =
        specs::InfraProviderHealthStatusSpec { last_heartbeat_timestamp: Some(now.into()), error: trouble.to_owned() };
    if let Some(last) = last {
        let mut next = last.clone();
        next.encode(&spec);
        match state.update(&next, &last.owner, None).await {
            // Omni restarted and forgot, or someone else wrote: the long way round.
            Err(Error::NotFound(_) | Error::Conflict(_) | Error::OwnerConflict { .. }) => {}
            result => return result,
        }
    }
    let fresh = Resource::new(health_status_kind(), provider_id, &spec);
    state.put(&fresh, &health_owner(provider_id), |resource| resource.encode(&spec)).await
}

/// Beats every [`HEARTBEAT_INTERVAL`], and whenever `trouble` changes, until `cancel`. Failures are logged and retried;
/// `failure` holds the words of the last one until a beat succeeds. It tells what open streams don't: that Omni would
/// take no new call, for instance because a clock is wrong. `forgotten` is told when Omni has lost the last beat's status: it was
/// restarted, or restored from a copy that may not know the provider either.
pub async fn run_heartbeat(
    state: State,
    provider_id: String,
    mut trouble: watch::Receiver<String>,
    failure: watch::Sender<String>,
    forgotten: Arc<Notify>,
    cancel: CancellationToken,
) {
    let state = state.with_deadline(HEARTBEAT_DEADLINE);
    let mut last: Option<Resource> = None;
    let mut failing = false;
    let mut watched = true;
    loop {
        let text = trouble.borrow_and_update().clone();
        let beaten = tokio::select! {
            // Losing a heartbeat in flight is harmless: the next one replaces it.
            () = cancel.cancelled() => return,
            beaten = beat(&state, &provider_id, last.as_ref(), &text, UnixTime::now()) => beaten,
        };
        let pause = match beaten {
            Ok(resource) => {
                if failing {
                    tracing::info!(provider = provider_id, "heartbeat resumed");
                }
                failing = false;
                failure.send_replace(String::new());
                let anew = |last: Resource| last.created != resource.created || last.version > resource.version;
                if last.take().is_some_and(anew) {
                    forgotten.notify_one();
                }
                last = Some(resource);
                HEARTBEAT_INTERVAL
            }
            Err(error) => {
                let text = error.explain();
                if !failing {
                    tracing::warn!(provider = provider_id, error = text, "heartbeat failed");
                }
                failing = true;
                failure.send_replace(text);
                jittered(HEARTBEAT_RETRY, random())
            }
        };
        tokio::select! {
            // All three wait on conditions and lose nothing when dropped.
            () = cancel.cancelled() => return,
            changed = trouble.changed(), if watched => watched = changed.is_ok(),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// How machines join Omni through a provider. All of it is secret: it holds the join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinConfig {
    /// Kernel arguments, in Omni's order.
    pub kernel_args: Secret<Vec<String>>,
    /// The same as configuration documents (YAML).
    pub config: Secret<String>,
    /// The provider's own join token.
    pub join_token: Secret<String>,
}

/// Reads how machines join through `provider_id`. Omni answers from a cache, which may lag a moment behind.
///
/// # Errors
///
/// [`Error::NotFound`] until Omni has made it, soon after [`register`].
pub async fn join_config(state: &State, provider_id: &str) -> Result<JoinConfig, Error> {
    let kind = Kind::omni("ProviderJoinConfigs");
    decode_join_config(&state.get(&kind, provider_id).await?)
}

/// The join parameters in a ProviderJoinConfig.
///
/// # Errors
///
/// [`Error::Spec`] when its spec is none; [`Error::Misbehaved`] while Omni has not filled it.
pub fn decode_join_config(resource: &Resource) -> Result<JoinConfig, Error> {
    let call = Call::resource("Get", &resource.kind, &resource.id);
    let spec: specs::ProviderJoinConfigSpec = match resource.decode() {
        Ok(spec) => spec,
        Err(source) => return Err(Error::Spec { call, source }),
    };
    let Some(config) = spec.config else {
        return Err(Error::Misbehaved { call, what: "holds no join parameters yet" });
    };
    Ok(JoinConfig {
        kernel_args: Secret::new(config.kernel_args),
        config: Secret::new(config.config),
        join_token: Secret::new(spec.join_token),
    })
}
