use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::invalid::serde_by_text;
use crate::{Family, Invalid};

/// A transport protocol whose ports can be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Protocol {
    /// RFC 9293, protocol number 6.
    #[default]
    Tcp,
    /// RFC 768, protocol number 17.
    Udp,
    /// RFC 9260, protocol number 132.
    Sctp,
}

impl Protocol {
    /// The assigned internet protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with this assigned number, if it is one whose ports can be published.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// All of them, in order of their numbers.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

impl FromStr for Protocol {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.to_ascii_lowercase().as_str() {
            "tcp" => Ok(Self::Tcp),
            "udp" => Ok(Self::Udp),
            "sctp" => Ok(Self::Sctp),
            _ => Err(Invalid::new("protocol", text, "is not tcp, udp or sctp")),
        }
    }
}

serde_by_text!(Protocol);

/// Consecutive ports, first and last included: `1 <= first <= last <= 65535`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The range from `first` to `last`.
    ///
    /// # Errors
    /// [`Invalid`] when `first` is 0 or `last` is before it.
    pub fn new(first: u16, last: u16) -> Result<Self, Invalid> {
        let text = || if first == last { first.to_string() } else { format!("{first}-{last}") };
        if first == 0 {
            return Err(Invalid::new("port", text(), "is 0").hint("ports are 1 to 65535"));
        }
        if last < first {
            return Err(
                Invalid::new("port range", text(), "ends before it starts").hint(format!("write {last}-{first}"))
            );
        }
        Ok(Self { first, last })
    }

    /// One port.
    ///
    /// # Errors
    /// [`Invalid`] when `port` is 0.
    pub fn single(port: u16) -> Result<Self, Invalid> {
        Self::new(port, port)
    }

    /// The first port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// How many ports, 1 to 65535.
    pub const fn count(self) -> u32 {
        self.last as u32 - self.first as u32 + 1
    }

    /// Whether it is one port only.
    pub const fn is_single(self) -> bool {
        self.first == self.last
    }

    /// Whether the two have a port in common.
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Every port in turn.
    pub fn ports(self) -> impl Iterator<Item = u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() { f.pad(&self.first.to_string()) } else { f.pad(&format!("{}-{}", self.first, self.last)) }
    }
}

impl FromStr for PortRange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let port = |part: &str| -> Result<u16, Invalid> {
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Invalid::new("port", text, "is not a number or a range of two numbers"));
            }
            part.parse().map_err(|_| Invalid::new("port", text, "is larger than 65535"))
        };
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (port(first)?, port(last)?),
            None => (port(text)?, port(text)?),
        };
        Self::new(first, last)
    }
}

serde_by_text!(PortRange);

/// Which host port a publication asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostPorts {
    /// One free port per container port, out of `net.ipv4.ip_local_port_range`.
    Ephemeral,
    /// Just these, one for one.
    Exact(PortRange),
    /// The first free one of these, for a single container port.
    FirstFree(PortRange),
}

/// What `--publish` asks for: `[[HOSTIP:][HOST[-HOST]]:]CONT[-CONT][/tcp|udp|sctp]`, Docker's syntax.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishSpec {
    /// The protocol, tcp unless given.
    pub protocol: Protocol,
    /// The host address to publish on; none for all addresses of both families.
    pub host_ip: Option<IpAddr>,
    /// The host ports asked for.
    pub host: HostPorts,
    /// The container's ports.
    pub container: PortRange,
}

impl FromStr for PublishSpec {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        const FORM: &str = "write [[HOSTIP:][HOST[-HOST]]:]CONTAINER[-CONTAINER][/tcp|udp|sctp], such as 8080:80 or 127.0.0.1:5300:53/udp";
        let refuse = |why: String| Invalid::new("published port", text, why).hint(FORM);
        let nested = |e: Invalid| refuse(format!("{} `{}` {}", e.what, e.value, e.reason));
        let (rest, protocol) = match text.rsplit_once('/') {
            Some((rest, protocol)) => (rest, protocol.parse().map_err(nested)?),
            None => (text, Protocol::Tcp),
        };
        let (front, container) = match rest.rsplit_once(':') {
            Some((front, container)) => (Some(front), container),
            None => (None, rest),
        };
        if container.is_empty() {
            return Err(refuse("names no container port".into()));
        }
        let container: PortRange = container.parse().map_err(nested)?;
        let (host_ip, host) = match front {
            None => (None, ""),
            Some(front) => match split_host(front) {
                Some((ip, host)) => {
                    let ip = if ip.is_empty() {
                        None
                    } else {
                        Some(parse_ip(ip).ok_or_else(|| refuse(format!("`{ip}` is not an IP address")))?)
                    };
                    (ip, host)
                }
                None => (None, front),
            },
        };
        let host = match host {
            "" | "0" => HostPorts::Ephemeral,
            host => {
                let range: PortRange = host.parse().map_err(nested)?;
                if range.count() == container.count() {
                    HostPorts::Exact(range)
                } else if container.is_single() {
                    HostPorts::FirstFree(range)
                } else {
                    return Err(refuse(format!(
                        "maps {} host ports to {} container ports",
                        range.count(),
                        container.count()
                    )));
                }
            }
        };
        Ok(Self { protocol, host_ip, host, container })
    }
}

/// Splits `IP:HOST` or `[V6]:HOST` or bare `V6:HOST` at the colon that ends the address.
fn split_host(front: &str) -> Option<(&str, &str)> {
    if let Some(rest) = front.strip_prefix('[') {
        let (ip, host) = rest.split_once(']')?;
        return Some((ip, host.strip_prefix(':').unwrap_or(host)));
    }
    front.rsplit_once(':')
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    text.parse().ok()
}

/// A port that the container's image or command declares: what `--expose` and `-P` speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ExposedPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The container's ports.
    pub ports: PortRange,
}

impl FromStr for ExposedPort {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let (ports, protocol) = match text.split_once('/') {
            Some((ports, protocol)) => (ports, protocol.parse()?),
            None => (text, Protocol::Tcp),
        };
        Ok(Self { protocol, ports: ports.parse()? })
    }
}

impl fmt::Display for ExposedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ports, self.protocol)
    }
}

/// A published port as it stands: every host port decided. One row of the store.
///
/// `host` and `container` have the same length; the n-th host port leads to the n-th container port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Row")]
pub struct Publication {
    /// The protocol.
    pub protocol: Protocol,
    /// The host address; none for every local address of both families, `0.0.0.0` or `::` for one family.
    pub host_ip: Option<IpAddr>,
    /// The ports on the host.
    pub host: PortRange,
    /// The ports in the container.
    pub container: PortRange,
}

/// A [`Publication`] as somebody may have written it into the store.
#[derive(Deserialize)]
struct Row {
    protocol: Protocol,
    host_ip: Option<IpAddr>,
    host: PortRange,
    container: PortRange,
}

impl TryFrom<Row> for Publication {
    type Error = Invalid;

    fn try_from(Row { protocol, host_ip, host, container }: Row) -> Result<Self, Invalid> {
        if host.count() != container.count() {
            let reason = format!("maps {} host ports to {} container ports", host.count(), container.count());
            return Err(Invalid::new("published port", format!("{host}:{container}/{protocol}"), reason));
        }
        Ok(Self { protocol, host_ip, host, container })
    }
}

impl Publication {
    /// Whether this publication takes ports on addresses of `family`.
    pub fn covers(&self, family: Family) -> bool {
        self.host_ip.is_none_or(|ip| Family::of(ip) == family)
    }

    /// The one host address it is bound to in `family`, or none for every local one.
    pub fn bound_to(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }

    /// Whether both would take the same port on the same address.
    ///
    /// A wildcard and a specific address overlap: one of the two would be hidden by the other.
    pub fn clashes(&self, other: &Self) -> bool {
        self.protocol == other.protocol
            && self.host.overlaps(other.host)
            && Family::ALL.iter().any(|&f| self.covers(f) && other.covers(f))
            && match (self.bound_to(), other.bound_to()) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            }
    }
}

impl fmt::Display for Publication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            None => {}
            Some(IpAddr::V4(ip)) => write!(f, "{ip}:")?,
            Some(IpAddr::V6(ip)) => write!(f, "[{ip}]:")?,
        }
        write!(f, "{}:{}/{}", self.host, self.container, self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> PublishSpec {
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn every_form_of_publish() {
        assert_eq!(
            spec("80"),
            PublishSpec {
                protocol: Protocol::Tcp,
                host_ip: None,
                host: HostPorts::Ephemeral,
                container: PortRange::single(80).unwrap()
            }
        );
        assert_eq!(spec("0:80").host, HostPorts::Ephemeral);
        assert_eq!(spec("1880:1880").host, HostPorts::Exact(PortRange::single(1880).unwrap()));
        assert_eq!(spec("53:53/udp").protocol, Protocol::Udp);
        assert_eq!(spec("127.0.0.1:8080:80").host_ip, Some("127.0.0.1".parse().unwrap()));
        assert_eq!(spec("127.0.0.1::80").host, HostPorts::Ephemeral);
        assert_eq!(spec("[::1]:8080:80").host_ip, Some("::1".parse().unwrap()));
        assert_eq!(spec("[fd00::1]::80/sctp").host, HostPorts::Ephemeral);
        assert_eq!(spec("2000-2009:3000-3009").host, HostPorts::Exact(PortRange::new(2000, 2009).unwrap()));
        assert_eq!(spec("2000-2009:80").host, HostPorts::FirstFree(PortRange::new(2000, 2009).unwrap()));
        assert_eq!(spec("0.0.0.0:81:80").host_ip, Some("0.0.0.0".parse().unwrap()));
    }

    #[test]
    fn malformed_publish_is_refused() {
        for bad in [
            "",
            ":",
            "80:",
            "70000:80",
            "80:70000",
            "80:0",
            "20-10:20-10",
            "1-3:1-2",
            "8080:80/icmp",
            "x:80",
            "1.2.3:80:80",
            "80-90",
            "-1:80",
            "80:80:80:80",
        ] {
            let result = bad.parse::<PublishSpec>();
            if bad == "80-90" {
                assert_eq!(result.unwrap().host, HostPorts::Ephemeral);
            } else {
                assert!(result.is_err(), "{bad:?} gave {result:?}");
            }
        }
    }

    #[test]
    fn wildcard_and_specific_clash() {
        let p = |ip: Option<&str>, first, last| Publication {
            protocol: Protocol::Tcp,
            host_ip: ip.map(|ip| ip.parse().unwrap()),
            host: PortRange::new(first, last).unwrap(),
            container: PortRange::new(first, last).unwrap(),
        };
        assert!(p(None, 80, 80).clashes(&p(Some("127.0.0.1"), 80, 80)));
        assert!(p(None, 80, 90).clashes(&p(Some("::1"), 85, 85)));
        assert!(!p(Some("0.0.0.0"), 80, 80).clashes(&p(Some("::"), 80, 80)));
        assert!(!p(Some("127.0.0.1"), 80, 80).clashes(&p(Some("127.0.0.2"), 80, 80)));
        assert!(!p(None, 80, 80).clashes(&Publication { protocol: Protocol::Udp, ..p(None, 80, 80) }));
    }

    #[test]
    fn a_row_has_as_many_ports_on_either_side() {
        let row = |host: &str, container: &str| {
            let (host, container) = (host.parse().unwrap(), container.parse().unwrap());
            Publication::try_from(Row { protocol: Protocol::Tcp, host_ip: None, host, container })
        };
        assert!(row("80-81", "8080-8081").is_ok());
        assert!(row("80", "80-81").unwrap_err().to_string().contains("maps 1 host ports to 2 container ports"));
    }

    #[test]
    fn a_refusal_repeats_nothing_that_a_terminal_obeys() {
        let long = format!("\u{1b}[2J{}:80:80", "x".repeat(5000));
        for text in ["1.2.3\u{1b}[2J:80:80", "\u{9b}2J\n:80", long.as_str()] {
            let refused = text.parse::<PublishSpec>().unwrap_err();
            let said = format!("{refused} {}", refused.hint.as_deref().unwrap_or_default());
            assert!(!said.chars().any(char::is_control) && said.len() < 1000, "{said:?}");
        }
    }

    fn published(text: &str) -> Publication {
        let PublishSpec { protocol, host_ip, host: HostPorts::Exact(host), container } = spec(text) else {
            panic!("{text}")
        };
        Publication { protocol, host_ip, host, container }
    }

    #[test]
    fn publications_cover_the_families_of_their_address() {
        let covers = |text| Family::ALL.map(|family| published(text).covers(family));
        assert_eq!(covers("80:80"), [true, true]);
        assert_eq!(covers("0.0.0.0:80:80"), [true, false]);
        assert_eq!(covers("[::1]:80:80"), [false, true]);
        for (text, address) in
            [("80:80", None), ("0.0.0.0:80:80", None), ("[::]:80:80", None), ("127.0.0.1:80:80", Some("127.0.0.1"))]
        {
            assert_eq!(published(text).bound_to(), address.map(|ip| ip.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn publications_as_text_are_what_was_asked_for() {
        for text in ["8080:80/tcp", "127.0.0.1:5300:53/udp", "[fd00::1]:2000-2009:3000-3009/sctp"] {
            assert_eq!(published(text).to_string(), text);
        }
    }

    #[test]
    fn clashes_are_mutual() {
        let all: Vec<Publication> =
            ["80:80", "0.0.0.0:80:81", "[::]:80:80", "127.0.0.1:80:80", "70-90:70-90", "81:80", "80:80/udp"]
                .map(published)
                .to_vec();
        for a in &all {
            assert!(a.clashes(a), "{a}");
            for b in &all {
                assert_eq!(a.clashes(b), b.clashes(a), "{a} and {b}");
            }
        }
    }

    #[test]
    fn ranges_count_both_ends() {
        let all = PortRange::new(1, 65535).unwrap();
        assert_eq!(all.count(), 65535);
        assert_eq!(all.ports().last(), Some(65535));
        assert_eq!(all.to_string().parse(), Ok(all));
        assert!(PortRange::new(0, 1).is_err() && PortRange::new(2, 1).is_err());
        let range = |first, last| PortRange::new(first, last).unwrap();
        assert!(range(1, 5).overlaps(range(5, 9)) && !range(1, 5).overlaps(range(6, 9)));
    }
}
