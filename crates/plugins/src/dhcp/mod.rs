//! The IPAM plugin `dhcp`: addresses of a DHCP server, by way of a daemon that holds the leases.
//!
//! Plugin and daemon speak Go's `net/rpc`, as the originals do, so that either may be one of those.

pub mod daemon;
pub(crate) mod foreign;
mod gob;
mod options;
mod rpc;

use std::path::Path;

use portolan_cni::{Call, Code, Config, Error, Success, Verb};

use self::options::WireIpam;
use self::rpc::{ALLOCATE, Arguments, COLLECT, Client, Failed, HELD, RELEASE, STATUS};
use crate::Answer;
use crate::conf::valid;
use crate::ipam::refused;

/// Where the daemon listens unless somebody says otherwise.
const SOCKET: &str = "/run/cni/dhcp.sock";

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    let asking = Asking { call, text, ipam: options::read(text)?.ipam };
    match call.verb {
        Verb::Add => asking.add().map(|success| Some((success, config.version()))),
        Verb::Del => asking.del().map(|()| None),
        Verb::Check => asking.check(config).map(|()| None),
        Verb::Gc => valid(config).and_then(|_| asking.gc()).map(|()| None),
        Verb::Status => asking.status().map(|()| None),
        Verb::Version => Ok(None),
    }
}

struct Asking<'a> {
    call: &'a Call,
    text: &'a [u8],
    ipam: Option<WireIpam>,
}

impl Asking<'_> {
    fn socket(&self) -> &Path {
        let named = self.ipam.as_ref().map(|ipam| ipam.socket.as_str()).filter(|socket| !socket.is_empty());
        Path::new(named.unwrap_or(SOCKET))
    }

    fn arguments(&self) -> Result<Arguments, Error> {
        let netns = &self.call.netns;
        // The daemon's working directory is another.
        let netns = if netns.as_os_str().is_empty() { Ok(netns.clone()) } else { std::path::absolute(netns) };
        let netns = netns
            .map_err(|error| refused(format!("failed to make {:?} an absolute path: {error}", self.call.netns)))?;
        let pairs: Vec<String> = self.call.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let path: Vec<String> = self.call.path.iter().map(|dir| dir.display().to_string()).collect();
        Ok(Arguments {
            container: self.call.container.clone(),
            netns: netns.to_string_lossy().into_owned(),
            ifname: self.call.ifname.clone(),
            args: pairs.join(";"),
            path: path.join(":"),
            text: self.text.to_vec(),
        })
    }

    fn needed(&self) -> Result<&WireIpam, Error> {
        self.ipam.as_ref().ok_or_else(|| refused("IPAM config missing 'ipam' key"))
    }

    fn client(&self) -> Result<Client, Error> {
        Client::dial(self.socket()).map_err(|(is_absent, text)| {
            let hint = if is_absent { "the daemon is to run on the host: dhcp daemon" } else { "" };
            refused(text).details(hint)
        })
    }

    fn add(&self) -> Result<Success, Error> {
        self.needed()?;
        called(self.client()?.call(ALLOCATE, &self.arguments()?), ALLOCATE)
    }

    /// What is not held is not given back, and without a daemon nothing is held.
    fn del(&self) -> Result<(), Error> {
        let mut client = match Client::dial(self.socket()) {
            Ok(client) => client,
            Err((true, text)) => {
                tracing::warn!("a lease that was held ends by itself: {text}");
                return Ok(());
            }
            Err((false, text)) => return Err(refused(text)),
        };
        called(client.call(RELEASE, &self.arguments()?), RELEASE).map(drop)
    }

    /// The lease that is held has to be the one that the container has. A daemon that does not tell which it holds, the
    /// original's, is asked for a lease instead, which is what the original does.
    fn check(&self, config: &Config) -> Result<(), Error> {
        self.needed()?;
        let previous = config.previous()?.ok_or_else(|| refused("Required prevResult missing"))?;
        let (mut client, arguments) = (self.client()?, self.arguments()?);
        let held = match client.call(HELD, &arguments) {
            Err(Failed::Unknown) => called(client.call(ALLOCATE, &arguments), ALLOCATE)?,
            held => called(held, HELD).map_err(|error| Error { code: Code::Differs, ..error })?,
        };
        for ip in &held.ips {
            if !previous.ips.iter().any(|known| known.address == ip.address) {
                let (address, ifname) = (ip.address, &self.call.ifname);
                return Err(Error::differs(format!("dhcp: the lease of interface {ifname} is {address} by now")));
            }
        }
        Ok(())
    }

    fn gc(&self) -> Result<(), Error> {
        match self.client()?.call(COLLECT, &self.arguments()?) {
            Err(Failed::Unknown) => {
                tracing::info!("this daemon does not tell whose leases it holds");
                Ok(())
            }
            collected => called(collected, COLLECT).map(drop),
        }
    }

    /// What the daemon would refuse, only the daemon knows.
    fn status(&self) -> Result<(), Error> {
        let not_available = |error: Error| Error { code: Code::NotAvailable, ..error };
        let mut client = self.needed().and_then(|_| self.client()).map_err(not_available)?;
        match client.call(STATUS, &self.arguments()?) {
            Err(Failed::Unknown) => Ok(()),
            answer => called(answer, STATUS).map(drop).map_err(not_available),
        }
    }
}

fn called(answer: Result<Success, Failed>, method: &str) -> Result<Success, Error> {
    answer.map_err(|failed| match failed {
        Failed::Unknown => refused(format!("error calling {method}: rpc: can't find method {method}")),
        Failed::Said(text) => refused(text),
    })
}
