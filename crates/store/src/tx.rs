use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::SystemTime;

use ipnet::IpNet;
use portolan_engine::{
    Durability, LeaseRow, PublicationRow, Remotes as _, RestingLease, StoreError, Touched, Transition, Tx,
};
use portolan_model::{Container, Endpoint, Family, Id, Mac, Network, Phase, Pool, PortRange, Protocol, Publication};
use rusqlite::types::{FromSql, FromSqlError, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Params, Row, params};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::{COMMIT, Fault, Misuse, READ, WRITE, corrupt, from_sqlite, other};
use crate::{SqliteStore, sql};

/// Resting leases kept in a subnet so large that its addresses never run out.
const RESTING_KEPT: i64 = 1024;

/// IPv6 prefixes shorter than this (2^20 addresses, as many as an IPv4 /12) are such subnets. In smaller ones a
/// forgotten address would never be handed out again.
const ENDLESS_PREFIX: u8 = 108;

/// Commits that the log of changes keeps at least; whoever follows it and falls behind further reads everything anew.
const CHANGES_KEPT: i64 = 4096;

/// How often old commits are forgotten: one in so many.
const FORGET_EVERY: i64 = 256;

/// A transaction of a [`SqliteStore`], on a connection of its own.
#[derive(Debug)]
pub struct SqliteTx<'a> {
    store: &'a SqliteStore,
    /// None once given back.
    connection: Option<Connection>,
    writable: bool,
    /// The latest number given to a row in transition.
    moved: Cell<i64>,
    /// What this transaction changed.
    touched: RefCell<BTreeSet<Touched>>,
}

/// The body of a publication's row; the container is a column.
#[derive(Serialize, Deserialize)]
struct PublicationBody {
    publication: Publication,
    phase: Phase,
}

/// What all bodies have in common.
#[derive(Deserialize)]
struct PhaseOnly {
    phase: Phase,
}

impl<'a> SqliteTx<'a> {
    pub(crate) fn begin(store: &'a SqliteStore, connection: Connection, writable: bool) -> Result<Self, StoreError> {
        let fail = |e| from_sqlite(if writable { WRITE } else { READ }, store.path(), e);
        let begin = if writable { sql::BEGIN_WRITE } else { sql::BEGIN_READ };
        connection.prepare_cached(begin).and_then(|mut s| s.execute([])).map_err(fail)?;
        Ok(Self { store, connection: Some(connection), writable, moved: Cell::new(0), touched: RefCell::default() })
    }

    pub(crate) fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("the connection is given back by commit and drop only")
    }

    pub(crate) fn path(&self) -> &Path {
        self.store.path()
    }

    pub(crate) fn read_error(&self, error: rusqlite::Error) -> StoreError {
        from_sqlite(READ, self.path(), error)
    }

    fn parse<T: DeserializeOwned>(&self, body: &str) -> Result<T, StoreError> {
        serde_json::from_str(body).map_err(|e| corrupt(self.path(), e))
    }

    pub(crate) fn render<T: Serialize>(&self, row: &T) -> Result<String, StoreError> {
        serde_json::to_string(row).map_err(|e| other(WRITE, self.path(), e))
    }

    /// What `take` makes of each row.
    pub(crate) fn rows<T>(
        &self,
        sql: &str,
        params: impl Params,
        mut take: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = self.connection().prepare_cached(sql).map_err(|e| self.read_error(e))?;
        let mut rows = statement.query(params).map_err(|e| self.read_error(e))?;
        let mut all = Vec::new();
        while let Some(row) = rows.next().map_err(|e| self.read_error(e))? {
            all.push(take(row)?);
        }
        Ok(all)
    }

    /// The body in column `index`.
    fn body<T: DeserializeOwned>(&self, row: &Row<'_>, index: usize) -> Result<T, StoreError> {
        let text = row.get_ref(index).and_then(|v| v.as_str().map_err(|e| wrong(index, v, e)));
        self.parse(text.map_err(|e| self.read_error(e))?)
    }

    pub(crate) fn bodies<T: DeserializeOwned>(&self, sql: &str, params: impl Params) -> Result<Vec<T>, StoreError> {
        self.rows(sql, params, |row| self.body(row, 0))
    }

    pub(crate) fn maybe_body<T: DeserializeOwned>(
        &self,
        sql: &str,
        params: impl Params,
    ) -> Result<Option<T>, StoreError> {
        Ok(self.bodies(sql, params)?.pop())
    }

    /// The first row of a query, if there is one.
    pub(crate) fn maybe<T>(
        &self,
        sql: &str,
        params: impl Params,
        take: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, StoreError> {
        let statement = self.connection().prepare_cached(sql);
        statement.and_then(|mut s| s.query_row(params, take).optional()).map_err(|e| self.read_error(e))
    }

    /// The one row of a query that always has one.
    fn always<T: FromSql>(&self, sql: &str, params: impl Params) -> Result<T, StoreError> {
        let statement = self.connection().prepare_cached(sql);
        statement.and_then(|mut s| s.query_row(params, |row| row.get(0))).map_err(|e| self.read_error(e))
    }

    /// Changes rows; says how many.
    pub(crate) fn change(&self, sql: &str, params: impl Params) -> Result<usize, StoreError> {
        if !self.writable {
            return Err(other(WRITE, self.path(), Misuse::ReadOnly));
        }
        let statement = self.connection().prepare_cached(sql);
        statement.and_then(|mut s| s.execute(params)).map_err(|e| from_sqlite(WRITE, self.path(), e))
    }

    /// Puts a row with the first of `statements` that changes one.
    fn put<const N: usize>(&self, statements: [&str; N], params: &[&dyn ToSql]) -> Result<(), StoreError> {
        for sql in statements {
            if self.change(sql, params)? > 0 {
                break;
            }
        }
        Ok(())
    }

    /// When a row left the settled state, unless it had left it before: the statements keep the earlier number.
    ///
    /// In microseconds since 1970, so that no statement is needed to find the next number. A clock that is set
    /// back costs the order in which rows in transition are listed, nothing else.
    fn moving(&self, phase: Phase) -> Option<i64> {
        if phase.is_settled() {
            return None;
        }
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now = i64::try_from(since.as_micros()).unwrap_or(i64::MAX - 1);
        self.moved.set(now.max(self.moved.get() + 1));
        Some(self.moved.get())
    }

    fn publication(&self, row: &Row<'_>) -> Result<PublicationRow, StoreError> {
        let container = row.get(0).map_err(|e| self.read_error(e))?;
        let PublicationBody { publication, phase } = self.body(row, 1)?;
        Ok(PublicationRow { container: Id::from_bytes(container), publication, phase })
    }

    fn address(&self, bytes: &[u8]) -> Result<IpAddr, StoreError> {
        if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
            Ok(v4.into())
        } else if let Ok(v6) = <[u8; 16]>::try_from(bytes) {
            Ok(v6.into())
        } else {
            Err(corrupt(self.path(), Fault::Address(bytes.len())))
        }
    }

    pub(crate) fn touch(&self, what: Touched) {
        self.touched.borrow_mut().insert(what);
    }

    /// Writes down what this transaction changed, if anything that somebody may follow.
    fn log_change(&self) -> Result<(), StoreError> {
        let touched = self.touched.take();
        if touched.is_empty() {
            return Ok(());
        }
        self.change(sql::ADD_CHANGE, [encode(&touched)])?;
        let revision = self.connection().last_insert_rowid();
        if revision % FORGET_EVERY == 0 {
            self.change(sql::FORGET_CHANGES, [revision - CHANGES_KEPT])?;
        }
        Ok(())
    }

    /// Forgets the addresses that have rested longest beside `held`, in a subnet that has more than enough.
    fn forget_resting(&self, network: Id, held: IpNet) -> Result<(), StoreError> {
        let IpNet::V6(held) = held else { return Ok(()) };
        if held.prefix_len() < ENDLESS_PREFIX {
            let (first, last) = (held.network().octets(), held.broadcast().octets());
            let params = params![network.as_bytes(), number(Family::V6), first, last, RESTING_KEPT];
            self.change(sql::FORGET_RESTING, params)?;
        }
        Ok(())
    }

    fn decode(&self, bytes: &[u8]) -> Result<Vec<Touched>, StoreError> {
        let (entries, rest) = bytes.as_chunks::<33>();
        let wrong = || corrupt(self.path(), Fault::Touched(bytes.len()));
        if !rest.is_empty() {
            return Err(wrong());
        }
        let entry = |entry: &[u8; 33]| {
            let (kind, id) = entry.split_first().expect("33 bytes are more than none");
            let id = Id::from_bytes(id.try_into().expect("32 bytes are left"));
            match kind {
                0 => Ok(Touched::Network(id)),
                1 => Ok(Touched::Container(id)),
                2 => Ok(Touched::Remote(id)),
                _ => Err(wrong()),
            }
        };
        entries.iter().map(entry).collect()
    }

    /// Ends the transaction either way and keeps the connection for the next one.
    fn end(&mut self, how: &'static str) -> rusqlite::Result<()> {
        let Some(connection) = self.connection.take() else { return Ok(()) };
        let mut ended = connection.prepare_cached(how).and_then(|mut s| s.execute([])).map(drop);
        if ended.is_err() && !connection.is_autocommit() {
            // A commit that failed for want of room leaves the transaction open.
            let _ = connection.prepare_cached(sql::ROLLBACK).and_then(|mut s| s.execute([]));
        } else if how == sql::ROLLBACK {
            // Some failures roll back by themselves, and then there is nothing left to end.
            ended = Ok(());
        }
        if connection.is_autocommit() {
            self.store.give_back(connection);
        }
        ended
    }
}

impl Drop for SqliteTx<'_> {
    fn drop(&mut self) {
        let _ = self.end(sql::ROLLBACK);
    }
}

impl Tx for SqliteTx<'_> {
    fn commit(mut self, durability: Durability) -> Result<(), StoreError> {
        self.log_change()?;
        self.end(sql::COMMIT).map_err(|e| from_sqlite(COMMIT, self.path(), e))?;
        if self.writable && durability == Durability::Disk { self.store.sync() } else { Ok(()) }
    }

    fn meta(&self, key: &str) -> Result<Option<String>, StoreError> {
        self.maybe(sql::META, [key], |row| row.get(0))
    }

    fn put_meta(&self, key: &str, value: Option<&str>) -> Result<(), StoreError> {
        match value {
            Some(value) => self.change(sql::PUT_META, [key, value])?,
            None => self.change(sql::DELETE_META, [key])?,
        };
        Ok(())
    }

    fn network(&self, id: Id) -> Result<Option<Network>, StoreError> {
        self.maybe_body(sql::NETWORK, [id.as_bytes()])
    }

    fn network_named(&self, name: &str) -> Result<Option<Network>, StoreError> {
        self.maybe_body(sql::NETWORK_NAMED, [name])
    }

    fn networks_with_prefix(&self, prefix: &str) -> Result<Vec<Network>, StoreError> {
        match bounds(prefix) {
            Some((low, high)) => self.bodies(sql::NETWORKS_WITH_PREFIX, [low, high]),
            None => Ok(Vec::new()),
        }
    }

    fn networks(&self) -> Result<Vec<Network>, StoreError> {
        self.bodies(sql::NETWORKS, [])
    }

    fn put_network(&self, network: &Network) -> Result<(), StoreError> {
        let (id, name) = (network.id.as_bytes(), network.name.as_str());
        let is_bridge = network.is_managed_bridge();
        let device = (is_bridge || network.subinterface.is_some()).then_some(network.bridge.as_str());
        let is_users = network.is_ruled() && !network.is_predefined();
        let ruled = is_users.then_some(if network.overlay.is_some() { 2 } else { 1 });
        let (moving, body) = (self.moving(network.phase), self.render(network)?);
        self.touch(Touched::Network(network.id));
        let row = params![id, name, device, ruled, moving, body];
        if self.change(sql::MOVE_NETWORK, row)? > 0 {
            // A network keeps its subnets.
            return Ok(());
        }
        self.put([sql::ADD_NETWORK, sql::REPLACE_NETWORK], row)?;
        self.change(sql::DELETE_CLAIMS, [id])?;
        for net in network.subnets.iter().map(|subnet| subnet.net).filter(|_| is_users) {
            let (family, first, last) = ends(net);
            self.change(sql::CLAIM, params![family, first, last, id])?;
        }
        Ok(())
    }

    fn delete_network(&self, id: Id) -> Result<(), StoreError> {
        self.touch(Touched::Network(id));
        self.change(sql::DELETE_NETWORK, [id.as_bytes()])?;
        self.change(sql::DELETE_RESTING, [id.as_bytes()])?;
        self.change(sql::DELETE_CURSORS, [id.as_bytes()])?;
        self.change(sql::DELETE_CLAIMS, [id.as_bytes()])?;
        self.change(sql::DELETE_REMOTE_BLOCKS, [id.as_bytes()])?;
        let remote = self.rows(sql::REMOTE_ENDPOINT_IDS, [id.as_bytes()], |row| {
            row.get(0).map(Id::from_bytes).map_err(|e| self.read_error(e))
        })?;
        remote.into_iter().try_for_each(|id| self.delete_remote_endpoint(id))
    }

    fn network_of_device(&self, name: &str) -> Result<Option<Network>, StoreError> {
        self.maybe_body(sql::NETWORK_OF_DEVICE, [name])
    }

    fn claimant(&self, net: IpNet) -> Result<Option<Id>, StoreError> {
        let (family, first, last) = ends(net);
        let found = self.maybe(sql::CLAIMANT, params![family, first, last], |row| row.get::<_, Option<[u8; 32]>>(0))?;
        Ok(found.flatten().map(Id::from_bytes))
    }

    fn has_user_bridges(&self) -> Result<bool, StoreError> {
        self.always(sql::HAS_USER_BRIDGES, [])
    }

    fn overlay_in_use(&self) -> Result<Option<Network>, StoreError> {
        self.maybe_body(sql::OVERLAY_IN_USE, [])
    }

    fn container(&self, id: Id) -> Result<Option<Container>, StoreError> {
        self.maybe_body(sql::CONTAINER, [id.as_bytes()])
    }

    fn container_named(&self, name: &str) -> Result<Option<Container>, StoreError> {
        self.maybe_body(sql::CONTAINER_NAMED, [name])
    }

    fn containers_with_prefix(&self, prefix: &str) -> Result<Vec<Container>, StoreError> {
        match bounds(prefix) {
            Some((low, high)) => self.bodies(sql::CONTAINERS_WITH_PREFIX, [low, high]),
            None => Ok(Vec::new()),
        }
    }

    /// The container whose sandbox is this namespace; the oldest where several share it.
    fn container_in(&self, device: u64, inode: u64) -> Result<Option<Container>, StoreError> {
        self.maybe_body(sql::CONTAINER_IN, [device.cast_signed(), inode.cast_signed()])
    }

    fn container_ids(&self) -> Result<Vec<Id>, StoreError> {
        self.rows(sql::CONTAINER_IDS, [], |row| row.get(0).map(Id::from_bytes).map_err(|e| self.read_error(e)))
    }

    fn containers(&self) -> Result<Vec<Container>, StoreError> {
        self.bodies(sql::CONTAINERS, [])
    }

    fn put_container(&self, container: &Container) -> Result<(), StoreError> {
        let device = container.sandbox.as_ref().map(|s| s.device.cast_signed());
        let inode = container.sandbox.as_ref().map(|s| s.inode.cast_signed());
        let (id, name) = (container.id.as_bytes(), container.name.as_str());
        let (moving, body) = (self.moving(container.phase), self.render(container)?);
        self.touch(Touched::Container(container.id));
        self.put(
            [sql::MOVE_CONTAINER, sql::ADD_CONTAINER, sql::REPLACE_CONTAINER],
            params![id, name, device, inode, moving, body],
        )
    }

    fn delete_container(&self, id: Id) -> Result<(), StoreError> {
        self.touch(Touched::Container(id));
        self.change(sql::DELETE_CONTAINER, [id.as_bytes()])?;
        Ok(())
    }

    fn endpoints_of(&self, container: Id) -> Result<Vec<Endpoint>, StoreError> {
        self.bodies(sql::ENDPOINTS_OF, [container.as_bytes()])
    }

    fn endpoints_on(&self, network: Id) -> Result<Vec<Endpoint>, StoreError> {
        self.bodies(sql::ENDPOINTS_ON, [network.as_bytes()])
    }

    fn endpoint_count(&self, network: Id, limit: usize) -> Result<usize, StoreError> {
        let count = self.always::<i64>(sql::ENDPOINT_COUNT, params![network.as_bytes(), at_most(limit)])?;
        Ok(usize::try_from(count).expect("a count is not negative"))
    }

    fn host_end_taken(&self, host_end: &str) -> Result<bool, StoreError> {
        self.always(sql::HOST_END_TAKEN, [host_end])
    }

    fn put_endpoint(&self, endpoint: &Endpoint) -> Result<(), StoreError> {
        let (id, network, container) =
            (endpoint.id.as_bytes(), endpoint.network.as_bytes(), endpoint.container.as_bytes());
        let (ifname, host_end, mac) = (endpoint.ifname.as_str(), endpoint.host_end.as_str(), endpoint.mac.octets());
        let (moving, body) = (self.moving(endpoint.phase), self.render(endpoint)?);
        let all = params![id, network, container, ifname, host_end, mac, moving, body];
        self.touch(Touched::Container(endpoint.container));
        self.put([sql::MOVE_ENDPOINT, sql::ADD_ENDPOINT, sql::REPLACE_ENDPOINT], all)
    }

    fn delete_endpoint(&self, id: Id) -> Result<(), StoreError> {
        let Some(endpoint) = self.endpoint(id)? else { return Ok(()) };
        self.touch(Touched::Container(endpoint.container));
        self.change(sql::DELETE_ENDPOINT, [id.as_bytes()])?;
        self.change(sql::REST_LEASES, [id.as_bytes()])?;
        endpoint.addresses.iter().try_for_each(|held| self.forget_resting(endpoint.network, held.address))
    }

    fn endpoint_at(&self, host_end: &str) -> Result<Option<Endpoint>, StoreError> {
        self.maybe_body(sql::ENDPOINT_AT, [host_end])
    }

    fn mac_holder(&self, network: Id, mac: Mac) -> Result<Option<Id>, StoreError> {
        let found = self.maybe(sql::MAC_HOLDER, params![network.as_bytes(), mac.octets()], |row| row.get(0))?;
        Ok(found.map(Id::from_bytes))
    }

    fn endpoint(&self, id: Id) -> Result<Option<Endpoint>, StoreError> {
        self.maybe_body(sql::ENDPOINT, [id.as_bytes()])
    }

    fn lease(&self, network: Id, address: IpAddr) -> Result<Option<LeaseRow>, StoreError> {
        let params = params![network.as_bytes(), number(Family::of(address)), Octets::of(address)];
        self.maybe(sql::LEASE, params, |row| {
            let endpoint = row.get::<_, Option<[u8; 32]>>(0)?;
            let mac = row.get::<_, Option<[u8; 6]>>(1)?;
            Ok(LeaseRow { endpoint: endpoint.map(Id::from_bytes), mac: mac.map(Mac::from_bytes) })
        })
    }

    fn take_lease(&self, network: Id, address: IpAddr, endpoint: Id, mac: Mac) -> Result<(), StoreError> {
        let (family, octets) = (number(Family::of(address)), Octets::of(address));
        let params = params![network.as_bytes(), family, octets, endpoint.as_bytes(), mac.octets()];
        match self.change(sql::TAKE_LEASE, params)? {
            0 => Err(other(WRITE, self.path(), Misuse::Leased(address))),
            _ => Ok(()),
        }
    }

    fn rest_lease(&self, network: Id, address: IpNet) -> Result<(), StoreError> {
        let (ip, family) = (address.addr(), number(Family::of(address.addr())));
        self.change(sql::REST_LEASE, params![network.as_bytes(), family, Octets::of(ip)])?;
        self.forget_resting(network, address)
    }

    fn leases(&self, network: Id) -> Result<Vec<(IpAddr, Id)>, StoreError> {
        self.rows(sql::LEASES, [network.as_bytes()], |row| {
            let read = || Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, [u8; 32]>(1)?));
            let (address, holder) = read().map_err(|e| self.read_error(e))?;
            Ok((self.address(&address)?, Id::from_bytes(holder)))
        })
    }

    fn pool(&self, id: Id) -> Result<Option<Pool>, StoreError> {
        self.maybe_body(sql::POOL, [id.as_bytes()])
    }

    fn pools(&self) -> Result<Vec<Pool>, StoreError> {
        self.bodies(sql::POOLS, [])
    }

    fn pool_overlapping(&self, net: IpNet) -> Result<Option<Pool>, StoreError> {
        let (family, first, last) = ends(net);
        let found =
            self.maybe(sql::POOL_OVERLAPPING, params![family, first, last], |row| row.get::<_, Option<String>>(0))?;
        found.flatten().map(|body| self.parse(&body)).transpose()
    }

    fn put_pool(&self, pool: &Pool) -> Result<(), StoreError> {
        let (family, first, last) = ends(pool.subnet.net);
        let body = self.render(pool)?;
        self.change(sql::PUT_POOL, params![pool.id.as_bytes(), family, first, last, body])?;
        Ok(())
    }

    fn delete_pool(&self, id: Id) -> Result<(), StoreError> {
        self.change(sql::DELETE_POOL, [id.as_bytes()])?;
        self.change(sql::DELETE_LEASES, [id.as_bytes()])?;
        self.change(sql::DELETE_CURSORS, [id.as_bytes()])?;
        Ok(())
    }

    fn lease_cursor(&self, network: Id, subnet: IpNet) -> Result<Option<IpAddr>, StoreError> {
        let params = params![network.as_bytes(), subnet.to_string()];
        let found = self.maybe(sql::LEASE_CURSOR, params, |row| row.get::<_, Vec<u8>>(0))?;
        found.map(|bytes| self.address(&bytes)).transpose()
    }

    fn put_lease_cursor(&self, network: Id, subnet: IpNet, cursor: IpAddr) -> Result<(), StoreError> {
        let params = params![network.as_bytes(), subnet.to_string(), Octets::of(cursor)];
        self.change(sql::PUT_LEASE_CURSOR, params)?;
        Ok(())
    }

    /// The address in `first..=last` that has rested longest: the first entry of the network's index of resting
    /// addresses, unless the family has several ranges and older ones rest in another.
    fn oldest_resting(&self, network: Id, first: IpAddr, last: IpAddr) -> Result<Option<RestingLease>, StoreError> {
        let (low, high) = (Octets::of(first), Octets::of(last));
        let params = params![network.as_bytes(), number(Family::of(first)), low, high];
        let found = self.maybe(sql::OLDEST_RESTING, params, |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Option<[u8; 6]>>(1)?))
        })?;
        found
            .map(|(bytes, mac)| Ok(RestingLease { address: self.address(&bytes)?, mac: mac.map(Mac::from_bytes) }))
            .transpose()
    }

    /// How many addresses of `family` a network has leased, counted one by one.
    fn lease_count(&self, network: Id, family: Family) -> Result<usize, StoreError> {
        let count = self.always::<i64>(sql::LEASE_COUNT, params![network.as_bytes(), number(family)])?;
        Ok(usize::try_from(count).expect("a count is not negative"))
    }

    fn publications_of(&self, container: Id) -> Result<Vec<PublicationRow>, StoreError> {
        self.rows(sql::PUBLICATIONS_OF, [container.as_bytes()], |row| self.publication(row))
    }

    fn publications_overlapping(
        &self,
        protocol: Protocol,
        ports: PortRange,
    ) -> Result<Vec<PublicationRow>, StoreError> {
        // A row of span n covers 2^n to 2^(n+1)-1 ports, so one that starts more than 2^(n+1)-2 ports before the
        // first port wanted ends before it, too: each span is one short walk of the index.
        let mut found = Vec::new();
        for span in 0..16u32 {
            let (first, last) = (i64::from(ports.first()), ports.last());
            let reach = (2i64 << span) - 2;
            let params = params![protocol.number(), span, first - reach, first, last];
            found.extend(self.rows(sql::PUBLICATIONS_OVERLAPPING, params, |row| {
                let seq: i64 = row.get(2).map_err(|e| self.read_error(e))?;
                Ok((seq, self.publication(row)?))
            })?);
        }
        found.sort_unstable_by_key(|(seq, _)| *seq);
        Ok(found.into_iter().map(|(_, row)| row).collect())
    }

    fn put_publication(&self, row: &PublicationRow) -> Result<(), StoreError> {
        let PublicationRow { container, publication, phase } = row;
        self.touch(Touched::Container(*container));
        let (id, key) = (container.as_bytes(), key(publication));
        let moving = self.moving(*phase);
        let body = self.render(&PublicationBody { publication: *publication, phase: *phase })?;
        if self.change(sql::MOVE_PUBLICATION, params![id, key, moving, body])? == 0 {
            let (protocol, host) = (publication.protocol.number(), publication.host);
            let span = host.count().ilog2();
            let all = params![id, key, protocol, span, host.first(), host.last(), moving, body];
            self.change(sql::ADD_PUBLICATION, all)?;
        }
        Ok(())
    }

    fn delete_publication(&self, container: Id, publication: &Publication) -> Result<(), StoreError> {
        self.touch(Touched::Container(container));
        self.change(sql::DELETE_PUBLICATION, params![container.as_bytes(), key(publication)])?;
        Ok(())
    }

    fn transitions(&self, limit: usize) -> Result<Vec<(Transition, Phase)>, StoreError> {
        // Nearly always there are none, and to know that costs a third of what it takes to prepare the listing.
        if self.rows(sql::ANY_TRANSITION, [], |_| Ok(()))?.is_empty() {
            return Ok(Vec::new());
        }
        self.rows(sql::TRANSITIONS, [at_most(limit)], |row| {
            let id = |index| row.get(index).map(Id::from_bytes).map_err(|e| self.read_error(e));
            let transition = match row.get::<_, i64>(0).map_err(|e| self.read_error(e))? {
                0 => Transition::Network(id(2)?),
                1 => Transition::Container(id(2)?),
                2 => Transition::Endpoint { endpoint: id(2)?, container: id(3)? },
                _ => {
                    let PublicationBody { publication, phase } = self.body(row, 4)?;
                    let row = PublicationRow { container: id(3)?, publication, phase };
                    return Ok((Transition::Publication(row), phase));
                }
            };
            Ok((transition, self.body::<PhaseOnly>(row, 4)?.phase))
        })
    }

    fn revision(&self) -> Result<u64, StoreError> {
        Ok(self.always::<i64>(sql::REVISION, [])?.cast_unsigned())
    }

    fn touched_since(&self, revision: u64) -> Result<Option<(u64, BTreeSet<Touched>)>, StoreError> {
        let rows = self.rows(sql::CHANGES_FROM, [revision.cast_signed()], |row| {
            let read = || Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?));
            let (at, touched) = read().map_err(|e| self.read_error(e))?;
            Ok((at.cast_unsigned(), self.decode(&touched)?))
        })?;
        // Revision 0 is before the first commit and has no row.
        let reaches_back = match rows.first() {
            Some((first, _)) => *first == revision || (revision == 0 && *first == 1),
            None => revision == 0,
        };
        if !reaches_back {
            return Ok(None);
        }
        let latest = rows.last().map_or(revision, |(last, _)| *last);
        let touched = rows.into_iter().filter(|(at, _)| *at > revision).flat_map(|(_, touched)| touched).collect();
        Ok(Some((latest, touched)))
    }
}

/// What was touched, as the file writes it: for each a byte for its kind and its id.
fn encode(touched: &BTreeSet<Touched>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(touched.len() * 33);
    for what in touched {
        let (kind, id) = match what {
            Touched::Network(id) => (0, id),
            Touched::Container(id) => (1, id),
            Touched::Remote(id) => (2, id),
        };
        bytes.push(kind);
        bytes.extend(id.as_bytes());
    }
    bytes
}

/// A column that is not what the schema says.
fn wrong(index: usize, value: ValueRef<'_>, error: FromSqlError) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, value.data_type(), error.into())
}

/// An address as the file writes it: its bytes, most significant first.
pub(crate) enum Octets {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl Octets {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(ip) => Self::V4(ip.octets()),
            IpAddr::V6(ip) => Self::V6(ip.octets()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::V4(bytes) => bytes,
            Self::V6(bytes) => bytes,
        }
    }
}

impl ToSql for Octets {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.bytes().into())
    }
}

/// A subnet's family, and its first and last address.
pub(crate) fn ends(net: IpNet) -> (i64, Octets, Octets) {
    (number(Family::of(net.addr())), Octets::of(net.network()), Octets::of(net.broadcast()))
}

/// How the file writes a family.
fn number(family: Family) -> i64 {
    match family {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

fn at_most(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The lowest and the highest id that start with these hexadecimal digits; none if they are not such.
fn bounds(prefix: &str) -> Option<([u8; 32], [u8; 32])> {
    if prefix.len() > 64 {
        return None;
    }
    let (mut low, mut high) = ([0x00; 32], [0xff; 32]);
    for (i, digit) in prefix.chars().enumerate() {
        let digit = u8::try_from(digit.to_digit(16)?).expect("a hexadecimal digit is below 16");
        let (shift, keep) = if i % 2 == 0 { (4, 0x0f) } else { (0, 0xf0) };
        low[i / 2] = low[i / 2] & keep | digit << shift;
        high[i / 2] = high[i / 2] & keep | digit << shift;
    }
    Some((low, high))
}

/// What makes a published port the same as another of its container: protocol, ports and host address in bytes.
fn key(publication: &Publication) -> Vec<u8> {
    let Publication { protocol, host_ip, host, container } = publication;
    let mut key = vec![protocol.number()];
    for port in [host.first(), host.last(), container.first(), container.last()] {
        key.extend(port.to_be_bytes());
    }
    if let Some(ip) = host_ip {
        key.extend(Octets::of(*ip).bytes());
    }
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_of_a_prefix() {
        assert_eq!(bounds(""), Some(([0; 32], [0xff; 32])));
        let (low, high) = bounds("abC").unwrap();
        assert_eq!((&low[..3], &high[..3]), (&[0xab, 0xc0, 0][..], &[0xab, 0xcf, 0xff][..]));
        let id = Id::from_bytes(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(bounds(&id.to_string()), Some((*id.as_bytes(), *id.as_bytes())));
        for none in ["x", "0x", "é", &"a".repeat(65)] {
            assert_eq!(bounds(none), None, "{none}");
        }
    }
}
