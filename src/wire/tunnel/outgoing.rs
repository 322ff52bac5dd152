//! The sending half of a stream: one message cut to pieces as the peer's window allows.

use bytes::Bytes;

use super::CHUNK_MAX;
use crate::proto::tunnel::MessageData;

/// A piece of a message.
#[derive(Debug, PartialEq)]
pub enum Piece {
    /// The first, with the whole message's size.
    First(MessageData),
    /// A later one.
    More(Vec<u8>),
}

/// One message on its way out.
#[derive(Debug)]
pub struct Outgoing {
    rest: Bytes,
    size: u32,
    begun: bool,
    /// Octets that the peer still takes; `None` in revision zero.
    window: Option<u32>,
}

impl Outgoing {
    /// Sends `message`; `window` is what the peer granted, `None` in revision zero. `None` if no envelope can hold the
    /// message's size.
    pub fn new(message: Bytes, window: Option<u32>) -> Option<Self> {
        let size = u32::try_from(message.len()).ok()?;
        Some(Self { rest: message, size, begun: false, window })
    }

    /// Takes the peer's credit. Go wraps at 2^32; a window that stays at its top is harmless.
    pub fn credit(&mut self, octets: u32) {
        if let Some(window) = &mut self.window {
            *window = window.saturating_add(octets);
        }
    }

    /// Whether all of it was taken.
    pub fn is_done(&self) -> bool {
        self.begun && self.rest.is_empty()
    }

    /// Whether [`Self::next`] has a piece now.
    ///
    /// An empty message costs no credit and therefore does not wait for any, other than Go's.
    pub fn is_ready(&self) -> bool {
        !self.is_done() && (self.rest.is_empty() || self.window != Some(0))
    }

    /// The next piece: at most [`CHUNK_MAX`] octets and what the window has left.
    pub fn next(&mut self) -> Option<Piece> {
        if !self.is_ready() {
            return None;
        }
        let window = self.window.map_or(usize::MAX, |window| usize::try_from(window).unwrap_or(usize::MAX));
        let piece = self.rest.split_to(self.rest.len().min(CHUNK_MAX).min(window));
        if let Some(window) = &mut self.window {
            *window = window.saturating_sub(u32::try_from(piece.len()).unwrap_or(u32::MAX));
        }
        if std::mem::replace(&mut self.begun, true) {
            Some(Piece::More(piece.into()))
        } else {
            Some(Piece::First(MessageData { size: self.size, data: piece }))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(outgoing: &mut Outgoing) -> Vec<usize> {
        std::iter::from_fn(|| outgoing.next())
            .map(|piece| match piece {
                Piece::First(first) => first.data.len(),
                Piece::More(more) => more.len(),
            })
            .collect()
    }

    #[test]
    fn a_hundred_kilobytes_fill_the_window_and_wait_for_credit() {
        let mut outgoing = Outgoing::new(Bytes::from(vec![7; 100_008]), Some(65_536)).unwrap();
        assert_eq!(lengths(&mut outgoing), [16_384; 4]);
        outgoing.credit(0);
        assert!(!outgoing.is_ready());
        outgoing.credit(16_384);
        outgoing.credit(16_384);
        outgoing.credit(16_384);
        assert_eq!(lengths(&mut outgoing), [16_384, 16_384, 1_704]);
        assert!(outgoing.is_done());
    }

    #[test]
    fn a_window_of_five_octets_is_used() {
        let mut outgoing = Outgoing::new(Bytes::from_static(&[1; 17]), Some(0)).unwrap();
        assert!(outgoing.next().is_none());
        outgoing.credit(5);
        assert!(matches!(outgoing.next(), Some(Piece::First(first)) if first.size == 17 && first.data.len() == 5));
        outgoing.credit(50);
        assert_eq!(outgoing.next(), Some(Piece::More(vec![1; 12])));
    }

    #[test]
    fn an_empty_message_is_one_frame_even_at_window_zero() {
        let mut outgoing = Outgoing::new(Bytes::new(), Some(0)).unwrap();
        assert_eq!(outgoing.next(), Some(Piece::First(MessageData::default())));
        assert!(outgoing.is_done() && outgoing.next().is_none());
    }

    #[test]
    fn credit_saturates() {
        let mut outgoing = Outgoing::new(Bytes::from_static(b"x"), Some(u32::MAX)).unwrap();
        outgoing.credit(u32::MAX);
        assert!(outgoing.is_ready());
    }
}
