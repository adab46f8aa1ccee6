//! What flags hold: text turned into requests, refused with a reason where it is malformed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use portolan_engine::EndpointRequest;
use portolan_model::{Burst, HostEntry, Invalid, Limit, Link, Rate, RouteAction, StaticRoute, SysctlKey};

/// The endpoint option by which Docker's clients name the interface.
const IFNAME_OPTION: &str = "com.docker.network.endpoint.ifname";

/// A subnet or range in canonical form (host bits zero, RFC 4632 §3.1).
pub(crate) fn subnet(text: &str) -> Result<IpNet, Invalid> {
    const HINT: &str = "write ADDRESS/LENGTH, such as 172.30.0.0/24 or fd00:1::/64";
    let net: IpNet =
        text.parse().map_err(|_| Invalid::new("subnet", text, "is not an address with a prefix length").hint(HINT))?;
    if net.trunc() != net {
        return Err(Invalid::new("subnet", text, "has host bits set").hint(format!("write {}", net.trunc())));
    }
    Ok(net)
}

pub(crate) fn address(text: &str) -> Result<IpAddr, Invalid> {
    text.parse()
        .map_err(|_| Invalid::new("IP address", text, "is malformed").hint("write it like 172.30.0.5 or fd00:1::5"))
}

pub(crate) fn ipv4(text: &str) -> Result<Ipv4Addr, Invalid> {
    text.parse().map_err(|_| {
        Invalid::new("IPv4 address", text, "is malformed").hint("write it like 172.30.0.5; IPv6 goes into --ip6")
    })
}

pub(crate) fn ipv6(text: &str) -> Result<Ipv6Addr, Invalid> {
    text.parse().map_err(|_| {
        Invalid::new("IPv6 address", text, "is malformed").hint("write it like fd00:1::5; IPv4 goes into --ip")
    })
}

/// An age of at least an hour: a number with `h`, `d` or `w`.
pub(crate) fn age(text: &str) -> Result<Duration, Invalid> {
    const HINT: &str = "write it in hours, days or weeks, such as 12h, 30d or 4w";
    let malformed = || Invalid::new("age", text, "is malformed").hint(HINT);
    let (number, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(malformed)?;
    let hours = match unit {
        "h" => 1,
        "d" => 24,
        "w" => 7 * 24,
        _ => return Err(malformed()),
    };
    let number: u32 = number.parse().map_err(|_| malformed())?;
    if number == 0 {
        return Err(Invalid::new("age", text, "is none").hint(HINT));
    }
    Ok(Duration::from_secs(u64::from(number) * hours * 3600))
}

/// A time as Docker's flags take it (Go's `time.ParseDuration`): numbers with units from hours to milliseconds.
pub(crate) fn duration(text: &str) -> Result<Duration, Invalid> {
    let malformed =
        || Invalid::new("time", text, "is malformed").hint("write it with units, such as 30s, 1m30s or 500ms");
    let (mut rest, mut all) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(malformed)?;
        let number: f64 = rest[..end].parse().map_err(|_| malformed())?;
        rest = &rest[end..];
        let units = [("ms", 0.001), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let (unit, seconds) = units.into_iter().find(|(unit, _)| rest.starts_with(unit)).ok_or_else(malformed)?;
        let more = Duration::try_from_secs_f64(number * seconds).map_err(|_| malformed())?;
        all = all.checked_add(more).ok_or_else(malformed)?;
        rest = &rest[unit.len()..];
    }
    if text.is_empty() { Err(malformed()) } else { Ok(all) }
}

/// A boolean as Docker's flags take it; the flag's name is added by whoever reports the error.
pub(crate) fn boolean(text: &str) -> Result<bool, &'static str> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("is neither true nor false"),
    }
}

/// `KEY=VALUE`, both needed.
pub(crate) fn option(text: &str) -> Result<(String, String), Invalid> {
    // As Docker's clients are told to ask for it.
    if text == "encrypted" {
        return Ok((text.to_owned(), "true".to_owned()));
    }
    pair("option", "write KEY=VALUE, such as mtu=1400", text)
}

/// `KEY=VALUE`, or `KEY` for an empty value, as Docker takes labels.
pub(crate) fn label(text: &str) -> Result<(String, String), Invalid> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err(Invalid::new("label", text, "has no name").hint("write NAME=VALUE"));
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// `NAME=VALUE`, or `NAME` for what our own environment has.
pub(crate) fn environment(text: &str) -> Result<(String, Option<String>), Invalid> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    if name.is_empty() {
        return Err(Invalid::new("environment variable", text, "has no name").hint("write NAME=VALUE"));
    }
    Ok((name.to_owned(), value))
}

/// `NAME=ADDRESS`.
pub(crate) fn aux_address(text: &str) -> Result<(String, IpAddr), Invalid> {
    const HINT: &str = "write NAME=ADDRESS, such as router=172.30.0.9";
    let (name, value) = pair("auxiliary address", HINT, text)?;
    let address = value
        .parse()
        .map_err(|_| Invalid::new("auxiliary address", text, format!("`{value}` is not an IP address")).hint(HINT))?;
    Ok((name, address))
}

/// `net.x.y=VALUE`: only what belongs to a network namespace.
pub(crate) fn sysctl(text: &str) -> Result<(String, String), Invalid> {
    let (name, value) = pair("sysctl", "write NAME=VALUE, such as net.ipv4.ip_forward=1", text)?;
    let _: SysctlKey = name.parse()?;
    Ok((name, value))
}

/// `KEY=VALUE` of `--filter`.
pub(crate) fn filter(text: &str) -> Result<(String, String), Invalid> {
    pair("filter", "write KEY=VALUE, such as name=web", text)
}

fn pair(what: &'static str, hint: &'static str, text: &str) -> Result<(String, String), Invalid> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(Invalid::new(what, text, "is not of the form KEY=VALUE").hint(hint)),
    }
}

/// `NAME[:ALIAS]`.
pub(crate) fn link(text: &str) -> Result<Link, Invalid> {
    let (container, alias) = text.split_once(':').unwrap_or((text, text));
    let nested = |e: Invalid| {
        Invalid::new("link", text, format!("{} `{}` {}", e.what, e.value, e.reason))
            .hint("write CONTAINER or CONTAINER:ALIAS")
    };
    Ok(Link { container: container.parse().map_err(nested)?, alias: alias.parse().map_err(nested)? })
}

/// A rate, or none for as much as there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wanted(pub(crate) Option<Rate>);

/// A rate, or `0` or `none` for no limit.
pub(crate) fn rate(text: &str) -> Result<Wanted, Invalid> {
    match text {
        "0" | "none" => Ok(Wanted(None)),
        _ => Ok(Wanted(Some(text.parse()?))),
    }
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`; the address may be `host-gateway`.
pub(crate) fn host_entry(text: &str) -> Result<HostEntry, Invalid> {
    const HINT: &str = "write NAME:ADDRESS or NAME:host-gateway";
    let refuse = |why: String| Invalid::new("host entry", text, why).hint(HINT);
    let (name, value) =
        text.split_once('=').or_else(|| text.split_once(':')).ok_or_else(|| refuse("has no address".to_owned()))?;
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '#') {
        return Err(refuse("has no usable name".to_owned()));
    }
    let address = match value {
        "host-gateway" => None,
        value => {
            let bare = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(value);
            Some(bare.parse().map_err(|_| refuse(format!("`{value}` is not an IP address")))?)
        }
    };
    Ok(HostEntry { name: name.to_owned(), address })
}

/// A word of resolv.conf(5), where blanks and line ends would start another.
pub(crate) fn resolver_word(text: &str) -> Result<String, Invalid> {
    if text.is_empty() || text.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(
            Invalid::new("resolver setting", text, "is empty or has blanks in it").hint("repeat the flag for several")
        );
    }
    Ok(text.to_owned())
}

/// What `--network` names.
#[derive(Debug, Clone)]
pub(crate) enum NetworkSpec {
    /// The host's network stack.
    Host,
    /// A stack with loopback only.
    None,
    /// The stack of this container.
    Container(String),
    /// An endpoint on a network.
    Endpoint(Box<EndpointRequest>),
}

impl FromStr for NetworkSpec {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if !text.contains('=') {
            return match text {
                "" => Err(Invalid::new("network", text, "is empty")),
                "host" => Ok(Self::Host),
                "none" => Ok(Self::None),
                "default" => Ok(Self::Endpoint(Box::new(EndpointRequest::new("bridge")))),
                _ => match text.strip_prefix("container:") {
                    Some("") => Err(Invalid::new("network", text, "names no container").hint("write container:NAME")),
                    Some(container) => Ok(Self::Container(container.to_owned())),
                    None => Ok(Self::Endpoint(Box::new(EndpointRequest::new(text)))),
                },
            };
        }
        let mut request = EndpointRequest::new("");
        let mut burst: Option<Burst> = None;
        for part in text.split(',') {
            set(&mut request, &mut burst, part).map_err(|e| {
                let reason =
                    if e.value == part { e.reason } else { format!("{} `{}` {}", e.what, e.value, e.reason).into() };
                let refused = Invalid::new("network", text, reason);
                match e.hint {
                    Some(hint) => refused.hint(hint),
                    None => refused,
                }
            })?;
        }
        if burst.is_some() {
            if request.bandwidth.is_unlimited() {
                return Err(Invalid::new("network", text, "has a bandwidth-burst without a rate")
                    .hint("add bandwidth-in= or bandwidth-out="));
            }
            for limit in [&mut request.bandwidth.into, &mut request.bandwidth.out].into_iter().flatten() {
                limit.burst = burst;
            }
        }
        match request.network.as_str() {
            "" => Err(Invalid::new("network", text, "names no network").hint("begin with name=NETWORK")),
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            _ => Ok(Self::Endpoint(Box::new(request))),
        }
    }
}

fn set(request: &mut EndpointRequest, burst: &mut Option<Burst>, part: &str) -> Result<(), Invalid> {
    const HINT: &str = "known keys: name, alias, link, ip, ip6, mac-address, gw-priority, ifname, driver-opt, \
                        bandwidth-in, bandwidth-out, bandwidth-burst";
    let (key, value) = part
        .split_once('=')
        .ok_or_else(|| Invalid::new("network", part, "has a part that is not KEY=VALUE").hint(HINT))?;
    match key {
        "name" => request.network = value.to_owned(),
        "alias" => request.aliases.push(value.parse()?),
        "link" => request.links.push(link(value)?),
        "ip" => request.ip = Some(ipv4(value)?),
        "ip6" => request.ip6 = Some(ipv6(value)?),
        "mac-address" => request.mac = Some(value.parse()?),
        "gw-priority" => request.gateway_priority = number(value)?,
        "ifname" => request.ifname = Some(value.parse()?),
        "driver-opt" => driver_option(request, value)?,
        "bandwidth-in" => request.bandwidth.into = limit(value)?,
        "bandwidth-out" => request.bandwidth.out = limit(value)?,
        "bandwidth-burst" => *burst = Some(value.parse()?),
        _ => return Err(Invalid::new("key", key, "is unknown").hint(HINT)),
    }
    Ok(())
}

fn limit(text: &str) -> Result<Option<Limit>, Invalid> {
    Ok(rate(text)?.0.map(|rate| Limit { rate, burst: None }))
}

/// `--route`: `DESTINATION,GATEWAY[,METRIC]`, with `blackhole`, `unreachable` or `prohibit` for the gateway.
pub(crate) fn route(text: &str) -> Result<StaticRoute, Invalid> {
    let refuse = |why: String| {
        Invalid::new("route", text, why).hint("write it as 10.9.0.0/16,10.1.0.254 or 10.9.0.0/16,blackhole")
    };
    let mut parts = text.split(',');
    let destination: IpNet =
        parts.next().unwrap_or_default().parse().map_err(|_| refuse("has no destination".into()))?;
    if destination.trunc() != destination {
        return Err(refuse(format!("has host bits set in its destination, which is {}", destination.trunc())));
    }
    let action = match parts.next() {
        Some("blackhole") => RouteAction::Blackhole,
        Some("unreachable") => RouteAction::Unreachable,
        Some("prohibit") => RouteAction::Prohibit,
        gateway => {
            let gateway: Option<IpAddr> = gateway.and_then(|gateway| gateway.parse().ok());
            let gateway = gateway.ok_or_else(|| refuse("has no gateway".into()))?;
            if gateway.is_ipv4() != destination.addr().is_ipv4() {
                return Err(refuse("has destination and gateway of different families".into()));
            }
            RouteAction::Via(gateway)
        }
    };
    let metric = parts.next().map(str::parse).transpose().map_err(|_| refuse("has no number for a metric".into()))?;
    if parts.next().is_some() {
        return Err(refuse("has more than three parts".into()));
    }
    Ok(StaticRoute { destination, action, metric })
}

fn number(text: &str) -> Result<i32, Invalid> {
    text.parse().map_err(|_| Invalid::new("gateway priority", text, "is not a whole number"))
}

/// `--driver-opt` of one endpoint.
pub(crate) fn driver_option(request: &mut EndpointRequest, text: &str) -> Result<(), Invalid> {
    let (key, value) = option(text)?;
    match key.as_str() {
        IFNAME_OPTION | "ifname" => request.ifname = Some(value.parse()?),
        _ => {
            return Err(Invalid::new("endpoint option", key, "is unknown")
                .hint(format!("known options: ifname, that is {IFNAME_OPTION}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_units() {
        assert_eq!(age("30d").unwrap(), Duration::from_secs(30 * 86_400));
        assert_eq!(age("1h").unwrap(), Duration::from_secs(3600));
        assert_eq!(age("2w").unwrap(), Duration::from_secs(14 * 86_400));
        for wrong in ["", "d", "0d", "30", "1s", "-1d", "1.5d", "3é"] {
            assert!(age(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks_in_both_forms() {
        assert!(matches!("host".parse(), Ok(NetworkSpec::Host)));
        assert!(matches!("name=none".parse(), Ok(NetworkSpec::None)));
        let Ok(NetworkSpec::Container(name)) = "container:web".parse() else { panic!() };
        assert_eq!(name, "web");
        let Ok(NetworkSpec::Endpoint(request)) =
            "name=web,alias=a,alias=b,ip=10.0.0.5,gw-priority=-1,ifname=lan0".parse()
        else {
            panic!()
        };
        assert_eq!((request.network.as_str(), request.aliases.len(), request.gateway_priority), ("web", 2, -1));
        assert_eq!(request.ifname.unwrap().as_str(), "lan0");
    }

    #[test]
    fn a_network_with_limits_of_its_own() {
        let Ok(NetworkSpec::Endpoint(request)) =
            "name=web,bandwidth-burst=64kb,bandwidth-in=100mbit,bandwidth-out=0".parse()
        else {
            panic!()
        };
        assert_eq!(request.bandwidth.to_string(), "100mbit burst 64kb in");
        for bad in ["name=web,bandwidth-burst=64kb", "name=web,bandwidth-in=fast", "name=web,bandwidth-burst=0"] {
            assert!(bad.parse::<NetworkSpec>().is_err(), "{bad}");
        }
        assert_eq!((rate("none").unwrap(), rate("0").unwrap()), (Wanted(None), Wanted(None)));
    }

    #[test]
    fn malformed_networks_say_which_part() {
        for (text, part) in [
            ("", "empty"),
            ("ip=10.0.0.1", "names no network"),
            ("name=web,foo=1", "foo"),
            ("name=web,ip=x", "`x`"),
            ("name=web,x", "KEY=VALUE"),
        ] {
            let error = text.parse::<NetworkSpec>().unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn host_entries() {
        assert_eq!(host_entry("db:10.0.0.1").unwrap().address, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(host_entry("db:fd00::1").unwrap().address, Some("fd00::1".parse().unwrap()));
        assert_eq!(host_entry("db=[fd00::1]").unwrap().address, Some("fd00::1".parse().unwrap()));
        assert_eq!(host_entry("gw:host-gateway").unwrap().address, None);
        for bad in ["db", "db:", ":1.2.3.4", "a b:1.2.3.4", "db:1.2.3"] {
            assert!(host_entry(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_subnet_has_no_host_bits() {
        assert!(subnet("172.30.0.0/24").is_ok());
        assert_eq!(subnet("172.30.0.1/24").unwrap_err().hint.unwrap(), "write 172.30.0.0/24");
        for bad in ["", "172.30.0.0", "172.30.0.0/33", "x/24"] {
            assert!(subnet(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sysctls_of_the_network_only() {
        assert!(sysctl("net.ipv4.ip_forward=1").is_ok());
        for bad in ["kernel.panic=1", "net.ipv4.x", "net..x=1", "network=1"] {
            assert!(sysctl(bad).is_err(), "{bad}");
        }
    }
}
