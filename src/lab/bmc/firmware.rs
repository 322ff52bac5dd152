//! What a simulated BMC answers: its sessions, and the commands it has.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Chassis, State};
use crate::machine::PowerState;
use crate::secret::Secret;
use crate::time::Uptime;
use crate::wire::ipmi::Malformed;
use crate::wire::ipmi::command::{
    CHASSIS_CONTROL, CLOSE_SESSION, ChassisControl, ChassisStatus, GET_BOOT_OPTIONS,
    GET_CHANNEL_AUTHENTICATION_CAPABILITIES, GET_CHANNEL_CIPHER_SUITES, GET_CHASSIS_STATUS, GET_DEVICE_ID,
    GET_SYSTEM_GUID, Privilege, SET_BOOT_OPTIONS, SET_SESSION_PRIVILEGE, encode_authentication_capabilities,
    encode_cipher_suites,
};
use crate::wire::ipmi::message::{CompletionCode, NETFN_APP, NETFN_CHASSIS, Request, Response};
use crate::wire::ipmi::open_session::{Accepted, OpenSessionRequest, OpenSessionResponse, Status};
use crate::wire::ipmi::packet::{Packet, PayloadType, Plus, encode_clear, encode_sessionless};
use crate::wire::ipmi::rakp::{BmcProof, Exchange, Rakp1, Rakp2, Rakp3, Rakp4};
use crate::wire::ipmi::session::{ReplayWindow, SessionKeys};
use crate::wire::ipmi::suite::CipherSuite;

/// How many sessions a BMC has, half-open ones included.
const MAX_SESSIONS: usize = 16;
/// A session unused for longer is gone (IPMI 2.0 6.12.15).
const SESSION_IDLE: Duration = Duration::from_secs(60);

pub(super) struct Firmware {
    guid: [u8; 16],
    sessions: Vec<Session>,
}

struct Session {
    bmc_id: u32,
    console_id: u32,
    suite: CipherSuite,
    used: Uptime,
    stage: Stage,
}

enum Stage {
    /// Open Session was answered.
    Opened,
    /// RAKP message 2 was sent: the console has still to prove that it knows the password.
    Challenged { exchange: Box<Exchange>, password: Secret<String> },
    /// RAKP message 4 was sent.
    Active { keys: Box<SessionKeys>, outbound: u32, inbound: ReplayWindow, privilege: Privilege },
}

/// Why a datagram is not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ignored {
    #[error("it is malformed: {0}")]
    Malformed(Malformed),
    #[error("it belongs to no session")]
    NoSession,
    #[error("its sequence number was seen before")]
    Replayed,
    #[error("it is a payload that only BMCs send")]
    NotForBmcs,
}

/// What a command is answered with: data, or a completion code.
type Answer = Result<Vec<u8>, CompletionCode>;

impl Firmware {
    pub(super) fn new() -> Self {
        Self { guid: random(), sessions: Vec::new() }
    }

    /// Takes one datagram; returns the reply to it.
    pub(super) fn on(
        &mut self,
        now: Uptime,
        datagram: &[u8],
        chassis: &dyn Chassis,
        state: &State,
    ) -> Result<Vec<u8>, Ignored> {
        if state.faults.take_restart() {
            self.sessions.clear();
        }
        match Packet::decode(datagram).map_err(Ignored::Malformed)? {
            Packet::Sessionless(message) => {
                Ok(encode_sessionless(&self.outside_session(message, state).map_err(Ignored::Malformed)?))
            }
            Packet::Plus(plus) => match (plus.payload_type, plus.session_id) {
                (PayloadType::Ipmi, 0) => {
                    let reply = self.outside_session(plus.payload, state).map_err(Ignored::Malformed)?;
                    Ok(encode_clear(PayloadType::Ipmi, &reply))
                }
                (PayloadType::Ipmi, _) => self.inside_session(now, &plus, chassis, state),
                (PayloadType::OpenSessionRequest, _) => {
                    let request = OpenSessionRequest::decode(plus.payload).map_err(Ignored::Malformed)?;
                    Ok(encode_clear(PayloadType::OpenSessionResponse, &self.open(now, request, state).encode()))
                }
                (PayloadType::Rakp1, _) => {
                    let rakp1 = Rakp1::decode(plus.payload).map_err(Ignored::Malformed)?;
                    Ok(encode_clear(PayloadType::Rakp2, &self.challenge(now, rakp1, state).encode()))
                }
                (PayloadType::Rakp3, _) => {
                    let rakp3 = Rakp3::decode(plus.payload).map_err(Ignored::Malformed)?;
                    Ok(encode_clear(PayloadType::Rakp4, &self.activate(now, &rakp3, state).encode()))
                }
                (PayloadType::OpenSessionResponse | PayloadType::Rakp2 | PayloadType::Rakp4, _) => {
                    Err(Ignored::NotForBmcs)
                }
            },
        }
    }

    fn open(&mut self, now: Uptime, request: OpenSessionRequest, state: &State) -> OpenSessionResponse {
        let OpenSessionRequest { tag, console_id, algorithms, .. } = request;
        let refuse = |status| OpenSessionResponse { tag, status, console_id, accepted: None };
        let suite = CipherSuite::from_algorithms(algorithms)
            .filter(|suite| *suite == CipherSuite::Suite3 || !state.faults.refuses_suite_17());
        let Some(suite) = suite else { return refuse(Status::NO_SUITE) };
        if !self.make_room(now) {
            return refuse(Status::NO_RESOURCES);
        }
        let bmc_id = loop {
            let id = u32::from_le_bytes(random());
            if id != 0 && self.find(id).is_none() {
                break id;
            }
        };
        self.sessions.push(Session { bmc_id, console_id, suite, used: now, stage: Stage::Opened });
        OpenSessionResponse { tag, status: Status::OK, console_id, accepted: Some(Accepted { bmc_id, algorithms }) }
    }

    /// Drops idle sessions, then if need be the oldest half-open one; whether a session fits.
    fn make_room(&mut self, now: Uptime) -> bool {
        self.sessions.retain(|session| now.since(session.used) < SESSION_IDLE);
        if self.sessions.len() >= MAX_SESSIONS {
            let half_open = self.sessions.iter().position(|session| !matches!(session.stage, Stage::Active { .. }));
            half_open.map(|at| self.sessions.remove(at));
        }
        self.sessions.len() < MAX_SESSIONS
    }

    fn challenge(&mut self, now: Uptime, rakp1: Rakp1, state: &State) -> Rakp2 {
        let guid = self.guid;
        let Rakp1 { tag, bmc_id, console_random, role, username } = rakp1;
        let Some(session) = self.find(bmc_id).filter(|session| !matches!(session.stage, Stage::Active { .. })) else {
            return Rakp2 { tag, console_id: 0, proof: Err(Status::INVALID_SESSION) };
        };
        let console_id = session.console_id;
        let refuse = |status| Rakp2 { tag, console_id, proof: Err(status) };
        if Privilege::from_level(role).is_none() {
            return refuse(Status::INVALID_ROLE);
        }
        let Some(password) = state.password_of(&username) else { return refuse(Status::UNAUTHORIZED_NAME) };
        session.used = now;
        let bmc_random = random();
        let exchange =
            Exchange { suite: session.suite, console_id, bmc_id, console_random, bmc_random, guid, role, username };
        let code = exchange.rakp2_code(password.reveal().as_bytes());
        session.stage = Stage::Challenged { exchange: Box::new(exchange), password };
        Rakp2 { tag, console_id, proof: Ok(BmcProof { bmc_random, guid, code }) }
    }

    fn activate(&mut self, now: Uptime, rakp3: &Rakp3, state: &State) -> Rakp4 {
        let tag = rakp3.tag;
        let Some(session) = self.find(rakp3.bmc_id) else {
            return Rakp4 { tag, console_id: 0, proof: Err(Status::INVALID_SESSION) };
        };
        let console_id = session.console_id;
        // A repeated message 3 finds the session active. Some BMCs take that badly, and so does this one.
        let Stage::Challenged { exchange, password } = &session.stage else {
            return Rakp4 { tag, console_id, proof: Err(Status::INACTIVE_SESSION) };
        };
        let password = password.reveal().as_bytes();
        if rakp3.status != Status::OK || exchange.verify_rakp3(password, &rakp3.code).is_err() {
            self.sessions.retain(|session| session.bmc_id != rakp3.bmc_id);
            return Rakp4 { tag, console_id, proof: Err(Status::INVALID_INTEGRITY) };
        }
        let proof = Ok(exchange.rakp4_code(password));
        let keys = Box::new(exchange.keys(password));
        session.stage =
            Stage::Active { keys, outbound: 0, inbound: ReplayWindow::default(), privilege: Privilege::User };
        session.used = now;
        state.sessions_opened.fetch_add(1, Ordering::Relaxed);
        Rakp4 { tag, console_id, proof }
    }

    fn find(&mut self, bmc_id: u32) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|session| session.bmc_id == bmc_id)
    }

    /// What a console may ask before it logs in.
    fn outside_session(&self, message: &[u8], state: &State) -> Result<Vec<u8>, Malformed> {
        let request = Request::decode(message)?;
        Ok(respond(&request, self.about_itself(&request, state).unwrap_or(Err(CompletionCode::INSUFFICIENT_PRIVILEGE))))
    }

    fn inside_session(
        &mut self,
        now: Uptime,
        plus: &Plus<'_>,
        chassis: &dyn Chassis,
        state: &State,
    ) -> Result<Vec<u8>, Ignored> {
        let session = self.find(plus.session_id).ok_or(Ignored::NoSession)?;
        let bmc_id = session.bmc_id;
        if now.since(session.used) >= SESSION_IDLE {
            self.sessions.retain(|session| session.bmc_id != bmc_id);
            return Err(Ignored::NoSession);
        }
        let Stage::Active { keys, inbound, privilege, .. } = &mut session.stage else { return Err(Ignored::NoSession) };
        let message = keys.open(plus).map_err(Ignored::Malformed)?;
        if !inbound.accept(plus.sequence) {
            return Err(Ignored::Replayed);
        }
        let request = Request::decode(&message).map_err(Ignored::Malformed)?;
        session.used = now;
        let (answer, closes) = match (request.netfn, request.command) {
            (NETFN_APP, CLOSE_SESSION) => match request.data == bmc_id.to_le_bytes() {
                true => (Ok(Vec::new()), true),
                false => (Err(CompletionCode::INVALID_SESSION), false),
            },
            (NETFN_APP, SET_SESSION_PRIVILEGE) => (set_privilege(privilege, request.data), false),
            (NETFN_CHASSIS, _) => (chassis_command(&request, *privilege, chassis, state), false),
            _ => {
                let answer = self.about_itself(&request, state).unwrap_or(Err(CompletionCode::INVALID_COMMAND));
                (answer, false)
            }
        };
        let message = respond(&request, answer);
        let session = self.find(bmc_id).ok_or(Ignored::NoSession)?;
        let Stage::Active { keys, outbound, .. } = &mut session.stage else { return Err(Ignored::NoSession) };
        *outbound = outbound.checked_add(1).unwrap_or(1);
        let reply = keys.seal(session.console_id, *outbound, &message, random());
        if closes {
            self.sessions.retain(|session| session.bmc_id != bmc_id);
        }
        Ok(reply)
    }

    /// Commands about the BMC, which are open to everyone; `None` for all others.
    fn about_itself(&self, request: &Request<'_>, state: &State) -> Option<Answer> {
        let suites: &[CipherSuite] = match state.faults.refuses_suite_17() {
            true => &[CipherSuite::Suite3],
            false => &[CipherSuite::Suite17, CipherSuite::Suite3],
        };
        Some(match (request.netfn, request.command) {
            (NETFN_APP, GET_CHANNEL_AUTHENTICATION_CAPABILITIES) => Ok(encode_authentication_capabilities()),
            (NETFN_APP, GET_CHANNEL_CIPHER_SUITES) => {
                encode_cipher_suites(suites, request.data).map_err(|_| CompletionCode::INVALID_LENGTH)
            }
            (NETFN_APP, GET_SYSTEM_GUID) => Ok(self.guid.to_vec()),
            // Device 20h, firmware 1.0, IPMI 2.0, a chassis device, of nobody.
            (NETFN_APP, GET_DEVICE_ID) => Ok(vec![0x20, 1, 1, 0, 2, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            _ => return None,
        })
    }
}

fn set_privilege(privilege: &mut Privilege, data: &[u8]) -> Answer {
    match data {
        [0] => {}
        [level] => *privilege = Privilege::from_level(*level).ok_or(CompletionCode::NOT_SUPPORTED)?,
        _ => return Err(CompletionCode::INVALID_LENGTH),
    }
    Ok(vec![privilege.level()])
}

fn chassis_command(request: &Request<'_>, privilege: Privilege, chassis: &dyn Chassis, state: &State) -> Answer {
    if state.faults.take_busy() {
        return Err(CompletionCode::BUSY);
    }
    if request.command != GET_CHASSIS_STATUS && privilege < Privilege::Operator {
        return Err(CompletionCode::INSUFFICIENT_PRIVILEGE);
    }
    let power_on = chassis.power() == PowerState::On;
    match request.command {
        GET_CHASSIS_STATUS => Ok(ChassisStatus { power_on }.encode()),
        CHASSIS_CONTROL => {
            let control = ChassisControl::decode(request.data).map_err(|_| CompletionCode::INVALID_DATA)?;
            let needs_power = !matches!(control, ChassisControl::PowerUp | ChassisControl::PowerDown);
            if needs_power && !power_on {
                return Err(CompletionCode::PRESENT_STATE);
            }
            chassis.control(control);
            Ok(Vec::new())
        }
        SET_BOOT_OPTIONS => {
            if let Some(boot_override) = state.with_options(|options| options.set(request.data))? {
                chassis.boot_override(boot_override);
            }
            Ok(Vec::new())
        }
        GET_BOOT_OPTIONS => state.with_options(|options| options.get(request.data)),
        _ => Err(CompletionCode::INVALID_COMMAND),
    }
}

fn respond(request: &Request<'_>, answer: Answer) -> Vec<u8> {
    let (completion, data) = match answer {
        Ok(data) => (CompletionCode::OK, data),
        Err(code) => (code, Vec::new()),
    };
    Response { netfn: request.netfn, sequence: request.sequence, command: request.command, completion, data: &data }
        .encode()
}

fn random<const N: usize>() -> [u8; N] {
    let mut octets = [0; N];
    getrandom::fill(&mut octets).expect("the kernel has randomness once it has started processes");
    octets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::ipmi::command::BootOverride;
    use crate::wire::ipmi::rakp::{Username, name_only_role};

    struct Brick;

    impl Chassis for Brick {
        fn power(&self) -> PowerState {
            PowerState::Off
        }
        fn control(&self, _: ChassisControl) {}
        fn boot_override(&self, _: BootOverride) {}
    }

    fn open_request(tag: u8) -> Vec<u8> {
        let algorithms = CipherSuite::Suite17.algorithms();
        let request = OpenSessionRequest { tag, privilege: 0, console_id: 7, algorithms };
        encode_clear(PayloadType::OpenSessionRequest, &request.encode())
    }

    fn opened(reply: &[u8]) -> OpenSessionResponse {
        let Ok(Packet::Plus(plus)) = Packet::decode(reply) else { panic!("no RMCP+ packet") };
        OpenSessionResponse::decode(plus.payload).unwrap()
    }

    #[test]
    fn half_open_sessions_give_way_and_stay_few() {
        let (mut firmware, state) = (Firmware::new(), State::default());
        for tag in 0..100 {
            let reply = firmware.on(Uptime::from_secs(1), &open_request(tag), &Brick, &state).unwrap();
            assert_eq!(opened(&reply).status, Status::OK);
            assert!(firmware.sessions.len() <= MAX_SESSIONS);
        }
    }

    #[test]
    fn a_session_ends_sixty_seconds_after_its_last_use() {
        let (mut firmware, state) = (Firmware::new(), State::default());
        firmware.on(Uptime::from_secs(1), &open_request(1), &Brick, &state).unwrap();
        firmware.on(Uptime::from_secs(60), &open_request(2), &Brick, &state).unwrap();
        assert_eq!(firmware.sessions.len(), 2);
        firmware.on(Uptime::from_secs(61), &open_request(3), &Brick, &state).unwrap();
        assert_eq!(firmware.sessions.len(), 2, "the first is gone, the third is there");
    }

    #[test]
    fn nobody_logs_in_without_a_user() {
        let (mut firmware, state) = (Firmware::new(), State::default());
        let reply = firmware.on(Uptime::from_secs(1), &open_request(1), &Brick, &state).unwrap();
        let bmc_id = opened(&reply).accepted.unwrap().bmc_id;
        for name in [&b""[..], b"admin"] {
            let username = Username::new(name).unwrap();
            let rakp1 = Rakp1 { tag: 2, bmc_id, console_random: [0; 16], role: name_only_role(4), username };
            let datagram = encode_clear(PayloadType::Rakp1, &rakp1.encode());
            let reply = firmware.on(Uptime::from_secs(1), &datagram, &Brick, &state).unwrap();
            let Ok(Packet::Plus(plus)) = Packet::decode(&reply) else { panic!("no RMCP+ packet") };
            assert_eq!(Rakp2::decode(plus.payload).unwrap().proof, Err(Status::UNAUTHORIZED_NAME));
        }
    }

    proptest! {
        #[test]
        fn no_datagram_stops_it(
            kind in any::<u8>(),
            session in any::<bool>(),
            body in prop::collection::vec(any::<u8>(), 0..120),
            cut in 0usize..140,
        ) {
            let (mut firmware, state) = (Firmware::new(), State::default());
            let reply = firmware.on(Uptime::from_secs(1), &open_request(1), &Brick, &state).unwrap();
            let id = if session { opened(&reply).accepted.unwrap().bmc_id } else { 0 };
            let mut datagram = vec![6, 0, 0xff, 7, 6, kind];
            datagram.extend_from_slice(&id.to_le_bytes());
            datagram.extend_from_slice(&[1, 0, 0, 0, body.len() as u8, 0]);
            datagram.extend_from_slice(&body);
            datagram.truncate(cut);
            let _ = firmware.on(Uptime::from_secs(2), &datagram, &Brick, &state);
            let _ = firmware.on(Uptime::from_secs(2), &body, &Brick, &state);
        }
    }
}
