//! Copies an image to a disk and reads back what the disk holds.
//!
//! An edge, because it reads and writes; it decides nothing but whether both are the same.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use sha2::{Digest, Sha256};

use crate::sys::block;

/// Octets of a step.
const STEP: usize = 1 << 20;

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

/// Copies `octets` of `image` to the beginning of `disk`, has them written out, and reads them back from the disk itself.
/// `tell` is told after each MiB.
///
/// The first MiB is erased first and written last: a disk whose copy was cut short has no partition table and is booted by
/// nobody.
///
/// # Errors
///
/// [`Fault`].
pub fn write(
    image: &mut (impl Read + Seek),
    octets: u64,
    disk: &mut File,
    mut tell: impl FnMut(Progress),
) -> Result<(), Fault> {
    let mut buffer = vec![0; STEP];
    let steps: Vec<u64> = (0..octets).step_by(STEP).collect();
    let mut sums = vec![[0; 32]; steps.len()];
    let mut done = 0;
    disk.seek(SeekFrom::Start(0))
        .and_then(|_| disk.write_all(part(&mut buffer, octets, 0)))
        .and_then(|()| disk.sync_data())
        .map_err(|source| Fault::Write { at: 0, source })?;
    for (index, at) in steps.iter().enumerate().skip(1).chain(steps.iter().enumerate().take(1)) {
        let part = part(&mut buffer, octets, *at);
        image
            .seek(SeekFrom::Start(*at))
            .and_then(|_| image.read_exact(part))
            .map_err(|source| Fault::Image { at: *at, source })?;
        sums[index] = Sha256::digest(&*part).into();
        if index == 0 {
            // All else is on the disk before it becomes one that boots.
            disk.sync_data().map_err(|source| Fault::Write { at: *at, source })?;
        }
        disk.seek(SeekFrom::Start(*at))
            .and_then(|_| disk.write_all(part))
            .map_err(|source| Fault::Write { at: *at, source })?;
        done += part.len() as u64;
        tell(Progress { stage: Stage::Writing, done });
    }
    disk.sync_all().map_err(|source| Fault::Write { at: octets, source })?;
    // A plain file has no cache of its own to forget.
    let _ = block::drop_cache(disk);
    done = 0;
    for (at, sum) in steps.iter().zip(&sums) {
        let part = part(&mut buffer, octets, *at);
        disk.seek(SeekFrom::Start(*at))
            .and_then(|_| disk.read_exact(part))
            .map_err(|source| Fault::Read { at: *at, source })?;
        if *sum != <[u8; 32]>::from(Sha256::digest(&*part)) {
            return Err(Fault::Differs);
        }
        done += part.len() as u64;
        tell(Progress { stage: Stage::Verifying, done });
    }
    // The kernel shows the new partitions; without that, they are there after the next plug.
    let _ = block::reread_partitions(disk);
    Ok(())
}

/// As much of `buffer` as the step at `at` has.
fn part(buffer: &mut [u8], octets: u64, at: u64) -> &mut [u8] {
    let length = usize::try_from(octets - at).unwrap_or(STEP).min(STEP);
    &mut buffer[..length]
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    fn image(octets: usize) -> Vec<u8> {
        (0..octets).map(|at| (at * 7 + at / 1000) as u8).collect()
    }

    #[test]
    fn what_is_written_is_the_image_and_the_rest_stays() {
        for octets in [1, STEP - 1, STEP, STEP + 1, 3 * STEP + 512] {
            let mut disk = tempfile::tempfile().unwrap();
            disk.write_all(&vec![0xee; 4 * STEP]).unwrap();
            let image = image(octets);
            let mut told = Vec::new();
            write(&mut Cursor::new(&image), octets as u64, &mut disk, |progress| told.push(progress)).unwrap();
            let mut found = Vec::new();
            disk.seek(SeekFrom::Start(0)).unwrap();
            disk.read_to_end(&mut found).unwrap();
            assert!(found[..octets] == image && found[octets..].iter().all(|octet| *octet == 0xee));
            assert_eq!(told.last(), Some(&Progress { stage: Stage::Verifying, done: octets as u64 }));
        }
    }

    #[test]
    fn an_image_that_ends_early_leaves_no_disk_that_boots() {
        let mut disk = tempfile::tempfile().unwrap();
        disk.write_all(&vec![0xee; 4 * STEP]).unwrap();
        let short = Cursor::new(image(2 * STEP));
        let fault = write(&mut { short }, 3 * STEP as u64, &mut disk, |_| {}).unwrap_err();
        assert!(matches!(fault, Fault::Image { at, .. } if at == 2 * STEP as u64), "{fault}");
        let mut first = vec![1; STEP];
        disk.seek(SeekFrom::Start(0)).unwrap();
        disk.read_exact(&mut first).unwrap();
        assert!(first.iter().all(|octet| *octet == 0));
    }
}
