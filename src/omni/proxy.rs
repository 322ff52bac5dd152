//! The way out through an HTTP proxy, where the environment asks for one: a tunnel by CONNECT.
//!
//! The variables mean what they mean to Go's gRPC, so that an installation keeps its settings: HTTPS_PROXY counts for
//! every endpoint, HTTP_PROXY for none, and loopback is never proxied.
//!
//! Source: contract omni-wire.md section 1.1; RFC 9110 section 9.3.6.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::channel::CONNECT_TIMEOUT;
use super::endpoint::Endpoint;
use crate::secret::Secret;

/// The environment variables that are read, by the first of each pair that is set.
pub const VARIABLES: [[&str; 2]; 2] = [["HTTPS_PROXY", "https_proxy"], ["NO_PROXY", "no_proxy"]];
/// How long the proxy may take, connection included: less than the channel allows for both, whose error names no proxy.
const TIMEOUT: Duration = Duration::from_secs(8);
const _: () = assert!(TIMEOUT.as_secs() < CONNECT_TIMEOUT.as_secs());
/// The longest answer to CONNECT that is read.
const MAX_ANSWER: usize = 8 * 1024;

/// The values of the variables, as found.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    /// `HTTPS_PROXY`: a URL, which may hold a password.
    pub proxy: Option<Secret<String>>,
    /// `NO_PROXY`: hosts that are reached directly, separated by commas.
    pub no_proxy: String,
}

/// An HTTP proxy.
#[derive(Clone, Debug)]
pub struct Proxy {
    authority: String,
    /// The value of `Proxy-Authorization`, for a proxy that wants a password.
    authorization: Option<Secret<String>>,
}

/// Why `HTTPS_PROXY` names no proxy. The value is not shown: it may hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProxy {
    /// A scheme other than `http`.
    #[error("HTTPS_PROXY names a proxy that is not spoken to over plain HTTP; write http://<host>:<port>")]
    Scheme,
    /// No host, or something after it that is no port.
    #[error("HTTPS_PROXY holds no host and port; write http://<host>:<port>")]
    Host,
}

/// Why there is no way through a proxy.
#[derive(Debug, thiserror::Error)]
enum Blocked {
    #[error("the proxy {proxy} of HTTPS_PROXY cannot be reached")]
    Unreachable {
        proxy: String,
        #[source]
        source: io::Error,
    },
    #[error("the proxy {0} of HTTPS_PROXY did not answer in time")]
    Timeout(String),
    #[error("the proxy {proxy} of HTTPS_PROXY refuses a tunnel to {target}: {status}{}", hint(status))]
    Refused { proxy: String, target: String, status: String },
    #[error("the proxy {0} of HTTPS_PROXY answers no HTTP")]
    Misbehaved(String),
}

fn hint(status: &str) -> &'static str {
    if status.contains(" 407") { "; put user and password into the URL" } else { "" }
}

impl Variables {
    /// Reads the variables through `variable`; empty ones count as absent.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let [proxy, no_proxy] =
            VARIABLES.map(|names| names.into_iter().find_map(|name| variable(name).filter(|value| !value.is_empty())));
        Self { proxy: proxy.map(Secret::new), no_proxy: no_proxy.unwrap_or_default() }
    }

    /// The proxy to reach `endpoint` through; `None` for the direct way.
    ///
    /// # Errors
    ///
    /// [`InvalidProxy`] where a proxy is wanted and the value names none.
    pub fn proxy_for(&self, endpoint: &Endpoint) -> Result<Option<Proxy>, InvalidProxy> {
        match &self.proxy {
            Some(proxy) if !direct(&self.no_proxy, endpoint) => Proxy::parse(proxy.reveal()).map(Some),
            _ => Ok(None),
        }
    }
}

/// Whether `endpoint` is loopback or on the list `no_proxy`: `*`; a domain, which covers the names below it; `.domain`,
/// which covers those alone; an address; a network as `10.0.0.0/8`. Each may have a port.
fn direct(no_proxy: &str, endpoint: &Endpoint) -> bool {
    let host = endpoint.host.trim_end_matches('.');
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    no_proxy.split(',').map(|entry| entry.trim().to_ascii_lowercase()).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        if let (Some(address), Some((network, bits))) = (address, entry.split_once('/')) {
            return network.parse().is_ok_and(|network| covers(network, bits, address));
        }
        let (name, port) = split_port(&entry);
        if port.is_some_and(|port| port != endpoint.port) {
            return false;
        }
        match (address, name.parse::<IpAddr>()) {
            (Some(address), listed) => listed == Ok(address),
            (None, _) => match name.strip_prefix("*.").or_else(|| name.strip_prefix('.')) {
                Some(domain) => host.strip_suffix(domain).is_some_and(|below| below.len() > 1 && below.ends_with('.')),
                None => host.strip_suffix(name).is_some_and(|below| below.is_empty() || below.ends_with('.')),
            },
        }
    })
}

/// Whether the first `bits` of both addresses agree.
fn covers(network: IpAddr, bits: &str, address: IpAddr) -> bool {
    let Ok(bits) = bits.parse::<u32>() else { return false };
    let same =
        |a: u128, b: u128, width: u32| bits <= width && (bits == 0 || (a ^ b) << (128 - width) >> (128 - bits) == 0);
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => same(network.to_bits().into(), address.to_bits().into(), 32),
        (IpAddr::V6(network), IpAddr::V6(address)) => same(network.to_bits(), address.to_bits(), 128),
        _ => false,
    }
}

/// A host and, where there is one, its port; brackets around an IPv6 address are taken off.
fn split_port(text: &str) -> (&str, Option<u16>) {
    if let Some((host, rest)) = text.strip_prefix('[').and_then(|text| text.split_once(']')) {
        return (host, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, port.parse().ok()),
        _ => (text, None),
    }
}

impl Proxy {
    /// `[http://][user:password@]host[:port]`; port 80 when missing.
    fn parse(text: &str) -> Result<Self, InvalidProxy> {
        let text = text.trim();
        let rest = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => rest,
            Some(_) => return Err(InvalidProxy::Scheme),
            None => text,
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, authority) = match authority.rsplit_once('@') {
            Some((user, authority)) => (Some(user), authority),
            None => (None, authority),
        };
        // Any scheme but ours needs a port there; ours implies 80.
        let endpoint: Endpoint = format!("http://{authority}").parse().map_err(|_| InvalidProxy::Host)?;
        let authorization = user.map(|user| Secret::new(format!("Basic {}", STANDARD.encode(percent_decoded(user)))));
        Ok(Self { authority: endpoint.authority(), authorization })
    }

    /// A connection to `target`, `host:port`, through the proxy.
    ///
    /// # Errors
    ///
    /// What keeps the proxy from it, as the source of the error.
    pub(crate) async fn connect(&self, target: &str) -> io::Result<TcpStream> {
        let proxy = || self.authority.clone();
        let exchange = async {
            let unreachable = |source| Blocked::Unreachable { proxy: proxy(), source };
            let mut stream = TcpStream::connect(&self.authority).await.map_err(unreachable)?;
            let _ = stream.set_nodelay(true);
            let authorization = self
                .authorization
                .as_ref()
                .map_or_else(String::new, |value| format!("Proxy-Authorization: {}\r\n", value.reveal()));
            let request = zeroize::Zeroizing::new(format!(
                "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {}\r\n{authorization}\r\n",
                super::channel::USER_AGENT
            ));
            stream.write_all(request.as_bytes()).await.map_err(unreachable)?;
            let mut answer = Vec::new();
            // Octet by octet: what follows the empty line is the target's, which may speak first.
            while !answer.ends_with(b"\r\n\r\n") {
                if answer.len() == MAX_ANSWER {
                    return Err(Blocked::Misbehaved(proxy()));
                }
                answer.push(stream.read_u8().await.map_err(unreachable)?);
            }
            let line = answer.split(|octet| *octet == b'\r').next().unwrap_or_default();
            let line = super::error::printable(&String::from_utf8_lossy(line));
            let code = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse::<u16>().ok());
            match code {
                Some(200..300) => Ok(stream),
                Some(_) => Err(Blocked::Refused { proxy: proxy(), target: target.to_owned(), status: line }),
                None => Err(Blocked::Misbehaved(proxy())),
            }
        };
        let connected = timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| Err(Blocked::Timeout(proxy())));
        connected.map_err(io::Error::other)
    }
}

/// `text` with `%41` read as `A`; what is no escape stays.
fn percent_decoded(text: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = (*first == b'%').then(|| tail.get(..2)).flatten();
        match escape.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok()) {
            Some(octet) => {
                out.push(octet);
                rest = &tail[2..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn variables(proxy: &str, no_proxy: &str) -> Variables {
        Variables { proxy: Some(Secret::new(proxy.to_owned())), no_proxy: no_proxy.to_owned() }
    }

    fn proxied(no_proxy: &str, endpoint: &str) -> bool {
        variables("http://proxy:3128", no_proxy).proxy_for(&endpoint.parse().unwrap()).unwrap().is_some()
    }

    #[test]
    fn the_list_of_direct_hosts_is_read_as_go_reads_it() {
        let omni = "https://acme.omni.siderolabs.io";
        for list in ["", "example.com", ".acme.omni.siderolabs.io", "acme.omni.siderolabs.io:8443", "ni.siderolabs.io"]
        {
            assert!(proxied(list, omni), "{list}");
        }
        for list in ["*", "x, siderolabs.io", ".siderolabs.io", "*.OMNI.siderolabs.io", "acme.omni.siderolabs.io:443"] {
            assert!(!proxied(list, omni), "{list}");
        }
        for list in ["10.0.0.0/8", "10.1.2.3", "10.1.2.0/25", "0.0.0.0/0", "10.1.2.3:443"] {
            assert!(!proxied(list, "https://10.1.2.3"), "{list}");
        }
        for list in ["10.1.2.4", "11.0.0.0/8", "10.1.2.128/25", "10.0.0.0/99", "::/0", "10.1.2.3:80"] {
            assert!(proxied(list, "https://10.1.2.3"), "{list}");
        }
        assert!(!proxied("2001:db8::/32", "https://[2001:db8::1]:443"));
        assert!(proxied("2001:db9::/32", "https://[2001:db8::1]:443"));
        assert!(
            !proxied("", "http://127.0.0.1:80") && !proxied("", "http://localhost") && !proxied("", "http://[::1]:1")
        );
    }

    #[test]
    fn a_proxy_is_a_host_and_a_port_over_plain_http() {
        let omni: Endpoint = "https://omni.example".parse().unwrap();
        let authority = |text: &str| variables(text, "").proxy_for(&omni).map(|proxy| proxy.unwrap().authority);
        assert_eq!(authority("http://proxy:3128/").unwrap(), "proxy:3128");
        assert_eq!(authority("proxy").unwrap(), "proxy:80");
        assert_eq!(authority("http://a:b%40c@[fd00::1]:1").unwrap(), "[fd00::1]:1");
        assert_eq!(authority("socks5://proxy:1"), Err(InvalidProxy::Scheme));
        assert_eq!(authority("http://"), Err(InvalidProxy::Host));
        let proxy = Proxy::parse("http://a:hunter%40@x:1").unwrap();
        assert_eq!(proxy.authorization.as_ref().unwrap().reveal(), "Basic YTpodW50ZXJA");
        assert!(!format!("{proxy:?}").contains("aHVudGVy"));
    }

    #[test]
    fn either_spelling_of_a_variable_counts_and_an_empty_one_does_not() {
        let read = |name: &str| match name {
            "HTTPS_PROXY" => Some(String::new()),
            "https_proxy" => Some("http://lower:1".to_owned()),
            "NO_PROXY" => Some("x".to_owned()),
            _ => None,
        };
        let variables = Variables::read(read);
        assert_eq!(variables.proxy.unwrap().reveal(), "http://lower:1");
        assert_eq!(variables.no_proxy, "x");
    }

    proptest! {
        #[test]
        fn no_variable_panics(proxy in ".{0,60}", list in ".{0,60}", bits in 0u32..200, v4: u32, v6: u128) {
            let addresses = [IpAddr::V4(v4.into()), IpAddr::V6(v6.into())];
            for host in addresses {
                let endpoint = Endpoint { host: host.to_string(), port: 1, tls: false };
                let _ = variables(&proxy, &list).proxy_for(&endpoint);
                let _ = covers(host, &bits.to_string(), addresses[0]);
            }
        }
    }
}
