//! PID 1's loop: wait for a signal, ask supervise, perform.
//!
//! An edge, because it is the one process that the kernel asks. It never ends, never waits for a child, and never lets a
//! panic through: any of these would be a kernel panic.

mod clock;
pub mod journal;
mod log;
mod logging;
mod pstore;
mod seed;

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
use crate::sys::process::{Confinement, Reaped, Wiring};
use crate::sys::signal::Signals;
use crate::sys::{mount, power, process};
use crate::time::{UnixTime, Uptime};
use log::{Level, Log};
use logging::Logging;

/// How long the disks may take at the end.
const SYNC_LIMIT: Duration = Duration::from_secs(30);
/// How long the disks may take with what is done before the first service.
const EARLY_LIMIT: Duration = Duration::from_secs(5);
/// How the kernel calls the PID namespace that the machine began with: `PROC_PID_INIT_INO` of `linux/proc_ns.h`.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";
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
    /// Opened before the first service, when the directories are there.
    logging: Option<Logging>,
    /// The services' program and flags; read at the first start, since /proc and the disk come before.
    launch: Option<(PathBuf, Vec<String>)>,
}

impl Init {
    fn new(arguments: &[String]) -> Self {
        let supervisor = Supervisor::new(SERVICES);
        Self { log: Log::open(), arguments: arguments.to_vec(), supervisor, logging: None, launch: None }
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
            let logging = self.logging.as_ref().and_then(Logging::deadline);
            let deadline = self.supervisor.deadline().into_iter().chain(logging).min();
            let limit = deadline.map(|deadline| deadline.since(Uptime::now()));
            if let Some(signal) = signals.wait(limit)?
                && let Some(ending) = ending(signal)
            {
                self.feed(Event::TerminationRequested(ending));
            }
            self.reap()?;
            if let Some(logging) = &mut self.logging {
                logging.turn(Uptime::now(), jitter(), &self.log);
            }
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
            if let Some(logging) = &mut self.logging {
                logging.ended(Uptime::now(), pid, exit, jitter(), &self.log);
            }
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
            Action::Spawn(service) => return Some(self.spawn(&service)),
            Action::Signal { pid, signal } => {
                self.try_to(&format!("signal {pid}"), process::signal_group(pid, number(signal)));
            }
            Action::KillAll(signal) => self.try_to("signal all", process::signal_all(number(signal))),
            Action::Sync => self.try_to("sync", power::sync_within(SYNC_LIMIT)),
            Action::Unmount(target) => self.try_to(&format!("unmount {target}"), mount::unmount(Path::new(target))),
            Action::Reboot(ending) => reboot_or_sleep(&self.log, mode(ending)),
            Action::Report(report) => {
                self.report(report);
                if matches!(report, Report::Ending(_)) {
                    self.conclude();
                }
            }
        }
        None
    }

    /// What is done once everything is mounted, and before anyone runs: the clock, randomness, what a crash left, the
    /// journal.
    fn prepare(&mut self) {
        if self.logging.is_some() {
            return;
        }
        // In a container, clock and firmware are another's.
        let log = &self.log;
        if fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name.as_os_str() == FIRST_PID_NAMESPACE) {
            let work = || {
                clock::set_floor(log);
                seed::take_in(log);
                pstore::harvest(Path::new(pstore::SOURCE), Path::new(pstore::DIRECTORY), UnixTime::now(), log);
            };
            self.try_to("set up clock and randomness in time", power::within(EARLY_LIMIT, work));
        }
        let now = Uptime::now();
        let mut logging = Logging::open(now, log);
        logging.turn(now, jitter(), log);
        self.logging = Some(logging);
    }

    /// What is done first when the run ends.
    fn conclude(&mut self) {
        if let Some(logging) = &mut self.logging {
            logging.stop();
        }
        let log = &self.log;
        self.try_to("leave a seed in time", power::within(EARLY_LIMIT, || seed::leave(log)));
    }

    fn spawn(&mut self, service: &Service) -> Event {
        self.prepare();
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
        let mut environment: Vec<_> = service
            .environment
            .iter()
            .filter_map(|name| Some((*name, Secret::new(config::variable(name)?.into_string().ok()?))))
            .collect();
        let output = self.logging.as_ref().map(|logging| logging.output(service.name));
        let output = match output {
            Some(Ok((output, stream))) => {
                environment.push(("JOURNAL_STREAM", Secret::new(stream)));
                Some(output)
            }
            Some(Err(error)) => {
                self.log.line(Level::Warning, &format!("{}: its output is not the journal's: {error}", service.name));
                None
            }
            None => None,
        };
        let wiring = Wiring { output, inherited: &[] };
        match process::spawn(program, &args, &environment, &confinement, wiring) {
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
