//! The local store: sealed credentials, intents, the last view of Omni, the image index.
//!
//! An edge, because it owns files. Everything in it can be had again from Omni or from the export beside it, except
//! intents: those say what was begun, so a commit is on the disk before it returns.

pub mod export;
pub mod intents;
pub mod memory;
mod open;
mod records;
pub mod recovery_code;
pub mod seal;
pub mod sled_store;
pub mod socket;

use std::fmt;
use std::io;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Longest key, in bytes.
///
/// The engine keeps up to 256 keys in one node, which must stay below 128 KiB like the values.
pub const MAX_KEY: usize = 256;
/// Longest value, in bytes; what is longer belongs into a file.
pub const MAX_VALUE: usize = 64 * 1024;
/// Most bytes of keys and values in one batch; a batch must fit one message between processes.
pub const MAX_BATCH: usize = 4 * 1024 * 1024;
/// Most puts and removals in one batch.
pub const MAX_OPS: usize = 16_384;

/// A named part of the store. Keys of different trees never meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tree {
    /// Sealed BMC credentials, by machine.
    Bmc,
    /// What was begun on a machine and is not known to be finished.
    Intent,
    /// The last known resources of Omni.
    View,
    /// Which boot assets are on the disk.
    Image,
    /// Facts about the box itself.
    Meta,
}

impl Tree {
    /// Every tree, in the order of their names on disk.
    pub const ALL: [Self; 5] = [Self::Bmc, Self::Image, Self::Intent, Self::Meta, Self::View];

    /// Its name in keys on disk and in exports; never changes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bmc => "bmc",
            Self::Intent => "intent",
            Self::View => "view",
            Self::Image => "image",
            Self::Meta => "meta",
        }
    }

    /// The tree of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tree| tree.name() == name)
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One change inside a [`Batch`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// Sets `key` to `value`.
    Put {
        /// Where.
        tree: Tree,
        /// 1 to [`MAX_KEY`] bytes.
        key: String,
        /// At most [`MAX_VALUE`] bytes.
        value: Vec<u8>,
    },
    /// Removes `key`; nothing happens when it is absent.
    Remove {
        /// Where.
        tree: Tree,
        /// 1 to [`MAX_KEY`] bytes.
        key: String,
    },
}

/// Changes over any trees that happen together or not at all, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch(Vec<Op>);

impl Batch {
    /// A batch without changes.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// This batch with `key` set to `value`.
    #[must_use]
    pub fn put(mut self, tree: Tree, key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.0.push(Op::Put { tree, key: key.into(), value: value.into() });
        self
    }

    /// This batch with `key` removed.
    #[must_use]
    pub fn remove(mut self, tree: Tree, key: impl Into<String>) -> Self {
        self.0.push(Op::Remove { tree, key: key.into() });
        self
    }

    /// The changes in order.
    pub fn ops(&self) -> &[Op] {
        &self.0
    }

    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether every key and value keeps the limits.
    ///
    /// # Errors
    ///
    /// [`Error::KeyRefused`], [`Error::ValueTooLarge`] or [`Error::BatchTooLarge`].
    pub fn check(&self) -> Result<(), Error> {
        let mut bytes = 0;
        for op in &self.0 {
            let (tree, key, size) = match op {
                Op::Put { tree, key, value } => (*tree, key, value.len()),
                Op::Remove { tree, key } => (*tree, key, 0),
            };
            if key.is_empty() || key.len() > MAX_KEY {
                return Err(Error::KeyRefused { tree, length: key.len() });
            }
            if size > MAX_VALUE {
                return Err(Error::ValueTooLarge { tree, key: key.clone(), size });
            }
            bytes += key.len() + size;
        }
        if bytes > MAX_BATCH || self.0.len() > MAX_OPS {
            return Err(Error::BatchTooLarge { bytes, ops: self.0.len() });
        }
        Ok(())
    }
}

/// How the store came up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Opened {
    /// As it was left, or new.
    #[default]
    Clean,
    /// It opened only without its snapshots; nothing is lost.
    SnapshotsDiscarded,
    /// It would not open and was moved aside; the last export was loaded. What came after that export is lost.
    Imported {
        /// How many records the export held.
        records: u64,
    },
    /// It would not open and was moved aside, and there was no export to load: it starts empty.
    Lost,
}

/// How the store fares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// How it came up.
    pub opened: Opened,
    /// Commits acknowledged since it was opened.
    pub commits: u64,
    /// Syncs to disk since it was opened; fewer than commits, since waiting commits share one.
    pub syncs: u64,
    /// Whether a write failed. It takes no more commits until it is opened again, since nobody knows what reached the
    /// disk.
    pub failed: bool,
    /// Bytes on disk, zero for a store in memory.
    pub size: u64,
}

/// What keeps records for the box.
#[async_trait]
pub trait Store: Send + Sync {
    /// The value under `key`, or `None`.
    ///
    /// # Errors
    ///
    /// When the engine or the process that owns it can't answer.
    async fn get(&self, tree: Tree, key: &str) -> Result<Option<Vec<u8>>, Error>;

    /// Every key and value of `tree`, in the order of the keys' bytes.
    ///
    /// # Errors
    ///
    /// As [`Self::get`].
    async fn list(&self, tree: Tree) -> Result<Vec<(String, Vec<u8>)>, Error>;

    /// Applies `batch`: atomic, and durable when it returns.
    ///
    /// # Errors
    ///
    /// When the batch breaks a limit nothing happened. [`Error::Failed`] and engine errors leave it open whether the
    /// batch will be there after a restart; repeat it then.
    async fn commit(&self, batch: Batch) -> Result<(), Error>;

    /// Writes the logical export now: all records in a form that outlives the engine's own.
    ///
    /// # Errors
    ///
    /// [`Error::Export`] when it could not be written; the former export is still there then.
    async fn export(&self) -> Result<(), Error>;

    /// How the store fares.
    ///
    /// # Errors
    ///
    /// Only when the process that owns it can't be asked.
    async fn health(&self) -> Result<Health, Error>;
}

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A second process wants the same directory.
    #[error("another process holds the store at {}", dir.display())]
    Locked {
        /// The store's directory.
        dir: PathBuf,
    },
    /// A file or directory of the store could not be made, moved or read.
    #[error("cannot {op} {}", path.display())]
    File {
        /// What was tried, as a verb.
        op: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The engine reports an error.
    #[error("the store at {} failed to {op}", dir.display())]
    Engine {
        /// What was tried, as a verb.
        op: &'static str,
        /// The store's directory.
        dir: PathBuf,
        /// Why not.
        #[source]
        source: sled::Error,
    },
    /// The engine panicked, even on a new database.
    #[error("the store at {} does not open", dir.display())]
    Unopenable {
        /// The store's directory.
        dir: PathBuf,
    },
    /// An earlier write failed; the store takes no more.
    #[error("the store at {} takes no writes since one failed; it must be opened again", dir.display())]
    Failed {
        /// The store's directory.
        dir: PathBuf,
    },
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// A key of no bytes, or of too many.
    #[error("a key in {tree} of {length} bytes: want 1 to {MAX_KEY}")]
    KeyRefused {
        /// Of which tree.
        tree: Tree,
        /// How long the key is.
        length: usize,
    },
    /// A value that belongs into a file.
    #[error("the value of {tree}/{key} has {size} bytes, more than {MAX_VALUE}")]
    ValueTooLarge {
        /// Of which tree.
        tree: Tree,
        /// Under which key.
        key: String,
        /// How long it is.
        size: usize,
    },
    /// More than one message carries.
    #[error("a batch of {ops} changes and {bytes} bytes: at most {MAX_OPS} and {MAX_BATCH}")]
    BatchTooLarge {
        /// Bytes of keys and values.
        bytes: usize,
        /// Changes.
        ops: usize,
    },
    /// A record on disk that this version can't have written, or a part of one that is missing.
    #[error("the store at {} is not as it was written at {key:?}", dir.display())]
    Damaged {
        /// The store's directory.
        dir: PathBuf,
        /// The engine's key, lossily as text.
        key: String,
    },
    /// The export could not be written or read.
    #[error("the export {} failed", path.display())]
    Export {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: export::Error,
    },
    /// The process that owns the store can't be asked.
    #[error("the store's process does not answer")]
    Unreachable {
        /// Why not.
        #[source]
        source: crate::ipc::Error,
    },
    /// The process that owns the store answered with an error, told in its words.
    #[error("the store's process refused: {reason}")]
    Refused {
        /// Its error and the causes, joined by colons.
        reason: String,
        /// Whether the same call may succeed later.
        transient: bool,
    },
    /// The process that owns the store answered something else than was asked.
    #[error("the store's process answered something else than was asked")]
    Misbehaved,
}

impl Error {
    /// Whether the same call may succeed later without anyone changing it.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Locked { .. }
            | Self::File { .. }
            | Self::Engine { .. }
            | Self::Failed { .. }
            | Self::Closed
            | Self::Export { .. }
            | Self::Unreachable { .. } => true,
            Self::Refused { transient, .. } => *transient,
            Self::Unopenable { .. }
            | Self::KeyRefused { .. }
            | Self::ValueTooLarge { .. }
            | Self::BatchTooLarge { .. }
            | Self::Damaged { .. }
            | Self::Misbehaved => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_beyond_the_limits_is_refused() {
        assert!(matches!(Batch::new().remove(Tree::Bmc, "").check(), Err(Error::KeyRefused { length: 0, .. })));
        let long = "k".repeat(MAX_KEY + 1);
        assert!(matches!(Batch::new().put(Tree::Bmc, long, b"").check(), Err(Error::KeyRefused { .. })));
        let fat = Batch::new().put(Tree::Image, "k", vec![0; MAX_VALUE + 1]);
        assert!(matches!(fat.check(), Err(Error::ValueTooLarge { .. })));
        let many = (0..65).fold(Batch::new(), |batch, n| batch.put(Tree::View, n.to_string(), vec![0; MAX_VALUE]));
        assert!(matches!(many.check(), Err(Error::BatchTooLarge { .. })));
        assert!(Batch::new().put(Tree::View, "k", vec![0; MAX_VALUE]).check().is_ok());
    }
}
