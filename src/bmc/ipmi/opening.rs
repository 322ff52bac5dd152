//! How a session is opened with a BMC that was never asked what it can: try, and remember what worked.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::lookup_host;

use super::link::Unanswered;
use super::session::{NotOpened, Proposal, Session};
use super::timing::Timing;
use crate::bmc::{Credentials, Error, TooLong};
use crate::wire::ipmi::command::{Privilege, SET_SESSION_PRIVILEGE};
use crate::wire::ipmi::message::{CompletionCode, NETFN_APP};
use crate::wire::ipmi::open_session::Status;
use crate::wire::ipmi::rakp::Username;
use crate::wire::ipmi::suite::CipherSuite;

/// The longest password that IPMI 2.0 stores (22.30).
const MAX_PASSWORD: usize = 20;
/// How often an opening that the BMC lost track of is begun anew.
const RESTARTS: u32 = 2;
/// How often suite 3 is proposed to a BMC that did not answer suite 17: it may ignore what it does not know.
const TRIES_AFTER_SILENCE: u32 = 2;
/// What is proposed to a BMC that was never spoken to.
const FIRST: Proposal = Proposal { suite: CipherSuite::Suite17, privilege: Privilege::Administrator };

/// Opens sessions with one BMC.
pub(super) struct Opener {
    bmc: Arc<str>,
    credentials: Credentials,
    timing: Timing,
    /// What the last session was opened with.
    known_good: Option<Proposal>,
}

/// What to do after a proposal failed.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// Propose this, at most so many times per question if a number is given.
    Propose(CipherSuite, Privilege, Option<u32>),
    /// Propose the same once more.
    Again,
    /// Nothing else is left to try.
    GiveUp,
}

/// Decides what follows on `failure` of `tried`. `known_good` is whether `tried` was remembered from an earlier session.
fn next(tried: Proposal, known_good: bool, failure: &NotOpened) -> Next {
    let (suite, privilege) = (tried.suite, tried.privilege);
    let other_suite = match suite {
        CipherSuite::Suite17 => Next::Propose(CipherSuite::Suite3, privilege, None),
        // A BMC that took suite 3 before may have been upgraded since.
        CipherSuite::Suite3 if known_good => Next::Propose(CipherSuite::Suite17, privilege, None),
        CipherSuite::Suite3 => Next::GiveUp,
    };
    match failure {
        NotOpened::Refused(_, status) if status.refuses_suite() => other_suite,
        // Some BMCs say "no resources" of a suite that they do not have.
        NotOpened::Refused("open session", Status::NO_RESOURCES) | NotOpened::OtherAlgorithms => other_suite,
        NotOpened::Refused(_, status) if status.refuses_role() && privilege == Privilege::Administrator => {
            Next::Propose(suite, Privilege::Operator, None)
        }
        NotOpened::Unanswered("open session", Unanswered::Silence) if suite == CipherSuite::Suite17 && !known_good => {
            Next::Propose(CipherSuite::Suite3, privilege, Some(TRIES_AFTER_SILENCE))
        }
        NotOpened::LostTrack | NotOpened::Unanswered("RAKP message 3", Unanswered::Silence) => Next::Again,
        NotOpened::Refused(..) | NotOpened::Unanswered(..) | NotOpened::WrongPassword | NotOpened::OtherKeys => {
            Next::GiveUp
        }
    }
}

impl Opener {
    pub(super) fn new(bmc: Arc<str>, credentials: Credentials, timing: Timing) -> Self {
        Self { bmc, credentials, timing, known_good: None }
    }

    /// A session at the highest privilege level that the user has, administrator or operator.
    pub(super) async fn open(&mut self) -> Result<Session, Error> {
        let username = self.check_lengths()?;
        let peer = self.resolve().await?;
        let mut proposal = self.known_good.unwrap_or(FIRST);
        let mut known_good = self.known_good.is_some();
        let mut tries = self.timing.tries;
        let mut restarts = 0;
        // The first refusal is the telling one: later ones come from proposals of which less was hoped.
        let mut first_failure = None;
        let session = loop {
            let opened = Session::open(peer, &self.credentials, &username, proposal, &self.timing, tries).await;
            let failure = match opened {
                Ok(session) => break session,
                Err(failure) => failure,
            };
            tracing::debug!(bmc = %self.bmc, suite = proposal.suite.id(), privilege = ?proposal.privilege, ?failure, "no session");
            match next(proposal, known_good, &failure) {
                Next::Propose(suite, privilege, fewer) => {
                    proposal = Proposal { suite, privilege };
                    known_good = false;
                    self.known_good = None;
                    tries = fewer.unwrap_or(self.timing.tries);
                    first_failure.get_or_insert(failure);
                }
                Next::Again if restarts < RESTARTS => restarts += 1,
                Next::Again | Next::GiveUp => return Err(self.explain(first_failure, failure)),
            }
        };
        self.raise_privilege(session, proposal).await
    }

    /// Asks for the session's privilege level: a session starts at user level, which may only look.
    async fn raise_privilege(&mut self, mut session: Session, mut proposal: Proposal) -> Result<Session, Error> {
        let operation = "set session privilege level";
        loop {
            let level = [proposal.privilege.level()];
            let answer =
                session.command(&self.timing, self.timing.tries, (NETFN_APP, SET_SESSION_PRIVILEGE), &level).await;
            let (code, _) = answer.map_err(|unanswered| self.unanswered(operation, unanswered))?;
            match code {
                CompletionCode::OK => {
                    self.known_good = Some(proposal);
                    return Ok(session);
                }
                code if code.is_transient() => return Err(Error::Refused { bmc: self.bmc.clone(), operation, code }),
                _ if proposal.privilege > Privilege::Operator => proposal.privilege = Privilege::Operator,
                _ => return Err(self.unprivileged()),
            }
        }
    }

    fn check_lengths(&self) -> Result<Username, Error> {
        let misconfigured = |source| Error::Misconfigured { bmc: self.bmc.clone(), source };
        if self.credentials.password.reveal().len() > MAX_PASSWORD {
            return Err(misconfigured(TooLong::Password));
        }
        Username::new(self.credentials.username.as_bytes()).ok_or_else(|| misconfigured(TooLong::Username))
    }

    async fn resolve(&self) -> Result<SocketAddr, Error> {
        let unresolved = |source| Error::Unresolved { bmc: self.bmc.clone(), source };
        let host = self.credentials.address.trim_start_matches('[').trim_end_matches(']');
        let mut addresses =
            lookup_host((host, self.credentials.port)).await.map_err(|error| unresolved(Some(error)))?;
        addresses.next().ok_or_else(|| unresolved(None))
    }

    /// The error of an opening that failed first for one reason and then, with nothing left to try, for another.
    fn explain(&self, first: Option<NotOpened>, last: NotOpened) -> Error {
        let bmc = self.bmc.clone();
        match (first, last) {
            (_, NotOpened::WrongPassword | NotOpened::Refused(_, Status::UNAUTHORIZED_NAME)) => {
                Error::WrongCredentials { bmc, username: self.credentials.username.clone() }
            }
            (_, NotOpened::OtherKeys) => Error::OtherKeys { bmc },
            // Each of its tries ended in the same way, so the first silence is the longest.
            (Some(NotOpened::Unanswered(operation, unanswered)), NotOpened::Unanswered(..)) => {
                self.unanswered(operation, unanswered)
            }
            (Some(NotOpened::Refused(operation, status)), NotOpened::Refused(..)) if status.lacks_resources() => {
                Error::SessionRefused { bmc, operation, status }
            }
            (_, NotOpened::Refused(_, status)) if status.refuses_suite() => Error::NoCipherSuite { bmc, status },
            (_, NotOpened::OtherAlgorithms) => Error::NoCipherSuite { bmc, status: Status::NO_SUITE },
            (_, NotOpened::Refused(_, status)) if status.refuses_role() => self.unprivileged(),
            (_, NotOpened::Refused(operation, status)) => Error::SessionRefused { bmc, operation, status },
            (_, NotOpened::Unanswered(operation, unanswered)) => self.unanswered(operation, unanswered),
            (_, NotOpened::LostTrack) => {
                Error::SessionRefused { bmc, operation: "RAKP message 3", status: Status::INVALID_INTEGRITY }
            }
        }
    }

    fn unanswered(&self, operation: &'static str, unanswered: Unanswered) -> Error {
        let bmc = self.bmc.clone();
        match unanswered {
            Unanswered::Silence => Error::Timeout { bmc, operation, tries: self.timing.tries },
            Unanswered::Io(source) => Error::Unreachable { bmc, source },
        }
    }

    fn unprivileged(&self) -> Error {
        Error::Unprivileged { bmc: self.bmc.clone(), username: self.credentials.username.clone() }
    }
}

#[cfg(test)]
mod tests {
    use CipherSuite::{Suite3, Suite17};
    use Privilege::{Administrator, Operator};

    use super::*;

    const OPEN: &str = "open session";

    #[test]
    fn a_refused_opening_is_followed_by_a_lesser_proposal_and_never_by_a_second_password_try() {
        let refused = |step, status| NotOpened::Refused(step, Status(status));
        let silence = |step| NotOpened::Unanswered(step, Unanswered::Silence);
        let suite_3 = || Next::Propose(Suite3, Administrator, None);
        for (suite, privilege, known_good, failure, want) in [
            (Suite17, Administrator, false, refused(OPEN, 0x11), suite_3()),
            (Suite17, Administrator, false, refused(OPEN, 0x04), suite_3()),
            (Suite17, Administrator, true, refused(OPEN, 0x04), suite_3()),
            (Suite17, Administrator, false, refused(OPEN, 0x01), suite_3()),
            (Suite17, Administrator, false, NotOpened::OtherAlgorithms, suite_3()),
            (Suite3, Administrator, false, refused(OPEN, 0x11), Next::GiveUp),
            (Suite3, Administrator, true, refused(OPEN, 0x11), Next::Propose(Suite17, Administrator, None)),
            (Suite17, Administrator, false, refused("RAKP message 1", 0x09), Next::Propose(Suite17, Operator, None)),
            (Suite17, Operator, false, refused("RAKP message 1", 0x0a), Next::GiveUp),
            (Suite17, Administrator, false, refused("RAKP message 1", 0x0d), Next::GiveUp),
            (Suite17, Administrator, false, NotOpened::WrongPassword, Next::GiveUp),
            (Suite17, Administrator, false, NotOpened::OtherKeys, Next::GiveUp),
            (Suite17, Administrator, false, NotOpened::LostTrack, Next::Again),
            (Suite17, Administrator, false, silence(OPEN), Next::Propose(Suite3, Administrator, Some(2))),
            (Suite17, Administrator, true, silence(OPEN), Next::GiveUp),
            (Suite3, Administrator, false, silence(OPEN), Next::GiveUp),
            (Suite17, Administrator, false, silence("RAKP message 1"), Next::GiveUp),
            (Suite17, Administrator, false, silence("RAKP message 3"), Next::Again),
        ] {
            assert_eq!(next(Proposal { suite, privilege }, known_good, &failure), want, "{suite} {failure:?}");
        }
    }
}
