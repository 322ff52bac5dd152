//! What the box costs: its slot, its memory, what it writes to its disk.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Value, json};

use super::rack::image;
use crate::peers;

/// Most octets of a slot's content.
const SLOT: u64 = 40_000_000;
/// Most octets of memory that all programs of an idle box hold.
const MEMORY: u64 = 64_000_000;
/// Most octets that an idle box writes to its disk in a day.
pub const A_DAY: u64 = 1_000_000;
/// Seconds of a day.
const DAY: u64 = 86_400;

/// Prints the size of what a slot holds, and holds it to its budget.
pub fn slot() {
    let octets = std::fs::metadata(image().with_file_name("slot.squashfs")).unwrap().len();
    peers::say(&format!("appliance: slot: {} MB of {}", megabytes(octets), megabytes(SLOT)));
    assert!(octets <= SLOT, "the slot is too large");
}

/// Prints the memory that all programs hold by the box's own word, and holds it to its budget.
///
/// # Panics
///
/// When they hold more, or the box does not say.
pub fn memory(who: &str, status: &Value) {
    let figure = |value: &Value| value.as_u64();
    let memory = &status["appliance"]["memory"];
    let figures = ["anonymous", "mapped", "total", "available"].map(|name| figure(&memory[name]));
    let [Some(anonymous), Some(mapped), Some(total), Some(available)] = figures else {
        panic!("no memory in {status}");
    };
    let services = status["appliance"]["services"].as_array().map(Vec::as_slice).unwrap_or_default();
    let own = services.iter().filter_map(|of| Some((of["name"].as_str()?, figure(&of["anonymous"])?)));
    let own: Vec<_> = own.map(|(name, octets)| format!("{name} {}", megabytes(octets))).collect();
    peers::say(&format!(
        "appliance: {who}: programs hold {} MB of {}: their own {}, files mapped {}; free {} of {}; own by service: {}",
        megabytes(anonymous + mapped),
        megabytes(MEMORY),
        megabytes(anonymous),
        megabytes(mapped),
        megabytes(available),
        megabytes(total),
        own.join(", "),
    ));
    assert!(anonymous + mapped <= MEMORY, "programs hold more than {MEMORY} octets of memory");
}

/// Prints what was written within so many seconds, scaled to a day, and returns that.
pub fn writes(who: &str, octets: u64, seconds: u64) -> u64 {
    let a_day = octets.saturating_mul(DAY) / seconds.max(1);
    peers::say(&format!(
        "appliance: {who}: {octets} octets written in {seconds} s: {} MB a day of {}",
        megabytes(a_day),
        megabytes(A_DAY)
    ));
    a_day
}

/// With one digit behind the point.
fn megabytes(octets: u64) -> String {
    format!("{}.{}", octets / 1_000_000, octets / 100_000 % 10)
}

/// Octets that the machine has written to its own disk, by QEMU's count; `socket` is its monitor's (QMP).
///
/// # Errors
///
/// The socket's, and an answer without the figure.
pub fn written(socket: &Path) -> anyhow::Result<u64> {
    let mut socket = BufReader::new(UnixStream::connect(socket)?);
    let mut ask = |command: &str| -> anyhow::Result<Value> {
        writeln!(socket.get_mut(), "{}", json!({ "execute": command }))?;
        // Events and the greeting come in between.
        loop {
            let mut line = String::new();
            anyhow::ensure!(socket.read_line(&mut line)? > 0, "the monitor has closed");
            let answer: Value = serde_json::from_str(&line)?;
            if !answer["return"].is_null() {
                return Ok(answer);
            }
            anyhow::ensure!(answer["error"].is_null(), "{answer}");
        }
    };
    ask("qmp_capabilities")?;
    let answer = ask("query-blockstats")?;
    let devices = answer["return"].as_array().context("a list of devices")?;
    let own = devices.iter().find(|device| device["device"] == "own").context("the own disk")?;
    own["stats"]["wr_bytes"].as_u64().context("a figure")
}
