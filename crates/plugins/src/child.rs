//! The plugins whose interface is a child of another: `macvlan`, `ipvlan`, `vlan`; and `dummy`, which is nobody's.

use std::os::fd::AsFd as _;

use portolan_cni::{Call, Code, Config, Error, Success};
use portolan_kernel::netlink::{Batch, Socket};
use portolan_kernel::rtnl::link::{self, ChildMode, ChildSpec, Link};
use portolan_kernel::rtnl::route::default_route_path;
use portolan_kernel::rtnl::{Family, Mac};
use serde::Deserialize;

use crate::Answer;
use crate::conf::{invalid, mac, or_default};
use crate::delegated::Ipam;
use crate::inside::{self, Sandbox, refused};
use crate::single::{Calling, Single};

/// The configurations, as the originals have them.
#[derive(Debug, Clone, Default, Deserialize)]
struct Options {
    #[serde(default, deserialize_with = "or_default")]
    master: String,
    #[serde(default, deserialize_with = "or_default")]
    mode: String,
    #[serde(default, deserialize_with = "or_default")]
    mtu: u32,
    #[serde(default, deserialize_with = "or_default")]
    mac: String,
    #[serde(default, rename = "linkincontainer", deserialize_with = "or_default")]
    master_is_inside: bool,
    #[serde(default, rename = "bcqueuelen", deserialize_with = "or_default")]
    queue: u32,
    #[serde(default, rename = "vlanid", deserialize_with = "or_default")]
    vlan: i64,
}

/// What is to be made.
struct Child<'a> {
    call: &'a Call,
    kind: &'static str,
    mode: ChildMode,
    mac: Option<Mac>,
    /// None for `dummy`.
    master: Option<Master>,
    mtu: Option<u32>,
    chained: Option<Success>,
}

/// The interface that it is a child of.
#[derive(Debug, Clone)]
struct Master {
    /// None for the one that the default route leads out of.
    name: Option<String>,
    is_inside: bool,
}

pub(crate) fn macvlan(call: &Call, config: &Config, text: &[u8]) -> Answer {
    let ipam = Ipam::of(call, config, text);
    Calling { kind: Some("macvlan"), call, config, ipam, dns_of_ipam: false }.run(|| {
        let options: Options = portolan_cni::read(text)?;
        let mode = match options.mode.as_str() {
            "" | "bridge" => 4,
            "private" => 1,
            "vepa" => 2,
            "passthru" => 8,
            other => return Err(invalid(format!("unknown macvlan mode: {other:?}"))),
        };
        let mode = match options.queue {
            0 => ChildMode::Macvlan(mode, None),
            queue => ChildMode::MacvlanQueue(mode, queue),
        };
        let mac = mac(call, config, &options.mac)?;
        Ok(Child { mac, ..Child::new(call, "macvlan", mode, &options) })
    })
}

pub(crate) fn ipvlan(call: &Call, config: &Config, text: &[u8]) -> Answer {
    let ipam = Ipam::of(call, config, text);
    Calling { kind: Some("ipvlan"), call, config, ipam, dns_of_ipam: false }.run(|| {
        let options: Options = portolan_cni::read(text)?;
        let mode = match options.mode.as_str() {
            "" | "l2" => 0,
            "l3" => 1,
            "l3s" => 2,
            other => return Err(invalid(format!("unknown ipvlan mode: {other:?}"))),
        };
        let mut child = Child::new(call, "ipvlan", ChildMode::Ipvlan(mode), &options);
        // The result of an ADD that a CHECK is about is no chain's.
        if call.verb != portolan_cni::Verb::Check
            && let Some(previous) = config.previous()?
        {
            if options.master.is_empty() {
                let [only] = previous.interfaces.as_slice() else {
                    return Err(invalid("chained master failure. PrevResult lacks a single named interface"));
                };
                child.master = Some(Master { name: Some(only.name.clone()), is_inside: options.master_is_inside });
            }
            child.chained = Some(previous).filter(|previous| !previous.ips.is_empty());
        }
        if ipam.is_none() && child.chained.is_none() && call.verb == portolan_cni::Verb::Add {
            return Err(invalid("ipvlan interface requires an IPAM configuration"));
        }
        Ok(child)
    })
}

pub(crate) fn vlan(call: &Call, config: &Config, text: &[u8]) -> Answer {
    let ipam = Ipam::of(call, config, text);
    Calling { kind: Some("vlan"), call, config, ipam, dns_of_ipam: false }.run(|| {
        let options: Options = portolan_cni::read(text)?;
        if options.master.is_empty() {
            return Err(invalid(
                "\"master\" field is required. It specifies the host interface name to create the VLAN for",
            ));
        }
        let id = u16::try_from(options.vlan).ok().filter(|id| *id <= 4094);
        let id = id.ok_or_else(|| {
            invalid(format!("invalid VLAN ID {} (must be between 0 and 4095 inclusive)", options.vlan))
        })?;
        Ipam::needed("vlan", call, config, text)?;
        Ok(Child::new(call, "vlan", ChildMode::Vlan(id), &options))
    })
}

pub(crate) fn dummy(call: &Call, config: &Config, text: &[u8]) -> Answer {
    let ipam = Ipam::of(call, config, text);
    Calling { kind: Some("dummy"), call, config, ipam, dns_of_ipam: true }.run(|| {
        Ipam::needed("dummy", call, config, text)?;
        let options = Options::default();
        Ok(Child { master: None, ..Child::new(call, "dummy", ChildMode::Dummy, &options) })
    })
}

impl<'a> Child<'a> {
    fn new(call: &'a Call, kind: &'static str, mode: ChildMode, options: &Options) -> Self {
        let name = Some(options.master.clone()).filter(|name| !name.is_empty());
        let master = Some(Master { name, is_inside: options.master_is_inside });
        let mtu = Some(options.mtu).filter(|mtu| *mtu != 0);
        Self { call, kind, mode, mac: None, master, mtu, chained: None }
    }

    /// The master, in the namespace of `socket`.
    fn find(&self, master: &Master, socket: &mut Socket) -> Result<Link, Error> {
        let Some(name) = &master.name else { return find_by_default_route(socket) };
        let found = link::lookup(socket, name.as_str());
        let found = found.map_err(|error| refused(format!("failed to lookup master {name:?}"), error))?;
        found.ok_or_else(|| invalid(format!("failed to lookup master {name:?}: Link not found")))
    }

    fn find_from(&self, sandbox: &mut Sandbox) -> Result<Option<Link>, Error> {
        let Some(master) = &self.master else { return Ok(None) };
        if master.is_inside {
            return self.find(master, &mut sandbox.socket).map(Some);
        }
        self.find(master, &mut inside::host()?).map(Some)
    }
}

fn find_by_default_route(socket: &mut Socket) -> Result<Link, Error> {
    for family in [Family::V4, Family::V6] {
        let path = default_route_path(socket, family).map_err(|error| refused("list routes", error))?;
        let Some(path) = path else { continue };
        let found = link::lookup(socket, path.oif).map_err(|error| refused("find the master", error))?;
        if let Some(found) = found {
            return Ok(found);
        }
    }
    Err(invalid("no default route interface found"))
}

impl Single for Child<'_> {
    fn kind(&self) -> Option<&'static str> {
        Some(self.kind)
    }

    fn notifies(&self) -> bool {
        matches!(self.kind, "macvlan" | "ipvlan")
    }

    fn chained(&self) -> Result<Option<Success>, Error> {
        Ok(self.chained.clone())
    }

    fn check(&self, sandbox: &mut Sandbox) -> Result<(), Error> {
        let master = self.find_from(sandbox)?;
        match (master, self.mtu) {
            (Some(master), Some(mtu)) if mtu > master.mtu => {
                Err(invalid(format!("invalid MTU {mtu}, must be [0, master MTU({})]", master.mtu)))
            }
            _ => Ok(()),
        }
    }

    fn make(&self, sandbox: &mut Sandbox) -> Result<(), Error> {
        let kind = self.kind;
        let parent = self.find_from(sandbox)?.map_or(0, |master| master.index);
        let mut batch = Batch::new();
        let netns = sandbox.netns.as_fd();
        let (name, mode, mac, mtu) = (self.call.ifname.as_str(), self.mode, self.mac, self.mtu);
        link::create_child(&mut batch, &ChildSpec { name, parent, mode, mac, mtu, netns });
        let is_inside = self.master.as_ref().is_some_and(|master| master.is_inside);
        let made = if is_inside { sandbox.socket.transact(&batch) } else { inside::host()?.transact(&batch) };
        made.map(drop).map_err(|error| {
            if error.is_unsupported() {
                let msg = format!("failed to create {kind}: this kernel has no interfaces of that kind");
                return Error::new(Code::NotAvailable, msg).details(error.to_string());
            }
            refused(format!("failed to create {kind}"), error)
        })
    }

    fn compare(&self, sandbox: &mut Sandbox, found: &Link) -> Result<(), Error> {
        let master = self.find_from(sandbox).map_err(|error| Error { code: Code::Differs, ..error })?;
        if let Some(master) = master
            && found.link != Some(master.index)
        {
            return Err(Error::differs(format!("{} is no child of {}", found.name, master.name)));
        }
        let wanted = match self.mode {
            ChildMode::Macvlan(mode, _) | ChildMode::MacvlanQueue(mode, _) => Some(mode),
            ChildMode::Ipvlan(mode) | ChildMode::Vlan(mode) => Some(mode.into()),
            ChildMode::Dummy => None,
        };
        if wanted.is_some() && found.mode != wanted {
            return Err(Error::differs(format!(
                "{} of {} is {}, not the expected {}",
                if self.kind == "vlan" { "VLAN" } else { "mode" },
                found.name,
                found.mode.unwrap_or_default(),
                wanted.unwrap_or_default()
            )));
        }
        match self.mtu {
            Some(mtu) if mtu != found.mtu => {
                Err(Error::differs(format!("MTU of {} is {}, not the expected {mtu}", found.name, found.mtu)))
            }
            _ => Ok(()),
        }
    }

    fn status(&self) -> Result<(), Error> {
        match &self.master {
            Some(master) if !master.is_inside => self.find(master, &mut inside::host()?).map(drop),
            _ => Ok(()),
        }
    }
}
