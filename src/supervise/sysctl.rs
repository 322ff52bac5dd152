//! The kernel's settings of a hardened box.

use std::fmt;

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sysctl {
    /// Its file below /proc/sys.
    pub path: &'static str,
    /// What it is set to, and reads as afterwards.
    pub value: &'static str,
    /// Whether its absence is worth a word: not every kernel is built with it.
    pub expected: bool,
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.path.replace('/', "."), self.value)
    }
}

const fn must(path: &'static str, value: &'static str) -> Sysctl {
    Sysctl { path, value, expected: true }
}

const fn may(path: &'static str, value: &'static str) -> Sysctl {
    Sysctl { path, value, expected: false }
}

/// Every setting, in order. A box of one purpose needs no tracing, no user namespaces, no second kernel and no core dumps.
///
/// Source: the kernel self-protection project's recommended settings.
pub const SYSCTLS: &[Sysctl] = &[
    // A kernel that is broken starts anew; it does not limp.
    must("kernel/panic", "10"),
    must("kernel/panic_on_oops", "1"),
    may("kernel/softlockup_panic", "1"),
    may("kernel/hung_task_panic", "1"),
    must("kernel/kptr_restrict", "2"),
    must("kernel/dmesg_restrict", "1"),
    may("kernel/perf_event_paranoid", "3"),
    may("kernel/unprivileged_bpf_disabled", "1"),
    may("net/core/bpf_jit_harden", "2"),
    may("kernel/kexec_load_disabled", "1"),
    may("kernel/yama/ptrace_scope", "3"),
    may("user/max_user_namespaces", "0"),
    must("kernel/core_pattern", "|/bin/false"),
    must("fs/suid_dumpable", "0"),
    must("fs/protected_symlinks", "1"),
    must("fs/protected_hardlinks", "1"),
    must("fs/protected_fifos", "2"),
    must("fs/protected_regular", "2"),
    // Journal and heartbeats come as datagrams; ten of them are soon there.
    must("net/unix/max_dgram_qlen", "512"),
    must("net/ipv4/tcp_syncookies", "1"),
    must("net/ipv4/conf/all/accept_redirects", "0"),
    must("net/ipv4/conf/default/accept_redirects", "0"),
    must("net/ipv4/conf/all/accept_source_route", "0"),
    must("net/ipv4/conf/all/send_redirects", "0"),
    // Loose: machines that the box boots may be reached over another port than they ask on.
    must("net/ipv4/conf/all/rp_filter", "2"),
    may("net/ipv6/conf/all/accept_redirects", "0"),
    may("net/ipv6/conf/default/accept_redirects", "0"),
    may("net/ipv6/conf/all/accept_source_route", "0"),
];

/// The name of a box that nobody has named.
pub const HOSTNAME: &str = "pilotlight";

/// Whether what was read back is what was meant: white space aside.
pub fn took(sysctl: &Sysctl, read: &str) -> bool {
    read.split_whitespace().eq(sysctl.value.split_whitespace())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_setting_is_there_once_and_stays_below_its_directory() {
        let paths: HashSet<_> = SYSCTLS.iter().map(|sysctl| sysctl.path).collect();
        assert_eq!(paths.len(), SYSCTLS.len());
        assert!(paths.iter().all(|path| !path.starts_with('/') && !path.contains("..")));
    }

    #[test]
    fn a_value_reads_back_with_the_kernels_spaces() {
        assert!(took(&must("kernel/printk", "4 4 1 7"), "4\t4\t1\t7\n"));
        assert!(!took(&must("kernel/panic", "10"), "0\n"));
    }
}
