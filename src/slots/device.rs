//! The `state` partition.
//!
//! An edge, because it writes to a block device. Which record is written is decided elsewhere; here is only in which
//! order its copies are, and that each is on the medium before the next begins.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use nix::fcntl::{OFlag, PosixFadviseAdvice, posix_fadvise};

use super::environment::SECTOR;
use super::layout::{COMMITS, TRIES_AT};
use super::record::{Commit, Records, Try};

/// Why a record is not stored.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// A sector can't be read.
    #[error("can't read sector {sector} of the state partition")]
    Read {
        /// Which.
        sector: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A sector can't be written.
    #[error("can't write sector {sector} of the state partition")]
    Write {
        /// Which.
        sector: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The medium took the write and dropped it.
    #[error("sector {sector} of the state partition does not hold what was written: the medium is at its end")]
    NotKept {
        /// Which.
        sector: u64,
    },
}

/// The sectors of a partition. Tests put a recorder here.
pub trait Sectors {
    /// Reads a sector, from the medium where that can be had.
    ///
    /// # Errors
    ///
    /// Those of the device.
    fn read(&mut self, sector: u64) -> io::Result<[u8; SECTOR]>;

    /// Writes a sector in place. It may stay in a cache until [`Sectors::flush`].
    ///
    /// # Errors
    ///
    /// Those of the device.
    fn write(&mut self, sector: u64, octets: &[u8; SECTOR]) -> io::Result<()>;

    /// Returns when all that was written is on the medium.
    ///
    /// # Errors
    ///
    /// Those of the device.
    fn flush(&mut self) -> io::Result<()>;
}

/// Reads all four records. A sector that can't be read counts as garbage, as it does for GRUB.
pub fn load(sectors: &mut impl Sectors) -> Records {
    let mut read = |sector| sectors.read(sector).unwrap_or([0; SECTOR]);
    let commits = COMMITS.map(&mut read);
    let tries = TRIES_AT.map(&mut read);
    Records::decode([&commits[0], &commits[1]], [&tries[0], &tries[1]])
}

/// Stores a commit record, first over the copy that does not stand, then over the other. `records` is what
/// [`load`] found.
///
/// # Errors
///
/// [`Fault`], when the record does not stand: the old one still does. A fault at the second copy is no error, since the
/// new one stands; the next boot's upkeep writes it again.
pub fn store_commit(sectors: &mut impl Sectors, records: &Records, commit: &Commit) -> Result<(), Fault> {
    let standing = records.commit().map_or(1, |(copy, _)| copy);
    put(sectors, COMMITS[1 - standing], &commit.encode())?;
    let _ = put(sectors, COMMITS[standing], &commit.encode());
    Ok(())
}

/// Stores a try record over both copies, first the one that does not stand.
///
/// # Errors
///
/// [`Fault`] at either copy.
pub fn store_try(sectors: &mut impl Sectors, records: &Records, record: &Try) -> Result<(), Fault> {
    let standing = records.tried().map_or(1, |(copy, _)| copy);
    put(sectors, TRIES_AT[1 - standing], &record.encode())?;
    put(sectors, TRIES_AT[standing], &record.encode())
}

fn put(sectors: &mut impl Sectors, sector: u64, octets: &[u8; SECTOR]) -> Result<(), Fault> {
    sectors.write(sector, octets).map_err(|source| Fault::Write { sector, source })?;
    sectors.flush().map_err(|source| Fault::Write { sector, source })?;
    let found = sectors.read(sector).map_err(|source| Fault::Read { sector, source })?;
    if found == *octets { Ok(()) } else { Err(Fault::NotKept { sector }) }
}

/// A block device, or a file that stands for one.
#[derive(Debug)]
pub struct Device {
    writes: File,
    /// Opened with `O_DIRECT` where that works: what it reads was on the medium.
    reads: File,
}

/// As large and aligned as any block size that `O_DIRECT` asks for.
#[repr(align(4096))]
struct Page([u8; 4096]);

impl Device {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// That it is not there, or not ours.
    pub fn open(path: &Path) -> io::Result<Self> {
        let writes = OpenOptions::new().read(true).write(true).open(path)?;
        let direct = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(path);
        // A file system in memory has no O_DIRECT, and nothing that a power cut could take either.
        let reads = direct.or_else(|_| File::open(path))?;
        Ok(Self { writes, reads })
    }
}

impl Sectors for Device {
    fn read(&mut self, sector: u64) -> io::Result<[u8; SECTOR]> {
        let at = sector * SECTOR as u64;
        let start = at - at % 4096;
        let mut page = Page([0; 4096]);
        // Only advice: without O_DIRECT the cache may still answer.
        let _ = posix_fadvise(&self.reads, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        self.reads.read_exact_at(&mut page.0, start)?;
        let within = usize::try_from(at - start).unwrap_or(0);
        let mut octets = [0; SECTOR];
        octets.copy_from_slice(&page.0[within..within + SECTOR]);
        Ok(octets)
    }

    fn write(&mut self, sector: u64, octets: &[u8; SECTOR]) -> io::Result<()> {
        self.writes.write_all_at(octets, sector * SECTOR as u64)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writes.sync_data()
    }
}
