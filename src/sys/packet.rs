//! Packet sockets: whole Ethernet frames of one interface and one protocol (packet(7)).

use std::io;

use nix::libc;
use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

/// Frames that wait to be read; the kernel drops what comes above that.
const RECEIVE_BUFFER: usize = 128 * 1024;

/// Opens a socket that receives the frames of `protocol` (an EtherType) that `filter` lets through on the interface, and
/// sends frames as they are. Reads and writes don't block.
///
/// Frames with a VLAN tag belong to the VLAN's interface and are not seen on its port.
///
/// # Errors
///
/// The kernel's: without CAP_NET_RAW, or when the interface is gone.
pub fn open(interface: u32, protocol: u16, filter: &[SockFilter]) -> io::Result<Socket> {
    // Without a protocol nothing is received until the filter stands and the interface is chosen.
    let socket = Socket::new(Domain::PACKET, Type::RAW.nonblocking().cloexec(), None)?;
    if !filter.is_empty() {
        socket.attach_filter(filter)?;
    }
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address(interface, protocol))?;
    Ok(socket)
}

/// `sockaddr_ll` of an interface.
fn address(interface: u32, protocol: u16) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: all zeroes are a valid storage and sockaddr_ll is a plain structure that fits into it.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = protocol.to_be();
    link.sll_ifindex = interface as i32;
    let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the storage holds a sockaddr_ll of that length.
    unsafe { SockAddr::new(storage, len) }
}
