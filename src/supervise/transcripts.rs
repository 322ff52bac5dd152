//! Behaviours as text: each file of `tests/golden/init` holds events (`>`) and what is done about them.
//!
//! The events are read from the file itself, played, and the whole must come out as it is written. With
//! `PILOTLIGHT_BLESS=1` the files are written anew.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::slots::health::Limits;
use crate::slots::{Booted, Commit, Copy, Needs, Records, SECTOR, Slot, Try, Version};
use budget::Record;
use notify::Notice;
use services::SERVICES;
use slots::Wish;

struct Play {
    supervisor: Supervisor,
    now: Uptime,
    next_pid: i32,
    running: Vec<(&'static str, i32)>,
    failing: Vec<String>,
    silent: Vec<String>,
    place: Place,
    previous: Previous,
    booted: Option<Booted>,
    records: Result<Records, String>,
    medium_fails: bool,
    medium_hangs: bool,
    tickets: u64,
    depth: u32,
    later: VecDeque<Event>,
    text: String,
}

/// How often a service that is well says so; the table's watchdogs allow more than twice that.
const BEAT: Duration = Duration::from_secs(10);

impl Play {
    fn feed(&mut self, event: Event) {
        self.depth += 1;
        for action in self.supervisor.on(self.now, event) {
            self.text.push_str(&format!("  {}\n", line(&action)));
            match action {
                Action::Orient => {
                    let (booted, trial) = (self.booted.clone(), Limits::default());
                    self.feed(Event::Oriented { place: self.place, watchdog: None, booted, trial });
                }
                Action::ReadSlots => self.feed(Event::SlotsRead(self.records.clone().map(Box::new))),
                Action::WriteSlots { commit, tries } => {
                    let records = self.records.as_mut().unwrap();
                    if !self.medium_fails {
                        if let Some(commit) = commit {
                            records.commits = [0, 1].map(|_| Copy::Valid((*commit).clone()));
                        }
                        if let Some(tries) = tries {
                            records.tries = [0, 1].map(|_| Copy::Valid(tries.clone()));
                        }
                    }
                    let outcome = if self.medium_fails { Err("the medium is at its end".to_owned()) } else { Ok(()) };
                    let records = Some(Box::new(records.clone()));
                    if self.medium_hangs {
                        continue;
                    }
                    // A thread does it, which the supervisor hears of later.
                    self.later.push_back(Event::SlotsWritten { outcome, records });
                }
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
        self.depth -= 1;
        while self.depth == 0
            && let Some(event) = self.later.pop_front()
        {
            self.feed(event);
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
            // What GRUB said.
            ["booted", words @ ..] => {
                let line: Vec<_> = words.iter().map(|word| format!("pilotlight.{word}")).collect();
                self.booted = Some(Booted::parse(&line.join(" ")).expect("GRUB's words"));
                return;
            }
            // The commit record in place of that of a new disk, by its fields; the boot was counted once.
            ["record", fields @ ..] => {
                let version = |text: &str| Version::parse(text).unwrap();
                let mut commit = Commit::first(Some(version("1.0.0")));
                for field in fields {
                    match *field {
                        "next=b" => {
                            (commit.pending, commit.mark, commit.peer_good) = (true, Some(1), false);
                            commit.versions[1] = Some(version("1.1.0"));
                        }
                        "omni=yes" => commit.needs = Needs::Omni,
                        "want=recovery" => commit.want_recovery = true,
                        other => panic!("unknown field {other:?}"),
                    }
                }
                let tries = Try { boots: 1, ..Try::first("0123456789abcdef".to_owned()) };
                self.records = Ok(Records {
                    commits: [0, 1].map(|_| Copy::Valid(commit.clone())),
                    tries: [0, 1].map(|_| Copy::Valid(tries.clone())),
                });
                return;
            }
            ["medium-hangs"] => {
                self.medium_hangs = true;
                return;
            }
            ["medium-fails"] => {
                self.medium_fails = true;
                return;
            }
            ["reaches", name, what] => self.notice(name, Notice { reaches: Some(*what == "yes"), ..Notice::default() }),
            ["wish", what @ ..] => {
                let wish = match what {
                    ["recovery"] => Wish::Recovery(true),
                    ["normal"] => Wish::Recovery(false),
                    ["reset"] => Wish::Reset,
                    ["withdraw", slot] => Wish::Withdraw(Slot::parse(slot).unwrap()),
                    ["try", slot, version, asked @ ..] => Wish::Try {
                        slot: Slot::parse(slot).unwrap(),
                        version: Version::parse(version).unwrap(),
                        asked: *asked == ["asked"],
                    },
                    ["choose", slot] => Wish::Choose(Slot::parse(slot).unwrap()),
                    other => panic!("unknown wish {other:?}"),
                };
                self.tickets += 1;
                Event::Wished { ticket: self.tickets, uid: 907, wish }
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
            // Nobody says anything meanwhile.
            ["stood-still", secs] => {
                let time = Duration::from_secs(secs.parse().unwrap());
                self.now = self.now + time;
                Event::StoodStill(time)
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
        Action::ReadSlots => "read the slot records".to_owned(),
        Action::WriteSlots { commit, tries } => {
            let text = |sector: [u8; SECTOR]| {
                let text = String::from_utf8(sector.to_vec()).unwrap();
                let lines: Vec<_> = text.lines().skip(1).filter(|line| !line.starts_with('#')).collect();
                lines.join(" ")
            };
            let commit = commit.as_ref().map(|commit| format!("commit record {}", text(commit.encode())));
            let tries = tries.as_ref().map(|tries| format!("try record {}", text(tries.encode())));
            let all: Vec<_> = commit.into_iter().chain(tries).collect();
            format!("write {}", all.join(", "))
        }
        Action::OpenSlot(slot) => format!("chown slot-{} to update", slot.letter()),
        Action::CloseSlot(slot) => format!("chown slot-{} to root", slot.letter()),
        Action::Answer { ticket, reply } => format!("answer {ticket}: {reply:?}"),
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
        Report::StoodStill(time) => format!("the machine stood still for {:.3} s", time.as_secs_f64()),
        Report::Hung { service, pid } => format!("{service} hangs as {pid}"),
        Report::StaysUp { service, refusal } => format!("no reboot for {service}: {refusal}"),
        Report::Stray { pid, exit } => format!("stray {pid} ended by {exit}"),
        Report::Recovery(why) => format!("this is recovery: {why}"),
        Report::Acknowledged => "this boot lasts".to_owned(),
        Report::Committed(slot) => format!("slot {} is committed", slot.letter()),
        Report::GivesUp { slot, missing } => format!("slot {} is given up: {missing}", slot.letter()),
        Report::SlotFault(fault) => format!("slot records: {fault}"),
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
        booted: None,
        records: Err("no state partition".to_owned()),
        medium_fails: false,
        medium_hangs: false,
        tickets: 0,
        depth: 0,
        later: VecDeque::new(),
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
fn only_who_is_woken_late_stood_still() {
    let at = |secs| Uptime::from_secs(secs);
    assert_eq!(stood_still(at(10), at(13), at(11)), None, "something came");
    assert_eq!(stood_still(at(10), at(13), at(13)), None, "in time");
    assert_eq!(stood_still(at(10), at(13), at(14)), Some(Duration::from_secs(4)), "all of the wait counts");
    assert_eq!(stood_still(at(10), at(5), at(10)), None, "overdue before");
}

#[test]
fn nobody_is_killed_for_what_the_machine_stood_still() {
    plays_as_written("stood_still.txt");
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

#[test]
fn a_system_on_trial_is_committed_once_all_was_well_for_a_minute() {
    plays_as_written("trial_commit.txt");
}

#[test]
fn a_system_on_trial_that_does_not_reach_omni_is_given_up() {
    plays_as_written("trial_omni.txt");
}

#[test]
fn a_trial_waits_for_no_service_that_cannot_be_brought_back() {
    plays_as_written("trial_doomed.txt");
}

#[test]
fn a_medium_that_keeps_nothing_ends_a_trial_all_the_same() {
    plays_as_written("trial_medium.txt");
}

#[test]
fn a_medium_that_hangs_holds_up_the_end_of_a_trial_for_a_minute() {
    plays_as_written("trial_hangs.txt");
}

#[test]
fn what_stands_in_for_a_slot_that_does_not_load_is_committed_and_never_given_up() {
    plays_as_written("stand_in.txt");
}

#[test]
fn a_boot_that_lasts_is_acknowledged_once() {
    plays_as_written("acknowledged.txt");
}

#[test]
fn recovery_runs_what_a_person_needs_and_never_reboots_by_itself() {
    plays_as_written("recovery.txt");
}

#[test]
fn a_spent_budget_leads_into_recovery_once() {
    plays_as_written("rescue.txt");
}

#[test]
fn recovery_that_did_not_come_is_not_asked_for_again() {
    plays_as_written("rescue_failed.txt");
}

#[test]
fn wishes_are_answered_when_they_are_on_the_medium() {
    plays_as_written("wishes.txt");
}

#[test]
fn a_factory_reset_is_recorded_before_the_box_reboots_for_it() {
    plays_as_written("reset.txt");
}
