//! How calls fail, and what that is worth.

use std::time::Duration;

use tonic::Code;

use crate::machine::MachineId;
use crate::wire::tunnel::{CallRefusal, StreamFault};

/// When a failed call is worth another try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// After a pause: the agent or the machine may be slow or busy.
    Later,
    /// Once the machine has a tunnel again (an `Opened` event).
    OnceOpen,
    /// Not without a change: the agent does not understand us, or we it.
    Never,
}

/// Why a call to an agent brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The machine has no tunnel.
    #[error("{machine}: {method}: no agent is connected")]
    NoTunnel {
        /// Whose agent was asked.
        machine: MachineId,
        /// The call's name.
        method: &'static str,
    },
    /// The tunnel ended before the answer. The agent may have done what was asked.
    #[error("{machine}: {method}: the agent's tunnel closed")]
    Closed {
        /// Whose agent was asked.
        machine: MachineId,
        /// The call's name.
        method: &'static str,
    },
    /// No answer in time; the call was cancelled. The agent may have done what was asked.
    #[error("{machine}: {method}: no answer within {after:?}")]
    Timeout {
        /// Whose agent was asked.
        machine: MachineId,
        /// The call's name.
        method: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// The agent answered with an error.
    #[error("{machine}: {method}: {code:?}: {message}")]
    Refused {
        /// Whose agent was asked.
        machine: MachineId,
        /// The call's name.
        method: &'static str,
        /// gRPC code.
        code: Code,
        /// The agent's words.
        message: String,
    },
    /// The agent broke the tunnel's rules within this call.
    #[error("{machine}: {method}: the agent misbehaved")]
    Misbehaved {
        /// Whose agent was asked.
        machine: MachineId,
        /// The call's name.
        method: &'static str,
        /// Which rule.
        #[source]
        fault: StreamFault,
    },
    /// The call could not start.
    #[error("{machine}: {method}: the tunnel takes no call")]
    NotStarted {
        /// Whose agent was asked.
        machine: MachineId,
        /// The call's name.
        method: &'static str,
        /// Why not.
        #[source]
        refusal: CallRefusal,
    },
    /// The answer is no message of its kind.
    #[error("{machine}: {method}: the answer does not decode")]
    Undecodable {
        /// Whose agent was asked.
        machine: MachineId,
        /// The call's name.
        method: &'static str,
        /// What prost says.
        #[source]
        source: prost::DecodeError,
    },
    /// The answer decodes, but a field makes no sense.
    #[error("{machine}: {method}: the answer's {field} makes no sense")]
    Malformed {
        /// Whose agent was asked.
        machine: MachineId,
        /// The call's name.
        method: &'static str,
        /// The field.
        field: &'static str,
    },
}

impl CallError {
    /// When another try is worth it.
    pub const fn retry(&self) -> Retry {
        match self {
            Self::NoTunnel { .. } | Self::Closed { .. } => Retry::OnceOpen,
            Self::Timeout { .. } | Self::NotStarted { .. } | Self::Misbehaved { .. } => Retry::Later,
            Self::Refused { code: Code::Unimplemented | Code::InvalidArgument, .. } => Retry::Never,
            // The Go agent reports nearly all that can go wrong with hardware as `Unknown` or `Internal`.
            Self::Refused { .. } => Retry::Later,
            Self::Undecodable { .. } | Self::Malformed { .. } => Retry::Never,
        }
    }
}
