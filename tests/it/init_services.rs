//! The appliance's processes: the real `init` as PID 1 with the real services under it, and a simulated rack around them.
//!
//! Mounts and processes are the box's own; the network is the test's, so that machines and the Omni double, which live in
//! the test's process, are reached over loopback.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pilotlight::lab::machine::Network;
use pilotlight::lab::omni::script::{Plan, Step};
use pilotlight::lab::omni::{Omni, Options};
use pilotlight::lab::provider::write_ipxe;
use pilotlight::lab::rack::Rack;
use pilotlight::omni::provider::health_status_kind;
use pilotlight::proto::specs::InfraProviderHealthStatusSpec;
use pilotlight::status::Snapshot;
use pilotlight::supervise::services::{SERVICES, SOCKETS_GID};
use pilotlight::time::Uptime;

use crate::init::{Program, Running, Setup, host_mounts, lines, position};

const MACHINES: u16 = 2;
/// One scripted life takes some eight seconds.
const LIFE: Duration = Duration::from_secs(40);
const SOON: Duration = Duration::from_secs(15);

/// What is killed in the second life, and from which step of any machine on.
const KILLS: [(Step, &str); 10] = [
    (Step::Joining, "net"),
    (Step::Joining, "console"),
    // The rack was just switched on, and its firmware asks.
    (Step::Joining, "dhcp"),
    (Step::Joining, "tftp"),
    (Step::Preparing, "settings"),
    (Step::Preparing, "store"),
    (Step::Installing, "images"),
    (Step::PoweringOff, "web"),
    (Step::PoweringOff, "update"),
    (Step::Wiping, "provider"),
];

struct Ports {
    api: u16,
    dhcp: u16,
    binl: u16,
    tftp: u16,
    images: u16,
    web: u16,
}

impl Ports {
    /// Free ones. The sockets are held together, so that all differ, and let go of before the services bind.
    fn free() -> Self {
        let tcp: Vec<_> = (0..3).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        let udp: Vec<_> = (0..3).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).collect();
        let tcp = |index: usize| tcp[index].local_addr().unwrap().port();
        let udp = |index: usize| udp[index].local_addr().unwrap().port();
        Self { api: tcp(0), dhcp: udp(0), binl: udp(1), tftp: udp(2), images: tcp(1), web: tcp(2) }
    }

    fn network(&self) -> Network {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Network { dhcp: at(self.dhcp), binl: at(self.binl), tftp: at(self.tftp) }
    }
}

/// The services' box, the Omni that it talks to, and when all began.
struct TheBox {
    running: Running,
    omni: Omni,
    ports: Ports,
    started: Uptime,
}

impl TheBox {
    /// `None` where namespaces can't be had.
    async fn start(ports: Ports) -> Option<Self> {
        let started = Uptime::now();
        // A key that is about to expire would be complained about.
        let key_lifetime = Duration::from_secs(90 * 86_400);
        let omni = Omni::start(Options { key_lifetime, ..Options::loopback("lab") }).await.unwrap();
        let flags = format!(
            "--id=lab\n--omni-api-endpoint={}\n--image-factory-base-url={}\n\
             --api-listen-address=127.0.0.1\n--api-advertise-address=127.0.0.1\n--api-port={}\n\
             --dhcp-port={}\n--binl-port={}\n--tftp-port={}\n--ipxe-path=/box/ipxe\n\
             --run-dir=/run/pilotlight\n--state-dir=/data/pilotlight\n\
             --images-listen-address=127.0.0.1:{}\n--web-listen-address=127.0.0.1:{}\n\
             --min-reboot-interval=0\n--poll-interval=1s\n--agent-wait=4s\n",
            omni.endpoint(),
            omni.factory_url(),
            ports.api,
            ports.dhcp,
            ports.binl,
            ports.tftp,
            ports.images,
            ports.web,
        );
        let setup = Setup {
            program: Program::Copy(env!("CARGO_BIN_EXE_pilotlight")),
            flags: &flags,
            arguments: &[],
            own_network: false,
            environment: &[("OMNI_SERVICE_ACCOUNT_KEY", omni.service_account().key_string.reveal())],
        };
        let running = Running::start(&setup, |the_box| write_ipxe(&the_box.join("ipxe")).unwrap())?;
        Some(Self { running, omni, ports, started })
    }

    /// How often init has started the service.
    fn starts(&self, name: &str) -> usize {
        let text = format!("{name}: runs as ");
        self.running.log().iter().filter(|line| line.contains(&text)).count()
    }

    /// The service's process, as it is called out here.
    fn pid(&self, name: &str) -> Pid {
        self.running.pid(name)
    }

    /// What the web service says; `None` when it does not answer.
    async fn status(&self) -> Option<Snapshot> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let url = format!("http://127.0.0.1:{}/api/status", self.ports.web);
        let answer = tokio::time::timeout(SOON, client.get(url.parse().unwrap())).await.ok()?.ok()?;
        serde_json::from_slice(&answer.into_body().collect().await.ok()?.to_bytes()).ok()
    }

    /// Waits until Omni is told a text of the box's troubles for which `condition` holds.
    fn until_told(&self, what: &str, condition: impl Fn(&str) -> bool) {
        let told = || {
            let stored = self.omni.state().get(&health_status_kind(), "lab").ok()?;
            Some(stored.decode::<InfraProviderHealthStatusSpec>().unwrap().error)
        };
        let end = Uptime::now() + LIFE;
        while !told().is_some_and(|text| condition(&text)) {
            if Uptime::now() >= end {
                self.fail(&format!("Omni is told {what}: {:?}", told()), None);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn say(&self, what: &str) {
        println!("{:>6.1} s  {what}", Uptime::now().since(self.started).as_secs_f64());
    }

    /// Ends the test with all that is known.
    fn fail(&self, what: &str, rack: Option<&Rack>) -> ! {
        let mut text = format!("waited too long until {what}\n{:#?}\n", self.omni.progress());
        for id in rack.map(Rack::ids).unwrap_or_default() {
            let journal = rack.map(|rack| rack.journal(&id, 25)).unwrap_or_default();
            text.push_str(&format!("{id}:\n  {}\n", journal.join("\n  ")));
        }
        panic!("{text}\n{}", self.running.log().join("\n"));
    }

    /// Waits until every machine's life is over; `each` is called now and then meanwhile.
    async fn play(&self, rack: &Rack, mut each: impl FnMut(&[Step])) {
        let end = Uptime::now() + LIFE;
        let mut begun = BTreeSet::new();
        loop {
            let lives = self.omni.progress();
            begun.extend(lives.iter().filter(|life| life.step != Step::Done).map(|life| life.uuid.clone()));
            let steps: Vec<_> = lives.iter().map(|life| life.step).collect();
            each(&steps);
            if begun.len() == usize::from(MACHINES) && steps.iter().all(|step| *step == Step::Done) {
                return;
            }
            if Uptime::now() >= end || steps.contains(&Step::Failed) {
                self.fail("every machine's life is over", Some(rack));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until the web service says something for which `condition` holds.
    async fn until_status(&self, what: &str, condition: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let end = Uptime::now() + SOON;
        loop {
            match self.status().await {
                Some(snapshot) if condition(&snapshot) => return snapshot,
                last if Uptime::now() >= end => self.fail(&format!("{what}: {last:?}"), None),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_service_is_a_process_of_its_own_and_machines_live_through_the_death_of_each() {
    let before = host_mounts();
    let Some(mut the_box) = TheBox::start(Ports::free()).await else { return };
    let connected = |status: &Snapshot| status.omni.connected && status.omni.trouble.is_empty();
    let first = the_box.until_status("the provider is connected", connected).await;
    let ready =
        |status: &Snapshot| status.services.len() == SERVICES.len() && status.services.iter().all(|service| service.up);
    the_page_shows_all_of_the_box(&the_box.until_status("all services are ready", ready).await);
    the_box.say("all services are up");
    each_service_has_its_own_user_and_only_the_provider_holds_the_key(&the_box);

    let rack = Rack::build(MACHINES, the_box.ports.network()).await.unwrap();
    the_box.omni.direct(Plan { fleet: rack.ids(), repeat: true, ..Plan::default() });
    rack.switch_on().await;
    let shown = the_box.until_status("both machines are shown", |status| status.machines.len() == 2).await;
    let shown: BTreeSet<_> = shown.machines.iter().map(|machine| machine.id.to_string()).collect();
    assert_eq!(shown, rack.ids().into_iter().collect());
    the_box.play(&rack, |_| {}).await;
    rack.verify().unwrap();
    the_box.say("the first life is over");
    every_boot_went_through_the_service_that_is_there_for_it(&the_box, &rack);
    for service in SERVICES {
        assert_eq!(the_box.starts(service.name), 1, "{}\n{}", service.name, the_box.running.log().join("\n"));
    }

    let started = first.started;
    let mut kills = KILLS.to_vec();
    rack.switch_on().await;
    the_box
        .play(&rack, |steps| {
            let furthest = steps.iter().filter(|step| **step != Step::Done).max();
            // The machines of the second life are known to Omni a moment after they are switched on.
            let reached = |step: Step| step == Step::Joining || furthest.is_some_and(|furthest| *furthest >= step);
            while let Some((step, name)) = kills.first().copied().filter(|(step, _)| reached(*step)) {
                kill(the_box.pid(name), Signal::SIGKILL).unwrap();
                the_box.say(&format!("killed {name} ({step})"));
                kills.remove(0);
            }
        })
        .await;
    assert!(kills.is_empty(), "not killed: {kills:?}");
    the_box.say("the second life is over");
    let totals = rack.totals();
    assert_eq!(totals.installs, 2 * u64::from(MACHINES), "{totals:?}");
    assert!(totals.wipes >= 4 * u64::from(MACHINES), "{totals:?}");
    for service in SERVICES {
        assert_eq!(the_box.starts(service.name), 2, "{}\n{}", service.name, the_box.running.log().join("\n"));
    }
    let renewed = |status: &Snapshot| connected(status) && status.started > started;
    the_box.until_status("the new provider is connected", renewed).await;

    rack.unplug();
    let status = the_box.running.end(Signal::SIGTERM);
    the_box.say("the box has ended");
    let log = the_box.running.log();
    // In a namespace a reboot shows as SIGHUP.
    assert_eq!(status.signal(), Some(Signal::SIGHUP as i32), "{status}\n{}", log.join("\n"));
    let stopped = |name: &str| position(&log, &format!("{name}: stopped by code 0"));
    for (name, later) in
        [("provider", "images"), ("web", "images"), ("dhcp", "images"), ("tftp", "images"), ("images", "store")]
    {
        assert!(stopped(name) < stopped(later), "{name} before {later}:\n{}", log.join("\n"));
    }
    let complaints: Vec<_> =
        log.iter().filter(|line| line.contains("pilotlight-init: cannot") || line.contains("panicked")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert_eq!(host_mounts(), before, "the host's mounts are as they were");
    the_box.omni.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn omni_hears_of_a_service_that_can_not_serve_until_it_does() {
    let ports = Ports::free();
    let address = ports.network().tftp;
    let taken = UdpSocket::bind(address).unwrap();
    let Some(mut the_box) = TheBox::start(ports).await else { return };
    the_box.until_told("the port", |told| {
        told.starts_with("tftp does not serve: ") && told.contains(&address.to_string()) && told.contains("in use")
    });
    drop(taken);
    the_box.until_told("that all is well", str::is_empty);
    the_box.running.end(Signal::SIGTERM);
    the_box.omni.shutdown().await;
}

/// The page shows every process of the box, not only what the provider knows of.
fn the_page_shows_all_of_the_box(status: &Snapshot) {
    let shown: Vec<_> = status.services.iter().map(|service| (service.name.as_str(), service.up)).collect();
    let all: Vec<_> = SERVICES.iter().map(|service| (service.name, true)).collect();
    assert_eq!(shown, all, "{status:#?}");
    let appliance = status.appliance.as_ref().unwrap();
    assert!(appliance.services.iter().all(|service| service.pid.is_some()), "{appliance:#?}");
    assert_eq!(appliance.previous, "the run before left no record");
}

fn each_service_has_its_own_user_and_only_the_provider_holds_the_key(the_box: &TheBox) {
    for service in SERVICES {
        let process = Path::new("/proc").join(the_box.pid(service.name).to_string());
        let status = lines(&process.join("status"));
        let (uid, gid) = (service.uid, SOCKETS_GID);
        assert!(status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}")), "{}: {status:#?}", service.name);
        assert!(status.contains(&format!("Groups:\t{gid} ")), "{}: {status:#?}", service.name);
        let environment = fs::read(process.join("environ")).unwrap();
        let holds = environment.split(|octet| *octet == 0).any(|one| one.starts_with(b"OMNI_SERVICE_ACCOUNT_KEY="));
        assert_eq!(holds, service.name == "provider", "{}", service.name);
    }
    for name in ["store", "images", "provider"] {
        let service = SERVICES.iter().find(|service| service.name == name).unwrap();
        let meta = fs::metadata(the_box.running.path(service.socket().trim_start_matches('/'))).unwrap();
        assert!(meta.file_type().is_socket(), "{name}");
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (service.uid, SOCKETS_GID, 0o660), "{name}");
    }
    for (path, uid) in [("store/sled/db", 902), ("images", 903), ("provider/sealing.key", 904)] {
        let meta = fs::metadata(the_box.running.path("data/pilotlight").join(path)).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o007), (uid, 0), "{path}");
    }
}

/// What the first machine, which boots over UEFI PXE, and the third kind of boot say of where their octets came from.
fn every_boot_went_through_the_service_that_is_there_for_it(the_box: &TheBox, rack: &Rack) {
    let journals: Vec<_> = rack.ids().iter().flat_map(|id| rack.journal(id, usize::MAX)).collect();
    let Ports { dhcp, images, api, .. } = the_box.ports;
    for text in [
        format!("OFFER from 127.0.0.1:{dhcp}"),
        "TFTP ".to_owned(),
        format!("GET http://127.0.0.1:{api}/"),
        format!("http://127.0.0.1:{images}/image/"),
    ] {
        assert!(journals.iter().any(|line| line.contains(&text)), "{text:?} is not in {journals:#?}");
    }
}
