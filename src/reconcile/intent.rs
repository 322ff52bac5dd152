//! What is recorded before a side effect happens, so that a restart neither repeats nor loses it.

use serde::{Deserialize, Serialize};

use crate::time::UnixTime;

/// A side effect that was begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// When it was begun.
    pub started: UnixTime,
    /// What, and how far it has come.
    pub step: Step,
}

/// Why a machine is power-cycled. One cycle a cause: a restart in the middle goes on, it does not begin again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RebootCause {
    /// A person's request, by its ID.
    Requested(String),
    /// The agent is needed and missing.
    AgentNeeded,
    /// Talos is needed, and the agent is running.
    TalosNeeded,
    /// The machine was removed.
    Removed,
}

/// A side effect, and how far it has come.
///
/// A reboot is a power-off, watched until it holds, and a power-on. Each half may be sent again without harm, so the
/// step alone says what a restarted provider has to do; the BMC's own power cycle command could not be told apart from
/// one that was lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The disks are being wiped for this wipe ID.
    Wipe {
        /// The wipe ID that is served.
        wipe_id: String,
        /// The install counter at the start.
        install_event_id: u64,
        /// The node token that the wipe destroys.
        node_unique_token: String,
    },
    /// The power-off half of a reboot.
    RebootOff {
        /// Why.
        cause: RebootCause,
        /// Whether the next boot must come from the network.
        pxe: bool,
    },
    /// The power-on half of a reboot.
    RebootOn {
        /// Why.
        cause: RebootCause,
        /// Whether the next boot must come from the network.
        pxe: bool,
    },
    /// A power-on.
    PowerOn {
        /// Whether the next boot must come from the network.
        pxe: bool,
        /// The reboot request that this power-on serves as well, if any.
        reboot_id: Option<String>,
    },
    /// A power-off.
    PowerOff,
    /// A BMC user is being set up with this password.
    BmcUser {
        /// Address that the BMC reported.
        address: String,
        /// Port that the BMC reported.
        port: u16,
        /// User.
        username: String,
        /// Password, sealed.
        sealed_password: String,
    },
    /// Our resources are being destroyed and our finalizers removed.
    Release,
}
