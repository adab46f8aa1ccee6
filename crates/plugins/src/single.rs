//! The life of a plugin that puts one interface into the container and keeps nothing on the host.

use ipnet::IpNet;
use portolan_cni::{Call, Code, Config, Error, Success, Verb};
use portolan_kernel::rtnl::link::Link;

use crate::addresses::Ipam;
use crate::conf::{self, interface};
use crate::configure::{Manner, announce, bring_up, configure, made};
use crate::inside::{self, Sandbox};
use crate::{Answer, check};

/// A plugin of that kind, and how it makes its interface.
pub(crate) trait Single {
    /// What the kernel calls its interfaces; none if they are of any kind.
    fn kind(&self) -> Option<&'static str>;

    /// Whether the kernel is to announce addresses whenever the interface comes up.
    fn notifies(&self) -> bool {
        false
    }

    /// Where addresses come from if no IPAM plugin is named.
    fn chained(&self) -> Result<Option<Success>, Error> {
        Ok(None)
    }

    /// Refuses what making it would refuse, before anything has changed.
    fn check(&self, sandbox: &mut Sandbox) -> Result<(), Error>;

    /// Makes it, under the name of the call, down.
    fn make(&self, sandbox: &mut Sandbox) -> Result<(), Error>;

    /// Takes away what was made, whether or not all of it was.
    fn unmake(&self, call: &Call) -> Result<(), Error> {
        self.kind().map_or(Ok(()), |kind| inside::remove(call, kind))
    }

    /// Compares what is its own with what is there.
    fn compare(&self, sandbox: &mut Sandbox, found: &Link) -> Result<(), Error>;

    /// Refuses what an ADD would refuse whatever the container (STATUS).
    fn status(&self) -> Result<(), Error>;
}

/// A call of such a plugin.
pub(crate) struct Calling<'a> {
    /// What the kernel calls the plugin's interfaces, if they are its to remove.
    pub(crate) kind: Option<&'static str>,
    pub(crate) call: &'a Call,
    pub(crate) config: &'a Config,
    pub(crate) ipam: Option<Ipam<'a>>,
    /// The result says of names what the IPAM plugin says (as the original of `dummy`), or what the configuration says alone
    /// (as all others).
    pub(crate) dns_of_ipam: bool,
}

impl Calling<'_> {
    /// Does as the verb says. `plugin` reads the configuration; a DEL or GC is not kept from its end by a bad one.
    pub(crate) fn run<S: Single>(&self, plugin: impl FnOnce() -> Result<S, Error>) -> Answer {
        match self.call.verb {
            Verb::Add => self.add(&plugin()?).map(|success| Some((success, self.config.version()))),
            Verb::Del => self.del(plugin()).map(|()| None),
            Verb::Check => self.check(&plugin()?).map(|()| None),
            Verb::Gc => {
                conf::valid(self.config)?;
                // Interfaces go with the namespaces they are in.
                self.ipam.map_or(Ok(()), |ipam| ipam.gc()).map(|()| None)
            }
            Verb::Status => self.status(plugin).map(|()| None),
            Verb::Version => Ok(None),
        }
    }

    fn add(&self, plugin: &impl Single) -> Result<Success, Error> {
        let mut sandbox = Sandbox::open(self.call)?;
        sandbox.is_free(self.call)?;
        plugin.check(&mut sandbox)?;
        let given = match (self.ipam, plugin.chained()?) {
            (Some(ipam), _) if ipam.is_first() => Some(ipam.add()?),
            (Some(_), _) => None,
            (None, chained) => Some(chained.unwrap_or_default()),
        };
        let built = self.build(&mut sandbox, plugin, given);
        built.inspect_err(|_| {
            if let Err(error) = Ipam::leave(self.ipam, || plugin.unmake(self.call)) {
                tracing::warn!("not all is taken back: {error}");
            }
        })
    }

    /// Makes the interface; without what is `given`, the IPAM plugin is asked when it is there.
    fn build(&self, sandbox: &mut Sandbox, plugin: &impl Single, given: Option<Success>) -> Result<Success, Error> {
        plugin.make(sandbox)?;
        let name = self.call.ifname.as_str();
        let found = made(sandbox, self.call)?;
        let mut success = match (given, self.ipam) {
            (Some(given), _) => given,
            (None, Some(ipam)) => ipam.add()?,
            (None, None) => Success::default(),
        };
        if success.ips.is_empty() {
            bring_up(sandbox, name, found.index)?;
        } else {
            let manner = Manner { notify: plugin.notifies(), ..Manner::default() };
            configure(sandbox, name, found.index, &success, manner, &[])?;
            let addresses: Vec<IpNet> = success.ips.iter().map(|ip| ip.address).collect();
            announce(sandbox, found.index, found.mac, &addresses);
        }
        for ip in &mut success.ips {
            ip.interface = Some(0);
        }
        success.interfaces = vec![interface(name, found.mac, found.mtu, &self.call.netns)];
        if !self.dns_of_ipam {
            success.dns = self.config.dns.clone().unwrap_or_default();
        }
        Ok(success)
    }

    fn del<S: Single>(&self, plugin: Result<S, Error>) -> Result<(), Error> {
        Ipam::leave(self.ipam, || match plugin {
            Ok(plugin) => plugin.unmake(self.call),
            Err(_) => self.kind.map_or(Ok(()), |kind| inside::remove(self.call, kind)),
        })
    }

    fn check(&self, plugin: &impl Single) -> Result<(), Error> {
        let success = check::previous(self.config)?;
        if let Some(ipam) = self.ipam {
            ipam.check()?;
        }
        let mut sandbox = Sandbox::open(self.call)?;
        let found = check::container(&mut sandbox, self.call, &success, plugin.kind())?;
        check::up(&found)?;
        plugin.compare(&mut sandbox, &found)?;
        check::addresses_and_routes(&mut sandbox, &success, &found)
    }

    fn status<S: Single>(&self, plugin: impl FnOnce() -> Result<S, Error>) -> Result<(), Error> {
        let not_available = |error: Error| Error { code: Code::NotAvailable, ..error };
        plugin().and_then(|plugin| plugin.status()).map_err(not_available)?;
        self.ipam.map_or(Ok(()), |ipam| ipam.status())
    }
}
