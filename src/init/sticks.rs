//! Takes in `pilotlight.toml` from the box's own partition for it and from sticks, before any service runs; and mounts the
//! stick that is plugged in later, for those services that read from it.
//!
//! An edge, because it mounts. What becomes of a file is decided in [`crate::settings::stick`]. A file system is looked at
//! without a write to it; only one that has the file is made writable, for the report and to take the secrets out.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::MsFlags;

use super::devices::Devices;
use super::disks;
use super::log::{Level, Log};
use crate::ipc;
use crate::settings::desk::{Answer, Ask};
use crate::settings::disk::Directory;
use crate::settings::stick::{self, NAME, Outcome, Places};
use crate::supervise::disk::Origin;
use crate::supervise::plugs::PATH;
use crate::supervise::services::{Service, service};
use crate::sys::{mount, random};

/// Where each is mounted, one after the other.
const TARGET: &str = "/run/stick";
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
/// Tables that the image's kernel has whatever its defaults are; the names that are looked for are ASCII.
const OPTIONS: &str = "codepage=437,iocharset=ascii";
/// How long the service `settings` may take: it may have to start first.
const SETTINGS_LIMIT: Duration = Duration::from_secs(60);
/// The argument that makes `init` do this.
pub const ARGUMENT: &str = "sticks";
/// File systems that are looked at; a box with more has none of them for us.
const MOST: usize = 16;

/// Looks at the own disk's `partition` first, then at all that is not on the `own` disk, so that what someone has plugged in
/// counts. `lasting` says whether the data partition outlives the power.
pub(super) fn take_in(own: Option<&Path>, partition: Option<PathBuf>, lasting: bool, log: &Log) {
    let sticks = disks::others(own).into_iter().filter(|node| is_fat(node));
    for node in partition.into_iter().chain(sticks).take(MOST) {
        let name = node.display();
        match look_at(&node, lasting) {
            Ok(Outcome::None | Outcome::Before) => {}
            Ok(Outcome::Applied { lacks, .. }) => {
                log.line(Level::Info, &format!("{name}: {NAME} was taken in"));
                for lack in lacks {
                    log.line(Level::Error, &format!("{name}: {lack}"));
                }
            }
            Ok(Outcome::Faults(faults)) => {
                log.line(Level::Error, &format!("{name}: {NAME} has {} faults and does not count", faults.len()));
                for fault in faults.iter().take(8) {
                    log.line(Level::Error, &format!("{name}: {fault}"));
                }
            }
            Ok(Outcome::Failed(error)) => log.line(Level::Error, &format!("{name}: {NAME} can't be taken in: {error}")),
            Err(error) => log.line(Level::Warning, &format!("{name} can't be looked at: {error}")),
        }
    }
}

/// Looks at what is plugged in now: `init sticks`, a process of its own, since a bad stick may keep it for long.
///
/// The first stick with a file for the box is mounted at [`PATH`] until it is pulled, so that bundles on it can be read, and
/// by the services `settings` and `update` alone. Its configuration is the service's to take in, which runs by now: the stick
/// can be written to for as long as that takes.
pub fn plugged() {
    let log = Log::open();
    if let Some(mut devices) = Devices::open(&log) {
        devices.coldplug();
    }
    let target = Path::new(PATH);
    match mount::mounted_at(target) {
        Ok(Some((device, node))) if Path::new("/sys/dev/block").join(&device).exists() => {
            log.line(Level::Debug, &format!("{} stays at {PATH}", node.display()));
            return;
        }
        Ok(Some((_, node))) => {
            let gone = mount::unmount(target);
            let how = gone.err().map_or_else(String::new, |error| format!(", and {PATH} can't be let go: {error}"));
            log.line(Level::Info, &format!("{} was pulled{how}", node.display()));
        }
        Ok(None) => {}
        Err(error) => log.line(Level::Warning, &format!("{PATH}: {error}")),
    }
    let origin = Origin::parse(&fs::read_to_string("/proc/cmdline").unwrap_or_default());
    let own = disks::find(&origin).ok();
    for node in disks::others(own.as_deref()).into_iter().filter(|node| is_fat(node)).take(MOST) {
        match plug(&node, target, &log) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => log.line(Level::Warning, &format!("{}: {error}", node.display())),
        }
    }
}

/// Mounts the stick at `node` if it has something for the box, and says whether it stays.
fn plug(node: &Path, target: &Path, log: &Log) -> io::Result<bool> {
    let (owner, reader) = (uid("settings")?, uid("update")?);
    let options = format!("{OPTIONS},uid={owner},gid={reader},umask=0027");
    fs::create_dir_all(target)?;
    let mount = |more| mount::mount_device(node, "vfat", target, FLAGS | more, &options);
    mount(MsFlags::MS_RDONLY)?;
    let configures = fs::symlink_metadata(target.join(NAME)).is_ok();
    let updates = crate::update::is_on(target);
    if configures {
        mount::unmount(target)?;
        mount(MsFlags::empty()).or_else(|_| mount(MsFlags::MS_RDONLY))?;
        log.line(Level::Info, &format!("{} has a {NAME}", node.display()));
        let socket = service("settings").map(Service::socket).unwrap_or_default();
        match ipc::ask_at::<Ask, Answer>(Path::new(&socket), &Ask::Stick, SETTINGS_LIMIT) {
            Ok(Answer::Looked) => {}
            Ok(_) => log.line(Level::Warning, &format!("{NAME} is not taken in: settings answers another question")),
            Err(error) => log.line(Level::Warning, &format!("{NAME} is not taken in: {error}")),
        }
    }
    if !updates {
        mount::unmount(target)?;
        return Ok(false);
    }
    // One that is read-only already stays so.
    mount(MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY)?;
    log.line(Level::Info, &format!("{} has an update for this box", node.display()));
    Ok(true)
}

fn uid(name: &str) -> io::Result<u32> {
    service(name).map(|service| service.uid).ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Whether a block device begins like a FAT file system: the boot sector's mark, and its type where Microsoft's
/// specification puts it (sections 3.1 to 3.3).
fn is_fat(node: &Path) -> bool {
    let mut sector = [0; 512];
    let read = File::open(node).and_then(|file| file.read_exact_at(&mut sector, 0));
    read.is_ok()
        && sector[510..] == [0x55, 0xaa]
        && (sector[54..].starts_with(b"FAT") || sector[82..].starts_with(b"FAT32"))
}

fn look_at(node: &Path, lasting: bool) -> io::Result<Outcome> {
    let target = Path::new(TARGET);
    fs::create_dir_all(target)?;
    mount::mount_device(node, "vfat", target, FLAGS | MsFlags::MS_RDONLY, OPTIONS)?;
    let found = fs::symlink_metadata(target.join(NAME)).is_ok();
    mount::unmount(target)?;
    if !found {
        return Ok(Outcome::None);
    }
    // One that is write-protected is read all the same, and the report says nothing to nobody.
    let writable = mount::mount_device(node, "vfat", target, FLAGS, OPTIONS);
    writable.or_else(|_| mount::mount_device(node, "vfat", target, FLAGS | MsFlags::MS_RDONLY, OPTIONS))?;
    let outcome = take(target, lasting);
    mount::unmount(target)?;
    outcome
}

fn take(target: &Path, lasting: bool) -> io::Result<Outcome> {
    let of = |name: &str| {
        let place = service(name).map(|service| (Service::state_dir(service), service.uid));
        let (path, uid) = place.ok_or(io::ErrorKind::NotFound)?;
        let directory = Directory::new(&PathBuf::from(path), Some(uid));
        directory.make().map(|()| directory)
    };
    let (mut settings, mut net) = (of("settings")?, of("net")?);
    let mut file_system = Directory::new(target, None);
    let (random, _) = random::octets()?;
    let mut salt = [0; 16];
    salt.copy_from_slice(&random[..16]);
    let places = Places { settings: &mut settings, net: &mut net, stick: &mut file_system, lasting };
    Ok(stick::take_in(places, salt))
}
