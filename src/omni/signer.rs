//! Signs each attempt of each call, and compares our clock with Omni's.
//!
//! Omni's gRPC answers carry no date, its web pages on the same port do: when a signature is refused, one is asked for.
//! Proxies before Omni may date gRPC answers too; those dates are read as they come.
//!
//! tonic's interceptors see metadata but not the method's path in the form the peer will compare, so this is a tower
//! service around the channel: the request it sees is the very one that leaves.
//!
//! Source: contract omni-wire.md sections 2.3 and 2.4.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Channel;
use tower::{BoxError, Service};

use super::error::{Refusal, Skew};
use super::key::ServiceAccountKey;
use crate::time::UnixTime;

/// Unix time in seconds, decimal.
const TIMESTAMP: &str = "x-sidero-timestamp";
/// The signed JSON.
const PAYLOAD: &str = "x-sidero-payload";
/// Version, name, fingerprint and signature.
const SIGNATURE: &str = "x-sidero-signature";
/// The one version of the signature header.
const VERSION: &str = "siderov1";
/// How the status of a call begins that could not be signed.
pub(crate) const NOT_SIGNED: &str = "the call could not be signed";
/// By how much the clocks may differ.
const LIMIT: Duration = Duration::from_secs(300);
/// How long a page may take that is asked for its date alone.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// What was found is taken for true so long.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// No answer with a date has come yet.
const UNKNOWN: i64 = i64::MIN;

/// What signing needs and what it learns; shared by all calls of a client.
#[derive(Debug)]
pub(crate) struct Signer {
    key: Option<ServiceAccountKey>,
    clock: Clock,
    /// Seconds by which our clock is ahead of Omni's.
    skew: AtomicI64,
    /// Where to ask for the date.
    channel: Option<Channel>,
    /// Held while somebody asks, with the time of the last question.
    asked: Mutex<Option<Instant>>,
}

/// What tells the time that calls are signed with: the system's clock, unless a test has its own.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> UnixTime + Send + Sync>);

impl Clock {
    /// A clock that shows what `now` returns.
    pub fn new(now: impl Fn() -> UnixTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// What it shows.
    pub fn now(&self) -> UnixTime {
        (self.0)()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(UnixTime::now)
    }
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clock")
    }
}

impl Signer {
    pub(crate) fn new(key: Option<ServiceAccountKey>, clock: Clock, channel: Option<Channel>) -> Self {
        Self { key, clock, skew: AtomicI64::new(UNKNOWN), channel, asked: Mutex::default() }
    }

    /// What our clock shows.
    pub(crate) fn now(&self) -> UnixTime {
        self.clock.now()
    }

    pub(crate) const fn key(&self) -> Option<&ServiceAccountKey> {
        self.key.as_ref()
    }

    /// How far this clock is from Omni's, by the last answer that had a date.
    pub(crate) fn skew(&self) -> Option<Skew> {
        let seconds = self.skew.load(Ordering::Relaxed);
        (seconds != UNKNOWN).then_some(Skew(seconds))
    }

    /// Asks Omni's web server for the date, unless the answer of a moment ago still holds. Failures leave things as they were.
    pub(crate) async fn compare_clocks(&self) {
        let Some(mut channel) = self.channel.clone() else { return };
        let mut asked = self.asked.lock().await;
        if self.skew().is_some() && asked.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            return;
        }
        let Ok(request) = Request::head("/").body(Body::empty()) else { return };
        let exchange = async {
            std::future::poll_fn(|context| Service::<Request<Body>>::poll_ready(&mut channel, context)).await?;
            channel.call(request).await
        };
        if let Ok(Ok(answer)) = timeout(ASK_TIMEOUT, exchange).await {
            self.learn(answer.headers(), self.now());
        }
        *asked = Some(Instant::now());
    }

    /// Omni took a signature: the clocks agree by now, whatever was found before.
    pub(crate) fn accepted(&self) {
        let skew = self.skew.load(Ordering::Relaxed);
        if skew != UNKNOWN && skew.unsigned_abs() > LIMIT.as_secs() {
            self.skew.store(UNKNOWN, Ordering::Relaxed);
        }
    }

    /// What this side knows, should Omni refuse the signature.
    pub(crate) fn refusal(&self, now: UnixTime) -> Refusal {
        let expires = self.key.as_ref().and_then(ServiceAccountKey::expires);
        Refusal { unsigned: self.key.is_none(), expired: expires.filter(|expires| *expires <= now), skew: self.skew() }
    }

    /// Sets the three headers for a call of `method` at `now`; does nothing without a key.
    fn sign(&self, method: &str, now: UnixTime, headers: &mut HeaderMap) -> Result<(), Status> {
        let Some(key) = &self.key else { return Ok(()) };
        let payload = payload(method, now);
        // A key signs nothing before it is made: with a fresh key a clock that is a little behind would fail for that alone.
        let signature = key.sign(payload.as_bytes(), now.max(key.created())).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            Status::internal(format!("{NOT_SIGNED}: {cause}"))
        })?;
        let signature = format!("{VERSION} {} {} {}", key.name(), key.fingerprint(), STANDARD.encode(signature));
        for (name, value) in [(TIMESTAMP, now.as_secs().to_string()), (PAYLOAD, payload), (SIGNATURE, signature)] {
            let value = HeaderValue::from_str(&value)
                .map_err(|_| Status::internal(format!("{NOT_SIGNED}: {name} is no header value")))?;
            headers.insert(name, value);
        }
        Ok(())
    }

    /// Compares the answer's `date` with our clock.
    fn learn(&self, headers: &HeaderMap, now: UnixTime) {
        let date = headers.get(http::header::DATE).and_then(|date| parse_http_date(date.to_str().ok()?));
        if let Some(date) = date {
            self.skew.store(now.as_secs() as i64 - date as i64, Ordering::Relaxed);
        }
    }
}

/// The signed JSON of a call without metadata of its own: keys sorted, absent headers null, no white space.
fn payload(method: &str, now: UnixTime) -> String {
    // A method is a path that tonic made of identifiers, but quoting costs nothing.
    let method = serde_json::Value::from(method);
    format!(
        concat!(
            r#"{{"headers":{{"authorization":null,"cluster":null,"context":null,"fieldSelectors":null,"namespace":null,"#,
            r#""nodes":null,"runtime":null,"selectors":null,"uid":null,"x-sidero-timestamp":["{}"]}},"method":{}}}"#
        ),
        now.as_secs(),
        method
    )
}

/// Seconds since the epoch of an IMF-fixdate such as `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110 section 5.6.7). The two
/// obsolete forms are not read: no server of HTTP/2 sends them.
fn parse_http_date(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once(", ")?;
    let mut fields = rest.strip_suffix(" GMT")?.split(' ');
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let day = number(fields.next()?)?;
    let month = fields.next()?;
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|name| *name == month)? as u64 + 1;
    let year = number(fields.next()?)?;
    let mut clock = fields.next()?.split(':');
    let (hour, minute, second) = (number(clock.next()?)?, number(clock.next()?)?, number(clock.next()?)?);
    if fields.next().is_some() || clock.next().is_some() {
        return None;
    }
    if !(1970..=9999).contains(&year) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Civil date to days, counting years from March so that the leap day comes last.
    let (y, m) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1;
    let since_1970 = days.checked_sub(719_468)?;
    Some(since_1970 * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// A channel whose every request is signed as it leaves.
#[derive(Clone, Debug)]
pub struct Signed<S> {
    inner: S,
    signer: Arc<Signer>,
}

impl<S> Signed<S> {
    pub(crate) const fn new(inner: S, signer: Arc<Signer>) -> Self {
        Self { inner, signer }
    }

    pub(crate) const fn signer(&self) -> &Arc<Signer> {
        &self.signer
    }
}

impl<S, Message, Answer> Service<Request<Message>> for Signed<S>
where
    S: Service<Request<Message>, Response = Response<Answer>>,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Answer>, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Message>) -> Self::Future {
        let method = request.uri().path().to_owned();
        if let Err(status) = self.signer.sign(&method, self.signer.now(), request.headers_mut()) {
            return Box::pin(async move { Err(status.into()) });
        }
        let answer = self.inner.call(request);
        let signer = Arc::clone(&self.signer);
        Box::pin(async move {
            let answer = answer.await.map_err(Into::into)?;
            signer.learn(answer.headers(), signer.now());
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::omni::fixtures::{KEY, service_account};
    use proptest::prelude::*;

    #[test]
    fn the_payload_is_the_canonical_one() {
        let text = payload("/cosi.resource.State/Get", UnixTime::from_secs(1_700_000_000));
        assert_eq!(
            text,
            r#"{"headers":{"authorization":null,"cluster":null,"context":null,"fieldSelectors":null,"namespace":null,"nodes":null,"runtime":null,"selectors":null,"uid":null,"x-sidero-timestamp":["1700000000"]},"method":"/cosi.resource.State/Get"}"#
        );
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
    }

    #[test]
    fn the_signature_header_has_four_parts() {
        let key = ServiceAccountKey::parse(&service_account("infra-provider:metal-1", KEY)).unwrap();
        let signer = Signer::new(Some(key), Clock::default(), None);
        let mut headers = HeaderMap::new();
        signer.sign("/x", UnixTime::from_secs(1_790_000_000), &mut headers).unwrap();
        assert_eq!(headers[TIMESTAMP], "1790000000");
        let parts: Vec<&str> = headers[SIGNATURE].to_str().unwrap().split(' ').collect();
        assert_eq!(parts[..2], ["siderov1", "infra-provider:metal-1"]);
        assert_eq!((parts.len(), parts[2].len()), (4, 40));
        STANDARD.decode(parts[3]).unwrap();
    }

    #[test]
    fn without_a_key_nothing_is_added() {
        let mut headers = HeaderMap::new();
        Signer::new(None, Clock::default(), None).sign("/x", UnixTime::from_secs(1), &mut headers).unwrap();
        assert!(headers.is_empty());
    }

    #[test]
    fn omnis_clock_is_read_off_its_answers() {
        let signer = Signer::new(None, Clock::default(), None);
        assert_eq!(signer.skew(), None);
        let mut headers = HeaderMap::new();
        headers.insert("date", HeaderValue::from_static("Tue, 14 Nov 2023 22:13:20 GMT"));
        signer.learn(&headers, UnixTime::from_secs(1_700_000_000 - 420));
        assert_eq!(signer.skew(), Some(Skew(-420)));
        headers.insert("date", HeaderValue::from_static("yesterday"));
        signer.learn(&headers, UnixTime::from_secs(5));
        assert_eq!(signer.skew(), Some(Skew(-420)));
    }

    #[test]
    fn dates_of_http_become_seconds() {
        assert_eq!(parse_http_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
        assert_eq!(parse_http_date("Tue, 29 Feb 2000 00:00:00 GMT"), Some(951_782_400));
        for bad in ["", "Sun, 06 Nov 1994 08:49:37", "Sun, 06 Nov 1994 08:49 GMT", "Sun, 06 Foo 1994 08:49:37 GMT"] {
            assert_eq!(parse_http_date(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_date_panics(text in "[A-Za-z]{3}, [0-9]{0,3} [A-Za-z]{3} [0-9]{0,30} [0-9:]{0,12} GMT") {
            let _ = parse_http_date(&text);
        }

        #[test]
        fn the_payload_is_json_for_any_method(method in ".{0,40}") {
            let text = payload(&method, UnixTime::from_secs(1));
            let value: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(value["method"].as_str(), Some(method.as_str()));
        }
    }
}
