//! The journal's native protocol: entries of named fields, text or binary.
//!
//! Source: systemd, `docs/JOURNAL_NATIVE_PROTOCOL.md`. Our limits are far below journald's 768 MiB and 1024 fields: who
//! logs more than that wants a file.

/// Most octets of one message.
pub const MAX_MESSAGE: usize = 256 * 1024;
/// Most entries of one message; a client that is known sends one.
pub const MAX_ENTRIES: usize = 64;
/// Most fields of one entry.
pub const MAX_FIELDS: usize = 64;
/// Most octets of a field's name.
pub const MAX_NAME: usize = 64;

/// One field. A name may occur several times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Capitals, digits and underscores; neither a digit nor an underscore comes first.
    pub name: &'a str,
    /// Any octets.
    pub value: &'a [u8],
}

/// Why the rest of a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A message of more than [`MAX_MESSAGE`] octets; nothing of it is read.
    #[error("more than {MAX_MESSAGE} octets")]
    TooLong,
    /// More than [`MAX_ENTRIES`] entries.
    #[error("more than {MAX_ENTRIES} entries")]
    TooMany,
    /// It ends within a line, a length or a value, or a value is longer than it said.
    #[error("cut short")]
    Truncated,
}

/// What a message holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its entries in order, none without fields.
    pub entries: Vec<Vec<Field<'a>>>,
    /// How many fields were left out: of a name that no client may use, or above [`MAX_FIELDS`].
    pub refused: u32,
    /// Why the rest was dropped, if some was.
    pub fault: Option<Fault>,
}

/// Reads a message: a datagram, or what lies in the file whose descriptor came in its place.
pub fn decode(octets: &[u8]) -> Message<'_> {
    let mut message = Message::default();
    if octets.len() > MAX_MESSAGE {
        message.fault = Some(Fault::TooLong);
        return message;
    }
    let mut entry = Vec::new();
    let mut rest = octets;
    while let Some((line, after)) = split_line(rest) {
        rest = after;
        if line.is_empty() {
            if !message.close(&mut entry) {
                return message;
            }
            continue;
        }
        // Lines of control and comment, which no client sends any more.
        if matches!(line.first(), Some(b'.' | b'#')) {
            continue;
        }
        let (name, value) = match line.iter().position(|octet| *octet == b'=') {
            Some(at) => (line.get(..at).unwrap_or_default(), line.get(at + 1..).unwrap_or_default()),
            None => {
                let Some((value, after)) = binary(rest) else {
                    message.close(&mut entry);
                    message.fault = message.fault.or(Some(Fault::Truncated));
                    return message;
                };
                rest = after;
                (line, value)
            }
        };
        match checked(name) {
            Some(name) if entry.len() < MAX_FIELDS => entry.push(Field { name, value }),
            _ => message.refused = message.refused.saturating_add(1),
        }
    }
    if !rest.is_empty() {
        message.fault = Some(Fault::Truncated);
    }
    message.close(&mut entry);
    message
}

impl<'a> Message<'a> {
    /// Whether there is room for more.
    fn close(&mut self, entry: &mut Vec<Field<'a>>) -> bool {
        if entry.is_empty() {
            return true;
        }
        if self.entries.len() == MAX_ENTRIES {
            self.fault = Some(Fault::TooMany);
            return false;
        }
        self.entries.push(std::mem::take(entry));
        true
    }
}

fn split_line(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = octets.iter().position(|octet| *octet == b'\n')?;
    Some((octets.get(..end)?, octets.get(end + 1..)?))
}

/// A value behind its length, with a line feed after it.
fn binary(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = octets.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let (value, rest) = rest.split_at_checked(length)?;
    Some((value, rest.strip_prefix(b"\n")?))
}

/// A leading underscore is refused: those names are the receiver's, so that readers can trust them.
fn checked(name: &[u8]) -> Option<&str> {
    let first = *name.first()?;
    let all = name.iter().all(|octet| octet.is_ascii_uppercase() || octet.is_ascii_digit() || *octet == b'_');
    if !all || name.len() > MAX_NAME || first == b'_' || first.is_ascii_digit() {
        return None;
    }
    std::str::from_utf8(name).ok()
}

/// Writes entries as a client does: a value that holds a line feed in the binary form.
pub fn encode(entries: &[Vec<Field<'_>>]) -> Vec<u8> {
    let mut octets = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        if index > 0 {
            octets.push(b'\n');
        }
        for Field { name, value } in entry {
            octets.extend_from_slice(name.as_bytes());
            if value.contains(&b'\n') {
                octets.push(b'\n');
                octets.extend_from_slice(&(value.len() as u64).to_le_bytes());
            } else {
                octets.push(b'=');
            }
            octets.extend_from_slice(value);
            octets.push(b'\n');
        }
    }
    octets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fields<'a>(entry: &[Field<'a>]) -> Vec<(&'a str, &'a [u8])> {
        entry.iter().map(|field| (field.name, field.value)).collect()
    }

    #[test]
    fn text_binary_and_several_entries_are_read() {
        let octets = b"PRIORITY=4\nMESSAGE\n\x05\0\0\0\0\0\0\0a\nb=c\n\nMESSAGE=second\nEMPTY=\n\n\nMESSAGE=third\n";
        let message = decode(octets);
        assert_eq!((message.refused, message.fault), (0, None));
        assert_eq!(fields(&message.entries[0]), [("PRIORITY", &b"4"[..]), ("MESSAGE", b"a\nb=c")]);
        assert_eq!(fields(&message.entries[1]), [("MESSAGE", &b"second"[..]), ("EMPTY", b"")]);
        assert_eq!(fields(&message.entries[2]), [("MESSAGE", &b"third"[..])]);
    }

    #[test]
    fn names_that_are_not_a_clients_are_left_out() {
        let long = "A".repeat(MAX_NAME + 1);
        let octets = format!("_UID=0\n1A=x\nlower=x\n=x\n{long}=x\nÄ=x\nA B=x\n.control\n#note\nA_1=kept\n");
        let message = decode(octets.as_bytes());
        assert_eq!(message.entries, [[Field { name: "A_1", value: b"kept" }]]);
        assert_eq!((message.refused, message.fault), (7, None));
    }

    #[test]
    fn what_came_before_a_fault_is_kept() {
        for rest in [
            &b"MESSAGE=no line feed"[..],
            b"BIN\n",
            b"BIN\n\xff\xff\xff\xff\xff\xff\xff\xffx\n",
            b"BIN\n\x01\0\0\0\0\0\0\0xx\n",
            b"BIN\n\x02\0\0\0\0\0\0\0xx",
        ] {
            let octets = [b"MESSAGE=first\n", rest].concat();
            let message = decode(&octets);
            assert_eq!(message.fault, Some(Fault::Truncated), "{rest:?}");
            assert_eq!(message.entries, [[Field { name: "MESSAGE", value: b"first" }]], "{rest:?}");
        }
    }

    #[test]
    fn no_message_costs_more_than_its_limits() {
        assert_eq!(decode(&vec![b'\n'; MAX_MESSAGE + 1]).fault, Some(Fault::TooLong));
        let many = decode_counts(&b"A=1\n\n".repeat(MAX_ENTRIES + 1));
        assert_eq!(many, (MAX_ENTRIES, 0, Some(Fault::TooMany)));
        let wide = decode_counts(&b"A=1\n".repeat(MAX_FIELDS + 3));
        assert_eq!(wide, (1, 3, None));
    }

    fn decode_counts(octets: &[u8]) -> (usize, u32, Option<Fault>) {
        let message = decode(octets);
        (message.entries.len(), message.refused, message.fault)
    }

    prop_compose! {
        fn field()(name in "[A-Z][A-Z0-9_]{0,63}", value in proptest::collection::vec(any::<u8>(), 0..40))
            -> (String, Vec<u8>) {
            (name, value)
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in proptest::collection::vec(proptest::collection::vec(field(), 1..6), 0..6)) {
            let entries: Vec<Vec<Field<'_>>> =
                entries.iter().map(|entry| entry.iter().map(|(name, value)| Field { name, value }).collect()).collect();
            let octets = encode(&entries);
            let message = decode(&octets);
            prop_assert_eq!(&message.entries, &entries);
            prop_assert_eq!((message.refused, message.fault), (0, None));
        }

        #[test]
        fn any_octets_are_read_within_the_limits(octets in proptest::collection::vec(any::<u8>(), 0..400)) {
            let message = decode(&octets);
            prop_assert!(message.entries.len() <= MAX_ENTRIES);
            prop_assert!(message.entries.iter().all(|entry| !entry.is_empty() && entry.len() <= MAX_FIELDS));
            // What was read can be said again.
            let octets = encode(&message.entries);
            prop_assert_eq!(decode(&octets).entries, message.entries);
        }

        #[test]
        fn likely_octets_are_read_within_the_limits(text in "([A-Z_0-9]{0,3}[=\n]?[\x00-\x08a\n]{0,9}){0,30}") {
            let message = decode(text.as_bytes());
            let octets = encode(&message.entries);
            prop_assert_eq!(decode(&octets).entries, message.entries);
        }
    }
}
