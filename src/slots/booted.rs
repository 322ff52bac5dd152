//! What GRUB told the kernel.

use super::{Slot, Target, Why};

/// What was booted and why, by the kernel's command line; from which disk says [`crate::supervise::disk::Origin`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booted {
    /// What runs.
    pub target: Target,
    /// Why.
    pub why: Why,
    /// Tries of the pending slot so far.
    pub tries: u8,
    /// Whether somebody asked for a factory reset in GRUB's menu.
    pub reset: bool,
}

impl Booted {
    /// Reads `/proc/cmdline`. Nothing when GRUB did not start this kernel: init then touches no record.
    ///
    /// The kernel does not hand these to init as arguments, since a name with a dot is a module's parameter. Of a name
    /// given twice the last counts: GRUB appends ours to the slot's own.
    pub fn parse(cmdline: &str) -> Option<Self> {
        let value = |name: &str| {
            let mine = |word: &'_ str| {
                word.strip_prefix("pilotlight.")?.strip_prefix(name)?.strip_prefix('=').map(str::to_owned)
            };
            cmdline.split_ascii_whitespace().filter_map(mine).next_back()
        };
        Some(Self {
            target: Target::parse(&value("slot")?)?,
            why: Why::parse(&value("why")?)?,
            tries: value("try").and_then(|text| text.parse().ok()).filter(|tries| *tries <= 3).unwrap_or(0),
            reset: value("reset").as_deref() == Some("1"),
        })
    }

    /// The slot that runs, unless it is recovery.
    pub fn slot(&self) -> Option<Slot> {
        self.target.slot()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grubs_words_are_read() {
        let cmdline = "console=ttyS0 pilotlight.slot=b pilotlight.why=pending pilotlight.try=2 pilotlight.part=0e53-21e3 \
                       pilotlight.stamp=feed.10.2026.11.21.14.49.29\n";
        let booted = Booted::parse(cmdline).expect("GRUB was there");
        assert_eq!((booted.target, booted.why, booted.tries), (Target::Slot(Slot::B), Why::Pending, 2));
        assert!(!booted.reset);
    }

    #[test]
    fn without_grub_there_is_nothing() {
        assert_eq!(Booted::parse("console=ttyS0 quiet"), None);
        assert_eq!(Booted::parse("pilotlight.slot=c pilotlight.why=committed"), None);
    }

    proptest! {
        #[test]
        fn any_command_line_is_read(cmdline in ".{0,200}") {
            let _ = Booted::parse(&cmdline);
        }
    }
}
