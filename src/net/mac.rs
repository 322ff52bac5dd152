//! [`Mac`]: a 48-bit Ethernet address.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An Ethernet address. Written as lower-case hex with colons; read with colons or hyphens, in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Every station.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address of these octets; `None` unless there are six.
    pub fn from_octets(octets: &[u8]) -> Option<Self> {
        octets.try_into().ok().map(Self)
    }

    /// Whether it can be a station's own: neither group nor zero.
    pub const fn is_station(self) -> bool {
        self.0[0] & 1 == 0 && !matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// The last three octets as six hex digits: what tells boxes of one maker apart.
    pub fn tail(self) -> String {
        let [.., a, b, c] = self.0;
        format!("{a:02x}{b:02x}{c:02x}")
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a text is no Ethernet address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no MAC address: six octets in hex, such as 52:54:00:12:34:56")]
pub struct NoMac {
    text: String,
}

impl FromStr for Mac {
    type Err = NoMac;

    fn from_str(text: &str) -> Result<Self, NoMac> {
        let no = || NoMac { text: text.chars().take(40).collect() };
        let mut octets = [0; 6];
        let mut parts = text.trim().split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or_else(no)?;
            // `from_str_radix` takes a sign, too.
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(no());
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| no())?;
        }
        if parts.next().is_none() { Ok(Self(octets)) } else { Err(no()) }
    }
}

impl TryFrom<String> for Mac {
    type Error = NoMac;

    fn try_from(text: String) -> Result<Self, NoMac> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_read_as_people_write_it() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0xab]);
        assert_eq!("52-54-00-12-34-AB".parse(), Ok(mac));
        assert_eq!((mac.to_string().as_str(), mac.tail().as_str()), ("52:54:00:12:34:ab", "1234ab"));
        for text in ["", "52:54:00:12:34", "52:54:00:12:34:ab:cd", "5:54:00:12:34:ab", "52:54:00:12:34:+b", "x"] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(octets in any::<[u8; 6]>(), text in "\\PC{0,40}") {
            prop_assert_eq!(Mac(octets).to_string().parse(), Ok(Mac(octets)));
            let _ = text.parse::<Mac>();
        }
    }
}
