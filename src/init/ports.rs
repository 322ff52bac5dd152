//! Switches network ports on before anyone needs them.
//!
//! A gigabit port and its partner take two seconds and more to agree on a speed. That time passes while the disk is prepared;
//! the network service, which switches off what its configuration does not name, then finds the cable known.

use std::fs;
use std::path::Path;

use super::log::{Level, Log};
use crate::sys::network;

/// Where the kernel shows its network interfaces.
const INTERFACES: &str = "/sys/class/net";
/// Ethernet: `ARPHRD_ETHER` of `linux/if_arp.h`.
const ETHERNET: &str = "1";

/// Switches on every Ethernet port that hardware has.
pub(super) fn switch_on(log: &Log) {
    for entry in fs::read_dir(INTERFACES).into_iter().flatten().flatten() {
        let (path, Ok(name)) = (entry.path(), entry.file_name().into_string()) else { continue };
        if is_port(&path)
            && let Err(error) = network::up(&name)
        {
            log.line(Level::Warning, &format!("{name} can't be switched on: {error}"));
        }
    }
}

/// Whether an interface is made of hardware, and Ethernet.
fn is_port(interface: &Path) -> bool {
    let ethernet = fs::read_to_string(interface.join("type")).is_ok_and(|kind| kind.trim() == ETHERNET);
    ethernet && interface.join("device").exists()
}
