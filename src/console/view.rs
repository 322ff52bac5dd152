//! [`View`]: what the console knows of the box; [`rows`]: what it says of it.

use std::net::IpAddr;

use serde::Deserialize;

use super::text::plain;
use crate::net::config::Role;
use crate::net::port::Source;
use crate::net::status::{LinkStatus, NetworkStatus};
use crate::secret::Secret;
use crate::status::{Link, Stage};
use crate::supervise::control::{ServiceStatus, Status};
use crate::supervise::install::Phase;

/// How long services may take after power-on before that is trouble, in seconds.
const STARTING: u64 = 60;
/// Most lines of one row; the page has the rest.
const MOST_LINES: usize = 6;

/// The box at one moment. A source that does not answer is `None`.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The product's version.
    pub version: String,
    /// The page's port.
    pub port: u16,
    /// The box as PID 1 sees it.
    pub init: Option<Status>,
    /// Its network.
    pub network: Option<NetworkStatus>,
    /// What the provider says.
    pub provider: Option<Provider>,
    /// What opens the page's form for the first time.
    pub setup: Setup,
    /// The fingerprint of the page's certificate; `None` where it is served in the clear alone.
    pub certificate: Option<String>,
}

/// The code that opens the page's form until the box is set up.
#[derive(Clone, Debug, Default)]
pub enum Setup {
    /// Nobody says.
    #[default]
    Unknown,
    /// This one.
    Code(Secret<String>),
    /// It was used.
    Done,
}

/// As much of the provider's [`Snapshot`](crate::status::Snapshot) as fits a console.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Provider {
    /// How things stand with Omni.
    pub omni: Link,
    /// The machines.
    pub machines: Vec<Machine>,
}

/// One machine.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Machine {
    /// Where it stands.
    pub stage: Stage,
}

/// Whether a row is good news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// All is as it should be.
    Good,
    /// Neither.
    Plain,
    /// Somebody should look.
    Bad,
}

/// One thing that the console says. Its lines are plain text, see [`plain`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// What it is about, at most ten characters.
    pub label: &'static str,
    /// At least one.
    pub lines: Vec<String>,
    /// Whether it is good news.
    pub tone: Tone,
    /// Whether a change of it is news; clocks always change.
    pub steady: bool,
}

impl Row {
    fn new(label: &'static str, tone: Tone, lines: impl IntoIterator<Item = String>) -> Self {
        let mut lines: Vec<_> = lines.into_iter().map(|line| plain(&line)).collect();
        let more = lines.len().saturating_sub(MOST_LINES);
        if more > 0 {
            lines.truncate(MOST_LINES - 1);
            lines.push(format!("and {} more; see the page", more + 1));
        }
        Self { label, lines, tone, steady: true }
    }

    fn one(label: &'static str, tone: Tone, line: impl Into<String>) -> Self {
        Self::new(label, tone, [line.into()])
    }
}

impl View {
    /// What the box is called; empty when that is not known.
    pub fn hostname(&self) -> String {
        plain(self.network.as_ref().map_or("", |network| &network.hostname))
    }

    /// The address of the page; `None` while the box has no address.
    pub fn page(&self) -> Option<String> {
        let network = self.network.as_ref()?;
        let best = network.links.iter().flat_map(of_link).min_by_key(|(rank, _)| *rank);
        best.map(|(_, address)| self.url(&address.to_string()))
    }

    /// Over TLS where the page is served so, since its forms are there alone.
    fn url(&self, host: &str) -> String {
        match (&self.certificate, self.port) {
            (Some(_), _) => format!("https://{host}/"),
            (None, 80) => format!("http://{host}/"),
            (None, port) => format!("http://{host}:{port}/"),
        }
    }
}

/// The addresses of a link, each with its rank: those from a person or a server before those that nobody gave, Omni's side
/// before the machines'.
fn of_link(link: &LinkStatus) -> impl Iterator<Item = ((bool, bool, Option<Role>), IpAddr)> + '_ {
    link.addresses.iter().map(|one| {
        let nobodys = one.source == Source::LinkLocal;
        ((nobodys, link.role.is_none(), link.role), IpAddr::V4(one.address.address()))
    })
}

/// Everything that is said, most important first.
pub fn rows(view: &View) -> Vec<Row> {
    let mut rows = vec![state(view.init.as_ref())];
    rows.extend(page(view));
    rows.extend(setup(&view.setup));
    rows.extend(view.certificate.as_deref().map(certificate));
    rows.extend(view.init.iter().filter_map(installation));
    rows.extend(view.init.iter().filter_map(services));
    rows.extend(omni(view.provider.as_ref()));
    rows.push(links(view.network.as_ref()));
    rows.extend(view.network.iter().flat_map(network));
    rows.push(slot(view.init.as_ref()));
    rows.extend(view.init.iter().flat_map(run));
    rows
}

fn state(init: Option<&Status>) -> Row {
    let Some(status) = init else { return Row::one("State", Tone::Bad, "unknown: PID 1 does not answer") };
    let names = |which: fn(&&ServiceStatus) -> bool| {
        let names: Vec<_> = status.services.iter().filter(which).map(|service| service.name.as_str()).collect();
        names.join(", ")
    };
    let degraded = names(|service| service.degraded);
    let waiting = names(|service| !service.ready && !service.degraded);
    match (degraded.is_empty(), waiting.is_empty()) {
        (false, _) => Row::one("State", Tone::Bad, format!("degraded: {degraded}")),
        (true, false) if status.uptime < STARTING => Row::one("State", Tone::Plain, format!("starting: {waiting}")),
        (true, false) => Row::one("State", Tone::Bad, format!("not ready: {waiting}")),
        (true, true) if !status.faults.is_empty() => Row::one("State", Tone::Bad, "all services run; faults see below"),
        (true, true) => Row::one("State", Tone::Good, format!("all {} services run", status.services.len())),
    }
}

fn page(view: &View) -> Option<Row> {
    let network = view.network.as_ref()?;
    let named = Some(&network.hostname).filter(|name| !name.is_empty());
    let named = named.map(|name| view.url(&format!("{name}.local")));
    Some(match view.page() {
        Some(page) => Row::new("Page", Tone::Good, [Some(page), named].into_iter().flatten()),
        None => Row::one("Page", Tone::Bad, "no address yet: is a cable plugged in?"),
    })
}

fn setup(setup: &Setup) -> Option<Row> {
    match setup {
        Setup::Unknown => Some(Row::one("Setup code", Tone::Plain, "unknown")),
        Setup::Code(code) => Some(Row::one("Setup code", Tone::Good, format!("{}  (until first use)", code.reveal()))),
        Setup::Done => None,
    }
}

/// What the browser must show of the page's certificate. In pieces, to be compared.
fn certificate(fingerprint: &str) -> Row {
    let pairs: Vec<_> = fingerprint.split(':').collect();
    Row::new("SHA-256", Tone::Plain, pairs.chunks(8).map(|pairs| pairs.join(":")))
}

/// How the copy to another disk goes.
fn installation(status: &Status) -> Option<Row> {
    let job = status.installation.job.as_ref()?;
    let (tone, steady) = match job.phase {
        // A serial line is not told of every step.
        Phase::Running(_) => (Tone::Plain, false),
        Phase::Done => (Tone::Good, true),
        Phase::Failed(_) | Phase::Unfinished => (Tone::Bad, true),
    };
    Some(Row { steady, ..Row::one("Install", tone, job.to_string()) })
}

/// Services that do not do their work, and why.
fn services(status: &Status) -> Option<Row> {
    let late = status.uptime >= STARTING;
    let lines = status.services.iter().filter(|service| service.degraded || (!service.ready && late)).map(|service| {
        let how = if service.degraded { "degraded" } else { "not ready" };
        let exit = match service.last_exit.as_str() {
            "" => "has not ended".to_owned(),
            exit => format!("last ended by {exit}"),
        };
        let says = if service.says.is_empty() { String::new() } else { format!(", says: {}", service.says) };
        format!("{} {how}, {exit}, {} restarts{says}", service.name, service.restarts)
    });
    let lines: Vec<_> = lines.collect();
    (!lines.is_empty()).then(|| Row::new("Services", Tone::Bad, lines))
}

fn omni(provider: Option<&Provider>) -> Vec<Row> {
    let Some(Provider { omni, machines }) = provider else {
        return vec![Row::one("Omni", Tone::Plain, "unknown: the provider does not answer")];
    };
    let link = match (omni.endpoint.is_empty(), omni.connected, omni.trouble.is_empty()) {
        (true, ..) => Row::one("Omni", Tone::Plain, "not configured"),
        (_, true, _) => Row::one("Omni", Tone::Good, format!("connected to {}", omni.endpoint)),
        (_, false, true) => Row::one("Omni", Tone::Plain, format!("connecting to {}", omni.endpoint)),
        (_, false, false) => Row::one("Omni", Tone::Bad, omni.trouble.clone()),
    };
    let stages = Stage::ALL.into_iter().filter_map(|stage| {
        let count = machines.iter().filter(|machine| machine.stage == stage).count();
        (count > 0).then(|| format!("{count} {}", stage.as_str()))
    });
    let stages: Vec<_> = stages.collect();
    let stuck = machines.iter().any(|machine| machine.stage == Stage::Stuck);
    let tone = if stuck { Tone::Bad } else { Tone::Plain };
    let counts = (!stages.is_empty()).then(|| Row::one("Machines", tone, stages.join(", ")));
    std::iter::once(link).chain(counts).collect()
}

fn links(network: Option<&NetworkStatus>) -> Row {
    let Some(network) = network else {
        return Row::one("Network", Tone::Bad, "unknown: the network service does not answer");
    };
    let lines: Vec<_> = network.links.iter().map(link).collect();
    match lines.is_empty() {
        true => Row::one("Network", Tone::Bad, "no network port is known"),
        false => Row::new("Network", Tone::Plain, lines),
    }
}

fn link(link: &LinkStatus) -> String {
    let role = link.role.map_or("", |role| role.as_str());
    // The address that nobody gave last: it is of use where there is no other.
    let (last, first): (Vec<_>, Vec<_>) = link.addresses.iter().partition(|one| one.source == Source::LinkLocal);
    let addresses: Vec<_> = first
        .into_iter()
        .chain(last)
        .map(|one| {
            let from = match one.source {
                Source::Static => "static",
                Source::Dhcp => "DHCP",
                Source::LinkLocal => "link-local",
            };
            format!("{} {from}", one.address)
        })
        .collect();
    let how = match (link.carrier, addresses.is_empty()) {
        (false, _) => "no carrier".to_owned(),
        (true, true) if link.detail.is_empty() => "no address".to_owned(),
        (true, true) => link.detail.clone(),
        (true, false) => addresses.join(", "),
    };
    let parts = [link.name.as_str(), role, &how];
    parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

fn network(network: &NetworkStatus) -> Vec<Row> {
    let trial = network.trial.as_ref().map(|trial| {
        let text = format!("a new network configuration is tried, {} s left", trial.seconds);
        Row { steady: false, ..Row::one("Trial", Tone::Bad, text) }
    });
    let trouble = (!network.trouble.is_empty()).then(|| Row::new("Trouble", Tone::Bad, network.trouble.clone()));
    let clock = match (network.clock.synchronised, network.clock.source.is_empty()) {
        (true, _) => Row::one("Clock", Tone::Plain, format!("right, by {}", network.clock.source)),
        (false, false) => Row::one("Clock", Tone::Bad, format!("not known: {}", network.clock.source)),
        (false, true) => Row::one("Clock", Tone::Plain, "not known yet"),
    };
    [trial, trouble, Some(clock)].into_iter().flatten().collect()
}

fn slot(init: Option<&Status>) -> Row {
    let Some(status) = init else { return Row::one("Slot", Tone::Plain, "unknown") };
    let slot = &status.slot;
    if slot.name.is_empty() {
        return Row::one("Slot", Tone::Plain, "unknown: the boot loader does not say");
    }
    let attempt = slot.attempt.filter(|attempt| *attempt > 0).map(|attempt| format!(", try {attempt}"));
    let why = if slot.why.is_empty() { String::new() } else { format!(", {}", slot.why) };
    let runs = format!("{}{why}{}", slot.name, attempt.unwrap_or_default());
    let records = status.records.as_ref();
    let failed: Vec<_> = records.map(|of| of.failed.iter().map(ToString::to_string).collect()).unwrap_or_default();
    let failed = (!failed.is_empty()).then(|| format!("failed here: {}", failed.join(", ")));
    let trial = records.map(|of| of.trial.clone()).filter(|trial| !trial.is_empty());
    let tone = if slot.name == "recovery" || failed.is_some() { Tone::Bad } else { Tone::Plain };
    Row::new("Slot", tone, [Some(runs), trial, failed].into_iter().flatten())
}

fn run(status: &Status) -> Vec<Row> {
    let faults = (!status.faults.is_empty()).then(|| Row::new("Faults", Tone::Bad, status.faults.clone()));
    let (in_a_row, most) = status.in_a_row;
    let budget = (in_a_row > 0)
        .then(|| Row::one("Reboots", Tone::Bad, format!("{in_a_row} runs in a row ended by themselves, {most} may")));
    let up = Row { steady: false, ..Row::one("Up", Tone::Plain, uptime(status.uptime)) };
    let before = Row::one("Before", Tone::Plain, status.previous.clone());
    [faults, budget, Some(up), Some(before)].into_iter().flatten().collect()
}

fn uptime(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}
