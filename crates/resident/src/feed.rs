//! What a change of the rows means for names: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use portolan_dns::{Endpoint as DnsEndpoint, Network as DnsNetwork, Service, Transport};
use portolan_engine::Change;
use portolan_kernel::diag;
use portolan_model::{Container, HealthState, Id, IfName, Network, NetworkMode, Protocol, RemoteEndpoint};
use portolan_plan::{ContainerView, Proxied, proxied};

use serde::Serialize;

use crate::proxy::{Place, Rule};
use crate::repair::Report;
use crate::{dns, proxy, shares};

/// The port of name servers.
const PORT: u16 = 53;

/// An endpoint, as far as the resident remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownEndpoint {
    /// Its id.
    pub id: Id,
    /// Its network.
    pub network: Id,
    /// The veth end on the bridge.
    pub host_end: IfName,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A container, as far as the resident remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownContainer {
    /// What it is called.
    pub name: String,
    /// Its endpoints.
    pub endpoints: Vec<KnownEndpoint>,
    /// How it is, where somebody says.
    health: Option<HealthState>,
    /// What of its ports the proxy passes on.
    proxied: Vec<Rule>,
}

/// What the threads are to be told of a change.
#[derive(Debug, Default)]
pub struct Told {
    /// The name server.
    pub dns: Vec<dns::Change>,
    /// The proxy.
    pub proxy: Vec<proxy::Change>,
    /// Who sees to fair shares of connections.
    pub shares: Vec<shares::Change>,
    /// Whoever follows events.
    pub events: Vec<Event>,
}

/// Something that happened, for whoever follows events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    /// A network is new.
    NetworkCreate {
        /// Its name.
        network: String,
        /// Its id.
        id: Id,
    },
    /// A network is gone.
    NetworkRemove {
        /// Its name.
        network: String,
        /// Its id.
        id: Id,
    },
    /// A container is on a network.
    Connect {
        /// The container.
        container: String,
        /// The network.
        network: String,
        /// Its addresses there.
        addresses: Vec<IpAddr>,
    },
    /// A container has left a network.
    Disconnect {
        /// The container.
        container: String,
        /// The network.
        network: String,
    },
    /// A container is well, or is not, by its check or by what somebody says.
    Health {
        /// The container.
        container: String,
        /// `starting`, `healthy` or `unhealthy`; none where nobody says any more.
        health: Option<HealthState>,
    },
    /// A DHCP server granted an address, new or once more.
    Leased {
        /// The endpoint's id.
        endpoint: String,
        /// The address.
        address: IpAddr,
    },
    /// The time of a lease is over: the container lost its address.
    LeaseEnded {
        /// The endpoint's id.
        endpoint: String,
        /// Whose address it was: `IPv4` or `IPv6`.
        family: String,
    },
    /// A container has more than its share of the connections that the kernel remembers, and begins no more for now.
    HeldBack {
        /// The container.
        container: String,
        /// The network.
        network: String,
        /// How many connections it has there.
        connections: u64,
    },
    /// Something was missing in the kernel, or a namespace died.
    Repaired(Report),
}

/// What the resident knows of the rows: little for each, for there may be many.
#[derive(Debug, Default)]
pub struct Feed {
    networks: BTreeMap<Id, Network>,
    containers: BTreeMap<Id, KnownContainer>,
    /// How many endpoints each network has that has any.
    members: BTreeMap<Id, usize>,
    /// The endpoints of other hosts, by id.
    remote: BTreeMap<Id, RemoteEndpoint>,
}

impl Feed {
    /// The networks, by id.
    pub fn networks(&self) -> &BTreeMap<Id, Network> {
        &self.networks
    }

    /// The containers, by id.
    pub fn containers(&self) -> &BTreeMap<Id, KnownContainer> {
        &self.containers
    }

    /// How many endpoints there are on all networks.
    pub fn endpoints(&self) -> usize {
        self.members.values().sum()
    }

    /// Takes note of a change; whom it concerns is to be told what goes to `tell`.
    pub fn take(&mut self, change: Change, tell: &mut Told) {
        match change {
            Change::Network(id, network) => self.take_network(id, network, tell),
            Change::Container(id, view) => self.take_container(id, view, tell),
            Change::Remote(id, endpoint) => self.take_remote(id, endpoint, tell),
        }
    }

    /// An endpoint at another host has a name here as long as anybody here could ask for it.
    fn take_remote(&mut self, id: Id, endpoint: Option<RemoteEndpoint>, tell: &mut Told) {
        let before = match &endpoint {
            Some(endpoint) => self.remote.insert(id, endpoint.clone()),
            None => self.remote.remove(&id),
        };
        let is_known = |network: &Id| self.members.contains_key(network);
        match endpoint.filter(|endpoint| is_known(&endpoint.network)) {
            Some(endpoint) => tell.dns.push(dns::Change::PutEndpoint(dns_remote(&endpoint))),
            None if before.is_some_and(|before| is_known(&before.network)) => {
                tell.dns.push(dns::Change::RemoveEndpoint(id));
            }
            None => {}
        }
    }

    /// Has the network be known to the name server, with those who are on it at other hosts.
    fn open_names(&self, network: &Network, tell: &mut Told) {
        tell.dns.push(dns::Change::PutNetwork(dns_network(network)));
        let on_it = self.remote.values().filter(|endpoint| endpoint.network == network.id);
        tell.dns.extend(on_it.map(|endpoint| dns::Change::PutEndpoint(dns_remote(endpoint))));
    }

    /// Takes note that there is nothing but these.
    pub fn keep_only(
        &mut self,
        networks: &BTreeSet<Id>,
        containers: &BTreeSet<Id>,
        remote: &BTreeSet<Id>,
        tell: &mut Told,
    ) {
        let gone: Vec<Id> = self.remote.keys().filter(|id| !remote.contains(id)).copied().collect();
        gone.into_iter().for_each(|id| self.take_remote(id, None, tell));
        let gone: Vec<Id> = self.containers.keys().filter(|id| !containers.contains(id)).copied().collect();
        gone.into_iter().for_each(|id| self.take_container(id, None, tell));
        let gone: Vec<Id> = self.networks.keys().filter(|id| !networks.contains(id)).copied().collect();
        gone.into_iter().for_each(|id| self.take_network(id, None, tell));
    }

    fn take_network(&mut self, id: Id, network: Option<Network>, tell: &mut Told) {
        match network {
            Some(network) => {
                if self.members.contains_key(&id) && self.networks.get(&id) != Some(&network) {
                    tell.dns.push(dns::Change::PutNetwork(dns_network(&network)));
                }
                let name = network.name.to_string();
                if self.networks.insert(id, network).is_none() {
                    tell.events.push(Event::NetworkCreate { network: name, id });
                }
            }
            None => {
                if self.members.remove(&id).is_some() {
                    tell.dns.push(dns::Change::RemoveNetwork(id));
                }
                if let Some(network) = self.networks.remove(&id) {
                    tell.events.push(Event::NetworkRemove { network: network.name.to_string(), id });
                }
            }
        }
    }

    fn take_container(&mut self, id: Id, view: Option<ContainerView>, tell: &mut Told) {
        let before = self.containers.remove(&id);
        let now = view.filter(|view| view.container.mode == NetworkMode::Own && view.container.sandbox.is_some());
        let stays = |endpoint: &KnownEndpoint| {
            now.as_ref().is_some_and(|view| view.endpoints.iter().any(|(now, _)| now.id == endpoint.id))
        };
        // Who comes, comes before others go: a network that one leaves and another joins is not closed in between.
        for (endpoint, network) in now.iter().flat_map(|view| &view.endpoints) {
            let is_new = before.as_ref().is_none_or(|known| known.endpoints.iter().all(|e| e.id != endpoint.id));
            if is_new {
                tell.events.push(Event::Connect {
                    container: now.as_ref().map_or_else(String::new, |view| view.container.called().to_owned()),
                    network: network.name.to_string(),
                    addresses: endpoint.addresses.iter().map(|a| a.address.addr()).collect(),
                });
                let members = self.members.entry(network.id).or_insert(0);
                *members += 1;
                if *members == 1 {
                    self.open_names(network, tell);
                    self.networks.entry(network.id).or_insert_with(|| network.clone());
                }
            }
        }
        for endpoint in before.iter().flat_map(|known| &known.endpoints).filter(|endpoint| !stays(endpoint)) {
            tell.events.push(Event::Disconnect {
                container: before.as_ref().map_or_else(String::new, |known| known.name.clone()),
                network: self.networks.get(&endpoint.network).map_or_else(String::new, |n| n.name.to_string()),
            });
            let Some(members) = self.members.get_mut(&endpoint.network) else { continue };
            *members -= 1;
            if *members == 0 {
                self.members.remove(&endpoint.network);
                tell.dns.push(dns::Change::RemoveNetwork(endpoint.network));
            } else {
                tell.dns.push(dns::Change::RemoveEndpoint(endpoint.id));
            }
        }
        let rules: Vec<Rule> = now.iter().flat_map(proxied).map(rule).collect();
        for gone in before.iter().flat_map(|known| &known.proxied) {
            if !rules.iter().any(|rule| rule.place == gone.place) {
                tell.proxy.push(proxy::Change::Remove(gone.place));
            }
        }
        let is_known = |rule: &Rule| before.as_ref().is_some_and(|known| known.proxied.contains(rule));
        tell.proxy.extend(rules.iter().filter(|rule| !is_known(rule)).cloned().map(proxy::Change::Put));
        tell.shares.push(shares::Change { container: id, places: now.as_ref().map(places).unwrap_or_default() });
        let Some(view) = now else { return };
        tell.dns.extend(dns_endpoints(&view).into_iter().map(dns::Change::PutEndpoint));
        let endpoints = view.endpoints.iter().map(|(endpoint, _)| KnownEndpoint {
            id: endpoint.id,
            network: endpoint.network,
            host_end: endpoint.host_end.clone(),
            addresses: endpoint.addresses.iter().map(|a| a.address.addr()).collect(),
        });
        let health = view.container.health.as_ref().map(|health| health.state);
        if before.as_ref().map_or(health.is_some(), |known| known.health != health) {
            tell.events.push(Event::Health { container: view.container.called().to_owned(), health });
        }
        let name = view.container.called().to_owned();
        let known = KnownContainer { name, endpoints: endpoints.collect(), health, proxied: rules };
        self.containers.insert(id, known);
    }
}

/// Where a container has connections that rules of ours let begin.
fn places(view: &ContainerView) -> Vec<shares::Place> {
    let ruled = view.endpoints.iter().filter(|(_, network)| network.is_ruled());
    let place = |(endpoint, network): &(portolan_model::Endpoint, Network)| shares::Place {
        container: view.container.name.to_string(),
        network: network.name.to_string(),
        addresses: endpoint.addresses.iter().map(|a| a.address.addr()).collect(),
        limit: network.options.connections,
    };
    ruled.map(place).collect()
}

fn rule(proxied: Proxied) -> Rule {
    let transport = match proxied.protocol {
        Protocol::Udp => diag::Transport::Udp,
        Protocol::Sctp => diag::Transport::Sctp,
        Protocol::Tcp => diag::Transport::Tcp,
    };
    let place = Place { transport, listen: proxied.listen };
    Rule { place, target: proxied.target, owner: proxied.owner }
}

fn dns_network(network: &Network) -> DnsNetwork {
    DnsNetwork {
        id: network.id,
        name: network.name.to_string(),
        gateways: network.names_places(),
        port: network.names_port,
        internal: network.internal,
        upstreams: network.dns.iter().map(|server| SocketAddr::new(*server, PORT)).collect(),
        subnets: network.nets(),
    }
}

/// What a container is called on a network besides its name.
pub(crate) fn names_of(container: &Container, endpoint: &portolan_model::Endpoint) -> Vec<String> {
    let mut names: Vec<String> = endpoint.aliases.iter().map(ToString::to_string).collect();
    names.push(container.id.short());
    names.extend(container.hostname.as_ref().map(ToString::to_string));
    if container.called() != container.name.as_str() {
        names.push(container.name.to_string());
    }
    names.extend(container.also_called().map(str::to_owned));
    names
}

fn dns_endpoints(view: &ContainerView) -> Vec<DnsEndpoint> {
    let container = &view.container;
    let published = view.publications.iter().flat_map(|publication| {
        (publication.container.first()..=publication.container.last()).map(|port| (publication.protocol, port))
    });
    let exposed = container
        .exposed
        .iter()
        .flat_map(|exposed| (exposed.ports.first()..=exposed.ports.last()).map(|port| (exposed.protocol, port)));
    let mut services: Vec<Service> = Vec::new();
    for (protocol, port) in published.chain(exposed).take(SERVICES) {
        let service = Service { transport: transport(protocol), port };
        if !services.contains(&service) {
            services.push(service);
        }
    }
    let endpoint = |(endpoint, network): &(portolan_model::Endpoint, Network)| {
        let names = names_of(container, endpoint);
        DnsEndpoint {
            id: endpoint.id,
            network: network.id,
            container: container.id,
            name: container.called().to_owned(),
            names,
            addresses: endpoint.addresses.iter().map(|a| a.address.addr()).collect(),
            links: endpoint.links.iter().map(|link| (link.alias.to_string(), link.container.to_string())).collect(),
            services: services.clone(),
            upstreams: container.dns.servers.iter().map(|server| SocketAddr::new(*server, PORT)).collect(),
            is_well: container.is_well(),
            search: container.dns.search.iter().filter(|domain| *domain != ".").cloned().collect(),
        }
    };
    view.endpoints.iter().map(endpoint).collect()
}

fn dns_remote(endpoint: &RemoteEndpoint) -> DnsEndpoint {
    DnsEndpoint {
        id: endpoint.id,
        network: endpoint.network,
        container: endpoint.container,
        name: endpoint.name.clone(),
        names: endpoint.aliases.clone(),
        addresses: endpoint.addresses.clone(),
        links: Vec::new(),
        services: Vec::new(),
        upstreams: Vec::new(),
        search: Vec::new(),
        is_well: !endpoint.unwell,
    }
}

/// So many ports of one container can be asked for by SRV. A range of thousands is media, not services.
const SERVICES: usize = 256;

const fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => Transport::Sctp,
    }
}
