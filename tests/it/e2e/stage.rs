//! Steps that are waited for one after the other, and told with their times.

use std::time::Duration;

use anyhow::bail;
use pilotlight::lab::omni::Omni;
use pilotlight::lab::omni::lifecycle::OmniMachine;
use pilotlight::time::Uptime;

use super::machine::Machine;
use super::site::Site;

/// How often a file or a process is looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What the steps look at.
pub struct Stage<'a> {
    pub site: &'a mut Site,
    pub timeline: &'a Timeline,
    pub machine: &'a Machine,
    pub omni: &'a Omni,
}

impl Stage<'_> {
    /// Waits until `holds`, and says so.
    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> anyhow::Result<bool>) -> anyhow::Result<()> {
        while !holds(self)? {
            self.site.check()?;
            if self.timeline.elapsed() > self.timeline.limit {
                bail!("timed out before: {what}");
            }
            std::thread::sleep(LOOK);
        }
        self.timeline.say(what);
        Ok(())
    }

    /// Waits for a line with all of `words` in a log, and shows it.
    pub fn until_log(&mut self, log: &str, what: &str, words: &[&str]) -> anyhow::Result<()> {
        let path = if log == "serial" { self.machine.serial() } else { self.site.log(log) };
        let mut found = String::new();
        self.until(what, |_| {
            let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap_or_default()).into_owned();
            let line = text.lines().find(|line| words.iter().all(|word| line.contains(word)));
            if let Some(line) = line {
                found = line.chars().filter(|char| !char.is_control()).take(240).collect();
            }
            Ok(!found.is_empty())
        })?;
        crate::peers::say(&format!("             {log}: {found}"));
        Ok(())
    }

    /// Waits until Omni's view of the machine `holds`.
    pub fn until_omni(&mut self, what: &str, holds: impl Fn(&OmniMachine) -> bool) -> anyhow::Result<()> {
        self.until(what, |stage| Ok(stage.omni.controller().machine(stage.machine.uuid).is_some_and(|m| holds(&m))))
    }
}

/// The steps with their times, on the test's output.
pub struct Timeline {
    pub name: &'static str,
    pub start: Uptime,
    /// How long all of it may take.
    pub limit: Duration,
}

impl Timeline {
    pub fn elapsed(&self) -> Duration {
        Uptime::now().since(self.start)
    }

    pub fn say(&self, what: &str) {
        crate::peers::say(&format!("{} {:6.1} s {what}", self.name, self.elapsed().as_secs_f32()));
    }
}
