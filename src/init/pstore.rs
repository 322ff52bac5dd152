//! Saves what a crashed kernel left in the firmware's memory, and makes room there for the next one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::log::{Level, Log};
use crate::time::UnixTime;

/// Where the kernel shows it.
pub(super) const SOURCE: &str = "/sys/fs/pstore";
/// Most records that are taken at one boot; firmware holds a few.
const MOST: usize = 32;
/// Most octets of a record; a part of a dump has 64 KiB at most.
const MAX_RECORD: u64 = 256 * 1024;
/// Most records that are kept.
const KEPT: usize = 64;

/// Moves what there is; a record goes from `source` only when it is on disk in `directory`.
pub(super) fn harvest(source: &Path, directory: &Path, now: UnixTime, log: &Log) {
    match harvest_all(source, directory, now) {
        Ok(names) if names.is_empty() => {}
        Ok(names) => {
            log.line(
                Level::Error,
                &format!("the last run crashed: kept {} in {}", names.join(", "), directory.display()),
            );
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => log.line(Level::Warning, &format!("cannot keep what the last run's crash left: {error}")),
    }
}

fn harvest_all(source: &Path, directory: &Path, now: UnixTime) -> io::Result<Vec<String>> {
    let mut names = sorted(source)?;
    names.truncate(MOST);
    for name in &names {
        let mut record = Vec::new();
        File::open(source.join(name))?.take(MAX_RECORD).read_to_end(&mut record)?;
        let path = directory.join(format!("{:011}-{name}", now.as_secs()));
        // A record that was kept and not unlinked, in a boot of the same second: the same again.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(&record)?;
        file.sync_all()?;
        File::open(directory)?.sync_all()?;
        fs::remove_file(source.join(name))?;
    }
    let kept = sorted(directory)?;
    for name in kept.iter().take(kept.len().saturating_sub(KEPT)) {
        fs::remove_file(directory.join(name))?;
    }
    Ok(names)
}

fn sorted(directory: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file()
            && let Ok(name) = entry.file_name().into_string()
        {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_move_and_the_oldest_give_way() {
        let (source, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for boot in 0..3 {
            for part in 0..MOST {
                fs::write(source.path().join(format!("dmesg-efi-{part:02}")), format!("Panic {boot}")).unwrap();
            }
            let names = harvest_all(source.path(), kept.path(), UnixTime::from_secs(1_800_000_000 + boot)).unwrap();
            assert_eq!((names.len(), sorted(source.path()).unwrap().len()), (MOST, 0));
        }
        let names = sorted(kept.path()).unwrap();
        assert_eq!((names.len(), names[0].as_str()), (KEPT, "01800000001-dmesg-efi-00"));
        assert_eq!(fs::read_to_string(kept.path().join(&names[KEPT - 1])).unwrap(), "Panic 2");
    }

    #[test]
    fn nothing_is_unlinked_that_could_not_be_kept() {
        let source = tempfile::tempdir().unwrap();
        fs::write(source.path().join("dmesg-efi-1"), "Panic").unwrap();
        assert!(harvest_all(source.path(), &source.path().join("missing"), UnixTime::from_secs(1)).is_err());
        assert_eq!(sorted(source.path()).unwrap(), ["dmesg-efi-1"]);
    }
}
