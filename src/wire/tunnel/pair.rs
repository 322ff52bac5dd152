//! Both roles against each other and against noise.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::proto::tunnel::{ClientToServer, ServerToClient};

const METHODS: &[&str] = &["s/Echo", "s/Reverse", "s/Fail"];

/// What one step of a run does.
#[derive(Clone, Debug)]
enum Step {
    Call {
        method: usize,
        length: usize,
    },
    Cancel(usize),
    /// The provider writes a frame, and the agent reads it.
    Down,
    /// The agent writes a frame, and the provider reads it.
    Up,
    /// The agent finishes a started method.
    Finish(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (0..METHODS.len(), 0..400_usize).prop_map(|(method, length)| Step::Call { method, length }),
        1 => (0..20_usize).prop_map(Step::Cancel),
        20 => Just(Step::Down),
        20 => Just(Step::Up),
        3 => (0..8_usize).prop_map(Step::Finish),
    ];
    proptest::collection::vec(step, 0..400)
}

/// A provider and an agent, and what is known about their calls.
struct Pair {
    provider: Caller,
    agent: Responder,
    asked: BTreeMap<StreamId, (&'static str, Bytes)>,
    started: Vec<Request>,
    finished: usize,
    last_new: i64,
}

impl Pair {
    fn new(negotiates: bool, window_down: u32, window_up: u32) -> Self {
        // The agent keeps a given-up stream until its close is written, so it needs room for more than the provider.
        let limits = |window, streams_max| Limits { window, message_max: 1 << 16, streams_max };
        Self {
            provider: Caller::new(negotiates, limits(window_up, 16)),
            agent: Responder::new(negotiates, METHODS, limits(window_down, 1024)),
            asked: BTreeMap::new(),
            started: Vec::new(),
            finished: 0,
            last_new: 0,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Call { method, length } => {
                let method = METHODS[*method];
                let request: Bytes = (0..*length).map(|at| (at * 31 + length) as u8).collect();
                if let Ok(id) = self.provider.call(&format!("/{method}"), Headers::default(), request.clone()) {
                    self.asked.insert(id, (method, request));
                }
            }
            Step::Cancel(nth) => {
                let id = self.asked.keys().nth(*nth).copied();
                if let Some(id) = id {
                    assert!(self.provider.cancel(id), "an unfinished call is under way");
                    self.asked.remove(&id);
                }
            }
            Step::Down => drop(self.down()),
            Step::Up => drop(self.up()),
            Step::Finish(nth) => drop(self.finish(*nth)),
        }
    }

    fn down(&mut self) -> bool {
        let Some(frame) = self.provider.transmit() else { return false };
        if let Some(crate::proto::tunnel::client_to_server::Frame::NewStream(_)) = frame.frame {
            assert!(frame.stream_id > self.last_new);
            self.last_new = frame.stream_id;
        }
        match self.agent.receive(frame).expect("our own frames break no rule") {
            Accepted::Start(request) => self.started.push(request),
            Accepted::Rejected(id, code) => panic!("{id} was refused: {code:?}"),
            Accepted::Progress(_) | Accepted::Cancelled(_) | Accepted::Late => {}
        }
        true
    }

    fn up(&mut self) -> bool {
        let Some(frame) = self.agent.transmit() else { return false };
        if let Received::Completed(id, outcome) = self.provider.receive(frame).expect("our own frames break no rule") {
            let (method, request) = self.asked.remove(&id).expect("only calls under way complete");
            match (method, outcome) {
                ("s/Echo", Ok(message)) => assert_eq!(message, request),
                ("s/Reverse", Ok(message)) => assert_eq!(message, request.iter().rev().copied().collect::<Vec<u8>>()),
                ("s/Fail", Err(CallFailure::Status { code, message })) => {
                    assert_eq!((code, message.as_str()), (tonic::Code::Aborted, "no"));
                }
                (method, outcome) => panic!("{method} ended with {outcome:?}"),
            }
            self.finished += 1;
        }
        true
    }

    fn finish(&mut self, nth: usize) -> bool {
        if self.started.is_empty() {
            return false;
        }
        let request = self.started.remove(nth % self.started.len());
        let outcome = match request.method {
            "s/Echo" => Ok(request.message),
            "s/Reverse" => Ok(request.message.iter().rev().copied().collect()),
            _ => Err((tonic::Code::Aborted, "no".to_owned())),
        };
        self.agent.respond(request.id, outcome);
        true
    }

    /// Runs until nothing moves; every call that was not given up must have ended.
    fn settle(&mut self) {
        for _ in 0..1_000_000 {
            let down = self.down();
            let up = self.up();
            let finished = self.finish(0);
            if !(down || up || finished) {
                break;
            }
        }
        assert!(self.asked.is_empty(), "calls hang: {:?}", self.asked.keys());
        assert_eq!((self.provider.live(), self.agent.live()), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn messages_arrive_whole_under_any_interleaving_and_small_windows(
        steps in steps(),
        negotiates in any::<bool>(),
        window_down in 1..64_u32,
        window_up in 1..64_u32,
    ) {
        let mut pair = Pair::new(negotiates, window_down, window_up);
        for step in &steps {
            pair.step(step);
        }
        pair.settle();
    }

    #[test]
    fn random_octets_never_panic_either_role(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..40)) {
        let mut provider = Caller::new(false, Limits::default());
        let mut agent = Responder::new(true, METHODS, Limits::default());
        for octets in &frames {
            let _ = provider.call("/s/Echo", Headers::default(), Bytes::from(octets.clone()));
            if let Ok(frame) = ServerToClient::decode(&octets[..]) {
                let _ = provider.receive(frame);
            }
            if let Ok(frame) = ClientToServer::decode(&octets[..]) {
                let _ = agent.receive(frame);
            }
            let _ = (provider.transmit(), agent.transmit());
        }
    }

    #[test]
    fn random_frames_never_panic_either_role(seeds in proptest::collection::vec((-2..6_i64, 0..8_u8, 0..20_u32, 0..20_usize), 0..80)) {
        use crate::proto::tunnel::{CloseStream, MessageData, NewStream, Settings, client_to_server as down, server_to_client as up};
        let mut provider = Caller::new(true, Limits { window: 16, message_max: 24, streams_max: 3 });
        let mut agent = Responder::new(true, METHODS, Limits { window: 16, message_max: 24, streams_max: 3 });
        for (id, kind, number, length) in seeds {
            let data = vec![1; length];
            let message = MessageData { size: number, data: data.clone().into() };
            let to_agent = match kind {
                0 | 1 => Some(down::Frame::NewStream(NewStream { method_name: "/s/Echo".into(), initial_window_size: number, protocol_revision: (number % 3) as i32, ..NewStream::default() })),
                2 => Some(down::Frame::RequestMessage(message.clone())),
                3 => Some(down::Frame::MoreRequestData(data.clone())),
                4 => Some(down::Frame::HalfClose(())),
                5 => Some(down::Frame::Cancel(())),
                6 => Some(down::Frame::WindowUpdate(number)),
                _ => None,
            };
            let to_provider = match kind {
                0 => Some(up::Frame::Settings(Settings { supported_protocol_revisions: vec![1], initial_window_size: number })),
                1 => Some(up::Frame::ResponseHeaders(Metadata::default())),
                2 => Some(up::Frame::ResponseMessage(message)),
                3 => Some(up::Frame::MoreResponseData(data.clone())),
                4 | 5 => Some(up::Frame::CloseStream(CloseStream::default())),
                6 => Some(up::Frame::WindowUpdate(number)),
                _ => None,
            };
            if let Ok(Accepted::Start(request)) = agent.receive(ClientToServer { stream_id: id, frame: to_agent }) {
                agent.respond(request.id, Ok(request.message));
            }
            let _ = provider.receive(ServerToClient { stream_id: id, frame: to_provider });
            let _ = provider.call("/s/Echo", Headers::default(), data.into());
            let _ = (provider.transmit(), agent.transmit());
        }
    }
}
