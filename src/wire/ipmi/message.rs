//! The IPMI message inside a packet: addresses, network function, sequence, command, data and two checksums.
//!
//! Source: IPMI 2.0 13.8 (IPMI LAN message format), 5.2 (completion codes).

use std::fmt;

use super::Malformed;
use super::octets::Octets;

/// Slave address of a BMC.
const BMC_ADDRESS: u8 = 0x20;
/// Software ID of a remote console.
const CONSOLE_ADDRESS: u8 = 0x81;

/// Network function `Chassis`, as a request has it.
pub const NETFN_CHASSIS: u8 = 0x00;
/// Network function `App`, as a request has it.
pub const NETFN_APP: u8 = 0x06;

/// How a BMC ended a command; 0 is success (table 5-2, and 0x80 to 0xBE per command).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CompletionCode(pub u8);

impl CompletionCode {
    /// Done.
    pub const OK: Self = Self(0x00);
    /// Parameter not supported, in Set and Get System Boot Options; level not available, in Set Session Privilege Level.
    pub const NOT_SUPPORTED: Self = Self(0x80);
    /// Set already in progress, in Set System Boot Options; level above a limit, in Set Session Privilege Level.
    pub const SET_IN_PROGRESS: Self = Self(0x81);
    /// Invalid session ID, in Close Session.
    pub const INVALID_SESSION: Self = Self(0x87);
    /// Node busy.
    pub const BUSY: Self = Self(0xc0);
    /// Invalid command.
    pub const INVALID_COMMAND: Self = Self(0xc1);
    /// Timeout while processing; response unavailable.
    pub const TIMEOUT: Self = Self(0xc3);
    /// Out of space.
    pub const OUT_OF_SPACE: Self = Self(0xc4);
    /// Request data length invalid.
    pub const INVALID_LENGTH: Self = Self(0xc7);
    /// Invalid data field in request.
    pub const INVALID_DATA: Self = Self(0xcc);
    /// No response: an SDR repository is in update mode.
    pub const SDR_UPDATE: Self = Self(0xd0);
    /// No response: the device is in firmware update mode.
    pub const FIRMWARE_MODE: Self = Self(0xd1);
    /// No response: initialisation is in progress.
    pub const INITIALIZING: Self = Self(0xd2);
    /// Insufficient privilege level.
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(0xd4);
    /// Not supported in the present state.
    pub const PRESENT_STATE: Self = Self(0xd5);

    /// Whether the same command may succeed when it is sent again later.
    ///
    /// Source: contract 8.2, the codes that the reference's own tests retry.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Self::BUSY
                | Self::TIMEOUT
                | Self::OUT_OF_SPACE
                | Self::SDR_UPDATE
                | Self::FIRMWARE_MODE
                | Self::INITIALIZING
        )
    }
}

impl fmt::Display for CompletionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match *self {
            Self::OK => "completed",
            Self::BUSY => "node busy",
            Self::INVALID_COMMAND => "invalid command",
            Self::TIMEOUT => "timeout inside the BMC",
            Self::OUT_OF_SPACE => "out of space",
            Self::INVALID_LENGTH => "request data length invalid",
            Self::INVALID_DATA => "invalid data field in request",
            Self::SDR_UPDATE => "SDR repository in update mode",
            Self::FIRMWARE_MODE => "firmware update in progress",
            Self::INITIALIZING => "initialisation in progress",
            Self::INSUFFICIENT_PRIVILEGE => "insufficient privilege level",
            Self::PRESENT_STATE => "not supported in the present state",
            Self(_) => return write!(f, "completion code {:#04x}", self.0),
        };
        write!(f, "{text} ({:#04x})", self.0)
    }
}

impl fmt::Debug for CompletionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#04x}", self.0)
    }
}

/// A request to a BMC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Network function, even, below 64.
    pub netfn: u8,
    /// The requester's sequence number (`rqSeq`), below 64.
    pub sequence: u8,
    /// Command number within the network function.
    pub command: u8,
    /// The command's data.
    pub data: &'a [u8],
}

impl<'a> Request<'a> {
    /// The message from a remote console to a BMC.
    pub fn encode(&self) -> Vec<u8> {
        join([BMC_ADDRESS, self.netfn << 2], &[CONSOLE_ADDRESS, self.sequence << 2, self.command], self.data)
    }

    /// Reads a request. Its addresses are not looked at: the datagram already came to the right place.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for a wrong length or checksum, and for a response.
    pub fn decode(message: &'a [u8]) -> Result<Self, Malformed> {
        let (netfn, mut body) = split(message)?;
        if netfn & 1 != 0 {
            return Err(Malformed::Field { field: "network function", value: netfn });
        }
        let [_address, sequence, command] = body.array()?;
        Ok(Self { netfn, sequence: sequence >> 2, command, data: body.rest() })
    }
}

/// A BMC's answer to a [`Request`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    /// Network function of the request, even.
    pub netfn: u8,
    /// `rqSeq` of the request.
    pub sequence: u8,
    /// Command of the request.
    pub command: u8,
    /// How it ended.
    pub completion: CompletionCode,
    /// The command's data; usually empty unless it ended well.
    pub data: &'a [u8],
}

impl<'a> Response<'a> {
    /// The message from a BMC to a remote console.
    pub fn encode(&self) -> Vec<u8> {
        join(
            [CONSOLE_ADDRESS, (self.netfn | 1) << 2],
            &[BMC_ADDRESS, self.sequence << 2, self.command, self.completion.0],
            self.data,
        )
    }

    /// Reads a response. Its addresses are not looked at.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for a wrong length or checksum, and for a request.
    pub fn decode(message: &'a [u8]) -> Result<Self, Malformed> {
        let (netfn, mut body) = split(message)?;
        if netfn & 1 == 0 {
            return Err(Malformed::Field { field: "network function", value: netfn });
        }
        let [_address, sequence, command, completion] = body.array()?;
        Ok(Self {
            netfn: netfn & !1,
            sequence: sequence >> 2,
            command,
            completion: CompletionCode(completion),
            data: body.rest(),
        })
    }
}

/// Checks both sums; returns the network function and what lies between the sums.
fn split(message: &[u8]) -> Result<(u8, Octets<'_>), Malformed> {
    let (head, body) = message
        .split_first_chunk::<3>()
        .ok_or(Malformed::Truncated { missing: 3usize.saturating_sub(message.len()) })?;
    let (_, inner) = body.split_last().ok_or(Malformed::Truncated { missing: 1 })?;
    if sum(head) != 0 || sum(body) != 0 {
        return Err(Malformed::Checksum);
    }
    let [_address, netfn_lun, _sum] = head;
    Ok((netfn_lun >> 2, Octets::new(inner)))
}

fn join(head: [u8; 2], fields: &[u8], data: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(4 + fields.len() + data.len());
    message.extend_from_slice(&head);
    message.push(sum(&head).wrapping_neg());
    message.extend_from_slice(fields);
    message.extend_from_slice(data);
    message.push(sum(fields).wrapping_add(sum(data)).wrapping_neg());
    message
}

fn sum(octets: &[u8]) -> u8 {
    octets.iter().fold(0, |sum, octet| sum.wrapping_add(*octet))
}
