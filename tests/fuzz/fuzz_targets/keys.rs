//! Service account keys: any text, any OpenPGP packets, and a good key with octets changed. What parses must sign.
#![no_main]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use libfuzzer_sys::fuzz_target;
use pgp::composed::{Deserializable as _, DetachedSignature};
use pgp::packet::SignatureType;
use pilotlight::omni::ServiceAccountKey;
use pilotlight::time::UnixTime;

const KEY: &str = include_str!("../../fixtures/omni/service-account.private.asc");

fn wrapped(name: &str, packets: &[u8]) -> String {
    let armor = format!(
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{}\n-----END PGP PRIVATE KEY BLOCK-----\n",
        BASE64_STANDARD.encode(packets)
    );
    BASE64_STANDARD.encode(serde_json::json!({ "name": name, "pgp_key": armor }).to_string())
}

fn good() -> Vec<u8> {
    let lines = KEY.lines().skip_while(|line| !line.is_empty()).skip(1);
    let body: String = lines.take_while(|line| !line.starts_with(['=', '-'])).collect();
    BASE64_STANDARD.decode(body).expect("the fixture is armor")
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let text = match mode % 4 {
        0 => String::from_utf8_lossy(rest).into_owned(),
        1 => BASE64_STANDARD.encode(rest),
        2 => wrapped("infra-provider:metal-1", rest),
        _ => {
            let mut packets = good();
            for edit in rest.chunks_exact(3) {
                let at = usize::from(u16::from_be_bytes([edit[0], edit[1]])) % packets.len();
                packets[at] = edit[2];
            }
            wrapped("metal-1", &packets)
        }
    };
    let Ok(key) = ServiceAccountKey::parse(&text) else { return };
    let now = UnixTime::from_secs(1_790_000_000);
    assert!(!key.name().is_empty() && key.name().bytes().all(|octet| octet.is_ascii_graphic()));
    assert!(matches!(key.fingerprint().len(), 40 | 64));
    assert!(key.fingerprint().bytes().all(|octet| octet.is_ascii_digit() || (b'a'..=b'f').contains(&octet)));
    if let Some(expires) = key.expires() {
        assert!(expires > key.created() && key.expired(expires) && !key.expired(key.created()));
    }
    let _ = (key.provider_id_hint(), format!("{key:?}"));
    if let Ok(signature) = key.sign(b"payload", now) {
        let packet = DetachedSignature::from_bytes(&signature[..]).expect("what we sign is one packet");
        assert_eq!(packet.signature.typ(), Some(SignatureType::Binary));
    }
});
