//! The logical export: all records as lines of JSON, which outlive the engine's own format.
//!
//! The first line names the format and its version, then one line per record (`tree`, `key`, `value` in base64, sorted
//! by tree and key), then one with the number of records and the SHA-256 of all lines before it. Values stay as they
//! are in the store: credentials are sealed there, and so they are here.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{MAX_KEY, MAX_VALUE, Tree};

/// One record: its tree, key and value.
pub type Record = (Tree, String, Vec<u8>);

const FORMAT: &str = "pilotlight-store-export";
const VERSION: u32 = 1;
/// A line can't be longer than the longest escaped key and encoded value; more is not ours.
const MAX_LINE: u64 = (MAX_VALUE / 3 * 4 + MAX_KEY * 6 + 256) as u64;

/// Why an export was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be made, written, synced or renamed.
    #[error("cannot be written")]
    Write(#[source] io::Error),
    /// The file could not be read.
    #[error("cannot be read")]
    Read(#[source] io::Error),
    /// The first line is not that of an export.
    #[error("is not an export of this store")]
    Foreign,
    /// The export was written by a newer version.
    #[error("has version {found}, newer than {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// A line does not parse.
    #[error("line {line} is malformed")]
    Malformed {
        /// Counted from 1.
        line: u64,
    },
    /// The end is missing, or what it says of the lines before is not so.
    #[error("is cut short or damaged")]
    Damaged,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: String,
    version: u32,
}

#[derive(Serialize, Deserialize)]
struct Line {
    tree: String,
    key: String,
    value: String,
}

#[derive(Serialize, Deserialize)]
struct Foot {
    records: u64,
    sha256: String,
}

/// Replaces the export at `path` by `records`: a new file of mode 0600, synced, renamed, and its directory synced.
///
/// # Errors
///
/// [`Error::Write`]; the former export is untouched then.
pub fn write(path: &Path, records: impl Iterator<Item = Record>) -> Result<(), Error> {
    let fresh = path.with_extension("new");
    let written = write_fresh(&fresh, records).and_then(|()| {
        fs::rename(&fresh, path)?;
        sync_parent(path)
    });
    written.map_err(Error::Write)
}

fn write_fresh(path: &Path, records: impl Iterator<Item = Record>) -> io::Result<()> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let mut lines = Lines { out: BufWriter::new(file), hash: Sha256::new() };
    lines.push(&Head { format: FORMAT.to_owned(), version: VERSION })?;
    let mut count = 0;
    for (tree, key, value) in records {
        lines.push(&Line { tree: tree.name().to_owned(), key, value: STANDARD.encode(value) })?;
        count += 1;
    }
    let digest = lines.hash.clone().finalize();
    lines.push(&Foot { records: count, sha256: hex(&digest) })?;
    lines.out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

struct Lines {
    out: BufWriter<File>,
    hash: Sha256,
}

impl Lines {
    fn push(&mut self, value: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(value).map_err(io::Error::from)?;
        line.push(b'\n');
        self.hash.update(&line);
        self.out.write_all(&line)
    }
}

/// Every record of the export at `path`; `None` when there is no such file.
///
/// # Errors
///
/// When the file is not a whole export of this version or an earlier one: then nothing of it counts.
pub fn read(path: &Path) -> Result<Option<Vec<Record>>, Error> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::Read(error)),
    };
    let mut input = BufReader::new(file);
    let mut hash = Sha256::new();
    let head = next_line(&mut input)?.ok_or(Error::Foreign)?;
    let parsed: Head = serde_json::from_slice(&head).map_err(|_| Error::Foreign)?;
    if parsed.format != FORMAT {
        return Err(Error::Foreign);
    }
    if parsed.version > VERSION {
        return Err(Error::Version { found: parsed.version });
    }
    hash.update(&head);
    let mut records = Vec::new();
    let mut number = 1;
    loop {
        number += 1;
        let line = next_line(&mut input)?.ok_or(Error::Damaged)?;
        if let Ok(foot) = serde_json::from_slice::<Foot>(&line) {
            let whole = foot.records == records.len() as u64 && foot.sha256 == hex(&hash.finalize());
            return if whole { Ok(Some(records)) } else { Err(Error::Damaged) };
        }
        records.push(parse_record(&line).ok_or(Error::Malformed { line: number })?);
        hash.update(&line);
    }
}

fn parse_record(line: &[u8]) -> Option<Record> {
    let line: Line = serde_json::from_slice(line).ok()?;
    Some((Tree::from_name(&line.tree)?, line.key, STANDARD.decode(line.value).ok()?))
}

/// The next line with its newline; `None` at the end of the file.
fn next_line(input: &mut impl BufRead) -> Result<Option<Vec<u8>>, Error> {
    let mut line = Vec::new();
    input.take(MAX_LINE).read_until(b'\n', &mut line).map_err(Error::Read)?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) => Err(Error::Damaged),
    }
}

/// Makes a rename or a new name in the directory of `path` durable.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
        Some(_) | None => File::open(".")?.sync_all(),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        vec![
            (Tree::Bmc, "4c4c4544-0042-3510-8054-b7c04f333132".to_owned(), b"sealed:v1:AAAA".to_vec()),
            (Tree::Meta, "\"quoted\"\n".to_owned(), vec![0, 255, 10, 13]),
            (Tree::View, "empty".to_owned(), Vec::new()),
            (Tree::View, "\u{1}".repeat(MAX_KEY), vec![7; MAX_VALUE]),
        ]
    }

    #[test]
    fn what_is_exported_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("export.jsonl");
        assert!(read(&path).unwrap().is_none());
        write(&path, records().into_iter()).unwrap();
        assert_eq!(read(&path).unwrap(), Some(records()));
        write(&path, std::iter::empty()).unwrap();
        assert_eq!(read(&path).unwrap(), Some(Vec::new()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn an_export_cut_anywhere_or_changed_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("export.jsonl");
        write(&path, records().into_iter().take(3)).unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(read(&path).is_err(), "cut at {cut}");
        }
        let mut changed = whole.clone();
        let at = String::from_utf8(whole).unwrap().find("c2VhbGVk").unwrap();
        changed[at] = b'd';
        fs::write(&path, &changed).unwrap();
        assert!(matches!(read(&path), Err(Error::Damaged)));
    }

    #[test]
    fn the_octets_of_version_1_are_frozen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("export.jsonl");
        write(&path, [(Tree::Intent, "m".to_owned(), b"x".to_vec())].into_iter()).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some(r#"{"format":"pilotlight-store-export","version":1}"#));
        assert_eq!(lines.next(), Some(r#"{"tree":"intent","key":"m","value":"eA=="}"#));
        assert!(lines.next().unwrap().starts_with(r#"{"records":1,"sha256":""#));
        fs::write(&path, "{\"format\":\"pilotlight-store-export\",\"version\":2}\n").unwrap();
        assert!(matches!(read(&path), Err(Error::Version { found: 2 })));
    }
}
