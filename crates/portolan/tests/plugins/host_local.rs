//! host-local beside the original, and both on one directory.

use std::fs;

use serde_json::json;

use crate::beside::Pair;
use crate::ipam::{Case, differences};

/// What every case goes through.
const LIFE: [(&str, &str); 12] = [
    ("ADD", "c1"),
    ("ADD", "c2"),
    ("ADD", "c1"),
    ("CHECK", "c2"),
    ("CHECK", "c9"),
    ("DEL", "c1"),
    ("ADD", "c3"),
    ("ADD", "c4"),
    ("ADD", "c5"),
    ("DEL", "c3"),
    ("ADD", "c6"),
    ("DEL", "c2"),
];

#[test]
fn the_same_as_the_original() {
    let Some(pair) = Pair::or_skip("plugins-host-local") else { return };
    let pods = [pair.ours.pod("p"), pair.theirs.pod("p")];
    let resolv = "nameserver 10.0.0.53\n# no\nsearch a.example b.example\noptions ndots:2 rotate\ndomain example\n";
    let file = pair.ours.world.lab.dir().join("resolv.conf");
    fs::write(&file, resolv).unwrap();
    let small = json!({"subnet": "10.1.0.0/29"});
    let cases = [
        Case::new(small.clone()),
        Case::new(
            json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.9", "rangeEnd": "10.1.0.11", "gateway": "10.1.0.10"}),
        ),
        Case::new(json!({"ranges": [[{"subnet": "10.1.0.0/30"}, {"subnet": "10.1.1.0/30"}]]})),
        Case::new(json!({"ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "fd01::/125"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0", "gw": "fd01::1"}, {"dst": "10.7.0.5/16", "gw": "10.1.0.3"}]})),
        Case::new(json!({"subnet": "10.1.0.0/29", "ranges": [[{"subnet": "10.2.0.0/29"}]]})),
        Case::new(json!({"subnet": "fd01:0:0:1::/64"})),
        Case::new(
            json!({"subnet": "fd01::/64", "rangeStart": "fd01::ffff", "rangeEnd": "fd01::1:1", "gateway": "fd01::1"}),
        ),
        Case::new(json!({"subnet": "10.1.0.0/29", "resolvConf": file})),
        Case::new(json!({"subnet": "10.1.0.0/29", "resolvConf": "/nowhere/resolv.conf"})),
        Case::new(json!({"SUBNET": "10.1.0.0/29", "RangeStart": "10.1.0.4", "ranges": null, "routes": null})),
    ];
    let asked = [
        Case::new(small.clone()).args("IP=10.1.0.4"),
        Case::new(small.clone()).args("IP=10.1.0.1"),
        Case::new(small.clone()).args("IP=10.9.0.1"),
        Case::new(small.clone()).args("IP=ten"),
        Case::new(small.clone()).args("IP=::ffff:10.1.0.4"),
        Case::new(small.clone()).args("A=b;C=d e"),
        Case::new(small.clone()).args("IgnoreUnknown=1;A=b"),
        Case::new(small.clone()).args("IgnoreUnknown=TRUE;A=b;IP=10.1.0.5"),
        Case::new(small.clone()).args("IgnoreUnknown=yes;A=b"),
        Case::new(small.clone()).args("IgnoreUnknown=0;A=b"),
        Case::new(small.clone()).patch(json!({"args": {"cni": {"ips": ["10.1.0.5"]}}})),
        Case::new(small.clone()).patch(json!({"args": {"cni": {"ips": ["10.1.0.5/24"]}}})),
        Case::new(small.clone()).patch(json!({"args": {"other": {"ips": ["10.1.0.5"]}}})),
        Case::new(small.clone()).patch(json!({"runtimeConfig": {"ips": ["10.1.0.5"]}})),
        Case::new(small.clone()).patch(json!({"runtimeConfig": {"ips": ["10.1.0.5/8"]}})),
        Case::new(small.clone()).patch(json!({"runtimeConfig": {"ips": ["x"]}})),
        Case::new(small.clone()).patch(json!({"runtimeConfig": {"ips": null, "ipRanges": null}})),
        Case::new(small.clone()).patch(json!({"runtimeConfig": {"ips": ["10.1.0.5", "10.1.0.5"]}})),
        Case::new(json!({"ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "10.2.0.0/29"}]]})).args("IP=10.2.0.5"),
        Case::new(json!({"ranges": [[{"subnet": "10.1.0.0/29"}], [{"subnet": "10.2.0.0/29"}]]}))
            .patch(json!({"runtimeConfig": {"ips": ["10.2.0.4/29"]}, "args": {"cni": {"ips": ["10.1.0.6"]}}})),
        Case::new(json!({}))
            .patch(json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/29"}], [{"subnet": "fd03::/64"}]]}})),
        Case::new(small.clone()).patch(json!({"runtimeConfig": {"ipRanges": [[{"subnet": "10.3.0.0/29"}]]}})),
    ];
    let refused = [
        Case::new(json!({})),
        Case::new(json!({"ranges": []})),
        Case::new(json!({"ranges": [[]]})),
        Case::new(json!({"subnet": "10.1.0.0"})),
        Case::new(json!({"subnet": "10.1.0.0/31"})),
        Case::new(json!({"subnet": "10.1.0.1/32"})),
        Case::new(json!({"subnet": "10.1.0.7/24"})),
        Case::new(json!({"subnet": "10.1.0.0/33"})),
        Case::new(json!({"subnet": "::ffff:10.1.0.0/120"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "gateway": "10.2.0.1"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "gateway": "fd01::1"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "gateway": "x"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.9"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "rangeStart": "fd01::9"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.0"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "rangeEnd": "10.1.0.7"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.5", "rangeEnd": "10.1.0.4"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "rangeEnd": "10.1.0.0"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "rangeEnd": "10.1.0.9"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "rangeStart": "10.1.0.2", "rangeEnd": "10.1.0.9"})),
        Case::new(json!({"subnet": "10.1.0.0/29", "rangeStart": "fd01::2", "rangeEnd": "10.1.0.4"})),
        Case::new(json!({"rangeStart": "10.1.0.5"})),
        Case::new(json!({"ranges": [[{"gateway": "10.1.0.1"}]]})),
        Case::new(json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "10.1.0.0/25"}]]})),
        Case::new(
            json!({"ranges": [[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/25"}], [{"subnet": "10.1.0.0/16"}]]}),
        ),
        Case::new(json!({"ranges": [[{"subnet": "10.1.0.0/24"}, {"subnet": "fd01::/64"}]]})),
        Case::new(json!({"subnet": "10.1.0.0/29", "routes": [{"dst": "10.0.0.0"}]})),
        Case::new(json!({"subnet": "10.1.0.0/29", "routes": [{"dst": "10.0.0.0/8", "gw": "x"}]})),
        Case::new(small.clone()).patch(json!({"ipam": null})),
    ];
    let found = [
        differences(&pair, &pods, "host-local", &cases, &LIFE),
        differences(&pair, &pods, "host-local", &asked, &LIFE[..6]),
        differences(&pair, &pods, "host-local", &refused, &[("ADD", "c1"), ("DEL", "c1")]),
    ];
    assert!(found.concat().is_empty(), "{}", found.concat());
}
