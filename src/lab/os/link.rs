//! A machine's link to Omni: the join, what it reports, what it is told to do.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::config::Join;
use crate::machine::MachineId;
use crate::proto::lab::machine_link_client::MachineLinkClient;
use crate::proto::lab::next_response::Order;
use crate::proto::lab::report_request::Event;
use crate::proto::lab::{IdentifyRequest, NextRequest, ReportRequest};
use crate::proto::siderolink::ProvisionRequest;
use crate::proto::siderolink::provision_service_client::ProvisionServiceClient;
use crate::secret::Secret;

/// How long dialling and the quick calls may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long an order is waited for; Omni answers within 30 s.
const ORDER_PATIENCE: Duration = Duration::from_secs(45);
/// What the simulated Talos calls itself when it joins.
const TALOS_VERSION: &str = "v1.13.7";

/// Why the link does not work.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The machine API can't be dialled.
    #[error("dialling {endpoint}")]
    Dial {
        /// The machine API.
        endpoint: String,
        /// What tonic says.
        #[source]
        source: tonic::transport::Error,
    },
    /// It did not do what was asked for.
    #[error("{call}")]
    Refused {
        /// The call.
        call: &'static str,
        /// Its status.
        #[source]
        source: Box<tonic::Status>,
    },
    /// It did not answer.
    #[error("{call}: no answer")]
    Silent {
        /// The call.
        call: &'static str,
    },
}

impl LinkError {
    /// Whether Omni lets nobody join with this token.
    pub fn unauthorized(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.code() == Code::PermissionDenied)
    }

    /// Whether Omni does not know the machine.
    pub fn forgotten(&self) -> bool {
        matches!(self, Self::Refused { source, .. } if source.code() == Code::NotFound)
    }
}

/// A machine that has joined. Clones are the same machine.
#[derive(Clone, Debug)]
pub(super) struct Link {
    channel: Channel,
    uuid: String,
    unique_token: Option<Secret<String>>,
}

impl Link {
    /// Dials and joins. A machine without a unique token gets one from Omni first, which sees whether Talos is on its disk.
    pub(super) async fn open(
        join: &Join,
        id: &MachineId,
        local_bind: Option<IpAddr>,
        talos_installed: bool,
    ) -> Result<Self, LinkError> {
        let dial = |source| LinkError::Dial { endpoint: join.endpoint.clone(), source };
        let channel = Endpoint::from_shared(join.endpoint.clone())
            .map_err(dial)?
            .local_address(local_bind)
            .connect_timeout(PATIENCE)
            .buffer_size(4)
            .connect()
            .await
            .map_err(dial)?;
        let mut octets = [0; 32];
        getrandom::fill(&mut octets).expect("the kernel has a random number generator");
        let request = ProvisionRequest {
            node_uuid: id.as_str().to_owned(),
            // No WireGuard here: what the tunnel would carry goes over the same connection.
            node_public_key: BASE64_STANDARD.encode(octets),
            join_token: Some(join.token.reveal().clone()),
            node_unique_token: join.unique_token.as_ref().map(|token| token.reveal().clone()),
            talos_version: Some(TALOS_VERSION.to_owned()),
            ..ProvisionRequest::default()
        };
        let mut client = ProvisionServiceClient::new(channel.clone());
        within(PATIENCE, "Provision", client.provision(request.clone())).await?;
        let mut link = Self { channel, uuid: id.as_str().to_owned(), unique_token: join.unique_token.clone() };
        if link.unique_token.is_none()
            && let Some(token) = link.identify(&request.node_public_key, talos_installed).await?
        {
            let request = ProvisionRequest { node_unique_token: Some(token.clone()), ..request };
            within(PATIENCE, "Provision", client.provision(request)).await?;
            link.unique_token = Some(Secret::new(token));
        }
        Ok(link)
    }

    /// What Omni writes to META; `None` from one that lets machines join without.
    async fn identify(&self, node_public_key: &str, talos_installed: bool) -> Result<Option<String>, LinkError> {
        // Stands for the MAC addresses, which no operating system here knows.
        let fingerprint = hex::encode(Sha256::digest(&self.uuid));
        let node_public_key = node_public_key.to_owned();
        let request = IdentifyRequest { node_public_key, talos_installed, fingerprint };
        let mut client = MachineLinkClient::new(self.channel.clone());
        match within(PATIENCE, "Identify", client.identify(request)).await {
            Ok(answer) => Ok(Some(answer.node_unique_token)),
            Err(error) if error.forgotten() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What the machine joined with.
    pub(super) fn unique_token(&self) -> Option<Secret<String>> {
        self.unique_token.clone()
    }

    /// Tells Omni what happened.
    pub(super) async fn report(self, event: Event) -> Result<(), LinkError> {
        let mut client = MachineLinkClient::new(self.channel);
        let request = ReportRequest { uuid: self.uuid, event: event.into() };
        within(PATIENCE, "Report", client.report(request)).await.map(drop)
    }

    /// What to do next; [`Order::Wait`] after about 30 s without an order.
    pub(super) async fn next(&self) -> Result<Order, LinkError> {
        let mut client = MachineLinkClient::new(self.channel.clone());
        let request = NextRequest { uuid: self.uuid.clone() };
        within(ORDER_PATIENCE, "Next", client.next(request)).await.map(|answer| answer.order())
    }
}

async fn within<T>(
    patience: Duration,
    call: &'static str,
    work: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, LinkError> {
    match tokio::time::timeout(patience, work).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(LinkError::Refused { call, source: Box::new(status) }),
        Err(_) => Err(LinkError::Silent { call }),
    }
}
