//! DNS messages as multicast DNS needs them: questions and address records (RFC 1035 section 4, RFC 6762 section 18).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The longest packet that is looked at (RFC 6762 section 17).
pub const MOST_OCTETS: usize = 9000;
/// Most questions and records of one message that are looked at; the rest is as if it were not there.
const MOST_ENTRIES: usize = 128;
/// Longest name, in octets on the wire (RFC 1035 section 2.3.4).
const MOST_NAME: usize = 255;

/// Record types.
pub const A: u16 = 1;
/// A name for a name.
pub const PTR: u16 = 12;
/// IPv6 addresses.
pub const AAAA: u16 = 28;
/// Any type, in questions.
pub const ANY: u16 = 255;
/// The Internet class.
const IN: u16 = 1;
/// Any class, in questions.
const ANY_CLASS: u16 = 255;
/// In a question: answer me alone. In a record: this is all there is, forget others.
const TOP_BIT: u16 = 0x8000;
/// Flags of an answer: response, authoritative.
const ANSWER: u16 = 0x8400;

/// A name: labels in lower case, without the root.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Name(Vec<Vec<u8>>);

impl Name {
    /// `pilotlight-abcdef` as a name of this link.
    pub fn local(host: &str) -> Self {
        Self([host.to_ascii_lowercase().as_str(), "local"].map(|label| label.as_bytes().to_vec()).into())
    }

    /// The name that an address is looked up by.
    pub fn reverse(address: IpAddr) -> Self {
        let (mut labels, tail): (Vec<String>, _) = match address {
            IpAddr::V4(v4) => (v4.octets().iter().rev().map(u8::to_string).collect(), "in-addr"),
            IpAddr::V6(v6) => {
                let nibbles = v6.octets().into_iter().rev().flat_map(|octet| [octet & 15, octet >> 4]);
                (nibbles.map(|nibble| format!("{nibble:x}")).collect(), "ip6")
            }
        };
        labels.extend([tail.to_owned(), "arpa".to_owned()]);
        Self(labels.into_iter().map(String::into_bytes).collect())
    }

    fn put(&self, octets: &mut Vec<u8>) {
        for label in &self.0 {
            octets.push(label.len() as u8);
            octets.extend_from_slice(label);
        }
        octets.push(0);
    }
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// About what.
    pub name: Name,
    /// Which type, or [`ANY`].
    pub kind: u16,
    /// Whether the answer shall go to the asker alone.
    pub unicast: bool,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Data {
    /// An address.
    Address(IpAddr),
    /// A name.
    Pointer(Name),
    /// Something else, of that type.
    Other(u16),
}

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// About what.
    pub name: Name,
    /// What it says.
    pub data: Data,
    /// For how many seconds.
    pub ttl: u32,
}

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// Zero, except where an ordinary resolver asks.
    pub id: u16,
    /// Whether it answers.
    pub response: bool,
    /// What is asked.
    pub questions: Vec<Question>,
    /// Answers; in a question those that the asker knows.
    pub answers: Vec<Record>,
    /// In a probe: what the prober wants to claim.
    pub claims: Vec<Record>,
}

struct Reader<'a> {
    octets: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn u8(&mut self) -> Option<u8> {
        let octet = *self.octets.get(self.at)?;
        self.at += 1;
        Some(octet)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from(self.u8()?) << 8 | u16::from(self.u8()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from(self.u16()?) << 16 | u32::from(self.u16()?))
    }

    /// A name. Each pointer must lead to before the part that it stands in, so that there is no loop.
    fn name(&mut self) -> Option<Name> {
        let (mut labels, mut len) = (Vec::new(), 0);
        let (mut at, mut bound, mut after) = (self.at, self.at, None);
        loop {
            let head = *self.octets.get(at)?;
            match head {
                0 => {
                    self.at = after.unwrap_or(at + 1);
                    return Some(Name(labels));
                }
                1..=63 => {
                    let label = self.octets.get(at + 1..at + 1 + usize::from(head))?;
                    len += label.len() + 1;
                    if len >= MOST_NAME {
                        return None;
                    }
                    labels.push(label.to_ascii_lowercase());
                    at += 1 + usize::from(head);
                }
                192.. => {
                    let low = *self.octets.get(at + 1)?;
                    let target = usize::from(head & 63) << 8 | usize::from(low);
                    after = after.or(Some(at + 2));
                    if target >= bound {
                        return None;
                    }
                    (at, bound) = (target, target);
                }
                _ => return None,
            }
        }
    }

    fn question(&mut self) -> Option<Option<Question>> {
        let (name, kind, class) = (self.name()?, self.u16()?, self.u16()?);
        let ours = matches!(class & !TOP_BIT, IN | ANY_CLASS);
        Some(ours.then_some(Question { name, kind, unicast: class & TOP_BIT != 0 }))
    }

    fn record(&mut self) -> Option<Option<Record>> {
        let (name, kind, class, ttl, len) = (self.name()?, self.u16()?, self.u16()?, self.u32()?, self.u16()?);
        let start = self.at;
        let end = start + usize::from(len);
        let data = self.octets.get(start..end)?;
        let data = match kind {
            A => <[u8; 4]>::try_from(data).ok().map(|octets| Data::Address(Ipv4Addr::from(octets).into())),
            AAAA => <[u8; 16]>::try_from(data).ok().map(|octets| Data::Address(Ipv6Addr::from(octets).into())),
            PTR => self.name().map(Data::Pointer),
            other => Some(Data::Other(other)),
        };
        self.at = end;
        Some(data.filter(|_| class & !TOP_BIT == IN).map(|data| Record { name, data, ttl }))
    }
}

impl Message {
    /// Reads a packet as far as it is well-formed; `None` when it is no message of questions or answers.
    ///
    /// Never panics; allocates in proportion to the packet.
    pub fn decode(octets: &[u8]) -> Option<Self> {
        if octets.len() > MOST_OCTETS {
            return None;
        }
        let mut reader = Reader { octets, at: 0 };
        let (id, flags) = (reader.u16()?, reader.u16()?);
        // An opcode or an error that this protocol does not have (RFC 6762 section 18).
        if flags & 0x7800 != 0 || flags & 0x000f != 0 {
            return None;
        }
        let counts = [reader.u16()?, reader.u16()?, reader.u16()?].map(usize::from);
        // How many additional records there are, which are not read.
        reader.u16()?;
        let mut message = Self { id, response: flags & 0x8000 != 0, ..Self::default() };
        if counts.iter().sum::<usize>() > MOST_ENTRIES {
            return None;
        }
        for _ in 0..counts[0] {
            message.questions.extend(reader.question()?);
        }
        for _ in 0..counts[1] {
            message.answers.extend(reader.record()?);
        }
        for _ in 0..counts[2] {
            message.claims.extend(reader.record()?);
        }
        Some(message)
    }

    /// The message's octets, without compression. Records are marked as all there is, except towards ordinary resolvers
    /// (`id` not zero).
    pub fn encode(&self) -> Vec<u8> {
        let mut octets = Vec::with_capacity(512);
        let flags = if self.response { ANSWER } else { 0 };
        let counts = [self.questions.len(), self.answers.len(), self.claims.len(), 0].map(|count| count as u16);
        for word in [self.id, flags].into_iter().chain(counts) {
            octets.extend_from_slice(&word.to_be_bytes());
        }
        for question in &self.questions {
            question.name.put(&mut octets);
            let class = if question.unicast { IN | TOP_BIT } else { IN };
            octets.extend_from_slice(&question.kind.to_be_bytes());
            octets.extend_from_slice(&class.to_be_bytes());
        }
        let flush = if self.id == 0 { TOP_BIT } else { 0 };
        for record in &self.answers {
            record.put(IN | flush, &mut octets);
        }
        // What is only claimed is not yet all there is.
        for record in &self.claims {
            record.put(IN, &mut octets);
        }
        octets
    }
}

impl Record {
    /// Its type.
    pub const fn kind(&self) -> u16 {
        match &self.data {
            Data::Address(IpAddr::V4(_)) => A,
            Data::Address(IpAddr::V6(_)) => AAAA,
            Data::Pointer(_) => PTR,
            Data::Other(kind) => *kind,
        }
    }

    /// Its data's octets, for the order in which probes win (RFC 6762 section 8.2).
    pub fn data_octets(&self) -> Vec<u8> {
        match &self.data {
            Data::Address(IpAddr::V4(address)) => address.octets().to_vec(),
            Data::Address(IpAddr::V6(address)) => address.octets().to_vec(),
            Data::Pointer(name) => {
                let mut octets = Vec::new();
                name.put(&mut octets);
                octets
            }
            Data::Other(_) => Vec::new(),
        }
    }

    fn put(&self, class: u16, octets: &mut Vec<u8>) {
        self.name.put(octets);
        octets.extend_from_slice(&self.kind().to_be_bytes());
        octets.extend_from_slice(&class.to_be_bytes());
        octets.extend_from_slice(&self.ttl.to_be_bytes());
        let data = self.data_octets();
        octets.extend_from_slice(&(data.len() as u16).to_be_bytes());
        octets.extend_from_slice(&data);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> Message {
        let name = Name::local("Pilotlight-ABCDEF");
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let six: IpAddr = "fe80::1".parse().unwrap();
        let record = |name: &Name, data| Record { name: name.clone(), data, ttl: 120 };
        Message {
            id: 0,
            response: true,
            questions: vec![Question { name: name.clone(), kind: ANY, unicast: true }],
            answers: vec![
                record(&name, Data::Address(address)),
                record(&name, Data::Address(six)),
                record(&Name::reverse(six), Data::Pointer(name.clone())),
            ],
            claims: vec![record(&name, Data::Address(address))],
        }
    }

    #[test]
    fn a_message_survives_the_wire() {
        assert_eq!(Message::decode(&message().encode()), Some(message()));
    }

    #[test]
    fn reverse_names_are_those_of_the_rfcs() {
        let labels = |address: &str| {
            let Name(labels) = Name::reverse(address.parse().unwrap());
            labels.iter().map(|label| String::from_utf8(label.clone()).unwrap()).collect::<Vec<_>>().join(".")
        };
        assert_eq!(labels("192.0.2.1"), "1.2.0.192.in-addr.arpa");
        let six = labels("fe80::1");
        assert!(six.starts_with("1.0.0.0.") && six.ends_with(".0.8.e.f.ip6.arpa") && six.len() == 72, "{six}");
    }

    #[test]
    fn compressed_names_are_read_and_loops_are_not() {
        let header = [0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0];
        let first = [1, b'a', 5, b'L', b'o', b'c', b'a', b'l', 0, 0, 1, 0, 1];
        let second = [1, b'b', 0xc0, 14, 0, 28, 0x80, 1];
        let message = Message::decode(&[&header[..], &first, &second].concat()).unwrap();
        assert_eq!(message.questions[0], Question { name: Name::local("a"), kind: A, unicast: false });
        assert_eq!(message.questions[1], Question { name: Name::local("b"), kind: AAAA, unicast: true });
        for target in [25, 26, 200] {
            let looped = [1, b'b', 0xc0, target, 0, 28, 0x80, 1];
            assert_eq!(Message::decode(&[&header[..], &first, &looped].concat()), None, "{target}");
        }
    }

    proptest! {
        #[test]
        fn any_octets_are_a_message_or_none(
            octets in proptest::collection::vec(any::<u8>(), 0..300),
            changes in proptest::collection::vec((0_usize..250, any::<u8>()), 0..8),
        ) {
            let _ = Message::decode(&octets);
            let mut mutated = message().encode();
            for (at, value) in changes {
                if let Some(octet) = mutated.get_mut(at) {
                    *octet = value;
                }
            }
            if let Some(decoded) = Message::decode(&mutated) {
                let _ = decoded.encode();
            }
        }
    }
}
