//! Slots on the real disk, by the real GRUB and the real init: a trial that fails, one that does not, and a factory reset.

use std::fs;
use std::path::Path;
use std::process::Command;

use pilotlight::slots::{COMMITS, Commit, Needs, SECTOR, Slot, TRIES_AT, Try, Version, change};

use super::rack::{Bus, Firmware, Rack, Setup, image};
use super::soak;
use crate::peers;

pub const SETUP: Setup = Setup { firmware: Firmware::Bios, bus: Bus::Virtio, memory: 256 };
const B: u32 = 5;
const STATE: u32 = 3;

pub fn version(text: &str) -> Version {
    Version::parse(text).unwrap()
}

/// Writes the system into slot B, with `arguments` for its kernel besides its own.
fn fill_slot_b(rack: &Rack, arguments: &str) {
    rack.write(rack.partition(B), &slot(arguments, ""));
}

/// The content of a slot with the image's system: with `arguments` for its kernel and `flags` for its services, one a line,
/// besides its own.
pub fn slot(arguments: &str, flags: &str) -> Vec<u8> {
    let (dir, own) = (tempfile::tempdir().unwrap(), include_str!("../../../board/x86_64/arguments"));
    for file in ["vmlinuz", "initramfs"] {
        fs::copy(image().with_file_name(file), dir.path().join(file)).unwrap();
    }
    if !flags.is_empty() {
        lay_over(&dir.path().join("initramfs"), flags);
    }
    let own: Vec<_> = own.lines().filter(|line| !line.starts_with('#')).collect();
    let mut block = format!("# GRUB Environment Block\narguments={} {arguments}\n", own.join(" "));
    block.push_str(&"#".repeat(1024 - block.len()));
    fs::write(dir.path().join("arguments.env"), block).unwrap();
    let squashfs = dir.path().join("slot.squashfs");
    let mut mksquashfs = Command::new("mksquashfs");
    mksquashfs.args(["vmlinuz", "initramfs", "arguments.env"].map(|file| dir.path().join(file))).arg(&squashfs);
    mksquashfs.args(["-quiet", "-no-progress", "-all-root", "-noI", "-noD", "-noF", "-noX"]);
    assert!(mksquashfs.output().unwrap().status.success());
    fs::read(squashfs).unwrap()
}

/// Puts further flags of the services into an initramfs: the kernel unpacks one archive after the other, and the last file
/// of a name counts.
fn lay_over(initramfs: &Path, flags: &str) {
    let root = tempfile::tempdir().unwrap();
    let name = "etc/pilotlight/flags";
    fs::create_dir_all(root.path().join("etc/pilotlight")).unwrap();
    fs::write(
        root.path().join(name),
        concat!(include_str!("../../../overlay/etc/pilotlight/flags"), "\n").to_owned() + flags,
    )
    .unwrap();
    let pack = format!("echo {name} | cpio --quiet -o -H newc");
    let packed = Command::new("sh").args(["-c", &pack]).current_dir(root.path()).output().unwrap();
    assert!(packed.status.success());
    let mut whole = fs::read(initramfs).unwrap();
    // An archive begins at a multiple of four octets.
    whole.resize(whole.len().next_multiple_of(4), 0);
    whole.extend(packed.stdout);
    fs::write(initramfs, whole).unwrap();
}

fn store(rack: &Rack, commit: &Commit) {
    let tries = Try::first("0123456789abcdef".to_owned());
    for at in COMMITS {
        rack.write(rack.partition(STATE) + at * SECTOR as u64, &commit.encode());
    }
    for at in TRIES_AT {
        rack.write(rack.partition(STATE) + at * SECTOR as u64, &tries.encode());
    }
}

pub fn standing(rack: &Rack) -> Commit {
    let copies = COMMITS.map(|at| {
        let mut octets = [0; SECTOR];
        rack.read(rack.partition(STATE) + at * SECTOR as u64, &mut octets);
        Commit::decode(&octets).valid().cloned()
    });
    copies.into_iter().flatten().max_by_key(|commit| commit.sequence).expect("a record")
}

fn trial(text: &str, needs: Needs) -> Commit {
    let first = Commit::first(Some(version("0.1.0")));
    let versions = [Some(version("0.1.0")), Some(version(text))];
    Commit { sequence: 7, pending: true, mark: Some(7), peer_good: false, needs, versions, ..first }
}

/// `None` where this is not asked for, or can't be done.
pub fn rack() -> Option<Rack> {
    (soak() && peers::require("mksquashfs", "squashfs-tools")).then(Rack::new).flatten()
}

#[test]
fn a_slot_that_fails_its_trial_returns_to_the_committed_one() {
    let Some(rack) = rack() else { return };
    fill_slot_b(&rack, "pilotlight.trial=5,3");
    store(&rack, &trial("9.9.9", Needs::Omni));
    let mut machine = rack.power_on(&SETUP);
    machine.says("pilotlight: slot b, pending, try 1");
    machine.says("pilotlight: slot a, committed");
    machine.page();
    machine.page_says("Version 9.9.9 failed its trial here");
    drop(machine);
    let commit = standing(&rack);
    assert_eq!((commit.slot, commit.pending, commit.peer_good), (Slot::A, false, false));
    assert!(commit.failed.contains(&version("9.9.9")));
    assert!(matches!(
        change::pending(
            &commit,
            &pilotlight::slots::Booted::parse("pilotlight.slot=a pilotlight.why=committed").unwrap(),
            &version("9.9.9"),
            Needs::Nothing,
            false
        ),
        Err(change::Refused::FailedBefore(_))
    ));
}

#[test]
fn a_slot_that_is_well_is_committed_and_stays() {
    let Some(rack) = rack() else { return };
    fill_slot_b(&rack, "pilotlight.trial=300,3");
    store(&rack, &trial("9.9.8", Needs::Nothing));
    let mut machine = rack.power_on(&SETUP);
    machine.says("pilotlight: slot b, pending, try 1");
    machine.reaches("the record of slot B committed", || standing(&rack).slot == Slot::B);
    machine.expect_no_log("no control socket");
    drop(machine);
    let commit = standing(&rack);
    assert_eq!((commit.slot, commit.pending, commit.peer_good), (Slot::B, false, true));
    let mut machine = rack.power_on(&SETUP);
    machine.says("pilotlight: slot b, committed");
    machine.page();
}

#[test]
fn a_factory_reset_leaves_nothing_and_is_done_once() {
    let Some(rack) = rack() else { return };
    let mut machine = rack.power_on(&SETUP);
    machine.page();
    drop(machine);
    // In the middle of the data partition of 64 MiB, where no file is.
    let at = rack.data() + (40 << 20);
    rack.write(at, b"what was known");
    let commit = standing(&rack);
    store(&rack, &change::reset(&commit, true).unwrap());
    let mut machine = rack.power_on(&SETUP);
    machine.page();
    machine.expect_log("factory reset: erases the data partition");
    machine.expect_log("makes the data partition anew: factory reset");
    machine.expect_no_log("DEGRADED");
    drop(machine);
    let mut octets = [0xff; 14];
    rack.read(at, &mut octets);
    assert_eq!(octets, [0; 14]);
    assert!(!standing(&rack).reset);
    let mut machine = rack.power_on(&SETUP);
    machine.page();
    // The console offers one in other words.
    machine.expect_no_log("factory reset: erases");
    machine.expect_no_log("first boot");
}
