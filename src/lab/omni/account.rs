//! Service accounts: an OpenPGP key pair in the form that Omni hands to a provider or a person, and the check of a public
//! key that somebody brings.
//!
//! Edge: it takes key material from the kernel.
//!
//! Source: contract omni-wire.md sections 2.1, 2.2 and 2.7.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pgp::composed::{ArmorOptions, Deserializable as _, SignedKeyDetails, SignedPublicKey, SignedSecretKey};
use pgp::crypto::ed25519::{Mode, SecretKey as Ed25519};
use pgp::crypto::hash::HashAlgorithm;
use pgp::crypto::public_key::PublicKeyAlgorithm;
use pgp::packet::{
    KeyFlags, PubKeyInner, PublicKey, SecretKey, SignatureConfig, SignatureType, Subpacket, SubpacketData, UserId,
};
use pgp::types::{
    EddsaLegacyPublicParams, KeyDetails as _, KeyVersion, Password, PlainSecretParams, PublicParams, SecretParams,
    SignedUser, Tag, Timestamp,
};
use zeroize::Zeroizing;

use super::role::{Identity, PROVIDER_PREFIX, Role};
use crate::secret::Secret;
use crate::time::UnixTime;

/// A year and a minute for the clocks.
const LIFETIME_MAX: Duration = Duration::from_secs(365 * 86_400 + 60);

/// What `omnictl infraprovider create` would have printed, and the public half that Omni keeps.
#[derive(Clone, Debug)]
pub struct ServiceAccount {
    /// Who the key speaks for.
    pub identity: Identity,
    /// `OMNI_SERVICE_ACCOUNT_KEY`: base64 of JSON with `name` and the armored private key.
    pub key_string: Secret<String>,
    /// Fingerprint, 40 lower-case hex digits.
    pub fingerprint: String,
    /// When the key ends.
    pub expires: UnixTime,
    /// The public half.
    pub public_key: SignedPublicKey,
}

/// The key could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The OpenPGP library refused.
    #[error("cannot make an OpenPGP key")]
    OpenPgp(#[source] Box<pgp::errors::Error>),
    /// The lifetime is zero or beyond what OpenPGP can say, 32 bits of seconds.
    #[error("a key cannot live for {0:?}")]
    Lifetime(Duration),
}

/// Why a public key is no service account's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// Not one armored public key.
    #[error("not an armored OpenPGP public key")]
    Malformed,
    /// No user ID, or none whose signature holds.
    #[error("the key has no valid user ID")]
    Unsigned,
    /// It never expires, or not soon enough.
    #[error("the key must expire within a year")]
    Lifetime,
}

/// The key in `armored`, and when it expires.
///
/// # Errors
///
/// [`BadKey`].
pub fn public_key(now: UnixTime, armored: &str) -> Result<(SignedPublicKey, UnixTime), BadKey> {
    let (key, _) = SignedPublicKey::from_string(armored).map_err(|_| BadKey::Malformed)?;
    key.verify_bindings().map_err(|_| BadKey::Unsigned)?;
    let signatures = key.details.users.iter().flat_map(|user| &user.signatures);
    let lifetime = signatures.filter_map(|signature| signature.key_expiration_time()).map(|time| time.as_secs()).max();
    let lifetime = lifetime.filter(|seconds| *seconds > 0).ok_or(BadKey::Lifetime)?;
    let created = UnixTime::from_secs(u64::from(key.primary_key.created_at().as_secs()));
    let expires = created + Duration::from_secs(lifetime.into());
    if expires <= now || expires > now + LIFETIME_MAX {
        return Err(BadKey::Lifetime);
    }
    Ok((key, expires))
}

/// What Omni calls the key: 40 lower-case hex digits.
pub fn fingerprint(key: &SignedPublicKey) -> String {
    format!("{:x}", key.primary_key.fingerprint())
}

impl From<pgp::errors::Error> for AccountError {
    fn from(error: pgp::errors::Error) -> Self {
        Self::OpenPgp(Box::new(error))
    }
}

impl ServiceAccount {
    /// A new account for `provider_id` whose key is made now and lives for `lifetime`.
    ///
    /// # Errors
    ///
    /// [`AccountError`].
    pub fn create(provider_id: &str, lifetime: Duration) -> Result<Self, AccountError> {
        Self::create_at(UnixTime::now(), provider_id, lifetime)
    }

    /// [`Self::create`] as if it were `created` now; with a time that is long past, an expired key.
    ///
    /// # Errors
    ///
    /// [`AccountError`].
    pub fn create_at(created: UnixTime, provider_id: &str, lifetime: Duration) -> Result<Self, AccountError> {
        Self::make(created, Identity::Provider(provider_id.into()), lifetime)
    }

    /// A new account for a person, as `--create-initial-service-account` makes one for an administrator.
    ///
    /// # Errors
    ///
    /// [`AccountError`].
    pub fn person(name: &str, role: Role, lifetime: Duration) -> Result<Self, AccountError> {
        Self::make(UnixTime::now(), Identity::Person { name: name.into(), role }, lifetime)
    }

    fn make(created: UnixTime, identity: Identity, lifetime: Duration) -> Result<Self, AccountError> {
        let too_long = |_| AccountError::Lifetime(lifetime);
        let valid_for = u32::try_from(lifetime.as_secs()).map_err(too_long)?;
        let made = u32::try_from(created.as_secs()).map_err(too_long)?;
        if valid_for == 0 {
            return Err(AccountError::Lifetime(lifetime));
        }
        let seed = Zeroizing::new(super::random::<32>());
        let secret = Ed25519::try_from_bytes(*seed, Mode::EdDSALegacy)?;
        let public = PubKeyInner::new(
            KeyVersion::V4,
            PublicKeyAlgorithm::EdDSALegacy,
            Timestamp::from_secs(made),
            None,
            PublicParams::EdDSALegacy(EddsaLegacyPublicParams::from(&secret)),
        )?;
        let public = PublicKey::from_inner(public)?;
        let secret = PlainSecretParams::EdDSALegacy(pgp::crypto::eddsa_legacy::SecretKey::Ed25519(secret));
        let primary = SecretKey::new(public.clone(), SecretParams::Plain(secret))?;

        let (name, mail) = (identity.account_name(), identity.email());
        let plain = name.strip_prefix(PROVIDER_PREFIX).unwrap_or(&name);
        let user = UserId::from_str(Default::default(), format!("{plain} (linux/amd64) <{mail}>"))?;
        let mut flags = KeyFlags::default();
        flags.set_certify(true);
        flags.set_sign(true);
        let valid_for = pgp::types::Duration::from_secs(valid_for);
        let mut config =
            SignatureConfig::v4(SignatureType::CertPositive, PublicKeyAlgorithm::EdDSALegacy, HashAlgorithm::Sha256);
        config.hashed_subpackets = vec![
            Subpacket::regular(SubpacketData::SignatureCreationTime(Timestamp::from_secs(made)))?,
            Subpacket::regular(SubpacketData::IssuerFingerprint(public.fingerprint()))?,
            Subpacket::regular(SubpacketData::KeyExpirationTime(valid_for))?,
            Subpacket::regular(SubpacketData::SignatureExpirationTime(valid_for))?,
            Subpacket::regular(SubpacketData::KeyFlags(flags))?,
            Subpacket::regular(SubpacketData::IsPrimary(true))?,
        ];
        config.unhashed_subpackets = vec![Subpacket::regular(SubpacketData::IssuerKeyId(public.legacy_key_id()))?];
        let certification = config.sign_certification(&primary, &public, &Password::empty(), Tag::UserId, &user)?;
        let details = SignedKeyDetails::new(vec![], vec![], vec![SignedUser::new(user, vec![certification])], vec![]);
        let key = SignedSecretKey::new(primary, details, vec![], vec![]);

        let armored = Zeroizing::new(key.to_armored_string(ArmorOptions::default())?);
        let json = Zeroizing::new(serde_json::json!({ "name": name, "pgp_key": armored.as_str() }).to_string());
        Ok(Self {
            identity,
            key_string: Secret::new(BASE64_STANDARD.encode(json.as_bytes())),
            fingerprint: format!("{:x}", public.fingerprint()),
            expires: created + lifetime,
            public_key: key.to_public_key(),
        })
    }
}
