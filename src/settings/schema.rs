//! The schema as a value: every field with its path, kind, help and default.
//!
//! The form on the page, the console's questions, the commented template of `pilotlight.toml` and what services are
//! started with are all made of these rows; a new setting is a new row.

use std::time::Duration;

/// What a field takes. All text is trimmed first; nothing written means the default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One line of at most so many octets.
    Text(usize),
    /// A DNS label in lower case (RFC 1123 section 2.1).
    Label,
    /// Omni's endpoint in any of its forms.
    Endpoint,
    /// An HTTP or HTTPS URL.
    Url,
    /// A host name or an address.
    Host,
    /// A release such as `v1.13.7`.
    Version,
    /// Yes or no.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number, no less and no more.
    Number(u64, u64),
    /// A duration as Go writes it, no shorter than this.
    Duration(Duration),
    /// Labels of machines, `key=value` or `key`.
    Labels,
    /// Host names or addresses, at most so many.
    Hosts(usize),
    /// IP addresses, at most so many.
    Addresses(usize),
    /// An IPv4 address.
    Ipv4,
    /// An IPv4 address with the length of its network's prefix.
    Prefix,
    /// A MAC address, or `any`.
    Port,
    /// MAC addresses, at most so many.
    Macs(usize),
    /// Omni's service account key. Write-only.
    Key,
    /// The setup code. Write-only.
    Code,
}

impl Kind {
    /// Whether it is taken in and never shown again.
    pub const fn is_secret(self) -> bool {
        matches!(self, Self::Key | Self::Code)
    }

    /// Whether several values stand in it: an array in TOML, separated by commas elsewhere.
    pub const fn is_list(self) -> bool {
        matches!(self, Self::Labels | Self::Hosts(_) | Self::Addresses(_) | Self::Macs(_))
    }
}

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its table and name, joined by dots; within [`ROW`] the name alone.
    pub path: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// What it is for, in a line or two.
    pub help: &'static str,
    /// What counts when nothing is written; in brackets where that is no value.
    pub default: &'static str,
    /// An example, where the help has none.
    pub example: &'static str,
    /// The services' flag of that meaning, without its dashes.
    pub flag: Option<&'static str>,
    /// The services that are started anew when it changes.
    pub services: &'static [&'static str],
}

impl Field {
    /// What people call it: the last part of its path, with spaces.
    pub fn label(&self) -> String {
        let name = self.path.rsplit('.').next().unwrap_or(self.path).replace('-', " ");
        let mut letters = name.chars();
        letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
    }
}

const BLANK: Field =
    Field { path: "", kind: Kind::Text(0), help: "", default: "", example: "", flag: None, services: &[] };

/// The services that tell machines where to come.
const BOOTING: &[&str] = &["provider", "dhcp", "tftp"];
const PROVIDER: &[&str] = &["provider"];
const DHCP: &[&str] = &["dhcp"];

/// Every table, in the order of the file and the forms: its name, and what it is about.
pub const TABLES: &[(&str, &str)] =
    &[("", "The box"), ("omni", "Omni"), ("provider", "Provider"), ("network", "Network"), ("setup", "Access")];

/// Every field outside of a row, in the order of the file and the forms. A plain name comes before all tables.
pub const FIELDS: &[Field] = &[
    Field {
        path: "hostname",
        kind: Kind::Label,
        help: "What the box is called; with .local behind it, it is found by mDNS.",
        default: "[pilotlight- and the end of its lowest MAC address]",
        example: "pilotlight-rack7",
        flag: Some("hostname"),
        services: &["net"],
    },
    Field {
        path: "omni.endpoint",
        kind: Kind::Endpoint,
        help: "Where Omni's API is.",
        default: "[none: the box is not set up]",
        example: "https://example.omni.siderolabs.io",
        flag: Some("omni-api-endpoint"),
        services: &["provider", "dhcp", "net"],
    },
    Field {
        path: "omni.key",
        kind: Kind::Key,
        help: "The service account key that `omnictl infraprovider create ID` printed as OMNI_SERVICE_ACCOUNT_KEY. \
               It is never shown again; nothing written keeps the one that is there.",
        services: PROVIDER,
        ..BLANK
    },
    Field {
        path: "omni.insecure-skip-tls-verify",
        kind: Kind::Switch,
        help: "Don't verify Omni's TLS certificate.",
        default: "false",
        flag: Some("insecure-skip-tls-verify"),
        services: PROVIDER,
        ..BLANK
    },
    Field {
        path: "provider.id",
        kind: Kind::Label,
        help: "Provider ID; must equal the infra provider's ID in Omni.",
        default: "bare-metal",
        flag: Some("id"),
        services: PROVIDER,
        ..BLANK
    },
    Field {
        path: "provider.provider-name",
        kind: Kind::Text(128),
        help: "Name shown in Omni.",
        default: "Bare Metal",
        flag: Some("provider-name"),
        services: PROVIDER,
        ..BLANK
    },
    Field {
        path: "provider.provider-description",
        kind: Kind::Text(512),
        help: "Description shown in Omni.",
        default: "Bare metal infrastructure provider",
        flag: Some("provider-description"),
        services: PROVIDER,
        ..BLANK
    },
    Field {
        path: "provider.machine-labels",
        kind: Kind::Labels,
        help: "Labels for every machine, key=value or key.",
        default: "[none]",
        example: "site=fra1, rack=7",
        flag: Some("machine-labels"),
        services: PROVIDER,
    },
    Field {
        path: "provider.api-advertise-address",
        kind: Kind::Host,
        help: "Address that machines are told to come to.",
        default: "[the one routable address of the box]",
        example: "10.0.0.1",
        flag: Some("api-advertise-address"),
        services: BOOTING,
    },
    Field {
        path: "provider.dhcp-proxy-iface-or-ip",
        kind: Kind::Host,
        help: "Interface, by name or by an address it owns, that the DHCP proxy listens on.",
        default: "[the interface that owns the advertise address]",
        example: "eth1",
        flag: Some("dhcp-proxy-iface-or-ip"),
        services: DHCP,
    },
    Field {
        path: "provider.disable-dhcp-proxy",
        kind: Kind::Switch,
        help: "Don't answer DHCP at all.",
        default: "false",
        flag: Some("disable-dhcp-proxy"),
        services: DHCP,
        ..BLANK
    },
    Field {
        path: "provider.disable-dhcp-proxy-broadcast",
        kind: Kind::Switch,
        help: "Answer on port 4011 alone, and leave port 67 alone.",
        default: "false",
        flag: Some("disable-dhcp-proxy-broadcast"),
        services: DHCP,
        ..BLANK
    },
    Field {
        path: "provider.image-factory-base-url",
        kind: Kind::Url,
        help: "Image factory that schematics and boot assets come from.",
        default: "https://factory.talos.dev",
        flag: Some("image-factory-base-url"),
        services: &["images", "provider"],
        ..BLANK
    },
    Field {
        path: "provider.agent-mode-talos-version",
        kind: Kind::Version,
        help: "Talos version that the agent boots with.",
        default: "v1.13.7",
        flag: Some("agent-mode-talos-version"),
        services: PROVIDER,
        ..BLANK
    },
    Field {
        path: "provider.boot-from-disk-method",
        kind: Kind::Choice(&["ipxe-exit", "http-404", "ipxe-sanboot"]),
        help: "How an installed machine that boots from the network is sent to its disk.",
        default: "ipxe-exit",
        flag: Some("boot-from-disk-method"),
        services: PROVIDER,
        ..BLANK
    },
    Field {
        path: "provider.ipmi-pxe-boot-mode",
        kind: Kind::Choice(&["bios", "uefi"]),
        help: "Firmware mode of one-time PXE boots.",
        default: "uefi",
        flag: Some("ipmi-pxe-boot-mode"),
        services: PROVIDER,
        ..BLANK
    },
    Field {
        path: "provider.min-reboot-interval",
        kind: Kind::Duration(Duration::ZERO),
        help: "Least time between two reboots of a machine, and between power-on and power-off; 0 for none.",
        default: "15m",
        flag: Some("min-reboot-interval"),
        services: PROVIDER,
        ..BLANK
    },
    Field {
        path: "provider.poll-interval",
        kind: Kind::Duration(Duration::from_millis(100)),
        help: "How often a machine's power and agent are looked at.",
        default: "30s",
        flag: Some("poll-interval"),
        services: PROVIDER,
        ..BLANK
    },
    Field {
        path: "provider.wipe-with-zeroes",
        kind: Kind::Switch,
        help: "Overwrite whole disks with zeroes instead of the fast wipe.",
        default: "false",
        flag: Some("wipe-with-zeroes"),
        services: PROVIDER,
        ..BLANK
    },
    Field {
        path: "provider.image-cache-size",
        kind: Kind::Number(0, u64::MAX),
        help: "Most octets of boot images to keep.",
        default: "21474836480",
        flag: Some("image-cache-size"),
        services: &["images"],
        ..BLANK
    },
    Field {
        path: "network.ntp",
        kind: Kind::Hosts(crate::net::config::MOST_SERVERS),
        help: "NTP servers, by name or address.",
        default: "[those that DHCP names, else public ones]",
        example: "ntp.example.org, 192.0.2.1",
        ..BLANK
    },
    Field {
        path: "setup.code",
        kind: Kind::Code,
        help: "The setup code that the page asks for, 8 to 64 letters and digits. It is never shown again; nothing \
               written keeps the one that is there, at first the one on the screen.",
        ..BLANK
    },
];

/// The array of tables, one row an interface: no other table repeats.
pub const ROWS: &str = "network.interfaces";

/// Every field of a row. A row in which nothing is written is none; no row at all is DHCP on every Ethernet port.
pub const ROW: &[Field] = &[
    Field {
        path: "role",
        kind: Kind::Choice(&["uplink", "provisioning", "bmc"]),
        help: "What the interface is for.",
        default: "uplink",
        ..BLANK
    },
    Field {
        path: "mac",
        kind: Kind::Port,
        help: "The permanent MAC address of its port, or any for every port that no other interface names. A port that none names is off.",
        default: "any",
        example: "52:54:00:12:34:56",
        ..BLANK
    },
    Field {
        path: "vlan",
        kind: Kind::Number(1, 4094),
        help: "The VLAN that carries the addresses.",
        default: "[none]",
        ..BLANK
    },
    Field {
        path: "bond.members",
        kind: Kind::Macs(crate::net::config::MOST_MEMBERS),
        help: "Ports that act as one: their permanent MAC addresses.",
        default: "[no bond]",
        ..BLANK
    },
    Field {
        path: "bond.mode",
        kind: Kind::Choice(&["active-backup", "802.3ad"]),
        help: "How a bond shares the traffic.",
        default: "active-backup",
        ..BLANK
    },
    Field {
        path: "mtu",
        kind: Kind::Number(*crate::net::config::MTU.start() as u64, *crate::net::config::MTU.end() as u64),
        help: "The link's MTU in octets.",
        default: "[the driver's, or what DHCP says]",
        ..BLANK
    },
    Field {
        path: "mode",
        kind: Kind::Choice(&["dhcp", "static"]),
        help: "Where its addresses come from.",
        default: "dhcp",
        ..BLANK
    },
    Field {
        path: "address",
        kind: Kind::Prefix,
        help: "Static: the address with its prefix length.",
        example: "192.0.2.10/24",
        ..BLANK
    },
    Field { path: "gateway", kind: Kind::Ipv4, help: "Static: the default gateway.", example: "192.0.2.1", ..BLANK },
    Field {
        path: "dns",
        kind: Kind::Addresses(crate::net::config::MOST_SERVERS),
        help: "DNS servers; with DHCP they replace the server's.",
        default: "[those of DHCP]",
        ..BLANK
    },
];

/// The path of a row's field.
pub fn row_path(row: usize, name: &str) -> String {
    format!("{ROWS}[{row}].{name}")
}

/// The field at `path`, and its row where it has one. Rows count from 0 to [`MOST_ROWS`].
pub fn field(path: &str) -> Option<(&'static Field, Option<usize>)> {
    match path.strip_prefix(ROWS).and_then(|rest| rest.strip_prefix('[')) {
        Some(rest) => {
            let (row, name) = rest.split_once("].")?;
            // One spelling of a number, so that no two paths mean the same.
            let plain = row == "0" || !row.starts_with('0') && row.bytes().all(|octet| octet.is_ascii_digit());
            let row = row.parse().ok().filter(|row| plain && *row < MOST_ROWS)?;
            Some((ROW.iter().find(|field| field.path == name)?, Some(row)))
        }
        None => FIELDS.iter().find(|field| field.path == path).map(|field| (field, None)),
    }
}

/// Rows that can be written; one more than an interface can have, so that the rule of the network names the excess.
pub const MOST_ROWS: usize = crate::net::config::MOST_INTERFACES + 1;

/// The path that is spelled most like `path`, if any is near.
pub fn nearest(path: &str) -> Option<&'static str> {
    let near = |a: &str, b: &str| Some(distance(a, b)).filter(|distance| *distance <= 1 + b.len().min(40) / 6);
    if path.starts_with(ROWS) {
        let name = path.rsplit("].").next().unwrap_or(path);
        return ROW.iter().find(|field| near(field.path, name).is_some()).map(|field| field.path);
    }
    // Written under another table, or under none.
    let last = path.rsplit('.').next().unwrap_or(path);
    let elsewhere = || FIELDS.iter().find(|field| field.path.rsplit('.').next() == Some(last));
    let exact = FIELDS.iter().find(|field| field.path == path).or_else(elsewhere);
    let nearest =
        || FIELDS.iter().filter_map(|field| Some((near(field.path, path)?, field))).min_by_key(|(near, _)| *near);
    exact.or_else(|| nearest().map(|(_, field)| field)).map(|field| field.path)
}

/// How many octets have to be added, taken away or changed to make one text of the other (Levenshtein's distance); texts
/// beyond 64 octets are cut.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (&a.as_bytes()[..a.len().min(64)], &b.as_bytes()[..b.len().min(64)]);
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::supervise::services;

    #[test]
    fn every_path_is_found_and_belongs_to_a_table() {
        for row in FIELDS {
            assert_eq!(field(row.path), Some((row, None)));
            let table = row.path.rsplit_once('.').map_or("", |(table, _)| table);
            assert!(TABLES.iter().any(|(name, _)| *name == table), "{table}");
            assert!(row.services.iter().all(|name| services::service(name).is_some()), "{}", row.path);
            assert_eq!(nearest(row.path), Some(row.path));
        }
        for row in ROW {
            assert_eq!(field(&row_path(16, row.path)), Some((row, Some(16))));
        }
        let distinct: BTreeSet<_> = FIELDS.iter().map(|field| field.path).collect();
        assert_eq!(distinct.len(), FIELDS.len());
        for path in [
            "",
            "omni",
            "network.interfaces",
            "network.interfaces[17].mac",
            "network.interfaces[01].mac",
            "network.interfaces[-1].mac",
            "network.interfaces[0]mac",
            "network.interfaces[].mac",
        ] {
            assert_eq!(field(path), None, "{path}");
        }
    }

    #[test]
    fn what_is_misspelled_is_guessed() {
        for (path, meant) in [
            ("omni.endpont", Some("omni.endpoint")),
            ("omni-api-endpoint", None),
            ("endpoint", Some("omni.endpoint")),
            ("provider.key", Some("omni.key")),
            ("network.interfaces[3].adress", Some("address")),
            ("hostnam", Some("hostname")),
            ("colour", None),
        ] {
            assert_eq!(nearest(path), meant, "{path}");
        }
    }
}
