//! What a bundle says of itself.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::slots::Version;

/// The largest chunk, in octets: two fit into the memory of the smallest box.
pub const LARGEST_CHUNK: u32 = 4 << 20;
/// The largest image, in octets.
pub const LARGEST_IMAGE: u64 = 1 << 30;
/// The smallest chunk: the whole of a flash page, and a manifest that stays small.
const SMALLEST_CHUNK: u32 = 4096;

/// SHA-256 of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The hash of these octets.
    pub fn of(octets: &[u8]) -> Self {
        Self(Sha256::digest(octets).into())
    }
}

/// What a bundle holds, as signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The kind of box it is for, such as `pilotlight-x86_64`.
    pub compatible: String,
    /// Its version.
    pub version: Version,
    /// The oldest version that may be updated to it, if there is one.
    pub minimum: Option<Version>,
    /// Octets of the image.
    pub size: u64,
    /// Octets of each chunk but the last, which may be shorter.
    pub chunk: u32,
    /// The hash of each chunk, in order.
    pub hashes: Vec<Hash>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    compatible: String,
    version: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    minimum: Option<String>,
    size: u64,
    chunk: u32,
    sha256: Vec<String>,
}

impl Manifest {
    /// The manifest of an image.
    pub fn of(compatible: &str, version: Version, minimum: Option<Version>, image: &[u8], chunk: u32) -> Self {
        let chunk = chunk.clamp(SMALLEST_CHUNK, LARGEST_CHUNK);
        Self {
            compatible: compatible.to_owned(),
            version,
            minimum,
            size: image.len() as u64,
            chunk,
            hashes: image.chunks(usize::try_from(chunk).unwrap_or(usize::MAX)).map(Hash::of).collect(),
        }
    }

    /// Its JSON.
    pub fn encode(&self) -> Vec<u8> {
        let written = Written {
            compatible: self.compatible.clone(),
            version: self.version.to_string(),
            minimum: self.minimum.as_ref().map(Version::to_string),
            size: self.size,
            chunk: self.chunk,
            sha256: self.hashes.iter().map(|hash| hex::encode(hash.0)).collect(),
        };
        serde_json::to_vec(&written).expect("strings and numbers are JSON")
    }

    /// The manifest of a JSON text; nothing when it is none or its numbers do not belong together.
    pub fn decode(json: &[u8]) -> Option<Self> {
        let written: Written = serde_json::from_slice(json).ok()?;
        let hashes = written.sha256.iter().map(|text| {
            let mut hash = [0; 32];
            hex::decode_to_slice(text, &mut hash).ok().map(|()| Hash(hash))
        });
        let hashes: Vec<_> = hashes.collect::<Option<_>>()?;
        let sane = (SMALLEST_CHUNK..=LARGEST_CHUNK).contains(&written.chunk)
            && (1..=LARGEST_IMAGE).contains(&written.size)
            && written.size.div_ceil(u64::from(written.chunk)) == hashes.len() as u64;
        let minimum = match written.minimum {
            Some(text) => Some(Version::parse(&text)?),
            None => None,
        };
        let version = Version::parse(&written.version)?;
        sane.then_some(Self {
            compatible: written.compatible,
            version,
            minimum,
            size: written.size,
            chunk: written.chunk,
            hashes,
        })
    }

    /// Octets of the image without these chunks.
    pub fn held_without(&self, chunks: &[usize]) -> u64 {
        self.size.saturating_sub(chunks.iter().map(|index| self.place(*index).1 as u64).sum())
    }

    /// Where a chunk begins, and how many octets it has.
    pub fn place(&self, index: usize) -> (u64, usize) {
        let at = index as u64 * u64::from(self.chunk);
        let length = self.size.saturating_sub(at).min(u64::from(self.chunk));
        (at, usize::try_from(length).unwrap_or(usize::MAX))
    }
}
