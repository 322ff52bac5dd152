//! What GRUB boots: `board/grub.cfg` as a function. The two are run over one table and must agree (`tests/it/slots_grub.rs`).

use super::record::{Copy, Records, Try};
use super::{Slot, Target, Why};

/// How often a pending slot is tried.
pub const TRIES: u8 = 3;

/// What somebody chose in GRUB's menu.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Hand {
    /// Nothing: nobody was there.
    Away,
    /// Recovery.
    Recovery,
    /// The slot that is not committed.
    Other,
}

/// One thing to boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Choice {
    /// What.
    pub target: Target,
    /// Why.
    pub why: Why,
    /// Tries of the pending slot so far, this one counted: `pilotlight.try`.
    pub tries: u8,
}

/// What one boot does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The copies of the try record that are written before anything is loaded, in order.
    pub writes: Vec<(usize, Try)>,
    /// What is loaded: the first that can be. When none can, the box reboots.
    pub order: Vec<Choice>,
}

impl Decision {
    /// What is booted on a disk where `loads` can be.
    pub fn boots(&self, loads: impl Fn(Target) -> bool) -> Option<Choice> {
        self.order.iter().copied().find(|choice| loads(choice.target))
    }
}

/// Decides what `records` boot. `takes` says of each copy of the try record whether it reads back as written;
/// it never does where the record is [`Copy::Garbage`], since GRUB writes into environment blocks alone.
pub fn decide(records: &Records, hand: Hand, takes: [bool; 2]) -> Decision {
    let mut boot = Boot::new(records, takes);
    match hand {
        Hand::Away => boot.choose(),
        Hand::Recovery => boot.operator(Some(Target::Recovery)),
        Hand::Other => boot.operator(boot.slot.map(|slot| Target::Slot(slot.other()))),
    }
    boot.decision
}

/// The script's variables.
struct Boot {
    slot: Option<Slot>,
    default: bool,
    pending: bool,
    mark: Option<u32>,
    peer_good: bool,
    want_recovery: bool,
    /// The copy of the try record that is read first.
    tried: Option<usize>,
    tries: u8,
    record: Try,
    takes: [bool; 2],
    decision: Decision,
}

impl Boot {
    fn new(records: &Records, takes: [bool; 2]) -> Self {
        let tried = records.tried();
        let record = tried.map_or_else(|| Try::first(String::new()), |(_, record)| record.clone());
        let writable = |copy: usize| takes[copy] && records.tries[copy] != Copy::Garbage;
        let mut boot = Self {
            slot: record.last,
            default: true,
            pending: false,
            mark: None,
            peer_good: false,
            want_recovery: false,
            tried: tried.map(|(copy, _)| copy),
            tries: record.tries,
            record,
            takes: [writable(0), writable(1)],
            decision: Decision { writes: Vec::new(), order: Vec::new() },
        };
        if let Some((_, commit)) = records.commit() {
            boot.slot = Some(commit.slot);
            boot.default = false;
            boot.pending = commit.pending;
            boot.mark = commit.mark;
            boot.peer_good = commit.peer_good && !commit.pending;
            boot.want_recovery = commit.want_recovery;
        }
        if boot.record.of != boot.mark {
            boot.tries = 0;
        }
        if boot.pending && boot.tried.is_none() {
            // Nobody knows how often it was tried.
            boot.tries = TRIES;
        }
        boot
    }

    /// The choice without a hand on the keyboard.
    fn choose(&mut self) {
        let mut first = Why::Committed;
        if self.pending && !self.want_recovery {
            if let Some(slot) = self.slot
                && self.tries < TRIES
            {
                self.tries += 1;
                if self.remember() {
                    self.start(Target::Slot(slot.other()), Why::Pending);
                    return self.rest();
                }
                // An uncounted try could be the fourth.
                self.tries -= 1;
            }
            first = Why::Fallback;
        }
        let turn = self.record.boots;
        self.record.boots = (turn + 1) % 8;
        self.remember();
        let Some(slot) = self.slot else {
            let target = match turn {
                0..=2 => Target::Recovery,
                3..=5 => Target::Slot(Slot::A),
                _ => Target::Slot(Slot::B),
            };
            self.start(target, Why::Default);
            return self.rest();
        };
        let late = matches!(turn, 5 | 6);
        if turn == 7 {
            self.start(Target::Slot(slot.other()), Why::Fallback);
        } else if self.want_recovery {
            if !late {
                self.start(Target::Recovery, Why::Operator);
            }
        } else if late {
            self.start(Target::Recovery, Why::Recovery);
        } else {
            self.start(Target::Slot(slot), if self.default { Why::Default } else { first });
        }
        self.rest();
    }

    fn operator(&mut self, chosen: Option<Target>) {
        self.remember();
        if let Some(target) = chosen {
            self.start(target, Why::Operator);
        }
        self.rest();
    }

    /// What is left when the first choice does not load.
    fn rest(&mut self) {
        let Some(slot) = self.slot else {
            self.start(Target::Recovery, Why::Default);
            self.start(Target::Slot(Slot::A), Why::Default);
            return self.start(Target::Slot(Slot::B), Why::Default);
        };
        self.start(Target::Slot(slot), Why::Fallback);
        if self.peer_good {
            self.start(Target::Slot(slot.other()), Why::Fallback);
        }
        self.start(Target::Recovery, Why::Recovery);
        self.start(Target::Slot(slot.other()), Why::Fallback);
    }

    fn start(&mut self, target: Target, why: Why) {
        self.decision.order.push(Choice { target, why, tries: self.tries });
    }

    /// Writes the try record. Returns whether the copy that is read first at the next boot has it.
    fn remember(&mut self) -> bool {
        self.record.count = (self.record.count + 1) % 100;
        self.record.of = self.mark;
        self.record.tries = self.tries;
        self.record.last = self.slot;
        let mut kept = false;
        for copy in 0..2 {
            if self.takes[copy] {
                self.decision.writes.push((copy, self.record.clone()));
                kept |= copy == 0 || self.tried != Some(0);
            }
        }
        kept
    }
}
