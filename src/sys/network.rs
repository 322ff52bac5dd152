//! Network interfaces, switched on.

use std::io;
use std::os::fd::AsRawFd;

use nix::libc::{self, c_char, c_short};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

mod calls {
    use nix::libc;

    nix::ioctl_read_bad!(flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
}

/// Switches interface `name` on; `lo` gets its addresses by that.
///
/// # Errors
///
/// The kernel's.
pub fn up(name: &str) -> io::Result<()> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the structure is numbers and octets, for which zeroes are a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last octet stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as c_char;
    }
    // SAFETY: the request lives during the call and names an interface.
    unsafe { calls::flags(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the call before has set this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as c_short;
    // SAFETY: the request lives during the call, with its flags set.
    unsafe { calls::set_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}
