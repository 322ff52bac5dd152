//! Configuration: the flags as written ([`Flags`]) and what they mean ([`Config`]), validated as a whole.

pub mod duration;
mod flags;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

pub use flags::{DiskMethod, Flags, GoFlags, OwnFlags, PxeMode};

use ed25519_dalek::VerifyingKey;

use crate::boot::{Host, script};
use crate::machine::PxeBootMode;
use crate::omni::proxy::Variables;
use crate::secret::Secret;

/// The environment variables that the service account key is read from, the first that is set wins.
pub use crate::supervise::services::KEY_VARIABLES;

/// What the flags mean.
#[derive(Clone, Debug)]
pub struct Config {
    /// Provider ID.
    pub id: String,
    /// Debug logs for people.
    pub debug: bool,
    /// Where HTTP, gRPC and TFTP bind; `None` binds all addresses.
    pub listen: Option<IpAddr>,
    /// Address or DNS name that machines are told; `None` asks for the one routable address of this host.
    pub advertise: Option<Host>,
    /// Port of HTTP and cleartext gRPC.
    pub api_port: u16,
    /// Towards Omni.
    pub omni: OmniConfig,
    /// Name and description shown in Omni.
    pub name: String,
    /// Description shown in Omni.
    pub description: String,
    /// Local boot assets, when used.
    pub local_assets: Option<PathBuf>,
    /// DHCP proxy; `None` when disabled.
    pub dhcp: Option<DhcpConfig>,
    /// TFTP port.
    pub tftp_port: u16,
    /// Image factory base URL.
    pub image_factory: String,
    /// Talos version of agent boots.
    pub agent_talos_version: String,
    /// How machines are sent to their disk.
    pub disk_method: script::DiskMethod,
    /// Firmware mode of one-time PXE boots.
    pub pxe_mode: PxeBootMode,
    /// Labels on every InfraMachineStatus.
    pub labels: BTreeMap<String, String>,
    /// Timing of the plan.
    pub timing: Timing,
    /// Wipe with zeroes.
    pub wipe_with_zeroes: bool,
    /// Local store, sealing key, image cache.
    pub state_dir: PathBuf,
    /// Sockets between services.
    pub run_dir: PathBuf,
    /// iPXE binaries.
    pub ipxe_dir: PathBuf,
    /// Status page; `None` for none.
    pub web: Option<SocketAddr>,
    /// The page of `service web` over TLS; `None` for none.
    pub web_tls: Option<SocketAddr>,
    /// Second server for images; `None` for none.
    pub images: Option<SocketAddr>,
    /// Store BMC passwords in clear in Omni.
    pub clear_passwords: bool,
    /// Most octets of images to keep.
    pub image_cache_size: u64,
    /// Whether `service net` owns this machine's network and clock.
    pub manage_network: bool,
    /// Updates of the appliance.
    pub update: UpdateConfig,
    /// What `service net` calls this machine; `None` for a name of its own making.
    pub hostname: Option<String>,
    /// What is accepted but does nothing, to be said once at start.
    pub notices: Vec<String>,
}

/// Towards Omni.
#[derive(Clone, Debug)]
pub struct OmniConfig {
    /// Endpoint URL.
    pub endpoint: String,
    /// Service account key; without one calls are not signed, and Omni refuses them.
    pub key: Option<Secret<String>>,
    /// Don't verify Omni's certificate.
    pub insecure_skip_tls_verify: bool,
    /// The way out, as the environment has it.
    pub proxy: Variables,
}

/// Updates of the appliance.
#[derive(Clone, Debug, Default)]
pub struct UpdateConfig {
    /// Keys that are trusted beside those built in.
    pub keys: Vec<VerifyingKey>,
    /// Where the slots of the box's own disk are.
    pub disk: PathBuf,
    /// Where a stick is mounted.
    pub stick: PathBuf,
}

/// The DHCP proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpConfig {
    /// Interface name or address; `None` is the interface that owns the advertise address.
    pub interface: Option<String>,
    /// Whether port 67 is listened on as well as 4011.
    pub broadcast: bool,
    /// Port of broadcasts, 67 on a real network.
    pub port: u16,
    /// Port of the boot server, 4011 on a real network.
    pub binl_port: u16,
}

/// Timing of plans and calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// Least time between reboots, and between power-on and power-off.
    pub min_reboot_interval: Duration,
    /// How often power and agent are looked at.
    pub poll_interval: Duration,
    /// How long an agent may be missing before its machine is power-cycled.
    pub agent_wait: Duration,
    /// Agent calls but the wipe.
    pub agent_call: Duration,
    /// The wipe, by the configured method.
    pub wipe: Duration,
}

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The flag or variable, as typed.
    pub flag: String,
    /// What is wrong with it.
    pub what: String,
    /// What to do.
    pub hint: String,
}

/// Everything wrong with the configuration, in the order of the flags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} fault{}", self.0.len(), if self.0.len() == 1 { "" } else { "s" })?;
        for fault in &self.0 {
            write!(f, "\n  {}: {}\n    hint: {}", fault.flag, fault.what, fault.hint)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

impl Config {
    /// What `flags` mean to who talks to Omni: endpoint and key must be there.
    ///
    /// # Errors
    ///
    /// [`Faults`] names every fault at once.
    pub fn new(flags: &Flags) -> Result<Self, Faults> {
        Self::parse(flags, true)
    }

    /// What `flags` mean to a service that never talks to Omni: it needs neither endpoint nor key, and holds no key even
    /// where there is one.
    ///
    /// # Errors
    ///
    /// As those of [`Config::new`], save for what is missing towards Omni.
    pub fn without_omni(flags: &Flags) -> Result<Self, Faults> {
        Self::parse(flags, false)
    }

    fn parse(flags: &Flags, talks_to_omni: bool) -> Result<Self, Faults> {
        let (go, own) = (&flags.go, &flags.own);
        let mut faults = Vec::new();
        let mut fault = |flag: &str, what: String, hint: &str| {
            faults.push(Fault { flag: flag.to_owned(), what, hint: hint.to_owned() });
        };
        if go.id.is_empty() || go.id.len() > 63 || !is_dns_label(&go.id) {
            fault(
                "--id",
                format!("{:?} is no DNS label", go.id),
                "use lower-case letters, digits and dashes, at most 63",
            );
        }
        let listen = match go.api_listen_address.as_str() {
            "" => None,
            text => match text.parse() {
                Ok(address) => Some(address),
                Err(_) => {
                    fault(
                        "--api-listen-address",
                        format!("{text:?} is no IP address"),
                        "give an address of this host, or nothing for all",
                    );
                    None
                }
            },
        };
        let advertise = some_text(&go.api_advertise_address).and_then(|text| match text.parse::<Host>() {
            Ok(host) => Some(host),
            Err(error) => {
                fault(
                    "--api-advertise-address",
                    error.to_string(),
                    "give the address that machines reach this host at",
                );
                None
            }
        });
        if talks_to_omni && go.omni_api_endpoint.is_empty() {
            fault("--omni-api-endpoint", "missing".into(), "set it, or OMNI_ENDPOINT, to the URL of Omni's API");
        }
        if talks_to_omni && flags.service_account_key.is_none() {
            fault(
                "OMNI_SERVICE_ACCOUNT_KEY",
                "missing".into(),
                "make a key with `omnictl infraprovider create ID` and set the variable to it",
            );
        }
        let labels = parse_labels(&go.machine_labels, &mut fault);
        for (flag, text) in [
            ("--web-listen-address", &own.web_listen_address),
            ("--web-tls-listen-address", &own.web_tls_listen_address),
            ("--images-listen-address", &own.images_listen_address),
        ] {
            if !text.is_empty() && text.parse::<SocketAddr>().is_err() {
                fault(flag, format!("{text:?} is no address and port"), "write it as 0.0.0.0:8080 or [::]:8080");
            }
        }
        if !go.image_factory_base_url.starts_with("http://") && !go.image_factory_base_url.starts_with("https://") {
            fault(
                "--image-factory-base-url",
                format!("{:?} is no HTTP URL", go.image_factory_base_url),
                "write it with http:// or https://",
            );
        }
        if !own.hostname.is_empty() && (own.hostname.len() > 63 || !is_dns_label(&own.hostname)) {
            fault(
                "--hostname",
                format!("{:?} is no DNS label", own.hostname),
                "use lower-case letters, digits and dashes, at most 63",
            );
        }
        if own.poll_interval < Duration::from_millis(100) {
            fault("--poll-interval", "below 100ms".into(), "BMCs hang when polled too often; 30s is a good interval");
        }
        let mut keys = Vec::new();
        for text in &own.update_key {
            match crate::update::keys::parse(text) {
                Some(key) => keys.push(key),
                None => fault(
                    "--update-key",
                    format!("{text:?} is no ed25519 public key"),
                    "give the 64 digits of the .pub file that `pilotlight bundle keygen` wrote",
                ),
            }
        }
        for flag in not_implemented(go) {
            fault(
                flag,
                "not implemented yet by this release".into(),
                "leave the flag out, or stay with the Go provider until it is",
            );
        }
        if !faults.is_empty() {
            return Err(Faults(faults));
        }
        let mut notices = Vec::new();
        if go.redfish_use_when_available {
            notices.push(
                "--redfish-use-when-available: Redfish is not implemented yet, BMCs are spoken to over IPMI".to_owned(),
            );
        }
        if go.image_factory_pxe_base_url != "https://pxe.factory.talos.dev" {
            notices.push("--image-factory-pxe-base-url has no effect: boot scripts come from this provider".to_owned());
        }
        Ok(Self {
            id: go.id.clone(),
            debug: go.debug,
            listen,
            advertise,
            api_port: go.api_port,
            omni: OmniConfig {
                endpoint: go.omni_api_endpoint.clone(),
                key: flags.service_account_key.clone().filter(|_| talks_to_omni),
                insecure_skip_tls_verify: go.insecure_skip_tls_verify,
                proxy: flags.proxy.clone(),
            },
            name: go.provider_name.clone(),
            description: go.provider_description.clone(),
            local_assets: go.use_local_boot_assets.then(|| go.boot_assets_path.clone()),
            dhcp: (!go.disable_dhcp_proxy).then(|| DhcpConfig {
                interface: some_text(&go.dhcp_proxy_iface_or_ip),
                broadcast: !go.disable_dhcp_proxy_broadcast,
                port: own.dhcp_port,
                binl_port: own.binl_port,
            }),
            tftp_port: own.tftp_port,
            image_factory: go.image_factory_base_url.trim_end_matches('/').to_owned(),
            agent_talos_version: go.agent_mode_talos_version.clone(),
            disk_method: match go.boot_from_disk_method {
                DiskMethod::IpxeExit => script::DiskMethod::IpxeExit,
                DiskMethod::Http404 => script::DiskMethod::Http404,
                DiskMethod::IpxeSanboot => script::DiskMethod::IpxeSanboot,
            },
            pxe_mode: match go.ipmi_pxe_boot_mode {
                PxeMode::Bios => PxeBootMode::Bios,
                PxeMode::Uefi => PxeBootMode::Uefi,
            },
            labels,
            timing: Timing {
                min_reboot_interval: go.min_reboot_interval,
                poll_interval: own.poll_interval,
                agent_wait: own.agent_wait,
                agent_call: go.agent_call_timeout,
                wipe: if go.wipe_with_zeroes { go.agent_zeroes_wipe_timeout } else { go.agent_fast_wipe_timeout },
            },
            wipe_with_zeroes: go.wipe_with_zeroes,
            state_dir: own.state_dir.clone(),
            run_dir: own.run_dir.clone(),
            ipxe_dir: own.ipxe_path.clone(),
            web: own.web_listen_address.parse().ok(),
            web_tls: own.web_tls_listen_address.parse().ok(),
            images: own.images_listen_address.parse().ok(),
            clear_passwords: own.bmc_passwords_in_clear,
            image_cache_size: own.image_cache_size,
            manage_network: own.manage_network,
            update: UpdateConfig { keys, disk: own.update_disk_path.clone(), stick: own.update_stick_path.clone() },
            hostname: some_text(&own.hostname),
            notices,
        })
    }
}

/// The Go provider's flags that change something this release does not do, as far as they differ from their default.
fn not_implemented(go: &GoFlags) -> impl Iterator<Item = &'static str> {
    [
        (go.agent_test_mode, "--agent-test-mode"),
        (!go.api_power_mgmt_state_dir.is_empty(), "--api-power-mgmt-state-dir"),
        (go.secure_boot_enabled, "--secure-boot-enabled"),
        (!go.extra_machine_config_path.is_empty(), "--extra-machine-config-path"),
        (go.clear_state, "--clear-state"),
        (go.tls_enabled, "--tls-enabled"),
        (go.tls_api_port != 50043, "--tls-api-port"),
        (go.tls_agent_skip_verify, "--tls-agent-skip-verify"),
        (go.tls_ca_ttl != Duration::from_secs(262_800 * 3_600), "--tls-ca-ttl"),
        (go.tls_cert_ttl != Duration::from_secs(24 * 3_600), "--tls-cert-ttl"),
        (!go.tls_ca_cert_file.is_empty(), "--tls-ca-cert-file"),
        (!go.tls_cert_file.is_empty(), "--tls-cert-file"),
        (!go.tls_key_file.is_empty(), "--tls-key-file"),
        (!go.tls_custom_ipxe_ca_cert_file.is_empty(), "--tls-custom-ipxe-ca-cert-file"),
        (go.redfish_use_always, "--redfish-use-always"),
        (!go.redfish_use_https, "--redfish-use-https"),
        (!go.redfish_insecure_skip_tls_verify, "--redfish-insecure-skip-tls-verify"),
        (go.redfish_port != 443, "--redfish-port"),
        (!go.redfish_set_boot_source_override_mode, "--redfish-set-boot-source-override-mode"),
    ]
    .into_iter()
    .filter_map(|(set, flag)| set.then_some(flag))
}

fn parse_labels(items: &[String], fault: &mut impl FnMut(&str, String, &str)) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for item in items.iter().filter(|item| !item.is_empty()) {
        match item.split('=').collect::<Vec<_>>()[..] {
            [key] => drop(labels.insert(key.to_owned(), String::new())),
            [key, value] => drop(labels.insert(key.to_owned(), value.to_owned())),
            _ => fault("--machine-labels", format!("{item:?} has more than one ="), "write key=value, or key alone"),
        }
    }
    labels
}

fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn is_dns_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// An environment variable, for the few that are no flags.
#[allow(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

/// The service account key from the environment, the first variable of [`KEY_VARIABLES`] that is set.
#[allow(clippy::disallowed_methods, reason = "the one place that reads the environment")]
pub fn service_account_key() -> Option<Secret<String>> {
    KEY_VARIABLES
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .map(|value| Secret::new(value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::{CommandFactory, Parser};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        flags: Flags,
    }

    fn parse(args: &[&str]) -> Flags {
        let mut flags = Cli::try_parse_from([&["pilotlight"], args].concat()).expect("flags parse").flags;
        flags.service_account_key = Some(Secret::new("key".into()));
        flags
    }

    /// Name and default of each flag in contract bare-metal-provider.md, section 1.2.
    const CONTRACT: [(&str, &str); 43] = [
        ("id", "bare-metal"),
        ("debug", "false"),
        ("api-listen-address", ""),
        ("api-advertise-address", ""),
        ("api-port", "50042"),
        ("omni-api-endpoint", ""),
        ("insecure-skip-tls-verify", "false"),
        ("provider-name", "Bare Metal"),
        ("provider-description", "Bare metal infrastructure provider"),
        ("use-local-boot-assets", "false"),
        ("boot-assets-path", "/assets"),
        ("dhcp-proxy-iface-or-ip", ""),
        ("disable-dhcp-proxy", "false"),
        ("disable-dhcp-proxy-broadcast", "false"),
        ("image-factory-base-url", "https://factory.talos.dev"),
        ("image-factory-pxe-base-url", "https://pxe.factory.talos.dev"),
        ("agent-mode-talos-version", "v1.13.7"),
        ("agent-test-mode", "false"),
        ("api-power-mgmt-state-dir", ""),
        ("boot-from-disk-method", "ipxe-exit"),
        ("ipmi-pxe-boot-mode", "uefi"),
        ("machine-labels", ""),
        ("min-reboot-interval", "15m"),
        ("secure-boot-enabled", "false"),
        ("extra-machine-config-path", ""),
        ("enable-resource-cache", "false"),
        ("clear-state", "false"),
        ("tls-enabled", "false"),
        ("tls-api-port", "50043"),
        ("tls-agent-skip-verify", "false"),
        ("tls-ca-ttl", "262800h"),
        ("tls-cert-ttl", "24h"),
        ("tls-ca-cert-file", ""),
        ("tls-cert-file", ""),
        ("tls-key-file", ""),
        ("tls-custom-ipxe-ca-cert-file", ""),
        ("redfish-use-always", "false"),
        ("redfish-use-when-available", "true"),
        ("redfish-use-https", "true"),
        ("redfish-insecure-skip-tls-verify", "true"),
        ("redfish-port", "443"),
        ("redfish-set-boot-source-override-mode", "true"),
        ("wipe-with-zeroes", "false"),
    ];
    /// The rest of the same table; apart, to keep each on a screen.
    const CONTRACT_TIMEOUTS: [(&str, &str); 3] =
        [("agent-call-timeout", "30s"), ("agent-fast-wipe-timeout", "5m"), ("agent-zeroes-wipe-timeout", "24h")];

    #[test]
    fn every_flag_of_the_contract_is_there_with_its_default() {
        let command = Cli::command();
        for (name, default) in CONTRACT.iter().chain(&CONTRACT_TIMEOUTS) {
            let arg = command
                .get_arguments()
                .find(|arg| arg.get_long() == Some(name))
                .unwrap_or_else(|| panic!("--{name} is missing"));
            let seen = arg.get_default_values().first().map_or("", |value| value.to_str().expect("UTF-8"));
            assert_eq!(seen, *default, "--{name}");
            assert!(arg.get_help().is_some_and(|help| help.to_string().len() > 10), "--{name} has no help");
            assert!(!arg.is_hide_set(), "--{name} is hidden");
        }
    }

    #[test]
    fn booleans_are_written_as_in_go() {
        for (args, want) in
            [(&["--debug"][..], true), (&["--debug=true"], true), (&["--debug=false"], false), (&[], false)]
        {
            assert_eq!(parse(args).go.debug, want, "{args:?}");
        }
        assert!(!parse(&["--redfish-use-when-available=false"]).go.redfish_use_when_available);
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let mut flags = parse(&[
            "--id=Bad_Id",
            "--api-listen-address=nowhere",
            "--machine-labels=a=b=c",
            "--tls-enabled",
            "--redfish-use-always",
            "--web-listen-address=8080",
        ]);
        flags.service_account_key = None;
        let faults = Config::new(&flags).expect_err("six faults and more");
        let named: Vec<_> = faults.0.iter().map(|fault| fault.flag.as_str()).collect();
        assert_eq!(
            named,
            [
                "--id",
                "--api-listen-address",
                "--omni-api-endpoint",
                "OMNI_SERVICE_ACCOUNT_KEY",
                "--machine-labels",
                "--web-listen-address",
                "--tls-enabled",
                "--redfish-use-always",
            ]
        );
        assert!(faults.to_string().contains("hint: "));
    }

    #[test]
    fn who_never_talks_to_omni_needs_no_endpoint_and_holds_no_key() {
        let flags = parse(&["--id=Bad_Id"]);
        let faults = Config::without_omni(&flags).expect_err("the ID");
        assert_eq!(faults.0.iter().map(|fault| fault.flag.as_str()).collect::<Vec<_>>(), ["--id"]);
        let config = Config::without_omni(&parse(&[])).expect("valid");
        assert!(config.omni.key.is_none());
        assert!(Config::new(&parse(&[])).is_err());
    }

    #[test]
    fn flags_become_a_config() {
        let flags = parse(&[
            "--omni-api-endpoint=http://127.0.0.1:1",
            "--machine-labels=rack=7,edge",
            "--ipmi-pxe-boot-mode=bios",
            "--min-reboot-interval=0",
            "--wipe-with-zeroes",
            "--disable-dhcp-proxy-broadcast",
        ]);
        let config = Config::new(&flags).expect("valid");
        assert_eq!(
            config.labels.into_iter().collect::<Vec<_>>(),
            [("edge".into(), String::new()), ("rack".into(), "7".into())]
        );
        assert_eq!(config.pxe_mode, PxeBootMode::Bios);
        assert_eq!(config.timing.min_reboot_interval, Duration::ZERO);
        assert_eq!(config.timing.wipe, Duration::from_secs(24 * 3_600));
        assert!(!config.dhcp.expect("enabled").broadcast);
        assert_eq!(config.notices.len(), 1, "Redfish is asked for by default and said not to be there");
    }
}
