//! [`LinkLocal`]: an address in 169.254/16 that needs nobody (RFC 3927).

use std::net::Ipv4Addr;
use std::time::Duration;

use super::claim::{Claim, FULL, Verdict};
use super::frame::Arp;
use super::jitter::Jitter;
use super::mac::Mac;
use crate::time::Uptime;

/// The length of the network's prefix.
pub const PREFIX_LEN: u8 = 16;
/// After so many conflicts new addresses are tried slowly (RFC 3927 section 9).
const MAX_CONFLICTS: u32 = 10;
const RATE_LIMIT: Duration = Duration::from_secs(60);

/// One port's link-local address. The first candidate follows from its MAC address, so that a box keeps it.
#[derive(Clone, Debug)]
pub struct LinkLocal {
    own: Mac,
    claim: Option<Claim>,
    conflicts: u32,
    /// When the next candidate is tried, after a conflict.
    retry: Option<Uptime>,
}

impl LinkLocal {
    /// Nothing is tried before [`Self::start`].
    pub const fn new(own: Mac) -> Self {
        Self { own, claim: None, conflicts: 0, retry: None }
    }

    /// Begins, or begins again after the link was away.
    pub fn start(&mut self, now: Uptime, jitter: &mut Jitter) {
        self.retry = None;
        self.claim = Some(Claim::probe(now, candidate(self.own, self.conflicts), FULL, jitter));
    }

    /// The link is gone.
    pub fn stop(&mut self) {
        (self.claim, self.retry) = (None, None);
    }

    /// The address, when it may be used.
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.claim.as_ref().filter(|claim| claim.is_ours()).map(Claim::address)
    }

    /// When [`Self::on_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Uptime> {
        self.retry.or_else(|| self.claim.as_ref()?.deadline())
    }

    /// What is due at `now`: what to send.
    pub fn on_deadline(&mut self, now: Uptime, jitter: &mut Jitter) -> Option<Arp> {
        if self.retry.is_some_and(|retry| retry <= now) {
            self.start(now, jitter);
        }
        let verdict = self.claim.as_mut()?.on_deadline(now, self.own, jitter);
        self.follow(now, verdict, jitter)
    }

    /// What another station's packet means: what to send.
    pub fn on_arp(&mut self, now: Uptime, arp: &Arp, jitter: &mut Jitter) -> Option<Arp> {
        let verdict = self.claim.as_mut()?.on_arp(now, self.own, arp);
        self.follow(now, verdict, jitter)
    }

    fn follow(&mut self, now: Uptime, verdict: Verdict, jitter: &mut Jitter) -> Option<Arp> {
        match verdict {
            Verdict::Nothing => None,
            Verdict::Send(arp) | Verdict::Ours(arp) => Some(arp),
            Verdict::Conflict(_) => {
                self.conflicts = self.conflicts.saturating_add(1);
                if self.conflicts < MAX_CONFLICTS {
                    self.start(now, jitter);
                } else {
                    (self.claim, self.retry) = (None, Some(now + RATE_LIMIT));
                }
                None
            }
        }
    }
}

/// The candidate of a port after `conflicts`: 169.254.1.0 to 169.254.254.255, the rest is reserved (RFC 3927 section 2.1).
fn candidate(own: Mac, conflicts: u32) -> Ipv4Addr {
    let [a, b, c, d, e, f] = own.0;
    let seed = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    let mut numbers = Jitter::new(seed);
    let mut host = 0;
    for _ in 0..=conflicts.min(1000) {
        host = numbers.below(254 * 256);
    }
    Ipv4Addr::from(u32::from(Ipv4Addr::new(169, 254, 1, 0)) + host)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OWN: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
    const OTHER: Mac = Mac([2, 0, 0, 0, 0, 2]);

    #[test]
    fn a_box_keeps_its_address_and_gives_way_to_others() {
        let mut jitter = Jitter::new(3);
        let mut local = LinkLocal::new(OWN);
        local.start(Uptime::from_secs(1), &mut jitter);
        let first = candidate(OWN, 0);
        local.on_arp(Uptime::from_secs(2), &Arp::announcement(OTHER, first), &mut jitter);
        assert_eq!(local.address(), None);
        while local.address().is_none() {
            let now = local.deadline().unwrap();
            local.on_deadline(now, &mut jitter);
        }
        assert_eq!(local.address(), Some(candidate(OWN, 1)));
        local.stop();
        assert_eq!((local.address(), local.deadline()), (None, None));
    }

    #[test]
    fn a_hostile_network_is_tried_once_a_minute() {
        let mut jitter = Jitter::new(3);
        let mut local = LinkLocal::new(OWN);
        let mut now = Uptime::from_secs(1);
        local.start(now, &mut jitter);
        for round in 0..30 {
            let address = candidate(OWN, round);
            local.on_arp(now, &Arp::announcement(OTHER, address), &mut jitter);
            if round + 1 >= MAX_CONFLICTS {
                assert_eq!(local.deadline(), Some(now + RATE_LIMIT));
                now = now + RATE_LIMIT;
                local.on_deadline(now, &mut jitter);
            }
        }
    }

    proptest! {
        #[test]
        fn candidates_stay_out_of_the_reserved_blocks(mac in any::<[u8; 6]>(), conflicts in 0_u32..50) {
            let address = candidate(Mac(mac), conflicts);
            prop_assert!(address.is_link_local());
            prop_assert!((1..=254).contains(&address.octets()[2]));
        }
    }
}
