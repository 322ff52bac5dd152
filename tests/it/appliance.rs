//! The image in QEMU, from power-on to its web page, on what it may meet: both firmwares, four buses, grown disks, copies
//! of its own disk, damaged partition tables and file systems, little memory.
//!
//! The image is the one that `just image-dev` made last; without one the tests say so.

mod faults;
mod idle;
mod install;
mod meter;
pub mod rack;
mod second;
mod trial;
mod update;

use std::fs::OpenOptions;

use crate::peers;
use rack::{Bus, Firmware, Rack, Setup};

const MIB: u64 = 1 << 20;

fn soak() -> bool {
    std::env::var_os("PILOTLIGHT_SOAK").is_some_and(|value| value == "1")
}

fn boots(setup: &Setup) {
    let Some(rack) = Rack::new() else { return };
    let mut machine = rack.power_on(setup);
    let after = machine.page();
    peers::say(&format!("appliance: {setup}: page after {:.1} s", after.as_secs_f64()));
    meter::slot();
    machine.expect_log("first boot");
    machine.expect_no_log("DEGRADED");
}

#[test]
fn bios_reaches_the_page() {
    boots(&Setup { firmware: Firmware::Bios, bus: Bus::Virtio, memory: 256 });
}

#[test]
fn uefi_reaches_the_page() {
    boots(&Setup { firmware: Firmware::Uefi, bus: Bus::Nvme, memory: 256 });
}

#[test]
fn network_ports_are_on_before_the_disk_is_looked_for() {
    let Some(rack) = Rack::new() else { return };
    rack.talk();
    let mut machine = rack.power_on(&Setup { firmware: Firmware::Bios, bus: Bus::Virtio, memory: 256 });
    machine.says("pilotlight-init: this box's disk is");
    // The kernel's word for a port that goes on and filters VLANs itself.
    machine.expect_log("adding VLAN 0 to HW filter on device eth0");
}

#[test]
fn every_firmware_reaches_the_page_from_every_bus() {
    if !soak() {
        return;
    }
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        for bus in [Bus::Virtio, Bus::Usb, Bus::Ahci, Bus::Nvme] {
            for memory in [256, 512] {
                boots(&Setup { firmware, bus, memory });
            }
        }
    }
}

#[test]
fn data_outlive_the_power_and_grow_with_the_disk() {
    if !soak() {
        return;
    }
    let Some(rack) = Rack::new() else { return };
    let setup = Setup { firmware: Firmware::Bios, bus: Bus::Ahci, memory: 256 };
    let mut machine = rack.power_on(&setup);
    machine.page();
    machine.expect_log("first boot");
    drop(machine);
    // The second boot finds what the first one made, though its power was cut.
    let mut machine = rack.power_on(&setup);
    machine.page();
    for fault in ["first boot", "data lost", "DEGRADED", "partition table"] {
        machine.expect_no_log(fault);
    }
    drop(machine);
    OpenOptions::new().write(true).open(rack.disk()).unwrap().set_len(1024 * MIB).unwrap();
    let mut machine = rack.power_on(&setup);
    machine.page();
    machine.expect_log("backup partition table not at the disk's end; data partition grows by");
    machine.expect_log("the data partition grew from");
    drop(machine);
    rack.verify_partitions();
}

#[test]
fn a_copy_of_the_disk_is_never_touched() {
    if !soak() {
        return;
    }
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        for copy_comes_first in [false, true] {
            let Some(rack) = Rack::new() else { return };
            let setup = Setup { firmware, bus: Bus::Virtio, memory: 512 };
            // A copy that has booted: blank data would be the same on both.
            let mut machine = rack.power_on(&setup);
            machine.page();
            drop(machine);
            let copy = rack.copy_disk();
            let before = std::fs::read(&copy).unwrap();
            let mut machine = rack.power_on_beside(&setup, &copy, copy_comes_first);
            machine.page();
            machine.expect_no_log("DEGRADED");
            drop(machine);
            assert!(std::fs::read(&copy).unwrap() == before, "the copy was written to");
        }
    }
}

/// What is done to the disk, by which firmware it is booted then, and what the box has to say about it.
type Damage = (&'static str, Firmware, fn(&Rack), Option<&'static str>);

#[test]
fn a_damaged_disk_still_gives_a_page() {
    if !soak() {
        return;
    }
    let damages: [Damage; 5] = [
        // BIOS does not find a disk without its primary table, and UEFI mends it before anyone else sees it.
        ("primary GPT header zeroed", Firmware::Uefi, |rack| rack.overwrite(512, 512, 0), None),
        (
            "backup GPT header zeroed",
            Firmware::Bios,
            |rack| rack.overwrite(rack.octets() - 512, 512, 0),
            Some("backup partition table: no partition table"),
        ),
        (
            "superblock zeroed",
            Firmware::Bios,
            |rack| rack.overwrite(rack.data() + 1024, 1024, 0),
            Some("checks the data partition"),
        ),
        (
            "first 4 MiB of data random",
            Firmware::Uefi,
            |rack| rack.overwrite(rack.data(), 4 * MIB, 0x5a),
            Some("checks the data partition"),
        ),
        ("all of data random", Firmware::Uefi, |rack| rack.overwrite(rack.data(), 64 * MIB, 0x5a), Some("data lost")),
    ];
    for (what, firmware, damage, said) in damages {
        let Some(rack) = Rack::new() else { return };
        let setup = Setup { firmware, bus: Bus::Virtio, memory: 512 };
        let mut machine = rack.power_on(&setup);
        machine.page();
        drop(machine);
        damage(&rack);
        let mut machine = rack.power_on(&setup);
        let after = machine.page();
        peers::say(&format!("appliance: {what}: page after {:.1} s", after.as_secs_f64()));
        said.inspect(|said| machine.expect_log(said));
        machine.expect_no_log("DEGRADED");
        drop(machine);
        rack.verify_partitions();
    }
}
