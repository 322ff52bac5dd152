//! What a machine did: a bounded log and counters that tests assert on.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::watch;

use crate::time::Uptime;

/// Lines kept.
const LINES: usize = 256;
/// The longest line kept, in octets.
const LONGEST: usize = 512;

/// One line of a machine's event log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Uptime,
    /// What: `DISCOVER`, `OFFER from …`, `TFTP snp.efi 65536 octets`, `GET …`, `kernel …`.
    pub what: String,
}

/// How often what happened since the machine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Power-ons asked of the chassis that changed something.
    pub power_ons: u64,
    /// Power-offs asked of the chassis that changed something.
    pub power_offs: u64,
    /// Power cycles asked of the chassis while it was on.
    pub power_cycles: u64,
    /// Starts of agent mode.
    pub boots_agent: u64,
    /// Starts of Talos from the network.
    pub boots_talos_net: u64,
    /// Starts of Talos from disk.
    pub boots_talos_disk: u64,
    /// Passes over all devices in which none booted.
    pub boots_failed: u64,
    /// Wipes of the disk.
    pub wipes: u64,
    /// Writes of Talos to the disk.
    pub installs: u64,
}

#[derive(Default)]
struct Inner {
    events: VecDeque<Event>,
    counts: Counts,
}

/// Log, counters, and a bell that rings at each change.
#[derive(Default)]
pub(super) struct Journal {
    inner: Mutex<Inner>,
    bell: watch::Sender<()>,
}

impl Journal {
    pub(super) fn note(&self, mut what: String) {
        if what.len() > LONGEST {
            let end = (0..=LONGEST).rev().find(|at| what.is_char_boundary(*at)).unwrap_or(0);
            what.truncate(end);
        }
        self.with(|inner| {
            if inner.events.len() == LINES {
                inner.events.pop_front();
            }
            inner.events.push_back(Event { at: Uptime::now(), what });
        });
        self.touch();
    }

    pub(super) fn count(&self, add: impl FnOnce(&mut Counts)) {
        self.with(|inner| add(&mut inner.counts));
    }

    pub(super) fn touch(&self) {
        self.bell.send_replace(());
    }

    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.bell.subscribe()
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.with(|inner| inner.events.iter().cloned().collect())
    }

    pub(super) fn counts(&self) -> Counts {
        self.with(|inner| inner.counts)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().expect("nothing panics while it holds the journal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_keeps_its_last_lines_and_cuts_long_ones() {
        let journal = Journal::default();
        for line in 0..LINES + 3 {
            journal.note(line.to_string());
        }
        journal.note("ä".repeat(LONGEST));
        let events = journal.events();
        assert_eq!(events.len(), LINES);
        assert_eq!(events[0].what, "4");
        assert_eq!(events.last().unwrap().what.len(), LONGEST);
    }
}
