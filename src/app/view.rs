//! The last view of Omni in the local store, so that a box that starts without its uplink still answers the boots it
//! knew.
//!
//! Every resource is sealed as a whole: join tokens and BMC passwords are among them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio_util::sync::CancellationToken;

use crate::omni::Mirror;
use crate::omni::mirror::Change;
use crate::resource::Resource;
use crate::secret::Secret;
use crate::store::seal::SealingKey;
use crate::store::{self, Batch, MAX_KEY, MAX_VALUE, Store, Tree};
use crate::telemetry::Counters;

/// Changes are gathered this long before they are written: a view may lag, a disk should not be worn.
const GATHER: Duration = Duration::from_secs(1);
/// Resources in one commit.
const CHUNK: usize = 256;
/// What every record is sealed for.
const CONTEXT: &str = "view";

/// The resources that the store holds. Those that do not read are left out and said once: Omni has them.
///
/// # Errors
///
/// [`store::Error`] when the store can't be read at all.
pub async fn load(store: &dyn Store, sealing: &SealingKey) -> Result<Vec<Resource>, store::Error> {
    let records = store.list(Tree::View).await?;
    let count = records.len();
    let resources: Vec<_> = records
        .into_iter()
        .filter_map(|(_, value)| {
            let text = String::from_utf8(value).ok()?;
            let encoded = sealing.unseal(&text, CONTEXT).ok()?;
            let octets = STANDARD.decode(encoded.reveal()).ok()?;
            postcard::from_bytes(&octets).ok()
        })
        .collect();
    if resources.len() < count {
        tracing::warn!(unreadable = count - resources.len(), "part of the stored view does not read and is left out");
    }
    Ok(resources)
}

/// Keeps the store's view up with `mirror` until `cancel`, then writes what is left.
pub async fn keep(
    mirror: Mirror,
    store: Arc<dyn Store>,
    sealing: SealingKey,
    counters: Counters,
    cancel: CancellationToken,
) {
    let mut changes = mirror.subscribe();
    loop {
        // Cancel-safe: `next` holds what it has not returned.
        let mut changed = tokio::select! {
            () = cancel.cancelled() => break,
            changed = changes.next() => changed,
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(GATHER) => {}
        }
        changed.extend(changes.take());
        write(&mirror, &*store, &sealing, &counters, &changed).await;
    }
    write(&mirror, &*store, &sealing, &counters, &changes.take()).await;
}

async fn write(
    mirror: &Mirror,
    store: &dyn Store,
    sealing: &SealingKey,
    counters: &Counters,
    changed: &BTreeSet<Change>,
) {
    let changed: Vec<_> = changed.iter().collect();
    for chunk in changed.chunks(CHUNK) {
        let batch = chunk.iter().fold(Batch::new(), |batch, change| {
            let key = format!("{}/{}", change.kind.r#type, change.id);
            if key.len() > MAX_KEY {
                return batch;
            }
            match mirror.get(&change.kind, &change.id).map(|resource| sealed(&resource, sealing)) {
                Some(Some(value)) if value.len() <= MAX_VALUE => batch.put(Tree::View, key, value),
                Some(_) => batch,
                None => batch.remove(Tree::View, key),
            }
        });
        if batch.is_empty() {
            continue;
        }
        if let Err(error) = store.commit(batch).await {
            counters.count("view_not_stored");
            tracing::warn!(%error, "view not stored; after a restart without Omni it would be older");
        }
    }
}

fn sealed(resource: &Resource, sealing: &SealingKey) -> Option<Vec<u8>> {
    let octets = postcard::to_stdvec(resource).ok()?;
    sealing.seal(&Secret::new(STANDARD.encode(octets)), CONTEXT).ok().map(String::into_bytes)
}
