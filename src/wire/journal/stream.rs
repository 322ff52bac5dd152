//! The journal's stream protocol: seven lines that say who logs, then what is logged, line by line.
//!
//! Source: systemd, `sd_journal_stream_fd(3)` and `src/journal/journald-stream.c`.

use super::{DEFAULT_PRIORITY, take_level};

/// Most octets of a line; a longer one is split.
pub const MAX_LINE: usize = 8 * 1024;
/// Most octets of a line of the header.
pub const MAX_HEADER_LINE: usize = 256;

/// What a stream says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The program's name; may be empty.
    pub identifier: String,
    /// The priority of lines that have none of their own.
    pub priority: u8,
    /// Whether lines may begin with `<N>`.
    pub level_prefix: bool,
}

impl Header {
    /// As a client sends it. The unit stays empty, and nothing is forwarded.
    pub fn encode(&self) -> Vec<u8> {
        let identifier: String = self.identifier.chars().filter(|c| !c.is_control()).collect();
        let prefix = u8::from(self.level_prefix);
        format!("{identifier}\n\n{}\n{prefix}\n0\n0\n0\n", self.priority.min(7)).into_bytes()
    }
}

/// A line of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// 0 to 7.
    pub priority: u8,
    /// The program's name.
    pub identifier: String,
    /// Its octets, without the line feed.
    pub text: Vec<u8>,
}

/// The header is none; the stream is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream's header is none")]
pub struct NoHeader;

/// Takes a stream apart. Holds at most one line.
#[derive(Clone, Debug, Default)]
pub struct Splitter {
    /// Lines of the header, while it is incomplete.
    header_lines: Vec<Vec<u8>>,
    header: Option<Header>,
    partial: Vec<u8>,
}

impl Splitter {
    /// A splitter of a stream that begins with its header.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next octets; returns the lines that they complete. Empty lines are left out.
    ///
    /// # Errors
    ///
    /// [`NoHeader`].
    pub fn push(&mut self, octets: &[u8]) -> Result<Vec<Line>, NoHeader> {
        let mut lines = Vec::new();
        for octet in octets {
            // NUL ends a line as well, as in journald.
            if matches!(octet, b'\n' | b'\0') {
                self.end_line(&mut lines)?;
                continue;
            }
            self.partial.push(*octet);
            let most = if self.header.is_some() { MAX_LINE } else { MAX_HEADER_LINE };
            if self.partial.len() >= most {
                if self.header.is_none() {
                    return Err(NoHeader);
                }
                self.end_line(&mut lines)?;
            }
        }
        Ok(lines)
    }

    /// The last line, when the stream ended without a line feed: a panic's last words may.
    pub fn finish(mut self) -> Option<Line> {
        let mut lines = Vec::new();
        self.header.as_ref()?;
        self.end_line(&mut lines).ok()?;
        lines.pop()
    }

    fn end_line(&mut self, lines: &mut Vec<Line>) -> Result<(), NoHeader> {
        let text = std::mem::take(&mut self.partial);
        let Some(header) = &self.header else {
            self.header_lines.push(text);
            if let [identifier, _unit, priority, level_prefix, _syslog, _kmsg, _console] = self.header_lines.as_slice()
            {
                self.header = Some(read_header(identifier, priority, level_prefix)?);
                self.header_lines = Vec::new();
            }
            return Ok(());
        };
        let (priority, text) = match take_level(&text).filter(|_| header.level_prefix) {
            Some((level, rest)) => ((level & 7) as u8, rest.to_vec()),
            None => (header.priority, text),
        };
        if !text.trim_ascii().is_empty() {
            lines.push(Line { priority, identifier: header.identifier.clone(), text });
        }
        Ok(())
    }
}

fn read_header(identifier: &[u8], priority: &[u8], level_prefix: &[u8]) -> Result<Header, NoHeader> {
    let priority = match priority {
        [] => DEFAULT_PRIORITY,
        // The facility may come with it.
        digits => {
            super::decimal(digits).filter(|level| *level <= 191).map(|level| (level & 7) as u8).ok_or(NoHeader)?
        }
    };
    let level_prefix = match level_prefix {
        b"0" | b"" => false,
        b"1" => true,
        _ => return Err(NoHeader),
    };
    Ok(Header { identifier: String::from_utf8_lossy(identifier).into_owned(), priority, level_prefix })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADER: &[u8] = b"cat\n\n4\n1\n0\n0\n0\n";

    fn line(priority: u8, text: &str) -> Line {
        Line { priority, identifier: "cat".into(), text: text.into() }
    }

    #[test]
    fn seven_lines_of_header_and_then_lines() {
        let mut splitter = Splitter::new();
        let lines = splitter.push(&[HEADER, b"one\n\n<2>two\n<x>three\nfo"].concat()).unwrap();
        assert_eq!(lines, [line(4, "one"), line(2, "two"), line(4, "<x>three")]);
        assert_eq!(splitter.push(b"ur\n").unwrap(), [line(4, "four")]);
        assert_eq!(splitter.push(b"last words").unwrap(), []);
        assert_eq!(splitter.finish(), Some(line(4, "last words")));
    }

    #[test]
    fn who_wants_no_prefix_gets_his_octets() {
        let header = Header { identifier: "a\nb".into(), priority: 9, level_prefix: false };
        let mut splitter = Splitter::new();
        let lines = splitter.push(&[&header.encode()[..], b"<2>two\n"].concat()).unwrap();
        assert_eq!(lines, [Line { priority: 7, identifier: "ab".into(), text: b"<2>two".to_vec() }]);
    }

    #[test]
    fn a_header_that_is_none_ends_the_stream() {
        for octets in [&b"cat\n\nx\n1\n0\n0\n0\n"[..], b"cat\n\n4\nyes\n0\n0\n0\n", &[b'a'; MAX_HEADER_LINE]] {
            assert_eq!(Splitter::new().push(octets), Err(NoHeader), "{octets:?}");
        }
        let mut splitter = Splitter::new();
        splitter.push(b"cat\n\n4").unwrap();
        assert_eq!(splitter.finish(), None);
    }

    #[test]
    fn a_line_without_end_is_split() {
        let mut splitter = Splitter::new();
        let lines = splitter.push(&[HEADER, &vec![b'x'; 3 * MAX_LINE + 1]].concat()).unwrap();
        assert_eq!(lines.iter().map(|line| line.text.len()).collect::<Vec<_>>(), [MAX_LINE; 3]);
        assert_eq!(splitter.partial.len(), 1);
    }

    proptest! {
        #[test]
        fn any_stream_in_any_pieces_gives_the_same_lines(
            octets in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
            cut in 0_usize..400,
        ) {
            let octets = [HEADER, &octets].concat();
            let whole = Splitter::new().push(&octets);
            let (first, second) = octets.split_at(cut.min(octets.len()));
            let mut splitter = Splitter::new();
            let pieces = splitter.push(first).and_then(|mut lines| {
                lines.extend(splitter.push(second)?);
                Ok(lines)
            });
            prop_assert_eq!(whole, pieces);
        }

        #[test]
        fn any_octets_hold_a_line_at_most(octets in proptest::collection::vec(any::<u8>(), 0..600)) {
            let mut splitter = Splitter::new();
            let over = splitter.push(&octets).is_err();
            prop_assert!(over || splitter.partial.len() <= MAX_LINE && splitter.header_lines.len() < 7);
        }
    }
}
