//! The text of resolv.conf (resolv.conf(5)).

use std::fmt::Write;
use std::net::IpAddr;

/// How many servers a resolver reads (`MAXNS`).
const MOST: usize = 3;

/// The text for `servers`, preferred first, each once.
pub fn text(servers: &[IpAddr], domain: Option<&str>) -> String {
    let mut text = String::new();
    if let Some(domain) = domain {
        let _ = writeln!(text, "search {domain}");
    }
    for server in servers.iter().take(MOST) {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !servers.is_empty() {
        text.push_str("options timeout:2 attempts:2\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_servers_are_read() {
        let servers: Vec<IpAddr> =
            ["192.0.2.1", "2001:db8::1", "192.0.2.2", "192.0.2.3"].map(|text| text.parse().unwrap()).into();
        let expected = "search rack.example\nnameserver 192.0.2.1\nnameserver 2001:db8::1\nnameserver 192.0.2.2\n\
                        options timeout:2 attempts:2\n";
        assert_eq!(text(&servers, Some("rack.example")), expected);
        assert_eq!(text(&[], None), "");
    }
}
