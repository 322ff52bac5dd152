//! Where Omni listens: every form of `OMNI_ENDPOINT`.
//!
//! Source: contract omni-wire.md section 1.1.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// Host, port and whether TLS is spoken there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Host name or address; an IPv6 address without its brackets.
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
    /// TLS, or HTTP/2 in the clear with prior knowledge.
    pub tls: bool,
}

/// Why a text is no endpoint, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    /// Nothing is there.
    #[error("the endpoint is empty; write https://<account>.omni.siderolabs.io or your own Omni's URL")]
    Empty,
    /// `host` or `host:port` alone.
    #[error("endpoint {0:?} has no scheme; write https://{0}")]
    NoScheme(String),
    /// A scheme and nothing behind it.
    #[error("endpoint {0:?} names no host; write https://<host>")]
    NoHost(String),
    /// A user or password before the host.
    #[error("the endpoint holds a user name; it takes none, the service account key is what signs in")]
    UserInfo,
    /// The host holds what no host name has.
    #[error("endpoint {0:?} has a host that is neither a DNS name nor an address")]
    Host(String),
    /// An IPv6 address without brackets.
    #[error("endpoint {0:?} holds an IPv6 address without brackets; write https://[2001:db8::1]:443")]
    UnbracketedV6(String),
    /// A bracketed IPv6 address without a port.
    #[error("endpoint {0:?} has an IPv6 address without a port; write https://[{1}]:443")]
    V6WithoutPort(String, Ipv6Addr),
    /// A scheme that implies no port.
    #[error("endpoint {0:?} needs a port, since its scheme implies none; write https://<host> or grpc://<host>:<port>")]
    NoPort(String),
    /// The port is no number from 1 to 65535.
    #[error("endpoint {0:?} has a port that is no number from 1 to 65535")]
    Port(String),
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    /// `https` is TLS on port 443; `http` and `grpc` are in the clear on port 80; any other scheme is in the clear and
    /// needs a port. Path, query and fragment are ignored.
    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let text = text.trim();
        if text.is_empty() {
            return Err(InvalidEndpoint::Empty);
        }
        let owned = || text.to_owned();
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(InvalidEndpoint::NoScheme(owned()));
        };
        let (tls, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "https" => (true, Some(443)),
            "http" | "grpc" => (false, Some(80)),
            "" => return Err(InvalidEndpoint::NoScheme(rest.to_owned())),
            _ => (false, None),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(InvalidEndpoint::UserInfo);
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(bracketed) => {
                let (address, port) =
                    bracketed.split_once(']').ok_or_else(|| InvalidEndpoint::UnbracketedV6(owned()))?;
                let address: Ipv6Addr = address.parse().map_err(|_| InvalidEndpoint::Host(owned()))?;
                let port = port.strip_prefix(':').ok_or_else(|| InvalidEndpoint::V6WithoutPort(owned(), address))?;
                (address.to_string(), Some(port))
            }
            None => match authority.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err(InvalidEndpoint::UnbracketedV6(owned())),
                Some((host, port)) => (host.to_ascii_lowercase(), Some(port)),
                None => (authority.to_ascii_lowercase(), None),
            },
        };
        if host.is_empty() {
            return Err(InvalidEndpoint::NoHost(owned()));
        }
        // An IPv6 address has been checked already; the rest is a DNS name or a dotted quad.
        if !host.contains(':')
            && (host.len() > 253
                || !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_')))
        {
            return Err(InvalidEndpoint::Host(owned()));
        }
        let port = match port {
            // As in URLs, a colon with nothing behind it means the scheme's own port.
            Some("") | None => default_port.ok_or_else(|| InvalidEndpoint::NoPort(owned()))?,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => match digits.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err(InvalidEndpoint::Port(owned())),
            },
            Some(_) => return Err(InvalidEndpoint::Port(owned())),
        };
        Ok(Self { host, port, tls })
    }
}

impl Endpoint {
    /// `host:port`, with brackets around an IPv6 address.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for Endpoint {
    /// A URL that parses to the same endpoint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_form_of_the_contract_parses_as_it_says() {
        for (text, host, port, tls) in [
            ("https://omni.example", "omni.example", 443, true),
            (" HTTPS://Omni.Example:8443/ ", "omni.example", 8443, true),
            ("http://omni.example", "omni.example", 80, false),
            ("http://127.0.0.1:8080", "127.0.0.1", 8080, false),
            ("grpc://omni.example", "omni.example", 80, false),
            ("grpc://omni.example:9000", "omni.example", 9000, false),
            ("tcp://omni.example:9000", "omni.example", 9000, false),
            ("https://omni.example/path?query=1#x", "omni.example", 443, true),
            ("https://omni.example:/", "omni.example", 443, true),
            ("https://[2001:DB8::1]:443", "2001:db8::1", 443, true),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint, Endpoint { host: host.into(), port, tls }, "{text}");
            assert_eq!(endpoint.to_string().parse(), Ok(endpoint), "{text}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused_with_what_to_write_instead() {
        for (text, hint) in [
            ("", "write https://"),
            ("omni.example:443", "write https://omni.example:443"),
            ("omni.example", "write https://omni.example"),
            ("https://", "names no host"),
            ("https://:443", "names no host"),
            ("https:///path", "names no host"),
            ("https://[2001:db8::1]", "write https://[2001:db8::1]:443"),
            ("https://2001:db8::1:443", "without brackets"),
            ("https://[2001:db8::1", "without brackets"),
            ("https://[omni]:443", "neither a DNS name"),
            ("https://om ni.example", "neither a DNS name"),
            ("https://omni.example:0", "no number from 1 to 65535"),
            ("https://omni.example:70000", "no number from 1 to 65535"),
            ("https://omni.example:+1", "no number from 1 to 65535"),
            ("tcp://omni.example", "needs a port"),
            ("https://user:secret@omni.example", "user name"),
        ] {
            let error = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,60}") {
            if let Ok(endpoint) = text.parse::<Endpoint>() {
                prop_assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
            }
        }
    }
}
