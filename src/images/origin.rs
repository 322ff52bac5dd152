//! The Image Factory: schematics in, assets out.
//!
//! Omni may know a better one than the flags name, credentials included: it is asked first where it is given, and the
//! flags' factory is what remains where it is too old or does not answer.
//!
//! Source: contract omni-wire.md section 4.6.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::time::timeout;

use crate::images::asset::{AssetPath, SchematicId};
use crate::omni::management::{BootAsset, BootAssetKind};
use crate::omni::{self, Management};
use crate::secret::Secret;

/// Redirects that are followed for an asset: a factory may keep assets in an object store.
const REDIRECTS: usize = 5;
/// How long a factory may take to answer about a schematic.
const SCHEMATIC_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a factory may take to start sending an asset: it builds the image first.
const ASSET_TIMEOUT: Duration = Duration::from_secs(300);

/// An Image Factory by its base URL, `http` or `https`; and Omni, which may name another.
#[derive(Clone, Debug)]
pub struct Origin {
    base: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    omni: Option<Management>,
}

/// Where an asset is, by Omni's word. Both may hold credentials.
struct Place {
    url: Secret<String>,
    headers: Vec<(String, Secret<String>)>,
}

/// A base URL that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an http or https URL: {url:?}")]
pub struct InvalidOrigin {
    url: String,
}

/// What went wrong between us and the factory.
#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    /// No connection, or it broke.
    #[error("{url} can't be reached: check the uplink and --image-factory-base-url")]
    Unreachable {
        /// The URL.
        url: String,
        /// Why.
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    /// Nothing came in time.
    #[error("{url} did not answer in time")]
    Timeout {
        /// The URL.
        url: String,
    },
    /// The factory said no.
    #[error("{url} answered {status}{}", hint(*status))]
    Refused {
        /// The URL.
        url: String,
        /// Its status.
        status: StatusCode,
    },
    /// Omni refuses the schematic.
    #[error("Omni does not take the schematic")]
    Schematic(#[source] Box<omni::Error>),
    /// The answer makes no sense.
    #[error("{url} answered what is none of its protocol: {what}")]
    Misbehaved {
        /// The URL.
        url: String,
        /// What was wrong.
        what: &'static str,
    },
}

fn hint(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => ": it has no such Talos version or schematic",
        StatusCode::BAD_REQUEST => ": it does not know an extension of this schematic for this version",
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => ": it wants credentials",
        _ => "",
    }
}

impl OriginError {
    /// Whether another try may go better: yes for all but a clear no (4xx without 408 and 429).
    pub fn transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Timeout { .. } | Self::Misbehaved { .. } => true,
            Self::Schematic(_) => false,
            Self::Refused { status, .. } => {
                !status.is_client_error()
                    || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            }
        }
    }
}

impl Origin {
    /// The factory at `base`, such as `https://factory.talos.dev`. Nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`InvalidOrigin`].
    pub fn new(base: &str) -> Result<Self, InvalidOrigin> {
        let invalid = || InvalidOrigin { url: base.to_owned() };
        let uri: Uri = base.parse().map_err(|_| invalid())?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() || uri.query().is_some() {
            return Err(invalid());
        }
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(Duration::from_secs(10)));
        http.set_keepalive(Some(Duration::from_secs(30)));
        let client = client(http).map_err(|_| invalid())?;
        Ok(Self { base: base.trim_end_matches('/').to_owned(), client, omni: None })
    }

    /// The same, but Omni is asked first.
    #[must_use]
    pub fn behind(self, omni: Management) -> Self {
        Self { omni: Some(omni), ..self }
    }

    /// Registers a schematic; returns its ID, which the factory derives from the content.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub async fn create_schematic(&self, yaml: &str) -> Result<SchematicId, OriginError> {
        if let Some(omni) = &self.omni {
            match omni.create_schematic(yaml, "").await.map(|id| id.parse()) {
                Ok(Ok(id)) => return Ok(id),
                Ok(Err(_)) => tracing::warn!("Omni's schematic ID is not 64 hex digits; asking the image factory"),
                Err(error @ omni::Error::Validation { .. }) => return Err(OriginError::Schematic(Box::new(error))),
                Err(error) => tracing::debug!(error = error.explain(), "asking the image factory for a schematic"),
            }
        }
        self.create_schematic_here(yaml).await
    }

    async fn create_schematic_here(&self, yaml: &str) -> Result<SchematicId, OriginError> {
        #[derive(serde::Deserialize)]
        struct Created {
            id: String,
        }
        let url = format!("{}/schematics", self.base);
        let body = Bytes::copy_from_slice(yaml.as_bytes());
        let exchange = async {
            let response = self.send(Method::POST, &url, &[], body).await.map_err(|error| error.at(&url))?;
            if !response.status().is_success() {
                return Err(OriginError::Refused { url: url.clone(), status: response.status() });
            }
            let misbehaved = |what| OriginError::Misbehaved { url: url.clone(), what };
            let body = Limited::new(response.into_body(), 1 << 20).collect().await;
            let body = body.map_err(|_| misbehaved("the body broke off or is over 1 MiB"))?.to_bytes();
            let created: Created = serde_json::from_slice(&body).map_err(|_| misbehaved("no JSON with an id"))?;
            created.id.parse().map_err(|_| misbehaved("the id is not 64 hex digits"))
        };
        timeout(SCHEMATIC_TIMEOUT, exchange).await.unwrap_or_else(|_| Err(OriginError::Timeout { url: url.clone() }))
    }

    /// Starts the download of an asset. The response is a success; its body is the asset.
    ///
    /// # Errors
    ///
    /// [`OriginError`].
    pub async fn fetch(&self, path: &AssetPath) -> Result<Response<Incoming>, OriginError> {
        if let Some(place) = self.place(path).await {
            // No part of a URL that may hold credentials is shown.
            let shown = format!("the image factory that Omni names for {}", path.file());
            match self.follow(place.url, &place.headers, Some(&shown)).await {
                Err(error) => tracing::warn!(%error, "asking the image factory of the flags"),
                found => return found,
            }
        }
        self.follow(Secret::new(format!("{}/image/{path}", self.base)), &[], None).await
    }

    /// Where Omni says that an asset is. It gives URLs of whole images alone; what machines boot lies beside them.
    async fn place(&self, path: &AssetPath) -> Option<Place> {
        let asset = BootAsset {
            talos_version: path.version().trim_start_matches('v').to_owned(),
            schematic_id: path.schematic().as_str().to_owned(),
            kind: BootAssetKind::Disk("raw.zst".to_owned()),
            platform: "metal".to_owned(),
            architecture: path.arch().to_string(),
            secure_boot: false,
            standalone_url: false,
        };
        match self.omni.as_ref()?.boot_asset_url(&asset).await {
            Ok(found) => {
                let url = beside(found.url.reveal(), &path.file());
                if url.is_none() {
                    tracing::debug!("Omni's URL is good for its own file alone; asking the image factory of the flags");
                }
                Some(Place { url: Secret::new(url?), headers: found.headers })
            }
            Err(error) => {
                tracing::debug!(error = error.explain(), "asking the image factory of the flags");
                None
            }
        }
    }

    /// Gets `url`, and what it redirects to. Errors name `shown` where the URL is none to show.
    async fn follow(
        &self,
        mut url: Secret<String>,
        headers: &[(String, Secret<String>)],
        shown: Option<&str>,
    ) -> Result<Response<Incoming>, OriginError> {
        let name = |url: &Secret<String>| shown.map_or_else(|| url.reveal().clone(), ToOwned::to_owned);
        let mut headers = headers;
        for _ in 0..=REDIRECTS {
            let response = timeout(ASSET_TIMEOUT, self.send(Method::GET, url.reveal(), headers, Bytes::new()))
                .await
                .unwrap_or(Err(Unsent::Timeout))
                .map_err(|error| error.at(&name(&url)))?;
            let status = response.status();
            if status == StatusCode::OK {
                return Ok(response);
            }
            if !status.is_redirection() {
                return Err(OriginError::Refused { url: name(&url), status });
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let next = redirected(url.reveal(), location);
            let next =
                next.ok_or_else(|| OriginError::Misbehaved { url: name(&url), what: "a redirect to nowhere" })?;
            if !location.starts_with('/') {
                // What opens the factory is not for the store that it sends us to.
                headers = &[];
            }
            url = Secret::new(next);
        }
        Err(OriginError::Misbehaved { url: name(&url), what: "too many redirects" })
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &[(String, Secret<String>)],
        body: Bytes,
    ) -> Result<Response<Incoming>, Unsent> {
        let mut request = Request::builder().method(&method).uri(url).header(CONTENT_TYPE, "application/yaml");
        for (name, value) in headers {
            request = request.header(name, value.reveal());
        }
        let request = request.body(Full::new(body)).map_err(|_| Unsent::Url)?;
        self.client.request(request).await.map_err(Unsent::Unreachable)
    }
}

/// A client of HTTP and, with the public roots, HTTPS, over the connections that `connector` makes.
///
/// # Errors
///
/// rustls's, when its provider knows no protocol version.
pub(crate) fn client<C>(connector: C) -> Result<Client<HttpsConnector<C>, Full<Bytes>>, rustls::Error>
where
    HttpsConnector<C>: Connect + Clone,
{
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_provider_and_webpki_roots(rustls::crypto::ring::default_provider())?
        .https_or_http()
        .enable_http1()
        .wrap_connector(connector);
    Ok(Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector))
}

/// Where a redirect from `from` leads; nothing when nowhere that is gone to. What began under TLS does not go on without.
pub(crate) fn redirected(from: &str, location: &str) -> Option<String> {
    let absolute = location.starts_with("https://") || location.starts_with("http://") && from.starts_with("http://");
    if absolute {
        return Some(location.to_owned());
    }
    if !location.starts_with('/') || location.starts_with("//") {
        return None;
    }
    let authority_end = from.find("://").and_then(|at| from[at + 3..].find('/').map(|end| at + 3 + end));
    Some(format!("{}{location}", &from[..authority_end.unwrap_or(from.len())]))
}

/// Why a request had no answer, before it is said to which URL.
enum Unsent {
    Url,
    Timeout,
    Unreachable(hyper_util::client::legacy::Error),
}

impl Unsent {
    fn at(self, url: &str) -> OriginError {
        let url = url.to_owned();
        match self {
            Self::Url => OriginError::Misbehaved { url, what: "a URL that is none" },
            Self::Timeout => OriginError::Timeout { url },
            Self::Unreachable(source) => OriginError::Unreachable { url, source },
        }
    }
}

/// The URL of `file` in the folder of `url`; `None` where a query makes the URL good for one file alone.
fn beside(url: &str, file: &str) -> Option<String> {
    let folder = url.rsplit_once('/').map(|(folder, _)| folder).filter(|folder| folder.contains("://"))?;
    (!url.contains(['?', '#']) && folder.len() > folder.find("://")? + 3).then(|| format!("{folder}/{file}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_an_http_url() {
        for good in ["https://factory.talos.dev", "http://127.0.0.1:8080/", "http://x/prefix"] {
            assert!(Origin::new(good).is_ok(), "{good}");
        }
        for bad in ["", "factory.talos.dev", "ftp://x", "https://", "https://x?y"] {
            assert!(Origin::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_machines_boot_lies_beside_the_image_unless_its_url_is_signed() {
        let image = "https://factory.example/image/s/v1/metal-amd64.raw.zst";
        assert_eq!(beside(image, "kernel-amd64").unwrap(), "https://factory.example/image/s/v1/kernel-amd64");
        for signed in ["https://factory.example/image/x?token=secret", "https://factory.example", "x", ""] {
            assert_eq!(beside(signed, "kernel-amd64"), None, "{signed}");
        }
    }
}
