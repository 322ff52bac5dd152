//! The real `init` with slot records in a file: a trial that ends well, one that does not, and wishes.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use nix::sys::signal::Signal;
use pilotlight::slots::device::{Device, load};
use pilotlight::slots::{Commit, Needs, Slot, Try, Version, partition};
use pilotlight::supervise::control::{Reply, Request};

use crate::init::{Program, Running, Setup, service, wait_until};
use crate::init_control::{ask, status};

/// The provider reaches Omni.
const REACHES: &str = r#"notify("X_PILOTLIGHT_REACHES=1") if $name eq "provider";"#;
/// It does not.
const LOST: &str = r#"notify("X_PILOTLIGHT_REACHES=0") if $name eq "provider";"#;

fn version(text: &str) -> Version {
    Version::parse(text).unwrap()
}

/// Slot A is committed, slot B on trial.
fn trial() -> Commit {
    let first = Commit::first(Some(version("1.0.0")));
    let versions = [Some(version("1.0.0")), Some(version("1.1.0"))];
    Commit { sequence: 5, pending: true, mark: Some(5), peer_good: false, needs: Needs::Omni, versions, ..first }
}

fn start(besides: &str, arguments: &[&str], commit: &Commit) -> Option<Running> {
    let script = service(besides);
    let setup = Setup { program: Program::Script(&script), flags: "", arguments, own_network: true, environment: &[] };
    let tries = Try { boots: 2, ..Try::first("0123456789abcdef".to_owned()) };
    let octets = partition(&commit.encode(), &tries.encode());
    Running::start(&setup, |the_box| fs::write(the_box.join("state"), octets).unwrap())
}

/// What stands in the file now.
fn standing(path: &Path) -> Commit {
    let records = load(&mut Device::open(path).unwrap());
    records.commit().unwrap().1.clone()
}

#[test]
fn a_system_that_is_well_is_committed() {
    let arguments = ["pilotlight.slot=b", "pilotlight.why=pending", "pilotlight.try=1", "pilotlight.trial=600,1"];
    let Some(running) = start(REACHES, &arguments, &trial()) else { return };
    running.wait_for_log("slot b proved itself and is committed");
    let socket = running.path("run/pilotlight/init.sock");
    let records = status(&socket).records.unwrap();
    assert_eq!((records.committed, records.pending, records.trial.as_str()), (Slot::B, None, ""));
    let commit = standing(&running.file("state"));
    assert_eq!((commit.slot, commit.pending, commit.peer_good, commit.sequence), (Slot::B, false, true, 6));
}

#[test]
fn a_system_that_does_not_reach_omni_gives_way() {
    let arguments = ["pilotlight.slot=b", "pilotlight.why=pending", "pilotlight.try=1", "pilotlight.trial=2,1"];
    let Some(mut running) = start(LOST, &arguments, &trial()) else { return };
    let ended = running.ended();
    // In a namespace a reboot shows as SIGHUP.
    assert_eq!(ended.signal(), Some(Signal::SIGHUP as i32), "{ended}\n{}", running.log().join("\n"));
    running
        .wait_for_log("slot b failed its trial and is given up: Omni, which the system before reached, is not reached");
    let commit = standing(&running.file("state"));
    assert_eq!((commit.slot, commit.pending, commit.peer_good), (Slot::A, false, false));
    assert!(commit.failed.contains(&version("1.1.0")));
}

#[test]
fn wishes_are_on_the_medium_when_they_are_answered() {
    let arguments = ["pilotlight.slot=a", "pilotlight.why=committed", "pilotlight.try=0"];
    let Some(mut running) = start(REACHES, &arguments, &Commit::first(Some(version("1.0.0")))) else { return };
    let socket = || running.path("run/pilotlight/init.sock");
    wait_until("init listens", || socket().exists());
    wait_until("all are ready", || status(&socket()).services.iter().all(|service| service.ready));
    let file = running.file("state");

    assert_eq!(ask(&socket(), Request::Recovery), Reply::Done);
    assert!(standing(&file).want_recovery);
    assert_eq!(ask(&socket(), Request::Normal), Reply::Done);
    assert!(!standing(&file).want_recovery);

    let of = |slot, text: &str, asked| Request::Try { slot, version: version(text), asked };
    assert!(matches!(ask(&socket(), of(Slot::A, "2.0.0", true)), Reply::Refused(_)), "it is committed and runs");
    assert!(matches!(ask(&socket(), of(Slot::B, "0.9.0", false)), Reply::Refused(_)), "it is older");
    let before = standing(&file);
    assert!(!before.pending);
    assert_eq!(ask(&socket(), of(Slot::B, "2.0.0", false)), Reply::Done);
    let after = standing(&file);
    assert_eq!((after.pending, after.mark, after.needs), (true, Some(after.sequence), Needs::Omni));
    assert_eq!(after.version(Slot::B), Some(&version("2.0.0")));
    assert_eq!(ask(&socket(), Request::Withdraw(Slot::B)), Reply::Done);
    assert!(!standing(&file).pending);

    assert_eq!(ask(&socket(), Request::FactoryReset), Reply::Accepted);
    assert!(standing(&file).reset);
    let ended = running.ended();
    assert_eq!(ended.signal(), Some(Signal::SIGHUP as i32), "{ended}\n{}", running.log().join("\n"));
}

#[test]
fn recovery_runs_what_a_person_needs() {
    let arguments = ["pilotlight.slot=recovery", "pilotlight.why=recovery", "pilotlight.try=0"];
    let Some(running) = start("", &arguments, &Commit::first(Some(version("1.0.0")))) else { return };
    let socket = || running.path("run/pilotlight/init.sock");
    wait_until("init listens", || socket().exists());
    wait_until("all are ready", || status(&socket()).services.iter().all(|service| service.ready));
    let status = status(&socket());
    assert!(status.recovery);
    let names: Vec<_> = status.services.iter().map(|service| service.name.as_str()).collect();
    assert!(["net", "store", "web"].iter().all(|name| names.contains(name)), "{names:?}");
    assert!(["provider", "dhcp", "tftp", "images"].iter().all(|name| !names.contains(name)), "{names:?}");
}
