//! Records of /dev/kmsg.
//!
//! Source: Linux, `Documentation/ABI/testing/dev-kmsg`.

use super::decimal;

/// Most octets of a record; the kernel's own buffer of one read.
pub const MAX_RECORD: usize = 8 * 1024;

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// 0 to 7.
    pub priority: u8,
    /// 0 is the kernel itself, which gives it to nobody else.
    pub facility: u8,
    /// Counts every record; a gap is what was overwritten before we read it.
    pub sequence: u64,
    /// Microseconds after boot.
    pub uptime_micros: u64,
    /// Unescaped.
    pub text: Vec<u8>,
}

/// The record is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no kmsg record")]
pub struct Malformed;

/// Reads what one read(2) gave: `level,sequence,microseconds,flags[,…];text`, then lines of properties, which are dropped.
///
/// # Errors
///
/// [`Malformed`] when a number is missing.
pub fn decode(octets: &[u8]) -> Result<Record, Malformed> {
    let semicolon = octets.iter().position(|octet| *octet == b';').ok_or(Malformed)?;
    let (head, text) = octets.split_at_checked(semicolon).ok_or(Malformed)?;
    let mut numbers = head.split(|octet| *octet == b',').map(decimal);
    let mut next = || numbers.next().flatten().ok_or(Malformed);
    let (level, sequence, uptime_micros) = (next()?, next()?, next()?);
    let text = text.get(1..).unwrap_or_default();
    let text = text.split(|octet| *octet == b'\n').next().unwrap_or_default();
    Ok(Record {
        priority: (level & 7) as u8,
        facility: u8::try_from(level >> 3).map_err(|_| Malformed)?,
        sequence,
        uptime_micros,
        text: unescape(text),
    })
}

/// The kernel writes octets that do not print, and the backslash, as `\x1b`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((octet, after)) = rest.split_first() {
        rest = after;
        let escaped = match (octet, after) {
            (b'\\', [b'x', high, low, ..]) => hex(*high).zip(hex(*low)).map(|(high, low)| high * 16 + low),
            _ => None,
        };
        if escaped.is_some() {
            rest = after.get(3..).unwrap_or_default();
        }
        plain.push(escaped.unwrap_or(*octet));
    }
    plain
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_is_read_without_its_properties() {
        let record =
            decode(b"30,1339,5140900,-,caller=T1;driver\\x5cusb \\x1b[0m \\xzz\n SUBSYSTEM=usb\n DEVICE=+usb:1-1\n")
                .unwrap();
        let text = b"driver\\usb \x1b[0m \\xzz".to_vec();
        assert_eq!(record, Record { priority: 6, facility: 3, sequence: 1339, uptime_micros: 5_140_900, text });
    }

    #[test]
    fn a_record_without_its_numbers_is_none() {
        for octets in [&b""[..], b"6,1,2", b"6,1;x", b"a,1,2,-;x", b"6,1,,-;x", b"99999999,1,2,-;x"] {
            assert_eq!(decode(octets), Err(Malformed), "{octets:?}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_a_record_or_none(octets in proptest::collection::vec(any::<u8>(), 0..120)) {
            let with_head = [b"6,1,2,-;", &octets[..]].concat();
            for octets in [octets.as_slice(), with_head.as_slice()] {
                if let Ok(record) = decode(octets) {
                    prop_assert!(record.priority <= 7 && record.text.len() <= octets.len());
                }
            }
        }
    }
}
