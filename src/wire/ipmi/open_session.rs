//! RMCP+ Open Session: the first two messages of a session, where the algorithms are agreed.
//!
//! Source: IPMI 2.0 13.17, 13.18 and table 13-15 (status codes).

use std::fmt;

use super::Malformed;
use super::octets::Octets;
use super::suite::CipherSuite;

/// RMCP+ and RAKP message status code; 0 is success (table 13-15).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u8);

impl Status {
    /// No errors.
    pub const OK: Self = Self(0x00);
    /// Insufficient resources to create a session.
    pub const NO_RESOURCES: Self = Self(0x01);
    /// Invalid session ID.
    pub const INVALID_SESSION: Self = Self(0x02);
    /// Invalid authentication algorithm.
    pub const INVALID_AUTHENTICATION: Self = Self(0x04);
    /// Inactive session ID.
    pub const INACTIVE_SESSION: Self = Self(0x08);
    /// Invalid role.
    pub const INVALID_ROLE: Self = Self(0x09);
    /// Unauthorised role or privilege level requested.
    pub const UNAUTHORIZED_ROLE: Self = Self(0x0a);
    /// Insufficient resources to create a session at the requested role.
    pub const NO_RESOURCES_AT_ROLE: Self = Self(0x0b);
    /// Unauthorised name.
    pub const UNAUTHORIZED_NAME: Self = Self(0x0d);
    /// Invalid integrity check value.
    pub const INVALID_INTEGRITY: Self = Self(0x0f);
    /// No cipher suite match with the proposed security algorithms.
    pub const NO_SUITE: Self = Self(0x11);

    /// Whether another cipher suite may be accepted where this one was not.
    pub const fn refuses_suite(self) -> bool {
        matches!(self.0, 0x04 | 0x05 | 0x06 | 0x07 | 0x10 | 0x11 | 0x12)
    }

    /// Whether a lower privilege level may be accepted where this one was not.
    pub const fn refuses_role(self) -> bool {
        matches!(self, Self::INVALID_ROLE | Self::UNAUTHORIZED_ROLE)
    }

    /// Whether the BMC is out of session slots.
    pub const fn lacks_resources(self) -> bool {
        matches!(self, Self::NO_RESOURCES | Self::NO_RESOURCES_AT_ROLE)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            0x00 => "no errors",
            0x01 => "insufficient resources to create a session",
            0x02 => "invalid session ID",
            0x03 => "invalid payload type",
            0x04 => "invalid authentication algorithm",
            0x05 => "invalid integrity algorithm",
            0x06 => "no matching authentication payload",
            0x07 => "no matching integrity payload",
            0x08 => "inactive session ID",
            0x09 => "invalid role",
            0x0a => "unauthorised role or privilege level",
            0x0b => "insufficient resources to create a session at this role",
            0x0c => "invalid name length",
            0x0d => "unauthorised name",
            0x0e => "unauthorised GUID",
            0x0f => "invalid integrity check value",
            0x10 => "invalid confidentiality algorithm",
            0x11 => "no matching cipher suite",
            0x12 => "illegal or unrecognised parameter",
            _ => "unknown status",
        };
        write!(f, "{text} ({:#04x})", self.0)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

/// RMCP+ Open Session Request (table 13-9), 32 octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSessionRequest {
    /// Message tag, returned by the response.
    pub tag: u8,
    /// Highest privilege level wanted; 0 lets the BMC decide.
    pub privilege: u8,
    /// The console's ID of the session, not 0.
    pub console_id: u32,
    /// Numbers of the proposed authentication, integrity and confidentiality algorithms.
    pub algorithms: [u8; 3],
}

impl OpenSessionRequest {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = vec![self.tag, self.privilege, 0, 0];
        payload.extend_from_slice(&self.console_id.to_le_bytes());
        encode_algorithms(&mut payload, self.algorithms);
        payload
    }

    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for a short one.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut octets = Octets::new(payload);
        let [tag, privilege, _, _] = octets.array()?;
        let console_id = octets.u32()?;
        Ok(Self { tag, privilege, console_id, algorithms: decode_algorithms(&mut octets)? })
    }
}

/// RMCP+ Open Session Response (table 13-10): 36 octets, or 8 with an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSessionResponse {
    /// Tag of the request.
    pub tag: u8,
    /// How it ended.
    pub status: Status,
    /// The console's ID of the session.
    pub console_id: u32,
    /// With success, what the BMC agreed to.
    pub accepted: Option<Accepted>,
}

/// What a BMC agreed to in an [`OpenSessionResponse`].
///
/// The maximum privilege level that the message also holds is not kept: BMCs put 0 or nonsense there, and Set Session
/// Privilege Level tells the truth later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The BMC's ID of the session, not 0.
    pub bmc_id: u32,
    /// Numbers of the algorithms it will use.
    pub algorithms: [u8; 3],
}

impl OpenSessionResponse {
    /// The payload.
    pub fn encode(&self) -> Vec<u8> {
        let mut payload = vec![self.tag, self.status.0, 0, 0];
        payload.extend_from_slice(&self.console_id.to_le_bytes());
        if let Some(accepted) = self.accepted {
            payload.extend_from_slice(&accepted.bmc_id.to_le_bytes());
            encode_algorithms(&mut payload, accepted.algorithms);
        }
        payload
    }

    /// Reads the payload.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for a short one, or a session ID of 0 in a success.
    pub fn decode(payload: &[u8]) -> Result<Self, Malformed> {
        let mut octets = Octets::new(payload);
        let [tag, status] = octets.array()?;
        if status != 0 {
            // Errors are cut short by some BMCs; the tag identifies them well enough.
            let console_id = octets.array::<2>().and_then(|_| octets.u32()).unwrap_or(0);
            return Ok(Self { tag, status: Status(status), console_id, accepted: None });
        }
        let [_privilege, _reserved] = octets.array()?;
        let (console_id, bmc_id) = (octets.u32()?, octets.u32()?);
        if bmc_id == 0 {
            return Err(Malformed::Field { field: "managed system session ID", value: 0 });
        }
        let algorithms = decode_algorithms(&mut octets)?;
        Ok(Self { tag, status: Status::OK, console_id, accepted: Some(Accepted { bmc_id, algorithms }) })
    }

    /// The suite that a BMC agreed to, when it is one that is spoken here.
    pub fn suite(&self) -> Option<CipherSuite> {
        self.accepted.and_then(|accepted| CipherSuite::from_algorithms(accepted.algorithms))
    }
}

fn encode_algorithms(payload: &mut Vec<u8>, algorithms: [u8; 3]) {
    for (kind, algorithm) in (0u8..).zip(algorithms) {
        payload.extend_from_slice(&[kind, 0, 0, 8, algorithm, 0, 0, 0]);
    }
}

fn decode_algorithms(octets: &mut Octets<'_>) -> Result<[u8; 3], Malformed> {
    let mut algorithms = [0; 3];
    for (want, slot) in (0u8..).zip(&mut algorithms) {
        let [kind, _, _, _len, algorithm, _, _, _] = octets.array()?;
        if kind != want {
            return Err(Malformed::Field { field: "algorithm payload type", value: kind });
        }
        *slot = algorithm & 0x3f;
    }
    Ok(algorithms)
}
