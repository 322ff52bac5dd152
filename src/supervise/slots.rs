//! PID 1's share in the slots: it acknowledges a boot that lasts, judges the system on trial, and keeps wishes.
//!
//! What the records become says [`crate::slots::change`]; here is decided when. Writes are done elsewhere, one at a time,
//! and nothing counts before it is on the medium: a wish is answered, and the run ended, only then.

use std::collections::VecDeque;
use std::time::Duration;

use super::control::{Reply, SlotRecords};
use super::event::{Action, Ending, Report, Why};
use crate::slots::health::{Health, Limits, Missing, Verdict, judge};
use crate::slots::{Booted, Commit, Needs, Records, Slot, Try, Version, change};
use crate::time::Uptime;

/// Wishes that wait; as many as may ask at a time.
const MAX_WISHES: usize = 16;
/// How long a write may take; a medium that hangs for longer counts as gone until it answers.
const WRITE_LIMIT: Duration = Duration::from_secs(60);

/// What somebody wants of the slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Boot recovery next, or no more.
    Recovery(bool),
    /// Forget everything at the next early boot, which is at once.
    Reset,
    /// This slot is about to be overwritten.
    Withdraw(Slot),
    /// This slot was written: try it at the next boot.
    Try {
        /// Which.
        slot: Slot,
        /// What it holds.
        version: Version,
        /// Whether a person asked for it although it is older, or failed before.
        asked: bool,
    },
    /// Trust this slot, since no record tells.
    Choose(Slot),
}

/// What the services say that matters to the slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct View {
    /// The network service is ready, and the box has an address.
    pub net: bool,
    /// The page answers.
    pub web: bool,
    /// The provider is ready.
    pub provider: bool,
    /// The provider reaches Omni.
    pub omni: bool,
    /// When the boot counts as one that lasts, unless something happens to the page.
    pub lasts_at: Option<Uptime>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Found {
    /// Nobody has read them yet.
    Unread,
    /// There are none, and why.
    Missing(String),
    Records(Box<Records>),
}

/// What a write is for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Cause {
    Acknowledge,
    Commit(Slot),
    GiveUp(Missing),
    /// A critical service can't be brought back and no reboot is left.
    Rescue(&'static str),
    Wish {
        ticket: u64,
        uid: u32,
        wish: Wish,
    },
}

/// What follows from a write that has ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The run ends.
    pub end: Option<(Ending, Why)>,
    /// This service stays broken: recovery can't be asked for.
    pub not_rescued: Option<&'static str>,
}

/// The slots, as PID 1 sees them.
#[derive(Clone, Debug)]
pub(super) struct Slots {
    /// Nothing where GRUB did not start this system: no record is touched then.
    booted: Option<Booted>,
    limits: Limits,
    found: Found,
    /// What is written now, and until when it may be.
    writing: Option<(Cause, Uptime)>,
    wishes: VecDeque<(u64, u32, Wish)>,
    rescue: Option<&'static str>,
    acknowledged: bool,
    /// When the services were started.
    began: Uptime,
    /// Since when nothing is missing.
    whole: Option<Uptime>,
    missing: Option<Missing>,
    /// A critical service of the system on trial can't be brought back.
    doomed: Option<Missing>,
    deadline: Option<Uptime>,
}

impl Default for Slots {
    fn default() -> Self {
        Self {
            booted: None,
            limits: Limits::default(),
            found: Found::Unread,
            writing: None,
            wishes: VecDeque::new(),
            rescue: None,
            acknowledged: false,
            began: Uptime::default(),
            whole: None,
            missing: None,
            doomed: None,
            deadline: None,
        }
    }
}

impl Slots {
    /// What runs, and how long a trial may take.
    pub fn oriented(&mut self, booted: Option<Booted>, limits: Limits) {
        (self.booted, self.limits) = (booted, limits);
    }

    /// The services are started at `now`.
    pub fn began(&mut self, now: Uptime) {
        self.began = now;
    }

    /// The records were read, or can't be.
    pub fn read(&mut self, records: Result<Box<Records>, String>, actions: &mut Vec<Action>) {
        self.found = match records {
            Ok(records) => Found::Records(records),
            Err(reason) => {
                if self.booted.is_some() {
                    actions.push(Action::Report(Report::SlotFault(reason.clone())));
                }
                Found::Missing(reason)
            }
        };
    }

    /// Whether a system runs that may be given up for another.
    pub fn on_trial(&self) -> bool {
        self.trial().is_some_and(|(_, commit)| commit.pending)
    }

    /// A critical service of the system on trial can't be brought back.
    pub fn doom(&mut self, service: &str) {
        self.doomed = Some(match service {
            "net" => Missing::Net,
            "web" => Missing::Web,
            _ => Missing::Provider,
        });
    }

    /// Asks for recovery, since `service` can't be brought back; says whether that can be. Once: where recovery was asked
    /// for and did not come, it would not come again either.
    pub fn rescue(&mut self, service: &'static str) -> bool {
        let possible = self.standing().is_some_and(|commit| !commit.want_recovery);
        if possible {
            self.rescue = Some(service);
        }
        possible
    }

    /// Somebody wants something.
    pub fn wish(&mut self, ticket: u64, uid: u32, wish: Wish, actions: &mut Vec<Action>) {
        let refusal = match &self.found {
            _ if self.booted.is_none() => Some("GRUB did not start this system".to_owned()),
            Found::Missing(reason) => Some(format!("there are no slot records: {reason}")),
            Found::Unread | Found::Records(_) if self.wishes.len() >= MAX_WISHES => {
                Some("too much is asked".to_owned())
            }
            Found::Unread | Found::Records(_) => None,
        };
        match refusal {
            Some(reason) => actions.push(Action::Answer { ticket, reply: Reply::Refused(reason) }),
            None => self.wishes.push_back((ticket, uid, wish)),
        }
    }

    /// When [`Self::tend`] has something to do by the time alone.
    pub fn deadline(&self) -> Option<Uptime> {
        self.deadline
    }

    /// Does what is due: one write at a time.
    pub fn tend(&mut self, now: Uptime, view: View, actions: &mut Vec<Action>) -> Outcome {
        if let Some((cause, _)) = self.writing.take_if(|(_, until)| now >= *until) {
            let fault = "the medium does not answer".to_owned();
            // Nothing more is asked of it, so that its late answer is not taken for another's.
            self.found = Found::Missing(fault.clone());
            self.deadline = None;
            return self.finished(now, cause, Err(fault), actions);
        }
        let mut verdict = self.judge(now, view);
        self.deadline = match verdict {
            Some(Verdict::Wait(until)) => Some(until),
            Some(Verdict::Commit | Verdict::GiveUp(_)) | None => None,
        };
        if !self.acknowledged && self.records().is_some() {
            self.deadline = self.deadline.into_iter().chain(view.lasts_at.filter(|at| *at > now)).min();
        }
        if let Some((_, until)) = &self.writing {
            self.deadline = Some(*until);
        }
        while self.writing.is_none() && self.records().is_some() {
            match self.begin(now, verdict.take(), view, actions) {
                None => break,
                Some(outcome) if outcome != Outcome::default() => return outcome,
                Some(_) => {}
            }
        }
        Outcome::default()
    }

    /// A write has ended; `records` is what is there now.
    pub fn written(
        &mut self,
        now: Uptime,
        outcome: Result<(), String>,
        records: Option<Box<Records>>,
        actions: &mut Vec<Action>,
    ) -> Outcome {
        if let Some(records) = records {
            self.found = Found::Records(records);
        }
        match self.writing.take() {
            Some((cause, _)) => self.finished(now, cause, outcome, actions),
            None => Outcome::default(),
        }
    }

    fn finished(
        &mut self,
        now: Uptime,
        cause: Cause,
        outcome: Result<(), String>,
        actions: &mut Vec<Action>,
    ) -> Outcome {
        let mut follows = Outcome::default();
        if let Err(fault) = &outcome {
            actions.push(Action::Report(Report::SlotFault(fault.clone())));
        }
        match (cause, outcome) {
            (Cause::Acknowledge, Ok(())) => actions.push(Action::Report(Report::Acknowledged)),
            // It was said. What does not keep this does not keep GRUB's count either.
            (Cause::Acknowledge, Err(_)) => {}
            (Cause::Commit(slot), Ok(())) => actions.push(Action::Report(Report::Committed(slot))),
            // Once more after as long a time.
            (Cause::Commit(_), Err(_)) => self.whole = Some(now),
            // Unrecorded, the tries that GRUB counts end the trial.
            (Cause::GiveUp(missing), Ok(()) | Err(_)) => follows.end = Some((Ending::Reboot, Why::Trial(missing))),
            (Cause::Rescue(service), Ok(())) => follows.end = Some((Ending::Reboot, Why::Spent(service))),
            (Cause::Rescue(service), Err(_)) => follows.not_rescued = Some(service),
            (Cause::Wish { ticket, .. }, Err(fault)) => {
                actions.push(Action::Answer { ticket, reply: Reply::Refused(fault) });
            }
            (Cause::Wish { ticket, uid, wish: Wish::Reset }, Ok(())) => {
                actions.push(Action::Answer { ticket, reply: Reply::Accepted });
                follows.end = Some((Ending::Reboot, Why::Asked(uid)));
            }
            (Cause::Wish { ticket, wish, .. }, Ok(())) => granted(ticket, &wish, actions),
        }
        follows
    }

    /// What the records say, for those who ask.
    pub fn status(&self) -> Option<SlotRecords> {
        let commit = self.standing()?;
        let pending = commit.pending.then(|| commit.slot.other());
        Some(SlotRecords {
            committed: commit.slot,
            pending,
            versions: commit.versions.clone(),
            failed: commit.failed.iter().cloned().collect(),
            want_recovery: commit.want_recovery,
            trial: self.trial().map(|(slot, _)| self.trial_in_words(slot)).unwrap_or_default(),
        })
    }

    /// Without seconds: what shows it shows changes.
    fn trial_in_words(&self, slot: Slot) -> String {
        let slot = slot.letter();
        match (self.missing, self.whole) {
            (Some(missing), _) => format!("slot {slot} is on trial: {missing}"),
            (None, Some(_)) => format!("slot {slot} is on trial: all is well so far"),
            (None, None) => format!("slot {slot} is on trial"),
        }
    }

    fn records(&self) -> Option<&Records> {
        match &self.found {
            // A system that GRUB did not start touches nothing.
            Found::Records(records) if self.booted.is_some() => Some(records),
            Found::Records(_) | Found::Unread | Found::Missing(_) => None,
        }
    }

    fn standing(&self) -> Option<&Commit> {
        Some(self.records()?.commit()?.1)
    }

    /// The slot that runs and the record that stands, when there is something to prove.
    fn trial(&self) -> Option<(Slot, &Commit)> {
        let (booted, commit) = (self.booted.as_ref()?, self.standing()?);
        let to_prove = matches!(change::healthy(commit, booted), Ok(Some(_)));
        Some((booted.slot()?, commit)).filter(|_| to_prove)
    }

    /// What becomes of the system that runs, where it has something to prove.
    fn judge(&mut self, now: Uptime, view: View) -> Option<Verdict> {
        let (_, commit) = self.trial()?;
        let (pending, needs) = (commit.pending, commit.needs);
        if let Some(missing) = self.doomed.filter(|_| pending) {
            return Some(Verdict::GiveUp(missing));
        }
        let View { net, web, provider, omni, .. } = view;
        let health = Health {
            net,
            web,
            provider: provider || needs == Needs::Nothing,
            omni: (needs == Needs::Omni).then_some(omni),
        };
        self.missing = health.missing();
        match self.missing {
            Some(_) => self.whole = None,
            None => drop(self.whole.get_or_insert(now)),
        }
        let verdict = judge(now, self.began, health, self.whole.unwrap_or(now), self.limits);
        match verdict {
            // One that stands in for a slot that does not load has nowhere to go back to.
            Verdict::GiveUp(_) if !pending => None,
            verdict => Some(verdict),
        }
    }

    /// Begins the write that is most urgent. Nothing when nothing is due.
    fn begin(
        &mut self,
        now: Uptime,
        verdict: Option<Verdict>,
        view: View,
        actions: &mut Vec<Action>,
    ) -> Option<Outcome> {
        let (Some(booted), Found::Records(records)) = (self.booted.clone(), self.found.clone()) else { return None };
        let standing = records.commit().map(|(_, commit)| commit);
        let (cause, change) = match (verdict, standing) {
            (Some(Verdict::GiveUp(missing)), Some(commit)) => {
                actions.push(Action::Report(Report::GivesUp { slot: commit.slot.other(), missing }));
                (Cause::GiveUp(missing), change::failed(commit))
            }
            (Some(Verdict::Commit), Some(commit)) => match change::healthy(commit, &booted) {
                Ok(Some(next)) => (Cause::Commit(next.slot), Ok(next)),
                Ok(None) => return None,
                Err(refused) => (Cause::Commit(commit.slot.other()), Err(refused)),
            },
            (Some(Verdict::Wait(_)) | None, _) | (_, None) => {
                if let Some(service) = self.rescue.take() {
                    let change =
                        standing.map_or(Err(change::Refused::NoRecord), |commit| change::want_recovery(commit, true));
                    (Cause::Rescue(service), change)
                } else if let Some((ticket, uid, wish)) = self.wishes.pop_front() {
                    match fulfil(&wish, standing, &booted, view) {
                        Ok(Some(next)) => (Cause::Wish { ticket, uid, wish }, Ok(next)),
                        Ok(None) => {
                            granted(ticket, &wish, actions);
                            return Some(Outcome::default());
                        }
                        Err(refused) => {
                            actions.push(Action::Answer { ticket, reply: Reply::Refused(refused.to_string()) });
                            return Some(Outcome::default());
                        }
                    }
                } else if let Some(record) = self.unacknowledged(now, view, &records) {
                    self.acknowledged = true;
                    if record.boots > 0 {
                        self.writing = Some((Cause::Acknowledge, now + WRITE_LIMIT));
                        self.deadline = Some(now + WRITE_LIMIT);
                        actions.push(Action::WriteSlots { commit: None, tries: Some(change::acknowledged(record)) });
                    }
                    return Some(Outcome::default());
                } else {
                    return None;
                }
            }
        };
        match change {
            Ok(commit) => {
                self.writing = Some((cause, now + WRITE_LIMIT));
                self.deadline = Some(now + WRITE_LIMIT);
                actions.push(Action::WriteSlots { commit: Some(Box::new(commit)), tries: None });
                Some(Outcome::default())
            }
            Err(refused) => Some(self.finished(now, cause, Err(refused.to_string()), actions)),
        }
    }

    /// The try record, if this boot has lasted and nobody was told.
    fn unacknowledged<'a>(&self, now: Uptime, view: View, records: &'a Records) -> Option<&'a Try> {
        let lasts = view.lasts_at.is_some_and(|at| now >= at);
        records.tried().map(|(_, record)| record).filter(|_| lasts && !self.acknowledged)
    }
}

/// Answers a wish that stands. Who writes slots gets at one after it was withdrawn and until it is to be tried.
fn granted(ticket: u64, wish: &Wish, actions: &mut Vec<Action>) {
    match wish {
        Wish::Withdraw(slot) => actions.push(Action::OpenSlot(*slot)),
        Wish::Try { slot, .. } => actions.push(Action::CloseSlot(*slot)),
        Wish::Recovery(_) | Wish::Reset | Wish::Choose(_) => {}
    }
    actions.push(Action::Answer { ticket, reply: Reply::Done });
}

/// The record that a wish makes; nothing when it stands already.
fn fulfil(
    wish: &Wish,
    standing: Option<&Commit>,
    booted: &Booted,
    view: View,
) -> Result<Option<Commit>, change::Refused> {
    let commit = match (wish, standing) {
        (Wish::Choose(slot), None) => return Ok(Some(change::chosen(*slot, None))),
        (_, None) => return Err(change::Refused::NoRecord),
        (_, Some(commit)) => commit,
    };
    match wish {
        Wish::Recovery(want) if commit.want_recovery == *want => Ok(None),
        Wish::Recovery(want) => change::want_recovery(commit, *want).map(Some),
        Wish::Reset => change::reset(commit, true).map(Some),
        Wish::Withdraw(slot) | Wish::Try { slot, .. } if *slot == commit.slot => Err(change::Refused::Committed(*slot)),
        Wish::Withdraw(_) => change::withdrawn(commit, booted),
        Wish::Try { version, asked, .. } => {
            let needs = match view {
                View { omni: true, .. } => Needs::Omni,
                View { provider: true, .. } => Needs::Provider,
                View { .. } => Needs::Nothing,
            };
            change::pending(commit, booted, version, needs, *asked).map(Some)
        }
        Wish::Choose(_) => Err(change::Refused::Known),
    }
}
