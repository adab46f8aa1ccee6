//! What people type: flags and options.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::str::FromStr;

use portolan_model::{
    AddressRange, Bandwidth, Burst, Driver, ExposedPort, FirewallDriver, GatewayMode, HostName, HostPorts, Id, IfName,
    Invalid, Ipam, IpvlanMode, Isolate, Mac, MacvlanMode, Mtu, Name, NetworkOptions, PortRange, Protocol, Publication,
    PublishSpec, Rate, SysctlKey,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::shown;

#[path = "../../crates/portolan/src/spec.rs"]
mod spec;

/// A text, taken for everything that a flag can hold.
pub fn everything(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    publish(text);
    same_as_row::<PortRange>(text);
    same_as_row::<AddressRange>(text);
    same_as_row::<Mac>(text);
    same_as_row::<Name>(text);
    same_as_row::<IfName>(text);
    same_as_row::<HostName>(text);
    same_as_row::<Id>(text);
    same_as_row::<Protocol>(text);
    same_as_row::<Rate>(text);
    same_as_row::<Burst>(text);
    same_as_row::<SysctlKey>(text);
    same::<ExposedPort>(text);
    same::<Mtu>(text);
    same::<GatewayMode>(text);
    same::<Isolate>(text);
    same::<MacvlanMode>(text);
    same::<IpvlanMode>(text);
    same::<Driver>(text);
    same::<Ipam>(text);
    same::<FirewallDriver>(text);
    flags(text);
    options(text);
}

fn refused(invalid: &Invalid) {
    shown(&invalid.to_string());
    if let Some(hint) = &invalid.hint {
        shown(hint);
    }
}

/// What is read is the same after it was written.
fn same<T: FromStr<Err = Invalid> + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    match text.parse::<T>() {
        Ok(value) => {
            let again = value.to_string();
            assert!(!again.chars().any(char::is_control), "{again:?}");
            assert_eq!(again.parse::<T>().as_ref(), Ok(&value), "{text:?} is written {again:?}");
            Some(value)
        }
        Err(invalid) => {
            refused(&invalid);
            None
        }
    }
}

/// The same, also in a row of the store.
fn same_as_row<T>(text: &str)
where
    T: FromStr<Err = Invalid> + Display + PartialEq + Debug + Serialize + DeserializeOwned,
{
    if let Some(value) = same::<T>(text) {
        as_row(&value);
    }
}

fn as_row<T: PartialEq + Debug + Serialize + DeserializeOwned>(value: &T) {
    let row = serde_json::to_string(value).expect("plain values serialise");
    assert_eq!(serde_json::from_str::<T>(&row).ok().as_ref(), Some(value), "{row}");
}

fn publish(text: &str) {
    let spec = match text.parse::<PublishSpec>() {
        Ok(spec) => spec,
        Err(invalid) => return refused(&invalid),
    };
    let PublishSpec { protocol, host_ip, host, container } = &spec;
    let host_text = match host {
        HostPorts::Ephemeral => String::new(),
        HostPorts::Exact(ports) => {
            assert_eq!(ports.count(), container.count());
            ports.to_string()
        }
        HostPorts::FirstFree(ports) => {
            assert!(container.is_single() && !ports.is_single());
            ports.to_string()
        }
    };
    let ip = host_ip.map_or_else(String::new, |ip| if ip.is_ipv6() { format!("[{ip}]:") } else { format!("{ip}:") });
    let again = format!("{ip}{host_text}:{container}/{protocol}");
    assert_eq!(again.parse(), Ok(spec.clone()), "{text:?} is written {again:?}");
    if let HostPorts::Exact(ports) = host {
        let row = Publication { protocol: *protocol, host_ip: *host_ip, host: *ports, container: *container };
        as_row(&row);
        assert!(row.clashes(&row));
        assert_eq!(row.to_string().parse(), Ok(spec));
    }
}

/// The texts that only the command line has.
fn flags(text: &str) {
    fn check<T>(read: Result<T, Invalid>, hold: impl FnOnce(T)) {
        match read {
            Ok(value) => hold(value),
            Err(invalid) => refused(&invalid),
        }
    }
    let one_line = |text: &str| assert!(!text.chars().any(|c| c.is_control() || c.is_whitespace()), "{text:?}");
    check(spec::subnet(text), |net| assert_eq!(spec::subnet(&net.to_string()), Ok(net)));
    check(spec::address(text), |ip| assert_eq!(spec::address(&ip.to_string()), Ok(ip)));
    check(spec::ipv4(text), |ip| assert_eq!(spec::ipv4(&ip.to_string()), Ok(ip)));
    check(spec::ipv6(text), |ip| assert_eq!(spec::ipv6(&ip.to_string()), Ok(ip)));
    check(spec::option(text), |(key, value)| assert_eq!(format!("{key}={value}"), text));
    check(spec::label(text), |(key, _)| assert!(!key.is_empty()));
    check(spec::environment(text), |(name, _)| assert!(!name.is_empty() && !name.contains('=')));
    check(spec::aux_address(text), |(name, ip)| assert_eq!(spec::aux_address(&format!("{name}={ip}")), Ok((name, ip))));
    check(spec::sysctl(text), |(name, _)| assert!(name.parse::<SysctlKey>().is_ok()));
    check(spec::filter(text), drop);
    check(spec::link(text), |link| as_row(&link));
    check(spec::rate(text), drop);
    check(spec::host_entry(text), |entry| {
        one_line(&entry.name);
        as_row(&entry);
    });
    check(spec::resolver_word(text), |word| one_line(&word));
    check(text.parse::<spec::NetworkSpec>(), |network| {
        if let spec::NetworkSpec::Endpoint(request) = network {
            assert!(!request.network.is_empty() || text.contains('='), "{text:?}");
            limits(&request.bandwidth);
        }
    });
}

fn limits(bandwidth: &Bandwidth) {
    as_row(bandwidth);
}

/// Options of a network, one each line, for every driver.
fn options(text: &str) {
    let pairs: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    if pairs.is_empty() {
        return;
    }
    for driver in [Driver::Bridge, Driver::Ptp, Driver::Macvlan, Driver::Ipvlan, Driver::Host, Driver::None] {
        match NetworkOptions::from_pairs(driver, &pairs) {
            Ok(options) => as_row(&options),
            Err(invalid) => refused(&invalid),
        }
    }
}
