//! What is done about the data partition until it can be used: made, mounted, checked, made anew, or replaced by memory.

use std::fmt;

/// What the partition's first octets say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing: all its first octets are zero, or all are 0xff as of erased flash.
    Blank,
    /// A file system that does not know of errors.
    Clean,
    /// A file system that has noticed errors in itself.
    Faulty,
    /// Something else, such as a damaged file system.
    Unknown,
    /// The disk does not give it.
    Unreadable,
}

/// Octets of the beginning that [`Content::of`] looks at.
pub const LOOKED_AT: usize = 64 * 1024;

impl Content {
    /// Reads the first [`LOOKED_AT`] octets of a partition. The superblock of ext4 lies at 1024, its magic number at 56 in
    /// it and its state at 58 (Linux, Documentation/filesystems/ext4/super.rst).
    pub fn of(beginning: &[u8]) -> Self {
        let blank = |octet| beginning.iter().all(|other| *other == octet);
        if blank(0) || blank(0xff) {
            return Self::Blank;
        }
        match beginning.get(1024 + 56..1024 + 60) {
            Some([0x53, 0xef, state, _]) if state & 2 == 0 => Self::Clean,
            Some([0x53, 0xef, _, _]) => Self::Faulty,
            Some(_) | None => Self::Unknown,
        }
    }
}

/// Why a mount did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The file system is not as it should be.
    Damaged,
    /// Something else, such as a kernel without ext4 or a disk that fails: what is on it may be whole.
    Elsewhere,
}

/// How thoroughly a file system is checked (e2fsck(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Only what is safe to repair (`-p`).
    Safe,
    /// Whatever it takes (`-y`).
    Everything,
    /// The same, by one of the superblock's [`copies`].
    Copies,
}

/// Why a file system is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// There was none.
    FirstBoot,
    /// Someone asked for it.
    FactoryReset,
    /// That which was there can't be repaired: its data are lost.
    DataLost,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FirstBoot => "first boot",
            Self::FactoryReset => "factory reset",
            Self::DataLost => "damaged beyond repair: data lost",
        })
    }
}

/// Why the box runs from memory alone; what it learns is gone with the power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Degraded {
    /// The disk does not give what is on it.
    Unreadable,
    /// What is on it can't be erased, as was asked for.
    NotErased,
    /// No file system can be made.
    NotMade,
    /// It can't be mounted though it was made or checked, or for a reason that is not its own.
    NotMounted,
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unreadable => "the data partition can't be read",
            Self::NotErased => "the data partition can't be erased",
            Self::NotMade => "no file system can be made on the data partition",
            Self::NotMounted => "the data partition can't be mounted",
        })
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The partition was looked at.
    Looked {
        /// What is there.
        content: Content,
        /// Whether a factory reset was asked for.
        reset: bool,
    },
    /// The mount that was asked for succeeded, or did not.
    Mounted(Result<(), Refusal>),
    /// The check ended with this code (bit mask of e2fsck(8)), or could not run.
    Checked(Option<i32>),
    /// What was there is erased, or not.
    Erased(bool),
    /// A file system was made, or not.
    Made(bool),
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Overwrite what is there, the beginning first: what is begun is then seen as [`Content::Blank`], never as what was.
    Erase,
    /// Make a file system.
    Make(Cause),
    /// Mount it.
    Mount,
    /// Check it.
    Check(Check),
    /// It is mounted: let it fill its partition. The last one.
    Grow,
    /// Mount memory in its place and say so. The last one.
    UseMemory(Degraded),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Tried {
    #[default]
    Nothing,
    Safe,
    Everything,
    Again,
    Copies,
    AfterCopies,
    Made,
}

/// The way from a partition to a mounted file system. No remedy is tried without end.
#[derive(Clone, Debug, Default)]
pub struct Preparation {
    tried: Tried,
}

impl Preparation {
    /// Takes what happened, returns what to do.
    pub fn on(&mut self, event: Event) -> Action {
        match event {
            Event::Looked { reset: true, .. } => Action::Erase,
            Event::Erased(true) => self.make(Cause::FactoryReset),
            // It would be said to be gone, and is not.
            Event::Erased(false) => Action::UseMemory(Degraded::NotErased),
            Event::Looked { content: Content::Blank, .. } => self.make(Cause::FirstBoot),
            Event::Looked { content: Content::Unreadable, .. } => Action::UseMemory(Degraded::Unreadable),
            Event::Looked { content: Content::Faulty | Content::Unknown, .. } => self.check(Tried::Safe, Check::Safe),
            Event::Looked { content: Content::Clean, .. } => Action::Mount,
            Event::Mounted(Ok(())) => Action::Grow,
            // Nothing that is done to the file system helps, and making it anew would cost the data.
            Event::Mounted(Err(Refusal::Elsewhere)) => Action::UseMemory(Degraded::NotMounted),
            Event::Mounted(Err(Refusal::Damaged)) => self.worse(),
            Event::Checked(Some(code)) if code & !CORRECTED == 0 => Action::Mount,
            Event::Checked(_) => self.worse(),
            Event::Made(true) => Action::Mount,
            Event::Made(false) => Action::UseMemory(Degraded::NotMade),
        }
    }

    fn make(&mut self, cause: Cause) -> Action {
        self.tried = Tried::Made;
        Action::Make(cause)
    }

    fn check(&mut self, tried: Tried, check: Check) -> Action {
        self.tried = tried;
        Action::Check(check)
    }

    /// The next stronger remedy.
    fn worse(&mut self) -> Action {
        match self.tried {
            Tried::Nothing => self.check(Tried::Safe, Check::Safe),
            Tried::Safe => self.check(Tried::Everything, Check::Everything),
            // With a torn superblock, as a power cut in a growth may leave it, e2fsck plays back the journal, which mends it,
            // and gives up; the next one finds all that was there.
            Tried::Everything => self.check(Tried::Again, Check::Everything),
            // The same cut may have torn the only copy that e2fsck looks for by itself.
            Tried::Again => self.check(Tried::Copies, Check::Copies),
            Tried::Copies => self.check(Tried::AfterCopies, Check::Everything),
            Tried::AfterCopies => self.make(Cause::DataLost),
            Tried::Made => Action::UseMemory(Degraded::NotMounted),
        }
    }
}

/// Where a superblock's file system has copies of it, in blocks, and the size of a block in octets: those at the beginning of
/// the groups 3, 5 and 7 (`sparse_super`), where few writes of one moment come by. `None` where it can't be one. It may be
/// torn: of its first sector nothing changes that is read here (super.rst, as for [`Content::of`]).
pub fn copies(superblock: &[u8]) -> Option<([u64; 3], u64)> {
    let word = |at| Some(u64::from(u32::from_le_bytes(*superblock.get(at..)?.first_chunk()?)));
    let (first, size, group) = (word(20)?, word(24)?, word(32)?);
    if superblock.get(56..58) != Some(&[0x53, 0xef]) || first > 1 || size > 6 || group == 0 {
        return None;
    }
    Some(([3, 5, 7].map(|number| first + number * group), 1024 << size))
}

/// Octets that are erased at a time.
const ERASED_AT_ONCE: u64 = 16 << 20;

/// The parts of a partition of this many octets as they are erased, each on the medium before the next: offset and length.
/// The first is what [`Content::of`] looks at.
pub fn erasure(octets: u64) -> impl Iterator<Item = (u64, u64)> {
    let first = octets.min(LOOKED_AT as u64);
    let rest = (first..octets).step_by(ERASED_AT_ONCE as usize);
    let beginning = (first > 0).then_some((0, first));
    beginning.into_iter().chain(rest.map(move |at| (at, ERASED_AT_ONCE.min(octets - at))))
}

/// Bits of e2fsck's exit code that still mean that the file system is whole: errors corrected, reboot wanted (which
/// concerns mounted file systems only).
const CORRECTED: i32 = 1 | 2;

#[cfg(test)]
mod tests {
    use super::*;

    const ALL_CONTENT: [Content; 5] =
        [Content::Blank, Content::Clean, Content::Faulty, Content::Unknown, Content::Unreadable];

    /// Every event that can answer `action`.
    fn answers(action: Action) -> Vec<Event> {
        match action {
            Action::Erase => vec![Event::Erased(true), Event::Erased(false)],
            Action::Make(_) => vec![Event::Made(true), Event::Made(false)],
            Action::Mount => vec![
                Event::Mounted(Ok(())),
                Event::Mounted(Err(Refusal::Damaged)),
                Event::Mounted(Err(Refusal::Elsewhere)),
            ],
            Action::Check(_) => [None, Some(0), Some(1), Some(4), Some(8), Some(12)].map(Event::Checked).to_vec(),
            Action::Grow | Action::UseMemory(_) => Vec::new(),
        }
    }

    fn explore(preparation: &Preparation, event: Event, path: &mut Vec<Action>, visit: &mut impl FnMut(&[Action])) {
        let mut preparation = preparation.clone();
        let action = preparation.on(event);
        path.push(action);
        assert!(path.len() < 18, "it does not end: {path:?}");
        let answers = answers(action);
        if answers.is_empty() {
            visit(path);
        }
        for answer in answers {
            explore(&preparation, answer, path, visit);
        }
        path.pop();
    }

    #[test]
    fn every_course_of_events_ends_and_loses_data_only_after_every_remedy() {
        let mut ends = 0;
        for content in ALL_CONTENT {
            for reset in [false, true] {
                let looked = Event::Looked { content, reset };
                explore(&Preparation::default(), looked, &mut Vec::new(), &mut |path| {
                    ends += 1;
                    let made = path.iter().filter(|action| matches!(action, Action::Make(_))).count();
                    assert!(made <= 1, "{path:?}");
                    if let Some(at) = path.iter().position(|action| *action == Action::Make(Cause::DataLost)) {
                        let before = &path[..at];
                        assert!(before.contains(&Action::Check(Check::Safe)), "{path:?}");
                        assert!(before.contains(&Action::Check(Check::Copies)), "{path:?}");
                        assert_eq!(
                            before.last().filter(|last| **last != Action::Mount).unwrap_or(&before[before.len() - 2]),
                            &Action::Check(Check::Everything),
                            "{path:?}"
                        );
                    }
                    assert_eq!(reset, path[0] == Action::Erase, "{path:?}");
                    if !reset && content == Content::Clean {
                        assert_eq!(path[0], Action::Mount);
                    }
                });
            }
        }
        assert!(ends > 100, "{ends}");
    }

    #[test]
    fn what_a_check_plays_back_is_checked_again() {
        let mut preparation = Preparation::default();
        assert_eq!(preparation.on(Event::Looked { content: Content::Clean, reset: false }), Action::Mount);
        assert_eq!(preparation.on(Event::Mounted(Err(Refusal::Damaged))), Action::Check(Check::Safe));
        for check in [Check::Everything, Check::Everything, Check::Copies, Check::Everything] {
            assert_eq!(preparation.on(Event::Checked(Some(12))), Action::Check(check));
        }
        assert_eq!(preparation.clone().on(Event::Checked(Some(1))), Action::Mount);
        assert_eq!(preparation.on(Event::Checked(Some(12))), Action::Make(Cause::DataLost));
    }

    #[test]
    fn copies_of_the_superblock_are_where_sparse_super_puts_them() {
        let superblock = |first: u8, size: u8, group: u32| {
            let mut octets = [0; 1024];
            (octets[20], octets[24]) = (first, size);
            octets[32..36].copy_from_slice(&group.to_le_bytes());
            octets[56..58].copy_from_slice(&[0x53, 0xef]);
            octets
        };
        // As `mke2fs -n` tells for 64 MiB and for a GiB.
        assert_eq!(copies(&superblock(1, 0, 8192)), Some(([24_577, 40_961, 57_345], 1024)));
        assert_eq!(copies(&superblock(0, 2, 32_768)), Some(([98_304, 163_840, 229_376], 4096)));
        for none in [superblock(2, 0, 8192), superblock(1, 7, 8192), superblock(1, 0, 0), [0; 1024]] {
            assert_eq!(copies(&none), None);
        }
        assert_eq!(copies(&superblock(0, 6, u32::MAX)).map(|(_, size)| size), Some(65_536));
        assert_eq!(copies(&[]), None);
    }

    #[test]
    fn a_disk_that_fails_never_costs_the_data() {
        let mut preparation = Preparation::default();
        assert_eq!(preparation.on(Event::Looked { content: Content::Clean, reset: false }), Action::Mount);
        assert_eq!(preparation.on(Event::Mounted(Err(Refusal::Elsewhere))), Action::UseMemory(Degraded::NotMounted));
        let looked = Event::Looked { content: Content::Unreadable, reset: false };
        assert_eq!(Preparation::default().on(looked), Action::UseMemory(Degraded::Unreadable));
    }

    #[test]
    fn all_is_erased_once_and_what_tells_first() {
        for octets in [0, 512, LOOKED_AT as u64, 64 << 20, (64 << 20) + 512] {
            let parts: Vec<_> = erasure(octets).collect();
            let mut at = 0;
            for (offset, length) in &parts {
                assert_eq!(*offset, at);
                at += length;
            }
            assert_eq!(at, octets);
            assert!(parts.first().is_none_or(|(_, length)| *length <= LOOKED_AT as u64));
        }
    }

    #[test]
    fn the_first_octets_tell_what_is_there() {
        let mut octets = vec![0; LOOKED_AT];
        assert_eq!(Content::of(&octets), Content::Blank);
        assert_eq!(Content::of(&vec![0xff; LOOKED_AT]), Content::Blank);
        octets[5] = 1;
        assert_eq!(Content::of(&octets), Content::Unknown);
        octets[1080..1084].copy_from_slice(&[0x53, 0xef, 1, 0]);
        assert_eq!(Content::of(&octets), Content::Clean);
        octets[1082] = 3;
        assert_eq!(Content::of(&octets), Content::Faulty);
        assert_eq!(Content::of(&[1]), Content::Unknown);
    }
}
