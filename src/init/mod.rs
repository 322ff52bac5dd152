//! PID 1's loop: wait for a signal, ask supervise, perform.
//!
//! An edge, because it is the one process that the kernel asks. It never ends, never waits for a child, and never lets a
//! panic through: any of these would be a kernel panic.

mod devices;
mod disks;
mod log;
mod prepare;
mod storage;

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::MsFlags;
use nix::sys::reboot::RebootMode;
use nix::sys::signal::Signal as Number;

use crate::config;
use crate::secret::Secret;
use crate::supervise::mounts::{Directory, Forbid, Mount};
use crate::supervise::services::{SERVICES, SOCKETS_GID, Service};
use crate::supervise::{Action, Ending, Event, Exit, Report, Signal, Supervisor, flags};
use crate::sys::process::{Confinement, Reaped};
use crate::sys::signal::Signals;
use crate::sys::{mount, power, process};
use crate::time::Uptime;
use log::{Level, Log};
pub use prepare::{ARGUMENT as PREPARE, prepare};

/// How long the disks may take at the end.
const SYNC_LIMIT: Duration = Duration::from_secs(30);
/// The program of every service when none lies beside init.
const PROGRAM: &str = "/usr/bin/pilotlight";
/// What init listens to; everything else that can be blocked means nothing to PID 1.
const SIGNALS: [Number; 7] = [
    Number::SIGCHLD,
    Number::SIGTERM,
    Number::SIGINT,
    Number::SIGPWR,
    Number::SIGUSR1,
    Number::SIGUSR2,
    Number::SIGHUP,
];

/// Runs as PID 1 with init's `arguments`; never returns.
///
/// SIGTERM and SIGINT (Ctrl-Alt-Del) reboot, SIGUSR2 and SIGPWR power off, SIGUSR1 halts, each in order.
pub fn run(arguments: &[String]) -> ! {
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        log::report_panics();
        Init::new(arguments).run()
    }));
    let log = Log::open();
    match outcome {
        Ok(Err(error)) => log.line(Level::Emergency, &format!("cannot go on: {error}")),
        Err(_panic) => log.line(Level::Emergency, "panicked; rebooting"),
        Ok(Ok(never)) => match never {},
    }
    reboot_or_sleep(&log, RebootMode::RB_AUTOBOOT)
}

/// The last thing that is done, whatever happens.
fn reboot_or_sleep(log: &Log, mode: RebootMode) -> ! {
    if let Err(error) = power::sync_within(SYNC_LIMIT) {
        log.line(Level::Error, &format!("sync: {error}"));
    }
    let error = power::end(mode);
    log.line(Level::Emergency, &format!("the kernel does not end the run: {error}"));
    loop {
        // Ended children would pile up.
        while !matches!(process::reap(), Ok(Reaped::Nothing | Reaped::NoChildren) | Err(_)) {}
        std::thread::sleep(Duration::from_secs(1));
    }
}

enum Never {}

struct Init {
    log: Log,
    arguments: Vec<String>,
    supervisor: Supervisor,
    /// The services' program and flags; read at the first start, since /proc and the disk come before.
    launch: Option<(PathBuf, Vec<String>)>,
}

impl Init {
    fn new(arguments: &[String]) -> Self {
        let supervisor = Supervisor::new(SERVICES);
        Self { log: Log::open(), arguments: arguments.to_vec(), supervisor, launch: None }
    }

    fn run(mut self) -> io::Result<Never> {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        self.try_to("change to /", std::env::set_current_dir("/"));
        if let Err(error) = power::catch_ctrl_alt_del() {
            self.log.line(Level::Debug, &format!("Ctrl-Alt-Del stays as it is: {error}"));
        }
        let signals = Signals::take(&SIGNALS)?;
        self.feed(Event::Boot);
        loop {
            let limit = self.supervisor.deadline().map(|deadline| deadline.since(Uptime::now()));
            if let Some(signal) = signals.wait(limit)?
                && let Some(ending) = ending(signal)
            {
                self.feed(Event::TerminationRequested(ending));
            }
            self.reap()?;
            if self.supervisor.deadline().is_some_and(|deadline| deadline <= Uptime::now()) {
                self.feed(Event::Deadline);
            }
        }
    }

    /// Takes away all children that ended: one SIGCHLD may stand for many.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            let (pid, exit) = match process::reap()? {
                Reaped::Exited(pid, code) => (pid, Exit::Code(code)),
                Reaped::Signalled(pid, signal) => (pid, Exit::Signal(signal)),
                Reaped::Nothing => return Ok(()),
                Reaped::NoChildren => {
                    self.feed(Event::ChildrenGone);
                    return Ok(());
                }
            };
            self.feed(Event::ChildExited { pid, exit, jitter: jitter() });
        }
    }

    /// Hands one event to the supervisor and performs what it says, with the events that this causes.
    fn feed(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in self.supervisor.on(Uptime::now(), event) {
                events.extend(self.perform(action));
            }
        }
    }

    fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Mount(plan) => self.try_to(&format!("mount {}", plan.target), mount_one(&plan)),
            Action::MakeDirectory(plan) => self.try_to(&format!("make {}", plan.path), make_directory(&plan)),
            Action::Link { path, target } => match symlink(target, path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => self.try_to(&format!("link {path}"), other),
            },
            Action::Prepare => {
                let spawned = process::spawn_self(prepare::ARGUMENT);
                self.try_to("prepare", spawned.as_ref().map(drop).map_err(|error| error.kind().into()));
                return Some(Event::Preparing(spawned.ok()));
            }
            Action::Spawn(service) => return Some(self.spawn(&service)),
            Action::Signal { pid, signal } => {
                self.try_to(&format!("signal {pid}"), process::signal_group(pid, number(signal)));
            }
            Action::KillAll(signal) => self.try_to("signal all", process::signal_all(number(signal))),
            Action::Sync => self.try_to("sync", power::sync_within(SYNC_LIMIT)),
            Action::Unmount(target) => self.try_to(&format!("unmount {target}"), mount::unmount(Path::new(target))),
            Action::Reboot(ending) => reboot_or_sleep(&self.log, mode(ending)),
            Action::Report(report) => self.report(report),
        }
        None
    }

    fn spawn(&mut self, service: &Service) -> Event {
        let log = &self.log;
        let (program, flags) =
            self.launch.get_or_insert_with(|| (program(), load_flags(log, flags::path(&self.arguments))));
        let fixed = service.args().map(str::to_owned);
        let args: Vec<_> = fixed.into_iter().chain(flags.iter().cloned()).collect();
        let confinement = Confinement {
            uid: service.uid,
            gid: service.uid,
            groups: vec![SOCKETS_GID],
            capabilities: service.capabilities.iter().map(|capability| *capability as u8).collect(),
        };
        let environment: Vec<_> = service
            .environment
            .iter()
            .filter_map(|name| Some((*name, Secret::new(config::variable(name)?.into_string().ok()?))))
            .collect();
        match process::spawn(program, &args, &environment, &confinement) {
            Ok(pid) => Event::Started { service: service.name, pid },
            Err(error) => {
                self.log.line(Level::Error, &format!("{}: cannot start {}: {error}", service.name, program.display()));
                Event::SpawnFailed { service: service.name, jitter: jitter() }
            }
        }
    }

    fn report(&self, report: Report) {
        let (level, text) = match report {
            Report::Stray { pid, exit } => (Level::Debug, format!("reaped stray {pid}: {exit}")),
            Report::Running { service, pid } => (Level::Info, format!("{service}: runs as {pid}")),
            Report::Restarting { service, exit, pause, degraded } => {
                let how = exit.map_or_else(|| "did not start".to_owned(), |exit| format!("ended by {exit}"));
                let level = if degraded { Level::Error } else { Level::Warning };
                let state = if degraded { ", degraded" } else { "" };
                (level, format!("{service}: {how}{state}; starts again in {} ms", pause.as_millis()))
            }
            Report::Ending(ending) => (Level::Info, format!("the run ends: {ending:?}")),
            Report::Stopped { service, exit } => (Level::Info, format!("{service}: stopped by {exit}")),
            Report::Stuck { service, pid } => (Level::Error, format!("{service}: {pid} can't be killed; left behind")),
        };
        self.log.line(level, &text);
    }

    /// Nothing that fails here stops the boot: a box that half works can be asked what is wrong.
    fn try_to(&self, what: &str, result: io::Result<()>) {
        if let Err(error) = result {
            self.log.line(Level::Error, &format!("cannot {what}: {error}"));
        }
    }
}

const fn ending(signal: Number) -> Option<Ending> {
    match signal {
        Number::SIGTERM | Number::SIGINT => Some(Ending::Reboot),
        Number::SIGPWR | Number::SIGUSR2 => Some(Ending::PowerOff),
        Number::SIGUSR1 => Some(Ending::Halt),
        _ => None,
    }
}

const fn mode(ending: Ending) -> RebootMode {
    match ending {
        Ending::Reboot => RebootMode::RB_AUTOBOOT,
        Ending::PowerOff => RebootMode::RB_POWER_OFF,
        Ending::Halt => RebootMode::RB_HALT_SYSTEM,
    }
}

const fn number(signal: Signal) -> Number {
    match signal {
        Signal::Term => Number::SIGTERM,
        Signal::Kill => Number::SIGKILL,
    }
}

/// Any octet will do. Not from the kernel's generator, which may not be ready so early and would block.
fn jitter() -> u8 {
    (Uptime::now().as_duration().subsec_micros() % 256) as u8
}

fn mount_one(plan: &Mount) -> io::Result<()> {
    let target = Path::new(plan.target);
    fs::create_dir_all(target)?;
    if mount::is_mount_point(target)? {
        return Ok(());
    }
    let flags = plan.forbids.iter().fold(MsFlags::empty(), |flags, forbidden| {
        flags
            | match forbidden {
                Forbid::Suid => MsFlags::MS_NOSUID,
                Forbid::Exec => MsFlags::MS_NOEXEC,
                Forbid::Dev => MsFlags::MS_NODEV,
            }
    });
    mount::mount(plan.fstype, target, flags, plan.options)
}

fn make_directory(plan: &Directory) -> io::Result<()> {
    fs::create_dir_all(&plan.path)?;
    // The owner first: a change of owner takes the set-group-ID bit away.
    chown(&plan.path, Some(plan.uid), Some(plan.gid))?;
    fs::set_permissions(&plan.path, fs::Permissions::from_mode(plan.mode))
}

/// The `pilotlight` beside init's own executable, else the usual one.
fn program() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("pilotlight")));
    beside.filter(|path| path.is_file()).unwrap_or_else(|| PROGRAM.into())
}

fn load_flags(log: &Log, path: &str) -> Vec<String> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(flags::MAX_FILE as u64 + 1).read_to_end(&mut text));
    match read {
        Ok(_) => flags::parse(&text).unwrap_or_else(|error| {
            log.line(Level::Error, &format!("{path} does not count: it {error}"));
            Vec::new()
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            log.line(Level::Error, &format!("cannot read {path}: {error}"));
            Vec::new()
        }
    }
}
