//! The provider's role: starts calls that the agent answers.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use bytes::Bytes;
use tonic::Code;

use super::assembly::Assembly;
use super::fault::{StreamFault, Violation};
use super::outgoing::{Outgoing, Piece};
use super::{Headers, Limits, Revision, StreamId, TUNNEL_WIDE, clipped};
use crate::proto::tunnel::{ClientToServer, NewStream, ServerToClient, Settings, client_to_server, server_to_client};

/// Why a call cannot start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallRefusal {
    /// The agent's settings have not come yet.
    #[error("the tunnel is not open yet")]
    NotOpen,
    /// As many calls are under way as are allowed.
    #[error("{0} calls are under way in this tunnel")]
    TooManyStreams(usize),
    /// No envelope can hold the request's size.
    #[error("the request is longer than an envelope can say")]
    TooLarge,
    /// 2^63 calls were made.
    #[error("all stream IDs exhausted")]
    IdsExhausted,
}

/// How a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallFailure {
    /// The agent's own verdict; its text is clipped to [`super::STATUS_TEXT_MAX`] octets.
    #[error("{code:?}: {message}")]
    Status {
        /// gRPC code; numbers that gRPC does not know are `Unknown`.
        code: Code,
        /// The agent's words.
        message: String,
    },
    /// The agent broke the rules of the stream.
    #[error("{0}")]
    Fault(StreamFault),
}

/// What a frame amounted to.
#[derive(Clone, Debug, PartialEq)]
pub enum Received {
    /// The tunnel is open; calls can start. Comes once.
    Opened(Revision),
    /// Part of a call, or credit.
    Progress(StreamId),
    /// A call ended: the response's octets, or why there are none.
    Completed(StreamId, Result<Bytes, CallFailure>),
    /// A frame of a stream that had ended, or repeated settings.
    Late,
}

/// One call.
#[derive(Debug)]
struct Call {
    request: Outgoing,
    half_closed: bool,
    response: Assembly,
}

/// What was agreed on.
#[derive(Clone, Copy, Debug)]
enum State {
    AwaitingSettings,
    Open { revision: Revision, peer_window: u32 },
}

/// One tunnel, seen from the side that starts calls.
///
/// Feed every frame to [`Self::receive`], and write what [`Self::transmit`] returns, in that order, whenever the peer
/// takes more. Receiving never waits for transmitting.
#[derive(Debug)]
pub struct Caller {
    state: State,
    limits: Limits,
    last_id: i64,
    /// Largest ID on the wire; a frame above it is for a stream that the agent cannot know.
    last_sent: Option<i64>,
    calls: BTreeMap<i64, Call>,
    /// `new_stream` and `cancel` in order. At most one per live or given-up stream.
    control: VecDeque<ClientToServer>,
    /// The stream that was served last: the next one's turn comes first.
    turn: i64,
}

impl Caller {
    /// A tunnel whose agent said (`negotiates`) that it sends settings, or did not: then it is open at once, in
    /// revision zero.
    pub const fn new(negotiates: bool, limits: Limits) -> Self {
        let state =
            if negotiates { State::AwaitingSettings } else { State::Open { revision: Revision::Zero, peer_window: 0 } };
        Self { state, limits, last_id: 0, last_sent: None, calls: BTreeMap::new(), control: VecDeque::new(), turn: 0 }
    }

    /// The agreed revision; `None` until the tunnel is open.
    pub const fn revision(&self) -> Option<Revision> {
        match self.state {
            State::AwaitingSettings => None,
            State::Open { revision, .. } => Some(revision),
        }
    }

    /// Calls under way.
    pub fn live(&self) -> usize {
        self.calls.len()
    }

    /// Starts a call: `method` is `/package.Service/Method`, `request` the encoded message. IDs start at 1 and increase.
    ///
    /// # Errors
    ///
    /// [`CallRefusal`]; the tunnel is unharmed.
    pub fn call(&mut self, method: &str, headers: Headers, request: Bytes) -> Result<StreamId, CallRefusal> {
        let State::Open { revision, peer_window } = self.state else { return Err(CallRefusal::NotOpen) };
        if self.calls.len() >= self.limits.streams_max {
            return Err(CallRefusal::TooManyStreams(self.calls.len()));
        }
        let windowed = revision == Revision::One;
        let request = Outgoing::new(request, windowed.then_some(peer_window)).ok_or(CallRefusal::TooLarge)?;
        let id = self.last_id.checked_add(1).ok_or(CallRefusal::IdsExhausted)?;
        self.last_id = id;
        let response = Assembly::new(windowed.then_some(self.limits.window), self.limits.message_max);
        self.calls.insert(id, Call { request, half_closed: false, response });
        // Go's side writes its window and empty headers in revision zero as well.
        let new_stream = NewStream {
            method_name: method.to_owned(),
            request_headers: Some(headers.into()),
            initial_window_size: self.limits.window,
            protocol_revision: revision as i32,
        };
        self.control.push_back(to_agent(id, client_to_server::Frame::NewStream(new_stream)));
        Ok(StreamId(id))
    }

    /// Gives a call up: its end will not be reported. Returns whether it was under way; if so, and if the agent was told
    /// of it, exactly one `cancel` follows.
    pub fn cancel(&mut self, id: StreamId) -> bool {
        let live = self.calls.remove(&id.0).is_some();
        if live {
            if self.last_sent >= Some(id.0) {
                self.control.push_back(to_agent(id.0, client_to_server::Frame::Cancel(())));
            } else {
                self.control.retain(|frame| frame.stream_id != id.0);
            }
        }
        live
    }

    /// Takes a frame.
    ///
    /// # Errors
    ///
    /// [`Violation`]: the tunnel must end.
    pub fn receive(&mut self, frame: ServerToClient) -> Result<Received, Violation> {
        use server_to_client::Frame;

        let id = frame.stream_id;
        if matches!(self.state, State::AwaitingSettings) {
            let Some(Frame::Settings(settings)) = frame.frame else { return Err(Violation::NotSettings) };
            return self.open(id, &settings);
        }
        if self.last_sent.is_none_or(|last| id > last) {
            return Err(Violation::NeverCreated(id));
        }
        let Some(call) = self.calls.get_mut(&id) else { return Ok(Received::Late) };
        let taken = match frame.frame {
            Some(Frame::ResponseHeaders(_)) => Ok(()),
            Some(Frame::ResponseMessage(message)) => call.response.envelope(message.size, &message.data),
            Some(Frame::MoreResponseData(data)) => call.response.more(&data),
            Some(Frame::WindowUpdate(octets)) => {
                call.request.credit(octets);
                Ok(())
            }
            Some(Frame::CloseStream(close)) => {
                let status = close.status.unwrap_or_default();
                let message = call.response.take();
                self.calls.remove(&id);
                let outcome = match (Code::from_i32(status.code), message) {
                    (Code::Ok, Some(message)) => Ok(message),
                    (Code::Ok, None) => Err(CallFailure::Fault(StreamFault::NoMessage)),
                    (code, _) => Err(CallFailure::Status { code, message: clipped(status.message) }),
                };
                return Ok(Received::Completed(StreamId(id), outcome));
            }
            Some(Frame::Settings(_)) => Err(StreamFault::UnexpectedSettings),
            None => Err(StreamFault::UnknownFrame),
        };
        Ok(match taken {
            Ok(()) => Received::Progress(StreamId(id)),
            Err(fault) => {
                self.cancel(StreamId(id));
                Received::Completed(StreamId(id), Err(CallFailure::Fault(fault)))
            }
        })
    }

    /// Whether [`Self::transmit`] has a frame now.
    pub fn wants_transmit(&self) -> bool {
        !self.control.is_empty() || self.calls.values().any(Call::is_ready)
    }

    /// The next frame to write. Streams take turns, a frame each.
    pub fn transmit(&mut self) -> Option<ClientToServer> {
        if let Some(frame) = self.control.pop_front() {
            if matches!(frame.frame, Some(client_to_server::Frame::NewStream(_))) {
                self.last_sent = Some(frame.stream_id);
            }
            return Some(frame);
        }
        let after = (Bound::Excluded(self.turn), Bound::Unbounded);
        let ready = |(id, call): (&i64, &Call)| call.is_ready().then_some(*id);
        let id = self.calls.range(after).find_map(ready).or_else(|| self.calls.iter().find_map(ready))?;
        self.turn = id;
        let frame = self.calls.get_mut(&id)?.next()?;
        Some(to_agent(id, frame))
    }

    fn open(&mut self, id: i64, settings: &Settings) -> Result<Received, Violation> {
        if id != TUNNEL_WIDE {
            return Err(Violation::SettingsOnStream(id));
        }
        let supports = |revision: Revision| settings.supported_protocol_revisions.contains(&(revision as i32));
        let revision = [Revision::One, Revision::Zero].into_iter().find(|revision| supports(*revision));
        let revision = revision.ok_or(Violation::NoCommonRevision)?;
        self.state = State::Open { revision, peer_window: settings.initial_window_size };
        Ok(Received::Opened(revision))
    }
}

impl Call {
    fn is_ready(&self) -> bool {
        self.response.owes_credit() || self.request.is_ready() || (self.request.is_done() && !self.half_closed)
    }

    fn next(&mut self) -> Option<client_to_server::Frame> {
        use client_to_server::Frame;

        if let Some(credit) = self.response.take_credit() {
            return Some(Frame::WindowUpdate(credit));
        }
        match self.request.next() {
            Some(Piece::First(first)) => Some(Frame::RequestMessage(first)),
            Some(Piece::More(more)) => Some(Frame::MoreRequestData(more)),
            // A unary method does not start on the agent before the half-close.
            None if self.request.is_done() && !self.half_closed => {
                self.half_closed = true;
                Some(Frame::HalfClose(()))
            }
            None => None,
        }
    }
}

const fn to_agent(stream_id: i64, frame: client_to_server::Frame) -> ClientToServer {
    ClientToServer { stream_id, frame: Some(frame) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::tunnel::{CloseStream, MessageData, Metadata, RpcStatus, server_to_client::Frame};

    fn frame(stream_id: i64, frame: Frame) -> ServerToClient {
        ServerToClient { stream_id, frame: Some(frame) }
    }

    fn settings(id: i64, revisions: &[i32], window: u32) -> ServerToClient {
        let settings = Settings { supported_protocol_revisions: revisions.to_vec(), initial_window_size: window };
        frame(id, Frame::Settings(settings))
    }

    fn message(size: u32, data: &[u8]) -> Frame {
        Frame::ResponseMessage(MessageData { size, data: Bytes::copy_from_slice(data) })
    }

    fn close(code: i32, text: &str) -> Frame {
        let status = (code != 0).then(|| RpcStatus { code, message: text.into(), details: vec![] });
        Frame::CloseStream(CloseStream { response_trailers: Some(Metadata::default()), status })
    }

    fn open(window: u32) -> Caller {
        let mut caller = Caller::new(true, Limits::default());
        assert_eq!(caller.receive(settings(-1, &[0, 1], window)), Ok(Received::Opened(Revision::One)));
        caller
    }

    fn drain(caller: &mut Caller) -> Vec<ClientToServer> {
        std::iter::from_fn(|| caller.transmit()).collect()
    }

    /// An open tunnel with one call whose request is on the wire.
    fn calling() -> (Caller, StreamId) {
        let mut caller = open(65_536);
        let id = caller.call("/s/M", Headers::default(), Bytes::from_static(b"ask")).unwrap();
        drain(&mut caller);
        (caller, id)
    }

    fn cancels(frames: &[ClientToServer]) -> usize {
        frames.iter().filter(|frame| matches!(frame.frame, Some(client_to_server::Frame::Cancel(())))).count()
    }

    #[test]
    fn the_highest_common_revision_is_chosen_and_unknown_ones_are_skipped() {
        for (revisions, chosen) in [
            (&[0, 1][..], Ok(Revision::One)),
            (&[0, 1, 7], Ok(Revision::One)),
            (&[0], Ok(Revision::Zero)),
            (&[], Err(Violation::NoCommonRevision)),
            (&[5], Err(Violation::NoCommonRevision)),
        ] {
            let mut caller = Caller::new(true, Limits::default());
            assert_eq!(caller.receive(settings(-1, revisions, 9)), chosen.map(Received::Opened), "{revisions:?}");
        }
    }

    #[test]
    fn bad_first_frames_end_the_tunnel() {
        let first = |frame| Caller::new(true, Limits::default()).receive(frame);
        assert_eq!(first(settings(0, &[0, 1], 9)), Err(Violation::SettingsOnStream(0)));
        assert_eq!(first(frame(-1, Frame::WindowUpdate(1))), Err(Violation::NotSettings));
        assert_eq!(first(ServerToClient { stream_id: -1, frame: None }), Err(Violation::NotSettings));
    }

    #[test]
    fn no_call_starts_before_the_settings() {
        let mut caller = Caller::new(true, Limits::default());
        assert_eq!(caller.call("/s/M", Headers::default(), Bytes::new()), Err(CallRefusal::NotOpen));
        assert!(!caller.wants_transmit());
    }

    #[test]
    fn repeated_settings_are_ignored_fatal_or_cost_the_call() {
        let mut fresh = open(1);
        assert_eq!(fresh.receive(settings(-1, &[0, 1], 1)), Err(Violation::NeverCreated(-1)));
        let (mut caller, id) = calling();
        assert_eq!(caller.receive(settings(-1, &[0, 1], 1)), Ok(Received::Late));
        let fault = Err(CallFailure::Fault(StreamFault::UnexpectedSettings));
        assert_eq!(caller.receive(settings(id.0, &[0, 1], 1)), Ok(Received::Completed(id, fault)));
        assert_eq!(cancels(&drain(&mut caller)), 1);
    }

    #[test]
    fn an_agent_that_does_not_negotiate_gets_revision_zero_without_windows() {
        let mut caller = Caller::new(false, Limits::default());
        caller.call("/s/M", Headers::default(), Bytes::from(vec![0; 100_000])).unwrap();
        let frames = drain(&mut caller);
        let Some(client_to_server::Frame::NewStream(new)) = &frames[0].frame else { panic!("{:?}", frames[0]) };
        assert_eq!(new.protocol_revision, 0);
        assert_eq!(frames.len(), 1 + 7 + 1, "seven pieces without any credit, and the half-close");
        caller.receive(frame(1, message(200_000, &[0; 200_000]))).unwrap();
        assert!(!caller.wants_transmit(), "no window_update in revision zero");
    }

    #[test]
    fn a_unary_call_ends_at_close_stream_with_its_message() {
        let (mut caller, id) = calling();
        assert_eq!(caller.receive(frame(1, Frame::ResponseHeaders(Metadata::default()))), Ok(Received::Progress(id)));
        assert_eq!(caller.receive(frame(1, message(3, b"yes"))), Ok(Received::Progress(id)));
        let done = Received::Completed(id, Ok(Bytes::from_static(b"yes")));
        assert_eq!(caller.receive(frame(1, close(0, ""))), Ok(done));
        assert_eq!(caller.receive(frame(1, Frame::WindowUpdate(3))), Ok(Received::Late));
        assert_eq!(cancels(&drain(&mut caller)), 0, "no cancel after a normal end");
    }

    #[test]
    fn an_error_wins_over_a_message_and_its_text_is_clipped() {
        let (mut caller, id) = calling();
        caller.receive(frame(1, message(0, b""))).unwrap();
        let Ok(Received::Completed(ended, Err(CallFailure::Status { code, message }))) =
            caller.receive(frame(1, close(9, &"é".repeat(5_000))))
        else {
            panic!("want the status")
        };
        assert_eq!((ended, code, message.len()), (id, Code::FailedPrecondition, 1024));
    }

    #[test]
    fn every_fault_of_a_stream_fails_its_call_with_one_cancel_and_leaves_the_tunnel() {
        let too_early = StreamFault::EnvelopeTooEarly { have: 1, want: 5 };
        let too_large = StreamFault::TooLarge { size: (4 << 20) + 1, max: 4 << 20 };
        for (frames, fault) in [
            (vec![Some(message(1, b"ab"))], StreamFault::ExcessData),
            (vec![Some(message(5, b"a")), Some(message(5, b"a"))], too_early),
            (vec![Some(Frame::MoreResponseData(vec![1]))], StreamFault::NoEnvelope),
            (vec![Some(message(0, b"")), Some(message(0, b""))], StreamFault::SecondMessage),
            (vec![Some(message(70_000, &[0; 70_000]))], StreamFault::WindowExceeded),
            (vec![Some(message((4 << 20) + 1, b""))], too_large),
            (vec![None], StreamFault::UnknownFrame),
        ] {
            let (mut caller, id) = calling();
            let other = caller.call("/s/M", Headers::default(), Bytes::new()).unwrap();
            drain(&mut caller);
            let last = frames.into_iter().map(|frame| caller.receive(ServerToClient { stream_id: 1, frame })).last();
            assert_eq!(last, Some(Ok(Received::Completed(id, Err(CallFailure::Fault(fault))))));
            assert_eq!(cancels(&drain(&mut caller)), 1, "{fault:?}");
            assert_eq!(caller.receive(frame(1, close(2, "context canceled"))), Ok(Received::Late));
            caller.receive(frame(other.0, message(0, b""))).unwrap();
            assert_eq!(caller.receive(frame(other.0, close(0, ""))), Ok(Received::Completed(other, Ok(Bytes::new()))));
        }
    }

    #[test]
    fn an_ok_without_a_whole_message_is_an_error() {
        for partial in [None, Some(message(5, b"a"))] {
            let (mut caller, id) = calling();
            if let Some(partial) = partial {
                caller.receive(frame(1, partial)).unwrap();
            }
            let fault = Err(CallFailure::Fault(StreamFault::NoMessage));
            assert_eq!(caller.receive(frame(1, close(0, ""))), Ok(Received::Completed(id, fault)));
        }
    }

    #[test]
    fn a_frame_for_a_stream_that_was_never_sent_ends_the_tunnel() {
        let (mut caller, _) = calling();
        assert_eq!(caller.receive(frame(2, close(0, ""))), Err(Violation::NeverCreated(2)));
        caller.call("/s/M", Headers::default(), Bytes::new()).unwrap();
        assert_eq!(caller.receive(frame(2, close(0, ""))), Err(Violation::NeverCreated(2)), "still in our queue");
    }

    #[test]
    fn a_cancelled_call_sends_one_cancel_or_nothing_if_it_was_never_sent() {
        let (mut caller, id) = calling();
        assert!(caller.cancel(id) && !caller.cancel(id));
        assert_eq!(cancels(&drain(&mut caller)), 1);
        let unsent = caller.call("/s/M", Headers::default(), Bytes::new()).unwrap();
        assert!(caller.cancel(unsent));
        assert_eq!(drain(&mut caller), []);
        let third = caller.call("/s/M", Headers::default(), Bytes::new()).unwrap();
        assert_eq!(third, StreamId(3), "a gap is fine, a repeated ID is not");
    }

    #[test]
    fn a_stream_without_credit_does_not_hold_up_another() {
        let mut caller = open(4);
        caller.call("/s/Slow", Headers::default(), Bytes::from_static(b"12345678")).unwrap();
        caller.call("/s/Quick", Headers::default(), Bytes::from_static(b"123")).unwrap();
        let half_closed: Vec<i64> = drain(&mut caller)
            .iter()
            .filter(|frame| matches!(frame.frame, Some(client_to_server::Frame::HalfClose(()))))
            .map(|frame| frame.stream_id)
            .collect();
        assert_eq!(half_closed, [2]);
        for _ in 0..4 {
            caller.receive(frame(1, Frame::WindowUpdate(1))).unwrap();
            assert!(caller.transmit().is_some());
        }
        assert!(matches!(caller.transmit().unwrap().frame, Some(client_to_server::Frame::HalfClose(()))));
    }

    #[test]
    fn calls_beyond_the_limit_are_refused() {
        let mut caller = Caller::new(false, Limits { streams_max: 1, ..Limits::default() });
        let first = caller.call("/s/M", Headers::default(), Bytes::new()).unwrap();
        let second = caller.call("/s/M", Headers::default(), Bytes::new());
        assert_eq!(second, Err(CallRefusal::TooManyStreams(1)));
        caller.cancel(first);
        assert!(caller.call("/s/M", Headers::default(), Bytes::new()).is_ok());
    }
}
