//! The DHCP client of one port: RFC 2131's state machine as a value, with the probe of RFC 5227 before an address is used.
//!
//! Ours rather than smoltcp's, which has no INIT-REBOOT (a box keeps its address over a restart), no DECLINE and probe,
//! and no options 121 and 42; its wire types carry the frames.

mod lease;
mod messages;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::time::Duration;

pub use lease::{Lease, NoLease};

use super::claim::{BRIEF, Claim, Verdict};
use super::frame::{Arp, Destination};
use super::jitter::Jitter;
use super::mac::Mac;
use crate::time::Uptime;
use crate::wire::dhcp::{self, Message, MessageType, Op};
use messages::Messages;

/// First and longest pause between two requests, and what is added or taken at random (RFC 2131 section 4.1).
const FIRST_PAUSE: Duration = Duration::from_secs(4);
const LONGEST_PAUSE: Duration = Duration::from_secs(64);
const SPREAD: Duration = Duration::from_secs(1);
/// How often an offer is asked for, and how often a former address, before a new one is sought.
const REQUESTS: u32 = 4;
const REBOOT_REQUESTS: u32 = 2;
/// First pause when a former address is asked for: whoever knows it answers at once, and the boot waits.
const REBOOT_PAUSE: Duration = Duration::from_secs(2);
/// Shortest pause between two renewals (RFC 2131 section 4.4.5).
const RENEW_PAUSE: Duration = Duration::from_secs(60);
/// The pause after an address was declined (RFC 2131 section 3.1, step 5).
const DECLINE_PAUSE: Duration = Duration::from_secs(10);
/// Longest pause after a server has refused several times in a row.
const NAK_PAUSE: Duration = Duration::from_secs(60);

/// What the client does about its address.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    /// The link has no carrier.
    Down,
    /// Asks every server for an offer.
    Selecting,
    /// Has chosen this offer.
    Requesting(Lease),
    /// Asks whether a former address is still good (INIT-REBOOT).
    Rebooting(Ipv4Addr),
    /// Looks whether anyone else has the address.
    Checking(Lease),
    /// Uses it.
    Bound,
    /// Asks the server for more time.
    Renewing,
    /// Asks any server for more time.
    Rebinding,
    /// Waits before it starts again.
    Pausing,
}

/// A lease in use.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Held {
    lease: Lease,
    /// When it was asked for: from then on it counts (RFC 2131 section 4.4.1).
    since: Uptime,
}

impl Held {
    fn expires(&self) -> Option<Uptime> {
        self.lease.lasts.map(|lasts| self.since + lasts)
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message.
    Send(Message, Destination),
    /// Send an ARP packet.
    Arp(Arp),
    /// The lease in use has changed.
    Changed(Change),
}

/// What happened to the lease, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// An address came into use.
    Bound,
    /// It may be used for longer.
    Renewed,
    /// Its time is over and no server answered.
    Expired,
    /// A server refused it.
    Refused,
    /// Another station has it.
    Declined(Mac),
}

impl Change {
    /// The counter, and the words of the log line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Renewed => "renewed",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Declined(_) => "declined",
        }
    }
}

/// The client of one port.
#[derive(Clone, Debug)]
pub struct Client {
    messages: Messages,
    phase: Phase,
    held: Option<Held>,
    /// The address in use or being looked at, while it is probed, announced and defended.
    claim: Option<Claim>,
    /// The address that is asked for first: of the lease before, or of the run before.
    former: Option<Ipv4Addr>,
    /// When the phase goes on by itself.
    at: Option<Uptime>,
    attempt: u32,
    naks: u32,
    /// When the request was first sent that is to be answered.
    asked: Uptime,
}

impl Client {
    /// A client without carrier. `former` is the address it had before a restart.
    pub fn new(own: Mac, hostname: &str, former: Option<Ipv4Addr>) -> Self {
        Self {
            messages: Messages::new(own, hostname),
            phase: Phase::Down,
            held: None,
            claim: None,
            former,
            at: None,
            attempt: 0,
            naks: 0,
            asked: Uptime::default(),
        }
    }

    /// The lease in use.
    pub fn lease(&self) -> Option<&Lease> {
        self.held.as_ref().map(|held| &held.lease)
    }

    /// Until when the lease may be used; `None` without one or for one without end.
    pub fn expires(&self) -> Option<Uptime> {
        self.held.as_ref().and_then(Held::expires)
    }

    /// What it does, for the page.
    pub fn doing(&self) -> &'static str {
        match self.phase {
            Phase::Down => "no carrier",
            Phase::Selecting => "looking for a DHCP server",
            Phase::Requesting(_) => "asking for the offered address",
            Phase::Rebooting(_) => "asking for its former address",
            Phase::Checking(_) => "looking whether the address is free",
            Phase::Bound => "bound",
            Phase::Renewing => "renewing",
            Phase::Rebinding => "renewing at any server",
            Phase::Pausing => "waiting before it asks again",
        }
    }

    /// When [`Self::on_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Uptime> {
        let claim = self.claim.as_ref().and_then(Claim::deadline);
        [self.at, claim, self.expires()].into_iter().flatten().min()
    }

    /// The link came up or went down. A lease outlives that; on the way up it is asked for again.
    pub fn on_carrier(&mut self, now: Uptime, up: bool, jitter: &mut Jitter) -> Vec<Action> {
        match (up, &self.phase) {
            (true, Phase::Down) => self.start(now, jitter),
            (false, phase) if *phase != Phase::Down => {
                (self.phase, self.at) = (Phase::Down, None);
                // An address that was only looked at is looked at anew.
                let held = self.lease().map(|lease| lease.address.address());
                self.claim.take_if(|claim| Some(claim.address()) != held);
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    /// What is due at `now`.
    pub fn on_deadline(&mut self, now: Uptime, jitter: &mut Jitter) -> Vec<Action> {
        if self.expires().is_some_and(|expires| expires <= now) {
            return self.lose(now, Change::Expired, jitter);
        }
        let verdict = match &mut self.claim {
            Some(claim) => claim.on_deadline(now, self.messages.own(), jitter),
            None => Verdict::Nothing,
        };
        let mut actions = self.on_verdict(now, verdict);
        if self.at.is_some_and(|at| at <= now) {
            actions.extend(self.go_on(now, jitter));
        }
        actions
    }

    /// What another station's ARP packet means for the address.
    pub fn on_arp(&mut self, now: Uptime, arp: &Arp) -> Vec<Action> {
        let verdict = match &mut self.claim {
            Some(claim) => claim.on_arp(now, self.messages.own(), arp),
            None => Verdict::Nothing,
        };
        self.on_verdict(now, verdict)
    }

    /// A server's message that `station` sent. What answers nothing that was asked means nothing.
    ///
    /// # Errors
    ///
    /// [`NoLease`] for an answer that gives nothing usable; it changes nothing.
    pub fn on_message(
        &mut self,
        now: Uptime,
        station: Mac,
        message: &Message,
        jitter: &mut Jitter,
    ) -> Result<Vec<Action>, NoLease> {
        if message.op != Op::Reply || !self.messages.answers(message) {
            return Ok(Vec::new());
        }
        match (message.message_type(), &self.phase) {
            (Some(MessageType::Offer), Phase::Selecting) => {
                let lease = Lease::read(message, station)?;
                (self.phase, self.attempt, self.asked) = (Phase::Requesting(lease), 0, now);
                Ok(self.go_on(now, jitter))
            }
            (Some(MessageType::Ack), Phase::Requesting(offer)) => {
                let lease = Lease::read(message, station)?;
                // Another server's: whom we did not choose has nothing to give.
                if lease.server == offer.server { Ok(self.accept(now, lease, jitter)) } else { Ok(Vec::new()) }
            }
            (Some(MessageType::Ack), Phase::Rebooting(_) | Phase::Renewing | Phase::Rebinding) => {
                let lease = Lease::read(message, station)?;
                Ok(self.accept(now, lease, jitter))
            }
            (Some(MessageType::Nak), Phase::Requesting(offer))
                if message.address(dhcp::SERVER_ID).is_some_and(|server| server != offer.server) =>
            {
                Ok(Vec::new())
            }
            (
                Some(MessageType::Nak),
                Phase::Requesting(_) | Phase::Rebooting(_) | Phase::Renewing | Phase::Rebinding,
            ) => Ok(self.refused(now, jitter)),
            _ => Ok(Vec::new()),
        }
    }

    /// Begins: with the former address if there is one.
    fn start(&mut self, now: Uptime, jitter: &mut Jitter) -> Vec<Action> {
        self.messages.renumber(jitter);
        let former = self.lease().map(|lease| lease.address.address()).or(self.former);
        self.phase = former.map_or(Phase::Selecting, Phase::Rebooting);
        (self.attempt, self.asked) = (0, now);
        self.go_on(now, jitter)
    }

    /// Does the phase's next step.
    fn go_on(&mut self, now: Uptime, jitter: &mut Jitter) -> Vec<Action> {
        let broadcast = Destination::Broadcast { from: Ipv4Addr::UNSPECIFIED };
        match &self.phase {
            Phase::Down | Phase::Checking(_) => {
                self.at = None;
                Vec::new()
            }
            Phase::Selecting => {
                self.asked = now;
                let message = self.messages.discover(self.former);
                self.again(now, FIRST_PAUSE, jitter);
                vec![Action::Send(message, broadcast)]
            }
            Phase::Requesting(_) if self.attempt >= REQUESTS => self.select(now, jitter),
            Phase::Requesting(offer) => {
                let message = self.messages.request_offer(offer);
                self.again(now, FIRST_PAUSE, jitter);
                vec![Action::Send(message, broadcast)]
            }
            // Nobody knows it here: with a lease in use that goes on until it ends or a better one comes.
            Phase::Rebooting(_) if self.attempt >= REBOOT_REQUESTS => {
                self.former = None;
                self.select(now, jitter)
            }
            Phase::Rebooting(address) => {
                let message = self.messages.request_former(*address);
                self.again(now, REBOOT_PAUSE, jitter);
                vec![Action::Send(message, broadcast)]
            }
            Phase::Bound | Phase::Renewing | Phase::Rebinding => self.renew(now, jitter),
            Phase::Pausing => self.start(now, jitter),
        }
    }

    fn select(&mut self, now: Uptime, jitter: &mut Jitter) -> Vec<Action> {
        self.messages.renumber(jitter);
        (self.phase, self.attempt) = (Phase::Selecting, 0);
        self.go_on(now, jitter)
    }

    /// Asks for more time: the server until T2, then anyone (RFC 2131 section 4.4.5).
    fn renew(&mut self, now: Uptime, jitter: &mut Jitter) -> Vec<Action> {
        let Some(held) = &self.held else { return self.select(now, jitter) };
        let (lease, address) = (&held.lease, held.lease.address.address());
        let rebind = held.since + lease.rebind;
        let end = held.expires().unwrap_or(now + RENEW_PAUSE * 60);
        let (phase, until, to) = if now < rebind {
            let to = Destination::Server { from: address, server: lease.server, station: lease.station };
            (Phase::Renewing, rebind, to)
        } else {
            (Phase::Rebinding, end, Destination::Broadcast { from: address })
        };
        if self.phase != phase {
            self.messages.renumber(jitter);
            self.asked = now;
        }
        self.phase = phase;
        self.at = Some((now + (until.since(now) / 2).max(RENEW_PAUSE)).min(until));
        vec![Action::Send(self.messages.request_more(address), to)]
    }

    /// Sets the next attempt: each pause twice as long as the one before.
    fn again(&mut self, now: Uptime, first: Duration, jitter: &mut Jitter) {
        let pause = first.saturating_mul(1 << self.attempt.min(6)).min(LONGEST_PAUSE);
        self.at = Some(now + jitter.between(pause - SPREAD, pause + SPREAD));
        self.attempt += 1;
    }

    /// A server has acknowledged `lease`. An address that is in use already needs no probe.
    fn accept(&mut self, now: Uptime, lease: Lease, jitter: &mut Jitter) -> Vec<Action> {
        self.naks = 0;
        let address = lease.address.address();
        let in_use = self.lease().is_some_and(|held| held.address.address() == address);
        if in_use && self.claim.as_ref().is_some_and(Claim::is_ours) {
            return self.bind(lease, Change::Renewed);
        }
        self.claim = Some(Claim::probe(now, address, BRIEF, jitter));
        (self.phase, self.at) = (Phase::Checking(lease), None);
        Vec::new()
    }

    fn bind(&mut self, lease: Lease, change: Change) -> Vec<Action> {
        let held = Held { lease, since: self.asked };
        self.former = Some(held.lease.address.address());
        self.at = Some(held.since + held.lease.renew);
        (self.held, self.phase) = (Some(held), Phase::Bound);
        vec![Action::Changed(change)]
    }

    fn on_verdict(&mut self, now: Uptime, verdict: Verdict) -> Vec<Action> {
        match verdict {
            Verdict::Nothing => Vec::new(),
            Verdict::Send(arp) => vec![Action::Arp(arp)],
            Verdict::Ours(arp) => {
                let mut actions = vec![Action::Arp(arp)];
                if let Phase::Checking(lease) = &self.phase {
                    let lease = lease.clone();
                    actions.extend(self.bind(lease, Change::Bound));
                }
                actions
            }
            Verdict::Conflict(other) => self.decline(now, other),
        }
    }

    /// Another station has the address: the server is told, and all begins anew after a pause.
    fn decline(&mut self, now: Uptime, other: Mac) -> Vec<Action> {
        let lease = match &self.phase {
            Phase::Checking(lease) => Some(lease),
            _ => self.lease(),
        };
        let message = lease.map(|lease| self.messages.decline(lease));
        (self.held, self.claim, self.former) = (None, None, None);
        if self.phase == Phase::Down {
            return vec![Action::Changed(Change::Declined(other))];
        }
        (self.phase, self.at) = (Phase::Pausing, Some(now + DECLINE_PAUSE));
        let broadcast = Destination::Broadcast { from: Ipv4Addr::UNSPECIFIED };
        let sent = message.map(|message| Action::Send(message, broadcast));
        sent.into_iter().chain([Action::Changed(Change::Declined(other))]).collect()
    }

    /// The server refuses: the address must not be used any longer. Servers that refuse again and again are asked less often.
    fn refused(&mut self, now: Uptime, jitter: &mut Jitter) -> Vec<Action> {
        self.naks = self.naks.saturating_add(1);
        if self.naks == 1 {
            return self.lose(now, Change::Refused, jitter);
        }
        let pause = Duration::from_secs(1 << self.naks.min(6)).min(NAK_PAUSE);
        (self.held, self.claim, self.former) = (None, None, None);
        (self.phase, self.at) = (Phase::Pausing, Some(now + pause));
        vec![Action::Changed(Change::Refused)]
    }

    /// Gives the lease up. Without carrier that is all.
    fn lose(&mut self, now: Uptime, change: Change, jitter: &mut Jitter) -> Vec<Action> {
        (self.held, self.claim, self.former) = (None, None, None);
        let mut actions = vec![Action::Changed(change)];
        if self.phase != Phase::Down {
            actions.extend(self.select(now, jitter));
        }
        actions
    }
}
