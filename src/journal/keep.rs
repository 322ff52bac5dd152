//! When a chunk is written and which old ones go: little enough that flash outlives the box, soon enough that what led
//! to a power cut is on disk.

use std::time::Duration;

use super::chunk;
use super::rate::GRAVE;
use crate::time::Uptime;

/// No entry waits longer. Six chunks a day, of about 30 KiB with the file system's own writes, are what an idle box
/// writes.
pub const LONGEST_WAIT: Duration = Duration::from_secs(4 * 3600);
/// A grave entry waits this long, so that what follows it comes along.
pub const GRAVE_WAIT: Duration = Duration::from_secs(10);
/// Grave entries make no more chunks than one in this time.
pub const GRAVE_PAUSE: Duration = Duration::from_secs(5 * 60);
/// After a failure nothing is tried for this long; doubled by each further one up to [`LONGEST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_secs(60);
const LONGEST_RETRY: Duration = Duration::from_secs(3600);
/// Octets that may be written at once, whoever logs.
const BUDGET: u64 = 4 * 1024 * 1024;
/// Octets a second that are earned again: 16 MiB a day.
const PER_SECOND: u64 = 16 * 1024 * 1024 / 86_400;
/// What a chunk costs beside its octets: inode, directory, journal of the file system.
const PER_CHUNK: u64 = 24 * 1024;
/// Most octets of all chunks.
pub const QUOTA: u64 = 16 * 1024 * 1024;
/// Most chunks.
pub const MOST: usize = 512;

/// Why a chunk is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is full.
    Full,
    /// Something grave waits.
    Grave,
    /// Something waits for [`LONGEST_WAIT`].
    Age,
}

/// Says when to write.
#[derive(Clone, Debug)]
pub struct Keeper {
    waiting: usize,
    oldest: Option<Uptime>,
    grave: Option<Uptime>,
    last: Option<Uptime>,
    writing: bool,
    failures: u32,
    retry_at: Uptime,
    budget: u64,
    budget_since: Uptime,
}

impl Keeper {
    /// A keeper with its whole budget.
    pub const fn new(now: Uptime) -> Self {
        Self {
            waiting: 0,
            oldest: None,
            grave: None,
            last: None,
            writing: false,
            failures: 0,
            retry_at: now,
            budget: BUDGET,
            budget_since: now,
        }
    }

    /// An entry of that size came.
    pub fn received(&mut self, now: Uptime, octets: usize, priority: u8) {
        self.waiting = self.waiting.saturating_add(octets);
        self.oldest.get_or_insert(now);
        if priority <= GRAVE {
            self.grave.get_or_insert(now);
        }
    }

    /// Whether to write a chunk at `now`, and why.
    pub fn due(&mut self, now: Uptime) -> Option<Reason> {
        let (at, reason) = self.next()?;
        if at > now {
            return None;
        }
        self.earn(now);
        (self.budget >= PER_CHUNK).then_some(reason)
    }

    /// When [`Self::due`] should be asked again.
    pub fn deadline(&self) -> Option<Uptime> {
        let (at, _) = self.next()?;
        let missing = PER_CHUNK.saturating_sub(self.budget).div_ceil(PER_SECOND);
        Some(if missing == 0 { at } else { at.max(self.budget_since + Duration::from_secs(missing)) })
    }

    /// A chunk is on its way, and `left` octets of entries wait for the next one.
    pub fn started(&mut self, now: Uptime, left: usize) {
        self.writing = true;
        self.waiting = left;
        self.oldest = (left > 0).then_some(now);
        self.grave = None;
    }

    /// It is on disk with so many octets.
    pub fn written(&mut self, now: Uptime, octets: usize) {
        self.earn(now);
        self.budget = self.budget.saturating_sub((octets as u64).saturating_add(PER_CHUNK));
        self.writing = false;
        self.failures = 0;
        self.last = Some(now);
    }

    /// It is not; entries of `octets` wait again. Returns when it is tried again.
    pub fn failed(&mut self, now: Uptime, octets: usize) -> Duration {
        let pause = FIRST_RETRY.saturating_mul(1 << self.failures.min(16)).min(LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.writing = false;
        self.retry_at = now + pause;
        self.received(now, octets, GRAVE);
        pause
    }

    fn next(&self) -> Option<(Uptime, Reason)> {
        if self.writing {
            return None;
        }
        let oldest = self.oldest?;
        let age = (oldest + LONGEST_WAIT, Reason::Age);
        let pause = self.last.map_or(Uptime::default(), |last| last + GRAVE_PAUSE);
        let grave = self.grave.map(|since| ((since + GRAVE_WAIT).max(pause), Reason::Grave));
        let full = (self.waiting >= chunk::FULL).then_some((oldest, Reason::Full));
        let (at, reason) = [Some(age), grave, full].into_iter().flatten().min_by_key(|(at, _)| *at)?;
        Some((at.max(self.retry_at), reason))
    }

    fn earn(&mut self, now: Uptime) {
        let secs = now.since(self.budget_since).as_secs();
        self.budget = self.budget.saturating_add(secs.saturating_mul(PER_SECOND)).min(BUDGET);
        self.budget_since = self.budget_since + Duration::from_secs(secs);
    }
}

/// Which of `chunks` (name and size) go so that one of `incoming` octets fits: the oldest.
pub fn outdated(chunks: &[(String, u64)], incoming: u64) -> Vec<String> {
    let mut sorted: Vec<_> = chunks.iter().collect();
    sorted.sort();
    let mut octets: u64 = sorted.iter().map(|(_, size)| size).sum();
    let mut count = sorted.len();
    let mut gone = Vec::new();
    for (name, size) in sorted {
        if octets.saturating_add(incoming) <= QUOTA && count < MOST {
            break;
        }
        gone.push(name.clone());
        octets -= size;
        count -= 1;
    }
    gone
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const START: Uptime = Uptime::from_secs(50);

    #[test]
    fn an_idle_box_writes_six_chunks_a_day() {
        let mut keeper = Keeper::new(START);
        let mut chunks = 0;
        for minute in 0..24 * 60 {
            let now = START + Duration::from_secs(60 * minute);
            keeper.received(now, 20, 6);
            if let Some(reason) = keeper.due(now) {
                assert_eq!(reason, Reason::Age);
                keeper.started(now, 0);
                keeper.written(now, 4_000);
                chunks += 1;
            }
        }
        assert_eq!(chunks, 5);
        const { assert!(6 * (PER_CHUNK + 4_096) < 256 * 1024) };
    }

    #[test]
    fn grave_entries_are_written_soon_but_not_each() {
        let mut keeper = Keeper::new(START);
        keeper.received(START, 100, 3);
        assert_eq!((keeper.due(START), keeper.deadline()), (None, Some(START + GRAVE_WAIT)));
        let now = START + GRAVE_WAIT;
        assert_eq!(keeper.due(now), Some(Reason::Grave));
        keeper.started(now, 0);
        keeper.received(now, 100, 0);
        assert_eq!((keeper.due(now), keeper.deadline()), (None, None));
        keeper.written(now, 500);
        assert_eq!(keeper.deadline(), Some(now + GRAVE_PAUSE));
        assert_eq!(keeper.due(now + GRAVE_PAUSE), Some(Reason::Grave));
    }

    #[test]
    fn a_full_chunk_is_written_at_once() {
        let mut keeper = Keeper::new(START);
        keeper.received(START, chunk::FULL, 6);
        assert_eq!(keeper.due(START), Some(Reason::Full));
    }

    #[test]
    fn a_bad_disk_is_tried_less_and_less() {
        let mut keeper = Keeper::new(START);
        let (mut now, mut pauses) = (START, Vec::new());
        keeper.received(now, chunk::FULL, 6);
        for _ in 0..8 {
            assert!(keeper.due(now).is_some());
            keeper.started(now, 0);
            let pause = keeper.failed(now, chunk::FULL);
            assert_eq!(keeper.deadline(), Some(now + pause));
            now = now + pause;
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        keeper.started(now, 0);
        keeper.written(now, 10);
        assert_eq!(keeper.failed(now, 0).as_secs(), 60);
    }

    #[test]
    fn the_oldest_chunks_go() {
        let chunk = |number: u64, size| (chunk::file_name(number), size);
        assert_eq!(outdated(&[chunk(2, 10), chunk(1, 10)], 10), Vec::<String>::new());
        assert_eq!(outdated(&[chunk(2, QUOTA), chunk(1, 10)], 1), [chunk::file_name(1), chunk::file_name(2)]);
        let many: Vec<_> = (0..MOST as u64 + 4).map(|number| chunk(number, 1)).collect();
        assert_eq!(outdated(&many, 1).len(), 5);
    }

    proptest! {
        #[test]
        fn no_flood_writes_more_than_the_budget(steps in proptest::collection::vec((0_u64..3_600, 0_usize..400_000, 0_u8..8), 1..300)) {
            let mut keeper = Keeper::new(START);
            let (mut now, mut octets) = (START, 0);
            for (pause, size, priority) in steps {
                now = now + Duration::from_secs(pause);
                keeper.received(now, size, priority);
                if keeper.due(now).is_some() {
                    keeper.started(now, 0);
                    keeper.written(now, 100_000);
                    octets += 100_000 + PER_CHUNK;
                }
            }
            prop_assert!(octets <= BUDGET + 100_000 + now.since(START).as_secs() * PER_SECOND);
        }
    }
}
