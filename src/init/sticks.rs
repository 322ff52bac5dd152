//! Takes in `pilotlight.toml` from the box's own partition for it and from sticks, before any service runs.
//!
//! An edge, because it mounts. What becomes of a file is decided in [`crate::settings::stick`]. A file system is looked at
//! without a write to it; only one that has the file is made writable, for the report and to take the secrets out.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;

use super::disks;
use super::log::{Level, Log};
use crate::settings::disk::Directory;
use crate::settings::stick::{self, NAME, Outcome, Places};
use crate::supervise::services::{Service, service};
use crate::sys::{mount, random};

/// Where each is mounted, one after the other.
const TARGET: &str = "/run/stick";
const FLAGS: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
/// Tables that the image's kernel has whatever its defaults are; the names that are looked for are ASCII.
const OPTIONS: &str = "codepage=437,iocharset=ascii";
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
            Ok(Outcome::Applied { lacks }) => {
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
