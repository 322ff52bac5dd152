//! A machine of the rack: QEMU, its disk, and an `ipmi_sim` whose chassis control starts and kills QEMU.

use std::fs;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use super::site::Site;

/// Octets of the disk.
const DISK: u64 = 64 << 20;
/// What a wipe clears at each end of a disk.
const MIB: u64 = 1 << 20;
/// What the disk is full of before.
const PATTERN: u8 = 0xa5;
/// Where QEMU meets its BMC, on the rack's loopback.
const IN_BAND_PORT: u16 = 9002;
const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS with the network card's own iPXE.
    SeaBios,
    /// OVMF, whose own PXE client speaks: the card has no ROM.
    Ovmf,
}

/// Files that the machines need and that packages bring.
pub const FILES: &[(&str, &str)] = &[
    (OVMF_CODE, "ovmf"),
    (OVMF_VARS, "ovmf"),
    ("/usr/lib/ipxe/snponly.efi", "ipxe"),
    ("/usr/lib/ipxe/undionly.kpxe", "ipxe"),
    ("/usr/lib/ipxe/qemu/pxe-virtio.rom", "ipxe-qemu"),
    ("/dev/net/tun", "linux-image-amd64"),
];

pub struct Machine {
    pub uuid: &'static str,
    pub mac: &'static str,
    pub bmc: &'static str,
    directory: PathBuf,
}

impl Machine {
    /// Puts a machine, off, into the rack, and starts its BMC.
    pub fn install(site: &mut Site, firmware: Firmware) -> anyhow::Result<Self> {
        let machine = Self {
            uuid: "4c4c4544-0042-3510-8054-b7c04f333132",
            mac: "52:54:00:aa:bb:01",
            bmc: "10.99.0.101",
            directory: site.directory.clone(),
        };
        site.add_tap("tap0")?;
        site.add_address(machine.bmc)?;
        fs::write(machine.disk(), vec![PATTERN; DISK as usize])?;
        fs::copy(OVMF_VARS, machine.directory.join("vars.fd"))?;
        machine.script("chassis", &machine.chassis(firmware))?;
        machine.script("lan", &machine.lan())?;
        fs::write(machine.directory.join("lan.conf"), machine.ipmi_configuration())?;
        fs::write(
            machine.directory.join("bmc.emu"),
            "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02 persist_sdr\n\
             sel_enable 0x20 1000 0x0a\nmc_enable 0x20\n",
        )?;
        let mut ipmi_sim = site.in_rack("ipmi_sim");
        ipmi_sim.args(["-n", "-c", "lan.conf", "-f", "bmc.emu", "-s", "bmc-state"]);
        site.spawn("ipmi_sim", ipmi_sim)?;
        Ok(machine)
    }

    /// Presses the power button.
    pub fn press_power(&self, site: &Site) -> anyhow::Result<()> {
        let pressed = site.in_rack(self.directory.join("chassis")).args(["set", "power", "1"]).status()?;
        ensure!(pressed.success() && self.pid().is_some(), "QEMU does not start");
        Ok(())
    }

    /// QEMU's process, if it runs.
    pub fn pid(&self) -> Option<u32> {
        let pid = fs::read_to_string(self.directory.join("qemu.pid")).ok()?.trim().parse().ok()?;
        let cmdline = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        cmdline.contains(self.uuid).then_some(pid)
    }

    /// Every change of power by the chassis, with QEMU's process: `on 1234`, `off 1234`.
    pub fn power_changes(&self) -> Vec<String> {
        let log = fs::read_to_string(self.directory.join("chassis.log")).unwrap_or_default();
        let changes = log.lines().filter(|line| line.starts_with("on ") || line.starts_with("off "));
        changes.map(str::to_owned).collect()
    }

    /// Whether somebody asked the chassis for a network boot.
    pub fn was_told_to_boot_from_network(&self) -> bool {
        std::fs::read_to_string(self.directory.join("boot")).is_ok_and(|device| device.trim() == "pxe")
    }

    /// What the machine's serial port has printed.
    pub fn serial(&self) -> PathBuf {
        self.directory.join("serial.log")
    }

    /// Whether nothing has written to the disk yet.
    pub fn disk_is_untouched(&self) -> anyhow::Result<bool> {
        self.disk_holds(0, DISK, PATTERN)
    }

    /// Whether the octets are zero that a wipe clears: all `with_zeroes`, else the first and the last MiB.
    pub fn disk_is_wiped(&self, with_zeroes: bool) -> anyhow::Result<bool> {
        if with_zeroes {
            return self.disk_holds(0, DISK, 0);
        }
        Ok(self.disk_holds(0, MIB, 0)? && self.disk_holds(DISK - MIB, DISK, 0)?)
    }

    /// The first line of the disk, as text.
    pub fn disk_mark(&self) -> anyhow::Result<String> {
        let mut octets = [0; 64];
        fs::File::open(self.disk())?.read_exact_at(&mut octets, 0)?;
        Ok(String::from_utf8_lossy(&octets).lines().next().unwrap_or_default().to_owned())
    }

    fn disk_holds(&self, start: u64, end: u64, octet: u8) -> anyhow::Result<bool> {
        let mut octets = vec![0; (end - start) as usize];
        fs::File::open(self.disk())?.read_exact_at(&mut octets, start).context("the disk has shrunk")?;
        Ok(octets.iter().all(|found| *found == octet))
    }

    fn disk(&self) -> PathBuf {
        self.directory.join("disk.raw")
    }

    fn script(&self, name: &str, text: &str) -> anyhow::Result<()> {
        let path = self.directory.join(name);
        fs::write(&path, text)?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    }

    /// What `ipmi_sim` calls with `get power boot` or `set power 1`: it starts QEMU, and kills it.
    fn chassis(&self, firmware: Firmware) -> String {
        let directory = self.directory.display();
        let (uuid, mac) = (self.uuid, self.mac);
        let (rom, flash) = match firmware {
            Firmware::SeaBios => ("", String::new()),
            Firmware::Ovmf => (
                ",romfile=",
                format!(
                    "-drive if=pflash,format=raw,readonly=on,file={OVMF_CODE} -drive if=pflash,format=raw,file={directory}/vars.fd"
                ),
            ),
        };
        format!(
            r#"#!/bin/sh
cd {directory}
alive() {{ pid=$(cat qemu.pid 2>/dev/null) && grep -q {uuid} /proc/$pid/cmdline 2>/dev/null; }}
on() {{
  alive && return
  rm -f qemu.pid
  qemu-system-x86_64 -daemonize -pidfile qemu.pid -uuid {uuid} -accel tcg,thread=multi -cpu max -M q35 -m 512 \
    -display none -monitor none -chardev file,id=serial0,path=serial.log,append=on -serial chardev:serial0 {flash} \
    -drive if=none,id=disk0,format=raw,file=disk.raw -device virtio-blk-pci,drive=disk0,bootindex=1 \
    -netdev tap,id=net0,ifname=tap0,script=no,downscript=no \
    -device virtio-net-pci,netdev=net0,mac={mac},bootindex=0{rom} \
    -chardev socket,id=ipmi0,host=127.0.0.1,port={IN_BAND_PORT},reconnect=1 \
    -device ipmi-bmc-extern,chardev=ipmi0,id=bmc0 -device isa-ipmi-kcs,bmc=bmc0,irq=5 >>qemu.log 2>&1 </dev/null
  echo "on $(cat qemu.pid)" >>chassis.log
}}
off() {{
  alive || return
  kill -KILL $pid
  while alive; do sleep 0.1; done
  echo "off $pid" >>chassis.log
}}
echo "asked: $*" >>chassis.log
operation=$1; shift
while [ $# -gt 0 ]; do
  case "$operation $1" in
    "get power") if alive; then echo power:1; else echo power:0; fi;;
    "get boot") echo boot:$(cat boot 2>/dev/null || echo default);;
    "set power") if [ $2 = 1 ]; then on; else off; fi; shift;;
    "set reset") off; on; shift;;
    "set boot") echo $2 >boot; shift;;
    "set "*) shift;;
  esac
  shift
done
exit 0
"#
        )
    }

    /// What `ipmi_sim` calls for its LAN parameters.
    fn lan(&self) -> String {
        let bmc = self.bmc;
        format!(
            r#"#!/bin/sh
[ "$1" = get ] || exit 0
shift
for parameter in "$@"; do
  case $parameter in
    ip_addr) echo "ip_addr:{bmc}";;
    ip_addr_src) echo "ip_addr_src:static";;
    subnet_mask) echo "subnet_mask:255.255.255.0";;
    *mac*) echo "$parameter:52:54:00:bb:00:01";;
    *) echo "$parameter:0.0.0.0";;
  esac
done
"#
        )
    }

    fn ipmi_configuration(&self) -> String {
        let (directory, bmc) = (self.directory.display(), self.bmc);
        let auths: String = ["callback", "user", "operator", "admin"]
            .map(|privilege| format!("  allowed_auths_{privilege} none md2 md5 straight\n"))
            .concat();
        format!(
            "name \"bmc\"\nset_working_mc 0x20\nstartlan 1\n  addr {bmc} 623\n  priv_limit admin\n{auths}\
             \x20 guid a123456789abcdefa123456789abcdef\n  lan_config_program \"{directory}/lan\"\nendlan\n\
             serial 15 127.0.0.1 {IN_BAND_PORT} codec VM\nchassis_control \"{directory}/chassis\"\n\
             user 1 true \"\" \"\" user 10 none md2 md5 straight\n"
        )
    }
}

/// Asks the BMC for its power with a person's tool, to see that nobody without a password is answered.
pub fn refuses_strangers(site: &Site, machine: &Machine) -> anyhow::Result<bool> {
    let mut command: Command = site.in_rack("ipmitool");
    command.args(["-I", "lanplus", "-C", "3", "-R", "1", "-N", "1", "-H", machine.bmc]);
    command.args(["-U", "talos-agent", "-P", "guess", "-L", "ADMINISTRATOR", "chassis", "power", "status"]);
    Ok(!command.output()?.status.success())
}

/// Whether a file is there, as a path.
pub fn present(path: &str) -> bool {
    Path::new(path).exists()
}
