//! The product's command line, as a person meets it.

use std::io::{BufRead as _, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn pilotlight(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
    for name in ["OMNI_ENDPOINT", "OMNI_SERVICE_ACCOUNT_KEY", "SIDERO_SERVICE_ACCOUNT_KEY"] {
        command.env_remove(name);
    }
    command.args(args).output().expect("pilotlight starts")
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

#[test]
fn help_lists_the_go_providers_flags_with_their_defaults() {
    let help = text(&pilotlight(&["provider", "--help"]).stdout);
    for (flag, default) in [
        ("--id ", "[default: bare-metal]"),
        ("--api-port ", "[default: 50042]"),
        ("--boot-from-disk-method ", "[default: ipxe-exit]"),
        ("--min-reboot-interval ", "[default: 15m]"),
        ("--redfish-use-when-available[", "[default: true]"),
        ("--agent-zeroes-wipe-timeout ", "[default: 24h]"),
        ("--omni-api-endpoint ", "[env: OMNI_ENDPOINT=]"),
    ] {
        let at = help.find(flag).unwrap_or_else(|| panic!("{flag} is not in the help"));
        let entry: String = help[at..].chars().take(700).collect();
        assert!(entry.contains(default), "{flag} without {default}: {entry}");
    }
}

#[test]
fn a_wrong_configuration_names_every_fault_and_fails() {
    let output = pilotlight(&["provider", "--secure-boot-enabled", "--id=Not_Good", "--tls-enabled"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    for named in
        ["--id", "--omni-api-endpoint", "OMNI_SERVICE_ACCOUNT_KEY", "--secure-boot-enabled", "--tls-enabled", "hint:"]
    {
        assert!(error.contains(named), "{named} is not named in: {error}");
    }
}

#[test]
fn an_unknown_flag_is_refused_with_exit_code_2() {
    let output = pilotlight(&["provider", "--dhcp-proxy-port=67"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("--dhcp-proxy-port"));
}

#[test]
fn the_lab_plays_a_whole_life_with_every_firmware() {
    let output = pilotlight(&["lab", "--machines", "3", "--once", "--timeout", "100s"]);
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{out}{error}");
    assert!(out.contains("3 installs, 6 wipes"), "{out}");
}

#[test]
fn the_lab_says_which_machine_stuck_where_and_why() {
    let output = pilotlight(&["lab", "--machines", "1", "--once", "--timeout", "0s"]);
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("4c4c4544-0042-3510-8054-000000000001"), "{error}");
    assert!(error.contains("waits for"), "{error}");
}

#[test]
fn a_lab_that_is_told_to_end_takes_its_provider_along() {
    let mut lab = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
    let mut lab = lab.args(["lab", "--machines", "0"]).stdout(Stdio::piped()).spawn().expect("the lab starts");
    let lines = BufReader::new(lab.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let mut said = Vec::new();
    for line in lines {
        said.push(line);
        if said.last().is_some_and(|line| line.contains("omnictl get")) {
            break;
        }
    }
    let word = |name: &str| {
        let line = said.iter().find_map(|line| line.trim().strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {said:?}")).trim().to_owned()
    };
    let (page, state) = (word("page"), word("state"));
    let page = page.trim_start_matches("http://").trim_end_matches('/').to_owned();
    assert!(TcpStream::connect(&page).is_ok(), "the provider's page is at {page}");

    let pid = Pid::from_raw(i32::try_from(lab.id()).expect("a process id"));
    kill(pid, Signal::SIGTERM).expect("the lab runs");
    assert!(lab.wait().expect("it ends").success());
    assert!(TcpStream::connect(&page).is_err(), "the provider is gone");
    assert!(!Path::new(&state).exists(), "{state} is gone");
}
