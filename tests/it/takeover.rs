//! Taking over from the Go provider under its own ID while machines run, and going back.
//!
//! What the Go provider leaves in Omni is laid out as contracts bare-metal-provider.md section 7.9 and omni-wire.md section
//! 4.3 have it: owners and finalizers named after its controllers, and BMC passwords in clear.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pilotlight::lab::bmc::{Chassis, SimulatedBmc};
use pilotlight::lab::omni::controller::INFRA_MACHINE_OWNER;
use pilotlight::lab::omni::lifecycle::Allocation;
use pilotlight::lab::omni::token;
use pilotlight::lab::omni::{Omni, Options};
use pilotlight::machine::PowerState;
use pilotlight::proto::lab::ReportRequest;
use pilotlight::proto::lab::machine_link_client::MachineLinkClient;
use pilotlight::proto::lab::report_request::Event;
use pilotlight::proto::siderolink::ProvisionRequest;
use pilotlight::proto::siderolink::provision_service_client::ProvisionServiceClient;
use pilotlight::proto::{provider, specs};
use pilotlight::resource::{Kind, LABEL_INFRA_PROVIDER_ID, LABEL_IS_STATIC_INFRA_PROVIDER, Resource};
use pilotlight::secret::Secret;
use pilotlight::store::seal::is_sealed;
use pilotlight::wire::ipmi::command::{BootOverride, ChassisControl};
use tokio::process::{Child, Command};
use tonic::transport::Channel;

/// What a machine shows of its tunnel's key.
const WIREGUARD_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
const ID: &str = "bare-metal";
const USER: &str = "talos-agent";
const PASSWORD: &str = "plain-from-go";
const CONTROLLERS: [&str; 6] = [
    "MachineStatusController",
    "InfraMachineStatusController",
    "BMCConfigurationController",
    "PowerOperationController",
    "RebootStatusController",
    "WipeStatusController",
];
const RECORDS: [&str; 5] = ["BMCConfiguration", "MachineStatus", "PowerOperation", "RebootStatus", "WipeStatus"];
const PATIENCE: Duration = Duration::from_secs(60);

fn uuid(number: u32) -> String {
    format!("4c4c4544-0042-3510-8054-{number:012x}")
}

fn controller(name: &str) -> String {
    format!("{ID}.{name}")
}

/// A machine that stays as it is and remembers what it was told.
struct Still {
    power: PowerState,
    asked: tokio::sync::watch::Sender<u32>,
    told: Mutex<Vec<String>>,
}

impl Chassis for Still {
    fn power(&self) -> PowerState {
        self.asked.send_modify(|asked| *asked += 1);
        self.power
    }

    fn control(&self, control: ChassisControl) {
        self.told.lock().unwrap().push(format!("{control:?}"));
    }

    fn boot_override(&self, flags: BootOverride) {
        self.told.lock().unwrap().push(format!("{flags:?}"));
    }
}

struct Machine {
    id: String,
    chassis: Arc<Still>,
    bmc: SimulatedBmc,
}

impl Machine {
    async fn new(number: u32, power: PowerState) -> Self {
        let chassis = Arc::new(Still { power, asked: Default::default(), told: Mutex::default() });
        let bmc = SimulatedBmc::start(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), chassis.clone()).await.unwrap();
        bmc.set_user(USER, &Secret::new(PASSWORD.to_owned())).unwrap();
        Self { id: uuid(number), chassis, bmc }
    }

    /// Joins Omni and says how it runs.
    async fn report(&self, omni: &Omni, events: &[Event]) {
        let channel = Channel::from_shared(omni.endpoint()).unwrap().connect().await.unwrap();
        let config = omni.state().get(&Kind::omni("ProviderJoinConfigs"), ID).unwrap();
        let secret = config.decode::<specs::ProviderJoinConfigSpec>().unwrap().join_token;
        let join_token = Some(token::for_provider(&secret, ID));
        let join = ProvisionRequest {
            node_public_key: WIREGUARD_KEY.into(),
            node_uuid: self.id.clone(),
            join_token,
            ..Default::default()
        };
        ProvisionServiceClient::new(channel.clone()).provision(join).await.unwrap();
        for event in events {
            let report = ReportRequest { uuid: self.id.clone(), event: (*event).into() };
            MachineLinkClient::new(channel.clone()).report(report).await.unwrap();
        }
    }

    /// Waits until the provider has asked for its power `times` more times.
    async fn polled(&self, times: u32) {
        let mut asked = self.chassis.asked.subscribe();
        let goal = *asked.borrow() + times;
        let polled = tokio::time::timeout(PATIENCE, asked.wait_for(|asked| *asked >= goal)).await;
        polled.expect("the provider polls").unwrap();
    }

    fn assert_untouched(&self) {
        assert_eq!(*self.chassis.told.lock().unwrap(), Vec::<String>::new(), "{}", self.id);
    }
}

/// Writes what the Go provider wrote about a machine.
fn go_wrote(omni: &Omni, machine: &Machine, power_off_id: &str) {
    let wiped_token = omni.controller().machine(&machine.id).map(|known| known.node_unique_token).unwrap_or_default();
    let own = |name: &str, spec: &dyn Fn() -> bytes::Bytes, finalizer: Option<&str>| {
        let mut resource = Resource::new(Kind::private(name, ID), machine.id.as_str(), &());
        resource.spec = spec();
        resource.finalizers.extend(finalizer.map(controller));
        omni.state().create(resource, &controller(&format!("{name}Controller"))).unwrap();
    };
    fn octets(spec: impl prost::Message) -> bytes::Bytes {
        spec.encode_to_vec().into()
    }
    let ipmi = provider::bmc_configuration_spec::Ipmi {
        address: "127.0.0.1".into(),
        port: machine.bmc.address().port().into(),
        username: USER.into(),
        password: PASSWORD.into(),
    };
    own(
        "BMCConfiguration",
        &|| octets(provider::BmcConfigurationSpec { ipmi: Some(ipmi.clone()), api: None, manually_configured: false }),
        Some("RebootStatusController"),
    );
    own(
        "MachineStatus",
        &|| octets(provider::MachineStatusSpec { initialized: true, ..Default::default() }),
        Some("RebootStatusController"),
    );
    own(
        "PowerOperation",
        &|| {
            octets(provider::PowerOperationSpec {
                last_power_off_id: power_off_id.into(),
                last_power_operation: provider::PowerState::On.into(),
                last_power_on_timestamp: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
                ..Default::default()
            })
        },
        None,
    );
    own("RebootStatus", &|| octets(provider::RebootStatusSpec::default()), None);
    own(
        "WipeStatus",
        &|| {
            octets(provider::WipeStatusSpec {
                initial_wipe_done: true,
                wiped_node_unique_token: wiped_token.clone(),
                ..Default::default()
            })
        },
        None,
    );
    let mut status = Resource::new(
        Kind::omni("InfraMachineStatuses"),
        machine.id.as_str(),
        &specs::InfraMachineStatusSpec { ready_to_use: true, ..Default::default() },
    );
    status.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), ID.into());
    omni.state().create(status, &controller("InfraMachineStatusController")).unwrap();
    let _ = omni.state().modify(&Kind::omni("InfraMachines"), &machine.id, |stored| {
        stored.finalizers.extend(CONTROLLERS.map(controller));
    });
}

fn free_udp() -> u16 {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn free_tcp() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn start(omni: &Omni, directory: &Path, extra: &[&str]) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(directory.join("provider.log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_pilotlight"))
        .arg("provider")
        .args([format!("--id={ID}"), format!("--omni-api-endpoint={}", omni.endpoint())])
        .args(["--api-listen-address=127.0.0.1", "--api-advertise-address=127.0.0.1", "--poll-interval=200ms"])
        .args([format!("--api-port={}", free_tcp()), format!("--dhcp-port={}", free_udp())])
        .args([format!("--binl-port={}", free_udp()), format!("--tftp-port={}", free_udp())])
        .arg(format!("--image-factory-base-url={}", omni.factory_url()))
        .arg(format!("--ipxe-path={}", directory.display()))
        .arg(format!("--state-dir={}", directory.join("state").display()))
        .arg(format!("--web-listen-address=127.0.0.1:{}", free_tcp()))
        .args(["--min-reboot-interval=0", "--agent-wait=1s"])
        .args(extra)
        .env("OMNI_SERVICE_ACCOUNT_KEY", omni.service_account().key_string.reveal())
        .env_remove("SIDERO_SERVICE_ACCOUNT_KEY")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

async fn stop(mut child: Child) {
    let pid = nix::unistd::Pid::from_raw(child.id().unwrap().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap().success());
}

/// Waits until `met` holds, looking again after every change of what the provider writes.
async fn until(omni: &Omni, what: &str, met: impl Fn() -> bool) {
    let kinds = RECORDS.map(|name| Kind::private(name, ID)).into_iter().chain([Kind::omni("InfraMachineStatuses")]);
    let mut bells = omni.state().bells(kinds);
    let met = async {
        while !met() {
            bells.rung().await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, met).await.is_ok(), "{what} within {PATIENCE:?}");
}

fn password(omni: &Omni, id: &str) -> String {
    let resource = omni.state().get(&Kind::private("BMCConfiguration", ID), id).unwrap();
    resource.decode::<provider::BmcConfigurationSpec>().unwrap().ipmi.unwrap().password
}

fn status(omni: &Omni, id: &str) -> specs::InfraMachineStatusSpec {
    omni.state().get(&Kind::omni("InfraMachineStatuses"), id).unwrap().decode().unwrap()
}

fn power_known(omni: &Omni, id: &str) -> bool {
    status(omni, id).power_state != 0
}

/// Owners, finalizers and specs of what the provider keeps about a machine, its password left out.
fn kept(omni: &Omni, id: &str) -> Vec<(String, String, Vec<String>, bytes::Bytes)> {
    let describe = |name: &str| {
        let stored = omni.state().get(&Kind::private(name, ID), id).unwrap();
        let spec = match name {
            // The password is compared by its form, and the status is news.
            "BMCConfiguration" | "MachineStatus" => bytes::Bytes::new(),
            _ => stored.spec.clone(),
        };
        (name.to_owned(), stored.owner.clone(), stored.finalizers.iter().cloned().collect(), spec)
    };
    RECORDS.map(describe).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn machines_of_the_go_provider_are_taken_over_as_they_run_and_given_back() {
    let directory = tempfile::tempdir().unwrap();
    let omni = Omni::start(Options::loopback(ID)).await.unwrap();
    let mut registered =
        Resource::new(Kind::omni("InfraProviderStatuses"), ID, &specs::InfraProviderStatusSpec::default());
    registered.labels.insert(LABEL_IS_STATIC_INFRA_PROVIDER.into(), String::new());
    registered.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), ID.into());
    omni.state().create(registered, "").unwrap();

    // One runs in a cluster, one is idle, one was powered off by its user, one is forgotten.
    let running = Machine::new(1, PowerState::On).await;
    let idle = Machine::new(2, PowerState::Off).await;
    let off = Machine::new(3, PowerState::Off).await;
    let forgotten = Machine::new(4, PowerState::On).await;
    let allocation = Allocation {
        cluster: "prod".into(),
        machine_set: "prod-workers".into(),
        control_plane: false,
        talos_version: "1.11.2".into(),
        extensions: Vec::new(),
    };
    let people = omni.people();
    for machine in [&running, &idle, &off] {
        machine.report(&omni, &[Event::Agent]).await;
        people.accept(&machine.id).unwrap();
        omni.controller().wait(&machine.id, |known| known?.info_collected.then_some(())).await;
    }
    for machine in [&running, &off] {
        people.allocate(&machine.id, allocation.clone()).unwrap();
        machine.report(&omni, &[Event::BootedFromDisk]).await;
    }
    let power_off = people.power_off(&off.id).unwrap();
    let told = |known: &specs::InfraMachineSpec| known.power_off_request_id == power_off;
    omni.controller().wait(&off.id, |known| told(&known?.spec()).then_some(())).await;
    for (machine, power_off_id) in [(&running, ""), (&idle, ""), (&off, power_off.as_str()), (&forgotten, "")] {
        go_wrote(&omni, machine, power_off_id);
    }
    let certificate = provider::TlsConfigSpec { ca_cert: "cert".into(), ca_key: "key".into() };
    let certificate = Resource::new(Kind::private("TLSConfig", ID), "tls-config", &certificate);
    omni.state().create(certificate, "").unwrap();
    let machines = [&running, &idle, &off];
    let before: Vec<_> = machines.map(|machine| kept(&omni, &machine.id)).into();

    let child = start(&omni, directory.path(), &[]);
    until(&omni, "passwords sealed", || machines.iter().all(|machine| is_sealed(&password(&omni, &machine.id)))).await;
    until(&omni, "power states told", || machines.iter().all(|machine| power_known(&omni, &machine.id))).await;
    let gone = |id: &str| {
        let own = RECORDS.map(|name| Kind::private(name, ID)).into_iter().chain([Kind::omni("InfraMachineStatuses")]);
        own.into_iter().all(|kind| omni.state().get(&kind, id).is_err())
    };
    until(&omni, "what is left of a forgotten machine collected", || gone(&forgotten.id)).await;
    for machine in machines {
        machine.polled(4).await;
        machine.assert_untouched();
        let stored = omni.state().get(&Kind::omni("InfraMachines"), &machine.id).unwrap();
        assert_eq!(stored.owner, INFRA_MACHINE_OWNER);
        assert_eq!(stored.finalizers, CONTROLLERS.map(controller).into(), "the Go provider's own, and no more");
        let stored = omni.state().get(&Kind::omni("InfraMachineStatuses"), &machine.id).unwrap();
        assert_eq!(stored.owner, controller("InfraMachineStatusController"));
        assert!(status(&omni, &machine.id).ready_to_use);
    }
    forgotten.assert_untouched();
    assert!(status(&omni, &running.id).installed && !status(&omni, &idle.id).installed);
    assert_eq!(status(&omni, &off.id).last_power_off_id, power_off);
    assert_eq!(machines.map(|machine| kept(&omni, &machine.id)).to_vec(), before, "records stay as they were");

    // A person removes one: what the Go provider held of it does not keep it.
    people.remove(&idle.id).unwrap();
    let removed = omni.controller().wait(&idle.id, |known| known.is_none().then_some(()));
    tokio::time::timeout(PATIENCE, removed).await.expect("the machine is let go");
    assert!(gone(&idle.id));
    idle.assert_untouched();
    stop(child).await;

    // And back: the Go provider reads passwords in clear.
    let child = start(&omni, directory.path(), &["--bmc-passwords-in-clear"]);
    let left = [&running, &off];
    until(&omni, "passwords in clear", || left.iter().all(|machine| password(&omni, &machine.id) == PASSWORD)).await;
    for machine in left {
        machine.polled(4).await;
        machine.assert_untouched();
    }
    stop(child).await;
    assert_eq!(kept(&omni, &running.id), before[0]);
    assert_eq!(kept(&omni, &off.id), before[2]);
    assert!(omni.state().get(&Kind::private("TLSConfig", ID), "tls-config").is_ok());
    let log = std::fs::read_to_string(directory.path().join("provider.log")).unwrap();
    assert!(!log.contains(PASSWORD), "no password in the log");
    omni.shutdown().await;
}
