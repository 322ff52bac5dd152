//! An open session's protection: its keys, what they seal and open, and the window that drops replays.
//!
//! Source: IPMI 2.0 13.28.4 (integrity), 13.29 (AES-CBC), 13.31 (RMCP+ authenticated key exchange), 13.32 (K1, K2),
//! 6.12.13 (session sequence numbers).

use aes::Aes128;
use cbc::cipher::block_padding::NoPadding;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use zeroize::Zeroizing;

use super::Malformed;
use super::packet::{self, PayloadType, Plus};
use super::suite::CipherSuite;

/// `Next header` of the session trailer: always 7.
const NEXT_HEADER: u8 = 0x07;
const BLOCK: usize = 16;
/// K1 and K2 are hashes of twenty times the same octet, whichever the hash is.
const CONSTANT_LEN: usize = 20;

/// The keys of one session. They print as nothing and are wiped when dropped.
pub struct SessionKeys {
    suite: CipherSuite,
    k1: Zeroizing<Vec<u8>>,
    k2: Zeroizing<[u8; BLOCK]>,
}

impl SessionKeys {
    /// Derives K1 and K2 from `sik`, the session integrity key that RAKP agreed on.
    pub(super) fn derive(suite: CipherSuite, sik: &[u8]) -> Self {
        let k1 = suite.hash(sik, &[&[1; CONSTANT_LEN]]);
        let long = suite.hash(sik, &[&[2; CONSTANT_LEN]]);
        let mut k2 = Zeroizing::new([0; BLOCK]);
        k2.iter_mut().zip(long.iter()).for_each(|(to, from)| *to = *from);
        Self { suite, k1, k2 }
    }

    /// The suite that the keys are for.
    pub const fn suite(&self) -> CipherSuite {
        self.suite
    }

    /// A datagram with an encrypted and signed IPMI message.
    ///
    /// `session_id` is the receiver's, `sequence` the sender's and not 0, `iv` 16 random octets.
    pub fn seal(&self, session_id: u32, sequence: u32, message: &[u8], iv: [u8; BLOCK]) -> Vec<u8> {
        // Pad with 1, 2, 3, … and the pad's length, so that the whole is a multiple of the block.
        let pad = (BLOCK - (message.len() + 1) % BLOCK) % BLOCK;
        let mut buffer = message.to_vec();
        buffer.extend((1u8..).take(pad));
        buffer.push(pad as u8);
        let len = buffer.len();
        cbc::Encryptor::<Aes128>::new((&*self.k2).into(), (&iv).into())
            .encrypt_padded::<NoPadding>(&mut buffer, len)
            .expect("the buffer is a multiple of the block");
        let mut datagram = packet::header(PayloadType::Ipmi, true, session_id, sequence, BLOCK + len);
        datagram.extend_from_slice(&iv);
        datagram.extend_from_slice(&buffer);
        // The signed range, with its two closing octets, is padded to a multiple of four.
        let signed_len = datagram.len() - packet::UNSIGNED + 2;
        let pad = (4 - signed_len % 4) % 4;
        datagram.extend(std::iter::repeat_n(0xff, pad));
        datagram.extend_from_slice(&[pad as u8, NEXT_HEADER]);
        let (_, signed) = datagram.split_at(packet::UNSIGNED);
        let code = self.suite.hash(&self.k1, &[signed]);
        datagram.extend(code.iter().take(self.suite.integrity_len()));
        datagram
    }

    /// The payload of a session's datagram: signature checked, then decrypted.
    ///
    /// # Errors
    ///
    /// [`Malformed::Unprotected`] without a signature or encryption, [`Malformed::Integrity`] for a wrong code, and what a
    /// payload under a right code may still get wrong.
    pub fn open(&self, datagram: &Plus<'_>) -> Result<Vec<u8>, Malformed> {
        if !(datagram.encrypted && datagram.authenticated) {
            return Err(Malformed::Unprotected);
        }
        let code_len = self.suite.integrity_len();
        let shorter = |have: usize| Malformed::Truncated { missing: code_len.saturating_sub(have) };
        let signed = datagram.signed;
        let at = signed.len().checked_sub(code_len).ok_or_else(|| shorter(signed.len()))?;
        let (covered, code) = signed.split_at_checked(at).ok_or_else(|| shorter(signed.len()))?;
        // The code must lie in the trailer: a payload length that reaches into it is not what was signed.
        if datagram.trailer.len() < code_len + 2 {
            return Err(shorter(datagram.trailer.len()));
        }
        self.suite.verify(&self.k1, &[covered], code_len, code)?;
        let (iv, rest) = datagram
            .payload
            .split_first_chunk::<BLOCK>()
            .ok_or(Malformed::Truncated { missing: BLOCK.saturating_sub(datagram.payload.len()) })?;
        let mut buffer = rest.to_vec();
        let plain = cbc::Decryptor::<Aes128>::new((&*self.k2).into(), iv.into())
            .decrypt_padded::<NoPadding>(&mut buffer)
            .map_err(|_| Malformed::Length { said: rest.len(), there: rest.len() / BLOCK * BLOCK })?;
        let (&pad, body) = plain.split_last().ok_or(Malformed::Truncated { missing: 1 })?;
        let at = body.len().checked_sub(usize::from(pad)).ok_or(Malformed::Padding)?;
        let (message, padding) = body.split_at_checked(at).ok_or(Malformed::Padding)?;
        if padding.iter().zip(1u8..).any(|(found, want)| *found != want) {
            return Err(Malformed::Padding);
        }
        Ok(message.to_vec())
    }
}

/// Which sequence numbers of the peer were seen: the first may be any, each counts once, late ones within 32 of the highest.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplayWindow {
    highest: u32,
    /// Bit `n` stands for `highest - n`.
    seen: u32,
}

impl ReplayWindow {
    /// Whether `sequence` is new; from now on it is not. 0 is never new: it is kept for packets outside a session.
    pub fn accept(&mut self, sequence: u32) -> bool {
        if sequence == 0 {
            return false;
        }
        let ahead = sequence.wrapping_sub(self.highest);
        if self.seen == 0 || (ahead != 0 && ahead < 1 << 31) {
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = sequence;
            return true;
        }
        let behind = self.highest.wrapping_sub(sequence);
        let Some(bit) = 1u32.checked_shl(behind) else { return false };
        let new = self.seen & bit == 0;
        self.seen |= bit;
        new
    }
}
