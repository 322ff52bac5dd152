//! The image of another disk, put together while it is read.
//!
//! An edge, because it reads the own disk.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use crate::supervise::install::layout::{From, Piece};

/// Pieces as one image; what none covers is zero. It has no end.
#[derive(Debug)]
pub(super) struct Composed<'a> {
    own: File,
    pieces: &'a [Piece],
    at: u64,
}

impl<'a> Composed<'a> {
    /// `pieces` are in order.
    pub(super) fn new(own: File, pieces: &'a [Piece]) -> Self {
        Self { own, pieces, at: 0 }
    }
}

impl Read for Composed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = self.at;
        let next = self.pieces.iter().find(|piece| piece.at + piece.length > at);
        // As many octets as come from one place.
        let (from, room) = match next {
            Some(piece) if piece.at <= at => (Some(piece), piece.at + piece.length - at),
            Some(piece) => (None, piece.at - at),
            None => (None, u64::MAX),
        };
        let length = usize::try_from(room).unwrap_or(usize::MAX).min(buffer.len());
        let octets = &mut buffer[..length];
        match from.map(|piece| (at - piece.at, &piece.from)) {
            None => octets.fill(0),
            Some((into, From::Own(begin))) => self.own.read_exact_at(octets, begin + into)?,
            Some((into, From::Octets(known))) => {
                let known = usize::try_from(into).ok().and_then(|into| known.get(into..)?.get(..length));
                octets.copy_from_slice(known.ok_or(io::ErrorKind::UnexpectedEof)?);
            }
        }
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for Composed<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.at = match to {
            SeekFrom::Start(at) => at,
            SeekFrom::Current(by) => self.at.checked_add_signed(by).ok_or(io::ErrorKind::InvalidInput)?,
            SeekFrom::End(_) => return Err(io::ErrorKind::Unsupported.into()),
        };
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn pieces_and_what_is_between_them_are_read_in_any_portions() {
        let mut own = tempfile::tempfile().unwrap();
        own.write_all(b"0123456789").unwrap();
        let pieces = [
            Piece { at: 2, length: 3, from: From::Own(4) },
            Piece { at: 7, length: 2, from: From::Octets(b"ab".to_vec()) },
        ];
        for portion in 1..12 {
            let mut image = Composed::new(own.try_clone().unwrap(), &pieces);
            let mut found = Vec::new();
            while found.len() < 12 {
                let mut buffer = vec![0xff; portion];
                let length = image.read(&mut buffer).unwrap();
                found.extend_from_slice(&buffer[..length]);
            }
            assert_eq!(&found[..12], b"\0\x00456\0\0ab\0\0\0", "{portion} at a time");
            image.seek(SeekFrom::Start(8)).unwrap();
            let mut one = [0];
            image.read_exact(&mut one).unwrap();
            assert_eq!(&one, b"b");
        }
        let beyond = [Piece { at: 0, length: 20, from: From::Own(5) }];
        assert!(Composed::new(own, &beyond).read(&mut [0; 20]).is_err(), "the own disk ends before");
    }
}
