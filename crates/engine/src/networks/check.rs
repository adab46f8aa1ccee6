//! What cannot be asked for of a network.

use ipnet::IpNet;
use portolan_model::{Driver, Family, FirewallDriver, GatewayMode, Invalid, Ipam, NetworkOptions};

use crate::api::NetworkRequest;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::kernel::Kernel;
use crate::sets::check_claims;
use crate::store::{Store, Tx};

/// Refuses what an IPAM driver cannot do: to know addresses before they are given, or to reach a server.
pub(super) fn check_ipam(request: &NetworkRequest, options: &NetworkOptions) -> Result<()> {
    if request.ipam.is_local() {
        return Ok(());
    }
    let given = [
        (!request.subnets.is_empty(), "subnet"),
        (!request.gateways.is_empty(), "gateway"),
        (!request.ranges.is_empty(), "IP range"),
        (!request.aux.is_empty(), "auxiliary address"),
    ];
    if let Some((_, what)) = given.into_iter().find(|(is_given, _)| *is_given) {
        let why = format!("no {what} goes with it, as it gives none of our addresses");
        return Err(Invalid::new("IPAM driver", request.ipam.to_string(), why)
            .hint(format!("leave out the {what}, or the IPAM driver"))
            .into());
    }
    let (what, hint) = match request.driver {
        Driver::Ipvlan => {
            ("with ipvlan", "its containers share one MAC, by which a server tells clients apart: use macvlan")
        }
        Driver::Ptp | Driver::Overlay => {
            return Err(Error::Unsupported {
                what: format!("ipam driver {}", request.ipam),
                why: format!("is not supported with {}", request.driver),
                hint: "the host routes to each address, so it has to know them: leave out the IPAM driver, or use a bridge",
            });
        }
        Driver::Bridge if options.managed => (
            "on a bridge of ours",
            "no server is on it: join the LAN's bridge with --opt mode=unmanaged, or use macvlan",
        ),
        _ => return Ok(()),
    };
    match request.ipam {
        Ipam::Dhcp => Err(Error::Unsupported {
            what: "ipam driver dhcp".to_owned(),
            why: format!("is not supported {what}"),
            hint,
        }),
        Ipam::Local | Ipam::None => Ok(()),
    }
}

/// Refuses what a network without a bridge cannot be.
pub(crate) fn check_routed(options: &NetworkOptions) -> Result<()> {
    for family in Family::ALL {
        if options.gateway_mode.of(family) == &GatewayMode::Isolated {
            return Err(Invalid::new("gateway mode", "isolated", "is for bridges, and this network has none")
                .hint("leave it out: with --internal, containers reach each other and the gateway only")
                .into());
        }
    }
    Ok(())
}

/// Refuses a network without a bridge where rules of ours could not keep it apart. Theirs are rules in order, and those that
/// keep gateways apart are written for one interface each.
pub(crate) fn check_firewall(driver: Driver, firewall: FirewallDriver) -> Result<()> {
    if matches!(firewall, FirewallDriver::Iptables | FirewallDriver::Firewalld) {
        return Err(Error::Unsupported {
            what: format!("network driver `{driver}`"),
            why: format!("is not supported with firewall driver `{}`", firewall.name()),
            hint: "use a bridge network, or firewall driver nftables",
        });
    }
    Ok(())
}

/// Refuses a limit of connections where no rule of ours could keep to it.
pub(super) fn check_connections(options: &NetworkOptions, firewall: FirewallDriver) -> Result<()> {
    if options.connections.is_some() && firewall != FirewallDriver::Nftables {
        return Err(Error::Unsupported {
            what: "network option `connections`".to_owned(),
            why: format!("is not supported with firewall driver `{}`", firewall.name()),
            hint: "leave it out, or use firewall driver nftables",
        });
    }
    if options.connections.is_some() && !options.managed {
        return Err(Invalid::new("network option", "connections", "is for bridges with rules of ours").into());
    }
    Ok(())
}

/// Refuses what can hold no container, or is no unicast space.
pub(crate) fn check_subnet(net: IpNet) -> Result<()> {
    let refuse = |why: &'static str| Err(Invalid::new("subnet", net.to_string(), why).into());
    if net.prefix_len() == 0 {
        return refuse("is the whole address space");
    }
    if net.trunc() != net {
        return Err(Invalid::new("subnet", net.to_string(), "has host bits set")
            .hint(format!("write {}", net.trunc()))
            .into());
    }
    let address = net.addr();
    if address.is_multicast() || address.is_loopback() {
        return refuse("is multicast or loopback space");
    }
    match net {
        IpNet::V4(net) if net.addr().octets()[0] == 0 || net.addr().octets()[0] >= 240 => {
            refuse("is reserved (RFC 6890)")
        }
        IpNet::V6(net) if net.addr().is_unicast_link_local() => refuse("is link-local space"),
        _ if net.prefix_len() == net.max_prefix_len() => refuse("has room for the gateway only"),
        _ => Ok(()),
    }
}

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Refuses of a network over several hosts what this one knows to be wrong; the cluster knows of the others. What this one
    /// has in use.
    pub(super) fn check_overlay(&self, tx: &S::Tx<'_>, request: &NetworkRequest) -> Result<Vec<IpNet>> {
        if let Some(taken) = tx.network_named(request.name.as_str())? {
            return Err(match taken.is_predefined() {
                true => Error::Predefined { name: taken.name.to_string(), verb: "created" },
                false => Error::NameTaken { what: "network", name: request.name.to_string() },
            });
        }
        let options = NetworkOptions::from_pairs(request.driver, &request.options)?;
        check_ipam(request, &options)?;
        check_routed(&options)?;
        check_firewall(request.driver, self.table(tx)?.driver)?;
        let given = [
            (!request.gateways.is_empty(), "gateway"),
            (!request.ranges.is_empty() || !request.sets.is_empty(), "IP range"),
            (!request.aux.is_empty(), "auxiliary address"),
            (!request.routes.is_empty(), "route"),
            (!request.dns.is_empty(), "name server"),
        ];
        if let Some((_, what)) = given.into_iter().find(|(is_given, _)| *is_given) {
            let why =
                format!("has no {what} of its own: hosts give out its addresses in blocks, and each is its gateway");
            return Err(Invalid::new("network driver", request.driver.to_string(), why)
                .hint(format!("leave out the {what}"))
                .into());
        }
        for net in &request.subnets {
            check_subnet(*net)?;
            check_claims(tx, *net, None)?;
        }
        let doing = || "list the host's routes".to_owned();
        let routes = self.kernel.routes().map_err(|source| Error::Kernel { doing: doing(), source })?;
        let ours = tx.networks()?.into_iter().flat_map(|network| network.nets());
        Ok(ours.chain(routes.into_iter().map(|route| route.net)).collect())
    }
}
