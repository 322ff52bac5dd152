//! The service account key: what signs every call.
//!
//! Source: contract omni-wire.md sections 2.1 to 2.4.

use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use pgp::composed::{Deserializable as _, DetachedSignature, SignedSecretKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{Signature, SignatureConfig, SignatureType, Subpacket, SubpacketData};
use pgp::ser::Serialize as _;
use pgp::types::{KeyDetails, KeyVersion, Password, SigningKey, Tag, Timestamp};
use zeroize::Zeroizing;

use crate::time::UnixTime;

/// A key has some 1,300 characters; this leaves room for any algorithm.
const MAX_KEY_TEXT: usize = 64 * 1024;
/// At the end of the e-mail address of every provider's service account.
const PROVIDER_MAIL: &str = "@infra-provider.serviceaccount.omni.sidero.dev";
/// Before the name of a key that the command line tool made.
const PROVIDER_PREFIX: &str = "infra-provider:";
/// Padding is written but its absence says nothing: pasted keys lose it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The parsed `OMNI_SERVICE_ACCOUNT_KEY`. Its `Debug` shows the name and the fingerprint alone.
pub struct ServiceAccountKey {
    name: String,
    fingerprint: String,
    mail: Option<String>,
    key: SignedSecretKey,
    /// In the order of preference: the primary key first. Never empty.
    signers: Vec<Signer>,
}

/// One part of the key that can sign.
#[derive(Clone, Copy, Debug)]
struct Signer {
    part: Part,
    expires: Option<UnixTime>,
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Primary,
    /// Index into `secret_subkeys`.
    Subkey(usize),
}

/// Why a text is no service account key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Nothing is there.
    #[error(
        "the service account key is empty; make one with `omnictl infraprovider create <id>` or in Omni's settings"
    )]
    Empty,
    /// Far longer than any key.
    #[error(
        "the service account key has {0} characters, far more than any key; paste the value of OMNI_SERVICE_ACCOUNT_KEY alone"
    )]
    TooLong(usize),
    /// Not base64.
    #[error(
        "the service account key is not base64; paste all of the value of OMNI_SERVICE_ACCOUNT_KEY, without its name"
    )]
    Base64,
    /// Base64 of something else.
    #[error("the service account key is no JSON object with `name` and `pgp_key`; was it cut short?")]
    Json,
    /// The name cannot stand in a signature header.
    #[error("the service account key's name is empty or holds a space or a character outside ASCII")]
    Name,
    /// `pgp_key` is no OpenPGP private key.
    #[error("the service account key holds no readable OpenPGP private key; was it cut short?")]
    Pgp(#[source] Box<pgp::errors::Error>),
    /// The private key wants a passphrase.
    #[error("the service account key is protected by a passphrase; Omni's own keys have none")]
    Passphrase,
    /// The private key's self-signature does not verify, so nobody would accept it.
    #[error("the OpenPGP key carries no valid signature of its own; make a new service account key")]
    Unbound,
    /// Nothing in the key can sign.
    #[error("the OpenPGP key cannot sign; make a new service account key")]
    CannotSign,
}

/// Why a payload could not be signed.
#[derive(Debug, thiserror::Error)]
#[error("could not sign with key {fingerprint}")]
pub struct SignError {
    /// The key's fingerprint.
    pub fingerprint: String,
    /// What the OpenPGP library said.
    #[source]
    pub source: Box<pgp::errors::Error>,
}

#[derive(serde::Deserialize)]
struct Envelope {
    name: String,
    pgp_key: String,
}

impl ServiceAccountKey {
    /// The key in `text`: base64 of a JSON object with `name` and `pgp_key`. White space in the text is ignored, since
    /// terminals wrap what is pasted. An expired key parses: see [`Self::expires`].
    ///
    /// # Errors
    ///
    /// [`KeyError`] says which layer is broken; it never quotes the key.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        if text.len() > MAX_KEY_TEXT {
            return Err(KeyError::TooLong(text.len()));
        }
        let mut compact = Zeroizing::new(String::with_capacity(text.len()));
        compact.extend(text.chars().filter(|character| !character.is_whitespace()));
        if compact.is_empty() {
            return Err(KeyError::Empty);
        }
        let json = Zeroizing::new(BASE64.decode(compact.as_bytes()).map_err(|_| KeyError::Base64)?);
        let envelope: Envelope = serde_json::from_slice(&json).map_err(|_| KeyError::Json)?;
        let armor = Zeroizing::new(envelope.pgp_key);
        if envelope.name.is_empty() || !envelope.name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(KeyError::Name);
        }
        let (key, _) = SignedSecretKey::from_string(&armor).map_err(|error| KeyError::Pgp(Box::new(error)))?;
        if !matches!(key.version(), KeyVersion::V4 | KeyVersion::V6) {
            return Err(KeyError::CannotSign);
        }
        let mail = key.details.users.iter().find_map(|user| mail_in(user.id.as_str()?));
        let signers = signers(&key)?;
        Ok(Self { name: envelope.name, fingerprint: format!("{:x}", key.fingerprint()), mail, key, signers })
    }

    /// The name as the key's maker wrote it, with or without `infra-provider:`. It goes into the signature header as is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The primary key's fingerprint: lower-case hex, 40 characters for a version 4 key. Omni finds the key by it.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// When the primary key was made. Verifiers refuse signatures that claim to be older.
    pub fn created(&self) -> UnixTime {
        UnixTime::from_secs(u64::from(self.key.primary_key.created_at().as_secs()))
    }

    /// When the part that will sign longest expires; `None` is never. Omni says no more than "invalid signature" then.
    pub fn expires(&self) -> Option<UnixTime> {
        // An absent date is the latest of all.
        let latest = self.signers.iter().map(|signer| signer.expires.map_or((1, None), |at| (0, Some(at)))).max();
        latest.and_then(|(_, expires)| expires)
    }

    /// Whether nothing in the key may sign at `now` any more.
    pub fn expired(&self, now: UnixTime) -> bool {
        self.expires().is_some_and(|expires| expires <= now)
    }

    /// The provider's ID, if the key says: from the e-mail address of its user ID, else from a name with the prefix
    /// `infra-provider:`. Omni decides by the stored public key, so this is a hint and a check.
    pub fn provider_id_hint(&self) -> Option<&str> {
        let from_mail = self.mail.as_deref().and_then(|mail| mail.strip_suffix(PROVIDER_MAIL));
        from_mail.or_else(|| self.name.strip_prefix(PROVIDER_PREFIX)).filter(|id| !id.is_empty())
    }

    /// A binary detached signature over `payload`: the octets of one OpenPGP signature packet of type 0x00, hashed with
    /// SHA-512, holding creation time `now` (whole seconds), issuer and issuer fingerprint.
    ///
    /// The first part that has not expired at `now` signs. When all have, the first signs still: the clock may be wrong,
    /// and Omni's answer is the judgement that counts.
    ///
    /// # Errors
    ///
    /// [`SignError`] when the OpenPGP library refuses the key.
    pub fn sign(&self, payload: &[u8], now: UnixTime) -> Result<Vec<u8>, SignError> {
        let valid = |signer: &&Signer| signer.expires.is_none_or(|expires| now < expires);
        let signer = self.signers.iter().find(valid).or(self.signers.first());
        let signed = match signer.map(|signer| signer.part) {
            Some(Part::Subkey(index)) if index < self.key.secret_subkeys.len() => {
                sign_with(&self.key.secret_subkeys[index].key, payload, now)
            }
            _ => sign_with(&self.key.primary_key, payload, now),
        };
        signed.map_err(|source| SignError { fingerprint: self.fingerprint.clone(), source: Box::new(source) })
    }
}

impl fmt::Debug for ServiceAccountKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceAccountKey")
            .field("name", &self.name)
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

/// The parts of `key` that can sign, the primary key first, each with its expiry. A subkey expires with the primary key
/// at the latest.
fn signers(key: &SignedSecretKey) -> Result<Vec<Signer>, KeyError> {
    let primary = &key.primary_key;
    let public = primary.public_key();
    let certifications = key.details.users.iter().flat_map(|user| {
        let valid = |signature: &&Signature| signature.verify_certification(public, Tag::UserId, &user.id).is_ok();
        user.signatures.iter().filter(valid)
    });
    let direct = key.details.direct_signatures.iter().filter(|signature| signature.verify_key(public).is_ok());
    // The newest self-signature tells the key's lifetime (RFC 9580 section 5.2.3.10).
    let newest = certifications.chain(direct).max_by_key(|signature| signature.created().map_or(0, Timestamp::as_secs));
    let binding = newest.ok_or(KeyError::Unbound)?;
    let expires = expiry(primary, binding);

    let mut signers = Vec::new();
    let mut encrypted = false;
    let mut consider = |part, algorithm_signs: bool, binding: &Signature, locked: bool, expires| {
        // No key flags at all means that the algorithm alone decides, as keys older than the subpacket have it.
        let flagged = binding.key_flags().sign() || !has_key_flags(binding);
        if algorithm_signs && flagged {
            encrypted |= locked;
            if !locked {
                signers.push(Signer { part, expires });
            }
        }
    };
    let locked = primary.secret_params().is_encrypted();
    consider(Part::Primary, primary.algorithm().can_sign(), binding, locked, expires);
    for (index, subkey) in key.secret_subkeys.iter().enumerate() {
        let newest = subkey
            .signatures
            .iter()
            .filter(|signature| signature.verify_subkey_binding(public, subkey.key.public_key()).is_ok())
            .max_by_key(|signature| signature.created().map_or(0, Timestamp::as_secs));
        let Some(binding) = newest else { continue };
        let earlier = [expires, expiry(&subkey.key, binding)].into_iter().flatten().min();
        let locked = subkey.key.secret_params().is_encrypted();
        consider(Part::Subkey(index), subkey.key.algorithm().can_sign(), binding, locked, earlier);
    }
    match (signers.is_empty(), encrypted) {
        (false, _) => Ok(signers),
        (true, true) => Err(KeyError::Passphrase),
        (true, false) => Err(KeyError::CannotSign),
    }
}

/// When `key` expires as `binding` has it: lifetime counted from the key's creation, 0 for never.
fn expiry(key: &impl KeyDetails, binding: &Signature) -> Option<UnixTime> {
    let lifetime = u64::from(binding.key_expiration_time()?.as_secs());
    (lifetime != 0).then(|| UnixTime::from_secs(u64::from(key.created_at().as_secs()) + lifetime))
}

fn has_key_flags(signature: &Signature) -> bool {
    signature.config().is_some_and(|config| {
        config.hashed_subpackets().any(|subpacket| matches!(subpacket.data, SubpacketData::KeyFlags(_)))
    })
}

fn sign_with(key: &impl SigningKey, payload: &[u8], now: UnixTime) -> pgp::errors::Result<Vec<u8>> {
    let hash = HashAlgorithm::Sha512;
    let mut config = match key.version() {
        KeyVersion::V6 => {
            let mut salt = vec![0; hash.salt_len().unwrap_or(32)];
            getrandom::fill(&mut salt).map_err(std::io::Error::from)?;
            SignatureConfig::v6_with_salt(SignatureType::Binary, key.algorithm(), hash, salt)
        }
        _ => SignatureConfig::v4(SignatureType::Binary, key.algorithm(), hash),
    };
    let created = Timestamp::from_secs(u32::try_from(now.as_secs()).unwrap_or(u32::MAX));
    config.hashed_subpackets = vec![
        Subpacket::regular(SubpacketData::SignatureCreationTime(created))?,
        Subpacket::regular(SubpacketData::IssuerFingerprint(key.fingerprint()))?,
    ];
    if key.version() == KeyVersion::V4 {
        // RFC 9580 section 5.2.3.12 forbids the key ID beside a version 6 key's fingerprint.
        config.unhashed_subpackets = vec![Subpacket::regular(SubpacketData::IssuerKeyId(key.legacy_key_id()))?];
    }
    let signature = config.sign(key, &Password::empty(), payload)?;
    DetachedSignature::new(signature).to_bytes()
}

/// The e-mail address in a user ID: within angle brackets, or all of it.
fn mail_in(user_id: &str) -> Option<String> {
    let mail = match user_id.rsplit_once('<') {
        Some((_, rest)) => rest.split('>').next().unwrap_or_default(),
        None => user_id,
    };
    mail.contains('@').then(|| mail.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::omni::fixtures::{EXPIRED_KEY, KEY, PUBLIC_KEY, service_account};
    use pgp::composed::SignedPublicKey;
    use proptest::prelude::*;

    const FINGERPRINT: &str = "eedd4841944b921129113fa228c9682ddd2dd638";
    const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);

    #[test]
    fn all_three_spellings_of_the_name_name_the_same_provider() {
        for name in ["infra-provider:metal-1", "metal-1", "anything"] {
            let key = ServiceAccountKey::parse(&service_account(name, KEY)).unwrap();
            assert_eq!(key.name(), name);
            assert_eq!(key.provider_id_hint(), Some("metal-1"));
            assert_eq!(key.fingerprint(), FINGERPRINT);
        }
    }

    #[test]
    fn a_pasted_key_may_be_wrapped_and_unpadded() {
        let text = service_account("metal-1", KEY);
        let wrapped: Vec<&str> =
            text.trim_end_matches('=').as_bytes().chunks(76).map(|line| std::str::from_utf8(line).unwrap()).collect();
        let key = ServiceAccountKey::parse(&format!("  {}\r\n", wrapped.join("\r\n"))).unwrap();
        assert_eq!(key.fingerprint(), FINGERPRINT);
    }

    #[test]
    fn the_expiry_is_read_from_the_key() {
        let created = 1_767_225_600;
        let key = ServiceAccountKey::parse(&service_account("metal-1", KEY)).unwrap();
        assert_eq!(key.expires(), Some(UnixTime::from_secs(created + 315_360_000)));
        assert!(!key.expired(NOW));
        let old = ServiceAccountKey::parse(&service_account("metal-1", EXPIRED_KEY)).unwrap();
        assert!(old.expired(NOW) && !old.expired(UnixTime::from_secs(created + 86_400)));
        assert_eq!(old.provider_id_hint(), Some("metal-1"), "a user ID may be an address alone");
    }

    #[test]
    fn each_broken_layer_has_its_own_error() {
        let encode = |text: &str| BASE64.encode(text);
        assert!(matches!(ServiceAccountKey::parse(" \n"), Err(KeyError::Empty)));
        assert!(matches!(ServiceAccountKey::parse("OMNI_SERVICE_ACCOUNT_KEY=ey"), Err(KeyError::Base64)));
        assert!(matches!(ServiceAccountKey::parse(&encode("{}")), Err(KeyError::Json)));
        assert!(matches!(ServiceAccountKey::parse(&"A".repeat(70_000)), Err(KeyError::TooLong(70_000))));
        for name in ["", "two words", "größe"] {
            assert!(matches!(ServiceAccountKey::parse(&service_account(name, KEY)), Err(KeyError::Name)));
        }
        for pgp in ["", "key", PUBLIC_KEY, &KEY[..KEY.len() / 2]] {
            assert!(
                matches!(ServiceAccountKey::parse(&service_account("metal-1", pgp)), Err(KeyError::Pgp(_))),
                "{pgp}"
            );
        }
    }

    #[test]
    fn neither_debug_nor_errors_show_the_key() {
        let text = service_account("metal-1", KEY);
        let shown = format!("{:?}", ServiceAccountKey::parse(&text).unwrap());
        assert_eq!(shown, format!("ServiceAccountKey {{ name: \"metal-1\", fingerprint: \"{FINGERPRINT}\", .. }}"));
    }

    #[test]
    fn a_signature_is_binary_and_names_its_issuer_and_time() {
        let key = ServiceAccountKey::parse(&service_account("metal-1", KEY)).unwrap();
        let packet = key.sign(b"payload", NOW).unwrap();
        let signature = DetachedSignature::from_bytes(packet.as_slice()).unwrap();
        let (public, _) = SignedPublicKey::from_string(PUBLIC_KEY).unwrap();
        signature.verify(&public, b"payload").unwrap();
        signature.verify(&public, b"Payload").unwrap_err();
        assert_eq!(signature.signature.typ(), Some(SignatureType::Binary));
        assert_eq!(signature.signature.hash_alg(), Some(HashAlgorithm::Sha512));
        assert_eq!(signature.signature.created().map(Timestamp::as_secs), Some(1_790_000_000));
        assert_eq!(signature.signature.issuer_fingerprint(), [&public.fingerprint()]);
        assert_eq!(signature.signature.issuer_key_id(), [&public.legacy_key_id()]);
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = ServiceAccountKey::parse(&text);
            let _ = ServiceAccountKey::parse(&service_account("metal-1", &text));
        }

        #[test]
        fn a_damaged_key_never_panics(at in 0..KEY.len(), with in any::<u8>(), cut in any::<bool>()) {
            let mut armor = KEY.as_bytes().to_vec();
            if cut { armor.truncate(at) } else { armor[at] = with }
            let armor = String::from_utf8_lossy(&armor);
            if let Ok(key) = ServiceAccountKey::parse(&service_account("metal-1", &armor)) {
                let _ = key.sign(b"payload", NOW);
            }
        }

        #[test]
        fn damaged_packets_never_panic(at in 0..500_usize, with in any::<u8>()) {
            let (key, _) = SignedSecretKey::from_string(KEY).unwrap();
            let mut packets = key.to_bytes().unwrap();
            let at = at % packets.len();
            packets[at] = with;
            let body = base64::engine::general_purpose::STANDARD.encode(&packets);
            let armor = format!("-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{body}\n-----END PGP PRIVATE KEY BLOCK-----\n");
            if let Ok(key) = ServiceAccountKey::parse(&service_account("metal-1", &armor)) {
                let _ = key.sign(b"payload", NOW);
            }
        }
    }
}

#[cfg(test)]
#[path = "key_form_tests.rs"]
mod key_form_tests;
