//! Who may join: what a machine shows, what Omni knows of it, and what becomes of that.
//!
//! Pure. A machine that can keep a token of its own gets one before it joins: until then it is pending. Once it has Talos on
//! its disk it has to show that token, unless its provider says that it wiped it.
//!
//! Source: contract omni-wire.md sections 7.3 and 7.4.

use semver::Version;

/// The first Talos that keeps a unique token.
const FIRST_WITH_UNIQUE_TOKENS: Version = Version::new(1, 6, 0);
/// What calls itself nothing is older than that.
const UNNAMED: &str = "1.5.0";

/// How join tokens are checked, as Omni's `--join-tokens-mode` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JoinMode {
    /// Only Talos that keeps a unique token joins.
    Strict,
    /// Older Talos joins by its join token alone.
    #[default]
    LegacyAllowed,
    /// Everybody joins by the join token alone.
    Legacy,
}

/// A node unique token: which machine it is, and which installation of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UniqueToken {
    /// Digest of the MAC addresses, in hexadecimal.
    pub fingerprint: String,
    /// Random.
    pub token: String,
}

impl UniqueToken {
    /// Reads one; none is written as nothing.
    ///
    /// # Errors
    ///
    /// [`NotJoined::UniqueToken`] when it is not JSON of this form.
    pub fn parse(json: &str) -> Result<Option<Self>, NotJoined> {
        if json.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(json).map(Some).map_err(|_| NotJoined::UniqueToken)
    }

    /// As Omni writes it to META.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).expect("two strings are JSON")
    }

    fn is_of_the_same_machine(&self, other: &Self) -> bool {
        !self.fingerprint.is_empty() && self.fingerprint == other.fingerprint
    }
}

/// What a machine shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown<'a> {
    /// Version of its Talos.
    pub talos_version: Option<&'a str>,
    /// Whether its join token is good.
    pub join_token: bool,
    /// The unique token in its META partition.
    pub unique_token: Option<UniqueToken>,
}

/// What Omni knows of the machine that has this UUID.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownOf {
    /// Its unique token.
    pub unique_token: Option<UniqueToken>,
    /// Talos is on its disk, so that no other token may take the place of that one.
    pub installed: bool,
    /// Its provider says that it wiped the installation that had that token.
    pub wiped: bool,
}

/// What becomes of a machine that may join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// It has a link. Whether it has to show its token from now on; `None` leaves that as it was.
    Link(Option<bool>),
    /// It waits for a token, or, as another machine has its UUID, for a UUID of its own.
    Pending {
        /// Another machine has its UUID.
        conflict: bool,
    },
}

/// Why a machine does not join.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotJoined {
    /// Neither of its tokens is good, or it should show one that it does not have.
    #[error("unauthorized")]
    Unauthorized,
    /// Its Talos keeps no unique token.
    #[error("Talos version {0} is not supported on this Omni instance as '--join-tokens-mode' is set to 'strict'")]
    TooOld(String),
    /// Its unique token is no token.
    #[error("invalid node unique token")]
    UniqueToken,
}

impl NotJoined {
    /// The gRPC code that goes with it.
    pub const fn code(&self) -> tonic::Code {
        match self {
            Self::Unauthorized | Self::UniqueToken => tonic::Code::PermissionDenied,
            Self::TooOld(_) => tonic::Code::FailedPrecondition,
        }
    }
}

/// Decides about one attempt to join.
///
/// # Errors
///
/// [`NotJoined::Unauthorized`], [`NotJoined::TooOld`].
pub fn decide(mode: JoinMode, shown: &Shown<'_>, known: &KnownOf) -> Result<Admitted, NotJoined> {
    let version = shown.talos_version.unwrap_or(UNNAMED);
    let keeps_tokens = keeps_unique_tokens(version);
    if !keeps_tokens && mode == JoinMode::Strict {
        return Err(NotJoined::TooOld(version.to_owned()));
    }
    if mode == JoinMode::Legacy || !keeps_tokens {
        // Where a machine has shown a token once, an old Talos without one is not that machine.
        let impostor = !keeps_tokens && known.unique_token.is_some() && mode != JoinMode::Legacy;
        return if shown.join_token && !impostor { Ok(Admitted::Link(None)) } else { Err(NotJoined::Unauthorized) };
    }
    let same = |known: &UniqueToken| shown.unique_token.as_ref().is_some_and(|shown| shown.token == known.token);
    let recognised = known.unique_token.as_ref().is_some_and(same);
    if !shown.join_token && !recognised {
        return Err(NotJoined::Unauthorized);
    }
    let Some(brought) = &shown.unique_token else { return Ok(Admitted::Pending { conflict: false }) };
    let must_show = known.installed && !known.wiped;
    if let Some(stored) = known.unique_token.as_ref().filter(|_| !recognised) {
        if !stored.is_of_the_same_machine(brought) {
            return Ok(Admitted::Pending { conflict: true });
        }
        if must_show {
            return Err(NotJoined::Unauthorized);
        }
    }
    Ok(Admitted::Link(if known.wiped {
        Some(false)
    } else if must_show {
        Some(true)
    } else {
        None
    }))
}

fn keeps_unique_tokens(version: &str) -> bool {
    let plain = version.trim_start_matches('v');
    // `1.6` is a version, too.
    let numbers = plain.split(['-', '+']).next().unwrap_or_default().split('.').count();
    let plain = if numbers == 2 { format!("{plain}.0") } else { plain.to_owned() };
    Version::parse(&plain).is_ok_and(|version| version >= FIRST_WITH_UNIQUE_TOKENS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: Option<&str> = Some("v1.13.7");
    const OLD: Option<&str> = Some("v1.5.9");

    fn token(fingerprint: &str, token: &str) -> Option<UniqueToken> {
        Some(UniqueToken { fingerprint: fingerprint.into(), token: token.into() })
    }

    #[test]
    fn a_unique_token_has_the_form_of_the_contract() {
        let text = r#"{"Fingerprint":"f","Token":"t"}"#;
        assert_eq!(UniqueToken::parse(text), Ok(token("f", "t")));
        assert_eq!(token("f", "t").unwrap().encode(), text);
        assert_eq!(UniqueToken::parse(""), Ok(None));
        assert_eq!(UniqueToken::parse("{}"), Ok(token("", "")));
        assert_eq!(UniqueToken::parse("t"), Err(NotJoined::UniqueToken));
    }

    #[test]
    fn who_joins_is_decided_as_the_contract_says() {
        use Admitted::{Link, Pending};
        let unauthorized = || Err(NotJoined::Unauthorized);
        let too_old = |version: &str| Err(NotJoined::TooOld(version.into()));
        let (strict, allowed, legacy) = (JoinMode::Strict, JoinMode::LegacyAllowed, JoinMode::Legacy);
        let nothing = KnownOf::default;
        let on_disk = || KnownOf { unique_token: token("f", "t"), installed: true, wiped: false };
        let wiped = || KnownOf { wiped: true, ..on_disk() };
        let in_memory = || KnownOf { installed: false, ..on_disk() };
        let installed_before = || KnownOf { installed: true, ..KnownOf::default() };
        for (why, mode, talos_version, join_token, unique_token, known, expected) in [
            ("a new machine waits for its token", allowed, NEW, true, None, nothing(), Ok(Pending { conflict: false })),
            ("and joins with it", allowed, NEW, true, token("f", "t"), nothing(), Ok(Link(None))),
            ("strictly, too", strict, NEW, true, token("f", "t"), nothing(), Ok(Link(None))),
            ("no join token", allowed, NEW, false, None, nothing(), unauthorized()),
            ("a unique token that nobody knows", allowed, NEW, false, token("f", "t"), nothing(), unauthorized()),
            ("the known one is enough", allowed, NEW, false, token("f", "t"), on_disk(), Ok(Link(Some(true)))),
            ("another one is not", allowed, NEW, false, token("f", "u"), on_disk(), unauthorized()),
            (
                "a boot without its META gets another",
                allowed,
                NEW,
                true,
                None,
                in_memory(),
                Ok(Pending { conflict: false }),
            ),
            ("which replaces the first", allowed, NEW, true, token("f", "u"), in_memory(), Ok(Link(None))),
            ("installed, without its META", allowed, NEW, true, None, on_disk(), Ok(Pending { conflict: false })),
            ("its new token is refused", allowed, NEW, true, token("f", "u"), on_disk(), unauthorized()),
            ("unless it was wiped", allowed, NEW, true, token("f", "u"), wiped(), Ok(Link(Some(false)))),
            ("another machine's UUID", allowed, NEW, true, token("g", "u"), on_disk(), Ok(Pending { conflict: true })),
            (
                "Talos was there before Omni",
                allowed,
                NEW,
                true,
                token("f", "t"),
                installed_before(),
                Ok(Link(Some(true))),
            ),
            (
                "an empty fingerprint is nobody's",
                allowed,
                NEW,
                true,
                token("", "u"),
                in_memory(),
                Ok(Pending { conflict: true }),
            ),
            ("an old Talos", allowed, OLD, true, None, nothing(), Ok(Link(None))),
            ("which says nothing", allowed, None, true, None, nothing(), Ok(Link(None))),
            ("where one with a token was", allowed, OLD, true, None, on_disk(), unauthorized()),
            ("an old Talos, strictly", strict, OLD, true, None, nothing(), too_old("v1.5.9")),
            ("one that says nothing, strictly", strict, None, true, None, nothing(), too_old("1.5.0")),
            ("an old Omni", legacy, NEW, true, None, on_disk(), Ok(Link(None))),
            ("an old Omni wants its join token", legacy, NEW, false, token("f", "t"), on_disk(), unauthorized()),
        ] {
            let shown = Shown { talos_version, join_token, unique_token };
            assert_eq!(decide(mode, &shown, &known), expected, "{why}");
        }
        for (version, keeps) in [
            ("v1.6.0", true),
            ("1.6", true),
            ("1.5.9", false),
            ("1.6.0-alpha.0", false),
            ("v1.14.0-alpha.1", true),
            ("new", false),
        ] {
            assert_eq!(keeps_unique_tokens(version), keeps, "{version}");
        }
    }
}
