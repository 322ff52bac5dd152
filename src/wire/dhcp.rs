//! DHCPv4 messages as network boot and our own client need them: decoded through dhcproto, behind the guards that keep one packet from
//! costing more than itself.
//!
//! The guards: at most [`MAX_OCTETS`]; the hardware address length is checked on the raw octets, since dhcproto slices by
//! it unchecked; the magic cookie is checked, since dhcproto skips options silently without it; each option is taken by
//! itself, so that one malformed option does not hide those after it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;

use dhcproto::v4;
use dhcproto::v4::borrowed;
use dhcproto::{Encodable, Encoder};

/// The longest datagram that is looked at. An Ethernet frame carries no more, and nested options cost stack.
pub const MAX_OCTETS: usize = 1500;

/// The shortest message that is sent: BOOTP relays and old boot ROMs drop shorter ones (RFC 1542 section 2.1).
pub const MIN_OCTETS: usize = 300;

/// The fixed part of a message and the magic cookie.
const HEADER_OCTETS: usize = 240;

/// Subnet mask.
pub const SUBNET_MASK: u8 = 1;
/// Routers, in order of preference.
pub const ROUTERS: u8 = 3;
/// DNS servers, in order of preference.
pub const DNS_SERVERS: u8 = 6;
/// The client's name.
pub const HOST_NAME: u8 = 12;
/// Domain that names without one are looked up in.
pub const DOMAIN_NAME: u8 = 15;
/// MTU of the link.
pub const INTERFACE_MTU: u8 = 26;
/// NTP servers, in order of preference.
pub const NTP_SERVERS: u8 = 42;
/// Vendor-specific information; for PXE, encapsulated sub-options (PXE 2.1 section 2.2.1).
pub const VENDOR_OPTIONS: u8 = 43;
/// Requested address.
pub const REQUESTED_ADDRESS: u8 = 50;
/// Seconds that an address is leased for.
pub const LEASE_TIME: u8 = 51;
/// DHCP message type.
pub const MESSAGE_TYPE: u8 = 53;
/// Server identifier.
pub const SERVER_ID: u8 = 54;
/// Parameter request list.
pub const PARAMETERS: u8 = 55;
/// Largest message that the client takes.
pub const MAX_MESSAGE: u8 = 57;
/// Seconds until the lease is renewed (T1).
pub const RENEWAL_TIME: u8 = 58;
/// Seconds until any server is asked (T2).
pub const REBINDING_TIME: u8 = 59;
/// Vendor class identifier.
pub const VENDOR_CLASS: u8 = 60;
/// Client identifier.
pub const CLIENT_ID: u8 = 61;
/// TFTP server name.
pub const TFTP_SERVER: u8 = 66;
/// Boot file name.
pub const BOOT_FILE: u8 = 67;
/// User class (RFC 3004).
pub const USER_CLASS: u8 = 77;
/// Relay agent information (RFC 3046).
pub const RELAY_INFORMATION: u8 = 82;
/// Client system architecture (RFC 4578 section 2.1).
pub const CLIENT_ARCH: u8 = 93;
/// Client machine identifier (RFC 4578 section 2.3).
pub const MACHINE_ID: u8 = 97;
/// Classless static routes (RFC 3442).
pub const CLASSLESS_ROUTES: u8 = 121;
/// Encapsulated options of iPXE.
pub const IPXE_OPTIONS: u8 = 175;
/// Ends the options.
const END: u8 = 255;

/// The options that a decoded message keeps; the rest is dropped.
const KEPT: [u8; 26] = [
    SUBNET_MASK,
    ROUTERS,
    DNS_SERVERS,
    HOST_NAME,
    DOMAIN_NAME,
    INTERFACE_MTU,
    NTP_SERVERS,
    LEASE_TIME,
    MAX_MESSAGE,
    RENEWAL_TIME,
    REBINDING_TIME,
    CLASSLESS_ROUTES,
    VENDOR_OPTIONS,
    REQUESTED_ADDRESS,
    MESSAGE_TYPE,
    SERVER_ID,
    PARAMETERS,
    VENDOR_CLASS,
    CLIENT_ID,
    TFTP_SERVER,
    BOOT_FILE,
    USER_CLASS,
    RELAY_INFORMATION,
    CLIENT_ARCH,
    MACHINE_ID,
    IPXE_OPTIONS,
];

/// Why octets are no DHCPv4 message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than the fixed part.
    #[error("{have} octets, a DHCP message has at least {HEADER_OCTETS}")]
    TooShort {
        /// What there was.
        have: usize,
    },
    /// Longer than [`MAX_OCTETS`].
    #[error("{have} octets, at most {MAX_OCTETS} are looked at")]
    TooLong {
        /// What there was.
        have: usize,
    },
    /// The hardware address length is not 1 to 16.
    #[error("hardware address of {hlen} octets, it has 1 to 16")]
    HardwareAddress {
        /// The `hlen` field.
        hlen: u8,
    },
    /// The options do not start with 99.130.83.99: plain BOOTP or not DHCP at all.
    #[error("no DHCP magic cookie")]
    Cookie,
}

/// Why a message has no wire form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unencodable {
    /// The boot file name does not fit the header's 128 octets.
    #[error("boot file name of {have} octets, the header holds 127")]
    BootFile {
        /// What there was.
        have: usize,
    },
    /// The whole is longer than [`MAX_OCTETS`].
    #[error("message of {have} octets, at most {MAX_OCTETS} are sent")]
    TooLong {
        /// What there was.
        have: usize,
    },
}

/// `chaddr`: 1 to 16 octets.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct HardwareAddress {
    len: u8,
    octets: [u8; 16],
}

impl HardwareAddress {
    /// The address of these octets; `None` unless there are 1 to 16.
    pub fn new(octets: &[u8]) -> Option<Self> {
        if octets.is_empty() || octets.len() > 16 {
            return None;
        }
        let mut padded = [0; 16];
        padded[..octets.len()].copy_from_slice(octets);
        Some(Self { len: octets.len() as u8, octets: padded })
    }

    /// The address without padding, 1 to 16 octets.
    pub fn octets(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }
}

impl fmt::Display for HardwareAddress {
    /// Lower-case hex with colons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, octet) in self.octets().iter().enumerate() {
            write!(f, "{}{octet:02x}", if index == 0 { "" } else { ":" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for HardwareAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// `op`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// BOOTREQUEST, 1.
    Request,
    /// BOOTREPLY, 2.
    Reply,
    /// Anything else.
    Other(u8),
}

impl Op {
    /// The field's number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Reply => 2,
            Self::Other(number) => number,
        }
    }
}

impl From<u8> for Op {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Request,
            2 => Self::Reply,
            other => Self::Other(other),
        }
    }
}

/// Option 53.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// 1.
    Discover,
    /// 2.
    Offer,
    /// 3.
    Request,
    /// 4.
    Decline,
    /// 5.
    Ack,
    /// 6.
    Nak,
    /// 7.
    Release,
    /// 8.
    Inform,
    /// A type that neither network boot nor a client has a use for.
    Other(u8),
}

impl MessageType {
    /// The option's number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Discover => 1,
            Self::Offer => 2,
            Self::Request => 3,
            Self::Decline => 4,
            Self::Ack => 5,
            Self::Nak => 6,
            Self::Release => 7,
            Self::Inform => 8,
            Self::Other(number) => number,
        }
    }
}

impl From<u8> for MessageType {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::Discover,
            2 => Self::Offer,
            3 => Self::Request,
            4 => Self::Decline,
            5 => Self::Ack,
            6 => Self::Nak,
            7 => Self::Release,
            8 => Self::Inform,
            other => Self::Other(other),
        }
    }
}

/// One DHCPv4 message, with the options that network boot and our client use.
///
/// `hops`, `secs` and `sname` are not kept and are zero when encoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Request or reply.
    pub op: Op,
    /// Hardware type, 1 for Ethernet.
    pub htype: u8,
    /// The client's hardware address.
    pub chaddr: HardwareAddress,
    /// Transaction ID.
    pub xid: u32,
    /// Flags; the top bit asks for a broadcast answer.
    pub flags: u16,
    /// The address that the client already has.
    pub ciaddr: Ipv4Addr,
    /// The address that the client is given.
    pub yiaddr: Ipv4Addr,
    /// The next server.
    pub siaddr: Ipv4Addr,
    /// The relay.
    pub giaddr: Ipv4Addr,
    /// The header's boot file name, up to its first NUL.
    pub file: Vec<u8>,
    /// Options by code, fragments joined (RFC 3396). Only the codes that this module names.
    pub options: BTreeMap<u8, Vec<u8>>,
}

impl Message {
    /// Decodes one datagram.
    ///
    /// An option that is cut off ends the list; the options before it stand.
    ///
    /// # Errors
    ///
    /// [`Malformed`] as its variants say. Never panics, allocates at most the datagram's size.
    ///
    /// Source: RFC 2131 section 2, RFC 2132.
    pub fn decode(octets: &[u8]) -> Result<Self, Malformed> {
        if octets.len() > MAX_OCTETS {
            return Err(Malformed::TooLong { have: octets.len() });
        }
        let too_short = Malformed::TooShort { have: octets.len() };
        let header = octets.get(..HEADER_OCTETS).ok_or(too_short)?;
        let hlen = header[2];
        if hlen == 0 || hlen > 16 {
            return Err(Malformed::HardwareAddress { hlen });
        }
        if header[236..240] != v4::MAGIC {
            return Err(Malformed::Cookie);
        }
        let message = borrowed::Message::new(octets).map_err(|_| too_short)?;
        let chaddr = HardwareAddress::new(message.chaddr()).ok_or(Malformed::HardwareAddress { hlen })?;
        let options = message
            .opts()
            .map(|option| (u8::from(option.code()), option))
            .filter(|(code, _)| KEPT.contains(code))
            .map(|(code, option)| (code, option.data().to_vec()))
            .collect();
        Ok(Self {
            op: Op::from(header[0]),
            htype: header[1],
            chaddr,
            xid: message.xid(),
            flags: u16::from(message.flags()),
            ciaddr: message.ciaddr(),
            yiaddr: message.yiaddr(),
            siaddr: message.siaddr(),
            giaddr: message.giaddr(),
            file: message.fname().to_vec(),
            options,
        })
    }

    /// The message's octets, options in ascending order with 82 last, padded to [`MIN_OCTETS`].
    ///
    /// # Errors
    ///
    /// [`Unencodable`] when the boot file name or the whole is too long.
    pub fn encode(&self) -> Result<Vec<u8>, Unencodable> {
        if self.file.len() > 127 {
            return Err(Unencodable::BootFile { have: self.file.len() });
        }
        let mut message = v4::Message::new_with_id(
            self.xid,
            self.ciaddr,
            self.yiaddr,
            self.siaddr,
            self.giaddr,
            self.chaddr.octets(),
        );
        message
            .set_opcode(v4::Opcode::from(self.op.number()))
            .set_htype(v4::HType::from(self.htype))
            .set_flags(v4::Flags::from(self.flags));
        if !self.file.is_empty() {
            message.set_fname(&self.file);
        }
        let mut octets = Vec::with_capacity(MIN_OCTETS);
        let encoded = message.encode(&mut Encoder::new(&mut octets));
        let (relayed, plain): (Vec<_>, Vec<_>) = self.options.iter().partition(|(code, _)| **code == RELAY_INFORMATION);
        for (code, data) in plain.into_iter().chain(relayed) {
            put_option(&mut octets, *code, data);
        }
        octets.push(END);
        if encoded.is_err() || octets.len() > MAX_OCTETS {
            return Err(Unencodable::TooLong { have: octets.len() });
        }
        if octets.len() < MIN_OCTETS {
            octets.resize(MIN_OCTETS, 0);
        }
        Ok(octets)
    }

    /// Option 53, when it is there and one octet long.
    pub fn message_type(&self) -> Option<MessageType> {
        match self.option(MESSAGE_TYPE)? {
            [number] => Some(MessageType::from(*number)),
            _ => None,
        }
    }

    /// An option's data.
    pub fn option(&self, code: u8) -> Option<&[u8]> {
        self.options.get(&code).map(Vec::as_slice)
    }

    /// An option that holds one address.
    pub fn address(&self, code: u8) -> Option<Ipv4Addr> {
        <[u8; 4]>::try_from(self.option(code)?).ok().map(Ipv4Addr::from)
    }

    /// Option 60 as text, up to a NUL that some ROMs append; `None` when absent or not UTF-8.
    pub fn vendor_class(&self) -> Option<&str> {
        let data = self.option(VENDOR_CLASS)?;
        let end = data.iter().position(|octet| *octet == 0).unwrap_or(data.len());
        std::str::from_utf8(&data[..end]).ok()
    }

    /// Option 93: the architectures in the order sent; an odd octet at the end is dropped. `None` when absent.
    pub fn client_archs(&self) -> Option<Vec<u16>> {
        let data = self.option(CLIENT_ARCH)?;
        Some(data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect())
    }

    /// Option 77: the classes of the RFC 3004 list, or the whole data as one class when it is no such list, which is
    /// what iPXE sends. Empty when absent.
    pub fn user_classes(&self) -> Vec<&[u8]> {
        let Some(data) = self.option(USER_CLASS) else { return Vec::new() };
        let mut classes = Vec::new();
        let mut rest = data;
        while let Some((len, tail)) = rest.split_first() {
            let len = usize::from(*len);
            if len == 0 || len > tail.len() {
                return vec![data];
            }
            let (class, next) = tail.split_at(len);
            classes.push(class);
            rest = next;
        }
        classes
    }
}

/// Appends one option, in fragments of at most 255 octets (RFC 3396); without data it is one empty fragment.
///
/// dhcproto's own list is not used for this: it writes option 82 twice when its data is given as octets.
fn put_option(octets: &mut Vec<u8>, code: u8, data: &[u8]) {
    if data.is_empty() {
        octets.extend_from_slice(&[code, 0]);
    }
    for fragment in data.chunks(usize::from(u8::MAX)) {
        octets.extend_from_slice(&[code, fragment.len() as u8]);
        octets.extend_from_slice(fragment);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn discover() -> Message {
        let options = [
            (MESSAGE_TYPE, vec![1]),
            (VENDOR_CLASS, b"PXEClient:Arch:00007:UNDI:003016".to_vec()),
            (CLIENT_ARCH, vec![0, 7]),
            (MACHINE_ID, [vec![0], (1..=16).collect()].concat()),
        ];
        Message {
            op: Op::Request,
            htype: 1,
            chaddr: HardwareAddress::new(&[0x52, 0x54, 0, 0x12, 0x34, 0x56]).unwrap(),
            xid: 0xdead_beef,
            flags: 0x8000,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::new(10, 0, 0, 1),
            file: Vec::new(),
            options: options.into_iter().collect(),
        }
    }

    #[test]
    fn a_message_survives_the_wire_and_is_padded() {
        let mut message = Message { file: b"snp.efi".to_vec(), ..discover() };
        message.options.remove(&VENDOR_CLASS);
        let octets = message.encode().unwrap();
        assert_eq!(octets.len(), MIN_OCTETS);
        assert_eq!(&octets[..4], &[1, 1, 6, 0]);
        assert_eq!(Message::decode(&octets), Ok(message));
    }

    #[test]
    fn a_long_option_is_split_and_joined_again() {
        let mut message = discover();
        message.options.insert(BOOT_FILE, vec![b'x'; 600]);
        assert_eq!(Message::decode(&message.encode().unwrap()), Ok(message));
    }

    #[test]
    fn the_guards_hold() {
        let good = discover().encode().unwrap();
        assert_eq!(Message::decode(&good[..239]), Err(Malformed::TooShort { have: 239 }));
        assert_eq!(Message::decode(&vec![0; 1501]), Err(Malformed::TooLong { have: 1501 }));
        for hlen in [0, 17, 255] {
            let mut bad = good.clone();
            bad[2] = hlen;
            assert_eq!(Message::decode(&bad), Err(Malformed::HardwareAddress { hlen }));
        }
        let mut bad = good.clone();
        bad[236] = 0;
        assert_eq!(Message::decode(&bad), Err(Malformed::Cookie));
        let long = Message { file: vec![b'x'; 128], ..discover() };
        assert_eq!(long.encode(), Err(Unencodable::BootFile { have: 128 }));
        let mut long = discover();
        long.options.insert(BOOT_FILE, vec![b'x'; 1400]);
        assert!(matches!(long.encode(), Err(Unencodable::TooLong { .. })));
    }

    #[test]
    fn relay_information_comes_once_and_last() {
        let mut message = discover();
        message.options.insert(RELAY_INFORMATION, vec![1, 2, 0xaa, 0xbb]);
        message.options.insert(IPXE_OPTIONS, vec![16, 1, 1]);
        let octets = message.encode().unwrap();
        let echoed = [RELAY_INFORMATION, 4, 1, 2, 0xaa, 0xbb];
        assert_eq!(octets.windows(echoed.len()).filter(|window| *window == echoed).count(), 1);
        let end = octets.iter().rposition(|octet| *octet == END).unwrap();
        assert_eq!(octets[end - echoed.len()..end], echoed);
    }

    #[test]
    fn an_option_that_is_malformed_for_its_type_does_not_hide_the_next() {
        let mut octets = discover().encode().unwrap();
        octets.truncate(240);
        // A server identifier of three octets, then the type and the architecture.
        octets.extend_from_slice(&[54, 3, 1, 2, 3, 53, 1, 1, 93, 2, 0, 9, 255]);
        let message = Message::decode(&octets).unwrap();
        assert_eq!(message.address(SERVER_ID), None);
        assert_eq!(message.message_type(), Some(MessageType::Discover));
        assert_eq!(message.client_archs(), Some(vec![9]));
    }

    #[test]
    fn user_class_is_a_list_or_the_raw_text() {
        let classes = |data: &[u8]| {
            let mut message = discover();
            message.options.insert(USER_CLASS, data.to_vec());
            message.user_classes().iter().map(|class| class.to_vec()).collect::<Vec<_>>()
        };
        assert_eq!(classes(b"iPXE"), [b"iPXE".to_vec()]);
        assert_eq!(classes(b"\x04iPXE\x02ab"), [b"iPXE".to_vec(), b"ab".to_vec()]);
        assert_eq!(classes(b"\x04iPXE\x09ab"), [b"\x04iPXE\x09ab".to_vec()]);
        assert!(discover().user_classes().is_empty());
    }

    proptest! {
        #[test]
        fn random_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), 0..1600)) {
            let _ = Message::decode(&octets);
        }

        #[test]
        fn mutated_messages_never_panic_and_decode_to_something_encodable_or_too_long(
            changes in proptest::collection::vec((0usize..300, any::<u8>()), 1..12),
            tail in proptest::collection::vec(any::<u8>(), 0..1200),
        ) {
            let mut octets = discover().encode().unwrap();
            for (at, value) in changes {
                octets[at] = value;
            }
            octets.extend_from_slice(&tail);
            if let Ok(message) = Message::decode(&octets) {
                let _ = (message.message_type(), message.client_archs(), message.user_classes(), message.vendor_class());
                if let Ok(again) = message.encode() {
                    prop_assert_eq!(Message::decode(&again), Ok(message));
                }
            }
        }
    }
}
