//! [`NetworkForm`]: the network as far as it takes to reach the box and Omni again.
//!
//! It sets one interface, the uplink. Interfaces of other ports stay as they are, or are forgotten.

use std::net::{IpAddr, Ipv4Addr};

use super::dialogue::Line;
use super::keys::Key;
use super::text::plain;
use crate::net::config::{Interface, Match, Mode, Network, Role};
use crate::net::mac::Mac;
use crate::net::prefix::Prefix;
use crate::net::status::NetworkStatus;

/// Most ports to choose from.
const MOST_PORTS: usize = 32;

/// A port that can be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its permanent address.
    pub mac: Mac,
    /// What a person sees of it.
    pub text: String,
}

/// A field of the form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item {
    /// Which port.
    Port,
    /// Where its address is from.
    Mode,
    /// Its address.
    Address,
    /// The way out.
    Gateway,
    /// Who knows names.
    Dns,
    /// The VLAN.
    Vlan,
    /// What becomes of the other interfaces.
    Others,
    /// The end of the form.
    Apply,
}

impl Item {
    /// What belongs into it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Port => "Port",
            Self::Mode => "Address by",
            Self::Address => "Address/len",
            Self::Gateway => "Gateway",
            Self::Dns => "DNS servers",
            Self::Vlan => "VLAN",
            Self::Others => "Other ports",
            Self::Apply => "Apply",
        }
    }
}

/// The form as it is filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkForm {
    /// The configuration in force.
    before: Network,
    ports: Vec<Port>,
    /// Which of `ports`; `None` is any.
    port: Option<usize>,
    mode: Mode,
    address: Line,
    gateway: Line,
    dns: Line,
    vlan: Line,
    keep_others: bool,
    focus: usize,
    /// What was wrong when it was last applied.
    pub faults: Vec<String>,
}

impl NetworkForm {
    /// A form that holds the uplink of the configuration in force.
    pub fn of(status: &NetworkStatus) -> Self {
        let mut ports: Vec<Port> = Vec::new();
        for link in &status.links {
            // A VLAN has the address of its port, which stands before it.
            if link.mac.is_station() && ports.len() < MOST_PORTS && !ports.iter().any(|port| port.mac == link.mac) {
                let carrier = if link.carrier { "" } else { " (no carrier)" };
                ports.push(Port { mac: link.mac, text: plain(&format!("{} {}{carrier}", link.name, link.mac)) });
            }
        }
        let before = status.network.clone();
        let uplink = |interface: &&Interface| interface.role == Role::Uplink && interface.bond.is_none();
        let uplink = before.interfaces.iter().find(uplink).cloned().unwrap_or_default();
        let port = match uplink.mac {
            Match::Mac(mac) => ports.iter().position(|port| port.mac == mac),
            Match::Any => None,
        };
        let line = |text: Option<String>| Line::of(&text.unwrap_or_default());
        let dns: Vec<_> = uplink.dns.iter().map(ToString::to_string).collect();
        Self {
            ports,
            port,
            mode: uplink.mode,
            address: line(uplink.address.map(|address| address.to_string())),
            gateway: line(uplink.gateway.map(|gateway| gateway.to_string())),
            dns: Line::of(&dns.join(" ")),
            vlan: line(uplink.vlan.map(|vlan| vlan.to_string())),
            keep_others: true,
            focus: 0,
            faults: Vec::new(),
            before,
        }
    }

    /// The fields that are there now, and whether each has the focus.
    pub fn items(&self) -> impl Iterator<Item = (Item, bool)> {
        let items = self.list();
        let focus = self.focus.min(items.len() - 1);
        items.iter().enumerate().map(move |(index, item)| (*item, index == focus))
    }

    /// With DHCP there is nothing to say of address and gateway.
    const fn list(&self) -> &'static [Item] {
        use Item::{Address, Apply, Dns, Gateway, Others, Port, Vlan};
        match self.mode {
            Mode::Dhcp => &[Port, Item::Mode, Dns, Vlan, Others, Apply],
            Mode::Static => &[Port, Item::Mode, Address, Gateway, Dns, Vlan, Others, Apply],
        }
    }

    /// What is in a field.
    pub fn value(&self, item: Item) -> String {
        let empty = |line: &Line, hint: &str| match line.text() {
            "" => hint.to_owned(),
            text => text.to_owned(),
        };
        match item {
            Item::Port => {
                let port = self.port.and_then(|port| self.ports.get(port));
                port.map_or_else(|| "any".to_owned(), |port| port.text.clone())
            }
            Item::Mode => match self.mode {
                Mode::Dhcp => "DHCP".to_owned(),
                Mode::Static => "hand".to_owned(),
            },
            Item::Address => self.address.text().to_owned(),
            Item::Gateway => self.gateway.text().to_owned(),
            Item::Dns => self.dns.text().to_owned(),
            Item::Vlan => empty(&self.vlan, ""),
            Item::Others if self.keep_others => "stay as they are".to_owned(),
            Item::Others => "are forgotten".to_owned(),
            Item::Apply => "press Enter".to_owned(),
        }
    }

    /// Takes a key; returns the configuration when the form was applied and has no faults.
    pub fn on(&mut self, key: Key) -> Option<Network> {
        let items = self.list();
        self.focus = self.focus.min(items.len() - 1);
        let item = items[self.focus];
        match (key, item) {
            (Key::Enter, Item::Apply) => match self.network() {
                Ok(network) => return Some(network),
                Err(faults) => self.faults = faults,
            },
            (Key::Enter | Key::Next, _) => self.focus = (self.focus + 1) % items.len(),
            (Key::Previous, _) => self.focus = (self.focus + items.len() - 1) % items.len(),
            (Key::Right | Key::Left | Key::Char(_), Item::Port) => self.turn_port(key != Key::Left),
            (Key::Right | Key::Left | Key::Char(_), Item::Mode) => {
                self.mode = match self.mode {
                    Mode::Dhcp => Mode::Static,
                    Mode::Static => Mode::Dhcp,
                }
            }
            (Key::Right | Key::Left | Key::Char(_), Item::Others) => self.keep_others = !self.keep_others,
            (key, Item::Address) => self.address.edit(key),
            (key, Item::Gateway) => self.gateway.edit(key),
            (key, Item::Dns) => self.dns.edit(key),
            (key, Item::Vlan) => self.vlan.edit(key),
            (_, Item::Port | Item::Mode | Item::Others | Item::Apply) => {}
        }
        None
    }

    /// Any, then one port after the other.
    fn turn_port(&mut self, forward: bool) {
        let choices = self.ports.len() + 1;
        let now = self.port.map_or(0, |port| port + 1);
        let next = if forward { now + 1 } else { now + choices - 1 } % choices;
        self.port = next.checked_sub(1);
    }

    /// What the form says, or every fault of it.
    fn network(&self) -> Result<Network, Vec<String>> {
        let mut faults = Vec::new();
        let is_static = self.mode == Mode::Static;
        let address = read::<Prefix>(&self.address, is_static, "192.0.2.10/24", Item::Address, &mut faults);
        let gateway = read::<Ipv4Addr>(&self.gateway, is_static, "192.0.2.1", Item::Gateway, &mut faults);
        let vlan = read::<u16>(&self.vlan, true, "20", Item::Vlan, &mut faults);
        let mut dns = Vec::new();
        for server in self.dns.text().split([' ', ',']).filter(|server| !server.is_empty()) {
            dns.extend(read::<IpAddr>(&Line::of(server), true, "192.0.2.53", Item::Dns, &mut faults));
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let mac = self.port.and_then(|port| self.ports.get(port)).map_or(Match::Any, |port| Match::Mac(port.mac));
        let mut uplink = Interface { mac, vlan, mode: self.mode, address, gateway, dns, ..Interface::default() };
        // What the form does not show is no reason to lose it.
        uplink.mtu = self.before.interfaces.iter().find(|one| takes_place(one, &uplink)).and_then(|one| one.mtu);
        let others = self.before.interfaces.iter().filter(|one| self.keep_others && !takes_place(one, &uplink));
        let others: Vec<_> = others.filter(|one| one.role != Role::Uplink).cloned().collect();
        let interfaces = std::iter::once(uplink).chain(others).collect();
        let network = Network { interfaces, ntp: self.before.ntp.clone() };
        let faults: Vec<_> = network.faults().iter().map(ToString::to_string).collect();
        if faults.is_empty() { Ok(network) } else { Err(faults) }
    }
}

/// Whether `new` uses what `old` uses.
fn takes_place(old: &Interface, new: &Interface) -> bool {
    old.bond.is_none() && old.mac == new.mac && old.vlan == new.vlan
}

/// What a field says; nothing where it is empty or does not count.
fn read<T: std::str::FromStr>(
    line: &Line,
    counts: bool,
    example: &str,
    item: Item,
    faults: &mut Vec<String>,
) -> Option<T> {
    let text = line.text().trim();
    if !counts || text.is_empty() {
        return None;
    }
    let value = text.parse().ok();
    if value.is_none() {
        faults.push(format!("{}: {text:?} is not meant like that; write it as {example}", item.as_str()));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::dialogue::{Request, State};
    use crate::console::golden::{typed, well};
    use crate::console::view::View;

    /// The request that `octets` in the form lead to, and its faults.
    fn fill(view: &View, octets: &[u8]) -> (Option<Network>, Vec<String>) {
        let (state, requests) = typed(State::Overview, &[b"n", octets].concat(), view);
        let faults = match state {
            State::Network(form) => form.faults.clone(),
            _ => Vec::new(),
        };
        match requests.into_iter().next() {
            Some(Request::Try(network)) => (Some(network), faults),
            Some(other) => panic!("{other:?}"),
            None => (None, faults),
        }
    }

    fn with(network: Network) -> View {
        let mut view = well();
        view.network.as_mut().unwrap().network = network;
        view
    }

    #[test]
    fn a_static_uplink_is_typed_in() {
        // To the first port, by hand, address, gateway, two servers, no VLAN, others stay.
        let (network, faults) = fill(&well(), b" \r \r192.0.2.10/24\r192.0.2.1\r192.0.2.53, 2001:db8::53\r\r\r\r");
        let expected = Interface {
            mac: Match::Mac(Mac([0x52, 0x54, 0, 0, 0, 1])),
            mode: Mode::Static,
            address: Some("192.0.2.10/24".parse().unwrap()),
            gateway: Some(Ipv4Addr::new(192, 0, 2, 1)),
            dns: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()],
            ..Interface::default()
        };
        assert_eq!((network.unwrap().interfaces, faults), (vec![expected], vec![]));
    }

    #[test]
    fn every_fault_is_named_and_nothing_is_asked_for() {
        let (network, faults) = fill(&well(), b"\r \rx\r300.1.1.1\r1\r-1\r\r\r");
        assert_eq!((network, faults.len()), (None, 4), "{faults:#?}");
        // "any" has no address by hand.
        let (network, faults) = fill(&well(), b"\r \r192.0.2.10/24\r\r\r\r\r\r");
        assert!(network.is_none() && faults[0].contains("needs the MAC address"), "{faults:#?}");
    }

    #[test]
    fn a_form_that_is_applied_as_it_is_changes_nothing() {
        let uplink = Interface {
            mac: Match::Mac(Mac([0x52, 0x54, 0, 0, 0, 2])),
            mode: Mode::Static,
            address: Some("10.0.0.2/24".parse().unwrap()),
            gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
            dns: vec![IpAddr::from([10, 0, 0, 53])],
            vlan: Some(20),
            mtu: Some(1400),
            ..Interface::default()
        };
        let bmc = Interface { role: Role::Bmc, mac: Match::Mac(Mac([0x52, 0x54, 0, 0, 0, 1])), ..Interface::default() };
        let before = Network { interfaces: vec![uplink.clone(), bmc], ntp: vec!["ntp.example".into()] };
        assert_eq!(fill(&with(before.clone()), b"\r\r\r\r\r\r\r\r").0, Some(before.clone()));
        // And without the other port.
        let alone = Network { interfaces: vec![uplink], ntp: before.ntp.clone() };
        assert_eq!(fill(&with(before), b"\r\r\r\r\r\r \r\r").0, Some(alone));
    }

    #[test]
    fn choices_turn_in_both_directions() {
        let mut form = NetworkForm::of(well().network.as_ref().unwrap());
        let mut seen = Vec::new();
        for key in [Key::Right, Key::Right, Key::Right, Key::Left] {
            form.on(key);
            seen.push(form.value(Item::Port));
        }
        assert_eq!(
            seen,
            [
                "eno1 52:54:00:00:00:01",
                "eno2 52:54:00:00:00:02 (no carrier)",
                "any",
                "eno2 52:54:00:00:00:02 (no carrier)"
            ]
        );
        form.on(Key::Previous);
        assert!(form.items().last().is_some_and(|(item, focused)| focused && item == Item::Apply));
    }
}
