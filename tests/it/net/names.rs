//! The name on the link against avahi.

use super::site::{CABLE, Site, addresses, has, write};
use crate::peers;

/// A message bus of avahi's own, which lets everyone do everything.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>unix:path=BUS</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/><allow user="*"/></policy></busconfig>"#;

/// Starts avahi under the name `host`; `None` where it can't be had.
fn start_avahi(name: &str, host: &str) -> Option<Site> {
    let tools = peers::require("avahi-daemon", "avahi-daemon")
        && peers::require("avahi-resolve", "avahi-utils")
        && peers::require("dbus-daemon", "dbus");
    let mut site = tools.then(|| Site::open(name)).flatten()?;
    site.outside_ip(&["addr", "add", "169.254.0.9/16", "dev", CABLE]);
    write(&site.path("bus.conf"), &BUS.replace("BUS", &site.path("bus").display().to_string()));
    let mut bus = site.command(&site.outside(), "dbus-daemon");
    bus.arg("--nofork").arg(format!("--config-file={}", site.path("bus.conf").display()));
    site.spawn("bus", bus);
    write(&site.path("avahi.conf"), &format!("[server]\nhost-name={host}\nuse-ipv6=no\nallow-interfaces={CABLE}\n"));
    // `ip netns exec` gives it a mount namespace: its files are apart from those of an avahi of the machine's.
    let script = format!(
        "mkdir -p /run/avahi-daemon; mount -t tmpfs none /run/avahi-daemon; while [ ! -S {} ]; do :; done; \
         exec avahi-daemon --no-drop-root --no-chroot --no-rlimits --debug -f {}",
        site.path("bus").display(),
        site.path("avahi.conf").display(),
    );
    let mut avahi = site.command(&site.outside(), "sh");
    avahi.args(["-c", &script]).env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", site.path("bus").display()));
    site.spawn("avahi", avahi);
    Some(site)
}

/// What `avahi-resolve` says.
fn resolve(site: &Site, arguments: &[&str]) -> String {
    let mut command = site.command(&site.outside(), "avahi-resolve");
    command.args(arguments).env("DBUS_SYSTEM_BUS_ADDRESS", format!("unix:path={}", site.path("bus").display()));
    String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
}

#[tokio::test]
async fn the_box_is_found_by_name_and_by_address() {
    let Some(mut site) = start_avahi("name", "other") else { return };
    site.start_net();
    let status = site.until("a link-local address", |status| has(status, "169.254.")).await;
    let address = addresses(&status)[0].replace("/16", "");
    let by_name = |site: &Site| resolve(site, &["-4", "-n", "pilotlight-abcdef.local"]);
    site.see("the address of the name", |site| by_name(site).contains(&address)).await;
    site.see("the name of the address", |site| resolve(site, &["-a", &address]).contains("pilotlight-abcdef.local"))
        .await;
}

#[tokio::test]
async fn a_name_that_is_taken_gets_a_number() {
    let Some(mut site) = start_avahi("clash", "pilotlight-abcdef") else { return };
    site.see("avahi has the name", |site| {
        site.log("avahi").contains("pilotlight-abcdef.local. Local service cookie")
            || site.log("avahi").contains("Server startup complete")
    })
    .await;
    site.start_net();
    let status = site.until("a link-local address", |status| has(status, "169.254.")).await;
    let address = addresses(&status)[0].replace("/16", "");
    let second = |site: &Site| resolve(site, &["-4", "-n", "pilotlight-abcdef-2.local"]);
    site.see("the other name", |site| second(site).contains(&address)).await;
}
