//! [`Entry`]: one thing that was logged.

use serde::{Deserialize, Serialize};

use crate::time::UnixTime;

/// How it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// From the kernel's log.
    Kernel,
    /// By the native protocol.
    Native,
    /// By syslog(3).
    Syslog,
    /// Written to standard output or error.
    Stream,
    /// The journal's own.
    Journal,
}

/// One thing that was logged. The order of fields is the format on disk: [`super::chunk`] has its version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counts up over all boots; says what comes before what, since clocks are set.
    pub sequence: u64,
    /// When it was received.
    pub time: UnixTime,
    /// Milliseconds after boot when it was received.
    pub uptime_millis: u64,
    /// How it came.
    pub source: Source,
    /// 0, the gravest, to 7, for debugging.
    pub priority: u8,
    /// Who logs, as the kernel vouches for: the service's name by its user.
    pub service: String,
    /// The sender's user.
    pub uid: u32,
    /// The sender's process, 0 for none.
    pub pid: u32,
    /// Who logs, as it calls itself.
    pub identifier: String,
    /// What.
    pub message: String,
    /// All further fields.
    pub fields: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// About how many octets it takes, in memory and as raw part of a chunk.
    pub fn size(&self) -> usize {
        let fields: usize = self.fields.iter().map(|(name, value)| name.len() + value.len() + 48).sum();
        128 + self.service.len() + self.identifier.len() + self.message.len() + fields
    }
}

/// An entry that was not numbered and dated yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// See [`Entry::source`].
    pub source: Source,
    /// See [`Entry::priority`].
    pub priority: u8,
    /// See [`Entry::service`].
    pub service: String,
    /// See [`Entry::uid`].
    pub uid: u32,
    /// See [`Entry::pid`].
    pub pid: u32,
    /// See [`Entry::identifier`].
    pub identifier: String,
    /// See [`Entry::message`].
    pub message: String,
    /// See [`Entry::fields`].
    pub fields: Vec<(String, Vec<u8>)>,
}

impl Draft {
    /// One of the journal's own.
    pub fn own(priority: u8, message: String) -> Self {
        let name = || "journal".to_owned();
        let (uid, pid) = (super::UID, 0);
        Self {
            source: Source::Journal,
            priority,
            service: name(),
            uid,
            pid,
            identifier: name(),
            message,
            fields: vec![],
        }
    }

    /// Numbered and dated.
    pub fn finish(self, sequence: u64, time: UnixTime, uptime_millis: u64) -> Entry {
        let Self { source, priority, service, uid, pid, identifier, message, fields } = self;
        Entry { sequence, time, uptime_millis, source, priority, service, uid, pid, identifier, message, fields }
    }
}
