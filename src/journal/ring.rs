//! The ring: the last entries, in memory.

use std::collections::VecDeque;

use super::entry::Entry;

/// Most octets, as [`Entry::size`] counts them.
pub const MAX_OCTETS: usize = 4 * 1024 * 1024;

/// The last entries; what is over its limit goes, the oldest first.
#[derive(Clone, Debug, Default)]
pub struct Ring {
    entries: VecDeque<Entry>,
    octets: usize,
    /// Every entry up to this number is on disk.
    kept: u64,
    /// Entries that went before they were on disk.
    lost: u64,
}

impl Ring {
    /// A ring that holds `entries` of former runs, sorted by number; they are on disk. New ones have greater numbers than
    /// those and are numbered from `floor` on: the time in milliseconds, so that numbers differ from those of runs that
    /// could not be recalled.
    pub fn recall(entries: Vec<Entry>, floor: u64) -> Self {
        let mut ring = Self { kept: floor.saturating_sub(1), ..Self::default() };
        for entry in entries {
            ring.kept = ring.kept.max(entry.sequence);
            ring.push(entry);
        }
        ring
    }

    /// The number of the next entry.
    pub fn next_sequence(&self) -> u64 {
        self.entries.back().map_or(self.kept, |entry| entry.sequence.max(self.kept)).saturating_add(1)
    }

    /// Takes an entry whose number is [`Self::next_sequence`].
    pub fn push(&mut self, entry: Entry) {
        self.octets += entry.size();
        self.entries.push_back(entry);
        while self.octets > MAX_OCTETS
            && let Some(gone) = self.entries.pop_front()
        {
            self.octets -= gone.size();
            if gone.sequence > self.kept {
                self.lost += 1;
                self.kept = gone.sequence;
            }
        }
    }

    /// The oldest entries that are not on disk, at least one if there is any, of about `octets` in total.
    pub fn unkept(&self, octets: usize) -> Vec<&Entry> {
        let first = self.entries.partition_point(|entry| entry.sequence <= self.kept);
        let mut total = 0;
        let fits = |entry: &&Entry| {
            let first = total == 0;
            total += entry.size();
            first || total <= octets
        };
        self.entries.range(first..).take_while(fits).collect()
    }

    /// The size of all entries after `sequence`.
    pub fn unkept_after(&self, sequence: u64) -> usize {
        let first = self.entries.partition_point(|entry| entry.sequence <= sequence);
        self.entries.range(first..).map(Entry::size).sum()
    }

    /// Everything up to `sequence` is on disk.
    pub fn mark_kept(&mut self, sequence: u64) {
        self.kept = self.kept.max(sequence);
    }

    /// How many entries went before they were on disk.
    pub const fn lost(&self) -> u64 {
        self.lost
    }

    /// All, the newest first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().rev()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::super::entry::Draft;
    use super::*;
    use crate::time::UnixTime;

    pub fn entry(sequence: u64, message: &str) -> Entry {
        Draft::own(6, message.to_owned()).finish(sequence, UnixTime::from_secs(1_800_000_000 + sequence), sequence)
    }

    fn numbers<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Vec<u64> {
        entries.into_iter().map(|entry| entry.sequence).collect()
    }

    #[test]
    fn what_goes_before_it_is_on_disk_is_counted() {
        let mut ring = Ring::default();
        let long = "x".repeat(MAX_OCTETS / 4);
        for sequence in 1..=3 {
            assert_eq!(ring.next_sequence(), sequence);
            ring.push(entry(sequence, &long));
        }
        ring.mark_kept(1);
        assert_eq!((numbers(ring.unkept(1)), numbers(ring.unkept(MAX_OCTETS))), (vec![2], vec![2, 3]));
        ring.push(entry(4, &long));
        assert_eq!((numbers(ring.newest_first()), ring.lost()), (vec![4, 3, 2], 0));
        ring.push(entry(5, &long));
        assert_eq!((numbers(ring.newest_first()), ring.lost()), (vec![5, 4, 3], 1));
        assert_eq!(numbers(ring.unkept(MAX_OCTETS)), [3, 4, 5]);
    }

    #[test]
    fn what_was_recalled_is_not_written_again() {
        for (floor, next) in [(5, 9), (100, 100)] {
            let mut ring = Ring::recall(vec![entry(7, "a"), entry(8, "b")], floor);
            assert_eq!((ring.next_sequence(), ring.unkept(MAX_OCTETS).len(), ring.lost()), (next, 0, 0));
            ring.push(entry(next, "c"));
            assert_eq!(numbers(ring.unkept(MAX_OCTETS)), [next]);
        }
        assert_eq!(Ring::default().next_sequence(), 1);
    }

    proptest! {
        #[test]
        fn it_stays_within_its_limit(sizes in proptest::collection::vec(0_usize..600_000, 1..40)) {
            let mut ring = Ring::default();
            for size in sizes {
                ring.push(entry(ring.next_sequence(), &"x".repeat(size)));
                prop_assert!(ring.octets <= MAX_OCTETS && !ring.entries.is_empty());
                prop_assert_eq!(ring.octets, ring.entries.iter().map(Entry::size).sum::<usize>());
            }
        }
    }
}
