//! Teardown and removal, on an Omni of any age.
//!
//! Source: contract omni-wire.md sections 3.2, 3.3 and 9.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::error::{Call, Error};
use super::state::State;
use super::watch::{Event, Item, jittered, random};
use crate::proto::cosi;
use crate::resource::{Kind, Phase, Resource};

/// How long a watch of one resource is trusted: Omni does not tell a provider that a resource was gone before the watch
/// stood, so the resource is looked at anew after this.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Between two looks where no watch can be had, at most.
const PAUSE: Duration = Duration::from_millis(500);

impl State {
    /// Starts tearing a resource down; returns whether nobody holds it, so that it can be destroyed. Repeating it is
    /// harmless. On an Omni without the call it is a read and a write of the phase.
    ///
    /// # Errors
    ///
    /// As for [`Self::get`] and [`Self::update`].
    pub async fn teardown(&self, kind: &Kind, id: &str, owner: &str) -> Result<bool, Error> {
        if !self.no_teardown.load(Ordering::Relaxed) {
            let request = cosi::TeardownRequest {
                namespace: kind.namespace.clone(),
                r#type: kind.r#type.clone(),
                id: id.to_owned(),
                options: Some(cosi::TeardownOptions { owner: owner.to_owned() }),
            };
            let call = Call::resource("Teardown", kind, id);
            let mut rpc = self.rpc.clone();
            match self.unary(&call, rpc.teardown(request)).await {
                Ok(answer) => return Ok(answer.destroy_ready),
                Err(Error::Unimplemented(_)) => self.no_teardown.store(true, Ordering::Relaxed),
                Err(error) => return Err(error),
            }
        }
        let change = |resource: &mut Resource| resource.phase = Phase::TearingDown;
        let resource = self.read_modify_write(kind, id, Some(owner), None, change).await?;
        Ok(resource.finalizers.is_empty())
    }

    /// Tears a resource down, waits until nobody holds it, and destroys it; all within `patience`. On an Omni without the
    /// call it is made of the calls that every Omni has.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when it is not there to begin with; [`Error::Deadline`] when others do not let go in time.
    pub async fn teardown_and_destroy(
        &self,
        kind: &Kind,
        id: &str,
        owner: &str,
        patience: Duration,
    ) -> Result<(), Error> {
        let call = Call::resource("TeardownAndDestroy", kind, id);
        let end = Instant::now() + patience;
        if !self.no_teardown.load(Ordering::Relaxed) {
            let request = cosi::TeardownAndDestroyRequest {
                namespace: kind.namespace.clone(),
                r#type: kind.r#type.clone(),
                id: id.to_owned(),
                options: Some(cosi::TeardownAndDestroyOptions { owner: owner.to_owned() }),
            };
            let mut rpc = self.rpc.clone();
            let state = self.with_deadline(patience);
            match state.unary(&call, rpc.teardown_and_destroy(request)).await {
                Ok(_) => return Ok(()),
                Err(Error::Unimplemented(_)) => self.no_teardown.store(true, Ordering::Relaxed),
                Err(error) => return Err(error),
            }
        }
        let stepwise = self.teardown_then_destroy(kind, id, owner);
        timeout_at(end, stepwise).await.unwrap_or(Err(Error::Deadline(call)))
    }

    async fn teardown_then_destroy(&self, kind: &Kind, id: &str, owner: &str) -> Result<(), Error> {
        let mut ready = self.teardown(kind, id, owner).await?;
        loop {
            if ready {
                match self.destroy(kind, id, owner).await {
                    // Someone took hold of it in between.
                    Err(Error::PendingFinalizers(_)) => {}
                    Ok(()) | Err(Error::NotFound(_)) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            // A watch that breaks or tells nothing is a reason to look too: what is stored decides.
            if let Ok(Err(_)) = timeout(LOOK_AGAIN, self.released(kind, id)).await {
                tokio::time::sleep(jittered(PAUSE, random())).await;
            }
            ready = match self.teardown(kind, id, owner).await {
                Err(Error::NotFound(_)) => return Ok(()),
                torn => torn?,
            };
        }
    }

    /// Waits until a watch of the resource shows that nobody holds it, or that it is gone.
    async fn released(&self, kind: &Kind, id: &str) -> Result<(), Error> {
        let mut stream = self.watch_one(kind, id).await?;
        while let Some(batch) = self.watched(kind, &mut stream).await? {
            for event in batch.event.into_iter().filter_map(|event| Item::decode(event, kind).ok()) {
                match event.event {
                    Event::Created(resource) | Event::Updated(resource) if resource.finalizers.is_empty() => {
                        return Ok(());
                    }
                    Event::Destroyed(_) | Event::Errored(_) => return Ok(()),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}
