//! What can be wrong with a peer's frames, and whether it costs a stream or the tunnel.

/// A frame that ends the whole tunnel. Display is the text that the peer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Settings on a stream instead of [`super::TUNNEL_WIDE`].
    #[error("protocol error: settings frame had bad stream ID ({0})")]
    SettingsOnStream(i64),
    /// Something else came before the settings.
    #[error("protocol error: first frame was not settings")]
    NotSettings,
    /// The peer lists no revision that we speak.
    #[error("protocol error: no supported protocol revision in common")]
    NoCommonRevision,
    /// A frame for a stream that was never opened.
    #[error("received frame for stream ID {0}: stream never created")]
    NeverCreated(i64),
    /// A live stream was opened again.
    #[error("cannot create stream ID {0}: already exists")]
    AlreadyExists(i64),
    /// A stream was opened with an ID that is not above all earlier ones.
    #[error("cannot create stream ID {0}: that ID has already been used")]
    AlreadyUsed(i64),
}

/// A frame that ends one stream. Display names the fault as seen by either role.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// More octets than the message's envelope announced.
    #[error("received more data than indicated by message envelope")]
    ExcessData,
    /// An envelope while a message was incomplete: octets received, octets announced.
    #[error("received message envelope before previous message finished ({have}/{want})")]
    EnvelopeTooEarly {
        /// Octets received.
        have: usize,
        /// Octets announced.
        want: usize,
    },
    /// A further piece without an envelope.
    #[error("never received envelope for message")]
    NoEnvelope,
    /// A second message on a unary call.
    #[error("already received message for unary method")]
    SecondMessage,
    /// An announced size above our limit.
    #[error("message of {size} octets is larger than {max}")]
    TooLarge {
        /// Octets announced.
        size: usize,
        /// Octets allowed.
        max: usize,
    },
    /// More octets than the window allowed.
    #[error("flow control window exceeded")]
    WindowExceeded,
    /// No frame, or one of a kind that we do not know.
    #[error("protocol error: unrecognized frame type")]
    UnknownFrame,
    /// Settings on a live stream.
    #[error("protocol error: unexpected settings frame")]
    UnexpectedSettings,
    /// The stream ended well without a message, or in the middle of one.
    #[error("no response message")]
    NoMessage,
}

impl StreamFault {
    /// gRPC code of the failed call, as the caller reports it (contract 1.6, 1.7).
    pub const fn code_for_caller(self) -> tonic::Code {
        match self {
            Self::WindowExceeded | Self::TooLarge { .. } => tonic::Code::ResourceExhausted,
            Self::ExcessData
            | Self::EnvelopeTooEarly { .. }
            | Self::NoEnvelope
            | Self::SecondMessage
            | Self::UnknownFrame
            | Self::UnexpectedSettings
            | Self::NoMessage => tonic::Code::Internal,
        }
    }

    /// gRPC code that the responder closes the stream with (contract 1.6, 1.7, 1.9).
    pub const fn code_for_responder(self) -> tonic::Code {
        match self {
            Self::WindowExceeded | Self::TooLarge { .. } => tonic::Code::ResourceExhausted,
            Self::ExcessData | Self::EnvelopeTooEarly { .. } | Self::NoEnvelope | Self::SecondMessage => {
                tonic::Code::InvalidArgument
            }
            Self::UnknownFrame | Self::UnexpectedSettings | Self::NoMessage => tonic::Code::Unknown,
        }
    }
}
