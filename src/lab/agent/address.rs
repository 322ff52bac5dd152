//! `metal.provider.address`, read as the real agent reads it (contract 3.2), traps included.

use std::str::FromStr;

/// What an agent dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host and port.
    pub authority: String,
    /// Whether TLS is spoken.
    pub tls: bool,
}

/// Why the real agent could not dial an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    /// A DNS name with a port and no `http://`.
    #[error("the agent reads the host as a URL scheme; write http://name:port")]
    NameReadAsScheme,
    /// There is no host, or no port where one is needed.
    #[error("the agent finds no host and port in it; write address:port")]
    NoTarget,
}

impl FromStr for Target {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        if let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| is_scheme(scheme)) {
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let host = authority.rsplit('@').next().unwrap_or_default();
            if host.is_empty() || host.starts_with(':') {
                return Err(InvalidAddress::NoTarget);
            }
            let has_port = host.rsplit(']').next().is_some_and(|after| after.contains(':'));
            // gRPC's default port, whatever the scheme says.
            let authority = if has_port { host.to_owned() } else { format!("{host}:443") };
            return Ok(Self { authority, tls: scheme.eq_ignore_ascii_case("https") });
        }
        match text.split_once(':') {
            Some((scheme, _)) if is_scheme(scheme) => Err(InvalidAddress::NameReadAsScheme),
            Some((host, _)) if !host.is_empty() => Ok(Self { authority: text.to_owned(), tls: false }),
            Some(_) | None => Err(InvalidAddress::NoTarget),
        }
    }
}

/// RFC 3986 section 3.1.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.chars().all(|char| char.is_ascii_alphanumeric() || matches!(char, '+' | '-' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_dialled_as_the_real_agent_dials_them() {
        let target = |authority: &str, tls| Ok(Target { authority: authority.into(), tls });
        for (text, want) in [
            ("10.0.0.1:50042", target("10.0.0.1:50042", false)),
            ("[fd00::1]:50042", target("[fd00::1]:50042", false)),
            ("http://h:50042", target("h:50042", false)),
            ("https://h:50043/path", target("h:50043", true)),
            ("HTTPS://h", target("h:443", true)),
            ("http://[fd00::1]", target("[fd00::1]:443", false)),
            ("othername://h:1", target("h:1", false)),
            ("host.name:50042", Err(InvalidAddress::NameReadAsScheme)),
            ("localhost:50042", Err(InvalidAddress::NameReadAsScheme)),
            ("10.0.0.1", Err(InvalidAddress::NoTarget)),
            ("http://", Err(InvalidAddress::NoTarget)),
            ("", Err(InvalidAddress::NoTarget)),
        ] {
            assert_eq!(text.parse::<Target>(), want, "{text:?}");
        }
    }
}
