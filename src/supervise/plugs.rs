//! When to look at what was plugged in.
//!
//! A stick says many things while it arrives: the port, the disk, its partitions. They are looked at together, once all has
//! been quiet for a moment, one look at a time.

use std::time::Duration;

use crate::time::Uptime;

/// Where the stick is mounted that has something for the box.
pub const PATH: &str = "/run/pilotlight/stick";
/// How long it must be quiet.
const QUIET: Duration = Duration::from_millis(700);
/// How long it may go on at most, so that who never stops is looked at all the same.
const LATEST: Duration = Duration::from_secs(5);

/// Decides when the next look is due.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    /// The first and the last word since the last look began.
    heard: Option<(Uptime, Uptime)>,
    running: bool,
}

impl Looks {
    /// Something was said at `now`.
    pub fn heard(&mut self, now: Uptime) {
        let first = self.heard.map_or(now, |(first, _)| first);
        self.heard = Some((first, now));
    }

    /// When the next look begins, if nothing more is said; `None` while one runs or nothing was said.
    pub fn due(&self) -> Option<Uptime> {
        let (first, last) = self.heard.filter(|_| !self.running)?;
        Some((last + QUIET).min(first + LATEST))
    }

    /// Whether a look begins at `now`; [`Looks::ended`] is owed then.
    pub fn begin(&mut self, now: Uptime) -> bool {
        let due = self.due().is_some_and(|due| due <= now);
        if due {
            *self = Self { heard: None, running: true };
        }
        due
    }

    /// The look has ended.
    pub fn ended(&mut self) {
        self.running = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Uptime {
        Uptime::from_secs(10) + Duration::from_millis(millis)
    }

    #[test]
    fn a_look_begins_when_it_is_quiet_and_one_at_a_time() {
        let mut looks = Looks::default();
        assert_eq!((looks.due(), looks.begin(at(0))), (None, false));
        looks.heard(at(0));
        looks.heard(at(500));
        assert!(!looks.begin(at(1199)) && looks.begin(at(1200)));
        looks.heard(at(1300));
        assert_eq!(looks.due(), None, "one runs");
        looks.ended();
        assert_eq!(looks.due(), Some(at(2000)), "what was said meanwhile is not lost");
        assert!(looks.begin(at(2000)));
        looks.ended();
        assert_eq!(looks.due(), None);
    }

    #[test]
    fn who_never_stops_is_looked_at_all_the_same() {
        let mut looks = Looks::default();
        let begun = (0..100).map(|step| step * 100).find(|millis| {
            looks.heard(at(*millis));
            looks.begin(at(*millis))
        });
        assert_eq!(begun, Some(5000));
    }
}
