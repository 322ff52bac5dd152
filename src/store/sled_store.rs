//! [`SledStore`]: the store on disk.
//!
//! One thread writes. It takes all commits that wait, applies each as one batch, flushes the engine and then syncs the
//! log through a descriptor of its own: the engine's flush ends in `sync_file_range`, which a power cut survives only by
//! luck (19 of 70 cuts lost acknowledged writes, none of 492 with the sync).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, oneshot};

use super::open::{self, Layout};
use super::records::{self, Unreadable};
use super::{Batch, Error, Health, Opened, Store, Tree, export};
use crate::time::Uptime;

/// Commits that may wait at a time; more wait for a permit.
const WAITING: usize = 256;
/// Commits that share one sync.
const GROUP: usize = 64;
/// How long after a change its export is written at the latest.
const EXPORT_AFTER: Duration = Duration::from_secs(10);
/// How long a former holder may take to vanish.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const LOCK_POLL: Duration = Duration::from_millis(5);

/// The store on disk. Cloning gives another handle; the last one dropped writes the export and lets go of the lock.
#[derive(Clone)]
pub struct SledStore {
    inner: Arc<Inner>,
}

struct Inner {
    requests: Mutex<Option<Sender<Request>>>,
    permits: Arc<Semaphore>,
    writer: Mutex<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
}

/// What the writer and the readers share.
struct Shared {
    layout: Layout,
    db: sled::Db,
    /// Written while a batch is applied, so that a reader sees all of it or nothing.
    applying: RwLock<()>,
    opened: Opened,
    commits: AtomicU64,
    syncs: AtomicU64,
    failed: AtomicBool,
    /// Held, never read: its lock keeps other processes out. Released last, since it is declared last.
    _lock: File,
}

enum Request {
    Commit(Batch, oneshot::Sender<Result<(), Error>>),
    Export(oneshot::Sender<Result<(), Error>>),
    Close(oneshot::Sender<Result<(), Error>>),
}

impl SledStore {
    /// Opens the store in `dir`, made with mode 0700 when absent. Blocks for some milliseconds per megabyte.
    ///
    /// Leftovers of a crash are repaired; [`Health::opened`] says what that took.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] while another process or handle holds it; [`Error::File`] and [`Error::Engine`] when the disk
    /// refuses.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, Error> {
        let layout = Layout { dir: dir.as_ref().to_owned() };
        let lock = lock(&layout)?;
        let (db, opened) = open::open(&layout)?;
        let log = OpenOptions::new().write(true).open(layout.log()).map_err(file_error("open", layout.log()))?;
        sync_names(&layout)?;
        let shared = Arc::new(Shared {
            layout,
            db,
            applying: RwLock::new(()),
            opened,
            commits: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            _lock: lock,
        });
        let (requests, incoming) = mpsc::channel();
        let writer = Writer { shared: Arc::clone(&shared), log, unexported: opened != Opened::Clean, changed: None };
        // What was imported is as yet only in the engine's buffers.
        writer.make_durable().inspect_err(|_| shared.failed.store(true, Ordering::Release))?;
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(&incoming))
            .map_err(file_error("start the writer of", shared.layout.dir.clone()))?;
        Ok(Self {
            inner: Arc::new(Inner {
                requests: Mutex::new(Some(requests)),
                permits: Arc::new(Semaphore::new(WAITING)),
                writer: Mutex::new(Some(thread)),
                shared,
            }),
        })
    }

    /// Writes the export and ends the writer; later commits fail with [`Error::Closed`]. The lock is let go of when the
    /// last handle is dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Export`] when the export could not be written; the records are safe all the same.
    pub async fn close(&self) -> Result<(), Error> {
        let result = self.ask(Request::Close).await;
        self.inner.requests.lock().expect("no code panics while it holds this lock").take();
        result
    }

    /// Sends one request to the writer and awaits its word, which comes also when the caller no longer waits for it.
    async fn ask(&self, request: impl FnOnce(oneshot::Sender<Result<(), Error>>) -> Request) -> Result<(), Error> {
        let _permit = self.inner.permits.acquire().await.map_err(|_| Error::Closed)?;
        let (done, answer) = oneshot::channel();
        {
            let requests = self.inner.requests.lock().expect("no code panics while it holds this lock");
            let sender = requests.as_ref().ok_or(Error::Closed)?;
            sender.send(request(done)).map_err(|_| Error::Closed)?;
        }
        answer.await.unwrap_or(Err(Error::Closed))
    }

    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Shared) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let shared = Arc::clone(&self.inner.shared);
        let dir = shared.layout.dir.clone();
        // The engine may panic on a damaged page; the task turns that into an error.
        tokio::task::spawn_blocking(move || read(&shared)).await.unwrap_or(Err(Error::Unopenable { dir }))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Without a sender the writer ends, having written the export.
        self.requests.get_mut().map(Option::take).ok();
        let writer = self.writer.get_mut().map(Option::take).ok().flatten();
        if writer.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!(dir = %self.shared.layout.dir.display(), "store: the writer panicked");
        }
    }
}

#[async_trait]
impl Store for SledStore {
    /// Shows a commit that is applied and still waits for its sync, too.
    async fn get(&self, tree: Tree, key: &str) -> Result<Option<Vec<u8>>, Error> {
        let key = key.to_owned();
        self.read(move |shared| {
            let _applied = shared.applying.read();
            records::get(&shared.db, tree, &key).map_err(|error| shared.unreadable(error))
        })
        .await
    }

    async fn list(&self, tree: Tree) -> Result<Vec<(String, Vec<u8>)>, Error> {
        self.read(move |shared| {
            let _applied = shared.applying.read();
            let records = records::list(&shared.db, Some(tree));
            records.map(|record| record.map(|(_, key, value)| (key, value)).map_err(|e| shared.unreadable(e))).collect()
        })
        .await
    }

    async fn commit(&self, batch: Batch) -> Result<(), Error> {
        batch.check()?;
        self.ask(|done| Request::Commit(batch, done)).await
    }

    async fn export(&self) -> Result<(), Error> {
        self.ask(Request::Export).await
    }

    async fn health(&self) -> Result<Health, Error> {
        self.read(|shared| {
            Ok(Health {
                opened: shared.opened,
                commits: shared.commits.load(Ordering::Acquire),
                syncs: shared.syncs.load(Ordering::Acquire),
                failed: shared.failed.load(Ordering::Acquire),
                size: fs::metadata(shared.layout.log()).map_err(file_error("measure", shared.layout.log()))?.len(),
            })
        })
        .await
    }
}

impl Shared {
    fn engine_error(&self, op: &'static str) -> impl Fn(sled::Error) -> Error + use<> {
        let dir = self.layout.dir.clone();
        move |source| Error::Engine { op, dir: dir.clone(), source }
    }

    fn unreadable(&self, error: Unreadable) -> Error {
        match error {
            Unreadable::Engine(source) => self.engine_error("read")(source),
            Unreadable::Foreign(key) => Error::Damaged { dir: self.layout.dir.clone(), key },
        }
    }
}

/// The one thread that writes.
struct Writer {
    shared: Arc<Shared>,
    log: File,
    /// Whether there are changes since the last export.
    unexported: bool,
    /// When the first of those changes was made.
    changed: Option<Uptime>,
}

impl Writer {
    fn run(mut self, requests: &Receiver<Request>) {
        loop {
            let wait =
                self.changed.map_or(EXPORT_AFTER, |first| EXPORT_AFTER.saturating_sub(Uptime::now().since(first)));
            match requests.recv_timeout(wait) {
                Ok(Request::Commit(batch, done)) => {
                    let after = self.commit_group(requests, batch, done);
                    if let Some(request) = after
                        && !self.serve(request)
                    {
                        return;
                    }
                }
                Ok(request) => {
                    if !self.serve(request) {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    self.export_if_changed();
                    return;
                }
            }
            if self.changed.is_some_and(|first| Uptime::now().since(first) >= EXPORT_AFTER) {
                self.export_if_changed();
            }
        }
    }

    /// Takes a request that is no commit; `false` ends the writer.
    fn serve(&mut self, request: Request) -> bool {
        match request {
            Request::Commit(..) => true,
            Request::Export(done) => {
                drop(done.send(self.export()));
                true
            }
            Request::Close(done) => {
                let result = if self.unexported { self.export() } else { Ok(()) };
                drop(done.send(result));
                false
            }
        }
    }

    /// Applies `first` and what waits behind it, syncs once, then answers all. Gives back the request that ended the
    /// group when it was something else than a commit.
    fn commit_group(
        &mut self,
        requests: &Receiver<Request>,
        first: Batch,
        done: oneshot::Sender<Result<(), Error>>,
    ) -> Option<Request> {
        let mut waiting = vec![(first, done)];
        let mut after = None;
        while waiting.len() < GROUP {
            match requests.try_recv() {
                Ok(Request::Commit(batch, done)) => waiting.push((batch, done)),
                Ok(other) => {
                    after = Some(other);
                    break;
                }
                Err(_) => break,
            }
        }
        let result = self.apply(waiting.iter().map(|(batch, _)| batch));
        let count = waiting.len() as u64;
        match result {
            Ok(()) => {
                self.shared.commits.fetch_add(count, Ordering::AcqRel);
                self.unexported = true;
                self.changed.get_or_insert_with(Uptime::now);
                for (_, done) in waiting {
                    drop(done.send(Ok(())));
                }
            }
            Err(error) => {
                self.shared.failed.store(true, Ordering::Release);
                tracing::error!(error = &error as &dyn std::error::Error, "store: a commit failed");
                let dir = self.shared.layout.dir.clone();
                let mut error = Some(error);
                for (_, done) in waiting {
                    drop(done.send(Err(error.take().unwrap_or_else(|| Error::Failed { dir: dir.clone() }))));
                }
            }
        }
        after
    }

    fn apply<'a>(&self, batches: impl Iterator<Item = &'a Batch>) -> Result<(), Error> {
        // After a failed sync the kernel drops the dirty pages and reports success next time: nothing may follow.
        if self.shared.failed.load(Ordering::Acquire) {
            return Err(Error::Failed { dir: self.shared.layout.dir.clone() });
        }
        for batch in batches {
            let applied = catch_unwind(AssertUnwindSafe(|| {
                let batch = records::engine_batch(&self.shared.db, batch)?;
                let _applying = self.shared.applying.write();
                self.shared.db.apply_batch(batch)
            }));
            applied
                .map_err(|_panic| Error::Unopenable { dir: self.shared.layout.dir.clone() })?
                .map_err(self.shared.engine_error("write"))?;
        }
        self.make_durable()
    }

    fn make_durable(&self) -> Result<(), Error> {
        let flushed = catch_unwind(AssertUnwindSafe(|| self.shared.db.flush()));
        flushed
            .map_err(|_panic| Error::Unopenable { dir: self.shared.layout.dir.clone() })?
            .map_err(self.shared.engine_error("flush"))?;
        self.log.sync_data().map_err(file_error("sync", self.shared.layout.log()))?;
        self.shared.syncs.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn export_if_changed(&mut self) {
        if !self.unexported {
            return;
        }
        // The next try comes after the next change: a full disk must not turn this into a busy loop.
        self.changed = None;
        if let Err(error) = self.export() {
            tracing::warn!(error = &error as &dyn std::error::Error, "store: the export failed");
        }
    }

    fn export(&mut self) -> Result<(), Error> {
        let shared = &self.shared;
        // A record that is not ours is left out: it must not keep the others from being exported.
        let records = records::list(&shared.db, None).filter_map(|record| match record {
            Ok(record) => Some(Ok(record)),
            Err(Unreadable::Engine(error)) => Some(Err(shared.engine_error("read")(error))),
            Err(Unreadable::Foreign(_)) => None,
        });
        let records = records.collect::<Result<Vec<_>, Error>>()?;
        let path = shared.layout.export();
        export::write(&path, records.into_iter()).map_err(|source| Error::Export { path, source })?;
        self.unexported = false;
        self.changed = None;
        Ok(())
    }
}

/// Makes the directory and takes its lock, which ends with the process.
fn lock(layout: &Layout) -> Result<File, Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&layout.dir)
        .map_err(file_error("create", layout.dir.clone()))?;
    let path = layout.lock();
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(file_error("open", path.clone()))?;
    let give_up = Uptime::now() + LOCK_PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // A child between its fork and its exec still holds what its parent has closed.
            Err(TryLockError::WouldBlock) if Uptime::now() < give_up => std::thread::sleep(LOCK_POLL),
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { dir: layout.dir.clone() }),
            Err(TryLockError::Error(source)) => return Err(Error::File { op: "lock", path, source }),
        }
    }
}

/// Makes the names of new files durable: those in the engine's directory, and its own.
fn sync_names(layout: &Layout) -> Result<(), Error> {
    export::sync_parent(&layout.log()).map_err(file_error("sync", layout.database()))?;
    export::sync_parent(&layout.database()).map_err(file_error("sync", layout.dir.clone()))?;
    export::sync_parent(&layout.dir).map_err(file_error("sync the parent of", layout.dir.clone()))
}

fn file_error(op: &'static str, path: PathBuf) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::File { op, path, source }
}
