//! The `/etc/resolv.conf` of a container: the host's, less what it cannot reach.

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use portolan_model::DnsConfig;

/// The file that lists the host's name servers: `/etc/resolv.conf`, or the one that `PORTOLAN_RESOLV_CONF` names.
pub(crate) fn host_file() -> PathBuf {
    std::env::var_os("PORTOLAN_RESOLV_CONF").map_or_else(|| "/etc/resolv.conf".into(), PathBuf::from)
}

/// Where systemd-resolved keeps the servers that hide behind its stub (systemd-resolved.service(8)).
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
const STUB: &str = "127.0.0.53";

/// What is used when the host offers nothing that a container could reach; Docker's choice.
const FALLBACK_V4: [&str; 2] = ["8.8.8.8", "8.8.4.4"];
const FALLBACK_V6: [&str; 2] = ["2001:4860:4860::8888", "2001:4860:4860::8844"];

/// What the container's network stack can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reach {
    /// All that the host does: it is the host's own stack.
    Host,
    /// The daemon answers names on these gateways, and asks the servers that the container is configured with.
    Gateways(Vec<IpAddr>),
    /// Neither the host's loopback nor, without `ipv6`, IPv6.
    Network {
        /// Whether it has an IPv6 address.
        ipv6: bool,
    },
}

/// The content for a container, out of the host's files.
pub(crate) fn content(dns: &DnsConfig, reach: &Reach) -> String {
    // A comment may be in any encoding, and is no reason to ask others than the host's servers.
    let read = |path: PathBuf| fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let mut host = read(host_file()).unwrap_or_default();
    if *reach != Reach::Host && servers(&host).eq([STUB]) {
        host = read(BEHIND_STUB.into()).unwrap_or(host);
    }
    render(&host, dns, reach)
}

fn words<'a>(text: &'a str, keyword: &'static str) -> impl Iterator<Item = Vec<&'a str>> {
    text.lines().filter_map(move |line| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some(keyword)).then(|| words.collect())
    })
}

fn servers(text: &str) -> impl Iterator<Item = &str> {
    words(text, "nameserver").filter_map(|words| words.into_iter().next())
}

pub(crate) fn render(host: &str, dns: &DnsConfig, reach: &Reach) -> String {
    let mut chosen: Vec<String> = match reach {
        Reach::Gateways(gateways) => gateways.iter().map(ToString::to_string).collect(),
        Reach::Host | Reach::Network { .. } => dns.servers.iter().map(ToString::to_string).collect(),
    };
    if chosen.is_empty() {
        chosen = servers(host).filter(|server| is_reachable(server, reach)).map(str::to_owned).collect();
        if chosen.is_empty()
            && let Reach::Network { ipv6 } = *reach
        {
            chosen.extend(FALLBACK_V4.map(str::to_owned));
            if ipv6 {
                chosen.extend(FALLBACK_V6.map(str::to_owned));
            }
        }
    }
    // The last of several `search` or `domain` lines counts, resolv.conf(5). A search of `.` means none.
    let search: Vec<&str> = if dns.search.is_empty() {
        host.lines()
            .rev()
            .find_map(|line| line.strip_prefix("search").or_else(|| line.strip_prefix("domain")))
            .map_or_else(Vec::new, |rest| rest.split_ascii_whitespace().collect())
    } else {
        dns.search.iter().map(String::as_str).filter(|domain| *domain != ".").collect()
    };
    let mut options: Vec<&str> = if dns.options.is_empty() {
        words(host, "options").flatten().collect()
    } else {
        dns.options.iter().map(String::as_str).collect()
    };
    // A name without a dot is one of ours in the first place: asked as it is, it is answered at once.
    if matches!(reach, Reach::Gateways(_)) && !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0");
    }
    let mut text = String::new();
    for server in &chosen {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

fn is_reachable(server: &str, reach: &Reach) -> bool {
    let Reach::Network { ipv6 } = *reach else { return true };
    // `fe80::1%eth0` names an interface of the host and does not parse.
    match server.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => !address.is_loopback(),
        Ok(IpAddr::V6(address)) => ipv6 && !address.is_loopback() && !address.is_unicast_link_local(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# comment\ndomain old\nnameserver 127.0.0.1\nnameserver 10.0.0.53\nnameserver fd00::53\nnameserver fe80::1%eth0\nsearch lan example\noptions edns0\noptions ndots:2\n";

    #[test]
    fn what_cannot_be_reached_is_left_out() {
        let dns = DnsConfig::default();
        let both = render(HOST, &dns, &Reach::Network { ipv6: true });
        assert_eq!(both, "nameserver 10.0.0.53\nnameserver fd00::53\nsearch lan example\noptions edns0 ndots:2\n");
        let v4 = render(HOST, &dns, &Reach::Network { ipv6: false });
        assert_eq!(v4, "nameserver 10.0.0.53\nsearch lan example\noptions edns0 ndots:2\n");
        assert!(render(HOST, &dns, &Reach::Host).starts_with("nameserver 127.0.0.1\nnameserver 10.0.0.53\n"));
    }

    #[test]
    fn the_daemon_is_asked_where_it_listens() {
        let gateways = Reach::Gateways(vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]);
        let dns = DnsConfig { servers: vec!["9.9.9.9".parse().unwrap()], ..DnsConfig::default() };
        let text = render("nameserver 127.0.0.1\nsearch lan\noptions edns0\n", &dns, &gateways);
        assert_eq!(text, "nameserver 10.0.0.1\nnameserver fd00::1\nsearch lan\noptions edns0 ndots:0\n");
        assert!(render(HOST, &dns, &gateways).ends_with("options edns0 ndots:2\n"));
    }

    #[test]
    fn public_servers_when_none_is_left() {
        let text = render("nameserver ::1\n", &DnsConfig::default(), &Reach::Network { ipv6: true });
        assert_eq!(
            text,
            "nameserver 8.8.8.8\nnameserver 8.8.4.4\nnameserver 2001:4860:4860::8888\nnameserver 2001:4860:4860::8844\n"
        );
        assert_eq!(render("", &DnsConfig::default(), &Reach::Host), "");
    }

    #[test]
    fn what_was_asked_for_overrides() {
        let dns = DnsConfig {
            servers: vec!["127.0.0.1".parse().unwrap()],
            search: vec![".".into()],
            options: vec!["ndots:1".into()],
        };
        assert_eq!(render(HOST, &dns, &Reach::Network { ipv6: true }), "nameserver 127.0.0.1\noptions ndots:1\n");
    }
}
