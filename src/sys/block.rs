//! Disks and the file system on them: sizes, partition tables read anew, growth.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// The calls as linux/fs.h and the kernel's fs/ext4/ext4.h number them.
mod call {
    nix::ioctl_none!(blkrrpart, 0x12, 95);
    nix::ioctl_none!(blkflsbuf, 0x12, 97);
    nix::ioctl_write_ptr_bad!(blkzeroout, nix::request_code_none!(0x12, 127), [u64; 2]);
    nix::ioctl_read!(blkgetsize64, 0x12, 114, u64);
    nix::ioctl_read_bad!(blksszget, nix::libc::BLKSSZGET, nix::libc::c_int);
    nix::ioctl_write_ptr!(ext4_resize_fs, b'f', 16, u64);
}

/// How many octets the block device `disk` has.
///
/// # Errors
///
/// The kernel's; `NotATypewriter` and the like when it is none.
pub fn octets(disk: &File) -> io::Result<u64> {
    let mut octets = 0;
    // SAFETY: BLKGETSIZE64 writes one u64 (linux/fs.h gives its size as that of a pointer, which is the same here).
    unsafe { call::blkgetsize64(disk.as_raw_fd(), &raw mut octets) }?;
    Ok(octets)
}

/// Writes zeroes over `length` octets at `offset` of the block device `disk`, both in whole sectors. Hardware that can do so
/// by itself does; it may only give the space back where it then reads as zeroes.
///
/// # Errors
///
/// The kernel's.
pub fn zero(disk: &File, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: BLKZEROOUT reads two u64, offset and length (linux/fs.h).
    unsafe { call::blkzeroout(disk.as_raw_fd(), &raw const range) }?;
    Ok(())
}

/// How many octets a sector of the block device `disk` has.
///
/// # Errors
///
/// The kernel's.
pub fn octets_of_sector(disk: &File) -> io::Result<usize> {
    let mut octets = 0;
    // SAFETY: BLKSSZGET writes one int.
    unsafe { call::blksszget(disk.as_raw_fd(), &raw mut octets) }?;
    usize::try_from(octets).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Has the kernel read the partition table of `disk` anew.
///
/// # Errors
///
/// The kernel's; `ResourceBusy` when a partition is mounted.
pub fn reread_partitions(disk: &File) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument.
    unsafe { call::blkrrpart(disk.as_raw_fd()) }?;
    Ok(())
}

/// Has the kernel forget what it holds of `disk`, so that the next read comes from the disk.
///
/// # Errors
///
/// The kernel's.
pub fn drop_cache(disk: &File) -> io::Result<()> {
    // SAFETY: BLKFLSBUF takes no argument.
    unsafe { call::blkflsbuf(disk.as_raw_fd()) }?;
    Ok(())
}

/// Lets the mounted ext4 that `directory` belongs to grow to `blocks` of its blocks.
///
/// # Errors
///
/// The kernel's.
pub fn grow_ext4(directory: &File, blocks: u64) -> io::Result<()> {
    // SAFETY: EXT4_IOC_RESIZE_FS (linux/fs/ext4/ext4.h) reads one u64, which lives during the call.
    unsafe { call::ext4_resize_fs(directory.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}
