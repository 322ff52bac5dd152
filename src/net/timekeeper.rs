//! Asks time servers, and sets or steers the clock.
//!
//! An edge, because it owns sockets and the clock. [`sntp`] reads the answers, [`Discipline`] says what is done.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::{HeaderMap, Method, Request, Uri, header};
use http_body_util::Empty;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::net::UdpSocket;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::discipline::{Discipline, Order};
use super::http_date;
use super::service::Surroundings;
use super::sntp::{self, Sample};
use super::status::ClockStatus;
use crate::sys::clock;
use crate::time::{UnixTime, Uptime};

/// Who is asked when nobody else is named.
pub const DEFAULT_NTP: [&str; 4] = ["0.pool.ntp.org", "1.pool.ntp.org", "2.pool.ntp.org", "3.pool.ntp.org"];
/// Most servers that are asked at a time.
const MOST: usize = 8;
/// How long an answer may take, name lookup included.
const ANSWER: Duration = Duration::from_secs(4);
/// Failures after which the time of an HTTPS answer is taken.
const FAILURES: u32 = 2;
/// How long an HTTPS answer may take.
const HTTPS: Duration = Duration::from_secs(15);
/// An HTTPS date counts whole seconds and travels: below this difference it says nothing.
const COARSE: Duration = Duration::from_secs(5);

/// Keeps the clock right until `cancel`.
///
/// # Errors
///
/// None; the type is that of the process' tasks.
pub async fn run(
    mut surroundings: watch::Receiver<Surroundings>,
    omni: Option<Uri>,
    status: watch::Sender<ClockStatus>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut discipline = Discipline::default();
    let mut servers = Vec::new();
    status.send_modify(|status| status.source = "no server asked yet".to_owned());
    loop {
        let now = servers_of(&surroundings.borrow_and_update());
        if now != servers {
            (servers, discipline) = (now, forget_failures(discipline));
        }
        look(&mut discipline, &servers, omni.as_ref(), &status).await;
        // Cancel-safe: all only wait. Servers that are new are asked at once.
        let asked_again = async {
            let pause = tokio::time::sleep(discipline.pause());
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => return,
                    changed = surroundings.changed() => match changed {
                        Ok(()) if servers_of(&surroundings.borrow()) == servers => {}
                        Ok(()) => return,
                        Err(_) => std::future::pending().await,
                    },
                }
            }
        };
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = asked_again => {}
        }
    }
}

fn forget_failures(discipline: Discipline) -> Discipline {
    if discipline.is_known() { discipline } else { Discipline::default() }
}

/// The servers that count: those configured, else those of DHCP, else the default ones. None without an address.
fn servers_of(surroundings: &Surroundings) -> Vec<String> {
    let reachable =
        surroundings.links.values().any(|link| link.addresses.iter().any(|prefix| !prefix.address().is_link_local()));
    if !reachable {
        return Vec::new();
    }
    if !surroundings.ntp_configured.is_empty() {
        return surroundings.ntp_configured.clone();
    }
    match surroundings.ntp_offered.as_slice() {
        [] => DEFAULT_NTP.map(str::to_owned).to_vec(),
        offered => offered.iter().map(Ipv4Addr::to_string).collect(),
    }
}

/// Asks all servers once and acts on what they agree upon.
async fn look(
    discipline: &mut Discipline,
    servers: &[String],
    omni: Option<&Uri>,
    status: &watch::Sender<ClockStatus>,
) {
    let samples = ask_all(servers).await;
    let agreed = sntp::agree(&samples);
    let source = format!("{} of {} time servers", samples.len(), servers.len());
    if let Some(sample) = agreed {
        let order = discipline.on_sample(sample);
        return act(order, sample.offset, source, status);
    }
    discipline.on_failure();
    let trouble = match (servers.len(), samples.len()) {
        (0, _) => "no network to ask for the time".to_owned(),
        (_, 0) => "no time server answers".to_owned(),
        (_, answers) => format!("{answers} time servers disagree"),
    };
    if servers.is_empty() || discipline.is_known() || discipline.failures() < FAILURES {
        status.send_modify(|status| status.source = trouble);
        return;
    }
    let dated = match omni {
        Some(uri) => {
            tokio::time::timeout(HTTPS, date(uri)).await.unwrap_or_else(|_| Err("no answer in time".to_owned()))
        }
        None => Err("no Omni endpoint is configured".to_owned()),
    };
    match dated {
        Ok(sample) if sample.offset.unsigned_abs() < COARSE.as_nanos() as u64 => {
            let source = format!("{trouble}; Omni's date agrees");
            status.send_modify(|status| {
                *status = ClockStatus { synchronised: true, source, offset_ms: 0, at: Some(UnixTime::now()) };
            });
        }
        // Rough: the first servers that answer set it anew.
        Ok(sample) => act(Order::Step(sample.offset), sample.offset, format!("{trouble}; Omni's date"), status),
        Err(why) => status.send_modify(|status| status.source = format!("{trouble}; Omni's date: {why}")),
    }
}

/// Does to the clock what was ordered, and tells.
fn act(order: Order, offset: i64, source: String, status: &watch::Sender<ClockStatus>) {
    let done = match order {
        Order::Slew(micros, error) => clock::slew(micros, error),
        Order::Step(nanos) => {
            let to = sntp::nanos(UnixTime::now()) + i128::from(nanos);
            let to = UnixTime::from_millis(u64::try_from(to / 1_000_000).unwrap_or(0));
            tracing::info!(%to, source, "the clock is set");
            clock::step(to)
        }
        Order::Wait => Ok(()),
    };
    let offset_ms = offset / 1_000_000;
    let (synchronised, source) = match (&done, order) {
        // Found right is right.
        (Err(error), _) => (matches!(order, Order::Slew(..)), format!("{source}; the clock can't be set: {error}")),
        (Ok(()), Order::Wait) => (true, format!("{source}; the clock was right, they are asked again")),
        (Ok(()), _) => (true, source),
    };
    status.send_replace(ClockStatus { synchronised, source, offset_ms, at: done.is_ok().then(UnixTime::now) });
}

async fn ask_all(servers: &[String]) -> Vec<Sample> {
    let mut asking = JoinSet::new();
    for server in servers.iter().take(MOST) {
        let server = server.clone();
        asking.spawn(async move { (server.clone(), tokio::time::timeout(ANSWER, ask(&server)).await) });
    }
    let mut samples = Vec::new();
    while let Some(Ok((server, answered))) = asking.join_next().await {
        match answered {
            Ok(Ok(sample)) => samples.push(sample),
            Ok(Err(why)) => tracing::debug!(server, why, "a time server is of no use"),
            Err(_) => tracing::debug!(server, "a time server does not answer"),
        }
    }
    samples
}

async fn ask(server: &str) -> Result<Sample, String> {
    let text = |error: std::io::Error| error.to_string();
    let port = sntp::PORT;
    let host = if server.parse::<std::net::Ipv6Addr>().is_ok() {
        format!("[{server}]:{port}")
    } else {
        format!("{server}:{port}")
    };
    let address = tokio::net::lookup_host(host).await.map_err(text)?.next().ok_or("no such name")?;
    let local: SocketAddr = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().map_err(|_| "no address")?;
    let socket = UdpSocket::bind(local).await.map_err(text)?;
    // Answers of anyone else never come up.
    socket.connect(address).await.map_err(text)?;
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(|error| error.to_string())?;
    let nonce = u64::from_be_bytes(nonce) | 1;
    let (sent, began) = (UnixTime::now(), Uptime::now());
    socket.send(&sntp::question(nonce)).await.map_err(text)?;
    let mut octets = [0; 512];
    let len = socket.recv(&mut octets).await.map_err(text)?;
    sntp::read(&octets[..len], nonce, sent, Uptime::now().since(began)).map_err(|why| why.to_string())
}

/// Omni's idea of the time, from the Date of its answer to whatever is asked, certificates verified.
async fn date(uri: &Uri) -> Result<Sample, String> {
    let connector =
        hyper_rustls::HttpsConnectorBuilder::new().with_webpki_roots().https_or_http().enable_http1().build();
    let client = Client::builder(TokioExecutor::new()).build::<_, Empty<bytes::Bytes>>(connector);
    let request = Request::builder()
        .method(Method::HEAD)
        .uri(uri.clone())
        .body(Empty::new())
        .map_err(|error| error.to_string())?;
    let began = Uptime::now();
    let response = client.request(request).await.map_err(|error| error.to_string())?;
    let took = Uptime::now().since(began);
    let date = date_of(response.headers()).ok_or("no date in the answer")?;
    if date < sntp::FLOOR || date > sntp::CEILING {
        return Err(format!("{date} is absurd"));
    }
    let offset = sntp::nanos(date) - sntp::nanos(UnixTime::now());
    let offset = i64::try_from(offset).map_err(|_| "out of range")?;
    Ok(Sample { offset, error: took + Duration::from_secs(1) })
}

fn date_of(headers: &HeaderMap) -> Option<UnixTime> {
    http_date::parse(headers.get(header::DATE)?.to_str().ok()?)
}
