//! Keys in every form that OpenPGP has for them, though Omni's generators make but one today.

use std::time::Duration;

use pgp::composed::{ArmorOptions, SignedKeyDetails, SignedPublicKey};
use pgp::crypto::ed25519::{Mode, SecretKey as Ed25519};
use pgp::crypto::public_key::PublicKeyAlgorithm;
use pgp::packet::{KeyFlags, PubKeyInner, PublicKey, SecretKey, UserId};
use pgp::types::{Ed25519PublicParams, PlainSecretParams, PublicParams, SecretParams, SignedUser};

use super::*;
use crate::omni::fixtures::{KEY, PUBLIC_KEY, service_account};

/// Its one key certifies; a subkey signs, for two years from 2026-01-01.
const SUBKEY: &str = include_str!("../../tests/fixtures/omni/subkey.private.asc");
const SUBKEY_PUBLIC: &str = include_str!("../../tests/fixtures/omni/subkey.public.asc");
/// Its one key certifies, and nothing else.
const CERTIFY: &str = include_str!("../../tests/fixtures/omni/certify.private.asc");
/// As Omni's, behind a passphrase.
const LOCKED: &str = include_str!("../../tests/fixtures/omni/locked.private.asc");
const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);

fn parse(armor: &str) -> Result<ServiceAccountKey, KeyError> {
    ServiceAccountKey::parse(&service_account("metal-1", armor))
}

#[test]
fn armor_may_come_with_headers_and_without_its_checksum() {
    let plain = parse(KEY).unwrap();
    let without_crc: String =
        KEY.lines().filter(|line| !line.starts_with('=')).map(|line| format!("{line}\n")).collect();
    assert!(without_crc.len() < KEY.len(), "there was one");
    let with_headers = KEY.replacen("\n\n", "\nVersion: GopenPGP 3\nComment: https://gopenpgp.org\n\n", 1);
    let dos = KEY.replace('\n', "\r\n");
    for armor in [without_crc, with_headers, dos] {
        let key = parse(&armor).unwrap();
        assert_eq!((key.fingerprint(), key.expires()), (plain.fingerprint(), plain.expires()), "{armor:.60}");
    }
}

#[test]
fn where_the_primary_key_only_certifies_its_subkey_signs_and_tells_the_expiry() {
    let key = parse(SUBKEY).unwrap();
    let (public, _) = SignedPublicKey::from_string(SUBKEY_PUBLIC).unwrap();
    assert_eq!(
        key.fingerprint(),
        format!("{:x}", public.primary_key.fingerprint()),
        "Omni knows it by its primary key"
    );
    assert_eq!(key.expires(), Some(UnixTime::from_secs(1_767_225_600 + 2 * 365 * 86_400)));
    let packet = key.sign(b"payload", NOW).unwrap();
    let signature = DetachedSignature::from_bytes(packet.as_slice()).unwrap();
    let by: Vec<_> =
        public.public_subkeys.iter().filter(|sub| signature.verify(&sub.key, b"payload").is_ok()).collect();
    assert_eq!(by.len(), 1);
    assert!(signature.verify(&public.primary_key, b"payload").is_err());
    assert_eq!(signature.signature.issuer_fingerprint(), [&by[0].key.fingerprint()]);
    // Expired: it signs still, since the clock may be wrong, and says so.
    assert!(
        key.expired(NOW + Duration::from_secs(3 * 365 * 86_400))
            && key.sign(b"x", UnixTime::from_secs(4_000_000_000)).is_ok()
    );
}

#[test]
fn a_key_that_nobody_may_use_is_told_by_its_reason() {
    assert!(matches!(parse(LOCKED), Err(KeyError::Passphrase)));
    assert!(matches!(parse(CERTIFY), Err(KeyError::CannotSign)));
    let (mut key, _) = SignedSecretKey::from_string(KEY).unwrap();
    for user in &mut key.details.users {
        user.signatures.clear();
    }
    assert!(matches!(parse(&key.to_armored_string(ArmorOptions::default()).unwrap()), Err(KeyError::Unbound)));
    // A self-signature of another key is none.
    let (mut key, _) = SignedSecretKey::from_string(KEY).unwrap();
    let (other, _) = SignedSecretKey::from_string(CERTIFY).unwrap();
    for (user, others) in key.details.users.iter_mut().zip(&other.details.users) {
        user.signatures.clone_from(&others.signatures);
    }
    assert!(matches!(parse(&key.to_armored_string(ArmorOptions::default()).unwrap()), Err(KeyError::Unbound)));
    // A public key and a private one in one text: the private one counts where it comes first.
    assert!(parse(&format!("{KEY}\n{PUBLIC_KEY}")).is_ok());
}

#[test]
fn a_key_of_version_6_signs_as_rfc_9580_wants_it() {
    let (created, lifetime) = (1_767_225_600, 86_400 * 300);
    let secret = Ed25519::try_from_bytes([7; 32], Mode::Ed25519).unwrap();
    let public = PubKeyInner::new(
        KeyVersion::V6,
        PublicKeyAlgorithm::Ed25519,
        Timestamp::from_secs(created),
        None,
        PublicParams::Ed25519(Ed25519PublicParams::from(&secret)),
    );
    let public = PublicKey::from_inner(public.unwrap()).unwrap();
    let primary = SecretKey::new(public.clone(), SecretParams::Plain(PlainSecretParams::Ed25519(secret))).unwrap();
    let user = UserId::from_str(Default::default(), "<metal-1@infra-provider.serviceaccount.omni.sidero.dev>").unwrap();
    let mut flags = KeyFlags::default();
    flags.set_sign(true);
    let hash = HashAlgorithm::Sha512;
    let salt = vec![3; hash.salt_len().unwrap()];
    let mut config =
        SignatureConfig::v6_with_salt(SignatureType::CertPositive, PublicKeyAlgorithm::Ed25519, hash, salt);
    config.hashed_subpackets = vec![
        Subpacket::regular(SubpacketData::SignatureCreationTime(Timestamp::from_secs(created))).unwrap(),
        Subpacket::regular(SubpacketData::IssuerFingerprint(public.fingerprint())).unwrap(),
        Subpacket::regular(SubpacketData::KeyExpirationTime(pgp::types::Duration::from_secs(lifetime))).unwrap(),
        Subpacket::regular(SubpacketData::KeyFlags(flags)).unwrap(),
    ];
    let certification = config.sign_certification(&primary, &public, &Password::empty(), Tag::UserId, &user).unwrap();
    let details = SignedKeyDetails::new(vec![], vec![], vec![SignedUser::new(user, vec![certification])], vec![]);
    let key = SignedSecretKey::new(primary, details, vec![], vec![]);
    let key = parse(&key.to_armored_string(ArmorOptions::default()).unwrap()).unwrap();
    assert_eq!(key.fingerprint().len(), 64);
    assert_eq!(key.expires(), Some(UnixTime::from_secs(u64::from(created + lifetime))));
    assert_eq!(key.provider_id_hint(), Some("metal-1"));
    let packet = key.sign(b"payload", NOW).unwrap();
    let signature = DetachedSignature::from_bytes(packet.as_slice()).unwrap();
    signature.verify(&public, b"payload").unwrap();
    assert!(signature.signature.issuer_key_id().is_empty(), "forbidden beside such a fingerprint");
}
