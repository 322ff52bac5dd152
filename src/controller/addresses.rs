//! Where a machine may dial in from: the addresses that it booted from lately, and those that its agent worked from.
//!
//! Nothing proves that a boot request is from the machine whose UUID it names. So one from another address adds that
//! address and takes none away, and while a machine's tunnel stands no other address gets one: a stranger who knows a UUID
//! can't turn the machine's own agent away.

use std::net::IpAddr;
use std::time::Duration;

use crate::time::UnixTime;

/// Addresses kept a machine. A machine has one a network card and changes them seldom.
const CAP: usize = 8;
/// A boot this long after the last one from the same address is news again.
const NEWS_AFTER: Duration = Duration::from_secs(3_600);

/// A network boot as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// MAC address of the NIC, as iPXE spelt it, or empty.
    pub mac: String,
    /// Address that the request came from.
    pub address: IpAddr,
}

/// One address of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The newest boot from it; the MAC address is empty if there was none.
    pub sighting: Sighting,
    /// When it was last seen.
    pub at: UnixTime,
    /// Omni knew the machine and its agent had a tunnel from here.
    pub served: bool,
}

/// The addresses of one machine, the newest last, at most eight.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(Vec<Seen>);

impl Addresses {
    /// The machine asked from here what to boot. Returns whether that is news: it did not within the hour.
    pub fn booted(&mut self, sighting: Sighting, at: UnixTime) -> bool {
        let known = self.take(sighting.address);
        let served = known.as_ref().is_some_and(|seen| seen.served);
        self.put(Seen { sighting, at, served });
        known.is_none_or(|seen| at.since(seen.at) >= NEWS_AFTER)
    }

    /// Its agent has a tunnel from here, and Omni knows the machine. Returns whether that is new.
    pub fn served(&mut self, address: IpAddr, at: UnixTime) -> bool {
        let address = address.to_canonical();
        let known = self.take(address);
        let news = known.as_ref().is_none_or(|seen| !seen.served);
        let sighting = known.map_or_else(|| Sighting { mac: String::new(), address }, |seen| seen.sighting);
        self.put(Seen { sighting, at, served: true });
        news
    }

    /// Takes what an earlier run knew, where this one knows no better.
    pub fn restore(&mut self, earlier: Self) {
        let newer = std::mem::take(&mut self.0);
        for seen in earlier.0.into_iter().chain(newer) {
            let served = self.take(seen.sighting.address).is_some_and(|earlier| earlier.served);
            self.put(Seen { served: served || seen.served, ..seen });
        }
    }

    /// Whether the machine may dial in from here.
    pub fn counts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|seen| seen.sighting.address == address)
    }

    /// All, the newest last.
    pub fn iter(&self) -> impl Iterator<Item = &Seen> {
        self.0.iter()
    }

    /// The newest.
    pub fn last(&self) -> Option<&Sighting> {
        self.0.last().map(|seen| &seen.sighting)
    }

    /// Whether none is known.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn take(&mut self, address: IpAddr) -> Option<Seen> {
        let address = address.to_canonical();
        let index = self.0.iter().position(|seen| seen.sighting.address == address)?;
        Some(self.0.remove(index))
    }

    fn put(&mut self, mut seen: Seen) {
        seen.sighting.address = seen.sighting.address.to_canonical();
        if self.0.len() >= CAP {
            // An agent's own address is the last to go: a boot request costs nothing.
            let oldest = self.0.iter().position(|seen| !seen.served).unwrap_or(0);
            self.0.remove(oldest);
        }
        self.0.push(seen);
    }
}

impl FromIterator<Seen> for Addresses {
    fn from_iter<T: IntoIterator<Item = Seen>>(all: T) -> Self {
        let mut addresses = Self::default();
        for seen in all {
            addresses.take(seen.sighting.address);
            addresses.put(seen);
        }
        addresses
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT: UnixTime = UnixTime::from_secs(1_700_000_000);

    fn sighting(last: u8) -> Sighting {
        Sighting { mac: format!("52-54-00-00-00-{last:02x}"), address: IpAddr::from([10, 0, 0, last]) }
    }

    #[test]
    fn a_boot_from_elsewhere_turns_no_address_away() {
        let mut addresses = Addresses::default();
        assert!(addresses.booted(sighting(1), AT) && addresses.booted(sighting(2), AT));
        assert!(!addresses.booted(sighting(1), AT) && addresses.booted(sighting(1), AT + NEWS_AFTER));
        assert!(addresses.counts(sighting(1).address) && addresses.counts(sighting(2).address));
        assert!(!addresses.counts(sighting(3).address));
        assert_eq!(addresses.last(), Some(&sighting(1)));
        assert!(addresses.counts("::ffff:10.0.0.2".parse().unwrap()));
    }

    #[test]
    fn no_flood_of_boots_pushes_out_the_address_that_the_agent_works_from() {
        let mut addresses = Addresses::default();
        addresses.booted(sighting(1), AT);
        assert!(addresses.served(sighting(1).address, AT) && !addresses.served(sighting(1).address, AT));
        for stranger in 2..200 {
            addresses.booted(sighting(stranger), AT);
        }
        assert!(addresses.counts(sighting(1).address));
        assert_eq!(addresses.iter().count(), CAP);
    }

    #[test]
    fn of_boots_alone_the_newest_eight_count() {
        let mut addresses = Addresses::default();
        for last in 1..=9 {
            addresses.booted(sighting(last), AT);
        }
        assert!(!addresses.counts(sighting(1).address) && addresses.counts(sighting(2).address));
    }

    #[test]
    fn what_an_earlier_run_knew_stands_behind_what_this_one_saw() {
        let mut earlier = Addresses::default();
        earlier.booted(sighting(1), AT);
        earlier.served(sighting(1).address, AT);
        earlier.booted(sighting(2), AT);
        let mut now = Addresses::default();
        now.booted(sighting(3), AT);
        now.booted(sighting(1), AT);
        now.restore(earlier);
        let all: Vec<_> = now.iter().map(|seen| (seen.sighting.clone(), seen.served)).collect();
        assert_eq!(all, [(sighting(2), false), (sighting(3), false), (sighting(1), true)]);
    }

    proptest! {
        #[test]
        fn each_address_is_there_once_and_eight_at_most(
            steps in proptest::collection::vec((0_u8..3, 0_u8..16), 0..80),
        ) {
            let mut addresses = Addresses::default();
            for (step, last) in steps {
                match step {
                    0 => drop(addresses.booted(sighting(last), AT)),
                    1 => drop(addresses.served(sighting(last).address, AT)),
                    _ => addresses.restore([Seen { sighting: sighting(last), at: AT, served: last % 2 == 0 }].into_iter().collect()),
                }
                prop_assert!(step == 2 || addresses.counts(sighting(last).address));
                let mut all: Vec<_> = addresses.iter().map(|seen| seen.sighting.address).collect();
                prop_assert!(all.len() <= CAP);
                all.sort();
                all.dedup();
                prop_assert_eq!(all.len(), addresses.iter().count());
            }
        }
    }
}
