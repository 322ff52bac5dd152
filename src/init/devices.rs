//! Kernel modules for the hardware that is there, without udev.
//!
//! An edge, because it reads sysfs and hands files to the kernel; which modules and in which order says
//! [`crate::supervise::modules`].

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::log::{Level, Log};
use crate::supervise::modules::Index;

/// Directories below /sys/devices are not nested deeper than this.
const DEEPEST: usize = 32;

/// The image's modules, and which of them were tried.
pub(super) struct Devices<'a> {
    log: &'a Log,
    directory: PathBuf,
    index: Index,
    /// Loaded, or refused by the kernel: neither is tried again.
    tried: BTreeSet<String>,
    /// Aliases that were looked up.
    seen: BTreeSet<String>,
}

impl<'a> Devices<'a> {
    /// The modules for the running kernel, with those loaded that are wanted in any case. `None` when this system is not
    /// made of our image: then the modules are someone else's to load.
    pub(super) fn open(log: &'a Log) -> Option<Self> {
        let release = nix::sys::utsname::uname().ok()?.release().to_str()?.to_owned();
        let directory = Path::new("/lib/modules").join(release);
        // Only our image has this file.
        let wanted = fs::read_to_string(directory.join("modules-load")).ok()?;
        let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
        let index = Index::parse(&text("modules.dep"), &text("modules.softdep"), &text("modules.alias"));
        let mut devices = Self { log, directory, index, tried: BTreeSet::new(), seen: BTreeSet::new() };
        for name in wanted.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            devices.load(name);
        }
        Some(devices)
    }

    /// Loads what the hardware asks for that is there now, until it asks for nothing more: a bus that gets its driver may
    /// show further devices. Returns the number of modules.
    pub(super) fn coldplug(&mut self) -> usize {
        let before = self.tried.len();
        loop {
            let mut aliases = BTreeSet::new();
            collect(Path::new("/sys/devices"), DEEPEST, &mut aliases);
            let new: Vec<_> = aliases.difference(&self.seen).cloned().collect();
            if new.is_empty() {
                return self.tried.len() - before;
            }
            for alias in &new {
                let names: Vec<_> = self.index.matching(alias).map(str::to_owned).collect();
                names.iter().for_each(|name| self.load(name));
            }
            self.seen.extend(new);
        }
    }

    /// Whether a watchdog has a driver; the kernel's own timer takes its place where the board has none.
    pub(super) fn ensure_watchdog(&mut self) {
        if !Path::new("/dev/watchdog0").exists() {
            self.log
                .line(Level::Warning, "this board has no watchdog that is known: the kernel's own timer does its work");
            self.load("softdog");
        }
    }

    fn load(&mut self, name: &str) {
        let plan: Vec<_> = self
            .index
            .plan(name, &self.tried)
            .into_iter()
            .map(|(name, file)| (name.to_owned(), self.directory.join(file)))
            .collect();
        for (name, file) in plan {
            match insert(&file) {
                Ok(()) | Err(Errno::EEXIST) => {}
                // The driver finds that the hardware is not its own.
                Err(Errno::ENODEV) => self.log.line(Level::Debug, &format!("module {name}: no such device")),
                Err(error) => self.log.line(Level::Warning, &format!("module {name}: {}", io::Error::from(error))),
            }
            self.tried.insert(name);
        }
    }
}

fn insert(file: &Path) -> Result<(), Errno> {
    let file = File::open(file).map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
    finit_module(file, c"", ModuleInitFlags::empty())
}

/// Adds what the files `modalias` below `directory` say.
fn collect(directory: &Path, depth: usize, aliases: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        // Links lead out of the tree or back.
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth > 0 {
            collect(&entry.path(), depth - 1, aliases);
        } else if kind.is_file() && entry.file_name() == "modalias" {
            let alias = fs::read_to_string(entry.path()).unwrap_or_default();
            aliases.extend(Some(alias.trim().to_owned()).filter(|alias| !alias.is_empty()));
        }
    }
}
