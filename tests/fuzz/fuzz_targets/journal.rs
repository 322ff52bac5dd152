//! What is logged to the box: native messages, streams, syslog datagrams, kernel records; chunks and queries.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::journal::{chunk, query};
use pilotlight::wire::journal::{kmsg, native, stream, syslog};

fuzz_target!(|data: &[u8]| {
    let message = native::decode(data);
    assert_eq!(native::decode(&native::encode(&message.entries)).entries, message.entries);
    let _ = (syslog::decode(data), kmsg::decode(data));
    let mut splitter = stream::Splitter::new();
    if splitter.push(data).is_ok() {
        let _ = splitter.finish();
    }
    let _ = (chunk::decode(data), query::Query::decode(data), query::Answer::decode(data));
});
