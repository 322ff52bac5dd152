//! What an asset is called.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::machine::Arch;

/// A schematic's ID: 64 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SchematicId(Box<str>);

/// Why a text names no asset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAsset {
    /// Not 64 lower-case hex digits.
    #[error("not a schematic ID: want 64 hex digits")]
    Schematic,
    /// Not a version such as `v1.13.7` or `1.13.0-alpha.1`.
    #[error("not a Talos version")]
    Version,
    /// Not a file that machines boot.
    #[error("not a boot asset")]
    File,
}

impl SchematicId {
    /// The ID's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SchematicId {
    type Err = InvalidAsset;
    fn from_str(text: &str) -> Result<Self, InvalidAsset> {
        let well_formed = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        well_formed.then(|| Self(text.into())).ok_or(InvalidAsset::Schematic)
    }
}

impl fmt::Display for SchematicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kind of an asset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// `kernel-<arch>`.
    Kernel,
    /// `initramfs-<arch>.xz`.
    Initramfs,
    /// `cmdline-metal-<arch>`: the image's own kernel arguments.
    CommandLine,
    /// `metal-<arch>-secureboot-uki.efi`.
    SecureBootUki,
}

/// One file of one image. Its `Display` is `<schematic>/<version>/<file>`, safe as a path and in a URL.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AssetPath {
    schematic: SchematicId,
    version: Box<str>,
    kind: Kind,
    arch: Arch,
}

impl AssetPath {
    /// The asset of an image. `version` may lack its `v`.
    ///
    /// # Errors
    ///
    /// [`InvalidAsset::Version`].
    pub fn new(schematic: SchematicId, version: &str, kind: Kind, arch: Arch) -> Result<Self, InvalidAsset> {
        let bare = version.strip_prefix('v').unwrap_or(version);
        let (numbers, suffix) = bare.split_once('-').map_or((bare, None), |(numbers, suffix)| (numbers, Some(suffix)));
        let number = |part: &str| (1..=6).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
        let of_suffix = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
        let well_formed = numbers.split('.').count() == 3
            && numbers.split('.').all(number)
            && suffix.is_none_or(|suffix| (1..=64).contains(&suffix.len()) && suffix.bytes().all(of_suffix));
        if !well_formed {
            return Err(InvalidAsset::Version);
        }
        Ok(Self { schematic, version: format!("v{bare}").into(), kind, arch })
    }

    /// Reads the three parts of a URL path or an index key.
    ///
    /// # Errors
    ///
    /// [`InvalidAsset`] for the first part that is wrong.
    pub fn parse(schematic: &str, version: &str, file: &str) -> Result<Self, InvalidAsset> {
        let arch = |text: &str| match text {
            "amd64" => Some(Arch::Amd64),
            "arm64" => Some(Arch::Arm64),
            _ => None,
        };
        let middle = |prefix: &str, suffix: &str| {
            file.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix)).and_then(arch)
        };
        let (kind, arch) = [
            (Kind::Kernel, middle("kernel-", "")),
            (Kind::Initramfs, middle("initramfs-", ".xz")),
            (Kind::CommandLine, middle("cmdline-metal-", "")),
            (Kind::SecureBootUki, middle("metal-", "-secureboot-uki.efi")),
        ]
        .into_iter()
        .find_map(|(kind, arch)| Some((kind, arch?)))
        .ok_or(InvalidAsset::File)?;
        Self::new(schematic.parse()?, version, kind, arch)
    }

    /// The image's schematic.
    pub fn schematic(&self) -> &SchematicId {
        &self.schematic
    }

    /// The Talos version, with its `v`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The machines' architecture.
    pub const fn arch(&self) -> Arch {
        self.arch
    }

    /// The file's name.
    pub fn file(&self) -> String {
        let arch = self.arch;
        match self.kind {
            Kind::Kernel => format!("kernel-{arch}"),
            Kind::Initramfs => format!("initramfs-{arch}.xz"),
            Kind::CommandLine => format!("cmdline-metal-{arch}"),
            Kind::SecureBootUki => format!("metal-{arch}-secureboot-uki.efi"),
        }
    }
}

impl fmt::Display for AssetPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.schematic, self.version, self.file())
    }
}

/// An asset on disk, complete and as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asset {
    /// The file. It may be evicted later; an open descriptor stays good.
    pub path: PathBuf,
    /// Its size in octets.
    pub size: u64,
    /// Its SHA-256.
    pub sha256: [u8; 32],
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_what_the_factory_calls_it_and_nothing_else() {
        let id = "ab".repeat(32);
        for file in ["kernel-amd64", "initramfs-arm64.xz", "cmdline-metal-amd64", "metal-arm64-secureboot-uki.efi"] {
            let path = AssetPath::parse(&id, "1.13.7", file).unwrap();
            assert_eq!(path.to_string(), format!("{id}/v1.13.7/{file}"));
            assert_eq!(AssetPath::parse(&id, "v1.13.7", file), Ok(path));
        }
        for file in ["", "kernel-", "kernel-riscv64", "../kernel-amd64", "initramfs-amd64", "metal-amd64.iso"] {
            assert_eq!(AssetPath::parse(&id, "v1.13.7", file), Err(InvalidAsset::File), "{file}");
        }
        for version in ["", "v", "1.13", "1.13.7.1", "../1.2.3", "1.2.3-", "1.2.3-a/b", "1.2.x", "vv1.2.3"] {
            assert_eq!(AssetPath::parse(&id, version, "kernel-amd64"), Err(InvalidAsset::Version), "{version}");
        }
        assert!(AssetPath::parse(&id, "v1.13.0-alpha.1-3-gabc", "kernel-amd64").is_ok());
        assert_eq!(AssetPath::parse("AB", "v1.13.7", "kernel-amd64"), Err(InvalidAsset::Schematic));
    }
}
