//! The public keys that updates must be signed by.

use ed25519_dalek::VerifyingKey;

/// Those built in, from `board/keys/*.pub`.
const BUILT_IN: &[&str] = include!(concat!(env!("OUT_DIR"), "/update_keys.rs"));

/// The key of 64 hexadecimal digits; nothing when it is none.
pub fn parse(text: &str) -> Option<VerifyingKey> {
    let mut octets = [0; 32];
    hex::decode_to_slice(text.trim(), &mut octets).ok()?;
    // A key of small order would accept signatures that nobody made.
    VerifyingKey::from_bytes(&octets).ok().filter(|key| !key.is_weak())
}

/// The keys built in, and `more`.
pub fn trusted(more: &[VerifyingKey]) -> Vec<VerifyingKey> {
    BUILT_IN.iter().filter_map(|text| parse(text)).chain(more.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;

    use super::*;

    #[test]
    fn a_key_is_64_digits_that_name_a_point_of_full_order() {
        let key = SigningKey::from_bytes(&[3; 32]).verifying_key();
        let text = hex::encode(key.as_bytes());
        assert_eq!(parse(&format!("{text}\n")), Some(key));
        assert_eq!(parse(&text[1..]), None);
        assert_eq!(parse(&"x".repeat(64)), None);
        assert_eq!(parse(&format!("01{}", "0".repeat(62))), None, "the neutral element signs everything");
        assert_eq!(trusted(&[key]).len(), BUILT_IN.len() + 1);
    }

    #[test]
    fn every_key_built_in_is_one() {
        assert!(BUILT_IN.iter().all(|text| parse(text).is_some()));
    }
}
