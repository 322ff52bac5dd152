//! What can go wrong between this box and Omni, told apart although gRPC codes are overloaded.
//!
//! Omni attaches no error details, so text decides where one code means several things.
//!
//! Source: contract omni-wire.md sections 2.5, 3.6 and 4.2.

use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};

use crate::resource::{Kind, MalformedResource};
use crate::time::UnixTime;

/// Server messages are kept up to this many characters.
const MAX_MESSAGE: usize = 512;
/// A difference between two clocks that is worth a word; Omni refuses five minutes.
const SKEW_WORTH_TELLING: Duration = Duration::from_secs(60);

/// What was asked of Omni: the verb and its object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The RPC's name, such as `Update`.
    pub method: &'static str,
    /// Type and, where the call is about one resource, ID; for management calls what they are about.
    pub object: String,
}

impl Call {
    /// A State call about one resource.
    pub(crate) fn resource(method: &'static str, kind: &Kind, id: &str) -> Box<Self> {
        Box::new(Self { method, object: format!("{}/{id}", kind.r#type) })
    }

    /// A State call about a whole kind.
    pub(crate) fn kind(method: &'static str, kind: &Kind) -> Box<Self> {
        Box::new(Self { method, object: kind.r#type.clone() })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.object)
    }
}

/// Why a call to Omni failed. Each says what to do about it; [`Error::retry`] says whether trying again may help.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such resource, or another provider's.
    #[error("{0}: not found")]
    NotFound(Box<Call>),
    /// It exists already.
    #[error("{0}: exists already")]
    AlreadyExists(Box<Call>),
    /// Someone else wrote in between: read again, decide again.
    #[error("{0}: changed meanwhile")]
    Conflict(Box<Call>),
    /// Omni cannot resume a watch where it broke: read the whole kind again.
    #[error("{0}: cannot be resumed, reading everything again")]
    BookmarkLost(Box<Call>),
    /// Written under an owner that is not the stored one.
    #[error("{call}: belongs to another owner ({message}); is another provider program running under this ID?")]
    OwnerConflict {
        /// What was asked.
        call: Box<Call>,
        /// Omni's words, which name the owner.
        message: String,
    },
    /// The stored resource is in another phase, usually tearing down.
    #[error("{0}: is being torn down")]
    PhaseConflict(Box<Call>),
    /// Someone has not let go yet.
    #[error("{0}: others have not let go yet (finalizers pending)")]
    PendingFinalizers(Box<Call>),
    /// Nobody has accepted Omni's licence terms yet; every call fails until then.
    #[error("Omni's EULA has not been accepted; sign in to Omni as an administrator and accept it")]
    Eula,
    /// Omni refuses the content.
    #[error("{call}: refused by Omni's validation: {message}")]
    Validation {
        /// What was asked.
        call: Box<Call>,
        /// Omni's words.
        message: String,
    },
    /// A type whose finalizers alone are ours to change.
    #[error("{0}: read-only for providers, only finalizers may change")]
    ReadOnly(Box<Call>),
    /// Omni knows no provider with this key's ID.
    #[error("Omni knows no such infra provider ({message}); create it with `omnictl infraprovider create <id>`")]
    ProviderNotRegistered {
        /// Omni's words, which name the provider.
        message: String,
    },
    /// The key's role does not allow the call.
    #[error(
        "{call}: not allowed for this key ({message}); use an infra provider's key, and see whether the account is suspended"
    )]
    WrongRole {
        /// What was asked.
        call: Box<Call>,
        /// Omni's words.
        message: String,
    },
    /// Omni accepts no signature of ours; it never says why.
    #[error("Omni refused the key: {0}")]
    InvalidSignature(Refusal),
    /// Signing failed on our side.
    #[error("{call}: the request could not be signed; is the service account key damaged?")]
    NotSigned {
        /// What was asked.
        call: Box<Call>,
        /// What the signer said.
        #[source]
        source: Box<Status>,
    },
    /// Nobody answers there.
    #[error("{call}: Omni is not reachable; check the endpoint, name resolution, the uplink and its firewall")]
    Unavailable {
        /// What was asked.
        call: Box<Call>,
        /// The transport's cause.
        #[source]
        source: Box<Status>,
    },
    /// No answer in time.
    #[error("{0}: no answer in time")]
    Deadline(Box<Call>),
    /// Omni limits the rate.
    #[error("{call}: Omni asks for patience: {message}")]
    Throttled {
        /// What was asked.
        call: Box<Call>,
        /// Omni's words.
        message: String,
    },
    /// This Omni has no such call.
    #[error("{0}: this Omni is too old for the call")]
    Unimplemented(Box<Call>),
    /// Omni's answer breaks the protocol.
    #[error("{call}: the answer holds no valid resource")]
    Malformed {
        /// What was asked.
        call: Box<Call>,
        /// What is wrong with it.
        #[source]
        source: MalformedResource,
    },
    /// Omni's answer is well-formed but not what the call promises.
    #[error("{call}: the answer {what}")]
    Misbehaved {
        /// What was asked.
        call: Box<Call>,
        /// How the answer deviates.
        what: &'static str,
    },
    /// More than Omni takes in one message; it was not sent.
    #[error("{call}: {octets} octets are too large for Omni, which takes {limit}")]
    TooLarge {
        /// What was asked.
        call: Box<Call>,
        /// How long the message is.
        octets: usize,
        /// How long it may be.
        limit: usize,
    },
    /// The spec octets are no message of the type.
    #[error("{call}: the spec cannot be decoded")]
    Spec {
        /// What was asked.
        call: Box<Call>,
        /// Where the octets deviate.
        #[source]
        source: prost::DecodeError,
    },
    /// Any other refusal.
    #[error("{call}: {code:?}: {message}")]
    Refused {
        /// What was asked.
        call: Box<Call>,
        /// The gRPC code.
        code: Code,
        /// Omni's words.
        message: String,
    },
}

/// What is known on this side about a signature that Omni refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// Whether there is a key at all.
    pub unsigned: bool,
    /// When the key expired, if it has.
    pub expired: Option<UnixTime>,
    /// How far this clock is from Omni's.
    pub skew: Option<Skew>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.unsigned {
            return f.write_str("there is none; set OMNI_SERVICE_ACCOUNT_KEY");
        }
        // A wrong clock comes first: by it the key may look expired too.
        match (self.skew.filter(|skew| skew.0.abs() >= SKEW_WORTH_TELLING.as_secs() as i64), self.expired) {
            (Some(skew), _) => write!(f, "this clock is {skew}; set the time (NTP)"),
            (None, Some(at)) => write!(f, "it expired at {at}; renew it with `omnictl infraprovider renewkey <id>`"),
            (None, None) => f.write_str(
                "it may be revoked, replaced or another Omni's, or the clock may be more than 5 minutes off; \
                 make a new one with `omnictl infraprovider renewkey <id>`",
            ),
        }
    }
}

/// Seconds by which this clock is ahead of Omni's; negative when behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Skew(pub i64);

impl fmt::Display for Skew {
    /// `7 minutes ahead of Omni's`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let minutes = (self.0.unsigned_abs() + 30) / 60;
        let (amount, unit) = match minutes {
            0..120 => (minutes, "minute"),
            120..2_880 => (minutes / 60, "hour"),
            _ => (minutes / 1_440, "day"),
        };
        let plural = if amount == 1 { "" } else { "s" };
        write!(f, "{amount} {unit}{plural} {} Omni's", if self.0 < 0 { "behind" } else { "ahead of" })
    }
}

/// Whether trying again may help.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Retry {
    /// At once, a bounded number of times, after reading and deciding anew.
    Reread,
    /// With backoff: the peer or the network will recover, or others will let go.
    Later,
    /// Not before a human has acted; ask again slowly, since nobody will tell us.
    Operator,
    /// The same call will fail in the same way.
    Never,
}

impl Error {
    /// What a failed call means. `refusal` is what this side knows about its key and clock.
    ///
    /// Source: contract omni-wire.md section 3.6.
    pub(crate) fn from_status(call: Box<Call>, status: Status, refusal: Refusal) -> Self {
        let text = status.message();
        let message = || printable(text);
        if status.source().is_some() && status.code() != Code::DeadlineExceeded {
            // Only this side's transport puts a source into a status.
            return Self::Unavailable { call, source: Box::new(status) };
        }
        if text.contains("is not registered in the system") {
            return Self::ProviderNotRegistered { message: message() };
        }
        match status.code() {
            Code::NotFound => Self::NotFound(call),
            Code::AlreadyExists => Self::AlreadyExists(call),
            Code::FailedPrecondition if text.contains("EULA") => Self::Eula,
            Code::FailedPrecondition if text.contains("has pending finalizers") => Self::PendingFinalizers(call),
            Code::FailedPrecondition if call.method == "Watch" => Self::BookmarkLost(call),
            Code::FailedPrecondition if text.contains("failed to validate: ") && !text.contains("update conflict") => {
                Self::Validation { call, message: message() }
            }
            Code::FailedPrecondition
                if text.contains("update conflict") || matches!(call.method, "Update" | "Destroy" | "Teardown") =>
            {
                Self::Conflict(call)
            }
            Code::InvalidArgument if text.contains("is not in phase") => Self::PhaseConflict(call),
            Code::InvalidArgument => Self::Validation { call, message: message() },
            Code::PermissionDenied if text.contains("is owned by \"") => {
                Self::OwnerConflict { call, message: message() }
            }
            Code::PermissionDenied if is_read_only(text) => Self::ReadOnly(call),
            Code::PermissionDenied => Self::WrongRole { call, message: message() },
            Code::Unauthenticated => Self::InvalidSignature(refusal),
            Code::Unavailable => Self::Unavailable { call, source: Box::new(status) },
            Code::DeadlineExceeded => Self::Deadline(call),
            Code::ResourceExhausted => Self::Throttled { call, message: message() },
            Code::Unimplemented => Self::Unimplemented(call),
            Code::Internal if text.starts_with(super::signer::NOT_SIGNED) => {
                Self::NotSigned { call, source: Box::new(status) }
            }
            _ if text.contains("failed to validate: ") => Self::Validation { call, message: message() },
            code => Self::Refused { call, code, message: message() },
        }
    }

    /// Whether trying again may help.
    pub fn retry(&self) -> Retry {
        match self {
            Self::AlreadyExists(_) | Self::Conflict(_) | Self::BookmarkLost(_) => Retry::Reread,
            Self::PendingFinalizers(_)
            | Self::Unavailable { .. }
            | Self::Deadline(_)
            | Self::Throttled { .. }
            | Self::Misbehaved { .. }
            | Self::Refused { .. } => Retry::Later,
            Self::OwnerConflict { .. }
            | Self::Eula
            | Self::ProviderNotRegistered { .. }
            | Self::WrongRole { .. }
            | Self::InvalidSignature(_)
            | Self::NotSigned { .. } => Retry::Operator,
            Self::NotFound(_)
            | Self::PhaseConflict(_)
            | Self::Validation { .. }
            | Self::ReadOnly(_)
            | Self::Unimplemented(_)
            | Self::Malformed { .. }
            | Self::TooLarge { .. }
            | Self::Spec { .. } => Retry::Never,
        }
    }

    /// Whether the resource is simply not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_))
    }

    /// The error and its causes in one line, for a status page.
    pub fn explain(&self) -> String {
        explain(self)
    }
}

/// Whether Omni says that this is not a provider's to write, which is not the same as not its to see.
fn is_read_only(text: &str) -> bool {
    let verb = text.split_once("infra providers are not allowed to ").map(|(_, verb)| verb);
    verb.is_some_and(|verb| ["create", "update", "destroy"].iter().any(|known| verb.starts_with(known)))
}

/// An error and its causes in one line, each cause's own words once. What a peer said is made [`printable`].
pub(crate) fn explain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut said = text.clone();
    let mut cause = error.source();
    // A chain is short; the bound guards against one that bites its tail.
    for _ in 0..8 {
        let Some(error) = cause else { break };
        let status =
            error.downcast_ref::<Status>().or_else(|| error.downcast_ref::<Box<Status>>().map(|status| &**status));
        let words = match status {
            // A status prints its metadata and its cause, which comes by itself; the reader wants its words.
            Some(status) => printable(status.message()),
            None => printable(&error.to_string()),
        };
        if !words.is_empty() && words != said {
            text.push_str(": ");
            text.push_str(&words);
        }
        said = words;
        cause = error.source();
    }
    text
}

/// `text` without control characters and no longer than a line or two.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(method: &'static str, code: Code, text: &str) -> Error {
        let call = Call::resource(method, &Kind::omni("InfraMachines"), "m1");
        Error::from_status(call, Status::new(code, text), Refusal::default())
    }

    #[test]
    fn overloaded_codes_are_told_apart_by_their_text() {
        use Code::{
            AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unauthenticated, Unknown,
        };
        let is = |error: Error, word: &str, retry| {
            assert!(format!("{error:?}").starts_with(word), "{error:?}");
            assert_eq!(error.retry(), retry, "{error:?}");
        };
        let conflict = "resource x update conflict: expected version \"2\", actual version \"3\"";
        let unregistered = "infra provider with name \"x\" is not registered in the system";
        is(error("Get", NotFound, "gone"), "NotFound", Retry::Never);
        is(error("Create", AlreadyExists, ""), "AlreadyExists", Retry::Reread);
        is(error("Update", FailedPrecondition, conflict), "Conflict", Retry::Reread);
        is(error("Watch", FailedPrecondition, "invalid bookmark"), "BookmarkLost", Retry::Reread);
        is(error("Update", FailedPrecondition, "EULA has not been accepted; x"), "Eula", Retry::Operator);
        is(error("Create", FailedPrecondition, "EULA has not been accepted; x"), "Eula", Retry::Operator);
        is(error("Destroy", FailedPrecondition, "x has pending finalizers [y]"), "PendingFinalizers", Retry::Later);
        is(error("Update", InvalidArgument, "resource x is not in phase running"), "PhaseConflict", Retry::Never);
        is(error("Update", InvalidArgument, "failed to validate: x"), "Validation", Retry::Never);
        is(error("Update", FailedPrecondition, "failed to validate: x"), "Validation", Retry::Never);
        is(error("Update", Unknown, "failed to validate: x"), "Validation", Retry::Never);
        is(error("Update", PermissionDenied, "resource x is owned by \"y\""), "OwnerConflict", Retry::Operator);
        is(error("Update", PermissionDenied, "infra providers are not allowed to update x"), "ReadOnly", Retry::Never);
        is(error("Get", PermissionDenied, "insufficient role"), "WrongRole", Retry::Operator);
        is(error("Get", PermissionDenied, "infra providers are not allowed to see x"), "WrongRole", Retry::Operator);
        is(error("Get", NotFound, unregistered), "ProviderNotRegistered", Retry::Operator);
        is(error("Get", PermissionDenied, unregistered), "ProviderNotRegistered", Retry::Operator);
        is(error("Get", Unauthenticated, "invalid signature"), "InvalidSignature", Retry::Operator);
        is(error("Get", Code::Unavailable, ""), "Unavailable", Retry::Later);
        is(error("Get", Code::Unimplemented, ""), "Unimplemented", Retry::Never);
        is(error("Get", Unknown, "malformed resource"), "Refused", Retry::Later);
    }

    #[test]
    fn a_refused_key_says_the_likeliest_cause_first() {
        let say = |unsigned, expired, skew| Refusal { unsigned, expired, skew }.to_string();
        let expired = Some(UnixTime::from_secs(1_700_000_000));
        assert!(say(true, None, None).contains("set OMNI_SERVICE_ACCOUNT_KEY"));
        assert!(say(false, expired, Some(Skew(-420))).contains("this clock is 7 minutes behind Omni's"));
        assert!(say(false, expired, Some(Skew(2))).contains("expired at 2023-11-14T22:13:20Z"));
        assert!(say(false, None, Some(Skew(7_200))).contains("2 hours ahead of Omni's"));
        assert!(say(false, None, Some(Skew(-31_536_000))).contains("365 days behind Omni's"));
        assert!(say(false, None, None).contains("renewkey"));
    }

    #[test]
    fn a_cause_is_told_in_its_own_words_and_once() {
        let mut status = Status::unavailable("tcp connect error");
        status.set_source(std::sync::Arc::new(std::io::Error::other("tcp connect error")));
        let call = Call::resource("Get", &Kind::omni("InfraMachines"), "m1");
        let text = Error::from_status(call, status, Refusal::default()).explain();
        assert!(text.ends_with("firewall: tcp connect error"), "{text}");
    }

    #[test]
    fn a_servers_text_is_bounded_and_printable() {
        let error = error("Get", Code::Unknown, &format!("a\nb\x1b[31m{}", "x".repeat(10_000)));
        let text = error.to_string();
        assert!(text.len() < 700 && !text.contains(char::is_control), "{text}");
    }
}
