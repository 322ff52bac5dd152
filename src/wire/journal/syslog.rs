//! What programs send to /dev/log: RFC 3164 as the C library writes it.

use super::{DEFAULT_PRIORITY, take_level};

/// Most octets of a program's name.
const MAX_TAG: usize = 48;

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// 0 to 7.
    pub priority: u8,
    /// 0 to 23; 1, of user programs, when it names none.
    pub facility: u8,
    /// The program's name, when it gives one.
    pub tag: Option<&'a str>,
    /// The process ID that it claims.
    pub pid: Option<u32>,
    /// The rest.
    pub text: &'a [u8],
}

/// Reads one datagram. The time is dropped: it has no year and no zone, and ours is as good.
///
/// Source: RFC 3164, section 4.1; glibc and musl leave the host out.
pub fn decode(octets: &[u8]) -> Message<'_> {
    let end = octets.iter().rposition(|octet| !matches!(octet, b'\n' | b'\0' | b'\r')).map_or(0, |last| last + 1);
    let octets = octets.get(..end).unwrap_or_default();
    let (level, rest) = take_level(octets).unwrap_or((8 + u16::from(DEFAULT_PRIORITY), octets));
    let rest = skip_time(rest);
    let (tag, pid, text) = match split_tag(rest) {
        Some((tag, pid, text)) => (Some(tag), pid, text),
        None => (None, None, rest),
    };
    Message { priority: (level & 7) as u8, facility: (level >> 3) as u8, tag, pid, text }
}

/// `Mmm dd hh:mm:ss `, if it is there.
fn skip_time(octets: &[u8]) -> &[u8] {
    let Some((stamp, rest)) = octets.split_at_checked(16) else { return octets };
    let shape = b"Aaa 99 99:99:99 ";
    let fits = stamp.iter().zip(shape).all(|(octet, kind)| match kind {
        b'A' => octet.is_ascii_uppercase(),
        b'a' => octet.is_ascii_lowercase(),
        b'9' => octet.is_ascii_digit() || *octet == b' ',
        exact => octet == exact,
    });
    if fits { rest } else { octets }
}

/// `tag: `, `tag[pid]: `.
fn split_tag(octets: &[u8]) -> Option<(&str, Option<u32>, &[u8])> {
    let colon = octets.iter().take(MAX_TAG + 14).position(|octet| *octet == b':')?;
    let (head, text) = (octets.get(..colon)?, octets.get(colon + 1..)?);
    let text = text.strip_prefix(b" ").unwrap_or(text);
    let head = std::str::from_utf8(head).ok()?;
    let (tag, pid) = match head.split_once('[') {
        Some((tag, pid)) => (tag, Some(pid.strip_suffix(']')?.parse().ok()?)),
        None => (head, None),
    };
    let named = !tag.is_empty() && tag.len() <= MAX_TAG && !tag.contains(|c: char| c.is_whitespace() || c.is_control());
    named.then_some((tag, pid, text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_c_library_writes_is_read() {
        let message = decode(b"<86>Nov 21 14:02:03 sshd[812]: Accepted key: yes\n\0");
        let want = Message { priority: 6, facility: 10, tag: Some("sshd"), pid: Some(812), text: b"Accepted key: yes" };
        assert_eq!(message, want);
        let message = decode(b"<3>Nov  1 14:02:03 cron: x");
        assert_eq!((message.priority, message.facility, message.tag, message.pid), (3, 0, Some("cron"), None));
    }

    #[test]
    fn what_nobody_formatted_is_text() {
        for text in [&b"no level, no tag"[..], b"", b"a b: c", b"tag[x]: y", b": z", b"\xff: z"] {
            let message = decode(text);
            assert_eq!((message.priority, message.facility, message.tag, message.text), (6, 1, None, text));
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_a_message(octets in proptest::collection::vec(any::<u8>(), 0..120)) {
            let message = decode(&octets);
            prop_assert!(message.priority <= 7 && message.facility <= 23 && message.text.len() <= octets.len());
        }
    }
}
