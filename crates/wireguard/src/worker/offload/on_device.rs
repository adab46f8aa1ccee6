//! What the kernel makes of what is joined, and what it would have divided itself.

use std::os::fd::OwnedFd;
use std::time::Duration;

use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::rtnl::link::{self, LinkChange};
use portolan_kernel::tun;
use portolan_lab::{Host, Lab, eventually};

use super::tests::{KINDS, divided, joined, stream};
use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

fn device(host: &Host, name: &str, offload: tun::Offload) -> Option<OwnedFd> {
    host.enter(|| {
        let fd = tun::attach(name).unwrap();
        tun::set_header(&fd, HEADER).unwrap();
        let is_known = tun::set_offload(&fd, offload).is_ok();
        let mut batch = Batch::new();
        link::set(&mut batch, name, &LinkChange { up: Some(true), mtu: Some(1500), ..LinkChange::default() });
        Socket::open(ROUTE).unwrap().transact(&batch).unwrap();
        is_known.then_some(fd)
    })
}

/// What of the streams comes by the device, as it is.
fn read(fd: &OwnedFd, wanted: usize) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut buffer = vec![0; HEADER + LARGEST];
    let came = eventually(PATIENCE, || {
        while let Ok(len) = rustix::io::read(fd, &mut buffer[..]) {
            // The kernel asks for neighbours and routers too.
            if Layers::vxlan(&buffer[HEADER..len]).is_some() {
                out.push(buffer[..len].to_vec());
            }
        }
        out.len() >= wanted
    });
    assert!(came, "{} of {wanted}", out.len());
    out
}

/// A router between two devices: it is given a stream as one packet, and passes it on as one or divides it.
#[test]
fn what_is_divided_is_what_the_kernel_divides() {
    let Some(lab) = Lab::or_skip("wg-offload") else { return };
    let host = lab.host("h1").unwrap();
    let Some(from) = device(&host, "t0", tun::Offload::TUNNELS) else {
        eprintln!("SKIP: `wg-offload`: Linux before 6.17");
        return;
    };
    let whole = device(&host, "t1", tun::Offload::TUNNELS).unwrap();
    let apart = device(&host, "t2", tun::Offload::NONE).unwrap();
    host.enable_forwarding().unwrap();
    host.sysctl(&["net", "ipv4", "conf", "all", "rp_filter"], "0").unwrap();
    host.sysctl(&["net", "ipv4", "conf", "t0", "rp_filter"], "0").unwrap();
    let routes = |words: &str| {
        let status = host.command("ip").unwrap().args(words.split(' ')).status().unwrap();
        assert!(status.success(), "ip {words}");
    };
    for kind in KINDS {
        let packets = stream(kind, 40);
        let together = joined(&packets);
        assert_eq!(together.len(), 1);
        let to = if kind.outer_v4 { "-4 route replace default dev" } else { "-6 route replace default dev" };
        routes(&format!("{to} t1"));
        rustix::io::write(&from, &together[0]).unwrap();
        let passed = read(&whole, 1);
        assert_eq!(passed.len(), 1, "{kind:?}");
        routes(&format!("{to} t2"));
        rustix::io::write(&from, &together[0]).unwrap();
        let by_kernel: Vec<Vec<u8>> =
            read(&apart, packets.len()).into_iter().map(|bytes| bytes[HEADER..].to_vec()).collect();
        assert!(divided(&passed[0]) == by_kernel, "{kind:?}");
        // Either has one hop less.
        let nearer: Vec<Vec<u8>> = packets.into_iter().map(one_hop_less).collect();
        assert!(by_kernel == nearer, "{kind:?}");
    }
}

fn one_hop_less(mut packet: Vec<u8>) -> Vec<u8> {
    let layers = Layers::vxlan(&packet).unwrap();
    let hops = if packet[0] >> 4 == 4 { 8 } else { 7 };
    packet[hops] -= 1;
    layers.finish(&mut packet);
    packet
}
