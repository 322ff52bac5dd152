//! Wires the `console` service: what it knows is gathered from the others, what is typed is carried to them.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::net::{NetRequest, NetResponse};
use super::{Running, socket, tls};
use crate::config::Config;
use crate::console::terminal::{self, Asked};
use crate::console::view::{Provider, Setup};
use crate::console::{Request, View};
use crate::ipc;
use crate::net::status::NetworkStatus;
use crate::net::trial::{self, Refused};
use crate::secret::Secret;
use crate::settings::desk::{Answer, Ask};
use crate::supervise::control;
use crate::supervise::terminals::{ACTIVE, terminals};

/// How often the box is looked at.
const PACE: Duration = Duration::from_secs(1);
/// How many looks after which the provider is asked once more: what it answers grows with the machines.
const PROVIDER_EVERY: u32 = 10;
/// How long a service may take to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a change of the network may take.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
/// Octets of a fingerprint: 32 pairs of digits, and colons between them.
const LONGEST_FINGERPRINT: u64 = 95;
/// Requests that wait to be carried out; a terminal makes one at a time.
const REQUESTS: usize = 4;

/// Starts the service's tasks.
pub(super) fn start(config: &Config, running: &mut Running) {
    // Terminals that are plugged in later are none of the kernel's either.
    let terminals = terminals(&fs::read_to_string(ACTIVE).unwrap_or_default());
    let (views, shown) = watch::channel(Arc::new(View::default()));
    let (asker, requests) = mpsc::channel(REQUESTS);
    let names: Vec<_> = terminals.iter().map(|terminal| terminal.name.as_str()).collect();
    running.up("console", names.join(" "));
    for terminal in terminals {
        let serving =
            terminal::run(terminal.path(), terminal.kind, shown.clone(), asker.clone(), running.cancel.clone());
        running.spawn("terminal", async move {
            serving.await;
            Ok(())
        });
    }
    let following = Peers::new(config).follow(views, requests, running.cancel.clone());
    running.spawn("console", async move {
        following.await;
        Ok(())
    });
}

/// The services that the console speaks to.
struct Peers {
    network: ipc::Client<NetRequest, NetResponse>,
    changes: ipc::Client<NetRequest, NetResponse>,
    provider: ipc::Client<(), String>,
    settings: ipc::Client<Ask, Answer>,
    /// Where the page says it.
    fingerprint: PathBuf,
    view: View,
}

impl Peers {
    fn new(config: &Config) -> Self {
        let (network, provider) = (socket(&config.run_dir, "net"), socket(&config.run_dir, "provider"));
        let view = View {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            port: config.web.map_or(80, |address| address.port()),
            ..View::default()
        };
        Self {
            network: ipc::Client::new(&network, STATUS_TIMEOUT),
            changes: ipc::Client::new(&network, CHANGE_TIMEOUT),
            provider: ipc::Client::new(&provider, STATUS_TIMEOUT),
            settings: ipc::Client::new(&socket(&config.run_dir, "settings"), STATUS_TIMEOUT),
            fingerprint: config.run_dir.join("web").join(tls::FINGERPRINT),
            view,
        }
    }

    /// Publishes views and carries out requests, one at a time, until `cancel`.
    async fn follow(
        mut self,
        views: watch::Sender<Arc<View>>,
        mut requests: mpsc::Receiver<Asked>,
        cancel: CancellationToken,
    ) {
        let mut tick = tokio::time::interval(PACE);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looks = 0_u32;
        while !cancel.is_cancelled() {
            // Cancel-safe: a request that is not received stays in the channel, a tick is only waited for.
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = tick.tick() => {
                    self.look().await;
                    if looks.is_multiple_of(PROVIDER_EVERY) {
                        self.view.provider = ask_provider(&self.provider).await;
                    }
                    looks = looks.wrapping_add(1);
                    views.send_replace(Arc::new(self.view.clone()));
                }
                Some(Asked { request, terminal, answer }) = requests.recv() => {
                    let outcome = self.perform(&request).await;
                    let refused = outcome.as_ref().err().map(String::as_str).unwrap_or_default();
                    tracing::info!(terminal, request = request.as_str(), refused, "console: asked for");
                    // The terminal that asked sees at once what has become of it.
                    self.look().await;
                    views.send_replace(Arc::new(self.view.clone()));
                    // It may be gone.
                    let _ = answer.send(outcome);
                }
            }
        }
    }

    async fn look(&mut self) {
        self.view.init = match ipc::init::ask(control::Request::Status).await {
            Ok(control::Reply::Status(status)) => Some(status),
            Ok(_) | Err(_) => None,
        };
        self.view.network = match self.network.call(&NetRequest::Status).await {
            Ok(NetResponse::Status(json)) => serde_json::from_str::<NetworkStatus>(&json).ok(),
            Ok(NetResponse::Changed(_)) | Err(_) => None,
        };
        self.view.setup = match self.settings.call(&Ask::Code).await {
            Ok(Answer::Code(Some(code))) => Setup::Code(Secret::new(code)),
            Ok(Answer::Code(None)) => Setup::Done,
            Ok(_) | Err(_) => Setup::Unknown,
        };
        self.view.certificate = fingerprint(&self.fingerprint);
    }

    /// Does what was asked for; an error is a reason in words.
    async fn perform(&self, request: &Request) -> Result<(), String> {
        match request {
            Request::Reboot => ask_init(control::Request::Reboot).await,
            Request::Recovery => {
                ask_init(control::Request::Recovery).await?;
                ask_init(control::Request::Reboot).await
            }
            Request::PowerOff => ask_init(control::Request::PowerOff).await,
            Request::FactoryReset => ask_init(control::Request::FactoryReset).await,
            Request::Try(network) => self.change(trial::Request::Try(network.clone())).await,
            // Somebody stands before the box and sees its address: that is what a confirmation over the network proves.
            Request::Keep(network) => self.change(trial::Request::Adopt(network.clone())).await,
            Request::Return => self.change(trial::Request::Return).await,
            Request::Survey => ask_init(control::Request::Survey).await,
            Request::Install(name, octets) => {
                ask_init(control::Request::Install { name: name.clone(), octets: *octets }).await
            }
        }
    }

    async fn change(&self, request: trial::Request) -> Result<(), String> {
        match self.changes.call(&NetRequest::Change(request)).await {
            Ok(NetResponse::Changed(Ok(()))) => Ok(()),
            Ok(NetResponse::Changed(Err(Refused::Faults(faults)))) => {
                Err(faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
            }
            Ok(NetResponse::Changed(Err(refused))) => Err(refused.to_string()),
            Ok(NetResponse::Status(_)) => Err("the network service speaks another version".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

async fn ask_init(request: control::Request) -> Result<(), String> {
    match ipc::init::ask(request).await {
        Ok(control::Reply::Accepted | control::Reply::Done) => Ok(()),
        Ok(control::Reply::Failed(reason) | control::Reply::Refused(reason)) => Err(reason),
        Ok(control::Reply::Denied) => Err("PID 1 denies it".to_owned()),
        Ok(control::Reply::Status(_)) => Err("PID 1 speaks another version".to_owned()),
        Err(error) => Err(format!("PID 1 does not answer: {error}")),
    }
}

/// The fingerprint of the page's certificate, once the page has told it.
fn fingerprint(path: &Path) -> Option<String> {
    let mut text = String::new();
    // One octet more than it can have shows that it is none.
    File::open(path).ok()?.take(LONGEST_FINGERPRINT + 1).read_to_string(&mut text).ok()?;
    (1..=LONGEST_FINGERPRINT).contains(&(text.len() as u64)).then_some(text)
}

async fn ask_provider(client: &ipc::Client<(), String>) -> Option<Provider> {
    let json = client.call(&()).await.ok()?;
    serde_json::from_str(&json).ok()
}
