//! [`Trials`]: a new network configuration is tried, and returns by itself unless someone confirms it from the new address.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::{Fault, Network};
use crate::time::Uptime;

/// How long a configuration waits to be confirmed.
pub const WINDOW: Duration = Duration::from_secs(60);

/// What lies on the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The configuration that counts.
    pub good: Network,
    /// The one that counted before it.
    #[serde(default)]
    pub previous: Option<Network>,
    /// A configuration that is being tried. Found at a start, it was never confirmed.
    #[serde(default)]
    pub tried: Option<Network>,
}

/// What someone wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Try this, and return after [`WINDOW`] unless it is confirmed.
    Try(Network),
    /// Keep what is being tried.
    Confirm {
        /// Which trial: a page that was left open must not confirm another.
        trial: u64,
        /// The address of the box that the confirmation came to: that one can be reached there is the proof.
        at: IpAddr,
    },
    /// Return now: from a trial to what counts, else to the configuration before.
    Return,
    /// Make this count without a trial: from a stick, where nobody could confirm.
    Adopt(Network),
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refused {
    /// The configuration has faults.
    #[error("the configuration has {} faults", .0.len())]
    Faults(Vec<Fault>),
    /// No such trial: it has ended or another has begun.
    #[error("trial {0} is over")]
    Over(u64),
    /// The confirmation did not come to an address that the trial gave the box.
    #[error("{0} is no address of the configuration that is tried")]
    Elsewhere(IpAddr),
    /// There is nothing to return to.
    #[error("there is no earlier configuration")]
    Nothing,
    /// The machine's network is another's to set.
    #[error("the network is not this service's to set: --manage-network is not given")]
    NotOurs,
    /// The service is about to end.
    #[error("the service ends")]
    Ending,
    /// The disk did not take it: it would be gone after a power cut.
    #[error("it can't be kept: {0}")]
    Disk(String),
}

/// How the last trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// It was confirmed and counts now.
    Confirmed,
    /// Nobody confirmed it in time.
    Unconfirmed,
    /// The power went away or the service ended while it was tried.
    Interrupted,
    /// Someone ended it.
    Returned,
}

/// A configuration on trial.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trial {
    id: u64,
    network: Network,
    until: Uptime,
}

/// Which configuration is in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trials {
    good: Network,
    previous: Option<Network>,
    trial: Option<Trial>,
    ending: Option<Ending>,
    next: u64,
}

impl Trials {
    /// Goes on from what lies on the disk. `first` numbers the first trial; a random number keeps pages of the run before
    /// from confirming one of this run.
    pub fn resume(record: Record, first: u64) -> Self {
        let ending = record.tried.map(|_| Ending::Interrupted);
        Self { good: record.good, previous: record.previous, trial: None, ending, next: first }
    }

    /// The configuration in force.
    pub fn active(&self) -> &Network {
        self.trial.as_ref().map_or(&self.good, |trial| &trial.network)
    }

    /// The trial's number and how long it still waits.
    pub fn trial(&self, now: Uptime) -> Option<(u64, Duration)> {
        self.trial.as_ref().map(|trial| (trial.id, trial.until.since(now)))
    }

    /// How the last trial ended.
    pub const fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// When [`Self::on_deadline`] wants to be called.
    pub fn deadline(&self) -> Option<Uptime> {
        self.trial.as_ref().map(|trial| trial.until)
    }

    /// What must lie on the disk for this state.
    pub fn record(&self) -> Record {
        Record {
            good: self.good.clone(),
            previous: self.previous.clone(),
            tried: self.trial.as_ref().map(|trial| trial.network.clone()),
        }
    }

    /// Ends a trial whose time is over.
    #[must_use]
    pub fn on_deadline(&self, now: Uptime) -> Option<Self> {
        let over = self.deadline().is_some_and(|until| until <= now);
        over.then(|| Self { trial: None, ending: Some(Ending::Unconfirmed), ..self.clone() })
    }

    /// The state after `request`, which counts once its [`record`](Self::record) is on the disk. `addresses` are those that
    /// the box has now.
    ///
    /// # Errors
    ///
    /// [`Refused`]; nothing changes then.
    pub fn on_request(&self, now: Uptime, request: Request, addresses: &[IpAddr]) -> Result<Self, Refused> {
        match request {
            Request::Try(network) => {
                check(&network)?;
                let trial = Trial { id: self.next, network, until: now + WINDOW };
                Ok(Self { trial: Some(trial), next: self.next.wrapping_add(1), ..self.clone() })
            }
            Request::Confirm { trial: id, at } => {
                // A deadline that was not looked at yet has passed all the same.
                let current = self.trial.as_ref().filter(|trial| trial.id == id && trial.until > now);
                let trial = current.ok_or(Refused::Over(id))?;
                if !addresses.contains(&at) {
                    return Err(Refused::Elsewhere(at));
                }
                Ok(self.adopted(trial.network.clone(), Ending::Confirmed))
            }
            Request::Return => match (&self.trial, &self.previous) {
                (Some(_), _) => Ok(Self { trial: None, ending: Some(Ending::Returned), ..self.clone() }),
                (None, Some(previous)) => Ok(self.adopted(previous.clone(), Ending::Returned)),
                (None, None) => Err(Refused::Nothing),
            },
            Request::Adopt(network) => {
                check(&network)?;
                Ok(self.adopted(network, Ending::Confirmed))
            }
        }
    }

    fn adopted(&self, network: Network, ending: Ending) -> Self {
        let previous = if network == self.good { self.previous.clone() } else { Some(self.good.clone()) };
        Self { good: network, previous, trial: None, ending: Some(ending), next: self.next }
    }
}

fn check(network: &Network) -> Result<(), Refused> {
    let faults = network.faults();
    if faults.is_empty() { Ok(()) } else { Err(Refused::Faults(faults)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 10));
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 99));

    fn network(number: u8) -> Network {
        Network { ntp: vec![format!("ntp{number}.example")], ..Network::default() }
    }

    fn started() -> Trials {
        Trials::resume(Record { good: network(0), ..Record::default() }, 40)
    }

    #[test]
    fn the_table() {
        let t = Uptime::from_secs;
        let trying = started().on_request(t(10), Request::Try(network(1)), &[]).unwrap();
        assert_eq!((trying.active(), trying.trial(t(30))), (&network(1), Some((40, Duration::from_secs(40)))));
        let confirm = |trial, at| Request::Confirm { trial, at };
        type Expected = Result<(u8, Option<u8>, Ending), Refused>;
        let rows: [(u64, Request, Expected); 9] = [
            (69, confirm(40, HERE), Ok((1, Some(0), Ending::Confirmed))),
            (70, confirm(40, HERE), Err(Refused::Over(40))),
            (20, confirm(39, HERE), Err(Refused::Over(39))),
            (20, confirm(41, HERE), Err(Refused::Over(41))),
            (20, confirm(40, THERE), Err(Refused::Elsewhere(THERE))),
            (20, Request::Return, Ok((0, None, Ending::Returned))),
            (20, Request::Adopt(network(2)), Ok((2, Some(0), Ending::Confirmed))),
            (20, Request::Adopt(network(0)), Ok((0, None, Ending::Confirmed))),
            (20, Request::Adopt(bad()), Err(Refused::Faults(bad().faults()))),
        ];
        for (now, request, expected) in rows {
            let found = trying.on_request(t(now), request.clone(), &[HERE]);
            let found = found.map(|next| (next.active().clone(), next.record().previous, next.ending().unwrap()));
            let expected = expected.map(|(active, previous, ending)| (network(active), previous.map(network), ending));
            assert_eq!(found, expected, "{request:?} at {now}");
        }
        assert_eq!(trying.on_deadline(t(69)), None);
        let returned = trying.on_deadline(t(70)).unwrap();
        assert_eq!((returned.active(), returned.ending()), (&network(0), Some(Ending::Unconfirmed)));
        assert_eq!(returned.on_request(t(80), Request::Return, &[]), Err(Refused::Nothing));
    }

    fn bad() -> Network {
        Network { ntp: vec!["-".to_owned()], ..Network::default() }
    }

    #[test]
    fn a_power_cut_in_a_trial_leads_back_and_says_so() {
        let trying = started().on_request(Uptime::from_secs(1), Request::Try(network(1)), &[]).unwrap();
        let after = Trials::resume(trying.record(), 7);
        assert_eq!((after.active(), after.ending(), after.deadline()), (&network(0), Some(Ending::Interrupted), None));
        let kept = started().on_request(Uptime::from_secs(1), Request::Adopt(network(1)), &[]).unwrap();
        let after = Trials::resume(kept.record(), 7);
        assert_eq!((after.active(), after.record().previous), (&network(1), Some(network(0))));
    }

    #[derive(Clone, Debug)]
    enum Act {
        Ask(Request),
        Wait(u64),
        PowerCut,
    }

    fn act() -> impl Strategy<Value = Act> {
        let network = (0_u8..4).prop_map(network);
        prop_oneof![
            network.clone().prop_map(|network| Act::Ask(Request::Try(network))),
            network.prop_map(|network| Act::Ask(Request::Adopt(network))),
            (40_u64..46, any::<bool>())
                .prop_map(|(trial, here)| Act::Ask(Request::Confirm { trial, at: if here { HERE } else { THERE } })),
            Just(Act::Ask(Request::Return)),
            (0_u64..90).prop_map(Act::Wait),
            Just(Act::PowerCut),
        ]
    }

    proptest! {
        /// Whatever happens: what was not confirmed at an address of the box is not in force a minute later, and the disk
        /// always leads to the last configuration that counted.
        #[test]
        fn what_nobody_confirmed_never_stays(acts in proptest::collection::vec(act(), 0..40)) {
            let mut now = Uptime::from_secs(1);
            let mut trials = started();
            let mut good = network(0);
            for act in acts {
                match act {
                    Act::Wait(secs) => now = now + Duration::from_secs(secs),
                    Act::PowerCut => trials = Trials::resume(trials.record(), 40),
                    Act::Ask(request) => {
                        let tried = trials.trial(now).map(|_| trials.active().clone());
                        if let Ok(next) = trials.on_request(now, request.clone(), &[HERE]) {
                            match &request {
                                Request::Adopt(network) => good = network.clone(),
                                Request::Confirm { .. } => good = tried.expect("a trial was confirmed"),
                                Request::Return if tried.is_none() => good = trials.record().previous.expect("one before"),
                                Request::Try(_) | Request::Return => {}
                            }
                            trials = next;
                        }
                    }
                }
                if let Some(next) = trials.on_deadline(now) {
                    trials = next;
                }
                prop_assert_eq!(&trials.record().good, &good);
                let resumed = Trials::resume(trials.record(), 0);
                prop_assert_eq!(resumed.active(), &good);
                let later = now + WINDOW;
                let returned = trials.on_deadline(later).unwrap_or_else(|| trials.clone());
                prop_assert_eq!(returned.active(), &good);
            }
        }
    }
}
