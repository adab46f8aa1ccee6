//! Which system calls a process that stays may make (seccomp(2)).
//!
//! Two filters, because one has one answer for what it does not let pass. What no list of ours has is answered as by a kernel
//! that lacks it (`ENOSYS`), so that a C library newer than this program takes its older way; what is refused on purpose is
//! answered with `EPERM`, and written to the kernel's log. Nothing is killed: a verb that meets a refusal reports its step.
//!
//! Filters are for good, and are handed on by fork(2) and execve(2): programs that the process starts (iptables-restore(8)) and
//! the program that it becomes by an upgrade are under them as well. They know of no other system calls than these, so an
//! upgrade to a program that needs more takes a restart.

mod netfilter;

use std::collections::BTreeMap;
use std::io;

pub(crate) use netfilter::Netfilter;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use crate::{bpf, sys};

/// The environment variable by which the program that a process becomes learns which filters it is under.
pub const MARK: &str = "PORTOLAN_CONFINED";

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// `CLONE_NEW…` of clone(2) and setns(2), `CLONE_NEWTIME` left out: its bit is part of the signal's number.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// What every thread needs, whatever it does: memory, time, its end, signals; and descriptors that are there.
const EVERYWHERE: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_dup,
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_prlimit64,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    // Sockets.
    libc::SYS_socket,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    libc::SYS_shutdown,
    libc::SYS_ioctl,
    // From socket to socket.
    libc::SYS_pipe2,
    libc::SYS_splice,
    libc::SYS_tee,
];

/// The older ways of the same, which C libraries go on some machines.
#[cfg(target_arch = "x86_64")]
const EVERYWHERE_OLDER: &[i64] =
    &[libc::SYS_poll, libc::SYS_epoll_wait, libc::SYS_epoll_create, libc::SYS_eventfd, libc::SYS_pipe, libc::SYS_time];
#[cfg(not(target_arch = "x86_64"))]
const EVERYWHERE_OLDER: &[i64] = &[];

/// What the process needs besides: files, threads, children, the namespaces of containers.
const PROCESS: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close_range,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_truncate,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_sync_file_range,
    libc::SYS_flock,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_dup3,
    libc::SYS_memfd_create,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    libc::SYS_pselect6,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_socketpair,
    // Threads and processes. clone3(2) hides its flags from a filter; as if it were not there, C libraries use clone(2).
    libc::SYS_clone,
    libc::SYS_execve,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_set_tid_address,
    libc::SYS_get_robust_list,
    libc::SYS_setns,
    libc::SYS_prctl,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_seccomp,
    libc::SYS_getppid,
    libc::SYS_getpgid,
    libc::SYS_setpgid,
    libc::SYS_getsid,
    libc::SYS_setsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    // Of which commands: see `refusing`.
    libc::SYS_bpf,
    libc::SYS_getpriority,
    libc::SYS_getrusage,
    libc::SYS_getcpu,
    libc::SYS_times,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
];

#[cfg(target_arch = "x86_64")]
const PROCESS_OLDER: &[i64] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_rename,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_symlink,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_dup2,
    libc::SYS_select,
    libc::SYS_signalfd,
    libc::SYS_inotify_init,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_alarm,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const PROCESS_OLDER: &[i64] = &[];

/// What nothing of ours does, and who has taken it over would like to.
const REFUSED: &[i64] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_perf_event_open,
    // The kernel.
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_syslog,
    libc::SYS_personality,
    // The machine.
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    // File systems.
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
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_mknodat,
    libc::SYS_fanotify_init,
    // New namespaces, and other users.
    libc::SYS_unshare,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
];

#[cfg(target_arch = "x86_64")]
const REFUSED_THERE: &[i64] =
    &[libc::SYS_kexec_file_load, libc::SYS_mknod, libc::SYS_iopl, libc::SYS_ioperm, libc::SYS_modify_ldt];
#[cfg(not(target_arch = "x86_64"))]
const REFUSED_THERE: &[i64] = &[libc::SYS_kexec_file_load];

/// Confines the calling thread and all that it starts to what a resident does; returns what names the filters, to be passed
/// on in [`MARK`] to the program that this process becomes. `inherited` is what was passed so: filters that are the same are
/// not put on top of themselves.
///
/// Threads that run already are not confined: a process calls this before it starts any. From now on no program gets rights
/// by being executed (`PR_SET_NO_NEW_PRIVS`).
///
/// # Errors
/// What prctl(2) and seccomp(2) say: `EINVAL` from a kernel without filters.
pub fn process(inherited: Option<&str>) -> io::Result<String> {
    let filters = [passing(&[EVERYWHERE, EVERYWHERE_OLDER, PROCESS, PROCESS_OLDER])?, refusing()?];
    let name = name_of(&filters);
    if inherited == Some(name.as_str()) && is_confined() {
        return Ok(name);
    }
    let [passing, refusing] = filters;
    no_new_privileges()?;
    // The later one's answer counts where both refuse.
    install(&passing, 0)?;
    install(&refusing, libc::SECCOMP_FILTER_FLAG_LOG)?;
    Ok(name)
}

/// Confines the calling thread to serving sockets: it opens no file and no socket but of IP, starts nothing, enters nothing.
/// Whatever else it tries is refused with `EPERM`.
///
/// # Errors
/// As [`process`].
pub fn server_thread() -> io::Result<()> {
    let mut rules = rules_of(&[EVERYWHERE, EVERYWHERE_OLDER]);
    rules.insert(libc::SYS_socket, one_of(0, &[libc::AF_INET, libc::AF_INET6])?);
    rules.insert(libc::SYS_ioctl, one_of(1, &[libc::FIONBIO as i32, libc::FIONREAD as i32, libc::TIOCOUTQ as i32])?);
    let filter = compile(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)?;
    no_new_privileges()?;
    install(&filter, libc::SECCOMP_FILTER_FLAG_LOG)
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Lets these pass, and knows no others.
fn passing(lists: &[&[i64]]) -> io::Result<BpfProgram> {
    compile(rules_of(lists), SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow)
}

/// Refuses what is refused on purpose.
fn refusing() -> io::Result<BpfProgram> {
    let mut rules = rules_of(&[REFUSED, REFUSED_THERE]);
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK, libc::AF_PACKET];
    rules.insert(libc::SYS_socket, none_of(0, &families)?);
    // A network namespace, or one of which the file says that it is one.
    rules.insert(libc::SYS_setns, none_of(1, &[libc::CLONE_NEWNET])?);
    let makes = |flag: i32| rule(vec![condition(0, SeccompCmpOp::MaskedEq(flag as u32 as u64), flag as u32)?]);
    rules.insert(libc::SYS_clone, NAMESPACES.into_iter().map(makes).collect::<io::Result<_>>()?);
    // None of these runs a program anywhere but at an interface or a group of processes.
    rules.insert(libc::SYS_bpf, none_of(0, &bpf::COMMANDS)?);
    // What is typed into somebody's terminal.
    rules.insert(libc::SYS_ioctl, one_of(1, &[libc::TIOCSTI as i32, libc::TIOCLINUX as i32])?);
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32))
}

fn rules_of(lists: &[&[i64]]) -> Rules {
    lists.iter().flat_map(|list| list.iter()).map(|number| (*number, Vec::new())).collect()
}

/// Meets what has one of these values in an argument.
fn one_of(argument: u8, values: &[i32]) -> io::Result<Vec<SeccompRule>> {
    values.iter().map(|value| rule(vec![condition(argument, SeccompCmpOp::Eq, *value as u32)?])).collect()
}

/// Meets what has none of these values in an argument.
fn none_of(argument: u8, values: &[i32]) -> io::Result<Vec<SeccompRule>> {
    let differs = |value: &i32| condition(argument, SeccompCmpOp::Ne, *value as u32);
    Ok(vec![rule(values.iter().map(differs).collect::<io::Result<_>>()?)?])
}

fn condition(argument: u8, is: SeccompCmpOp, value: u32) -> io::Result<SeccompCondition> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, is, value.into()).map_err(io::Error::other)
}

fn rule(conditions: Vec<SeccompCondition>) -> io::Result<SeccompRule> {
    SeccompRule::new(conditions).map_err(io::Error::other)
}

fn compile(rules: Rules, otherwise: SeccompAction, met: SeccompAction) -> io::Result<BpfProgram> {
    let filter = SeccompFilter::new(rules, otherwise, met, ARCH).map_err(io::Error::other)?;
    filter.try_into().map_err(io::Error::other)
}

/// FNV-1a over the instructions.
fn name_of(programs: &[BpfProgram]) -> String {
    let instructions = programs.iter().flatten();
    let words = instructions.flat_map(|it| [u32::from(it.code), u32::from(it.jt) << 8 | u32::from(it.jf), it.k]);
    let hash = words
        .flat_map(u32::to_le_bytes)
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// Whether this thread is under any filter (proc_pid_status(5)).
fn is_confined() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() == "2"))
}

fn no_new_privileges() -> io::Result<()> {
    // SAFETY: prctl(2) with plain numbers.
    sys::cvt(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1u64, 0u64, 0u64, 0u64) }).map(drop)
}

/// Allocates nothing, so that the child of a fork can call it.
fn install(program: &[sock_filter], flags: libc::c_ulong) -> io::Result<()> {
    let too_long = |_| io::Error::from_raw_os_error(libc::E2BIG);
    let len = program.len().try_into().map_err(too_long)?;
    // `sock_filter` of the two crates is the same structure of the kernel's (linux/filter.h).
    let filter = libc::sock_fprog { len, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: the program is live and has as many instructions as `len` says; the kernel copies and checks them.
    let ret = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const filter) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the calls answer with when they are made by a child that `confine` was called in: 0, or the errno.
    pub(super) fn errnos(confine: impl Fn() -> io::Result<()>, calls: &[[i64; 4]]) -> Vec<i32> {
        let (mut reader, writer) = io::pipe().unwrap();
        // SAFETY: fork(2) has no preconditions. The child's allocations are safe with glibc, whose locks fork(2) takes.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let mut answers = Vec::new();
            if confine().is_ok() {
                for [number, a, b, c] in calls {
                    // SAFETY: numbers that mean nothing, or null pointers, in a process that ends right after.
                    let ret = unsafe { libc::syscall(*number, *a, *b, *c, 0i64, 0i64, 0i64) };
                    let errno = io::Error::last_os_error().raw_os_error().unwrap_or(-1);
                    answers.extend(if ret < 0 { errno } else { 0 }.to_ne_bytes());
                }
            }
            use std::io::Write as _;
            let _ = (&writer).write_all(&answers);
            // SAFETY: ends the child without what the test's process has registered.
            unsafe { libc::_exit(0) }
        }
        drop(writer);
        let mut answers = Vec::new();
        io::Read::read_to_end(&mut reader, &mut answers).unwrap();
        // SAFETY: our own child.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        answers.chunks(4).map(|bytes| i32::from_ne_bytes(bytes.try_into().unwrap())).collect()
    }

    /// A call that no filter keeps back gets to the kernel, which knows what to think of these arguments: none of these do
    /// any harm, also to root.
    const HARMLESS: &[(&str, [i64; 4])] = &[
        ("ptrace", [libc::SYS_ptrace, libc::PTRACE_PEEKTEXT as i64, i32::MAX as i64, 0]),
        ("process_vm_readv", [libc::SYS_process_vm_readv, i32::MAX as i64, 0, 0]),
        ("init_module", [libc::SYS_init_module, 0, 0, 0]),
        ("finit_module", [libc::SYS_finit_module, -1, 0, 0]),
        ("bpf", [libc::SYS_bpf, -1, 0, 0]),
        ("userfaultfd", [libc::SYS_userfaultfd, -1, 0, 0]),
        ("io_uring_setup", [libc::SYS_io_uring_setup, 0, 0, 0]),
        ("keyctl", [libc::SYS_keyctl, -1, 0, 0]),
        ("perf_event_open", [libc::SYS_perf_event_open, 0, 0, 0]),
        ("mount", [libc::SYS_mount, 0, 0, 0]),
        ("umount2", [libc::SYS_umount2, 0, 0, 0]),
        ("pivot_root", [libc::SYS_pivot_root, 0, 0, 0]),
        ("chroot", [libc::SYS_chroot, 0, 0, 0]),
        ("swapon", [libc::SYS_swapon, 0, 0, 0]),
        ("acct", [libc::SYS_acct, 1, 0, 0]),
        ("reboot", [libc::SYS_reboot, 0, 0, 0]),
        ("open_by_handle_at", [libc::SYS_open_by_handle_at, -1, 0, 0]),
        ("unshare", [libc::SYS_unshare, 1, 0, 0]),
        ("setns", [libc::SYS_setns, -1, libc::CLONE_NEWNS as i64, 0]),
        ("clone of a user namespace", [libc::SYS_clone, (libc::CLONE_NEWUSER | libc::CLONE_FS) as i64, 0, 0]),
        ("socket of VSOCK", [libc::SYS_socket, libc::AF_VSOCK as i64, -1, -1]),
        ("kexec_load", [libc::SYS_kexec_load, 0, i64::MAX, 0]),
    ];

    const USUAL: &[(&str, [i64; 4])] = &[
        ("getpid", [libc::SYS_getpid, 0, 0, 0]),
        ("socket of UNIX", [libc::SYS_socket, libc::AF_UNIX as i64, libc::SOCK_DGRAM as i64, 0]),
        ("socket of INET", [libc::SYS_socket, libc::AF_INET as i64, libc::SOCK_DGRAM as i64, 0]),
        ("socket of NETLINK", [libc::SYS_socket, libc::AF_NETLINK as i64, libc::SOCK_RAW as i64, 0]),
    ];

    fn calls(of: &[(&str, [i64; 4])]) -> Vec<[i64; 4]> {
        of.iter().map(|(_, call)| *call).collect()
    }

    #[test]
    fn what_nothing_of_ours_does_is_refused() {
        let free = errnos(|| Ok(()), &calls(HARMLESS));
        let kept = errnos(|| process(None).map(drop), &calls(HARMLESS));
        assert_eq!((free.len(), kept.len()), (HARMLESS.len(), HARMLESS.len()));
        let mut differ = 0;
        for ((name, _), (free, kept)) in HARMLESS.iter().zip(free.into_iter().zip(kept)) {
            assert_eq!(kept, libc::EPERM, "{name}");
            differ += usize::from(free != libc::EPERM);
        }
        // Not for want of rights: most of them the kernel would have looked at.
        assert!(differ >= 8, "{differ}");
        assert_eq!(errnos(|| process(None).map(drop), &calls(USUAL)), [0; 4]);
    }

    /// As by a kernel that does not have it: C libraries go another way.
    #[test]
    fn what_is_not_on_the_list_is_not_there() {
        let unknown = [[libc::SYS_clone3, 0, 0, 0], [1000, 0, 0, 0], [libc::SYS_sched_setattr, 0, 0, 0]];
        assert_eq!(errnos(|| process(None).map(drop), &unknown), [libc::ENOSYS; 3]);
        let free = errnos(|| Ok(()), &unknown);
        assert_ne!(free[0], libc::ENOSYS, "it is there");
    }

    #[test]
    fn a_thread_that_serves_opens_nothing_and_starts_nothing() {
        let tried = [
            [libc::SYS_openat, -1, 0, 0],
            [libc::SYS_execve, 0, 0, 0],
            [libc::SYS_clone, 0, 0, 0],
            [libc::SYS_setns, -1, libc::CLONE_NEWNET as i64, 0],
            [libc::SYS_kill, 0, 0, 0],
            [libc::SYS_socket, libc::AF_NETLINK as i64, libc::SOCK_RAW as i64, 0],
            [libc::SYS_socket, libc::AF_UNIX as i64, libc::SOCK_DGRAM as i64, 0],
            [libc::SYS_ioctl, -1, libc::SIOCGIFINDEX as i64, 0],
            [libc::SYS_ptrace, 0, 0, 0],
        ];
        assert_eq!(errnos(server_thread, &tried), [libc::EPERM; 9]);
        let served = [
            [libc::SYS_socket, libc::AF_INET6 as i64, libc::SOCK_STREAM as i64, 0],
            [libc::SYS_ioctl, -1, libc::FIONBIO as i64, 0],
        ];
        assert_eq!(errnos(server_thread, &served), [0, libc::EBADF]);
    }

    /// An upgrade goes on under the filters that are there; as many as one likes.
    #[test]
    fn the_same_filters_are_not_put_on_twice() {
        let count = |status: &str| -> u32 {
            let line = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")).expect("Linux 5.9");
            line.trim().parse().unwrap()
        };
        let confined = |inherited: fn(String) -> Option<String>| {
            std::thread::spawn(move || {
                let name = process(None).unwrap();
                process(inherited(name).as_deref()).unwrap();
                count(&std::fs::read_to_string("/proc/thread-self/status").unwrap())
            })
            .join()
            .unwrap()
        };
        let before = count(&std::fs::read_to_string("/proc/thread-self/status").unwrap());
        assert_eq!(confined(Some), before + 2);
        assert_eq!(confined(|_| Some("another program's".to_owned())), before + 4);
        // A name without filters behind it is nothing.
        if before == 0 {
            let name = name_of(&[
                passing(&[EVERYWHERE, EVERYWHERE_OLDER, PROCESS, PROCESS_OLDER]).unwrap(),
                refusing().unwrap(),
            ]);
            let after = std::thread::spawn(move || {
                process(Some(&name)).unwrap();
                is_confined()
            });
            assert!(after.join().unwrap());
        }
    }
}
