//! An Omni to develop and test against: the real wire, signatures included, the provider's view of the data and people's,
//! Omni's side of the life of providers, of static machines and of machines on request, an image factory, and the people
//! who use it all.
//!
//! It speaks plain HTTP/2 on one port, machine API included, and HTTP/1.1 on the factory's.
//!
//! Source: contract omni-wire.md.

// What is stored, and the rules of storing.
pub mod collection;
pub mod document;
pub mod patch;
pub mod query;
pub mod schema;
pub mod schematic;
pub mod state;
pub mod types;
mod validate;
pub mod wire;
pub mod yaml;

// Who may do what.
pub mod account;
pub mod accounts;
pub mod admission;
pub mod auth;
pub mod plain;
pub mod role;
pub mod token;
pub mod view;

// What answers.
pub mod factory;
pub mod faults;
mod gate;
mod login;
pub mod machines;
mod management;
pub mod port;
mod serve;

// What acts.
pub mod controller;
pub mod dynamic;
pub mod join_tokens;
pub mod lifecycle;
pub mod people;
pub mod providers;
pub mod script;
mod seeds;

pub use seeds::{Generation, default_join_tokens};

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::middleware::from_fn_with_state;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::service::Routes;

use self::account::{AccountError, ServiceAccount};
use self::accounts::Accounts;
use self::admission::JoinMode;
use self::collection::Refused;
use self::controller::Controller;
use self::factory::{AssetSource, Factory};
use self::faults::{Faults, Knobs};
use self::gate::Gate;
use self::login::Logins;
use self::people::People;
use self::port::{Port, PortError};
use self::role::{Identity, Role};
use self::script::{Board, Plan, Progress};
use self::state::State;
use crate::proto::auth::auth_service_server::AuthServiceServer;
use crate::proto::cosi::state_server::StateServer;
use crate::proto::lab::machine_link_server::MachineLinkServer;
use crate::proto::management::management_service_server::ManagementServiceServer;
use crate::proto::siderolink::provision_service_server::ProvisionServiceServer;
use crate::secret::Secret;

/// Name of the first administrator's account.
const ADMIN: &str = "automation";
/// The greatest message that Omni takes.
const MAX_MESSAGE: usize = 32 << 20;

/// How to start a double.
#[derive(Clone, Debug)]
pub struct Options {
    /// The provider that it knows.
    pub provider_id: String,
    /// Where the API and the machine API listen; port 0 is a free one.
    pub grpc: SocketAddr,
    /// Where the image factory listens; port 0 is a free one.
    pub factory: SocketAddr,
    /// The host that URLs name, where provider and machines reach both.
    pub advertise: IpAddr,
    /// Where kernels and initramfs come from.
    pub assets: AssetSource,
    /// How long the provider's key, and the administrator's, live.
    pub key_lifetime: Duration,
    /// Which Omni it is.
    pub generation: Generation,
    /// How it checks join tokens; an old Omni knows but one way.
    pub join_mode: JoinMode,
}

impl Options {
    /// A double for `provider_id` on free ports of 127.0.0.1, made-up assets, a key for a day.
    pub fn loopback(provider_id: &str) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            provider_id: provider_id.to_owned(),
            grpc: any,
            factory: any,
            advertise: Ipv4Addr::LOCALHOST.into(),
            assets: AssetSource::default(),
            key_lifetime: Duration::from_secs(86_400),
            generation: Generation::Current,
            join_mode: JoinMode::default(),
        }
    }
}

/// The double could not be started, or told to change.
#[derive(Debug, thiserror::Error)]
pub enum OmniError {
    /// A port cannot be had.
    #[error("the Omni double cannot listen")]
    Port(#[source] PortError),
    /// The provider's key could not be made.
    #[error("the Omni double cannot make a service account")]
    Account(#[source] AccountError),
    /// What it needs to have could not be stored.
    #[error("the Omni double cannot store what it needs")]
    Seed(#[source] Refused),
}

/// A running double. When it is dropped it stops.
#[derive(Debug)]
pub struct Omni {
    provider_id: String,
    endpoint: SocketAddr,
    factory_url: String,
    account: ServiceAccount,
    admin: ServiceAccount,
    accounts: Accounts,
    logins: Logins,
    gate: Arc<Gate>,
    state: State,
    factory: Factory,
    controller: Controller,
    faults: Faults,
    board: Board,
    ports: [Port; 2],
    tasks: Mutex<JoinSet<()>>,
}

impl Omni {
    /// Starts a double with its seeds and its controllers.
    ///
    /// # Errors
    ///
    /// [`OmniError`].
    pub async fn start(options: Options) -> Result<Self, OmniError> {
        let account = ServiceAccount::create(&options.provider_id, options.key_lifetime).map_err(OmniError::Account)?;
        let admin = ServiceAccount::person(ADMIN, Role::Admin, options.key_lifetime).map_err(OmniError::Account)?;
        let knobs: Arc<Knobs> = Arc::default();
        knobs.set_old(options.generation == Generation::Old);
        let state = State::default();
        let accounts = Accounts { state: state.clone() };
        let gate = Arc::new(Gate::new(accounts.clone(), Arc::clone(&knobs)));
        let logins = Logins::default();
        for first in [&account, &admin] {
            accounts.add(first).map_err(OmniError::Seed)?;
        }
        let controller = Controller::new(state.clone());
        let factory = Factory::new(options.assets, Arc::clone(&knobs));

        let factory_port = Port::bind(options.factory).await.map_err(OmniError::Port)?;
        let grpc_port = Port::bind(options.grpc).await.map_err(OmniError::Port)?;
        let endpoint = SocketAddr::new(options.advertise, grpc_port.address().port());
        let factory_url = format!("http://{}", SocketAddr::new(options.advertise, factory_port.address().port()));
        let addresses = seeds::Addresses { machine_api: &endpoint.to_string(), factory_url: &factory_url };
        seeds::plant(&state, &options.provider_id, &addresses, options.generation).map_err(OmniError::Seed)?;
        let providers = providers::Providers {
            state: state.clone(),
            accounts: accounts.clone(),
            controller: controller.clone(),
            machine_api: endpoint.to_string(),
            generation: options.generation,
        };
        providers.reconcile();

        let api = serve::StateService { state: state.clone(), knobs: Arc::clone(&knobs) };
        let management = management::Management {
            factory: factory.clone(),
            factory_url: factory_url.clone(),
            knobs: Arc::clone(&knobs),
            accounts: accounts.clone(),
            people: People { state: state.clone(), controller: controller.clone() },
        };
        let login =
            login::Login { accounts: accounts.clone(), logins: logins.clone(), url: format!("http://{endpoint}") };
        let mode = if options.generation == Generation::Old { JoinMode::Legacy } else { options.join_mode };
        let machines = machines::MachineApi { state: state.clone(), controller: controller.clone(), mode };
        let api = StateServer::new(api).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE);
        let router = Routes::new(api.accept_compressed(Gzip).send_compressed(Gzip))
            .add_service(ManagementServiceServer::new(management).accept_compressed(Gzip).send_compressed(Gzip))
            .add_service(AuthServiceServer::new(login).accept_compressed(Gzip).send_compressed(Gzip))
            .add_service(ProvisionServiceServer::new(machines.clone()).accept_compressed(Gzip))
            .add_service(MachineLinkServer::new(machines.clone()).accept_compressed(Gzip))
            .into_axum_router()
            .layer(from_fn_with_state(Arc::clone(&gate), gate::pass));
        let ports = [grpc_port.serve(router), factory_port.serve(factory.router())];
        let mut tasks = JoinSet::new();
        controller.spawn(&mut tasks);
        providers.spawn(&mut tasks);
        accounts.clone().spawn(&mut tasks);
        dynamic::Dynamic { state: state.clone() }.spawn(&mut tasks);
        join_tokens::JoinTokens { state: state.clone() }.spawn(&mut tasks);
        machines.spawn(&mut tasks);
        Ok(Self {
            faults: Faults::new(state.clone(), ports[0].clone(), ports[1].clone(), knobs),
            provider_id: options.provider_id,
            endpoint,
            factory_url,
            account,
            admin,
            accounts,
            logins,
            gate,
            state,
            factory,
            controller,
            board: Board::default(),
            ports,
            tasks: Mutex::new(tasks),
        })
    }

    /// URL of the API and the machine API: `http://host:port`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.endpoint)
    }

    /// URL of the image factory: `http://host:port`.
    pub fn factory_url(&self) -> String {
        self.factory_url.clone()
    }

    /// The provider's account, whose key string goes into the provider's config.
    pub const fn service_account(&self) -> &ServiceAccount {
        &self.account
    }

    /// The first administrator's account, as `--create-initial-service-account` makes it.
    pub const fn admin(&self) -> &ServiceAccount {
        &self.admin
    }

    /// Lets the holder of another account in; its provider is the one that the account names.
    pub fn add_account(&self, account: &ServiceAccount) {
        if let Err(refused) = self.accounts.add(account) {
            tracing::warn!(error = %refused, "account not stored");
        }
    }

    /// Makes a person known, who has no key yet.
    pub fn invite(&self, email: &str, role: Role) {
        let person = Identity::Person { name: email.to_lowercase().into(), role };
        if let Err(refused) = self.accounts.add_user(&person) {
            tracing::warn!(error = %refused, "user not stored");
        }
    }

    /// Logs a person in at the identity provider that the double plays; the ID token goes into `authorization: Bearer …`
    /// of `ConfirmPublicKey`. `None` after 64 of them.
    pub fn log_in(&self, email: &str) -> Option<Secret<String>> {
        self.logins.begin(email)
    }

    /// Revokes a key by its fingerprint.
    pub fn revoke(&self, fingerprint: &str) {
        self.accounts.revoke(fingerprint);
    }

    /// Everything that is stored.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The image factory: its schematics and downloads.
    pub const fn factory(&self) -> &Factory {
        &self.factory
    }

    /// What Omni knows about machines, and how to wait for it.
    pub const fn controller(&self) -> &Controller {
        &self.controller
    }

    /// What people can do.
    pub fn people(&self) -> People {
        People { state: self.state.clone(), controller: self.controller.clone() }
    }

    /// The fault knobs.
    pub const fn faults(&self) -> &Faults {
        &self.faults
    }

    /// Calls so far, by full method, refused ones included.
    pub fn calls(&self) -> BTreeMap<String, u64> {
        self.gate.calls()
    }

    /// Starts the scripted lives; see [`script`].
    pub fn direct(&self, plan: Plan) {
        let direct = script::direct(plan, self.controller.clone(), self.people(), self.board.clone());
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(direct);
    }

    /// How far each life has come, ordered by UUID.
    pub fn progress(&self) -> Vec<Progress> {
        self.board.snapshot()
    }

    /// Rings after every step of every life.
    pub fn progress_changes(&self) -> watch::Receiver<()> {
        self.board.changes()
    }

    /// Gives the provider a new join secret; machines with a token of the old one can no longer join.
    ///
    /// # Errors
    ///
    /// [`OmniError::Seed`] when a test removed or took over the join config.
    pub fn rotate_join_token(&self) -> Result<(), OmniError> {
        seeds::join_config(&self.state, &self.provider_id, &self.endpoint.to_string()).map_err(OmniError::Seed)
    }

    /// Stops listening, on both ports; state, people and controllers stay as they are.
    pub async fn stop(&self) {
        for port in &self.ports {
            port.close().await;
        }
    }

    /// Listens again, on the same ports.
    ///
    /// # Errors
    ///
    /// [`OmniError::Port`] when somebody took a port meanwhile.
    pub async fn resume(&self) -> Result<(), OmniError> {
        for port in &self.ports {
            port.open().await.map_err(OmniError::Port)?;
        }
        Ok(())
    }

    /// Ends the double: ports, connections, tasks.
    pub async fn shutdown(self) {
        for port in &self.ports {
            port.shutdown().await;
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        tasks.shutdown().await;
    }
}

/// Octets of the kernel's generator.
fn random<const N: usize>() -> [u8; N] {
    let mut octets = [0; N];
    getrandom::fill(&mut octets).expect("the kernel has a random number generator");
    octets
}

/// A random UUID, version 4.
fn uuid() -> String {
    let mut octets = random::<16>();
    octets[6] = octets[6] & 0x0f | 0x40;
    octets[8] = octets[8] & 0x3f | 0x80;
    let hex: String = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
