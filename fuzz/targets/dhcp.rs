//! What asks for leases.

use portolan_dhcp_proxy::foreign::question as read;
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
