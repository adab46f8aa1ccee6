//! What a runtime says on standard input (CNI spec, "Network configuration format", and its conventions).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::call::is_name;
use crate::error::{Code, Error};
use crate::result::{Dns, Success};
use crate::version::Version;

/// Objects whose keys are somebody's own words, or read elsewhere.
const VERBATIM: [&str; 7] = ["args", "labels", "options", "aliases", "prevresult", "capabilities", "sysctl"];

/// The configuration of one plugin.
///
/// Keys are matched whatever their case, as Go's encoding/json does: containerd writes some of them with capitals.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// The version of the spec it is written for.
    #[serde(skip)]
    pub version: Option<Version>,
    #[serde(default, rename = "cniversion")]
    version_text: String,
    /// The network's name.
    #[serde(default)]
    pub name: String,
    /// The plugin's name.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// The network of the store that is meant, if it is one.
    #[serde(default)]
    pub network: Option<String>,
    /// What carries a network that is described here: bridge, ptp, macvlan or ipvlan.
    #[serde(default)]
    pub driver: Option<String>,
    /// The device of a bridge network.
    #[serde(default)]
    pub bridge: Option<String>,
    /// The interface of the host that a macvlan or ipvlan network is on.
    #[serde(default, alias = "master")]
    pub parent: Option<String>,
    /// The mode of a macvlan or ipvlan network.
    #[serde(default)]
    pub mode: Option<String>,
    /// The MTU; 0 for what fits.
    #[serde(default)]
    pub mtu: Option<u32>,
    /// No way out.
    #[serde(default)]
    pub internal: bool,
    /// Whether what leaves takes the host's address.
    #[serde(default, rename = "ipmasq")]
    pub masquerade: Option<bool>,
    /// More options, as `portolan network create --opt` has them.
    #[serde(default)]
    pub options: BTreeMap<String, Scalar>,
    /// Labels of a network that is described here.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Sysctls of the container's namespace.
    #[serde(default, deserialize_with = "or_default")]
    pub sysctl: BTreeMap<String, String>,
    /// Whether its interface takes packets that are not for it.
    #[serde(default, deserialize_with = "or_default")]
    pub promisc: bool,
    /// Whether it takes packets for every multicast group.
    #[serde(default)]
    pub allmulti: Option<bool>,
    /// How many packets may wait on it.
    #[serde(default, rename = "txqlen")]
    pub tx_queue_len: Option<u32>,
    /// Its MAC, if nobody says another.
    #[serde(default, deserialize_with = "or_default")]
    pub mac: String,
    /// Who gives out addresses.
    #[serde(default)]
    pub ipam: Option<Ipam>,
    /// What the result is to say about names.
    #[serde(default)]
    pub dns: Option<Dns>,
    /// How much may pass, for every container.
    #[serde(flatten)]
    bandwidth: Bandwidth,
    /// What the runtime says of this container.
    #[serde(default, rename = "runtimeconfig")]
    pub runtime: Runtime,
    /// Metadata of others: `cni`, `org.apache.mesos`.
    #[serde(default)]
    args: Option<Value>,
    #[serde(default, rename = "prevresult")]
    previous: Option<Value>,
    /// The containers that are there (GC).
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid: Option<Vec<Attachment>>,
    #[serde(default, rename = "cni.dev/attachments")]
    valid_before: Option<Vec<Attachment>>,
}

/// A container's place on a network.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Attachment {
    /// The runtime's name for the container.
    #[serde(rename = "containerid")]
    pub container: String,
    /// The interface inside.
    #[serde(default)]
    pub ifname: String,
}

/// A value of an option.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Scalar {
    /// `"x"`
    Text(String),
    /// `true`
    Bool(bool),
    /// `7`
    Number(i64),
}

impl std::fmt::Display for Scalar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Bool(value) => value.fmt(f),
            Self::Number(value) => value.fmt(f),
        }
    }
}

/// Who gives out addresses, and which (host-local's and static's words).
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Ipam {
    /// `portolan` or `host-local`, `static`, `dhcp`, or another plugin.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// One range, flat.
    #[serde(flatten)]
    pub range: Range,
    /// Sets of ranges: an address of each set is given.
    #[serde(default)]
    pub ranges: Vec<Vec<Range>>,
    /// Routes of the container.
    #[serde(default)]
    pub routes: Vec<IpamRoute>,
    /// Addresses of `static`.
    #[serde(default)]
    pub addresses: Vec<StaticAddress>,
    /// What the result is to say about names (static).
    #[serde(default)]
    pub dns: Option<Dns>,
}

/// A subnet, and the part of it that addresses come from.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Range {
    /// The subnet.
    #[serde(default)]
    pub subnet: Option<IpNet>,
    /// The first address to give.
    #[serde(default, rename = "rangestart")]
    pub first: Option<IpAddr>,
    /// The last address to give.
    #[serde(default, rename = "rangeend")]
    pub last: Option<IpAddr>,
    /// The gateway; the first address of the subnet if none is given.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// A route of the container.
#[derive(Debug, Clone, Deserialize)]
pub struct IpamRoute {
    /// Where to.
    pub dst: IpNet,
    /// By which gateway; the subnet's if none is given.
    #[serde(default)]
    pub gw: Option<IpAddr>,
    /// Its metric.
    #[serde(default)]
    pub priority: Option<u32>,
}

/// An address of `static`.
#[derive(Debug, Clone, Deserialize)]
pub struct StaticAddress {
    /// With prefix length.
    pub address: IpNet,
    /// Its gateway.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// What the runtime says of this container (CNI conventions, "Dynamic plugin specific fields").
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Runtime {
    /// Ports to publish.
    #[serde(default, rename = "portmappings", deserialize_with = "or_default")]
    pub ports: Vec<PortMapping>,
    /// Addresses asked for, with or without prefix length.
    #[serde(default, deserialize_with = "or_default")]
    pub ips: Vec<String>,
    /// The MAC asked for.
    #[serde(default, deserialize_with = "or_default")]
    pub mac: String,
    /// Ranges in place of the configuration's.
    #[serde(default, rename = "ipranges", deserialize_with = "or_default")]
    pub ranges: Vec<Vec<Range>>,
    /// What resolvers the container has.
    #[serde(default)]
    pub dns: Option<RuntimeDns>,
    /// Names of the container, by network.
    #[serde(default, deserialize_with = "or_default")]
    pub aliases: BTreeMap<String, Vec<String>>,
    /// How much may pass.
    #[serde(default)]
    pub bandwidth: Option<Bandwidth>,
}

/// How much may pass (CNI conventions, "bandwidth"): bits per second and bits, seen from the container; 0 is none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Bandwidth {
    /// Into the container.
    #[serde(default, rename = "ingressrate")]
    pub ingress_rate: Option<u64>,
    /// Into the container at once.
    #[serde(default, rename = "ingressburst")]
    pub ingress_burst: Option<u64>,
    /// Out of the container.
    #[serde(default, rename = "egressrate")]
    pub egress_rate: Option<u64>,
    /// Out of the container at once.
    #[serde(default, rename = "egressburst")]
    pub egress_burst: Option<u64>,
    /// Destinations that alone are limited.
    #[serde(default, rename = "shapedsubnets", deserialize_with = "or_default")]
    pub shaped: Vec<String>,
    /// Destinations that are not limited.
    #[serde(default, rename = "unshapedsubnets", deserialize_with = "or_default")]
    pub unshaped: Vec<String>,
}

/// A port to publish.
#[derive(Debug, Clone, Deserialize)]
pub struct PortMapping {
    /// On the host.
    #[serde(default, rename = "hostport", alias = "host_port")]
    pub host: i64,
    /// In the container.
    #[serde(default, rename = "containerport", alias = "container_port")]
    pub container: i64,
    /// tcp, udp or sctp.
    #[serde(default)]
    pub protocol: String,
    /// The address of the host; empty for all.
    #[serde(default, rename = "hostip")]
    pub host_ip: String,
}

/// Resolvers as the `dns` capability has them.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RuntimeDns {
    /// Name servers.
    #[serde(default, deserialize_with = "or_default")]
    pub servers: Vec<String>,
    /// Search domains.
    #[serde(default, deserialize_with = "or_default")]
    pub searches: Vec<String>,
    /// Resolver options.
    #[serde(default, deserialize_with = "or_default")]
    pub options: Vec<String>,
}

/// `null` is nothing: Go writes empty slices so.
fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// As the reference implementation refuses: [`Code::Decoding`] for what is no such JSON, [`Code::InvalidConfig`] for a
    /// name that is none, [`Code::Incompatible`] for a version that is not spoken here.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        Self::checked(read(text)?)
    }

    /// Reads a configuration but for what IPAM plugins alone look at, and refuse in their own words: of `ipam` its `type`,
    /// of `runtimeConfig` all but `ips` and `ipRanges`.
    ///
    /// # Errors
    /// As [`Config::parse`].
    pub fn parse_without_ipam(text: &[u8]) -> Result<Self, Error> {
        let mut value: Value = read(text)?;
        if let Some(ipam) = value.get_mut("ipam").and_then(Value::as_object_mut) {
            ipam.retain(|key, _| key == "type");
        }
        if let Some(runtime) = value.get_mut("runtimeconfig").and_then(Value::as_object_mut) {
            runtime.retain(|key, _| !matches!(key.as_str(), "ips" | "ipranges"));
        }
        Self::checked(from_value(value)?)
    }

    fn checked(mut config: Self) -> Result<Self, Error> {
        if config.name.is_empty() {
            return Err(Error::new(Code::InvalidConfig, "missing network name"));
        }
        if !is_name(&config.name) {
            let error = Error::new(Code::InvalidConfig, "invalid characters found in network name");
            return Err(error.details(config.name));
        }
        config.version = Some(Version::parse(&config.version_text)?);
        Ok(config)
    }

    /// The version it is written for.
    pub fn version(&self) -> Version {
        self.version.expect("a configuration is parsed with its version")
    }

    /// The result of the plugin before, or of the ADD that a CHECK or DEL is about.
    ///
    /// # Errors
    /// [`Code::Decoding`] for what is no result.
    pub fn previous(&self) -> Result<Option<Success>, Error> {
        self.previous.as_ref().filter(|value| !value.is_null()).map(Success::from_value).transpose()
    }

    /// Whether a result came along.
    pub fn has_previous(&self) -> bool {
        self.previous.as_ref().is_some_and(|value| !value.is_null())
    }

    /// The containers that are there (GC); none if the caller did not list them.
    pub fn valid_attachments(&self) -> Option<&[Attachment]> {
        self.valid.as_deref().or(self.valid_before.as_deref())
    }

    /// What `args.cni` says about `key` (CNI conventions, "args in network config").
    pub fn cni_arg(&self, key: &str) -> Option<&Value> {
        let args = self.args.as_ref()?.as_object()?;
        let cni = args.get("cni")?.as_object()?;
        cni.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
    }

    /// How much may pass: what the configuration says, as the reference plugin has it, else what the runtime says.
    pub fn bandwidth(&self) -> Option<&Bandwidth> {
        Some(&self.bandwidth).filter(|own| **own != Bandwidth::default()).or(self.runtime.bandwidth.as_ref())
    }

    /// Ports to publish: the runtime's, or what Mesos says in its own way (`args."org.apache.mesos".network_info`).
    ///
    /// # Errors
    /// [`Code::Decoding`] for what are no port mappings.
    pub fn ports(&self) -> Result<Vec<PortMapping>, Error> {
        let mesos = self.args.as_ref().and_then(|args| args.pointer("/org.apache.mesos/network_info/port_mappings"));
        let mut ports = self.runtime.ports.clone();
        if let Some(mappings) = mesos.filter(|value| !value.is_null()) {
            ports.extend(from_value::<Vec<PortMapping>>(mappings.clone())?);
        }
        Ok(ports)
    }
}

/// Reads what a plugin knows of its configuration; the names of its fields are in lower case, for keys are matched whatever
/// theirs.
///
/// # Errors
/// [`Code::Decoding`] for what is no such JSON.
pub fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, Error> {
    let decoding =
        |error: &dyn std::fmt::Display| Error::new(Code::Decoding, format!("error unmarshall network config: {error}"));
    let value: Value = serde_json::from_slice(text).map_err(|error| decoding(&error))?;
    if !value.is_object() {
        return Err(decoding(&"it is no object"));
    }
    from_value(lowered(value))
}

fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, Error> {
    serde_json::from_value(value)
        .map_err(|error| Error::new(Code::Decoding, format!("error unmarshall network config: {error}")))
}

/// The same with keys in lower case, but for those that are not ours.
fn lowered(value: Value) -> Value {
    match value {
        Value::Object(object) => {
            let mut found = Map::new();
            for (key, value) in object {
                let key = key.to_ascii_lowercase();
                let value = if VERBATIM.contains(&key.as_str()) { value } else { lowered(value) };
                found.insert(key, value);
            }
            Value::Object(found)
        }
        Value::Array(values) => Value::Array(values.into_iter().map(lowered).collect()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerd_writes_capitals() {
        let config = Config::parse(
            br#"{"cniVersion":"1.0.0","name":"web","type":"portolan","ipMasq":true,"ipam":{"type":"host-local",
                "ranges":[[{"subnet":"10.4.0.0/24","rangeStart":"10.4.0.10","rangeEnd":"10.4.0.20"}]],
                "routes":[{"dst":"0.0.0.0/0"}]},
                "runtimeConfig":{"portMappings":[{"HostPort":8080,"ContainerPort":80,"Protocol":"tcp","HostIP":""}],
                "dns":{"Servers":["1.1.1.1"],"Searches":null,"Options":null},"aliases":{"Web":["a"]}}}"#,
        )
        .unwrap();
        assert_eq!(config.version().to_string(), "1.0.0");
        assert_eq!((config.masquerade, config.runtime.aliases["Web"].len()), (Some(true), 1));
        let port = &config.ports().unwrap()[0];
        assert_eq!((port.host, port.container, port.protocol.as_str()), (8080, 80, "tcp"));
        assert_eq!(config.runtime.dns.as_ref().unwrap().servers, ["1.1.1.1"]);
        let range = &config.ipam.as_ref().unwrap().ranges[0][0];
        assert_eq!(range.first, Some("10.4.0.10".parse().unwrap()));
    }

    #[test]
    fn bandwidth_in_whatever_case() {
        let of = |text: &str| {
            let text = format!(r#"{{"cniVersion":"1.0.0","name":"web","type":"portolan",{text}}}"#);
            Config::parse(text.as_bytes()).map(|config| config.bandwidth().cloned())
        };
        let wanted = Bandwidth {
            ingress_rate: Some(1_000_000),
            ingress_burst: Some(4_294_967_295),
            egress_rate: Some(0),
            ..Bandwidth::default()
        };
        for keys in ["IngressRate IngressBurst EgressRate", "ingressRate ingressBurst egressRate"] {
            let keys: Vec<&str> = keys.split(' ').collect();
            let inner = format!(r#""{}":1000000,"{}":4294967295,"{}":0"#, keys[0], keys[1], keys[2]);
            assert_eq!(of(&inner).unwrap(), Some(wanted.clone()), "{keys:?}");
            let runtime = format!(r#""runtimeConfig":{{"bandwidth":{{{inner}}}}}"#);
            assert_eq!(of(&runtime).unwrap(), Some(wanted.clone()), "{keys:?}");
            // As in the reference plugin, the configuration comes before the runtime.
            let both = format!(r#""ingressRate":8,"ingressBurst":8,{runtime}"#);
            assert_eq!(of(&both).unwrap().unwrap().ingress_rate, Some(8));
        }
        assert_eq!(of(r#""mtu":1400"#).unwrap(), None);
        assert_eq!(of(r#""runtimeConfig":{"bandwidth":null}"#).unwrap(), None);
        for bad in
            [r#""ingressRate":-1"#, r#""ingressRate":"fast""#, r#""runtimeConfig":{"bandwidth":{"egressRate":1.5}}"#]
        {
            assert_eq!(of(bad).unwrap_err().code, Code::Decoding, "{bad}");
        }
    }

    #[test]
    fn mesos_has_ports_of_its_own() {
        let config = Config::parse(
            br#"{"name":"web","type":"portolan","args":{"org.apache.mesos":{"network_info":{"name":"web",
                "port_mappings":[{"host_port":31000,"container_port":80}]}}}}"#,
        )
        .unwrap();
        assert_eq!(config.version().to_string(), "0.1.0");
        let port = &config.ports().unwrap()[0];
        assert_eq!((port.host, port.container), (31000, 80));
    }

    #[test]
    fn what_is_none() {
        for (text, code, msg) in [
            ("", Code::Decoding, "error unmarshall network config: "),
            ("[]", Code::Decoding, "error unmarshall network config: "),
            (r#"{"name":"#, Code::Decoding, "error unmarshall network config: "),
            (r#"{"name":7}"#, Code::Decoding, "error unmarshall network config: "),
            (r#"{"cniVersion":"1.0.0"}"#, Code::InvalidConfig, "missing network name"),
            (r#"{"name":"../etc"}"#, Code::InvalidConfig, "invalid characters found in network name"),
            (r#"{"name":"a","cniVersion":"9.0.0"}"#, Code::Incompatible, "incompatible CNI versions"),
            (r#"{"name":"a","ipam":{"subnet":"x"}}"#, Code::Decoding, "error unmarshall network config: "),
        ] {
            let error = Config::parse(text.as_bytes()).unwrap_err();
            assert_eq!(error.code, code, "{text}: {error}");
            assert!(error.msg.starts_with(msg), "{text}: {error}");
        }
    }

    #[test]
    fn attachments_of_both_names() {
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let text =
                format!(r#"{{"name":"a","cniVersion":"1.1.0","{key}":[{{"containerID":"x","ifname":"eth0"}}]}}"#);
            let config = Config::parse(text.as_bytes()).unwrap();
            assert_eq!(config.valid_attachments().unwrap()[0].container, "x");
        }
    }
}
