//! Two clocks, two types: [`Uptime`] for every timer and interval, [`UnixTime`] for what leaves the box.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// Time since the kernel booted, monotonic, never set by anyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uptime(Duration);

impl Uptime {
    /// The moment `millis` milliseconds after boot.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// The moment `secs` seconds after boot.
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// Reads the kernel's monotonic clock. Only edges call this; rules are told `now`.
    pub fn now() -> Self {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
            .expect("CLOCK_MONOTONIC exists on every Linux");
        Self(Duration::from(now))
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// Duration since boot.
    pub const fn as_duration(self) -> Duration {
        self.0
    }
}

impl Add<Duration> for Uptime {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

impl Sub<Duration> for Uptime {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(rhs))
    }
}

/// Wall-clock time since 1970-01-01T00:00:00Z.
///
/// Not monotonic. Nothing but signatures, certificates and timestamps that others read depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
pub struct UnixTime(Duration);

impl UnixTime {
    /// The moment `secs` seconds after the epoch.
    pub const fn from_secs(secs: u64) -> Self {
        Self(Duration::from_secs(secs))
    }

    /// The moment `millis` milliseconds after the epoch.
    pub const fn from_millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// Reads the wall clock. Only edges call this.
    pub fn now() -> Self {
        let now =
            nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME).expect("CLOCK_REALTIME exists on every Linux");
        Self(Duration::from(now))
    }

    /// Whole seconds since the epoch.
    pub const fn as_secs(self) -> u64 {
        self.0.as_secs()
    }

    /// Whole milliseconds since the epoch.
    pub const fn as_millis(self) -> u64 {
        self.0.as_millis() as u64
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for UnixTime {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(rhs))
    }
}

impl From<UnixTime> for prost_types::Timestamp {
    fn from(time: UnixTime) -> Self {
        Self { seconds: time.0.as_secs() as i64, nanos: time.0.subsec_nanos() as i32 }
    }
}

impl From<prost_types::Timestamp> for UnixTime {
    /// Times before 1970 become 1970.
    fn from(stamp: prost_types::Timestamp) -> Self {
        let secs = u64::try_from(stamp.seconds).unwrap_or(0);
        let nanos = u32::try_from(stamp.nanos).unwrap_or(0).min(999_999_999);
        Self(Duration::new(secs, nanos))
    }
}

impl fmt::Display for UnixTime {
    /// RFC 3339, UTC, whole seconds: `2026-11-21T02:49:00Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Days to civil date: the era arithmetic of the proleptic Gregorian calendar.
        let secs = self.0.as_secs();
        let (days, rest) = ((secs / 86_400) as i64, secs % 86_400);
        let z = days + 719_468;
        let era = z / 146_097;
        let day_of_era = z % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        write!(f, "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3_600, rest % 3_600 / 60, rest % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unix_time_prints_as_rfc_3339() {
        for (secs, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
        ] {
            assert_eq!(UnixTime::from_secs(secs).to_string(), text);
        }
    }

    #[test]
    fn uptime_never_goes_below_zero() {
        let early = Uptime::from_secs(1);
        assert_eq!(early.since(Uptime::from_secs(5)), Duration::ZERO);
        assert_eq!(early - Duration::from_secs(5), Uptime::default());
    }
}
