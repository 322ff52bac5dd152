//! Init's parameters: `pilotlight.<name>=<value>` on the kernel's command line, or among init's arguments in a container.
//!
//! The kernel hands words with a dot to no one (it takes them for parameters of modules), so that a machine's are read from
//! /proc/cmdline.

use std::time::Duration;

use crate::slots::Booted;
use crate::slots::health::Limits;

/// Most octets of a command line that are read; the kernel's own limit is 2 or 4 KiB.
pub const MAX_LINE: usize = 8 * 1024;
/// Where the file of flags is unless init is told otherwise.
const FLAGS: &str = "/etc/pilotlight/flags";
const PREFIX: &str = "pilotlight.";

/// Which slot was booted, as the boot loader says.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Slot {
    /// `pilotlight.slot=`: its name; empty when the loader says nothing.
    pub name: String,
    /// `pilotlight.why=`: why this one.
    pub why: String,
    /// `pilotlight.try=`: which attempt of a slot that is not committed.
    pub attempt: Option<u8>,
}

/// What init is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// `pilotlight.flags=`: the file of the services' flags.
    pub flags: String,
    /// What was booted.
    pub slot: Slot,
    /// `pilotlight.watchdog=`: seconds of the hardware watchdog, 10 to 600; 0 leaves it alone.
    pub watchdog: Option<Duration>,
    /// `pilotlight.service-watchdog=`: seconds that a service may be silent, 1 to 600, instead of the table's.
    pub service_watchdog: Option<Duration>,
    /// What GRUB says that it booted; nothing where it did not start this.
    pub booted: Option<Booted>,
    /// `pilotlight.trial=`: how long the trial of a slot may take and how long it must be well, in seconds, such as
    /// `600,60`.
    pub trial: Limits,
    /// Words that begin like ours and mean nothing, or whose value means nothing. Other duties' words are not among them.
    pub unknown: Vec<String>,
}

/// The hardware watchdog's time unless init is told otherwise.
const WATCHDOG: Duration = Duration::from_secs(60);
/// Words of ours that others than this module read.
const ELSEWHERE: [&str; 8] = ["src", "part", "stamp", "reset", "recovery", "seed", "update", "console"];
/// Unknown words that are reported; a line holds more than anyone reads.
const MAX_UNKNOWN: usize = 8;

impl Default for Parameters {
    fn default() -> Self {
        Self {
            flags: FLAGS.to_owned(),
            slot: Slot::default(),
            watchdog: Some(WATCHDOG),
            service_watchdog: None,
            booted: None,
            trial: Limits::default(),
            unknown: Vec::new(),
        }
    }
}

impl Parameters {
    /// Reads `words`; of a name given twice the last counts.
    pub fn read<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let words: Vec<_> = words.into_iter().collect();
        let mut all = Self { booted: Booted::parse(&words.join(" ")), ..Self::default() };
        for word in words {
            let Some(own) = word.strip_prefix(PREFIX) else { continue };
            let (name, value) = own.split_once('=').unwrap_or((own, ""));
            if all.take(name, value).is_none() && all.unknown.len() < MAX_UNKNOWN {
                all.unknown.push(word.to_owned());
            }
        }
        all
    }

    fn take(&mut self, name: &str, value: &str) -> Option<()> {
        let seconds = |range: std::ops::RangeInclusive<u64>| {
            value.parse().ok().filter(|seconds| range.contains(seconds)).map(Duration::from_secs)
        };
        match name {
            "flags" if !value.is_empty() => value.clone_into(&mut self.flags),
            "slot" => value.clone_into(&mut self.slot.name),
            "why" => value.clone_into(&mut self.slot.why),
            "try" => self.slot.attempt = Some(value.parse().ok()?),
            "watchdog" if value == "0" => self.watchdog = None,
            "watchdog" => self.watchdog = Some(seconds(10..=600)?),
            "service-watchdog" => self.service_watchdog = Some(seconds(1..=600)?),
            "trial" => {
                let (window, quiet) = value.split_once(',')?;
                let seconds = |text: &str| {
                    text.parse().ok().filter(|seconds| (1..=3600).contains(seconds)).map(Duration::from_secs)
                };
                self.trial = Limits { window: seconds(window)?, quiet: seconds(quiet)? };
            }
            name if ELSEWHERE.contains(&name) => {}
            _ => return None,
        }
        Some(())
    }
}

/// The words of a kernel command line: separated by white space, except between double quotes, which are taken away.
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let (mut word, mut quoted) = (String::new(), false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(line: &str) -> Parameters {
        let words = words(line);
        Parameters::read(words.iter().map(String::as_str))
    }

    #[test]
    fn a_line_says_which_slot_and_why() {
        let all = read("quiet pilotlight.slot=b pilotlight.why=\"pending, try 2\" pilotlight.try=2 panic=10\n");
        assert_eq!(all.slot, Slot { name: "b".into(), why: "pending, try 2".into(), attempt: Some(2) });
        assert_eq!((all.flags.as_str(), all.watchdog), (FLAGS, Some(WATCHDOG)));
        assert!(all.unknown.is_empty());
        assert_eq!(all.booted, None, "GRUB knows no such reason");
        let all =
            read("pilotlight.slot=b pilotlight.why=pending pilotlight.try=2 pilotlight.part=1 pilotlight.trial=9,3");
        assert_eq!(all.booted.and_then(|booted| booted.slot()), Some(crate::slots::Slot::B));
        assert_eq!(all.trial, Limits { window: Duration::from_secs(9), quiet: Duration::from_secs(3) });
        assert!(all.unknown.is_empty());
    }

    #[test]
    fn the_last_word_counts_and_strange_ones_are_told() {
        let all = read(
            "pilotlight.flags=/a pilotlight.flags=/b pilotlight.watchdog=0 pilotlight.colour=red pilotlight.try=x",
        );
        assert_eq!((all.flags.as_str(), all.watchdog, all.slot.attempt), ("/b", None, None));
        assert_eq!(all.unknown, ["pilotlight.colour=red", "pilotlight.try=x"]);
        assert_eq!(read("pilotlight.service-watchdog=0").unknown.len(), 1);
    }

    proptest! {
        #[test]
        fn any_line_is_read(line in ".{0,200}") {
            prop_assert!(read(&line).unknown.len() <= MAX_UNKNOWN);
        }

        #[test]
        fn plain_words_come_back(words in proptest::collection::vec("[a-z=.]{1,8}", 0..6)) {
            prop_assert_eq!(super::words(&words.join(" ")), words);
        }
    }
}
