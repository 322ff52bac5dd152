//! What the other disk is to hold: which octets of it come from where.
//!
//! The copy is a box of its own. Its partitions have identifiers of their own, so that neither a firmware nor init takes one
//! disk for the other; both slots hold the system that runs, as on a disk that was flashed; its records know of no trial and
//! no boot. Data begin blank: they are made at its first boot.

use std::ops::Range;

use crate::slots::{Commit, Try, Version, partition};
use crate::supervise::disk::{CONFIG, DATA, STATE};
use crate::supervise::storage;
use crate::wire::gpt::{Guid, Partition, SECTOR, Table, last_usable};

/// Octets of the first MiB, which holds the tables.
const FIRST: u64 = 1 << 20;
/// The least that is left for data, in sectors (64 MiB, as in the image).
const LEAST_DATA: u64 = 131_072;
/// Partitions begin and end at whole MiB, in sectors.
const ALIGNMENT: u64 = 2048;
/// The slots, each a copy of what runs.
const SLOTS: [&str; 2] = ["slot-a", "slot-b"];
/// What is copied as it is.
const COPIED: [&str; 4] = ["bios", "esp", "recovery", CONFIG];

/// Where octets of the other disk come from. What no piece covers is zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where on the other disk.
    pub at: u64,
    /// How many.
    pub length: u64,
    /// What.
    pub from: From,
}

/// Where from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// The own disk, from this octet on.
    Own(u64),
    /// These very octets.
    Octets(Vec<u8>),
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// In order, none over another.
    pub pieces: Vec<Piece>,
    /// What has to be written: all up to the data, and the partition table's backup.
    pub ranges: Vec<Range<u64>>,
}

/// Why there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLayout {
    /// The own disk is not laid out as the image.
    #[error("the disk that this box runs from has no partition {0}")]
    Missing(&'static str),
    /// What runs is on none of the own disk's partitions, or does not fit into a slot.
    #[error("what runs comes from no slot of this box's own disk")]
    Foreign,
    /// Partitions lie over each other, or over the tables.
    #[error("the partitions of this box's own disk make no sense")]
    Places,
    /// The other disk is too small.
    #[error("it has {has} octets, and {needs} are needed")]
    TooSmall {
        /// What it has.
        has: u64,
        /// What it needs.
        needs: u64,
    },
}

/// What [`layout`] is made of.
#[derive(Clone, Debug)]
pub struct Own<'a> {
    /// The first sector of the own disk.
    pub first: [u8; SECTOR],
    /// Its partition table.
    pub table: &'a Table,
    /// The partition that runs.
    pub runs: Guid,
    /// The version that runs.
    pub version: Option<Version>,
}

/// Octets that a disk needs to get a copy of the one with this table.
///
/// # Errors
///
/// [`NoLayout::Missing`].
pub fn needs(table: &Table) -> Result<u64, NoLayout> {
    let partitions = table.partitions();
    let data = find(&partitions, DATA)?;
    let backup = 1 + (table.header.table_octets() / SECTOR) as u64;
    Ok((data.first + LEAST_DATA + backup) * SECTOR as u64)
}

/// What a disk of `sectors` is to hold. `random` gives identifiers that nobody has; the salt of the records is one, too.
///
/// # Errors
///
/// [`NoLayout`].
pub fn layout(own: &Own<'_>, sectors: u64, mut random: impl FnMut() -> [u8; 16]) -> Result<Layout, NoLayout> {
    let octets = |sector: u64| sector.saturating_mul(SECTOR as u64);
    let partitions = own.table.partitions();
    let (has, needs) = (octets(sectors), needs(own.table)?);
    if has < needs {
        return Err(NoLayout::TooSmall { has, needs });
    }
    let data = find(&partitions, DATA)?;
    let place = |one: &Partition| (octets(one.first), octets(one.last - one.first + 1));
    let mut pieces = Vec::new();
    for name in COPIED {
        let (at, length) = place(find(&partitions, name)?);
        pieces.push(Piece { at, length, from: From::Own(at) });
    }
    let runs = partitions.iter().find(|one| one.guid == own.runs).ok_or(NoLayout::Foreign)?;
    let (from, length) = place(runs);
    for name in SLOTS {
        let (at, room) = place(find(&partitions, name)?);
        if length > room || runs.name == DATA {
            return Err(NoLayout::Foreign);
        }
        pieces.push(Piece { at, length, from: From::Own(from) });
    }
    let salt: String = random()[..8].iter().map(|octet| format!("{octet:02x}")).collect();
    let records = partition(&Commit::first(own.version.clone()).encode(), &Try::first(salt).encode());
    let (at, room) = place(find(&partitions, STATE)?);
    if records.len() as u64 > room {
        return Err(NoLayout::Places);
    }
    pieces.push(Piece { at, length: records.len() as u64, from: From::Octets(records) });

    let end = (last_usable(&own.table.header, sectors) + 1) / ALIGNMENT * ALIGNMENT;
    let table = own.table.clone().ending(data.number, end - 1).primary(sectors).renamed(|| Guid::random(random()));
    let first = first_mib(own.first, &table, sectors).ok_or(NoLayout::Places)?;
    pieces.push(Piece { at: 0, length: FIRST, from: From::Octets(first) });
    let backup = table.backup(sectors);
    let last = [backup.entries, backup.header.encode().to_vec()].concat();
    let backup_at = has - last.len() as u64;
    pieces.push(Piece { at: backup_at, length: last.len() as u64, from: From::Octets(last) });

    pieces.sort_by_key(|piece| piece.at);
    let blank = octets(data.first) + storage::LOOKED_AT as u64;
    let apart = pieces.windows(2).all(|pair| pair[0].at + pair[0].length <= pair[1].at);
    // The last piece is the backup; all others lie before the data, of which nothing is copied.
    let before = pieces.iter().rev().skip(1).all(|piece| piece.at + piece.length <= octets(data.first));
    if !apart || !before || blank > backup_at {
        return Err(NoLayout::Places);
    }
    Ok(Layout { pieces, ranges: vec![0..blank, backup_at..has] })
}

fn find<'a>(partitions: &'a [Partition], name: &'static str) -> Result<&'a Partition, NoLayout> {
    partitions.iter().find(|one| one.name == name).ok_or(NoLayout::Missing(name))
}

/// The code for BIOS and the protective entry, as on the own disk but for the size, and the table behind it.
fn first_mib(mut sector: [u8; SECTOR], table: &Table, sectors: u64) -> Option<Vec<u8>> {
    // Type 0xee covers the whole disk, as far as the number goes (UEFI 2.10, section 5.2.3).
    if sector[446 + 4] == 0xee {
        let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
        sector[446 + 12..446 + 16].copy_from_slice(&size.to_le_bytes());
    }
    let mut octets = [sector.as_slice(), &table.header.encode(), &table.entries].concat();
    let room = usize::try_from(FIRST).ok()?;
    if octets.len() > room {
        return None;
    }
    octets.resize(room, 0);
    Some(octets)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::slots::Slot;
    use crate::supervise::disk::{self, Origin, Tables};
    use crate::wire::gpt::{self, ENTRY, Header};

    const MIB: u64 = 2048;

    /// The image's partitions, small: names, and MiB.
    pub(crate) const PARTITIONS: [(&str, u64); 8] =
        [("bios", 1), ("esp", 2), (STATE, 1), ("slot-a", 3), ("slot-b", 3), ("recovery", 3), (CONFIG, 1), (DATA, 4)];

    /// A partition table of them on a disk of `sectors`, whose identifiers begin with `salt`.
    pub(crate) fn table(sectors: u64, salt: u8) -> Table {
        let mut next = MIB;
        let places = PARTITIONS.map(|(name, mib)| {
            let first = next;
            next += mib * MIB;
            (name, first, next - 1)
        });
        gpt::tests::table_of(sectors, salt, &places)
    }

    fn own(table: &Table, runs: usize) -> Own<'_> {
        let mut first = [0xb0; SECTOR];
        first[446..510].fill(0);
        first[446 + 4] = 0xee;
        first[510..].copy_from_slice(&[0x55, 0xaa]);
        Own { first, table, runs: table.partitions()[runs].guid, version: Version::parse("1.2.3") }
    }

    fn counter() -> impl FnMut() -> [u8; 16] {
        let mut count = 0_u8;
        move || {
            count += 1;
            [count; 16]
        }
    }

    fn octets(layout: &Layout, at: u64) -> &[u8] {
        layout
            .pieces
            .iter()
            .find_map(|piece| match &piece.from {
                From::Octets(octets) if piece.at == at => Some(octets.as_slice()),
                From::Octets(_) | From::Own(_) => None,
            })
            .expect("a piece")
    }

    #[test]
    fn both_slots_get_what_runs_and_the_records_are_new() {
        let source = table(20 * MIB, 1);
        for runs in [3, 4, 5] {
            let layout = layout(&own(&source, runs), 500 * MIB, counter()).unwrap();
            let places = source.partitions();
            let at = |index: usize| places[index].first * 512;
            let from = |place: u64| layout.pieces.iter().find(|piece| piece.at == place).map(|piece| &piece.from);
            assert_eq!(from(at(3)), Some(&From::Own(at(runs))));
            assert_eq!(from(at(4)), Some(&From::Own(at(runs))));
            assert_eq!(from(at(5)), Some(&From::Own(at(5))));
            assert_eq!(from(at(6)), Some(&From::Own(at(6))));
            assert_eq!(from(at(7)), None, "data are nobody's");
            let state = octets(&layout, at(2));
            let commit = Commit::decode(&state[256 * 512..257 * 512]);
            let commit = commit.valid().unwrap();
            assert_eq!((commit.slot, commit.pending, commit.peer_good), (Slot::A, false, true));
            assert_eq!(commit.version(Slot::B), Version::parse("1.2.3").as_ref());
            assert_eq!(Try::decode(&state[768 * 512..769 * 512]).valid().unwrap().stamp, "");
        }
    }

    #[test]
    fn the_copy_has_tables_of_its_own_that_need_no_repair() {
        let source = table(20 * MIB, 1);
        let sectors = 500 * MIB + 5;
        let layout = layout(&own(&source, 3), sectors, counter()).unwrap();
        let first = octets(&layout, 0);
        let last = octets(&layout, layout.ranges[1].start);
        let primary = Table::new(Header::decode(&first[512..], 1).unwrap(), first[1024..].to_vec()).unwrap();
        let (entries, header) = last.split_at(last.len() - 512);
        let backup = Table::new(Header::decode(header, sectors - 1).unwrap(), entries.to_vec()).unwrap();
        assert_eq!(disk::repair(&Tables { sectors, primary: Ok(primary.clone()), backup: Ok(backup) }), Ok(None));
        assert_eq!(primary.partitions().len(), PARTITIONS.len());
        assert_eq!(primary.partitions()[7].last + 1, 499 * MIB, "data reach to the end");
        assert_ne!(primary.header.disk, source.header.disk);
        for (mine, theirs) in source.partitions().iter().zip(primary.partitions()) {
            assert_eq!((&mine.name, mine.first), (&theirs.name, theirs.first));
            assert!(source.partitions().iter().all(|other| other.guid != theirs.guid), "{}", mine.name);
        }
        assert_eq!(first[446 + 12..446 + 16], u32::try_from(sectors - 1).unwrap().to_le_bytes());
        assert_eq!((first[0], &first[510..512]), (0xb0, &[0x55, 0xaa][..]));
    }

    #[test]
    fn neither_disk_is_taken_for_the_other_whichever_boots() {
        let source = table(20 * MIB, 1);
        let layout = layout(&own(&source, 3), 500 * MIB, counter()).unwrap();
        let first = octets(&layout, 0);
        let copy = Table::new(Header::decode(&first[512..], 1).unwrap(), first[1024..].to_vec()).unwrap();
        for (booted, name) in [(&source, "stick"), (&copy, "disk")] {
            // Where GRUB could not write its stamp, the identifier alone decides.
            let origin = Origin { part: Some(booted.partitions()[3].guid), stamp: None, reset: false };
            let seen = [("stick", &source), ("disk", &copy)].map(|(name, table)| disk::Disk {
                name: name.to_owned(),
                has_slot: table.partitions().iter().any(|one| Some(one.guid) == origin.part),
                stamps: vec![String::new()],
            });
            assert_eq!(disk::own(&origin, &seen), Ok(name));
        }
    }

    #[test]
    fn what_can_not_be_copied_is_refused_by_name() {
        let source = table(20 * MIB, 1);
        let least = needs(&source).unwrap() / 512;
        assert!(layout(&own(&source, 3), least, counter()).is_ok());
        assert!(matches!(layout(&own(&source, 3), least - 1, counter()), Err(NoLayout::TooSmall { .. })));
        let foreign = Own { runs: Guid([0xff; 16]), ..own(&source, 3) };
        assert_eq!(layout(&foreign, 500 * MIB, counter()), Err(NoLayout::Foreign));
        assert_eq!(layout(&own(&source, 7), 500 * MIB, counter()), Err(NoLayout::Foreign), "data do not run");
        let mut nameless = source.clone();
        nameless.entries[3 * ENTRY + 56] = b'x';
        assert_eq!(layout(&own(&nameless, 3), 500 * MIB, counter()), Err(NoLayout::Missing("slot-a")));
        let mut over = source.clone();
        over.entries[5 * ENTRY + 32..5 * ENTRY + 40].copy_from_slice(&MIB.to_le_bytes());
        assert_eq!(layout(&own(&over, 3), 500 * MIB, counter()), Err(NoLayout::Places));
    }
}
