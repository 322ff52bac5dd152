//! A disk for QEMU that remembers what is done to it: a server of the NBD protocol (doc/proto.md of its project, fixed
//! newstyle, simple replies) for one client. Requests are taken one after the other, so that a flush covers what was
//! answered before it.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::disk::{Event, Mark, Pages, Recording};

const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 2;
const OPTION_GO: u32 = 7;
const REPLY: u64 = 0x0003_e889_0455_65a9;
const ACKNOWLEDGED: u32 = 1;
const INFORMATION: u32 = 3;
const UNSUPPORTED: u32 = 0x8000_0001;
/// Has flags, flush, write zeroes.
const EXPORT: u16 = 1 | 4 | 64;
const REQUEST: u32 = 0x2560_9513;
const ANSWER: u32 = 0x6744_6698;
const INVALID: u32 = 22;
/// More than QEMU asks for at once.
const MOST: u32 = 64 << 20;

/// The errno of a disk that fails (EIO).
const FAILS: u32 = 5;

#[derive(Default)]
struct Disk {
    pages: Pages,
    /// From here on it fails, when it is read (if so) and when it is written.
    broken: Option<(u64, bool)>,
    /// While something is recorded: what was there before, and what was done since.
    record: Option<(Pages, Vec<Event>)>,
}

/// The disk, while its machine runs.
pub struct Server {
    disk: Arc<Mutex<Disk>>,
    pub socket: PathBuf,
}

impl Server {
    /// A disk of `octets`, at a socket in `directory`.
    pub fn start(directory: &Path, octets: u64) -> Self {
        let socket = directory.join("disk");
        let listener = UnixListener::bind(&socket).unwrap();
        let disk = Arc::new(Mutex::new(Disk::default()));
        let shared = Arc::clone(&disk);
        // It ends with its one client.
        std::thread::spawn(move || {
            let served = listener.accept().and_then(|(stream, _)| serve(stream, octets, &shared));
            // A machine whose power is cut says no goodbye.
            drop(served);
        });
        Self { disk, socket }
    }

    /// Puts another content into it. The machine must not hold any of the old one.
    pub fn insert(&self, pages: &Pages) {
        self.disk.lock().unwrap().pages = pages.clone();
    }

    pub fn pages(&self) -> Pages {
        self.disk.lock().unwrap().pages.clone()
    }

    /// From the octet `at` on, nothing can be written any more; nor read, where `reads` says so.
    pub fn fail(&self, at: u64, reads: bool) {
        self.disk.lock().unwrap().broken = Some((at, reads));
    }

    pub fn begin_record(&self) {
        let mut disk = self.disk.lock().unwrap();
        disk.record = Some((disk.pages.clone(), Vec::new()));
    }

    pub fn mark(&self, mark: Mark) {
        self.disk.lock().unwrap().note(|| Event::Mark(mark));
    }

    pub fn end_record(&self) -> Recording {
        let (before, log) = self.disk.lock().unwrap().record.take().expect("it was begun");
        Recording::new(before, log)
    }
}

impl Disk {
    fn note(&mut self, event: impl FnOnce() -> Event) {
        if let Some((_, log)) = &mut self.record {
            log.push(event());
        }
    }
}

fn u16_of(stream: &mut impl Read) -> io::Result<u16> {
    let mut octets = [0; 2];
    stream.read_exact(&mut octets).map(|()| u16::from_be_bytes(octets))
}

fn u32_of(stream: &mut impl Read) -> io::Result<u32> {
    let mut octets = [0; 4];
    stream.read_exact(&mut octets).map(|()| u32::from_be_bytes(octets))
}

fn u64_of(stream: &mut impl Read) -> io::Result<u64> {
    let mut octets = [0; 8];
    stream.read_exact(&mut octets).map(|()| u64::from_be_bytes(octets))
}

fn serve(mut stream: UnixStream, octets: u64, disk: &Mutex<Disk>) -> io::Result<()> {
    stream.write_all(b"NBDMAGICIHAVEOPT")?;
    stream.write_all(&(FIXED_NEWSTYLE | NO_ZEROES).to_be_bytes())?;
    u32_of(&mut stream)?;
    loop {
        u64_of(&mut stream)?;
        let (option, length) = (u32_of(&mut stream)?, u32_of(&mut stream)?);
        stream.read_exact(&mut vec![0; length.min(4096) as usize])?;
        let mut reply = |kind: u32, octets: &[u8]| {
            let head = [&REPLY.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes()].concat();
            stream.write_all(&[&head, &(octets.len() as u32).to_be_bytes()[..], octets].concat())
        };
        if option == OPTION_GO {
            reply(INFORMATION, &[&[0, 0], &octets.to_be_bytes()[..], &EXPORT.to_be_bytes()].concat())?;
            reply(ACKNOWLEDGED, &[])?;
            break;
        }
        reply(UNSUPPORTED, &[])?;
    }
    loop {
        if u32_of(&mut stream)? != REQUEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let (_flags, kind, cookie) = (u16_of(&mut stream)?, u16_of(&mut stream)?, u64_of(&mut stream)?);
        let (at, length) = (u64_of(&mut stream)?, u32_of(&mut stream)?);
        let mut answer = [&ANSWER.to_be_bytes()[..], &[0; 4], &cookie.to_be_bytes()].concat();
        let fits = at.checked_add(u64::from(length)).is_some_and(|end| end <= octets);
        let mut held = Vec::new();
        if kind == 1 {
            held.resize(length.min(MOST) as usize, 0);
            stream.read_exact(&mut held)?;
        }
        let mut disk = disk.lock().unwrap();
        let broken = disk.broken.is_some_and(|(from, reads)| {
            at + u64::from(length) > from && (matches!(kind, 1 | 6) || reads && kind == 0)
        });
        match kind {
            _ if broken => answer[4..8].copy_from_slice(&FAILS.to_be_bytes()),
            0 if fits && length <= MOST => answer.extend(disk.pages.octets(at, length as usize)),
            1 if fits && length <= MOST => {
                disk.pages.write(at, &held);
                disk.note(|| Event::Write(at, Arc::from(held)));
            }
            2 => return Ok(()),
            3 => disk.note(|| Event::Flush),
            6 if fits => {
                disk.pages.zero(at, u64::from(length));
                disk.note(|| Event::Zero(at, u64::from(length)));
            }
            _ => answer[4..8].copy_from_slice(&INVALID.to_be_bytes()),
        }
        drop(disk);
        stream.write_all(&answer)?;
    }
}
