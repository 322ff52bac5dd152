//! IPMI datagrams and payloads: what is read can be written and read again the same; what nobody sealed does not open.
#![no_main]

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use pilotlight::wire::ipmi::rakp::{Exchange, Username};
use pilotlight::wire::ipmi::session::{ReplayWindow, SessionKeys};
use pilotlight::wire::ipmi::suite::CipherSuite;
use pilotlight::wire::ipmi::{command, message, open_session, packet, rakp};

fn exchange(suite: CipherSuite) -> Exchange {
    Exchange {
        suite,
        console_id: 1,
        bmc_id: 2,
        console_random: [3; 16],
        bmc_random: [4; 16],
        guid: [5; 16],
        role: rakp::name_only_role(3),
        username: Username::new(b"operator").expect("a short name"),
    }
}

/// Keys that change with each octet of the input: of keys that stay, the fuzzer learns the code by its comparisons.
fn keys(data: &[u8]) -> [SessionKeys; 2] {
    let mut hasher = DefaultHasher::new();
    data.hash(&mut hasher);
    let password = hasher.finish().to_le_bytes();
    [CipherSuite::Suite3, CipherSuite::Suite17].map(|suite| exchange(suite).keys(&password))
}

/// A decoder and its encoder: reading what was written gives the same value.
macro_rules! returns {
    ($type:ty, $data:expr) => {
        if let Ok(value) = <$type>::decode($data) {
            let again = value.encode();
            assert_eq!(<$type>::decode(again.as_ref()).as_ref(), Ok(&value), "{value:?}");
        }
    };
}

fn payloads(data: &[u8]) {
    returns!(open_session::OpenSessionRequest, data);
    returns!(open_session::OpenSessionResponse, data);
    returns!(rakp::Rakp1, data);
    returns!(rakp::Rakp2, data);
    returns!(rakp::Rakp3, data);
    returns!(rakp::Rakp4, data);
    returns!(command::ChassisStatus, data);
    returns!(command::ChassisControl, data);
    returns!(command::BootOverride, data);
    let _ = (command::decode_set_boot_option(data), command::decode_get_boot_option(data));
    let _ = (command::decode_boot_option(data), command::encode_cipher_suites(&[CipherSuite::Suite3], data));
    for suite in [CipherSuite::Suite3, CipherSuite::Suite17] {
        let exchange = exchange(suite);
        assert!(exchange.verify_rakp2(data, &exchange.rakp2_code(data)).is_ok());
        assert!(exchange.verify_rakp4(data, &exchange.rakp4_code(data)).is_ok());
    }
}

fn messages(data: &[u8]) {
    if let Ok(request) = message::Request::decode(data) {
        let octets = request.encode();
        assert_eq!(message::Request::decode(&octets).as_ref(), Ok(&request));
    }
    if let Ok(response) = message::Response::decode(data) {
        let octets = response.encode();
        assert_eq!(message::Response::decode(&octets).as_ref(), Ok(&response));
    }
}

/// A sealed message is opened again; with octets changed it is not, unless the change is one that nothing covers.
fn sealed(input: &mut Unstructured<'_>) -> Result<()> {
    let [suite3, suite17] = keys(b"a session");
    let keys = if input.arbitrary()? { suite3 } else { suite17 };
    let edits: Vec<(u16, u8)> = (0..input.int_in_range(0..=3)?).map(|_| input.arbitrary()).collect::<Result<_>>()?;
    let iv = input.arbitrary()?;
    let (session_id, sequence) = (input.arbitrary()?, input.arbitrary()?);
    let len = input.len().min(1200);
    let text = input.bytes(len)?;
    let datagram = keys.seal(session_id, sequence, text, iv);
    let mut edited = datagram.clone();
    for (at, octet) in edits {
        let at = usize::from(at) % edited.len();
        edited[at] = octet;
    }
    let Ok(packet::Packet::Plus(plus)) = packet::Packet::decode(&edited) else {
        assert_ne!(edited, datagram, "what we seal is a packet");
        return Ok(());
    };
    match keys.open(&plus) {
        // The first four octets, the RMCP header, are not covered.
        Ok(opened) => {
            assert_eq!(edited[4..], datagram[4..], "a changed datagram was opened");
            assert_eq!(opened, text);
        }
        Err(error) => assert_ne!(edited, datagram, "{error}"),
    }
    messages(text);
    Ok(())
}

/// No sequence number is taken twice.
fn replays(input: &mut Unstructured<'_>) -> Result<()> {
    let mut window = ReplayWindow::default();
    let mut sequence: u32 = input.arbitrary()?;
    let mut taken = std::collections::BTreeSet::new();
    for _ in 0..64 {
        // Within half of the number space, so that no number comes around again.
        sequence = sequence.wrapping_add_signed(i32::from(input.arbitrary::<i8>()?));
        if window.accept(sequence) {
            assert!(sequence != 0 && taken.insert(sequence), "{sequence} was taken twice");
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode % 5 {
        0 => {
            if let Ok(packet::Packet::Plus(plus)) = packet::Packet::decode(rest) {
                assert!(keys(rest).iter().all(|keys| keys.open(&plus).is_err()), "opened what nobody sealed");
                payloads(plus.payload);
            }
        }
        1 => payloads(rest),
        2 => {
            messages(rest);
            // With its sums made right, so that what they guard is reached.
            let mut right = rest.to_vec();
            if let [first, second, sum, body @ .., last] = right.as_mut_slice() {
                *sum = first.wrapping_add(*second).wrapping_neg();
                *last = body.iter().fold(0, |sum: u8, octet| sum.wrapping_add(*octet)).wrapping_neg();
            }
            messages(&right);
        }
        3 => drop(sealed(&mut Unstructured::new(rest))),
        _ => drop(replays(&mut Unstructured::new(rest))),
    }
});
