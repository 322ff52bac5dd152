//! How the records change. Each rule takes the record that stands and returns the one to write, whole.

use super::record::{Commit, Needs, Records, Try};
use super::{Booted, Failed, Slot, TRIES, Target, Version, Why};

/// Why a change is not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The slot to be written runs now.
    #[error("slot {} runs and can't be overwritten before it is committed", .0.letter())]
    Runs(Slot),
    /// This version failed its trial.
    #[error("version {0} failed its trial here; ask for it again to try once more")]
    FailedBefore(Version),
    /// This version is older than what runs.
    #[error("version {version} is older than {running}, which runs")]
    Older {
        /// That which is to be tried.
        version: Version,
        /// That which runs.
        running: Version,
    },
    /// The slot to be written is the one that is trusted.
    #[error("slot {} is the committed one and is not overwritten", .0.letter())]
    Committed(Slot),
    /// No commit record can be read.
    #[error("no record tells which slot is good: choose one first")]
    NoRecord,
    /// Somebody chose a slot though a record tells.
    #[error("the records tell which slot is good")]
    Known,
    /// The sequence is at its end.
    #[error("the commit record has been written {} times and can't be written again", Commit::LAST)]
    Exhausted,
}

/// The slot that an update may overwrite: never the committed one, never the one that runs.
///
/// # Errors
///
/// [`Refused::Runs`] while the slot on trial runs.
pub fn writable(commit: &Commit, booted: &Booted) -> Result<Slot, Refused> {
    let slot = commit.slot.other();
    if booted.slot() == Some(slot) { Err(Refused::Runs(slot)) } else { Ok(slot) }
}

/// What has to be written at boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upkeep {
    /// The commit record that stands from now on; nothing when neither copy can be read and GRUB did not know either.
    pub commit: Option<Commit>,
    /// Whether it must be written.
    pub write_commit: bool,
    /// The try record to write.
    pub tries: Option<Try>,
    /// What was learnt, for the journal and the screen.
    pub notes: Vec<Note>,
}

/// What init learnt from the records at boot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Note {
    /// A trial ended badly.
    #[error("the update in slot {} failed and is given up", .0.letter())]
    TrialFailed(Slot),
    /// One copy of the commit record was bad or old.
    #[error("a copy of the commit record was bad or old and is written anew")]
    CommitRepaired,
    /// Both were bad; GRUB's memory helped.
    #[error("both copies of the commit record were bad; slot {} is the one that was booted last", .0.letter())]
    CommitRecovered(Slot),
    /// Both were bad and nothing helped.
    #[error("no record tells which slot is good: choose one on the page")]
    CommitLost,
    /// A copy of the try record was bad.
    #[error("a copy of the try record was bad and is written anew")]
    TryRepaired,
}

/// What init does to the records at boot, before anything else may change them.
///
/// `running` is this system's version. `salt` is 16 random hexadecimal digits, used where the record has none.
pub fn upkeep(records: &Records, booted: &Booted, running: Option<&Version>, salt: &str) -> Upkeep {
    let mut notes = Vec::new();
    let (commit, write_commit) = match records.commit() {
        Some((_, standing)) => {
            let kept = settled(standing, booted, running, &mut notes);
            let same = records.commits.iter().all(|copy| copy.valid() == Some(standing));
            if !same {
                notes.push(Note::CommitRepaired);
            }
            let changed = kept != *standing;
            (Some(if changed { bumped(kept).unwrap_or_else(|_| standing.clone()) } else { kept }), changed || !same)
        }
        None => match booted.slot() {
            Some(slot) if booted.why == Why::Default => {
                notes.push(Note::CommitRecovered(slot));
                (Some(chosen(slot, running)), true)
            }
            _ => {
                notes.push(Note::CommitLost);
                (None, false)
            }
        },
    };
    let standing = records.tried().map(|(_, record)| record.clone());
    let mut record = standing.unwrap_or_else(|| lost(commit.as_ref()));
    if record.salt.len() < 16 {
        salt.clone_into(&mut record.salt);
    }
    let bad = records.tries.iter().any(|copy| copy.valid().is_none());
    if bad {
        notes.push(Note::TryRepaired);
    }
    let stale = records.tries.iter().any(|copy| copy.valid() != Some(&record));
    Upkeep { commit, write_commit, tries: stale.then_some(record), notes }
}

/// The try record in place of a lost one: nobody knows how often the slot on trial was tried.
fn lost(commit: Option<&Commit>) -> Try {
    let trial = commit.filter(|commit| commit.pending);
    Try { of: trial.and_then(|commit| commit.mark), tries: trial.map_or(0, |_| TRIES), ..Try::first(String::new()) }
}

/// The standing record after what this boot shows.
fn settled(standing: &Commit, booted: &Booted, running: Option<&Version>, notes: &mut Vec<Note>) -> Commit {
    let mut commit = standing.clone();
    if let (Some(slot), Some(version)) = (booted.slot(), running) {
        // What an update was called when it was written stands: by that name it is refused once it failed.
        version_of(&mut commit, slot).get_or_insert_with(|| version.clone());
    }
    // `tries` is 0 when the tries could not be counted: then nothing was tried.
    let gave_up = booted.why == Why::Fallback && booted.tries > 0 && booted.target == Target::Slot(commit.slot);
    if commit.pending && gave_up {
        notes.push(Note::TrialFailed(commit.slot.other()));
        end_trial(&mut commit);
    }
    if booted.target == Target::Recovery {
        commit.want_recovery = false;
    }
    commit.reset |= booted.reset;
    commit
}

/// The record of a trial that init itself saw fail. Init then reboots into the committed slot.
///
/// # Errors
///
/// [`Refused::Exhausted`].
pub fn failed(commit: &Commit) -> Result<Commit, Refused> {
    let mut next = commit.clone();
    end_trial(&mut next);
    bumped(next)
}

fn end_trial(commit: &mut Commit) {
    let slot = commit.slot.other();
    if let Some(version) = commit.version(slot).cloned() {
        commit.failed.push(version);
    }
    commit.pending = false;
    commit.mark = None;
    commit.peer_good = false;
}

/// The record after `version` was written into `slot`, read back and found right. It is on trial from the next boot.
///
/// `needs`: what is reached now and must be so within the trial. `asked`: somebody asked for this version although it is
/// older than what runs or failed before.
///
/// # Errors
///
/// Those of [`writable`], [`Refused::FailedBefore`] and [`Refused::Older`].
pub fn pending(
    commit: &Commit,
    booted: &Booted,
    version: &Version,
    needs: Needs,
    asked: bool,
) -> Result<Commit, Refused> {
    let slot = writable(commit, booted)?;
    if commit.failed.contains(version) && !asked {
        return Err(Refused::FailedBefore(version.clone()));
    }
    if let Some(running) = booted.slot().and_then(|slot| commit.version(slot))
        && version.is_before(running)
        && !asked
    {
        return Err(Refused::Older { version: version.clone(), running: running.clone() });
    }
    let mut next = commit.clone();
    next.failed.forget(version);
    *version_of(&mut next, slot) = Some(version.clone());
    next.pending = true;
    next.peer_good = false;
    next.needs = needs;
    let mut next = bumped(next)?;
    next.mark = Some(next.sequence);
    Ok(next)
}

/// The record before the slot on trial is overwritten by another system, or nothing when none is on trial.
///
/// The committed slot needs no such record: an unfinished slot does not load (see [`crate::update`]).
///
/// # Errors
///
/// Those of [`writable`].
pub fn withdrawn(commit: &Commit, booted: &Booted) -> Result<Option<Commit>, Refused> {
    writable(commit, booted)?;
    if !commit.pending {
        return Ok(None);
    }
    let mut next = commit.clone();
    next.pending = false;
    next.mark = None;
    bumped(next).map(Some)
}

/// The record after the system that runs proved healthy, or nothing when there is nothing to commit: it is the committed
/// slot, recovery, or one that somebody chose by hand.
///
/// # Errors
///
/// [`Refused::Exhausted`].
pub fn healthy(commit: &Commit, booted: &Booted) -> Result<Option<Commit>, Refused> {
    let Some(slot) = booted.slot().filter(|slot| *slot != commit.slot) else { return Ok(None) };
    let on_trial = commit.pending && booted.why == Why::Pending;
    // The committed slot does not load, and what it was is no version's fault.
    let stands_in = !commit.pending && booted.why == Why::Fallback;
    if !on_trial && !stands_in {
        return Ok(None);
    }
    let mut next = commit.clone();
    next.slot = slot;
    next.pending = false;
    next.mark = None;
    next.peer_good = on_trial;
    bumped(next).map(Some)
}

/// The try record after a boot that lasted: the next one is not counted against the box.
pub fn acknowledged(record: &Try) -> Try {
    Try { boots: 0, ..record.clone() }
}

/// The record that has recovery booted next, or no more.
///
/// # Errors
///
/// [`Refused::Exhausted`].
pub fn want_recovery(commit: &Commit, want: bool) -> Result<Commit, Refused> {
    bumped(Commit { want_recovery: want, ..commit.clone() })
}

/// The record that has the configuration erased at the next early boot, or says that this is done.
///
/// # Errors
///
/// [`Refused::Exhausted`].
pub fn reset(commit: &Commit, wanted: bool) -> Result<Commit, Refused> {
    bumped(Commit { reset: wanted, ..commit.clone() })
}

/// A record from nothing, for the slot that a person or GRUB's memory names. The other is not trusted.
pub fn chosen(slot: Slot, running: Option<&Version>) -> Commit {
    let mut commit = Commit { slot, peer_good: false, failed: Failed::default(), ..Commit::first(None) };
    *version_of(&mut commit, slot) = running.cloned();
    commit
}

fn version_of(commit: &mut Commit, slot: Slot) -> &mut Option<Version> {
    let [a, b] = &mut commit.versions;
    match slot {
        Slot::A => a,
        Slot::B => b,
    }
}

fn bumped(commit: Commit) -> Result<Commit, Refused> {
    if commit.sequence >= Commit::LAST {
        return Err(Refused::Exhausted);
    }
    Ok(Commit { sequence: commit.sequence + 1, ..commit })
}
