//! What is kept of the configuration, and how it is written.
//!
//! An edge, because it reads and writes files. Each file is replaced whole: a power cut leaves the old one or the new one.
//! Secrets come first, so that a configuration never stands without them, and what services are started with comes last:
//! [`load`] and [`mend`] put right what a cut in between left.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};

use super::access::{self, Code};
use super::{Kept, MOST_OCTETS, Settings, file};
use crate::net::config::Network;
use crate::secret::Secret;

/// Where the box keeps it.
pub const DIRECTORY: &str = "/data/pilotlight/settings";
/// The configuration, without secrets and without the network, which the service `net` keeps.
pub const SETTINGS: &str = "settings.toml";
/// The one before it.
pub const PREVIOUS: &str = "settings.previous.toml";
/// Omni's key.
pub const KEY: &str = "key";
/// What the services are started with, made of the configuration.
pub const FLAGS: &str = "flags";
/// What is kept of the setup code.
pub const CODE: &str = "access.json";

/// Files of one directory.
pub trait Files {
    /// A file's octets, [`MOST_OCTETS`] and one more at most; `None` when there is no such file.
    ///
    /// # Errors
    ///
    /// The file system's, or that it is no plain file.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Replaces a file, so that after a power cut it is the old one or the new one, and is on the disk when this returns.
    ///
    /// # Errors
    ///
    /// The file system's; the old one stands then.
    fn replace(&mut self, name: &str, octets: &[u8]) -> io::Result<()>;

    /// Writes over a file of the same length, where it lies on the disk. A power cut leaves each sector old or new.
    ///
    /// # Errors
    ///
    /// The file system's, or that it is of another length.
    fn overwrite(&mut self, name: &str, octets: &[u8]) -> io::Result<()>;

    /// Writes a file for people: after a power cut it may be anything.
    ///
    /// # Errors
    ///
    /// The file system's.
    fn write(&mut self, name: &str, octets: &[u8]) -> io::Result<()>;
}

/// A directory of the file system. Links are not followed.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    owner: Option<u32>,
}

impl Directory {
    /// The directory at `path`; what is written there belongs to `owner`, if one is named.
    pub fn new(path: &Path, owner: Option<u32>) -> Self {
        Self { path: path.to_owned(), owner }
    }

    /// Makes the directory where there is none, for its owner alone.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        match self.owner {
            Some(uid) => std::os::unix::fs::chown(&self.path, Some(uid), Some(uid)),
            None => Ok(()),
        }
    }

    /// Replaces a file that the directory's group may read.
    ///
    /// # Errors
    ///
    /// The file system's.
    pub fn write_for_group(&self, name: &str, octets: &[u8]) -> io::Result<()> {
        let beside = self.path.join(format!("{name}.new"));
        fs::write(&beside, octets)?;
        fs::set_permissions(&beside, fs::Permissions::from_mode(0o640))?;
        fs::rename(beside, self.path.join(name))
    }

    fn open(&self, name: &str, options: &mut OpenOptions) -> io::Result<File> {
        let file = options.mode(0o600).custom_flags(O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK).open(self.path.join(name))?;
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is no plain file")) }
    }
}

impl Files for Directory {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let file = match self.open(name, OpenOptions::new().read(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut octets = Vec::new();
        file.take(MOST_OCTETS as u64 + 1).read_to_end(&mut octets)?;
        Ok(Some(octets))
    }

    fn replace(&mut self, name: &str, octets: &[u8]) -> io::Result<()> {
        let beside = format!("{name}.new");
        let mut file = self.open(&beside, OpenOptions::new().write(true).create(true).truncate(true))?;
        if let Some(uid) = self.owner {
            fchown(&file, Some(uid), Some(uid))?;
        }
        file.write_all(octets)?;
        file.sync_all()?;
        fs::rename(self.path.join(beside), self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    fn overwrite(&mut self, name: &str, octets: &[u8]) -> io::Result<()> {
        let file = self.open(name, OpenOptions::new().read(true).write(true))?;
        if file.metadata()?.len() != octets.len() as u64 {
            return Err(io::Error::other("its length has changed"));
        }
        file.write_all_at(octets, 0)?;
        file.sync_all()
    }

    fn write(&mut self, name: &str, octets: &[u8]) -> io::Result<()> {
        let mut file = self.open(name, OpenOptions::new().write(true).create(true).truncate(true))?;
        file.write_all(octets)?;
        file.sync_all()
    }
}

/// What the box has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration, without secrets and without the network.
    pub settings: Settings,
    /// What else is there.
    pub kept: Kept,
    /// What is wrong with what was kept, in words.
    pub trouble: Option<String>,
}

/// The configuration that counts: the last one, else the one before, else none.
pub fn load(files: &impl Files) -> Loaded {
    let kept = Kept { key: matches!(files.read(KEY), Ok(Some(key)) if !key.is_empty()) };
    let mut trouble = None;
    for name in [SETTINGS, PREVIOUS] {
        let problem = match files.read(name) {
            Ok(None) => continue,
            Ok(Some(octets)) => match understand(&octets) {
                Ok(settings) => return Loaded { settings, kept, trouble },
                Err(problem) => problem,
            },
            Err(error) => error.to_string(),
        };
        trouble.get_or_insert_with(|| format!("{name} does not count: {problem}"));
    }
    Loaded { settings: Settings::default(), kept, trouble }
}

fn understand(octets: &[u8]) -> Result<Settings, String> {
    let parsed = file::parse(octets);
    if let Some(fault) = parsed.faults.first() {
        return Err(fault.to_string());
    }
    // That the key is away is said elsewhere, and does not make the rest worthless.
    Settings::read(&parsed.answers, Kept { key: true })
        .map_err(|faults| faults.first().map(ToString::to_string).unwrap_or_default())
}

/// Keeps `settings` with the secrets that they hold, and all but their network. `salt` is random.
///
/// # Errors
///
/// The file system's; the old configuration counts then, save for secrets.
pub fn save(files: &mut impl Files, settings: &Settings, salt: [u8; 16]) -> io::Result<()> {
    if let Some(key) = settings.secret("omni.key") {
        files.replace(KEY, key.reveal().as_bytes())?;
    }
    if let Some(code) = settings.secret("setup.code") {
        let code = access::Code::hashed(code.reveal(), salt).ok_or(io::ErrorKind::OutOfMemory)?;
        keep_code(files, &code)?;
    }
    let text = text_of(settings);
    match files.read(SETTINGS)? {
        Some(before) if before == text.as_bytes() => {}
        Some(before) if understand(&before).is_ok() => {
            files.replace(PREVIOUS, &before)?;
            files.replace(SETTINGS, text.as_bytes())?;
        }
        Some(_) | None => files.replace(SETTINGS, text.as_bytes())?,
    }
    mend(files, settings)
}

fn text_of(settings: &Settings) -> String {
    file::write(&settings.clone().without_secrets().with_network(Network::default()))
}

/// Sees to it that services are started with what `settings` say. Writes only when they are not.
///
/// # Errors
///
/// The file system's.
pub fn mend(files: &mut impl Files, settings: &Settings) -> io::Result<()> {
    let mut flags = String::from("# Made of settings.toml.\n");
    settings.flags().iter().for_each(|flag| flags.extend([flag.as_str(), "\n"]));
    match files.read(FLAGS) {
        Ok(Some(before)) if before == flags.as_bytes() => Ok(()),
        Ok(_) | Err(_) => files.replace(FLAGS, flags.as_bytes()),
    }
}

/// What is kept of the setup code; `None` on a box that has none yet, or can't read it.
pub fn code(files: &impl Files) -> Option<Code> {
    serde_json::from_slice(&files.read(CODE).ok()??).ok()
}

/// Keeps the setup code.
///
/// # Errors
///
/// The file system's.
pub fn keep_code(files: &mut impl Files, code: &Code) -> io::Result<()> {
    let text = Secret::new(serde_json::to_string(code)?);
    files.replace(CODE, text.reveal().as_bytes())
}
