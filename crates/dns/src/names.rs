use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::Id;

use crate::ResolvConf;
use crate::slab::Slab;
use crate::special::{HOST_NAMES, OWN_DOMAINS, Special, service_of, special};
use crate::table::Table;
use crate::wire::{self, Answer, MAX_NAME, MAX_TCP, Owner, Query, Section, kind, rcode};

/// Local answers are not to be kept: an address moves the moment a container is replaced.
const TTL: u32 = 0;
/// The port of a domain name server.
const PORT: u16 = 53;

/// A network, as far as names go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its id.
    pub id: Id,
    /// Its name, by which `NAME.network` is asked for. Where it is no name on the wire, the containers' names alone are.
    pub name: String,
    /// The host's addresses on it, where its containers ask.
    pub gateways: Vec<IpAddr>,
    /// The port that is listened on there; none for the usual one.
    pub port: Option<u16>,
    /// Whether it has no way out: then nothing is forwarded for it.
    pub internal: bool,
    /// Where questions of its containers are forwarded to; empty for where the host asks.
    pub upstreams: Vec<SocketAddr>,
    /// Its subnets.
    pub subnets: Vec<IpNet>,
}

/// One container's place on one network, as far as names go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its id.
    pub id: Id,
    /// The network.
    pub network: Id,
    /// The container.
    pub container: Id,
    /// The container's name: what addresses are translated back to, and links lead to.
    pub name: String,
    /// Its other names on this network: aliases, the short id, the host name. What is no name on the wire (a label
    /// of over 63 bytes, say) cannot be asked for and is left out.
    pub names: Vec<String>,
    /// Its addresses on this network.
    pub addresses: Vec<IpAddr>,
    /// Names that only this container knows, and the names of the containers they stand for.
    pub links: Vec<(String, String)>,
    /// Ports that others may ask for by SRV.
    pub services: Vec<Service>,
    /// The container's own upstreams; empty for the network's.
    pub upstreams: Vec<SocketAddr>,
    /// The container's own search list; empty for the host's.
    pub search: Vec<String>,
    /// Whether it is to be found by names that others have as well. Where none of them is, all are.
    pub is_well: bool,
}

/// A port of a container that is exposed or published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Service {
    /// The protocol.
    pub transport: Transport,
    /// The port inside the container.
    pub port: u16,
}

/// The protocols of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// `_tcp`.
    Tcp,
    /// `_udp`.
    Udp,
    /// `_sctp`.
    Sctp,
}

impl Transport {
    pub(crate) fn label(self) -> &'static [u8] {
        match self {
            Self::Tcp => b"_tcp",
            Self::Udp => b"_udp",
            Self::Sctp => b"_sctp",
        }
    }
}

/// Why the index does not take something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NamesError {
    /// An endpoint of a network that is not there.
    #[error("endpoint `{endpoint}` is on network `{network}`, which is not known")]
    UnknownNetwork {
        /// The endpoint.
        endpoint: Id,
        /// Its network.
        network: Id,
    },
}

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// The answer is written.
    Answered(Local),
    /// Others have to be asked, on the way given.
    Forward(Route),
}

/// How a question was answered without asking others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Local {
    /// With records.
    Found,
    /// The name exists, and has nothing of the type.
    NoData,
    /// The name does not exist.
    NoName,
    /// Who asks is none of the network's.
    Refused,
}

/// Who asks, and whom to ask for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The upstreams in their order, without addresses of our own; may be empty.
    pub upstreams: Arc<[SocketAddr]>,
    /// The container, or the network where the host itself asks.
    pub owner: Id,
    /// Whether the question came from the host, as one of ours does that was sent in a circle.
    pub from_host: bool,
}

/// How often somebody asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// The endpoint or network.
    pub id: Id,
    /// Its questions.
    pub tally: Tally,
}

/// Questions, by how they were answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// From the index, negative answers included.
    pub local: u64,
    /// Passed on to others.
    pub forwarded: u64,
    /// Refused.
    pub refused: u64,
}

#[derive(Debug)]
struct NetworkSlot {
    input: Network,
    /// The name in wire form with its last zero; none if it cannot be the end of a name.
    suffix: Option<Box<[u8]>>,
    upstreams: Arc<[SocketAddr]>,
    /// Labels without the last zero, to endpoints.
    names: Table<Box<[u8]>, Vec<u32>>,
    addresses: Table<IpAddr, u32>,
    endpoints: u32,
    tally: Tally,
}

impl NetworkSlot {
    /// What names on it end in, in wire form without the last zero.
    fn end(&self) -> &[u8] {
        self.suffix.as_deref().and_then(|suffix| suffix.strip_suffix(b"\0")).unwrap_or_default()
    }
}

/// An alias and the container's name it stands for, in wire form without last zeroes.
type Link = (Box<[u8]>, Box<[u8]>);

#[derive(Debug)]
struct EndpointSlot {
    id: Id,
    network: u32,
    container: Id,
    /// In wire form without the last zero; the first is the container's name, if that can be asked for.
    names: Box<[Box<[u8]>]>,
    has_primary: bool,
    addresses: Box<[IpAddr]>,
    links: Box<[Link]>,
    services: Box<[Service]>,
    upstreams: Option<Arc<[SocketAddr]>>,
    search: Option<Box<[Box<[u8]>]>>,
    is_well: bool,
    tally: Tally,
}

impl EndpointSlot {
    fn primary(&self) -> Option<&[u8]> {
        self.names.first().filter(|_| self.has_primary).map(|name| &**name)
    }
}

/// The index of local names, and who may see which.
///
/// A container sees the names of the networks it is on, the one it asks on first. Changes take effect with the next
/// question.
#[derive(Debug, Default)]
pub struct Names {
    networks: Slab<NetworkSlot>,
    endpoints: Slab<EndpointSlot>,
    network_ids: Table<Id, u32>,
    endpoint_ids: Table<Id, u32>,
    /// The endpoints of each container.
    containers: Table<Id, Vec<u32>>,
    /// Several networks on one bridge of somebody else's have the host's addresses there in common.
    gateways: Table<IpAddr, Vec<u32>>,
    host_upstreams: Option<Arc<[SocketAddr]>>,
    host_search: Box<[Box<[u8]>]>,
    /// Whose turn it is among several of one name.
    turn: u32,
    /// They move on with every answer, that for AAAA apart: resolvers ask for A and AAAA in pairs, and with one count
    /// each of two addresses would have the same place for ever.
    turns: [u32; 2],
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
struct Asker {
    network: u32,
    /// `None` for the host itself.
    endpoint: Option<u32>,
}

/// What a name led to.
#[derive(Clone, Copy)]
struct Found<'a> {
    endpoints: &'a [u32],
    /// Only endpoints of containers of this very name.
    primary: Option<&'a [u8]>,
}

impl Names {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a network, or changes it; its endpoints stay. Of networks with a gateway in common, the one that an asker is on is
    /// meant; the host itself asks the one that was first.
    pub fn put_network(&mut self, network: Network) {
        let known = self.network_ids.get(&network.id).copied();
        let suffix = wire::labels_of(&network.name).map(|labels| [&labels, &b"\0"[..]].concat().into());
        let upstreams: Arc<[SocketAddr]> = network.upstreams.as_slice().into();
        let slot = match known {
            Some(slot) => {
                let old = &mut self.networks[slot];
                leave(&mut self.gateways, &old.input.gateways, slot);
                old.input = network;
                old.suffix = suffix;
                old.upstreams = upstreams;
                slot
            }
            None => {
                let id = network.id;
                let slot = self.networks.insert(NetworkSlot {
                    input: network,
                    suffix,
                    upstreams,
                    names: Table::default(),
                    addresses: Table::default(),
                    endpoints: 0,
                    tally: Tally::default(),
                });
                self.network_ids.insert(id, slot);
                slot
            }
        };
        for &address in &self.networks[slot].input.gateways {
            self.gateways.entry(address).or_default().push(slot);
        }
    }

    /// Removes a network and the endpoints on it; whether it was there.
    pub fn remove_network(&mut self, id: &Id) -> bool {
        let Some(slot) = self.network_ids.remove(id) else { return false };
        if self.networks[slot].endpoints > 0 {
            let on_it: Vec<Id> =
                self.endpoints.iter().filter(|endpoint| endpoint.network == slot).map(|endpoint| endpoint.id).collect();
            for endpoint in on_it {
                self.remove_endpoint(&endpoint);
            }
        }
        leave(&mut self.gateways, &self.networks.remove(slot).input.gateways, slot);
        true
    }

    /// Adds an endpoint, or changes it.
    ///
    /// # Errors
    /// [`NamesError::UnknownNetwork`]; the index is as before.
    pub fn put_endpoint(&mut self, endpoint: Endpoint) -> Result<(), NamesError> {
        let Some(&network) = self.network_ids.get(&endpoint.network) else {
            return Err(NamesError::UnknownNetwork { endpoint: endpoint.id, network: endpoint.network });
        };
        let tally = self.endpoint_ids.get(&endpoint.id).map(|&slot| self.endpoints[slot].tally).unwrap_or_default();
        self.remove_endpoint(&endpoint.id);
        let primary = wire::labels_of(&endpoint.name);
        let has_primary = primary.is_some();
        let mut names: Vec<Box<[u8]>> = primary.into_iter().collect();
        for name in endpoint.names.iter().filter_map(|name| wire::labels_of(name)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let slot = self.endpoints.insert(EndpointSlot {
            id: endpoint.id,
            network,
            container: endpoint.container,
            names: names.into(),
            has_primary,
            addresses: endpoint.addresses.into(),
            links: endpoint
                .links
                .iter()
                .filter_map(|(alias, target)| Some((wire::labels_of(alias)?, wire::labels_of(target)?)))
                .collect(),
            services: endpoint.services.into(),
            upstreams: Some(endpoint.upstreams).filter(|list| !list.is_empty()).map(Into::into),
            search: Some(suffixes(&endpoint.search)).filter(|list| !list.is_empty()),
            is_well: endpoint.is_well,
            tally,
        });
        let place = &mut self.networks[network];
        for name in &self.endpoints[slot].names {
            place.names.entry(name.clone()).or_default().push(slot);
        }
        for &address in &self.endpoints[slot].addresses {
            place.addresses.insert(address, slot);
        }
        place.endpoints += 1;
        self.containers.entry(endpoint.container).or_default().push(slot);
        self.endpoint_ids.insert(endpoint.id, slot);
        Ok(())
    }

    /// Removes an endpoint; whether it was there.
    pub fn remove_endpoint(&mut self, id: &Id) -> bool {
        let Some(slot) = self.endpoint_ids.remove(id) else { return false };
        let endpoint = self.endpoints.remove(slot);
        let network = &mut self.networks[endpoint.network];
        network.endpoints -= 1;
        for name in &endpoint.names {
            if let Some(holders) = network.names.get_mut(name) {
                holders.retain(|&holder| holder != slot);
                if holders.is_empty() {
                    network.names.remove(name);
                }
            }
        }
        for address in &endpoint.addresses {
            // It may have gone to another endpoint meanwhile.
            if network.addresses.get(address) == Some(&slot) {
                network.addresses.remove(address);
            }
        }
        if let Some(slots) = self.containers.get_mut(&endpoint.container) {
            slots.retain(|&other| other != slot);
            if slots.is_empty() {
                self.containers.remove(&endpoint.container);
            }
        }
        true
    }

    /// Takes over where the host asks, and its search list.
    pub fn set_host(&mut self, resolver: &ResolvConf) {
        let servers: Vec<_> = resolver.nameservers.iter().map(|&addr| with_port(addr)).collect();
        self.host_upstreams = Some(servers.into());
        self.host_search = suffixes(&resolver.search);
    }

    /// The addresses where questions come in, each network's, with the port if it is not the usual one.
    pub fn gateways(&self) -> impl Iterator<Item = (IpAddr, Option<u16>)> + '_ {
        let place = |address, slot: &u32| (address, self.networks[*slot].input.port);
        self.gateways.iter().flat_map(move |(&address, slots)| slots.iter().map(move |slot| place(address, slot)))
    }

    /// Whether `address` is a network's gateway.
    pub fn is_gateway(&self, address: IpAddr) -> bool {
        self.gateways.contains_key(&address)
    }

    /// How often each network (questions of the host itself) and each endpoint asked.
    pub fn tallies(&self) -> (Vec<Seen>, Vec<Seen>) {
        let networks = self.networks.iter().map(|slot| Seen { id: slot.input.id, tally: slot.tally }).collect();
        let endpoints = self.endpoints.iter().map(|slot| Seen { id: slot.id, tally: slot.tally }).collect();
        (networks, endpoints)
    }

    /// Answers `query`, which came from `source` to the gateway address `gateway`, into `out` with at most `limit`
    /// bytes, or says whom to ask.
    ///
    /// The rules, in this order:
    ///
    /// 1. Who is neither an endpoint of the network nor the host (which asks from a gateway address) is refused.
    /// 2. `localhost` and names below it are the asker's own loopback (RFC 6761 §6.3). `host.internal`, and what
    ///    other engines call it, is the gateway.
    /// 3. Names of endpoints of the networks the asker is on, with or without `.NETWORK`, with or without
    ///    `.portolan.internal` or, as Podman writes it, `.dns.podman`; a container's links before all. Other types than A and AAAA have no data; ANY gets
    ///    both (RFC 8482 §4.1).
    /// 4. `_PORT._PROTOCOL.NAME`, PORT in digits, as SRV (RFC 2782): the containers of that name with such a service;
    ///    their targets are `CONTAINER.NETWORK`, with addresses in the additional section.
    /// 5. Addresses of those networks lead back to `CONTAINER.NETWORK`, gateways to `host.internal`, loopback
    ///    addresses to `localhost`. Other addresses in subnets of ours do not exist.
    /// 6. Never forwarded, so unknown: single labels; what ends in the name of a network of the asker's; what ends in
    ///    `portolan.internal`, `dns.podman` or the names of rule 2.
    /// 7. Nor is a local name with a suffix of the search list: it does not exist, and the resolver goes on to
    ///    the bare name, whatever its `ndots`.
    /// 8. For an internal network, nothing is forwarded. We say that the name does not exist: for the asker it does
    ///    not (a tree of names of its own, RFC 8020 §2), and other codes only make resolvers try again.
    /// 9. The rest goes to the container's upstreams, or the network's, or the host's.
    ///
    /// Answers have a time to live of 0, negative ones too.
    pub fn answer(
        &mut self,
        gateway: IpAddr,
        source: IpAddr,
        query: &Query<'_>,
        limit: usize,
        out: &mut Vec<u8>,
    ) -> Decision {
        let Some(asker) = self.asker(gateway, source) else {
            if let Some(&network) = self.gateways.get(&gateway).and_then(|slots| slots.first()) {
                self.networks[network].tally.refused += 1;
            }
            wire::write_code(query, rcode::REFUSED, out);
            return Decision::Answered(Local::Refused);
        };
        let turn = &mut self.turns[usize::from(query.kind() == kind::AAAA)];
        *turn = turn.wrapping_add(1);
        self.turn = *turn;
        let mut buffer = [0; MAX_NAME];
        let name = wire::lower(query.name(), &mut buffer);
        let decision = self.decide(asker, query, name, limit.min(MAX_TCP), out);
        let tally = match asker.endpoint {
            Some(endpoint) => &mut self.endpoints[endpoint].tally,
            None => &mut self.networks[asker.network].tally,
        };
        match decision {
            Decision::Answered(_) => tally.local += 1,
            Decision::Forward(_) => tally.forwarded += 1,
        }
        decision
    }

    fn asker(&self, gateway: IpAddr, source: IpAddr) -> Option<Asker> {
        let slots = self.gateways.get(&gateway)?;
        let on = |&network: &u32| Some((network, *self.networks[network].addresses.get(&source)?));
        if let Some((network, endpoint)) = slots.iter().find_map(on) {
            return Some(Asker { network, endpoint: Some(endpoint) });
        }
        let network = slots.iter().copied().find(|&slot| self.networks[slot].input.gateways.contains(&source))?;
        Some(Asker { network, endpoint: None })
    }

    fn decide(&self, asker: Asker, query: &Query<'_>, name: &[u8], limit: usize, out: &mut Vec<u8>) -> Decision {
        let answer = Answer::new(query, limit, out);
        let labels = &name[..name.len() - 1];
        let network = &self.networks[asker.network];
        match special(name) {
            Some(Special::Localhost) => {
                let addresses = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
                return self.addresses(answer, query, addresses.into_iter());
            }
            Some(Special::Host) => {
                return self.addresses(answer, query, network.input.gateways.iter().copied());
            }
            None => {}
        }
        if let Some(found) = self.find(asker, name, labels) {
            return self.found(answer, query, found);
        }
        if let Some((transport, port, rest)) = service_of(name)
            && let Some(found) = self.find(asker, rest, &rest[..rest.len() - 1])
        {
            return self.service(answer, query, found, transport, port);
        }
        if let Some(address) = wire::reverse_address(name) {
            match self.back(asker, address) {
                Back::Endpoint(endpoint) => {
                    let endpoint = &self.endpoints[endpoint];
                    let suffix = self.networks[endpoint.network].end();
                    return match endpoint.primary() {
                        Some(primary) => ptr(answer, query, &[primary, suffix]),
                        None => negative(answer, query, rcode::NOERROR),
                    };
                }
                Back::Named(labels) => return ptr(answer, query, &[labels]),
                Back::Nobody => return negative(answer, query, rcode::NXDOMAIN),
                Back::Foreign => {}
            }
        }
        if self.stays_here(asker, name) {
            return negative(answer, query, rcode::NXDOMAIN);
        }
        let endpoint = asker.endpoint.map(|endpoint| &self.endpoints[endpoint]);
        let search = endpoint.and_then(|endpoint| endpoint.search.as_deref()).unwrap_or(&self.host_search);
        let searched = search.iter().any(|suffix| {
            name.strip_suffix(&**suffix).is_some_and(|front| {
                // The suffix has to begin where a label does.
                let mut buffer = [0; MAX_NAME];
                let bare = &mut buffer[..front.len() + 1];
                bare[..front.len()].copy_from_slice(front);
                wire::label_starts(name).any(|start| start == front.len())
                    && self.find(asker, bare, &bare[..front.len()]).is_some()
            })
        });
        if searched || network.input.internal {
            return negative(answer, query, rcode::NXDOMAIN);
        }
        let upstreams = endpoint
            .and_then(|endpoint| endpoint.upstreams.as_ref())
            .or(Some(&network.upstreams).filter(|list| !list.is_empty()))
            .or(self.host_upstreams.as_ref());
        let upstreams = match upstreams {
            None => Arc::default(),
            Some(list) if list.iter().any(|server| self.is_ours(server)) => {
                list.iter().copied().filter(|server| !self.is_ours(server)).collect()
            }
            Some(list) => list.clone(),
        };
        let owner = endpoint.map_or(network.input.id, |endpoint| endpoint.container);
        Decision::Forward(Route { upstreams, owner, from_host: endpoint.is_none() })
    }

    fn is_ours(&self, server: &SocketAddr) -> bool {
        server.port() == PORT && self.is_gateway(server.ip())
    }

    /// The networks that `asker` is on, the one it asks on first.
    fn visible(&self, asker: Asker) -> impl Iterator<Item = &NetworkSlot> {
        let others = asker
            .endpoint
            .and_then(|endpoint| self.containers.get(&self.endpoints[endpoint].container))
            .map(Vec::as_slice)
            .unwrap_or_default();
        let others = others.iter().map(|&endpoint| self.endpoints[endpoint].network);
        std::iter::once(asker.network)
            .chain(others.filter(move |&network| network != asker.network))
            .map(|network| &self.networks[network])
    }

    /// Looks for a name: `name` with its last zero, `labels` without.
    fn find(&self, asker: Asker, name: &[u8], labels: &[u8]) -> Option<Found<'_>> {
        if labels.is_empty() {
            return None;
        }
        if let Some(found) = self.find_plain(asker, name, labels) {
            return Some(found);
        }
        let front = OWN_DOMAINS.iter().find_map(|domain| name.strip_suffix(*domain))?;
        let starts = wire::label_starts(name).any(|start| start == front.len());
        if !starts || front.is_empty() {
            return None;
        }
        let mut buffer = [0; MAX_NAME];
        let bare = &mut buffer[..front.len() + 1];
        bare[..front.len()].copy_from_slice(front);
        self.find_plain(asker, bare, front)
    }

    fn find_plain(&self, asker: Asker, name: &[u8], labels: &[u8]) -> Option<Found<'_>> {
        if let Some(endpoint) = asker.endpoint
            && let Some((_, target)) = self.endpoints[endpoint].links.iter().find(|(alias, _)| **alias == *labels)
        {
            return self.visible(asker).find_map(|network| {
                let endpoints = network.names.get(&**target)?;
                let is_it = |&&slot: &&u32| self.endpoints[slot].primary() == Some(target);
                endpoints.iter().any(|slot| is_it(&slot)).then_some(Found { endpoints, primary: Some(target) })
            });
        }
        let by_name = self.visible(asker).find_map(|network| network.names.get(labels));
        if let Some(endpoints) = by_name {
            return Some(Found { endpoints, primary: None });
        }
        self.visible(asker).find_map(|network| {
            let front = name.strip_suffix(network.suffix.as_deref()?).filter(|front| !front.is_empty())?;
            let endpoints = network.names.get(front)?;
            Some(Found { endpoints, primary: None })
        })
    }

    /// Those of the endpoints found that are `meant`, each container once, another one first every time; those that are not well
    /// only if none is.
    fn turns<'a>(
        &'a self,
        found: Found<'a>,
        meant: impl Fn(&EndpointSlot) -> bool + Clone,
    ) -> impl Iterator<Item = &'a EndpointSlot> + Clone {
        let is_it = move |endpoint: &EndpointSlot| {
            (found.primary.is_none() || endpoint.primary() == found.primary) && meant(endpoint)
        };
        let all = found.endpoints.iter().map(|&endpoint| &self.endpoints[endpoint]).filter(move |slot| is_it(slot));
        let any_is_well = all.clone().any(|endpoint| endpoint.is_well);
        let answering = all.filter(move |endpoint| endpoint.is_well || !any_is_well);
        let first = self.turn as usize % answering.clone().count().max(1);
        answering.clone().skip(first).chain(answering.take(first))
    }

    fn found(&self, answer: Answer<'_>, query: &Query<'_>, found: Found<'_>) -> Decision {
        let addresses = self.turns(found, |_| true).flat_map(|endpoint| endpoint.addresses.iter().copied());
        self.addresses(answer, query, addresses)
    }

    fn addresses(
        &self,
        mut answer: Answer<'_>,
        query: &Query<'_>,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Decision {
        let mut any = false;
        for address in addresses {
            let wanted = match query.kind() {
                kind::A => address.is_ipv4(),
                kind::AAAA => address.is_ipv6(),
                kind::ANY => true,
                _ => false,
            };
            if wanted {
                any = true;
                answer.address(Section::Answer, Owner::Question(0), TTL, address);
            }
        }
        if !any {
            return negative(answer, query, rcode::NOERROR);
        }
        answer.finish(rcode::NOERROR);
        Decision::Answered(Local::Found)
    }

    fn service(
        &self,
        mut answer: Answer<'_>,
        query: &Query<'_>,
        found: Found<'_>,
        transport: Transport,
        port: u16,
    ) -> Decision {
        let having = self.turns(found, |endpoint| {
            endpoint.primary().is_some() && endpoint.services.contains(&Service { transport, port })
        });
        if having.clone().next().is_none() {
            return negative(answer, query, rcode::NXDOMAIN);
        }
        if !matches!(query.kind(), kind::SRV | kind::ANY) {
            return negative(answer, query, rcode::NOERROR);
        }
        let target = |endpoint: &EndpointSlot| {
            let labels = endpoint.names[0].clone();
            (labels, self.networks[endpoint.network].end().to_vec())
        };
        for endpoint in having.clone() {
            let (name, suffix) = target(endpoint);
            answer.srv(TTL, port, &[&name, &suffix]);
        }
        for endpoint in having {
            let (name, suffix) = target(endpoint);
            for &address in &endpoint.addresses {
                answer.address(Section::Additional, Owner::Labels(&[&name, &suffix]), TTL, address);
            }
        }
        answer.finish(rcode::NOERROR);
        Decision::Answered(Local::Found)
    }

    fn back(&self, asker: Asker, address: IpAddr) -> Back {
        if address.is_loopback() {
            return Back::Named(b"\x09localhost");
        }
        for network in self.visible(asker) {
            if let Some(&endpoint) = network.addresses.get(&address) {
                return Back::Endpoint(endpoint);
            }
            if network.input.gateways.contains(&address) {
                return Back::Named(HOST_NAMES[0].strip_suffix(b"\0").unwrap_or_default());
            }
        }
        let ours = self.networks.iter().any(|network| network.input.subnets.iter().any(|net| net.contains(&address)));
        if ours { Back::Nobody } else { Back::Foreign }
    }

    /// Whether `name`, which is not known, is one that nobody else may be asked for.
    fn stays_here(&self, asker: Asker, name: &[u8]) -> bool {
        let mut starts = wire::label_starts(name).skip(1).peekable();
        if name.len() > 1 && starts.peek().is_none() {
            return true;
        }
        starts.any(|start| {
            let rest = &name[start..];
            OWN_DOMAINS.contains(&rest)
                || HOST_NAMES.contains(&rest)
                || self.visible(asker).any(|network| network.suffix.as_deref() == Some(rest))
        }) || OWN_DOMAINS.contains(&name)
    }
}

/// Takes network `slot` from those with these gateways.
fn leave(gateways: &mut Table<IpAddr, Vec<u32>>, addresses: &[IpAddr], slot: u32) {
    for address in addresses {
        if let Some(slots) = gateways.get_mut(address) {
            slots.retain(|&other| other != slot);
            if slots.is_empty() {
                gateways.remove(address);
            }
        }
    }
}

enum Back {
    Endpoint(u32),
    Named(&'static [u8]),
    /// An address of ours that nobody has, or none of the asker's business.
    Nobody,
    Foreign,
}

/// A list of domains in wire form with their last zeroes.
fn suffixes(domains: &[String]) -> Box<[Box<[u8]>]> {
    let labels = domains.iter().filter_map(|domain| wire::labels_of(domain));
    labels.map(|labels| [&labels, &b"\0"[..]].concat().into()).collect()
}

fn with_port(addr: SocketAddr) -> SocketAddr {
    if addr.port() == 0 { SocketAddr::new(addr.ip(), PORT) } else { addr }
}

fn ptr(mut answer: Answer<'_>, query: &Query<'_>, labels: &[&[u8]]) -> Decision {
    if !matches!(query.kind(), kind::PTR | kind::ANY) {
        return negative(answer, query, rcode::NOERROR);
    }
    answer.ptr(TTL, labels);
    answer.finish(rcode::NOERROR);
    Decision::Answered(Local::Found)
}

/// Ends an answer without records. The zone that its SOA record speaks for is the name itself, which exists, or what
/// is left of it without the first label: nothing is claimed about names further up.
fn negative(mut answer: Answer<'_>, query: &Query<'_>, code: u16) -> Decision {
    let name = query.name();
    let parent = 1 + usize::from(name[0]);
    let owner = match code {
        rcode::NOERROR => Owner::Question(0),
        _ if name.len() > parent + 1 => Owner::Question(parent),
        _ => Owner::Labels(&[]),
    };
    answer.soa(owner, TTL);
    answer.finish(code);
    Decision::Answered(if code == rcode::NOERROR { Local::NoData } else { Local::NoName })
}
