//! What the kernel's links must become for a configuration: which to make, join, switch on, and which carry addresses.

use std::collections::BTreeSet;

use super::config::{BondMode, Interface, Match, Network};
use super::mac::Mac;

/// What a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// An Ethernet port: of hardware, of a virtual machine, or of a container's pair.
    Port,
    /// Loopback.
    Loopback,
    /// A bond.
    Bond(BondMode),
    /// A VLAN on another link.
    Vlan {
        /// The index of the link below.
        parent: u32,
        /// Its number.
        id: u16,
    },
    /// Anything else; it is left alone.
    Other,
}

/// One link as the kernel shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The hardware's own address; the current one where there is none.
    pub permanent: Mac,
    /// The address it uses now.
    pub mac: Mac,
    /// What it is.
    pub shape: Shape,
    /// Whether this service made it.
    pub ours: bool,
    /// Whether it is switched on.
    pub up: bool,
    /// Whether it is on and has a link partner.
    pub carrier: bool,
    /// In octets.
    pub mtu: u32,
    /// The bond it is a member of.
    pub controller: Option<u32>,
    /// The hardware's driver.
    pub driver: Option<String>,
}

/// One step towards the configuration. Indices are the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkStep {
    /// Switch on.
    Up(u32),
    /// Switch off.
    Down(u32),
    /// Set the MTU.
    Mtu(u32, u32),
    /// Make a bond.
    AddBond(String, BondMode),
    /// Make a port a member of a bond. The port is off.
    Join(u32, u32),
    /// Take a port out of its bond.
    Leave(u32),
    /// Make a VLAN on a link.
    AddVlan {
        /// The new link's name.
        name: String,
        /// The link below.
        parent: u32,
        /// Its number.
        id: u16,
    },
    /// Take away a link that we made.
    Delete(u32),
}

/// A link that carries addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// The link's number.
    pub index: u32,
    /// The entry of the configuration, by number.
    pub entry: usize,
    /// Its configuration.
    pub interface: Interface,
}

/// What is to be done now. After the steps the kernel is looked at again, until there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<LinkStep>,
    /// The links that carry addresses, as far as they exist.
    pub ports: Vec<PortPlan>,
    /// Ports that the configuration names and the box does not have: the entry and the address.
    pub missing: Vec<(usize, Mac)>,
}

/// What to do about `links` for `network`, which has no faults.
pub fn plan(network: &Network, links: &[Link]) -> Plan {
    let interfaces = network.effective();
    let mut planner = Planner { links, plan: Plan::default(), wanted: BTreeSet::new(), used: BTreeSet::new() };
    if let Some(loopback) = links.iter().find(|link| link.shape == Shape::Loopback && !link.up) {
        planner.plan.steps.push(LinkStep::Up(loopback.index));
    }
    let named: BTreeSet<Mac> = interfaces
        .iter()
        .flat_map(|interface| match (&interface.bond, interface.mac) {
            (Some(bond), _) => bond.members.clone(),
            (None, Match::Mac(mac)) => vec![mac],
            (None, Match::Any) => Vec::new(),
        })
        .collect();
    let mut bonds = 0;
    for (entry, interface) in interfaces.iter().enumerate() {
        let bases: Vec<&Link> = match (&interface.bond, interface.mac) {
            (Some(bond), _) => {
                // Not `bond0`: the kernel's module makes one of that name by itself.
                let name = format!("lag{bonds}");
                bonds += 1;
                planner.bond(entry, &name, bond.mode, &bond.members).into_iter().collect()
            }
            (None, Match::Mac(mac)) => {
                let found = planner.port(mac);
                if found.is_none() {
                    planner.plan.missing.push((entry, mac));
                }
                found.into_iter().collect()
            }
            (None, Match::Any) => {
                links.iter().filter(|link| link.shape == Shape::Port && !named.contains(&link.permanent)).collect()
            }
        };
        for base in bases {
            planner.carry(entry, interface, base);
        }
    }
    planner.rest();
    planner.sweep();
    planner.plan
}

struct Planner<'a> {
    links: &'a [Link],
    plan: Plan,
    /// Links of ours that the configuration wants.
    wanted: BTreeSet<u32>,
    /// Ports that the configuration names, as members or by themselves.
    used: BTreeSet<u32>,
}

impl<'a> Planner<'a> {
    fn port(&self, mac: Mac) -> Option<&'a Link> {
        self.links.iter().find(|link| link.shape == Shape::Port && link.permanent == mac)
    }

    /// The bond of that name with its members; `None` while it is being made.
    fn bond(&mut self, entry: usize, name: &str, mode: BondMode, members: &[Mac]) -> Option<&'a Link> {
        let bond = match self.links.iter().find(|link| link.name == name) {
            Some(link) if link.shape == Shape::Bond(mode) && link.ours => link,
            // Of another mode, which can't be changed while it has members. It is swept away and made again.
            Some(link) if link.ours => return None,
            _ => {
                self.plan.steps.push(LinkStep::AddBond(name.to_owned(), mode));
                return None;
            }
        };
        self.wanted.insert(bond.index);
        for mac in members {
            let Some(port) = self.port(*mac) else {
                self.plan.missing.push((entry, *mac));
                continue;
            };
            self.used.insert(port.index);
            if port.controller == Some(bond.index) {
                continue;
            }
            if port.up {
                self.plan.steps.push(LinkStep::Down(port.index));
            }
            self.plan.steps.push(LinkStep::Join(port.index, bond.index));
        }
        let leaves = |link: &&Link| link.controller == Some(bond.index) && !members.contains(&link.permanent);
        let leaving = self.links.iter().filter(leaves).map(|link| LinkStep::Leave(link.index));
        self.plan.steps.extend(leaving);
        Some(bond)
    }

    /// Lets `base`, or the VLAN on it, carry the addresses of `interface`.
    fn carry(&mut self, entry: usize, interface: &Interface, base: &'a Link) {
        self.used.insert(base.index);
        if base.controller.is_some() && base.shape == Shape::Port {
            self.plan.steps.push(LinkStep::Leave(base.index));
        }
        self.mtu(base, interface.mtu.filter(|mtu| interface.vlan.is_none() || base.mtu < *mtu));
        self.up(base);
        let Some(id) = interface.vlan else {
            self.plan.ports.push(PortPlan { index: base.index, entry, interface: interface.clone() });
            return;
        };
        let shape = Shape::Vlan { parent: base.index, id };
        match self.links.iter().find(|link| link.shape == shape && link.ours) {
            Some(vlan) => {
                self.wanted.insert(vlan.index);
                self.mtu(vlan, interface.mtu);
                self.up(vlan);
                self.plan.ports.push(PortPlan { index: vlan.index, entry, interface: interface.clone() });
            }
            None => self.plan.steps.push(LinkStep::AddVlan { name: vlan_name(base, id), parent: base.index, id }),
        }
    }

    fn up(&mut self, link: &Link) {
        let step = LinkStep::Up(link.index);
        if !link.up && !self.plan.steps.contains(&step) {
            self.plan.steps.push(step);
        }
    }

    fn mtu(&mut self, link: &Link, mtu: Option<u32>) {
        if let Some(mtu) = mtu.filter(|mtu| *mtu != link.mtu) {
            self.plan.steps.push(LinkStep::Mtu(link.index, mtu));
        }
    }

    /// Switches off the ports that nobody names: the box has nothing to say on their networks.
    fn rest(&mut self) {
        let idle = |link: &&Link| link.shape == Shape::Port && link.up && link.controller.is_none();
        let idle = self.links.iter().filter(idle).filter(|link| !self.used.contains(&link.index));
        self.plan.steps.extend(idle.map(|link| LinkStep::Down(link.index)));
    }

    /// Takes away what we made for an earlier configuration: VLANs first, since they stand on bonds.
    fn sweep(&mut self) {
        let stale = |link: &&Link| link.ours && !self.wanted.contains(&link.index);
        let mut stale: Vec<&Link> = self.links.iter().filter(stale).collect();
        stale.sort_by_key(|link| !matches!(link.shape, Shape::Vlan { .. }));
        let gone: Vec<u32> = stale.iter().map(|link| link.index).collect();
        // Before the new ones are made: a name can be used once.
        self.plan.steps.splice(0..0, gone.iter().map(|index| LinkStep::Delete(*index)));
        // A name is free again only when the kernel is looked at again.
        let held: Vec<&str> = stale.iter().map(|link| link.name.as_str()).collect();
        self.plan.steps.retain(|step| match step {
            LinkStep::AddBond(name, _) | LinkStep::AddVlan { name, .. } => !held.contains(&name.as_str()),
            _ => true,
        });
    }
}

/// `eth0.20`; `vlan20` where that is longer than the kernel's 15 octets.
fn vlan_name(base: &Link, id: u16) -> String {
    let name = format!("{}.{id}", base.name);
    if name.len() <= 15 { name } else { format!("vlan{id}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn mac(last: u8) -> Mac {
        Mac([0x52, 0x54, 0, 0, 0, last])
    }

    fn link(index: u32, name: &str, shape: Shape) -> Link {
        Link {
            index,
            name: name.to_owned(),
            permanent: mac(index as u8),
            mac: mac(index as u8),
            shape,
            ours: false,
            up: false,
            carrier: false,
            mtu: 1500,
            controller: None,
            driver: None,
        }
    }

    fn box_with(ports: u32) -> Vec<Link> {
        let mut links = vec![link(1, "lo", Shape::Loopback)];
        links.extend((2..2 + ports).map(|index| link(index, &format!("eth{}", index - 2), Shape::Port)));
        links
    }

    fn network(interfaces: serde_json::Value) -> Network {
        let network: Network = serde_json::from_value(json!({ "interfaces": interfaces })).unwrap();
        assert_eq!(network.faults(), []);
        network
    }

    /// A kernel as far as links go: performs a step, or says why a real one would not.
    fn perform(links: &mut Vec<Link>, step: &LinkStep) -> Result<(), String> {
        let next = links.iter().map(|link| link.index).max().unwrap_or(0) + 1;
        let at =
            |links: &[Link], index: u32| links.iter().position(|link| link.index == index).ok_or(format!("no {index}"));
        match step {
            LinkStep::Up(index) => {
                let at = at(links, *index)?;
                links[at].up = true;
            }
            LinkStep::Down(index) => {
                let at = at(links, *index)?;
                links[at].up = false;
            }
            LinkStep::Mtu(index, mtu) => {
                let place = at(links, *index)?;
                if let Shape::Vlan { parent, .. } = links[place].shape
                    && links[at(links, parent)?].mtu < *mtu
                {
                    return Err("a VLAN's MTU is at most its parent's".to_owned());
                }
                links[place].mtu = *mtu;
            }
            LinkStep::AddBond(name, _) | LinkStep::AddVlan { name, .. }
                if links.iter().any(|link| link.name == *name) =>
            {
                return Err(format!("{name} exists"));
            }
            LinkStep::AddBond(name, mode) => links.push(Link { ours: true, ..link(next, name, Shape::Bond(*mode)) }),
            LinkStep::AddVlan { name, parent, id } => {
                let below = at(links, *parent)?;
                let vlan = Link {
                    ours: true,
                    mtu: links[below].mtu,
                    ..link(next, name, Shape::Vlan { parent: *parent, id: *id })
                };
                links.push(vlan);
            }
            LinkStep::Join(port, bond) => {
                let place = at(links, *port)?;
                if links[place].up {
                    return Err("a member joins while it is off".to_owned());
                }
                links[place].controller = Some(*bond);
                links[place].up = true;
            }
            LinkStep::Leave(port) => {
                let place = at(links, *port)?;
                (links[place].controller, links[place].up) = (None, false);
            }
            LinkStep::Delete(index) => {
                if links.iter().any(|link| matches!(link.shape, Shape::Vlan { parent, .. } if parent == *index)) {
                    return Err("it carries a VLAN".to_owned());
                }
                let place = at(links, *index)?;
                links.remove(place);
                for link in links.iter_mut().filter(|link| link.controller == Some(*index)) {
                    (link.controller, link.up) = (None, false);
                }
            }
        }
        Ok(())
    }

    /// Plans and performs until nothing is left to do; the number of rounds is bounded.
    fn settle(network: &Network, links: &mut Vec<Link>) -> Plan {
        for _ in 0..8 {
            let plan = plan(network, links);
            if plan.steps.is_empty() {
                return plan;
            }
            for step in &plan.steps {
                perform(links, step).unwrap_or_else(|why| panic!("{step:?}: {why}\n{links:#?}"));
            }
        }
        panic!("it does not settle: {:?}", plan(network, links).steps);
    }

    #[test]
    fn without_configuration_every_port_is_on_and_carries_addresses() {
        let mut links = box_with(2);
        links.push(link(9, "br0", Shape::Other));
        let plan = settle(&Network::default(), &mut links);
        assert_eq!(plan.ports.iter().map(|port| port.index).collect::<Vec<_>>(), [2, 3]);
        assert!(links[..3].iter().all(|link| link.up) && !links[3].up, "what is not ours is left alone");
    }

    #[test]
    fn a_bond_with_a_vlan_is_made_and_taken_away_again() {
        let site = network(json!([
            {"role": "uplink", "bond": {"members": ["52:54:00:00:00:02", "52:54:00:00:00:03"]}, "mtu": 9000},
            {"role": "bmc", "mac": "52:54:00:00:00:04", "vlan": 20, "mtu": 9000},
            {"role": "provisioning", "mac": "52:54:00:00:00:04"},
        ]));
        let mut links = box_with(3);
        settle(&Network::default(), &mut links);
        let plan = settle(&site, &mut links);
        let names: Vec<_> = plan
            .ports
            .iter()
            .map(|port| links.iter().find(|link| link.index == port.index).unwrap().name.as_str())
            .collect();
        assert_eq!(names, ["lag0", "eth2.20", "eth2"]);
        assert!(links[1..3].iter().all(|link| link.controller.is_some()));
        let lacp = network(json!([{"bond": {"mode": "802.3ad", "members": ["52:54:00:00:00:02"]}}]));
        settle(&lacp, &mut links);
        assert_eq!(
            links.iter().filter(|link| link.ours).map(|link| &link.shape).collect::<Vec<_>>(),
            [&Shape::Bond(BondMode::Lacp)]
        );
        assert_eq!(links[2].controller, None);
        settle(&Network::default(), &mut links);
        assert!(links.iter().all(|link| !link.ours && link.controller.is_none() && link.up));
    }

    #[test]
    fn a_port_that_nobody_names_is_off() {
        let mut links = box_with(3);
        settle(&Network::default(), &mut links);
        settle(&network(json!([{"mac": "52:54:00:00:00:03"}])), &mut links);
        assert_eq!(links[1..].iter().map(|link| link.up).collect::<Vec<_>>(), [false, true, false]);
        settle(&Network::default(), &mut links);
        assert!(links.iter().all(|link| link.up));
    }

    #[test]
    fn a_port_that_is_not_there_is_named_and_the_rest_works() {
        let mut links = box_with(1);
        let plan = settle(&network(json!([{"mac": "52:54:00:00:00:77"}, {"mac": "any"}])), &mut links);
        assert_eq!((plan.missing, plan.ports.len()), (vec![(0, mac(0x77))], 1));
    }

    fn interface() -> impl Strategy<Value = Interface> {
        let port = prop_oneof![Just(Match::Any), (2_u8..6).prop_map(|last| Match::Mac(mac(last)))];
        let members = proptest::collection::btree_set(2_u8..6, 1..3);
        let bond = proptest::option::weighted(0.4, (members, any::<bool>()));
        (port, proptest::option::of(1_u16..4), bond, proptest::option::of(1400_u32..9001)).prop_map(
            |(port, vlan, bond, mtu)| {
                let bond = bond.map(|(members, lacp)| super::super::config::Bond {
                    mode: if lacp { BondMode::Lacp } else { BondMode::ActiveBackup },
                    members: members.into_iter().map(mac).collect(),
                });
                Interface {
                    mac: if bond.is_some() { Match::Any } else { port },
                    vlan,
                    bond,
                    mtu,
                    ..Interface::default()
                }
            },
        )
    }

    fn site() -> impl Strategy<Value = Network> {
        let network =
            proptest::collection::vec(interface(), 0..4).prop_map(|interfaces| Network { interfaces, ntp: vec![] });
        network.prop_filter("without faults", |network| {
            // Several MTUs on one port contend, which is a person's mistake and not a step's.
            let mtus: BTreeSet<_> = network.interfaces.iter().filter_map(|interface| interface.mtu).collect();
            network.faults().is_empty() && mtus.len() <= 1
        })
    }

    proptest! {
        #[test]
        fn any_two_configurations_settle_one_after_the_other(first in site(), second in site()) {
            let mut links = box_with(4);
            settle(&first, &mut links);
            let plan = settle(&second, &mut links);
            let carrying: BTreeSet<_> = plan.ports.iter().map(|port| port.index).collect();
            prop_assert_eq!(carrying.len(), plan.ports.len(), "a link carries one interface");
            prop_assert!(links.iter().filter(|link| carrying.contains(&link.index)).all(|link| link.up && link.controller.is_none()));
        }
    }
}
