//! Omni's side of the life cycle: keeps the [`OmniMachine`]s, and writes what they make of events to the state.
//!
//! Edge: it runs tasks.
//!
//! Source: contract omni-wire.md section 5.1.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::lifecycle::{Input, OmniMachine};
use super::state::{From, State};
use super::validate::Maker;
use crate::proto::specs::infra_machine_config_spec::AcceptanceStatus;
use crate::proto::specs::{
    BmcConfigSpec, InfraMachineBmcConfigSpec, InfraMachineConfigSpec, InfraMachineStatusSpec, InfraProviderStatusSpec,
    MachineRegistrationSpec, MachineSpec, SiderolinkSpec,
};
use crate::resource::{
    Kind, LABEL_INFRA_PROVIDER_ID, LABEL_IS_STATIC_INFRA_PROVIDER, NAMESPACE_DEFAULT, Phase, Resource,
};

/// On the link of a machine that has Talos on its disk: no other unique token takes the place of the one that it has.
pub const FORCE_UNIQUE_TOKEN: &str = "siderolink.omni.sidero.dev/force-valid-node-unique-token";

/// On a link and a machine that came to be with a unique token.
pub const CREATED_WITH_UNIQUE_TOKEN: &str = "omni.sidero.dev/created-with-unique-token";

/// On a machine whose provider keeps machines that outlive clusters.
const LABEL_IS_STATIC: &str = "omni.sidero.dev/is-managed-by-static-infra-provider";

/// The owner of InfraMachines.
pub const INFRA_MACHINE_OWNER: &str = "InfraMachineController";

/// The owner of BMCConfigs.
const BMC_CONFIG_OWNER: &str = "BMCConfigController";

/// The kind of the users' machine configs.
pub fn machine_configs() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "InfraMachineConfigs.omni.sidero.dev")
}

/// No machine of this UUID has joined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no machine {0} has joined")]
pub struct Unknown(pub String);

/// The machines; clones share them.
#[derive(Clone, Debug)]
pub struct Controller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: State,
    machines: Mutex<HashMap<String, Entry>>,
    /// Rings when a machine appears or is gone.
    population: watch::Sender<()>,
}

#[derive(Debug)]
struct Entry {
    machine: OmniMachine,
    /// Rings after every event of this machine.
    bell: watch::Sender<()>,
}

impl Controller {
    pub(super) fn new(state: State) -> Self {
        Self(Arc::new(Inner { state, machines: Mutex::default(), population: watch::Sender::new(()) }))
    }

    /// Starts the tasks that follow what users and providers write.
    pub(super) fn spawn(&self, tasks: &mut JoinSet<()>) {
        let statuses = Kind::omni("InfraMachineStatuses");
        self.follow(tasks, statuses.clone(), move |this, id| {
            let status = this.0.state.get(&statuses, id).ok();
            let status = status.and_then(|resource| resource.decode::<InfraMachineStatusSpec>().ok());
            let _ = this.apply(id, Input::Observed(status));
        });
        let configs = machine_configs();
        self.follow(tasks, configs.clone(), move |this, id| {
            let config = this.0.state.get(&configs, id).ok();
            let config = config.and_then(|resource| resource.decode::<InfraMachineConfigSpec>().ok());
            let _ = this.apply(id, Input::Configured(config));
        });
        self.follow(tasks, machine_bmc_configs(), Self::copy_bmc_config);
        self.follow(tasks, Kind::omni("InfraMachines"), |this, id| this.destroy_if_free(id));
        self.follow(tasks, Kind::omni("InfraProviderStatuses"), |this, _| {
            let mut machines = this.lock();
            for entry in machines.values_mut() {
                this.write(&entry.machine);
            }
        });
    }

    /// Runs `react` for each resource of `kind` that changes, and for every known one whenever changes may have been
    /// missed. `react` reads the state itself, so that it acts on what is, not on what was.
    fn follow(&self, tasks: &mut JoinSet<()>, kind: Kind, react: impl Fn(&Self, &str) + Send + 'static) {
        let this = self.clone();
        tasks.spawn(async move {
            loop {
                let Ok((snapshot, mut watch)) = this.0.state.watch(&kind, From::Now) else { return };
                let mut ids: Vec<_> = this.machines().into_iter().map(|machine| machine.uuid).collect();
                ids.extend(snapshot.iter().map(|resource| resource.id.clone()));
                for id in ids {
                    react(&this, &id);
                }
                while let Ok(changes) = watch.next().await {
                    for change in changes {
                        react(&this, &change.resource.id);
                    }
                }
            }
        });
    }

    /// Every machine.
    pub fn machines(&self) -> Vec<OmniMachine> {
        self.lock().values().map(|entry| entry.machine.clone()).collect()
    }

    /// One machine.
    pub fn machine(&self, uuid: &str) -> Option<OmniMachine> {
        self.lock().get(uuid).map(|entry| entry.machine.clone())
    }

    /// Rings when a machine appears or is gone.
    pub fn population(&self) -> watch::Receiver<()> {
        self.0.population.subscribe()
    }

    /// Waits until `condition` holds for the machine, or for `None` while there is none; returns what made it hold.
    pub async fn wait<T>(&self, uuid: &str, mut condition: impl FnMut(Option<&OmniMachine>) -> Option<T>) -> T {
        loop {
            // Subscribed before the condition is read, so that no ring is lost in between.
            let mut population = self.0.population.subscribe();
            let bell = {
                let machines = self.lock();
                let entry = machines.get(uuid);
                if let Some(met) = condition(entry.map(|entry| &entry.machine)) {
                    return met;
                }
                entry.map(|entry| entry.bell.subscribe())
            };
            // An error means that the machine is gone: the condition is to be read again.
            let _ = match bell {
                Some(mut bell) => bell.changed().await,
                None => population.changed().await,
            };
        }
    }

    /// Notes that a machine joined with a good token.
    pub(super) fn join(&self, uuid: &str, provider_id: &str, unique_token: Option<String>) {
        let mut machines = self.lock();
        let appeared = !machines.contains_key(uuid);
        let entry = machines
            .entry(uuid.to_owned())
            .or_insert_with(|| Entry { machine: OmniMachine::new(uuid, provider_id), bell: watch::Sender::new(()) });
        entry.machine.on(Input::Joined(unique_token), super::uuid);
        self.write(&entry.machine);
        entry.bell.send_replace(());
        drop(machines);
        if appeared {
            self.0.population.send_replace(());
            // A config from before the machine joined holds from the start.
            if let Ok(config) = self.0.state.get(&machine_configs(), uuid) {
                let _ = self.apply(uuid, Input::Configured(config.decode().ok()));
            }
        }
    }

    /// Takes one event of a machine.
    ///
    /// # Errors
    ///
    /// [`Unknown`].
    pub fn apply(&self, uuid: &str, input: Input) -> Result<(), Unknown> {
        let removed = input == Input::Removed;
        let mut machines = self.lock();
        let entry = machines.get_mut(uuid).ok_or_else(|| Unknown(uuid.to_owned()))?;
        let before = entry.machine.clone();
        entry.machine.on(input, super::uuid);
        if entry.machine != before {
            self.write(&entry.machine);
            entry.bell.send_replace(());
        }
        drop(machines);
        if removed {
            self.destroy_if_free(uuid);
        }
        Ok(())
    }

    /// Writes the InfraMachine; the machines' lock is held, so that versions of one machine are written in order.
    fn write(&self, machine: &OmniMachine) {
        let kind = Kind::omni("InfraMachines");
        if machine.removing {
            let _ = self.0.state.teardown(&kind, &machine.uuid, INFRA_MACHINE_OWNER);
            return;
        }
        if !is_static(&self.0.state, &machine.provider_id) {
            return;
        }
        let mut resource = Resource::new(kind, &machine.uuid, &machine.spec());
        resource.labels = machine.labels();
        resource.owner = INFRA_MACHINE_OWNER.to_owned();
        let (spec, labels) = (resource.spec.clone(), resource.labels.clone());
        let written = self.0.state.put(resource, |stored| {
            stored.spec = spec;
            stored.labels = labels;
        });
        if let Err(error) = written {
            tracing::warn!(machine = machine.uuid, %error, "InfraMachine not written");
        }
        if machine.acceptance == AcceptanceStatus::Accepted {
            // Omni has a Machine only for what its user accepted.
            let mut labels = machine.labels();
            labels.insert(LABEL_IS_STATIC.to_owned(), String::new());
            let _ = self.0.state.put(machine_of(&self.0.state, &machine.uuid, &labels), |_| ());
        }
    }

    /// Hands the BMC credentials that people gave for a machine to its provider, or takes them back.
    fn copy_bmc_config(&self, uuid: &str) {
        let kind = Kind::omni("BMCConfigs");
        let given = self.0.state.get(&machine_bmc_configs(), uuid).ok();
        let given = given.and_then(|given| given.decode::<InfraMachineBmcConfigSpec>().ok());
        match (given, self.machine(uuid)) {
            (Some(given), Some(machine)) => {
                let spec = BmcConfigSpec { config: Some(given) };
                let mut resource = Resource::new(kind, uuid, &spec);
                resource.labels.insert(LABEL_INFRA_PROVIDER_ID.to_owned(), machine.provider_id);
                resource.owner = BMC_CONFIG_OWNER.to_owned();
                let _ = self.0.state.put(resource, |stored| stored.encode(&spec));
            }
            _ => {
                let _ = self.0.state.destroy(&kind, uuid, BMC_CONFIG_OWNER);
            }
        }
    }

    /// Forgets a machine that is being removed and that nobody holds any more.
    fn destroy_if_free(&self, uuid: &str) {
        let mut entries = self.lock();
        if !entries.get(uuid).is_some_and(|entry| entry.machine.removing) {
            return;
        }
        let kind = Kind::omni("InfraMachines");
        let free = match self.0.state.get(&kind, uuid) {
            Ok(stored) => {
                stored.phase == Phase::TearingDown && self.0.state.destroy(&kind, uuid, INFRA_MACHINE_OWNER).is_ok()
            }
            Err(_) => true,
        };
        if free {
            let own = [
                links(),
                join_token_usages(),
                node_unique_tokens(),
                machines(),
                machine_configs(),
                machine_bmc_configs(),
            ];
            for kind in own.into_iter().chain(["InfraMachineRegistrations", "BMCConfigs"].map(Kind::omni)) {
                if let Ok(stored) = self.0.state.get(&kind, uuid) {
                    let _ = self.0.state.destroy(&kind, uuid, &stored.owner);
                }
            }
            entries.remove(uuid);
            drop(entries);
            self.0.population.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.0.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The kind of SideroLink links.
pub fn links() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "Links.omni.sidero.dev")
}

/// The kind that tells which join token each machine showed last.
pub fn join_token_usages() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "JoinTokenUsages.omni.sidero.dev")
}

/// The kind of the tokens that tell one installation of a machine from another.
pub fn node_unique_tokens() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "NodeUniqueTokens.omni.sidero.dev")
}

/// The kind of machines as Omni's users see them.
pub fn machines() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "Machines.omni.sidero.dev")
}

/// The kind of BMC credentials that people give.
pub fn machine_bmc_configs() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "InfraMachineBMCConfigs.omni.sidero.dev")
}

/// What the provider of this ID says of the machines that it makes; `None` before it says anything.
pub(super) fn maker(state: &State, provider_id: &str) -> Option<Maker> {
    let status = state.get(&Kind::omni("InfraProviderStatuses"), provider_id).ok()?;
    let is_static = status.labels.contains_key(LABEL_IS_STATIC_INFRA_PROVIDER);
    Some(Maker { is_static, schema: status.decode::<InfraProviderStatusSpec>().unwrap_or_default().schema })
}

/// Whether the provider of this ID keeps machines that outlive clusters.
fn is_static(state: &State, provider_id: &str) -> bool {
    maker(state, provider_id).is_some_and(|maker| maker.is_static)
}

/// The InfraMachineRegistration of a link, which has the link's labels.
pub(super) fn registration(uuid: &str, labels: &BTreeMap<String, String>) -> Resource {
    let mut resource = Resource::new(Kind::omni("InfraMachineRegistrations"), uuid, &MachineRegistrationSpec {});
    resource.labels = labels.clone();
    resource.owner = "InfraMachineRegistrationController".to_owned();
    resource
}

/// The Machine behind a link, with these labels.
pub(super) fn machine_of(state: &State, uuid: &str, labels: &BTreeMap<String, String>) -> Resource {
    let link = state.get(&links(), uuid).ok();
    let spec = link.as_ref().and_then(|link| link.decode::<SiderolinkSpec>().ok()).unwrap_or_default();
    let spec = MachineSpec {
        management_address: spec.node_subnet.split('/').next().unwrap_or_default().to_owned(),
        connected: spec.connected,
        use_grpc_tunnel: false,
    };
    let mut resource = Resource::new(machines(), uuid, &spec);
    resource.labels = labels.clone();
    if link.is_some_and(|link| link.annotations.contains_key(CREATED_WITH_UNIQUE_TOKEN)) {
        resource.annotations.insert(CREATED_WITH_UNIQUE_TOKEN.to_owned(), String::new());
    }
    resource.owner = "MachineController".to_owned();
    resource
}
