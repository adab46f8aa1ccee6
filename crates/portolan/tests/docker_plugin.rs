//! Docker's plugin as a socket that anybody may write anything to; with a real Docker it is tried in `docker`.

mod common;

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use common::*;
use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::netns::{self, NetnsFd};
use portolan_kernel::rtnl::link::{self, LinkChange};
use portolan_kernel::rtnl::{Family, addr, route};
use portolan_lab::server::TcpServer;
use portolan_lab::{InNetns, eventually};
use serde_json::{Value, json};

const NETWORK: &str = "11111111111111111111111111111111111111111111111111111111111111aa";
const ENDPOINT: &str = "22222222222222222222222222222222222222222222222222222222222222bb";

struct Docker {
    world: World,
    socket: PathBuf,
}

impl Docker {
    fn or_skip(name: &str) -> Option<Self> {
        let mut world = World::or_skip(name)?;
        world.daemon = true;
        let socket = world.lab.dir().join("docker/portolan.sock");
        world.portolan_ok(&["daemon", "start", "--docker", socket.to_str().unwrap()]);
        Some(Self { world, socket })
    }

    /// Status and body of what is answered to a request.
    fn http(&self, head: &str, body: &[u8]) -> (u16, String) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        let length = body.len();
        write!(stream, "{head} HTTP/1.1\r\nHost: plugin\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n")
            .unwrap();
        // It need not be read to the end to be refused.
        let _ = stream.write_all(body);
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    }

    /// What is answered to a call, unless nobody is there to the end.
    fn try_call(&self, method: &str, body: &str) -> Option<Value> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(LONG)).ok()?;
        let head = format!("POST /{method} HTTP/1.1\r\nHost: plugin\r\nConnection: close\r\n");
        write!(stream, "{head}Content-Length: {}\r\n\r\n{body}", body.len()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    fn call(&self, method: &str, body: &Value) -> Value {
        let (status, answer) = self.http(&format!("POST /{method}"), body.to_string().as_bytes());
        assert_eq!(status, 200, "{method}: {answer}");
        serde_json::from_str(&answer).unwrap()
    }

    fn ipam(&self, method: &str, body: Value) -> Value {
        self.call(&format!("IpamDriver.{method}"), &body)
    }

    fn create_network(&self) -> Value {
        let pools = json!([{"AddressSpace": "LocalDefault", "Pool": "10.70.0.0/24", "Gateway": "10.70.0.1/24"}]);
        let options = json!({"com.docker.network.enable_ipv6": false, "com.docker.network.generic": {}});
        self.call(
            "NetworkDriver.CreateNetwork",
            &json!({"NetworkID": NETWORK, "Options": options, "IPv4Data": pools, "IPv6Data": []}),
        )
    }

    /// A call about the endpoint.
    fn about(&self, method: &str, more: Value) -> Value {
        let mut body = json!({"NetworkID": NETWORK, "EndpointID": ENDPOINT});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.call(&format!("NetworkDriver.{method}"), &body)
    }

    fn create_endpoint(&self) -> Value {
        self.about("CreateEndpoint", json!({"Interface": {"Address": "10.70.0.2/24"}, "Options": {}}))
    }

    fn publish(&self) -> Value {
        let port = json!([{"Proto": 6, "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}]);
        self.about("ProgramExternalConnectivity", json!({"Options": {"com.docker.network.portmap": port}}))
    }
}

#[test]
fn nonsense_is_refused_and_changes_nothing() {
    let Some(docker) = Docker::or_skip("docker-nonsense") else { return };
    let mode = std::fs::metadata(&docker.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "it is Docker's alone");
    let before = docker.world.state();
    let post = |method: &str, body: &[u8]| docker.http(&format!("POST /{method}"), body);
    assert_eq!(post("NetworkDriver.Fly", b"{}").0, 404);
    assert_eq!(post("VolumeDriver.Create", b"{}").0, 404);
    assert_eq!(post("", b"").0, 404);
    assert_eq!(docker.http("GET /Plugin.Activate", b"").0, 405);
    assert_eq!(post("NetworkDriver.CreateNetwork", &vec![b' '; 9 << 20]).0, 413);
    for (method, body, why) in [
        ("CreateNetwork", "", "NetworkID"),
        ("CreateNetwork", "{\"NetworkID\":", "read the request"),
        ("CreateNetwork", "[1, 2]", "read the request"),
        ("CreateNetwork", r#"{"NetworkID": "../../etc"}"#, "64 hexadecimal digits"),
        ("CreateNetwork", r#"{"NetworkID": 7}"#, "read the request"),
        ("CreateEndpoint", r#"{"NetworkID": "x", "EndpointID": "y", "Interface": {}}"#, "64 hexadecimal digits"),
        ("Join", r#"{"NetworkID": "x"}"#, "EndpointID"),
    ] {
        let (status, answer) = post(&format!("NetworkDriver.{method}"), body.as_bytes());
        assert_eq!(status, 200, "{method} {body}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["Err"].as_str().is_some_and(|said| said.contains(why)), "{method} {body}: {answer}");
    }
    // What never was is no failure where it is to go, and one where it is to be there.
    assert_eq!(docker.about("DeleteEndpoint", json!({})), json!({}));
    assert_eq!(docker.call("NetworkDriver.DeleteNetwork", &json!({"NetworkID": NETWORK})), json!({}));
    assert!(docker.about("Join", json!({"SandboxKey": "/x"}))["Err"].as_str().unwrap().contains("is not there"));
    assert!(docker.create_endpoint()["Err"].as_str().unwrap().contains(NETWORK), "no such network");
    // Half a request, and nobody there any more.
    let mut half = UnixStream::connect(&docker.socket).unwrap();
    half.write_all(b"POST /NetworkDriver.CreateNetwork HTTP/1.1\r\nContent-Length: 100\r\n\r\n{").unwrap();
    drop(half);
    before.assert_same(&docker.world.state(), "nonsense");
    let implements = docker.call("Plugin.Activate", &json!({}))["Implements"].clone();
    assert_eq!(implements, json!(["NetworkDriver", "IpamDriver"]));
}

#[test]
fn nonsense_about_addresses_is_refused_and_changes_nothing() {
    let Some(docker) = Docker::or_skip("docker-ipam-nonsense") else { return };
    let before = docker.world.state();
    for (method, body, why) in [
        ("RequestPool", "{\"Pool\":", "read the request"),
        ("RequestPool", "[]", "read the request"),
        ("RequestPool", r#"{"Pool": 10}"#, "read the request"),
        ("RequestPool", r#"{"V6": "no"}"#, "read the request"),
        ("RequestPool", r#"{"Options": {"a": 1}}"#, "read the request"),
        ("RequestPool", r#"{"Options": {"a": "1"}}"#, "`a` is unknown"),
        ("RequestPool", r#"{"AddressSpace": "GlobalDefault"}"#, "GlobalDefault"),
        ("RequestPool", r#"{"Pool": "10.80.0.0/33"}"#, "is no subnet"),
        ("RequestPool", r#"{"Pool": "10.80.0.1/24"}"#, "host bits"),
        ("RequestPool", r#"{"Pool": "127.0.0.0/8"}"#, "loopback"),
        ("RequestPool", r#"{"Pool": "0.0.0.0/0"}"#, "whole address space"),
        ("RequestPool", r#"{"Pool": "0.0.0.0/31"}"#, "prefix length"),
        ("RequestPool", r#"{"Pool": "10.80.0.0/24", "V6": true}"#, "IPv6"),
        ("RequestPool", r#"{"Pool": "10.80.0.0/24", "SubPool": "10.81.0.0/25"}"#, "is not in pool"),
        ("RequestPool", r#"{"Pool": "10.80.0.0/24", "SubPool": "fd00::/64"}"#, "is not in pool"),
        ("ReleasePool", "", "PoolID"),
        ("ReleasePool", r#"{"PoolID": "../x"}"#, "64 hexadecimal digits"),
        ("RequestPool", "", "without saying what"),
        ("RequestAddress", "", "without saying what"),
        ("RequestAddress", r#"{"PoolID": []}"#, "read the request"),
        ("RequestAddress", r#"{"PoolID": "LocalDefault/10.0.0.0/8"}"#, "64 hexadecimal digits"),
        ("ReleaseAddress", r#"{"PoolID": "x"}"#, "Address"),
    ] {
        let (status, answer) = docker.http(&format!("POST /IpamDriver.{method}"), body.as_bytes());
        assert_eq!(status, 200, "{method} {body}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["Error"].as_str().is_some_and(|said| said.contains(why)), "{method} {body}: {answer}");
    }
    assert_eq!(docker.http("POST /IpamDriver.Fly", b"{}").0, 404);
    let never = json!({"PoolID": NETWORK, "Address": "10.0.0.9"});
    assert_eq!(docker.ipam("ReleasePool", never.clone()), json!({}), "what never was is gone");
    assert_eq!(docker.ipam("ReleaseAddress", never.clone()), json!({}));
    assert!(docker.ipam("RequestAddress", never)["Error"].as_str().unwrap().contains("no pool"));
    before.assert_same(&docker.world.state(), "nonsense");
}

#[test]
fn a_pool_gives_each_of_its_addresses_once() {
    let Some(docker) = Docker::or_skip("docker-pool") else { return };
    docker.call("Plugin.Activate", &json!({}));
    assert_eq!(docker.ipam("GetCapabilities", json!({}))["RequiresRequestReplay"], true);
    let spaces = docker.ipam("GetDefaultAddressSpaces", json!({}));
    let space = spaces["LocalDefaultAddressSpace"].as_str().unwrap();
    let asked = json!({"AddressSpace": space, "Pool": "10.80.0.0/29", "SubPool": "", "Options": null, "V6": false});
    let given = docker.ipam("RequestPool", asked.clone());
    assert_eq!(given["Pool"], "10.80.0.0/29", "{given}");
    let pool = given["PoolID"].as_str().unwrap();
    let refused = |answer: Value, why: &str| {
        let said = answer["Error"].as_str().unwrap_or_else(|| panic!("{answer}"));
        assert!(said.contains(why), "{said}");
    };
    // Docker has an answer, so it asks for another network.
    refused(docker.ipam("RequestPool", asked), "overlaps");
    refused(docker.ipam("RequestPool", json!({"Pool": "10.80.0.0/16"})), "overlaps");
    refused(docker.ipam("RequestPool", json!({"Pool": "10.80.0.4/30"})), "overlaps");
    let ask = |address: &str, options: Value| {
        docker.ipam("RequestAddress", json!({"PoolID": pool, "Address": address, "Options": options}))
    };
    let gateway = || json!({"RequestAddressType": "com.docker.network.gateway"});
    assert_eq!(ask("", gateway())["Address"], "10.80.0.1/29");
    assert_eq!(ask("", gateway())["Address"], "10.80.0.1/29", "a pool has one gateway");
    let mac = json!({"com.docker.network.endpoint.macaddress": "02:42:0a:50:00:03"});
    assert_eq!(ask("10.80.0.3", mac)["Address"], "10.80.0.3/29");
    refused(ask("10.80.0.3", json!({})), "already in use");
    refused(ask("10.80.0.1", json!({})), "gateway");
    refused(ask("10.80.0.7", json!({})), "broadcast");
    refused(ask("10.80.0.9", json!({})), "in no subnet");
    refused(ask("fd00::1", json!({})), "in no subnet");
    refused(ask("three", json!({})), "is no IP address");
    let mut rest: Vec<String> = (0..4).map(|_| ask("", json!({}))["Address"].as_str().unwrap().to_owned()).collect();
    rest.sort_unstable();
    assert_eq!(rest, ["10.80.0.2/29", "10.80.0.4/29", "10.80.0.5/29", "10.80.0.6/29"]);
    refused(ask("", Value::Null), "no free address");
    // All of it outlives us.
    docker.world.portolan_ok(&["daemon", "upgrade"]);
    refused(ask("10.80.0.3", json!({})), "already in use");
    docker.world.portolan_ok(&["daemon", "stop"]);
    docker.world.portolan_ok(&["daemon", "start", "--docker", docker.socket.to_str().unwrap()]);
    refused(ask("", Value::Null), "no free address");
    let release = || docker.ipam("ReleaseAddress", json!({"PoolID": pool, "Address": "10.80.0.4"}));
    assert_eq!((release(), release()), (json!({}), json!({})));
    assert_eq!(ask("", Value::Null)["Address"], "10.80.0.4/29");
    let free = docker.ipam("RequestPool", json!({"AddressSpace": space, "V6": true}));
    assert!(free["Pool"].as_str().unwrap().starts_with("fd"), "{free}");
    // Another face asks for what is given.
    let said = docker.world.refused(&["network", "create", "x", "--ipv6=false", "--subnet", "10.80.0.0/24"]);
    assert!(said.contains("given to Docker"), "{said}");
    for id in [&free["PoolID"], &given["PoolID"]] {
        assert_eq!(docker.ipam("ReleasePool", json!({"PoolID": id})), json!({}));
    }
    docker.world.portolan_ok(&["network", "create", "x", "--ipv6=false", "--subnet", "10.80.0.0/24"]);
    docker.world.portolan_ok(&["network", "rm", "x"]);
}

/// Docker repeats a call whose answer it did not get, without its body; whoever is told so asks again.
#[test]
fn the_daemon_dies_over_calls() {
    let Some(docker) = Docker::or_skip("docker-pool-killed") else { return };
    let given = docker.ipam("RequestPool", json!({"Pool": "10.80.0.0/24"}));
    let (had, kept, unanswered) = die_over_calls(&docker, &given, |_| ());
    // What was on its way when the daemon died may or may not have come: nobody else gets it.
    eprintln!("60 deaths: {unanswered} calls without an answer, {kept} addresses kept of {had}");
    assert!(unanswered > 0 && kept <= unanswered);
    // Where who has an address shows it by an endpoint, it is known.
    let given = docker.ipam("RequestPool", json!({"Pool": "10.70.0.0/24"}));
    let gateway = json!({"RequestAddressType": "com.docker.network.gateway"});
    docker.ipam("RequestAddress", json!({"PoolID": given["PoolID"], "Address": "10.70.0.1", "Options": gateway}));
    let pool = json!([{"AddressSpace": "portolan", "Pool": "10.70.0.0/24", "Gateway": "10.70.0.1/24"}]);
    let options = json!({"com.docker.network.enable_ipv6": false, "com.docker.network.generic": {}});
    let body = json!({"NetworkID": NETWORK, "Options": options, "IPv4Data": pool, "IPv6Data": []});
    assert!(docker.call("NetworkDriver.CreateNetwork", &body)["Err"].is_null());
    let (had, kept, unanswered) = die_over_calls(&docker, &given, |address| {
        let last = address.split_once('/').unwrap().0.rsplit_once('.').unwrap().1;
        let endpoint = format!("{last:0>12}{:0<52}", "");
        let body =
            json!({"NetworkID": NETWORK, "EndpointID": endpoint, "Interface": {"Address": address}, "Options": {}});
        let made = docker.call("NetworkDriver.CreateEndpoint", &body);
        assert!(made["Err"].is_null(), "{made}");
    });
    eprintln!("60 deaths: {unanswered} calls without an answer, {kept} addresses kept of {had}");
    assert!(unanswered > 0 && kept == 1, "but the gateway's none is");
}

/// Asks for addresses of the pool that was `given`, and kills the daemon meanwhile, sixty times: how many it had, of which each
/// was `used`, how many more are taken, and how many calls were not answered.
fn die_over_calls(docker: &Docker, given: &Value, used: impl Fn(&str)) -> (usize, usize, usize) {
    let body = json!({"PoolID": given["PoolID"], "Address": ""}).to_string();
    let taken = || {
        let pools: Value = serde_json::from_str(&docker.world.portolan_ok(&["network", "pools", "--json"])).unwrap();
        let pool = pools.as_array().unwrap().iter().find(|pool| pool["Subnet"] == given["Pool"]).unwrap();
        usize::try_from(pool["Addresses"].as_u64().unwrap()).unwrap()
    };
    let mut had = std::collections::BTreeSet::new();
    let mut unanswered = 0;
    for round in 0..60 {
        let status: Value = serde_json::from_str(&docker.world.portolan_ok(&["daemon", "status", "--json"])).unwrap();
        let daemon = status["pid"].to_string();
        let answer = std::thread::scope(|scope| {
            let asking = scope.spawn(|| docker.try_call("IpamDriver.RequestAddress", &body));
            // Not to wait for anything: to be somewhere else each time.
            std::thread::sleep(std::time::Duration::from_micros(200 + 40 * round));
            assert!(std::process::Command::new("kill").args(["-9", &daemon]).status().unwrap().success());
            asking.join().unwrap()
        });
        let is_there = || docker.try_call("IpamDriver.GetCapabilities", "").is_some();
        assert!(eventually(LONG, is_there), "nobody starts it again");
        let answer = answer.unwrap_or_else(|| {
            let before = taken();
            unanswered += 1;
            let refused = docker.try_call("IpamDriver.RequestAddress", "").unwrap();
            assert!(refused["Error"].as_str().unwrap().contains("try again"), "{refused}");
            assert_eq!(taken(), before, "{refused}");
            docker.try_call("IpamDriver.RequestAddress", &body).unwrap()
        });
        let address = answer["Address"].as_str().unwrap_or_else(|| panic!("round {round}: {answer}"));
        assert!(had.insert(address.to_owned()), "round {round}: {address} twice");
        used(address);
    }
    (had.len(), taken() - had.len(), unanswered)
}

/// Two networks of Docker's that are made at once, and calls that break off.
#[test]
fn calls_at_once_get_different_addresses() {
    let Some(docker) = Docker::or_skip("docker-pool-race") else { return };
    let given = docker.ipam("RequestPool", json!({"Pool": "10.80.0.0/24"}));
    let body = json!({"PoolID": given["PoolID"], "Address": ""}).to_string();
    let answers: Vec<String> = std::thread::scope(|scope| {
        let ask = || docker.http("POST /IpamDriver.RequestAddress", body.as_bytes()).1;
        let threads: Vec<_> = (0..40).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let different: std::collections::BTreeSet<&String> = answers.iter().collect();
    assert_eq!(different.len(), 40, "{answers:?}");
}

#[test]
fn every_call_is_the_same_when_it_comes_twice() {
    let Some(docker) = Docker::or_skip("docker-twice") else { return };
    let twice = |call: &dyn Fn() -> Value| {
        let first = call();
        assert!(first["Err"].is_null(), "{first}");
        assert_eq!(call(), first);
        first
    };
    twice(&|| docker.create_network());
    let made = twice(&|| docker.create_endpoint());
    assert!(made["Interface"]["MacAddress"].is_string() && made["Interface"]["Address"].is_null(), "{made}");
    let joined = twice(&|| docker.about("Join", json!({"SandboxKey": "/run/x", "Options": {}})));
    let name = joined["InterfaceName"]["SrcName"].as_str().unwrap().to_owned();
    assert!(interface(&docker.world.h, &name).is_some(), "{joined}");
    assert_eq!(joined["Gateway"], "10.70.0.1");
    twice(&|| docker.publish());
    twice(&|| docker.about("RevokeExternalConnectivity", json!({})));
    twice(&|| docker.about("Leave", json!({})));
    twice(&|| docker.about("DeleteEndpoint", json!({})));
    assert!(interface(&docker.world.h, &name).is_none());
    twice(&|| docker.call("NetworkDriver.DeleteNetwork", &json!({"NetworkID": NETWORK})));
}

/// Nobody tells us: Docker is dead, and so is the container.
#[test]
fn an_endpoint_goes_with_its_namespace_and_an_unclaimed_one_with_its_docker() {
    let Some(docker) = Docker::or_skip("docker-lost") else { return };
    let world = &docker.world;
    docker.create_network();
    docker.create_endpoint();
    let joined = docker.about("Join", json!({"SandboxKey": "/run/x", "Options": {}}));
    docker.publish();
    let name = joined["InterfaceName"]["SrcName"].as_str().unwrap().to_owned();
    let place = world.lab.dir().join("container");
    netns::create_pinned(&place).unwrap();
    let inside = NetnsFd::open(&place).unwrap();
    // As Docker does.
    routing(world, |socket, batch| {
        let index = link::lookup(socket, name.as_str()).unwrap().unwrap().index;
        link::set(batch, index, &LinkChange { netns: Some(inside.as_fd()), ..LinkChange::default() });
    });
    netns::with_netns(&inside, || {
        let mut socket = Socket::open(ROUTE).unwrap();
        let index = link::lookup(&mut socket, name.as_str()).unwrap().unwrap().index;
        let mut batch = Batch::new();
        addr::replace(&mut batch, &addr::Address::new(index, "10.70.0.2".parse().unwrap(), 24));
        link::set(&mut batch, index, &LinkChange { up: Some(true), ..LinkChange::default() });
        let gateway = Some("10.70.0.1".parse().unwrap());
        route::replace(&mut batch, &route::Route { gateway, ..route::Route::new("0.0.0.0".parse().unwrap(), 0) });
        socket.transact(&batch).unwrap();
    })
    .unwrap();
    let container = In(inside);
    let server = TcpServer::start(&container, any(Family::V4, 80), "inside").unwrap();
    assert_leads(&world.n, at(host_ip(Family::V4), 8080), "inside");
    world.verify();
    // Another Docker begins: this one is claimed.
    docker.call("Plugin.Activate", &json!({}));
    assert_leads(&world.n, at(host_ip(Family::V4), 8080), "inside");
    drop((server, container));
    netns::unpin(&place).unwrap();
    let is_gone = || world.portolan_ok(&["ps", "-q"]).trim().is_empty();
    assert!(eventually(LONG, is_gone), "{}", world.portolan_ok(&["ps"]));
    world.verify();
    // One that was never claimed goes when the next Docker begins.
    docker.create_endpoint();
    docker.call("Plugin.Activate", &json!({}));
    assert!(is_gone());
    assert_eq!(docker.about("DeleteEndpoint", json!({})), json!({}));
    docker.call("NetworkDriver.DeleteNetwork", &json!({"NetworkID": NETWORK}));
    world.verify();
}

/// An interface without an end on the host is there as long as the namespace that Docker took it to.
#[test]
fn a_macvlan_endpoint_goes_with_the_file_of_its_namespace() {
    let Some(docker) = Docker::or_skip("docker-macvlan") else { return };
    let world = &docker.world;
    let pools = json!([{"AddressSpace": "LocalDefault", "Pool": "10.0.1.0/24", "Gateway": "10.0.1.2/24"}]);
    let generic = |driver: Value| json!({"com.docker.network.generic": driver});
    let create = |options: Value| {
        let body = json!({"NetworkID": NETWORK, "Options": generic(options), "IPv4Data": pools, "IPv6Data": []});
        docker.call("NetworkDriver.CreateNetwork", &body)
    };
    let refused = create(json!({"driver": "macvlan", "parent": "eth0", "metric": "7"}));
    assert!(refused["Err"].as_str().unwrap().contains("metric"), "{refused}");
    assert_eq!(create(json!({"driver": "macvlan", "parent": "eth0"})), json!({}));
    let made = || docker.about("CreateEndpoint", json!({"Interface": {"Address": "10.0.1.77/24"}, "Options": {}}));
    assert_eq!(made()["Interface"]["MacAddress"], "02:42:0a:00:01:4d");
    let place = world.lab.dir().join("container");
    netns::create_pinned(&place).unwrap();
    let inside = NetnsFd::open(&place).unwrap();
    let joined = docker.about("Join", json!({"SandboxKey": place, "Options": {}}));
    let name = joined["InterfaceName"]["SrcName"].as_str().unwrap().to_owned();
    routing(world, |socket, batch| {
        let index = link::lookup(socket, name.as_str()).unwrap().unwrap().index;
        link::set(batch, index, &LinkChange { netns: Some(inside.as_fd()), ..LinkChange::default() });
    });
    assert!(interface(&world.h, &name).is_none());
    world.portolan_ok(&["gc"]);
    world.verify();
    assert_eq!(world.portolan_ok(&["ps", "-q"]).lines().count(), 1, "it is where Docker took it");
    drop(inside);
    netns::unpin(&place).unwrap();
    world.portolan_ok(&["gc"]);
    assert!(world.portolan_ok(&["ps", "-q"]).is_empty());
    // One that came back goes with its endpoint.
    made();
    assert!(interface(&world.h, &name).is_some());
    assert_eq!(docker.about("DeleteEndpoint", json!({})), json!({}));
    assert!(interface(&world.h, &name).is_none());
    assert_eq!(docker.call("NetworkDriver.DeleteNetwork", &json!({"NetworkID": NETWORK})), json!({}));
    world.verify();
}

/// A namespace of the test's own.
struct In(NetnsFd);

impl InNetns for In {
    fn netns(&self) -> &NetnsFd {
        &self.0
    }
}
