//! What happens to PID 1, and what it does about it: the supervisor's words.

use std::fmt;
use std::time::Duration;

use super::budget::{Previous, Record};
use super::control::Reply;
use super::mounts::{Directory, Mount};
use super::notify::Notice;
use super::services::Service;
use super::slots::Wish;
use super::sysctl::Sysctl;
use crate::slots::health::{Limits, Missing};
use crate::slots::{Booted, Commit, Records, Slot, Try};

/// How the box's run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It starts anew.
    Reboot,
    /// It goes dark.
    PowerOff,
    /// It stops and stays powered.
    Halt,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reboot => "reboot",
            Self::PowerOff => "power-off",
            Self::Halt => "halt",
        })
    }
}

/// Why the box's run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// PID 1 was sent a signal: Ctrl-Alt-Del, a power button's program, the host of a container.
    Signal,
    /// This user asked over the control socket.
    Asked(u32),
    /// A critical service can't be brought back.
    Critical(&'static str),
    /// It can't be brought back and the reboots are spent: into recovery.
    Spent(&'static str),
    /// The system on trial failed it: into the committed slot.
    Trial(Missing),
}

impl Why {
    /// Whether nobody asked for it.
    pub const fn is_automatic(self) -> bool {
        matches!(self, Self::Critical(_) | Self::Spent(_) | Self::Trial(_))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Signal => f.write_str("asked by a signal"),
            Self::Asked(uid) => write!(f, "asked by user {uid}"),
            Self::Critical(service) => write!(f, "{service} can't be brought back"),
            Self::Spent(service) => {
                write!(f, "{service} can't be brought back and the reboots are spent: into recovery")
            }
            Self::Trial(missing) => write!(f, "the update failed its trial: {missing}"),
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// Killed since its control group had used all its memory.
    OutOfMemory,
    /// It does not end, even by SIGKILL; it was left behind.
    Never,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "code {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
            Self::OutOfMemory => f.write_str("lack of memory"),
            Self::Never => f.write_str("nothing; it was left behind"),
        }
    }
}

/// What PID 1 is the first process of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The machine.
    Machine,
    /// A PID namespace: the kernel's settings and the hardware belong to others.
    Container,
}

/// What happened. `jitter` is any random octet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// PID 1 begins.
    Boot,
    /// Where it is and what it is told, found out because of [`Action::Orient`].
    Oriented {
        /// What it is the first process of.
        place: Place,
        /// How long a service may be silent, if not as long as the table says.
        watchdog: Option<Duration>,
        /// What GRUB says that it booted; nothing where it did not start this.
        booted: Option<Booted>,
        /// How long the trial of a slot takes.
        trial: Limits,
    },
    /// The process of [`Action::Prepare`] runs, or could not be started.
    Preparing(Option<i32>),
    /// What is known of the run before, read because of [`Action::Recall`].
    Recalled(Previous),
    /// A service runs.
    Started {
        /// Which.
        service: &'static str,
        /// Its process.
        pid: i32,
    },
    /// A service could not be started.
    SpawnFailed {
        /// Which.
        service: &'static str,
        /// Spreads the next attempt.
        jitter: u8,
    },
    /// A service's main process says something.
    Noticed {
        /// Its process.
        pid: i32,
        /// What.
        notice: Notice,
    },
    /// A process ended and was reaped.
    ChildExited {
        /// Which.
        pid: i32,
        /// How.
        exit: Exit,
        /// Spreads the next attempt.
        jitter: u8,
    },
    /// PID 1 has no children any more.
    ChildrenGone,
    /// The slot records, read because of [`Action::ReadSlots`], or why they can't be.
    SlotsRead(Result<Box<Records>, String>),
    /// [`Action::WriteSlots`] has ended.
    SlotsWritten {
        /// Why it failed, if it did: what stood then stands.
        outcome: Result<(), String>,
        /// What is there now, if anybody knows.
        records: Option<Box<Records>>,
    },
    /// Someone who may wants something of the slots; answered by [`Action::Answer`].
    Wished {
        /// Names the question.
        ticket: u64,
        /// Who asks.
        uid: u32,
        /// What for.
        wish: Wish,
    },
    /// PID 1 was woken much later than it had asked for: all of the machine may have stood still, for so long.
    StoodStill(Duration),
    /// [`Supervisor::deadline`](super::Supervisor::deadline) has come.
    Deadline,
    /// Someone who may asks for the end.
    TerminationRequested(Ending, Why),
    /// Someone who may wants this service started anew: what it is told when it starts has changed.
    RestartRequested(&'static str),
}

/// A signal to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It should end.
    Term,
    /// It hangs, and should die of it.
    Abort,
    /// It ends.
    Kill,
}

/// What to do, in order.
#[allow(clippy::large_enum_variant, reason = "a handful at a time, performed at once")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Mount, unless something is mounted there.
    Mount(Mount),
    /// Find out where this is, and report [`Event::Oriented`].
    Orient,
    /// Open the hardware watchdog, before anything that may take long.
    OpenWatchdog,
    /// Make a directory.
    MakeDirectory(Directory),
    /// Make a symbolic link, unless something has that name.
    Link {
        /// The link.
        path: &'static str,
        /// What it points to.
        target: &'static str,
    },
    /// Set a kernel parameter and read it back.
    Tune(Sysctl),
    /// Name the machine.
    Hostname(&'static str),
    /// Set the loopback interface up.
    LoopbackUp,
    /// Load modules and mount the data partition, in a process of its own, and report [`Event::Preparing`].
    Prepare,
    /// Make the tree of control groups that services are put into.
    MakeCgroups,
    /// Open the sockets on which services say how they are.
    ListenToServices,
    /// Read the slot records, elsewhere, and report [`Event::SlotsRead`].
    ReadSlots,
    /// Store these records, elsewhere, and report [`Event::SlotsWritten`]. The one before has been reported.
    WriteSlots {
        /// The commit record.
        commit: Option<Box<Commit>>,
        /// The try record.
        tries: Option<Try>,
    },
    /// Let who writes slots at the partition of this one.
    OpenSlot(Slot),
    /// And no more.
    CloseSlot(Slot),
    /// Answer a question.
    Answer {
        /// Which.
        ticket: u64,
        /// How.
        reply: Reply,
    },
    /// Read the record of the run before and report [`Event::Recalled`].
    Recall,
    /// Keep the record of this run.
    Remember(Record),
    /// Start a service and report [`Event::Started`] or [`Event::SpawnFailed`].
    Spawn(Service),
    /// Signal one process and all it started (its process group).
    Signal {
        /// Which.
        pid: i32,
        /// With what.
        signal: Signal,
    },
    /// Kill whatever still is in a service's control group.
    KillLeftovers(&'static str),
    /// Signal every process but PID 1.
    KillAll(Signal),
    /// Write out what the kernel still holds.
    Sync,
    /// Unmount, lazily when it is busy.
    Unmount(&'static str),
    /// The last one; it does not return.
    Reboot(Ending),
    /// Tell people.
    Report(Report),
}

/// What people should know of a decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// How the run before ended.
    Previous(Previous),
    /// A process ended that was left behind by another. For debugging only.
    Stray {
        /// Which.
        pid: i32,
        /// How it ended.
        exit: Exit,
    },
    /// A service's process runs.
    Running {
        /// Which.
        service: &'static str,
        /// Its process.
        pid: i32,
    },
    /// A service does its work.
    Ready {
        /// Which.
        service: &'static str,
        /// How long it took since its process was started.
        after: Duration,
    },
    /// A service takes long to do its work; those that depend on it are started without it.
    Slow {
        /// Which.
        service: &'static str,
    },
    /// The machine stood still for so long, and no service is blamed for its silence meanwhile.
    StoodStill(Duration),
    /// A service is silent for longer than its watchdog allows, and is killed.
    Hung {
        /// Which.
        service: &'static str,
        /// Its process.
        pid: i32,
    },
    /// A service ended or could not be started, and is started again.
    Restarting {
        /// Which.
        service: &'static str,
        /// How it ended; `None` when it could not be started.
        exit: Option<Exit>,
        /// After which pause.
        pause: Duration,
        /// Whether it fails so often that it counts as broken.
        degraded: bool,
    },
    /// A critical service can't be brought back, but the box stays up.
    StaysUp {
        /// Which.
        service: &'static str,
        /// Why no reboot is tried.
        refusal: super::budget::Refusal,
    },
    /// Recovery runs: the box does nothing for its machines.
    Recovery(crate::slots::Why),
    /// This boot lasted, and is not counted against the box.
    Acknowledged,
    /// The system that runs proved itself.
    Committed(Slot),
    /// The system that runs did not.
    GivesUp {
        /// Its slot.
        slot: Slot,
        /// What it lacks.
        missing: Missing,
    },
    /// The slot records can't be read, or not written.
    SlotFault(String),
    /// The end begins.
    Ending(Ending, Why),
    /// A service ended in the course of the shutdown.
    Stopped {
        /// Which.
        service: &'static str,
        /// How.
        exit: Exit,
    },
    /// Even SIGKILL does not end a service; it is left behind.
    Stuck {
        /// Which.
        service: &'static str,
        /// Its process.
        pid: i32,
    },
}
