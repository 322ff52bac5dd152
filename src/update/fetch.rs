//! Fetches a bundle over HTTP, from any octet on, and goes on after a break.
//!
//! An edge, because it owns sockets. When to try again is decided in [`super::retry`]. It blocks its thread, which must not
//! be one of the runtime's workers.
//!
//! Source: RFC 9110 section 14.

use std::future::Future;
use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CONTENT_RANGE, LOCATION, RANGE, USER_AGENT};
use http::{HeaderMap, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tower::Service;

use super::bundle::LONGEST_HEAD;
use super::protocol::Url;
use super::retry::Attempts;
use super::write::Source;
use crate::images::origin;
use crate::omni::Endpoint;
use crate::omni::proxy::Variables;
use crate::time::Uptime;

/// How long a server may take to be reached.
const CONNECT: Duration = Duration::from_secs(10);
/// How long it may take to begin its answer.
const ANSWER: Duration = Duration::from_secs(60);
/// How long it may fall silent within it.
const SILENCE: Duration = Duration::from_secs(60);
/// Redirects that are followed.
const REDIRECTS: usize = 5;

/// Why a bundle does not come.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// No connection, or it broke.
    #[error("the connection to {url} failed: {}", reason(why.as_ref()))]
    Broken {
        /// The server.
        url: Url,
        /// Why.
        why: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing came in time.
    #[error("{url} fell silent")]
    Silent {
        /// The server.
        url: Url,
    },
    /// The server says no.
    #[error("{url} answers {status}")]
    Refused {
        /// The server.
        url: Url,
        /// Its status.
        status: StatusCode,
    },
    /// It is no URL that can be fetched from.
    #[error("this is no http or https URL")]
    NoUrl,
    /// The server makes no sense.
    #[error("{url} answers what is none of its protocol: {what}")]
    Misbehaved {
        /// The server.
        url: Url,
        /// What was wrong.
        what: &'static str,
    },
    /// Somebody stopped it.
    #[error("somebody stopped it")]
    Stopped,
}

/// The innermost cause: what the kernel or the proxy says.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

impl Fault {
    /// Whether another attempt may go better: yes for all but a clear no.
    fn transient(&self) -> bool {
        match self {
            Self::Broken { .. } | Self::Silent { .. } => true,
            Self::NoUrl | Self::Stopped | Self::Misbehaved { .. } => false,
            Self::Refused { status, .. } => {
                status.is_server_error()
                    || matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
            }
        }
    }
}

/// Makes connections, directly or through the proxy that the environment names.
#[derive(Clone, Debug)]
pub struct Outward(Variables);

impl Service<Uri> for Outward {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let variables = self.0.clone();
        Box::pin(async move {
            let host = uri.host().ok_or(io::ErrorKind::InvalidInput)?.trim_matches(['[', ']']).to_owned();
            let tls = uri.scheme_str() == Some("https");
            let endpoint = Endpoint { host, port: uri.port_u16().unwrap_or(if tls { 443 } else { 80 }), tls };
            let stream = match variables.proxy_for(&endpoint).map_err(io::Error::other)? {
                Some(proxy) => proxy.connect(&endpoint.authority()).await?,
                None => {
                    let connecting = TcpStream::connect((endpoint.host.as_str(), endpoint.port));
                    timeout(CONNECT, connecting).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??
                }
            };
            stream.set_nodelay(true)?;
            Ok(TokioIo::new(stream))
        })
    }
}

/// Told why, and which attempt comes next, before each pause; told nothing when octets come again.
pub type Tell = Box<dyn FnMut(Option<(String, u32)>) + Send>;

/// A bundle behind a URL.
pub struct Remote {
    client: Client<HttpsConnector<Outward>, Full<Bytes>>,
    url: Url,
    /// Octets of the bundle before those that are asked for.
    base: u64,
    runtime: Handle,
    stop: CancellationToken,
    trouble: Tell,
}

impl Remote {
    /// Nothing is sent yet. `runtime` drives the sockets.
    ///
    /// # Errors
    ///
    /// [`Fault::NoUrl`].
    pub fn new(
        url: Url,
        proxy: Variables,
        runtime: Handle,
        stop: CancellationToken,
        trouble: Tell,
    ) -> Result<Self, Fault> {
        let uri: Uri = url.reveal().parse().map_err(|_| Fault::NoUrl)?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
            return Err(Fault::NoUrl);
        }
        let client = origin::client(Outward(proxy)).map_err(|_| Fault::NoUrl)?;
        Ok(Self { client, url, base: 0, runtime, stop, trouble })
    }

    /// The bundle from its beginning on.
    pub fn beginning(&mut self) -> impl Read + '_ {
        self.base = 0;
        Reading { until: Some(LONGEST_HEAD), ..Reading::new(self, 0) }
    }

    /// From now on octet 0 is the one at `base`.
    pub fn skip_to(&mut self, base: u64) {
        self.base = base;
    }

    /// Blocks until `future` is done, or somebody stops it all.
    fn wait<T>(&self, future: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        let stop = &self.stop;
        self.runtime.block_on(async move {
            // Both are given up for good when the other is done.
            tokio::select! {
                biased;
                () = stop.cancelled() => Err(Fault::Stopped),
                done = future => done,
            }
        })
    }

    async fn request(&self, at: u64, until: Option<u64>) -> Result<Response<Incoming>, Fault> {
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS {
            let request =
                Request::get(url.reveal()).header(USER_AGENT, concat!("pilotlight/", env!("CARGO_PKG_VERSION")));
            let request = match until {
                Some(until) => request.header(RANGE, format!("bytes={at}-{}", until.saturating_sub(1))),
                None => request.header(RANGE, format!("bytes={at}-")),
            };
            let request = request.body(Full::new(Bytes::new())).map_err(|_| Fault::NoUrl)?;
            let answer = timeout(ANSWER, self.client.request(request)).await;
            let response = match answer {
                Err(_) => return Err(Fault::Silent { url }),
                Ok(Err(error)) => return Err(Fault::Broken { url, why: error.into() }),
                Ok(Ok(response)) => response,
            };
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
            url = match origin::redirected(url.reveal(), location) {
                Some(next) => Url::new(next),
                None => return Err(Fault::Misbehaved { url, what: "a redirect to nowhere" }),
            };
        }
        Err(Fault::Misbehaved { url, what: "too many redirects" })
    }
}

impl Source for Remote {
    fn open(&mut self, at: u64) -> io::Result<Box<dyn Read + '_>> {
        let at = self.base + at;
        Ok(Box::new(Reading::new(self, at)))
    }
}

/// The bundle from one octet on, over as many connections as it takes.
struct Reading<'a> {
    remote: &'a mut Remote,
    /// The next octet.
    at: u64,
    /// The first that is not asked for.
    until: Option<u64>,
    body: Option<Body>,
    attempts: Attempts,
    troubled: bool,
}

/// An answer under way.
struct Body {
    incoming: Incoming,
    /// What arrived and was not taken yet.
    octets: Bytes,
    /// Octets that come before those asked for.
    surplus: u64,
    /// Octets of the whole bundle, where the server says so.
    whole: Option<u64>,
}

impl<'a> Reading<'a> {
    fn new(remote: &'a mut Remote, at: u64) -> Self {
        Self { remote, at, until: None, body: None, attempts: Attempts::default(), troubled: false }
    }

    /// One try to have octets at hand: false at the bundle's end.
    fn fill(&mut self) -> Result<bool, Fault> {
        if self.body.is_none() {
            let response = self.remote.wait(self.remote.request(self.at, self.until))?;
            self.body = match self.answered(response)? {
                Some(body) => Some(body),
                None => return Ok(false),
            };
        }
        let Some(body) = &mut self.body else { return Ok(false) };
        while body.octets.is_empty() {
            let url = self.remote.url.clone();
            let incoming = &mut body.incoming;
            let next = async {
                match timeout(SILENCE, incoming.frame()).await {
                    Err(_) => Err(Fault::Silent { url }),
                    Ok(Some(Err(error))) => Err(Fault::Broken { url, why: error.into() }),
                    Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
                    Ok(None) => Ok(None),
                }
            };
            let Some(mut data) = self.remote.wait(next)? else {
                // An answer without a length may end early, and look whole.
                if body.whole.is_some_and(|whole| self.at < whole) {
                    let why = io::Error::from(io::ErrorKind::UnexpectedEof).into();
                    return Err(Fault::Broken { url: self.remote.url.clone(), why });
                }
                return Ok(false);
            };
            self.attempts.brought(data.len() as u64);
            let surplus = usize::try_from(body.surplus).unwrap_or(usize::MAX).min(data.len());
            data.advance(surplus);
            body.surplus -= surplus as u64;
            body.octets = data;
        }
        Ok(true)
    }

    fn answered(&self, response: Response<Incoming>) -> Result<Option<Body>, Fault> {
        let url = || self.remote.url.clone();
        let status = response.status();
        let (surplus, whole) = match status {
            StatusCode::PARTIAL_CONTENT => match range(response.headers()) {
                Some((first, whole)) if first <= self.at => {
                    (self.at - first, whole.map(|whole| self.until.unwrap_or(u64::MAX).min(whole)))
                }
                _ => return Err(Fault::Misbehaved { url: url(), what: "another range than was asked for" }),
            },
            // The server knows no ranges: what is there already is read over.
            StatusCode::OK => (self.at, None),
            // There is nothing there: the bundle is shorter.
            StatusCode::RANGE_NOT_SATISFIABLE => return Ok(None),
            _ => return Err(Fault::Refused { url: url(), status }),
        };
        Ok(Some(Body { incoming: response.into_body(), octets: Bytes::new(), surplus, whole }))
    }

    /// Waits before another attempt.
    fn pause(&mut self, fault: Fault) -> Result<(), Fault> {
        if !fault.transient() {
            return Err(fault);
        }
        let jitter = (Uptime::now().as_duration().subsec_micros() % 256) as u8;
        let Some((pause, attempt)) = self.attempts.failed(jitter) else { return Err(fault) };
        tracing::info!(trouble = %fault, attempt, "the update's source is asked again");
        (self.remote.trouble)(Some((fault.to_string(), attempt)));
        self.troubled = true;
        self.remote.wait(async {
            tokio::time::sleep(pause).await;
            Ok(())
        })
    }
}

impl Read for Reading<'_> {
    fn read(&mut self, octets: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.fill() {
                Ok(true) => {}
                Ok(false) => return Ok(0),
                Err(fault) => {
                    self.body = None;
                    self.pause(fault).map_err(io::Error::other)?;
                    continue;
                }
            }
            if std::mem::take(&mut self.troubled) {
                (self.remote.trouble)(None);
            }
            let Some(body) = &mut self.body else { return Ok(0) };
            let count = octets.len().min(body.octets.len());
            body.octets.copy_to_slice(&mut octets[..count]);
            self.at += count as u64;
            return Ok(count);
        }
    }
}

/// First octet and whole length of `Content-Range: bytes 5-9/10`; the length may be `*`.
fn range(headers: &HeaderMap) -> Option<(u64, Option<u64>)> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, whole) = text.split_once('/')?;
    let first = range.split_once('-')?.0.trim().parse().ok()?;
    Some((first, whole.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_or_not() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, text.parse().expect("a header"));
            range(&headers)
        };
        assert_eq!(of("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(of("bytes 0-0/*"), Some((0, None)));
        for bad in ["bytes */10", "5-9/10", "bytes 5/10", "bytes x-9/10", ""] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
