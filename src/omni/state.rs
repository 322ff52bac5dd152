//! The State API: resources by kind and ID, with the write rules that Omni enforces.
//!
//! Source: contract omni-wire.md sections 3.1 to 3.5 and 4.2.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::Semaphore;
use tonic::codec::CompressionEncoding;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use super::channel::{CALL_DEADLINE, MAX_MESSAGE};
use super::error::{Call, Error};
use super::signer::{Signed, Signer};
use super::watch::random;
use crate::proto::cosi;
use crate::proto::cosi::label_term::Operation;
use crate::proto::cosi::state_client::StateClient;
use crate::resource::{Kind, Phase, Resource};

/// A read-modify-write gives up after this many version conflicts: other errors share the conflict's code.
const MAX_CONFLICTS: usize = 8;
/// A list that is longer is no list of ours; 10,000 machines have 10,000 resources of a kind.
pub(crate) const MAX_RESOURCES: usize = 250_000;
/// Calls at one time. Thousands of machines have something to say at once when Omni comes back: a call in flight costs both
/// ends tens of kilobytes, one that waits its own few.
const CALLS: usize = 64;

/// The State service of one Omni. Clones share the connection.
#[derive(Clone, Debug)]
pub struct State {
    pub(super) rpc: StateClient<Signed<Channel>>,
    signer: Arc<Signer>,
    /// Set once Omni has answered Teardown with Unimplemented.
    pub(super) no_teardown: Arc<AtomicBool>,
    deadline: Duration,
    /// Who may call now; shared by all clones.
    turns: Arc<Semaphore>,
}

impl State {
    pub(crate) fn new(channel: Signed<Channel>) -> Self {
        let signer = Arc::clone(channel.signer());
        let rpc = StateClient::new(channel)
            .send_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Gzip)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let turns = Arc::new(Semaphore::new(CALLS));
        Self { rpc, signer, no_teardown: Arc::default(), deadline: CALL_DEADLINE, turns }
    }

    /// A handle to the same Omni whose calls must be answered within `deadline` instead of 30 s: for who cannot wait.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// The resource `id` of `kind`.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] when it is absent or another provider's.
    pub async fn get(&self, kind: &Kind, id: &str) -> Result<Resource, Error> {
        let request = cosi::GetRequest {
            namespace: kind.namespace.clone(),
            r#type: kind.r#type.clone(),
            id: id.to_owned(),
            options: Some(cosi::GetOptions {}),
        };
        let call = Call::resource("Get", kind, id);
        let mut rpc = self.rpc.clone();
        let answer = self.unary(&call, rpc.get(request)).await?;
        resource(call, answer.resource)
    }

    /// Like [`Self::get`]; `None` when it is absent or another provider's.
    ///
    /// # Errors
    ///
    /// Whatever else keeps it from being read.
    pub async fn find(&self, kind: &Kind, id: &str) -> Result<Option<Resource>, Error> {
        match self.get(kind, id).await {
            Ok(resource) => Ok(Some(resource)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// All resources of `kind` that carry every one of `labels` (key and value), in the order of their IDs.
    ///
    /// Omni answers some types from a cache that ignores the provider: give the provider's label to be sure. The labels
    /// are checked on this side too.
    ///
    /// # Errors
    ///
    /// [`Error::Deadline`] when the stream stalls; [`Error::Malformed`] when one of them is no resource.
    pub async fn list(&self, kind: &Kind, labels: &[(&str, &str)]) -> Result<Vec<Resource>, Error> {
        let request = cosi::ListRequest {
            namespace: kind.namespace.clone(),
            r#type: kind.r#type.clone(),
            options: Some(cosi::ListOptions { label_query: label_query(labels), id_query: None }),
        };
        let call = Call::kind("List", kind);
        let mut rpc = self.rpc.clone();
        let mut stream = self.unary(&call, rpc.list(request)).await?;
        let mut found = Vec::new();
        while let Some(answer) = self.next(&call, &mut stream).await? {
            if found.len() == MAX_RESOURCES {
                return Err(Error::Misbehaved { call, what: "is longer than any fleet" });
            }
            let resource = resource(call.clone(), answer.resource)?;
            if labels.iter().all(|(key, value)| resource.labels.get(*key).is_some_and(|found| found == value)) {
                found.push(resource);
            }
        }
        Ok(found)
    }

    /// Stores `resource` under `owner` (empty for none); returns it as stored, with version, owner and times.
    ///
    /// # Errors
    ///
    /// [`Error::AlreadyExists`] when its ID is taken.
    pub async fn create(&self, mut resource: Resource, owner: &str) -> Result<Resource, Error> {
        // Omni keeps the client's time of update, and takes no version or foreign owner.
        resource.updated = self.signer.now();
        resource.version = None;
        resource.owner = owner.to_owned();
        let call = Call::resource("Create", &resource.kind, &resource.id);
        let request = cosi::CreateRequest {
            resource: Some(resource.to_wire()),
            options: Some(cosi::CreateOptions { owner: owner.to_owned() }),
        };
        fits(&call, &request)?;
        let mut rpc = self.rpc.clone();
        let answer = self.unary(&call, rpc.create(request)).await?;
        self::resource(call, answer.resource)
    }

    /// Replaces the stored resource by `resource`, whose version and `owner` must be the stored ones; returns it as
    /// stored. With `expected_phase` the stored phase must be that.
    ///
    /// # Errors
    ///
    /// [`Error::Conflict`], [`Error::OwnerConflict`] or [`Error::PhaseConflict`] for the three conditions.
    pub async fn update(
        &self,
        resource: &Resource,
        owner: &str,
        expected_phase: Option<Phase>,
    ) -> Result<Resource, Error> {
        let mut wire = resource.to_wire();
        if let Some(metadata) = &mut wire.metadata {
            metadata.updated = Some(self.signer.now().into());
        }
        let request = cosi::UpdateRequest {
            new_resource: Some(wire),
            options: Some(cosi::UpdateOptions {
                owner: owner.to_owned(),
                expected_phase: expected_phase.map(|phase| phase.as_str().to_owned()),
            }),
        };
        let call = Call::resource("Update", &resource.kind, &resource.id);
        fits(&call, &request)?;
        let mut rpc = self.rpc.clone();
        let answer = self.unary(&call, rpc.update(request)).await?;
        self::resource(call, answer.resource)
    }

    /// Removes a resource whose owner is `owner` and that nobody holds any more. The phase does not matter.
    ///
    /// # Errors
    ///
    /// [`Error::PendingFinalizers`] while someone holds it.
    pub async fn destroy(&self, kind: &Kind, id: &str, owner: &str) -> Result<(), Error> {
        let request = cosi::DestroyRequest {
            namespace: kind.namespace.clone(),
            r#type: kind.r#type.clone(),
            id: id.to_owned(),
            options: Some(cosi::DestroyOptions { owner: owner.to_owned() }),
        };
        let call = Call::resource("Destroy", kind, id);
        let mut rpc = self.rpc.clone();
        self.unary(&call, rpc.destroy(request)).await?;
        Ok(())
    }

    /// Adds `finalizers`; returns the resource as stored. Nothing is written when all are there. The spec goes back octet
    /// for octet, as read-only types demand.
    ///
    /// # Errors
    ///
    /// As for [`Self::get`] and [`Self::update`]; [`Error::Conflict`] when others keep winning.
    pub async fn add_finalizers(&self, kind: &Kind, id: &str, finalizers: &[&str]) -> Result<Resource, Error> {
        let change = |resource: &mut Resource| resource.finalizers.extend(finalizers.iter().map(ToString::to_string));
        self.read_modify_write(kind, id, None, None, change).await
    }

    /// Removes `finalizers`; returns the resource as stored, or `None` when it is gone already.
    ///
    /// # Errors
    ///
    /// As for [`Self::add_finalizers`].
    pub async fn remove_finalizers(
        &self,
        kind: &Kind,
        id: &str,
        finalizers: &[&str],
    ) -> Result<Option<Resource>, Error> {
        let change =
            |resource: &mut Resource| resource.finalizers.retain(|found| !finalizers.contains(&found.as_str()));
        match self.read_modify_write(kind, id, None, None, change).await {
            Ok(resource) => Ok(Some(resource)),
            Err(Error::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads a running resource, lets `change` edit it, and writes it under its stored owner; returns it as stored. On a
    /// version conflict it reads and changes anew, a bounded number of times. Nothing is written when nothing changed.
    ///
    /// # Errors
    ///
    /// [`Error::PhaseConflict`] when it is being torn down; [`Error::Conflict`] when others keep winning.
    pub async fn modify(&self, kind: &Kind, id: &str, change: impl FnMut(&mut Resource)) -> Result<Resource, Error> {
        self.read_modify_write(kind, id, None, Some(Phase::Running), change).await
    }

    /// Like [`Self::modify`], and creates the resource under `owner` when it is absent: `change` edits `fresh` then.
    ///
    /// # Errors
    ///
    /// As for [`Self::create`] and [`Self::modify`].
    pub async fn put(
        &self,
        fresh: &Resource,
        owner: &str,
        mut change: impl FnMut(&mut Resource),
    ) -> Result<Resource, Error> {
        let mut last = None;
        for _ in 0..MAX_CONFLICTS {
            match self.modify(&fresh.kind, &fresh.id, &mut change).await {
                Err(Error::NotFound(_)) => {}
                result => return result,
            }
            let mut created = fresh.clone();
            change(&mut created);
            match self.create(created, owner).await {
                // Someone was faster: what is there now is to be modified.
                Err(error @ Error::AlreadyExists(_)) => last = Some(error),
                result => return result,
            }
        }
        Err(last.unwrap_or_else(|| Error::Conflict(Call::resource("Update", &fresh.kind, &fresh.id))))
    }

    /// The stored owner writes, unless `owner` says who claims to be it.
    pub(super) async fn read_modify_write(
        &self,
        kind: &Kind,
        id: &str,
        owner: Option<&str>,
        expected_phase: Option<Phase>,
        mut change: impl FnMut(&mut Resource),
    ) -> Result<Resource, Error> {
        let mut conflict = None;
        for attempt in 0..MAX_CONFLICTS {
            if attempt > 1 {
                // Whoever keeps winning writes often; two who keep meeting must not stay in step.
                tokio::time::sleep(conflict_pause(attempt, random())).await;
            }
            let stored = self.get(kind, id).await?;
            if expected_phase.is_some_and(|expected| expected != stored.phase) {
                return Err(Error::PhaseConflict(Call::resource("Update", kind, id)));
            }
            let mut wanted = stored.clone();
            change(&mut wanted);
            if wanted == stored {
                return Ok(stored);
            }
            match self.update(&wanted, owner.unwrap_or(&stored.owner), expected_phase).await {
                Err(error @ Error::Conflict(_)) => conflict = Some(error),
                result => return result,
            }
        }
        Err(conflict.unwrap_or_else(|| Error::Conflict(Call::resource("Update", kind, id))))
    }

    /// Opens a watch; returns once Omni has said that it stands.
    pub(crate) async fn watch(
        &self,
        kind: &Kind,
        labels: &[(&str, &str)],
        bookmark: Option<bytes::Bytes>,
    ) -> Result<Streaming<cosi::WatchResponse>, Error> {
        let options = cosi::WatchOptions {
            bootstrap_contents: bookmark.is_none(),
            // Message by message: all contents in one would leave both ends a buffer of that size for as long as the
            // stream stands, and the decoded message as holes between what is kept of it.
            aggregated: false,
            start_from_bookmark: bookmark.map(|bookmark| bookmark.to_vec()),
            label_query: label_query(labels),
            ..Default::default()
        };
        self.open_watch(kind, None, options).await
    }

    /// Opens a watch of one resource. It begins with the resource as it is, or its tombstone; a provider gets none of what
    /// Omni hides from it.
    pub(crate) async fn watch_one(&self, kind: &Kind, id: &str) -> Result<Streaming<cosi::WatchResponse>, Error> {
        self.open_watch(kind, Some(id), cosi::WatchOptions::default()).await
    }

    async fn open_watch(
        &self,
        kind: &Kind,
        id: Option<&str>,
        options: cosi::WatchOptions,
    ) -> Result<Streaming<cosi::WatchResponse>, Error> {
        let request = cosi::WatchRequest {
            namespace: kind.namespace.clone(),
            r#type: kind.r#type.clone(),
            id: id.map(ToOwned::to_owned),
            options: Some(options),
            // 0 would keep BOOTSTRAPPED and ERRORED from us.
            api_version: 1,
        };
        let call = Call::kind("Watch", kind);
        let mut rpc = self.rpc.clone();
        let mut stream = self.unary(&call, rpc.watch(request)).await?;
        // The first message is always empty: errors such as a bad bookmark come in its place.
        match self.next(&call, &mut stream).await? {
            Some(first) if first.event.is_empty() => Ok(stream),
            Some(_) => Err(Error::Misbehaved { call, what: "starts with events before the watch stands" }),
            None => Err(Error::Misbehaved { call, what: "ends before the watch stands" }),
        }
    }

    /// The next events of a watch, however long they take; `None` at the end of the stream.
    pub(crate) async fn watched(
        &self,
        kind: &Kind,
        stream: &mut Streaming<cosi::WatchResponse>,
    ) -> Result<Option<cosi::WatchResponse>, Error> {
        match stream.message().await {
            Ok(message) => Ok(message),
            Err(status) => Err(failed(&self.signer, &Call::kind("Watch", kind), status).await),
        }
    }

    /// The next message of a stream that must not stall.
    async fn next<M>(&self, call: &Call, stream: &mut Streaming<M>) -> Result<Option<M>, Error> {
        match tokio::time::timeout(self.deadline, stream.message()).await {
            Ok(Ok(message)) => Ok(message),
            Ok(Err(status)) => Err(failed(&self.signer, call, status).await),
            Err(_) => Err(Error::Deadline(Box::new(call.clone()))),
        }
    }

    pub(super) async fn unary<M>(
        &self,
        call: &Call,
        rpc: impl Future<Output = Result<Response<M>, Status>>,
    ) -> Result<M, Error> {
        let in_turn = async {
            let _turn = self.turns.acquire().await;
            rpc.await
        };
        unary(&self.signer, self.deadline, call, in_turn).await
    }
}

/// Awaits `rpc` for `deadline`, and says what its failure means.
pub(crate) async fn unary<M>(
    signer: &Signer,
    deadline: Duration,
    call: &Call,
    rpc: impl Future<Output = Result<Response<M>, Status>>,
) -> Result<M, Error> {
    // Dropping the call at the deadline resets its stream, so that Omni stops working on it too.
    match tokio::time::timeout(deadline, rpc).await {
        Ok(Ok(answer)) => {
            signer.accepted();
            Ok(answer.into_inner())
        }
        Ok(Err(status)) => Err(failed(signer, call, status).await),
        Err(_) => Err(Error::Deadline(Box::new(call.clone()))),
    }
}

async fn failed(signer: &Signer, call: &Call, status: Status) -> Error {
    if status.code() == Code::Unauthenticated {
        signer.compare_clocks().await;
    }
    Error::from_status(Box::new(call.clone()), status, signer.refusal(signer.now()))
}

/// From nothing to 10, 20, 40, … 640 ms, as `random` has it.
fn conflict_pause(attempt: usize, random: u32) -> Duration {
    let longest = Duration::from_millis(10) * (1 << attempt.saturating_sub(2).min(6));
    longest.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Whether Omni takes a message of this length. tonic would break the stream instead, which looks like an Omni that is away.
fn fits(call: &Call, message: &impl prost::Message) -> Result<(), Error> {
    let octets = message.encoded_len();
    if octets > MAX_MESSAGE {
        return Err(Error::TooLarge { call: Box::new(call.clone()), octets, limit: MAX_MESSAGE });
    }
    Ok(())
}

/// The resource that an answer must hold.
fn resource(call: Box<Call>, answer: Option<cosi::Resource>) -> Result<Resource, Error> {
    let Some(wire) = answer else {
        return Err(Error::Misbehaved { call, what: "holds no resource" });
    };
    Resource::from_wire(wire).map_err(|source| Error::Malformed { call, source })
}

/// One query whose terms must all hold; none without labels.
fn label_query(labels: &[(&str, &str)]) -> Vec<cosi::LabelQuery> {
    if labels.is_empty() {
        return Vec::new();
    }
    let term = |(key, value): &(&str, &str)| cosi::LabelTerm {
        key: (*key).to_owned(),
        op: Operation::Equal.into(),
        value: vec![(*value).to_owned()],
        invert: false,
    };
    vec![cosi::LabelQuery { terms: labels.iter().map(term).collect() }]
}
