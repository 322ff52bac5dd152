//! A static machine as Omni sees it, and what Omni makes of every event about it.
//!
//! Pure: identifiers are arguments.
//!
//! Source: contract omni-wire.md sections 5.1, 5.2 and 5.4.

use std::collections::BTreeMap;

use crate::proto::lab::next_response::Order;
use crate::proto::lab::report_request::Event;
use crate::proto::specs::infra_machine_config_spec::{AcceptanceStatus, MachinePowerState as Configured};
use crate::proto::specs::infra_machine_spec::MachinePowerState as Preferred;
use crate::proto::specs::infra_machine_status_spec::MachinePowerState as Observed;
use crate::proto::specs::{InfraMachineConfigSpec, InfraMachineSpec, InfraMachineStatusSpec};
use crate::resource::LABEL_INFRA_PROVIDER_ID;

/// On an InfraMachine that waits for its user.
pub const LABEL_ACCEPT_PENDING: &str = "omni.sidero.dev/accept-pending";

/// A machine's place in a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Cluster.
    pub cluster: String,
    /// Machine set within it.
    pub machine_set: String,
    /// Control plane, or worker.
    pub control_plane: bool,
    /// Talos version, without `v`.
    pub talos_version: String,
    /// Wanted system extensions.
    pub extensions: Vec<String>,
}

/// All that Omni knows about one machine.
#[derive(Clone, Debug, PartialEq)]
pub struct OmniMachine {
    /// SMBIOS UUID, lower case.
    pub uuid: String,
    /// The provider that vouched for it when it joined first.
    pub provider_id: String,
    /// What the user decided; PENDING until then.
    pub acceptance: AcceptanceStatus,
    /// The user's config, if there is one.
    pub config: Option<InfraMachineConfigSpec>,
    /// Whether the provider must leave it alone.
    pub cordoned: bool,
    /// The user's latest reboot request.
    pub requested_reboot_id: String,
    /// Agent or Talos has reported, so that there are facts to collect.
    pub reachable: bool,
    /// The facts were collected, which Omni does after acceptance.
    pub info_collected: bool,
    /// The cluster that it belongs to.
    pub allocation: Option<Allocation>,
    /// Talos reached the disk since the allocation.
    pub on_disk: bool,
    /// De-allocated, and not reset yet.
    pub resetting: bool,
    /// Changes with every de-allocation; empty before the first.
    pub wipe_id: String,
    /// Counts installations and boots from disk.
    pub install_event_id: u64,
    /// JSON that identifies this installation of the machine; opaque to the provider.
    pub node_unique_token: String,
    /// What the machine said last.
    pub last_report: Option<Event>,
    /// What the provider says of it.
    pub status: Option<InfraMachineStatusSpec>,
    /// Its link was torn down.
    pub removing: bool,
}

/// What can happen to a machine.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// It joined; with the unique token of its META partition, if it has one.
    Joined(Option<String>),
    /// It reported over its link.
    Reported(Event),
    /// The user's config is this now.
    Configured(Option<InfraMachineConfigSpec>),
    /// The provider's status is this now.
    Observed(Option<InfraMachineStatusSpec>),
    /// A cluster takes it, or wants another version or other extensions.
    Allocated(Allocation),
    /// The cluster lets it go.
    Deallocated,
    /// The user removes it.
    Removed,
}

impl OmniMachine {
    /// A machine that joined just now.
    pub fn new(uuid: &str, provider_id: &str) -> Self {
        Self {
            uuid: uuid.to_owned(),
            provider_id: provider_id.to_owned(),
            acceptance: AcceptanceStatus::Pending,
            config: None,
            cordoned: false,
            requested_reboot_id: String::new(),
            reachable: false,
            info_collected: false,
            allocation: None,
            on_disk: false,
            resetting: false,
            wipe_id: String::new(),
            install_event_id: 0,
            node_unique_token: String::new(),
            last_report: None,
            status: None,
            removing: false,
        }
    }

    /// Takes one event. `fresh_id` makes the wipe ID that a finished de-allocation needs.
    pub fn on(&mut self, input: Input, fresh_id: impl FnOnce() -> String) {
        match input {
            Input::Joined(Some(token)) => self.node_unique_token = token,
            Input::Joined(None) => (),
            Input::Reported(event) => self.on_report(event, fresh_id),
            Input::Configured(config) => self.on_config(config),
            Input::Observed(status) => self.status = status,
            Input::Allocated(allocation) => {
                if self.allocation.is_none() {
                    self.on_disk = false;
                }
                if !self.resetting {
                    self.allocation = Some(allocation);
                }
            }
            Input::Deallocated if self.allocation.is_some() => {
                if self.on_disk {
                    self.resetting = true;
                } else {
                    // Talos never reached the disk: there is nothing to reset.
                    self.release(fresh_id());
                }
            }
            Input::Deallocated => (),
            Input::Removed => self.removing = true,
        }
        if self.acceptance == AcceptanceStatus::Accepted && self.reachable {
            self.info_collected = true;
        }
    }

    fn on_report(&mut self, event: Event, fresh_id: impl FnOnce() -> String) {
        self.last_report = Some(event);
        match event {
            Event::Agent | Event::Maintenance => {
                self.reachable = true;
                if self.resetting {
                    // A machine that runs from the network has nothing left of its cluster.
                    self.release(fresh_id());
                }
            }
            Event::Installed | Event::BootedFromDisk => {
                self.reachable = true;
                self.on_disk = true;
                self.install_event_id += 1;
            }
            Event::ResetDone if self.resetting => self.release(fresh_id()),
            Event::ResetDone => (),
        }
    }

    fn on_config(&mut self, config: Option<InfraMachineConfigSpec>) {
        if let Some(config) = &config {
            if self.acceptance != AcceptanceStatus::Accepted {
                self.acceptance = config.acceptance_status();
            }
            self.cordoned = config.cordoned;
            self.requested_reboot_id.clone_from(&config.requested_reboot_id);
        }
        self.config = config;
    }

    fn release(&mut self, wipe_id: String) {
        self.allocation = None;
        self.resetting = false;
        self.on_disk = false;
        self.wipe_id = wipe_id;
    }

    /// The InfraMachine's spec.
    pub fn spec(&self) -> InfraMachineSpec {
        let config = self.config.clone().unwrap_or_default();
        let preferred = if !self.info_collected || config.power_state() == Configured::PowerStateOn {
            Preferred::PowerStateOn
        } else {
            Preferred::PowerStateOff
        };
        let allocation = self.allocation.as_ref();
        InfraMachineSpec {
            preferred_power_state: preferred.into(),
            acceptance_status: self.acceptance.into(),
            cluster_talos_version: allocation.map(|a| a.talos_version.clone()).unwrap_or_default(),
            extensions: allocation.map(|a| a.extensions.clone()).unwrap_or_default(),
            wipe_id: self.wipe_id.clone(),
            extra_kernel_args: config.extra_kernel_args,
            requested_reboot_id: self.requested_reboot_id.clone(),
            cordoned: self.cordoned,
            install_event_id: self.install_event_id,
            node_unique_token: self.node_unique_token.clone(),
            power_off_request_id: if allocation.is_some() && !self.resetting {
                config.power_off_request_id
            } else {
                String::new()
            },
        }
    }

    /// The InfraMachine's labels.
    pub fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = BTreeMap::from([(LABEL_INFRA_PROVIDER_ID.to_owned(), self.provider_id.clone())]);
        if self.config.is_none() || self.acceptance == AcceptanceStatus::Pending {
            labels.insert(LABEL_ACCEPT_PENDING.to_owned(), String::new());
        }
        if let Some(allocation) = &self.allocation {
            let role = if allocation.control_plane { "role-controlplane" } else { "role-worker" };
            let omni = |name: &str| format!("omni.sidero.dev/{name}");
            labels.insert(omni("cluster"), allocation.cluster.clone());
            labels.insert(omni("machine-set"), allocation.machine_set.clone());
            labels.insert(omni(role), String::new());
        }
        labels
    }

    /// What the machine is to do now. It stays the same until the machine reports, or the provider does.
    pub fn order(&self) -> Order {
        let status = self.status.clone().unwrap_or_default();
        let power_off = self.spec().power_off_request_id;
        let on_disk = self.last_report == Some(Event::BootedFromDisk);
        if self.removing {
            Order::Wait
        } else if self.resetting {
            if on_disk { Order::Reset } else { Order::Wait }
        } else if !power_off.is_empty() {
            // Until it is off: the answer that told it may have been lost, and the provider acknowledges at once.
            if status.last_power_off_id == power_off && self.is_off() { Order::Wait } else { Order::Shutdown }
        } else if self.allocation.is_some() && self.last_report == Some(Event::Maintenance) && status.ready_to_use {
            // A config is not applied before the provider says that the machine is ready.
            Order::Install
        } else {
            Order::Wait
        }
    }

    /// Whether the provider says that the machine is on.
    pub fn is_on(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.power_state() == Observed::PowerStateOn)
    }

    /// Whether the provider says that the machine is off.
    pub fn is_off(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.power_state() == Observed::PowerStateOff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn play(machine: &mut OmniMachine, inputs: impl IntoIterator<Item = Input>) {
        for input in inputs {
            machine.on(input, || "wipe-1".to_owned());
        }
    }

    fn config(acceptance: AcceptanceStatus) -> Input {
        let config =
            InfraMachineConfigSpec { acceptance_status: acceptance.into(), ..InfraMachineConfigSpec::default() };
        Input::Configured(Some(config))
    }

    fn allocation() -> Allocation {
        Allocation {
            cluster: "c".into(),
            machine_set: "c-workers".into(),
            control_plane: false,
            talos_version: "1.11.0".into(),
            extensions: vec!["siderolabs/x".into()],
        }
    }

    fn ready() -> Input {
        Input::Observed(Some(InfraMachineStatusSpec { ready_to_use: true, ..InfraMachineStatusSpec::default() }))
    }

    fn accepted() -> OmniMachine {
        let mut machine = OmniMachine::new("u", "metal-1");
        play(&mut machine, [Input::Reported(Event::Agent), config(AcceptanceStatus::Accepted)]);
        machine
    }

    #[test]
    fn a_machine_that_joined_is_pending_and_preferred_on() {
        let machine = OmniMachine::new("u", "metal-1");
        assert_eq!(machine.spec().preferred_power_state(), Preferred::PowerStateOn);
        assert_eq!(machine.spec().acceptance_status(), AcceptanceStatus::Pending);
        assert!(machine.labels().contains_key(LABEL_ACCEPT_PENDING));
    }

    #[test]
    fn facts_are_collected_after_acceptance_and_then_it_is_preferred_off() {
        let mut machine = OmniMachine::new("u", "metal-1");
        play(&mut machine, [config(AcceptanceStatus::Accepted)]);
        assert_eq!(machine.spec().preferred_power_state(), Preferred::PowerStateOn);
        play(&mut machine, [Input::Reported(Event::Agent)]);
        assert_eq!(machine.spec().preferred_power_state(), Preferred::PowerStateOff);
        play(&mut machine, [Input::Joined(Some("t".into())), Input::Joined(None)]);
        assert_eq!(machine.spec().node_unique_token, "t", "it is never cleared");
        assert!(!machine.labels().contains_key(LABEL_ACCEPT_PENDING));
    }

    #[test]
    fn acceptance_is_final_and_rejection_is_not() {
        let mut machine = OmniMachine::new("u", "metal-1");
        play(&mut machine, [config(AcceptanceStatus::Rejected)]);
        assert_eq!(machine.acceptance, AcceptanceStatus::Rejected);
        assert!(!machine.labels().contains_key(LABEL_ACCEPT_PENDING));
        play(&mut machine, [config(AcceptanceStatus::Accepted), config(AcceptanceStatus::Rejected)]);
        assert_eq!(machine.acceptance, AcceptanceStatus::Accepted);
        play(&mut machine, [Input::Configured(None)]);
        assert_eq!(machine.acceptance, AcceptanceStatus::Accepted);
        assert!(machine.labels().contains_key(LABEL_ACCEPT_PENDING));
    }

    #[test]
    fn an_allocated_machine_installs_when_talos_waits_and_the_provider_is_ready() {
        let mut machine = accepted();
        play(&mut machine, [Input::Allocated(allocation()), Input::Reported(Event::Maintenance)]);
        assert_eq!(machine.order(), Order::Wait);
        play(&mut machine, [ready()]);
        assert_eq!(machine.order(), Order::Install);
        assert_eq!(machine.spec().cluster_talos_version, "1.11.0");
        assert_eq!(machine.labels().len(), 4);
        play(&mut machine, [Input::Reported(Event::Installed), Input::Reported(Event::BootedFromDisk)]);
        assert_eq!((machine.order(), machine.install_event_id), (Order::Wait, 2));
    }

    #[test]
    fn a_deallocated_machine_is_reset_and_then_needs_a_wipe() {
        let mut machine = accepted();
        play(&mut machine, [Input::Allocated(allocation()), ready(), Input::Reported(Event::BootedFromDisk)]);
        let mut off = InfraMachineConfigSpec { power_off_request_id: "p".into(), ..InfraMachineConfigSpec::default() };
        off.set_acceptance_status(AcceptanceStatus::Accepted);
        play(&mut machine, [Input::Configured(Some(off))]);
        assert_eq!((machine.order(), machine.spec().power_off_request_id.as_str()), (Order::Shutdown, "p"));
        play(&mut machine, [Input::Deallocated]);
        assert_eq!((machine.order(), machine.spec().power_off_request_id.as_str()), (Order::Reset, ""));
        assert_eq!(machine.spec().wipe_id, "");
        play(&mut machine, [Input::Reported(Event::ResetDone)]);
        assert_eq!(machine.spec().wipe_id, "wipe-1");
        assert_eq!(machine.spec().cluster_talos_version, "");
        assert_eq!(machine.labels().len(), 1);
        assert_eq!(machine.order(), Order::Wait);
    }

    #[test]
    fn a_machine_that_never_reached_its_disk_is_released_at_once() {
        let mut machine = accepted();
        play(&mut machine, [Input::Allocated(allocation()), Input::Deallocated]);
        assert_eq!((machine.allocation.clone(), machine.wipe_id.as_str()), (None, "wipe-1"));
    }
}
