//! What each kind of field takes, and the normal form of it.

use std::net::{IpAddr, Ipv4Addr};

use base64::Engine as _;

use super::access;
use super::items;
use super::schema::Kind;
use crate::boot::Host;
use crate::config::duration;
use crate::net::config::Match;
use crate::net::mac::Mac;
use crate::net::prefix::Prefix;
use crate::omni::endpoint::Endpoint;

/// Most octets of a list.
const MOST_OF_LIST: usize = 2048;
/// Most octets of Omni's key as text.
const MOST_OF_KEY: usize = 32 * 1024;

/// The normal form of `text`, which is trimmed; else what is wrong, without the text where that is a secret.
pub(super) fn normal(kind: Kind, text: &str) -> Result<String, String> {
    if kind != Kind::Key && !kind.is_list() && text.chars().any(char::is_control) {
        return Err("has a control character, such as the end of a line".to_owned());
    }
    let shown = || shorten(text);
    match kind {
        Kind::Text(most) if text.len() > most => Err(format!("has {} octets, at most {most}", text.len())),
        Kind::Text(_) => Ok(text.to_owned()),
        Kind::Label => {
            let text = text.to_ascii_lowercase();
            if is_label(&text) {
                Ok(text)
            } else {
                Err(format!("{} is no name of letters, digits and dashes, at most 63", shown()))
            }
        }
        Kind::Endpoint => match text.parse::<Endpoint>() {
            Ok(_) if text.len() <= 512 => Ok(text.to_owned()),
            Ok(_) => Err("has more than 512 octets".to_owned()),
            Err(error) => Err(error.to_string()),
        },
        Kind::Url => {
            let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
            let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
            let plain = text.len() <= 512 && text.bytes().all(|octet| octet.is_ascii_graphic());
            let good = plain && !authority.is_empty() && !authority.contains('@') && text.parse::<http::Uri>().is_ok();
            if good {
                Ok(text.to_owned())
            } else {
                Err(format!("{} is no HTTP URL such as https://factory.example", shown()))
            }
        }
        Kind::Host => match text.parse::<Host>() {
            Ok(_) => Ok(text.to_owned()),
            Err(_) => Err(format!("{} is neither a name nor an address", shown())),
        },
        Kind::Version => match text.strip_prefix('v').map(semver::Version::parse) {
            Some(Ok(_)) => Ok(text.to_owned()),
            Some(Err(_)) | None => Err(format!("{} is no release such as v1.13.7", shown())),
        },
        Kind::Switch => match text {
            "true" | "false" => Ok(text.to_owned()),
            _ => Err(format!("{} is neither true nor false", shown())),
        },
        Kind::Choice(words) => {
            let found = words.iter().find(|word| **word == text);
            found.map(|word| (*word).to_owned()).ok_or_else(|| format!("{} is none of {}", shown(), words.join(", ")))
        }
        Kind::Number(least, most) => match text.parse::<u64>() {
            Ok(number) if (least..=most).contains(&number) => Ok(number.to_string()),
            Ok(_) => Err(format!("{} is out of range, {least} to {most}", shown())),
            Err(_) => Err(format!("{} is no whole number from {least} to {most}", shown())),
        },
        Kind::Duration(least) => match duration::parse(text) {
            Ok(value) if value < least => Err(format!("{} is shorter than {} ms", shown(), least.as_millis())),
            Ok(_) => Ok(text.to_owned()),
            Err(error) => Err(format!("{} is no duration: {error}", shown())),
        },
        Kind::Labels => list(text, 64, |item| match item.split('=').collect::<Vec<_>>()[..] {
            [key] | [key, _] if !key.trim().is_empty() => Ok(item.to_owned()),
            _ => Err(format!("{} is neither key nor key=value", shorten(item))),
        })
        // As the flag takes it.
        .map(|text| text.replace(", ", ",")),
        // Names are checked by the network's own rule, with the index of the one that is wrong.
        Kind::Hosts(most) => list(text, most, |item| Ok(item.to_owned())),
        Kind::Addresses(most) => list(text, most, |item| match item.parse::<IpAddr>() {
            Ok(address) => Ok(address.to_string()),
            Err(_) => Err(format!("{} is no IP address", shorten(item))),
        }),
        Kind::Ipv4 => text
            .parse::<Ipv4Addr>()
            .map(|address| address.to_string())
            .map_err(|_| format!("{} is no IPv4 address", shown())),
        Kind::Prefix => text.parse::<Prefix>().map(|prefix| prefix.to_string()).map_err(|error| error.to_string()),
        Kind::Port => Match::try_from(text.to_owned()).map(String::from).map_err(|error| format!("{error}, or any")),
        Kind::Macs(most) => list(text, most, |item| match item.parse::<Mac>() {
            Ok(mac) => Ok(mac.to_string()),
            Err(error) => Err(error.to_string()),
        }),
        Kind::Key => key(text),
        Kind::Code => access::normal(text)
            .ok_or_else(|| format!("is no code of {} to {} letters and digits", access::LEAST, access::MOST)),
    }
}

/// The normal form of every item, joined by a comma and a space.
fn list(text: &str, most: usize, normal: impl Fn(&str) -> Result<String, String>) -> Result<String, String> {
    if text.len() > MOST_OF_LIST {
        return Err(format!("has more than {MOST_OF_LIST} octets"));
    }
    if text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r')) {
        return Err("has a control character".to_owned());
    }
    let count = items(text).count();
    if count > most {
        return Err(format!("{count} items, at most {most}"));
    }
    let all: Result<Vec<_>, _> = items(text).map(normal).collect();
    Ok(all?.join(", "))
}

/// The form of Omni's key alone, base64 of JSON with a name and a key: the provider looks into it. White space is taken
/// out, as people paste it with line ends.
fn key(text: &str) -> Result<String, String> {
    #[derive(serde::Deserialize)]
    #[allow(dead_code, reason = "that they are there is what is asked")]
    struct Envelope<'a> {
        #[serde(borrow)]
        name: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        pgp_key: std::borrow::Cow<'a, str>,
    }
    let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    if compact.len() > MOST_OF_KEY {
        return Err(format!("has more than {MOST_OF_KEY} octets"));
    }
    if compact.contains('=') && compact.starts_with("OMNI_SERVICE_ACCOUNT_KEY") {
        return Err("begins with the variable's name; paste what is behind the first =".to_owned());
    }
    let padless = compact.trim_end_matches('=');
    let octets = base64::engine::general_purpose::STANDARD_NO_PAD.decode(padless);
    let octets = octets.map_err(|_| "is no base64; paste all of it".to_owned())?;
    let octets = zeroize::Zeroizing::new(octets);
    match serde_json::from_slice::<Envelope<'_>>(&octets) {
        Ok(_) => Ok(compact),
        Err(_) => Err("is base64, but no service account key; paste all of it".to_owned()),
    }
}

fn is_label(text: &str) -> bool {
    let inner = |octet: u8| octet.is_ascii_lowercase() || octet.is_ascii_digit() || octet == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// What people see of a text that is wrong: quoted, and not too much of it.
fn shorten(text: &str) -> String {
    let mut short: String = text.chars().take(40).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}
