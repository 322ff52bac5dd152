//! Every state that boots, commits, updates and power cuts can reach, and what must hold in each.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::io::Write;

use super::change::{acknowledged, failed, healthy, pending, upkeep, want_recovery, withdrawn};
use super::record::{Commit, Copy, Needs, Records, Try};
use super::{Booted, Choice, Hand, Slot, TRIES, Target, Version, Why, decide};

/// What a partition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Content {
    /// GRUB can't load it.
    Torn,
    /// It loads and crashes.
    Crashes,
    /// It loads and proves healthy.
    Works,
}

/// Salts are not modelled.
const SALT: &str = "0123456789abcdef";

const CONTENTS: [Content; 3] = [Content::Torn, Content::Crashes, Content::Works];

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    records: Records,
    /// How often the slot on trial was started under the mark that stands.
    started: u8,
    /// The slots that the committed one may be: what init was told is stored, and what it was storing when power went.
    committed: Vec<Slot>,
    /// What a sector may hold whose write was cut.
    torn: &'static [Torn],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Torn {
    Garbage,
    Formatted,
}

impl Torn {
    fn copy<T>(self) -> Copy<T> {
        match self {
            Self::Garbage => Copy::Garbage,
            Self::Formatted => Copy::Formatted,
        }
    }
}

/// What slots A and B and recovery hold.
type Contents = [Content; 3];

fn content(contents: Contents, target: Target) -> Content {
    match target {
        Target::Slot(Slot::A) => contents[0],
        Target::Slot(Slot::B) => contents[1],
        Target::Recovery => contents[2],
    }
}

/// Sequences by their rank: only their order and equality count, so that the states are finitely many.
fn ranked(mut state: State) -> State {
    let mut numbers = BTreeSet::new();
    for commit in state.records.commits.iter().filter_map(Copy::valid) {
        numbers.extend([Some(commit.sequence), commit.mark].into_iter().flatten());
    }
    let standing = state.records.commit().map(|(_, commit)| (commit.pending, commit.mark));
    let rank = |number: u32| {
        u32::try_from(numbers.iter().position(|known| *known == number).map_or(0, |at| at + 1)).unwrap_or(0)
    };
    for copy in &mut state.records.commits {
        if let Copy::Valid(commit) = copy {
            commit.sequence = rank(commit.sequence);
            commit.mark = commit.mark.map(rank);
        }
    }
    for copy in &mut state.records.tries {
        if let Copy::Valid(record) = copy {
            // A mark that no commit record has is never met again.
            record.of = record.of.map(rank);
            record.count = 0;
            SALT.clone_into(&mut record.salt);
        }
    }
    if standing.is_none_or(|(pending, _)| !pending) {
        state.started = 0;
    }
    state
}

/// The states that a cut may leave while `record` is written over the copies in this order, the finished one last.
fn cuts<T: Clone>(torn: &[Torn], copies: &[Copy<T>; 2], order: [usize; 2], record: &T) -> Vec<[Copy<T>; 2]> {
    let mut states = Vec::new();
    let mut now = copies.clone();
    for at in order {
        for torn in torn {
            let mut cut = now.clone();
            cut[at] = torn.copy();
            states.push(cut);
        }
        now[at] = Copy::Valid(record.clone());
        states.push(now.clone());
    }
    states
}

/// Stores as `device::store_commit` does: cuts first, the finished state last.
fn store_commit(state: &State, commit: &Commit) -> Vec<State> {
    let standing = state.records.commit().map_or(1, |(copy, _)| copy);
    // To both GRUB and init a commit record that is not valid is none, whatever it is.
    let states = cuts(&state.torn[..state.torn.len().min(1)], &state.records.commits, [1 - standing, standing], commit);
    let last = states.len() - 1;
    let both = |commits: (usize, [Copy<Commit>; 2])| {
        let mut next = state.clone();
        if commits.0 == last {
            next.committed = vec![commit.slot];
        } else if !next.committed.is_empty() && !next.committed.contains(&commit.slot) {
            next.committed.push(commit.slot);
        }
        next.records.commits = commits.1;
        next
    };
    states.into_iter().enumerate().map(both).collect()
}

fn store_try(state: &State, record: &Try) -> Vec<State> {
    let standing = state.records.tried().map_or(1, |(copy, _)| copy);
    let states = cuts(state.torn, &state.records.tries, [1 - standing, standing], record);
    let with = |tries| State { records: Records { tries, ..state.records.clone() }, ..state.clone() };
    states.into_iter().map(with).collect()
}

/// GRUB's part of a boot: the states that a cut may leave, then all that may be booted with the state at that moment.
fn grub(state: &State, takes: [bool; 2]) -> (Vec<State>, Vec<Choice>, State) {
    let decision = decide(&state.records, Hand::Away, takes);
    let mut now = state.clone();
    let mut left = Vec::new();
    for (copy, record) in &decision.writes {
        for torn in state.torn {
            let mut cut = now.clone();
            cut.records.tries[*copy] = torn.copy();
            left.push(cut);
        }
        now.records.tries[*copy] = Copy::Valid(record.clone());
        left.push(now.clone());
    }
    for target in [Target::Slot(Slot::A), Target::Slot(Slot::B), Target::Recovery] {
        assert!(decision.order.iter().any(|choice| choice.target == target), "all is tried in the end: {state:?}");
    }
    if decision.order[0].why == Why::Pending {
        now.started += 1;
        assert!(now.started <= TRIES, "a slot is tried {TRIES} times at most: {state:?}");
    }
    (left, decision.order, now)
}

/// init's part: the states a cut may leave, then the settled state.
fn init(state: &State, choice: Choice) -> (Vec<State>, State) {
    let booted = Booted { target: choice.target, why: choice.why, tries: choice.tries, reset: false };
    let mut left = Vec::new();
    let mut now = state.clone();
    let mut step = |now: &mut State, states: Vec<State>| {
        *now = states.last().expect("the finished state").clone();
        left.extend(states);
    };
    let due = upkeep(&now.records, &booted, None, SALT);
    if let Some(commit) = due.commit.as_ref().filter(|_| due.write_commit) {
        let states = store_commit(&now, commit);
        step(&mut now, states);
    }
    if let Some(record) = &due.tries {
        let states = store_try(&now, record);
        step(&mut now, states);
    }
    // Nothing else is written before the box has been healthy.
    let standing = now.records.commit().map(|(_, commit)| commit.clone());
    if let Some(commit) = standing.and_then(|commit| healthy(&commit, &booted).expect("the sequence is small")) {
        let states = store_commit(&now, &commit);
        step(&mut now, states);
    }
    if let Some((_, record)) = now.records.tried() {
        let states = store_try(&now, &acknowledged(record));
        step(&mut now, states);
    }
    (left, now)
}

/// What a person may do on a healthy box: update, give up a trial, ask for recovery.
fn operations(state: &State, choice: Choice) -> Vec<State> {
    let booted = Booted { target: choice.target, why: choice.why, tries: choice.tries, reset: false };
    let Some((_, commit)) = state.records.commit() else { return Vec::new() };
    let version = Version::parse("1.2.3").expect("SemVer");
    let mut next = store_commit(state, &want_recovery(commit, true).expect("the sequence is small"));
    if commit.pending {
        next.extend(store_commit(state, &failed(commit).expect("the sequence is small")));
    }
    if let Ok(open) = withdrawn(commit, &booted) {
        let states = open.map_or_else(|| vec![state.clone()], |commit| store_commit(state, &commit));
        let mut written = states.last().expect("the finished state").clone();
        next.extend(states);
        let (_, standing) = written.records.commit().expect("it stood before");
        let marked = pending(standing, &booted, &version, Needs::Nothing, true).expect("it was writable");
        // Versions are not modelled: forget it again.
        let marked = Commit { versions: [None, None], ..marked };
        written.started = 0;
        next.extend(store_commit(&written, &marked));
    }
    next
}

/// Boots without a power cut until something works; how many boots that took.
fn boots_until_it_works(records: &Records, contents: Contents, takes: [bool; 2]) -> Option<usize> {
    let mut records = records.clone();
    for boots in 1..=16 {
        let decision = decide(&records, Hand::Away, takes);
        let choice = decision.boots(|target| content(contents, target) != Content::Torn)?;
        if content(contents, choice.target) == Content::Works {
            return Some(boots);
        }
        for (copy, record) in decision.writes {
            records.tries[copy] = Copy::Valid(record);
        }
    }
    None
}

/// Whether the copy of the try record that the next boot reads can be written.
fn counts(records: &Records, takes: [bool; 2]) -> bool {
    let writable = |copy: usize| takes[copy] && records.tries[copy] != Copy::Garbage;
    writable(0) || (writable(1) && records.tries[0].valid().is_none())
}

/// Without `soak`, from a disk just written and with sectors that are never torn; with it, from all that can be lost.
fn explore(takes: [bool; 2], soak: bool) -> (usize, usize, usize) {
    let mut seen: HashSet<State> = HashSet::new();
    let mut queue = VecDeque::new();
    let commits = [Copy::Valid(Commit::first(None)), Copy::Garbage];
    let tries = [Copy::Valid(Try::first(SALT.into())), Copy::Formatted, Copy::Garbage];
    // A medium that drops writes and tears them too is two faults at once: then a fourth try is possible.
    let torn: &[Torn] = if takes == [true, true] && soak { &[Torn::Garbage, Torn::Formatted] } else { &[] };
    for pick in 0..if soak { 36 } else { 1 } {
        let records = Records {
            commits: [commits[pick % 2].clone(), commits[pick / 2 % 2].clone()],
            tries: [tries[pick / 4 % 3].clone(), tries[pick / 12].clone()],
        };
        let committed = records.commit().map(|(_, commit)| commit.slot).into_iter().collect();
        let state = State { records, started: 0, committed, torn };
        seen.insert(state.clone());
        queue.push_back(state);
    }
    let works = |contents: &Contents| contents.contains(&Content::Works);
    let all =
        CONTENTS.iter().flat_map(|a| CONTENTS.iter().flat_map(move |b| CONTENTS.iter().map(move |r| [*a, *b, *r])));
    let all: Vec<Contents> = all.filter(works).collect();
    let (mut transitions, mut longest) = (0, 0);
    while let Some(state) = queue.pop_front() {
        match state.records.commit() {
            Some((_, commit)) => assert!(
                state.committed.is_empty() || state.committed.contains(&commit.slot),
                "a committed slot is kept: {state:?}"
            ),
            None => assert!(state.committed.is_empty(), "a commit record is kept: {state:?}"),
        }
        // Where nothing can be counted, what is committed and loads is all there is.
        if counts(&state.records, takes) {
            for contents in &all {
                let boots = boots_until_it_works(&state.records, *contents, takes);
                longest = longest.max(boots.unwrap_or_else(|| panic!("what works is reached: {contents:?} {state:?}")));
            }
        }
        let (mut next, order, running) = grub(&state, takes);
        for choice in order {
            let (cut, settled) = init(&running, choice);
            next.extend(cut);
            next.extend(operations(&settled, choice));
            next.push(settled);
        }
        // It crashed before init wrote anything.
        next.push(running);
        transitions += next.len();
        for state in next.into_iter().map(ranked) {
            if seen.insert(state.clone()) {
                queue.push_back(state);
            }
        }
    }
    (seen.len(), transitions, longest)
}

#[test]
fn every_state_boots_what_works_and_keeps_what_is_committed() {
    let soak = std::env::var_os("PILOTLIGHT_SOAK").is_some_and(|value| value == "1");
    let media: &[[bool; 2]] =
        if soak { &[[true, true], [true, false], [false, true], [false, false]] } else { &[[true, true]] };
    for takes in media {
        let (states, transitions, longest) = explore(*takes, soak);
        let _ = writeln!(
            std::io::stderr(),
            "slots: try records take {takes:?}: {states} states, {transitions} transitions, works after {longest} boots at most"
        );
        assert!(longest <= 10, "{longest} boots");
    }
}
