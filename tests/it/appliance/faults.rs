//! Faults are injected into the box; each ends in a working page or a rollback, with the reason on it and on the console,
//! and never in reboot after reboot.
//!
//! | fault | test | what is seen |
//! | --- | --- | --- |
//! | kill -9 of a service | `init.rs`, `init_control.rs`, `init_services.rs` | back after its pause, alone; the page: "restarted once after signal 9" (`app::peers`) |
//! | kill -STOP | `init_guard.rs`: stopped in its tracks | "hangs and is killed", starts again; the page as above |
//! | all of the machine stands still | `init_guard.rs`: a machine that stood still | the log: "the machine stood still"; nobody is killed for it |
//! | out of memory | `init_machine.rs`: memory is limited | "ended by lack of memory", starts again; the others are left alone |
//! | a critical service that stays broken | `tests/golden/init/critical.txt`, `budget.txt`, `budget_disk.txt` | three reboots in a row at most, then recovery, or the box stays up and says why |
//! | ENOSPC | here: a full data partition | the page: "the data partition is full"; no reboot |
//! | ENOSPC, EIO of a slot | `update_service.rs`: a slot that fails | the job ends with the kernel's reason; what runs stays |
//! | EIO, no write is taken from the first boot on | here: a disk that takes nothing | runs from memory; the page says so and why |
//! | EIO, no read | here: a disk that gives nothing | runs from memory, no attempt to make it anew |
//! | EIO while it runs | here: a disk that fails later | the page goes on: "the disk fails"; reboots by itself within the budget, then from memory |
//! | lock-up of PID 1 | `init_machine.rs`: the watchdog bites | reset; the next run: "ended without a word" |
//! | broken update | `update_service.rs`, `appliance/trial.rs` | refused by name; one that fails its trial gives way, and the page names it |
//! | update torn by a power cut | `update.rs`, `cuts` | does not load; on a disk that lies about flushes at most three tries, then the committed slot |
//! | wrong network settings | `net/trial.rs` | return by themselves after a minute; the console counts down |
//! | clock at 1970, at 2069, and at 2099, which Linux reads as 1999 | here: clocks | the page, and "clock showed"; no certificate is needed for the page |
//! | pulled stick | here: a stick that is pulled | the page goes on from memory: "the disk is gone"; no reboot |

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::Command;

use super::rack::{Bus, Firmware, Machine, Rack, Setup};
use super::soak;
use crate::cuts::disk::Pages;
use crate::cuts::nbd::Server;
use crate::peers;

const SETUP: Setup = Setup { firmware: Firmware::Bios, bus: Bus::Virtio, memory: 256 };

/// Runs in a row that may end by themselves, and the one that then goes on.
const MOST_BOOTS: usize = pilotlight::supervise::budget::MOST_IN_A_ROW as usize + 1;

/// The page is there, says `reason`, and so does the console; the box does not start again and again.
fn is_told(machine: &mut Machine, reason: &str) {
    machine.page_says(reason);
    machine.says(reason);
    assert!(machine.boots() <= MOST_BOOTS, "{}", machine.log());
    peers::say(&format!("fault: the page says {reason:?}"));
}

/// A rack whose disk fails when it is told to.
fn failing() -> Option<(Rack, Server)> {
    let rack = Rack::new()?;
    let server = Server::start(rack.directory(), rack.octets());
    server.insert(&Pages::of_file(&rack.disk()));
    Some((rack, server))
}

#[test]
fn a_disk_that_takes_nothing_leaves_a_page_that_says_so() {
    let Some((rack, server)) = failing() else { return };
    server.fail(rack.data(), false);
    let mut machine = rack.power_on_from(&SETUP, &server.socket);
    machine.page();
    is_told(&mut machine, "DEGRADED: no file system can be made on the data partition");
    machine.page_says("/data lies in memory");
}

#[test]
fn a_disk_that_gives_nothing_leaves_a_page_that_says_so() {
    let Some((rack, server)) = soak().then(failing).flatten() else { return };
    server.fail(rack.data(), true);
    let mut machine = rack.power_on_from(&SETUP, &server.socket);
    machine.page();
    is_told(&mut machine, "DEGRADED: the data partition can't be read");
    machine.expect_no_log("makes the data partition anew");
}

#[test]
fn a_disk_that_fails_later_takes_the_page_not_with_it() {
    let Some((rack, server)) = soak().then(failing).flatten() else { return };
    let mut machine = rack.power_on_from(&SETUP, &server.socket);
    machine.page();
    server.fail(rack.data(), false);
    is_told(&mut machine, "the disk fails: the data partition takes no more writes");
}

#[test]
fn a_full_data_partition_is_named() {
    let Some(rack) = (soak() && peers::require("mke2fs", "e2fsprogs")).then(Rack::new).flatten() else { return };
    let (dir, at) = (tempfile::tempdir().unwrap(), rack.data());
    let (content, made) = (dir.path().join("content"), dir.path().join("made"));
    fs::create_dir(&content).unwrap();
    // 64 MiB less what the file system needs for itself, found by making it.
    let mut fits = false;
    for kib in (50_000..61_000).rev().step_by(200) {
        fs::write(content.join("filler"), vec![0x5a; kib << 10]).unwrap();
        fs::File::create(&made).unwrap().set_len(64 << 20).unwrap();
        let mut mke2fs = Command::new("mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "1", "-d"]).arg(&content).arg(&made);
        fits = mke2fs.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").output().unwrap().status.success();
        if fits {
            break;
        }
    }
    assert!(fits, "no filler fits");
    rack.write(at, &fs::read(made).unwrap());
    let mut machine = rack.power_on(&SETUP);
    machine.page();
    is_told(&mut machine, "the data partition is full");
}

#[test]
fn clocks_of_1970_and_2099_keep_nobody_from_the_page() {
    if !soak() {
        return;
    }
    for (base, shown) in [
        ("1970-01-01T00:00:12", "clock showed 1970-01-01"),
        // The latest that Linux takes from a PC's clock: after it comes 1970 (`mc146818_get_time`).
        ("2069-12-31T00:00:00", "clock showed 2069-12-31"),
        // So this is what it makes of 2099. QEMU itself, whose offset has 31 bits, gives 2099 as 1962.
        ("1999-01-01T00:00:00", "clock showed 1999-01-01"),
    ] {
        let Some(rack) = Rack::new() else { return };
        let mut machine = rack.power_on_with(&SETUP, &["-rtc", &format!("base={base}")]);
        machine.page();
        machine.says(shown);
        assert_eq!(machine.boots(), 1, "{}", machine.log());
        peers::say(&format!("fault: {shown}; the page is there"));
    }
}

#[test]
fn a_stick_that_is_pulled_takes_the_page_not_with_it() {
    let Some(rack) = soak().then(Rack::new).flatten() else { return };
    let socket = rack.directory().join("qmp");
    let qmp = format!("unix:{},server=on,wait=off", socket.display());
    let setup = Setup { bus: Bus::Usb, ..SETUP };
    let mut machine = rack.power_on_with(&setup, &["-qmp", &qmp]);
    machine.page();
    let mut monitor = UnixStream::connect(socket).unwrap();
    monitor
        .write_all(b"{\"execute\":\"qmp_capabilities\"}{\"execute\":\"device_del\",\"arguments\":{\"id\":\"stick\"}}")
        .unwrap();
    let mut lines = BufReader::new(monitor).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("DEVICE_DELETED")), "the stick is still there");
    is_told(&mut machine, "the disk is gone, pulled out or dead");
}
