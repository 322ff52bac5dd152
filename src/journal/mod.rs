//! What the box remembers of its log: entries, how many a sender may cause, the ring, the chunks on disk, the questions.
//!
//! Rules only; the process that performs them is [`crate::init::journal`].

pub mod chunk;
pub mod entry;
pub mod intake;
pub mod keep;
pub mod query;
pub mod rate;
pub mod ring;

/// Where programs send native messages.
pub const NATIVE_SOCKET: &str = "/run/systemd/journal/socket";
/// Where programs connect their standard output to.
pub const STREAM_SOCKET: &str = "/run/systemd/journal/stdout";
/// Where syslog(3) sends to.
pub const SYSLOG_SOCKET: &str = "/dev/log";
/// Where questions are asked.
pub const QUERY_SOCKET: &str = "/run/pilotlight/journal.sock";
/// Where chunks are kept.
pub const DIRECTORY: &str = "/data/pilotlight/journal";
/// Beside the chunks: the file whose time of change says how late it was at least.
pub const CLOCK_FILE: &str = "clock";
/// The journal's own user.
pub const UID: u32 = 908;
