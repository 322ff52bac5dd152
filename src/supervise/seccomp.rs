//! What services may ask of the kernel: a seccomp program, as values.
//!
//! A list of what is denied, not of what is allowed: libc, the runtime and the store differ by build and version in the calls
//! that they make, and a box that breaks on an update is worse than one with a few harmless calls more. What is denied is
//! what nobody here needs and attackers do: namespaces, mounts, modules, other processes' memory, keys, io_uring, BPF, the
//! clock, new programs once a service runs; sockets of unusual families; and all that came after Linux 5.17, which answers
//! "unknown", so that libraries fall back.
//!
//! Source: Linux, Documentation/userspace-api/seccomp_filter.rst.

use nix::libc;

/// One instruction of classic BPF: `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// How many instructions are skipped when a comparison holds.
    pub jump_true: u8,
    /// And when it does not.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// What a filter allows of that which is denied to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter {
    /// Whether it may execute programs. Init's filter has to allow it: it stands before the service's own `exec`.
    pub exec: bool,
    /// Whether it may open packet sockets (with the capability).
    pub packets: bool,
    /// Whether it may set the clock (with the capability).
    pub clock: bool,
}

/// The newest call that is let through, `set_mempolicy_home_node` of Linux 5.17; numbers above 423 are the same everywhere.
const NEWEST: u32 = 450;

/// The calls that are denied to every service.
const DENIED: &[libc::c_long] = &[
    // Mounts, roots, namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_personality,
    // Wide and often broken doors into the kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_mbind,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    libc::SYS_set_mempolicy,
    libc::SYS_memfd_secret,
    // Device nodes; sockets and pipes are not made by it either.
    libc::SYS_mknodat,
];

/// Denied as well where they exist.
#[cfg(target_arch = "x86_64")]
const DENIED_HERE: &[libc::c_long] = &[
    libc::SYS_mknod,
    libc::SYS_kexec_file_load,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS_ustat,
    libc::SYS_sysfs,
    libc::SYS_vserver,
    libc::SYS_nfsservctl,
    libc::SYS_lookup_dcookie,
];
/// Denied as well where they exist.
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[libc::c_long] = &[libc::SYS_kexec_file_load, libc::SYS_lookup_dcookie, libc::SYS_nfsservctl];

const CLOCK: &[libc::c_long] =
    &[libc::SYS_clock_settime, libc::SYS_clock_adjtime, libc::SYS_settimeofday, libc::SYS_adjtimex];
const EXEC: &[libc::c_long] = &[libc::SYS_execve, libc::SYS_execveat];
/// The families of sockets that anybody may open. Netlink tells addresses.
const FAMILIES: &[libc::c_int] = &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
/// The flags of `clone` that make namespaces.
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET;

/// `AUDIT_ARCH_*` of `linux/audit.h`: the machine of the ELF header, 64 bits, little-endian.
#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;
/// Calls of x86-64's 32-bit half begin here.
const X32: u32 = 0x4000_0000;

/// Offsets in `struct seccomp_data`; the lower half of an argument comes first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const FIRST_ARGUMENT: u32 = 16;

const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: u32 = 0x7fff_0000;
const KILL_PROCESS: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;

const fn denied_with(errno: libc::c_int) -> u32 {
    ERRNO | errno as u32
}

const fn plain(code: u16, operand: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, operand }
}

/// Skips `skip` instructions unless the comparison holds.
const fn unless(code: u16, operand: u32, skip: u8) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: skip, operand }
}

/// The program of `filter`: the call's number is loaded once and compared one by one; a call that nothing denies is allowed.
pub fn program(filter: Filter) -> Vec<Instruction> {
    let mut program = vec![
        plain(LOAD, ARCHITECTURE),
        Instruction { code: IF_EQUAL, jump_true: 1, jump_false: 0, operand: ARCH },
        plain(RETURN, KILL_PROCESS),
        plain(LOAD, NUMBER),
    ];
    let mut answer = |comparison: u16, operand: u32, with: u32| {
        program.extend([unless(comparison, operand, 1), plain(RETURN, with)]);
    };
    answer(IF_GREATER, X32 - 1, KILL_PROCESS);
    answer(IF_GREATER, NEWEST, denied_with(libc::ENOSYS));
    // Its flags lie in memory, where a filter can't look; libraries fall back to `clone`.
    answer(IF_EQUAL, libc::SYS_clone3 as u32, denied_with(libc::ENOSYS));
    let exec = if filter.exec { &[] } else { EXEC };
    let clock = if filter.clock { &[] } else { CLOCK };
    for number in [DENIED, DENIED_HERE, exec, clock].into_iter().flatten() {
        answer(IF_EQUAL, *number as u32, denied_with(libc::EPERM));
    }
    program.extend([
        unless(IF_EQUAL, libc::SYS_clone as u32, 4),
        plain(LOAD, FIRST_ARGUMENT),
        unless(IF_ANY_BIT, NAMESPACES as u32, 1),
        plain(RETURN, denied_with(libc::EPERM)),
        plain(RETURN, ALLOW),
    ]);
    let packets: &[_] = if filter.packets { &[libc::AF_PACKET] } else { &[] };
    let families: Vec<_> = FAMILIES.iter().chain(packets).collect();
    for call in [libc::SYS_socket, libc::SYS_socketpair] {
        let length = u8::try_from(2 * families.len() + 2).expect("a handful of families");
        program.extend([unless(IF_EQUAL, call as u32, length), plain(LOAD, FIRST_ARGUMENT)]);
        for family in &families {
            program.extend([unless(IF_EQUAL, **family as u32, 1), plain(RETURN, ALLOW)]);
        }
        program.push(plain(RETURN, denied_with(libc::EAFNOSUPPORT)));
    }
    program.push(plain(RETURN, ALLOW));
    program
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STRICT: Filter = Filter { exec: false, packets: false, clock: false };
    const LOOSE: Filter = Filter { exec: true, packets: true, clock: true };

    /// What the kernel would answer.
    fn run(program: &[Instruction], arch: u32, number: u32, argument: u32) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let Instruction { code, jump_true, jump_false, operand } = program[at];
            at += 1;
            let holds = match code {
                LOAD => {
                    loaded = match operand {
                        NUMBER => number,
                        ARCHITECTURE => arch,
                        FIRST_ARGUMENT => argument,
                        other => panic!("loads {other}"),
                    };
                    continue;
                }
                RETURN => return operand,
                IF_EQUAL => loaded == operand,
                IF_GREATER => loaded > operand,
                IF_ANY_BIT => loaded & operand != 0,
                other => panic!("operation {other:#x}"),
            };
            at += usize::from(if holds { jump_true } else { jump_false });
        }
    }

    fn call(filter: Filter, number: libc::c_long, argument: libc::c_int) -> u32 {
        run(&program(filter), ARCH, number as u32, argument as u32)
    }

    #[test]
    fn daily_work_is_allowed() {
        for number in [libc::SYS_read, libc::SYS_sendmsg, libc::SYS_epoll_pwait, libc::SYS_futex, libc::SYS_statx] {
            assert_eq!(call(STRICT, number, 0), ALLOW, "{number}");
        }
        let thread = libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD;
        assert_eq!(call(STRICT, libc::SYS_clone, thread), ALLOW);
        assert_eq!(call(STRICT, libc::SYS_socket, libc::AF_INET), ALLOW);
    }

    #[test]
    fn what_nobody_needs_is_denied() {
        let eperm = denied_with(libc::EPERM);
        for number in DENIED.iter().chain(DENIED_HERE) {
            assert_eq!((call(STRICT, *number, 0), call(LOOSE, *number, 0)), (eperm, eperm), "{number}");
        }
        assert_eq!(call(LOOSE, libc::SYS_clone, libc::CLONE_NEWUSER | libc::CLONE_VM), eperm);
        for (number, argument) in
            [(libc::SYS_execve, 0), (libc::SYS_clock_settime, 0), (libc::SYS_socket, libc::AF_PACKET)]
        {
            assert_ne!(call(STRICT, number, argument), ALLOW, "{number}");
            assert_eq!(call(LOOSE, number, argument), ALLOW, "{number}");
        }
        assert_eq!(call(LOOSE, libc::SYS_socket, libc::AF_VSOCK), denied_with(libc::EAFNOSUPPORT));
        assert_eq!(call(LOOSE, libc::SYS_clone3, 0), denied_with(libc::ENOSYS));
        assert_eq!(call(LOOSE, 451, 0), denied_with(libc::ENOSYS));
    }

    #[test]
    fn another_architectures_calls_kill() {
        assert_eq!(run(&program(LOOSE), 0x4000_0003, 1, 0), KILL_PROCESS);
        assert_eq!(run(&program(LOOSE), ARCH, X32, 0), KILL_PROCESS);
    }

    proptest! {
        #[test]
        fn every_program_ends_for_every_call(exec: bool, packets: bool, clock: bool, number: u32, argument: u32) {
            let program = program(Filter { exec, packets, clock });
            // The kernel's own limit.
            prop_assert!(program.len() <= 4096);
            run(&program, ARCH, number, argument);
            run(&program, ARCH, number % 460, argument);
        }
    }
}
