//! The formats in which programs and the kernel log: the journal's native protocol, its streams, syslog and kmsg.
//!
//! Every decoder is total: octets that make no sense are dropped, and what was read before them is kept, since half a
//! message of a program in trouble is worth more than none.

pub mod kmsg;
pub mod native;
pub mod stream;
pub mod syslog;

/// The priority of a line that names none: informational (6). 0 is the gravest, 7 is for debugging (syslog(3)).
pub const DEFAULT_PRIORITY: u8 = 6;

/// Takes `<N>` off the front of a line: N is at most 191, eight times the facility plus the priority.
pub(crate) fn take_level(line: &[u8]) -> Option<(u16, &[u8])> {
    let inner = line.strip_prefix(b"<")?;
    let end = inner.iter().take(4).position(|octet| *octet == b'>')?;
    let (digits, rest) = (inner.get(..end)?, inner.get(end + 1..)?);
    let level: u16 = decimal(digits)?.try_into().ok()?;
    (level <= 191).then_some((level, rest))
}

/// A decimal number of digits alone.
pub(crate) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |sum, octet| {
        let digit = octet.is_ascii_digit().then(|| u64::from(octet - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_small_number_in_brackets() {
        assert_eq!(take_level(b"<13>text"), Some((13, &b"text"[..])));
        assert_eq!(take_level(b"<191>"), Some((191, &b""[..])));
        for other in [&b"<192>x"[..], b"<>x", b"<1", b"<-1>", b"<1x>", b"1>", b"<00001>", b""] {
            assert_eq!(take_level(other), None, "{other:?}");
        }
    }
}
