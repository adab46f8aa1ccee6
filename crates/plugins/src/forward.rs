//! Forwarding between containers and the world.

use std::fs;

use ipnet::IpNet;
use portolan_cni::Error;
use portolan_kernel::rtnl::Family;
use portolan_kernel::sysctl;

use crate::inside::refused;

/// Has the host forward packets of the families that `addresses` are of.
pub(crate) fn enable(addresses: &[IpNet]) -> Result<(), Error> {
    let enable = |setting: &[&str]| {
        sysctl::write(setting, "1").map_err(|error| refused("failed to enable forwarding", error)).map(drop)
    };
    if addresses.iter().any(|address| Family::of(address.addr()) == Family::V4) {
        enable(&["net", "ipv4", "ip_forward"])?;
    }
    const V6: [&str; 5] = ["net", "ipv6", "conf", "all", "forwarding"];
    if addresses.iter().any(|address| Family::of(address.addr()) == Family::V6)
        && sysctl::read(&V6).map_err(|error| refused("failed to enable forwarding", error))? == "0"
    {
        keep_routers();
        enable(&V6)?;
    }
    Ok(())
}

/// A host that forwards believes no router any more, and loses its own default route with that, unless it is told to
/// (`accept_ra` 2; Documentation/networking/ip-sysctl.rst).
fn keep_routers() {
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| !matches!(*name, "all" | "default" | "lo")) else { continue };
        let setting = ["net", "ipv6", "conf", name, "accept_ra"];
        if sysctl::read(&setting).is_ok_and(|value| value == "1")
            && let Err(error) = sysctl::write(&setting, "2")
        {
            tracing::warn!(%error, "router advertisements will not be accepted any more");
        }
    }
}
