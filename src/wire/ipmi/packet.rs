//! The frame of a datagram: RMCP header and session header, before any protection is taken off.
//!
//! Source: IPMI 2.0 table 13-8 (IPMI session headers), 13.1.3 (RMCP).

use super::Malformed;
use super::octets::Octets;

/// RMCP version 1.0, reserved, sequence 255 (no RMCP acknowledgement wanted), class IPMI.
const RMCP: [u8; 4] = [0x06, 0x00, 0xff, 0x07];
/// `Authentication type` of IPMI 1.5 framing without authentication.
const AUTHENTICATION_NONE: u8 = 0x00;
/// `Authentication type` that announces the RMCP+ header.
pub(super) const AUTHENTICATION_RMCP_PLUS: u8 = 0x06;

const ENCRYPTED: u8 = 0x80;
const AUTHENTICATED: u8 = 0x40;

/// What an RMCP+ payload is (table 13-16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadType {
    /// An IPMI message.
    Ipmi,
    /// RMCP+ Open Session Request.
    OpenSessionRequest,
    /// RMCP+ Open Session Response.
    OpenSessionResponse,
    /// RAKP Message 1, console to BMC.
    Rakp1,
    /// RAKP Message 2, BMC to console.
    Rakp2,
    /// RAKP Message 3, console to BMC.
    Rakp3,
    /// RAKP Message 4, BMC to console.
    Rakp4,
}

impl PayloadType {
    /// The six bits on the wire.
    pub const fn to_bits(self) -> u8 {
        match self {
            Self::Ipmi => 0x00,
            Self::OpenSessionRequest => 0x10,
            Self::OpenSessionResponse => 0x11,
            Self::Rakp1 => 0x12,
            Self::Rakp2 => 0x13,
            Self::Rakp3 => 0x14,
            Self::Rakp4 => 0x15,
        }
    }

    fn from_bits(bits: u8) -> Result<Self, Malformed> {
        Ok(match bits {
            0x00 => Self::Ipmi,
            0x10 => Self::OpenSessionRequest,
            0x11 => Self::OpenSessionResponse,
            0x12 => Self::Rakp1,
            0x13 => Self::Rakp2,
            0x14 => Self::Rakp3,
            0x15 => Self::Rakp4,
            value => return Err(Malformed::Field { field: "payload type", value }),
        })
    }
}

/// A framed datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// IPMI 1.5 framing outside any session: how a console asks for the channel's authentication capabilities.
    Sessionless(&'a [u8]),
    /// RMCP+ framing.
    Plus(Plus<'a>),
}

/// An RMCP+ datagram whose protection was not yet checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plus<'a> {
    /// What the payload is.
    pub payload_type: PayloadType,
    /// The payload claims to be encrypted.
    pub encrypted: bool,
    /// The packet claims to carry an integrity code.
    pub authenticated: bool,
    /// The receiver's ID of the session; 0 outside one.
    pub session_id: u32,
    /// The sender's sequence number; 0 outside a session.
    pub sequence: u32,
    /// The payload as it travelled.
    pub payload: &'a [u8],
    /// From the authentication type to the end of the datagram: what an integrity code covers, and the code.
    pub(super) signed: &'a [u8],
    /// What follows the payload: integrity pad, pad length, next header, code.
    pub(super) trailer: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads the frame of one datagram of any length.
    ///
    /// # Errors
    ///
    /// [`Malformed`] for what is not IPMI over RMCP, for IPMI 1.5 sessions, for OEM payloads and for lengths that lie.
    pub fn decode(datagram: &'a [u8]) -> Result<Self, Malformed> {
        let mut octets = Octets::new(datagram);
        let [version, _, sequence, class] = octets.array()?;
        // The reserved octet is ignored; a sequence other than 255 asks for an RMCP acknowledgement, which IPMI never does.
        if (version, sequence, class) != (RMCP[0], RMCP[2], RMCP[3]) {
            return Err(Malformed::NotIpmi);
        }
        let signed = octets.rest();
        let mut octets = Octets::new(signed);
        match octets.u8()? {
            AUTHENTICATION_NONE => {
                let (_sequence, _session_id) = (octets.u32()?, octets.u32()?);
                let len = usize::from(octets.u8()?);
                // Some senders append a legacy pad octet, so more than `len` may follow.
                octets.take(len).map(Self::Sessionless)
            }
            AUTHENTICATION_RMCP_PLUS => {
                let flags = octets.u8()?;
                let payload_type = PayloadType::from_bits(flags & 0x3f)?;
                let (session_id, sequence) = (octets.u32()?, octets.u32()?);
                let said = usize::from(octets.u16()?);
                let body = octets.rest();
                let (payload, trailer) =
                    body.split_at_checked(said).ok_or(Malformed::Length { said, there: body.len() })?;
                Ok(Self::Plus(Plus {
                    payload_type,
                    encrypted: flags & ENCRYPTED != 0,
                    authenticated: flags & AUTHENTICATED != 0,
                    session_id,
                    sequence,
                    payload,
                    signed,
                    trailer,
                }))
            }
            other => Err(Malformed::AuthenticationType(other)),
        }
    }
}

/// A datagram in IPMI 1.5 framing outside any session around `message`, which is at most 255 octets.
///
/// # Panics
///
/// If `message` is longer: no message of this module is.
pub fn encode_sessionless(message: &[u8]) -> Vec<u8> {
    let len = u8::try_from(message.len()).expect("a sessionless message is short");
    let mut datagram = Vec::with_capacity(14 + message.len());
    datagram.extend_from_slice(&RMCP);
    datagram.extend_from_slice(&[AUTHENTICATION_NONE, 0, 0, 0, 0, 0, 0, 0, 0, len]);
    datagram.extend_from_slice(message);
    datagram
}

/// An RMCP+ datagram outside any session, neither signed nor encrypted: how sessions are opened.
pub fn encode_clear(payload_type: PayloadType, payload: &[u8]) -> Vec<u8> {
    let mut datagram = header(payload_type, false, 0, 0, payload.len());
    datagram.extend_from_slice(payload);
    datagram
}

/// RMCP header and RMCP+ session header; with `protected` the flags say signed and encrypted.
pub(super) fn header(
    payload_type: PayloadType,
    protected: bool,
    session_id: u32,
    sequence: u32,
    payload_len: usize,
) -> Vec<u8> {
    let len = u16::try_from(payload_len).expect("payloads of this module fit a datagram");
    let flags = if protected { ENCRYPTED | AUTHENTICATED } else { 0 };
    let mut datagram = Vec::with_capacity(64 + payload_len);
    datagram.extend_from_slice(&RMCP);
    datagram.extend_from_slice(&[AUTHENTICATION_RMCP_PLUS, payload_type.to_bits() | flags]);
    datagram.extend_from_slice(&session_id.to_le_bytes());
    datagram.extend_from_slice(&sequence.to_le_bytes());
    datagram.extend_from_slice(&len.to_le_bytes());
    datagram
}

/// How many octets of a datagram no integrity code covers: the RMCP header.
pub(super) const UNSIGNED: usize = RMCP.len();
