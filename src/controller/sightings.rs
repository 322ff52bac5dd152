//! Where machines dial in from, kept over a restart of this process: one that Omni does not know is given its config and its
//! tunnel by that alone, and loading a kernel takes longer than a restart; one that Omni knows is not turned away because
//! a stranger was first to use its name afterwards.
//!
//! An edge: it writes the store. What a boot alone leaves is bounded in number and age, and so is how often it is written:
//! a stranger can make up as many UUIDs as he likes. What an agent's tunnel leaves is bounded by the machines of Omni.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::addresses::{Addresses, Seen, Sighting};
use crate::machine::MachineId;
use crate::store::{self, Batch, Store, Tree};
use crate::time::{UnixTime, Uptime};

/// Keys: `seen/<machine>` in [`Tree::Meta`].
const SEEN: &str = "seen/";
/// Machines kept that no agent has served.
const CAP: usize = 256;
/// How long a sighting counts. Longer than any boot, shorter than a machine is lent to somebody else.
const AGE_MAX: Duration = Duration::from_secs(86_400);
/// Writes in a row, and the time in which one of them is won back.
const BURST: u32 = 64;
const WON_BACK: Duration = Duration::from_secs(1);

/// The kept sightings.
pub struct Sightings {
    store: Arc<dyn Store>,
    kept: Mutex<Kept>,
}

struct Kept {
    /// Machines that no agent has served, oldest first.
    order: VecDeque<MachineId>,
    allowance: Allowance,
}

/// How many writes are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allowance {
    left: u32,
    at: Uptime,
}

impl Allowance {
    /// Takes one, if there is one.
    fn take(&mut self, now: Uptime) -> bool {
        let won = now.since(self.at).as_secs() / WON_BACK.as_secs();
        if won > 0 {
            self.left = self.left.saturating_add(u32::try_from(won).unwrap_or(u32::MAX)).min(BURST);
            self.at = now;
        }
        let any = self.left > 0;
        self.left = self.left.saturating_sub(1);
        any
    }
}

impl Sightings {
    /// No sightings yet; [`Self::load`] brings those of the last run.
    pub fn new(store: Arc<dyn Store>, now: Uptime) -> Self {
        let allowance = Allowance { left: BURST, at: now };
        Self { store, kept: Mutex::new(Kept { order: VecDeque::new(), allowance }) }
    }

    /// The addresses of the last run that still count; the others are forgotten.
    ///
    /// # Errors
    ///
    /// [`store::Error`].
    pub async fn load(&self, now: UnixTime) -> Result<Vec<(MachineId, Addresses)>, store::Error> {
        let mut found = Vec::new();
        let mut batch = Batch::new();
        let mut stale = false;
        for (key, value) in self.store.list(Tree::Meta).await? {
            let Some(id) = key.strip_prefix(SEEN) else { continue };
            let counts = |seen: &Seen| seen.served || now.since(seen.at) <= AGE_MAX;
            let addresses: Addresses = decode(&value).into_iter().filter(counts).collect();
            match id.parse::<MachineId>() {
                Ok(id) if !addresses.is_empty() => found.push((id, addresses)),
                _ => {
                    batch = batch.remove(Tree::Meta, key);
                    stale = true;
                }
            }
        }
        if stale {
            self.store.commit(batch).await?;
        }
        found.sort_by_key(|(_, addresses)| addresses.iter().map(|seen| seen.at).max());
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let booted = found.iter().filter(|(_, addresses)| !served(addresses)).map(|(id, _)| id.clone());
        kept.order.extend(booted);
        Ok(found)
    }

    /// Keeps where a machine booted from, unless too much came lately.
    ///
    /// # Errors
    ///
    /// [`store::Error`].
    pub async fn keep_boot(&self, id: &MachineId, addresses: &Addresses, now: Uptime) -> Result<(), store::Error> {
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if !kept.allowance.take(now) {
                return Ok(());
            }
        }
        self.keep(id, addresses).await
    }

    /// Keeps where an agent works from. Only for a machine that Omni knows: there is no bound on these.
    ///
    /// # Errors
    ///
    /// [`store::Error`].
    pub async fn keep(&self, id: &MachineId, addresses: &Addresses) -> Result<(), store::Error> {
        let mut batch = Batch::new().put(Tree::Meta, key(id), encode(addresses));
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.order.retain(|known| known != id);
            if !served(addresses) {
                kept.order.push_back(id.clone());
            }
            if kept.order.len() > CAP
                && let Some(oldest) = kept.order.pop_front()
            {
                batch = batch.remove(Tree::Meta, key(&oldest));
            }
        }
        self.store.commit(batch).await
    }
}

/// The key of a machine's addresses, in [`Tree::Meta`].
pub fn key(id: &MachineId) -> String {
    format!("{SEEN}{id}")
}

fn served(addresses: &Addresses) -> bool {
    addresses.iter().any(|seen| seen.served)
}

/// A line an address, the newest last: `<Unix seconds> <address> <booted or served> <MAC address, perhaps empty>`.
fn encode(addresses: &Addresses) -> Vec<u8> {
    let line = |seen: &Seen| {
        let word = if seen.served { "served" } else { "booted" };
        format!("{} {} {word} {}\n", seen.at.as_secs(), seen.sighting.address, seen.sighting.mac)
    };
    addresses.iter().map(line).collect::<String>().into_bytes()
}

/// What lines can be read.
fn decode(value: &[u8]) -> Vec<Seen> {
    let line = |line: &str| {
        let mut words = line.splitn(4, ' ');
        let at = UnixTime::from_secs(words.next()?.parse().ok()?);
        let address: IpAddr = words.next()?.parse().ok()?;
        let served = match words.next()? {
            "served" => true,
            "booted" => false,
            _ => return None,
        };
        Some(Seen { sighting: Sighting { mac: words.next()?.to_owned(), address }, at, served })
    };
    std::str::from_utf8(value).unwrap_or_default().lines().filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    const AT: UnixTime = UnixTime::from_secs(1_700_000_000);

    fn id(number: u32) -> MachineId {
        format!("4c4c4544-0042-3510-8054-{number:012x}").parse().unwrap()
    }

    fn addresses(last: u8, at: UnixTime) -> Addresses {
        let mut addresses = Addresses::default();
        addresses.booted(Sighting { mac: "52-54-00-00-00-01".into(), address: IpAddr::from([127, 0, 0, last]) }, at);
        addresses
    }

    #[tokio::test]
    async fn a_boot_outlives_the_process_and_not_the_day() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let before = Sightings::new(Arc::clone(&store), Uptime::default());
        before.keep_boot(&id(1), &addresses(1, AT), Uptime::default()).await.unwrap();
        before.keep_boot(&id(2), &addresses(2, AT + AGE_MAX), Uptime::default()).await.unwrap();
        let after = Sightings::new(Arc::clone(&store), Uptime::default());
        let loaded = after.load(AT + AGE_MAX).await.unwrap();
        assert_eq!(loaded, [(id(1), addresses(1, AT)), (id(2), addresses(2, AT + AGE_MAX))]);
        let later = Sightings::new(store, Uptime::default());
        assert_eq!(later.load(AT + AGE_MAX + WON_BACK).await.unwrap(), [(id(2), addresses(2, AT + AGE_MAX))]);
    }

    #[tokio::test]
    async fn an_agents_address_outlives_the_day_and_any_flood() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let all = Sightings::new(Arc::clone(&store), Uptime::default());
        let mut machine = addresses(1, AT);
        machine.served(IpAddr::from([127, 0, 0, 1]), AT);
        all.keep(&id(0), &machine).await.unwrap();
        for number in 1..1_000 {
            let now = Uptime::from_secs(u64::from(number));
            all.keep_boot(&id(number), &addresses(2, AT), now).await.unwrap();
        }
        let after = Sightings::new(store, Uptime::default());
        assert_eq!(after.load(AT + AGE_MAX + WON_BACK).await.unwrap(), [(id(0), machine)]);
    }

    #[tokio::test]
    async fn a_flood_of_strangers_is_neither_kept_whole_nor_written_whole() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let all = Sightings::new(Arc::clone(&store), Uptime::default());
        for number in 0..1_000 {
            all.keep_boot(&id(number), &addresses(1, AT), Uptime::default()).await.unwrap();
        }
        assert_eq!(store.list(Tree::Meta).await.unwrap().len(), BURST as usize);
        for number in 0..1_000 {
            let now = Uptime::from_secs(u64::from(number) + 1);
            all.keep_boot(&id(number), &addresses(1, AT), now).await.unwrap();
        }
        assert_eq!(store.list(Tree::Meta).await.unwrap().len(), CAP);
    }
}
