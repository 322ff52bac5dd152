//! Updates handed in on the page of the running box, as a person would: one that proves itself, and one that does not boot.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use pilotlight::slots::Slot;
use pilotlight::update::{Manifest, service, sign};
use tempfile::TempDir;

use super::rack::{Machine, Rack};
use super::trial::{SETUP, rack, slot, standing, version};
use crate::peers;

const A: u32 = 4;
/// Longer than two updates and four boots take on a loaded machine.
const LIMIT: Duration = Duration::from_secs(1200);

/// A browser's part: signs in, keeps the cookie, hands files in.
struct Person {
    directory: TempDir,
    key: SigningKey,
}

impl Person {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), key: SigningKey::from_bytes(&[7; 32]) }
    }

    /// The flag of a box that trusts this person's updates.
    fn trusted(&self) -> String {
        format!("--update-key={}\n", hex::encode(self.key.verifying_key().as_bytes()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn curl(&self, machine: &Machine, arguments: &[&str], path: &str) -> String {
        let (jar, code) = (self.path("jar"), ["-s", "-w", "%{http_code}", "-o", "/dev/null"]);
        let url = format!("http://127.0.0.1:{}{path}", machine.port());
        let output =
            Command::new("curl").args(code).arg("-b").arg(&jar).arg("-c").arg(&jar).args(arguments).arg(url).output();
        String::from_utf8_lossy(&output.unwrap().stdout).into_owned()
    }

    /// Hands in a bundle of a slot's content, and has the box restart with it.
    fn update(&self, machine: &mut Machine, code: &str, to: &str, content: &[u8]) {
        let manifest = Manifest::of(&service::compatible(), version(to), None, content, 1 << 20);
        let bundle = self.path("bundle");
        fs::write(&bundle, [sign(&manifest, &self.key), content.to_vec()].concat()).unwrap();
        // The services that the page asks may still be starting.
        machine.reaches_with("a session", |machine| {
            self.curl(machine, &["--data-urlencode", &format!("code={code}")], "/setup/enter") == "303"
        });
        let answered = self.curl(machine, &["-T", bundle.to_str().unwrap()], "/update/file?restart=on");
        assert!(answered.starts_with(['2', '3']), "{answered}: {}", machine.log());
    }
}

/// The code on the box's screen.
fn code(machine: &mut Machine) -> String {
    machine.says("(until first use)");
    let log = machine.log();
    let line = log.lines().find(|line| line.contains("Setup code:") && line.contains("until first use")).unwrap();
    line.split("Setup code:").nth(1).unwrap().split_whitespace().next().unwrap().to_owned()
}

fn commits(rack: &Rack, machine: &mut Machine, what: &str, done: impl Fn(&pilotlight::slots::Commit) -> bool) {
    machine.reaches(what, || done(&standing(rack)));
}

#[test]
fn an_update_on_the_page_is_tried_and_kept_and_one_that_does_not_boot_gives_way() {
    let Some(rack) = rack() else { return };
    if !peers::require("curl", "curl") || !peers::require("cpio", "cpio") {
        return;
    }
    let person = Person::new();
    rack.write(rack.partition(A), &slot("", &person.trusted()));
    let mut machine = rack.power_on(&SETUP).within(LIMIT);
    machine.page();
    let code = code(&mut machine);
    commits(&rack, &mut machine, "a boot that lasts", |commit| !commit.pending);

    person.update(&mut machine, &code, "9.9.8", &slot("pilotlight.trial=300,3", &person.trusted()));
    machine.says("pilotlight: slot b, pending, try 1");
    commits(&rack, &mut machine, "slot B committed", |commit| (commit.slot, commit.pending) == (Slot::B, false));
    let commit = standing(&rack);
    assert_eq!(commit.versions, [Some(version("0.1.0")), Some(version("9.9.8"))]);
    machine.expect_no_log("DEGRADED");

    // A kernel that finds no init panics, and starts anew.
    person.update(&mut machine, &code, "9.9.9", &slot("rdinit=/none", &person.trusted()));
    for attempt in 1..=3 {
        machine.says(&format!("pilotlight: slot a, pending, try {attempt}"));
    }
    machine.says("pilotlight: slot b, fallback");
    commits(&rack, &mut machine, "the update given up", |commit| !commit.pending);
    machine.says("the update in slot a failed and is given up");
    let commit = standing(&rack);
    assert_eq!((commit.slot, commit.peer_good), (Slot::B, false));
    assert!(commit.failed.contains(&version("9.9.9")), "{commit:?}");
    machine.page();
}
