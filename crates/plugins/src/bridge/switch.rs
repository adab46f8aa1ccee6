//! The bridge itself, and its addresses.

use ipnet::IpNet;
use portolan_cni::{Code, Error};
use portolan_kernel::netlink::{Batch, Socket};
use portolan_kernel::rtnl::addr::{self, Address};
use portolan_kernel::rtnl::link::{self, BridgeSpec, IFF_PROMISC, Link, LinkChange, VethPeer, VethSpec};
use portolan_kernel::{carrier, sysctl};

use super::options::{Options, Vlans};
use crate::conf::random_mac;
use crate::inside::refused;

/// The interface of this name, if it is a bridge.
pub(super) fn find(host: &mut Socket, name: &str) -> Result<Option<Link>, Error> {
    match link::lookup(host, name).map_err(|error| refused(format!("could not lookup {name:?}"), error))? {
        Some(found) if found.kind.as_deref() != Some("bridge") => {
            let msg = format!("failed to create bridge {name:?}: {name:?} already exists but is not a bridge");
            Err(Error::new(Code::Conflict, msg))
        }
        found => Ok(found),
    }
}

/// Makes the bridge if it is not there, and has it be as it should; it is up last, so one that is up is whole.
pub(super) fn ensure(host: &mut Socket, options: &Options) -> Result<Link, Error> {
    let name = options.bridge();
    let failed = |error: &dyn std::fmt::Display| refused(format!("failed to create bridge {name:?}"), error);
    let mut found = find(host, name)?;
    if found.is_none() {
        let mut batch = Batch::new();
        link::create_bridge(
            &mut batch,
            &BridgeSpec {
                name,
                // Else it takes that of a port, and another one's when that port goes.
                mac: Some(random_mac()?),
                mtu: options.mtu(),
                group: None,
                mcast_snooping: true,
                vlan_filtering: options.filters_vlans(),
                up: false,
            },
        );
        match host.transact(&batch) {
            Ok(_) => {}
            // Somebody else makes it at this moment.
            Err(error) if error.is_exists() => {}
            Err(error) if options.filters_vlans() && error.is_unsupported() => return Err(no_vlans(name)),
            Err(error) => return Err(failed(&error)),
        }
        found = find(host, name)?;
    }
    let mut bridge = found.ok_or_else(|| failed(&"no such device (ENODEV)"))?;
    let mut batch = Batch::new();
    if options.filters_vlans() && !bridge.bridge.is_some_and(|state| state.vlan_filtering) {
        link::set_vlan_filtering(&mut batch, bridge.index);
        if host.transact(&batch).is_err() {
            return Err(no_vlans(name));
        }
        batch = Batch::new();
    }
    if options.promiscuous && bridge.flags & IFF_PROMISC == 0 {
        link::set(&mut batch, bridge.index, &LinkChange { promisc: Some(true), ..LinkChange::default() });
    }
    if !bridge.up {
        // Its routes are ours.
        if let Err(error) = sysctl::write_in(&["net", "ipv6", "conf", name], &[("accept_ra", "0")]) {
            tracing::debug!(%error, "the bridge may listen to routers");
        }
        link::set(&mut batch, bridge.index, &LinkChange { up: Some(true), ..LinkChange::default() });
    }
    if !batch.is_empty() {
        host.transact(&batch).map_err(|error| failed(&error))?;
        bridge.up = true;
    }
    Ok(bridge)
}

fn no_vlans(name: &str) -> Error {
    let msg = format!("failed to create bridge {name:?}: this kernel's bridges do not keep VLANs apart");
    Error::new(Code::NotAvailable, msg).details("it was built without CONFIG_BRIDGE_VLAN_FILTERING")
}

/// Puts a port into its VLANs.
pub(super) fn set_vlans(host: &mut Socket, bridge: &Link, port: u32, options: &Options) -> Result<(), Error> {
    let vlans = options.vlans()?;
    let mut batch = Batch::new();
    if vlans != Vlans::Default && !options.preserves_default_vlan() {
        let default = bridge.bridge.map_or(1, |state| state.default_pvid);
        if default != 0 {
            link::delete_bridge_vlan(&mut batch, port, default);
        }
    }
    match &vlans {
        Vlans::Default => {}
        Vlans::Access(id) => {
            link::set_bridge_vlan(&mut batch, port, *id, false);
        }
        Vlans::Trunk(ranges) => {
            for (first, last) in ranges {
                link::add_bridge_vlans(&mut batch, port, *first, *last);
            }
        }
    }
    if batch.is_empty() {
        return Ok(());
    }
    host.transact(&batch).map(drop).map_err(|error| refused("failed to setup vlan tag on the bridge port", error))
}

/// The interface of the host that has the gateway's addresses in VLAN `id`: the far end of a veth whose near end is a port.
pub(super) fn ensure_vlan_interface(
    host: &mut Socket,
    bridge: &Link,
    id: u16,
    options: &Options,
) -> Result<Link, Error> {
    let name = format!("{}.{id}", bridge.name);
    let failed = |error: &dyn std::fmt::Display| refused(format!("failed to create vlan gateway {name:?}"), error);
    let lookup = |host: &mut Socket| link::lookup(host, name.as_str()).map_err(|error| failed(&error));
    if let Some(found) = lookup(host)? {
        return Ok(found);
    }
    // By chance, as the original's: it stays as long as the bridge does.
    let port = format!("veth{}", random_mac()?[2..].iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    let mut batch = Batch::new();
    link::create_veth(
        &mut batch,
        &VethSpec {
            name: &port,
            mac: Some(random_mac()?),
            mtu: Some(bridge.mtu),
            master: Some(bridge.index),
            peer: VethPeer { name: &name, mac: Some(random_mac()?), mtu: Some(bridge.mtu), ..VethPeer::default() },
            ..VethSpec::default()
        },
    );
    link::set(&mut batch, port.as_str(), &LinkChange { up: Some(true), ..LinkChange::default() });
    link::set(&mut batch, name.as_str(), &LinkChange { up: Some(true), ..LinkChange::default() });
    match host.transact(&batch) {
        Ok(_) => {
            let made = link::lookup(host, port.as_str()).map_err(|error| failed(&error))?;
            set_vlans(host, bridge, made.map_or(0, |made| made.index), options)?;
            let _ = carrier::carrier(&port);
        }
        Err(error) if error.is_exists() => {}
        Err(error) => return Err(failed(&error)),
    }
    lookup(host)?.ok_or_else(|| failed(&"no such device (ENODEV)"))
}

/// Gives `at`, the bridge or what stands for it in a VLAN, the gateways' addresses.
pub(super) fn ensure_addresses(
    host: &mut Socket,
    at: &Link,
    gateways: &[IpNet],
    options: &Options,
) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| refused("failed to set bridge addr", error);
    let mut has = addr::dump(host, Some(at.index)).map_err(|error| failed(&error))?;
    let mut batch = Batch::new();
    let mut adds = false;
    for gateway in gateways {
        if has.iter().any(|is| is.addr == gateway.addr() && is.prefix_len == gateway.prefix_len()) {
            continue;
        }
        // IPv6 has several subnets on one link, if they do not overlap.
        let stands_in_the_way = |is: &addr::Address| {
            is.addr.is_ipv4() == gateway.addr().is_ipv4()
                && (gateway.addr().is_ipv4()
                    || gateway.contains(&is.addr)
                    || IpNet::new(is.addr, is.prefix_len).is_ok_and(|net| net.contains(&gateway.addr())))
        };
        for is in has.iter().filter(|is| stands_in_the_way(is)) {
            if !options.force_address {
                let msg = format!("{:?} already has an IP address different from {gateway}", at.name);
                return Err(Error::new(Code::Conflict, format!("failed to set bridge addr: {msg}"))
                    .details("`forceAddress` puts the new one in its place"));
            }
            addr::delete(&mut batch, at.index, is.addr, is.prefix_len);
        }
        has.retain(|is| !stands_in_the_way(is));
        let wanted = Address::new(at.index, gateway.addr(), gateway.prefix_len());
        addr::replace(&mut batch, &wanted);
        has.push(wanted);
        adds = true;
    }
    if let Some(mac) = at.mac.filter(|_| adds) {
        if gateways.iter().any(|gateway| gateway.addr().is_ipv6()) {
            // The kernel's own comes only some time after the first port, and without one it asks for no neighbour.
            addr::replace(&mut batch, &Address::new(at.index, addr::link_local(mac).into(), 64));
        }
        // Set to what it is, so that a bridge of somebody else's stops following its ports.
        link::set(&mut batch, at.index, &LinkChange { mac: Some(mac), ..LinkChange::default() });
    }
    if batch.is_empty() {
        return Ok(());
    }
    let outcome = host.transact_each(&batch).map_err(|error| failed(&error))?;
    // Another ADD may have taken away the same address.
    match outcome.errors.into_iter().find(|error| !error.is_missing()) {
        None => Ok(()),
        Some(error) => Err(failed(&error)),
    }
}
