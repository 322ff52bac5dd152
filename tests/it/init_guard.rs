//! The real `init` guards its services: those that hang, those that lie, and those that try what they may not.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};

use crate::init::{NAMES, Program, Running, Setup, position, service, wait_until};
use crate::peers;

fn start(besides: &str, arguments: &[&str]) -> Option<Running> {
    let script = service(besides);
    let setup = Setup { program: Program::Script(&script), flags: "", arguments, own_network: true, environment: &[] };
    Running::start(&setup, |_| {})
}

#[test]
fn a_service_that_is_stopped_in_its_tracks_is_killed_and_started_again() {
    let Some(mut running) = start("", &["pilotlight.service-watchdog=3"]) else { return };
    running.wait_for_log("tftp: is ready after ");
    let first = running.pid("tftp");
    kill(first, Signal::SIGSTOP).unwrap();
    // A stopped process takes no SIGABRT; SIGKILL ends it all the same.
    running.wait_for_log("hangs and is killed");
    running.wait_for_log("tftp: ended by signal 9; starts again in ");
    wait_until("tftp is back", || {
        running.log().iter().filter(|line| line.contains("tftp: is ready after ")).count() == 2
    });
    let log = running.log();
    assert_eq!(log.iter().filter(|line| line.contains("hangs")).count(), 1, "the others are left alone: {log:#?}");
    running.end(Signal::SIGTERM);
}

#[test]
fn a_machine_that_stood_still_has_nobody_killed() {
    let Some(mut running) = start("", &["pilotlight.service-watchdog=3"]) else { return };
    running.wait_until_all_are_ready();
    let (init, services) = (running.init(), NAMES.map(|name| running.pid(name)));
    let all = |signal| services.into_iter().for_each(|pid| kill(pid, signal).unwrap());
    kill(init, Signal::SIGSTOP).unwrap();
    all(Signal::SIGSTOP);
    // Longer than any of them may be silent; then PID 1 is the first to run again.
    std::thread::sleep(Duration::from_secs(6));
    kill(init, Signal::SIGCONT).unwrap();
    running.wait_for_log("the machine stood still for ");
    all(Signal::SIGCONT);
    // Who stands still alone hangs, as before.
    kill(running.pid("tftp"), Signal::SIGSTOP).unwrap();
    running.wait_for_log("tftp: ended by signal 9; starts again in ");
    let log = running.log();
    assert_eq!(log.iter().filter(|line| line.contains("hangs")).count(), 1, "{log:#?}");
    running.end(Signal::SIGTERM);
}

#[test]
fn those_that_depend_on_a_service_start_when_it_is_ready() {
    let Some(mut running) =
        start(r#"if ($name eq "store") { select(undef, undef, undef, 0.02) until -e "$record/go"; }"#, &[])
    else {
        return;
    };
    running.wait_for_log("tftp: is ready after ");
    assert!(!running.log().iter().any(|line| line.contains("images: runs as ")), "{:#?}", running.log());
    running.write("go");
    running.wait_for_log("provider: is ready after ");
    let log = running.log();
    assert!(position(&log, "store: is ready") < position(&log, "images: runs as "), "{log:#?}");
    assert!(position(&log, "images: is ready") < position(&log, "provider: runs as "), "{log:#?}");
    running.end(Signal::SIGTERM);
}

/// A child speaks for its parent, and a service for another.
const LIARS: &str = r#"
if ($name eq "dhcp") {
    if (!fork()) { notify("READY=1"); note("lied"); exit; }
    say_to(SOCK_DGRAM, "/run/pilotlight/notify/tftp.sock", "WATCHDOG=trigger") and die;
    note("refused: $!");
    while (1) { select(undef, undef, undef, 1000) }
}
"#;

#[test]
fn nobody_speaks_for_another() {
    let Some(mut running) = start(LIARS, &[]) else { return };
    wait_until("the lies were told", || running.written("log").iter().any(|line| line == "lied"));
    running.wait_for_log("web: is ready after ");
    let log = running.written("log");
    assert!(log.contains(&"refused: Permission denied".to_owned()), "{log:#?}");
    let log = running.log();
    assert!(!log.iter().any(|line| line.contains("dhcp: is ready") || line.contains("hangs")), "{log:#?}");
    running.end(Signal::SIGTERM);
}

/// What an intruder would try. Each of these succeeds for an ordinary user of an ordinary kernel.
#[cfg(target_arch = "x86_64")]
const ATTEMPTS: &str = r#"
sub attempt { my ($what, $result) = @_; note("$what: " . ($result >= 0 ? "done" : $! + 0)); }
if ($name eq "tftp") {
    attempt("ptrace", syscall(101, 0, 0, 0, 0));
    attempt("personality", syscall(135, 0x0040000));
    attempt("user namespace", syscall(272, 0x10000000));
    attempt("another architecture's socket family", socket(my $alg, 38, 5, 0) ? 0 : -1);
    attempt("clone3", syscall(435, 0, 0));
    attempt("a call of the future", syscall(460, 0, 0, 0));
    attempt("a socket", socket(my $inet, AF_INET, SOCK_DGRAM, 0) ? 0 : -1);
    note("tried");
}
"#;

#[cfg(target_arch = "x86_64")]
#[test]
fn what_is_forbidden_is_refused_and_the_same_goes_without_init() {
    let Some(mut running) = start(ATTEMPTS, &[]) else { return };
    let tried = |running: &Running| running.written("log").iter().any(|line| line == "tried");
    wait_until("all was tried", || tried(&running));
    let log = running.written("log");
    let said = |what: &str| {
        let prefix = format!("{what}: ");
        log.iter().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_else(|| panic!("{what}: {log:#?}"))
    };
    use nix::libc::{EAFNOSUPPORT, ENOSYS, EPERM};
    for (what, errno) in [
        ("ptrace", EPERM),
        ("personality", EPERM),
        ("user namespace", EPERM),
        ("another architecture's socket family", EAFNOSUPPORT),
        ("clone3", ENOSYS),
        ("a call of the future", ENOSYS),
    ] {
        assert_eq!(said(what), errno.to_string(), "{what}");
    }
    assert_eq!(said("a socket"), "done");
    running.end(Signal::SIGTERM);

    // The control: the same user may trace and change its personality when nothing filters.
    if !peers::require("setpriv", "util-linux") {
        return;
    }
    let script = "print syscall(101, 0, 0, 0, 0), ' ', syscall(135, 0x0040000), \"\\n\"";
    let output = Command::new("setpriv")
        .args(["--reuid", "906", "--regid", "906", "--clear-groups", "--no-new-privs", "perl", "-e", script])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "0 0\n");
}
