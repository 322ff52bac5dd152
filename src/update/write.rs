//! Writes an image into a slot.
//!
//! An edge, because it writes to a block device.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::manifest::{Hash, Manifest};
use crate::slots::SECTOR;

/// How often chunks that do not read back right are written.
const PASSES: u32 = 3;

/// The octets that are erased first: more than any file system's superblock that GRUB looks for at the start.
const HEAD: usize = 4096;

/// Why an image is not in the slot. The slot does not load then, and nothing else was touched.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// The image can't be fetched; what arrived stays and is not fetched again.
    #[error("the image can't be read at octet {at}; asking again goes on from there")]
    Source {
        /// Where.
        at: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The image ends early.
    #[error("the image is truncated at octet {at}")]
    Truncated {
        /// Where the chunk begins that is not whole.
        at: u64,
    },
    /// A chunk is not the one that was signed. It was not written.
    #[error("the image was tampered with: the chunk at octet {at} is not the one that was signed")]
    Tampered {
        /// Where.
        at: u64,
    },
    /// The slot is smaller than the image.
    #[error("the slot has {slot} octets, the image {size}")]
    TooLarge {
        /// The image's octets.
        size: u64,
        /// The slot's octets.
        slot: u64,
    },
    /// The slot's device fails.
    #[error("can't {doing} the slot at octet {at}")]
    Device {
        /// `read`, `write` or `flush`.
        doing: &'static str,
        /// Where.
        at: u64,
        /// Why: `StorageFull`, an input/output error, the end of a short device.
        #[source]
        source: io::Error,
    },
    /// What was written does not read back, three times.
    #[error("the slot does not keep what is written at octet {at}: the medium is at its end")]
    NotKept {
        /// Where.
        at: u64,
    },
}

/// The slot that is written. Tests put a recorder here.
pub trait Blocks {
    /// Its octets.
    ///
    /// # Errors
    ///
    /// Those of the device.
    fn size(&mut self) -> io::Result<u64>;

    /// Fills `octets` from the medium.
    ///
    /// # Errors
    ///
    /// Those of the device; [`io::ErrorKind::UnexpectedEof`] beyond its end.
    fn read(&mut self, at: u64, octets: &mut [u8]) -> io::Result<()>;

    /// Writes; it may stay in a cache until [`Blocks::flush`].
    ///
    /// # Errors
    ///
    /// Those of the device.
    fn write(&mut self, at: u64, octets: &[u8]) -> io::Result<()>;

    /// Returns when all that was written is on the medium, and what is read next comes from there.
    ///
    /// # Errors
    ///
    /// Those of the device.
    fn flush(&mut self) -> io::Result<()>;
}

/// Where an image comes from.
pub trait Source {
    /// Reads on from octet `at` of the image, which is where a chunk begins.
    ///
    /// # Errors
    ///
    /// Those of the network or the stick.
    fn open(&mut self, at: u64) -> io::Result<Box<dyn Read + '_>>;
}

/// Writes the image of a manifest that was checked into `slot`, and returns when it read back right.
///
/// `progress` is told how many octets of the image the slot holds, after each chunk.
///
/// # Errors
///
/// [`Failed`]. Calling it again goes on where it ended.
pub fn write(
    manifest: &Manifest,
    source: &mut impl Source,
    slot: &mut impl Blocks,
    progress: &mut dyn FnMut(u64),
) -> Result<(), Failed> {
    let size = slot.size().map_err(|source| Failed::Device { doing: "measure", at: 0, source })?;
    if size < manifest.size {
        return Err(Failed::TooLarge { size: manifest.size, slot: size });
    }
    let mut missing = Vec::new();
    for pass in 0..=PASSES {
        missing = absent(manifest, slot)?;
        match missing.first() {
            None => {
                progress(manifest.size);
                return Ok(());
            }
            Some(_) if pass == PASSES => break,
            Some(_) => {}
        }
        erase_head(manifest, slot)?;
        let mut report = |left: &[usize]| progress(manifest.held_without(left));
        report(&missing);
        let body: Vec<_> = missing.iter().copied().filter(|index| *index != 0).collect();
        fetch(manifest, &body, source, slot, &mut |left| report(&[&[0], left].concat()))?;
        // The head comes last: until then the slot does not load.
        if absent(manifest, slot)? == [0] {
            fetch(manifest, &[0], source, slot, &mut report)?;
        }
    }
    Err(Failed::NotKept { at: missing.first().map_or(0, |index| manifest.place(*index).0) })
}

/// The chunks that the slot does not hold.
fn absent(manifest: &Manifest, slot: &mut impl Blocks) -> Result<Vec<usize>, Failed> {
    let mut missing = Vec::new();
    for index in 0..manifest.hashes.len() {
        if !holds(manifest, index, slot)? {
            missing.push(index);
        }
    }
    Ok(missing)
}

fn holds(manifest: &Manifest, index: usize, slot: &mut impl Blocks) -> Result<bool, Failed> {
    let (at, length) = manifest.place(index);
    let mut octets = vec![0; length];
    slot.read(at, &mut octets).map_err(|source| Failed::Device { doing: "read", at, source })?;
    Ok(manifest.hashes.get(index) == Some(&Hash::of(&octets)))
}

fn erase_head(manifest: &Manifest, slot: &mut impl Blocks) -> Result<(), Failed> {
    let zeros = vec![0; manifest.place(0).1.min(HEAD)];
    let (first, rest) = zeros.split_at(SECTOR.min(zeros.len()));
    // The sector that makes the slot load goes alone: a cut must not leave it before a rest that is half erased.
    for (at, octets) in [(0, first), (first.len() as u64, rest)] {
        slot.write(at, octets).map_err(|source| Failed::Device { doing: "write", at, source })?;
        flush(slot)?;
    }
    Ok(())
}

/// Reads these chunks, in order, and writes each that is the one signed.
fn fetch(
    manifest: &Manifest,
    chunks: &[usize],
    source: &mut impl Source,
    slot: &mut impl Blocks,
    left: &mut dyn FnMut(&[usize]),
) -> Result<(), Failed> {
    let mut done = 0;
    // Each run of chunks is one request.
    for run in chunks.chunk_by(|one, next| one + 1 == *next) {
        let at = run.first().map_or(0, |index| manifest.place(*index).0);
        let mut reader = source.open(at).map_err(|source| Failed::Source { at, source })?;
        for index in run {
            let (at, length) = manifest.place(*index);
            let mut octets = vec![0; length];
            reader.read_exact(&mut octets).map_err(|source| match source.kind() {
                io::ErrorKind::UnexpectedEof => Failed::Truncated { at },
                _ => Failed::Source { at, source },
            })?;
            if manifest.hashes.get(*index) != Some(&Hash::of(&octets)) {
                return Err(Failed::Tampered { at });
            }
            let (first, rest) = if at == 0 { octets.split_at(SECTOR.min(length)) } else { octets.split_at(0) };
            let rest_at = at + first.len() as u64;
            slot.write(rest_at, rest).map_err(|source| Failed::Device { doing: "write", at: rest_at, source })?;
            if !first.is_empty() {
                // The sector that makes the slot load is one write after all others are on the medium.
                flush(slot)?;
                slot.write(at, first).map_err(|source| Failed::Device { doing: "write", at, source })?;
            }
            done += 1;
            left(chunks.get(done..).unwrap_or_default());
        }
    }
    flush(slot)
}

fn flush(slot: &mut impl Blocks) -> Result<(), Failed> {
    slot.flush().map_err(|source| Failed::Device { doing: "flush", at: 0, source })
}

/// A slot's block device, or a file that stands for one.
#[derive(Debug)]
pub struct SlotDevice(File);

impl SlotDevice {
    /// Opens it; it is never made or resized.
    ///
    /// # Errors
    ///
    /// That it is not there, or not ours.
    pub fn open(path: &Path) -> io::Result<Self> {
        OpenOptions::new().read(true).write(true).open(path).map(Self)
    }
}

impl Blocks for SlotDevice {
    fn size(&mut self) -> io::Result<u64> {
        io::Seek::seek(&mut self.0, io::SeekFrom::End(0))
    }

    fn read(&mut self, at: u64, octets: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(octets, at)
    }

    fn write(&mut self, at: u64, octets: &[u8]) -> io::Result<()> {
        self.0.write_all_at(octets, at)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.sync_data()?;
        // What is clean can be dropped from the cache, so that reading back asks the medium.
        posix_fadvise(&self.0, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
        Ok(())
    }
}
