//! The real `init` as PID 1 of a real kernel in QEMU: what a container can't show. Memory limits, the kernel's settings, the
//! hardware watchdog, the record of a run on a disk, and a stick with a configuration.
//!
//! One disk, three boots: a service eats all its memory, and the run ends in order; PID 1 is frozen, and the watchdog ends the
//! run; the third tells of it. Around `init` a shell script plays those who would load modules and mount the disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use pilotlight::supervise::services::SERVICES;
use pilotlight::supervise::sysctl::SYSCTLS;
use pilotlight::time::Uptime;

use crate::e2e::initramfs::{self, Root};
use crate::init::lines;
use crate::peers;

const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4", "i6300esb", "vfat", "nls_cp437", "nls_ascii"];
/// One boot takes some ten seconds where nothing else runs.
const LIMIT: Duration = Duration::from_secs(180);

/// What stands in front of init, and what watches it. The kernel hands `act=` to the environment.
const FIRST: &str = r"
exec </dev/console >/dev/console 2>&1
mkdir -p /data
mount -t ext4 /dev/vda /data
sh /watcher &
exec /bin/init
";

const WATCHER: &str = r#"
until [ -e /run/pilotlight/tftp/back ]; do sleep 0.2; done
if [ "$act" = stick ]; then
    echo "fact told $(tr '\0' ' ' </proc/$(cat /run/pilotlight/tftp/back)/cmdline)"
    kill -TERM 1
fi
for setting in $(cat /settings); do echo "fact $setting=$(cat /proc/sys/$setting 2>/dev/null || echo absent)"; done
for group in /sys/fs/cgroup/services/*/; do
    echo "fact $(basename $group) $(cat $group/memory.max) $(cat $group/pids.max) $(grep '^oom_kill ' $group/memory.events)"
done
echo "fact hostname $(hostname)"
echo "fact loopback $(cat /sys/class/net/lo/flags)"
if [ "$act" = freeze ]; then
    mkdir /sys/fs/cgroup/frozen
    echo 1 >/sys/fs/cgroup/frozen/cgroup.procs
    # Longer than the watchdog's time: it is fed while the loop turns.
    sleep 15
    echo "fact frozen"
    echo 1 >/sys/fs/cgroup/frozen/cgroup.freeze
    sleep 100
fi
kill -TERM 1
"#;

/// In the services' place. One of them asks for more than it may have, once.
const SERVICE: &str = r#"#!/bin/sh
trap 'exit 0' TERM
if [ "$2" = tftp ]; then
    if [ ! -e /run/pilotlight/tftp/hungry ]; then
        : >/run/pilotlight/tftp/hungry
        dd if=/dev/zero of=/dev/null bs=200M count=1
    fi
    echo $$ >/run/pilotlight/tftp/back
fi
while :; do sleep 1 & wait $!; done
"#;

fn ready() -> bool {
    let tools = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("modprobe", "kmod"),
        ("mkfs.ext4", "e2fsprogs"),
        ("cpio", "cpio"),
        ("xz", "xz-utils"),
    ];
    tools.iter().all(|(tool, package)| peers::require(tool, package)) && initramfs::require_kernel()
}

struct Machine {
    dir: tempfile::TempDir,
    kernel: PathBuf,
}

impl Machine {
    fn build() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let kernel = initramfs::kernel().unwrap();
        let root = Root::new(dir.path().join("root"), &kernel, MODULES).unwrap();
        root.install(Path::new(env!("CARGO_BIN_EXE_init")), "init").unwrap();
        let settings: Vec<_> = SYSCTLS.iter().map(|sysctl| sysctl.path).collect();
        fs::write(root.join("settings"), settings.join("\n")).unwrap();
        fs::write(root.join("watcher"), WATCHER).unwrap();
        root.first(FIRST).unwrap();
        root.script("bin/pilotlight", SERVICE).unwrap();
        root.pack("cat", &dir.path().join("initramfs")).unwrap();
        let disk = dir.path().join("disk");
        fs::File::create(&disk).unwrap().set_len(16 << 20).unwrap();
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").arg("-q").arg(&disk);
        assert!(mkfs.status().unwrap().success());
        Self { dir, kernel }
    }

    /// One run, until the machine would start anew; what the serial port said.
    fn run(&self, name: &str, arguments: &str) -> Vec<String> {
        self.run_with(name, arguments, None)
    }

    /// As [`Self::run`], with a stick.
    fn run_with(&self, name: &str, arguments: &str, stick: Option<&Path>) -> Vec<String> {
        let serial = self.dir.path().join(name);
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "256", "-display", "none", "-nodefaults", "-no-reboot", "-net", "none"])
            .args(["-device", "i6300esb", "-action", "watchdog=reset"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(self.dir.path().join("initramfs"))
            .args(["-append", &format!("console=ttyS0 panic=-1 tsc=unstable printk.devkmsg=on {arguments}")])
            .arg("-drive")
            .arg(format!("file={},if=virtio,format=raw", self.dir.path().join("disk").display()))
            .args(
                stick
                    .iter()
                    .flat_map(|stick| ["-drive".to_owned(), format!("file={},if=virtio,format=raw", stick.display())]),
            )
            .arg("-serial")
            .arg(format!("file:{}", serial.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let end = Uptime::now() + LIMIT;
        while qemu.try_wait().unwrap().is_none() {
            if Uptime::now() > end {
                let _ = qemu.kill();
                let _ = qemu.wait();
                panic!("the machine does not end:\n{}", lines(&serial).join("\n"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let octets = fs::read(&serial).unwrap();
        String::from_utf8_lossy(&octets).lines().map(str::to_owned).collect()
    }
}

fn says(log: &[String], text: &str) -> bool {
    log.iter().any(|line| line.contains(text))
}

#[test]
fn on_a_machine_memory_is_limited_settings_hold_and_the_watchdog_bites() {
    if !ready() {
        return;
    }
    let machine = Machine::build();

    let log = machine.run("first", "pilotlight.slot=a pilotlight.why=committed");
    let all = log.join("\n");
    assert!(says(&log, "the run before left no record"), "{all}");
    assert!(says(&log, "tftp: ended by lack of memory; starts again in "), "{all}");
    let limits = |name| SERVICES.iter().find(|service| service.name == name).unwrap().limits;
    let group = log.iter().find(|line| line.contains("fact tftp ")).unwrap_or_else(|| panic!("{all}"));
    assert!(
        group.contains(&format!("fact tftp {} {} oom_kill ", limits("tftp").memory, limits("tftp").tasks)),
        "{group}"
    );
    assert!(!group.contains("oom_kill 0"), "{group}");
    assert!(says(&log, &format!("fact store {}", limits("store").memory)), "{all}");
    for sysctl in SYSCTLS {
        let fact = |value: &str| says(&log, &format!("fact {}={value}", sysctl.path));
        assert!(fact(sysctl.value) || !sysctl.expected && fact("absent"), "{sysctl}\n{all}");
    }
    assert!(says(&log, "fact hostname pilotlight"), "{all}");
    assert!(says(&log, "fact loopback 0x9"), "{all}");
    assert!(says(&log, "the run ends by reboot: asked by a signal"), "{all}");
    for trouble in ["can't be set", "cannot", "no control socket"] {
        assert!(!says(&log, trouble), "{trouble}\n{all}");
    }

    let log = machine.run("frozen", "pilotlight.watchdog=10 act=freeze");
    let all = log.join("\n");
    assert!(says(&log, "the run before ended after ") && says(&log, "by reboot, asked by a signal; "), "{all}");
    assert!(says(&log, "tftp: signal 9") || says(&log, "tftp: code 0"), "{all}");
    assert!(says(&log, "the hardware watchdog runs, with 10 s"), "{all}");
    // It lived through its watchdog's time, and nobody ended it in order.
    assert!(says(&log, "fact frozen") && !says(&log, "the run ends"), "{all}");

    let log = machine.run("third", "");
    let all = log.join("\n");
    assert!(says(&log, "the run before ended without a word"), "{all}");
}

#[test]
fn on_a_machine_a_stick_sets_the_box_up_and_is_told_what_became_of_it() {
    if !ready() || !peers::require("mkfs.vfat", "dosfstools") || !peers::require("mcopy", "mtools") {
        return;
    }
    let machine = Machine::build();
    let (stick, file) = (machine.dir.path().join("stick"), machine.dir.path().join("pilotlight.toml"));
    fs::File::create(&stick).unwrap().set_len(34 << 20).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output =
            Command::new(program).env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args(arguments).output().unwrap();
        assert!(output.status.success(), "{program} {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let image = stick.to_str().unwrap();
    run("mkfs.vfat", &["-F", "16", "-n", "ANY", image]);
    fs::write(&file, "hostname = \"rack7\"\n[provider]\nid = \"from-the-stick\"\n").unwrap();
    run("mcopy", &["-i", image, file.to_str().unwrap(), "::pilotlight.toml"]);

    let log = machine.run_with("stick.log", "act=stick", Some(&stick));
    let all = log.join("\n");
    assert!(says(&log, "pilotlight.toml was taken in"), "{all}");
    let told = log.iter().find(|line| line.contains("fact told ")).unwrap_or_else(|| panic!("{all}"));
    assert!(told.contains("--hostname=rack7 --id=from-the-stick"), "{told}");
    let report = run("mtype", &["-i", image, "::pilotlight-report.txt"]);
    assert!(report.contains("- provider.id = from-the-stick"), "{report}");

    // It is looked at again at each boot; this time nothing of it counts.
    fs::write(&file, "hostname = 7\n[provider]\nid = \"Not a label\"\n").unwrap();
    run("mcopy", &["-o", "-i", image, file.to_str().unwrap(), "::pilotlight.toml"]);
    let log = machine.run_with("faults.log", "act=stick", Some(&stick));
    assert!(says(&log, "pilotlight.toml has 2 faults and does not count"), "{}", log.join("\n"));
    let report = run("mtype", &["-i", image, "::pilotlight-report.txt"]);
    assert!(report.contains("- hostname: ") && report.contains("- provider.id: "), "{report}");
}
