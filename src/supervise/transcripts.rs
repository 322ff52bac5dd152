//! Behaviours as text: each file of `tests/golden/init` holds events (`>`) and what is done about them.
//!
//! The events are read from the file itself, played, and the whole must come out as it is written. With
//! `PILOTLIGHT_BLESS=1` the files are written anew.

use std::path::PathBuf;
use std::time::Duration;

use super::*;
use budget::Record;
use notify::Notice;
use services::SERVICES;

struct Play {
    supervisor: Supervisor,
    now: Uptime,
    next_pid: i32,
    running: Vec<(&'static str, i32)>,
    failing: Vec<String>,
    silent: Vec<String>,
    place: Place,
    previous: Previous,
    text: String,
}

/// How often a service that is well says so; the table's watchdogs allow more than twice that.
const BEAT: Duration = Duration::from_secs(10);

impl Play {
    fn feed(&mut self, event: Event) {
        for action in self.supervisor.on(self.now, event) {
            self.text.push_str(&format!("  {}\n", line(&action)));
            match action {
                Action::Orient => self.feed(Event::Oriented { place: self.place, watchdog: None }),
                Action::Recall => self.feed(Event::Recalled(self.previous.clone())),
                Action::Prepare => {
                    self.next_pid += 1;
                    self.running.push(("prepare", self.next_pid));
                    self.feed(Event::Preparing(Some(self.next_pid)));
                }
                Action::Spawn(Service { name, .. }) if self.failing.iter().any(|failing| failing == name) => {
                    self.feed(Event::SpawnFailed { service: name, jitter: 128 });
                }
                Action::Spawn(Service { name, .. }) => {
                    self.next_pid += 1;
                    self.running.retain(|(running, _)| *running != name);
                    self.running.push((name, self.next_pid));
                    self.feed(Event::Started { service: name, pid: self.next_pid });
                }
                _ => {}
            }
        }
    }

    fn pid(&self, name: &str) -> i32 {
        self.running.iter().find(|(running, _)| *running == name).unwrap_or_else(|| panic!("{name} does not run")).1
    }

    fn exit(&self, words: &[&str]) -> Exit {
        match words {
            ["code", code] => Exit::Code(code.parse().unwrap()),
            ["signal", signal] => Exit::Signal(signal.parse().unwrap()),
            ["oom"] => Exit::OutOfMemory,
            other => panic!("unknown exit {other:?}"),
        }
    }

    /// On a machine the data partition comes first.
    fn end_preparation(&mut self) {
        if let Some(at) = self.running.iter().position(|(name, _)| *name == "prepare") {
            let (_, pid) = self.running.remove(at);
            self.feed(Event::ChildExited { pid, exit: Exit::Code(0), jitter: 128 });
        }
    }

    /// Boots, and every service becomes ready; nothing of it is written down.
    fn up(&mut self) {
        let length = self.text.len();
        self.feed(Event::Boot);
        self.end_preparation();
        for _ in SERVICES {
            for (_, pid) in self.running.clone() {
                self.feed(Event::Noticed { pid, notice: Notice { ready: true, ..Notice::default() } });
            }
        }
        self.text.truncate(length);
    }

    /// All but the silent say that they are well.
    fn beat(&mut self) {
        for (name, pid) in self.running.clone() {
            if !self.silent.iter().any(|silent| silent == name) {
                self.feed(Event::Noticed { pid, notice: Notice { alive: true, ..Notice::default() } });
            }
        }
    }

    /// The next deadline at which something happens; until then all is well.
    fn beat_until_deadline(&mut self) -> Uptime {
        loop {
            self.beat();
            let deadline = self.supervisor.deadline().expect("a deadline is set");
            if deadline.since(self.now) <= BEAT {
                return deadline;
            }
            self.now = self.now + BEAT;
        }
    }

    fn notice(&self, name: &str, notice: Notice) -> Event {
        Event::Noticed { pid: self.pid(name), notice }
    }

    fn step(&mut self, directive: &str) {
        self.text.push_str(&format!("> {directive}\n"));
        let words: Vec<_> = directive.split(' ').collect();
        let event = match words.as_slice() {
            ["boot"] => Event::Boot,
            ["container"] => {
                self.place = Place::Container;
                return;
            }
            ["up"] => return self.up(),
            ["last-run", count] => {
                self.previous.record = Some(Record { in_a_row: count.parse().unwrap(), end: None });
                return;
            }
            ["disk-lost"] => {
                self.previous.lasting = false;
                return;
            }
            ["wait", secs] => {
                let end = self.now + Duration::from_secs(secs.parse().unwrap());
                while self.now < end {
                    self.now = end.min(self.now + BEAT);
                    self.beat();
                }
                return;
            }
            ["cannot-start", name] => {
                self.failing.push((*name).to_owned());
                return;
            }
            ["ready", name] => self.notice(name, Notice { ready: true, ..Notice::default() }),
            ["silent", name] => {
                self.silent.push((*name).to_owned());
                return;
            }
            ["restart", name] => {
                let named = SERVICES.iter().find(|service| service.name == *name).expect("a service");
                Event::RestartRequested(named.name)
            }
            ["broken", name] => self.notice(name, Notice { broken: true, ..Notice::default() }),
            ["exit", name, how @ ..] => Event::ChildExited { pid: self.pid(name), exit: self.exit(how), jitter: 128 },
            ["exit-of-pid", pid, how @ ..] => {
                Event::ChildExited { pid: pid.parse().unwrap(), exit: self.exit(how), jitter: 128 }
            }
            ["children-gone"] => Event::ChildrenGone,
            ["deadline"] => {
                let begin = self.now;
                self.now = self.beat_until_deadline();
                self.text.push_str(&format!("  (after {:.3} s)\n", self.now.since(begin).as_secs_f64()));
                Event::Deadline
            }
            ["terminate", "reboot"] => Event::TerminationRequested(Ending::Reboot, Why::Signal),
            ["terminate", "power-off"] => Event::TerminationRequested(Ending::PowerOff, Why::Asked(907)),
            ["terminate", "halt"] => Event::TerminationRequested(Ending::Halt, Why::Signal),
            other => panic!("unknown directive {other:?}"),
        };
        self.feed(event);
    }
}

fn line(action: &Action) -> String {
    let signal = |signal: &Signal| match signal {
        Signal::Term => "SIGTERM",
        Signal::Abort => "SIGABRT",
        Signal::Kill => "SIGKILL",
    };
    match action {
        Action::Mount(mount) => format!("mount {mount}"),
        Action::Prepare => "prepare".to_owned(),
        Action::Orient => "orient".to_owned(),
        Action::OpenWatchdog => "open /dev/watchdog0".to_owned(),
        Action::MakeDirectory(directory) => format!("mkdir {directory}"),
        Action::Link { path, target } => format!("symlink {path} -> {target}"),
        Action::Tune(sysctl) => format!("sysctl {sysctl}"),
        Action::Hostname(name) => format!("sethostname {name}"),
        Action::LoopbackUp => "up lo".to_owned(),
        Action::MakeCgroups => format!("mkdir {}", cgroup::SERVICES_DIR),
        Action::ListenToServices => "bind /run/pilotlight/notify/*.sock".to_owned(),
        Action::Recall => "read the record of the run before".to_owned(),
        Action::Remember(record) => format!("write record {:?}", record.to_string()),
        Action::Spawn(service) => {
            let kept: Vec<_> = service.capabilities.iter().map(|capability| capability.name()).collect();
            let kept = if kept.is_empty() { "none".to_owned() } else { kept.join("+") };
            format!(
                "spawn pilotlight {} (uid {}, capabilities {kept}, {} MiB, {} tasks, {} files)",
                service.args().join(" "),
                service.uid,
                service.limits.memory >> 20,
                service.limits.tasks,
                service.files
            )
        }
        Action::Signal { pid, signal: number } => format!("kill {pid} {}", signal(number)),
        Action::KillLeftovers(service) => format!("kill cgroup of {service}"),
        Action::KillAll(number) => format!("kill -1 {}", signal(number)),
        Action::Sync => "sync".to_owned(),
        Action::Unmount(target) => format!("umount {target}"),
        Action::Reboot(ending) => format!("reboot {ending:?}"),
        Action::Report(report) => format!("report {}", said(report)),
    }
}

fn said(report: &Report) -> String {
    match report {
        Report::Previous(previous) => previous.to_string(),
        Report::Restarting { service, pause, degraded, .. } => {
            format!("{service} restarts in {:.3} s{}", pause.as_secs_f64(), if *degraded { ", degraded" } else { "" })
        }
        Report::Running { service, pid } => format!("{service} runs as {pid}"),
        Report::Ready { service, after } => format!("{service} is ready after {:.3} s", after.as_secs_f64()),
        Report::Slow { service } => format!("{service} is not ready yet"),
        Report::Hung { service, pid } => format!("{service} hangs as {pid}"),
        Report::StaysUp { service, refusal } => format!("no reboot for {service}: {refusal}"),
        Report::Stray { pid, exit } => format!("stray {pid} ended by {exit}"),
        Report::Ending(ending, why) => format!("{ending:?}, {why}"),
        Report::Stopped { service, exit } => format!("{service} stopped by {exit}"),
        Report::Stuck { service, pid } => format!("{service} is stuck as {pid}"),
    }
}

fn plays_as_written(name: &str) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/golden/init", name].iter().collect();
    let written = std::fs::read_to_string(&path).unwrap();
    let mut play = Play {
        supervisor: Supervisor::new(SERVICES),
        now: Uptime::from_secs(1),
        next_pid: 100,
        running: Vec::new(),
        failing: Vec::new(),
        silent: Vec::new(),
        place: Place::Machine,
        previous: Previous { lasting: true, ..Previous::default() },
        text: String::new(),
    };
    for line in written.lines() {
        if let Some(directive) = line.strip_prefix("> ") {
            play.step(directive);
        } else if line.starts_with('#') {
            play.text.push_str(&format!("{line}\n"));
        }
    }
    if std::env::var_os("PILOTLIGHT_BLESS").is_some() {
        std::fs::write(&path, &play.text).unwrap();
    }
    assert!(play.text == written, "{name} plays differently:\n{}", play.text);
}

#[test]
fn boot_mounts_first_then_starts_services_in_order() {
    plays_as_written("boot.txt");
}

#[test]
fn a_container_keeps_its_hosts_settings_and_hardware() {
    plays_as_written("container.txt");
}

#[test]
fn those_that_depend_on_a_service_wait_for_it_to_be_ready_and_not_for_ever() {
    plays_as_written("ready.txt");
}

#[test]
fn a_service_that_is_silent_is_aborted_killed_and_started_again() {
    plays_as_written("hang.txt");
}

#[test]
fn a_service_that_eats_all_its_memory_dies_of_it_alone() {
    plays_as_written("oom.txt");
}

#[test]
fn a_critical_service_that_stays_down_reboots_the_box() {
    plays_as_written("critical.txt");
}

#[test]
fn a_spent_budget_keeps_the_box_up() {
    plays_as_written("budget.txt");
}

#[test]
fn without_a_disk_to_remember_it_there_is_no_reboot() {
    plays_as_written("budget_disk.txt");
}

#[test]
fn a_healthy_hour_ends_the_row() {
    plays_as_written("forgiven.txt");
}

#[test]
fn a_service_that_dies_comes_back_alone_and_ever_more_slowly() {
    plays_as_written("restart.txt");
}

#[test]
fn a_service_that_is_wanted_anew_is_no_failure() {
    plays_as_written("renew.txt");
}

#[test]
fn a_service_that_cannot_start_keeps_no_other_from_starting() {
    plays_as_written("cannot_start.txt");
}

#[test]
fn a_stray_is_reaped_and_changes_nothing() {
    plays_as_written("stray.txt");
}

#[test]
fn services_stop_in_reverse_order() {
    plays_as_written("shutdown.txt");
}

#[test]
fn a_service_that_ignores_everything_delays_the_end_and_does_not_prevent_it() {
    plays_as_written("stuck.txt");
}
