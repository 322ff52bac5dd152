//! Tunnel frames of any content and order, to both roles; what waits inside stays bounded.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use pilotlight::proto::tunnel::{ClientToServer, ServerToClient};
use pilotlight::wire::tunnel::{Accepted, Caller, Headers, Limits, Responder};
use prost::Message as _;

const LIMITS: Limits = Limits { window: 64, message_max: 1024, streams_max: 8 };

fn caller(negotiates: bool, mut frames: &[u8]) {
    let mut caller = Caller::new(negotiates, LIMITS);
    while let Ok(frame) = ServerToClient::decode_length_delimited(&mut frames) {
        if caller.live() < LIMITS.streams_max / 2 {
            let _ = caller.call("a.B/C", Headers::default(), Bytes::from_static(&[7; 200]));
        }
        if caller.receive(frame).is_err() {
            return;
        }
        assert!(caller.live() <= LIMITS.streams_max);
        // The window of a peer may be any: what is sent of one call is at most the call.
        for _ in 0..64 {
            if caller.transmit().is_none() {
                break;
            }
        }
        if frames.is_empty() {
            break;
        }
    }
}

fn responder(negotiates: bool, mut frames: &[u8]) {
    let mut responder = Responder::new(negotiates, &["a.B/C"], LIMITS);
    while let Ok(frame) = ClientToServer::decode_length_delimited(&mut frames) {
        match responder.receive(frame) {
            Err(_) => return,
            Ok(Accepted::Start(request)) => {
                responder.respond(request.id, Ok(Bytes::from_static(&[7; 200])));
            }
            Ok(_) => {}
        }
        assert!(responder.live() <= LIMITS.streams_max);
        for _ in 0..64 {
            if responder.transmit().is_none() {
                break;
            }
        }
        if frames.is_empty() {
            break;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, frames)) = data.split_first() else { return };
    match mode % 4 {
        0 => caller(true, frames),
        1 => caller(false, frames),
        2 => responder(true, frames),
        _ => responder(false, frames),
    }
});
