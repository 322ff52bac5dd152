//! [`Responder`]: one link's name, claimed by probing and answered for (RFC 6762).

use std::net::IpAddr;
use std::time::Duration;

use super::wire::{A, AAAA, ANY, Data, Message, Name, PTR, Question, Record};
use crate::time::Uptime;

/// Probes, and the pause after each (RFC 6762 section 8.1).
const PROBES: u8 = 3;
const PROBE_PAUSE: Duration = Duration::from_millis(250);
/// Announcements, and the pause between them (section 8.3).
const ANNOUNCEMENTS: u8 = 2;
const ANNOUNCE_PAUSE: Duration = Duration::from_secs(1);
/// The pause when another box that probes for the name at the same time wins (section 8.2).
const YIELD_PAUSE: Duration = Duration::from_secs(1);
/// After so many conflicts new names are tried slowly (section 8.1).
const MAX_CONFLICTS: u32 = 15;
const CONFLICT_PAUSE: Duration = Duration::from_secs(5);
/// A record is told to all at most this often (section 6).
const MULTICAST_PAUSE: Duration = Duration::from_secs(1);
/// For how long host names are told (section 10), and to ordinary resolvers (section 6.7).
const TTL: u32 = 120;
const LEGACY_TTL: u32 = 10;

/// Who is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    /// Every station of the link.
    All,
    /// Whoever asked.
    Asker,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No address yet.
    Idle,
    /// So many probes were sent.
    Probing(u8),
    /// So many announcements were sent.
    Announcing(u8),
    Claimed,
}

/// One link's name.
#[derive(Clone, Debug)]
pub struct Responder {
    host: String,
    addresses: Vec<IpAddr>,
    phase: Phase,
    next: Option<Uptime>,
    conflicts: u32,
    /// When the link was last told.
    told: Option<Uptime>,
}

impl Responder {
    /// A responder without addresses.
    pub fn new(host: &str) -> Self {
        let host = host.to_owned();
        Self { host, addresses: Vec::new(), phase: Phase::Idle, next: None, conflicts: 0, told: None }
    }

    /// The name that it claims or has: the host's own, with a number after conflicts.
    pub fn name(&self) -> String {
        match self.conflicts {
            0 => self.host.clone(),
            conflicts => format!("{}-{}", self.host, conflicts + 1),
        }
    }

    /// When [`Self::on_deadline`] wants to be called.
    pub const fn deadline(&self) -> Option<Uptime> {
        self.next
    }

    /// The link's addresses are these now. The first ones make it probe, others are told.
    pub fn on_addresses(&mut self, now: Uptime, addresses: Vec<IpAddr>) {
        if addresses == self.addresses {
            return;
        }
        let first = self.addresses.is_empty();
        self.addresses = addresses;
        (self.phase, self.next) = match self.phase {
            _ if self.addresses.is_empty() => (Phase::Idle, None),
            _ if first => (Phase::Probing(0), Some(now)),
            Phase::Announcing(_) | Phase::Claimed => (Phase::Announcing(0), Some(now)),
            probing => (probing, self.next),
        };
    }

    /// What is due at `now`: a message for all.
    pub fn on_deadline(&mut self, now: Uptime) -> Option<Message> {
        if self.next.is_none_or(|next| next > now) {
            return None;
        }
        match self.phase {
            Phase::Idle | Phase::Claimed => {
                self.next = None;
                None
            }
            Phase::Probing(sent) if sent < PROBES => {
                (self.phase, self.next) = (Phase::Probing(sent + 1), Some(now + PROBE_PAUSE));
                let question = Question { name: self.own(), kind: ANY, unicast: sent == 0 };
                Some(Message { questions: vec![question], claims: self.host_records(), ..Message::default() })
            }
            Phase::Probing(_) => Some(self.announce(now, 1)),
            Phase::Announcing(sent) => Some(self.announce(now, sent + 1)),
        }
    }

    fn announce(&mut self, now: Uptime, sent: u8) -> Message {
        let more = sent < ANNOUNCEMENTS;
        self.phase = if more { Phase::Announcing(sent) } else { Phase::Claimed };
        self.next = more.then(|| now + ANNOUNCE_PAUSE);
        self.told = Some(now);
        Message { response: true, answers: self.records(), ..Message::default() }
    }

    /// What a packet is answered, if anything. `legacy`: it did not come from port 5353, so that an ordinary resolver asks.
    pub fn on_message(&mut self, now: Uptime, message: &Message, legacy: bool) -> Option<(Message, To)> {
        if self.phase == Phase::Idle {
            return None;
        }
        if message.response {
            self.look_for_conflict(now, message);
            return None;
        }
        if matches!(self.phase, Phase::Probing(_)) {
            self.compare_probes(now, message);
            return None;
        }
        let known = |record: &Record| {
            message
                .answers
                .iter()
                .any(|other| other.name == record.name && other.data == record.data && other.ttl >= TTL / 2)
        };
        let asked = |record: &Record| {
            let about = |question: &&Question| {
                question.name == record.name && (question.kind == record.kind() || question.kind == ANY)
            };
            message.questions.iter().any(|question| about(&question))
        };
        let mut answers: Vec<_> = self.records().into_iter().filter(|record| asked(record) && !known(record)).collect();
        if answers.is_empty() {
            return None;
        }
        if legacy {
            answers.iter_mut().for_each(|record| record.ttl = LEGACY_TTL);
            let questions = message.questions.iter().take(1).cloned().collect();
            return Some((
                Message { id: message.id, response: true, questions, answers, claims: Vec::new() },
                To::Asker,
            ));
        }
        let answer = Message { response: true, answers, ..Message::default() };
        // A prober must hear at once (section 6).
        let probe = !message.claims.is_empty();
        if message.questions.iter().all(|question| question.unicast) {
            return Some((answer, To::Asker));
        }
        if !probe && self.told.is_some_and(|told| now.since(told) < MULTICAST_PAUSE) {
            return None;
        }
        self.told = Some(now);
        Some((answer, To::All))
    }

    /// Another station that says our name is at an address that is not ours: one of us must take another name. Whoever
    /// has it already keeps it by probing again (section 9).
    fn look_for_conflict(&mut self, now: Uptime, message: &Message) {
        let own = self.own();
        let foreign = |record: &Record| match record.data {
            Data::Address(address) => record.name == own && record.ttl > 0 && !self.addresses.contains(&address),
            Data::Pointer(_) | Data::Other(_) => false,
        };
        if !message.answers.iter().any(foreign) {
            return;
        }
        if matches!(self.phase, Phase::Probing(_)) {
            self.conflicts = self.conflicts.saturating_add(1);
        }
        let pause = if self.conflicts < MAX_CONFLICTS { Duration::ZERO } else { CONFLICT_PAUSE };
        (self.phase, self.next) = (Phase::Probing(0), Some(now + pause));
    }

    /// Two boxes probe for one name at a time: the lower records wait and probe again (section 8.2).
    fn compare_probes(&mut self, now: Uptime, message: &Message) {
        let own = self.own();
        let key = |record: &Record| (record.kind(), record.data_octets());
        let mut theirs: Vec<_> = message.claims.iter().filter(|record| record.name == own).map(key).collect();
        let mut ours: Vec<_> = self.host_records().iter().map(key).collect();
        theirs.sort();
        ours.sort();
        if !theirs.is_empty() && ours < theirs {
            (self.phase, self.next) = (Phase::Probing(0), Some(now + YIELD_PAUSE));
        }
    }

    fn own(&self) -> Name {
        Name::local(&self.name())
    }

    fn host_records(&self) -> Vec<Record> {
        let record = |address: &IpAddr| Record { name: self.own(), data: Data::Address(*address), ttl: TTL };
        self.addresses.iter().map(record).collect()
    }

    /// Everything that is known about us: addresses for the name, the name for each address.
    fn records(&self) -> Vec<Record> {
        let pointer =
            |address: &IpAddr| Record { name: Name::reverse(*address), data: Data::Pointer(self.own()), ttl: TTL };
        let mut records = self.host_records();
        records.extend(self.addresses.iter().map(pointer));
        debug_assert!(records.iter().all(|record| matches!(record.kind(), A | AAAA | PTR)));
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Uptime = Uptime::from_secs(10);

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn claimed() -> (Responder, Uptime) {
        let mut responder = Responder::new("pilotlight-abcdef");
        responder.on_addresses(START, vec![address("192.0.2.1"), address("fe80::1")]);
        let mut now = START;
        while let Some(next) = responder.deadline() {
            now = next;
            responder.on_deadline(now);
        }
        (responder, now + Duration::from_secs(60))
    }

    fn ask(name: Name, kind: u16, unicast: bool) -> Message {
        Message { questions: vec![Question { name, kind, unicast }], ..Message::default() }
    }

    fn own() -> Name {
        Name::local("pilotlight-abcdef")
    }

    fn says(name: Name, at: &str) -> Message {
        let answers = vec![Record { name, data: Data::Address(address(at)), ttl: 120 }];
        Message { response: true, answers, ..Message::default() }
    }

    #[test]
    fn the_name_is_probed_three_times_and_announced_twice() {
        let mut responder = Responder::new("pilotlight-abcdef");
        responder.on_addresses(START, vec![address("192.0.2.1")]);
        let mut sent = Vec::new();
        while let Some(next) = responder.deadline() {
            sent.extend(responder.on_deadline(next));
        }
        let kinds: Vec<_> =
            sent.iter().map(|message| (message.response, message.claims.len(), message.answers.len())).collect();
        assert_eq!(kinds, [(false, 1, 0), (false, 1, 0), (false, 1, 0), (true, 0, 2), (true, 0, 2)]);
    }

    #[test]
    fn only_questions_about_us_are_answered() {
        let (mut responder, now) = claimed();
        let answers = |answer: Option<(Message, To)>| answer.map(|(message, to)| (message.answers.len(), to));
        assert_eq!(answers(responder.on_message(now, &ask(own(), A, false), false)), Some((1, To::All)));
        let rows = [
            (ask(own(), A, false), false, None, "a second time within a second"),
            (ask(own(), A, true), false, Some((1, To::Asker)), "the asker alone"),
            (ask(own(), A, false), true, Some((1, To::Asker)), "an ordinary resolver"),
            (ask(Name::reverse(address("fe80::1")), PTR, true), false, Some((1, To::Asker)), "the name of an address"),
            (ask(own(), ANY, true), false, Some((2, To::Asker)), "everything"),
            (ask(own(), 33, true), false, None, "another type"),
            (ask(Name::local("printer"), A, true), false, None, "another name"),
            (Message { answers: says(own(), "192.0.2.1").answers, ..ask(own(), A, true) }, false, None, "it knows"),
        ];
        for (message, legacy, expected, what) in rows {
            assert_eq!(answers(responder.on_message(now, &message, legacy)), expected, "{what}");
        }
    }

    #[test]
    fn an_ordinary_resolver_gets_its_number_and_question_back() {
        let (mut responder, now) = claimed();
        let question = Message { id: 77, ..ask(own(), A, false) };
        let (answer, _) = responder.on_message(now, &question, true).unwrap();
        assert_eq!((answer.id, &answer.questions, answer.answers[0].ttl), (77, &question.questions, 10));
    }

    #[test]
    fn a_name_that_another_has_gets_a_number() {
        let mut responder = Responder::new("pilotlight-abcdef");
        responder.on_addresses(START, vec![address("192.0.2.1")]);
        responder.on_deadline(START);
        assert_eq!(responder.on_message(START, &says(own(), "192.0.2.9"), false), None);
        assert_eq!(responder.name(), "pilotlight-abcdef-2");
        // Ours by another interface or an echo of our own is no conflict.
        responder.on_message(START, &says(Name::local("pilotlight-abcdef-2"), "192.0.2.1"), false);
        assert_eq!(responder.name(), "pilotlight-abcdef-2");
    }

    #[test]
    fn a_name_in_use_is_probed_again_before_it_is_given_up() {
        let (mut responder, now) = claimed();
        responder.on_message(now, &says(own(), "192.0.2.9"), false);
        assert_eq!((responder.name().as_str(), responder.phase), ("pilotlight-abcdef", Phase::Probing(0)));
        responder.on_message(now, &says(own(), "192.0.2.9"), false);
        assert_eq!(responder.name(), "pilotlight-abcdef-2");
    }

    #[test]
    fn of_two_that_probe_the_lower_waits() {
        let mut lower = Responder::new("pilotlight-abcdef");
        lower.on_addresses(START, vec![address("192.0.2.1")]);
        let mut upper = lower.clone();
        upper.on_addresses(START, vec![address("192.0.2.2")]);
        let (first, second) = (lower.on_deadline(START).unwrap(), upper.on_deadline(START).unwrap());
        lower.on_message(START, &second, false);
        upper.on_message(START, &first, false);
        assert_eq!((lower.deadline(), upper.deadline()), (Some(START + YIELD_PAUSE), Some(START + PROBE_PAUSE)));
    }
}
