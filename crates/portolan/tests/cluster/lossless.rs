//! Ten thousand packets a second through an overlay while daemons are killed, restarted and upgraded.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use portolan_lab::eventually;
use portolan_lab::probe::ping;
use portolan_lab::server::once_free;

use crate::overlay::{Pod, two_hosts};
use crate::world::{LONG, Node};

/// So many packets are sent at once at most.
const BURST: u32 = 500;
/// So many times something is done to a daemon.
const BLOWS: usize = 100;

/// Numbers that were sent and did not come, or came twice.
#[derive(Debug, Default)]
struct Tally {
    sent: AtomicU64,
    came: AtomicU64,
    twice: AtomicU64,
    /// By how many microseconds the sender was late at most: such a machine has no time for who carries the packets either.
    late: AtomicU64,
}

fn blow(node: &Node, number: usize) {
    match number % 3 {
        0 => node.kill_daemon(),
        1 => {
            node.ok("daemon stop");
            node.ok("daemon start");
        }
        _ => drop(node.ok("daemon upgrade")),
    }
    let is_back = || node.run(&["daemon", "status"]).status.success();
    assert!(eventually(LONG, is_back), "{}: no daemon after blow {number}", node.host.name());
}

#[test]
fn no_packet_is_lost_while_daemons_die_and_change() {
    flow("overlay-lossless", "network create -d overlay web", Duration::from_micros(95));
}

/// An encrypting process has less to spare on a small machine.
#[test]
fn no_encrypted_packet_is_lost_while_daemons_die_and_change() {
    flow("overlay-lossless-sealed", "network create -d overlay --opt encrypted web", Duration::from_micros(950));
}

fn flow(name: &str, create: &str, gap: Duration) {
    let Some((world, _etcd, near, far)) = two_hosts(name, create) else { return };
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    assert!(eventually(LONG, || ping(&near, far.addresses[0], Duration::from_secs(1)).is_open()));
    stream(&near, &far, gap, || {
        for number in 0..BLOWS {
            blow(if number % 2 == 0 { a } else { b }, number / 2);
        }
    });
    for node in [a, b] {
        node.is_well();
        node.ok("verify");
    }
}

/// Sends a packet each `gap` while `meanwhile` goes on, none of which is to be lost.
pub(crate) fn stream(near: &Pod, far: &Pod, gap: Duration, meanwhile: impl FnOnce()) {
    let (sent, came, how) = carried(near, far, gap, meanwhile);
    assert_eq!(sent, came, "{} to {} {how}", near.name, far.name);
    assert!(sent > 2_000, "{sent} packets are no load");
}

/// The same: how many were sent, how many came, and which were lost.
pub(crate) fn carried(near: &Pod, far: &Pod, gap: Duration, meanwhile: impl FnOnce()) -> (u64, u64, String) {
    let (tally, over) = (Tally::default(), AtomicBool::new(false));
    let mut lost: Vec<(usize, usize)> = Vec::new();
    let lost_here = &mut lost;
    let listener = far.place.enter(|| once_free(|| UdpSocket::bind("0.0.0.0:9000"))).unwrap();
    rustix::net::sockopt::set_socket_recv_buffer_size_force(&listener, 64 << 20).unwrap();
    listener.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let sender = near.place.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    sender.connect(SocketAddr::new(far.addresses[0], 9000)).unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = Instant::now();
            while !over.load(Ordering::Relaxed) {
                let number = tally.sent.fetch_add(1, Ordering::Relaxed);
                sender.send(&number.to_be_bytes()).unwrap();
                tally.late.fetch_max(next.elapsed().as_micros() as u64, Ordering::Relaxed);
                next += gap;
                // Who was kept from running catches up, but with no more than a queue holds.
                next = next.max(Instant::now().checked_sub(gap * BURST).unwrap_or(next));
                while Instant::now() < next {
                    std::thread::sleep(Duration::from_micros(50));
                }
            }
        });
        scope.spawn(|| {
            let mut seen: Vec<bool> = Vec::new();
            let mut buffer = [0; 8];
            loop {
                match listener.recv(&mut buffer) {
                    Ok(8) => {
                        let number = u64::from_be_bytes(buffer) as usize;
                        seen.resize(seen.len().max(number + 1), false);
                        let count = if std::mem::replace(&mut seen[number], true) { &tally.twice } else { &tally.came };
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(other) => panic!("{other} bytes came"),
                    Err(_) if over.load(Ordering::Relaxed) => break,
                    Err(_) => {}
                }
            }
            // Those after the last that came are lost as well.
            seen.resize(seen.len().max(tally.sent.load(Ordering::Relaxed) as usize), false);
            for (number, _) in seen.iter().enumerate().filter(|(_, has_come)| !**has_come) {
                match lost_here.last_mut() {
                    Some((_, last)) if *last + 1 == number => *last = number,
                    _ => lost_here.push((number, number)),
                }
            }
        });
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            meanwhile();
            std::thread::sleep(Duration::from_millis(200));
        }));
        over.store(true, Ordering::Relaxed);
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    let (sent, came) = (tally.sent.into_inner(), tally.came.into_inner());
    let rate = sent as f64 / began.elapsed().as_secs_f64();
    let twice = tally.twice.into_inner();
    let late = Duration::from_micros(tally.late.into_inner());
    let how = format!("lost {lost:?}; the sender was late by {late:?}");
    let count = format!("{sent} packets sent, {rate:.0} a second, {came} came, {twice} twice");
    eprintln!("{} to {}: {count}; {how}", near.name, far.name);
    (sent, came, how)
}
