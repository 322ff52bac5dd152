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
//! # The service
//!
//! [`service`] does this for the box, as a user of its own: one job at a time, from a URL, a stick or an upload. Init says
//! which slot may be written, opens that partition to the service's user and no other, withdraws what the slot held from
//! trial, and puts it on trial when it is written ([`Request`](crate::supervise::control::Request)). Asked to fetch from
//! a URL, the service goes on with it after a restart of its own or of the box.

mod bundle;
pub mod cli;
mod fetch;
mod job;
pub mod keys;
mod manifest;
pub mod protocol;
mod retry;
pub mod service;
mod standing;
mod stick;
mod upload;
mod wish;
mod write;

pub use bundle::{Bundle, KeyId, MAGIC, Refused, Terms, open, sign};
pub use manifest::{Hash, LARGEST_CHUNK, LARGEST_IMAGE, Manifest};
pub use stick::is_on;
pub use write::{Blocks, Failed, SlotDevice, Source, write};
