//! Who keeps the configuration and the setup code, and what the page and the console ask of it.
//!
//! An edge, because it reads and writes files and draws random numbers. One at a time: its callers hold a lock.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::access::{self, Attempts, Code};
use super::disk::{self, Directory};
use super::stick::{self, Adopts, Outcome, Places};
use super::{Answers, Fault, Kept, Settings};
use crate::net::status::TrialStatus;
use crate::secret::Secret;
use crate::time::Uptime;

/// What is asked of the service `settings`. Texts are in clear: the socket is the box's own, and its peers are checked.
#[derive(Serialize, Deserialize)]
pub enum Ask {
    /// What the box is set to.
    Show,
    /// Whether this is the setup code.
    Enter(String),
    /// Take these answers as the whole configuration.
    Apply(Vec<(String, String)>),
    /// The setup code, as long as the screen shows it.
    Code,
    /// Take in what lies on the stick that was plugged in. For init alone.
    Stick,
}

/// What is answered.
#[derive(Serialize, Deserialize)]
pub enum Answer {
    /// To [`Ask::Show`].
    Shown(Shown),
    /// To [`Ask::Enter`].
    Entered(Result<(), Refusal>),
    /// To [`Ask::Apply`]: what is done, or every fault; nothing is changed then.
    Applied(Result<Applied, Vec<Fault>>),
    /// To [`Ask::Code`]: in groups of four; `None` once it was used.
    Code(Option<String>),
    /// To [`Ask::Stick`]: the stick is needed no more. What became of it stands on it, and in the log.
    Looked,
    /// It can't be done, and why.
    Failed(String),
    /// This user may not ask that.
    Denied,
}

/// What the box is set to; no secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    /// The answers that make it.
    pub answers: Vec<(String, String)>,
    /// The secrets that are there.
    pub kept: Kept,
    /// What is wrong, each in one line.
    pub trouble: Vec<String>,
    /// The network that is being tried.
    pub trial: Option<TrialStatus>,
}

impl Shown {
    /// The answers.
    pub fn answers(&self) -> Answers {
        let pairs = self.answers.iter().map(|(path, text)| (path.clone(), Secret::new(text.clone())));
        Answers::new(pairs).unwrap_or_default()
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The services that start anew.
    pub restarted: Vec<String>,
    /// Whether a new network is being tried.
    pub trial: bool,
    /// What was not done all the same, each in one sentence.
    pub notes: Vec<String>,
}

/// Why a code does not open the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// It is another one.
    #[error("this is not the setup code; it is on the box's screen until it is first used")]
    Wrong,
    /// Too many were wrong; so many seconds are left.
    #[error("too many wrong codes; wait {0} seconds and try again")]
    Wait(u64),
}

/// Keeps the configuration and the setup code.
#[derive(Debug)]
pub struct Desk {
    files: Directory,
    code: Code,
    attempts: Attempts,
    trouble: Option<String>,
}

impl Desk {
    /// Opens what is kept in `files`. A box that has no code yet makes one. What can't be kept is said, and lasts as long as
    /// the process.
    ///
    /// # Errors
    ///
    /// When there are no random numbers.
    pub fn open(mut files: Directory) -> io::Result<Self> {
        let mut trouble = files.make().err().map(|error| format!("the configuration can't be kept: {error}"));
        let code = match disk::code(&files) {
            Some(code) => code,
            None => {
                let code = Code::Shown(access::generate(random()?).reveal().clone());
                if let Err(error) = disk::keep_code(&mut files, &code) {
                    trouble =
                        Some(format!("the setup code can't be kept; it is another one at the next start: {error}"));
                }
                code
            }
        };
        let loaded = disk::load(&files);
        if let Err(error) = disk::mend(&mut files, &loaded.settings) {
            trouble = Some(format!("the configuration can't be kept: {error}"));
        }
        Ok(Self { files, code, attempts: Attempts::default(), trouble })
    }

    /// The configuration, and what is wrong with it.
    pub fn show(&self) -> (Settings, Kept, Vec<String>) {
        let loaded = disk::load(&self.files);
        (loaded.settings, loaded.kept, loaded.trouble.into_iter().chain(self.trouble.clone()).collect())
    }

    /// The setup code in groups of four, until it was used.
    pub fn code(&self) -> Option<String> {
        match &self.code {
            Code::Shown(code) => Some(access::grouped(code)),
            Code::Hashed { .. } => None,
        }
    }

    /// Whether `typed` is the code. The first time that it is, the screen stops to show it, and its hash alone is kept.
    ///
    /// # Errors
    ///
    /// [`Refusal`].
    pub fn enter(&mut self, typed: &str, now: Uptime) -> Result<(), Refusal> {
        if let Some(wait) = self.attempts.wait(now) {
            return Err(Refusal::Wait(wait.as_secs() + 1));
        }
        let right = self.code.matches(typed);
        self.attempts = self.attempts.tried(now, right);
        if !right {
            return Err(Refusal::Wrong);
        }
        if let Code::Shown(code) = &self.code
            && let Some(hashed) = random().ok().and_then(|salt| Code::hashed(code, salt))
        {
            // Not kept, it is shown again at the next start: the person still has it.
            self.trouble = disk::keep_code(&mut self.files, &hashed)
                .err()
                .map(|error| format!("that the setup code was used can't be kept: {error}"));
            self.code = hashed;
        }
        Ok(())
    }

    /// Takes in the configuration on the stick that is mounted at `stick`, unless that was done before. `lasting` says whether
    /// what this box keeps outlives the power. Returns what became of it, and the configuration before. Blocks.
    ///
    /// # Errors
    ///
    /// When there are no random numbers.
    pub fn take_in(&mut self, stick: &Path, net: &mut impl Adopts, lasting: bool) -> io::Result<(Outcome, Settings)> {
        let before = disk::load(&self.files).settings;
        let mut stick = Directory::new(stick, None);
        let places = Places { settings: &mut self.files, net, stick: &mut stick, lasting };
        let outcome = stick::take_in(places, random()?);
        if let Outcome::Applied { .. } = outcome {
            self.code = disk::code(&self.files).unwrap_or_else(|| self.code.clone());
            self.trouble = None;
        }
        Ok((outcome, before))
    }

    /// Takes `answers` as the whole configuration; returns it, and the one before. Only the network is not its to keep.
    ///
    /// # Errors
    ///
    /// Every fault, or why it can't be kept; nothing is changed then.
    pub fn apply(&mut self, answers: &Answers) -> Result<(Settings, Settings), Result<Vec<Fault>, io::Error>> {
        let loaded = disk::load(&self.files);
        let new = Settings::read(answers, loaded.kept).map_err(Ok)?;
        disk::save(&mut self.files, &new, random().map_err(Err)?).map_err(Err)?;
        if let Some(code) = disk::code(&self.files) {
            self.code = code;
        }
        self.trouble = None;
        Ok((new, loaded.settings))
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut octets = [0; N];
    getrandom::fill(&mut octets).map_err(io::Error::other)?;
    Ok(octets)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_code_is_shown_until_it_is_used_and_works_ever_after() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Desk::open(Directory::new(&dir.path().join("settings"), None)).unwrap();
        let code = open().code().unwrap();
        let mut desk = open();
        assert_eq!(desk.code().as_ref(), Some(&code), "a restart does not change it");
        let now = Uptime::from_secs(100);
        assert_eq!(desk.enter("0000-0000", now), Err(Refusal::Wrong));
        assert_eq!(desk.enter(&code.to_lowercase(), now), Ok(()));
        let mut desk = open();
        assert_eq!((desk.code(), desk.enter(&code, now)), (None, Ok(())));
        let kept = std::fs::read_to_string(dir.path().join("settings").join(disk::CODE)).unwrap();
        assert!(!kept.contains(&code.replace('-', "")));
        let mut refusals = (0..8).map(|_| desk.enter("x", now).unwrap_err());
        assert!(refusals.any(|refusal| matches!(refusal, Refusal::Wait(_))));
        assert!(matches!(desk.enter(&code, now), Err(Refusal::Wait(_))), "nor does the right one");
        assert_eq!(desk.enter(&code, now + Duration::from_secs(300)), Ok(()));
    }

    #[test]
    fn a_new_code_takes_the_old_ones_place() {
        let dir = tempfile::tempdir().unwrap();
        let mut desk = Desk::open(Directory::new(dir.path(), None)).unwrap();
        let old = desk.code().unwrap();
        let mut answers = Answers::default();
        answers.put("setup.code", "correct horse 7");
        let (new, before) = desk.apply(&answers).unwrap();
        assert_eq!((new.without_secrets(), desk.code()), (before, None));
        assert_eq!(desk.enter(&old, Uptime::from_secs(1)), Err(Refusal::Wrong));
        assert_eq!(desk.enter("CorrectHorse7", Uptime::from_secs(1)), Ok(()));
    }
}
