//! What the engine asks about the machine before it decides.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use portolan_engine::{HostInterface, HostRoute, KernelError, Kind, PortClash};
use portolan_model::{Family, IfName, Mac, Mtu, ProcessId, Protocol, Publication, Sandbox};

use super::{HostKernel, failure, refusal};
use crate::diag::{self, Transport};
use crate::netns::NetnsFd;
use crate::rtnl::{addr, link, route};
use crate::{conntrack, process, rtnl, sys};

/// From this many ports on, one listing of all listeners is cheaper than trying each port.
const PROBE_AT_MOST: u32 = 64;

pub(super) fn routes(kernel: &HostKernel) -> Result<Vec<HostRoute>, KernelError> {
    kernel.with_route(|socket| {
        let routes = route::dump(socket).map_err(|error| refusal("list routes", &error))?;
        // The route to an interface's own address is there a little longer than the interface, for whoever removes it
        // (`unregister_netdevice_many_notify()`, net/core/dev.c).
        let mut devices: BTreeMap<u32, bool> = BTreeMap::new();
        let mut is_there = |device: u32| *devices.entry(device).or_insert_with(|| sys::has_interface_index(device));
        Ok(routes
            .into_iter()
            .filter(|route| {
                !route.is_default() && !matches!(route.kind, route::RouteKind::Broadcast | route::RouteKind::Other(_))
            })
            .filter(|route| !route.dst.is_multicast() && !route.dst.is_loopback() && !is_link_local(route.dst))
            .filter_map(|route| {
                let net = IpNet::new(route.dst, route.prefix_len).ok()?.trunc();
                let device = route.oif.or_else(|| route.nexthops.first().and_then(|hop| hop.oif));
                device.is_none_or(&mut is_there).then_some(())?;
                Some(HostRoute { net, device, table: route.table })
            })
            .collect())
    })
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

pub(super) fn path_mtu(kernel: &HostKernel) -> Result<Mtu, KernelError> {
    kernel.with_route(|socket| {
        for family in [rtnl::Family::V4, rtnl::Family::V6] {
            let path =
                route::default_route_path(socket, family).map_err(|error| refusal("read the default route", &error))?;
            let Some(path) = path else { continue };
            let link = link::lookup(socket, path.oif)
                .map_err(|error| refusal("read the default route's interface", &error))?;
            let mtu = path.mtu.filter(|mtu| *mtu > 0).or_else(|| link.map(|link| link.mtu));
            if let Some(mtu) = mtu.and_then(|mtu| Mtu::new(mtu).ok()) {
                return Ok(mtu);
            }
        }
        Ok(Mtu::ETHERNET)
    })
}

pub(super) fn find_interface(kernel: &HostKernel, name: &str) -> Result<Option<HostInterface>, KernelError> {
    kernel.with_route(|socket| {
        let link = link::lookup(socket, name);
        let link = link.map_err(|error| refusal(format!("look for interface `{name}`"), &error))?;
        Ok(link.map(|link| HostInterface {
            mtu: Mtu::new(link.mtu).unwrap_or(Mtu::ETHERNET),
            mac: link.mac.map(Mac::from_bytes),
        }))
    })
}

pub(super) fn addresses(kernel: &HostKernel, name: &str) -> Result<Option<Vec<IpAddr>>, KernelError> {
    kernel.with_route(|socket| {
        let read = |socket: &mut _| {
            let Some(link) = link::lookup(socket, name)? else { return Ok(None) };
            let found = addr::dump(socket, Some(link.index))?;
            // An address that somebody else has, too, is not reached by all.
            let is_reached = |one: &addr::Address| match one.addr {
                IpAddr::V4(_) => true,
                IpAddr::V6(_) => one.scope != libc::RT_SCOPE_LINK && one.flags & addr::DADFAILED == 0,
            };
            Ok(Some(found.into_iter().filter(is_reached).map(|one| one.addr).collect()))
        };
        read(socket).map_err(|error| refusal(format!("read the addresses of interface `{name}`"), &error))
    })
}

pub(super) fn default_interface(kernel: &HostKernel) -> Result<Option<IfName>, KernelError> {
    kernel.with_route(|socket| {
        for family in [rtnl::Family::V4, rtnl::Family::V6] {
            let path =
                route::default_route_path(socket, family).map_err(|error| refusal("read the default route", &error))?;
            if let Some(path) = path {
                let link = link::lookup(socket, path.oif)
                    .map_err(|error| refusal("read the default route's interface", &error))?;
                return Ok(link.and_then(|link| link.name.parse().ok()));
            }
        }
        Ok(None)
    })
}

pub(super) fn interface_name(kernel: &HostKernel, index: u32) -> Option<String> {
    kernel.with_route(|socket| Ok(link::lookup(socket, index).ok().flatten())).ok().flatten().map(|link| link.name)
}

pub(super) fn interfaces(kernel: &HostKernel) -> Result<Vec<(IfName, Option<String>)>, KernelError> {
    kernel.with_route(|socket| {
        let links = link::dump(socket).map_err(|error| refusal("list interfaces", &error))?;
        Ok(links
            .into_iter()
            .filter(|link| link.index != 1)
            .filter_map(|link| Some((link.name.parse().ok()?, link.alias)))
            .collect())
    })
}

/// The start time of a process, in clock ticks since boot; none where there is no such process, or a zombie.
///
/// # Errors
/// When it cannot be found out, as for want of descriptors.
pub(super) fn start_time(pid: i32) -> io::Result<Option<u64>> {
    let stat = match fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        // It may go between open(2) and read(2).
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH)) => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(process::fields_of(&stat).and_then(|mut fields| {
        let state = fields.next()?;
        if matches!(state, "Z" | "X") {
            return None;
        }
        // Field 22; the state was field 3.
        fields.nth(18)?.parse().ok()
    }))
}

/// Whether a process is there, as far as it can be told.
pub(super) fn process_alive(process: ProcessId) -> bool {
    start_time(process.pid).map_or(true, |started| started == Some(process.started))
}

/// `/proc/PID/ns/net` in its usual spellings.
fn pid_of(path: &Path) -> Option<i32> {
    let text = path.to_str()?.strip_prefix("/proc/")?;
    let (pid, rest) = text.split_once('/')?;
    if pid == "self" && rest == "ns/net" {
        return Some(std::process::id() as i32);
    }
    (rest == "ns/net").then(|| pid.parse().ok()).flatten()
}

pub(super) fn sandbox(path: &Path) -> Result<Sandbox, KernelError> {
    let doing = || format!("open namespace `{}`", path.display());
    let error = |reason: String, errno: i32, kind: Kind, hint: &str| KernelError {
        doing: doing(),
        reason,
        errno,
        kind,
        hint: Some(hint.to_owned()),
        about: None,
    };
    let ns = NetnsFd::open(path).map_err(|source| {
        let errno = source.errno().unwrap_or(0);
        if source.is_missing() {
            error(
                "it does not exist".to_owned(),
                errno,
                Kind::Invalid,
                "`ip netns list` and `lsns -t net` list namespaces; --pid takes a process's",
            )
        } else if errno == 0 {
            error(
                "it is not a network namespace".to_owned(),
                0,
                Kind::Invalid,
                "give a path such as /run/netns/NAME or /proc/PID/ns/net",
            )
        } else {
            failure(doing(), source.to_string(), errno)
        }
    })?;
    let host = NetnsFd::current()
        .map_err(|source| failure("open the host's namespace", source.to_string(), source.errno().unwrap_or(0)))?;
    let id = ns.identity();
    if id == host.identity() {
        return Err(error(
            "it is the host's own".to_owned(),
            0,
            Kind::Invalid,
            "a container needs a namespace of its own; make one with `ip netns add NAME`",
        ));
    }
    let absolute: PathBuf = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let process = pid_of(path).and_then(|pid| Some(ProcessId { pid, started: start_time(pid).ok()?? }));
    Ok(Sandbox { device: id.dev, inode: id.ino, path: absolute, process })
}

pub(super) fn setting_in(sandbox: &Sandbox, path: &str) -> Result<Option<String>, KernelError> {
    let ns = super::apply::open_sandbox(sandbox)?;
    let read = || crate::sysctl::read(&path.split('/').collect::<Vec<_>>()).ok();
    crate::netns::with_netns(&ns, read).map_err(|error| {
        let doing = format!("enter namespace `{}`", sandbox.path.display());
        failure(doing, error.to_string(), error.errno().unwrap_or(0))
    })
}

pub(super) fn here() -> Result<Sandbox, KernelError> {
    let path = Path::new("/proc/thread-self/ns/net");
    let ns = NetnsFd::open(path).map_err(|source| KernelError {
        doing: format!("open namespace `{}`", path.display()),
        reason: source.to_string(),
        errno: source.errno().unwrap_or(0),
        kind: Kind::Bug,
        hint: None,
        about: None,
    })?;
    let id = ns.identity();
    Ok(Sandbox { device: id.dev, inode: id.ino, path: path.to_owned(), process: None })
}

pub(super) fn sandbox_alive(sandbox: &Sandbox) -> bool {
    if sandbox.process.is_some_and(|process| !process_alive(process)) {
        return false;
    }
    match fs::metadata(&sandbox.path) {
        Ok(file) => file.dev() == sandbox.device && file.ino() == sandbox.inode,
        Err(error) => !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH)),
    }
}

pub(super) fn ephemeral_ports(kernel: &HostKernel) -> (u16, u16, Vec<u16>) {
    use portolan_engine::Kernel as _;
    let range = kernel.setting("net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = range.split_ascii_whitespace().filter_map(|text| text.parse::<u16>().ok());
    // The range for dynamic ports (RFC 6335 §6) where the sysctl cannot be read.
    let (first, last) = match (numbers.next(), numbers.next()) {
        (Some(first), Some(last)) if first > 0 && first <= last => (first, last),
        _ => (49153, 65535),
    };
    let reserved = kernel.setting("net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let reserved = reserved.split(',').filter_map(|part| {
        let (a, b) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        Some(a.parse::<u16>().ok()?..=b.parse::<u16>().ok()?)
    });
    (first, last, reserved.flatten().collect())
}

const fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    }
}

/// Whether the host is about to have the address: it is tentative, and nobody has been found to have it, too.
fn is_tentative(kernel: &HostKernel, address: Ipv6Addr) -> bool {
    let all = kernel.with_route(|socket| addr::dump(socket, None).map_err(|error| refusal("list addresses", &error)));
    let is_it = |one: &addr::Address| {
        one.addr == address && one.flags & addr::TENTATIVE != 0 && one.flags & addr::DADFAILED == 0
    };
    all.is_ok_and(|all| all.iter().any(is_it))
}

/// Tries to bind to a port of the host.
fn probe(kernel: &HostKernel, transport: Transport, address: IpAddr, port: u16) -> io::Result<()> {
    match (diag::probe_bind(transport, address, port), address) {
        (Err(error), IpAddr::V6(ip))
            if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) && is_tentative(kernel, ip) =>
        {
            diag::probe_bind_ahead(transport, ip, port)
        }
        (probed, _) => probed,
    }
}

pub(super) fn host_ports_free(
    kernel: &HostKernel,
    publication: &Publication,
    keeper: Option<&str>,
) -> Result<(), PortClash> {
    let transport = transport(publication.protocol);
    let addresses = Family::ALL.into_iter().filter(|family| publication.covers(*family)).map(|family| {
        publication.bound_to().unwrap_or(match family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        })
    });
    let many = publication.host.count() > PROBE_AT_MOST;
    for address in addresses {
        for port in publication.host.ports() {
            if many && port != publication.host.first() {
                break;
            }
            match probe(kernel, transport, address, port) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
                    if let Some(holder) = holder(transport, address, port, keeper) {
                        return Err(PortClash::Listening { port, holder });
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) && !address.is_unspecified() => {
                    return Err(PortClash::NotLocal(address));
                }
                // No IPv6 here, or a port that only binding was refused for: nobody listens.
                Err(_) => {}
            }
        }
        if many {
            let listening = diag::listeners().unwrap_or_default();
            let clash = listening
                .into_iter()
                .filter(|listener| {
                    publication.host.first() <= listener.port
                        && listener.port <= publication.host.last()
                        && listener.occupies(transport, address, listener.port)
                })
                .find_map(|listener| Some((listener.port, name_holder(listener.inode, keeper)?)));
            if let Some((port, holder)) = clash {
                return Err(PortClash::Listening { port, holder });
            }
        }
    }
    Ok(())
}

/// Our own resident: it listens on gateways for names, which translation never touches, and for ports that it passes
/// on, which it lets go with their container.
const OURS: &str = "portolan";

/// Who has the port, for the error message; none if that is our resident or the `keeper`.
fn holder(transport: Transport, address: IpAddr, port: u16, keeper: Option<&str>) -> Option<String> {
    let listeners = diag::listeners().unwrap_or_default();
    let occupants: Vec<_> =
        listeners.into_iter().filter(|listener| listener.occupies(transport, address, port)).collect();
    if occupants.is_empty() {
        return Some("another process".to_owned());
    }
    occupants.into_iter().find_map(|listener| name_holder(listener.inode, keeper))
}

fn name_holder(inode: u32, keeper: Option<&str>) -> Option<String> {
    match diag::holder_of(inode) {
        Some(holder) if holder.comm == OURS || Some(holder.comm.as_str()) == keeper => None,
        Some(holder) => Some(format!("process {} (`{}`)", holder.pid, holder.comm)),
        None => Some("another process".to_owned()),
    }
}

pub(super) fn forget_flows(kernel: &HostKernel, publications: &[Publication]) {
    for protocol in Protocol::ALL {
        let ours: Vec<&Publication> =
            publications.iter().filter(|publication| publication.protocol == protocol).collect();
        if ours.is_empty() {
            continue;
        }
        let filter = conntrack::Filter { family: None, protocol: Some(protocol.number()) };
        let forgotten = kernel.with_netfilter(|socket| {
            conntrack::delete_matching(socket, filter, |entry| {
                ours.iter().any(|publication| {
                    let original = &entry.original;
                    publication.host.first() <= original.dst_port
                        && original.dst_port <= publication.host.last()
                        && publication.covers(Family::of(original.dst))
                        && publication.bound_to().is_none_or(|ip| ip == original.dst)
                })
            })
            .map_err(|error| refusal("forget flows", &error))
        });
        if let Err(error) = forgotten {
            // A kernel without conntrack's netlink interface: the flows time out by themselves.
            tracing::warn!(%error, "flows to published ports were not forgotten");
        }
    }
}
