//! The guest's disk: wiped, read back past the page cache, and marked as installed.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::lab::os::{Installation, Join, PlatformError};

/// What a fast wipe clears at either end, octets.
const MIB: u64 = 1 << 20;
/// Alignment that O_DIRECT is content with on every device.
const ALIGNMENT: usize = 4096;
/// Octets of an installation's mark, one aligned block.
const MARK: usize = ALIGNMENT;
/// First line of the mark.
const MAGIC: &str = "PILOTLIGHT-LAB-TALOS";

/// A block device, or in tests a file.
#[derive(Clone, Debug)]
pub(super) struct Disk {
    path: PathBuf,
}

impl Disk {
    /// The first disk of the machine in the order of names: virtio, SCSI or NVMe.
    pub(super) fn first() -> Option<Self> {
        let names =
            std::fs::read_dir("/sys/block").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut disks: Vec<_> =
            names.filter(|name| ["vd", "sd", "nvme"].iter().any(|kind| name.starts_with(kind))).collect();
        disks.sort();
        Some(Self { path: Path::new("/dev").join(disks.first()?) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Zeroes the disk, or its first and last MiB, and reads back what it zeroed.
    pub(super) fn wipe(&self, zeroes: bool) -> Result<(), PlatformError> {
        let failed = |source| self.failed(source);
        let mut file = OpenOptions::new().write(true).open(&self.path).map_err(failed)?;
        let size = file.seek(SeekFrom::End(0)).map_err(failed)?;
        let ranges = ranges(size, zeroes);
        let blank = vec![0; MIB as usize];
        for (start, end) in &ranges {
            file.seek(SeekFrom::Start(*start)).map_err(failed)?;
            let mut at = *start;
            while at < *end {
                let length = (end - at).min(MIB);
                file.write_all(&blank[..length as usize]).map_err(failed)?;
                at += length;
            }
        }
        file.sync_all().map_err(failed)?;
        drop(file);
        self.check_blank(&ranges)
    }

    fn check_blank(&self, ranges: &[(u64, u64)]) -> Result<(), PlatformError> {
        let failed = |source| self.failed(source);
        let mut file = self.open_direct()?;
        let mut buffer = vec![0; MIB as usize + ALIGNMENT];
        let skip = buffer.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        for (start, end) in ranges {
            // O_DIRECT reads whole blocks: the range is widened backwards, over octets that need not be zero.
            let aligned = start - start % ALIGNMENT as u64;
            file.seek(SeekFrom::Start(aligned)).map_err(failed)?;
            let mut at = aligned;
            while at < *end {
                let read = file.read(&mut buffer[skip..skip + MIB as usize]).map_err(failed)?;
                if read == 0 {
                    return Err(self.failed(std::io::ErrorKind::UnexpectedEof.into()));
                }
                let from = start.saturating_sub(at).min(read as u64) as usize;
                let to = (end - at).min(read as u64) as usize;
                if let Some(odd) = buffer[skip + from..skip + to].iter().position(|octet| *octet != 0) {
                    return Err(PlatformError::NotBlank { path: self.path.clone(), at: at + (from + odd) as u64 });
                }
                at += read as u64;
            }
        }
        Ok(())
    }

    /// A reader that asks the device; some file systems that tests use have no such thing, and are read as usual.
    fn open_direct(&self) -> Result<File, PlatformError> {
        let direct = OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECT).open(&self.path);
        direct.or_else(|_| File::open(&self.path)).map_err(|source| self.failed(source))
    }

    /// Marks the disk as one that holds Talos.
    pub(super) fn install(&self, installation: &Installation) -> Result<(), PlatformError> {
        let state = if installation.configured { "configured" } else { "maintenance" };
        let mut mark = format!("{MAGIC}\n{state}\n{}\n", installation.join.to_api_url().reveal()).into_bytes();
        mark.resize(MARK, 0);
        let written = OpenOptions::new().write(true).open(&self.path).and_then(|mut file| {
            file.write_all(&mark)?;
            file.sync_all()
        });
        written.map_err(|source| self.failed(source))
    }

    /// What the mark says; `None` without one.
    pub(super) fn installed(&self) -> Result<Option<Installation>, PlatformError> {
        let mut mark = vec![0; MARK];
        let read = File::open(&self.path).and_then(|mut file| file.read_exact(&mut mark));
        read.map_err(|source| self.failed(source))?;
        let text = String::from_utf8_lossy(&mark);
        let mut lines = text.lines();
        if lines.next() != Some(MAGIC) {
            return Ok(None);
        }
        let configured = lines.next() == Some("configured");
        let join = lines.next().and_then(|url| Join::parse(url).ok());
        Ok(join.map(|join| Installation { join, configured }))
    }

    fn failed(&self, source: std::io::Error) -> PlatformError {
        PlatformError::Disk { path: self.path.clone(), source }
    }
}

/// What a wipe clears of a disk of `size` octets: start and end of each range.
fn ranges(size: u64, zeroes: bool) -> Vec<(u64, u64)> {
    if zeroes || size <= 2 * MIB { vec![(0, size)] } else { vec![(0, MIB), (size - MIB, size)] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(octets: usize) -> (tempfile::TempDir, Disk) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, vec![0xa5; octets]).unwrap();
        (directory, Disk { path })
    }

    #[test]
    fn a_fast_wipe_clears_both_ends_and_nothing_else() {
        let (_directory, disk) = disk(5 << 20);
        disk.wipe(false).unwrap();
        let octets = std::fs::read(&disk.path).unwrap();
        assert!(octets[..1 << 20].iter().chain(&octets[4 << 20..]).all(|octet| *octet == 0));
        assert!(octets[1 << 20..4 << 20].iter().all(|octet| *octet == 0xa5));
    }

    #[test]
    fn a_wipe_with_zeroes_clears_everything_of_any_size() {
        for octets in [0, 512, 3 << 20, (3 << 20) + 512] {
            let (_directory, disk) = disk(octets);
            disk.wipe(true).unwrap();
            assert!(std::fs::read(&disk.path).unwrap().iter().all(|octet| *octet == 0), "{octets}");
        }
    }

    #[test]
    fn an_octet_that_is_not_zero_is_found() {
        let (_directory, disk) = disk(3 << 20);
        disk.wipe(true).unwrap();
        let mut octets = std::fs::read(&disk.path).unwrap();
        octets[2_500_000] = 1;
        std::fs::write(&disk.path, octets).unwrap();
        let error = disk.check_blank(&[(0, 3 << 20)]).unwrap_err();
        assert!(matches!(error, PlatformError::NotBlank { at: 2_500_000, .. }));
        assert!(disk.check_blank(&[(0, 1 << 20)]).is_ok());
    }

    #[test]
    fn an_installation_is_read_back_and_a_wipe_ends_it() {
        let (_directory, disk) = disk(3 << 20);
        assert_eq!(disk.installed().unwrap(), None);
        let join = Join::parse("grpc://10.0.0.1:1?jointoken=v2%3Aa&uniquetoken=%7B%7D").unwrap();
        assert_eq!(join.unique_token.as_ref().map(|token| token.reveal().as_str()), Some("{}"));
        let installation = Installation { join, configured: true };
        disk.install(&installation).unwrap();
        assert_eq!(disk.installed().unwrap(), Some(installation));
        disk.wipe(false).unwrap();
        assert_eq!(disk.installed().unwrap(), None);
    }
}
