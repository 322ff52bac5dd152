//! The DHCP client against dnsmasq.

use super::site::{CABLE, Site, addresses, has};
use crate::peers;

const RANGE: &str = "192.0.2.50,192.0.2.99,255.255.255.0,1h";

#[tokio::test]
async fn a_box_gets_everything_from_a_server_and_link_local_besides() {
    let (true, Some(mut site)) = (peers::require("dnsmasq", "dnsmasq-base"), Site::open("dhcp")) else { return };
    site.start_dnsmasq(
        "192.0.2.1/24",
        RANGE,
        &[
            "--dhcp-option=option:router,192.0.2.254",
            "--dhcp-option=option:dns-server,192.0.2.2,192.0.2.3",
            "--dhcp-option=option:domain-name,rack.example",
            "--dhcp-option=option:ntp-server,192.0.2.4",
            "--dhcp-option=option:classless-static-route,0.0.0.0/0,192.0.2.253,10.7.0.0/16,192.0.2.252",
            "--dhcp-option=option:mtu,1400",
        ],
    );
    site.start_net();
    let status =
        site.until("an address of each kind", |status| has(status, "192.0.2.") && has(status, "169.254.")).await;
    assert_eq!(status.hostname, "pilotlight-abcdef");
    assert_eq!(status.links.len(), 1);
    assert_eq!(status.links[0].gateway, Some([192, 0, 2, 253].into()), "option 121 rules");
    assert_eq!((status.trouble, status.dns.len()), (vec![], 2));
    let shown = site.inside_ip(&["addr", "show", "dev", "eth0"]);
    for address in addresses(&site.status().await) {
        assert!(shown.contains(&format!("inet {address}")), "{address}: {shown}");
    }
    assert!(shown.contains("scope link") && shown.contains("mtu 1400"), "{shown}");
    let routes = site.inside_ip(&["route", "show"]);
    assert!(routes.contains("default via 192.0.2.253") && routes.contains("10.7.0.0/16 via 192.0.2.252"), "{routes}");
    let resolv = std::fs::read_to_string(site.path("run/net/resolv.conf")).unwrap();
    assert!(resolv.starts_with("search rack.example\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n"), "{resolv}");
    let log = site.log("dnsmasq");
    assert!(log.contains("pilotlight-abcdef"), "{log}");
}

#[tokio::test]
async fn a_box_that_starts_again_asks_for_its_address_and_keeps_it() {
    let (true, Some(mut site)) = (peers::require("dnsmasq", "dnsmasq-base"), Site::open("init")) else { return };
    site.start_dnsmasq("192.0.2.1/24", RANGE, &[]);
    site.start_net();
    let before = addresses(&site.until("a lease", |status| has(status, "192.0.2.")).await)[0].clone();
    site.kill("net");
    assert!(site.inside_ip(&["addr"]).contains(&before), "addresses outlive the service");
    let discovers = |site: &Site| site.log("dnsmasq").matches("DHCPDISCOVER").count();
    // One, or more where a busy machine kept the first answer waiting.
    let asked = discovers(&site);
    assert!(asked >= 1);
    site.start_net();
    let after = addresses(&site.until("the lease again", |status| has(status, "192.0.2.")).await)[0].clone();
    assert_eq!((before.as_str(), discovers(&site)), (after.as_str(), asked), "INIT-REBOOT");
}

#[tokio::test]
async fn a_server_that_knows_another_network_moves_the_box() {
    let (true, Some(mut site)) = (peers::require("dnsmasq", "dnsmasq-base"), Site::open("nak")) else { return };
    site.start_dnsmasq("192.0.2.1/24", RANGE, &[]);
    site.start_net();
    site.until("a lease", |status| has(status, "192.0.2.")).await;
    // Replugged into another network.
    site.kill("dnsmasq");
    site.outside_ip(&["addr", "flush", "dev", CABLE]);
    site.outside_ip(&["link", "set", CABLE, "down"]);
    site.until("no carrier", |status| !status.links[0].carrier).await;
    site.outside_ip(&["link", "set", CABLE, "up"]);
    site.start_dnsmasq("198.51.100.1/24", "198.51.100.50,198.51.100.99,255.255.255.0,1h", &[]);
    site.until("a lease of the other network", |status| has(status, "198.51.100.") && !has(status, "192.0.2.")).await;
    assert!(site.log("dnsmasq").contains("DHCPNAK"), "{}", site.logs());
}

#[tokio::test]
async fn a_lease_is_renewed_by_unicast() {
    let (true, Some(mut site)) = (peers::require("dnsmasq", "dnsmasq-base"), Site::open("renew")) else { return };
    let times = ["--dhcp-option=option:T1,5", "--dhcp-option=option:T2,100"];
    site.start_dnsmasq("192.0.2.1/24", "192.0.2.50,192.0.2.99,255.255.255.0,2m", &times);
    site.start_net();
    site.until("a lease", |status| has(status, "192.0.2.")).await;
    site.see("a second acknowledgement", |site| site.log("dnsmasq").matches("DHCPACK").count() >= 2).await;
    assert!(has(&site.status().await, "192.0.2."));
}

#[tokio::test]
async fn an_address_that_another_station_has_is_declined() {
    let (true, Some(mut site)) = (peers::require("dnsmasq", "dnsmasq-base"), Site::open("taken")) else { return };
    // The site has it as well, where its DHCP server does not look.
    site.outside_ip(&["addr", "add", "192.0.2.50/32", "dev", "lo"]);
    let only = ["--dhcp-host=52:54:00:ab:cd:ef,192.0.2.50"];
    site.start_dnsmasq("192.0.2.1/24", RANGE, &only);
    site.start_net();
    site.see("a decline", |site| site.log("dnsmasq").contains("DHCPDECLINE")).await;
    assert!(!has(&site.status().await, "192.0.2.50/"), "{}", site.logs());
}

#[tokio::test]
async fn without_a_server_the_box_is_reachable_at_its_link_local_address() {
    let Some(mut site) = Site::open("local") else { return };
    site.outside_ip(&["addr", "add", "169.254.0.9/16", "dev", CABLE]);
    site.start_net();
    let status = site.until("a link-local address", |status| has(status, "169.254.")).await;
    let address = addresses(&status)[0].replace("/16", "");
    site.see("an answer", |site| {
        let asked = site
            .command(&site.outside(), "bash")
            .args(["-c", &format!("exec 3<>/dev/tcp/{address}/9")])
            .output()
            .unwrap();
        String::from_utf8_lossy(&asked.stderr).contains("refused")
    })
    .await;
    assert!(status.links[0].detail.contains("looking for a DHCP server"), "{status:#?}");
}
