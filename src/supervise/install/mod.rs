//! Installation: the system that runs is copied from the stick that it was started from to another disk of the box.
//!
//! [`Installer`] is PID 1's share: one thing at a time, done by a process of its own that tells how far it is ([`Told`]).
//! What the other disk is to hold says [`layout`]; what a disk holds before, [`content`].

pub mod content;
pub mod layout;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::control::{Reply, Status};
use crate::slots::Slot;

/// Disks that are listed.
pub const MOST: usize = 16;
/// Characters of a text that a disk says of itself.
pub const LONGEST: usize = 60;
/// What makes `init` look at the disks, beside its first argument.
pub const SURVEY: &str = "survey";
/// What makes it install, before the name of the disk and its octets.
pub const WRITE: &str = "write";

/// How a disk is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bus {
    /// By USB: a stick, most likely.
    Usb,
    /// By SATA, or IDE.
    Sata,
    /// By NVMe.
    Nvme,
    /// By eMMC, or an SD card.
    Mmc,
    /// By a virtual machine.
    Virtio,
    /// By something else that speaks SCSI, such as SAS.
    Scsi,
    /// Nobody knows.
    Other,
}

impl Bus {
    /// By where the disk stands in sysfs, such as `/sys/devices/pci0000:00/0000:00:17.0/ata1/host0/…/block/sda`.
    pub fn of(path: &str) -> Self {
        let any = |prefix: &str| {
            path.split('/').any(|part| {
                part.strip_prefix(prefix).is_some_and(|rest| rest.starts_with(|next: char| next.is_ascii_digit()))
            })
        };
        // A disk behind USB or SATA is one of SCSI, too.
        if any("usb") {
            Self::Usb
        } else if any("ata") {
            Self::Sata
        } else if any("nvme") {
            Self::Nvme
        } else if any("mmc") {
            Self::Mmc
        } else if any("virtio") {
            Self::Virtio
        } else if any("host") {
            Self::Scsi
        } else {
            Self::Other
        }
    }
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Usb => "USB",
            Self::Sata => "SATA",
            Self::Nvme => "NVMe",
            Self::Mmc => "MMC",
            Self::Virtio => "virtio",
            Self::Scsi => "SCSI",
            Self::Other => "unknown bus",
        })
    }
}

/// A disk that is not the one that the box runs from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The kernel's name for it, such as `sda`: what a person types.
    pub name: String,
    /// Its maker's name for it; empty where it has none.
    pub model: String,
    /// How it is connected.
    pub bus: Bus,
    /// Its octets.
    pub octets: u64,
    /// What is on it, in words.
    pub holds: String,
    /// Why nothing can be installed on it; `None` when something can.
    pub unfit: Option<String>,
}

impl fmt::Display for Disk {
    /// In one line, without what it holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, model, bus, .. } = self;
        write!(f, "{name}: {} {bus}", size(self.octets))?;
        if model.is_empty() { Ok(()) } else { write!(f, " {model}") }
    }
}

/// Octets as makers of disks count them.
pub fn size(octets: u64) -> String {
    match octets / 1_000_000 {
        megabytes if megabytes >= 10_000 => format!("{} GB", megabytes / 1000),
        megabytes => format!("{megabytes} MB"),
    }
}

/// What disks say of themselves, as text for a line.
pub fn plain(text: &str) -> String {
    let printable: String = text.chars().map(|c| if matches!(c, ' '..='~') { c } else { ' ' }).collect();
    printable.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(LONGEST).collect()
}

/// What the process tells PID 1, each in a datagram.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// What it was to look for.
    Disks(Vec<Disk>),
    /// What is asked for is not done, and why; nothing was written.
    Refused(String),
    /// It begins to write to this disk.
    Begun(Disk),
    /// How far it is.
    Progress(Progress),
    /// All is on the disk and was read back.
    Done,
    /// It went wrong, and how.
    Failed(String),
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Octets that were written.
    pub written: u64,
    /// Octets that were read back.
    pub verified: u64,
    /// Octets of both.
    pub total: u64,
}

impl Progress {
    /// How much of the work is done.
    pub fn percent(&self) -> u64 {
        let done = self.written.saturating_add(self.verified);
        done.saturating_mul(100) / self.total.saturating_mul(2).max(1)
    }
}

/// How an installation stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The disk, in one line.
    pub disk: String,
    /// How far it is.
    pub phase: Phase,
}

/// How far an installation is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// It is being done.
    Running(Progress),
    /// The disk holds the system and boots.
    Done,
    /// It went wrong; the disk does not boot.
    Failed(String),
    /// An earlier run of the box was cut off while it was done; the disk does not boot.
    Unfinished,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disk = &self.disk;
        match &self.phase {
            Phase::Running(progress) => write!(f, "installs to {disk}: {} %", progress.percent()),
            Phase::Done => write!(f, "installed on {disk}: remove the stick and restart"),
            Phase::Failed(why) => write!(f, "the installation on {disk} failed, it does not boot: {why}"),
            Phase::Unfinished => write!(f, "the installation on {disk} did not finish, it does not boot: do it again"),
        }
    }
}

/// What those who ask are told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// The disks that were there when somebody asked last.
    pub disks: Vec<Disk>,
    /// The latest installation.
    pub job: Option<Job>,
}

impl Installation {
    /// Whether it is being done.
    pub fn running(&self) -> bool {
        matches!(self.job, Some(Job { phase: Phase::Running(_), .. }))
    }
}

/// What somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// See [`Request::Survey`](super::control::Request::Survey).
    Survey,
    /// See [`Request::Install`](super::control::Request::Install).
    Install {
        /// The disk.
        name: String,
        /// How large whoever asks saw it.
        octets: u64,
    },
}

/// PID 1's share: it starts one process at a time, and keeps what that tells.
#[derive(Clone, Debug, Default)]
pub struct Installer {
    shown: Installation,
    /// Whether a process runs, and who waits for its first word.
    runs: Option<Option<u64>>,
}

impl Installer {
    /// An earlier run was cut off while it wrote to this disk.
    pub fn recalled(&mut self, disk: String) {
        self.shown.job = Some(Job { disk, phase: Phase::Unfinished });
    }

    /// Takes what somebody wants under `ticket`, who waits for an answer from then on; returns the arguments of the process to
    /// start. `status` is how the box stands.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn ask(&mut self, ticket: u64, ask: &Ask, status: &Status) -> Result<Vec<String>, String> {
        if self.shown.running() {
            return Err("an installation is under way".to_owned());
        }
        if self.runs.is_some() {
            return Err("the disks are being looked at already; ask again".to_owned());
        }
        let arguments = match ask {
            Ask::Survey => vec![SURVEY.to_owned()],
            Ask::Install { name, octets } => {
                if let Some(slot) = on_trial(status) {
                    return Err(format!("slot {} runs on trial; wait until it proved itself", slot.letter()));
                }
                vec![WRITE.to_owned(), name.clone(), octets.to_string()]
            }
        };
        self.runs = Some(Some(ticket));
        Ok(arguments)
    }

    /// The process tells something; returns who is to be answered what.
    pub fn told(&mut self, told: Told) -> Option<(u64, Reply)> {
        let reply = match told {
            Told::Disks(disks) => {
                self.shown.disks = disks.into_iter().take(MOST).collect();
                Reply::Done
            }
            Told::Refused(why) => Reply::Refused(why),
            Told::Begun(disk) => {
                self.shown.job = Some(Job { disk: disk.to_string(), phase: Phase::Running(Progress::default()) });
                Reply::Accepted
            }
            Told::Progress(progress) => return self.becomes(Phase::Running(progress)),
            Told::Done => return self.becomes(Phase::Done),
            Told::Failed(why) => return self.becomes(Phase::Failed(why)),
        };
        self.runs.as_mut().and_then(Option::take).map(|ticket| (ticket, reply))
    }

    fn becomes(&mut self, phase: Phase) -> Option<(u64, Reply)> {
        if let Some(job) = self.shown.job.as_mut().filter(|job| matches!(job.phase, Phase::Running(_))) {
            job.phase = phase;
        }
        None
    }

    /// The process has ended, or could not be started; returns who is to be answered what.
    pub fn ended(&mut self) -> Option<(u64, Reply)> {
        let why = "the process that does it was ended".to_owned();
        self.becomes(Phase::Failed(why.clone()));
        self.runs.take().flatten().map(|ticket| (ticket, Reply::Failed(why)))
    }

    /// What those who ask are told.
    pub fn shown(&self) -> Installation {
        self.shown.clone()
    }
}

/// The slot that runs and has something to prove: a copy of it would count as proven.
fn on_trial(status: &Status) -> Option<Slot> {
    let runs = Slot::parse(&status.slot.name)?;
    status.records.as_ref().and_then(|records| records.pending).filter(|pending| *pending == runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::cmdline;
    use crate::supervise::control::SlotRecords;

    fn disk() -> Disk {
        let (name, model, holds) = ("sda".into(), "Disk 3000".into(), "nothing".into());
        Disk { name, model, bus: Bus::Sata, octets: 256_060_514_304, holds, unfit: None }
    }

    fn install() -> Ask {
        Ask::Install { name: "sda".into(), octets: 5 }
    }

    #[test]
    fn the_bus_is_where_the_disk_stands() {
        for (path, bus) in [
            ("/sys/devices/pci0000:00/0000:00:17.0/ata1/host0/target0:0:0/0:0:0:0/block/sda", Bus::Sata),
            ("/sys/devices/pci0000:00/0000:00:14.0/usb2/2-1/2-1:1.0/host6/target6:0:0/6:0:0:0/block/sdb", Bus::Usb),
            ("/sys/devices/pci0000:00/0000:00:1d.0/0000:02:00.0/nvme/nvme0/nvme0n1", Bus::Nvme),
            ("/sys/devices/pci0000:00/0000:00:05.0/virtio2/block/vda", Bus::Virtio),
            ("/sys/devices/platform/soc/mmc_host/mmc0/mmc0:0001/block/mmcblk0", Bus::Mmc),
            ("/sys/devices/pci0000:00/0000:01:00.0/host3/target3:0:0/3:0:0:0/block/sdc", Bus::Scsi),
            ("/sys/devices/virtual/block/loop0", Bus::Other),
        ] {
            assert_eq!(Bus::of(path), bus, "{path}");
        }
    }

    #[test]
    fn a_disk_is_one_line_of_plain_text() {
        assert_eq!(disk().to_string(), "sda: 256 GB SATA Disk 3000");
        assert_eq!(Disk { model: String::new(), octets: 372_264_960, ..disk() }.to_string(), "sda: 372 MB SATA");
        assert_eq!(plain("  Sam\x1b[2J\u{7f}sung   SSD\n"), "Sam [2J sung SSD");
        assert_eq!(plain(&"x".repeat(500)).len(), LONGEST);
    }

    #[test]
    fn one_installation_at_a_time_and_its_begin_is_what_is_answered() {
        let (mut installer, status) = (Installer::default(), Status::default());
        assert_eq!(installer.ask(1, &Ask::Survey, &status).unwrap(), ["survey"]);
        assert!(installer.ask(2, &install(), &status).is_err());
        assert_eq!(installer.told(Told::Disks(vec![disk(); 40])), Some((1, Reply::Done)));
        assert_eq!(installer.shown().disks.len(), MOST);
        assert_eq!(installer.ended(), None);
        assert_eq!(installer.ask(3, &install(), &status).unwrap(), ["write", "sda", "5"]);
        assert_eq!(installer.told(Told::Refused("no".into())), Some((3, Reply::Refused("no".into()))));
        assert_eq!((installer.ended(), installer.shown().job), (None, None));
        installer.ask(4, &install(), &status).unwrap();
        assert_eq!(installer.told(Told::Begun(disk())), Some((4, Reply::Accepted)));
        let progress = Progress { written: 75, verified: 25, total: 100 };
        assert_eq!(installer.told(Told::Progress(progress)), None);
        assert!(installer.shown().running() && installer.shown().job.unwrap().to_string().ends_with(": 50 %"));
        assert!(installer.ask(5, &Ask::Survey, &status).is_err());
        installer.told(Told::Done);
        installer.ended();
        assert_eq!(installer.shown().job.unwrap().phase, Phase::Done);
        assert!(installer.ask(6, &install(), &status).is_ok());
        assert!(matches!(installer.ended(), Some((6, Reply::Failed(_)))));
    }

    #[test]
    fn a_process_that_is_killed_leaves_an_installation_that_failed() {
        let mut installer = Installer::default();
        installer.recalled(disk().to_string());
        assert!(installer.shown().job.unwrap().to_string().contains("did not finish"));
        installer.ask(1, &install(), &Status::default()).unwrap();
        installer.told(Told::Begun(disk()));
        assert_eq!(installer.ended(), None);
        assert!(matches!(installer.shown().job.unwrap().phase, Phase::Failed(_)));
        assert!(!installer.shown().running());
    }

    #[test]
    fn a_system_on_trial_is_not_copied() {
        let records = SlotRecords {
            committed: Slot::A,
            pending: Some(Slot::B),
            versions: [None, None],
            failed: Vec::new(),
            want_recovery: false,
            trial: String::new(),
        };
        for (runs, fine) in [("a", true), ("b", false), ("recovery", true), ("", true)] {
            let slot = cmdline::Slot { name: runs.into(), ..cmdline::Slot::default() };
            let status = Status { slot, records: Some(records.clone()), ..Status::default() };
            assert_eq!(Installer::default().ask(1, &install(), &status).is_ok(), fine, "{runs}");
            assert!(Installer::default().ask(1, &Ask::Survey, &status).is_ok());
        }
    }
}
