use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Network, RouteAction, StaticRoute, Subnet};

impl Subnet {
    /// Whether its leases come from the same place as `address`.
    fn leases(&self, address: IpAddr) -> bool {
        self.net.contains(&address) && self.range.is_none_or(|range| range.contains(address))
    }

    /// That of `subnets` which `address` is of: of those with the same net, the one whose range it is in.
    pub fn among<'a>(subnets: impl Iterator<Item = &'a Self> + Clone, address: IpAddr) -> Option<&'a Self> {
        let of_range = subnets.clone().find(|subnet| subnet.leases(address));
        of_range.or_else(|| subnets.clone().find(|subnet| subnet.net.contains(&address)))
    }
}

impl Network {
    /// Subnets that are alternatives: an endpoint has an address of one of each set.
    pub fn sets(&self) -> impl Iterator<Item = &[Subnet]> {
        self.subnets.chunk_by(|_, next| next.fallback)
    }

    /// The subnet that `address` is of: of those with the same net, the one whose range it is in.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        Subnet::among(self.subnets.iter(), address)
    }

    /// The gateway of the subnet that `address` is of.
    pub fn gateway_for(&self, address: IpAddr) -> Option<IpAddr> {
        self.subnet_of(address)?.gateway
    }

    /// All subnets, each once.
    pub fn nets(&self) -> Vec<IpNet> {
        let mut nets: Vec<IpNet> = Vec::new();
        for net in self.subnets.iter().map(|subnet| subnet.net) {
            if !nets.contains(&net) {
                nets.push(net);
            }
        }
        nets
    }

    /// All gateways, each once.
    pub fn gateways(&self) -> Vec<IpAddr> {
        let mut gateways: Vec<IpAddr> = Vec::new();
        for gateway in self.subnets.iter().filter_map(|subnet| subnet.gateway) {
            if !gateways.contains(&gateway) {
                gateways.push(gateway);
            }
        }
        gateways
    }

    /// The network's routes, as an endpoint with `addresses` has them.
    ///
    /// A route by a router in a subnet of the network that none of the addresses is of leads nowhere, and of routes
    /// to one destination the one by the own gateway counts.
    pub fn routes_for(&self, addresses: &[IpAddr]) -> Vec<StaticRoute> {
        let reaches = |router: IpAddr| {
            let mut nets = self.subnets.iter().map(|subnet| subnet.net).filter(|net| net.contains(&router)).peekable();
            nets.peek().is_none() || nets.any(|net| addresses.iter().any(|address| net.contains(address)))
        };
        let is_own = |route: &StaticRoute| match route.action {
            RouteAction::Via(router) => addresses.iter().any(|address| self.gateway_for(*address) == Some(router)),
            _ => false,
        };
        let mut routes: Vec<StaticRoute> = Vec::new();
        for route in &self.routes {
            if matches!(route.action, RouteAction::Via(router) if !reaches(router)) {
                continue;
            }
            let place =
                |other: &&mut StaticRoute| (other.destination, other.metric) == (route.destination, route.metric);
            match routes.iter_mut().find(place) {
                Some(other) if is_own(route) && !is_own(other) => *other = *route,
                Some(_) => {}
                None => routes.push(*route),
            }
        }
        routes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::tests::network;

    /// The first two are ranges of one subnet, the third is their alternative in another, the last a set of its own.
    fn ranges() -> Network {
        let gateways: [(&str, Option<&str>); 4] = [
            ("10.0.0.0/24", Some("10.0.0.1")),
            ("10.0.0.0/24", Some("10.0.0.2")),
            ("10.0.1.0/24", Some("10.0.1.1")),
            ("fd00::/64", Some("fd00::1")),
        ];
        let mut network = network(false, &gateways, &[]);
        network.subnets[0].range = Some("10.0.0.10-10.0.0.19".parse().unwrap());
        network.subnets[1].range = Some("10.0.0.20-10.0.0.29".parse().unwrap());
        network.subnets[1].fallback = true;
        network.subnets[2].fallback = true;
        network
    }

    #[test]
    fn alternatives_are_one_set() {
        let network = ranges();
        assert_eq!(network.sets().map(<[Subnet]>::len).collect::<Vec<_>>(), [3, 1]);
        let gateway = |text: &str| network.gateway_for(text.parse().unwrap()).map(|ip| ip.to_string());
        assert_eq!(gateway("10.0.0.12").as_deref(), Some("10.0.0.1"));
        assert_eq!(gateway("10.0.0.21").as_deref(), Some("10.0.0.2"));
        assert_eq!(gateway("10.0.0.99").as_deref(), Some("10.0.0.1"), "outside of the ranges the first counts");
        assert_eq!(gateway("10.0.1.9").as_deref(), Some("10.0.1.1"));
        assert_eq!(gateway("10.0.2.9"), None);
        assert_eq!((network.gateways().len(), network.nets().len()), (4, 3));
    }

    #[test]
    fn routes_go_by_the_gateway_of_the_address() {
        let mut network = ranges();
        let via = |router: &str| StaticRoute {
            destination: "10.9.0.0/16".parse().unwrap(),
            action: RouteAction::Via(router.parse().unwrap()),
            metric: None,
        };
        let routers = |network: &Network, address: &str| {
            let routes = network.routes_for(&[address.parse().unwrap()]);
            routes.iter().map(|route| route.action).collect::<Vec<_>>()
        };
        network.routes = vec![via("10.0.0.1"), via("10.0.0.2"), via("10.0.1.1")];
        for (address, router) in [("10.0.0.12", "10.0.0.1"), ("10.0.0.21", "10.0.0.2"), ("10.0.1.9", "10.0.1.1")] {
            assert_eq!(routers(&network, address), [via(router).action], "{address}");
        }
        network.routes = vec![via("10.0.0.7")];
        assert_eq!(routers(&network, "10.0.0.21"), [via("10.0.0.7").action]);
        assert_eq!(routers(&network, "10.0.1.9"), []);
        // What is in no subnet at all is the kernel's to judge.
        network.routes = vec![via("192.0.2.1")];
        assert_eq!(routers(&network, "10.0.1.9"), [via("192.0.2.1").action]);
    }
}
