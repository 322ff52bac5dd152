//! What a process that logs leaves on stderr.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::time::Duration;

use pilotlight::telemetry::{Output, Style, init};

use crate::peers;

const CHILD: &str = "PILOTLIGHT_TEST_LOG_CHILD";

/// The other half of the next test. Without its variable it is an empty test.
#[test]
fn child_that_logs() {
    let Some(mode) = std::env::var_os(CHILD) else { return };
    let debug = mode == "debug";
    let style = if debug { Style::Human } else { Style::Json };
    let output = if mode == "journal" { Output::JournalOr(style) } else { Output::Stderr(style) };
    init(output, debug, "pilotlight").unwrap();
    assert!(init(Output::Stderr(Style::Json), false, "pilotlight").is_err());
    tracing::info!(target: "pilotlight::boot", machine = "m1", "an answer was sent");
    tracing::debug!(target: "pilotlight::boot", "a reason");
    tracing::info!(target: "h2::client", "chatter");
    tracing::warn!(target: "h2::client", "a warning");
}

fn logged(mode: &str) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["telemetry::child_that_logs", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, mode)
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stderr).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn a_collector_gets_one_json_object_per_line() {
    let lines: Vec<serde_json::Value> =
        logged("plain").iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert_eq!(lines[0]["level"], "INFO");
    assert_eq!(lines[0]["message"], "an answer was sent");
    assert_eq!(lines[0]["machine"], "m1");
    assert_eq!(lines[0]["target"], "pilotlight::boot");
    assert!(lines[0]["timestamp"].as_str().unwrap().ends_with('Z'));
    assert_eq!(lines[1]["message"], "a warning");
}

#[test]
fn with_debug_a_person_reads_reasons_and_no_colours_in_a_file() {
    let text = logged("debug").join("\n");
    assert!(text.contains("DEBUG") && text.contains("a reason") && text.contains("machine=\"m1\""), "{text}");
    assert!(text.contains("chatter") && !text.contains('\u{1b}'), "{text}");
}

/// Shows the journal's directory to the child alone, in a mount namespace of its own.
const WITH_JOURNAL: &str = r#"
set -e
mount -t tmpfs none /run
mkdir -p /run/systemd/journal
mount --bind "$1" /run/systemd/journal
shift
exec "$@"
"#;

#[test]
fn a_service_logs_to_the_journal_that_listens() {
    if !nix::unistd::geteuid().is_root() {
        crate::peers::say("skipped: only root makes a mount namespace");
        return;
    }
    if !peers::require("unshare", "util-linux") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let journal = UnixDatagram::bind(dir.path().join("socket")).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", WITH_JOURNAL, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .args(["telemetry::child_that_logs", "--exact", "--nocapture", "--test-threads=1"])
        .env(CHILD, "journal")
        .stdout(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "nothing is told twice");
    let mut buffer = [0; 8192];
    let mut entries = Vec::new();
    // The first datagram is an empty one, by which the client finds out whether someone listens.
    while entries.len() < 3 {
        let size = journal.recv(&mut buffer).unwrap();
        entries.push(String::from_utf8_lossy(&buffer[..size]).into_owned());
    }
    assert_eq!(entries[0], "");
    for part in
        ["an answer was sent", "PRIORITY\n\u{1}\0\0\0\0\0\0\x006\n", "SYSLOG_IDENTIFIER\n", "pilotlight\n", "MACHINE\n"]
    {
        assert!(entries[1].contains(part), "{part:?} in {:?}", entries[1]);
    }
    assert!(entries[2].contains("a warning"), "{:?}", entries[2]);
}
