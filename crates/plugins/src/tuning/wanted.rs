//! What `tuning` is asked for.

use std::collections::BTreeMap;

use portolan_cni::{Call, Code, Config, Error, check_duplicate_sysctls, read};
use portolan_kernel::rtnl::Mac;
use portolan_model::SysctlKey;
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Debug, Default, Deserialize)]
struct Options {
    #[serde(default, rename = "datadir")]
    data_dir: String,
    #[serde(default)]
    sysctl: Option<BTreeMap<String, String>>,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    promisc: bool,
    #[serde(default)]
    mtu: u32,
    #[serde(default)]
    allmulti: Option<bool>,
    #[serde(default, rename = "txqlen")]
    tx_queue_len: Option<u32>,
}

/// Attributes of an interface, and settings of its namespace.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Wanted {
    /// By key as the configuration has it.
    pub(super) settings: Vec<Setting>,
    pub(super) mac: Option<Mac>,
    /// The MAC as it was written, for the result.
    pub(super) mac_text: String,
    pub(super) promisc: bool,
    pub(super) mtu: Option<u32>,
    pub(super) allmulti: Option<bool>,
    pub(super) tx_queue_len: Option<u32>,
    pub(super) data_dir: String,
}

/// A sysctl of the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Setting {
    pub(super) key: String,
    /// Below `/proc/sys`.
    pub(super) path: Vec<String>,
    pub(super) value: String,
}

/// Where the directory of backups is, whatever else the configuration says.
pub(super) fn data_dir(text: &[u8]) -> String {
    let options: Options = read(text).unwrap_or_default();
    if options.data_dir.is_empty() { "/run/cni/tuning".to_owned() } else { options.data_dir }
}

impl Wanted {
    /// What a configuration asks for. Each of these comes before the one after: `args.cni`, the runtime, `CNI_ARGS`, the
    /// configuration's own fields.
    pub(super) fn of(call: &Call, config: &Config, text: &[u8]) -> Result<Self, Error> {
        check_duplicate_sysctls(text)?;
        let options: Options = read(text)?;
        let mut mac = options.mac;
        if let Some(given) = call.arg("MAC") {
            given.clone_into(&mut mac);
        }
        if !config.runtime.mac.is_empty() {
            config.runtime.mac.clone_into(&mut mac);
        }
        let mac = arg(config, "mac")?.unwrap_or(mac);
        let mut settings = options.sysctl.unwrap_or_default();
        settings.extend(arg::<BTreeMap<String, String>>(config, "sysctl")?.unwrap_or_default());
        let setting = |(key, value): (String, String)| Setting::of(key, value, &call.ifname);
        Ok(Self {
            settings: settings.into_iter().map(setting).collect::<Result<_, _>>()?,
            mac: (!mac.is_empty()).then(|| parse_mac(&mac)).transpose()?,
            mac_text: mac,
            promisc: arg(config, "promisc")?.unwrap_or(options.promisc),
            mtu: Some(arg(config, "mtu")?.unwrap_or(options.mtu)).filter(|mtu| *mtu != 0),
            allmulti: arg(config, "allmulti")?.or(options.allmulti),
            tx_queue_len: arg(config, "txQLen")?.or(options.tx_queue_len),
            data_dir: data_dir(text),
        })
    }

    /// Whether an attribute of the interface changes.
    pub(super) fn changes_interface(&self) -> bool {
        self.mac.is_some()
            || self.promisc
            || self.mtu.is_some()
            || self.allmulti.is_some()
            || self.tx_queue_len.is_some()
    }
}

impl Setting {
    fn of(key: String, value: String, ifname: &str) -> Result<Self, Error> {
        let parsed = SysctlKey::parse(&key, Some(ifname)).map_err(|_| {
            let separator = key.chars().find(|c| matches!(c, '.' | '/')).unwrap_or('.');
            let shown = key.replace(separator, "/").replace("IFNAME", ifname);
            Error::new(Code::InvalidConfig, format!("invalid net sysctl key: {shown:?}"))
        })?;
        let path = parsed.path().split('/').map(str::to_owned).collect();
        Ok(Self { key, path, value })
    }
}

fn arg<T: DeserializeOwned>(config: &Config, key: &str) -> Result<Option<T>, Error> {
    let value = config.cni_arg(key).filter(|value| !value.is_null());
    value.map(|value| serde_json::from_value(value.clone())).transpose().map_err(|error| {
        Error::new(Code::Decoding, format!("error unmarshall network config: args.cni.{key}: {error}"))
    })
}

/// Six bytes out of `02:00:00:00:00:01`.
pub(super) fn parse_mac(text: &str) -> Result<Mac, Error> {
    let parsed: Result<portolan_model::Mac, _> = text.parse();
    parsed
        .map(|mac| mac.octets())
        .map_err(|error| Error::new(Code::InvalidConfig, format!("invalid args {text} for MAC addr: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(fields: &str, args: &str) -> Result<Wanted, Error> {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"a","type":"tuning"{fields}}}"#);
        let values = [
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c"),
            ("CNI_NETNS", "/n"),
            ("CNI_IFNAME", "eth0.5"),
            ("CNI_PATH", "/p"),
            ("CNI_ARGS", args),
        ];
        let call = Call::read(|name| values.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()));
        Wanted::of(&call.unwrap().unwrap(), &Config::parse(text.as_bytes()).unwrap(), text.as_bytes())
    }

    #[test]
    fn who_comes_first() {
        let mac = |fields: &str, args: &str| wanted(fields, args).unwrap().mac_text;
        let own = r#","mac":"02:00:00:00:00:01""#;
        let runtime = format!(r#"{own},"runtimeConfig":{{"mac":"02:00:00:00:00:03"}}"#);
        let args = format!(
            r#"{runtime},"args":{{"cni":{{"mac":"02:00:00:00:00:04","mtu":1400,"sysctl":{{"net.core.x":"1"}}}}}}"#
        );
        assert_eq!(mac(own, ""), "02:00:00:00:00:01");
        assert_eq!(mac(own, "MAC=02:00:00:00:00:02"), "02:00:00:00:00:02");
        assert_eq!(mac(&runtime, "MAC=02:00:00:00:00:02"), "02:00:00:00:00:03");
        let all = wanted(&args, "MAC=02:00:00:00:00:02").unwrap();
        assert_eq!((all.mac, all.mtu, all.settings.len()), (Some([2, 0, 0, 0, 0, 4]), Some(1400), 1));
        assert!(all.changes_interface() && !wanted("", "").unwrap().changes_interface());
    }

    #[test]
    fn keys_of_settings() {
        let path = |key: &str| {
            wanted(&format!(r#","sysctl":{{"{key}":"1"}}"#), "").map(|wanted| wanted.settings[0].path.join("/"))
        };
        assert_eq!(path("net.core.somaxconn").unwrap(), "net/core/somaxconn");
        assert_eq!(path("net/ipv4/conf/eth0.5/arp_filter").unwrap(), "net/ipv4/conf/eth0.5/arp_filter");
        assert_eq!(path("net.ipv4.conf.IFNAME.arp_filter").unwrap(), "net/ipv4/conf/eth0.5/arp_filter");
        for (key, shown) in [
            ("kernel.hostname", "kernel/hostname"),
            ("net", "net"),
            ("net/../kernel/hostname", "net/../kernel/hostname"),
            ("net..x", "net//x"),
        ] {
            assert_eq!(path(key).unwrap_err().msg, format!("invalid net sysctl key: {shown:?}"));
        }
        let twice = wanted(r#","sysctl":{"net.core.x":"1","net.core.x":"2"}"#, "").unwrap_err();
        assert_eq!(twice.msg, "duplicated sysctl keys are not allowed");
        assert!(wanted(r#","mac":"x""#, "").unwrap_err().msg.starts_with("invalid args x for MAC addr: "));
    }
}
