//! The resources of one kind: versions, owners, phases, finalizers, and the history that watchers read.
//!
//! Pure: the clock is an argument. Source: contract omni-wire.md sections 3.3, 3.4 and 3.6.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::resource::{Kind, Phase, Resource};
use crate::time::UnixTime;

/// Why a resource could not be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no such resource.
    #[error("resource {0} doesn't exist")]
    NotFound(Name),
    /// It exists already.
    #[error("resource {0} already exists")]
    AlreadyExists(Name),
    /// The writer read another version than the stored one.
    #[error("resource {name} update conflict: expected version \"{expected}\", actual version \"{actual}\"")]
    Version {
        /// Which resource.
        name: Name,
        /// The version that the writer had read.
        expected: String,
        /// The stored version.
        actual: u64,
    },
    /// Somebody else owns it.
    #[error("resource {name} is owned by \"{owner}\"")]
    Owner {
        /// Which resource.
        name: Name,
        /// The stored owner.
        owner: String,
    },
    /// A new resource names another owner than the call.
    #[error("resource {name} has owner \"{metadata}\" in its metadata, and \"{options}\" in the call's options")]
    OwnerOfNew {
        /// Which resource.
        name: Name,
        /// `metadata.owner`.
        metadata: String,
        /// `options.owner`.
        options: String,
    },
    /// It is in another phase than the writer expects.
    #[error("resource {name} is not in phase {expected}")]
    Phase {
        /// Which resource.
        name: Name,
        /// The phase that the writer expects.
        expected: &'static str,
    },
    /// Somebody still holds it.
    #[error("resource {name} has pending finalizers {finalizers:?}")]
    Finalizers {
        /// Which resource.
        name: Name,
        /// Who holds it.
        finalizers: Vec<String>,
    },
}

/// A resource's full name, as the error texts print it: `Type(namespace/id)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Namespace and type.
    pub kind: Kind,
    /// ID.
    pub id: String,
}

impl Name {
    /// The name of `id` in `kind`.
    pub fn new(kind: &Kind, id: &str) -> Self {
        Self { kind: kind.clone(), id: id.to_owned() }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}({}/{})", self.kind.r#type, self.kind.namespace, self.id)
    }
}

/// A resource as it is stored, with the human view of its spec that its writer sent: of a type that Omni does not know, it
/// shows that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The resource.
    pub resource: Resource,
    /// `yaml_spec`, as received.
    pub yaml: Arc<str>,
}

impl std::ops::Deref for Stored {
    type Target = Resource;

    fn deref(&self) -> &Resource {
        &self.resource
    }
}

impl From<Resource> for Stored {
    fn from(resource: Resource) -> Self {
        Self { resource, yaml: Arc::default() }
    }
}

/// What became of one resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// It is new.
    Created,
    /// It replaced this one.
    Updated(Arc<Stored>),
    /// It is gone; the change carries its last state.
    Destroyed,
}

/// One entry of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its place in the kind's history, from 1, without gaps.
    pub position: u64,
    /// What happened.
    pub what: What,
    /// The resource after it, or the last state of a destroyed one.
    pub resource: Arc<Stored>,
}

/// A watcher asks for changes that the bounded history no longer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("buffer overrun: the history starts at {oldest}, the watcher is at {wanted}")]
pub struct Overrun {
    /// The oldest position still held.
    pub oldest: u64,
    /// The position that was asked for.
    pub wanted: u64,
}

/// The resources of one kind and their recent history.
#[derive(Debug)]
pub struct Collection {
    kind: Kind,
    resources: BTreeMap<String, Arc<Stored>>,
    history: VecDeque<Arc<Change>>,
    capacity: usize,
    /// Position of the next change.
    next: u64,
}

impl Collection {
    /// An empty collection whose history holds `capacity` changes, at least one.
    pub fn new(kind: Kind, capacity: usize) -> Self {
        Self { kind, resources: BTreeMap::new(), history: VecDeque::new(), capacity: capacity.max(1), next: 1 }
    }

    /// The resource called `id`.
    ///
    /// # Errors
    ///
    /// [`Refused::NotFound`].
    pub fn get(&self, id: &str) -> Result<Arc<Stored>, Refused> {
        self.resources.get(id).cloned().ok_or_else(|| Refused::NotFound(self.name(id)))
    }

    /// Every resource, ordered by ID.
    pub fn list(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.resources.values()
    }

    /// Stores a new resource as version 1, created `now`; its `updated` stays what the writer sent, if it sent one.
    ///
    /// # Errors
    ///
    /// [`Refused::AlreadyExists`], or [`Refused::OwnerOfNew`] when its metadata name another owner than `owner`.
    pub fn create(&mut self, now: UnixTime, resource: impl Into<Stored>, owner: &str) -> Result<Arc<Stored>, Refused> {
        let Stored { mut resource, yaml } = resource.into();
        let name = self.name(&resource.id);
        if !resource.owner.is_empty() && resource.owner != owner {
            return Err(Refused::OwnerOfNew { name, metadata: resource.owner, options: owner.to_owned() });
        }
        if self.resources.contains_key(&resource.id) {
            return Err(Refused::AlreadyExists(name));
        }
        owner.clone_into(&mut resource.owner);
        resource.version = Some(1);
        resource.created = now;
        if resource.updated == UnixTime::default() {
            resource.updated = now;
        }
        let resource = Arc::new(Stored { resource, yaml });
        self.resources.insert(resource.id.clone(), Arc::clone(&resource));
        self.record(What::Created, Arc::clone(&resource));
        Ok(resource)
    }

    /// Replaces a resource; the version grows by one, `created` stays.
    ///
    /// # Errors
    ///
    /// In this order: [`Refused::NotFound`]; [`Refused::Owner`]; [`Refused::Version`]; [`Refused::Phase`] when
    /// `expected` is given and is not the stored phase.
    pub fn update(
        &mut self,
        now: UnixTime,
        resource: impl Into<Stored>,
        owner: &str,
        expected: Option<Phase>,
    ) -> Result<Arc<Stored>, Refused> {
        let Stored { mut resource, yaml } = resource.into();
        let stored = self.owned(&resource.id, owner)?;
        let actual = stored.version.unwrap_or_default();
        if resource.version != Some(actual) {
            let expected = resource.version.map_or_else(|| "undefined".to_owned(), |version| version.to_string());
            return Err(Refused::Version { name: self.name(&resource.id), expected, actual });
        }
        if let Some(expected) = expected
            && stored.phase != expected
        {
            return Err(Refused::Phase { name: self.name(&resource.id), expected: expected.as_str() });
        }
        resource.version = Some(actual + 1);
        resource.created = stored.created;
        resource.updated = now;
        let resource = Arc::new(Stored { resource, yaml });
        self.resources.insert(resource.id.clone(), Arc::clone(&resource));
        self.record(What::Updated(stored), Arc::clone(&resource));
        Ok(resource)
    }

    /// Marks a resource as tearing down; idempotent.
    ///
    /// # Errors
    ///
    /// [`Refused::NotFound`], [`Refused::Owner`].
    pub fn teardown(&mut self, now: UnixTime, id: &str, owner: &str) -> Result<Arc<Stored>, Refused> {
        let stored = self.owned(id, owner)?;
        if stored.phase == Phase::TearingDown {
            return Ok(stored);
        }
        let mut resource = (*stored).clone();
        resource.resource.phase = Phase::TearingDown;
        self.update(now, resource, owner, None)
    }

    /// Removes a resource that nobody holds, whatever its phase; returns its last state.
    ///
    /// # Errors
    ///
    /// [`Refused::NotFound`], [`Refused::Owner`], [`Refused::Finalizers`].
    pub fn destroy(&mut self, id: &str, owner: &str) -> Result<Arc<Stored>, Refused> {
        let stored = self.owned(id, owner)?;
        if !stored.finalizers.is_empty() {
            let finalizers = stored.finalizers.iter().cloned().collect();
            return Err(Refused::Finalizers { name: self.name(id), finalizers });
        }
        self.resources.remove(id);
        self.record(What::Destroyed, Arc::clone(&stored));
        Ok(stored)
    }

    /// Position of the latest change; 0 before the first.
    pub fn latest(&self) -> u64 {
        self.next - 1
    }

    /// The changes after `position`, oldest first.
    ///
    /// # Errors
    ///
    /// [`Overrun`] when the history no longer, or not yet, holds what follows `position`.
    pub fn after(&self, position: u64) -> Result<impl Iterator<Item = &Arc<Change>>, Overrun> {
        let oldest = self.next - self.history.len() as u64;
        if position + 1 < oldest || position > self.latest() {
            return Err(Overrun { oldest, wanted: position.saturating_add(1) });
        }
        Ok(self.history.iter().skip((position + 1 - oldest) as usize))
    }

    /// Drops the history and one position, so that every watcher and bookmark finds itself overrun.
    pub fn overrun(&mut self) {
        self.history.clear();
        self.next += 1;
    }

    /// Drops the resources, silently, as a restart does with a namespace that is only in memory.
    pub fn forget(&mut self) {
        self.resources.clear();
        self.overrun();
    }

    fn owned(&self, id: &str, owner: &str) -> Result<Arc<Stored>, Refused> {
        let stored = self.get(id)?;
        if stored.owner != owner {
            return Err(Refused::Owner { name: self.name(id), owner: stored.owner.clone() });
        }
        Ok(stored)
    }

    fn record(&mut self, what: What, resource: Arc<Stored>) {
        if self.history.len() == self.capacity {
            self.history.pop_front();
        }
        self.history.push_back(Arc::new(Change { position: self.next, what, resource }));
        self.next += 1;
    }

    fn name(&self, id: &str) -> Name {
        Name::new(&self.kind, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_700_000_000);
    const LATER: UnixTime = UnixTime::from_secs(1_700_000_060);

    fn collection() -> Collection {
        Collection::new(Kind::omni("InfraMachines"), 4)
    }

    fn fresh(id: &str) -> Resource {
        Resource::new(Kind::omni("InfraMachines"), id, &crate::proto::specs::InfraProviderSpec {})
    }

    #[test]
    fn versions_start_at_one_grow_by_one_and_start_again_after_a_destroy() {
        let mut all = collection();
        let first = all.create(NOW, fresh("a"), "omni").unwrap();
        assert_eq!((first.version, first.created, first.owner.as_str()), (Some(1), NOW, "omni"));
        let second = all.update(LATER, (*first).clone(), "omni", Some(Phase::Running)).unwrap();
        assert_eq!((second.version, second.created, second.updated), (Some(2), NOW, LATER));
        all.destroy("a", "omni").unwrap();
        assert_eq!(all.create(NOW, fresh("a"), "").unwrap().version, Some(1));
    }

    #[test]
    fn every_refusal_says_what_is_wrong() {
        let mut all = collection();
        let named = Resource { owner: "x".into(), ..fresh("a") };
        assert!(matches!(all.create(NOW, named, "y"), Err(Refused::OwnerOfNew { .. })));
        let stored = all.create(NOW, fresh("a"), "omni").unwrap();
        assert!(matches!(all.create(NOW, fresh("a"), "omni"), Err(Refused::AlreadyExists(_))));
        let text = |result: Result<Arc<Stored>, Refused>| result.unwrap_err().to_string();
        assert!(text(all.update(NOW, (*stored).clone(), "me", None)).contains("is owned by \"omni\""));
        assert!(
            text(all.update(NOW, fresh("a"), "omni", None)).contains("update conflict: expected version \"undefined\"")
        );
        assert!(
            text(all.update(NOW, (*stored).clone(), "omni", Some(Phase::TearingDown)))
                .contains("is not in phase tearingDown")
        );
        let mut held = stored.resource.clone();
        held.finalizers.insert("provider".into());
        all.update(NOW, held, "omni", None).unwrap();
        assert!(text(all.destroy("a", "omni")).contains("has pending finalizers"));
        assert!(text(all.destroy("b", "omni")).contains("doesn't exist"));
    }

    #[test]
    fn teardown_is_idempotent_and_destroy_does_not_check_the_phase() {
        let mut all = collection();
        all.create(NOW, fresh("a"), "").unwrap();
        assert_eq!(all.teardown(NOW, "a", "").unwrap().version, Some(2));
        assert_eq!(all.teardown(NOW, "a", "").unwrap().version, Some(2));
        all.create(NOW, fresh("b"), "").unwrap();
        all.destroy("b", "").unwrap();
    }

    #[test]
    fn a_reader_of_the_history_gets_everything_or_is_told_that_it_cannot() {
        let mut all = collection();
        for id in ["a", "b", "c", "d"] {
            all.create(NOW, fresh(id), "").unwrap();
        }
        assert_eq!(all.after(0).unwrap().count(), 4);
        assert_eq!(all.after(4).unwrap().count(), 0);
        assert!(all.after(5).is_err(), "a position of the future is no bookmark");
        all.create(NOW, fresh("e"), "").unwrap();
        assert_eq!(all.after(0).map(Iterator::count), Err(Overrun { oldest: 2, wanted: 1 }));
        assert_eq!(all.after(1).unwrap().map(|change| change.position).collect::<Vec<_>>(), [2, 3, 4, 5]);
        let latest = all.latest();
        all.overrun();
        assert!(all.after(latest).is_err());
        assert_eq!(all.after(all.latest()).unwrap().count(), 0);
    }
}
