//! Join tokens: what a machine shows when it joins, and which provider vouches for it.
//!
//! Source: contract omni-wire.md section 7.1.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::resource::LABEL_INFRA_PROVIDER_ID;

/// Key of the machine request's ID in a token's extra data.
pub const MACHINE_REQUEST: &str = "omni.sidero.dev/machine-request";

/// What a token says about its bearer, keys sorted.
pub type ExtraData = BTreeMap<String, String>;

/// A token that says its version, and is nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid join token")]
pub struct Malformed;

#[derive(serde::Serialize, serde::Deserialize)]
struct Body {
    #[serde(default)]
    extra_data: ExtraData,
    #[serde(default)]
    signature: String,
}

/// A token as a machine shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// One of Omni's join tokens itself.
    Plain(String),
    /// It says something about its bearer.
    Signed {
        /// Whose secret it was made with.
        version: Version,
        /// What it says.
        extra: ExtraData,
        /// What proves it.
        signature: Vec<u8>,
    },
}

/// A version 2 token that carries `extra`, authenticated with the provider's `secret`.
pub fn v2(secret: &str, extra: ExtraData) -> String {
    let signature = BASE64_STANDARD.encode(mac(secret, &extra).finalize().into_bytes());
    let json = go_json(&Body { extra_data: extra, signature });
    format!("v2:{}", BASE64_STANDARD.encode(json))
}

/// A version 1 token, which is authenticated with Omni's default join token.
pub fn v1(default: &str, extra: ExtraData) -> String {
    v2(default, extra).replacen("v2:", "v1:", 1)
}

/// Which secret a token was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// Omni's default join token.
    V1,
    /// The provider's own.
    V2,
}

/// A version 2 token for machines of `provider_id`.
pub fn for_provider(secret: &str, provider_id: &str) -> String {
    v2(secret, ExtraData::from([(LABEL_INFRA_PROVIDER_ID.to_owned(), provider_id.to_owned())]))
}

impl Token {
    /// Reads a token; what names no version is a plain one.
    ///
    /// # Errors
    ///
    /// [`Malformed`].
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        let (version, encoded) = match text.split_once(':') {
            Some(("v1", encoded)) => (Version::V1, encoded),
            Some(("v2", encoded)) => (Version::V2, encoded),
            _ => return Ok(Self::Plain(text.to_owned())),
        };
        let json = BASE64_STANDARD.decode(encoded).map_err(|_| Malformed)?;
        let body: Body = serde_json::from_slice(&json).map_err(|_| Malformed)?;
        let signature = BASE64_STANDARD.decode(body.signature).map_err(|_| Malformed)?;
        Ok(Self::Signed { version, extra: body.extra_data, signature })
    }
}

/// Whether these data were signed with `secret`.
pub fn is_signed(extra: &ExtraData, signature: &[u8], secret: &str) -> bool {
    mac(secret, extra).verify_slice(signature).is_ok()
}

fn mac(secret: &str, extra: &ExtraData) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(go_json(extra).as_bytes());
    mac
}

/// Compact JSON with the characters escaped that Go's encoder escapes.
fn go_json(value: &impl serde::Serialize) -> String {
    let plain = serde_json::to_string(value).expect("maps of strings are JSON");
    let mut escaped = String::with_capacity(plain.len());
    for char in plain.chars() {
        match char {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => escaped.push_str(&format!("\\u{:04x}", u32::from(char))),
            other => escaped.push(other),
        }
    }
    escaped
}

/// `text` as a value of a form-encoded query.
pub fn query_escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            b' ' => escaped.push('+'),
            other => escaped.push_str(&format!("%{other:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const METAL: &str = "v2:eyJleHRyYV9kYXRhIjp7Im9tbmkuc2lkZXJvLmRldi9pbmZyYS1wcm92aWRlci1pZCI6Im1ldGFsLTEifSwic2lnbmF0dXJlIjoiNURzejBtbFZyVEtFdkRBcDlRRHplRm1uK29xVGliQVF3bEVTeVdQeGx3TT0ifQ==";
    const REQUEST: &str = "v2:eyJleHRyYV9kYXRhIjp7Im9tbmkuc2lkZXJvLmRldi9pbmZyYS1wcm92aWRlci1pZCI6Im1ldGFsLTEiLCJvbW5pLnNpZGVyby5kZXYvbWFjaGluZS1yZXF1ZXN0IjoicmVxLTcifSwic2lnbmF0dXJlIjoiYjNVYThZVS9udEEvTnRKMEJiTmpiRlI3UnZHd0tOOWVkOTBxSFdzalVIRT0ifQ==";

    #[test]
    fn tokens_are_those_of_the_contract() {
        assert_eq!(for_provider("unit-test-token", "metal-1"), METAL);
        let extra = ExtraData::from([
            (LABEL_INFRA_PROVIDER_ID.to_owned(), "metal-1".to_owned()),
            (MACHINE_REQUEST.to_owned(), "req-7".to_owned()),
        ]);
        assert_eq!(v2("unit-test-token", extra.clone()), REQUEST);
        let Ok(Token::Signed { version, extra: read, signature }) = Token::parse(REQUEST) else {
            panic!("it is signed")
        };
        assert_eq!((version, &read), (Version::V2, &extra));
        assert!(is_signed(&read, &signature, "unit-test-token") && !is_signed(&read, &signature, "another"));
    }

    #[test]
    fn a_token_says_its_version_or_is_plain() {
        let old = v1("s", ExtraData::from([(LABEL_INFRA_PROVIDER_ID.to_owned(), "metal-1".to_owned())]));
        assert!(matches!(Token::parse(&old), Ok(Token::Signed { version: Version::V1, .. })));
        assert_eq!(Token::parse("3KfE:x"), Ok(Token::Plain("3KfE:x".into())));
        for malformed in ["v2:", "v2:!", "v1:bm8gSlNPTg==", "v2:eyJzaWduYXR1cmUiOiIhIn0="] {
            assert_eq!(Token::parse(malformed), Err(Malformed), "{malformed}");
        }
        let Ok(Token::Signed { extra, signature, .. }) = Token::parse("v2:e30=") else { panic!("it says nothing") };
        assert!(extra.is_empty() && !is_signed(&extra, &signature, ""));
    }

    #[test]
    fn extra_data_are_escaped_as_go_does() {
        assert_eq!(go_json(&"a<b>&\u{2028}"), "\"a\\u003cb\\u003e\\u0026\\u2028\"");
        assert_eq!(query_escape("v2:a+/="), "v2%3Aa%2B%2F%3D");
    }
}
