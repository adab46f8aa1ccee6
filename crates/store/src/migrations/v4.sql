-- Subnets whose addresses others ask for one by one. They are leased as those of networks are, under the pool's id.
CREATE TABLE pool (
  id BLOB NOT NULL PRIMARY KEY,
  family INTEGER NOT NULL,
  first BLOB NOT NULL,
  last BLOB NOT NULL,
  body TEXT NOT NULL,
  UNIQUE (family, first)
) STRICT, WITHOUT ROWID;
