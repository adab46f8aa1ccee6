//! Leases of DHCP servers: what is granted is in row and kernel, wherever a step fails or the process dies.

#[path = "fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::path::Path;

use fake::{Host, gateways, lease};
use portolan_engine::{AttachRequest, EndpointRequest, Error, Kind, NetworkRequest};
use portolan_model::{DhcpLease, Driver, Endpoint, Family, Ipam};
use portolan_plan::Object;

const INSIDE: &str = "/ns/c";

/// Container `c` on network `lan`, whose addresses come by DHCP.
type World = Host;

fn request(options: &[(&str, &str)]) -> NetworkRequest {
    NetworkRequest {
        driver: Driver::Macvlan,
        ipam: Ipam::Dhcp,
        ipv6: false,
        options: options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        ..NetworkRequest::new("lan".parse().unwrap())
    }
}

impl World {
    fn new(name: &str) -> Self {
        let host = Self::empty(&format!("leases-{name}"));
        host.engine.create_network(&request(&[("parent", "eth0")])).unwrap();
        host.kernel.make_namespace(Path::new(INSIDE));
        host.engine
            .attach(&AttachRequest {
                name: Some("c".parse().unwrap()),
                endpoints: vec![EndpointRequest::new("lan")],
                ..AttachRequest::namespace(INSIDE)
            })
            .unwrap();
        host
    }

    fn endpoint(&self) -> Endpoint {
        self.engine.container("c").unwrap().endpoints.remove(0).0
    }

    fn set(&self, lease: Option<DhcpLease>) -> Result<(), Error> {
        self.engine.set_lease(self.endpoint().id, Family::V4, lease)
    }

    /// The addresses that the kernel holds inside.
    fn addresses(&self) -> Vec<String> {
        let objects = self.kernel.objects();
        let addresses = objects.iter().filter_map(|(_, object)| match object {
            Object::Interface(interface) => Some(interface.addresses.clone()),
            _ => None,
        });
        addresses.flatten().map(|address| address.to_string()).collect()
    }

    #[track_caller]
    fn check(&self, address: Option<&str>) {
        let row: Vec<String> = self.endpoint().addresses.iter().map(|a| a.address.to_string()).collect();
        let wanted: Vec<String> = address.iter().map(ToString::to_string).collect();
        assert_eq!(row, wanted);
        assert_eq!(self.addresses(), wanted);
        assert_eq!(self.engine.verify().unwrap(), []);
    }
}

#[test]
fn what_is_granted_is_in_force_until_it_ends() {
    let world = World::new("life");
    world.check(None);
    world.set(Some(lease("10.0.1.50/24"))).unwrap();
    world.check(Some("10.0.1.50/24"));
    assert_eq!(gateways(&world.kernel.objects(), Path::new(INSIDE)), [[10, 0, 1, 2].into()].into());
    world.set(Some(DhcpLease { obtained: 60, ..lease("10.0.1.50/24") })).unwrap();
    assert_eq!(world.endpoint().leases.v4.unwrap().obtained, 60, "a renewal is remembered");
    world.set(Some(lease("10.0.1.60/24"))).unwrap();
    world.check(Some("10.0.1.60/24"));
    world.set(None).unwrap();
    world.check(None);
    assert_eq!(gateways(&world.kernel.objects(), Path::new(INSIDE)), [].into());
    world.set(Some(lease("10.0.1.60/24"))).unwrap();
    world.engine.detach("c").unwrap();
    assert!(world.kernel.objects().is_empty());
}

#[test]
fn a_refusal_leaves_what_there_was() {
    let world = World::new("refusal");
    world.set(Some(lease("10.0.1.50/24"))).unwrap();
    for n in 1.. {
        let (result, has_failed) = world.kernel.failing_at(n, || world.set(Some(lease("10.0.1.60/24"))));
        if !has_failed {
            result.unwrap();
            assert!(n > 1);
            break;
        }
        let error = result.unwrap_err().to_string();
        assert_eq!(error, "give `c` its address 10.0.1.60/24 on `lan`");
        world.check(Some("10.0.1.50/24"));
    }
    world.check(Some("10.0.1.60/24"));
}

#[test]
fn a_death_anywhere_is_made_good_by_the_next_renewal() {
    let world = World::new("death");
    for n in 1.. {
        let address = format!("10.0.1.{}/24", 50 + n);
        if world.kernel.dying_at(n, || world.set(Some(lease(&address)))).is_some() {
            assert!(n > 3, "{n}");
            break;
        }
        world.set(Some(lease(&address))).unwrap();
        world.check(Some(&address));
        world.set(None).unwrap();
    }
}

#[test]
fn what_is_gone_has_no_lease() {
    let world = World::new("gone");
    let id = world.endpoint().id;
    let error = world.engine.set_lease(id, Family::V6, None).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound, "the network speaks no IPv6");
    world.engine.detach("c").unwrap();
    let error = world.engine.set_lease(id, Family::V4, Some(lease("10.0.1.50/24"))).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(world.kernel.objects().is_empty());
}

#[test]
fn dhcp_is_for_what_a_server_can_reach() {
    let world = World::new("drivers");
    let create = |request: NetworkRequest| {
        world.engine.create_network(&NetworkRequest { name: "other".parse().unwrap(), ..request })
    };
    let parent = [("parent", "eth0")];
    for (driver, options, why) in [
        (Driver::Ipvlan, &parent[..], "ipam driver dhcp is not supported with ipvlan"),
        (Driver::Bridge, &[], "ipam driver dhcp is not supported on a bridge of ours"),
    ] {
        let error = create(NetworkRequest { driver, ..request(options) }).unwrap_err();
        assert_eq!(error.to_string(), why);
        assert!(error.hint().is_some());
        // Nobody's addresses fit everywhere.
        create(NetworkRequest { driver, ipam: Ipam::None, ..request(options) }).unwrap();
        world.engine.remove_network("other").unwrap();
    }
    let subnets = vec!["10.0.1.0/24".parse().unwrap()];
    let error = create(NetworkRequest { subnets, ..request(&parent) }).unwrap_err();
    assert_eq!(error.to_string(), "IPAM driver `dhcp`: no subnet goes with it, as it gives none of our addresses");
}
