//! What Omni holds, in memory: several kinds, always whole sets, with news for whoever acts on it.
//!
//! Watches feed it. What we have just written is laid over it at once, so that nobody decides twice on the state before a
//! write of ours; an event older than that write is not allowed to undo it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::packed::{Age, Packed, Packing};
use super::watch::{Delivered, Watch};
use crate::resource::{Kind, Resource};
use crate::time::{UnixTime, Uptime};

/// A table of this many resources or fewer is not packed anew: there is nothing to be won.
const SMALL: usize = 64;

/// So many destroyed resources are remembered in each kind, against answers that come later than the event.
const MAX_GRAVES: usize = 1024;

/// The mirror. Clones are handles to the same contents.
#[derive(Clone, Debug)]
pub struct Mirror {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    watches: Vec<Watch>,
    /// One for each watch, in the same order. Locks are held for single operations, never across an await.
    tables: Vec<RwLock<Table>>,
    subscribers: Mutex<Vec<Weak<Queue>>>,
    synced: watch::Sender<bool>,
}

#[derive(Debug)]
struct Table {
    kind: Arc<Kind>,
    entries: BTreeMap<Arc<str>, Entry>,
    /// The last state of what was destroyed lately: the answer to a write of ours may be overtaken by the event that
    /// says that the resource is gone, as when our finalizer was the last.
    graves: VecDeque<(Arc<str>, Age)>,
    /// Counts bootstraps: a local write made during the current one may be missing from it.
    epoch: u64,
    bootstrapped: bool,
    connected: bool,
    /// When the contents were last known to be Omni's.
    confirmed: Option<Uptime>,
    /// When the preloaded contents were stored.
    stored: Option<UnixTime>,
    trouble: String,
    skipped: u64,
    /// How many resources came or went since they were last packed together.
    loose: usize,
}

#[derive(Debug)]
enum Entry {
    /// There, as Omni's events have it; or as we wrote it in `local`, an epoch, until an event confirms it.
    Present { resource: Packed, local: Option<u64> },
    /// We destroyed it in this epoch, and the event that says so is still to come.
    Forgotten { last: Age, local: u64 },
}

impl Entry {
    const fn resource(&self) -> Option<&Packed> {
        match self {
            Self::Present { resource, .. } => Some(resource),
            Self::Forgotten { .. } => None,
        }
    }
}

/// How far a view may be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freshness {
    /// It was Omni's this long ago; zero while the watch stands.
    Confirmed(Duration),
    /// It comes from the store, which wrote it at this time; Omni has not been heard since we started.
    Stored(UnixTime),
    /// Nothing is known.
    Unknown,
}

/// How one kind stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KindStatus {
    /// The kind.
    pub kind: Arc<Kind>,
    /// Whether its watch stands and is complete.
    pub connected: bool,
    /// Whether its contents have come from Omni at least once.
    pub bootstrapped: bool,
    /// How many resources there are.
    pub count: usize,
    /// How old the view is.
    pub freshness: Freshness,
    /// Why the watch does not stand; empty when it does.
    pub trouble: String,
    /// How many events were malformed and skipped.
    pub skipped: u64,
}

/// A resource that may have changed, appeared or gone: read it to know.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Change {
    /// Its kind.
    pub kind: Arc<Kind>,
    /// Its ID.
    pub id: Arc<str>,
}

impl Mirror {
    /// An empty mirror of what `watches` will bring, at most one a kind.
    pub fn new(watches: Vec<Watch>) -> Self {
        let table = |watch: &Watch| {
            RwLock::new(Table {
                kind: Arc::new(watch.kind.clone()),
                entries: BTreeMap::new(),
                graves: VecDeque::new(),
                epoch: 0,
                bootstrapped: false,
                connected: false,
                confirmed: None,
                stored: None,
                trouble: "not connected yet".to_owned(),
                skipped: 0,
                loose: 0,
            })
        };
        let tables = watches.iter().map(table).collect();
        let synced = watch::Sender::new(watches.is_empty());
        Self { shared: Arc::new(Shared { watches, tables, subscribers: Mutex::default(), synced }) }
    }

    /// What is mirrored.
    pub fn watches(&self) -> &[Watch] {
        &self.shared.watches
    }

    /// The resource `id` of `kind`; `None` when it is absent or the kind is not mirrored.
    pub fn get(&self, kind: &Kind, id: &str) -> Option<Resource> {
        let packed = self.read(kind, |table| table.entries.get(id).and_then(Entry::resource).cloned()).flatten()?;
        Some(packed.unpack(kind, id))
    }

    /// The IDs of `kind`, in order.
    pub fn ids(&self, kind: &Kind) -> Vec<Arc<str>> {
        let present = |(id, entry): (&Arc<str>, &Entry)| entry.resource().map(|_| Arc::clone(id));
        self.read(kind, |table| table.entries.iter().filter_map(present).collect()).unwrap_or_default()
    }

    /// All resources of `kind`, in the order of their IDs: one consistent set, decoded for the caller.
    pub fn all(&self, kind: &Kind) -> Vec<Resource> {
        let unpacked = |(id, entry): (&Arc<str>, &Entry)| entry.resource().map(|packed| packed.unpack(kind, id));
        self.read(kind, |table| table.entries.iter().filter_map(unpacked).collect()).unwrap_or_default()
    }

    /// Everything, for the store. It holds secrets where Omni's resources do: seal it.
    pub fn export(&self) -> Vec<Resource> {
        self.shared.watches.iter().flat_map(|watch| self.all(&watch.kind)).collect()
    }

    /// Fills kinds that Omni has not filled yet with what [`Self::export`] gave at `stored`.
    pub fn preload(&self, resources: impl IntoIterator<Item = Resource>, stored: UnixTime) {
        let mut by_kind: BTreeMap<Kind, Vec<Resource>> = BTreeMap::new();
        for resource in resources {
            by_kind.entry(resource.kind.clone()).or_default().push(resource);
        }
        // Of a kind that nothing was stored of there was nothing: that, too, is known as of then.
        for watch in self.watches() {
            let resources = by_kind.remove(&watch.kind).unwrap_or_default();
            self.write(&watch.kind, |table, changed| {
                if table.bootstrapped {
                    return;
                }
                table.stored = Some(stored);
                for resource in resources {
                    let id: Arc<str> = resource.id.as_str().into();
                    changed.push(Arc::clone(&id));
                    // What this process wrote itself is younger than any store.
                    if !table.entries.contains_key(&id) {
                        table.insert(id, Packed::of(&resource), None);
                    }
                }
            });
        }
    }

    /// Lays over what a write of ours returned, until the watch brings the same. An older state than is known is ignored.
    ///
    /// Call it at once after the write. Should it be destroyed by others while a bootstrap begins, it stays until the
    /// next write to it answers [`super::Error::NotFound`]: call [`Self::remove_local`] then.
    pub fn apply_local(&self, resource: Resource) {
        let kind = resource.kind.clone();
        self.write(&kind, |table, changed| {
            let known = match table.entries.get(resource.id.as_str()) {
                Some(Entry::Present { resource, .. }) => Some(resource.age()),
                Some(Entry::Forgotten { last, .. }) => Some(*last),
                None => None,
            };
            let buried = |(id, last): &(Arc<str>, Age)| **id == *resource.id && resource.created <= last.created;
            if known.is_none_or(|known| known < Age::of(&resource)) && !table.graves.iter().any(buried) {
                let id: Arc<str> = resource.id.as_str().into();
                changed.push(Arc::clone(&id));
                let local = Some(table.epoch);
                table.insert(id, Packed::of(&resource), local);
            }
        });
    }

    /// Takes away what we have destroyed, or what a write of ours found gone, before the watch says so.
    pub fn remove_local(&self, kind: &Kind, id: &str) {
        self.write(kind, |table, changed| {
            let epoch = table.epoch;
            if let Some((id, _)) = table.entries.get_key_value(id) {
                let id = Arc::clone(id);
                if let Some(entry) = table.entries.get_mut(&id)
                    && let Entry::Present { resource, .. } = entry
                {
                    *entry = Entry::Forgotten { last: resource.age(), local: epoch };
                    changed.push(id);
                }
            }
        });
    }

    /// News from now on, beginning with everything that is there.
    pub fn subscribe(&self) -> Changes {
        let queue = Arc::new(Queue::default());
        // Registered before the contents are read: what changes meanwhile is told twice rather than never.
        lock(&self.shared.subscribers).push(Arc::downgrade(&queue));
        for watch in &self.shared.watches {
            let present = self.read(&watch.kind, |table| {
                let change = |id: &Arc<str>| Change { kind: Arc::clone(&table.kind), id: Arc::clone(id) };
                table.entries.keys().map(change).collect::<Vec<Change>>()
            });
            queue.mark(present.unwrap_or_default());
        }
        Changes { queue }
    }

    /// Waits until every kind has come from Omni once.
    pub async fn synced(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.shared.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Whether every kind has come from Omni once.
    pub fn is_synced(&self) -> bool {
        *self.shared.synced.borrow()
    }

    /// How each kind stands at `now`, in the order of [`Self::watches`].
    pub fn kinds(&self, now: Uptime) -> Vec<KindStatus> {
        let status = |watch: &Watch| self.read(&watch.kind, |table| table.status(now));
        self.shared.watches.iter().filter_map(status).collect()
    }

    /// How old the oldest part of the view is at `now`.
    pub fn freshness(&self, now: Uptime) -> Freshness {
        // Every plan asks: nothing here may look at the resources.
        let freshness = |watch: &Watch| self.read(&watch.kind, |table| table.freshness(now));
        self.shared.watches.iter().filter_map(freshness).max().unwrap_or(Freshness::Unknown)
    }

    /// A bootstrap of `kind` begins: what we write from here on may be missing from it.
    pub(crate) fn bootstrapping(&self, kind: &Kind) {
        self.write(kind, |table, _| table.epoch += 1);
    }

    /// The watch of `kind` stands again and lost nothing.
    pub(crate) fn connected(&self, kind: &Kind, now: Uptime) {
        self.write(kind, |table, _| table.connect(now));
    }

    /// The watch of `kind` broke.
    pub(crate) fn disconnected(&self, kind: &Kind, trouble: String, now: Uptime) {
        self.write(kind, |table, _| {
            if table.connected {
                table.confirmed = Some(now);
                table.connected = false;
                tracing::warn!(kind = %table.kind, reason = trouble, "watch lost");
            } else if table.trouble != trouble {
                tracing::warn!(kind = %table.kind, reason = trouble, "watch cannot be opened");
            }
            table.trouble = trouble;
        });
    }

    /// An event of `kind` was malformed.
    pub(crate) fn skipped(&self, kind: &Kind) {
        self.write(kind, |table, _| table.skipped += 1);
    }

    /// Takes what the watch of `kind` delivered.
    pub(crate) fn deliver(&self, kind: &Kind, delivered: Delivered, now: Uptime) {
        let delivered = match delivered {
            Delivered::Replace(contents) => {
                let shared = contents.into_iter().map(|(id, packed)| (self.known_id(kind, id), packed));
                Delivered::Replace(shared.collect())
            }
            other => other,
        };
        let replaced = matches!(delivered, Delivered::Replace(_));
        self.write(kind, |table, changed| match delivered {
            Delivered::Nothing | Delivered::Relist(_) => {}
            Delivered::Replace(contents) => {
                table.replace(contents, changed);
                table.bootstrapped = true;
                table.connect(now);
            }
            Delivered::Put(resource) => table.put(&resource, changed),
            Delivered::Remove(resource) => table.remove(&resource, changed),
        });
        if replaced && self.kinds(now).iter().all(|status| status.bootstrapped) {
            self.shared.synced.send_if_modified(|synced| !std::mem::replace(synced, true));
        }
    }

    /// `id` as another kind's table holds it: nearly all kinds are about the same machines, and need not spell each anew.
    fn known_id(&self, kind: &Kind, id: Arc<str>) -> Arc<str> {
        let others = self.watches().iter().filter(|watch| watch.kind != *kind);
        let held = |table: &Table| table.entries.get_key_value(&id).map(|(known, _)| Arc::clone(known));
        let known = others.filter_map(|watch| self.read(&watch.kind, held).flatten()).next();
        known.unwrap_or(id)
    }

    fn table(&self, kind: &Kind) -> Option<&RwLock<Table>> {
        let index = self.shared.watches.iter().position(|watch| watch.kind == *kind)?;
        self.shared.tables.get(index)
    }

    fn read<T>(&self, kind: &Kind, read: impl FnOnce(&Table) -> T) -> Option<T> {
        // A writer that panicked left whole entries behind: each change is one insertion or removal.
        Some(read(&self.table(kind)?.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Lets `write` change the table of `kind`, then tells the subscribers what changed. Other kinds are ignored.
    fn write(&self, kind: &Kind, write: impl FnOnce(&mut Table, &mut Vec<Arc<str>>)) {
        let Some(table) = self.table(kind) else { return };
        let mut changed = Vec::new();
        let kind = {
            let mut table = table.write().unwrap_or_else(PoisonError::into_inner);
            write(&mut table, &mut changed);
            table.pack();
            Arc::clone(&table.kind)
        };
        if changed.is_empty() {
            return;
        }
        lock(&self.shared.subscribers).retain(|subscriber| {
            let Some(queue) = subscriber.upgrade() else { return false };
            queue.mark(changed.iter().map(|id| Change { kind: Arc::clone(&kind), id: Arc::clone(id) }));
            true
        });
    }
}

impl Table {
    fn connect(&mut self, now: Uptime) {
        if !self.connected {
            tracing::info!(kind = %self.kind, count = self.entries.len(), "watch stands");
        }
        self.connected = true;
        self.confirmed = Some(now);
        self.trouble.clear();
    }

    fn freshness(&self, now: Uptime) -> Freshness {
        match (self.connected, self.confirmed, self.stored) {
            (true, ..) => Freshness::Confirmed(Duration::ZERO),
            (false, Some(confirmed), _) => Freshness::Confirmed(now.since(confirmed)),
            (false, None, Some(stored)) => Freshness::Stored(stored),
            (false, None, None) => Freshness::Unknown,
        }
    }

    fn status(&self, now: Uptime) -> KindStatus {
        KindStatus {
            kind: Arc::clone(&self.kind),
            connected: self.connected,
            bootstrapped: self.bootstrapped,
            count: self.entries.values().filter(|entry| entry.resource().is_some()).count(),
            freshness: self.freshness(now),
            trouble: self.trouble.clone(),
            skipped: self.skipped,
        }
    }

    /// Packs the resources together once more, when half of them came one by one: each of those has an allocation of its own,
    /// and what they replaced still has its place among the others.
    fn pack(&mut self) {
        if self.loose <= SMALL.max(self.entries.len() / 2) {
            return;
        }
        self.loose = 0;
        let anew = Packing::anew(self.entries.values().filter_map(Entry::resource));
        let present = self.entries.values_mut().filter_map(|entry| match entry {
            Entry::Present { resource, .. } => Some(resource),
            Entry::Forgotten { .. } => None,
        });
        for (resource, anew) in present.zip(anew) {
            *resource = anew;
        }
    }

    /// Puts a resource that came by itself.
    fn insert(&mut self, id: Arc<str>, resource: Packed, local: Option<u64>) {
        self.loose += 1;
        self.entries.insert(id, Entry::Present { resource, local });
    }

    /// A whole new set. Of the old one only local writes of this epoch survive, where the set is older than they are.
    fn replace(&mut self, contents: BTreeMap<Arc<str>, Packed>, changed: &mut Vec<Arc<str>>) {
        // Collected from a sorted sequence, the map's nodes are full; by insertions they would be half empty.
        let present = |(id, resource)| (id, Entry::Present { resource, local: None });
        let mut next: BTreeMap<Arc<str>, Entry> = contents.into_iter().map(present).collect();
        for (id, old) in std::mem::take(&mut self.entries) {
            let known = next.get(&id).and_then(Entry::resource).map(Packed::age);
            let survives = match &old {
                Entry::Present { resource, local: Some(epoch) } => {
                    *epoch == self.epoch && known.is_none_or(|known| known < resource.age())
                }
                Entry::Forgotten { last, local } => {
                    *local == self.epoch && known.is_some_and(|known| known.created <= last.created)
                }
                Entry::Present { local: None, .. } => false,
            };
            if survives {
                next.insert(id, old);
            } else if next.get(&id).and_then(Entry::resource) == old.resource() {
                // Unchanged: nobody is told below.
                self.entries.insert(id, old);
            } else {
                if let (Some(gone), false) = (old.resource(), next.contains_key(&id)) {
                    self.bury(&id, gone.age());
                }
                changed.push(id);
            }
        }
        let unchanged = std::mem::take(&mut self.entries);
        let fresh = |(id, entry): &(&Arc<str>, &Entry)| {
            matches!(entry, Entry::Present { local: None, .. }) && !unchanged.contains_key(*id)
        };
        changed.extend(next.iter().filter(fresh).map(|(id, _)| Arc::clone(id)));
        self.entries = next;
        self.loose = 0;
    }

    fn put(&mut self, resource: &Resource, changed: &mut Vec<Arc<str>>) {
        let age = Age::of(resource);
        let outdated = match self.entries.get(resource.id.as_str()) {
            Some(Entry::Present { resource: known, local: Some(_) }) => age < known.age(),
            // A destroyed incarnation does not come back, whatever its last events say.
            Some(Entry::Forgotten { last, .. }) => age.created <= last.created,
            // Events are in order among themselves, whatever Omni's clock did between two incarnations.
            Some(Entry::Present { local: None, .. }) | None => false,
        };
        if outdated {
            return;
        }
        let id: Arc<str> = resource.id.as_str().into();
        // It may be back because its labels match again.
        self.graves.retain(|(buried, _)| *buried != id);
        let known = self.entries.get(&id).and_then(Entry::resource);
        let packed = Packed::of(resource);
        if known.is_none_or(|known| *known != packed) {
            changed.push(Arc::clone(&id));
        }
        self.insert(id, packed, None);
    }

    fn remove(&mut self, resource: &Resource, changed: &mut Vec<Arc<str>>) {
        let id = resource.id.as_str();
        match self.entries.get(id) {
            // The event is about a state before our write; the write's own event is still to come.
            Some(Entry::Present { resource: known, local: Some(_) }) if Age::of(resource) < known.age() => {}
            Some(Entry::Present { .. }) => {
                if let Some((id, _)) = self.entries.remove_entry(id) {
                    self.bury(&id, Age::of(resource));
                    changed.push(id);
                }
            }
            Some(Entry::Forgotten { last, .. }) => {
                if resource.created >= last.created
                    && let Some((id, _)) = self.entries.remove_entry(id)
                {
                    self.bury(&id, Age::of(resource));
                }
            }
            None => self.bury(&id.into(), Age::of(resource)),
        }
    }

    fn bury(&mut self, id: &Arc<str>, last: Age) {
        if self.graves.len() == MAX_GRAVES {
            self.graves.pop_front();
        }
        self.graves.push_back((Arc::clone(id), last));
        self.loose += 1;
    }
}

/// News for one subscriber: what changed since it last asked, each once. Nothing is lost, however slow it is.
#[derive(Debug)]
pub struct Changes {
    queue: Arc<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    dirty: Mutex<BTreeSet<Change>>,
    wake: Notify,
}

impl Queue {
    fn mark(&self, changes: impl IntoIterator<Item = Change>) {
        lock(&self.dirty).extend(changes);
        self.wake.notify_one();
    }
}

impl Changes {
    /// Waits for news and takes all of it; never empty. Cancel-safe: news that nobody took stays.
    pub async fn next(&mut self) -> BTreeSet<Change> {
        loop {
            let taken = self.take();
            if !taken.is_empty() {
                return taken;
            }
            self.queue.wake.notified().await;
        }
    }

    /// Takes the news there is, without waiting.
    pub fn take(&mut self) -> BTreeSet<Change> {
        std::mem::take(&mut *lock(&self.queue.dirty))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whoever panicked while holding it had a whole set in it all the time.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "mirror_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "mirror_soak_tests.rs"]
mod soak;
