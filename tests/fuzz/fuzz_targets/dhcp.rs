//! DHCP datagrams: what is read can be written, and the proxy decides on it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::wire::dhcp::Message;

fuzz_target!(|data: &[u8]| {
    let Ok(message) = Message::decode(data) else { return };
    let _ = (message.message_type(), message.vendor_class(), message.client_archs(), message.user_classes());
    for code in 0..=255 {
        let _ = (message.option(code), message.address(code));
    }
    if let Ok(octets) = message.encode() {
        Message::decode(&octets).expect("what we write, we read");
    }
});
