//! The update service: one job at a time, what it tells, what it is asked.
//!
//! An edge, because it owns the thread that writes and answers on a socket.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::VerifyingKey;
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::fetch::Remote;
use super::job::{From, NoUpdate, Report, Terminal};
use super::protocol::{Asked, Job, LARGEST_PART, Phase, Request, Response, State};
use super::stick;
use super::upload::Parts;
use super::wish::{STARTS, Wish, Wishes};
use crate::ipc;
use crate::omni::proxy::Variables;
use crate::slots::{Slot, Version};
use crate::supervise::control;

/// Parts of an upload that wait to be written.
const PARTS: usize = 2;
/// How long a job may take to stop when the service does.
const STOP: Duration = Duration::from_secs(4);

/// What the service needs to know.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The keys that are trusted.
    pub keys: Vec<VerifyingKey>,
    /// What kind of box this is.
    pub compatible: String,
    /// The version of this very program.
    pub own: Version,
    /// Where the partitions of the box's own disk have their names.
    pub disk: PathBuf,
    /// Init's control socket.
    pub init: PathBuf,
    /// Where a stick is mounted.
    pub stick: PathBuf,
    /// The service's own directory.
    pub state: PathBuf,
    /// The way out.
    pub proxy: Variables,
}

/// What kind of box this program is for.
pub fn compatible() -> String {
    format!("pilotlight-{}", std::env::consts::ARCH)
}

/// The service. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Updates(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    setup: Setup,
    wishes: Wishes,
    runtime: Handle,
    cancel: CancellationToken,
    now: Mutex<Now>,
    /// Whether a job runs.
    busy: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Now {
    job: Option<Job>,
    /// Ends the job that runs.
    stop: CancellationToken,
    upload: Option<(u64, mpsc::Sender<Bytes>)>,
    /// Uploads so far.
    uploads: u64,
}

impl Updates {
    /// A service that does nothing yet. Must be called within a runtime. `cancel` ends it.
    pub fn new(setup: Setup, cancel: CancellationToken) -> Self {
        let wishes = Wishes::new(&setup.state);
        let (runtime, now) = (Handle::current(), Mutex::default());
        Self(Arc::new(Shared { setup, wishes, runtime, cancel, now, busy: watch::Sender::new(false) }))
    }

    /// Goes on with what was asked for before, and answers on `listener` until the service is ended.
    pub async fn serve(self, listener: UnixListener, allowed: Vec<u32>) {
        self.resume();
        let updates = self.clone();
        let answer = move |_: ipc::Peer, request: Request| updates.clone().answer(request);
        ipc::serve(listener, allowed, self.0.cancel.clone(), answer).await;
        let mut busy = self.0.busy.subscribe();
        let stopped = tokio::time::timeout(STOP, busy.wait_for(|busy| !busy)).await;
        if stopped.is_err() {
            tracing::warn!("the update did not stop in time");
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Job)) {
        if let Some(job) = &mut self.now().job {
            change(job);
        }
    }

    fn resume(&self) {
        let Some(wish) = self.0.wishes.read() else { return };
        tracing::info!(url = %wish.url, starts = wish.starts, "goes on with the update that was asked for");
        if wish.starts >= STARTS {
            let why = format!("it was begun {STARTS} times and took the service or the box down with it each time");
            self.now().job = Some(Job { phase: Phase::Failed(why), ..job(wish.url.to_string()) });
            self.forget_wish();
            return;
        }
        if let Err(why) = self.fetch(Wish { starts: wish.starts + 1, ..wish }) {
            tracing::warn!(why, "the update does not go on");
        }
    }

    async fn answer(self, request: Request) -> Response {
        let accepted = |result: Result<(), String>| match result {
            Ok(()) => Response::Accepted,
            Err(why) => Response::Refused(why),
        };
        match request {
            Request::State => Response::State(self.state()),
            Request::Fetch(url, asked) => accepted(self.fetch(Wish { url, asked, starts: 1 })),
            Request::Stick(name, asked) => accepted(self.take_from_stick(&name, asked)),
            Request::Begin(asked) => match self.begin(asked) {
                Ok(number) => Response::Upload(number),
                Err(why) => Response::Refused(why),
            },
            Request::Part(number, octets) => self.part(number, octets).await,
            Request::End(number) => match self.sender(number) {
                // The thread sees the end when the last sender is gone.
                Some(_) => {
                    self.now().upload = None;
                    Response::Accepted
                }
                None => Response::Ended,
            },
            Request::Restart => {
                let updates = self.clone();
                let asked = self.0.runtime.spawn_blocking(move || updates.restart()).await;
                accepted(asked.unwrap_or_else(|_| Err("the service ends".to_owned())))
            }
            Request::Cancel => {
                self.now().stop.cancel();
                Response::Accepted
            }
        }
    }

    fn state(&self) -> State {
        let job = self.now().job.clone();
        State { job, stick: stick::look(&self.0.setup.stick), keys: self.0.setup.keys.len() }
    }

    fn fetch(&self, wish: Wish) -> Result<(), String> {
        let updates = self.clone();
        let trouble = move |trouble: Option<(String, u32)>| {
            updates.change(|job| {
                job.phase = match trouble {
                    Some((trouble, attempt)) => Phase::Waiting { trouble, attempt },
                    None if job.version.is_some() => Phase::Writing,
                    None => Phase::Opening,
                };
            });
        };
        let Setup { proxy, .. } = &self.0.setup;
        self.start(wish.url.to_string(), wish.asked, |stop| {
            let Wish { url, .. } = wish.clone();
            let remote = Remote::new(url, proxy.clone(), self.0.runtime.clone(), stop, Box::new(trouble));
            let remote = remote.map_err(|error| error.to_string())?;
            // Without it the update is not gone on with after a restart, and that is all.
            if let Err(error) = self.0.wishes.keep(&wish) {
                tracing::warn!(error = &error as &dyn Error, "the update's URL can't be kept");
            }
            Ok(From::Remote(Box::new(remote)))
        })
    }

    fn take_from_stick(&self, name: &str, asked: Asked) -> Result<(), String> {
        self.start(format!("{name} on the stick"), asked, |_| {
            let file = stick::open(&self.0.setup.stick, name);
            file.map(From::Stick).map_err(|error| format!("there is no bundle {name:?} on the stick: {error}"))
        })
    }

    fn begin(&self, asked: Asked) -> Result<u64, String> {
        let (sender, parts) = mpsc::channel(PARTS);
        self.start("an upload".to_owned(), asked, |stop| {
            Ok(From::Upload(Parts::new(parts, self.0.runtime.clone(), stop)))
        })?;
        let mut now = self.now();
        now.uploads += 1;
        now.upload = Some((now.uploads, sender));
        Ok(now.uploads)
    }

    fn sender(&self, number: u64) -> Option<mpsc::Sender<Bytes>> {
        let now = self.now();
        now.upload.as_ref().filter(|(current, _)| *current == number).map(|(_, sender)| sender.clone())
    }

    async fn part(&self, number: u64, octets: Bytes) -> Response {
        if octets.len() > LARGEST_PART {
            return Response::Refused("the part is too large".to_owned());
        }
        let Some(sender) = self.sender(number) else { return Response::Ended };
        match sender.send(octets).await {
            Ok(()) => Response::Accepted,
            Err(_) => Response::Ended,
        }
    }

    /// Starts a job, unless one runs.
    fn start(
        &self,
        from: String,
        asked: Asked,
        source: impl FnOnce(CancellationToken) -> Result<From, String>,
    ) -> Result<(), String> {
        let begun = self.0.busy.send_if_modified(|busy| !std::mem::replace(busy, true));
        if !begun {
            return Err("an update is being written already".to_owned());
        }
        let stop = self.0.cancel.child_token();
        let source = match source(stop.clone()) {
            Ok(source) => source,
            Err(why) => {
                self.0.busy.send_replace(false);
                return Err(why);
            }
        };
        tracing::info!(from, ?asked, "an update begins");
        {
            let mut now = self.now();
            *now = Now { job: Some(job(from)), stop: stop.clone(), upload: None, uploads: now.uploads };
        }
        let updates = self.clone();
        self.0.runtime.spawn_blocking(move || {
            let outcome = updates.run(source, asked);
            updates.end(outcome, asked, &stop);
            updates.0.busy.send_replace(false);
        });
        Ok(())
    }

    fn run(&self, source: From, asked: Asked) -> Result<Slot, NoUpdate> {
        let Setup { keys, compatible, own, disk, init, .. } = &self.0.setup;
        let ask = |request| ipc::init::ask_at(init, &request);
        Terminal { keys, compatible, own, disk, asked, init: &ask }.run(source, &mut self.clone())
    }

    fn end(&self, outcome: Result<Slot, NoUpdate>, asked: Asked, stop: &CancellationToken) {
        let phase = match &outcome {
            Ok(slot) => Phase::Written(*slot),
            // The service ends, and goes on when it is back.
            Err(_) if self.0.cancel.is_cancelled() => return,
            Err(_) if stop.is_cancelled() => Phase::Cancelled,
            Err(error) => Phase::Failed(explain(error)),
        };
        tracing::info!(?phase, "the update ends");
        {
            let mut now = self.now();
            now.upload = None;
            if let Some(job) = &mut now.job {
                job.phase = phase;
            }
        }
        self.forget_wish();
        if outcome.is_ok()
            && asked.restart
            && let Err(why) = self.restart()
        {
            tracing::warn!(why, "the box does not restart by itself");
        }
    }

    /// Asks init to start the box anew. Blocks.
    fn restart(&self) -> Result<(), String> {
        match ipc::init::ask_at(&self.0.setup.init, &control::Request::Reboot) {
            Ok(control::Reply::Accepted) => Ok(()),
            Ok(control::Reply::Failed(why) | control::Reply::Refused(why)) => Err(why),
            Ok(other) => Err(format!("init answers {other:?}")),
            Err(error) => Err(format!("init does not answer: {error}")),
        }
    }

    fn forget_wish(&self) {
        if let Err(error) = self.0.wishes.drop() {
            tracing::warn!(error = &error as &dyn Error, "the update's URL can't be dropped");
        }
    }
}

impl Report for Updates {
    fn opened(&mut self, version: &Version, total: u64) {
        self.change(|job| *job = Job { version: Some(version.clone()), total, phase: Phase::Writing, ..job.clone() });
    }

    fn held(&mut self, octets: u64) {
        self.change(|job| job.held = octets);
    }
}

fn job(from: String) -> Job {
    Job { from, version: None, held: 0, total: 0, phase: Phase::Opening }
}

/// An error with all its causes, each once.
fn explain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// Asks the update service. Must be called within a runtime.
pub fn client(socket: &Path) -> ipc::Client<Request, Response> {
    // A part waits until those before it are written.
    ipc::Client::new(socket, Duration::from_secs(120))
}

/// A bundle that is being handed to the service.
pub struct Upload<'a> {
    client: &'a ipc::Client<Request, Response>,
    number: u64,
}

impl<'a> Upload<'a> {
    /// Begins one.
    ///
    /// # Errors
    ///
    /// Why it is not taken, in words: here and below.
    pub async fn begin(client: &'a ipc::Client<Request, Response>, asked: Asked) -> Result<Self, String> {
        match client.call(&Request::Begin(asked)).await {
            Ok(Response::Upload(number)) => Ok(Self { client, number }),
            other => Err(words(other)),
        }
    }

    /// Hands over the next octets, at most [`LARGEST_PART`]. False when no more are needed.
    ///
    /// # Errors
    ///
    /// As those of [`Upload::begin`].
    pub async fn part(&mut self, octets: Bytes) -> Result<bool, String> {
        match self.client.call(&Request::Part(self.number, octets)).await {
            Ok(Response::Accepted) => Ok(true),
            Ok(Response::Ended) => Ok(false),
            other => Err(words(other)),
        }
    }

    /// Says that all was handed over.
    ///
    /// # Errors
    ///
    /// As those of [`Upload::begin`].
    pub async fn end(self) -> Result<(), String> {
        match self.client.call(&Request::End(self.number)).await {
            Ok(Response::Accepted | Response::Ended) => Ok(()),
            other => Err(words(other)),
        }
    }

    /// Says that no more will come.
    pub async fn abandon(self) {
        // Without it the job waits a minute for the next part.
        let _ = self.client.call(&Request::Cancel).await;
    }
}

fn words(answer: Result<Response, ipc::Error>) -> String {
    match answer {
        Ok(Response::Refused(why)) => why,
        Ok(other) => format!("the update service answers {other:?}"),
        Err(error) => format!("the update service does not answer: {}", explain(&error)),
    }
}
