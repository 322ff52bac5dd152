//! Following one kind of resource: a state machine without IO, and the task that drives it.
//!
//! The contents of a kind are buffered until BOOTSTRAPPED and swapped in whole, so that readers see the old set or the
//! new one. A broken stream resumes at the last bookmark; without one, or when Omni refuses it, everything is read anew.
//!
//! Source: contract omni-wire.md section 3.4.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use super::channel::CALL_DEADLINE;
use super::error::{Call, Error, printable};
use super::mirror::Mirror;
use super::packed::{Packed, Packing};
use super::state::{MAX_RESOURCES, State};
use crate::proto::cosi;
use crate::resource::{Kind, MalformedResource, Resource};
use crate::time::Uptime;

/// A bookmark has 8 or 16 octets today.
const MAX_BOOKMARK: usize = 1024;
/// First pause after a broken stream.
const BACKOFF_FIRST: Duration = Duration::from_millis(250);
/// Longest pause.
const BACKOFF_LAST: Duration = Duration::from_secs(10);

/// What to follow.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The kind.
    pub kind: Kind,
    /// Labels that a resource must carry, key and value: for kinds that Omni does not filter by provider.
    pub labels: Vec<(String, String)>,
    /// What to follow where Omni is too old for the kind.
    pub stand_in: Option<StandIn>,
}

impl Watch {
    /// All of `kind` that Omni shows us.
    pub const fn all(kind: Kind) -> Self {
        Self { kind, labels: Vec::new(), stand_in: None }
    }

    /// What of `kind` carries a label.
    pub fn labelled(kind: Kind, key: &str, value: &str) -> Self {
        Self { labels: vec![(key.to_owned(), value.to_owned())], ..Self::all(kind) }
    }
}

/// An older kind that tells the same: followed in the place of one that Omni does not define, and translated.
#[derive(Clone, Debug)]
pub struct StandIn {
    /// ID of the ResourceDefinition whose absence shows that Omni is too old.
    pub definition: &'static str,
    /// The older kind, which carries no provider's label.
    pub kind: Kind,
    /// The provider's ID, for the translation.
    pub provider_id: String,
    /// The resource as a newer Omni would have it; `None` for one that means nothing.
    pub translate: fn(&Resource, &str) -> Option<Resource>,
}

impl StandIn {
    fn item(&self, item: Item) -> Item {
        let translated = |resource: &Resource| (self.translate)(resource, &self.provider_id);
        let event = match item.event {
            Event::Created(resource) => translated(&resource).map_or(Event::Noop, Event::Created),
            Event::Updated(resource) => translated(&resource).map_or(Event::Noop, Event::Updated),
            Event::Destroyed(resource) => translated(&resource).map_or(Event::Noop, Event::Destroyed),
            other => other,
        };
        Item { event, ..item }
    }
}

/// One event of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The resource exists, new or as part of the bootstrap.
    Created(Resource),
    /// The resource changed.
    Updated(Resource),
    /// The resource is gone, or matches the query no more. Holds its last state.
    Destroyed(Resource),
    /// The contents are complete.
    Bootstrapped,
    /// Omni has lost the thread; the watch is worthless from here on.
    Errored(String),
    /// Nothing, for the sake of its bookmark.
    Noop,
}

/// An event and where to resume after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// What happened.
    pub event: Event,
    /// Opaque to us; events of the bootstrap have none.
    pub bookmark: Option<Bytes>,
}

/// Why an event off the wire is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedEvent {
    /// Its resource is none.
    #[error("event with a malformed resource")]
    Resource(#[source] MalformedResource),
    /// Its type must come with a resource and does not. An event with all defaults looks like this.
    #[error("event without a resource")]
    NoResource,
    /// Its resource is of another kind.
    #[error("event about another kind")]
    Kind,
    /// Its type is unknown.
    #[error("event of unknown type {0}")]
    Type(i32),
    /// Its bookmark is absurdly long.
    #[error("bookmark of {0} octets")]
    Bookmark(usize),
}

impl Item {
    /// The event that `wire` carries in a watch of `kind`.
    ///
    /// # Errors
    ///
    /// [`MalformedEvent`] for an event to skip.
    pub fn decode(wire: cosi::Event, kind: &Kind) -> Result<Self, MalformedEvent> {
        let bookmark = match wire.bookmark {
            Some(bookmark) if bookmark.len() > MAX_BOOKMARK => {
                return Err(MalformedEvent::Bookmark(bookmark.len()));
            }
            bookmark => bookmark.map(Bytes::from),
        };
        let about = |resource: Option<cosi::Resource>| {
            let wire = resource.ok_or(MalformedEvent::NoResource)?;
            let resource = Resource::from_wire(wire).map_err(MalformedEvent::Resource)?;
            if resource.kind == *kind { Ok(resource) } else { Err(MalformedEvent::Kind) }
        };
        let event = match cosi::EventType::try_from(wire.event_type) {
            Ok(cosi::EventType::Created) => Event::Created(about(wire.resource)?),
            Ok(cosi::EventType::Updated) => Event::Updated(about(wire.resource)?),
            Ok(cosi::EventType::Destroyed) => Event::Destroyed(about(wire.resource)?),
            Ok(cosi::EventType::Bootstrapped) => Event::Bootstrapped,
            Ok(cosi::EventType::Errored) => Event::Errored(printable(wire.error.as_deref().unwrap_or_default())),
            Ok(cosi::EventType::Noop) => Event::Noop,
            Err(_) => return Err(MalformedEvent::Type(wire.event_type)),
        };
        Ok(Self { event, bookmark })
    }
}

/// How to open the next stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// With all contents.
    Bootstrap,
    /// After this bookmark.
    Resume(Bytes),
}

/// What an event comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivered {
    /// Nothing to tell yet.
    Nothing,
    /// The whole set by ID, in place of whatever was known.
    Replace(BTreeMap<Arc<str>, Packed>),
    /// One resource is there, new or changed.
    Put(Box<Resource>),
    /// One resource is gone; this was its last state.
    Remove(Box<Resource>),
    /// Close the stream and start over.
    Relist(Lost),
}

/// Why a watch starts over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Omni said so.
    #[error("Omni lost the thread of the watch: {0}")]
    Errored(String),
    /// More resources than any fleet has.
    #[error("more resources than any fleet has")]
    TooMany,
}

/// Where a watch stands. Feed it each event in order; it tells what readers may see.
#[derive(Debug, Default)]
pub struct WatchState {
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The contents come in; readers still see the old set.
    Bootstrapping { buffer: Packing },
    /// Readers see every event. Without a bookmark the next break means a bootstrap.
    Live { bookmark: Option<Bytes> },
    /// Nothing that comes now counts.
    Lost,
}

impl Default for Stage {
    fn default() -> Self {
        Self::Bootstrapping { buffer: Packing::default() }
    }
}

impl WatchState {
    /// How to open the next stream, the first or one after a break. What a broken bootstrap has buffered is dropped.
    pub fn restart(&mut self) -> Start {
        if let Stage::Live { bookmark: Some(bookmark) } = &self.stage {
            return Start::Resume(bookmark.clone());
        }
        self.stage = Stage::default();
        Start::Bootstrap
    }

    /// Omni will not resume at the bookmark: the next [`Self::restart`] is a bootstrap.
    pub fn refused(&mut self) {
        self.stage = Stage::Lost;
    }

    /// Whether readers see every event.
    pub const fn is_live(&self) -> bool {
        matches!(self.stage, Stage::Live { .. })
    }

    /// Takes one event; tells what it comes to.
    pub fn on(&mut self, item: Item) -> Delivered {
        if let (Stage::Live { bookmark }, false) = (&mut self.stage, matches!(item.event, Event::Errored(_))) {
            // An event without a bookmark leaves none to resume at: the former would repeat this event.
            *bookmark = item.bookmark.clone();
        }
        match (&mut self.stage, item.event) {
            (Stage::Lost, _) => Delivered::Nothing,
            (Stage::Bootstrapping { .. } | Stage::Live { .. }, Event::Errored(text)) => {
                self.stage = Stage::Lost;
                Delivered::Relist(Lost::Errored(text))
            }
            (Stage::Bootstrapping { buffer }, Event::Created(resource) | Event::Updated(resource)) => {
                buffer.put(&resource);
                if buffer.came() > MAX_RESOURCES {
                    self.stage = Stage::Lost;
                    return Delivered::Relist(Lost::TooMany);
                }
                Delivered::Nothing
            }
            (Stage::Bootstrapping { buffer }, Event::Destroyed(resource)) => {
                buffer.remove(resource.id.as_str());
                Delivered::Nothing
            }
            (Stage::Bootstrapping { buffer }, Event::Bootstrapped) => {
                let contents = std::mem::take(buffer).finish();
                self.stage = Stage::Live { bookmark: item.bookmark };
                Delivered::Replace(contents)
            }
            (Stage::Live { .. }, Event::Created(resource) | Event::Updated(resource)) => {
                Delivered::Put(Box::new(resource))
            }
            (Stage::Live { .. }, Event::Destroyed(resource)) => Delivered::Remove(Box::new(resource)),
            (Stage::Live { .. }, Event::Bootstrapped | Event::Noop) | (Stage::Bootstrapping { .. }, Event::Noop) => {
                Delivered::Nothing
            }
        }
    }
}

/// Pauses between attempts: doubling, capped, jittered.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: BACKOFF_FIRST }
    }
}

impl Backoff {
    /// The next pause: between half of 0.25 s, 0.5 s, … 10 s and the whole of it, as `random` has it.
    pub fn pause(&mut self, random: u32) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(BACKOFF_LAST);
        jittered(whole, random)
    }

    /// Something went well: the next pause is the first again.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Feeds `mirror` from Omni until `cancel`: one watch a kind, reopened for ever.
pub async fn run(state: State, mirror: Mirror, cancel: CancellationToken) {
    let followed = mirror.watches().iter().map(|watch| follow(&state, watch, &mirror));
    tokio::select! {
        // The mirror holds what was delivered; a cancelled watch loses nothing but its connection.
        () = cancel.cancelled() => {}
        _ = join_all(followed) => {}
    }
}

async fn follow(state: &State, watch: &Watch, mirror: &Mirror) {
    let mut machine = WatchState::default();
    let mut backoff = Backoff::default();
    let mut too_old = false;
    loop {
        let trouble = match stream(state, watch, mirror, &mut machine, &mut backoff, &mut too_old).await {
            Ok(trouble) => trouble,
            Err(error) => {
                if matches!(error, Error::BookmarkLost(_)) {
                    machine.refused();
                }
                error.explain()
            }
        };
        let pause = backoff.pause(random());
        tracing::debug!(kind = %watch.kind, reason = trouble, pause = ?pause, "watch broke");
        mirror.disconnected(&watch.kind, trouble, Uptime::now());
        tokio::time::sleep(pause).await;
    }
}

/// Opens one stream and drains it into the mirror. Returns why it ended; it never goes on for ever without Omni.
async fn stream(
    state: &State,
    watch: &Watch,
    mirror: &Mirror,
    machine: &mut WatchState,
    backoff: &mut Backoff,
    too_old: &mut bool,
) -> Result<String, Error> {
    let labels: Vec<(&str, &str)> = watch.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    let bookmark = match machine.restart() {
        Start::Bootstrap => {
            mirror.bootstrapping(&watch.kind);
            None
        }
        Start::Resume(bookmark) => Some(bookmark),
    };
    let resumed = bookmark.is_some();
    if !resumed && let Some(stand_in) = &watch.stand_in {
        // Looked up at every beginning: Omni may be a newer one by now. Bookmarks do not outlive its restart.
        let definitions = Kind::new("meta", "ResourceDefinitions.meta.cosi.dev");
        *too_old = state.find(&definitions, stand_in.definition).await?.is_none();
    }
    let stand_in = watch.stand_in.as_ref().filter(|_| *too_old);
    let (kind, labels) = match stand_in {
        Some(stand_in) => (&stand_in.kind, &[][..]),
        None => (&watch.kind, &labels[..]),
    };
    let mut events = state.watch(kind, labels, bookmark).await?;
    if resumed {
        mirror.connected(&watch.kind, Uptime::now());
    }
    loop {
        let next = state.watched(kind, &mut events);
        // A live watch may be silent for days, and pings look after it; a bootstrap may not stall.
        let batch = if machine.is_live() {
            next.await?
        } else {
            let stalled = |_| Error::Deadline(Call::kind("Watch", &watch.kind));
            tokio::time::timeout(CALL_DEADLINE, next).await.map_err(stalled)??
        };
        let Some(batch) = batch else { return Ok("Omni closed the watch".to_owned()) };
        for event in batch.event {
            let item = match Item::decode(event, kind) {
                Ok(item) => match stand_in {
                    Some(stand_in) => stand_in.item(item),
                    None => item,
                },
                Err(error) => {
                    tracing::debug!(kind = %watch.kind, %error, "event skipped");
                    mirror.skipped(&watch.kind);
                    continue;
                }
            };
            match machine.on(item) {
                Delivered::Relist(lost) => return Ok(lost.to_string()),
                delivered => mirror.deliver(&watch.kind, delivered, Uptime::now()),
            }
            backoff.reset();
        }
    }
}

/// Between half of `pause` and the whole of it, as `random` has it: those who failed together do not try again together.
pub(super) fn jittered(pause: Duration, random: u32) -> Duration {
    pause / 2 + pause.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}

/// For jitter alone: without entropy all pauses are of middle length.
pub(super) fn random() -> u32 {
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(id: &str, version: u64) -> Resource {
        let mut resource = Resource::new(Kind::omni("InfraMachines"), id, &());
        resource.version = Some(version);
        resource
    }

    fn item(event: Event, bookmark: &'static str) -> Item {
        let bookmark = (!bookmark.is_empty()).then(|| Bytes::from_static(bookmark.as_bytes()));
        Item { event, bookmark }
    }

    #[test]
    fn readers_see_nothing_until_the_bootstrap_is_complete() {
        let mut machine = WatchState::default();
        assert_eq!(machine.restart(), Start::Bootstrap);
        assert_eq!(machine.on(item(Event::Created(resource("a", 1)), "")), Delivered::Nothing);
        assert_eq!(machine.on(item(Event::Created(resource("b", 4)), "")), Delivered::Nothing);
        let Delivered::Replace(contents) = machine.on(item(Event::Bootstrapped, "7")) else { panic!() };
        assert_eq!(contents.keys().map(AsRef::as_ref).collect::<Vec<&str>>(), ["a", "b"]);
        assert_eq!(machine.on(item(Event::Updated(resource("a", 2)), "8")), Delivered::Put(resource("a", 2).into()));
        assert_eq!(machine.restart(), Start::Resume("8".into()));
    }

    #[test]
    fn a_bootstrap_that_breaks_starts_over_empty() {
        let mut machine = WatchState::default();
        machine.on(item(Event::Created(resource("a", 1)), ""));
        assert_eq!(machine.restart(), Start::Bootstrap);
        assert_eq!(machine.on(item(Event::Bootstrapped, "7")), Delivered::Replace(BTreeMap::new()));
    }

    #[test]
    fn an_error_event_ends_the_watch_and_its_bookmark() {
        let mut machine = WatchState::default();
        machine.on(item(Event::Bootstrapped, "7"));
        let lost = Lost::Errored("buffer overrun".into());
        assert_eq!(machine.on(item(Event::Errored("buffer overrun".into()), "8")), Delivered::Relist(lost));
        assert_eq!(machine.on(item(Event::Created(resource("a", 1)), "9")), Delivered::Nothing);
        assert_eq!(machine.restart(), Start::Bootstrap);
    }

    #[test]
    fn a_refused_bookmark_means_a_bootstrap() {
        let mut machine = WatchState::default();
        machine.on(item(Event::Bootstrapped, "7"));
        assert_eq!(machine.restart(), Start::Resume("7".into()));
        machine.refused();
        assert_eq!(machine.restart(), Start::Bootstrap);
    }

    #[test]
    fn a_noop_moves_the_bookmark_and_an_event_without_one_drops_it() {
        let mut machine = WatchState::default();
        machine.on(item(Event::Bootstrapped, "7"));
        machine.on(item(Event::Noop, "9"));
        assert_eq!(machine.restart(), Start::Resume("9".into()));
        machine.on(item(Event::Updated(resource("a", 1)), ""));
        assert_eq!(machine.restart(), Start::Bootstrap);
    }

    #[test]
    fn an_event_of_all_defaults_is_no_creation() {
        let kind = Kind::omni("InfraMachines");
        assert_eq!(Item::decode(cosi::Event::default(), &kind), Err(MalformedEvent::NoResource));
        let wire = |r#type| cosi::Event { event_type: r#type, ..Default::default() };
        assert_eq!(Item::decode(wire(9), &kind), Err(MalformedEvent::Type(9)));
        assert_eq!(Item::decode(wire(3), &kind).unwrap().event, Event::Bootstrapped);
        let other = Resource::new(Kind::omni("BMCConfigs"), "a", &()).to_wire();
        let foreign = cosi::Event { resource: Some(other), ..wire(0) };
        assert_eq!(Item::decode(foreign, &kind), Err(MalformedEvent::Kind));
        let long = cosi::Event { bookmark: Some(vec![0; 2000]), ..wire(5) };
        assert_eq!(Item::decode(long, &kind), Err(MalformedEvent::Bookmark(2000)));
    }

    #[test]
    fn pauses_double_up_to_ten_seconds_and_are_jittered_by_half() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..8).map(|_| backoff.pause(u32::MAX).as_millis()).collect();
        assert_eq!(pauses, [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        assert_eq!(backoff.pause(0).as_millis(), 5_000);
        backoff.reset();
        assert_eq!(backoff.pause(0).as_millis(), 125);
    }
}
