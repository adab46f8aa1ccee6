//! Who is where: hosts, networks, blocks and endpoints, and etcd with all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use portolan_cluster::{
    ClusterNetwork, ClusterRecord, EndpointRecord, FORMAT, HostRecord, Layout, Part, VXLAN_PORT, View, Write,
};
use portolan_etcd::{Client, Config};
use portolan_model::{Id, Mac, Mtu, PerFamily, Vni};
use portolan_resident::cluster::{Endpoints, bundle, transaction};

/// On a network that not everybody is on, so many hosts are, each with so many endpoints.
const HOSTS_ON: usize = 10;
const EACH: usize = 20;
/// The length of the prefixes of blocks, as new networks have it.
const BLOCK: u8 = 26;
/// The endpoints of one host of so many come when there are bundles already.
const LATER: usize = 10;
/// So many transactions are under way when etcd is filled.
const AT_ONCE: usize = 64;

pub(crate) fn id(kind: u8, number: usize) -> Id {
    let mut bytes = [kind; 32];
    // Ids are drawn at random: what they begin with says nothing.
    let mixed = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&mixed.to_be_bytes());
    bytes[24..].copy_from_slice(&(number as u64).to_be_bytes());
    Id::from_bytes(bytes)
}

/// What one host has.
#[derive(Clone)]
pub(crate) struct Member {
    pub(crate) id: Id,
    pub(crate) record: HostRecord,
    pub(crate) endpoints: Endpoints,
}

/// A cluster as it is in etcd.
pub(crate) struct World {
    pub(crate) members: Vec<Member>,
    pub(crate) networks: BTreeMap<Id, ClusterNetwork>,
    pub(crate) blocks: BTreeMap<(Id, IpNet), usize>,
    cluster: ClusterRecord,
    next: usize,
}

impl World {
    /// So many hosts, with no networks.
    pub(crate) fn new(hosts: usize) -> Self {
        let cluster = ClusterRecord {
            id: id(9, 9),
            format: FORMAT,
            port: VXLAN_PORT,
            pools: PerFamily { v4: "10.128.0.0/9".parse().unwrap(), v6: "fd00::/48".parse().unwrap() },
            lengths: PerFamily { v4: 18, v6: 64 },
        };
        let members = (0..hosts).map(|number| Member {
            id: id(1, number),
            record: HostRecord {
                name: format!("node-{number:04}").parse().unwrap(),
                underlay: PerFamily { v4: Some(Ipv4Addr::from_bits(0xc0a8_0000 + number as u32).into()), v6: None },
                lan: PerFamily::default(),
                mac: Mac::local([2, 0, 0, 0, (number >> 8) as u8, number as u8]),
                mtu: Mtu::ETHERNET,
                seal: None,
                reach: portolan_cluster::Reach::Open,
                answers: false,
                translates: false,
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            endpoints: Endpoints::new(),
        });
        let members = members.collect();
        Self { members, networks: BTreeMap::new(), blocks: BTreeMap::new(), cluster, next: 0 }
    }

    /// So many hosts and endpoints: one network that every host is on, with one endpoint, and others of 200 endpoints on 10 hosts,
    /// which chance chooses.
    pub(crate) fn spread(hosts: usize, endpoints: usize) -> Self {
        let mut world = Self::new(hosts);
        let all = world.network("10.128.0.0/15");
        (0..hosts).for_each(|host| world.place(all, host, 1));
        let mut random = 1u64;
        for number in 0..(endpoints - hosts) / (HOSTS_ON * EACH) {
            let base = Ipv4Addr::from_bits(0x0a84_0000 + (number as u32) * 0x4000);
            let network = world.network(&format!("{base}/18"));
            let mut on = BTreeSet::new();
            while on.len() < HOSTS_ON.min(hosts) {
                random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                on.insert((random >> 33) as usize % hosts);
            }
            on.into_iter().for_each(|host| world.place(network, host, EACH));
        }
        world
    }

    pub(crate) fn network(&mut self, prefix: &str) -> Id {
        let number = self.networks.len();
        let record = ClusterNetwork {
            name: format!("net-{number}").parse().unwrap(),
            vni: Vni::new(70_000 + number as u32).unwrap(),
            prefixes: PerFamily { v4: Some(prefix.parse().unwrap()), v6: None },
            block_lengths: PerFamily { v4: BLOCK, v6: 112 },
            internal: false,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
            created: 1_800_000_000,
        };
        self.networks.insert(id(2, number), record);
        id(2, number)
    }

    /// Has a host have some more endpoints on a network, and blocks for them.
    pub(crate) fn place(&mut self, network: Id, host: usize, endpoints: usize) {
        let prefix = self.networks[&network].prefixes.v4.expect("of IPv4");
        let taken = self.blocks.range((network, prefix)..).take_while(|((of, _), _)| *of == network).count();
        // Neither the network's own address nor its gateway.
        let room = (1 << (32 - BLOCK)) - 2;
        let mut addresses = Vec::new();
        for number in taken..taken + endpoints.div_ceil(room) {
            let IpAddr::V4(base) = prefix.network() else { panic!("of IPv4") };
            let base = Ipv4Addr::from_bits(base.to_bits() + (number << (32 - BLOCK)) as u32);
            let block = Ipv4Net::new(base, BLOCK).unwrap();
            self.blocks.insert((network, IpNet::V4(block)), host);
            addresses.extend((2..).take(room).map(|last| IpAddr::from(Ipv4Addr::from_bits(base.to_bits() + last))));
        }
        for address in addresses.into_iter().take(endpoints) {
            let (endpoint, record) = self.endpoint(address);
            self.members[host].endpoints.insert((network, endpoint), record);
        }
    }

    /// An endpoint that was not there before.
    pub(crate) fn endpoint(&mut self, address: IpAddr) -> (Id, EndpointRecord) {
        let number = self.next;
        self.next += 1;
        let record = EndpointRecord {
            container: id(3, number),
            name: format!("shop-backend-{number}"),
            aliases: vec![id(3, number).short(), "backend".to_owned()],
            addresses: vec![address],
            mac: None,
            unwell: false,
        };
        (id(4, number), record)
    }

    /// Fills an etcd in which there is nothing.
    pub(crate) async fn fill(&self, config: &Config) {
        let client = Arc::new(Client::connect(config).await.unwrap());
        let nothing = View::default();
        let length = BLOCK;
        send(&client, vec![Write::begin(&self.cluster)]).await;
        send(&client, self.members.iter().map(|member| Write::join(member.id, &member.record)).collect()).await;
        let mut written = 0;
        for (network, record) in &self.networks {
            written = send(&client, vec![Write::create_network(*network, record, written)]).await;
        }
        let claims = self.blocks.iter();
        let claims = claims
            .map(|((network, block), host)| Write::claim(self.members[*host].id, *network, *block, length, &nothing));
        send(&client, claims.collect()).await;
        let none = Endpoints::new();
        let endpoints = self.members.iter().map(|member| Write::endpoints(member.id, &none, &member.endpoints));
        // As hosts see to it that run; what comes later is not in it.
        let last = self.members.len() / LATER;
        let mut before: Vec<Vec<Write>> = endpoints.collect();
        let after = before.split_off(before.len() - last);
        send(&client, before.into_iter().flatten().collect()).await;
        let layout = Layout::default();
        for part in [Part::All].into_iter().chain(self.networks.keys().copied().map(Part::Network)) {
            bundle(&client, &layout, part).await.unwrap();
        }
        send(&client, after.into_iter().flatten().collect()).await;
    }

    pub(crate) const fn cluster(&self) -> Id {
        self.cluster.id
    }
}

/// Has all of that be written; the revision of the last one.
async fn send(client: &Arc<Client>, writes: Vec<Write>) -> i64 {
    let layout = Layout::default();
    let mut under_way = tokio::task::JoinSet::new();
    let mut revision = 0;
    let mut writes = writes.into_iter();
    loop {
        while under_way.len() < AT_ONCE
            && let Some(write) = writes.next()
        {
            let (client, txn) = (client.clone(), transaction(&layout, &write, None));
            under_way.spawn(async move { client.txn(txn).await });
        }
        let Some(done) = under_way.join_next().await else { return revision };
        let answer = done.unwrap().unwrap();
        assert!(answer.succeeded, "etcd does not take what is to be there");
        revision = revision.max(answer.revision);
    }
}
