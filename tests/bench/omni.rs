//! 10,000 machines in the Omni double: how long the first full sync takes, what the client holds for them, and how long
//! an update takes until it has been planned.
//!
//! Run it with `just bench-omni`. The double and the client are two processes, so that memory counts for one of them.
#![allow(clippy::print_stdout, reason = "figures are what it is for")]

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use pilotlight::controller::records::{Record, Records, confirmed};
use pilotlight::lab::omni::{Omni, Options};
use pilotlight::machine::{MachineId, PowerState};
use pilotlight::omni::watch::{self, Watch};
use pilotlight::omni::{Client, Config, Mirror};
use pilotlight::proto::{provider, specs};
use pilotlight::reconcile::{Rules, View, plan};
use pilotlight::resource::{Kind, LABEL_INFRA_PROVIDER_ID, Resource};
use pilotlight::secret::Secret;
use pilotlight::store::memory::MemoryStore;
use pilotlight::store::seal::SealingKey;
use pilotlight::time::Uptime;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio_util::sync::CancellationToken;

const PROVIDER: &str = "metal-1";
const MACHINES: u32 = 10_000;
/// Updates, one every 10 ms.
const UPDATES: u32 = 3_000;
const PACE: Duration = Duration::from_millis(10);
/// Carries when an update was made, in nanoseconds since the epoch.
const MADE: &str = "bench-made";

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

/// A machine as it stands in a cluster, and everything that a provider records about it.
fn machine(number: u32) -> Vec<Resource> {
    let id = id(number);
    let token = format!("{{\"Fingerprint\":\"{0}{0}\",\"Token\":\"{0}\"}}", id.replace('-', ""));
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
    let status = specs::InfraMachineStatusSpec {
        power_state: 2,
        ready_to_use: true,
        installed: true,
        wiped_node_unique_token: token,
        ..Default::default()
    };
    let mut infra = Resource::new(Kind::omni("InfraMachines"), &id, &infra);
    infra.labels.insert("omni.sidero.dev/cluster".into(), "production".into());
    infra.finalizers.insert(format!("{PROVIDER}.MachineController"));
    let status = Resource::new(Kind::omni("InfraMachineStatuses"), &id, &status);
    let records = Record::ALL.map(|record| {
        Resource::new(Kind::private(record.name(), PROVIDER), &id, &provider::PowerOperationSpec::default())
    });
    let mut all = vec![infra, status];
    all.extend(records);
    for resource in &mut all {
        resource.labels.insert(LABEL_INFRA_PROVIDER_ID.into(), PROVIDER.into());
    }
    all
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
    println!("{MACHINES} machines, {resources} resources of {octets} octets");
    let program = std::env::current_exe().expect("a program knows itself");
    let mut child = tokio::process::Command::new(program)
        .args(["client", &omni.endpoint(), omni.service_account().key_string.reveal()])
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the client starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let mut next = async || lines.next_line().await.ok().flatten().unwrap_or_default();
    let words = next().await;
    let mut words = words.split(' ').map(|word| word.parse::<u64>().unwrap_or(u64::MAX));
    let synced = Duration::from_millis(words.next().unwrap_or(u64::MAX));
    let held = words.next().unwrap_or(u64::MAX);
    let beyond = (held as f64 - octets as f64) / f64::from(MACHINES);
    println!("first full sync: {:.2} s (limit {:.0} s)", synced.as_secs_f64(), SYNC_LIMIT.as_secs_f64());
    println!("client memory: {} octets, {beyond:.0} a machine beyond the resources (limit {MEMORY_LIMIT})", held);

    let mut ticks = tokio::time::interval(PACE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    let kind = Kind::omni("InfraMachines");
    for update in 0..UPDATES {
        ticks.tick().await;
        let made = nanos().to_string();
        let change = |machine: &mut Resource| drop(machine.labels.insert(MADE.into(), made));
        omni.state().modify(&kind, &id(update * 7_919 % MACHINES), change).expect("it is there");
    }
    let words = next().await;
    let words: Vec<u64> = words.split(' ').filter_map(|word| word.parse().ok()).collect();
    let [count, median, p99, worst] = words[..] else {
        println!("the client said nothing of its plans");
        return ExitCode::FAILURE;
    };
    let millis = |micros: u64| micros as f64 / 1_000.0;
    println!(
        "update seen and planned, {count} of {UPDATES} at 100 a second: median {:.2} ms, p99 {:.2} ms, worst {:.2} ms (limit p99 {} ms)",
        millis(median),
        millis(p99),
        millis(worst),
        PLAN_LIMIT.as_millis()
    );
    let good = synced <= SYNC_LIMIT
        && beyond <= MEMORY_LIMIT
        && Duration::from_micros(p99) <= PLAN_LIMIT
        && count == u64::from(UPDATES);
    println!("{}", if good { "within the limits" } else { "BEYOND THE LIMITS" });
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn nanos() -> u128 {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME).map(Duration::from).unwrap_or_default().as_nanos()
}

/// Octets of memory that are this process's own.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or_default() * 1024
}

async fn client(endpoint: String, key: String) -> ExitCode {
    let config = Config { endpoint, key: Some(Secret::new(key)), provider_id: PROVIDER.into(), ..Config::default() };
    let client = Client::connect(config).expect("the double's endpoint and key");
    let all = pilotlight::controller::kinds(PROVIDER);
    let watches = all
        .into_iter()
        .filter(|kind| !kind.r#type.starts_with("BMCConfigs") && !kind.r#type.starts_with("ProviderJoin"));
    let mirror = Mirror::new(watches.map(Watch::all).collect());
    let store = Arc::new(MemoryStore::new());
    let sealing = SealingKey::generate().expect("the kernel gives random numbers");
    let records = Records::load(PROVIDER, client.state().clone(), mirror.clone(), store, sealing, false);
    let records = records.await.expect("an empty store is read");
    client.state().find(&Kind::omni("InfraMachines"), "none").await.expect("the double answers");
    let before = resident();
    let begin = Uptime::now();
    let cancel = CancellationToken::new();
    tokio::spawn(watch::run(client.state().clone(), mirror.clone(), cancel.clone()));
    mirror.synced().await;
    let took = Uptime::now().since(begin);
    // What the sync needed and gave back is not held for the machines.
    tokio::time::sleep(Duration::from_secs(1)).await;
    println!("{} {}", took.as_millis(), resident().saturating_sub(before));
    let _ = std::io::stdout().flush();

    let mut changes = mirror.subscribe();
    changes.take();
    let mut delays: Vec<Duration> = Vec::new();
    let failures = Default::default();
    loop {
        let changed = tokio::select! {
            changed = changes.next() => changed,
            // The updates have ended.
            () = tokio::time::sleep(Duration::from_secs(2)), if !delays.is_empty() => break,
        };
        for change in changed {
            let Ok(id) = change.id.parse::<MachineId>() else { continue };
            let (desired, recorded) = (records.desired(&id), records.recorded(&id));
            let user_bmc = records.user_bmc(&id);
            let outcome = plan(&View {
                desired: desired.as_ref(),
                recorded: &recorded,
                user_bmc: user_bmc.as_ref(),
                password_form_is_wrong: records.password_form_is_wrong(&id),
                intent: None,
                finalizers_missing: records.finalizers_missing(&id),
                confirmed: confirmed(&mirror, Uptime::now()),
                first_word_due: Duration::ZERO,
                power: PowerState::On,
                agent: false,
                agent_missing_for: Duration::ZERO,
                since_power_action: None,
                failures: &failures,
                rules: Rules { min_reboot_interval: Duration::from_secs(900), agent_wait: Duration::from_secs(300) },
            });
            std::hint::black_box(outcome);
            let made =
                mirror.get(&change.kind, &change.id).and_then(|machine| machine.labels.get(MADE)?.parse::<u128>().ok());
            if let Some(made) = made {
                delays.push(Duration::from_nanos(u64::try_from(nanos().saturating_sub(made)).unwrap_or(u64::MAX)));
            }
        }
    }
    delays.sort();
    let micros = |value: Duration| value.as_micros();
    println!(
        "{} {} {} {}",
        delays.len(),
        micros(percentile(&delays, 50)),
        micros(percentile(&delays, 99)),
        micros(delays.last().copied().unwrap_or_default())
    );
    ExitCode::SUCCESS
}
