//! Sets the system clock at boot to what it is at least.

use std::fs;
use std::io;
use std::path::Path;
use std::time::SystemTime;

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use super::log::{Level, Log};
use crate::journal::{CLOCK_FILE, DIRECTORY};
use crate::supervise::clock::{Decision, build_time, decide};
use crate::time::UnixTime;

/// The battery's clock in seconds since 1970, whatever its driver.
const RTC: &str = "/sys/class/rtc/rtc0/since_epoch";

/// Looks at all clocks, sets the system's if it must, and says so.
pub(super) fn set_floor(log: &Log) {
    let decision =
        decide(build_time(), UnixTime::now(), rtc(Path::new(RTC)), saved(&Path::new(DIRECTORY).join(CLOCK_FILE)));
    match set(&decision) {
        Ok(()) => log.line(if decision.sets() { Level::Warning } else { Level::Info }, &decision.to_string()),
        Err(error) => log.line(Level::Error, &format!("cannot set the clock: {error}; {decision}")),
    }
}

fn set(decision: &Decision) -> io::Result<()> {
    if decision.sets() {
        let time = TimeSpec::from_duration(decision.time.since(UnixTime::default()));
        clock_settime(ClockId::CLOCK_REALTIME, time)?;
    }
    Ok(())
}

fn rtc(path: &Path) -> Option<UnixTime> {
    fs::read_to_string(path).ok()?.trim().parse().ok().map(UnixTime::from_secs)
}

fn saved(path: &Path) -> Option<UnixTime> {
    let time = fs::symlink_metadata(path).ok()?.modified().ok()?.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(UnixTime::from_secs(time.as_secs()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::Duration;

    use super::*;

    #[test]
    fn clocks_are_read_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("clock");
        assert_eq!((rtc(&path), saved(&path)), (None, None));
        fs::write(&path, "1800000000\n").unwrap();
        assert_eq!(rtc(&path), Some(UnixTime::from_secs(1_800_000_000)));
        fs::write(&path, "-5\n").unwrap();
        assert_eq!(rtc(&path), None);
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000)).unwrap();
        assert_eq!(saved(&path), Some(UnixTime::from_secs(1_900_000_000)));
    }
}
