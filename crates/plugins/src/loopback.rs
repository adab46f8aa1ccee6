//! The plugin `loopback`: brings `lo` up.

use portolan_cni::{Call, Config, Error, Interface, Ip, Success, Verb};
use portolan_kernel::netlink::Batch;
use portolan_kernel::rtnl::addr;
use portolan_kernel::rtnl::link::{self, LinkChange};

use crate::Answer;
use crate::inside::{exists, inside};

pub(crate) fn run(call: &Call, config: &Config) -> Answer {
    match call.verb {
        Verb::Add => {
            set(call, true)?;
            let success = match config.previous()? {
                Some(previous) => previous,
                None => look(call)?.1,
            };
            Ok(Some((success, config.version())))
        }
        Verb::Check => match look(call)?.0 {
            true => Ok(None),
            false => Err(Error::differs("loopback interface is down")),
        },
        // One that is gone has no loopback to take down.
        Verb::Del if !exists(&call.netns) => Ok(None),
        Verb::Del => set(call, false).map(|()| None),
        Verb::Gc | Verb::Status | Verb::Version => Ok(None),
    }
}

fn set(call: &Call, up: bool) -> Result<(), Error> {
    inside(call, "loopback", |socket| {
        let mut batch = Batch::new();
        link::set(&mut batch, "lo", &LinkChange { up: Some(up), ..LinkChange::default() });
        socket.transact(&batch).map(drop)
    })
}

/// Whether `lo` is up, and its addresses.
fn look(call: &Call) -> Result<(bool, Success), Error> {
    inside(call, "loopback", |socket| {
        let found = link::lookup(socket, "lo")?;
        let (up, index) = found.map_or((false, 0), |found| (found.up, found.index));
        let ips = addr::dump(socket, Some(index))?.into_iter().filter_map(|address| {
            let address = ipnet::IpNet::new(address.addr, address.prefix_len).ok()?;
            Some(Ip { interface: Some(0), address, gateway: None })
        });
        let interface = Interface {
            name: "lo".to_owned(),
            mac: "00:00:00:00:00:00".to_owned(),
            sandbox: call.netns.to_string_lossy().into_owned(),
            ..Interface::default()
        };
        let ips = ips.collect();
        Ok((up, Success { interfaces: vec![interface], ips, ..Success::default() }))
    })
}
