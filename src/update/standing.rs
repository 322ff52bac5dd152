//! Which slot may be written, by what init says of the records.

use crate::slots::{Failed, Slot, Version};
use crate::supervise::control::Status;

/// What a job has to know of the box before it writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// What runs.
    pub running: Version,
    /// The slot that may be written: neither the committed one nor the one that runs.
    pub slot: Slot,
    /// Versions that failed their trial.
    pub failed: Failed,
}

/// Why no slot may be written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoSlot {
    /// There are no records, or nobody has read them yet.
    #[error("this box has no slot records: it does not run from a disk with two slots, or its records can't be read")]
    NoRecords,
    /// What runs is on trial.
    #[error("slot {} runs on trial; wait until it proved itself", .0.letter())]
    OnTrial(Slot),
}

impl Standing {
    /// `own` is the version of this very program: what runs, where the records don't say.
    ///
    /// # Errors
    ///
    /// [`NoSlot`].
    pub fn of(status: &Status, own: &Version) -> Result<Self, NoSlot> {
        let records = status.records.as_ref().ok_or(NoSlot::NoRecords)?;
        let runs = Slot::parse(&status.slot.name);
        let slot = records.committed.other();
        if runs == Some(slot) {
            return Err(NoSlot::OnTrial(slot));
        }
        let [a, b] = &records.versions;
        let running = match runs {
            Some(Slot::A) => a.as_ref(),
            Some(Slot::B) => b.as_ref(),
            // Recovery's version stands in no record.
            None => None,
        };
        let mut failed = Failed::default();
        records.failed.iter().cloned().for_each(|version| failed.push(version));
        Ok(Self { running: running.unwrap_or(own).clone(), slot, failed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::cmdline;
    use crate::supervise::control::SlotRecords;

    fn version(text: &str) -> Version {
        Version::parse(text).expect("SemVer")
    }

    fn status(runs: &str, committed: Slot) -> Status {
        let records = SlotRecords {
            committed,
            pending: None,
            versions: [Some(version("1.0.0")), None],
            failed: vec![version("0.9.0")],
            want_recovery: false,
            trial: String::new(),
        };
        let slot = cmdline::Slot { name: runs.into(), ..cmdline::Slot::default() };
        Status { slot, records: Some(records), ..Status::default() }
    }

    #[test]
    fn the_slot_that_is_written_neither_runs_nor_is_committed() {
        let own = version("2.0.0");
        for committed in [Slot::A, Slot::B] {
            for runs in ["a", "b", "recovery", ""] {
                match Standing::of(&status(runs, committed), &own) {
                    Ok(standing) => {
                        assert_ne!(standing.slot, committed);
                        assert_ne!(standing.slot.letter(), runs);
                        assert_eq!(standing.running, version(if runs == "a" { "1.0.0" } else { "2.0.0" }));
                        assert!(standing.failed.contains(&version("0.9.0")));
                    }
                    Err(no) => assert_eq!(no, NoSlot::OnTrial(Slot::parse(runs).expect("a slot"))),
                }
            }
        }
        assert_eq!(Standing::of(&status("a", Slot::B), &own), Err(NoSlot::OnTrial(Slot::A)));
        assert_eq!(Standing::of(&Status::default(), &own), Err(NoSlot::NoRecords));
    }
}
