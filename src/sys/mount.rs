//! Mounts.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::statfs;

/// Whether something is mounted at `path`: it lies on another device than its parent.
///
/// # Errors
///
/// When either can't be inspected.
pub fn is_mount_point(path: &Path) -> io::Result<bool> {
    let own = std::fs::metadata(path)?;
    let parent = std::fs::metadata(path.join(".."))?;
    Ok(own.dev() != parent.dev() || own.ino() == parent.ino())
}

/// The device that is mounted at `target`: its number as `major:minor`, and its node. Nothing where none is.
///
/// # Errors
///
/// When the mount table can't be read.
pub fn mounted_at(target: &Path) -> io::Result<Option<(String, PathBuf)>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().rev().find_map(|line| of_line(line, target)))
}

/// By a line of mountinfo (proc(5)).
fn of_line(line: &str, target: &Path) -> Option<(String, PathBuf)> {
    let (before, after) = line.split_once(" - ")?;
    let fields: Vec<_> = before.split(' ').collect();
    let source = after.split(' ').nth(1)?;
    (Path::new(fields.get(4)?) == target).then(|| ((*fields[2]).to_owned(), source.into()))
}

/// Whether what is written at `path` outlives the power: its file system is none in memory.
///
/// # Errors
///
/// When it can't be asked.
pub fn lasts(path: &Path) -> io::Result<bool> {
    // The second is `RAMFS_MAGIC` of `linux/magic.h`.
    let volatile = [statfs::TMPFS_MAGIC, statfs::FsType(0x8584_58f6)];
    Ok(!volatile.contains(&statfs::statfs(path)?.filesystem_type()))
}

/// Mounts a virtual file system of type `fstype`, which is its source as well.
///
/// # Errors
///
/// The kernel's.
pub fn mount(fstype: &str, target: &Path, flags: MsFlags, options: &str) -> io::Result<()> {
    let options = (!options.is_empty()).then_some(options);
    nix::mount::mount(Some(fstype), target, Some(fstype), flags, options).map_err(io::Error::from)
}

/// Mounts the block device `device` with a file system of type `fstype`.
///
/// # Errors
///
/// The kernel's.
pub fn mount_device(device: &Path, fstype: &str, target: &Path, flags: MsFlags, options: &str) -> io::Result<()> {
    nix::mount::mount(Some(device), target, Some(fstype), flags, Some(options)).map_err(io::Error::from)
}

/// Unmounts `target`; when it is busy, takes it out of sight and lets the kernel finish. Nothing happens when nothing is
/// mounted there.
///
/// # Errors
///
/// The kernel's.
pub fn unmount(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::empty()) {
        Err(Errno::EBUSY) => umount2(target, MntFlags::MNT_DETACH).map_err(io::Error::from),
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_mount_table_names_device_and_node() {
        let line = "36 35 8:17 / /run/pilotlight/stick ro,nosuid shared:1 - vfat /dev/sdb1 ro,codepage=437";
        let found = of_line(line, Path::new("/run/pilotlight/stick"));
        assert_eq!(found, Some(("8:17".to_owned(), "/dev/sdb1".into())));
        assert_eq!(of_line(line, Path::new("/run/pilotlight")), None);
        assert_eq!(of_line("x - y", Path::new("/")), None);
        assert_eq!(of_line("", Path::new("/")), None);
    }
}
