//! A provider's side of the wire, no more than the contract says.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pgp::composed::{Deserializable as _, SignedSecretKey};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{SignatureConfig, SignatureType, Subpacket, SubpacketData};
use pgp::types::{KeyDetails as _, Password, Timestamp};
use pilotlight::lab::omni::account::ServiceAccount;
use pilotlight::lab::omni::{Omni, Options};
use pilotlight::proto::cosi::state_client::StateClient;
use pilotlight::proto::cosi::{self, EventType};
use pilotlight::proto::specs::InfraProviderStatusSpec;
use pilotlight::resource::{Kind, LABEL_IS_STATIC_INFRA_PROVIDER};
use pilotlight::time::UnixTime;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

pub const ID: &str = "metal-1";
pub const UUID: &str = "4c4c4544-0044-4810-8031-b4c04f333132";

/// What a machine shows of its tunnel's key.
pub const WIREGUARD_KEY: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// A provider's side of the wire, no more than the contract says.
#[derive(Clone)]
pub struct Client {
    pub key: SignedSecretKey,
    pub name: String,
    pub channel: Channel,
}

/// What a signature says, to be spoilt.
pub struct Signing {
    pub method: String,
    pub timestamp: u64,
    pub created: u64,
    pub payload: Option<String>,
}

impl Client {
    pub async fn connect(omni: &Omni, account: &ServiceAccount) -> Self {
        let json = BASE64_STANDARD.decode(account.key_string.reveal()).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json.as_object().unwrap().len(), 2);
        let (key, _) = SignedSecretKey::from_string(json["pgp_key"].as_str().unwrap()).unwrap();
        key.verify_bindings().unwrap();
        assert_eq!(format!("{:x}", key.primary_key.fingerprint()), account.fingerprint);
        let channel = Channel::from_shared(omni.endpoint()).unwrap().connect().await.unwrap();
        Self { key, name: json["name"].as_str().unwrap().to_owned(), channel }
    }

    pub fn sign<T>(&self, signing: Signing, message: T) -> Request<T> {
        let payload = signing.payload.unwrap_or_else(|| {
            format!(
                r#"{{"headers":{{"authorization":null,"cluster":null,"context":null,"fieldSelectors":null,"namespace":null,"nodes":null,"runtime":null,"selectors":null,"uid":null,"x-sidero-timestamp":["{}"]}},"method":"{}"}}"#,
                signing.timestamp, signing.method
            )
        });
        let key = &self.key.primary_key;
        let mut config = SignatureConfig::v4(SignatureType::Binary, key.algorithm(), HashAlgorithm::Sha512);
        config.hashed_subpackets = vec![
            Subpacket::regular(SubpacketData::SignatureCreationTime(Timestamp::from_secs(signing.created as u32)))
                .unwrap(),
            Subpacket::regular(SubpacketData::IssuerFingerprint(key.fingerprint())).unwrap(),
        ];
        config.unhashed_subpackets = vec![Subpacket::regular(SubpacketData::IssuerKeyId(key.legacy_key_id())).unwrap()];
        let signature = config.sign(key, &Password::empty(), payload.as_bytes()).unwrap();
        let mut packet = Vec::new();
        pgp::packet::PacketTrait::to_writer_with_header(&signature, &mut packet).unwrap();
        let signature = BASE64_STANDARD.encode(packet);
        let header = format!("siderov1 {} {:x} {signature}", self.name, key.fingerprint());
        let mut request = Request::new(message);
        request.metadata_mut().insert("x-sidero-timestamp", signing.timestamp.to_string().parse().unwrap());
        request.metadata_mut().insert("x-sidero-payload", payload.parse().unwrap());
        request.metadata_mut().insert("x-sidero-signature", header.parse().unwrap());
        request
    }

    pub fn signed<T>(&self, method: &str, message: T) -> Request<T> {
        let now = UnixTime::now().as_secs();
        self.sign(Signing { method: method.to_owned(), timestamp: now, created: now, payload: None }, message)
    }

    pub fn state(&self) -> StateClient<Channel> {
        StateClient::new(self.channel.clone()).send_compressed(Gzip).accept_compressed(Gzip)
    }

    pub async fn get(&self, kind: &Kind, id: &str) -> Result<cosi::Resource, Status> {
        self.state()
            .get(self.signed("/cosi.resource.State/Get", get(kind, id)))
            .await
            .map(|answer| answer.into_inner().resource.unwrap())
    }

    pub async fn list(&self, kind: &Kind, options: cosi::ListOptions) -> Result<Vec<String>, Status> {
        let request = cosi::ListRequest {
            namespace: kind.namespace.clone(),
            r#type: kind.r#type.clone(),
            options: Some(options),
        };
        let mut stream = self.state().list(self.signed("/cosi.resource.State/List", request)).await?.into_inner();
        let mut ids = Vec::new();
        while let Some(message) = stream.message().await? {
            ids.push(message.resource.unwrap().metadata.unwrap().id);
        }
        Ok(ids)
    }

    pub async fn create(&self, resource: cosi::Resource, owner: &str) -> Result<cosi::Resource, Status> {
        let request = cosi::CreateRequest {
            resource: Some(resource),
            options: Some(cosi::CreateOptions { owner: owner.into() }),
        };
        self.state()
            .create(self.signed("/cosi.resource.State/Create", request))
            .await
            .map(|answer| answer.into_inner().resource.unwrap())
    }

    pub async fn update(
        &self,
        resource: cosi::Resource,
        owner: &str,
        phase: Option<&str>,
    ) -> Result<cosi::Resource, Status> {
        let options = cosi::UpdateOptions { owner: owner.into(), expected_phase: phase.map(Into::into) };
        let request = cosi::UpdateRequest { new_resource: Some(resource), options: Some(options) };
        self.state()
            .update(self.signed("/cosi.resource.State/Update", request))
            .await
            .map(|answer| answer.into_inner().resource.unwrap())
    }

    pub async fn destroy(&self, kind: &Kind, id: &str, owner: &str) -> Result<(), Status> {
        let request = cosi::DestroyRequest {
            namespace: kind.namespace.clone(),
            r#type: kind.r#type.clone(),
            id: id.into(),
            options: Some(cosi::DestroyOptions { owner: owner.into() }),
        };
        self.state().destroy(self.signed("/cosi.resource.State/Destroy", request)).await.map(drop)
    }

    pub async fn teardown(&self, kind: &Kind, id: &str) -> Result<bool, Status> {
        let request = cosi::TeardownRequest {
            namespace: kind.namespace.clone(),
            r#type: kind.r#type.clone(),
            id: id.into(),
            options: None,
        };
        self.state()
            .teardown(self.signed("/cosi.resource.State/Teardown", request))
            .await
            .map(|answer| answer.into_inner().destroy_ready)
    }

    pub async fn watch(
        &self,
        kind: &Kind,
        id: Option<&str>,
        options: cosi::WatchOptions,
    ) -> Result<Streaming<cosi::WatchResponse>, Status> {
        let request = cosi::WatchRequest {
            namespace: kind.namespace.clone(),
            r#type: kind.r#type.clone(),
            id: id.map(Into::into),
            options: Some(options),
            api_version: 1,
        };
        let mut stream = self.state().watch(self.signed("/cosi.resource.State/Watch", request)).await?.into_inner();
        let first = stream.message().await?.expect("a watch begins with a message");
        assert!(first.event.is_empty(), "the first message is empty");
        Ok(stream)
    }

    /// Makes this a static provider.
    pub async fn register(&self) {
        let mut resource = fresh(&Kind::omni("InfraProviderStatuses"), ID, &InfraProviderStatusSpec::default());
        labels(&mut resource).insert(LABEL_IS_STATIC_INFRA_PROVIDER.into(), String::new());
        self.create(resource, "").await.unwrap();
    }
}

pub fn get(kind: &Kind, id: &str) -> cosi::GetRequest {
    cosi::GetRequest { namespace: kind.namespace.clone(), r#type: kind.r#type.clone(), id: id.into(), options: None }
}

pub fn fresh(kind: &Kind, id: &str, spec: &impl prost::Message) -> cosi::Resource {
    cosi::Resource {
        metadata: Some(cosi::Metadata {
            namespace: kind.namespace.clone(),
            r#type: kind.r#type.clone(),
            id: id.into(),
            version: "undefined".into(),
            phase: "running".into(),
            updated: Some(UnixTime::now().into()),
            ..cosi::Metadata::default()
        }),
        spec: Some(cosi::Spec { proto_spec: spec.encode_to_vec().into(), yaml_spec: String::new() }),
    }
}

pub fn metadata(resource: &mut cosi::Resource) -> &mut cosi::Metadata {
    resource.metadata.as_mut().unwrap()
}

pub fn labels(resource: &mut cosi::Resource) -> &mut std::collections::BTreeMap<String, String> {
    &mut metadata(resource).labels
}

pub fn of(status: Status) -> (Code, String) {
    (status.code(), status.message().to_owned())
}

pub async fn omni() -> (Omni, Client) {
    let omni = Omni::start(Options::loopback(ID)).await.unwrap();
    let client = Client::connect(&omni, omni.service_account()).await;
    (omni, client)
}

pub async fn event(stream: &mut Streaming<cosi::WatchResponse>) -> (EventType, cosi::Event) {
    let mut batch = batch(stream).await;
    assert_eq!(batch.len(), 1);
    let event = batch.remove(0);
    (event.event_type(), event)
}

pub async fn batch(stream: &mut Streaming<cosi::WatchResponse>) -> Vec<cosi::Event> {
    let next = tokio::time::timeout(Duration::from_secs(10), stream.message());
    next.await.expect("an event within ten seconds").unwrap().expect("the stream is open").event
}

pub fn id_of(event: &cosi::Event) -> &str {
    &event.resource.as_ref().unwrap().metadata.as_ref().unwrap().id
}
