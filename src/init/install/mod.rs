//! Looks at the box's other disks, and copies the system that runs to one of them.
//!
//! A process of its own, `init install`: it needs the power to read the own disk and to write to another, and hours where a
//! disk is slow; no service gets at either, and PID 1 goes on meanwhile. It takes nothing but a disk's name, tells PID 1 over
//! its output how far it is ([`Told`]), and ends.
//!
//! An edge, because it reads and writes block devices; what is written where says [`crate::supervise::install::layout`].

mod composed;
mod survey;

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::ExitCode;

use super::log::{Level, Log};
use super::{disks, installer, log};
use crate::flash::{self, Fault, Stage, target};
use crate::slots::Version;
use crate::supervise::control;
use crate::supervise::disk::Origin;
use crate::supervise::install::layout::{Layout, NoLayout, Own, layout, needs};
use crate::supervise::install::{Progress, SURVEY, Told, WRITE};
use crate::sys::{block, random};
use crate::wire::gpt::{SECTOR, Table};
use composed::Composed;

/// The argument that makes `init` do this.
pub const ARGUMENT: &str = "install";

/// Why nothing is installed. But for `Fault`, nothing was written.
#[derive(Debug, thiserror::Error)]
enum NotDone {
    #[error("this box does not run from a disk of its own: {0}")]
    NoOwn(String),
    #[error("the own disk can't be read: {0}")]
    Own(#[source] io::Error),
    #[error("there is no such disk now; look again")]
    Gone,
    #[error("it is not written to: {0}")]
    Unfit(String),
    #[error(transparent)]
    Layout(#[from] NoLayout),
    #[error("it can't be opened: {0}")]
    Open(#[source] io::Error),
    #[error("there is no randomness: {0}")]
    Random(#[source] io::Error),
    #[error("that it begins can't be noted: {0}")]
    Note(#[source] io::Error),
    #[error("{fault}{}", cause(.fault))]
    Fault { fault: Fault },
}

fn cause(fault: &Fault) -> String {
    std::error::Error::source(fault).map_or_else(String::new, |cause| format!(": {cause}"))
}

/// Does what `arguments` say: `survey`, or `write` with a disk's name and its octets.
pub fn run(arguments: impl Iterator<Item = String>) -> ExitCode {
    log::report_panics();
    let log = Log::open();
    let arguments: Vec<_> = arguments.collect();
    let told = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [SURVEY] => match own() {
            Ok((own, table)) => Told::Disks(survey::disks(&own, needs(&table).unwrap_or(u64::MAX))),
            Err(error) => Told::Refused(error.to_string()),
        },
        [WRITE, name, octets] => match write(name, octets.parse().unwrap_or(0), &log) {
            Ok(()) => Told::Done,
            Err(error @ NotDone::Fault { .. }) => Told::Failed(error.to_string()),
            Err(error) => Told::Refused(error.to_string()),
        },
        _ => return ExitCode::FAILURE,
    };
    match &told {
        Told::Refused(why) => log.line(Level::Warning, &format!("installation: {why}")),
        Told::Failed(why) => log.line(Level::Error, &format!("installation: {why}")),
        Told::Done => log.line(Level::Info, "installation: written and verified"),
        Told::Disks(_) | Told::Begun(_) | Told::Progress(_) => {}
    }
    if tell(&told) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells PID 1; says whether it was heard.
fn tell(told: &Told) -> bool {
    // One write makes one datagram; the standard library's own output would cut it at ends of lines.
    nix::unistd::write(io::stdout(), &control::encode(told)).is_ok()
}

/// The kernel's name of the own disk, and its partition table.
fn own() -> Result<(String, Table), NotDone> {
    let origin = origin();
    let path = disks::find(&origin).map_err(|none| NotDone::NoOwn(none.to_string()))?;
    let file = File::open(&path).map_err(NotDone::Own)?;
    let tables = disks::read_tables(&file).map_err(NotDone::Own)?;
    let table = tables.valid().map_err(|invalid| NotDone::Own(io::Error::other(invalid)))?.clone();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    Ok((name, table))
}

fn origin() -> Origin {
    Origin::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default())
}

fn write(name: &str, octets: u64, log: &Log) -> Result<(), NotDone> {
    let (own, table) = own()?;
    let disks = survey::disks(&own, needs(&table)?);
    let disk = disks.into_iter().find(|disk| disk.name == name && disk.octets == octets).ok_or(NotDone::Gone)?;
    if let Some(why) = &disk.unfit {
        return Err(NotDone::Unfit(why.clone()));
    }
    let mut source = File::open(Path::new("/dev").join(&own)).map_err(NotDone::Own)?;
    let mut target = target::open(&Path::new("/dev").join(name)).map_err(NotDone::Open)?;
    let layout = plan(&mut source, &table, &origin(), octets / SECTOR as u64)?;
    installer::begin(&disk.to_string()).map_err(NotDone::Note)?;
    log.line(Level::Warning, &format!("installs what runs on {disk}, which held {}", disk.holds));
    tell(&Told::Begun(disk));
    copy(source, &layout, &mut target, |progress| _ = tell(&Told::Progress(progress)))?;
    // A box that finds the note later says that it did not finish, which is the safer mistake.
    if let Err(error) = installer::end() {
        log.line(Level::Warning, &format!("installation: that it is done can't be noted: {error}"));
    }
    Ok(())
}

/// What a disk of `sectors` is to hold.
fn plan(source: &mut File, table: &Table, origin: &Origin, sectors: u64) -> Result<Layout, NotDone> {
    let mut first = [0; SECTOR];
    std::os::unix::fs::FileExt::read_exact_at(source, &mut first, 0).map_err(NotDone::Own)?;
    let version = Version::parse(env!("CARGO_PKG_VERSION"));
    let own = Own { first, table, runs: origin.part.unwrap_or_default(), version };
    let mut failed = None;
    let mut draw = || {
        let mut octets = [0; 16];
        match random::octets() {
            Ok((drawn, _)) => octets.copy_from_slice(&drawn[..16]),
            Err(error) => failed = Some(error),
        }
        octets
    };
    let layout = layout(&own, sectors, &mut draw)?;
    failed.map_or(Ok(layout), |error| Err(NotDone::Random(error)))
}

/// Writes `layout` and reads it back. Until all of it is there, the disk does not boot.
fn copy(source: File, layout: &Layout, target: &mut File, mut tell: impl FnMut(Progress)) -> Result<(), NotDone> {
    // What the box has written to its partitions since it started is not in the cache of the whole disk.
    let _ = block::drop_cache(&source);
    let total = layout.ranges.iter().map(|range| range.end - range.start).sum();
    let mut progress = Progress { total, ..Progress::default() };
    let mut last = None;
    let mut image = Composed::new(source, &layout.pieces);
    let written = flash::write(&mut image, &layout.ranges, target, |step| {
        match step.stage {
            Stage::Writing => progress.written = step.done,
            Stage::Verifying => progress.verified = step.done,
        }
        if last != Some(progress.percent()) {
            last = Some(progress.percent());
            tell(progress);
        }
    });
    written.map_err(|fault| NotDone::Fault { fault })
}

#[cfg(test)]
mod tests;
