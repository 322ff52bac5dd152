//! The Omni client: keys, signatures, the State API, watches.
//!
//! An edge: it holds the connection to Omni, its timers and the tasks that follow its resources. What can be a function
//! is one: [`endpoint`], [`key`], [`watch::WatchState`].

mod channel;
pub mod endpoint;
pub mod error;
#[cfg(test)]
mod fixtures;
pub mod join;
pub mod key;
pub mod management;
pub mod mirror;
pub mod packed;
pub mod provider;
pub mod proxy;
pub mod signer;
pub mod state;
mod teardown;
pub mod watch;

use std::sync::Arc;

use tonic::transport::Channel;

pub use endpoint::{Endpoint, InvalidEndpoint};
pub(crate) use error::explain;
pub use error::{Error, Retry};
pub use key::{KeyError, ServiceAccountKey};
pub use management::Management;
pub use mirror::Mirror;
pub use signer::Clock;
pub use state::State;

use crate::secret::Secret;
use crate::time::UnixTime;
use signer::{Signed, Signer};

/// How to reach Omni and who we are there.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `OMNI_ENDPOINT`: a URL, see [`Endpoint`].
    pub endpoint: String,
    /// `OMNI_SERVICE_ACCOUNT_KEY`. Without one calls go out unsigned, which only Omni's local resource server accepts.
    pub key: Option<Secret<String>>,
    /// Accept any TLS certificate.
    pub insecure_skip_tls_verify: bool,
    /// Certificates in PEM to trust beside the public roots, for an Omni behind a private authority.
    pub extra_roots: Option<String>,
    /// The provider's ID.
    pub provider_id: String,
    /// What tells the time.
    pub clock: Clock,
    /// The environment's word on proxies.
    pub proxy: proxy::Variables,
}

/// Why a [`Config`] makes no client.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The endpoint is none.
    #[error("OMNI_ENDPOINT cannot be used")]
    Endpoint(#[source] InvalidEndpoint),
    /// The proxy is none.
    #[error("HTTPS_PROXY cannot be used")]
    Proxy(#[source] proxy::InvalidProxy),
    /// The key is none.
    #[error("OMNI_SERVICE_ACCOUNT_KEY cannot be used")]
    Key(#[source] KeyError),
    /// TLS cannot be set up: the host is no server name, or the extra roots are no PEM.
    #[error("TLS towards {endpoint} cannot be set up; check its host name and the extra roots (PEM)")]
    Tls {
        /// The endpoint.
        endpoint: Endpoint,
        /// What the TLS library said.
        #[source]
        source: tonic::transport::Error,
    },
}

/// A client of one Omni. Clones share the connection.
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    provider_id: Arc<str>,
    channel: Signed<Channel>,
    state: State,
    management: Management,
}

impl Client {
    /// A client that has not connected yet: the first call does. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for what no retry can mend.
    pub fn connect(config: Config) -> Result<Self, ConfigError> {
        let endpoint: Endpoint = config.endpoint.parse().map_err(ConfigError::Endpoint)?;
        let key = config.key.as_ref().map(|key| ServiceAccountKey::parse(key.reveal())).transpose();
        let key = key.map_err(ConfigError::Key)?;
        let hint = key.as_ref().and_then(ServiceAccountKey::provider_id_hint);
        if let Some(key_provider) = hint.filter(|hint| *hint != config.provider_id) {
            // No error: Omni judges by its stored key, and tells.
            tracing::warn!(provider = config.provider_id, key_provider, "the key seems to be another provider's");
        }
        let proxy = config.proxy.proxy_for(&endpoint).map_err(ConfigError::Proxy)?;
        let channel = channel::open(&endpoint, config.extra_roots.as_deref(), config.insecure_skip_tls_verify, proxy)
            .map_err(|source| ConfigError::Tls { endpoint: endpoint.clone(), source })?;
        let signer = Signer::new(key, config.clock, Some(channel.clone()));
        let channel = Signed::new(channel, Arc::new(signer));
        Ok(Self {
            endpoint,
            provider_id: config.provider_id.into(),
            state: State::new(channel.clone()),
            management: Management::new(channel.clone()),
            channel,
        })
    }

    /// The State service.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The management service.
    pub const fn management(&self) -> &Management {
        &self.management
    }

    /// Where Omni is.
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The provider's ID, as configured.
    pub fn provider_id(&self) -> &str {
        &self.provider_id
    }

    /// The provider's ID, as the key has it.
    pub fn provider_id_hint(&self) -> Option<&str> {
        self.channel.signer().key().and_then(ServiceAccountKey::provider_id_hint)
    }

    /// When the key expires; `None` when there is no key or it never does. Omni gives no warning of its own.
    pub fn key_expiry(&self) -> Option<UnixTime> {
        self.channel.signer().key().and_then(ServiceAccountKey::expires)
    }

    /// How far this clock is from Omni's, where that is known: after a refused signature, or where a proxy dates answers.
    pub fn clock_skew(&self) -> Option<error::Skew> {
        self.channel.signer().skew()
    }
}
