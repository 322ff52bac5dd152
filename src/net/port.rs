//! [`Port`]: where one link's addresses come from, all sources together, as a value.

use std::net::{IpAddr, Ipv4Addr};

use super::claim::{Claim, Verdict};
use super::config::{Interface, Mode, Role};
use super::dhcp::{Action, Change, Client, Lease, NoLease};
use super::frame::{Arp, encode_dhcp};
use super::jitter::Jitter;
use super::link_local::{self, LinkLocal};
use super::mac::Mac;
use super::prefix::Prefix;
use super::routing::{Route, Routing};
use crate::time::Uptime;
use crate::wire::dhcp::Message;

/// What a port is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The link's present Ethernet address.
    pub own: Mac,
    /// Its configuration.
    pub interface: Interface,
    /// Metric of its routes.
    pub metric: u32,
    /// What DHCP servers are told that we are called.
    pub hostname: String,
    /// The address that DHCP gave before the restart.
    pub former: Option<Ipv4Addr>,
}

/// The metric of an entry's routes: uplinks before provisioning before BMCs, then as written.
pub const fn metric(role: Role, position: usize) -> u32 {
    let base = match role {
        Role::Uplink => 100,
        Role::Provisioning => 200,
        Role::Bmc => 300,
    };
    base + if position < 99 { position as u32 } else { 99 }
}

/// Where an address is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// The configuration.
    Static,
    /// A DHCP server.
    Dhcp,
    /// Nobody: 169.254/16.
    LinkLocal,
}

/// What a port has come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its addresses.
    pub addresses: Vec<(Prefix, Source)>,
    /// Its routes with their metric; none without carrier.
    pub routing: Routing,
    /// DNS servers, preferred first.
    pub dns: Vec<IpAddr>,
    /// The domain that short names are looked up in.
    pub domain: Option<String>,
    /// NTP servers, preferred first.
    pub ntp: Vec<Ipv4Addr>,
    /// The MTU that the DHCP server wants.
    pub mtu: Option<u16>,
    /// What it does or what ails it, in words.
    pub detail: String,
    /// The address that DHCP gave, to be asked for after a restart.
    pub leased: Option<Ipv4Addr>,
    /// Whether the addresses are all there will be for now. Until then those of the run before are left in place.
    pub settled: bool,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this frame.
    Frame(Vec<u8>),
    /// Tell people.
    Note(Note),
}

/// Something that people want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The DHCP lease changed; with what it is now.
    Lease(Change, Option<Box<Lease>>),
    /// An answer that gives nothing usable, and why.
    Unusable(NoLease),
    /// The static address is another station's as well.
    Taken(Mac),
}

/// One link's addresses.
#[derive(Clone, Debug)]
pub struct Port {
    settings: Settings,
    dhcp: Option<Client>,
    /// The static address, while it is announced and defended.
    claim: Option<Claim>,
    link_local: LinkLocal,
    jitter: Jitter,
    carrier: bool,
    /// Who else has the static address.
    taken: Option<Mac>,
}

impl Port {
    /// A port without carrier. `seed` makes its random choices.
    pub fn new(settings: Settings, seed: u64) -> Self {
        let own = settings.own;
        let dhcp =
            (settings.interface.mode == Mode::Dhcp).then(|| Client::new(own, &settings.hostname, settings.former));
        let (claim, link_local) = (None, LinkLocal::new(own));
        Self { settings, dhcp, claim, link_local, jitter: Jitter::new(seed), carrier: false, taken: None }
    }

    /// What it was started with.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// When [`Self::on_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Uptime> {
        let dhcp = self.dhcp.as_ref().and_then(Client::deadline);
        let claim = self.claim.as_ref().and_then(Claim::deadline);
        [dhcp, claim, self.link_local.deadline()].into_iter().flatten().min()
    }

    /// The link came up or went down.
    pub fn on_carrier(&mut self, now: Uptime, up: bool) -> Vec<Output> {
        if up == self.carrier {
            return Vec::new();
        }
        self.carrier = up;
        if up {
            self.link_local.start(now, &mut self.jitter);
            self.claim = self.settings.interface.address.map(|prefix| Claim::assert(now, prefix.address()));
        } else {
            self.link_local.stop();
            self.claim = None;
        }
        let actions = match &mut self.dhcp {
            Some(client) => client.on_carrier(now, up, &mut self.jitter),
            None => Vec::new(),
        };
        self.outputs(actions)
    }

    /// What is due at `now`.
    pub fn on_deadline(&mut self, now: Uptime) -> Vec<Output> {
        let actions = match &mut self.dhcp {
            Some(client) if client.deadline().is_some_and(|at| at <= now) => client.on_deadline(now, &mut self.jitter),
            _ => Vec::new(),
        };
        let mut outputs = self.outputs(actions);
        if let Some(claim) = &mut self.claim {
            let verdict = claim.on_deadline(now, self.settings.own, &mut self.jitter);
            outputs.extend(self.static_verdict(verdict));
        }
        let sent = self.link_local.on_deadline(now, &mut self.jitter);
        outputs.extend(sent.map(|arp| Output::Frame(arp.encode())));
        outputs
    }

    /// An ARP packet came in.
    pub fn on_arp(&mut self, now: Uptime, arp: &Arp) -> Vec<Output> {
        let actions = match &mut self.dhcp {
            Some(client) => client.on_arp(now, arp),
            None => Vec::new(),
        };
        let mut outputs = self.outputs(actions);
        if let Some(claim) = &mut self.claim {
            let verdict = claim.on_arp(now, self.settings.own, arp);
            outputs.extend(self.static_verdict(verdict));
        }
        let sent = self.link_local.on_arp(now, arp, &mut self.jitter);
        outputs.extend(sent.map(|arp| Output::Frame(arp.encode())));
        outputs
    }

    /// A DHCP message came in from `station`.
    pub fn on_dhcp(&mut self, now: Uptime, station: Mac, message: &Message) -> Vec<Output> {
        let Some(client) = &mut self.dhcp else { return Vec::new() };
        match client.on_message(now, station, message, &mut self.jitter) {
            Ok(actions) => self.outputs(actions),
            Err(why) => vec![Output::Note(Note::Unusable(why))],
        }
    }

    /// A static address stays, whoever else has it: a person chose it, and the page says what is wrong.
    fn static_verdict(&mut self, verdict: Verdict) -> Option<Output> {
        match verdict {
            Verdict::Nothing => None,
            Verdict::Send(arp) | Verdict::Ours(arp) => Some(Output::Frame(arp.encode())),
            Verdict::Conflict(other) => {
                let new = self.taken != Some(other);
                self.taken = Some(other);
                new.then_some(Output::Note(Note::Taken(other)))
            }
        }
    }

    fn outputs(&self, actions: Vec<Action>) -> Vec<Output> {
        let own = self.settings.own;
        let output = |action| match action {
            // A message of ours always fits: its options are few and bounded.
            Action::Send(message, to) => {
                message.encode().ok().map(|payload| Output::Frame(encode_dhcp(own, to, &payload)))
            }
            Action::Arp(arp) => Some(Output::Frame(arp.encode())),
            Action::Changed(change) => Some(Output::Note(Note::Lease(change, self.lease().cloned().map(Box::new)))),
        };
        actions.into_iter().filter_map(output).collect()
    }

    fn lease(&self) -> Option<&Lease> {
        self.dhcp.as_ref().and_then(Client::lease)
    }

    /// What the port has come to.
    pub fn facts(&self) -> Facts {
        let interface = &self.settings.interface;
        let mut addresses = Vec::new();
        let mut routes = Vec::new();
        let mut facts = Facts::default();
        if interface.mode == Mode::Static {
            addresses.extend(interface.address.map(|prefix| (prefix, Source::Static)));
            routes.extend(interface.gateway.map(Route::default_via));
        }
        if let Some(lease) = self.lease() {
            addresses.push((lease.address, Source::Dhcp));
            routes.extend(lease.routes.iter().copied());
            facts.dns = lease.dns.iter().copied().map(IpAddr::V4).collect();
            facts.domain = lease.domain.clone();
            facts.ntp = lease.ntp.clone();
            facts.mtu = lease.mtu.filter(|_| interface.mtu.is_none());
            facts.leased = Some(lease.address.address());
        }
        let local = self.link_local.address().and_then(|address| Prefix::new(address, link_local::PREFIX_LEN));
        addresses.extend(local.map(|prefix| (prefix, Source::LinkLocal)));
        if !interface.dns.is_empty() {
            facts.dns = interface.dns.clone();
        }
        // Without carrier another port may know a way.
        let metric = self.settings.metric;
        routes.retain(|_| self.carrier);
        facts.routing = Routing {
            addresses: addresses.iter().map(|(prefix, _)| *prefix).collect(),
            routes: routes.into_iter().map(|route| (route, metric)).collect(),
        };
        facts.settled = !addresses.is_empty();
        facts.detail = self.detail();
        facts.addresses = addresses;
        facts
    }

    fn detail(&self) -> String {
        match (&self.dhcp, self.taken) {
            (_, Some(other)) => format!("the address is in use by {other} as well"),
            _ if !self.carrier => "no carrier".to_owned(),
            (Some(client), _) => match client.lease() {
                Some(lease) => format!("DHCP: {}, server {}", client.doing(), lease.server),
                None => format!("DHCP: {}", client.doing()),
            },
            (None, None) => "static".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::config::Match;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    fn port(interface: Interface) -> Port {
        let hostname = "pilotlight-000001".to_owned();
        Port::new(Settings { own: OWN, interface, metric: 100, hostname, former: None }, 7)
    }

    fn fixed() -> Interface {
        Interface {
            mac: Match::Mac(OWN),
            mode: Mode::Static,
            address: Some("192.0.2.10/24".parse().unwrap()),
            gateway: Some(Ipv4Addr::new(192, 0, 2, 1)),
            ..Interface::default()
        }
    }

    /// Lets the port run by itself for so many deadlines.
    fn run(port: &mut Port, deadlines: usize) {
        for _ in 0..deadlines {
            let Some(now) = port.deadline() else { return };
            port.on_deadline(now);
        }
    }

    #[test]
    fn without_a_server_there_is_a_link_local_address() {
        let mut port = port(Interface::default());
        let sent = port.on_carrier(Uptime::from_secs(1), true);
        assert!(matches!(&sent[..], [Output::Frame(_)]), "the discover goes out at once");
        run(&mut port, 10);
        let facts = port.facts();
        assert!(matches!(&facts.addresses[..], [(prefix, Source::LinkLocal)] if prefix.len() == 16));
        assert_eq!((facts.routing.routes.len(), facts.detail.as_str()), (0, "DHCP: looking for a DHCP server"));
        port.on_carrier(Uptime::from_secs(60), false);
        assert_eq!((port.facts().addresses, port.deadline()), (vec![], None));
    }

    #[test]
    fn a_static_address_is_there_at_once_and_stays_when_it_is_taken() {
        let mut port = port(fixed());
        assert_eq!(port.facts().routing.routes, [], "no way without carrier");
        port.on_carrier(Uptime::from_secs(1), true);
        let gateway = Route::default_via(Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(port.facts().routing.routes, [(gateway, 100)]);
        let theirs = Arp::announcement(OTHER, Ipv4Addr::new(192, 0, 2, 10));
        assert!(matches!(port.on_arp(Uptime::from_secs(20), &theirs)[..], [Output::Frame(_)]), "defended");
        let note = port.on_arp(Uptime::from_secs(21), &theirs);
        assert_eq!(note, [Output::Note(Note::Taken(OTHER))]);
        assert_eq!(port.on_arp(Uptime::from_secs(22), &theirs), [], "told once");
        let facts = port.facts();
        assert_eq!(facts.addresses[0], ("192.0.2.10/24".parse().unwrap(), Source::Static));
        assert!(facts.detail.contains("in use by 02:00:00:00:00:02"), "{}", facts.detail);
    }
}
