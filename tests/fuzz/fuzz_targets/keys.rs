//! Service account keys: any text, any OpenPGP packets, and a good key with octets changed. What parses must sign.
#![no_main]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use libfuzzer_sys::fuzz_target;
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
    if let Ok(key) = ServiceAccountKey::parse(&text) {
        let now = UnixTime::from_secs(1_790_000_000);
        let _ = (key.expires(), key.expired(now), key.provider_id_hint(), format!("{key:?}"));
        let _ = key.sign(b"payload", now);
    }
});
