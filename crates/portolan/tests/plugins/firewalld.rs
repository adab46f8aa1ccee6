//! `firewall` with the backend `firewalld` beside the original, each with a firewalld of its own.

use portolan_kernel::rtnl::Family;
use portolan_lab::server::TcpServer;
use serde_json::{Value, json};

use crate::beside::{Chain, Pair, Side};
use crate::common::firewalld::Firewalld;
use crate::common::{any, at, neighbour_ip};
use crate::firewall::opens;
use crate::portmap::{bridge, originals};
use crate::runtime::{Pod, Refusal, answer, output_of};

fn firewall(more: Value) -> Value {
    let mut config = json!({"type": "firewall", "backend": "firewalld"});
    config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    config
}

/// Which sources are in a zone, in order.
fn sources(firewalld: &Firewalld, side: &Side, zone: &str) -> Vec<String> {
    let text = firewalld.cmd(&side.world, &format!("--zone={zone} --list-sources"));
    let mut sources: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    sources.sort();
    sources
}

/// Whether the neighbour is reached. Only IPv4 is routed back by the neighbour without a route to a network of ours.
fn out(side: &Side, pod: &Pod) -> bool {
    let _server = TcpServer::start(&side.world.n, any(Family::V4, 7000), "lan").unwrap();
    opens(pod, at(neighbour_ip(Family::V4), 7000))
}

fn isolations(side: &Side) -> usize {
    let rules = crate::firewall::rules(side);
    rules.iter().filter(|rule| rule.contains("CNI-ISOLATION-STAGE") && rule.contains("cni0")).count()
}

#[test]
fn sources_are_in_the_zone() {
    let Some(mut pair) = Pair::or_skip("firewalld") else { return };
    let Some(of_ours) = Firewalld::or_skip(&mut pair.ours.world) else { return };
    let Some(of_theirs) = Firewalld::or_skip(&mut pair.theirs.world) else { return };
    originals(&pair);
    for side in [&pair.ours, &pair.theirs] {
        side.world.n.add_route("10.4.0.0/24", "10.0.1.1").unwrap();
    }
    let of = |side: &Side| if side.name == "ours" { &of_ours } else { &of_theirs };
    // Without the plugin it lets nothing of theirs pass.
    let pod = pair.ours.pod("bare");
    let bare = Chain::new("bare", [bridge()]);
    let result = pair.ours.add(&pod, &bare, "1.0.0", "eth0").unwrap();
    assert!(!out(&pair.ours, &pod));
    pair.ours.del(&pod, &bare, "1.0.0", Some(&result), "eth0").unwrap();
    for (name, more) in [
        ("plain", json!({})),
        ("zone", json!({"firewalldZone": "internal"})),
        // Chosen because one runs.
        ("auto", json!({"backend": ""})),
        // Last, for the original's rules stay.
        ("same", json!({"ingressPolicy": "same-bridge"})),
    ] {
        let zone = more["firewalldZone"].as_str().unwrap_or("trusted").to_owned();
        let chain = Chain::new(name, [bridge(), firewall(more)]).versions(&["0.4.0", "1.0.0"]);
        pair.same(&chain, |side, pod| {
            (sources(of(side), side, &zone), out(side, pod), isolations(side), crate::firewall::rules(side).len())
        });
        for side in [&pair.ours, &pair.theirs] {
            assert_eq!(sources(of(side), side, &zone), [""; 0], "{name} {}", side.name);
        }
    }
}

#[test]
fn check_del_and_refusals() {
    let Some(mut pair) = Pair::or_skip("firewalld-verbs") else { return };
    let Some(of_ours) = Firewalld::or_skip(&mut pair.ours.world) else { return };
    let Some(of_theirs) = Firewalld::or_skip(&mut pair.theirs.world) else { return };
    originals(&pair);
    let mut told = Vec::new();
    for (side, firewalld) in [(&pair.ours, of_ours), (&pair.theirs, of_theirs)] {
        let pod = side.pod("c1");
        let bridged = side.add(&pod, &Chain::new("web", [bridge()]), "1.0.0", "eth0").unwrap();
        let ask = |verb: &str, more: Value| -> Result<Value, Refusal> {
            let mut config = firewall(json!({"cniVersion": "1.0.0", "name": "web", "prevResult": bridged}));
            config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            answer(&output_of(side.command("firewall", verb, &pod, "eth0"), config.to_string().as_bytes()))
        };
        let there = || sources(&firewalld, side, "trusted");
        let mut seen: Vec<(&str, bool, Vec<String>)> = Vec::new();
        let mut tell = |what, result: Result<Value, Refusal>| seen.push((what, result.is_ok(), there()));
        tell("ADD", ask("ADD", json!({})));
        tell("ADD again", ask("ADD", json!({})));
        tell("CHECK", ask("CHECK", json!({})));
        // Somebody takes one of them away.
        let source = there()[0].clone();
        firewalld.cmd(&side.world, &format!("--zone=trusted --remove-source={source}"));
        // The original asks, and does not look at the answer.
        let lacks = |what: &str| {
            let checked = ask("CHECK", json!({}));
            let is_seen = checked.as_ref().is_err_and(|refusal| refusal.code == 103 && refusal.msg.contains("trusted"));
            assert_eq!(is_seen, side.name == "ours", "{what}: {checked:?}");
        };
        lacks(&source);
        tell("DEL", ask("DEL", json!({})));
        tell("DEL again", ask("DEL", json!({})));
        // Forgotten with a reload, and put back by nobody but the next ADD.
        tell("ADD after DEL", ask("ADD", json!({})));
        firewalld.cmd(&side.world, "--reload");
        lacks("after a reload");
        tell("ADD after a reload", ask("ADD", json!({})));
        tell("a zone that is not there", ask("ADD", json!({"firewalldZone": "nowhere"})));
        tell("DEL at last", ask("DEL", json!({})));
        // Nobody on the bus, and no bus.
        drop(firewalld);
        let without = ask("ADD", json!({}));
        if side.name == "ours" {
            assert!(without.as_ref().is_err_and(|refusal| refusal.code == 50), "{without:?}");
        }
        assert!(without.is_err(), "{}", side.name);
        told.push(seen);
    }
    assert_eq!(told[0], told[1]);
}
