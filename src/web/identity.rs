//! What the page proves itself by: a key and a certificate that it signed itself, made once.
//!
//! Nobody vouches for a box in a rack. What a person can compare is the certificate's fingerprint, which the box's screen
//! shows; after that the browser, or `curl --cacert`, knows it again. A factory reset makes another one.
//!
//! An edge, because it draws random numbers and keeps a file.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::secret::Secret;
use crate::settings::disk::Files;

/// The file that it is kept in, for the page's own user alone.
const NAME: &str = "identity.json";

/// From midnight to the last second of a day.
const LAST_SECOND: Duration = Duration::from_secs(86_399);

/// A key and its certificate.
#[derive(Debug)]
pub struct Identity {
    /// PKCS #8.
    key: Secret<Vec<u8>>,
    certificate: Vec<u8>,
}

/// Both as they are kept, in hexadecimal digits.
#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    certificate: String,
}

/// Why there is none.
#[derive(Debug, thiserror::Error)]
pub enum NoIdentity {
    /// No key or no certificate could be made.
    #[error("it can't be made")]
    Unmade(#[source] rcgen::Error),
    /// Key and certificate do not belong together.
    #[error("key and certificate do not fit")]
    Unfit(#[source] rustls::Error),
}

impl Identity {
    /// A new one, for these names.
    ///
    /// # Errors
    ///
    /// [`NoIdentity::Unmade`]: there are no random numbers, or a name of `dns` is not in ASCII.
    pub fn make(name: &str, dns: &[String]) -> Result<Self, NoIdentity> {
        let key = KeyPair::generate().map_err(NoIdentity::Unmade)?;
        let mut params = CertificateParams::new(dns).map_err(NoIdentity::Unmade)?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        // Before any box was made: a box without a clock takes its own certificate for valid as well.
        params.not_before = date_time_ymd(2025, 1, 1);
        // "No well-defined expiration date" (RFC 5280, section 4.1.2.5).
        params.not_after = date_time_ymd(9999, 12, 31) + LAST_SECOND;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.self_signed(&key).map_err(NoIdentity::Unmade)?;
        Ok(Self { key: Secret::new(key.serialize_der()), certificate: certificate.der().to_vec() })
    }

    /// The one that is kept in `files`; where there is none that can be used, a new one, which is kept from now on. The
    /// second is why it could not be kept.
    ///
    /// # Errors
    ///
    /// As [`Identity::make`].
    pub fn load(files: &mut impl Files, name: &str, dns: &[String]) -> Result<(Self, Option<io::Error>), NoIdentity> {
        let read = files.read(NAME).ok().flatten().map(Secret::new);
        if let Some(known) = read.and_then(|text| Self::parse(text.reveal())) {
            return Ok((known, None));
        }
        let new = Self::make(name, dns)?;
        let kept = new.text().and_then(|text| files.replace(NAME, text.reveal().as_bytes()));
        Ok((new, kept.err()))
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let Kept { key, certificate } = serde_json::from_slice(text).ok()?;
        let key = Secret::new(hex::decode(Secret::new(key).reveal()).ok()?);
        let known = Self { key, certificate: hex::decode(certificate).ok()? };
        known.server().is_ok().then_some(known)
    }

    fn text(&self) -> io::Result<Secret<String>> {
        let kept = Kept { key: hex::encode(self.key.reveal()), certificate: hex::encode(&self.certificate) };
        Ok(Secret::new(serde_json::to_string(&kept)?))
    }

    /// The SHA-256 of the certificate, as browsers and OpenSSL write it: pairs of capital digits with colons between them.
    pub fn fingerprint(&self) -> String {
        let pairs = Sha256::digest(&self.certificate).iter().map(|octet| format!("{octet:02X}")).collect::<Vec<_>>();
        pairs.join(":")
    }

    /// The certificate as text (RFC 7468).
    pub fn pem(&self) -> String {
        let text = STANDARD.encode(&self.certificate);
        let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// How a server shows it: TLS 1.2 and 1.3, HTTP/1.1 and HTTP/2.
    ///
    /// # Errors
    ///
    /// [`NoIdentity::Unfit`].
    pub fn server(&self) -> Result<Arc<ServerConfig>, NoIdentity> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.reveal().clone()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_no_client_auth()
                    .with_single_cert(vec![CertificateDer::from(self.certificate.clone())], key)
            })
            .map_err(NoIdentity::Unfit)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::settings::disk::Directory;

    #[test]
    fn it_is_made_once_and_again_when_the_file_is_gone_or_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Directory::new(dir.path(), None);
        let mut load = || Identity::load(&mut files, "pilotlight", &["pilotlight".to_owned()]).unwrap();
        let (first, kept) = load();
        assert!(kept.is_none());
        assert_eq!(load().0.fingerprint(), first.fingerprint());
        let file = dir.path().join(NAME);
        assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(first.fingerprint().len(), 95);
        let (other, _) = {
            std::fs::remove_file(&file).unwrap();
            load()
        };
        assert_ne!(other.fingerprint(), first.fingerprint(), "a factory reset");
        // The key of one with the certificate of the other.
        let mut mixed: Kept = serde_json::from_str(first.text().unwrap().reveal()).unwrap();
        mixed.certificate = hex::encode(&other.certificate);
        for text in ["{", "", &serde_json::to_string(&mixed).unwrap()] {
            std::fs::write(&file, text).unwrap();
            let (new, kept) = load();
            assert!(kept.is_none() && ![&first, &other].map(Identity::fingerprint).contains(&new.fingerprint()));
            assert_eq!(load().0.fingerprint(), new.fingerprint());
        }
        assert!(!format!("{first:?}").contains(&hex::encode(first.key.reveal())));
    }

    #[test]
    fn one_that_can_not_be_kept_serves_all_the_same() {
        let mut nowhere = Directory::new(std::path::Path::new("/nowhere/at/all"), None);
        let (identity, kept) = Identity::load(&mut nowhere, "pilotlight", &[]).unwrap();
        assert!(kept.is_some() && identity.server().is_ok());
    }
}
