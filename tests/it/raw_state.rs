//! A State server as a client sees it that adds nothing: signed calls, answers as they come.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use pilotlight::omni::ServiceAccountKey;
use pilotlight::proto::cosi::state_client::StateClient;
use pilotlight::proto::cosi::{self, WatchOptions};
use pilotlight::resource::Kind;
use pilotlight::time::UnixTime;
use tonic::codec::CompressionEncoding::Gzip;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

/// Far longer than any answer takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server, and the key that it knows us by.
#[derive(Clone)]
pub struct Raw {
    pub channel: Channel,
    pub key: Arc<ServiceAccountKey>,
}

/// What a signature says, to be spoilt.
pub struct Signing {
    pub payload: String,
    pub timestamp: String,
    pub created: UnixTime,
}

impl Signing {
    /// The shortest payload that is valid.
    pub fn minimal(method: &str, at: UnixTime) -> Self {
        let timestamp = at.as_secs().to_string();
        let payload = format!(r#"{{"headers":{{"x-sidero-timestamp":["{timestamp}"]}},"method":"{method}"}}"#);
        Self { payload, timestamp, created: at }
    }
}

impl Raw {
    pub async fn connect(endpoint: &str, key: &str) -> Self {
        let channel = Channel::from_shared(endpoint.to_owned()).unwrap().connect().await.unwrap();
        Self { channel, key: Arc::new(ServiceAccountKey::parse(key).unwrap()) }
    }

    pub fn sign<T>(&self, signing: &Signing, message: T) -> Request<T> {
        let signature = self.key.sign(signing.payload.as_bytes(), signing.created).unwrap();
        let (name, fingerprint) = (self.key.name(), self.key.fingerprint());
        let header = format!("siderov1 {name} {fingerprint} {}", BASE64_STANDARD.encode(signature));
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("x-sidero-timestamp", signing.timestamp.parse().unwrap());
        metadata.insert("x-sidero-payload", signing.payload.parse().unwrap());
        metadata.insert("x-sidero-signature", header.parse().unwrap());
        request
    }

    pub fn signed<T>(&self, method: &str, message: T) -> Request<T> {
        self.sign(&Signing::minimal(&format!("/cosi.resource.State/{method}"), UnixTime::now()), message)
    }

    pub fn rpc(&self) -> StateClient<Channel> {
        let rpc = StateClient::new(self.channel.clone()).send_compressed(Gzip).accept_compressed(Gzip);
        rpc.max_decoding_message_size(32 << 20)
    }
}

/// One kind on one server.
#[derive(Clone)]
pub struct At {
    pub raw: Raw,
    pub kind: Kind,
}

type Stored = Result<cosi::Resource, Status>;

impl At {
    /// A resource as a writer sends it for the first time.
    pub fn fresh(&self, id: &str) -> cosi::Resource {
        cosi::Resource {
            metadata: Some(cosi::Metadata {
                namespace: self.kind.namespace.clone(),
                r#type: self.kind.r#type.clone(),
                id: id.to_owned(),
                version: "undefined".into(),
                phase: "running".into(),
                created: Some(UnixTime::from_secs(1_000).into()),
                updated: Some(UnixTime::from_secs(1_700_000_000).into()),
                ..Default::default()
            }),
            spec: Some(cosi::Spec { proto_spec: "spec".into(), yaml_spec: String::new() }),
        }
    }

    pub fn labelled(&self, id: &str, labels: &[(&str, &str)]) -> cosi::Resource {
        let mut resource = self.fresh(id);
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        resource.metadata.as_mut().unwrap().labels = labels.collect();
        resource
    }

    pub async fn get(&self, id: &str) -> Stored {
        let request = cosi::GetRequest {
            namespace: self.kind.namespace.clone(),
            r#type: self.kind.r#type.clone(),
            id: id.into(),
            options: Some(cosi::GetOptions {}),
        };
        let answer = self.raw.rpc().get(self.raw.signed("Get", request)).await?;
        Ok(answer.into_inner().resource.expect("an answer holds a resource"))
    }

    pub async fn list(&self, label_query: Vec<cosi::LabelQuery>, regexp: &str) -> Result<Vec<String>, Status> {
        let request = cosi::ListRequest {
            namespace: self.kind.namespace.clone(),
            r#type: self.kind.r#type.clone(),
            options: Some(cosi::ListOptions { label_query, id_query: Some(cosi::IdQuery { regexp: regexp.into() }) }),
        };
        let mut stream = self.raw.rpc().list(self.raw.signed("List", request)).await?.into_inner();
        let mut ids = Vec::new();
        while let Some(answer) = stream.message().await? {
            ids.push(id_of(&answer.resource.unwrap()));
        }
        Ok(ids)
    }

    pub async fn create(&self, resource: cosi::Resource, owner: &str) -> Stored {
        let options = Some(cosi::CreateOptions { owner: owner.into() });
        self.create_raw(cosi::CreateRequest { resource: Some(resource), options }).await
    }

    pub async fn create_raw(&self, request: cosi::CreateRequest) -> Stored {
        let answer = self.raw.rpc().create(self.raw.signed("Create", request)).await?;
        Ok(answer.into_inner().resource.expect("an answer holds a resource"))
    }

    pub async fn update(&self, resource: cosi::Resource, owner: &str, phase: Option<&str>) -> Stored {
        let options = cosi::UpdateOptions { owner: owner.into(), expected_phase: phase.map(Into::into) };
        let request = cosi::UpdateRequest { new_resource: Some(resource), options: Some(options) };
        let answer = self.raw.rpc().update(self.raw.signed("Update", request)).await?;
        Ok(answer.into_inner().resource.expect("an answer holds a resource"))
    }

    /// Reads a resource, lets `change` edit it, writes it as its owner in any phase.
    pub async fn edit(&self, id: &str, change: impl FnOnce(&mut cosi::Resource)) -> Stored {
        let mut resource = self.get(id).await?;
        change(&mut resource);
        let owner = self.get(id).await?.metadata.unwrap().owner;
        self.update(resource, &owner, None).await
    }

    pub async fn destroy(&self, id: &str, owner: &str) -> Result<(), Status> {
        let request = cosi::DestroyRequest {
            namespace: self.kind.namespace.clone(),
            r#type: self.kind.r#type.clone(),
            id: id.into(),
            options: Some(cosi::DestroyOptions { owner: owner.into() }),
        };
        self.raw.rpc().destroy(self.raw.signed("Destroy", request)).await.map(drop)
    }

    pub async fn teardown(&self, id: &str, owner: &str) -> Result<bool, Status> {
        let request = cosi::TeardownRequest {
            namespace: self.kind.namespace.clone(),
            r#type: self.kind.r#type.clone(),
            id: id.into(),
            options: Some(cosi::TeardownOptions { owner: owner.into() }),
        };
        let answer = self.raw.rpc().teardown(self.raw.signed("Teardown", request)).await?;
        Ok(answer.into_inner().destroy_ready)
    }

    pub async fn teardown_and_destroy(&self, id: &str, owner: &str) -> Result<(), Status> {
        let request = cosi::TeardownAndDestroyRequest {
            namespace: self.kind.namespace.clone(),
            r#type: self.kind.r#type.clone(),
            id: id.into(),
            options: Some(cosi::TeardownAndDestroyOptions { owner: owner.into() }),
        };
        self.raw.rpc().teardown_and_destroy(self.raw.signed("TeardownAndDestroy", request)).await.map(drop)
    }

    /// Opens a watch and reads its first message, which is empty, or the error in its place.
    pub async fn watch(&self, id: Option<&str>, options: WatchOptions, api_version: i32) -> Result<Watching, Status> {
        let request = cosi::WatchRequest {
            namespace: self.kind.namespace.clone(),
            r#type: self.kind.r#type.clone(),
            id: id.map(Into::into),
            options: Some(options),
            api_version,
        };
        let stream = self.raw.rpc().watch(self.raw.signed("Watch", request)).await?.into_inner();
        let mut watching = Watching { stream };
        let first = watching.message().await?;
        if first.event.is_empty() { Ok(watching) } else { Err(Status::aborted("the first message is not empty")) }
    }

    /// A watch of the kind from now on.
    pub async fn follow(&self) -> Watching {
        self.watch(None, WatchOptions::default(), 1).await.unwrap()
    }
}

/// An open watch.
pub struct Watching {
    stream: Streaming<cosi::WatchResponse>,
}

impl Watching {
    pub async fn message(&mut self) -> Result<cosi::WatchResponse, Status> {
        match tokio::time::timeout(PATIENCE, self.stream.message()).await {
            Ok(message) => message?.ok_or_else(|| Status::cancelled("the watch ended")),
            Err(_) => Err(Status::deadline_exceeded("nothing came")),
        }
    }

    /// The next `count` events, or fewer and the error.
    pub async fn events(&mut self, count: usize) -> Vec<Result<cosi::Event, Status>> {
        let mut events = Vec::new();
        while events.len() < count {
            match self.message().await {
                Ok(message) => events.extend(message.event.into_iter().map(Ok)),
                Err(status) => {
                    events.push(Err(status));
                    break;
                }
            }
        }
        events
    }
}

pub fn id_of(resource: &cosi::Resource) -> String {
    resource.metadata.as_ref().unwrap().id.clone()
}

/// A refusal in a word: its code, and the fragment of its text by which clients tell refusals of one code apart.
pub fn refusal(status: &Status) -> String {
    const FRAGMENTS: [&str; 6] = [
        "update conflict: expected version",
        "is owned by \"",
        "is not in phase",
        "has pending finalizers",
        "infra providers are not allowed",
        "is not registered in the system",
    ];
    let fragment = FRAGMENTS.into_iter().find(|fragment| status.message().contains(fragment));
    let code: Code = status.code();
    fragment.map_or_else(|| format!("{code:?}"), |fragment| format!("{code:?} `{fragment}`"))
}

/// `ok`, or the refusal.
pub fn said<T>(result: &Result<T, Status>) -> String {
    result.as_ref().map_or_else(refusal, |_| "ok".to_owned())
}
