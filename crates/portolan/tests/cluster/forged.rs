//! Packets as tunnels carry them, made by somebody else: who can send them to where a tunnel ends is on the network.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use portolan_lab::eventually;
use portolan_lab::probe::ping;
use portolan_lab::server::once_free;
use serde_json::Value;

use crate::overlay::two_hosts;
use crate::world::{LONG, Node};

pub(crate) const VXLAN: u16 = 4789;
pub(crate) const MARK: &[u8] = b"forged";

/// What the end of the only network's tunnels is: its number and its MAC.
pub(crate) fn end(node: &Node) -> (u32, [u8; 6]) {
    let link = node.links("vx-").pop().unwrap();
    let output = node.host.command("ip").unwrap().args(["-d", "-j", "link", "show", &link]).output().unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    let vni = shown[0]["linkinfo"]["info_data"]["id"].as_u64().unwrap();
    let mac: Vec<u8> =
        shown[0]["address"].as_str().unwrap().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    (vni.try_into().unwrap(), mac.try_into().unwrap())
}

/// A frame in a VXLAN header (RFC 7348 §5) with a datagram to port 7777.
fn packet(end: (u32, [u8; 6]), from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    frame(end, ([2, 0, 0, 0, 0, 99], from), to)
}

/// The same from a MAC.
pub(crate) fn frame((vni, mac): (u32, [u8; 6]), (by, from): ([u8; 6], Ipv4Addr), to: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0x08, 0, 0, 0];
    bytes.extend((vni << 8).to_be_bytes());
    bytes.extend(mac);
    bytes.extend(by);
    bytes.extend([8, 0]);
    let length = 20 + 8 + MARK.len() as u16;
    let mut header = vec![0x45, 0];
    header.extend(length.to_be_bytes());
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend(header);
    bytes.extend([0x1e, 0x61, 0x1e, 0x61]);
    bytes.extend((8 + MARK.len() as u16).to_be_bytes());
    // No checksum (RFC 768).
    bytes.extend([0, 0]);
    bytes.extend(MARK);
    bytes
}

#[test]
fn containers_cannot_send_into_tunnels() {
    let Some((world, _etcd, near, far)) = two_hosts("overlay-forged", "network create -d overlay web") else { return };
    let [a, b] = &world.nodes[..] else { panic!("two hosts") };
    assert!(eventually(LONG, || ping(&near, far.addresses[0], Duration::from_secs(1)).is_open()));
    // Somebody on another network, with a way out.
    a.ok("network create other");
    let stranger = world.pod(a, "other", "stranger");
    let (IpAddr::V4(of_near), IpAddr::V4(of_far)) = (near.addresses[0], far.addresses[0]) else { panic!("IPv4 first") };
    let heard = |pod: &crate::overlay::Pod| {
        let socket = pod.place.enter(|| once_free(|| UdpSocket::bind("0.0.0.0:7777"))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        socket
    };
    let (at_near, at_far) = (heard(&near), heard(&far));
    let came = |socket: &UdpSocket| {
        let mut buffer = [0; 64];
        socket.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == MARK)
    };
    let send = |place: &portolan_lab::Host, to: &str, bytes: &[u8]| {
        let socket = place.enter(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.send_to(bytes, SocketAddr::new(to.parse().unwrap(), VXLAN)).unwrap();
    };
    // The control: this is how another host's packets look.
    let to_far = packet(end(b), of_near, of_far);
    send(&a.host, "10.0.1.2", &to_far);
    assert!(came(&at_far), "a packet of host a's is not taken");

    // On the same LAN, and no host of the cluster.
    send(world.etcd_host(1), "10.0.1.2", &to_far);
    assert!(!came(&at_far), "a stranger's packet was taken");

    send(&stranger.place, "10.0.1.2", &to_far);
    assert!(!came(&at_far), "a container's packet was taken by another host's tunnel");
    // At home: as if it came from the other host.
    let to_near = packet(end(a), of_far, of_near);
    let gateway = stranger.gateway();
    for to in ["10.0.1.1", gateway.trim_start_matches('@')] {
        send(&stranger.place, to, &to_near);
        assert!(!came(&at_near), "a container's packet to {to} was taken by its host's tunnel");
    }
    send(&near.place, "10.0.1.2", &to_far);
    assert!(!came(&at_far), "nor is one of the network's own");
}
