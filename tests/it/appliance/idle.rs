//! A box with nothing to do.

use std::time::Duration;

use super::meter;
use super::rack::{Bus, Firmware, Machine, Rack, Setup};
use super::soak;

/// Seconds after which a start is over: what is done once in a run is done, and what was grave about it is in the journal.
pub const SETTLED: u64 = 420;
/// Seconds that are measured.
pub const MEASURED: u64 = 300;
/// Longer than that takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(1800);

#[test]
fn a_box_that_waits_to_be_set_up_spares_its_disk() {
    if !soak() {
        return;
    }
    let Some(rack) = Rack::new() else { return };
    let setup = Setup { firmware: Firmware::Bios, bus: Bus::Virtio, memory: 256 };
    let mut machine = rack.power_on(&setup).within(LIMIT);
    machine.page();
    let uptime = |machine: &Machine| machine.status()["appliance"]["uptime"].as_u64().unwrap_or(0);
    machine.reaches_with("the end of its start", |machine| uptime(machine) >= SETTLED);
    let (from, before) = (uptime(&machine), meter::disk(&rack.monitor()).unwrap());
    machine.reaches_with("some minutes more", |machine| uptime(machine) >= from + MEASURED);
    let (to, after) = (uptime(&machine), meter::disk(&rack.monitor()).unwrap());
    meter::memory("not set up", &machine.status());
    let rested = meter::rest("not set up", &before, &after, to - from);
    rested.unwrap_or_else(|error| panic!("{error}:\n{}", machine.log()));
}
