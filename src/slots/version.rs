//! The version of a system image.

use std::cmp::Ordering;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A version by SemVer 2.0.0, at most [`Version::LONGEST`] octets, so that a record of six of them fits a sector.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version(semver::Version);

/// A text that is no version by [`Version::parse`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no version of at most {} octets", Version::LONGEST)]
pub struct NoVersion;

impl TryFrom<String> for Version {
    type Error = NoVersion;

    fn try_from(text: String) -> Result<Self, NoVersion> {
        Self::parse(&text).ok_or(NoVersion)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

impl Version {
    /// The most octets that its text may have.
    pub const LONGEST: usize = 40;

    /// The version of a text such as `1.4.0` or `1.5.0-rc.1+4f2a`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() > Self::LONGEST {
            return None;
        }
        semver::Version::parse(text).ok().map(Self)
    }

    /// Whether this comes before `other`; what stands after `+` does not count (SemVer 2.0.0, 11).
    pub fn is_before(&self, other: &Self) -> bool {
        self.0.cmp_precedence(&other.0) == Ordering::Less
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
