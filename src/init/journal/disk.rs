//! Chunks on the data partition, in a thread: a disk that hangs holds up nobody else.
//!
//! One write at a time, so that the queue is bounded by one chunk.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::journal::entry::Entry;
use crate::journal::{CLOCK_FILE, chunk, keep, ring};
use crate::supervise::clock;
use crate::time::UnixTime;

/// Chunks that are deleted for one that does not fit on the disk.
const SACRIFICES: usize = 4;
/// How much of the ring may be filled with what was logged before: the rest is for what is to come.
const RECALLED: usize = ring::MAX_OCTETS / 4;

/// One chunk to write.
#[derive(Debug)]
pub(super) struct Job {
    /// Its first entry.
    pub first: u64,
    /// Its last entry.
    pub last: u64,
    /// The size of its entries in memory.
    pub octets: usize,
    /// The chunk.
    pub packed: Vec<u8>,
}

/// What came of a job.
#[derive(Debug)]
pub(super) struct Written {
    /// See [`Job::last`].
    pub last: u64,
    /// See [`Job::octets`].
    pub octets: usize,
    /// The chunk's size, or why it is not on disk.
    pub outcome: io::Result<usize>,
}

/// What was on disk.
#[derive(Debug, Default)]
pub(super) struct Recalled {
    /// The last entries, in order.
    pub entries: Vec<Entry>,
    /// How many chunks did not count; they are deleted.
    pub damaged: usize,
    /// Why nothing could be read.
    pub trouble: Option<String>,
}

/// The thread's other side.
pub(super) struct Disk {
    jobs: SyncSender<Job>,
    recalled: Receiver<Recalled>,
    results: Receiver<Written>,
    /// Becomes readable when there is a result.
    bell: UnixStream,
    busy: bool,
}

impl Disk {
    /// Starts the thread for chunks in `directory`.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub(super) fn start(directory: PathBuf) -> io::Result<Self> {
        let (jobs, orders) = mpsc::sync_channel::<Job>(1);
        let (tell_recalled, recalled) = mpsc::sync_channel(1);
        let (tell, results) = mpsc::sync_channel(1);
        let (bell, mut ring) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        thread::Builder::new().name("disk".to_owned()).spawn(move || {
            // Who asked may have given up waiting.
            let _ = tell_recalled.send(recall(&directory));
            while let Ok(Job { first, last, octets, packed }) = orders.recv() {
                let outcome = store(&directory, first, &packed);
                if tell.send(Written { last, octets, outcome }).is_err() || ring.write_all(&[0]).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { jobs, recalled, results, bell, busy: false })
    }

    /// What was on disk, if it says so within `limit`.
    pub(super) fn recall(&mut self, limit: Duration) -> Recalled {
        let late = || Recalled { trouble: Some("the disk does not answer".to_owned()), ..Recalled::default() };
        self.recalled.recv_timeout(limit).unwrap_or_else(|_| late())
    }

    /// Whether it can take a job.
    pub(super) const fn is_idle(&self) -> bool {
        !self.busy
    }

    /// Gives it a job; it must be idle.
    pub(super) fn write(&mut self, job: Job) {
        self.busy = self.jobs.try_send(job).is_ok();
    }

    /// What came of the job, if it is done.
    pub(super) fn result(&mut self) -> Option<Written> {
        // One octet a result; more than that is never there.
        let _ = self.bell.read(&mut [0; 8]);
        let written = self.results.try_recv().ok()?;
        self.busy = false;
        Some(written)
    }

    /// What came of the job, if it is done within `limit`.
    pub(super) fn wait(&mut self, limit: Duration) -> Option<Written> {
        let written = self.results.recv_timeout(limit).ok()?;
        self.busy = false;
        Some(written)
    }
}

impl AsFd for Disk {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

/// Chunks by name, with their sizes, the oldest first.
fn chunks(directory: &Path) -> io::Result<Vec<(String, u64)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if chunk::first_entry(&name).is_some() {
            all.push((name, entry.metadata()?.len()));
        }
    }
    all.sort();
    Ok(all)
}

fn recall(directory: &Path) -> Recalled {
    let mut recalled = Recalled::default();
    let names = match chunks(directory) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return recalled,
        Err(error) => return Recalled { trouble: Some(error.to_string()), ..recalled },
    };
    let (mut newest_first, mut octets) = (Vec::new(), 0);
    for (name, _) in names.iter().rev() {
        let path = directory.join(name);
        match read(&path) {
            Ok(Ok(entries)) => {
                octets += entries.iter().map(Entry::size).sum::<usize>();
                newest_first.push(entries);
            }
            Ok(Err(_damaged)) => {
                recalled.damaged += 1;
                // It can't be read any better later.
                let _ = fs::remove_file(&path);
            }
            Err(error) => recalled.trouble = Some(format!("{name}: {error}")),
        }
        if octets >= RECALLED {
            break;
        }
    }
    recalled.entries = newest_first.into_iter().rev().flatten().collect();
    // A chunk may hold anything that has its digest; the ring counts on the order.
    recalled.entries.sort_by_key(|entry| entry.sequence);
    recalled
}

fn read(path: &Path) -> io::Result<Result<Vec<Entry>, chunk::Damaged>> {
    let mut octets = Vec::new();
    File::open(path)?.take(chunk::MAX_CHUNK as u64 + 1).read_to_end(&mut octets)?;
    Ok(chunk::decode(&octets))
}

/// Writes a chunk, the oldest of which give way; returns its size when it is on disk.
fn store(directory: &Path, first: u64, packed: &[u8]) -> io::Result<usize> {
    if !directory.exists() {
        DirBuilder::new().mode(0o700).create(directory)?;
    }
    let mut existing = chunks(directory)?;
    for name in keep::outdated(&existing, packed.len() as u64) {
        fs::remove_file(directory.join(&name))?;
        existing.retain(|(other, _)| *other != name);
    }
    let path = directory.join(chunk::file_name(first));
    let mut sacrifices = existing.iter().take(SACRIFICES);
    loop {
        match write(&path, packed) {
            Err(error) if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
                let Some((oldest, _)) = sacrifices.next() else { return Err(error) };
                fs::remove_file(directory.join(oldest))?;
            }
            Err(error) => return Err(error),
            Ok(()) => break,
        }
    }
    // In the same commit of the file system.
    save_clock(directory)?;
    File::open(directory)?.sync_all()?;
    Ok(packed.len())
}

/// Never over another: a name is used once. What could not be finished is taken away.
fn write(path: &Path, packed: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(path)?;
    let result = file.write_all(packed).and_then(|()| file.sync_data());
    if result.is_err() {
        // When this fails as well, the chunk is found damaged.
        let _ = fs::remove_file(path);
    }
    result
}

/// Notes how late it is, for a next run without a clock. A time that is not to be believed is not passed on.
fn save_clock(directory: &Path) -> io::Result<()> {
    let now = UnixTime::now();
    if !clock::sane(clock::build_time(), now) {
        return Ok(());
    }
    let file =
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o640).open(directory.join(CLOCK_FILE))?;
    file.set_modified(SystemTime::UNIX_EPOCH + now.since(UnixTime::default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::entry::Draft;

    const SOON: Duration = Duration::from_secs(20);

    fn entry(sequence: u64) -> Entry {
        Draft::own(6, format!("line {sequence}")).finish(sequence, UnixTime::from_secs(1), 1)
    }

    fn job(numbers: std::ops::RangeInclusive<u64>) -> Job {
        let entries: Vec<_> = numbers.clone().map(entry).collect();
        let packed = chunk::encode(&entries.iter().collect::<Vec<_>>()).unwrap();
        Job { first: *numbers.start(), last: *numbers.end(), octets: 100, packed }
    }

    fn numbers(recalled: &Recalled) -> Vec<u64> {
        recalled.entries.iter().map(|entry| entry.sequence).collect()
    }

    #[test]
    fn what_was_written_is_recalled_and_a_torn_chunk_costs_itself_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut disk = Disk::start(path.clone()).unwrap();
        let first = disk.recall(SOON);
        assert_eq!((first.entries.len(), first.damaged, first.trouble), (0, 0, None));
        for numbers in [1..=3, 4..=5, 6..=6] {
            disk.write(job(numbers.clone()));
            let written = disk.wait(SOON).unwrap();
            assert_eq!((written.last, written.outcome.is_ok()), (*numbers.end(), true));
        }
        let saved = fs::metadata(path.join(CLOCK_FILE)).unwrap().modified().unwrap();
        let saved = saved.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(saved.abs_diff(UnixTime::now().as_secs()) < 100);

        let torn = path.join(chunk::file_name(4));
        let whole = fs::read(&torn).unwrap();
        fs::write(&torn, &whole[..whole.len() / 2]).unwrap();
        let recalled = recall(&path);
        assert_eq!((numbers(&recalled), recalled.damaged), (vec![1, 2, 3, 6], 1));
        assert!(!torn.exists() && recall(&path).damaged == 0);
    }

    #[test]
    fn every_length_of_a_torn_last_chunk_is_survived() {
        let dir = tempfile::tempdir().unwrap();
        store(dir.path(), 1, &job(1..=2).packed).unwrap();
        let packed = job(3..=4).packed;
        for length in 0..packed.len() {
            fs::write(dir.path().join(chunk::file_name(3)), &packed[..length]).unwrap();
            let recalled = recall(dir.path());
            assert_eq!((numbers(&recalled), recalled.damaged), (vec![1, 2], 1), "{length}");
        }
    }

    #[test]
    fn chunks_give_way_to_a_quota() {
        let dir = tempfile::tempdir().unwrap();
        let packed = job(1..=2).packed;
        for first in 1..=keep::MOST as u64 + 3 {
            write(&dir.path().join(chunk::file_name(first)), &packed).unwrap();
        }
        store(dir.path(), 9_999, &packed).unwrap();
        let left = chunks(dir.path()).unwrap();
        assert_eq!(left.len(), keep::MOST);
        assert_eq!(left.first().unwrap().0, chunk::file_name(5));
        assert_eq!(left.last().unwrap().0, chunk::file_name(9_999));
        assert!(store(dir.path(), 9_999, &packed).is_err(), "no name is used twice");
    }
}
