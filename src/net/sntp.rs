//! SNTP: one question to a time server, its answer, and the time of several that agree (RFC 5905, RFC 4330).

use std::time::Duration;

use crate::time::UnixTime;

/// Octets of a packet without extensions.
pub const OCTETS: usize = 48;
/// The port of time servers.
pub const PORT: u16 = 123;
/// Earlier than this it never is: the program was written later.
pub const FLOOR: UnixTime = UnixTime::from_secs(1_793_491_200);
/// Later than this is not believed: twenty years after [`FLOOR`].
pub const CEILING: UnixTime = UnixTime::from_secs(1_793_491_200 + 20 * 31_557_600);
/// A server that is further from its own reference is of no use (RFC 5905 appendix A.1.1, MAXDIST).
const MOST_DISTANCE: Duration = Duration::from_millis(1500);
/// Answers that took longer say little.
const MOST_DELAY: Duration = Duration::from_secs(3);
/// What every clock is trusted with at most.
const LEAST_ERROR: Duration = Duration::from_millis(5);
/// Seconds from 1900 to 1970.
const EPOCH: i128 = 2_208_988_800;
const NANOS: i128 = 1_000_000_000;

/// Why an answer says nothing about the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Useless {
    /// Too short, or no server's answer.
    #[error("it is no answer of a time server")]
    Malformed,
    /// Not to the question that was asked.
    #[error("it answers another question")]
    NotAsked,
    /// The server wants to be left alone (RFC 5905 section 7.4).
    #[error("the server refuses")]
    Refused,
    /// The server does not know the time itself.
    #[error("the server is not synchronised")]
    Unsynchronised,
    /// Too far away, or too far from its reference.
    #[error("the server is too far from the truth")]
    Distant,
    /// Before [`FLOOR`] or after [`CEILING`].
    #[error("the time is absurd")]
    Absurd,
}

/// What one server says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Nanoseconds that our clock is behind; negative when it is ahead.
    pub offset: i64,
    /// By how much that may be wrong.
    pub error: Duration,
}

/// The question. `nonce` comes back in the answer; it is no time, so that nothing is told about our clock.
pub fn question(nonce: u64) -> [u8; OCTETS] {
    let mut octets = [0; OCTETS];
    // Version 4, client.
    octets[0] = 0x23;
    octets[40..].copy_from_slice(&nonce.to_be_bytes());
    octets
}

/// Reads the answer to the question with `nonce` that was sent when our clock said `sent` and took `took`.
///
/// # Errors
///
/// [`Useless`]. Never panics.
pub fn read(octets: &[u8], nonce: u64, sent: UnixTime, took: Duration) -> Result<Sample, Useless> {
    let octets: &[u8; OCTETS] = octets.get(..OCTETS).and_then(|head| head.try_into().ok()).ok_or(Useless::Malformed)?;
    let (leap, version, mode) = (octets[0] >> 6, octets[0] >> 3 & 7, octets[0] & 7);
    if mode != 4 || !(3..=4).contains(&version) {
        return Err(Useless::Malformed);
    }
    if word(octets, 24) != nonce {
        return Err(Useless::NotAsked);
    }
    match octets[1] {
        0 => return Err(Useless::Refused),
        1..=15 if leap != 3 => {}
        _ => return Err(Useless::Unsynchronised),
    }
    let distance = short(octets, 4) / 2 + short(octets, 8);
    if distance > MOST_DISTANCE || took > MOST_DELAY {
        return Err(Useless::Distant);
    }
    let (received, transmitted) = (word(octets, 32), word(octets, 40));
    if received == 0 || transmitted == 0 {
        return Err(Useless::Unsynchronised);
    }
    let (received, transmitted) = (unix_nanos(received), unix_nanos(transmitted));
    let bounds = nanos(FLOOR)..nanos(CEILING);
    if !bounds.contains(&received) || !bounds.contains(&transmitted) || transmitted < received {
        return Err(Useless::Absurd);
    }
    let took = took.as_nanos() as i128;
    let (first, last) = (nanos(sent), nanos(sent) + took);
    let offset = ((received - first) + (transmitted - last)) / 2;
    let delay = (took - (transmitted - received)).max(0) as u64;
    Ok(Sample {
        offset: i64::try_from(offset).map_err(|_| Useless::Absurd)?,
        error: Duration::from_nanos(delay) / 2 + distance + LEAST_ERROR,
    })
}

/// Nanoseconds since 1970.
pub fn nanos(time: UnixTime) -> i128 {
    time.since(UnixTime::default()).as_nanos() as i128
}

fn word(octets: &[u8; OCTETS], at: usize) -> u64 {
    octets[at..at + 8].iter().fold(0, |word, octet| word << 8 | u64::from(*octet))
}

/// 16 bits of seconds and 16 bits of their parts.
fn short(octets: &[u8; OCTETS], at: usize) -> Duration {
    let value = octets[at..at + 4].iter().fold(0_u64, |value, octet| value << 8 | u64::from(*octet));
    Duration::from_nanos((value * 1_000_000_000) >> 16)
}

/// A timestamp as nanoseconds since 1970. Without its top bit it is of the era that begins in 2036 (RFC 4330 section 3).
fn unix_nanos(timestamp: u64) -> i128 {
    let seconds = i128::from(timestamp >> 32);
    let era = if timestamp >> 63 == 1 { 0 } else { 1 << 32 };
    let parts = (i128::from(timestamp & 0xffff_ffff) * NANOS) >> 32;
    (seconds + era - EPOCH) * NANOS + parts
}

/// The sample that most agree with: of those whose ranges share a point with more than half of all, the one that may be
/// wrong by least. `None` when no such majority exists (the intersection of RFC 5905 section 11.2.1, without its midpoints).
pub fn agree(samples: &[Sample]) -> Option<Sample> {
    let range = |sample: &Sample| {
        let error = i128::try_from(sample.error.as_nanos()).unwrap_or(i128::MAX / 2);
        (i128::from(sample.offset) - error, i128::from(sample.offset) + error)
    };
    let holds = |point: i128| samples.iter().filter(move |sample| (range(sample).0..=range(sample).1).contains(&point));
    // The most covered point is the lower end of a range.
    let point = samples.iter().map(|sample| range(sample).0).max_by_key(|point| holds(*point).count())?;
    let majority = holds(point).count() * 2 > samples.len();
    holds(point).min_by_key(|sample| sample.error).copied().filter(|_| majority)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: UnixTime = UnixTime::from_secs(1_795_000_000);

    /// A server's packet whose clock shows `time`.
    fn answer(time: UnixTime, nonce: u64) -> [u8; OCTETS] {
        let mut octets = [0; OCTETS];
        octets[0] = 0x24;
        octets[1] = 2;
        octets[24..32].copy_from_slice(&nonce.to_be_bytes());
        let stamp = ((time.as_secs() + EPOCH as u64) & 0xffff_ffff) << 32;
        octets[32..40].copy_from_slice(&stamp.to_be_bytes());
        octets[40..48].copy_from_slice(&stamp.to_be_bytes());
        octets
    }

    fn sample(offset_ms: i64, error_ms: u64) -> Sample {
        Sample { offset: offset_ms * 1_000_000, error: Duration::from_millis(error_ms) }
    }

    #[test]
    fn the_offset_is_that_of_the_middle_of_the_exchange() {
        let took = Duration::from_millis(100);
        let read = read(&answer(NOW + Duration::from_secs(50), 7), 7, NOW, took).unwrap();
        assert_eq!(read, Sample { offset: 49_950_000_000, error: Duration::from_millis(55) });
    }

    #[test]
    fn the_era_after_2036_is_read() {
        let later = UnixTime::from_secs(2_100_000_000);
        let read = read(&answer(later, 7), 7, later, Duration::ZERO).unwrap();
        assert_eq!(read.offset, 0);
    }

    #[test]
    fn useless_answers_are_told_apart() {
        let with = |change: &dyn Fn(&mut [u8; OCTETS])| {
            let mut octets = answer(NOW, 7);
            change(&mut octets);
            read(&octets, 7, NOW, Duration::from_millis(10)).unwrap_err()
        };
        assert_eq!(with(&|octets| octets[0] = 0x23), Useless::Malformed);
        assert_eq!(with(&|octets| octets[31] = 8), Useless::NotAsked);
        assert_eq!(with(&|octets| octets[1] = 0), Useless::Refused);
        assert_eq!(with(&|octets| octets[1] = 16), Useless::Unsynchronised);
        assert_eq!(with(&|octets| octets[0] = 0xe4), Useless::Unsynchronised);
        assert_eq!(with(&|octets| octets[9] = 2), Useless::Distant);
        assert_eq!(with(&|octets| octets[40..48].fill(0)), Useless::Unsynchronised);
        for time in [0, 1_000_000_000, 4_000_000_000] {
            let lie = answer(UnixTime::from_secs(time), 7);
            assert_eq!(read(&lie, 7, NOW, Duration::ZERO), Err(Useless::Absurd), "{time}");
        }
        assert_eq!(read(&answer(NOW, 7), 7, NOW, Duration::from_secs(4)), Err(Useless::Distant));
        assert_eq!(read(&[0x24; 47], 7, NOW, Duration::ZERO), Err(Useless::Malformed));
    }

    #[test]
    fn liars_are_outvoted() {
        let ten_years = 315_576_000_000;
        assert_eq!(agree(&[]), None);
        assert_eq!(agree(&[sample(3, 9)]), Some(sample(3, 9)));
        assert_eq!(agree(&[sample(3, 9), sample(500, 9)]), None);
        assert_eq!(agree(&[sample(3, 9), sample(5, 4), sample(ten_years, 1)]), Some(sample(5, 4)));
        assert_eq!(agree(&[sample(-ten_years, 1), sample(3, 9), sample(ten_years, 1), sample(5, 4)]), None);
    }

    proptest! {
        #[test]
        fn any_octets_are_a_sample_or_useless(octets in proptest::collection::vec(any::<u8>(), 0..80), sent in any::<u32>()) {
            let nonce = octets.get(24..32).map_or(0, |eight| u64::from_be_bytes(eight.try_into().unwrap()));
            let _ = read(&octets, nonce, UnixTime::from_secs(sent.into()), Duration::from_millis(3));
        }

        #[test]
        fn a_minority_of_liars_changes_nothing(
            honest in proptest::collection::vec(-20_i64..20, 3..6),
            lies in proptest::collection::vec(prop_oneof![-900_000_i64..-90_000, 90_000_i64..900_000], 0..3),
        ) {
            let samples: Vec<_> = honest.iter().chain(&lies).map(|offset| sample(*offset, 50)).collect();
            if lies.len() < honest.len() {
                let agreed = agree(&samples).expect("a majority agrees");
                prop_assert!(honest.contains(&(agreed.offset / 1_000_000)));
            }
        }
    }
}
