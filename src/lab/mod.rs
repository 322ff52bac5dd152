//! A simulated rack on loopback: an Omni double, machines, BMCs and agents, around the real provider.
//!
//! The provider is a process of its own under its product flags. Everything else lives in the lab's process: the double,
//! which speaks Omni's wire, and the machines, each with a loopback address, a firmware, a BMC and an operating system
//! that speak the real protocols.

pub mod agent;
pub mod bmc;
mod chaos;
pub mod guest;
pub mod machine;
pub mod omni;
pub mod os;
mod progress;
pub mod provider;
pub mod rack;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::duration;
use crate::secret::Secret;
use crate::time::Uptime;
use omni::script::Plan;
use omni::{Omni, Options};
use progress::Terminal;
use provider::Provider;
use rack::Rack;

/// The provider's ID in the lab.
pub const PROVIDER_ID: &str = "lab";
/// Long enough for the provider not to warn of its end.
const KEY_LIFETIME: Duration = Duration::from_secs(90 * 86_400);
/// More than a lab on one machine can feed.
const MACHINES_MAX: u16 = 1_000;
/// How often the terminal is written.
const PACE: Duration = Duration::from_millis(500);

/// What `pilotlight lab` takes.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Machines in the rack; with 0 the provider idles
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=i64::from(MACHINES_MAX)))]
    pub machines: u16,
    /// Play each machine's life once, then exit: 0 when every machine went through, else 1 with the ones that stuck
    #[arg(long)]
    pub once: bool,
    /// With --once: how long the whole may take
    #[arg(long, value_parser = duration::parse, default_value = "10m", value_name = "DURATION")]
    pub timeout: Duration,
    /// Address and port of the status page; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS:PORT")]
    pub page: SocketAddr,
    /// Kill the provider with SIGKILL about this often and start it again. After each start it waits 5 s for the agents
    /// before it reboots a machine, so that in shorter lives it may never get there
    #[arg(long, value_parser = duration::parse, value_name = "DURATION")]
    pub kill_provider_every: Option<Duration>,
    /// Have every fault that the lab knows, at random; the seed repeats it. With --once the storm ends after a third of
    /// --timeout
    #[arg(long, value_name = "SEED", num_args = 0..=1)]
    pub chaos: Option<Option<u64>>,
    /// Address and port of the lab's Omni, for omnictl; port 0 takes a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS:PORT")]
    pub omni_listen: SocketAddr,
    /// Keep the provider's state and log in this directory [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIRECTORY")]
    pub keep: Option<PathBuf>,
}

/// Runs the lab until it is done (`--once`) or interrupted.
///
/// # Errors
///
/// What kept it from starting, or which machines stuck, where and why.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let started = Uptime::now();
    // From the beginning: a lab that dies of SIGTERM would leave its provider and its directory behind.
    let mut terminated = signal(SignalKind::terminate()).context("SIGTERM can't be awaited")?;
    let directory = Directory::new(args.keep.clone())?;
    let mut options = Options { key_lifetime: KEY_LIFETIME, grpc: args.omni_listen, ..Options::loopback(PROVIDER_ID) };
    if !args.omni_listen.ip().is_unspecified() {
        options.advertise = args.omni_listen.ip();
        options.factory = SocketAddr::new(options.advertise, 0);
    }
    let omni = Omni::start(options).await.context("the lab's Omni does not start")?;
    let admin_key = directory.write_key("admin-key", &omni.admin().key_string)?;
    let mut provider = Provider::prepare(&directory.path, &omni, args.page)?;
    provider.start().await?;
    let mut terminal = Terminal::new(args.machines, started);
    terminal.welcome(&provider, &directory.path, &omni.endpoint(), &admin_key);

    let rack = Rack::build(args.machines, provider.network()).await.context("the rack can't be built")?;
    omni.direct(Plan { fleet: rack.ids(), repeat: !args.once, ..Plan::default() });
    rack.switch_on().await;

    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let deadline = started + args.timeout;
    let mut weather = args.chaos.map(|seed| {
        let seed = seed.unwrap_or_else(|| getrandom::u64().unwrap_or_default());
        terminal.line(&format!("chaos with seed {seed}"));
        chaos::Weather::new(seed, started, args.once.then(|| started + args.timeout / 3))
    });
    let mut next_kill = args.kill_provider_every.map(|every| Uptime::now() + every);
    let outcome = loop {
        let due = weather.as_ref().and_then(chaos::Weather::due).map_or(PACE, |due| due.since(Uptime::now()));
        // Cancel-safe: all arms only wait.
        tokio::select! {
            _ = &mut interrupted => break Ok(()),
            _ = terminated.recv() => break Ok(()),
            exit = provider.exited() => break Err(provider.explain(exit)),
            () = tokio::time::sleep(PACE.min(due)) => {}
        }
        let now = Uptime::now();
        if let (Some(at), Some(every)) = (next_kill, args.kill_provider_every)
            && now >= at
        {
            provider.kill().await?;
            provider.start().await?;
            terminal.line("provider killed with SIGKILL and started again");
            next_kill = Some(now + provider::about(every));
        }
        if let Some(weather) = &mut weather {
            for fault in weather.blow(now, &omni, &rack, &mut provider).await? {
                terminal.line(&format!("chaos: {fault}"));
            }
        }
        let progress = omni.progress();
        terminal.show(&progress, now);
        if args.once && terminal.all_done(&progress) {
            break rack.verify();
        }
        if args.once && now >= deadline {
            let status = provider.status().await;
            break Err(progress::stuck(&progress, status.as_ref(), &rack));
        }
        rack.reset_refused(&omni);
        if !args.once {
            rack.press_buttons(&progress);
        }
    };
    let memory = provider.memory();
    let ended = provider.stop().await;
    rack.unplug();
    if let Some(weather) = &weather {
        terminal.line(&weather.summary());
    }
    terminal.farewell(&rack, memory, Uptime::now());
    omni.shutdown().await;
    outcome?;
    if !ended {
        bail!("the provider did not end within {} s of SIGTERM", provider::GRACE.as_secs());
    }
    Ok(())
}

/// Where the provider's state and log go.
struct Directory {
    path: PathBuf,
    temporary: bool,
}

impl Directory {
    fn new(keep: Option<PathBuf>) -> anyhow::Result<Self> {
        let temporary = keep.is_none();
        let path = keep.unwrap_or_else(|| std::env::temp_dir().join(format!("pilotlight-lab-{}", std::process::id())));
        std::fs::create_dir_all(&path).with_context(|| format!("{} can't be made", path.display()))?;
        Ok(Self { path, temporary })
    }
}

impl Directory {
    /// Writes a key that only this user may read; returns where.
    fn write_key(&self, name: &str, key: &Secret<String>) -> anyhow::Result<PathBuf> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;
        let path = self.path.join(name);
        // A key that an earlier lab left here belongs to an Omni that is gone.
        let _ = std::fs::remove_file(&path);
        let file = std::fs::File::options().write(true).create_new(true).mode(0o600).open(&path);
        file.and_then(|mut file| file.write_all(key.reveal().as_bytes()))
            .with_context(|| format!("{} can't be written", path.display()))?;
        Ok(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if self.temporary {
            // Nothing depends on it; what is left lies in the system's temporary directory.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
