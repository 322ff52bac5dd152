use super::*;
use crate::wire::dhcp::HardwareAddress;

const SERVER: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 42);
const NOBODY: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);

fn view() -> BootView {
    BootView {
        server: SERVER,
        advertise: Advertise { host: "172.16.0.42".parse().unwrap(), port: 50042 },
        discovery_control: true,
        served: Binary::ALL.into(),
    }
}

fn request(message_type: u8, options: &[(u8, &[u8])]) -> Message {
    let mut all: BTreeMap<u8, Vec<u8>> = options.iter().map(|(code, data)| (*code, data.to_vec())).collect();
    all.insert(53, vec![message_type]);
    Message {
        op: Op::Request,
        htype: 1,
        chaddr: HardwareAddress::new(&[0x52, 0x54, 0, 1, 2, 3]).unwrap(),
        xid: 7,
        flags: 0x8000,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        giaddr: Ipv4Addr::UNSPECIFIED,
        file: Vec::new(),
        options: all,
    }
}

fn decide_on(port: Port, message: &Message, from: SocketAddrV4) -> Decision {
    decide(&view(), Input { port, message, from })
}

fn offered(port: Port, message: &Message) -> Reply {
    match decide_on(port, message, NOBODY) {
        Decision::Reply(reply) => *reply,
        Decision::Ignore(reason) => panic!("ignored: {reason}"),
    }
}

fn ignored(port: Port, message: &Message) -> Reason {
    match decide_on(port, message, NOBODY) {
        Decision::Reply(reply) => panic!("answered: {reply:?}"),
        Decision::Ignore(reason) => reason,
    }
}

#[test]
fn the_acceptance_rules_hold_row_for_row() {
    let bios: (u8, &[u8]) = (93, &[0, 0]);
    // Only DISCOVER on 67; a renewing client's REQUEST, an INFORM and a RELEASE are the lease server's.
    for (kind, dhcp, binl) in [
        (1, None, Some(Reason::NotABootRequest)),
        (3, Some(Reason::NotADiscover), None),
        (7, Some(Reason::NotADiscover), Some(Reason::NotABootRequest)),
        (8, Some(Reason::NotADiscover), Some(Reason::NotABootRequest)),
    ] {
        for (port, expected) in [(Port::Dhcp, dhcp), (Port::Binl, binl)] {
            let decision = decide_on(port, &request(kind, &[bios]), NOBODY);
            match expected {
                Some(reason) => assert_eq!(decision, Decision::Ignore(reason), "{kind} {port:?}"),
                None => assert!(matches!(decision, Decision::Reply(_)), "{kind} {port:?}"),
            }
        }
    }
    let mut bootp = request(1, &[bios]);
    bootp.options.remove(&53);
    assert_eq!(ignored(Port::Dhcp, &bootp), Reason::NoMessageType);
    let reply = Message { op: Op::Reply, ..request(1, &[bios]) };
    assert_eq!(ignored(Port::Dhcp, &reply), Reason::NotARequest);
    assert_eq!(ignored(Port::Dhcp, &request(1, &[])), Reason::NoArchitecture);
    assert_eq!(ignored(Port::Dhcp, &request(1, &[(60, b"udhcp 1.36")])), Reason::NoArchitecture);
    assert_eq!(ignored(Port::Dhcp, &request(1, &[(93, &[0, 27])])), Reason::UnsupportedArchitecture(27));
    // Option 97: absent, or a zero and 16 octets.
    for (data, fine) in [(vec![0; 17], true), (vec![1; 17], false), (vec![0; 16], false), (Vec::new(), false)] {
        let decision = decide_on(Port::Dhcp, &request(1, &[bios, (97, &data)]), NOBODY);
        assert_eq!(matches!(decision, Decision::Reply(_)), fine, "{data:?}");
    }
    // Option 60 is not checked.
    offered(Port::Dhcp, &request(1, &[bios]));
}

#[test]
fn the_boot_file_table_holds_row_for_row() {
    let init = "http://172.16.0.42:50042/ipxe/init.ipxe";
    let (x86_http, arm_http) =
        ("http://172.16.0.42:50042/tftp/amd64/snp.efi", "http://172.16.0.42:50042/tftp/arm64/snp.efi");
    for (arch, ipxe, file, header) in [
        (0u8, false, "undionly.kpxe", true),
        (6, false, "snp.efi", true),
        (7, false, "snp.efi", true),
        (9, false, "snp.efi", true),
        (11, false, "snp-arm64.efi", true),
        (22, false, "snp-arm64.efi", true),
        (15, false, x86_http, false),
        (16, false, x86_http, false),
        (17, false, x86_http, false),
        (19, false, arm_http, false),
        (24, false, arm_http, false),
        (0, true, init, false),
        (7, true, init, false),
        (11, true, init, false),
    ] {
        let arch_option = [0, arch];
        let mut message = request(1, &[(93, &arch_option)]);
        if ipxe {
            message.options.insert(77, b"iPXE".to_vec());
        }
        let reply = offered(Port::Dhcp, &message);
        assert_eq!(reply.boot_file, file, "{arch}");
        assert_eq!(reply.message.option(67), Some(file.as_bytes()), "{arch}");
        assert_eq!(reply.message.file, if header { file.as_bytes() } else { b"" }, "{arch}");
        assert_eq!(reply.message.option(66), header.then_some(b"172.16.0.42".as_slice()), "{arch}");
        assert_eq!(reply.message.siaddr, SERVER);
        assert_eq!(reply.message.option(54), Some(SERVER.octets().as_slice()));
    }
}

#[test]
fn the_reply_copies_what_belongs_to_the_client() {
    let uuid = [vec![0], vec![9; 16]].concat();
    let options: [(u8, &[u8]); 5] = [
        (93, &[0, 7]),
        (60, b"PXEClient:Arch:00007:UNDI:003016"),
        (61, b"\x01abcdef"),
        (82, b"\x01\x04eth0"),
        (97, &uuid),
    ];
    let message = Message { ciaddr: Ipv4Addr::new(172, 16, 0, 9), ..request(1, &options) };
    let offer = offered(Port::Dhcp, &message).message;
    assert_eq!((offer.op, offer.htype, offer.chaddr, offer.xid), (Op::Reply, 1, message.chaddr, 7));
    assert_eq!((offer.flags, offer.ciaddr, offer.yiaddr), (0x8000, Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED));
    assert_eq!(offer.message_type(), Some(MessageType::Offer));
    for code in [60, 61, 82, 97] {
        assert_eq!(offer.option(code), message.option(code), "{code}");
    }
    assert!(offer.encode().unwrap().len() >= dhcp::MIN_OCTETS);
    let ack = offered(Port::Binl, &Message { options: request(3, &options).options, ..message.clone() }).message;
    assert_eq!(ack.message_type(), Some(MessageType::Ack));
    assert_eq!(ack.ciaddr, message.ciaddr);
    assert_eq!(offered(Port::Dhcp, &request(1, &[(93, &[0, 7])])).message.option(60), Some(b"PXEClient".as_slice()));
}

#[test]
fn discovery_control_goes_to_pxe_clients_in_offers_unless_switched_off() {
    let pxe = request(1, &[(93, &[0, 7]), (60, b"PXEClient:Arch:00007")]);
    assert_eq!(offered(Port::Dhcp, &pxe).message.option(43), Some([6, 1, 8, 255].as_slice()));
    let http = request(1, &[(93, &[0, 16]), (60, b"HTTPClient:Arch:00016")]);
    assert_eq!(offered(Port::Dhcp, &http).message.option(43), None);
    let ack = request(3, &[(93, &[0, 7]), (60, b"PXEClient:Arch:00007")]);
    assert_eq!(offered(Port::Binl, &ack).message.option(43), None);
    let old = BootView { discovery_control: false, ..view() };
    let Decision::Reply(reply) = decide(&old, Input { port: Port::Dhcp, message: &pxe, from: NOBODY }) else {
        panic!("ignored")
    };
    assert_eq!(reply.message.option(43), None);
}

#[test]
fn the_last_recognised_architecture_wins_and_the_class_text_is_the_fallback() {
    for (options, firmware) in [
        (vec![(93, vec![0, 0, 0, 7])], Firmware::X86Efi),
        (vec![(93, vec![0, 7, 0, 0])], Firmware::X86Pc),
        (vec![(93, vec![0, 11, 0, 99])], Firmware::ArmEfi),
        (vec![(60, b"PXEClient:Arch:00011:UNDI:003000".to_vec())], Firmware::ArmEfi),
        (vec![(93, vec![0, 41]), (60, b"PXEClient:Arch:00011".to_vec())], Firmware::ArmEfi),
        (vec![(93, vec![0, 7]), (60, b"PXEClient:Arch:00000".to_vec())], Firmware::X86Efi),
    ] {
        let options: Vec<(u8, &[u8])> = options.iter().map(|(code, data)| (*code, data.as_slice())).collect();
        assert_eq!(offered(Port::Dhcp, &request(1, &options)).client.firmware, firmware);
    }
}

#[test]
fn the_reply_goes_to_the_relay_else_the_sender_else_everybody() {
    let message = request(1, &[(93, &[0, 7])]);
    let to = |message: &Message, from| match decide_on(Port::Dhcp, message, from) {
        Decision::Reply(reply) => reply.to.to_string(),
        Decision::Ignore(reason) => reason.to_string(),
    };
    assert_eq!(to(&message, NOBODY), "255.255.255.255:68");
    assert_eq!(to(&message, "172.16.0.9:4011".parse().unwrap()), "172.16.0.9:4011");
    let relayed = Message { giaddr: Ipv4Addr::new(10, 1, 0, 1), ..message };
    assert_eq!(to(&relayed, "10.9.9.9:1067".parse().unwrap()), "10.1.0.1:67");
    assert_eq!(offered(Port::Dhcp, &relayed).message.giaddr, relayed.giaddr);
}

#[test]
fn a_machine_whose_binary_is_missing_is_told_nothing_but_ipxe_still_gets_its_script() {
    let view = BootView { served: [Binary::Bios].into(), ..view() };
    let efi = request(1, &[(93, &[0, 7])]);
    let decision = decide(&view, Input { port: Port::Dhcp, message: &efi, from: NOBODY });
    assert_eq!(decision, Decision::Ignore(Reason::BinaryMissing(Binary::X64Snp)));
    let ipxe = request(1, &[(93, &[0, 7]), (77, b"iPXE")]);
    let decision = decide(&view, Input { port: Port::Dhcp, message: &ipxe, from: NOBODY });
    assert!(matches!(decision, Decision::Reply(_)));
}

#[test]
fn an_ipv6_or_named_advertise_address_never_enters_the_address_fields() {
    for (host, url) in
        [("fd00::1", "http://[fd00::1]:50042/ipxe/init.ipxe"), ("boot.lan", "http://boot.lan:50042/ipxe/init.ipxe")]
    {
        let view = BootView { advertise: Advertise { host: host.parse().unwrap(), port: 50042 }, ..view() };
        let message = request(1, &[(93, &[0, 0]), (77, b"iPXE")]);
        let Decision::Reply(reply) = decide(&view, Input { port: Port::Dhcp, message: &message, from: NOBODY }) else {
            panic!("ignored")
        };
        assert_eq!((reply.boot_file.as_str(), reply.message.siaddr), (url, SERVER));
    }
}

#[test]
fn a_uuid_is_read_in_smbios_order_first_and_as_printed_second() {
    let wire: Vec<u8> = [0, 0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 1, 2, 3, 4, 5, 6].into();
    let (swapped, printed) = ("00112233-4455-6677-8899-010203040506", "33221100-5544-7766-8899-010203040506");
    let candidates = |message: &Message| {
        let input = Input { port: Port::Dhcp, message, from: NOBODY };
        input.machine().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(candidates(&request(1, &[(97, &wire)])), [swapped, printed]);
    assert_eq!(candidates(&request(1, &[(97, &wire), (77, b"iPXE")])), [swapped, printed]);
    assert!(candidates(&request(1, &[(97, &[0; 17])])).is_empty());
    assert!(candidates(&request(1, &[])).is_empty());
}
