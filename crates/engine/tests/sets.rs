//! Sets of ranges: an address of each, of the first range that has one free.

#[path = "fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::path::PathBuf;

use fake::{Host, gateways};
use portolan_engine::{AttachRequest, EndpointRequest, Error, NetworkRequest, RangeRequest};
use portolan_model::{Id, Network};

fn id(number: u64) -> Id {
    format!("{number:064x}").parse().unwrap()
}

fn path(number: u64) -> PathBuf {
    format!("/ns/c{number}").into()
}

/// `SUBNET RANGE GATEWAY`, the range `-` for all.
fn range(text: &str) -> RangeRequest {
    let [net, range, gateway] = text.split(' ').collect::<Vec<_>>()[..] else { panic!("{text}") };
    RangeRequest {
        net: net.parse().unwrap(),
        range: (range != "-").then(|| range.parse().unwrap()),
        gateway: Some(gateway.parse().unwrap()),
    }
}

fn network(sets: &[&[&str]]) -> NetworkRequest {
    NetworkRequest {
        id: Some(id(0xffff)),
        exact: true,
        sets: sets.iter().map(|set| set.iter().map(|text| range(text)).collect()).collect(),
        ..NetworkRequest::new("pods".parse().unwrap())
    }
}

struct Pods {
    host: Host,
    network: NetworkRequest,
}

impl Pods {
    fn new(name: &str, sets: &[&[&str]]) -> Self {
        Self { host: Host::empty(name), network: network(sets) }
    }

    fn endpoint(&self, addresses: &[&str]) -> EndpointRequest {
        EndpointRequest {
            transient: Some(self.network.clone()),
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            ..EndpointRequest::new("pods")
        }
    }

    /// The addresses that a container gets.
    fn add(&self, number: u64, addresses: &[&str]) -> Result<Vec<String>, Error> {
        self.host.kernel.make_namespace(&path(number));
        let request = AttachRequest {
            id: Some(id(number)),
            name: Some(format!("c{number}").parse().unwrap()),
            endpoints: vec![self.endpoint(addresses)],
            ..AttachRequest::namespace(path(number))
        };
        let joined = self.host.engine.join(&request)?;
        let (endpoint, _) = joined.endpoints.first().unwrap();
        Ok(endpoint.addresses.iter().map(|one| one.address.to_string()).collect())
    }

    fn del(&self, number: u64) {
        self.host.engine.leave(&id(number).to_string(), &[id(0xffff).to_string()]).unwrap();
    }

    fn row(&self) -> Network {
        self.host.engine.network("pods").unwrap().network
    }

    fn gateways(&self, number: u64) -> Vec<String> {
        gateways(&self.host.kernel.objects(), &path(number)).iter().map(ToString::to_string).collect()
    }
}

#[test]
fn the_next_range_gives_when_the_first_is_full() {
    let sets: [&[&str]; 2] =
        [&["10.1.0.0/30 - 10.1.0.1", "10.2.0.0/24 10.2.0.50-10.2.0.51 10.2.0.1"], &["fd01::/64 - fd01::1"]];
    let pods = Pods::new("sets-next", &sets);
    assert_eq!(pods.add(1, &[]).unwrap(), ["10.1.0.2/30", "fd01::2/64"]);
    assert_eq!(pods.add(2, &[]).unwrap(), ["10.2.0.50/24", "fd01::3/64"]);
    assert_eq!(pods.add(3, &[]).unwrap(), ["10.2.0.51/24", "fd01::4/64"]);
    assert_eq!(pods.gateways(1), ["10.1.0.1", "fd01::1"]);
    assert_eq!(pods.gateways(3), ["10.2.0.1", "fd01::1"]);
    let before = pods.host.kernel.objects();
    let error = pods.add(4, &[]).unwrap_err();
    assert!(matches!(error, Error::AddressesExhausted { .. }));
    assert_eq!(error.to_string(), "network `pods` has no free address left in 10.1.0.0/30, 10.2.0.50/31");
    assert_eq!(pods.host.engine.could_join(&pods.endpoint(&[])).unwrap_err().to_string(), error.to_string());
    assert!(pods.host.kernel.objects() == before, "a refusal changes nothing");
    pods.del(1);
    pods.host.engine.could_join(&pods.endpoint(&[])).unwrap();
    assert_eq!(pods.add(4, &[]).unwrap()[0], "10.1.0.2/30");
    pods.del(2);
    assert_eq!(pods.add(5, &[]).unwrap()[0], "10.2.0.50/24");
}

#[test]
fn ranges_of_one_subnet() {
    let sets: [&[&str]; 1] = [&["10.1.0.0/24 10.1.0.10-10.1.0.11 10.1.0.1", "10.1.0.0/24 10.1.0.1-10.1.0.4 10.1.0.2"]];
    let pods = Pods::new("sets-one", &sets);
    let given: Vec<String> = (1..=4).map(|number| pods.add(number, &[]).unwrap().concat()).collect();
    // No gateway of the network is given out.
    assert_eq!(given, ["10.1.0.10/24", "10.1.0.11/24", "10.1.0.3/24", "10.1.0.4/24"]);
    assert_eq!((pods.gateways(2), pods.gateways(4)), (vec!["10.1.0.1".to_owned()], vec!["10.1.0.2".to_owned()]));
    assert!(matches!(pods.add(5, &[]), Err(Error::AddressesExhausted { .. })));
    for number in 1..=4 {
        pods.del(number);
        assert_eq!(pods.add(number, &[]).unwrap(), [given[number as usize - 1].clone()]);
    }
    // A row that was written is read as it was.
    let row = pods.row();
    assert_eq!(row.subnets.iter().map(|subnet| subnet.fallback).collect::<Vec<_>>(), [false, true]);
    assert!(row.transient);
}

#[test]
fn an_address_asked_for_is_of_its_own_set() {
    let sets: [&[&str]; 2] = [&["10.1.0.0/24 - 10.1.0.1", "10.2.0.0/24 - 10.2.0.1"], &["10.3.0.0/30 - 10.3.0.1"]];
    let pods = Pods::new("sets-asked", &sets);
    assert_eq!(pods.add(1, &["10.2.0.9"]).unwrap(), ["10.2.0.9/24", "10.3.0.2/30"]);
    assert_eq!(pods.gateways(1), ["10.2.0.1"]);
    // Every set has to give one.
    let error = pods.add(2, &[]).unwrap_err();
    assert!(error.to_string().ends_with("10.3.0.0/30"), "{error}");
    assert!(pods.add(2, &["10.4.0.1"]).unwrap_err().to_string().contains("in no subnet"));
}

#[test]
fn a_network_in_use_keeps_its_sets() {
    let [a, b] = ["10.1.0.0/24 - 10.1.0.1", "10.2.0.0/24 - 10.2.0.1"];
    let mut pods = Pods::new("sets-keep", &[&[a, b]]);
    pods.add(1, &[]).unwrap();
    let others: [&[&[&str]]; 3] = [&[&[a], &[b]], &[&[b, a]], &[&["10.1.0.0/24 10.1.0.9-10.1.0.10 10.1.0.1", b]]];
    for other in others {
        pods.network = network(other);
        assert!(matches!(pods.add(2, &[]), Err(Error::InUse { .. })), "{other:?}");
    }
    pods.network = network(&[&[a, b]]);
    pods.add(2, &[]).unwrap();
}

#[test]
fn what_cannot_be() {
    let cases: [(&[&[&str]], &str); 8] = [
        (&[&[]], "has no range"),
        (&[&["10.1.0.0/24 - 10.1.0.1", "fd01::/64 - fd01::1"]], "is of another family"),
        (&[&["10.1.0.0/24 10.2.0.1-10.2.0.2 10.1.0.1"]], "is not in subnet"),
        (&[&["10.1.0.0/24 - 10.2.0.1"]], "is not in its subnet"),
        (&[&["10.1.0.0/24 - 10.1.0.255"]], "broadcast address"),
        (&[&["10.1.0.0/24 - 10.1.0.1", "10.1.0.0/25 - 10.1.0.1"]], "overlaps"),
        (&[&["10.1.0.0/24 - 10.1.0.1"], &["10.1.0.0/24 10.1.0.9-10.1.0.10 10.1.0.1"]], "overlaps"),
        (&[&["10.1.0.1/24 - 10.1.0.1"]], "host bits"),
    ];
    for (sets, why) in cases {
        let pods = Pods::new("sets-wrong", sets);
        let error = pods.add(1, &[]).unwrap_err().to_string();
        assert!(error.contains(why), "{sets:?}: {error}");
        assert!(pods.host.kernel.objects().is_empty());
    }
}
