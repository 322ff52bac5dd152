//! Who may join the double, and with which of its tokens.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pilotlight::lab::omni::admission::{JoinMode, UniqueToken};
use pilotlight::lab::omni::controller::{FORCE_UNIQUE_TOKEN, links, machines, node_unique_tokens};
use pilotlight::lab::omni::join_tokens::{join_token_statuses, join_tokens};
use pilotlight::lab::omni::machines::pending_machines;
use pilotlight::lab::omni::{Omni, Options, default_join_tokens, token};
use pilotlight::proto::lab::machine_link_client::MachineLinkClient;
use pilotlight::proto::lab::report_request::Event as Report;
use pilotlight::proto::lab::{IdentifyRequest, ReportRequest};
use pilotlight::proto::management::CreateJoinTokenRequest;
use pilotlight::proto::management::management_service_client::ManagementServiceClient;
use pilotlight::proto::siderolink::ProvisionRequest;
use pilotlight::proto::siderolink::provision_service_client::ProvisionServiceClient;
use pilotlight::proto::specs::join_token_status_spec::State as Is;
use pilotlight::proto::specs::{
    DefaultJoinTokenSpec, InfraMachineStatusSpec, JoinTokenSpec, JoinTokenStatusSpec, NodeUniqueTokenSpec,
};
use pilotlight::resource::{Kind, LABEL_INFRA_PROVIDER_ID};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::client::*;
use super::life::join_secret;

const TALOS: &str = "v1.13.7";

/// A machine's end of the machine API.
struct Machine {
    uuid: String,
    channel: Channel,
    join_token: String,
    talos_version: Option<&'static str>,
}

/// A key as each boot makes one.
fn key(number: u8) -> String {
    BASE64_STANDARD.encode([number; 32])
}

impl Machine {
    fn new(client: &Client, uuid: &str, join_token: &str) -> Self {
        let channel = client.channel.clone();
        Self { uuid: uuid.into(), channel, join_token: join_token.into(), talos_version: Some(TALOS) }
    }

    async fn join(&self, key: String, unique_token: Option<&str>) -> Result<(), Status> {
        let request = ProvisionRequest {
            node_uuid: self.uuid.clone(),
            node_public_key: key,
            join_token: Some(self.join_token.clone()).filter(|token| !token.is_empty()),
            node_unique_token: unique_token.map(str::to_owned),
            talos_version: self.talos_version.map(str::to_owned),
            wireguard_over_grpc: None,
        };
        ProvisionServiceClient::new(self.channel.clone()).provision(request).await.map(drop)
    }

    /// What Omni writes to META, and the UUID that it is to have.
    async fn identified(&self, node_public_key: String, talos_installed: bool, fingerprint: &str) -> (String, String) {
        let request = IdentifyRequest { node_public_key, talos_installed, fingerprint: fingerprint.into() };
        let answer = MachineLinkClient::new(self.channel.clone()).identify(request).await.unwrap().into_inner();
        (answer.node_unique_token, answer.node_uuid)
    }

    async fn report(&self, event: Report) {
        let report = ReportRequest { uuid: self.uuid.clone(), event: event.into() };
        MachineLinkClient::new(self.channel.clone()).report(report).await.unwrap();
    }
}

fn unauthorized(status: Status) {
    assert_eq!(of(status), (Code::PermissionDenied, "unauthorized".into()));
}

/// Waits until what Omni's controllers do has been done.
async fn until<T>(omni: &Omni, kind: &Kind, met: impl Fn() -> Option<T>) -> T {
    let mut bells = omni.state().bells([kind.clone()]);
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match met() {
                Some(met) => return met,
                None => bells.rung().await,
            }
        }
    });
    waited.await.expect("Omni sees to it")
}

#[tokio::test]
async fn a_machine_waits_for_its_token_and_once_installed_no_other_will_do() {
    let (omni, client) = omni().await;
    client.register().await;
    let machine = Machine::new(&client, UUID, &token::for_provider(&join_secret(&client).await, ID));
    machine.join(key(1), None).await.unwrap();
    let waiting = omni.state().get(&pending_machines(), &key(1)).unwrap();
    assert_eq!(waiting.labels["omni.sidero.dev/machine-uuid"], UUID);
    assert_eq!(waiting.labels[LABEL_INFRA_PROVIDER_ID], ID);
    assert!(
        omni.state().get(&links(), UUID).is_err() && omni.controller().machine(UUID).is_none(),
        "it has not joined"
    );

    let (first, no_uuid) = machine.identified(key(1), false, "f").await;
    assert!(no_uuid.is_empty() && UniqueToken::parse(&first).unwrap().unwrap().fingerprint == "f");
    assert_eq!(machine.identified(key(1), false, "f").await.0, first, "it is made once");
    machine.join(key(1), Some(&first)).await.unwrap();
    let link = omni.state().get(&links(), UUID).unwrap();
    assert!(link.annotations.contains_key("omni.sidero.dev/created-with-unique-token"));
    assert!(!link.annotations.contains_key(FORCE_UNIQUE_TOKEN));
    let mut infra = client.get(&Kind::omni("InfraMachines"), UUID).await.unwrap();
    assert!(labels(&mut infra).contains_key("omni.sidero.dev/accept-pending"));
    assert_eq!(omni.controller().machine(UUID).unwrap().node_unique_token, first);

    // Booted from the network again, without a disk to keep its token on: another takes the first one's place.
    machine.join(key(2), None).await.unwrap();
    let (second, _) = machine.identified(key(2), false, "f").await;
    assert_ne!(second, first);
    machine.join(key(2), Some(&second)).await.unwrap();

    machine.report(Report::Installed).await;
    machine.join(key(3), Some(&second)).await.unwrap();
    assert!(omni.state().get(&links(), UUID).unwrap().annotations.contains_key(FORCE_UNIQUE_TOKEN));
    // Its disk was wiped, and nobody said so.
    machine.join(key(4), None).await.unwrap();
    let (third, _) = machine.identified(key(4), false, "f").await;
    unauthorized(machine.join(key(4), Some(&third)).await.unwrap_err());
    let known =
        || omni.state().get(&node_unique_tokens(), UUID).unwrap().decode::<NodeUniqueTokenSpec>().unwrap().token;
    assert_eq!(known(), second);
    let status = InfraMachineStatusSpec { wiped_node_unique_token: second, ..Default::default() };
    client.create(fresh(&Kind::omni("InfraMachineStatuses"), UUID, &status), "").await.unwrap();
    machine.join(key(4), Some(&third)).await.unwrap();
    assert!(
        known() == third && !omni.state().get(&links(), UUID).unwrap().annotations.contains_key(FORCE_UNIQUE_TOKEN)
    );

    // A machine whose disk had Talos before Omni knew it.
    let other = Machine::new(&client, "4c4c4544-0000-4810-8031-b4c04f333132", &machine.join_token);
    other.join(key(5), None).await.unwrap();
    let (fourth, _) = other.identified(key(5), true, "g").await;
    other.join(key(5), Some(&fourth)).await.unwrap();
    other.join(key(6), None).await.unwrap();
    let (fifth, _) = other.identified(key(6), false, "g").await;
    unauthorized(other.join(key(6), Some(&fifth)).await.unwrap_err());
    omni.shutdown().await;
}

#[tokio::test]
async fn a_machine_with_the_uuid_of_another_gets_one_of_its_own() {
    let (omni, client) = omni().await;
    client.register().await;
    let machine = Machine::new(&client, UUID, &token::for_provider(&join_secret(&client).await, ID));
    let own = |fingerprint: &str| UniqueToken { fingerprint: fingerprint.into(), token: fingerprint.into() }.encode();
    machine.join(key(1), Some(&own("f"))).await.unwrap();
    machine.join(key(2), Some(&own("g"))).await.unwrap();
    let waiting = omni.state().get(&pending_machines(), &key(2)).unwrap();
    assert!(waiting.annotations.contains_key("siderolink.omni.sidero.dev/uuid-conflict"));
    let (_, uuid) = machine.identified(key(2), false, "g").await;
    assert_ne!(uuid, UUID);
    let renamed = Machine { uuid: uuid.clone(), ..machine };
    renamed.join(key(2), Some(&own("g"))).await.unwrap();
    assert!(omni.controller().machine(&uuid).is_some() && omni.controller().machine(UUID).is_some());
    let bad = renamed.join(key(3), Some("no token")).await.unwrap_err();
    assert_eq!(bad.code(), Code::PermissionDenied);
    let no_key = renamed.join("short".into(), None).await.unwrap_err();
    assert_eq!(of(no_key), (Code::InvalidArgument, "error parsing Wireguard key".into()));
    omni.shutdown().await;
}

#[tokio::test]
async fn old_talos_joins_where_it_may() {
    for (join_mode, may) in [(JoinMode::Strict, false), (JoinMode::LegacyAllowed, true), (JoinMode::Legacy, true)] {
        let omni = Omni::start(Options { join_mode, ..Options::loopback(ID) }).await.unwrap();
        let client = Client::connect(&omni, omni.service_account()).await;
        let mut machine = Machine::new(&client, UUID, &token::for_provider(&join_secret(&client).await, ID));
        for talos_version in [Some("v1.5.5"), None] {
            machine.talos_version = talos_version;
            match machine.join(key(1), None).await {
                Ok(()) => assert!(may && omni.state().get(&links(), UUID).is_ok()),
                Err(status) => assert!(!may && status.code() == Code::FailedPrecondition, "{status}"),
            }
        }
        machine.talos_version = Some(TALOS);
        machine.join(key(1), None).await.unwrap();
        let waits = omni.state().get(&pending_machines(), &key(1)).is_ok();
        assert_eq!(waits, join_mode != JoinMode::Legacy, "{join_mode:?}");
        omni.shutdown().await;
    }
}

#[tokio::test]
async fn plain_tokens_let_machines_in_until_they_end_and_are_counted() {
    let (omni, client) = omni().await;
    let admin = Client::connect(&omni, omni.admin()).await;
    let method = "/management.ManagementService/CreateJoinToken";
    let create = async |client: &Client, name: &str, lifetime: Option<Duration>| {
        let expiration_time = lifetime.map(|lifetime| (pilotlight::time::UnixTime::now() + lifetime).into());
        let request = client.signed(method, CreateJoinTokenRequest { name: name.into(), expiration_time });
        let created = ManagementServiceClient::new(client.channel.clone()).create_join_token(request).await;
        created.map(|answer| answer.into_inner().id)
    };
    assert_eq!(create(&client, "rack", None).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(create(&admin, "", None).await.unwrap_err().code(), Code::InvalidArgument);
    let plain = create(&admin, "rack", None).await.unwrap();
    let brief = create(&admin, "brief", Some(Duration::from_millis(1))).await.unwrap();
    let status = |token: &str| {
        let status = omni.state().get(&join_token_statuses(), token).ok()?;
        status.decode::<JoinTokenStatusSpec>().ok()
    };
    let is = |token: &str, wanted: Is| status(token).filter(|status| status.state() == wanted);
    until(&omni, &join_token_statuses(), || is(&plain, Is::Active)).await;
    until(&omni, &join_token_statuses(), || is(&brief, Is::Expired)).await;

    let machine = Machine::new(&client, UUID, &plain);
    let own = UniqueToken { fingerprint: "f".into(), token: "t".into() }.encode();
    machine.join(key(1), Some(&own)).await.unwrap();
    let stored = omni.state().get(&machines(), UUID).unwrap();
    assert!(stored.labels.is_empty(), "no provider has it, so that it is accepted at once");
    assert!(stored.annotations.contains_key("omni.sidero.dev/created-with-unique-token"));
    let used = until(&omni, &join_token_statuses(), || status(&plain).filter(|status| status.use_count == 1)).await;
    assert_eq!((used.name.as_str(), used.warnings.len(), used.is_default), ("rack", 1, false));
    let uuid = "4c4c4544-0000-4810-8031-b4c04f333132";
    for refused in ["nobody's", &brief] {
        unauthorized(Machine::new(&client, uuid, refused).join(key(2), Some(&own)).await.unwrap_err());
    }

    let mut revoked = admin.get(&join_tokens(), &plain).await.unwrap();
    let spec = JoinTokenSpec { name: "rack".into(), revoked: true, ..Default::default() };
    revoked.spec.as_mut().unwrap().proto_spec = prost::Message::encode_to_vec(&spec).into();
    admin.update(revoked, "", None).await.unwrap();
    until(&omni, &join_token_statuses(), || is(&plain, Is::Revoked)).await;
    unauthorized(Machine::new(&client, uuid, &plain).join(key(2), Some(&own)).await.unwrap_err());
    machine.join(key(1), Some(&own)).await.unwrap();
    Machine::new(&client, UUID, "").join(key(1), Some(&own)).await.unwrap();
    unauthorized(Machine::new(&client, uuid, "").join(key(2), None).await.unwrap_err());

    // The default token signs for those who have no secret of their own, as long as it is good.
    let default = omni.state().get(&default_join_tokens(), "default").unwrap();
    let default = default.decode::<DefaultJoinTokenSpec>().unwrap().token_id;
    let kept = admin.destroy(&join_tokens(), &default, "").await.unwrap_err();
    assert_eq!(of(kept).1, "failed to validate: deleting default join token is not possible");
    let kept = admin.destroy(&default_join_tokens(), "default", "").await.unwrap_err();
    assert_eq!(kept.code(), Code::InvalidArgument);
    let extra = token::ExtraData::from([(LABEL_INFRA_PROVIDER_ID.to_owned(), ID.to_owned())]);
    let signed = Machine::new(&client, uuid, &token::v1(&default, extra));
    signed.join(key(2), Some(&own)).await.unwrap();
    let names = |token: &str| DefaultJoinTokenSpec { token_id: token.into() };
    let mut renamed = admin.get(&default_join_tokens(), "default").await.unwrap();
    for (token, may) in [("nobody's", false), (&plain, true)] {
        renamed.spec.as_mut().unwrap().proto_spec = prost::Message::encode_to_vec(&names(token)).into();
        assert_eq!(admin.update(renamed.clone(), "", None).await.is_ok(), may, "{token}");
    }
    until(&omni, &join_token_statuses(), || status(&plain).filter(|status| status.is_default)).await;
    let signed = Machine { uuid: UUID.replace('0', "1"), ..signed };
    unauthorized(signed.join(key(3), Some(&own)).await.unwrap_err());
    admin.destroy(&join_tokens(), &default, "").await.unwrap();
    omni.shutdown().await;
}
