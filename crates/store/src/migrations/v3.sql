-- What a network claims of the host, so that another one meets it without looking at all: the interface that it makes,
-- and the addresses on that of a bridge.
ALTER TABLE network ADD COLUMN device TEXT;
UPDATE network SET device = body ->> 'bridge'
  WHERE (body ->> 'driver' = 'bridge' AND body ->> '$.options.managed' IS NOT 0) OR body ->> 'subinterface' IS NOT NULL;
CREATE INDEX network_device ON network (device) WHERE device IS NOT NULL;
ALTER TABLE network ADD COLUMN ruled INTEGER;
UPDATE network SET ruled = 1
  WHERE body ->> 'driver' = 'bridge' AND body ->> '$.options.managed' IS NOT 0 AND name <> 'bridge';
CREATE INDEX network_ruled ON network (ruled) WHERE ruled IS NOT NULL;
CREATE TABLE claim (
  family INTEGER NOT NULL,
  first BLOB NOT NULL,
  last BLOB NOT NULL,
  network BLOB NOT NULL,
  PRIMARY KEY (family, first, network)
) STRICT, WITHOUT ROWID;
CREATE INDEX claim_network ON claim (network);
