//! The service: joins the kernel, the ports, the configuration and those who ask.
//!
//! An edge, because it starts tasks and changes the kernel. What is to be done is decided by [`links`], [`routing`],
//! [`port`](super::port) and [`trial`](super::trial).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::kernel::Kernel;
use super::links::{self, Link, PortPlan, Shape};
use super::mac::Mac;
use super::port::{Facts, Note, Port, Settings, metric};
use super::prefix::Prefix;
use super::routing::{self, Routing, Step};
use super::status::{AddressStatus, ClockStatus, LinkStatus, NetworkStatus, TrialStatus};
use super::trial::{Record, Refused, Request, Trials};
use super::wire::{self, Command, Report, Sockets, sleep_until};
use super::{disk, resolv};
use crate::telemetry::Limit;
use crate::time::Uptime;

/// How often everything is looked at without a cause: an event may be missed.
const RESYNC: Duration = Duration::from_secs(30);
/// Rounds of link steps before the kernel is left alone until the next look.
const ROUNDS: usize = 8;
/// Events of ports that wait.
const REPORTS: usize = 64;

/// Where the service keeps what, and what it is told when it starts.
#[derive(Clone, Debug)]
pub struct Paths {
    /// What outlives a power cut: the configuration, the former addresses.
    pub state: PathBuf,
    /// What belongs to this run: resolv.conf.
    pub run: PathBuf,
    /// What a person calls the box, if anything.
    pub hostname: Option<String>,
}

/// A request and who waits for its outcome.
pub type Asked = (Request, oneshot::Sender<Result<(), Refused>>);

/// The ends of the service that others hold.
#[derive(Debug)]
pub struct Ends {
    /// What is asked of it.
    pub requests: mpsc::Receiver<Asked>,
    /// What it shows.
    pub status: watch::Sender<Arc<NetworkStatus>>,
    /// How the clock is.
    pub clock: watch::Receiver<ClockStatus>,
    /// What the clock and the names are told about the network.
    pub surroundings: watch::Sender<Surroundings>,
}

/// What the network gives to the clock and to the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// What the box is called.
    pub hostname: String,
    /// NTP servers that the configuration names.
    pub ntp_configured: Vec<String>,
    /// NTP servers that DHCP named.
    pub ntp_offered: Vec<Ipv4Addr>,
    /// Links that are up, by number.
    pub links: BTreeMap<u32, NamedLink>,
}

/// A link that is up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedLink {
    /// The kernel's name.
    pub name: String,
    /// Its IPv4 addresses.
    pub addresses: Vec<Prefix>,
}

/// Runs until `cancel`.
///
/// # Errors
///
/// When the kernel's routing tables can't be reached.
pub async fn run(paths: Paths, ends: Ends, cancel: CancellationToken) -> anyhow::Result<()> {
    let kernel = Kernel::open()?;
    let (record, trouble) = match disk::read::<Record>(&paths.state.join("network.json")) {
        Ok(record) => (record.unwrap_or_default(), None),
        Err(error) => {
            (Record::default(), Some(format!("the network configuration can't be read, DHCP counts: {error}")))
        }
    };
    let former = disk::read(&paths.state.join("addresses.json")).ok().flatten().unwrap_or_default();
    let Ends { requests, status, clock, surroundings } = ends;
    let (reporter, reports) = mpsc::channel(REPORTS);
    let mut service = Service {
        kernel,
        paths,
        trials: Trials::resume(record, seed()),
        former,
        status,
        clock,
        surroundings,
        reporter,
        ports: BTreeMap::new(),
        links: Vec::new(),
        missing: Vec::new(),
        lasting: trouble,
        troubles: BTreeMap::new(),
        resolv: None,
    };
    if let Some(ending) = service.trials.ending() {
        tracing::warn!(?ending, "the network configuration that was tried does not count");
        service.keep().await.context("the configuration can't be kept")?;
    }
    service.serve(requests, reports, cancel).await;
    Ok(())
}

/// A number that nobody guesses.
fn seed() -> u64 {
    let mut octets = [0; 8];
    // Without it the numbers are guessable, which costs little: they are delays and transaction IDs.
    if let Err(error) = getrandom::fill(&mut octets) {
        tracing::warn!(%error, "no random numbers");
        return Uptime::now().as_duration().as_nanos() as u64;
    }
    u64::from_le_bytes(octets)
}

/// A port that runs.
struct Running {
    plan: PortPlan,
    own: Mac,
    metric: u32,
    commands: mpsc::Sender<Command>,
    task: JoinHandle<()>,
    facts: Facts,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Service {
    kernel: Kernel,
    paths: Paths,
    trials: Trials,
    /// The addresses that DHCP gave, by port.
    former: BTreeMap<Mac, Ipv4Addr>,
    status: watch::Sender<Arc<NetworkStatus>>,
    clock: watch::Receiver<ClockStatus>,
    surroundings: watch::Sender<Surroundings>,
    reporter: mpsc::Sender<Report>,
    ports: BTreeMap<u32, Running>,
    links: Vec<Link>,
    missing: Vec<(usize, Mac)>,
    /// Trouble that stays for this run.
    lasting: Option<String>,
    /// Trouble of the last try, by what was tried.
    troubles: BTreeMap<String, String>,
    /// The resolv.conf that was written last.
    resolv: Option<String>,
}

impl Service {
    async fn serve(
        &mut self,
        mut requests: mpsc::Receiver<Asked>,
        mut reports: mpsc::Receiver<Report>,
        cancel: CancellationToken,
    ) {
        let mut resync = tokio::time::interval(RESYNC);
        loop {
            // All are cancel-safe: channels and timers lose nothing, and a change that was noticed is looked up whole.
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = resync.tick() => self.look().await,
                () = self.kernel.changed() => self.look().await,
                Some(report) = reports.recv() => self.on_report(report).await,
                Some((request, answer)) = requests.recv() => {
                    let outcome = self.on_request(request).await;
                    // Whoever asked may be gone.
                    let _ = answer.send(outcome);
                }
                Ok(()) = self.clock.changed() => {}
                () = sleep_until(self.trials.deadline()) => self.on_deadline().await,
            }
            self.publish();
        }
    }

    /// Brings links, ports, addresses and routes to what the configuration says.
    async fn look(&mut self) {
        self.converge().await;
        let indices: Vec<u32> = self.ports.keys().copied().collect();
        for index in indices {
            self.apply(index).await;
        }
        self.write_resolv();
    }

    /// Links and ports.
    async fn converge(&mut self) {
        let mut plan = links::Plan::default();
        self.troubles.clear();
        for _ in 0..ROUNDS {
            match self.kernel.links().await {
                Ok(links) => self.links = links,
                Err(error) => return self.trouble("links", &error),
            }
            plan = links::plan(self.trials.active(), &self.links);
            if plan.steps.is_empty() {
                break;
            }
            let mut refused = false;
            for step in &plan.steps {
                tracing::info!(?step, "link");
                if let Err(error) = self.kernel.link_step(step).await {
                    refused = true;
                    self.trouble(&format!("{step:?}"), &error);
                }
            }
            // What was refused now is refused the next moment as well.
            if refused {
                break;
            }
        }
        self.missing = plan.missing;
        self.start_and_stop(plan.ports).await;
    }

    async fn start_and_stop(&mut self, plans: Vec<PortPlan>) {
        let wanted: BTreeSet<u32> = plans.iter().map(|plan| plan.index).collect();
        let gone: Vec<u32> = self.ports.keys().copied().filter(|index| !wanted.contains(index)).collect();
        for index in gone {
            self.stop(index).await;
        }
        for (position, plan) in plans.into_iter().enumerate() {
            let Some(link) = self.links.iter().find(|link| link.index == plan.index).cloned() else { continue };
            let metric = metric(plan.interface.role, position);
            let stale = |port: &Running| {
                let same = port.plan == plan && port.own == link.mac && port.metric == metric;
                !same || port.task.is_finished()
            };
            if self.ports.get(&plan.index).is_some_and(stale) {
                self.stop(plan.index).await;
            }
            let index = plan.index;
            if !self.ports.contains_key(&index) {
                self.start(&link, plan, metric);
            }
            if let Some(port) = self.ports.get(&index) {
                // A port that has ended is started anew at the next look.
                let _ = port.commands.send(Command::Carrier(link.carrier)).await;
            }
        }
    }

    fn start(&mut self, link: &Link, plan: PortPlan, metric: u32) {
        let sockets = match Sockets::open(link.index) {
            Ok(sockets) => sockets,
            Err(error) => return self.trouble(&format!("packet sockets on {}", link.name), &error),
        };
        let settings = Settings {
            own: link.mac,
            interface: plan.interface.clone(),
            metric,
            hostname: self.hostname(),
            former: self.former.get(&link.permanent).copied(),
        };
        let (commands, told) = mpsc::channel(4);
        let port = Port::new(settings, seed());
        let facts = port.facts();
        tracing::info!(link = link.name, mac = %link.permanent, role = plan.interface.role.as_str(), "port starts");
        let task = tokio::spawn(wire::run(link.index, port, sockets, told, self.reporter.clone()));
        self.ports.insert(link.index, Running { plan, own: link.mac, metric, commands, task, facts });
    }

    /// Ends a port and takes its addresses and routes away.
    async fn stop(&mut self, index: u32) {
        self.ports.remove(&index);
        if self.links.iter().any(|link| link.index == index) {
            self.bring(index, &Routing::default(), true).await;
        }
    }

    async fn on_report(&mut self, report: Report) {
        let name = self.name(report.index);
        for note in report.notes {
            tell(&name, &note);
        }
        let Some(port) = self.ports.get_mut(&report.index) else { return };
        port.facts = report.facts;
        self.apply(report.index).await;
        self.write_resolv();
        self.remember(report.index).await;
    }

    /// Addresses, routes and MTU of a port.
    async fn apply(&mut self, index: u32) {
        let Some(port) = self.ports.get(&index) else { return };
        let (want, settled, mtu) = (port.facts.routing.clone(), port.facts.settled, port.facts.mtu);
        let now = self.links.iter().find(|link| link.index == index).map(|link| link.mtu);
        if let Some(mtu) = mtu.map(u32::from).filter(|mtu| now.is_some_and(|now| now != *mtu)) {
            let step = links::LinkStep::Mtu(index, mtu);
            if let Err(error) = self.kernel.link_step(&step).await {
                self.trouble(&format!("{step:?}"), &error);
            }
        }
        self.bring(index, &want, settled).await;
    }

    /// Brings a link's addresses and routes to `want`; those that it has are left in place unless `all`.
    async fn bring(&mut self, index: u32, want: &Routing, all: bool) {
        let have = match self.kernel.routing(index).await {
            Ok(have) => have,
            Err(error) => return self.trouble("addresses", &error),
        };
        let name = self.name(index);
        for step in routing::steps(&have, want) {
            if !all && matches!(step, Step::DeleteAddress(_) | Step::DeleteRoute(..)) {
                continue;
            }
            tracing::info!(link = name, ?step, "address");
            if let Err(error) = self.kernel.step(index, step).await {
                self.trouble(&format!("{name}: {step:?}"), &error);
            }
        }
    }

    /// Keeps the address that DHCP gave when it is a new one.
    async fn remember(&mut self, index: u32) {
        let link = self.links.iter().find(|link| link.index == index);
        let leased = self.ports.get(&index).and_then(|port| port.facts.leased);
        let (Some(link), Some(leased)) = (link, leased) else { return };
        if self.former.insert(link.permanent, leased) == Some(leased) {
            return;
        }
        let (path, former) = (self.paths.state.join("addresses.json"), self.former.clone());
        let written = tokio::task::spawn_blocking(move || disk::write(&path, &former)).await;
        if let Ok(Err(error)) = written {
            self.trouble("the addresses can't be kept", &error);
        }
    }

    fn write_resolv(&mut self) {
        let (mut servers, mut domain) = (Vec::new(), None);
        for port in self.by_metric() {
            for server in &port.facts.dns {
                if !servers.contains(server) {
                    servers.push(*server);
                }
            }
            domain = domain.or_else(|| port.facts.domain.clone());
        }
        let text = resolv::text(&servers, domain.as_deref());
        if self.resolv.as_ref() == Some(&text) {
            return;
        }
        match disk::write_text(&self.paths.run.join("resolv.conf"), text.as_bytes(), false) {
            Ok(()) => self.resolv = Some(text),
            Err(error) => self.trouble("resolv.conf can't be written", &error),
        }
    }

    async fn on_request(&mut self, request: Request) -> Result<(), Refused> {
        let lasts = !matches!(request, Request::Try(_));
        let next = self.trials.on_request(Uptime::now(), request, &self.addresses())?;
        let before = std::mem::replace(&mut self.trials, next);
        if let Err(error) = self.keep().await {
            // A trial is forgotten by a power cut, which is what becomes of it anyway.
            if lasts {
                self.trials = before;
                return Err(Refused::Disk(error.to_string()));
            }
            self.trouble("the trial can't be noted", &error);
        }
        tracing::info!(trial = ?self.trials.trial(Uptime::now()), ending = ?self.trials.ending(), "network configuration");
        self.look().await;
        Ok(())
    }

    async fn on_deadline(&mut self) {
        let Some(next) = self.trials.on_deadline(Uptime::now()) else { return };
        tracing::warn!("nobody confirmed the network configuration; back to the one before");
        self.trials = next;
        if let Err(error) = self.keep().await {
            self.trouble("the return can't be noted", &error);
        }
        self.look().await;
    }

    async fn keep(&self) -> std::io::Result<()> {
        let (path, record) = (self.paths.state.join("network.json"), self.trials.record());
        let written = tokio::task::spawn_blocking(move || disk::write(&path, &record)).await;
        written.map_err(std::io::Error::other)?
    }

    /// Every IPv4 address that the box has by this service.
    fn addresses(&self) -> Vec<IpAddr> {
        let prefixes = self.ports.values().flat_map(|port| &port.facts.addresses);
        prefixes.map(|(prefix, _)| IpAddr::V4(prefix.address())).collect()
    }

    fn by_metric(&self) -> Vec<&Running> {
        let mut ports: Vec<_> = self.ports.values().collect();
        ports.sort_by_key(|port| port.metric);
        ports
    }

    /// What a person calls it, else `pilotlight-` and the end of the lowest MAC address: the same whatever order the kernel finds the ports in.
    fn hostname(&self) -> String {
        if let Some(name) = &self.paths.hostname {
            return name.clone();
        }
        let ports = self.links.iter().filter(|link| link.shape == Shape::Port && link.permanent.is_station());
        let lowest = ports.map(|link| link.permanent).min();
        lowest.map_or_else(|| "pilotlight".to_owned(), |mac| format!("pilotlight-{}", mac.tail()))
    }

    fn name(&self, index: u32) -> String {
        let link = self.links.iter().find(|link| link.index == index);
        link.map_or_else(|| format!("link {index}"), |link| link.name.clone())
    }

    fn trouble(&mut self, what: &str, error: &dyn std::error::Error) {
        let text = format!("{what}: {}", chain(error));
        // The same at every look would fill the log.
        static TROUBLE: Limit = Limit::new(20, Duration::from_secs(30));
        if self.troubles.insert(what.to_owned(), text.clone()).as_ref() != Some(&text)
            && let Some(held_back) = TROUBLE.allow(Uptime::now())
        {
            tracing::warn!(trouble = text, held_back, "network");
        }
    }

    fn publish(&self) {
        let status = self.snapshot();
        let surroundings = self.surroundings_now(&status);
        self.surroundings.send_if_modified(|last| {
            let new = *last != surroundings;
            *last = surroundings;
            new
        });
        self.status.send_if_modified(|last| {
            let new = **last != status;
            *last = Arc::new(status);
            new
        });
    }

    fn surroundings_now(&self, status: &NetworkStatus) -> Surroundings {
        let mut offered = Vec::new();
        for port in self.by_metric() {
            for server in &port.facts.ntp {
                if !offered.contains(server) {
                    offered.push(*server);
                }
            }
        }
        let up = |index: &u32| self.links.iter().any(|link| link.index == *index && link.carrier);
        let named = |index: u32, port: &Running| NamedLink {
            name: self.name(index),
            addresses: port.facts.addresses.iter().map(|(prefix, _)| *prefix).collect(),
        };
        Surroundings {
            hostname: status.hostname.clone(),
            ntp_configured: self.trials.active().ntp.clone(),
            ntp_offered: offered,
            links: self
                .ports
                .iter()
                .filter(|(index, _)| up(index))
                .map(|(index, port)| (*index, named(*index, port)))
                .collect(),
        }
    }

    fn snapshot(&self) -> NetworkStatus {
        let shown = |link: &&Link| link.shape == Shape::Port || link.ours;
        let missing =
            self.missing.iter().map(|(entry, mac)| format!("network.interfaces[{entry}]: there is no port {mac}"));
        let trouble = self.lasting.iter().chain(self.troubles.values()).cloned().chain(missing).collect();
        NetworkStatus {
            hostname: self.hostname(),
            links: self.links.iter().filter(shown).map(|link| self.link_status(link)).collect(),
            dns: self.by_metric().iter().flat_map(|port| port.facts.dns.clone()).collect(),
            clock: self.clock.borrow().clone(),
            network: self.trials.active().clone(),
            trial: self.trials.trial(Uptime::now()).map(|(id, left)| TrialStatus { id, seconds: left.as_secs() }),
            ended: self.trials.ending(),
            trouble,
        }
    }

    fn link_status(&self, link: &Link) -> LinkStatus {
        let port = self.ports.get(&link.index);
        let facts = port.map(|port| port.facts.clone()).unwrap_or_default();
        let default = facts.routing.routes.iter().find(|(route, _)| route.to.is_empty());
        LinkStatus {
            name: link.name.clone(),
            mac: link.permanent,
            driver: link.driver.clone().unwrap_or_default(),
            carrier: link.carrier,
            mtu: link.mtu,
            role: port.map(|port| port.plan.interface.role),
            addresses: facts
                .addresses
                .iter()
                .map(|(address, source)| AddressStatus { address: *address, source: *source })
                .collect(),
            gateway: default.and_then(|(route, _)| route.via),
            dns: facts.dns,
            detail: match link.controller {
                Some(bond) => format!("member of {}", self.name(bond)),
                None => facts.detail,
            },
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// A port's note on the log. Anyone on the wire can cause some of these.
fn tell(link: &str, note: &Note) {
    static NOTES: Limit = Limit::new(20, Duration::from_secs(30));
    let Some(held_back) = NOTES.allow(Uptime::now()) else { return };
    match note {
        Note::Lease(change, Some(lease)) => {
            let (address, server) = (lease.address, lease.server);
            let lasts = lease.lasts.map_or_else(|| "for ever".to_owned(), |lasts| format!("{} s", lasts.as_secs()));
            tracing::info!(link, %address, %server, lasts, held_back, "DHCP: {}", change.as_str());
        }
        Note::Lease(change, None) => tracing::warn!(link, ?change, held_back, "DHCP: {}", change.as_str()),
        Note::Unusable(why) => tracing::warn!(link, %why, held_back, "DHCP: an answer is of no use"),
        Note::Taken(other) => tracing::error!(link, %other, held_back, "another station has the static address"),
    }
}
