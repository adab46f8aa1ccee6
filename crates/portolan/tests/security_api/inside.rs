//! A container with rights over its own network has none over the host's.

use std::process::Output;

use portolan_kernel::rtnl::Family;
use portolan_lab::InNetns;
use portolan_lab::probe::ping;

use crate::common::upstream::output;
use crate::common::*;
use crate::table::{Row, row};

/// The rights of a container that may see to its own network, as `--cap-add NET_ADMIN` of other engines gives them.
const RIGHTS: &str = "-all,+net_admin,+net_raw";

/// What somebody tries who is in it, and what of it is about the host alone. `TARGET` is the host's process.
const TRIES: [(&str, &str); 7] = [
    ("flushing all rules", "nft flush ruleset"),
    (
        "rules of its own at every hook",
        "nft add table inet t && nft 'add chain inet t c { type filter hook forward priority -500; policy drop; }'",
    ),
    ("a route to everywhere", "ip route replace blackhole 0.0.0.0/1"),
    ("forwarding switched off", "echo 0 > /proc/sys/net/ipv4/ip_forward"),
    (
        "its interface down and up, with another MAC",
        "ip link set eth0 down && ip link set eth0 address 02:00:00:00:00:99 && ip link set eth0 up",
    ),
    (
        "a bridge of the host's name, and a veth pair",
        "ip link add portolan0 type bridge && ip link add pvx type veth peer name pvy",
    ),
    ("connections forgotten", "conntrack -F"),
];

/// What leads to the packet filter of the kernel; `SCRATCH` is a file of the test's.
const FILTERS: [(&str, &str); 5] = [
    ("rules by nft(8), `--security-opt no-netfilter`", "nft flush ruleset"),
    ("the same in a user namespace of its own", "unshare --user --map-root-user --net nft add table ip t"),
    ("the same by a child of a program in the background", "sh -c 'setsid nft add table ip t & wait $!'"),
    ("the tables of iptables-legacy", "XTABLES_LOCKFILE=SCRATCH xtables-legacy-multi iptables -A INPUT -j ACCEPT"),
    ("connections by conntrack(8)", "conntrack -F"),
];

pub(crate) fn case() -> Option<Vec<Row>> {
    let mut world = World::or_skip("sec-inside")?;
    world.daemon = true;
    for program in ["nft", "setpriv", "nsenter", "conntrack", "unshare"] {
        output(&world.h, program, &["--version"])?;
    }
    world.network("web", &["--subnet", "10.91.1.0/24", "--subnet", "fd91:1::/64"]);
    let site = world.container("site", &["--network", "web"]);
    let bounded = |script: &str| -> Output {
        let bounding = format!("--bounding-set={RIGHTS}");
        let inheritable = format!("--inh-caps={RIGHTS}");
        let command = [
            "run",
            "--rm",
            "--network",
            "web",
            "--",
            "setpriv",
            &bounding,
            &inheritable,
            "--no-new-privs",
            "sh",
            "-c",
            script,
        ];
        world.portolan(&command)
    };
    let ok = |output: &Output| output.status.success();
    let mut rows = Vec::new();
    // One after the other: each is to have done what it wanted, to itself.
    let before = world.state();
    for (what, script) in TRIES {
        let tried = bounded(script);
        let said = String::from_utf8_lossy(&tried.stderr).into_owned();
        assert!(ok(&tried), "{what}: it was to be done inside: {said}");
        before.assert_same(&world.state(), what);
        world.verify();
        assert!(
            FAMILIES.iter().all(|family| ping(&site, gateway_of(&world, "web", *family), LONG).is_open()),
            "{what}"
        );
    }
    // The host's own is out of reach.
    let host =
        portolan_kernel::netns::with_netns(world.h.netns(), || std::process::Command::new("sleep").arg("1000").spawn());
    let mut host = host.unwrap().unwrap();
    let enter = format!("nsenter --net=/proc/{}/ns/net true", host.id());
    let tried = bounded(&enter);
    assert!(!ok(&tried), "it was to be kept out of the host's namespace");
    before.assert_same(&world.state(), "entering");
    let free = world.portolan(&["run", "--rm", "--network", "web", "--", "sh", "-c", &enter]);
    assert!(ok(&free), "root with all rights gets there: {}", String::from_utf8_lossy(&free.stderr));
    host.kill().unwrap();
    host.wait().unwrap();
    rows.push(row(
        "entering the host's namespace",
        "root with all rights gets there",
        "refused: that takes CAP_SYS_ADMIN",
    ));

    // The same on the host itself bites.
    for (what, script) in TRIES {
        let place = world.lab.host(&format!("t{}", rows.len())).unwrap();
        let own = portolan_lab::snapshot::snapshot(&place).unwrap();
        let scratch =
            format!("ip link add eth0 type veth peer name eth1; ip link set lo up; ip link set eth0 up; {script}");
        output(&place, "sh", &["-c", &scratch]);
        let changed = portolan_lab::snapshot::diff(&own, &portolan_lab::snapshot::snapshot(&place).unwrap());
        assert!(!changed.is_empty(), "{what}: where it is tried, it changes something");
        rows.push(row(
            what,
            "changes the namespace it is done in",
            "that of the container only; the host and others go on",
        ));
    }
    assert!(ping(&site, gateway_of(&world, "web", Family::V4), LONG).is_open());
    rows.extend(without_netfilter(&world));
    Some(rows)
}

/// A container that is not to speak to the packet filter, root with all rights that it is.
fn without_netfilter(world: &World) -> Vec<Row> {
    let lock = world.lab.dir().join("xtables.lock");
    let run = |options: &[&str], script: &str| {
        let script = script.replace("SCRATCH", lock.to_str().unwrap());
        world.portolan(&[&["run", "--rm", "--network", "web"], options, &["--", "sh", "-c", &script]].concat())
    };
    const OPTION: [&str; 2] = ["--security-opt", "no-netfilter"];
    let said = |output: &Output| String::from_utf8_lossy(&output.stderr).into_owned();
    let is_refusal =
        |text: &str| ["Operation not permitted", "Permission denied"].iter().any(|word| text.contains(word));
    let mut rows = Vec::new();
    for (what, script) in FILTERS {
        let free = run(&[], script);
        assert!(free.status.success(), "{what}: where it is not asked to be kept off: {}", said(&free));
        let kept = run(&OPTION, script);
        assert!(!kept.status.success() && is_refusal(&said(&kept)), "{what}: {}", said(&kept));
        rows.push(row(what, "without the option it is done, inside", "EPERM, also to root with all rights"));
    }
    // All else is as ever: links and routes, programs that get rights by being executed.
    let usual = "ip link set eth0 down && ip link set eth0 up && ip route replace blackhole 192.0.2.0/24 && \
                 grep -q '^NoNewPrivs:.0' /proc/self/status";
    let kept = run(&OPTION, usual);
    assert!(kept.status.success(), "{}", said(&kept));

    // Who comes later is kept off as well.
    let ran = [&["run", "-d", "--name", "kept", "--network", "web"], &OPTION[..], &["--", "sleep", "1000"]].concat();
    world.portolan_ok(&ran);
    assert_eq!(world.json(&["inspect", "kept"])[0]["HostConfig"]["SecurityOpt"], serde_json::json!(["no-netfilter"]));
    world.portolan_ok(&["run", "-d", "--name", "free", "--network", "web", "--", "sleep", "1000"]);
    assert_eq!(world.json(&["inspect", "free"])[0]["HostConfig"]["SecurityOpt"], serde_json::json!([]));
    world.portolan_ok(&["exec", "free", "--", "nft", "list", "ruleset"]);
    let entered = world.portolan(&["exec", "kept", "--", "nft", "list", "ruleset"]);
    assert!(!entered.status.success() && is_refusal(&said(&entered)), "{}", said(&entered));
    rows.push(row(
        "nft(8) by `portolan exec` in such a container",
        "without the option it lists the rules",
        "EPERM: `exec` puts on the same filter",
    ));
    for name in ["kept", "free"] {
        world.portolan_ok(&["rm", "-f", name]);
    }
    rows
}
