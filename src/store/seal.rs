//! Sealing: BMC passwords leave the box only as text that the box itself can open again.
//!
//! XChaCha20-Poly1305 with a random nonce of 192 bits, so that no counter has to survive a crash. The associated data
//! binds a sealed text to its place (provider ID and machine ID): moved to another machine it does not open.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroize;

use super::recovery_code::{self, InvalidCode};
use crate::secret::Secret;

const PREFIX: &str = "sealed:v1:";
const NONCE: usize = 24;
const TAG: usize = 16;
/// Longest text that is unsealed; a BMC password has 20 octets at most.
const MAX_SEALED: usize = 64 * 1024;

/// The box's sealing key.
#[derive(Clone)]
pub struct SealingKey(Secret<[u8; 32]>);

/// Why a key file can't be used or made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file or its directory refuses.
    #[error("cannot {op} the sealing key {}", path.display())]
    File {
        /// What was tried, as a verb.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Others may read the file.
    #[error("the sealing key {} has mode {mode:03o}; want 600", path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else. It is never replaced: with the key all sealed passwords would be lost.
    #[error("the sealing key {} is damaged; restore it from its recovery code", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with its text.
        #[source]
        source: InvalidCode,
    },
    /// A key is there already that differs from the one to keep.
    #[error("another sealing key is at {} already", path.display())]
    Occupied {
        /// Which file.
        path: PathBuf,
    },
    /// The kernel gave no randomness.
    #[error("no randomness for a new sealing key")]
    Randomness(#[source] getrandom::Error),
}

/// Why a text was not sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel gave no randomness.
    #[error("no randomness to seal with")]
    Randomness(#[source] getrandom::Error),
    /// The text is not a sealed one, or not of a version known here.
    #[error("not a sealed text of version 1")]
    Form,
    /// Sealed by another key, for another place, or changed since.
    #[error("sealed by another key or for another machine, or changed since")]
    Refused,
    /// The text inside is no UTF-8, or the plaintext is too long to seal.
    #[error("the sealed text holds no acceptable text")]
    Content,
}

impl SealingKey {
    /// A new random key.
    ///
    /// # Errors
    ///
    /// [`KeyError::Randomness`].
    pub fn generate() -> Result<Self, KeyError> {
        let mut key = [0; 32];
        getrandom::fill(&mut key).map_err(KeyError::Randomness)?;
        let kept = Self(Secret::new(key));
        key.zeroize();
        Ok(kept)
    }

    /// The key in the file at `path`; made there when absent, with mode 0600, whole and synced before it has its name.
    ///
    /// The file holds the recovery code and a newline.
    ///
    /// # Errors
    ///
    /// A file that is there and not a key of ours is an error, never overwritten.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        if let Some(key) = Self::load(path)? {
            return Ok(key);
        }
        let fresh = Self::generate()?;
        match fresh.save(path) {
            Ok(()) => Ok(fresh),
            // Another process was faster: its key is the box's key.
            Err(KeyError::Occupied { path }) => Self::load(&path)?.ok_or(KeyError::Occupied { path }),
            Err(error) => Err(error),
        }
    }

    /// The key in the file at `path`; `None` when there is no such file.
    ///
    /// # Errors
    ///
    /// As [`Self::load_or_create`].
    pub fn load(path: &Path) -> Result<Option<Self>, KeyError> {
        let failed = |op| move |source| KeyError::File { op, path: path.to_owned(), source };
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("open")(error)),
        };
        let mode = file.metadata().map_err(failed("inspect"))?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = String::new();
        let read = file.take(4096).read_to_string(&mut text);
        let text = Secret::new(text);
        read.map_err(failed("read"))?;
        let key = recovery_code::decode(text.reveal())
            .map_err(|source| KeyError::Damaged { path: path.to_owned(), source })?;
        Ok(Some(Self(key)))
    }

    /// Keeps this key in the file at `path`, as a replacement box does with a key from its recovery code.
    ///
    /// # Errors
    ///
    /// [`KeyError::Occupied`] when another key is there.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        let failed = |op| move |source| KeyError::File { op, path: path.to_owned(), source };
        let mut unique = [0; 8];
        getrandom::fill(&mut unique).map_err(KeyError::Randomness)?;
        let fresh = path.with_extension(format!("new-{:016x}", u64::from_be_bytes(unique)));
        let written = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
            file.write_all(recovery_code::encode(self.0.reveal()).reveal().as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            // A link fails when the name is taken, where a rename would replace it.
            fs::hard_link(&fresh, path)?;
            super::export::sync_parent(path)
        })();
        let removed = fs::remove_file(&fresh);
        match written {
            Ok(()) => removed.map_err(failed("tidy up after")),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match Self::load(path)? {
                Some(present) if present.0 == self.0 => Ok(()),
                Some(_) | None => Err(KeyError::Occupied { path: path.to_owned() }),
            },
            Err(error) => Err(failed("write")(error)),
        }
    }

    /// What to show once at setup, for the day this box must be replaced.
    pub fn recovery_code(&self) -> Secret<String> {
        recovery_code::encode(self.0.reveal())
    }

    /// The key of a recovery code that a person typed.
    ///
    /// # Errors
    ///
    /// [`InvalidCode`] says what to look at again.
    pub fn from_recovery_code(code: &str) -> Result<Self, InvalidCode> {
        recovery_code::decode(code).map(Self)
    }

    /// `plaintext` sealed for the place `aad`: `sealed:v1:` and base64 of nonce, ciphertext and tag.
    ///
    /// Sealing the same text twice gives different texts.
    ///
    /// # Errors
    ///
    /// [`Error::Randomness`]; [`Error::Content`] above some 48 KiB.
    pub fn seal(&self, plaintext: &Secret<String>, aad: &str) -> Result<String, Error> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).map_err(Error::Randomness)?;
        self.seal_with_nonce(plaintext, aad, nonce)
    }

    fn seal_with_nonce(&self, plaintext: &Secret<String>, aad: &str, nonce: [u8; NONCE]) -> Result<String, Error> {
        let payload = Payload { msg: plaintext.reveal().as_bytes(), aad: aad.as_bytes() };
        let sealed = self.cipher().encrypt(&XNonce::from(nonce), payload).map_err(|_| Error::Content)?;
        let text = format!("{PREFIX}{}", STANDARD.encode([&nonce[..], &sealed].concat()));
        if text.len() > MAX_SEALED { Err(Error::Content) } else { Ok(text) }
    }

    /// The text that was sealed by this key for the place `aad`.
    ///
    /// # Errors
    ///
    /// [`Error::Form`] when it was never sealed, [`Error::Refused`] when it is not for this key and place.
    pub fn unseal(&self, sealed: &str, aad: &str) -> Result<Secret<String>, Error> {
        let encoded = sealed.strip_prefix(PREFIX).filter(|_| sealed.len() <= MAX_SEALED).ok_or(Error::Form)?;
        let octets = STANDARD.decode(encoded).map_err(|_| Error::Form)?;
        let (nonce, ciphertext) = octets.split_first_chunk::<NONCE>().ok_or(Error::Form)?;
        if ciphertext.len() < TAG {
            return Err(Error::Form);
        }
        let payload = Payload { msg: ciphertext, aad: aad.as_bytes() };
        let plaintext = self.cipher().decrypt(&XNonce::from(*nonce), payload).map_err(|_| Error::Refused)?;
        match String::from_utf8(plaintext) {
            Ok(text) => Ok(Secret::new(text)),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(Error::Content)
            }
        }
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(self.0.reveal().into())
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SealingKey(***)")
    }
}

/// Whether `text` is a sealed one, of any version. A password that someone set to begin with `sealed:v` would be taken
/// for one; the agent's generated passwords never do.
pub fn is_sealed(text: &str) -> bool {
    text.strip_prefix("sealed:v").is_some_and(|rest| {
        rest.split_once(':')
            .is_some_and(|(version, _)| !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> SealingKey {
        SealingKey(Secret::new(std::array::from_fn(|index| index as u8)))
    }

    #[test]
    fn what_is_sealed_opens_for_the_same_place_and_key_only() {
        let secret = Secret::new("correct horse".to_owned());
        let sealed = key().seal(&secret, "provider/machine-1").unwrap();
        assert!(is_sealed(&sealed) && !sealed.contains("horse"));
        assert_ne!(sealed, key().seal(&secret, "provider/machine-1").unwrap());
        assert_eq!(key().unseal(&sealed, "provider/machine-1").unwrap(), secret);
        assert!(matches!(key().unseal(&sealed, "provider/machine-2"), Err(Error::Refused)));
        let other = SealingKey::generate().unwrap();
        assert!(matches!(other.unseal(&sealed, "provider/machine-1"), Err(Error::Refused)));
    }

    #[test]
    fn the_octets_of_version_1_are_frozen() {
        let sealed = key().seal_with_nonce(&Secret::new("password".to_owned()), "p/m", [9; NONCE]).unwrap();
        assert_eq!(sealed, FROZEN);
        assert_eq!(key().unseal(FROZEN, "p/m").unwrap().reveal(), "password");
        assert_eq!(format!("{:?}", key()), "SealingKey(***)");
    }

    const FROZEN: &str = "sealed:v1:CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJZUFHDMsgdNhmzdMN3pkc3BQzfI1wtNeV";

    #[test]
    fn a_text_that_was_never_sealed_is_told_apart() {
        for plain in ["", "hunter2", "sealed", "sealed:", "sealed:vx:AAAA", "sealed:v:AAAA"] {
            assert!(!is_sealed(plain), "{plain}");
            assert!(matches!(key().unseal(plain, ""), Err(Error::Form)), "{plain}");
        }
        for odd in ["sealed:v1:", "sealed:v1:!!!", "sealed:v1:AAAA", "sealed:v2:AAAA"] {
            assert!(is_sealed(odd), "{odd}");
            assert!(matches!(key().unseal(odd, ""), Err(Error::Form)), "{odd}");
        }
    }

    #[test]
    fn a_key_is_made_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.key");
        let first = SealingKey::load_or_create(&path).unwrap();
        let again = SealingKey::load_or_create(&path).unwrap();
        assert!(first.0 == again.0);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        first.save(&path).unwrap();
        assert!(matches!(key().save(&path), Err(KeyError::Occupied { .. })));
        let typed = SealingKey::from_recovery_code(first.recovery_code().reveal()).unwrap();
        assert!(typed.0 == first.0);
    }

    #[test]
    fn a_damaged_or_exposed_key_is_reported_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seal.key");
        for text in ["", "nonsense"] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            assert!(matches!(SealingKey::load_or_create(&path), Err(KeyError::Damaged { .. })));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(SealingKey::load_or_create(&path), Err(KeyError::Exposed { mode: 0o640, .. })));
    }

    proptest! {
        #[test]
        fn any_text_is_opened_or_refused(text in "(sealed:v1:)?[A-Za-z0-9+/=]{0,120}") {
            let _ = key().unseal(&text, "p/m");
        }

        #[test]
        fn any_password_comes_back(password in ".{0,64}", aad in ".{0,64}") {
            let sealed = key().seal(&Secret::new(password.clone()), &aad).unwrap();
            let opened = key().unseal(&sealed, &aad).unwrap();
            prop_assert_eq!(opened.reveal(), &password);
        }
    }
}
