//! [`Network`]: the `[network]` table of the box's configuration, as written, and every fault in it.
//!
//! One plain object: the form on the page, the file on the stick and the console all make the same. What is not written
//! has its default, and the default of the whole is DHCP on every Ethernet port.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::mac::Mac;
use super::prefix::{Prefix, is_assignable};

/// Most interfaces.
pub const MOST_INTERFACES: usize = 16;
/// Most DNS or NTP servers of one list.
pub const MOST_SERVERS: usize = 8;
/// Most members of a bond.
pub const MOST_MEMBERS: usize = 8;
/// What an IPv4 link carries at least (RFC 791) and what Ethernet drivers take at most.
pub const MTU: std::ops::RangeInclusive<u32> = 576..=9216;

/// How the box is connected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Network {
    /// One entry an interface. Empty: DHCP on every Ethernet port.
    pub interfaces: Vec<Interface>,
    /// NTP servers by name or address. Empty: those of DHCP, and without them [`DEFAULT_NTP`](super::timekeeper::DEFAULT_NTP).
    pub ntp: Vec<String>,
}

/// One interface: a port, a bond of ports, or a VLAN on either.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interface {
    /// What it is for.
    #[serde(default)]
    pub role: Role,
    /// The permanent MAC address of its port, or every port that no other entry names. Without meaning for a bond.
    #[serde(default)]
    pub mac: Match,
    /// The VLAN on it that carries the addresses, 1 to 4094.
    #[serde(default)]
    pub vlan: Option<u16>,
    /// Ports that act as one.
    #[serde(default)]
    pub bond: Option<Bond>,
    /// The link's MTU in octets; unset leaves the driver's, or takes what DHCP says.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// Where its addresses come from.
    #[serde(default)]
    pub mode: Mode,
    /// Static: the address with its prefix length.
    #[serde(default)]
    pub address: Option<Prefix>,
    /// Static: the default gateway.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// DNS servers; with DHCP they replace the server's.
    #[serde(default)]
    pub dns: Vec<IpAddr>,
}

impl Default for Interface {
    /// DHCP on every port that is not named elsewhere.
    fn default() -> Self {
        Self {
            role: Role::default(),
            mac: Match::default(),
            vlan: None,
            bond: None,
            mtu: None,
            mode: Mode::default(),
            address: None,
            gateway: None,
            dns: Vec::new(),
        }
    }
}

/// What an interface is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Towards Omni; its default route and DNS are preferred.
    #[default]
    Uplink,
    /// Towards the machines that boot from the network.
    Provisioning,
    /// Towards the machines' management controllers.
    Bmc,
}

impl Role {
    /// As configuration spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::Provisioning => "provisioning",
            Self::Bmc => "bmc",
        }
    }
}

/// Which port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Match {
    /// Every Ethernet port that no other entry names: `any`.
    #[default]
    Any,
    /// The port with that permanent address.
    Mac(Mac),
}

impl TryFrom<String> for Match {
    type Error = super::mac::NoMac;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.trim() == "any" { Ok(Self::Any) } else { text.parse().map(Self::Mac) }
    }
}

impl From<Match> for String {
    fn from(port: Match) -> Self {
        match port {
            Match::Any => "any".to_owned(),
            Match::Mac(mac) => mac.to_string(),
        }
    }
}

/// Where addresses come from. Link-local ones are always there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// A DHCP server.
    #[default]
    Dhcp,
    /// The configuration.
    Static,
}

/// Ports that act as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bond {
    /// How they share the traffic.
    #[serde(default)]
    pub mode: BondMode,
    /// The permanent MAC addresses of the ports.
    pub members: Vec<Mac>,
}

/// How a bond shares traffic; names as the kernel's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BondMode {
    /// One port carries all, the others stand by. Needs nothing of the switch.
    #[default]
    #[serde(rename = "active-backup")]
    ActiveBackup,
    /// LACP; needs a switch that is set up for it.
    #[serde(rename = "802.3ad")]
    Lacp,
}

/// One thing that is wrong with a configuration: where, what, and how it is meant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The path of the value, such as `network.interfaces[1].gateway`.
    pub at: String,
    /// What is wrong and what would be right.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)
    }
}

impl Network {
    /// The interfaces that count: those written, or the default one.
    pub fn effective(&self) -> Vec<Interface> {
        if self.interfaces.is_empty() { vec![Interface::default()] } else { self.interfaces.clone() }
    }

    /// Every fault, in the order of the file; empty when it can be applied.
    pub fn faults(&self) -> Vec<Fault> {
        let mut faults = Faults::default();
        if self.interfaces.len() > MOST_INTERFACES {
            faults.add("network.interfaces", format!("{} entries, at most {MOST_INTERFACES}", self.interfaces.len()));
        }
        let interfaces = &self.interfaces[..self.interfaces.len().min(MOST_INTERFACES)];
        for (index, interface) in interfaces.iter().enumerate() {
            interface.check(&format!("network.interfaces[{index}]"), &mut faults);
        }
        self.check_ports(interfaces, &mut faults);
        self.check_networks(interfaces, &mut faults);
        if self.ntp.len() > MOST_SERVERS {
            faults.add("network.ntp", format!("{} servers, at most {MOST_SERVERS}", self.ntp.len()));
        }
        for (index, server) in self.ntp.iter().take(MOST_SERVERS).enumerate() {
            if !is_host(server) {
                faults
                    .add(format!("network.ntp[{index}]"), format!("{server:?} is neither a host name nor an address"));
            }
        }
        faults.0
    }

    /// A port can carry one untagged interface and any number of VLANs, and be a member of one bond.
    fn check_ports(&self, interfaces: &[Interface], faults: &mut Faults) {
        let mut carried: BTreeMap<(String, Option<u16>), usize> = BTreeMap::new();
        let mut members: BTreeMap<Mac, usize> = BTreeMap::new();
        for (index, interface) in interfaces.iter().enumerate() {
            let Some(bond) = &interface.bond else { continue };
            for member in &bond.members {
                if let Some(other) = members.insert(*member, index) {
                    faults.add(
                        format!("network.interfaces[{index}].bond.members"),
                        format!("{member} is a member of network.interfaces[{other}] already"),
                    );
                }
            }
        }
        for (index, interface) in interfaces.iter().enumerate().filter(|(_, interface)| interface.bond.is_none()) {
            let at = format!("network.interfaces[{index}].mac");
            if let Some(other) = carried.insert((interface.mac.into(), interface.vlan), index) {
                let vlan = interface.vlan.map_or_else(|| "without a VLAN".to_owned(), |vlan| format!("VLAN {vlan}"));
                let port = String::from(interface.mac);
                faults.add(&at, format!("{port} {vlan} is network.interfaces[{other}] already"));
            }
            if let Match::Mac(mac) = interface.mac
                && let Some(other) = members.get(&mac)
            {
                faults.add(&at, format!("{mac} is a member of the bond network.interfaces[{other}]"));
            }
        }
    }

    /// Two interfaces in one network would answer for each other.
    fn check_networks(&self, interfaces: &[Interface], faults: &mut Faults) {
        let written = || interfaces.iter().enumerate().filter_map(|(index, one)| Some((index, one.address?)));
        for (index, address) in written() {
            let overlaps = |other: Prefix| other.contains(address.address()) || address.contains(other.address());
            if let Some((other, prefix)) = written().find(|(at, other)| *at < index && overlaps(*other)) {
                faults.add(
                    format!("network.interfaces[{index}].address"),
                    format!("{address} overlaps {prefix} of network.interfaces[{other}]"),
                );
            }
        }
    }
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, at: impl Into<String>, what: impl Into<String>) {
        self.0.push(Fault { at: at.into(), what: what.into() });
    }
}

impl Interface {
    fn check(&self, at: &str, faults: &mut Faults) {
        if let Match::Mac(mac) = self.mac
            && !mac.is_station()
        {
            faults.add(format!("{at}.mac"), format!("{mac} is no station's address"));
        }
        if let Some(vlan) = self.vlan
            && !(1..=4094).contains(&vlan)
        {
            faults.add(format!("{at}.vlan"), format!("{vlan} is no VLAN, they are 1 to 4094"));
        }
        if let Some(mtu) = self.mtu
            && !MTU.contains(&mtu)
        {
            faults.add(format!("{at}.mtu"), format!("{mtu} is out of range, {} to {}", MTU.start(), MTU.end()));
        }
        if let Some(bond) = &self.bond {
            self.check_bond(bond, at, faults);
        }
        match self.mode {
            Mode::Static => self.check_static(at, faults),
            Mode::Dhcp => {
                for (set, name) in [(self.address.is_some(), "address"), (self.gateway.is_some(), "gateway")] {
                    if set {
                        faults.add(format!("{at}.{name}"), "belongs to mode \"static\", this one is \"dhcp\"");
                    }
                }
            }
        }
        if self.mode == Mode::Static && self.mac == Match::Any && self.bond.is_none() {
            faults.add(format!("{at}.mac"), "a static address needs the MAC address of its port, not \"any\"");
        }
        if self.dns.len() > MOST_SERVERS {
            faults.add(format!("{at}.dns"), format!("{} servers, at most {MOST_SERVERS}", self.dns.len()));
        }
        for server in self.dns.iter().take(MOST_SERVERS) {
            if server.is_unspecified() || server.is_multicast() {
                faults.add(format!("{at}.dns"), format!("{server} is no server's address"));
            }
        }
    }

    fn check_bond(&self, bond: &Bond, at: &str, faults: &mut Faults) {
        if bond.members.is_empty() || bond.members.len() > MOST_MEMBERS {
            faults.add(format!("{at}.bond.members"), format!("a bond has 1 to {MOST_MEMBERS} members"));
        }
        let distinct: BTreeSet<_> = bond.members.iter().collect();
        for mac in distinct.into_iter().filter(|mac| !mac.is_station()) {
            faults.add(format!("{at}.bond.members"), format!("{mac} is no station's address"));
        }
        if self.mac != Match::Any {
            faults.add(format!("{at}.mac"), "a bond is told by its members, not by a MAC address");
        }
    }

    fn check_static(&self, at: &str, faults: &mut Faults) {
        let Some(address) = self.address else {
            faults.add(format!("{at}.address"), "is needed by mode \"static\", such as 192.0.2.10/24");
            return;
        };
        if !is_assignable(address.address()) || address.address().is_link_local() || !address.is_host() {
            faults.add(format!("{at}.address"), format!("{address} is no address of a host"));
        }
        if !(8..=32).contains(&address.len()) {
            faults.add(format!("{at}.address"), format!("{address}: the prefix length is 8 to 32"));
        }
        let Some(gateway) = self.gateway else { return };
        if gateway == address.address() {
            faults.add(format!("{at}.gateway"), format!("{gateway} is the box itself"));
        } else if !address.contains(gateway) {
            faults.add(format!("{at}.gateway"), format!("{gateway} is not within {address}"));
        }
    }
}

/// Whether `text` is an IP address or a host name (RFC 1123 section 2.1).
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|octet| octet.is_ascii_alphanumeric() || octet == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.parse::<IpAddr>().is_ok() || (text.len() <= 253 && text.split('.').all(label))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn network(value: serde_json::Value) -> Network {
        serde_json::from_value(value).unwrap()
    }

    fn faults(value: serde_json::Value) -> Vec<String> {
        network(value).faults().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_written_is_dhcp_on_every_port() {
        let network = network(json!({}));
        assert_eq!(network, Network::default());
        assert_eq!((network.faults(), network.effective()), (vec![], vec![Interface::default()]));
        assert_eq!((Interface::default().mode, Interface::default().mac), (Mode::Dhcp, Match::Any));
    }

    #[test]
    fn a_whole_site_is_accepted() {
        let site = json!({"ntp": ["ntp.example.org", "192.0.2.1", "2001:db8::1"], "interfaces": [
            {"role": "uplink", "bond": {"mode": "802.3ad", "members": ["52:54:00:00:00:01", "52:54:00:00:00:02"]}, "mtu": 9000},
            {"role": "provisioning", "mac": "52:54:00:00:00:03", "mode": "static", "address": "10.0.0.1/24", "dns": ["10.0.0.2"]},
            {"role": "bmc", "mac": "52:54:00:00:00:03", "vlan": 20, "mode": "static", "address": "10.1.0.1/24", "gateway": "10.1.0.254"},
        ]});
        assert_eq!(faults(site.clone()), [""; 0]);
        let again: Network = serde_json::from_str(&serde_json::to_string(&network(site.clone())).unwrap()).unwrap();
        assert_eq!(again, network(site));
    }

    #[test]
    fn all_faults_are_named_at_once() {
        let found = faults(json!({"ntp": ["-x", "a b"], "interfaces": [
            {"mac": "01:00:5e:00:00:01", "vlan": 4095, "mtu": 100, "gateway": "10.0.0.1"},
            {"mode": "static"},
            {"mac": "52:54:00:00:00:03", "mode": "static", "address": "10.0.0.0/24", "gateway": "10.9.9.9", "dns": ["0.0.0.0"]},
            {"mac": "52:54:00:00:00:03", "mode": "static", "address": "10.0.0.7/16", "gateway": "10.0.0.7"},
            {"mac": "52:54:00:00:00:04", "bond": {"members": []}},
            {"bond": {"members": ["52:54:00:00:00:03"]}},
        ]}));
        let expected = [
            "interfaces[0].mac: 01:00:5e:00:00:01 is no station",
            "interfaces[0].vlan: 4095",
            "interfaces[0].mtu: 100",
            "interfaces[0].gateway: belongs to mode \"static\"",
            "interfaces[1].address: is needed",
            "interfaces[1].mac: a static address needs",
            "interfaces[2].address: 10.0.0.0/24 is no address of a host",
            "interfaces[2].gateway: 10.9.9.9 is not within",
            "interfaces[2].dns: 0.0.0.0",
            "interfaces[3].gateway: 10.0.0.7 is the box itself",
            "interfaces[4].bond.members: a bond has 1 to",
            "interfaces[4].mac: a bond is told by",
            "interfaces[2].mac: 52:54:00:00:00:03 is a member of the bond network.interfaces[5]",
            "interfaces[3].mac: 52:54:00:00:00:03 without a VLAN is network.interfaces[2] already",
            "interfaces[3].mac: 52:54:00:00:00:03 is a member of the bond network.interfaces[5]",
            "interfaces[3].address: 10.0.0.7/16 overlaps 10.0.0.0/24 of network.interfaces[2]",
            "ntp[0]: \"-x\"",
            "ntp[1]: \"a b\"",
        ];
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(&format!("network.{expected}")), "{found} is not {expected}");
        }
    }

    #[test]
    fn what_is_not_in_the_schema_is_refused() {
        for value in [
            json!({"interface": []}),
            json!({"interfaces": [{"addres": "1.2.3.4/8"}]}),
            json!({"interfaces": [{"mac": "x"}]}),
        ] {
            assert!(serde_json::from_value::<Network>(value.clone()).is_err(), "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_static_interface_without_faults_is_one_of_a_host(address in any::<u32>(), len in 0_u8..=32, gateway in any::<u32>()) {
            let address = Prefix::new(address.into(), len).unwrap();
            let interface = Interface {
                mac: Match::Mac(Mac([2, 0, 0, 0, 0, 1])),
                mode: Mode::Static,
                address: Some(address),
                gateway: Some(gateway.into()),
                ..Interface::default()
            };
            let network = Network { interfaces: vec![interface], ntp: Vec::new() };
            if network.faults().is_empty() {
                prop_assert!(address.is_host() && is_assignable(address.address()));
                prop_assert!(address.contains(gateway.into()));
            }
        }
    }
}
