//! Tunnel frames of any content and order, to both roles; what waits inside stays bounded, no message is longer than
//! its limit and no side sends more than it was granted.
#![no_main]

use std::collections::BTreeMap;

use bytes::Bytes;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use pilotlight::proto::tunnel::{
    ClientToServer, CloseStream, MessageData, Metadata, NewStream, RpcStatus, ServerToClient, Settings,
    client_to_server, metadata, server_to_client,
};
use pilotlight::wire::tunnel::{Accepted, Caller, Headers, Limits, Received, Responder};
use prost::Message as _;

const LIMITS: Limits = Limits { window: 64, message_max: 1024, streams_max: 8 };
const REQUEST: &[u8] = &[7; 200];

/// What one side may send, by stream: grows with each grant of the peer's.
#[derive(Default)]
struct Grants(BTreeMap<i64, u64>);

impl Grants {
    fn add(&mut self, id: i64, octets: u32) {
        *self.0.entry(id).or_default() += u64::from(octets);
    }

    fn spend(&mut self, id: i64, octets: usize) {
        let left = self.0.get_mut(&id).expect("data before any grant");
        *left = left.checked_sub(octets as u64).expect("more data than was granted");
    }
}

/// The provider's role, and what was granted to it if windows count.
struct Provider {
    caller: Caller,
    grants: Option<Grants>,
    window: u32,
    last_new: i64,
}

impl Provider {
    fn new(negotiates: bool) -> Self {
        Self { caller: Caller::new(negotiates, LIMITS), grants: None, window: 0, last_new: 0 }
    }

    fn call(&mut self) {
        let _ = self.caller.call("a.B/C", Headers::default(), Bytes::from_static(REQUEST));
    }

    /// Whether the tunnel goes on.
    fn receive(&mut self, frame: ServerToClient) -> bool {
        if let (Some(grants), Some(server_to_client::Frame::WindowUpdate(octets))) = (&mut self.grants, &frame.frame) {
            grants.add(frame.stream_id, *octets);
        }
        if let (None, Some(server_to_client::Frame::Settings(settings))) = (self.caller.revision(), &frame.frame) {
            self.window = settings.initial_window_size;
        }
        match self.caller.receive(frame) {
            Err(_) => return false,
            Ok(Received::Opened(revision)) => self.grants = (revision as i32 == 1).then(Grants::default),
            Ok(Received::Completed(_, Ok(message))) => assert!(message.len() <= LIMITS.message_max),
            Ok(_) => {}
        }
        assert!(self.caller.live() <= LIMITS.streams_max);
        true
    }

    fn transmit(&mut self, frames: usize) {
        for _ in 0..frames {
            let Some(sent) = self.caller.transmit() else { return };
            let octets = match sent.frame.expect("we send no empty frame") {
                client_to_server::Frame::NewStream(_) => {
                    assert!(sent.stream_id > self.last_new, "stream IDs increase");
                    self.last_new = sent.stream_id;
                    if let Some(grants) = &mut self.grants {
                        grants.add(sent.stream_id, self.window);
                    }
                    continue;
                }
                client_to_server::Frame::RequestMessage(first) => {
                    assert_eq!(first.size as usize, REQUEST.len());
                    first.data.len()
                }
                client_to_server::Frame::MoreRequestData(more) => more.len(),
                _ => continue,
            };
            assert!(octets <= REQUEST.len());
            if let Some(grants) = &mut self.grants {
                grants.spend(sent.stream_id, octets);
            }
        }
    }
}

/// The agent's role.
struct Agent {
    responder: Responder,
    /// Streams of revision one alone: the others are sent whole.
    grants: Grants,
}

impl Agent {
    fn new(negotiates: bool) -> Self {
        Self { responder: Responder::new(negotiates, &["a.B/C"], LIMITS), grants: Grants::default() }
    }

    /// Whether the tunnel goes on.
    fn receive(&mut self, frame: ClientToServer) -> bool {
        let id = frame.stream_id;
        match &frame.frame {
            Some(client_to_server::Frame::NewStream(new)) if new.protocol_revision == 1 => {
                self.grants.0.entry(id).or_insert(u64::from(new.initial_window_size));
            }
            Some(client_to_server::Frame::WindowUpdate(octets)) if self.grants.0.contains_key(&id) => {
                self.grants.add(id, *octets);
            }
            _ => {}
        }
        match self.responder.receive(frame) {
            Err(_) => return false,
            Ok(Accepted::Start(request)) => {
                assert!(request.message.len() <= LIMITS.message_max);
                assert!(self.responder.respond(request.id, Ok(Bytes::from_static(REQUEST))));
            }
            Ok(_) => {}
        }
        assert!(self.responder.live() <= LIMITS.streams_max);
        true
    }

    fn transmit(&mut self, frames: usize) {
        for _ in 0..frames {
            let Some(sent) = self.responder.transmit() else { return };
            let octets = match sent.frame.expect("we send no empty frame") {
                server_to_client::Frame::ResponseMessage(first) => first.data.len(),
                server_to_client::Frame::MoreResponseData(more) => more.len(),
                _ => continue,
            };
            assert!(octets <= REQUEST.len());
            if self.grants.0.contains_key(&sent.stream_id) {
                self.grants.spend(sent.stream_id, octets);
            }
        }
    }
}

fn octets(input: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let len = input.int_in_range(0..=80)?;
    Ok(input.bytes(len)?.to_vec())
}

/// A first piece whose size is mostly that of its data, or a little more.
fn message(input: &mut Unstructured<'_>) -> Result<MessageData> {
    let data = octets(input)?;
    let size = if input.ratio(1, 8)? { input.arbitrary()? } else { data.len() as u32 + input.int_in_range(0..=200)? };
    Ok(MessageData { size, data: data.into() })
}

fn window(input: &mut Unstructured<'_>) -> Result<u32> {
    if input.ratio(1, 8)? { input.arbitrary() } else { input.int_in_range(0..=300) }
}

fn headers(input: &mut Unstructured<'_>) -> Result<Metadata> {
    let key = *input.choose(&["grpc-timeout", "x"])?;
    let values = metadata::Values { val: vec![input.arbitrary::<&str>()?.to_owned()] };
    Ok(Metadata { md: [(key.to_owned(), values)].into() })
}

/// Frames of an agent to a provider that calls, sends and gives up meanwhile.
fn scripted_agent(input: &mut Unstructured<'_>) -> Result<()> {
    use server_to_client::Frame;

    let negotiates = input.arbitrary()?;
    let mut provider = Provider::new(negotiates);
    if negotiates {
        let revisions = input.choose(&[&[0, 1][..], &[0], &[1], &[0, 1, 7]])?.to_vec();
        let settings = Settings { supported_protocol_revisions: revisions, initial_window_size: window(input)? };
        assert!(provider.receive(ServerToClient { stream_id: -1, frame: Some(Frame::Settings(settings)) }));
    }
    while !input.is_empty() {
        let stream_id = if input.ratio(1, 30)? { input.arbitrary()? } else { input.int_in_range(1..=4)? };
        let frame = match input.int_in_range(0..=9)? {
            0 => {
                provider.call();
                continue;
            }
            1 | 2 => {
                provider.transmit(input.int_in_range(0..=12)?);
                continue;
            }
            3 => {
                provider.caller.cancel(pilotlight::wire::tunnel::StreamId(stream_id));
                continue;
            }
            4 => Some(Frame::ResponseHeaders(headers(input)?)),
            5 => Some(Frame::ResponseMessage(message(input)?)),
            6 => Some(Frame::MoreResponseData(octets(input)?)),
            7 => Some(Frame::WindowUpdate(window(input)?)),
            8 => {
                let status = RpcStatus { code: input.int_in_range(0..=18)?, ..Default::default() };
                Some(Frame::CloseStream(CloseStream { response_trailers: None, status: Some(status) }))
            }
            _ if input.ratio(1, 2)? => Some(Frame::Settings(Settings::default())),
            _ => None,
        };
        if !provider.receive(ServerToClient { stream_id, frame }) {
            return Ok(());
        }
    }
    Ok(())
}

/// Frames of a provider to an agent.
fn scripted_provider(input: &mut Unstructured<'_>) -> Result<()> {
    use client_to_server::Frame;

    let mut agent = Agent::new(input.arbitrary()?);
    let mut opened = 0;
    while !input.is_empty() {
        let mut stream_id = input.int_in_range(0..=opened)?;
        let frame = match input.int_in_range(0..=8)? {
            0 | 1 => {
                opened += 1;
                stream_id = if input.ratio(1, 30)? { input.arbitrary()? } else { opened };
                let revision = if input.ratio(1, 10)? { input.arbitrary()? } else { input.int_in_range(0..=1)? };
                Some(Frame::NewStream(NewStream {
                    method_name: (*input.choose(&["a.B/C", "/a.B/C", "a.B/D", "nothing"])?).to_owned(),
                    request_headers: input.ratio(1, 4)?.then(|| headers(input)).transpose()?,
                    initial_window_size: window(input)?,
                    protocol_revision: revision,
                }))
            }
            2 => {
                agent.transmit(input.int_in_range(0..=12)?);
                continue;
            }
            3 => Some(Frame::RequestMessage(message(input)?)),
            4 => Some(Frame::MoreRequestData(octets(input)?)),
            5 => Some(Frame::HalfClose(())),
            6 => Some(Frame::WindowUpdate(window(input)?)),
            7 if input.ratio(1, 3)? => Some(Frame::Cancel(())),
            7 => Some(Frame::HalfClose(())),
            _ => None,
        };
        if !agent.receive(ClientToServer { stream_id, frame }) {
            return Ok(());
        }
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, mut frames)) = data.split_first() else { return };
    match mode % 6 {
        mode @ (0 | 1) => {
            let mut provider = Provider::new(mode == 0);
            while let Ok(frame) = ServerToClient::decode_length_delimited(&mut frames) {
                provider.call();
                if !provider.receive(frame) || frames.is_empty() {
                    return;
                }
                provider.transmit(64);
            }
        }
        mode @ (2 | 3) => {
            let mut agent = Agent::new(mode == 2);
            while let Ok(frame) = ClientToServer::decode_length_delimited(&mut frames) {
                if !agent.receive(frame) || frames.is_empty() {
                    return;
                }
                agent.transmit(64);
            }
        }
        4 => drop(scripted_agent(&mut Unstructured::new(frames))),
        _ => drop(scripted_provider(&mut Unstructured::new(frames))),
    }
});
