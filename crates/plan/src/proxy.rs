//! Which published ports the resident's proxy passes on, because the kernel cannot translate them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use portolan_model::{Family, GatewayMode, Protocol, Publication};

use crate::desired::{ContainerView, published_endpoint};

/// A port that is passed on by a process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Proxied {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where clients come in.
    pub listen: SocketAddr,
    /// The container's address and port.
    pub target: SocketAddr,
    /// Whose it is.
    pub owner: String,
}

/// So many ports of one publication are passed on; of a longer range, the first.
///
/// Each takes a listening socket. Ranges that long are media, whose clients the kernel serves.
pub const PROXIED_PORTS: usize = 256;

/// What of a container's published ports is passed on by the proxy:
///
/// - `[::1]`, from where no route leads to a container;
/// - addresses of a family that the container does not have.
///
/// SCTP is not passed on, nor what the container's port keeper is going to listen on: it could not, and would give the
/// container up.
pub fn proxied(view: &ContainerView) -> Vec<Proxied> {
    let side = |family| match published_endpoint(view, family) {
        None => Side::Lacking,
        Some((endpoint, network)) => match (endpoint.address(family), network.mode(family)) {
            (Some(address), GatewayMode::Nat | GatewayMode::NatUnprotected) => Side::Translated(address),
            _ => Side::Direct,
        },
    };
    let (v4, v6) = (side(Family::V4), side(Family::V6));
    let mut all = Vec::new();
    for publication in view.publications.iter().filter(|publication| publication.protocol != Protocol::Sctp) {
        let places = places(publication, v4, v6).into_iter();
        let is_kept = |listen| view.container.port_keeper.is_some() && is_kept(publication, listen);
        for (listen, target) in places.filter(|(listen, _)| !is_kept(*listen)) {
            let ports = publication.host.ports().zip(publication.container.ports()).take(PROXIED_PORTS);
            all.extend(ports.map(|(host, container)| Proxied {
                protocol: publication.protocol,
                listen: SocketAddr::new(listen, host),
                target: SocketAddr::new(target, container),
                owner: format!("container {} {publication}", view.container.name),
            }));
        }
    }
    all
}

/// Whether a port keeper listens on `listen`: it does where the publication says, and on every IPv4 address where that says
/// nothing (Podman, `bindPorts` in libpod/oci_util.go).
fn is_kept(publication: &Publication, listen: IpAddr) -> bool {
    let kept = publication.host_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    Family::of(kept) == Family::of(listen) && (kept == listen || kept.is_unspecified())
}

/// What a container has of a family.
#[derive(Debug, Clone, Copy)]
enum Side {
    /// Nothing.
    Lacking,
    /// An address that published ports are translated to.
    Translated(IpAddr),
    /// An address that is reached as it is, if at all.
    Direct,
}

/// Addresses to listen on, and the container's to pass on to.
fn places(publication: &Publication, v4: Side, v6: Side) -> Vec<(IpAddr, IpAddr)> {
    const LOOPBACK: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
    let mut places = Vec::new();
    if publication.covers(Family::V6) {
        let every = publication.bound_to().is_none();
        match (v6, v4) {
            (Side::Translated(target), _) if every || publication.bound_to() == Some(LOOPBACK) => {
                places.push((LOOPBACK, target))
            }
            (Side::Lacking, Side::Translated(target)) => {
                places.push((publication.bound_to().unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), target));
            }
            _ => {}
        }
    }
    if publication.covers(Family::V4)
        && let (Side::Lacking, Side::Translated(target)) = (v4, v6)
    {
        places.push((publication.bound_to().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), target));
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_model::Container;

    use crate::desired::sample::{container, endpoint, network, publication};

    const V4: (&str, &str) = ("172.20.0.0/24", "172.20.0.2");
    const V6: (&str, &str) = ("fd00::/64", "fd00::2");

    /// What is passed on for ports of a container on a network with these subnets, as `listen > target`.
    fn passed_on(families: &[(&str, &str)], options: &[(&str, &str)], ports: &[&str]) -> Vec<String> {
        passed_on_beside(None, families, options, ports)
    }

    fn passed_on_beside(
        keeper: Option<&str>,
        families: &[(&str, &str)],
        options: &[(&str, &str)],
        ports: &[&str],
    ) -> Vec<String> {
        let subnets: Vec<&str> = families.iter().map(|(subnet, _)| *subnet).collect();
        let addresses: Vec<&str> = families.iter().map(|(_, address)| *address).collect();
        let network = network("n", 1, &subnets, options);
        let container = Container { port_keeper: keeper.map(str::to_owned), ..container("c", 2) };
        let endpoint = endpoint(&container, &network, 0, &addresses);
        let publications = ports.iter().map(|text| publication(text)).collect();
        let view = ContainerView { container, endpoints: vec![(endpoint, network)], publications };
        proxied(&view).iter().map(|p| format!("{} {} > {}", p.protocol, p.listen, p.target)).collect()
    }

    #[test]
    fn only_what_the_kernel_cannot_do() {
        let both = |ports: &[&str]| passed_on(&[V4, V6], &[], ports);
        assert_eq!(both(&["8080:80/tcp"]), ["tcp [::1]:8080 > [fd00::2]:80"]);
        assert_eq!(both(&["5300:53/udp"]), ["udp [::1]:5300 > [fd00::2]:53"]);
        assert_eq!(both(&["[::1]:8080:80/tcp"]), ["tcp [::1]:8080 > [fd00::2]:80"]);
        for kernel in ["127.0.0.1:8080:80/tcp", "0.0.0.0:8080:80/tcp", "[2001:db8::1]:8080:80/tcp", "8080:80/sctp"] {
            assert_eq!(both(&[kernel]), [""; 0], "{kernel}");
        }
    }

    #[test]
    fn clients_of_the_other_family() {
        let v4 = |ports: &[&str]| passed_on(&[V4], &[], ports);
        assert_eq!(v4(&["8080:80/tcp"]), ["tcp [::]:8080 > 172.20.0.2:80"]);
        assert_eq!(v4(&["[::1]:8080:80/tcp"]), ["tcp [::1]:8080 > 172.20.0.2:80"]);
        assert_eq!(v4(&["[2001:db8::1]:8080:80/tcp"]), ["tcp [2001:db8::1]:8080 > 172.20.0.2:80"]);
        assert_eq!(v4(&["127.0.0.1:8080:80/tcp"]), [""; 0]);
        let v6 = |ports: &[&str]| passed_on(&[V6], &[], ports);
        assert_eq!(v6(&["8080:80/tcp"]), ["tcp [::1]:8080 > [fd00::2]:80", "tcp 0.0.0.0:8080 > [fd00::2]:80"]);
        assert_eq!(v6(&["127.0.0.1:8080:80/tcp"]), ["tcp 127.0.0.1:8080 > [fd00::2]:80"]);
    }

    #[test]
    fn what_a_keeper_holds_is_not_listened_on() {
        let kept = |families: &[(&str, &str)], port: &str| passed_on_beside(Some("conmon"), families, &[], &[port]);
        assert_eq!(kept(&[V4, V6], "8080:80/tcp"), ["tcp [::1]:8080 > [fd00::2]:80"]);
        assert_eq!(kept(&[V4], "8080:80/tcp"), ["tcp [::]:8080 > 172.20.0.2:80"]);
        assert_eq!(kept(&[V6], "8080:80/tcp"), ["tcp [::1]:8080 > [fd00::2]:80"]);
        for held in ["[::1]:8080:80/tcp", "[::]:8080:80/tcp", "[::1]:5300:53/udp"] {
            assert_eq!(kept(&[V4, V6], held), [""; 0], "{held}");
        }
        assert_eq!(kept(&[V6], "127.0.0.1:8080:80/tcp"), [""; 0]);
    }

    #[test]
    fn what_is_routed_is_not_passed_on() {
        let routed = [("gateway_mode_ipv4", "routed")];
        assert_eq!(passed_on(&[V4, V6], &routed, &["8080:80/tcp"]), ["tcp [::1]:8080 > [fd00::2]:80"]);
        assert_eq!(passed_on(&[V4], &routed, &["8080:80/tcp"]), [""; 0]);
    }

    #[test]
    fn a_range_is_passed_on_as_far_as_sockets_go() {
        assert_eq!(passed_on(&[V4, V6], &[], &["1000-1003:2000-2003/tcp"]).len(), 4);
        assert_eq!(passed_on(&[V4, V6], &[], &["1000-9999:1000-9999/udp"]).len(), PROXIED_PORTS);
    }
}
