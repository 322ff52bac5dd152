//! [`Claim`]: one IPv4 address, probed before it is used and defended while it is (RFC 5227).

use std::net::Ipv4Addr;
use std::time::Duration;

use super::frame::Arp;
use super::jitter::Jitter;
use super::mac::Mac;
use crate::time::Uptime;

/// How an address is probed and announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Longest wait before the first probe.
    pub first: Duration,
    /// How many probes.
    pub probes: u8,
    /// Shortest and longest pause between two probes.
    pub pause: (Duration, Duration),
    /// How long nobody may answer after the last probe.
    pub silence: Duration,
}

/// RFC 5227 section 1.1: for addresses that nobody gave us.
pub const FULL: Pace = Pace {
    first: Duration::from_secs(1),
    probes: 3,
    pause: (Duration::from_secs(1), Duration::from_secs(2)),
    silence: Duration::from_secs(2),
};

/// For addresses that a server gave, which has looked for conflicts itself: the boot waits for this.
pub const BRIEF: Pace = Pace {
    first: Duration::ZERO,
    probes: 2,
    pause: (Duration::from_millis(150), Duration::from_millis(250)),
    silence: Duration::from_millis(300),
};

/// Announcements, and the pause between them (RFC 5227 section 1.1).
const ANNOUNCEMENTS: u8 = 2;
const ANNOUNCE_PAUSE: Duration = Duration::from_secs(2);
/// Two conflicts within this time lose the address (RFC 5227 section 2.4).
const DEFEND_INTERVAL: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// So many probes were sent.
    Probing(u8),
    /// So many announcements were sent; the address is ours.
    Announcing(u8),
    Held,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing new.
    Nothing,
    /// Send this.
    Send(Arp),
    /// Nobody else has the address: send this announcement and use the address.
    Ours(Arp),
    /// Another station has it.
    Conflict(Mac),
}

/// One address of one port.
#[derive(Clone, Debug)]
pub struct Claim {
    address: Ipv4Addr,
    pace: Pace,
    phase: Phase,
    next: Option<Uptime>,
    /// When the address was last defended.
    defended: Option<Uptime>,
}

impl Claim {
    /// Starts to probe `address`.
    pub fn probe(now: Uptime, address: Ipv4Addr, pace: Pace, jitter: &mut Jitter) -> Self {
        let first = now + jitter.between(Duration::ZERO, pace.first);
        Self { address, pace, phase: Phase::Probing(0), next: Some(first), defended: None }
    }

    /// Takes `address` without probing: it is announced at once.
    pub fn assert(now: Uptime, address: Ipv4Addr) -> Self {
        Self { address, pace: BRIEF, phase: Phase::Announcing(0), next: Some(now), defended: None }
    }

    /// The address.
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Whether the address may be used.
    pub const fn is_ours(&self) -> bool {
        !matches!(self.phase, Phase::Probing(_))
    }

    /// When [`Self::on_deadline`] wants to be called.
    pub const fn deadline(&self) -> Option<Uptime> {
        self.next
    }

    /// What is due at `now`.
    pub fn on_deadline(&mut self, now: Uptime, own: Mac, jitter: &mut Jitter) -> Verdict {
        if self.next.is_none_or(|next| next > now) {
            return Verdict::Nothing;
        }
        match self.phase {
            Phase::Probing(sent) if sent < self.pace.probes => {
                self.phase = Phase::Probing(sent + 1);
                let last = sent + 1 == self.pace.probes;
                let pause = if last { self.pace.silence } else { jitter.between(self.pace.pause.0, self.pace.pause.1) };
                self.next = Some(now + pause);
                Verdict::Send(Arp::probe(own, self.address))
            }
            Phase::Probing(_) => {
                self.announced(now, 1);
                Verdict::Ours(Arp::announcement(own, self.address))
            }
            Phase::Announcing(sent) => {
                self.announced(now, sent + 1);
                Verdict::Send(Arp::announcement(own, self.address))
            }
            Phase::Held => {
                self.next = None;
                Verdict::Nothing
            }
        }
    }

    fn announced(&mut self, now: Uptime, sent: u8) {
        let more = sent < ANNOUNCEMENTS;
        self.phase = if more { Phase::Announcing(sent) } else { Phase::Held };
        self.next = more.then(|| now + ANNOUNCE_PAUSE);
    }

    /// What another station's `arp` means for the address (RFC 5227 sections 2.1.1 and 2.4).
    ///
    /// Our own packets, which some switches send back, mean nothing. An address that we use is defended once; a second
    /// conflict within ten seconds loses it.
    pub fn on_arp(&mut self, now: Uptime, own: Mac, arp: &Arp) -> Verdict {
        if arp.sender == own {
            return Verdict::Nothing;
        }
        let claims = arp.sender_address == self.address;
        let probes = !arp.reply && arp.sender_address.is_unspecified() && arp.target_address == self.address;
        if !self.is_ours() {
            return if claims || probes { Verdict::Conflict(arp.sender) } else { Verdict::Nothing };
        }
        // Probes of our address are answered by the kernel.
        if !claims {
            return Verdict::Nothing;
        }
        if self.defended.is_some_and(|at| now.since(at) < DEFEND_INTERVAL) {
            return Verdict::Conflict(arp.sender);
        }
        self.defended = Some(now);
        Verdict::Send(Arp::announcement(own, self.address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Mac = Mac([2, 0, 0, 0, 0, 1]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 9);

    /// Runs a claim to its end on an empty network: what was sent, and when it was ours.
    fn alone(pace: Pace, seed: u64) -> (Vec<Arp>, Duration) {
        let mut jitter = Jitter::new(seed);
        let start = Uptime::from_secs(100);
        let mut claim = Claim::probe(start, ADDRESS, pace, &mut jitter);
        let (mut sent, mut ours) = (Vec::new(), None);
        while let Some(now) = claim.deadline() {
            match claim.on_deadline(now, OWN, &mut jitter) {
                Verdict::Send(arp) => sent.push(arp),
                Verdict::Ours(arp) => {
                    sent.push(arp);
                    ours = Some(now.since(start));
                }
                other => panic!("{other:?}"),
            }
        }
        (sent, ours.unwrap())
    }

    #[test]
    fn an_address_that_nobody_has_is_probed_announced_and_ours() {
        let (probe, announcement) = (Arp::probe(OWN, ADDRESS), Arp::announcement(OWN, ADDRESS));
        for seed in 0..50 {
            let (sent, after) = alone(FULL, seed);
            assert_eq!(sent, [probe, probe, probe, announcement, announcement]);
            assert!((Duration::from_secs(4)..=Duration::from_secs(7)).contains(&after), "{after:?}");
            let (sent, after) = alone(BRIEF, seed);
            assert_eq!(sent, [probe, probe, announcement, announcement]);
            assert!(after <= Duration::from_millis(550), "{after:?}");
        }
    }

    #[test]
    fn while_probing_a_claim_and_another_probe_are_conflicts() {
        let mut jitter = Jitter::new(1);
        let now = Uptime::from_secs(1);
        let fresh = Claim::probe(now, ADDRESS, FULL, &mut jitter);
        let reply = Arp { reply: true, sender: OTHER, sender_address: ADDRESS, target_address: ADDRESS };
        for arp in [reply, Arp::announcement(OTHER, ADDRESS), Arp::probe(OTHER, ADDRESS)] {
            assert_eq!(fresh.clone().on_arp(now, OWN, &arp), Verdict::Conflict(OTHER));
        }
        let elsewhere = Ipv4Addr::new(169, 254, 1, 1);
        for arp in [Arp::probe(OWN, ADDRESS), Arp::probe(OTHER, elsewhere), Arp::announcement(OTHER, elsewhere)] {
            assert_eq!(fresh.clone().on_arp(now, OWN, &arp), Verdict::Nothing);
        }
    }

    #[test]
    fn an_address_in_use_is_defended_once_and_then_lost() {
        let now = Uptime::from_secs(50);
        let mut claim = Claim::assert(now, ADDRESS);
        let theirs = Arp::announcement(OTHER, ADDRESS);
        let ours = Verdict::Send(Arp::announcement(OWN, ADDRESS));
        assert!(claim.is_ours());
        assert_eq!(claim.on_arp(now, OWN, &Arp::probe(OTHER, ADDRESS)), Verdict::Nothing);
        assert_eq!(claim.on_arp(now, OWN, &theirs), ours);
        assert_eq!(claim.on_arp(now + Duration::from_secs(11), OWN, &theirs), ours);
        assert_eq!(claim.on_arp(now + Duration::from_secs(20), OWN, &theirs), Verdict::Conflict(OTHER));
    }
}
