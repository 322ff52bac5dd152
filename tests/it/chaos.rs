//! The lab in a storm: every fault at random, the provider killed among them, and every machine right in the end.

use std::process::Command;

use pilotlight::lab::PROVIDER_ID;
use pilotlight::lab::omni::controller::join_token_usages;
use pilotlight::lab::omni::script::{Plan, Step};
use pilotlight::lab::omni::token;
use pilotlight::proto::specs::{JoinTokenUsageSpec, ProviderJoinConfigSpec};
use pilotlight::resource::Kind;

use crate::site::{LOOK, Site};

#[test]
fn five_machines_live_through_a_storm() {
    let lab = Command::new(env!("CARGO_BIN_EXE_pilotlight"))
        .args(["lab", "--machines", "5", "--once", "--chaos", "11", "--timeout", "45s"])
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&lab.stdout);
    assert!(lab.status.success(), "{told}\n{}", String::from_utf8_lossy(&lab.stderr));
    assert!(told.contains("chaos with seed 11") && told.contains(" faults: "), "{told}");
    assert!(told.contains("5 machines in "), "{told}");
}

/// The join token of the day.
fn current(site: &Site) -> String {
    let config = site.omni.state().get(&Kind::omni("ProviderJoinConfigs"), PROVIDER_ID).unwrap();
    token::for_provider(&config.decode::<ProviderJoinConfigSpec>().unwrap().join_token, PROVIDER_ID)
}

/// The token that a machine showed when it joined last; `None` before.
fn shown(site: &Site, machine: usize) -> Option<String> {
    let usage = site.omni.state().get(&join_token_usages(), &site.rack.ids()[machine]).ok()?;
    Some(usage.decode::<JoinTokenUsageSpec>().unwrap().token_id)
}

/// Gives the provider another secret, and waits until its config has the token; a machine asks for it in vain no more.
async fn rotate(site: &Site, asked_by: usize) -> String {
    site.omni.rotate_join_token().unwrap();
    let token = current(site);
    let machine = site.rack.machines().nth(asked_by).unwrap();
    let request = format!("GET /config?u={} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", machine.id());
    let looks = async {
        while !site.http_from(machine.spec().address, &request).await.contains(&token::query_escape(&token)) {
            tokio::time::sleep(LOOK).await;
        }
    };
    tokio::time::timeout(crate::site::PATIENCE, looks).await.expect("the provider takes the new token");
    token
}

#[tokio::test]
async fn a_rotated_join_token_is_used_by_the_next_boot_and_costs_no_machine_its_life() {
    let site = Site::start(2).await;
    site.omni.direct(Plan { fleet: site.rack.ids(), ..Plan::default() });
    let first = current(&site);
    let machines: Vec<_> = site.rack.machines().collect();
    machines[0].power_on();
    site.see("the first machine joined", |site| shown(site, 0).is_some()).await;
    assert_eq!(shown(&site, 0), Some(first.clone()));

    // The provider was not restarted: what boots now has the new token.
    let second = rotate(&site, 0).await;
    machines[1].power_on();
    site.see("the second machine joined", |site| shown(site, 1).is_some()).await;
    assert_eq!(shown(&site, 1), Some(second.clone()));

    // A machine that is installed holds the token that it was installed with, and its unique token lets it in.
    site.see("the first machine is installed", |site| site.step(0) >= Step::PoweringOff).await;
    let third = rotate(&site, 0).await;
    site.done().await;
    assert!(first != second && second != third);
    assert_eq!(site.rack.machines().map(|machine| machine.counts().installs).sum::<u64>(), 2);
}
