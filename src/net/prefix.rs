//! [`Prefix`]: an IPv4 address and how much of it is its network.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An IPv4 address with the length of its network's prefix, 0 to 32: `192.0.2.10/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix {
    address: Ipv4Addr,
    len: u8,
}

impl Prefix {
    /// `None` when `len` exceeds 32.
    pub fn new(address: Ipv4Addr, len: u8) -> Option<Self> {
        (len <= 32).then_some(Self { address, len })
    }

    /// The address with a mask of ones followed by zeroes; `None` for any other mask.
    pub fn from_mask(address: Ipv4Addr, mask: Ipv4Addr) -> Option<Self> {
        let bits = u32::from(mask);
        let len = bits.leading_ones();
        (bits.checked_shl(len).unwrap_or(0) == 0).then_some(Self { address, len: len as u8 })
    }

    /// The address itself.
    pub const fn address(self) -> Ipv4Addr {
        self.address
    }

    /// The prefix' length.
    pub const fn len(self) -> u8 {
        self.len
    }

    /// Whether the prefix is of no length: everything.
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    fn mask(self) -> u32 {
        u32::MAX.checked_shl(32 - u32::from(self.len)).unwrap_or(0)
    }

    /// The network: the address with its host bits cleared.
    pub fn network(self) -> Self {
        Self { address: Ipv4Addr::from(u32::from(self.address) & self.mask()), len: self.len }
    }

    /// Whether `address` is in the network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        u32::from(address) & self.mask() == u32::from(self.address) & self.mask()
    }

    /// Whether the address can be a host's in its network: neither the network's own nor its broadcast address.
    pub fn is_host(self) -> bool {
        let host = u32::from(self.address) & !self.mask();
        self.len >= 31 || (host != 0 && host != !self.mask())
    }
}

/// Whether a station can have `address`: none of zero, loopback, multicast, class E, broadcast.
pub fn is_assignable(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    first != 0 && first != 127 && first < 224
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// Why a text is no address with a prefix length.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no IPv4 address with a prefix length, such as 192.0.2.10/24")]
pub struct NoPrefix {
    text: String,
}

impl FromStr for Prefix {
    type Err = NoPrefix;

    fn from_str(text: &str) -> Result<Self, NoPrefix> {
        let parsed = text.trim().split_once('/').and_then(|(address, len)| {
            let digits = len.len() <= 2 && len.bytes().all(|octet| octet.is_ascii_digit());
            Self::new(address.parse().ok()?, len.parse().ok().filter(|_| digits)?)
        });
        parsed.ok_or_else(|| NoPrefix { text: text.chars().take(40).collect() })
    }
}

impl TryFrom<String> for Prefix {
    type Error = NoPrefix;

    fn try_from(text: String) -> Result<Self, NoPrefix> {
        text.parse()
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> Self {
        prefix.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn masks_are_lengths_or_nothing() {
        let address = Ipv4Addr::new(192, 0, 2, 10);
        let of = |mask: [u8; 4]| Prefix::from_mask(address, mask.into()).map(Prefix::len);
        assert_eq!(of([255, 255, 255, 0]), Some(24));
        assert_eq!(of([255, 255, 255, 255]), Some(32));
        assert_eq!(of([0, 0, 0, 0]), Some(0));
        assert_eq!(of([255, 0, 255, 0]), None);
    }

    #[test]
    fn hosts_are_told_from_the_network_and_its_broadcast() {
        let is_host = |text: &str| text.parse::<Prefix>().unwrap().is_host();
        assert!(is_host("10.0.0.1/24") && is_host("10.0.0.0/31") && is_host("10.0.0.255/32"));
        assert!(!is_host("10.0.0.0/24") && !is_host("10.0.0.255/24"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(address in any::<u32>(), len in 0_u8..=32, text in "\\PC{0,40}") {
            let prefix = Prefix::new(address.into(), len).unwrap();
            prop_assert_eq!(prefix.to_string().parse(), Ok(prefix));
            prop_assert!(prefix.contains(prefix.network().address()));
            let _ = text.parse::<Prefix>();
        }
    }
}
