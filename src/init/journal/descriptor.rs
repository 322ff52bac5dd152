//! Reads the file that a client passes in place of a message that is too long for a datagram.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::sys::socket;
use crate::wire::journal::native;

/// `TMPFS_MAGIC` of `linux/magic.h`: memory files and everything below /dev/shm and /tmp.
const TMPFS: i64 = 0x0102_1994;

/// The kernel's O_LARGEFILE and O_NOFOLLOW, which it keeps and which mean nothing by now. Of the two machines that the box
/// is built for, one has them the other way round; the C library calls the first one zero.
const MEANINGLESS: i32 = 0o100_000 | 0o400_000;

/// Why a file is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refused {
    /// A device, a pipe, a directory: reading could wait, or change something.
    #[error("not a regular file")]
    NotRegular,
    /// It is not open for plain reading.
    #[error("opened with other flags than for reading")]
    Flags,
    /// It lies where a read may wait for a disk, a server or a process.
    #[error("not in memory")]
    NotInMemory,
    /// See [`native::MAX_MESSAGE`].
    #[error("too long")]
    TooLong,
    /// The kernel's.
    #[error("cannot be read")]
    Unreadable(#[source] io::Error),
}

/// Reads all of `file` into `buffer`, from its beginning; returns the length.
///
/// It is read and never mapped, so that nothing depends on its seals: who shortens it meanwhile shortens his message.
///
/// # Errors
///
/// [`Refused`].
pub(super) fn read(file: OwnedFd, buffer: &mut [u8]) -> Result<usize, Refused> {
    let unreadable = |error: nix::Error| Refused::Unreadable(error.into());
    let flags = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).map_err(unreadable)?);
    let other = flags.difference(OFlag::O_ACCMODE | OFlag::from_bits_retain(MEANINGLESS));
    if flags & OFlag::O_ACCMODE == OFlag::O_WRONLY || !other.is_empty() {
        return Err(Refused::Flags);
    }
    let file = File::from(file);
    let meta = file.metadata().map_err(Refused::Unreadable)?;
    if !meta.is_file() {
        return Err(Refused::NotRegular);
    }
    if socket::file_system(&file).map_err(Refused::Unreadable)? != TMPFS {
        return Err(Refused::NotInMemory);
    }
    if meta.len() > native::MAX_MESSAGE as u64 {
        return Err(Refused::TooLong);
    }
    let mut length = 0;
    while let Some(rest) = buffer.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, length as u64) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Refused::Unreadable(error)),
        }
    }
    if length > native::MAX_MESSAGE { Err(Refused::TooLong) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;

    use nix::fcntl::SealFlag;
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;

    use super::*;

    fn memory(contents: &[u8]) -> File {
        let mut file = File::from(memfd_create("message", MFdFlags::MFD_ALLOW_SEALING).unwrap());
        file.write_all(contents).unwrap();
        file
    }

    fn result(file: impl Into<OwnedFd>) -> Result<usize, Refused> {
        read(file.into(), &mut vec![0; native::MAX_MESSAGE + 1])
    }

    #[test]
    fn memory_files_are_read_sealed_or_not() {
        let sealed = memory(b"MESSAGE=sealed\n");
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
        fcntl(&sealed, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        let mut buffer = vec![0; native::MAX_MESSAGE + 1];
        let length = read(sealed.into(), &mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"MESSAGE=sealed\n");
        assert_eq!(result(memory(&vec![0; native::MAX_MESSAGE])).unwrap(), native::MAX_MESSAGE);
        let shortened = memory(b"MESSAGE=much\n");
        ftruncate(&shortened, 0).unwrap();
        assert_eq!(result(shortened).unwrap(), 0);
    }

    #[test]
    fn what_may_wait_or_is_too_long_is_refused() {
        let holes = memory(b"");
        ftruncate(&holes, 1 << 40).unwrap();
        assert!(matches!(result(holes), Err(Refused::TooLong)));
        assert!(matches!(result(memory(&vec![0; native::MAX_MESSAGE + 1])), Err(Refused::TooLong)));
        assert!(matches!(result(File::open("/dev/zero").unwrap()), Err(Refused::NotRegular)));
        let (pipe, _writer) = nix::unistd::pipe().unwrap();
        assert!(matches!(result(pipe), Err(Refused::NotRegular)));
        assert!(matches!(result(File::open("/proc/self/status").unwrap()), Err(Refused::NotInMemory)));
        let writing = OpenOptions::new().write(true).open("/dev/null").unwrap();
        assert!(matches!(result(writing), Err(Refused::Flags)));
        let path_only = OpenOptions::new().read(true).custom_flags(nix::libc::O_PATH).open("/proc/version").unwrap();
        assert!(matches!(result(path_only), Err(Refused::Flags)));
        let directory = File::open("/").unwrap();
        assert!(result(directory).is_err());
    }
}
