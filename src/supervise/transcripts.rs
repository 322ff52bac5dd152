//! Behaviours as text: each file of `tests/golden/init` holds events (`>`) and what is done about them.
//!
//! The events are read from the file itself, played, and the whole must come out as it is written. With
//! `PILOTLIGHT_BLESS=1` the files are written anew.

use std::path::PathBuf;

use super::*;
use services::SERVICES;

struct Play {
    supervisor: Supervisor,
    now: Uptime,
    next_pid: i32,
    running: Vec<(&'static str, i32)>,
    failing: Vec<String>,
    text: String,
}

impl Play {
    fn feed(&mut self, event: Event) {
        for action in self.supervisor.on(self.now, event) {
            if action == Action::Prepare {
                self.text.push_str("  prepare\n");
                self.next_pid += 1;
                self.running.push(("prepare", self.next_pid));
                self.feed(Event::Preparing(Some(self.next_pid)));
                continue;
            }
            let spawned = match &action {
                Action::Spawn(service) => Some(*service),
                _ => None,
            };
            self.text.push_str(&format!("  {}\n", line(&action)));
            let Some(Service { name, .. }) = spawned else { continue };
            if self.failing.iter().any(|failing| failing == name) {
                self.feed(Event::SpawnFailed { service: name, jitter: 128 });
            } else {
                self.next_pid += 1;
                self.running.retain(|(running, _)| *running != name);
                self.running.push((name, self.next_pid));
                self.feed(Event::Started { service: name, pid: self.next_pid });
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
            other => panic!("unknown exit {other:?}"),
        }
    }

    fn step(&mut self, directive: &str) {
        self.text.push_str(&format!("> {directive}\n"));
        let words: Vec<_> = directive.split(' ').collect();
        let event = match words.as_slice() {
            ["boot"] => Event::Boot,
            ["wait", secs] => {
                self.now = self.now + Duration::from_secs(secs.parse().unwrap());
                return;
            }
            ["cannot-start", name] => {
                self.failing.push((*name).to_owned());
                return;
            }
            ["exit", name, how @ ..] => Event::ChildExited { pid: self.pid(name), exit: self.exit(how), jitter: 128 },
            ["exit-of-pid", pid, how @ ..] => {
                Event::ChildExited { pid: pid.parse().unwrap(), exit: self.exit(how), jitter: 128 }
            }
            ["children-gone"] => Event::ChildrenGone,
            ["deadline"] => {
                let deadline = self.supervisor.deadline().expect("a deadline is set");
                let pause = deadline.since(self.now);
                self.text.push_str(&format!("  (after {:.3} s)\n", pause.as_secs_f64()));
                self.now = deadline;
                Event::Deadline
            }
            ["terminate", "reboot"] => Event::TerminationRequested(Ending::Reboot),
            ["terminate", "power-off"] => Event::TerminationRequested(Ending::PowerOff),
            ["terminate", "halt"] => Event::TerminationRequested(Ending::Halt),
            other => panic!("unknown directive {other:?}"),
        };
        self.feed(event);
    }
}

fn line(action: &Action) -> String {
    let signal = |signal: &Signal| match signal {
        Signal::Term => "SIGTERM",
        Signal::Kill => "SIGKILL",
    };
    match action {
        Action::Mount(mount) => format!("mount {mount}"),
        Action::MakeDirectory(directory) => format!("mkdir {directory}"),
        Action::Link { path, target } => format!("symlink {path} -> {target}"),
        Action::Prepare => "prepare".to_owned(),
        Action::Spawn(service) => {
            let kept: Vec<_> = service.capabilities.iter().map(|capability| capability.name()).collect();
            let kept = if kept.is_empty() { "none".to_owned() } else { kept.join("+") };
            format!("spawn pilotlight {} (uid {}, capabilities {kept})", service.args().join(" "), service.uid)
        }
        Action::Signal { pid, signal: number } => format!("kill {pid} {}", signal(number)),
        Action::KillAll(number) => format!("kill -1 {}", signal(number)),
        Action::Sync => "sync".to_owned(),
        Action::Unmount(target) => format!("umount {target}"),
        Action::Reboot(ending) => format!("reboot {ending:?}"),
        Action::Report(Report::Restarting { service, pause, degraded, .. }) => {
            format!(
                "report {service} restarts in {:.3} s{}",
                pause.as_secs_f64(),
                if *degraded { ", degraded" } else { "" }
            )
        }
        Action::Report(Report::Running { service, pid }) => format!("report {service} runs as {pid}"),
        Action::Report(Report::Stray { pid, exit }) => format!("report stray {pid} ended by {exit}"),
        Action::Report(Report::Ending(ending)) => format!("report {ending:?}"),
        Action::Report(Report::Stopped { service, exit }) => format!("report {service} stopped by {exit}"),
        Action::Report(Report::Stuck { service, pid }) => format!("report {service} is stuck as {pid}"),
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
fn a_service_that_dies_comes_back_alone_and_ever_more_slowly() {
    plays_as_written("restart.txt");
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
