//! The plugins of other interfaces beside the originals: `ptp`, `macvlan`, `ipvlan`, `vlan`, `host-device`, `dummy`, `tap`.

use std::net::IpAddr;

use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::Family;
use portolan_kernel::rtnl::link::{self, LinkChange, VethPeer, VethSpec};
use serde_json::{Value, json};

use crate::beside::{Chain, Pair, Side, VERSIONS};
use crate::bridge::{dual, gateway, is_open, routes};
use crate::common::{FAMILIES, addresses, interface, neighbour_ip};
use crate::runtime::{Pod, with};

/// What is to be seen of a container's only interface.
#[derive(Debug, PartialEq)]
struct Seen {
    up: bool,
    mtu: u32,
    kind: Option<String>,
    mode: Option<u32>,
    inside: Vec<IpAddr>,
    routes: Vec<String>,
    gateway: Vec<bool>,
    neighbour: Vec<bool>,
    host: Vec<bool>,
}

fn look(side: &Side, pod: &Pod, [to_gateway, to_neighbour, from_host]: [bool; 3]) -> Seen {
    let eth0 = interface(pod, "eth0").unwrap();
    let mut inside = addresses(pod, "eth0");
    inside.retain(|address| !address.to_string().starts_with("fe80"));
    inside.sort();
    let has = |family| inside.iter().any(|address| Family::of(*address) == family);
    let both = |wanted: bool, reach: &dyn Fn(Family, bool) -> bool| {
        FAMILIES.map(|family| reach(family, wanted && has(family))).to_vec()
    };
    let own = |family| inside.iter().copied().find(|address| Family::of(*address) == family);
    Seen {
        up: eth0.up,
        mtu: eth0.mtu,
        kind: eth0.kind,
        mode: eth0.mode,
        routes: routes(pod),
        gateway: both(to_gateway, &|family, wanted| is_open(pod, gateway(family), wanted)),
        neighbour: both(to_neighbour, &|family, wanted| is_open(pod, neighbour_ip(family), wanted)),
        host: both(from_host, &|family, wanted| own(family).is_some_and(|to| is_open(&side.world.h, to, wanted))),
        inside,
    }
}

/// Addresses of the LAN that the host is on.
fn of_the_lan() -> Value {
    json!({"type": "static", "addresses": [{"address": "10.0.1.77/24", "gateway": "10.0.1.2"}, {"address": "fd00:1::77/64"}],
           "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.0.1.2"]}})
}

#[test]
fn ptp() {
    let Some(pair) = Pair::or_skip("plugins-ptp") else { return };
    let plain = json!({"type": "ptp", "ipam": dual()});
    let v4 = json!({"type": "host-local", "dataDir": "$DIR/ipam4", "subnet": "10.9.1.0/24"});
    for (name, patch) in [
        ("ptp", json!({})),
        ("ptp-mtu", json!({"mtu": 1400})),
        ("ptp-v4", json!({"ipam": v4})),
        ("ptp-dns", json!({"dns": {"nameservers": ["192.0.2.53"]}})),
    ] {
        let chain = Chain::new(name, [with(&plain, patch)]);
        pair.same(&chain, |side, pod| look(side, pod, [true, false, true]));
    }
    // Two containers reach each other by the host.
    let chain = Chain::new("ptp", [plain]);
    let seen = [&pair.ours, &pair.theirs].map(|side| {
        let pods = ["a", "b"].map(|id| side.pod(id));
        let results = pods.each_ref().map(|pod| side.add(pod, &chain, "1.0.0", "eth0").unwrap());
        let seen = [0, 1].map(|ip| {
            let to = results[1]["ips"][ip]["address"].as_str().unwrap().split('/').next().unwrap();
            is_open(&pods[0], to.parse().unwrap(), true)
        });
        for pod in &pods {
            side.del(pod, &chain, "1.0.0", None, "eth0").unwrap();
        }
        seen
    });
    assert_eq!(seen, [[true; 2]; 2]);
}

#[test]
fn macvlan() {
    let Some(pair) = Pair::or_skip("plugins-macvlan") else { return };
    let plain = json!({"type": "macvlan", "ipam": of_the_lan()});
    for (name, patch, reaches) in [
        ("macvlan", json!({}), true),
        ("macvlan-master", json!({"master": "eth0", "mtu": 1400}), true),
        ("macvlan-private", json!({"mode": "private"}), true),
        ("macvlan-vepa", json!({"mode": "vepa"}), true),
        ("macvlan-dns", json!({"dns": {"domain": "a.example"}}), true),
        ("macvlan-mac", json!({"mac": "02:00:00:00:00:09"}), true),
        ("macvlan-layer-2", json!({"ipam": {}}), false),
    ] {
        let chain = Chain::new(name, [with(&plain, patch)]);
        pair.same(&chain, |side, pod| {
            (look(side, pod, [false, reaches, false]), interface(pod, "eth0").map(|is| is.mac.is_some()))
        });
    }
    for (name, patch, msg) in [
        ("bad-mode", json!({"mode": "x"}), "unknown macvlan mode: \"x\""),
        ("bad-master", json!({"master": "none0"}), "failed to lookup master \"none0\": Link not found"),
        ("bad-mtu", json!({"mtu": 9000}), "invalid MTU 9000, must be [0, master MTU(1500)]"),
    ] {
        let chain = Chain::new(name, [with(&plain, patch)]);
        let pod = pair.ours.pod(name);
        let refusal = pair.ours.add(&pod, &chain, "1.0.0", "eth0").unwrap_err();
        assert_eq!((refusal.code, refusal.msg.as_str()), (7, msg));
        assert!(interface(&pod, "eth0").is_none());
        pair.theirs.add(&pair.theirs.pod(name), &chain, "1.0.0", "eth0").unwrap_err();
    }
    // Of an interface that is in the container, and with a queue of its own.
    let side = &pair.ours;
    let pod = side.pod("inside");
    side.add(&pod, &Chain::new("outer", [plain.clone()]), "1.0.0", "eth0").unwrap();
    let inner = json!({"type": "macvlan", "master": "eth0", "linkInContainer": true, "bcqueuelen": 500, "ipam": {}});
    let inner = Chain::new("inner", [inner]);
    side.add(&pod, &inner, "1.0.0", "eth1").unwrap();
    let [eth0, eth1] = ["eth0", "eth1"].map(|name| interface(&pod, name).unwrap());
    assert_eq!(eth1.kind.as_deref(), Some("macvlan"));
    assert!(eth1.link == eth0.link || eth1.link == Some(eth0.index));
    side.del(&pod, &inner, "1.0.0", None, "eth1").unwrap();
    assert!(interface(&pod, "eth1").is_none());
}

/// Kinds that this kernel may not have: the same, or refused by both.
#[test]
fn kinds_that_kernels_lack() {
    let Some(pair) = Pair::or_skip("plugins-kinds") else { return };
    // Debian's has no original of this.
    pair.ours.choose("dummy", true);
    for (kind, plugin) in [
        ("ipvlan", json!({"type": "ipvlan", "master": "eth0", "mode": "l2", "ipam": of_the_lan()})),
        ("ipvlan", json!({"type": "ipvlan", "master": "eth0", "mode": "l3", "mtu": 1400, "ipam": of_the_lan()})),
        ("vlan", json!({"type": "vlan", "master": "eth0", "vlanId": 7, "mtu": 1400, "ipam": of_the_lan()})),
        ("dummy", json!({"type": "dummy", "ipam": of_the_lan()})),
    ] {
        let chain = Chain::new(kind, [plugin]);
        let pod = pair.ours.pod(&format!("try-{kind}-{}", chain.plugins[0]["mode"].as_str().unwrap_or_default()));
        let tried = pair.ours.add(&pod, &chain, "1.0.0", "eth0");
        pair.ours.del(&pod, &chain, "1.0.0", None, "eth0").unwrap();
        match tried {
            Ok(result) if kind == "dummy" => assert_eq!(result["ips"][0]["address"], "10.0.1.77/24"),
            Ok(_) => pair.same(&chain, |side, pod| look(side, pod, [false, kind == "ipvlan", false])),
            Err(refusal) => {
                let msg = format!("failed to create {kind}: this kernel has no interfaces of that kind");
                assert_eq!((refusal.code, refusal.msg), (50, msg));
                assert!(interface(&pod, "eth0").is_none());
                eprintln!("SKIP: `{kind}` beside the original: this kernel has none");
            }
        }
    }
    for (plugin, msg) in [
        (json!({"type": "vlan", "vlanId": 7, "ipam": of_the_lan()}), "\"master\" field is required"),
        (json!({"type": "vlan", "master": "eth0", "vlanId": 4095, "ipam": of_the_lan()}), "invalid VLAN ID 4095"),
        (json!({"type": "vlan", "master": "none0", "vlanId": 5, "ipam": of_the_lan()}), "failed to lookup master"),
        (
            json!({"type": "ipvlan", "master": "eth0", "mode": "l9", "ipam": of_the_lan()}),
            "unknown ipvlan mode: \"l9\"",
        ),
        (json!({"type": "dummy"}), "dummy interface requires an IPAM configuration"),
        (json!({"type": "ptp"}), "ptp interface requires an IPAM configuration"),
    ] {
        let side = &pair.ours;
        let refusal = side.add(&side.pod(&format!("bad{}", msg.len())), &Chain::new("bad", [plugin]), "1.0.0", "eth0");
        let refusal = refusal.unwrap_err();
        assert!(refusal.code == 7 && refusal.msg.starts_with(msg), "{refusal:?}");
    }
}

/// A device of the host's: one end of a veth, whose other end is in `far`.
fn device(side: &Side, name: &str, mac: [u8; 6]) {
    let mut socket = with_netns(side.world.h.netns_of(), || Socket::open(ROUTE)).unwrap().unwrap();
    let mut batch = Batch::new();
    let other = format!("{name}-far");
    let peer = VethPeer { name: &other, ..VethPeer::default() };
    link::create_veth(&mut batch, &VethSpec { name, mac: Some(mac), peer, ..VethSpec::default() });
    link::set(&mut batch, other.as_str(), &LinkChange { up: Some(true), ..LinkChange::default() });
    socket.transact(&batch).unwrap();
    side.world.h.add_address(&other, "10.0.9.1/24").unwrap();
}

/// The namespace of a host.
trait Namespace {
    fn netns_of(&self) -> &portolan_kernel::netns::NetnsFd;
}

impl<T: portolan_lab::InNetns> Namespace for T {
    fn netns_of(&self) -> &portolan_kernel::netns::NetnsFd {
        self.netns()
    }
}

#[test]
fn host_device() {
    let Some(pair) = Pair::or_skip("plugins-host-device") else { return };
    let mac = [2, 0, 0, 0, 7, 7];
    for side in [&pair.ours, &pair.theirs] {
        device(side, "dev7", mac);
    }
    let ipam = json!({"type": "static", "addresses": [{"address": "10.0.9.7/24"}]});
    for (name, plugin) in [
        ("device", json!({"type": "host-device", "device": "dev7", "ipam": ipam})),
        ("hwaddr", json!({"type": "host-device", "hwaddr": "02:00:00:00:07:07", "ipam": ipam})),
        ("plain", json!({"type": "host-device", "device": "dev7"})),
    ] {
        let chain = Chain::new(name, [plugin]);
        pair.same(&chain, |side, pod| {
            assert!(interface(&side.world.h, "dev7").is_none());
            let has_address = name != "plain";
            let eth0 = interface(pod, "eth0").unwrap();
            (eth0.up, eth0.alias, is_open(pod, "10.0.9.1".parse().unwrap(), has_address))
        });
        for side in [&pair.ours, &pair.theirs] {
            assert_eq!(interface(&side.world.h, "dev7").unwrap().mac, Some(mac), "{name} {}", side.name);
        }
        assert_eq!(interface(&pair.ours.world.h, "dev7").unwrap().alias, None);
    }
    // Twice, and by a configuration that says nothing any more.
    let side = &pair.ours;
    let pod = side.pod("twice");
    let chain = Chain::new("twice", [json!({"type": "host-device", "device": "dev7"})]);
    side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
    let changed = Chain::new("twice", [json!({"type": "host-device"})]);
    for _ in 0..2 {
        side.del(&pod, &changed, "1.0.0", None, "eth0").unwrap();
        assert!(interface(&side.world.h, "dev7").is_some());
    }
    for (plugin, msg) in [
        (json!({"device": "none0"}), "failed to find host device: Link not found"),
        (json!({}), r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#),
        (
            json!({"pciBusID": "0000:ff:1f.7"}),
            "failed to find host device: no net directory under pci device 0000:ff:1f.7",
        ),
        (
            json!({"kernelpath": "/tmp"}),
            "failed to find host device: kernel device path \"/tmp\" must be absolute and begin with /sys/devices/",
        ),
    ] {
        let chain = Chain::new("bad", [with(&json!({"type": "host-device"}), plugin)]);
        let refusal = side.add(&pod, &chain, "1.0.0", "eth0").unwrap_err();
        assert_eq!((refusal.code, refusal.msg.as_str()), (7, msg));
    }
}

#[test]
fn tap() {
    let Some(pair) = Pair::or_skip("plugins-tap") else { return };
    if !std::path::Path::new("/dev/net/tun").exists() {
        eprintln!("SKIP: `tap`: no /dev/net/tun");
        return;
    }
    let ipam = json!({"type": "static", "addresses": [{"address": "10.0.9.7/24"}, {"address": "fd00:9::7/64"}],
                      "routes": [{"dst": "10.8.0.0/16", "gw": "10.0.9.1"}]});
    let plain = json!({"type": "tap", "ipam": ipam});
    // Debian's has no original of this.
    let side = &pair.ours;
    side.choose("tap", true);
    for (name, patch) in [
        ("tap", json!({})),
        ("tap-mtu", json!({"mtu": 1400})),
        ("tap-layer-2", json!({"ipam": {}})),
        ("tap-queues", json!({"multiQueue": true})),
        ("tap-mac", json!({"mac": "02:00:00:00:00:09"})),
        ("tap-owner", json!({"owner": 0, "group": 0})),
    ] {
        let chain = Chain::new(name, [with(&plain, patch.clone())]);
        for version in VERSIONS {
            let pod = side.pod(&format!("{name}-{}", version.replace('.', "")));
            let result = side.add(&pod, &chain, version, "eth0").unwrap();
            let eth0 = interface(&pod, "eth0").unwrap();
            assert!(eth0.up && eth0.kind.as_deref() == Some("tun"), "{eth0:?}");
            assert_eq!(u64::from(eth0.mtu), patch["mtu"].as_u64().unwrap_or(1500));
            let mac = eth0.mac.unwrap().map(|byte| format!("{byte:02x}")).join(":");
            assert_eq!(result["interfaces"], json!([{"name": "eth0", "mac": mac, "sandbox": pod.path()}]));
            if let Some(asked) = patch["mac"].as_str() {
                assert_eq!(mac, asked);
            }
            let has_addresses = name != "tap-layer-2";
            assert_eq!(addresses(&pod, "eth0").contains(&"fd00:9::7".parse().unwrap()), has_addresses);
            assert_eq!(routes(&pod).iter().any(|route| route.starts_with("10.8.0.0/16")), has_addresses);
            if version != "0.3.1" {
                side.check(&pod, &chain, version, &result).unwrap();
            }
            for _ in 0..2 {
                side.del(&pod, &chain, version, None, "eth0").unwrap();
                assert!(interface(&pod, "eth0").is_none());
            }
        }
    }
    // As a port of a bridge that is inside.
    let pod = side.pod("inside");
    let mut batch = Batch::new();
    link::create_bridge(&mut batch, &link::BridgeSpec { name: "br0", up: true, ..link::BridgeSpec::default() });
    with_netns(pod.netns_of(), || Socket::open(ROUTE)).unwrap().unwrap().transact(&batch).unwrap();
    let chain = Chain::new("bridged", [json!({"type": "tap", "bridge": "br0", "ipam": {}})]);
    let result = side.add(&pod, &chain, "1.0.0", "eth0").unwrap();
    assert_eq!(interface(&pod, "eth0").unwrap().master, Some(interface(&pod, "br0").unwrap().index));
    side.check(&pod, &chain, "1.0.0", &result).unwrap();
    side.del(&pod, &chain, "1.0.0", None, "eth0").unwrap();
    let bad = Chain::new("bridged", [json!({"type": "tap", "bridge": "br9", "ipam": {}})]);
    assert_eq!(side.add(&pod, &bad, "1.0.0", "eth0").unwrap_err().code, 7);
    assert!(interface(&pod, "eth0").is_none());
}
