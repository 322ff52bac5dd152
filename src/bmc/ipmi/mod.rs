//! A BMC that speaks IPMI 2.0 over LAN (RMCP+), cipher suites 17 and 3.
//!
//! [`IpmiBmc`] does the five operations; `opening` decides how a session is opened; `session` is one session; `link` is
//! the socket under it; [`Timing`] holds the clocks.

mod link;
mod opening;
mod session;
mod timing;

pub use timing::Timing;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio::time::sleep;

use self::link::{Unanswered, random};
use self::opening::Opener;
use self::session::Session;
use super::{Bmc, Credentials, Error};
use crate::machine::{PowerState, PxeBootMode};
use crate::time::Uptime;
use crate::wire::ipmi::command::{
    ACKNOWLEDGE_BIOS, BootDevice, BootOption, BootOverride, CHASSIS_CONTROL, ChassisControl, ChassisStatus,
    GET_BOOT_OPTIONS, GET_CHASSIS_STATUS, KEEP_ON_TIMEOUT, SET_BOOT_OPTIONS, SET_COMPLETE, SET_IN_PROGRESS,
    decode_boot_option, encode_get_boot_option, encode_set_boot_option,
};
use crate::wire::ipmi::message::{CompletionCode, NETFN_CHASSIS};

/// One BMC and the session with it. Cheap until used: the socket is opened by the first operation.
pub struct IpmiBmc {
    connection: Mutex<Connection>,
}

/// What one operation after the other uses.
struct Connection {
    bmc: Arc<str>,
    username: String,
    timing: Timing,
    opener: Opener,
    /// Absent while a command runs: a command that is abandoned takes its session with it.
    session: Option<Session>,
    /// When the last command was sent.
    last_command: Option<Uptime>,
}

impl IpmiBmc {
    /// A client for the BMC of `credentials`. Nothing is sent yet.
    pub fn new(credentials: Credentials, timing: Timing) -> Self {
        let bmc: Arc<str> = match credentials.address.contains(':') && !credentials.address.starts_with('[') {
            true => format!("[{}]:{}", credentials.address, credentials.port),
            false => format!("{}:{}", credentials.address, credentials.port),
        }
        .into();
        let connection = Connection {
            bmc: bmc.clone(),
            username: credentials.username.clone(),
            timing,
            opener: Opener::new(bmc, credentials, timing),
            session: None,
            last_command: None,
        };
        Self { connection: Mutex::new(connection) }
    }

    /// Closes the session, if one is open, without waiting for the BMC. The next operation opens a new one.
    pub async fn close(&self) {
        self.connection.lock().await.session = None;
    }
}

#[async_trait]
impl Bmc for IpmiBmc {
    async fn power_state(&self) -> Result<PowerState, Error> {
        self.connection.lock().await.power_state().await
    }

    async fn power_on(&self) -> Result<(), Error> {
        self.connection.lock().await.control(ChassisControl::PowerUp, Some(PowerState::On)).await
    }

    async fn power_off(&self) -> Result<(), Error> {
        self.connection.lock().await.control(ChassisControl::PowerDown, Some(PowerState::Off)).await
    }

    async fn power_cycle(&self) -> Result<(), Error> {
        let mut connection = self.connection.lock().await;
        // The specification lets a chassis that is off ignore a power cycle.
        match connection.power_state().await? {
            PowerState::Off => connection.control(ChassisControl::PowerUp, Some(PowerState::On)).await,
            PowerState::On | PowerState::Unknown => connection.control(ChassisControl::PowerCycle, None).await,
        }
    }

    async fn set_pxe_once(&self, mode: PxeBootMode) -> Result<(), Error> {
        let wanted = BootOverride::pxe_once(mode == PxeBootMode::Uefi);
        self.connection.lock().await.set_boot_override(wanted).await
    }
}

impl Connection {
    async fn power_state(&mut self) -> Result<PowerState, Error> {
        let operation = "get chassis status";
        let (code, data) = self.command(operation, GET_CHASSIS_STATUS, &[]).await?;
        self.expect_ok(operation, code)?;
        let status = ChassisStatus::decode(&data).map_err(|source| Error::Misbehaved {
            bmc: self.bmc.clone(),
            operation,
            source,
        })?;
        Ok(if status.power_on { PowerState::On } else { PowerState::Off })
    }

    /// Sends a chassis control. A refusal counts as success when the machine is `already` in the state that it is for.
    async fn control(&mut self, control: ChassisControl, already: Option<PowerState>) -> Result<(), Error> {
        let operation = "chassis control";
        let (code, _) = self.command(operation, CHASSIS_CONTROL, &control.encode()).await?;
        let refused = match self.expect_ok(operation, code) {
            Err(refused @ Error::Refused { .. }) => refused,
            decided => return decided,
        };
        match already {
            Some(state) if self.power_state().await? == state => {
                tracing::debug!(bmc = %self.bmc, ?control, %code, "refused, and already done");
                Ok(())
            }
            _ => Err(refused),
        }
    }

    /// Sets the boot flags, in the order of IPMI 2.0 28.13. Only the flags themselves must succeed: BMCs differ in which
    /// of the other parameters they have.
    async fn set_boot_override(&mut self, wanted: BootOverride) -> Result<(), Error> {
        let mut opened = self.set_option(BootOption::SetInProgress, &SET_IN_PROGRESS).await?;
        if opened == CompletionCode::SET_IN_PROGRESS {
            // Someone began and never finished; operations of ours are serial, so it is not us.
            self.set_option(BootOption::SetInProgress, &SET_COMPLETE).await?;
            opened = self.set_option(BootOption::SetInProgress, &SET_IN_PROGRESS).await?;
        }
        self.tolerate(BootOption::ValidBitClearing, &KEEP_ON_TIMEOUT).await?;
        self.tolerate(BootOption::InfoAcknowledge, &ACKNOWLEDGE_BIOS).await?;
        let flags = self.set_option(BootOption::BootFlags, &wanted.encode()).await?;
        if opened == CompletionCode::OK {
            self.tolerate(BootOption::SetInProgress, &SET_COMPLETE).await?;
        }
        self.expect_ok("set boot flags", flags)?;
        self.compare_boot_override(wanted).await
    }

    /// Reads the boot flags back and tells the log when the BMC kept others: it is how machines miss a network boot.
    async fn compare_boot_override(&mut self, wanted: BootOverride) -> Result<(), Error> {
        let request = encode_get_boot_option(BootOption::BootFlags);
        let (code, data) = self.command("get boot flags", GET_BOOT_OPTIONS, &request).await?;
        if code != CompletionCode::OK {
            tracing::debug!(bmc = %self.bmc, %code, "boot flags cannot be read back");
            return Ok(());
        }
        match decode_boot_option(&data).and_then(|(_, value)| BootOverride::decode(value)) {
            Ok(kept) if kept.valid && kept.device == BootDevice::Pxe && kept.uefi == wanted.uefi => {}
            Ok(kept) => tracing::warn!(bmc = %self.bmc, ?wanted, ?kept, "BMC kept other boot flags"),
            Err(error) => tracing::debug!(bmc = %self.bmc, %error, "boot flags cannot be read back"),
        }
        Ok(())
    }

    async fn tolerate(&mut self, option: BootOption, value: &[u8]) -> Result<(), Error> {
        let code = self.set_option(option, value).await?;
        if code != CompletionCode::OK {
            tracing::debug!(bmc = %self.bmc, ?option, %code, "BMC does without this boot option");
        }
        Ok(())
    }

    async fn set_option(&mut self, option: BootOption, value: &[u8]) -> Result<CompletionCode, Error> {
        let operation = match option {
            BootOption::BootFlags => "set boot flags",
            _ => "set boot options",
        };
        Ok(self.command(operation, SET_BOOT_OPTIONS, &encode_set_boot_option(option, value)).await?.0)
    }

    fn expect_ok(&self, operation: &'static str, code: CompletionCode) -> Result<(), Error> {
        match code {
            CompletionCode::OK => Ok(()),
            CompletionCode::INSUFFICIENT_PRIVILEGE => {
                Err(Error::Unprivileged { bmc: self.bmc.clone(), username: self.username.clone() })
            }
            code => Err(Error::Refused { bmc: self.bmc.clone(), operation, code }),
        }
    }

    /// Sends one command of the chassis, again while the BMC is busy; returns its last answer, good or bad.
    async fn command(
        &mut self,
        operation: &'static str,
        command: u8,
        data: &[u8],
    ) -> Result<(CompletionCode, Vec<u8>), Error> {
        let mut busy = 0;
        loop {
            let (code, answer) = self.command_once(operation, command, data).await?;
            busy += 1;
            if !code.is_transient() || busy >= self.timing.busy_tries {
                return Ok((code, answer));
            }
            tracing::debug!(bmc = %self.bmc, operation, %code, "BMC is busy");
            let [jitter] = random();
            sleep(self.timing.pause(busy - 1, jitter)).await;
        }
    }

    /// Sends one command in the open session, or in a new one when there is none or it turns out to be dead.
    async fn command_once(
        &mut self,
        operation: &'static str,
        command: u8,
        data: &[u8],
    ) -> Result<(CompletionCode, Vec<u8>), Error> {
        self.space_out().await;
        let timing = self.timing;
        let young = |session: &Session| Uptime::now().since(session.used) < timing.session_idle;
        if let Some(mut session) = self.session.take().filter(young) {
            match session.command(&timing, timing.tries_when_reused, (NETFN_CHASSIS, command), data).await {
                Ok(answer) => {
                    self.session = Some(session);
                    return Ok(answer);
                }
                Err(unanswered) => tracing::debug!(bmc = %self.bmc, operation, ?unanswered, "session died"),
            }
        }
        let mut session = self.opener.open().await?;
        let answer = session.command(&timing, timing.tries, (NETFN_CHASSIS, command), data).await;
        let answer = answer.map_err(|unanswered| match unanswered {
            Unanswered::Silence => Error::Timeout { bmc: self.bmc.clone(), operation, tries: timing.tries },
            Unanswered::Io(source) => Error::Unreachable { bmc: self.bmc.clone(), source },
        })?;
        self.session = Some(session);
        Ok(answer)
    }

    /// Keeps [`Timing::spacing`] between commands.
    async fn space_out(&mut self) {
        let since = self.last_command.map_or(Duration::MAX, |last| Uptime::now().since(last));
        sleep(self.timing.spacing.saturating_sub(since)).await;
        self.last_command = Some(Uptime::now());
    }
}
