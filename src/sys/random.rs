//! The kernel's random generator.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;

/// Length of a seed.
pub const SEED: usize = 32;

/// `struct rand_pool_info` with its buffer.
#[repr(C)]
struct Pool {
    entropy_count: libc::c_int,
    buf_size: libc::c_int,
    buf: [u8; SEED],
}

mod ioctl {
    // _IOW('R', 0x03, int [2]), random(4).
    nix::ioctl_write_ptr!(rnd_add_entropy, b'R', 0x03, [nix::libc::c_int; 2]);
}

/// Mixes `seed` in; with `credit`, the kernel counts it as that much entropy, which only root may say.
///
/// # Errors
///
/// The kernel's.
pub fn mix(seed: &[u8; SEED], credit: bool) -> io::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).open("/dev/urandom")?;
    let bits = if credit { SEED as libc::c_int * 8 } else { 0 };
    let pool = Pool { entropy_count: bits, buf_size: SEED as libc::c_int, buf: *seed };
    // SAFETY: the pool is laid out as the kernel's record, says its own size and outlives the call.
    unsafe { ioctl::rnd_add_entropy(file.as_raw_fd(), (&raw const pool).cast()) }?;
    Ok(())
}

/// 32 octets without waiting, and whether the generator was ready: else they are as good as it gets.
///
/// # Errors
///
/// The kernel's.
pub fn octets() -> io::Result<([u8; SEED], bool)> {
    let mut octets = [0; SEED];
    for (flags, ready) in [(libc::GRND_NONBLOCK, true), (libc::GRND_INSECURE, false)] {
        // SAFETY: the buffer is valid for its length.
        match Errno::result(unsafe { libc::getrandom(octets.as_mut_ptr().cast(), SEED, flags) }) {
            // Up to 256 octets come whole.
            Ok(_) => return Ok((octets, ready)),
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(io::ErrorKind::WouldBlock.into())
}
