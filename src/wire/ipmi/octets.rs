//! Reads fields off the front of a slice without ever indexing it.

use super::Malformed;

/// What is left of an input.
pub(super) struct Octets<'a>(&'a [u8]);

impl<'a> Octets<'a> {
    pub(super) const fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    /// The next `len` octets.
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        match self.0.split_at_checked(len) {
            Some((head, rest)) => {
                self.0 = rest;
                Ok(head)
            }
            None => Err(Malformed::Truncated { missing: len.saturating_sub(self.0.len()) }),
        }
    }

    /// The next `N` octets by value.
    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        match self.0.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.0 = rest;
                Ok(*head)
            }
            None => Err(Malformed::Truncated { missing: N.saturating_sub(self.0.len()) }),
        }
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[octet]| octet)
    }

    /// A 16-bit number, least significant octet first, as all numbers in RMCP+ are.
    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// A 32-bit number, least significant octet first.
    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// Everything that was not taken yet.
    pub(super) const fn rest(self) -> &'a [u8] {
        self.0
    }
}
