//! What servers of IPv4 say about the ways to others.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use mozim::DhcpV4Lease;

/// The option with static routes (RFC 2132 §5.8), and the bytes of an option's code and length.
const STATIC_ROUTES: u8 = 33;
const HEADER: usize = 2;

/// What a server of IPv4 says about the ways to others, in its own words; a [`portolan_model::DhcpLease`] has what follows from them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Routing {
    /// Whether it says what is on the link (RFC 2132 §3.3).
    pub has_mask: bool,
    /// The first router (RFC 2132 §3.5).
    pub router: Option<Ipv4Addr>,
    /// Destinations and their routers (RFC 3442).
    pub classless: Vec<(Ipv4Net, Ipv4Addr)>,
    /// The same of old, where the destination says how long it is (RFC 2132 §5.8).
    pub classful: Vec<(Ipv4Net, Ipv4Addr)>,
}

impl Routing {
    pub(crate) fn of(lease: &DhcpV4Lease) -> Self {
        let classless = lease.classless_routes.iter().flatten();
        let net = |route: &mozim::DhcpV4ClasslessRoute| {
            let net = Ipv4Net::new(route.destination, route.prefix_length).ok()?;
            Some((net, route.router))
        };
        let classful = lease.get_option_raw(STATIC_ROUTES);
        Self {
            has_mask: !lease.subnet_mask.is_unspecified(),
            router: lease.gateways.iter().flatten().next().copied(),
            classless: classless.filter_map(net).collect(),
            classful: classful_routes(classful.as_deref().and_then(|option| option.get(HEADER..)).unwrap_or_default()),
        }
    }
}

/// Pairs of a destination and a router. A destination of class D or E is none.
fn classful_routes(pairs: &[u8]) -> Vec<(Ipv4Net, Ipv4Addr)> {
    let (pairs, _) = pairs.as_chunks::<8>();
    let route = |[a, b, c, d, router @ ..]: &[u8; 8]| {
        let length = match a {
            0..=127 => 8,
            128..=191 => 16,
            192..=223 => 24,
            _ => return None,
        };
        Some((Ipv4Net::new(Ipv4Addr::new(*a, *b, *c, *d), length).ok()?, Ipv4Addr::from(*router)))
    };
    pairs.iter().filter_map(route).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_old_say_their_length_by_their_class() {
        let pairs =
            [[10, 1, 2, 0], [10, 0, 1, 2], [172, 16, 3, 0], [10, 0, 1, 3], [224, 0, 0, 0], [10, 0, 1, 4]].concat();
        let routes = classful_routes(&[&pairs[..], &[192, 168]].concat());
        let texts: Vec<String> = routes.iter().map(|(net, router)| format!("{net} {router}")).collect();
        assert_eq!(texts, ["10.1.2.0/8 10.0.1.2", "172.16.3.0/16 10.0.1.3"]);
    }
}
