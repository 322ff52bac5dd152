//! What the slot records need at boot, before anything else may change them.
//!
//! An edge: it writes to the `state` partition, in the process that may wait for disks. What is written says
//! [`crate::slots::change`].

use std::path::Path;

use super::log::{Level, Log};
use super::slots::in_words;
use crate::slots::device::{Device, load, store_commit, store_try};
use crate::slots::{Booted, Commit, Version, change};
use crate::sys::random;

/// The records of the box's own disk.
pub(super) struct Kept<'a> {
    device: Device,
    log: &'a Log,
}

impl<'a> Kept<'a> {
    /// Opens the partition at `path` and writes what this boot shows: a trial that failed, copies that were torn, a reset
    /// that was chosen in GRUB's menu.
    pub(super) fn open(path: &Path, booted: &Booted, log: &'a Log) -> Option<Self> {
        let device = Device::open(path)
            .inspect_err(|error| log.line(Level::Error, &format!("{}: no slot records: {error}", path.display())));
        let mut kept = Self { device: device.ok()?, log };
        kept.upkeep(booted);
        Some(kept)
    }

    fn upkeep(&mut self, booted: &Booted) {
        let salt: String = random::octets()
            .map(|(octets, _)| octets[..8].iter().map(|octet| format!("{octet:02x}")).collect())
            .unwrap_or_default();
        let records = load(&mut self.device);
        let upkeep = change::upkeep(&records, booted, Version::parse(env!("CARGO_PKG_VERSION")).as_ref(), &salt);
        for note in &upkeep.notes {
            self.log.line(Level::Warning, &format!("slot records: {note}"));
        }
        let commit = upkeep.commit.filter(|_| upkeep.write_commit);
        let stored = match &commit {
            Some(commit) => store_commit(&mut self.device, &records, commit),
            None => Ok(()),
        };
        let tried = match &upkeep.tries {
            Some(tries) => store_try(&mut self.device, &records, tries),
            None => Ok(()),
        };
        for fault in [stored, tried].into_iter().filter_map(Result::err) {
            self.log.line(Level::Error, &in_words(&fault));
        }
    }

    /// Whether everything is to be forgotten.
    pub(super) fn wants_reset(&mut self) -> bool {
        self.standing().is_some_and(|commit| commit.reset)
    }

    /// Everything is forgotten, and the medium knows.
    pub(super) fn reset_done(&mut self) {
        let records = load(&mut self.device);
        let Some((_, standing)) = records.commit().filter(|(_, commit)| commit.reset) else { return };
        match change::reset(standing, false) {
            Ok(commit) => {
                if let Err(fault) = store_commit(&mut self.device, &records, &commit) {
                    // It is done once more at the next boot: worse than once, better than half.
                    self.log.line(Level::Error, &format!("the factory reset is done, but: {}", in_words(&fault)));
                }
            }
            Err(refused) => self.log.line(Level::Error, &format!("the factory reset is done, but: {refused}")),
        }
    }

    fn standing(&mut self) -> Option<Commit> {
        load(&mut self.device).commit().map(|(_, commit)| commit.clone())
    }
}
