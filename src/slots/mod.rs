//! Slots: which system the box boots, and how that changes. Rules and codecs; [`device`] is the only edge.
//!
//! # The disk
//!
//! | partition | holds |
//! | --- | --- |
//! | 3 `state`, 1 MiB | the records below, raw |
//! | 4 `slot-a`, 5 `slot-b` | `/vmlinuz`, `/initramfs` and `/arguments.env` (a GRUB environment block with `arguments`) in a file system that GRUB reads |
//! | 6 `recovery` | the same; changed only by flashing or on request |
//!
//! `board/grub.cfg` reads the records, boots one of the three and says so on the kernel's command line:
//!
//! ```text
//! pilotlight.slot=a|b|recovery pilotlight.why=committed|pending|fallback|default|recovery|operator pilotlight.try=0..3
//! pilotlight.part=<PARTUUID of what booted> pilotlight.stamp=<what GRUB wrote into its own disk> pilotlight.reset=1
//! ```
//!
//! `stamp` is missing when it could not be written; `reset` is there when somebody asked for a factory reset in GRUB's
//! menu. `why=fallback` with `try=0` beside a pending slot means that its tries could not be counted.
//!
//! # The state partition
//!
//! GRUB's `load_env` reads sectors by number, but its `save_env` writes to files alone (GRUB 2.06: "sparse file not
//! allowed"). So the partition is a tar archive, which GRUB reads as a file system: members of fixed size at fixed
//! sectors, whose headers nobody writes again. `tar tvf` lists it. Records stand 128 KiB apart, since a torn write of a
//! flash page must not reach the next.
//!
//! | sector | member | writer | fields, in this order |
//! | --- | --- | --- | --- |
//! | 256, 512 | `commit1`, `commit2` | init | `n` sequence, `s` committed slot, `next` pending slot or `none`, `mark` sequence at which it became pending, `peer` `good` or `bad`, `omni` what a trial needs: `yes` for Omni, `provider`, `no`, `want` `normal` or `recovery`, `reset` `no` or `yes`, `va` `vb` versions, `failed` versions, `e` = `n` |
//! | 768, 1024 | `try1`, `try2` | GRUB; init formats and acknowledges | `c` count of writes 00–99, `q` the `mark` that the tries belong to, `t` tries 0–3, `k` boots since the last acknowledgement 0–7, `l` committed slot at that boot, `r` salt that init made, `stamp` of that boot, `d` = `c` |
//!
//! A record is one sector, written in place, and valid only when its first and last field agree. The commit record with
//! the higher sequence counts; the first valid try record counts.
//!
//! # The rules
//!
//! - A committed slot has no counter. A pending one has three tries, each counted before it is booted and only when
//!   reading back shows the count.
//! - What does not load is passed over in the same boot: committed slot, peer if it is good, recovery, peer, reboot.
//! - After five boots that init did not acknowledge, recovery is booted twice, then the peer, then it begins again.
//! - With both commit records unreadable, the slot that GRUB last booted as committed is booted; when that is unknown
//!   too, recovery: never a guess, which could be an older system or one that was never committed.

mod booted;
pub mod change;
mod decide;
pub mod device;
mod environment;
pub mod health;
mod layout;
#[cfg(test)]
mod model;
mod record;
mod version;

use std::fmt;

pub use booted::Booted;
pub use decide::{Choice, Decision, Hand, TRIES, decide};
pub use environment::SECTOR;
pub use layout::{COMMITS, STATE_SECTORS, TRIES_AT, partition};
pub use record::{Commit, Copy, Failed, Needs, Records, Try};
pub use version::{NoVersion, Version};

/// One of the two slots that updates take turns in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Slot {
    /// Partition 4.
    A,
    /// Partition 5.
    B,
}

impl Slot {
    /// The slot that this one is not.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// `a` or `b`, as the records and the kernel's command line have it.
    pub fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    /// The number of its partition.
    pub fn partition(self) -> u32 {
        match self {
            Self::A => 4,
            Self::B => 5,
        }
    }

    /// The slot of a letter.
    pub fn parse(letter: &str) -> Option<Self> {
        match letter {
            "a" => Some(Self::A),
            "b" => Some(Self::B),
            _ => None,
        }
    }
}

/// What can be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// A slot.
    Slot(Slot),
    /// The recovery partition.
    Recovery,
}

impl Target {
    /// The target of a word on the kernel's command line.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "recovery" => Some(Self::Recovery),
            letter => Slot::parse(letter).map(Self::Slot),
        }
    }

    /// The slot, unless it is recovery.
    pub fn slot(self) -> Option<Slot> {
        match self {
            Self::Slot(slot) => Some(slot),
            Self::Recovery => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.slot().map_or("recovery", Slot::letter))
    }
}

/// Why it was booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Why {
    /// It is the committed slot.
    Committed,
    /// It is new and on trial.
    Pending,
    /// What should have been booted does not load, used up its tries, or could not be counted.
    Fallback,
    /// No commit record can be read.
    Default,
    /// Too many boots that nobody acknowledged, or neither slot loads.
    Recovery,
    /// Somebody asked for it.
    Operator,
}

impl Why {
    const ALL: [(Self, &'static str); 6] = [
        (Self::Committed, "committed"),
        (Self::Pending, "pending"),
        (Self::Fallback, "fallback"),
        (Self::Default, "default"),
        (Self::Recovery, "recovery"),
        (Self::Operator, "operator"),
    ];

    /// The reason of a word on the kernel's command line.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, text)| *text == word).map(|(why, _)| *why)
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(why, _)| why == self).map_or("", |(_, text)| text))
    }
}
