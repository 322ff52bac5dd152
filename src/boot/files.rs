//! The one table of boot files: DHCP advertises from it, TFTP and HTTP serve from it.

use std::collections::BTreeMap;

use bytes::Bytes;

/// An iPXE binary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Binary {
    /// x86-64 UEFI with iPXE's own drivers.
    X64,
    /// x86-64 UEFI on the firmware's network driver.
    X64Snp,
    /// AArch64 UEFI with iPXE's own drivers.
    Arm64,
    /// AArch64 UEFI on the firmware's network driver.
    Arm64Snp,
    /// BIOS on the card's UNDI.
    Bios,
}

impl Binary {
    /// Every binary.
    pub const ALL: [Self; 5] = [Self::X64, Self::X64Snp, Self::Arm64, Self::Arm64Snp, Self::Bios];
}

/// Every name that is served over TFTP, and under `/tftp/` over HTTP. Source: contract section 4.2.
pub const NAMES: [(&str, Binary); 10] = [
    ("ipxe.efi", Binary::X64),
    ("amd64/ipxe.efi", Binary::X64),
    ("snp.efi", Binary::X64Snp),
    ("amd64/snp.efi", Binary::X64Snp),
    ("ipxe-arm64.efi", Binary::Arm64),
    ("arm64/ipxe.efi", Binary::Arm64),
    ("snp-arm64.efi", Binary::Arm64Snp),
    ("arm64/snp.efi", Binary::Arm64Snp),
    ("undionly.kpxe", Binary::Bios),
    // Some ROMs append a layer number to the name that they were told.
    ("undionly.kpxe.0", Binary::Bios),
];

/// The binary behind a name as a client asks for it; `None` when no such file is served.
///
/// A leading slash, doubled slashes, `.` and `..` are resolved lexically; a backslash, which some UEFI builds send, is a
/// slash. Case matters.
pub fn lookup(name: &str) -> Option<Binary> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split(['/', '\\']) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let normalised = parts.join("/");
    NAMES.iter().find(|(served, _)| *served == normalised).map(|(_, binary)| *binary)
}

/// The loaded binaries. Clones share the octets.
#[derive(Clone, Debug, Default)]
pub struct BootFiles {
    binaries: BTreeMap<Binary, Bytes>,
}

impl BootFiles {
    /// The files of these binaries; a later one of the same kind wins.
    pub fn new(binaries: impl IntoIterator<Item = (Binary, Bytes)>) -> Self {
        Self { binaries: binaries.into_iter().collect() }
    }

    /// The octets served under `name`, normalised as in [`lookup`]; `None` when there is no such name or its binary is
    /// not loaded.
    pub fn get(&self, name: &str) -> Option<Bytes> {
        self.binaries.get(&lookup(name)?).cloned()
    }

    /// Whether `binary` is loaded.
    pub fn has(&self, binary: Binary) -> bool {
        self.binaries.contains_key(&binary)
    }

    /// The loaded binaries, in their order.
    pub fn binaries(&self) -> impl Iterator<Item = Binary> + '_ {
        self.binaries.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_before_they_are_looked_up() {
        for (name, binary) in [
            ("snp.efi", Some(Binary::X64Snp)),
            ("/snp.efi", Some(Binary::X64Snp)),
            ("//amd64/./snp.efi", Some(Binary::X64Snp)),
            ("\\arm64\\snp.efi", Some(Binary::Arm64Snp)),
            ("x/../undionly.kpxe.0", Some(Binary::Bios)),
            ("../../ipxe.efi", Some(Binary::X64)),
            ("SNP.EFI", None),
            ("", None),
            ("amd64", None),
            ("etc/passwd", None),
        ] {
            assert_eq!(lookup(name), binary, "{name}");
        }
    }

    #[test]
    fn a_file_that_is_not_loaded_is_not_served() {
        let files = BootFiles::new([(Binary::Bios, Bytes::from_static(b"kpxe"))]);
        assert_eq!(files.get("undionly.kpxe"), Some(Bytes::from_static(b"kpxe")));
        assert_eq!(files.get("snp.efi"), None);
        assert!(files.has(Binary::Bios) && !files.has(Binary::X64));
    }
}
