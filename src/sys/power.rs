//! The end of the machine's run.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot, set_cad_enabled};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::time::Uptime;

/// How long the kernel may take to stop after it was told to.
const STOP: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);

/// Lets Ctrl-Alt-Del send SIGINT to PID 1 instead of resetting the machine.
///
/// # Errors
///
/// The kernel's; in a container it refuses.
pub fn catch_ctrl_alt_del() -> io::Result<()> {
    set_cad_enabled(false).map_err(io::Error::from)
}

/// Writes out what the kernel holds, but waits no longer than `limit`: a failing disk must not keep the box from its reset.
///
/// # Errors
///
/// `TimedOut`, or that no process could be made.
pub fn sync_within(limit: Duration) -> io::Result<()> {
    within(limit, nix::unistd::sync)
}

/// Does `work` in a child, but waits no longer than `limit`: for what touches disks, which may never answer. The child
/// goes on when it takes longer.
///
/// # Errors
///
/// `TimedOut`, or that no process could be made.
pub fn within(limit: Duration, work: impl FnOnce()) -> io::Result<()> {
    let child = in_child(work)?;
    if wait_for(child, limit) { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

/// Ends the run as `mode` says; returns only when the kernel refuses everything. Does nothing unless called by PID 1.
///
/// The call is made by a child: the kernel lets the caller of a halt exit, and panics when that is PID 1.
pub fn end(mode: RebootMode) -> io::Error {
    if nix::unistd::getpid() != Pid::from_raw(1) {
        return io::ErrorKind::PermissionDenied.into();
    }
    // When it comes back, the parent sees that the run goes on.
    if let Ok(child) = in_child(|| reboot(mode).map_or_else(drop, |never| match never {})) {
        wait_for(child, STOP);
        // It may take a while to act after the child is gone.
        std::thread::sleep(STOP);
    }
    match reboot(RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}

fn in_child(work: impl FnOnce()) -> io::Result<Pid> {
    // SAFETY: PID 1 has one thread, so the child is a whole copy; it calls one function and leaves by `_exit`.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            work();
            // SAFETY: `_exit` runs no destructor of the parent's copy and does not return.
            unsafe { nix::libc::_exit(0) }
        }
    }
}

/// Whether `child` ended within `limit`.
fn wait_for(child: Pid, limit: Duration) -> bool {
    let end = Uptime::now() + limit;
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) if Uptime::now() < end => std::thread::sleep(POLL),
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => return false,
            Ok(_) | Err(_) => return true,
        }
    }
}
