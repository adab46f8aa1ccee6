//! What an ADD answers, in every version of the spec.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{Code, Error};
use crate::version::Version;

/// What an ADD answers, as the newest version has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Success {
    /// The interfaces made, on the host and inside.
    pub interfaces: Vec<Interface>,
    /// The addresses.
    pub ips: Vec<Ip>,
    /// The routes inside.
    pub routes: Vec<Route>,
    /// Names.
    pub dns: Dns,
}

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC; empty if unknown.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU (from 1.1.0 on).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The file of the namespace it is in; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// The socket file that leads to it (from 1.1.0 on).
    #[serde(default, rename = "socketPath", skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Its PCI device (from 1.1.0 on).
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

impl Interface {
    /// What `version` can say of it.
    fn for_version(&self, version: Version) -> Self {
        if version.has_gc() {
            return self.clone();
        }
        Self { mtu: None, socket_path: String::new(), pci_id: String::new(), ..self.clone() }
    }
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Ip {
    /// Whose, among the interfaces.
    #[serde(default)]
    pub interface: Option<usize>,
    /// With prefix length.
    pub address: IpNet,
    /// The gateway.
    #[serde(default)]
    pub gateway: Option<IpAddr>,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub dst: IpNet,
    /// By which gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The MTU along it (from 1.1.0 on, as all that follows).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The segment size to announce along it.
    #[serde(default, rename = "advmss", skip_serializing_if = "Option::is_none")]
    pub advertised_mss: Option<u32>,
    /// Its metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The table it is in; the main one if none is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// How far its destination is (`RT_SCOPE_*`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    /// A route without more.
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advertised_mss: None, priority: None, table: None, scope: None }
    }

    /// What `version` can say of it.
    fn for_version(&self, version: Version) -> Self {
        if version.has_gc() { self.clone() } else { Self::new(self.dst, self.gw) }
    }
}

/// Names: resolv.conf(5) as the spec has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The container's domain.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// The search list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl Success {
    /// The object of `version`.
    ///
    /// # Errors
    /// [`Code::Internal`] when `version` cannot say it: before 0.3.0 there is one address of a family.
    pub fn to_json(&self, version: Version) -> Result<String, Error> {
        let mut object = Map::new();
        object.insert("cniVersion".to_owned(), version.to_string().into());
        if version.has_one_address() {
            self.put_one_address(&mut object)?;
        } else {
            self.put_lists(&mut object, version);
        }
        object.insert("dns".to_owned(), plain(&self.dns));
        Ok(Value::Object(object).to_string())
    }

    fn put_one_address(&self, object: &mut Map<String, Value>) -> Result<(), Error> {
        for (key, is_v4) in [("ip4", true), ("ip6", false)] {
            let Some(ip) = self.ips.iter().find(|ip| ip.address.addr().is_ipv4() == is_v4) else { continue };
            let routes: Vec<Value> = self
                .routes
                .iter()
                .filter(|route| route.dst.addr().is_ipv4() == is_v4)
                .map(|route| plain(&Route::new(route.dst, route.gw)))
                .collect();
            let mut value = json!({ "ip": ip.address });
            if let Some(gateway) = ip.gateway {
                value["gateway"] = json!(gateway);
            }
            if !routes.is_empty() {
                value["routes"] = Value::Array(routes);
            }
            object.insert(key.to_owned(), value);
        }
        if self.ips.is_empty() {
            return Err(Error::new(Code::Internal, "cannot convert: no valid IP addresses"));
        }
        Ok(())
    }

    fn put_lists(&self, object: &mut Map<String, Value>, version: Version) {
        let interface = |interface: &Interface| plain(&interface.for_version(version));
        let ip = |ip: &Ip| {
            let mut value = Map::new();
            if version.names_families() {
                let family = if ip.address.addr().is_ipv4() { "4" } else { "6" };
                value.insert("version".to_owned(), family.into());
            }
            value.extend(ip.interface.map(|index| ("interface".to_owned(), json!(index))));
            value.insert("address".to_owned(), json!(ip.address));
            value.extend(ip.gateway.map(|gateway| ("gateway".to_owned(), json!(gateway))));
            Value::Object(value)
        };
        let route = |route: &Route| plain(&route.for_version(version));
        let lists: [(&str, Vec<Value>); 3] = [
            ("interfaces", self.interfaces.iter().map(interface).collect()),
            ("ips", self.ips.iter().map(ip).collect()),
            ("routes", self.routes.iter().map(route).collect()),
        ];
        for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
            object.insert(key.to_owned(), Value::Array(list));
        }
    }

    /// Reads a result of any version.
    ///
    /// # Errors
    /// [`Code::Decoding`] for what is none.
    pub fn from_value(value: &Value) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Wire {
            #[serde(default)]
            interfaces: Option<Vec<Interface>>,
            #[serde(default)]
            ips: Option<Vec<Ip>>,
            #[serde(default)]
            routes: Option<Vec<Route>>,
            #[serde(default)]
            ip4: Option<One>,
            #[serde(default)]
            ip6: Option<One>,
            #[serde(default)]
            dns: Option<Dns>,
        }
        #[derive(Deserialize)]
        struct One {
            ip: IpNet,
            #[serde(default)]
            gateway: Option<IpAddr>,
            #[serde(default)]
            routes: Option<Vec<Route>>,
        }
        let wrong = |why: String| Error::new(Code::Decoding, format!("could not parse prevResult: {why}"));
        if !value.is_object() {
            return Err(wrong("it is no object".to_owned()));
        }
        let wire: Wire = serde_json::from_value(value.clone()).map_err(|error| wrong(error.to_string()))?;
        let (mut ips, mut routes) = (wire.ips.unwrap_or_default(), wire.routes.unwrap_or_default());
        for one in [wire.ip4, wire.ip6].into_iter().flatten() {
            ips.push(Ip { interface: None, address: one.ip, gateway: one.gateway });
            routes.extend(one.routes.unwrap_or_default());
        }
        let interfaces = wire.interfaces.unwrap_or_default();
        Ok(Self { interfaces, ips, routes, dns: wire.dns.unwrap_or_default() })
    }

    /// Reads the answer of another plugin.
    ///
    /// # Errors
    /// [`Code::Decoding`] for what is none.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let value: Value = serde_json::from_slice(text)
            .map_err(|error| Error::new(Code::Decoding, format!("could not parse result: {error}")))?;
        Self::from_value(&value)
    }
}

fn plain(value: &impl Serialize) -> Value {
    serde_json::to_value(value).expect("plain values serialise")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::SUPPORTED;

    fn sample() -> Success {
        Success {
            interfaces: vec![
                Interface {
                    name: "cni0".into(),
                    mac: "02:00:00:00:00:01".into(),
                    mtu: Some(1500),
                    ..Interface::default()
                },
                Interface { name: "eth0".into(), sandbox: "/run/netns/a".into(), ..Interface::default() },
            ],
            ips: vec![
                Ip {
                    interface: Some(1),
                    address: "10.4.0.2/24".parse().unwrap(),
                    gateway: Some("10.4.0.1".parse().unwrap()),
                },
                Ip { interface: Some(1), address: "fd00::2/64".parse().unwrap(), gateway: None },
            ],
            routes: vec![Route {
                priority: Some(100),
                ..Route::new("0.0.0.0/0".parse().unwrap(), Some("10.4.0.1".parse().unwrap()))
            }],
            dns: Dns { nameservers: vec!["10.4.0.1".into()], ..Dns::default() },
        }
    }

    #[test]
    fn every_version_has_its_form() {
        let text = |version: &str| sample().to_json(Version::parse(version).unwrap()).unwrap();
        let value = |version: &str| serde_json::from_str::<Value>(&text(version)).unwrap();
        assert_eq!(
            value("0.2.0"),
            json!({"cniVersion":"0.2.0",
                "ip4":{"ip":"10.4.0.2/24","gateway":"10.4.0.1","routes":[{"dst":"0.0.0.0/0","gw":"10.4.0.1"}]},
                "ip6":{"ip":"fd00::2/64"},"dns":{"nameservers":["10.4.0.1"]}})
        );
        let interfaces = json!([{"name":"cni0","mac":"02:00:00:00:00:01"},{"name":"eth0","sandbox":"/run/netns/a"}]);
        assert_eq!(
            value("0.4.0"),
            json!({"cniVersion":"0.4.0","interfaces":interfaces,
                "ips":[{"version":"4","interface":1,"address":"10.4.0.2/24","gateway":"10.4.0.1"},
                       {"version":"6","interface":1,"address":"fd00::2/64"}],
                "routes":[{"dst":"0.0.0.0/0","gw":"10.4.0.1"}],"dns":{"nameservers":["10.4.0.1"]}})
        );
        assert_eq!(value("1.0.0")["ips"][0], json!({"interface":1,"address":"10.4.0.2/24","gateway":"10.4.0.1"}));
        assert_eq!(value("1.0.0")["interfaces"], interfaces);
        assert_eq!(value("1.1.0")["interfaces"][0]["mtu"], 1500);
        assert_eq!(value("1.1.0")["routes"][0]["priority"], 100);
        assert_eq!(
            Success::default().to_json(Version::parse("1.0.0").unwrap()).unwrap(),
            r#"{"cniVersion":"1.0.0","dns":{}}"#
        );
    }

    #[test]
    fn what_is_written_is_read() {
        for version in SUPPORTED {
            let text = sample().to_json(version).unwrap();
            let back = Success::parse(text.as_bytes()).unwrap();
            let addresses =
                |success: &Success| success.ips.iter().map(|ip| (ip.address, ip.gateway)).collect::<Vec<_>>();
            assert_eq!(addresses(&back), addresses(&sample()), "{version}");
            assert_eq!(back.routes[0].dst, sample().routes[0].dst);
            if !version.has_one_address() {
                assert_eq!(back.ips[0].interface, Some(1));
            }
        }
        assert_eq!(Success::parse(b"[]").unwrap_err().code, Code::Decoding);
        assert_eq!(Success::parse(b"").unwrap_err().code, Code::Decoding);
    }
}
