//! Shortcuts, as programs and as tables: what is made is read back, and a table is what nft(8) lists and `portolan-plan` renders.

mod common;

use std::process::Command;

use common::{in_netns, route_socket};
use portolan_engine::Kernel as _;
use portolan_kernel::host::HostKernel;
use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::link;
use portolan_model::Mac;
use portolan_plan::{Firewall, Key, Macs, Object, Objects, Shortcut, ShortcutPart, Step, diff, ruleset};

const DEVICE: &str = "vx-000100000000";
const ENDS: [&str; 2] = ["pv00110001", "pv00120001"];

fn part(part: ShortcutPart, owner: &str) -> Object {
    Object::Shortcut(Shortcut { device: DEVICE.parse().unwrap(), part, owner: owner.to_owned() })
}

fn near(end: usize, addresses: &[&str]) -> Object {
    let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
    let queued = end == 1;
    let near = ShortcutPart::Near { host_end: ENDS[end].parse().unwrap(), addresses, queued };
    part(near, &format!("container c{end} on web"))
}

fn far(block: &str, via: &str) -> Object {
    let macs = Macs { own: Mac::from_bytes([2, 0, 0, 0, 0, 1]), to: Mac::from_bytes([2, 0, 0, 0, 0, 2]) };
    part(
        ShortcutPart::Far { block: block.parse().unwrap(), via: via.parse().unwrap(), macs, by: None },
        "host b on web",
    )
}

fn all() -> Objects {
    [
        part(ShortcutPart::Table { alias: "portolan:/r:network:00".to_owned() }, "network web"),
        near(0, &["10.1.0.2", "fd01::2"]),
        near(1, &["10.1.0.3"]),
        // Neighbours, the last addresses of all, and a single one.
        far("10.1.0.64/26", "192.0.2.2"),
        far("10.1.0.128/25", "192.0.2.3"),
        far("10.1.1.7/32", "192.0.2.3"),
        far("255.255.255.0/24", "192.0.2.4"),
        far("fd01::1:0/112", "fe80::b"),
        far("ffff::/16", "fe80::c"),
    ]
    .into_iter()
    .collect()
}

fn interfaces(names: &[&str]) {
    let mut batch = Batch::new();
    for name in names {
        link::create_plain(&mut batch, name, "bridge", None);
    }
    route_socket().transact(&batch).unwrap();
}

fn delete(name: &str) {
    let mut batch = Batch::new();
    link::delete(&mut batch, name);
    route_socket().transact(&batch).unwrap();
}

fn nft(args: &[&str]) -> String {
    let output = Command::new("nft").args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// By what packets are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Means {
    Programs,
    Table,
}

impl Means {
    fn kernel(self) -> HostKernel {
        match self {
            Self::Programs => HostKernel::new(),
            Self::Table => HostKernel::new().without_programs(),
        }
    }
}

/// In a namespace with the interfaces, where the kernel can have shortcuts of this kind.
fn where_there_can_be(means: Means, test: impl FnOnce(&HostKernel, &Firewall)) {
    in_netns(|| {
        interfaces(&[DEVICE, ENDS[0], ENDS[1]]);
        let (kernel, firewall) = (means.kernel(), Firewall::nftables("portolan"));
        let steps = diff(&all(), &Objects::new());
        kernel.apply(&firewall, &steps).unwrap();
        let has_program = kernel.runs_program(&DEVICE.parse().unwrap()).unwrap();
        let has_table = !nft(&["list", "tables"]).is_empty();
        match means {
            Means::Programs if !has_program => {
                eprintln!("SKIP: this kernel runs no programs at interfaces (CONFIG_BPF_SYSCALL, Linux 6.6)");
            }
            Means::Table if !has_table => {
                eprintln!("SKIP: this kernel cannot pass packets on at ingress (CONFIG_NFT_FWD_NETDEV, Linux 6.4)");
            }
            _ => {
                assert_ne!(has_program, has_table, "one of them");
                test(&kernel, &firewall);
            }
        }
    });
}

fn shortcuts(objects: &Objects) -> Vec<String> {
    let of_ours = objects.iter().filter(|(_, object)| matches!(object, Object::Shortcut(_)));
    of_ours.map(|(_, object)| object.to_string()).collect()
}

#[test]
fn what_is_made_is_read_back() {
    for means in [Means::Programs, Means::Table] {
        where_there_can_be(means, |kernel, firewall| {
            let desired = all();
            let found = kernel.observe("/r", firewall, &desired).unwrap();
            assert_eq!(diff(&desired, &found), [], "{:#?}", shortcuts(&found));
            // Also by who asks for nothing, as long as it is his root's.
            let read = shortcuts(&kernel.observe("/r", firewall, &Objects::new()).unwrap());
            let wanted = shortcuts(&desired);
            assert_eq!(read.len(), wanted.len(), "{read:#?}");
            for (read, wanted) in read.iter().zip(&wanted).skip(1) {
                // A table has all go by the queue.
                assert_eq!(read.replace(" and its queue", ""), wanted.replace(" and its queue", ""));
            }
            assert!(shortcuts(&kernel.observe("/r2", firewall, &Objects::new()).unwrap()).is_empty());
        });
    }
}

#[test]
fn a_table_is_what_is_rendered() {
    where_there_can_be(Means::Table, |_, _| {
        let desired = all();
        let parts: Vec<Shortcut> = desired
            .iter()
            .filter_map(|(_, object)| match object {
                Object::Shortcut(shortcut) => Some(shortcut.clone()),
                _ => None,
            })
            .collect();
        let lines = |text: &str| -> Vec<String> {
            let text = text.replace(",\n\t\t\t     ", "\n").replace("elements = { ", "\n").replace(" }\n", "\n");
            let elements = |line: &str| -> Vec<String> {
                let by = if line.contains("hook") { "\n" } else { ", " };
                line.trim().split(by).map(str::to_owned).collect()
            };
            let mut lines: Vec<String> = text.lines().flat_map(elements).collect();
            lines.retain(|line| !line.is_empty() && !line.starts_with("comment"));
            lines.sort();
            lines
        };
        let rendered = ruleset::render_shortcuts(&DEVICE.parse().unwrap(), &parts);
        assert_eq!(lines(&nft(&["list", "table", "netdev", DEVICE])), lines(&rendered));
        let check = std::env::temp_dir().join(format!("portolan-shortcuts-{}", std::process::id()));
        std::fs::write(&check, rendered.replacen(DEVICE, "another", 1)).unwrap();
        nft(&["-c", "-f", check.to_str().unwrap()]);
        std::fs::remove_file(&check).unwrap();
    });
}

#[test]
fn parts_come_and_go_one_by_one() {
    for means in [Means::Programs, Means::Table] {
        where_there_can_be(means, one_by_one);
    }
}

fn one_by_one(kernel: &HostKernel, firewall: &Firewall) {
    {
        let desired = all();
        let is = |wanted: &Objects| {
            let found = kernel.observe("/r", firewall, wanted).unwrap();
            assert_eq!(diff(wanted, &found), [], "{:#?}", shortcuts(&found));
        };
        for mode in ["strict", "lenient"] {
            let carry_out = |steps: &[Step]| match mode {
                "strict" => kernel.apply(firewall, steps).unwrap(),
                _ => assert_eq!(kernel.repair(firewall, steps), []),
            };
            for (key, object) in desired.iter().filter(|(key, _)| **key != table_key()) {
                carry_out(&[Step::Delete(object.clone())]);
                let mut without = desired.clone();
                without.retain(|other| other.key() != *key);
                is(&without);
                carry_out(&[Step::Create(object.clone())]);
                is(&desired);
            }
            let moved = far("10.1.0.64/26", "192.0.2.9");
            let back = far("10.1.0.64/26", "192.0.2.2");
            carry_out(&[Step::Change(back.clone(), moved.clone())]);
            let mut other = desired.clone();
            other.insert(moved.clone());
            is(&other);
            carry_out(&[Step::Change(moved, back)]);
            is(&desired);
        }
        // What is there already or gone already does not matter to a repair.
        let steps: Vec<Step> = desired.iter().map(|(_, object)| Step::Create(object.clone())).collect();
        assert_eq!(kernel.repair(firewall, &steps[1..]), []);
        is(&desired);
        kernel.apply(firewall, &diff(&Objects::new(), &desired)).unwrap();
        assert_eq!(nft(&["list", "ruleset"]), "");
        assert!(!kernel.runs_program(&DEVICE.parse().unwrap()).unwrap());
        assert_eq!(kernel.repair(firewall, &diff(&Objects::new(), &desired)), []);
    }
}

fn table_key() -> Key {
    part(ShortcutPart::Table { alias: String::new() }, "").key()
}

#[test]
fn whatever_became_of_it_is_made_anew() {
    where_there_can_be(Means::Table, |kernel, firewall| {
        let desired = all();
        let damages: [&[&str]; 8] = [
            &["flush", "ruleset"],
            &["delete", "element", "netdev", DEVICE, "beyond4", "{ 10.1.0.64/26 }"],
            &["delete", "element", "netdev", DEVICE, "here4", "{ 10.1.0.2 }"],
            &["add", "element", "netdev", DEVICE, "here4", "{ 10.1.0.9 : \"pv00120001\" }"],
            &["add", "element", "netdev", DEVICE, "near4", "{ \"pv00120001\" . 10.1.0.2 : \"vx-000100000000\" }"],
            &["add", "element", "netdev", DEVICE, "beyond4", "{ 10.2.0.0/24 }"],
            &["flush", "chain", "netdev", DEVICE, "shortcut_in"],
            &["add", "rule", "netdev", DEVICE, "shortcut_out", "accept"],
        ];
        for damage in damages {
            nft(damage);
            let found = kernel.observe("/r", firewall, &desired).unwrap();
            let steps = diff(&desired, &found);
            assert_ne!(steps, [], "{damage:?}");
            assert_eq!(kernel.repair(firewall, &steps), [], "{damage:?}");
            let found = kernel.observe("/r", firewall, &desired).unwrap();
            assert_eq!(diff(&desired, &found), [], "{damage:?}");
        }
    });
}

/// What leads to interfaces that went leads nowhere.
#[test]
fn interfaces_of_the_same_names_are_others() {
    for means in [Means::Programs, Means::Table] {
        where_there_can_be(means, |kernel, firewall| {
            for gone in [ENDS[1], DEVICE] {
                delete(gone);
                interfaces(&[gone]);
                mended(kernel, firewall, gone);
            }
        });
    }
}

/// Whatever is not as it should be is repaired at once.
fn mended(kernel: &HostKernel, firewall: &Firewall, what: &str) {
    let desired = all();
    let found = kernel.observe("/r", firewall, &desired).unwrap();
    let steps = diff(&desired, &found);
    assert_ne!(steps, [], "{what}");
    assert_eq!(kernel.repair(firewall, &steps), [], "{what}");
    let found = kernel.observe("/r", firewall, &desired).unwrap();
    assert_eq!(diff(&desired, &found), [], "{what}");
}

/// After an update from a version that knew tables only, or by somebody who is not let ask for programs.
#[test]
fn a_table_serves_where_there_could_be_a_program_but_not_beside_one() {
    where_there_can_be(Means::Table, |tables, firewall| {
        let (kernel, desired, device) = (HostKernel::new(), all(), DEVICE.parse().unwrap());
        let is_right =
            |kernel: &HostKernel| diff(&desired, &kernel.observe("/r", firewall, &desired).unwrap()).is_empty();
        assert!(is_right(&kernel));
        nft(&["delete", "table", "netdev", DEVICE]);
        mended(&kernel, firewall, "no table");
        assert_eq!((kernel.runs_program(&device).unwrap(), nft(&["list", "tables"]).as_str()), (true, ""));
        // Who does not see the program takes it for missing.
        mended(tables, firewall, "no table that is seen");
        assert!(!is_right(&kernel), "both");
        mended(&kernel, firewall, "both");
        assert!(is_right(&kernel) && nft(&["list", "tables"]).is_empty());
    });
}
