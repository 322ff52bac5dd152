//! What the service keeps: the configuration and the addresses it had.
//!
//! An edge, because it reads and writes files. A file is written beside its name, flushed, and renamed: a power cut leaves
//! the old one or the new one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most octets that are read.
const MOST: u64 = 256 * 1024;

/// Reads a value; `None` when there is no such file.
///
/// # Errors
///
/// The disk's, or that it is no such value.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut text = Vec::new();
    file.take(MOST).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map(Some).map_err(io::Error::from)
}

/// Writes a value so that it is on the disk when this returns.
///
/// # Errors
///
/// The disk's; the old value stands then.
pub fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    write_text(path, &serde_json::to_vec_pretty(value)?, true)
}

/// As [`write()`] for plain text; `durable` waits for the disk.
///
/// # Errors
///
/// The disk's; the old text stands then.
pub fn write_text(path: &Path, text: &[u8], durable: bool) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text)?;
    if durable {
        file.sync_all()?;
    }
    fs::rename(&beside, path)?;
    if durable { File::open(parent)?.sync_all() } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::trial::Record;

    #[test]
    fn a_record_comes_back_and_a_broken_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("net").join("network.json");
        assert_eq!(read::<Record>(&path).unwrap(), None);
        let record = Record { previous: Some(Default::default()), ..Record::default() };
        write(&path, &record).unwrap();
        // A crash while the next one was written leaves this beside it.
        fs::write(path.with_extension("new"), "{\"go").unwrap();
        assert_eq!(read::<Record>(&path).unwrap(), Some(record.clone()));
        write(&path, &record).unwrap();
        fs::write(&path, "{\"go").unwrap();
        assert!(read::<Record>(&path).is_err());
    }
}
