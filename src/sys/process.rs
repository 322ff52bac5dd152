//! Children of PID 1: started without powers, reaped, signalled.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setsid, setuid};

use super::seccomp;
use crate::secret::Secret;
use crate::supervise::seccomp::Instruction;

/// Highest capability number that is tried to drop; the kernel says EINVAL above its own last one.
const LAST_CAPABILITY: u8 = 63;

/// What a child may.
#[derive(Debug)]
pub struct Confinement {
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its further groups.
    pub groups: Vec<u32>,
    /// The capabilities that it keeps, by number below 64.
    pub capabilities: Vec<u8>,
    /// Files that it may hold open.
    pub files: u64,
    /// What it may ask of the kernel.
    pub filter: Vec<Instruction>,
    /// `cgroup.procs` of its control group, open for writing; `None` where there is none.
    pub cgroup: Option<File>,
}

/// What a child is connected to.
#[derive(Debug, Default)]
pub struct Wiring<'a> {
    /// Its output and errors; this process' stderr when there is none.
    pub output: Option<OwnedFd>,
    /// What else it gets, under the same numbers.
    pub inherited: &'a [BorrowedFd<'a>],
}

/// Starts `program` in a session of its own, with a PATH and `environment` alone, without input, connected as
/// `wiring` says, and confined. Returns its process ID.
///
/// No signal is blocked in the child, and what it makes is kept from others than its user and group. It can't gain
/// powers by any program it executes, and leaves no core dump.
///
/// # Errors
///
/// Also the child's: when it can't be confined or the program can't be executed.
pub fn spawn(
    program: &Path,
    args: &[String],
    environment: &[(&str, Secret<String>)],
    confinement: Confinement,
    wiring: Wiring<'_>,
) -> io::Result<i32> {
    let uid = Uid::from_raw(confinement.uid);
    let gid = Gid::from_raw(confinement.gid);
    let groups: Vec<_> = confinement.groups.iter().copied().map(Gid::from_raw).collect();
    let inherited: Vec<_> = wiring.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let Confinement { capabilities: kept, files, filter, cgroup, .. } = confinement;
    let confine = move || -> io::Result<()> {
        setsid()?;
        for number in &inherited {
            // SAFETY: the caller holds it open for as long as it waits for the child to start.
            let descriptor = unsafe { BorrowedFd::borrow_raw(*number) };
            fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        if let Some(cgroup) = &cgroup {
            // "0" is who writes.
            (&*cgroup).write_all(b"0")?;
        }
        // Init reads its signals from a descriptor, with all of them blocked; a child that inherited that could not be ended.
        SigSet::empty().thread_set_mask()?;
        // A socket takes its group's rights from here until its owner sets them; with less, those who may connect would be
        // refused at that moment.
        umask(Mode::S_IRWXO);
        setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
        // A container's own limit may be lower, and not for us to raise.
        let files = files.min(getrlimit(Resource::RLIMIT_NOFILE)?.1);
        setrlimit(Resource::RLIMIT_NOFILE, files, files)?;
        // The bounding set needs a power that the next lines give away.
        drop_from_bounding_set(&kept)?;
        setgroups(&groups)?;
        setgid(gid)?;
        prctl::set_keepcaps(true)?;
        setuid(uid)?;
        keep_capabilities(&kept)?;
        prctl::set_no_new_privs()?;
        // The last step: it forbids some of those before.
        seccomp::install(&filter)
    };
    let mut command = Command::new(program);
    command.args(args).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").current_dir("/");
    command.envs(environment.iter().map(|(name, value)| (name, value.reveal())));
    command.stdin(Stdio::null());
    match wiring.output {
        Some(output) => command.stdout(output.try_clone()?).stderr(output),
        None => command.stdout(io::stderr()).stderr(Stdio::inherit()),
    };
    // SAFETY: PID 1 has one thread, so the child may do what it likes; the closure makes system calls and allocates nothing.
    unsafe { command.pre_exec(confine) };
    let child = command.spawn()?;
    // Dropping the handle neither kills nor reaps: PID 1 reaps all.
    i32::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Starts this program once more with `arguments`, in a session of its own, with no signal blocked and nothing taken away.
/// What it writes to its output goes to `output`, or where this process' errors go. Returns its process ID.
///
/// # Errors
///
/// When it can't be executed.
pub fn spawn_self(arguments: &[&str], output: Option<OwnedFd>) -> io::Result<i32> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("init").args(arguments).env_clear().current_dir("/");
    command.stdin(Stdio::null()).stderr(Stdio::inherit());
    command.stdout(output.map_or_else(|| io::stderr().into(), Stdio::from));
    let release = || -> io::Result<()> {
        setsid()?;
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: PID 1 has one thread; the closure makes system calls and allocates nothing.
    unsafe { command.pre_exec(release) };
    i32::try_from(command.spawn()?.id()).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn drop_from_bounding_set(kept: &[u8]) -> io::Result<()> {
    for number in 0..=LAST_CAPABILITY {
        if kept.contains(&number) {
            continue;
        }
        // SAFETY: the call takes numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        match Errno::result(result) {
            Ok(_) => {}
            Err(Errno::EINVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Header of `capset(2)`.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// Half of a set of 64 capabilities: the first is that of numbers below 32.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Half {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`, with two halves.
const VERSION: u32 = 0x2008_0522;

/// Leaves exactly `kept`, and lets them survive `exec` (ambient).
fn keep_capabilities(kept: &[u8]) -> io::Result<()> {
    let mut halves = [Half::default(); 2];
    for number in kept {
        let half = halves.get_mut(usize::from(number / 32)).ok_or(io::ErrorKind::InvalidInput)?;
        let bit = 1 << (number % 32);
        half.effective |= bit;
        half.permitted |= bit;
        half.inheritable |= bit;
    }
    let header = Header { version: VERSION, pid: 0 };
    // SAFETY: header and halves have the layout of version 3 and live during the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, halves.as_ptr()) };
    Errno::result(result)?;
    for number in kept {
        let number = libc::c_ulong::from(*number);
        // SAFETY: the call takes numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, number, 0, 0) };
        Errno::result(result)?;
    }
    Ok(())
}

/// Lets children hold up to `files` files open; what this process itself may stays.
///
/// # Errors
///
/// The kernel's; without the power to raise it `PermissionDenied`.
pub fn allow_files(files: u64) -> io::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard.max(files)).map_err(io::Error::from)
}

/// What [`reap`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaped {
    /// A process ended by itself: its ID and code.
    Exited(i32, i32),
    /// A process was ended: its ID and the signal.
    Signalled(i32, i32),
    /// Children are there, none has ended.
    Nothing,
    /// There are no children.
    NoChildren,
}

/// Takes one ended child away. Never waits.
///
/// # Errors
///
/// The kernel's; none is known.
pub fn reap() -> io::Result<Reaped> {
    loop {
        return match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => Ok(Reaped::Exited(pid.as_raw(), code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) => Ok(Reaped::Signalled(pid.as_raw(), signal as i32)),
            Ok(WaitStatus::StillAlive) => Ok(Reaped::Nothing),
            // Stopped and continued children are not asked for.
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => Ok(Reaped::NoChildren),
            Err(error) => Err(error.into()),
        };
    }
}

/// Signals the process group that `pid` leads. One that is gone is no error.
///
/// # Errors
///
/// The kernel's.
pub fn signal_group(pid: i32, signal: Signal) -> io::Result<()> {
    // 0 and 1 would be this process' own group and everything.
    if pid <= 1 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    ignore_gone(kill(Pid::from_raw(-pid), signal))
}

/// Signals every process but PID 1. Does nothing unless called by PID 1.
///
/// # Errors
///
/// The kernel's.
pub fn signal_all(signal: Signal) -> io::Result<()> {
    if nix::unistd::getpid() != Pid::from_raw(1) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    ignore_gone(kill(Pid::from_raw(-1), signal))
}

fn ignore_gone(result: nix::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
