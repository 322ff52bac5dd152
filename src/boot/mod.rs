//! What a booting machine is told: firmware, proxyDHCP answer, boot files, iPXE scripts.
//!
//! All of it is a function of its arguments. The sockets are in [`crate::netboot`].

pub mod advertise;
pub mod files;
pub mod firmware;
pub mod ipxe_binary;
pub mod proxy;
pub mod request;
pub mod schematic;
pub mod script;

pub use advertise::{Advertise, Host};
pub use files::{Binary, BootFiles};
pub use firmware::Firmware;
pub use request::{BootAnswer, BootRequest};
