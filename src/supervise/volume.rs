//! What is wrong with the data partition while the box runs, in words for the page and the console.

use std::fmt;

/// Less than this many octets is full: neither the journal nor the store can go on.
const FULL: u64 = 1 << 20;

/// The file system at /data, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Whether it lies in memory.
    pub in_memory: bool,
    /// Whether the kernel still has the disk that it lies on.
    pub present: bool,
    /// Whether nothing can be written to it.
    pub read_only: bool,
    /// Octets that services may still write.
    pub free: u64,
}

/// Why what the box learns is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It lies in memory; why, was said when it was mounted.
    InMemory,
    /// The disk is pulled out or dead.
    Gone,
    /// The kernel stopped writing to it after an error, so that nothing gets worse.
    ReadOnly,
    /// It is full.
    Full {
        /// Octets that are left.
        free: u64,
    },
}

impl Volume {
    /// The gravest thing that is wrong with it.
    pub const fn trouble(&self) -> Option<Trouble> {
        match self {
            Self { in_memory: true, .. } => Some(Trouble::InMemory),
            Self { present: false, .. } => Some(Trouble::Gone),
            Self { read_only: true, .. } => Some(Trouble::ReadOnly),
            Self { free, .. } if *free < FULL => Some(Trouble::Full { free: *free }),
            Self { .. } => None,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InMemory => f.write_str("/data lies in memory: what the box learns is gone with the power"),
            Self::Gone => f.write_str(
                "the disk is gone, pulled out or dead: the box runs on from memory and will not start again without it",
            ),
            Self::ReadOnly => f.write_str(
                "the disk fails: the data partition takes no more writes; a start checks it, a new disk may be needed",
            ),
            Self::Full { free } => write!(f, "the data partition is full: {} KiB are left", free >> 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gravest_trouble_is_told() {
        let well = Volume { in_memory: false, present: true, read_only: false, free: FULL };
        assert_eq!(well.trouble(), None);
        let full = Volume { free: FULL - 1, ..well };
        assert_eq!(full.trouble(), Some(Trouble::Full { free: FULL - 1 }));
        assert_eq!(full.trouble().map(|it| it.to_string()).unwrap(), "the data partition is full: 1023 KiB are left");
        let failed = Volume { read_only: true, ..full };
        assert_eq!(failed.trouble(), Some(Trouble::ReadOnly));
        let gone = Volume { present: false, ..failed };
        assert_eq!(gone.trouble(), Some(Trouble::Gone));
        assert_eq!(Volume { in_memory: true, ..gone }.trouble(), Some(Trouble::InMemory));
    }
}
