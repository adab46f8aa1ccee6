//! An attacker and its victims on one layer 2 segment: of Portolan's, or of a plain Linux bridge.

use std::cell::Cell;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use portolan_kernel::netlink::Batch;
use portolan_kernel::netns::{NetnsFd, with_netns};
use portolan_kernel::rtnl::{Family, addr, neigh, route};
use portolan_lab::server::once_free;
use portolan_lab::{Host, InNetns, Lab, Lan, eventually};

use crate::common::{
    Container, FAMILIES, LONG, Wire, World, choose, holds, interface, octets, pick, route_socket, udp_frame,
};
use crate::forge::Mac;

/// What must not come is waited for a little after what followed it has come.
const MOMENT: Duration = Duration::from_millis(30);
/// Times that an attack is made that must fail.
const TRIES: usize = 3;

/// Somebody on the segment.
#[derive(Debug)]
pub(crate) struct Party<'a> {
    pub(crate) place: &'a NetnsFd,
    pub(crate) interface: String,
    pub(crate) mac: Mac,
    pub(crate) v4: IpAddr,
    pub(crate) v6: IpAddr,
}

impl InNetns for Party<'_> {
    fn netns(&self) -> &NetnsFd {
        self.place
    }
}

impl<'a> Party<'a> {
    pub(crate) fn ip(&self, family: Family) -> IpAddr {
        choose(family, self.v4, self.v6)
    }

    /// The address that every IPv6 interface has.
    pub(crate) fn link_local(&self) -> IpAddr {
        addr::link_local(self.mac).into()
    }

    fn of(container: &'a Container) -> Self {
        let endpoint = container.only();
        // A network of one family is attacked over the other one as well.
        let v6 = endpoint.v6.unwrap_or(addr::link_local(endpoint.mac).into());
        Self { place: container.netns(), interface: "eth0".into(), mac: endpoint.mac, v4: endpoint.v4.unwrap(), v6 }
    }

    fn on_lan(host: &'a Host, number: u8) -> Self {
        let mac = interface(host, "eth0").unwrap().mac.unwrap();
        let [v4, v6] = lan_addresses(number).map(|text| text.split_once('/').unwrap().0.parse().unwrap());
        Self { place: host.netns(), interface: "eth0".into(), mac, v4, v6 }
    }

    /// Its routes have `gateway` for a next hop.
    pub(crate) fn routes_by(&self, gateway: IpAddr) -> bool {
        let mut socket = route_socket(self.place);
        let routes = route::dump_family(&mut socket, Family::of(gateway)).unwrap();
        routes.iter().any(|route| {
            route.gateway == Some(gateway) || route.nexthops.iter().any(|hop| hop.gateway == Some(gateway))
        })
    }

    /// Where it sends what is for `ip`.
    pub(crate) fn believes(&self, ip: IpAddr) -> Option<Mac> {
        let mut socket = route_socket(self.place);
        let index = interface(self.place, &self.interface).unwrap().index;
        let neighbours = neigh::dump(&mut socket, Some(index)).unwrap();
        neighbours.iter().find(|neighbour| neighbour.addr == ip).and_then(|neighbour| neighbour.mac)
    }

    /// Has it look for `ip` again.
    fn forget(&self, ip: IpAddr) {
        let mut socket = route_socket(self.place);
        let mut batch = Batch::new();
        neigh::delete(&mut batch, interface(self.place, &self.interface).unwrap().index, ip);
        // What it did not know is forgotten.
        let _ = socket.transact(&batch);
    }

    /// A socket for datagrams.
    pub(crate) fn socket(&self, family: Family, port: u16) -> UdpSocket {
        let bind = || UdpSocket::bind((family.unspecified(), port));
        with_netns(self.place, || once_free(bind)).unwrap().unwrap()
    }

    /// Writes a setting of its namespace.
    pub(crate) fn set(&self, path: &str, value: &str) {
        let components: Vec<&str> = path.split('/').collect();
        with_netns(self.place, || portolan_kernel::sysctl::write(&components, value)).unwrap().unwrap();
    }

    /// Has it believe whatever the kernel can be told to believe.
    pub(crate) fn trust_everything(&self) {
        let name = &self.interface;
        for (setting, value) in [("disable_ipv6", "0"), ("accept_ra", "2"), ("accept_redirects", "1")] {
            self.set(&format!("net/ipv6/conf/{name}/{setting}"), value);
        }
        for which in ["all", name] {
            for (setting, value) in [("accept_redirects", "1"), ("secure_redirects", "0")] {
                self.set(&format!("net/ipv4/conf/{which}/{setting}"), value);
            }
            self.set(&format!("net/ipv6/conf/{which}/suppress_frag_ndisc"), "0");
        }
        // What was learnt may be unlearnt at once.
        self.set(&format!("net/ipv4/neigh/{name}/locktime"), "0");
    }
}

/// Of a host on the plain segment.
pub(crate) fn lan_addresses(number: u8) -> [String; 2] {
    [format!("10.99.0.{number}/24"), format!("fd99::{number}/64")]
}

/// Attacker, victim, a third one to be impersonated, and whoever routes for them.
#[derive(Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) attacker: Party<'a>,
    pub(crate) victim: Party<'a>,
    pub(crate) other: Party<'a>,
    pub(crate) gateway: Party<'a>,
    /// Whether attacks are to succeed: it is the control.
    is_control: bool,
    out: Wire,
    into: Wire,
    count: Cell<u32>,
}

impl<'a> Segment<'a> {
    fn new(parties: [Party<'a>; 4], is_control: bool) -> Self {
        let [attacker, victim, other, gateway] = parties;
        let out = Wire::on(attacker.place, &attacker.interface);
        let into = Wire::on(victim.place, &victim.interface);
        Self { attacker, victim, other, gateway, is_control, out, into, count: Cell::new(0) }
    }

    /// Three containers of a network, and the host.
    pub(crate) fn of_network(world: &'a World, network: &str, containers: &'a [Container; 3]) -> Self {
        let [attacker, victim, other] = containers.each_ref().map(Party::of);
        let bridge = world.json(&["network", "inspect", network])[0]["Bridge"].as_str().unwrap().to_owned();
        let mac = interface(&world.h, &bridge).unwrap().mac.unwrap();
        let endpoint = containers[0].only();
        let gateway = Party {
            place: world.h.netns(),
            interface: bridge,
            mac,
            v4: endpoint.gateway4.unwrap(),
            v6: endpoint.gateway6.unwrap_or(addr::link_local(mac).into()),
        };
        Self::new([attacker, victim, other, gateway], false)
    }

    /// Four hosts on a switch that nobody guards.
    pub(crate) fn plain(hosts: &'a [Host; 4]) -> Self {
        let mut number = 0;
        let parties = hosts.each_ref().map(|host| {
            number += 1;
            Party::on_lan(host, number)
        });
        Self::new(parties, true)
    }

    /// Whether the attack is to go on: until it succeeded, or was tried often enough.
    pub(crate) fn succeeds(&self, mut attack: impl FnMut() -> bool) -> bool {
        if self.is_control { eventually(LONG, attack) } else { (0..TRIES).any(|_| attack()) }
    }

    /// Sends frames, and waits until an honest one that follows them has arrived.
    pub(crate) fn send(&self, frames: &[Vec<u8>]) {
        self.watch(frames, |_| {});
    }

    fn watch(&self, frames: &[Vec<u8>], mut seen: impl FnMut(&[u8])) {
        for frame in frames {
            self.out.send(frame);
        }
        self.count.set(self.count.get() + 1);
        let text = format!("end of attack {}", self.count.get());
        let (macs, ips) = ((self.attacker.mac, self.victim.mac), (self.attacker.v4, self.victim.v4));
        self.out.send(&udp_frame(macs, ips, (4000, 4001), text.as_bytes()));
        assert!(self.into.sees(LONG, |frame| {
            seen(frame);
            holds(frame, text.as_bytes())
        }));
        self.into.sees(MOMENT, |frame| {
            seen(frame);
            false
        });
    }

    /// Sends frames; whether one that holds `mark` gets to the victim.
    pub(crate) fn arrives(&self, frames: &[Vec<u8>], mark: &[u8]) -> bool {
        self.succeeds(|| {
            let mut found = false;
            self.watch(frames, |frame| found |= frame[6..12] != self.victim.mac && holds(frame, mark));
            found
        })
    }

    /// Sends frames; whether a datagram of them gets to `socket`.
    pub(crate) fn is_heard(&self, socket: &UdpSocket, frames: &[Vec<u8>]) -> bool {
        socket.set_nonblocking(true).unwrap();
        self.succeeds(|| {
            self.send(frames);
            socket.recv(&mut [0; 2048]).is_ok()
        })
    }

    /// Sends frames that redirect what is for `about`; whether the attacker gets what the victim sends there.
    pub(crate) fn diverts(&self, about: IpAddr, frames: &[Vec<u8>]) -> bool {
        let from = self.victim.socket(Family::of(about), 0);
        self.succeeds(|| {
            self.send(frames);
            from.send_to(b"for somebody else", (about, 9)).unwrap();
            let is_it = |frame: &[u8]| {
                frame[..6] == self.attacker.mac && frame[6..12] == self.victim.mac && holds(frame, b"for somebody else")
            };
            self.out.sees(MOMENT, is_it)
        })
    }

    /// Sends a frame that redirects what the host sends to `about`; whether `to` gets that. Where it is to fail, it is enough
    /// that the frame gets to the host, whatever that thinks of it.
    pub(crate) fn diverts_host(&self, about: IpAddr, frame: &[u8], to: &Party<'_>) -> bool {
        const MARK: &[u8] = b"from the host for somebody else";
        let from = self.gateway.socket(Family::of(about), 0);
        let at_host = Wire::on(self.gateway.place, &self.gateway.interface);
        let wire = Wire::on(to.place, &to.interface);
        self.succeeds(|| {
            self.send(&[frame.to_vec()]);
            if !self.is_control && at_host.sees(Duration::ZERO, |seen| holds(seen, &frame[14..])) {
                return true;
            }
            from.send_to(MARK, (about, 9)).unwrap();
            wire.sees(MOMENT, |seen| seen[..6] == to.mac && seen[6..12] == self.gateway.mac && holds(seen, MARK))
        })
    }

    /// Has the victim know where `ip` is, sends frames, and tells whether it then sends what is for it to the attacker.
    pub(crate) fn poisons(&self, ip: IpAddr, frames: &[Vec<u8>]) -> bool {
        self.victim.forget(ip);
        let from = self.victim.socket(Family::of(ip), 0);
        from.send_to(b"where are you", (ip, 9)).unwrap();
        let is_right = |mac: Option<Mac>| mac.is_some_and(|mac| mac != self.attacker.mac);
        assert!(eventually(LONG, || is_right(self.victim.believes(ip))), "{ip} answers nobody");
        self.succeeds(|| {
            self.send(frames);
            self.victim.believes(ip) == Some(self.attacker.mac)
        })
    }
}

/// Hosts on a plain switch: attacker, victim, other, gateway.
pub(crate) fn plain_hosts(lab: &Lab) -> ([Host; 4], Lan) {
    let mut lan = lab.lan("plain", &[]).unwrap();
    let mut number = 0;
    let hosts = ["attacker", "victim", "other", "gateway"].map(|name| {
        let host = lab.host(name).unwrap();
        number += 1;
        let addresses = lan_addresses(number);
        lan.connect(&host, "eth0", &addresses.each_ref().map(String::as_str)).unwrap();
        host
    });
    for host in &hosts[..3] {
        for family in FAMILIES {
            host.add_default_route(&pick(family, "10.99.0.4", "fd99::4").to_string()).unwrap();
        }
    }
    (hosts, lan)
}

/// Whether a frame is about `ip`.
pub(crate) fn is_about(ip: IpAddr) -> Vec<u8> {
    octets(ip)
}
