//! What a machine asks at `/ipxe/boot.ipxe`, and the answer's shape.

use std::net::IpAddr;

use bytes::Bytes;
use http::StatusCode;

use crate::machine::{Arch, InvalidMachineId, MachineId};

/// The longest value that is kept of a text that a machine sends about itself.
const MAX_TEXT: usize = 128;

/// One boot request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootRequest {
    /// The machine.
    pub uuid: MachineId,
    /// The card that asks, lower-case with colons; `None` when absent or no Ethernet address.
    pub mac: Option<String>,
    /// The machine's architecture.
    pub arch: Arch,
    /// The name that DHCP gave it.
    pub hostname: Option<String>,
    /// The domain that DHCP gave it.
    pub domain: Option<String>,
    /// Its serial number.
    pub serial: Option<String>,
    /// Where the request came from.
    pub peer: IpAddr,
    /// Whether our own init script asks (`disk=script`): it needs a script to go to disk, where other iPXE takes a 404
    /// for it. See [`crate::boot::script::refused`].
    pub disk_script: bool,
}

/// Why a query is no boot request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRequest {
    /// No `uuid`, or an empty one.
    #[error("the query has no uuid")]
    NoUuid,
    /// `uuid` is none that a machine can be told by.
    #[error("the uuid is unusable")]
    Uuid(#[source] InvalidMachineId),
}

impl BootRequest {
    /// Reads the query (without its `?`). Unknown keys are ignored; of a repeated key the first counts.
    ///
    /// # Errors
    ///
    /// [`InvalidRequest`] when the machine can't be told. All else is optional.
    pub fn parse(query: &str, peer: IpAddr) -> Result<Self, InvalidRequest> {
        let uuid = value(query, "uuid").filter(|uuid| !uuid.is_empty()).ok_or(InvalidRequest::NoUuid)?;
        Ok(Self {
            uuid: uuid.parse().map_err(InvalidRequest::Uuid)?,
            mac: value(query, "mac").and_then(|text| mac(&text)),
            arch: Arch::from_buildarch(value(query, "arch").as_deref().unwrap_or_default()),
            hostname: text(query, "hostname"),
            domain: text(query, "domain"),
            serial: text(query, "serial"),
            peer,
            disk_script: value(query, "disk").as_deref() == Some("script"),
        })
    }
}

/// The `key`'s first value, percent-decoded; octets that are no UTF-8 are replaced.
pub fn value(query: &str, key: &str) -> Option<String> {
    query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name == key).then(|| percent_decode(value))
    })
}

fn percent_decode(text: &str) -> String {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| (*byte as char).to_digit(16)).map(|digit| digit as u8);
    let octets = text.as_bytes();
    let mut decoded = Vec::with_capacity(octets.len());
    let mut at = 0;
    while let Some(octet) = octets.get(at) {
        match (octet, digit(octets.get(at + 1)), digit(octets.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(high << 4 | low);
                at += 3;
            }
            (b'+', ..) => {
                decoded.push(b' ');
                at += 1;
            }
            (octet, ..) => {
                decoded.push(*octet);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Printable text of at most [`MAX_TEXT`] characters; empty is absent.
fn text(query: &str, key: &str) -> Option<String> {
    let text: String = value(query, key)?.chars().filter(|char| !char.is_control()).take(MAX_TEXT).collect();
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn mac(text: &str) -> Option<String> {
    let well_formed = text.len() == 17
        && text.bytes().enumerate().all(|(index, byte)| match index % 3 {
            2 => matches!(byte, b'-' | b':'),
            _ => byte.is_ascii_hexdigit(),
        });
    well_formed.then(|| text.to_ascii_lowercase().replace('-', ":"))
}

/// The answer to a boot request. Its `Debug` leaves the body out: with an inline configuration it holds the join token.
#[derive(Clone, PartialEq, Eq)]
pub struct BootAnswer {
    /// 200 with a script; 404 sends an iPXE that is not ours to the next boot device; 5xx makes it try again.
    pub status: StatusCode,
    /// The body's type.
    pub content_type: &'static str,
    /// The script, or a line that says why there is none.
    pub body: Bytes,
    /// Why, for the log line, the counter and the status page.
    pub reason: &'static str,
}

impl std::fmt::Debug for BootAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { status, reason, body, .. } = self;
        f.debug_struct("BootAnswer")
            .field("status", status)
            .field("reason", reason)
            .field("octets", &body.len())
            .finish()
    }
}

impl BootAnswer {
    /// 200 with an iPXE script.
    pub fn script(script: String, reason: &'static str) -> Self {
        Self { status: StatusCode::OK, content_type: "text/plain", body: script.into(), reason }
    }

    /// 404 with a line of text, which may be empty.
    pub fn not_found(body: &'static str, reason: &'static str) -> Self {
        let body = Bytes::from_static(body.as_bytes());
        Self { status: StatusCode::NOT_FOUND, content_type: "text/plain", body, reason }
    }

    /// 500: no decision could be made; `cause` becomes part of the body. Our init script tries again.
    pub fn failed(cause: &dyn std::error::Error, reason: &'static str) -> Self {
        let body = format!("failed to make boot decision: {cause}").into();
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, content_type: "text/plain", body, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const UUID: &str = "4c4c4544-0042-3510-8054-b7c04f333132";

    #[test]
    fn the_go_providers_query_is_understood() {
        let query = format!(
            "uuid={UUID}&mac=52-54-00-AB-cd-56&domain=lan&hostname=n%201&serial=A%2FB+C&arch=arm64&disk=script&x=y"
        );
        let request = BootRequest::parse(&query, PEER).unwrap();
        assert_eq!(request.uuid.as_str(), UUID);
        assert_eq!(request.mac.as_deref(), Some("52:54:00:ab:cd:56"));
        assert_eq!((request.arch, request.disk_script), (Arch::Arm64, true));
        assert_eq!(request.hostname.as_deref(), Some("n 1"));
        assert_eq!(request.serial.as_deref(), Some("A/B C"));
        let bare = BootRequest::parse(&format!("uuid={UUID}&hostname=&mac=zz&arch=i386"), PEER).unwrap();
        assert_eq!((bare.hostname, bare.mac, bare.arch, bare.disk_script), (None, None, Arch::Amd64, false));
    }

    #[test]
    fn a_machine_that_cannot_be_told_is_refused() {
        for query in ["", "mac=x", "uuid=", "uuid"] {
            assert_eq!(BootRequest::parse(query, PEER), Err(InvalidRequest::NoUuid), "{query}");
        }
        assert_eq!(BootRequest::parse("uuid=1", PEER), Err(InvalidRequest::Uuid(InvalidMachineId::Form)));
        let blank = "uuid=00000000-0000-0000-0000-000000000000";
        assert_eq!(BootRequest::parse(blank, PEER), Err(InvalidRequest::Uuid(InvalidMachineId::Blank)));
    }

    proptest! {
        #[test]
        fn no_query_panics(query in "\\PC*") {
            let _ = BootRequest::parse(&query, PEER);
            let _ = BootRequest::parse(&format!("uuid={UUID}&serial={query}%"), PEER);
        }
    }
}
