//! A certificate that signs itself, to octets (RFC 5280, in DER: ITU-T X.690). Nothing here reads one.

/// The object identifiers that are used, as their content octets.
mod oid {
    /// 1.2.840.10045.2.1
    pub const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    /// 1.2.840.10045.3.1.7
    pub const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    /// 1.2.840.10045.4.3.2
    pub const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
    /// 2.5.4.3
    pub const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    /// 2.5.29.15
    pub const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
    /// 2.5.29.17
    pub const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
    /// 2.5.29.19
    pub const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
    /// 2.5.29.37
    pub const EXT_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
    /// 1.3.6.1.5.5.7.3.1
    pub const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
}

mod tag {
    pub const BOOLEAN: u8 = 0x01;
    pub const INTEGER: u8 = 0x02;
    pub const BIT_STRING: u8 = 0x03;
    pub const OCTET_STRING: u8 = 0x04;
    pub const OID: u8 = 0x06;
    pub const UTF8_STRING: u8 = 0x0c;
    pub const UTC_TIME: u8 = 0x17;
    pub const GENERALIZED_TIME: u8 = 0x18;
    pub const SEQUENCE: u8 = 0x30;
    pub const SET: u8 = 0x31;
    /// `[0]` and `[3]` around a value, `[2]` in place of a tag.
    pub const VERSION: u8 = 0xa0;
    pub const EXTENSIONS: u8 = 0xa3;
    pub const DNS_NAME: u8 = 0x82;
}

/// Before any box was made: a box without a clock takes its own certificate for valid as well.
const NOT_BEFORE: &[u8] = b"250101000000Z";
/// "No well-defined expiration date" (RFC 5280, section 4.1.2.5).
const NOT_AFTER: &[u8] = b"99991231235959Z";

/// What is certified.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// Any octets, drawn at random.
    pub serial: [u8; 16],
    /// Its common name.
    pub name: &'a str,
    /// Names that it answers under, in ASCII.
    pub dns: &'a [String],
    /// Its public key: a point of P-256, not compressed, of 65 octets.
    pub key: &'a [u8],
}

/// The octets of a server's certificate. `sign` makes a signature by ECDSA with SHA-256, as an ASN.1 value.
///
/// # Errors
///
/// That of `sign`.
pub fn certificate<E>(subject: Subject<'_>, sign: impl FnOnce(&[u8]) -> Result<Vec<u8>, E>) -> Result<Vec<u8>, E> {
    let body = to_be_signed(subject);
    let signature = bits(&sign(&body)?);
    Ok(value(tag::SEQUENCE, &[body, algorithm(), signature].concat()))
}

fn to_be_signed(subject: Subject<'_>) -> Vec<u8> {
    let mut serial = subject.serial;
    // Positive, and no octet too many (X.690, section 8.3).
    serial[0] = serial[0] & 0x7f | 0x40;
    let common_name = [value(tag::OID, oid::COMMON_NAME), value(tag::UTF8_STRING, subject.name.as_bytes())].concat();
    let name = value(tag::SEQUENCE, &value(tag::SET, &value(tag::SEQUENCE, &common_name)));
    let validity = [value(tag::UTC_TIME, NOT_BEFORE), value(tag::GENERALIZED_TIME, NOT_AFTER)].concat();
    let of_key = [value(tag::OID, oid::EC_PUBLIC_KEY), value(tag::OID, oid::P256)].concat();
    let key = [value(tag::SEQUENCE, &of_key), bits(subject.key)].concat();
    let parts = [
        // Version 3 is 2.
        value(tag::VERSION, &value(tag::INTEGER, &[2])),
        value(tag::INTEGER, &serial),
        algorithm(),
        name.clone(),
        value(tag::SEQUENCE, &validity),
        name,
        value(tag::SEQUENCE, &key),
        value(tag::EXTENSIONS, &value(tag::SEQUENCE, &extensions(subject.dns))),
    ];
    value(tag::SEQUENCE, &parts.concat())
}

fn extensions(dns: &[String]) -> Vec<u8> {
    let names: Vec<u8> = dns.iter().flat_map(|name| value(tag::DNS_NAME, name.as_bytes())).collect();
    [
        // It certifies nobody else.
        extension(oid::BASIC_CONSTRAINTS, true, &value(tag::SEQUENCE, &[])),
        // digitalSignature is the first of eight bits.
        extension(oid::KEY_USAGE, true, &value(tag::BIT_STRING, &[7, 0x80])),
        extension(oid::EXT_KEY_USAGE, false, &value(tag::SEQUENCE, &value(tag::OID, oid::SERVER_AUTH))),
        extension(oid::SUBJECT_ALT_NAME, false, &value(tag::SEQUENCE, &names)),
    ]
    .concat()
}

fn extension(oid: &[u8], critical: bool, content: &[u8]) -> Vec<u8> {
    let critical = if critical { value(tag::BOOLEAN, &[0xff]) } else { Vec::new() };
    value(tag::SEQUENCE, &[value(tag::OID, oid), critical, value(tag::OCTET_STRING, content)].concat())
}

fn algorithm() -> Vec<u8> {
    value(tag::SEQUENCE, &value(tag::OID, oid::ECDSA_WITH_SHA256))
}

/// Whole octets of bits.
fn bits(octets: &[u8]) -> Vec<u8> {
    value(tag::BIT_STRING, &[&[0], octets].concat())
}

/// Tag, length, content (X.690, section 8.1).
fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|octet| **octet == 0).count()..];
    let mut octets = vec![tag];
    match content.len() {
        short @ 0..=127 => octets.push(short as u8),
        _ => {
            octets.push(0x80 | significant.len() as u8);
            octets.extend_from_slice(significant);
        }
    }
    octets.extend_from_slice(content);
    octets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The content of the value at the beginning, and what follows it.
    fn split(octets: &[u8]) -> (&[u8], &[u8]) {
        let (at, length) = match octets[1] {
            short @ 0..=127 => (2, usize::from(short)),
            long => {
                let count = usize::from(long & 0x7f);
                (2 + count, octets[2..2 + count].iter().fold(0, |sum, octet| sum << 8 | usize::from(*octet)))
            }
        };
        octets[at..].split_at(length)
    }

    #[test]
    fn lengths_are_as_short_as_they_can_be() {
        for (length, head) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (255, &[4, 0x81, 255]),
            (256, &[4, 0x82, 1, 0]),
            (70_000, &[4, 0x83, 1, 0x11, 0x70]),
        ] {
            let octets = value(tag::OCTET_STRING, &vec![7; length]);
            assert!(octets.starts_with(head) && octets.len() == head.len() + length, "{length}");
        }
    }

    proptest! {
        #[test]
        fn what_is_signed_is_the_first_part_of_what_is_made(
            serial: [u8; 16], name in ".{0,70}", dns in proptest::collection::vec("[a-z.-]{1,60}", 0..6)
        ) {
            let subject = Subject { serial, name: &name, dns: &dns, key: &[4; 65] };
            let mut signed = Vec::new();
            let made = certificate(subject, |octets| {
                signed = octets.to_vec();
                Ok::<_, ()>(vec![9; 70])
            })
            .unwrap();
            let (content, rest) = split(&made);
            prop_assert!(rest.is_empty() && content.starts_with(&signed));
            prop_assert!(content.ends_with(&[9; 70]));
        }
    }
}
