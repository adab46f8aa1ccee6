//! What goes over standard input and output, key by key.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::failure::Failure;

/// What `setup` and `teardown` are told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Setup {
    /// Podman's id of the container, usually 64 hexadecimal digits.
    pub container_id: String,
    /// Its name.
    pub container_name: String,
    /// Its host name.
    #[serde(default)]
    pub container_hostname: Option<String>,
    /// The networks it is put on, in the order of its interfaces.
    #[serde(deserialize_with = "attachments")]
    pub networks: Vec<Attachment>,
    /// What those networks look like, by name.
    #[serde(default)]
    pub network_info: BTreeMap<String, Network>,
    /// The ports published on the host.
    #[serde(default)]
    pub port_mappings: Option<Vec<PortMapping>>,
    /// Where its questions are forwarded to.
    #[serde(default)]
    pub dns_servers: Option<Vec<IpAddr>>,
}

/// A container's place on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network. In the older form it is the key of the object.
    #[serde(default, skip_serializing)]
    pub name: String,
    /// Names on this network besides the container's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aliases: Option<Vec<String>>,
    /// The interface in the container.
    #[serde(default)]
    pub interface_name: String,
    /// Its addresses, chosen by Podman.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub static_ips: Option<Vec<IpAddr>>,
    /// Its MAC, if a person chose one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub static_mac: Option<String>,
    /// Options of the driver for this container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<BTreeMap<String, String>>,
}

/// A network, as Podman keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Network {
    /// The name.
    pub name: String,
    /// The id, 64 hexadecimal digits.
    pub id: String,
    /// `bridge`, `macvlan`, `ipvlan`, or a plugin.
    pub driver: String,
    /// The bridge, or the parent of macvlan and ipvlan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_interface: Option<String>,
    /// When it was made (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Its subnets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnets: Option<Vec<Subnet>>,
    /// Routes that its containers get.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route>>,
    /// Whether it speaks IPv6; its subnets say so too.
    #[serde(default)]
    pub ipv6_enabled: bool,
    /// No way out.
    #[serde(default)]
    pub internal: bool,
    /// Whether names are answered on it.
    #[serde(default)]
    pub dns_enabled: bool,
    /// Where questions from it are forwarded to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network_dns_servers: Option<Vec<IpAddr>>,
    /// Labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Options of the driver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub options: Option<BTreeMap<String, String>>,
    /// `driver`: who chooses addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam_options: Option<BTreeMap<String, String>>,
    /// What we do not know, for plugins and for newer callers who find it again in the answer.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Network {
    /// Who chooses addresses; empty if nobody said.
    pub fn ipam(&self) -> &str {
        self.ipam_options.as_ref().and_then(|options| options.get("driver")).map_or("", String::as_str)
    }

    /// An option of the driver.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.as_ref()?.get(key).map(String::as_str)
    }
}

/// A subnet of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The subnet.
    pub subnet: IpNet,
    /// The gateway in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Where Podman takes addresses from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_range: Option<LeaseRange>,
}

/// Where addresses are taken from, ends included.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRange {
    /// The first address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ip: Option<String>,
    /// The last address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_ip: Option<String>,
}

/// A route that containers get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub destination: IpNet,
    /// The router; none for other types than `unicast`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Its priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<u32>,
    /// `unicast`, `blackhole`, `unreachable` or `prohibit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route_type: Option<String>,
}

/// Ports published on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// On which address; empty for all of both families.
    #[serde(default)]
    pub host_ip: String,
    /// The first port in the container.
    pub container_port: u16,
    /// The first port of the host.
    pub host_port: u16,
    /// How many; 0 and 1 mean one.
    #[serde(default)]
    pub range: u16,
    /// `tcp`, `udp`, `sctp`, or several of them between commas; empty for tcp.
    #[serde(default)]
    pub protocol: String,
}

/// What is answered of one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusBlock {
    /// For `search` in the container's resolver file.
    #[serde(default)]
    pub dns_search_domains: Option<Vec<String>>,
    /// For its `nameserver` lines.
    #[serde(default)]
    pub dns_server_ips: Option<Vec<IpAddr>>,
    /// Its interfaces, by name.
    #[serde(default)]
    pub interfaces: Option<BTreeMap<String, Interface>>,
}

/// What is answered of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its MAC.
    pub mac_address: String,
    /// Its addresses.
    #[serde(default)]
    pub subnets: Option<Vec<Address>>,
}

/// What is answered of an address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// The gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// The address with the subnet's prefix length.
    pub ipnet: IpNet,
}

/// What `create` is told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct CreateConfig {
    /// The network asked for; its id is chosen already.
    pub network: Network,
    /// What other networks have.
    #[serde(default)]
    pub used: Used,
    /// Where free things are taken from.
    #[serde(default, alias = "create_opts")]
    pub options: CreateOptions,
}

/// What other networks of Podman's have.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct Used {
    /// Devices.
    #[serde(default)]
    pub interfaces: Vec<String>,
    /// Names, with their ids.
    #[serde(default)]
    pub names: BTreeMap<String, String>,
    /// Subnets, those of the host's interfaces among them.
    #[serde(default)]
    pub subnets: Vec<IpNet>,
}

/// Where free things are taken from.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct CreateOptions {
    /// Where IPv4 subnets are taken from, in order.
    #[serde(default)]
    pub subnet_pools: Vec<SubnetPool>,
    /// What names of bridges begin with.
    #[serde(default)]
    pub default_interface_name: Option<String>,
    /// Whether a subnet may not overlap others.
    #[serde(default)]
    pub check_used_subnets: bool,
}

/// Space for subnets of one size.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SubnetPool {
    /// The space.
    pub base: IpNet,
    /// The prefix length of a subnet.
    pub size: u32,
}

/// What a plugin is told by `setup` and `teardown`.
#[derive(Debug, Clone, Serialize)]
pub struct PluginInput<'a> {
    /// The container's id.
    pub container_id: &'a str,
    /// Its name.
    pub container_name: &'a str,
    /// Its ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port_mappings: Option<&'a [PortMapping]>,
    /// The network.
    pub network: &'a Network,
    /// The container's place on it.
    pub network_options: &'a Attachment,
}

/// Reads what `setup` and `teardown` are told.
///
/// # Errors
/// As netavark says it, with the place in the text.
pub fn parse_setup(text: &[u8]) -> Result<Setup, Failure> {
    parse(text).map_err(|failure| failure.within("failed to load network options"))
}

/// Reads what `create` is told.
///
/// # Errors
/// As netavark says it, with the place in the text.
pub fn parse_create(text: &[u8]) -> Result<CreateConfig, Failure> {
    parse(text).map_err(|failure| failure.within("failed to load network create options"))
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(text).map_err(|error| Failure::new(format!("JSON Decoding error: {error}")))
}

/// Both forms of `networks`: an object, whose order says nothing, or a list.
fn attachments<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Attachment>, D::Error> {
    struct Both;

    impl<'de> Visitor<'de> for Both {
        type Value = Vec<Attachment>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object or a list of networks")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some((name, attachment)) = map.next_entry::<String, Attachment>()? {
                found.push(Attachment { name, ..attachment });
            }
            // Shorter first, so that eth10 comes after eth9.
            found.sort_by(|a, b| {
                let key = |x: &Attachment| (x.interface_name.len(), x.interface_name.clone());
                key(a).cmp(&key(b))
            });
            unique(found)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
            let mut found = Vec::new();
            while let Some(attachment) = seq.next_element::<Attachment>()? {
                if attachment.name.is_empty() {
                    return Err(A::Error::missing_field("name"));
                }
                found.push(attachment);
            }
            unique(found)
        }
    }

    fn unique<E: serde::de::Error>(found: Vec<Attachment>) -> Result<Vec<Attachment>, E> {
        let mut names = BTreeSet::new();
        match found.iter().find(|attachment| !names.insert(&attachment.name)) {
            Some(twice) => Err(E::custom(format_args!("duplicate network {:?}", shortened(&twice.name)))),
            None => Ok(found),
        }
    }

    deserializer.deserialize_any(Both)
}

/// A name for a message, which somebody may have made very long.
pub(crate) fn shortened(text: &str) -> String {
    const LONGEST: usize = 128;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(networks: &str) -> Result<Setup, Failure> {
        parse_setup(format!(r#"{{"container_id":"x","container_name":"c","networks":{networks}}}"#).as_bytes())
    }

    #[test]
    fn both_forms_of_networks() {
        let object = setup(r#"{"b":{"interface_name":"eth10"},"a":{"interface_name":"eth9"}}"#).unwrap();
        assert_eq!(object.networks.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let list = setup(r#"[{"name":"z","interface_name":"eth0"},{"name":"a","interface_name":"eth1"}]"#).unwrap();
        assert_eq!(list.networks.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["z", "a"]);
    }

    #[test]
    fn malformed_input_says_where() {
        for (text, why) in [
            ("", "EOF while parsing a value at line 1 column 0"),
            (r#"{"container_id":"x""#, "EOF while parsing an object at line 1 column 19"),
            ("null", "invalid type: null, expected struct Setup at line 1 column 4"),
        ] {
            let error = parse_setup(text.as_bytes()).unwrap_err().to_string();
            assert_eq!(error, format!("failed to load network options: JSON Decoding error: {why}"));
        }
        for twice in [r#"{"a":{"interface_name":"x"},"a":{"interface_name":"y"}}"#, r#"[{"name":"a"},{"name":"a"}]"#] {
            assert!(setup(twice).unwrap_err().to_string().contains(r#"duplicate network "a""#));
        }
        assert!(setup(r#"[{"interface_name":"eth0"}]"#).unwrap_err().to_string().contains("missing field `name`"));
    }

    #[test]
    fn unknown_keys_are_ignored_and_a_networks_are_kept() {
        let text = r#"{"name":"n","id":"1","driver":"bridge","novel":{"a":1}}"#;
        let network: Network = serde_json::from_str(text).unwrap();
        assert_eq!(network.rest["novel"]["a"], 1);
        assert!(serde_json::to_string(&network).unwrap().contains(r#""novel":{"a":1}"#));
    }
}
