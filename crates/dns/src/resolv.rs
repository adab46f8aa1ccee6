use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::Duration;

/// The file `/etc/resolv.conf` (resolv.conf(5)), as far as we use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvConf {
    /// The servers in their order, all of them, on port 53. A link-local address keeps its interface as scope.
    pub nameservers: Vec<SocketAddr>,
    /// The search list; `domain` is a list of one, and the last of these lines counts.
    pub search: Vec<String>,
    /// How many dots a name needs to be asked for as it is first.
    pub ndots: u8,
    /// How long a server is waited for.
    pub timeout: Duration,
    /// How many times each is asked.
    pub attempts: u8,
    /// Whether servers take turns.
    pub rotate: bool,
}

impl Default for ResolvConf {
    /// What an empty file means: no search list, and no server (resolv.conf(5) has one on this host in mind, which a
    /// container engine cannot count on).
    fn default() -> Self {
        let timeout = Duration::from_secs(5);
        Self { nameservers: Vec::new(), search: Vec::new(), ndots: 1, timeout, attempts: 2, rotate: false }
    }
}

impl ResolvConf {
    /// Reads the text of the file.
    ///
    /// Nothing is an error, as in the C library: lines and words that make no sense are passed over. `interface` maps
    /// a name after `%` to its index; it may return `None`, and the server is left out.
    pub fn parse(text: &str, interface: impl Fn(&str) -> Option<u32>) -> Self {
        let mut conf = Self::default();
        for line in text.lines() {
            // A comment is a line, or the rest of one.
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => {
                    conf.nameservers.extend(words.next().and_then(|word| server(word, &interface)));
                }
                Some("search" | "domain") => {
                    let domains = words.map(|word| word.trim_end_matches('.').to_ascii_lowercase());
                    conf.search = domains.filter(|domain| !domain.is_empty()).collect();
                }
                Some("options") => words.for_each(|word| conf.option(word)),
                _ => {}
            }
        }
        conf
    }

    fn option(&mut self, word: &str) {
        let (name, value) = word.split_once(':').unwrap_or((word, ""));
        let number = value.parse::<u8>().ok();
        match (name, number) {
            // The limits are those of resolv.conf(5).
            ("ndots", Some(number)) => self.ndots = number.min(15),
            ("timeout", Some(number)) => self.timeout = Duration::from_secs(number.clamp(1, 30).into()),
            ("attempts", Some(number)) => self.attempts = number.clamp(1, 5),
            ("rotate", _) => self.rotate = true,
            _ => {}
        }
    }
}

fn server(word: &str, interface: &impl Fn(&str) -> Option<u32>) -> Option<SocketAddr> {
    const PORT: u16 = 53;
    match word.split_once('%') {
        None => word.parse::<IpAddr>().ok().map(|addr| SocketAddr::new(addr, PORT)),
        Some((addr, scope)) => {
            let addr = addr.parse::<Ipv6Addr>().ok()?;
            let scope = scope.parse().ok().or_else(|| interface(scope))?;
            Some(SocketAddrV6::new(addr, PORT, 0, scope).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ResolvConf {
        ResolvConf::parse(text, |name| (name == "eth0").then_some(7))
    }

    #[test]
    fn every_server_is_read_and_nonsense_passed_over() {
        let conf = parse(
            "# nameserver 192.0.2.9\nnameserver 192.0.2.1\n\tnameserver  2001:db8::1 ; second\nnameserver fe80::1%eth0\n\
             nameserver fe80::2%9\nnameserver fe80::3%nosuch\nnameserver x\nnameserver\nnonsense\nnameserver 192.0.2.4",
        );
        let servers: Vec<String> = conf.nameservers.iter().map(ToString::to_string).collect();
        let want = ["192.0.2.1:53", "[2001:db8::1]:53", "[fe80::1%7]:53", "[fe80::2%9]:53", "192.0.2.4:53"];
        assert_eq!(servers, want);
    }

    #[test]
    fn the_last_search_list_counts() {
        assert_eq!(parse("search a.example b.example\ndomain C.example.\n").search, ["c.example"]);
        assert_eq!(parse("domain c.example\nsearch a.example . B.Example").search, ["a.example", "b.example"]);
    }

    #[test]
    fn options_are_limited() {
        let conf = parse("options ndots:99 timeout:0 attempts:9 rotate edns0 ndots:x");
        assert_eq!((conf.ndots, conf.timeout, conf.attempts, conf.rotate), (15, Duration::from_secs(1), 5, true));
        assert_eq!(parse(""), ResolvConf::default());
        assert_eq!(parse("options ndots:300"), ResolvConf::default());
    }
}
