//! [`Counters`]: how often a decision was taken for a reason.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Most names; they are constants of the program, so more is a bug that must not cost memory.
const MOST: usize = 1024;
/// What is counted when there are more.
const OVERFLOW: &str = "counters_overflow";

/// A set of named counters. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    counts: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

impl Counters {
    /// A set without counts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one occurrence of `name`: lower-case words joined by `_`, `.` between domain and reason.
    pub fn count(&self, name: &'static str) {
        self.add(name, 1);
    }

    /// Counts `occurrences` of `name`.
    pub fn add(&self, name: &'static str, occurrences: u64) {
        let mut counts = self.lock();
        let name = if counts.len() >= MOST && !counts.contains_key(name) { OVERFLOW } else { name };
        let count = counts.entry(name).or_default();
        *count = count.saturating_add(occurrences);
    }

    /// How often `name` was counted.
    pub fn value(&self, name: &str) -> u64 {
        self.lock().get(name).copied().unwrap_or(0)
    }

    /// Every name that was counted and how often, sorted by name.
    pub fn snapshot(&self) -> Vec<(&'static str, u64)> {
        self.lock().iter().map(|(name, count)| (*name, *count)).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.counts.lock().expect("no code panics while it holds this lock")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_count_together_and_the_snapshot_is_sorted() {
        let counters = Counters::new();
        let clone = counters.clone();
        counters.count("b");
        clone.count("a");
        clone.add("b", 2);
        assert_eq!(counters.snapshot(), [("a", 1), ("b", 3)]);
        assert_eq!((counters.value("b"), counters.value("c")), (3, 0));
    }

    #[test]
    fn more_names_than_there_can_be_cost_no_memory() {
        let counters = Counters::new();
        for number in 0..MOST + 10 {
            counters.count(Box::leak(format!("n{number}").into_boxed_str()));
        }
        assert_eq!(counters.snapshot().len(), MOST + 1);
        assert_eq!(counters.value(OVERFLOW), 10);
        counters.count("n0");
        assert_eq!(counters.value("n0"), 2);
    }
}
