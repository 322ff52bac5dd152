//! The recovery code: a 32-octet key as text that a person can write down and type again.
//!
//! 56 characters in 14 groups of four: the key and 24 bits of its SHA-256, in Crockford's base 32, which has no `I`,
//! `L`, `O` and `U`. Read back without regard to case, spaces and dashes; `I` and `L` count as 1, `O` as 0.

use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::secret::Secret;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const KEY: usize = 32;
const CHECK: usize = 3;
const CHARACTERS: usize = (KEY + CHECK) * 8 / 5;
const GROUP: usize = 4;

/// Why a text is no recovery code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCode {
    /// Characters are missing or too many.
    #[error("a recovery code has {CHARACTERS} letters and digits, this one has {found}")]
    Length {
        /// How many there are.
        found: usize,
    },
    /// A character that no code has.
    #[error("group {group} of the recovery code has a character that no code has")]
    Character {
        /// Which group of four, counted from 1.
        group: usize,
    },
    /// The characters do not belong together: at least one is mistyped.
    #[error("the recovery code is mistyped somewhere: its check does not match")]
    Check,
}

/// The code of `key`.
pub fn encode(key: &[u8; KEY]) -> Secret<String> {
    let mut octets = [0; KEY + CHECK];
    octets[..KEY].copy_from_slice(key);
    octets[KEY..].copy_from_slice(&check(key));
    let mut text = String::with_capacity(CHARACTERS + CHARACTERS / GROUP);
    for position in 0..CHARACTERS {
        if position > 0 && position % GROUP == 0 {
            text.push('-');
        }
        // Five bits that begin at bit `position * 5`; they span at most two octets.
        let bit = position * 5;
        let pair = u16::from(octets[bit / 8]) << 8 | u16::from(octets.get(bit / 8 + 1).copied().unwrap_or(0));
        let index = pair >> (11 - bit % 8) & 31;
        text.push(char::from(ALPHABET[usize::from(index)]));
    }
    octets.zeroize();
    Secret::new(text)
}

/// The key of `code`.
///
/// # Errors
///
/// [`InvalidCode`] says what to look at again.
pub fn decode(code: &str) -> Result<Secret<[u8; KEY]>, InvalidCode> {
    let found = significant(code).count();
    if found != CHARACTERS {
        return Err(InvalidCode::Length { found });
    }
    let mut octets = [0_u8; KEY + CHECK];
    for (position, character) in significant(code).enumerate() {
        let value = value_of(character).ok_or(InvalidCode::Character { group: position / GROUP + 1 })?;
        let bit = position * 5;
        let pair = u16::from(value) << (11 - bit % 8);
        let [high, low] = pair.to_be_bytes();
        octets[bit / 8] |= high;
        if let Some(octet) = octets.get_mut(bit / 8 + 1) {
            *octet |= low;
        }
    }
    let mut key = [0; KEY];
    key.copy_from_slice(&octets[..KEY]);
    let matches = octets[KEY..] == check(&key);
    octets.zeroize();
    let key = Secret::new(key);
    if matches { Ok(key) } else { Err(InvalidCode::Check) }
}

fn check(key: &[u8; KEY]) -> [u8; CHECK] {
    let digest = Sha256::new().chain_update(b"pilotlight recovery code v1").chain_update(key).finalize();
    [digest[0], digest[1], digest[2]]
}

fn significant(code: &str) -> impl Iterator<Item = char> {
    code.chars().filter(|character| !character.is_whitespace() && *character != '-')
}

fn value_of(character: char) -> Option<u8> {
    let upper = match character.to_ascii_uppercase() {
        'I' | 'L' => '1',
        'O' => '0',
        other => other,
    };
    let index = ALPHABET.iter().position(|known| char::from(*known) == upper)?;
    u8::try_from(index).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_code_gives_its_key_back(key in any::<[u8; 32]>()) {
            let code = encode(&key);
            let decoded = decode(code.reveal()).unwrap();
            prop_assert_eq!(decoded.reveal(), &key);
            let spoken = code.reveal().to_lowercase().replace('-', " ").replace('0', "o").replace('1', "l");
            let decoded = decode(&spoken).unwrap();
            prop_assert_eq!(decoded.reveal(), &key);
        }

        #[test]
        fn any_text_is_a_code_or_an_error(text in ".{0,80}") {
            let _ = decode(&text);
        }
    }

    #[test]
    fn a_mistyped_code_is_told_apart() {
        let code = encode(&[7; 32]).reveal().clone();
        assert_eq!(code.split('-').map(str::len).collect::<Vec<_>>(), [4; 14]);
        assert_eq!(decode(&code[1..]), Err(InvalidCode::Length { found: 55 }));
        assert_eq!(decode(&code.replacen('-', "", 3).replace("--", "-")).unwrap().reveal(), &[7; 32]);
        let mut wrong = code.clone();
        wrong.replace_range(5..6, "U");
        assert_eq!(decode(&wrong), Err(InvalidCode::Character { group: 2 }));
        for position in (0..code.len()).filter(|position| position % 5 != 4) {
            let mut swapped = code.clone();
            let other = if &code[position..=position] == "Z" { "Y" } else { "Z" };
            swapped.replace_range(position..=position, other);
            assert_eq!(decode(&swapped), Err(InvalidCode::Check), "{position}");
        }
    }
}
