//! Performs what the supervisor says, one action at a time.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::MsFlags;
use nix::sys::reboot::RebootMode;
use nix::sys::signal::Signal as Number;

use super::cgroups::{self, Group};
use super::log::{Level, Log};
use super::logging::Logging;
use super::{
    Init, NO_WATCHDOG, SYNC_LIMIT, clock, jitter, notify, plugs, prepare, pstore, reboot_or_sleep, record, seed, slots,
    terminals, volume,
};
use crate::config;
use crate::secret::Secret;
use crate::settings::{self, disk::Directory as Kept, disk::Files};
use crate::slots::Slot;
use crate::supervise::cmdline::{MAX_LINE, Parameters, words};
use crate::supervise::mounts::{CRASH_DIR, Directory, Forbid, Mount};
use crate::supervise::services::{self, KEY_VARIABLES, SERVICES, SOCKETS_GID, Service};
use crate::supervise::sysctl::{Sysctl, took};
use crate::supervise::{Action, Ending, Event, Place, Report, Signal, disk, flags, seccomp};
use crate::sys::process::{Confinement, Wiring};
use crate::sys::{mount, network, power, process};
use crate::time::{UnixTime, Uptime};

/// How long the disks may take with what is done before the first service, and first at the end.
const EARLY_LIMIT: Duration = Duration::from_secs(5);
/// The program of every service when none lies beside init.
const PROGRAM: &str = "/usr/bin/pilotlight";
/// How the kernel calls the PID namespace that the machine began with: `PROC_PID_INIT_INO` of `linux/proc_ns.h`.
const FIRST_PID_NAMESPACE: &str = "pid:[4026531836]";

impl Init {
    /// Performs `action`; returns what came of it, where the supervisor waits for that.
    pub(super) fn perform(&mut self, action: Action) -> Option<Event> {
        match action {
            Action::Mount(plan) => self.try_to(&format!("mount {}", plan.target), mount_one(&plan)),
            Action::Orient => return Some(self.orient()),
            Action::OpenWatchdog => {
                if let Err(error) = self.watchdog.start(Uptime::now(), self.parameters.watchdog) {
                    self.fault(&format!("{NO_WATCHDOG}: {error}"));
                }
                self.welcome_watchdog();
            }
            Action::MakeDirectory(plan) => self.try_to(&format!("make {}", plan.path), make_directory(&plan)),
            Action::Link { path, target } => match symlink(target, path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => self.try_to(&format!("link {path}"), other),
            },
            Action::Tune(sysctl) => self.tune(&sysctl),
            Action::Hostname(name) => {
                self.try_to("name the machine", nix::unistd::sethostname(name).map_err(io::Error::from));
            }
            Action::LoopbackUp => self.try_to("set loopback up", network::up("lo")),
            Action::MakeCgroups => {
                for lack in cgroups::prepare() {
                    self.fault(&lack);
                }
            }
            Action::ListenToServices => {
                // Its directory is there only now.
                self.listen();
                let (notify, failed) = notify::Notify::open(SERVICES);
                for (service, error) in failed {
                    self.fault(&format!("{service} can't say that it is well: {error}"));
                }
                self.sources.push(Box::new(notify));
            }
            Action::Prepare => {
                let spawned = process::spawn_self(&[prepare::ARGUMENT], None);
                self.try_to("prepare", spawned.as_ref().map(drop).map_err(|error| error.kind().into()));
                return Some(Event::Preparing(spawned.ok()));
            }
            Action::ReadSlots => match slots::start(Path::new(disk::NAMES).join(disk::STATE)) {
                Ok((jobs, source)) => {
                    self.slots = Some(jobs);
                    self.sources.push(source);
                }
                Err(error) => return Some(Event::SlotsRead(Err(error.to_string()))),
            },
            Action::WriteSlots { commit, tries } => {
                let sent = self.slots.as_ref().is_some_and(|jobs| jobs.try_send(slots::Job { commit, tries }).is_ok());
                if !sent {
                    let outcome = Err("nobody writes the slot records".to_owned());
                    return Some(Event::SlotsWritten { outcome, records: None });
                }
            }
            Action::OpenSlot(slot) => self.give_slot(slot, services::service("update").map_or(0, |one| one.uid)),
            Action::CloseSlot(slot) => self.give_slot(slot, 0),
            Action::Answer { ticket, reply } => {
                if let Some(control) = &mut self.control {
                    control.reply(ticket, &reply);
                }
            }
            Action::Recall => {
                self.installer.recall();
                // What is prepared is prepared by now, and said in the log.
                match volume::told() {
                    Ok(lines) => lines.iter().for_each(|line| self.keep_fault(line)),
                    Err(error) => self.fault(&format!("what was found wrong with the disk can't be read: {error}")),
                }
                return Some(Event::Recalled(record::recall(self.watchdog.fired())));
            }
            Action::Remember(record) => self.try_to("keep the record of this run", record::remember(&record)),
            Action::Spawn(service) => return Some(self.spawn(&service)),
            Action::Signal { pid, signal } => {
                self.try_to(&format!("signal {pid}"), process::signal_group(pid, number(signal)));
            }
            Action::KillLeftovers(service) => {
                self.try_to(&format!("kill what {service} left behind"), Group::of(service).kill());
            }
            Action::KillAll(signal) => self.try_to("signal all", process::signal_all(number(signal))),
            Action::Sync => self.try_to("sync", power::sync_within(SYNC_LIMIT)),
            Action::Unmount(target) => self.try_to(&format!("unmount {target}"), mount::unmount(Path::new(target))),
            Action::Reboot(ending) => {
                self.watchdog.feed_last();
                reboot_or_sleep(&self.log, mode(ending));
            }
            Action::Report(report) => {
                self.report(&report);
                if let Report::SlotFault(fault) = &report {
                    self.keep_fault(fault);
                }
                if matches!(report, Report::Ending(..)) {
                    self.conclude();
                }
            }
        }
        None
    }

    /// Makes the partition of a slot this user's, and nobody else's.
    fn give_slot(&mut self, slot: Slot, uid: u32) {
        // A link of ours to the node.
        let path = Path::new(disk::NAMES).join(format!("slot-{}", slot.letter()));
        let given = chown(&path, Some(uid), Some(uid))
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)));
        self.try_to(&format!("give slot {} to user {uid}", slot.letter()), given);
    }

    /// Finds out where this is and what it is told.
    fn orient(&mut self) -> Event {
        let namespace = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
        let first = namespace.as_os_str() == FIRST_PID_NAMESPACE;
        self.place = if first { Place::Machine } else { Place::Container };
        self.parameters = match self.place {
            Place::Machine => {
                let words = words(&read_line("/proc/cmdline"));
                Parameters::read(words.iter().map(String::as_str))
            }
            Place::Container => Parameters::read(self.arguments.iter().map(String::as_str)),
        };
        if self.place == Place::Machine {
            let most = SERVICES.iter().map(|service| service.files).max().unwrap_or_default();
            self.try_to("let services open files", process::allow_files(most));
        }
        for word in self.parameters.unknown.clone() {
            self.fault(&format!("{word} means nothing here"));
        }
        Event::Oriented {
            place: self.place,
            watchdog: self.parameters.service_watchdog,
            booted: self.parameters.booted.clone(),
            trial: self.parameters.trial,
        }
    }

    fn tune(&mut self, sysctl: &Sysctl) {
        let path = Path::new("/proc/sys").join(sysctl.path);
        let write = || -> io::Result<String> {
            OpenOptions::new().write(true).open(&path)?.write_all(sysctl.value.as_bytes())?;
            fs::read_to_string(&path)
        };
        match write() {
            Ok(read) if took(sysctl, &read) => {}
            Ok(read) => self.fault(&format!("{sysctl} is refused: it stays {}", read.trim())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !sysctl.expected => {
                self.log.line(Level::Debug, &format!("{sysctl}: this kernel has no such setting"));
            }
            Err(error) => self.fault(&format!("{sysctl} can't be set: {error}")),
        }
    }

    /// What is done once /data is there, and before any service runs: the clock, randomness, what a crash left, the journal.
    fn settle(&mut self) {
        if self.logging.is_some() {
            return;
        }
        // In a container, clock and firmware are another's.
        if self.place == Place::Machine {
            let log = &self.log;
            let work = || {
                clock::set_floor(log);
                seed::take_in(log);
                pstore::harvest(Path::new(pstore::SOURCE), Path::new(CRASH_DIR), UnixTime::now(), log);
            };
            let done = power::within(EARLY_LIMIT, work);
            self.try_to("set up clock and randomness in time", done);
            match plugs::Plugs::listen(Uptime::now()) {
                Ok(plugs) => self.sources.push(Box::new(plugs)),
                Err(error) => self.fault(&format!("no word of sticks that are plugged in: {error}")),
            }
        }
        let now = Uptime::now();
        let mut logging = Logging::open(now, &self.log);
        logging.turn(now, jitter(), &self.log);
        self.logging = Some(logging);
    }

    /// What is done first when the run ends.
    fn conclude(&mut self) {
        if let Some(logging) = &mut self.logging {
            logging.stop();
        }
        let log = &self.log;
        let done = power::within(EARLY_LIMIT, || seed::leave(log));
        self.try_to("leave a seed in time", done);
    }

    fn spawn(&mut self, service: &Service) -> Event {
        self.settle();
        let (log, parameters) = (&self.log, &self.parameters);
        // In a container, screens and lines are another's.
        if service.terminals && self.place == Place::Machine {
            terminals::hand_over(service.uid, log);
        }
        let (program, flags) = self.launch.get_or_insert_with(|| (program(), load_flags(log, &parameters.flags)));
        // Each time: someone may have set the box up since. What can't be read is as it was.
        match load_set() {
            Ok(set) => self.set = set,
            Err(error) => log.line(Level::Error, &format!("what the box is set to can't be read: {error}")),
        }
        let fixed = service.args().map(str::to_owned);
        let args: Vec<_> = fixed.into_iter().chain(flags::merge(flags, &self.set, settings::is_flag)).collect();
        let group = Group::of(service.name);
        let (cgroup, refused) = group.enter(service);
        let confinement = Confinement {
            uid: service.uid,
            gid: service.uid,
            groups: vec![SOCKETS_GID],
            capabilities: service.capabilities.iter().map(|capability| *capability as u8).collect(),
            files: service.files,
            filter: seccomp::program(service.filter()),
            cgroup,
        };
        let mut environment: Vec<_> = service
            .environment
            .iter()
            .filter_map(|name| Some((*name, Secret::new(config::variable(name)?.into_string().ok()?))))
            .collect();
        if let Some(key) = service.environment.iter().find(|name| KEY_VARIABLES.contains(name)).and_then(|_| load_key())
        {
            environment.retain(|(name, _)| !KEY_VARIABLES.contains(name));
            environment.push((KEY_VARIABLES[1], key));
        }
        // sd_notify(3) and sd_watchdog_enabled(3).
        environment.push(("NOTIFY_SOCKET", Secret::new(service.notify_socket())));
        environment.push(("WATCHDOG_USEC", Secret::new(service.watchdog.as_micros().to_string())));
        self.oom_kills.insert(service.name, group.oom_kills());
        let output = match self.logging.as_ref().map(|logging| logging.output(service.name)) {
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
        let event = match process::spawn(program, &args, &environment, confinement, wiring) {
            Ok(pid) => Event::Started { service: service.name, pid },
            Err(error) => {
                self.log.line(Level::Error, &format!("{}: cannot start {}: {error}", service.name, program.display()));
                Event::SpawnFailed { service: service.name, jitter: jitter() }
            }
        };
        for lack in refused {
            self.fault(&lack);
        }
        event
    }

    fn report(&self, report: &Report) {
        let (level, text) = match report {
            Report::Previous(previous) => {
                let level = if previous.record.as_ref().is_some_and(|record| record.end.is_none()) {
                    Level::Warning
                } else {
                    Level::Info
                };
                (level, previous.to_string())
            }
            Report::Stray { pid, exit } => (Level::Debug, format!("reaped stray {pid}: {exit}")),
            Report::Running { service, pid } => (Level::Info, format!("{service}: runs as {pid}")),
            Report::Ready { service, after } => {
                (Level::Info, format!("{service}: is ready after {} ms", after.as_millis()))
            }
            Report::Slow { service } => {
                (Level::Warning, format!("{service}: is not ready yet; the others go on without"))
            }
            Report::StoodStill(time) => (
                Level::Warning,
                format!("the machine stood still for {:.1} s: no service is blamed for that", time.as_secs_f64()),
            ),
            Report::Hung { service, pid } => (Level::Error, format!("{service}: {pid} hangs and is killed")),
            Report::Restarting { service, exit, pause, degraded } => {
                let how = exit.map_or_else(|| "did not start".to_owned(), |exit| format!("ended by {exit}"));
                let level = if *degraded { Level::Error } else { Level::Warning };
                let state = if *degraded { ", degraded" } else { "" };
                (level, format!("{service}: {how}{state}; starts again in {} ms", pause.as_millis()))
            }
            Report::StaysUp { service, refusal } => (
                Level::Error,
                format!("{service} can't be brought back, and the box is not rebooted for it: {refusal}"),
            ),
            Report::Recovery(why) => {
                (Level::Warning, format!("this is recovery ({why}): the box does nothing for its machines"))
            }
            Report::Acknowledged => (Level::Info, "this boot lasts: it does not count against the box".to_owned()),
            Report::Committed(slot) => (Level::Info, format!("slot {} proved itself and is committed", slot.letter())),
            Report::GivesUp { slot, missing } => {
                (Level::Error, format!("slot {} failed its trial and is given up: {missing}", slot.letter()))
            }
            Report::SlotFault(fault) => (Level::Error, format!("slot records: {fault}")),
            Report::Ending(ending, why) => (Level::Info, format!("the run ends by {ending}: {why}")),
            Report::Stopped { service, exit } => (Level::Info, format!("{service}: stopped by {exit}")),
            Report::Stuck { service, pid } => (Level::Error, format!("{service}: {pid} can't be killed; left behind")),
        };
        self.log.line(level, &text);
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
        Signal::Abort => Number::SIGABRT,
        Signal::Kill => Number::SIGKILL,
    }
}

fn read_line(path: &str) -> String {
    let mut octets = Vec::new();
    // What can't be read says nothing; the defaults stand.
    let _ = File::open(path).and_then(|file| file.take(MAX_LINE as u64).read_to_end(&mut octets));
    String::from_utf8_lossy(&octets).into_owned()
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

/// Omni's key that the box is set to.
fn load_key() -> Option<Secret<String>> {
    let octets = Kept::new(Path::new(settings::disk::DIRECTORY), None).read(settings::disk::KEY);
    let text = String::from_utf8(octets.ok()??).ok()?;
    Some(Secret::new(text)).filter(|text| !text.reveal().is_empty())
}

/// The flags that the box is set to. The directory is another user's: nothing in it may keep PID 1.
fn load_set() -> io::Result<Vec<String>> {
    let octets = Kept::new(Path::new(settings::disk::DIRECTORY), None).read(settings::disk::FLAGS)?;
    flags::parse(&octets.unwrap_or_default()).map_err(io::Error::other)
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
