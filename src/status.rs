//! What the box says about itself: the values behind the status page, `/api/status` and the lab's verdicts.

use serde::{Deserialize, Serialize};

use crate::machine::{MachineId, PowerState};
use crate::supervise::control::Status;
use crate::time::UnixTime;

/// Everything that the page shows, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The provider's ID in Omni.
    pub provider_id: String,
    /// Product version.
    pub version: String,
    /// When the process started.
    pub started: UnixTime,
    /// How things stand with Omni.
    pub omni: Link,
    /// The services of this box and how they are.
    pub services: Vec<Service>,
    /// One entry a machine, in the order of their IDs.
    pub machines: Vec<Machine>,
    /// Counters by name, in name order: decisions and their reasons.
    pub counters: Vec<(String, u64)>,
    /// The box itself, as its PID 1 sees it; `None` where Pilotlight is no appliance.
    #[serde(default)]
    pub appliance: Option<Status>,
}

/// The link to Omni.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Link {
    /// The endpoint, as configured.
    pub endpoint: String,
    /// Whether the last exchange went well.
    pub connected: bool,
    /// What is wrong and what to do about it; empty when connected.
    pub trouble: String,
    /// When Omni's view was last confirmed.
    pub synced: Option<UnixTime>,
    /// When the service account key expires; `None` for never.
    #[serde(default)]
    pub key_expires: Option<UnixTime>,
}

/// One service of the box.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// `provider`, `dhcp`, `tftp`, `store`, `images`, `web`.
    pub name: String,
    /// Whether it serves.
    pub up: bool,
    /// Where it listens, or what ails it.
    pub detail: String,
}

/// Where a machine stands in its life, for colours and counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Seen booting, not known to Omni yet.
    Discovered,
    /// Waits for a person to accept it.
    Pending,
    /// Rejected by a person.
    Rejected,
    /// Accepted; its BMC or its disks are being made ready.
    Preparing,
    /// Disks are being wiped.
    Wiping,
    /// Wiped, idle, ready for a cluster.
    Ready,
    /// Allocated to a cluster, booting Talos from the network.
    Provisioning,
    /// Talos runs from its disk.
    Installed,
    /// Held by a person: no action is taken.
    Cordoned,
    /// Powered off on request.
    PoweredOff,
    /// Removed from Omni, being let go.
    Removing,
    /// Needs attention.
    Stuck,
}

impl Stage {
    /// All stages, in the order of a machine's life; those that want a person last.
    pub const ALL: [Self; 12] = [
        Self::Discovered,
        Self::Pending,
        Self::Preparing,
        Self::Wiping,
        Self::Ready,
        Self::Provisioning,
        Self::Installed,
        Self::PoweredOff,
        Self::Cordoned,
        Self::Rejected,
        Self::Removing,
        Self::Stuck,
    ];

    /// The stage as JSON, URLs and metrics spell it: one word, hyphens for spaces.
    pub const fn slug(self) -> &'static str {
        match self {
            Self::PoweredOff => "powered-off",
            other => other.as_str(),
        }
    }

    /// The stage in a person's words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Discovered => "discovered",
            Self::Pending => "pending",
            Self::Rejected => "rejected",
            Self::Preparing => "preparing",
            Self::Wiping => "wiping",
            Self::Ready => "ready",
            Self::Provisioning => "provisioning",
            Self::Installed => "installed",
            Self::Cordoned => "cordoned",
            Self::PoweredOff => "powered off",
            Self::Removing => "removing",
            Self::Stuck => "stuck",
        }
    }
}

/// One machine on the page.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// SMBIOS UUID.
    pub id: MachineId,
    /// Where it stands.
    pub stage: Stage,
    /// Power, as last observed.
    pub power: PowerState,
    /// Whether its agent's tunnel is open.
    pub agent: bool,
    /// What it would boot now: `agent`, `talos`, `disk`.
    pub boot_mode: String,
    /// The plan's verdict in words: what is being done or waited for, and why.
    pub verdict: String,
    /// The source line that decided, `file:line`.
    pub decided_at: String,
    /// When the plan looks again; `None` when only a change wakes it.
    pub next_attempt: Option<UnixTime>,
    /// The last thing that failed, in words; empty when nothing did.
    pub trouble: String,
    /// MAC address of the NIC that last booted, or empty.
    pub mac: String,
    /// IP address it last booted from, or empty.
    pub address: String,
    /// BMC address and port, or empty.
    pub bmc: String,
    /// Cluster it is allocated to, or empty.
    pub cluster: String,
    /// What happened, oldest first; bounded.
    pub timeline: Vec<Moment>,
}

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moment {
    /// When.
    pub at: UnixTime,
    /// What, in one short line.
    pub what: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slug_is_what_json_says() {
        for stage in Stage::ALL {
            assert_eq!(serde_json::to_value(stage).unwrap(), stage.slug());
        }
    }
}
