//! The signature check of Omni's public API.
//!
//! Pure: the clock, the method and the metadata are arguments. A caller learns `invalid signature` and no more; the reason
//! is for the double's log.
//!
//! Source: contract omni-wire.md sections 2.3 to 2.5.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderMap;
use pgp::composed::{Deserializable as _, DetachedSignature, SignedPublicKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::SignatureType;
use pgp::types::{KeyDetails as _, VerifyingKey};

use super::account::ServiceAccount;
use super::plain::PlainKey;
use super::role::Identity;
use crate::time::UnixTime;

/// Metadata key of the signing time, Unix seconds.
pub const TIMESTAMP: &str = "x-sidero-timestamp";
/// Metadata key of the signed JSON.
pub const PAYLOAD: &str = "x-sidero-payload";
/// Metadata key of `siderov1 <name> <fingerprint> <signature>`.
pub const SIGNATURE: &str = "x-sidero-signature";

/// How far a clock may be off.
const SKEW: Duration = Duration::from_secs(300);
/// The headers that a signature covers.
const COVERED: [&str; 10] = [
    TIMESTAMP,
    "nodes",
    "selectors",
    "fieldSelectors",
    "runtime",
    "context",
    "cluster",
    "namespace",
    "uid",
    "authorization",
];

/// Why a signature is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// A header is missing, or not text.
    #[error("header {0} is missing")]
    Missing(&'static str),
    /// The signature header does not have four words of version `siderov1`.
    #[error("the signature header has another form")]
    Form,
    /// The timestamp is no number.
    #[error("the timestamp is no number")]
    Timestamp,
    /// The timestamp is more than five minutes off.
    #[error("the timestamp is too far off")]
    Skew,
    /// No such public key.
    #[error("the key is not known")]
    UnknownKey,
    /// Nobody has confirmed the key yet.
    #[error("the key is not confirmed")]
    Unconfirmed,
    /// The key belongs to no user.
    #[error("the key has no user")]
    NoUser,
    /// The stored key has expired.
    #[error("the key has expired")]
    Expired,
    /// The payload is not the JSON of a signed call.
    #[error("the payload is malformed")]
    Payload,
    /// The payload is for another method.
    #[error("the payload is for another method")]
    Method,
    /// A covered header is not as signed.
    #[error("header {0} is not as signed")]
    Header(&'static str),
    /// The signature is not the base64 of one binary OpenPGP signature packet.
    #[error("the signature is malformed")]
    Signature,
    /// A digest that is no longer trusted.
    #[error("the digest is too weak")]
    Digest,
    /// No issuer, or no creation time, or one ahead of the clock.
    #[error("the signature does not say by whom or when, or says so wrongly")]
    Origin,
    /// The mathematics do not agree.
    #[error("the signature does not match")]
    Mismatch,
}

/// A public key that may sign calls, and whose it is.
#[derive(Clone, Debug)]
pub struct Known {
    pub(super) key: Key,
    pub(super) expires: UnixTime,
    pub(super) identity: Identity,
}

/// The kinds of keys that Omni knows.
#[derive(Clone, Debug)]
pub(super) enum Key {
    /// Of service accounts, and of `omnictl`'s users.
    OpenPgp(Box<SignedPublicKey>),
    /// Of browsers.
    Plain(PlainKey),
}

#[derive(serde::Deserialize)]
struct Payload {
    #[serde(default)]
    headers: BTreeMap<String, Option<Vec<String>>>,
    #[serde(default)]
    method: String,
}

/// Who signed a call of `method`, the full path with its leading slash, with this metadata; `find` looks a key up by its
/// fingerprint.
///
/// # Errors
///
/// [`Rejected`].
pub fn verify(
    now: UnixTime,
    method: &str,
    metadata: &HeaderMap,
    find: impl FnOnce(&str) -> Result<Known, Rejected>,
) -> Result<Identity, Rejected> {
    let text =
        |key: &'static str| metadata.get(key).and_then(|value| value.to_str().ok()).ok_or(Rejected::Missing(key));
    let timestamp: u64 = text(TIMESTAMP)?.parse().map_err(|_| Rejected::Timestamp)?;
    let stamped = UnixTime::from_secs(timestamp);
    if now.since(stamped) > SKEW || stamped.since(now) > SKEW {
        return Err(Rejected::Skew);
    }
    let mut words = text(SIGNATURE)?.split(' ');
    let (Some("siderov1"), Some(_name), Some(fingerprint), Some(signature)) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Rejected::Form);
    };
    let known = find(fingerprint)?;
    if known.expires < now {
        return Err(Rejected::Expired);
    }
    let payload = text(PAYLOAD)?;
    check_payload(payload, method, metadata)?;
    let signature = BASE64_STANDARD.decode(signature).map_err(|_| Rejected::Signature)?;
    match &known.key {
        Key::OpenPgp(key) => check_packet(now, key, known.expires, &signature, payload.as_bytes())?,
        Key::Plain(key) if key.verifies(payload.as_bytes(), &signature) => (),
        Key::Plain(_) => return Err(Rejected::Mismatch),
    }
    Ok(known.identity)
}

/// Compares what was signed with what was sent.
fn check_payload(payload: &str, method: &str, metadata: &HeaderMap) -> Result<(), Rejected> {
    let payload: Payload = serde_json::from_str(payload).map_err(|_| Rejected::Payload)?;
    if payload.method != method {
        return Err(Rejected::Method);
    }
    for header in COVERED {
        // `fieldSelectors` is looked up as it is spelled; metadata keys are lower case, so it is never found.
        let is_lower = !header.bytes().any(|byte| byte.is_ascii_uppercase());
        let sent: Vec<_> = if is_lower { metadata.get_all(header).iter().collect() } else { Vec::new() };
        // Absent and null are one; an empty array is neither, and equals no metadata.
        let equal = match payload.headers.get(header).and_then(Option::as_ref) {
            None => sent.is_empty(),
            Some(signed) => {
                !signed.is_empty()
                    && signed.len() == sent.len()
                    && signed.iter().zip(sent).all(|(signed, sent)| signed.as_bytes() == sent.as_bytes())
            }
        };
        if !equal {
            return Err(Rejected::Header(header));
        }
    }
    Ok(())
}

impl Known {
    /// The key that `account` was made with.
    pub fn of(account: &ServiceAccount) -> Self {
        let key = Key::OpenPgp(Box::new(account.public_key.clone()));
        Self { key, expires: account.expires, identity: account.identity.clone() }
    }
}

/// Checks an OpenPGP signature as Omni's library does.
fn check_packet(
    now: UnixTime,
    key: &SignedPublicKey,
    expires: UnixTime,
    signature: &[u8],
    payload: &[u8],
) -> Result<(), Rejected> {
    let made = UnixTime::from_secs(u64::from(key.primary_key.created_at().as_secs()));
    let signature = DetachedSignature::from_bytes(Cursor::new(signature)).map_err(|_| Rejected::Signature)?;
    let packet = &signature.signature;
    if packet.typ() != Some(SignatureType::Binary) {
        return Err(Rejected::Signature);
    }
    match packet.hash_alg() {
        None | Some(HashAlgorithm::Md5 | HashAlgorithm::Sha1 | HashAlgorithm::Ripemd160) => {
            return Err(Rejected::Digest);
        }
        Some(_) => (),
    }
    if packet.issuer_key_id().is_empty() && packet.issuer_fingerprint().is_empty() {
        return Err(Rejected::Origin);
    }
    let created = UnixTime::from_secs(u64::from(packet.created().ok_or(Rejected::Origin)?.as_secs()));
    // Verified now, then once more a little later, which forgives a client's clock that is ahead.
    let grace = SKEW.min(expires.since(made) / 2);
    let in_time = |at: UnixTime| created <= at && made <= at && at <= expires;
    // A key signs nothing before it is made: a clock behind fails with a fresh key, however little.
    if created < made || (!in_time(now) && !in_time(now + grace)) {
        return Err(Rejected::Origin);
    }
    if let Some(limit) = packet.signature_expiration_time()
        && limit.as_secs() != 0
        && created + Duration::from_secs(u64::from(limit.as_secs())) < now
    {
        return Err(Rejected::Origin);
    }
    let mut signing =
        key.public_subkeys.iter().filter(|subkey| subkey.signatures.iter().any(|binding| binding.key_flags().sign()));
    let by_primary = verifies(&signature, &key.primary_key, payload);
    if by_primary || signing.any(|subkey| verifies(&signature, &subkey.key, payload)) {
        Ok(())
    } else {
        Err(Rejected::Mismatch)
    }
}

fn verifies(signature: &DetachedSignature, key: &impl VerifyingKey, payload: &[u8]) -> bool {
    signature.verify(key, payload).is_ok()
}
