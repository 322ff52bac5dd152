//! The HTTP routes of a booting machine.
//!
//! Source: contract section 5.2. Nothing is listed, nothing is decided here: scripts and configurations come from the
//! [`BootDesk`].

use std::io::SeekFrom;
use std::net::{IpAddr, SocketAddr};
use std::path::{Component, Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::{Bytes, BytesMut};
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, IF_RANGE, RANGE};
use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tracing::{debug, warn};

use crate::boot::advertise::Advertise;
use crate::boot::files::BootFiles;
use crate::boot::request::{self, BootAnswer, BootRequest};
use crate::boot::script;
use crate::images::{AssetPath, Cache};
use crate::machine::MachineId;
use crate::netboot::range::{self, Range};
use crate::secret::Secret;
use crate::telemetry::Limit;
use crate::time::Uptime;

/// Octets per read of a file: four times as fast as 64 KiB (measured).
const CHUNK: usize = 256 << 10;

/// Lines about images that could not be had: machines, and strangers, ask again and again.
static NOT_SERVED: Limit = Limit::new(20, Duration::from_secs(5));

/// Decides what machines boot and which configuration they get.
#[async_trait]
pub trait BootDesk: Send + Sync {
    /// The answer to a boot request. Always an answer: when it can't be decided, the status says so.
    async fn boot(&self, request: BootRequest) -> BootAnswer;

    /// The machine configuration for the machine `uuid`, `None` when it named none that can be, at `peer`.
    ///
    /// # Errors
    ///
    /// [`ConfigRefusal`] when it gets none.
    async fn machine_config(&self, uuid: Option<MachineId>, peer: IpAddr) -> Result<Secret<String>, ConfigRefusal>;
}

/// Why a machine gets no configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigRefusal {
    /// The box does not know the machine: 404, so that a stranger learns nothing.
    #[error("the machine is not known")]
    Unknown,
    /// There is no configuration yet: 503, and machines try again.
    #[error("the configuration is not there yet")]
    NotReady,
}

struct Routes {
    desk: Arc<dyn BootDesk>,
    files: Arc<BootFiles>,
    assets: Option<PathBuf>,
    init_script: Bytes,
}

/// The routes: `/config`, `/ipxe/init.ipxe`, `/ipxe/boot.ipxe`, `/tftp/…`, `/assets/…` when `assets` is given. GET and
/// HEAD alone; all else is 404 or 405. It sets no fallback, so that gRPC routes can be merged.
///
/// Needs the peer's address in each request, as [`crate::netboot::serve::serve`] puts it there.
pub fn router(
    desk: Arc<dyn BootDesk>,
    files: Arc<BootFiles>,
    assets: Option<PathBuf>,
    advertise: &Advertise,
) -> Router {
    let init_script = script::init(advertise).into();
    let routes = Arc::new(Routes { desk, files, assets, init_script });
    Router::new()
        .route("/config", get(config))
        .route("/ipxe/init.ipxe", get(init))
        .route("/ipxe/boot.ipxe", get(boot))
        .route("/tftp/{*name}", get(tftp))
        .route("/assets/{*path}", get(asset))
        .with_state(routes)
}

/// The route `/image/<schematic>/<version>/<file>` over the image cache.
pub fn image_router(images: Arc<Cache>) -> Router {
    Router::new().route("/image/{schematic}/{version}/{file}", get(image)).with_state(images)
}

fn text(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    (status, [(CONTENT_TYPE, content_type)], body.into()).into_response()
}

fn not_found() -> Response {
    text(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n")
}

async fn config(
    State(routes): State<Arc<Routes>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
) -> Response {
    let uuid = request::value(&query.unwrap_or_default(), "u").and_then(|text| text.parse().ok());
    let answer = routes.desk.machine_config(uuid.clone(), peer.ip().to_canonical()).await;
    debug!(machine = ?uuid, %peer, refused = ?answer.as_ref().err(), "machine config asked for");
    match answer {
        Ok(yaml) => text(StatusCode::OK, "text/plain; charset=utf-8", yaml.reveal().clone()),
        Err(ConfigRefusal::Unknown) => not_found(),
        Err(refusal @ ConfigRefusal::NotReady) => {
            text(StatusCode::SERVICE_UNAVAILABLE, "text/plain; charset=utf-8", format!("{refusal}\n"))
        }
    }
}

async fn init(State(routes): State<Arc<Routes>>) -> Response {
    text(StatusCode::OK, "text/plain", routes.init_script.clone())
}

async fn boot(
    State(routes): State<Arc<Routes>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    RawQuery(query): RawQuery,
) -> Response {
    let query = query.unwrap_or_default();
    let request = match BootRequest::parse(&query, peer.ip().to_canonical()) {
        Ok(request) => request,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|source| format!(": {source}")).unwrap_or_default();
            debug!(%peer, %error, cause, "boot request refused");
            if request::value(&query, "disk").as_deref() == Some("script") {
                let answer = script::unusable(&format!("{error}{cause}"));
                return text(answer.status, answer.content_type, answer.body);
            }
            return text(StatusCode::BAD_REQUEST, "text/plain; charset=utf-8", format!("{error}{cause}\n"));
        }
    };
    let machine = request.uuid.clone();
    let answer = routes.desk.boot(request).await;
    debug!(%machine, %peer, status = answer.status.as_u16(), reason = answer.reason, "boot answered");
    text(answer.status, answer.content_type, answer.body)
}

async fn tftp(State(routes): State<Arc<Routes>>, Path(name): Path<String>, headers: HeaderMap) -> Response {
    match routes.files.get(&name) {
        Some(octets) => from_memory(&name, octets, &headers),
        None => not_found(),
    }
}

async fn asset(State(routes): State<Arc<Routes>>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    let Some(root) = &routes.assets else { return not_found() };
    match within(root, &path).await {
        Some(file) => from_file(&file, &headers).await,
        None => not_found(),
    }
}

/// The file under `root`, symbolic links followed only as far as they stay there.
async fn within(root: &FsPath, path: &str) -> Option<PathBuf> {
    let path = FsPath::new(path);
    if !path.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let root = tokio::fs::canonicalize(root).await.ok()?;
    let file = tokio::fs::canonicalize(root.join(path)).await.ok()?;
    file.starts_with(&root).then_some(file)
}

async fn image(
    State(images): State<Arc<Cache>>,
    Path((schematic, version, file)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    let Ok(path) = AssetPath::parse(&schematic, &version, &file) else { return not_found() };
    if !images.knows(&path) {
        debug!(asset = %path, "image of an unknown schematic asked for");
        return not_found();
    }
    match images.asset(&path).await {
        Ok(asset) => from_file(&asset.path, &headers).await,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            if let Some(held_back) = NOT_SERVED.allow(Uptime::now()) {
                warn!(asset = %path, %error, cause, held_back, "image not served");
            }
            text(StatusCode::BAD_GATEWAY, "text/plain; charset=utf-8", format!("{error}: {cause}\n"))
        }
    }
}

/// EDK2 tells a boot file from a disk image by this type or by the name's end.
fn content_type(name: &str) -> &'static str {
    match name.rsplit_once('.') {
        Some((_, "efi")) => "application/efi",
        _ => "application/octet-stream",
    }
}

/// Status, headers and the part to send. `None` for the part means 416.
fn head(name: &str, size: u64, headers: &HeaderMap) -> (StatusCode, HeaderMap, Option<(u64, u64)>) {
    // We give no validators, so an If-Range can't match and asks for the whole (RFC 9110 section 13.1.5).
    let asked = headers.get(RANGE).filter(|_| !headers.contains_key(IF_RANGE)).and_then(|value| value.to_str().ok());
    let (status, part, content_range) = match range::parse(asked, size) {
        Range::Whole => (StatusCode::OK, Some((0, size)), None),
        Range::Part { start, len } => {
            let content_range = format!("bytes {start}-{}/{size}", start + len - 1);
            (StatusCode::PARTIAL_CONTENT, Some((start, len)), Some(content_range))
        }
        Range::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, None, Some(format!("bytes */{size}"))),
    };
    let mut answer = HeaderMap::new();
    answer.insert(CONTENT_TYPE, HeaderValue::from_static(content_type(name)));
    answer.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    // Always a length: EDK2 asks for it with HEAD and does not take chunks.
    answer.insert(CONTENT_LENGTH, HeaderValue::from(part.map_or(0, |(_, len)| len)));
    if let Some(value) = content_range.and_then(|text| HeaderValue::from_str(&text).ok()) {
        answer.insert(CONTENT_RANGE, value);
    }
    (status, answer, part)
}

fn from_memory(name: &str, octets: Bytes, headers: &HeaderMap) -> Response {
    let (status, answer, part) = head(name, octets.len() as u64, headers);
    // The part lies inside the octets, so both ends fit a usize.
    let body = part.map_or(Bytes::new(), |(start, len)| octets.slice(start as usize..(start + len) as usize));
    (status, answer, body).into_response()
}

async fn from_file(path: &FsPath, headers: &HeaderMap) -> Response {
    let Ok(mut file) = File::open(path).await else { return not_found() };
    let Ok(metadata) = file.metadata().await else { return not_found() };
    if !metadata.is_file() {
        return not_found();
    }
    let (status, answer, part) = head(&path.to_string_lossy(), metadata.len(), headers);
    let Some((start, len)) = part else { return (status, answer).into_response() };
    if start > 0 && file.seek(SeekFrom::Start(start)).await.is_err() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    file.set_max_buf_size(CHUNK);
    let chunks = futures_util::stream::try_unfold((file, len), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut buffer = BytesMut::with_capacity(CHUNK.min(usize::try_from(left).unwrap_or(CHUNK)));
        if file.read_buf(&mut buffer).await? == 0 {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
        }
        // A file that grew meanwhile is cut at the length that the header promised.
        buffer.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        let left = left - buffer.len() as u64;
        Ok(Some((buffer.freeze(), (file, left))))
    });
    (status, answer, Body::from_stream(chunks)).into_response()
}
