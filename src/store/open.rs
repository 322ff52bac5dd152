//! The open guard: what a crash leaves behind must not keep the box from starting.
//!
//! sled 0.34.7 fails to open when a crash left a half-written snapshot (`snap.*.generating`, or an empty `snap.*`), and
//! may panic on others (spacejam/sled#1387, #1410, #1527, #1533). Snapshots are rebuilt from the log, so they may go.
//! Only a database that does not open without them either is moved aside, and the last export takes its place.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::records::{self, Unreadable};
use super::{Batch, Error, Op, Opened, export};

/// How many databases that would not open are kept for a look at them.
const DAMAGED_KEPT: u32 = 2;
/// Bytes of the engine's cache; measured to be enough for some thousand machines.
const CACHE: u64 = 8 * 1024 * 1024;
/// How often the engine cleans up, and has the disk flush whether anything was written or not. No commit depends on that: the
/// writer flushes each. Half a second, the engine's own pace, would be 172,800 flushes a day of an idle box's disk.
const CLEAN_EVERY: Duration = Duration::from_secs(60);

/// How often the engine's own lock is tried again, and after which pause.
const ENGINE_LOCK_ATTEMPTS: u32 = 20;
const ENGINE_LOCK_POLL: Duration = Duration::from_millis(10);

/// Files of a store's directory.
pub(super) struct Layout {
    /// The directory itself.
    pub dir: PathBuf,
}

impl Layout {
    /// Locked as long as a process holds the store. The engine's own lock is not enough: the guard moves its files.
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The engine's directory.
    pub fn database(&self) -> PathBuf {
        self.dir.join("sled")
    }

    /// The engine's log, which holds all records.
    pub fn log(&self) -> PathBuf {
        self.database().join("db")
    }

    /// The logical export.
    pub fn export(&self) -> PathBuf {
        self.dir.join("export.jsonl")
    }

    fn damaged(&self, number: u32) -> PathBuf {
        self.dir.join(format!("sled.damaged.{number}"))
    }
}

/// Why one attempt did not yield a database.
enum Attempt {
    /// Another attempt after repairs may work.
    Damaged,
    /// Repairs don't help: the disk is full, read-only, failing.
    Hopeless(sled::Error),
}

/// Opens the database of `layout`, which the caller has locked, and says how it came up.
pub(super) fn open(layout: &Layout) -> Result<(sled::Db, Opened), Error> {
    let database = layout.database();
    make_dir(&database)?;
    discard_partial_snapshots(&database)?;
    let engine = |source| Error::Engine { op: "open", dir: layout.dir.clone(), source };
    let mut first = attempt(&database);
    for _ in 0..ENGINE_LOCK_ATTEMPTS {
        match &first {
            Err(Attempt::Hopeless(sled::Error::Io(error))) if error.to_string().contains("acquire lock") => {}
            Ok(_) | Err(_) => break,
        }
        // The engine's own lock: we hold ours, so that it is let go of at any moment.
        std::thread::sleep(ENGINE_LOCK_POLL);
        first = attempt(&database);
    }
    match first {
        Ok(db) => return Ok((db, Opened::Clean)),
        Err(Attempt::Hopeless(error)) => return Err(engine(error)),
        Err(Attempt::Damaged) => tracing::warn!(dir = %layout.dir.display(), "store: opening without its snapshots"),
    }
    discard_snapshots(&database)?;
    match attempt(&database) {
        Ok(db) => return Ok((db, Opened::SnapshotsDiscarded)),
        Err(Attempt::Hopeless(error)) => return Err(engine(error)),
        Err(Attempt::Damaged) => tracing::error!(dir = %layout.dir.display(), "store: does not open, moved aside"),
    }
    // Read first: an export that can't be read must be known before the damaged database is out of the way.
    let records = export::read(&layout.export()).unwrap_or_else(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "store: the export can't be read either");
        None
    });
    move_aside(layout)?;
    make_dir(&database)?;
    let db = match attempt(&database) {
        Ok(db) => db,
        Err(Attempt::Hopeless(error)) => return Err(engine(error)),
        Err(Attempt::Damaged) => return Err(Error::Unopenable { dir: layout.dir.clone() }),
    };
    let opened = match records {
        Some(records) => import(layout, &db, records)?,
        None => Opened::Lost,
    };
    Ok((db, opened))
}

fn attempt(database: &Path) -> Result<sled::Db, Attempt> {
    let config = sled::Config::new()
        .path(database)
        .cache_capacity(CACHE)
        .mode(sled::Mode::LowSpace)
        .flush_every_ms(Some(CLEAN_EVERY.as_millis() as u64))
        .print_profile_on_drop(false);
    // The closure owns what it makes, so that nothing half-made is seen after a panic.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let db = config.open()?;
        // Damage in a page shows itself when it is read: better here than in the middle of a boot.
        let mut foreign = 0_u32;
        for record in records::list(&db, None) {
            match record {
                Ok(_) => {}
                Err(Unreadable::Engine(error)) => return Err(error),
                Err(Unreadable::Foreign(key)) => {
                    tracing::debug!(key, "store: a record that this version did not write");
                    foreign += 1;
                }
            }
        }
        if foreign > 0 {
            tracing::warn!(foreign, "store: holds records that this version did not write");
        }
        Ok(db)
    }));
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(error)) if is_damage(&error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "store: damaged");
            Err(Attempt::Damaged)
        }
        Ok(Err(error)) => Err(Attempt::Hopeless(error)),
        Err(_panic) => Err(Attempt::Damaged),
    }
}

fn is_damage(error: &sled::Error) -> bool {
    match error {
        sled::Error::Corruption { .. }
        | sled::Error::ReportableBug(_)
        | sled::Error::Unsupported(_)
        | sled::Error::CollectionNotFound(_) => true,
        sled::Error::Io(error) => matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData),
    }
}

fn import(layout: &Layout, db: &sled::Db, records: Vec<export::Record>) -> Result<Opened, Error> {
    let count = records.len() as u64;
    for chunk in records.chunks(256) {
        let ops =
            chunk.iter().map(|(tree, key, value)| Op::Put { tree: *tree, key: key.clone(), value: value.clone() });
        let loaded = records::engine_batch(db, &Batch(ops.collect())).and_then(|batch| db.apply_batch(batch));
        loaded.map_err(|source| Error::Engine { op: "load its export", dir: layout.dir.clone(), source })?;
    }
    Ok(Opened::Imported { records: count })
}

fn make_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(|source| Error::File { op: "create", path: path.to_owned(), source })
}

fn snapshots(database: &Path) -> Result<Vec<PathBuf>, Error> {
    let failed = |source| Error::File { op: "list", path: database.to_owned(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(database).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if entry.file_name().to_string_lossy().starts_with("snap.") {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Removes what a crash left of a snapshot in the making.
fn discard_partial_snapshots(database: &Path) -> Result<(), Error> {
    for path in snapshots(database)? {
        let empty = fs::metadata(&path).is_ok_and(|meta| meta.len() == 0);
        if empty || path.extension().is_some_and(|extension| extension == "generating") {
            remove_file(&path)?;
        }
    }
    Ok(())
}

/// Moves every snapshot out of the engine's sight; an older one that was moved before is replaced.
fn discard_snapshots(database: &Path) -> Result<(), Error> {
    let aside = database.with_extension("snapshots-aside");
    make_dir(&aside)?;
    for path in snapshots(database)? {
        let name = path.file_name().expect("a listed file has a name");
        fs::rename(&path, aside.join(name)).map_err(|source| Error::File { op: "move", path: path.clone(), source })?;
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), Error> {
    fs::remove_file(path).map_err(|source| Error::File { op: "remove", path: path.to_owned(), source })
}

/// Shifts the damaged databases by one, dropping the oldest, and puts the current one first.
fn move_aside(layout: &Layout) -> Result<(), Error> {
    let oldest = layout.damaged(DAMAGED_KEPT);
    if oldest.exists() {
        fs::remove_dir_all(&oldest).map_err(|source| Error::File { op: "remove", path: oldest, source })?;
    }
    let moves = (1..DAMAGED_KEPT).rev().map(|number| (layout.damaged(number), layout.damaged(number + 1)));
    for (from, to) in moves.chain([(layout.database(), layout.damaged(1))]) {
        if from.exists() {
            fs::rename(&from, to).map_err(|source| Error::File { op: "move", path: from, source })?;
        }
    }
    Ok(())
}
