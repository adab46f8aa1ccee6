use portolan_model::Isolate;

use super::*;
use crate::wire::parse_setup;

const ID: &str = "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9";

/// A setup of one network, with keys on top of the least that a network needs.
fn setup(attachment: &str, network: &str, rest: &str) -> Setup {
    let text = format!(
        r#"{{"container_id":"{ID}","container_name":"web","networks":{{"podman":{{"static_ips":["10.88.0.2"],"interface_name":"eth0"{attachment}}}}},"network_info":{{"podman":{{"name":"podman","id":"{ID}","driver":"bridge","network_interface":"podman0","subnets":[{{"subnet":"10.88.0.0/16","gateway":"10.88.0.1"}}]{network}}}}}{rest}}}"#
    );
    parse_setup(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A host that has no bridge yet.
fn no_bridges(_: &str) -> Result<Option<Vec<IpAddr>>, Failure> {
    Ok(None)
}

fn request(attachment: &str, network: &str, rest: &str) -> Result<AttachRequest, Failure> {
    plan(&setup(attachment, network, rest), Path::new("/n"), None, no_bridges).map(|plan| plan.attach.unwrap())
}

fn options(network: &str) -> portolan_model::NetworkOptions {
    let attach = request("", network, "").unwrap();
    let wanted = attach.endpoints[0].transient.clone().unwrap();
    portolan_model::NetworkOptions::from_pairs(wanted.driver, &wanted.options).unwrap()
}

#[test]
fn the_least_that_podman_says() {
    let attach = request("", "", "").unwrap();
    assert_eq!((attach.id.unwrap().to_string(), attach.name.unwrap().as_str()), (ID.to_owned(), "web"));
    let endpoint = &attach.endpoints[0];
    assert_eq!(endpoint.addresses, ["10.88.0.2".parse::<IpAddr>().unwrap()]);
    let network = endpoint.transient.as_ref().unwrap();
    assert_eq!((network.names, network.internal, network.exact), (false, false, true));
    let options = options("");
    assert_eq!(options.bridge.unwrap().as_str(), "podman0");
    assert_eq!((options.metric, options.isolate, options.managed), (Some(100), Isolate::Strict, true));
}

#[test]
fn options_of_bridges() {
    let given = options(
        r#","options":{"isolate":"true","metric":"7","no_default_route":"true","vlan":"20","vrf":"blue","mode":"managed","mtu":"1400","outbound_addr4":"10.0.0.5","outbound_addr6":"fd00::5","com.example":"x"}"#,
    );
    assert_eq!((given.isolate, given.metric, given.default_route), (Isolate::True, Some(7), false));
    assert_eq!((given.vlan, given.vrf.unwrap().as_str(), given.mtu.unwrap().bytes()), (Some(20), "blue", 1400));
    assert_eq!(given.snat.v4.unwrap().to_string(), "10.0.0.5");
    assert_eq!(options(r#","options":{"isolate":"false"}"#).isolate, Isolate::False);
    assert!(!options(r#","options":{"mode":"unmanaged"}"#).managed);
}

#[test]
fn ports_become_publications() {
    let ports = |text: &str| request("", "", &format!(r#","port_mappings":[{text}]"#)).map(|attach| attach.publish);
    let one = ports(r#"{"host_ip":"","container_port":80,"host_port":8080,"range":1,"protocol":"tcp"}"#).unwrap();
    assert_eq!(one, ["8080:80".parse().unwrap()]);
    let many = ports(r#"{"host_ip":"127.0.0.1","container_port":80,"host_port":8080,"range":3,"protocol":"tcp,udp"}"#)
        .unwrap();
    assert_eq!(
        many,
        ["127.0.0.1:8080-8082:80-82/tcp".parse().unwrap(), "127.0.0.1:8080-8082:80-82/udp".parse().unwrap()]
    );
    let refuse = |text: &str, why: &str| assert_eq!(ports(text).unwrap_err().to_string(), why);
    refuse(
        r#"{"host_ip":"abcd","container_port":80,"host_port":8080,"range":1,"protocol":"tcp"}"#,
        "invalid host ip \"abcd\" provided for port 8080",
    );
    refuse(
        r#"{"container_port":80,"host_port":65535,"range":2,"protocol":"tcp"}"#,
        "port range of 2 from 65535 on ends after 65535",
    );
    refuse(r#"{"container_port":80,"host_port":1,"protocol":"icmp"}"#, "unknown port protocol \"icmp\"");
}

#[test]
fn what_cannot_be_is_refused_in_netavarks_words() {
    let parts = |attachment: &str, network: &str| {
        let text = format!(
            r#"{{"container_id":"x","container_name":"web","networks":{{"n":{attachment}}},"network_info":{{"n":{network}}}}}"#
        );
        let setup = parse_setup(text.as_bytes()).unwrap();
        plan(&setup, Path::new("/n"), None, no_bridges).map(drop).unwrap_err().to_string()
    };
    let bridge = |rest: &str| {
        format!(
            r#"{{"name":"n","id":"1","driver":"bridge","network_interface":"b0","subnets":[{{"subnet":"10.1.0.0/24"}}]{rest}}}"#
        )
    };
    let plain = r#"{"interface_name":"eth0","static_ips":["10.1.0.2"]}"#;
    for (attachment, network, text) in [
        (plain, r#"{"name":"n","id":"1","driver":"bridge"}"#.to_owned(), "no bridge interface name given"),
        (r#"{"static_ips":[]}"#, bridge(""), "no container interface name given"),
        (r#"{"interface_name":"eth0"}"#, bridge(""), "no static ips provided"),
        (
            r#"{"interface_name":"eth0","static_ips":["10.2.0.2"]}"#,
            bridge(""),
            "not all static IPs matched a subnet: expected 1, got 0",
        ),
        (
            r#"{"interface_name":"eth0","static_ips":["10.1.0.2"],"static_mac":"aa:bb"}"#,
            bridge(""),
            "invalid mac length for address: aa:bb",
        ),
        (
            r#"{"interface_name":"eth0","static_ips":["10.1.0.2"],"static_mac":"zz:bb"}"#,
            bridge(""),
            "unable to parse mac address zz:bb: invalid digit found in string",
        ),
        (plain, bridge(r#","ipam_options":{"driver":"x"}"#), "unsupported ipam driver x"),
        (plain, bridge(r#","options":{"mtu":"x"}"#), "unable to parse \"mtu\": invalid digit found in string"),
        (plain, bridge(r#","options":{"mode":"x"}"#), "invalid bridge mode \"x\""),
        (plain, bridge(r#","options":{"isolate":"srtict"}"#), "invalid isolate option \"srtict\""),
        (plain, bridge(r#","options":{"isolate":""}"#), "invalid isolate option \"\""),
        (
            plain,
            bridge(r#","routes":[{"destination":"10.9.0.0/24"}]"#),
            "route 10.9.0.0/24 requires a gateway for type unicast",
        ),
    ] {
        assert_eq!(parts(attachment, &network), text);
    }
    let missing =
        parse_setup(br#"{"container_id":"x","container_name":"web","networks":{"n":{"interface_name":"a"}}}"#);
    assert_eq!(
        plan(&missing.unwrap(), Path::new("/n"), None, no_bridges).map(drop).unwrap_err().to_string(),
        "network info for network n not found"
    );
}

#[test]
fn ids_of_any_form() {
    assert_eq!(container_id(ID).to_string(), ID);
    assert_eq!(container_id("someID"), container_id("someID"));
    assert_ne!(container_id("someID"), container_id("otherID"));
    let network = |id: &str, name: &str| {
        let text = format!(r#"{{"name":"{name}","id":"{id}","driver":"bridge"}}"#);
        network_id(&serde_json::from_str(&text).unwrap())
    };
    assert_eq!(network(ID, "web").to_string(), ID);
    assert_eq!(network("someID", "web"), network("otherID", "web"));
    assert_ne!(network("someID", "web"), network("someID", "far"));
}

#[test]
fn our_own_name_server_is_nobody_to_ask() {
    let names = r#","dns_enabled":true"#;
    let own = "10.88.0.1";
    let of_container = request("", names, &format!(r#","dns_servers":["9.9.9.9","{own}"]"#)).unwrap_err().to_string();
    assert_eq!(
        of_container,
        "DNS server 10.88.0.1 is the gateway of network \"podman\"; using it would cause aardvark-dns to forward queries to \
         itself."
    );
    let of_network = request("", &format!(r#"{names},"network_dns_servers":["{own}"]"#), "").unwrap_err().to_string();
    assert!(of_network.starts_with("network DNS server 10.88.0.1 matches the gateway"), "{of_network}");
    // Where nobody of ours answers it is a server like any other.
    request("", "", &format!(r#","dns_servers":["{own}"]"#)).unwrap();
    request("", names, r#","dns_servers":["9.9.9.9"]"#).unwrap();
}

#[test]
fn names_on_somebody_elses_bridge() {
    let asked = |network: &str, rest: &str, has: Option<&[&str]>| {
        let setup = setup("", &format!(r#","dns_enabled":true,"options":{{"mode":"unmanaged"}}{network}"#), rest);
        let addresses_of = |bridge: &str| {
            assert_eq!(bridge, "podman0");
            Ok(has.map(|all| all.iter().map(|address| address.parse().unwrap()).collect()))
        };
        let planned = plan(&setup, Path::new("/n"), None, addresses_of).map(|plan| plan.attach.unwrap());
        planned.map(|attach| attach.endpoints[0].transient.clone().unwrap())
    };
    let own: &[&str] = &["10.88.0.100", "2001:db8::100"];
    let network = asked("", "", Some(own)).unwrap();
    assert_eq!(network.names_at, own.iter().map(|one| one.parse::<IpAddr>().unwrap()).collect::<Vec<_>>());
    assert!(network.names);
    // That there is no such bridge is for the engine to say.
    assert_eq!(asked("", "", None).unwrap().names_at, Vec::<IpAddr>::new());
    assert_eq!(
        asked("", "", Some(&[])).unwrap_err().to_string(),
        "bridge 'podman0' in unmanaged mode has no usable IP addresses. Aardvark-dns requires at least one address (should not \
         be an IPv6 link-local address) to bind to. Please add an IP address or disable DNS for this network (--disable-dns)."
    );
    // The gateway is a server like any other here, and what the bridge has is our own.
    asked("", r#","dns_servers":["10.88.0.1"]"#, Some(own)).unwrap();
    assert_eq!(
        asked("", r#","dns_servers":["10.88.0.100"]"#, Some(own)).unwrap_err().to_string(),
        "DNS server 10.88.0.100 is the gateway of network \"podman\"; using it would cause aardvark-dns to forward queries to \
         itself."
    );
    // Whose addresses nobody gives, nobody knows when they ask.
    assert!(!asked(r#","ipam_options":{"driver":"none"}"#, "", Some(&[])).unwrap().names);
}

#[test]
fn names_that_are_none_are_left_out_aloud() {
    let setup = setup(r#","aliases":["good","bad name","c,d"]"#, r#","dns_enabled":true"#, "");
    let plan = plan(&setup, Path::new("/n"), None, no_bridges).unwrap();
    assert_eq!(plan.attach.unwrap().endpoints[0].aliases, ["good".parse().unwrap()]);
    assert_eq!(plan.warnings.len(), 2);
    assert!(plan.warnings[0].starts_with("invalid network alias \"bad name\""), "{:?}", plan.warnings);
}
