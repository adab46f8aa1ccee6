use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{Family, Id, Invalid, Mac, Publication};

use crate::cluster::{ClusterError, Wanting};
use crate::kernel::KernelError;
use crate::store::StoreError;

/// What a failure asks of the caller: another request, another time, or a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request is malformed.
    Invalid,
    /// It names something that is not there.
    NotFound,
    /// It asks for something that is taken or in use.
    Conflict,
    /// There is no more of what it asks for.
    Exhausted,
    /// The caller may not.
    Denied,
    /// This kernel or version cannot.
    Unsupported,
    /// It may work later.
    Transient,
    /// It is our fault, or the machine's.
    Bug,
}

/// Why a verb failed. Nothing has changed then, unless the error says so.
///
/// `Display` is one sentence that names the thing; the cause is in `source`, advice in [`Error::hint`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value is malformed.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Nothing has this name or id.
    #[error("no {what} `{name}`")]
    NotFound {
        /// `network`, `container`, …
        what: &'static str,
        /// As given.
        name: String,
    },
    /// More than one id starts like this.
    #[error("more than one {what} has an id that starts with `{prefix}`")]
    Ambiguous {
        /// `network` or `container`.
        what: &'static str,
        /// As given.
        prefix: String,
    },
    /// A runtime's container has a place on more than one network, each of which is a container here.
    #[error("`{name}` is on more than one network")]
    CalledAlike {
        /// As given.
        name: String,
        /// What the places are called here.
        containers: Vec<portolan_model::Name>,
    },
    /// The name is taken.
    #[error("{what} `{name}` exists already")]
    NameTaken {
        /// `network` or `container`.
        what: &'static str,
        /// As given.
        name: String,
    },
    /// `bridge`, `host` and `none` stay as they are.
    #[error("network `{name}` is predefined: it cannot be {verb}")]
    Predefined {
        /// Its name.
        name: String,
        /// `removed`, `connected`, …
        verb: &'static str,
    },
    /// A network with live endpoints.
    #[error("network `{name}` is in use by {holders}")]
    InUse {
        /// Its name.
        name: String,
        /// Containers, with their processes.
        holders: String,
    },
    /// Two networks, or a network and a route, want the same addresses.
    #[error("subnet {subnet} overlaps {other}")]
    Overlap {
        /// The subnet asked for.
        subnet: IpNet,
        /// What it collides with: a network and its subnet, or a route and its device.
        other: String,
    },
    /// A device of this name is there and is not ours.
    #[error("interface `{name}` exists already and is not Portolan's")]
    DeviceTaken {
        /// The name.
        name: String,
    },
    /// The pool has no free subnet.
    #[error("no free subnet of /{prefix} is left: the last one tried, {last}, overlaps {other}")]
    PoolExhausted {
        /// The prefix length looked for.
        prefix: u8,
        /// The last candidate.
        last: IpNet,
        /// What it collides with.
        other: String,
    },
    /// The subnet has no free address.
    #[error("{of} has no free address left in {ranges}")]
    AddressesExhausted {
        /// The network or pool.
        of: String,
        /// Where addresses come from.
        ranges: String,
        /// Which addresses.
        family: Family,
    },
    /// This host has none of an overlay network's addresses to give out.
    #[error("{of} has no free address on this host")]
    NoBlock {
        /// The network.
        network: Id,
        /// What it is called.
        of: String,
        /// What is missing.
        wanting: Wanting,
    },
    /// This host takes no more containers on networks over several hosts.
    #[error("network `{network}` is one of the cluster's, on which this host takes no more containers: it is drained")]
    Drained {
        /// The network.
        network: String,
    },
    /// The cluster did not do its part.
    #[error(transparent)]
    Cluster(ClusterError),
    /// The address is leased, or set aside.
    #[error("address {address} of {of} is taken by {holder}")]
    AddressTaken {
        /// The address.
        address: IpAddr,
        /// The network or pool.
        of: String,
        /// A container, the gateway, or an auxiliary address.
        holder: String,
    },
    /// The address is in none of the network's subnets.
    #[error("address {address} is in no subnet of {of} ({subnets})")]
    AddressOutside {
        /// The address.
        address: IpAddr,
        /// The network or pool.
        of: String,
        /// Its subnets.
        subnets: String,
    },
    /// The MAC is in use on the network.
    #[error("MAC address {mac} on network `{network}` is taken by container `{holder}`")]
    MacTaken {
        /// The MAC.
        mac: Mac,
        /// The network.
        network: String,
        /// Who has it.
        holder: String,
    },
    /// Another container publishes the port.
    #[error("host port {publication} is published already by container `{holder}`")]
    PortPublished {
        /// What was asked for.
        publication: Publication,
        /// Who has it.
        holder: String,
    },
    /// A process listens on the port.
    #[error("host port {port}/{protocol} is in use by {holder}")]
    PortListening {
        /// The port.
        port: u16,
        /// The protocol.
        protocol: String,
        /// The process, as far as it can be told.
        holder: String,
    },
    /// The host has no such address.
    #[error("host address {address} is not an address of this host")]
    NotLocal {
        /// The address.
        address: IpAddr,
    },
    /// No free port.
    #[error("no host port of {range} is free")]
    PortsExhausted {
        /// Where was looked.
        range: String,
    },
    /// The container is on the network already.
    #[error("container `{container}` is connected to network `{network}` already")]
    AlreadyConnected {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
    /// The container is not on the network.
    #[error("container `{container}` is not connected to network `{network}`")]
    NotConnected {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
    /// The container's mode has no endpoints.
    #[error("container `{container}` {why}")]
    WrongMode {
        /// The container.
        container: String,
        /// Why it cannot.
        why: &'static str,
    },
    /// The namespace belongs to another container.
    #[error("namespace `{path}` is already the sandbox of container `{container}`")]
    SandboxTaken {
        /// The namespace.
        path: String,
        /// Its container.
        container: String,
    },
    /// The container runs.
    #[error("container `{container}` is running as process {pid}")]
    Running {
        /// The container.
        container: String,
        /// Its process.
        pid: i32,
    },
    /// The container does not run.
    #[error("container `{container}` is not running")]
    NotRunning {
        /// The container.
        container: String,
    },
    /// The bridge has no free port.
    #[error("network `{network}` is full: a Linux bridge has 1023 ports")]
    BridgeFull {
        /// The network.
        network: String,
    },
    /// This version or kernel cannot.
    #[error("{what} {why}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// Why not.
        why: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// The kernel refused.
    #[error("{doing}")]
    Kernel {
        /// What we were doing, e.g. ``attach `web` to `bridge` ``.
        doing: String,
        /// The kernel's answer.
        #[source]
        source: KernelError,
    },
    /// The store could not serve.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// What the failure asks of the caller.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Invalid(_)
            | Self::AddressOutside { .. }
            | Self::NotLocal { .. }
            | Self::WrongMode { .. }
            | Self::Ambiguous { .. }
            | Self::CalledAlike { .. } => Kind::Invalid,
            Self::NotFound { .. } | Self::NotConnected { .. } => Kind::NotFound,
            Self::Predefined { .. } => Kind::Denied,
            Self::PoolExhausted { .. }
            | Self::AddressesExhausted { .. }
            | Self::NoBlock { .. }
            | Self::PortsExhausted { .. }
            | Self::BridgeFull { .. } => Kind::Exhausted,
            Self::Unsupported { .. } => Kind::Unsupported,
            Self::Kernel { source, .. } => source.kind,
            Self::Store(StoreError::Denied { .. }) => Kind::Denied,
            Self::Store(StoreError::Full { .. }) => Kind::Exhausted,
            Self::Store(StoreError::Newer { .. }) => Kind::Unsupported,
            Self::Store(StoreError::Busy { .. }) | Self::Drained { .. } => Kind::Transient,
            Self::Store(_) => Kind::Bug,
            _ => Kind::Conflict,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Invalid(invalid) => return invalid.hint.as_ref().map(ToString::to_string),
            Self::NotFound { what: "network", .. } => "`portolan network ls` lists the networks".to_owned(),
            Self::NotFound { what: "container", .. } => "`portolan ps -a` lists the containers".to_owned(),
            Self::NotFound { .. } => return None,
            Self::Ambiguous { .. } => "give more digits of the id, or the name".to_owned(),
            Self::CalledAlike { containers, .. } => {
                let names: Vec<String> = containers.iter().map(|name| format!("`{name}`")).collect();
                format!("say which place: {}", names.join(" or "))
            }
            Self::NameTaken { what: "container", name } => format!("choose another name, or remove it first: portolan rm {name}"),
            Self::NameTaken { name, .. } => format!("choose another name, or remove it first: portolan network rm {name}"),
            Self::Predefined { .. } => "`bridge`, `host` and `none` are always there".to_owned(),
            Self::InUse { name, .. } => format!("disconnect them first: portolan network disconnect {name} CONTAINER"),
            Self::Overlap { .. } => "choose another --subnet, or none to be given a free one".to_owned(),
            Self::DeviceTaken { .. } => "remove or rename it, or choose another device name with --opt bridge=NAME".to_owned(),
            Self::PoolExhausted { .. } => "remove unused networks with `portolan network prune`, or name a --subnet".to_owned(),
            Self::AddressesExhausted { .. } => "`portolan gc` frees the addresses of containers that are gone; a new network can have a larger --subnet".to_owned(),
            Self::NoBlock { .. } => "`portolan cluster status` tells whether this host can be given some".to_owned(),
            Self::Drained { .. } => "other hosts of the cluster take them; `portolan cluster undrain` has this one take them again".to_owned(),
            Self::Cluster(error) => return error.hint.clone(),
            Self::AddressTaken { .. } => "choose another address, or none to be given a free one".to_owned(),
            Self::AddressOutside { .. } => "`portolan network inspect` shows the subnets".to_owned(),
            Self::MacTaken { .. } => "choose another MAC, or none to be given one".to_owned(),
            Self::PortPublished { holder, .. } => format!("choose another host port, or free it: portolan publish rm {holder} …"),
            Self::PortListening { .. } => "stop that process or choose another host port".to_owned(),
            Self::NotLocal { .. } => "publish on an address the host has, or on none for all of them".to_owned(),
            Self::PortsExhausted { .. } => "choose another range".to_owned(),
            Self::AlreadyConnected { container, .. } => format!("`portolan inspect {container}` shows its networks"),
            Self::NotConnected { container, .. } => format!("`portolan inspect {container}` shows its networks"),
            Self::WrongMode { .. } => return None,
            Self::SandboxTaken { container, .. } => format!("detach it first: portolan detach {container}"),
            Self::Running { container, .. } => format!("portolan rm -f {container} ends it first"),
            Self::NotRunning { container } => format!("`portolan rm {container}` removes what is left of it"),
            Self::BridgeFull { .. } => "spread the containers over several networks".to_owned(),
            Self::Unsupported { hint, .. } => (*hint).to_owned(),
            Self::Kernel { source, .. } => return source.hint.clone(),
            Self::Store(store) => return store.hint(),
        };
        Some(text)
    }
}

/// What verbs return.
pub type Result<T, E = Error> = std::result::Result<T, E>;
