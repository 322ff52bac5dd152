//! Updates: a signed bundle, and how it gets into the slot that does not run.
//!
//! # The bundle
//!
//! ```text
//! "PILOTLIGHT BUNDLE 1\n"   20 octets
//! key                       8 octets, the first of the SHA-256 of the public key
//! length of the manifest    4 octets, little-endian, at most 65,536
//! manifest                  JSON, see [`Manifest`]
//! signature                 64 octets, ed25519 over all of the above
//! image                     the slot's raw octets, in chunks whose SHA-256 the manifest holds
//! ```
//!
//! # How it is written
//!
//! A slot's file system must be one that GRUB knows by its first sector, as squashfs and FAT are. That sector is erased
//! before anything else is written, and written last and alone, when all else was read back: an unfinished slot does not
//! load, and the committed record need not be touched. A chunk is verified before it is written. After a break the slot itself says what it holds: chunks that
//! read back right are not asked for again, so that there is no record of progress that could be wrong.
//!
//! Synchronous: it runs on a thread that may block.

mod bundle;
pub mod cli;
mod manifest;
mod write;

pub use bundle::{Bundle, KeyId, MAGIC, Refused, Terms, open, sign};
pub use manifest::{Hash, LARGEST_CHUNK, LARGEST_IMAGE, Manifest};
pub use write::{Blocks, Failed, SlotDevice, Source, write};
