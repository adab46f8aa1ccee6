-- user_version 5, page_size 2048
CREATE TABLE meta (
  key TEXT NOT NULL PRIMARY KEY,
  value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE network (
  seq INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE,
  name TEXT NOT NULL UNIQUE,
  moving INTEGER,
  body TEXT NOT NULL
, device TEXT, ruled INTEGER) STRICT;
CREATE INDEX network_moving ON network (moving) WHERE moving IS NOT NULL;
CREATE TABLE container (
  seq INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE,
  name TEXT NOT NULL UNIQUE,
  device INTEGER,
  inode INTEGER,
  moving INTEGER,
  body TEXT NOT NULL
) STRICT;
CREATE INDEX container_sandbox ON container (inode, device) WHERE inode IS NOT NULL;
CREATE INDEX container_moving ON container (moving) WHERE moving IS NOT NULL;
CREATE TABLE endpoint (
  seq INTEGER PRIMARY KEY,
  id BLOB NOT NULL UNIQUE,
  network BLOB NOT NULL,
  container BLOB NOT NULL,
  ifname TEXT NOT NULL,
  host_end TEXT NOT NULL UNIQUE,
  mac BLOB NOT NULL,
  moving INTEGER,
  body TEXT NOT NULL,
  UNIQUE (network, mac),
  UNIQUE (container, network, ifname)
) STRICT;
CREATE INDEX endpoint_moving ON endpoint (moving) WHERE moving IS NOT NULL;
CREATE TABLE lease (
  network BLOB NOT NULL,
  family INTEGER NOT NULL,
  address BLOB NOT NULL,
  endpoint BLOB,
  mac BLOB,
  freed INTEGER,
  PRIMARY KEY (network, family, address),
  CHECK ((endpoint IS NULL) = (freed IS NOT NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX lease_endpoint ON lease (endpoint) WHERE endpoint IS NOT NULL;
CREATE INDEX lease_resting ON lease (network, family, freed) WHERE freed IS NOT NULL;
CREATE TABLE cursor (
  network BLOB NOT NULL,
  subnet TEXT NOT NULL,
  address BLOB NOT NULL,
  PRIMARY KEY (network, subnet)
) STRICT, WITHOUT ROWID;
CREATE TABLE publication (
  seq INTEGER PRIMARY KEY,
  container BLOB NOT NULL,
  key BLOB NOT NULL,
  protocol INTEGER NOT NULL,
  span INTEGER NOT NULL,
  host_first INTEGER NOT NULL,
  host_last INTEGER NOT NULL,
  moving INTEGER,
  body TEXT NOT NULL,
  UNIQUE (container, key)
) STRICT;
CREATE INDEX publication_ports ON publication (protocol, span, host_first);
CREATE INDEX publication_moving ON publication (moving) WHERE moving IS NOT NULL;
CREATE TABLE change (
  revision INTEGER PRIMARY KEY,
  touched BLOB NOT NULL
) STRICT;
CREATE INDEX network_device ON network (device) WHERE device IS NOT NULL;
CREATE INDEX network_ruled ON network (ruled) WHERE ruled IS NOT NULL;
CREATE TABLE claim (
  family INTEGER NOT NULL,
  first BLOB NOT NULL,
  last BLOB NOT NULL,
  network BLOB NOT NULL,
  PRIMARY KEY (family, first, network)
) STRICT, WITHOUT ROWID;
CREATE INDEX claim_network ON claim (network);
CREATE TABLE pool (
  id BLOB NOT NULL PRIMARY KEY,
  family INTEGER NOT NULL,
  first BLOB NOT NULL,
  last BLOB NOT NULL,
  body TEXT NOT NULL,
  UNIQUE (family, first)
) STRICT, WITHOUT ROWID;
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
