//! What PID 1 does when it breaks: one line, sync, reboot.
//!
//! The kernel panics when PID 1 dies of a signal, and forgets what was not written yet.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::IntoRawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::libc::{self, c_int, c_void, siginfo_t};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

/// The kernel's log, opened beforehand; -1 while it is not.
static KMSG: AtomicI32 = AtomicI32::new(-1);
/// Room for the handler, whatever has become of the stack proper.
const STACK: usize = 64 * 1024;
/// How long the disks may take.
const SYNC_SECONDS: u32 = 10;

const CRASHES: [(Signal, &[u8]); 5] = [
    (Signal::SIGSEGV, b"<0>pilotlight-init: crashed by SIGSEGV; rebooting\n"),
    (Signal::SIGBUS, b"<0>pilotlight-init: crashed by SIGBUS; rebooting\n"),
    (Signal::SIGILL, b"<0>pilotlight-init: crashed by SIGILL; rebooting\n"),
    (Signal::SIGFPE, b"<0>pilotlight-init: crashed by SIGFPE; rebooting\n"),
    (Signal::SIGABRT, b"<0>pilotlight-init: crashed by SIGABRT; rebooting\n"),
];

/// Installs the handlers for this process. Children that execute a program lose them, as they should.
///
/// # Errors
///
/// The kernel's.
pub fn install() -> io::Result<()> {
    // It must live as long as the process.
    let stack = Box::leak(vec![0_u8; STACK].into_boxed_slice());
    let alternate = libc::stack_t { ss_sp: stack.as_mut_ptr().cast::<c_void>(), ss_flags: 0, ss_size: STACK };
    // SAFETY: the memory is ours for ever and used for nothing else.
    nix::errno::Errno::result(unsafe { libc::sigaltstack(&raw const alternate, std::ptr::null_mut()) })?;
    let flags = SaFlags::SA_ONSTACK | SaFlags::SA_RESETHAND | SaFlags::SA_SIGINFO;
    let action = SigAction::new(SigHandler::SigAction(handle), flags, SigSet::all());
    for (signal, _) in CRASHES {
        // SAFETY: the handler makes system calls only, all of which are async-signal-safe.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Opens the kernel's log for the last line; to be called once /dev is there.
pub fn open_log() {
    if KMSG.load(Ordering::Relaxed) < 0
        && let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg")
    {
        KMSG.store(file.into_raw_fd(), Ordering::Relaxed);
    }
}

extern "C" fn handle(signal: c_int, _: *mut siginfo_t, _: *mut c_void) {
    let line = CRASHES.iter().find(|(known, _)| *known as c_int == signal).map_or(&b""[..], |(_, line)| line);
    let kmsg = KMSG.load(Ordering::Relaxed);
    let output = if kmsg < 0 { libc::STDERR_FILENO } else { kmsg };
    // SAFETY: the line lives for ever; a descriptor that is none is an error.
    unsafe { libc::write(output, line.as_ptr().cast(), line.len()) };
    // A disk that hangs must not keep the box from its reset: a child syncs.
    // SAFETY: clone as fork, with no memory shared and no handlers of libc.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if child == 0 {
        // SAFETY: both take nothing and touch no memory; the second does not return.
        unsafe {
            libc::sync();
            libc::_exit(0);
        }
    }
    let tenth = libc::timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    for _ in 0..SYNC_SECONDS * 10 {
        // SAFETY: no status is asked for.
        if child < 0 || unsafe { libc::waitpid(child as libc::pid_t, std::ptr::null_mut(), libc::WNOHANG) } != 0 {
            break;
        }
        // SAFETY: the time lives during the call.
        unsafe { libc::nanosleep(&raw const tenth, std::ptr::null_mut()) };
    }
    // SAFETY: the call takes a number. In a process that is not PID 1 of its namespace nothing is rebooted.
    if unsafe { libc::getpid() } == 1 {
        // SAFETY: as above.
        unsafe { libc::reboot(libc::LINUX_REBOOT_CMD_RESTART) };
    }
    // With SA_RESETHAND the same fault now ends the process.
}
