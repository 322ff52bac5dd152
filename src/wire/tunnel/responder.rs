//! The agent's role: answers calls that the provider starts.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use bytes::Bytes;
use tonic::Code;

use super::assembly::Assembly;
use super::fault::{StreamFault, Violation};
use super::outgoing::{Outgoing, Piece};
use super::{Headers, Limits, Revision, StreamId, TUNNEL_WIDE};
use crate::proto::tunnel::{
    ClientToServer, CloseStream, Metadata, NewStream, RpcStatus, ServerToClient, Settings, client_to_server,
    server_to_client,
};

/// A call to answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The stream to answer on.
    pub id: StreamId,
    /// `package.Service/Method`, one of those that the responder was made with.
    pub method: &'static str,
    /// The inner headers. Go's provider sends none.
    pub headers: Headers,
    /// How long the answer may take, from the inner `grpc-timeout`.
    pub timeout: Option<Duration>,
    /// The request's octets.
    pub message: Bytes,
}

/// What a frame amounted to.
#[derive(Clone, Debug, PartialEq)]
pub enum Accepted {
    /// Part of a call, or credit.
    Progress(StreamId),
    /// The request is whole and the provider sends no more: the method starts now.
    Start(Request),
    /// The provider gave a started call up; it was answered, and [`Responder::respond`] will not be heard.
    Cancelled(StreamId),
    /// The stream was refused or failed before its method started; it was answered.
    Rejected(StreamId, Code),
    /// A frame of a stream that had ended, or that no longer matters.
    Late,
}

/// One stream.
#[derive(Debug)]
struct Stream {
    method: &'static str,
    headers: Headers,
    peer_window: Option<u32>,
    request: Assembly,
    stage: Stage,
}

/// Where a stream stands.
#[derive(Debug)]
enum Stage {
    /// The request is coming.
    Receiving,
    /// The method runs.
    Running,
    /// The answer goes out. `close` follows the message.
    Answering { headers_sent: bool, message: Option<Outgoing>, close: CloseStream },
}

/// One tunnel, seen from the side that answers calls.
///
/// Feed every frame to [`Self::receive`], and write what [`Self::transmit`] returns, in that order, whenever the peer
/// takes more. Receiving never waits for transmitting.
#[derive(Debug)]
pub struct Responder {
    methods: &'static [&'static str],
    limits: Limits,
    /// Largest ID seen; the first may be 0.
    last_seen: i64,
    streams: BTreeMap<i64, Stream>,
    /// Settings and refusals.
    control: VecDeque<ServerToClient>,
    /// The stream that was served last: the next one's turn comes first.
    turn: i64,
}

impl Responder {
    /// A tunnel whose provider said (`negotiates`) in its response headers that it takes settings. `methods` are
    /// `package.Service/Method`, without a leading slash.
    pub fn new(negotiates: bool, methods: &'static [&'static str], limits: Limits) -> Self {
        let mut control = VecDeque::new();
        if negotiates {
            let settings = Settings {
                supported_protocol_revisions: vec![Revision::Zero as i32, Revision::One as i32],
                initial_window_size: limits.window,
            };
            control.push_back(to_provider(TUNNEL_WIDE, server_to_client::Frame::Settings(settings)));
        }
        Self { methods, limits, last_seen: -1, streams: BTreeMap::new(), control, turn: -1 }
    }

    /// Streams that have not been answered in full.
    pub fn live(&self) -> usize {
        self.streams.len()
    }

    /// Takes a frame.
    ///
    /// # Errors
    ///
    /// [`Violation`]: the tunnel must end, both halves of it.
    pub fn receive(&mut self, frame: ClientToServer) -> Result<Accepted, Violation> {
        use client_to_server::Frame;

        let id = frame.stream_id;
        if let Some(Frame::NewStream(new)) = frame.frame {
            return self.open(id, new);
        }
        if id > self.last_seen {
            return Err(Violation::NeverCreated(id));
        }
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(Accepted::Late) };
        let receiving = matches!(stream.stage, Stage::Receiving);
        let taken = match frame.frame {
            Some(Frame::WindowUpdate(octets)) => {
                stream.credit(octets);
                Ok(())
            }
            Some(Frame::Cancel(())) => {
                let running = matches!(stream.stage, Stage::Running);
                stream.answer(None, Code::Unknown, "context canceled");
                return Ok(if running { Accepted::Cancelled(StreamId(id)) } else { Accepted::Progress(StreamId(id)) });
            }
            // Data after the half-close is dropped (contract 1.9).
            Some(Frame::RequestMessage(_) | Frame::MoreRequestData(_) | Frame::HalfClose(())) if !receiving => {
                return Ok(Accepted::Late);
            }
            Some(Frame::RequestMessage(message)) => stream.request.envelope(message.size, &message.data),
            Some(Frame::MoreRequestData(data)) => stream.request.more(&data),
            Some(Frame::HalfClose(())) => match stream.request.take() {
                Some(message) => {
                    stream.stage = Stage::Running;
                    let headers = std::mem::take(&mut stream.headers);
                    let timeout = inner_timeout(&headers);
                    let method = stream.method;
                    return Ok(Accepted::Start(Request { id: StreamId(id), method, headers, timeout, message }));
                }
                None => {
                    stream.answer(None, Code::Unknown, "EOF");
                    return Ok(Accepted::Rejected(StreamId(id), Code::Unknown));
                }
            },
            // `open` took the new streams.
            Some(Frame::NewStream(_)) | None => Err(StreamFault::UnknownFrame),
        };
        Ok(match taken {
            Ok(()) => Accepted::Progress(StreamId(id)),
            Err(fault) => {
                let running = matches!(stream.stage, Stage::Running);
                let code = fault.code_for_responder();
                stream.answer(None, code, &fault.to_string());
                if running { Accepted::Cancelled(StreamId(id)) } else { Accepted::Rejected(StreamId(id), code) }
            }
        })
    }

    /// Answers a started call: with the response's octets, or a status. Returns whether anyone still waited for it.
    pub fn respond(&mut self, id: StreamId, outcome: Result<Bytes, (Code, String)>) -> bool {
        let Some(stream) = self.streams.get_mut(&id.0).filter(|stream| matches!(stream.stage, Stage::Running)) else {
            return false;
        };
        match outcome {
            Ok(message) => match Outgoing::new(message, stream.peer_window) {
                Some(outgoing) => stream.answer(Some(outgoing), Code::Ok, ""),
                None => stream.answer(None, Code::ResourceExhausted, "the response is longer than an envelope can say"),
            },
            Err((code, text)) => stream.answer(None, code, &text),
        }
        true
    }

    /// Whether [`Self::transmit`] has a frame now.
    pub fn wants_transmit(&self) -> bool {
        !self.control.is_empty() || self.streams.values().any(Stream::is_ready)
    }

    /// The next frame to write. Streams take turns, a frame each.
    pub fn transmit(&mut self) -> Option<ServerToClient> {
        if let Some(frame) = self.control.pop_front() {
            return Some(frame);
        }
        let after = (Bound::Excluded(self.turn), Bound::Unbounded);
        let ready = |(id, stream): (&i64, &Stream)| stream.is_ready().then_some(*id);
        let id = self.streams.range(after).find_map(ready).or_else(|| self.streams.iter().find_map(ready))?;
        self.turn = id;
        let frame = self.streams.get_mut(&id)?.next()?;
        if matches!(frame, server_to_client::Frame::CloseStream(_)) {
            self.streams.remove(&id);
        }
        Some(to_provider(id, frame))
    }

    fn open(&mut self, id: i64, new: NewStream) -> Result<Accepted, Violation> {
        if self.streams.contains_key(&id) {
            return Err(Violation::AlreadyExists(id));
        }
        if id <= self.last_seen {
            return Err(Violation::AlreadyUsed(id));
        }
        // A refused stream's ID counts as seen, so that its own request data is late and not a violation; Go forgets
        // this for an unknown revision and ends the tunnel on the next frame.
        self.last_seen = id;
        let revision = match new.protocol_revision {
            0 => Revision::Zero,
            1 => Revision::One,
            other => {
                let text = format!("server does not support protocol revision {other}");
                return Ok(self.reject(id, Code::Unavailable, text));
            }
        };
        let name = new.method_name.strip_prefix('/').unwrap_or(&new.method_name);
        if !name.contains('/') {
            let text = format!("{name} is not a well-formed method name");
            return Ok(self.reject(id, Code::InvalidArgument, text));
        }
        let Some(method) = self.methods.iter().copied().find(|method| *method == name) else {
            return Ok(self.reject(id, Code::Unimplemented, format!("{name} not implemented")));
        };
        if self.streams.len() >= self.limits.streams_max {
            return Ok(self.reject(id, Code::ResourceExhausted, "too many streams".to_owned()));
        }
        let windowed = revision == Revision::One;
        let stream = Stream {
            method,
            headers: new.request_headers.unwrap_or_default().into(),
            peer_window: windowed.then_some(new.initial_window_size),
            request: Assembly::new(windowed.then_some(self.limits.window), self.limits.message_max),
            stage: Stage::Receiving,
        };
        self.streams.insert(id, stream);
        Ok(Accepted::Progress(StreamId(id)))
    }

    /// Refuses a stream: `close_stream` alone, without headers or trailers.
    fn reject(&mut self, id: i64, code: Code, text: String) -> Accepted {
        // A provider that opens streams faster than it reads our refusals gets some of them never.
        if self.control.len() < self.limits.streams_max {
            let close = CloseStream { response_trailers: None, status: Some(status(code, super::clipped(text))) };
            self.control.push_back(to_provider(id, server_to_client::Frame::CloseStream(close)));
        }
        Accepted::Rejected(StreamId(id), code)
    }
}

impl Stream {
    fn credit(&mut self, octets: u32) {
        if let Stage::Answering { message: Some(message), .. } = &mut self.stage {
            message.credit(octets);
        } else if let Some(window) = &mut self.peer_window {
            *window = window.saturating_add(octets);
        }
    }

    /// Starts to answer. What was being sent is dropped, and headers are not sent twice.
    fn answer(&mut self, message: Option<Outgoing>, code: Code, text: &str) {
        let headers_sent = matches!(self.stage, Stage::Answering { headers_sent: true, .. });
        let status = (code != Code::Ok).then(|| status(code, text.to_owned()));
        let close = CloseStream { response_trailers: Some(Metadata::default()), status };
        self.stage = Stage::Answering { headers_sent, message, close };
    }

    fn is_ready(&self) -> bool {
        match &self.stage {
            Stage::Receiving => self.request.owes_credit(),
            Stage::Running => false,
            Stage::Answering { headers_sent, message, .. } => {
                !headers_sent || message.as_ref().is_none_or(|message| message.is_done() || message.is_ready())
            }
        }
    }

    fn next(&mut self) -> Option<server_to_client::Frame> {
        use server_to_client::Frame;

        match &mut self.stage {
            // Once the provider sends no more it needs no credit.
            Stage::Receiving => self.request.take_credit().map(Frame::WindowUpdate),
            Stage::Running => None,
            Stage::Answering { headers_sent, message, close } => {
                if !std::mem::replace(headers_sent, true) {
                    return Some(Frame::ResponseHeaders(Metadata::default()));
                }
                if let Some(message) = message.as_mut().filter(|message| !message.is_done()) {
                    return message.next().map(|piece| match piece {
                        Piece::First(first) => Frame::ResponseMessage(first),
                        Piece::More(more) => Frame::MoreResponseData(more),
                    });
                }
                Some(Frame::CloseStream(std::mem::take(close)))
            }
        }
    }
}

/// The inner `grpc-timeout`: its last value, digits and a unit. Anything malformed is no timeout (contract 1.8).
fn inner_timeout(headers: &Headers) -> Option<Duration> {
    let text = headers.0.get("grpc-timeout")?.last()?;
    let (at, unit) = text.char_indices().next_back()?;
    let amount: i64 = text.get(..at)?.parse().ok()?;
    // A negative time has passed already.
    let amount = u64::try_from(amount).unwrap_or(0);
    match unit {
        'H' => Some(Duration::from_secs(amount.saturating_mul(3600))),
        'M' => Some(Duration::from_secs(amount.saturating_mul(60))),
        'S' => Some(Duration::from_secs(amount)),
        'm' => Some(Duration::from_millis(amount)),
        'u' => Some(Duration::from_micros(amount)),
        'n' => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

const fn status(code: Code, message: String) -> RpcStatus {
    RpcStatus { code: code as i32, message, details: Vec::new() }
}

const fn to_provider(stream_id: i64, frame: server_to_client::Frame) -> ServerToClient {
    ServerToClient { stream_id, frame: Some(frame) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tunnel::{MessageData, client_to_server::Frame};

    const METHODS: &[&str] = &["s/M"];

    fn frame(stream_id: i64, frame: Frame) -> ClientToServer {
        ClientToServer { stream_id, frame: Some(frame) }
    }

    fn new_stream(id: i64, method: &str, revision: i32) -> ClientToServer {
        let new = NewStream {
            method_name: method.into(),
            request_headers: None,
            initial_window_size: 65_536,
            protocol_revision: revision,
        };
        frame(id, Frame::NewStream(new))
    }

    fn message(size: u32, data: &[u8]) -> Frame {
        Frame::RequestMessage(MessageData { size, data: Bytes::copy_from_slice(data) })
    }

    fn drain(responder: &mut Responder) -> Vec<ServerToClient> {
        std::iter::from_fn(|| responder.transmit()).collect()
    }

    /// The kinds of the frames for `id`, and the code of the close.
    fn kinds(frames: &[ServerToClient], id: i64) -> (String, Option<i32>) {
        let mut code = None;
        let kinds = frames
            .iter()
            .filter(|frame| frame.stream_id == id)
            .map(|frame| match frame.frame.as_ref().unwrap() {
                server_to_client::Frame::Settings(_) => 's',
                server_to_client::Frame::ResponseHeaders(_) => 'h',
                server_to_client::Frame::ResponseMessage(_) => 'm',
                server_to_client::Frame::MoreResponseData(_) => '+',
                server_to_client::Frame::WindowUpdate(_) => 'w',
                server_to_client::Frame::CloseStream(close) => {
                    code = Some(close.status.as_ref().map_or(0, |status| status.code));
                    'c'
                }
            })
            .collect();
        (kinds, code)
    }

    fn open() -> Responder {
        Responder::new(false, METHODS, Limits::default())
    }

    #[test]
    fn settings_come_first_and_only_if_negotiated() {
        assert_eq!(drain(&mut open()), []);
        let mut responder = Responder::new(true, METHODS, Limits::default());
        assert_eq!(kinds(&drain(&mut responder), -1).0, "s");
    }

    #[test]
    fn a_method_starts_at_the_half_close_and_not_before() {
        let mut responder = open();
        responder.receive(new_stream(0, "/s/M", 1)).unwrap();
        assert_eq!(responder.receive(frame(0, message(3, b"a"))), Ok(Accepted::Progress(StreamId(0))));
        responder.receive(frame(0, Frame::MoreRequestData(b"sk".to_vec()))).unwrap();
        let Ok(Accepted::Start(request)) = responder.receive(frame(0, Frame::HalfClose(()))) else { panic!("start") };
        assert_eq!((request.method, &request.message[..]), ("s/M", &b"ask"[..]));
        assert_eq!(responder.receive(frame(0, message(3, b"ask"))), Ok(Accepted::Late), "data after half-close");
        assert!(responder.respond(request.id, Ok(Bytes::from_static(b"yes"))));
        let (kinds, code) = kinds(&drain(&mut responder), 0);
        assert_eq!((kinds.trim_start_matches('w'), code), ("hmc", Some(0)));
        assert_eq!(responder.live(), 0);
        assert!(!responder.respond(request.id, Ok(Bytes::new())));
    }

    #[test]
    fn ids_increase_with_gaps_and_are_never_used_again() {
        let mut responder = open();
        for id in [0, 1, 100] {
            responder.receive(new_stream(id, "s/M", 0)).unwrap();
        }
        assert_eq!(responder.receive(new_stream(1, "s/M", 0)), Err(Violation::AlreadyExists(1)));
        assert_eq!(responder.receive(new_stream(50, "s/M", 0)), Err(Violation::AlreadyUsed(50)));
        assert_eq!(responder.receive(new_stream(-5, "s/M", 0)), Err(Violation::AlreadyUsed(-5)));
        assert_eq!(responder.receive(frame(101, Frame::Cancel(()))), Err(Violation::NeverCreated(101)));
        assert_eq!(responder.receive(frame(50, Frame::Cancel(()))), Ok(Accepted::Late));
    }

    #[test]
    fn refused_streams_get_close_stream_alone_and_their_data_is_late() {
        for (method, revision, code) in [
            ("Hello", 1, Code::InvalidArgument),
            ("", 1, Code::InvalidArgument),
            ("/", 1, Code::InvalidArgument),
            ("//s/M", 1, Code::Unimplemented),
            ("/s/Nope", 1, Code::Unimplemented),
            ("/s/M", 7, Code::Unavailable),
        ] {
            let mut responder = open();
            let rejected = responder.receive(new_stream(1, method, revision));
            assert_eq!(rejected, Ok(Accepted::Rejected(StreamId(1), code)), "{method:?}");
            assert_eq!(responder.receive(frame(1, message(0, b""))), Ok(Accepted::Late));
            assert_eq!(kinds(&drain(&mut responder), 1), ("c".into(), Some(code as i32)));
        }
    }

    #[test]
    fn every_fault_of_a_stream_closes_it_with_its_code_and_leaves_the_tunnel() {
        for (frames, code) in [
            (vec![Some(message(1, b"ab"))], Code::InvalidArgument),
            (vec![Some(message(5, b"abc")), Some(message(5, b"abc"))], Code::InvalidArgument),
            (vec![Some(Frame::MoreRequestData(vec![1]))], Code::InvalidArgument),
            (vec![Some(message(0, b"")), Some(message(0, b""))], Code::InvalidArgument),
            (vec![Some(message(70_000, &[0; 70_000]))], Code::ResourceExhausted),
            (vec![Some(message(u32::MAX, b""))], Code::ResourceExhausted),
            (vec![None], Code::Unknown),
            (vec![Some(Frame::HalfClose(()))], Code::Unknown),
            (vec![Some(message(5, b"abc")), Some(Frame::HalfClose(()))], Code::Unknown),
        ] {
            let mut responder = open();
            responder.receive(new_stream(1, "s/M", 1)).unwrap();
            let last = frames.into_iter().map(|frame| responder.receive(ClientToServer { stream_id: 1, frame })).last();
            assert_eq!(last, Some(Ok(Accepted::Rejected(StreamId(1), code))));
            assert_eq!(kinds(&drain(&mut responder), 1), ("hc".into(), Some(code as i32)));
            assert!(responder.receive(new_stream(2, "s/M", 1)).is_ok());
        }
    }

    #[test]
    fn a_cancel_answers_once_and_tells_whether_the_method_ran() {
        let mut responder = open();
        responder.receive(new_stream(1, "s/M", 1)).unwrap();
        responder.receive(frame(1, message(0, b""))).unwrap();
        responder.receive(frame(1, Frame::HalfClose(()))).unwrap();
        assert_eq!(responder.receive(frame(1, Frame::Cancel(()))), Ok(Accepted::Cancelled(StreamId(1))));
        assert!(!responder.respond(StreamId(1), Ok(Bytes::new())));
        assert_eq!(kinds(&drain(&mut responder), 1), ("hc".into(), Some(2)));
        responder.receive(new_stream(2, "s/M", 1)).unwrap();
        assert_eq!(responder.receive(frame(2, Frame::Cancel(()))), Ok(Accepted::Progress(StreamId(2))));
    }

    #[test]
    fn the_inner_timeout_is_the_last_value_and_malformed_ones_are_none() {
        for (text, timeout) in [
            ("5S", Some(Duration::from_secs(5))),
            ("100m", Some(Duration::from_millis(100))),
            ("-3H", Some(Duration::ZERO)),
            ("99999999999999999999S", None),
            ("S", None),
            ("", None),
            ("5é", None),
            ("5 S", None),
        ] {
            let headers = Headers(BTreeMap::from([("grpc-timeout".into(), vec!["1H".into(), text.into()])]));
            assert_eq!(inner_timeout(&headers), timeout, "{text:?}");
        }
    }
}
