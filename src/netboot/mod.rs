//! Sockets that boot machines: DHCP, TFTP, HTTP.
//!
//! An edge: it owns the sockets and reads the binaries' directory. What is answered is decided in [`crate::boot`].

pub mod address;
pub mod dhcp;
pub mod http;
pub mod ipxe_files;
pub mod range;
pub mod serve;
pub mod tftp;

pub use crate::telemetry::Counters;
