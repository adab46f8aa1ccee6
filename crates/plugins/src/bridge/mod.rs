//! The plugin `bridge`: a veth pair between the container and a bridge of the host.

mod options;
mod switch;

use ipnet::IpNet;
use portolan_cni::{Call, Code, Config, Error, Success, Verb};
use portolan_kernel::carrier;
use portolan_kernel::netlink::{Batch, Socket};
use portolan_kernel::rtnl::link::{BrPort, IFF_PROMISC, Link};
use portolan_kernel::rtnl::{addr, link, neigh};

use self::options::{Options, Vlans};
use crate::addresses::Ipam;
use crate::conf::{self, interface, mac};
use crate::configure::{Manner, announce, bring_up, configure};
use crate::host_end::{self, Pair};
use crate::inside::{self, Sandbox, refused};
use crate::{Answer, check, forward, nat};

/// Whose index among the interfaces of a result is the container's: after the bridge and the host end.
const INSIDE: usize = 2;

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    let plugin = Plugin { call, config, ipam: Ipam::of(call, config, text), text };
    match call.verb {
        Verb::Add => plugin.add().map(|success| Some((success, config.version()))),
        Verb::Del => plugin.del().map(|()| None),
        Verb::Check => plugin.check().map(|()| None),
        Verb::Gc => plugin.gc().map(|()| None),
        Verb::Status => plugin.status().map(|()| None),
        Verb::Version => Ok(None),
    }
}

struct Plugin<'a> {
    call: &'a Call,
    config: &'a Config,
    ipam: Option<Ipam<'a>>,
    text: &'a [u8],
}

impl Plugin<'_> {
    fn options(&self) -> Result<Options, Error> {
        let options: Options = portolan_cni::read(self.text)?;
        options.check(self.ipam.is_some())?;
        Ok(options)
    }

    fn add(&self) -> Result<Success, Error> {
        let options = self.options()?;
        let mac = mac(self.call, self.config, "")?;
        let (mut host, mut sandbox) = (inside::host()?, Sandbox::open(self.call)?);
        // What would fail must not cost the addresses of the attachment that is there.
        sandbox.is_free(self.call)?;
        switch::find(&mut host, options.bridge())?;
        let given = self.ipam.filter(Ipam::is_first).map(|ipam| ipam.add()).transpose()?;
        let built = self.build(&mut host, &mut sandbox, &options, mac, given);
        built.inspect_err(|_| self.undo(&mut host, &options))
    }

    fn build(
        &self,
        host: &mut Socket,
        sandbox: &mut Sandbox,
        options: &Options,
        mac: Option<[u8; 6]>,
        given: Option<Success>,
    ) -> Result<Success, Error> {
        let call = self.call;
        let bridge = switch::ensure(host, options)?;
        let pair = Pair { mac, mtu: options.mtu(), bridge: Some(bridge.index), port: port(options) };
        let made = host_end::create(host, sandbox, call, &self.config.name, &pair)?;
        switch::set_vlans(host, &bridge, made.host.index, options)?;
        if let Some(mac) = made.inside.mac.filter(|_| options.check_mac) {
            let mut batch = Batch::new();
            neigh::fdb_replace(&mut batch, made.host.index, mac);
            host.transact(&batch).map_err(|error| refused("allow the container's MAC at its bridge port", error))?;
        }
        let mut success = match (given, self.ipam) {
            (Some(given), _) => given,
            (None, Some(ipam)) => ipam.add()?,
            (None, None) => Success::default(),
        };
        let gateways = options.gateways(&mut success);
        let gateway = self.ensure_gateway(host, &bridge, options, &gateways)?;
        if self.ipam.is_some() {
            let manner = Manner { detect_duplicates: options.detect_duplicates, notify: true, ..Manner::default() };
            if options.detect_duplicates {
                // Duplicates are asked for on the link, which there is when both ends are up and the bridge forwards.
                bring_up(sandbox, &call.ifname, made.inside.index)?;
                forwards(&made.host)?;
            }
            configure(sandbox, &call.ifname, made.inside.index, &success, manner, &[])?;
        } else if !options.stays_down {
            bring_up(sandbox, &call.ifname, made.inside.index)?;
        }
        forward::enable(&gateways)?;
        let addresses: Vec<IpNet> = success.ips.iter().map(|ip| ip.address).collect();
        if options.masquerade && self.ipam.is_some() {
            nat::masquerade(call, &self.config.name, &addresses)?;
        }
        if !options.stays_down {
            forwards(&made.host)?;
            announce(sandbox, made.inside.index, made.inside.mac, &addresses);
        }
        for ip in &mut success.ips {
            ip.interface = Some(INSIDE);
        }
        // Read again: that of a bridge of somebody else's is that of its lowest port.
        let bridge = switch::find(host, options.bridge())?.unwrap_or(bridge);
        let nowhere = std::path::Path::new("");
        success.interfaces = vec![
            interface(&bridge.name, bridge.mac, bridge.mtu, nowhere),
            interface(&made.host.name, made.host.mac, made.host.mtu, nowhere),
            interface(&call.ifname, made.inside.mac, made.inside.mtu, &call.netns),
        ];
        success.interfaces.extend(gateway.map(|at| interface(&at.name, at.mac, at.mtu, nowhere)));
        success.dns = conf::dns(self.config, &success);
        Ok(success)
    }

    /// Gives the host the gateways' addresses; what has them, if it is not the bridge itself.
    fn ensure_gateway(
        &self,
        host: &mut Socket,
        bridge: &Link,
        options: &Options,
        gateways: &[IpNet],
    ) -> Result<Option<Link>, Error> {
        let vlan = match options.vlans()? {
            Vlans::Access(id) if !gateways.is_empty() => {
                Some(switch::ensure_vlan_interface(host, bridge, id, options)?)
            }
            _ => None,
        };
        switch::ensure_addresses(host, vlan.as_ref().unwrap_or(bridge), gateways, options)?;
        Ok(vlan)
    }

    /// After a failure, which is what is told. The bridge stays: others may be on it by now.
    fn undo(&self, host: &mut Socket, options: &Options) {
        let undone = Ipam::leave(self.ipam, || {
            let removed = host_end::remove(host, self.call, &self.config.name);
            let network = &self.config.name;
            let freed = if options.masquerade { nat::unmasquerade(self.call, network) } else { Ok(()) };
            removed.and(freed)
        });
        if let Err(error) = undone {
            tracing::warn!("not all is taken back: {error}");
        }
    }

    fn del(&self) -> Result<(), Error> {
        host_end::leave(self.call, &self.config.name, self.ipam)
    }

    fn check(&self) -> Result<(), Error> {
        let options = self.options()?;
        let success = check::previous(self.config)?;
        if let Some(ipam) = self.ipam {
            ipam.check()?;
        }
        let (mut host, mut sandbox) = (inside::host()?, Sandbox::open(self.call)?);
        let name = options.bridge();
        let lost = || Error::differs(format!("CNI created bridge {name} in host namespace was not found"));
        let bridge = switch::find(&mut host, name)?.ok_or_else(lost)?;
        check::up(&bridge)?;
        if let Some(wanted) = success.interfaces.iter().find(|is| is.name == name && is.sandbox.is_empty()) {
            let mac = bridge.mac.map(conf::mac_text).unwrap_or_default();
            if !wanted.mac.is_empty() && wanted.mac != mac {
                return Err(Error::differs(format!("Bridge interface {name} Mac doesn't match: {}", wanted.mac)));
            }
        }
        // One that another network on the same bridge asked for is no damage.
        if options.promiscuous && bridge.flags & IFF_PROMISC == 0 {
            return Err(Error::differs(format!(
                "Bridge interface {name} configured Promisc Mode true doesn't match current state: false"
            )));
        }
        let inside = check::container(&mut sandbox, self.call, &success, Some("veth"))?;
        self.check_port(&mut host, &bridge, &inside, &options)?;
        if !options.stays_down {
            check::up(&inside)?;
        }
        check::addresses_and_routes(&mut sandbox, &success, &inside)?;
        if options.masquerade && self.ipam.is_some() {
            nat::check_masquerade(self.call, &self.config.name, &check::addresses(&success, &self.call.ifname))?;
        }
        self.check_gateways(&mut host, &bridge, &options, success)
    }

    fn check_port(&self, host: &mut Socket, bridge: &Link, inside: &Link, options: &Options) -> Result<(), Error> {
        let lost = || Error::differs(format!("CNI veth created for bridge {} was not found", bridge.name));
        let found = inside.link.map(|index| link::lookup(host, index)).transpose();
        let found = found.map_err(|error| refused("find the host end of the veth", error))?.flatten();
        // An index says nothing about where it counts; that the other end leads back does.
        let port = found.filter(|port| port.kind.as_deref() == Some("veth") && port.link == Some(inside.index));
        let port = port.ok_or_else(lost)?;
        if port.master != Some(bridge.index) {
            return Err(Error::differs(format!("{} is not a port of bridge {}", port.name, bridge.name)));
        }
        check::up(&port)?;
        let is = port.brport.unwrap_or_default();
        let wanted = [
            ("hairpin mode", is.hairpin, Some(options.hairpin)),
            ("port isolation", is.isolated, Some(options.isolated).filter(|on| *on)),
            ("a locked MAC", is.locked, Some(options.check_mac).filter(|on| *on)),
        ];
        for (what, is, wanted) in wanted {
            if wanted.is_some_and(|wanted| is != Some(wanted)) {
                let state = if is == Some(true) { "has" } else { "lacks" };
                return Err(Error::differs(format!("bridge port {} {state} {what}", port.name)));
            }
        }
        Ok(())
    }

    fn check_gateways(
        &self,
        host: &mut Socket,
        bridge: &Link,
        options: &Options,
        mut success: Success,
    ) -> Result<(), Error> {
        let gateways = options.gateways(&mut success);
        if gateways.is_empty() || matches!(options.vlans()?, Vlans::Access(_)) {
            return Ok(());
        }
        let has =
            addr::dump(host, Some(bridge.index)).map_err(|error| refused("list addresses of the bridge", error))?;
        match gateways.iter().find(|gateway| !has.iter().any(|is| is.addr == gateway.addr())) {
            None => Ok(()),
            Some(gateway) => Err(Error::differs(format!("bridge {} lacks address {gateway}", bridge.name))),
        }
    }

    fn gc(&self) -> Result<(), Error> {
        let valid = conf::valid(self.config)?;
        let network = self.config.name.as_str();
        let removed = inside::host().and_then(|mut host| host_end::collect(&mut host, network, &valid));
        let freed = nat::collect(network, &|container, ifname| valid.contains(&(container, ifname)));
        let given_back = self.ipam.map_or(Ok(()), |ipam| ipam.gc());
        removed.and(freed).and(given_back)
    }

    fn status(&self) -> Result<(), Error> {
        let not_available = |error: Error| Error { code: Code::NotAvailable, ..error };
        let options = self.options().map_err(not_available)?;
        switch::find(&mut inside::host()?, options.bridge()).map_err(not_available)?;
        self.ipam.map_or(Ok(()), |ipam| ipam.status())
    }
}

/// What kind of port a container has.
fn port(options: &Options) -> BrPort {
    BrPort {
        hairpin: options.hairpin.then_some(true),
        isolated: options.isolated.then_some(true),
        // No frame of another MAC passes, and none is learnt.
        locked: options.check_mac.then_some(true),
        learning: options.check_mac.then_some(false),
        ..BrPort::default()
    }
}

/// Has the bridge forward by a port whose other end is up.
fn forwards(port: &Link) -> Result<(), Error> {
    match carrier::carrier(&port.name) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::new(Code::Internal, "bridge port in error state: down")),
        Err(error) => Err(refused(format!("bridge port {:?}", port.name), error)),
    }
}
