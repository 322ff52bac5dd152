//! A bundle's frame and signature, and for what reasons a bundle is refused.

use std::fmt;
use std::io::{self, Read};

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use sha2::{Digest, Sha256};

use super::manifest::Manifest;
use crate::slots::{Failed, Version};

/// How a bundle begins.
pub const MAGIC: &[u8; 20] = b"PILOTLIGHT BUNDLE 1\n";

const LARGEST_MANIFEST: usize = 65_536;
/// The most octets before an image.
pub(super) const LONGEST_HEAD: u64 = 32 + LARGEST_MANIFEST as u64 + 64;

/// The first eight octets of a public key's SHA-256.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// The name of a key.
    pub fn of(key: &VerifyingKey) -> Self {
        let digest = Sha256::digest(key.as_bytes());
        let mut id = [0; 8];
        id.copy_from_slice(&digest[..8]);
        Self(id)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

/// Why a bundle is refused. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It does not begin like one.
    #[error("this is not a Pilotlight bundle")]
    NoBundle,
    /// It ends before its image begins.
    #[error("the bundle is truncated")]
    Truncated,
    /// It can't be read.
    #[error("can't read the bundle")]
    Read(#[source] io::Error),
    /// A release was built without a key, and nobody gave one since.
    #[error("this box trusts no key: its system was built without one, so that it takes no update at all")]
    NoKey,
    /// The key that signed it is not trusted here.
    #[error("the bundle is signed by the key {0}, which this box does not trust")]
    ForeignKey(KeyId),
    /// The signature does not belong to the manifest.
    #[error("the bundle was tampered with: its signature does not fit")]
    Tampered,
    /// The signature fits, but what was signed makes no sense.
    #[error("the bundle's manifest is malformed")]
    Malformed,
    /// It is for another kind of box.
    #[error("the bundle is for {theirs}, this box is {ours}")]
    ForeignCompatible {
        /// What the bundle is for.
        theirs: String,
        /// What this is.
        ours: String,
    },
    /// It is older than what runs.
    #[error("version {theirs} is older than {ours}, which runs; a downgrade must be asked for")]
    Downgrade {
        /// The bundle's.
        theirs: Version,
        /// What runs.
        ours: Version,
    },
    /// It is what runs.
    #[error("version {0} runs already; ask for it again to write it anew")]
    Runs(Version),
    /// What runs is too old for it.
    #[error("the bundle needs version {minimum} to be installed first; {ours} runs")]
    BelowMinimum {
        /// What it needs.
        minimum: Version,
        /// What runs.
        ours: Version,
    },
    /// It failed its trial here.
    #[error("version {0} failed its trial on this box; ask for it again to try once more")]
    FailedBefore(Version),
    /// It does not fit.
    #[error("the image has {size} octets, the slot {slot}")]
    TooLarge {
        /// The image's octets.
        size: u64,
        /// The slot's octets.
        slot: u64,
    },
}

/// What this box takes.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    /// The keys that it trusts.
    pub keys: &'a [VerifyingKey],
    /// What kind of box it is.
    pub compatible: &'a str,
    /// What runs.
    pub running: &'a Version,
    /// Versions that failed here.
    pub failed: &'a Failed,
    /// Octets of the slot.
    pub slot: u64,
    /// Somebody asked for an older version.
    pub downgrade: bool,
    /// Somebody asked for a version that failed, or runs.
    pub again: bool,
}

/// A bundle whose frame was read: what it says, and where its image begins.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// What it says.
    pub manifest: Manifest,
    /// The key that signed it.
    pub key: KeyId,
    /// Octets before the image.
    pub image_at: u64,
}

/// Reads a bundle up to its image and checks its signature against `keys`.
///
/// # Errors
///
/// [`Refused`], up to [`Refused::Malformed`].
pub fn open(reader: &mut impl Read, keys: &[VerifyingKey]) -> Result<Bundle, Refused> {
    let mut head = [0; 32];
    exact(reader, &mut head)?;
    let (magic, rest) = head.split_at(MAGIC.len());
    if magic != MAGIC {
        return Err(Refused::NoBundle);
    }
    if keys.is_empty() {
        return Err(Refused::NoKey);
    }
    let (named, length) = rest.split_at(8);
    let length = length.try_into().map(u32::from_le_bytes).map_err(|_| Refused::Malformed)?;
    let length = usize::try_from(length).ok().filter(|length| *length <= LARGEST_MANIFEST).ok_or(Refused::Malformed)?;
    let mut signed = head.to_vec();
    signed.resize(head.len() + length, 0);
    exact(reader, &mut signed[head.len()..])?;
    let mut signature = [0; 64];
    exact(reader, &mut signature)?;
    let mut id = [0; 8];
    id.copy_from_slice(named);
    let id = KeyId(id);
    let key = keys.iter().find(|key| KeyId::of(key) == id).ok_or(Refused::ForeignKey(id))?;
    key.verify_strict(&signed, &Signature::from_bytes(&signature)).map_err(|_| Refused::Tampered)?;
    let manifest = Manifest::decode(&signed[head.len()..]).ok_or(Refused::Malformed)?;
    Ok(Bundle { manifest, key: id, image_at: (signed.len() + signature.len()) as u64 })
}

fn exact(reader: &mut impl Read, octets: &mut [u8]) -> Result<(), Refused> {
    reader.read_exact(octets).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Refused::Truncated,
        _ => Refused::Read(error),
    })
}

impl Bundle {
    /// Whether this box takes it.
    ///
    /// # Errors
    ///
    /// [`Refused`], from [`Refused::ForeignCompatible`] on.
    pub fn check(&self, terms: &Terms<'_>) -> Result<(), Refused> {
        let Manifest { compatible, version, minimum, size, .. } = &self.manifest;
        if compatible != terms.compatible {
            return Err(Refused::ForeignCompatible { theirs: compatible.clone(), ours: terms.compatible.to_owned() });
        }
        if version.is_before(terms.running) && !terms.downgrade {
            return Err(Refused::Downgrade { theirs: version.clone(), ours: terms.running.clone() });
        }
        if let Some(minimum) = minimum.as_ref().filter(|minimum| terms.running.is_before(minimum)) {
            return Err(Refused::BelowMinimum { minimum: minimum.clone(), ours: terms.running.clone() });
        }
        if version == terms.running && !terms.again {
            return Err(Refused::Runs(version.clone()));
        }
        if terms.failed.contains(version) && !terms.again {
            return Err(Refused::FailedBefore(version.clone()));
        }
        if *size > terms.slot {
            return Err(Refused::TooLarge { size: *size, slot: terms.slot });
        }
        Ok(())
    }
}

/// The octets before the image: magic, manifest, signature.
pub fn sign(manifest: &Manifest, key: &SigningKey) -> Vec<u8> {
    let json = manifest.encode();
    let mut octets = MAGIC.to_vec();
    octets.extend_from_slice(&KeyId::of(&key.verifying_key()).0);
    octets.extend_from_slice(&u32::try_from(json.len()).unwrap_or(u32::MAX).to_le_bytes());
    octets.extend_from_slice(&json);
    let signature = key.sign(&octets);
    octets.extend_from_slice(&signature.to_bytes());
    octets
}
