//! Disks and sticks beside the own disk: a box that runs from a stick is installed on its internal disk, from its page; a
//! stick is plugged in later.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::rack::{Bus, Firmware, Machine, Rack, Setup};
use super::soak;
use crate::peers;

const MIB: u64 = 1 << 20;
/// What stands behind the setup code on the screen.
const UNUSED: &str = "(until first use)";

/// An empty disk beside the stick.
struct Inner {
    file: PathBuf,
}

impl Inner {
    fn new(rack: &Rack, octets: u64) -> Self {
        let file = rack.disk().with_file_name("inner.raw");
        File::create(&file).unwrap().set_len(octets).unwrap();
        Self { file }
    }

    /// QEMU's arguments for it; the firmware takes it before the stick, or behind. SeaBIOS tries the first disk alone.
    fn arguments(&self, first: bool) -> [String; 4] {
        let drive = format!("if=none,id=inner,format=raw,file={}", self.file.display());
        let device = format!("virtio-blk-pci,drive=inner,bootindex={}", if first { 0 } else { 2 });
        ["-drive".to_owned(), drive, "-device".to_owned(), device]
    }

    fn first_mib(&self) -> Vec<u8> {
        let mut octets = vec![0; MIB as usize];
        File::open(&self.file).unwrap().read_exact_at(&mut octets, 0).unwrap();
        octets
    }
}

/// A person at the page.
struct Browser {
    port: u16,
    cookie: String,
}

impl Browser {
    /// With the code that the screen shows.
    fn enter(machine: &mut Machine) -> Self {
        machine.says(UNUSED);
        let code = || {
            let log = machine.log();
            let (before, _) = log.split_once(UNUSED)?;
            before.split_whitespace().next_back().map(str::to_owned)
        };
        let code = code().expect("a code");
        let mut browser = Self { port: machine.port(), cookie: String::new() };
        let answer = browser.until("/setup/enter", &format!("code={code}"), |answer| answer.contains(" 303 "));
        let cookie = answer.lines().find_map(|line| line.strip_prefix("set-cookie: ")).expect("a session");
        browser.cookie = cookie.split(';').next().unwrap().to_owned();
        browser
    }

    fn ask(&self, path: &str, form: &str) -> io::Result<String> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(90)))?;
        let method = if form.is_empty() { "GET" } else { "POST" };
        let head = format!("Host: box\r\nCookie: {}\r\nContent-Length: {}\r\n", self.cookie, form.len());
        write!(stream, "{method} {path} HTTP/1.0\r\n{head}\r\n{form}")?;
        let mut answer = String::new();
        stream.take(1 << 20).read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Asks until the answer is as it should be: services start one after the other.
    fn until(&self, path: &str, form: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        for _ in 0..3000 {
            match self.ask(path, form) {
                Ok(answer) if wanted(&answer) => return answer,
                Ok(answer) => last = answer,
                Err(error) => last = error.to_string(),
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("{path}: {last}");
    }

    /// Has the stick's system copied to the inner disk; returns when that has begun. Programs may ask in the clear.
    fn install(&self, octets: u64) {
        let wrong = format!("name=vda&octets={octets}&typed=vdb");
        let page = self.until("/install", &wrong, |answer| answer.contains(" 422 ") && answer.contains("Erase vda"));
        assert!(page.contains("was not typed out"), "{page}");
        assert!(page.contains("nothing: it begins blank") && page.contains(" virtio"), "{page}");
        assert!(!page.contains("sda"), "the stick itself is in the list: {page}");
        let answer =
            self.until("/install", &format!("name=vda&octets={octets}&typed=vda"), |answer| !answer.is_empty());
        assert!(answer.contains(" 303 "), "{answer}");
    }
}

#[test]
fn a_stick_installs_itself_on_the_internal_disk() {
    if !soak() {
        return;
    }
    for firmware in [Firmware::Bios, Firmware::Uefi] {
        let Some(rack) = Rack::new() else { return };
        let stick = Setup { firmware, bus: Bus::Usb, memory: 512 };
        let inner = Inner::new(&rack, 700 * MIB);
        let mut machine = rack.power_on_with(&stick, &inner.arguments(false).each_ref().map(String::as_str));
        machine.page();
        let browser = Browser::enter(&mut machine);
        browser.install(700 * MIB);
        browser.until("/", "", |answer| answer.contains("installed on vda"));
        drop(machine);

        // The stick stays in: the firmware takes the inner disk, and nobody takes the one for the other.
        let before = fs::read(rack.disk()).unwrap();
        let mut machine = rack.power_on_with(&stick, &inner.arguments(true).each_ref().map(String::as_str));
        machine.page();
        // Of the stick it would be the second.
        machine.expect_log("first boot");
        for fault in ["DEGRADED", "partition table", "grows by"] {
            machine.expect_no_log(fault);
        }
        drop(machine);
        assert!(fs::read(rack.disk()).unwrap() == before, "the stick was written to");

        // Alone, and for the second time.
        fs::rename(&inner.file, rack.disk()).unwrap();
        let mut machine = rack.power_on(&Setup { firmware, bus: Bus::Virtio, memory: 512 });
        let after = machine.page();
        peers::say(&format!("appliance: installed, {firmware:?}: page after {:.1} s", after.as_secs_f64()));
        for fault in ["DEGRADED", "first boot", "data lost"] {
            machine.expect_no_log(fault);
        }
        drop(machine);
        rack.verify_partitions();
    }
}

#[test]
fn an_installation_that_loses_its_power_says_so_and_leaves_no_disk_that_boots() {
    if !soak() {
        return;
    }
    let Some(rack) = Rack::new() else { return };
    let stick = Setup { firmware: Firmware::Bios, bus: Bus::Usb, memory: 512 };
    let inner = Inner::new(&rack, 700 * MIB);
    let mut machine = rack.power_on_with(&stick, &inner.arguments(false).each_ref().map(String::as_str));
    machine.page();
    let browser = Browser::enter(&mut machine);
    browser.install(700 * MIB);
    browser.until("/", "", |answer| answer.contains("installs to vda") && !answer.contains(": 0 %"));
    drop(machine);
    assert!(inner.first_mib().iter().all(|octet| *octet == 0));
    let mut machine = rack.power_on_with(&stick, &inner.arguments(false).each_ref().map(String::as_str));
    machine.page();
    machine.says("did not finish");
    let browser = Browser { cookie: String::new(), port: machine.port() };
    let summary = browser.until("/", "", |answer| answer.contains("did not finish"));
    assert!(summary.contains("vda"), "{summary}");
    // The code was used before the cut, and lasts.
    machine.expect_no_log(UNUSED);
}

/// Tells QEMU what somebody does with their hands (QEMU Machine Protocol).
fn tell_qemu(socket: &Path, command: &str) {
    let stream = UnixStream::connect(socket).unwrap();
    let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
    for command in ["{\"execute\":\"qmp_capabilities\"}", command] {
        (&stream).write_all(command.as_bytes()).unwrap();
        // Events and the greeting come in between.
        let answer =
            answers.by_ref().map(Result::unwrap).find(|line| line.contains("return") || line.contains("error"));
        assert!(answer.as_ref().is_some_and(|line| line.contains("return")), "{command}: {answer:?}");
    }
}

#[test]
fn a_stick_that_is_plugged_in_later_is_offered_until_it_is_pulled() {
    if !soak() || !peers::require("mcopy", "mtools") || !peers::require("mkfs.vfat", "dosfstools") {
        return;
    }
    let Some(rack) = Rack::new() else { return };
    let beside = |name: &str| rack.disk().with_file_name(name);
    let (stick, socket, bundle) = (beside("stick.raw"), beside("qmp.sock"), beside("pilotlight-9.bundle"));
    fs::write(&bundle, vec![7; 100_000]).unwrap();
    fs::write(beside("pilotlight.toml"), "hostname = \"from-a-stick\"\n").unwrap();
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
    };
    let path = stick.display().to_string();
    run("mkfs.vfat", &["-C", &path, "65536"]);
    let toml = beside("pilotlight.toml");
    run("mcopy", &["-i", &path, bundle.to_str().unwrap(), toml.to_str().unwrap(), "::"]);
    let setup = Setup { firmware: Firmware::Bios, bus: Bus::Virtio, memory: 512 };
    let drive = format!("if=none,id=stick,format=raw,file={path}");
    let monitor = format!("unix:{},server,nowait", socket.display());
    let mut machine = rack.power_on_with(&setup, &["-device", "qemu-xhci,id=hub", "-drive", &drive, "-qmp", &monitor]);
    machine.page();
    let browser = Browser { cookie: String::new(), port: machine.port() };
    let lies_there = |answer: &str| answer.contains("pilotlight-9.bundle");
    browser.until("/update", "", |answer| answer.contains(" 200 ") && !lies_there(answer));
    let plug = "\"driver\":\"usb-storage\",\"id\":\"one\",\"drive\":\"stick\",\"bus\":\"hub.0\"";
    tell_qemu(&socket, &format!("{{\"execute\":\"device_add\",\"arguments\":{{{plug}}}}}"));
    browser.until("/update", "", lies_there);
    machine.says("from-a-stick");
    let reported = || {
        let report = Command::new("mtype").args(["-i", &path, "::pilotlight-report.txt"]).output().unwrap();
        String::from_utf8_lossy(&report.stdout).contains("hostname = from-a-stick")
    };
    // It comes last; who pulls the stick earlier goes without.
    machine.reaches("a report on the stick", reported);
    tell_qemu(&socket, "{\"execute\":\"device_del\",\"arguments\":{\"id\":\"one\"}}");
    browser.until("/update", "", |answer| answer.contains(" 200 ") && !lies_there(answer));
    machine.expect_no_log("DEGRADED");
    drop(machine);
    assert!(reported());
}
