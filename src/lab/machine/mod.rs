//! A simulated machine: NIC, disk, chassis and firmware, speaking real protocols from a loopback address of its own.
//!
//! An edge: it owns sockets and one task a machine. What the ROM accepts (`dhcp`) and what a script means (`script`)
//! are rules. The rack has no lease server: a machine's address is given, and only boot information is asked for.

mod dhcp;
mod disk;
mod firmware;
mod http;
mod journal;
mod script;
#[cfg(test)]
mod script_tests;
#[cfg(test)]
mod tests;
mod tftp;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::machine::{Arch, MachineId, PowerState};
use firmware::NetworkBoot;

pub use disk::Disk;
pub use http::{FetchError, Fetched};
pub use journal::{Counts, Event};
pub use tftp::TftpError;

/// Which firmware boots from the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// Legacy BIOS: option 93 is 0, boot program over TFTP.
    Bios,
    /// UEFI PXE: option 93 is 7 (amd64) or 11 (arm64); asks for a file's size before it fetches it.
    Uefi,
    /// UEFI HTTP Boot: option 93 is 16 (amd64) or 19 (arm64), HEAD then GET.
    UefiHttp,
}

/// Which device the firmware tries first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BootOrder {
    /// Disk, then network.
    #[default]
    DiskFirst,
    /// Network, then disk.
    NetworkFirst,
}

/// A one-time boot override, as IPMI and Redfish set it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootOnce {
    /// The network first.
    Pxe,
    /// The disk first.
    Disk,
}

/// How long things take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From power to the first boot device.
    pub post: Duration,
    /// From a power-off to the moment the chassis reports it.
    pub off: Duration,
    /// Off time within a power cycle.
    pub cycle: Duration,
    /// Wait after the first DISCOVER; it doubles with each of the three others.
    pub dhcp_wait: Duration,
    /// Wait for one TFTP packet before the last one is sent again.
    pub tftp_wait: Duration,
    /// The longest that a script's `sleep` takes.
    pub script_sleep: Duration,
    /// Wait before the devices are tried again; doubles up to `retry_most`.
    pub retry: Duration,
    /// The longest wait before the devices are tried again.
    pub retry_most: Duration,
}

impl Default for Timing {
    /// Firmware's own timeouts, but a POST of a third of a second.
    fn default() -> Self {
        Self {
            post: Duration::from_millis(300),
            off: Duration::from_millis(50),
            cycle: Duration::from_millis(100),
            dhcp_wait: Duration::from_secs(1),
            tftp_wait: Duration::from_secs(1),
            script_sleep: Duration::from_millis(200),
            retry: Duration::from_secs(1),
            retry_most: Duration::from_secs(30),
        }
    }
}

/// What a machine is made of.
#[derive(Clone, Debug)]
pub struct Spec {
    /// SMBIOS UUID.
    pub id: MachineId,
    /// The NIC's address.
    pub mac: [u8; 6],
    /// Its own loopback address, 127.x.y.z: every packet it sends comes from there.
    pub address: Ipv4Addr,
    /// Processor architecture.
    pub arch: Arch,
    /// Firmware.
    pub firmware: Firmware,
    /// Boot order.
    pub order: BootOrder,
    /// How long things take.
    pub timing: Timing,
}

impl Spec {
    /// A machine for amd64 with UEFI, disk first, default timing.
    pub fn new(id: MachineId, mac: [u8; 6], address: Ipv4Addr) -> Self {
        Self {
            id,
            mac,
            address,
            arch: Arch::Amd64,
            firmware: Firmware::Uefi,
            order: BootOrder::default(),
            timing: Timing::default(),
        }
    }

    /// DHCP option 93 (RFC 4578 and IANA's list). A BIOS is x86 whatever `arch` says.
    fn arch_option(&self) -> u16 {
        match (self.firmware, self.arch) {
            (Firmware::Bios, _) => 0,
            (Firmware::Uefi, Arch::Amd64) => 7,
            (Firmware::Uefi, Arch::Arm64) => 11,
            (Firmware::UefiHttp, Arch::Amd64) => 16,
            (Firmware::UefiHttp, Arch::Arm64) => 19,
        }
    }

    /// iPXE's `${buildarch}`.
    fn buildarch(&self) -> &'static str {
        match (self.firmware, self.arch) {
            (Firmware::Bios, _) => "i386",
            (_, Arch::Amd64) => "x86_64",
            (_, Arch::Arm64) => "arm64",
        }
    }
}

/// Where the provider's boot services listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// proxyDHCP: port 67 on a real site.
    pub dhcp: SocketAddr,
    /// Boot server: port 4011 on a real site.
    pub binl: SocketAddr,
    /// TFTP: port 69 on a real site.
    pub tftp: SocketAddr,
}

/// What was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Talos in agent mode, from the network.
    Agent,
    /// Talos from the network.
    TalosNet,
    /// Talos from the disk.
    TalosDisk,
}

/// A machine whose firmware has handed over.
#[derive(Clone, Debug)]
pub struct Booted {
    /// What was started.
    pub kind: Kind,
    /// Kernel arguments in order, `name=value` split at the first `=`, flags with an empty value. Empty from disk.
    pub cmdline: Vec<(String, String)>,
    /// The machine: its disk, its address.
    pub machine: Arc<Machine>,
}

/// How an operating system's run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The machine resets: POST and boot order again.
    Reboot,
    /// The machine turns itself off.
    PowerOff,
    /// The machine stands still until its power is cut.
    Hang,
}

/// What runs on a machine once its firmware is done.
#[async_trait]
pub trait OperatingSystem: Send + Sync + 'static {
    /// Runs until the system ends.
    ///
    /// When power is cut, `cancel` fires and this future is dropped at once; tasks spawned by it follow `cancel`.
    async fn run(&self, boot: Booted, cancel: CancellationToken) -> Next;
}

/// The chassis' switch: what was asked for, and which request it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Switch {
    on: bool,
    /// Counts requests, so that off and on again in one moment is seen as a cut.
    request: u64,
}

/// A machine in the rack. Made off; lives until [`Machine::unplug`].
pub struct Machine {
    spec: Spec,
    network: Network,
    disk: Disk,
    switch: watch::Sender<Switch>,
    power: watch::Sender<PowerState>,
    boot_once: Mutex<Option<BootOnce>>,
    journal: journal::Journal,
    unplugged: CancellationToken,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("id", &self.spec.id).field("power", &self.power()).finish_non_exhaustive()
    }
}

impl Machine {
    /// Plugs a machine in: off, disk blank. Spawns its one task on the current runtime; [`Self::unplug`] ends it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn start(spec: Spec, network: Network, os: Arc<dyn OperatingSystem>) -> Arc<Self> {
        let machine = Arc::new(Self {
            spec,
            network,
            disk: Disk::blank(),
            switch: watch::Sender::new(Switch { on: false, request: 0 }),
            power: watch::Sender::new(PowerState::Off),
            boot_once: Mutex::new(None),
            journal: journal::Journal::default(),
            unplugged: CancellationToken::new(),
        });
        tokio::spawn(Arc::clone(&machine).live(os));
        machine
    }

    /// Its UUID.
    pub fn id(&self) -> &MachineId {
        &self.spec.id
    }

    /// What it is made of.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its disk.
    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// The power that the chassis reports; a power-off shows after [`Timing::off`].
    pub fn power(&self) -> PowerState {
        *self.power.borrow()
    }

    /// Turns it on. Returns whether that changed anything.
    pub fn power_on(&self) -> bool {
        let changed = self.request(|on| (!on).then_some(true));
        if changed {
            self.journal.count(|counts| counts.power_ons += 1);
            self.note("power on".into());
        }
        changed
    }

    /// Cuts its power: everything on it stops at once. Returns whether that changed anything.
    pub fn power_off(&self) -> bool {
        let changed = self.request(|on| on.then_some(false));
        if changed {
            self.journal.count(|counts| counts.power_offs += 1);
            self.note("power off".into());
        }
        changed
    }

    /// Cuts its power and turns it on again. Nothing happens, and `false` returns, when it is off (IPMI 2.0 table 28-4).
    pub fn power_cycle(&self) -> bool {
        let changed = self.request(|on| on.then_some(true));
        if changed {
            self.journal.count(|counts| counts.power_cycles += 1);
            self.note("power cycle".into());
        }
        changed
    }

    /// Sets or clears the override for the next boot alone.
    pub fn set_boot_once(&self, device: Option<BootOnce>) {
        *self.boot_once.lock().expect("nothing panics while it holds the override") = device;
        self.note(match device {
            Some(BootOnce::Pxe) => "next boot: network".into(),
            Some(BootOnce::Disk) => "next boot: disk".into(),
            None => "next boot: as ordered".into(),
        });
    }

    /// The override for the next boot, if any.
    pub fn boot_once(&self) -> Option<BootOnce> {
        *self.boot_once.lock().expect("nothing panics while it holds the override")
    }

    /// How often what happened.
    pub fn counts(&self) -> Counts {
        Counts { wipes: self.disk.wipes(), installs: self.disk.installs(), ..self.journal.counts() }
    }

    /// What happened, oldest first; the last 256 lines.
    pub fn events(&self) -> Vec<Event> {
        self.journal.events()
    }

    /// Adds a line to the event log: operating systems note what they do.
    pub fn note(&self, what: String) {
        tracing::debug!(machine = %self.spec.id, what, "simulated machine");
        self.journal.note(what);
    }

    /// Waits until `holds`; it is asked after every event and every change of power.
    ///
    /// A change of the disk alone is no event: whoever makes it notes it.
    pub async fn until(&self, mut holds: impl FnMut(&Self) -> bool) {
        let mut changes = self.journal.changes();
        loop {
            changes.mark_unchanged();
            if holds(self) {
                return;
            }
            // The sender lives in `self`, so waiting cannot fail.
            let _ = changes.changed().await;
        }
    }

    /// Gets a whole body of at most `limit` octets over HTTP, from the machine's own address.
    ///
    /// # Errors
    ///
    /// [`FetchError`] for anything else.
    pub async fn get(&self, url: &str, limit: usize) -> Result<Fetched, FetchError> {
        http::get(self.spec.address, url, http::Keep::UpTo(limit)).await
    }

    /// Pulls the plug: everything on it stops, and its task ends.
    pub fn unplug(&self) {
        self.unplugged.cancel();
    }

    fn request(&self, change: impl FnOnce(bool) -> Option<bool>) -> bool {
        self.switch.send_if_modified(|switch| match change(switch.on) {
            Some(on) => {
                *switch = Switch { on, request: switch.request + 1 };
                true
            }
            None => false,
        })
    }

    fn report(&self, power: PowerState) {
        self.power.send_replace(power);
        self.journal.touch();
    }

    /// The machine's task: one turn a power cycle.
    async fn live(self: Arc<Self>, os: Arc<dyn OperatingSystem>) {
        let unplugged = self.unplugged.clone();
        let mut switch = self.switch.subscribe();
        // Dropping the future is the power cut; nothing in it outlives a cut.
        let _ = unplugged
            .run_until_cancelled(async {
                loop {
                    // The sender lives in `self`, so waiting cannot fail.
                    let Ok(now) = switch.wait_for(|switch| switch.on).await.map(|now| *now) else { return };
                    self.report(PowerState::On);
                    let power = CancellationToken::new();
                    let _guard = power.clone().drop_guard();
                    tokio::select! {
                        // Reads a watch only: cancel-safe.
                        _ = switch.wait_for(|switch| switch.request != now.request) => {}
                        // Dropped when power is cut, which is what a power cut is.
                        () = Arc::clone(&self).powered(&*os, &power) => {
                            // The system turned the machine off: unless a request came first, that is the switch now.
                            self.switch.send_if_modified(|switch| {
                                let mine = *switch == now;
                                switch.on &= !mine;
                                mine
                            });
                        }
                    }
                    power.cancel();
                    if switch.borrow().on {
                        sleep(self.spec.timing.cycle).await;
                    } else {
                        sleep(self.spec.timing.off).await;
                    }
                    if !switch.borrow().on {
                        self.report(PowerState::Off);
                    }
                }
            })
            .await;
        self.report(PowerState::Off);
    }

    /// From power to power-off by the system itself.
    async fn powered(self: Arc<Self>, os: &dyn OperatingSystem, power: &CancellationToken) {
        let timing = self.spec.timing;
        let mut retry = timing.retry;
        loop {
            sleep(timing.post).await;
            let (kind, cmdline) = match self.boot().await {
                Boot::System(kind, cmdline) => (kind, cmdline),
                Boot::Nothing => {
                    self.journal.count(|counts| counts.boots_failed += 1);
                    self.note("no device boots".into());
                    sleep(retry).await;
                    retry = (retry * 2).min(timing.retry_most);
                    continue;
                }
                Boot::Next(Next::Reboot) => {
                    // A script's own reboot loop is slowed as well.
                    sleep(retry).await;
                    retry = (retry * 2).min(timing.retry_most);
                    continue;
                }
                Boot::Next(Next::PowerOff) => return,
                Boot::Next(Next::Hang) => std::future::pending().await,
            };
            retry = timing.retry;
            self.journal.count(|counts| match kind {
                Kind::Agent => counts.boots_agent += 1,
                Kind::TalosNet => counts.boots_talos_net += 1,
                Kind::TalosDisk => counts.boots_talos_disk += 1,
            });
            self.note(match kind {
                Kind::Agent => "agent mode starts".into(),
                Kind::TalosNet => "Talos starts from the network".into(),
                Kind::TalosDisk => "Talos starts from disk".into(),
            });
            let cancel = power.child_token();
            let _guard = cancel.clone().drop_guard();
            match os.run(Booted { kind, cmdline, machine: Arc::clone(&self) }, cancel).await {
                Next::Reboot => self.note("system reboots".into()),
                Next::PowerOff => {
                    self.note("system powers off".into());
                    return;
                }
                Next::Hang => std::future::pending().await,
            }
        }
    }

    /// One pass over the boot devices.
    async fn boot(&self) -> Boot {
        let once = self.boot_once.lock().expect("nothing panics while it holds the override").take();
        let network_first = match once {
            Some(BootOnce::Pxe) => true,
            Some(BootOnce::Disk) => false,
            None => self.spec.order == BootOrder::NetworkFirst,
        };
        for network in [network_first, !network_first] {
            if network {
                match firmware::boot(self).await {
                    NetworkBoot::Kernel(cmdline) => {
                        let cmdline = arguments(&cmdline);
                        let agent = cmdline.iter().any(|(name, _)| name == "metal.provider.address");
                        return Boot::System(if agent { Kind::Agent } else { Kind::TalosNet }, cmdline);
                    }
                    NetworkBoot::Disk => return Boot::System(Kind::TalosDisk, Vec::new()),
                    NetworkBoot::Next => {}
                    NetworkBoot::Reboot => {
                        self.note("iPXE reboots".into());
                        return Boot::Next(Next::Reboot);
                    }
                    NetworkBoot::PowerOff => {
                        self.note("iPXE powers off".into());
                        return Boot::Next(Next::PowerOff);
                    }
                    NetworkBoot::Hang => {
                        self.note("iPXE shell waits for a person".into());
                        return Boot::Next(Next::Hang);
                    }
                }
            } else if self.disk.holds_talos() {
                return Boot::System(Kind::TalosDisk, Vec::new());
            }
        }
        Boot::Nothing
    }
}

/// What a pass over the boot devices came to.
enum Boot {
    System(Kind, Vec<(String, String)>),
    Next(Next),
    Nothing,
}

/// A command line as name and value.
fn arguments(cmdline: &str) -> Vec<(String, String)> {
    let split = |word: &str| match word.split_once('=') {
        Some((name, value)) => (name.to_owned(), value.to_owned()),
        None => (word.to_owned(), String::new()),
    };
    cmdline.split_whitespace().map(split).collect()
}
