//! The provider under test: the product's own binary, as a process, under its product flags.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::process::{Child, Command};

use super::PROVIDER_ID;
use super::machine::Network;
use super::omni::Omni;
use crate::secret::Secret;
use crate::status::Snapshot;
use crate::time::Uptime;

/// How long the provider may take to come up.
const START: Duration = Duration::from_secs(30);
/// How long it may take to end after SIGTERM.
pub(super) const GRACE: Duration = Duration::from_secs(15);
/// Octets of a status answer.
const STATUS_MAX: usize = 64 << 20;
/// How long a status answer may take to begin.
const ANSWER: Duration = Duration::from_secs(5);
/// Lines of the log that are shown when it ends by itself.
const TAIL: usize = 20;
/// Size of the stand-ins for iPXE: that of a small real one.
const IPXE_SIZE: usize = 64 << 10;

/// A provider: its program, flags and state, and its process while it runs. The process is killed when this is dropped.
pub struct Provider {
    child: Option<Child>,
    program: PathBuf,
    flags: BTreeMap<String, String>,
    key: Secret<String>,
    alias_key: Option<Secret<String>>,
    log: PathBuf,
    page: SocketAddr,
    ports: Ports,
}

#[derive(Clone, Copy)]
struct Ports {
    api: u16,
    dhcp: u16,
    binl: u16,
    tftp: u16,
}

impl Provider {
    /// A provider of `omni`'s that does not run yet: this very program, on free ports of loopback, with its state, log and
    /// boot files below `directory`, and pauses that suit simulated machines.
    ///
    /// # Errors
    ///
    /// `directory` can't be written, or there is no free port.
    pub fn prepare(directory: &Path, omni: &Omni, page: SocketAddr) -> anyhow::Result<Self> {
        let ipxe = directory.join("ipxe");
        write_ipxe(&ipxe)?;
        let ports = Ports { api: free_tcp()?, dhcp: free_udp()?, binl: free_udp()?, tftp: free_udp()? };
        let page = SocketAddr::new(page.ip(), if page.port() == 0 { free_tcp()? } else { page.port() });
        let flags = [
            ("id", PROVIDER_ID.to_owned()),
            ("omni-api-endpoint", omni.endpoint()),
            ("api-listen-address", "127.0.0.1".to_owned()),
            ("api-advertise-address", "127.0.0.1".to_owned()),
            ("api-port", ports.api.to_string()),
            ("dhcp-port", ports.dhcp.to_string()),
            ("binl-port", ports.binl.to_string()),
            ("tftp-port", ports.tftp.to_string()),
            ("image-factory-base-url", omni.factory_url()),
            ("ipxe-path", ipxe.display().to_string()),
            ("state-dir", directory.join("state").display().to_string()),
            ("web-listen-address", page.to_string()),
            ("min-reboot-interval", "0".to_owned()),
            ("poll-interval", "5s".to_owned()),
            ("agent-wait", "5s".to_owned()),
            ("machine-labels", "rack=lab".to_owned()),
        ];
        Ok(Self {
            child: None,
            program: std::env::current_exe().context("the lab can't find its own program")?,
            flags: flags.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            key: omni.service_account().key_string.clone(),
            alias_key: None,
            log: directory.join("provider.log"),
            page,
            ports,
        })
    }

    /// Runs `program` in place of this one, from the next start on.
    pub fn set_program(&mut self, program: &Path) {
        self.program = program.to_owned();
    }

    /// Gives the flag `name`, without dashes, from the next start on.
    pub fn set_flag(&mut self, name: &str, value: &str) {
        self.flags.insert(name.to_owned(), value.to_owned());
    }

    /// Gives it another service account key, from the next start on.
    pub fn set_key(&mut self, key: Secret<String>) {
        self.key = key;
    }

    /// Sets `SIDERO_SERVICE_ACCOUNT_KEY` too, or not any more, from the next start on.
    pub fn set_alias_key(&mut self, key: Option<Secret<String>>) {
        self.alias_key = key;
    }

    /// Starts it and waits until its page answers.
    ///
    /// # Errors
    ///
    /// It can't be started, ends at once, or does not answer in time; with the end of its log.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.child = Some(self.spawn()?);
        self.wait_until_it_answers().await
    }

    async fn wait_until_it_answers(&mut self) -> anyhow::Result<()> {
        let deadline = Uptime::now() + START;
        while self.status().await.is_none() {
            let exit = self.child.as_mut().map(Child::try_wait).transpose().context("the provider can't be watched")?;
            if let Some(exit) = exit.flatten() {
                return Err(self.explain(Ok(exit)));
            }
            if Uptime::now() > deadline {
                return Err(self.explain_tail(&format!("the provider does not answer after {} s", START.as_secs())));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The URL of its status page.
    pub fn page(&self) -> String {
        format!("http://{}", self.page)
    }

    /// Its log.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The address and port of its HTTP and gRPC server.
    pub fn api(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.api))
    }

    /// Where machines find it.
    pub fn network(&self) -> Network {
        let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Network { dhcp: at(self.ports.dhcp), binl: at(self.ports.binl), tftp: at(self.ports.tftp) }
    }

    /// What it says about itself; `None` when it does not answer.
    pub async fn status(&self) -> Option<Snapshot> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let answer = client.get(format!("{}/api/status", self.page()).parse().ok()?);
        let answer = tokio::time::timeout(ANSWER, answer).await.ok()?.ok()?;
        let body = Limited::new(answer.into_body(), STATUS_MAX).collect().await.ok()?;
        serde_json::from_slice(&body.to_bytes()).ok()
    }

    /// Peak and present resident memory, KiB.
    pub fn memory(&self) -> Option<(u64, u64)> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.as_ref()?.id()?)).ok()?;
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse().ok()
        };
        Some((field("VmHWM:")?, field("VmRSS:")?))
    }

    /// Waits until it ends, which it should not; for ever while it does not run.
    pub(super) async fn exited(&mut self) -> std::io::Result<ExitStatus> {
        match &mut self.child {
            Some(child) => child.wait().await,
            None => std::future::pending().await,
        }
    }

    /// Kills it at once, as a power cut would. Its state stays for the next [`Self::start`].
    ///
    /// # Errors
    ///
    /// The kernel would not.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().await.context("the provider can't be killed")
    }

    /// Ends it with SIGTERM; whether it ended in time.
    pub async fn stop(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return true };
        let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else { return true };
        // It may have ended a moment ago; then there is nobody to tell.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        if tokio::time::timeout(GRACE, child.wait()).await.is_ok() {
            return true;
        }
        // Told and not gone: the caller says so.
        let _ = child.kill().await;
        false
    }

    /// Why it ended, with the end of its log.
    pub(super) fn explain(&self, exit: std::io::Result<ExitStatus>) -> anyhow::Error {
        match exit {
            Ok(status) => self.explain_tail(&format!("the provider ended: {status}")),
            Err(error) => anyhow!(error).context("the provider can't be watched"),
        }
    }

    fn explain_tail(&self, what: &str) -> anyhow::Error {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(TAIL).collect();
        let tail: Vec<_> = lines.into_iter().rev().collect();
        anyhow!("{what}\nthe end of its log:\n{}", tail.join("\n"))
    }
    fn spawn(&self) -> anyhow::Result<Child> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("{} can't be written", self.log.display()))?;
        let mut command = Command::new(&self.program);
        command
            .arg("provider")
            .args(self.flags.iter().map(|(name, value)| format!("--{name}={value}")))
            .env("OMNI_SERVICE_ACCOUNT_KEY", self.key.reveal())
            .env_remove("SIDERO_SERVICE_ACCOUNT_KEY")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        if let Some(key) = &self.alias_key {
            command.env("SIDERO_SERVICE_ACCOUNT_KEY", key.reveal());
        }
        command.spawn().with_context(|| format!("{} can't be started", self.program.display()))
    }
}

/// `duration`, give or take half of it.
pub(super) fn about(duration: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    duration.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX))
}

fn free_tcp() -> anyhow::Result<u16> {
    let socket = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free TCP port")?;
    Ok(socket.local_addr().context("no free TCP port")?.port())
}

fn free_udp() -> anyhow::Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("no free UDP port")?;
    Ok(socket.local_addr().context("no free UDP port")?.port())
}

/// Stand-ins for iPXE: the lab's firmware only wants something that it can fetch, and a script inside. UEFI's has room
/// for the provider's script, as a provider's own build has; BIOS' has none, as a distribution's build.
///
/// # Errors
///
/// What could not be written.
pub fn write_ipxe(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("{} can't be made", directory.display()))?;
    let room = format!("# *PLACEHOLDER START*{}# *PLACEHOLDER END*", "\n".repeat(1_600));
    for (name, script) in [("undionly.kpxe", ""), ("ipxe.efi", room.as_str()), ("snp.efi", room.as_str())] {
        let mut octets = b"pilotlight-lab: a stand-in for iPXE\n".to_vec();
        octets.extend_from_slice(script.as_bytes());
        octets.resize(IPXE_SIZE, 0);
        let path = directory.join(name);
        std::fs::write(&path, octets).with_context(|| format!("{} can't be written", path.display()))?;
    }
    Ok(())
}
