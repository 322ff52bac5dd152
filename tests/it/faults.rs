//! Bad input, bad keys, a wrong clock and an Omni that is away, against the product's binary: a clear error with the
//! object in it, a counter, nothing lost, no crash, and work goes on when the cause is gone.

use std::time::Duration;

use pilotlight::lab::PROVIDER_ID;
use pilotlight::lab::omni::account::ServiceAccount;
use pilotlight::lab::omni::lifecycle::OmniMachine;
use pilotlight::lab::omni::script::Step;
use pilotlight::machine::PowerState;
use pilotlight::omni::provider::{health_status_kind, provider_status_kind};
use pilotlight::proto::specs::InfraProviderHealthStatusSpec;
use pilotlight::resource::Kind;
use pilotlight::secret::Secret;
use pilotlight::status::{Snapshot, Stage};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tonic::Code;

use crate::site::{Site, counter};
use crate::tunnel::{Raw, settings, whole};

/// Octets that look like nothing, the same in each run.
fn garbage(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn discover(mac: [u8; 6]) -> Vec<u8> {
    let mut packet = vec![0; 240];
    packet[..4].copy_from_slice(&[1, 1, 6, 0]);
    packet[28..34].copy_from_slice(&mac);
    packet[236..240].copy_from_slice(&[99, 130, 83, 99]);
    packet.extend_from_slice(&[53, 1, 1, 60, 32]);
    packet.extend_from_slice(b"PXEClient:Arch:00007:UNDI:003016");
    packet.extend_from_slice(&[93, 2, 0, 7, 255]);
    packet.resize(300, 0);
    packet
}

fn connected(status: &Snapshot) -> bool {
    status.omni.connected && status.omni.trouble.is_empty()
}

/// The site's one machine goes through its life: whatever came before has broken nothing.
async fn all_is_well(site: &Site) {
    site.live().await;
    site.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_the_boot_ports_is_counted_and_the_next_machine_boots() {
    let site = Site::start(1).await;
    let network = site.provider.network();
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let quiet = site.log().lines().count();
    let full = discover([2, 0, 0, 0, 0, 1]);
    for number in 0..10_000_u64 {
        let octets = match number % 4 {
            0 => garbage(number, number as usize % 2_000),
            // A real message, cut short, or too long, or with one octet turned.
            1 => full[..number as usize % full.len()].to_vec(),
            2 => [full.clone(), garbage(number, 1_400)].concat(),
            _ => {
                let mut octets = full.clone();
                octets[number as usize % full.len()] ^= 0xff;
                octets
            }
        };
        let to = [network.dhcp, network.binl, network.tftp][number as usize / 4 % 3];
        stranger.send_to(&octets, to).await.unwrap();
        if number % 64 == 0 {
            // Loopback drops what does not fit a socket's buffer; the service should see most of it.
            tokio::task::yield_now().await;
        }
    }
    // Well-formed messages of machines that do not exist.
    for number in 0..2_000_u32 {
        let [_, high, middle, low] = number.to_be_bytes();
        stranger.send_to(&discover([2, 0, 9, high, middle, low]), network.dhcp).await.unwrap();
    }
    let status = site.until("garbage is counted", |status| counter(status, "dhcp_malformed") > 0).await;
    assert_eq!(status.machines.len(), 0, "a packet makes no machine");
    all_is_well(&site).await;
    let lines = site.log().lines().count() - quiet;
    assert!(lines < 100, "{lines} lines\n{}", site.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn tftp_refuses_what_it_does_not_serve_and_serves_on() {
    let site = Site::start(1).await;
    let tftp = site.provider.network().tftp;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut buffer = [0; 2_048];
    for request in [&b"\0\x01../../etc/passwd\0octet\0"[..], b"\0\x01nothing\0octet\0", b"\0\x02snp.efi\0octet\0"] {
        client.send_to(request, tftp).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(10), client.recv_from(&mut buffer)).await;
        let (len, _) = answer.expect("an ERROR").unwrap();
        assert_eq!(buffer[..2], [0, 5], "{:?}", String::from_utf8_lossy(&buffer[..len]));
    }
    for request in
        [&b""[..], b"\0", b"\0\x01", b"\0\x01x", b"\0\x01x\0", b"\0\x09", b"\xff\xff\xff", b"\0\x03\0\x01data"]
    {
        client.send_to(request, tftp).await.unwrap();
    }
    let long = [b"\0\x01".to_vec(), vec![b'a'; 1_300], b"\0octet\0blksize\0-1\0tsize\0x\0".to_vec()].concat();
    client.send_to(&long, tftp).await.unwrap();
    let counted =
        |status: &Snapshot| counter(status, "tftp_unknown_name") >= 2 && counter(status, "tftp_write_refused") == 1;
    site.until("refusals are counted", counted).await;
    all_is_well(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_strangers_get_a_plain_refusal_and_cost_bounded_memory() {
    let site = Site::start(1).await;
    for path in
        ["/", "/none", "/image/x/y/z", "/assets/../../etc/passwd", "/tftp/..%2f..%2fetc%2fpasswd", "/config?u=x"]
    {
        let answer = site.get(path).await;
        assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
    }
    for (query, named) in [("", "uuid"), ("uuid=", "uuid"), ("uuid=nonsense&arch=x86_64", "uuid")] {
        let answer = site.get(&format!("/ipxe/boot.ipxe?{query}")).await;
        assert!(answer.starts_with("HTTP/1.1 400") && answer.contains(named), "{query}: {answer}");
    }
    let blank = "00000000-0000-0000-0000-000000000000";
    let answer = site.get(&format!("/ipxe/boot.ipxe?uuid={blank}&arch=x86_64&disk=script")).await;
    assert!(answer.contains("#!ipxe") && answer.contains("UUID"), "a machine's screen tells: {answer}");
    assert!(site.http("GET / HTTP/1.1\r\nHost").await.is_empty(), "a header that never ends costs its connection");
    assert!(site.http("\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n").await.starts_with("HTTP/1.1 400"), "TLS is no HTTP");

    let quiet = site.log().lines().count();
    for number in 0..1_000_u32 {
        let uuid = format!("11111111-2222-4333-8444-{number:012x}");
        let answer = site.get(&format!("/ipxe/boot.ipxe?uuid={uuid}&mac=52-54-00-99-00-01&arch=x86_64")).await;
        assert!(answer.contains("#!ipxe"), "a new machine gets the agent: {answer}");
    }
    let status = site.until("strangers are counted", |status| counter(status, "boot_script") >= 1_000).await;
    assert!(status.machines.len() <= 256, "{} machines are kept", status.machines.len());
    assert!(status.machines.iter().all(|machine| machine.stage == Stage::Discovered));
    let statuses = Kind::private("MachineStatus", PROVIDER_ID);
    assert!(site.omni.state().list(&statuses).is_empty(), "Omni hears of no stranger");
    let lines = site.log().lines().count() - quiet;
    assert!(lines < 100, "{lines} lines");
    all_is_well(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_that_breaks_the_rules_is_refused_counted_and_harms_no_other() {
    let mut site = Site::start(1).await;
    let api = site.provider.api();
    let stranger = "11111111-2222-4333-8444-000000000001";
    let refused = async |id: &str| Raw::dial(api, id).await.map(drop).unwrap_err();
    let answer = refused(stranger).await;
    assert_eq!(answer.code(), Code::PermissionDenied);
    assert!(answer.message().contains("has not booted here"), "{answer}");
    assert_eq!(refused("no uuid").await.code(), Code::InvalidArgument);

    // It boots from here, and so it may come from here; what it sends then is against every rule.
    site.get(&format!("/ipxe/boot.ipxe?uuid={stranger}&arch=x86_64")).await;
    for number in 0..20 {
        let mut raw = Raw::dial(api, stranger).await.unwrap();
        raw.send(-1, settings(&[0, 1], 65_536)).await;
        raw.send(number, whole(&garbage(number as u64, 16_384))).await;
        // The provider may have ended it already.
        let _ = raw.to.send(Default::default()).await;
        // A stream that is dropped earlier is reset, and what it brought may never be read.
        assert_eq!(raw.outer_status().await.code(), Code::Unknown);
    }
    // Octets that are no gRPC at all, after a right preface.
    let mut stream = TcpStream::connect(api).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    stream.write_all(&garbage(7, 4_096)).await.unwrap();
    let mut end = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut end)).await.expect("it is cut off");

    let counted = |status: &Snapshot| {
        counter(status, "tunnel_not_admitted") >= 1
            && counter(status, "tunnel_invalid_machine_id") >= 1
            && counter(status, "tunnel_violation") >= 1
    };
    site.until("refusals are counted", counted).await;

    // A second tunnel for a machine that booted from its own address.
    site.rack.switch_on().await;
    let id = site.rack.ids().remove(0);
    let here = |status: &Snapshot| status.machines.iter().any(|machine| machine.id.as_str() == id && machine.agent);
    site.until("the agent is connected", here).await;
    let answer = refused(&id).await;
    assert_eq!((answer.code(), answer.message()), (Code::PermissionDenied, "the machine booted from another address"));
    // Whoever knows its UUID may boot under its name, and takes nothing from it: not its tunnel, nor its next one.
    let under_its_name = format!("/ipxe/boot.ipxe?uuid={id}&arch=x86_64");
    site.get(&under_its_name).await;
    let mut second = Raw::dial(api, &id).await.unwrap();
    second.send(-1, settings(&[0, 1], 65_536)).await;
    assert_eq!(second.outer_status().await.code(), Code::AlreadyExists);
    assert!(here(&site.status().await), "the real agent stays");
    site.provider.kill().await.unwrap();
    site.provider.start().await.unwrap();
    site.get(&under_its_name).await;
    site.until("the agent is connected again", here).await;
    all_is_well(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_omni_restored_without_the_provider_is_told_of_it_again() {
    let site = Site::start(1).await;
    let kind = provider_status_kind();
    let registered = |site: &Site| site.omni.state().get(&kind, PROVIDER_ID).is_ok();
    site.see("the provider is registered", registered).await;
    let beaten = |site: &Site| site.omni.state().get(&health_status_kind(), PROVIDER_ID).is_ok();
    site.see("its heart beats", beaten).await;
    site.omni.state().destroy(&kind, PROVIDER_ID, "").unwrap();
    site.omni.faults().restart().await;
    site.see("the provider is registered again", registered).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bmc_that_loses_damages_doubles_and_delays_its_answers_does_its_work_once() {
    let site = Site::start(1).await;
    site.live().await;
    let machine = site.rack.machines().next().unwrap().clone();
    machine.until(|machine| machine.events().iter().any(|event| event.what.starts_with("disk wiped"))).await;
    let bmc = site.rack.bmcs().next().unwrap();
    bmc.faults().damage(2);
    bmc.faults().busy(2);
    machine.until(|machine| machine.power() == PowerState::Off).await;
    bmc.faults().double(5);
    bmc.faults().lose(2);
    machine.until(|machine| machine.counts().boots_talos_net == 1).await;
    bmc.faults().delay(4, Duration::from_millis(300));
    machine.until(|machine| machine.counts().boots_talos_disk >= 2).await;
    bmc.faults().restart();
    site.done().await;
    let counts = machine.counts();
    assert_eq!((counts.power_ons, counts.power_offs, counts.power_cycles, counts.wipes), (4, 3, 0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_none_is_a_configuration_fault_that_names_its_variable() {
    let mut site = Site::new(1).await;
    for text in ["", "garbage!", "e30=", "eyJuYW1lIjoieCIsInBncF9rZXkiOiJ4In0="] {
        site.provider.set_key(Secret::new(text.to_owned()));
        let error = site.provider.start().await.expect_err("it must not start").to_string();
        assert!(error.contains("OMNI_SERVICE_ACCOUNT_KEY"), "{text:?}: {error}");
        assert!(!error.contains("panicked"), "{error}");
    }
    site.provider.set_key(site.omni.service_account().key_string.clone());
    site.provider.start().await.unwrap();
    all_is_well(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_the_signing_librarys_variable_comes_first_and_an_empty_one_counts_for_nothing() {
    let mut site = Site::new(1).await;
    let (good, garbage) = (site.omni.service_account().key_string.clone(), Secret::new("garbage!".to_owned()));
    let nothing = Secret::new(String::new());
    for (sidero, omni, works) in [
        (None, &good, true),
        (Some(&good), &garbage, true),
        (Some(&garbage), &good, false),
        (Some(&nothing), &good, true),
        (Some(&good), &nothing, true),
    ] {
        site.provider.set_key(omni.clone());
        site.provider.set_alias_key(sidero.cloned());
        let started = site.provider.start().await;
        assert_eq!(started.is_ok(), works, "{started:?}");
        if works {
            site.until("it is connected", connected).await;
            site.provider.kill().await.unwrap();
        }
    }
}

/// What Omni is told of the provider's troubles; empty while all is well, `None` before it was told anything.
fn told(site: &Site) -> Option<String> {
    let stored = site.omni.state().get(&health_status_kind(), PROVIDER_ID).ok()?;
    Some(stored.decode::<InfraProviderHealthStatusSpec>().unwrap().error)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_boot_port_that_another_program_has_ends_the_provider_with_its_number() {
    let mut site = Site::new(1).await;
    let network = site.provider.network();
    for (service, address) in [("DHCP", network.dhcp), ("TFTP", network.tftp)] {
        let taken = std::net::UdpSocket::bind(address).unwrap();
        let error = site.provider.start().await.expect_err("it must not start").to_string();
        let said = error.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(said.contains(service) && said.contains(&address.to_string()), "{error}");
        assert!(said.contains("in use") && !error.contains("panicked"), "{error}");
        drop(taken);
        // Each start adds to one log.
        std::fs::remove_file(site.provider.log()).unwrap();
    }
    site.provider.start().await.unwrap();
    all_is_well(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_omni_refuses_is_told_on_the_page_with_what_to_do() {
    let mut site = Site::new(1).await;
    let day = Duration::from_secs(86_400);
    let unknown = ServiceAccount::create(PROVIDER_ID, day).unwrap();
    site.provider.set_key(unknown.key_string.clone());
    site.provider.start().await.unwrap();
    let status = site.until("what to do is told", |status| status.omni.trouble.contains("renewkey")).await;
    assert!(!status.omni.connected);
    site.provider.kill().await.unwrap();

    let other = ServiceAccount::create("another", day).unwrap();
    site.omni.add_account(&other);
    site.provider.set_key(other.key_string.clone());
    match site.provider.start().await {
        Err(error) => assert!(error.to_string().contains("another"), "{error:#}"),
        Ok(()) => {
            let told = |status: &Snapshot| !matches!(status.omni.trouble.as_str(), "" | "not connected yet");
            let status = site.until("trouble is told", told).await;
            assert!(!status.omni.connected && status.omni.trouble.contains("lab"), "{:?}", status.omni);
        }
    }
    site.provider.kill().await.unwrap();

    let short = ServiceAccount::create(PROVIDER_ID, Duration::from_secs(1)).unwrap();
    site.omni.add_account(&short);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    site.provider.set_key(short.key_string.clone());
    match site.provider.start().await {
        Err(error) => assert!(error.to_string().contains("expired"), "{error:#}"),
        Ok(()) => {
            site.until("the expiry is told", |status| status.omni.trouble.contains("expired")).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_ends_within_thirty_days_is_told_of_on_the_page_and_in_the_log() {
    let mut site = Site::new(1).await;
    let account = |days: u64| ServiceAccount::create(PROVIDER_ID, Duration::from_secs(days * 86_400)).unwrap();
    let (later, account) = (account(31), account(29));
    site.omni.add_account(&later);
    site.provider.set_key(later.key_string.clone());
    site.provider.start().await.unwrap();
    site.until("it is connected, and nothing is told", connected).await;
    site.see("Omni is told that all is well", |site| told(site).is_some_and(|text| text.is_empty())).await;
    assert!(!site.log().contains("expires on"));
    site.provider.kill().await.unwrap();

    site.omni.add_account(&account);
    site.provider.set_key(account.key_string.clone());
    site.provider.start().await.unwrap();
    let told = |status: &Snapshot| status.omni.trouble.starts_with("the service account key expires on ");
    let status = site.until("the page tells of it", told).await;
    assert!(status.omni.trouble.ends_with("renew it with `omnictl infraprovider renewkey lab`"), "{status:?}");
    assert_eq!(status.omni.key_expires.map(|at| at.as_secs()), Some(account.expires.as_secs()));
    assert!(status.omni.connected, "it is no trouble yet");
    assert!(site.log().contains("the service account key expires on "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_an_hour_is_named_and_forgotten_once_it_is_right() {
    let mut site = Site::new(1).await;
    site.omni.faults().clock_offset(3_600);
    site.provider.start().await.unwrap();
    let named = |status: &Snapshot| status.omni.trouble.contains("clock");
    let status = site.until("the clock is named", named).await;
    assert!(!status.omni.connected, "{:?}", status.omni);
    site.omni.faults().clock_offset(0);
    site.until("it recovers by itself", connected).await;

    // The same with the streams open: the next call tells.
    site.live().await;
    site.see("the machine is being prepared", |site| site.step(0) >= Step::Preparing).await;
    site.omni.faults().clock_offset(-3_600);
    site.until("the clock is named again", named).await;
    site.omni.faults().clock_offset(0);
    site.done().await;
    site.until("it recovers again", connected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_omni_that_is_away_at_the_start_is_named_and_waited_for() {
    let mut site = Site::new(1).await;
    site.omni.stop().await;
    site.provider.start().await.unwrap();
    let endpoint = site.omni.endpoint();
    let told = |status: &Snapshot| status.omni.trouble.contains("Omni is not reachable; check the endpoint");
    let status = site.until("trouble is told", told).await;
    assert!(!status.omni.connected && status.omni.endpoint == endpoint, "{:?}", status.omni);
    // A machine that nobody knows asks meanwhile; without the factory's images it is told so and asks again.
    let answer = site.boots(0).await;
    assert!(answer.starts_with("HTTP/1.1 5") || answer.contains("#!ipxe"), "{answer}");
    site.omni.resume().await.unwrap();
    site.until("it connects", connected).await;
    all_is_well(&site).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_omni_that_goes_away_forgets_and_quarrels_half_way_costs_no_life() {
    let site = Site::start(2).await;
    let faults = site.omni.faults();
    site.live().await;
    let machine = site.rack.machines().next().unwrap().clone();
    machine.until(|machine| machine.events().iter().any(|event| event.what.starts_with("agent wipes"))).await;
    site.omni.stop().await;
    machine.until(|machine| machine.events().iter().any(|event| event.what.starts_with("disk wiped"))).await;
    site.until("the loss is told", |status| !status.omni.trouble.is_empty()).await;
    site.omni.resume().await.unwrap();
    site.see("the life goes on", |site| site.step(0) >= Step::Installing).await;
    faults.restart().await;
    faults.conflict(6);
    site.see("the life goes on", |site| site.step(0) >= Step::PoweringOn).await;
    faults.refuse(Code::PermissionDenied, "no role for this");
    faults.drop_streams().await;
    let denied = |status: &Snapshot| status.omni.trouble.contains("no role for this");
    site.until("the refusal is told in Omni's words", denied).await;
    faults.serve_again();
    site.see("the life goes on", |site| site.step(0) >= Step::Wiping).await;
    faults.overrun_watches();
    faults.conflict(6);
    site.done().await;
    for machine in site.rack.machines() {
        assert_eq!(machine.counts().installs, 1);
        assert_eq!(machine.counts().power_cycles, 0);
    }
    site.until("all is well", connected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_factory_that_is_away_stops_unknown_images_alone() {
    let site = Site::start(1).await;
    let faults = site.omni.faults();
    site.boots(0).await;
    site.live().await;
    // The agent's images are here by now; those of the cluster's Talos are not.
    site.see("the machine is being prepared", |site| site.step(0) >= Step::Preparing).await;
    faults.factory_away().await;
    assert!(site.boots(0).await.contains("#!ipxe"), "known images are served from the disk");
    let unanswered = |status: &Snapshot| counter(status, "boot_unanswered") + counter(status, "boot_refused") > 0;
    let status = site.until("the missing image is told", unanswered).await;
    let lines: Vec<_> = status.machines[0].timeline.iter().map(|moment| moment.what.clone()).collect();
    assert!(lines.iter().any(|line| line.contains("boot not answered")), "{lines:#?}");
    faults.factory_back().await.unwrap();
    site.done().await;
}

/// Whether Omni shows the machine as ready, off and idle.
fn is_ready(machine: Option<&OmniMachine>) -> Option<()> {
    machine?.status.as_ref().filter(|status| status.ready_to_use).map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_box_that_restarts_without_omni_boots_what_it_knew_and_undoes_nothing() {
    let mut site = Site::start(3).await;
    let people = site.omni.people();
    let ids = site.rack.ids();
    site.rack.switch_on().await;
    // 0 is installed in a cluster, 1 is wiped and idle, 2 waits to be accepted.
    for id in &ids {
        site.omni.controller().wait(id, |machine| machine.map(drop)).await;
    }
    for id in &ids[..2] {
        people.accept(id).unwrap();
        site.omni.controller().wait(id, is_ready).await;
    }
    let allocation = pilotlight::lab::omni::lifecycle::Allocation {
        cluster: "lab".into(),
        machine_set: "workers".into(),
        control_plane: false,
        talos_version: "1.11.2".into(),
        extensions: vec![],
    };
    people.allocate(&ids[0], allocation).unwrap();
    let installed = |status: &Snapshot| {
        status.machines.iter().any(|machine| machine.id.as_str() == ids[0] && machine.stage == Stage::Installed)
    };
    site.until("the first is installed", installed).await;
    let machines: Vec<_> = site.rack.machines().cloned().collect();
    machines[0].until(|machine| machine.counts().boots_talos_disk >= 1).await;
    machines[1].until(|machine| machine.power() == PowerState::Off).await;
    // The view is written a second after it changed.
    tokio::time::sleep(Duration::from_millis(1_500)).await;

    site.provider.kill().await.unwrap();
    site.omni.stop().await;
    machines[0].power_off();
    machines[0].until(|machine| machine.power() == PowerState::Off).await;
    let before: Vec<_> = machines.iter().map(|machine| machine.counts()).collect();
    site.provider.start().await.unwrap();

    let (disk, agent) = (site.boots(0).await, site.boots(1).await);
    assert!(disk.contains("exit") && !disk.contains("kernel "), "an installed machine boots its disk: {disk}");
    assert!(agent.contains("kernel ") && agent.contains("provider.address"), "an idle one boots the agent: {agent}");
    let pending = site.boots(2).await;
    assert!(pending.contains("provider.address"), "so does one that waits to be accepted: {pending}");
    let answer = site.get(&format!("/config?u={}", ids[0])).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "its configuration is at hand: {}", answer.len());

    // The first belongs to a cluster and was found off: it is powered on. Nothing else happens to anyone.
    machines[0].until(|machine| machine.power() == PowerState::On).await;
    machines[0].until(|machine| machine.counts().boots_talos_disk > before[0].boots_talos_disk).await;
    let status = site.until("trouble is told", |status| !status.omni.trouble.is_empty()).await;
    assert!(!status.omni.connected && status.omni.synced.is_some(), "{:?}", status.omni);
    for (machine, before) in machines.iter().zip(&before) {
        let now = machine.counts();
        assert_eq!(
            (now.wipes, now.power_offs, now.power_cycles),
            (before.wipes, before.power_offs, before.power_cycles)
        );
    }
    site.omni.resume().await.unwrap();
    site.until("it connects", connected).await;
    for (machine, before) in machines.iter().zip(&before) {
        assert_eq!(machine.counts().wipes, before.wipes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_machine_that_is_on_is_power_cycled_once_across_a_kill() {
    let mut site = Site::start(1).await;
    let people = site.omni.people();
    let id = site.rack.ids().remove(0);
    let machine = site.rack.machines().next().unwrap().clone();
    site.rack.switch_on().await;
    site.omni.controller().wait(&id, |machine| machine.map(drop)).await;
    people.accept(&id).unwrap();
    site.omni.controller().wait(&id, is_ready).await;
    machine.until(|machine| machine.power() == PowerState::Off).await;
    // Switched on by hand, and held so that no agent is there when it is removed.
    people.cordon(&id, true).unwrap();
    site.until("it is cordoned", |status| status.machines.iter().any(|machine| machine.stage == Stage::Cordoned)).await;
    machine.disk().install("by hand");
    machine.power_on();
    let on =
        |status: &Snapshot| status.machines.iter().any(|machine| machine.power == PowerState::On && !machine.agent);
    site.until("it is seen on", on).await;
    let before = machine.counts();
    people.remove(&id).unwrap();
    machine.until(|machine| machine.counts().power_offs > before.power_offs).await;
    site.provider.kill().await.unwrap();
    site.provider.start().await.unwrap();
    machine.until(|machine| machine.counts().power_ons > before.power_ons).await;
    site.provider.kill().await.unwrap();
    site.provider.start().await.unwrap();
    site.omni.controller().wait(&id, |machine| machine.is_none().then_some(())).await;
    let now = machine.counts();
    assert_eq!((now.power_ons, now.power_offs), (before.power_ons + 1, before.power_offs + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_reaches_the_log_though_all_is_logged() {
    let mut site = Site::new(1).await;
    site.provider.set_flag("debug", "true");
    site.provider.set_flag("bmc-passwords-in-clear", "true");
    site.provider.start().await.unwrap();
    site.live().await;
    let kind = Kind::private("BMCConfiguration", PROVIDER_ID);
    site.see("a BMC user was made", |site| !site.omni.state().list(&kind).is_empty()).await;
    let record = site.omni.state().list(&kind).remove(0);
    let spec: pilotlight::proto::provider::BmcConfigurationSpec = record.decode().unwrap();
    let password = spec.ipmi.unwrap().password;
    let join = site.omni.state().get(&Kind::omni("ProviderJoinConfigs"), PROVIDER_ID).unwrap();
    let join: pilotlight::proto::specs::ProviderJoinConfigSpec = join.decode().unwrap();
    site.done().await;
    let log = site.log();
    assert!(log.len() > 10_000, "debug lines are there");
    assert_eq!(password.len(), 16);
    assert!(!log.contains(&password), "the BMC password");
    assert!(!join.join_token.is_empty() && !log.contains(&join.join_token), "the join secret");
    assert!(!log.contains("jointoken="), "the join token");
    let key = site.omni.service_account().key_string.reveal().clone();
    assert!(!log.contains(&key[..40]), "the service account key");
}
