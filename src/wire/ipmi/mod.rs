//! IPMI 2.0 over LAN: RMCP, RMCP+ sessions, RAKP and the commands that this project speaks, for both ends of the wire.
//!
//! From the datagram inwards: [`packet`] frames it, [`session`] takes its protection off, [`message`] checks the IPMI
//! message inside, [`command`] reads its data. [`open_session`] and [`rakp`] are the six messages that start a session
//! and [`suite`] is their arithmetic.
//!
//! Source: Intelligent Platform Management Interface Specification, second generation, v2.0 revision 1.1.

pub mod command;
pub mod message;
pub mod open_session;
pub mod packet;
pub mod rakp;
pub mod session;
pub mod suite;

mod octets;
#[cfg(test)]
mod tests;

/// UDP port of a BMC, the RMCP primary port (table 13-1).
pub const PORT: u16 = 623;

/// The largest datagram worth receiving: no command here comes near it, and an Ethernet frame holds it.
pub const MAX_DATAGRAM: usize = 1500;

/// Why octets are not the IPMI that they were taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The input ends before the field does.
    #[error("ends {missing} octets too early")]
    Truncated {
        /// How many octets the field lacks.
        missing: usize,
    },
    /// The RMCP header is not version 6, class IPMI, without an RMCP acknowledgement.
    #[error("is not an IPMI message over RMCP")]
    NotIpmi,
    /// An authentication type (table 13-8) that is neither `none` without a session nor RMCP+.
    #[error("authentication type {0:#04x} is not RMCP+")]
    AuthenticationType(u8),
    /// A length field that disagrees with what is there.
    #[error("a length field says {said}, there are {there} octets")]
    Length {
        /// What the field says.
        said: usize,
        /// What follows it.
        there: usize,
    },
    /// A sum over a message is not zero.
    #[error("the checksum is wrong")]
    Checksum,
    /// A session's packet is not both signed and encrypted.
    #[error("a packet of the session is not signed and encrypted")]
    Unprotected,
    /// The code over a packet is not the one its keys give.
    #[error("the integrity code is wrong")]
    Integrity,
    /// The decrypted payload's padding is not 1, 2, 3, …
    #[error("the confidentiality padding is wrong")]
    Padding,
    /// A field holds a value that the specification does not give.
    #[error("{field} is {value:#04x}")]
    Field {
        /// The field's name in the specification.
        field: &'static str,
        /// What it holds.
        value: u8,
    },
}
