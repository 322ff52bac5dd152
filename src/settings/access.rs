//! The setup code: what lets a person change the box.
//!
//! A box makes one by itself and shows it on its screen until it is first used; from then on only its argon2id hash is
//! kept. Wrong ones are answered ever more slowly, some thirty an hour at most: the wait is the box's, not a peer's.

use std::fmt;
use std::time::Duration;

use argon2::{Algorithm, Argon2, Params, Version};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::secret::Secret;
use crate::time::Uptime;

/// Least letters and digits of a code.
pub const LEAST: usize = 8;
/// Most of them.
pub const MOST: usize = 64;
/// Crockford's base 32: no letter that is taken for a digit.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
/// Wrong codes that cost nothing: people mistype.
const FREE: u32 = 4;
/// The wait after the first that costs; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// No wait is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(240);

/// A code of these random octets: eight letters and digits, 40 bits.
pub fn generate(random: [u8; 5]) -> Secret<String> {
    let bits = random.iter().fold(0_u64, |bits, octet| bits << 8 | u64::from(*octet));
    let letter = |index: u32| char::from(ALPHABET[(bits >> (35 - 5 * index) & 31) as usize]);
    Secret::new((0..8).map(letter).collect())
}

/// A code as people read it: groups of four.
pub fn grouped(code: &str) -> String {
    let letters: Vec<char> = code.chars().collect();
    letters.chunks(4).map(String::from_iter).collect::<Vec<_>>().join("-")
}

/// A code as it is compared: capitals, without spaces and dashes, look-alikes as the digit. `None` when it has other
/// letters, or too few or too many.
pub fn normal(text: &str) -> Option<String> {
    let letters = text.chars().filter(|c| !matches!(c, ' ' | '-')).take(MOST + 1);
    let code: Option<String> = letters
        .map(|c| match c.to_ascii_uppercase() {
            'O' => Some('0'),
            'I' | 'L' => Some('1'),
            c if c.is_ascii_alphanumeric() => Some(c),
            _ => None,
        })
        .collect();
    code.filter(|code| (LEAST..=MOST).contains(&code.len()))
}

/// What is kept of the code.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// The box's own, until it is first used: the screen shows it.
    Shown(String),
    /// What argon2id makes of it.
    Hashed {
        /// Random, one a code.
        salt: [u8; 16],
        /// Its hash.
        hash: [u8; 32],
    },
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shown(_) => "Shown(***)",
            Self::Hashed { .. } => "Hashed(***)",
        })
    }
}

impl Code {
    /// What is kept of `code`, in its [`normal`] form, once it was used. Takes a tenth of a second and 19 MiB.
    ///
    /// `None` only when there is no memory for it.
    pub fn hashed(code: &str, salt: [u8; 16]) -> Option<Self> {
        Some(Self::Hashed { salt, hash: hash(code.as_bytes(), salt)? })
    }

    /// Whether `typed` is the code. Compared in constant time.
    pub fn matches(&self, typed: &str) -> bool {
        let Some(typed) = normal(typed) else { return false };
        match self {
            Self::Shown(code) => bool::from(code.as_bytes().ct_eq(typed.as_bytes())),
            Self::Hashed { salt, hash: known } => {
                hash(typed.as_bytes(), *salt).is_some_and(|hash| bool::from(hash.ct_eq(known)))
            }
        }
    }
}

/// What argon2id makes of a secret at OWASP's least cost: 19 MiB, two passes, one lane. `None` only without memory.
pub(super) fn hash(secret: &[u8], salt: [u8; 16]) -> Option<[u8; 32]> {
    let params = Params::new(19 * 1024, 2, 1, Some(32)).ok()?;
    let mut hash = [0; 32];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params).hash_password_into(secret, &salt, &mut hash).ok()?;
    Some(hash)
}

/// Wrong codes in a row, and how long nobody may try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    failures: u32,
    until: Uptime,
}

impl Attempts {
    /// How long to wait before the next try; `None` when it may be made.
    pub fn wait(&self, now: Uptime) -> Option<Duration> {
        Some(self.until.since(now)).filter(|left| !left.is_zero())
    }

    /// The state after a try at `now`.
    #[must_use]
    pub fn tried(self, now: Uptime, right: bool) -> Self {
        if right {
            return Self::default();
        }
        let failures = self.failures.saturating_add(1);
        let doublings = failures.saturating_sub(FREE + 1).min(16);
        let wait = if failures > FREE { (FIRST_WAIT * (1 << doublings)).min(LONGEST_WAIT) } else { Duration::ZERO };
        Self { failures, until: now + wait }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_code_is_read_as_people_type_it() {
        assert_eq!(generate([0; 5]).reveal(), "00000000");
        assert_eq!(generate([0xff; 5]).reveal(), "ZZZZZZZZ");
        assert_eq!(grouped(generate([0x08, 0x42, 0x10, 0x84, 0x21]).reveal()), "1111-1111");
        for text in ["abcd-ef01", " ABCD EFO1", "abcdefol", "A-B-C-D-E-F-0-I"] {
            assert_eq!(normal(text).as_deref(), Some("ABCDEF01"), "{text}");
        }
        for text in ["", "abcd-ef0", "abcd_ef01", "äbcdefgh", &"a".repeat(65)] {
            assert_eq!(normal(text), None, "{text}");
        }
    }

    #[test]
    fn only_the_code_matches_shown_or_hashed() {
        let hashed = Code::hashed("ABCDEF01", [7; 16]).unwrap();
        for code in [Code::Shown("ABCDEF01".to_owned()), hashed.clone()] {
            assert!(code.matches("abcd-efo1"));
            assert!(!code.matches("abcd-ef02") && !code.matches("") && !code.matches(&"a".repeat(9999)));
        }
        assert_ne!(Code::hashed("ABCDEF01", [8; 16]).unwrap(), hashed);
        let kept = serde_json::to_string(&hashed).unwrap();
        assert!(!kept.contains("ABCDEF01") && !format!("{hashed:?}").contains('7'));
    }

    #[test]
    fn wrong_codes_cost_ever_more_and_a_right_one_ends_that() {
        let (mut attempts, mut now, mut tries) = (Attempts::default(), Uptime::from_secs(1), 0);
        let end = now + Duration::from_secs(3600);
        while now < end {
            attempts = attempts.tried(now, false);
            tries += 1;
            now = now + attempts.wait(now).unwrap_or_default();
        }
        assert!(tries < 30, "{tries} in an hour");
        let attempts = attempts.tried(now, true);
        assert_eq!((attempts, attempts.wait(now)), (Attempts::default(), None));
    }

    proptest! {
        #[test]
        fn every_generated_code_is_its_own_normal_form(random: [u8; 5]) {
            let code = generate(random);
            prop_assert_eq!(normal(code.reveal()), Some(code.reveal().clone()));
            prop_assert_eq!(normal(&grouped(code.reveal())), Some(code.reveal().clone()));
        }

        #[test]
        fn any_text_is_a_code_or_none(text in ".{0,100}") {
            if let Some(code) = normal(&text) {
                prop_assert_eq!(normal(&code), Some(code.clone()));
            }
        }
    }
}
