//! Mounts.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, umount2};

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
