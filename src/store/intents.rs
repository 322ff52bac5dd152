//! Intents: what is begun on a machine, recorded before it happens.
//!
//! A controller that crashes between a side effect and its record in Omni would repeat it: wipe again, cycle the power
//! again. It therefore commits the intent first and clears it once Omni knows. One machine has one intent at a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Batch, Store, Tree};
use crate::machine::{InvalidMachineId, MachineId};
use crate::reconcile::Intent;

/// First octet of every record: the version of what follows.
const VERSION: u8 = 1;

/// Why intents could not be read or recorded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store refuses.
    #[error("the intents can't be reached")]
    Store(#[source] super::Error),
    /// The key is no machine's ID.
    #[error("the intent {key:?} belongs to no machine")]
    Key {
        /// The key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: InvalidMachineId,
    },
    /// The record is empty or does not decode.
    #[error("the intent {key:?} is damaged")]
    Damaged {
        /// The key.
        key: String,
        /// What the decoder says; `None` for an empty record.
        #[source]
        source: Option<postcard::Error>,
    },
    /// The record was written by another version of this program.
    #[error("the intent {key:?} has version {found}; this program knows {VERSION}")]
    Version {
        /// The key.
        key: String,
        /// Its version.
        found: u8,
    },
    /// The record does not encode.
    #[error("the intent {key:?} does not encode")]
    Encode {
        /// The key.
        key: String,
        /// Why not.
        #[source]
        source: postcard::Error,
    },
}

/// What was found at start.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Every intent that reads.
    pub intents: BTreeMap<MachineId, Intent>,
    /// Every one that does not. Nothing may be begun on the machine that such a key names: what was begun is unknown.
    pub unreadable: Vec<(String, Error)>,
}

/// The intents of a store.
#[derive(Clone)]
pub struct Intents {
    store: Arc<dyn Store>,
}

/// `batch` with the intent of `machine` forgotten in the same commit.
pub fn cleared(batch: Batch, machine: &MachineId) -> Batch {
    batch.remove(Tree::Intent, machine.as_str())
}

/// `batch` with `intent` recorded for `machine` in the same commit, in place of its former one.
///
/// # Errors
///
/// [`Error::Encode`].
pub fn replaced(batch: Batch, machine: &MachineId, intent: &Intent) -> Result<Batch, Error> {
    Ok(batch.put(Tree::Intent, machine.as_str(), encode(machine.as_str(), intent)?))
}

impl Intents {
    /// The intents in `store`.
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Every recorded intent; one that does not read is reported beside the others.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub async fn load_all(&self) -> Result<Loaded, Error> {
        let mut loaded = Loaded::default();
        for (key, value) in self.store.list(Tree::Intent).await.map_err(Error::Store)? {
            match parse_key(&key).and_then(|machine| Ok((machine, decode(&key, &value)?))) {
                Ok((machine, intent)) => drop(loaded.intents.insert(machine, intent)),
                Err(error) => loaded.unreadable.push((key, error)),
            }
        }
        Ok(loaded)
    }

    /// The intent of `machine`, or `None`.
    ///
    /// # Errors
    ///
    /// Also when it does not read: then what was begun is unknown.
    pub async fn get(&self, machine: &MachineId) -> Result<Option<Intent>, Error> {
        let value = self.store.get(Tree::Intent, machine.as_str()).await.map_err(Error::Store)?;
        value.map(|value| decode(machine.as_str(), &value)).transpose()
    }

    /// Records `intent`, in place of the machine's former one; it is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// [`Error::Store`]: then the side effect must not be begun.
    pub async fn put(&self, machine: &MachineId, intent: &Intent) -> Result<(), Error> {
        let value = encode(machine.as_str(), intent)?;
        self.store.commit(Batch::new().put(Tree::Intent, machine.as_str(), value)).await.map_err(Error::Store)
    }

    /// Forgets the intent of `machine`.
    ///
    /// # Errors
    ///
    /// [`Error::Store`].
    pub async fn clear(&self, machine: &MachineId) -> Result<(), Error> {
        self.store.commit(Batch::new().remove(Tree::Intent, machine.as_str())).await.map_err(Error::Store)
    }
}

fn parse_key(key: &str) -> Result<MachineId, Error> {
    key.parse().map_err(|source| Error::Key { key: key.to_owned(), source })
}

/// The octets of a record: the version, then its fields in postcard's encoding.
fn encode(key: &str, intent: &Intent) -> Result<Vec<u8>, Error> {
    postcard::to_extend(intent, vec![VERSION]).map_err(|source| Error::Encode { key: key.to_owned(), source })
}

fn decode(key: &str, value: &[u8]) -> Result<Intent, Error> {
    let damaged = |source| Error::Damaged { key: key.to_owned(), source };
    let (version, body) = value.split_first().ok_or_else(|| damaged(None))?;
    if *version != VERSION {
        return Err(Error::Version { key: key.to_owned(), found: *version });
    }
    match postcard::take_from_bytes(body) {
        Ok((intent, [])) => Ok(intent),
        Ok((_, _)) => Err(damaged(None)),
        Err(source) => Err(damaged(Some(source))),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::reconcile::{RebootCause, Step};
    use crate::store::memory::MemoryStore;
    use crate::time::UnixTime;

    fn machine(last: u8) -> MachineId {
        format!("4c4c4544-0042-3510-8054-b7c04f3331{last:02x}").parse().unwrap()
    }

    fn samples() -> Vec<Intent> {
        let requested = RebootCause::Requested("r1".into());
        [
            Step::Wipe { wipe_id: "w1".into(), install_event_id: 300, node_unique_token: "t".into() },
            Step::RebootOff { cause: requested, pxe: true },
            Step::RebootOn { cause: RebootCause::Removed, pxe: false },
            Step::PowerOn { pxe: true, reboot_id: None },
            Step::PowerOff,
            Step::BmcUser {
                username: "talos-agent".into(),
                sealed_password: "sealed:v1:AA==".into(),
                address: "10.0.0.7".into(),
                port: 623,
            },
            Step::Release,
        ]
        .map(|step| Intent { started: UnixTime::from_secs(5), step })
        .into()
    }

    #[tokio::test]
    async fn a_machine_has_one_intent_at_a_time() {
        let intents = Intents::new(Arc::new(MemoryStore::new()));
        for intent in samples() {
            intents.put(&machine(1), &intent).await.unwrap();
            assert_eq!(intents.get(&machine(1)).await.unwrap(), Some(intent.clone()));
            let loaded = intents.load_all().await.unwrap();
            assert_eq!(loaded.intents, BTreeMap::from([(machine(1), intent)]));
        }
        intents.clear(&machine(1)).await.unwrap();
        assert!(intents.load_all().await.unwrap().intents.is_empty());
        assert_eq!(intents.get(&machine(1)).await.unwrap(), None);
    }

    #[tokio::test]
    async fn an_unreadable_intent_is_named_and_hides_no_other() {
        let store = Arc::new(MemoryStore::new());
        let intents = Intents::new(store.clone());
        let good = samples().remove(0);
        intents.put(&machine(1), &good).await.unwrap();
        let batch = Batch::new()
            .put(Tree::Intent, machine(2).as_str(), [9, 0])
            .put(Tree::Intent, machine(3).as_str(), [1, 77])
            .put(Tree::Intent, machine(4).as_str(), [])
            .put(Tree::Intent, "nobody", [1]);
        store.commit(batch).await.unwrap();
        let loaded = intents.load_all().await.unwrap();
        assert_eq!(loaded.intents.len(), 1);
        let told: Vec<_> = loaded.unreadable.iter().map(|(_, error)| error.to_string()).collect();
        assert_eq!(
            told,
            [
                format!("the intent {:?} has version 9; this program knows 1", machine(2).as_str()),
                format!("the intent {:?} is damaged", machine(3).as_str()),
                format!("the intent {:?} is damaged", machine(4).as_str()),
                "the intent \"nobody\" belongs to no machine".to_owned(),
            ]
        );
        assert!(matches!(intents.get(&machine(2)).await, Err(Error::Version { found: 9, .. })));
    }

    #[test]
    fn the_octets_of_version_1_are_frozen() {
        let frozen = [
            "01 0500 00 0277 31 ac02 0174",
            "01 0500 01 00 0272 31 01",
            "01 0500 02 03 00",
            "01 0500 03 01 00",
            "01 0500 04",
            "01 0500 05 0831302e302e302e37 ef04 0b74616c6f732d6167656e74 0e7365616c65643a76313a41413d3d",
            "01 0500 06",
        ];
        for (intent, frozen) in samples().into_iter().zip(frozen) {
            let octets = encode("k", &intent).unwrap();
            let hex: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
            assert_eq!(hex, frozen.replace(' ', ""));
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_an_intent_or_an_error(octets in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = decode("k", &octets);
        }

        #[test]
        fn a_cut_record_is_an_error(which in 0..7_usize, cut in any::<proptest::sample::Index>()) {
            let octets = encode("k", &samples().remove(which)).unwrap();
            let cut = cut.index(octets.len());
            prop_assert!(decode("k", &octets[..cut]).is_err());
        }
    }
}
