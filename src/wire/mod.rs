//! Octets to values and back: total, bounded, no policy.

pub mod dhcp;
pub mod gpt;
pub mod ipmi;
pub mod journal;
pub mod tunnel;
