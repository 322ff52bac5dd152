//! What may go wrong with a BMC, and whether trying again helps.

use std::io;
use std::sync::Arc;

use crate::wire::ipmi::Malformed;
use crate::wire::ipmi::message::CompletionCode;
use crate::wire::ipmi::open_session::Status;

/// When to try an operation again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// Within seconds: an answer was lost or the BMC is busy.
    Soon,
    /// Within minutes: the BMC or the network has to heal first.
    Later,
    /// Not before someone changes the credentials or the BMC's settings: more tries could lock the account.
    Never,
}

/// Which part of the credentials IPMI cannot carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TooLong {
    /// A user name beyond 16 octets.
    #[error("the user name is longer than 16 octets")]
    Username,
    /// A password beyond 20 octets.
    #[error("the password is longer than 20 octets")]
    Password,
}

/// Why an operation on a BMC failed. `bmc` is `host:port` throughout, `operation` the step's name.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host name has no address.
    #[error("cannot resolve the address of BMC {bmc}")]
    Unresolved {
        /// Which BMC.
        bmc: Arc<str>,
        /// What the resolver said; `None` when it found no address.
        #[source]
        source: Option<io::Error>,
    },
    /// No local socket to speak from.
    #[error("cannot open a UDP socket towards BMC {bmc}")]
    Socket {
        /// Which BMC.
        bmc: Arc<str>,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The network or the host says that nobody listens there.
    #[error("BMC {bmc} is unreachable")]
    Unreachable {
        /// Which BMC.
        bmc: Arc<str>,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Nobody answered.
    #[error("BMC {bmc} did not answer {operation} within {tries} tries")]
    Timeout {
        /// Which BMC.
        bmc: Arc<str>,
        /// What it was asked.
        operation: &'static str,
        /// How often.
        tries: u32,
    },
    /// The BMC ended a command with an error.
    #[error("BMC {bmc} refused {operation}: {code}")]
    Refused {
        /// Which BMC.
        bmc: Arc<str>,
        /// What it was asked.
        operation: &'static str,
        /// Its answer.
        code: CompletionCode,
    },
    /// The BMC would not open a session, for no fault of the credentials.
    #[error("BMC {bmc} refused {operation}: {status}")]
    SessionRefused {
        /// Which BMC.
        bmc: Arc<str>,
        /// Which step.
        operation: &'static str,
        /// Its answer.
        status: Status,
    },
    /// The BMC accepts neither cipher suite 17 nor 3.
    #[error("BMC {bmc} accepts neither cipher suite 17 nor 3 ({status}); enable one of them in its settings")]
    NoCipherSuite {
        /// Which BMC.
        bmc: Arc<str>,
        /// Its answer to the last one.
        status: Status,
    },
    /// The BMC does not know the user, or knows another password.
    #[error("BMC {bmc} does not accept user {username:?} with this password")]
    WrongCredentials {
        /// Which BMC.
        bmc: Arc<str>,
        /// The user.
        username: String,
    },
    /// The user may not do this.
    #[error("user {username:?} of BMC {bmc} needs privilege level operator or administrator on the LAN channel")]
    Unprivileged {
        /// Which BMC.
        bmc: Arc<str>,
        /// The user.
        username: String,
    },
    /// IPMI cannot carry these credentials.
    #[error("the credentials of BMC {bmc} are not for IPMI")]
    Misconfigured {
        /// Which BMC.
        bmc: Arc<str>,
        /// Which part.
        #[source]
        source: TooLong,
    },
    /// The BMC's answer is not one that the specification allows.
    #[error("BMC {bmc} answered {operation} with something else")]
    Misbehaved {
        /// Which BMC.
        bmc: Arc<str>,
        /// What it was asked.
        operation: &'static str,
        /// What is wrong with its answer.
        #[source]
        source: Malformed,
    },
    /// The BMC proved that it knows the password, then derived other keys from it.
    #[error("BMC {bmc} derives other session keys; clear its BMC key (K_g), which is not supported")]
    OtherKeys {
        /// Which BMC.
        bmc: Arc<str>,
    },
}

impl Error {
    /// When trying the same operation again may help.
    pub const fn retry(&self) -> Retry {
        match self {
            Self::Timeout { .. } => Retry::Soon,
            Self::Refused { code, .. } if code.is_transient() => Retry::Soon,
            Self::Unresolved { .. }
            | Self::Socket { .. }
            | Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::SessionRefused { .. }
            | Self::NoCipherSuite { .. }
            | Self::Misbehaved { .. } => Retry::Later,
            Self::WrongCredentials { .. }
            | Self::Unprivileged { .. }
            | Self::Misconfigured { .. }
            | Self::OtherKeys { .. } => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_bmc_is_asked_again_soon_and_a_wrong_password_never() {
        let refused = |code| Error::Refused { bmc: "b:623".into(), operation: "chassis control", code };
        assert_eq!(refused(CompletionCode::BUSY).retry(), Retry::Soon);
        assert_eq!(refused(CompletionCode::INITIALIZING).retry(), Retry::Soon);
        assert_eq!(refused(CompletionCode::INVALID_COMMAND).retry(), Retry::Later);
        let wrong = Error::WrongCredentials { bmc: "b:623".into(), username: "admin".into() };
        assert_eq!(wrong.retry(), Retry::Never);
    }

    #[test]
    fn an_error_names_the_bmc_and_the_code() {
        let error =
            Error::Refused { bmc: "10.0.0.9:623".into(), operation: "chassis control", code: CompletionCode(0xd5) };
        assert_eq!(
            error.to_string(),
            "BMC 10.0.0.9:623 refused chassis control: not supported in the present state (0xd5)"
        );
    }
}
