//! Real peers written in Go: the modules below `tests/interop`, built once per run, and their running programs.

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

/// The program of `tests/interop/<module>`; `None`, with a line that says so, without Go or a way to get its modules.
pub fn program(module: &'static str) -> Option<PathBuf> {
    static BUILT: Mutex<Option<HashMap<&str, Option<PathBuf>>>> = Mutex::new(None);
    // Held while building, so that it happens once.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built.get_or_insert_default().entry(module).or_insert_with(|| build(module)).clone()
}

fn build(module: &str) -> Option<PathBuf> {
    if !peers::require("go", "golang-go") {
        return None;
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("interop-{module}"));
    let built = std::process::Command::new("go")
        .args(["build", "-mod=readonly", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(module))
        .output()
        .unwrap();
    if built.status.success() {
        return Some(program);
    }
    let errors = String::from_utf8_lossy(&built.stderr);
    // An offline machine cannot fetch modules; every other failure to build is a fault of the program.
    let offline = errors.contains("dial tcp") || errors.contains("module lookup disabled");
    let required = std::env::var_os("PILOTLIGHT_REQUIRE_PEERS").is_some_and(|value| value == "1");
    assert!(offline && !required, "go build: {errors}");
    crate::peers::say(&format!(
        "skipped: the Go modules cannot be fetched (go mod download in tests/interop/{module})"
    ));
    None
}

/// A running program that answers lines with lines; killed when dropped.
pub struct Go {
    _child: Child,
    input: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Go {
    pub fn start(program: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { input: child.stdin.take().unwrap(), _child: child, lines }
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
}
