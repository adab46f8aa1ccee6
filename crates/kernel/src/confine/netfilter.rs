//! Keeping a container's processes from the packet filter of the kernel.
//!
//! Written by hand: seccompiler's filters know one architecture alone, and take the numbers of x32 for calls that they have no
//! rule for.

use std::io;

use seccompiler::sock_filter;

/// `SO_SET_REPLACE` and `SO_SET_ADD_COUNTERS` of iptables and ip6tables (linux/netfilter_ipv4/ip_tables.h,
/// linux/netfilter_ipv6/ip6_tables.h), of arptables and of ebtables, which is reached by IPv4 sockets as well.
const SET_IPV4: [u32; 6] = [64, 65, 96, 97, 128, 129];
const SET_IPV6: [u32; 2] = [64, 65];
/// `SYS_SOCKET` and `SYS_SETSOCKOPT` of socketcall(2) (linux/net.h), which has what they are about in memory.
const SOCKETCALLS: [u32; 2] = [1, 14];
/// The same everywhere.
const IO_URING_SETUP: u32 = 425;

/// A set of numbers for system calls, as the kernel tells a filter which (linux/audit.h).
struct Abi {
    /// `AUDIT_ARCH_…`.
    arch: u32,
    /// What counts of a number.
    mask: u32,
    socket: u32,
    setsockopt: &'static [u32],
    socketcall: Option<u32>,
}

/// Those that programs of this machine may use.
#[cfg(target_arch = "x86_64")]
const ABIS: &[Abi] = &[
    // x32 has a bit of its own in its numbers (`__X32_SYSCALL_BIT`), and a setsockopt(2) besides.
    Abi { arch: 0xc000_003e, mask: !0x4000_0000, socket: 41, setsockopt: &[54, 541], socketcall: None },
    Abi { arch: 0x4000_0003, mask: !0, socket: 359, setsockopt: &[366], socketcall: Some(102) },
];
#[cfg(target_arch = "aarch64")]
const ABIS: &[Abi] = &[
    Abi { arch: 0xc000_00b7, mask: !0, socket: 198, setsockopt: &[208], socketcall: None },
    Abi { arch: 0x4000_0028, mask: !0, socket: 281, setsockopt: &[294], socketcall: Some(102) },
];

/// A filter under which there are no sockets of the packet filter, for a process and all that it starts.
///
/// Refused with `EPERM` are sockets of `NETLINK_NETFILTER`, by which nftables, conntrack and ipset are spoken to, the socket
/// options that replace the tables of iptables-legacy and its kin, and io_uring_setup(2), whose rings make sockets that no
/// filter sees. Calls that hide what they ask for (socketcall(2)), and those of machines not known here, are answered as by
/// a kernel that lacks them (`ENOSYS`).
#[derive(Debug)]
pub(crate) struct Netfilter(Vec<sock_filter>);

impl Netfilter {
    /// The instructions, to be at hand where nothing can be allocated.
    pub(crate) fn new() -> Self {
        let mut program = vec![load(ARCH)];
        for abi in ABIS {
            let rules = rules(abi);
            program.push(jump_if(abi.arch, 1, 0));
            program.push(jump(rules.len() as u32));
            program.extend(rules);
        }
        program.push(answer(refusal(libc::ENOSYS)));
        Self(program)
    }

    /// Puts the calling thread under it. It is for good, and handed on by fork(2) and execve(2).
    ///
    /// # Errors
    /// `EACCES` without `CAP_SYS_ADMIN` over one's own user namespace: programs that get rights by being executed go on
    /// getting them.
    pub(crate) fn install(&self) -> io::Result<()> {
        super::install(&self.0, 0)
    }
}

/// Where things are in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
/// The lower half of an argument: these are all of 32 bits.
const fn argument(index: u32) -> u32 {
    16 + 8 * index + if cfg!(target_endian = "big") { 4 } else { 0 }
}

/// All that is refused of these numbers; ends with what lets the rest pass.
fn rules(abi: &Abi) -> Vec<sock_filter> {
    let (netlink, netfilter) = (libc::AF_NETLINK as u32, libc::NETLINK_NETFILTER as u32);
    let mut rules = refused(abi, abi.socket, &[(0, netlink), (2, netfilter)], libc::EPERM);
    for number in abi.setsockopt {
        for (level, names) in [(libc::SOL_IP, &SET_IPV4[..]), (libc::SOL_IPV6, &SET_IPV6)] {
            for name in names {
                rules.extend(refused(abi, *number, &[(1, level as u32), (2, *name)], libc::EPERM));
            }
        }
    }
    rules.extend(refused(abi, IO_URING_SETUP, &[], libc::EPERM));
    for (number, call) in abi.socketcall.iter().flat_map(|number| SOCKETCALLS.map(|call| (*number, call))) {
        rules.extend(refused(abi, number, &[(0, call)], libc::ENOSYS));
    }
    rules.push(answer(libc::SECCOMP_RET_ALLOW));
    rules
}

/// Refuses a call whose arguments have these values, and goes on behind itself otherwise.
fn refused(abi: &Abi, number: u32, arguments: &[(u32, u32)], errno: i32) -> Vec<sock_filter> {
    let mut behind = 2 * arguments.len() as u8 + 1;
    let mut rule = vec![load(NUMBER), and(abi.mask), jump_if(number, 0, behind)];
    for (index, value) in arguments {
        behind -= 2;
        rule.extend([load(argument(*index)), jump_if(*value, 0, behind)]);
    }
    rule.push(answer(refusal(errno)));
    rule
}

fn refusal(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

fn load(offset: u32) -> sock_filter {
    instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset)
}

fn and(mask: u32) -> sock_filter {
    instruction(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, mask)
}

/// Skips so many instructions, by whether what was loaded is `value`.
fn jump_if(value: u32, is: u8, is_not: u8) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, is, is_not, value)
}

fn jump(over: u32) -> sock_filter {
    instruction(libc::BPF_JMP | libc::BPF_JA, 0, 0, over)
}

fn answer(action: u32) -> sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action)
}

#[cfg(test)]
mod tests {
    use super::super::tests::errnos;
    use super::*;

    const NETLINK: i64 = libc::AF_NETLINK as i64;
    const NETFILTER: i64 = libc::NETLINK_NETFILTER as i64;

    fn confined(calls: &[[i64; 4]]) -> Vec<i32> {
        errnos(|| Netfilter::new().install(), calls)
    }

    /// The number of a call, as it is and with other upper halves of arguments, which the kernel does not look at.
    #[test]
    fn what_leads_to_the_packet_filter_is_refused() {
        let sockets: Vec<[i64; 4]> = [libc::SOCK_RAW, libc::SOCK_DGRAM, libc::SOCK_RAW | libc::SOCK_CLOEXEC]
            .into_iter()
            .flat_map(|kind| [0, 1 << 32].map(|high| [libc::SYS_socket, NETLINK | high, kind.into(), NETFILTER | high]))
            .collect();
        assert_eq!(errnos(|| Ok(()), &sockets), [0; 6], "where nothing keeps them off they are there");
        assert_eq!(confined(&sockets), [libc::EPERM; 6]);
        // On no descriptor: who asks so far was let pass.
        let mut options = Vec::new();
        for (level, names) in [(libc::SOL_IP, &SET_IPV4[..]), (libc::SOL_IPV6, &SET_IPV6)] {
            options.extend(names.iter().map(|name| [libc::SYS_setsockopt, -1, level.into(), (*name).into()]));
        }
        options.push([IO_URING_SETUP.into(), 0, 0, 0]);
        assert_ne!(errnos(|| Ok(()), &options[..8]), [libc::EPERM; 8]);
        assert_eq!(confined(&options), [libc::EPERM; 9]);
    }

    #[test]
    fn everything_else_passes() {
        let usual = [
            [libc::SYS_socket, NETLINK, libc::SOCK_RAW.into(), libc::NETLINK_ROUTE.into()],
            [libc::SYS_socket, libc::AF_INET.into(), libc::SOCK_DGRAM.into(), 0],
            // The protocol of the number that NETLINK_NETFILTER has is another's.
            [libc::SYS_socket, libc::AF_UNIX.into(), libc::SOCK_DGRAM.into(), 0],
        ];
        assert_eq!(confined(&usual), [0; 3]);
        let options = [
            [libc::SYS_setsockopt, -1, libc::SOL_SOCKET.into(), 64],
            [libc::SYS_setsockopt, -1, libc::SOL_IPV6.into(), 66],
            [libc::SYS_setsockopt, -1, libc::SOL_IP.into(), libc::IP_TTL.into()],
            [libc::SYS_getsockopt, -1, libc::SOL_IP.into(), 64],
        ];
        assert_eq!(confined(&options), [libc::EBADF; 4]);
    }

    /// A program may make the calls of another ABI whatever it was made for.
    #[cfg(target_arch = "x86_64")]
    #[test]
    fn other_numbers_lead_nowhere_else() {
        use std::arch::asm;

        const X32: i64 = 0x4000_0000;
        let x32 = [
            [X32 | 41, NETLINK, libc::SOCK_RAW.into(), NETFILTER],
            [X32 | 541, -1, libc::SOL_IP.into(), 64],
            [541, -1, libc::SOL_IP.into(), 64],
            [X32 | 425, 0, 0, 0],
        ];
        assert_eq!(confined(&x32), [libc::EPERM; 4]);

        /// Of the i386 ABI: the number in `eax`, arguments in `ebx`, `ecx`, `edx`.
        fn i386([number, a, b, c]: [i32; 4]) -> i32 {
            let answer: i32;
            // SAFETY: numbers that name nothing, or memory at zero; `rbx` is given back, which the compiler has for itself,
            // and the kernel zeroes r8 to r11 on this way in.
            unsafe {
                asm!(
                    "xchg {a:r}, rbx", "int 0x80", "xchg {a:r}, rbx",
                    a = inout(reg) i64::from(a) => _, inout("eax") number => answer, in("ecx") b, in("edx") c,
                    out("r8") _, out("r9") _, out("r10") _, out("r11") _,
                );
            }
            if answer < 0 { -answer } else { 0 }
        }
        let calls = [
            [359, libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER],
            [366, -1, libc::SOL_IP, 64],
            [425, 0, 0, 0],
            [102, 1, 0, 0],
            [102, 14, 0, 0],
            [20, 0, 0, 0],
            [359, libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE],
        ];
        let made = |confine: fn() -> io::Result<()>| {
            std::thread::spawn(move || confine().map(|()| calls.map(i386))).join().unwrap().unwrap()
        };
        let free = made(|| Ok(()));
        if free == [libc::ENOSYS; 7] {
            eprintln!("SKIP: this kernel has no calls of i386");
            return;
        }
        assert_eq!(free[0], 0, "{free:?}");
        assert_eq!((free[3], free[4]), (libc::EFAULT, libc::EFAULT), "{free:?}");
        let (refused, absent) = (libc::EPERM, libc::ENOSYS);
        let kept = made(|| Netfilter::new().install());
        assert_eq!(kept, [refused, refused, refused, absent, absent, 0, 0]);
    }

    /// No instruction jumps out of the program, and each of an ABI's ways ends.
    #[test]
    fn the_programs_of_all_machines_are_whole() {
        let program = Netfilter::new().0;
        for (at, it) in program.iter().enumerate() {
            let code = u32::from(it.code);
            let far = if code == libc::BPF_JMP | libc::BPF_JA { it.k as usize } else { it.jt.max(it.jf).into() };
            assert!(at + 1 + far < program.len() || code == libc::BPF_RET | libc::BPF_K, "{at} of {}", program.len());
        }
        assert!(program.len() < libc::BPF_MAXINSNS as usize);
    }
}
