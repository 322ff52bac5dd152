//! What the page and the console show about the network.

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use super::config::{Network, Role};
use super::mac::Mac;
use super::port::Source;
use super::prefix::Prefix;
use super::trial::Ending;
use crate::time::UnixTime;

/// The box' network at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkStatus {
    /// What the box is called; with `.local` it is found by mDNS.
    pub hostname: String,
    /// One entry a link that carries addresses or could, in the kernel's order.
    pub links: Vec<LinkStatus>,
    /// DNS servers in use, preferred first.
    pub dns: Vec<IpAddr>,
    /// The clock.
    pub clock: ClockStatus,
    /// The configuration in force.
    pub network: Network,
    /// The trial that runs.
    pub trial: Option<TrialStatus>,
    /// How the last trial ended.
    pub ended: Option<Ending>,
    /// What is wrong, each in one line; empty when nothing is.
    pub trouble: Vec<String>,
}

impl NetworkStatus {
    /// Whether the box can be reached at an address: some link has a partner and one, if only a link-local one.
    pub fn has_address(&self) -> bool {
        self.links.iter().any(|link| link.role.is_some() && link.carrier && !link.addresses.is_empty())
    }
}

/// One link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStatus {
    /// The kernel's name.
    pub name: String,
    /// The permanent MAC address.
    pub mac: Mac,
    /// The hardware's driver; empty where there is none.
    pub driver: String,
    /// Whether there is a link partner.
    pub carrier: bool,
    /// In octets.
    pub mtu: u32,
    /// What it is for; `None` when it carries no addresses of its own.
    pub role: Option<Role>,
    /// Its addresses and where they are from.
    pub addresses: Vec<AddressStatus>,
    /// The default gateway by way of it.
    pub gateway: Option<Ipv4Addr>,
    /// The DNS servers that it brought.
    pub dns: Vec<IpAddr>,
    /// What it does or what ails it, in words.
    pub detail: String,
}

/// One address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressStatus {
    /// With the length of its network's prefix.
    pub address: Prefix,
    /// Where it is from.
    pub source: Source,
}

/// A trial that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialStatus {
    /// Its number, which a confirmation must name.
    pub id: u64,
    /// How long it still waits, in whole seconds.
    pub seconds: u64,
}

/// The clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClockStatus {
    /// Whether the time is known: from servers that agree, or roughly from HTTPS.
    pub synchronised: bool,
    /// Where the time is from, or why it is not known.
    pub source: String,
    /// How far the clock was off at the last look, in milliseconds.
    pub offset_ms: i64,
    /// When it was last set or steered.
    pub at: Option<UnixTime>,
}
