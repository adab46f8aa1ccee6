//! The plugin `bridge` beside the original.

use std::net::IpAddr;

use portolan_kernel::netlink::{ROUTE, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::Family;
use portolan_kernel::rtnl::route::{self, RouteKind};
use portolan_lab::probe::ping;
use portolan_lab::{InNetns, eventually};
use serde_json::{Value, json};

use crate::beside::{Chain, Pair, Side};
use crate::common::{FAMILIES, LONG, SHORT, addresses, choose, interface, neighbour_ip};
use crate::runtime::{Pod, with};

/// The original's host-local, with an address of each family.
pub(crate) fn dual() -> Value {
    json!({"type": "host-local", "dataDir": "$DIR/ipam",
           "ranges": [[{"subnet": "10.9.1.0/24"}], [{"subnet": "fd09:1::/64"}]],
           "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]})
}

/// The plugin on bridge `br1`.
fn plain() -> Value {
    json!({"type": "bridge", "bridge": "br1", "isGateway": true, "ipam": dual()})
}

pub(crate) fn gateway(family: Family) -> IpAddr {
    choose(family, "10.9.1.1", "fd09:1::1").parse().unwrap()
}

/// What routes there are, but for those of the kernel's own.
pub(crate) fn routes(place: &impl InNetns) -> Vec<String> {
    let mut socket = with_netns(place.netns(), || Socket::open(ROUTE)).unwrap().unwrap();
    let all = route::dump(&mut socket).unwrap().into_iter();
    let mut found: Vec<String> = all
        .filter(|route| {
            route.kind == RouteKind::Unicast && route.table == route::TABLE_MAIN && !route.dst.is_multicast()
        })
        .filter(|route| !route.dst.to_string().starts_with("fe80"))
        .map(|route| {
            let (dst, len, via) = (route.dst, route.prefix_len, route.gateway);
            let (scope, protocol, metric) = (route.scope, route.protocol, route.metric);
            format!("{dst}/{len} via {via:?} scope {scope:?} protocol {protocol} metric {metric:?} mtu {:?}", route.mtu)
        })
        .collect();
    found.sort();
    found
}

pub(crate) fn setting(place: &(impl InNetns + Sync), path: &str) -> String {
    let path = format!("/proc/sys/net/{path}");
    std::thread::scope(|scope| {
        let read = || {
            portolan_kernel::netns::enter_for_good(place.netns()).unwrap();
            std::fs::read_to_string(path).unwrap_or_default().trim().to_owned()
        };
        scope.spawn(read).join().unwrap()
    })
}

/// Whether pings get an answer: at once, or when the address that they are from is settled.
pub(crate) fn is_open(from: &impl InNetns, to: IpAddr, wanted: bool) -> bool {
    let try_once = || ping(from, to, SHORT).is_open();
    if wanted { eventually(LONG, try_once) } else { try_once() }
}

/// What is to be seen of a container on bridge `br1`.
#[derive(Debug, PartialEq)]
struct Seen {
    up: bool,
    mtus: (u32, u32),
    bridge: Vec<IpAddr>,
    promiscuous: bool,
    hairpin: Option<bool>,
    inside: Vec<IpAddr>,
    routes: Vec<String>,
    host_routes: Vec<String>,
    settings: Vec<String>,
    gateway: Vec<bool>,
    neighbour: Vec<bool>,
}

fn look(side: &Side, pod: &Pod, masqueraded: bool) -> Seen {
    let h = &side.world.h;
    let eth0 = interface(pod, "eth0").unwrap();
    let bridge = interface(h, "br1").unwrap();
    let port = interface_of_port(side, &bridge).unwrap();
    let mut on_bridge = addresses(h, "br1");
    on_bridge.retain(|address| !address.to_string().starts_with("fe80"));
    on_bridge.sort();
    let has_gateway = !on_bridge.is_empty();
    let mut inside = addresses(pod, "eth0");
    inside.retain(|address| !address.to_string().starts_with("fe80"));
    inside.sort();
    let has = |family| inside.iter().any(|address| Family::of(*address) == family);
    let reach = |wanted: &dyn Fn(Family) -> bool, to: &dyn Fn(Family) -> IpAddr| {
        FAMILIES.map(|family| is_open(pod, to(family), wanted(family))).to_vec()
    };
    Seen {
        up: eth0.up && port.up && bridge.up,
        mtus: (eth0.mtu, port.mtu),
        promiscuous: bridge.flags & portolan_kernel::rtnl::link::IFF_PROMISC != 0,
        hairpin: port.brport.and_then(|port| port.hairpin),
        routes: routes(pod),
        host_routes: routes(h),
        settings: ["ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv6/conf/br1/accept_ra"]
            .map(|path| setting(h, path))
            .to_vec(),
        gateway: reach(&|family| has_gateway && has(family), &gateway),
        neighbour: reach(&|family| masqueraded && has(family), &neighbour_ip),
        bridge: on_bridge,
        inside,
    }
}

fn interface_of_port(
    side: &Side,
    bridge: &portolan_kernel::rtnl::link::Link,
) -> Option<portolan_kernel::rtnl::link::Link> {
    crate::common::links(&side.world.h).into_iter().find(|link| link.master == Some(bridge.index))
}

/// Every option that Debian's knows.
#[test]
fn options() {
    let Some(pair) = Pair::or_skip("plugins-bridge-options") else { return };
    let v4 = json!({"type": "host-local", "dataDir": "$DIR/ipam4", "subnet": "10.9.1.0/24"});
    let fixed = json!({"type": "static",
        "addresses": [{"address": "10.9.1.77/24", "gateway": "10.9.1.1"}, {"address": "fd09:1::77/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "10.200.0.0/16", "gw": "10.9.1.9"}],
        "dns": {"nameservers": ["10.9.1.1"], "domain": "a.example", "search": ["b.example"], "options": ["ndots:2"]}});
    let table = [
        ("default", json!({"ipam": v4})),
        ("gateway", json!({})),
        ("default-gateway", json!({"isGateway": false, "isDefaultGateway": true, "ipam": v4})),
        ("no-gateway", json!({"isGateway": false})),
        ("mtu", json!({"mtu": 1400})),
        ("hairpin", json!({"hairpinMode": true})),
        ("force", json!({"forceAddress": true, "ipam": fixed})),
        ("static", json!({"ipam": fixed})),
        ("dns", json!({"ipam": fixed, "dns": {"nameservers": ["192.0.2.53"]}})),
        ("dad", json!({"enabledad": true})),
        ("no-layer-3", json!({"ipam": {}})),
        ("nulls", json!({"mtu": null, "hairpinMode": null, "vlanTrunk": null, "dns": {}})),
        // Last: the bridge stays so, and the original's CHECK of the others does not like that.
        ("promisc", json!({"promiscMode": true})),
    ];
    for (name, patch) in table {
        let mut chain = Chain::new(name, [with(&plain(), patch)]);
        if name == "force" || name == "static" {
            chain = chain.but("Debian's 1.1.1 drops what the IPAM plugin says of names; later ones do not", |theirs| {
                theirs["dns"] = json!({"nameservers": ["10.9.1.1"], "domain": "a.example", "search": ["b.example"],
                                       "options": ["ndots:2"]});
            });
        }
        if name == "no-layer-3" {
            chain = chain.original_cannot_check("it asks an IPAM plugin also where there is none");
        }
        pair.same(&chain, |side, pod| look(side, pod, false));
    }
    for side in [&pair.ours, &pair.theirs] {
        assert!(interface(&side.world.h, "br1").is_some(), "the bridge stays");
    }
}

/// The MAC that is asked for, by whom.
#[test]
fn macs() {
    let Some(pair) = Pair::or_skip("plugins-bridge-macs") else { return };
    let by_args = json!({"args": {"cni": {"mac": "02:00:00:00:00:02"}}});
    let capable = json!({"capabilities": {"mac": true}});
    let chains = [
        ("c1", Chain::new("environment", [plain()]).args("IgnoreUnknown=1;MAC=02:00:00:00:00:01")),
        ("c2", Chain::new("args", [with(&plain(), by_args.clone())]).args("IgnoreUnknown=1;MAC=02:00:00:00:00:01")),
        (
            "c3",
            Chain::new("runtime", [with(&with(&plain(), by_args), capable)]).runtime("mac", json!("02:00:00:00:00:03")),
        ),
    ];
    for (id, chain) in &chains {
        let macs = [&pair.ours, &pair.theirs].map(|side| {
            let pod = side.pod(id);
            let result = side.add(&pod, chain, "1.0.0", "eth0").unwrap();
            let mac = interface(&pod, "eth0").unwrap().mac.unwrap();
            assert_eq!(result["interfaces"][2]["mac"], mac.map(|byte| format!("{byte:02x}")).join(":"));
            side.del(&pod, chain, "1.0.0", None, "eth0").unwrap();
            mac
        });
        assert_eq!(macs[0], macs[1], "{id}");
    }
    let bad = Chain::new("bad", [plain()]).args("MAC=01:00:00:00:00:01");
    let pod = pair.ours.pod("bad");
    assert_eq!(pair.ours.add(&pod, &bad, "1.0.0", "eth0").unwrap_err().code, 7);
}

/// Containers reach each other and the host in all ways that they should, as with the original.
#[test]
fn packets() {
    let Some(pair) = Pair::or_skip("plugins-bridge-packets") else { return };
    let layer_2 = json!({"type": "bridge", "bridge": "br2"});
    let chains = [Chain::new("web", [plain()]), Chain::new("lan", [layer_2])];
    let seen = [&pair.ours, &pair.theirs].map(|side| {
        let pods = ["a", "b"].map(|id| side.pod(id));
        let results = pods.each_ref().map(|pod| side.add(pod, &chains[0], "1.0.0", "eth0").unwrap());
        let address = |n: usize, ip: usize| -> IpAddr {
            let text = results[n]["ips"][ip]["address"].as_str().unwrap();
            text.split('/').next().unwrap().parse().unwrap()
        };
        let mut seen = Vec::new();
        for (n, family) in FAMILIES.into_iter().enumerate() {
            seen.push(is_open(&pods[0], address(1, n), true));
            seen.push(is_open(&pods[1], gateway(family), true));
            seen.push(is_open(&side.world.h, address(0, n), true));
            seen.push(is_open(&pods[0], neighbour_ip(family), false));
        }
        // A second interface of the same containers, on layer 2: addresses are somebody else's business.
        for (n, pod) in pods.iter().enumerate() {
            side.add(pod, &chains[1], "1.0.0", "eth1").unwrap();
            pod.host.add_address("eth1", &format!("10.77.0.{}/24", n + 1)).unwrap();
        }
        seen.push(is_open(&pods[0], "10.77.0.2".parse().unwrap(), true));
        for pod in &pods {
            side.del(pod, &chains[1], "1.0.0", None, "eth1").unwrap();
            assert!(interface(pod, "eth0").is_some() && interface(pod, "eth1").is_none());
            side.del(pod, &chains[0], "1.0.0", None, "eth0").unwrap();
        }
        seen
    });
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0], [true, true, true, false, true, true, true, false, true]);
}
