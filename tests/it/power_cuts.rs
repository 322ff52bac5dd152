//! Power cuts: the writes and flushes of the real code are recorded, and every state that a cut may leave is looked at.
//!
//! With flushes honoured, a cut keeps all that was flushed and any part of the rest; with flushes ignored, any part of
//! everything. A sector is written whole or not at all: torn ones are in the model of `slots`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use pilotlight::slots::device::{Sectors, load, store_commit, store_try};
use pilotlight::slots::{
    Booted, COMMITS, Commit, Hand, Needs, Records, SECTOR, TRIES_AT, Target, Try, Version, Why, change, decide,
};

use super::peers;

/// A block device that remembers what was done to it.
pub struct Recorder<const SIZE: usize> {
    pub now: BTreeMap<u64, [u8; SIZE]>,
    pub log: Vec<Event<SIZE>>,
}

/// One entry of the record.
#[derive(Clone)]
pub enum Event<const SIZE: usize> {
    Write(u64, [u8; SIZE]),
    Flush,
}

impl Sectors for Recorder<SECTOR> {
    fn read(&mut self, sector: u64) -> io::Result<[u8; SECTOR]> {
        Ok(self.now.get(&sector).copied().unwrap_or([0; SECTOR]))
    }

    fn write(&mut self, sector: u64, octets: &[u8; SECTOR]) -> io::Result<()> {
        self.now.insert(sector, *octets);
        self.log.push(Event::Write(sector, *octets));
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.log.push(Event::Flush);
        Ok(())
    }
}

/// Numbers that look random and are the same at each run.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end).expect("small")).expect("below a usize")
    }
}

/// Applies those of `writes` whose bit is set, in order.
fn apply<const SIZE: usize>(
    before: &BTreeMap<u64, [u8; SIZE]>,
    writes: &[(u64, [u8; SIZE])],
    keep: impl Fn(usize) -> bool,
) -> BTreeMap<u64, [u8; SIZE]> {
    let mut after = before.clone();
    for (index, (sector, octets)) in writes.iter().enumerate() {
        if keep(index) {
            after.insert(*sector, *octets);
        }
    }
    after
}

/// What cuts while `log` was written over `before` may leave: all subsets of up to six unflushed writes, 64 samples of
/// more.
pub fn crashes<const SIZE: usize>(
    before: &BTreeMap<u64, [u8; SIZE]>,
    log: &[Event<SIZE>],
    honoured: bool,
    dice: &mut Dice,
) -> Vec<BTreeMap<u64, [u8; SIZE]>> {
    let mut kept = before.clone();
    let mut open: Vec<(u64, [u8; SIZE])> = Vec::new();
    let mut states = BTreeSet::new();
    let mut sweep = |kept: &BTreeMap<u64, [u8; SIZE]>, open: &[(u64, [u8; SIZE])]| {
        if open.len() <= 6 {
            for bits in 0..1u32 << open.len() {
                states.insert(apply(kept, open, |index| bits >> index & 1 == 1));
            }
        } else {
            for _ in 0..64 {
                let cut = dice.below(open.len() + 1);
                let bits: Vec<bool> = open.iter().map(|_| dice.below(2) == 0).collect();
                states.insert(apply(kept, &open[..cut], |index| bits[index]));
            }
        }
    };
    for event in log {
        match event {
            Event::Write(sector, octets) => {
                open.push((*sector, *octets));
                sweep(&kept, &open);
            }
            Event::Flush if honoured => {
                kept = apply(&kept, &open, |_| true);
                open.clear();
            }
            Event::Flush => {}
        }
    }
    sweep(&kept, &open);
    states.into_iter().collect()
}

fn records(state: &BTreeMap<u64, [u8; SECTOR]>) -> Records {
    load(&mut Recorder { now: state.clone(), log: Vec::new() })
}

/// What one step of a box's life found, and what it has to store.
pub struct Step {
    pub found: Records,
    pub standing: Commit,
    pub next: Option<Commit>,
}

/// One step of a box's life: an update that works or that doesn't, a boot, a factory reset, recovery. A boot is counted here,
/// by the code that init uses; a change is left to the caller.
pub fn step(sectors: &mut impl Sectors, number: u32, dice: &mut Dice) -> Step {
    let found = load(sectors);
    let standing = found.commit().expect("it was stored").1.clone();
    let slot = if standing.pending && dice.below(2) == 0 { standing.slot.other() } else { standing.slot };
    let why = if slot == standing.slot { Why::Committed } else { Why::Pending };
    let booted = Booted { target: Target::Slot(slot), why, tries: 1, reset: false };
    let version = Version::parse(&format!("1.0.{number}")).expect("SemVer");
    let next = match dice.below(6) {
        0 => change::pending(&standing, &booted, &version, Needs::Omni, false).ok(),
        1 => change::healthy(&standing, &booted).ok().flatten(),
        2 => change::failed(&standing).ok(),
        3 => change::reset(&standing, !standing.reset).ok(),
        4 => change::want_recovery(&standing, !standing.want_recovery).ok(),
        _ => {
            let (_, record) = found.tried().expect("it was stored");
            let counted = Try { boots: 0, count: (record.count + 1) % 100, ..record.clone() };
            store_try(sectors, &found, &counted).expect("the disk is well");
            None
        }
    };
    Step { found, standing, next }
}

#[test]
fn a_cut_while_a_record_is_stored_keeps_what_was_committed() {
    let mut dice = Dice(0x0ddb_a11f_00d5_1234);
    let first = Commit::first(Version::parse("1.0.0"));
    let record = Try::first("0123456789abcdef".into());
    let [commit, tries] = [first.encode(), record.encode()];
    let now: BTreeMap<_, _> =
        COMMITS.iter().map(|at| (*at, commit)).chain(TRIES_AT.iter().map(|at| (*at, tries))).collect();
    let mut recorder = Recorder { now, log: Vec::new() };
    let mut counts = [0usize; 2];
    for number in 0..1000 {
        let before = recorder.now.clone();
        let Step { found, standing, next } = step(&mut recorder, number, &mut dice);
        if let Some(next) = &next {
            store_commit(&mut recorder, &found, next).expect("the recorder takes all");
        }
        let log = std::mem::take(&mut recorder.log);
        for (at, honoured) in [true, false].into_iter().enumerate() {
            for state in crashes(&before, &log, honoured, &mut dice) {
                counts[at] += 1;
                let left = records(&state);
                let (_, commit) = left.commit().expect("a commit record is always readable");
                assert!(*commit == standing || next.as_ref() == Some(commit), "neither the old record nor the new one");
                assert!(left.tried().is_some(), "a try record is always readable");
                assert!(decide(&left, Hand::Away, [true, true]).order.len() >= 3, "something is booted");
            }
        }
        // What was acknowledged is there, flushes honoured.
        if let Some(next) = next {
            let finished = crashes(&before, &log, true, &mut dice)
                .into_iter()
                .any(|state| records(&state).commit().map(|(_, commit)| commit) == Some(&next));
            assert!(finished && load(&mut recorder).commit().map(|(_, commit)| commit) == Some(&next));
        }
    }
    assert!(counts[0] + counts[1] >= 1000, "{counts:?}");
    peers::say(&format!(
        "power cuts, slot records: {} states with flushes honoured, {} with flushes ignored: all boot, none lost",
        counts[0], counts[1]
    ));
}
