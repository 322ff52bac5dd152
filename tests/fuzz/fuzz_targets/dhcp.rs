//! DHCP datagrams: what is read can be written and read again the same, and the proxy decides on it.
#![no_main]

use std::net::{Ipv4Addr, SocketAddrV4};

use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use pilotlight::boot::advertise::Advertise;
use pilotlight::boot::files::Binary;
use pilotlight::boot::proxy::{BootView, Decision, Input, Port, decide};
use pilotlight::wire::dhcp::{MAX_OCTETS, MIN_OCTETS, Message};

/// The fixed part with most fields of any content, then options one by one: most codes are those that network boot uses.
fn message(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let mut octets = input.arbitrary::<[u8; 32]>()?.to_vec();
    octets.extend_from_slice(&input.arbitrary::<[u8; 12]>()?);
    octets.resize(236, 0);
    octets[0] = if input.ratio(1, 10)? { input.arbitrary()? } else { 1 };
    octets[2] = input.int_in_range(0..=17)?;
    octets.extend_from_slice(&[99, 130, 83, 99]);
    while !input.is_empty() && octets.len() < MAX_OCTETS {
        let code = match input.ratio(1, 8)? {
            true => input.arbitrary()?,
            false => *input.choose(&[43, 50, 52, 53, 54, 55, 60, 61, 66, 67, 77, 82, 93, 94, 97, 175])?,
        };
        octets.push(code);
        match code {
            0 | 255 => {}
            60 if input.ratio(3, 4)? => {
                let class = *input.choose(&[&b"PXEClient:Arch:00007:UNDI:003016"[..], b"HTTPClient:Arch:00016"])?;
                octets.push(class.len() as u8);
                octets.extend_from_slice(class);
            }
            53 if input.ratio(7, 8)? => octets.extend_from_slice(&[1, input.int_in_range(0..=9)?]),
            93 if input.ratio(7, 8)? => octets.extend_from_slice(&[2, 0, input.int_in_range(0..=41)?]),
            _ => {
                let len: u8 = if input.ratio(1, 6)? { input.arbitrary()? } else { input.int_in_range(0..=9)? };
                octets.push(len);
                octets.extend_from_slice(input.bytes(usize::from(len).min(input.len()))?);
            }
        }
    }
    Ok(octets)
}

fn judge(data: &[u8]) {
    let Ok(message) = Message::decode(data) else { return };
    let _ = (message.message_type(), message.vendor_class(), message.client_archs(), message.user_classes());
    for code in 0..=255 {
        let _ = (message.option(code), message.address(code));
    }
    assert!(message.options.values().map(Vec::len).sum::<usize>() <= data.len());
    if let Ok(octets) = message.encode() {
        assert!((MIN_OCTETS..=MAX_OCTETS).contains(&octets.len()));
        assert_eq!(Message::decode(&octets).as_ref(), Ok(&message));
    }
    let server = Ipv4Addr::new(172, 16, 0, 42);
    let advertise = Advertise { host: "172.16.0.42".parse().expect("an address"), port: 50042 };
    let view = BootView { server, advertise, discovery_control: true, served: Binary::ALL.into() };
    for port in [Port::Dhcp, Port::Binl] {
        let input = Input { port, message: &message, from: SocketAddrV4::new(message.ciaddr, 68) };
        assert!(input.machine().len() <= 2);
        if let Decision::Reply(reply) = decide(&view, input) {
            assert_eq!((reply.message.xid, reply.message.chaddr), (message.xid, message.chaddr));
            if let Ok(octets) = reply.message.encode() {
                assert_eq!(Message::decode(&octets).as_ref(), Ok(&reply.message));
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode % 2 {
        0 => judge(rest),
        _ => {
            if let Ok(octets) = message(&mut Unstructured::new(rest)) {
                judge(&octets);
            }
        }
    }
});
