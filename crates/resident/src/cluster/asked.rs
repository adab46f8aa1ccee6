//! The engine's port to the cluster: whoever has one asks the daemon, by its control socket.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use portolan_cluster::NewNetwork;
use portolan_engine::{Cluster, ClusterError, NetworkRequest, Wanting};
use portolan_model::{Id, PerFamily};

use super::{Came, Sharing};
use crate::control::{Answer, Client, Request};

/// The daemon of a run-time directory.
#[derive(Debug)]
pub struct AtDaemon {
    run: PathBuf,
}

impl AtDaemon {
    /// The one of `run`.
    pub const fn new(run: PathBuf) -> Self {
        Self { run }
    }

    fn ask(&self, what: Sharing) -> Result<Id, ClusterError> {
        let failed = |error: anyhow::Error| ClusterError { reason: format!("{error:#}"), hint: None };
        let none = || {
            ClusterError {
            reason: "no daemon follows the cluster for this root".to_owned(),
            hint: Some(
                "`portolan daemon start` starts one; a host that is in no cluster begins one with `portolan cluster init`, or joins one with `portolan cluster join`"
                    .to_owned(),
            ),
        }
        };
        let Some(mut client) = Client::connect(&self.run).map_err(failed)? else { return Err(none()) };
        match client.ask(&Request::Share { what: Box::new(what) }).map_err(failed)? {
            Some(Answer::Shared { came: Came::Network { network } }) => Ok(network),
            Some(Answer::Refused { reason, hint }) => Err(ClusterError { reason, hint }),
            Some(other) => {
                Err(ClusterError { reason: format!("the daemon answered something else: {other:?}"), hint: None })
            }
            None => Err(none()),
        }
    }
}

fn new_network(request: &NetworkRequest, avoid: &[IpNet]) -> NewNetwork {
    NewNetwork {
        name: request.name.clone(),
        subnets: request.subnets.clone(),
        speaks: PerFamily { v4: request.ipv4, v6: request.ipv6 },
        internal: request.internal,
        options: request.options.clone(),
        labels: request.labels.clone(),
        avoid: avoid.to_vec(),
    }
}

impl Cluster for AtDaemon {
    fn create_network(&self, request: &NetworkRequest, avoid: &[IpNet]) -> Result<Id, ClusterError> {
        self.ask(Sharing::Create { network: new_network(request, avoid) })
    }

    fn block_of(&self, subnet: IpNet, address: IpAddr) -> IpNet {
        portolan_cluster::block_of(subnet, address)
    }

    fn promote_network(
        &self,
        network: Id,
        request: &NetworkRequest,
        blocks: &BTreeSet<IpNet>,
    ) -> Result<(), ClusterError> {
        let promoted = new_network(request, &[]);
        self.ask(Sharing::Promote { id: network, network: promoted, blocks: blocks.clone() }).map(drop)
    }

    fn remove_network(&self, network: Id) -> Result<(), ClusterError> {
        self.ask(Sharing::Remove { network }).map(drop)
    }

    fn claim(&self, network: Id, wanting: Wanting) -> Result<(), ClusterError> {
        self.ask(Sharing::Claim { network, wanted: wanting.into() }).map(drop)
    }
}
