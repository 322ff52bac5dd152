//! IPMI datagrams and payloads.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::wire::ipmi::{command, message, open_session, packet, rakp};

fuzz_target!(|data: &[u8]| {
    let _ = packet::Packet::decode(data).map(|packet| format!("{packet:?}"));
    let _ = (message::Request::decode(data).is_ok(), message::Response::decode(data).is_ok());
    let _ = (open_session::OpenSessionRequest::decode(data), open_session::OpenSessionResponse::decode(data));
    let _ = (rakp::Rakp1::decode(data).is_ok(), rakp::Rakp2::decode(data).is_ok());
    let _ = (rakp::Rakp3::decode(data).is_ok(), rakp::Rakp4::decode(data).is_ok());
    let _ = (command::decode_set_boot_option(data), command::decode_boot_option(data));
    let _ = (command::ChassisStatus::decode(data), command::BootOverride::decode(data));
});
