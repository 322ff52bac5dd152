//! QEMU with a disk that the image was written to.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::ensure;
use pilotlight::time::Uptime;
use tempfile::TempDir;

use crate::peers;

const OVMF_CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARS: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// Longer than any boot takes on a loaded machine without hardware virtualization.
const LIMIT: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug)]
pub enum Firmware {
    Bios,
    Uefi,
}

#[derive(Clone, Copy, Debug)]
pub enum Bus {
    Virtio,
    Usb,
    Ahci,
    Nvme,
}

/// A machine.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub firmware: Firmware,
    pub bus: Bus,
    /// MiB.
    pub memory: u32,
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, {:?}, {} MiB", self.firmware, self.bus, self.memory)
    }
}

/// A disk with the image, kept between runs of its machine.
pub struct Rack {
    directory: TempDir,
}

/// A machine that runs; its power is cut when it is dropped.
pub struct Machine {
    qemu: Child,
    serial: PathBuf,
    port: u16,
    began: Uptime,
    limit: Duration,
}

impl Rack {
    /// `None` where there is no image or a tool is missing.
    pub fn new() -> Option<Self> {
        if !peers::require("qemu-system-x86_64", "qemu-system-x86") || !peers::require("sgdisk", "gdisk") {
            return None;
        }
        let image = image();
        let required = std::env::var_os("PILOTLIGHT_REQUIRE_PEERS").is_some_and(|value| value == "1");
        for (file, whence) in [(image.as_path(), "just image-dev"), (Path::new(OVMF_CODE), "apt-get install ovmf")] {
            assert!(file.is_file() || !required, "{} is required ({whence})", file.display());
            if !file.is_file() {
                peers::say(&format!("skipped: {} is missing ({whence})", file.display()));
                return None;
            }
        }
        let rack = Self { directory: tempfile::tempdir().unwrap() };
        copy(&image, &rack.disk());
        fs::copy(OVMF_VARS, rack.path("vars.fd")).unwrap();
        Some(rack)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn disk(&self) -> PathBuf {
        self.path("disk.raw")
    }

    /// Another disk with the same octets.
    pub fn copy_disk(&self) -> PathBuf {
        copy(&self.disk(), &self.path("copy.raw"));
        self.path("copy.raw")
    }

    pub fn octets(&self) -> u64 {
        fs::metadata(self.disk()).unwrap().len()
    }

    /// Where the data partition begins.
    pub fn data(&self) -> u64 {
        self.partition(8)
    }

    /// Where a partition begins.
    pub fn partition(&self, number: u32) -> u64 {
        let output = Command::new("sgdisk").arg("-i").arg(number.to_string()).arg(self.disk()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("First sector: ")).expect("a partition");
        line.split(' ').next().unwrap().parse::<u64>().unwrap() * 512
    }

    pub fn write(&self, at: u64, octets: &[u8]) {
        File::options().write(true).open(self.disk()).unwrap().write_all_at(octets, at).unwrap();
    }

    pub fn read(&self, at: u64, octets: &mut [u8]) {
        File::open(self.disk()).unwrap().read_exact_at(octets, at).unwrap();
    }

    pub fn overwrite(&self, at: u64, octets: u64, with: u8) {
        let disk = File::options().write(true).open(self.disk()).unwrap();
        disk.write_all_at(&vec![with; octets as usize], at).unwrap();
    }

    /// Has the kernel of slot A say on the serial line what it else keeps for its log.
    pub fn talk(&self) {
        let (quiet, talkative) = (b"loglevel=6", b"loglevel=7");
        let at = self.partition(4);
        let mut slot = vec![0; (self.partition(5) - at) as usize];
        self.read(at, &mut slot);
        // What is in a slot lies there as it is.
        let found: Vec<_> = (0..slot.len() - quiet.len()).filter(|from| slot[*from..].starts_with(quiet)).collect();
        assert_eq!(found.len(), 1, "the arguments are not where they were");
        self.write(at + found[0] as u64, talkative);
    }

    /// Has a tool that is not ours look at both partition tables.
    pub fn verify_partitions(&self) {
        let output = Command::new("sgdisk").arg("-v").arg(self.disk()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("No problems found"), "{text}");
    }

    /// Makes the disk anew, of a GiB, as a person would: the image onto a blank disk by `pilotlight flash`.
    pub fn flash(&self) -> anyhow::Result<()> {
        File::create(self.disk())?.set_len(1 << 30)?;
        let attached = Command::new("losetup").args(["--find", "--show"]).arg(self.disk()).output()?;
        ensure!(attached.status.success(), "losetup: {}", String::from_utf8_lossy(&attached.stderr));
        let node = String::from_utf8(attached.stdout)?.trim().to_owned();
        let mut flash = Command::new(env!("CARGO_BIN_EXE_pilotlight"));
        let flashed = flash.args(["flash", "--yes", &node]).arg(image()).output();
        let detached = Command::new("losetup").args(["--detach", &node]).status()?;
        let flashed = flashed?;
        let told = String::from_utf8_lossy(&flashed.stderr).into_owned();
        ensure!(flashed.status.success() && detached.success() && told.contains("written and verified"), "{told}");
        Ok(())
    }

    pub fn power_on(&self, setup: &Setup) -> Machine {
        self.start(setup, &self.disk().display().to_string(), &[])
    }

    /// With more arguments for QEMU.
    pub fn power_on_with(&self, setup: &Setup, more: &[&str]) -> Machine {
        self.start(setup, &self.disk().display().to_string(), more)
    }

    /// From a disk that an NBD server has at `socket` instead of the rack's own.
    pub fn power_on_from(&self, setup: &Setup, socket: &Path) -> Machine {
        self.start(setup, &format!("nbd+unix:///?socket={}", socket.display()), &[])
    }

    /// A directory for what goes with it.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What its serial line printed since it was powered on.
    pub fn serial(&self) -> PathBuf {
        self.path("serial.log")
    }

    /// The socket of QEMU's monitor (QMP), while the machine runs.
    pub fn monitor(&self) -> PathBuf {
        self.path("monitor")
    }

    /// With a network port on `network`, a QEMU backend called `net`, as the process that `qemu` starts. Nobody else
    /// reaches its page.
    pub fn power_on_in(&self, qemu: Command, setup: &Setup, network: &str, mac: &str) -> Machine {
        let card = format!("e1000e,netdev=net,romfile=,mac={mac}");
        self.run(qemu, setup, &self.disk().display().to_string(), 0, &["-netdev", network, "-device", &card])
    }

    /// With a second disk on the same bus, before or behind the own one; the own one is booted.
    pub fn power_on_beside(&self, setup: &Setup, copy: &Path, comes_first: bool) -> Machine {
        let address = if comes_first { "0x4" } else { "0x1a" };
        let drive = format!("if=none,id=copy,format=raw,file={}", copy.display());
        let device = format!("virtio-blk-pci,drive=copy,addr={address},bootindex=9");
        self.power_on_with(setup, &["-drive", &drive, "-device", &device])
    }

    fn start(&self, setup: &Setup, disk: &str, more: &[&str]) -> Machine {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let network = format!("user,id=net,hostfwd=tcp:127.0.0.1:{port}-:80");
        let card = ["-netdev", &network, "-device", "e1000e,netdev=net,romfile="];
        self.run(Command::new("qemu-system-x86_64"), setup, disk, port, &[&card, more].concat())
    }

    fn run(&self, mut qemu: Command, setup: &Setup, disk: &str, port: u16, more: &[&str]) -> Machine {
        let serial = self.serial();
        let _ = fs::remove_file(&serial);
        qemu.args([
            "-nodefaults",
            "-vga",
            "std",
            "-machine",
            "q35",
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-display",
            "none",
        ]);
        qemu.args(["-m", &setup.memory.to_string(), "-device", "virtio-rng-pci"]);
        qemu.arg("-serial").arg(format!("file:{}", serial.display()));
        let _ = fs::remove_file(self.monitor());
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", self.monitor().display()));
        if let Firmware::Uefi = setup.firmware {
            qemu.arg("-drive").arg(format!("if=pflash,format=raw,unit=0,readonly=on,file={OVMF_CODE}"));
            qemu.arg("-drive").arg(format!("if=pflash,format=raw,unit=1,file={}", self.path("vars.fd").display()));
        }
        qemu.arg("-drive").arg(format!("if=none,id=own,format=raw,file={disk}"));
        let device = match setup.bus {
            Bus::Virtio => &["-device", "virtio-blk-pci,drive=own,addr=0x10,bootindex=1"][..],
            Bus::Usb => &["-device", "qemu-xhci", "-device", "usb-storage,id=stick,drive=own,bootindex=1"],
            Bus::Ahci => &["-device", "ide-hd,drive=own,bus=ide.0,bootindex=1"],
            Bus::Nvme => &["-device", "nvme,drive=own,serial=own,bootindex=1"],
        };
        qemu.args(device).args(more);
        let began = Uptime::now();
        let qemu = qemu.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        Machine { qemu, serial, port, began, limit: LIMIT }
    }
}

impl Machine {
    /// Waits for the web page; how long it took from power-on.
    pub fn page(&mut self) -> Duration {
        while !self.answers().unwrap_or(false) {
            let taken = Uptime::now().since(self.began);
            let ended = self.qemu.try_wait().unwrap();
            assert!(taken < self.limit && ended.is_none(), "no page ({ended:?}):\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
        Uptime::now().since(self.began)
    }

    /// Waits until the page says `text`.
    pub fn page_says(&mut self, text: &str) {
        let (port, text) = (self.port, text.replace('\'', "&#39;"));
        self.reaches(&text, || get(port, "/").is_ok_and(|page| page.contains(&text)));
    }

    /// How often a boot loader has begun to load a kernel.
    pub fn boots(&self) -> usize {
        self.log().matches("pilotlight: slot ").count()
    }

    fn answers(&self) -> io::Result<bool> {
        let answer = get(self.port, "/")?;
        Ok(answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"))
    }

    /// What the page tells programs; null while it does not answer.
    pub fn status(&self) -> serde_json::Value {
        let answer = get(self.port, "/api/status").unwrap_or_default();
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str(body).unwrap_or_default()
    }

    /// The page's port on this machine.
    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.serial).unwrap_or_default()).into_owned()
    }

    /// Waits until it says `text`.
    pub fn says(&mut self, text: &str) {
        let serial = self.serial.clone();
        let log = || String::from_utf8_lossy(&fs::read(&serial).unwrap_or_default()).into_owned();
        self.reaches(text, || log().contains(text));
    }

    /// Waits until `condition` holds.
    pub fn reaches(&mut self, what: &str, condition: impl Fn() -> bool) {
        self.reaches_with(what, |_| condition());
    }

    /// Waits until `condition` holds of it.
    pub fn reaches_with(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            let ended = self.qemu.try_wait().unwrap();
            let late = Uptime::now().since(self.began) >= self.limit;
            assert!(!late && ended.is_none(), "it does not come to {what:?} ({ended:?}):\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has it be waited for that long, from its power-on.
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub fn expect_log(&self, text: &str) {
        assert!(self.log().contains(text), "it does not say {text:?}:\n{}", self.log());
    }

    pub fn expect_no_log(&self, text: &str) {
        assert!(!self.log().contains(text), "it says {text:?}:\n{}", self.log());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The image that `just image-dev` made last.
pub fn image() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/image/pilotlight.img")
}

/// What the page's server answers.
fn get(port: u16, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    // QEMU takes the connection before the box does; it is asked again then, and soon, as the time is measured.
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: box\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(1 << 20).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Keeps holes: most of the image is one.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("--sparse=always").args([from, to]).status().unwrap();
    assert!(copied.success());
}
