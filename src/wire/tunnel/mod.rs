//! The agent's reverse tunnel without its transport: gRPC calls inside one gRPC stream.
//!
//! [`Caller`] is the provider's role (the library calls it the tunnel client), [`Responder`] the agent's (tunnel
//! server). Both are told what happened (a frame came, a call starts, a call is given up) and are asked for frames
//! one at a time, so that whoever writes them decides the pace: what waits inside is at most one message and a few
//! control frames per live stream, however slow the peer reads.
//!
//! Only unary calls can be started and answered, since all five calls of the agent are unary. Every frame is
//! understood nevertheless.
//!
//! Source: contract agent-tunnel.md, section 1.

mod assembly;
mod caller;
mod fault;
mod outgoing;
#[cfg(test)]
mod pair;
mod responder;
#[cfg(test)]
mod vectors;

use std::collections::BTreeMap;

pub use caller::{CallFailure, CallRefusal, Caller, Received};
pub use fault::{StreamFault, Violation};
pub use responder::{Accepted, Request, Responder};

use crate::proto::tunnel::{Metadata, metadata};

/// Full gRPC method that the agent calls on the provider.
pub const METHOD_OPEN_REVERSE_TUNNEL: &str = "/grpctunnel.v1.TunnelService/OpenReverseTunnel";
/// Header by which each side says that it negotiates a revision (contract 1.3).
pub const HEADER_NEGOTIATE: &str = "grpctunnel-negotiate";
/// The only value of [`HEADER_NEGOTIATE`] with a meaning.
pub const NEGOTIATE_ON: &str = "on";
/// Header that names the machine behind a tunnel (contract 3.4).
pub const HEADER_MACHINE_ID: &str = "machine-id";
/// Stream ID of frames that concern the whole tunnel.
pub const TUNNEL_WIDE: i64 = -1;
/// Most message octets in a frame that we send (contract 1.6); a receiver takes more.
pub const CHUNK_MAX: usize = 16_384;
/// Window of a new stream, octets of message data, in either direction (contract 1.7).
pub const WINDOW: u32 = 65_536;
/// Longest message that is put together, octets. The contract has no limit; ours is gRPC's usual one.
pub const MESSAGE_MAX: usize = 4 << 20;
/// Most streams that live at once in one tunnel.
pub const STREAMS_MAX: usize = 256;
/// Longest status text of a peer that is kept, octets.
pub const STATUS_TEXT_MAX: usize = 1024;

/// A stream's number within its tunnel; increases, is never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub i64);

impl std::fmt::Display for StreamId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Version of the rules inside a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Revision {
    /// No windows.
    Zero = 0,
    /// Windows per stream and direction.
    One = 1,
}

/// What one side allows its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Window that we grant on each new stream, octets; at least 1.
    pub window: u32,
    /// Longest message put together, octets.
    pub message_max: usize,
    /// Most streams that live at once.
    pub streams_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { window: WINDOW, message_max: MESSAGE_MAX, streams_max: STREAMS_MAX }
    }
}

/// Header names (lower case) and their values.
///
/// A text is UTF-8 by its type, so metadata that would end a Go peer's tunnel (contract 1.8) cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Headers(pub BTreeMap<String, Vec<String>>);

impl From<Headers> for Metadata {
    fn from(headers: Headers) -> Self {
        Self { md: headers.0.into_iter().map(|(key, val)| (key, metadata::Values { val })).collect() }
    }
}

impl From<Metadata> for Headers {
    fn from(metadata: Metadata) -> Self {
        Self(metadata.md.into_iter().map(|(key, values)| (key, values.val)).collect())
    }
}

/// Cuts `text` to [`STATUS_TEXT_MAX`] octets, at a character's border.
fn clipped(mut text: String) -> String {
    if text.len() > STATUS_TEXT_MAX {
        let end = (0..=STATUS_TEXT_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.shrink_to_fit();
    }
    text
}
