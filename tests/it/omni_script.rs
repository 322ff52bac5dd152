//! A small scripted Omni for the client's tests: it checks every signature, keeps resources under the write rules of the
//! contract (section 3.3), and answers what a test has lined up.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pgp::composed::{Deserializable as _, DetachedSignature, SignedPublicKey};
use pilotlight::proto::cosi::state_server::{State, StateServer};
use pilotlight::proto::cosi::{self, WatchResponse};
use pilotlight::proto::management;
use pilotlight::proto::management::management_service_server::{ManagementService, ManagementServiceServer};
use pilotlight::proto::management::{
    BootAssetUrlRequest, BootAssetUrlResponse, CreateSchematicFromRawRequest, CreateSchematicResponse,
};
use pilotlight::time::UnixTime;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

pub const KEY: &str = include_str!("../fixtures/omni/service-account.private.asc");
pub const PUBLIC_KEY: &str = include_str!("../fixtures/omni/service-account.public.asc");

/// The value of OMNI_SERVICE_ACCOUNT_KEY.
pub fn service_account() -> String {
    STANDARD.encode(serde_json::json!({ "name": "infra-provider:metal-1", "pgp_key": KEY }).to_string())
}

/// A watch that a client has opened, and how to feed it.
pub struct Opened {
    pub request: cosi::WatchRequest,
    pub feed: mpsc::Sender<Result<WatchResponse, Status>>,
}

#[derive(Clone)]
pub struct Script {
    inner: Arc<Inner>,
}

struct Inner {
    resources: Mutex<BTreeMap<String, cosi::Resource>>,
    /// Answers lined up, by method; they come before anything else.
    answers: Mutex<HashMap<&'static str, VecDeque<Status>>>,
    /// Methods called, in order, once their signatures were found good.
    calls: Mutex<Vec<&'static str>>,
    encodings: Mutex<Vec<String>>,
    opened: mpsc::UnboundedSender<Opened>,
    /// Whether calls of Get are never answered.
    hang: AtomicBool,
    signed: bool,
}

impl Script {
    /// A server on a free port of loopback, which lives as long as the test's runtime; and the watches opened on it.
    pub async fn start(signed: bool, tls: Option<Identity>) -> (Self, SocketAddr, mpsc::UnboundedReceiver<Opened>) {
        let (opened, watches) = mpsc::unbounded_channel();
        let script = Self {
            inner: Arc::new(Inner {
                resources: Mutex::default(),
                answers: Mutex::default(),
                calls: Mutex::default(),
                encodings: Mutex::default(),
                opened,
                hang: AtomicBool::new(false),
                signed,
            }),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut server = Server::builder();
        if let Some(identity) = tls {
            server = server.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
        }
        // More than Omni takes, so that the client's own limits are met.
        let state = StateServer::new(script.clone())
            .max_decoding_message_size(64 << 20)
            .accept_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Gzip);
        let management = ManagementServiceServer::new(script.clone()).accept_compressed(CompressionEncoding::Gzip);
        let router = server.add_service(state).add_service(management);
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        (script, address, watches)
    }

    /// Lines up a refusal for the next call of `method`.
    pub fn refuse(&self, method: &'static str, status: Status) {
        self.inner.answers.lock().unwrap().entry(method).or_default().push_back(status);
    }

    /// Never answers Get from now on.
    pub fn hang(&self) {
        self.inner.hang.store(true, Ordering::Relaxed);
    }

    pub fn calls(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.inner.calls.lock().unwrap())
    }

    pub fn encodings(&self) -> Vec<String> {
        self.inner.encodings.lock().unwrap().clone()
    }

    pub fn resource(&self, id: &str) -> Option<cosi::Resource> {
        self.inner.resources.lock().unwrap().get(id).cloned()
    }

    pub fn store(&self, resource: cosi::Resource) {
        let id = resource.metadata.as_ref().unwrap().id.clone();
        self.inner.resources.lock().unwrap().insert(id, resource);
    }

    pub fn forget(&self, id: &str) {
        self.inner.resources.lock().unwrap().remove(id);
    }

    /// Checks the signature as section 2.3 says, then hands out a refusal if one is lined up.
    fn begin(&self, path: &'static str, metadata: &MetadataMap) -> Result<(), Status> {
        let method = path.rsplit('/').next().unwrap();
        if self.inner.signed {
            verify(path, metadata).map_err(|what| Status::unauthenticated(format!("invalid signature: {what}")))?;
        } else if metadata.get("x-sidero-signature").is_some() {
            return Err(Status::unauthenticated("nobody asked for a signature"));
        }
        self.inner.calls.lock().unwrap().push(method);
        let encoding = metadata.get("grpc-encoding").map(|value| value.to_str().unwrap().to_owned());
        self.inner.encodings.lock().unwrap().push(encoding.unwrap_or_default());
        match self.inner.answers.lock().unwrap().get_mut(method).and_then(VecDeque::pop_front) {
            Some(status) => Err(status),
            None => Ok(()),
        }
    }
}

fn verify(path: &str, metadata: &MetadataMap) -> Result<(), String> {
    let header = |name: &str| -> Result<String, String> {
        let mut values = metadata.get_all(name).iter();
        let value = values.next().ok_or(format!("no {name}"))?.to_str().map_err(|error| error.to_string())?;
        if values.next().is_some() { Err(format!("{name} twice")) } else { Ok(value.to_owned()) }
    };
    let (timestamp, payload) = (header("x-sidero-timestamp")?, header("x-sidero-payload")?);
    let signature = header("x-sidero-signature")?;
    let seconds: u64 = timestamp.parse().map_err(|_| "timestamp".to_owned())?;
    if seconds.abs_diff(UnixTime::now().as_secs()) > 300 {
        return Err("clock".to_owned());
    }
    let decoded: serde_json::Value = serde_json::from_str(&payload).map_err(|error| error.to_string())?;
    if decoded["method"] != path {
        return Err(format!("signed for {} and not {path}", decoded["method"]));
    }
    let headers = decoded["headers"].as_object().ok_or("no headers")?;
    for (name, value) in headers {
        let fits = if name == "x-sidero-timestamp" {
            *value == serde_json::json!([timestamp])
        } else {
            value.is_null() && metadata.get(name.to_lowercase()).is_none()
        };
        if !fits {
            return Err(format!("header {name}"));
        }
    }
    let parts: Vec<&str> = signature.split(' ').collect();
    let [version, name, fingerprint, body] = parts[..] else { return Err("parts".to_owned()) };
    let (key, _) = SignedPublicKey::from_string(PUBLIC_KEY).unwrap();
    let expected = format!("{:x}", pgp::types::KeyDetails::fingerprint(&key));
    if (version, name, fingerprint) != ("siderov1", "infra-provider:metal-1", expected.as_str()) {
        return Err("names".to_owned());
    }
    let packet = STANDARD.decode(body).map_err(|error| error.to_string())?;
    let signature = DetachedSignature::from_bytes(packet.as_slice()).map_err(|error| error.to_string())?;
    signature.verify(&key, payload.as_bytes()).map_err(|error| error.to_string())
}

#[tonic::async_trait]
impl State for Script {
    async fn get(&self, request: Request<cosi::GetRequest>) -> Result<Response<cosi::GetResponse>, Status> {
        self.begin("/cosi.resource.State/Get", request.metadata())?;
        if self.inner.hang.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let id = request.into_inner().id;
        let found = self.resource(&id).ok_or_else(|| Status::not_found(format!("resource {id} doesn't exist")))?;
        Ok(Response::new(cosi::GetResponse { resource: Some(found) }))
    }

    type ListStream = tokio_stream::Iter<std::vec::IntoIter<Result<cosi::ListResponse, Status>>>;

    async fn list(&self, request: Request<cosi::ListRequest>) -> Result<Response<Self::ListStream>, Status> {
        self.begin("/cosi.resource.State/List", request.metadata())?;
        let resources = self.inner.resources.lock().unwrap();
        let answers: Vec<_> =
            resources.values().map(|found| Ok(cosi::ListResponse { resource: Some(found.clone()) })).collect();
        Ok(Response::new(tokio_stream::iter(answers)))
    }

    async fn create(&self, request: Request<cosi::CreateRequest>) -> Result<Response<cosi::CreateResponse>, Status> {
        self.begin("/cosi.resource.State/Create", request.metadata())?;
        let request = request.into_inner();
        let mut resource = request.resource.unwrap();
        let metadata = resource.metadata.as_mut().unwrap();
        assert_eq!((metadata.version.as_str(), metadata.phase.as_str()), ("undefined", "running"));
        assert!(metadata.updated.is_some_and(|updated| updated.seconds > 1_700_000_000), "updated is now");
        let id = metadata.id.clone();
        if self.resource(&id).is_some() {
            return Err(Status::already_exists(format!("resource {id} already exists")));
        }
        metadata.version = "1".to_owned();
        metadata.owner = request.options.unwrap().owner;
        metadata.created = metadata.updated;
        self.store(resource.clone());
        Ok(Response::new(cosi::CreateResponse { resource: Some(resource) }))
    }

    async fn update(&self, request: Request<cosi::UpdateRequest>) -> Result<Response<cosi::UpdateResponse>, Status> {
        self.begin("/cosi.resource.State/Update", request.metadata())?;
        let request = request.into_inner();
        let (mut resource, options) = (request.new_resource.unwrap(), request.options.unwrap());
        let metadata = resource.metadata.as_mut().unwrap();
        let id = metadata.id.clone();
        let stored = self.resource(&id).ok_or_else(|| Status::not_found(format!("resource {id} doesn't exist")))?;
        let stored = stored.metadata.unwrap();
        if options.owner != stored.owner {
            return Err(Status::permission_denied(format!("resource {id} is owned by \"{}\"", stored.owner)));
        }
        if metadata.version != stored.version {
            return Err(Status::failed_precondition(format!(
                "resource {id} update conflict: expected version \"{}\", actual version \"{}\"",
                metadata.version, stored.version
            )));
        }
        if options.expected_phase.is_some_and(|phase| phase != stored.phase) {
            return Err(Status::invalid_argument(format!("resource {id} is not in phase running")));
        }
        metadata.version = (stored.version.parse::<u64>().unwrap() + 1).to_string();
        self.store(resource.clone());
        Ok(Response::new(cosi::UpdateResponse { resource: Some(resource) }))
    }

    async fn destroy(&self, request: Request<cosi::DestroyRequest>) -> Result<Response<cosi::DestroyResponse>, Status> {
        self.begin("/cosi.resource.State/Destroy", request.metadata())?;
        let id = request.into_inner().id;
        let stored = self.resource(&id).ok_or_else(|| Status::not_found(format!("resource {id} doesn't exist")))?;
        if !stored.metadata.unwrap().finalizers.is_empty() {
            return Err(Status::failed_precondition(format!("resource {id} has pending finalizers [x]")));
        }
        self.forget(&id);
        Ok(Response::new(cosi::DestroyResponse {}))
    }

    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<cosi::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        self.begin("/cosi.resource.State/Watch", request.metadata())?;
        let (feed, stream) = mpsc::channel(16);
        self.inner.opened.send(Opened { request: request.into_inner(), feed }).unwrap();
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn teardown(
        &self,
        request: Request<cosi::TeardownRequest>,
    ) -> Result<Response<cosi::TeardownResponse>, Status> {
        self.begin("/cosi.resource.State/Teardown", request.metadata())?;
        Err(Status::unimplemented("unknown method Teardown"))
    }

    async fn teardown_and_destroy(
        &self,
        _: Request<cosi::TeardownAndDestroyRequest>,
    ) -> Result<Response<cosi::TeardownAndDestroyResponse>, Status> {
        Err(Status::unimplemented("unknown method TeardownAndDestroy"))
    }
}

#[tonic::async_trait]
impl ManagementService for Script {
    async fn create_schematic_from_raw(
        &self,
        request: Request<CreateSchematicFromRawRequest>,
    ) -> Result<Response<CreateSchematicResponse>, Status> {
        self.begin("/management.ManagementService/CreateSchematicFromRaw", request.metadata())?;
        let yaml = String::from_utf8(request.into_inner().raw_schematic).unwrap();
        let schematic_id = format!("schematic-of-{}", yaml.len());
        Ok(Response::new(CreateSchematicResponse { schematic_id, ..Default::default() }))
    }

    async fn get_boot_asset_url(
        &self,
        request: Request<BootAssetUrlRequest>,
    ) -> Result<Response<BootAssetUrlResponse>, Status> {
        self.begin("/management.ManagementService/GetBootAssetURL", request.metadata())?;
        let request = request.into_inner();
        let url = format!("https://user:hunter2@factory/{}/{}", request.schematic_id, request.format);
        let headers = [("authorization".to_owned(), "hunter2".to_owned())].into();
        Ok(Response::new(BootAssetUrlResponse { url, headers, ..Default::default() }))
    }

    async fn validate_config(&self, _: Request<management::ValidateConfigRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented("not used by this provider"))
    }

    async fn validate_json_schema(
        &self,
        _: Request<management::ValidateJsonSchemaRequest>,
    ) -> Result<Response<management::ValidateJsonSchemaResponse>, Status> {
        Err(Status::unimplemented("not used by this provider"))
    }

    async fn create_service_account(
        &self,
        _: Request<management::CreateServiceAccountRequest>,
    ) -> Result<Response<management::CreateServiceAccountResponse>, Status> {
        Err(Status::unimplemented("not a provider's"))
    }

    async fn renew_service_account(
        &self,
        _: Request<management::RenewServiceAccountRequest>,
    ) -> Result<Response<management::RenewServiceAccountResponse>, Status> {
        Err(Status::unimplemented("not a provider's"))
    }

    async fn create_join_token(
        &self,
        _: Request<management::CreateJoinTokenRequest>,
    ) -> Result<Response<management::CreateJoinTokenResponse>, Status> {
        Err(Status::unimplemented("not a provider's"))
    }

    async fn machine_power_off(
        &self,
        _: Request<management::MachinePowerOffRequest>,
    ) -> Result<Response<management::MachinePowerOffResponse>, Status> {
        Err(Status::unimplemented("not a provider's"))
    }

    async fn machine_power_on(
        &self,
        _: Request<management::MachinePowerOnRequest>,
    ) -> Result<Response<management::MachinePowerOnResponse>, Status> {
        Err(Status::unimplemented("not a provider's"))
    }
}
