//! Gives a seccomp program to this thread and all that it starts.

use std::io;

use nix::errno::Errno;
use nix::libc;
use nix::sys::prctl;

use crate::supervise::seccomp::{Filter, Instruction, program};

/// `struct sock_fprog`.
#[repr(C)]
struct Program {
    length: libc::c_ushort,
    instructions: *const Instruction,
}

/// Installs `program`; it can't be taken back. This thread must have no_new_privs.
///
/// # Errors
///
/// `EINVAL` when the kernel has no seccomp filters, or the program is none.
pub fn install(program: &[Instruction]) -> io::Result<()> {
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let program = Program { length, instructions: program.as_ptr() };
    // SAFETY: the program has the layout of sock_fprog, its instructions that of sock_filter; both live during the call, which
    // copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// What a service does to itself once it runs: no other process of its user can look into it or trace it, it leaves no core
/// dump, and neither it nor an intruder can execute another program. For the first thread, before it starts others.
///
/// # Errors
///
/// The kernel's.
pub fn lock() -> io::Result<()> {
    prctl::set_dumpable(false)?;
    prctl::set_no_new_privs()?;
    install(&program(Filter { exec: false, packets: true, clock: true }))
}
