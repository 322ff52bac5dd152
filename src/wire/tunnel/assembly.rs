//! The receiving half of a stream: one message out of its pieces, and the window it may use.

use bytes::{Bytes, BytesMut};

use super::fault::StreamFault;

/// Octets that the peer may still send, and octets that we owe it.
///
/// Credit counts only once it is on the wire: a peer that sends before it was told may not.
#[derive(Debug)]
struct ReceiveWindow {
    left: u32,
    owed: u32,
}

/// Where the one message of a unary stream stands.
#[derive(Debug)]
enum Message {
    Awaited,
    Partial { size: usize, data: BytesMut },
    Complete(Bytes),
}

/// Puts the message of one stream together.
#[derive(Debug)]
pub struct Assembly {
    message: Message,
    message_max: usize,
    window: Option<ReceiveWindow>,
}

impl Assembly {
    /// An empty one; `window` is what the peer was granted, `None` in revision zero.
    pub const fn new(window: Option<u32>, message_max: usize) -> Self {
        let window = match window {
            Some(left) => Some(ReceiveWindow { left, owed: 0 }),
            None => None,
        };
        Self { message: Message::Awaited, message_max, window }
    }

    /// Takes the first piece: `size` octets are announced, `data` are here.
    pub fn envelope(&mut self, size: u32, data: &[u8]) -> Result<(), StreamFault> {
        self.count(data.len())?;
        match &self.message {
            Message::Complete(_) => return Err(StreamFault::SecondMessage),
            Message::Partial { size, data } => {
                return Err(StreamFault::EnvelopeTooEarly { have: data.len(), want: *size });
            }
            Message::Awaited => {}
        }
        let size = usize::try_from(size).unwrap_or(usize::MAX);
        if size > self.message_max {
            return Err(StreamFault::TooLarge { size, max: self.message_max });
        }
        // The announced size reserves nothing: memory grows with what really arrives.
        self.message = Message::Partial { size, data: BytesMut::new() };
        self.append(data)
    }

    /// Takes a further piece.
    pub fn more(&mut self, data: &[u8]) -> Result<(), StreamFault> {
        self.count(data.len())?;
        self.append(data)
    }

    /// The whole message, once.
    pub fn take(&mut self) -> Option<Bytes> {
        match std::mem::replace(&mut self.message, Message::Awaited) {
            Message::Complete(message) => Some(message),
            other => {
                self.message = other;
                None
            }
        }
    }

    /// Credit to put on the wire now.
    pub fn take_credit(&mut self) -> Option<u32> {
        let window = self.window.as_mut().filter(|window| window.owed > 0)?;
        let credit = std::mem::take(&mut window.owed);
        window.left = window.left.saturating_add(credit);
        Some(credit)
    }

    /// Whether [`Self::take_credit`] has any.
    pub fn owes_credit(&self) -> bool {
        self.window.as_ref().is_some_and(|window| window.owed > 0)
    }

    fn count(&mut self, octets: usize) -> Result<(), StreamFault> {
        let Some(window) = &mut self.window else { return Ok(()) };
        let octets = u32::try_from(octets).unwrap_or(u32::MAX);
        window.left = window.left.checked_sub(octets).ok_or(StreamFault::WindowExceeded)?;
        // Messages are whole before anyone sees them and bounded by `message_max`, so each piece is used up at once.
        window.owed = window.owed.saturating_add(octets);
        Ok(())
    }

    fn append(&mut self, piece: &[u8]) -> Result<(), StreamFault> {
        let Message::Partial { size, data } = &mut self.message else { return Err(StreamFault::NoEnvelope) };
        if piece.len() > *size - data.len() {
            return Err(StreamFault::ExcessData);
        }
        data.extend_from_slice(piece);
        if data.len() == *size {
            self.message = Message::Complete(std::mem::take(data).freeze());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_whole_when_its_octets_are() {
        let mut assembly = Assembly::new(Some(8), 100);
        assembly.envelope(5, b"ab").unwrap();
        assert_eq!(assembly.take(), None);
        assembly.more(b"").unwrap();
        assembly.more(b"cde").unwrap();
        assert_eq!(assembly.take_credit(), Some(5));
        assert_eq!(assembly.take_credit(), None);
        assert_eq!(assembly.take().as_deref(), Some(&b"abcde"[..]));
    }

    #[test]
    fn every_misuse_of_an_envelope_has_its_fault() {
        let fresh = || Assembly::new(Some(8), 16);
        let mut assembly = fresh();
        assert_eq!(assembly.more(b"x"), Err(StreamFault::NoEnvelope));
        assembly = fresh();
        assert_eq!(assembly.envelope(1, b"xy"), Err(StreamFault::ExcessData));
        assembly = fresh();
        assembly.envelope(5, b"abc").unwrap();
        assert_eq!(assembly.envelope(1, b"x"), Err(StreamFault::EnvelopeTooEarly { have: 3, want: 5 }));
        assembly = fresh();
        assembly.envelope(0, b"").unwrap();
        assert_eq!(assembly.envelope(0, b""), Err(StreamFault::SecondMessage));
        assembly = fresh();
        assert_eq!(assembly.envelope(u32::MAX, b""), Err(StreamFault::TooLarge { size: u32::MAX as usize, max: 16 }));
        assembly = fresh();
        assert_eq!(assembly.envelope(9, b"123456789"), Err(StreamFault::WindowExceeded));
    }

    #[test]
    fn credit_counts_only_once_it_is_on_the_wire() {
        let mut assembly = Assembly::new(Some(4), 100);
        assembly.envelope(20, b"abcd").unwrap();
        assert_eq!(assembly.more(b"e"), Err(StreamFault::WindowExceeded));
        let mut assembly = Assembly::new(Some(4), 100);
        assembly.envelope(20, b"abcd").unwrap();
        assert_eq!(assembly.take_credit(), Some(4));
        assembly.more(b"e").unwrap();
    }
}
