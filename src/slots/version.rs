//! The version of a system image.

use std::cmp::Ordering;
use std::fmt;

/// A version by SemVer 2.0.0, at most [`Version::LONGEST`] octets, so that a record of six of them fits a sector.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Version(semver::Version);

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
