//! What whoever writes a slot has to know.

use serde::{Deserialize, Serialize};

use super::{Slot, Version};

/// Which slot may be written, and what runs meanwhile. Init alone reads the records; it says this to those who ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// What runs.
    pub running: Version,
    /// The slot that may be written: neither the committed one nor the one that runs.
    pub slot: Slot,
    /// The node of its partition.
    pub device: String,
    /// Versions that failed their trial, oldest first.
    pub failed: Vec<Version>,
}
