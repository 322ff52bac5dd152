//! Control groups of the services.
//!
//! An edge: it writes the kernel's files. What is written is decided in [`crate::supervise::cgroup`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::supervise::cgroup::{CONTROLLERS, SERVICES_DIR, anonymous, oom_kills};
use crate::supervise::services::Service;

/// The root that PID 1 itself stays in.
const ROOT: &str = "/sys/fs/cgroup";

/// Makes the tree; returns what this kernel lacks, in words.
pub(super) fn prepare() -> Vec<String> {
    if !Path::new(ROOT).join("cgroup.controllers").exists() {
        return vec!["no cgroup v2: services have no limits of memory and tasks".to_owned()];
    }
    let mut lacking = Vec::new();
    for controller in CONTROLLERS {
        let made = fs::create_dir_all(SERVICES_DIR).and_then(|()| {
            let word = format!("+{controller}");
            write(Path::new(ROOT), "cgroup.subtree_control", &word)?;
            write(Path::new(SERVICES_DIR), "cgroup.subtree_control", &word)
        });
        if let Err(error) = made {
            lacking.push(format!("no limits of {controller} for services: {error}"));
        }
    }
    lacking
}

/// A service's group.
#[derive(Debug)]
pub(super) struct Group(PathBuf);

impl Group {
    pub(super) fn of(service: &str) -> Self {
        Self(Path::new(SERVICES_DIR).join(service))
    }

    /// Makes it with the service's limits and returns its `cgroup.procs`; `None` where there are no groups. Limits that can't
    /// be set are returned, in words.
    pub(super) fn enter(&self, service: &Service) -> (Option<File>, Vec<String>) {
        if !Path::new(SERVICES_DIR).is_dir() || fs::create_dir_all(&self.0).is_err() {
            return (None, Vec::new());
        }
        let mut refused = Vec::new();
        for (file, value) in service.limits.writes() {
            // The controller's absence was said once, at the start.
            if self.0.join(file).exists()
                && let Err(error) = write(&self.0, file, &value)
            {
                refused.push(format!("{}: {file} can't be set: {error}", service.name));
            }
        }
        (OpenOptions::new().write(true).open(self.0.join("cgroup.procs")).ok(), refused)
    }

    /// Kills all that is in it. A group that is not there holds nothing.
    pub(super) fn kill(&self) -> io::Result<()> {
        match write(&self.0, "cgroup.kill", "1") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// How many of its processes were killed for want of memory, ever.
    pub(super) fn oom_kills(&self) -> u64 {
        fs::read_to_string(self.0.join("memory.events")).map_or(0, |text| oom_kills(&text))
    }

    /// Octets of memory that it holds.
    pub(super) fn memory(&self) -> Option<u64> {
        fs::read_to_string(self.0.join("memory.current")).ok()?.trim().parse().ok()
    }

    /// As many of them as its processes have made of their own.
    pub(super) fn anonymous(&self) -> Option<u64> {
        anonymous(&fs::read_to_string(self.0.join("memory.stat")).ok()?)
    }
}

fn write(group: &Path, file: &str, value: &str) -> io::Result<()> {
    // Never made: a file that the kernel does not have is an error.
    io::Write::write_all(&mut OpenOptions::new().write(true).open(group.join(file))?, value.as_bytes())
}
