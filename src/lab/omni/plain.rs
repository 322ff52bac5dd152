//! The keys of browsers: ECDSA on P-256, in PEM, without OpenPGP around them.
//!
//! Pure. Source: contract omni-wire.md section 2.6.

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use sha2::{Digest as _, Sha256};

/// SubjectPublicKeyInfo of a P-256 key up to its point: RFC 5480, DER.
const PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// Octets of an uncompressed point of P-256.
const POINT: usize = 65;
const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// A P-256 public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainKey {
    /// The uncompressed point: 4, x, y.
    point: [u8; POINT],
}

impl PlainKey {
    /// The key in `pem`, one `PUBLIC KEY` block; `None` when it is no P-256 key. Omni takes other curves too, which no
    /// browser of its makes.
    pub fn parse(pem: &str) -> Option<Self> {
        let body = pem.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
        // Enough for any key on a curve; base64 of a P-256 key has 124 characters.
        if body.len() > 1024 {
            return None;
        }
        let base64: String = body.split_ascii_whitespace().collect();
        let der = BASE64_STANDARD.decode(base64).ok()?;
        let point = der.strip_prefix(&PREFIX)?;
        let point: [u8; POINT] = point.try_into().ok()?;
        (point[0] == 4).then_some(Self { point })
    }

    /// What Omni calls the key: URL-safe base64 of the SHA-256 of its point.
    pub fn id(&self) -> String {
        BASE64_URL_SAFE.encode(Sha256::digest(self.point))
    }

    /// Whether `signature`, r and s of 32 octets each, is this key's over `payload`.
    pub fn verifies(&self, payload: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.point).verify(payload, signature).is_ok()
    }
}

/// Keys for tests, here and of the services.
#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;
    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

    use super::*;

    /// A new key pair, and its public half in PEM, in lines of 64 characters as browsers and OpenSSL write it.
    pub fn pair() -> (EcdsaKeyPair, String) {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
        let der = [&PREFIX[..], pair.public_key().as_ref()].concat();
        let base64 = BASE64_STANDARD.encode(der);
        let (first, second) = base64.split_at(64);
        (pair, format!("{BEGIN}\n{first}\n{second}\n{END}\n"))
    }

    #[test]
    fn a_signature_is_checked_and_another_key_or_payload_is_refused() {
        let (pair, pem) = pair();
        let key = PlainKey::parse(&pem).unwrap();
        let signature = pair.sign(&SystemRandom::new(), b"payload").unwrap();
        assert_eq!(signature.as_ref().len(), 64);
        assert!(key.verifies(b"payload", signature.as_ref()));
        assert!(!key.verifies(b"Payload", signature.as_ref()));
        let (_, other) = self::pair();
        assert!(!PlainKey::parse(&other).unwrap().verifies(b"payload", signature.as_ref()));
        assert_eq!(key.id().len(), 44);
        assert_eq!(PlainKey::parse(&pem.replace("PUBLIC", "PRIVATE")), None);
    }

    /// The key and the ID that OpenSSL computes: `openssl pkey -pubin -outform DER | tail -c 65 | openssl dgst -sha256`.
    #[test]
    fn the_id_is_the_digest_of_the_point() {
        let pem = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEo1OpfMwV102WI+KjlnrbIKCFQnZS\n7FxCXhPnwo/j158JtciKvZEfK04tnSf5TeYwPVQZqWeeGGLriE7jlCPe6w==\n-----END PUBLIC KEY-----\n";
        assert_eq!(PlainKey::parse(pem).unwrap().id(), "bneR3k4cbM0QqF5V_b0vRfWIfcnohd6RInNAOoGpchk=");
    }

    proptest! {
        #[test]
        fn any_text_is_a_key_or_none(text in ".{0,200}", der in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(PlainKey::parse(&text), None);
            let pem = format!("{BEGIN}\n{}\n{END}", BASE64_STANDARD.encode(&der));
            prop_assert_eq!(PlainKey::parse(&pem), None);
            let key = PlainKey { point: [4; POINT] };
            prop_assert!(!key.verifies(b"payload", &der));
        }
    }
}
