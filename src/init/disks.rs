//! Disks and their partition tables: which are there, which is our own, its table put right.
//!
//! An edge, because it reads and writes block devices; what to write says [`crate::supervise::disk`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use super::log::{Level, Log};
use super::volume;
use crate::slots::{TRIES_AT, Try};
use crate::supervise::disk::{self, Disk, NAMES, NoDisk, Origin, Repair, STATE, Tables};
use crate::sys::block;
use crate::wire::gpt::{Header, Invalid, Partition, SECTOR, Table};

const BLOCK: &str = "/sys/class/block";

/// Looks for the box's own disk among those that are there now.
pub(super) fn find(origin: &Origin) -> Result<PathBuf, NoDisk> {
    let all: Vec<_> = names().into_iter().filter_map(|name| inspect(origin, name)).collect();
    disk::own(origin, &all).map(|name| Path::new("/dev").join(name))
}

/// Whole disks that have a size, by the kernel's names.
pub(super) fn names() -> Vec<String> {
    let entries = fs::read_dir(BLOCK).into_iter().flatten().flatten();
    let is_disk = |name: &String| {
        let directory = Path::new(BLOCK).join(name);
        let size = fs::read_to_string(directory.join("size")).unwrap_or_default();
        !directory.join("partition").exists() && size.trim().parse::<u64>().is_ok_and(|size| size > 0)
    };
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_disk).collect();
    names.sort();
    names
}

/// Every disk and partition that is not the `own` disk or on it.
pub(super) fn others(own: Option<&Path>) -> Vec<PathBuf> {
    let own = own.and_then(Path::file_name);
    let entries = fs::read_dir(BLOCK).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_other = |path: &PathBuf| {
        // A partition's directory lies in its disk's.
        let real = fs::canonicalize(path).unwrap_or_default();
        own.is_none_or(|own| real.file_name() != Some(own) && real.parent().and_then(Path::file_name) != Some(own))
    };
    let mut nodes: Vec<_> =
        entries.filter(is_other).filter_map(|path| Some(Path::new("/dev").join(path.file_name()?))).collect();
    nodes.sort();
    nodes
}

/// What a disk says of itself; `None` without a partition table.
fn inspect(origin: &Origin, name: String) -> Option<Disk> {
    let file = File::open(Path::new("/dev").join(&name)).ok()?;
    let tables = read_tables(&file).ok()?;
    let partitions = tables.valid().ok()?.partitions();
    let has_slot = partitions.iter().any(|partition| Some(partition.guid) == origin.part);
    let state = partitions.iter().find(|partition| partition.name == STATE);
    let stamp = |sector: &u64| {
        let mut octets = [0; SECTOR];
        file.read_exact_at(&mut octets, (state?.first + sector) * SECTOR as u64).ok()?;
        Try::decode(&octets).valid().map(|record| record.stamp.clone())
    };
    let stamps = TRIES_AT.iter().filter_map(stamp).collect();
    Some(Disk { name, has_slot, stamps })
}

/// Both partition tables of a disk. Faults of the disk itself are errors; tables that make no sense are not.
pub(super) fn read_tables(disk: &File) -> io::Result<Tables> {
    if block::octets_of_sector(disk)? != SECTOR {
        return Err(io::ErrorKind::Unsupported.into());
    }
    tables(disk, block::octets(disk)? / SECTOR as u64)
}

/// Both partition tables of a disk of `sectors`, or of the image of one.
pub(super) fn tables(disk: &File, sectors: u64) -> io::Result<Tables> {
    let last = sectors.checked_sub(1).ok_or(io::ErrorKind::InvalidData)?;
    let primary = read_table(disk, 1, sectors);
    // A header whose entries are damaged still knows where the other table is: on a disk that ignored the order of a
    // growth's writes, not at its end.
    let mut sector = [0; SECTOR];
    let header = disk.read_exact_at(&mut sector, SECTOR as u64).ok().and_then(|()| Header::decode(&sector, 1).ok());
    let peer = header.map_or(last, |header| header.peer).min(last);
    Ok(Tables { sectors, primary, backup: read_table(disk, peer, sectors) })
}

fn read_table(disk: &File, own: u64, sectors: u64) -> Result<Table, Invalid> {
    let read = |octets: &mut [u8], sector: u64| disk.read_exact_at(octets, sector * SECTOR as u64);
    let mut sector = [0; SECTOR];
    // What can't be read counts as what is not there: the other table may do.
    read(&mut sector, own).map_err(|_| Invalid::Short)?;
    let header = Header::decode(&sector, own)?;
    if header.entries >= sectors {
        return Err(Invalid::Places);
    }
    let mut entries = vec![0; header.table_octets()];
    read(&mut entries, header.entries).map_err(|_| Invalid::Short)?;
    Table::new(header, entries)
}

/// Puts the partition table of `path` right, and returns its partitions.
pub(super) fn repair(path: &Path, log: &Log) -> io::Result<Vec<Partition>> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let tables = read_tables(&file)?;
    let invalid = |fault: Invalid| io::Error::new(io::ErrorKind::InvalidData, fault);
    let partitions = tables.valid().map_err(invalid)?.partitions();
    match disk::repair(&tables) {
        Ok(None) => Ok(partitions),
        Ok(Some(repair)) => {
            log.line(Level::Warning, &format!("{}: {}", path.display(), repair.reasons.join("; ")));
            match write(&file, &repair, tables.sectors) {
                Ok(()) => Ok(repair.table.partitions()),
                Err(error) => {
                    volume::tell(&format!("{}: the partition table can't be repaired: {error}", path.display()), log);
                    Ok(partitions)
                }
            }
        }
        Err(fault) => {
            volume::tell(&format!("{}: partition table: {fault}; left as it is", path.display()), log);
            Ok(partitions)
        }
    }
}

/// The backup first, so that at any moment one of the two is whole; each flushed before the next is begun.
fn write(disk: &File, repair: &Repair, sectors: u64) -> io::Result<()> {
    let put = |octets: &[u8], sector: u64| {
        disk.write_all_at(octets, sector * SECTOR as u64)?;
        disk.sync_data()
    };
    let backup = repair.table.clone().backup(sectors);
    put(&backup.entries, backup.header.entries)?;
    put(&backup.header.encode(), backup.header.own)?;
    put(&repair.table.entries, repair.table.header.entries)?;
    put(&repair.table.header.encode(), repair.table.header.own)?;
    block::reread_partitions(disk)
}

/// The device node of partition `number` of the disk at `path`.
pub(super) fn partition(path: &Path, number: u32) -> Option<PathBuf> {
    let disk = Path::new(BLOCK).join(path.file_name()?);
    let of_number = |directory: &PathBuf| {
        let text = fs::read_to_string(directory.join("partition")).unwrap_or_default();
        text.trim().parse() == Ok(number)
    };
    let directories = fs::read_dir(disk).ok()?.flatten().map(|entry| entry.path());
    let found = directories.filter(|path| path.is_dir()).find(of_number)?;
    Some(Path::new("/dev").join(found.file_name()?))
}

/// Gives the partitions of the disk at `path` their names under [`NAMES`].
pub(super) fn name(path: &Path, partitions: &[Partition], log: &Log) {
    let link = |one: &Partition, node: &Path| {
        fs::create_dir_all(NAMES)?;
        symlink(node, Path::new(NAMES).join(&one.name))
    };
    for one in partitions {
        // A name is somebody's text.
        let plain =
            !one.name.is_empty() && one.name.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-');
        let Some(node) = partition(path, one.number).filter(|_| plain) else { continue };
        if let Err(error) = link(one, &node) {
            log.line(Level::Error, &format!("cannot name partition {}: {error}", one.name));
        }
    }
}
