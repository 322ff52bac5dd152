//! A day of broken streams in virtual time: the watch and the mirror against a model of Omni that drops, forgets,
//! overruns and restarts.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::*;
use crate::lab::omni::collection::{Collection, What};
use crate::omni::watch::{Backoff, Event, Item, Start, WatchState};

/// What happened in a day.
#[derive(Debug, Default)]
struct Counts {
    streams: u32,
    bootstraps: u32,
    resumes: u32,
    refused: u32,
    errored: u32,
    broken_bootstraps: u32,
    events: u32,
    writes: u32,
    own_writes: u32,
    agreements: u32,
}

/// xorshift64*: the same day for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }
}

struct Day {
    random: Random,
    kind: Kind,
    /// Milliseconds since the day began.
    now: u64,
    omni: Collection,
    /// Changes with every restart of Omni; part of every bookmark.
    cookie: u8,
    mirror: Mirror,
    machine: WatchState,
    news: Changes,
    /// What a subscriber knows who reads the mirror at each piece of news.
    reader: BTreeMap<Arc<str>, Resource>,
    /// The last of our own writes to each resource: its state, or the state that we destroyed.
    own: BTreeMap<String, (Age, bool)>,
    counts: Counts,
}

impl Day {
    fn new(seed: u64) -> Self {
        let kind = Kind::omni("InfraMachines");
        let mirror = Mirror::new(vec![Watch::all(kind.clone())]);
        Self {
            random: Random(seed),
            now: 0,
            omni: Collection::new(kind.clone(), 64),
            cookie: 0,
            machine: WatchState::default(),
            news: mirror.subscribe(),
            reader: BTreeMap::new(),
            own: BTreeMap::new(),
            counts: Counts::default(),
            mirror,
            kind,
        }
    }

    fn unix(&mut self) -> UnixTime {
        // No two writes in one instant, as in Omni, whose clock counts nanoseconds.
        self.now += 1;
        UnixTime::from_millis(1_700_000_000_000 + self.now)
    }

    fn uptime(&self) -> Uptime {
        Uptime::from_millis(self.now)
    }

    fn bookmark(&self, position: u64) -> Bytes {
        [&[self.cookie][..], &position.to_be_bytes()].concat().into()
    }

    /// Somebody, or we ourselves, writes one of 40 resources.
    fn write(&mut self, ours: bool) {
        let id = format!("m{:02}", self.random.below(40));
        let now = self.unix();
        let destroys = self.random.one_in(4);
        self.counts.writes += 1;
        let written = match self.omni.get(&id) {
            Err(_) => self.omni.create(now, Resource::new(self.kind.clone(), &id, &()), ""),
            Ok(_) if destroys => self.omni.destroy(&id, "").inspect(|_| {
                if ours {
                    self.mirror.remove_local(&self.kind, &id);
                }
            }),
            Ok(stored) => self.omni.update(now, (*stored).clone(), "", None),
        };
        let written = written.unwrap();
        if ours {
            self.counts.own_writes += 1;
            self.own.insert(id.clone(), (Age::of(&written), self.omni.get(&id).is_ok()));
            if self.omni.get(&id).is_ok() {
                self.mirror.apply_local(written.resource.clone());
            }
            // Whoever wrote reads what was written, or newer.
            let known = self.mirror.get(&self.kind, &id);
            assert_eq!(
                known.map(|known| (known.created, known.version)),
                self.omni.get(&id).ok().map(|s| (s.created, s.version))
            );
        }
        self.read_news();
    }

    fn read_news(&mut self) {
        for change in self.news.take() {
            match self.mirror.get(&change.kind, &change.id) {
                Some(resource) => drop(self.reader.insert(change.id, resource)),
                None => drop(self.reader.remove(&change.id)),
            }
        }
    }

    fn take(&mut self, event: Event, bookmark: Option<Bytes>) -> bool {
        self.counts.events += 1;
        let delivered = self.machine.on(Item { event, bookmark });
        if matches!(delivered, Delivered::Relist(_)) {
            return false;
        }
        let now = self.uptime();
        self.mirror.deliver(&self.kind, delivered, now);
        self.read_news();
        true
    }

    /// What we wrote is not undone by contents that are older, and what we destroyed does not come back.
    fn remembers_own_writes(&self) {
        for (id, (age, present)) in &self.own {
            let shown = self.mirror.get(&self.kind, id).map(|shown| Age::of(&shown));
            let still_there = self.omni.get(id).is_ok_and(|stored| stored.created == age.created);
            match present {
                true if still_there => assert!(shown >= Some(*age), "{id} went back at {} ms", self.now),
                true => {}
                false => assert!(shown.is_none_or(|shown| shown.created > age.created), "{id} came back"),
            }
        }
    }

    /// One stream from its opening to its end.
    fn stream(&mut self) {
        self.counts.streams += 1;
        let mut position = match self.machine.restart() {
            Start::Bootstrap => {
                self.counts.bootstraps += 1;
                self.mirror.bootstrapping(&self.kind);
                // What we write between our question and Omni's look is in the contents or newer than they are.
                if self.random.one_in(3) {
                    self.write(true);
                }
                let contents: Vec<_> = self.omni.list().cloned().collect();
                let position = self.omni.latest();
                for resource in contents {
                    if self.random.one_in(400) {
                        self.counts.broken_bootstraps += 1;
                        return;
                    }
                    // While the contents come in, the world goes on.
                    if self.random.one_in(20) {
                        let ours = self.random.one_in(2);
                        self.write(ours);
                    }
                    self.take(Event::Created(resource.resource.clone()), None);
                }
                let bookmark = self.bookmark(position);
                self.take(Event::Bootstrapped, Some(bookmark));
                self.remembers_own_writes();
                position
            }
            Start::Resume(bookmark) => {
                let position = u64::from_be_bytes(bookmark[1..].try_into().unwrap());
                if bookmark[0] != self.cookie || self.omni.after(position).is_err() {
                    self.counts.refused += 1;
                    self.machine.refused();
                    return;
                }
                self.counts.resumes += 1;
                let now = self.uptime();
                self.mirror.connected(&self.kind, now);
                position
            }
        };
        let end = self.now + self.random.below(8_000);
        while self.now < end {
            self.now += self.random.below(400);
            for _ in 0..self.random.below(4) {
                let ours = self.random.one_in(3);
                self.write(ours);
            }
            if self.random.one_in(2_000) {
                self.omni.overrun();
            }
            // Events lag behind, and the stream may break between any two.
            if self.random.one_in(2) {
                continue;
            }
            let Ok(changes) = self.omni.after(position) else {
                self.counts.errored += 1;
                assert!(!self.take(Event::Errored("buffer overrun".into()), None));
                return;
            };
            let changes: Vec<_> = changes.cloned().collect();
            for change in changes {
                if self.random.one_in(60) {
                    return;
                }
                let resource = change.resource.resource.clone();
                let event = match change.what {
                    What::Created => Event::Created(resource),
                    What::Updated(_) => Event::Updated(resource),
                    What::Destroyed => Event::Destroyed(resource),
                };
                position = change.position;
                let bookmark = self.bookmark(position);
                assert!(self.take(event, Some(bookmark)));
            }
            self.agrees();
        }
    }

    /// With all events delivered the mirror is Omni, and whoever followed the news knows the same.
    fn agrees(&mut self) {
        self.counts.agreements += 1;
        let (mirrored, stored) = (self.mirror.all(&self.kind), self.omni.list());
        assert!(mirrored.iter().eq(stored.map(|stored| &stored.resource)), "at {} ms: {mirrored:#?}", self.now);
        assert!(self.reader.values().eq(mirrored.iter()), "at {} ms", self.now);
        self.mirror.read(&self.kind, |table| {
            let held = table.entries.len();
            assert_eq!(held, mirrored.len(), "at {} ms something is held that is not shown", self.now);
            assert!(table.graves.len() <= MAX_GRAVES);
        });
    }
}

fn a_day(seed: u64) -> Counts {
    let mut day = Day::new(seed);
    let mut backoff = Backoff::default();
    while day.now < 24 * 3_600_000 {
        let events = day.counts.events;
        day.stream();
        if day.counts.events > events {
            backoff.reset();
        }
        let now = day.uptime();
        day.mirror.disconnected(&day.kind, "dropped".into(), now);
        let random = day.random.next() as u32;
        let pause = backoff.pause(random);
        assert!(pause <= Duration::from_secs(10));
        // Omni goes on while we are away, and sometimes restarts.
        let back = day.now + u64::try_from(pause.as_millis()).unwrap();
        while day.now < back {
            day.now += 1 + day.random.below(500);
            day.write(false);
        }
        if day.random.one_in(200) {
            day.cookie = day.cookie.wrapping_add(1);
        }
    }
    assert_eq!(day.mirror.kinds(day.uptime())[0].skipped, 0);
    day.counts
}

#[test]
fn a_day_of_drops_loses_nothing_doubles_nothing_and_holds_nothing_more() {
    let counts = a_day(0x5eed);
    println!("{counts:?}");
    assert!(counts.streams > 10_000 && counts.resumes > 5_000 && counts.agreements > 10_000, "{counts:?}");
    assert!(counts.refused > 10 && counts.errored > 10 && counts.broken_bootstraps > 5, "{counts:?}");
}
