//! The machine config that the provider serves, read as far as joining needs it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::secret::Secret;

/// How long the whole exchange may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// No config of a provider is bigger, octets.
const LARGEST: usize = 1 << 20;

/// Key of the unique token in what an installation keeps; Talos has it in a place of its own.
const UNIQUE_TOKEN: &str = "uniquetoken=";

/// How a machine joins: what `SideroLinkConfig` tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Join {
    /// `http://host:port` of Omni's machine API.
    pub endpoint: String,
    /// The join token.
    pub token: Secret<String>,
    /// What Omni wrote to the machine's META partition; none before it was installed.
    pub unique_token: Option<Secret<String>>,
}

/// Why there is no way to join.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The config's URL is none that the simulated Talos can fetch.
    #[error("{url}: want http://host[:port]/path")]
    Url {
        /// As the kernel argument has it.
        url: String,
    },
    /// The server's name has no address.
    #[error("{host} has no address")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        #[source]
        source: std::io::Error,
    },
    /// The server can't be reached.
    #[error("connecting to {server}")]
    Connect {
        /// The server.
        server: SocketAddr,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// HTTP broke off.
    #[error("{url}: exchange broke off")]
    Exchange {
        /// What was asked for.
        url: String,
        /// What hyper made of it.
        #[source]
        source: hyper::Error,
    },
    /// The body broke off, or has no end.
    #[error("{url}: body broke off, or is longer than {LARGEST} octets")]
    Body {
        /// What was asked for.
        url: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Not 200.
    #[error("{url}: HTTP {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The answer.
        status: StatusCode,
    },
    /// Nothing came for 20 s.
    #[error("{url}: server is silent")]
    Silent {
        /// What was asked for.
        url: String,
    },
    /// The text is no config with a way to join.
    #[error("the config tells no way to join: {0}")]
    Join(#[source] NoJoin),
}

/// What a config lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoJoin {
    /// No `SideroLinkConfig`, or none with an `apiUrl`.
    #[error("there is no SideroLinkConfig with an apiUrl")]
    NoApiUrl,
    /// The URL's scheme is not `grpc` or `http`.
    #[error("apiUrl is not grpc:// or http://")]
    Scheme,
    /// The URL has no `jointoken`.
    #[error("apiUrl has no jointoken")]
    NoToken,
}

/// Fetches the config at `url`, from `local_bind` if given.
///
/// # Errors
///
/// [`ConfigError`].
pub(super) async fn fetch(url: &str, local_bind: Option<IpAddr>) -> Result<Join, ConfigError> {
    let late = |_| ConfigError::Silent { url: url.to_owned() };
    let body = timeout(PATIENCE, get(url, local_bind)).await.map_err(late)??;
    parse(&String::from_utf8_lossy(&body)).map_err(ConfigError::Join)
}

async fn get(url: &str, local_bind: Option<IpAddr>) -> Result<Bytes, ConfigError> {
    let bad = || ConfigError::Url { url: url.to_owned() };
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(bad)?;
    let host = authority.host().trim_matches(['[', ']']);
    let port = authority.port_u16().unwrap_or(80);
    let unresolved = |source| ConfigError::Resolve { host: host.to_owned(), source };
    let mut addresses = tokio::net::lookup_host((host, port)).await.map_err(unresolved)?;
    let same_family = |server: &SocketAddr| local_bind.is_none_or(|bind| bind.is_ipv4() == server.is_ipv4());
    let server = addresses.find(same_family).ok_or_else(|| unresolved(std::io::ErrorKind::NotFound.into()))?;
    let connect = async {
        let socket = if server.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(bind) = local_bind {
            socket.bind((bind, 0).into())?;
        }
        socket.connect(server).await
    };
    let stream = connect.await.map_err(|source| ConfigError::Connect { server, source })?;
    let broke = |source| ConfigError::Exchange { url: url.to_owned(), source };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(broke)?;
    let request = Request::builder()
        .method(Method::GET)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(header::HOST, authority.as_str())
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|_| bad())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broke)?;
        if response.status() != StatusCode::OK {
            return Err(ConfigError::Status { url: url.to_owned(), status: response.status() });
        }
        let body = Limited::new(response.into_body(), LARGEST).collect().await;
        Ok(body.map_err(|source| ConfigError::Body { url: url.to_owned(), source })?.to_bytes())
    };
    let mut exchange = std::pin::pin!(exchange);
    // The connection is driven here and not by a task of its own, so that a power cut ends it at once.
    tokio::select! {
        done = &mut exchange => done,
        _ = connection => exchange.await,
    }
}

/// The way to join that a multi-document config tells.
///
/// # Errors
///
/// [`NoJoin`].
fn parse(config: &str) -> Result<Join, NoJoin> {
    let value = |document: &str, key: &str| {
        let line = document.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':').map(str::trim))?;
        Some(line.trim_matches(['"', '\'']).to_owned())
    };
    let documents: Vec<_> = config.split("\n---").collect();
    let link = documents.iter().find(|document| value(document, "kind").as_deref() == Some("SideroLinkConfig"));
    let url = link.and_then(|document| value(document, "apiUrl")).ok_or(NoJoin::NoApiUrl)?;
    Join::parse(&url)
}

impl Join {
    /// From an `apiUrl`, or from what an installation keeps of it, such as
    /// `grpc://10.0.0.1:8090?jointoken=v2%3A…` (contract omni-wire.md section 7.2).
    ///
    /// # Errors
    ///
    /// `NoJoin`.
    pub fn parse(api_url: &str) -> Result<Self, NoJoin> {
        let (scheme, rest) = api_url.split_once("://").ok_or(NoJoin::Scheme)?;
        if !matches!(scheme, "grpc" | "http") {
            return Err(NoJoin::Scheme);
        }
        let (authority, query) = rest.split_once('?').ok_or(NoJoin::NoToken)?;
        let find = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key));
        let token = find("jointoken=").ok_or(NoJoin::NoToken)?;
        let unique_token = find(UNIQUE_TOKEN).map(|token| Secret::new(query_unescape(token)));
        let endpoint = format!("http://{}", authority.trim_end_matches('/'));
        Ok(Self { endpoint, token: Secret::new(query_unescape(token)), unique_token })
    }

    /// As an `apiUrl` again, and the unique token with it: what an installation keeps. Holds the tokens.
    pub(crate) fn to_api_url(&self) -> Secret<String> {
        let mut url = format!("{}?jointoken=", self.endpoint);
        query_escape(self.token.reveal(), &mut url);
        if let Some(token) = &self.unique_token {
            url.push('&');
            url.push_str(UNIQUE_TOKEN);
            query_escape(token.reveal(), &mut url);
        }
        Secret::new(url)
    }
}

/// Appends `text` as a form-encoded value.
fn query_escape(text: &str, url: &mut String) {
    for octet in text.bytes() {
        match octet {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => url.push(char::from(octet)),
            other => url.push_str(&format!("%{other:02X}")),
        }
    }
}

/// A form-encoded value as it was; what is no escape stays as it is.
fn query_unescape(text: &str) -> String {
    let octets = text.as_bytes();
    let mut plain = Vec::with_capacity(octets.len());
    let mut at = 0;
    while let Some(octet) = octets.get(at) {
        let digit = |offset: usize| octets.get(at + offset).and_then(|digit| char::from(*digit).to_digit(16));
        match (octet, digit(1), digit(2)) {
            (b'%', Some(high), Some(low)) => {
                plain.push((high * 16 + low) as u8);
                at += 3;
                continue;
            }
            (b'+', ..) => plain.push(b' '),
            (other, ..) => plain.push(*other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONFIG: &str = "apiVersion: v1alpha1\nkind: EventSinkConfig\nendpoint: '[fdae::1]:8090'\n---\n\
        apiVersion: v1alpha1\nkind: SideroLinkConfig\napiUrl: grpc://10.0.0.1:8090?grpc_tunnel=true&jointoken=v2%3Aa%2Bb%2F%3D\n\
        ---\napiVersion: v1alpha1\nkind: KmsgLogConfig\nurl: tcp://x\n";

    #[test]
    fn the_join_document_is_found_among_others() {
        let join = parse(CONFIG).unwrap();
        assert_eq!(join.endpoint, "http://10.0.0.1:8090");
        assert_eq!(join.token.reveal(), "v2:a+b/=");
        assert_eq!(Join::parse(join.to_api_url().reveal()), Ok(join.clone()));
        assert!(!format!("{join:?}").contains("v2:"));
    }

    #[test]
    fn a_config_without_a_way_to_join_says_what_it_lacks() {
        assert_eq!(parse(""), Err(NoJoin::NoApiUrl));
        assert_eq!(parse("kind: SideroLinkConfig\n"), Err(NoJoin::NoApiUrl));
        assert_eq!(parse("kind: SideroLinkConfig\napiUrl: https://h?jointoken=x\n"), Err(NoJoin::Scheme));
        assert_eq!(parse("kind: SideroLinkConfig\napiUrl: \"grpc://h\"\n"), Err(NoJoin::NoToken));
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(text in ".{0,200}", token in ".{1,40}", unique in proptest::option::of(".{0,200}")) {
            let _ = (parse(&text), query_unescape(&text));
            let (token, unique_token) = (Secret::new(token), unique.map(Secret::new));
            let join = Join { endpoint: "http://h:1".into(), token, unique_token };
            prop_assert_eq!(Join::parse(join.to_api_url().reveal()), Ok(join));
        }
    }
}
