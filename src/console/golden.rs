//! Screens as text: each file of `tests/golden/console` is what a person sees. With `PILOTLIGHT_BLESS=1` they are written
//! anew.

use std::path::PathBuf;

use super::dialogue::{Request, State};
use super::keys::Keyboard;
use super::screen::{Size, draw};
use super::serial::Serial;
use super::view::{Machine, Provider, Setup, View};
use crate::net::config::Role;
use crate::net::mac::Mac;
use crate::net::port::Source;
use crate::net::status::{AddressStatus, ClockStatus, LinkStatus, NetworkStatus, TrialStatus};
use crate::secret::Secret;
use crate::slots;
use crate::status::{Link, Stage};
use crate::supervise::cmdline::Slot;
use crate::supervise::control::{ServiceStatus, SlotRecords, Status};
use crate::supervise::install::{Bus, Disk, Job, Phase, Progress};

/// A box that is well.
pub(super) fn well() -> View {
    let service =
        |name: &str| ServiceStatus { name: name.into(), ready: true, uptime: 700, ..ServiceStatus::default() };
    let link = |name: &str, last: u8, carrier: bool| LinkStatus {
        name: name.into(),
        mac: Mac([0x52, 0x54, 0, 0, 0, last]),
        driver: "igc".into(),
        carrier,
        mtu: 1500,
        role: Some(Role::Uplink),
        addresses: Vec::new(),
        gateway: None,
        dns: Vec::new(),
        detail: String::new(),
    };
    let address = |text: &str, source| AddressStatus { address: text.parse().unwrap(), source };
    let first = LinkStatus {
        addresses: vec![address("169.254.7.9/16", Source::LinkLocal), address("192.168.100.100/24", Source::Dhcp)],
        ..link("eno1", 1, true)
    };
    View {
        version: "0.1.0".into(),
        port: 80,
        init: Some(Status {
            uptime: 732,
            slot: Slot { name: "a".into(), why: "committed".into(), attempt: Some(0) },
            previous: "the run before ended after 86400 s by reboot, asked by user 907".into(),
            in_a_row: (0, 3),
            watchdog: Some(60),
            faults: Vec::new(),
            services: vec![service("net"), service("web")],
            ..Status::default()
        }),
        network: Some(NetworkStatus {
            hostname: "pilotlight-000001".into(),
            links: vec![first, link("eno2", 2, false)],
            clock: ClockStatus { synchronised: true, source: "pool.ntp.org".into(), ..ClockStatus::default() },
            ..NetworkStatus::default()
        }),
        provider: Some(Provider {
            omni: Link { endpoint: "https://example.omni.siderolabs.io".into(), connected: true, ..Link::default() },
            machines: [Stage::Ready, Stage::Ready, Stage::Installed].map(|stage| Machine { stage }).into(),
        }),
        setup: Setup::Code(Secret::new("4821-9930".to_owned())),
        certificate: None,
    }
}

/// Types `octets`, with nobody who answers; returns where that leads and what was asked for.
pub(super) fn typed(mut state: State, octets: &[u8], view: &View) -> (State, Vec<Request>) {
    let (mut keyboard, mut requests) = (Keyboard::default(), Vec::new());
    for octet in octets {
        if let Some(key) = keyboard.on(*octet) {
            let step = state.on(key, view);
            requests.extend(step.request);
            state = step.state;
        }
    }
    (state, requests)
}

/// A box with three other disks, two of which will do.
pub(super) fn with_disks() -> View {
    let disk = |name: &str, model: &str, bus, octets, holds: &str, unfit: Option<&str>| Disk {
        name: name.into(),
        model: model.into(),
        bus,
        octets,
        holds: holds.into(),
        unfit: unfit.map(str::to_owned),
    };
    let mut view = well();
    view.init.as_mut().unwrap().installation.disks = vec![
        disk("sda", "", Bus::Usb, 256_060_514_304, "nothing: it begins blank", Some("it is write-protected")),
        disk("sdb", "Disk 3000", Bus::Sata, 256_060_514_304, "a partition table with 2 partitions: EFI System", None),
    ];
    view
}

fn compare(name: &str, found: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/console").join(format!("{name}.txt"));
    if std::env::var_os("PILOTLIGHT_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == found, "{} is not what a person sees:\n{found}", path.display());
}

/// Nobody is connected, much is broken.
fn ill() -> View {
    let mut view = well();
    let init = view.init.as_mut().unwrap();
    init.slot = Slot { name: "recovery".into(), why: "recovery".into(), attempt: None };
    init.records = Some(SlotRecords {
        committed: slots::Slot::A,
        pending: None,
        versions: [None, None],
        failed: vec![slots::Version::parse("0.2.0").unwrap(), slots::Version::parse("0.2.1").unwrap()],
        want_recovery: false,
        trial: "slot a is on trial: the page is not there yet".into(),
    });
    init.in_a_row = (2, 3);
    init.faults = vec!["no hardware watchdog yet: No such file or directory".into()];
    let web = &mut init.services[1];
    (web.ready, web.degraded, web.restarts, web.last_exit) = (false, true, 7, "signal 9".into());
    let network = view.network.as_mut().unwrap();
    network.links[0].carrier = false;
    network.links[0].addresses.clear();
    network.clock = ClockStatus { source: "no server answers".into(), ..ClockStatus::default() };
    network.trouble = vec!["eno1: \u{1b}[31mred".into()];
    view.provider = None;
    view.setup = Setup::Unknown;
    view
}

#[test]
fn the_overview_on_a_vga_screen() {
    compare("overview", &draw(&well(), &State::Overview, Size::default()).text());
    let fingerprint = (0..32).map(|octet| format!("{:02X}", octet * 7)).collect::<Vec<_>>().join(":");
    let encrypted = View { certificate: Some(fingerprint), ..well() };
    compare("overview_encrypted", &draw(&encrypted, &State::Overview, Size::default()).text());
    compare("overview_ill", &draw(&ill(), &State::Overview, Size::default()).text());
    compare("overview_blind", &draw(&View::default(), &State::Overview, Size::default()).text());
    compare("overview_small", &draw(&well(), &State::Overview, Size { columns: 50, lines: 14 }).text());
}

#[test]
fn the_forms_on_a_vga_screen() {
    let mut view = well();
    let shown =
        |view: &View, octets: &[u8]| draw(view, &typed(State::Overview, octets, view).0, Size::default()).text();
    compare("network", &shown(&view, b"n \r \r192.0.2.10/24\r192.0.2"));
    compare("network_faults", &shown(&view, b"n\r \r192.0.2.10\r192.0.2\r\r\r\r\r"));
    compare("factory_reset", &shown(&view, b"fyes\rera"));
    let (state, requests) = typed(State::Overview, b"n\r\r\r\r\r\r", &view);
    let Some(Request::Try(network)) = requests.first() else { panic!("{requests:?}") };
    view.network.as_mut().unwrap().trial = Some(TrialStatus { id: 7, seconds: 42 });
    view.network.as_mut().unwrap().network = network.clone();
    let state = state.answered(Ok(())).observed(&view);
    compare("trial", &draw(&view, &state, Size::default()).text());
    // Nobody keeps it.
    view.network.as_mut().unwrap().trial = None;
    compare("trial_over", &draw(&view, &state.observed(&view), Size::default()).text());
}

#[test]
fn an_installation_on_a_vga_screen() {
    let mut view = with_disks();
    let (state, requests) = typed(State::Overview, b"iyes\r", &view);
    assert_eq!(requests, [Request::Survey]);
    let state = state.answered(Ok(()));
    for (octets, fault) in [(&b"sda\r"[..], "write-protected"), (b"sdc\r", "no disk"), (b"\r", "no disk")] {
        let (refused, requests) = typed(state.clone(), octets, &view);
        assert!(requests.is_empty());
        assert!(refused.dialogue(&view).unwrap().faults[0].contains(fault));
    }
    compare("install", &draw(&view, &typed(state.clone(), b"sd", &view).0, Size::default()).text());
    let (state, requests) = typed(state, b"sdb\r", &view);
    assert_eq!(requests, [Request::Install("sdb".into(), 256_060_514_304)]);
    let progress = Progress { written: 100, verified: 20, total: 300 };
    let mut job = Job { disk: view.init.as_ref().unwrap().installation.disks[1].to_string(), phase: Phase::Done };
    let State::Overview = typed(state.answered(Ok(())), b"x", &view).0 else { panic!() };
    let mut all = String::new();
    for phase in [Phase::Running(progress), Phase::Done, Phase::Failed("the disk does not take it".into())] {
        job.phase = phase;
        view.init.as_mut().unwrap().installation.job = Some(job.clone());
        all.push_str(&draw(&view, &State::Overview, Size::default()).text());
    }
    compare("installing", &all);
}

#[test]
fn a_session_on_a_serial_line() {
    let (mut view, mut serial, mut state, mut keyboard) =
        (well(), Serial::default(), State::Overview, Keyboard::default());
    let mut all = serial.update(&view, &state, false);
    let mut type_in = |octets: &[u8], view: &View| {
        let mut told = String::new();
        for octet in octets {
            if let Some(key) = keyboard.on(*octet) {
                let step = state.clone().on(key, view);
                state = step.state;
                told.push_str(&serial.update(view, &state, step.redraw));
            }
        }
        if let State::Waiting(_) = state {
            state = state.clone().answered(Ok(()));
        }
        told.push_str(&serial.update(view, &state, false));
        told
    };
    all.push_str(&type_in(b"n \r \r192.0.2.10/24x\x7f\r\r\r\r\r\r", &view));
    view.network.as_mut().unwrap().trial = Some(TrialStatus { id: 7, seconds: 60 });
    all.push_str(&type_in(b"k", &view));
    view.network.as_mut().unwrap().trial = None;
    view.network.as_mut().unwrap().links[1].carrier = true;
    all.push_str(&type_in(b"x", &view));
    all.push_str(&type_in(b"fno\rerase\r", &view));
    // What stands after the last carriage return of a line is what a terminal shows.
    let shown =
        |line: &str| line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default().trim_end().to_owned() + "\n";
    compare("serial", &all.split('\n').map(shown).collect::<String>());
}
