//! The client against a server of a few lines.

use proptest::prelude::*;

use super::*;
use crate::wire::dhcp::HardwareAddress;

const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
const SERVER: Mac = Mac([2, 0, 0, 0, 0, 9]);
const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
const HOST: u8 = 10;

fn t(secs: u64) -> Uptime {
    Uptime::from_secs(secs)
}

/// What server `.server` of 192.0.2.0/24 answers, with a lease of 100 s on `.host`.
fn answer(to: &Message, message_type: u8, server: u8, host: u8) -> Message {
    let options: [(u8, Vec<u8>); 4] = [
        (53, vec![message_type]),
        (54, vec![192, 0, 2, server]),
        (1, vec![255, 255, 255, 0]),
        (51, vec![0, 0, 0, 100]),
    ];
    Message {
        op: Op::Reply,
        htype: 1,
        chaddr: HardwareAddress::new(&OWN.0).unwrap(),
        xid: to.xid,
        flags: 0,
        ciaddr: Ipv4Addr::UNSPECIFIED,
        yiaddr: Ipv4Addr::new(192, 0, 2, host),
        siaddr: Ipv4Addr::UNSPECIFIED,
        giaddr: Ipv4Addr::UNSPECIFIED,
        file: Vec::new(),
        options: options.into(),
    }
}

struct Play {
    client: Client,
    jitter: Jitter,
    now: Uptime,
}

impl Play {
    fn new(former: Option<Ipv4Addr>) -> Self {
        Self { client: Client::new(OWN, "pilotlight-000001", former), jitter: Jitter::new(5), now: t(1) }
    }

    fn carrier(&mut self, up: bool) -> Vec<Action> {
        self.client.on_carrier(self.now, up, &mut self.jitter)
    }

    fn hear(&mut self, message: &Message) -> Vec<Action> {
        self.client.on_message(self.now, SERVER, message, &mut self.jitter).unwrap()
    }

    /// Goes on to the next deadline.
    fn wait(&mut self) -> Vec<Action> {
        self.now = self.client.deadline().expect("something is due");
        self.client.on_deadline(self.now, &mut self.jitter)
    }

    /// Goes on until the lease changes.
    fn until_changed(&mut self) -> Change {
        for _ in 0..50 {
            if let Some(change) = self.wait().into_iter().find_map(|action| match action {
                Action::Changed(change) => Some(change),
                _ => None,
            }) {
                return change;
            }
        }
        panic!("nothing changes: {:?}", self.client);
    }

    /// A client with a lease on `.10`, a moment after it was given.
    fn bound() -> Self {
        let mut play = Self::new(None);
        let discover = sent(&play.carrier(true));
        let request = sent(&play.hear(&answer(&discover, 2, 1, HOST)));
        assert_eq!(play.hear(&answer(&request, 5, 1, HOST)), []);
        assert_eq!(play.until_changed(), Change::Bound);
        play
    }
}

/// The one message that is sent.
fn sent(actions: &[Action]) -> Message {
    let messages: Vec<_> = actions
        .iter()
        .filter_map(|action| if let Action::Send(message, _) = action { Some(message.clone()) } else { None })
        .collect();
    assert_eq!(messages.len(), 1, "{actions:?}");
    messages[0].clone()
}

fn to(actions: &[Action]) -> Destination {
    actions.iter().find_map(|action| if let Action::Send(_, to) = action { Some(*to) } else { None }).unwrap()
}

#[test]
fn discover_offer_request_ack_probe_bound() {
    let mut play = Play::new(None);
    let discover = sent(&play.carrier(true));
    assert_eq!(
        (discover.message_type(), discover.option(61)),
        (Some(MessageType::Discover), Some(&[1, 2, 0, 0, 0, 0, 1][..]))
    );
    let request = sent(&play.hear(&answer(&discover, 2, 1, HOST)));
    assert_eq!(request.address(50), Some(Ipv4Addr::new(192, 0, 2, HOST)));
    assert_eq!((request.address(54), request.ciaddr), (Some(Ipv4Addr::new(192, 0, 2, 1)), Ipv4Addr::UNSPECIFIED));
    play.hear(&answer(&request, 5, 1, HOST));
    assert_eq!(play.client.lease(), None, "not before it is probed");
    assert_eq!(play.until_changed(), Change::Bound);
    assert_eq!(play.client.lease().unwrap().address.to_string(), "192.0.2.10/24");
    assert_eq!(play.client.expires(), Some(t(101)), "it counts from the request");
}

#[test]
fn what_was_not_asked_changes_nothing() {
    let mut play = Play::new(None);
    let discover = sent(&play.carrier(true));
    let before = format!("{:?}", play.client);
    let offer = answer(&discover, 2, 1, HOST);
    let strange = [
        Message { xid: discover.xid ^ 1, ..offer.clone() },
        Message { chaddr: HardwareAddress::new(&OTHER.0).unwrap(), ..offer.clone() },
        Message { op: Op::Request, ..offer.clone() },
        answer(&discover, 5, 1, HOST),
        answer(&discover, 6, 1, HOST),
    ];
    for message in strange {
        assert_eq!(play.hear(&message), []);
    }
    assert!(
        play.client
            .on_message(play.now, SERVER, &Message { yiaddr: Ipv4Addr::BROADCAST, ..offer.clone() }, &mut play.jitter)
            .is_err()
    );
    assert_eq!(format!("{:?}", play.client), before);
    // Chosen is chosen.
    let request = sent(&play.hear(&offer));
    assert_eq!(play.hear(&answer(&request, 5, 2, 77)), []);
    assert_eq!(play.hear(&answer(&request, 6, 2, 77)), []);
    assert_eq!(play.client.doing(), "asking for the offered address");
}

#[test]
fn a_server_that_does_not_answer_is_asked_less_and_less_often() {
    let mut play = Play::new(None);
    play.carrier(true);
    let mut last = play.now;
    for expected in [4, 8, 16, 32, 64, 64, 64] {
        assert_eq!(sent(&play.wait()).message_type(), Some(MessageType::Discover));
        let pause = play.now.since(last).as_secs_f64();
        assert!((pause - f64::from(expected)).abs() <= 1.0, "{pause} is not {expected}");
        last = play.now;
    }
}

#[test]
fn an_offer_that_is_not_acknowledged_is_given_up() {
    let mut play = Play::new(None);
    let discover = sent(&play.carrier(true));
    play.hear(&answer(&discover, 2, 1, HOST));
    let types: Vec<_> = (0..4).map(|_| sent(&play.wait()).message_type().unwrap()).collect();
    assert_eq!(types, [MessageType::Request, MessageType::Request, MessageType::Request, MessageType::Discover]);
}

#[test]
fn a_former_address_is_asked_for_and_given_up_when_nobody_knows_it() {
    let mut play = Play::new(Some(Ipv4Addr::new(192, 0, 2, HOST)));
    let request = sent(&play.carrier(true));
    assert_eq!(
        (request.message_type(), request.address(50)),
        (Some(MessageType::Request), Some(Ipv4Addr::new(192, 0, 2, HOST)))
    );
    assert_eq!((request.address(54), request.ciaddr), (None, Ipv4Addr::UNSPECIFIED));
    assert_eq!(sent(&play.wait()).message_type(), Some(MessageType::Request));
    let discover = sent(&play.wait());
    assert_eq!((discover.message_type(), discover.address(50)), (Some(MessageType::Discover), None));
    assert_ne!(discover.xid, request.xid);
}

#[test]
fn a_lease_is_renewed_at_its_server_then_at_any_and_then_it_is_over() {
    let mut play = Play::bound();
    let mut steps = Vec::new();
    let change = loop {
        let actions = play.wait();
        if let Some(Action::Changed(change)) = actions.first() {
            break *change;
        }
        if actions.iter().any(|action| matches!(action, Action::Send(..))) {
            let request = sent(&actions);
            assert_eq!(
                (request.ciaddr, request.address(50), request.address(54)),
                (Ipv4Addr::new(192, 0, 2, HOST), None, None)
            );
            steps.push((play.now.since(t(1)), to(&actions)));
        }
    };
    let own = Ipv4Addr::new(192, 0, 2, HOST);
    let server = Destination::Server { from: own, server: Ipv4Addr::new(192, 0, 2, 1), station: SERVER };
    let anyone = Destination::Broadcast { from: own };
    assert_eq!(steps, [(Duration::from_secs(50), server), (Duration::from_millis(87_500), anyone)]);
    assert_eq!((change, play.now, play.client.lease()), (Change::Expired, t(101), None));
}

#[test]
fn a_renewed_lease_lasts_longer_without_a_probe() {
    let mut play = Play::bound();
    let request = loop {
        let actions = play.wait();
        if actions.iter().any(|action| matches!(action, Action::Send(..))) {
            break sent(&actions);
        }
    };
    assert_eq!(play.hear(&answer(&request, 5, 1, HOST)), [Action::Changed(Change::Renewed)]);
    assert_eq!(play.client.expires(), Some(t(151)));
}

#[test]
fn a_refusal_ends_the_lease_at_once_and_again_and_again_less_often() {
    let mut play = Play::bound();
    play.carrier(false);
    let request = sent(&play.carrier(true));
    let actions = play.hear(&answer(&request, 6, 1, HOST));
    assert_eq!(actions[0], Action::Changed(Change::Refused));
    let discover = sent(&actions);
    assert_eq!((discover.message_type(), play.client.lease()), (Some(MessageType::Discover), None));
    let request = sent(&play.hear(&answer(&discover, 2, 1, HOST)));
    play.hear(&answer(&request, 6, 1, HOST));
    assert_eq!(play.client.deadline(), Some(play.now + Duration::from_secs(4)));
}

#[test]
fn an_address_in_use_is_declined() {
    let mut play = Play::new(None);
    let discover = sent(&play.carrier(true));
    let request = sent(&play.hear(&answer(&discover, 2, 1, HOST)));
    play.hear(&answer(&request, 5, 1, HOST));
    let theirs = Arp::announcement(OTHER, Ipv4Addr::new(192, 0, 2, HOST));
    let actions = play.client.on_arp(play.now, &theirs);
    let decline = sent(&actions);
    assert_eq!(
        (decline.message_type(), decline.address(54)),
        (Some(MessageType::Decline), Some(Ipv4Addr::new(192, 0, 2, 1)))
    );
    assert_eq!(actions[1], Action::Changed(Change::Declined(OTHER)));
    let again = play.now + DECLINE_PAUSE;
    assert_eq!(sent(&play.wait()).message_type(), Some(MessageType::Discover));
    assert_eq!(play.now, again);
}

#[test]
fn a_lease_outlives_the_carrier_but_not_its_time() {
    let mut play = Play::bound();
    play.carrier(false);
    assert!(play.client.lease().is_some());
    let request = sent(&play.carrier(true));
    assert_eq!(request.address(50), Some(Ipv4Addr::new(192, 0, 2, HOST)));
    play.carrier(false);
    assert_eq!(play.until_changed(), Change::Expired);
    assert_eq!((play.client.lease(), play.client.deadline()), (None, None));
}

#[derive(Clone, Debug)]
enum Act {
    Carrier(bool),
    Wait,
    /// A message of that type from that server, to the last that was sent or to something else.
    Hear(u8, u8, u8, bool),
    Arp(u8, bool),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => any::<bool>().prop_map(Act::Carrier),
        4 => Just(Act::Wait),
        4 => (prop_oneof![Just(2_u8), Just(5), Just(6)], 1_u8..3, 10_u8..12, prop::bool::weighted(0.9))
            .prop_map(|(kind, server, host, right)| Act::Hear(kind, server, host, right)),
        1 => (10_u8..12, any::<bool>()).prop_map(|(host, probe)| Act::Arp(host, probe)),
    ]
}

proptest! {
    /// Whatever comes: with carrier something is always due, a lease is never used beyond its time, and an address only
    /// after a server has acknowledged it.
    #[test]
    fn the_client_never_stalls_and_never_overstays(acts in proptest::collection::vec(act(), 0..120)) {
        let mut play = Play::new(None);
        let (mut up, mut last, mut acknowledged) = (false, None, Vec::new());
        for act in acts {
            let actions = match act {
                Act::Carrier(to) => { up = to; play.carrier(to) }
                Act::Wait if play.client.deadline().is_some() => {
                    let before = play.now;
                    let actions = play.wait();
                    prop_assert!(play.now >= before);
                    actions
                }
                Act::Wait => Vec::new(),
                Act::Hear(kind, server, host, right) => match &last {
                    Some(message) => {
                        let mut message = answer(message, kind, server, host);
                        if kind == 5 { acknowledged.push(message.yiaddr) }
                        if !right { message.xid ^= 1 }
                        play.hear(&message)
                    }
                    None => Vec::new(),
                },
                Act::Arp(host, probe) => {
                    let address = Ipv4Addr::new(192, 0, 2, host);
                    let arp = if probe { Arp::probe(OTHER, address) } else { Arp::announcement(OTHER, address) };
                    play.client.on_arp(play.now, &arp)
                }
            };
            for action in &actions {
                if let Action::Send(message, _) = action {
                    prop_assert!(message.encode().is_ok());
                    last = Some(message.clone());
                }
            }
            prop_assert_eq!(up, play.client.doing() != "no carrier");
            prop_assert!(!up || play.client.deadline().is_some());
            if let Some(expires) = play.client.expires() {
                prop_assert!(expires > play.now);
            }
            if let Some(lease) = play.client.lease() {
                prop_assert!(acknowledged.contains(&lease.address.address()));
            }
        }
    }
}
