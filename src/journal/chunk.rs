//! Chunks: entries as they lie on disk, compressed, each with its own digest.
//!
//! A chunk is a file of its own, written once. After a power cut the last may be torn: its digest says so, and it costs
//! nothing but itself. Deflate, since a pure and small codec of it is linked by others here already; log text shrinks to
//! about an eighth.

use sha2::{Digest, Sha256};

use super::entry::Entry;
use crate::wire::journal::native;

/// What a chunk begins with; the digit is the version of all that follows.
const MAGIC: [u8; 4] = *b"PLJ1";
/// Magic, raw length and packed length (u32, little-endian).
const HEAD: usize = 12;
/// SHA-256 over head and packed octets; stands between them.
const DIGEST: usize = 32;
/// About how many octets of entries make a chunk full.
pub const FULL: usize = 128 * 1024;
/// Most octets of a chunk's entries: a full one and a longest message.
const MAX_RAW: usize = FULL + 3 * native::MAX_MESSAGE;
/// Most octets of a chunk. Deflate may add a little.
pub const MAX_CHUNK: usize = MAX_RAW + MAX_RAW / 64 + 1024;
/// How hard is compressed, of 0 to 10: beyond, it takes longer and gains little.
const LEVEL: u8 = 6;
const SUFFIX: &str = ".chunk";

/// Why a chunk does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damaged {
    /// It is of another kind or version.
    #[error("not a chunk of this version")]
    Foreign,
    /// It ends early, or goes on.
    #[error("cut short or too long")]
    Length,
    /// The digest differs.
    #[error("does not match its digest")]
    Digest,
    /// It matches its digest, and yet does not decode.
    #[error("does not decode")]
    Contents,
}

/// More entries than a chunk holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {MAX_RAW} octets of entries")]
pub struct TooLarge;

/// The file of the chunk that begins with entry `first`; names sort by age.
pub fn file_name(first: u64) -> String {
    format!("{first:016x}{SUFFIX}")
}

/// The first entry of the chunk in the file of that name; `None` for other files.
pub fn first_entry(file_name: &str) -> Option<u64> {
    let digits = file_name.strip_suffix(SUFFIX)?;
    let all = digits.len() == 16 && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    all.then(|| u64::from_str_radix(digits, 16).ok())?
}

/// Packs entries.
///
/// # Errors
///
/// [`TooLarge`].
pub fn encode(entries: &[&Entry]) -> Result<Vec<u8>, TooLarge> {
    let raw = postcard::to_stdvec(entries).ok().filter(|raw| raw.len() <= MAX_RAW).ok_or(TooLarge)?;
    let packed = miniz_oxide::deflate::compress_to_vec(&raw, LEVEL);
    let length = |octets: &[u8]| u32::try_from(octets.len()).map_err(|_| TooLarge);
    let mut chunk = MAGIC.to_vec();
    chunk.extend_from_slice(&length(&raw)?.to_le_bytes());
    chunk.extend_from_slice(&length(&packed)?.to_le_bytes());
    let digest = digest(&chunk, &packed);
    chunk.extend_from_slice(&digest);
    chunk.extend_from_slice(&packed);
    Ok(chunk)
}

/// Unpacks the entries.
///
/// # Errors
///
/// [`Damaged`].
pub fn decode(chunk: &[u8]) -> Result<Vec<Entry>, Damaged> {
    let (head, rest) = chunk.split_first_chunk::<HEAD>().ok_or(Damaged::Length)?;
    let [m0, m1, m2, m3, r0, r1, r2, r3, p0, p1, p2, p3] = *head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(Damaged::Foreign);
    }
    let raw_length = u32::from_le_bytes([r0, r1, r2, r3]) as usize;
    let packed_length = u32::from_le_bytes([p0, p1, p2, p3]) as usize;
    let (stored, packed) = rest.split_first_chunk::<DIGEST>().ok_or(Damaged::Length)?;
    if packed.len() != packed_length || raw_length > MAX_RAW {
        return Err(Damaged::Length);
    }
    if digest(head, packed) != *stored {
        return Err(Damaged::Digest);
    }
    let raw = miniz_oxide::inflate::decompress_to_vec_with_limit(packed, raw_length).map_err(|_| Damaged::Contents)?;
    postcard::from_bytes(&raw).map_err(|_| Damaged::Contents)
}

fn digest(head: &[u8], packed: &[u8]) -> [u8; DIGEST] {
    Sha256::new().chain_update(head).chain_update(packed).finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::entry::Source;
    use super::super::ring::tests::entry;
    use super::*;
    use crate::time::UnixTime;

    fn chunk(messages: &[&str]) -> Vec<u8> {
        let entries: Vec<_> = (1..).zip(messages).map(|(sequence, message)| entry(sequence, message)).collect();
        encode(&entries.iter().collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn entries_come_back_and_text_shrinks() {
        let messages: Vec<_> = (0..200).map(|n| format!("machine m{n} booted over UEFI PXE from 10.0.0.{n}")).collect();
        let chunk = chunk(&messages.iter().map(String::as_str).collect::<Vec<_>>());
        let entries = decode(&chunk).unwrap();
        assert_eq!(entries.iter().map(|entry| entry.message.as_str()).collect::<Vec<_>>(), messages);
        let text: usize = messages.iter().map(String::len).sum();
        assert!(chunk.len() < text / 3, "{} of {text}", chunk.len());
    }

    #[test]
    fn the_format_of_version_1_stays_as_it_is() {
        let entry = Entry {
            sequence: 1,
            time: UnixTime::from_secs(1_800_000_000),
            uptime_millis: 300,
            source: Source::Native,
            priority: 3,
            service: "web".into(),
            uid: 907,
            pid: 12,
            identifier: "w".into(),
            message: "m".into(),
            fields: vec![("A".into(), vec![1])],
        };
        let raw = postcard::to_stdvec(&[&entry][..]).unwrap();
        assert_eq!(raw[..8], [1, 1, 0x80, 0xa4, 0xa7, 0xda, 0x6, 0]);
        assert_eq!(raw[8..], [0xac, 2, 1, 3, 3, b'w', b'e', b'b', 0x8b, 7, 12, 1, b'w', 1, b'm', 1, 1, b'A', 1, 1]);
    }

    #[test]
    fn a_chunk_that_was_cut_or_changed_anywhere_is_refused() {
        let whole = chunk(&["a first line", "a second line"]);
        for length in 0..whole.len() {
            assert!(decode(&whole[..length]).is_err(), "{length}");
        }
        for index in 0..whole.len() {
            let mut changed = whole.clone();
            changed[index] ^= 1;
            assert!(decode(&changed).is_err(), "{index}");
        }
        let mut longer = whole.clone();
        longer.push(0);
        assert_eq!(decode(&longer), Err(Damaged::Length));
        assert_eq!(decode(&vec![0; 4096]), Err(Damaged::Foreign));
    }

    #[test]
    fn names_sort_by_age_and_other_files_are_left_alone() {
        assert_eq!(file_name(255), "00000000000000ff.chunk");
        assert_eq!(first_entry(&file_name(u64::MAX)), Some(u64::MAX));
        for other in ["clock", "ff.chunk", "00000000000000FF.chunk", "+0000000000000ff.chunk", "../0000000000ff.chunk"]
        {
            assert_eq!(first_entry(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_entries_or_damaged(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode(&octets);
            // With a digest that fits, whatever it is over.
            let mut chunk = MAGIC.to_vec();
            chunk.extend_from_slice(&100_u32.to_le_bytes());
            chunk.extend_from_slice(&(octets.len() as u32).to_le_bytes());
            let digest = digest(&chunk, &octets);
            chunk.extend_from_slice(&digest);
            chunk.extend_from_slice(&octets);
            let _ = decode(&chunk);
        }
    }
}
