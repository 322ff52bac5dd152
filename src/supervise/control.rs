//! What others ask of PID 1, and its answers: one datagram each, on `/run/pilotlight/init.sock`.
//!
//! A datagram is the version, one octet, and the value in postcard's encoding. Both sides come from one build; a foreign
//! version is refused instead of misread.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cmdline::Slot;
use super::install::Installation;
use super::memory::Memory;
use super::services;
use crate::slots;

/// The socket's path.
pub const SOCKET: &str = "/run/pilotlight/init.sock";
/// Most octets of a request.
pub const MAX_REQUEST: usize = 64;
/// Most octets of an answer.
pub const MAX_REPLY: usize = 32 * 1024;
const VERSION: u8 = 1;

/// What is asked. A wish about the slots is answered when it is on the medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// How the box and its services are.
    Status,
    /// Start the box anew.
    Reboot,
    /// Switch the box off.
    PowerOff,
    /// Start the box anew and forget everything on the way.
    FactoryReset,
    /// Boot recovery next, once. Does not end the run.
    Recovery,
    /// Boot recovery next no more.
    Normal,
    /// This slot is about to be overwritten: what it holds is on trial no more.
    Withdraw(slots::Slot),
    /// This slot was written, read back and found right: it is on trial from the next boot. Does not end the run.
    Try {
        /// Which; never the one that runs or is committed.
        slot: slots::Slot,
        /// What it holds now.
        version: slots::Version,
        /// Whether a person asked for it although it is older than what runs or failed its trial here.
        asked: bool,
    },
    /// Trust this slot: no record tells which one is good.
    Choose(slots::Slot),
    /// Start these services anew: what they are told when they start has changed.
    Restart(Services),
    /// Look which disks are there besides the one that the box runs from; [`Status::installation`] has them then.
    Survey,
    /// Copy the system that runs to this disk, of which everything is lost. Accepted once it begins;
    /// [`Status::installation`] says how it goes.
    Install {
        /// The disk, by a name that [`Request::Survey`] found.
        name: String,
        /// How large it is: names move on when disks come and go.
        octets: u64,
    },
}

/// Some services of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Services(u32);

impl Services {
    /// Those of these names; others are left out.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let bit = |name| services::SERVICES.iter().position(|service| service.name == name).map_or(0, |at| 1 << at);
        Self(names.into_iter().map(bit).fold(0, std::ops::BitOr::bitor))
    }

    /// Their names, in the table's order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = services::SERVICES.iter().enumerate();
        all.filter(move |(at, _)| self.0 >> at & 1 == 1).map(|(_, service)| service.name)
    }
}

const _: () = assert!(services::SERVICES.len() <= 32, "a bit each");

/// What is answered.
#[allow(clippy::large_enum_variant, reason = "one at a time, on its way into or out of octets")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Status),
    /// It is being done.
    Accepted,
    /// This user may not ask that.
    Denied,
    /// It can't be done, and why.
    Failed(String),
    /// It is done, and on the medium.
    Done,
    /// The rules or the medium do not allow it, and why; nothing has changed.
    Refused(String),
}

/// The box, as PID 1 sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Seconds since the kernel started.
    pub uptime: u64,
    /// What was booted, as the boot loader said.
    pub slot: Slot,
    /// How the run before ended, in words.
    pub previous: String,
    /// Runs in a row that ended by themselves, and how many may.
    pub in_a_row: (u8, u8),
    /// Seconds of the hardware watchdog; `None` when there is none.
    pub watchdog: Option<u32>,
    /// What could not be set up as it should be, in words.
    pub faults: Vec<String>,
    /// Every service, in the table's order.
    pub services: Vec<ServiceStatus>,
    /// Whether this is recovery: the box does nothing for its machines.
    pub recovery: bool,
    /// What the slot records say; `None` where there are none, or nobody has read them yet.
    pub records: Option<SlotRecords>,
    /// Disks that the system may be copied to, and how that goes.
    pub installation: Installation,
    /// The machine's memory; `None` where the kernel does not say.
    pub memory: Option<Memory>,
}

/// What the slot records say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRecords {
    /// The slot that proved itself.
    pub committed: slots::Slot,
    /// The slot that is on trial, now or from the next boot.
    pub pending: Option<slots::Slot>,
    /// What slots A and B hold, as far as is known.
    pub versions: [Option<slots::Version>; 2],
    /// Versions that failed their trial, oldest first.
    pub failed: Vec<slots::Version>,
    /// Whether recovery is booted next.
    pub want_recovery: bool,
    /// How the trial of what runs stands, in words; empty when it has nothing to prove.
    pub trial: String,
}

/// A service, as PID 1 sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceStatus {
    /// Its name.
    pub name: String,
    /// Its process, while it runs.
    pub pid: Option<i32>,
    /// Whether it does its work.
    pub ready: bool,
    /// Whether it fails so often that it counts as broken.
    pub degraded: bool,
    /// Seconds since its process was started.
    pub uptime: u64,
    /// How often it was started again.
    pub restarts: u32,
    /// How its last process ended, in words; empty when none has.
    pub last_exit: String,
    /// What it said last of how it is, perhaps before it ended.
    pub says: String,
    /// Octets of memory that its control group holds, page cache included; `None` where there is no such group.
    pub memory: Option<u64>,
    /// As many of them as its processes have made of their own.
    pub anonymous: Option<u64>,
}

/// Octets that are no request or answer of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it speaks another version")]
pub struct Foreign;

/// The octets of a request or an answer.
pub fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).unwrap_or_default()
}

/// What `octets` say.
///
/// # Errors
///
/// [`Foreign`].
pub fn decode<T: DeserializeOwned>(octets: &[u8]) -> Result<T, Foreign> {
    match octets.split_first() {
        Some((&VERSION, body)) => match postcard::take_from_bytes(body) {
            Ok((value, [])) => Ok(value),
            Ok(_) | Err(_) => Err(Foreign),
        },
        Some(_) | None => Err(Foreign),
    }
}

/// Whether the user `uid` may ask `request`: root all, services what their duty is, strangers nothing.
pub fn may(uid: u32, request: &Request) -> bool {
    let service = services::SERVICES.iter().find(|service| service.uid == uid);
    uid == 0 || service.is_some_and(|service| is_duty(service.name, request))
}

/// Every service may see how things are. The page and the console ask for what a person wants; who writes slots says what
/// they hold, and no other may.
fn is_duty(service: &str, request: &Request) -> bool {
    match request {
        Request::Status => true,
        Request::Reboot => matches!(service, "web" | "console" | "update"),
        Request::PowerOff
        | Request::FactoryReset
        | Request::Recovery
        | Request::Normal
        | Request::Choose(_)
        | Request::Survey
        | Request::Install { .. } => matches!(service, "web" | "console"),
        Request::Withdraw(_) | Request::Try { .. } => service == "update",
        Request::Restart(_) => service == "settings",
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> [Request; 12] {
        let longest = slots::Version::parse(&format!("1.2.3-{}", "x".repeat(34))).unwrap();
        [
            Request::Status,
            Request::Reboot,
            Request::PowerOff,
            Request::FactoryReset,
            Request::Recovery,
            Request::Normal,
            Request::Withdraw(slots::Slot::A),
            Request::Try { slot: slots::Slot::B, version: longest, asked: true },
            Request::Choose(slots::Slot::B),
            Request::Restart(Services(u32::MAX)),
            Request::Survey,
            Request::Install { name: "x".repeat(31), octets: u64::MAX },
        ]
    }

    #[test]
    fn who_may_ask_what() {
        for request in all() {
            let of_slots = matches!(request, Request::Withdraw(_) | Request::Try { .. });
            assert!(may(0, &request));
            let restart = matches!(request, Request::Restart(_));
            assert_eq!(may(910, &request), restart || request == Request::Status, "{request:?}");
            if restart {
                assert!(!may(907, &request) && !may(905, &request));
                continue;
            }
            assert_eq!(may(907, &request), !of_slots, "{request:?}");
            assert_eq!(may(909, &request), !of_slots, "{request:?}");
            let of_updates = matches!(request, Request::Status | Request::Reboot);
            assert_eq!(is_duty("update", &request), of_slots || of_updates, "{request:?}");
            assert_eq!(may(905, &request), request == Request::Status);
            assert!(!may(1000, &request) && !may(services::SOCKETS_GID, &request));
        }
    }

    #[test]
    fn the_octets_of_a_request_are_frozen() {
        assert_eq!(encode(&Request::Status), [1, 0]);
        assert_eq!(encode(&Request::FactoryReset), [1, 3]);
        assert_eq!(decode::<Request>(&[2, 0]), Err(Foreign));
        assert_eq!(decode::<Request>(&[1, 0, 0]), Err(Foreign));
        let version = slots::Version::parse("1.2.3").unwrap();
        let tried = Request::Try { slot: slots::Slot::B, version, asked: false };
        assert_eq!(encode(&tried), [b"\x01\x07\x01\x05".as_slice(), b"1.2.3\0"].concat());
        assert_eq!(decode::<Request>(b"\x01\x07\x01\x031.2\0"), Err(Foreign), "no version");
        for request in all() {
            assert!(encode(&request).len() <= MAX_REQUEST);
            assert_eq!(decode::<Request>(&encode(&request)), Ok(request));
        }
    }

    #[test]
    fn services_are_told_by_name() {
        let some = Services::of(["web", "net", "none"]);
        assert_eq!(some.names().collect::<Vec<_>>(), ["net", "web"]);
        assert_eq!(Services::default().names().count(), 0);
    }

    proptest! {
        #[test]
        fn any_octets_are_a_value_or_foreign(octets in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (decode::<Request>(&octets), decode::<Reply>(&octets));
        }

        #[test]
        fn a_status_comes_back(previous in ".{0,50}", says in ".{0,50}", memory: Option<u64>, pid: Option<i32>) {
            let service = ServiceStatus { name: "web".into(), says, memory, pid, ..ServiceStatus::default() };
            let reply = Reply::Status(Status { previous, services: vec![service], ..Status::default() });
            prop_assert_eq!(decode::<Reply>(&encode(&reply)), Ok(reply));
        }
    }
}
