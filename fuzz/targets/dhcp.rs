//! What asks for leases, and what is granted.

use std::net::IpAddr;

use portolan_dhcp::foreign::{Said4, Said6, granted4, granted6};
use portolan_dhcp_proxy::foreign::question as read;
use portolan_model::{DhcpLease, RouteAction};
use portolan_plugins::foreign;

/// A frame of gRPC.
pub fn question(bytes: &[u8]) {
    match read(bytes) {
        None => {}
        Some(Ok((config, place))) => {
            assert_eq!(place.ifname.as_str(), config.container_iface);
            assert_eq!(place.mac.octets()[0] & 1, 0);
        }
        Some(Err(reason)) => {
            assert!(reason.bytes().all(|byte| (b' '..=b'~').contains(&byte)), "{reason:?}");
            assert!(reason.len() <= 1000 + 9 * bytes.len());
        }
    }
}

/// A stream of net/rpc: the first byte says in what pieces it comes.
pub fn gob(bytes: &[u8]) {
    let Some((piece, stream)) = bytes.split_first() else { return };
    let whole = foreign::calls(stream, usize::MAX);
    assert!(whole.0.len() <= stream.len());
    let length: usize = whole.0.iter().map(String::len).sum();
    assert!(length <= 4000 + 400 * stream.len(), "{length} of {}", stream.len());
    assert_eq!(foreign::calls(stream, usize::from(*piece)), whole, "in pieces of {piece}");
    if let Some(lease) = foreign::lease(stream) {
        let again = foreign::lease(&foreign::write_lease(&lease)).expect("what is written can be read");
        assert_eq!(again.ips, lease.ips);
        assert_eq!(again.routes.len(), lease.routes.len());
    }
}

/// What a caller says first.
pub fn greeting(bytes: &[u8]) {
    let (taken, refusal) = foreign::greeting(bytes);
    assert!(taken <= bytes.len() && taken <= 4096, "{taken}");
    match refusal {
        None => assert!(bytes.starts_with(b"CONNECT /_goRPC_ HTTP/1."), "{}", bytes.escape_ascii()),
        Some(status) => assert!(matches!(status.split_once(' '), Some(("400" | "404" | "405", _))), "{status}"),
    }
}

/// What a server grants, of either family, as JSON.
pub fn lease(bytes: &[u8]) {
    if let Some([lease, again]) = serde_json::from_slice::<Said4>(bytes).ok().and_then(granted4) {
        believed(&lease);
        assert!(lease.gateway != Some(IpAddr::from([0; 4])));
        assert_eq!((again.address, again.server, again.valid_for), (lease.address, lease.server, lease.valid_for));
        assert_eq!((again.renew_after, again.rebind_after), (lease.renew_after, lease.rebind_after));
    }
    let Ok((said, later)) = serde_json::from_slice::<(Said6, u32)>(bytes) else { return };
    if let Some((lease, again)) = granted6(said, later) {
        believed(&lease);
        if let Some(again) = again {
            believed(&again);
            assert_eq!((again.address, &again.server), (lease.address, &lease.server));
            assert!(0 < again.renew_after && again.renew_after < again.rebind_after);
            assert!(again.rebind_after <= again.valid_for && again.valid_for <= lease.valid_for);
        }
    }
}

/// What a row, a routing table and a resolver's file get.
fn believed(lease: &DhcpLease) {
    let row = serde_json::to_string(lease).expect("plain values serialise");
    assert_eq!(serde_json::from_str::<DhcpLease>(&row).ok().as_ref(), Some(lease), "{row}");
    for route in &lease.routes {
        assert_eq!(route.destination, route.destination.trunc());
        assert!(route.destination.prefix_len() > 0);
        assert!(matches!(route.action, RouteAction::Via(router) if !router.is_unspecified()), "{route:?}");
    }
    for (at, domain) in lease.domains.iter().enumerate() {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        assert!(!domain.is_empty() && domain.len() <= 253 && domain.bytes().all(is_plain), "{domain:?}");
        assert!(lease.address.addr().is_ipv6() || !lease.domains[..at].contains(domain), "{domain} twice");
    }
}
