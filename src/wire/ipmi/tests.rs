use proptest::prelude::*;

use super::command::*;
use super::message::*;
use super::open_session::*;
use super::packet::*;
use super::rakp::*;
use super::session::*;
use super::suite::CipherSuite;
use super::*;

const SUITES: [CipherSuite; 2] = [CipherSuite::Suite17, CipherSuite::Suite3];

fn exchange(suite: CipherSuite) -> Exchange {
    Exchange {
        suite,
        console_id: 0xa0a1_a2a3,
        bmc_id: 0x0200_3c0b,
        console_random: [7; 16],
        bmc_random: [9; 16],
        guid: *b"0123456789abcdef",
        role: name_only_role(4),
        username: Username::new(b"admin").unwrap(),
    }
}

fn plus(datagram: &[u8]) -> Plus<'_> {
    match Packet::decode(datagram).unwrap() {
        Packet::Plus(plus) => plus,
        Packet::Sessionless(_) => panic!("sessionless"),
    }
}

#[test]
fn the_hash_is_hmac_as_rfc_2202_and_rfc_4231_test_it() {
    let (key, data) = (b"Jefe", b"what do ya want for nothing?");
    let hex = |octets: &[u8]| octets.iter().map(|octet| format!("{octet:02x}")).collect::<String>();
    assert_eq!(hex(&CipherSuite::Suite3.hash(key, &[data])), "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79");
    assert_eq!(
        hex(&CipherSuite::Suite17.hash(key, &[data])),
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    );
}

#[test]
fn a_request_has_the_octets_of_the_specification() {
    let request = Request { netfn: NETFN_CHASSIS, sequence: 1, command: GET_CHASSIS_STATUS, data: &[] };
    assert_eq!(request.encode(), [0x20, 0x00, 0xe0, 0x81, 0x04, 0x01, 0x7a]);
    assert_eq!(Request::decode(&request.encode()), Ok(request));
}

#[test]
fn a_response_matches_its_request_and_is_no_request() {
    let response = Response {
        netfn: NETFN_APP,
        sequence: 63,
        command: SET_SESSION_PRIVILEGE,
        completion: CompletionCode::OK,
        data: &[4],
    };
    let octets = response.encode();
    assert_eq!(Response::decode(&octets), Ok(response));
    assert!(matches!(Request::decode(&octets), Err(Malformed::Field { .. })));
}

#[test]
fn one_wrong_octet_is_a_wrong_checksum() {
    let octets =
        Request { netfn: NETFN_CHASSIS, sequence: 1, command: CHASSIS_CONTROL, data: &[ChassisControl::PowerUp as u8] }
            .encode();
    for at in 0..octets.len() {
        let mut damaged = octets.clone();
        damaged[at] ^= 0x10;
        assert_eq!(Request::decode(&damaged), Err(Malformed::Checksum), "octet {at}");
    }
}

#[test]
fn boot_flags_are_the_contracts() {
    assert_eq!(BootOverride::pxe_once(false).encode(), [0x80, 0x04, 0, 0, 0]);
    assert_eq!(BootOverride::pxe_once(true).encode(), [0xa0, 0x04, 0, 0, 0]);
    for selector in 0..16 {
        let octets = [0x40, selector << 2, 0, 0, 0];
        assert_eq!(BootOverride::decode(&octets).unwrap().encode(), octets);
    }
}

#[test]
fn both_ends_of_an_exchange_agree() {
    for suite in SUITES {
        let exchange = exchange(suite);
        exchange.verify_rakp2(b"secret", &exchange.rakp2_code(b"secret")).unwrap();
        exchange.verify_rakp3(b"secret", &exchange.rakp3_code(b"secret")).unwrap();
        exchange.verify_rakp4(b"secret", &exchange.rakp4_code(b"secret")).unwrap();
        assert_eq!(exchange.verify_rakp2(b"secret", &exchange.rakp2_code(b"wrong")), Err(Malformed::Integrity));
        assert_eq!(exchange.verify_rakp3(b"secret", &[]), Err(Malformed::Integrity), "an empty code proves nothing");
        let short = &exchange.rakp4_code(b"secret")[..4];
        assert_eq!(exchange.verify_rakp4(b"secret", short), Err(Malformed::Integrity));
    }
}

#[test]
fn session_openers_round_trip() {
    let request =
        OpenSessionRequest { tag: 3, privilege: 0, console_id: 17, algorithms: CipherSuite::Suite17.algorithms() };
    assert_eq!(request.encode().len(), 32);
    assert_eq!(OpenSessionRequest::decode(&request.encode()), Ok(request));
    let response = OpenSessionResponse {
        tag: 3,
        status: Status::OK,
        console_id: 17,
        accepted: Some(Accepted { bmc_id: 99, algorithms: CipherSuite::Suite3.algorithms() }),
    };
    assert_eq!(OpenSessionResponse::decode(&response.encode()), Ok(response));
    assert_eq!(response.suite(), Some(CipherSuite::Suite3));
    let refused = OpenSessionResponse { tag: 3, status: Status::NO_SUITE, console_id: 17, accepted: None };
    assert_eq!(OpenSessionResponse::decode(&refused.encode()), Ok(refused));
    let username = Username::new(b"sixteen-octets-!").unwrap();
    let rakp1 = Rakp1 { tag: 1, bmc_id: 9, console_random: [1; 16], role: 0x14, username };
    assert_eq!(Rakp1::decode(&rakp1.encode()), Ok(rakp1));
    assert_eq!(Username::new(b"seventeen-octets!"), None);
    let proof = BmcProof { bmc_random: [2; 16], guid: [3; 16], code: vec![4; 32] };
    for proof in [Ok(proof), Err(Status::UNAUTHORIZED_NAME)] {
        let rakp2 = Rakp2 { tag: 1, console_id: 9, proof };
        assert_eq!(Rakp2::decode(&rakp2.encode()), Ok(rakp2));
    }
    let rakp3 = Rakp3 { tag: 2, status: Status::OK, bmc_id: 9, code: vec![5; 20] };
    assert_eq!(Rakp3::decode(&rakp3.encode()), Ok(rakp3));
    for proof in [Ok(vec![6; 16]), Err(Status::INVALID_INTEGRITY)] {
        let rakp4 = Rakp4 { tag: 2, console_id: 9, proof };
        assert_eq!(Rakp4::decode(&rakp4.encode()), Ok(rakp4));
    }
}

#[test]
fn an_error_that_ends_after_its_status_is_still_an_error() {
    assert_eq!(Rakp2::decode(&[1, 0x0d]).unwrap().proof, Err(Status::UNAUTHORIZED_NAME));
    assert_eq!(Rakp4::decode(&[1, 0x0f]).unwrap().proof, Err(Status::INVALID_INTEGRITY));
    assert_eq!(OpenSessionResponse::decode(&[1, 0x11]).unwrap().status, Status::NO_SUITE);
}

#[test]
fn a_sequence_number_counts_once() {
    let mut window = ReplayWindow::default();
    for (sequence, new) in [
        (0, false),
        (1, true),
        (1, false),
        (3, true),
        (2, true),
        (2, false),
        (40, true),
        (8, false),
        (9, true),
        (40, false),
    ] {
        assert_eq!(window.accept(sequence), new, "{sequence}");
    }
}

#[test]
fn sequence_numbers_wrap_around() {
    let mut window = ReplayWindow::default();
    assert!(window.accept(u32::MAX - 1), "a peer may start anywhere");
    assert!(window.accept(u32::MAX));
    assert!(window.accept(1));
    assert!(!window.accept(u32::MAX));
}

#[test]
fn cipher_suites_are_listed_in_chunks_of_sixteen() {
    let list = encode_cipher_suites(&SUITES, &[0x0e, 0, 0x80]).unwrap();
    assert_eq!(list, [1, 0xc0, 17, 3, 0x44, 0x81, 0xc0, 3, 1, 0x41, 0x81]);
    assert_eq!(encode_cipher_suites(&SUITES, &[0x0e, 0, 0x81]).unwrap(), [1]);
}

/// Runs every decoder over the same octets: none may panic.
fn decode_everything(octets: &[u8]) {
    if let Ok(Packet::Plus(plus)) = Packet::decode(octets) {
        for suite in SUITES {
            let _ = exchange(suite).keys(b"secret").open(&plus);
        }
    }
    let _ = Request::decode(octets);
    let _ = Response::decode(octets);
    let _ = OpenSessionRequest::decode(octets);
    let _ = OpenSessionResponse::decode(octets).map(|response| response.suite());
    let _ = Rakp1::decode(octets);
    let _ = Rakp2::decode(octets);
    let _ = Rakp3::decode(octets);
    let _ = Rakp4::decode(octets);
    let _ = ChassisStatus::decode(octets);
    let _ = ChassisControl::decode(octets);
    let _ = BootOverride::decode(octets);
    let _ = decode_set_boot_option(octets);
    let _ = decode_get_boot_option(octets);
    let _ = decode_boot_option(octets);
    let _ = encode_cipher_suites(&SUITES, octets);
}

proptest! {
    #[test]
    fn random_octets_never_panic(octets in prop::collection::vec(any::<u8>(), 0..200)) {
        decode_everything(&octets);
    }

    #[test]
    fn random_octets_behind_a_right_header_never_panic(
        kind in any::<u8>(),
        len in 0u16..80,
        body in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let mut octets = vec![6, 0, 0xff, 7, 6, kind, 1, 0, 0, 0, 1, 0, 0, 0];
        octets.extend_from_slice(&len.to_le_bytes());
        octets.extend_from_slice(&body);
        decode_everything(&octets);
    }

    #[test]
    fn what_is_sealed_opens_and_what_is_damaged_does_not(
        suite in prop::sample::select(&SUITES[..]),
        message in prop::collection::vec(any::<u8>(), 0..100),
        iv in any::<[u8; 16]>(),
        cut in 1usize..200,
        bit in 0usize..2000,
    ) {
        let keys = exchange(suite).keys(b"secret");
        let datagram = keys.seal(5, 6, &message, iv);
        let frame = plus(&datagram);
        prop_assert_eq!((frame.session_id, frame.sequence), (5, 6));
        prop_assert_eq!(keys.open(&frame), Ok(message));

        let truncated = &datagram[..datagram.len().saturating_sub(cut)];
        decode_everything(truncated);
        if let Ok(Packet::Plus(frame)) = Packet::decode(truncated) {
            prop_assert!(keys.open(&frame).is_err());
        }

        // Everything behind the RMCP header is signed.
        let bit = 32 + bit % ((datagram.len() - 4) * 8);
        let mut flipped = datagram.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        decode_everything(&flipped);
        if let Ok(Packet::Plus(frame)) = Packet::decode(&flipped) {
            prop_assert!(keys.open(&frame).is_err());
        }
    }
}
