//! The whole, end to end: real firmware, a real kernel, a real disk and a real BMC, with the product binary between them.
//!
//! In namespaces of its own: dnsmasq is the site's DHCP server, QEMU the machine, OpenIPMI's `ipmi_sim` its BMC, whose chassis
//! control starts and kills QEMU. Only Omni is our double, and the programs inside the guest are ours, on Debian's kernel.
//! On the way the provider of the OVMF machine is killed in the middle of the wipe: started again, it finishes what it began.

pub mod initramfs;
pub mod machine;
pub mod omni;
pub mod site;
pub mod stage;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use pilotlight::lab::omni::lifecycle::Allocation;
use pilotlight::proto::lab::report_request::Event;
use pilotlight::time::Uptime;

use crate::peers::require;
use machine::{Firmware, Machine};
use omni::{OmniThread, PROVIDER_ID};
use site::{BRIDGE, PROVIDER, Site};
use stage::{Stage, Timeline};

/// How long one machine's way may take. Both at once on two cores take a minute and a half.
const LIMIT: Duration = Duration::from_secs(480);
const TOOLS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("dnsmasq", "dnsmasq-base"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("ipmi_sim", "openipmi"),
    ("ipmitool", "ipmitool"),
    ("busybox", "busybox-static"),
    ("modprobe", "kmod"),
    ("cpio", "cpio"),
    ("xz", "xz-utils"),
];

#[test]
fn a_seabios_machine_goes_from_discover_to_wiped_and_off_and_comes_back_for_talos() {
    play("bios", Firmware::SeaBios, false);
}

#[test]
fn an_ovmf_machine_goes_from_discover_to_wiped_and_off_and_comes_back_for_talos() {
    play("uefi", Firmware::Ovmf, true);
}

fn play(name: &'static str, firmware: Firmware, with_zeroes: bool) {
    if !ready() {
        return;
    }
    let mut site = Site::open(name).unwrap();
    let timeline = Timeline { name, start: Uptime::now(), limit: LIMIT };
    if let Err(error) = life(&mut site, &timeline, firmware, with_zeroes) {
        timeline.say(&format!("FAILED: {error:#}"));
        site.print_logs();
        panic!("{name}: {error:#}");
    }
}

/// Whether everything is there that this needs.
pub fn ready() -> bool {
    let required = std::env::var_os("PILOTLIGHT_REQUIRE_PEERS").is_some_and(|value| value == "1");
    let lacks = |what: &str, package: &str| {
        assert!(!required, "{what} is required ({package})");
        crate::peers::say(&format!("skipped: {what} is missing ({package})"));
        false
    };
    if !nix::unistd::geteuid().is_root() {
        return lacks("root, for network namespaces", "run as root");
    }
    if !TOOLS.iter().all(|(tool, package)| require(tool, package)) {
        return false;
    }
    let file = machine::FILES.iter().find(|(path, _)| !machine::present(path));
    match (file, initramfs::kernel()) {
        (Some((path, package)), _) => lacks(path, &format!("apt-get install {package}")),
        (None, None) => lacks("a kernel in /boot", "apt-get install linux-image-amd64"),
        (None, Some(_)) => true,
    }
}

/// One machine's way, step by step.
fn life(site: &mut Site, timeline: &Timeline, firmware: Firmware, with_zeroes: bool) -> anyhow::Result<()> {
    let assets = site.directory.join("assets");
    initramfs::build(&assets)?;
    let size = std::fs::metadata(assets.join("initramfs-metal-amd64.xz"))?.len();
    timeline.say(&format!("boot assets built, initramfs of {} KiB", size >> 10));
    // One site has an IPv6 router, the other has never heard of it.
    site.start_dnsmasq(firmware == Firmware::Ovmf)?;
    let omni = OmniThread::start(&site.rack(), &assets)?;
    let machine = Machine::install(site, firmware)?;
    start_provider(site, "provider", &omni, &assets, firmware, with_zeroes)?;
    let uuid = machine.uuid;
    let mut stage = Stage { site, timeline, machine: &machine, omni: &omni.omni };
    stage.until_log("provider", "the provider is registered", &["registered with Omni"])?;

    machine.press_power(stage.site)?;
    stage.timeline.say(&format!("power button: QEMU is process {:?}", machine.pid()));
    stage.until_log("dnsmasq", "DISCOVER", &["DHCPDISCOVER", machine.mac])?;
    stage.until_log("provider", "boot file offered", &["DHCP answered", machine.mac])?;
    if firmware == Firmware::Ovmf {
        stage.until_log("serial", "the firmware itself fetched it over TFTP", &["NBP file downloaded successfully"])?;
    }
    stage.until_log("provider", "boot script served", &["boot answered", uuid, "boots the agent"])?;
    stage.until_log("serial", "the agent's kernel runs", &["guest[", "Agent starts"])?;
    stage.until_omni("joined Omni, pending", |machine| machine.last_report == Some(Event::Agent))?;
    stage.until_log("provider", "tunnel", &["agent connected", uuid])?;
    ensure!(machine.disk_is_untouched()?, "the disk was written to before anybody accepted the machine");
    ensure!(machine::refuses_strangers(stage.site, &machine)?, "the BMC lets strangers in");
    let first = machine.pid().context("QEMU has ended by itself")?;

    omni.omni.people().accept(uuid)?;
    stage.timeline.say("accepted by a person");
    stage.until_log("serial", "BMC user made in-band", &["guest[", "an administrator of the BMC"])?;
    stage.until_log("serial", "wipe ordered", &["guest[", &format!("agent wipes the disk, zeroes: {with_zeroes}")])?;
    let mut provider = "provider";
    if firmware == Firmware::Ovmf {
        stage.site.kill(provider)?;
        stage.timeline.say("the provider is killed in the middle of the wipe, and started again");
        provider = "provider-again";
        start_provider(stage.site, provider, &omni, &assets, firmware, with_zeroes)?;
        stage.until_log(provider, "tunnel", &["agent connected", uuid])?;
    }
    stage.until_log("serial", "wipe done", &["guest[", "disk wiped"])?;
    ensure!(machine.disk_is_wiped(with_zeroes)?, "the disk's bytes are not zero after the wipe");
    stage.timeline.say(match with_zeroes {
        true => "wiped disk checked: every octet is zero",
        false => "wiped disk checked: the first and the last MiB are zero",
    });
    stage.until_log(provider, "power-off", &["done", uuid, "powered off"])?;
    stage.until("powered off over IPMI: the QEMU process is gone", |stage| Ok(stage.machine.pid().is_none()))?;
    ensure!(machine.power_changes().last() == Some(&format!("off {first}")), "QEMU ended by itself");
    stage.until_omni("Omni sees it ready and off", |machine| {
        machine.is_off() && machine.status.as_ref().is_some_and(|status| status.ready_to_use)
    })?;

    let allocation = Allocation {
        cluster: "e2e".into(),
        machine_set: "e2e-control-planes".into(),
        control_plane: true,
        talos_version: "1.13.7".into(),
        extensions: Vec::new(),
    };
    omni.omni.people().allocate(uuid, allocation)?;
    stage.timeline.say("allocated to a cluster");
    stage.until("powered on over IPMI: a new QEMU process", |stage| {
        Ok(stage.machine.pid().is_some_and(|second| second != first))
    })?;
    ensure!(machine.was_told_to_boot_from_network(), "nobody set the boot device");
    stage.until_log(provider, "boot script served", &["boot answered", uuid, "boots Talos"])?;
    stage.until_log("serial", "Talos' kernel runs, from the network", &["guest[", "TalosNet starts"])?;
    // The order to install follows at once, so that maintenance itself may be over when it is looked for.
    stage.until_log("serial", "Talos reported maintenance", &["guest[", "reported MAINTENANCE"])?;
    stage.until_omni("installed", |machine| machine.install_event_id > 0)?;
    let mark = machine.disk_mark()?;
    ensure!(mark.starts_with("PILOTLIGHT-LAB-TALOS"), "the disk begins with {mark:?}");
    stage.until_log(
        provider,
        "sent to its disk when it boots from the network again",
        &["boot answered", uuid, "boots its disk"],
    )?;
    ensure!(machine.power_changes().len() == 3, "power changed more often: {:?}", machine.power_changes());
    stage.timeline.say("done");
    Ok(())
}

/// The product, with the flags that a user of the Go provider has.
fn start_provider(
    site: &mut Site,
    name: &str,
    omni: &OmniThread,
    assets: &Path,
    firmware: Firmware,
    with_zeroes: bool,
) -> anyhow::Result<()> {
    let mut provider = site.in_rack(env!("CARGO_BIN_EXE_pilotlight"));
    provider.arg("provider").env("OMNI_SERVICE_ACCOUNT_KEY", omni.omni.service_account().key_string.reveal());
    provider.args(["--id", PROVIDER_ID, "--omni-api-endpoint", &omni.omni.endpoint()]);
    provider.args(["--image-factory-base-url", &omni.omni.factory_url()]);
    provider.args(["--api-advertise-address", PROVIDER, "--dhcp-proxy-iface-or-ip", BRIDGE]);
    provider.arg("--use-local-boot-assets").arg("--boot-assets-path").arg(assets);
    provider.arg("--state-dir").arg(site.directory.join("state"));
    provider.args(["--min-reboot-interval", "5s", "--poll-interval", "5s"]);
    provider.args(["--ipmi-pxe-boot-mode", if firmware == Firmware::SeaBios { "bios" } else { "uefi" }]);
    provider.arg(format!("--wipe-with-zeroes={with_zeroes}"));
    site.spawn(name, provider)
}
