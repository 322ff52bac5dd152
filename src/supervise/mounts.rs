//! What is mounted and made before the first service starts.

use std::fmt;

use super::seed;
use super::services::{SERVICES, SOCKETS_GID};
use crate::journal;

/// What a mount forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbid {
    /// Set-user-ID programs.
    Suid,
    /// Any programs.
    Exec,
    /// Device nodes.
    Dev,
}

/// One file system to mount. A target that is mounted already is left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where; made when absent.
    pub target: &'static str,
    /// Its type, which is its source as well.
    pub fstype: &'static str,
    /// What it forbids.
    pub forbids: &'static [Forbid],
    /// Its options.
    pub options: &'static str,
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, fstype, forbids, options } = self;
        write!(f, "{fstype} {target}")?;
        for forbidden in *forbids {
            f.write_str(match forbidden {
                Forbid::Suid => " nosuid",
                Forbid::Exec => " noexec",
                Forbid::Dev => " nodev",
            })?;
        }
        if options.is_empty() { Ok(()) } else { write!(f, " {options}") }
    }
}

use Forbid::{Dev, Exec, Suid};

/// Every mount of the early boot, in order. /dev must hold devices, and /run holds sockets that nobody executes.
pub const MOUNTS: &[Mount] = &[
    Mount { target: "/proc", fstype: "proc", forbids: &[Suid, Exec, Dev], options: "" },
    Mount { target: "/sys", fstype: "sysfs", forbids: &[Suid, Exec, Dev], options: "" },
    Mount { target: "/sys/fs/pstore", fstype: "pstore", forbids: &[Suid, Exec, Dev], options: "" },
    Mount { target: "/dev", fstype: "devtmpfs", forbids: &[Suid, Exec], options: "mode=0755,size=4m" },
    Mount { target: "/dev/pts", fstype: "devpts", forbids: &[Suid, Exec], options: "mode=0620,gid=5,ptmxmode=000" },
    // Large messages to the journal pass through here.
    Mount { target: "/dev/shm", fstype: "tmpfs", forbids: &[Suid, Exec, Dev], options: "mode=1777" },
    Mount { target: "/run", fstype: "tmpfs", forbids: &[Suid, Dev], options: "mode=0755,size=5%" },
    Mount { target: "/tmp", fstype: "tmpfs", forbids: &[Suid, Exec, Dev], options: "mode=1777,size=64m" },
    Mount {
        target: "/sys/fs/cgroup",
        fstype: "cgroup2",
        forbids: &[Suid, Exec, Dev],
        options: "nsdelegate,memory_recursiveprot",
    },
];

/// One directory to make, with its owner and mode set even when it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory {
    /// Where.
    pub path: String,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Its permission bits.
    pub mode: u32,
}

impl fmt::Display for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}:{} {:04o}", self.path, self.uid, self.gid, self.mode)
    }
}

/// Where init keeps the record of its runs.
pub const INIT_STATE_DIR: &str = "/data/pilotlight/init";

/// Where what a crash left is kept.
pub const CRASH_DIR: &str = "/data/pilotlight/crash";

/// Every directory that the services need, parents first.
///
/// The set-group-ID bit of a runtime directory gives its sockets the group that may connect.
pub fn directories() -> Vec<Directory> {
    let root = |path: &str| Directory { path: path.to_owned(), uid: 0, gid: 0, mode: 0o755 };
    let mut all = vec![
        root("/run/pilotlight"),
        root("/run/pilotlight/notify"),
        root("/run/systemd"),
        root("/run/systemd/journal"),
    ];
    all.extend([root("/data"), root("/data/pilotlight")]);
    // What init keeps is nobody else's.
    let private = |path: &str, uid| Directory { path: path.to_owned(), uid, gid: uid, mode: 0o700 };
    all.extend([private(INIT_STATE_DIR, 0), private(seed::DIRECTORY, 0), private(CRASH_DIR, 0)]);
    all.push(private(journal::DIRECTORY, journal::UID));
    for service in SERVICES {
        let (uid, gid) = (service.uid, service.uid);
        all.push(Directory { path: service.runtime_dir(), uid, gid: SOCKETS_GID, mode: 0o2750 });
        all.push(Directory { path: service.state_dir(), uid, gid, mode: 0o700 });
    }
    all
}

/// Names under /dev that programs expect: the link, and what it points to.
pub const LINKS: &[(&str, &str)] = &[
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];
