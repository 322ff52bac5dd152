//! Which disk is the box's own, and what has to be put right in its partition table.

use std::fmt;

use crate::wire::gpt::{Guid, Invalid, Table, last_usable};

/// Partitions begin and end at whole MiB.
const ALIGNMENT: u64 = 2048;
/// The data partition grows by no less than this many sectors (8 MiB): less is not worth a write.
pub const LEAST_GROWTH: u64 = 16_384;
/// The name of the data partition; it is the last one.
pub const DATA: &str = "data";
/// The name of the partition on which any computer can put a configuration.
pub const CONFIG: &str = "config";
/// The name of the partition that the boot loader writes to.
pub const STATE: &str = "state";

/// The directory in which the partitions of the box's own disk have links by their names, such as `state` or `slot-a`.
pub const NAMES: &str = "/dev/pilotlight";

/// What the boot loader tells of the disk that it started from, on the kernel's command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The booted slot's PARTUUID (`pilotlight.part=`).
    pub part: Option<Guid>,
    /// What it wrote into its own disk's state partition at this boot (`pilotlight.stamp=`).
    pub stamp: Option<String>,
    /// Whether a factory reset was chosen in its menu (`pilotlight.reset=1`).
    pub reset: bool,
}

impl Origin {
    /// Reads the kernel's command line; of an argument that is given twice the last counts.
    pub fn parse(command_line: &str) -> Self {
        let value = |name: &str| {
            let values = command_line.split_whitespace().filter_map(|word| word.strip_prefix(name));
            values.filter_map(|value| value.strip_prefix('=')).next_back()
        };
        Self {
            part: value("pilotlight.part").and_then(Guid::parse),
            stamp: value("pilotlight.stamp").filter(|stamp| !stamp.is_empty()).map(str::to_owned),
            reset: value("pilotlight.reset") == Some("1"),
        }
    }
}

/// A disk with a partition table that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// The kernel's name for it.
    pub name: String,
    /// Whether a partition of it has the booted slot's PARTUUID.
    pub has_slot: bool,
    /// What the boot loader wrote into its state partition, in either place.
    pub stamps: Vec<String>,
}

/// Why no disk counts as the box's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoDisk {
    /// The boot loader names none: the box was started over the network, or by hand.
    NotNamed,
    /// None has the booted slot; it may still come.
    NotFound,
    /// Those that have it carry another stamp: copies of our own.
    OnlyCopies(Vec<String>),
    /// More than one could be it.
    Ambiguous(Vec<String>),
}

impl fmt::Display for NoDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotNamed => f.write_str("the boot loader names no disk"),
            Self::NotFound => f.write_str("no disk has the booted slot"),
            Self::OnlyCopies(names) => write!(f, "only copies of the boot disk are there: {}", names.join(", ")),
            Self::Ambiguous(names) => write!(f, "several disks could be the boot disk: {}", names.join(", ")),
        }
    }
}

/// The name of the box's own disk among `disks`.
///
/// A copy has the same PARTUUIDs, so that the stamp of this very boot decides. A disk is never taken for being the only
/// one when its stamp is another: what is on it belongs to someone else.
///
/// # Errors
///
/// [`NoDisk`]; [`NoDisk::NotFound`] and [`NoDisk::OnlyCopies`] may change when more disks appear.
pub fn own<'a>(origin: &Origin, disks: &'a [Disk]) -> Result<&'a str, NoDisk> {
    if origin.part.is_none() {
        return Err(NoDisk::NotNamed);
    }
    let with_slot: Vec<_> = disks.iter().filter(|disk| disk.has_slot).collect();
    let stamped: Vec<_> = with_slot
        .iter()
        .filter(|disk| origin.stamp.as_ref().is_none_or(|stamp| disk.stamps.contains(stamp)))
        .copied()
        .collect();
    let names = |disks: &[&Disk]| disks.iter().map(|disk| disk.name.clone()).collect();
    match (with_slot.as_slice(), stamped.as_slice()) {
        (_, [disk]) => Ok(&disk.name),
        ([], _) => Err(NoDisk::NotFound),
        (copies, []) => Err(NoDisk::OnlyCopies(names(copies))),
        (_, several) => Err(NoDisk::Ambiguous(names(several))),
    }
}

/// What is written where, one after the other, each flushed before the next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repair {
    /// Why, in a few words each.
    pub reasons: Vec<String>,
    /// The table as it should be; [`Table::backup`] of it at the end of the disk first.
    pub table: Table,
}

/// Both tables of a disk as they were read.
#[derive(Clone, Debug)]
pub struct Tables {
    /// How many sectors the disk has.
    pub sectors: u64,
    /// That at the beginning.
    pub primary: Result<Table, Invalid>,
    /// That at the end of the disk, or where the primary says.
    pub backup: Result<Table, Invalid>,
}

impl Tables {
    /// The one that counts: the primary when it is whole.
    ///
    /// # Errors
    ///
    /// The primary's fault, when neither is whole.
    pub fn valid(&self) -> Result<&Table, Invalid> {
        match (&self.primary, &self.backup) {
            (Ok(table), _) | (Err(_), Ok(table)) => Ok(table),
            (Err(fault), Err(_)) => Err(*fault),
        }
    }
}

/// What to write so that both tables are whole, the backup lies at the disk's end, and the data partition reaches as far
/// as it may. `None` when nothing is amiss.
///
/// # Errors
///
/// When neither table is whole, or the table is for a larger disk than this.
pub fn repair(tables: &Tables) -> Result<Option<Repair>, Invalid> {
    let table = tables.valid()?;
    let sectors = tables.sectors;
    let limit = last_usable(&table.header, sectors);
    let partitions = table.partitions();
    if sectors < ALIGNMENT || partitions.iter().any(|partition| partition.last > limit) {
        return Err(Invalid::Places);
    }
    let mut reasons = Vec::new();
    if let Err(fault) = tables.primary {
        reasons.push(format!("primary partition table: {fault}"));
    }
    let at_end = |backup: &Table| backup.header.own == sectors - 1 && backup.entries == table.entries;
    match &tables.backup {
        Err(fault) => reasons.push(format!("backup partition table: {fault}")),
        Ok(backup) if !at_end(backup) => reasons.push("backup partition table not at the disk's end".to_owned()),
        Ok(_) => {}
    }
    let mut wanted = table.clone();
    let end = (limit + 1) / ALIGNMENT * ALIGNMENT;
    let last = partitions.iter().max_by_key(|partition| partition.first);
    if let Some(data) = last.filter(|partition| partition.name == DATA)
        && end >= data.last + 1 + LEAST_GROWTH
    {
        let grown = (end - 1 - data.last) / 2048;
        reasons.push(format!("data partition grows by {grown} MiB"));
        wanted = wanted.ending(data.number, end - 1);
    }
    Ok((!reasons.is_empty()).then(|| Repair { reasons, table: wanted.primary(sectors) }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::gpt;

    const MIB: u64 = 2048;

    fn disk(name: &str, has_slot: bool, stamp: Option<&str>) -> Disk {
        Disk { name: name.into(), has_slot, stamps: stamp.into_iter().map(str::to_owned).collect() }
    }

    /// A disk of `sectors` that was made for `made_for`: a state partition and a data partition up to its end.
    fn tables(sectors: u64, made_for: u64) -> Tables {
        let places = [(STATE, MIB, 2 * MIB - 1), (DATA, 2 * MIB, made_for - MIB - 1)];
        let table = gpt::tests::table_of(made_for, 1, &places);
        Tables { sectors, primary: Ok(table.clone()), backup: Ok(table.backup(made_for)) }
    }

    #[test]
    fn the_command_line_names_the_origin() {
        let line = "quiet pilotlight.part=0f0f0f0f-1111-4222-8333-00000000000a pilotlight.stamp=7 pilotlight.stamp=8 x";
        let origin = Origin::parse(line);
        assert_eq!(origin.stamp.as_deref(), Some("8"));
        assert_eq!(origin.part, Guid::parse("0F0F0F0F-1111-4222-8333-00000000000A"));
        assert_eq!(Origin::parse("pilotlight.part= pilotlight.stamp= pilotlight.partx=1"), Origin::default());
    }

    #[test]
    fn the_stamp_of_this_boot_tells_our_disk_from_its_copies() {
        let part = Guid::parse("0f0f0f0f-1111-4222-8333-00000000000a");
        let origin = Origin { part, stamp: Some("9".into()), reset: false };
        let unstamped = Origin { part, stamp: None, reset: false };
        let (ours, copy, other) =
            (disk("sda", true, Some("9")), disk("sdb", true, Some("4")), disk("sdc", false, Some("9")));
        assert_eq!(own(&origin, &[copy.clone(), other.clone(), ours.clone()]), Ok("sda"));
        assert_eq!(own(&origin, std::slice::from_ref(&copy)), Err(NoDisk::OnlyCopies(vec!["sdb".into()])));
        assert_eq!(own(&origin, &[other]), Err(NoDisk::NotFound));
        assert_eq!(own(&unstamped, std::slice::from_ref(&copy)), Ok("sdb"));
        assert_eq!(own(&unstamped, &[ours.clone(), copy]), Err(NoDisk::Ambiguous(vec!["sda".into(), "sdb".into()])));
        let twin = disk("sdd", true, Some("9"));
        assert_eq!(own(&origin, &[ours, twin]), Err(NoDisk::Ambiguous(vec!["sda".into(), "sdd".into()])));
        assert_eq!(own(&Origin::default(), &[]), Err(NoDisk::NotNamed));
    }

    #[test]
    fn a_disk_as_it_should_be_is_left_alone() {
        assert_eq!(repair(&tables(100 * MIB, 100 * MIB)), Ok(None));
    }

    #[test]
    fn on_a_larger_disk_the_backup_moves_and_the_data_grow() {
        let repair = repair(&tables(1000 * MIB + 7, 100 * MIB)).unwrap().unwrap();
        assert_eq!(repair.reasons, ["backup partition table not at the disk's end", "data partition grows by 900 MiB"]);
        let data = repair.table.partitions().pop().unwrap();
        assert_eq!(data.last + 1, 999 * MIB);
        assert_eq!(repair.table.header.peer, 1000 * MIB + 6);
    }

    #[test]
    fn growth_that_is_not_worth_it_is_not_done() {
        let repair = repair(&tables(107 * MIB, 100 * MIB)).unwrap().unwrap();
        assert_eq!(repair.reasons, ["backup partition table not at the disk's end"]);
    }

    #[test]
    fn each_table_is_made_anew_from_the_other() {
        let mut damaged = tables(100 * MIB, 100 * MIB);
        damaged.primary = Err(Invalid::Header);
        let repaired = repair(&damaged).unwrap().unwrap();
        assert_eq!(repaired.reasons, ["primary partition table: header damaged"]);
        assert_eq!(repaired.table, tables(100 * MIB, 100 * MIB).primary.unwrap());
        let mut damaged = tables(100 * MIB, 100 * MIB);
        damaged.backup = Err(Invalid::Signature);
        assert_eq!(repair(&damaged).unwrap().unwrap().reasons, ["backup partition table: no partition table"]);
        damaged.primary = Err(Invalid::Entries);
        assert_eq!(repair(&damaged), Err(Invalid::Entries));
    }

    #[test]
    fn a_table_for_a_larger_disk_is_not_touched() {
        assert_eq!(repair(&tables(99 * MIB, 200 * MIB)), Err(Invalid::Places));
    }
}
