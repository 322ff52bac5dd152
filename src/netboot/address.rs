//! Our own interfaces and addresses: which to listen on, which to tell machines.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use nix::ifaddrs::getifaddrs;

/// One address of one interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface's name.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.interface)
    }
}

/// Why no address or interface was chosen.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The kernel would not list the interfaces.
    #[error("interfaces can't be listed")]
    List(#[source] nix::Error),
    /// Neither the name of an interface nor an address of one.
    #[error("no interface found for: {wanted}; there are {}", listed(candidates))]
    NoInterface {
        /// What was asked for.
        wanted: String,
        /// Every interface and address.
        candidates: Vec<InterfaceAddress>,
    },
    /// Not exactly one routable IPv4 address.
    #[error("the address to advertise can't be told: {}; give --api-advertise-address", describe(candidates))]
    Ambiguous {
        /// The routable IPv4 addresses: none, or several.
        candidates: Vec<InterfaceAddress>,
    },
}

fn listed(addresses: &[InterfaceAddress]) -> String {
    match addresses {
        [] => "none".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn describe(candidates: &[InterfaceAddress]) -> String {
    match candidates {
        [] => "no interface has a routable IPv4 address".to_owned(),
        some => format!("there are several routable IPv4 addresses: {}", listed(some)),
    }
}

/// Every address of every interface that is up or down, in the kernel's order.
///
/// # Errors
///
/// [`AddressError::List`].
pub fn list() -> Result<Vec<InterfaceAddress>, AddressError> {
    let addresses = getifaddrs().map_err(AddressError::List)?;
    Ok(addresses
        .filter_map(|entry| {
            let storage = entry.address?;
            let address = match (storage.as_sockaddr_in(), storage.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) => IpAddr::V6(v6.ip()),
                _ => return None,
            };
            Some(InterfaceAddress { interface: entry.interface_name, address })
        })
        .collect())
}

/// The interface called `wanted`, else the first that owns the address `wanted`.
///
/// # Errors
///
/// [`AddressError::NoInterface`], which names what there is.
///
/// Source: contract section 3.1.
pub fn find_interface(addresses: &[InterfaceAddress], wanted: &str) -> Result<String, AddressError> {
    let ip = wanted.parse::<IpAddr>().ok();
    let by_name = addresses.iter().find(|entry| entry.interface == wanted);
    let by_address = || addresses.iter().find(|entry| Some(entry.address) == ip);
    by_name
        .or_else(by_address)
        .map(|entry| entry.interface.clone())
        .ok_or_else(|| AddressError::NoInterface { wanted: wanted.to_owned(), candidates: addresses.to_vec() })
}

/// The one routable IPv4 address, which is what machines are told when nobody says otherwise.
///
/// Routable: none of loopback, link-local, multicast, unspecified, broadcast and class E. IPv6 does not count, so that a
/// dual-stack host needs no flag.
///
/// # Errors
///
/// [`AddressError::Ambiguous`] with the candidates when there is none or more than one.
pub fn detect_advertise(addresses: &[InterfaceAddress]) -> Result<Ipv4Addr, AddressError> {
    let routable = |ip: Ipv4Addr| {
        !(ip.is_loopback() || ip.is_link_local() || ip.is_multicast() || ip.is_unspecified() || ip.octets()[0] >= 240)
    };
    let candidates: Vec<(Ipv4Addr, &InterfaceAddress)> = addresses
        .iter()
        .filter_map(|entry| match entry.address {
            IpAddr::V4(ip) if routable(ip) => Some((ip, entry)),
            _ => None,
        })
        .collect();
    match candidates.as_slice() {
        [(ip, _)] => Ok(*ip),
        several => {
            Err(AddressError::Ambiguous { candidates: several.iter().map(|(_, entry)| (*entry).clone()).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(list: &[(&str, &str)]) -> Vec<InterfaceAddress> {
        list.iter()
            .map(|(interface, ip)| InterfaceAddress { interface: (*interface).into(), address: ip.parse().unwrap() })
            .collect()
    }

    #[test]
    fn one_routable_ipv4_address_is_found_among_the_others() {
        let host = addresses(&[
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("eth0", "2001:db8::5"),
            ("eth0", "169.254.3.4"),
            ("eth0", "240.0.0.1"),
            ("eth0", "172.16.0.42"),
        ]);
        assert_eq!(detect_advertise(&host).unwrap(), Ipv4Addr::new(172, 16, 0, 42));
    }

    #[test]
    fn none_or_several_is_an_error_that_names_them() {
        let error = detect_advertise(&addresses(&[("lo", "127.0.0.1")])).unwrap_err().to_string();
        assert!(error.contains("no interface has a routable IPv4 address"), "{error}");
        let error =
            detect_advertise(&addresses(&[("eth0", "10.0.0.1"), ("eth1", "10.1.0.1")])).unwrap_err().to_string();
        assert!(error.contains("10.0.0.1 (eth0), 10.1.0.1 (eth1)"), "{error}");
    }

    #[test]
    fn an_interface_is_found_by_name_before_address() {
        let host = addresses(&[("eth0", "10.0.0.1"), ("10.0.0.1", "10.9.9.9")]);
        assert_eq!(find_interface(&host, "eth0").unwrap(), "eth0");
        assert_eq!(find_interface(&host, "10.9.9.9").unwrap(), "10.0.0.1");
        assert_eq!(find_interface(&host, "10.0.0.1").unwrap(), "10.0.0.1");
        let error = find_interface(&host, "eth7").unwrap_err().to_string();
        assert!(error.starts_with("no interface found for: eth7; there are 10.0.0.1 (eth0)"), "{error}");
    }

    #[test]
    fn this_host_lists_its_loopback() {
        assert!(list().unwrap().iter().any(|entry| entry.address == IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
}
