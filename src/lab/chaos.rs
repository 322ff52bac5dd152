//! Chaos: every fault that the lab can have, at random, from a seed that repeats it.
//!
//! What comes next is a pure function of the seed; [`Weather`] makes it happen, and ends it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use tonic::Code;

use super::omni::Omni;
use super::provider::Provider;
use super::rack::Rack;
use crate::time::Uptime;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fault {
    /// Every connection to Omni is cut.
    DropStreams,
    /// Omni restarts.
    RestartOmni,
    /// Every bookmark becomes invalid.
    InvalidateBookmarks,
    /// Every watch ends with ERRORED.
    Overrun,
    /// So many updates meet a version conflict.
    Conflicts(u32),
    /// Every signed call is refused.
    Refuse(Code),
    /// Every signed call waits.
    Slow(Duration),
    /// Omni's clock is off by so many seconds.
    Clock(i64),
    /// Omni's cache stands still.
    StopCache,
    /// The provider has another join secret; tokens of the old one let nobody in.
    RotateToken,
    /// The account is suspended.
    Suspend,
    /// The management service is missing.
    NoManagement,
    /// Omni does not listen.
    OmniAway,
    /// The image factory answers 503.
    FactoryUnavailable,
    /// The image factory does not listen.
    FactoryAway,
    /// So many replies of one BMC are lost.
    BmcLoses(u32),
    /// So many replies of one BMC are late.
    BmcDelays(u32),
    /// So many replies of one BMC come twice.
    BmcDoubles(u32),
    /// So many replies of one BMC are damaged.
    BmcDamages(u32),
    /// So many commands meet a busy BMC.
    BmcBusy(u32),
    /// One BMC restarts.
    BmcRestarts,
    /// The provider is killed with SIGKILL and started again.
    KillProvider,
}

impl Fault {
    /// What it is, without its numbers.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::DropStreams => "streams dropped",
            Self::RestartOmni => "Omni restarted",
            Self::InvalidateBookmarks => "bookmarks invalid",
            Self::Overrun => "watches overrun",
            Self::Conflicts(_) => "version conflicts",
            Self::Refuse(_) => "calls refused",
            Self::Slow(_) => "calls slow",
            Self::Clock(_) => "clock off",
            Self::StopCache => "cache stopped",
            Self::RotateToken => "join token rotated",
            Self::Suspend => "account suspended",
            Self::NoManagement => "no management service",
            Self::OmniAway => "Omni away",
            Self::FactoryUnavailable => "factory unavailable",
            Self::FactoryAway => "factory away",
            Self::BmcLoses(_) => "BMC loses replies",
            Self::BmcDelays(_) => "BMC delays replies",
            Self::BmcDoubles(_) => "BMC doubles replies",
            Self::BmcDamages(_) => "BMC damages replies",
            Self::BmcBusy(_) => "BMC busy",
            Self::BmcRestarts => "BMC restarted",
            Self::KillProvider => "provider killed",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Conflicts(count)
            | Self::BmcLoses(count)
            | Self::BmcDelays(count)
            | Self::BmcDoubles(count)
            | Self::BmcDamages(count)
            | Self::BmcBusy(count) => write!(f, ", {count}"),
            Self::Refuse(code) => write!(f, ", {code:?}"),
            Self::Slow(delay) => write!(f, ", {} ms", delay.as_millis()),
            Self::Clock(seconds) => write!(f, ", {seconds} s"),
            _ => Ok(()),
        }
    }
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Gust {
    /// How long it is calm before.
    pub(super) calm: Duration,
    /// What happens.
    pub(super) fault: Fault,
    /// How long it lasts, where it lasts.
    pub(super) lasts: Duration,
    /// Picks a machine, where it happens to one.
    pub(super) machine: usize,
}

/// A seed's faults, one after another, without end.
#[derive(Clone, Debug)]
pub(super) struct Storm(u64);

impl Storm {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number: Steele, Lea and Flood's SplitMix64, which is seeded with any number and needs no more than one.
    const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    const fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.number() % (most - least + 1)
    }

    const fn few(&mut self) -> u32 {
        self.between(1, 4) as u32
    }

    pub(super) fn next(&mut self) -> Gust {
        let calm = Duration::from_millis(self.between(50, 800));
        let fault = match self.between(0, 21) {
            0 => Fault::DropStreams,
            1 => Fault::RestartOmni,
            2 => Fault::InvalidateBookmarks,
            3 => Fault::Overrun,
            4 => Fault::Conflicts(self.few()),
            5 => {
                let codes =
                    [Code::PermissionDenied, Code::Unavailable, Code::DeadlineExceeded, Code::FailedPrecondition];
                Fault::Refuse(codes[self.between(0, 3) as usize])
            }
            6 => Fault::Slow(Duration::from_millis(self.between(50, 1_500))),
            7 => Fault::Clock(if self.number() & 1 == 0 { 3_600 } else { -3_600 }),
            8 => Fault::StopCache,
            9 => Fault::Suspend,
            10 => Fault::NoManagement,
            11 => Fault::OmniAway,
            12 => Fault::FactoryUnavailable,
            13 => Fault::FactoryAway,
            14 => Fault::BmcLoses(self.few()),
            15 => Fault::BmcDelays(self.few()),
            16 => Fault::BmcDoubles(self.few()),
            17 => Fault::BmcDamages(self.few()),
            18 => Fault::BmcBusy(self.few()),
            19 => Fault::BmcRestarts,
            20 => Fault::RotateToken,
            _ => Fault::KillProvider,
        };
        Gust {
            calm,
            fault,
            lasts: Duration::from_millis(self.between(100, 2_000)),
            machine: self.between(0, u64::from(u16::MAX)) as usize,
        }
    }
}

/// The storm over a lab.
pub(super) struct Weather {
    storm: Storm,
    next: Gust,
    at: Uptime,
    /// When it has blown itself out.
    until: Option<Uptime>,
    /// What is to end, and when.
    lasting: Vec<(Uptime, Fault)>,
    counts: BTreeMap<&'static str, u32>,
}

impl Weather {
    pub(super) fn new(seed: u64, now: Uptime, until: Option<Uptime>) -> Self {
        let mut storm = Storm::new(seed);
        let next = storm.next();
        Self { storm, next, at: now + next.calm, until, lasting: Vec::new(), counts: BTreeMap::new() }
    }

    /// Ends what is over, and begins what is due; returns what began.
    ///
    /// # Errors
    ///
    /// The provider does not start again, or a port of the lab's is gone.
    pub(super) async fn blow(
        &mut self,
        now: Uptime,
        omni: &Omni,
        rack: &Rack,
        provider: &mut Provider,
    ) -> anyhow::Result<Vec<Fault>> {
        let over = self.until.is_some_and(|until| now >= until);
        for (until, fault) in std::mem::take(&mut self.lasting) {
            if over || now >= until {
                end(fault, omni).await?;
            } else {
                self.lasting.push((until, fault));
            }
        }
        let mut begun = Vec::new();
        while !over && now >= self.at {
            let gust = std::mem::replace(&mut self.next, self.storm.next());
            self.at = self.at + self.next.calm;
            // One of a kind at a time: the end of the first would end the second.
            if self.lasting.iter().any(|(_, fault)| fault.name() == gust.fault.name()) {
                continue;
            }
            if begin(gust, omni, rack, provider).await? {
                self.lasting.push((now + gust.lasts, gust.fault));
            }
            *self.counts.entry(gust.fault.name()).or_default() += 1;
            begun.push(gust.fault);
        }
        Ok(begun)
    }

    /// When something begins or ends next.
    pub(super) fn due(&self) -> Option<Uptime> {
        let over = self.lasting.iter().map(|(until, _)| *until).min();
        let next = self.until.is_none_or(|until| self.at < until).then_some(self.at);
        over.into_iter().chain(next).min()
    }

    /// How often each fault happened.
    pub(super) fn summary(&self) -> String {
        let total: u32 = self.counts.values().sum();
        let each: Vec<_> = self.counts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        format!("chaos: {total} faults: {}", each.join(", "))
    }
}

/// Begins a fault; whether it lasts.
async fn begin(gust: Gust, omni: &Omni, rack: &Rack, provider: &mut Provider) -> anyhow::Result<bool> {
    let faults = omni.faults();
    let bmc = rack.bmc_faults(gust.machine);
    match gust.fault {
        Fault::DropStreams => faults.drop_streams().await,
        Fault::RestartOmni => faults.restart().await,
        Fault::InvalidateBookmarks => faults.invalidate_bookmarks(),
        Fault::Overrun => faults.overrun_watches(),
        Fault::Conflicts(count) => faults.conflict(count),
        Fault::BmcLoses(count) => bmc.lose(count),
        Fault::BmcDelays(count) => bmc.delay(count, gust.lasts),
        Fault::BmcDoubles(count) => bmc.double(count),
        Fault::BmcDamages(count) => bmc.damage(count),
        Fault::BmcBusy(count) => bmc.busy(count),
        Fault::BmcRestarts => bmc.restart(),
        Fault::RotateToken => omni.rotate_join_token()?,
        Fault::KillProvider => {
            provider.kill().await?;
            provider.start().await?;
        }
        Fault::Refuse(code) => {
            faults.refuse(code, "chaos");
            return Ok(true);
        }
        Fault::Slow(delay) => {
            faults.slow(delay);
            return Ok(true);
        }
        Fault::Clock(seconds) => {
            faults.clock_offset(seconds);
            return Ok(true);
        }
        Fault::StopCache => {
            faults.stop_cache();
            return Ok(true);
        }
        Fault::Suspend => {
            faults.suspend(true);
            return Ok(true);
        }
        Fault::NoManagement => {
            faults.no_management(true);
            return Ok(true);
        }
        Fault::OmniAway => {
            faults.go_away().await;
            return Ok(true);
        }
        Fault::FactoryUnavailable => {
            faults.factory_unavailable(true);
            return Ok(true);
        }
        Fault::FactoryAway => {
            faults.factory_away().await;
            return Ok(true);
        }
    }
    Ok(false)
}

/// Ends a fault that lasts.
async fn end(fault: Fault, omni: &Omni) -> anyhow::Result<()> {
    let faults = omni.faults();
    match fault {
        Fault::Refuse(_) => faults.serve_again(),
        Fault::Slow(_) => faults.slow(Duration::ZERO),
        Fault::Clock(_) => faults.clock_offset(0),
        Fault::StopCache => faults.run_cache(),
        Fault::Suspend => faults.suspend(false),
        Fault::NoManagement => faults.no_management(false),
        Fault::OmniAway => faults.come_back().await?,
        Fault::FactoryUnavailable => faults.factory_unavailable(false),
        Fault::FactoryAway => faults.factory_back().await?,
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_repeats_itself_and_every_fault_comes() {
        let (mut one, mut again) = (Storm::new(7), Storm::new(7));
        let gusts: Vec<_> = (0..1_000).map(|_| one.next()).collect();
        assert!(gusts.iter().all(|gust| *gust == again.next()));
        assert_ne!(Storm::new(8).next(), gusts[0]);
        let names: BTreeSet<_> = gusts.iter().map(|gust| gust.fault.name()).collect();
        assert_eq!(names.len(), 22);
        assert!(gusts.iter().all(|gust| gust.lasts <= Duration::from_secs(2)));
    }
}
