//! What the operating systems on a machine do: Talos in agent mode, from the network, and from its disk.
//!
//! An edge, over a [`Platform`]: a simulated machine of the lab ([`LabOs`]) or the real hardware around a guest's PID 1
//! ([`crate::lab::guest`]). Both join Omni, report and obey over the same wire.

mod config;
mod lab;
mod link;

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use config::{ConfigError, Join};
pub use lab::{BmcPort, LabOs};
pub use link::LinkError;

use crate::lab::agent::{self, BmcLan, Hardware};
use crate::lab::machine::{Kind, Next};
use crate::machine::MachineId;
use crate::proto::lab::next_response::Order;
use crate::proto::lab::report_request::Event;
use crate::secret::Secret;
use link::Link;

/// Where the machine's config comes from.
const CONFIG: &str = "talos.config";
/// Makes Talos dial a provider; its presence is what tells agent mode from Talos.
const PROVIDER_ADDRESS: &str = "metal.provider.address";
/// Reports an API instead of a BMC.
const TEST_MODE: &str = "metal.provider.test.mode";

/// What is on a machine's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// How the machine joins, as Talos keeps it in its META partition.
    pub join: Join,
    /// Whether it holds a cluster's config; without one Talos waits in maintenance.
    pub configured: bool,
}

/// Why hardware did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    /// There is no disk.
    #[error("the machine has no disk")]
    NoDisk,
    /// The disk could not be read or written.
    #[error("disk {}", path.display())]
    Disk {
        /// Its device.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// An octet that was just zeroed is not zero.
    #[error("disk {} is not blank at octet {at}", path.display())]
    NotBlank {
        /// Its device.
        path: PathBuf,
        /// Where.
        at: u64,
    },
    /// There is no BMC.
    #[error("the machine has no BMC")]
    NoBmc,
    /// The BMC refused, in its words.
    #[error("{command}: {reason}")]
    Bmc {
        /// What was asked for.
        command: &'static str,
        /// What it said; holds no secret.
        reason: String,
    },
}

/// The hardware below an operating system.
#[async_trait::async_trait]
pub trait Platform: Send + Sync + 'static {
    /// The SMBIOS UUID.
    fn id(&self) -> &MachineId;

    /// The address that connections come from; `None` leaves it to the kernel.
    fn local_bind(&self) -> Option<IpAddr>;

    /// Something worth a line in the machine's log.
    fn note(&self, what: String);

    /// Wipes every disk: all of it with `zeroes`, else its first and last MiB, as Talos' fast wipe.
    ///
    /// # Errors
    ///
    /// [`PlatformError`]; then the disk is not blank.
    async fn wipe(&self, zeroes: bool) -> Result<(), PlatformError>;

    /// Puts Talos on the disk, or changes the installation that is there.
    ///
    /// # Errors
    ///
    /// [`PlatformError`].
    async fn install(&self, installation: &Installation) -> Result<(), PlatformError>;

    /// What is installed; `None` when the disk holds no Talos.
    async fn installed(&self) -> Option<Installation>;

    /// The BMC's LAN interface and users, read in-band; `None` without a BMC.
    async fn bmc(&self) -> Option<BmcLan>;

    /// Notes whether Omni refuses the join token that the system was booted with. A system asks for its config once: nothing
    /// but another boot brings it another token.
    fn refused(&self, refused: bool) {
        let _ = refused;
    }

    /// Makes `name` an administrator of the BMC, in-band.
    ///
    /// # Errors
    ///
    /// [`PlatformError`].
    async fn set_bmc_user(&self, name: &str, password: &Secret<String>) -> Result<(), PlatformError>;
}

/// How patient an operating system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Wait before an agent that ended starts again.
    pub agent_restart: Duration,
    /// Wait after a first failed attempt to join or report; doubles up to `retry_most`.
    pub retry: Duration,
    /// The longest wait between attempts.
    pub retry_most: Duration,
    /// How long an installation takes.
    pub install: Duration,
    /// How long a simulated disk takes to wipe.
    pub wipe: Duration,
    /// From an answered reboot call to the reboot itself, so that the answer gets out.
    pub reboot: Duration,
}

impl Default for Patience {
    /// As Talos.
    fn default() -> Self {
        Self {
            agent_restart: agent::RESTART_DELAY,
            retry: Duration::from_secs(1),
            retry_most: Duration::from_secs(10),
            install: Duration::from_secs(3),
            wipe: Duration::from_secs(3),
            reboot: Duration::from_secs(1),
        }
    }
}

impl Patience {
    /// For simulated machines, whose users do not want to wait.
    pub const fn short() -> Self {
        Self {
            agent_restart: Duration::from_millis(500),
            retry: Duration::from_millis(100),
            retry_most: Duration::from_secs(3),
            install: Duration::from_millis(500),
            wipe: Duration::ZERO,
            reboot: Duration::from_millis(50),
        }
    }
}

/// What a kernel command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Which operating system.
    pub kind: Kind,
    /// Its arguments, in order.
    pub cmdline: Vec<(String, String)>,
}

impl Boot {
    /// A boot from the network with this command line: agent mode if it names a provider, else Talos.
    pub fn from_network(cmdline: Vec<(String, String)>) -> Self {
        let agent = cmdline.iter().any(|(name, _)| name == PROVIDER_ADDRESS);
        Self { kind: if agent { Kind::Agent } else { Kind::TalosNet }, cmdline }
    }

    /// The value of the first `name`, which is the one that counts (contract agent-tunnel.md section 3.1).
    fn argument(&self, name: &str) -> Option<&str> {
        self.cmdline.iter().find(|(argument, _)| argument == name).map(|(_, value)| value.as_str())
    }

    fn is_test_mode(&self) -> bool {
        matches!(self.argument(TEST_MODE), Some("1" | "t" | "T" | "TRUE" | "true" | "True"))
    }
}

/// Runs the operating system of `boot` on `platform` until it ends.
///
/// Failures are retried for ever, `patience` apart. When `cancel` fires everything stops and [`Next::Hang`] returns.
pub async fn run(boot: Boot, platform: Arc<dyn Platform>, patience: Patience, cancel: CancellationToken) -> Next {
    let system = System { boot, platform, patience };
    let running = async {
        match system.boot.kind {
            Kind::Agent => system.agent(cancel.child_token()).await,
            Kind::TalosNet => match system.configured().await {
                Some(join) => system.talos(join, Event::Maintenance).await,
                None => std::future::pending().await,
            },
            Kind::TalosDisk => match system.platform.installed().await {
                Some(Installation { join, configured: true }) => system.talos(join, Event::BootedFromDisk).await,
                Some(Installation { join, configured: false }) => system.talos(join, Event::Maintenance).await,
                None => {
                    system.platform.note("the disk holds no Talos".into());
                    Next::Hang
                }
            },
        }
    };
    cancel.run_until_cancelled(running).await.unwrap_or(Next::Hang)
}

struct System {
    boot: Boot,
    platform: Arc<dyn Platform>,
    patience: Patience,
}

impl System {
    /// Agent mode: the tunnel and the join run side by side, as the extension service and Talos do.
    async fn agent(&self, cancel: CancellationToken) -> Next {
        let _guard = cancel.clone().drop_guard();
        let reboot = Arc::new(Notify::new());
        let hardware = Arc::new(AgentHardware {
            platform: self.platform.clone(),
            test_mode: self.boot.is_test_mode(),
            reboot: reboot.clone(),
        });
        let address = self.boot.argument(PROVIDER_ADDRESS).unwrap_or_default();
        let tunnel = agent::run_forever(
            address,
            self.platform.id(),
            hardware,
            self.platform.local_bind(),
            self.patience.agent_restart,
            cancel,
        );
        let joined = async {
            if let Some(join) = self.configured().await {
                let _link = self.join(&join, Event::Agent).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // Cancel-safe: both are dropped only when the machine goes down.
            () = tunnel => Next::Hang,
            () = joined => Next::Hang,
            // Cancel-safe: a permit that is not taken stays.
            () = async { reboot.notified().await; tokio::time::sleep(self.patience.reboot).await } => Next::Reboot,
        }
    }

    /// Talos itself: joins, says how it started, obeys.
    async fn talos(&self, mut join: Join, start: Event) -> Next {
        let mut link = self.join(&join, start).await;
        // META is a partition of the disk, and until there is one, memory.
        join.unique_token = link.unique_token();
        let mut waited = self.patience.retry;
        loop {
            let order = match link.next().await {
                Ok(order) => order,
                Err(error) => {
                    self.failed("asking for orders", &error);
                    tokio::time::sleep(waited).await;
                    waited = (waited * 2).min(self.patience.retry_most);
                    if error.forgotten() {
                        // Omni lost its memory of us: we join again, as Talos does when its tunnel stays silent.
                        link = self.join(&join, start).await;
                        join.unique_token = link.unique_token();
                    }
                    continue;
                }
            };
            waited = self.patience.retry;
            let (installation, report) = match order {
                Order::Wait => continue,
                Order::Shutdown => {
                    self.platform.note("Omni asks to shut down".into());
                    return Next::PowerOff;
                }
                Order::Install => (Installation { join: join.clone(), configured: true }, Event::Installed),
                Order::Reset => (Installation { join: join.clone(), configured: false }, Event::ResetDone),
            };
            tokio::time::sleep(self.patience.install).await;
            if let Err(error) = self.platform.install(&installation).await {
                self.failed("writing to the disk", &error);
                tokio::time::sleep(self.patience.retry_most).await;
                continue;
            }
            self.platform.note(format!("{} done", if installation.configured { "installation" } else { "reset" }));
            self.until_done("reporting", || link.clone().report(report)).await;
            return Next::Reboot;
        }
    }

    /// The served config's way to join; `None` without a config argument.
    async fn configured(&self) -> Option<Join> {
        let Some(url) = self.boot.argument(CONFIG) else {
            self.platform.note(format!("no {CONFIG} argument: waits for ever"));
            return None;
        };
        let url = url.replace("${uuid}", self.platform.id().as_str());
        let join = self.until_done("fetching the config", || config::fetch(&url, self.platform.local_bind())).await;
        // META is read from whatever disk there is, however the system was booted.
        let unique_token = self.platform.installed().await.and_then(|installed| installed.join.unique_token);
        Some(Join { unique_token, ..join })
    }

    /// Joins Omni and reports `event`, however long that takes.
    async fn join(&self, join: &Join, event: Event) -> Link {
        let joined = self.until_done("joining", async || {
            let talos_installed = self.platform.installed().await.is_some();
            let opened = Link::open(join, self.platform.id(), self.platform.local_bind(), talos_installed).await;
            self.platform.refused(opened.as_ref().is_err_and(LinkError::unauthorized));
            let link = opened?;
            link.clone().report(event).await?;
            Ok::<_, LinkError>(link)
        });
        let link = joined.await;
        self.platform.note(format!("joined Omni, reported {}", event.as_str_name()));
        link
    }

    async fn until_done<T, E, F>(&self, what: &str, mut attempt: impl FnMut() -> F) -> T
    where
        E: std::error::Error,
        F: Future<Output = Result<T, E>>,
    {
        let mut wait = self.patience.retry;
        loop {
            match attempt().await {
                Ok(done) => return done,
                Err(error) => self.failed(what, &error),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(self.patience.retry_most);
        }
    }

    fn failed(&self, what: &str, error: &dyn std::error::Error) {
        self.platform.note(format!("{what} failed: {}", chain(error)));
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        line.push_str(": ");
        line.push_str(&cause.to_string());
        next = cause.source();
    }
    line
}

/// The machine as the agent sees it.
struct AgentHardware {
    platform: Arc<dyn Platform>,
    test_mode: bool,
    reboot: Arc<Notify>,
}

#[async_trait::async_trait]
impl Hardware for AgentHardware {
    async fn wipe(&self, zeroes: bool) -> Result<(), String> {
        self.platform.note(format!("agent wipes the disk, zeroes: {zeroes}"));
        let wiped = self.platform.wipe(zeroes).await.map_err(|error| chain(&error));
        self.platform.note(match &wiped {
            Ok(()) => "disk wiped".into(),
            Err(error) => format!("disk not wiped: {error}"),
        });
        wiped
    }

    async fn bmc(&self) -> Option<BmcLan> {
        if self.test_mode { None } else { self.platform.bmc().await }
    }

    async fn set_bmc_user(&self, name: &str, password: &Secret<String>) -> Result<(), String> {
        self.platform.note(format!("agent makes {name} an administrator of the BMC"));
        self.platform.set_bmc_user(name, password).await.map_err(|error| chain(&error))
    }

    async fn reboot(&self) {
        self.reboot.notify_one();
    }
}

#[cfg(test)]
mod tests;
