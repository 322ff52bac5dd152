//! The clock against chrony, and against a web server's date. The machine's own clock is out of the service's reach here.

use super::site::{Site, write};
use crate::peers;

const RANGE: &str = "192.0.2.50,192.0.2.99,255.255.255.0,1h";

#[tokio::test]
async fn the_time_comes_from_the_server_that_dhcp_names() {
    let tools = peers::require("dnsmasq", "dnsmasq-base") && peers::require("chronyd", "chrony");
    let (true, Some(mut site)) = (tools, Site::open("ntp")) else { return };
    site.start_dnsmasq("192.0.2.1/24", RANGE, &["--dhcp-option=option:ntp-server,192.0.2.1"]);
    let pid = site.path("chronyd.pid");
    let text =
        format!("local stratum 3\nallow all\nbindaddress 192.0.2.1\ncmdport 0\nuser root\npidfile {}\n", pid.display());
    write(&site.path("chrony.conf"), &text);
    let mut chrony = site.command(&site.outside(), "chronyd");
    // -x: it leaves the machine's clock alone, too.
    chrony.args(["-d", "-x", "-f"]).arg(site.path("chrony.conf"));
    site.spawn("chronyd", chrony);
    site.start_net();
    let status = site.until("a known time", |status| status.clock.synchronised).await;
    assert!(status.clock.source.starts_with("1 of 1 time servers"), "{:?}", status.clock);
    // One machine, one clock; a busy one has the answer wait on one of its ways.
    assert!(status.clock.offset_ms.abs() < 500, "{:?}", status.clock);
    assert!(status.clock.source.contains("can't be set"), "without CAP_SYS_TIME: {:?}", status.clock);
}

#[tokio::test]
async fn without_time_servers_omnis_date_tells() {
    let tools = peers::require("dnsmasq", "dnsmasq-base") && peers::require("python3", "python3");
    let (true, Some(mut site)) = (tools, Site::open("date")) else { return };
    site.start_dnsmasq("192.0.2.1/24", RANGE, &["--dhcp-option=option:ntp-server,192.0.2.1"]);
    let mut web = site.command(&site.outside(), "python3");
    web.args(["-m", "http.server", "--bind", "192.0.2.1", "8099"]);
    site.spawn("web", web);
    site.start_net();
    let status = site.until("a known time", |status| status.clock.synchronised).await;
    assert_eq!(status.clock.source, "no time server answers; Omni's date agrees");
}
