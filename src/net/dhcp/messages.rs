//! The messages that a client sends (RFC 2131 table 5).

use std::net::Ipv4Addr;

use super::Lease;
use crate::net::jitter::Jitter;
use crate::net::mac::Mac;
use crate::wire::dhcp::{self, HardwareAddress, Message, MessageType, Op};

/// The vendor class: who we are, for those who read a server's log.
const VENDOR_CLASS: &[u8] = b"pilotlight";
/// What we want to know.
const PARAMETERS: [u8; 11] = [
    // RFC 3442: before the router, so that a server that runs out of room gives the routes.
    dhcp::CLASSLESS_ROUTES,
    dhcp::SUBNET_MASK,
    dhcp::ROUTERS,
    dhcp::DNS_SERVERS,
    dhcp::DOMAIN_NAME,
    dhcp::INTERFACE_MTU,
    dhcp::NTP_SERVERS,
    dhcp::LEASE_TIME,
    dhcp::SERVER_ID,
    dhcp::RENEWAL_TIME,
    dhcp::REBINDING_TIME,
];

/// Makes a client's messages and knows which answers are to them.
#[derive(Clone, Debug)]
pub(super) struct Messages {
    own: Mac,
    hostname: Vec<u8>,
    xid: u32,
}

impl Messages {
    pub(super) fn new(own: Mac, hostname: &str) -> Self {
        Self { own, hostname: hostname.as_bytes().to_vec(), xid: 0 }
    }

    pub(super) const fn own(&self) -> Mac {
        self.own
    }

    /// A new transaction: answers to the one before don't count any more.
    pub(super) fn renumber(&mut self, jitter: &mut Jitter) {
        self.xid = jitter.next_u32();
    }

    /// Whether `message` answers this client's current transaction.
    pub(super) fn answers(&self, message: &Message) -> bool {
        message.xid == self.xid && message.htype == 1 && message.chaddr.octets() == self.own.0
    }

    pub(super) fn discover(&self, former: Option<Ipv4Addr>) -> Message {
        let mut message = self.message(MessageType::Discover);
        if let Some(address) = former {
            put(&mut message, dhcp::REQUESTED_ADDRESS, address);
        }
        message
    }

    pub(super) fn request_offer(&self, offer: &Lease) -> Message {
        let mut message = self.message(MessageType::Request);
        put(&mut message, dhcp::REQUESTED_ADDRESS, offer.address.address());
        put(&mut message, dhcp::SERVER_ID, offer.server);
        message
    }

    pub(super) fn request_former(&self, address: Ipv4Addr) -> Message {
        let mut message = self.message(MessageType::Request);
        put(&mut message, dhcp::REQUESTED_ADDRESS, address);
        message
    }

    pub(super) fn request_more(&self, address: Ipv4Addr) -> Message {
        Message { ciaddr: address, ..self.message(MessageType::Request) }
    }

    pub(super) fn decline(&self, lease: &Lease) -> Message {
        let mut message = self.message(MessageType::Decline);
        for code in [dhcp::PARAMETERS, dhcp::MAX_MESSAGE, dhcp::VENDOR_CLASS, dhcp::HOST_NAME] {
            message.options.remove(&code);
        }
        put(&mut message, dhcp::REQUESTED_ADDRESS, lease.address.address());
        put(&mut message, dhcp::SERVER_ID, lease.server);
        message
    }

    fn message(&self, message_type: MessageType) -> Message {
        let options = [
            (dhcp::MESSAGE_TYPE, vec![message_type.number()]),
            (dhcp::CLIENT_ID, [&[1], &self.own.0[..]].concat()),
            (dhcp::HOST_NAME, self.hostname.clone()),
            (dhcp::VENDOR_CLASS, VENDOR_CLASS.to_vec()),
            (dhcp::MAX_MESSAGE, (dhcp::MAX_OCTETS as u16).to_be_bytes().to_vec()),
            (dhcp::PARAMETERS, PARAMETERS.to_vec()),
        ];
        Message {
            op: Op::Request,
            htype: 1,
            chaddr: HardwareAddress::new(&self.own.0).expect("an Ethernet address has 6 octets"),
            xid: self.xid,
            // Unicast answers reach a packet socket before the address is set.
            flags: 0,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::UNSPECIFIED,
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            file: Vec::new(),
            options: options.into(),
        }
    }
}

fn put(message: &mut Message, code: u8, address: Ipv4Addr) {
    message.options.insert(code, address.octets().to_vec());
}
