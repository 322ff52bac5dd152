//! The data partition, from a disk to /data.
//!
//! An edge, because it mounts, and runs mke2fs and e2fsck; what to do next says [`crate::supervise::storage`].

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::MsFlags;

use super::log::{Level, Log};
use super::volume;
use crate::supervise::storage::{
    Action, Cause, Check, Content, Event, LOOKED_AT, Preparation, Refusal, copies, erasure,
};
use crate::sys::{block, mount};
use crate::time::Uptime;

/// Where the data partition is mounted.
pub(super) const DATA: &str = "/data";
/// How long a reset may overwrite what was there: a stick of 16 GB takes as long.
const ERASE_LIMIT: Duration = Duration::from_secs(600);
/// How much of the memory may take its place.
const MEMORY: &str = "mode=0755,size=25%";
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC).union(MsFlags::MS_NOATIME);
/// Where the superblock lies, in octets.
const SUPERBLOCK: u64 = 1024;
/// The code of an e2fsck that found nothing to begin with (an "operational error", and no other bit).
const NOT_BEGUN: i32 = 8;
/// A file system of at least this many octets less than its partition grows (as partitions do).
const LEAST_GROWTH: u64 = 8 << 20;

/// Mounts the file system of `partition` at /data by all means that there are; memory when none helps. Says whether what
/// is written there lasts.
pub(super) fn prepare(partition: &Path, reset: bool, log: &Log) -> bool {
    let mut preparation = Preparation::default();
    let mut event = Event::Looked { content: look(partition), reset };
    loop {
        event = match preparation.on(event) {
            Action::Erase => {
                log.line(Level::Warning, "factory reset: erases the data partition");
                let erased = erase(partition, log);
                let erased = erased.inspect_err(|error| volume::tell(&format!("cannot erase it: {error}"), log));
                Event::Erased(erased.is_ok())
            }
            Action::Make(cause) => {
                let line = format!("makes the data partition anew: {cause}");
                match cause {
                    Cause::DataLost => volume::tell(&line, log),
                    Cause::FirstBoot | Cause::FactoryReset => log.line(Level::Warning, &line),
                }
                Event::Made(make(partition, log))
            }
            Action::Mount => Event::Mounted(mount_data(partition, log)),
            Action::Check(check) => Event::Checked(run_check(partition, check, log)),
            Action::Grow => {
                if let Err(error) = grow(partition, log) {
                    volume::tell(&format!("the data partition stays as small as it is: {error}"), log);
                }
                return true;
            }
            Action::UseMemory(reason) => {
                use_memory(&format!("DEGRADED: {reason}"), log);
                return false;
            }
        }
    }
}

/// Mounts memory at /data, unless something is mounted there.
pub(super) fn use_memory(reason: &str, log: &Log) {
    volume::tell(&format!("{reason}; what the box learns is gone with the power"), log);
    let mounted = fs::create_dir_all(DATA).and_then(|()| mount::is_mount_point(Path::new(DATA)));
    let result = match mounted {
        Ok(true) => Ok(()),
        Ok(false) => mount::mount("tmpfs", Path::new(DATA), FLAGS, MEMORY),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        volume::tell(&format!("cannot mount memory at {DATA}: {error}"), log);
    }
}

fn look(partition: &Path) -> Content {
    let mut beginning = vec![0; LOOKED_AT];
    match File::open(partition).and_then(|file| file.read_exact_at(&mut beginning, 0)) {
        Ok(()) => Content::of(&beginning),
        Err(_) => Content::Unreadable,
    }
}

/// Zeroes what was there, as far as time allows: the beginning first, and on the medium before the rest is begun.
fn erase(partition: &Path, log: &Log) -> io::Result<()> {
    let disk = OpenOptions::new().write(true).open(partition)?;
    let octets = block::octets(&disk)?;
    let end = Uptime::now() + ERASE_LIMIT;
    let mut at = 0;
    for (offset, length) in erasure(octets) {
        if Uptime::now() >= end {
            log.line(
                Level::Warning,
                &format!("the disk is slow: {} of {} MiB are overwritten", at >> 20, octets >> 20),
            );
            break;
        }
        block::zero(&disk, offset, length)?;
        disk.sync_data()?;
        at = offset + length;
    }
    Ok(())
}

fn make(partition: &Path, log: &Log) -> bool {
    // The tables of a large disk are written while it runs: the first boot must not wait for them.
    let arguments = ["-q", "-F", "-t", "ext4", "-L", "pilotlight-data", "-m", "1", "-E", "lazy_itable_init=1"];
    // Before anybody says that it is made.
    let lasts = || File::open(partition).and_then(|disk| disk.sync_all());
    run("mke2fs", &arguments, partition, log) == Some(0)
        && lasts().inspect_err(|error| log.line(Level::Error, &format!("mke2fs: {error}"))).is_ok()
}

fn run_check(partition: &Path, check: Check, log: &Log) -> Option<i32> {
    let what = match check {
        Check::Safe => "what is safe to repair",
        Check::Everything => "everything",
        Check::Copies => "everything, by other copies of the superblock",
    };
    log.line(Level::Warning, &format!("checks the data partition: {what}"));
    let code = match check {
        Check::Safe => run("e2fsck", &["-p", "-f"], partition, log),
        Check::Everything => run("e2fsck", &["-y", "-f"], partition, log),
        Check::Copies => check_by_copies(partition, log),
    };
    log.line(
        Level::Warning,
        &code.map_or("the check was cut short".into(), |code| format!("the check ends with {code}")),
    );
    code
}

/// Checks by the first copy of the superblock that e2fsck can begin with.
fn check_by_copies(partition: &Path, log: &Log) -> Option<i32> {
    let mut superblock = [0; 1024];
    let read = File::open(partition).and_then(|disk| disk.read_exact_at(&mut superblock, SUPERBLOCK));
    let Some((blocks, size)) = read.ok().and_then(|()| copies(&superblock)) else { return Some(NOT_BEGUN) };
    let by = |block: u64| {
        let [block, size] = [block, size].map(|number| number.to_string());
        run("e2fsck", &["-y", "-f", "-b", &block, "-B", &size], partition, log)
    };
    blocks.into_iter().map(by).find(|code| *code != Some(NOT_BEGUN)).unwrap_or(Some(NOT_BEGUN))
}

fn run(program: &str, arguments: &[&str], partition: &Path, log: &Log) -> Option<i32> {
    let mut command = Command::new(program);
    command.args(arguments).arg(partition).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    // What it says is for the log, in one line; its input is nobody.
    let output = command.stdin(Stdio::null()).output();
    let output = output.inspect_err(|error| log.line(Level::Error, &format!("{program}: {error}"))).ok()?;
    let said = [output.stdout, output.stderr].concat();
    for line in String::from_utf8_lossy(&said).lines().filter(|line| !line.trim().is_empty()).take(20) {
        log.line(Level::Info, &format!("{program}: {line}"));
    }
    output.status.code()
}

fn mount_data(partition: &Path, log: &Log) -> Result<(), Refusal> {
    let target = Path::new(DATA);
    let mounted = fs::create_dir_all(target)
        .and_then(|()| mount::mount_device(partition, "ext4", target, FLAGS, "errors=remount-ro"));
    mounted.map_err(|error| {
        volume::tell(&format!("cannot mount the data partition: {error}"), log);
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EINVAL | Errno::EUCLEAN | Errno::EBADMSG) => Refusal::Damaged,
            Some(_) | None => Refusal::Elsewhere,
        }
    })
}

/// Lets the mounted file system fill its partition.
fn grow(partition: &Path, log: &Log) -> io::Result<()> {
    let whole = block::octets(&File::open(partition)?)?;
    let now = nix::sys::statvfs::statvfs(DATA)?;
    // The superblock, since statvfs leaves out what the file system needs for itself.
    let mut superblock = [0; 1024];
    File::open(partition)?.read_exact_at(&mut superblock, SUPERBLOCK)?;
    let word = |at: usize| {
        u64::from(u32::from_le_bytes([superblock[at], superblock[at + 1], superblock[at + 2], superblock[at + 3]]))
    };
    let block_size = now.block_size();
    let blocks = word(4) | (word(0x150) << 32);
    let wanted = whole / block_size;
    if wanted * block_size < blocks.saturating_mul(block_size).saturating_add(LEAST_GROWTH) {
        return Ok(());
    }
    block::grow_ext4(&File::open(DATA)?, wanted)?;
    let mib = |blocks: u64| (blocks * block_size) >> 20;
    log.line(Level::Warning, &format!("the data partition grew from {} to {} MiB", mib(blocks), mib(wanted)));
    Ok(())
}
