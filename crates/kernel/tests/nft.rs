//! The ruleset as netlink makes it and as nft(8) lists it must be what `portolan-plan` renders as text.

use std::process::Command;

use portolan_engine::Kernel as _;
use portolan_kernel::host::HostKernel;
use portolan_kernel::netlink::{Batch, Socket};
use portolan_kernel::netns::{self, NetnsFd};
use portolan_kernel::nft::encode::Insist;
use portolan_kernel::nft::{decode, encode};
use portolan_model::Family::{V4, V6};
use portolan_plan::{Chain, Data, Element, Field, Set, Table, ruleset};

/// Runs `test` in a new namespace, which goes when it returns.
fn in_new_namespace(test: impl FnOnce()) {
    match NetnsFd::create() {
        Ok(ns) => netns::with_netns(&ns, test).unwrap(),
        Err(error) => {
            eprintln!("SKIP: no new network namespace: {error}");
            assert!(std::env::var_os("CI").is_none(), "CI must be able to make network namespaces");
        }
    }
}

fn samples() -> Vec<Element> {
    let address = |text: &str| Field::Address(text.parse().unwrap());
    let prefix = |text: &str| Field::Prefix(text.parse().unwrap());
    let name = |text: &str| Field::IfName(text.parse().unwrap());
    let element = |set, key: Vec<Field>, data| Element { set, key, data, owner: "container web 80:80/tcp".into() };
    let tcp = || Field::Protocol(portolan_model::Protocol::Tcp);
    let sctp = || Field::Protocol(portolan_model::Protocol::Sctp);
    let mac = || Field::Ether("02:42:ac:11:00:02".parse().unwrap());
    let to4 = |port| Data::AddressPort("172.20.0.2".parse().unwrap(), port);
    let to6 = |port| Data::AddressPort("fd00::2".parse().unwrap(), port);
    vec![
        element(Set::Port(V4), vec![tcp(), address("127.0.0.1"), Field::Ports(80, 80)], to4(81)),
        element(Set::Port(V6), vec![tcp(), address("2001:db8::1"), Field::Ports(80, 80)], to6(81)),
        element(Set::AnyPort(V4), vec![sctp(), Field::Ports(1880, 1880)], to4(1880)),
        element(Set::AnyPort(V6), vec![sctp(), Field::Ports(1880, 1880)], to6(1880)),
        element(
            Set::Range(V4),
            vec![tcp(), address("10.0.0.1"), Field::Ports(100, 200)],
            Data::Address("172.20.0.2".parse().unwrap()),
        ),
        element(Set::AnyRange(V6), vec![tcp(), Field::Ports(100, 20000)], Data::Address("fd00::2".parse().unwrap())),
        element(Set::Open(V4), vec![address("172.20.0.2"), tcp(), Field::Ports(80, 80)], Data::Member),
        element(Set::OpenRange(V6), vec![address("fd00::2"), tcp(), Field::Ports(80, 90)], Data::Member),
        element(Set::Proxied, vec![Field::NfProto(V6), tcp(), Field::Ports(8080, 8080)], Data::Member),
        element(Set::Untracked, vec![Field::Ports(51820, 51820)], Data::Member),
        element(Set::Within, vec![name("br-0"), name("br-0")], Data::Goto(Chain::Allow)),
        element(Set::Within, vec![name("br-1"), name("br-1")], Data::Goto(Chain::WithinClosed)),
        element(Set::Behind(V4), vec![name("pv0123456789abc"), address("172.20.0.2")], Data::Member),
        element(Set::Behind(V6), vec![name("pv0123456789abc"), address("fd00::2")], Data::Member),
        element(Set::Between(V4), vec![prefix("172.20.0.0/24"), prefix("172.20.0.0/24")], Data::Goto(Chain::Allow)),
        element(Set::Between(V4), vec![prefix("172.20.0.0/24"), prefix("172.20.1.8/31")], Data::Goto(Chain::Allow)),
        element(Set::Between(V6), vec![prefix("fd00::/64"), prefix("fd00::/64")], Data::Goto(Chain::WithinClosed)),
        element(Set::Direct(V4), vec![name("eth0"), prefix("10.128.0.64/26")], Data::Member),
        element(Set::Direct(V6), vec![name("eth0"), prefix("fd00:1::1:0/112")], Data::Member),
        element(Set::Leave, vec![Field::NfProto(V4), name("br-0")], Data::Goto(Chain::Enter)),
        element(Set::Enter, vec![Field::NfProto(V6), name("br-0")], Data::Drop),
        element(Set::ToHost, vec![Field::NfProto(V6), name("br-0")], Data::Goto(Chain::ToHostInternal)),
        element(Set::Trusted, vec![name("eth0"), name("fifteen-letters")], Data::Member),
        element(Set::Masquerade, vec![Field::NfProto(V4), name("br-0")], Data::Member),
        element(Set::Snat(V4), vec![name("br-0")], Data::Address("10.0.0.9".parse().unwrap())),
        element(Set::Gateway(V6), vec![name("br-0"), address("fd00::1")], Data::Member),
        element(Set::Gateways(V4), vec![address("172.20.0.1")], Data::Member),
        element(Set::Excess(V4), vec![address("172.20.0.2")], Data::Member),
        element(Set::Excess(V6), vec![address("fd00::2")], Data::Member),
        element(Set::Source(V4), vec![name("pv0123456789abc"), mac(), address("172.20.0.2")], Data::Member),
        element(Set::Source(V6), vec![name("pv0123456789abc"), mac(), address("fe80::42:acff:fe11:2")], Data::Member),
        element(Set::Quiet, vec![name("vx-0123456789ab")], Data::Member),
        element(Set::Unguarded, vec![name("pv0123456789abc")], Data::Member),
    ]
}

fn plugin_samples() -> Vec<Element> {
    let address = |text: &str| Field::Address(text.parse().unwrap());
    let prefix = |text: &str| Field::Prefix(text.parse().unwrap());
    let element =
        |set, key: Vec<Field>, data| Element { set, key, data, owner: format!("cni web {} eth0", "c".repeat(64)) };
    let udp = || Field::Protocol(portolan_model::Protocol::Udp);
    let to4 = |port| Data::AddressPort("10.4.0.2".parse().unwrap(), port);
    let to6 = |port| Data::AddressPort("fd00::2".parse().unwrap(), port);
    vec![
        element(Set::PluginPort(V4), vec![udp(), address("127.0.0.1"), Field::Ports(80, 80)], to4(81)),
        element(Set::PluginPort(V6), vec![udp(), address("2001:db8::1"), Field::Ports(80, 80)], to6(81)),
        element(Set::PluginAnyPort(V4), vec![udp(), Field::Ports(1880, 1880)], to4(1880)),
        element(Set::PluginAnyPort(V6), vec![udp(), Field::Ports(1880, 1880)], to6(1880)),
        element(Set::PluginHairpin(V4), vec![prefix("10.4.0.0/24"), address("10.4.0.2")], Data::Member),
        element(Set::PluginHairpin(V4), vec![prefix("127.0.0.1/32"), address("10.4.0.2")], Data::Member),
        element(Set::PluginHairpin(V4), vec![prefix("0.0.0.0/0"), address("10.4.0.3")], Data::Member),
        element(Set::PluginHairpin(V6), vec![prefix("fd00::/64"), address("fd00::2")], Data::Member),
        element(Set::PluginHairpin(V6), vec![prefix("::/0"), address("fd00::3")], Data::Member),
        element(Set::PluginLocal(V4), vec![address("10.4.0.2"), prefix("10.4.0.0/24")], Data::Member),
        element(Set::PluginLocal(V6), vec![address("fd00::2"), prefix("fd00::/64")], Data::Member),
        element(Set::PluginMasquerade(V4), vec![address("10.4.0.2")], Data::Member),
        element(Set::PluginMasquerade(V6), vec![address("fd00::2")], Data::Member),
        element(
            Set::PluginWaiting(V4),
            vec![udp(), address("0.0.0.0"), Field::Ports(80, 80), Field::Ports(0, 0)],
            to4(81),
        ),
        element(Set::PluginWaiting(V6), vec![udp(), address("::1"), Field::Ports(80, 80), Field::Ports(7, 7)], to6(81)),
    ]
}

#[test]
fn the_plugins_table_is_as_nft_lists_it() {
    in_new_namespace(|| {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER).unwrap();
        let elements = plugin_samples();
        let all: Vec<&Element> = elements.iter().collect();
        let before = decode::generation(&mut socket).unwrap();
        transact(&mut socket, |batch| {
            encode::create_plugins(batch);
            encode::add_elements(batch, Table::PLUGINS_NAME, &all, Insist::Yes);
        });
        assert_ne!(decode::generation(&mut socket).unwrap(), before);
        for set in Set::PLUGINS {
            let found = decode::elements(&mut socket, Table::PLUGINS_NAME, set).unwrap();
            let mut wanted: Vec<Element> = elements.iter().filter(|element| element.set == set).cloned().collect();
            let (mut is, unknown) = found;
            wanted.sort();
            is.sort();
            assert_eq!((is, unknown), (wanted, 0), "{set:?}");
            let other = Socket::open(libc::NETLINK_NETFILTER).unwrap();
            assert!(!decode::is_empty(other, Table::PLUGINS_NAME, set).unwrap(), "{set:?}");
        }
        for element in &elements {
            let like = Element { data: Data::Member, owner: String::new(), ..element.clone() };
            let found = decode::element_like(&mut socket, Table::PLUGINS_NAME, &like).unwrap();
            assert_eq!(found.as_ref(), Some(element));
        }
        if Command::new("nft").arg("--version").output().is_err() {
            eprintln!("SKIP: no nft(8) to compare with");
            assert!(std::env::var_os("CI").is_none(), "CI must have nft(8)");
            return;
        }
        let text = nft(&["list", "table", "inet", Table::PLUGINS_NAME]).replace("\n\t\t\t     ", " ");
        for element in &elements {
            let wanted = ruleset::render_element(element);
            assert!(text.contains(&wanted), "nft does not list `{wanted}` in\n{text}");
        }
        // What it lists it also reads.
        let check = std::env::temp_dir().join(format!("portolan-plugins-nft-{}", std::process::id()));
        std::fs::write(&check, ruleset::render_plugins(&elements).replace(Table::PLUGINS_NAME, "another")).unwrap();
        nft(&["-c", "-f", check.to_str().unwrap()]);
        std::fs::remove_file(&check).unwrap();
        transact(&mut socket, |batch| encode::delete_elements(batch, Table::PLUGINS_NAME, &all, Insist::Yes));
        for set in Set::PLUGINS {
            let other = Socket::open(libc::NETLINK_NETFILTER).unwrap();
            assert!(decode::is_empty(other, Table::PLUGINS_NAME, set).unwrap(), "{set:?}");
        }
        let (is, should) =
            (normal(&nft(&["list", "table", "inet", Table::PLUGINS_NAME])), normal(&ruleset::render_plugins([])));
        assert_eq!(is, should);
    });
}

fn transact(socket: &mut Socket, build: impl FnOnce(&mut Batch)) {
    let mut batch = Batch::new();
    batch.begin_nft(None);
    build(&mut batch);
    batch.end_nft();
    socket.transact(&batch).unwrap();
}

#[test]
fn elements_come_back_as_they_went() {
    in_new_namespace(|| {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER).unwrap();
        let elements = samples();
        let all: Vec<&Element> = elements.iter().collect();
        transact(&mut socket, |batch| {
            encode::create_ruleset(batch, "portolan");
            encode::add_elements(batch, "portolan", &all, Insist::Yes);
        });
        for set in Set::ALL {
            let (found, unknown) = decode::elements(&mut socket, "portolan", set).unwrap();
            let mut wanted: Vec<&Element> = elements.iter().filter(|e| e.set == set).collect();
            let mut found: Vec<&Element> = found.iter().collect();
            wanted.sort();
            found.sort();
            assert_eq!((found, unknown), (wanted, 0), "{set:?}");
        }
        for table in Table::ALL {
            let rules = decode::rules(&mut socket, table, "portolan").unwrap();
            for chain in Chain::ALL.into_iter().filter(|chain| ruleset::table(*chain) == table) {
                let comments: Vec<&str> = rules[chain.name()].iter().map(|rule| rule.comment.as_str()).collect();
                assert_eq!(comments, ruleset::rules(chain).iter().map(|rule| rule.comment).collect::<Vec<_>>());
            }
        }
        transact(&mut socket, |batch| encode::delete_elements(batch, "portolan", &all, Insist::Yes));
        transact(&mut socket, |batch| encode::delete_elements(batch, "portolan", &all, Insist::No));
        assert!(decode::elements(&mut socket, "portolan", Set::Within).unwrap().0.is_empty());
    });
}

/// Has this name since nft(8) 1.0.8; before, it is listed as what it is, and cannot be read back.
const NEIGHBOUR_TARGET: &str = "icmpv6 taddr";

/// The text without the rules that this nft(8) has no words for.
fn readable(text: &str) -> String {
    let mut check = Command::new("nft");
    check.args(["-c", "add table bridge t; add chain bridge t c; add rule bridge t c icmpv6 taddr ::1"]);
    let knows = check.output().unwrap().status.success();
    text.lines().filter(|line| knows || !line.contains(NEIGHBOUR_TARGET)).map(|line| format!("{line}\n")).collect()
}

/// What nft(8) leaves out or adds when it lists: counters, and protocols that other expressions imply.
fn normal(text: &str) -> Vec<String> {
    text.replace("counter packets 0 bytes 0", "counter")
        .replace("ether type ip6 icmpv6", "icmpv6")
        .replace("ether type ip iifname", "iifname")
        .replace("ether type ip6 iifname", "iifname")
        .replace("ether type arp iifname", "iifname")
        .replace("ether type ip6 ip6 ", "ip6 ")
        .replace("ether type ip6 meta", "meta")
        .replace("meta l4proto udp meta l4proto . th dport", "meta l4proto . udp dport")
        .replace("meta l4proto udp meta l4proto . th sport", "meta l4proto . udp sport")
        .replace("@th,64,128", NEIGHBOUR_TARGET)
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn nft_lists_what_the_plan_renders() {
    if Command::new("nft").arg("--version").output().is_err() {
        eprintln!("SKIP: no nft(8) to compare with");
        assert!(std::env::var_os("CI").is_none(), "CI must have nft(8)");
        return;
    }
    in_new_namespace(|| {
        let mut socket = Socket::open(libc::NETLINK_NETFILTER).unwrap();
        transact(&mut socket, |batch| encode::create_ruleset(batch, "portolan"));
        let listed = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let (is, should) = (normal(&String::from_utf8_lossy(&listed.stdout)), normal(&ruleset::render("portolan", [])));
        for (is, should) in is.iter().zip(&should) {
            assert_eq!(is, should);
        }
        assert_eq!(is.len(), should.len());

        let elements = samples();
        let all: Vec<&Element> = elements.iter().collect();
        transact(&mut socket, |batch| encode::add_elements(batch, "portolan", &all, Insist::Yes));
        let listed = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        let text = String::from_utf8_lossy(&listed.stdout).replace("\n\t\t\t     ", " ");
        for element in &elements {
            let wanted = ruleset::render_element(element);
            assert!(text.contains(&wanted), "nft does not list `{wanted}` in\n{text}");
        }
        let json = Command::new("nft").args(["-j", "list", "ruleset"]).output().unwrap();
        assert!(json.status.success() && json.stdout.starts_with(b"{"));
        // What it lists it also reads.
        let check = std::env::temp_dir().join(format!("portolan-nft-{}", std::process::id()));
        std::fs::write(&check, readable(&ruleset::render("portolan2", &elements))).unwrap();
        let read = Command::new("nft").arg("-c").arg("-f").arg(&check).output().unwrap();
        std::fs::remove_file(&check).unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
    });
}

/// A listing without what says that somebody owns the table.
fn without_flags(text: &str) -> String {
    let lines = text.lines().filter(|line| !line.contains("flags "));
    lines.map(|line| line.split(" # progname").next().unwrap_or_default().to_owned() + "\n").collect()
}

fn nft(args: &[&str]) -> String {
    let output = Command::new("nft").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_firewall_of_somebody_elses_is_found() {
    if Command::new("nft").arg("--version").output().is_err() {
        eprintln!("SKIP: no nft(8) to make one with");
        assert!(std::env::var_os("CI").is_none(), "CI must have nft(8)");
        return;
    }
    in_new_namespace(|| {
        let kernel = HostKernel::new();
        assert!(!kernel.has_other_firewall(), "nothing");
        let mut socket = Socket::open(libc::NETLINK_NETFILTER).unwrap();
        transact(&mut socket, |batch| encode::create_ruleset(batch, "portolan"));
        transact(&mut socket, |batch| encode::create_fence(batch, "portolan"));
        assert!(!kernel.has_other_firewall(), "ours");
        for family in ["inet", "ip", "ip6"] {
            for hook in ["prerouting", "input", "forward", "output", "postrouting"] {
                let is_firewall = hook != "forward";
                nft(&["add", "table", family, "own"]);
                // As many rules as do not fit into one answer, in a chain that is only called.
                nft(&["add", "chain", family, "own", "called", "{ }"]);
                let rules: String =
                    (0..500).map(|n| format!("add rule {family} own called tcp dport {n} drop\n")).collect();
                nft(&[&rules]);
                let chain = |policy: &str| format!("{{ type filter hook {hook} priority 0; policy {policy}; }}");
                nft(&["add", "chain", family, "own", "base", &chain("accept")]);
                assert!(!kernel.has_other_firewall(), "{family} {hook}: an empty chain");
                nft(&["add", "chain", family, "own", "base", &chain("drop")]);
                assert_eq!(kernel.has_other_firewall(), is_firewall, "{family} {hook}: a policy");
                nft(&["add", "chain", family, "own", "base", &chain("accept")]);
                assert!(!kernel.has_other_firewall(), "{family} {hook}: an empty chain again");
                nft(&["add", "rule", family, "own", "base", "accept"]);
                assert_eq!(kernel.has_other_firewall(), is_firewall, "{family} {hook}: a rule");
                nft(&["flush", "chain", family, "own", "base"]);
                assert!(!kernel.has_other_firewall(), "{family} {hook}: it is gone");
                nft(&["add", "rule", family, "own", "base", "jump called"]);
                assert_eq!(kernel.has_other_firewall(), is_firewall, "{family} {hook}: rules elsewhere");
                nft(&["delete", "table", family, "own"]);
            }
        }
        assert!(!kernel.has_other_firewall(), "nothing but ours");
        match Command::new("ip6tables-legacy").args(["-w", "-t", "raw", "-A", "OUTPUT", "-j", "ACCEPT"]).output() {
            Ok(output) if output.status.success() => assert!(kernel.has_other_firewall(), "of the old kind"),
            other => eprintln!("SKIP: no ip6tables-legacy: {other:?}"),
        }
    });
}

#[test]
fn the_fence_survives_what_others_flush_and_its_owner() {
    if Command::new("nft").arg("--version").output().is_err() {
        eprintln!("SKIP: no nft(8) to flush with");
        assert!(std::env::var_os("CI").is_none(), "CI must have nft(8)");
        return;
    }
    in_new_namespace(|| {
        let mut owner = Socket::open(libc::NETLINK_NETFILTER).unwrap();
        transact(&mut owner, |batch| encode::create_fence(batch, "portolan"));
        let mut other = Socket::open(libc::NETLINK_NETFILTER).unwrap();
        transact(&mut other, |batch| encode::create_ruleset(batch, "portolan"));
        let wanted = normal(&ruleset::render_fence("portolan"));
        let fence = || normal(&without_flags(&nft(&["list", "table", "inet", "portolan_fence"])));
        assert_eq!(fence(), wanted);

        nft(&["flush", "ruleset"]);
        let left = normal(&without_flags(&nft(&["list", "ruleset"])));
        assert_eq!(left, wanted, "nothing but the fence is left");
        for line in ["delete table inet portolan_fence", "flush table inet portolan_fence"] {
            let output = Command::new("nft").args(line.split(' ')).output().unwrap();
            assert!(!output.status.success(), "`nft {line}` is refused");
        }

        // Its owner dies: it stays, and the next one adopts it.
        drop(owner);
        assert_eq!(fence(), wanted);
        let mut next = Socket::open(libc::NETLINK_NETFILTER).unwrap();
        let refused = |socket: &mut Socket| {
            let mut batch = Batch::new();
            batch.begin_nft(None);
            encode::create_fence(&mut batch, "portolan");
            batch.end_nft();
            socket.transact(&batch).unwrap_err().is_exists()
        };
        assert!(refused(&mut next), "it is not made twice");
        transact(&mut next, |batch| encode::adopt_fence(batch, "portolan"));
        assert_eq!(fence(), wanted);
        nft(&["flush", "ruleset"]);
        assert_eq!(fence(), wanted);
        // Again by the same owner: nothing changes.
        assert!(refused(&mut next), "nor by its owner");
        transact(&mut next, |batch| encode::adopt_fence(batch, "portolan"));
        assert_eq!(fence(), wanted);
        transact(&mut next, |batch| encode::delete_fence(batch, "portolan"));
        assert!(nft(&["list", "ruleset"]).is_empty());
    });
}
