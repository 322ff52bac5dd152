//! The flags as written: names, defaults and help.
//!
//! The first group is the Go provider's, name for name and default for default (contract bare-metal-provider.md,
//! section 1.2); the second is ours.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

use super::duration;
use crate::omni::proxy::Variables;
use crate::secret::Secret;
use crate::supervise;

/// What an installed machine is told that boots from the network all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DiskMethod {
    /// A script that exits: the firmware tries its next boot entry.
    IpxeExit,
    /// A 404: the firmware's own iPXE gives up on the network.
    #[value(name = "http-404")]
    Http404,
    /// A script that boots the first BIOS disk.
    IpxeSanboot,
}

/// Firmware mode of a one-time PXE boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PxeMode {
    /// Legacy BIOS.
    Bios,
    /// UEFI.
    Uefi,
}

/// The Go provider's flags.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "The Go provider's flags")]
pub struct GoFlags {
    /// Provider ID; must equal the infra provider's ID in Omni. It is part of namespaces and resource types
    #[arg(long, default_value = "bare-metal")]
    pub id: String,
    /// Log at debug level, coloured, for people; otherwise JSON at info level
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub debug: bool,
    /// Address that the HTTP, gRPC and TFTP servers bind to [default: all]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub api_listen_address: String,
    /// Address that machines are told to come to [default: the one routable address of this host]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub api_advertise_address: String,
    /// Port of HTTP and cleartext gRPC
    #[arg(long, default_value = "50042")]
    pub api_port: u16,
    /// Omni's API, such as `https://example.omni.siderolabs.io`
    #[arg(long, env = "OMNI_ENDPOINT", default_value = "", hide_default_value = true)]
    pub omni_api_endpoint: String,
    /// Don't verify Omni's TLS certificate
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub insecure_skip_tls_verify: bool,
    /// Name shown in Omni
    #[arg(long, default_value = "Bare Metal")]
    pub provider_name: String,
    /// Description shown in Omni
    #[arg(long, default_value = "Bare metal infrastructure provider")]
    pub provider_description: String,
    /// Boot the agent from files in --boot-assets-path instead of the image factory
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub use_local_boot_assets: bool,
    /// Directory of kernel-ARCH, initramfs-metal-ARCH.xz and cmdline-metal-ARCH
    #[arg(long, default_value = "/assets")]
    pub boot_assets_path: PathBuf,
    /// Interface, by name or by an address it owns, that the DHCP proxy listens on [default: the one that owns the advertise address]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub dhcp_proxy_iface_or_ip: String,
    /// Don't answer DHCP at all
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub disable_dhcp_proxy: bool,
    /// Answer on port 4011 alone, when a DHCP server on this host owns port 67
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub disable_dhcp_proxy_broadcast: bool,
    /// Image factory that schematics and boot assets come from
    #[arg(long, default_value = "https://factory.talos.dev")]
    pub image_factory_base_url: String,
    /// Accepted for compatibility; boot scripts come from this provider
    #[arg(long, default_value = "https://pxe.factory.talos.dev")]
    pub image_factory_pxe_base_url: String,
    /// Talos version that the agent boots with; without effect with local boot assets
    #[arg(long, default_value = "v1.13.7")]
    pub agent_mode_talos_version: String,
    /// Tell the agent to report API power management
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub agent_test_mode: bool,
    /// Directory of talosctl launch configs, to find power management APIs
    #[arg(long, default_value = "", hide_default_value = true)]
    pub api_power_mgmt_state_dir: String,
    /// How an installed machine that boots from the network is sent to its disk
    #[arg(long, value_enum, default_value = "ipxe-exit")]
    pub boot_from_disk_method: DiskMethod,
    /// Firmware mode of one-time PXE boots
    #[arg(long, value_enum, default_value = "uefi")]
    pub ipmi_pxe_boot_mode: PxeMode,
    /// Labels for every machine, key=value or key, comma separated
    #[arg(long, value_delimiter = ',', value_name = "KEY=VALUE")]
    pub machine_labels: Vec<String>,
    /// Least time between two reboots, and between a power-on and a power-off; 0 for none
    #[arg(long, value_parser = duration::parse, default_value = "15m", value_name = "DURATION")]
    pub min_reboot_interval: Duration,
    /// Boot signed UKIs
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub secure_boot_enabled: bool,
    /// File of Talos config documents to append to the served machine config
    #[arg(long, default_value = "", hide_default_value = true)]
    pub extra_machine_config_path: String,
    /// Accepted for compatibility; resources are always mirrored
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub enable_resource_cache: bool,
    /// Debug builds of the Go provider only
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub clear_state: bool,
    /// Serve the agent over TLS
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub tls_enabled: bool,
    /// Port of gRPC over TLS
    #[arg(long, default_value = "50043")]
    pub tls_api_port: u16,
    /// Tell the agent not to verify our certificate
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub tls_agent_skip_verify: bool,
    /// Lifetime of a generated CA
    #[arg(long, value_parser = duration::parse, default_value = "262800h", value_name = "DURATION")]
    pub tls_ca_ttl: Duration,
    /// Lifetime of a generated certificate
    #[arg(long, value_parser = duration::parse, default_value = "24h", value_name = "DURATION")]
    pub tls_cert_ttl: Duration,
    /// CA certificate to distribute to machines (PEM)
    #[arg(long, default_value = "", hide_default_value = true)]
    pub tls_ca_cert_file: String,
    /// Certificate to serve (PEM); goes with --tls-key-file
    #[arg(long, default_value = "", hide_default_value = true)]
    pub tls_cert_file: String,
    /// Key of --tls-cert-file (PEM)
    #[arg(long, default_value = "", hide_default_value = true)]
    pub tls_key_file: String,
    /// CA that iPXE is to trust (PEM)
    #[arg(long, default_value = "", hide_default_value = true)]
    pub tls_custom_ipxe_ca_cert_file: String,
    /// Never probe, always speak Redfish
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub redfish_use_always: bool,
    /// Probe each BMC and prefer Redfish
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", value_name = "BOOL")]
    pub redfish_use_when_available: bool,
    /// Speak Redfish over HTTPS
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", value_name = "BOOL")]
    pub redfish_use_https: bool,
    /// Don't verify a BMC's TLS certificate
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", value_name = "BOOL")]
    pub redfish_insecure_skip_tls_verify: bool,
    /// Port of Redfish
    #[arg(long, default_value = "443")]
    pub redfish_port: u16,
    /// Send BootSourceOverrideMode, which some BMCs reject
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", value_name = "BOOL")]
    pub redfish_set_boot_source_override_mode: bool,
    /// Overwrite whole disks with zeroes instead of the fast wipe
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub wipe_with_zeroes: bool,
    /// Time limit of a call to the agent
    #[arg(long, value_parser = duration::parse, default_value = "30s", value_name = "DURATION")]
    pub agent_call_timeout: Duration,
    /// Time limit of a fast wipe
    #[arg(long, value_parser = duration::parse, default_value = "5m", value_name = "DURATION")]
    pub agent_fast_wipe_timeout: Duration,
    /// Time limit of a wipe with zeroes
    #[arg(long, value_parser = duration::parse, default_value = "24h", value_name = "DURATION")]
    pub agent_zeroes_wipe_timeout: Duration,
}

/// Flags that the Go provider does not have.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Pilotlight's own flags")]
pub struct OwnFlags {
    /// Directory of the local store, the sealing key and the image cache
    #[arg(long, default_value = "/var/lib/pilotlight")]
    pub state_dir: PathBuf,
    /// Directory of the sockets between services that run as processes of their own
    #[arg(long, default_value = "/run/pilotlight")]
    pub run_dir: PathBuf,
    /// Directory of the iPXE binaries that are served over TFTP and HTTP
    #[arg(long, default_value = "/usr/lib/ipxe")]
    pub ipxe_path: PathBuf,
    /// Address and port of the status page, such as 0.0.0.0:8080 [default: no page]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub web_listen_address: String,
    /// Address and port of the page of `service web` over TLS, such as 0.0.0.0:443; forms are shown there alone then
    /// [default: in the clear alone]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub web_tls_listen_address: String,
    /// Let `service net` set this machine's links, addresses, routes and clock; the appliance's image says so
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub manage_network: bool,
    /// What `service net` calls this machine, a DNS label [default: pilotlight- and the end of its lowest MAC address]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub hostname: String,
    /// Port of the DHCP proxy
    #[arg(long, default_value = "67")]
    pub dhcp_port: u16,
    /// Port that PXE firmware asks for its boot file
    #[arg(long, default_value = "4011")]
    pub binl_port: u16,
    /// Port of TFTP
    #[arg(long, default_value = "69")]
    pub tftp_port: u16,
    /// Address and port of a second server for boot images alone [default: none]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub images_listen_address: String,
    /// How often a machine's power and agent are looked at
    #[arg(long, value_parser = duration::parse, default_value = "30s", value_name = "DURATION")]
    pub poll_interval: Duration,
    /// How long an agent may be missing, booting or reconnecting, before its machine is power-cycled
    #[arg(long, value_parser = duration::parse, default_value = "5m", value_name = "DURATION")]
    pub agent_wait: Duration,
    /// Store BMC passwords unsealed in Omni, for going back to the Go provider
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    pub bmc_passwords_in_clear: bool,
    /// Most octets of boot images to keep
    #[arg(long, default_value = "21474836480")]
    pub image_cache_size: u64,
    /// A public key that updates may be signed by, beside those built in: 64 hexadecimal digits; may be given again
    #[arg(long, value_name = "KEY")]
    pub update_key: Vec<String>,
    /// Directory in which `slot-a` and `slot-b` are the slots of the box's own disk
    #[arg(long, default_value = supervise::disk::NAMES)]
    pub update_disk_path: PathBuf,
    /// Directory that a stick is mounted at, for updates that it brings
    #[arg(long, default_value = crate::supervise::plugs::PATH)]
    pub update_stick_path: PathBuf,
}

/// Everything `pilotlight provider` and each service takes.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// The Go provider's.
    #[command(flatten)]
    pub go: GoFlags,
    /// Ours.
    #[command(flatten)]
    pub own: OwnFlags,
    /// Service account key made by `omnictl infraprovider create ID`, from the environment alone.
    #[arg(skip)]
    pub service_account_key: Option<Secret<String>>,
    /// HTTPS_PROXY and NO_PROXY.
    #[arg(skip)]
    pub proxy: Variables,
}
