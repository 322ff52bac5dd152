//! The proxyDHCP rule: one message in, one reply or the reason for silence out.
//!
//! We never give addresses. The site's DHCP server does; we only add what to boot. Source: contract section 3, PXE 2.1
//! section 2.2, and what EDK2, iPXE and U-Boot were seen to need.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::boot::advertise::Advertise;
use crate::boot::files::Binary;
use crate::boot::firmware::{self, Client, Firmware, Unknown};
use crate::machine::MachineId;
use crate::wire::dhcp::{self, Message, MessageType, Op};

/// PXE discovery control: use the boot file of this offer, ask nobody else. Spares EDK2 the round trip to port 4011.
const DISCOVERY_CONTROL: [u8; 4] = [6, 1, 8, 255];

/// What the rule knows besides the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootView {
    /// Our address on the provisioning network: server identifier, next server and TFTP server.
    pub server: Ipv4Addr,
    /// Where machines reach our HTTP port.
    pub advertise: Advertise,
    /// Whether offers carry option 43. EDK2 of 2017 and before mishandles it; everything later is faster with it.
    pub discovery_control: bool,
    /// The binaries that are loaded. A machine whose binary is missing is not answered, since it would fail later and
    /// say less.
    pub served: BTreeSet<Binary>,
}

/// The port that a message came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Port {
    /// 67: DISCOVER, answered with an OFFER.
    Dhcp,
    /// 4011: REQUEST, answered with an ACK (PXE boot server).
    Binl,
}

/// One message and how it came.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// The port that it came to.
    pub port: Port,
    /// The message.
    pub message: &'a Message,
    /// Its source.
    pub from: SocketAddrV4,
}

/// What to do with a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Send this.
    Reply(Box<Reply>),
    /// Say nothing.
    Ignore(Reason),
}

/// A reply to send from the port that the message came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Where to.
    pub to: SocketAddrV4,
    /// What.
    pub message: Message,
    /// Who asked.
    pub client: Client,
    /// The boot file that the reply names.
    pub boot_file: String,
}

/// Why a message is ignored. Each is one counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// A BOOTREPLY, or no known `op`.
    NotARequest,
    /// No option 53: plain BOOTP.
    NoMessageType,
    /// Port 67 answers DISCOVER alone: all else is between the client and the lease server.
    NotADiscover,
    /// Port 4011 answers REQUEST alone.
    NotABootRequest,
    /// Neither option 93 nor a class that names an architecture: no boot client.
    NoArchitecture,
    /// An architecture that nothing is served for.
    UnsupportedArchitecture(u16),
    /// Option 97 is not a zero and 16 octets.
    MachineIdForm,
    /// The binary for this firmware is not loaded.
    BinaryMissing(Binary),
}

impl Reason {
    /// The counter's name.
    pub const fn counter(self) -> &'static str {
        match self {
            Self::NotARequest => "dhcp_ignored_not_a_request",
            Self::NoMessageType => "dhcp_ignored_no_message_type",
            Self::NotADiscover => "dhcp_ignored_not_a_discover",
            Self::NotABootRequest => "dhcp_ignored_not_a_boot_request",
            Self::NoArchitecture => "dhcp_ignored_no_architecture",
            Self::UnsupportedArchitecture(_) => "dhcp_ignored_unsupported_architecture",
            Self::MachineIdForm => "dhcp_ignored_machine_id_form",
            Self::BinaryMissing(_) => "dhcp_ignored_binary_missing",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotARequest => f.write_str("not a request"),
            Self::NoMessageType => f.write_str("no message type: BOOTP, not DHCP"),
            Self::NotADiscover => f.write_str("for the lease server: port 67 answers DISCOVER alone"),
            Self::NotABootRequest => f.write_str("port 4011 answers REQUEST alone"),
            Self::NoArchitecture => f.write_str("names no architecture: not a network boot"),
            Self::UnsupportedArchitecture(arch) => write!(f, "architecture {arch} is not supported"),
            Self::MachineIdForm => f.write_str("machine identifier is not a zero and 16 octets"),
            Self::BinaryMissing(binary) => write!(f, "no iPXE binary loaded for it ({binary:?})"),
        }
    }
}

impl Input<'_> {
    /// What the machine may be called, likeliest first; empty when option 97 is absent, malformed or blank.
    ///
    /// SMBIOS keeps a UUID's first three fields in little-endian order, and clients copy them as they lie: iPXE does too (seen
    /// of its 2019 ROM), though it prints them swapped. Both readings are returned, since firmware that swaps exists.
    ///
    /// Source: SMBIOS 3 section 7.2.1, RFC 4578 section 2.3.
    pub fn machine(&self) -> Vec<MachineId> {
        let Some([0, octets @ ..]) = self.message.option(dhcp::MACHINE_ID) else { return Vec::new() };
        let Ok(printed) = <[u8; 16]>::try_from(octets) else { return Vec::new() };
        let mut swapped = printed;
        swapped[0..4].reverse();
        swapped[4..6].reverse();
        swapped[6..8].reverse();
        let mut candidates: Vec<MachineId> =
            [swapped, printed].into_iter().filter_map(|octets| MachineId::from_octets(octets).ok()).collect();
        candidates.dedup();
        candidates
    }
}

/// Decides about one message.
///
/// Checks in this order: request, message type, type for the port, architecture, option 97, binary loaded. Whether option 60
/// is there and whom option 54 addresses is not checked.
///
/// Source: contract sections 3.2 to 3.7.
pub fn decide(view: &BootView, input: Input<'_>) -> Decision {
    match check(view, input) {
        Ok(client) => Decision::Reply(Box::new(reply(view, input, client))),
        Err(reason) => Decision::Ignore(reason),
    }
}

fn check(view: &BootView, input: Input<'_>) -> Result<Client, Reason> {
    let message = input.message;
    if message.op != Op::Request {
        return Err(Reason::NotARequest);
    }
    match (input.port, message.message_type().ok_or(Reason::NoMessageType)?) {
        (Port::Dhcp, MessageType::Discover) | (Port::Binl, MessageType::Request) => {}
        (Port::Dhcp, _) => return Err(Reason::NotADiscover),
        (Port::Binl, _) => return Err(Reason::NotABootRequest),
    }
    let client = firmware::identify(message).map_err(|unknown| match unknown {
        Unknown::Silent => Reason::NoArchitecture,
        Unknown::Arch(arch) => Reason::UnsupportedArchitecture(arch),
    })?;
    // Absent is fine: some cards have no UUID to send, and the script asks for it later.
    if message.option(dhcp::MACHINE_ID).is_some_and(|data| data.len() != 17 || data[0] != 0) {
        return Err(Reason::MachineIdForm);
    }
    if !client.ipxe && !view.served.contains(&client.firmware.binary()) {
        return Err(Reason::BinaryMissing(client.firmware.binary()));
    }
    Ok(client)
}

fn reply(view: &BootView, input: Input<'_>, client: Client) -> Reply {
    let request = input.message;
    let mut options = BTreeMap::new();
    let message_type = match input.port {
        Port::Dhcp => MessageType::Offer,
        Port::Binl => MessageType::Ack,
    };
    options.insert(dhcp::MESSAGE_TYPE, vec![message_type.number()]);
    // EDK2 drops any offer without a server identifier before its PXE code sees it.
    options.insert(dhcp::SERVER_ID, view.server.octets().to_vec());
    let class = request.option(dhcp::VENDOR_CLASS).unwrap_or(b"PXEClient");
    options.insert(dhcp::VENDOR_CLASS, class.to_vec());
    for code in [dhcp::CLIENT_ID, dhcp::RELAY_INFORMATION, dhcp::MACHINE_ID] {
        if let Some(data) = request.option(code) {
            options.insert(code, data.to_vec());
        }
    }
    // iPXE has what it needs without it, and reads sub-options of 43 as settings.
    let pxe = class.starts_with(b"PXEClient") && !client.ipxe;
    if view.discovery_control && input.port == Port::Dhcp && pxe {
        options.insert(dhcp::VENDOR_OPTIONS, DISCOVERY_CONTROL.to_vec());
    }
    let boot_file = boot_file(view, client);
    options.insert(dhcp::BOOT_FILE, boot_file.clone().into_bytes());
    let mut file = Vec::new();
    if !client.ipxe && !client.firmware.http() {
        options.insert(dhcp::TFTP_SERVER, view.server.to_string().into_bytes());
        // U-Boot reads the header alone.
        file = boot_file.clone().into_bytes();
    }
    let message = Message {
        op: Op::Reply,
        htype: request.htype,
        chaddr: request.chaddr,
        xid: request.xid,
        flags: request.flags,
        ciaddr: match input.port {
            Port::Dhcp => Ipv4Addr::UNSPECIFIED,
            Port::Binl => request.ciaddr,
        },
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: view.server,
        giaddr: request.giaddr,
        file,
        options,
    };
    Reply { to: destination(input), message, client, boot_file }
}

fn boot_file(view: &BootView, client: Client) -> String {
    let Client { firmware, ipxe } = client;
    match (ipxe, firmware) {
        // Any iPXE gets a script: given a binary, it would load itself again without end. The init script asks for the
        // decision with the machine's settings in the query; settings in a DHCP file name are not expanded everywhere.
        (true, _) => view.advertise.url("/ipxe/init.ipxe"),
        (false, Firmware::X86Http | Firmware::ArmHttp) => {
            view.advertise.url(&format!("/tftp/{}", firmware.boot_file()))
        }
        (false, Firmware::X86Pc | Firmware::X86Efi | Firmware::ArmEfi) => firmware.boot_file().to_owned(),
    }
}

/// The relay's server port; else the sender; else everybody, since a client without an address has no other.
fn destination(input: Input<'_>) -> SocketAddrV4 {
    let giaddr = input.message.giaddr;
    if !giaddr.is_unspecified() {
        return SocketAddrV4::new(giaddr, 67);
    }
    if !input.from.ip().is_unspecified() {
        return input.from;
    }
    SocketAddrV4::new(Ipv4Addr::BROADCAST, 68)
}

#[cfg(test)]
mod tests;
