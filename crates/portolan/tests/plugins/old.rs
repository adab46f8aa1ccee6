//! Versions 0.1.0 and 0.2.0 of the spec beside the originals: results have `ip4` and `ip6`, and no interfaces.

use serde_json::{Value, json};

use crate::beside::{Chain, OLD_VERSIONS, Pair};
use crate::bridge::{dual, routes};
use crate::common::addresses;
use crate::ipam::{Case, transcript};

/// What is to be seen of a container on `chain`, on both sides.
#[track_caller]
fn same(pair: &Pair, name: &str, plugins: impl IntoIterator<Item = Value>) {
    let chain = Chain::new(name, plugins).versions(&OLD_VERSIONS);
    pair.same(&chain, |side, pod| {
        let mut inside = addresses(pod, "eth0");
        inside.retain(|address| !address.to_string().starts_with("fe80"));
        inside.sort();
        (side.up(pod, "eth0"), inside, routes(pod))
    });
}

#[test]
fn interfaces() {
    let Some(pair) = Pair::or_skip("plugins-old") else { return };
    let bridge = || json!({"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "ipam": dual()});
    same(&pair, "bridge", [bridge()]);
    same(&pair, "ptp", [json!({"type": "ptp", "ipMasq": true, "ipam": dual()})]);
    let of_the_lan = json!({"type": "static", "addresses": [{"address": "10.0.1.77/24", "gateway": "10.0.1.2"}],
        "routes": [{"dst": "0.0.0.0/0"}]});
    same(&pair, "macvlan", [json!({"type": "macvlan", "master": "eth0", "ipam": of_the_lan})]);
    // What comes after reads the result of what came before.
    let ports = json!([{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]);
    let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true}});
    let tuning = json!({"type": "tuning", "dataDir": "$DIR/tuning", "mtu": 1400});
    let chain = Chain::new("chain", [bridge(), portmap, tuning]).versions(&OLD_VERSIONS).runtime("portMappings", ports);
    pair.same(&chain, |_, pod| crate::common::interface(pod, "eth0").unwrap().mtu);
    let chain = Chain::new("lo", [json!({"type": "loopback"})]).versions(&OLD_VERSIONS).but(
        "Debian's loopback answers in the words of 1.0.0 whatever the version",
        |theirs| {
            let address = |place: usize| json!({"ip": theirs["ips"][place]["address"]});
            let version = &theirs["cniVersion"];
            *theirs =
                json!({"cniVersion": version, "dns": {}, "interfaces": null, "ip4": address(0), "ip6": address(1)});
        },
    );
    pair.same(&chain, |side, pod| side.up(pod, "lo"));
}

#[test]
fn addresses_alone() {
    let Some(pair) = Pair::or_skip("plugins-old-ipam") else { return };
    let pods = [pair.ours.pod("p"), pair.theirs.pod("p")];
    let ranges =
        json!({"ranges": [[{"subnet": "10.9.1.0/24"}], [{"subnet": "fd09:1::/64"}]], "routes": [{"dst": "0.0.0.0/0"}]});
    let addresses =
        json!({"addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd01::5/64"}]});
    for (kind, ipam) in [("host-local", ranges), ("static", addresses)] {
        for version in OLD_VERSIONS {
            let [ours, theirs] = [(&pair.ours, &pods[0]), (&pair.theirs, &pods[1])].map(|(side, pod)| {
                transcript(side, pod, kind, version, &Case::new(ipam.clone()), version, &[("ADD", "c1"), ("DEL", "c1")])
            });
            assert_eq!(ours, theirs, "{kind} {version}");
            let result = ours[0].1.as_ref().unwrap();
            assert!(result.get("ips").is_none() && result["ip4"]["ip"].is_string(), "{kind} {version}: {result}");
        }
    }
}
