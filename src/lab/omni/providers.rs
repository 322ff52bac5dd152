//! Omni's side of a provider's life: its join config and namespace, the status that people see, and the clean-up after it
//! was removed.
//!
//! Edge: it runs a task and reads the clock.
//!
//! Source: contract omni-wire.md sections 2.7, 4.3 and 4.4.

use std::time::Duration;

use tokio::task::JoinSet;

use super::accounts::Accounts;
use super::controller::{Controller, links};
use super::lifecycle::Input;
use super::role::Identity;
use super::seeds::{self, Generation};
use super::state::State;
use super::types;
use crate::proto::specs::infra_provider_combined_status_spec::Health;
use crate::proto::specs::{InfraProviderCombinedStatusSpec, InfraProviderHealthStatusSpec, InfraProviderStatusSpec};
use crate::resource::{Kind, LABEL_INFRA_PROVIDER_ID, NAMESPACE_INFRA_PROVIDER_EPHEMERAL, Phase, Resource};
use crate::time::UnixTime;

/// Who holds an InfraProvider on Omni's side.
const FINALIZERS: [&str; 3] =
    ["InfraProviderCleanupController", "ProviderJoinConfigController", "InfraProviderStatusController"];
/// A provider whose heartbeat is older than this is shown as disconnected.
const HEARTBEAT: Duration = Duration::from_secs(31);
/// How often heartbeats are looked at.
const TICK: Duration = Duration::from_secs(1);
const COMBINED_OWNER: &str = "InfraProviderCombinedStatusController";

/// The kind of the statuses that people see.
pub fn combined_statuses() -> Kind {
    Kind::new(types::NAMESPACE_EPHEMERAL, "InfraProviderCombinedStatuses.omni.sidero.dev")
}

fn health_statuses() -> Kind {
    Kind::new(NAMESPACE_INFRA_PROVIDER_EPHEMERAL, "InfraProviderHealthStatuses.omni.sidero.dev")
}

/// Omni's controllers of providers.
#[derive(Clone, Debug)]
pub(super) struct Providers {
    pub(super) state: State,
    pub(super) accounts: Accounts,
    pub(super) controller: Controller,
    pub(super) machine_api: String,
    pub(super) generation: Generation,
}

impl Providers {
    /// Looks at every provider now, and again after each change of one.
    pub(super) fn spawn(self, tasks: &mut JoinSet<()>) {
        let kinds = [Kind::omni("InfraProviders"), Kind::omni("InfraProviderStatuses"), health_statuses()];
        let mut bells = self.state.bells(kinds);
        tasks.spawn(async move {
            loop {
                self.reconcile();
                // Cancel-safe: both only wait.
                tokio::select! {
                    () = bells.rung() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
            }
        });
    }

    /// One look at every provider.
    pub(super) fn reconcile(&self) {
        let providers = Kind::omni("InfraProviders");
        for provider in self.state.list(&providers) {
            let id = provider.id.as_str();
            if provider.phase == Phase::TearingDown {
                self.clean_up(id);
                let _ = self.state.modify(&providers, id, |stored| {
                    stored.finalizers.retain(|finalizer| !FINALIZERS.contains(&finalizer.as_str()));
                });
                continue;
            }
            let _ = self.state.modify(&providers, id, |stored| {
                stored.finalizers.extend(FINALIZERS.map(str::to_owned));
            });
            let _ = self.state.create(types::namespace(&format!("infra-provider:{id}")), types::META_OWNER);
            if self.generation == Generation::Current && self.state.get(&Kind::omni("ProviderJoinConfigs"), id).is_err()
            {
                let _ = seeds::join_config(&self.state, id, &self.machine_api);
            }
            self.show(id);
        }
    }

    /// Writes what people see of a provider.
    fn show(&self, id: &str) {
        let status = self.state.get(&Kind::omni("InfraProviderStatuses"), id).ok();
        let status = status.and_then(|status| status.decode::<InfraProviderStatusSpec>().ok());
        let health = self.state.get(&health_statuses(), id).ok();
        let health = health.and_then(|health| health.decode::<InfraProviderHealthStatusSpec>().ok());
        let initialized = status.is_some();
        let status = status.unwrap_or_default();
        let beat = health.as_ref().and_then(|health| health.last_heartbeat_timestamp).map(UnixTime::from);
        let spec = InfraProviderCombinedStatusSpec {
            name: status.name,
            description: status.description,
            icon: status.icon,
            version: status.version,
            health: Some(Health {
                connected: beat.is_some_and(|beat| UnixTime::now().since(beat) < HEARTBEAT),
                error: health.map(|health| health.error).unwrap_or_default(),
                initialized,
            }),
        };
        let mut resource = Resource::new(combined_statuses(), id, &spec);
        resource.owner = COMBINED_OWNER.to_owned();
        let _ = self.state.put(resource, |stored| stored.encode(&spec));
    }

    /// Removes what a provider leaves behind: its machines, their finalizers of its, its statuses, its account.
    fn clean_up(&self, id: &str) {
        let label_is =
            |resource: &Resource| resource.labels.get(LABEL_INFRA_PROVIDER_ID).is_some_and(|provider| provider == id);
        let own = format!("{id}.");
        for kind in ["InfraMachines", "MachineRequests"].map(Kind::omni) {
            for resource in self.state.list(&kind).into_iter().filter(|resource| label_is(resource)) {
                if kind.r#type.starts_with("InfraMachines") {
                    let _ = self.controller.apply(&resource.id, Input::Removed);
                }
                let _ = self.state.modify(&kind, &resource.id, |stored| {
                    stored.finalizers.retain(|finalizer| !finalizer.starts_with(&own) && finalizer != id);
                });
            }
        }
        let kinds = [
            links(),
            Kind::omni("InfraProviderStatuses"),
            health_statuses(),
            Kind::omni("ProviderJoinConfigs"),
            combined_statuses(),
        ];
        for kind in kinds {
            for resource in self.state.list(&kind).into_iter().filter(|r| r.id == id || label_is(r)) {
                let _ = self.state.destroy(&kind, &resource.id, &resource.owner);
            }
        }
        self.accounts.forget(&Identity::Provider(id.into()));
    }
}
