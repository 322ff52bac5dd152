//! The HTTP client of firmware and iPXE: cleartext HTTP/1.1 from the machine's own address, one connection a request.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{Either, select};
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::net::TcpSocket;
use tokio::time::timeout;

/// How long a connection, a response head or one frame of a body is waited for.
const PATIENCE: Duration = Duration::from_secs(20);
/// Redirects that are followed.
const REDIRECTS: u32 = 5;
/// No kernel or initramfs is bigger.
const LARGEST: u64 = 2 << 30;

/// What was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Octets of the body, all of them received.
    pub octets: u64,
    /// SHA-256 of the body.
    pub digest: [u8; 32],
    /// The body; empty when only its digest was asked for.
    pub body: Vec<u8>,
}

/// What to keep of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keep {
    /// All of it, which must be at most so many octets.
    UpTo(usize),
    /// Its length and digest alone.
    Digest,
}

/// Why a URL could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No URL, or no scheme that the lab speaks.
    #[error("{url}: no http:// or tftp:// URL")]
    Url {
        /// As written.
        url: String,
    },
    /// The host has no IPv4 address.
    #[error("{host}: name does not resolve")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver said; `None` when it only had other families.
        #[source]
        source: Option<std::io::Error>,
    },
    /// No connection.
    #[error("no connection to {server}")]
    Connect {
        /// The server.
        server: SocketAddr,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The exchange broke off, or the body was shorter than announced.
    #[error("{url}: exchange broke off")]
    Exchange {
        /// What was asked for.
        url: String,
        /// What hyper made of it.
        #[source]
        source: hyper::Error,
    },
    /// Nothing came for 20 s.
    #[error("{url}: server is silent")]
    Silent {
        /// What was asked for.
        url: String,
    },
    /// A status of 400 or above, which iPXE takes for a failure.
    #[error("{url}: HTTP {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status.
        status: u16,
    },
    /// More than five redirects, or one without a target.
    #[error("{url}: redirects lead nowhere")]
    Redirect {
        /// What was asked for first.
        url: String,
    },
    /// More octets than this kind of file has.
    #[error("{url}: more than {limit} octets")]
    TooBig {
        /// What was asked for.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// Not as many octets as `Content-Length` said.
    #[error("{url}: {got} octets, {announced} announced")]
    Length {
        /// What was asked for.
        url: String,
        /// Octets received.
        got: u64,
        /// `Content-Length`.
        announced: u64,
    },
    /// A `tftp://` URL failed.
    #[error("TFTP failed")]
    Tftp(#[source] super::tftp::TftpError),
}

/// Gets `url` from `address`, following redirects.
///
/// # Errors
///
/// [`FetchError`] for anything but a whole body with a status below 400.
pub(super) async fn get(address: Ipv4Addr, url: &str, keep: Keep) -> Result<Fetched, FetchError> {
    let mut target = url.to_owned();
    for _ in 0..=REDIRECTS {
        let step = exchange(address, &target, Method::GET, async |response: Response<Incoming>| {
            if response.status().is_redirection() {
                let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
                return Ok(Err(location.map(|location| resolve(Some(&target), location))));
            }
            receive(&target, response, keep).await.map(Ok)
        });
        match step.await? {
            Ok(fetched) => return Ok(fetched),
            Err(Some(location)) => target = location,
            Err(None) => break,
        }
    }
    Err(FetchError::Redirect { url: url.into() })
}

/// Asks for the head of `url`; returns its `Content-Length`, if it has one.
///
/// # Errors
///
/// As [`get`].
pub(super) async fn head(address: Ipv4Addr, url: &str) -> Result<Option<u64>, FetchError> {
    exchange(address, url, Method::HEAD, async |response: Response<Incoming>| {
        checked(url, response.status())?;
        Ok(content_length(&response))
    })
    .await
}

/// `text` as an absolute URL: as it is when it has a scheme, else relative to `base`.
pub(super) fn resolve(base: Option<&str>, text: &str) -> String {
    let Some(base) = base.filter(|_| !text.contains("://")) else { return text.to_owned() };
    let base = base.split(['?', '#']).next().unwrap_or_default();
    let authority = base.find("://").map_or(0, |at| at + 3);
    let origin = base[authority..].find('/').map_or(base.len(), |at| authority + at);
    if text.starts_with('/') {
        return format!("{}{text}", &base[..origin]);
    }
    let directory = base.rfind('/').filter(|at| *at >= origin).unwrap_or(origin);
    format!("{}/{text}", &base[..directory])
}

async fn exchange<T>(
    address: Ipv4Addr,
    url: &str,
    method: Method,
    read: impl AsyncFnOnce(Response<Incoming>) -> Result<T, FetchError>,
) -> Result<T, FetchError> {
    let bad = || FetchError::Url { url: url.into() };
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(bad)?;
    let server = lookup(authority.host(), authority.port_u16().unwrap_or(80)).await?;
    let broke = |source| FetchError::Exchange { url: url.into(), source };
    let connect = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((IpAddr::V4(address), 0).into())?;
        socket.connect(server).await
    };
    let stream = within(url, connect).await?.map_err(|source| FetchError::Connect { server, source })?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(broke)?;
    let request = Request::builder()
        .method(method)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority.as_str())
        .header(header::USER_AGENT, "iPXE/1.21.1 (pilotlight lab)")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|_| bad())?;
    let work = pin!(async {
        let response = within(url, sender.send_request(request)).await?.map_err(broke)?;
        read(response).await
    });
    // The connection is driven here and not by a task of its own, so that a power cut ends it at once.
    match select(work, pin!(connection)).await {
        Either::Left((done, _)) => done,
        // The connection may end while the last frames wait to be read.
        Either::Right((_, work)) => work.await,
    }
}

async fn receive(url: &str, response: Response<Incoming>, keep: Keep) -> Result<Fetched, FetchError> {
    checked(url, response.status())?;
    let announced = content_length(&response);
    let limit = match keep {
        Keep::UpTo(limit) => limit as u64,
        Keep::Digest => LARGEST,
    };
    let mut fetched = Fetched { octets: 0, digest: [0; 32], body: Vec::new() };
    let mut digest = Sha256::new();
    let mut body = response.into_body();
    while let Some(frame) = within(url, body.frame()).await? {
        let frame = frame.map_err(|source| FetchError::Exchange { url: url.into(), source })?;
        let Ok(data) = frame.into_data() else { continue };
        fetched.octets += data.len() as u64;
        if fetched.octets > limit {
            return Err(FetchError::TooBig { url: url.into(), limit });
        }
        digest.update(&data);
        if keep != Keep::Digest {
            fetched.body.extend_from_slice(&data);
        }
    }
    if let Some(announced) = announced.filter(|announced| *announced != fetched.octets) {
        return Err(FetchError::Length { url: url.into(), got: fetched.octets, announced });
    }
    fetched.digest = digest.finalize().into();
    Ok(fetched)
}

fn checked(url: &str, status: StatusCode) -> Result<(), FetchError> {
    if status.as_u16() >= 400 {
        return Err(FetchError::Status { url: url.into(), status: status.as_u16() });
    }
    Ok(())
}

fn content_length<B>(response: &Response<B>) -> Option<u64> {
    response.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The first IPv4 address of `host`: the machines have no other family.
pub(super) async fn lookup(host: &str, port: u16) -> Result<SocketAddr, FetchError> {
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok((address, port).into());
    }
    let found = tokio::net::lookup_host((host, port))
        .await
        .map_err(|source| FetchError::Resolve { host: host.into(), source: Some(source) })?
        .find(SocketAddr::is_ipv4);
    found.ok_or_else(|| FetchError::Resolve { host: host.into(), source: None })
}

async fn within<T>(url: &str, work: impl Future<Output = T>) -> Result<T, FetchError> {
    timeout(PATIENCE, work).await.map_err(|_| FetchError::Silent { url: url.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_resolve_against_the_script_that_names_them() {
        let base = Some("http://10.0.0.1:50042/ipxe/boot.ipxe?uuid=a/b");
        for (text, url) in [
            ("http://else/x", "http://else/x"),
            ("/assets/kernel", "http://10.0.0.1:50042/assets/kernel"),
            ("kernel", "http://10.0.0.1:50042/ipxe/kernel"),
        ] {
            assert_eq!(resolve(base, text), url);
        }
        assert_eq!(resolve(Some("http://host"), "kernel"), "http://host/kernel");
        assert_eq!(resolve(None, "kernel"), "kernel");
    }
}
