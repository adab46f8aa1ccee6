//! Pools: subnets whose addresses somebody else asks for one by one, for networks that need not be ours.
//!
//! Whoever asks (Docker) may die between a request and its use, so what it has is its own only as long as it claims it. When
//! it begins anew it says what it still claims, by asking for exactly that once more, and only then asks for anything new
//! ([`Engine::begin_claims`]). What it did not say by then is nobody's, provided that it could be heard all the time.
//!
//! We may die, too, between a change and its answer. What is asked for is then asked for again, so what was given is written
//! down with the change, until the answer is sent ([`Engine::answered`]): given to nobody, it is what is given next time. Nobody
//! knows of an answer that we die over whether it came; but who was given an address for a network of ours makes an endpoint
//! with it, so it is written down until there is one.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{AddressRange, Family, Id, Invalid, Mac, Name, Pool, ProcessId, Subnet};
use portolan_plan::generated_mac;
use serde::{Deserialize, Serialize};

use crate::engine::{Engine, encode, meta};
use crate::error::{Error, Result};
use crate::ipam::{self, Occupied, Space, as_pool};
use crate::kernel::Kernel;
use crate::networks::check::check_subnet;
use crate::store::{Durability, Store, Tx};

/// Which subnet a pool is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolNet {
    /// Any free one of this family, with this prefix length or the usual one.
    Free(Family, Option<u8>),
    /// This one.
    Exactly(IpNet),
}

/// A pool to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolRequest {
    /// The subnet.
    pub net: PoolNet,
    /// Where free addresses come from; none for all of it.
    pub range: Option<AddressRange>,
}

/// An address of a pool to be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AddressRequest {
    /// Which one; none for a free one.
    pub address: Option<IpAddr>,
    /// Whether it is to be the gateway's. A pool has one.
    pub gateway: bool,
    /// The MAC that will have it, if known.
    pub mac: Option<Mac>,
}

/// What a call that comes again has in common with itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call<'a> {
    /// What it asks for.
    pub method: &'a str,
    /// How, word for word.
    pub body: &'a str,
}

/// What was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given<T> {
    /// The pool or address.
    pub what: T,
    /// By which the answer is said to be on its way.
    pub number: u64,
}

/// A call whose answer was not sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Unanswered {
    number: u64,
    method: String,
    body: String,
    pool: Id,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address: Option<IpNet>,
    /// Whether the process that was to answer is gone, and so nobody has what it was given.
    #[serde(default)]
    lost: bool,
    /// Whether the answer may have been sent: then it was if an endpoint has the address.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    sent: bool,
}

/// Who claims pools, and what it has asked for last. One value of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    /// What rows that are claimed carry.
    holder: Id,
    /// The process that claims.
    process: Option<ProcessId>,
    /// It is saying what it claims, and what it does not say is nobody's.
    replaying: bool,
    calls: Vec<Unanswered>,
    /// The number of the next call.
    next: u64,
}

impl Claims {
    /// Takes a lost call that asked for the same.
    fn repeated(&mut self, call: Call<'_>) -> Option<Unanswered> {
        let is_it = |lost: &Unanswered| lost.lost && lost.method == call.method && lost.body == call.body;
        self.calls.iter().position(is_it).map(|place| self.calls.remove(place))
    }

    /// Writes down what `call` is answered with.
    fn record(&mut self, call: Call<'_>, pool: Id, address: Option<IpNet>) -> u64 {
        let number = self.next;
        self.next += 1;
        let (method, body) = (call.method.to_owned(), call.body.to_owned());
        self.calls.push(Unanswered { number, method, body, pool, address, lost: false, sent: false });
        number
    }
}

impl<S: Store, K: Kernel> Engine<S, K> {
    /// Gives a subnet to whoever asks: one that neither networks of ours nor other pools have, nor, unless it is named,
    /// routes of the host.
    ///
    /// # Errors
    /// [`Error::Overlap`], [`Error::PoolExhausted`]; what is malformed.
    pub fn request_pool(&self, call: Call<'_>, request: &PoolRequest) -> Result<Given<Pool>> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let mut claims = self.claims(&tx)?;
        let lost = claims.repeated(call).map(|lost| tx.pool(lost.pool)).transpose()?.flatten();
        // It may be one that was given before, whatever became of `0.0.0.0/24`: what is claimed cannot be told any more.
        claims.replaying &= !matches!(request.net, PoolNet::Free(_, Some(_)));
        let pool = match lost {
            Some(pool) => pool,
            None => self.plan_pool(&tx, &claims, request)?,
        };
        tx.put_pool(&pool)?;
        let number = claims.record(call, pool.id, None);
        self.put_claims(&tx, &claims)?;
        tx.commit(Durability::Disk)?;
        Ok(Given { what: pool, number })
    }

    fn plan_pool(&self, tx: &S::Tx<'_>, claims: &Claims, request: &PoolRequest) -> Result<Pool> {
        let net = match request.net {
            PoolNet::Exactly(net) => {
                check_subnet(net)?;
                if let Some(pool) = tx.pool_overlapping(net)? {
                    let is_it = pool.subnet.net == net && pool.subnet.range == request.range;
                    return match is_it && pool.holder != claims.holder {
                        true => Ok(Pool { holder: claims.holder, ..pool }),
                        false => Err(Error::Overlap { subnet: net, other: as_pool(pool.subnet.net) }),
                    };
                }
                let networks = tx.networks()?;
                match Occupied::new(&networks, &[], &|_| None).collision(net) {
                    Some(other) => return Err(Error::Overlap { subnet: net, other }),
                    None => net,
                }
            }
            PoolNet::Free(family, prefix) => self.free_subnet(tx, family, prefix)?,
        };
        if let Some(range) = request.range.filter(|range| !range.is_in(&net)) {
            return Err(Invalid::new("IP range", range.to_string(), format!("is not in pool {net}"))
                .hint("name the --subnet that it is a part of")
                .into());
        }
        let configured = matches!(request.net, PoolNet::Exactly(_));
        Ok(Pool {
            id: self.random_id(),
            holder: claims.holder,
            subnet: Subnet { range: request.range, ..Subnet::new(net, configured) },
            network: None,
            created: self.kernel.now(),
        })
    }

    /// A subnet that nobody has, as networks get one that ask for none.
    fn free_subnet(&self, tx: &S::Tx<'_>, family: Family, prefix: Option<u8>) -> Result<IpNet> {
        let kernel = |source| Error::Kernel { doing: "list the host's routes".to_owned(), source };
        let (networks, pools, routes) = (tx.networks()?, tx.pools()?, self.kernel.routes().map_err(kernel)?);
        let interface_name = |index| self.kernel.interface_name(index);
        let occupied = Occupied::new(&networks, &routes, &interface_name).with_pools(&pools);
        let (usual, least, most) = match family {
            Family::V4 => (ipam::POOL_PREFIX, 8, 30),
            Family::V6 => (ipam::POOL_PREFIX6, ipam::POOL_PREFIX6, 126),
        };
        let prefix = prefix.unwrap_or(usual);
        if prefix < least || prefix > most {
            let why = format!("is not between /{least} and /{most}, as subnets of {family} are that are not named");
            return Err(Invalid::new("prefix length", prefix.to_string(), why).hint("name a --subnet").into());
        }
        Ok(match family {
            Family::V4 => IpNet::V4(occupied.free_v4(prefix)?),
            Family::V6 => {
                let name: Name = "docker".parse().expect("letters are a name");
                let net = occupied.free_v6(&tx.meta(meta::ULA)?.unwrap_or_default(), &name)?;
                IpNet::new(net.network().into(), prefix).expect("longer than a prefix that fits")
            }
        })
    }

    /// Takes a pool back, with all its addresses; nothing happens when it is not there.
    ///
    /// # Errors
    /// When the store cannot serve.
    pub fn release_pool(&self, id: Id) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        tx.delete_pool(id)?;
        Ok(tx.commit(Durability::Disk)?)
    }

    /// Gives an address of a pool.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::AddressTaken`], [`Error::AddressOutside`], [`Error::AddressesExhausted`].
    pub fn request_address(&self, call: Call<'_>, id: Id, request: &AddressRequest) -> Result<Given<IpNet>> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let mut claims = self.claims(&tx)?;
        let mut pool = tx.pool(id)?.ok_or_else(|| Error::NotFound { what: "pool", name: id.to_string() })?;
        self.forget_used(&tx, &mut claims)?;
        let address = match claims.repeated(call).and_then(|lost| lost.address) {
            Some(address) => address,
            None => self.plan_address(&tx, &claims, &pool, request)?,
        };
        let ip = address.addr();
        if tx.lease(id, ip)?.is_some_and(|lease| lease.endpoint.is_some_and(|holder| holder != claims.holder)) {
            tx.rest_lease(id, address)?;
        }
        let mac = request.mac.unwrap_or_else(|| generated_mac(id, ip));
        tx.take_lease(id, ip, claims.holder, mac)?;
        if request.gateway && pool.subnet.gateway.is_none() {
            pool.subnet.gateway = Some(ip);
            tx.put_pool(&pool)?;
        }
        let number = claims.record(call, id, Some(address));
        self.put_claims(&tx, &claims)?;
        tx.commit(Durability::Process)?;
        Ok(Given { what: address, number })
    }

    /// Decides which address is given.
    fn plan_address(&self, tx: &S::Tx<'_>, claims: &Claims, pool: &Pool, request: &AddressRequest) -> Result<IpNet> {
        let with_prefix = |ip| IpNet::new(ip, pool.subnet.net.prefix_len()).expect("it is in a subnet of its family");
        let space = Space::of_pool(pool);
        let Some(wanted) = request.address.or(pool.subnet.gateway.filter(|_| request.gateway)) else {
            return match request.gateway {
                true => ipam::lowest(tx, &space, &pool.subnet),
                false => Ok(ipam::allocate_of(tx, &space, std::slice::from_ref(&pool.subnet))?.address),
            };
        };
        let holder = tx.lease(pool.id, wanted)?.and_then(|lease| lease.endpoint);
        let is_claimed_anew = holder.is_some_and(|holder| holder != claims.holder);
        // Who asks for the gateway is told which it is, however often.
        let is_gateway = request.gateway && pool.subnet.gateway == Some(wanted);
        if is_claimed_anew || is_gateway {
            return Ok(with_prefix(wanted));
        }
        let name = |_| Ok("somebody: it is already in use".to_owned());
        Ok(ipam::request(tx, &space, wanted, name)?.address)
    }

    /// Takes an address back; nothing happens when it was not given.
    ///
    /// # Errors
    /// When the store cannot serve.
    pub fn release_address(&self, id: Id, address: IpAddr) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let Some(pool) = tx.pool(id)? else { return Ok(()) };
        self.rest_address(&tx, &pool, address)?;
        let mut claims = self.claims(&tx)?;
        let count = claims.calls.len();
        claims.calls.retain(|call| call.pool != id || call.address.is_none_or(|given| given.addr() != address));
        if claims.calls.len() < count {
            self.put_claims(&tx, &claims)?;
        }
        Ok(tx.commit(Durability::Process)?)
    }

    fn rest_address(&self, tx: &S::Tx<'_>, pool: &Pool, address: IpAddr) -> Result<()> {
        if tx.lease(pool.id, address)?.is_some_and(|lease| lease.endpoint.is_some()) {
            let held = IpNet::new(address, pool.subnet.net.prefix_len()).expect("it is in a subnet of its family");
            tx.rest_lease(pool.id, held)?;
        }
        if pool.subnet.gateway == Some(address) {
            let subnet = Subnet { gateway: None, ..pool.subnet.clone() };
            tx.put_pool(&Pool { subnet, ..pool.clone() })?;
        }
        Ok(())
    }

    /// All pools, by subnet, with how many of their addresses are taken.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn pools(&self) -> Result<Vec<(Pool, usize)>> {
        self.ensure_readable()?;
        let tx = self.store.read()?;
        let counted = |pool: Pool| {
            let taken = tx.lease_count(pool.id, pool.subnet.family())?;
            Ok((pool, taken))
        };
        tx.pools()?.into_iter().map(counted).collect()
    }

    /// Takes note that whoever asks for pools begins, as `process` if that can be told.
    ///
    /// If it began after this process did, it could be heard from its first moment on: what it does not ask for again until
    /// [`Engine::end_claims`] is taken back. Of one that began before us nobody knows what it has said to whom, and two at
    /// a time do not speak for each other: then everything stays as it was.
    ///
    /// # Errors
    /// When the store cannot serve.
    pub fn begin_claims(&self, process: Option<ProcessId>) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let mut claims = self.claims(&tx)?;
        let before = claims.process;
        if process.is_some() && before == process {
            return Ok(());
        }
        let is_alone = before.is_none_or(|other| !self.kernel.process_alive(other));
        if is_alone {
            let ours = self.kernel.this_process();
            let is_heard = process.is_some_and(|process| process.started >= ours.started);
            if is_heard || process.is_none() {
                claims.holder = self.random_id();
            }
            claims.replaying = is_heard;
            claims.calls.clear();
            claims.process = process;
        }
        self.put_claims(&tx, &claims)?;
        Ok(tx.commit(Durability::Disk)?)
    }

    /// Takes note that whoever asks for pools has said what it claims: what it did not is taken back, and so are networks of
    /// ours on such pools, unless somebody is on them.
    ///
    /// # Errors
    /// When the store cannot serve, or the kernel refuses to let a network go.
    pub fn end_claims(&self) -> Result<()> {
        if !self.read_claims()?.is_some_and(|claims| claims.replaying) {
            return Ok(());
        }
        let guard = self.begin()?;
        let tx = self.store.read()?;
        let (claims, pools) = (self.claims(&tx)?, tx.pools()?);
        drop(tx);
        for pool in pools {
            if pool.holder != claims.holder && !self.clear_pool(&guard, &pool)? {
                let tx = self.store.write(&guard)?;
                tx.put_pool(&Pool { holder: claims.holder, ..pool })?;
                tx.commit(Durability::Disk)?;
                continue;
            }
            let tx = self.store.write(&guard)?;
            if pool.holder != claims.holder {
                tracing::info!(net = %pool.subnet.net, "nobody claims the pool: taking it back");
                tx.delete_pool(pool.id)?;
            }
            for (address, _) in tx.leases(pool.id)?.into_iter().filter(|(_, holder)| *holder != claims.holder) {
                tracing::info!(%address, "nobody claims the address: taking it back");
                let pool = tx.pool(pool.id)?.ok_or_else(|| Error::NotFound { what: "pool", name: pool.id.short() })?;
                self.rest_address(&tx, &pool, address)?;
            }
            tx.commit(Durability::Disk)?;
        }
        let tx = self.store.write(&guard)?;
        self.put_claims(&tx, &Claims { replaying: false, ..claims })?;
        Ok(tx.commit(Durability::Disk)?)
    }

    /// Removes the network of ours on a pool, if there is one; answers whether none is left.
    fn clear_pool(&self, guard: &S::Guard<'_>, pool: &Pool) -> Result<bool> {
        let tx = self.store.read()?;
        let Some(network) = pool.network.map(|id| tx.network(id)).transpose()?.flatten() else { return Ok(true) };
        drop(tx);
        self.reap_network(guard, &network)?;
        if self.store.read()?.endpoint_count(network.id, 1)? > 0 {
            return Ok(false);
        }
        tracing::info!(network = %network.name, "nobody claims its pool: taking it down");
        self.take_down_network(guard, network).map(|()| true)
    }

    /// Takes note that this process is the one that answers now: what another had given and not said is nobody's.
    ///
    /// What began to claim while nobody heard it may have said only half of it: nothing is taken back then.
    ///
    /// # Errors
    /// When the store cannot serve.
    pub fn begin_answering(&self) -> Result<()> {
        if self.read_claims()?.is_none() {
            return Ok(());
        }
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let mut claims = self.claims(&tx)?;
        claims.replaying = false;
        self.forget_used(&tx, &mut claims)?;
        claims.calls.iter_mut().for_each(|call| call.lost = true);
        self.put_claims(&tx, &claims)?;
        Ok(tx.commit(Durability::Process)?)
    }

    /// Takes note that the answer with this number is being sent: from now on somebody may have what was given. Said before,
    /// for what somebody has is not to be given again; but an address for a network of ours that has no endpoint with it when
    /// we begin anew, which is given to who asks in the same words.
    ///
    /// # Errors
    /// When the store cannot serve.
    pub fn answered(&self, number: u64) -> Result<()> {
        let guard = self.begin()?;
        let tx = self.store.write(&guard)?;
        let mut claims = self.claims(&tx)?;
        let Some(at) = claims.calls.iter().position(|call| call.number == number) else { return Ok(()) };
        let call = &mut claims.calls[at];
        let pool = call.address.map(|_| tx.pool(call.pool)).transpose()?.flatten();
        let is_gateway = |pool: &Pool| pool.subnet.gateway == call.address.map(|address| address.addr());
        call.sent = pool.is_some_and(|pool| pool.network.is_some() && !is_gateway(&pool));
        if !call.sent {
            claims.calls.remove(at);
        }
        self.forget_used(&tx, &mut claims)?;
        self.put_claims(&tx, &claims)?;
        Ok(tx.commit(Durability::Process)?)
    }

    /// Forgets the calls of which it shows that they were answered.
    fn forget_used(&self, tx: &S::Tx<'_>, claims: &mut Claims) -> Result<()> {
        let mut rest = Vec::new();
        for call in claims.calls.drain(..) {
            let network = tx.pool(call.pool)?.and_then(|pool| pool.network);
            let lease = match (network, call.address) {
                (Some(network), Some(address)) if call.sent => tx.lease(network, address.addr())?,
                _ => None,
            };
            if lease.is_none_or(|lease| lease.endpoint.is_none()) {
                rest.push(call);
            }
        }
        claims.calls = rest;
        Ok(())
    }

    /// The pool that a network is to be made on.
    pub(crate) fn pool_for_network(&self, tx: &S::Tx<'_>, net: IpNet) -> Result<Pool> {
        let missing = || Error::NotFound { what: "pool", name: net.to_string() };
        let pool = tx.pool_overlapping(net)?.filter(|pool| pool.subnet.net == net).ok_or_else(missing)?;
        match pool.network.map(|id| tx.network(id)).transpose()?.flatten() {
            Some(other) => Err(Error::Overlap { subnet: net, other: ipam::network_in_the_way(&other, net) }),
            None => Ok(pool),
        }
    }

    fn read_claims(&self) -> Result<Option<Claims>> {
        let text = self.store.read()?.meta(meta::CLAIMS)?;
        Ok(text.and_then(|text| serde_json::from_str(&text).ok()))
    }

    fn claims(&self, tx: &S::Tx<'_>) -> Result<Claims> {
        let found = tx.meta(meta::CLAIMS)?.and_then(|text| serde_json::from_str(&text).ok());
        let new = || Claims { holder: self.random_id(), process: None, replaying: false, calls: Vec::new(), next: 0 };
        Ok(found.unwrap_or_else(new))
    }

    fn put_claims(&self, tx: &S::Tx<'_>, claims: &Claims) -> Result<()> {
        Ok(tx.put_meta(meta::CLAIMS, Some(&encode(claims)))?)
    }
}
