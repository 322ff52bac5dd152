//! Why a plan came to its verdict.

use std::fmt;

/// Why a plan came to its verdict. Each variant is one counter and one sentence on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// Omni has no such machine.
    NotInOmni,
    /// A person has not accepted it yet.
    PendingAcceptance,
    /// A person rejected it.
    Rejected,
    /// A person cordoned it.
    Cordoned,
    /// It was taken up; Omni has to wait for us when it removes it.
    TakingUp,
    /// It was removed and is power-cycled into the agent one last time.
    Removing,
    /// It was removed and is let go.
    Releasing,
    /// Something begun before a restart is finished first.
    Resuming,
    /// It has never booted from the network here.
    NeverBooted,
    /// Its BMC credentials were given by a person.
    BmcGiven,
    /// Its BMC password is stored in the form that it should have.
    BmcResealed,
    /// Its BMC is set up through the agent.
    BmcSetUp,
    /// Its BMC is set up once the agent is there.
    BmcAwaitsAgent,
    /// The power-off request is acknowledged.
    PowerOffAcknowledged,
    /// Its disks are wiped.
    Wiping,
    /// It is to be wiped, and its BMC does not answer.
    PowerUnknown,
    /// Off, as a person asked.
    PoweredOffOnRequest,
    /// Off and needed.
    Needed,
    /// Off, and Omni prefers it on.
    PrefersOn,
    /// Off and idle: ready.
    IdleOff,
    /// On as Omni prefers, idle: ready.
    IdleOn,
    /// A person asked for a reboot.
    RebootRequested,
    /// The agent is needed and not there.
    AgentNeeded,
    /// The agent is needed, and still has time to come.
    AgentBooting,
    /// Talos is to boot, and the agent is still running.
    TalosNeeded,
    /// On and not needed.
    NotNeeded,
    /// The time between two reboots is not over.
    Cooldown,
    /// Talos is booting from the network.
    TalosBooting,
    /// Talos runs from its disk.
    Running,
    /// Omni's word is not fresh enough for something that can't be undone.
    StaleView,
    /// The last attempt failed; it is tried again.
    LastAttemptFailed,
}

impl Reason {
    /// The counter's name, `plan_…`.
    pub const fn counter(self) -> &'static str {
        match self {
            Self::NotInOmni => "plan_not_in_omni",
            Self::PendingAcceptance => "plan_pending_acceptance",
            Self::Rejected => "plan_rejected",
            Self::Cordoned => "plan_cordoned",
            Self::TakingUp => "plan_taking_up",
            Self::Removing => "plan_removing",
            Self::Releasing => "plan_releasing",
            Self::Resuming => "plan_resuming",
            Self::NeverBooted => "plan_never_booted",
            Self::BmcGiven => "plan_bmc_given",
            Self::BmcResealed => "plan_bmc_resealed",
            Self::BmcSetUp => "plan_bmc_set_up",
            Self::BmcAwaitsAgent => "plan_bmc_awaits_agent",
            Self::PowerOffAcknowledged => "plan_power_off_acknowledged",
            Self::Wiping => "plan_wiping",
            Self::PowerUnknown => "plan_power_unknown",
            Self::PoweredOffOnRequest => "plan_powered_off_on_request",
            Self::Needed => "plan_needed",
            Self::PrefersOn => "plan_prefers_on",
            Self::IdleOff => "plan_idle_off",
            Self::IdleOn => "plan_idle_on",
            Self::RebootRequested => "plan_reboot_requested",
            Self::AgentNeeded => "plan_agent_needed",
            Self::AgentBooting => "plan_agent_booting",
            Self::TalosNeeded => "plan_talos_needed",
            Self::NotNeeded => "plan_not_needed",
            Self::Cooldown => "plan_cooldown",
            Self::TalosBooting => "plan_talos_booting",
            Self::Running => "plan_running",
            Self::StaleView => "plan_stale_view",
            Self::LastAttemptFailed => "plan_last_attempt_failed",
        }
    }

    /// The sentence for the page.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotInOmni => "Omni does not know this machine yet; it gets the agent when it boots",
            Self::PendingAcceptance => "waits for a person to accept it in Omni",
            Self::Rejected => "rejected in Omni; nothing is done to it",
            Self::Cordoned => "cordoned in Omni; nothing is done to it",
            Self::TakingUp => "is being taken up",
            Self::Removing => "removed from Omni; power-cycled into the agent one last time",
            Self::Releasing => "removed from Omni; is let go",
            Self::Resuming => "something begun before a restart is finished",
            Self::NeverBooted => "waits for its first boot from the network",
            Self::BmcGiven => "takes over the BMC credentials given in Omni",
            Self::BmcResealed => "its BMC password is stored as it should be",
            Self::BmcSetUp => "its agent sets up a BMC user",
            Self::BmcAwaitsAgent => "waits for its agent, to set up a BMC user",
            Self::PowerOffAcknowledged => "acknowledges a power-off request",
            Self::Wiping => "its agent wipes the disks",
            Self::PowerUnknown => "its BMC does not answer; waits for it",
            Self::PoweredOffOnRequest => "off, as requested in Omni",
            Self::Needed => "off and needed; is powered on",
            Self::PrefersOn => "off, and Omni prefers it on; is powered on",
            Self::IdleOff => "ready and powered off",
            Self::IdleOn => "ready, and kept on as Omni prefers",
            Self::RebootRequested => "reboots, as requested in Omni",
            Self::AgentNeeded => "its agent is needed and missing; is power-cycled into it",
            Self::AgentBooting => "waits for its agent to come up",
            Self::TalosNeeded => "allocated to a cluster; is power-cycled from the agent into Talos",
            Self::NotNeeded => "idle; is powered off",
            Self::Cooldown => "waits out the least time between reboots",
            Self::TalosBooting => "boots Talos from the network",
            Self::Running => "runs Talos from its disk",
            Self::StaleView => "waits for Omni: its last word is old",
            Self::LastAttemptFailed => "the last attempt failed; is tried again",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
