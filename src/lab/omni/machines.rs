//! SideroLink's stand-in: how machines join, and what they and Omni tell each other afterwards.
//!
//! Edge: it answers calls. Machines have no keys; a join token lets them in, and from then on their UUID is believed, as
//! on a real site the tunnel's address is.
//!
//! Source: contract omni-wire.md section 7.3.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use super::admission::{self, Admitted, JoinMode, KnownOf, NotJoined, Shown, UniqueToken};
use super::collection::{Refused, Stored};
use super::controller::{
    CREATED_WITH_UNIQUE_TOKEN, Controller, FORCE_UNIQUE_TOKEN, join_token_usages, links, machine_of,
    node_unique_tokens, registration,
};
use super::lifecycle::Input;
use super::state::State;
use super::token::{self, ExtraData, MACHINE_REQUEST, Token, Version};
use super::{join_tokens, types};
use crate::proto::lab::next_response::Order;
use crate::proto::lab::report_request::Event;
use crate::proto::lab::{
    IdentifyRequest, IdentifyResponse, NextRequest, NextResponse, ReportRequest, ReportResponse, machine_link_server,
};
use crate::proto::siderolink::{ProvisionRequest, ProvisionResponse, provision_service_server};
use crate::proto::specs::{
    InfraMachineStatusSpec, JoinTokenUsageSpec, NodeUniqueTokenSpec, PendingMachineStatusSpec, ProviderJoinConfigSpec,
    SiderolinkSpec,
};
use crate::resource::{Kind, LABEL_INFRA_PROVIDER_ID, Phase, Resource};
use crate::time::UnixTime;

/// How long a machine that has nothing to do is kept waiting.
const PATIENCE: Duration = Duration::from_secs(30);
/// A machine that waits to join, and has not asked again for so long, is forgotten.
const PENDING: Duration = Duration::from_secs(30);
/// How often those are looked for.
const TICK: Duration = Duration::from_secs(5);
/// More machines than this never wait at once: each takes a join token and a key that it makes itself.
const MAX_PENDING: usize = 1024;
/// The UUID of a machine that waits.
const LABEL_MACHINE_UUID: &str = "omni.sidero.dev/machine-uuid";
/// On a machine that waits since another one has its UUID.
const UUID_CONFLICT: &str = "siderolink.omni.sidero.dev/uuid-conflict";
/// Changes with every attempt.
const TIMESTAMP: &str = "timestamp";

/// The kind of machines that wait to join; the ID is the WireGuard key.
pub fn pending_machines() -> Kind {
    Kind::new(types::NAMESPACE_EPHEMERAL, "PendingMachines.omni.sidero.dev")
}

/// The kind that tells what Omni learned of them.
pub fn pending_machine_statuses() -> Kind {
    Kind::new(types::NAMESPACE_EPHEMERAL, "PendingMachineStatuses.omni.sidero.dev")
}

/// Both services of the machine API.
#[derive(Clone, Debug)]
pub(super) struct MachineApi {
    pub(super) state: State,
    pub(super) controller: Controller,
    pub(super) mode: JoinMode,
}

impl MachineApi {
    /// Forgets machines that have waited in vain.
    pub(super) fn spawn(self, tasks: &mut JoinSet<()>) {
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                self.forget(UnixTime::now());
            }
        });
    }

    /// One look at those that wait.
    fn forget(&self, now: UnixTime) {
        for pending in self.state.list(&pending_machines()) {
            if now.since(pending.updated) > PENDING || pending.phase == Phase::TearingDown {
                let _ = self.state.destroy(&pending.kind, &pending.id, &pending.owner);
            }
        }
        for status in self.state.list(&pending_machine_statuses()) {
            if self.state.get(&pending_machines(), &status.id).is_err() {
                let _ = self.state.destroy(&status.kind, &status.id, &status.owner);
            }
        }
    }

    /// What a good join token says; `None` when it is none.
    fn vouched(&self, join_token: &str) -> Result<Option<ExtraData>, Status> {
        if join_token.is_empty() {
            return Ok(None);
        }
        let token = Token::parse(join_token).map_err(|malformed| Status::permission_denied(malformed.to_string()))?;
        let (version, extra, signature) = match token {
            Token::Plain(token) => return Ok(join_tokens::is_active(&self.state, &token).then(ExtraData::new)),
            Token::Signed { version, extra, signature } => (version, extra, signature),
        };
        let secret = match extra.get(LABEL_INFRA_PROVIDER_ID) {
            Some(provider) if version == Version::V2 => {
                let config = self.state.get(&Kind::omni("ProviderJoinConfigs"), provider).ok();
                config.and_then(|config| config.decode::<ProviderJoinConfigSpec>().ok()).map(|config| config.join_token)
            }
            _ => join_tokens::default_token(&self.state).filter(|token| join_tokens::is_active(&self.state, token)),
        };
        let good = secret.is_some_and(|secret| token::is_signed(&extra, &signature, &secret));
        Ok(good.then_some(extra))
    }

    fn known_of(&self, uuid: &str, key: &str, link: Option<&Stored>) -> KnownOf {
        let own = self.state.get(&node_unique_tokens(), uuid).ok();
        let own = own.and_then(|own| own.decode::<NodeUniqueTokenSpec>().ok()).unwrap_or_default().token;
        let unique_token = UniqueToken::parse(&own).ok().flatten();
        let status = self.state.get(&Kind::omni("InfraMachineStatuses"), uuid).ok();
        let status = status.and_then(|status| status.decode::<InfraMachineStatusSpec>().ok());
        let wiped = unique_token.is_some() && status.is_some_and(|status| status.wiped_node_unique_token == own);
        let installed = match link {
            Some(link) if unique_token.is_some() => link.annotations.contains_key(FORCE_UNIQUE_TOKEN),
            _ => self.pending_status(key).talos_installed,
        };
        KnownOf { unique_token, installed, wiped }
    }

    fn pending_status(&self, key: &str) -> PendingMachineStatusSpec {
        let status = self.state.get(&pending_machine_statuses(), key).ok();
        status.and_then(|status| status.decode().ok()).unwrap_or_default()
    }

    /// Lets a machine wait.
    fn pend(&self, mut waiting: Resource, conflict: bool) -> Result<(), Status> {
        let known = self.state.get(&waiting.kind, &waiting.id).is_ok();
        if !known && self.state.list(&waiting.kind).len() >= MAX_PENDING {
            return Err(Status::resource_exhausted("too many machines wait to join"));
        }
        let now = UnixTime::now().as_millis().to_string();
        waiting.annotations.insert(TIMESTAMP.to_owned(), now.clone());
        if conflict {
            waiting.annotations.insert(UUID_CONFLICT.to_owned(), String::new());
        }
        let annotations = waiting.annotations.clone();
        self.state.put(waiting, |stored| stored.annotations.extend(annotations)).map(drop).map_err(internal)
    }

    /// Joins a machine; its labels come from the join token only when its link is new.
    fn join(&self, mut fresh: Resource, asked: &ProvisionRequest, must_show: Option<bool>) -> Result<(), Status> {
        let uuid = fresh.id.clone();
        let unique_token = asked.node_unique_token.clone().filter(|token| !token.is_empty());
        let annotate = |resource: &mut Resource| {
            if unique_token.is_some() {
                resource.annotations.insert(CREATED_WITH_UNIQUE_TOKEN.to_owned(), String::new());
            }
            match must_show {
                Some(true) => drop(resource.annotations.insert(FORCE_UNIQUE_TOKEN.to_owned(), String::new())),
                Some(false) => drop(resource.annotations.remove(FORCE_UNIQUE_TOKEN)),
                None => (),
            }
        };
        annotate(&mut fresh);
        if let Some(token) = &unique_token {
            let spec = NodeUniqueTokenSpec { token: token.clone() };
            let own = Resource::new(node_unique_tokens(), &uuid, &spec);
            self.state.put(own, |stored| stored.encode(&spec)).map_err(internal)?;
        }
        let spec = fresh.spec.clone();
        let link = self.state.put(fresh, |stored| {
            stored.spec = spec;
            annotate(stored);
        });
        let link = link.map_err(internal)?;
        let usage = JoinTokenUsageSpec { token_id: asked.join_token().to_owned() };
        let used = Resource::new(join_token_usages(), &uuid, &usage);
        self.state.put(used, |stored| stored.encode(&usage)).map_err(internal)?;
        let Some(provider) = link.labels.get(LABEL_INFRA_PROVIDER_ID) else {
            // A machine that no provider has is there as soon as it joins.
            return self.state.put(machine_of(&self.state, &uuid, &link.labels), |_| ()).map(drop).map_err(internal);
        };
        let registration = registration(&uuid, &link.labels);
        let labels = registration.labels.clone();
        let _ = self.state.put(registration, |stored| stored.labels = labels);
        self.controller.join(&uuid, provider, unique_token);
        Ok(())
    }
}

fn internal(refused: Refused) -> Status {
    Status::internal(refused.to_string())
}

fn not_joined(why: NotJoined) -> Status {
    Status::new(why.code(), why.to_string())
}

#[tonic::async_trait]
impl provision_service_server::ProvisionService for MachineApi {
    async fn provision(&self, request: Request<ProvisionRequest>) -> Result<Response<ProvisionResponse>, Status> {
        let asked = request.into_inner();
        let uuid = uuid(&asked.node_uuid)?;
        let key = wireguard_key(&asked.node_public_key)?;
        let vouched = self.vouched(asked.join_token())?;
        let shown = Shown {
            talos_version: asked.talos_version.as_deref(),
            join_token: vouched.is_some(),
            unique_token: UniqueToken::parse(asked.node_unique_token()).map_err(not_joined)?,
        };
        let link = self.state.get(&links(), &uuid).ok();
        let known = self.known_of(&uuid, key, link.as_deref());
        let admitted = admission::decide(self.mode, &shown, &known).map_err(not_joined)?;
        let mut labels = vouched.unwrap_or_default();
        labels.retain(|label, _| label == LABEL_INFRA_PROVIDER_ID || label == MACHINE_REQUEST);
        let provider = labels.get(LABEL_INFRA_PROVIDER_ID);
        let provider = provider.or_else(|| link.as_ref()?.labels.get(LABEL_INFRA_PROVIDER_ID));
        if let Some(provider) = provider {
            let registered = self.state.get(&Kind::omni("InfraProviders"), provider);
            if !registered.is_ok_and(|provider| provider.phase == Phase::Running) {
                return Err(Status::not_found("the infra provider is being deleted or doesn't exist"));
            }
        }
        let address = node_address(&uuid);
        let spec = SiderolinkSpec {
            node_subnet: format!("{address}/64"),
            node_public_key: key.to_owned(),
            connected: true,
            ..SiderolinkSpec::default()
        };
        match admitted {
            Admitted::Pending { conflict } => {
                let mut waiting = Resource::new(pending_machines(), key, &spec);
                waiting.labels = labels;
                waiting.labels.insert(LABEL_MACHINE_UUID.to_owned(), uuid);
                self.pend(waiting, conflict)?;
            }
            Admitted::Link(must_show) => {
                let mut fresh = Resource::new(links(), &uuid, &spec);
                fresh.labels = labels;
                self.join(fresh, &asked, must_show)?;
            }
        }
        Ok(Response::new(ProvisionResponse {
            server_endpoint: vec!["127.0.0.1:50180".to_owned()],
            server_public_key: String::new(),
            node_address_prefix: format!("{address}/64"),
            server_address: super::seeds::SERVER_ADDRESS.to_owned(),
            grpc_peer_addr_port: String::new(),
        }))
    }
}

#[tonic::async_trait]
impl machine_link_server::MachineLink for MachineApi {
    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let uuid = uuid(&request.get_ref().uuid)?;
        let event = request.get_ref().event();
        tracing::debug!(machine = uuid, ?event, "machine reports");
        let reported = self.controller.apply(&uuid, Input::Reported(event));
        reported.map_err(|unknown| Status::not_found(unknown.to_string()))?;
        let installed = matches!(event, Event::Installed | Event::BootedFromDisk);
        if installed && self.state.get(&node_unique_tokens(), &uuid).is_ok() {
            let _ = self.state.modify(&links(), &uuid, |link| {
                link.annotations.insert(FORCE_UNIQUE_TOKEN.to_owned(), String::new());
            });
        }
        Ok(Response::new(ReportResponse {}))
    }

    async fn identify(&self, request: Request<IdentifyRequest>) -> Result<Response<IdentifyResponse>, Status> {
        let asked = request.into_inner();
        let waiting = self.state.get(&pending_machines(), &asked.node_public_key);
        let waiting = waiting.map_err(|refused| Status::not_found(refused.to_string()))?;
        let mut status = self.pending_status(&waiting.id);
        status.talos_installed = asked.talos_installed;
        if status.token.is_empty() {
            status.token = UniqueToken { fingerprint: asked.fingerprint, token: super::uuid() }.encode();
        }
        let mut resource = Resource::new(pending_machine_statuses(), &waiting.id, &status);
        resource.owner = "PendingMachineStatusController".to_owned();
        self.state.put(resource, |stored| stored.encode(&status)).map_err(internal)?;
        let conflict = waiting.annotations.contains_key(UUID_CONFLICT);
        let node_uuid = if conflict { super::uuid() } else { String::new() };
        Ok(Response::new(IdentifyResponse { node_unique_token: status.token, node_uuid }))
    }

    async fn next(&self, request: Request<NextRequest>) -> Result<Response<NextResponse>, Status> {
        let uuid = uuid(&request.get_ref().uuid)?;
        let ordered = self.controller.wait(&uuid, |machine| match machine {
            None => Some(Err(Status::not_found(format!("no machine {uuid} has joined")))),
            Some(machine) => match machine.order() {
                Order::Wait => None,
                order => Some(Ok(order)),
            },
        });
        let ordered = tokio::time::timeout(PATIENCE, ordered).await;
        let order = ordered.unwrap_or(Ok(Order::Wait))?;
        Ok(Response::new(NextResponse { order: order.into() }))
    }
}

/// A UUID in lower case.
fn uuid(text: &str) -> Result<String, Status> {
    let plain = text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if plain { Ok(text.to_ascii_lowercase()) } else { Err(Status::invalid_argument("node_uuid is no UUID")) }
}

/// A WireGuard key: 32 octets in base64.
fn wireguard_key(text: &str) -> Result<&str, Status> {
    let good = BASE64_STANDARD.decode(text).is_ok_and(|octets| octets.len() == 32);
    if good { Ok(text) } else { Err(Status::invalid_argument("error parsing Wireguard key")) }
}

/// The machine's address within the tunnel: the prefix, and the last 64 bits of its UUID.
fn node_address(uuid: &str) -> String {
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    let low: Vec<_> = digits.as_bytes().rchunks(4).take(4).collect();
    let groups: Vec<_> = low.iter().rev().map(|group| String::from_utf8_lossy(group).into_owned()).collect();
    format!("fdae:41e4:649b:9303:{}", groups.join(":"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_in_vain_is_forgotten() {
        let state = State::default();
        let controller = Controller::new(state.clone());
        let api = MachineApi { state: state.clone(), controller, mode: JoinMode::default() };
        api.pend(Resource::new(pending_machines(), "k", &SiderolinkSpec::default()), true).unwrap();
        state.create(Resource::new(pending_machine_statuses(), "k", &PendingMachineStatusSpec::default()), "").unwrap();
        let asked = state.get(&pending_machines(), "k").unwrap().updated;
        api.forget(asked + PENDING);
        assert!(state.get(&pending_machines(), "k").unwrap().annotations.contains_key(UUID_CONFLICT));
        api.forget(asked + PENDING + Duration::from_secs(1));
        assert!(state.list(&pending_machines()).is_empty() && state.list(&pending_machine_statuses()).is_empty());
        for number in 0..MAX_PENDING {
            api.pend(Resource::new(pending_machines(), number.to_string(), &SiderolinkSpec::default()), false).unwrap();
        }
        let one_more = Resource::new(pending_machines(), "k", &SiderolinkSpec::default());
        assert_eq!(api.pend(one_more, false).unwrap_err().code(), tonic::Code::ResourceExhausted);
        api.pend(Resource::new(pending_machines(), "7", &SiderolinkSpec::default()), false).unwrap();
    }
}
