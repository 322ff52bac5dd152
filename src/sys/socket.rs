//! Datagrams with everything that the kernel says of them.
//!
//! nix' `recvmsg` gives up the control messages when they were cut, and with them descriptors that are open by then: a
//! stranger could fill the table of descriptors that way.

use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

/// Most descriptors of one message: `SCM_MAX_FD` of the kernel.
const MAX_DESCRIPTORS: usize = 253;
/// Room for them and for the sender's credentials, with their headers.
const CONTROL: usize = (MAX_DESCRIPTORS * size_of::<RawFd>() + size_of::<libc::ucred>() + 64) / 8;

/// Where an answer goes.
#[derive(Clone, Copy)]
pub struct Address {
    name: libc::sockaddr_un,
    length: libc::socklen_t,
}

/// What was received.
pub struct Received {
    /// How many octets are in the buffer.
    pub length: usize,
    /// Whether that is all of the datagram.
    pub whole: bool,
    /// The sender's process and user, when the socket asks for them.
    pub sender: Option<(u32, u32)>,
    /// Whence, when the sender has an address.
    pub from: Option<Address>,
    /// What was passed along; closed when dropped.
    pub descriptors: Vec<OwnedFd>,
}

/// Receives one message without waiting; `None` when none is there.
///
/// # Errors
///
/// The kernel's.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Option<Received>> {
    let mut control = [0_u64; CONTROL];
    // SAFETY: both are plain records for which all zeroes are a value.
    let (mut name, mut header): (libc::sockaddr_un, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    header.msg_name = (&raw mut name).cast();
    header.msg_namelen = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.as_mut_ptr().cast();
    header.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the header points to the buffers above, with their sizes, and they outlive the call.
    let length = match Errno::result(unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut header, flags) }) {
        Ok(length) => usize::try_from(length).unwrap_or(0),
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let (mut sender, mut descriptors) = (None, Vec::new());
    // SAFETY: the kernel filled the header and the control buffer, which is aligned to eight; the macros walk it.
    let mut message = unsafe { libc::CMSG_FIRSTHDR(&raw const header) };
    while !message.is_null() {
        // SAFETY: the macros return null or a header within the buffer, whose data the kernel wrote up to `cmsg_len`.
        unsafe {
            let data = libc::CMSG_DATA(message);
            let size = ((*message).cmsg_len as usize).saturating_sub(libc::CMSG_LEN(0) as usize);
            match ((*message).cmsg_level, (*message).cmsg_type) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    for index in 0..size / size_of::<RawFd>() {
                        let number = data.cast::<RawFd>().add(index).read_unaligned();
                        // The kernel has opened it for us alone.
                        descriptors.push(OwnedFd::from_raw_fd(number));
                    }
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if size >= size_of::<libc::ucred>() => {
                    let credentials = data.cast::<libc::ucred>().read_unaligned();
                    sender = u32::try_from(credentials.pid).ok().map(|pid| (pid, credentials.uid));
                }
                _ => {}
            }
            message = libc::CMSG_NXTHDR(&raw const header, message);
        }
    }
    let addressed = header.msg_namelen as usize > size_of::<libc::sa_family_t>();
    let from = addressed.then_some(Address { name, length: header.msg_namelen });
    Ok(Some(Received { length, whole: header.msg_flags & libc::MSG_TRUNC == 0, sender, from, descriptors }))
}

/// Sends one datagram without waiting.
///
/// # Errors
///
/// The kernel's; `WouldBlock` when the receiver is behind.
pub fn send_to(socket: impl AsFd, octets: &[u8], to: &Address) -> io::Result<()> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the buffer and the address are valid for their lengths.
    let sent = unsafe {
        libc::sendto(
            socket.as_fd().as_raw_fd(),
            octets.as_ptr().cast(),
            octets.len(),
            flags,
            (&raw const to.name).cast(),
            to.length,
        )
    };
    Errno::result(sent).map(drop).map_err(io::Error::from)
}

/// Takes over a descriptor that this process was started with.
///
/// # Errors
///
/// When none of that number is open, or it is one of the three that the runtime uses.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the call takes numbers only.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, as the call above shows, and the program was started with it for this one purpose.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// The magic number of the file system on which an open file lies.
///
/// # Errors
///
/// The kernel's.
pub fn file_system(file: impl AsFd) -> io::Result<i64> {
    let mut answer = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the kernel fills the record before it says that it did.
    let answer = unsafe {
        Errno::result(libc::fstatfs(file.as_fd().as_raw_fd(), answer.as_mut_ptr()))?;
        answer.assume_init()
    };
    Ok(answer.f_type as i64)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::IoSlice;
    use std::os::unix::net::UnixDatagram;

    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg, setsockopt, sockopt};

    use super::*;

    fn open_descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").unwrap().count()
    }

    #[test]
    fn a_datagram_comes_with_its_sender_and_descriptors_and_an_answer_finds_back() {
        let dir = tempfile::tempdir().unwrap();
        let server = UnixDatagram::bind(dir.path().join("server")).unwrap();
        setsockopt(&server, sockopt::PassCred, &true).unwrap();
        let mut buffer = [0; 8];
        assert!(receive(&server, &mut buffer).unwrap().is_none());

        let client = UnixDatagram::bind(dir.path().join("client")).unwrap();
        client.connect(dir.path().join("server")).unwrap();
        client.send(b"hello").unwrap();
        let received = receive(&server, &mut buffer).unwrap().unwrap();
        assert_eq!((&buffer[..received.length], received.whole), (&b"hello"[..], true));
        assert_eq!(received.sender, Some((std::process::id(), nix::unistd::getuid().as_raw())));
        send_to(&server, b"answer", &received.from.unwrap()).unwrap();
        assert_eq!(client.recv(&mut buffer).unwrap(), 6);

        client.send(b"more than eight").unwrap();
        assert!(!receive(&server, &mut buffer).unwrap().unwrap().whole);

        let file = File::open("/dev/null").unwrap();
        let numbers = [file.as_raw_fd(); MAX_DESCRIPTORS];
        let (parts, rights) = ([IoSlice::new(b"x")], [ControlMessage::ScmRights(&numbers)]);
        sendmsg::<()>(client.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).unwrap();
        let received = receive(&server, &mut buffer).unwrap().unwrap();
        assert_eq!((received.descriptors.len(), received.sender.is_some()), (MAX_DESCRIPTORS, true));
        drop(received);
        // Other tests of this process open and close theirs.
        assert!(open_descriptors() < MAX_DESCRIPTORS);
    }

    #[test]
    fn only_what_is_open_is_inherited() {
        assert!(inherited(2).is_err() && inherited(-1).is_err() && inherited(1_000_000).is_err());
    }
}
