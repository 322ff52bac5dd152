//! The address that machines are given, as each reader of it wants it written.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A host: an address, or a name that machines can resolve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An IPv4 or IPv6 literal.
    Ip(IpAddr),
    /// A DNS name of letters, digits, dashes and dots.
    Name(Box<str>),
}

/// A text that is neither an address nor a DNS name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an address or a DNS name: {text:?}")]
pub struct InvalidHost {
    text: String,
}

impl FromStr for Host {
    type Err = InvalidHost;
    /// Takes `192.0.2.1`, `2001:db8::1`, `[2001:db8::1]` and names such as `boot.example`.
    fn from_str(text: &str) -> Result<Self, InvalidHost> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse() {
            return Ok(Self::Ip(ip));
        }
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let all_digits = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if text.len() <= 253 && !all_digits && text.split('.').all(label) {
            return Ok(Self::Name(text.into()));
        }
        Err(InvalidHost { text: text.to_owned() })
    }
}

impl fmt::Display for Host {
    /// As in a URL: an IPv6 literal stands in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(IpAddr::V4(ip)) => ip.fmt(f),
            Self::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Where machines reach us: host and HTTP port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertise {
    /// The host.
    pub host: Host,
    /// The port that serves HTTP and gRPC, 50042 unless configured.
    pub port: u16,
}

impl Advertise {
    /// `http://host:port` and `path`, which starts with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{self}{path}")
    }

    /// The value of `metal.provider.address`: `IP:port` for a literal, `http://name:port` for a name.
    ///
    /// The agent parses the value as a URL first. A literal fails that and is dialled as it is; a bare `name:port` would
    /// parse as a scheme without a host, and the agent would never connect.
    ///
    /// Source: contract section 6.5.
    pub fn provider_address(&self) -> String {
        match self.host {
            Host::Ip(_) => self.to_string(),
            Host::Name(_) => format!("http://{self}"),
        }
    }
}

impl fmt::Display for Advertise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_host_is_written_as_its_reader_wants() {
        for (text, url, provider) in [
            ("172.16.0.42", "http://172.16.0.42:50042/x", "172.16.0.42:50042"),
            ("fd00::1", "http://[fd00::1]:50042/x", "[fd00::1]:50042"),
            ("[fd00::1]", "http://[fd00::1]:50042/x", "[fd00::1]:50042"),
            ("boot.example", "http://boot.example:50042/x", "http://boot.example:50042"),
        ] {
            let advertise = Advertise { host: text.parse().unwrap(), port: 50042 };
            assert_eq!(advertise.url("/x"), url);
            assert_eq!(advertise.provider_address(), provider);
        }
    }

    #[test]
    fn a_host_cannot_carry_script() {
        for bad in ["", "a b", "a\nb", "a..b", "-a", "${net0/ip}", "1.2.3", "a/b", "a:1"] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
    }
}
