//! The cache: one download per asset however many wait, nothing served that is not whole.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::hash::Hash;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::fs;
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::images::asset::{Asset, AssetPath, SchematicId};
use crate::images::index::{Index, IndexError};
use crate::images::origin::{Origin, OriginError};
use crate::time::UnixTime;

/// Downloads that run side by side; more would only slow each other down.
const DOWNLOADS: usize = 4;
/// How long a download may stand still.
const STALL: Duration = Duration::from_secs(30);
/// The largest asset that is read into memory.
const MAX_READ: u64 = 1 << 20;
/// Where downloads lie until they are whole.
const PARTIAL: &str = ".partial";

/// The cache's bounds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Disk space for whole assets; the longest unused go first. Downloads under way come on top.
    pub max_bytes: u64,
    /// Tries per download, at least one.
    pub attempts: u32,
    /// The wait before the second try; it doubles for each further one.
    pub retry_after: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_bytes: 20 << 30, attempts: 3, retry_after: Duration::from_millis(500) }
    }
}

/// Why an asset or a schematic's ID can't be had. Cheap to clone: all who wait get the same one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The factory did not deliver.
    #[error("the image factory did not deliver {what}")]
    Origin {
        /// An asset or a schematic.
        what: String,
        /// Why.
        #[source]
        source: Arc<OriginError>,
    },
    /// The connection broke off inside the body.
    #[error("the download of {what} broke off after {have} octets")]
    BrokeOff {
        /// The asset.
        what: String,
        /// What had come.
        have: u64,
        /// Why.
        #[source]
        source: Arc<hyper::Error>,
    },
    /// Nothing came for 30 seconds.
    #[error("the download of {what} stood still after {have} octets")]
    Stalled {
        /// The asset.
        what: String,
        /// What had come.
        have: u64,
    },
    /// The body is not as long as its header said.
    #[error("the download of {what} has {have} octets, {want} were announced")]
    Length {
        /// The asset.
        what: String,
        /// What came.
        have: u64,
        /// What was announced.
        want: u64,
    },
    /// The asset alone is over the cache's limit, or too large to be read into memory.
    #[error("{what} has {size} octets, {limit} are allowed")]
    TooLarge {
        /// The asset.
        what: String,
        /// Its size.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// The disk.
    #[error("{} can't be written or read (is the disk full?)", path.display())]
    Disk {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The task that fetched it ended without a result: a fault of ours.
    #[error("the download was interrupted")]
    Interrupted,
}

impl Error {
    fn transient(&self) -> bool {
        match self {
            Self::Origin { source, .. } => source.transient(),
            Self::BrokeOff { .. } | Self::Stalled { .. } | Self::Length { .. } => true,
            Self::TooLarge { .. } | Self::Disk { .. } | Self::Index(_) | Self::Interrupted => false,
        }
    }
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> Error + '_ {
    |source| Error::Disk { path: path.to_owned(), source: Arc::new(source) }
}

/// What the index keeps of an asset, under `asset/<path>`. Postcard, its first field a format number.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    format: u8,
    size: u64,
    sha256: [u8; 32],
    fetched_at: UnixTime,
    /// A sequence number: greater is used later.
    used: u64,
}

const FORMAT: u8 = 1;

#[derive(Debug)]
struct Entry {
    record: Record,
    /// Whether `used` was written to the index by this process. Once is enough to survive restarts in about the right order.
    use_recorded: bool,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<AssetPath, Entry>,
    schematics: HashMap<[u8; 32], SchematicId>,
    known: HashSet<SchematicId>,
    sequence: u64,
}

struct Inner {
    directory: PathBuf,
    origin: Origin,
    index: Arc<dyn Index>,
    limits: Limits,
    state: Mutex<State>,
    assets: Flights<AssetPath, Asset>,
    schematics: Flights<[u8; 32], SchematicId>,
    downloads: Semaphore,
}

/// The image cache. Clones are the same cache.
#[derive(Clone)]
pub struct Cache(Arc<Inner>);

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("directory", &self.0.directory).finish_non_exhaustive()
    }
}

impl Cache {
    /// Opens the cache in `directory`, which is made when it is missing and belongs to the cache alone: whatever in it is not in
    /// the index is removed. Entries whose file is missing or of another size are dropped.
    ///
    /// # Errors
    ///
    /// [`Error::Disk`], [`Error::Index`].
    pub async fn open(directory: &Path, origin: Origin, index: Arc<dyn Index>, limits: Limits) -> Result<Self, Error> {
        let partial = directory.join(PARTIAL);
        match fs::remove_dir_all(&partial).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk(&partial)(error)),
            _ => {}
        }
        fs::create_dir_all(&partial).await.map_err(disk(&partial))?;
        let state = load(directory, index.as_ref()).await?;
        remove_strays(directory, &state).await?;
        let (octets, assets) = (total(&state), state.entries.len());
        info!(directory = %directory.display(), assets, octets, "image cache opened");
        Ok(Self(Arc::new(Inner {
            directory: directory.to_owned(),
            origin,
            index,
            limits,
            state: Mutex::new(state),
            assets: Flights::default(),
            schematics: Flights::default(),
            downloads: Semaphore::new(DOWNLOADS),
        })))
    }

    /// The ID of a schematic; the factory is asked once per content, ever.
    ///
    /// # Errors
    ///
    /// [`Error`]; the next call tries again.
    pub async fn schematic(&self, yaml: &str) -> Result<SchematicId, Error> {
        let digest: [u8; 32] = Sha256::digest(yaml.as_bytes()).into();
        if let Some(id) = self.0.state().schematics.get(&digest) {
            return Ok(id.clone());
        }
        let (inner, yaml) = (Arc::clone(&self.0), yaml.to_owned());
        self.0.schematics.join(digest, async move { inner.create_schematic(digest, &yaml).await }).await
    }

    /// An asset, downloaded first when it is not here. Everyone who asks meanwhile waits for the one download, which goes on
    /// when they give up.
    ///
    /// # Errors
    ///
    /// [`Error`]; the next call tries again. An asset that is here is served without the factory.
    pub async fn asset(&self, path: &AssetPath) -> Result<Asset, Error> {
        if let Some(asset) = self.0.hit(path).await? {
            return Ok(asset);
        }
        let (inner, wanted) = (Arc::clone(&self.0), path.clone());
        self.0.assets.join(path.clone(), async move { inner.download(&wanted).await }).await
    }

    /// A small asset's octets, such as a command line.
    ///
    /// # Errors
    ///
    /// As [`Self::asset`]; [`Error::TooLarge`] above 1 MiB.
    pub async fn read(&self, path: &AssetPath) -> Result<Bytes, Error> {
        let asset = self.asset(path).await?;
        if asset.size > MAX_READ {
            return Err(Error::TooLarge { what: path.to_string(), size: asset.size, limit: MAX_READ });
        }
        Ok(fs::read(&asset.path).await.map_err(disk(&asset.path))?.into())
    }

    /// Whether a stranger may ask for `path`: it is here, or its schematic is one that we registered. Keeps the network from
    /// making us download what we never boot.
    pub fn knows(&self, path: &AssetPath) -> bool {
        let state = self.0.state();
        state.entries.contains_key(path) || state.known.contains(path.schematic())
    }

    /// Octets of whole assets on disk.
    pub fn total_bytes(&self) -> u64 {
        total(&self.0.state())
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, path: &AssetPath) -> PathBuf {
        self.directory.join(path.to_string())
    }

    async fn create_schematic(&self, digest: [u8; 32], yaml: &str) -> Result<SchematicId, Error> {
        let what = || format!("schematic {}", hex(&digest[..6]));
        let mut attempt = 1;
        let id = loop {
            let tried = self.origin.create_schematic(yaml).await;
            match tried.map_err(|source| Error::Origin { what: what(), source: Arc::new(source) }) {
                Ok(id) => break id,
                Err(error) => self.retry_or(&mut attempt, error).await?,
            }
        };
        self.index.put(&format!("schematic/{}", hex(&digest)), id.as_str().as_bytes().to_vec()).await?;
        info!(schematic = %id, "schematic registered");
        let mut state = self.state();
        state.schematics.insert(digest, id.clone());
        state.known.insert(id.clone());
        Ok(id)
    }

    /// The asset when it is here and its file still is what the index says.
    async fn hit(&self, path: &AssetPath) -> Result<Option<Asset>, Error> {
        let (asset, record) = {
            let mut state = self.state();
            state.sequence += 1;
            let sequence = state.sequence;
            let Some(entry) = state.entries.get_mut(path) else { return Ok(None) };
            entry.record.used = sequence;
            let first_use = !std::mem::replace(&mut entry.use_recorded, true);
            let asset = Asset { path: self.file(path), size: entry.record.size, sha256: entry.record.sha256 };
            (asset, first_use.then(|| entry.record.clone()))
        };
        let whole = fs::metadata(&asset.path).await.is_ok_and(|file| file.is_file() && file.len() == asset.size);
        if !whole {
            warn!(asset = %path, "cached asset is gone or damaged, fetched again");
            self.state().entries.remove(path);
            self.index.remove(&key(path)).await?;
            return Ok(None);
        }
        if let Some(record) = record {
            self.index.put(&key(path), encode(&record)).await?;
        }
        Ok(Some(asset))
    }

    async fn download(&self, path: &AssetPath) -> Result<Asset, Error> {
        // Another flight may have landed between the caller's look and this one.
        if let Some(asset) = self.hit(path).await? {
            return Ok(asset);
        }
        let _turn = self.downloads.acquire().await.map_err(|_| Error::Interrupted)?;
        let mut attempt = 1;
        loop {
            match self.download_once(path).await {
                Ok(asset) => return Ok(asset),
                Err(error) => self.retry_or(&mut attempt, error).await?,
            }
        }
    }

    /// Waits before the next try, or gives `error` back when there is none.
    async fn retry_or(&self, attempt: &mut u32, error: Error) -> Result<(), Error> {
        if *attempt >= self.limits.attempts || !error.transient() {
            return Err(error);
        }
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        warn!(%error, cause, attempt, "image factory failed, tried again");
        let wait = self.limits.retry_after.saturating_mul(1 << (*attempt - 1).min(6));
        // A quarter more at random, so that boxes which lost their uplink together do not come back together.
        let jitter = f64::from(getrandom::u32().unwrap_or_default()) / f64::from(u32::MAX) / 4.0;
        tokio::time::sleep(wait + wait.mul_f64(jitter)).await;
        *attempt += 1;
        Ok(())
    }

    async fn download_once(&self, path: &AssetPath) -> Result<Asset, Error> {
        let what = path.to_string();
        info!(asset = %path, "asset download starts");
        let response = self
            .origin
            .fetch(path)
            .await
            .map_err(|source| Error::Origin { what: what.clone(), source: Arc::new(source) })?;
        let announced = hyper::body::Body::size_hint(response.body()).exact();
        if let Some(size) = announced {
            self.make_room(size, &what).await?;
        }
        // One flight per path, so the name is ours alone.
        let partial = self.directory.join(PARTIAL).join(what.replace('/', "_"));
        let received = self.receive(response.into_body(), announced, &partial, &what).await;
        if received.is_err() {
            // Best effort: opening the cache removes what is left.
            let _ = fs::remove_file(&partial).await;
        }
        let (size, sha256) = received?;
        self.make_room(size, &what).await?;
        let file = self.file(path);
        let parent = file.parent().unwrap_or(&self.directory);
        fs::create_dir_all(parent).await.map_err(disk(parent))?;
        fs::rename(&partial, &file).await.map_err(disk(&file))?;
        let directory = fs::File::open(parent).await.map_err(disk(parent))?;
        directory.sync_all().await.map_err(disk(parent))?;
        let record = {
            let mut state = self.state();
            state.sequence += 1;
            Record { format: FORMAT, size, sha256, fetched_at: UnixTime::now(), used: state.sequence }
        };
        self.index.put(&key(path), encode(&record)).await?;
        self.state().entries.insert(path.clone(), Entry { record, use_recorded: true });
        info!(asset = %path, octets = size, sha256 = hex(&sha256), "asset downloaded");
        Ok(Asset { path: file, size, sha256 })
    }

    /// Streams a body to `partial` and to the disk's platter; returns its size and digest.
    async fn receive(
        &self,
        mut body: hyper::body::Incoming,
        announced: Option<u64>,
        partial: &Path,
        what: &str,
    ) -> Result<(u64, [u8; 32]), Error> {
        let mut file = fs::File::create(partial).await.map_err(disk(partial))?;
        file.set_max_buf_size(256 << 10);
        let mut digest = Sha256::new();
        let mut have = 0;
        loop {
            let frame = timeout(STALL, body.frame()).await;
            let frame = frame.map_err(|_| Error::Stalled { what: what.to_owned(), have })?;
            let Some(frame) = frame else { break };
            let frame =
                frame.map_err(|source| Error::BrokeOff { what: what.to_owned(), have, source: Arc::new(source) })?;
            let Ok(data) = frame.into_data() else { continue };
            have += data.len() as u64;
            if have > self.limits.max_bytes {
                return Err(Error::TooLarge { what: what.to_owned(), size: have, limit: self.limits.max_bytes });
            }
            digest.update(&data);
            file.write_all(&data).await.map_err(disk(partial))?;
        }
        if announced.is_some_and(|want| want != have) {
            return Err(Error::Length { what: what.to_owned(), have, want: announced.unwrap_or_default() });
        }
        file.flush().await.map_err(disk(partial))?;
        file.sync_all().await.map_err(disk(partial))?;
        Ok((have, digest.finalize().into()))
    }

    /// Removes the longest unused assets until `size` more octets fit.
    async fn make_room(&self, size: u64, what: &str) -> Result<(), Error> {
        let limit = self.limits.max_bytes;
        if size > limit {
            return Err(Error::TooLarge { what: what.to_owned(), size, limit });
        }
        loop {
            let oldest = {
                let mut state = self.state();
                if total(&state) + size <= limit {
                    return Ok(());
                }
                let oldest =
                    state.entries.iter().min_by_key(|(_, entry)| entry.record.used).map(|(path, _)| path.clone());
                let Some(oldest) = oldest else { return Ok(()) };
                state.entries.remove(&oldest);
                oldest
            };
            info!(asset = %oldest, "asset evicted");
            self.index.remove(&key(&oldest)).await?;
            let file = self.file(&oldest);
            match fs::remove_file(&file).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(disk(&file)(error)),
                _ => {}
            }
        }
    }
}

fn total(state: &State) -> u64 {
    state.entries.values().map(|entry| entry.record.size).sum()
}

fn key(path: &AssetPath) -> String {
    format!("asset/{path}")
}

fn encode(record: &Record) -> Vec<u8> {
    postcard::to_allocvec(record).expect("a record of numbers has a postcard form")
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect()
}

/// Reads the index and drops what is not on disk as it says.
async fn load(directory: &Path, index: &dyn Index) -> Result<State, Error> {
    let mut state = State::default();
    for (key, value) in index.list("schematic/").await? {
        let digest = key.strip_prefix("schematic/").and_then(unhex);
        let id = String::from_utf8(value).ok().and_then(|text| text.parse::<SchematicId>().ok());
        match (digest, id) {
            (Some(digest), Some(id)) => {
                state.known.insert(id.clone());
                state.schematics.insert(digest, id);
            }
            _ => index.remove(&key).await?,
        }
    }
    for (key, value) in index.list("asset/").await? {
        let mut parts = key.split('/').skip(1);
        let path = match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(schematic), Some(version), Some(file), None) => AssetPath::parse(schematic, version, file).ok(),
            _ => None,
        };
        let record = postcard::from_bytes::<Record>(&value).ok().filter(|record| record.format == FORMAT);
        let found = match (path, record) {
            (Some(path), Some(record)) => {
                let file = fs::metadata(directory.join(path.to_string())).await;
                file.is_ok_and(|file| file.is_file() && file.len() == record.size).then_some((path, record))
            }
            _ => None,
        };
        match found {
            Some((path, record)) => {
                state.sequence = state.sequence.max(record.used);
                state.known.insert(path.schematic().clone());
                state.entries.insert(path, Entry { record, use_recorded: false });
            }
            None => {
                debug!(key, "index entry without its file dropped");
                index.remove(&key).await?;
            }
        }
    }
    Ok(state)
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut octets = [0; 32];
    for (index, octet) in octets.iter_mut().enumerate() {
        *octet = u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).ok()?;
    }
    Some(octets)
}

/// Removes files of the layout `<schematic>/<version>/<file>` that are in no entry: a crash came between file and index.
async fn remove_strays(directory: &Path, state: &State) -> Result<(), Error> {
    let kept: HashSet<PathBuf> = state.entries.keys().map(|path| directory.join(path.to_string())).collect();
    for schematic in children(directory).await? {
        let ours = schematic.file_name().and_then(|name| name.to_str()).is_some_and(|name| unhex(name).is_some());
        if !ours {
            continue;
        }
        for version in children(&schematic).await? {
            for file in children(&version).await? {
                if !kept.contains(&file) {
                    debug!(file = %file.display(), "stray file removed");
                    fs::remove_file(&file).await.map_err(disk(&file))?;
                }
            }
        }
    }
    Ok(())
}

/// What a directory holds; nothing when it is a file.
async fn children(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut entries = match fs::read_dir(directory).await {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(Vec::new()),
        Err(error) => return Err(disk(directory)(error)),
    };
    let mut children = Vec::new();
    while let Some(entry) = entries.next_entry().await.map_err(disk(directory))? {
        children.push(entry.path());
    }
    Ok(children)
}

/// One watch per key under way, for those who come later.
struct Flights<K, V>(Arc<Mutex<HashMap<K, Landing<V>>>>);

/// Where a flight's result appears: `None` until it lands.
struct Landing<V>(watch::Receiver<Option<Result<V, Error>>>);

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// Takes a flight off the board when it ends, by a panic too.
struct Departure<K: Eq + Hash, V>(Arc<Mutex<HashMap<K, Landing<V>>>>, K);

impl<K: Eq + Hash, V> Drop for Departure<K, V> {
    fn drop(&mut self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.1);
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The result of the flight to `key`; `work` starts one when there is none.
    ///
    /// The flight is a task of its own: it ends what it began when its first passenger leaves.
    async fn join(&self, key: K, work: impl Future<Output = Result<V, Error>> + Send + 'static) -> Result<V, Error> {
        let mut landing = {
            let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match board.get(&key) {
                Some(Landing(landing)) => landing.clone(),
                None => {
                    let (sender, landing) = watch::channel(None);
                    board.insert(key.clone(), Landing(landing.clone()));
                    let departure = Departure(Arc::clone(&self.0), key);
                    tokio::spawn(async move {
                        let result = work.await;
                        // Off the board first: who comes now must see the new state, not an old failure.
                        drop(departure);
                        let _ = sender.send(Some(result));
                    });
                    landing
                }
            }
        };
        let landed = landing.wait_for(Option::is_some).await.map_err(|_| Error::Interrupted)?;
        landed.clone().unwrap_or(Err(Error::Interrupted))
    }
}
