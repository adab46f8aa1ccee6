//! The reference plugins by name, beside the originals from Debian: the same configurations, results and packets.

#[path = "../common/mod.rs"]
mod common;
#[path = "../cni/runtime.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod runtime;

mod beside;
mod bridge;
mod bridge_life;
mod dhcp;
mod dhcp_daemon;
mod firewall;
mod firewalld;
mod host_local;
mod ipam;
mod leases;
mod links;
mod links_life;
mod meta;
mod old;
mod portmap;
mod static_;

use serde_json::{Value, json};

use beside::{Chain, Pair};

#[test]
fn loopback() {
    let Some(pair) = Pair::or_skip("plugins-loopback") else { return };
    let chain = Chain::new("lo", [json!({"type": "loopback"})]).but(
        "Debian's loopback leaves the family out, which the spec demands before 1.0.0",
        |theirs| {
            if theirs["cniVersion"] != "1.0.0" {
                for ip in theirs["ips"].as_array_mut().into_iter().flatten() {
                    let is_v6 = ip["address"].as_str().is_some_and(|address| address.contains(':'));
                    ip["version"] = Value::from(if is_v6 { "6" } else { "4" });
                }
            }
        },
    );
    pair.same(&chain, |side, pod| side.up(pod, "lo"));
}
