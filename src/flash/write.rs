//! Copies an image to a disk and reads back what the disk holds.
//!
//! An edge, because it reads and writes; it decides nothing but whether both are the same.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use sha2::{Digest, Sha256};

use crate::sys::block;

/// Octets of a step.
const STEP: usize = 1 << 20;
/// Octets after which the disk is waited for.
const PACE: u64 = 16 << 20;
/// Octets at the end of a disk that hold the header of a backup partition table, whatever the size of its sectors.
const BACKUP: u64 = 4096;

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The image is copied.
    Writing,
    /// The disk is read.
    Verifying,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Writing => "writing",
            Self::Verifying => "verifying",
        })
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Octets of it.
    pub done: u64,
}

/// Why a disk does not hold the image now.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The image ended early or can't be read.
    #[error("the image can't be read at octet {at}")]
    Image {
        /// Where.
        at: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The disk does not take it.
    #[error("the disk can't be written at octet {at}")]
    Write {
        /// Where.
        at: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The disk does not give it back.
    #[error("the disk can't be read at octet {at}")]
    Read {
        /// Where.
        at: u64,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The disk gives something else.
    #[error("the disk does not hold what was written to it: it is broken, or not as large as it says")]
    Differs,
}

/// Copies the `ranges` of `image` to the same places of `disk`, has them written out, and reads them back from the disk
/// itself. The ranges are in order; the first begins at 0. `tell` is told after each MiB.
///
/// Until all but tables is on the disk and was read back, the disk is one that nobody boots: its first MiB and its last
/// sectors, where the backup of a partition table stands, are erased first. What further ranges hold comes after the first
/// range, and the first MiB last. A disk that gives back something else has its first MiB erased again.
///
/// # Errors
///
/// [`Fault`].
pub fn write(
    image: &mut (impl Read + Seek),
    ranges: &[Range<u64>],
    disk: &mut File,
    mut tell: impl FnMut(Progress),
) -> Result<(), Fault> {
    let steps = |range: &Range<u64>| {
        let end = range.end;
        range.clone().step_by(STEP).map(move |at| at..end.min(at + STEP as u64)).collect::<Vec<_>>()
    };
    let mut body = ranges.first().map(steps).unwrap_or_default();
    let first = if body.is_empty() { Vec::new() } else { body.drain(..1).collect() };
    let tables: Vec<_> = ranges.iter().skip(1).flat_map(steps).chain(first.iter().cloned()).collect();
    forget_tables(disk)?;
    let (mut written, mut verified) = (0, 0);
    for part in [body, tables] {
        let mut sums = Vec::with_capacity(part.len());
        for step in &part {
            sums.push(copy(image, disk, step)?);
            written += step.end - step.start;
            tell(Progress { stage: Stage::Writing, done: written });
        }
        disk.sync_all().map_err(|source| Fault::Write { at: written, source })?;
        // A plain file has no cache of its own to forget.
        let _ = block::drop_cache(disk);
        for (step, sum) in part.iter().zip(&sums) {
            if let Err(fault) = verify(disk, step, sum) {
                // It is broken: that this is done, too, can only be hoped.
                let _ = forget_tables(disk);
                return Err(fault);
            }
            verified += step.end - step.start;
            tell(Progress { stage: Stage::Verifying, done: verified });
        }
    }
    // The kernel shows the new partitions; without that, they are there after the next plug.
    let _ = block::reread_partitions(disk);
    Ok(())
}

/// Erases what makes a disk one that has partitions or boots: its first MiB, and the backup of a partition table.
fn forget_tables(disk: &mut File) -> Result<(), Fault> {
    let size = disk.seek(SeekFrom::End(0)).map_err(|source| Fault::Read { at: 0, source })?;
    for (at, octets) in [(0, STEP as u64), (size.saturating_sub(BACKUP), BACKUP)] {
        let blank = vec![0; usize::try_from(octets.min(size - at)).unwrap_or(0)];
        disk.seek(SeekFrom::Start(at))
            .and_then(|_| disk.write_all(&blank))
            .and_then(|()| disk.sync_data())
            .map_err(|source| Fault::Write { at, source })?;
    }
    Ok(())
}

/// Copies one step, and returns the hash of it.
fn copy(image: &mut (impl Read + Seek), disk: &mut File, step: &Range<u64>) -> Result<[u8; 32], Fault> {
    let at = step.start;
    let mut octets = buffer(step);
    image
        .seek(SeekFrom::Start(at))
        .and_then(|_| image.read_exact(&mut octets))
        .map_err(|source| Fault::Image { at, source })?;
    disk.seek(SeekFrom::Start(at))
        .and_then(|_| disk.write_all(&octets))
        .map_err(|source| Fault::Write { at, source })?;
    if at / PACE != step.end / PACE {
        // A small box has no memory for a disk that is slower than what is read from.
        disk.sync_data().map_err(|source| Fault::Write { at, source })?;
    }
    Ok(Sha256::digest(&octets).into())
}

fn verify(disk: &mut File, step: &Range<u64>, sum: &[u8; 32]) -> Result<(), Fault> {
    let at = step.start;
    let mut octets = buffer(step);
    disk.seek(SeekFrom::Start(at))
        .and_then(|_| disk.read_exact(&mut octets))
        .map_err(|source| Fault::Read { at, source })?;
    if *sum == <[u8; 32]>::from(Sha256::digest(&octets)) { Ok(()) } else { Err(Fault::Differs) }
}

/// As many octets as a step has, a MiB at most.
fn buffer(step: &Range<u64>) -> Vec<u8> {
    vec![0; usize::try_from(step.end - step.start).unwrap_or(STEP).min(STEP)]
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn image(octets: usize) -> Vec<u8> {
        (0..octets).map(|at| (at * 7 + at / 1000) as u8).collect()
    }

    #[test]
    fn what_is_written_is_the_image_and_the_rest_stays_but_for_old_tables() {
        for octets in [1, STEP - 1, STEP, STEP + 1, 3 * STEP + 512] {
            let mut disk = tempfile::tempfile().unwrap();
            disk.write_all(&vec![0xee; 4 * STEP]).unwrap();
            let image = image(octets);
            let mut told = Vec::new();
            let whole = 0..octets as u64;
            write(&mut Cursor::new(&image), &[whole], &mut disk, |progress| told.push(progress)).unwrap();
            let mut found = Vec::new();
            disk.seek(SeekFrom::Start(0)).unwrap();
            disk.read_to_end(&mut found).unwrap();
            let backup = found.len() - BACKUP as usize;
            assert!(found[..octets] == image && found[octets.max(STEP)..backup].iter().all(|octet| *octet == 0xee));
            assert!(found[backup..].iter().all(|octet| *octet == 0), "an old table's backup");
            assert_eq!(told.last(), Some(&Progress { stage: Stage::Verifying, done: octets as u64 }));
        }
    }

    #[test]
    fn an_image_that_ends_early_leaves_no_disk_that_boots() {
        let mut disk = tempfile::tempfile().unwrap();
        disk.write_all(&vec![0xee; 4 * STEP]).unwrap();
        let short = Cursor::new(image(2 * STEP));
        let whole = 0..3 * STEP as u64;
        let fault = write(&mut { short }, &[whole], &mut disk, |_| {}).unwrap_err();
        assert!(matches!(fault, Fault::Image { at, .. } if at == 2 * STEP as u64), "{fault}");
        let mut first = vec![1; STEP];
        disk.seek(SeekFrom::Start(0)).unwrap();
        disk.read_exact(&mut first).unwrap();
        assert!(first.iter().all(|octet| *octet == 0));
    }

    #[test]
    fn further_ranges_are_written_and_the_first_mib_comes_last() {
        let mut disk = tempfile::tempfile().unwrap();
        disk.write_all(&vec![0xee; 5 * STEP]).unwrap();
        let seen = disk.try_clone().unwrap();
        let image = image(5 * STEP);
        let first = |octet: u8| {
            let mut octets = vec![1; STEP];
            std::os::unix::fs::FileExt::read_exact_at(&seen, &mut octets, 0).unwrap();
            octets.iter().all(|found| *found == octet)
        };
        let end = 5 * STEP as u64;
        let ranges = [0..3 * STEP as u64, end - 1000..end];
        let mut verified = 0;
        write(&mut Cursor::new(&image), &ranges, &mut disk, |progress| {
            verified = if progress.stage == Stage::Verifying { progress.done } else { verified };
            // Of three MiB and a tail, two MiB come before anything is there that a firmware looks at.
            assert!(verified >= 2 * STEP as u64 || first(0), "{progress:?}");
        })
        .unwrap();
        let mut found = vec![0; 5 * STEP];
        std::os::unix::fs::FileExt::read_exact_at(&disk, &mut found, 0).unwrap();
        assert!(found[..3 * STEP] == image[..3 * STEP] && found[5 * STEP - 1000..] == image[5 * STEP - 1000..]);
        assert_eq!(verified, 3 * STEP as u64 + 1000);
    }
}
