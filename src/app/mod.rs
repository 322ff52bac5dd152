//! Builds every service from a [`Config`], runs them, and shuts them down in order.
//!
//! An edge: it binds sockets and starts tasks. `pilotlight provider` runs all services as tasks of one process;
//! `pilotlight service NAME` runs one, and reaches the others over their sockets. Both wire the same pieces.

mod alive;
mod console;
mod core;
mod health;
pub mod net;
mod peers;
mod settings;
mod status;
mod tls;
mod unset;
mod view;

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::boot::proxy::BootView;
use crate::boot::{Advertise, BootFiles, Host, script};
use crate::config::Config;
use crate::controller::rack::Rack;
use crate::images::{Cache, Limits, Origin};
use crate::netboot::dhcp::{self, Listen, Outcome};
use crate::netboot::http::image_router;
use crate::netboot::{address, ipxe_files, serve, tftp};
use crate::omni::{self, Client};
use crate::status::{Service, Snapshot};
use crate::store::Store;
use crate::store::sled_store::SledStore;
use crate::store::socket::StoreClient;
use crate::telemetry::{Counters, Limit, Pulse};
use crate::time::{UnixTime, Uptime};
use crate::{ipc, slots, supervise, sys, update, web};
use peers::{ImagesClient, StoreIndex};

/// How long services may take to end before the process leaves without them. The supervisor kills later than that, so
/// that the store is closed in any case.
const GRACE: Duration = Duration::from_secs(6);
const _: () = assert!(GRACE.as_secs() < supervise::shutdown::GRACE.as_secs());
/// How long a service waits for the box's lease; one that still isn't ready then says why, ends, and is started anew.
const LEASE: Duration = Duration::from_secs(20);
const _: () = assert!(LEASE.as_secs() < supervise::READY_LIMIT.as_secs());
/// How often it looks.
const LEASE_PACE: Duration = Duration::from_millis(250);
/// How often the store is asked whether it still writes.
const STORE_PACE: Duration = Duration::from_secs(1);
/// How often memory that is not used is given back to the kernel: code that ran once would else stay resident.
const TIDY: Duration = Duration::from_secs(1);
/// DHCP events that wait to be put on a timeline; more are dropped, a timeline is no log.
const DHCP_EVENTS: usize = 256;

/// The services that can run as a process of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ServiceName {
    /// Gives the box its addresses, routes, name and time.
    Net,
    /// Owns the local store.
    Store,
    /// Talks to Omni, runs the machines' plans, answers boots and tunnels.
    Provider,
    /// Answers proxyDHCP.
    Dhcp,
    /// Serves iPXE binaries.
    Tftp,
    /// Keeps and serves boot images.
    Images,
    /// Keeps the box's configuration and its setup code.
    Settings,
    /// Serves the status page.
    Web,
    /// Shows the box on its screen and serial lines, and takes what is typed there.
    Console,
    /// Writes updates into the slot that does not run.
    Update,
}

impl ServiceName {
    /// Whether it needs Omni's endpoint and the service account key. The supervisor's table gives the key to no other.
    pub const fn talks_to_omni(self) -> bool {
        matches!(self, Self::Provider)
    }

    /// The service's name, as in the supervisor's table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Store => "store",
            Self::Provider => "provider",
            Self::Dhcp => "dhcp",
            Self::Tftp => "tftp",
            Self::Images => "images",
            Self::Settings => "settings",
            Self::Web => "web",
            Self::Console => "console",
            Self::Update => "update",
        }
    }
}

/// Runs all services as tasks of this process until SIGTERM or SIGINT.
///
/// # Errors
///
/// What kept a service from starting, or which one ended.
pub async fn provider(config: Config) -> anyhow::Result<()> {
    let cancel = ended_by_signal()?;
    say(&config);
    let counters = Counters::new();
    let advertise = advertise(&config)?;
    let state = &config.state_dir;
    let sled = Arc::new(open_store(&state.join("store"))?);
    let store: Arc<dyn Store> = sled.clone();
    let client = open_omni(&config)?;
    let cache = Arc::new(open_cache(&config, &store, Some(&client)).await?);
    let files = load_files(&config, &advertise).await;
    let rack = Rack::default();

    let mut running = Running::new(cancel.clone());
    if config.dhcp.is_some() {
        start_dhcp(&config, &advertise, &files, &counters, Some(rack.clone()), &mut running)?;
    }
    start_tftp(&config, &files, &counters, &mut running)?;
    if let Some(address) = config.images {
        let router = image_router(Arc::clone(&cache));
        start_http("images", address, router, &mut running).await?;
    }
    running.up("store", state.join("store").display().to_string());
    running.spawn("store health", watch_store(Arc::clone(&store), None, cancel.clone()));
    let parts = core::Parts {
        config: config.clone(),
        client,
        images_at: advertise.clone(),
        advertise,
        store: Arc::clone(&store),
        images: cache.clone(),
        cache: Some(cache),
        files,
        rack,
        counters,
        services: watch::channel(Vec::new()).1,
    };
    let snapshots = core::start(parts, &mut running).await?;
    if let Some(address) = config.web {
        start_http("web", address, web::router(snapshots), &mut running).await?;
    }
    let ended = running.finish().await;
    sled.close().await.context("the store did not close")?;
    ended
}

/// Runs one service as this process until SIGTERM or SIGINT. Its peers are reached over sockets below the run directory.
///
/// # Errors
///
/// What kept it from starting.
pub async fn service(name: ServiceName, config: Config) -> anyhow::Result<()> {
    let ended = run_service(name, config).await;
    if let Err(error) = &ended {
        alive::last_words(error);
    }
    ended
}

async fn run_service(name: ServiceName, config: Config) -> anyhow::Result<()> {
    let cancel = ended_by_signal()?;
    let counters = Counters::new();
    let mut running = Running::new(cancel.clone());
    let run_dir = &config.run_dir;
    let state = config.state_dir.join(name.as_str());
    let store = || -> Arc<dyn Store> { Arc::new(StoreClient::connect(&socket(run_dir, "store"))) };
    match name {
        ServiceName::Net => net::start(&config, &mut running)?,
        ServiceName::Console => console::start(&config, &mut running),
        ServiceName::Store => {
            let sled = Arc::new(open_store(&state)?);
            let listener = ipc::bind(&socket(run_dir, "store")).context("store socket")?;
            let serving =
                crate::store::socket::serve(sled.clone(), listener, allowed(&["provider", "images"]), cancel.clone());
            running.spawn("store", async move {
                serving.await;
                Ok(())
            });
            let pulse = Pulse::new(Uptime::now());
            running.watch("store", vec![pulse.clone()]);
            running.up("store", state.display().to_string());
            running.spawn("store health", watch_store(sled.clone(), Some(pulse), cancel.clone()));
            let ended = running.finish().await;
            sled.close().await.context("the store did not close")?;
            return ended;
        }
        ServiceName::Provider if config.omni.endpoint.is_empty() => {
            say(&config);
            unset::provider(&config, &mut running)?;
        }
        // Who answers a machine's broadcast leads it here, where nothing would boot it.
        ServiceName::Dhcp | ServiceName::Tftp if config.omni.endpoint.is_empty() => {
            running.up(name.as_str(), unset::WORDS.to_owned());
        }
        ServiceName::Provider => {
            say(&config);
            let advertise = leased(&config, &cancel).await?;
            let images_at = Advertise { port: images_port(&config), ..advertise.clone() };
            let files = load_files(&config, &advertise).await;
            let (sender, services) = watch::channel(Vec::new());
            running.spawn("services", peers::follow_services(sender, cancel.clone()));
            let parts = core::Parts {
                config: config.clone(),
                client: open_omni(&config)?,
                images_at,
                advertise,
                store: store(),
                images: Arc::new(ImagesClient::connect(&socket(run_dir, "images"))),
                cache: None,
                files,
                rack: Rack::default(),
                counters,
                services,
            };
            let snapshots = core::start(parts, &mut running).await?;
            running.reaching(snapshots.clone(), |snapshot| snapshot.omni.connected);
            let listener = ipc::bind(&socket(run_dir, "provider")).context("provider socket")?;
            running.spawn(
                "status",
                peers::serve_status(listener, allowed(&["web", "console"]), snapshots, cancel.clone()),
            );
        }
        ServiceName::Dhcp => {
            let advertise = leased(&config, &cancel).await?;
            let files = load_files(&config, &advertise).await;
            start_dhcp(&config, &advertise, &files, &counters, None, &mut running)?;
        }
        ServiceName::Tftp => {
            let files = load_files(&config, &leased(&config, &cancel).await?).await;
            start_tftp(&config, &files, &counters, &mut running)?;
        }
        ServiceName::Images => {
            // Without Omni's key: what it needs comes from the factory itself.
            let cache = Arc::new(open_cache(&config, &store(), None).await?);
            let address = config.images.unwrap_or_else(|| {
                SocketAddr::new(config.listen.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), IMAGES_PORT)
            });
            start_http("images", address, image_router(Arc::clone(&cache)), &mut running).await?;
            let listener = ipc::bind(&socket(run_dir, "images")).context("images socket")?;
            running.spawn("images", peers::serve_images(listener, allowed(&["provider"]), cache, cancel.clone()));
        }
        ServiceName::Settings => settings::start(&config, &mut running)?,
        ServiceName::Web => {
            let (sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
            let path = socket(run_dir, "provider");
            running.spawn("status", peers::follow_status(path, sender, cancel.clone()));
            let address = config.web.unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 80)));
            let sessions = web::session::Sessions::default();
            let updates = update::service::client(&socket(run_dir, "update"));
            let updates = web::update::routes(updates, Arc::new(sessions.clone()));
            let installation = web::install::routes(run_dir.join("init.sock"), Arc::new(sessions.clone()));
            let setup = web::settings::router(Arc::new(settings::Services::connect(run_dir)), sessions);
            let mut router = web::router_with(snapshots, setup.merge(updates).merge(installation));
            if let Some(address) = config.web_tls {
                let run = run_dir.join(name.as_str());
                match tls::start(address, (&state, &run), router.clone(), &mut running).await {
                    Ok(with_certificate) => router = web::encrypted::beside_tls(with_certificate, address.port()),
                    // A page in the clear is worth more than none.
                    Err(error) => tracing::error!(error = format!("{error:#}"), "the page is not served over TLS"),
                }
            }
            start_http("web", address, router, &mut running).await?;
        }
        ServiceName::Update => {
            let listener = ipc::bind(&socket(run_dir, "update")).context("update socket")?;
            let setup = update::service::Setup {
                keys: update::keys::trusted(&config.update.keys),
                compatible: update::service::compatible(),
                own: slots::Version::parse(env!("CARGO_PKG_VERSION")).context("this program has no version")?,
                disk: config.update.disk.clone(),
                init: run_dir.join("init.sock"),
                stick: config.update.stick.clone(),
                state,
                proxy: config.omni.proxy.clone(),
            };
            running.up("update", format!("{} keys are trusted", setup.keys.len()));
            let updates = update::service::Updates::new(setup, cancel.clone());
            let allowed = allowed(&["web", "console"]);
            running.spawn("update", async move {
                updates.serve(listener, allowed).await;
                Ok(())
            });
        }
    }
    running.finish().await
}

/// Port of the images service where nothing else is asked for.
const IMAGES_PORT: u16 = 50044;

fn images_port(config: &Config) -> u16 {
    config.images.map_or(IMAGES_PORT, |address| address.port())
}

fn socket(run_dir: &Path, service: &str) -> std::path::PathBuf {
    run_dir.join(service).join(format!("{service}.sock"))
}

/// The users that may speak to a socket: those services' and this process's own.
fn allowed(services: &[&str]) -> Vec<u32> {
    let own = nix::unistd::geteuid().as_raw();
    services
        .iter()
        .filter_map(|name| supervise::services::service(name))
        .map(|service| service.uid)
        .chain([own])
        .collect()
}

fn say(config: &Config) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        provider = config.id,
        omni = config.omni.endpoint,
        state = %config.state_dir.display(),
        "starting"
    );
    for notice in &config.notices {
        tracing::warn!(notice, "configuration");
    }
}

fn advertise(config: &Config) -> anyhow::Result<Advertise> {
    let host = match &config.advertise {
        Some(host) => host.clone(),
        None => {
            let addresses = address::list()?;
            let found = address::detect_advertise(&addresses).context("--api-advertise-address is needed")?;
            Host::Ip(IpAddr::V4(found))
        }
    };
    Ok(Advertise { host, port: config.api_port })
}

/// As [`advertise`], once the box has an address: its services start before its lease is there.
async fn leased(config: &Config, cancel: &CancellationToken) -> anyhow::Result<Advertise> {
    let until = Uptime::now() + LEASE;
    loop {
        match advertise(config) {
            Err(_) if Uptime::now() < until && !cancel.is_cancelled() => tokio::time::sleep(LEASE_PACE).await,
            found => return found,
        }
    }
}

fn open_store(dir: &Path) -> anyhow::Result<SledStore> {
    std::fs::create_dir_all(dir)
        .with_context(|| format!("state directory {} can't be made; set --state-dir", dir.display()))?;
    SledStore::open(dir).context("the local store can't be opened")
}

/// Watches over the store until `cancel`. One that can't write any more recovers only when it is opened anew, so it is
/// an error then. `pulse` beats with each answer.
async fn watch_store(store: Arc<dyn Store>, pulse: Option<Pulse>, cancel: CancellationToken) -> anyhow::Result<()> {
    loop {
        // Cancel-safe: both only wait.
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = tokio::time::sleep(STORE_PACE) => {}
        }
        if store.health().await.context("the store can't be asked how it is")?.failed {
            bail!("the store can't write any more and has to be opened anew");
        }
        if let Some(pulse) = &pulse {
            pulse.beat(Uptime::now());
        }
    }
}

fn open_omni(config: &Config) -> anyhow::Result<Client> {
    Client::connect(omni::Config {
        endpoint: config.omni.endpoint.clone(),
        key: config.omni.key.clone(),
        insecure_skip_tls_verify: config.omni.insecure_skip_tls_verify,
        provider_id: config.id.clone(),
        proxy: config.omni.proxy.clone(),
        ..omni::Config::default()
    })
    .context("Omni can't be reached like this")
}

async fn open_cache(config: &Config, store: &Arc<dyn Store>, client: Option<&Client>) -> anyhow::Result<Cache> {
    let origin = Origin::new(&config.image_factory).context("--image-factory-base-url")?;
    let origin = match client {
        Some(client) => origin.behind(client.management().clone()),
        None => origin,
    };
    let index = Arc::new(StoreIndex::new(Arc::clone(store)));
    let limits = Limits { max_bytes: config.image_cache_size, ..Limits::default() };
    let dir = config.state_dir.join("images");
    Cache::open(&dir, origin, index, limits).await.context("the image cache can't be opened")
}

async fn load_files(config: &Config, advertise: &Advertise) -> Arc<BootFiles> {
    let (files, missing) = ipxe_files::load(&config.ipxe_dir, &script::init(advertise)).await;
    for error in missing {
        tracing::warn!(%error, "iPXE binary not loaded");
    }
    Arc::new(files)
}

fn start_dhcp(
    config: &Config,
    advertise: &Advertise,
    files: &BootFiles,
    counters: &Counters,
    rack: Option<Rack>,
    running: &mut Running,
) -> anyhow::Result<()> {
    let Some(dhcp) = &config.dhcp else { return Ok(()) };
    let addresses = address::list()?;
    let Host::Ip(IpAddr::V4(server)) = advertise.host else {
        bail!("the DHCP proxy needs an IPv4 address in --api-advertise-address, not {}", advertise.host);
    };
    let interface = address::find_interface(&addresses, &dhcp.interface.clone().unwrap_or_else(|| server.to_string()))?;
    // On loopback there is no broadcast to listen for, and binding to the device would change nothing.
    let listen = if server.is_loopback() {
        Listen { interface: None, address: server }
    } else {
        Listen::on_interface(&interface)
    };
    let config = dhcp::Config {
        listen: vec![listen],
        dhcp_port: dhcp.broadcast.then_some(dhcp.port),
        binl_port: dhcp.binl_port,
    };
    let sockets = dhcp::Sockets::bind(&config)?;
    let view =
        BootView { server, advertise: advertise.clone(), discovery_control: true, served: files.binaries().collect() };
    let (sender, view) = watch::channel(view);
    let (events, mut heard) = mpsc::channel::<dhcp::Event>(DHCP_EVENTS);
    running.up("dhcp", format!("{interface}, ports {} and {}", dhcp.port, dhcp.binl_port));
    running.spawn("dhcp timeline", async move {
        while let Some(event) = heard.recv().await {
            note(&event, rack.as_ref());
        }
        Ok(())
    });
    let (counters, cancel) = (counters.clone(), running.cancel.clone());
    running.watch("dhcp", sockets.pulses());
    running.spawn("dhcp", async move {
        let _sender = sender;
        Ok(dhcp::run(sockets, view, events, counters, cancel).await?)
    });
    Ok(())
}

/// A DHCP answer on the log, and on the machine's timeline where the machine is known.
fn note(event: &dhcp::Event, rack: Option<&Rack>) {
    let Outcome::Answered { client, boot_file, .. } = &event.outcome else { return };
    // Anyone on the wire can cause this line, under any address.
    static ANSWERED: Limit = Limit::new(20, Duration::from_secs(5));
    if let Some(held_back) = ANSWERED.allow(Uptime::now()) {
        tracing::info!(mac = %event.mac, client = ?client, port = ?event.port, boot_file, held_back, "DHCP answered");
    }
    let (Some(rack), [machine, ..]) = (rack, event.machine.as_slice()) else { return };
    let known = event.machine.iter().find(|id| rack.knows(id)).unwrap_or(machine);
    if rack.knows(known) {
        rack.note(known, format!("DHCP: offered {boot_file}"), Uptime::now(), UnixTime::now());
    }
}

fn start_tftp(
    config: &Config,
    files: &Arc<BootFiles>,
    counters: &Counters,
    running: &mut Running,
) -> anyhow::Result<()> {
    let addresses: Vec<_> = match config.listen {
        Some(address) => vec![SocketAddr::new(address, config.tftp_port)],
        // One socket an address, so that replies leave from the address that was asked.
        None => address::list()?
            .into_iter()
            .filter(|entry| entry.address.is_ipv4())
            .map(|entry| SocketAddr::new(entry.address, config.tftp_port))
            .collect(),
    };
    let sockets = tftp::Sockets::bind(&addresses)?;
    running.up("tftp", format!("port {}", config.tftp_port));
    let engine = Arc::new(tftp::AsyncTftp::new(Arc::clone(files), counters.clone()));
    let cancel = running.cancel.clone();
    running.watch("tftp", sockets.pulses());
    running.spawn("tftp", async move { Ok(tftp::run(sockets, engine, cancel).await?) });
    Ok(())
}

async fn start_http(
    name: &'static str,
    address: SocketAddr,
    router: axum::Router,
    running: &mut Running,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("{name}: {address} can't be bound"))?;
    let bound = listener.local_addr().unwrap_or(address);
    running.up(name, format!("http://{bound}"));
    tracing::info!(service = name, address = %bound, "listening");
    let cancel = running.cancel.clone();
    running.spawn(name, async move {
        serve::serve(listener, router, cancel).await;
        Ok(())
    });
    Ok(())
}

/// A token that SIGTERM and SIGINT cancel.
fn ended_by_signal() -> io::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let cancel = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let ended = cancel.clone();
    tokio::spawn(async move {
        // Cancel-safe: a signal is only waited for.
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("ending");
        ended.cancel();
    });
    Ok(cancel)
}

/// The tasks of this process. One that ends before it was told to ends them all: a service that is half there is worse
/// than a restart.
pub(crate) struct Running {
    pub(crate) cancel: CancellationToken,
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    watched: Vec<alive::Watched>,
    services: watch::Sender<Vec<Service>>,
    reaches: watch::Sender<Option<bool>>,
}

impl Running {
    fn new(cancel: CancellationToken) -> Self {
        Self {
            cancel,
            tasks: JoinSet::new(),
            watched: Vec::new(),
            services: watch::Sender::new(Vec::new()),
            reaches: watch::Sender::new(None),
        }
    }

    pub(crate) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let pulse = Pulse::new(Uptime::now());
        self.watch(name, vec![pulse.clone()]);
        self.tasks.spawn(async move { (name, pulse.around(task).await) });
    }

    /// Makes the supervisor's watchdog depend on loops that are no task of ours.
    fn watch(&mut self, name: &'static str, pulses: Vec<Pulse>) {
        self.watched.extend(pulses.into_iter().map(|pulse| (name, pulse)));
    }

    /// Tells the supervisor whether this process reaches what it is for, which `reached` reads from what `states` shows.
    fn reaching<T: Send + Sync + 'static>(
        &mut self,
        mut states: watch::Receiver<T>,
        reached: impl Fn(&T) -> bool + Send + 'static,
    ) {
        let (sender, cancel) = (self.reaches.clone(), self.cancel.clone());
        self.spawn("reach", async move {
            loop {
                let now = Some(reached(&states.borrow_and_update()));
                sender.send_if_modified(|known| std::mem::replace(known, now) != now);
                // Cancel-safe: both only wait; what changed is read again.
                tokio::select! {
                    () = cancel.cancelled() => return Ok(()),
                    changed = states.changed() => if changed.is_err() { cancel.cancelled().await },
                }
            }
        });
    }

    /// Puts a service on the status page.
    pub(crate) fn up(&self, name: &str, detail: String) {
        self.services.send_modify(|services| services.push(Service { name: name.to_owned(), up: true, detail }));
    }

    pub(crate) fn services(&self) -> watch::Receiver<Vec<Service>> {
        self.services.subscribe()
    }

    async fn finish(mut self) -> anyhow::Result<()> {
        let details: Vec<_> = self.services.borrow().iter().map(|service| service.detail.clone()).collect();
        let telling = alive::tell(
            std::mem::take(&mut self.watched),
            details.join(", "),
            self.reaches.subscribe(),
            self.cancel.clone(),
        );
        self.tasks.spawn(async move {
            telling.await;
            ("supervisor", Ok(()))
        });
        // Cancel-safe: a task that ended stays ended. The token first: a task that ended because of it is no fault. A
        // service that is configured away has no task, and waits.
        let first = loop {
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => break None,
                Some(ended) = self.tasks.join_next() => break Some(ended),
                () = tokio::time::sleep(TIDY) => {
                    let released = sys::memory::release();
                    tracing::trace!(released, "memory that is not used is given back");
                }
            }
        };
        self.cancel.cancel();
        let drained = tokio::time::timeout(GRACE, async { while self.tasks.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            tracing::warn!(seconds = GRACE.as_secs(), "services did not end in time; leaving");
        }
        match first {
            None => Ok(()),
            Some(Ok((_, Err(error)))) => Err(error),
            Some(Ok((name, Ok(())))) => bail!("{name} ended by itself"),
            Some(Err(error)) => Err(error).context("a service panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn a_store_that_stops_writing_ends_its_process() {
        let store = Arc::new(MemoryStore::new());
        let mut running = Running::new(CancellationToken::new());
        running.spawn("store health", watch_store(store.clone(), None, running.cancel.clone()));
        store.refuse_commits(true);
        let error = running.finish().await.expect_err("the store refuses");
        assert!(error.to_string().contains("can't write"), "{error}");
    }

    #[tokio::test]
    async fn a_service_that_is_configured_away_waits_to_be_ended() {
        let running = Running::new(CancellationToken::new());
        let cancel = running.cancel.clone();
        let mut finished = tokio::spawn(running.finish());
        let early = tokio::time::timeout(Duration::from_millis(50), &mut finished).await;
        assert!(early.is_err(), "{early:?}");
        cancel.cancel();
        finished.await.expect("no panic").expect("no fault");
    }

    #[tokio::test]
    async fn tasks_that_end_since_they_are_told_to_are_no_fault() {
        for _ in 0..100 {
            let mut running = Running::new(CancellationToken::new());
            let cancel = running.cancel.clone();
            running.spawn("one", async move {
                cancel.cancelled().await;
                Ok(())
            });
            running.cancel.cancel();
            tokio::task::yield_now().await;
            running.finish().await.expect("no fault");
        }
    }
}
