//! The client and a real etcd, in namespaces.

use std::fs;
use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portolan_etcd::{Batch, Bundled, Client, Compare, Config, Error, Event, Op, Tls, Txn};
use portolan_lab::etcd::{Etcd, is_there};
use portolan_lab::{Host, Lab};

/// A LAN with three hosts for members.
struct World {
    hosts: Vec<Host>,
    _lan: portolan_lab::Lan,
    // Last, as it removes the others.
    lab: Lab,
}

const ADDRESSES: [&str; 3] = ["10.0.1.1", "10.0.1.2", "10.0.1.3"];

fn address(number: usize) -> IpAddr {
    ADDRESSES[number].parse().unwrap()
}

impl World {
    fn or_skip(name: &str) -> Option<Self> {
        if !is_there(name) {
            return None;
        }
        let lab = Lab::or_skip(name)?;
        let hosts: Vec<Host> = (0..3).map(|number| lab.host(&format!("e{number}")).unwrap()).collect();
        let prefixed: Vec<String> = ADDRESSES.iter().map(|address| format!("{address}/24")).collect();
        let prefixed: Vec<[&str; 1]> = prefixed.iter().map(|address| [address.as_str()]).collect();
        let members: Vec<(&Host, &str, &[&str])> =
            hosts.iter().zip(&prefixed).map(|(host, addresses)| (host, "eth0", &addresses[..])).collect();
        let lan = lab.lan("lan", &members).unwrap();
        Some(Self { hosts, _lan: lan, lab })
    }

    fn start(&self, members: usize, scheme: &str, options: &[&str]) -> Etcd {
        let places: Vec<(&Host, IpAddr)> =
            self.hosts.iter().zip(0..members).map(|(host, at)| (host, address(at))).collect();
        Etcd::start(self.lab.dir(), &places, scheme, options).unwrap()
    }

    /// Runs a future on the first host.
    fn run<T: Send>(&self, work: impl AsyncFnOnce() -> T + Send) -> T {
        self.hosts[0].enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        })
    }
}

fn config(etcd: &Etcd) -> Config {
    Config { endpoints: etcd.endpoints("http"), tls: None, user: None, timeout: Duration::from_secs(3) }
}

fn put(key: &str, value: &str) -> Txn {
    Txn { compares: vec![], then: vec![Op::put(key, value, None)] }
}

/// The next batch in which something happened.
async fn next(watch: &mut portolan_etcd::Watch) -> Result<Batch, Error> {
    loop {
        let batch = watch.next().await?;
        if !batch.events.is_empty() {
            return Ok(batch);
        }
    }
}

async fn within<T>(seconds: u64, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(seconds), work).await.expect("in time")
}

#[test]
fn keys_transactions_leases_and_watches() {
    let Some(world) = World::or_skip("etcd-keys") else { return };
    let etcd = world.start(1, "http", &[]);
    let config = config(&etcd);
    world.run(async || {
        let client = Client::connect(&config).await.unwrap();
        assert_eq!(client.range_all("/a/").await.unwrap().1, []);

        // More than come with one answer, while others write: all of one revision.
        for part in 0..45 {
            let then = (0..100).map(|number| Op::put(format!("/a/{:04}", part * 100 + number), "x", None)).collect();
            assert!(client.txn(Txn { compares: vec![], then }).await.unwrap().succeeded);
        }
        client.txn(put("/b", "not under it")).await.unwrap();
        let (revision, all) = client.range_all("/a/").await.unwrap();
        assert_eq!(all.len(), 4500);
        assert!(all.is_sorted_by(|one, other| one.key < other.key));

        // Each condition, met and not.
        let one = client.find("/a/0001").await.unwrap().unwrap();
        assert_eq!((&one.value[..], one.create_revision, one.lease), (&b"x"[..], one.mod_revision, 0));
        for (compare, holds) in [
            (Compare::exists("/a/0001"), true),
            (Compare::exists("/none"), false),
            (Compare::create_revision("/none", 0), true),
            (Compare::create_revision("/a/0001", 0), false),
            (Compare::mod_revision("/a/0001", one.mod_revision), true),
            (Compare::mod_revision("/a/0001", 1), false),
            (Compare::mod_revision("/none", 0), true),
            (Compare::value("/a/0001", "x"), true),
            (Compare::value("/a/0001", "y"), false),
            (Compare::none_under("/c/"), true),
            (Compare::none_under("/a/"), false),
        ] {
            let txn = Txn { compares: vec![compare.clone()], then: vec![Op::put("/done", "1", None)] };
            assert_eq!(client.txn(txn).await.unwrap().succeeded, holds, "{compare:?}");
            assert_eq!(client.find("/done").await.unwrap().is_some(), holds, "{compare:?}");
            client.txn(Txn { compares: vec![], then: vec![Op::delete("/done")] }).await.unwrap();
        }

        // What a watch tells, from before it began, and the end of a lease.
        let mut watch = client.watch("/a/", revision + 1).await.unwrap();
        let lease = client.lease_grant(2).await.unwrap();
        assert!((1..=2).contains(&client.keep_alive(lease).await.unwrap()));
        let with_lease = Txn { compares: vec![], then: vec![Op::put("/a/alive", "me", Some(lease))] };
        let written = client.txn(with_lease).await.unwrap().revision;
        let batch = within(5, next(&mut watch)).await.unwrap();
        let Event::Put(found) = &batch.events[0] else { panic!("{batch:?}") };
        assert_eq!((&found.key[..], found.lease, found.mod_revision), (&b"/a/alive"[..], lease, written));
        let batch = within(15, next(&mut watch)).await.unwrap();
        let gone = Event::Delete { key: b"/a/alive".to_vec(), revision: batch.revision };
        assert_eq!(batch.events, [gone]);
        assert_eq!(client.keep_alive(lease).await, Err(Error::LeaseGone));
        assert_eq!(client.lease_revoke(lease).await, Err(Error::LeaseGone));

        // Other keys are followed in the same conversation, from before they were asked for, until they are left.
        let since = client.txn(put("/c/1", "x")).await.unwrap().revision;
        let (c, d, never) = (watch.follow("/c/", since), watch.follow("/d/", 0), watch.follow("/c/", since));
        watch.leave(never);
        let batch = within(5, next(&mut watch)).await.unwrap();
        assert_eq!((batch.of, batch.revision, batch.events.len()), (c, since, 1));
        let both = Txn { compares: vec![], then: vec![Op::put("/c/2", "x", None), Op::put("/d/2", "x", None)] };
        let written = client.txn(both).await.unwrap().revision;
        let batches = [within(5, next(&mut watch)).await.unwrap(), within(5, next(&mut watch)).await.unwrap()];
        let of: std::collections::BTreeSet<u64> = batches.iter().map(|batch| batch.of).collect();
        assert_eq!(of, [c, d].into());
        assert!(batches.iter().all(|batch| batch.revision == written), "{batches:?}");
        watch.leave(c);
        client.txn(put("/c/3", "x")).await.unwrap();
        client.txn(put("/d/3", "x")).await.unwrap();
        assert_eq!(within(5, next(&mut watch)).await.unwrap().of, d);
        // What was is still to be had as it was.
        let (_, then) = client.range_at("/c/", written).await.unwrap();
        assert_eq!(then.len(), 2);
        // And of several prefixes at once, of which one takes more than one answer, and one has nothing.
        let prefixes = ["/a/", "/nothing/", "/c/", "/d/"].map(|prefix| prefix.as_bytes().to_vec());
        for revision in [0, written] {
            let (of, all) = client.ranges_at(&prefixes, revision).await.unwrap();
            assert_eq!(all.len(), prefixes.len());
            for (prefix, found) in prefixes.iter().zip(&all) {
                assert_eq!(*found, client.range_at(prefix.clone(), of).await.unwrap().1, "{prefix:?} at {revision}");
            }
            assert_eq!((all[0].len(), all[1].len(), all[2].len()), (4500, 0, if revision == 0 { 3 } else { 2 }));
        }
        let many = vec![b"/d/".to_vec(); 200];
        assert!(client.ranges_at(&many, written).await.unwrap().1.iter().all(|found| found.len() == 1));

        // All keys of one transaction come at once.
        client.txn(Txn { compares: vec![], then: vec![Op::delete_prefix("/a/")] }).await.unwrap();
        let batch = within(5, next(&mut watch)).await.unwrap();
        assert_eq!(batch.events.len(), 4500);
        assert_eq!(client.range_all("/a/").await.unwrap().1, []);
    });
    etcd.ctl(&["put", "/a/new", "x"]).unwrap();
    etcd.ctl(&["compaction", "20"]).unwrap();
    world.run(async || {
        let client = Client::connect(&config).await.unwrap();
        let mut watch = client.watch("/a/", 5).await;
        let lost = match &mut watch {
            Ok(watch) => within(5, next(watch)).await.err(),
            Err(error) => Some(error.clone()),
        };
        assert_eq!(lost, Some(Error::Compacted(20)));
    });
}

/// Seventy values of a megabyte are more than one answer may be long, and fewer keys than usually come with one.
#[test]
fn what_is_too_long_for_an_answer_comes_in_several() {
    let Some(world) = World::or_skip("etcd-long") else { return };
    let etcd = world.start(1, "http", &[]);
    let config = config(&etcd);
    world.run(async || {
        let client = Client::connect(&config).await.unwrap();
        let value = "x".repeat(1 << 20);
        for number in 0..70 {
            assert!(client.txn(put(&format!("/a/{number:02}"), &value)).await.unwrap().succeeded);
        }
        let (_, all) = client.range_all("/a/").await.unwrap();
        assert_eq!(all.len(), 70);
        assert!(all.iter().all(|found| found.value.len() == value.len()));
        let prefixes = ["/a/0", "/a/"].map(|prefix| prefix.as_bytes().to_vec());
        let (_, both) = client.ranges_at(&prefixes, 0).await.unwrap();
        assert_eq!((both[0].len(), &both[1]), (10, &all));
    });
}

#[test]
fn members_come_and_go() {
    let Some(world) = World::or_skip("etcd-members") else { return };
    let mut etcd = world.start(3, "http", &[]);
    let config = config(&etcd);
    let write = |key: &'static str| {
        world.run(async || {
            let client = Client::connect(&config).await?;
            client.txn(put(key, "x")).await?;
            client.range_all("/").await.map(|(_, all)| all.len())
        })
    };
    assert_eq!(write("/1"), Ok(1));
    // Each of them is the leader, or the one that is asked first, once.
    for number in 0..3 {
        etcd.kill(number);
        let began = Instant::now();
        let done = loop {
            match write("/2") {
                // While they elect another leader.
                Err(Error::NoLeader(_) | Error::Unknown(_) | Error::Timeout(_))
                    if began.elapsed() < Duration::from_secs(20) => {}
                done => break done,
            }
        };
        assert_eq!(done, Ok(2), "without member {number}");
        etcd.restart(number).unwrap();
    }
    etcd.kill(0);
    etcd.kill(1);
    let began = Instant::now();
    let refused = loop {
        match write("/3") {
            // The one that is left has not noticed yet.
            Err(Error::Unknown(_) | Error::Timeout(_)) if began.elapsed() < Duration::from_secs(30) => {}
            other => break other,
        }
    };
    assert!(matches!(refused, Err(Error::NoLeader(_))), "{refused:?}");
    etcd.kill(2);
    let began = Instant::now();
    let refused = write("/3");
    assert!(matches!(refused, Err(Error::Unreachable(_))), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(15));
}

/// A watch at a member that is killed, or paused, ends: it does not wait for ever.
#[test]
fn a_watch_notices_that_nobody_is_there() {
    let Some(world) = World::or_skip("etcd-watch") else { return };
    let mut etcd = world.start(1, "http", &[]);
    let config = config(&etcd);
    for pauses in [true, false] {
        let pid = etcd.pid(0).unwrap().to_string();
        let (tell, told) = std::sync::mpsc::channel();
        let (world, config) = (&world, &config);
        let ended = std::thread::scope(|scope| {
            let ended = scope.spawn(move || {
                world.run(async move || {
                    let client = Client::connect(config).await.unwrap();
                    let mut watch = client.watch("/", 0).await.unwrap();
                    tell.send(()).unwrap();
                    within(30, next(&mut watch)).await
                })
            });
            told.recv().unwrap();
            if pauses {
                assert!(Command::new("kill").args(["-STOP", &pid]).status().unwrap().success());
            } else {
                etcd.kill(0);
            }
            ended.join().unwrap()
        });
        assert!(matches!(ended, Err(Error::Lost(_))), "{ended:?}");
        if pauses {
            assert!(Command::new("kill").args(["-CONT", &pid]).status().unwrap().success());
        }
    }
}

#[test]
fn users_may_do_what_their_roles_say() {
    let Some(world) = World::or_skip("etcd-users") else { return };
    let etcd = world.start(1, "http", &[]);
    etcd.let_in_users("/portolan/").unwrap();
    let with = |user: Option<(&str, &str)>| {
        let user = user.map(|(name, password)| (name.to_owned(), password.to_owned()));
        Config { user, ..config(&etcd) }
    };
    world.run(async || {
        let client = Client::connect(&with(Some(("host", "word")))).await.unwrap();
        client.txn(put("/portolan/1", "x")).await.unwrap();
        assert_eq!(client.range_all("/portolan/").await.unwrap().1.len(), 1);
        client.watch("/portolan/", 0).await.unwrap();
        for denied in [client.txn(put("/other", "x")).await.err(), client.range_all("/").await.err()] {
            assert!(matches!(&denied, Some(Error::Denied(text)) if text.contains("permission denied")), "{denied:?}");
        }
        let wrong = Client::connect(&with(Some(("host", "wrong")))).await.err();
        assert!(matches!(&wrong, Some(Error::Denied(_))), "{wrong:?}");
        let nobody = Client::connect(&with(None)).await.unwrap().range_all("/portolan/").await.err();
        assert!(matches!(&nobody, Some(Error::Denied(_) | Error::Other(_))), "{nobody:?}");
    });
    let text = format!("{:?}", with(Some(("host", "word"))));
    assert!(text.contains("host") && !text.contains("word"), "{text}");
}

fn openssl(dir: &Path, line: &str) {
    let mut command = Command::new("openssl");
    let output = command.args(line.split(' ')).current_dir(dir).stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A token ends by itself, and is too old once users or roles have changed: every verb goes on with another one. etcd's
/// simple tokens do not show that, for they are in its log, and known again after a restart.
#[test]
fn a_token_that_is_too_old_is_replaced() {
    const TTL: Duration = Duration::from_secs(3);
    let Some(world) = World::or_skip("etcd-token") else { return };
    let dir = world.lab.dir();
    openssl(dir, "genrsa -out token.key 2048");
    openssl(dir, "rsa -in token.key -pubout -out token.pub");
    let at = dir.display();
    let token = format!(
        "--auth-token=jwt,pub-key={at}/token.pub,priv-key={at}/token.key,sign-method=RS256,ttl={}s",
        TTL.as_secs()
    );
    let etcd = world.start(1, "http", &[&token]);
    etcd.let_in_users("/").unwrap();
    let config = Config { user: Some(("root".to_owned(), "secret".to_owned())), ..config(&etcd) };
    world.run(async || {
        let connect = || async { Client::connect(&config).await.unwrap() };
        // All have their tokens before a role is added, and use them after that.
        let (reads, writes, watches) = (connect().await, connect().await, connect().await);
        etcd.ctl(&["--user", "root:secret", "role", "add", "another"]).unwrap();
        reads.range_all("/").await.unwrap();
        writes.txn(put("/1", "x")).await.unwrap();
        watches.watch("/", 0).await.unwrap();

        let (reads, writes, watches) = (connect().await, connect().await, connect().await);
        // It is time itself that is tried here.
        tokio::time::sleep(TTL + Duration::from_secs(2)).await;
        reads.range_all("/").await.unwrap();
        writes.txn(put("/2", "x")).await.unwrap();
        watches.watch("/", 0).await.unwrap();
    });
}

/// One that does not even take a connection: the next one is asked, also for what is sent once, for nothing was sent.
#[test]
fn a_member_that_lets_nobody_in_is_passed_over() {
    let Some(world) = World::or_skip("etcd-silent") else { return };
    let etcd = world.start(1, "http", &[]);
    let nft = |host: usize, line: &str| {
        let mut command = Command::new("nft");
        command.arg(line);
        assert!(world.hosts[host].adopt(command).unwrap().status().unwrap().success(), "nft {line}");
    };
    let shut = |host: usize| {
        nft(host, "add table ip shut");
        nft(host, "add chain ip shut in { type filter hook input priority 0; }");
        nft(host, "add rule ip shut in tcp dport 2379 drop");
    };
    shut(1);
    let timeout = Duration::from_secs(1);
    let alone = Config { timeout, ..config(&etcd) };
    let mut both = alone.clone();
    both.endpoints.insert(0, "http://10.0.1.2:2379".to_owned());
    world.run(async || {
        let connect = || async { Client::connect(&both).await.unwrap() };
        assert!(connect().await.txn(put("/1", "x")).await.unwrap().succeeded);
        assert_eq!(connect().await.range_all("/").await.unwrap().1.len(), 1);
        connect().await.watch("/", 0).await.unwrap();

        // With no other one it is known that nothing was written, and nothing is when the connection comes about after all.
        let client = Client::connect(&alone).await.unwrap();
        shut(0);
        let refused = client.txn(put("/2", "x")).await;
        assert!(matches!(refused, Err(Error::Unreachable(_))), "{refused:?}");
        nft(0, "delete table ip shut");
        let began = Instant::now();
        let found = loop {
            match client.range_all("/").await {
                Err(Error::Unreachable(_) | Error::Timeout(_)) if began.elapsed() < Duration::from_secs(20) => {}
                found => break found.unwrap().1,
            }
        };
        assert_eq!(found.len(), 1, "{found:?}");
    });
}

/// It says so, still reads, and lets room be made.
#[test]
fn an_etcd_that_is_full_says_so() {
    let Some(world) = World::or_skip("etcd-full") else { return };
    let etcd = world.start(1, "http", &["--quota-backend-bytes=4194304"]);
    let config = config(&etcd);
    world.run(async || {
        let client = Client::connect(&config).await.unwrap();
        let value = vec![b'x'; 500_000];
        let mut written = 0;
        let full = loop {
            assert!(written < 100, "it takes more than it may");
            let then = vec![Op::put(format!("/{written}"), value.clone(), None)];
            match client.txn(Txn { compares: vec![], then }).await {
                Ok(_) => written += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, Error::NoSpace(_)), "{full:?}");
        let refused = client.lease_grant(60).await;
        assert!(matches!(refused, Err(Error::NoSpace(_))), "{refused:?}");
        let found = client.range_all("/").await.unwrap().1.len();
        assert!([written, written + 1].contains(&found), "{found} of {written}");
        assert!(client.txn(Txn { compares: vec![], then: vec![Op::delete("/0")] }).await.unwrap().succeeded);
    });
}

#[test]
fn certificates_are_checked_both_ways() {
    let Some(world) = World::or_skip("etcd-tls") else { return };
    let dir = world.lab.dir();
    for name in ["ca", "other"] {
        openssl(
            dir,
            &format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.pem -days 2 -subj /CN={name}"
            ),
        );
    }
    fs::write(dir.join("server.ext"), "subjectAltName=IP:10.0.1.1\n").unwrap();
    fs::write(dir.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    for name in ["server", "client"] {
        openssl(
            dir,
            &format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
            ),
        );
        openssl(
            dir,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile {name}.ext"
            ),
        );
    }
    let file = |name: &str| dir.join(name).display().to_string();
    let options = [
        format!("--cert-file={}", file("server.pem")),
        format!("--key-file={}", file("server.key")),
        format!("--trusted-ca-file={}", file("ca.pem")),
        "--client-cert-auth".to_owned(),
    ];
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let etcd = world.start(1, "https", &options);
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    let with = |ca: &str, has_identity: bool| Config {
        endpoints: etcd.endpoints("https"),
        tls: Some(Tls {
            ca: read(ca),
            identity: has_identity.then(|| (read("client.pem"), read("client.key"))),
            server_name: None,
        }),
        user: None,
        timeout: Duration::from_secs(3),
    };
    let ask = |config: Config| world.run(async move || Client::connect(&config).await?.range_all("/").await.map(drop));
    assert_eq!(ask(with("ca.pem", true)), Ok(()));
    let refused = ask(with("other.pem", true)).unwrap_err().to_string();
    assert!(refused.contains("certificate"), "{refused}");
    let refused = ask(with("ca.pem", false)).unwrap_err().to_string();
    assert!(refused.contains("ertificate"), "{refused}");
    let named = Tls { server_name: Some("another.example".to_owned()), ..with("ca.pem", true).tls.unwrap() };
    let refused = ask(Config { tls: Some(named), ..with("ca.pem", true) }).unwrap_err().to_string();
    assert!(refused.contains("certificate") && refused.contains("name"), "{refused}");
    let garbage = Tls { ca: "no certificate".to_owned(), ..with("ca.pem", true).tls.unwrap() };
    assert!(ask(Config { tls: Some(garbage), ..with("ca.pem", true) }).is_err());
    // Its own configuration comes back from where it is kept.
    let kept = serde_json::to_string(&with("ca.pem", true)).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&kept).unwrap(), with("ca.pem", true));
}

#[test]
fn what_is_no_endpoint_is_said() {
    let Some(world) = World::or_skip("etcd-config") else { return };
    let config = |url: &str| Config {
        endpoints: vec![url.to_owned()],
        tls: None,
        user: None,
        timeout: Duration::from_millis(500),
    };
    world.run(async || {
        for (url, why) in [
            ("10.0.1.1:2379", "does not begin with"),
            ("http://", "endpoint"),
            ("https://10.0.1.1:2379", "nothing says who may sign"),
        ] {
            let said = Client::connect(&config(url)).await.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(said.contains(why), "{url}: {said}");
        }
        let client = Client::connect(&config("http://10.0.1.2:2379")).await.unwrap();
        let error = client.range_all("/").await.unwrap_err();
        assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
        assert!(error.to_string().contains("10.0.1.2"), "{error}");
    });
}

/// What is under a prefix, once by its keys and once by its bundle, and the revision of both.
async fn both_ways(client: &Client, of: &Bundled) -> (Vec<portolan_etcd::KeyValue>, Vec<portolan_etcd::KeyValue>) {
    let (revision, mut all) = client.look_at(std::slice::from_ref(of), &[], 0).await.unwrap();
    let mut bundled = all.remove(0);
    bundled.sort_by(|one, other| one.key.cmp(&other.key));
    (client.range_at(of.prefix.clone(), revision).await.unwrap().1, bundled)
}

#[test]
fn a_bundle_says_what_its_keys_say() {
    let Some(world) = World::or_skip("etcd-bundle") else { return };
    let etcd = world.start(1, "http", &[]);
    world.run(async || {
        let client = Client::connect(&config(&etcd)).await.unwrap();
        let part = |name: &str| Bundled {
            prefix: format!("/{name}/").into(),
            apart: format!("/{name}/leased/").into(),
            written: format!("/{name}.written").into(),
            bundle: format!("/bundle/{name}/").into(),
        };
        let (of, small) = (part("a"), part("b"));
        let lease = client.lease_grant(600).await.unwrap();
        // Numbers that are the same each time (Knuth's multiplier for 64 bits).
        let mut state = 17_u64;
        let mut draw = |most: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % most
        };
        let write = async |ops: Vec<Op>| {
            let then = ops.into_iter().chain([Op::put("/a.written", "", None)]).collect();
            assert!(client.txn(Txn { compares: Vec::new(), then }).await.unwrap().succeeded);
        };
        assert!(!client.bundle(&of).await.unwrap(), "of nothing");
        for number in 0..300 {
            write(vec![Op::put(format!("/a/{number:03}"), vec![b'-'; 9_000], None)]).await;
        }
        let (mut made, mut compacted) = (0, 0);
        for round in 0..200_u64 {
            let key = format!("/a/{:03}", draw(400));
            // Long enough for several values of a bundle.
            let value = vec![b'a' + (round % 26) as u8; 9_000];
            write(match draw(10) {
                0..3 => vec![Op::delete(key)],
                3 => vec![Op::delete_prefix(format!("/a/{:02}", draw(40))), Op::put(format!("/a/x{round}"), "", None)],
                _ => vec![Op::put(key, value, None)],
            })
            .await;
            if draw(5) == 0 {
                let key = format!("/a/leased/{}", draw(4));
                let op = if draw(2) == 0 { Op::delete(key) } else { Op::put(key, "", Some(lease)) };
                client.txn(Txn { compares: Vec::new(), then: vec![op] }).await.unwrap();
            }
            if draw(4) == 0 {
                made += u32::from(client.bundle(&of).await.unwrap());
            }
            if draw(40) == 0 {
                let (revision, _) = client.range_all("/none").await.unwrap();
                etcd.ctl(&["compaction", &revision.to_string()]).unwrap();
                compacted += 1;
            }
            let (listed, bundled) = both_ways(&client, &of).await;
            assert!(listed == bundled, "round {round}: {} and {} keys", listed.len(), bundled.len());
        }
        assert!(made > 1 && compacted > 1, "made {made}, compacted {compacted}");
        client.txn(Txn { compares: Vec::new(), then: vec![Op::delete_prefix("/bundle/")] }).await.unwrap();
        assert!(client.bundle(&of).await.unwrap());
        // It is the bundle that is answered: a value is not seen of who writes nothing beside it.
        let (listed, bundled) = both_ways(&client, &of).await;
        assert!(listed == bundled);
        let last = || listed.last().unwrap().key.clone();
        let by_hand = async |op: Op| client.txn(Txn { compares: Vec::new(), then: vec![op] }).await.unwrap();
        by_hand(Op::put(last(), "by hand", None)).await;
        let (now, bundled) = both_ways(&client, &of).await;
        assert!(now != bundled && bundled == listed);
        // A key is that comes or goes.
        by_hand(Op::delete(last())).await;
        let (now, bundled) = both_ways(&client, &of).await;
        assert!(now == bundled && bundled.len() + 1 == listed.len());
        by_hand(Op::put("/a/y", "", None)).await;
        by_hand(Op::put("/a/z", "", None)).await;
        let (now, bundled) = both_ways(&client, &of).await;
        assert!(now == bundled && bundled.len() == listed.len() + 1);
        // Not anew for a change that is small beside it.
        write(vec![Op::put("/a/000", "newer", None)]).await;
        assert!(!client.bundle(&of).await.unwrap());
        // What is damaged, or not whole, is passed over.
        for (key, value) in [("/bundle/a/0001", Some("garbage")), ("/bundle/a/0001", None), ("/bundle/a/0000", None)] {
            let op = value.map_or_else(|| Op::delete(key), |value| Op::put(key, value, None));
            client.txn(Txn { compares: Vec::new(), then: vec![op] }).await.unwrap();
            let (listed, bundled) = both_ways(&client, &of).await;
            assert!(listed == bundled, "{key} {value:?}");
        }
        // Beside others, and what has none.
        let put =
            Txn { compares: Vec::new(), then: vec![Op::put("/b/one", "1", None), Op::put("/b.written", "", None)] };
        client.txn(put).await.unwrap();
        assert!(!client.bundle(&small).await.unwrap(), "of one key");
        let (_, all) = client.look_at(&[of.clone(), small], &[b"/a.".into(), b"/b.".into()], 0).await.unwrap();
        let (listed, _) = both_ways(&client, &of).await;
        assert_eq!((all[0].len(), all[1].len(), all[2].len(), all[3].len()), (listed.len(), 1, 1, 1));
    });
}
