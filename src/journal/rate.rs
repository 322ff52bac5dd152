//! How much a sender may log: enough for a bad day, too little to push all others out of the ring.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::time::Uptime;

/// Octets that a sender may log at once.
const BURST: u64 = 512 * 1024;
/// Octets a second that it earns.
const PER_SECOND: u64 = 8 * 1024;
/// What an entry costs beside its octets, so that many small ones are no cheaper.
const PER_ENTRY: u64 = 256;
/// Entries of priority 0 to 3 have a further burst: their sender's own chatter does not drown them.
const GRAVE_BURST: u64 = 64 * 1024;
/// Priorities up to this one are grave.
pub const GRAVE: u8 = 3;
/// Most senders that are told apart; those that come later share one allowance. Users are few: one per service.
const MOST: usize = 32;
/// How often drops of a sender are told.
const REPORT_EVERY: Duration = Duration::from_secs(30);

/// Who is counted as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sender {
    /// The kernel's log.
    Kernel,
    /// All processes of a user: one process would only have to fork for a new allowance.
    User(u32),
    /// All for whom there is no room.
    Others,
}

#[derive(Clone, Debug)]
struct Allowance {
    left: u64,
    grave_left: u64,
    since: Uptime,
    dropped: u64,
    told: Option<Uptime>,
}

/// The allowances of all senders.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    senders: BTreeMap<Sender, Allowance>,
}

impl Rates {
    /// Whether `sender` may log an entry of `octets` at `now`; if not, it is counted.
    pub fn admit(&mut self, now: Uptime, sender: Sender, octets: usize, priority: u8) -> bool {
        let room = self.senders.contains_key(&sender) || self.senders.len() < MOST;
        let sender = if room { sender } else { Sender::Others };
        let fresh = Allowance { left: BURST, grave_left: GRAVE_BURST, since: now, dropped: 0, told: None };
        let allowance = self.senders.entry(sender).or_insert(fresh);
        allowance.earn(now);
        let cost = (octets as u64).saturating_add(PER_ENTRY);
        if let Some(left) = allowance.left.checked_sub(cost) {
            allowance.left = left;
            return true;
        }
        if priority <= GRAVE
            && let Some(left) = allowance.grave_left.checked_sub(cost)
        {
            allowance.grave_left = left;
            return true;
        }
        allowance.dropped = allowance.dropped.saturating_add(1);
        false
    }

    /// The drops that are to be told now: who, and how many since they were last told.
    pub fn report(&mut self, now: Uptime) -> Vec<(Sender, u64)> {
        let mut all = Vec::new();
        for (sender, allowance) in &mut self.senders {
            if allowance.dropped > 0 && allowance.told.is_none_or(|told| now.since(told) >= REPORT_EVERY) {
                all.push((*sender, std::mem::take(&mut allowance.dropped)));
                allowance.told = Some(now);
            }
        }
        all
    }

    /// When [`Self::report`] has something to tell.
    pub fn deadline(&self) -> Option<Uptime> {
        let due = |allowance: &Allowance| allowance.told.map_or(allowance.since, |told| told + REPORT_EVERY);
        self.senders.values().filter(|allowance| allowance.dropped > 0).map(due).min()
    }
}

impl Allowance {
    fn earn(&mut self, now: Uptime) {
        let secs = now.since(self.since).as_secs();
        if secs > 0 {
            let earned = secs.saturating_mul(PER_SECOND);
            self.left = self.left.saturating_add(earned).min(BURST);
            self.grave_left = self.grave_left.saturating_add(earned).min(GRAVE_BURST);
            self.since = self.since + Duration::from_secs(secs);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WEB: Sender = Sender::User(907);

    #[test]
    fn a_flood_ends_and_leaves_room_for_others_and_for_errors() {
        let mut rates = Rates::default();
        let now = Uptime::from_secs(100);
        let passed = (0..10_000).filter(|_| rates.admit(now, WEB, 200, 6)).count() as u64;
        assert_eq!(passed, BURST / (200 + PER_ENTRY));
        assert!(rates.admit(now, WEB, 200, GRAVE) && rates.admit(now, Sender::Kernel, 200, 7));
        assert!(!rates.admit(now, WEB, 200, GRAVE + 1));

        assert_eq!(rates.deadline(), Some(now));
        assert_eq!(rates.report(now), [(WEB, 10_000 - passed + 1)]);
        assert_eq!((rates.report(now), rates.deadline()), (vec![], None));
        assert!(rates.admit(now + Duration::from_secs(1), WEB, 200, 6));
        while rates.admit(now + Duration::from_secs(1), WEB, 200, 6) {}
        assert_eq!((rates.report(now + Duration::from_secs(1)), rates.deadline()), (vec![], Some(now + REPORT_EVERY)));
        assert_eq!(rates.report(now + REPORT_EVERY), [(WEB, 1)]);
    }

    #[test]
    fn senders_beyond_the_most_share_one_allowance() {
        let mut rates = Rates::default();
        let now = Uptime::from_secs(1);
        for uid in 0..1_000 {
            rates.admit(now, Sender::User(uid), BURST as usize - PER_ENTRY as usize, 6);
        }
        assert_eq!(rates.senders.len(), MOST + 1);
        assert!(!rates.admit(now, Sender::User(5_000), 0, 6));
    }

    proptest! {
        #[test]
        fn nobody_logs_more_than_its_burst_and_its_rate(steps in proptest::collection::vec((0_u64..5_000, 0_usize..70_000, 0_u8..8), 1..200)) {
            let mut rates = Rates::default();
            let (start, mut millis, mut spent) = (Uptime::from_secs(9), 0, 0);
            for (pause, octets, priority) in steps {
                millis += pause;
                if rates.admit(start + Duration::from_millis(millis), WEB, octets, priority) {
                    spent += octets as u64;
                }
            }
            prop_assert!(spent <= BURST + GRAVE_BURST + 2 * PER_SECOND * (millis / 1000 + 1));
        }
    }
}
