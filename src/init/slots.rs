//! The slot records, in a thread: a medium that hangs holds up nobody else.
//!
//! An edge: it owns the `state` partition. What is written says [`crate::supervise::slots`].

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use super::source::Source;
use crate::slots::device::{Device, Fault, load, store_commit, store_try};
use crate::slots::{Commit, Try};
use crate::supervise::Event;
use crate::time::Uptime;

/// What is to be written. One at a time.
#[derive(Debug)]
pub(super) struct Job {
    pub commit: Option<Box<Commit>>,
    pub tries: Option<Try>,
}

/// The loop's end of the thread.
struct Results {
    events: Receiver<Event>,
    /// Becomes readable when there is an event, and ends with the thread.
    bell: Option<UnixStream>,
    path: PathBuf,
}

/// Starts the thread, which reads the records at `path` first. Returns where jobs go and where events come from.
///
/// # Errors
///
/// The kernel's.
pub(super) fn start(path: PathBuf) -> io::Result<(SyncSender<Job>, Box<dyn Source>)> {
    let (jobs, orders) = mpsc::sync_channel::<Job>(1);
    let (tell, events) = mpsc::sync_channel(2);
    let (bell, ring) = UnixStream::pair()?;
    bell.set_nonblocking(true)?;
    let device = path.clone();
    thread::Builder::new().name("slots".to_owned()).spawn(move || {
        let mut ring = ring;
        // Gone before the bell is: whoever heard its end finds that nobody takes a job.
        let orders = orders;
        let mut say = |event| tell.send(event).is_ok() && ring.write_all(&[0]).is_ok();
        let mut device = match Device::open(&device) {
            Ok(device) => device,
            Err(error) => {
                say(Event::SlotsRead(Err(format!("{}: {error}", device.display()))));
                return;
            }
        };
        if !say(Event::SlotsRead(Ok(Box::new(load(&mut device))))) {
            return;
        }
        while let Ok(job) = orders.recv() {
            let outcome = store(&mut device, &job).map_err(|fault| in_words(&fault));
            if !say(Event::SlotsWritten { outcome, records: Some(Box::new(load(&mut device))) }) {
                return;
            }
        }
    })?;
    Ok((jobs, Box::new(Results { events, bell: Some(bell), path })))
}

fn store(device: &mut Device, job: &Job) -> Result<(), Fault> {
    let records = load(device);
    if let Some(commit) = &job.commit {
        store_commit(device, &records, commit)?;
    }
    match &job.tries {
        Some(tries) => store_try(device, &records, tries),
        None => Ok(()),
    }
}

/// A fault with what caused it.
pub(super) fn in_words(fault: &Fault) -> String {
    match std::error::Error::source(fault) {
        Some(cause) => format!("{fault}: {cause}"),
        None => fault.to_string(),
    }
}

impl Source for Results {
    fn descriptors(&self, _now: Uptime) -> Vec<BorrowedFd<'_>> {
        self.bell.iter().map(UnixStream::as_fd).collect()
    }

    fn turn(&mut self, _now: Uptime) -> Vec<Event> {
        let ended = self.bell.as_mut().is_some_and(|bell| matches!(bell.read(&mut [0; 8]), Ok(0)));
        let mut events: Vec<_> = self.events.try_iter().collect();
        if ended {
            self.bell = None;
            // Whoever waits for a write waits no more; where none is waited for, this means nothing.
            let outcome = Err(format!("{}: nobody writes any more", self.path.display()));
            events.push(Event::SlotsWritten { outcome, records: None });
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slots::{Records, Slot, partition};

    fn events(source: &mut Box<dyn Source>) -> Vec<Event> {
        loop {
            crate::sys::wait::readable(&source.descriptors(Uptime::now()), None).unwrap();
            let events = source.turn(Uptime::now());
            if !events.is_empty() {
                return events;
            }
        }
    }

    fn standing(records: &Records) -> &Commit {
        records.commit().unwrap().1
    }

    #[test]
    fn what_is_written_is_told_when_it_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let first = Commit::first(None);
        std::fs::write(&path, partition(&first.encode(), &Try::first("5".repeat(16)).encode())).unwrap();
        let (jobs, mut source) = start(path.clone()).unwrap();
        let [Event::SlotsRead(Ok(records))] = &events(&mut source)[..] else { panic!() };
        assert_eq!(standing(records), &first);
        let second = Commit { sequence: 2, slot: Slot::B, ..first };
        jobs.try_send(Job { commit: Some(Box::new(second.clone())), tries: None }).unwrap();
        let [Event::SlotsWritten { outcome: Ok(()), records: Some(records) }] = &events(&mut source)[..] else {
            panic!()
        };
        assert_eq!(standing(records), &second);
        assert_eq!(standing(&load(&mut Device::open(&path).unwrap())), &second);
    }

    #[test]
    fn a_disk_that_is_not_there_is_said_once() {
        let (jobs, mut source) = start("/nowhere/state".into()).unwrap();
        let mut all = Vec::new();
        while !source.descriptors(Uptime::now()).is_empty() {
            all.extend(events(&mut source));
        }
        let [Event::SlotsRead(Err(reason)), Event::SlotsWritten { outcome: Err(_), records: None }] = &all[..] else {
            panic!("{all:?}")
        };
        assert!(reason.contains("/nowhere/state"));
        assert!(jobs.try_send(Job { commit: None, tries: None }).is_err());
    }
}
