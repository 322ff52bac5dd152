//! Power cuts in a factory reset: every cut ends in a reset that is completed or in the data as they were.
//!
//! The writes are recorded at our own boundaries: the commit record's by the code that stores it, the erasure's by its plan,
//! and those of the real mke2fs as the blocks that it changed, any part of which may be there in any order.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use pilotlight::slots::device::{load, store_commit};
use pilotlight::slots::{COMMITS, Commit, SECTOR, TRIES_AT, Try, change};
use pilotlight::supervise::storage::{Action, Content, Event as Storage, LOOKED_AT, Preparation, erasure};

use crate::peers;
use crate::power_cuts::{Dice, Event, Recorder};

const BLOCK: usize = 4096;
const OCTETS: usize = 16 << 20;

/// One write: to the records, or of blocks of the data partition.
#[derive(Clone)]
enum Write {
    Record(u64, Box<[u8; SECTOR]>),
    /// This block is as it is in the old file system (0), zero (1), as in the new one (2).
    Block(usize, u8),
}

/// A file system made by mke2fs, with something in it.
fn filesystem(directory: &Path, name: &str, secret: &str) -> Vec<u8> {
    let (image, content) = (directory.join(name), directory.join(format!("{name}.d")));
    fs::create_dir(&content).unwrap();
    fs::write(content.join("secret"), secret.repeat(1000)).unwrap();
    fs::File::create(&image).unwrap().set_len(OCTETS as u64).unwrap();
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.args(["-q", "-F", "-t", "ext4", "-m", "1", "-E", "lazy_itable_init=1", "-d"]).arg(&content).arg(&image);
    assert!(mke2fs.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").status().unwrap().success());
    fs::read(image).unwrap()
}

/// A disk's life in a reset: the writes of each step, which is flushed before the next.
fn steps(old: &[u8], new: &[u8]) -> (BTreeMap<u64, [u8; SECTOR]>, Vec<Vec<Write>>) {
    let blank = |octets: &[u8]| octets.iter().all(|octet| *octet == 0);
    let first = Commit::first(None);
    let tries = Try::first("0123456789abcdef".into()).encode();
    let now: BTreeMap<_, _> =
        COMMITS.iter().map(|at| (*at, first.encode())).chain(TRIES_AT.iter().map(|at| (*at, tries))).collect();
    let mut recorder = Recorder { now: now.clone(), log: Vec::new() };
    let mut steps = Vec::new();
    let mut record = |wanted, steps: &mut Vec<Vec<Write>>| {
        let found = load(&mut recorder);
        let next = change::reset(found.commit().unwrap().1, wanted).unwrap();
        store_commit(&mut recorder, &found, &next).unwrap();
        let mut open = Vec::new();
        for event in std::mem::take(&mut recorder.log) {
            match event {
                Event::Write(sector, octets) => open.push(Write::Record(sector, Box::new(octets))),
                Event::Flush => steps.push(std::mem::take(&mut open)),
            }
        }
    };
    record(true, &mut steps);
    for (offset, length) in erasure(OCTETS as u64) {
        let blocks = offset as usize / BLOCK..(offset + length) as usize / BLOCK;
        let held = blocks.filter(|block| !blank(&old[block * BLOCK..][..BLOCK]));
        steps.push(held.map(|block| Write::Block(block, 1)).collect());
    }
    let made = (0..OCTETS / BLOCK).filter(|block| !blank(&new[block * BLOCK..][..BLOCK]));
    steps.push(made.map(|block| Write::Block(block, 2)).collect());
    record(false, &mut steps);
    (now, steps)
}

struct Disk<'a> {
    old: &'a [u8],
    new: &'a [u8],
    records: BTreeMap<u64, [u8; SECTOR]>,
    blocks: Vec<u8>,
}

impl Disk<'_> {
    fn apply(&mut self, write: &Write) {
        match write {
            Write::Record(sector, octets) => drop(self.records.insert(*sector, **octets)),
            Write::Block(block, kind) => self.blocks[*block] = *kind,
        }
    }

    /// What the next boot does about this disk. Panics at half a reset that it would use.
    fn boots(&self) -> Next {
        let records = load(&mut Recorder { now: self.records.clone(), log: Vec::new() });
        let reset = records.commit().expect("a record is always readable").1.reset;
        let block = |block: usize| match self.blocks[block] {
            0 => self.old[block * BLOCK..][..BLOCK].to_vec(),
            1 => vec![0; BLOCK],
            _ => self.new[block * BLOCK..][..BLOCK].to_vec(),
        };
        let beginning: Vec<u8> = (0..LOOKED_AT / BLOCK).flat_map(block).collect();
        let looked = Storage::Looked { content: Content::of(&beginning), reset };
        match Preparation::default().on(looked) {
            Action::Erase | Action::Make(_) => Next::Completes,
            Action::Mount | Action::Check(_) => {
                let is = |octets: &[u8]| (0..OCTETS / BLOCK).all(|at| block(at) == octets[at * BLOCK..][..BLOCK]);
                match (is(self.old), is(self.new)) {
                    (true, _) => Next::Old,
                    (_, true) => Next::New,
                    (false, false) => Next::Half,
                }
            }
            Action::Grow | Action::UseMemory(_) => panic!("nothing was tried"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Next {
    Old,
    New,
    Completes,
    /// It would use what is neither.
    Half,
}

#[test]
fn a_cut_in_a_factory_reset_leaves_the_old_data_or_a_reset_that_is_completed() {
    if !peers::require("mke2fs", "e2fsprogs") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (filesystem(dir.path(), "old", "old secret "), filesystem(dir.path(), "new", "new "));
    let (records, steps) = steps(&old, &new);
    let blocks = vec![0; OCTETS / BLOCK];
    let mut kept = Disk { old: &old, new: &new, records, blocks };
    assert_eq!(kept.boots(), Next::Old);
    let mut dice = Dice(0x5eed_cafe_f00d_0001);
    let (mut counts, mut ends, mut seen) = (BTreeMap::new(), Vec::new(), HashSet::new());
    for (number, step) in steps.iter().enumerate() {
        for prefix in 1..=step.len() {
            // In order, and any part of what was not flushed.
            for round in 0..40 {
                let bits: Vec<bool> = (0..prefix).map(|_| round == 0 || dice.below(2) == 0).collect();
                if !seen.insert((number, bits.clone())) {
                    continue;
                }
                let mut cut = Disk { old: &old, new: &new, records: kept.records.clone(), blocks: kept.blocks.clone() };
                step[..prefix].iter().zip(&bits).filter(|(_, bit)| **bit).for_each(|(write, _)| cut.apply(write));
                *counts.entry(format!("{:?}", cut.boots())).or_insert(0usize) += 1;
            }
        }
        step.iter().for_each(|write| kept.apply(write));
        ends.push(kept.boots());
    }
    assert_eq!(counts.get("Half"), None, "{counts:?}");
    assert_eq!(ends.last(), Some(&Next::New), "{ends:?}");
    // From the moment at which it is recorded until it is done.
    assert!(ends[..ends.len() - 2].iter().all(|end| *end == Next::Completes), "{ends:?}");
    // What was is nowhere any more.
    let left: Vec<u8> = (0..OCTETS / BLOCK)
        .flat_map(|at| match kept.blocks[at] {
            0 => old[at * BLOCK..][..BLOCK].to_vec(),
            1 => vec![0; BLOCK],
            _ => new[at * BLOCK..][..BLOCK].to_vec(),
        })
        .collect();
    assert!(!left.windows(10).any(|octets| octets == b"old secret"));
    let total: usize = counts.values().sum();
    assert!(total >= 1000, "{counts:?}");
    peers::say(&format!("power cuts, factory reset: {total} states with flushes honoured: {counts:?}, none half"));
}
