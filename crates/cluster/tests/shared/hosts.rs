//! What hosts see late, write twice and lose the answer of.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use portolan_cluster::{
    ClusterNetwork, EndpointRecord, Event, HostRecord, Key, Operation, Part, View, WentBack, Write, abandoned, choose,
    concerns,
};
use portolan_model::{Id, Withheld};

use crate::etcd::{Etcd, Random, begun, host, id, network, seeds};

#[test]
fn hosts_are_told_apart() {
    let mut etcd = begun();
    let (a, b) = (id(1, 1), id(1, 2));
    assert!(etcd.write(&Write::join(a, &host(1))));
    assert!(!etcd.write(&Write::join(a, &host(1))), "an id is one host's");
    assert!(!etcd.write(&Write::join(b, &HostRecord { name: host(1).name, ..host(2) })), "so is a name");
    assert!(!etcd.write(&Write::join(b, &HostRecord { underlay: host(1).underlay, ..host(2) })), "and an address");
    assert!(etcd.write(&Write::join(b, &host(2))));

    // An address that a host leaves is free for another one.
    let moved = HostRecord { underlay: host(3).underlay, ..host(1) };
    assert!(!etcd.write(&Write::change(a, &host(1), &HostRecord { underlay: host(2).underlay, ..host(1) })));
    assert!(etcd.write(&Write::change(a, &host(1), &moved)));
    assert!(etcd.write(&Write::change(b, &host(2), &HostRecord { underlay: host(1).underlay, ..host(2) })));

    // A copy of a host's disk runs beside it.
    assert!(etcd.write(&Write::live(a, "first run", None)));
    assert!(!etcd.write(&Write::live(a, "second run", None)));
    assert!(!etcd.write(&Write::live(a, "second run", Some("another"))));
    let view = etcd.list();
    assert_eq!((view.run_of(a), view.run_of(b)), (Some("first run"), None));
    // Its next run knows which one was before it.
    assert!(etcd.write(&Write::live(a, "second run", Some("first run"))));

    let write = Write { only_if: vec![], then: vec![Operation::Put(Key::Gone(b), String::new())] };
    assert!(etcd.write(&write));
    assert!(!etcd.write(&Write::live(b, "back", None)), "who is gone does not come back");
}

#[test]
fn who_leaves_leaves_nothing() {
    let mut etcd = begun();
    let before = etcd.keys.clone();
    let (a, net) = (id(1, 1), id(2, 1));
    assert!(etcd.write(&Write::join(a, &host(1))));
    assert!(etcd.write(&Write::live(a, "run", None)));
    let prefix = "10.128.0.0/16";
    assert!(etcd.write(&Write::create_network(net, &network(1, prefix), 0)));
    for number in 0..150 {
        let block = choose(prefix.parse().unwrap(), 26, &BTreeSet::new(), number).unwrap();
        assert!(etcd.write(&Write::claim(a, net, block, 26, &etcd.list())));
    }
    let record = |number| EndpointRecord {
        container: id(3, number),
        name: format!("c{number}"),
        aliases: vec![],
        addresses: vec![],
        mac: None,
        unwell: false,
    };
    let wanted: BTreeMap<_, _> = (0..250).map(|number| ((net, id(4, number)), record(number))).collect();
    let writes = Write::endpoints(a, &etcd.list().endpoints_at(a), &wanted);
    assert!(writes.len() > 2 && writes.iter().all(|write| write.then.len() <= 64), "in parts that etcd takes");
    assert!(writes.iter().all(|write| etcd.write(write)));
    assert!(
        Write::endpoints(a, &etcd.list().endpoints_at(a), &wanted).is_empty(),
        "what is there is not written again"
    );
    assert!(!etcd.write(&Write::remove_network(net, &network(1, prefix))), "somebody is on it");
    for write in Write::leave(a, &etcd.list()) {
        assert!(etcd.write(&write));
    }
    assert!(etcd.write(&Write::remove_network(net, &network(1, prefix))));
    etcd.keys.remove(&etcd.layout.text(&Key::Networks));
    assert_eq!(etcd.keys, before);
}

#[test]
fn what_is_strange_is_left_alone_and_named() {
    let mut etcd = begun();
    let layout = etcd.layout.clone();
    let mut put = |key: String, value: &str| {
        etcd.revision += 1;
        etcd.keys.insert(key, (value.to_owned(), etcd.revision));
    };
    put(format!("{}all/policy/1", layout.root()), "{}");
    put(layout.text(&Key::Network(id(2, 2))), &serde_json::to_string(&network(2, "10.0.0.0/16")).unwrap());
    put(layout.text(&Key::Host(id(1, 1))), "\u{0}garbage");
    put(layout.text(&Key::Block(id(2, 2), "10.0.0.0/26".parse().unwrap())), r#"{"host":"short"}"#);
    let mut view = etcd.list();
    assert_eq!(view.strange().len(), 3, "{:?}", view.strange());
    assert!(view.hosts().is_empty() && view.blocks_on(id(2, 2)).next().is_none());
    let gone = [Event::Delete { key: layout.text(&Key::Host(id(1, 1))).into_bytes() }];
    view.apply(&layout, Part::All, 99, &gone);
    assert_eq!(view.strange().len(), 2);
    view.forget(&layout, id(2, 2));
    assert_eq!(view.strange().len(), 1);
}

#[test]
fn an_older_etcd_changes_nothing() {
    let etcd = begun();
    let mut view = etcd.list();
    view.apply(&etcd.layout, Part::All, 10, &[]);
    let before = view.clone();
    let older = View::of(&etcd.layout, 5, etcd.found(Part::All));
    assert_eq!(view.replace(older), Err(WentBack::Revision { seen: 10, found: 5 }));
    let other = view.replace(View::of::<Vec<u8>>(&etcd.layout, 11, []));
    assert_eq!(other, Err(WentBack::Cluster { seen: id(9, 9), found: None }));
    assert_eq!(view, before);
}

/// One host: what it has seen, and which blocks it gives addresses out of.
struct Member {
    id: Id,
    view: View,
    /// How much of the log it has seen.
    seen: usize,
    uses: BTreeSet<IpNet>,
}

impl Member {
    fn watch(&mut self, etcd: &Etcd, net: Id, upto: usize) {
        for change in etcd.show(&mut self.view, &etcd.log[self.seen..upto]) {
            if let portolan_cluster::Change::Block(of, block, _) = change
                && of == net
            {
                self.notice(net, block);
            }
        }
        self.seen = self.seen.max(upto);
    }

    fn notice(&mut self, net: Id, block: IpNet) {
        if self.view.block(net, block) == Some(self.id) {
            self.uses.insert(block);
        } else {
            self.uses.remove(&block);
        }
    }

    fn list(&mut self, etcd: &Etcd, net: Id) {
        self.view = etcd.list();
        self.seen = etcd.log.len();
        self.uses = self.view.blocks_on(net).filter(|(_, owner)| *owner == self.id).map(|(block, _)| block).collect();
    }
}

/// Blocks move between hosts that see changes late, lose answers, die and list again: none is ever used by two.
#[test]
fn no_block_is_used_by_two_hosts() {
    let mut full = 0;
    for seed in 0..seeds() {
        let mut random = Random(seed);
        let mut etcd = begun();
        let net = id(2, 1);
        let prefix: IpNet = "10.128.0.0/22".parse().unwrap();
        assert!(etcd.write(&Write::create_network(net, &network(1, "10.128.0.0/22"), 0)));
        let mut members: Vec<Member> = Vec::new();
        for number in 0..5 {
            assert!(etcd.write(&Write::join(id(1, number), &host(number))));
            members.push(Member { id: id(1, number), view: View::default(), seen: 0, uses: BTreeSet::new() });
        }
        for member in &mut members {
            member.list(&etcd, net);
        }
        for _ in 0..120 {
            let at = random.below(members.len());
            let member = &mut members[at];
            match random.below(10) {
                0..4 => {
                    let taken: BTreeSet<IpNet> = member.view.blocks_on(net).map(|(block, _)| block).collect();
                    match choose(prefix, 26, &taken, random.next()) {
                        // Whether the answer comes or not: what counts is what is seen.
                        Some(block) => drop(etcd.write(&Write::claim(member.id, net, block, 26, &member.view))),
                        None => full += 1,
                    }
                }
                4..6 => {
                    let Some(block) = member.uses.iter().nth(random.below(4)).copied() else { continue };
                    member.uses.remove(&block);
                    // The request may get lost; then it is found to be its own when it lists.
                    if random.below(4) > 0 {
                        etcd.write(&Write::release(
                            net,
                            &Withheld { block, part: block, written: member.view.written(net, block) },
                        ));
                    }
                }
                6..9 => {
                    let upto = member.seen + random.below(etcd.log.len() - member.seen + 1);
                    member.watch(&etcd, net, upto);
                }
                _ => member.list(&etcd, net),
            }
            let mut all = BTreeSet::new();
            for member in &members {
                for block in &member.uses {
                    assert!(all.insert(*block), "seed {seed}: {block} is used by two");
                }
            }
        }
        // What everybody has seen in the end is what etcd says.
        for member in &mut members {
            member.watch(&etcd, net, etcd.log.len());
            assert_eq!(member.view, etcd.list(), "seed {seed}");
        }
    }
    assert!(full > 0, "some were so unlucky that all blocks were taken");
}

/// Two that make networks at once: one of them sees the other's, and no name, number or address is given twice.
#[test]
fn networks_do_not_overlap() {
    let mut etcd = begun();
    let (first, second) = (etcd.list(), etcd.list());
    assert!(etcd.write(&Write::create_network(id(2, 1), &network(1, "10.128.0.0/18"), first.networks_written())));
    let same = network(2, "10.128.0.0/18");
    assert!(!etcd.write(&Write::create_network(id(2, 2), &same, second.networks_written())));
    let now = etcd.list();
    let taken = |record: ClusterNetwork| Write::create_network(id(2, 3), &record, now.networks_written());
    assert!(!etcd.write(&taken(ClusterNetwork { name: network(1, "10.0.0.0/8").name, ..network(2, "10.1.0.0/18") })));
    assert!(!etcd.write(&taken(ClusterNetwork { vni: network(1, "10.0.0.0/8").vni, ..network(2, "10.1.0.0/18") })));
    assert!(etcd.write(&taken(network(2, "10.1.0.0/18"))));
    assert!(etcd.write(&Write::remove_network(id(2, 1), &network(1, "10.128.0.0/18"))));
    assert!(
        !etcd.write(&Write::claim(id(1, 1), id(2, 1), "10.128.0.0/26".parse().unwrap(), 26, &now)),
        "of a network that is gone"
    );
}

/// A host follows the networks that it has something on, whoever gave it that, and no others once it has nothing any more; what it
/// says of that outlives neither what it has nor the network.
#[test]
fn hosts_follow_what_they_are_on() {
    let mut etcd = begun();
    let (a, b, net, other) = (id(1, 1), id(1, 2), id(2, 1), id(2, 2));
    assert!(etcd.write(&Write::join(a, &host(1))) && etcd.write(&Write::join(b, &host(2))));
    assert!(etcd.write(&Write::create_network(net, &network(1, "10.1.0.0/25"), 0)));
    assert!(etcd.write(&Write::create_network(other, &network(2, "10.2.0.0/16"), etcd.list().networks_written())));
    let none = BTreeSet::new();
    let follows = |etcd: &Etcd, host| etcd.look(host, &none).followed().collect::<BTreeSet<Id>>();
    assert_eq!(follows(&etcd, a), none);
    assert_eq!(concerns(&etcd.glance(a), a, &[net, id(2, 9)].into()), [net].into(), "one that is not there");

    // All blocks are the one's, who gives the other some.
    for block in ["10.1.0.0/26", "10.1.0.64/26"] {
        assert!(etcd.write(&Write::claim(a, net, block.parse().unwrap(), 26, &etcd.list())));
    }
    assert_eq!((follows(&etcd, a), follows(&etcd, b)), ([net].into(), none.clone()));
    assert!(etcd.write(&Write::want(b, net, portolan_model::Family::V4)));
    let block: IpNet = "10.1.0.64/26".parse().unwrap();
    let given = Withheld { block, part: block, written: etcd.list().written(net, block) };
    assert!(etcd.write(&Write::give(a, net, &given, 26, b)));
    assert_eq!(follows(&etcd, b), [net].into());

    // It goes back: who has nothing says so, and what comes to him meanwhile is not lost.
    let before = etcd.list();
    assert_eq!(abandoned(&before, b, &none), [], "it has a block");
    let written = before.written(net, block);
    assert!(etcd.write(&Write::release(net, &Withheld { written, ..given })));
    let over = abandoned(&etcd.list(), b, &none);
    assert_eq!((over.len(), abandoned(&etcd.list(), b, &[net].into()).len()), (1, 0), "somebody asks for it");
    assert!(etcd.write(&Write::claim(b, net, block, 26, &etcd.list())));
    assert!(!etcd.write(&over[0]));
    assert_eq!(follows(&etcd, b), [net].into());

    // What is there is not seen yet by who has seen only that he is there.
    let mut late = etcd.list();
    late.forget(&etcd.layout, net);
    late.add::<Vec<u8>>(&etcd.layout, net, written, []);
    assert_eq!(abandoned(&late, b, &none), []);

    // An endpoint keeps it as well, also one of which nobody knows whether it was written.
    let record = EndpointRecord {
        container: id(3, 1),
        name: "c".to_owned(),
        aliases: vec![],
        addresses: vec![],
        mac: None,
        unwell: false,
    };
    let wanted = BTreeMap::from([((net, id(4, 1)), record)]);
    assert!(etcd.write(&Write::release(net, &Withheld { written: etcd.list().written(net, block), ..given })));
    let over = abandoned(&etcd.list(), b, &none);
    let come = Write::endpoints(b, &BTreeMap::new(), &wanted);
    let go = Write::endpoints(b, &wanted, &BTreeMap::new());
    assert!(etcd.write(&come[0]));
    assert!(!etcd.write(&over[0]));
    assert_eq!(abandoned(&etcd.list(), b, &none), []);
    assert!(etcd.write(&go[0]));
    let over = abandoned(&etcd.list(), b, &none);
    assert!(etcd.write(&over[0]));
    assert_eq!(follows(&etcd, b), none);

    // A network that is gone leaves nothing but that somebody was on it, who takes it back.
    assert!(etcd.write(&Write::remove_network(net, &network(1, "10.1.0.0/25"))));
    assert_eq!(etcd.under(&etcd.layout.part(Part::Network(net))), Vec::<String>::new());
    let over = abandoned(&etcd.list(), a, &[net].into());
    assert!(over.len() == 1 && etcd.write(&over[0]));
    assert_eq!(etcd.under(&etcd.layout.part(Part::Places(a))), Vec::<String>::new());
}
