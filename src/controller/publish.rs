//! What Omni is told about a machine: pure functions of what is wanted, recorded and observed.
//!
//! Source: contract bare-metal-provider.md section 7.8, omni-wire.md section 5.2.

use std::collections::BTreeMap;

use crate::machine::{Desired, PowerState, Recorded, installed, power_off_active, ready_to_use};
use crate::proto::{provider, specs};

/// Labels with this prefix are Omni's own.
const SYSTEM_LABEL_PREFIX: &str = "omni.sidero.dev/";
/// Allocation labels that are mirrored from the machine to its status, for Omni's access control.
const MIRRORED_LABELS: [&str; 4] = [
    "omni.sidero.dev/cluster",
    "omni.sidero.dev/machine-set",
    "omni.sidero.dev/role-controlplane",
    "omni.sidero.dev/role-worker",
];

/// `InfraMachineStatus` of an accepted machine.
pub fn infra_machine_status(
    desired: &Desired,
    recorded: &Recorded,
    power: PowerState,
) -> specs::InfraMachineStatusSpec {
    specs::InfraMachineStatusSpec {
        power_state: power as i32,
        ready_to_use: ready_to_use(desired, recorded),
        last_reboot_id: recorded.reboot.reboot_id.clone(),
        last_reboot_timestamp: recorded.reboot.at.map(Into::into),
        installed: installed(Some(desired), recorded),
        wiped_node_unique_token: recorded.wipe.node_unique_token.clone(),
        last_power_off_id: if power_off_active(desired, recorded) {
            recorded.power.power_off_id.clone()
        } else {
            String::new()
        },
    }
}

/// Labels of an `InfraMachineStatus`: the configured ones, Omni's allocation labels, and whatever else Omni put there.
pub fn status_labels(
    present: &BTreeMap<String, String>,
    configured: &BTreeMap<String, String>,
    desired: &Desired,
) -> BTreeMap<String, String> {
    let kept = present
        .iter()
        .filter(|(key, _)| key.starts_with(SYSTEM_LABEL_PREFIX) && !MIRRORED_LABELS.contains(&key.as_str()));
    let mirrored = desired.labels.iter().filter(|(key, _)| MIRRORED_LABELS.contains(&key.as_str()));
    kept.chain(configured).chain(mirrored).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The provider's own `MachineStatus`.
pub fn machine_status(agent: bool, power: PowerState, initialized: bool) -> provider::MachineStatusSpec {
    provider::MachineStatusSpec { agent_accessible: agent, power_state: power as i32, initialized }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::{Acceptance, PowerRecord, WipeRecord};

    #[test]
    fn labels_that_left_the_configuration_disappear() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let present: BTreeMap<String, String> = map(&[
            ("rack", "6"),
            ("old", ""),
            ("omni.sidero.dev/infra-provider-id", "bare-metal"),
            ("omni.sidero.dev/cluster", "gone"),
        ]);
        let desired = Desired {
            labels: map(&[("omni.sidero.dev/machine-set", "workers"), ("unrelated", "x")]),
            ..Desired::default()
        };
        let labels = status_labels(&present, &map(&[("rack", "7")]), &desired);
        assert_eq!(
            labels,
            map(&[
                ("omni.sidero.dev/infra-provider-id", "bare-metal"),
                ("omni.sidero.dev/machine-set", "workers"),
                ("rack", "7"),
            ])
        );
    }

    #[test]
    fn a_power_off_is_reported_only_while_it_holds() {
        let mut desired = Desired {
            acceptance: Acceptance::Accepted,
            power_off_request_id: "p".into(),
            wipe_id: "w".into(),
            ..Desired::default()
        };
        let recorded = Recorded {
            power: PowerRecord { power_off_id: "p".into(), wipe_id_at_power_off: "w".into(), ..PowerRecord::default() },
            wipe: WipeRecord { initial_wipe_done: true, wipe_id: "w".into(), ..WipeRecord::default() },
            ..Recorded::default()
        };
        let status = infra_machine_status(&desired, &recorded, PowerState::Off);
        assert_eq!((status.last_power_off_id.as_str(), status.ready_to_use), ("p", false));
        desired.wipe_id = "w2".into();
        assert_eq!(infra_machine_status(&desired, &recorded, PowerState::Off).last_power_off_id, "");
    }
}
