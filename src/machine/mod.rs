//! What a machine is and needs.

mod record;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

pub use record::*;
use serde::{Deserialize, Serialize};

/// A machine's SMBIOS UUID, as iPXE, the agent and Omni spell it. It is the ID of every resource about the machine.
///
/// Canonical form only: 36 characters, lower-case hex, dashes at 8, 13, 18 and 23. The nil and the all-ones UUID, which
/// boards without one report, are refused. Clones share the text: a machine is named in many tables.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineId(Arc<str>);

/// Why a text is no [`MachineId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidMachineId {
    /// Not 8-4-4-4-12 hex digits.
    #[error("not a UUID: want 36 characters such as 4c4c4544-0042-3510-8054-b7c04f333132")]
    Form,
    /// All zeroes or all ones: the board has no UUID of its own.
    #[error("the board reports no UUID of its own; set one in its firmware")]
    Blank,
}

impl MachineId {
    /// The UUID's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The UUID from its 16 octets in the order they are printed.
    ///
    /// # Errors
    ///
    /// [`InvalidMachineId::Blank`] for all zeroes or all ones.
    pub fn from_octets(octets: [u8; 16]) -> Result<Self, InvalidMachineId> {
        let mut text = String::with_capacity(36);
        for (index, octet) in octets.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{octet:02x}"));
        }
        text.parse()
    }
}

impl TryFrom<Arc<str>> for MachineId {
    type Error = InvalidMachineId;
    /// Shares `text` where it is canonical.
    fn try_from(text: Arc<str>) -> Result<Self, InvalidMachineId> {
        let id: Self = text.parse()?;
        Ok(if id.0 == text { Self(text) } else { id })
    }
}

impl FromStr for MachineId {
    type Err = InvalidMachineId;
    /// Upper-case hex is lowered.
    fn from_str(text: &str) -> Result<Self, InvalidMachineId> {
        let well_formed = text.len() == 36
            && text.bytes().enumerate().all(|(index, byte)| match index {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        if !well_formed {
            return Err(InvalidMachineId::Form);
        }
        let text = text.to_ascii_lowercase();
        let mut digits = text.bytes().filter(|byte| *byte != b'-');
        let first = digits.next().expect("a well-formed UUID has 32 digits");
        if (first == b'0' || first == b'f') && digits.all(|digit| digit == first) {
            return Err(InvalidMachineId::Blank);
        }
        Ok(Self(text.into()))
    }
}

impl TryFrom<String> for MachineId {
    type Error = InvalidMachineId;
    fn try_from(text: String) -> Result<Self, InvalidMachineId> {
        text.parse()
    }
}

impl From<MachineId> for String {
    fn from(id: MachineId) -> Self {
        id.as_str().to_owned()
    }
}

impl fmt::Display for MachineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a machine is powered, as its BMC says. Numbers as in `baremetalproviderspecs.PowerState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PowerState {
    /// Nobody could be asked, or nobody answered.
    #[default]
    Unknown = 0,
    /// Off.
    Off = 1,
    /// On.
    On = 2,
}

impl fmt::Display for PowerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Off => "off",
            Self::On => "on",
        })
    }
}

/// Which firmware a one-time PXE boot is asked of (`--ipmi-pxe-boot-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum PxeBootMode {
    /// Legacy BIOS.
    Bios,
    /// UEFI.
    #[default]
    Uefi,
}

/// Processor architecture of a booting machine, in Talos' spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Arch {
    /// x86-64.
    Amd64,
    /// AArch64.
    Arm64,
}

impl Arch {
    /// `amd64` or `arm64`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// From iPXE's `${buildarch}`: exactly `arm64` is arm64, all else (`i386`, `x86_64`, nothing) is amd64.
    pub fn from_buildarch(text: &str) -> Self {
        if text == "arm64" { Self::Arm64 } else { Self::Amd64 }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_canonical_uuid_of_the_boards_own() {
        let id: MachineId = "4C4C4544-0042-3510-8054-B7C04F333132".parse().unwrap();
        assert_eq!(id.as_str(), "4c4c4544-0042-3510-8054-b7c04f333132");
        for bad in ["", "4c4c4544", "4c4c4544-0042-3510-8054-b7c04f33313g", "4c4c454400042-3510-8054-b7c04f333132"] {
            assert_eq!(bad.parse::<MachineId>(), Err(InvalidMachineId::Form), "{bad}");
        }
        for blank in ["00000000-0000-0000-0000-000000000000", "FFFFFFFF-ffff-ffff-ffff-ffffffffffff"] {
            assert_eq!(blank.parse::<MachineId>(), Err(InvalidMachineId::Blank));
        }
    }
}
