//! From what was received to drafts: what a sender says of itself, and what the kernel says of it.

use super::entry::{Draft, Source};
use crate::supervise::services::SERVICES;
use crate::wire::journal::kmsg::Record;
use crate::wire::journal::native::Field;
use crate::wire::journal::{DEFAULT_PRIORITY, stream, syslog};

/// Most octets of an identifier.
const MAX_IDENTIFIER: usize = 64;
/// What init's lines in the kernel's log begin with.
const INIT: &str = "pilotlight-init";

/// Who sent it, by the kernel's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its process.
    pub pid: u32,
    /// The process' name, when it was still there to be looked at.
    pub comm: Option<String>,
}

/// The name under which the user's lines are kept.
pub fn service(uid: u32) -> String {
    match SERVICES.iter().find(|service| service.uid == uid) {
        Some(service) => service.name.to_owned(),
        None if uid == 0 => "init".to_owned(),
        None if uid == super::UID => "journal".to_owned(),
        None => format!("uid {uid}"),
    }
}

/// An entry of the native protocol; `None` without a message. Of several fields of one name the first counts.
pub fn native(fields: &[Field<'_>], peer: &Peer) -> Option<Draft> {
    let first = |name: &str| fields.iter().find(|field| field.name == name).map(|field| field.value);
    let message = text(first("MESSAGE")?);
    let priority = match first("PRIORITY") {
        Some([digit @ b'0'..=b'7']) => digit - b'0',
        _ => DEFAULT_PRIORITY,
    };
    let identifier = first("SYSLOG_IDENTIFIER").map(text);
    let kept = |field: &&Field<'_>| !matches!(field.name, "MESSAGE" | "PRIORITY" | "SYSLOG_IDENTIFIER");
    let fields = fields.iter().filter(kept).map(|field| (field.name.to_owned(), field.value.to_vec())).collect();
    Some(draft(Source::Native, priority, peer, identifier, message, fields))
}

/// A datagram of syslog(3); `None` when it is empty.
pub fn syslog(message: &syslog::Message<'_>, peer: &Peer) -> Option<Draft> {
    if message.text.is_empty() {
        return None;
    }
    let fields = vec![("SYSLOG_FACILITY".to_owned(), message.facility.to_string().into_bytes())];
    let identifier = message.tag.map(str::to_owned);
    Some(draft(Source::Syslog, message.priority, peer, identifier, text(message.text), fields))
}

/// A line of a stream.
pub fn stream(line: &stream::Line, peer: &Peer) -> Draft {
    draft(Source::Stream, line.priority, peer, Some(line.identifier.clone()), text(&line.text), vec![])
}

/// A record of the kernel's log. What is not the kernel's own was written by root: init says who it is.
pub fn kernel(record: &Record) -> Draft {
    let message = text(&record.text);
    let (service, identifier, message) = match message.split_once(": ") {
        _ if record.facility == 0 => ("kernel", "kernel".to_owned(), message),
        Some((INIT, rest)) => ("init", INIT.to_owned(), rest.to_owned()),
        _ => ("init", "kmsg".to_owned(), message),
    };
    let fields = vec![("_SOURCE_MONOTONIC_TIMESTAMP".to_owned(), record.uptime_micros.to_string().into_bytes())];
    let priority = record.priority;
    let service = service.to_owned();
    Draft { source: Source::Kernel, priority, service, uid: 0, pid: 0, identifier, message, fields }
}

fn draft(
    source: Source,
    priority: u8,
    peer: &Peer,
    identifier: Option<String>,
    message: String,
    fields: Vec<(String, Vec<u8>)>,
) -> Draft {
    let identifier = identifier.filter(|name| !name.is_empty()).or_else(|| peer.comm.clone()).unwrap_or_default();
    let identifier: String = identifier.chars().filter(|c| !c.is_control()).collect();
    let identifier = identifier[..identifier.floor_char_boundary(MAX_IDENTIFIER)].to_owned();
    let (uid, pid) = (peer.uid, peer.pid);
    Draft { source, priority, service: service(uid), uid, pid, identifier, message, fields }
}

fn text(octets: &[u8]) -> String {
    String::from_utf8_lossy(octets).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::journal::{kmsg, native as wire};

    fn peer(uid: u32) -> Peer {
        Peer { uid, pid: 12, comm: Some("comm".into()) }
    }

    #[test]
    fn the_kernel_says_who_a_sender_is_and_not_the_sender() {
        for (uid, name) in [(907, "web"), (0, "init"), (908, "journal"), (1000, "uid 1000")] {
            assert_eq!(service(uid), name);
        }
        let message = wire::decode(b"SYSLOG_IDENTIFIER=init\nPRIORITY=3\nMESSAGE=I am init\nCODE_LINE=7\n");
        let draft = native(&message.entries[0], &peer(907)).unwrap();
        assert_eq!((draft.service.as_str(), draft.identifier.as_str(), draft.priority), ("web", "init", 3));
        assert_eq!(draft.fields, [("CODE_LINE".to_owned(), b"7".to_vec())]);
    }

    #[test]
    fn a_sender_without_a_name_has_that_of_its_process() {
        let message = wire::decode(b"MESSAGE=\xff\nPRIORITY=8\n\nPRIORITY=3\n");
        let draft = native(&message.entries[0], &peer(1)).unwrap();
        assert_eq!((draft.identifier.as_str(), draft.message.as_str(), draft.priority), ("comm", "\u{fffd}", 6));
        assert_eq!(native(&message.entries[1], &peer(1)), None);
    }

    #[test]
    fn only_records_of_facility_0_are_the_kernels() {
        let draft = |record: &[u8]| {
            let draft = kernel(&kmsg::decode(record).unwrap());
            (draft.service, draft.identifier, draft.message)
        };
        let owned = |service: &str, identifier: &str, message: &str| {
            (service.to_owned(), identifier.to_owned(), message.to_owned())
        };
        assert_eq!(draft(b"4,1,2,-;pilotlight-init: usb"), owned("kernel", "kernel", "pilotlight-init: usb"));
        assert_eq!(draft(b"12,1,2,-;pilotlight-init: web: runs"), owned("init", INIT, "web: runs"));
        assert_eq!(draft(b"12,1,2,-;other: text"), owned("init", "kmsg", "other: text"));
    }
}
