//! What Omni wants of a machine, what this provider recorded about it, and the predicates over both.
//!
//! Source: contract bare-metal-provider.md sections 6.3 and 7, omni-wire.md section 5.3.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::machine::PowerState;
use crate::proto::{provider, specs};
use crate::resource::{Phase, Resource};
use crate::secret::Secret;
use crate::time::UnixTime;

/// `InfraMachineConfigSpec.AcceptanceStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Acceptance {
    /// Waits for a person.
    #[default]
    Pending,
    /// Taken over: its disks may be wiped.
    Accepted,
    /// Not ours to touch.
    Rejected,
}

/// What Omni wants of a machine: its `InfraMachine`.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Desired {
    /// Whether Omni removes it.
    pub tearing_down: bool,
    /// Accepted, rejected or pending.
    pub acceptance: Acceptance,
    /// Whether an idle machine is to stay on.
    pub prefers_on: bool,
    /// Version of the cluster that it is allocated to; empty for none.
    pub cluster_talos_version: String,
    /// System extensions that the cluster wants.
    pub extensions: Vec<String>,
    /// Changes with each deallocation.
    pub wipe_id: String,
    /// Kernel arguments of the user's, split on white space where they are used.
    pub extra_kernel_args: String,
    /// A reboot that a person asked for.
    pub requested_reboot_id: String,
    /// No action is to be taken.
    pub cordoned: bool,
    /// Counts installs.
    pub install_event_id: u64,
    /// Opaque token of the node that runs on it.
    pub node_unique_token: String,
    /// A power-off that a person asked for.
    pub power_off_request_id: String,
    /// Labels, as Omni set them.
    pub labels: BTreeMap<String, String>,
}

impl Desired {
    /// Reads an `InfraMachine`. Unknown enum values count as the safe ones: pending, off.
    ///
    /// # Errors
    ///
    /// What prost makes of a spec that is no `InfraMachineSpec`.
    pub fn from_resource(resource: &Resource) -> Result<Self, prost::DecodeError> {
        let spec: specs::InfraMachineSpec = resource.decode()?;
        Ok(Self {
            tearing_down: resource.phase == Phase::TearingDown,
            acceptance: match spec.acceptance_status() {
                specs::infra_machine_config_spec::AcceptanceStatus::Pending => Acceptance::Pending,
                specs::infra_machine_config_spec::AcceptanceStatus::Accepted => Acceptance::Accepted,
                specs::infra_machine_config_spec::AcceptanceStatus::Rejected => Acceptance::Rejected,
            },
            prefers_on: spec.preferred_power_state() == specs::infra_machine_spec::MachinePowerState::PowerStateOn,
            cluster_talos_version: spec.cluster_talos_version,
            extensions: spec.extensions,
            wipe_id: spec.wipe_id,
            extra_kernel_args: spec.extra_kernel_args,
            requested_reboot_id: spec.requested_reboot_id,
            cordoned: spec.cordoned,
            install_event_id: spec.install_event_id,
            node_unique_token: spec.node_unique_token,
            power_off_request_id: spec.power_off_request_id,
            labels: resource.labels.clone(),
        })
    }
}

/// How a machine's BMC is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BmcRecord {
    /// Host name or address.
    pub address: String,
    /// UDP port.
    pub port: u16,
    /// User.
    pub username: String,
    /// Password, unsealed.
    pub password: Secret<String>,
    /// Whether a person gave it through Omni.
    pub manual: bool,
}

/// `WipeStatus`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WipeRecord {
    /// The wipe ID that the last wipe served.
    pub wipe_id: String,
    /// The install counter when it was wiped.
    pub install_event_id: u64,
    /// Whether this provider has wiped it at all.
    pub initial_wipe_done: bool,
    /// The node token that the wipe destroyed.
    pub node_unique_token: String,
}

/// `RebootStatus`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RebootRecord {
    /// The reboot request that was served last.
    pub reboot_id: String,
    /// When the machine was last power-cycled.
    pub at: Option<UnixTime>,
}

/// `PowerOperation`.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PowerRecord {
    /// The last thing that was done.
    pub last: PowerState,
    /// When the machine was last powered on.
    pub on_at: Option<UnixTime>,
    /// The power-off request that was acknowledged.
    pub power_off_id: String,
    /// The wipe ID at that moment: a later wipe ends the request.
    pub wipe_id_at_power_off: String,
}

/// What this provider recorded about a machine.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Recorded {
    /// BMC access, once set up.
    pub bmc: Option<BmcRecord>,
    /// The last wipe.
    pub wipe: WipeRecord,
    /// The last reboot.
    pub reboot: RebootRecord,
    /// The last power operation.
    pub power: PowerRecord,
    /// Whether it has booted from the network through this provider.
    pub initialized: bool,
}

impl From<provider::WipeStatusSpec> for WipeRecord {
    fn from(spec: provider::WipeStatusSpec) -> Self {
        Self {
            wipe_id: spec.last_wipe_id,
            install_event_id: spec.last_wipe_install_event_id,
            initial_wipe_done: spec.initial_wipe_done,
            node_unique_token: spec.wiped_node_unique_token,
        }
    }
}

impl From<&WipeRecord> for provider::WipeStatusSpec {
    fn from(record: &WipeRecord) -> Self {
        Self {
            last_wipe_id: record.wipe_id.clone(),
            last_wipe_install_event_id: record.install_event_id,
            initial_wipe_done: record.initial_wipe_done,
            wiped_node_unique_token: record.node_unique_token.clone(),
        }
    }
}

impl From<provider::RebootStatusSpec> for RebootRecord {
    fn from(spec: provider::RebootStatusSpec) -> Self {
        Self { reboot_id: spec.last_reboot_id, at: spec.last_reboot_timestamp.map(UnixTime::from) }
    }
}

impl From<&RebootRecord> for provider::RebootStatusSpec {
    fn from(record: &RebootRecord) -> Self {
        Self { last_reboot_id: record.reboot_id.clone(), last_reboot_timestamp: record.at.map(Into::into) }
    }
}

impl From<provider::PowerOperationSpec> for PowerRecord {
    fn from(spec: provider::PowerOperationSpec) -> Self {
        Self {
            last: match spec.last_power_operation() {
                provider::PowerState::Unknown => PowerState::Unknown,
                provider::PowerState::Off => PowerState::Off,
                provider::PowerState::On => PowerState::On,
            },
            on_at: spec.last_power_on_timestamp.map(UnixTime::from),
            power_off_id: spec.last_power_off_id,
            wipe_id_at_power_off: spec.wipe_id_at_power_off,
        }
    }
}

impl From<&PowerRecord> for provider::PowerOperationSpec {
    fn from(record: &PowerRecord) -> Self {
        Self {
            last_power_operation: record.last as i32,
            last_power_on_timestamp: record.on_at.map(Into::into),
            last_power_off_id: record.power_off_id.clone(),
            wipe_id_at_power_off: record.wipe_id_at_power_off.clone(),
        }
    }
}

/// What a machine boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootMode {
    /// The agent, from the network.
    AgentPxe,
    /// Talos, from the network.
    TalosPxe,
    /// Whatever is on its disk.
    TalosDisk,
}

impl BootMode {
    /// Whether the next boot must come from the network.
    pub const fn is_pxe(self) -> bool {
        !matches!(self, Self::TalosDisk)
    }

    /// `agent`, `talos` or `disk`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AgentPxe => "agent",
            Self::TalosPxe => "talos",
            Self::TalosDisk => "disk",
        }
    }
}

/// Whether Talos was installed since the last wipe: a comparison of counters, never a look at the disk.
pub fn installed(desired: Option<&Desired>, recorded: &Recorded) -> bool {
    desired.is_some_and(|desired| desired.install_event_id > recorded.wipe.install_event_id)
}

/// Whether the disks must be wiped before the machine can be used.
pub fn requires_wipe(desired: Option<&Desired>, recorded: &Recorded) -> bool {
    match desired {
        None => true,
        Some(desired) => !recorded.wipe.initial_wipe_done || desired.wipe_id != recorded.wipe.wipe_id,
    }
}

/// Whether the machine belongs to a cluster.
pub fn allocated(desired: &Desired) -> bool {
    !desired.cluster_talos_version.is_empty()
}

/// Whether the machine has something to do that needs power.
pub fn requires_power_on(desired: &Desired, recorded: &Recorded) -> bool {
    allocated(desired) || installed(Some(desired), recorded) || requires_wipe(Some(desired), recorded)
}

/// Whether an acknowledged power-off request still holds.
pub fn power_off_active(desired: &Desired, recorded: &Recorded) -> bool {
    let power = &recorded.power;
    !power.power_off_id.is_empty()
        && power.power_off_id == desired.power_off_request_id
        && power.wipe_id_at_power_off == desired.wipe_id
}

/// Whether a cluster may use the machine.
pub fn ready_to_use(desired: &Desired, recorded: &Recorded) -> bool {
    recorded.bmc.is_some() && !requires_wipe(Some(desired), recorded)
}

/// What the machine boots next (contract section 6.4, rows 2 to 10).
pub fn boot_mode(desired: Option<&Desired>, recorded: &Recorded) -> BootMode {
    let Some(machine) = desired else { return BootMode::AgentPxe };
    if machine.acceptance == Acceptance::Rejected {
        return BootMode::TalosDisk;
    }
    let agent = machine.tearing_down
        || machine.acceptance == Acceptance::Pending
        || recorded.bmc.is_none()
        || requires_wipe(desired, recorded)
        || !allocated(machine);
    match (agent, installed(desired, recorded)) {
        (true, _) => BootMode::AgentPxe,
        (false, true) => BootMode::TalosDisk,
        (false, false) => BootMode::TalosPxe,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Contract section 6.4, rows 2 to 10, with every other input left free.
    #[test]
    fn boot_modes_agree_with_the_truth_table() {
        use Acceptance::{Accepted, Pending, Rejected};
        use BootMode::{AgentPxe, TalosDisk, TalosPxe};
        let flags = [false, true];
        for acceptance in [Pending, Accepted, Rejected] {
            for bits in 0..32_u32 {
                let [tearing_down, bmc, wipe, allocated, installed] =
                    std::array::from_fn(|bit| flags[(bits >> bit & 1) as usize]);
                let desired = Desired {
                    tearing_down,
                    acceptance,
                    cluster_talos_version: if allocated { "1.13.0".into() } else { String::new() },
                    install_event_id: u64::from(installed),
                    ..Desired::default()
                };
                let recorded = Recorded {
                    bmc: bmc.then(bmc_record),
                    wipe: WipeRecord { initial_wipe_done: !wipe, ..WipeRecord::default() },
                    ..Recorded::default()
                };
                let want = match (acceptance, tearing_down, bmc, wipe, allocated, installed) {
                    (Rejected, ..) => TalosDisk,                  // row 2
                    (Pending, ..) => AgentPxe,                    // row 4
                    (Accepted, true, ..) => AgentPxe,             // row 5
                    (Accepted, _, false, ..) => AgentPxe,         // row 6
                    (Accepted, _, _, true, ..) => AgentPxe,       // row 7
                    (Accepted, _, _, _, false, _) => AgentPxe,    // row 8
                    (Accepted, _, _, _, true, true) => TalosDisk, // row 9
                    (Accepted, _, _, _, true, false) => TalosPxe, // row 10
                };
                assert_eq!(boot_mode(Some(&desired), &recorded), want, "{desired:?} {recorded:?}");
            }
        }
        assert_eq!(boot_mode(None, &Recorded::default()), AgentPxe, "row 3");
    }

    #[test]
    fn a_new_wipe_id_asks_for_a_wipe_and_ends_a_power_off() {
        let mut desired = Desired { wipe_id: "w1".into(), power_off_request_id: "p1".into(), ..Desired::default() };
        let recorded = Recorded {
            wipe: WipeRecord { wipe_id: "w1".into(), initial_wipe_done: true, ..WipeRecord::default() },
            power: PowerRecord {
                power_off_id: "p1".into(),
                wipe_id_at_power_off: "w1".into(),
                ..PowerRecord::default()
            },
            ..Recorded::default()
        };
        assert!(!requires_wipe(Some(&desired), &recorded));
        assert!(power_off_active(&desired, &recorded));
        desired.wipe_id = "w2".into();
        assert!(requires_wipe(Some(&desired), &recorded));
        assert!(!power_off_active(&desired, &recorded));
    }

    #[test]
    fn installed_counts_only_installs_after_the_wipe() {
        let desired = Desired { install_event_id: 3, ..Desired::default() };
        let mut recorded = Recorded::default();
        assert!(installed(Some(&desired), &recorded));
        recorded.wipe.install_event_id = 3;
        assert!(!installed(Some(&desired), &recorded));
        assert!(!installed(None, &recorded));
    }

    fn bmc_record() -> BmcRecord {
        BmcRecord {
            address: "127.0.0.1".into(),
            port: 623,
            username: "talos-agent".into(),
            password: Secret::new("x".into()),
            manual: false,
        }
    }
}
