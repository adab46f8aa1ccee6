//! static beside the original.

use serde_json::json;

use crate::beside::Pair;
use crate::ipam::{Caller, Case, config, differences};
use crate::runtime::with;

#[test]
fn static_is_the_same_as_the_original() {
    let Some(pair) = Pair::or_skip("plugins-static") else { return };
    let pods = [pair.ours.pod("p"), pair.theirs.pod("p")];
    let one = json!({"addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}]});
    let both = json!({"addresses": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}, {"address": "fd01::5/64"}],
        "routes": [{"dst": "0.0.0.0/0"}, {"dst": "192.168.0.0/16", "gw": "10.1.0.2"}, {"dst": "fd02::/48", "gw": "fd01::1"}],
        "dns": {"nameservers": ["10.1.0.53"], "domain": "example", "search": ["a.example"], "options": ["ndots:2"]}});
    let cases = [
        Case::new(one.clone()),
        Case::new(both.clone()),
        Case::new(json!({})),
        Case::new(json!({"addresses": null, "routes": null, "dns": null})),
        Case::new(json!({"addresses": [{"address": "10.1.0.5/24"}, {"address": "10.1.0.6/24"}]})),
        Case::new(json!({"addresses": [{"address": "10.1.0.5"}]})),
        Case::new(json!({"addresses": [{"address": ""}]})),
        Case::new(json!({"addresses": [{"gateway": "10.1.0.1"}]})),
        Case::new(json!({"addresses": [{"address": "10.1.0.5/24", "gateway": "x"}]})),
        Case::new(json!({"addresses": [{"address": "10.1.0.5/24", "gateway": "10.9.0.1"}]})),
        Case::new(json!({"Addresses": [{"ADDRESS": "10.1.0.5/24", "Gateway": "10.1.0.1"}]})),
        Case::new(json!({"addresses": [{"address": "10.1.0.5/24"}], "routes": [{"dst": "x"}]})),
        Case::new(one.clone()).args("IP=10.2.0.5/24"),
        Case::new(one.clone()).args("IP=10.2.0.5"),
        Case::new(one.clone()).args("IP=10.2.0.5/24, fd02::5/64;GATEWAY=10.2.0.1,fd02::1"),
        Case::new(one.clone()).args("GATEWAY=10.1.0.7"),
        Case::new(one.clone()).args("GATEWAY=x"),
        Case::new(one.clone()).args("GATEWAY=10.9.0.1"),
        Case::new(json!({})).args("IP=10.2.0.5/24;GATEWAY=10.2.0.1"),
        Case::new(one.clone()).args("A=b"),
        Case::new(one.clone()).args("IgnoreUnknown=1;A=b"),
        Case::new(one.clone()).patch(json!({"args": {"cni": {"ips": ["10.3.0.5/24"]}}})),
        Case::new(one.clone()).patch(json!({"args": {"cni": {"ips": ["10.3.0.5"]}}})),
        Case::new(one.clone())
            .patch(json!({"args": {"cni": {"ips": ["10.3.0.5/24"]}}}))
            .args("IP=10.2.0.5/24;GATEWAY=10.3.0.1"),
        Case::new(one.clone()).patch(json!({"runtimeConfig": {"ips": ["10.4.0.5/24", "fd04::5/64"]}})),
        Case::new(one.clone()).patch(json!({"runtimeConfig": {"ips": ["10.4.0.5"]}})),
        Case::new(one.clone()).patch(json!({"runtimeConfig": {"ips": null}})),
        Case::new(one.clone())
            .patch(json!({"runtimeConfig": {"ips": ["10.4.0.5/24"]}, "args": {"cni": {"ips": ["10.3.0.5/24"]}}}))
            .args("IP=10.2.0.5/24;GATEWAY=10.4.0.1,10.3.0.1"),
        Case::new(one.clone()).patch(json!({"ipam": null})),
    ];
    let steps = [("ADD", "c1"), ("CHECK", "c1"), ("DEL", "c1")];
    let found = differences(&pair, &pods, "static", &cases, &steps);
    assert!(found.is_empty(), "{found}");
    // CHECK compares with what ADD answered.
    let both = config("1.0.0", "static", &both, &json!({}));
    for (side, pod) in [(&pair.ours, &pods[0]), (&pair.theirs, &pods[1])] {
        let caller = Caller::new(side, pod);
        let result = caller.call("static", "ADD", "c1", &both).unwrap();
        let mut other = result.clone();
        other["ips"][0]["gateway"] = json!("10.1.0.9");
        let refusal = caller.call("static", "CHECK", "c1", &with(&both, json!({"prevResult": other}))).unwrap_err();
        assert_eq!(refusal.msg, "static: Failed to match addr 10.1.0.5 on interface eth0", "{}", side.name);
        let refusal = caller.call("static", "CHECK", "c1", &both).unwrap_err();
        assert_eq!((refusal.code, refusal.msg.as_str()), (999, "Required prevResult missing"), "{}", side.name);
    }
    // What the original does not have.
    let caller = Caller::new(&pair.ours, &pods[0]);
    let newest = with(&both, json!({"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}));
    for verb in ["STATUS", "GC"] {
        caller.call("static", verb, "", &newest).unwrap();
    }
    let bad = with(&newest, json!({"ipam": {"type": "static", "addresses": [{"address": "x"}]}}));
    assert_eq!(caller.call("static", "STATUS", "", &bad).unwrap_err().code, 50);
    let rich = json!({"type": "static", "addresses": [{"address": "10.1.0.5/24"}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1400, "advmss": 1360, "priority": 7, "table": 100, "scope": 0}]});
    let result = caller.call("static", "ADD", "c1", &with(&newest, json!({"ipam": rich}))).unwrap();
    assert_eq!(result["routes"], rich["routes"]);
}
