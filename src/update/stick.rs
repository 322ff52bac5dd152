//! Bundles on a stick: `pilotlight*.bundle` in the root of its file system, which is mounted read-only at a directory.
//!
//! An edge, because it reads a directory and files.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::protocol::Found;
use super::write::Source;

/// Bundles that are listed; a stick may hold any number of files.
const MOST: usize = 16;
/// Names that are looked at.
const LOOKED_AT: usize = 10_000;

/// Whether a file of this name may be a bundle.
fn named_like_one(name: &str) -> bool {
    name.starts_with("pilotlight") && name.ends_with(".bundle") && !name.contains('/') && name.len() <= 255
}

/// The bundles in `directory`, by name. A stick that is not there holds none.
pub fn look(directory: &Path) -> Vec<Found> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .take(LOOKED_AT)
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok().filter(|name| named_like_one(name))?;
            // Of the entry itself: a link may lead off the stick.
            let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
            Some(Found { name, octets: metadata.len() })
        })
        .collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all.truncate(MOST);
    all
}

/// Whether there is a bundle in `directory`, as far as names go.
pub fn is_on(directory: &Path) -> bool {
    !look(directory).is_empty()
}

/// The bundle `name` in `directory`, if it is one that [`look`] finds.
///
/// # Errors
///
/// `NotFound`, also for names that no bundle has; those of the stick.
pub fn open(directory: &Path, name: &str) -> io::Result<File> {
    if !look(directory).iter().any(|found| found.name == name) {
        return Err(io::ErrorKind::NotFound.into());
    }
    File::open(directory.join(name))
}

/// The image in a bundle's file.
#[derive(Debug)]
pub struct OnStick {
    /// The bundle.
    pub file: File,
    /// Octets before the image.
    pub image_at: u64,
}

impl Source for OnStick {
    fn open(&mut self, at: u64) -> io::Result<Box<dyn Read + '_>> {
        self.file.seek(SeekFrom::Start(self.image_at + at))?;
        Ok(Box::new(&self.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_alone_are_found_and_nothing_off_the_stick() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path();
        for name in ["pilotlight-2.bundle", "pilotlight.bundle", "other.bundle", "pilotlight.img"] {
            fs::write(path.join(name), name).expect("a file");
        }
        std::os::unix::fs::symlink("/etc/passwd", path.join("pilotlight-link.bundle")).expect("a link");
        fs::create_dir(path.join("pilotlight-dir.bundle")).expect("a directory");
        let names: Vec<_> = look(path).into_iter().map(|found| found.name).collect();
        assert_eq!(names, ["pilotlight-2.bundle", "pilotlight.bundle"]);
        assert!(open(path, "pilotlight.bundle").is_ok());
        for name in ["../pilotlight.bundle", "pilotlight-link.bundle", "other.bundle", "pilotlight/../x.bundle"] {
            assert!(open(path, name).is_err(), "{name}");
        }
        assert!(look(&path.join("gone")).is_empty());
    }
}
