//! The box in its rack: from the image and a file on its `PILOTLIGHT` partition to a second machine that is ready, by nothing
//! but what a site has anyway.
//!
//! QEMU runs the box and the machine on one bridge, in the namespaces of [`crate::e2e`]: dnsmasq is the site's DHCP server,
//! `ipmi_sim` the machine's BMC, and our double is Omni and the image factory.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use pilotlight::proto::lab::report_request::Event;
use pilotlight::time::Uptime;

use super::idle::{MEASURED, SETTLED};
use super::meter;
use super::rack::{Bus, Firmware, Rack, Setup};
use super::soak;
use crate::e2e::machine::{Firmware as MachineFirmware, Machine};
use crate::e2e::omni::{OmniThread, PROVIDER_ID};
use crate::e2e::site::Site;
use crate::e2e::stage::{Stage, Timeline};
use crate::e2e::{self, initramfs};
use crate::peers;

/// The box's network port.
const MAC: &str = "52:54:00:aa:00:01";
const TAP: &str = "tap1";
/// How long all of it may take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(1800);

#[test]
fn a_flashed_box_makes_a_bios_machine_ready() {
    if soak() {
        play("box-bios", Firmware::Bios, MachineFirmware::SeaBios, true);
    }
}

#[test]
fn a_flashed_box_makes_a_uefi_machine_ready() {
    if soak() {
        play("box-uefi", Firmware::Uefi, MachineFirmware::Ovmf, false);
    }
}

/// With `idle`, what the box writes afterwards is measured, too.
fn play(name: &'static str, own: Firmware, machine: MachineFirmware, idle: bool) {
    if !e2e::ready()
        || ![("losetup", "mount"), ("mcopy", "mtools"), ("curl", "curl")].iter().all(|(t, p)| peers::require(t, p))
    {
        return;
    }
    let Some(rack) = Rack::new() else { return };
    let setup = Setup { firmware: own, bus: Bus::Nvme, memory: 512 };
    let timeline = Timeline { name, start: Uptime::now(), limit: LIMIT };
    let mut site = Site::open(name).unwrap();
    if let Err(error) = life(&mut site, &timeline, &rack, &setup, machine, idle) {
        timeline.say(&format!("FAILED: {error:#}"));
        let _ = fs::copy(rack.serial(), site.log("box"));
        site.print_logs();
        panic!("{name}: {error:#}");
    }
}

fn life(
    site: &mut Site,
    timeline: &Timeline,
    rack: &Rack,
    setup: &Setup,
    firmware: MachineFirmware,
    idle: bool,
) -> anyhow::Result<()> {
    let assets = site.directory.join("assets");
    // The machine boots from it much later.
    let building = std::thread::spawn({
        let assets = assets.clone();
        move || initramfs::build(&assets)
    });
    site.start_dnsmasq(false)?;
    site.add_tap(TAP)?;
    let omni = OmniThread::start(&site.rack(), &assets)?;
    let machine = Machine::install(site, firmware)?;
    timeline.say("the site is there");

    rack.flash()?;
    timeline.say("flashed");
    let key = omni.omni.service_account().key_string.reveal().to_owned();
    configure(rack, &omni, &key, firmware)?;
    let network = format!("tap,id=net,ifname={TAP},script=no,downscript=no");
    let _running = rack.power_on_in(site.in_rack("qemu-system-x86_64"), setup, &network, MAC);
    let mut stage = Stage { site, timeline, machine: &machine, omni: &omni.omni };
    let serial = rack.serial();
    stage.until("init runs", |_| Ok(said(&serial, "first boot")))?;
    stage.until_log("dnsmasq", "the box has a lease", &["DHCPACK", MAC])?;
    let address = leased(&stage.site.log("dnsmasq")).context("a lease has an address")?;
    stage.until("Omni has the provider's word that it is there", |stage| connected(stage.site, &address))?;
    stage.until("every service of the box serves", |stage| serve(stage.site, &address))?;

    building.join().map_err(|_| anyhow::anyhow!("the boot assets are not made"))??;
    machine.press_power(stage.site)?;
    let first = machine.pid().context("QEMU has ended by itself")?;
    timeline.say("power button of the machine");
    stage.until_log("dnsmasq", "DISCOVER", &["DHCPDISCOVER", machine.mac])?;
    stage.until_log("serial", "the agent's kernel runs", &["guest[", "Agent starts"])?;
    stage.until_omni("joined Omni, pending", |machine| machine.last_report == Some(Event::Agent))?;
    omni.omni.people().accept(machine.uuid)?;
    timeline.say("accepted by a person");
    stage.until_log("serial", "BMC user made in-band", &["guest[", "an administrator of the BMC"])?;
    stage.until_log("serial", "wipe done", &["guest[", "disk wiped"])?;
    ensure!(machine.disk_is_wiped(false)?, "the disk's bytes are not zero after the wipe");
    stage.until("powered off over IPMI: the BMC has ended the QEMU process", |stage| {
        Ok(stage.machine.power_changes().last() == Some(&format!("off {first}")))
    })?;
    stage.until_omni("Omni sees it ready and off", |machine| {
        machine.is_off() && machine.status.as_ref().is_some_and(|status| status.ready_to_use)
    })?;
    stage.until("the page says ready", |stage| {
        let status = api_status(stage.site, &address)?;
        Ok(status["machines"][0]["stage"] == "ready" && status["machines"][0]["id"] == stage.machine.uuid)
    })?;
    meter::slot();
    meter::memory(timeline.name, &api_status(stage.site, &address)?);
    if idle {
        rest(&mut stage, rack, &address)?;
    }
    let file = read(rack, "pilotlight.toml")?;
    ensure!(
        !file.contains(&key) && file.contains("[omni]"),
        "the file on the partition is not what it should be: {file}"
    );
    ensure!(!said(&serial, "DEGRADED"), "the box says that it is degraded");
    Ok(())
}

/// Measures what the box writes while it has nothing to do but to keep in touch with Omni.
fn rest(stage: &mut Stage<'_>, rack: &Rack, address: &str) -> anyhow::Result<()> {
    let uptime =
        |site: &Site| Ok::<_, anyhow::Error>(api_status(site, address)?["appliance"]["uptime"].as_u64().unwrap_or(0));
    let start = uptime(stage.site)?;
    stage.until("what followed is on the disk", |stage| Ok(uptime(stage.site)? >= start + SETTLED))?;
    let (from, before) = (uptime(stage.site)?, meter::disk(&rack.monitor())?);
    stage.until("it had nothing to do", |stage| Ok(uptime(stage.site)? >= from + MEASURED))?;
    let (to, after) = (uptime(stage.site)?, meter::disk(&rack.monitor())?);
    meter::memory(stage.timeline.name, &api_status(stage.site, address)?);
    meter::rest("idle, set up, one machine ready", &before, &after, to - from)
}

/// Puts a configuration where a person would, into the image's own partition.
fn configure(rack: &Rack, omni: &OmniThread, key: &str, firmware: MachineFirmware) -> anyhow::Result<()> {
    let (endpoint, factory) = (omni.omni.endpoint(), omni.omni.factory_url());
    let mode = if firmware == MachineFirmware::SeaBios { "bios" } else { "uefi" };
    let text = format!(
        "[omni]\nendpoint = \"{endpoint}\"\nkey = \"{key}\"\n\n[provider]\nid = \"{PROVIDER_ID}\"\n\
         image-factory-base-url = \"{factory}\"\nipmi-pxe-boot-mode = \"{mode}\"\nmin-reboot-interval = \"5s\"\n\
         poll-interval = \"5s\"\n"
    );
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), text)?;
    let status = mtools(rack, "mcopy").arg(file.path()).arg("::pilotlight.toml").status()?;
    ensure!(status.success(), "mcopy");
    Ok(())
}

/// A file of the `PILOTLIGHT` partition.
fn read(rack: &Rack, name: &str) -> anyhow::Result<String> {
    let output = mtools(rack, "mtype").arg(format!("::{name}")).output()?;
    ensure!(output.status.success(), "mtype {name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

fn mtools(rack: &Rack, tool: &str) -> Command {
    let mut command = Command::new(tool);
    command.arg("-i").arg(format!("{}@@{}", rack.disk().display(), rack.partition(7)));
    command
}

/// What the page tells programs; null while it does not answer.
fn api_status(site: &Site, address: &str) -> anyhow::Result<serde_json::Value> {
    let mut curl = site.in_rack("curl");
    let output = curl.args(["-s", "-m", "5", &format!("http://{address}/api/status")]).output()?;
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
}

fn connected(site: &Site, address: &str) -> anyhow::Result<bool> {
    Ok(api_status(site, address)?["omni"]["connected"] == true)
}

fn serve(site: &Site, address: &str) -> anyhow::Result<bool> {
    let status = api_status(site, address)?;
    let services = status["services"].as_array().map(Vec::as_slice).unwrap_or_default();
    Ok(!services.is_empty() && services.iter().all(|service| service["up"] == true))
}

/// The address that the box was given last.
fn leased(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let line = text.lines().rfind(|line| line.contains("DHCPACK") && line.contains(MAC))?;
    line.split_whitespace().find(|word| word.starts_with("10.99.")).map(str::to_owned)
}

fn said(log: &Path, text: &str) -> bool {
    String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).contains(text)
}
