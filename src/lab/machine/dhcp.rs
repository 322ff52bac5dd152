//! What a boot ROM says over DHCP, and which replies it accepts. Pure.
//!
//! The rules are those of strict EDK2 firmware (contracts bare-metal-provider.md section 3.7); a reply that these ROMs
//! take is one that lenient ROMs take as well.

use std::fmt;
use std::net::Ipv4Addr;

use dhcproto::v4::{Architecture, DhcpOption, Message, MessageType, Opcode, OptionCode, UnknownOption, borrowed};
use dhcproto::{Encodable, Encoder};

use crate::machine::MachineId;

/// The longest reply that a ROM takes: what one Ethernet frame carries.
pub(super) const LONGEST: usize = 1500;
/// The fixed header and the magic cookie.
const HEADER: usize = 240;
/// The shortest BOOTP message that relays and ROMs pass on (RFC 1542 section 2.1).
const SHORTEST: usize = 300;
/// PXE discovery control (option 43, sub-option 6).
const DISCOVERY_CONTROL: u8 = 6;
/// Discovery control: use the boot file of this offer.
const USE_THIS_FILE: u8 = 8;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rom {
    /// A PXE ROM: class `PXEClient`.
    Pxe,
    /// UEFI HTTP Boot: class `HTTPClient`.
    Http,
    /// iPXE: class `PXEClient`, user class `iPXE`.
    Ipxe,
}

impl Rom {
    /// What option 60 of an acceptable reply starts with.
    const fn class(self) -> &'static [u8] {
        match self {
            Self::Pxe | Self::Ipxe => b"PXEClient",
            Self::Http => b"HTTPClient",
        }
    }
}

/// Everything that a request tells about its sender.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub rom: Rom,
    /// Option 93.
    pub arch: u16,
    pub mac: [u8; 6],
    pub id: MachineId,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// DISCOVER, to the proxyDHCP socket.
    Discover,
    /// REQUEST, to port 4011, from a client that has an address already.
    Binl { ciaddr: Ipv4Addr },
}

/// A reply as far as a ROM reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Reply {
    pub kind: u8,
    pub xid: u32,
    pub chaddr: [u8; 6],
    pub siaddr: Option<Ipv4Addr>,
    pub server: Option<Ipv4Addr>,
    pub class: Option<Vec<u8>>,
    pub vendor: Vec<u8>,
    /// Option 67, else the header's `file`.
    pub file: String,
}

/// Why octets are no DHCP reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("shorter than a DHCP header")]
    Short,
    #[error("longer than an Ethernet frame")]
    Long,
    #[error("no BOOTREPLY")]
    NoReply,
    #[error("no Ethernet address")]
    Hardware,
    #[error("no magic cookie")]
    Cookie,
}

/// What a ROM does with a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Boots this file.
    Boot { file: String },
    /// Asks port 4011 for the file.
    AskBinl,
    /// Waits for another reply.
    Ignore(Reason),
}

/// Why a ROM discards a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reason {
    NotMine,
    NotAnOffer,
    NotAnAck,
    NoServerIdentifier,
    OtherClass,
    NoBootFile,
    NotAUrl,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotMine => "xid or chaddr is not mine",
            Self::NotAnOffer => "no OFFER",
            Self::NotAnAck => "no ACK",
            Self::NoServerIdentifier => "no server identifier (option 54)",
            Self::OtherClass => "vendor class (option 60) is not mine",
            Self::NoBootFile => "no boot file",
            Self::NotAUrl => "boot file is no URL",
        })
    }
}

/// The UUID as SMBIOS stores it: the first three fields little-endian (SMBIOS 2.6, section 7.2.1).
pub(super) fn smbios_octets(id: &MachineId) -> [u8; 16] {
    let mut octets = [0; 16];
    let mut digits = id.as_str().bytes().filter_map(|digit| (digit as char).to_digit(16));
    for octet in &mut octets {
        let (high, low) = (digits.next().unwrap_or(0), digits.next().unwrap_or(0));
        *octet = (high * 16 + low) as u8;
    }
    octets[..4].reverse();
    octets[4..6].reverse();
    octets[6..8].reverse();
    octets
}

/// A request of `client`, padded to 300 octets; `None` only if the codec refuses its own message.
///
/// Source: RFC 2131 table 5, RFC 4578 (options 93, 94, 97), PXE 2.1 section 2.2.
pub(super) fn encode(client: &Client, ask: Ask, xid: u32, secs: u16) -> Option<Vec<u8>> {
    let mut message = Message::new_with_id(
        xid,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::UNSPECIFIED,
        &client.mac,
    );
    message.set_opcode(Opcode::BootRequest);
    message.set_secs(secs);
    let mut options = Vec::with_capacity(9);
    match ask {
        Ask::Discover => options.push(DhcpOption::MessageType(MessageType::Discover)),
        Ask::Binl { ciaddr } => {
            message.set_ciaddr(ciaddr);
            options.push(DhcpOption::MessageType(MessageType::Request));
        }
    }
    let class = match client.rom {
        Rom::Pxe => format!("PXEClient:Arch:{:05}:UNDI:003016", client.arch),
        Rom::Http => format!("HTTPClient:Arch:{:05}:UNDI:003016", client.arch),
        Rom::Ipxe => format!("PXEClient:Arch:{:05}:UNDI:002001", client.arch),
    };
    let mut machine = vec![0];
    machine.extend_from_slice(&smbios_octets(&client.id));
    options.extend([
        DhcpOption::ParameterRequestList(
            [1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60, 66, 67, 97]
                .map(OptionCode::from)
                .to_vec(),
        ),
        DhcpOption::MaxMessageSize(1472),
        DhcpOption::ClassIdentifier(class.into_bytes()),
        DhcpOption::ClientSystemArchitecture(Architecture::from(client.arch)),
        DhcpOption::ClientNetworkInterface(1, 3, 16),
        DhcpOption::ClientMachineIdentifier(machine),
    ]);
    if client.rom == Rom::Ipxe {
        options.push(DhcpOption::UserClass(b"iPXE".to_vec()));
        // Version 1.21.1 and the feature "http", as iPXE encapsulates them.
        let features = vec![0xeb, 3, 1, 21, 1, 0x13, 1, 1];
        options.push(DhcpOption::Unknown(UnknownOption::new(OptionCode::from(175), features)));
    }
    for option in options {
        message.opts_mut().insert(option);
    }
    let mut octets = Vec::with_capacity(512);
    message.encode(&mut Encoder::new(&mut octets)).ok()?;
    octets.resize(octets.len().max(SHORTEST), 0);
    Some(octets)
}

/// The reply in `octets`.
///
/// # Errors
///
/// [`Malformed`] says what it lacks. Options that cannot be read are left out.
pub(super) fn decode(octets: &[u8]) -> Result<Reply, Malformed> {
    if octets.len() < HEADER {
        return Err(Malformed::Short);
    }
    if octets.len() > LONGEST {
        return Err(Malformed::Long);
    }
    if octets[0] != 2 {
        return Err(Malformed::NoReply);
    }
    // The codec slices by `hlen`, so it is checked before the codec sees it.
    if octets[1] != 1 || octets[2] != 6 {
        return Err(Malformed::Hardware);
    }
    if octets[236..HEADER] != [99, 130, 83, 99] {
        return Err(Malformed::Cookie);
    }
    let message = borrowed::Message::new(octets).map_err(|_| Malformed::Short)?;
    let mut reply = Reply {
        xid: message.xid(),
        siaddr: Some(message.siaddr()).filter(|address| !address.is_unspecified()),
        file: text(message.fname()),
        ..Reply::default()
    };
    reply.chaddr.copy_from_slice(&octets[28..34]);
    for option in message.opts() {
        let data = option.data();
        match u8::from(option.code()) {
            43 => reply.vendor = data.to_vec(),
            53 => reply.kind = data.first().copied().unwrap_or(0),
            54 => {
                let address = <[u8; 4]>::try_from(data).ok().map(Ipv4Addr::from);
                reply.server = address.filter(|address| !address.is_unspecified());
            }
            60 => reply.class = Some(data.to_vec()),
            67 => reply.file = text(data),
            _ => {}
        }
    }
    Ok(reply)
}

/// What `client` does with an answer to its `ask` of `xid`.
pub(super) fn decide(client: &Client, ask: Ask, xid: u32, reply: &Reply) -> Verdict {
    if reply.xid != xid || reply.chaddr != client.mac {
        return Verdict::Ignore(Reason::NotMine);
    }
    match ask {
        Ask::Discover if reply.kind != 2 => return Verdict::Ignore(Reason::NotAnOffer),
        Ask::Binl { .. } if reply.kind != 5 => return Verdict::Ignore(Reason::NotAnAck),
        _ => {}
    }
    // iPXE takes the peer's address for a missing identifier; EDK2 never shows such an offer to its PXE code.
    if client.rom != Rom::Ipxe && reply.server.is_none() {
        return Verdict::Ignore(Reason::NoServerIdentifier);
    }
    if !reply.class.as_deref().is_some_and(|class| class.starts_with(client.rom.class())) {
        return Verdict::Ignore(Reason::OtherClass);
    }
    let boot = Verdict::Boot { file: reply.file.clone() };
    match client.rom {
        Rom::Ipxe if reply.file.is_empty() => Verdict::Ignore(Reason::NoBootFile),
        Rom::Ipxe => boot,
        Rom::Http if reply.file.is_empty() => Verdict::Ignore(Reason::NoBootFile),
        Rom::Http if !reply.file.starts_with("http://") => Verdict::Ignore(Reason::NotAUrl),
        Rom::Http => boot,
        Rom::Pxe => match ask {
            // Without discovery control the offer is typed "proxy BINL", whatever file it names.
            Ask::Discover if !uses_this_file(&reply.vendor) => Verdict::AskBinl,
            _ if reply.file.is_empty() => Verdict::Ignore(Reason::NoBootFile),
            _ => boot,
        },
    }
}

/// Whether option 43 holds discovery control with bit 3 set.
fn uses_this_file(vendor: &[u8]) -> bool {
    let mut rest = vendor;
    while let [code, tail @ ..] = rest {
        match code {
            0 => rest = tail,
            255 => return false,
            code => {
                let Some((length, data)) = tail.split_first() else { return false };
                let Some((data, after)) = data.split_at_checked(usize::from(*length)) else { return false };
                if *code == DISCOVERY_CONTROL {
                    return data.first().is_some_and(|bits| bits & USE_THIS_FILE != 0);
                }
                rest = after;
            }
        }
    }
    false
}

/// Text up to its first NUL; octets that are no UTF-8 become U+FFFD.
fn text(octets: &[u8]) -> String {
    let end = octets.iter().position(|octet| *octet == 0).unwrap_or(octets.len());
    String::from_utf8_lossy(&octets[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn client(rom: Rom) -> Client {
        let id = "00112233-4455-6677-8899-aabbccddeeff".parse().unwrap();
        Client { rom, arch: 7, mac: [2, 0, 0, 0, 0, 9], id }
    }

    fn offer() -> Reply {
        Reply {
            kind: 2,
            xid: 5,
            chaddr: [2, 0, 0, 0, 0, 9],
            server: Some(Ipv4Addr::LOCALHOST),
            class: Some(b"PXEClient:Arch:00007".to_vec()),
            vendor: vec![6, 1, 8, 255],
            file: "snp.efi".into(),
            ..Reply::default()
        }
    }

    #[test]
    fn the_uuid_travels_in_smbios_order() {
        let octets = smbios_octets(&client(Rom::Pxe).id);
        assert_eq!(octets[..8], [0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66]);
        assert_eq!(octets[8..], [0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
    }

    #[test]
    fn a_discover_carries_what_pxe_asks_for() {
        let octets = encode(&client(Rom::Pxe), Ask::Discover, 7, 0).unwrap();
        assert!(octets.len() >= 300);
        let message = borrowed::Message::new(&octets).unwrap();
        let option = |code: u8| message.opts().find(|o| u8::from(o.code()) == code).map(|o| o.data().to_vec());
        assert_eq!(option(53), Some(vec![1]));
        assert_eq!(option(60), Some(b"PXEClient:Arch:00007:UNDI:003016".to_vec()));
        assert_eq!(option(93), Some(vec![0, 7]));
        assert_eq!(option(94), Some(vec![1, 3, 16]));
        assert_eq!(option(97).unwrap().len(), 17);
        assert_eq!(option(77), None);
        let octets = encode(&client(Rom::Ipxe), Ask::Discover, 7, 0).unwrap();
        let message = borrowed::Message::new(&octets).unwrap();
        assert!(message.opts().any(|o| u8::from(o.code()) == 77 && o.data() == b"iPXE"));
        assert!(message.opts().any(|o| u8::from(o.code()) == 175));
    }

    #[test]
    fn strict_firmware_refuses_what_edk2_refuses() {
        let pxe = client(Rom::Pxe);
        let verdict = |change: fn(&mut Reply)| {
            let mut reply = offer();
            change(&mut reply);
            decide(&pxe, Ask::Discover, 5, &reply)
        };
        assert_eq!(verdict(|_| {}), Verdict::Boot { file: "snp.efi".into() });
        assert_eq!(verdict(|reply| reply.server = None), Verdict::Ignore(Reason::NoServerIdentifier));
        assert_eq!(verdict(|reply| reply.class = None), Verdict::Ignore(Reason::OtherClass));
        assert_eq!(verdict(|reply| reply.xid = 6), Verdict::Ignore(Reason::NotMine));
        assert_eq!(verdict(|reply| reply.chaddr[0] = 9), Verdict::Ignore(Reason::NotMine));
        assert_eq!(verdict(|reply| reply.kind = 5), Verdict::Ignore(Reason::NotAnOffer));
        assert_eq!(verdict(|reply| reply.vendor.clear()), Verdict::AskBinl);
        assert_eq!(verdict(|reply| reply.vendor = vec![6, 9, 8]), Verdict::AskBinl);
        assert_eq!(verdict(|reply| reply.file.clear()), Verdict::Ignore(Reason::NoBootFile));
    }

    #[test]
    fn port_4011_must_acknowledge_with_a_file() {
        let (pxe, ask) = (client(Rom::Pxe), Ask::Binl { ciaddr: Ipv4Addr::LOCALHOST });
        let mut ack = Reply { kind: 5, vendor: Vec::new(), ..offer() };
        assert_eq!(decide(&pxe, ask, 5, &ack), Verdict::Boot { file: "snp.efi".into() });
        ack.file.clear();
        assert_eq!(decide(&pxe, ask, 5, &ack), Verdict::Ignore(Reason::NoBootFile));
        assert_eq!(decide(&pxe, ask, 5, &offer()), Verdict::Ignore(Reason::NotAnAck));
    }

    #[test]
    fn http_boot_wants_its_own_class_and_a_url() {
        let http = client(Rom::Http);
        let mut reply = Reply { class: Some(b"HTTPClient:Arch:00016".to_vec()), ..offer() };
        assert_eq!(decide(&http, Ask::Discover, 5, &reply), Verdict::Ignore(Reason::NotAUrl));
        reply.file = "http://127.0.0.1/snp.efi".into();
        assert!(matches!(decide(&http, Ask::Discover, 5, &reply), Verdict::Boot { .. }));
        assert_eq!(decide(&http, Ask::Discover, 5, &offer()), Verdict::Ignore(Reason::OtherClass));
    }

    #[test]
    fn ipxe_takes_an_offer_without_a_server_identifier() {
        let reply = Reply { server: None, ..offer() };
        assert!(matches!(decide(&client(Rom::Ipxe), Ask::Discover, 5, &reply), Verdict::Boot { .. }));
    }

    proptest! {
        #[test]
        fn any_octets_are_a_reply_or_malformed(mut octets in proptest::collection::vec(any::<u8>(), 0..700)) {
            let _ = decode(&octets);
            if octets.len() >= HEADER {
                octets[..3].copy_from_slice(&[2, 1, 6]);
                octets[236..240].copy_from_slice(&[99, 130, 83, 99]);
                let reply = decode(&octets).unwrap();
                let _ = decide(&client(Rom::Pxe), Ask::Discover, reply.xid, &reply);
            }
        }
    }
}
