use std::os::unix::fs::FileExt;

use super::*;
use crate::supervise::disk;
use crate::supervise::install::Disk;
use crate::supervise::install::layout::tests::table;

const MIB: u64 = 1 << 20;

/// A file for a disk with the image's partitions, each full of octets of its own.
fn own_disk() -> (File, Table) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(20 * MIB).unwrap();
    let table = table(20 * MIB / 512, 1);
    let backup = table.clone().backup(20 * MIB / 512);
    let mut sector = [0xb0; SECTOR];
    sector[446 + 4] = 0xee;
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    file.write_all_at(&sector, 0).unwrap();
    file.write_all_at(&table.header.encode(), 512).unwrap();
    file.write_all_at(&table.entries, 1024).unwrap();
    file.write_all_at(&backup.entries, backup.header.entries * 512).unwrap();
    file.write_all_at(&backup.header.encode(), backup.header.own * 512).unwrap();
    for partition in table.partitions() {
        let octets = vec![b'a' + partition.number as u8; ((partition.last - partition.first + 1) * 512) as usize];
        file.write_all_at(&octets, partition.first * 512).unwrap();
    }
    (file, table)
}

/// A file for another disk, on which somebody had something, whose tables are copies of the own disk's.
fn other_disk(octets: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(&vec![0xee; octets as usize], 0).unwrap();
    let table = table(octets / 512, 1).backup(octets / 512);
    file.write_all_at(&table.entries, table.header.entries * 512).unwrap();
    file.write_all_at(&table.header.encode(), table.header.own * 512).unwrap();
    file
}

fn origin(table: &Table) -> Origin {
    Origin { part: Some(table.partitions()[4].guid), stamp: None, reset: false }
}

fn planned(source: &mut File, octets: u64) -> Layout {
    let tables = disks::tables(source, 20 * MIB / 512).unwrap();
    let table = tables.valid().unwrap().clone();
    plan(source, &table, &origin(&table), octets / 512).unwrap()
}

fn read(file: &File, at: u64, octets: u64) -> Vec<u8> {
    let mut found = vec![0; octets as usize];
    file.read_exact_at(&mut found, at).unwrap();
    found
}

#[test]
fn a_copy_holds_what_runs_and_nothing_of_what_was_there() {
    let (mut source, table) = own_disk();
    let octets = 120 * MIB + 512;
    let mut target = other_disk(octets);
    let layout = planned(&mut source, octets);
    let mut told = Vec::new();
    copy(source, &layout, &mut target, |progress| told.push(progress)).unwrap();
    let last = told.last().unwrap();
    assert_eq!((last.percent(), last.written, last.verified), (100, last.total, last.total));
    assert!(told.windows(2).all(|pair| pair[0].percent() < pair[1].percent()) && told.len() > 10);
    let tables = disks::tables(&target, octets / 512).unwrap();
    assert_eq!(disk::repair(&tables), Ok(None), "init has nothing to repair or grow");
    for partition in tables.valid().unwrap().partitions() {
        let content = read(&target, partition.first * 512, 1000);
        let wanted = match partition.name.as_str() {
            // The fifth, slot-b, runs.
            "slot-a" | "slot-b" => Some(5),
            "state" | "data" => None,
            _ => Some(partition.number as u8),
        };
        if let Some(number) = wanted {
            assert!(content.iter().all(|octet| *octet == b'a' + number), "{}", partition.name);
        }
    }
    let data = table.partitions()[7].first * 512;
    assert_eq!(
        crate::supervise::storage::Content::of(&read(&target, data, crate::supervise::storage::LOOKED_AT as u64)),
        crate::supervise::storage::Content::Blank,
        "its first boot makes the data partition anew"
    );
}

#[test]
fn an_installation_that_is_cut_short_at_any_step_leaves_no_disk_that_boots() {
    let octets = 120 * MIB;
    let (mut source, _) = own_disk();
    let layout = planned(&mut source, octets);
    let data = 15 * MIB;
    // The own disk ends earlier and earlier, which stops the copy at each MiB in turn.
    for end in (1..15).rev() {
        let (source, _) = own_disk();
        source.set_len(end * MIB + 1).unwrap();
        let mut target = other_disk(octets);
        let failed = copy(source, &layout, &mut target, |_| {});
        assert!(matches!(failed, Err(NotDone::Fault { fault: Fault::Image { .. } })), "{end} MiB: {failed:?}");
        let tables = disks::tables(&target, octets / 512).unwrap();
        assert!(tables.valid().is_err(), "{end} MiB: neither table stands, also no older one");
        assert!(read(&target, 0, 512).iter().all(|octet| *octet == 0), "{end} MiB: BIOS finds no code");
        assert!(read(&target, data + 2 * MIB, 512).iter().all(|octet| *octet == 0xee), "not all is overwritten");
    }
}

#[test]
fn a_disk_that_keeps_nothing_is_no_success() {
    // It takes every write and drops it.
    let (mut source, _) = own_disk();
    let layout = planned(&mut source, 120 * MIB);
    let mut sink = File::options().read(true).write(true).open("/dev/zero").unwrap();
    let failed = copy(source, &layout, &mut sink, |_| {});
    assert!(matches!(failed, Err(NotDone::Fault { .. })), "{failed:?}");
}

#[test]
fn what_is_told_fits_into_what_is_heard() {
    let text = || "x".repeat(crate::supervise::install::LONGEST);
    let disk = Disk {
        name: "nvme0n1".into(),
        model: text(),
        bus: crate::supervise::install::Bus::Usb,
        octets: u64::MAX,
        holds: text() + &text() + &text() + &text(),
        unfit: Some("y".repeat(400)),
    };
    assert!(control::encode(&Told::Disks(vec![disk; crate::supervise::install::MOST])).len() < 16 << 10);
}
