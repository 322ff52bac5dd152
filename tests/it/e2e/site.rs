//! Two network namespaces, a bridge between them, and the processes in them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;

use anyhow::{Context as _, ensure};

/// Where the provider listens and machines come to.
pub const PROVIDER: &str = "10.99.0.1";
/// Where Omni listens.
pub const OMNI: &str = "10.99.0.2";
/// The rack's bridge.
pub const BRIDGE: &str = "br0";
/// What the site's DHCP server is called in its namespace.
const UPLINK: &str = "site0";

/// How namespaces are called that this makes, followed by the process and the test.
const PREFIX: &str = "plt";

/// The namespaces `…s` (the site's DHCP server) and `…r` (the rack: bridge, machines, BMCs, provider, Omni).
///
/// When it is dropped, every process in them is killed and they are gone.
pub struct Site {
    name: String,
    pub directory: PathBuf,
    processes: Vec<(String, Child)>,
}

impl Site {
    /// Makes the namespaces and a directory for everything that belongs to them.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let name = format!("{PREFIX}{}{name}", std::process::id());
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
        std::fs::create_dir_all(&directory)?;
        // Made first: what fails from here on is cleaned up.
        let site = Self { name, directory, processes: Vec::new() };
        let (rack, outside) = (site.rack(), site.outside());
        ip(&["netns", "add", &rack])?;
        ip(&["netns", "add", &outside])?;
        ip(&["link", "add", "up0", "netns", &rack, "type", "veth", "peer", "name", UPLINK, "netns", &outside])?;
        for (namespace, arguments) in [
            (&rack, &["link", "set", "lo", "up"][..]),
            (&rack, &["link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0"]),
            (&rack, &["addr", "add", &format!("{PROVIDER}/24"), "dev", BRIDGE]),
            (&rack, &["addr", "add", &format!("{OMNI}/24"), "dev", BRIDGE]),
            (&rack, &["link", "set", "up0", "master", BRIDGE, "up"]),
            (&rack, &["link", "set", BRIDGE, "up"]),
            (&outside, &["link", "set", "lo", "up"]),
            (&outside, &["addr", "add", "10.99.0.254/24", "dev", UPLINK]),
            (&outside, &["addr", "add", "fd00:99::fe/64", "dev", UPLINK, "nodad"]),
            (&outside, &["link", "set", UPLINK, "up"]),
        ] {
            ip(&[&["-n", namespace.as_str()], arguments].concat())?;
        }
        Ok(site)
    }

    /// The rack's namespace.
    pub fn rack(&self) -> String {
        format!("{}r", self.name)
    }

    fn outside(&self) -> String {
        format!("{}s", self.name)
    }

    /// A port of the rack's bridge for a machine.
    pub fn add_tap(&self, tap: &str) -> anyhow::Result<()> {
        ip(&["-n", &self.rack(), "tuntap", "add", tap, "mode", "tap"])?;
        ip(&["-n", &self.rack(), "link", "set", tap, "master", BRIDGE, "up"])
    }

    /// An address of the rack for a BMC.
    pub fn add_address(&self, address: &str) -> anyhow::Result<()> {
        ip(&["-n", &self.rack(), "addr", "add", &format!("{address}/24"), "dev", BRIDGE])
    }

    /// Starts the site's DHCP server, which knows nothing of network boot; with `ipv6` it is a router of that as well.
    ///
    /// Without one, iPXE's own `autoboot` looks for it for about 16 s.
    pub fn start_dnsmasq(&mut self, ipv6: bool) -> anyhow::Result<()> {
        let leases = self.directory.join("leases");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.outside(), "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null"]);
        command.args(["--port=0", "--interface", UPLINK, "--bind-interfaces", "--user=root", "--no-ping"]);
        command.args([
            "--dhcp-range=10.99.0.50,10.99.0.99,1h",
            "--dhcp-authoritative",
            "--log-dhcp",
            "--log-facility=-",
        ]);
        if ipv6 {
            command.args(["--enable-ra", "--dhcp-range=fd00:99::,ra-only"]);
        }
        command.arg(format!("--dhcp-leasefile={}", leases.display())).arg("--pid-file");
        self.spawn("dnsmasq", command)
    }

    /// A command that runs in the rack's namespace.
    pub fn in_rack(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.rack()]).arg(program);
        command
    }

    /// Starts a process whose output goes to `<name>.log`.
    pub fn spawn(&mut self, name: &str, mut command: Command) -> anyhow::Result<()> {
        let log = File::create(self.log(name))?;
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).current_dir(&self.directory).spawn();
        self.processes.push((name.to_owned(), child.with_context(|| format!("starting {name}"))?));
        Ok(())
    }

    /// Kills a process, as the kernel does when memory runs out.
    pub fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        let at = self.processes.iter().position(|(process, _)| process == name);
        let (_, mut child) = self.processes.remove(at.with_context(|| format!("{name} does not run"))?);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Fails when a process has ended: nothing that this starts ends by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        for (name, child) in &mut self.processes {
            if let Some(status) = child.try_wait()? {
                anyhow::bail!("{name} ended: {status}");
            }
        }
        Ok(())
    }

    /// The log of a process.
    pub fn log(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.log"))
    }

    /// Prints the last lines of every log.
    pub fn print_logs(&self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        let mut logs: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        for log in logs {
            let text = String::from_utf8_lossy(&std::fs::read(&log).unwrap_or_default()).into_owned();
            let lines: Vec<_> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
            println!("==== last lines of {}", log.display());
            lines[lines.len().saturating_sub(60)..].iter().for_each(|line| println!("{}", line.escape_debug()));
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        for namespace in [self.rack(), self.outside()] {
            clear(&namespace);
        }
        // A test that failed leaves its directory for whoever looks into it.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.directory);
        }
    }
}

/// Removes a namespace and whatever runs in it. What a BMC started is no child of ours; its namespace names it.
fn clear(namespace: &str) {
    let pids = Command::new("ip").args(["netns", "pids", namespace]).output();
    let pids = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    for pid in pids.lines().filter_map(|pid| pid.trim().parse::<i32>().ok()) {
        if pid != std::process::id() as i32 {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
    let _ = Command::new("ip").args(["netns", "del", namespace]).status();
}

/// Clears what a run left behind that was killed itself: namespaces of ours whose process is gone.
fn sweep() {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let rest = name.strip_prefix(PREFIX).unwrap_or_default();
        let pid = rest.trim_end_matches(|char: char| !char.is_ascii_digit());
        // A process that has ended and was not waited for has no command line.
        let runs = std::fs::read(Path::new("/proc").join(pid).join("cmdline")).is_ok_and(|line| !line.is_empty());
        if pid.parse::<u32>().is_ok() && pid.len() < rest.len() && !runs {
            clear(&name);
        }
    }
}

fn ip(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip")?;
    ensure!(output.status.success(), "ip {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
