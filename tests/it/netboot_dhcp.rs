//! The DHCP service on loopback sockets.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use pilotlight::boot::proxy::{BootView, Port, Reason};
use pilotlight::boot::{Advertise, Binary};
use pilotlight::netboot::Counters;
use pilotlight::netboot::dhcp::{self, Config, Event, Listen, Outcome, Sockets};
use pilotlight::wire::dhcp::{HardwareAddress, Message, MessageType, Op};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

fn request(message_type: u8) -> Message {
    let options: [(u8, &[u8]); 3] = [(53, &[message_type]), (60, b"PXEClient:Arch:00007:UNDI:003016"), (93, &[0, 7])];
    Message {
        op: Op::Request,
        htype: 1,
        chaddr: HardwareAddress::new(&[0x52, 0x54, 0, 0, 0, 1]).unwrap(),
        xid: 0x1234_5678,
        flags: 0,
        ciaddr: Ipv4Addr::LOCALHOST,
        yiaddr: Ipv4Addr::UNSPECIFIED,
        siaddr: Ipv4Addr::UNSPECIFIED,
        giaddr: Ipv4Addr::UNSPECIFIED,
        file: Vec::new(),
        options: options.iter().map(|(code, data)| (*code, data.to_vec())).collect::<BTreeMap<_, _>>(),
    }
}

struct Service {
    dhcp: SocketAddr,
    binl: SocketAddr,
    view: watch::Sender<BootView>,
    events: mpsc::Receiver<Event>,
    counters: Counters,
    cancel: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), dhcp::Error>>,
}

fn start() -> Service {
    let listen = Listen { interface: None, address: Ipv4Addr::LOCALHOST };
    let sockets = Sockets::bind(&Config { listen: vec![listen], dhcp_port: Some(0), binl_port: 0 }).unwrap();
    let addresses = sockets.addresses();
    let (view, seen) = watch::channel(BootView {
        server: Ipv4Addr::new(127, 0, 0, 1),
        advertise: Advertise { host: "127.0.0.1".parse().unwrap(), port: 50042 },
        discovery_control: true,
        served: Binary::ALL.into(),
    });
    let (sender, events) = mpsc::channel(1);
    let (counters, cancel) = (Counters::default(), CancellationToken::new());
    let task = tokio::spawn(dhcp::run(sockets, seen, sender, counters.clone(), cancel.clone()));
    Service { dhcp: addresses[0].1, binl: addresses[1].1, view, events, counters, cancel, task }
}

async fn exchange(client: &UdpSocket, server: SocketAddr, message: &Message) -> (Message, SocketAddr) {
    client.send_to(&message.encode().unwrap(), server).await.unwrap();
    let mut buffer = [0; 1500];
    let (len, from) = timeout(PATIENCE, client.recv_from(&mut buffer)).await.unwrap().unwrap();
    (Message::decode(&buffer[..len]).unwrap(), from)
}

#[tokio::test]
async fn both_ports_answer_from_the_port_that_was_asked() {
    let mut service = start();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (offer, from) = exchange(&client, service.dhcp, &request(1)).await;
    assert_eq!((offer.message_type(), from), (Some(MessageType::Offer), service.dhcp));
    assert_eq!(offer.option(67), Some(b"snp.efi".as_slice()));
    let event = timeout(PATIENCE, service.events.recv()).await.unwrap().unwrap();
    assert!(matches!((event.port, event.outcome), (Port::Dhcp, Outcome::Answered { .. })));
    let (ack, from) = exchange(&client, service.binl, &request(3)).await;
    assert_eq!((ack.message_type(), from, ack.ciaddr), (Some(MessageType::Ack), service.binl, Ipv4Addr::LOCALHOST));
    assert_eq!((service.counters.value("dhcp_offers"), service.counters.value("dhcp_acks")), (1, 1));
    service.cancel.cancel();
    timeout(PATIENCE, service.task).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn what_cannot_be_answered_is_counted_and_the_next_message_is() {
    let service = start();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let mut long = request(1).encode().unwrap();
    long.resize(1501, 0);
    let mut bad_hlen = request(1).encode().unwrap();
    bad_hlen[2] = 200;
    for octets in [&long[..], &bad_hlen, b"", b"x", &request(3).encode().unwrap()] {
        client.send_to(octets, service.dhcp).await.unwrap();
    }
    exchange(&client, service.dhcp, &request(1)).await;
    assert_eq!(service.counters.value("dhcp_malformed"), 4);
    assert_eq!(service.counters.value(Reason::NotADiscover.counter()), 1);
    // Nobody takes events and the channel holds one: answering goes on.
    exchange(&client, service.dhcp, &request(1)).await;
}

#[tokio::test]
async fn a_new_view_counts_from_the_next_message() {
    let service = start();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    service.view.send_modify(|view| view.server = Ipv4Addr::new(127, 9, 9, 9));
    let (offer, _) = exchange(&client, service.dhcp, &request(1)).await;
    assert_eq!(offer.address(54), Some(Ipv4Addr::new(127, 9, 9, 9)));
}
