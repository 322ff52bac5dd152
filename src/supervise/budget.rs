//! How often PID 1 may reboot the box by itself, and what it remembers of a run: never an endless reboot.
//!
//! The record counts the runs in a row that ended without anybody's wish: by a reboot of PID 1's own, or without a word
//! (a crash, the hardware watchdog, a power cut). A healthy hour or somebody's wish ends the row. No clock is needed, which
//! would be wrong at boot anyway.

use std::fmt;
use std::time::Duration;

use super::event::{Ending, Why};
use crate::time::Uptime;

/// So many runs in a row may end by themselves; the next one stays up.
pub const MOST_IN_A_ROW: u8 = 3;
/// A run in which no critical service was in trouble for this long ends the row.
pub const HEALTHY_RUN: Duration = Duration::from_secs(3600);
/// How long a critical service may be degraded before the box is rebooted for it.
pub const PATIENCE: Duration = Duration::from_secs(5 * 60);
/// Most octets of a record.
pub const MAX_RECORD: usize = 4096;
/// First line of a record: what it is, and its version.
const HEAD: &str = "pilotlight-run 1";

/// What is kept of a run: first that it runs, at its end how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Runs in a row that ended by themselves; with this one, when it says that it did.
    pub in_a_row: u8,
    /// How it ended; `None` while it runs.
    pub end: Option<End>,
}

/// The shutdown's report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// What was done.
    pub ending: Ending,
    /// Why, in words.
    pub why: String,
    /// Whether nobody had asked for it.
    pub automatic: bool,
    /// How long the box had run.
    pub uptime: Duration,
    /// Each service that ran and how it ended, in words.
    pub exits: Vec<(String, String)>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEAD}\nin-a-row={}", self.in_a_row)?;
        if let Some(end) = &self.end {
            let End { ending, why, automatic, uptime, exits } = end;
            writeln!(f, "ending={ending}\nautomatic={automatic}\nuptime={}\nwhy={}", uptime.as_secs(), one_line(why))?;
            for (service, exit) in exits {
                writeln!(f, "exit={} {}", one_line(service), one_line(exit))?;
            }
        }
        writeln!(f, "complete")
    }
}

fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

impl Record {
    /// Reads a record; `None` when it is none, or not whole.
    pub fn parse(octets: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(octets.get(..octets.len().min(MAX_RECORD))?).ok()?;
        let mut lines = text.lines();
        if lines.next()? != HEAD {
            return None;
        }
        let (mut in_a_row, mut complete) = (None, false);
        let (mut ending, mut automatic, mut uptime, mut why, mut exits) = (None, false, 0, String::new(), Vec::new());
        for line in lines {
            match line.split_once('=') {
                None if line == "complete" => complete = true,
                Some(("in-a-row", value)) => in_a_row = value.parse().ok(),
                Some(("ending", "reboot")) => ending = Some(Ending::Reboot),
                Some(("ending", "power-off")) => ending = Some(Ending::PowerOff),
                Some(("ending", "halt")) => ending = Some(Ending::Halt),
                Some(("automatic", value)) => automatic = value == "true",
                Some(("uptime", value)) => uptime = value.parse().ok()?,
                Some(("why", value)) => value.clone_into(&mut why),
                Some(("exit", value)) => {
                    let (service, exit) = value.split_once(' ')?;
                    exits.push((service.to_owned(), exit.to_owned()));
                }
                Some(_) | None => return None,
            }
        }
        let end = ending.map(|ending| End { ending, why, automatic, uptime: Duration::from_secs(uptime), exits });
        Some(Self { in_a_row: in_a_row?, end }).filter(|_| complete)
    }
}

/// What is known of the run before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Previous {
    /// Its record; `None` when there is none, or it can't be read.
    pub record: Option<Record>,
    /// Whether a record outlives this run: it lies on a disk.
    pub lasting: bool,
    /// Whether the hardware says that its watchdog ended the run.
    pub by_watchdog: bool,
}

impl fmt::Display for Previous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.record {
            None => f.write_str("the run before left no record")?,
            Some(Record { end: None, .. }) => {
                f.write_str("the run before ended without a word: a power cut, a reset or a crash")?;
            }
            Some(Record { end: Some(End { ending, why, uptime, exits, .. }), .. }) => {
                write!(f, "the run before ended after {} s by {ending}, {why}", uptime.as_secs())?;
                for (service, exit) in exits {
                    write!(f, "; {service}: {exit}")?;
                }
            }
        }
        if self.by_watchdog { f.write_str(" (the hardware watchdog fired)") } else { Ok(()) }
    }
}

/// Why PID 1 does not reboot the box by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// [`MOST_IN_A_ROW`] runs ended by themselves; another reboot would not help either.
    Spent,
    /// No record would outlive the reboot, so that it could go on for ever.
    NotLasting,
    /// What was before is not known yet.
    Unknown,
    /// This is recovery: there is nothing behind it.
    Recovery,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spent => write!(f, "{MOST_IN_A_ROW} runs in a row ended by themselves"),
            Self::NotLasting => f.write_str("no disk would remember the reboot"),
            Self::Unknown => f.write_str("the run before is not known"),
            Self::Recovery => f.write_str("recovery never reboots by itself"),
        }
    }
}

/// The reboots that are left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Runs in a row that ended by themselves, this one not counted.
    pub in_a_row: u8,
    lasting: Option<bool>,
    /// The row ends then, unless a critical service is in trouble.
    healthy_at: Option<Uptime>,
}

impl Budget {
    /// What follows from the run before; this one begins at `now`.
    pub fn of(previous: &Previous, now: Uptime) -> Self {
        let in_a_row = match &previous.record {
            None => 0,
            // Nobody said that it ends.
            Some(Record { in_a_row, end: None }) => in_a_row.saturating_add(1),
            Some(Record { in_a_row, end: Some(end) }) if end.automatic => *in_a_row,
            Some(Record { .. }) => 0,
        };
        Self { in_a_row, lasting: Some(previous.lasting), healthy_at: (in_a_row > 0).then(|| now + HEALTHY_RUN) }
    }

    /// Whether PID 1 may reboot the box by itself.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn may_reboot(&self) -> Result<(), Refusal> {
        match self.lasting {
            None => Err(Refusal::Unknown),
            Some(false) => Err(Refusal::NotLasting),
            Some(true) if self.in_a_row >= MOST_IN_A_ROW => Err(Refusal::Spent),
            Some(true) => Ok(()),
        }
    }

    /// When [`Self::forgive`] should be asked.
    pub fn deadline(&self) -> Option<Uptime> {
        self.healthy_at
    }

    /// Ends the row when its time has come; says whether it did. With `trouble` the hour begins anew.
    pub fn forgive(&mut self, now: Uptime, trouble: bool) -> bool {
        match self.healthy_at {
            Some(at) if now >= at && trouble => self.healthy_at = Some(now + HEALTHY_RUN),
            Some(at) if now >= at => {
                (self.in_a_row, self.healthy_at) = (0, None);
                return true;
            }
            Some(_) | None => {}
        }
        false
    }

    /// The record of a run that goes on.
    pub fn running(&self) -> Record {
        Record { in_a_row: self.in_a_row, end: None }
    }

    /// The record of a run that ends.
    pub fn ended(&self, ending: Ending, why: Why, uptime: Duration, exits: Vec<(String, String)>) -> Record {
        let automatic = why.is_automatic();
        let in_a_row = if automatic { self.in_a_row.saturating_add(1) } else { 0 };
        Record { in_a_row, end: Some(End { ending, why: why.to_string(), automatic, uptime, exits }) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn previous(record: Record) -> Previous {
        Previous { record: Some(record), lasting: true, by_watchdog: false }
    }

    /// Boots again and again, each run ending as `end` says; how many reboots PID 1 asks for itself before it stays up.
    fn reboots(mut end: impl FnMut(&Budget) -> Record) -> u32 {
        let mut record = Record { in_a_row: 0, end: None };
        record.end = Some(End {
            ending: Ending::Reboot,
            why: String::new(),
            automatic: false,
            uptime: Duration::ZERO,
            exits: Vec::new(),
        });
        for count in 0..100 {
            let budget = Budget::of(&previous(record), Uptime::from_secs(1));
            if budget.may_reboot().is_err() {
                return count;
            }
            record = end(&budget);
        }
        panic!("it reboots for ever");
    }

    #[test]
    fn a_service_that_never_comes_back_reboots_the_box_three_times() {
        let automatic =
            |budget: &Budget| budget.ended(Ending::Reboot, Why::Critical("web"), Duration::from_secs(400), Vec::new());
        assert_eq!(reboots(automatic), 3);
        // Crashes of PID 1 and resets by the hardware are counted with them.
        assert_eq!(reboots(|budget| budget.running()), 3);
    }

    #[test]
    fn a_wish_or_a_healthy_hour_ends_the_row() {
        let row = Record { in_a_row: 2, end: None };
        let mut budget = Budget::of(&previous(row), Uptime::from_secs(5));
        assert_eq!(budget.in_a_row, 3);
        let hour = budget.deadline().unwrap();
        assert!(!budget.forgive(hour, true) && budget.in_a_row == 3);
        assert!(budget.forgive(budget.deadline().unwrap(), false) && budget.may_reboot().is_ok());
        let asked = budget.ended(Ending::Reboot, Why::Asked(907), Duration::ZERO, Vec::new());
        assert_eq!(Budget::of(&previous(asked), Uptime::default()).in_a_row, 0);
    }

    #[test]
    fn without_a_lasting_record_there_is_no_reboot_at_all() {
        let lost = Previous { lasting: false, ..Previous::default() };
        assert_eq!(Budget::of(&lost, Uptime::default()).may_reboot(), Err(Refusal::NotLasting));
        assert_eq!(Budget::default().may_reboot(), Err(Refusal::Unknown));
    }

    #[test]
    fn a_record_reads_as_it_was_written() {
        let exits = vec![("web".to_owned(), "code 0".to_owned()), ("store".to_owned(), "signal 9".to_owned())];
        let record = Budget { in_a_row: 1, ..Budget::default() }.ended(
            Ending::PowerOff,
            Why::Asked(907),
            Duration::from_secs(77),
            exits,
        );
        let text = record.to_string();
        assert_eq!(Record::parse(text.as_bytes()), Some(record.clone()));
        assert!(text.len() < MAX_RECORD);
        // A torn record is none.
        for cut in 0..text.len() - 1 {
            assert_eq!(Record::parse(&text.as_bytes()[..cut]), None, "{cut}");
        }
        let shown = Previous { record: Some(record), lasting: true, by_watchdog: true }.to_string();
        assert_eq!(
            shown,
            "the run before ended after 77 s by power-off, asked by user 907; web: code 0; store: signal 9 \
             (the hardware watchdog fired)"
        );
    }

    proptest! {
        #[test]
        fn any_octets_are_a_record_or_none(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Record::parse(&octets);
        }

        #[test]
        fn any_record_comes_back(in_a_row in any::<u8>(), why in "[ -~]{0,40}", code in any::<i32>(), uptime in 0..1_u64 << 40) {
            let exits = vec![("images".to_owned(), format!("code {code}"))];
            let uptime = Duration::from_secs(uptime);
            let end = End { ending: Ending::Halt, why, automatic: true, uptime, exits };
            let record = Record { in_a_row, end: Some(end) };
            prop_assert_eq!(Record::parse(record.to_string().as_bytes()), Some(record));
        }
    }
}
