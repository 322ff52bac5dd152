//! The mirror against a model of Omni: random writes, breaks and deliveries.

use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::omni::watch::{Event, Item, Start, WatchState};

const NOW: Uptime = Uptime::from_secs(100);

fn kind() -> Kind {
    Kind::omni("InfraMachineStatuses")
}

fn resource(id: &str, created: u64, version: u64) -> Resource {
    let mut resource = Resource::new(kind(), id, &());
    resource.created = UnixTime::from_secs(created);
    resource.version = Some(version);
    resource
}

fn mirror() -> Mirror {
    Mirror::new(vec![Watch::all(kind())])
}

fn set(resources: &[Resource]) -> Delivered {
    Delivered::Replace(resources.iter().map(|r| (r.id.as_str().into(), Packed::of(r))).collect())
}

fn ids(changes: BTreeSet<Change>) -> Vec<String> {
    changes.into_iter().map(|change| change.id.to_string()).collect()
}

#[test]
fn a_new_set_tells_what_differs_and_nothing_else() {
    let mirror = mirror();
    mirror.deliver(&kind(), set(&[resource("a", 1, 1), resource("b", 1, 1), resource("c", 1, 1)]), NOW);
    let mut changes = mirror.subscribe();
    assert_eq!(ids(changes.take()), ["a", "b", "c"], "a subscriber begins with everything");
    mirror.deliver(&kind(), set(&[resource("a", 1, 1), resource("b", 1, 2), resource("d", 1, 1)]), NOW);
    assert_eq!(ids(changes.take()), ["b", "c", "d"]);
    assert!(mirror.get(&kind(), "c").is_none());
    assert_eq!(mirror.ids(&kind()).len(), 3);
}

#[test]
fn a_write_of_ours_is_seen_at_once_and_not_undone_by_older_events() {
    let mirror = mirror();
    mirror.deliver(&kind(), set(&[resource("a", 1, 3)]), NOW);
    mirror.apply_local(resource("a", 1, 5));
    assert_eq!(mirror.get(&kind(), "a").unwrap().version, Some(5));
    mirror.deliver(&kind(), Delivered::Put(resource("a", 1, 4).into()), NOW);
    assert_eq!(mirror.get(&kind(), "a").unwrap().version, Some(5));
    mirror.deliver(&kind(), Delivered::Put(resource("a", 1, 6).into()), NOW);
    assert_eq!(mirror.get(&kind(), "a").unwrap().version, Some(6));
    mirror.apply_local(resource("a", 1, 5));
    assert_eq!(mirror.get(&kind(), "a").unwrap().version, Some(6), "nor does an older write undo an event");
}

#[test]
fn a_removal_of_ours_outlives_older_events_and_yields_to_a_new_incarnation() {
    let mirror = mirror();
    mirror.deliver(&kind(), set(&[resource("a", 1, 3)]), NOW);
    mirror.remove_local(&kind(), "a");
    mirror.deliver(&kind(), Delivered::Put(resource("a", 1, 3).into()), NOW);
    assert!(mirror.get(&kind(), "a").is_none());
    mirror.deliver(&kind(), Delivered::Put(resource("a", 2, 1).into()), NOW);
    assert_eq!(mirror.get(&kind(), "a").unwrap().version, Some(1));
}

#[test]
fn a_kind_that_nothing_was_stored_of_is_as_old_as_the_view() {
    let mirror = Mirror::new(vec![Watch::all(kind()), Watch::all(Kind::omni("BMCConfigs"))]);
    let at = UnixTime::from_secs(1_700_000_000);
    mirror.preload([resource("a", 1, 3)], at);
    assert_eq!(mirror.freshness(NOW), Freshness::Stored(at));
}

#[test]
fn a_stored_view_is_marked_and_gives_way() {
    let mirror = mirror();
    assert_eq!(mirror.freshness(NOW), Freshness::Unknown);
    let at = UnixTime::from_secs(1_700_000_000);
    mirror.preload([resource("a", 1, 3), Resource::new(Kind::omni("Unmirrored"), "x", &())], at);
    assert_eq!(mirror.freshness(NOW), Freshness::Stored(at));
    assert!(mirror.get(&kind(), "a").is_some() && !mirror.is_synced());
    mirror.deliver(&kind(), set(&[resource("b", 1, 1)]), NOW);
    assert_eq!(mirror.freshness(NOW), Freshness::Confirmed(Duration::ZERO));
    assert!(mirror.get(&kind(), "a").is_none() && mirror.is_synced());
    mirror.disconnected(&kind(), "gone".into(), NOW);
    assert_eq!(mirror.freshness(Uptime::from_secs(160)), Freshness::Confirmed(Duration::from_secs(60)));
    mirror.preload([resource("a", 1, 3)], at);
    assert!(mirror.get(&kind(), "a").is_none(), "the store never overrules Omni");
    assert_eq!(mirror.export().len(), 1);
}

#[tokio::test]
async fn news_waits_for_a_slow_subscriber_and_is_told_once() {
    let mirror = mirror();
    let mut changes = mirror.subscribe();
    for version in 1..100 {
        mirror.deliver(&kind(), Delivered::Put(resource("a", 1, version).into()), NOW);
    }
    assert_eq!(ids(changes.next().await), ["a"]);
    assert!(changes.take().is_empty());
    mirror.deliver(&kind(), Delivered::Put(resource("a", 1, 99).into()), NOW);
    assert!(changes.take().is_empty(), "a repeated event is no news");
}

#[derive(Clone, Debug)]
enum Step {
    /// Someone else writes.
    Write(u8),
    /// Someone else destroys.
    Destroy(u8),
    /// We write.
    LocalWrite(u8),
    /// We write, and the answer takes its time.
    SlowWrite(u8),
    /// The oldest slow answer comes.
    Answer,
    /// We destroy.
    LocalDestroy(u8),
    /// So many items arrive.
    Deliver(u8),
    /// The stream breaks; whether Omni still knows the bookmark.
    Break(bool),
    /// Omni says that it lost the thread.
    Errored,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let id = 0..4_u8;
    proptest::collection::vec(
        prop_oneof![
            4 => id.clone().prop_map(Step::Write),
            2 => id.clone().prop_map(Step::Destroy),
            4 => id.clone().prop_map(Step::LocalWrite),
            3 => id.clone().prop_map(Step::SlowWrite),
            3 => Just(Step::Answer),
            2 => id.prop_map(Step::LocalDestroy),
            6 => (1..5_u8).prop_map(Step::Deliver),
            2 => any::<bool>().prop_map(Step::Break),
            1 => Just(Step::Errored),
        ],
        0..80,
    )
}

/// Omni as the contract has it: versions count from 1 in each incarnation, bookmarks are positions in the log.
struct Model {
    current: BTreeMap<String, Resource>,
    log: Vec<Event>,
    clock: u64,
    stream: VecDeque<Item>,
}

impl Model {
    fn happen(&mut self, event: Event) {
        self.log.push(event.clone());
        self.stream.push_back(Item { event, bookmark: Some(self.bookmark()) });
    }

    fn bookmark(&self) -> Bytes {
        Bytes::copy_from_slice(&(self.log.len() as u64).to_be_bytes())
    }

    fn write(&mut self, id: u8) -> Resource {
        let id = id.to_string();
        self.clock += 1;
        let event = match self.current.get_mut(&id) {
            Some(found) => {
                found.version = found.version.map(|version| version + 1);
                Event::Updated(found.clone())
            }
            None => {
                self.current.insert(id.clone(), resource(&id, self.clock, 1));
                Event::Created(self.current[&id].clone())
            }
        };
        self.happen(event);
        self.current[&id].clone()
    }

    fn destroy(&mut self, id: u8) {
        if let Some(gone) = self.current.remove(&id.to_string()) {
            self.happen(Event::Destroyed(gone));
        }
    }

    fn open(&mut self, start: Start) {
        self.stream.clear();
        match start {
            Start::Bootstrap => {
                let contents = self.current.values().cloned().map(Event::Created);
                self.stream.extend(contents.map(|event| Item { event, bookmark: None }));
                self.stream.push_back(Item { event: Event::Bootstrapped, bookmark: Some(self.bookmark()) });
            }
            Start::Resume(bookmark) => {
                let from = u64::from_be_bytes(bookmark.as_ref().try_into().unwrap()) as usize;
                let items = self.log[from..].iter().enumerate().map(|(index, event)| {
                    let bookmark = Bytes::copy_from_slice(&((from + index + 1) as u64).to_be_bytes());
                    Item { event: event.clone(), bookmark: Some(bookmark) }
                });
                self.stream.extend(items.collect::<Vec<Item>>());
            }
        }
    }
}

struct Run {
    model: Model,
    machine: WatchState,
    mirror: Mirror,
    /// What a subscriber that reads after each news believes.
    believed: BTreeMap<String, Resource>,
    changes: Changes,
    /// Answers to our writes that are under way.
    answers: VecDeque<Resource>,
}

impl Run {
    fn new() -> Self {
        let mirror = mirror();
        let changes = mirror.subscribe();
        let model = Model { current: BTreeMap::new(), log: Vec::new(), clock: 0, stream: VecDeque::new() };
        let mut run = Self {
            model,
            machine: WatchState::default(),
            mirror,
            believed: BTreeMap::new(),
            changes,
            answers: VecDeque::new(),
        };
        run.reopen();
        run
    }

    fn reopen(&mut self) {
        let start = self.machine.restart();
        if start == Start::Bootstrap {
            self.mirror.bootstrapping(&kind());
            // They share the connection that broke.
            self.answers.clear();
        }
        self.model.open(start);
    }

    fn deliver(&mut self, count: usize) {
        for _ in 0..count {
            let Some(item) = self.model.stream.pop_front() else { return };
            match self.machine.on(item) {
                Delivered::Relist(_) => self.reopen(),
                delivered => self.mirror.deliver(&kind(), delivered, NOW),
            }
        }
    }

    fn learn(&mut self) {
        for change in self.changes.take() {
            match self.mirror.get(&kind(), &change.id) {
                Some(resource) => self.believed.insert(change.id.to_string(), resource),
                None => self.believed.remove(&*change.id),
            };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn the_mirror_becomes_what_omni_holds_and_never_undoes_our_writes(steps in steps()) {
        let mut run = Run::new();
        let mut ours: BTreeMap<String, Resource> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Write(id) => { run.model.write(id); }
                Step::Destroy(id) => run.model.destroy(id),
                Step::LocalWrite(id) => {
                    let written = run.model.write(id);
                    ours.insert(written.id.clone(), written.clone());
                    run.mirror.apply_local(written);
                }
                Step::SlowWrite(id) => {
                    let written = run.model.write(id);
                    run.answers.push_back(written);
                }
                Step::Answer => {
                    if let Some(written) = run.answers.pop_front() {
                        run.mirror.apply_local(written);
                    }
                }
                Step::LocalDestroy(id) => {
                    run.model.destroy(id);
                    run.mirror.remove_local(&kind(), &id.to_string());
                    prop_assert!(run.mirror.get(&kind(), &id.to_string()).is_none());
                }
                Step::Deliver(count) => run.deliver(count.into()),
                Step::Break(known) => {
                    if !known { run.machine.refused() }
                    run.reopen();
                }
                Step::Errored => {
                    run.model.stream.clear();
                    run.model.stream.push_back(Item { event: Event::Errored("overrun".into()), bookmark: None });
                    run.deliver(1);
                }
            }
            for (id, written) in &ours {
                // While the incarnation that we wrote to lives, nobody sees a state before our write.
                if run.model.current.get(id).is_some_and(|current| current.created == written.created) {
                    let seen = run.mirror.get(&kind(), id);
                    prop_assert!(seen.is_some_and(|seen| Age::of(&seen) >= Age::of(written)), "{id}");
                }
            }
            run.learn();
        }
        run.deliver(10_000);
        for written in std::mem::take(&mut run.answers) {
            run.mirror.apply_local(written);
        }
        run.learn();
        let held: BTreeMap<String, Resource> =
            run.mirror.all(&kind()).into_iter().map(|resource| (resource.id.clone(), resource)).collect();
        prop_assert_eq!(&held, &run.model.current);
        prop_assert_eq!(&run.believed, &held, "a subscriber that reads after news knows it all");
    }
}
