//! What the service goes on with after a restart: the URL that it fetches from.
//!
//! An edge, because it writes a file. How far the update is, the slot itself says; here is only what was asked for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::protocol::{Asked, Url};

/// How often an update is begun; one that takes the service down with it must end.
pub const STARTS: u32 = 5;
const NAME: &str = "wish";
/// The longest file that is read.
const LONGEST: u64 = 16 << 10;

/// What was asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wish {
    /// From where.
    pub url: Url,
    /// What besides.
    pub asked: Asked,
    /// How often it was begun.
    pub starts: u32,
}

/// Where the wish is kept.
#[derive(Clone, Debug)]
pub struct Wishes(PathBuf);

impl Wishes {
    /// In the service's own directory.
    pub fn new(directory: &Path) -> Self {
        Self(directory.to_owned())
    }

    /// The wish that stands; nothing when there is none or it can't be read.
    pub fn read(&self) -> Option<Wish> {
        let mut text = Zeroizing::new(Vec::new());
        File::open(self.0.join(NAME)).ok()?.take(LONGEST).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Keeps it, whole or not at all; others can't read it.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn keep(&self, wish: &Wish) -> io::Result<()> {
        let text = Zeroizing::new(serde_json::to_vec(wish)?);
        let new = self.0.join("wish.new");
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, self.0.join(NAME))?;
        File::open(&self.0)?.sync_all()
    }

    /// Drops it.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn drop(&self) -> io::Result<()> {
        match fs::remove_file(self.0.join(NAME)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_kept_dropped_and_garbage_is_none() {
        let dir = tempfile::tempdir().expect("a directory");
        let wishes = Wishes::new(dir.path());
        assert!(wishes.read().is_none());
        let wish = Wish { url: Url::new("http://a/b?token".into()), asked: Asked::default(), starts: 2 };
        wishes.keep(&wish).expect("it is kept");
        let read = wishes.read().expect("it stands");
        assert_eq!((read.url.reveal(), read.starts), ("http://a/b?token", 2));
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(dir.path().join(NAME)).expect("a file"));
        assert_eq!(mode & 0o777, 0o600);
        fs::write(dir.path().join(NAME), "{\"url\":").expect("a file");
        assert!(wishes.read().is_none());
        wishes.drop().expect("it is gone");
        wishes.drop().expect("it may be gone already");
    }
}
