//! What a network may claim of the host, and who gives way to whom.

#[path = "fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::path::Path;

use fake::Host;
use portolan_engine::{AttachRequest, EndpointRequest, NetworkRequest};
use portolan_model::{Driver, Network};

/// The host of these tests: `eth0` on 10.0.1.0/24.
type World = Host;

fn request(name: &str, driver: Driver, options: &[(&str, &str)], subnet: &str) -> NetworkRequest {
    NetworkRequest {
        driver,
        ipv6: false,
        options: options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        subnets: vec![subnet.parse().unwrap()],
        ..NetworkRequest::new(name.parse().unwrap())
    }
}

impl World {
    fn new(name: &str) -> Self {
        Self::empty(&format!("networks-{name}"))
    }

    fn create(&self, request: &NetworkRequest) -> Result<Network, String> {
        self.engine.create_network(request).map_err(|error| error.to_string())
    }

    fn attach(&self, name: &str, change: impl FnOnce(&mut AttachRequest, &mut EndpointRequest)) -> Result<(), String> {
        let path = format!("/ns/{name}");
        self.kernel.make_namespace(Path::new(&path));
        let (mut request, mut endpoint) = (AttachRequest::namespace(&path), EndpointRequest::new("net"));
        request.name = Some(name.parse().unwrap());
        change(&mut request, &mut endpoint);
        request.endpoints.push(endpoint);
        self.engine.attach(&request).map(drop).map_err(|error| error.to_string())
    }
}

#[test]
fn what_shares_the_lan_may_have_its_subnet() {
    let world = World::new("lan");
    let lan = "10.0.1.0/24";
    let error = world.create(&request("own", Driver::Bridge, &[], lan)).unwrap_err();
    assert!(error.contains("10.0.1.0/24") && error.contains("eth0"), "{error}");
    let unmanaged = [("mode", "unmanaged"), ("bridge", "eth0")];
    world.create(&request("theirs", Driver::Bridge, &unmanaged, lan)).unwrap();
    world.create(&request("child", Driver::Macvlan, &[("parent", "eth0")], "10.0.2.0/24")).unwrap();
}

#[test]
fn a_vlan_interface_goes_with_the_network_that_made_it() {
    let world = World::new("vlan");
    world.create(&request("ten", Driver::Macvlan, &[("parent", "eth0.10")], "10.1.0.0/24")).unwrap();
    let error = world.create(&request("more", Driver::Ipvlan, &[("parent", "eth0.10")], "10.2.0.0/24")).unwrap_err();
    assert_eq!(error, "VLAN interface of network `ten` exists already");
    world.engine.remove_network("ten").unwrap();
    world.create(&request("more", Driver::Ipvlan, &[("parent", "eth0.10")], "10.2.0.0/24")).unwrap();
}

#[test]
fn a_mac_is_chosen_only_where_there_is_one_to_choose() {
    for (driver, options, is_free) in [
        (Driver::Ipvlan, &[("parent", "eth0")][..], false),
        (Driver::Macvlan, &[("parent", "eth0"), ("macvlan_mode", "passthru")], false),
        (Driver::Macvlan, &[("parent", "eth0")], true),
        (Driver::Bridge, &[], true),
    ] {
        let world = World::new("mac");
        world.create(&request("net", driver, options, "10.1.0.0/24")).unwrap();
        let result = world.attach("box", |_, endpoint| endpoint.mac = Some("02:00:00:00:00:07".parse().unwrap()));
        if is_free {
            result.unwrap();
        } else {
            let why = "MAC `02:00:00:00:00:07`: cannot be chosen: interfaces on network `net` have their parent's";
            assert_eq!(result.unwrap_err(), why);
            assert!(world.engine.containers().unwrap().is_empty());
        }
    }
}

/// Whoever started it need not have told us that it is gone.
#[test]
fn the_dead_give_way_and_the_living_do_not() {
    type Wish = fn(&mut AttachRequest, &mut EndpointRequest);
    let wishes: [(&str, Wish); 4] = [
        ("an address", |_, endpoint| endpoint.addresses = vec!["10.1.0.9".parse().unwrap()]),
        ("a MAC", |_, endpoint| endpoint.mac = Some("02:00:00:00:00:07".parse().unwrap())),
        ("a host end", |_, endpoint| endpoint.host_end = Some("web0".parse().unwrap())),
        ("a port", |request, _| request.publish = vec!["8080:80".parse().unwrap()]),
    ];
    for (what, wish) in wishes {
        let world = World::new("dead");
        world.create(&request("net", Driver::Bridge, &[], "10.1.0.0/24")).unwrap();
        world.attach("old", wish).unwrap();
        world.attach("new", wish).expect_err(what);
        assert!(world.engine.container("old").unwrap().alive, "{what}");
        world.kernel.remove_namespace(Path::new("/ns/old"));
        world.attach("new", wish).unwrap_or_else(|error| panic!("{what}: {error}"));
        let left: Vec<String> =
            world.engine.containers().unwrap().iter().map(|info| info.container.name.to_string()).collect();
        assert_eq!(left, ["new"], "{what}");
        assert_eq!(world.engine.verify().unwrap(), [], "{what}");
    }
}
