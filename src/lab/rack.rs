//! The simulated machines, each wired to its BMC and its operating system.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use anyhow::bail;

use super::agent::BmcLan;
use super::bmc::{Chassis, SimulatedBmc};
use super::machine::{BootOnce, Counts, Firmware, Machine, Network, Spec, Timing};
use super::omni::Omni;
use super::omni::script::{Progress, Step};
use super::os::{BmcPort, LabOs, Patience};
use crate::machine::{MachineId, PowerState};
use crate::secret::Secret;
use crate::time::Uptime;
use crate::wire::ipmi::command::{BootDevice, BootOverride, ChassisControl};

/// Between two machines that are switched on: people have two hands.
const BETWEEN: Duration = Duration::from_millis(20);
/// How long a machine that was removed lies there before somebody switches it on again.
const REST: Duration = Duration::from_secs(20);

/// The rack.
pub struct Rack {
    slots: Vec<Slot>,
    os: LabOs,
}

struct Slot {
    machine: Arc<Machine>,
    bmc: Arc<SimulatedBmc>,
    removed_at: Mutex<Option<Uptime>>,
}

/// A chassis as its BMC sees it.
struct Wires(OnceLock<Weak<Machine>>);

impl Wires {
    fn machine(&self) -> Option<Arc<Machine>> {
        self.0.get().and_then(Weak::upgrade)
    }
}

impl Chassis for Wires {
    fn power(&self) -> PowerState {
        self.machine().map_or(PowerState::Unknown, |machine| machine.power())
    }

    fn control(&self, control: ChassisControl) {
        let Some(machine) = self.machine() else { return };
        let _ = match control {
            ChassisControl::PowerUp => machine.power_on(),
            ChassisControl::PowerCycle | ChassisControl::HardReset => machine.power_cycle(),
            _ => machine.power_off(),
        };
    }

    fn boot_override(&self, flags: BootOverride) {
        let Some(machine) = self.machine() else { return };
        let device = match flags.device {
            BootDevice::Pxe if flags.valid => Some(BootOnce::Pxe),
            BootDevice::Disk if flags.valid => Some(BootOnce::Disk),
            _ => None,
        };
        machine.set_boot_once(device);
    }
}

/// A BMC from inside its machine.
struct InBand(Arc<SimulatedBmc>);

impl BmcPort for InBand {
    fn lan(&self) -> BmcLan {
        let address = self.0.address();
        let ip = match address.ip() {
            std::net::IpAddr::V4(ip) => ip,
            std::net::IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
        };
        BmcLan { address: ip, port: address.port(), users: self.0.users() }
    }

    fn set_user(&self, name: &str, password: &Secret<String>) -> Result<(), String> {
        self.0.set_user(name, password).map_err(|refused| refused.to_string())
    }
}

impl Rack {
    /// `count` machines, off, on 127.77.0.0/16: a third each of BIOS, UEFI and UEFI HTTP boot.
    ///
    /// # Errors
    ///
    /// A BMC finds no port.
    pub async fn build(count: u16, network: Network) -> anyhow::Result<Self> {
        Self::with(count, network, Timing::default(), Patience::short()).await
    }

    /// As [`Self::build`], with other timing of firmware and operating systems.
    ///
    /// # Errors
    ///
    /// As for [`Self::build`].
    pub async fn with(count: u16, network: Network, timing: Timing, patience: Patience) -> anyhow::Result<Self> {
        let os = LabOs::new(patience);
        let mut slots = Vec::with_capacity(count.into());
        for number in 0..count {
            let [high, low] = (number + 1).to_be_bytes();
            let address = Ipv4Addr::new(127, 77, high, low);
            let id: MachineId = format!("4c4c4544-0042-3510-8054-{:012x}", u64::from(number) + 1).parse()?;
            let mut spec = Spec::new(id.clone(), [0x52, 0x54, 0, 0x77, high, low], address);
            spec.firmware = [Firmware::Uefi, Firmware::Bios, Firmware::UefiHttp][usize::from(number % 3)];
            spec.timing = timing;
            let wires = Arc::new(Wires(OnceLock::new()));
            let bmc = Arc::new(SimulatedBmc::start(SocketAddr::from((address, 0)), wires.clone()).await?);
            os.connect_bmc(&id, Arc::new(InBand(Arc::clone(&bmc))));
            let machine = Machine::start(spec, network, Arc::new(os.clone()));
            let _ = wires.0.set(Arc::downgrade(&machine));
            slots.push(Slot { machine, bmc, removed_at: Mutex::new(None) });
        }
        Ok(Self { slots, os })
    }

    /// The machines' UUIDs.
    pub fn ids(&self) -> Vec<String> {
        self.slots.iter().map(|slot| slot.machine.id().to_string()).collect()
    }

    /// The machines, in order.
    pub fn machines(&self) -> impl ExactSizeIterator<Item = &Arc<Machine>> {
        self.slots.iter().map(|slot| &slot.machine)
    }

    /// The machines' BMCs, in order.
    pub fn bmcs(&self) -> impl ExactSizeIterator<Item = &SimulatedBmc> {
        self.slots.iter().map(|slot| &*slot.bmc)
    }

    /// The fault knobs of one machine's BMC; any number picks one.
    pub(super) fn bmc_faults(&self, machine: usize) -> &super::bmc::Faults {
        self.slots[machine % self.slots.len()].bmc.faults()
    }

    /// Presses every power button.
    pub async fn switch_on(&self) {
        for slot in &self.slots {
            slot.machine.power_on();
            tokio::time::sleep(BETWEEN).await;
        }
    }

    /// Presses the power button of machines that were removed a while ago.
    pub fn press_buttons(&self, progress: &[Progress]) {
        let now = Uptime::now();
        for slot in &self.slots {
            let id = slot.machine.id().as_str();
            let done = progress.iter().any(|life| life.uuid == id && life.step == Step::Done);
            let mut removed_at = slot.removed_at.lock().unwrap_or_else(PoisonError::into_inner);
            match (done, *removed_at) {
                (true, None) => *removed_at = Some(now),
                (true, Some(at)) if now.since(at) >= REST => {
                    *removed_at = None;
                    slot.machine.power_on();
                }
                (true, Some(_)) => {}
                (false, _) => *removed_at = None,
            }
        }
    }

    /// Presses reset on machines whose join token Omni refuses, as on a real site somebody must: each boot fetches the
    /// token of the day. A machine that the provider still has to make ready is left to it.
    pub fn reset_refused(&self, omni: &Omni) {
        let refused = self.os.take_refused();
        for slot in self.slots.iter().filter(|slot| refused.contains(slot.machine.id())) {
            let known = omni.controller().machine(slot.machine.id().as_str());
            let is_settled = known.is_none_or(|machine| machine.status.is_some_and(|status| status.ready_to_use));
            if is_settled && slot.machine.power_cycle() {
                slot.machine.note("reset: Omni refuses its join token".into());
            }
        }
    }

    /// Whether every machine was really wiped twice, installed once, and is off.
    ///
    /// # Errors
    ///
    /// Which were not.
    pub fn verify(&self) -> anyhow::Result<()> {
        let mut wrong = Vec::new();
        for slot in &self.slots {
            let (id, counts) = (slot.machine.id(), slot.machine.counts());
            if counts.wipes != 2 {
                wrong.push(format!("{id}: its disk was wiped {} times, not 2", counts.wipes));
            }
            if !slot.machine.disk().is_blank() {
                wrong.push(format!("{id}: its disk is not empty"));
            }
            if slot.machine.power() != PowerState::Off {
                wrong.push(format!("{id}: its power is {}", slot.machine.power()));
            }
        }
        if !wrong.is_empty() {
            bail!("every life was played, but:\n{}", wrong.join("\n"));
        }
        Ok(())
    }

    /// What the machines did, added up.
    pub fn totals(&self) -> Counts {
        self.slots.iter().map(|slot| slot.machine.counts()).fold(Counts::default(), |sum, one| Counts {
            power_ons: sum.power_ons + one.power_ons,
            power_offs: sum.power_offs + one.power_offs,
            power_cycles: sum.power_cycles + one.power_cycles,
            boots_agent: sum.boots_agent + one.boots_agent,
            boots_talos_net: sum.boots_talos_net + one.boots_talos_net,
            boots_talos_disk: sum.boots_talos_disk + one.boots_talos_disk,
            boots_failed: sum.boots_failed + one.boots_failed,
            wipes: sum.wipes + one.wipes,
            installs: sum.installs + one.installs,
        })
    }

    /// IPMI sessions that were opened, on all BMCs.
    pub fn ipmi_sessions(&self) -> u64 {
        self.slots.iter().map(|slot| u64::from(slot.bmc.sessions_opened())).sum()
    }

    /// The last things that a machine's firmware and operating system did.
    pub fn journal(&self, id: &str, most: usize) -> Vec<String> {
        let Some(slot) = self.slots.iter().find(|slot| slot.machine.id().as_str() == id) else { return Vec::new() };
        let events = slot.machine.events();
        events.iter().skip(events.len().saturating_sub(most)).map(|event| event.what.clone()).collect()
    }

    /// Pulls all plugs.
    pub fn unplug(&self) {
        for slot in &self.slots {
            slot.machine.unplug();
        }
    }
}
