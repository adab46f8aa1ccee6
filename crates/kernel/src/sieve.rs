//! What of some senders' datagrams a socket takes (`SO_ATTACH_FILTER`, socket(7); linux/filter.h).
//!
//! The filter is asked before a datagram counts in the receive buffer (`udp_queue_rcv_one_skb`, net/ipv4/udp.c): what it does
//! not take is in nobody's way, however seldom the buffer is read.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sys;

/// So many senders a filter knows; a program has at most `BPF_MAXINSNS` (4096) instructions, and one of IPv6 takes twelve.
pub const MAX_SENDERS: usize = 128;
/// Smaller parts than one datagram of so many (a power of two) are not told apart.
pub const MAX_SHIFT: u8 = 16;

/// Offsets into what is not the datagram itself (linux/filter.h).
const NETWORK_HEADER: u32 = -0x10_0000_i32 as u32;
const RANDOM: u32 = (-0x1000_i32 as u32) + 56;
/// The source address in a header of IPv4 and of IPv6 (RFC 791 §3.1, RFC 8200 §3).
const SOURCE_V4: u32 = 12;
const SOURCE_V6: u32 = 8;

/// Has a socket for one family take one datagram of `2^shift`, by chance, of each of these senders, and all of everybody else;
/// with no senders at all it takes everything, as it did at first. Senders of the other family are passed over, and those
/// beyond [`MAX_SENDERS`].
///
/// # Errors
/// What the kernel said.
pub fn sieve(socket: BorrowedFd<'_>, senders: impl IntoIterator<Item = (IpAddr, u8)>, is_v4: bool) -> io::Result<()> {
    let senders: Vec<_> = senders.into_iter().filter(|(ip, _)| ip.is_ipv4() == is_v4).take(MAX_SENDERS).collect();
    if senders.is_empty() {
        return match sys::setsockopt_int(socket, libc::SOL_SOCKET, libc::SO_DETACH_FILTER, 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done,
        };
    }
    let mut program = program(&senders);
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program is live, has as many instructions as it says, and the kernel copies and checks them.
    sys::cvt(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            size_of_val(&filter) as libc::socklen_t,
        )
    })?;
    Ok(())
}

fn program(senders: &[(IpAddr, u8)]) -> Vec<libc::sock_filter> {
    let mut program = Vec::new();
    for (sender, shift) in senders {
        let (words, source): (Vec<u32>, u32) = match sender {
            IpAddr::V4(ip) => (vec![ip.to_bits()], SOURCE_V4),
            IpAddr::V6(ip) => ((0..4).rev().map(|word| (ip.to_bits() >> (32 * word)) as u32).collect(), SOURCE_V6),
        };
        // Four instructions follow the last comparison, two more each one before.
        for (index, word) in words.iter().enumerate() {
            let left = 2 * (words.len() - 1 - index) as u8;
            program.push(instruction(
                libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
                0,
                0,
                NETWORK_HEADER.wrapping_add(source + 4 * index as u32),
            ));
            program.push(instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, left + 4, *word));
        }
        let mask = (1 << (*shift).min(MAX_SHIFT)) - 1;
        program.push(instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, RANDOM));
        program.push(instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, mask));
        program.push(take(0));
        program.push(take(u32::MAX));
    }
    program.push(take(u32::MAX));
    program
}

/// How much of the datagram is taken.
fn take(bytes: u32) -> libc::sock_filter {
    instruction(libc::BPF_RET | libc::BPF_K, 0, 0, bytes)
}

fn instruction(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    /// How many of 1,000 datagrams of a sender are taken. They all wait in a socket of this process.
    fn taken(to: &UdpSocket, from: IpAddr) -> usize {
        let sender = UdpSocket::bind((from, 0)).unwrap();
        let mut count = 0;
        let mut bytes = [0; 2000];
        for _ in 0..20 {
            for _ in 0..50 {
                sender.send_to(&[7; 1200], to.local_addr().unwrap()).unwrap();
            }
            while let Ok((length, _)) = to.recv_from(&mut bytes) {
                assert_eq!(length, 1200, "it is whole");
                count += 1;
            }
        }
        count
    }

    fn socket(at: IpAddr) -> UdpSocket {
        let socket = UdpSocket::bind((at, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        socket
    }

    /// Loopback has all of 127.0.0.0/8.
    #[test]
    fn of_those_it_knows_a_socket_takes_a_part() {
        let socket = socket(Ipv4Addr::LOCALHOST.into());
        let ip = |last: u16| IpAddr::from(Ipv4Addr::new(127, 0, (last >> 8) as u8 + 1, last as u8));
        let all: Vec<_> = (0..MAX_SENDERS as u16).map(|last| (ip(last), 2)).collect();
        let last = all.len() as u16 - 1;
        assert_eq!(taken(&socket, ip(last)), 1000);
        sieve(socket.as_fd(), all.iter().copied(), true).unwrap();
        for number in [0, last] {
            let part = taken(&socket, ip(number));
            assert!((150..350).contains(&part), "a quarter: {part}");
        }
        assert_eq!(taken(&socket, ip(last + 1)), 1000, "nobody else's");
        sieve(socket.as_fd(), [(ip(0), 0), (ip(1), 99)], true).unwrap();
        assert_eq!(taken(&socket, ip(0)), 1000);
        assert!(taken(&socket, ip(1)) < 10);
        for _ in 0..2 {
            sieve(socket.as_fd(), [], true).unwrap();
        }
        assert_eq!(taken(&socket, ip(1)), 1000);
    }

    #[test]
    fn senders_by_ipv6_are_told_apart_by_all_of_their_address() {
        let Ok(_) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) else {
            eprintln!("SKIP: no IPv6");
            return;
        };
        let socket = socket(Ipv6Addr::LOCALHOST.into());
        let near: Vec<_> = (0..4).map(|word| (Ipv6Addr::from_bits(1 ^ 1 << (32 * word + 5)).into(), 16)).collect();
        sieve(socket.as_fd(), near.iter().copied(), false).unwrap();
        assert_eq!(taken(&socket, Ipv6Addr::LOCALHOST.into()), 1000);
        let own = (IpAddr::from(Ipv6Addr::LOCALHOST), 16);
        let many = std::iter::repeat_n(near[0], MAX_SENDERS - 1).chain([own]);
        sieve(socket.as_fd(), many, false).unwrap();
        assert!(taken(&socket, Ipv6Addr::LOCALHOST.into()) < 10);
    }
}
