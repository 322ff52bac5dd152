//! [`Lease`]: what a DHCP server gives, from the options of its answer.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::net::mac::Mac;
use crate::net::prefix::{Prefix, is_assignable};
use crate::net::routing::Route;
use crate::wire::dhcp::{self, Message};

/// Most servers of one list and most routes that are taken.
const MOST_SERVERS: usize = 8;
const MOST_ROUTES: usize = 64;
/// Longest domain name (RFC 1035 section 2.3.4).
const MOST_DOMAIN: usize = 253;
/// Shortest lease and renewal time that is believed: what is shorter would be a storm of requests.
const LEAST_LEASE: Duration = Duration::from_secs(20);
const LEAST_RENEWAL: Duration = Duration::from_secs(5);
/// The lease time that stands for "for ever" (RFC 2131 section 3.3).
const FOR_EVER: u32 = u32::MAX;
/// What a server that names no lease time is taken to mean.
const UNNAMED: Duration = Duration::from_secs(3600);

/// An address for a time, and what comes with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The address and its network.
    pub address: Prefix,
    /// Routes: those of option 121, else one by way of the first router.
    pub routes: Vec<Route>,
    /// DNS servers, preferred first.
    pub dns: Vec<Ipv4Addr>,
    /// The domain that short names are looked up in, in lower case.
    pub domain: Option<String>,
    /// NTP servers, preferred first.
    pub ntp: Vec<Ipv4Addr>,
    /// The link's MTU.
    pub mtu: Option<u16>,
    /// Who gave it.
    pub server: Ipv4Addr,
    /// The station that the answer came from: the server, or the router before it.
    pub station: Mac,
    /// For how long; `None` for ever.
    pub lasts: Option<Duration>,
    /// After which time it is renewed (T1) and any server asked (T2).
    pub renew: Duration,
    /// T2.
    pub rebind: Duration,
}

/// Why an offer or acknowledgement is no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoLease {
    /// No usable address in it.
    #[error("it gives no address that a station can have")]
    Address,
    /// Option 54 is missing: nobody to ask for it.
    #[error("it names no server")]
    Server,
    /// The mask has holes.
    #[error("its subnet mask is none")]
    Mask,
}

impl Lease {
    /// Reads the lease out of an offer or acknowledgement that came from `station`.
    ///
    /// # Errors
    ///
    /// [`NoLease`]. Options that are malformed count as missing, lists are cut at 8 servers and 64 routes.
    ///
    /// Source: RFC 2132, RFC 3442.
    pub fn read(message: &Message, station: Mac) -> Result<Self, NoLease> {
        if !is_assignable(message.yiaddr) {
            return Err(NoLease::Address);
        }
        let server = message.address(dhcp::SERVER_ID).filter(|server| is_assignable(*server)).ok_or(NoLease::Server)?;
        // Without a mask nothing but the address itself is known to be on the link.
        let mask = message.address(dhcp::SUBNET_MASK).unwrap_or(Ipv4Addr::BROADCAST);
        let address =
            Prefix::from_mask(message.yiaddr, mask).filter(|prefix| !prefix.is_empty()).ok_or(NoLease::Mask)?;
        let servers =
            |code| addresses(message, code).filter(|server| is_assignable(*server)).take(MOST_SERVERS).collect();
        let seconds = |code| message.address(code).map(u32::from);
        let lasts = match seconds(dhcp::LEASE_TIME) {
            Some(FOR_EVER) => None,
            Some(secs) => Some(Duration::from_secs(secs.into()).max(LEAST_LEASE)),
            None => Some(UNNAMED),
        };
        let (renew, rebind) = times(lasts, seconds(dhcp::RENEWAL_TIME), seconds(dhcp::REBINDING_TIME));
        Ok(Self {
            address,
            routes: routes(message),
            dns: servers(dhcp::DNS_SERVERS),
            domain: message.option(dhcp::DOMAIN_NAME).and_then(domain),
            ntp: servers(dhcp::NTP_SERVERS),
            mtu: message
                .option(dhcp::INTERFACE_MTU)
                .and_then(|data| data.try_into().ok())
                .map(u16::from_be_bytes)
                .filter(|mtu| (576..=9216).contains(mtu)),
            server,
            station,
            lasts,
            renew,
            rebind,
        })
    }
}

/// T1 and T2: those given when they are in order, else half and seven eighths of the lease (RFC 2131 section 4.4.5).
fn times(lasts: Option<Duration>, renew: Option<u32>, rebind: Option<u32>) -> (Duration, Duration) {
    let lasts = lasts.unwrap_or(Duration::from_secs(FOR_EVER.into()));
    let given = renew.zip(rebind).map(|(renew, rebind)| {
        (Duration::from_secs(renew.into()).max(LEAST_RENEWAL), Duration::from_secs(rebind.into()))
    });
    match given {
        Some((renew, rebind)) if renew <= rebind && rebind <= lasts => (renew, rebind),
        _ => (lasts / 2, lasts * 7 / 8),
    }
}

fn addresses(message: &Message, code: u8) -> impl Iterator<Item = Ipv4Addr> + '_ {
    let data = message.option(code).unwrap_or_default();
    data.chunks_exact(4).map(|four| Ipv4Addr::new(four[0], four[1], four[2], four[3]))
}

/// Option 121 alone when it is there and well-formed, else the first router (RFC 3442).
fn routes(message: &Message) -> Vec<Route> {
    if let Some(routes) = message.option(dhcp::CLASSLESS_ROUTES).and_then(classless_routes) {
        return routes;
    }
    let router = addresses(message, dhcp::ROUTERS).find(|router| is_assignable(*router));
    router.map(Route::default_via).into_iter().collect()
}

/// Routes as RFC 3442 packs them: prefix length, as many octets of the network as it needs, router. A router of 0.0.0.0 is
/// the link itself. `None` when it ends early or a length exceeds 32.
fn classless_routes(mut data: &[u8]) -> Option<Vec<Route>> {
    let mut routes = Vec::new();
    while let [len, rest @ ..] = data {
        let octets = usize::from(len.div_ceil(8));
        let mut network = [0; 4];
        network.get_mut(..octets)?.copy_from_slice(rest.get(..octets)?);
        let router: [u8; 4] = rest.get(octets..octets + 4)?.try_into().ok()?;
        data = &rest[octets + 4..];
        let to = Prefix::new(network.into(), *len)?.network();
        let via = Some(Ipv4Addr::from(router)).filter(|router| !router.is_unspecified());
        if routes.len() < MOST_ROUTES && via.is_none_or(is_assignable) {
            routes.push(Route { to, via });
        }
    }
    Some(routes)
}

/// A domain name as it may stand in resolv.conf; `None` for anything else, such as a line of its own.
fn domain(data: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(data).ok()?.trim_end_matches(['\0', '.']);
    let good = |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_');
    let fits = !text.is_empty() && text.len() <= MOST_DOMAIN && text.bytes().all(good) && !text.starts_with('-');
    fits.then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::dhcp::{HardwareAddress, Op};

    const STATION: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn answer(options: &[(u8, &[u8])]) -> Message {
        Message {
            op: Op::Reply,
            htype: 1,
            chaddr: HardwareAddress::new(&[2, 0, 0, 0, 0, 1]).unwrap(),
            xid: 0,
            flags: 0,
            ciaddr: Ipv4Addr::UNSPECIFIED,
            yiaddr: Ipv4Addr::new(192, 0, 2, 10),
            siaddr: Ipv4Addr::UNSPECIFIED,
            giaddr: Ipv4Addr::UNSPECIFIED,
            file: Vec::new(),
            options: options.iter().map(|(code, data)| (*code, data.to_vec())).collect(),
        }
    }

    fn read(options: &[(u8, &[u8])]) -> Lease {
        let server: (u8, &[u8]) = (54, &[192, 0, 2, 1]);
        Lease::read(&answer(&[&[server], options].concat()), STATION).unwrap()
    }

    #[test]
    fn everything_that_counts_is_read() {
        let lease = read(&[
            (1, &[255, 255, 255, 0]),
            (3, &[192, 0, 2, 254, 192, 0, 2, 253]),
            (6, &[192, 0, 2, 2, 0, 0, 0, 0, 192, 0, 2, 3]),
            (15, b"Rack.Example.\0"),
            (26, &[0x23, 0x28]),
            (42, &[192, 0, 2, 4]),
            (51, &[0, 0, 0x0e, 0x10]),
        ]);
        assert_eq!(lease.address.to_string(), "192.0.2.10/24");
        assert_eq!(lease.routes, [Route::default_via(Ipv4Addr::new(192, 0, 2, 254))]);
        assert_eq!(lease.dns, [Ipv4Addr::new(192, 0, 2, 2), Ipv4Addr::new(192, 0, 2, 3)]);
        assert_eq!((lease.domain.as_deref(), lease.mtu), (Some("rack.example"), Some(9000)));
        let hour = Duration::from_secs(3600);
        assert_eq!((lease.lasts, lease.renew, lease.rebind), (Some(hour), hour / 2, hour * 7 / 8));
    }

    #[test]
    fn classless_routes_replace_the_router() {
        let lease = read(&[
            (3, &[192, 0, 2, 254]),
            (121, &[0, 192, 0, 2, 253, 20, 10, 1, 0x1f, 192, 0, 2, 252, 32, 10, 9, 9, 9, 0, 0, 0, 0]),
        ]);
        let texts: Vec<_> = lease.routes.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["0.0.0.0/0 via 192.0.2.253", "10.1.16.0/20 via 192.0.2.252", "10.9.9.9/32"]);
        // Cut off: as if it were not there.
        assert_eq!(read(&[(3, &[192, 0, 2, 254]), (121, &[24, 10, 1])]).routes.len(), 1);
        assert_eq!(read(&[(121, &[33, 1, 2, 3, 4, 5, 192, 0, 2, 1])]).routes, []);
    }

    #[test]
    fn times_out_of_order_are_the_usual_parts_of_the_lease() {
        let secs = Duration::from_secs;
        assert_eq!(times(Some(secs(100)), Some(10), Some(90)), (secs(10), secs(90)));
        assert_eq!(times(Some(secs(100)), Some(95), Some(90)), (secs(50), Duration::from_millis(87_500)));
        assert_eq!(times(Some(secs(100)), Some(0), Some(101)).0, secs(50));
        assert_eq!(read(&[(51, &[0, 0, 0, 0])]).lasts, Some(LEAST_LEASE));
        assert_eq!(read(&[(51, &[255; 4])]).lasts, None);
        assert_eq!(read(&[(51, &[0, 0, 0, 100]), (58, &[0, 0, 0, 0]), (59, &[0, 0, 0, 9])]).renew, LEAST_RENEWAL);
    }

    #[test]
    fn what_no_station_can_use_is_no_lease() {
        let refused = |change: &dyn Fn(&mut Message)| {
            let mut message = answer(&[(54, &[192, 0, 2, 1]), (1, &[255, 255, 255, 0])]);
            change(&mut message);
            Lease::read(&message, STATION).unwrap_err()
        };
        for address in [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]] {
            assert_eq!(refused(&|message| message.yiaddr = address.into()), NoLease::Address);
        }
        assert_eq!(refused(&|message| drop(message.options.remove(&54))), NoLease::Server);
        assert_eq!(refused(&|message| drop(message.options.insert(1, vec![255, 0, 255, 0]))), NoLease::Mask);
    }

    #[test]
    fn a_domain_is_no_line_of_resolv_conf() {
        for data in [&b"a\nnameserver 6.6.6.6"[..], b"a b", b"", b"\0", b"\xff", b"-x", &[b'a'; 300]] {
            assert_eq!(read(&[(15, data)]).domain, None);
        }
    }

    proptest! {
        #[test]
        fn any_options_are_a_bounded_lease_or_none(
            options in proptest::collection::btree_map(any::<u8>(), proptest::collection::vec(any::<u8>(), 0..300), 0..20),
            address in any::<u32>(),
        ) {
            let mut message = answer(&[]);
            message.yiaddr = address.into();
            message.options = options;
            message.options.entry(54).or_insert_with(|| vec![192, 0, 2, 1]);
            if let Ok(lease) = Lease::read(&message, STATION) {
                prop_assert!(lease.dns.len() <= MOST_SERVERS && lease.ntp.len() <= MOST_SERVERS && lease.routes.len() <= MOST_ROUTES);
                prop_assert!(lease.renew <= lease.rebind && lease.renew >= LEAST_RENEWAL);
                prop_assert!(lease.lasts.is_none_or(|lasts| lease.rebind <= lasts));
            }
        }
    }
}
