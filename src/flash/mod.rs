//! Writes the appliance's image to a disk, and reads it back.
//!
//! [`judge`] says whether a disk may be written to; [`target`] looks at it; [`write()`] does it.

pub mod target;
mod write;

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{Context, ensure};

pub use write::{Fault, Progress, Stage, write};

/// `pilotlight flash`.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The disk to write to, whole; all that is on it is lost
    pub device: PathBuf,
    /// The image
    pub image: PathBuf,
    /// Write without asking
    #[arg(long)]
    pub yes: bool,
}

/// What is known of a disk before it is written to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Whether it is a block device.
    pub is_block: bool,
    /// Whether it is a part of a disk.
    pub is_partition: bool,
    /// Whether it can't be written to.
    pub is_read_only: bool,
    /// How many octets it has.
    pub octets: u64,
    /// Where it or its partitions are mounted, used as swap space, or part of something else.
    pub uses: Vec<String>,
    /// Its maker's name for it, where it has one.
    pub model: String,
}

/// Why a disk is not written to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Such as a plain file.
    #[error("it is no disk")]
    NoDisk,
    /// The image has partitions of its own.
    #[error("it is a partition; name the whole disk")]
    Partition,
    /// By its switch, or by its nature.
    #[error("it is write-protected")]
    ReadOnly,
    /// Also the disk that this system runs from.
    #[error("it is in use: {}", .0.join(", "))]
    InUse(Vec<String>),
    /// The image does not fit.
    #[error("it has {has} octets, the image {needs}")]
    TooSmall {
        /// The disk's octets.
        has: u64,
        /// The image's.
        needs: u64,
    },
    /// Of no octets.
    #[error("the image is empty")]
    EmptyImage,
}

/// Whether an image of `octets` may be written to `target`.
///
/// # Errors
///
/// [`Refusal`].
pub fn judge(target: &Target, octets: u64) -> Result<(), Refusal> {
    match target {
        Target { is_block: false, .. } => Err(Refusal::NoDisk),
        Target { is_partition: true, .. } => Err(Refusal::Partition),
        Target { uses, .. } if !uses.is_empty() => Err(Refusal::InUse(uses.clone())),
        Target { is_read_only: true, .. } => Err(Refusal::ReadOnly),
        Target { .. } if octets == 0 => Err(Refusal::EmptyImage),
        Target { octets: has, .. } if *has < octets => Err(Refusal::TooSmall { has: *has, needs: octets }),
        Target { .. } => Ok(()),
    }
}

/// Writes and verifies what the command line asks for, with progress on stderr.
///
/// # Errors
///
/// When the disk is refused, the person at the terminal does not agree, or a read or write fails.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut image = File::open(&args.image).with_context(|| format!("image {}", args.image.display()))?;
    let octets = image.metadata()?.len();
    let target = target::inspect(&args.device).with_context(|| args.device.display().to_string())?;
    judge(&target, octets).with_context(|| format!("{} is not written to", args.device.display()))?;
    let mut terminal = io::stderr();
    if !args.yes {
        ensure!(io::stdin().is_terminal(), "nobody is there to agree; say --yes");
        let model = if target.model.is_empty() { "a disk" } else { &target.model };
        write!(
            terminal,
            "{} is {model} of {}. Everything on it will be lost. Type yes: ",
            args.device.display(),
            Mib(target.octets)
        )?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        ensure!(answer.trim() == "yes", "nothing was written");
    }
    let mut device = target::open(&args.device)?;
    let mut last = None;
    let whole = 0..octets;
    write(&mut image, &[whole], &mut device, |progress| {
        let percent = (progress.stage, progress.done * 100 / octets);
        if last != Some(percent) {
            last = Some(percent);
            // Nobody is told when stderr is closed.
            let _ =
                write!(terminal, "\r{}: {} of {} ({} %) ", progress.stage, Mib(progress.done), Mib(octets), percent.1);
        }
    })
    .with_context(|| args.device.display().to_string())?;
    writeln!(terminal, "\n{}: written and verified", args.device.display())?;
    Ok(())
}

struct Mib(u64);

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0 >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_free_disk_that_is_large_enough_is_written_to() {
        let disk = Target { is_block: true, octets: 1000, ..Target::default() };
        assert_eq!(judge(&disk, 1000), Ok(()));
        assert_eq!(judge(&disk, 1001), Err(Refusal::TooSmall { has: 1000, needs: 1001 }));
        assert_eq!(judge(&disk, 0), Err(Refusal::EmptyImage));
        assert_eq!(judge(&Target { is_block: false, ..disk.clone() }, 1), Err(Refusal::NoDisk));
        assert_eq!(judge(&Target { is_partition: true, ..disk.clone() }, 1), Err(Refusal::Partition));
        assert_eq!(judge(&Target { is_read_only: true, ..disk.clone() }, 1), Err(Refusal::ReadOnly));
        let used = Target { uses: vec!["/data".into()], ..disk };
        assert_eq!(judge(&used, 1), Err(Refusal::InUse(vec!["/data".into()])));
    }
}
