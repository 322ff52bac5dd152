//! Where machines that Omni does not know yet booted from, kept over a restart of this process: such a machine is given its
//! config and its tunnel by that alone, and loading a kernel takes longer than a restart.
//!
//! An edge: it writes the store. What is kept is bounded in number and age, and so is how often it is written: a stranger
//! can make up as many UUIDs as he likes.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::rack::Sighting;
use crate::machine::MachineId;
use crate::store::{self, Batch, Store, Tree};
use crate::time::{UnixTime, Uptime};

/// Keys: `seen/<machine>` in [`Tree::Meta`].
const SEEN: &str = "seen/";
/// Machines kept.
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
    /// Oldest first.
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

    /// The sightings of the last run that still count; the others are forgotten.
    ///
    /// # Errors
    ///
    /// [`store::Error`].
    pub async fn load(&self, now: UnixTime) -> Result<Vec<(MachineId, Sighting)>, store::Error> {
        let mut found = Vec::new();
        let mut batch = Batch::new();
        let mut stale = false;
        for (key, value) in self.store.list(Tree::Meta).await? {
            let Some(id) = key.strip_prefix(SEEN) else { continue };
            match (id.parse::<MachineId>(), decode(&value)) {
                (Ok(id), Some((at, sighting))) if now.since(at) <= AGE_MAX => found.push((at, id, sighting)),
                _ => {
                    batch = batch.remove(Tree::Meta, key);
                    stale = true;
                }
            }
        }
        if stale {
            self.store.commit(batch).await?;
        }
        found.sort_by_key(|(at, ..)| *at);
        let found: Vec<_> = found.into_iter().map(|(_, id, sighting)| (id, sighting)).collect();
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.order.extend(found.iter().map(|(id, _)| id.clone()));
        Ok(found)
    }

    /// Keeps a sighting, unless too many came lately.
    ///
    /// # Errors
    ///
    /// [`store::Error`].
    pub async fn keep(
        &self,
        id: &MachineId,
        sighting: &Sighting,
        at: UnixTime,
        now: Uptime,
    ) -> Result<(), store::Error> {
        let mut batch = Batch::new().put(Tree::Meta, format!("{SEEN}{id}"), encode(at, sighting));
        {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if !kept.allowance.take(now) {
                return Ok(());
            }
            kept.order.retain(|known| known != id);
            kept.order.push_back(id.clone());
            if kept.order.len() > CAP
                && let Some(oldest) = kept.order.pop_front()
            {
                batch = batch.remove(Tree::Meta, format!("{SEEN}{oldest}"));
            }
        }
        self.store.commit(batch).await
    }
}

/// `<Unix seconds> <address> <MAC address, perhaps empty>`.
fn encode(at: UnixTime, sighting: &Sighting) -> Vec<u8> {
    format!("{} {} {}", at.as_secs(), sighting.address, sighting.mac).into_bytes()
}

fn decode(value: &[u8]) -> Option<(UnixTime, Sighting)> {
    let mut words = std::str::from_utf8(value).ok()?.splitn(3, ' ');
    let at = UnixTime::from_secs(words.next()?.parse().ok()?);
    let address: IpAddr = words.next()?.parse().ok()?;
    Some((at, Sighting { mac: words.next()?.to_owned(), address }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::memory::MemoryStore;

    const AT: UnixTime = UnixTime::from_secs(1_700_000_000);

    fn id(number: u32) -> MachineId {
        format!("4c4c4544-0042-3510-8054-{number:012x}").parse().unwrap()
    }

    fn sighting(last: u8) -> Sighting {
        Sighting { mac: "52-54-00-00-00-01".into(), address: IpAddr::from([127, 0, 0, last]) }
    }

    #[tokio::test]
    async fn a_sighting_outlives_the_process_and_not_the_day() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let before = Sightings::new(Arc::clone(&store), Uptime::default());
        before.keep(&id(1), &sighting(1), AT, Uptime::default()).await.unwrap();
        before.keep(&id(2), &sighting(2), AT + AGE_MAX, Uptime::default()).await.unwrap();
        let after = Sightings::new(Arc::clone(&store), Uptime::default());
        let loaded = after.load(AT + AGE_MAX).await.unwrap();
        assert_eq!(loaded, [(id(1), sighting(1)), (id(2), sighting(2))]);
        let later = Sightings::new(store, Uptime::default());
        assert_eq!(later.load(AT + AGE_MAX + WON_BACK).await.unwrap(), [(id(2), sighting(2))]);
    }

    #[tokio::test]
    async fn a_flood_of_strangers_is_neither_kept_whole_nor_written_whole() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let all = Sightings::new(Arc::clone(&store), Uptime::default());
        for number in 0..1_000 {
            all.keep(&id(number), &sighting(1), AT, Uptime::default()).await.unwrap();
        }
        assert_eq!(store.list(Tree::Meta).await.unwrap().len(), BURST as usize);
        for number in 0..1_000 {
            let now = Uptime::from_secs(u64::from(number) + 1);
            all.keep(&id(number), &sighting(1), AT, now).await.unwrap();
        }
        assert_eq!(store.list(Tree::Meta).await.unwrap().len(), CAP);
    }
}
