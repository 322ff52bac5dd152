//! The signature check of the Omni double, by headers of any content; nothing unsigned may pass.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::{HeaderMap, HeaderValue};
use libfuzzer_sys::fuzz_target;
use pilotlight::lab::omni::account::ServiceAccount;
use pilotlight::lab::omni::auth::{self, PAYLOAD, Rejected, SIGNATURE, TIMESTAMP};
use pilotlight::lab::omni::role::Identity;
use pilotlight::omni::ServiceAccountKey;
use pilotlight::time::UnixTime;

const NOW: UnixTime = UnixTime::from_secs(1_790_000_000);
const METHOD: &str = "/cosi.resource.State/Get";

struct Known {
    public: auth::Known,
    key: ServiceAccountKey,
}

static KNOWN: LazyLock<Known> = LazyLock::new(|| {
    let made = UnixTime::from_secs(1_789_990_000);
    let account = ServiceAccount::create_at(made, "metal-1", Duration::from_secs(86_400)).expect("a key can be made");
    let public = auth::Known::of(&account);
    Known { public, key: ServiceAccountKey::parse(account.key_string.reveal()).expect("our own key") }
});

fn verify(headers: &HeaderMap) -> Result<Identity, Rejected> {
    auth::verify(NOW, METHOD, headers, |fingerprint| {
        if fingerprint == KNOWN.key.fingerprint() { Ok(KNOWN.public.clone()) } else { Err(Rejected::UnknownKey) }
    })
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, mut rest)) = data.split_first() else { return };
    let mut headers = HeaderMap::new();
    let mut set = |name: &'static str, value: &[u8]| {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(name, value);
        }
    };
    let key = &KNOWN.key;
    let header = |signature: &[u8]| {
        format!("siderov1 {} {} {}", key.name(), key.fingerprint(), BASE64_STANDARD.encode(signature))
    };
    set(TIMESTAMP, b"1790000000");
    match mode % 3 {
        // Any payload, well signed: the content is judged.
        0 => {
            if let Some(cut) = rest.iter().position(|octet| *octet == 0) {
                // A covered header beside it, in turns.
                let name = ["runtime", "nodes", "authorization", "uid"][cut % 4];
                set(name, &rest[cut + 1..]);
                rest = &rest[..cut];
            }
            set(PAYLOAD, rest);
            set(SIGNATURE, header(&key.sign(rest, NOW).expect("the key signs")).as_bytes());
            if verify(&headers).is_ok() {
                let payload: serde_json::Value = serde_json::from_slice(rest).expect("what was let in is JSON");
                assert_eq!(payload["method"], METHOD);
                assert_eq!(payload["headers"][TIMESTAMP], serde_json::json!(["1790000000"]));
            }
        }
        // Any octets for a signature.
        1 => {
            let payload = br#"{"headers":{"x-sidero-timestamp":["1790000000"]},"method":"/cosi.resource.State/Get"}"#;
            set(PAYLOAD, payload);
            set(SIGNATURE, header(rest).as_bytes());
            if let Ok(identity) = verify(&headers) {
                panic!("{identity:?} was let in by a signature that nobody made");
            }
        }
        // Any header at all.
        _ => {
            set(PAYLOAD, rest);
            set(SIGNATURE, rest);
            assert!(verify(&headers).is_err());
        }
    }
});
