//! Looks at the data partition, and carries what `init prepare` found wrong with it to PID 1.
//!
//! An edge, because it asks the kernel and owns a file; what is wrong says [`crate::supervise::volume`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::sys::stat::{major, minor};
use nix::sys::statfs::{self, statfs};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::log::{Level, Log};
use super::storage::DATA;
use crate::supervise::volume::Volume;

/// Where `init prepare` writes a line for each thing that somebody should know; in memory, so that it is of this run.
const TOLD: &str = "/run/pilotlight-prepared";
/// More lines and octets than it writes.
const MOST_LINES: usize = 16;
const MOST_OCTETS: u64 = 16 * 1024;

/// The file system at /data; asks memory alone, never a disk. `None` where there is none.
pub(super) fn look() -> Option<Volume> {
    let (kind, state) = (statfs(DATA).ok()?.filesystem_type(), statvfs(DATA).ok()?);
    // The second is `RAMFS_MAGIC` of `linux/magic.h`; the initramfs itself is either.
    let in_memory = [statfs::TMPFS_MAGIC, statfs::FsType(0x8584_58f6)].contains(&kind);
    let device = fs::metadata(DATA).ok()?.dev();
    // Where it leads ends with the kernel's name of the device.
    let known = fs::canonicalize(format!("/sys/dev/block/{}:{}", major(device), minor(device)));
    Some(Volume {
        in_memory,
        // A file system without a device has none to lose.
        present: major(device) == 0 || known.is_ok(),
        read_only: state.flags().contains(FsFlags::ST_RDONLY) || known.is_ok_and(|path| has_errors(&path)),
        free: state.blocks_available().saturating_mul(state.fragment_size()),
    })
}

/// Whether the kernel found errors in the file system of a block device since it was checked at the start; mounted with
/// `errors=remount-ro`, it takes nothing more from the first one on. Newer kernels leave the flag for read-only alone then.
fn has_errors(device: &Path) -> bool {
    let Some(name) = device.file_name() else { return false };
    let count = fs::read_to_string(Path::new("/sys/fs/ext4").join(name).join("errors_count"));
    count.is_ok_and(|count| count.trim() != "0")
}

/// Says `line` in the log, and to PID 1 for the page and the console.
pub(super) fn tell(line: &str, log: &Log) {
    log.line(Level::Error, line);
    let told = OpenOptions::new().create(true).append(true).open(TOLD);
    if let Err(error) = told.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes())) {
        log.line(Level::Error, &format!("the page can't be told: {error}"));
    }
}

/// What `init prepare` told.
///
/// # Errors
///
/// The file system's, save that there is nothing.
pub(super) fn told() -> io::Result<Vec<String>> {
    let mut text = Vec::new();
    match File::open(TOLD) {
        Ok(file) => file.take(MOST_OCTETS).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    Ok(String::from_utf8_lossy(&text).lines().take(MOST_LINES).map(str::to_owned).collect())
}
