//! 10,000 machines in the Omni double: how long the first full sync takes, what the client holds for them, and how long
//! an update takes until it has been planned.
//!
//! Run it with `just bench-omni`; it fails when a figure is beyond its limit. The double and the client are two processes,
//! so that memory and time count for one of them. The client is the product's own: the watches, the mirror, and the
//! controller with a task for each machine. What was planned when is read off the timelines that the page shows, where a
//! new verdict of the plan stands with its time.
//!
//! Left out: BMCs and agents. A machine here has every record but BMC access, so that none is polled.
#![allow(clippy::print_stdout, reason = "figures are what it is for")]

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser as _;
use pilotlight::agent::{Admission, Refusal, Tunnels};
use pilotlight::config;
use pilotlight::controller::rack::Rack;
use pilotlight::controller::records::{CONTROLLERS, Record, Records};
use pilotlight::controller::{self, publish};
use pilotlight::lab::omni::{Omni, Options};
use pilotlight::machine::{Desired, MachineId, PowerState, Recorded};
use pilotlight::omni::watch::{self, Watch};
use pilotlight::omni::{Client, Config, Mirror};
use pilotlight::proto::{provider, specs};
use pilotlight::reconcile::Reason;
use pilotlight::resource::{Kind, LABEL_INFRA_PROVIDER_ID, Resource};
use pilotlight::secret::Secret;
use pilotlight::store::memory::MemoryStore;
use pilotlight::store::seal::SealingKey;
use pilotlight::telemetry::Counters;
use pilotlight::time::{UnixTime, Uptime};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_util::sync::CancellationToken;

const PROVIDER: &str = "metal-1";
const MACHINES: u32 = 10_000;
/// Updates, each to a machine of its own: more than a minute of them, so that every timer of the controller fires.
const UPDATES: u32 = 7_000;
/// Between two updates.
const PACE: Duration = Duration::from_millis(10);
/// How long the last updates may take until they are planned.
const PATIENCE: Duration = Duration::from_secs(30);

const SYNC_LIMIT: Duration = Duration::from_secs(5);
const MEMORY_LIMIT: f64 = 2048.0;
const PLAN_LIMIT: Duration = Duration::from_millis(50);

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime can be built");
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().position(|argument| argument == "client") {
        Some(at) => runtime.block_on(client(arguments[at + 1].clone(), arguments[at + 2].clone())),
        None => runtime.block_on(double()),
    }
}

fn id(number: u32) -> String {
    format!("4c4c4544-0044-4810-8031-{number:012}")
}

/// A machine of a cluster and everything that this provider records about it, as it leaves them when nothing changes.
fn machine(number: u32) -> Vec<Resource> {
    let id = id(number);
    let token = format!("{{\"Fingerprint\":\"{0}{0}\",\"Token\":\"{0}\"}}", id.replace('-', ""));
    let at = Some(UnixTime::from_millis(1_760_000_000_123).into());
    let infra = specs::InfraMachineSpec {
        preferred_power_state: 1,
        acceptance_status: 1,
        cluster_talos_version: "1.11.2".into(),
        extensions: vec!["siderolabs/iscsi-tools".into(), "siderolabs/util-linux-tools".into()],
        wipe_id: id.clone(),
        install_event_id: 1,
        node_unique_token: token.clone(),
        ..Default::default()
    };
    let mut infra = Resource::new(Kind::omni("InfraMachines"), &id, &infra);
    for (key, value) in [("cluster", "production"), ("machine-set", "production-workers"), ("role-worker", "")] {
        infra.labels.insert(format!("omni.sidero.dev/{key}"), value.into());
    }
    infra.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), PROVIDER.into());
    infra.finalizers.extend(CONTROLLERS.map(|name| format!("{PROVIDER}.{name}")));

    let wipe = provider::WipeStatusSpec {
        last_wipe_id: id.clone(),
        initial_wipe_done: true,
        wiped_node_unique_token: token,
        ..Default::default()
    };
    let power = provider::PowerOperationSpec {
        last_power_operation: PowerState::On as i32,
        last_power_on_timestamp: at,
        ..Default::default()
    };
    let reboot = provider::RebootStatusSpec { last_reboot_timestamp: at, ..Default::default() };
    let desired = Desired::from_resource(&infra).expect("it was encoded above");
    let recorded = Recorded {
        wipe: wipe.clone().into(),
        power: power.clone().into(),
        reboot: reboot.clone().into(),
        initialized: true,
        bmc: None,
    };
    let status = publish::infra_machine_status(&desired, &recorded, PowerState::Unknown);
    let mut status = Resource::new(Kind::omni("InfraMachineStatuses"), &id, &status);
    status.labels = publish::status_labels(&infra.labels, &BTreeMap::new(), &desired);
    let own = |record: Record| Kind::private(record.name(), PROVIDER);
    let power_state = publish::machine_status(false, PowerState::Unknown, true);
    vec![
        infra,
        status,
        Resource::new(own(Record::BmcConfiguration), &id, &provider::BmcConfigurationSpec::default()),
        Resource::new(own(Record::MachineStatus), &id, &power_state),
        Resource::new(own(Record::PowerOperation), &id, &power),
        Resource::new(own(Record::RebootStatus), &id, &reboot),
        Resource::new(own(Record::WipeStatus), &id, &wipe),
    ]
}

/// Percentile of sorted values.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

async fn double() -> ExitCode {
    let omni = Omni::start(Options::loopback(PROVIDER)).await.expect("the double starts");
    let (mut resources, mut octets) = (0_u64, 0_u64);
    for number in 0..MACHINES {
        for resource in machine(number) {
            let stored = omni.state().create(resource, "").expect("it is new");
            resources += 1;
            octets += prost::Message::encoded_len(&stored.to_wire()) as u64;
        }
    }
    let program = std::env::current_exe().expect("a program knows itself");
    let mut child = tokio::process::Command::new(program)
        .args(["client", &omni.endpoint(), omni.service_account().key_string.reveal()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the client starts");
    let mut stdin = child.stdin.take().expect("piped");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = async || -> Vec<u64> {
        let line = lines.next_line().await.ok().flatten().unwrap_or_default();
        line.split(' ').filter_map(|word| word.parse().ok()).collect()
    };
    let [synced] = next().await[..] else {
        println!("the client did not come to know its machines");
        return ExitCode::FAILURE;
    };

    let begin = Uptime::now();
    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let kind = Kind::omni("InfraMachines");
    for update in 0..UPDATES {
        ticks.tick().await;
        // Each machine is cordoned once: a verdict that none had before.
        let cordon = |machine: &mut Resource| {
            let mut spec: specs::InfraMachineSpec = machine.decode().expect("it was encoded above");
            spec.cordoned = true;
            machine.encode(&spec);
        };
        omni.state().modify(&kind, &id(update * 7_919 % MACHINES), cordon).expect("it is there");
    }
    let rate = f64::from(UPDATES) / Uptime::now().since(begin).as_secs_f64();
    stdin.write_all(b"done\n").await.expect("the client listens");
    let [held, peak, known, count, median, p99, worst] = next().await[..] else {
        println!("the client said nothing of its plans");
        return ExitCode::FAILURE;
    };
    let (synced, p99) = (Duration::from_millis(synced), Duration::from_micros(p99));
    let beyond = (held as f64 - octets as f64) / f64::from(MACHINES);
    let millis = |micros: u64| micros as f64 / 1_000.0;
    println!(
        "{MACHINES} machines, {resources} resources of {octets} octets, {} a machine",
        octets / u64::from(MACHINES)
    );
    println!("{:<52} {:>12} {:>12}", "", "measured", "limit");
    println!("{:<52} {:>10.2} s {:>10} s", "first full sync", synced.as_secs_f64(), SYNC_LIMIT.as_secs());
    let memory = "client memory beyond the resources, a machine";
    println!("{memory:<52} {beyond:>10.0} B {MEMORY_LIMIT:>10} B");
    let planned = "update seen and planned, 99th percentile";
    println!("{planned:<52} {:>9.2} ms {:>9} ms", p99.as_secs_f64() * 1_000.0, PLAN_LIMIT.as_millis());
    println!("{:<52} {:>9.2} ms", "  median", millis(median));
    println!("{:<52} {:>9.2} ms", "  worst", millis(worst));
    println!("{:<52} {:>12} {UPDATES:>12}", "  updates planned", count);
    println!("{:<52} {:>10.1}/s", "  updates written", rate);
    println!("{:<52} {:>12} {MACHINES:>12}", "  machines planned", known);
    println!("{:<52} {:>12} B", "client memory for them, all in all", held);
    println!("{:<52} {:>12} B", "client process at its largest", peak);
    let good = synced <= SYNC_LIMIT
        && beyond <= MEMORY_LIMIT
        && p99 <= PLAN_LIMIT
        && count == u64::from(UPDATES)
        && known == u64::from(MACHINES);
    println!("{}", if good { "within the limits" } else { "BEYOND THE LIMITS" });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A figure of this process's memory, octets: `RssAnon` is what is its own, `VmHWM` the most that it ever had.
fn memory(figure: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(figure)?.strip_prefix(':'));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or_default() * 1024
}

/// No agent dials in.
struct Nobody;

impl Admission for Nobody {
    fn admit(&self, _: &MachineId, _: SocketAddr) -> Result<(), Refusal> {
        Err(Refusal { reason: "nobody is expected".into() })
    }
}

/// The provider's flags, all at their defaults.
#[derive(clap::Parser)]
struct Arguments {
    #[command(flatten)]
    flags: config::Flags,
}

async fn client(endpoint: String, key: String) -> ExitCode {
    let id = format!("--id={PROVIDER}");
    let flags = Arguments::parse_from(["provider", &id]).flags;
    let settings = config::Config::without_omni(&flags).expect("defaults are valid");
    let config = Config { endpoint, key: Some(Secret::new(key)), provider_id: PROVIDER.into(), ..Config::default() };
    let client = Client::connect(config).expect("the double's endpoint and key");
    // As the product watches them.
    let kinds = controller::kinds(PROVIDER).into_iter();
    let watches = kinds.map(|kind| match kind.r#type.ends_with(".omni.sidero.dev") {
        true => Watch::labelled(kind, LABEL_INFRA_PROVIDER_ID, PROVIDER),
        false => Watch::all(kind),
    });
    let mirror = Mirror::new(watches.collect());
    let store = Arc::new(MemoryStore::new());
    let sealing = SealingKey::generate().expect("the kernel gives random numbers");
    let records = Records::load(PROVIDER, client.state().clone(), mirror.clone(), store, sealing, false);
    let records = records.await.expect("an empty store is read");
    client.state().find(&Kind::omni("InfraMachines"), "none").await.expect("the double answers");
    let (rack, counters, cancel) = (Rack::default(), Counters::new(), CancellationToken::new());
    let mut news = rack.changes();

    let before = memory("RssAnon");
    let begin = Uptime::now();
    tokio::spawn(watch::run(client.state().clone(), mirror.clone(), cancel.clone()));
    let (driven, tunnels, counted, token) =
        (rack.clone(), Tunnels::new(Arc::new(Nobody)), counters.clone(), cancel.clone());
    tokio::spawn(async move { controller::run(&settings, records, driven, tunnels, counted, token).await });
    mirror.synced().await;
    let took = Uptime::now().since(begin);
    // Until each machine was planned with the whole view: the updates are to be measured, not the start.
    while counters.value(Reason::BmcAwaitsAgent.counter()) < u64::from(MACHINES) {
        if news.changed().await.is_err() {
            return ExitCode::FAILURE;
        }
    }
    println!("{}", took.as_millis());
    let _ = std::io::stdout().flush();

    let done = tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new())).await;
    done.expect("it only reads").expect("the double says when it is done");
    // As the provider does every few seconds: what is free is not held for the machines.
    pilotlight::sys::memory::release();
    let (held, peak) = (memory("RssAnon").saturating_sub(before), memory("VmHWM"));
    // The updates are written; what is still under way is planned soon.
    let late = Uptime::now() + PATIENCE;
    let cordoned = Reason::Cordoned.as_str();
    let machines = loop {
        let machines = rack.machines();
        let planned = machines.iter().filter(|machine| machine.verdict == cordoned).count();
        if planned >= UPDATES as usize || Uptime::now() >= late {
            break machines;
        }
        if tokio::time::timeout(late.since(Uptime::now()), news.changed()).await.is_err() {
            break rack.machines();
        }
    };
    let mut delays: Vec<Duration> = Vec::new();
    for machine in &machines {
        let planned = machine.timeline.iter().find(|moment| moment.what == cordoned);
        let written = mirror.get(&Kind::omni("InfraMachines"), machine.id.as_str());
        if let (Some(planned), Some(written)) = (planned, written) {
            delays.push(planned.at.since(written.updated));
        }
    }
    delays.sort();
    let micros = |value: Duration| value.as_micros();
    let known = machines.iter().filter(|machine| !machine.verdict.is_empty()).count();
    println!(
        "{held} {peak} {known} {} {} {} {}",
        delays.len(),
        micros(percentile(&delays, 50)),
        micros(percentile(&delays, 99)),
        micros(delays.last().copied().unwrap_or_default())
    );
    ExitCode::SUCCESS
}
