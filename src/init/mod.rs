//! PID 1's loop: wait for signals and sockets, ask supervise, perform.
//!
//! An edge, because it is the one process that the kernel asks. It never ends, never waits for a child, and never lets a
//! panic through: any of these would be a kernel panic.

mod cgroups;
mod clock;
mod control;
mod devices;
mod disks;
mod install;
mod installer;
pub mod journal;
mod log;
mod logging;
mod notify;
mod perform;
mod plugs;
mod ports;
mod prepare;
mod pstore;
mod record;
mod records;
mod seed;
mod slots;
mod source;
mod sticks;
mod storage;
mod terminals;
mod volume;
mod watchdog;

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use nix::sys::reboot::RebootMode;
use nix::sys::signal::Signal as Number;

use crate::supervise::budget::MOST_IN_A_ROW;
use crate::supervise::cmdline::Parameters;
use crate::supervise::control::{Reply, Request, Status};
use crate::supervise::install::Ask;
use crate::supervise::memory::Memory;
use crate::supervise::services::SERVICES;
use crate::supervise::slots::Wish;
use crate::supervise::{Ending, Event, Exit, Place, Supervisor, Why, stood_still};
use crate::sys::process::Reaped;
use crate::sys::signal::Signals;
use crate::sys::{crash, power, process, wait};
use crate::time::Uptime;
use cgroups::Group;
pub use install::{ARGUMENT as INSTALL, run as install};
use log::{Level, Log};
use logging::Logging;
pub use prepare::{ARGUMENT as PREPARE, prepare};
use source::Source;
pub use sticks::{ARGUMENT as STICKS, plugged};

/// How long the disks may take at the end.
const SYNC_LIMIT: Duration = Duration::from_secs(30);
/// Faults that are kept for the page; the log has all.
const MAX_FAULTS: usize = 32;
/// How the fault begins that is none any more when the hardware watchdog comes.
const NO_WATCHDOG: &str = "no hardware watchdog yet";
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
    place: Place,
    parameters: Parameters,
    supervisor: Supervisor,
    watchdog: watchdog::Keeper,
    control: Option<control::Control>,
    /// Opened before the first service, when the directories are there.
    logging: Option<Logging>,
    /// Where what is to be stored of the slots goes.
    slots: Option<SyncSender<slots::Job>>,
    /// Copies the system to another disk.
    installer: installer::Runner,
    /// What else the loop listens to.
    sources: Vec<Box<dyn Source>>,
    /// The services' program and the image's flags; read at the first start, since /proc and the disk come before.
    launch: Option<(PathBuf, Vec<String>)>,
    /// The flags that the box is set to, as they were read last.
    set: Vec<String>,
    /// How many processes of each service the kernel had killed for want of memory when it was started.
    oom_kills: HashMap<&'static str, u64>,
    /// What could not be set up as it should be.
    faults: Vec<String>,
}

impl Init {
    fn new(arguments: &[String]) -> Self {
        Self {
            log: Log::open(),
            arguments: arguments.to_vec(),
            // Until it is known, nothing is touched that may be another's.
            place: Place::Container,
            parameters: Parameters::default(),
            supervisor: Supervisor::new(SERVICES),
            watchdog: watchdog::Keeper::default(),
            control: None,
            logging: None,
            slots: None,
            installer: installer::Runner::default(),
            sources: Vec::new(),
            launch: None,
            set: Vec::new(),
            oom_kills: HashMap::new(),
            faults: Vec::new(),
        }
    }

    fn run(mut self) -> io::Result<Never> {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
        self.try_to("change to /", std::env::set_current_dir("/"));
        self.try_to("be ready for a crash", crash::install());
        if let Err(error) = power::catch_ctrl_alt_del() {
            self.log.line(Level::Debug, &format!("Ctrl-Alt-Del stays as it is: {error}"));
        }
        let signals = Signals::take(&SIGNALS)?;
        self.feed(Event::Boot);
        crash::open_log();
        loop {
            if let Some(time) = self.wait(&signals)? {
                self.feed(Event::StoodStill(time));
            }
            self.feed_watchdog();
            while let Some(signal) = signals.next()? {
                if let Some(ending) = ending(signal) {
                    self.feed(Event::TerminationRequested(ending, Why::Signal));
                }
            }
            self.reap()?;
            if let Some(logging) = &mut self.logging {
                logging.turn(Uptime::now(), jitter(), &self.log);
            }
            for index in 0..self.sources.len() {
                for event in self.sources[index].turn(Uptime::now()) {
                    self.feed(event);
                }
            }
            self.answer();
            for (ticket, reply) in self.installer.turn(&self.log) {
                self.reply(ticket, &reply);
            }
            if self.supervisor.deadline().is_some_and(|deadline| deadline <= Uptime::now()) {
                self.feed(Event::Deadline);
            }
        }
    }

    /// Opens what others talk to, once its directory is there. What can't be opened is said; the box runs without.
    fn listen(&mut self) {
        match control::Control::open() {
            Ok(control) => self.control = Some(control),
            Err(error) => self.fault(&format!("no control socket: {error}")),
        }
    }

    /// Waits until something has to be looked at; returns for how long the machine stood still meanwhile, if it did.
    fn wait(&self, signals: &Signals) -> io::Result<Option<Duration>> {
        let now = Uptime::now();
        let mut descriptors = vec![signals.as_fd()];
        descriptors.extend(self.control.iter().flat_map(control::Control::descriptors));
        descriptors.extend(self.installer.descriptor());
        descriptors.extend(self.sources.iter().flat_map(|source| source.descriptors(now)));
        let deadlines = [
            self.supervisor.deadline(),
            self.watchdog.deadline(),
            self.control.as_ref().and_then(control::Control::deadline),
            self.logging.as_ref().and_then(Logging::deadline),
        ];
        let sources = self.sources.iter().filter_map(|source| source.deadline(now));
        let first = deadlines.into_iter().flatten().chain(sources).min();
        wait::readable(&descriptors, first.map(|deadline| deadline.since(now)))?;
        Ok(first.and_then(|due| stood_still(now, due, Uptime::now())))
    }

    /// That this is called shows that the loop turns.
    fn feed_watchdog(&mut self) {
        let now = Uptime::now();
        let before = self.watchdog.timeout();
        match self.watchdog.turn(now, self.supervisor.feeds(now)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => self.fault(&format!("hardware watchdog: {error}")),
            Ok(()) | Err(_) => {}
        }
        if before.is_none() {
            self.welcome_watchdog();
        }
    }

    /// Says that there is a hardware watchdog, if there is.
    fn welcome_watchdog(&mut self) {
        let Some(timeout) = self.watchdog.timeout() else { return };
        // Its module may come late.
        self.faults.retain(|fault| !fault.starts_with(NO_WATCHDOG));
        self.log.line(Level::Info, &format!("the hardware watchdog runs, with {} s", timeout.as_secs()));
    }

    /// Takes away all children that ended: one SIGCHLD may stand for many.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            let (pid, exit) = match process::reap()? {
                Reaped::Exited(pid, code) => (pid, Exit::Code(code)),
                Reaped::Signalled(pid, signal) => (pid, self.signalled(pid, signal)),
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

    /// The kernel kills for want of memory by a signal like any other; the group's count tells it apart.
    fn signalled(&self, pid: i32, signal: i32) -> Exit {
        let Some(service) = self.supervisor.service_of(pid) else { return Exit::Signal(signal) };
        let before = self.oom_kills.get(service).copied().unwrap_or(0);
        if Group::of(service).oom_kills() > before { Exit::OutOfMemory } else { Exit::Signal(signal) }
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

    /// Answers those who ask on the control socket.
    fn answer(&mut self) {
        let Some(mut control) = self.control.take() else { return };
        let (mut events, mut installs) = (Vec::new(), Vec::new());
        control.turn(Uptime::now(), |ticket, uid, request| {
            let wish = |wish| Event::Wished { ticket, uid, wish };
            let end = |ending| Event::TerminationRequested(ending, Why::Asked(uid));
            let (event, reply) = match request {
                Request::Status => return Some(Reply::Status(self.status())),
                Request::Reboot => (end(Ending::Reboot), Some(Reply::Accepted)),
                Request::PowerOff => (end(Ending::PowerOff), Some(Reply::Accepted)),
                Request::Restart(services) => {
                    events.extend(services.names().map(Event::RestartRequested));
                    return Some(Reply::Accepted);
                }
                Request::Survey => {
                    installs.push((ticket, Ask::Survey));
                    return None;
                }
                Request::Install { name, octets } => {
                    installs.push((ticket, Ask::Install { name, octets }));
                    return None;
                }
                Request::FactoryReset => (wish(Wish::Reset), None),
                Request::Recovery => (wish(Wish::Recovery(true)), None),
                Request::Normal => (wish(Wish::Recovery(false)), None),
                Request::Withdraw(slot) => (wish(Wish::Withdraw(slot)), None),
                Request::Try { slot, version, asked } => (wish(Wish::Try { slot, version, asked }), None),
                Request::Choose(slot) => (wish(Wish::Choose(slot)), None),
            };
            events.push(event);
            reply
        });
        self.control = Some(control);
        for event in events {
            self.feed(event);
        }
        for (ticket, ask) in installs {
            let status = self.status();
            if let Some(reply) = self.installer.ask(ticket, &ask, &status, &self.log) {
                self.reply(ticket, &reply);
            }
        }
    }

    fn reply(&mut self, ticket: u64, reply: &Reply) {
        if let Some(control) = &mut self.control {
            control.reply(ticket, reply);
        }
    }

    fn status(&self) -> Status {
        let now = Uptime::now();
        let mut services = self.supervisor.status(now);
        for service in &mut services {
            let group = Group::of(&service.name);
            (service.memory, service.anonymous) = (group.memory(), group.anonymous());
        }
        // Neither these files nor those of the groups wait for what a service holds, as its `smaps` would.
        let memory = fs::read_to_string("/proc/meminfo").ok().and_then(|text| Memory::parse(&text));
        Status {
            uptime: now.as_duration().as_secs(),
            slot: self.parameters.slot.clone(),
            previous: self.supervisor.previous().to_string(),
            in_a_row: (self.supervisor.in_a_row(), MOST_IN_A_ROW),
            watchdog: self.watchdog.timeout().and_then(|timeout| u32::try_from(timeout.as_secs()).ok()),
            faults: volume::look()
                .and_then(|volume| volume.trouble())
                .map(|trouble| trouble.to_string())
                .into_iter()
                .chain(self.faults.iter().cloned())
                .collect(),
            services,
            recovery: self.supervisor.is_recovery(),
            records: self.supervisor.slot_records(),
            installation: self.installer.shown(),
            memory,
        }
    }

    /// Nothing that fails here stops the boot: a box that half works can be asked what is wrong.
    fn try_to(&mut self, what: &str, result: io::Result<()>) {
        if let Err(error) = result {
            self.log.line(Level::Error, &format!("cannot {what}: {error}"));
            self.keep_fault(&format!("cannot {what}: {error}"));
        }
    }

    /// Something is not as it should be; it is said and kept for those who ask.
    fn fault(&mut self, text: &str) {
        self.log.line(Level::Warning, text);
        self.keep_fault(text);
    }

    fn keep_fault(&mut self, text: &str) {
        if self.faults.len() < MAX_FAULTS && !self.faults.iter().any(|known| known == text) {
            self.faults.push(text.to_owned());
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

/// Any octet will do. Not from the kernel's generator, which may not be ready so early and would block.
fn jitter() -> u8 {
    (Uptime::now().as_duration().subsec_micros() % 256) as u8
}
