//! The operating system of a QEMU guest: the lab's Talos and agent on a real kernel, a real disk and a real BMC device.
//!
//! An edge: it runs as the only program of a small initramfs, reads `/proc` and `/sys`, overwrites block devices and
//! reboots the machine it runs on. `PILOTLIGHT_GUEST=1` must be in its environment, so that nobody starts it by mistake.

mod bmc;
mod disk;

use std::ffi::OsString;
use std::io::Write as _;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context as _;
use nix::sys::reboot::{RebootMode, reboot};
use tokio_util::sync::CancellationToken;

use crate::lab::agent::BmcLan;
use crate::lab::machine::Next;
use crate::lab::os::{self, Boot, Installation, Patience, Platform, PlatformError};
use crate::machine::MachineId;
use crate::secret::Secret;
use crate::time::Uptime;
use disk::Disk;

/// The environment variable that the initramfs sets before it starts us.
pub const CONSENT: &str = "PILOTLIGHT_GUEST";

/// Runs what the kernel's command line asks for, until the machine reboots or turns itself off.
///
/// `consent` is the value of [`CONSENT`].
///
/// # Errors
///
/// There is no consent, no UUID or no command line; and a reboot that the kernel refuses.
pub async fn run(consent: Option<OsString>) -> anyhow::Result<()> {
    anyhow::ensure!(consent.is_some_and(|value| value == "1"), "overwrites disks: only for the lab's QEMU guests");
    let uuid = std::fs::read_to_string("/sys/class/dmi/id/product_uuid").context("reading the SMBIOS UUID")?;
    let id: MachineId = uuid.trim().parse().with_context(|| format!("SMBIOS UUID {:?}", uuid.trim()))?;
    let cmdline = std::fs::read_to_string("/proc/cmdline").context("reading the kernel's command line")?;
    let boot = Boot::from_network(arguments(&cmdline));
    let guest = Guest { id, disk: Disk::first() };
    guest.note(format!("{:?} starts as {}, disk {:?}", boot.kind, guest.id, guest.disk.as_ref().map(Disk::path)));
    let next = os::run(boot, Arc::new(guest), Patience::default(), CancellationToken::new()).await;
    print(&format!("ends: {next:?}"));
    nix::unistd::sync();
    match next {
        Next::Reboot => drop(reboot(RebootMode::RB_AUTOBOOT).context("rebooting")?),
        Next::PowerOff => drop(reboot(RebootMode::RB_POWER_OFF).context("powering off")?),
        Next::Hang => std::future::pending().await,
    }
    Ok(())
}

/// A command line as name and value, flags with an empty value.
fn arguments(cmdline: &str) -> Vec<(String, String)> {
    let split = |word: &str| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (word.to_owned(), String::new()),
    };
    cmdline.split_whitespace().map(split).collect()
}

/// A line on the console, which is the machine's serial port.
fn print(line: &str) {
    let uptime = Uptime::now().as_duration().as_secs_f32();
    // Nobody can be told when the console is gone.
    let _ = writeln!(std::io::stdout(), "guest[{uptime:.1}]: {line}");
}

/// The machine around us.
struct Guest {
    id: MachineId,
    disk: Option<Disk>,
}

impl Guest {
    /// Runs `work` on the disk, away from the runtime's threads.
    async fn on_disk<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Disk) -> Result<T, PlatformError> + Send + 'static,
    ) -> Result<T, PlatformError> {
        let disk = self.disk.clone().ok_or(PlatformError::NoDisk)?;
        let path = disk.path().to_owned();
        let stopped = |_| PlatformError::Disk { path, source: std::io::ErrorKind::Interrupted.into() };
        tokio::task::spawn_blocking(move || work(&disk)).await.map_err(stopped)?
    }
}

#[async_trait::async_trait]
impl Platform for Guest {
    fn id(&self) -> &MachineId {
        &self.id
    }

    fn local_bind(&self) -> Option<IpAddr> {
        None
    }

    fn note(&self, what: String) {
        print(&what);
    }

    async fn wipe(&self, zeroes: bool) -> Result<(), PlatformError> {
        self.on_disk(move |disk| disk.wipe(zeroes)).await
    }

    async fn install(&self, installation: &Installation) -> Result<(), PlatformError> {
        let installation = installation.clone();
        self.on_disk(move |disk| disk.install(&installation)).await
    }

    async fn installed(&self) -> Option<Installation> {
        self.on_disk(|disk| disk.installed()).await.ok()?
    }

    async fn bmc(&self) -> Option<BmcLan> {
        match bmc::lan().await {
            Ok(lan) => Some(lan),
            Err(error) => {
                self.note(format!("no BMC: {error}"));
                None
            }
        }
    }

    async fn set_bmc_user(&self, name: &str, password: &Secret<String>) -> Result<(), PlatformError> {
        bmc::set_user(name, password).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::machine::Kind;

    #[test]
    fn the_command_line_tells_agent_mode_from_talos() {
        let boot = Boot::from_network(arguments("initrd=x quiet metal.provider.address=10.0.0.1:50042 a=b=c\n"));
        assert_eq!(boot.kind, Kind::Agent);
        assert_eq!(boot.cmdline[1], ("quiet".to_owned(), String::new()));
        assert_eq!(boot.cmdline[3], ("a".to_owned(), "b=c".to_owned()));
        assert_eq!(Boot::from_network(arguments("talos.config=http://x")).kind, Kind::TalosNet);
    }

    #[tokio::test]
    async fn nothing_is_touched_without_consent() {
        assert!(run(None).await.is_err());
        assert!(run(Some("yes".into())).await.is_err());
    }
}
