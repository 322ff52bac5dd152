//! Wires the `settings` service, and the page's way to it.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use async_trait::async_trait;
use tokio::runtime::Handle;

use super::net::{NetRequest, NetResponse};
use super::{Running, allowed, socket};
use crate::config::Config;
use crate::ipc;
use crate::net::config::Network;
use crate::net::status::NetworkStatus;
use crate::net::trial;
use crate::secret::Secret;
use crate::settings::desk::{Answer, Applied, Ask, Desk, Refusal, Shown};
use crate::settings::disk::Directory;
use crate::settings::stick::{Adopts, NAME, Outcome};
use crate::settings::{Answers, Fault, Settings};
use crate::supervise::control;
use crate::supervise::services::{SERVICES, service};
use crate::sys::mount;
use crate::time::Uptime;
use crate::web::settings::Backend;

/// How long the service `net` may take.
const NET_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the service `settings` may take: it writes to the disk, and asks `net`.
const TIMEOUT: Duration = Duration::from_secs(20);

type Net = ipc::Client<NetRequest, NetResponse>;

/// Starts the service's tasks.
pub(super) fn start(config: &Config, running: &mut Running) -> anyhow::Result<()> {
    let place = config.state_dir.join("settings");
    let desk = Arc::new(Mutex::new(Desk::open(Directory::new(&place, None)).context("no setup code")?));
    let listener = ipc::bind(&socket(&config.run_dir, "settings")).context("settings socket")?;
    let net: Net = ipc::Client::new(&socket(&config.run_dir, "net"), NET_TIMEOUT);
    let cancel = running.cancel.clone();
    running.up("settings", place.display().to_string());
    let stick = Stick { at: config.update.stick.clone(), keeps: place };
    let web = service("web").map(|service| service.uid);
    let answer = move |peer: ipc::Peer, ask: Ask| {
        let (desk, net, stick) = (Arc::clone(&desk), net.clone(), stick.clone());
        async move {
            match ask {
                // The code is for the screen: the page's own process has to ask a person for it.
                Ask::Code if Some(peer.uid) == web => Answer::Denied,
                // Only who mounts it knows that there is one, and that it is nothing else.
                Ask::Stick if peer.uid == 0 => take_in(desk, net, stick).await,
                Ask::Stick => Answer::Denied,
                ask => answer(ask, desk, net).await,
            }
        }
    };
    running.spawn("settings", async move {
        // Root is init, which mounts sticks.
        let allowed = allowed(&["web", "console"]).into_iter().chain([0]).collect();
        ipc::serve(listener, allowed, cancel, answer).await;
        Ok(())
    });
    Ok(())
}

/// Where a stick is mounted, and where this service keeps what it brings.
#[derive(Clone, Debug)]
struct Stick {
    at: PathBuf,
    keeps: PathBuf,
}

/// The service `net`, which runs: a thread that may wait asks it.
struct Asked<'a>(&'a Net);

impl Adopts for Asked<'_> {
    fn adopt(&mut self, network: &Network) -> io::Result<()> {
        let change = NetRequest::Change(trial::Request::Adopt(network.clone()));
        let adopting = async {
            // What counts already is not changed: a change ends a trial.
            if self::network(self.0).await.is_some_and(|status| status.network == *network && status.trial.is_none()) {
                return Ok(());
            }
            match self.0.call(&change).await {
                Ok(NetResponse::Changed(done)) => done.map_err(io::Error::other),
                Ok(NetResponse::Status(_)) => Err(io::Error::other(MISUNDERSTOOD)),
                Err(error) => Err(io::Error::other(error)),
            }
        };
        Handle::current().block_on(adopting)
    }
}

/// Takes in what lies on the stick, and has the services concerned start anew.
async fn take_in(desk: Arc<Mutex<Desk>>, net: Net, stick: Stick) -> Answer {
    let asked = net.clone();
    let taken = tokio::task::spawn_blocking(move || {
        let lasting = mount::lasts(&stick.keeps).unwrap_or(false);
        lock(&desk).take_in(&stick.at, &mut Asked(&asked), lasting)
    });
    match taken.await.map_err(io::Error::other).flatten() {
        Ok((Outcome::Applied { lacks, new }, before)) => {
            tracing::info!(file = NAME, "taken in from a stick");
            lacks.iter().for_each(|lack| tracing::error!(lack, "stick"));
            if let Some(new) = new {
                let applied = tell(&new, &before, &net).await;
                applied.notes.iter().for_each(|note| tracing::warn!(note, "stick"));
            }
        }
        Ok((Outcome::Faults(faults), _)) => {
            tracing::error!(
                file = NAME,
                faults = faults.len(),
                "does not count: the report on the stick names all faults"
            );
            faults.iter().take(8).for_each(|fault| tracing::error!(%fault, "stick"));
        }
        Ok((Outcome::Failed(error), _)) => tracing::error!(file = NAME, %error, "can't be taken in"),
        Ok((Outcome::None | Outcome::Before, _)) => {}
        Err(error) => return Answer::Failed(error.to_string()),
    }
    Answer::Looked
}

async fn answer(ask: Ask, desk: Arc<Mutex<Desk>>, net: Net) -> Answer {
    match ask {
        Ask::Show => Answer::Shown(show(&desk, &net).await),
        Ask::Code => at_desk(desk, |desk| Answer::Code(desk.code())).await,
        Ask::Stick => Answer::Denied,
        Ask::Enter(typed) => {
            let typed = Secret::new(typed);
            at_desk(desk, move |desk| Answer::Entered(desk.enter(typed.reveal(), Uptime::now()))).await
        }
        Ask::Apply(pairs) => {
            let pairs = pairs.into_iter().map(|(path, text)| (path, Secret::new(text)));
            let answers = match Answers::new(pairs) {
                Ok(answers) => answers,
                Err(error) => return Answer::Failed(error.to_string()),
            };
            let kept = tokio::task::spawn_blocking(move || lock(&desk).apply(&answers)).await;
            match kept {
                Ok(Ok((new, before))) => Answer::Applied(Ok(tell(&new, &before, &net).await)),
                Ok(Err(Ok(faults))) => Answer::Applied(Err(faults)),
                Ok(Err(Err(error))) => Answer::Failed(format!("the configuration can't be kept: {error}")),
                Err(error) => Answer::Failed(error.to_string()),
            }
        }
    }
}

fn lock(desk: &Mutex<Desk>) -> std::sync::MutexGuard<'_, Desk> {
    desk.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Off the runtime: hashes and disks take their time.
async fn at_desk(desk: Arc<Mutex<Desk>>, work: impl FnOnce(&mut Desk) -> Answer + Send + 'static) -> Answer {
    let done = tokio::task::spawn_blocking(move || work(&mut lock(&desk))).await;
    done.unwrap_or_else(|error| Answer::Failed(error.to_string()))
}

async fn show(desk: &Arc<Mutex<Desk>>, net: &Net) -> Shown {
    let desk = Arc::clone(desk);
    let shown = tokio::task::spawn_blocking(move || lock(&desk).show()).await;
    let (settings, kept, mut trouble) = shown.unwrap_or_default();
    let status = network(net).await;
    if status.is_none() {
        trouble.push("The network is not known: the service net does not answer. Don't save now.".to_owned());
    }
    let status = status.unwrap_or_default();
    let answers = settings.with_network(status.network).answers().without_secrets().reveal();
    Shown { answers, kept, trouble, trial: status.trial }
}

async fn network(net: &Net) -> Option<NetworkStatus> {
    match net.call(&NetRequest::Status).await {
        Ok(NetResponse::Status(json)) => serde_json::from_str(&json).ok(),
        Ok(NetResponse::Changed(_)) | Err(_) => None,
    }
}

/// Has the box do what is kept by now: the services concerned start anew, a new network is tried.
async fn tell(new: &Settings, before: &Settings, net: &Net) -> Applied {
    let mut applied = Applied::default();
    let mut concerned = new.concerned(before);
    match network(net).await {
        Some(status) if status.network == *new.network() => {}
        Some(_) => {
            // A trial does not outlive its service.
            if concerned.remove("net") {
                applied.notes.push("The name of the box counts after its next start.".to_owned());
            }
            match net.call(&NetRequest::Change(trial::Request::Try(new.network().clone()))).await {
                Ok(NetResponse::Changed(Ok(()))) => applied.trial = true,
                Ok(NetResponse::Changed(Err(refused))) => {
                    applied.notes.push(format!("The network is not changed: {refused}."));
                }
                Ok(NetResponse::Status(_)) | Err(_) => {
                    applied.notes.push("The network is not changed: the service net does not answer.".to_owned());
                }
            }
        }
        None => applied.notes.push("The network is not changed: the service net does not answer.".to_owned()),
    }
    if concerned.is_empty() {
        return applied;
    }
    let names: Vec<_> = concerned.iter().map(|name| (*name).to_owned()).collect();
    let concerned = SERVICES.iter().filter(|service| concerned.contains(service.name));
    match ipc::init::ask(control::Request::Restart(control::Services::of(concerned.map(|service| service.name)))).await
    {
        Ok(control::Reply::Accepted) => applied.restarted = names,
        // Where init is not PID 1, someone else starts the services.
        _ => applied.notes.push(format!("It counts when these start anew: {}.", names.join(", "))),
    }
    applied
}

/// The page's way to the services that keep the configuration and the network.
pub(super) struct Services {
    settings: ipc::Client<Ask, Answer>,
    net: Net,
}

impl std::fmt::Debug for Services {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Services")
    }
}

impl Services {
    pub(super) fn connect(run_dir: &Path) -> Self {
        Self {
            settings: ipc::Client::new(&socket(run_dir, "settings"), TIMEOUT),
            net: ipc::Client::new(&socket(run_dir, "net"), NET_TIMEOUT),
        }
    }

    async fn ask(&self, ask: Ask) -> Result<Answer, String> {
        match self.settings.call(&ask).await {
            Ok(Answer::Failed(why)) => Err(why),
            Ok(answer) => Ok(answer),
            Err(error) => Err(format!("the service settings does not answer: {error}")),
        }
    }

    async fn change(&self, request: trial::Request) -> Result<(), String> {
        match self.net.call(&NetRequest::Change(request)).await {
            Ok(NetResponse::Changed(done)) => done.map_err(|refused| refused.to_string()),
            Ok(NetResponse::Status(_)) => Err(MISUNDERSTOOD.to_owned()),
            Err(error) => Err(format!("the service net does not answer: {error}")),
        }
    }
}

const MISUNDERSTOOD: &str = "the services are of different versions";

#[async_trait]
impl Backend for Services {
    async fn show(&self) -> Result<Shown, String> {
        match self.ask(Ask::Show).await? {
            Answer::Shown(shown) => Ok(shown),
            _ => Err(MISUNDERSTOOD.to_owned()),
        }
    }

    async fn enter(&self, code: Secret<String>) -> Result<Result<(), Refusal>, String> {
        match self.ask(Ask::Enter(code.reveal().clone())).await? {
            Answer::Entered(entered) => Ok(entered),
            _ => Err(MISUNDERSTOOD.to_owned()),
        }
    }

    async fn apply(&self, answers: Answers) -> Result<Result<Applied, Vec<Fault>>, String> {
        match self.ask(Ask::Apply(answers.reveal())).await? {
            Answer::Applied(applied) => Ok(applied),
            _ => Err(MISUNDERSTOOD.to_owned()),
        }
    }

    async fn keep(&self, trial: u64, at: IpAddr) -> Result<(), String> {
        self.change(trial::Request::Confirm { trial, at }).await
    }

    async fn go_back(&self) -> Result<(), String> {
        self.change(trial::Request::Return).await
    }
}
