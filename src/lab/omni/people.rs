//! What people do with machines in Omni's pages and command line.
//!
//! Edge: it writes to the state. Each call returns when the wish is stored; the controller acts on it right after.

use super::controller::{Controller, Unknown, machine_bmc_configs, machine_configs};
use super::dynamic::{machine_classes, request_sets, set_of};
use super::lifecycle::{Allocation, Input};
use super::state::State;
use crate::proto::specs::infra_machine_config_spec::{AcceptanceStatus, MachinePowerState};
use crate::proto::specs::{InfraMachineBmcConfigSpec, InfraMachineConfigSpec, MachineClassSpec, MachineRequestSetSpec};
use crate::resource::Resource;

/// People, who may do everything that their role allows.
#[derive(Clone, Debug)]
pub struct People {
    pub(super) state: State,
    pub(super) controller: Controller,
}

/// What people cannot do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Impossible {
    /// There is no such machine.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// An accepted machine cannot be rejected.
    #[error("machine {0} is accepted already")]
    Accepted(String),
    /// There is no such class, or nobody makes its machines.
    #[error("no provider makes machines of class {0}")]
    NoClass(String),
    /// The config could not be stored.
    #[error("the config of {0} cannot be stored")]
    Refused(String, #[source] Box<super::collection::Refused>),
}

impl People {
    /// Whether the machine is accepted.
    pub fn has_accepted(&self, uuid: &str) -> bool {
        self.controller.machine(uuid).is_some_and(|machine| machine.acceptance == AcceptanceStatus::Accepted)
    }

    /// Accepts a machine.
    ///
    /// # Errors
    ///
    /// [`Impossible`].
    pub fn accept(&self, uuid: &str) -> Result<(), Impossible> {
        self.configure(uuid, |config| config.set_acceptance_status(AcceptanceStatus::Accepted))
    }

    /// Rejects a machine; it can be accepted later.
    ///
    /// # Errors
    ///
    /// [`Impossible`].
    pub fn reject(&self, uuid: &str) -> Result<(), Impossible> {
        let accepted = self.controller.machine(uuid).map(|machine| machine.acceptance);
        if accepted == Some(AcceptanceStatus::Accepted) {
            return Err(Impossible::Accepted(uuid.to_owned()));
        }
        self.configure(uuid, |config| config.set_acceptance_status(AcceptanceStatus::Rejected))
    }

    /// Tells the provider to leave a machine alone, or not to any more.
    ///
    /// # Errors
    ///
    /// [`Impossible`].
    pub fn cordon(&self, uuid: &str, cordoned: bool) -> Result<(), Impossible> {
        self.configure(uuid, |config| config.cordoned = cordoned)
    }

    /// Says how an idle machine is to be kept.
    ///
    /// # Errors
    ///
    /// [`Impossible`].
    pub fn prefer_power(&self, uuid: &str, power: MachinePowerState) -> Result<(), Impossible> {
        self.configure(uuid, |config| config.set_power_state(power))
    }

    /// Sets a machine's extra kernel arguments, separated by spaces.
    ///
    /// # Errors
    ///
    /// [`Impossible`].
    pub fn kernel_args(&self, uuid: &str, arguments: &str) -> Result<(), Impossible> {
        self.configure(uuid, |config| arguments.clone_into(&mut config.extra_kernel_args))
    }

    /// Asks for a reboot; returns the request's ID.
    ///
    /// # Errors
    ///
    /// [`Impossible`].
    pub fn reboot(&self, uuid: &str) -> Result<String, Impossible> {
        let id = super::uuid();
        self.configure(uuid, |config| config.requested_reboot_id.clone_from(&id))?;
        Ok(id)
    }

    /// Powers an allocated machine off; returns the request's ID.
    ///
    /// # Errors
    ///
    /// [`Impossible`].
    pub fn power_off(&self, uuid: &str) -> Result<String, Impossible> {
        let id = super::uuid();
        self.configure(uuid, |config| config.power_off_request_id.clone_from(&id))?;
        Ok(id)
    }

    /// Powers an allocated machine on again.
    ///
    /// # Errors
    ///
    /// [`Impossible`].
    pub fn power_on(&self, uuid: &str) -> Result<(), Impossible> {
        self.configure(uuid, |config| config.power_off_request_id.clear())
    }

    /// Makes a machine part of a cluster, or changes what the cluster wants of it.
    ///
    /// # Errors
    ///
    /// [`Impossible::Unknown`].
    pub fn allocate(&self, uuid: &str, allocation: Allocation) -> Result<(), Impossible> {
        Ok(self.controller.apply(uuid, Input::Allocated(allocation))?)
    }

    /// Takes a machine out of its cluster.
    ///
    /// # Errors
    ///
    /// [`Impossible::Unknown`].
    pub fn deallocate(&self, uuid: &str) -> Result<(), Impossible> {
        Ok(self.controller.apply(uuid, Input::Deallocated)?)
    }

    /// Removes a machine; it is gone when the provider has let go of it.
    ///
    /// # Errors
    ///
    /// [`Impossible::Unknown`].
    pub fn remove(&self, uuid: &str) -> Result<(), Impossible> {
        Ok(self.controller.apply(uuid, Input::Removed)?)
    }

    /// Gives BMC credentials for a machine, or takes them back.
    ///
    /// # Errors
    ///
    /// [`Impossible`].
    pub fn bmc(&self, uuid: &str, access: Option<&InfraMachineBmcConfigSpec>) -> Result<(), Impossible> {
        let kind = machine_bmc_configs();
        let done = match access {
            Some(access) => self.state.put(Resource::new(kind, uuid, access), |stored| stored.encode(access)).map(drop),
            None => self.state.destroy(&kind, uuid, "").map(drop),
        };
        done.map_err(|refused| Impossible::Refused(uuid.to_owned(), Box::new(refused)))
    }

    /// Asks a provider for so many machines on request, in a set of this name.
    ///
    /// # Errors
    ///
    /// [`Impossible::Refused`].
    pub fn request_machines(&self, set: &str, spec: &MachineRequestSetSpec) -> Result<(), Impossible> {
        let stored = self.state.put(Resource::new(request_sets(), set, spec), |stored| stored.encode(spec));
        stored.map(drop).map_err(|refused| Impossible::Refused(set.to_owned(), Box::new(refused)))
    }

    /// Has a cluster take `count` machines of a class that a provider makes, in a set of this name.
    ///
    /// # Errors
    ///
    /// [`Impossible::NoClass`], [`Impossible::Refused`].
    pub fn provision(&self, set: &str, class: &str, count: u16, talos_version: &str) -> Result<(), Impossible> {
        let stored = self.state.get(&machine_classes(), class).ok();
        let spec = stored.and_then(|stored| stored.decode::<MachineClassSpec>().ok());
        let wanted = spec.and_then(|class| set_of(&class, count, talos_version));
        self.request_machines(set, &wanted.ok_or_else(|| Impossible::NoClass(class.to_owned()))?)
    }

    fn configure(&self, uuid: &str, change: impl Fn(&mut InfraMachineConfigSpec)) -> Result<(), Impossible> {
        if self.controller.machine(uuid).is_none() {
            return Err(Unknown(uuid.to_owned()).into());
        }
        let mut fresh = InfraMachineConfigSpec::default();
        change(&mut fresh);
        let stored = self.state.put(Resource::new(machine_configs(), uuid, &fresh), |resource| {
            let mut config: InfraMachineConfigSpec = resource.decode().unwrap_or_default();
            change(&mut config);
            resource.encode(&config);
        });
        stored.map(drop).map_err(|refused| Impossible::Refused(uuid.to_owned(), Box::new(refused)))
    }
}
