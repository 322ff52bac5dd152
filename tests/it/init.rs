//! The real `init` as PID 1 of its own namespaces, with a shell script in the services' place.
//!
//! Its root is a tmpfs in a private mount namespace. /dev, /sys and /sys/fs/cgroup are mounted by the test: mounting
//! devtmpfs or cgroup2 anew would change the options of the host's, of which there is one each.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pilotlight::time::Uptime;
use tempfile::TempDir;

use crate::peers;

const ROOT: &str = r#"
set -e
root=$1 box=$2
mount -t tmpfs -o mode=755 none "$root"
cd "$root"
mkdir proc sys dev run tmp data usr box
mount -t tmpfs none sys
mkdir -p sys/fs/cgroup sys/fs/pstore
mount -t tmpfs none sys/fs/cgroup
mount -t tmpfs none sys/fs/pstore
mount -t tmpfs -o mode=755 none dev
mknod -m 666 dev/null c 1 3
mount --rbind /usr usr
for dir in bin sbin lib lib64; do
    if [ -L "/$dir" ]; then ln -s "$(readlink "/$dir")" "$dir"
    elif [ -d "/$dir" ]; then mkdir "$dir"; mount --rbind "/$dir" "$dir"
    fi
done
mount --bind "$box" box
if [ -e "$box/state" ]; then mkdir dev/pilotlight; ln -s /box/state dev/pilotlight/state; fi
shift 2
exec chroot . /box/init pilotlight.flags=/box/flags "$@"
"#;

/// A service in a few lines: it records how it was started, says that it is ready and well, and ends when it is told to.
/// `{}` is what it does besides, once.
pub const SERVICE: &str = r#"#!/usr/bin/perl
use strict;
use Socket;
my ($name, $record) = ($ARGV[1], "/box/record");
sub note { open(my $log, '>>', "$record/log"); syswrite($log, "@_\n"); }
sub say_to { my ($type, $path, $text) = @_;
    socket(my $socket, AF_UNIX, $type, 0) or return;
    connect($socket, pack_sockaddr_un($path)) or return;
    send($socket, $text, 0);
    return $socket; }
sub notify { say_to(SOCK_DGRAM, $ENV{NOTIFY_SOCKET}, $_[0]); }
open(my $status, '<', '/proc/self/status');
open(my $copy, '>', "$record/$name.status");
print $copy grep { /^(Umask|SigBlk|Uid|Gid|Groups|CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):/ } <$status>;
close($copy);
open(my $environment, '>', "$record/$name.environment");
print $environment "$_=$ENV{$_}\n" for keys %ENV;
close($environment);
$SIG{TERM} = sub { note("stop $name"); exit 0 };
note("start @ARGV");
{}
notify("READY=1\nSTATUS=$name is here");
while (1) { notify("WATCHDOG=1"); select(undef, undef, undef, 0.2); }
"#;

/// [`SERVICE`] with something to do.
pub fn service(besides: &str) -> String {
    SERVICE.replace("{}", besides)
}

/// An orphan for PID 1: it lives until its parent is gone, which else would be the one to reap it.
const ORPHAN: &str = r#"
if ($name eq "web") {
    $SIG{CHLD} = 'IGNORE';
    if (!fork()) {
        if (!fork()) { select(undef, undef, undef, 0.01) while getppid() != 1; }
        exit;
    }
}
"#;

/// What a box is made of.
pub struct Setup<'a> {
    /// What lies beside init under the name of the services' program.
    pub program: Program<'a>,
    /// Its flags, one a line.
    pub flags: &'a str,
    /// What init is told besides where the flags are.
    pub arguments: &'a [&'a str],
    /// Whether it has a network of its own, without even loopback being up; else it shares that of the test.
    pub own_network: bool,
    /// Variables of init's environment.
    pub environment: &'a [(&'a str, &'a str)],
}

/// See [`Setup::program`].
pub enum Program<'a> {
    /// Nothing.
    Missing,
    /// A shell script.
    Script(&'a str),
    /// A copy of this file.
    Copy(&'a str),
}

/// A box that runs in its namespaces; ended with the test.
pub struct Running {
    dir: TempDir,
    unshare: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        // With `--kill-child` PID 1 of the namespace ends with it, and all the rest with that.
        let _ = self.unshare.kill();
        let _ = self.unshare.wait();
    }
}

pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Uptime::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Uptime::now() < end, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Running {
    /// A box with the script in the services' place, or with nothing.
    fn scripted(with_program: bool) -> Option<Self> {
        let script = service(ORPHAN);
        let setup = Setup {
            program: if with_program { Program::Script(&script) } else { Program::Missing },
            flags: "# for every service\n--debug\n--id=rack 7\n",
            arguments: &[],
            own_network: true,
            environment: &[("OMNI_SERVICE_ACCOUNT_KEY", "top-secret"), ("HOME", "/root")],
        };
        Self::start(&setup, |_| {})
    }

    /// `None` where there is no root or no tool to make namespaces. `furnish` puts further files into the directory that
    /// the box sees as /box.
    pub fn start(setup: &Setup<'_>, furnish: impl FnOnce(&Path)) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            crate::peers::say("skipped: only root makes the namespaces of a box");
            return None;
        }
        if !peers::require("unshare", "util-linux") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (root, the_box) = (dir.path().join("root"), dir.path().join("box"));
        fs::create_dir(&root).unwrap();
        fs::create_dir_all(the_box.join("record")).unwrap();
        let executable = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        executable(&the_box);
        fs::set_permissions(the_box.join("record"), fs::Permissions::from_mode(0o777)).unwrap();
        fs::write(the_box.join("record/log"), "").unwrap();
        fs::set_permissions(the_box.join("record/log"), fs::Permissions::from_mode(0o666)).unwrap();
        fs::copy(env!("CARGO_BIN_EXE_init"), the_box.join("init")).unwrap();
        let program = the_box.join("pilotlight");
        match setup.program {
            Program::Missing => {}
            Program::Script(text) => {
                fs::write(&program, text).unwrap();
                executable(&program);
            }
            Program::Copy(path) => drop(fs::copy(path, &program).unwrap()),
        }
        fs::write(the_box.join("flags"), setup.flags).unwrap();
        furnish(&the_box);
        let unshare = Command::new("unshare")
            .args(["--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--propagation", "private"])
            .args(setup.own_network.then_some("--net"))
            .args(["sh", "-c", ROOT, "sh"])
            .envs(setup.environment.iter().copied())
            .args([&root, &the_box])
            .args(setup.arguments)
            .stdin(Stdio::null())
            .stderr(fs::File::create(dir.path().join("init.log")).unwrap())
            .spawn()
            .unwrap();
        let running = Self { dir, unshare };
        // Before that, it has no PID 1 that could be asked for.
        wait_until("the box has a process", || !children(running.unshare.id() as i32).is_empty());
        Some(running)
    }

    /// `path` of the box, as it is called out here.
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.init().to_string()).join("root").join(path)
    }

    /// What the services wrote down under this name.
    pub fn written(&self, name: &str) -> Vec<String> {
        lines(&self.dir.path().join("box/record").join(name))
    }

    /// A file of the directory that the box sees as /box; it is there when the box is gone, too.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("box").join(name)
    }

    /// Lets services see a file of this name.
    pub fn write(&self, name: &str) {
        fs::write(self.dir.path().join("box/record").join(name), "").unwrap();
    }

    /// The process of a service, by what init said last of it. Waits for one that is being started again.
    pub fn pid(&self, service: &str) -> Pid {
        let text = format!("{service}: runs as ");
        let mut found = None;
        wait_until(&format!("{service} runs"), || {
            let log = self.log();
            let inner = log.iter().rev().find_map(|line| line.split_once(&text).map(|(_, inner)| inner));
            found = inner.and_then(|inner| self.outer(inner));
            found.is_some()
        });
        found.unwrap()
    }

    fn record(&self) -> Vec<String> {
        lines(&self.dir.path().join("box/record/log"))
    }

    /// What init and its services said.
    pub fn log(&self) -> Vec<String> {
        lines(&self.dir.path().join("init.log"))
    }

    pub fn wait_for_log(&self, text: &str) {
        let end = Uptime::now() + Duration::from_secs(30);
        while !self.log().iter().any(|line| line.contains(text)) {
            assert!(Uptime::now() < end, "{text:?} is not in the log:\n{}", self.log().join("\n"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// By init's word, which comes after theirs.
    pub fn wait_until_all_are_ready(&self) {
        for name in NAMES {
            self.wait_for_log(&format!("{name}: is ready after "));
        }
    }

    /// PID 1 of the box, as it is called out here.
    pub fn init(&self) -> Pid {
        let own = || children(self.unshare.id() as i32);
        // It makes its namespaces first.
        wait_until("the box has a PID 1", || own().len() == 1);
        Pid::from_raw(own()[0])
    }

    /// The process that PID 1 calls `inner`, as it is called out here; none once it has ended.
    pub fn outer(&self, inner: &str) -> Option<Pid> {
        let found = children(self.init().as_raw()).into_iter().find(|pid| {
            lines(Path::new(&format!("/proc/{pid}/status")))
                .iter()
                .any(|line| line.starts_with("NSpid:") && line.split_whitespace().next_back() == Some(inner))
        });
        found.map(Pid::from_raw)
    }

    /// Sends PID 1 a signal that ends the box, and awaits that.
    pub fn end(&mut self, signal: Signal) -> ExitStatus {
        kill(self.init(), signal).unwrap();
        self.ended()
    }

    /// Awaits the end of the box.
    pub fn ended(&mut self) -> ExitStatus {
        let end = Uptime::now() + Duration::from_secs(40);
        loop {
            if let Some(status) = self.unshare.try_wait().unwrap() {
                return status;
            }
            assert!(Uptime::now() < end, "the box does not end:\n{}", self.log().join("\n"));
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

pub fn position(lines: &[String], text: &str) -> usize {
    lines.iter().position(|line| line.contains(text)).unwrap_or_else(|| panic!("{text:?} is not in {lines:#?}"))
}

/// The mounts of the test itself, but for named network namespaces: other tests come and go with theirs.
pub fn host_mounts() -> Vec<String> {
    let mut mounts = lines(Path::new("/proc/self/mountinfo"));
    mounts.retain(|line| !line.contains(" /run/netns"));
    mounts
}

pub const NAMES: [&str; 10] =
    ["net", "store", "images", "provider", "dhcp", "tftp", "settings", "web", "console", "update"];

#[test]
fn pid_1_starts_confines_restarts_reaps_and_stops_in_order() {
    let before = host_mounts();
    let Some(mut running) = Running::scripted(true) else { return };
    running.wait_until_all_are_ready();
    let log = running.log();
    let started = |name: &str| position(&log, &format!("{name}: runs as "));
    let ready = |name: &str| position(&log, &format!("{name}: is ready after "));
    for (name, earlier) in [("web", "store"), ("images", "store"), ("provider", "images")] {
        assert!(ready(earlier) < started(name), "{earlier} before {name}: {log:#?}");
    }
    for name in NAMES {
        assert!(running.record().contains(&format!("start service {name} --debug --id=rack 7")), "{name}");
    }

    // Powers: 10 is NET_BIND_SERVICE, 12 NET_ADMIN, 13 NET_RAW, 25 SYS_TIME.
    for (name, uid, kept) in [
        ("net", 901, 1_u64 << 12 | 1 << 13 | 1 << 25),
        ("store", 902, 0),
        ("images", 903, 0),
        ("provider", 904, 0),
        ("dhcp", 905, 1 << 10 | 1 << 13),
        ("tftp", 906, 1 << 10),
        ("settings", 910, 0),
        ("web", 907, 1 << 10),
        ("console", 909, 0),
        ("update", 911, 0),
    ] {
        let status = lines(&running.dir.path().join(format!("box/record/{name}.status"))).join("\n");
        let want = format!(
            "Umask:\t0007\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{uid}\t{uid}\t{uid}\t{uid}\nGroups:\t900 \nSigBlk:\t0000000000000000\n\
             CapInh:\t{kept:016x}\nCapPrm:\t{kept:016x}\nCapEff:\t{kept:016x}\nCapBnd:\t{kept:016x}\n\
             CapAmb:\t{kept:016x}\nNoNewPrivs:\t1\nSeccomp:\t2"
        );
        assert_eq!(status, want, "{name}");
        let environment = lines(&running.dir.path().join(format!("box/record/{name}.environment")));
        let set = |variable: &str| environment.iter().any(|line| line.starts_with(variable));
        assert!(!set("HOME="), "{name}: {environment:#?}");
        assert_eq!(set("OMNI_SERVICE_ACCOUNT_KEY=top-secret"), name == "provider", "{name}: {environment:#?}");
    }

    let inside = Path::new("/proc").join(running.init().to_string()).join("root");
    for (path, uid, gid, mode) in [
        ("run/pilotlight", 0, 0, 0o755),
        ("run/pilotlight/store", 902, 900, 0o2750),
        ("run/systemd/journal", 0, 0, 0o755),
        ("data/pilotlight", 0, 0, 0o755),
        ("data/pilotlight/store", 902, 902, 0o700),
        ("tmp", 0, 0, 0o1777),
    ] {
        let meta = fs::metadata(inside.join(path)).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (uid, gid, mode), "{path}");
    }

    // The one that is killed comes back after its pause, and alone.
    kill(running.pid("tftp"), Signal::SIGKILL).unwrap();
    running.wait_for_log("tftp: ended by signal 9; starts again in ");
    wait_until("tftp runs again", || running.record().iter().filter(|line| line.contains("service tftp")).count() == 2);
    let log = running.log();
    let ended = &log[position(&log, "tftp: ended by")];
    let pause: u32 = ended.split(' ').rev().nth(1).unwrap().parse().unwrap();
    assert!((75..=125).contains(&pause), "{ended}");
    assert_eq!(running.record().iter().filter(|line| line.starts_with("start")).count(), NAMES.len() + 1);

    running.wait_for_log("reaped stray");
    wait_until("no zombie is left", || {
        children(running.init().as_raw()).iter().all(|pid| {
            let status = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            status.rsplit(") ").next().is_none_or(|rest| !rest.starts_with('Z'))
        })
    });

    // In a namespace a reboot shows as SIGHUP.
    let status = running.end(Signal::SIGTERM);
    assert_eq!(status.signal(), Some(Signal::SIGHUP as i32), "{status}\n{}", running.log().join("\n"));
    let record = running.record();
    let stopped = |name: &str| position(&record, &format!("stop {name}"));
    for (name, later) in
        [("provider", "images"), ("web", "images"), ("dhcp", "images"), ("tftp", "images"), ("images", "store")]
    {
        assert!(stopped(name) < stopped(later), "{name} before {later}: {record:#?}");
    }
    // The test gives it no cgroup v2, which is said once.
    assert!(running.log().iter().any(|line| line.contains("no cgroup v2")));
    let complaints: Vec<_> = running.log().into_iter().filter(|line| line.contains("cannot")).collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    assert_eq!(host_mounts(), before, "the host's mounts are as they were");
}

#[test]
fn without_its_program_pid_1_stays_up_and_keeps_trying() {
    if Path::new("/usr/bin/pilotlight").exists() {
        crate::peers::say("skipped: /usr/bin/pilotlight is installed here");
        return;
    }
    let Some(mut running) = Running::scripted(false) else { return };
    let attempts =
        |name: &str| running.log().iter().filter(|line| line.contains(&format!("{name}: did not start"))).count();
    wait_until("all were tried twice", || NAMES.iter().all(|name| attempts(name) >= 2));
    // In a namespace a power-off shows as SIGINT.
    let status = running.end(Signal::SIGUSR2);
    assert_eq!(status.signal(), Some(Signal::SIGINT as i32), "{status}\n{}", running.log().join("\n"));
}

#[test]
fn init_refuses_to_be_any_other_process() {
    let output = Command::new(env!("CARGO_BIN_EXE_init")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains("PID 1 only") && output.stdout.is_empty());
}
