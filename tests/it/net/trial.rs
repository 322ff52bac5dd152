//! A configuration that is tried, kept, and lost.

use pilotlight::net::config::{Interface, Match, Mode, Network, Role};
use pilotlight::net::trial::{Ending, Refused, Request};

use super::site::{MAC, Site, addresses, has};
use crate::peers;

const RANGE: &str = "192.0.2.50,192.0.2.99,255.255.255.0,1h";

fn fixed() -> Network {
    let interface = Interface {
        role: Role::Provisioning,
        mac: Match::Mac(MAC.parse().unwrap()),
        mode: Mode::Static,
        address: Some("198.51.100.7/24".parse().unwrap()),
        gateway: Some([198, 51, 100, 1].into()),
        dns: vec!["198.51.100.2".parse().unwrap()],
        ..Interface::default()
    };
    Network { interfaces: vec![interface], ntp: Vec::new() }
}

/// A box with a lease that tries a static address.
async fn trying(name: &str) -> Option<(Site, u64, String)> {
    let (true, Some(mut site)) = (peers::require("dnsmasq", "dnsmasq-base"), Site::open(name)) else { return None };
    site.start_dnsmasq("192.0.2.1/24", RANGE, &[]);
    site.start_net();
    let leased = addresses(&site.until("a lease", |status| has(status, "192.0.2.")).await)[0].clone();
    site.change(Request::Try(fixed())).await.unwrap();
    let gone =
        site.until("the new address alone", |status| has(status, "198.51.100.7/24") && !has(status, "192.0.2.")).await;
    let trial = gone.trial.unwrap().id;
    let shown = site.inside_ip(&["addr"]);
    assert!(shown.contains("198.51.100.7/24") && !shown.contains("192.0.2."), "{shown}");
    assert!(site.inside_ip(&["route"]).contains("default via 198.51.100.1 dev eth0 proto 91 metric 200"));
    Some((site, trial, leased))
}

#[tokio::test]
async fn what_is_confirmed_at_its_address_outlives_a_restart_and_can_be_taken_back() {
    let Some((mut site, trial, leased)) = trying("keep").await else { return };
    let at = |text: &str| Request::Confirm { trial, at: text.parse().unwrap() };
    let old = leased.replace("/24", "");
    assert_eq!(site.change(at(&old)).await, Err(Refused::Elsewhere(old.parse().unwrap())));
    site.change(at("198.51.100.7")).await.unwrap();
    site.kill("net");
    site.start_net();
    let status = site.until("the confirmed address", |status| has(status, "198.51.100.7/24")).await;
    assert_eq!((status.network, status.trial, status.ended), (fixed(), None, None));
    site.change(Request::Return).await.unwrap();
    site.until("the lease again", |status| has(status, &leased) && !has(status, "198.51.100.")).await;
}

#[tokio::test]
async fn a_power_cut_in_a_trial_leads_back() {
    let Some((mut site, _, leased)) = trying("cut").await else { return };
    site.kill("net");
    site.start_net();
    let status = site.until("the lease again", |status| has(status, &leased)).await;
    assert_eq!((status.network, status.ended), (Network::default(), Some(Ending::Interrupted)));
    site.see("the tried address is gone", |site| !site.inside_ip(&["addr"]).contains("198.51.100.7")).await;
}

#[tokio::test]
async fn what_nobody_confirms_returns_by_itself() {
    if std::env::var_os("PILOTLIGHT_SOAK").is_none() {
        return peers::say("skipped: takes a minute (PILOTLIGHT_SOAK=1)");
    }
    let Some((site, _, leased)) = trying("back").await else { return };
    let status = site.until("the lease again", |status| has(status, &leased)).await;
    assert_eq!((status.network, status.ended), (Network::default(), Some(Ending::Unconfirmed)));
}

#[tokio::test]
async fn a_configuration_with_faults_is_refused_whole() {
    let Some(mut site) = Site::open("faults") else { return };
    site.start_net();
    let mut network = fixed();
    network.interfaces[0].gateway = Some([10, 0, 0, 1].into());
    network.ntp.push("a b".to_owned());
    match site.change(Request::Try(network)).await {
        Err(Refused::Faults(faults)) => assert_eq!(faults.len(), 2, "{faults:?}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(site.status().await.network, Network::default());
}
