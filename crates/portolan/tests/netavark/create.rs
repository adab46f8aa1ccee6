//! `create`: what is chosen for a new network, and what is refused, through the binary.

use serde_json::{Value, json};

use crate::podman::{Podman, answer, id_of, merged, output_of};

/// What Podman says with `keys` on top of the network and `rest` on top of all.
fn input(keys: Value, rest: Value) -> Value {
    let network = json!({
        "name": "new", "id": id_of("new"), "driver": "bridge", "internal": false, "dns_enabled": true,
        "ipv6_enabled": false,
    });
    let all = json!({
        "network": merged(network, keys),
        "used": {"interfaces": [], "names": {}, "subnets": []},
        "options": {"subnet_pools": [{"base": "10.89.0.0/16", "size": 24}, {"base": "10.90.0.0/15", "size": 24}],
                    "default_interface_name": "podman", "check_used_subnets": true},
    });
    merged(all, rest)
}

#[track_caller]
fn create(podman: &Podman, keys: Value, rest: Value) -> Result<Value, String> {
    podman.call(&["create"], format!("{}\n", input(keys, rest)).as_bytes())
}

#[test]
fn what_is_left_open_is_chosen() {
    let Some(podman) = Podman::or_skip("nv-create") else { return };
    let host = podman.world.untouched();
    let made = create(&podman, json!({}), json!({})).unwrap();
    assert_eq!(made["network_interface"], "podman1");
    assert_eq!(made["subnets"], json!([{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}]));
    assert_eq!((&made["ipam_options"]["driver"], &made["dns_enabled"]), (&json!("host-local"), &json!(true)));
    assert!(made["created"].as_str().unwrap().starts_with("20"), "{made}");
    // What others have, and the host.
    podman.foreign_bridge("podman1", &[]);
    let used = json!({"used": {"interfaces": ["podman2"], "names": {"podman3": id_of("x")},
                               "subnets": ["10.89.0.0/23", "10.89.2.0/24"]}});
    let made = create(&podman, json!({"ipv6_enabled": true}), used).unwrap();
    assert_eq!(made["network_interface"], "podman4");
    assert_eq!(made["subnets"][0]["subnet"], "10.89.3.0/24");
    let v6: ipnet::IpNet = made["subnets"][1]["subnet"].as_str().unwrap().parse().unwrap();
    assert!(v6.prefix_len() == 64 && v6.to_string().starts_with("fd"), "{made}");
    let inside = create(&podman, json!({"internal": true, "dns_enabled": false}), json!({})).unwrap();
    assert_eq!(inside["subnets"][0].get("gateway"), None, "nobody answers there");
    let docker = json!({"options": {"com.docker.network.driver.mtu": "1400", "com.docker.network.bridge.name": "br7"}});
    let made = create(&podman, docker, json!({})).unwrap();
    assert_eq!((&made["options"], &made["network_interface"]), (&json!({"mtu": "1400"}), &json!("br7")));
    let own = json!({"subnets": [{"subnet": "10.50.0.0/24", "lease_range": {"start_ip": "10.50.0.9"}}]});
    let made = create(&podman, own, json!({})).unwrap();
    assert_eq!(made["subnets"][0]["gateway"], "10.50.0.1");
    assert_eq!(made["subnets"][0]["lease_range"], json!({"start_ip": "10.50.0.9"}));
    // Macvlan: no names, and a DHCP server if nobody said who gives addresses.
    let made = create(&podman, json!({"driver": "macvlan", "network_interface": "eth0"}), json!({})).unwrap();
    assert_eq!((&made["dns_enabled"], &made["ipam_options"]["driver"]), (&json!(false), &json!("dhcp")));
    // Options of ours that netavark's create forgets.
    let options = json!({"options": {"outbound_addr4": "10.0.1.1", "vlan": "20", "isolate": "strict"}});
    assert_eq!(create(&podman, options.clone(), json!({})).unwrap()["options"], options["options"]);
    // Several VLANs of one bridge, which is somebody else's.
    let vlan = json!({"network_interface": "br0", "options": {"mode": "unmanaged", "vlan": "20"}});
    create(&podman, vlan, json!({"used": {"interfaces": ["br0"]}})).unwrap();
    let none = create(&podman, json!({"ipam_options": {"driver": "none"}}), json!({})).unwrap();
    assert_eq!((&none["dns_enabled"], none.get("subnets")), (&json!(false), None));
    podman.world.portolan_ok(&["network", "ls"]);
    let mut after = podman.world.untouched().lines().to_vec();
    after.retain(|line| !line.contains("podman1"));
    assert!(host.lines().iter().all(|line| after.contains(line)), "create touches nothing");
}

/// A network that it completed can be used as it is.
#[test]
fn what_was_made_can_be_set_up() {
    let Some(podman) = Podman::or_skip("nv-create-up") else { return };
    let network = create(&podman, json!({"ipv6_enabled": true, "dns_enabled": false}), json!({})).unwrap();
    let pod = podman.pod("c").at(&network, 5);
    let status = podman.up(&pod);
    assert_eq!(status["new"]["interfaces"]["eth0"]["subnets"][0]["ipnet"], "10.89.0.5/24");
    podman.world.verify();
    podman.down(&pod);
}

#[test]
fn what_cannot_be_is_refused() {
    let Some(podman) = Podman::or_skip("nv-create-bad") else { return };
    let subnet = |keys: Value| json!({"subnets": [merged(json!({"subnet": "10.50.0.0/24"}), keys)]});
    let used = |keys: Value| json!({ "used": keys });
    let none = || json!({});
    let child = |driver: &str, keys: Value| merged(json!({"driver": driver, "network_interface": "eth0"}), keys);
    let dhcp = || json!({"ipam_options": {"driver": "dhcp"}});
    let route = |keys: Value| json!({"routes": [merged(json!({"destination": "10.60.0.0/24"}), keys)]});
    for (keys, rest, text) in [
        (json!({"name": ""}), none(), "Network name must be supplied"),
        (none(), used(json!({"names": {"new": id_of("x")}})), "network already exists new"),
        (
            json!({"name": "a b"}),
            none(),
            "Invalid characters in network name \"a b\": must match [a-zA-Z0-9][a-zA-Z0-9_.-]*",
        ),
        (json!({"id": ""}), none(), "Network id must be supplied"),
        (json!({"id": "xyz"}), none(), "Network id must be a hexadecimal string \"xyz\""),
        (json!({"network_interface": "br0"}), used(json!({"interfaces": ["br0"]})), "bridge name br0 already in use"),
        (
            json!({"network_interface": "br0", "options": {"vlan": "20"}}),
            used(json!({"interfaces": ["br0"]})),
            "bridge name br0 already in use: VLANs share a bridge only where all of them have mode=unmanaged",
        ),
        (json!({"network_interface": "br$0"}), none(), "bridge name br$0 is invalid"),
        (
            json!({"network_interface": "abcdefghijklmnop"}),
            none(),
            "Interface name is too long: interface names must be 15 characters or less: abcdefghijklmnop",
        ),
        (json!({"ipam_options": {"driver": "magic"}}), none(), "Unsupported ipam driver: magic"),
        (
            merged(subnet(none()), json!({"ipam_options": {"driver": "none"}})),
            none(),
            "None ipam driver is set but subnets are given",
        ),
        (
            subnet(none()),
            used(json!({"subnets": ["10.50.0.0/16"]})),
            "subnet 10.50.0.0/24 is already used on the host or by another config",
        ),
        (subnet(json!({"gateway": "10.51.0.1"})), none(), "gateway 10.51.0.1 not in subnet 10.50.0.0/24"),
        (
            subnet(json!({"lease_range": {"start_ip": "10.51.0.1"}})),
            none(),
            "lease range start_ip 10.51.0.1 not in subnet 10.50.0.0/24",
        ),
        (
            subnet(json!({"lease_range": {"start_ip": "10.50.0.9", "end_ip": "10.50.0.3"}})),
            none(),
            "lease range start_ip 10.50.0.9 must be less than or equal to end_ip 10.50.0.3",
        ),
        (
            json!({"subnets": [{"subnet": "10.50.0.0/31"}]}),
            none(),
            "could not create gateway for subnet 10.50.0.0/31 because it has a 31 or greater subnet prefix",
        ),
        (
            none(),
            used(json!({"subnets": ["10.89.0.0/16", "10.90.0.0/15"]})),
            "could not find free subnet from subnet pools",
        ),
        (
            json!({"dns_enabled": false, "network_dns_servers": ["1.1.1.1"]}),
            none(),
            "cannot set NetworkDNSServers if DNS is not enabled for the network",
        ),
        (child("macvlan", json!({"network_interface": "no0"})), none(), "parent interface no0 does not exist"),
        (child("ipvlan", dhcp()), none(), "ipam driver dhcp is not supported with ipvlan"),
        (child("macvlan", merged(dhcp(), subnet(none()))), none(), "ipam driver dhcp set but subnets are set"),
        (
            child("macvlan", json!({"ipam_options": {"driver": "host-local"}})),
            none(),
            "macvlan driver needs at least one subnet specified when the host-local ipam driver is set",
        ),
        (
            child("ipvlan", merged(subnet(none()), json!({"options": {"bclim": "1"}}))),
            none(),
            "unsupported ipvlan network option bclim",
        ),
        (route(json!({"destination": "10.60.0.1/24"})), none(), "route destination invalid"),
        (route(none()), none(), "route 10.60.0.0/24 requires a gateway for type unicast"),
        (
            route(json!({"route_type": "blackhole", "gateway": "10.1.1.1"})),
            none(),
            "route 10.60.0.0/24 must not have a gateway for type blackhole",
        ),
        (route(json!({"route_type": "x"})), none(), "invalid route type \"x\""),
        // What no setup could do.
        (route(json!({"gateway": "fd00::1"})), none(), "route 10.60.0.0/24 has a gateway of another family: fd00::1"),
        (json!({"options": {"isolate": "yes"}}), none(), "invalid isolate option \"yes\""),
        (json!({"options": {"vrf": "a/b"}}), none(), "interface name `a/b`: holds the character '/'"),
        (json!({"driver": "x"}), none(), "plugin for driver \"x\" not found in plugin directories"),
        (json!({"options": {"novel": "1"}}), none(), "unsupported bridge network option: novel"),
        (json!({"options": {"vlan": "5000"}}), none(), "vlan must be between 0 and 4094"),
    ] {
        assert_eq!(create(&podman, keys.clone(), rest), Err(text.to_owned()), "{keys}");
    }
    let error = create(&podman, json!({"name": "n".repeat(129)}), none()).unwrap_err();
    assert!(
        error.starts_with("invalid network name \"nnn") && error.ends_with("longer than 128 characters"),
        "{error}"
    );
    let error = podman.call(&["create"], b"{").unwrap_err();
    assert!(error.starts_with("failed to load network create options: JSON Decoding error: EOF"), "{error}");
}

#[test]
fn versions() {
    let Some(podman) = Podman::or_skip("nv-version") else { return };
    let version = podman.call(&["version"], b"").unwrap();
    assert!(version["version"].as_str().unwrap().starts_with("2."), "{version}");
    for key in ["commit", "build_time", "target"] {
        assert!(version[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {version}");
    }
    assert_eq!(version["default_fw_driver"], "nftables");
    // Bare, as Podman asks at start.
    let mut asked = std::process::Command::new(&podman.program);
    asked.arg("--version");
    let output = output_of(podman.adopt(asked), b"");
    let expected = format!("netavark {}\n", version["version"].as_str().unwrap());
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected);
    let mut bare = std::process::Command::new(&podman.program);
    bare.arg("version");
    assert_eq!(answer(&output_of(podman.adopt(bare), b"")).unwrap(), version);
}
