//! Every statement, so that one test can ask SQLite how it would run each of them.

macro_rules! statements {
    ($($kind:ident $name:ident = $sql:expr;)*) => {
        $(pub(crate) const $name: &str = $sql;)*

        /// Kind, name and text of every statement.
        #[cfg(test)]
        const ALL: &[(Kind, &str, &str)] = &[$((Kind::$kind, stringify!($name), $sql)),*];
    };
}

#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Costs the same however many rows there are.
    Point,
    /// Reads a whole table.
    List,
}

statements! {
    Point FORMAT = "PRAGMA user_version";
    Point BEGIN_READ = "BEGIN";
    Point BEGIN_WRITE = "BEGIN IMMEDIATE";
    Point COMMIT = "COMMIT";
    Point ROLLBACK = "ROLLBACK";

    Point META = "SELECT value FROM meta WHERE key = ?1";
    Point PUT_META = "INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2";
    Point DELETE_META = "DELETE FROM meta WHERE key = ?1";

    Point NETWORK = "SELECT body FROM network WHERE id = ?1";
    Point NETWORK_NAMED = "SELECT body FROM network WHERE name = ?1";
    Point NETWORKS_WITH_PREFIX = "SELECT body FROM network WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT 2";
    List NETWORKS = "SELECT body FROM network ORDER BY name";
    // Networks over several hosts (`ruled = 2`) are on each of them, used or not: of those, how many there are counts.
    List HAS_USER_BRIDGES = "SELECT EXISTS (SELECT 1 FROM network WHERE ruled = 1)
        OR EXISTS (SELECT 1 FROM network WHERE ruled = 2
            AND EXISTS (SELECT 1 FROM endpoint WHERE endpoint.network = network.id))";
    List OVERLAY_IN_USE = "SELECT body FROM network WHERE ruled = 2
        AND EXISTS (SELECT 1 FROM endpoint WHERE endpoint.network = network.id) LIMIT 1";
    Point NETWORK_OF_DEVICE = "SELECT body FROM network WHERE device = ?1 LIMIT 1";
    // Claims never overlap each other: the last one that begins before the end of a subnet is the one to look at.
    Point CLAIMANT = "SELECT iif(last >= ?2, network, NULL) FROM claim WHERE family = ?1 AND first <= ?3
        ORDER BY first DESC LIMIT 1";
    // A row is put by the first of MOVE, ADD and REPLACE that changes one; all take the same parameters. A row in
    // transition keeps its number until it is settled. MOVE leaves the pages of the other indexes, and so the log,
    // alone; it serves every put that only moves the phase.
    Point MOVE_NETWORK = "UPDATE network SET moving = iif(?5 IS NULL, NULL, coalesce(moving, ?5)), body = ?6
        WHERE id = ?1 AND name = ?2 AND device IS ?3 AND ruled IS ?4";
    Point ADD_NETWORK = "INSERT INTO network (id, name, device, ruled, moving, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
        ON CONFLICT (id) DO NOTHING";
    Point REPLACE_NETWORK = "UPDATE network SET name = ?2, device = ?3, ruled = ?4,
        moving = iif(?5 IS NULL, NULL, coalesce(moving, ?5)), body = ?6 WHERE id = ?1";
    Point CLAIM = "INSERT INTO claim (family, first, last, network) VALUES (?1, ?2, ?3, ?4)
        ON CONFLICT (family, first, network) DO UPDATE SET last = ?3";
    Point DELETE_CLAIMS = "DELETE FROM claim WHERE network = ?1";
    Point DELETE_NETWORK = "DELETE FROM network WHERE id = ?1";
    Point DELETE_RESTING = "DELETE FROM lease WHERE network = ?1 AND endpoint IS NULL";
    Point DELETE_CURSORS = "DELETE FROM cursor WHERE network = ?1";

    Point CONTAINER = "SELECT body FROM container WHERE id = ?1";
    Point CONTAINER_NAMED = "SELECT body FROM container WHERE name = ?1";
    Point CONTAINERS_WITH_PREFIX = "SELECT body FROM container WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT 2";
    Point CONTAINER_IN = "SELECT body FROM container WHERE inode = ?2 AND device = ?1 ORDER BY seq LIMIT 1";
    List CONTAINER_IDS = "SELECT id FROM container ORDER BY seq";
    List CONTAINERS = "SELECT body FROM container ORDER BY seq";
    Point MOVE_CONTAINER = "UPDATE container SET moving = iif(?5 IS NULL, NULL, coalesce(moving, ?5)), body = ?6
        WHERE id = ?1 AND name = ?2 AND device IS ?3 AND inode IS ?4";
    Point ADD_CONTAINER = "INSERT INTO container (id, name, device, inode, moving, body)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (id) DO NOTHING";
    Point REPLACE_CONTAINER = "UPDATE container SET name = ?2, device = ?3, inode = ?4,
        moving = iif(?5 IS NULL, NULL, coalesce(moving, ?5)), body = ?6 WHERE id = ?1";
    Point DELETE_CONTAINER = "DELETE FROM container WHERE id = ?1";

    Point ENDPOINT = "SELECT body FROM endpoint WHERE id = ?1";
    Point ENDPOINTS_OF = "SELECT body FROM endpoint WHERE container = ?1 ORDER BY seq";
    Point ENDPOINTS_ON = "SELECT body FROM endpoint WHERE network = ?1 ORDER BY seq";
    Point ENDPOINT_COUNT = "SELECT count(*) FROM (SELECT 1 FROM endpoint WHERE network = ?1 LIMIT ?2)";
    Point ENDPOINT_AT = "SELECT body FROM endpoint WHERE host_end = ?1";
    Point HOST_END_TAKEN = "SELECT EXISTS (SELECT 1 FROM endpoint WHERE host_end = ?1)";
    Point MAC_HOLDER = "SELECT id FROM endpoint WHERE network = ?1 AND mac = ?2";
    Point MOVE_ENDPOINT = "UPDATE endpoint SET moving = iif(?7 IS NULL, NULL, coalesce(moving, ?7)), body = ?8
        WHERE id = ?1 AND network = ?2 AND container = ?3 AND ifname = ?4 AND host_end = ?5 AND mac = ?6";
    Point ADD_ENDPOINT = "INSERT INTO endpoint (id, network, container, ifname, host_end, mac, moving, body)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (id) DO NOTHING";
    Point REPLACE_ENDPOINT = "UPDATE endpoint SET network = ?2, container = ?3, ifname = ?4, host_end = ?5, mac = ?6,
        moving = iif(?7 IS NULL, NULL, coalesce(moving, ?7)), body = ?8 WHERE id = ?1";
    Point DELETE_ENDPOINT = "DELETE FROM endpoint WHERE id = ?1";
    // Evaluated row by row, so the leases of one endpoint get different numbers.
    Point REST_LEASES = "UPDATE lease SET endpoint = NULL, freed = (
            SELECT coalesce(max(r.freed), 0) + 1 FROM lease AS r
            WHERE r.network = lease.network AND r.family = lease.family AND r.freed > 0)
        WHERE endpoint = ?1";
    Point FORGET_RESTING = "DELETE FROM lease WHERE network = ?1 AND family = ?2 AND freed <= (
            SELECT r.freed FROM lease AS r INDEXED BY lease_resting
            WHERE r.network = ?1 AND r.family = ?2 AND r.freed > 0 AND r.address BETWEEN ?3 AND ?4
            ORDER BY r.freed DESC LIMIT 1 OFFSET ?5)
        AND address BETWEEN ?3 AND ?4";

    Point LEASE = "SELECT endpoint, mac FROM lease WHERE network = ?1 AND family = ?2 AND address = ?3";
    Point TAKE_LEASE = "INSERT INTO lease (network, family, address, endpoint, mac) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (network, family, address) DO UPDATE SET endpoint = ?4, mac = ?5, freed = NULL
        WHERE lease.endpoint IS NULL OR lease.endpoint = ?4";
    Point LEASE_CURSOR = "SELECT address FROM cursor WHERE network = ?1 AND subnet = ?2";
    Point PUT_LEASE_CURSOR = "INSERT INTO cursor (network, subnet, address) VALUES (?1, ?2, ?3)
        ON CONFLICT (network, subnet) DO UPDATE SET address = ?3";
    Point OLDEST_RESTING = "SELECT address, mac FROM lease INDEXED BY lease_resting
        WHERE network = ?1 AND family = ?2 AND freed > 0 AND address BETWEEN ?3 AND ?4 ORDER BY freed LIMIT 1";
    Point LEASE_COUNT = "SELECT count(endpoint) FROM lease WHERE network = ?1 AND family = ?2";

    Point REST_LEASE = "INSERT INTO lease (network, family, address, freed) SELECT ?1, ?2, ?3, (
            SELECT coalesce(max(r.freed), 0) + 1 FROM lease AS r WHERE r.network = ?1 AND r.family = ?2 AND r.freed > 0)
        WHERE true ON CONFLICT (network, family, address) DO UPDATE SET endpoint = NULL, freed = excluded.freed";
    List LEASES = "SELECT address, endpoint FROM lease WHERE network = ?1 AND endpoint IS NOT NULL
        ORDER BY family, address";
    List DELETE_LEASES = "DELETE FROM lease WHERE network = ?1";

    Point POOL = "SELECT body FROM pool WHERE id = ?1";
    List POOLS = "SELECT body FROM pool ORDER BY family, first";
    // Pools never overlap each other either.
    Point POOL_OVERLAPPING = "SELECT iif(last >= ?2, body, NULL) FROM pool WHERE family = ?1 AND first <= ?3
        ORDER BY first DESC LIMIT 1";
    Point PUT_POOL = "INSERT INTO pool (id, family, first, last, body) VALUES (?1, ?2, ?3, ?4, ?5)
        ON CONFLICT (id) DO UPDATE SET body = ?5";
    Point DELETE_POOL = "DELETE FROM pool WHERE id = ?1";

    Point PEER = "SELECT body FROM peer WHERE host = ?1";
    List PEERS = "SELECT body FROM peer ORDER BY host";
    Point PUT_PEER = "INSERT INTO peer (host, body) VALUES (?1, ?2) ON CONFLICT (host) DO UPDATE SET body = ?2";
    Point DELETE_PEER = "DELETE FROM peer WHERE host = ?1";
    Point REMOTE_BLOCK = "SELECT host FROM remote_block WHERE network = ?1 AND block = ?2";
    List REMOTE_BLOCKS = "SELECT network, block, host FROM remote_block";
    Point REMOTE_BLOCKS_OF = "SELECT network, block, host FROM remote_block WHERE network = ?1";
    Point REMOTE_BLOCKS_AT = "SELECT network, block, host FROM remote_block WHERE host = ?1";
    Point PUT_REMOTE_BLOCK = "INSERT INTO remote_block (network, block, host) VALUES (?1, ?2, ?3)
        ON CONFLICT (network, block) DO UPDATE SET host = ?3";
    Point DELETE_REMOTE_BLOCK = "DELETE FROM remote_block WHERE network = ?1 AND block = ?2";
    Point DELETE_REMOTE_BLOCKS = "DELETE FROM remote_block WHERE network = ?1";
    Point REMOTE_ENDPOINT = "SELECT body FROM remote_endpoint WHERE id = ?1";
    List REMOTE_ENDPOINTS = "SELECT body FROM remote_endpoint";
    Point REMOTE_ENDPOINTS_OF = "SELECT body FROM remote_endpoint WHERE network = ?1";
    Point REMOTE_ENDPOINT_IDS = "SELECT id FROM remote_endpoint WHERE network = ?1";
    Point PUT_REMOTE_ENDPOINT = "INSERT INTO remote_endpoint (id, network, body) VALUES (?1, ?2, ?3)
        ON CONFLICT (id) DO UPDATE SET network = ?2, body = ?3";
    Point DELETE_REMOTE_ENDPOINT = "DELETE FROM remote_endpoint WHERE id = ?1";

    Point PUBLICATIONS_OF = "SELECT container, body FROM publication WHERE container = ?1 ORDER BY seq";
    Point PUBLICATIONS_OVERLAPPING = "SELECT container, body, seq FROM publication
        WHERE protocol = ?1 AND span = ?2 AND host_first BETWEEN ?3 AND ?5 AND host_last >= ?4";
    Point ADD_PUBLICATION = "INSERT INTO publication
        (container, key, protocol, span, host_first, host_last, moving, body) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
    Point MOVE_PUBLICATION = "UPDATE publication SET moving = iif(?3 IS NULL, NULL, coalesce(moving, ?3)), body = ?4
        WHERE container = ?1 AND key = ?2";
    Point DELETE_PUBLICATION = "DELETE FROM publication WHERE container = ?1 AND key = ?2";

    // `moving > 0` rather than `IS NOT NULL`: a search of the partial index instead of a scan of it.
    Point ANY_TRANSITION = "SELECT 1 FROM network WHERE moving > 0
        UNION ALL SELECT 1 FROM container WHERE moving > 0
        UNION ALL SELECT 1 FROM endpoint WHERE moving > 0
        UNION ALL SELECT 1 FROM publication WHERE moving > 0 LIMIT 1";
    Point TRANSITIONS = "SELECT 0 AS kind, moving, id, NULL AS container, body FROM network WHERE moving > 0
        UNION ALL SELECT 1, moving, id, NULL, body FROM container WHERE moving > 0
        UNION ALL SELECT 2, moving, id, container, body FROM endpoint WHERE moving > 0
        UNION ALL SELECT 3, moving, NULL, container, body FROM publication WHERE moving > 0
        ORDER BY 2 LIMIT ?1";

    Point ADD_CHANGE = "INSERT INTO change (touched) VALUES (?1)";
    Point FORGET_CHANGES = "DELETE FROM change WHERE revision <= ?1";
    Point REVISION = "SELECT coalesce(max(revision), 0) FROM change";
    // From the last revision that is known, to see that none is missing in between.
    Point CHANGES_FROM = "SELECT revision, touched FROM change WHERE revision >= ?1 ORDER BY revision";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use portolan_engine::{Durability, Store, StoreError, Tx};
    use portolan_model::{Family, Id};
    use rusqlite::{Connection, StatementStatus};

    use super::*;
    use crate::common::{Scratch, container, endpoint, id, leaving, mac, network, parse, pool, publication};
    use crate::{SqliteStore, SqliteTx};

    fn plan(connection: &Connection, sql: &str) -> Vec<String> {
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let nothing = vec![rusqlite::types::Null; statement.parameter_count()];
        let rows = statement.query_map(rusqlite::params_from_iter(nothing), |row| row.get(3)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn only_lists_scan_a_table() {
        let scratch = Scratch::new();
        let store = SqliteStore::open(&scratch.root()).unwrap();
        let tx = store.read().unwrap();
        for (kind, name, sql) in ALL {
            if *kind == Kind::List || ["PRAGMA", "BEGIN", "COMMIT", "ROLLBACK"].iter().any(|word| sql.starts_with(word))
            {
                continue;
            }
            for step in plan(tx.connection(), sql) {
                let scan = step.starts_with("SCAN") && !step.ends_with("CONSTANT ROW") && !step.starts_with("SCAN (");
                assert!(!scan, "{name}: {step}");
            }
        }
        let resting = plan(tx.connection(), OLDEST_RESTING);
        assert_eq!(resting, ["SEARCH lease USING INDEX lease_resting (network=? AND family=? AND freed>?)"]);
        let moving = plan(tx.connection(), TRANSITIONS).join("\n");
        for table in ["network", "container", "endpoint", "publication"] {
            assert!(moving.contains(&format!("SEARCH {table} USING INDEX {table}_moving (moving>?)")), "{moving}");
        }
        assert!(!moving.contains("TEMP B-TREE"), "{moving}");
    }

    /// Fills a store with so many published ports and endpoints, and one row in transition.
    fn fill(store: &SqliteStore, publications: u32, endpoints: u32) {
        let guard = store.lock().unwrap();
        let tx = store.write(&guard).unwrap();
        for (number, name) in ["bridge", "host", "none", "web"].iter().enumerate() {
            tx.put_network(&network(number as u32, name)).unwrap();
        }
        // As many networks of each kind: bridges, and others.
        for number in 4..4 + endpoints {
            let subnet = std::net::Ipv4Addr::from(0x0b00_0000 + (number << 8));
            let mut other = network(number, &format!("n{number}"));
            other.subnets[0].net = parse(&format!("{subnet}/24"));
            tx.put_network(&other).unwrap();
            let mut child = network(1 << 20 | number, &format!("a{number}"));
            child.driver = portolan_model::Driver::Macvlan;
            tx.put_network(&child).unwrap();
            let subnet = std::net::Ipv4Addr::from(0x0c00_0000 + (number << 8));
            tx.put_pool(&pool(number, &format!("{subnet}/24"))).unwrap();
        }
        for number in 0..endpoints {
            tx.put_container(&container(number)).unwrap();
            let address = std::net::Ipv4Addr::from(0x0a00_0002 + number);
            let row = endpoint(number, id(2, number), id(1, 3), &[&format!("{address}/8")]);
            tx.put_endpoint(&row).unwrap();
            tx.take_lease(row.network, address.into(), row.id, row.mac).unwrap();
            if number % 2 == 1 {
                tx.delete_endpoint(row.id).unwrap();
            }
        }
        for number in 0..publications {
            // Single ports for the most part, and every hundredth a range of ten.
            let first = 1 + number;
            let host = if number % 100 == 7 { format!("{first}-{}", first + 9) } else { first.to_string() };
            let mut row = publication(id(2, number % endpoints), "tcp", None, &host);
            if number == 3 {
                row.phase = leaving();
            }
            tx.put_publication(&row).unwrap();
        }
        tx.commit(Durability::Process).unwrap();
    }

    /// Calls every look-up, and every change of one row.
    fn look_up(tx: &SqliteTx<'_>) -> Result<(), StoreError> {
        let (web, somebody) = (id(1, 3), id(2, 4));
        tx.meta("boot")?;
        tx.put_meta("boot", Some("x"))?;
        assert!(tx.network(web)?.is_some());
        assert!(tx.network_named("web")?.is_some());
        assert_eq!(tx.networks_with_prefix("01")?.len(), 2);
        assert!(tx.has_user_bridges()?);
        assert_eq!(tx.network_of_device("pt3")?.map(|network| network.id), Some(web));
        assert_eq!(tx.claimant(parse("10.1.0.0/16"))?, Some(web));
        assert_eq!(tx.claimant(parse("11.0.6.0/23"))?, Some(id(1, 7)));
        assert_eq!(tx.claimant(parse("9.0.0.0/8"))?, None);
        assert!(tx.container(somebody)?.is_some());
        assert!(tx.container_named("c4")?.is_some());
        assert_eq!(tx.containers_with_prefix("02")?.len(), 2);
        assert!(tx.container_in(1, 2)?.is_none());
        assert!(tx.endpoint(id(3, 4))?.is_some());
        assert_eq!(tx.endpoints_of(somebody)?.len(), 1);
        assert_eq!(tx.endpoint_count(web, 2)?, 2);
        assert!(tx.host_end_taken("pv4")?);
        assert!(tx.endpoint_at("pv4")?.is_some());
        assert_eq!(tx.mac_holder(web, mac(4))?, Some(id(3, 4)));
        assert!(tx.lease(web, parse("10.0.0.6"))?.is_some());
        assert!(tx.lease_cursor(web, parse("10.0.0.0/8"))?.is_none());
        assert!(tx.pool(id(4, 7))?.is_some());
        assert_eq!(tx.pool_overlapping(parse("12.0.6.0/23"))?.map(|pool| pool.id), Some(id(4, 7)));
        assert_eq!(tx.pool_overlapping(parse("9.0.0.0/8"))?, None);
        let resting = tx.oldest_resting(web, parse("10.0.0.2"), parse("10.255.255.254"))?;
        assert_eq!(resting.map(|r| r.address), Some(parse("10.0.0.3")));
        let overlapping = tx.publications_overlapping(parse("tcp"), parse("12"))?;
        assert_eq!(overlapping.len(), 2, "{overlapping:?}");
        assert_eq!(tx.publications_overlapping(parse("tcp"), parse("8-9"))?.len(), 2);
        assert_eq!(tx.transitions(10)?.len(), 1);

        tx.put_network(&network(3, "web"))?;
        tx.put_network(&network(1 << 30, "new"))?;
        tx.delete_network(id(1, 1 << 30))?;
        let mut row = container(4);
        row.phase = leaving();
        tx.put_container(&row)?;
        tx.put_endpoint(&endpoint(4, somebody, web, &["10.0.0.6/8"]))?;
        tx.delete_endpoint(id(3, 4))?;
        tx.take_lease(web, parse("10.0.0.6"), id(3, 4), mac(4))?;
        let port = publication(somebody, "udp", None, "1-1000");
        tx.put_publication(&port)?;
        tx.delete_publication(somebody, &port.publication)?;
        tx.delete_container(somebody)?;
        tx.rest_lease(web, parse("10.0.0.6/8"))?;
        tx.put_pool(&pool(1 << 20, "13.0.0.0/8"))?;
        let revision = tx.revision()?;
        assert!(tx.touched_since(revision)?.is_some());
        Ok(())
    }

    #[test]
    fn look_ups_cost_the_same_however_many_rows_there_are() {
        let cost = |publications, endpoints| -> BTreeMap<&str, (i32, i32)> {
            let scratch = Scratch::new();
            let store = SqliteStore::open(&scratch.root()).unwrap();
            fill(&store, publications, endpoints);
            let guard = store.lock().unwrap();
            let tx = store.write(&guard).unwrap();
            let reset = |sql| {
                let statement = tx.connection().prepare_cached(sql).unwrap();
                let steps = statement.reset_status(StatementStatus::VmStep);
                (steps, statement.reset_status(StatementStatus::FullscanStep))
            };
            for (_, _, sql) in ALL {
                reset(sql);
            }
            look_up(&tx).unwrap();
            ALL.iter().map(|(_, name, sql)| (*name, reset(sql))).collect()
        };
        let (few, many) = (cost(50, 20), cost(50_000, 5_000));
        for (name, (steps, scanned)) in &many {
            let (before, _) = few[name];
            // Constant rows, as of an EXISTS, count as scanned.
            assert!(*scanned <= 1, "{name}: {scanned} rows scanned");
            assert!(*steps <= before + 5, "{name}: {before} steps among few rows, {steps} among many");
        }
        assert!(many["PUBLICATIONS_OVERLAPPING"].0 > 0 && many["LEASE"].0 > 0, "{many:?}");
    }

    #[test]
    fn counting_leases_is_the_exception() {
        let scratch = Scratch::new();
        let store = SqliteStore::open(&scratch.root()).unwrap();
        fill(&store, 1, 20);
        let tx = store.read().unwrap();
        assert_eq!(tx.lease_count(id(1, 3), Family::V4).unwrap(), 10);
        assert_eq!(tx.lease_count(Id::from_bytes([0; 32]), Family::V4).unwrap(), 0);
    }
}
