//! [`Keyboard`]: octets of a terminal to keys.

/// A key that means something to the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A printable character of ASCII.
    Char(char),
    /// Return, on whatever line end the terminal sends.
    Enter,
    /// Backspace or delete.
    Backspace,
    /// To the next field.
    Next,
    /// To the field before.
    Previous,
    /// To the next choice.
    Right,
    /// To the choice before.
    Left,
    /// Escape, or Ctrl-C.
    Cancel,
    /// Ctrl-U: empties the field.
    Clear,
    /// Ctrl-L: shows everything anew.
    Redraw,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Before {
    #[default]
    Nothing,
    /// An escape: a key of its own, or the beginning of a sequence.
    Escape,
    /// An escape and `[` or `O`.
    Sequence,
    /// The same and a second `[`: a function key of the Linux console, one octet more.
    Function,
    /// A carriage return; the line feed that some terminals send after it is the same key.
    Return,
}

/// What was typed so far of a key. Octets that are no key are dropped, those of unknown sequences as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keyboard(Before);

impl Keyboard {
    /// Takes one octet; returns the key that it ends, if it ends one.
    ///
    /// Source: ECMA-48 section 5.4 (control sequences), console_codes(4).
    pub fn on(&mut self, octet: u8) -> Option<Key> {
        let before = std::mem::take(&mut self.0);
        match (before, octet) {
            (Before::Return, b'\n') | (Before::Function, _) => None,
            (Before::Escape, b'[' | b'O') => {
                self.0 = Before::Sequence;
                None
            }
            // Two escapes: the first was a key, the second may begin a sequence.
            (Before::Escape, 0x1b) => {
                self.0 = Before::Escape;
                Some(Key::Cancel)
            }
            // Alt and a key is no key here.
            (Before::Escape, _) => None,
            (Before::Sequence, b'A' | b'Z') => Some(Key::Previous),
            (Before::Sequence, b'B') => Some(Key::Next),
            (Before::Sequence, b'C') => Some(Key::Right),
            (Before::Sequence, b'D') => Some(Key::Left),
            (Before::Sequence, b'[') => {
                self.0 = Before::Function;
                None
            }
            // Parameters; any other octet ends the sequence.
            (Before::Sequence, 0x20..=0x3f) => {
                self.0 = Before::Sequence;
                None
            }
            (Before::Sequence, _) => None,
            (Before::Nothing | Before::Return, _) => self.plain(octet),
        }
    }

    fn plain(&mut self, octet: u8) -> Option<Key> {
        match octet {
            b'\r' => {
                self.0 = Before::Return;
                Some(Key::Enter)
            }
            b'\n' => Some(Key::Enter),
            b'\t' => Some(Key::Next),
            0x08 | 0x7f => Some(Key::Backspace),
            0x03 => Some(Key::Cancel),
            0x0c => Some(Key::Redraw),
            0x15 => Some(Key::Clear),
            0x1b => {
                self.0 = Before::Escape;
                None
            }
            0x20..=0x7e => Some(Key::Char(char::from(octet))),
            _ => None,
        }
    }

    /// Whether an escape waits for what follows. After a moment of silence it is a key: [`Self::silence`].
    pub fn waits(&self) -> bool {
        matches!(self.0, Before::Escape | Before::Sequence | Before::Function)
    }

    /// Nothing followed; returns the key that this makes of what was typed.
    pub fn silence(&mut self) -> Option<Key> {
        (std::mem::take(&mut self.0) == Before::Escape).then_some(Key::Cancel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(octets: &[u8]) -> Vec<Key> {
        let mut keyboard = Keyboard::default();
        let mut keys: Vec<_> = octets.iter().filter_map(|octet| keyboard.on(*octet)).collect();
        keys.extend(keyboard.silence());
        keys
    }

    #[test]
    fn the_table() {
        use Key::*;
        let rows: [(&[u8], &[Key]); 14] = [
            (b"a~ ", &[Char('a'), Char('~'), Char(' ')]),
            (b"\r\n\r\r\n\n", &[Enter, Enter, Enter, Enter]),
            (b"\x7f\x08\t\x0c\x15\x03", &[Backspace, Backspace, Next, Redraw, Clear, Cancel]),
            (b"\x1b", &[Cancel]),
            (b"\x1b\x1b", &[Cancel, Cancel]),
            (b"\x1b[A\x1b[B\x1b[C\x1b[D\x1b[Z", &[Previous, Next, Right, Left, Previous]),
            (b"\x1bOA\x1bOB", &[Previous, Next]),
            // Delete, F5 of a VT220, Ctrl and an arrow: sequences as a whole.
            (b"\x1b[3~a\x1b[15~b\x1b[1;5Cc", &[Char('a'), Char('b'), Right, Char('c')]),
            // F1 of the Linux console.
            (b"\x1b[[Ax", &[Char('x')]),
            (b"\x1b[200~r\x1b[201~", &[Char('r')]),
            (b"\x1bx", &[]),
            (b"\x00\x80\xff\xc3\xbc", &[]),
            (b"\x1b[", &[]),
            (b"\x1b[\x1b[A", &[Char('['), Char('A')]),
        ];
        for (octets, expected) in rows {
            assert_eq!(keys(octets), expected, "{octets:x?}");
        }
    }
}
