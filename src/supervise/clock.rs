//! What time it is at least, before anyone could be asked.
//!
//! A box without a battery wakes in 1970, one with a bad one in 2099. Certificates are checked against the clock, so it
//! must not stand before the build, nor so far after it that everything has expired.

use std::fmt;

use crate::time::UnixTime;

/// No build is older than its source: 2026-11-21.
const SOURCE_TIME: u64 = 1_795_219_200;
/// How long after its build a box may be in use. What is later is a fault of the clock.
const LIFETIME: u64 = 20 * 365 * 86_400;

/// When this program was built: `SOURCE_DATE_EPOCH` of its build, so that the same source gives the same octets.
pub fn build_time() -> UnixTime {
    let given = option_env!("SOURCE_DATE_EPOCH").and_then(|text| text.parse().ok());
    UnixTime::from_secs(given.unwrap_or(SOURCE_TIME))
}

/// Whence the time was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It stays as it is.
    Running,
    /// From the clock that the battery feeds.
    Rtc,
    /// The last time that was saved.
    Saved,
    /// When the program was built.
    Build,
}

/// What to do about the clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What it is to show.
    pub time: UnixTime,
    /// Why.
    pub origin: Origin,
    /// What the system clock showed.
    pub showed: UnixTime,
}

impl Decision {
    /// Whether it has to be set.
    pub fn sets(&self) -> bool {
        self.origin != Origin::Running
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { time, origin, showed } = self;
        match origin {
            Origin::Running => write!(f, "clock shows {time}"),
            Origin::Rtc => write!(f, "clock showed {showed}; set to {time}, as the battery's clock has it"),
            Origin::Saved => write!(f, "clock showed {showed}; set to {time}, the last time that was saved"),
            Origin::Build => write!(f, "clock showed {showed}; set to {time}, when this image was built"),
        }
    }
}

/// Whether a clock that shows `time` may be believed.
pub fn sane(build: UnixTime, time: UnixTime) -> bool {
    (build.as_secs()..=build.as_secs().saturating_add(LIFETIME)).contains(&time.as_secs())
}

/// The latest of what may be believed. `running` is the system clock, `rtc` the battery's, `saved` the last time that was
/// saved.
pub fn decide(build: UnixTime, running: UnixTime, rtc: Option<UnixTime>, saved: Option<UnixTime>) -> Decision {
    let candidates = [
        (Some(build), Origin::Build),
        (saved, Origin::Saved),
        (rtc, Origin::Rtc),
        // The last of equals is taken: what runs right is left alone.
        (Some(running), Origin::Running),
    ];
    let believed = candidates.into_iter().filter_map(|(time, origin)| Some((time?, origin)));
    let (time, origin) = believed
        .filter(|(time, _)| sane(build, *time))
        // Whole seconds: the battery's clock has no more, and is no later for being rounded.
        .max_by_key(|(time, _)| time.as_secs())
        .unwrap_or((build, Origin::Build));
    Decision { time, origin, showed: running }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BUILD: UnixTime = UnixTime::from_secs(SOURCE_TIME);
    const DAY: u64 = 86_400;
    const IN_1970: UnixTime = UnixTime::from_secs(12);
    const IN_2001: UnixTime = UnixTime::from_secs(1_000_000_000);
    const IN_2099: UnixTime = UnixTime::from_secs(4_070_908_800);

    fn days(number: u64) -> UnixTime {
        UnixTime::from_secs(SOURCE_TIME + number * DAY)
    }

    #[test]
    fn the_latest_that_may_be_believed_counts() {
        for (running, rtc, saved, time, origin) in [
            (days(9), Some(days(9)), Some(days(8)), days(9), Origin::Running),
            (IN_1970, None, None, BUILD, Origin::Build),
            (IN_1970, None, Some(days(3)), days(3), Origin::Saved),
            (IN_1970, Some(days(5)), Some(days(3)), days(5), Origin::Rtc),
            (IN_2001, Some(IN_2001), Some(days(3)), days(3), Origin::Saved),
            (IN_2099, Some(IN_2099), Some(days(3)), days(3), Origin::Saved),
            (IN_2099, Some(IN_2099), Some(IN_2099), BUILD, Origin::Build),
            (days(2), Some(IN_2099), Some(days(3)), days(3), Origin::Saved),
        ] {
            let decision = decide(BUILD, running, rtc, saved);
            assert_eq!((decision.time, decision.origin), (time, origin), "{decision}");
            assert_eq!(decision.sets(), decision.time != running, "{decision}");
        }
    }

    #[test]
    fn people_are_told_why() {
        let text = decide(BUILD, IN_2099, None, Some(days(3))).to_string();
        assert_eq!(
            text,
            "clock showed 2099-01-01T00:00:00Z; set to 2026-11-24T00:00:00Z, the last time that was saved"
        );
    }

    proptest! {
        #[test]
        fn it_never_stands_outside_the_boxs_life(running: u64, rtc: Option<u64>, saved: Option<u64>) {
            let at = UnixTime::from_secs;
            let decision = decide(BUILD, at(running), rtc.map(at), saved.map(at));
            prop_assert!(sane(BUILD, decision.time));
        }
    }
}
