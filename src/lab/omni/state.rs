//! The COSI state in memory: collections by kind, and watches that wait for them.
//!
//! Edge: it reads the wall clock and wakes tasks. Writers never wait for a watcher: a watch is a position in the bounded
//! history of its kind, so it gets every change in order, or learns that it fell too far behind.
//!
//! Source: contract omni-wire.md section 3.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::collection::{Change, Collection, Overrun, Refused, Stored};
use crate::resource::{Kind, NAMESPACE_INFRA_PROVIDER_EPHEMERAL, Phase, Resource};
use crate::time::UnixTime;

/// Changes that each kind's history holds.
const HISTORY: usize = 8192;

/// The whole state; clones share it.
#[derive(Clone, Debug)]
pub struct State(Arc<Mutex<Core>>);

#[derive(Debug)]
struct Core {
    /// Changes with every restart, so that older bookmarks are refused.
    cookie: [u8; 8],
    kinds: HashMap<Kind, Shelf>,
    capacity: usize,
}

/// A collection and the bell that rings after each of its changes.
#[derive(Debug)]
struct Shelf {
    collection: Collection,
    bell: watch::Sender<()>,
}

/// Where a watch begins.
#[derive(Clone, Copy, Debug)]
pub enum From<'a> {
    /// With what changes from now on.
    Now,
    /// After the event that carried this bookmark.
    Bookmark(&'a [u8]),
    /// With the last so many events.
    Tail(u64),
}

/// The bookmark is of another process, or too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid bookmark")]
pub struct InvalidBookmark;

impl Default for State {
    fn default() -> Self {
        Self::with_history(HISTORY)
    }
}

impl State {
    /// An empty state whose kinds remember `capacity` changes each.
    pub fn with_history(capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(Core { cookie: cookie(), kinds: HashMap::new(), capacity })))
    }

    /// The resource `id` of `kind`.
    ///
    /// # Errors
    ///
    /// [`Refused::NotFound`].
    pub fn get(&self, kind: &Kind, id: &str) -> Result<Arc<Stored>, Refused> {
        self.lock().shelf(kind).collection.get(id)
    }

    /// Every resource of `kind`, ordered by ID.
    pub fn list(&self, kind: &Kind) -> Vec<Arc<Stored>> {
        self.lock().shelf(kind).collection.list().cloned().collect()
    }

    /// Stores a new resource; see [`Collection::create`].
    ///
    /// # Errors
    ///
    /// As [`Collection::create`].
    pub fn create(&self, resource: impl Into<Stored>, owner: &str) -> Result<Arc<Stored>, Refused> {
        let resource = resource.into();
        let kind = resource.kind.clone();
        self.write(&kind, |collection| collection.create(UnixTime::now(), resource, owner))
    }

    /// Replaces a resource; see [`Collection::update`].
    ///
    /// # Errors
    ///
    /// As [`Collection::update`].
    pub fn update(
        &self,
        resource: impl Into<Stored>,
        owner: &str,
        expected: Option<Phase>,
    ) -> Result<Arc<Stored>, Refused> {
        let resource = resource.into();
        let kind = resource.kind.clone();
        self.write(&kind, |collection| collection.update(UnixTime::now(), resource, owner, expected))
    }

    /// Changes a stored resource in one step, as its owner, in any phase; writes nothing when `change` changed nothing.
    ///
    /// # Errors
    ///
    /// [`Refused::NotFound`].
    pub fn modify(&self, kind: &Kind, id: &str, change: impl FnOnce(&mut Resource)) -> Result<Arc<Stored>, Refused> {
        self.write(kind, |collection| {
            let stored = collection.get(id)?;
            let mut resource = stored.resource.clone();
            change(&mut resource);
            if resource == stored.resource {
                return Ok(stored);
            }
            let yaml = if resource.spec == stored.spec { Arc::clone(&stored.yaml) } else { Arc::default() };
            let resource = Stored { resource, yaml };
            collection.update(UnixTime::now(), resource, &stored.owner, None)
        })
    }

    /// [`Self::modify`], after creating the resource from `new` if there is none.
    ///
    /// # Errors
    ///
    /// As [`Collection::create`].
    pub fn put(&self, new: Resource, change: impl FnOnce(&mut Resource)) -> Result<Arc<Stored>, Refused> {
        match self.modify(&new.kind, &new.id, change) {
            Err(Refused::NotFound(_)) => {
                let owner = new.owner.clone();
                self.create(new, &owner)
            }
            done => done,
        }
    }

    /// Marks a resource as tearing down; see [`Collection::teardown`].
    ///
    /// # Errors
    ///
    /// As [`Collection::teardown`].
    pub fn teardown(&self, kind: &Kind, id: &str, owner: &str) -> Result<Arc<Stored>, Refused> {
        self.write(kind, |collection| collection.teardown(UnixTime::now(), id, owner))
    }

    /// Removes a resource; see [`Collection::destroy`].
    ///
    /// # Errors
    ///
    /// As [`Collection::destroy`].
    pub fn destroy(&self, kind: &Kind, id: &str, owner: &str) -> Result<Arc<Stored>, Refused> {
        self.write(kind, |collection| collection.destroy(id, owner))
    }

    /// What there is now, and a watch of everything from `from` on; nothing falls between the two when `from` is
    /// [`From::Now`].
    ///
    /// # Errors
    ///
    /// [`InvalidBookmark`].
    pub fn watch(&self, kind: &Kind, from: From<'_>) -> Result<(Vec<Arc<Stored>>, Watch), InvalidBookmark> {
        let mut core = self.lock();
        let own = core.cookie;
        let shelf = core.shelf(kind);
        let latest = shelf.collection.latest();
        let position = match from {
            From::Now => latest,
            From::Tail(events) => (0..=events)
                .rev()
                .filter_map(|back| latest.checked_sub(back))
                .find(|position| shelf.collection.after(*position).is_ok())
                .unwrap_or(latest),
            From::Bookmark(bookmark) => {
                let (cookie, position) = bookmark.split_at_checked(8).ok_or(InvalidBookmark)?;
                let position = u64::from_be_bytes(position.try_into().map_err(|_| InvalidBookmark)?);
                if cookie != own || position > latest || shelf.collection.after(position).is_err() {
                    return Err(InvalidBookmark);
                }
                position
            }
        };
        let snapshot = shelf.collection.list().cloned().collect();
        let bell = shelf.bell.subscribe();
        Ok((snapshot, Watch { state: self.clone(), kind: kind.clone(), position, cookie: own, bell }))
    }

    /// Makes every watch of every kind find itself overrun: clients see an ERRORED event, and bookmarks are too old.
    pub fn overrun(&self) {
        let mut core = self.lock();
        for shelf in core.kinds.values_mut() {
            shelf.collection.overrun();
            shelf.bell.send_replace(());
        }
    }

    /// Makes every bookmark that was handed out invalid; watches that stand go on.
    pub fn invalidate_bookmarks(&self) {
        self.lock().cookie = cookie();
    }

    /// What a restart of Omni does to its state: bookmarks become invalid, and provider health is lost.
    pub fn restart(&self) {
        let mut core = self.lock();
        core.cookie = cookie();
        for (_, shelf) in core.kinds.iter_mut().filter(|(kind, _)| kind.namespace == NAMESPACE_INFRA_PROVIDER_EPHEMERAL)
        {
            shelf.collection.forget();
            shelf.bell.send_replace(());
        }
    }

    /// Rings after every change of one of these kinds.
    pub fn bells(&self, kinds: impl IntoIterator<Item = Kind>) -> Bells {
        let mut core = self.lock();
        Bells(kinds.into_iter().map(|kind| core.shelf(&kind).bell.subscribe()).collect())
    }

    fn write<T>(&self, kind: &Kind, write: impl FnOnce(&mut Collection) -> Result<T, Refused>) -> Result<T, Refused> {
        let mut core = self.lock();
        let shelf = core.shelf(kind);
        let before = shelf.collection.latest();
        let done = write(&mut shelf.collection);
        if shelf.collection.latest() != before {
            shelf.bell.send_replace(());
        }
        done
    }

    fn lock(&self) -> MutexGuard<'_, Core> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    fn shelf(&mut self, kind: &Kind) -> &mut Shelf {
        // Two look-ups, since the entry API would need an owned key for every read.
        if !self.kinds.contains_key(kind) {
            let collection = Collection::new(kind.clone(), self.capacity);
            self.kinds.insert(kind.clone(), Shelf { collection, bell: watch::Sender::new(()) });
        }
        self.kinds.get_mut(kind).expect("inserted above")
    }
}

/// What rings after changes of several kinds.
#[derive(Debug)]
pub struct Bells(Vec<watch::Receiver<()>>);

impl Bells {
    /// Waits until one of the kinds changed since the last time. Cancel-safe: a ring that is not heard now is heard next
    /// time.
    pub async fn rung(&mut self) {
        let bells = self.0.iter_mut().map(|bell| Box::pin(bell.changed()));
        // An error means that the state is gone; who waits ends with it.
        if futures_util::future::select_all(bells).await.0.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// A position in the history of one kind.
#[derive(Debug)]
pub struct Watch {
    state: State,
    kind: Kind,
    position: u64,
    cookie: [u8; 8],
    bell: watch::Receiver<()>,
}

impl Watch {
    /// The changes since the last call, oldest first, at least one; waits for it if need be. Cancel-safe.
    ///
    /// # Errors
    ///
    /// [`Overrun`] when changes were lost; the watch is of no more use then.
    pub async fn next(&mut self) -> Result<Vec<Arc<Change>>, Overrun> {
        loop {
            // The bell is marked as heard before the history is read, so that no ring is lost in between.
            self.bell.borrow_and_update();
            let changes: Vec<_> = {
                let mut core = self.state.lock();
                core.shelf(&self.kind).collection.after(self.position)?.cloned().collect()
            };
            if let Some(last) = changes.last() {
                self.position = last.position;
                return Ok(changes);
            }
            if self.bell.changed().await.is_err() {
                // The state outlives its watches, since each holds it; a kind is never removed.
                std::future::pending::<()>().await;
            }
        }
    }

    /// The bookmark of the place where this watch began, or of the last change that it returned.
    pub fn bookmark(&self) -> Vec<u8> {
        self.bookmark_at(self.position)
    }

    /// The bookmark of one change: the process's cookie, and the position, big-endian.
    pub fn bookmark_at(&self, position: u64) -> Vec<u8> {
        [self.cookie, position.to_be_bytes()].concat()
    }
}

fn cookie() -> [u8; 8] {
    super::random()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::omni::collection::What;

    fn fresh(id: &str) -> Resource {
        Resource::new(Kind::omni("InfraMachines"), id, &crate::proto::specs::InfraProviderSpec {})
    }

    #[tokio::test]
    async fn a_watch_sees_every_change_after_its_snapshot() {
        let state = State::with_history(16);
        let kind = Kind::omni("InfraMachines");
        state.create(fresh("a"), "").unwrap();
        let (snapshot, mut watch) = state.watch(&kind, From::Now).unwrap();
        assert_eq!(snapshot.len(), 1);
        state.create(fresh("b"), "").unwrap();
        state.destroy(&kind, "a", "").unwrap();
        let changes = watch.next().await.unwrap();
        assert_eq!(
            changes.iter().map(|change| change.what.clone()).collect::<Vec<_>>(),
            [What::Created, What::Destroyed]
        );
    }

    #[tokio::test]
    async fn a_watch_resumes_after_its_bookmark_until_the_process_restarts() {
        let state = State::with_history(16);
        let kind = Kind::omni("InfraMachines");
        let (_, watch) = state.watch(&kind, From::Now).unwrap();
        let start = watch.bookmark();
        assert_eq!(start.len(), 16);
        state.create(fresh("a"), "").unwrap();
        let (_, mut resumed) = state.watch(&kind, From::Bookmark(&start)).unwrap();
        assert_eq!(resumed.next().await.unwrap()[0].resource.id, "a");
        for wrong in [&b""[..], &[0; 16], &start[..15], &[start.as_slice(), &[0]].concat()] {
            assert!(state.watch(&kind, From::Bookmark(wrong)).is_err());
        }
        let (_, mut tail) = state.watch(&kind, From::Tail(9)).unwrap();
        assert_eq!(tail.next().await.unwrap().len(), 1);
        state.restart();
        assert!(state.watch(&kind, From::Bookmark(&start)).is_err());
    }

    #[tokio::test]
    async fn a_watcher_that_falls_behind_is_told_and_writers_do_not_wait() {
        let state = State::with_history(4);
        let (_, mut watch) = state.watch(&Kind::omni("InfraMachines"), From::Now).unwrap();
        for id in 0..9 {
            state.create(fresh(&id.to_string()), "").unwrap();
        }
        assert!(watch.next().await.is_err());
    }

    #[test]
    fn a_change_that_changes_nothing_is_not_written() {
        let state = State::default();
        let kind = Kind::omni("InfraMachines");
        state.create(fresh("a"), "omni").unwrap();
        assert_eq!(state.modify(&kind, "a", |_| ()).unwrap().version, Some(1));
        let touched = state.modify(&kind, "a", |resource| drop(resource.labels.insert("x".into(), "y".into())));
        assert_eq!(touched.unwrap().version, Some(2));
    }
}
