//! A machine's only disk: a small buffer whose first octets say what is on it.

use std::sync::Mutex;

/// Octets of a simulated disk.
const SIZE: usize = 64 * 1024;
/// What an installed Talos leaves in the first octets.
const TALOS: &[u8] = b"TALOS";

/// A disk of 64 KiB. Blank when made.
#[derive(Debug)]
pub struct Disk {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    octets: Vec<u8>,
    wipes: u64,
    installs: u64,
}

impl Disk {
    pub(super) fn blank() -> Self {
        Self { inner: Mutex::new(Inner { octets: vec![0; SIZE], wipes: 0, installs: 0 }) }
    }

    /// Whether it holds a Talos that the firmware can start.
    pub fn holds_talos(&self) -> bool {
        self.with(|inner| inner.octets.starts_with(TALOS))
    }

    /// Whether every octet is zero.
    pub fn is_blank(&self) -> bool {
        self.with(|inner| inner.octets.iter().all(|octet| *octet == 0))
    }

    /// Zeroes every octet, as the agent's wipe does.
    pub fn wipe(&self) {
        self.with(|inner| {
            inner.octets.fill(0);
            inner.wipes += 1;
        });
    }

    /// Writes Talos, and `note` (a version, say) behind it as far as it fits.
    pub fn install(&self, note: &str) {
        self.with(|inner| {
            inner.octets.fill(0);
            inner.octets[..TALOS.len()].copy_from_slice(TALOS);
            let length = note.len().min(SIZE - TALOS.len());
            inner.octets[TALOS.len()..TALOS.len() + length].copy_from_slice(&note.as_bytes()[..length]);
            inner.installs += 1;
        });
    }

    /// How often it was wiped since the machine was made.
    pub fn wipes(&self) -> u64 {
        self.with(|inner| inner.wipes)
    }

    /// How often Talos was written to it since the machine was made.
    pub fn installs(&self) -> u64 {
        self.with(|inner| inner.installs)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock().expect("nothing panics while it holds the disk"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wipe_leaves_no_talos_and_no_octet() {
        let disk = Disk::blank();
        assert!(disk.is_blank() && !disk.holds_talos());
        disk.install("v1.11.0");
        assert!(disk.holds_talos() && !disk.is_blank());
        disk.wipe();
        assert!(disk.is_blank());
        assert_eq!((disk.wipes(), disk.installs()), (1, 1));
    }
}
