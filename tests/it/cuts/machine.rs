//! A machine of QEMU whose disk is ours: Debian's kernel, the real `init` and e2fsprogs, and this very test program.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pilotlight::time::Uptime;

use super::disk::{Mark, Pages, Recording};
use super::guest::{Found, GUEST};
use super::nbd::Server;
use crate::e2e::initramfs::{self, Root};
use crate::peers;

const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4", "vfat", "nls_cp437", "nls_ascii"];
/// For one answer, where nothing else runs some seconds at most.
const LIMIT: Duration = Duration::from_secs(300);

const FIRST: &str = r"
exec </dev/console >/dev/console 2>&1
stty -F /dev/ttyS1 raw -echo
GUEST=1 RUST_BACKTRACE=1 /bin/it --exact cuts::guest::in_the_machine --nocapture --test-threads 1
reboot -f
";

/// What the boot loader says at the start of slot A.
const BOOTED: &str = "pilotlight.slot=a pilotlight.why=committed pilotlight.try=0 \
                      pilotlight.part=b9a2f2c6-6f0c-4d55-9d2e-50494c4f540a";

pub struct Machine {
    qemu: Child,
    pub disk: Server,
    reads: BufReader<UnixStream>,
    writes: UnixStream,
    directory: tempfile::TempDir,
}

pub fn ready() -> bool {
    let tools = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("modprobe", "kmod"),
        ("mke2fs", "e2fsprogs"),
        ("e2fsck", "e2fsprogs"),
        ("cpio", "cpio"),
        ("xz", "xz-utils"),
    ];
    tools.iter().all(|(tool, package)| peers::require(tool, package)) && initramfs::require_kernel()
}

impl Machine {
    /// A machine with a blank disk of `octets`, once its half of the test runs.
    pub fn start(octets: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let kernel = initramfs::kernel().unwrap();
        build(directory.path(), &kernel);
        let disk = Server::start(directory.path(), octets);
        let control = UnixListener::bind(directory.path().join("control")).unwrap();
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "512", "-display", "none", "-nodefaults", "-no-reboot"]);
        qemu.args(["-net", "none", "-device", "virtio-rng-pci"]);
        qemu.arg("-kernel").arg(&kernel).arg("-initrd").arg(directory.path().join("initramfs"));
        let append = format!("console=ttyS0 panic=-1 tsc=unstable printk.devkmsg=on loglevel=4 gpt {BOOTED}");
        qemu.args(["-append", &append, "-device", "virtio-blk-pci,drive=disk"]);
        qemu.arg("-blockdev")
            .arg(format!("driver=nbd,node-name=disk,server.type=unix,server.path={}", disk.socket.display()));
        qemu.arg("-serial").arg(format!("file:{}", directory.path().join("serial").display()));
        qemu.arg("-serial").arg(format!("unix:{}", directory.path().join("control").display()));
        let qemu = qemu.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        // It connects before the machine starts.
        let (stream, _) = control.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        let mut machine =
            Self { qemu, disk, reads: BufReader::new(stream.try_clone().unwrap()), writes: stream, directory };
        assert_eq!(machine.hear(), "ready");
        machine
    }

    fn hear(&mut self) -> String {
        let end = Uptime::now() + LIMIT;
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let ended = self.qemu.try_wait().unwrap();
            // What arrived before a time-out stays in `line`.
            let read = self.reads.read_until(b'\n', &mut line);
            let waits = matches!(&read, Ok(count) if *count > 0) || read.is_err();
            assert!(waits && ended.is_none() && Uptime::now() < end, "no answer ({ended:?}):\n{}", self.log());
        }
        String::from_utf8_lossy(&line).trim().to_owned()
    }

    fn say(&mut self, line: &str) {
        self.writes.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn log(&self) -> String {
        let octets = fs::read(self.directory.path().join("serial")).unwrap_or_default();
        String::from_utf8_lossy(&octets)
            .lines()
            .rev()
            .take(60)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
            .join("\n")
    }

    fn insert(&mut self, pages: &Pages) {
        self.say("fresh");
        assert_eq!(self.hear(), "done");
        self.disk.insert(pages);
    }

    /// Has `what` done to this disk; what was written meanwhile.
    pub fn record(&mut self, what: &str, before: &Pages) -> Recording {
        self.insert(before);
        self.disk.begin_record();
        self.say(&format!("record {what}"));
        loop {
            let line = self.hear();
            let (word, step) = line.split_once(' ').unwrap_or((&line, "0"));
            let step = step.parse().unwrap_or_else(|_| panic!("{line}:\n{}", self.log()));
            match word {
                // What came before is the disk that is cut.
                "begun" if step == 0 => self.disk.begin_record(),
                "begun" => self.disk.mark(Mark::Begun(step)),
                "acknowledged" => self.disk.mark(Mark::Acknowledged(step)),
                "done" => return self.disk.end_record(),
                _ => panic!("{line}:\n{}", self.log()),
            }
            self.say("on");
        }
    }

    /// Boots from this disk as far as it is concerned, and looks for what `what` left. The disk holds what became of it.
    pub fn check(&mut self, what: &str, pages: &Pages) -> Found {
        self.insert(pages);
        self.say(&format!("check {what}"));
        let line = self.hear();
        let found = line.strip_prefix("found ").and_then(|text| serde_json::from_str(text).ok());
        let found = found.unwrap_or_else(|| panic!("{line}:\n{}", self.log()));
        assert_eq!(self.hear(), "done");
        found
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn build(directory: &Path, kernel: &Path) {
    let root = Root::new(directory.join("root"), kernel, MODULES).unwrap();
    for path in ["usr/bin", "data"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    for program in ["mke2fs", "e2fsck"] {
        root.install(&initramfs::find(program).unwrap(), program).unwrap();
        // Where init looks for programs.
        std::os::unix::fs::symlink(format!("/bin/{program}"), root.join("usr/bin").join(program)).unwrap();
    }
    root.install(Path::new(env!("CARGO_BIN_EXE_init")), "init").unwrap();
    root.install(&std::env::current_exe().unwrap(), "it").unwrap();
    // Debug symbols would be unpacked by an emulated processor; without strip they are.
    let _ = Command::new("strip").args([root.join("bin/it"), root.join("bin/init")]).status();
    root.first(&FIRST.replace("GUEST", GUEST)).unwrap();
    root.pack("cat", &directory.join("initramfs")).unwrap();
}
