//! The State service, as the caller's account sees it.
//!
//! Edge: it answers calls.
//!
//! Source: contract omni-wire.md section 3.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tonic::{Request, Response, Status};

use super::collection::{Change, Name, Refused, Stored, What};
use super::controller::maker;
use super::faults::{self, Knobs};
use super::query::{BadQuery, Query};
use super::role::{self, Identity};
use super::state::{From, State, Watch};
use super::view::{Denied, Right, right};
use super::{join_tokens, validate, wire};
use crate::proto::cosi::{self, EventType, state_server};
use crate::resource::{Kind, Phase, Resource};

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// `cosi.resource.State` over a [`State`].
#[derive(Debug)]
pub(super) struct StateService {
    pub(super) state: State,
    pub(super) knobs: Arc<Knobs>,
}

/// One call's caller and what it may do with the kind that it names.
struct Caller {
    /// Empty for a person.
    provider: Arc<str>,
    right: Right,
}

impl StateService {
    fn caller<T>(&self, request: &Request<T>, kind: &Kind) -> Result<Caller, Status> {
        let identity = request.extensions().get::<Identity>().ok_or_else(|| Status::unauthenticated("no identity"))?;
        let provider = match identity {
            Identity::Provider(id) => Arc::clone(id),
            Identity::Person { role, .. } => {
                let right = role::right(*role, kind).map_err(denied)?;
                return Ok(Caller { provider: Arc::default(), right });
            }
        };
        let registered = || self.state.get(&Kind::omni("InfraProviders"), &provider).is_ok();
        let right = right(&provider, kind, registered).map_err(denied)?;
        Ok(Caller { provider, right })
    }

    fn visible(&self, caller: &Caller, kind: &Kind, id: &str) -> Result<Arc<Stored>, Status> {
        let stored = self.state.get(kind, id).map_err(refused)?;
        if caller.right.sees(&caller.provider, &stored) {
            Ok(stored)
        } else {
            Err(refused(Refused::NotFound(Name::new(kind, id))))
        }
    }

    /// What Get and List read: everything that the caller sees, or, of the kinds that Omni caches, everything, and as it
    /// was when the cache stood still.
    fn read(&self, caller: &Caller, kind: &Kind) -> Vec<Arc<Stored>> {
        let mut resources = self.knobs.cached(kind).unwrap_or_else(|| self.state.list(kind));
        if !faults::is_cached(kind) {
            resources.retain(|resource| caller.right.sees(&caller.provider, resource));
        }
        resources
    }

    /// Refuses calls that came with Omni 1.8 and later.
    fn not_in_old_omni(&self, method: &str) -> Result<(), Status> {
        if self.knobs.is_old() { Err(Status::unimplemented(format!("unknown method {method}"))) } else { Ok(()) }
    }

    /// Checks that the caller may remove the resource `id`.
    fn removable<T>(&self, request: &Request<T>, kind: &Kind, id: &str) -> Result<(), Status> {
        let caller = self.caller(request, kind)?;
        self.visible(&caller, kind, id)?;
        caller.right.destroy(kind).map_err(|denied| self.by_role(&caller, denied))?;
        join_tokens::keeps(&self.state, kind, id).map_or(Ok(()), |why| Err(Status::invalid_argument(why)))
    }

    /// A refusal in the words that go with the caller: what is read-only for a provider is not a person's to write.
    fn by_role(&self, caller: &Caller, why: Denied) -> Status {
        denied(match why {
            Denied::ReadOnly(kind) if caller.provider.is_empty() => Denied::NotByRole(kind),
            why => why,
        })
    }
}

#[tonic::async_trait]
impl state_server::State for StateService {
    async fn get(&self, request: Request<cosi::GetRequest>) -> Result<Response<cosi::GetResponse>, Status> {
        let asked = request.get_ref();
        let kind = Kind::new(&asked.namespace, &asked.r#type);
        let caller = self.caller(&request, &kind)?;
        let resource = if faults::is_cached(&kind) {
            let found = self.read(&caller, &kind).into_iter().find(|resource| resource.id == asked.id);
            found.ok_or_else(|| refused(Refused::NotFound(Name::new(&kind, &asked.id))))?
        } else {
            self.visible(&caller, &kind, &asked.id)?
        };
        Ok(Response::new(cosi::GetResponse { resource: Some(wire::message(&resource)) }))
    }

    type ListStream = Answers<cosi::ListResponse>;

    async fn list(&self, request: Request<cosi::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        let kind = Kind::new(&request.get_ref().namespace, &request.get_ref().r#type);
        let caller = self.caller(&request, &kind)?;
        let options = request.into_inner().options.unwrap_or_default();
        let query = Query::parse(options.label_query, options.id_query).map_err(bad_query)?;
        let mut resources = self.read(&caller, &kind);
        resources.retain(|resource| query.matches(resource));
        let answers = resources.into_iter().map(|r| Ok(cosi::ListResponse { resource: Some(wire::message(&r)) }));
        Ok(Response::new(Box::pin(stream::iter(answers))))
    }

    async fn create(&self, request: Request<cosi::CreateRequest>) -> Result<Response<cosi::CreateResponse>, Status> {
        let sent = request.get_ref().resource.clone().ok_or_else(|| Status::unknown("resource is missing"))?;
        let owner = request.get_ref().options.clone().unwrap_or_default().owner;
        let mut resource = wire::stored(sent).map_err(malformed)?;
        let caller = self.caller(&request, &resource.kind)?;
        wire::check_limits(&resource, None).map_err(|excess| Status::invalid_argument(excess.to_string()))?;
        caller.right.create(&caller.provider, &mut resource.resource).map_err(|d| self.by_role(&caller, d))?;
        validate::create(&resource)
            .and_then(|()| validate::made_machines(None, &resource, |provider| maker(&self.state, provider)))
            .map_err(|invalid| Status::invalid_argument(invalid.to_string()))?;
        let stored = self.state.create(resource, &owner).map_err(refused)?;
        Ok(Response::new(cosi::CreateResponse { resource: Some(wire::message(&stored)) }))
    }

    async fn update(&self, request: Request<cosi::UpdateRequest>) -> Result<Response<cosi::UpdateResponse>, Status> {
        let sent = request.get_ref().new_resource.clone().ok_or_else(|| Status::unknown("resource is missing"))?;
        let options = request.get_ref().options.clone().unwrap_or_default();
        let expected = options.expected_phase.as_deref().map(wire::phase).transpose().map_err(malformed)?;
        let mut resource = wire::stored(sent).map_err(malformed)?;
        let caller = self.caller(&request, &resource.kind)?;
        let stored = self.visible(&caller, &resource.kind, &resource.id)?;
        wire::check_limits(&resource, Some(&stored)).map_err(|excess| Status::invalid_argument(excess.to_string()))?;
        if self.knobs.take_conflict() {
            let actual = stored.version.unwrap_or_default();
            let name = Name::new(&resource.kind, &resource.id);
            return Err(refused(Refused::Version { name, expected: actual.to_string(), actual: actual + 1 }));
        }
        // Against the version read here: should somebody write meanwhile, the versions tell.
        caller
            .right
            .update(&caller.provider, &stored, &mut resource.resource)
            .map_err(|denied| self.by_role(&caller, denied))?;
        validate::update(&stored, &resource)
            .and_then(|()| validate::made_machines(Some(&stored), &resource, |provider| maker(&self.state, provider)))
            .map_err(|invalid| Status::invalid_argument(invalid.to_string()))?;
        if !join_tokens::names_a_token(&self.state, &resource) {
            return Err(Status::invalid_argument(
                "failed to validate: the default join token is to be one that exists",
            ));
        }
        // A teardown in disguise is held to what a teardown is.
        let tears_down = stored.phase == Phase::Running && resource.phase == Phase::TearingDown;
        if tears_down && let Some(why) = join_tokens::keeps(&self.state, &resource.kind, &resource.id) {
            return Err(Status::invalid_argument(why));
        }
        let stored = self.state.update(resource, &options.owner, expected).map_err(refused)?;
        Ok(Response::new(cosi::UpdateResponse { resource: Some(wire::message(&stored)) }))
    }

    async fn destroy(&self, request: Request<cosi::DestroyRequest>) -> Result<Response<cosi::DestroyResponse>, Status> {
        let asked = request.get_ref();
        let kind = Kind::new(&asked.namespace, &asked.r#type);
        self.removable(&request, &kind, &asked.id)?;
        let owner = asked.options.clone().unwrap_or_default().owner;
        self.state.destroy(&kind, &asked.id, &owner).map_err(refused)?;
        Ok(Response::new(cosi::DestroyResponse {}))
    }

    async fn teardown(
        &self,
        request: Request<cosi::TeardownRequest>,
    ) -> Result<Response<cosi::TeardownResponse>, Status> {
        self.not_in_old_omni("Teardown")?;
        let asked = request.get_ref();
        let kind = Kind::new(&asked.namespace, &asked.r#type);
        self.removable(&request, &kind, &asked.id)?;
        let owner = asked.options.clone().unwrap_or_default().owner;
        let stored = self.state.teardown(&kind, &asked.id, &owner).map_err(refused)?;
        Ok(Response::new(cosi::TeardownResponse { destroy_ready: stored.finalizers.is_empty() }))
    }

    async fn teardown_and_destroy(
        &self,
        request: Request<cosi::TeardownAndDestroyRequest>,
    ) -> Result<Response<cosi::TeardownAndDestroyResponse>, Status> {
        self.not_in_old_omni("TeardownAndDestroy")?;
        let asked = request.get_ref();
        let kind = Kind::new(&asked.namespace, &asked.r#type);
        self.removable(&request, &kind, &asked.id)?;
        let owner = asked.options.clone().unwrap_or_default().owner;
        let (_, mut watch) = self.state.watch(&kind, From::Now).map_err(|e| Status::internal(e.to_string()))?;
        self.state.teardown(&kind, &asked.id, &owner).map_err(refused)?;
        loop {
            match self.state.destroy(&kind, &asked.id, &owner) {
                Ok(_) | Err(Refused::NotFound(_)) => {
                    return Ok(Response::new(cosi::TeardownAndDestroyResponse {}));
                }
                Err(Refused::Finalizers { .. }) => (),
                Err(other) => return Err(refused(other)),
            }
            watch.next().await.map_err(|overrun| Status::unknown(overrun.to_string()))?;
        }
    }

    type WatchStream = Answers<cosi::WatchResponse>;

    async fn watch(&self, request: Request<cosi::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let kind = Kind::new(&request.get_ref().namespace, &request.get_ref().r#type);
        let caller = self.caller(&request, &kind)?;
        let asked = request.into_inner();
        let options = asked.options.unwrap_or_default();
        if asked.id.is_some() && (options.bootstrap_contents || !options.label_query.is_empty()) {
            return Err(Status::unimplemented("a watch of one resource has no bootstrap and no label query"));
        }
        let resumes = options.start_from_bookmark.is_some();
        if resumes && (options.tail_events > 0 || options.bootstrap_contents) {
            return Err(Status::unknown("a watch that resumes has no bootstrap and no tail"));
        }
        let query = Query::parse(options.label_query, options.id_query).map_err(bad_query)?;
        let from = match &options.start_from_bookmark {
            Some(bookmark) => From::Bookmark(bookmark),
            None if options.tail_events > 0 => From::Tail(u64::from(options.tail_events.unsigned_abs())),
            None => From::Now,
        };
        let (snapshot, watch) =
            self.state.watch(&kind, from).map_err(|invalid| Status::failed_precondition(invalid.to_string()))?;
        let lens = Lens { caller, query, id: asked.id };
        let mut session = Session {
            lens,
            watch,
            kind,
            aggregated: options.aggregated,
            speaks_errors: asked.api_version > 0,
            pending: VecDeque::from([cosi::WatchResponse::default()]),
            over: false,
        };
        if !resumes && options.tail_events == 0 {
            session.begin(snapshot, options.bootstrap_contents);
        }
        if options.bootstrap_bookmark {
            let bookmark = Some(session.watch.bookmark());
            let event = cosi::Event { bookmark, ..session.event(EventType::Noop) };
            session.pending.push_back(cosi::WatchResponse { event: vec![event] });
        }
        let answers = stream::unfold(session, async |mut session| Some((Ok(session.next().await), session)));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Which resources a watch shows.
struct Lens {
    caller: Caller,
    query: Query,
    id: Option<String>,
}

impl Lens {
    fn shows(&self, resource: &Resource) -> bool {
        self.id.as_ref().is_none_or(|id| *id == resource.id) && self.query.matches(resource)
    }

    /// The change as the watcher sees it: one that leaves the query is a destruction, one that enters it a creation.
    fn event(&self, change: &Change) -> Option<cosi::Event> {
        if !self.caller.right.sees(&self.caller.provider, &change.resource) {
            return None;
        }
        let (event_type, old) = match &change.what {
            What::Created => (self.shows(&change.resource).then_some(EventType::Created)?, None),
            What::Destroyed => (self.shows(&change.resource).then_some(EventType::Destroyed)?, None),
            What::Updated(old) => match (self.shows(old), self.shows(&change.resource)) {
                (true, true) => (EventType::Updated, Some(wire::message(old))),
                (true, false) => (EventType::Destroyed, None),
                (false, true) => (EventType::Created, None),
                (false, false) => return None,
            },
        };
        let resource = Some(wire::message(&change.resource));
        Some(cosi::Event { resource, event_type: event_type.into(), old, ..cosi::Event::default() })
    }
}

/// One open watch.
struct Session {
    lens: Lens,
    watch: Watch,
    kind: Kind,
    aggregated: bool,
    speaks_errors: bool,
    pending: VecDeque<cosi::WatchResponse>,
    over: bool,
}

impl Session {
    /// Queues what there was when the watch began.
    fn begin(&mut self, snapshot: Vec<Arc<Stored>>, bootstrap: bool) {
        let created = |resource: &Stored| cosi::Event {
            resource: Some(wire::message(resource)),
            event_type: EventType::Created.into(),
            ..cosi::Event::default()
        };
        let Caller { provider, right } = &self.lens.caller;
        let mut shown = snapshot.iter().filter(|resource| right.sees(provider, resource) && self.lens.shows(resource));
        let mut events: Vec<_> = Vec::new();
        if let Some(id) = &self.lens.id {
            match shown.next() {
                Some(resource) => events.push(created(resource)),
                // Where a provider sees only what carries its label, the tombstone, which has none, is filtered out.
                None if matches!(right, Right::Private | Right::Write | Right::Read) => events.push(cosi::Event {
                    resource: Some(wire::tombstone(&self.kind, id)),
                    event_type: EventType::Destroyed.into(),
                    ..cosi::Event::default()
                }),
                None => (),
            }
        } else if bootstrap {
            events.extend(shown.map(|resource| created(resource)));
            if self.speaks_errors {
                let bookmark = Some(self.watch.bookmark());
                events.push(cosi::Event { bookmark, ..self.event(EventType::Bootstrapped) });
            }
        }
        self.queue(events);
    }

    fn queue(&mut self, events: Vec<cosi::Event>) {
        if self.aggregated {
            if !events.is_empty() {
                self.pending.push_back(cosi::WatchResponse { event: events });
            }
        } else {
            self.pending.extend(events.into_iter().map(|event| cosi::WatchResponse { event: vec![event] }));
        }
    }

    /// An event about no resource in particular.
    fn event(&self, event_type: EventType) -> cosi::Event {
        cosi::Event {
            resource: Some(wire::tombstone(&self.kind, "")),
            event_type: event_type.into(),
            ..cosi::Event::default()
        }
    }

    async fn next(&mut self) -> cosi::WatchResponse {
        loop {
            if let Some(message) = self.pending.pop_front() {
                return message;
            }
            if self.over {
                // The stream stays open after ERRORED; only the client ends it.
                std::future::pending::<()>().await;
            }
            match self.watch.next().await {
                Ok(changes) => {
                    let events = changes
                        .iter()
                        .filter_map(|change| {
                            let bookmark = Some(self.watch.bookmark_at(change.position));
                            Some(cosi::Event { bookmark, ..self.lens.event(change)? })
                        })
                        .collect();
                    self.queue(events);
                }
                Err(overrun) => {
                    self.over = true;
                    if self.speaks_errors {
                        let error = Some(overrun.to_string());
                        self.queue(vec![cosi::Event { error, ..self.event(EventType::Errored) }]);
                    }
                }
            }
        }
    }
}

/// The code and text of a refusal.
///
/// Source: contract omni-wire.md section 3.6.
fn refused(refused: Refused) -> Status {
    let code = match refused {
        Refused::NotFound(_) => tonic::Code::NotFound,
        Refused::AlreadyExists(_) => tonic::Code::AlreadyExists,
        Refused::Version { .. } | Refused::Finalizers { .. } => tonic::Code::FailedPrecondition,
        Refused::Owner { .. } => tonic::Code::PermissionDenied,
        Refused::Phase { .. } => tonic::Code::InvalidArgument,
        Refused::OwnerOfNew { .. } => tonic::Code::Unknown,
    };
    Status::new(code, refused.to_string())
}

fn denied(denied: Denied) -> Status {
    Status::new(denied.code(), denied.to_string())
}

fn malformed(malformed: wire::Malformed) -> Status {
    Status::unknown(malformed.to_string())
}

fn bad_query(bad: BadQuery) -> Status {
    let code = match bad {
        BadQuery::Regexp(_) => tonic::Code::InvalidArgument,
        BadQuery::Operation(_) => tonic::Code::Unimplemented,
        BadQuery::NoValue(_) => tonic::Code::Internal,
    };
    Status::new(code, bad.to_string())
}
