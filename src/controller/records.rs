//! The resources about a machine: what Omni wants, what this provider recorded, and how a record is written so that
//! neither a crash nor an absent Omni loses it.
//!
//! Omni holds the truth. A record is committed to the store first, together with the intent that it ends, and pushed
//! then; until Omni has taken it, it stands in for Omni's copy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::sightings::{self, Sightings};
use crate::machine::{BmcRecord, Desired, MachineId, Recorded};
use crate::omni::mirror::Freshness;
use crate::omni::{self, Mirror, State};
use crate::proto::{provider, specs};
use crate::reconcile::{Intent, UserBmc};
use crate::resource::{Kind, Resource};
use crate::secret::Secret;
use crate::store::intents::{self, Intents};
use crate::store::seal::{self, SealingKey, is_sealed};
use crate::store::{self, Batch, Store, Tree};
use crate::time::Uptime;

/// Keys of records that Omni has not taken yet: `unsent/<machine>/<name>` in [`Tree::Meta`].
const UNSENT: &str = "unsent/";
/// The IPMI port where none is given.
const IPMI_PORT: u16 = 623;

/// A kind of record that this provider keeps about a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Record {
    /// BMC access.
    BmcConfiguration,
    /// Agent and power, as observed.
    MachineStatus,
    /// The last power operation.
    PowerOperation,
    /// The last reboot.
    RebootStatus,
    /// The last wipe.
    WipeStatus,
}

impl Record {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::BmcConfiguration, Self::MachineStatus, Self::PowerOperation, Self::RebootStatus, Self::WipeStatus];

    /// The type's name before `.<id>.infraprovider.sidero.dev`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BmcConfiguration => "BMCConfiguration",
            Self::MachineStatus => "MachineStatus",
            Self::PowerOperation => "PowerOperation",
            Self::RebootStatus => "RebootStatus",
            Self::WipeStatus => "WipeStatus",
        }
    }
}

/// The Go provider's controllers, whose names are owners and finalizers.
pub const CONTROLLERS: [&str; 6] = [
    "MachineStatusController",
    "InfraMachineStatusController",
    "BMCConfigurationController",
    "PowerOperationController",
    "RebootStatusController",
    "WipeStatusController",
];

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The local store would not take it.
    #[error("the local store failed")]
    Store(#[source] store::Error),
    /// Omni would not take it.
    #[error("Omni refused or could not be reached")]
    Omni(#[source] omni::Error),
    /// An intent could not be kept.
    #[error("the intent could not be kept")]
    Intent(#[source] intents::Error),
    /// A password could not be sealed.
    #[error("the password could not be sealed")]
    Sealing(#[source] seal::Error),
}

/// The records of all machines. A cheap handle.
#[derive(Clone)]
pub struct Records {
    inner: Arc<Inner>,
}

struct Inner {
    provider_id: String,
    state: State,
    mirror: Mirror,
    sightings: Sightings,
    store: Arc<dyn Store>,
    intents: Intents,
    sealing: SealingKey,
    clear_passwords: bool,
    unsent: Mutex<BTreeMap<(MachineId, Record), Vec<u8>>>,
    complained: Mutex<BTreeSet<MachineId>>,
}

impl Records {
    /// Records over Omni's `state`, its `mirror` and the local `store`.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] when the unsent records of the last run can't be read.
    pub async fn load(
        provider_id: &str,
        state: State,
        mirror: Mirror,
        store: Arc<dyn Store>,
        sealing: SealingKey,
        clear_passwords: bool,
    ) -> Result<Self, Error> {
        let mut unsent = BTreeMap::new();
        for (key, value) in store.list(Tree::Meta).await.map_err(Error::Store)? {
            let Some((machine, name)) = key.strip_prefix(UNSENT).and_then(|rest| rest.split_once('/')) else {
                continue;
            };
            let record = Record::ALL.into_iter().find(|record| record.name() == name);
            if let (Ok(machine), Some(record)) = (machine.parse(), record) {
                unsent.insert((machine, record), value);
            }
        }
        let provider_id = provider_id.to_owned();
        let unsent = Mutex::new(unsent);
        let intents = Intents::new(Arc::clone(&store));
        let inner = Inner {
            provider_id,
            state,
            mirror,
            sightings: Sightings::new(Arc::clone(&store), Uptime::now()),
            store,
            intents,
            sealing,
            clear_passwords,
            unsent,
            complained: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The provider's ID.
    pub fn provider_id(&self) -> &str {
        &self.inner.provider_id
    }

    /// Omni's resources as last seen.
    pub fn mirror(&self) -> &Mirror {
        &self.inner.mirror
    }

    /// Where machines that Omni does not know yet booted from.
    pub fn sightings(&self) -> &Sightings {
        &self.inner.sightings
    }

    /// The kind of a record.
    pub fn kind(&self, record: Record) -> Kind {
        Kind::private(record.name(), &self.inner.provider_id)
    }

    /// What Omni wants of a machine; `None` when it does not know it.
    pub fn desired(&self, id: &MachineId) -> Option<Desired> {
        let resource = self.inner.mirror.get(&Kind::omni("InfraMachines"), id.as_str())?;
        Desired::from_resource(&resource)
            .inspect_err(|error| tracing::error!(machine = %id, %error, "InfraMachine does not decode"))
            .ok()
    }

    /// The credentials that a person gave for a machine.
    pub fn user_bmc(&self, id: &MachineId) -> Option<UserBmc> {
        let resource = self.inner.mirror.get(&Kind::omni("BMCConfigs"), id.as_str())?;
        let ipmi = resource.decode::<specs::BmcConfigSpec>().ok()?.config?.ipmi?;
        Some(UserBmc {
            address: ipmi.address,
            port: u16::try_from(ipmi.port).ok().filter(|port| *port != 0).unwrap_or(IPMI_PORT),
            username: ipmi.username,
            password: Secret::new(ipmi.password),
        })
    }

    /// What this provider recorded about a machine.
    pub fn recorded(&self, id: &MachineId) -> Recorded {
        Recorded {
            bmc: self.decode(id, Record::BmcConfiguration).and_then(|spec| self.bmc_record(id, spec)),
            wipe: self.decode::<provider::WipeStatusSpec>(id, Record::WipeStatus).unwrap_or_default().into(),
            reboot: self.decode::<provider::RebootStatusSpec>(id, Record::RebootStatus).unwrap_or_default().into(),
            power: self.decode::<provider::PowerOperationSpec>(id, Record::PowerOperation).unwrap_or_default().into(),
            initialized: self
                .decode::<provider::MachineStatusSpec>(id, Record::MachineStatus)
                .is_some_and(|s| s.initialized),
        }
    }

    fn decode<M: prost::Message + Default>(&self, id: &MachineId, record: Record) -> Option<M> {
        let unsent = self.unsent().get(&(id.clone(), record)).cloned();
        let decoded = match unsent {
            Some(octets) => M::decode(octets.as_slice()),
            None => self.inner.mirror.get(&self.kind(record), id.as_str())?.decode(),
        };
        decoded
            .inspect_err(
                |error| tracing::error!(machine = %id, record = record.name(), %error, "record does not decode"),
            )
            .ok()
    }

    fn bmc_record(&self, id: &MachineId, spec: provider::BmcConfigurationSpec) -> Option<BmcRecord> {
        let ipmi = spec.ipmi?;
        let password = if is_sealed(&ipmi.password) {
            self.inner
                .sealing
                .unseal(&ipmi.password, &self.sealing_context(id))
                .inspect_err(|error| self.complain_once(id, error))
                .ok()?
        } else {
            Secret::new(ipmi.password)
        };
        Some(BmcRecord {
            address: ipmi.address,
            port: u16::try_from(ipmi.port).unwrap_or(IPMI_PORT),
            username: ipmi.username,
            password,
            manual: spec.manually_configured,
        })
    }

    /// A password that does not unseal is met with every look at the machine; one line about it is enough. The plan has
    /// the agent set up a new one.
    fn complain_once(&self, id: &MachineId, error: &seal::Error) {
        let mut complained = self.inner.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.insert(id.clone()) {
            tracing::error!(machine = %id, %error, "BMC password was sealed with another box's key");
        }
    }

    /// Whether Omni holds the machine's BMC password in another form than it should: a Go provider's, in clear.
    pub fn password_form_is_wrong(&self, id: &MachineId) -> bool {
        self.decode::<provider::BmcConfigurationSpec>(id, Record::BmcConfiguration)
            .and_then(|spec| spec.ipmi)
            .is_some_and(|ipmi| is_sealed(&ipmi.password) == self.inner.clear_passwords)
    }

    /// The octets of a `BMCConfiguration`, its password sealed unless the flag says otherwise.
    ///
    /// # Errors
    ///
    /// [`Error::Sealing`].
    pub fn encode_bmc(&self, id: &MachineId, bmc: &BmcRecord) -> Result<Vec<u8>, Error> {
        let password =
            if self.inner.clear_passwords { bmc.password.reveal().clone() } else { self.seal(id, &bmc.password)? };
        let ipmi = provider::bmc_configuration_spec::Ipmi {
            address: bmc.address.clone(),
            port: bmc.port.into(),
            username: bmc.username.clone(),
            password,
        };
        let spec = provider::BmcConfigurationSpec { ipmi: Some(ipmi), api: None, manually_configured: bmc.manual };
        Ok(prost::Message::encode_to_vec(&spec))
    }

    /// Seals a password for this machine.
    ///
    /// # Errors
    ///
    /// [`Error::Sealing`].
    pub fn seal(&self, id: &MachineId, password: &Secret<String>) -> Result<String, Error> {
        self.inner.sealing.seal(password, &self.sealing_context(id)).map_err(Error::Sealing)
    }

    /// The password in a sealed text of this machine's.
    pub fn unseal(&self, id: &MachineId, sealed: &str) -> Option<Secret<String>> {
        self.inner.sealing.unseal(sealed, &self.sealing_context(id)).ok()
    }

    fn sealing_context(&self, id: &MachineId) -> String {
        format!("{}/{id}", self.inner.provider_id)
    }

    /// Keeps an intent before what it says is done.
    ///
    /// # Errors
    ///
    /// [`Error::Intent`]; the side effect must not happen then.
    pub async fn intend(&self, id: &MachineId, intent: &Intent) -> Result<(), Error> {
        self.inner.intents.put(id, intent).await.map_err(Error::Intent)
    }

    /// Drops an intent that came to nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Intent`].
    pub async fn abandon(&self, id: &MachineId) -> Result<(), Error> {
        self.inner.intents.clear(id).await.map_err(Error::Intent)
    }

    /// The intent that a machine's last run left behind.
    ///
    /// # Errors
    ///
    /// [`Error::Intent`] when it can't be read.
    pub async fn intent(&self, id: &MachineId) -> Result<Option<Intent>, Error> {
        self.inner.intents.get(id).await.map_err(Error::Intent)
    }

    /// The machines on which the last run left something unfinished. An intent that does not read is said and left: its
    /// machine's task refuses to act.
    ///
    /// # Errors
    ///
    /// [`Error::Intent`] when the store can't be read.
    pub async fn unfinished(&self) -> Result<Vec<MachineId>, Error> {
        let loaded = self.inner.intents.load_all().await.map_err(Error::Intent)?;
        for (key, error) in &loaded.unreadable {
            tracing::error!(key, error = %chain(error), "intent does not read; nothing is done to its machine");
        }
        Ok(loaded.intents.into_keys().collect())
    }

    /// Records what was done and ends its intent, in one commit; then tells Omni.
    ///
    /// An Omni that can't be told is no error: the record stands, and [`Self::push`] tells it later.
    ///
    /// # Errors
    ///
    /// [`Error::Store`]: nothing was recorded, the intent stands.
    pub async fn finish(&self, id: &MachineId, records: Vec<(Record, Vec<u8>)>) -> Result<(), Error> {
        self.commit(id, records, intents::cleared(Batch::new(), id)).await
    }

    /// As [`Self::finish`], with what comes `next` kept in the same commit: a crash leaves the one intent or the other,
    /// never none.
    ///
    /// # Errors
    ///
    /// [`Error::Store`] or [`Error::Intent`]: nothing was recorded, the former intent stands.
    pub async fn finish_and_intend(
        &self,
        id: &MachineId,
        records: Vec<(Record, Vec<u8>)>,
        next: &Intent,
    ) -> Result<(), Error> {
        self.commit(id, records, intents::replaced(Batch::new(), id, next).map_err(Error::Intent)?).await
    }

    async fn commit(&self, id: &MachineId, records: Vec<(Record, Vec<u8>)>, mut batch: Batch) -> Result<(), Error> {
        for (record, octets) in &records {
            batch = batch.put(Tree::Meta, unsent_key(id, *record), octets.clone());
        }
        self.inner.store.commit(batch).await.map_err(Error::Store)?;
        self.unsent().extend(records.into_iter().map(|(record, octets)| ((id.clone(), record), octets)));
        if let Err(error) = self.push(id).await {
            tracing::debug!(machine = %id, error = %chain(&error), "record waits for Omni");
        }
        Ok(())
    }

    /// Whether Omni has yet to be told something about a machine.
    pub fn has_unsent(&self, id: &MachineId) -> bool {
        self.unsent().keys().any(|(machine, _)| machine == id)
    }

    /// Tells Omni what it has not been told about a machine.
    ///
    /// # Errors
    ///
    /// [`Error::Omni`] for the first record that it did not take; the rest stays unsent too.
    pub async fn push(&self, id: &MachineId) -> Result<(), Error> {
        let unsent: Vec<_> = {
            let all = self.unsent();
            all.iter()
                .filter(|((machine, _), _)| machine == id)
                .map(|((_, record), octets)| (*record, octets.clone()))
                .collect()
        };
        for (record, octets) in unsent {
            self.publish(self.kind(record), id, &self.owner(record), octets.clone().into(), |_| ()).await?;
            let batch = Batch::new().remove(Tree::Meta, unsent_key(id, record));
            self.inner.store.commit(batch).await.map_err(Error::Store)?;
            let mut all = self.unsent();
            if all.get(&(id.clone(), record)) == Some(&octets) {
                all.remove(&(id.clone(), record));
            }
        }
        Ok(())
    }

    /// Creates or updates one resource of ours, unless it stands so already.
    ///
    /// # Errors
    ///
    /// [`Error::Omni`].
    pub async fn publish(
        &self,
        kind: Kind,
        id: &MachineId,
        owner: &str,
        spec: bytes::Bytes,
        labels: impl Fn(&mut BTreeMap<String, String>),
    ) -> Result<(), Error> {
        let present = self.inner.mirror.get(&kind, id.as_str());
        let mut wanted = match &present {
            Some(present) => present.clone(),
            None => Resource::new(kind, id.as_str(), &()),
        };
        wanted.spec = spec.clone();
        labels(&mut wanted.labels);
        if present.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let stored = self
            .inner
            .state
            .put(&wanted, owner, |resource| {
                resource.spec = spec.clone();
                labels(&mut resource.labels);
            })
            .await
            .map_err(Error::Omni)?;
        self.inner.mirror.apply_local(stored);
        Ok(())
    }

    /// The owner of a record: the Go controller's name.
    pub fn owner(&self, record: Record) -> String {
        format!("{}.{}Controller", self.inner.provider_id, record.name())
    }

    /// Our finalizers on an `InfraMachine`.
    pub fn finalizers(&self) -> Vec<String> {
        CONTROLLERS.iter().map(|name| format!("{}.{name}", self.inner.provider_id)).collect()
    }

    /// Whether one of our finalizers is missing on the machine.
    pub fn finalizers_missing(&self, id: &MachineId) -> bool {
        let resource = self.inner.mirror.get(&Kind::omni("InfraMachines"), id.as_str());
        resource.is_some_and(|resource| self.finalizers().iter().any(|name| !resource.finalizers.contains(name)))
    }

    /// Puts our finalizers on the machine.
    ///
    /// # Errors
    ///
    /// [`Error::Omni`].
    pub async fn add_finalizers(&self, id: &MachineId) -> Result<(), Error> {
        let finalizers = self.finalizers();
        let names: Vec<_> = finalizers.iter().map(String::as_str).collect();
        let stored = self
            .inner
            .state
            .add_finalizers(&Kind::omni("InfraMachines"), id.as_str(), &names)
            .await
            .map_err(Error::Omni)?;
        self.inner.mirror.apply_local(stored);
        Ok(())
    }

    /// Destroys every resource of ours about a machine and removes our finalizers from it, in that order.
    ///
    /// # Errors
    ///
    /// [`Error::Omni`] when somebody else still holds one of them, among other things; what is gone stays gone.
    pub async fn release(&self, id: &MachineId) -> Result<(), Error> {
        self.destroy_own(id).await?;
        let finalizers = self.finalizers();
        let names: Vec<_> = finalizers.iter().map(String::as_str).collect();
        self.inner
            .state
            .remove_finalizers(&Kind::omni("InfraMachines"), id.as_str(), &names)
            .await
            .map_err(Error::Omni)?;
        self.forget(id).await
    }

    /// Destroys what is left of a machine that Omni does not know, after asking Omni itself; whether it did.
    ///
    /// # Errors
    ///
    /// As [`Self::release`].
    pub async fn collect(&self, id: &MachineId) -> Result<bool, Error> {
        let machine = self.inner.state.find(&Kind::omni("InfraMachines"), id.as_str()).await.map_err(Error::Omni)?;
        if machine.is_some() {
            return Ok(false);
        }
        self.destroy_own(id).await?;
        self.forget(id).await?;
        Ok(true)
    }

    /// The machines that Omni knows.
    pub fn known(&self) -> BTreeSet<MachineId> {
        self.machines_in(&Kind::omni("InfraMachines"))
    }

    /// The machines of which this provider keeps resources in Omni.
    pub fn owners(&self) -> BTreeSet<MachineId> {
        self.own_kinds().flat_map(|kind| self.machines_in(&kind)).collect()
    }

    fn machines_in(&self, kind: &Kind) -> BTreeSet<MachineId> {
        self.inner.mirror.ids(kind).iter().filter_map(|id| id.parse().ok()).collect()
    }

    fn own_kinds(&self) -> impl Iterator<Item = Kind> {
        let own = Record::ALL.into_iter().map(|record| self.kind(record));
        own.chain([Kind::omni("InfraMachineStatuses")])
    }

    async fn destroy_own(&self, id: &MachineId) -> Result<(), Error> {
        for kind in self.own_kinds() {
            self.destroy(&kind, id).await.map_err(Error::Omni)?;
        }
        Ok(())
    }

    /// Drops what the local store holds of a machine: its intent, and what Omni was still to be told.
    async fn forget(&self, id: &MachineId) -> Result<(), Error> {
        let unsent: Vec<_> = self.unsent().keys().filter(|(machine, _)| machine == id).cloned().collect();
        let mut batch = intents::cleared(Batch::new(), id).remove(Tree::Meta, sightings::key(id));
        for (_, record) in &unsent {
            batch = batch.remove(Tree::Meta, unsent_key(id, *record));
        }
        self.inner.store.commit(batch).await.map_err(Error::Store)?;
        self.unsent().retain(|(machine, _), _| machine != id);
        Ok(())
    }

    async fn destroy(&self, kind: &Kind, id: &MachineId) -> Result<(), omni::Error> {
        let Some(resource) = self.inner.state.find(kind, id.as_str()).await? else { return Ok(()) };
        // A Go provider that ran here before left its finalizers on resources that are ours now.
        let ours = format!("{}.", self.inner.provider_id);
        let stale: Vec<_> =
            resource.finalizers.iter().filter(|name| name.starts_with(&ours)).map(String::as_str).collect();
        self.inner.state.teardown(kind, id.as_str(), &resource.owner).await?;
        if !stale.is_empty() {
            self.inner.state.remove_finalizers(kind, id.as_str(), &stale).await?;
        }
        match self.inner.state.destroy(kind, id.as_str(), &resource.owner).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => {
                self.inner.mirror.remove_local(kind, id.as_str());
                Ok(())
            }
        }
    }

    fn unsent(&self) -> std::sync::MutexGuard<'_, BTreeMap<(MachineId, Record), Vec<u8>>> {
        self.inner.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unsent_key(id: &MachineId, record: Record) -> String {
    format!("{UNSENT}{id}/{}", record.name())
}

/// Whether Omni's word is fresh enough for what can't be undone: every kind has come from Omni, and none was out of
/// sight for longer than a short break.
pub fn confirmed(mirror: &Mirror, now: Uptime) -> bool {
    /// Longer than a reconnect, shorter than anything a person does.
    const BREAK: Duration = Duration::from_secs(10);
    mirror.is_synced() && matches!(mirror.freshness(now), Freshness::Confirmed(ago) if ago <= BREAK)
}

/// An error and its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    omni::explain(error)
}
