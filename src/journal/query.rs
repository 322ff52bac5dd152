//! What can be asked of the journal: the last lines, by service and priority. A question and its answer are one datagram
//! each.

use serde::{Deserialize, Serialize};

use super::entry::Entry;
use super::ring::Ring;
use crate::time::UnixTime;

/// Most octets of a question.
pub const MAX_QUERY: usize = 256;
/// Most octets of an answer.
pub const MAX_ANSWER: usize = 60 * 1024;
/// Most lines of an answer.
pub const MAX_LINES: usize = 500;
/// Most octets of a line's message; the rest is cut off.
const MAX_MESSAGE: usize = 2 * 1024;
/// Both sides are of one image; a page that is open over an update may be of another.
const VERSION: u8 = 1;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// Only of this service.
    pub service: Option<String>,
    /// No priority above this number, 0 to 7.
    pub priority: u8,
    /// Only what came before this entry: the next page.
    pub before: Option<u64>,
    /// At most so many; [`MAX_LINES`] at most.
    pub lines: u16,
}

/// One line of an answer; fields as in [`Entry`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number.
    pub sequence: u64,
    /// When it was received.
    pub time: UnixTime,
    /// 0 to 7.
    pub priority: u8,
    /// By the kernel's word.
    pub service: String,
    /// By its own word.
    pub identifier: String,
    /// What; long ones are cut.
    pub message: String,
}

/// What went wrong with the journal itself since the box started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Entries refused since their sender logs too much.
    pub dropped: u64,
    /// Messages that were malformed or hostile.
    pub refused: u64,
    /// Entries that left memory before they were on disk.
    pub lost: u64,
    /// Why the last chunk could not be written, unless a later one was.
    pub trouble: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The newest first.
    pub lines: Vec<Line>,
    /// Whether older ones match as well.
    pub more: bool,
    /// How the journal fares.
    pub health: Health,
}

/// It does not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not of this version of the journal's questions")]
pub struct Malformed;

impl Query {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// As it was sent.
    ///
    /// # Errors
    ///
    /// [`Malformed`], also when it is longer than [`MAX_QUERY`].
    pub fn decode(octets: &[u8]) -> Result<Self, Malformed> {
        decode(octets, MAX_QUERY)
    }
}

impl Answer {
    /// As it is sent.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// As it was sent.
    ///
    /// # Errors
    ///
    /// [`Malformed`], also when it is longer than [`MAX_ANSWER`].
    pub fn decode(octets: &[u8]) -> Result<Self, Malformed> {
        decode(octets, MAX_ANSWER)
    }
}

/// Answers from what is in memory.
pub fn answer(ring: &Ring, query: &Query, mut health: Health) -> Answer {
    health.lost = ring.lost();
    let most = usize::from(query.lines).min(MAX_LINES);
    let matches = |entry: &&Entry| {
        entry.priority <= query.priority
            && query.before.is_none_or(|before| entry.sequence < before)
            && query.service.as_ref().is_none_or(|service| *service == entry.service)
    };
    let mut answer = Answer { lines: Vec::new(), more: false, health };
    let mut octets = answer.encode().len() + 16;
    for entry in ring.newest_first().filter(matches) {
        let line = line(entry);
        // Strings, and the most that the numbers take.
        octets += line.service.len() + line.identifier.len() + line.message.len() + 40;
        if answer.lines.len() == most || octets > MAX_ANSWER {
            answer.more = true;
            break;
        }
        answer.lines.push(line);
    }
    answer
}

fn line(entry: &Entry) -> Line {
    Line {
        sequence: entry.sequence,
        time: entry.time,
        priority: entry.priority,
        service: entry.service.clone(),
        identifier: entry.identifier.clone(),
        message: entry.message[..entry.message.floor_char_boundary(MAX_MESSAGE)].to_owned(),
    }
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).unwrap_or_default()
}

fn decode<T: for<'a> Deserialize<'a>>(octets: &[u8], most: usize) -> Result<T, Malformed> {
    let body = octets.strip_prefix(&[VERSION]).filter(|_| octets.len() <= most).ok_or(Malformed)?;
    postcard::from_bytes(body).map_err(|_| Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::ring::tests::entry;
    use super::*;

    fn ring() -> Ring {
        let mut ring = Ring::default();
        for sequence in 1..=30 {
            let mut entry = entry(sequence, &format!("line {sequence}"));
            entry.priority = (sequence % 8) as u8;
            entry.service = if sequence % 3 == 0 { "web".into() } else { "store".into() };
            ring.push(entry);
        }
        ring
    }

    fn numbers(answer: &Answer) -> Vec<u64> {
        answer.lines.iter().map(|line| line.sequence).collect()
    }

    #[test]
    fn the_newest_lines_that_match_come_first_and_page_by_page() {
        let ring = ring();
        let all = Query { service: None, priority: 7, before: None, lines: 4 };
        let first = answer(&ring, &all, Health::default());
        assert_eq!((numbers(&first), first.more), (vec![30, 29, 28, 27], true));
        let next = answer(&ring, &Query { before: Some(3), ..all.clone() }, Health::default());
        assert_eq!((numbers(&next), next.more), (vec![2, 1], false));
        let web = Query { service: Some("web".into()), priority: 3, lines: 500, ..all };
        assert_eq!(numbers(&answer(&ring, &web, Health::default())), [27, 24, 18, 9, 3]);
    }

    #[test]
    fn an_answer_fits_its_datagram_whatever_was_logged() {
        let mut ring = Ring::default();
        for sequence in 1..=600 {
            ring.push(entry(sequence, &"ü".repeat(4_000)));
        }
        let health = Health { trouble: Some("disk full".into()), ..Health::default() };
        let query = Query { service: None, priority: 7, before: None, lines: u16::MAX };
        let answer = answer(&ring, &query, health);
        let octets = answer.encode();
        assert!(octets.len() <= MAX_ANSWER && answer.more && answer.lines.len() > 20, "{}", octets.len());
        assert!(answer.lines.iter().all(|line| line.message.len() <= MAX_MESSAGE));
        assert_eq!(Answer::decode(&octets), Ok(answer));
    }

    #[test]
    fn another_version_is_refused() {
        let query = Query { service: Some("web".into()), priority: 4, before: Some(9), lines: 50 };
        let mut octets = query.encode();
        assert_eq!(Query::decode(&octets), Ok(query));
        octets[0] = VERSION + 1;
        assert_eq!(Query::decode(&octets), Err(Malformed));
        assert_eq!(Query::decode(&[VERSION; MAX_QUERY + 1]), Err(Malformed));
        assert_eq!(Query::decode(b""), Err(Malformed));
    }

    proptest! {
        #[test]
        fn any_octets_are_a_question_or_none(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let octets = [&[VERSION], &octets[..]].concat();
            let _ = Query::decode(&octets);
            let _ = Answer::decode(&octets);
        }
    }
}
