//! A disk in memory, what was done to it, and every state that a cut may leave.
//!
//! A sector is written whole or not at all. With flushes honoured, a cut keeps all that was flushed and any part of the
//! rest; with flushes ignored, any part of the last n writes, n drawn from one to all.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::power_cuts::Dice;

pub const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// Pages of a part of a disk, by their numbers on the disk.
type Region = BTreeMap<u64, Arc<[u8; PAGE]>>;

/// How many pages a region has.
const REGION: u64 = 256;

/// The octets of a disk; a page that is not there is zero. Copies share what they have in common.
#[derive(Clone, Default)]
pub struct Pages(BTreeMap<u64, Arc<Region>>);

impl Pages {
    pub fn of_file(path: &Path) -> Self {
        let mut file = File::open(path).unwrap();
        let mut pages = Self::default();
        let mut page = [0; PAGE];
        for number in 0.. {
            page.fill(0);
            let mut filled = 0;
            while filled < PAGE {
                match file.read(&mut page[filled..]).unwrap() {
                    0 => break,
                    count => filled += count,
                }
            }
            if page != [0; PAGE] {
                pages.region(number).insert(number, Arc::new(page));
            }
            if filled < PAGE {
                break;
            }
        }
        pages
    }

    /// The region of a page, to change it.
    fn region(&mut self, page: u64) -> &mut Region {
        Arc::make_mut(self.0.entry(page / REGION).or_default())
    }

    fn page(&self, number: u64) -> Option<&Arc<[u8; PAGE]>> {
        self.0.get(&(number / REGION))?.get(&number)
    }

    /// The pages that are there, of those whose octets lie at `at` and behind.
    fn pages(&self, at: u64, length: u64) -> impl Iterator<Item = (&u64, &Arc<[u8; PAGE]>)> {
        let pages = at / PAGE as u64..(at + length).div_ceil(PAGE as u64);
        let regions = self.0.range(pages.start / REGION..pages.end.div_ceil(REGION));
        regions.flat_map(|(_, region)| region.iter()).filter(move |(number, _)| pages.contains(number))
    }

    pub fn read(&self, at: u64, octets: &mut [u8]) {
        for (page, within, part) in parts(at, octets.len()) {
            let octets = &mut octets[part.clone()];
            match self.page(page) {
                Some(page) => octets.copy_from_slice(&page[within..][..part.len()]),
                None => octets.fill(0),
            }
        }
    }

    pub fn octets(&self, at: u64, length: usize) -> Vec<u8> {
        let mut octets = vec![0; length];
        self.read(at, &mut octets);
        octets
    }

    pub fn write(&mut self, at: u64, octets: &[u8]) {
        for (page, within, part) in parts(at, octets.len()) {
            let page = self.region(page).entry(page).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[within..][..part.len()].copy_from_slice(&octets[part]);
        }
    }

    pub fn zero(&mut self, at: u64, length: u64) {
        let page = PAGE as u64;
        let (first, last) = (at.div_ceil(page), (at + length) / page);
        if first >= last {
            return self.write(at, &vec![0; length as usize]);
        }
        let whole: Vec<u64> = self.pages(first * page, (last - first) * page).map(|(number, _)| *number).collect();
        whole.iter().for_each(|number| drop(self.region(*number).remove(number)));
        self.write(at, &vec![0; (first * page - at) as usize]);
        self.write(last * page, &vec![0; (at + length - last * page) as usize]);
    }

    /// Whether `text` is anywhere in `length` octets from `at`. What lies across two pages is not seen.
    pub fn holds(&self, at: u64, length: u64, text: &str) -> bool {
        // The standard library's search is compiled for speed where this test is not.
        self.pages(at, length).any(|(_, page)| String::from_utf8_lossy(&page[..]).contains(text))
    }

    /// Whether both hold the same in `length` octets from `at`, which are whole pages.
    pub fn same(&self, other: &Self, at: u64, length: u64) -> bool {
        let regions = at / PAGE as u64 / REGION..(at + length).div_ceil(PAGE as u64 * REGION);
        regions.into_iter().all(|region| {
            let shared = match (self.0.get(&region), other.0.get(&region)) {
                (Some(left), Some(right)) => Arc::ptr_eq(left, right),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            let (first, count) = (region * REGION * PAGE as u64, REGION * PAGE as u64);
            let (start, end) = (first.max(at), (first + count).min(at + length));
            shared || self.octets(start, (end - start) as usize) == other.octets(start, (end - start) as usize)
        })
    }

    /// Puts all of `other` over what begins at `at`, which is where a page begins.
    pub fn put(&mut self, at: u64, other: &Self) {
        for (number, page) in other.pages(0, u64::from(u32::MAX) * PAGE as u64) {
            let number = number + at / PAGE as u64;
            self.region(number).insert(number, Arc::clone(page));
        }
    }

    /// Writes it into a file, which keeps its holes.
    pub fn save(&self, path: &Path, length: u64) {
        let file = File::create(path).unwrap();
        file.set_len(length).unwrap();
        for (number, page) in self.pages(0, length) {
            file.write_all_at(&page[..], number * PAGE as u64).unwrap();
        }
    }
}

/// The pages of `length` octets from `at`: page, where in it, and which of the octets.
fn parts(at: u64, length: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let here = at + done as u64;
        let within = (here % PAGE as u64) as usize;
        let count = (PAGE - within).min(length - done);
        let part = done..done + count;
        done += count;
        (count > 0).then_some((here / PAGE as u64, within, part))
    })
}

/// One entry of a record.
#[derive(Clone, Debug)]
pub enum Event {
    Write(u64, Arc<[u8]>),
    Zero(u64, u64),
    Flush,
    /// What whoever wrote said at this moment.
    Mark(Mark),
}

/// A step of what is recorded, by its number: begun, or done and told to somebody who relies on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    Begun(u32),
    Acknowledged(u32),
}

/// How much of a write is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    Whole,
    None,
    /// These of its sectors.
    Sectors(Vec<bool>),
}

/// A moment of a cut, and what of the last writes before it is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Cut {
    /// All before this event is there.
    solid: usize,
    /// And of those that follow, these.
    parts: Vec<Part>,
}

/// What a cut left.
pub struct State {
    pub pages: Pages,
    /// The highest step that was acknowledged before the cut, and the highest that was begun.
    pub acknowledged: u32,
    pub begun: u32,
}

/// How many events lie between two copies of the disk that are kept.
const STRIDE: usize = 128;

/// A disk before, and what was done to it.
pub struct Recording {
    pub log: Vec<Event>,
    /// The disk after each [`STRIDE`] events.
    copies: Vec<Pages>,
}

impl Recording {
    pub fn new(before: Pages, log: Vec<Event>) -> Self {
        let mut copies = vec![before];
        for part in log.chunks(STRIDE) {
            let mut next = copies.last().expect("the first").clone();
            part.iter().for_each(|event| apply(&mut next, event, &Part::Whole));
            copies.push(next);
        }
        Self { log, copies }
    }

    pub fn after(&self) -> &Pages {
        self.copies.last().expect("the first")
    }

    pub fn writes(&self) -> usize {
        self.log.iter().filter(|event| matches!(event, Event::Write(..) | Event::Zero(..))).count()
    }

    pub fn flushes(&self) -> usize {
        self.log.iter().filter(|event| matches!(event, Event::Flush)).count()
    }

    /// Up to `most` different states: a third of them in order, one after the other, the rest drawn.
    pub fn states(&self, honoured: bool, most: usize, dice: &mut Dice) -> impl Iterator<Item = State> + use<'_> {
        let ordered = (most / 3).max(1).min(self.log.len());
        let in_order = (0..=ordered).map(|step| {
            let end = self.log.len() * step / ordered;
            (end, Cut { solid: end, parts: Vec::new() })
        });
        let drawn = (0..most * 20).map(|_| {
            let end = 1 + dice.below(self.log.len());
            let solid = if honoured { self.flushed(end) } else { end - self.window(end, dice) };
            (end, Cut { solid, parts: self.parts(solid, end, dice) })
        });
        // The same octets may be seen before and after an acknowledgement: those are two states.
        let mut seen = HashSet::new();
        let new = |(end, cut): &(usize, Cut)| seen.insert((cut.clone(), self.marks(*end)));
        let cuts: Vec<_> = in_order.chain(drawn).filter(new).take(most).collect();
        // A state at a time: each is a disk.
        cuts.into_iter().map(|(end, cut)| self.state(end, &cut))
    }

    /// Behind the last flush before `end`.
    fn flushed(&self, end: usize) -> usize {
        self.log[..end].iter().rposition(|event| matches!(event, Event::Flush)).map_or(0, |at| at + 1)
    }

    /// How many of the last events count as open where flushes don't count.
    fn window(&self, end: usize, dice: &mut Dice) -> usize {
        let powers = end.ilog2() as usize + 2;
        (1usize << dice.below(powers)).min(end)
    }

    /// What becomes of the events from `solid` to `end`: one lost, one alone, any, or the last one torn.
    fn parts(&self, solid: usize, end: usize, dice: &mut Dice) -> Vec<Part> {
        let count = end - solid;
        if count == 0 {
            return Vec::new();
        }
        let (style, one) = (dice.below(4), dice.below(count));
        let mut part = |at: usize| {
            let sectors = match &self.log[solid + at] {
                Event::Write(_, octets) => octets.len() / SECTOR,
                Event::Zero(_, length) => (*length as usize / SECTOR).min(64),
                Event::Flush | Event::Mark(_) => return Part::None,
            };
            let any = |dice: &mut Dice| match dice.below(5) {
                0 | 1 => Part::Whole,
                2 | 3 => Part::None,
                _ => torn(sectors, dice),
            };
            match style {
                0 if at == one => Part::None,
                1 if at != one => Part::None,
                2 => any(dice),
                3 if at == count - 1 => torn(sectors, dice),
                _ => Part::Whole,
            }
        };
        (0..count).map(&mut part).collect()
    }

    fn marks(&self, end: usize) -> (u32, u32) {
        let (mut acknowledged, mut begun) = (0, 0);
        for event in &self.log[..end] {
            match event {
                Event::Mark(Mark::Begun(step)) => begun = *step,
                Event::Mark(Mark::Acknowledged(step)) => acknowledged = *step,
                Event::Write(..) | Event::Zero(..) | Event::Flush => {}
            }
        }
        (acknowledged, begun.max(acknowledged))
    }

    fn state(&self, end: usize, cut: &Cut) -> State {
        let copy = cut.solid / STRIDE;
        let mut pages = self.copies[copy].clone();
        self.log[copy * STRIDE..cut.solid].iter().for_each(|event| apply(&mut pages, event, &Part::Whole));
        self.log[cut.solid..].iter().zip(&cut.parts).for_each(|(event, part)| apply(&mut pages, event, part));
        let (acknowledged, begun) = self.marks(end);
        State { pages, acknowledged, begun }
    }
}

/// The first sectors of it, or any.
fn torn(sectors: usize, dice: &mut Dice) -> Part {
    let (first, in_order) = (dice.below(sectors.max(1)), dice.below(2) == 0);
    Part::Sectors((0..sectors).map(|at| if in_order { at < first } else { dice.below(2) == 0 }).collect())
}

fn apply(pages: &mut Pages, event: &Event, part: &Part) {
    let sectors = |sectors: &[bool]| {
        let there: Vec<usize> = (0..sectors.len()).filter(|at| sectors[*at]).map(|at| at * SECTOR).collect();
        there
    };
    match (event, part) {
        (_, Part::None) | (Event::Flush | Event::Mark(_), _) => {}
        (Event::Write(at, octets), Part::Whole) => pages.write(*at, octets),
        (Event::Zero(at, length), Part::Whole) => pages.zero(*at, *length),
        (Event::Write(at, octets), Part::Sectors(bits)) => {
            sectors(bits).into_iter().for_each(|within| pages.write(at + within as u64, &octets[within..][..SECTOR]));
        }
        (Event::Zero(at, _), Part::Sectors(bits)) => {
            sectors(bits).into_iter().for_each(|within| pages.zero(at + within as u64, SECTOR as u64));
        }
    }
}

#[test]
fn what_was_flushed_is_in_every_state_and_the_rest_in_any_part() {
    let sector = |octet: u8| Arc::from(vec![octet; SECTOR]);
    let log = vec![
        Event::Mark(Mark::Begun(1)),
        Event::Write(0, sector(1)),
        Event::Flush,
        Event::Mark(Mark::Acknowledged(1)),
        Event::Write(4096 - 512, sector(2)),
        Event::Zero(0, 512),
    ];
    let recording = Recording::new(Pages::default(), log);
    let seen = |honoured| {
        let mut dice = Dice(0x1234_5678_9abc_def1);
        let states = recording.states(honoured, 200, &mut dice);
        let read = |state: State| (state.acknowledged, state.pages.octets(0, 1)[0], state.pages.octets(3584, 1)[0]);
        states.map(read).collect::<HashSet<_>>()
    };
    let after = HashSet::from([(1, 1, 0), (1, 1, 2), (1, 0, 0), (1, 0, 2)]);
    assert_eq!(seen(true), &after | &HashSet::from([(0, 0, 0), (0, 1, 0)]));
    assert!(seen(false).is_superset(&after) && seen(false).contains(&(1, 0, 0)));
    let mut pages = Pages::default();
    pages.write(0, &[7; 3 * PAGE]);
    pages.zero(100, 2 * PAGE as u64);
    assert_eq!(pages.octets(0, 3 * PAGE), [vec![7; 100], vec![0; 2 * PAGE], vec![7; PAGE - 100]].concat());
}
