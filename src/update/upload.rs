//! A bundle that somebody sends: it passes once, from its beginning to its end.
//!
//! An edge, because it waits for who sends. It blocks its thread, which must not be one of the runtime's workers.

use std::io::{self, Cursor, Read};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::write::Source;

/// How long the next part may take.
const SILENCE: Duration = Duration::from_secs(60);

/// The parts, in order.
#[derive(Debug)]
pub struct Parts {
    parts: mpsc::Receiver<Bytes>,
    octets: Bytes,
    runtime: Handle,
    stop: CancellationToken,
}

impl Parts {
    /// Parts that arrive on `parts`; the end of the channel is the end of the bundle.
    pub fn new(parts: mpsc::Receiver<Bytes>, runtime: Handle, stop: CancellationToken) -> Self {
        Self { parts, octets: Bytes::new(), runtime, stop }
    }
}

impl Read for Parts {
    fn read(&mut self, octets: &mut [u8]) -> io::Result<usize> {
        while self.octets.is_empty() {
            let (parts, stop) = (&mut self.parts, &self.stop);
            let next = self.runtime.block_on(async move {
                // Nothing is lost: both are given up for good when the other is done.
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Err(io::Error::other("somebody stopped it")),
                    next = timeout(SILENCE, parts.recv()) => next.map_err(|_| io::ErrorKind::TimedOut.into()),
                }
            })?;
            match next {
                Some(part) => self.octets = part,
                None => return Ok(0),
            }
        }
        let count = octets.len().min(self.octets.len());
        self.octets.copy_to_slice(&mut octets[..count]);
        Ok(count)
    }
}

/// The image of an upload: its first chunk is kept, since it is written last.
#[derive(Debug)]
pub struct Upload<R> {
    reader: R,
    /// Octets of the image that passed.
    at: u64,
    first: Vec<u8>,
    /// How long the first chunk is.
    keep: usize,
}

impl<R: Read> Upload<R> {
    /// `reader` stands where the image begins, whose first chunk has `keep` octets.
    pub fn new(reader: R, keep: usize) -> Self {
        Self { reader, at: 0, first: Vec::new(), keep }
    }

    /// Reads what comes next, and keeps it as far as it is of the first chunk.
    fn pass(&mut self, octets: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(octets)?;
        let missing = self.keep - self.first.len();
        self.first.extend_from_slice(&octets[..count.min(missing)]);
        self.at += count as u64;
        Ok(count)
    }
}

impl<R: Read> Source for Upload<R> {
    fn open(&mut self, at: u64) -> io::Result<Box<dyn Read + '_>> {
        if at == 0 && self.at > 0 {
            while self.first.len() < self.keep && self.pass(&mut [0; 4096])? > 0 {}
            return Ok(Box::new(Cursor::new(&self.first)));
        }
        let mut octets = [0; 4096];
        while self.at < at {
            let most = usize::try_from(at - self.at).unwrap_or(usize::MAX).min(octets.len());
            if self.pass(&mut octets[..most])? == 0 {
                break;
            }
        }
        if self.at > at {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "what was sent has passed; send it again"));
        }
        Ok(Box::new(Passing(self)))
    }
}

struct Passing<'a, R>(&'a mut Upload<R>);

impl<R: Read> Read for Passing<'_, R> {
    fn read(&mut self, octets: &mut [u8]) -> io::Result<usize> {
        self.0.pass(octets)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(reader: impl Read, length: u64) -> Vec<u8> {
        let mut octets = Vec::new();
        reader.take(length).read_to_end(&mut octets).expect("it is there");
        octets
    }

    #[test]
    fn what_passed_can_not_be_had_again_but_for_the_first_chunk() {
        let image: Vec<u8> = (0..40_000u32).map(|at| (at % 251) as u8).collect();
        let mut upload = Upload::new(image.as_slice(), 4096);
        assert_eq!(all(upload.open(8192).expect("it comes"), 4096), image[8192..12_288]);
        assert_eq!(upload.open(8192).err().map(|error| error.kind()), Some(io::ErrorKind::Unsupported));
        assert_eq!(all(upload.open(16_384).expect("it comes"), 40_000), image[16_384..]);
        assert_eq!(all(upload.open(0).expect("it was kept"), 40_000), image[..4096]);
        assert_eq!(all(upload.open(0).expect("it was kept"), 40_000), image[..4096]);
    }

    proptest! {
        #[test]
        fn forward_reads_and_the_first_chunk_are_what_was_sent(
            image in proptest::collection::vec(any::<u8>(), 1..3000),
            keep in 1..1000usize,
            mut at in proptest::collection::vec(0..3000u64, 0..6),
        ) {
            let keep = keep.min(image.len());
            at.sort_unstable();
            at.dedup();
            let mut upload = Upload::new(image.as_slice(), keep);
            for at in at {
                let Ok(reader) = upload.open(at) else { continue };
                let from = usize::try_from(at).expect("small").min(image.len());
                prop_assert_eq!(all(reader, 7), &image[from..(from + 7).min(image.len())]);
            }
            let mut octets = vec![0; keep];
            upload.open(0).expect("it was kept").read_exact(&mut octets).expect("all of it");
            prop_assert_eq!(&octets[..], &image[..keep]);
        }
    }
}
