//! Limits on what passes ports.

use portolan_engine::{KernelError, Kind};
use portolan_model::IfName;
use portolan_plan::{Direction, Object, Shaper};

use super::super::refusal;
use super::{Context, Labelled, Mode};
use crate::netlink::{Batch, NetlinkError, Socket};
use crate::rtnl::link::{self, LinkChange};
use crate::rtnl::tc::{self, Bucket};
use crate::sysctl;

/// What a limit is to the kernel.
pub(in crate::host) fn bucket(shaper: &Shaper) -> Bucket {
    Bucket { rate: shaper.rate.bytes(), burst: shaper.burst, limit: shaper.queue }
}

impl Context<'_> {
    /// Brings a limit to what it should be, whatever there is of it: it may be half there when it is changed or repaired.
    pub(super) fn make_shaper(&mut self, socket: &mut Socket, shaper: &Shaper) {
        let Some(port) = self.index(socket, &shaper.host_end) else { return };
        let doing = format!("set a {}", Object::Shaper(shaper.clone()));
        let Some(through) = &shaper.through else {
            self.limit(socket, &doing, port, shaper);
            return;
        };
        let Some(aside) = self.make_aside(socket, &doing, through, &shaper.alias) else { return };
        if !self.limit(socket, &doing, aside, shaper) {
            return;
        }
        let there = match tc::ingress(socket, port) {
            Ok(there) => there,
            Err(error) => return self.failures.push(refusal(doing, &error)),
        };
        if there.to == Some(aside) {
            return;
        }
        // What led elsewhere goes; others may have an ingress qdisc there already.
        let mut batch = Batch::new();
        let ours = tc::lead_on(&mut batch, port);
        let qdisc = tc::create_ingress(&mut batch, port);
        let filter = tc::lead_aside(&mut batch, port, aside);
        self.demand(socket, &batch, &doing, |index, error| {
            index == ours || (index == qdisc && error.is_exists()) || (index == filter && error.is_exists())
        });
    }

    /// The index of the interface that a port's packets are led through, which is made unless it is there.
    fn make_aside(&mut self, socket: &mut Socket, doing: &str, name: &IfName, alias: &str) -> Option<u32> {
        match link::lookup(socket, name.as_str()) {
            Ok(Some(_)) => {}
            Ok(None) => {
                self.indexes.remove(name);
                let mut batch = Batch::new();
                link::create_ifb(&mut batch, name.as_str());
                link::set(&mut batch, name.as_str(), &LinkChange { alias: Some(alias), ..LinkChange::default() });
                if !self.demand(socket, &batch, doing, |_, _| false) {
                    return None;
                }
            }
            Err(error) => {
                self.failures.push(refusal(doing, &error));
                return None;
            }
        }
        // It carries packets of others and has none of its own.
        if let Err(error) = sysctl::write_in(&["net", "ipv6", "conf", name.as_str()], &[("disable_ipv6", "1")])
            && !error.is_missing()
        {
            tracing::info!(%error, %name, "IPv6 stays on where packets are led through");
        }
        let mut batch = Batch::new();
        link::set(
            &mut batch,
            name.as_str(),
            &LinkChange { up: Some(true), alias: Some(alias), ..LinkChange::default() },
        );
        if !self.demand(socket, &batch, doing, |_, _| false) {
            return None;
        }
        self.index(socket, name)
    }

    fn limit(&mut self, socket: &mut Socket, doing: &str, index: u32, shaper: &Shaper) -> bool {
        let mut batch = Batch::new();
        tc::replace_bucket(&mut batch, index, &bucket(shaper));
        self.demand(socket, &batch, doing, |_, _| false)
    }

    /// Takes a limit off a port that stays; what its packets were led through is left to the caller.
    pub(super) fn remove_shaper(&mut self, socket: &mut Socket, shaper: &Shaper) {
        let doing = format!("remove the {}", Object::Shaper(shaper.clone()));
        let is_gone = |error: &NetlinkError| error.is_missing() || error.errno() == libc::EINVAL;
        let Ok(Some(port)) = link::lookup(socket, shaper.host_end.as_str()) else { return };
        let mut labelled = Labelled::default();
        if shaper.direction == Direction::In {
            labelled.add(&doing, |batch| {
                tc::delete_bucket(batch, port.index);
            });
            self.send_forgiving(socket, &labelled, is_gone);
            return;
        }
        labelled.add(&doing, |batch| {
            tc::lead_on(batch, port.index);
        });
        self.send_forgiving(socket, &labelled, is_gone);
        if tc::ingress(socket, port.index).is_ok_and(|left| !left.others) {
            let mut labelled = Labelled::default();
            labelled.add(&doing, |batch| {
                tc::delete_ingress(batch, port.index);
            });
            self.send_forgiving(socket, &labelled, is_gone);
        }
    }

    fn send_forgiving(
        &mut self,
        socket: &mut Socket,
        labelled: &Labelled,
        is_forgiven: impl Fn(&NetlinkError) -> bool,
    ) {
        match socket.transact_each(&labelled.batch) {
            Ok(outcome) => {
                let doing = labelled.labels.first().cloned().unwrap_or_default();
                let kept = outcome.errors.iter().filter(|error| !is_forgiven(error));
                self.failures.extend(kept.map(|error| refusal(doing.clone(), error)));
            }
            Err(error) => self.failures.push(refusal("speak netlink", &error)),
        }
    }

    /// Sends what has to come about; whether it did. `is_forgiven` knows the messages by their position.
    fn demand(
        &mut self,
        socket: &mut Socket,
        batch: &Batch,
        doing: &str,
        is_forgiven: impl Fn(usize, &NetlinkError) -> bool,
    ) -> bool {
        let errors = match socket.transact_each(batch) {
            Ok(outcome) => outcome.errors,
            Err(error) => vec![error],
        };
        let failed = errors.iter().find(|error| !error.index().is_some_and(|index| is_forgiven(index, error)));
        let Some(error) = failed else { return true };
        // A container that went meanwhile needs no limit.
        if self.mode == Mode::Lenient && error.errno() == libc::ENODEV {
            return false;
        }
        self.failures.push(lacking(doing, error));
        false
    }
}

/// What the kernel cannot do it calls unknown (`ENOENT`) where a qdisc, a filter or an action is asked for.
fn lacking(doing: &str, error: &NetlinkError) -> KernelError {
    let refused = refusal(doing, error);
    if !matches!(error.errno(), libc::ENOENT | libc::EOPNOTSUPP) {
        return refused;
    }
    KernelError {
        kind: Kind::Unsupported,
        hint: Some(
            "this kernel lacks what limits of bandwidth take: load its modules (sch_tbf; for what comes out of containers \
             also ifb, sch_ingress, cls_u32 and act_mirred), or use a kernel built with them"
                .to_owned(),
        ),
        ..refused
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_it_is_told_from_one_that_refuses() {
        let of = |errno| lacking("set a limit", &NetlinkError::from_errno(errno));
        for errno in [libc::ENOENT, libc::EOPNOTSUPP] {
            let error = of(errno);
            assert_eq!(error.kind, Kind::Unsupported);
            assert!(error.hint.unwrap().contains("sch_tbf"));
        }
        assert_eq!(of(libc::EPERM).kind, Kind::Denied);
        assert_eq!(of(libc::EBUSY).kind, Kind::Transient);
    }
}
