//! The box and its network: two namespaces, a pair of Ethernet ports between them, and the processes in them.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pilotlight::app::net::{NetRequest, NetResponse};
use pilotlight::ipc::Client;
use pilotlight::net::status::NetworkStatus;
use pilotlight::net::trial::{Refused, Request};
use pilotlight::time::Uptime;
use tempfile::TempDir;

use crate::peers;

/// Longer than anything here takes; a wait that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at something that rings no bell.
const LOOK: Duration = Duration::from_millis(25);
/// The box' port and the other end of its cable.
pub const PORT: &str = "eth0";
pub const CABLE: &str = "site0";
/// The box' MAC address.
pub const MAC: &str = "52:54:00:ab:cd:ef";

/// A box with one port and the site that it is plugged into. All of it is gone when this is dropped.
pub struct Site {
    name: String,
    directory: TempDir,
    processes: Vec<(&'static str, Child)>,
}

impl Site {
    /// The namespaces, with the cable plugged in; `None` without root or tools.
    pub fn open(name: &str) -> Option<Self> {
        if !peers::require("ip", "iproute2") || !peers::require("setpriv", "util-linux") {
            return None;
        }
        if !nix::unistd::geteuid().is_root() {
            peers::say("skipped: network namespaces need root");
            return None;
        }
        let name = format!("pln{}{name}", std::process::id());
        let site = Self { name, directory: tempfile::tempdir().unwrap(), processes: Vec::new() };
        let (inside, outside) = (site.inside(), site.outside());
        ip(&["netns", "add", &inside]);
        ip(&["netns", "add", &outside]);
        ip(&[
            "link", "add", PORT, "address", MAC, "netns", &inside, "type", "veth", "peer", "name", CABLE, "netns",
            &outside,
        ]);
        site.outside_ip(&["link", "set", "lo", "up"]);
        site.outside_ip(&["link", "set", CABLE, "up"]);
        Some(site)
    }

    /// The box' namespace.
    pub fn inside(&self) -> String {
        format!("{}b", self.name)
    }

    /// The site's namespace.
    pub fn outside(&self) -> String {
        format!("{}s", self.name)
    }

    /// `ip` in the site's namespace.
    pub fn outside_ip(&self, arguments: &[&str]) {
        ip(&[&["-n", &self.outside()], arguments].concat());
    }

    /// What `ip` says in the box' namespace.
    pub fn inside_ip(&self, arguments: &[&str]) -> String {
        ip(&[&["-n", &self.inside()], arguments].concat())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A command in a namespace.
    pub fn command(&self, namespace: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, program]);
        command
    }

    /// Starts a process whose output goes to `<name>.log`.
    pub fn spawn(&mut self, name: &'static str, mut command: Command) {
        let log = File::create(self.path(&format!("{name}.log"))).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).current_dir(self.directory.path());
        self.processes.push((name, command.spawn().unwrap()));
    }

    /// Ends a process by SIGKILL, as a power cut would.
    pub fn kill(&mut self, name: &str) {
        let at = self.processes.iter().position(|(process, _)| *process == name).unwrap();
        let (_, mut child) = self.processes.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Starts the net service with the capabilities that the appliance gives it, less the clock: that is the machine's.
    pub fn start_net(&mut self) {
        let mut command = self.command(&self.inside(), "setpriv");
        command.args(["--bounding-set=-all,+net_admin,+net_raw", "--inh-caps=-all"]);
        command.arg(env!("CARGO_BIN_EXE_pilotlight")).args(["service", "net", "--debug", "--manage-network"]);
        command.arg(format!("--state-dir={}", self.path("state").display()));
        command.arg(format!("--run-dir={}", self.path("run").display()));
        command.arg("--omni-api-endpoint=http://192.0.2.1:8099");
        std::fs::create_dir_all(self.path("run/net")).unwrap();
        std::fs::create_dir_all(self.path("state/net")).unwrap();
        self.spawn("net", command);
    }

    /// Gives the site an address and starts its DHCP server, with `arguments` besides the range.
    pub fn start_dnsmasq(&mut self, address: &str, range: &str, arguments: &[&str]) {
        self.outside_ip(&["addr", "add", address, "dev", CABLE]);
        self.restart_dnsmasq(range, arguments);
    }

    /// Starts the DHCP server with the leases that it knows.
    pub fn restart_dnsmasq(&mut self, range: &str, arguments: &[&str]) {
        let mut command = self.command(&self.outside(), "dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0", "--bind-interfaces", "--user=root"]);
        command.args(["--no-ping", "--log-dhcp", "--log-facility=-", "--pid-file", "--dhcp-authoritative"]);
        command.arg(format!("--interface={CABLE}")).arg(format!("--dhcp-range={range}"));
        command.arg(format!("--dhcp-leasefile={}", self.path("leases").display())).args(arguments);
        self.spawn("dnsmasq", command);
    }

    fn client(&self) -> Client<NetRequest, NetResponse> {
        Client::new(&self.path("run/net/net.sock"), PATIENCE)
    }

    /// What the service says about itself.
    pub async fn status(&self) -> NetworkStatus {
        match self.client().call(&NetRequest::Status).await {
            Ok(NetResponse::Status(json)) => serde_json::from_str(&json).unwrap(),
            other => panic!("{other:?}\n{}", self.logs()),
        }
    }

    /// Asks the service for a change.
    pub async fn change(&self, request: Request) -> Result<(), Refused> {
        match self.client().call(&NetRequest::Change(request)).await {
            Ok(NetResponse::Changed(outcome)) => outcome,
            other => panic!("{other:?}\n{}", self.logs()),
        }
    }

    /// Waits until the service's status `holds`.
    pub async fn until(&self, what: &str, holds: impl Fn(&NetworkStatus) -> bool) -> NetworkStatus {
        let deadline = Uptime::now() + PATIENCE;
        loop {
            let status = self.status().await;
            if holds(&status) {
                return status;
            }
            assert!(Uptime::now() < deadline, "{what}: not so in time\n{status:#?}\n{}", self.logs());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until `holds`, which looks at files or asks a tool.
    pub async fn see(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Uptime::now() + PATIENCE;
        while !holds(self) {
            assert!(Uptime::now() < deadline, "{what}: not so in time\n{}", self.logs());
            tokio::time::sleep(LOOK).await;
        }
    }

    pub fn logs(&self) -> String {
        let mut text = String::new();
        for (name, _) in &self.processes {
            let log = self.log(name);
            let lines: Vec<_> = log.lines().collect();
            text.push_str(&format!("==== {name}\n{}\n", lines[lines.len().saturating_sub(40)..].join("\n")));
        }
        text
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
        for namespace in [self.inside(), self.outside()] {
            let _ = Command::new("ip").args(["netns", "del", &namespace]).status();
        }
    }
}

/// Every address of the box' port, as text with its prefix length.
pub fn addresses(status: &NetworkStatus) -> Vec<String> {
    let link = status.links.iter().find(|link| link.name == PORT);
    link.map_or_else(Vec::new, |link| link.addresses.iter().map(|address| address.address.to_string()).collect())
}

/// Whether the box' port has an address that begins so.
pub fn has(status: &NetworkStatus, beginning: &str) -> bool {
    addresses(status).iter().any(|address| address.starts_with(beginning))
}

fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {}: {}", arguments.join(" "), error.trim());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn write(path: &std::path::Path, text: &str) {
    std::fs::write(path, text).unwrap();
}
