//! Reads /dev/kmsg, record by record.

use std::os::fd::OwnedFd;

use nix::errno::Errno;

use crate::wire::journal::kmsg::{self, Record};

/// Reads that are made for one record when others are unreadable.
const ATTEMPTS: usize = 64;

/// Where the reader stands.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// The number of the record that comes next.
    expected: Option<u64>,
    /// The record behind a gap that was told.
    held: Option<Record>,
}

/// What was found.
#[derive(Debug)]
pub(super) enum Got {
    /// One record.
    Record(Record),
    /// So many records are missing before the next one.
    Gap(u64),
}

impl Reader {
    /// The next of `kmsg`, which is open without waiting; `None` when there is none.
    pub(super) fn next(&mut self, kmsg: &OwnedFd) -> Option<Got> {
        if let Some(record) = self.held.take() {
            return Some(Got::Record(record));
        }
        let mut buffer = [0; kmsg::MAX_RECORD];
        for _ in 0..ATTEMPTS {
            match nix::unistd::read(kmsg, &mut buffer) {
                Ok(length) => {
                    if let Ok(record) = kmsg::decode(buffer.get(..length)?) {
                        return Some(self.after_gap(record));
                    }
                }
                // The record was overwritten; the next read stands behind the gap.
                Err(Errno::EPIPE | Errno::EINTR | Errno::EINVAL) => {}
                Err(_) => return None,
            }
        }
        None
    }

    fn after_gap(&mut self, record: Record) -> Got {
        let missing = self.expected.map_or(0, |expected| record.sequence.saturating_sub(expected));
        self.expected = Some(record.sequence.saturating_add(1));
        if missing == 0 {
            return Got::Record(record);
        }
        self.held = Some(record);
        Got::Gap(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_told_before_what_follows_it() {
        let mut reader = Reader::default();
        let record = |sequence: u64| kmsg::decode(format!("6,{sequence},1,-;x").as_bytes()).unwrap();
        assert!(matches!(reader.after_gap(record(7)), Got::Record(_)));
        assert!(matches!(reader.after_gap(record(8)), Got::Record(_)));
        assert!(matches!(reader.after_gap(record(12)), Got::Gap(3)));
        assert_eq!(reader.held.as_ref().map(|record| record.sequence), Some(12));
    }
}
