//! Real peers written in Go: our programs below `tests/interop`, the official ones that its module names as tools, and all
//! of them while they run. Each is built once per run, into the target directory, where an unchanged one is taken as it is.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::peers;

/// Far longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Programs that are built as their authors publish them.
const TOOLS: [(&str, &str); 2] = [
    ("omnictl", "github.com/siderolabs/omni/cmd/omnictl"),
    ("talos-metal-agent", "github.com/siderolabs/talos-metal-agent/cmd/talos-metal-agent"),
];

/// The program `name`, static; `None`, with a line that says so, without Go or a way to get its modules.
pub fn program(name: &'static str) -> Option<PathBuf> {
    static BUILT: Mutex<Option<HashMap<&str, Option<PathBuf>>>> = Mutex::new(None);
    // Held while building, so that it happens once.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built.get_or_insert_default().entry(name).or_insert_with(|| build(name)).clone()
}

fn build(name: &str) -> Option<PathBuf> {
    if !peers::require("go", "golang-go") {
        return None;
    }
    let tool = TOOLS.iter().find(|(tool, _)| *tool == name);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop").join(name);
    let built = std::process::Command::new("go")
        // Without symbols, for the largest takes longer to link than to compile.
        .args(["build", "-mod=readonly", "-ldflags=-s -w", "-o"])
        .arg(&program)
        .arg(tool.map_or_else(|| format!("./{name}"), |(_, package)| (*package).to_owned()))
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop"))
        .env("CGO_ENABLED", "0")
        .output()
        .unwrap();
    if built.status.success() {
        return Some(program);
    }
    let errors = String::from_utf8_lossy(&built.stderr);
    // An offline machine cannot fetch modules; every other failure to build is a fault of the program.
    let offline = errors.contains("dial tcp") || errors.contains("module lookup disabled");
    let required = std::env::var_os("PILOTLIGHT_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(offline && !required, "go build of {name}: {errors}");
    peers::say("skipped: the Go modules cannot be fetched (go mod download in tests/interop)");
    None
}

/// A running program that answers lines with lines; killed when dropped.
pub struct Go {
    child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Go {
    pub fn start(program: &Path, arguments: &[&str]) -> Self {
        Self::start_with(program, arguments, &[])
    }

    /// `variables` are added to the environment, from which every service account key is taken.
    pub fn start_with(program: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .env_remove("SIDERO_SERVICE_ACCOUNT_KEY")
            .env_remove("OMNI_SERVICE_ACCOUNT_KEY")
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { input: child.stdin.take().unwrap(), child, lines }
    }

    pub async fn line(&mut self) -> String {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.expect("the Go program answers");
        line.unwrap().expect("the Go program still runs")
    }

    pub async fn json(&mut self) -> serde_json::Value {
        serde_json::from_str(&self.line().await).unwrap()
    }

    /// Says `line`; returns the answer.
    pub async fn ask(&mut self, line: &str) -> String {
        self.input.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        self.line().await
    }

    /// Ends it at once, as the kernel would.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }
}

/// Builds all, before anything waits for them.
#[test]
fn every_program_is_built() {
    let built = ["cosi", "omni", "omnictl", "talos", "talos-metal-agent", "tunnel"].map(program);
    assert!(built.iter().flatten().all(|program| program.is_file()));
}
