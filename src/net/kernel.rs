//! The kernel's links, addresses and routes over rtnetlink.
//!
//! An edge, because it asks and changes the kernel. It decides nothing: [`links::plan`](super::links::plan) and
//! [`routing::steps`](super::routing::steps) say what is to be done.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use nix::libc;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    BondMode as KernelBondMode, InfoBond, InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo,
    LinkLayerType, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::{Handle, LinkBond, LinkUnspec, LinkVlan, MulticastGroup, RouteMessageBuilder};
use tokio::sync::Notify;

use super::config::BondMode;
use super::links::{Link, LinkStep, Shape};
use super::mac::Mac;
use super::prefix::Prefix;
use super::routing::{Route, Routing, Step};

/// Marks the links that this service made; the number of its user.
const GROUP: u32 = 901;
/// Marks the routes that this service made; a number that rt_protos of iproute2 leaves free.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(91);
/// How often a bond looks at its members' carriers, in milliseconds.
const MIIMON: u32 = 100;

/// Why the kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no rtnetlink socket.
    #[error("rtnetlink can't be opened")]
    Open(#[source] std::io::Error),
    /// The kernel refused.
    #[error("{what}")]
    Refused {
        /// What was asked.
        what: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// A connection to the kernel's routing tables.
#[derive(Clone, Debug)]
pub struct Kernel {
    handle: Handle,
    changed: Arc<Notify>,
}

impl Kernel {
    /// Connects, and listens for changes of links.
    ///
    /// # Errors
    ///
    /// [`Error::Open`].
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Link]).map_err(Error::Open)?;
        tokio::spawn(connection);
        let changed = Arc::new(Notify::new());
        let told = Arc::clone(&changed);
        // What changed is looked up when it is wanted; any number of messages is one change.
        tokio::spawn(async move {
            while messages.next().await.is_some() {
                told.notify_one();
            }
        });
        Ok(Self { handle, changed })
    }

    /// Waits until a link has changed since the last call.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Every link.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`].
    pub async fn links(&self) -> Result<Vec<Link>, Error> {
        let messages: Result<Vec<_>, _> = self.handle.link().get().execute().try_collect().await;
        Ok(messages.map_err(refused("list links"))?.iter().filter_map(link).collect())
    }

    /// The IPv4 addresses of a link, and the routes that we made over it.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`].
    pub async fn routing(&self, index: u32) -> Result<Routing, Error> {
        let addresses: Result<Vec<_>, _> =
            self.handle.address().get().set_link_index_filter(index).execute().try_collect().await;
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let routes: Result<Vec<_>, _> = self.handle.route().get(query).execute().try_collect().await;
        Ok(Routing {
            addresses: addresses.map_err(refused("list addresses"))?.iter().filter_map(address).collect(),
            routes: routes
                .map_err(refused("list routes"))?
                .iter()
                .filter_map(|message| route(message, index))
                .collect(),
        })
    }

    /// Carries out a step on links.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`].
    pub async fn link_step(&self, step: &LinkStep) -> Result<(), Error> {
        let links = self.handle.link();
        let unspec = |index: u32| LinkUnspec::new_with_index(index);
        let done = match step {
            LinkStep::Up(index) => links.change(unspec(*index).up().build()).execute().await,
            LinkStep::Down(index) => links.change(unspec(*index).down().build()).execute().await,
            LinkStep::Mtu(index, mtu) => links.change(unspec(*index).mtu(*mtu).build()).execute().await,
            LinkStep::AddBond(name, mode) => {
                let mode = match mode {
                    BondMode::ActiveBackup => KernelBondMode::ActiveBackup,
                    BondMode::Lacp => KernelBondMode::Ieee8023Ad,
                };
                let bond = LinkBond::new(name).mode(mode).miimon(MIIMON).link_group(GROUP).build();
                links.add(bond).execute().await
            }
            LinkStep::Join(port, bond) => links.change(unspec(*port).controller(*bond).build()).execute().await,
            LinkStep::Leave(port) => links.change(unspec(*port).nocontroller().build()).execute().await,
            LinkStep::AddVlan { name, parent, id } => {
                links.add(LinkVlan::new(name, *parent, *id).link_group(GROUP).build()).execute().await
            }
            LinkStep::Delete(index) => links.del(*index).execute().await,
        };
        done.map_err(refused(format!("{step:?}")))
    }

    /// Carries out a step on the addresses and routes of a link. What is done already is no error.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`].
    pub async fn step(&self, index: u32, step: Step) -> Result<(), Error> {
        let (done, harmless) = match step {
            Step::AddAddress(prefix) => {
                let mut request = self.handle.address().add(index, IpAddr::V4(prefix.address()), prefix.len());
                if prefix.address().is_link_local() {
                    // Else the kernel would prefer it as source towards everywhere.
                    request.message_mut().header.scope = AddressScope::Link;
                }
                (request.execute().await, libc::EEXIST)
            }
            Step::DeleteAddress(prefix) => {
                let mut message = AddressMessage::default();
                message.header.family = rtnetlink::packet_route::AddressFamily::Inet;
                message.header.index = index;
                message.header.prefix_len = prefix.len();
                message.attributes.push(AddressAttribute::Local(IpAddr::V4(prefix.address())));
                (self.handle.address().del(message).execute().await, libc::EADDRNOTAVAIL)
            }
            Step::AddRoute(route, metric) => {
                (self.handle.route().add(route_message(index, route, metric)).execute().await, libc::EEXIST)
            }
            Step::DeleteRoute(route, metric) => {
                (self.handle.route().del(route_message(index, route, metric)).execute().await, libc::ESRCH)
            }
        };
        match done.map_err(refused(format!("{step:?}"))) {
            Err(Error::Refused { source, .. }) if source.raw_os_error() == Some(harmless) => Ok(()),
            other => other,
        }
    }
}

fn refused(what: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> Error {
    let what = what.into();
    move |error| {
        let source = match error {
            rtnetlink::Error::NetlinkError(answer) => answer.to_io(),
            other => std::io::Error::other(other),
        };
        Error::Refused { what, source }
    }
}

fn link(message: &LinkMessage) -> Option<Link> {
    let (mut name, mut mac, mut permanent, mut mtu, mut controller) = (None, None, None, 0, None);
    let (mut kind, mut data, mut parent, mut group) = (None, None, None, 0);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Address(octets) => mac = Mac::from_octets(octets),
            LinkAttribute::PermAddress(octets) => permanent = Mac::from_octets(octets),
            LinkAttribute::Mtu(octets) => mtu = *octets,
            LinkAttribute::Controller(index) => controller = Some(*index).filter(|index| *index != 0),
            LinkAttribute::Link(index) => parent = Some(*index),
            LinkAttribute::Group(number) => group = *number,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(found) => kind = Some(found.clone()),
                        LinkInfo::Data(found) => data = Some(found.clone()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let name = name?;
    let flags = message.header.flags;
    let loopback = message.header.link_layer_type == LinkLayerType::Loopback;
    let ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let shape = match (&kind, &data) {
        _ if loopback => Shape::Loopback,
        (None | Some(InfoKind::Veth), _) if ethernet => Shape::Port,
        (Some(InfoKind::Bond), Some(InfoData::Bond(infos))) => Shape::Bond(bond_mode(infos)),
        (Some(InfoKind::Vlan), Some(InfoData::Vlan(infos))) => vlan(infos, parent).unwrap_or(Shape::Other),
        _ => Shape::Other,
    };
    let mac = mac.unwrap_or(Mac([0; 6]));
    Some(Link {
        index: message.header.index,
        permanent: permanent.unwrap_or(mac),
        mac,
        ours: group == GROUP && matches!(shape, Shape::Bond(_) | Shape::Vlan { .. }),
        shape,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        mtu,
        controller,
        driver: driver(&name),
        name,
    })
}

fn bond_mode(infos: &[InfoBond]) -> BondMode {
    let lacp = infos.iter().any(|info| matches!(info, InfoBond::Mode(KernelBondMode::Ieee8023Ad)));
    if lacp { BondMode::Lacp } else { BondMode::ActiveBackup }
}

fn vlan(infos: &[InfoVlan], parent: Option<u32>) -> Option<Shape> {
    let id = infos.iter().find_map(|info| if let InfoVlan::Id(id) = info { Some(*id) } else { None });
    Some(Shape::Vlan { parent: parent?, id: id? })
}

/// The driver's name, as sysfs shows it.
fn driver(name: &str) -> Option<String> {
    let target = std::fs::read_link(format!("/sys/class/net/{name}/device/driver")).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

fn address(message: &AddressMessage) -> Option<Prefix> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Prefix::new(*address, message.header.prefix_len),
        _ => None,
    })
}

fn route(message: &RouteMessage, index: u32) -> Option<(Route, u32)> {
    if message.header.protocol != PROTOCOL {
        return None;
    }
    let (mut to, mut via, mut metric, mut over) = (Ipv4Addr::UNSPECIFIED, None, 0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(address)) => to = *address,
            RouteAttribute::Gateway(RouteAddress::Inet(address)) => via = Some(*address),
            RouteAttribute::Priority(priority) => metric = *priority,
            RouteAttribute::Oif(index) => over = Some(*index),
            _ => {}
        }
    }
    let to = Prefix::new(to, message.header.destination_prefix_length)?;
    (over == Some(index)).then_some((Route { to, via }, metric))
}

fn route_message(index: u32, route: Route, metric: u32) -> RouteMessage {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new()
        .destination_prefix(route.to.address(), route.to.len())
        .output_interface(index)
        .priority(metric)
        .protocol(PROTOCOL);
    match route.via {
        // A router need not be within the address' own network: DHCP servers of clouds give /32.
        Some(router) => builder.gateway(router).onlink().build(),
        None => builder.scope(RouteScope::Link).build(),
    }
}
