//! Which firmware asks: options 93, 60 and 77 to a [`Firmware`].

use crate::boot::files::Binary;
use crate::machine::Arch;
use crate::wire::dhcp::Message;

/// How a machine's firmware takes its boot file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// x86 BIOS with PXE: TFTP.
    X86Pc,
    /// x86 UEFI with PXE: TFTP.
    X86Efi,
    /// ARM64 UEFI or U-Boot with PXE: TFTP.
    ArmEfi,
    /// x86 UEFI HTTP Boot.
    X86Http,
    /// ARM64 UEFI or U-Boot HTTP Boot.
    ArmHttp,
}

/// Who sent a request, as far as it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client {
    /// The firmware.
    pub firmware: Firmware,
    /// Whether it is iPXE, which takes a script instead of a binary.
    pub ipxe: bool,
}

/// Why no firmware could be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Neither option 93 nor an architecture in the class text: no boot client.
    Silent,
    /// An architecture that nothing is served for; the last one named.
    Arch(u16),
}

impl Firmware {
    /// The firmware of an option 93 value; `None` for an unsupported one.
    ///
    /// Source: contract section 3.3 and the IANA registry of processor architectures. 17 (EFI BC over HTTP) is sent by some
    /// x64 firmware, as 7 is over TFTP.
    pub const fn from_arch(arch: u16) -> Option<Self> {
        match arch {
            0 => Some(Self::X86Pc),
            6 | 7 | 9 => Some(Self::X86Efi),
            11 | 22 => Some(Self::ArmEfi),
            15..=17 => Some(Self::X86Http),
            19 | 24 => Some(Self::ArmHttp),
            _ => None,
        }
    }

    /// The machine's architecture.
    pub const fn arch(self) -> Arch {
        match self {
            Self::X86Pc | Self::X86Efi | Self::X86Http => Arch::Amd64,
            Self::ArmEfi | Self::ArmHttp => Arch::Arm64,
        }
    }

    /// Whether it boots over HTTP.
    pub const fn http(self) -> bool {
        matches!(self, Self::X86Http | Self::ArmHttp)
    }

    /// The binary that it is given.
    pub const fn binary(self) -> Binary {
        match self {
            Self::X86Pc => Binary::Bios,
            Self::X86Efi | Self::X86Http => Binary::X64Snp,
            Self::ArmEfi | Self::ArmHttp => Binary::Arm64Snp,
        }
    }

    /// The name of its binary: a TFTP file name, or a path under `/tftp/` for HTTP Boot. Always one of
    /// [`crate::boot::files::NAMES`].
    pub const fn boot_file(self) -> &'static str {
        match self {
            Self::X86Pc => "undionly.kpxe",
            Self::X86Efi => "snp.efi",
            Self::ArmEfi => "snp-arm64.efi",
            Self::X86Http => "amd64/snp.efi",
            Self::ArmHttp => "arm64/snp.efi",
        }
    }

    /// What people call it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::X86Pc => "x86 BIOS",
            Self::X86Efi => "x86 UEFI",
            Self::ArmEfi => "ARM64 UEFI",
            Self::X86Http => "x86 UEFI HTTP",
            Self::ArmHttp => "ARM64 UEFI HTTP",
        }
    }
}

impl std::fmt::Display for Firmware {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who sent `message`. The last recognised value of option 93 wins; without one, the class text decides.
///
/// # Errors
///
/// [`Unknown`] when neither names a supported architecture.
pub fn identify(message: &Message) -> Result<Client, Unknown> {
    let archs = message.client_archs().unwrap_or_default();
    let from_class = message.vendor_class().and_then(class_arch);
    let firmware = archs
        .iter()
        .rev()
        .find_map(|arch| Firmware::from_arch(*arch))
        // Some firmware (RPi4 UEFI) leaves option 93 out or alters it, and is right in its class.
        .or_else(|| from_class.and_then(Firmware::from_arch))
        .ok_or_else(|| archs.last().copied().or(from_class).map_or(Unknown::Silent, Unknown::Arch))?;
    let ipxe = message.user_classes().contains(&b"iPXE".as_slice());
    Ok(Client { firmware, ipxe })
}

/// The architecture in `PXEClient:Arch:00007:UNDI:003016`.
fn class_arch(class: &str) -> Option<u16> {
    let rest = class.strip_prefix("PXEClient:Arch:").or_else(|| class.strip_prefix("HTTPClient:Arch:"))?;
    let digits = rest.split(':').next()?;
    let well_formed = (1..=5).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    well_formed.then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::files;

    #[test]
    fn the_architecture_table_holds_row_for_row() {
        use Firmware::*;
        let table = [
            (0, X86Pc),
            (6, X86Efi),
            (7, X86Efi),
            (9, X86Efi),
            (11, ArmEfi),
            (22, ArmEfi),
            (15, X86Http),
            (16, X86Http),
            (17, X86Http),
            (19, ArmHttp),
            (24, ArmHttp),
        ];
        for arch in 0..=u16::MAX {
            let expected = table.iter().find(|(value, _)| *value == arch).map(|(_, firmware)| *firmware);
            assert_eq!(Firmware::from_arch(arch), expected, "{arch}");
        }
    }

    #[test]
    fn every_boot_file_that_is_advertised_is_in_the_table_as_the_right_binary() {
        for firmware in [Firmware::X86Pc, Firmware::X86Efi, Firmware::ArmEfi, Firmware::X86Http, Firmware::ArmHttp] {
            assert_eq!(files::lookup(firmware.boot_file()), Some(firmware.binary()), "{firmware}");
        }
    }

    #[test]
    fn the_class_text_names_an_architecture_or_nothing() {
        for (class, arch) in [
            ("PXEClient:Arch:00007:UNDI:003016", Some(7)),
            ("HTTPClient:Arch:00016:UNDI:003000", Some(16)),
            ("PXEClient:Arch:00011", Some(11)),
            ("PXEClient", None),
            ("PXEClient:Arch:", None),
            ("PXEClient:Arch:99999", None),
            ("PXEClient:Arch:-1", None),
            ("PXEClient:Arch:0000000007", None),
            ("udhcp 1.36", None),
        ] {
            assert_eq!(class_arch(class), arch, "{class}");
        }
    }
}
