//! The operating systems on simulated machines.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::{Boot, Installation, Patience, Platform, PlatformError, run};
use crate::lab::agent::BmcLan;
use crate::lab::bmc::SimulatedBmc;
use crate::lab::machine::{Booted, Machine, Next, OperatingSystem};
use crate::machine::MachineId;
use crate::secret::Secret;

/// A simulated machine's way to its own BMC, in-band.
pub trait BmcPort: Send + Sync + 'static {
    /// Its LAN interface and users.
    fn lan(&self) -> BmcLan;

    /// Makes `name` an administrator.
    ///
    /// # Errors
    ///
    /// What the BMC says, such as "no slot available for user".
    fn set_user(&self, name: &str, password: &Secret<String>) -> Result<(), String>;
}

/// What runs on the lab's machines. One for all of them: clones share what the disks hold and the BMCs.
#[derive(Clone, Default)]
pub struct LabOs {
    patience: Option<Patience>,
    bmcs: Arc<Mutex<BTreeMap<MachineId, Arc<dyn BmcPort>>>>,
    /// What Talos wrote to each disk. The disk itself says whether it is still there.
    installations: Arc<Mutex<BTreeMap<MachineId, Installation>>>,
    /// Whose join token Omni refuses.
    refused: Arc<Mutex<BTreeSet<MachineId>>>,
}

impl fmt::Debug for LabOs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LabOs").field("patience", &self.patience).finish_non_exhaustive()
    }
}

impl LabOs {
    /// Operating systems with this patience; the default is [`Patience::short`].
    pub fn new(patience: Patience) -> Self {
        Self { patience: Some(patience), ..Self::default() }
    }

    /// Machines whose join token Omni refused since this was asked last.
    pub fn take_refused(&self) -> BTreeSet<MachineId> {
        std::mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Connects a machine to its BMC. A machine without one reports none, as agents in test mode do.
    pub fn connect_bmc(&self, id: &MachineId, bmc: Arc<dyn BmcPort>) {
        self.bmcs.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), bmc);
    }
}

#[async_trait]
impl OperatingSystem for LabOs {
    async fn run(&self, boot: Booted, cancel: CancellationToken) -> Next {
        let platform = Arc::new(LabPlatform { os: self.clone(), machine: boot.machine });
        let boot = Boot { kind: boot.kind, cmdline: boot.cmdline };
        run(boot, platform, self.patience.unwrap_or(Patience::short()), cancel).await
    }
}

struct LabPlatform {
    os: LabOs,
    machine: Arc<Machine>,
}

impl LabPlatform {
    fn port(&self) -> Option<Arc<dyn BmcPort>> {
        self.os.bmcs.lock().unwrap_or_else(PoisonError::into_inner).get(self.machine.id()).cloned()
    }
}

#[async_trait]
impl Platform for LabPlatform {
    fn id(&self) -> &MachineId {
        self.machine.id()
    }

    fn local_bind(&self) -> Option<IpAddr> {
        Some(self.machine.spec().address.into())
    }

    fn note(&self, what: String) {
        self.machine.note(what);
    }

    fn refused(&self, refused: bool) {
        let mut all = self.os.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused {
            all.insert(self.machine.id().clone());
        } else {
            all.remove(self.machine.id());
        }
    }

    async fn wipe(&self, _zeroes: bool) -> Result<(), PlatformError> {
        // A wipe that is cut short, by a power cut or a tunnel that broke, has not happened.
        tokio::time::sleep(self.os.patience.unwrap_or(Patience::short()).wipe).await;
        self.machine.disk().wipe();
        Ok(())
    }

    async fn install(&self, installation: &Installation) -> Result<(), PlatformError> {
        // A reset leaves Talos itself on the disk.
        if installation.configured {
            self.machine.disk().install(&installation.join.endpoint);
        }
        let mut installations = self.os.installations.lock().unwrap_or_else(PoisonError::into_inner);
        installations.insert(self.machine.id().clone(), installation.clone());
        Ok(())
    }

    async fn installed(&self) -> Option<Installation> {
        if !self.machine.disk().holds_talos() {
            return None;
        }
        self.os.installations.lock().unwrap_or_else(PoisonError::into_inner).get(self.machine.id()).cloned()
    }

    async fn bmc(&self) -> Option<BmcLan> {
        Some(self.port()?.lan())
    }

    async fn set_bmc_user(&self, name: &str, password: &Secret<String>) -> Result<(), PlatformError> {
        let port = self.port().ok_or(PlatformError::NoBmc)?;
        port.set_user(name, password).map_err(|reason| PlatformError::Bmc { command: "set user", reason })
    }
}

impl BmcPort for SimulatedBmc {
    fn lan(&self) -> BmcLan {
        let address = match self.address() {
            SocketAddr::V4(address) => *address.ip(),
            // The LAN parameter holds IPv4 alone; a BMC without one has none configured.
            SocketAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        let mut users = self.users();
        // Slot 1, which has no name on most BMCs.
        users.insert(0, String::new());
        BmcLan { address, port: self.address().port(), users }
    }

    fn set_user(&self, name: &str, password: &Secret<String>) -> Result<(), String> {
        Self::set_user(self, name, password).map_err(|refused| refused.to_string())
    }
}
