//! The console on a machine: the real `init` gives it the screen and the serial line of a real kernel in QEMU. zbar reads the
//! code off the screen, the network is set over the serial line, and the keyboard ends the run.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pilotlight::time::Uptime;
use serde_json::{Value, json};

use crate::e2e::initramfs::{self, Root};
use crate::peers;

const MODULES: &[&str] = &["virtio_pci", "virtio_net"];
/// Longer than a boot takes on a loaded machine without hardware virtualization.
const LIMIT: Duration = Duration::from_secs(180);
/// The console's user in the services' table.
const CONSOLE: &str = "909";

const FIRST: &str = r"
sh /watcher </dev/null >/dev/console 2>&1 &
exec /bin/init
";

const WATCHER: &str = r#"
until [ "$(stat -c %u /dev/ttyS0)" != 0 ]; do sleep 0.2; done
echo "fact terminals $(stat -c '%n %u %a' /dev/tty1 /dev/ttyS0 | tr '\n' ' ')"
"#;

/// The console and the network are real; nobody misses the others here.
const SERVICE: &str = r#"#!/bin/sh
case $2 in net | console) exec /bin/real "$@" ;; esac
trap 'exit 0' TERM
while :; do sleep 1 & wait $!; done
"#;

fn ready() -> bool {
    let tools = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("modprobe", "kmod"),
        ("cpio", "cpio"),
        ("xz", "xz-utils"),
        ("strip", "build-essential"),
        ("zbarimg", "zbar-tools"),
    ];
    tools.iter().all(|(tool, package)| peers::require(tool, package)) && initramfs::require_kernel()
}

fn build(dir: &Path) {
    let root = Root::new(dir.join("root"), &initramfs::kernel().unwrap(), MODULES).unwrap();
    for path in ["data", "etc/pilotlight"] {
        fs::create_dir_all(root.join(path)).unwrap();
    }
    fs::write(
        root.join("etc/pilotlight/flags"),
        "--manage-network\n--state-dir=/data/pilotlight\n--run-dir=/run/pilotlight\n",
    )
    .unwrap();
    root.install(Path::new(env!("CARGO_BIN_EXE_init")), "init").unwrap();
    root.install(Path::new(env!("CARGO_BIN_EXE_pilotlight")), "real").unwrap();
    assert!(Command::new("strip").arg(root.join("bin/real")).arg(root.join("bin/init")).status().unwrap().success());
    fs::write(root.join("watcher"), WATCHER).unwrap();
    root.first(FIRST).unwrap();
    root.script("bin/pilotlight", SERVICE).unwrap();
    root.pack("cat", &dir.join("initramfs")).unwrap();
}

/// A machine that runs, with a person at its screen and one at its serial line.
struct Machine {
    qemu: Child,
    directory: PathBuf,
    monitor: BufReader<UnixStream>,
    line: UnixStream,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Machine {
    fn power_on(directory: &Path) -> Self {
        let socket = |name: &str| format!("unix:{},server=on,wait=off", directory.join(name).display());
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-m", "512", "-display", "none", "-nodefaults", "-no-reboot", "-vga", "std"])
            .args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="])
            .args(["-device", "virtio-rng-pci"])
            .arg("-kernel")
            .arg(initramfs::kernel().unwrap())
            .arg("-initrd")
            .arg(directory.join("initramfs"))
            .args(["-append", "console=tty0 console=ttyS0 panic=-1 tsc=unstable printk.devkmsg=on"])
            .args(["-serial", &socket("serial"), "-qmp", &socket("monitor")])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let connect = |name: &str| {
            let end = Uptime::now() + LIMIT;
            loop {
                match UnixStream::connect(directory.join(name)) {
                    Ok(stream) => break stream,
                    Err(error) => assert!(Uptime::now() < end, "{name}: {error}"),
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        };
        let line = connect("serial");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let (mut from, to) = (line.try_clone().unwrap(), Arc::clone(&heard));
        std::thread::spawn(move || {
            let mut octets = [0; 4096];
            while let Ok(length @ 1..) = from.read(&mut octets) {
                to.lock().unwrap().extend(&octets[..length]);
            }
        });
        let monitor = BufReader::new(connect("monitor"));
        let mut machine = Self { qemu, directory: directory.to_owned(), monitor, line, heard };
        machine.order(json!({"execute": "qmp_capabilities"}));
        machine
    }

    fn order(&mut self, command: Value) {
        self.monitor.get_mut().write_all(format!("{command}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        // The greeting and events come in between.
        while !answer.contains("\"return\"") {
            answer.clear();
            assert!(self.monitor.read_line(&mut answer).unwrap() > 0, "the monitor ends after {command}");
            assert!(!answer.contains("\"error\""), "{command}: {answer}");
        }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.heard.lock().unwrap()).into_owned()
    }

    /// Waits until the serial line has said this, and forgets what it said before.
    fn hear(&mut self, text: &str) -> String {
        let end = Uptime::now() + LIMIT;
        while !self.log().contains(text) {
            assert!(Uptime::now() < end, "{text:?} was not said:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        String::from_utf8_lossy(&std::mem::take(&mut *self.heard.lock().unwrap())).into_owned()
    }

    fn type_on_line(&mut self, octets: &[u8]) {
        self.line.write_all(octets).unwrap();
    }

    fn press(&mut self, keys: &[&str]) {
        for key in keys {
            let keys = json!([{"type": "qcode", "data": key}]);
            self.order(json!({"execute": "send-key", "arguments": {"keys": keys}}));
        }
    }

    /// What zbar finds on the screen.
    fn code(&mut self) -> String {
        let picture = self.directory.join("screen.ppm");
        self.order(json!({"execute": "screendump", "arguments": {"filename": picture}}));
        let output = Command::new("zbarimg").args(["--quiet", "--raw"]).arg(&picture).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

#[test]
fn on_a_machine_the_screen_and_the_serial_line_are_the_consoles() {
    if !ready() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    build(dir.path());
    let mut machine = Machine::power_on(dir.path());
    machine.hear(&format!("fact terminals /dev/tty1 {CONSOLE} 600 /dev/ttyS0 {CONSOLE} 600"));
    // The line shows everything at the beginning, and each thing once more when it changes.
    machine.hear("http://10.0.2.15/");
    machine.type_on_line(b"\r");
    let shown = machine.hear("F: factory reset   Enter: everything");
    assert!(shown.contains("10.0.2.15/24 DHCP") && !shown.contains("PID 1 does not answer"), "{shown}");
    let end = Uptime::now() + LIMIT;
    while machine.code() != "http://10.0.2.15/" {
        assert!(Uptime::now() < end, "the screen shows {:?}", machine.code());
        std::thread::sleep(Duration::from_millis(200));
    }

    machine.type_on_line(b"n");
    machine.hear("Port: any");
    machine.type_on_line(b" \r \r10.0.2.77/24\r10.0.2.2\r\r\r\r\r");
    machine.hear("The page is now at: http://10.0.2.77/");
    machine.type_on_line(b"k");
    machine.hear("The network configuration is kept.");
    machine.type_on_line(b" \r");
    machine.hear("10.0.2.77/24 static");

    machine.press(&["r", "y", "e", "s", "ret"]);
    let log = machine.hear("reboot: Restarting system");
    assert!(log.contains(&format!("the run ends by reboot: asked by user {CONSOLE}")), "{log}");
    assert!(log.contains("console: stopped by code 0"), "{log}");
    let end = Uptime::now() + LIMIT;
    while machine.qemu.try_wait().unwrap().is_none() {
        assert!(Uptime::now() < end, "it does not end:\n{}", machine.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}
