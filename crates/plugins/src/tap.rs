//! The plugin `tap`: an interface whose frames a program in the container has.

use std::fs;
use std::path::Path;

use portolan_cni::{Call, Code, Config, Error};
use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::Mac;
use portolan_kernel::rtnl::link::{self, Link, LinkChange};
use portolan_kernel::tap::{self, TapSpec};
use serde::Deserialize;

use crate::Answer;
use crate::conf::{mac, or_default};
use crate::delegated::Ipam;
use crate::inside::{Sandbox, refused};
use crate::single::{Calling, Single};

const DEVICE: &str = "/dev/net/tun";

/// The configuration, as the original has it.
#[derive(Debug, Clone, Deserialize)]
struct Options {
    #[serde(default, rename = "multiqueue", deserialize_with = "or_default")]
    multi_queue: bool,
    #[serde(default, deserialize_with = "or_default")]
    mtu: u32,
    #[serde(default, deserialize_with = "or_default")]
    mac: String,
    #[serde(default)]
    owner: Option<u32>,
    #[serde(default)]
    group: Option<u32>,
    #[serde(default, rename = "selinuxcontext", deserialize_with = "or_default")]
    selinux_context: String,
    #[serde(default, deserialize_with = "or_default")]
    bridge: String,
}

struct Tap<'a> {
    call: &'a Call,
    options: Options,
    mac: Option<Mac>,
}

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    let ipam = Ipam::of(call, config, text);
    Calling { kind: Some("tun"), call, config, ipam, dns_of_ipam: false }.run(|| {
        let options: Options = portolan_cni::read(text)?;
        let mac = mac(call, config, &options.mac)?;
        Ok(Tap { call, options, mac })
    })
}

impl Tap<'_> {
    /// The bridge inside that it is to be a port of.
    fn bridge(&self, sandbox: &mut Sandbox) -> Result<Option<Link>, Error> {
        let name = self.options.bridge.as_str();
        if name.is_empty() {
            return Ok(None);
        }
        let found = sandbox.find(name)?.filter(|found| found.kind.as_deref() == Some("bridge"));
        found.map(Some).ok_or_else(|| {
            Error::new(Code::InvalidConfig, format!("failed to get bridge {name:?}: no bridge of this name is inside"))
        })
    }
}

impl Single for Tap<'_> {
    fn kind(&self) -> Option<&'static str> {
        Some("tun")
    }

    fn notifies(&self) -> bool {
        true
    }

    fn check(&self, sandbox: &mut Sandbox) -> Result<(), Error> {
        self.status()?;
        self.bridge(sandbox).map(drop)
    }

    fn make(&self, sandbox: &mut Sandbox) -> Result<(), Error> {
        let name = self.call.ifname.as_str();
        let options = &self.options;
        let spec = TapSpec { name, multi_queue: options.multi_queue, owner: options.owner, group: options.group };
        // SELinux lets those attach who may relabel what this thread makes (the socket behind the interface).
        let _label = Label::set(&options.selinux_context)?;
        let made = sandbox.enter(|| tap::create(&spec))?;
        made.map_err(|error| refused(format!("failed to create tap {name:?}"), error))?;
        let bridge = self.bridge(sandbox)?;
        let change = LinkChange {
            mac: self.mac,
            mtu: Some(options.mtu).filter(|mtu| *mtu != 0),
            master: bridge.map(|bridge| bridge.index),
            ..LinkChange::default()
        };
        let mut batch = Batch::new();
        link::set(&mut batch, name, &change);
        sandbox.socket.transact(&batch).map(drop).map_err(|error| refused(format!("failed to set up {name:?}"), error))
    }

    fn compare(&self, sandbox: &mut Sandbox, found: &Link) -> Result<(), Error> {
        let bridge = self.bridge(sandbox).map_err(|error| Error { code: Code::Differs, ..error })?;
        if found.master != bridge.map(|bridge| bridge.index) {
            return Err(Error::differs(format!("{} is not a port of bridge {:?}", found.name, self.options.bridge)));
        }
        Ok(())
    }

    fn status(&self) -> Result<(), Error> {
        if Path::new(DEVICE).exists() {
            return Ok(());
        }
        let msg = format!("failed to create tap: this host has no {DEVICE}");
        Err(Error::new(Code::NotAvailable, msg).details("`modprobe tun` makes it"))
    }
}

/// The label that sockets of this thread get (`/proc/thread-self/attr/sockcreate`, selinux(8)), until it is dropped.
struct Label(bool);

const ATTRIBUTE: &str = "/proc/thread-self/attr/sockcreate";

impl Label {
    fn set(context: &str) -> Result<Self, Error> {
        if context.is_empty() {
            return Ok(Self(false));
        }
        fs::write(ATTRIBUTE, context)
            .map_err(|error| Error::new(Code::NotAvailable, format!("failed set socket label: {error}")))?;
        Ok(Self(true))
    }
}

impl Drop for Label {
    fn drop(&mut self) {
        if self.0 {
            let _ = fs::write(ATTRIBUTE, "");
        }
    }
}
