//! Limits of bandwidth, changed live: in row and kernel, wherever a step fails or the process dies.

#[path = "fake/mod.rs"]
#[allow(dead_code, reason = "each test crate uses its part")]
mod fake;

use std::path::Path;

use fake::Host;
use portolan_engine::{AttachRequest, BandwidthChange, EndpointRequest, Error, Kind, NetworkRequest};
use portolan_model::{Bandwidth, Driver, Limit};
use portolan_plan::Object;

const INSIDE: &str = "/ns/c";

/// Container `c` on networks `a` and `b`.
type World = Host;

fn limit(rate: &str) -> Limit {
    Limit { rate: rate.parse().unwrap(), burst: None }
}

fn both(rate: &str) -> BandwidthChange {
    BandwidthChange { into: Some(Some(limit(rate))), out: Some(Some(limit(rate))) }
}

const NONE: BandwidthChange = BandwidthChange { into: Some(None), out: Some(None) };

impl World {
    fn new(name: &str) -> Self {
        let host = Self::empty(&format!("bandwidth-{name}"));
        for name in ["a", "b"] {
            host.engine.create_network(&NetworkRequest::new(name.parse().unwrap())).unwrap();
        }
        host.kernel.make_namespace(Path::new(INSIDE));
        host.engine
            .attach(&AttachRequest {
                name: Some("c".parse().unwrap()),
                endpoints: vec![EndpointRequest::new("a"), EndpointRequest::new("b")],
                ..AttachRequest::namespace(INSIDE)
            })
            .unwrap();
        host
    }

    fn set(&self, change: BandwidthChange) -> Result<(), Error> {
        self.engine.set_bandwidth("c", None, change).map(drop)
    }

    /// The limits in the rows, after checking that the kernel holds the same.
    #[track_caller]
    fn limits(&self) -> [String; 2] {
        assert_eq!(self.engine.verify().unwrap(), []);
        let rows: Vec<Bandwidth> =
            self.engine.container("c").unwrap().endpoints.iter().map(|(endpoint, _)| endpoint.bandwidth).collect();
        let wanted: usize =
            rows.iter().map(|row| usize::from(row.into.is_some()) + usize::from(row.out.is_some())).sum();
        let found = self.kernel.objects().iter().filter(|(_, object)| matches!(object, Object::Shaper(_))).count();
        assert_eq!(found, wanted);
        [rows[0].to_string(), rows[1].to_string()]
    }
}

#[test]
fn what_is_not_said_stays() {
    let world = World::new("life");
    assert_eq!(world.limits(), ["unlimited", "unlimited"]);
    world.set(both("1mbit")).unwrap();
    assert_eq!(world.limits(), ["1mbit in, 1mbit out"; 2]);
    let out = BandwidthChange { out: Some(Some(limit("2mbit"))), into: None };
    world.engine.set_bandwidth("c", Some("b"), out).unwrap();
    assert_eq!(world.limits(), ["1mbit in, 1mbit out", "1mbit in, 2mbit out"]);
    world.engine.set_bandwidth("c", Some("a"), BandwidthChange { into: Some(None), out: None }).unwrap();
    assert_eq!(world.limits(), ["1mbit out", "1mbit in, 2mbit out"]);
    world.engine.disconnect("c", "b").unwrap();
    world.set(NONE).unwrap();
    world.set(both("3mbit")).unwrap();
    world.engine.detach("c").unwrap();
    assert!(!world.kernel.objects().iter().any(|(_, object)| matches!(object, Object::Shaper(_))));
}

#[test]
fn a_refusal_leaves_what_there_was() {
    let world = World::new("refusal");
    for (before, after) in [(NONE, both("2mbit")), (both("2mbit"), both("3mbit")), (both("3mbit"), NONE)] {
        world.set(before).unwrap();
        let was = world.limits();
        for n in 1.. {
            let (result, has_failed) = world.kernel.failing_at(n, || world.set(after));
            if !has_failed {
                result.unwrap();
                assert!(n > 4, "{n}");
                break;
            }
            assert_eq!(result.unwrap_err().to_string(), "limit the bandwidth of `c`");
            assert_eq!(world.limits(), was, "step {n}");
        }
        assert_ne!(world.limits(), was);
    }
}

#[test]
fn a_death_anywhere_is_made_good() {
    let world = World::new("death");
    for (before, after) in [(NONE, both("2mbit")), (both("2mbit"), both("3mbit")), (both("3mbit"), NONE)] {
        for n in 1.. {
            world.set(before).unwrap();
            if world.kernel.dying_at(n, || world.set(after)).is_some() {
                assert!(n > 4, "{n}");
                break;
            }
            world.engine.reconcile().unwrap();
            world.limits();
        }
    }
}

#[test]
fn only_what_the_host_passes_on_is_limited() {
    let world = World::new("drivers");
    let options = [("parent".to_owned(), "eth0".to_owned())].into();
    let lan = NetworkRequest { driver: Driver::Macvlan, options, ..NetworkRequest::new("lan".parse().unwrap()) };
    world.engine.create_network(&lan).unwrap();
    let wanted = EndpointRequest {
        bandwidth: Bandwidth { into: Some(limit("1mbit")), out: None },
        ..EndpointRequest::new("lan")
    };
    let error = world.engine.connect("c", &wanted).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("driver `macvlan`"), "{error}");
    world.engine.connect("c", &EndpointRequest::new("lan")).unwrap();
    assert_eq!(world.set(both("1mbit")).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(world.engine.set_bandwidth("c", Some("nix"), NONE).unwrap_err().kind(), Kind::NotFound);
    world.set(NONE).unwrap();
    assert_eq!(world.limits(), ["unlimited", "unlimited"]);
}
