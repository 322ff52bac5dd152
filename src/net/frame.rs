//! Ethernet frames of ARP and of DHCP, octets to values and back, over smoltcp's wire types.

use std::net::Ipv4Addr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol,
    Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use super::mac::Mac;
use crate::wire::dhcp;

/// The port of DHCP servers.
pub const SERVER_PORT: u16 = 67;
/// The port of DHCP clients.
pub const CLIENT_PORT: u16 = 68;

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// A reply; otherwise a request.
    pub reply: bool,
    /// Who sends it.
    pub sender: Mac,
    /// The sender's address; 0.0.0.0 in a probe.
    pub sender_address: Ipv4Addr,
    /// The address that is asked for or answered about.
    pub target_address: Ipv4Addr,
}

impl Arp {
    /// Asks whether anyone has `address`, without claiming it (RFC 5227 section 1.1).
    pub const fn probe(sender: Mac, address: Ipv4Addr) -> Self {
        Self { reply: false, sender, sender_address: Ipv4Addr::UNSPECIFIED, target_address: address }
    }

    /// Tells everyone that `sender` has `address` (RFC 5227 section 1.1).
    pub const fn announcement(sender: Mac, address: Ipv4Addr) -> Self {
        Self { reply: false, sender, sender_address: address, target_address: address }
    }

    /// The packet in a frame to every station.
    pub fn encode(&self) -> Vec<u8> {
        let arp = ArpRepr::EthernetIpv4 {
            operation: if self.reply { ArpOperation::Reply } else { ArpOperation::Request },
            source_hardware_addr: EthernetAddress(self.sender.0),
            source_protocol_addr: self.sender_address,
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: self.target_address,
        };
        let mut octets = framed(self.sender, Mac::BROADCAST, EthernetProtocol::Arp, arp.buffer_len());
        let mut frame = EthernetFrame::new_unchecked(&mut octets);
        arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
        octets
    }

    /// The packet in a frame; `None` for anything else.
    ///
    /// Never panics.
    pub fn decode(octets: &[u8]) -> Option<Self> {
        let frame = EthernetFrame::new_checked(octets).ok()?;
        if frame.ethertype() != EthernetProtocol::Arp {
            return None;
        }
        let packet = ArpPacket::new_checked(frame.payload()).ok()?;
        let ArpRepr::EthernetIpv4 {
            operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, ..
        } = ArpRepr::parse(&packet).ok()?
        else {
            return None;
        };
        let reply = match operation {
            ArpOperation::Request => false,
            ArpOperation::Reply => true,
            ArpOperation::Unknown(_) => return None,
        };
        let sender = Mac(source_hardware_addr.0);
        Some(Self { reply, sender, sender_address: source_protocol_addr, target_address: target_protocol_addr })
    }
}

/// Where a DHCP client's message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Every station: from 0.0.0.0 unless `from` is set.
    Broadcast {
        /// The address that the client has, in REBINDING.
        from: Ipv4Addr,
    },
    /// The server that gave the lease, by way of the station that its answer came from.
    Server {
        /// The client's address.
        from: Ipv4Addr,
        /// The server's address.
        server: Ipv4Addr,
        /// The station that the server's last answer came from: the server, or the router before it.
        station: Mac,
    },
}

/// A DHCP message from port 68 to port 67, in a frame. `payload` is at most 1500 octets less the headers.
pub fn encode_dhcp(sender: Mac, to: Destination, payload: &[u8]) -> Vec<u8> {
    let (station, from, server) = match to {
        Destination::Broadcast { from } => (Mac::BROADCAST, from, Ipv4Addr::BROADCAST),
        Destination::Server { from, server, station } => (station, from, server),
    };
    let udp = UdpRepr { src_port: CLIENT_PORT, dst_port: SERVER_PORT };
    let ip = Ipv4Repr {
        src_addr: from,
        dst_addr: server,
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload.len(),
        hop_limit: 64,
    };
    let checksums = ChecksumCapabilities::default();
    let mut octets =
        framed(sender, station, EthernetProtocol::Ipv4, ip.buffer_len() + udp.header_len() + payload.len());
    let mut frame = EthernetFrame::new_unchecked(&mut octets);
    let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
    ip.emit(&mut packet, &checksums);
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    let copy = |octets: &mut [u8]| octets.copy_from_slice(payload);
    udp.emit(&mut datagram, &from.into(), &server.into(), payload.len(), copy, &checksums);
    octets
}

/// A DHCP message to a client in a frame, and the station that it came from; `None` for anything else.
///
/// The UDP checksum is not looked at: the kernel hands packets of its own host and of virtual machines over before it is
/// filled in. Ethernet's own covers the wire, the magic cookie and the transaction ID the rest. Never panics.
pub fn decode_dhcp(octets: &[u8]) -> Option<(Mac, dhcp::Message)> {
    let frame = EthernetFrame::new_checked(octets).ok()?;
    if frame.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
    if packet.next_header() != IpProtocol::Udp || packet.more_frags() || packet.frag_offset() != 0 {
        return None;
    }
    let datagram = UdpPacket::new_checked(packet.payload()).ok()?;
    if datagram.dst_port() != CLIENT_PORT {
        return None;
    }
    let message = dhcp::Message::decode(datagram.payload()).ok()?;
    Some((Mac(frame.src_addr().0), message))
}

fn framed(sender: Mac, to: Mac, protocol: EthernetProtocol, payload: usize) -> Vec<u8> {
    let ethernet =
        EthernetRepr { src_addr: EthernetAddress(sender.0), dst_addr: EthernetAddress(to.0), ethertype: protocol };
    let mut octets = vec![0; ethernet.buffer_len() + payload];
    ethernet.emit(&mut EthernetFrame::new_unchecked(&mut octets));
    octets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::dhcp::{HardwareAddress, Message, Op};

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn message() -> Message {
        Message {
            op: Op::Reply,
            htype: 1,
            chaddr: HardwareAddress::new(&MAC.0).unwrap(),
            xid: 7,
            flags: 0,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::new(192, 0, 2, 9),
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            file: Vec::new(),
            options: [(dhcp::MESSAGE_TYPE, vec![5])].into(),
        }
    }

    /// The frame as a server would send it: with the ports the other way round.
    fn answer() -> Vec<u8> {
        let mut octets =
            encode_dhcp(MAC, Destination::Broadcast { from: Ipv4Addr::UNSPECIFIED }, &message().encode().unwrap());
        octets[34..38].copy_from_slice(&[0, 67, 0, 68]);
        octets
    }

    #[test]
    fn an_arp_packet_survives_the_wire() {
        let probe = Arp::probe(MAC, Ipv4Addr::new(192, 0, 2, 1));
        let octets = probe.encode();
        assert_eq!(octets.len(), 42);
        assert_eq!(&octets[..14], [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 8, 6]);
        assert_eq!(Arp::decode(&octets), Some(probe));
    }

    #[test]
    fn a_dhcp_message_goes_out_with_good_checksums_and_comes_back() {
        let to = Destination::Broadcast { from: Ipv4Addr::UNSPECIFIED };
        let octets = encode_dhcp(MAC, to, &message().encode().unwrap());
        let frame = EthernetFrame::new_checked(&octets[..]).unwrap();
        let packet = Ipv4Packet::new_checked(frame.payload()).unwrap();
        let datagram = UdpPacket::new_checked(packet.payload()).unwrap();
        assert!(packet.verify_checksum());
        assert!(datagram.verify_checksum(&packet.src_addr().into(), &packet.dst_addr().into()));
        assert_eq!((datagram.src_port(), datagram.dst_port()), (68, 67));
        assert_eq!(decode_dhcp(&octets), None, "a server's port is not ours");
        assert_eq!(decode_dhcp(&answer()), Some((MAC, message())));
    }

    proptest! {
        #[test]
        fn random_and_mutated_frames_never_panic(
            octets in proptest::collection::vec(any::<u8>(), 0..200),
            changes in proptest::collection::vec((0_usize..330, any::<u8>()), 0..8),
            cut in 0_usize..330,
        ) {
            let mut frames = [answer(), Arp::probe(MAC, Ipv4Addr::LOCALHOST).encode()];
            for frame in &mut frames {
                for (at, value) in &changes {
                    if let Some(octet) = frame.get_mut(*at) {
                        *octet = *value;
                    }
                }
                let frame = &frame[..cut.min(frame.len())];
                let _ = (Arp::decode(frame), decode_dhcp(frame));
            }
            let _ = (Arp::decode(&octets), decode_dhcp(&octets));
        }
    }
}
