//! Operating systems against the lab's Omni and a real provider's tunnels, on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::extract::State as Extract;
use http::StatusCode;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::TcpListenerStream;

use super::*;
use crate::agent::{Admission, PowerManagement, Refusal, Tunnels};
use crate::lab::omni::{Omni, Options, lifecycle::Allocation};
use crate::proto::specs::infra_machine_status_spec::MachinePowerState;
use crate::proto::specs::{InfraMachineStatusSpec, InfraProviderStatusSpec, ProviderJoinConfigSpec};
use crate::resource::{Kind, LABEL_INFRA_PROVIDER_ID, LABEL_IS_STATIC_INFRA_PROVIDER, Resource};

const UUID: &str = "4c4c4544-0042-3510-8054-b7c04f333132";
const PATIENCE: Duration = Duration::from_secs(20);

/// Hardware of memory.
struct Hardware {
    id: MachineId,
    installed: Mutex<Option<Installation>>,
    wipes: Mutex<Vec<bool>>,
    users: Mutex<Vec<String>>,
}

impl Hardware {
    fn new() -> Arc<Self> {
        let id = UUID.parse().unwrap();
        Arc::new(Self { id, installed: Mutex::default(), wipes: Mutex::default(), users: Mutex::default() })
    }
}

#[async_trait::async_trait]
impl Platform for Hardware {
    fn id(&self) -> &MachineId {
        &self.id
    }

    fn local_bind(&self) -> Option<IpAddr> {
        Some(Ipv4Addr::new(127, 9, 8, 7).into())
    }

    fn note(&self, what: String) {
        println!("{what}");
    }

    async fn wipe(&self, zeroes: bool) -> Result<(), PlatformError> {
        self.wipes.lock().unwrap().push(zeroes);
        *self.installed.lock().unwrap() = None;
        Ok(())
    }

    async fn install(&self, installation: &Installation) -> Result<(), PlatformError> {
        *self.installed.lock().unwrap() = Some(installation.clone());
        Ok(())
    }

    async fn installed(&self) -> Option<Installation> {
        self.installed.lock().unwrap().clone()
    }

    async fn bmc(&self) -> Option<BmcLan> {
        Some(BmcLan { address: Ipv4Addr::new(10, 0, 0, 9), port: 623, users: vec![String::new()] })
    }

    async fn set_bmc_user(&self, name: &str, _password: &Secret<String>) -> Result<(), PlatformError> {
        self.users.lock().unwrap().push(name.to_owned());
        Ok(())
    }
}

/// Takes tunnels from the machine's own address alone.
struct FromItsAddress;

impl Admission for FromItsAddress {
    fn admit(&self, _machine: &MachineId, peer: SocketAddr) -> Result<(), Refusal> {
        let good = peer.ip() == Ipv4Addr::new(127, 9, 8, 7);
        if good { Ok(()) } else { Err(Refusal { reason: "from elsewhere".into() }) }
    }
}

/// Omni, a provider's config endpoint and tunnels, and a machine.
struct Site {
    omni: Omni,
    tunnels: Tunnels,
    tunnel_address: SocketAddr,
    config_address: SocketAddr,
    config_requests: Arc<AtomicU32>,
    hardware: Arc<Hardware>,
    servers: Vec<JoinHandle<()>>,
}

impl Drop for Site {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

impl Site {
    async fn open() -> Self {
        let omni = Omni::start(Options::loopback("metal")).await.unwrap();
        let mut status =
            Resource::new(Kind::omni("InfraProviderStatuses"), "metal", &InfraProviderStatusSpec::default());
        status.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), "metal".into());
        status.labels.insert(LABEL_IS_STATIC_INFRA_PROVIDER.into(), String::new());
        omni.state().create(status, "").unwrap();
        let join = omni.state().get(&Kind::omni("ProviderJoinConfigs"), "metal").unwrap();
        let config = join.decode::<ProviderJoinConfigSpec>().unwrap().config.unwrap().config;

        let config_requests = Arc::new(AtomicU32::new(0));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config_address = listener.local_addr().unwrap();
        let router = axum::Router::new()
            .route(
                "/config",
                axum::routing::get(|Extract((config, requests)): Extract<(String, Arc<AtomicU32>)>| async move {
                    // The first machine comes too early, as machines do that boot faster than Omni answers.
                    match requests.fetch_add(1, Ordering::SeqCst) {
                        0 => Err(StatusCode::SERVICE_UNAVAILABLE),
                        _ => Ok(config),
                    }
                }),
            )
            .with_state((config, config_requests.clone()));
        let config_server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

        let tunnels = Tunnels::new(Arc::new(FromItsAddress));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tunnel_address = listener.local_addr().unwrap();
        let serve = tonic::transport::Server::builder()
            .add_service(tunnels.service())
            .serve_with_incoming(TcpListenerStream::new(listener));
        let tunnel_server = tokio::spawn(async move { serve.await.unwrap() });
        let (hardware, servers) = (Hardware::new(), vec![config_server, tunnel_server]);
        Self { omni, tunnels, tunnel_address, config_address, config_requests, hardware, servers }
    }

    /// Boots the machine; the result is how its system ended.
    fn boot(&self, boot: Boot, cancel: &CancellationToken) -> JoinHandle<Next> {
        tokio::spawn(run(boot, self.hardware.clone(), Patience::short(), cancel.clone()))
    }

    fn talos_from_network(&self) -> Boot {
        Boot::from_network(vec![(CONFIG.into(), format!("http://{}/config?u=${{uuid}}", self.config_address))])
    }

    fn agent(&self) -> Boot {
        let mut boot = self.talos_from_network();
        boot.cmdline.push((PROVIDER_ADDRESS.into(), self.tunnel_address.to_string()));
        Boot::from_network(boot.cmdline)
    }

    async fn reported(&self, event: Event) {
        let reported = self
            .omni
            .controller()
            .wait(UUID, |machine| machine.filter(|machine| machine.last_report == Some(event)).map(drop));
        tokio::time::timeout(PATIENCE, reported).await.unwrap_or_else(|_| panic!("{event:?} was not reported"));
    }

    /// What the provider says of a machine that it has wiped.
    fn ready(&self) {
        let mut status = InfraMachineStatusSpec { ready_to_use: true, ..InfraMachineStatusSpec::default() };
        status.set_power_state(MachinePowerState::PowerStateOn);
        let mut status = Resource::new(Kind::omni("InfraMachineStatuses"), UUID, &status);
        status.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), "metal".into());
        self.omni.state().create(status, "").unwrap();
    }
}

async fn ended(system: JoinHandle<Next>) -> Next {
    tokio::time::timeout(PATIENCE, system).await.expect("the system ends").unwrap()
}

#[tokio::test]
async fn an_agent_joins_reports_and_does_what_the_provider_asks_for() {
    let site = Site::open().await;
    let cancel = CancellationToken::new();
    let system = site.boot(site.agent(), &cancel);
    site.reported(Event::Agent).await;
    assert!(site.config_requests.load(Ordering::SeqCst) > 1, "the failed request was not repeated");
    let (id, timeout) = (&site.hardware.id, Duration::from_secs(5));
    let mut events = site.tunnels.events();
    while !site.tunnels.is_open(id) {
        tokio::time::timeout(PATIENCE, events.next()).await.unwrap();
    }
    assert!(matches!(site.tunnels.power_management(id, timeout).await.unwrap(), PowerManagement { ipmi: Some(_), .. }));
    site.tunnels.set_power_management(id, "talos-agent", &Secret::new("secret".into()), timeout).await.unwrap();
    site.tunnels.wipe_disks(id, true, timeout).await.unwrap();
    assert_eq!(*site.hardware.users.lock().unwrap(), ["talos-agent"]);
    assert_eq!(*site.hardware.wipes.lock().unwrap(), [true]);
    site.tunnels.reboot(id, timeout).await.unwrap();
    assert_eq!(ended(system).await, Next::Reboot);
}

#[tokio::test]
async fn talos_installs_runs_from_its_disk_resets_and_shuts_down_when_told() {
    let site = Site::open().await;
    let cancel = CancellationToken::new();
    let from_disk = || Boot { kind: crate::lab::machine::Kind::TalosDisk, cmdline: Vec::new() };
    let system = site.boot(site.talos_from_network(), &cancel);
    site.reported(Event::Maintenance).await;
    let people = site.omni.people();
    people.accept(UUID).unwrap();
    site.ready();
    let allocation = Allocation {
        cluster: "c".into(),
        machine_set: "c-workers".into(),
        control_plane: false,
        talos_version: "1.13.7".into(),
        extensions: Vec::new(),
    };
    people.allocate(UUID, allocation).unwrap();
    assert_eq!(ended(system).await, Next::Reboot);
    site.reported(Event::Installed).await;
    assert!(site.hardware.installed().await.unwrap().configured);

    let system = site.boot(from_disk(), &cancel);
    site.reported(Event::BootedFromDisk).await;
    people.deallocate(UUID).unwrap();
    assert_eq!(ended(system).await, Next::Reboot);
    site.reported(Event::ResetDone).await;
    assert!(!site.hardware.installed().await.unwrap().configured);

    let system = site.boot(from_disk(), &cancel);
    site.reported(Event::Maintenance).await;
    cancel.cancel();
    assert_eq!(ended(system).await, Next::Hang);
}

#[tokio::test]
async fn a_blank_disk_and_a_missing_config_do_not_end_in_a_boot_loop() {
    let hardware = Hardware::new();
    let blank = run(
        Boot { kind: crate::lab::machine::Kind::TalosDisk, cmdline: Vec::new() },
        hardware.clone(),
        Patience::short(),
        CancellationToken::new(),
    );
    assert_eq!(blank.await, Next::Hang);
    let cancel = CancellationToken::new();
    let waiting = tokio::spawn(run(Boot::from_network(Vec::new()), hardware, Patience::short(), cancel.clone()));
    cancel.cancel();
    assert_eq!(ended(waiting).await, Next::Hang);
}
