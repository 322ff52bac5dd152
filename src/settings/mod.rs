//! The box's configuration: one schema, and every way in.
//!
//! [`schema`] describes it as a value. Whatever a person fills in, the form on the page, `pilotlight.toml` or the console's
//! questions, becomes [`Answers`], path and text; [`Settings::read`] alone says what they mean and names every fault at
//! once. [`disk`] keeps it, [`stick`] takes it in from a file system that someone plugged in; both are edges, because they
//! read and write files.

pub mod access;
mod answers;
pub mod console;
pub mod desk;
pub mod disk;
pub mod file;
pub mod form;
mod kinds;
pub mod schema;
pub mod stick;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

pub use answers::{Answers, MOST_ANSWERS, MOST_OCTETS, Unusable};

use crate::net::config::{Bond, BondMode, Interface, Match, Mode, Network, Role};
use crate::net::mac::Mac;
use crate::net::prefix::Prefix;
use crate::secret::Secret;
use schema::{FIELDS, Field, MOST_ROWS, ROW, row_path};

/// Most faults that are named; nobody reads more.
pub const MOST_FAULTS: usize = 64;

/// The box's configuration, without faults. Two are equal when they mean the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The normal form of each plain field that is written, by its path.
    values: BTreeMap<&'static str, String>,
    /// The secrets that are given with it; those that are kept already need not be.
    secrets: BTreeMap<&'static str, Secret<String>>,
    network: Network,
}

/// What the box has already, and a configuration need not bring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Omni's key.
    pub key: bool,
}

/// One thing that is wrong: where, what, and how it is meant. Never holds a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The path of the field; a line of the file where there is no field.
    pub at: String,
    /// What is wrong.
    pub what: String,
    /// What to do; may be empty.
    pub hint: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.what)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

/// Faults as they are found; the first [`MOST_FAULTS`] are kept.
#[derive(Debug, Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, at: impl Into<String>, what: impl Into<String>, hint: impl Into<String>) {
        if self.0.len() < MOST_FAULTS {
            self.0.push(Fault { at: at.into(), what: what.into(), hint: hint.into() });
        }
    }
}

impl Settings {
    /// What `answers` mean on a box that has `kept`. What is not answered has its default; the whole counts, not the
    /// difference to what was before, save for secrets.
    ///
    /// # Errors
    ///
    /// Every fault at once, in the schema's order; [`MOST_FAULTS`] at most.
    pub fn read(answers: &Answers, kept: Kept) -> Result<Self, Vec<Fault>> {
        let mut faults = Faults::default();
        for path in answers.paths().filter(|path| schema::field(path).is_none()) {
            let hint = schema::nearest(path).map(|meant| format!("{meant} is near")).unwrap_or_default();
            faults.add(path, "is no setting", hint);
        }
        let mut all = Self::default();
        for field in FIELDS {
            let Some(text) = checked(field, field.path, answers, &mut faults) else { continue };
            if field.kind.is_secret() {
                all.secrets.insert(field.path, Secret::new(text));
            } else if field.path == "network.ntp" {
                all.network.ntp = items(&text).map(str::to_owned).collect();
            } else {
                all.values.insert(field.path, text);
            }
        }
        // One that is wrong is there all the same.
        let [endpoint, key] = ["omni.endpoint", "omni.key"].map(|path| answers.text(path).is_some());
        if endpoint && !key && !kept.key {
            faults.add("omni.key", "is missing", "make a key with `omnictl infraprovider create ID` and paste it");
        }
        if key && !endpoint {
            faults.add("omni.endpoint", "is missing", "a key is of no use without it; write the URL of your Omni");
        }
        // Which row each interface was written in.
        let mut rows = Vec::new();
        for row in 0..MOST_ROWS {
            if let Some(interface) = interface(row, answers, &mut faults) {
                all.network.interfaces.push(interface);
                rows.push(row);
            }
        }
        for fault in all.network.faults() {
            faults.add(as_written(&fault.at, &rows), fault.what, "");
        }
        if faults.0.is_empty() { Ok(all) } else { Err(in_order(faults.0)) }
    }

    /// What is written in a plain field, in its normal form.
    pub fn value(&self, path: &str) -> Option<&str> {
        self.values.get(path).map(String::as_str)
    }

    /// The secret that was given in a field.
    pub fn secret(&self, path: &str) -> Option<&Secret<String>> {
        self.secrets.get(path)
    }

    /// The network.
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// The same configuration with another network.
    #[must_use]
    pub fn with_network(self, network: Network) -> Self {
        Self { network, ..self }
    }

    /// The same configuration without its secrets.
    #[must_use]
    pub fn without_secrets(self) -> Self {
        Self { secrets: BTreeMap::new(), ..self }
    }

    /// The answers that make this configuration; secrets only where it holds them.
    pub fn answers(&self) -> Answers {
        let mut answers = Answers::default();
        for (path, text) in &self.values {
            answers.put(path, text);
        }
        for (path, secret) in &self.secrets {
            answers.put(path, secret.reveal());
        }
        answers.put("network.ntp", &self.network.ntp.join(", "));
        for (row, interface) in self.network.interfaces.iter().enumerate() {
            for (name, text) in texts(interface) {
                answers.put(&row_path(row, name), &text);
            }
        }
        answers
    }

    /// The services' flags that say this, one an item, in the schema's order.
    pub fn flags(&self) -> Vec<String> {
        let flag = |field: &Field| Some(format!("--{}={}", field.flag?, self.value(field.path)?));
        FIELDS.iter().filter_map(flag).collect()
    }

    /// The services that have to be started anew when this takes the place of `before`. The network is not among the causes:
    /// its service changes it while it runs.
    pub fn concerned(&self, before: &Self) -> BTreeSet<&'static str> {
        let changed = |field: &&Field| {
            // A secret that is given is taken for a new one.
            self.value(field.path) != before.value(field.path) || self.secrets.contains_key(field.path)
        };
        FIELDS.iter().filter(changed).flat_map(|field| field.services.iter().copied()).collect()
    }
}

/// Whether `line` is a flag that a configuration may set, so that nothing else reaches a service's command line.
pub fn is_flag(line: &str) -> bool {
    let name = line.strip_prefix("--").and_then(|rest| rest.split_once('=')).map(|(name, _)| name);
    name.is_some_and(|name| FIELDS.iter().any(|field| field.flag == Some(name)))
}

/// The items of a list, as answers write it.
fn items(text: &str) -> impl Iterator<Item = &str> {
    text.split([',', '\n', '\r']).map(str::trim).filter(|item| !item.is_empty())
}

/// The normal form of a field's answer; `None` when nothing is written or it has a fault.
fn checked(field: &Field, path: &str, answers: &Answers, faults: &mut Faults) -> Option<String> {
    let text = answers.text(path)?;
    match kinds::normal(field.kind, text) {
        Ok(text) => Some(text).filter(|text| !text.is_empty()),
        Err(what) => {
            faults.add(path, what, field.help);
            None
        }
    }
}

/// The interface of a row; `None` when nothing is written in it.
fn interface(row: usize, answers: &Answers, faults: &mut Faults) -> Option<Interface> {
    ROW.iter().find(|field| answers.text(&row_path(row, field.path)).is_some())?;
    let mut text = |name: &str| {
        let path = row_path(row, name);
        let (field, _) = schema::field(&path)?;
        checked(field, &path, answers, faults)
    };
    let members: Vec<Mac> =
        text("bond.members").iter().flat_map(|text| items(text)).filter_map(|mac| mac.parse().ok()).collect();
    let bond_mode = text("bond.mode");
    let bond = (!members.is_empty() || bond_mode.is_some()).then(|| Bond {
        mode: if bond_mode.as_deref() == Some(BOND_LACP) { BondMode::Lacp } else { BondMode::ActiveBackup },
        members,
    });
    Some(Interface {
        role: match text("role").as_deref() {
            Some("provisioning") => Role::Provisioning,
            Some("bmc") => Role::Bmc,
            Some(_) | None => Role::Uplink,
        },
        mac: text("mac").and_then(|text| Match::try_from(text).ok()).unwrap_or_default(),
        vlan: text("vlan").and_then(|text| text.parse().ok()),
        bond,
        mtu: text("mtu").and_then(|text| text.parse().ok()),
        mode: if text("mode").as_deref() == Some("static") { Mode::Static } else { Mode::Dhcp },
        address: text("address").and_then(|text| text.parse::<Prefix>().ok()),
        gateway: text("gateway").and_then(|text| text.parse::<Ipv4Addr>().ok()),
        dns: text("dns").iter().flat_map(|text| items(text)).filter_map(|text| text.parse::<IpAddr>().ok()).collect(),
    })
}

/// The kernel's name of LACP.
const BOND_LACP: &str = "802.3ad";

/// What is written in a row that makes this interface: the inverse of [`interface`].
fn texts(interface: &Interface) -> Vec<(&'static str, String)> {
    let list = |items: &[String]| items.join(", ");
    let mut all = vec![
        ("role", interface.role.as_str().to_owned()),
        ("mac", String::from(interface.mac)),
        ("mode", if interface.mode == Mode::Static { "static" } else { "dhcp" }.to_owned()),
        ("dns", list(&interface.dns.iter().map(ToString::to_string).collect::<Vec<_>>())),
    ];
    all.extend(interface.vlan.map(|vlan| ("vlan", vlan.to_string())));
    all.extend(interface.mtu.map(|mtu| ("mtu", mtu.to_string())));
    all.extend(interface.address.map(|address| ("address", address.to_string())));
    all.extend(interface.gateway.map(|gateway| ("gateway", gateway.to_string())));
    if let Some(bond) = &interface.bond {
        let mode = if bond.mode == BondMode::Lacp { BOND_LACP } else { "active-backup" };
        all.push(("bond.mode", mode.to_owned()));
        all.push(("bond.members", list(&bond.members.iter().map(ToString::to_string).collect::<Vec<_>>())));
    }
    all
}

/// A path of the network's rule, with the rows as they were written.
fn as_written(at: &str, rows: &[usize]) -> String {
    let parts =
        at.strip_prefix(schema::ROWS).and_then(|rest| rest.strip_prefix('[')).and_then(|rest| rest.split_once(']'));
    match parts.and_then(|(index, rest)| Some((rows.get(index.parse::<usize>().ok()?)?, rest))) {
        Some((row, rest)) => format!("{}[{row}]{rest}", schema::ROWS),
        None => at.to_owned(),
    }
}

/// Faults in the order of the schema; what is no setting comes first.
fn in_order(mut faults: Vec<Fault>) -> Vec<Fault> {
    faults.sort_by_key(|fault| match schema::field(&fault.at) {
        None if fault.at.starts_with(schema::ROWS) => (2, 0, 0),
        None => (0, 0, 0),
        Some((field, None)) => (1, 0, FIELDS.iter().position(|other| other.path == field.path).unwrap_or(0)),
        Some((field, Some(row))) => (2, row, ROW.iter().position(|other| other.path == field.path).unwrap_or(0)),
    });
    faults
}
