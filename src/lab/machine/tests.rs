//! Machines against tiny servers on loopback.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::*;

/// How the fake proxyDHCP answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manner {
    Complete,
    NoServerIdentifier,
    NoDiscoveryControl,
}

/// First octets of option 97, and the sender, of the last request.
#[derive(Clone, Default)]
struct Seen {
    guid: Vec<u8>,
    from: Option<SocketAddr>,
}

/// A rack's servers; they end with it.
struct Rack {
    network: Network,
    http: SocketAddr,
    /// Messages on the proxyDHCP socket and on the boot server's.
    asked: Arc<(AtomicUsize, AtomicUsize)>,
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

impl Rack {
    async fn start(manner: Manner, program: Vec<u8>, script: &str) -> Self {
        let mut tasks = JoinSet::new();
        let (dhcp, binl, tftp) = (udp().await, udp().await, udp().await);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http = listener.local_addr().unwrap();
        let network = Network {
            dhcp: dhcp.local_addr().unwrap(),
            binl: binl.local_addr().unwrap(),
            tftp: tftp.local_addr().unwrap(),
        };
        let script = script.replace("BOX", &http.to_string());
        let (asked, seen) =
            (Arc::new((AtomicUsize::new(0), AtomicUsize::new(0))), Arc::new(Mutex::new(Seen::default())));
        for (socket, reply) in [(dhcp, MessageType::Offer), (binl, MessageType::Ack)] {
            let (asked, seen) = (asked.clone(), seen.clone());
            tasks.spawn(async move {
                let mut buffer = [0; 1500];
                loop {
                    let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                    let request = Message::decode(&mut Decoder::new(&buffer[..length])).unwrap();
                    let counter = if reply == MessageType::Offer { &asked.0 } else { &asked.1 };
                    counter.fetch_add(1, Ordering::SeqCst);
                    if let Some(DhcpOption::ClientMachineIdentifier(id)) = request.opts().get(97.into()) {
                        *seen.lock().unwrap() = Seen { guid: id[..5].to_vec(), from: Some(from) };
                    }
                    socket.send_to(&answer(&request, reply, manner, http), from).await.unwrap();
                }
            });
        }
        let files = BTreeMap::from([("snp.efi".to_owned(), program.clone())]);
        tasks.spawn(serve_tftp(tftp, files));
        let boot = script.clone();
        let app = Router::new()
            .route("/snp.efi", get(move || async move { program }))
            .route("/boot.ipxe", get(move || async move { boot }))
            .route("/kernel", get(|| async { vec![1_u8; 100_000] }))
            .route("/initramfs", get(|| async { vec![2_u8; 300_000] }))
            .route("/gone", get(|| async { StatusCode::NOT_FOUND }));
        tasks.spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { network, http, asked, seen, _tasks: tasks }
    }
}

async fn udp() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

fn answer(request: &Message, kind: MessageType, manner: Manner, http: SocketAddr) -> Vec<u8> {
    let text = |code: u8| match request.opts().get(code.into()) {
        Some(DhcpOption::ClassIdentifier(data) | DhcpOption::UserClass(data)) => data.clone(),
        _ => Vec::new(),
    };
    let class = text(60);
    let ipxe = text(77) == b"iPXE";
    let file = if ipxe {
        format!("http://{http}/boot.ipxe?uuid=${{uuid}}")
    } else if class.starts_with(b"HTTPClient") {
        format!("http://{http}/snp.efi")
    } else {
        "snp.efi".to_owned()
    };
    let none = Ipv4Addr::UNSPECIFIED;
    let mut reply = Message::new_with_id(request.xid(), none, none, Ipv4Addr::LOCALHOST, none, request.chaddr());
    reply.set_opcode(Opcode::BootReply);
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ClassIdentifier(class));
    options.insert(DhcpOption::BootfileName(file.into_bytes()));
    if manner != Manner::NoServerIdentifier {
        options.insert(DhcpOption::ServerIdentifier(Ipv4Addr::LOCALHOST));
    }
    if manner != Manner::NoDiscoveryControl {
        options.insert(DhcpOption::VendorExtensions(vec![6, 1, 8, 255]));
    }
    let mut octets = Vec::new();
    reply.encode(&mut Encoder::new(&mut octets)).unwrap();
    octets
}

/// One transfer after another: OACK, then blocks of the agreed size.
async fn serve_tftp(listener: UdpSocket, files: BTreeMap<String, Vec<u8>>) {
    let mut buffer = [0; 1500];
    loop {
        let (length, from) = listener.recv_from(&mut buffer).await.unwrap();
        let words: Vec<String> =
            buffer[2..length].split(|octet| *octet == 0).map(|word| String::from_utf8_lossy(word).into()).collect();
        let socket = udp().await;
        let Some(body) = files.get(&words[0]) else {
            socket.send_to(b"\0\x05\0\x01no such file\0", from).await.unwrap();
            continue;
        };
        socket.send_to(format!("\0\x06tsize\0{}\0blksize\01468\0", body.len()).as_bytes(), from).await.unwrap();
        let mut blocks = body.chunks(1468).map(<[u8]>::to_vec).collect::<Vec<_>>();
        if body.len().is_multiple_of(1468) {
            blocks.push(Vec::new());
        }
        for number in 0..=blocks.len() {
            let (length, _) = socket.recv_from(&mut buffer).await.unwrap();
            if length < 4 || buffer[1] != 4 {
                break;
            }
            assert_eq!(usize::from(u16::from_be_bytes([buffer[2], buffer[3]])), number);
            if let Some(block) = blocks.get(number) {
                let mut packet = vec![0, 3];
                packet.extend(((number + 1) as u16).to_be_bytes());
                packet.extend(block);
                socket.send_to(&packet, from).await.unwrap();
            }
        }
    }
}

/// Notes what it was given, then does as told.
struct Scripted {
    boots: Mutex<Vec<Booted>>,
    next: fn(Kind, &Machine) -> Next,
    cancelled: Arc<AtomicUsize>,
}

impl Scripted {
    fn new(next: fn(Kind, &Machine) -> Next) -> Arc<Self> {
        Arc::new(Self { boots: Mutex::default(), next, cancelled: Arc::default() })
    }
}

#[async_trait]
impl OperatingSystem for Scripted {
    async fn run(&self, boot: Booted, cancel: CancellationToken) -> Next {
        let cancelled = self.cancelled.clone();
        tokio::spawn(async move {
            cancel.cancelled().await;
            cancelled.fetch_add(1, Ordering::SeqCst);
        });
        let next = (self.next)(boot.kind, &boot.machine);
        self.boots.lock().unwrap().push(boot);
        next
    }
}

fn spec(last: u8, firmware: Firmware) -> Spec {
    let id = format!("00112233-4455-6677-8899-aabbccddee{last:02x}").parse().unwrap();
    let quick = Duration::from_millis(5);
    let timing = Timing {
        post: quick,
        off: quick,
        cycle: quick,
        dhcp_wait: Duration::from_millis(500),
        script_sleep: quick,
        retry: quick,
        retry_most: quick,
        ..Timing::default()
    };
    Spec { firmware, timing, ..Spec::new(id, [2, 0, 0, 0, 1, last], Ipv4Addr::new(127, 9, 1, last)) }
}

fn program(script: &str) -> Vec<u8> {
    let mut octets = vec![0x90; 70_000];
    octets.extend(b"#!ipxe\0");
    octets.extend(script.as_bytes());
    octets.extend([0; 1000]);
    octets
}

const AGENT: &str =
    "#!ipxe\nkernel http://BOX/kernel metal.provider.address=BOX x=${uuid}\ninitrd http://BOX/initramfs\nboot\n";

async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("a machine does its part within 20 s")
}

fn has(machine: &Machine, text: &str) -> bool {
    machine.events().iter().any(|event| event.what.contains(text))
}

#[tokio::test]
async fn each_firmware_reaches_the_agent_with_generic_ipxe() {
    for (last, firmware, way) in [
        (1, Firmware::Bios, "TFTP snp.efi 70000 octets"),
        (2, Firmware::Uefi, "TFTP snp.efi 70000 octets"),
        (3, Firmware::UefiHttp, "HEAD http://"),
    ] {
        let rack = Rack::start(Manner::Complete, vec![0x90; 70_000], AGENT).await;
        let os = Scripted::new(|_, _| Next::Hang);
        let machine = Machine::start(spec(last, firmware), rack.network, os.clone());
        assert_eq!(machine.power(), PowerState::Off);
        assert!(machine.power_on());
        bounded(machine.until(|machine| has(machine, "agent mode starts"))).await;
        assert_eq!(machine.power(), PowerState::On);
        assert!(has(&machine, way), "{firmware:?}: {:?}", machine.events());
        assert!(has(&machine, "kernel http://") && has(&machine, "initrd 300000 octets"));
        let id = machine.id().to_string();
        bounded(async {
            while os.boots.lock().unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let boots = os.boots.lock().unwrap().clone();
        assert_eq!(boots[0].kind, Kind::Agent);
        assert_eq!(boots[0].cmdline[0], ("metal.provider.address".to_owned(), rack.http.to_string()));
        assert_eq!(boots[0].cmdline[1], ("x".to_owned(), id));
        let Seen { guid, from } = rack.seen.lock().unwrap().clone();
        assert_eq!(guid, [0, 0x33, 0x22, 0x11, 0x00]);
        assert_eq!(from.unwrap().ip(), Ipv4Addr::new(127, 9, 1, last));
        machine.unplug();
    }
}

#[tokio::test]
async fn an_embedded_script_runs_in_place_of_generic_ipxe() {
    // The box's address is only known once it listens, so the embedded script finds it by a setting.
    let embedded = "#!ipxe\necho hello\nexit\n";
    let rack = Rack::start(Manner::Complete, program(embedded), AGENT).await;
    let machine = Machine::start(spec(4, Firmware::Uefi), rack.network, Scripted::new(|_, _| Next::Hang));
    machine.power_on();
    bounded(machine.until(|machine| machine.counts().boots_failed > 0)).await;
    assert!(has(&machine, "iPXE: hello") && has(&machine, "iPXE exits"));
    assert!(!has(&machine, "DISCOVER (iPXE)"));
    machine.unplug();
}

#[tokio::test]
async fn an_offer_without_a_server_identifier_is_asked_for_four_times_and_never_taken() {
    let rack = Rack::start(Manner::NoServerIdentifier, program(AGENT), AGENT).await;
    let mut spec = spec(5, Firmware::Uefi);
    spec.timing.dhcp_wait = Duration::from_millis(20);
    // The next pass would ask again before the count is read.
    spec.timing.retry = Duration::from_secs(60);
    let machine = Machine::start(spec, rack.network, Scripted::new(|_, _| Next::Hang));
    machine.power_on();
    bounded(machine.until(|machine| has(machine, "PXE-E16"))).await;
    assert_eq!(rack.asked.0.load(Ordering::SeqCst), 4);
    assert!(has(&machine, "ignored: no server identifier (option 54)"));
    assert!(!has(&machine, "TFTP"));
    machine.unplug();
}

#[tokio::test]
async fn an_offer_without_discovery_control_leads_to_port_4011() {
    let rack = Rack::start(Manner::NoDiscoveryControl, vec![0x90; 1468], AGENT).await;
    let machine = Machine::start(spec(6, Firmware::Bios), rack.network, Scripted::new(|_, _| Next::Hang));
    machine.power_on();
    bounded(machine.until(|machine| has(machine, "agent mode starts"))).await;
    assert!(rack.asked.1.load(Ordering::SeqCst) >= 1);
    assert!(has(&machine, "TFTP snp.efi 1468 octets"), "a whole number of blocks ends with an empty one");
    machine.unplug();
}

#[tokio::test]
async fn a_script_that_exits_leads_to_the_disk_or_round_again() {
    let rack = Rack::start(Manner::Complete, vec![0x90; 100], "#!ipxe\nexit\n").await;
    let mut spec = spec(7, Firmware::Uefi);
    spec.order = BootOrder::NetworkFirst;
    let machine = Machine::start(spec, rack.network, Scripted::new(|_, _| Next::Hang));
    machine.power_on();
    bounded(machine.until(|machine| machine.counts().boots_failed >= 2)).await;
    machine.disk().install("v1.11.0");
    bounded(machine.until(|machine| machine.counts().boots_talos_disk == 1)).await;
    machine.unplug();
}

#[tokio::test]
async fn a_missing_script_is_a_failure_and_no_boot() {
    let rack = Rack::start(Manner::Complete, vec![0x90; 100], "#!ipxe\nkernel http://BOX/gone\nboot\n").await;
    let machine = Machine::start(spec(8, Firmware::Uefi), rack.network, Scripted::new(|_, _| Next::Hang));
    machine.power_on();
    bounded(machine.until(|machine| machine.counts().boots_failed >= 1)).await;
    assert!(has(&machine, "HTTP 404"));
    machine.unplug();
}

#[tokio::test]
async fn an_installed_machine_starts_from_disk_unless_told_otherwise_once() {
    let rack = Rack::start(Manner::Complete, vec![0x90; 100], AGENT).await;
    let os = Scripted::new(|_, _| Next::Hang);
    let machine = Machine::start(spec(9, Firmware::Uefi), rack.network, os.clone());
    machine.disk().install("v1.11.0");
    machine.set_boot_once(Some(BootOnce::Pxe));
    machine.power_on();
    bounded(machine.until(|machine| machine.counts().boots_agent == 1)).await;
    assert_eq!(machine.boot_once(), None);
    assert!(machine.power_cycle());
    bounded(machine.until(|machine| machine.counts().boots_talos_disk == 1)).await;
    let counts = machine.counts();
    assert_eq!((counts.power_ons, counts.power_offs, counts.power_cycles), (1, 0, 1));
    machine.unplug();
}

#[tokio::test]
async fn a_power_cut_stops_everything_and_shows_as_off() {
    let rack = Rack::start(Manner::Complete, vec![0x90; 100], AGENT).await;
    let os = Scripted::new(|_, _| Next::Hang);
    let machine = Machine::start(spec(10, Firmware::Uefi), rack.network, os.clone());
    assert!(!machine.power_off() && !machine.power_cycle());
    machine.power_on();
    assert!(!machine.power_on());
    bounded(machine.until(|machine| machine.counts().boots_agent == 1)).await;
    assert!(machine.power_off());
    bounded(machine.until(|machine| machine.power() == PowerState::Off)).await;
    bounded(async {
        while os.cancelled.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let lines = machine.events().len();
    machine.power_on();
    bounded(machine.until(|machine| machine.counts().boots_agent == 2)).await;
    assert!(machine.events().len() > lines);
    machine.unplug();
}

#[tokio::test]
async fn a_system_installs_reboots_and_powers_off() {
    let script = "#!ipxe\nkernel http://BOX/kernel talos.platform=metal\ninitrd http://BOX/initramfs\nboot\n";
    let rack = Rack::start(Manner::Complete, vec![0x90; 100], script).await;
    let os = Scripted::new(|kind, machine| match kind {
        Kind::TalosDisk => Next::PowerOff,
        Kind::TalosNet | Kind::Agent => {
            machine.disk().install("v1.11.0");
            Next::Reboot
        }
    });
    let machine = Machine::start(spec(11, Firmware::Uefi), rack.network, os.clone());
    machine.power_on();
    bounded(machine.until(|machine| has(machine, "system powers off") && machine.power() == PowerState::Off)).await;
    let counts = machine.counts();
    assert_eq!((counts.boots_talos_net, counts.boots_talos_disk, counts.installs), (1, 1, 1));
    assert_eq!(counts.power_offs, 0, "nobody asked the chassis");
    assert!(machine.power_on(), "a machine that turned itself off can be turned on");
    machine.unplug();
}

#[tokio::test]
async fn two_hundred_machines_boot_in_one_process() {
    let rack = Rack::start(Manner::Complete, vec![0x90; 3000], AGENT).await;
    let mut machines = Vec::new();
    for number in 0..200_u8 {
        let mut spec = spec(number, Firmware::UefiHttp);
        spec.address = Ipv4Addr::new(127, 9, 2, number + 1);
        machines.push(Machine::start(spec, rack.network, Scripted::new(|_, _| Next::Hang)));
    }
    machines.iter().for_each(|machine| assert!(machine.power_on()));
    for machine in &machines {
        bounded(machine.until(|machine| machine.counts().boots_agent == 1)).await;
    }
    machines.iter().for_each(|machine| machine.unplug());
}
