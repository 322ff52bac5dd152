//! The record of the runs on the data partition.
//!
//! An edge: it owns files. What they mean is decided in [`crate::supervise::budget`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::supervise::budget::{MAX_RECORD, Previous, Record};
use crate::supervise::mounts::INIT_STATE_DIR;
use crate::sys::mount;

const NAME: &str = "run";
/// Words that survive a reset where the kernel has a place for them (pstore); nothing reads them but people and the next run.
const PMSG: &str = "/dev/pmsg0";

/// What the run before left.
pub(super) fn recall(by_watchdog: bool) -> Previous {
    let mut octets = Vec::new();
    let read = File::open(Path::new(INIT_STATE_DIR).join(NAME))
        .and_then(|file| file.take(MAX_RECORD as u64 + 1).read_to_end(&mut octets));
    let record = read.ok().and_then(|_| Record::parse(&octets));
    Previous { record, lasting: lasting(), by_watchdog }
}

/// Whether what is written outlives a reboot: on a disk, and it can be written to.
fn lasting() -> bool {
    mount::lasts(Path::new(INIT_STATE_DIR)).unwrap_or(false) && save("probe", b"").is_ok()
}

/// Keeps `record`: the old one or the new one survives a power cut.
///
/// # Errors
///
/// The file system's.
pub(super) fn remember(record: &Record) -> io::Result<()> {
    let text = record.to_string();
    if record.end.is_some()
        && let Ok(mut pmsg) = OpenOptions::new().write(true).open(PMSG)
    {
        // A second place, which may be full or absent.
        let _ = pmsg.write_all(text.as_bytes());
    }
    save(NAME, text.as_bytes())
}

pub(super) fn save(name: &str, octets: &[u8]) -> io::Result<()> {
    let (dir, fresh) = (Path::new(INIT_STATE_DIR), Path::new(INIT_STATE_DIR).join(format!("{name}.new")));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(octets)?;
    file.sync_all()?;
    fs::rename(&fresh, dir.join(name))?;
    File::open(dir)?.sync_all()
}
