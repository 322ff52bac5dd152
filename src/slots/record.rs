//! The two records of the `state` partition, and what their copies say together.
//!
//! Decoding accepts exactly what `board/grub.cfg` accepts: init must never see another record than GRUB did.

use std::collections::BTreeMap;

use super::environment::{self, SECTOR, parse};
use super::{Slot, Version};

/// What init decided: which slot is trusted, which is on trial, what is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Commit {
    /// Counts the writes, from 1 to 999,999,999; the higher of two copies stands.
    pub sequence: u32,
    /// The slot that proved itself.
    pub slot: Slot,
    /// Whether the other slot is on trial.
    pub pending: bool,
    /// The sequence at which it went on trial: tests of another trial do not count.
    pub mark: Option<u32>,
    /// Whether the other slot may stand in when this one does not load.
    pub peer_good: bool,
    /// What the system before had reached, so that the one on trial must as well.
    pub needs: Needs,
    /// Whether recovery is to be booted next.
    pub want_recovery: bool,
    /// Whether the configuration is to be erased at the next early boot.
    pub reset: bool,
    /// What slots A and B hold, as far as is known.
    pub versions: [Option<Version>; 2],
    /// Versions that failed their trial, oldest first.
    pub failed: Failed,
}

/// What a system on trial must reach besides network and page: no more than the system before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Needs {
    /// Nothing: the provider was not ready before either, as on a box that is not set up.
    #[default]
    Nothing,
    /// A provider that is ready.
    Provider,
    /// Omni.
    Omni,
}

impl Needs {
    const ALL: [(Self, &'static str); 3] = [(Self::Nothing, "no"), (Self::Provider, "provider"), (Self::Omni, "yes")];
}

/// Versions that failed their trial; the oldest of more than [`Failed::MOST`] is forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Failed(Vec<Version>);

impl Failed {
    /// How many are remembered.
    pub const MOST: usize = 4;

    /// Whether this very version, build and all, has failed.
    pub fn contains(&self, version: &Version) -> bool {
        self.0.contains(version)
    }

    /// Remembers one.
    pub fn push(&mut self, version: Version) {
        self.0.retain(|known| *known != version);
        self.0.push(version);
        if self.0.len() > Self::MOST {
            self.0.remove(0);
        }
    }

    /// Forgets one: somebody asked for it again.
    pub fn forget(&mut self, version: &Version) {
        self.0.retain(|known| known != version);
    }

    /// Those remembered, oldest first.
    pub fn iter(&self) -> impl Iterator<Item = &Version> {
        self.0.iter()
    }
}

/// What GRUB counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Try {
    /// Counts the writes, 0 to 99 and round again.
    pub count: u8,
    /// The mark that the tries belong to.
    pub of: Option<u32>,
    /// Tries of the pending slot, 0 to 3.
    pub tries: u8,
    /// Boots since init last acknowledged one, 0 to 7.
    pub boots: u8,
    /// The committed slot at that boot.
    pub last: Option<Slot>,
    /// What init drew when it formatted the record, in hexadecimal digits.
    pub salt: String,
    /// What GRUB wrote at its last boot and told the kernel.
    pub stamp: String,
}

/// One copy of a record, as its sector has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Copy<T> {
    /// A record whose ends agree.
    Valid(T),
    /// An environment block without a valid record: GRUB can write here, not read.
    Formatted,
    /// Anything else.
    Garbage,
}

impl<T> Copy<T> {
    /// The record.
    pub fn valid(&self) -> Option<&T> {
        match self {
            Self::Valid(record) => Some(record),
            Self::Formatted | Self::Garbage => None,
        }
    }
}

/// All four sectors.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Records {
    /// The copies of the commit record.
    pub commits: [Copy<Commit>; 2],
    /// The copies of the try record.
    pub tries: [Copy<Try>; 2],
}

impl Records {
    /// Decodes the sectors, in the order of [`COMMITS`](super::COMMITS) and [`TRIES_AT`](super::TRIES_AT).
    pub fn decode(commits: [&[u8]; 2], tries: [&[u8]; 2]) -> Self {
        Self { commits: commits.map(Commit::decode), tries: tries.map(Try::decode) }
    }

    /// The commit record that stands, with the index of its copy.
    pub fn commit(&self) -> Option<(usize, &Commit)> {
        let mut newest: Option<(usize, &Commit)> = None;
        for (index, copy) in self.commits.iter().enumerate() {
            if let Some(commit) = copy.valid()
                && newest.is_none_or(|(_, known)| commit.sequence > known.sequence)
            {
                newest = Some((index, commit));
            }
        }
        newest
    }

    /// The try record that stands, with the index of its copy.
    pub fn tried(&self) -> Option<(usize, &Try)> {
        self.tries.iter().enumerate().find_map(|(index, copy)| copy.valid().map(|record| (index, record)))
    }
}

impl Commit {
    /// The highest sequence.
    pub const LAST: u32 = 999_999_999;

    /// The record of a disk just written: slot A committed, B the same system.
    pub fn first(version: Option<Version>) -> Self {
        Self {
            sequence: 1,
            slot: Slot::A,
            pending: false,
            mark: None,
            peer_good: true,
            needs: Needs::Nothing,
            want_recovery: false,
            reset: false,
            versions: [version.clone(), version],
            failed: Failed::default(),
        }
    }

    /// What a slot holds, as far as is known.
    pub fn version(&self, slot: Slot) -> Option<&Version> {
        let [a, b] = &self.versions;
        match slot {
            Slot::A => a.as_ref(),
            Slot::B => b.as_ref(),
        }
    }

    /// Decodes a sector.
    pub fn decode(sector: &[u8]) -> Copy<Self> {
        let Some(variables) = parse(sector) else { return Copy::Garbage };
        match Self::from_variables(&variables) {
            Some(commit) => Copy::Valid(commit),
            None => Copy::Formatted,
        }
    }

    fn from_variables(variables: &BTreeMap<Vec<u8>, Vec<u8>>) -> Option<Self> {
        let text = |name| text(variables, name);
        let sequence = number(text("n"))?;
        if sequence == 0 || text("n") != text("e") {
            return None;
        }
        let slot = Slot::parse(text("s"))?;
        let mut failed = Failed::default();
        text("failed").split(',').filter_map(Version::parse).for_each(|version| failed.push(version));
        Some(Self {
            sequence,
            slot,
            pending: Slot::parse(text("next")) == Some(slot.other()),
            mark: number(text("mark")),
            peer_good: text("peer") == "good",
            needs: Needs::ALL
                .iter()
                .find(|(_, word)| *word == text("omni"))
                .map_or(Needs::Nothing, |(needs, _)| *needs),
            want_recovery: text("want") == "recovery",
            reset: text("reset") == "yes",
            versions: [Version::parse(text("va")), Version::parse(text("vb"))],
            failed,
        })
    }

    /// The sector of this record.
    pub fn encode(&self) -> [u8; SECTOR] {
        let version = |slot| self.version(slot).map(Version::to_string).unwrap_or_default();
        let failed: Vec<_> = self.failed.iter().map(Version::to_string).collect();
        environment::format(&[
            ("n", self.sequence.to_string()),
            ("s", self.slot.letter().into()),
            ("next", if self.pending { self.slot.other().letter() } else { "none" }.into()),
            ("mark", self.mark.map(|mark| mark.to_string()).unwrap_or_default()),
            ("peer", if self.peer_good { "good" } else { "bad" }.into()),
            ("omni", Needs::ALL.iter().find(|(needs, _)| *needs == self.needs).map_or("", |(_, word)| word).into()),
            ("want", if self.want_recovery { "recovery" } else { "normal" }.into()),
            ("reset", if self.reset { "yes" } else { "no" }.into()),
            ("va", version(Slot::A)),
            ("vb", version(Slot::B)),
            ("failed", failed.join(",")),
            ("e", self.sequence.to_string()),
        ])
        .expect("six versions of 40 octets and the rest are below 512 octets")
    }
}

impl Try {
    /// An empty record with this salt, which should be 16 random hexadecimal digits.
    pub fn first(salt: String) -> Self {
        Self { count: 0, of: None, tries: 0, boots: 0, last: None, salt, stamp: String::new() }
    }

    /// Decodes a sector.
    pub fn decode(sector: &[u8]) -> Copy<Self> {
        let Some(variables) = parse(sector) else { return Copy::Garbage };
        match Self::from_variables(&variables) {
            Some(record) => Copy::Valid(record),
            None => Copy::Formatted,
        }
    }

    fn from_variables(variables: &BTreeMap<Vec<u8>, Vec<u8>>) -> Option<Self> {
        let text = |name| text(variables, name);
        let digits = text("c");
        if digits != text("d") || digits.len() != 2 || !digits.bytes().all(|octet| octet.is_ascii_digit()) {
            return None;
        }
        let within =
            |name, most| number(text(name)).and_then(|value| u8::try_from(value).ok()).filter(|value| *value <= most);
        Some(Self {
            count: digits.parse().ok()?,
            of: number(text("q")),
            tries: within("t", 3)?,
            boots: within("k", 7)?,
            last: Slot::parse(text("l")),
            salt: text("r").to_owned(),
            stamp: text("stamp").to_owned(),
        })
    }

    /// The sector of this record. A salt or stamp that does not fit is left empty.
    pub fn encode(&self) -> [u8; SECTOR] {
        let plain = |text: &str| {
            let fits = text.len() <= 64 && text.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'.');
            if fits { text.to_owned() } else { String::new() }
        };
        let count = format!("{:02}", self.count % 100);
        environment::format(&[
            ("c", count.clone()),
            ("q", self.of.map(|mark| mark.to_string()).unwrap_or_default()),
            ("t", self.tries.min(3).to_string()),
            ("k", self.boots.min(7).to_string()),
            ("l", self.last.map_or("", Slot::letter).into()),
            ("r", plain(&self.salt)),
            ("stamp", plain(&self.stamp)),
            ("d", count),
        ])
        .expect("two texts of 64 octets and the rest are below 512 octets")
    }
}

/// The text of a variable, empty when it is missing or not UTF-8: none of ours is.
fn text<'a>(variables: &'a BTreeMap<Vec<u8>, Vec<u8>>, name: &str) -> &'a str {
    variables.get(name.as_bytes()).and_then(|value| str::from_utf8(value).ok()).unwrap_or_default()
}

/// `0`, or up to nine digits without a leading zero.
fn number(text: &str) -> Option<u32> {
    let canonical = text.len() <= 9 && text.bytes().all(|octet| octet.is_ascii_digit());
    if !canonical || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn versions() -> impl Strategy<Value = Option<Version>> {
        proptest::option::of(
            (0..99u32, 0..99u32, 0..99u32)
                .prop_map(|(x, y, z)| Version::parse(&format!("{x}.{y}.{z}-rc.1")).expect("SemVer")),
        )
    }

    proptest! {
        #[test]
        fn a_commit_record_is_read_as_written(
            sequence in 1..=Commit::LAST, b: bool, pending: bool, mark in proptest::option::of(0..=Commit::LAST),
            peer_good: bool, needs in 0..3usize, want_recovery: bool, reset: bool, va in versions(), vb in versions(),
            failed in proptest::collection::vec(versions(), 0..6),
        ) {
            let slot = if b { Slot::B } else { Slot::A };
            let mut remembered = Failed::default();
            failed.into_iter().flatten().for_each(|version| remembered.push(version));
            let commit = Commit {
                sequence, slot, pending, mark, peer_good, needs: Needs::ALL[needs].0, want_recovery, reset, versions: [va, vb],
                failed: remembered,
            };
            prop_assert_eq!(Commit::decode(&commit.encode()), Copy::Valid(commit));
        }

        #[test]
        fn a_try_record_is_read_as_written(
            count in 0..100u8, of in proptest::option::of(0..=Commit::LAST), tries in 0..=3u8, boots in 0..=7u8,
            salt in "[0-9a-f]{0,64}", stamp in "[0-9a-z.]{0,64}", last in 0..3u8,
        ) {
            let last = [None, Some(Slot::A), Some(Slot::B)][usize::from(last)];
            let record = Try { count, of, tries, boots, last, salt, stamp };
            prop_assert_eq!(Try::decode(&record.encode()), Copy::Valid(record));
        }

        #[test]
        fn any_sector_is_read(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = (Commit::decode(&octets), Try::decode(&octets));
        }
    }

    #[test]
    fn the_longest_records_fit() {
        let longest = Version::parse(&format!("1.2.3-{}", "x".repeat(34)));
        let mut commit = Commit {
            sequence: Commit::LAST,
            mark: Some(Commit::LAST),
            needs: Needs::Provider,
            want_recovery: true,
            reset: true,
            ..Commit::first(longest)
        };
        for letter in ["a", "b", "c", "d", "e"] {
            commit.failed.push(Version::parse(&format!("1.2.3-{}", letter.repeat(34))).expect("SemVer"));
        }
        assert_eq!(commit.failed.iter().count(), Failed::MOST);
        assert_eq!(Commit::decode(&commit.encode()), Copy::Valid(commit));
    }
}
