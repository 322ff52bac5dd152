//! Omni's side of machines on request: sets become requests, a request's machine gets its link, its Machine and its config
//! patches, and all of it is taken down in order.
//!
//! Edge: it runs a task. Each look at the state brings it one step nearer to what it should be.
//!
//! Source: contract omni-wire.md section 5.5, steps 1, 5, 6 and 8, and what Omni does during step 9.

use std::collections::BTreeMap;

use tokio::task::JoinSet;

use super::controller::{join_token_usages, links, machine_of, machines, node_unique_tokens, registration};
use super::state::State;
use super::token::MACHINE_REQUEST;
use crate::proto::specs::{MachineClassSpec, MachineRequestSetSpec, MachineRequestSpec, MachineRequestStatusSpec};
use crate::resource::{Kind, LABEL_INFRA_PROVIDER_ID, NAMESPACE_DEFAULT, Phase, Resource};

/// Names the set of a request.
pub const LABEL_REQUEST_SET: &str = "omni.sidero.dev/machine-request-set";
/// On a machine that was made for a set, and is not there for the taking.
const NO_MANUAL_ALLOCATION: &str = "omni.sidero.dev/no-manual-allocation";
/// Omni's hold on a request.
pub const REQUEST_FINALIZER: &str = "ClusterMachineRequestStatusController";
/// Omni's hold on a request's status, until the machine is out of its cluster and its link is gone.
pub const STATUS_FINALIZER: &str = "MachineRequestStatusCleanupController";
/// Omni's hold on a config patch request.
pub const PATCH_FINALIZER: &str = "ConfigPatchRequestController";
const PATCH_OWNER: &str = "InfraProviderConfigPatchController";

/// The kind of request sets.
pub fn request_sets() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "MachineRequestSets.omni.sidero.dev")
}

/// The kind of machine classes.
pub fn machine_classes() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "MachineClasses.omni.sidero.dev")
}

/// What `count` machines of a class are asked for with, for a cluster of this Talos version; `None` when the class only
/// picks from machines that are there.
pub fn set_of(class: &MachineClassSpec, count: u16, talos_version: &str) -> Option<MachineRequestSetSpec> {
    let provision = class.auto_provision.clone()?;
    Some(MachineRequestSetSpec {
        provider_id: provision.provider_id,
        machine_count: count.into(),
        talos_version: talos_version.to_owned(),
        extensions: Vec::new(),
        kernel_args: provision.kernel_args,
        meta_values: provision.meta_values,
        provider_data: provision.provider_data,
        grpc_tunnel: provision.grpc_tunnel,
    })
}

/// The kind of config patches.
pub fn config_patches() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "ConfigPatches.omni.sidero.dev")
}

/// Omni's controllers of machines on request.
#[derive(Clone, Debug)]
pub(super) struct Dynamic {
    pub(super) state: State,
}

impl Dynamic {
    /// Looks at everything now, and again after each change.
    pub(super) fn spawn(self, tasks: &mut JoinSet<()>) {
        let shared = ["MachineRequests", "MachineRequestStatuses", "ConfigPatchRequests"].map(Kind::omni);
        let mut bells = self.state.bells(shared.into_iter().chain([request_sets(), links()]));
        tasks.spawn(async move {
            loop {
                self.reconcile();
                bells.rung().await;
            }
        });
    }

    /// One look.
    pub(super) fn reconcile(&self) {
        for set in self.state.list(&request_sets()) {
            self.scale(&set);
        }
        for status in self.state.list(&Kind::omni("MachineRequestStatuses")) {
            match status.phase {
                Phase::Running => self.attach(&status),
                Phase::TearingDown => self.detach(&status),
            }
        }
        for patch in self.state.list(&Kind::omni("ConfigPatchRequests")) {
            self.patch(&patch);
        }
        for request in self.state.list(&Kind::omni("MachineRequests")) {
            self.hold(&request);
        }
    }

    /// Makes as many requests as a set wants, or lets the oldest go.
    fn scale(&self, set: &Resource) {
        let Ok(spec) = set.decode::<MachineRequestSetSpec>() else { return };
        let kind = Kind::omni("MachineRequests");
        let mut requests = self.state.list(&kind);
        requests.retain(|r| r.phase == Phase::Running && r.labels.get(LABEL_REQUEST_SET) == Some(&set.id));
        requests.sort_by_key(|request| request.created);
        let wanted = if set.phase == Phase::Running { usize::try_from(spec.machine_count).unwrap_or(0) } else { 0 };
        for request in requests.iter().take(requests.len().saturating_sub(wanted)) {
            let _ = self.state.teardown(&kind, &request.id, &request.owner);
        }
        for _ in requests.len()..wanted {
            let request = MachineRequestSpec {
                talos_version: spec.talos_version.clone(),
                extensions: spec.extensions.clone(),
                kernel_args: spec.kernel_args.clone(),
                meta_values: spec.meta_values.clone(),
                provider_data: spec.provider_data.clone(),
                grpc_tunnel: spec.grpc_tunnel,
                overlay: None,
            };
            let mut resource = Resource::new(kind.clone(), format!("{}-{}", set.id, suffix()), &request);
            resource.labels = BTreeMap::from([
                (LABEL_INFRA_PROVIDER_ID.to_owned(), spec.provider_id.clone()),
                (LABEL_REQUEST_SET.to_owned(), set.id.clone()),
            ]);
            let _ = self.state.create(resource, "");
        }
    }

    /// Holds a request's status, and joins the request with the link of its machine.
    fn attach(&self, status: &Resource) {
        let kind = Kind::omni("MachineRequestStatuses");
        let Ok(request) = self.state.get(&Kind::omni("MachineRequests"), &status.id) else { return };
        let _ = self.state.modify(&kind, &status.id, |stored| {
            stored.finalizers.insert(STATUS_FINALIZER.to_owned());
        });
        let uuid = status.decode::<MachineRequestStatusSpec>().unwrap_or_default().id;
        let Ok(link) = self.state.get(&links(), &uuid) else { return };
        let labels = [(MACHINE_REQUEST, Some(&status.id)), (LABEL_REQUEST_SET, request.labels.get(LABEL_REQUEST_SET))];
        let labels = labels.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?.clone())));
        let labels: Vec<_> = labels.collect();
        let labelled = self.state.modify(&links(), &uuid, |stored| {
            // A token that named the request has labelled the link already.
            for (key, value) in labels {
                stored.labels.entry(key).or_insert(value);
            }
        });
        let labels = labelled.map_or_else(|_| link.labels.clone(), |link| link.labels.clone());
        if labels.get(MACHINE_REQUEST) != Some(&status.id) {
            return;
        }
        let mut of_a_set = labels.clone();
        of_a_set.insert(NO_MANUAL_ALLOCATION.to_owned(), String::new());
        for resource in [registration(&uuid, &labels), machine_of(&self.state, &uuid, &of_a_set)] {
            let labels = resource.labels.clone();
            let _ = self.state.put(resource, |stored| stored.labels = labels);
        }
    }

    /// Takes the machine of a request out: Machine, registration, link; then lets the status go.
    fn detach(&self, status: &Resource) {
        let uuid = status.decode::<MachineRequestStatusSpec>().unwrap_or_default().id;
        let ours = self.state.get(&links(), &uuid);
        if ours.is_ok_and(|link| link.labels.get(MACHINE_REQUEST) == Some(&status.id)) {
            let own = [
                machines(),
                Kind::omni("InfraMachineRegistrations"),
                links(),
                join_token_usages(),
                node_unique_tokens(),
            ];
            for kind in own {
                if let Ok(stored) = self.state.get(&kind, &uuid) {
                    let _ = self.state.destroy(&kind, &uuid, &stored.owner);
                }
            }
        }
        let _ = self.state.modify(&status.kind, &status.id, |stored| {
            stored.finalizers.remove(STATUS_FINALIZER);
        });
    }

    /// Makes a config patch of a provider's request for one, once its machine is known, and removes it with the request.
    fn patch(&self, request: &Resource) {
        if request.phase == Phase::TearingDown {
            let _ = self.state.destroy(&config_patches(), &request.id, PATCH_OWNER);
            let _ = self.state.modify(&request.kind, &request.id, |stored| {
                stored.finalizers.remove(PATCH_FINALIZER);
            });
            return;
        }
        let Some(machine_request) = request.labels.get(MACHINE_REQUEST) else { return };
        let Ok(status) = self.state.get(&Kind::omni("MachineRequestStatuses"), machine_request) else { return };
        let uuid = status.decode::<MachineRequestStatusSpec>().unwrap_or_default().id;
        if uuid.is_empty() {
            return;
        }
        let _ = self.state.modify(&request.kind, &request.id, |stored| {
            stored.finalizers.insert(PATCH_FINALIZER.to_owned());
        });
        let mut patch = Resource::new(config_patches(), &request.id, &());
        patch.spec = request.spec.clone();
        patch.labels = request.labels.clone();
        patch.labels.insert("omni.sidero.dev/system-patch".to_owned(), String::new());
        patch.labels.insert("omni.sidero.dev/machine".to_owned(), uuid);
        patch.owner = PATCH_OWNER.to_owned();
        let spec = patch.spec.clone();
        let _ = self.state.put(patch, |stored| stored.spec = spec);
    }

    /// Holds a request while it runs, lets it go once its status is gone, and destroys it when nobody holds it.
    fn hold(&self, request: &Resource) {
        if request.phase == Phase::Running {
            let _ = self.state.modify(&request.kind, &request.id, |stored| {
                stored.finalizers.insert(REQUEST_FINALIZER.to_owned());
            });
            return;
        }
        if self.state.get(&Kind::omni("MachineRequestStatuses"), &request.id).is_ok() {
            return;
        }
        let _ = self.state.modify(&request.kind, &request.id, |stored| {
            stored.finalizers.remove(REQUEST_FINALIZER);
        });
        let _ = self.state.destroy(&request.kind, &request.id, &request.owner);
    }
}

/// Six random letters and digits.
fn suffix() -> String {
    const ALPHABET: &[u8; 32] = b"bcdfghjklmnpqrstvwxz0123456789ae";
    super::random::<6>().iter().map(|octet| char::from(ALPHABET[usize::from(*octet) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::specs::{ConfigPatchSpec, SiderolinkSpec};

    const UUID: &str = "4c4c4544-0044-4810-8031-b4c04f333132";

    #[test]
    fn a_request_is_made_joined_with_its_machine_and_taken_down_in_order() {
        let omni = Dynamic { state: State::default() };
        let set = |count| MachineRequestSetSpec {
            provider_id: "virtual".into(),
            machine_count: count,
            talos_version: "1.11.0".into(),
            ..MachineRequestSetSpec::default()
        };
        omni.state.create(Resource::new(request_sets(), "web", &set(1)), "").unwrap();
        omni.reconcile();
        let (requests, statuses) = (Kind::omni("MachineRequests"), Kind::omni("MachineRequestStatuses"));
        let request = omni.state.list(&requests).remove(0);
        assert!(request.id.starts_with("web-") && request.owner.is_empty());

        let spec = MachineRequestStatusSpec { id: UUID.into(), ..MachineRequestStatusSpec::default() };
        let status = Resource::new(statuses.clone(), &request.id, &spec);
        omni.state.create(status, "virtual.ProvisionController").unwrap();
        let mut patch = Resource::new(
            Kind::omni("ConfigPatchRequests"),
            "a",
            &ConfigPatchSpec { data: "machine: {}".into(), ..ConfigPatchSpec::default() },
        );
        patch.labels.insert(MACHINE_REQUEST.into(), request.id.clone());
        omni.state.create(patch, "virtual.ProvisionController").unwrap();
        omni.reconcile();
        assert!(omni.state.get(&machines(), UUID).is_err(), "no link yet");
        let mut link = Resource::new(links(), UUID, &SiderolinkSpec { connected: true, ..SiderolinkSpec::default() });
        link.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), "virtual".into());
        omni.state.create(link, "").unwrap();
        omni.reconcile();
        let machine = omni.state.get(&machines(), UUID).unwrap();
        assert_eq!(machine.labels.get(MACHINE_REQUEST), Some(&request.id));
        assert!(machine.labels.contains_key(NO_MANUAL_ALLOCATION));
        let registered = omni.state.get(&Kind::omni("InfraMachineRegistrations"), UUID).unwrap();
        assert_eq!(registered.labels.get(MACHINE_REQUEST), Some(&request.id));
        assert_eq!(omni.state.get(&config_patches(), "a").unwrap().labels["omni.sidero.dev/machine"], UUID);

        omni.state.modify(&request_sets(), "web", |stored| stored.encode(&set(0))).unwrap();
        omni.reconcile();
        let request = omni.state.get(&requests, &request.id).unwrap();
        assert_eq!(request.phase, Phase::TearingDown);
        assert!(request.finalizers.contains(REQUEST_FINALIZER));
        let owner = "virtual.ProvisionController";
        omni.state.teardown(&Kind::omni("ConfigPatchRequests"), "a", owner).unwrap();
        omni.state.teardown(&statuses, &request.id, owner).unwrap();
        omni.reconcile();
        assert!(omni.state.get(&config_patches(), "a").is_err());
        assert!(omni.state.get(&machines(), UUID).is_err() && omni.state.get(&links(), UUID).is_err());
        omni.state.destroy(&Kind::omni("ConfigPatchRequests"), "a", owner).unwrap();
        omni.state.destroy(&statuses, &request.id, owner).unwrap();
        omni.reconcile();
        assert!(omni.state.get(&requests, &request.id).is_err());
    }
}
