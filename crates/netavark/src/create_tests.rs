use super::*;
use crate::wire::parse_create;

struct Fake(Vec<&'static str>);

impl Host for Fake {
    fn interfaces(&self) -> Option<Vec<String>> {
        Some(self.0.iter().map(ToString::to_string).collect())
    }
    fn random(&self) -> [u8; 32] {
        std::array::from_fn(|i| i as u8)
    }
    fn now(&self) -> String {
        "2026-02-03T04:05:06Z".to_owned()
    }
    fn plugin(&self, network: &Network) -> Result<Network, Failure> {
        Err(Failure::new(format!("plugin for driver \"{}\" not found in plugin directories", network.driver)))
    }
}

/// A network with `keys` on top of a name, an id and a driver; `used` as Podman tells it.
fn create_beside(keys: &str, used: &str) -> Result<Network, Failure> {
    let text = format!(
        r#"{{"network":{{"name":"n","id":"{}"{keys}}},"used":{used},"options":{{"subnet_pools":[{{"base":"10.89.0.0/23","size":24}},{{"base":"10.90.0.0/15","size":24}}],"default_interface_name":"podman","check_used_subnets":true}}}}"#,
        "ab".repeat(32)
    );
    new_network(parse_create(text.as_bytes())?, &Fake(vec!["lo", "eth0", "podman1"]))
}

fn create(keys: &str) -> Result<Network, Failure> {
    create_beside(keys, "{}")
}

fn bridge(keys: &str) -> Result<Network, Failure> {
    create(&format!(r#","driver":"bridge"{keys}"#))
}

fn subnets(network: &Network) -> Vec<(String, String)> {
    let text = |subnet: &Subnet| {
        (subnet.subnet.to_string(), subnet.gateway.map_or_else(|| "-".to_owned(), |gateway| gateway.to_string()))
    };
    network.subnets.iter().flatten().map(text).collect()
}

#[test]
fn a_device_whose_prefix_is_no_name_is_refused() {
    let (id, prefix) = ("ab".repeat(32), "podman::");
    let text = format!(
        r#"{{"network":{{"name":"n","id":"{id}","driver":"bridge"}},"options":{{"default_interface_name":"{prefix}"}}}}"#
    );
    let refused = new_network(parse_create(text.as_bytes()).unwrap(), &Fake(vec!["lo"])).unwrap_err();
    assert_eq!(refused.to_string(), "bridge name podman::1 is invalid");
}

#[test]
fn what_is_left_open_is_chosen() {
    let network = bridge("").unwrap();
    assert_eq!(network.network_interface.as_deref(), Some("podman2"), "podman1 is there");
    assert_eq!(subnets(&network), [("10.89.0.0/24".to_owned(), "10.89.0.1".to_owned())]);
    assert_eq!((network.ipam(), network.created.as_deref()), ("host-local", Some("2026-02-03T04:05:06Z")));

    let full = r#"{"subnets":["10.89.0.0/16","10.90.0.0/24"],"interfaces":["podman2"],"names":{"podman3":"x"}}"#;
    let network = create_beside(r#","driver":"bridge""#, full).unwrap();
    assert_eq!(network.network_interface.as_deref(), Some("podman4"));
    assert_eq!(subnets(&network)[0].0, "10.90.1.0/24", "the next pool, after what is taken of it");

    let network = bridge(r#","ipv6_enabled":true"#).unwrap();
    let v6 = ("fd00:102:304:506::/64".to_owned(), "fd00:102:304:506::1".to_owned());
    assert_eq!(subnets(&network), [("10.89.0.0/24".to_owned(), "10.89.0.1".to_owned()), v6]);
    let network = bridge(r#","ipv6_enabled":true,"subnets":[{"subnet":"fd01::/64"}]"#).unwrap();
    assert_eq!(subnets(&network).iter().map(|s| s.0.as_str()).collect::<Vec<_>>(), ["fd01::/64", "10.89.0.0/24"]);
    assert!(bridge(r#","subnets":[{"subnet":"fd01::/64"}]"#).unwrap().ipv6_enabled);
}

#[test]
fn gateways_where_there_is_a_use_for_one() {
    assert_eq!(subnets(&bridge(r#","internal":true"#).unwrap())[0].1, "-");
    assert_eq!(subnets(&bridge(r#","internal":true,"dns_enabled":true"#).unwrap())[0].1, "10.89.0.1");
    let chosen = bridge(r#","subnets":[{"subnet":"10.1.0.0/24","gateway":"10.1.0.9"}]"#).unwrap();
    assert_eq!(subnets(&chosen)[0].1, "10.1.0.9");
}

#[test]
fn dockers_options_become_ours() {
    let options = r#","options":{"com.docker.network.driver.mtu":"1400","com.docker.network.bridge.name":"br7","isolate":"strict"}"#;
    let network = bridge(options).unwrap();
    assert_eq!((network.option("mtu"), network.network_interface.as_deref()), (Some("1400"), Some("br7")));
    assert!(bridge(r#","options":{"outbound_addr4":"10.0.0.1"}"#).is_ok());
}

#[test]
fn macvlan_and_ipvlan() {
    let network = create(r#","driver":"macvlan","dns_enabled":true,"network_interface":"eth0""#).unwrap();
    assert_eq!((network.ipam(), network.dns_enabled), ("dhcp", false));
    let subnet = r#","subnets":[{"subnet":"10.2.0.0/24"}]"#;
    assert_eq!(create(&format!(r#","driver":"ipvlan"{subnet}"#)).unwrap().ipam(), "host-local");
    assert!(create(r#","driver":"macvlan","options":{"mode":"vepa","bclim":"-1"}"#).is_ok());
}

#[test]
fn names_and_ids() {
    let create = |name: &str, id: &str| {
        let text = format!(r#"{{"network":{{"name":"{name}","id":"{id}","driver":"bridge"}}}}"#);
        new_network(parse_create(text.as_bytes()).unwrap(), &Fake(Vec::new())).unwrap_err().to_string()
    };
    let id = "ab".repeat(32);
    assert_eq!(create("", &id), "Network name must be supplied");
    let invalid = "Invalid characters in network name \"bad/name\": must match [a-zA-Z0-9][a-zA-Z0-9_.-]*";
    assert_eq!(create("bad/name", &id), invalid);
    assert!(create(&"-".repeat(10_000), &id).len() < 300);
    assert_eq!(create("n", ""), "Network id must be supplied");
    assert_eq!(create("n", "xyz"), "Network id must be a hexadecimal string \"xyz\"");
}

#[test]
fn every_refusal_has_its_text() {
    let with_subnet = |rest: &str| format!(r#","driver":"bridge","subnets":[{{"subnet":"10.1.0.0/24"{rest}}}]"#);
    let cases: Vec<(String, &str)> = vec![
        (r#","driver":"bridge","network_interface":"eth0/1""#.into(), "Interface name cannot contain\"/\""),
        (r#","driver":"bridge","network_interface":"..""#.into(), "Interface name cannot be . or .."),
        (
            r#","driver":"bridge","network_interface":"0123456789abcdef""#.into(),
            "Interface name is too long: interface names must be 15 characters or less: 0123456789abcdef",
        ),
        (r#","driver":"bridge","network_interface":"-x""#.into(), "bridge name -x is invalid"),
        (r#","driver":"bridge","ipam_options":{"driver":"x"}"#.into(), "Unsupported ipam driver: x"),
        (
            r#","driver":"bridge","ipam_options":{"driver":"none"},"subnets":[{"subnet":"10.1.0.0/24"}]"#.into(),
            "None ipam driver is set but subnets are given",
        ),
        (with_subnet(r#","gateway":"10.2.0.1""#), "gateway 10.2.0.1 not in subnet 10.1.0.0/24"),
        (
            with_subnet(r#","lease_range":{"start_ip":"10.2.0.1"}"#),
            "lease range start_ip 10.2.0.1 not in subnet 10.1.0.0/24",
        ),
        (
            with_subnet(r#","lease_range":{"start_ip":"10.1.0.9","end_ip":"10.1.0.3"}"#),
            "lease range start_ip 10.1.0.9 must be less than or equal to end_ip 10.1.0.3",
        ),
        (
            r#","driver":"bridge","subnets":[{"subnet":"10.1.0.0/31"}]"#.into(),
            "could not create gateway for subnet 10.1.0.0/31 because it has a 31 or greater subnet prefix",
        ),
        (
            r#","driver":"bridge","subnets":[{"subnet":"fd00::1/128"}]"#.into(),
            "could not create gateway for subnet fd00::1/128 because it has a 128 or greater subnet prefix",
        ),
        (
            r#","driver":"bridge","network_dns_servers":["1.1.1.1"]"#.into(),
            "cannot set NetworkDNSServers if DNS is not enabled for the network",
        ),
        (r#","driver":"macvlan","network_interface":"eth9""#.into(), "parent interface eth9 does not exist"),
        (r#","driver":"ipvlan""#.into(), "ipam driver dhcp is not supported with ipvlan"),
        (
            r#","driver":"macvlan","ipam_options":{"driver":"dhcp"},"subnets":[{"subnet":"10.1.0.0/24"}]"#.into(),
            "ipam driver dhcp set but subnets are set",
        ),
        (
            r#","driver":"macvlan","ipam_options":{"driver":"host-local"}"#.into(),
            "macvlan driver needs at least one subnet specified when the host-local ipam driver is set",
        ),
        (
            r#","driver":"ipvlan","subnets":[{"subnet":"10.1.0.0/24"}],"options":{"bclim":"1"}"#.into(),
            "unsupported ipvlan network option bclim",
        ),
        (r#","driver":"macvlan","options":{"mode":"x"}"#.into(), "invalid macvlan mode \"x\""),
        (r#","driver":"macvlan","options":{"vlan":"1"}"#.into(), "unsupported vlan network option: vlan"),
        (r#","driver":"bridge","options":{"novel":"1"}"#.into(), "unsupported bridge network option: novel"),
        (r#","driver":"bridge","options":{"mtu":"x"}"#.into(), "unable to parse \"mtu\": invalid digit found in string"),
        (r#","driver":"bridge","options":{"vlan":"4095"}"#.into(), "vlan must be between 0 and 4094"),
        (r#","driver":"bridge","options":{"mode":"x"}"#.into(), "invalid bridge mode \"x\""),
        (r#","driver":"bridge","options":{"isolate":"1"}"#.into(), "invalid isolate option \"1\""),
        (
            r#","driver":"bridge","routes":[{"destination":"10.9.0.1/24","gateway":"10.89.0.1"}]"#.into(),
            "route destination invalid",
        ),
        (
            r#","driver":"bridge","routes":[{"destination":"10.9.0.0/24"}]"#.into(),
            "route 10.9.0.0/24 requires a gateway for type unicast",
        ),
        (
            r#","driver":"bridge","routes":[{"destination":"10.9.0.0/24","gateway":"10.1.0.1","route_type":"blackhole"}]"#
                .into(),
            "route 10.9.0.0/24 must not have a gateway for type blackhole",
        ),
        (
            r#","driver":"bridge","routes":[{"destination":"10.9.0.0/24","route_type":"x"}]"#.into(),
            "invalid route type \"x\"",
        ),
        (r#","driver":"x""#.into(), "plugin for driver \"x\" not found in plugin directories"),
        (
            r#","driver":"bridge","subnets":[{"subnet":"10.1.0.0/24"},{"subnet":"10.1.0.0/25"}]"#.into(),
            "overlapping subnets: 10.1.0.0/24 and 10.1.0.0/25",
        ),
    ];
    for (keys, text) in cases {
        let failure = create(&keys).map(|network| format!("{network:?}")).unwrap_err().to_string();
        assert!(failure.ends_with(text) || failure.contains(text), "{keys}: {failure}");
    }
    let beside = |used: &str, text: &str| {
        let keys = r#","driver":"bridge","network_interface":"br0","subnets":[{"subnet":"10.1.0.0/24"}]"#;
        assert_eq!(create_beside(keys, used).unwrap_err().to_string(), text);
    };
    beside(r#"{"names":{"n":"x"}}"#, "network already exists n");
    beside(r#"{"interfaces":["br0"]}"#, "bridge name br0 already in use");
    beside(r#"{"subnets":["10.1.0.128/30"]}"#, "subnet 10.1.0.0/24 is already used on the host or by another config");
    let full = r#"{"subnets":["10.0.0.0/8"]}"#;
    let failure = create_beside(r#","driver":"bridge""#, full).unwrap_err().to_string();
    assert_eq!(failure, "could not find free subnet from subnet pools");
}
