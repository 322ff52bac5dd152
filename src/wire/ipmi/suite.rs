//! The two cipher suites spoken here, and the keyed hash each is made of.
//!
//! Source: IPMI 2.0 table 22-20 (cipher suite IDs), 13.28 (authentication, integrity, confidentiality algorithms).

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::Malformed;

/// A set of algorithms for authentication, integrity and confidentiality, numbered as table 22-20 does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CipherSuite {
    /// RAKP-HMAC-SHA256, HMAC-SHA256-128, AES-CBC-128.
    Suite17,
    /// RAKP-HMAC-SHA1, HMAC-SHA1-96, AES-CBC-128: mandatory in IPMI 2.0.
    Suite3,
}

impl CipherSuite {
    /// The suite's ID.
    pub const fn id(self) -> u8 {
        match self {
            Self::Suite17 => 17,
            Self::Suite3 => 3,
        }
    }

    /// Numbers of its authentication, integrity and confidentiality algorithms (tables 13-17 to 13-19).
    pub const fn algorithms(self) -> [u8; 3] {
        match self {
            Self::Suite17 => [3, 4, 1],
            Self::Suite3 => [1, 1, 1],
        }
    }

    /// The suite made of exactly these algorithms, if it is spoken here.
    pub fn from_algorithms(algorithms: [u8; 3]) -> Option<Self> {
        [Self::Suite17, Self::Suite3].into_iter().find(|suite| suite.algorithms() == algorithms)
    }

    /// Octets of a full keyed hash: key exchange codes, session keys.
    pub(super) const fn hash_len(self) -> usize {
        match self {
            Self::Suite17 => 32,
            Self::Suite3 => 20,
        }
    }

    /// Octets of an integrity code, that of a packet and that of RAKP message 4.
    pub(super) const fn integrity_len(self) -> usize {
        match self {
            Self::Suite17 => 16,
            Self::Suite3 => 12,
        }
    }

    /// The keyed hash of the concatenation of `parts`, [`Self::hash_len`] octets.
    pub(super) fn hash(self, key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
        fn run<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
            let mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
            let mac = parts.iter().fold(mac, |mac, part| mac.chain_update(part));
            Zeroizing::new(mac.finalize().into_bytes().to_vec())
        }
        match self {
            Self::Suite17 => run::<Hmac<Sha256>>(key, parts),
            Self::Suite3 => run::<Hmac<Sha1>>(key, parts),
        }
    }

    /// Checks `code`, the first `len` octets of the keyed hash of `parts`, in constant time.
    pub(super) fn verify(self, key: &[u8], parts: &[&[u8]], len: usize, code: &[u8]) -> Result<(), Malformed> {
        fn run<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]], code: &[u8]) -> bool {
            let mac = <M as KeyInit>::new_from_slice(key).expect("HMAC takes keys of any length");
            parts.iter().fold(mac, |mac, part| mac.chain_update(part)).verify_truncated_left(code).is_ok()
        }
        let fits = code.len() == len
            && match self {
                Self::Suite17 => run::<Hmac<Sha256>>(key, parts, code),
                Self::Suite3 => run::<Hmac<Sha1>>(key, parts, code),
            };
        if fits { Ok(()) } else { Err(Malformed::Integrity) }
    }
}

impl fmt::Display for CipherSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cipher suite {}", self.id())
    }
}
