//! The one serial plan of a machine, in place of six controllers that race.
//!
//! It agrees, row for row, with the decision tables of contract bare-metal-provider.md, sections 6.4 and 7.2 to 7.7,
//! except where those say **[FIX]**; `tests.rs` beside this file holds the tables.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Intent, Outcome, Reason, RebootCause};
use crate::machine::{
    Acceptance, Desired, PowerState, Recorded, allocated, boot_mode, installed, power_off_active, requires_power_on,
    requires_wipe,
};
use crate::machine::{BmcRecord, BootMode};
use crate::secret::Secret;

/// A cooldown is asked about again this long after it should be over, as the Go provider does.
const COOLDOWN_MARGIN: Duration = Duration::from_secs(1);

/// BMC credentials that a person gave through Omni (`BMCConfig`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserBmc {
    /// Host name or address.
    pub address: String,
    /// UDP port, 623 when none was given.
    pub port: u16,
    /// User.
    pub username: String,
    /// Password.
    pub password: Secret<String>,
}

impl UserBmc {
    fn is(&self, record: &BmcRecord) -> bool {
        record.manual
            && record.address == self.address
            && record.port == self.port
            && record.username == self.username
            && record.password == self.password
    }
}

/// The timing that a plan keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Least time between reboots, and between a power-on and a power-off.
    pub min_reboot_interval: Duration,
    /// How long the agent may be missing before the machine is power-cycled.
    pub agent_wait: Duration,
}

/// Everything a plan looks at.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// What Omni wants; `None` when it does not know the machine.
    pub desired: Option<&'a Desired>,
    /// What this provider recorded.
    pub recorded: &'a Recorded,
    /// Credentials that a person gave.
    pub user_bmc: Option<&'a UserBmc>,
    /// Whether Omni holds the BMC password in another form, sealed or in clear, than it should.
    pub password_form_is_wrong: bool,
    /// What was begun and not finished.
    pub intent: Option<&'a Intent>,
    /// Whether one of our finalizers is missing on the machine.
    pub finalizers_missing: bool,
    /// Whether Omni's watch is live; a view from the store is not.
    pub confirmed: bool,
    /// How much longer a process that has just started waits for Omni's first word before it acts on what is stored; zero
    /// once that word came, or the patience is over.
    pub first_word_due: Duration,
    /// Power, as the BMC last said.
    pub power: PowerState,
    /// Whether the agent answers.
    pub agent: bool,
    /// How long the agent has been missing with nothing heard of the machine; zero while it answers.
    pub agent_missing_for: Duration,
    /// Time since this provider last powered the machine on or rebooted it; `None` for never.
    pub since_power_action: Option<Duration>,
    /// What failed lately, and how long each is left alone.
    pub failures: &'a Failures,
    /// The timing to keep.
    pub rules: Rules,
}

/// Actions that failed, and how long from now each is left alone.
pub type Failures = BTreeMap<ActionKind, Duration>;

/// One side effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Put our finalizers on the machine.
    AddFinalizers,
    /// Finish what the intent says.
    Resume,
    /// Destroy our resources, remove our finalizers.
    Release,
    /// Record the credentials that a person gave, or those that are known in the form they should have.
    RecordBmc,
    /// Have the agent set up a BMC user.
    SetUpBmc,
    /// Record that a power-off request was seen.
    AcknowledgePowerOff,
    /// Have the agent wipe the disks.
    Wipe,
    /// Power on.
    PowerOn {
        /// Whether this boot must come from the network.
        pxe: bool,
        /// The reboot request that it serves as well.
        reboot_id: Option<String>,
    },
    /// Power off, hard.
    PowerOff,
    /// Power off, watch it, power on.
    Reboot {
        /// Why.
        cause: RebootCause,
        /// Whether the next boot must come from the network.
        pxe: bool,
    },
}

/// An [`Action`] without its details, to count failures by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ActionKind {
    /// [`Action::AddFinalizers`].
    AddFinalizers,
    /// [`Action::Resume`].
    Resume,
    /// [`Action::Release`].
    Release,
    /// [`Action::RecordBmc`].
    RecordBmc,
    /// [`Action::SetUpBmc`].
    SetUpBmc,
    /// [`Action::AcknowledgePowerOff`].
    AcknowledgePowerOff,
    /// [`Action::Wipe`].
    Wipe,
    /// [`Action::PowerOn`].
    PowerOn,
    /// [`Action::PowerOff`].
    PowerOff,
    /// [`Action::Reboot`].
    Reboot,
}

impl Action {
    /// Which one it is.
    pub const fn kind(&self) -> ActionKind {
        match self {
            Self::AddFinalizers => ActionKind::AddFinalizers,
            Self::Resume => ActionKind::Resume,
            Self::Release => ActionKind::Release,
            Self::RecordBmc => ActionKind::RecordBmc,
            Self::SetUpBmc => ActionKind::SetUpBmc,
            Self::AcknowledgePowerOff => ActionKind::AcknowledgePowerOff,
            Self::Wipe => ActionKind::Wipe,
            Self::PowerOn { .. } => ActionKind::PowerOn,
            Self::PowerOff => ActionKind::PowerOff,
            Self::Reboot { .. } => ActionKind::Reboot,
        }
    }

    /// Whether it can't be undone, so that it needs Omni's fresh word.
    const fn needs_confirmed_view(&self) -> bool {
        matches!(self, Self::Wipe | Self::PowerOff | Self::Reboot { .. } | Self::Release)
    }
}

/// What to do about one machine now.
///
/// Level-based and idempotent: it looks at the state alone, and the same view gives the same outcome.
pub fn plan(view: &View<'_>) -> Outcome {
    if view.intent.is_some() {
        return attempt(view, Action::Resume, Reason::Resuming);
    }
    let Some(desired) = view.desired else { return Outcome::settled(Reason::NotInOmni) };
    if desired.tearing_down {
        return plan_removal(view);
    }
    if view.finalizers_missing {
        return attempt(view, Action::AddFinalizers, Reason::TakingUp);
    }
    match desired.acceptance {
        Acceptance::Pending => return Outcome::settled(Reason::PendingAcceptance),
        Acceptance::Rejected => return Outcome::settled(Reason::Rejected),
        Acceptance::Accepted => {}
    }
    if desired.cordoned {
        return Outcome::settled(Reason::Cordoned);
    }
    if let Some(outcome) = plan_bmc(view) {
        return outcome;
    }
    if requires_wipe(Some(desired), view.recorded) && view.agent {
        return attempt(view, Action::Wipe, Reason::Wiping);
    }
    if view.recorded.bmc.is_none() {
        let retry_in = view.failures.values().min().copied();
        return match retry_in {
            Some(retry_in) => Outcome::wait(Reason::LastAttemptFailed, retry_in),
            None if view.recorded.initialized => Outcome::settled(Reason::BmcAwaitsAgent),
            None => Outcome::settled(Reason::NeverBooted),
        };
    }
    let unacknowledged =
        !desired.power_off_request_id.is_empty() && desired.power_off_request_id != view.recorded.power.power_off_id;
    if unacknowledged {
        return attempt(view, Action::AcknowledgePowerOff, Reason::PowerOffAcknowledged);
    }
    match view.power {
        PowerState::Unknown => Outcome::settled(Reason::PowerUnknown),
        PowerState::Off => plan_off(view, desired),
        PowerState::On => plan_on(view, desired),
    }
}

/// Removal: one last reboot into the agent where that is possible, then our resources and finalizers go.
fn plan_removal(view: &View<'_>) -> Outcome {
    let reboot = view.recorded.bmc.is_some()
        && view.recorded.initialized
        && view.power == PowerState::On
        && !view.agent
        && !view.failures.contains_key(&ActionKind::Reboot);
    if reboot {
        let action = Action::Reboot { cause: RebootCause::Removed, pxe: true };
        return attempt(view, action, Reason::Removing);
    }
    attempt(view, Action::Release, Reason::Releasing)
}

/// BMC access: a person's credentials win, also with the agent away; else the agent makes a user. A failure here does
/// not hold up the wipe.
fn plan_bmc(view: &View<'_>) -> Option<Outcome> {
    let recorded = view.recorded.bmc.as_ref();
    let (action, reason) = match (view.user_bmc, recorded) {
        (Some(user), Some(record)) if !user.is(record) => (Action::RecordBmc, Reason::BmcGiven),
        (Some(_), None) => (Action::RecordBmc, Reason::BmcGiven),
        (_, Some(_)) if view.password_form_is_wrong => (Action::RecordBmc, Reason::BmcResealed),
        (Some(_), Some(_)) => return None,
        (None, Some(record)) if !record.manual => return None,
        (None, _) if view.agent => (Action::SetUpBmc, Reason::BmcSetUp),
        (None, _) => return None,
    };
    if view.failures.contains_key(&action.kind()) {
        return None;
    }
    Some(attempt(view, action, reason))
}

/// The machine is off (section 7.5, rows "off").
fn plan_off(view: &View<'_>, desired: &Desired) -> Outcome {
    if power_off_active(desired, view.recorded) {
        return Outcome::settled(Reason::PoweredOffOnRequest);
    }
    let pxe = boot_mode(view.desired, view.recorded).is_pxe();
    let reboot_id = requested_reboot(view, desired);
    let action = Action::PowerOn { pxe, reboot_id: reboot_id.clone() };
    if requires_power_on(desired, view.recorded) {
        attempt(view, action, Reason::Needed)
    } else if desired.prefers_on {
        attempt(view, action, Reason::PrefersOn)
    } else if reboot_id.is_some() {
        attempt(view, action, Reason::RebootRequested)
    } else {
        Outcome::settled(Reason::IdleOff)
    }
}

/// The machine is on (section 7.5, rows "on", and section 7.6).
fn plan_on(view: &View<'_>, desired: &Desired) -> Outcome {
    let mode = boot_mode(view.desired, view.recorded);
    let pxe = mode.is_pxe();
    if requires_power_on(desired, view.recorded) {
        match (mode, view.agent) {
            (BootMode::AgentPxe, false) => {
                let patience = view.rules.agent_wait.saturating_sub(view.agent_missing_for);
                if !patience.is_zero() {
                    return Outcome::wait(Reason::AgentBooting, patience);
                }
                return reboot(view, RebootCause::AgentNeeded, pxe, Reason::AgentNeeded);
            }
            (BootMode::TalosPxe, true) => return reboot(view, RebootCause::TalosNeeded, pxe, Reason::TalosNeeded),
            _ => {}
        }
    }
    if let Some(id) = requested_reboot(view, desired) {
        return reboot(view, RebootCause::Requested(id), pxe, Reason::RebootRequested);
    }
    if requires_power_on(desired, view.recorded) {
        return Outcome::settled(match mode {
            BootMode::TalosPxe => Reason::TalosBooting,
            BootMode::TalosDisk => Reason::Running,
            // The wipe itself comes earlier in the plan; what is left is an installed machine without a cluster.
            BootMode::AgentPxe if installed(Some(desired), view.recorded) || allocated(desired) => Reason::Running,
            BootMode::AgentPxe => Reason::AgentBooting,
        });
    }
    if desired.prefers_on {
        return Outcome::settled(Reason::IdleOn);
    }
    match cooldown(view) {
        Some(remaining) => Outcome::wait(Reason::Cooldown, remaining),
        None => attempt(view, Action::PowerOff, Reason::NotNeeded),
    }
}

fn requested_reboot(view: &View<'_>, desired: &Desired) -> Option<String> {
    let requested = &desired.requested_reboot_id;
    (!requested.is_empty() && *requested != view.recorded.reboot.reboot_id).then(|| requested.clone())
}

#[track_caller]
fn reboot(view: &View<'_>, cause: RebootCause, pxe: bool, reason: Reason) -> Outcome {
    match cooldown(view) {
        Some(remaining) => Outcome::wait(Reason::Cooldown, remaining),
        None => attempt(view, Action::Reboot { cause, pxe }, reason),
    }
}

/// What is left of the least time between reboots.
fn cooldown(view: &View<'_>) -> Option<Duration> {
    let remaining = view.rules.min_reboot_interval.checked_sub(view.since_power_action?)?;
    (!remaining.is_zero()).then(|| remaining + COOLDOWN_MARGIN)
}

/// Acts, unless Omni's word is too old for it or the last attempt failed a moment ago.
#[track_caller]
fn attempt(view: &View<'_>, action: Action, reason: Reason) -> Outcome {
    if action.needs_confirmed_view() && !view.confirmed {
        return Outcome::settled(Reason::StaleView);
    }
    if !view.first_word_due.is_zero() {
        // What is stored lags behind what was recorded: a power-on would undo a power-off that a person asked for, and a
        // record written now would replace a newer one.
        return Outcome::wait(Reason::StaleView, view.first_word_due);
    }
    match view.failures.get(&action.kind()) {
        Some(left_alone) => Outcome::wait(Reason::LastAttemptFailed, *left_alone),
        None => Outcome::act(action, reason),
    }
}
