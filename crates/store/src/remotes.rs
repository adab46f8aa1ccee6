//! Rows about other hosts.

use ipnet::IpNet;
use portolan_engine::{Remotes, StoreError, Touched};
use portolan_model::{Id, Peer, RemoteBlock, RemoteEndpoint};
use rusqlite::{Params, Row, params};

use crate::error::{Fault, corrupt};
use crate::sql;
use crate::tx::SqliteTx;

impl SqliteTx<'_> {
    fn blocks(&self, sql: &str, params: impl Params) -> Result<Vec<RemoteBlock>, StoreError> {
        self.rows(sql, params, |row: &Row<'_>| {
            let read = || Ok((row.get::<_, [u8; 32]>(0)?, row.get::<_, String>(1)?, row.get::<_, [u8; 32]>(2)?));
            let (network, block, host) = read().map_err(|e| self.read_error(e))?;
            let block = block.parse().map_err(|_| corrupt(self.path(), Fault::Block(block)))?;
            Ok(RemoteBlock { network: Id::from_bytes(network), block, host: Id::from_bytes(host) })
        })
    }
}

impl Remotes for SqliteTx<'_> {
    fn peer(&self, host: Id) -> Result<Option<Peer>, StoreError> {
        self.maybe_body(sql::PEER, [host.as_bytes()])
    }

    fn peers(&self) -> Result<Vec<Peer>, StoreError> {
        self.bodies(sql::PEERS, [])
    }

    fn put_peer(&self, peer: &Peer) -> Result<(), StoreError> {
        self.change(sql::PUT_PEER, params![peer.host.as_bytes(), self.render(peer)?]).map(drop)
    }

    fn delete_peer(&self, host: Id) -> Result<(), StoreError> {
        self.change(sql::DELETE_PEER, [host.as_bytes()]).map(drop)
    }

    fn remote_block(&self, network: Id, block: IpNet) -> Result<Option<Id>, StoreError> {
        let key = params![network.as_bytes(), block.to_string()];
        self.maybe(sql::REMOTE_BLOCK, key, |row| row.get(0).map(Id::from_bytes))
    }

    fn remote_blocks(&self) -> Result<Vec<RemoteBlock>, StoreError> {
        self.blocks(sql::REMOTE_BLOCKS, [])
    }

    fn remote_blocks_of(&self, network: Id) -> Result<Vec<RemoteBlock>, StoreError> {
        self.blocks(sql::REMOTE_BLOCKS_OF, [network.as_bytes()])
    }

    fn remote_blocks_at(&self, host: Id) -> Result<Vec<RemoteBlock>, StoreError> {
        self.blocks(sql::REMOTE_BLOCKS_AT, [host.as_bytes()])
    }

    fn put_remote_block(&self, block: &RemoteBlock) -> Result<(), StoreError> {
        let RemoteBlock { network, block, host } = block;
        let row = params![network.as_bytes(), block.to_string(), host.as_bytes()];
        self.change(sql::PUT_REMOTE_BLOCK, row).map(drop)
    }

    fn delete_remote_block(&self, network: Id, block: IpNet) -> Result<(), StoreError> {
        self.change(sql::DELETE_REMOTE_BLOCK, params![network.as_bytes(), block.to_string()]).map(drop)
    }

    fn remote_endpoint(&self, id: Id) -> Result<Option<RemoteEndpoint>, StoreError> {
        self.maybe_body(sql::REMOTE_ENDPOINT, [id.as_bytes()])
    }

    fn remote_endpoints(&self) -> Result<Vec<RemoteEndpoint>, StoreError> {
        self.bodies(sql::REMOTE_ENDPOINTS, [])
    }

    fn remote_endpoints_of(&self, network: Id) -> Result<Vec<RemoteEndpoint>, StoreError> {
        self.bodies(sql::REMOTE_ENDPOINTS_OF, [network.as_bytes()])
    }

    fn put_remote_endpoint(&self, endpoint: &RemoteEndpoint) -> Result<(), StoreError> {
        self.touch(Touched::Remote(endpoint.id));
        let row = params![endpoint.id.as_bytes(), endpoint.network.as_bytes(), self.render(endpoint)?];
        self.change(sql::PUT_REMOTE_ENDPOINT, row).map(drop)
    }

    fn delete_remote_endpoint(&self, id: Id) -> Result<(), StoreError> {
        self.touch(Touched::Remote(id));
        self.change(sql::DELETE_REMOTE_ENDPOINT, [id.as_bytes()]).map(drop)
    }
}
