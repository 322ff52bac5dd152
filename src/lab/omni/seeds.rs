//! What an Omni has before its first provider connects.
//!
//! Source: contract omni-wire.md sections 3.8, 4.4, 6.1 and 7.2.

use super::collection::Refused;
use super::state::State;
use super::{join_tokens, token, types};
use crate::proto::specs::{
    ConnectionParamsSpec, DefaultJoinTokenSpec, FeaturesConfigSpec, InfraProviderSpec, JoinConfig, JoinTokenSpec,
    ProviderJoinConfigSpec, SiderolinkApiConfigSpec, SysVersionSpec,
};
use crate::resource::{Kind, LABEL_INFRA_PROVIDER_ID, NAMESPACE_DEFAULT, Resource};
use crate::time::UnixTime;

/// Omni's address within the SideroLink tunnel.
pub const SERVER_ADDRESS: &str = "fdae:41e4:649b:9303::1";
const EVENTS_PORT: i32 = 8090;
const LOGS_PORT: i32 = 8092;

/// The kind of Omni's join tokens; only people see them.
pub fn default_join_tokens() -> Kind {
    Kind::new(NAMESPACE_DEFAULT, "DefaultJoinTokens.omni.sidero.dev")
}

/// Which Omni this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Generation {
    /// One of today.
    #[default]
    Current,
    /// One from before providers had secrets of their own, and before Teardown and the management calls for providers:
    /// parameters come from ConnectionParams, tokens are of version 1.
    Old,
}

/// Where the double is reached.
pub(super) struct Addresses<'a> {
    /// Host and port of the machine API.
    pub(super) machine_api: &'a str,
    /// URL of the image factory.
    pub(super) factory_url: &'a str,
}

/// Writes everything that is there from the start.
pub(super) fn plant(
    state: &State,
    provider_id: &str,
    addresses: &Addresses<'_>,
    generation: Generation,
) -> Result<(), Refused> {
    let default = |name: &str| Kind::new(NAMESPACE_DEFAULT, format!("{name}.omni.sidero.dev"));
    state.create(Resource::new(Kind::omni("InfraProviders"), provider_id, &InfraProviderSpec {}), "")?;
    let siderolink = SiderolinkApiConfigSpec {
        machine_api_advertised_url: format!("grpc://{}", addresses.machine_api),
        wireguard_advertised_endpoint: "127.0.0.1:50180".to_owned(),
        enforce_grpc_tunnel: false,
        events_port: EVENTS_PORT,
        logs_port: LOGS_PORT,
    };
    let siderolink = Resource::new(default("SiderolinkAPIConfigs"), "siderolink-config", &siderolink);
    state.create(siderolink, "SiderolinkAPIConfigController")?;
    let features = FeaturesConfigSpec {
        image_factory_base_url: addresses.factory_url.to_owned(),
        image_factory_pxe_base_url: addresses.factory_url.to_owned(),
    };
    state.create(Resource::new(default("FeaturesConfigs"), "features-config", &features), "")?;
    let old = generation == Generation::Old;
    let version = SysVersionSpec {
        backend_version: if old { "v1.3.0" } else { "v1.10.4" }.to_owned(),
        instance_name: "pilotlight-lab".to_owned(),
        // What omnictl compares with its own: 2 since v1.5, in every release up to v1.10.4.
        backend_api_version: if old { 1 } else { 2 },
    };
    state.create(Resource::new(Kind::new("ephemeral", "SysVersions.system.sidero.dev"), "current", &version), "")?;
    for known in types::Type::all().filter(|known| !(old && known.name == "ProviderJoinConfigs")) {
        state.create(known.definition(), types::META_OWNER)?;
    }
    for name in types::FIXED_NAMESPACES {
        state.create(types::namespace(name), types::META_OWNER)?;
    }
    default_join_token(state, old.then_some(addresses.machine_api))
}

/// Writes Omni's default join token, and for an old Omni's machine API the parameters that name it.
fn default_join_token(state: &State, old_machine_api: Option<&str>) -> Result<(), Refused> {
    let token = secret();
    let spec = JoinTokenSpec { name: "initial".to_owned(), ..JoinTokenSpec::default() };
    state.create(Resource::new(join_tokens::join_tokens(), &token, &spec), "")?;
    let spec = DefaultJoinTokenSpec { token_id: token.clone() };
    state.create(Resource::new(default_join_tokens(), "default", &spec), "")?;
    join_tokens::JoinTokens { state: state.clone() }.reconcile(UnixTime::now());
    let Some(machine_api) = old_machine_api else { return Ok(()) };
    let api_endpoint = format!("grpc://{machine_api}");
    let (events, logs) = sinks();
    let params = ConnectionParamsSpec {
        args: format!(
            "siderolink.api={api_endpoint}?jointoken={token} talos.events.sink={events} talos.logging.kernel={logs}"
        ),
        api_endpoint,
        wireguard_endpoint: "127.0.0.1:50180".to_owned(),
        join_token: token,
        use_grpc_tunnel: false,
        events_port: EVENTS_PORT,
        logs_port: LOGS_PORT,
    };
    let kind = Kind::new(NAMESPACE_DEFAULT, "ConnectionParams.omni.sidero.dev");
    let params = Resource::new(kind, "siderolink-config", &params);
    state.create(params, "ConnectionParamsController").map(drop)
}

/// A plain secret: 44 characters of base62.
pub(super) fn secret() -> String {
    const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    super::random::<44>().iter().map(|byte| char::from(BASE62[usize::from(*byte) % BASE62.len()])).collect()
}

/// Where machines send their events and their kernel's log.
fn sinks() -> (String, String) {
    (format!("[{SERVER_ADDRESS}]:{EVENTS_PORT}"), format!("tcp://[{SERVER_ADDRESS}]:{LOGS_PORT}"))
}

/// Writes the provider's join config with a fresh secret; machines that hold the old one can no longer join.
pub(super) fn join_config(state: &State, provider_id: &str, machine_api: &str) -> Result<(), Refused> {
    let secret = secret();
    let join_token = token::query_escape(&token::for_provider(&secret, provider_id));
    let api = format!("grpc://{machine_api}?jointoken={join_token}");
    let (events, logs) = sinks();
    let config = format!(
        "apiVersion: v1alpha1\nkind: SideroLinkConfig\napiUrl: {api}\n---\n\
         apiVersion: v1alpha1\nkind: EventSinkConfig\nendpoint: '{events}'\n---\n\
         apiVersion: v1alpha1\nkind: KmsgLogConfig\nname: omni-kmsg\nurl: {logs}\n"
    );
    let kernel_args = vec![
        format!("siderolink.api={api}"),
        format!("talos.events.sink={events}"),
        format!("talos.logging.kernel={logs}"),
    ];
    let spec = ProviderJoinConfigSpec { config: Some(JoinConfig { kernel_args, config }), join_token: secret };
    let mut resource = Resource::new(Kind::omni("ProviderJoinConfigs"), provider_id, &spec);
    resource.labels.insert(LABEL_INFRA_PROVIDER_ID.to_owned(), provider_id.to_owned());
    resource.owner = "ProviderJoinConfigController".to_owned();
    state.put(resource, |stored| stored.encode(&spec)).map(drop)
}
