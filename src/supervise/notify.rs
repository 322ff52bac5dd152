//! What a service tells PID 1: the datagrams of sd_notify(3), so that ordinary programs keep working.

use std::time::Duration;

use crate::time::Uptime;

/// Most octets of a datagram; what is longer is cut by the socket and does not count.
pub const MAX_DATAGRAM: usize = 4096;
/// Most characters of a status that are kept.
pub const MAX_STATUS: usize = 120;
/// Datagrams of one service that are read per second; a flood stays in the sender's socket, where it blocks its sender.
pub const PER_SECOND: u32 = 64;

/// One datagram, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notice {
    /// `READY=1`: it does its work.
    pub ready: bool,
    /// `WATCHDOG=1`: it is well.
    pub alive: bool,
    /// `WATCHDOG=trigger`: it knows that it is broken.
    pub broken: bool,
    /// `STOPPING=1`: it ends, and wants nothing.
    pub stopping: bool,
    /// `X_PILOTLIGHT_REACHES=1` or `=0`: whether it reaches what it is for, as the provider Omni. Names with `X_` are
    /// everybody's own.
    pub reaches: Option<bool>,
    /// `STATUS=`: a line for people, without control characters.
    pub status: Option<String>,
}

/// Reads a datagram: lines of `NAME=value`. Names that mean nothing here are passed over, as the protocol demands; so
/// are lines that are no UTF-8.
///
/// Source: sd_notify(3).
pub fn parse(datagram: &[u8]) -> Notice {
    let mut notice = Notice::default();
    for line in datagram.split(|octet| *octet == b'\n').filter_map(|line| std::str::from_utf8(line).ok()) {
        match line.split_once('=') {
            Some(("READY", "1")) => notice.ready = true,
            Some(("WATCHDOG", "1")) => notice.alive = true,
            Some(("WATCHDOG", "trigger")) => notice.broken = true,
            Some(("STOPPING", "1")) => notice.stopping = true,
            Some(("X_PILOTLIGHT_REACHES", "1")) => notice.reaches = Some(true),
            Some(("X_PILOTLIGHT_REACHES", "0")) => notice.reaches = Some(false),
            Some(("STATUS", text)) => {
                notice.status = Some(text.chars().filter(|c| !c.is_control()).take(MAX_STATUS).collect());
            }
            Some(_) | None => {}
        }
    }
    notice
}

/// How many more datagrams of a service are read within this second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    since: Uptime,
    used: u32,
}

impl Allowance {
    /// Whether one more is read at `now`.
    pub fn take(&mut self, now: Uptime) -> bool {
        if now.since(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, used: 0 };
        }
        self.used += 1;
        self.used <= PER_SECOND
    }

    /// From when on it is read again; `None` while it is.
    pub fn resumes(&self, now: Uptime) -> Option<Uptime> {
        let end = self.since + Duration::from_secs(1);
        (self.used >= PER_SECOND && now < end).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_that_mean_something_are_understood() {
        let notice = parse(b"READY=1\nSTATUS=port \x1b[1m67\nMAINPID=7\nWATCHDOG=1\n");
        let status = Some("port [1m67".to_owned());
        assert_eq!(notice, Notice { ready: true, alive: true, status, ..Notice::default() });
        assert!(parse(b"STOPPING=1").stopping && parse(b"WATCHDOG=trigger").broken);
        assert_eq!(parse(b"X_PILOTLIGHT_REACHES=1\nX_PILOTLIGHT_REACHES=0").reaches, Some(false));
        assert_eq!(parse(b"READY=0\nready=1\nX_READY=1\n\xff=1"), Notice::default());
    }

    #[test]
    fn a_flood_is_read_at_its_pace() {
        let mut allowance = Allowance::default();
        let now = Uptime::from_secs(10);
        assert_eq!((0..1000).filter(|_| allowance.take(now)).count(), PER_SECOND as usize);
        let resumes = allowance.resumes(now).unwrap();
        assert_eq!(resumes, Uptime::from_secs(11));
        assert!(allowance.take(resumes) && allowance.resumes(resumes).is_none());
    }

    proptest! {
        #[test]
        fn any_octets_are_a_bounded_notice(octets in proptest::collection::vec(any::<u8>(), 0..MAX_DATAGRAM)) {
            let notice = parse(&octets);
            let status = notice.status.unwrap_or_default();
            prop_assert!(status.chars().count() <= MAX_STATUS && !status.chars().any(char::is_control));
        }

        #[test]
        fn a_status_is_kept(text in "[ -~]{0,120}") {
            prop_assert_eq!(parse(format!("STATUS={text}").as_bytes()).status, Some(text));
        }
    }
}
