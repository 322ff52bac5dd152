//! Carries out what the plan decided, and makes no choice of its own.
//!
//! Each side effect that could hurt when repeated has its intent in the store before it happens; what was done is
//! recorded in the commit that ends the intent.

use std::time::Duration;

use super::actor::Actor;
use super::records::{self, Record};
use crate::agent::CallError;
use crate::bmc::{self, Bmc};
use crate::machine::{BmcRecord, BootMode, Desired, PowerState, RebootRecord, Recorded, WipeRecord, boot_mode};
use crate::proto::provider;
use crate::reconcile::{Action, Intent, RebootCause, Step};
use crate::secret::Secret;
use crate::time::{UnixTime, Uptime};

/// The BMC user that the agent makes, as the Go provider names it.
const AGENT_USER: &str = "talos-agent";
/// Characters of the password; what every BMC takes.
const PASSWORD_LENGTH: usize = 16;
const PASSWORD_ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// How long a machine may take to turn on or off. A BMC's "yes" is a receipt, not a result.
const POWER_DEADLINE: Duration = Duration::from_secs(60);
/// The first look after a power command, and the longest pause between looks.
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LAST_LOOK: Duration = Duration::from_secs(2);

/// Why an action failed. It is tried again after a pause.
#[derive(Debug, thiserror::Error)]
pub(super) enum ActError {
    /// The plan needs something that is gone by now.
    #[error("{what} is gone")]
    Gone {
        /// What.
        what: &'static str,
    },
    /// The BMC did not do it.
    #[error("BMC {address}: {operation} failed")]
    Bmc {
        /// Host and port.
        address: String,
        /// What was asked of it.
        operation: &'static str,
        /// Why.
        #[source]
        source: bmc::Error,
    },
    /// The BMC said yes, and nothing happened.
    #[error("BMC {address}: still not {wanted} after {} s", POWER_DEADLINE.as_secs())]
    NoEffect {
        /// Host and port.
        address: String,
        /// The power state that was asked for.
        wanted: PowerState,
    },
    /// The BMC does not say whether the machine is on.
    #[error("BMC {address}: does not tell the power state: {reason}")]
    Silent {
        /// Host and port.
        address: String,
        /// What the last poll came to.
        reason: String,
    },
    /// The agent did not do it.
    #[error("agent: {operation} failed")]
    Agent {
        /// What was asked of it.
        operation: &'static str,
        /// Why.
        #[source]
        source: CallError,
    },
    /// The machine has no BMC that its agent could reach.
    #[error("the machine did not provide any power management information; give its BMC's credentials in Omni")]
    NoPowerManagement,
    /// The kernel gave no randomness.
    #[error("no randomness for a password")]
    Randomness(#[source] getrandom::Error),
    /// It could not be recorded.
    #[error("not recorded")]
    Records(#[source] records::Error),
}

/// Carries out `action`.
pub(super) async fn perform(
    actor: &mut Actor,
    action: &Action,
    desired: Option<&Desired>,
    recorded: &Recorded,
) -> Result<(), ActError> {
    let needed = desired.ok_or(ActError::Gone { what: "the machine" });
    match action {
        Action::AddFinalizers => actor.site.records.add_finalizers(&actor.id).await.map_err(ActError::Records),
        Action::Resume => resume(actor, desired, recorded).await,
        Action::Release => {
            begin(actor, Step::Release).await?;
            release(actor).await
        }
        Action::RecordBmc => record_bmc(actor, recorded).await,
        Action::SetUpBmc => set_up_bmc(actor).await,
        Action::AcknowledgePowerOff => acknowledge_power_off(actor, needed?, recorded).await,
        Action::Wipe => wipe(actor, needed?).await,
        Action::PowerOn { pxe, reboot_id } => {
            begin(actor, Step::PowerOn { pxe: *pxe, reboot_id: reboot_id.clone() }).await?;
            power_on(actor, recorded, *pxe).await?;
            powered_on(actor, desired, recorded, reboot_id.clone()).await
        }
        Action::PowerOff => {
            begin(actor, Step::PowerOff).await?;
            power_off(actor, recorded).await?;
            powered_off(actor, recorded).await
        }
        Action::Reboot { cause, pxe } => {
            begin(actor, Step::RebootOff { cause: cause.clone(), pxe: *pxe }).await?;
            power_off(actor, recorded).await?;
            second_half_of_reboot(actor, desired, recorded, cause, *pxe).await
        }
    }
}

/// Finishes, or drops, what was begun before a restart or a failure.
///
/// Whatever the plan would decide anew from the state as it is now is dropped; only what the state does not show is
/// finished here.
async fn resume(actor: &mut Actor, desired: Option<&Desired>, recorded: &Recorded) -> Result<(), ActError> {
    let Some(Intent { step, .. }) = actor.intent.clone() else { return Ok(()) };
    actor.observe_power(recorded).await;
    match (step, actor.power) {
        (Step::Release, _) => release(actor).await,
        // The wipe was not recorded as done: the plan asks for it again while the machine still needs one.
        (Step::Wipe { .. }, _) => abandon(actor).await,
        // The machine never went off, so that nothing has happened yet.
        (Step::RebootOff { .. } | Step::PowerOff, PowerState::On) => abandon(actor).await,
        (Step::RebootOff { cause, pxe } | Step::RebootOn { cause, pxe }, PowerState::Off) => {
            second_half_of_reboot(actor, desired, recorded, &cause, pxe).await
        }
        (Step::RebootOn { cause, .. }, PowerState::On) => rebooted(actor, desired, recorded, &cause).await,
        (Step::PowerOff, PowerState::Off) => powered_off(actor, recorded).await,
        (Step::PowerOn { reboot_id, .. }, PowerState::On) => powered_on(actor, desired, recorded, reboot_id).await,
        (Step::PowerOn { .. }, PowerState::Off) => abandon(actor).await,
        (
            Step::RebootOff { .. } | Step::RebootOn { .. } | Step::PowerOn { .. } | Step::PowerOff,
            PowerState::Unknown,
        ) => {
            // With its BMC gone there is nothing to finish and nothing that could be repeated.
            match &recorded.bmc {
                None => abandon(actor).await,
                Some(bmc) => {
                    Err(ActError::Silent { address: bmc_address(bmc), reason: actor.bmc_trouble().to_owned() })
                }
            }
        }
        (Step::BmcUser { address, port, username, sealed_password }, _) => {
            let password = actor.site.records.unseal(&actor.id, &sealed_password);
            match password {
                Some(password) if actor.site.tunnels.is_open(&actor.id) => {
                    set_bmc_user(actor, BmcRecord { address, port, username, password, manual: false }).await
                }
                // Without the agent nobody can tell whether the password was set. A new one will be.
                _ => abandon(actor).await,
            }
        }
    }
}

async fn begin(actor: &mut Actor, step: Step) -> Result<(), ActError> {
    let intent = Intent { started: UnixTime::now(), step };
    actor.site.records.intend(&actor.id, &intent).await.map_err(ActError::Records)?;
    actor.intent = Some(intent);
    Ok(())
}

async fn abandon(actor: &mut Actor) -> Result<(), ActError> {
    actor.site.records.abandon(&actor.id).await.map_err(ActError::Records)?;
    actor.intent = None;
    Ok(())
}

async fn finish(actor: &mut Actor, records: Vec<(Record, Vec<u8>)>) -> Result<(), ActError> {
    actor.site.records.finish(&actor.id, records).await.map_err(ActError::Records)?;
    actor.intent = None;
    Ok(())
}

async fn release(actor: &mut Actor) -> Result<(), ActError> {
    actor.site.records.release(&actor.id).await.map_err(ActError::Records)?;
    actor.intent = None;
    moment(actor, "let go");
    Ok(())
}

async fn record_bmc(actor: &mut Actor, recorded: &Recorded) -> Result<(), ActError> {
    let bmc = match actor.site.records.user_bmc(&actor.id) {
        Some(user) => BmcRecord {
            address: user.address,
            port: user.port,
            username: user.username,
            password: user.password,
            manual: true,
        },
        // Known credentials, whose password is to be stored in another form.
        None => recorded.bmc.clone().ok_or(ActError::Gone { what: "the BMC configuration" })?,
    };
    let octets = actor.site.records.encode_bmc(&actor.id, &bmc).map_err(ActError::Records)?;
    finish(actor, vec![(Record::BmcConfiguration, octets)]).await?;
    actor.poll_soon();
    Ok(())
}

async fn set_up_bmc(actor: &mut Actor) -> Result<(), ActError> {
    let timeout = actor.site.timing.agent_call;
    let found = actor
        .site
        .tunnels
        .power_management(&actor.id, timeout)
        .await
        .map_err(|source| ActError::Agent { operation: "GetPowerManagement", source })?;
    let ipmi = found.ipmi.ok_or(ActError::NoPowerManagement)?;
    let password = random_password().map_err(ActError::Randomness)?;
    let address = ipmi.address.to_string();
    let step = Step::BmcUser {
        address: address.clone(),
        port: ipmi.port,
        username: AGENT_USER.to_owned(),
        sealed_password: actor.site.records.seal(&actor.id, &password).map_err(ActError::Records)?,
    };
    begin(actor, step).await?;
    let bmc = BmcRecord { address, port: ipmi.port, username: AGENT_USER.to_owned(), password, manual: false };
    set_bmc_user(actor, bmc).await
}

async fn set_bmc_user(actor: &mut Actor, bmc: BmcRecord) -> Result<(), ActError> {
    let timeout = actor.site.timing.agent_call;
    actor
        .site
        .tunnels
        .set_power_management(&actor.id, &bmc.username, &bmc.password, timeout)
        .await
        .map_err(|source| ActError::Agent { operation: "SetPowerManagement", source })?;
    let octets = actor.site.records.encode_bmc(&actor.id, &bmc).map_err(ActError::Records)?;
    finish(actor, vec![(Record::BmcConfiguration, octets)]).await?;
    moment(actor, "BMC user set up");
    actor.poll_soon();
    Ok(())
}

async fn acknowledge_power_off(actor: &mut Actor, desired: &Desired, recorded: &Recorded) -> Result<(), ActError> {
    let mut power = recorded.power.clone();
    power.power_off_id = desired.power_off_request_id.clone();
    power.wipe_id_at_power_off = desired.wipe_id.clone();
    finish(actor, vec![(Record::PowerOperation, encode(&provider::PowerOperationSpec::from(&power)))]).await
}

async fn wipe(actor: &mut Actor, desired: &Desired) -> Result<(), ActError> {
    let wiped = WipeRecord {
        wipe_id: desired.wipe_id.clone(),
        install_event_id: desired.install_event_id,
        initial_wipe_done: true,
        node_unique_token: desired.node_unique_token.clone(),
    };
    begin(
        actor,
        Step::Wipe {
            wipe_id: wiped.wipe_id.clone(),
            install_event_id: wiped.install_event_id,
            node_unique_token: wiped.node_unique_token.clone(),
        },
    )
    .await?;
    let (zeroes, timeout) = (actor.site.wipe_with_zeroes, actor.site.timing.wipe);
    let result = actor.site.tunnels.wipe_disks(&actor.id, zeroes, timeout).await;
    if let Err(source) = result {
        abandon(actor).await?;
        return Err(ActError::Agent { operation: "WipeDisks", source });
    }
    finish(actor, vec![(Record::WipeStatus, encode(&provider::WipeStatusSpec::from(&wiped)))]).await?;
    moment(actor, "disks wiped");
    Ok(())
}

async fn second_half_of_reboot(
    actor: &mut Actor,
    desired: Option<&Desired>,
    recorded: &Recorded,
    cause: &RebootCause,
    pxe: bool,
) -> Result<(), ActError> {
    begin(actor, Step::RebootOn { cause: cause.clone(), pxe }).await?;
    power_on(actor, recorded, pxe).await?;
    rebooted(actor, desired, recorded, cause).await
}

async fn rebooted(
    actor: &mut Actor,
    desired: Option<&Desired>,
    recorded: &Recorded,
    cause: &RebootCause,
) -> Result<(), ActError> {
    // Any reboot serves a request for one.
    let reboot_id = match (cause, desired) {
        (RebootCause::Requested(id), _) => id.clone(),
        (_, Some(desired)) => desired.requested_reboot_id.clone(),
        (_, None) => recorded.reboot.reboot_id.clone(),
    };
    let reboot = RebootRecord { reboot_id, at: Some(UnixTime::now()) };
    let records = vec![(Record::RebootStatus, encode(&provider::RebootStatusSpec::from(&reboot)))];
    if *cause != RebootCause::Removed {
        finish(actor, records).await?;
        turned_on(actor, desired);
        moment(actor, "power-cycled");
        return Ok(());
    }
    // Nothing that Omni holds tells a removed machine that had its last power cycle from one that had not: between the
    // two intents there must be no gap for a crash, or the machine would be cycled again.
    let next = Intent { started: UnixTime::now(), step: Step::Release };
    actor.site.records.finish_and_intend(&actor.id, records, &next).await.map_err(ActError::Records)?;
    actor.intent = Some(next);
    moment(actor, "power-cycled");
    release(actor).await
}

async fn powered_on(
    actor: &mut Actor,
    desired: Option<&Desired>,
    recorded: &Recorded,
    reboot_id: Option<String>,
) -> Result<(), ActError> {
    let now = UnixTime::now();
    let mut power = recorded.power.clone();
    power.last = PowerState::On;
    power.on_at = Some(now);
    let mut records = vec![(Record::PowerOperation, encode(&provider::PowerOperationSpec::from(&power)))];
    if let Some(reboot_id) = reboot_id {
        let reboot = RebootRecord { reboot_id, at: Some(now) };
        records.push((Record::RebootStatus, encode(&provider::RebootStatusSpec::from(&reboot))));
    }
    finish(actor, records).await?;
    turned_on(actor, desired);
    moment(actor, "powered on");
    Ok(())
}

/// The cooldown begins; and so does the time in which an agent may come, when that is what the machine boots.
fn turned_on(actor: &mut Actor, desired: Option<&Desired>) {
    let now = Uptime::now();
    actor.power_action = Some(now);
    let recorded = actor.site.records.recorded(&actor.id);
    if boot_mode(desired, &recorded) == BootMode::AgentPxe {
        actor.site.rack.expect_agent(&actor.id, now);
    }
}

async fn powered_off(actor: &mut Actor, recorded: &Recorded) -> Result<(), ActError> {
    let mut power = recorded.power.clone();
    power.last = PowerState::Off;
    finish(actor, vec![(Record::PowerOperation, encode(&provider::PowerOperationSpec::from(&power)))]).await?;
    moment(actor, "powered off");
    Ok(())
}

async fn power_on(actor: &mut Actor, recorded: &Recorded, pxe: bool) -> Result<(), ActError> {
    let (bmc, address) = reach(actor, recorded)?;
    if pxe {
        let mode = actor.site.pxe_mode;
        bmc.set_pxe_once(mode).await.map_err(|source| ActError::Bmc {
            address: address.clone(),
            operation: "set PXE boot once",
            source,
        })?;
    }
    bmc.power_on().await.map_err(|source| ActError::Bmc { address, operation: "power on", source })?;
    reach_power(actor, recorded, PowerState::On).await
}

async fn power_off(actor: &mut Actor, recorded: &Recorded) -> Result<(), ActError> {
    let (bmc, address) = reach(actor, recorded)?;
    bmc.power_off().await.map_err(|source| ActError::Bmc { address, operation: "power off", source })?;
    reach_power(actor, recorded, PowerState::Off).await?;
    // Its agent died with it, and its connection would look alive for a while.
    actor.site.tunnels.close(&actor.id);
    Ok(())
}

fn reach(actor: &mut Actor, recorded: &Recorded) -> Result<(std::sync::Arc<dyn Bmc>, String), ActError> {
    let bmc = actor.bmc(recorded).ok_or(ActError::Gone { what: "the BMC configuration" })?;
    let address = recorded.bmc.as_ref().map(bmc_address).unwrap_or_default();
    Ok((bmc, address))
}

fn bmc_address(bmc: &BmcRecord) -> String {
    format!("{}:{}", bmc.address, bmc.port)
}

async fn reach_power(actor: &mut Actor, recorded: &Recorded, wanted: PowerState) -> Result<(), ActError> {
    let deadline = Uptime::now() + POWER_DEADLINE;
    let mut pause = FIRST_LOOK;
    while Uptime::now() < deadline {
        actor.observe_power(recorded).await;
        if actor.power == wanted {
            return Ok(());
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_LOOK);
    }
    let address = recorded.bmc.as_ref().map(bmc_address).unwrap_or_default();
    Err(ActError::NoEffect { address, wanted })
}

fn moment(actor: &Actor, what: &str) {
    tracing::info!(machine = %actor.id, what, "done");
    actor.site.rack.saw(&actor.id, what, Uptime::now(), UnixTime::now());
}

fn encode(spec: &impl prost::Message) -> Vec<u8> {
    spec.encode_to_vec()
}

/// 16 characters of `[a-zA-Z0-9]`, each as likely as any other.
fn random_password() -> Result<Secret<String>, getrandom::Error> {
    let mut password = String::with_capacity(PASSWORD_LENGTH);
    while password.len() < PASSWORD_LENGTH {
        let mut octets = [0; 32];
        getrandom::fill(&mut octets)?;
        // 248 is the largest multiple of 62 in an octet: what lies above would favour the first letters.
        let fair =
            octets.iter().filter(|octet| **octet < 248).map(|octet| PASSWORD_ALPHABET[usize::from(octet % 62)] as char);
        password.extend(fair.take(PASSWORD_LENGTH - password.len()));
    }
    Ok(Secret::new(password))
}
