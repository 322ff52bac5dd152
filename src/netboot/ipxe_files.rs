//! Loads iPXE binaries from a directory, as upstream or as Debian names them, with the init script put in.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tracing::{info, warn};

use crate::boot::files::{Binary, BootFiles};
use crate::boot::ipxe_binary;

/// No iPXE binary is larger.
const MAX_OCTETS: u64 = 16 << 20;

/// Names under which a binary may lie in the directory, best first. The last ones stand in for another binary: they boot the
/// same firmware, with other network drivers.
const fn candidates(binary: Binary) -> &'static [&'static str] {
    match binary {
        Binary::X64 => &["amd64/ipxe.efi", "x86_64/ipxe.efi", "x86_64-efi/ipxe.efi", "ipxe.efi", "snponly.efi"],
        Binary::X64Snp => &[
            "amd64/snp.efi",
            "snp.efi",
            "amd64/snponly.efi",
            "x86_64-efi/snponly.efi",
            "snponly.efi",
            "amd64/ipxe.efi",
            "ipxe.efi",
        ],
        Binary::Arm64 => &["arm64/ipxe.efi", "arm64-efi/ipxe.efi", "ipxe-arm64.efi", "arm64-efi/snponly.efi"],
        Binary::Arm64Snp => &[
            "arm64/snp.efi",
            "snp-arm64.efi",
            "arm64/snponly.efi",
            "arm64-efi/snponly.efi",
            "snponly-arm64.efi",
            "arm64/ipxe.efi",
            "arm64-efi/ipxe.efi",
            "ipxe-arm64.efi",
        ],
        Binary::Bios => &["undionly.kpxe"],
    }
}

/// Which machines need a binary.
const fn boots(binary: Binary) -> &'static str {
    match binary {
        Binary::X64 => "nothing by default",
        Binary::X64Snp => "x86 UEFI machines",
        Binary::Arm64 => "nothing by default",
        Binary::Arm64Snp => "ARM64 UEFI machines",
        Binary::Bios => "x86 BIOS machines",
    }
}

/// A binary that could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No file of its names.
    #[error("no {} in {}: {} can't be booted (Debian package ipxe has x86's)", candidates(*binary).join(", "), directory.display(), boots(*binary))]
    Missing {
        /// The binary.
        binary: Binary,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// The file can't be read.
    #[error("{} can't be read: {} can't be booted", path.display(), boots(*binary))]
    Read {
        /// The binary.
        binary: Binary,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The init script can't be put into it.
    #[error("{} can't be patched: {} can't be booted", path.display(), boots(*binary))]
    Patch {
        /// The binary.
        binary: Binary,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ipxe_binary::PatchError,
    },
}

/// Loads what `directory` has, each with `init_script` put in where there is room. Also returns what it could not load, one per
/// binary; none of it is fatal, and each that machines need is a warning.
pub async fn load(directory: &Path, init_script: &str) -> (BootFiles, Vec<LoadError>) {
    let mut loaded = Vec::new();
    let mut failed = Vec::new();
    for binary in Binary::ALL {
        match load_one(directory, binary, init_script).await {
            Ok(octets) => loaded.push((binary, octets)),
            Err(error) => {
                if !matches!(binary, Binary::X64 | Binary::Arm64) {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    warn!(%error, cause, "iPXE binary not loaded");
                }
                failed.push(error);
            }
        }
    }
    (BootFiles::new(loaded), failed)
}

async fn load_one(directory: &Path, binary: Binary, init_script: &str) -> Result<Bytes, LoadError> {
    for name in candidates(binary) {
        let path = directory.join(name);
        let octets = match read(&path).await {
            Ok(octets) => octets,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => continue,
            Err(source) => return Err(LoadError::Read { binary, path, source }),
        };
        return match ipxe_binary::patch(&octets, init_script) {
            Ok(Some(patched)) => {
                info!(?binary, path = %path.display(), "iPXE binary loaded, init script embedded");
                Ok(patched)
            }
            Ok(None) => {
                info!(?binary, path = %path.display(), "iPXE binary loaded as it is, DHCP names the init script");
                Ok(octets.into())
            }
            Err(source) => Err(LoadError::Patch { binary, path, source }),
        };
    }
    Err(LoadError::Missing { binary, directory: directory.to_owned() })
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let size = tokio::fs::metadata(path).await?.len();
    if size > MAX_OCTETS {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{size} octets are too many for an iPXE binary"),
        ));
    }
    tokio::fs::read(path).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn debians_names_and_upstreams_names_are_found_and_the_better_one_wins() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["snponly.efi", "ipxe.efi", "undionly.kpxe", "ipxe-arm64.efi"] {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        let (files, failed) = load(directory.path(), "#!ipxe\n").await;
        assert!(failed.is_empty(), "{failed:?}");
        let served = |name: &str| String::from_utf8(files.get(name).unwrap().to_vec()).unwrap();
        assert_eq!(served("snp.efi"), "snponly.efi");
        assert_eq!(served("arm64/snp.efi"), "ipxe-arm64.efi");
        assert_eq!(served("undionly.kpxe.0"), "undionly.kpxe");
        std::fs::write(directory.path().join("snp.efi"), "snp.efi").unwrap();
        let (files, _) = load(directory.path(), "#!ipxe\n").await;
        assert_eq!(&files.get("amd64/snp.efi").unwrap()[..], b"snp.efi");
    }

    #[tokio::test]
    async fn what_is_missing_names_the_machines_that_cannot_boot() {
        let directory = tempfile::tempdir().unwrap();
        let (files, failed) = load(&directory.path().join("nowhere"), "").await;
        assert_eq!((files.binaries().count(), failed.len()), (0, 5));
        assert!(failed.iter().any(|error| error.to_string().contains("x86 BIOS machines can't be booted")));
    }

    #[tokio::test]
    async fn the_init_script_is_put_into_a_binary_with_room_for_it() {
        let directory = tempfile::tempdir().unwrap();
        let room = format!("MZ# *PLACEHOLDER START*{}# *PLACEHOLDER END*", "\n#".repeat(40));
        std::fs::write(directory.path().join("snp.efi"), &room).unwrap();
        let (files, _) = load(directory.path(), "#!ipxe\nshell\n").await;
        let patched = files.get("snp.efi").unwrap();
        assert!(patched.starts_with(b"MZ#!ipxe\nshell\n\n") && patched.len() == room.len());
    }
}
