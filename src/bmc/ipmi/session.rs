//! One RMCP+ session: opened by RAKP, used for commands, closed when dropped.

use std::net::SocketAddr;

use super::link::{Link, Unanswered, random};
use super::timing::Timing;
use crate::bmc::Credentials;
use crate::time::Uptime;
use crate::wire::ipmi::command::{CLOSE_SESSION, Privilege};
use crate::wire::ipmi::message::{CompletionCode, NETFN_APP, Request, Response};
use crate::wire::ipmi::open_session::{OpenSessionRequest, OpenSessionResponse, Status};
use crate::wire::ipmi::packet::{Packet, PayloadType, encode_clear};
use crate::wire::ipmi::rakp::{Exchange, Rakp1, Rakp2, Rakp3, Rakp4, Username, name_only_role};
use crate::wire::ipmi::session::{ReplayWindow, SessionKeys};
use crate::wire::ipmi::suite::CipherSuite;

/// Why no session was opened.
#[derive(Debug)]
pub(super) enum NotOpened {
    /// A step was not answered.
    Unanswered(&'static str, Unanswered),
    /// The BMC answered a step with an error.
    Refused(&'static str, Status),
    /// The BMC chose algorithms that were not proposed.
    OtherAlgorithms,
    /// The BMC does not know the password.
    WrongPassword,
    /// The BMC knows the password, and still disagrees about the keys.
    OtherKeys,
    /// The BMC knows the password, and does not accept that we do: it lost track of the exchange.
    LostTrack,
}

/// What a session is opened with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proposal {
    pub(super) suite: CipherSuite,
    pub(super) privilege: Privilege,
}

const OPEN_SESSION: &str = "open session";
const RAKP_1: &str = "RAKP message 1";
const RAKP_3: &str = "RAKP message 3";

pub(super) struct Session {
    link: Link,
    keys: SessionKeys,
    console_id: u32,
    bmc_id: u32,
    /// Sequence number of the last packet sent.
    sequence: u32,
    /// `rqSeq` of the last request.
    request: u8,
    inbound: ReplayWindow,
    /// When the BMC last answered in this session.
    pub(super) used: Uptime,
}

/// A question outside the session: its payload but for the tag, which each try counts up.
struct Step<'a> {
    question: PayloadType,
    answer: PayloadType,
    encode: &'a (dyn Fn(u8) -> Vec<u8> + Sync),
    tag: u8,
}

impl Session {
    /// Opens a session with `peer`, asking each question at most `tries` times.
    pub(super) async fn open(
        peer: SocketAddr,
        credentials: &Credentials,
        username: &Username,
        proposal: Proposal,
        timing: &Timing,
        tries: u32,
    ) -> Result<Self, NotOpened> {
        let link =
            Link::connect(peer).await.map_err(|error| NotOpened::Unanswered(OPEN_SESSION, Unanswered::Io(error)))?;
        let password = credentials.password.reveal().as_bytes();
        // 0 is no ID, and the top bit keeps ours apart from the small numbers that BMCs like.
        let console_id = u32::from_le_bytes(random()) | 0x8000_0000;
        let algorithms = proposal.suite.algorithms();

        let encode = |tag| OpenSessionRequest { tag, privilege: 0, console_id, algorithms }.encode();
        let opened = step(
            &link,
            timing,
            tries,
            (OPEN_SESSION, PayloadType::OpenSessionRequest, PayloadType::OpenSessionResponse),
            &encode,
            |payload| OpenSessionResponse::decode(payload).ok().map(|opened| (opened.tag, opened)),
        )
        .await?;
        let accepted = match opened.accepted {
            Some(accepted) if accepted.algorithms == algorithms => accepted,
            Some(_) => return Err(NotOpened::OtherAlgorithms),
            None => return Err(NotOpened::Refused(OPEN_SESSION, opened.status)),
        };

        let bmc_id = accepted.bmc_id;
        let console_random = random();
        let role = name_only_role(proposal.privilege.level());
        let encode = |tag| Rakp1 { tag, bmc_id, console_random, role, username: username.clone() }.encode();
        let answer = step(&link, timing, tries, (RAKP_1, PayloadType::Rakp1, PayloadType::Rakp2), &encode, |payload| {
            Rakp2::decode(payload).ok().map(|rakp2| (rakp2.tag, rakp2))
        })
        .await?;
        let proof = answer.proof.map_err(|status| match status {
            Status::INVALID_SESSION | Status::INACTIVE_SESSION => NotOpened::LostTrack,
            status => NotOpened::Refused(RAKP_1, status),
        })?;
        let exchange = Exchange {
            suite: proposal.suite,
            console_id,
            bmc_id,
            console_random,
            bmc_random: proof.bmc_random,
            guid: proof.guid,
            role,
            username: username.clone(),
        };
        exchange.verify_rakp2(password, &proof.code).map_err(|_| NotOpened::WrongPassword)?;

        let code = exchange.rakp3_code(password);
        let encode = |tag| Rakp3 { tag, status: Status::OK, bmc_id, code: code.clone() }.encode();
        let answer = step(&link, timing, tries, (RAKP_3, PayloadType::Rakp3, PayloadType::Rakp4), &encode, |payload| {
            Rakp4::decode(payload).ok().map(|rakp4| (rakp4.tag, rakp4))
        })
        .await?;
        match answer.proof {
            Ok(code) => exchange.verify_rakp4(password, &code).map_err(|_| NotOpened::OtherKeys)?,
            // The BMC answered a repeated message 1 with a new random number, or a repeated message 3 out of turn.
            Err(Status::INVALID_INTEGRITY | Status::INVALID_SESSION | Status::INACTIVE_SESSION) => {
                return Err(NotOpened::LostTrack);
            }
            Err(status) => return Err(NotOpened::Refused(RAKP_3, status)),
        }
        let [request] = random();
        Ok(Self {
            link,
            keys: exchange.keys(password),
            console_id,
            bmc_id,
            sequence: 0,
            request,
            inbound: ReplayWindow::default(),
            used: Uptime::now(),
        })
    }

    /// Sends one command up to `tries` times; returns how the BMC ended it, and the data of its answer.
    ///
    /// Each try has a fresh session sequence number and the same `rqSeq`, so that a BMC can tell a repetition from a new
    /// command, and an answer to any try is an answer to the command.
    pub(super) async fn command(
        &mut self,
        timing: &Timing,
        tries: u32,
        (netfn, command): (u8, u8),
        data: &[u8],
    ) -> Result<(CompletionCode, Vec<u8>), Unanswered> {
        self.request = self.request.wrapping_add(1) & 0x3f;
        let message = Request { netfn, sequence: self.request, command, data }.encode();
        // The link and the session's counters are apart, so that both can be lent out.
        let Self { link, keys, console_id, bmc_id, sequence, request, inbound, used } = self;
        let mut counters = (sequence, inbound);
        let answer = link
            .exchange(
                timing,
                tries,
                &mut counters,
                |(sequence, _)| seal(keys, *bmc_id, sequence, &message),
                |(_, inbound), datagram| {
                    let Ok(Packet::Plus(plus)) = Packet::decode(datagram) else { return None };
                    if plus.session_id != *console_id || plus.payload_type != PayloadType::Ipmi {
                        return None;
                    }
                    let payload = keys.open(&plus).ok()?;
                    // Only now is the number known to be the BMC's own.
                    if !inbound.accept(plus.sequence) {
                        return None;
                    }
                    let response = Response::decode(&payload).ok()?;
                    ((response.netfn, response.sequence, response.command) == (netfn, *request, command))
                        .then(|| (response.completion, response.data.to_vec()))
                },
            )
            .await?;
        *used = Uptime::now();
        Ok(answer)
    }
}

impl Drop for Session {
    /// Frees the BMC's session slot; BMCs have few of them. Nobody waits for the answer.
    fn drop(&mut self) {
        let data = self.bmc_id.to_le_bytes();
        let sequence = self.request.wrapping_add(1) & 0x3f;
        let message = Request { netfn: NETFN_APP, sequence, command: CLOSE_SESSION, data: &data }.encode();
        let datagram = seal(&self.keys, self.bmc_id, &mut self.sequence, &message);
        self.link.send_and_forget(&datagram);
    }
}

/// Seals `message` under the next sequence number, which is never 0.
fn seal(keys: &SessionKeys, bmc_id: u32, sequence: &mut u32, message: &[u8]) -> Vec<u8> {
    *sequence = sequence.checked_add(1).unwrap_or(1);
    keys.seal(bmc_id, *sequence, message, random())
}

/// Asks one question of the key exchange. Only an answer to the newest try counts: a BMC may have begun anew with it.
async fn step<T>(
    link: &Link,
    timing: &Timing,
    tries: u32,
    (name, question, answer): (&'static str, PayloadType, PayloadType),
    encode: &(dyn Fn(u8) -> Vec<u8> + Sync),
    decode: impl Fn(&[u8]) -> Option<(u8, T)>,
) -> Result<T, NotOpened> {
    let [tag] = random();
    let mut step = Step { question, answer, encode, tag };
    link.exchange(
        timing,
        tries,
        &mut step,
        |step| {
            step.tag = step.tag.wrapping_add(1);
            encode_clear(step.question, &(step.encode)(step.tag))
        },
        |step, datagram| {
            let Ok(Packet::Plus(plus)) = Packet::decode(datagram) else { return None };
            if plus.payload_type != step.answer || plus.session_id != 0 {
                return None;
            }
            decode(plus.payload).filter(|(tag, _)| *tag == step.tag).map(|(_, answer)| answer)
        },
    )
    .await
    .map_err(|unanswered| NotOpened::Unanswered(name, unanswered))
}
