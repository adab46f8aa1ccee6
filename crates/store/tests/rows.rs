//! Every method of the port, against a file.

mod common;

use std::collections::BTreeSet;

use common::*;
use ipnet::IpNet;
use portolan_engine::{Durability, LeaseRow, PublicationRow, RestingLease, Store, StoreError, Touched, Transition, Tx};
use portolan_model::{Driver, Family, Network, Phase};
use portolan_store::{SqliteStore, SqliteTx};

/// Runs `test` in a transaction of a new store, commits it, and lets `after` see what another opener reads.
fn committed(test: impl FnOnce(&SqliteTx<'_>), after: impl FnOnce(&SqliteTx<'_>)) {
    let scratch = Scratch::new();
    let store = SqliteStore::open(&scratch.root()).unwrap();
    let guard = store.lock().unwrap();
    let tx = store.write(&guard).unwrap();
    test(&tx);
    tx.commit(Durability::Disk).unwrap();
    drop(guard);
    drop(store);
    let store = SqliteStore::open(&scratch.root()).unwrap();
    after(&store.read().unwrap());
}

fn in_transaction(test: impl FnOnce(&SqliteTx<'_>)) {
    committed(test, |_| {});
}

#[test]
fn meta_is_set_replaced_and_removed() {
    committed(
        |tx| {
            assert_eq!(tx.meta("boot").unwrap(), None);
            tx.put_meta("boot", Some("a")).unwrap();
            tx.put_meta("boot", Some("b")).unwrap();
            tx.put_meta("gone", Some("x")).unwrap();
            tx.put_meta("gone", None).unwrap();
            tx.put_meta("never", None).unwrap();
        },
        |tx| {
            assert_eq!(tx.meta("boot").unwrap().as_deref(), Some("b"));
            assert_eq!(tx.meta("gone").unwrap(), None);
        },
    );
}

#[test]
fn networks_by_id_name_and_prefix() {
    let (web, db) = (network(1, "web"), network(2, "db"));
    committed(
        |tx| {
            assert!(!tx.has_user_bridges().unwrap());
            for (number, name) in ["bridge", "host", "none"].iter().enumerate() {
                tx.put_network(&network(90 + number as u32, name)).unwrap();
            }
            assert!(!tx.has_user_bridges().unwrap());
            let lan = Network { driver: Driver::Macvlan, ..network(80, "lan") };
            let mut theirs = network(81, "theirs");
            theirs.options.managed = false;
            for other in [lan, theirs] {
                tx.put_network(&other).unwrap();
                assert!(!tx.has_user_bridges().unwrap(), "`{}` has no bridge of ours", other.name);
                tx.delete_network(other.id).unwrap();
            }
            tx.put_network(&web).unwrap();
            assert!(tx.has_user_bridges().unwrap());
            tx.put_network(&db).unwrap();
        },
        |tx| {
            assert_eq!(tx.network(web.id).unwrap(), Some(web.clone()));
            assert_eq!(tx.network(id(1, 3)).unwrap(), None);
            assert_eq!(tx.network_named("db").unwrap(), Some(db.clone()));
            assert_eq!(tx.network_named("DB").unwrap(), None);
            let names: Vec<_> = tx.networks().unwrap().into_iter().map(|n| n.name.to_string()).collect();
            assert_eq!(names, ["bridge", "db", "host", "none", "web"]);
            assert_eq!(tx.networks_with_prefix("0100000001").unwrap(), std::slice::from_ref(&web));
            assert_eq!(tx.networks_with_prefix("010000000").unwrap(), [web.clone(), db.clone()]);
            assert_eq!(tx.networks_with_prefix("").unwrap().len(), 2);
            assert_eq!(tx.networks_with_prefix(&web.id.to_string()).unwrap(), std::slice::from_ref(&web));
            assert!(tx.networks_with_prefix("02").unwrap().is_empty());
            assert!(tx.networks_with_prefix("web").unwrap().is_empty());
        },
    );
}

#[test]
fn every_name_between_the_predefined_ones_is_a_users() {
    for name in ["a", "bridge0", "c", "host1", "m", "none2", "z", "Bridge"] {
        in_transaction(|tx| {
            tx.put_network(&network(1, name)).unwrap();
            assert!(tx.has_user_bridges().unwrap(), "{name}");
            tx.delete_network(id(1, 1)).unwrap();
            assert!(!tx.has_user_bridges().unwrap(), "{name}");
        });
    }
}

#[test]
fn a_network_takes_its_resting_leases_and_cursors_along() {
    in_transaction(|tx| {
        let (web, net): (_, IpNet) = (network(1, "web"), parse("10.0.0.0/8"));
        tx.put_network(&web).unwrap();
        let row = endpoint(1, id(2, 1), web.id, &["10.0.0.2/8"]);
        tx.put_endpoint(&row).unwrap();
        tx.take_lease(web.id, parse("10.0.0.2"), row.id, row.mac).unwrap();
        tx.put_lease_cursor(web.id, net, parse("10.0.0.2")).unwrap();
        tx.take_lease(id(1, 2), parse("10.0.0.2"), id(3, 2), mac(2)).unwrap();
        tx.delete_endpoint(row.id).unwrap();
        assert!(tx.lease(web.id, parse("10.0.0.2")).unwrap().is_some());
        tx.delete_network(web.id).unwrap();
        assert_eq!(tx.network(web.id).unwrap(), None);
        assert_eq!(tx.lease(web.id, parse("10.0.0.2")).unwrap(), None);
        assert_eq!(tx.lease_cursor(web.id, net).unwrap(), None);
        assert!(tx.lease(id(1, 2), parse("10.0.0.2")).unwrap().is_some(), "another network's stay");
        tx.delete_network(web.id).unwrap();
    });
}

#[test]
fn containers_by_id_name_prefix_and_sandbox() {
    let mut old = container(2);
    let mut young = container(1);
    committed(
        |tx| {
            tx.put_container(&old).unwrap();
            tx.put_container(&young).unwrap();
            // Device and inode numbers are unsigned 64-bit, SQLite's integers are not.
            young.sandbox = Some(sandbox(u64::MAX, 1 << 63));
            tx.put_container(&young).unwrap();
            old.phase = leaving();
            tx.put_container(&old).unwrap();
        },
        |tx| {
            let (old, young) = (tx.container(id(2, 2)).unwrap().unwrap(), tx.container(id(2, 1)).unwrap().unwrap());
            assert_eq!(old.phase, leaving());
            assert_eq!(tx.container_named("c1").unwrap(), Some(young.clone()));
            assert_eq!(tx.containers().unwrap(), [old.clone(), young.clone()]);
            assert_eq!(tx.containers_with_prefix("0200000002").unwrap(), [old]);
            assert_eq!(tx.containers_with_prefix("02").unwrap().len(), 2);
            assert_eq!(tx.container_in(u64::MAX, 1 << 63).unwrap(), Some(young));
            assert_eq!(tx.container_in(u64::MAX, 1).unwrap(), None);
        },
    );
    in_transaction(|tx| {
        let mut row = container(1);
        row.sandbox = Some(sandbox(4, 5));
        tx.put_container(&row).unwrap();
        let sharer = portolan_model::Container { sandbox: row.sandbox.clone(), ..container(2) };
        tx.put_container(&sharer).unwrap();
        assert_eq!(tx.container_in(4, 5).unwrap(), Some(row.clone()), "the owner of a shared stack");
        row.sandbox = None;
        tx.put_container(&row).unwrap();
        assert_eq!(tx.container_in(4, 5).unwrap(), Some(sharer));
        tx.delete_container(row.id).unwrap();
        assert_eq!(tx.container(row.id).unwrap(), None);
        tx.delete_container(row.id).unwrap();
    });
}

/// An endpoint without limits is written as before there were any, and read from such a row.
#[test]
fn limits_of_bandwidth_are_kept() {
    let plain = endpoint(1, id(2, 1), id(1, 1), &[]);
    let text = serde_json::to_string(&plain).unwrap();
    assert!(!text.contains("bandwidth"), "{text}");
    assert_eq!(serde_json::from_str::<portolan_model::Endpoint>(&text).unwrap(), plain);
    let mut limited = plain;
    limited.bandwidth.out =
        Some(portolan_model::Limit { rate: "100mbit".parse().unwrap(), burst: Some("64kb".parse().unwrap()) });
    let text = serde_json::to_string(&limited).unwrap();
    assert!(text.contains(r#""bandwidth":{"out":{"rate":100000000,"burst":524288}}"#), "{text}");
    assert_eq!(serde_json::from_str::<portolan_model::Endpoint>(&text).unwrap(), limited);
    assert!(serde_json::from_str::<portolan_model::Endpoint>(&text.replace("100000000", "0")).is_err());
}

#[test]
fn endpoints_in_the_order_they_were_made() {
    in_transaction(|tx| {
        let (one, web, db) = (id(2, 1), id(1, 1), id(1, 2));
        let mut rows = [endpoint(9, one, web, &[]), endpoint(3, one, db, &[]), endpoint(7, one, web, &[])];
        rows.iter().for_each(|row| tx.put_endpoint(row).unwrap());
        rows[0].gateway_priority = 5;
        rows[2].host_end = parse("pv70");
        rows.iter().for_each(|row| tx.put_endpoint(row).unwrap());
        assert_eq!(tx.endpoints_of(one).unwrap(), rows);
        assert_eq!(tx.endpoints_on(web).unwrap(), [rows[0].clone(), rows[2].clone()]);
        assert_eq!(tx.endpoint(rows[1].id).unwrap(), Some(rows[1].clone()));
        assert_eq!(tx.endpoint(id(3, 1)).unwrap(), None);
        assert_eq!(tx.endpoint_count(web, 1).unwrap(), 1);
        assert_eq!(tx.endpoint_count(web, usize::MAX).unwrap(), 2);
        assert_eq!(tx.endpoint_count(id(1, 3), 5).unwrap(), 0);
        assert!(tx.host_end_taken("pv70").unwrap() && !tx.host_end_taken("pv7").unwrap());
        assert_eq!(tx.mac_holder(web, mac(9)).unwrap(), Some(rows[0].id));
        assert_eq!(tx.mac_holder(db, mac(9)).unwrap(), None);
        tx.delete_endpoint(rows[0].id).unwrap();
        tx.delete_endpoint(rows[0].id).unwrap();
        assert_eq!(tx.mac_holder(web, mac(9)).unwrap(), None);
    });
}

#[test]
fn uniqueness_has_a_last_line_of_defence() {
    let refused = |result: Result<(), StoreError>| {
        assert!(matches!(result, Err(StoreError::Io { doing: "write state file", .. })), "{result:?}");
    };
    in_transaction(|tx| {
        tx.put_network(&network(1, "web")).unwrap();
        refused(tx.put_network(&network(2, "web")));
        tx.put_container(&container(1)).unwrap();
        refused(tx.put_container(&portolan_model::Container { id: id(2, 2), ..container(1) }));
        let row = endpoint(1, id(2, 1), id(1, 1), &[]);
        tx.put_endpoint(&row).unwrap();
        let other = endpoint(2, id(2, 2), id(1, 1), &[]);
        refused(tx.put_endpoint(&portolan_model::Endpoint { mac: row.mac, ..other.clone() }));
        refused(tx.put_endpoint(&portolan_model::Endpoint { host_end: row.host_end.clone(), ..other.clone() }));
        let twin = portolan_model::Endpoint { container: row.container, ifname: row.ifname.clone(), ..other.clone() };
        refused(tx.put_endpoint(&twin));
        // The failures left the transaction whole.
        tx.put_endpoint(&other).unwrap();
        tx.take_lease(row.network, parse("10.0.0.2"), row.id, row.mac).unwrap();
        tx.take_lease(row.network, parse("10.0.0.2"), row.id, row.mac).unwrap();
        refused(tx.take_lease(row.network, parse("10.0.0.2"), other.id, other.mac));
    });
}

#[test]
fn leases_rest_in_the_order_they_were_freed() {
    in_transaction(|tx| {
        let web = id(1, 1);
        let (first, last) = (parse("10.0.0.1"), parse("10.255.255.254"));
        assert_eq!(tx.oldest_resting(web, first, last).unwrap(), None);
        for number in [2, 3, 4] {
            let (v4, v6) = (format!("10.0.0.{number}"), format!("fd00::{number}"));
            let row = endpoint(number, id(2, 1), web, &[&format!("{v4}/8"), &format!("{v6}/64")]);
            tx.put_endpoint(&row).unwrap();
            tx.take_lease(web, parse(&v4), row.id, row.mac).unwrap();
            tx.take_lease(web, parse(&v6), row.id, row.mac).unwrap();
        }
        assert_eq!(tx.lease_count(web, Family::V4).unwrap(), 3);
        assert_eq!(tx.lease_count(web, Family::V6).unwrap(), 3);
        for number in [3, 2] {
            tx.delete_endpoint(id(3, number)).unwrap();
        }
        assert_eq!(tx.lease_count(web, Family::V4).unwrap(), 1);
        let held = LeaseRow { endpoint: Some(id(3, 4)), mac: Some(mac(4)) };
        assert_eq!(tx.lease(web, parse("10.0.0.4")).unwrap(), Some(held));
        assert_eq!(tx.lease(web, parse("fd00::3")).unwrap(), Some(LeaseRow { endpoint: None, mac: Some(mac(3)) }));
        assert_eq!(tx.lease(web, parse("10.0.0.9")).unwrap(), None);
        let rests = |number, address| Some(RestingLease { address: parse(address), mac: Some(mac(number)) });
        assert_eq!(tx.oldest_resting(web, first, last).unwrap(), rests(3, "10.0.0.3"));
        assert_eq!(tx.oldest_resting(web, first, parse("10.0.0.2")).unwrap(), rests(2, "10.0.0.2"));
        assert_eq!(tx.oldest_resting(web, parse("10.0.0.4"), last).unwrap(), None);
        assert_eq!(tx.oldest_resting(web, parse("fd00::"), parse("fd00::ffff")).unwrap(), rests(3, "fd00::3"));
        assert_eq!(tx.oldest_resting(id(1, 2), first, last).unwrap(), None);
        tx.take_lease(web, parse("10.0.0.3"), id(3, 4), mac(4)).unwrap();
        assert_eq!(tx.oldest_resting(web, first, last).unwrap(), rests(2, "10.0.0.2"));
    });
}

#[test]
fn leases_of_one_endpoint_rest_one_by_one() {
    in_transaction(|tx| {
        let row = endpoint(1, id(2, 1), id(1, 1), &["10.0.0.2/8", "10.0.0.3/8"]);
        tx.put_endpoint(&row).unwrap();
        for address in ["10.0.0.2", "10.0.0.3"] {
            tx.take_lease(row.network, parse(address), row.id, row.mac).unwrap();
        }
        tx.delete_endpoint(row.id).unwrap();
        let mut rested = BTreeSet::new();
        while let Some(lease) = tx.oldest_resting(row.network, parse("10.0.0.1"), parse("10.0.0.9")).unwrap() {
            tx.take_lease(row.network, lease.address, id(3, 9), mac(9)).unwrap();
            rested.insert(lease.address.to_string());
        }
        assert_eq!(rested.len(), 2);
    });
}

#[test]
fn endless_subnets_forget_all_but_1024_resting_addresses() {
    for (prefix, kept) in [("64", 1024), ("112", 1100)] {
        in_transaction(|tx| {
            let web = id(1, 1);
            for number in 1..=1100u32 {
                let address = format!("fd00::{number:x}");
                let row = endpoint(number, id(2, 1), web, &[&format!("{address}/{prefix}")]);
                tx.put_endpoint(&row).unwrap();
                tx.take_lease(web, parse(&address), row.id, row.mac).unwrap();
                // It belongs to another subnet, so it stays.
                if number == 1 {
                    tx.take_lease(web, parse("fd01::1"), row.id, row.mac).unwrap();
                }
                tx.delete_endpoint(row.id).unwrap();
            }
            let known = |n: u32| tx.lease(web, parse(&format!("fd00::{n:x}"))).unwrap().is_some();
            assert_eq!((1..=1100).filter(|n| known(*n)).count(), kept, "/{prefix}");
            assert!(known(1100) && known(1100 - 1023));
            assert_eq!(known(1100 - 1024), kept == 1100);
            assert!(tx.lease(web, parse("fd01::1")).unwrap().is_some());
        });
    }
}

#[test]
fn a_lease_that_rests_is_the_last_to_be_had_again() {
    in_transaction(|tx| {
        let web = id(1, 1);
        let oldest = || {
            let resting = tx.oldest_resting(web, parse("10.0.0.1"), parse("10.0.0.9")).unwrap();
            resting.map(|resting| resting.address.to_string())
        };
        tx.take_lease(web, parse("10.0.0.2"), id(5, 1), mac(2)).unwrap();
        tx.take_lease(web, parse("10.0.0.3"), id(5, 1), mac(3)).unwrap();
        assert_eq!(tx.leases(web).unwrap(), [(parse("10.0.0.2"), id(5, 1)), (parse("10.0.0.3"), id(5, 1))]);
        tx.rest_lease(web, parse("10.0.0.2/24")).unwrap();
        assert_eq!(tx.leases(web).unwrap(), [(parse("10.0.0.3"), id(5, 1))]);
        assert_eq!(tx.lease(web, parse("10.0.0.2")).unwrap().unwrap().mac, Some(mac(2)), "its MAC is remembered");
        // One that nobody had can rest as well.
        tx.rest_lease(web, parse("10.0.0.7/24")).unwrap();
        assert_eq!(oldest().as_deref(), Some("10.0.0.2"));
        tx.rest_lease(web, parse("10.0.0.2/24")).unwrap();
        assert_eq!(oldest().as_deref(), Some("10.0.0.7"));
        assert_eq!(tx.leases(id(1, 2)).unwrap(), []);
    });
}

#[test]
fn pools_and_their_leases() {
    in_transaction(|tx| {
        let (one, mut two) = (pool(1, "10.8.0.0/16"), pool(2, "10.9.0.0/24"));
        tx.put_pool(&two).unwrap();
        tx.put_pool(&one).unwrap();
        tx.put_pool(&pool(3, "fd00:9::/64")).unwrap();
        two.subnet.gateway = Some(parse("10.9.0.1"));
        tx.put_pool(&two).unwrap();
        assert_eq!(tx.pool(two.id).unwrap(), Some(two.clone()));
        let nets: Vec<String> = tx.pools().unwrap().iter().map(|pool| pool.subnet.net.to_string()).collect();
        assert_eq!(nets, ["10.8.0.0/16", "10.9.0.0/24", "fd00:9::/64"]);
        let over = |net: &str| tx.pool_overlapping(parse(net)).unwrap().map(|pool| pool.id);
        for (net, whose) in [
            ("10.8.0.0/16", Some(one.id)),
            ("10.8.255.0/24", Some(one.id)),
            ("10.0.0.0/8", Some(two.id)),
            ("10.9.0.128/25", Some(two.id)),
            ("10.9.1.0/24", None),
            ("10.7.0.0/16", None),
            ("fd00:9::/80", Some(id(4, 3))),
            ("fd00:a::/64", None),
        ] {
            assert_eq!(over(net), whose, "{net}");
        }
        tx.take_lease(two.id, parse("10.9.0.2"), two.holder, mac(2)).unwrap();
        tx.put_lease_cursor(two.id, parse("10.9.0.0/24"), parse("10.9.0.2")).unwrap();
        tx.delete_pool(two.id).unwrap();
        assert_eq!((tx.pool(two.id).unwrap(), over("10.9.0.0/24")), (None, None));
        assert_eq!(tx.lease(two.id, parse("10.9.0.2")).unwrap(), None);
        assert_eq!(tx.lease_cursor(two.id, parse("10.9.0.0/24")).unwrap(), None);
    });
}

#[test]
fn cursors_per_subnet() {
    in_transaction(|tx| {
        let (web, v4, v6): (_, IpNet, IpNet) = (id(1, 1), parse("10.0.0.0/24"), parse("fd00::/64"));
        assert_eq!(tx.lease_cursor(web, v4).unwrap(), None);
        tx.put_lease_cursor(web, v4, parse("10.0.0.2")).unwrap();
        tx.put_lease_cursor(web, v4, parse("10.0.0.3")).unwrap();
        tx.put_lease_cursor(web, v6, parse("fd00::2")).unwrap();
        assert_eq!(tx.lease_cursor(web, v4).unwrap(), Some(parse("10.0.0.3")));
        assert_eq!(tx.lease_cursor(web, v6).unwrap(), Some(parse("fd00::2")));
        assert_eq!(tx.lease_cursor(web, parse("10.0.0.0/8")).unwrap(), None);
    });
}

#[test]
fn publications_in_the_order_they_were_asked_for() {
    in_transaction(|tx| {
        let one = id(2, 1);
        let mut rows = vec![
            publication(one, "tcp", None, "8080"),
            publication(one, "udp", None, "8080"),
            publication(one, "tcp", Some("127.0.0.1"), "80"),
            publication(one, "tcp", Some("::1"), "80"),
            publication(one, "tcp", None, "7000-7100"),
        ];
        rows[0].publication.container = parse("81");
        rows.iter().for_each(|row| tx.put_publication(row).unwrap());
        rows[1].phase = pending();
        rows[3].phase = leaving();
        rows.iter().for_each(|row| tx.put_publication(row).unwrap());
        assert_eq!(tx.publications_of(one).unwrap(), rows);
        let gone = rows.remove(2);
        tx.delete_publication(id(2, 2), &rows[0].publication).unwrap();
        tx.delete_publication(one, &gone.publication).unwrap();
        assert_eq!(tx.publications_of(one).unwrap(), rows);
        assert_eq!(tx.publications_of(id(2, 2)).unwrap(), []);
    });
}

#[test]
fn overlapping_publications_are_those_that_share_a_port() {
    // Ranges of every length around every power of two, against a plain comparison.
    let mut rows: Vec<PublicationRow> = Vec::new();
    for length in [1, 2, 3, 4, 5, 7, 8, 9, 100, 127, 128, 129, 1000, 32767, 32768, 65535u32] {
        for first in [1, 2, 500, 1000, 1024, 30000, 65535 - length + 1] {
            let last = first + length - 1;
            if last <= 65535 {
                let host = if first == last { first.to_string() } else { format!("{first}-{last}") };
                let row = publication(id(2, length), "tcp", None, &host);
                if !rows.contains(&row) {
                    rows.push(row);
                }
            }
        }
    }
    in_transaction(|tx| {
        rows.iter().for_each(|row| tx.put_publication(row).unwrap());
        tx.put_publication(&publication(id(2, 1), "udp", None, "1-65535")).unwrap();
        for ports in
            ["1", "2", "3", "499", "500", "999-1000", "1023-1025", "1124", "1500-29999", "33000", "65535", "1-65535"]
        {
            let ports = parse(ports);
            let wanted: Vec<_> = rows.iter().filter(|r| r.publication.host.overlaps(ports)).cloned().collect();
            assert_eq!(tx.publications_overlapping(parse("tcp"), ports).unwrap(), wanted, "{ports}");
        }
        assert_eq!(tx.publications_overlapping(parse("udp"), parse("77")).unwrap().len(), 1);
        assert_eq!(tx.publications_overlapping(parse("sctp"), parse("77")).unwrap(), []);
    });
}

#[test]
fn transitions_oldest_first() {
    in_transaction(|tx| {
        let mut port = publication(id(2, 1), "tcp", None, "80");
        port.phase = pending();
        tx.put_publication(&port).unwrap();
        let mut web = network(1, "web");
        web.phase = pending();
        tx.put_network(&web).unwrap();
        let mut eth = endpoint(1, id(2, 1), web.id, &[]);
        eth.phase = pending();
        tx.put_endpoint(&eth).unwrap();
        let mut one = container(1);
        one.phase = leaving();
        tx.put_container(&one).unwrap();
        tx.put_container(&container(2)).unwrap();
        // From pending to leaving it is as old as before.
        web.phase = leaving();
        tx.put_network(&web).unwrap();
        let of_eth = Transition::Endpoint { endpoint: eth.id, container: eth.container };
        let all = [
            (Transition::Publication(port.clone()), pending()),
            (Transition::Network(web.id), leaving()),
            (of_eth, pending()),
            (Transition::Container(one.id), leaving()),
        ];
        assert_eq!(tx.transitions(10).unwrap(), all);
        assert_eq!(tx.transitions(2).unwrap(), all[..2]);
        assert_eq!(tx.transitions(0).unwrap(), []);
        // A row that settled and left again is young.
        port.phase = Phase::Settled;
        tx.put_publication(&port).unwrap();
        assert_eq!(tx.transitions(10).unwrap(), all[1..]);
        port.phase = leaving();
        tx.put_publication(&port).unwrap();
        assert_eq!(tx.transitions(usize::MAX).unwrap().last().unwrap().0, Transition::Publication(port.clone()));
        tx.delete_network(web.id).unwrap();
        tx.delete_endpoint(eth.id).unwrap();
        tx.delete_container(one.id).unwrap();
        tx.delete_publication(port.container, &port.publication).unwrap();
        assert_eq!(tx.transitions(10).unwrap(), []);
    });
}

#[test]
fn a_transaction_is_all_or_nothing_and_a_view_is_stable() {
    let scratch = Scratch::new();
    let store = SqliteStore::open(&scratch.root()).unwrap();
    let guard = store.lock().unwrap();
    let dropped = store.write(&guard).unwrap();
    dropped.put_meta("a", Some("1")).unwrap();
    assert_eq!(store.read().unwrap().meta("a").unwrap(), None, "not committed");
    drop(dropped);
    let before = store.read().unwrap();
    let tx = store.write(&guard).unwrap();
    assert_eq!(tx.meta("a").unwrap(), None, "rolled back");
    tx.put_meta("a", Some("2")).unwrap();
    tx.commit(Durability::Process).unwrap();
    assert_eq!(before.meta("a").unwrap(), None, "the view is from before the commit");
    assert_eq!(store.read().unwrap().meta("a").unwrap().as_deref(), Some("2"));
    before.commit(Durability::Process).unwrap();
}

#[test]
fn a_view_changes_nothing() {
    let scratch = Scratch::new();
    let store = SqliteStore::open(&scratch.root()).unwrap();
    let tx = store.read().unwrap();
    let refused = tx.put_meta("a", Some("1")).unwrap_err();
    assert_eq!(refused.to_string(), format!("write state file `{}`", store.path().display()));
}

#[test]
fn changes_can_be_followed() {
    let scratch = Scratch::new();
    let store = SqliteStore::open(&scratch.root()).unwrap();
    let guard = store.lock().unwrap();
    let change = |what: &dyn Fn(&SqliteTx<'_>)| {
        let tx = store.write(&guard).unwrap();
        what(&tx);
        tx.commit(Durability::Process).unwrap();
    };
    let since = |revision| store.read().unwrap().touched_since(revision).unwrap();
    assert_eq!(since(0), Some((0, BTreeSet::new())));
    assert_eq!(since(1), None, "there was no such commit");

    let (web, somebody) = (network(1, "web"), container(1));
    change(&|tx| tx.put_network(&web).unwrap());
    change(&|tx| tx.put_meta("boot", Some("x")).unwrap());
    assert_eq!(since(0), Some((1, BTreeSet::from([Touched::Network(web.id)]))), "single values are nobody's business");
    let row = endpoint(1, somebody.id, web.id, &["10.0.0.2/8"]);
    change(&|tx| {
        tx.put_endpoint(&row).unwrap();
        tx.put_publication(&publication(somebody.id, "tcp", None, "80")).unwrap();
    });
    drop({
        let tx = store.write(&guard).unwrap();
        tx.delete_network(web.id).unwrap();
        tx
    });
    assert_eq!(since(1), Some((2, BTreeSet::from([Touched::Container(somebody.id)]))), "rolled back is not changed");
    change(&|tx| tx.delete_endpoint(row.id).unwrap());
    change(&|tx| tx.delete_network(web.id).unwrap());
    let all = BTreeSet::from([Touched::Network(web.id), Touched::Container(somebody.id)]);
    assert_eq!(since(0), Some((4, all.clone())));
    assert_eq!(since(2), Some((4, all)));
    assert_eq!(since(4), Some((4, BTreeSet::new())));
    assert_eq!(store.read().unwrap().revision().unwrap(), 4);

    // The log is bounded, and says so when it was asked for more than it has.
    for _ in 0..5000 {
        change(&|tx| tx.put_network(&web).unwrap());
    }
    assert_eq!(since(0), None);
    assert_eq!(since(4), None);
    assert_eq!(since(5000), Some((5004, BTreeSet::from([Touched::Network(web.id)]))));
}
