//! The five calls (contract agent-tunnel.md section 2).

use std::net::IpAddr;
use std::time::Duration;

use prost::Message;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use zeroize::Zeroize as _;

use super::registry::{Command, Failed};
use super::{CallError, Tunnels};
use crate::machine::MachineId;
use crate::proto::agent::{
    GetPowerManagementRequest, GetPowerManagementResponse, HelloRequest, HelloResponse, RebootRequest, RebootResponse,
    SetPowerManagementRequest, SetPowerManagementResponse, WipeDisksRequest, WipeDisksResponse,
    set_power_management_request,
};
use crate::secret::Secret;
use crate::wire::tunnel::CallFailure;

/// How a machine's power can be managed, as its agent found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerManagement {
    /// The BMC's LAN interface, if there is one.
    pub ipmi: Option<IpmiAccess>,
    /// The machine is a virtual one, managed by the test API.
    pub api: bool,
}

/// A BMC's LAN interface, as the agent read it over the local IPMI device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpmiAccess {
    /// What the BMC says; `0.0.0.0` for one that is not configured.
    pub address: IpAddr,
    /// UDP port, normally 623.
    pub port: u16,
    /// Whether a user of the asked name exists. We ask for none, so this means little.
    pub user_exists: bool,
}

impl Tunnels {
    /// Asks whether the agent is there.
    ///
    /// # Errors
    ///
    /// [`CallError`], here as for all calls.
    pub async fn hello(&self, machine: &MachineId, timeout: Duration) -> Result<(), CallError> {
        let HelloResponse {} = self.call(machine, "/management.AgentService/Hello", &HelloRequest {}, timeout).await?;
        Ok(())
    }

    /// Asks how the machine's power is managed. The agent reads its BMC, which may take seconds.
    ///
    /// # Errors
    ///
    /// [`CallError`]; [`CallError::Malformed`] for an address or a port that is none.
    pub async fn power_management(&self, machine: &MachineId, timeout: Duration) -> Result<PowerManagement, CallError> {
        let method = "/management.AgentService/GetPowerManagement";
        let request = GetPowerManagementRequest::default();
        let answer: GetPowerManagementResponse = self.call(machine, method, &request, timeout).await?;
        let malformed = |field| CallError::Malformed { machine: machine.clone(), method, field };
        let ipmi = match answer.ipmi {
            Some(ipmi) => Some(IpmiAccess {
                address: ipmi.address.parse().map_err(|_| malformed("ipmi.address"))?,
                port: u16::try_from(ipmi.port).map_err(|_| malformed("ipmi.port"))?,
                user_exists: ipmi.user_exists,
            }),
            None => None,
        };
        Ok(PowerManagement { ipmi, api: answer.api.is_some() })
    }

    /// Makes `user` with `password` an administrator of the machine's BMC, or gives an existing one that password. The
    /// agent cuts both to 16 octets.
    ///
    /// # Errors
    ///
    /// [`CallError`]; the password is in none of its texts.
    pub async fn set_power_management(
        &self,
        machine: &MachineId,
        user: &str,
        password: &Secret<String>,
        timeout: Duration,
    ) -> Result<(), CallError> {
        let ipmi =
            set_power_management_request::Ipmi { username: user.to_owned(), password: password.reveal().clone() };
        let mut request = SetPowerManagementRequest { ipmi: Some(ipmi), api: None };
        let answered = self.set_power(machine, &request, timeout).await;
        if let Some(ipmi) = &mut request.ipmi {
            ipmi.password.zeroize();
        }
        answered
    }

    /// Confirms that the machine's power is managed by the test API, as [`PowerManagement::api`] said.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn set_api_power_management(&self, machine: &MachineId, timeout: Duration) -> Result<(), CallError> {
        let api = Some(set_power_management_request::Api {});
        self.set_power(machine, &SetPowerManagementRequest { ipmi: None, api }, timeout).await
    }

    /// Wipes all disks: with zeroes from end to end, or their signatures and edges only. Hours, or seconds.
    ///
    /// # Errors
    ///
    /// [`CallError`]. Disks may be wiped in part; a timeout does not stop the agent from wiping on.
    pub async fn wipe_disks(&self, machine: &MachineId, zeroes: bool, timeout: Duration) -> Result<(), CallError> {
        let method = "/management.AgentService/WipeDisks";
        let WipeDisksResponse {} = self.call(machine, method, &WipeDisksRequest { zeroes }, timeout).await?;
        Ok(())
    }

    /// Reboots the machine. The agent normally answers before its tunnel breaks, so [`CallError::Closed`] is likely
    /// success as well.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn reboot(&self, machine: &MachineId, timeout: Duration) -> Result<(), CallError> {
        let RebootResponse {} =
            self.call(machine, "/management.AgentService/Reboot", &RebootRequest {}, timeout).await?;
        Ok(())
    }

    async fn set_power(
        &self,
        machine: &MachineId,
        request: &SetPowerManagementRequest,
        timeout: Duration,
    ) -> Result<(), CallError> {
        let method = "/management.AgentService/SetPowerManagement";
        let SetPowerManagementResponse {} = self.call(machine, method, request, timeout).await?;
        Ok(())
    }

    /// Makes one call. Dropping the future, or its timeout, cancels the call at the agent.
    async fn call<A: Message + Default>(
        &self,
        machine: &MachineId,
        method: &'static str,
        request: &impl Message,
        timeout: Duration,
    ) -> Result<A, CallError> {
        let machine = || machine.clone();
        let timed_out = |_| CallError::Timeout { machine: machine(), method, after: timeout };
        let closed = || CallError::Closed { machine: machine(), method };

        let deadline = Instant::now() + timeout;
        let commands =
            self.shared.commands(&machine()).ok_or_else(|| CallError::NoTunnel { machine: machine(), method })?;
        let (answer, answered) = oneshot::channel();
        // Dropped with this future: that is how the tunnel learns that nobody waits.
        let (_here, gone) = oneshot::channel();
        let command = Command { method, request: request.encode_to_vec().into(), answer, gone };
        timeout_at(deadline, commands.send(command)).await.map_err(timed_out)?.map_err(|_| closed())?;
        let outcome = timeout_at(deadline, answered).await.map_err(timed_out)?.map_err(|_| closed())?;
        match outcome {
            Ok(message) => {
                A::decode(message).map_err(|source| CallError::Undecodable { machine: machine(), method, source })
            }
            Err(Failed::NotStarted(refusal)) => Err(CallError::NotStarted { machine: machine(), method, refusal }),
            Err(Failed::Ended(CallFailure::Fault(fault))) => {
                Err(CallError::Misbehaved { machine: machine(), method, fault })
            }
            Err(Failed::Ended(CallFailure::Status { code, message })) => {
                Err(CallError::Refused { machine: machine(), method, code, message })
            }
        }
    }
}
