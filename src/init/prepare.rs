//! What has to be there before services start: drivers, the box's own disk, /data, a configuration that someone brings.
//!
//! A process of its own, `init prepare`: a check of a large disk takes minutes, in which PID 1 goes on to listen and to
//! feed the watchdog, and a crash of it is something that PID 1 sees. Whatever fails, it goes on: a box with a page that
//! says what is wrong is worth more than one that stops.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::devices::Devices;
use super::log::{Level, Log};
use super::records::Kept;
use super::{disks, log, ports, sticks, storage};
use crate::slots::Booted;
use crate::supervise::disk::{CONFIG, DATA, NoDisk, Origin, STATE};
use crate::sys::uevent::Uevents;
use crate::time::Uptime;

/// The argument that makes `init` do this.
pub const ARGUMENT: &str = "prepare";
/// How long the box's own disk may take to appear: sticks behind hubs need seconds.
const DISK_LIMIT: Duration = Duration::from_secs(20);

/// Loads modules, puts the own disk's partition table right and mounts /data.
pub fn prepare() {
    log::report_panics();
    let log = Log::open();
    let command_line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let (origin, booted) = (Origin::parse(&command_line), Booted::parse(&command_line));
    // Before the first look, so that nothing is missed between a look and the wait.
    let uevents =
        Uevents::listen().inspect_err(|error| log.line(Level::Error, &format!("no word of devices: {error}"))).ok();
    let mut devices = Devices::open(&log);
    match wait_for_disk(&origin, devices.as_mut(), uevents.as_ref(), &log) {
        Ok(disk) => {
            let (configuration, lasting) = use_disk(&disk, &origin, booted.as_ref(), &log);
            sticks::take_in(Some(&disk), configuration, lasting, &log);
        }
        Err(reason) => {
            storage::use_memory(&format!("DEGRADED: no disk: {reason}"), &log);
            sticks::take_in(None, None, false, &log);
        }
    }
    if let Some(devices) = &mut devices {
        welcome(devices, &log);
        devices.ensure_watchdog();
    }
}

fn wait_for_disk(
    origin: &Origin,
    mut devices: Option<&mut Devices<'_>>,
    uevents: Option<&Uevents>,
    log: &Log,
) -> Result<PathBuf, NoDisk> {
    let end = Uptime::now() + DISK_LIMIT;
    loop {
        let loaded = devices.as_mut().map_or(0, |devices| welcome(devices, log));
        let found = disks::find(origin);
        let (Err(NoDisk::NotFound | NoDisk::OnlyCopies(_)), Some(uevents)) = (&found, uevents) else { return found };
        let left = end.since(Uptime::now());
        if left.is_zero() {
            return found;
        }
        // A driver may have shown the disk since it was looked for.
        if loaded == 0 && uevents.wait(left).is_err() {
            return found;
        }
    }
}

/// Gives the hardware that is there now its drivers, and its network ports a start; returns the number of modules.
fn welcome(devices: &mut Devices<'_>, log: &Log) -> usize {
    let loaded = devices.coldplug();
    ports::switch_on(log);
    loaded
}

/// Mounts /data; returns the partition for configurations, and whether what is written to /data lasts.
fn use_disk(disk: &Path, origin: &Origin, booted: Option<&Booted>, log: &Log) -> (Option<PathBuf>, bool) {
    log.line(Level::Info, &format!("this box's disk is {}", disk.display()));
    let partitions = match disks::repair(disk, log) {
        Ok(partitions) => partitions,
        Err(error) => {
            storage::use_memory(&format!("DEGRADED: {}: {error}", disk.display()), log);
            return (None, false);
        }
    };
    disks::name(disk, &partitions, log);
    let node = |name: &str| {
        let partition = partitions.iter().find(|partition| partition.name == name)?;
        disks::partition(disk, partition.number)
    };
    let mut kept = booted.zip(node(STATE)).and_then(|(booted, state)| Kept::open(&state, booted, log));
    // Where the wish can't be kept, it is fulfilled all the same; a power cut may then leave half.
    let reset = origin.reset || kept.as_mut().is_some_and(Kept::wants_reset);
    let lasting = match node(DATA) {
        Some(data) => {
            let lasting = storage::prepare(&data, reset, log);
            if let Some(kept) = kept.as_mut().filter(|_| reset && lasting) {
                kept.reset_done();
            }
            lasting
        }
        None => {
            storage::use_memory("DEGRADED: the disk has no data partition", log);
            false
        }
    };
    (node(CONFIG), lasting)
}
