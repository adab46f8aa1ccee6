//! The plugin `host-device`: moves an interface of the host into the container, and back.

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use portolan_cni::{Call, Config, Error, Verb};
use portolan_kernel::netlink::{Batch, Socket};
use portolan_kernel::netns::NetnsFd;
use portolan_kernel::rtnl::link::{self, Link, LinkChange};
use serde::Deserialize;

use crate::Answer;
use crate::addresses::Ipam;
use crate::conf::{invalid, or_default, parse_mac};
use crate::inside::{self, Sandbox, refused};
use crate::single::{Calling, Single};

const PCI: &str = "/sys/bus/pci/devices";

/// Drivers that hand a device to a program, so that it is no interface of the kernel's (DPDK).
const USERSPACE: [&str; 3] = ["vfio-pci", "uio_pci_generic", "igb_uio"];

/// The configuration, as the original has it.
#[derive(Debug, Clone, Default, Deserialize)]
struct Options {
    #[serde(default, deserialize_with = "or_default")]
    device: String,
    #[serde(default, deserialize_with = "or_default")]
    hwaddr: String,
    #[serde(default, rename = "kernelpath", deserialize_with = "or_default")]
    kernel_path: String,
    #[serde(default, rename = "pcibusid", deserialize_with = "or_default")]
    pci: String,
    #[serde(default, rename = "runtimeconfig", deserialize_with = "or_default")]
    runtime: Runtime,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Runtime {
    #[serde(default, rename = "deviceid", deserialize_with = "or_default")]
    device: String,
}

struct HostDevice<'a> {
    call: &'a Call,
    options: Options,
}

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    let ipam = Ipam::of(call, config, text);
    let calling = Calling { kind: None, call, config, ipam, dns_of_ipam: false };
    let options = Options::read(text);
    let is_of_a_program = options.as_ref().is_ok_and(Options::is_of_a_program);
    if is_of_a_program && matches!(call.verb, Verb::Add | Verb::Check) {
        return of_a_program(&calling);
    }
    calling.run(|| match options {
        // What was moved says itself what it was.
        Err(_) if call.verb == Verb::Del => Ok(HostDevice { call, options: Options::default() }),
        options => Ok(HostDevice { call, options: options? }),
    })
}

/// What there is to do for a device that is no interface: its addresses are told, and it knows the rest.
fn of_a_program(calling: &Calling<'_>) -> Answer {
    let Some(ipam) = calling.ipam else {
        return Ok(Some((Default::default(), calling.config.version())).filter(|_| calling.call.verb == Verb::Add));
    };
    if calling.call.verb == Verb::Check {
        return ipam.check().map(|()| None);
    }
    let mut success = ipam.add()?;
    success.dns = calling.config.dns.clone().unwrap_or_default();
    Ok(Some((success, calling.config.version())))
}

impl Options {
    fn read(text: &[u8]) -> Result<Self, Error> {
        let mut options: Self = portolan_cni::read(text)?;
        if !options.runtime.device.is_empty() {
            options.pci.clone_from(&options.runtime.device);
        }
        if [&options.device, &options.hwaddr, &options.kernel_path, &options.pci].iter().all(|text| text.is_empty()) {
            return Err(invalid(r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#));
        }
        if options.pci.contains('/') || options.pci.starts_with('.') {
            return Err(invalid(format!("{:?} is no address of a PCI device", options.pci)));
        }
        Ok(options)
    }

    fn is_of_a_program(&self) -> bool {
        let driver = || fs::canonicalize(Path::new(PCI).join(&self.pci).join("driver")).ok();
        !self.pci.is_empty()
            && driver().is_some_and(|driver| USERSPACE.iter().any(|name| driver.file_name() == Some(name.as_ref())))
    }

    /// The device.
    fn find(&self, host: &mut Socket) -> Result<Link, Error> {
        let failed = |why: &str| invalid(format!("failed to find host device: {why}"));
        let lookup = |host: &mut Socket, name: &str| {
            let found = link::lookup(host, name).map_err(|error| refused("failed to find host device", error))?;
            found.ok_or_else(|| failed("Link not found").details(name.to_owned()))
        };
        if !self.device.is_empty() {
            return lookup(host, &self.device);
        }
        if !self.hwaddr.is_empty() {
            let mac = parse_mac(&self.hwaddr)?;
            let links = link::dump(host).map_err(|error| refused("failed to list node links", error))?;
            let found = links.into_iter().find(|link| link.mac == Some(mac));
            return found.ok_or_else(|| failed("failed to find physical interface"));
        }
        let directory = if self.kernel_path.is_empty() { self.pci_directory()? } else { self.kernel_directory()? };
        let names = names(&directory).ok_or_else(|| {
            failed(&format!("failed to find network devices at {:?}", directory.display().to_string()))
        })?;
        for name in names {
            if let Some(name) = name.to_str()
                && let Ok(found) = lookup(host, name)
            {
                return Ok(found);
            }
        }
        Err(failed("failed to find physical interface"))
    }

    fn kernel_directory(&self) -> Result<PathBuf, Error> {
        let path = Path::new(&self.kernel_path);
        let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
        if !path.starts_with("/sys/devices/") || climbs {
            let msg =
                format!("kernel device path {:?} must be absolute and begin with /sys/devices/", self.kernel_path);
            return Err(invalid(format!("failed to find host device: {msg}")));
        }
        Ok(path.join("net"))
    }

    /// Those of virtio are one level down.
    fn pci_directory(&self) -> Result<PathBuf, Error> {
        let device = Path::new(PCI).join(&self.pci);
        let direct = device.join("net");
        if direct.exists() {
            return Ok(direct);
        }
        let virtio = names(&device).into_iter().flatten().find(|name| name.to_string_lossy().starts_with("virtio"));
        let found = virtio.map(|name| device.join(name).join("net")).filter(|path| path.exists());
        found.ok_or_else(|| {
            invalid(format!("failed to find host device: no net directory under pci device {}", self.pci))
        })
    }
}

/// What is in a directory, in order.
fn names(directory: &Path) -> Option<Vec<OsString>> {
    let mut names: Vec<OsString> = fs::read_dir(directory).ok()?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    Some(names)
}

impl Single for HostDevice<'_> {
    fn kind(&self) -> Option<&'static str> {
        None
    }

    fn check(&self, _: &mut Sandbox) -> Result<(), Error> {
        self.status()
    }

    /// One message, so that it is nowhere without the name that it had before.
    fn make(&self, sandbox: &mut Sandbox) -> Result<(), Error> {
        let mut host = inside::host()?;
        let device = self.options.find(&mut host)?;
        let mut batch = Batch::new();
        let change = LinkChange {
            netns: Some(sandbox.netns.as_fd()),
            name: Some(&self.call.ifname),
            alias: Some(&device.name),
            ..LinkChange::default()
        };
        link::set(&mut batch, device.index, &change);
        let moved = host.transact(&batch).map(drop);
        moved.map_err(|error| refused(format!("failed to move link {:?}", device.name), error))
    }

    fn unmake(&self, call: &Call) -> Result<(), Error> {
        let Some(mut sandbox) = Sandbox::if_there(call)? else { return Ok(()) };
        let Some(found) = sandbox.find(&call.ifname)? else { return Ok(()) };
        // Without that it did not come from the host.
        let Some(name) = found.alias.filter(|alias| !alias.is_empty()) else { return Ok(()) };
        let home = NetnsFd::current().map_err(|error| refused("open the host's namespace", error))?;
        let mut batch = Batch::new();
        let change =
            LinkChange { netns: Some(home.as_fd()), name: Some(&name), alias: Some(""), ..LinkChange::default() };
        link::set(&mut batch, found.index, &change);
        let moved = sandbox.socket.transact(&batch).map(drop);
        moved.map_err(|error| refused(format!("failed to move {:?} to host netns as {name:?}", call.ifname), error))
    }

    fn compare(&self, _: &mut Sandbox, _: &Link) -> Result<(), Error> {
        Ok(())
    }

    fn status(&self) -> Result<(), Error> {
        if self.options.is_of_a_program() {
            return Ok(());
        }
        self.options.find(&mut inside::host()?).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_four_and_no_way_out() {
        for (text, msg) in [
            ("{}", r#"specify either "device", "hwaddr", "kernelpath" or "pciBusID""#),
            (r#"{"pciBusID":"../../x"}"#, r#""../../x" is no address of a PCI device"#),
        ] {
            assert_eq!(Options::read(text.as_bytes()).unwrap_err().msg, msg);
        }
        let of = |text: &str| Options::read(text.as_bytes()).unwrap();
        assert!(of(r#"{"kernelpath":"/sys/devices/../class"}"#).kernel_directory().is_err());
        assert!(of(r#"{"kernelpath":"/proc"}"#).kernel_directory().is_err());
        assert_eq!(of(r#"{"device":"a","runtimeConfig":{"deviceID":"0000:00:03.0"}}"#).pci, "0000:00:03.0");
    }
}
