//! Takes the last run's seed in, and leaves one for the next.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

use super::log::{Level, Log};
use crate::supervise::seed::{CREDITABLE, DIRECTORY, MAX_FILE, Mixture, NEW, UNCREDITABLE, creditable, name};
use crate::sys::random;
use crate::time::{UnixTime, Uptime};

/// What makes this box another than its clone; not secret, and worth no entropy.
const IDENTITIES: [&str; 2] = ["/sys/class/dmi/id/product_uuid", "/sys/class/dmi/id/board_serial"];

/// At boot: uses what seed there is up, and writes a new one.
pub(super) fn take_in(log: &Log) {
    match take_in_from(Path::new(DIRECTORY)) {
        Ok(credited) => {
            let worth = if credited { "the last run's seed is credited" } else { "no seed to credit" };
            log.line(Level::Info, &format!("randomness: {worth}"));
        }
        Err(error) => log.line(Level::Warning, &format!("cannot take in the last run's seed: {error}")),
    }
}

/// At the end: leaves a new seed, of a generator that has seen much more than at boot.
pub(super) fn leave(log: &Log) {
    let mixture = Mixture::new(Uptime::now(), UnixTime::now());
    if let Err(error) = write(Path::new(DIRECTORY), mixture) {
        log.line(Level::Warning, &format!("cannot leave a seed: {error}"));
    }
}

/// Whether a seed was credited.
fn take_in_from(directory: &Path) -> io::Result<bool> {
    let mut mixture = Mixture::new(Uptime::now(), UnixTime::now());
    let mut credit = false;
    for name in [CREDITABLE, UNCREDITABLE] {
        match read(&directory.join(name)) {
            Ok(contents) => {
                fs::remove_file(directory.join(name))?;
                credit |= creditable(name, &contents);
                mixture = mixture.with(&contents);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    // It must be gone for certain before it counts.
    File::open(directory)?.sync_all()?;
    for identity in IDENTITIES {
        mixture = mixture.with(&read(Path::new(identity)).unwrap_or_default());
    }
    random::mix(&mixture.clone().finish(), credit)?;
    write(directory, mixture)?;
    Ok(credit)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    file.take(MAX_FILE as u64).read_to_end(&mut contents)?;
    Ok(contents)
}

fn write(directory: &Path, mixture: Mixture) -> io::Result<()> {
    let (octets, ready) = random::octets()?;
    let seed = mixture.with(&octets).finish();
    let new = directory.join(NEW);
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(&new)?;
    file.write_all(&seed)?;
    file.sync_all()?;
    fs::rename(&new, directory.join(name(ready)))?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(directory: &Path) -> BTreeSet<String> {
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn every_seed_is_another_and_is_used_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut seeds = BTreeSet::new();
        for _ in 0..8 {
            write(dir.path(), Mixture::new(Uptime::from_secs(1), UnixTime::from_secs(1))).unwrap();
            // The generator of a machine that runs tests is ready.
            assert_eq!(names(dir.path()), BTreeSet::from([CREDITABLE.to_owned()]));
            seeds.insert(read(&dir.path().join(CREDITABLE)).unwrap());
        }
        assert_eq!(seeds.len(), 8);
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        // A seed of zeroes that is too short to be worth anything: mixing it in does no harm to this machine.
        fs::remove_file(dir.path().join(CREDITABLE)).unwrap();
        fs::write(dir.path().join(UNCREDITABLE), [0; 5]).unwrap();
        assert!(!take_in_from(dir.path()).unwrap());
        assert_eq!(names(dir.path()), BTreeSet::from([CREDITABLE.to_owned()]));
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/zero", dir.path().join(CREDITABLE)).unwrap();
        assert!(take_in_from(dir.path()).is_err());
    }
}
