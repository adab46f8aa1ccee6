-- What this host has seen of the others of its cluster, so that it goes on without etcd: how they are reached, which addresses
-- of overlay networks they give out, and who is there.
CREATE TABLE peer (
  host BLOB NOT NULL PRIMARY KEY,
  body TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE remote_block (
  network BLOB NOT NULL,
  block TEXT NOT NULL,
  host BLOB NOT NULL,
  PRIMARY KEY (network, block)
) STRICT, WITHOUT ROWID;
CREATE INDEX remote_block_host ON remote_block (host, network);
CREATE TABLE remote_endpoint (
  id BLOB NOT NULL PRIMARY KEY,
  network BLOB NOT NULL,
  body TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX remote_endpoint_network ON remote_endpoint (network);
