//! SideroLink's stand-in: how machines join, and what they and Omni tell each other afterwards.
//!
//! Edge: it answers calls. Machines have no keys; a join token lets them in, and from then on their UUID is believed, as
//! on a real site the tunnel's address is.
//!
//! Source: contract omni-wire.md section 7.3.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::controller::{Controller, join_token_usages, links, registration};
use super::lifecycle::Input;
use super::seeds::default_join_tokens;
use super::state::State;
use super::token::{self, BadToken};
use crate::proto::lab::next_response::Order;
use crate::proto::lab::{NextRequest, NextResponse, ReportRequest, ReportResponse, machine_link_server};
use crate::proto::siderolink::{ProvisionRequest, ProvisionResponse, provision_service_server};
use crate::proto::specs::{DefaultJoinTokenSpec, JoinTokenUsageSpec, ProviderJoinConfigSpec, SiderolinkSpec};
use crate::resource::{Kind, LABEL_INFRA_PROVIDER_ID, Phase, Resource};

/// How long a machine that has nothing to do is kept waiting.
const PATIENCE: Duration = Duration::from_secs(30);

/// Both services of the machine API.
#[derive(Clone, Debug)]
pub(super) struct MachineApi {
    pub(super) state: State,
    pub(super) controller: Controller,
}

#[tonic::async_trait]
impl provision_service_server::ProvisionService for MachineApi {
    async fn provision(&self, request: Request<ProvisionRequest>) -> Result<Response<ProvisionResponse>, Status> {
        let asked = request.into_inner();
        let uuid = uuid(&asked.node_uuid)?;
        let unique_token = asked.node_unique_token.clone().filter(|token| !token.is_empty());
        let verified = token::verify(asked.join_token(), |version, provider| match version {
            token::Version::V1 => {
                let default = self.state.get(&default_join_tokens(), "default").ok()?;
                Some(default.decode::<DefaultJoinTokenSpec>().ok()?.token_id)
            }
            token::Version::V2 => {
                let config = self.state.get(&Kind::omni("ProviderJoinConfigs"), provider).ok()?;
                Some(config.decode::<ProviderJoinConfigSpec>().ok()?.join_token)
            }
        });
        let known = self.controller.machine(&uuid);
        let extra = match (verified, self.state.get(&links(), &uuid)) {
            (Ok(extra), _) => extra,
            // Whose join token is no good any more, and who shows that it is the machine that joined before.
            (Err(BadToken::Unauthorized), Ok(link))
                if unique_token.is_some()
                    && known.as_ref().map(|machine| &machine.node_unique_token) == unique_token.as_ref() =>
            {
                link.labels.clone()
            }
            (Err(bad), _) => return Err(Status::permission_denied(bad.to_string())),
        };
        let provider = extra.get(LABEL_INFRA_PROVIDER_ID).map(String::as_str).unwrap_or_default();
        let registered = self.state.get(&Kind::omni("InfraProviders"), provider);
        if !registered.is_ok_and(|provider| provider.phase == Phase::Running) {
            return Err(Status::not_found(format!("infra provider {provider:?} does not exist")));
        }
        if !known.is_none_or(|machine| machine.admits(unique_token.as_deref())) {
            return Err(Status::permission_denied("unauthorized"));
        }
        let address = node_address(&uuid);
        let spec = SiderolinkSpec {
            node_subnet: format!("{address}/64"),
            node_public_key: asked.node_public_key.clone(),
            connected: true,
            ..SiderolinkSpec::default()
        };
        // The labels come from the token only when the link is new.
        let mut link = Resource::new(links(), &uuid, &spec);
        link.labels = extra.clone();
        let link =
            self.state.put(link, |stored| stored.encode(&spec)).map_err(|error| Status::internal(error.to_string()))?;
        let provider = link.labels.get(LABEL_INFRA_PROVIDER_ID).map_or(provider, String::as_str);
        let usage = JoinTokenUsageSpec { token_id: asked.join_token().to_owned() };
        let resource = Resource::new(join_token_usages(), &uuid, &usage);
        self.state
            .put(resource, |stored| stored.encode(&usage))
            .map_err(|error| Status::internal(error.to_string()))?;
        let registration = registration(&uuid, &link.labels);
        let labels = registration.labels.clone();
        let _ = self.state.put(registration, |stored| stored.labels = labels);
        self.controller.join(&uuid, provider, unique_token);
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
        Ok(Response::new(ReportResponse {}))
    }

    async fn next(&self, request: Request<NextRequest>) -> Result<Response<NextResponse>, Status> {
        let uuid = uuid(&request.get_ref().uuid)?;
        let ordered = self.controller.wait(&uuid, |machine| match machine {
            None => Some(Err(Status::not_found(format!("no machine {uuid} has joined")))),
            Some(machine) => match machine.order() {
                Order::Wait => None,
                order => Some(Ok((order, machine.node_unique_token.clone()))),
            },
        });
        let ordered = tokio::time::timeout(PATIENCE, ordered).await;
        let (order, node_unique_token) = ordered.unwrap_or_else(|_| Ok((Order::Wait, String::new())))?;
        Ok(Response::new(NextResponse { order: order.into(), node_unique_token }))
    }
}

/// A UUID in lower case.
fn uuid(text: &str) -> Result<String, Status> {
    let plain = text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    if plain { Ok(text.to_ascii_lowercase()) } else { Err(Status::invalid_argument("node_uuid is no UUID")) }
}

/// The machine's address within the tunnel: the prefix, and the last 64 bits of its UUID.
fn node_address(uuid: &str) -> String {
    let digits: String = uuid.chars().filter(char::is_ascii_hexdigit).collect();
    let low: Vec<_> = digits.as_bytes().rchunks(4).take(4).collect();
    let groups: Vec<_> = low.iter().rev().map(|group| String::from_utf8_lossy(group).into_owned()).collect();
    format!("fdae:41e4:649b:9303:{}", groups.join(":"))
}
