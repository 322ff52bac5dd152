//! `pilotlight.toml` from a file system that anyone may have written: taken in once, reported on, its secrets removed.
//!
//! An edge only by the [`Files`] that it is given. The order is what makes a power cut harmless: the configuration is on
//! the disk, then the note of which file it was, then the secrets are written over where they lie on the stick. A cut before
//! the note takes the same file in again; one after it is told by the note, which knows what the file must become.

use std::fmt::Write as _;
use std::io;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::disk::{self, Files};
use super::{Fault, MOST_OCTETS, Settings, access, file};
use crate::net::config::Network;
use crate::net::trial::{Record, Request, Trials};
use crate::time::Uptime;

/// The file that is looked for.
pub const NAME: &str = "pilotlight.toml";
/// The report that is written beside it.
pub const REPORT: &str = "pilotlight-report.txt";
/// Where the box notes what it took in.
pub const TAKEN: &str = "taken.json";
/// Files that are remembered.
const MOST_TAKEN: usize = 16;
/// What a disk writes whole or not at all, in octets.
const SECTOR: usize = 512;
/// The record of the service `net`.
const NETWORK: &str = "network.json";

/// What the box remembers of the files that it took in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    /// Of the hashes of originals; random.
    salt: [u8; 16],
    /// The last ones, newest first.
    files: Vec<Taken>,
}

/// A file that was taken in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Taken {
    /// What argon2id makes of it: it may have held a code that a fast hash would give away.
    original: String,
    /// SHA-256 of it without its secrets.
    scrubbed: String,
    /// How far the secrets are gone; `None` when they are.
    pending: Option<Pending>,
}

/// What tells a file that a power cut left half scrubbed from one that someone wrote anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pending {
    /// Where the secrets stood.
    secrets: Vec<Range<usize>>,
    /// SHA-256 of each sector of the original that holds part of one.
    sectors: Vec<(usize, String)>,
}

impl Pending {
    fn new(octets: &[u8], secrets: Vec<Range<usize>>) -> Self {
        let scrubbed = scrub(octets, &secrets);
        let both = octets.chunks(SECTOR).zip(scrubbed.chunks(SECTOR)).enumerate();
        let sectors = both.filter(|(_, (before, after))| before != after).map(|(at, (before, _))| (at, hash(before)));
        Self { sectors: sectors.collect(), secrets }
    }

    /// Whether each sector of `octets` is as it was or as it is to be.
    fn is(&self, octets: &[u8], scrubbed_hash: &str) -> bool {
        let scrubbed = scrub(octets, &self.secrets);
        let changed = octets.chunks(SECTOR).zip(scrubbed.chunks(SECTOR)).enumerate();
        hash(&scrubbed) == scrubbed_hash
            && changed
                .filter(|(_, (before, after))| before != after)
                .all(|(at, (before, _))| self.sectors.contains(&(at, hash(before))))
    }
}

/// What became of the file.
#[derive(Debug)]
pub enum Outcome {
    /// There is none.
    None,
    /// It was taken in before.
    Before,
    /// It has faults, and nothing of it counts.
    Faults(Vec<Fault>),
    /// It was taken in.
    Applied {
        /// What was not done all the same: the secrets still stand in it, or the network is not changed.
        lacks: Vec<String>,
        /// What the box is set to now; nothing where it was taken in before, and could only not be scrubbed.
        new: Option<Box<Settings>>,
    },
    /// It could not be read, or not be kept; the box is as it was, or takes it in again.
    Failed(io::Error),
}

/// Who keeps the network.
pub trait Adopts {
    /// Makes `network` the one that counts, without a trial: nobody is there to confirm it.
    ///
    /// # Errors
    ///
    /// Why it is not kept; the one before counts then.
    fn adopt(&mut self, network: &Network) -> io::Result<()>;
}

/// The directory of the service `net`, which must not run meanwhile.
impl<F: Files> Adopts for F {
    fn adopt(&mut self, network: &Network) -> io::Result<()> {
        let record: Record =
            self.read(NETWORK)?.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        if record.good == *network && record.tried.is_none() {
            return Ok(());
        }
        let adopted = Trials::resume(record, 0).on_request(Uptime::default(), Request::Adopt(network.clone()), &[]);
        let adopted = adopted.map_err(io::Error::other)?;
        self.replace(NETWORK, &serde_json::to_vec_pretty(&adopted.record())?)
    }
}

/// What taking a file in is about.
#[derive(Debug)]
pub struct Places<'a, F: Files, N: Adopts, S: Files> {
    /// Where the box keeps its configuration.
    pub settings: &'a mut F,
    /// Who keeps the network.
    pub net: &'a mut N,
    /// Where [`NAME`] is looked for.
    pub stick: &'a mut S,
    /// Whether what the box keeps outlives the power. If not, the file counts until then, and is left as it is.
    pub lasting: bool,
}

/// Takes the file in, unless that was done before. `salt` is random.
pub fn take_in<F: Files, N: Adopts, S: Files>(places: Places<'_, F, N, S>, salt: [u8; 16]) -> Outcome {
    let Places { settings, net, stick, lasting } = places;
    let octets = match stick.read(NAME) {
        Ok(None) => return Outcome::None,
        Ok(Some(octets)) => octets,
        Err(error) => return report(stick, Outcome::Failed(error)),
    };
    let mut memory: Memory = match settings.read(TAKEN) {
        // What can't be read is forgotten; the worst is that a file is taken in twice.
        Ok(text) => {
            text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or(Memory { salt, files: Vec::new() })
        }
        Err(error) => return report(stick, Outcome::Failed(error)),
    };
    let plain = hash(&octets);
    if memory.files.iter().any(|one| one.scrubbed == plain) {
        return Outcome::Before;
    }
    let parsed = file::parse(&octets);
    let Some(original) = access::hash(&octets, memory.salt).map(hex::encode) else {
        return report(stick, Outcome::Failed(io::ErrorKind::OutOfMemory.into()));
    };
    // Half scrubbed when the power went away, or a copy of what was taken in before.
    let again = memory.files.iter_mut().find_map(|one| match &one.pending {
        Some(pending) if pending.is(&octets, &one.scrubbed) => Some((pending.secrets.clone(), one)),
        Some(_) | None => (one.original == original).then(|| (parsed.secrets.clone(), one)),
    });
    if let Some((secrets, one)) = again {
        if let Err(error) = stick.overwrite(NAME, &scrub(&octets, &secrets)) {
            return report(stick, Outcome::Applied { lacks: vec![still_there(&error)], new: None });
        }
        one.pending = None;
        // Kept too long, it costs nothing but the room.
        let _ = remember(settings, &memory);
        return Outcome::Before;
    }
    let loaded = disk::load(settings);
    let read = Settings::read(&parsed.answers, loaded.kept);
    let new = match (parsed.faults, read) {
        (faults, Ok(new)) if faults.is_empty() => new,
        (mut faults, read) => {
            faults.extend(read.err().unwrap_or_default());
            return report(stick, Outcome::Faults(faults));
        }
    };
    if !lasting {
        let lacks = vec![
            "the box has no disk to keep it on: it counts until the power goes away; the file is as it was".to_owned(),
        ];
        return match disk::save(settings, &new, salt).and_then(|()| net.adopt(new.network())) {
            Ok(()) => report(stick, Outcome::Applied { lacks, new: Some(Box::new(new)) }),
            Err(error) => report(stick, Outcome::Failed(error)),
        };
    }
    let scrubbed = scrub(&octets, &parsed.secrets);
    let pending = (scrubbed != octets).then(|| Pending::new(&octets, parsed.secrets));
    let note = Taken { original, scrubbed: hash(&scrubbed), pending };
    memory.files.truncate(MOST_TAKEN - 1);
    memory.files.insert(0, note);
    let kept = disk::save(settings, &new, salt)
        .and_then(|()| net.adopt(new.network()))
        .and_then(|()| remember(settings, &memory));
    if let Err(error) = kept {
        return report(stick, Outcome::Failed(error));
    }
    // On the disk by now: from here on the stick need not hold them.
    let mut lacks = Vec::new();
    if scrubbed != octets {
        match stick.overwrite(NAME, &scrubbed) {
            Ok(()) => {
                memory.files[0].pending = None;
                // Kept too long, it costs nothing but the room.
                let _ = remember(settings, &memory);
            }
            Err(error) => lacks.push(still_there(&error)),
        }
    }
    report(stick, Outcome::Applied { lacks, new: Some(Box::new(new)) })
}

fn remember(settings: &mut impl Files, memory: &Memory) -> io::Result<()> {
    settings.replace(TAKEN, &serde_json::to_vec(memory)?)
}

fn still_there(error: &io::Error) -> String {
    format!("the secrets still stand in {NAME} and could not be removed: {error}; delete the file yourself")
}

/// The file without its secrets: each is an empty text now, of the same length with the blanks behind it, so that nothing
/// else of the file moves.
fn scrub(octets: &[u8], secrets: &[Range<usize>]) -> Vec<u8> {
    let mut scrubbed = octets.to_vec();
    for range in secrets {
        if let Some(part) = scrubbed.get_mut(range.clone()) {
            part.fill(b' ');
            // A literal has two quotes at least; what is shorter is none of ours.
            if let [first, second, ..] = part {
                (*first, *second) = (b'"', b'"');
            }
        }
    }
    scrubbed
}

fn hash(octets: &[u8]) -> String {
    hex::encode(Sha256::digest(octets))
}

/// Writes the report of `outcome`, unless it stands there already.
fn report(stick: &mut impl Files, outcome: Outcome) -> Outcome {
    let text = words(&outcome);
    let stands = stick.read(REPORT).is_ok_and(|before| before.is_some_and(|before| before == text.as_bytes()));
    if !stands && let Err(error) = stick.write(REPORT, text.as_bytes()) {
        // A stick that can't be written to is taken in all the same.
        if let Outcome::Applied { lacks, new } = outcome {
            let lacks = lacks.into_iter().chain([format!("{REPORT} could not be written: {error}")]).collect();
            return Outcome::Applied { lacks, new };
        }
    }
    outcome
}

/// The report. Holds no secret.
fn words(outcome: &Outcome) -> String {
    let mut text = format!("What became of {NAME}\n\n");
    // Writing into a String cannot fail.
    let _ = match outcome {
        Outcome::None | Outcome::Before => Ok(()),
        Outcome::Failed(error) => {
            writeln!(
                text,
                "It could not be taken in, and is looked at again at the next boot, or when the stick is plugged in again: {error}"
            )
        }
        Outcome::Faults(faults) => {
            let _ = writeln!(text, "NOTHING of it counts. What is wrong ({}):\n", faults.len());
            faults.iter().try_for_each(|fault| writeln!(text, "- {fault}"))
        }
        Outcome::Applied { lacks, new } => {
            let _ = writeln!(text, "It was taken in; this is what the box is set to now:\n");
            if let Some(settings) = new {
                let answers = settings.answers();
                for path in answers.paths() {
                    let secret = settings.secret(path).is_some();
                    let shown = if secret { "(kept by the box)" } else { answers.text(path).unwrap_or_default() };
                    let _ = writeln!(text, "- {path} = {shown}");
                }
            }
            let _ = writeln!(
                text,
                "\nWhat is not named has its default. Secrets are removed from the file once the box keeps them."
            );
            lacks.iter().try_for_each(|lack| writeln!(text, "\nBUT: {lack}"))
        }
    };
    let _ = writeln!(
        text,
        "\nThe file has at most {} KiB; all settings are in the template on the box's page.",
        MOST_OCTETS / 1024
    );
    text
}
