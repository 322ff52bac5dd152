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
const A_DAY: u64 = 1_000_000;
/// Most flushes that an idle box asks of its disk in a minute.
const A_MINUTE: u64 = 3;
/// Seconds of a day.
const DAY: u64 = 86_400;

/// What a machine has asked of its own disk so far.
pub struct Disk {
    /// Octets.
    written: u64,
    flushes: u64,
}

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

/// Prints what an idle box asked of its disk within so many seconds, and holds it to its budgets.
///
/// # Errors
///
/// It asked for more.
pub fn rest(who: &str, before: &Disk, after: &Disk, seconds: u64) -> anyhow::Result<()> {
    let (written, flushes) = (after.written - before.written, after.flushes - before.flushes);
    let a_day = written.saturating_mul(DAY) / seconds.max(1);
    peers::say(&format!(
        "appliance: {who}: {written} octets written and {flushes} flushes in {seconds} s: {} MB a day of {}",
        megabytes(a_day),
        megabytes(A_DAY)
    ));
    anyhow::ensure!(a_day <= A_DAY, "{a_day} octets a day");
    anyhow::ensure!(flushes <= A_MINUTE * seconds.div_ceil(60), "{flushes} flushes in {seconds} s");
    Ok(())
}

/// With one digit behind the point.
fn megabytes(octets: u64) -> String {
    format!("{}.{}", octets / 1_000_000, octets / 100_000 % 10)
}

/// By QEMU's count; `socket` is its monitor's (QMP).
///
/// # Errors
///
/// The socket's, and an answer without the figures.
pub fn disk(socket: &Path) -> anyhow::Result<Disk> {
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
    let figure = |name: &str| own["stats"][name].as_u64().with_context(|| format!("no {name} in {own}"));
    Ok(Disk { written: figure("wr_bytes")?, flushes: figure("flush_operations")? })
}
