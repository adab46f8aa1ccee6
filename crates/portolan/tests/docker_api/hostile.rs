//! The API as a socket that anybody of the group may write anything to.

use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use portolan_lab::eventually;
use serde_json::{Value, json};

use crate::common::*;
use crate::served::{Served, read};

#[test]
fn malformed_requests() {
    let Some(served) = Served::or_skip("docker-api-malformed") else { return };
    served.world.network("web", &[]);
    let untouched = served.world.json(&["network", "ls"]);
    let post = |path: &str, body: &str| served.send("POST", path, body.as_bytes());
    for (path, body, status, words) in [
        ("/networks/create", "", 400, "got EOF"),
        ("/networks/create", "{", 400, "invalid JSON: "),
        ("/networks/create", "[]", 400, "invalid JSON: "),
        ("/networks/create", "null", 400, "invalid JSON: "),
        ("/networks/create", r#"{"Name":"x"} {"Name":"y"}"#, 400, "invalid JSON: "),
        ("/networks/create", r#"{"Name":5}"#, 400, "invalid JSON: "),
        ("/networks/create", r#"{"Name":"x","Internal":"yes"}"#, 400, "invalid JSON: "),
        ("/networks/create", r#"{"Name":"x","IPAM":{"Config":{}}}"#, 400, "invalid JSON: "),
        ("/networks/create", r#"{"Name":"x","Options":{"a":1}}"#, 400, "invalid JSON: "),
        ("/networks/create", r#"{"Name":"x\u0000y"}"#, 400, "invalid name"),
        ("/networks/create", r#"{"Name":"../../etc"}"#, 400, "invalid name"),
        ("/networks/web/connect", "{}", 400, "value is empty"),
        ("/networks/web/connect", r#"{"Container":["a"]}"#, 400, "invalid JSON: "),
        ("/networks/web/connect", r#"{"Container":"aa","EndpointConfig":7}"#, 400, "invalid JSON: "),
        ("/networks/web/connect", r#"{"Container":"aa"}"#, 404, "No such container: aa"),
        ("/networks/web/disconnect", r#"{"Container":"aa"}"#, 404, "No such container: aa"),
        ("/networks/web/disconnect", r#"{"Container":"aa","Force":true}"#, 404, "endpoint aa not found"),
        ("/networks/web/disconnect", r#"{"Container":"aa","Force":1}"#, 400, "invalid JSON: "),
        ("/networks/prune?filters=%5B", "", 400, "invalid filter"),
        ("/networks/prune?filters=%7B%22until%22%3A%5B%22x%22%5D%7D", "", 400, "failed to parse"),
    ] {
        let reply = post(path, body);
        assert_eq!(reply.status, status, "{path} {body}: {reply:?}");
        assert!(reply.message().contains(words), "{path} {body}: {reply:?}");
    }
    for (method, path, status) in [
        ("GET", "/v1.52/networks", 400),
        ("GET", "/v1.23/networks", 400),
        ("GET", "/v99999999999999999999.1/networks", 400),
        ("PUT", "/networks/web", 404),
        ("BREW", "/networks", 404),
        ("GET", "/networks/nosuch", 404),
        ("GET", "/networks/%00", 404),
        ("GET", "/networks/%ff%fe", 404),
        ("GET", "/containers/nosuch/json", 404),
        ("DELETE", "/networks/", 404),
        ("GET", "/networks/web?scope=swarm", 404),
        ("GET", "/containers/json?limit=many", 400),
        ("GET", "/events?since=soon", 400),
        ("GET", "/events?since=20&until=10", 400),
        ("POST", "/containers/create", 501),
        ("GET", "/images/json", 501),
    ] {
        let reply = served.send(method, path, b"");
        assert_eq!(reply.status, status, "{method} {path}: {reply:?}");
        assert!(!reply.message().is_empty());
        assert!(reply.head.to_ascii_lowercase().contains("api-version: 1.51"), "{reply:?}");
    }
    let longest = vec![b' '; 5 << 20];
    let reply = served.send("POST", "/networks/create", &longest);
    assert_eq!(reply.status, 413, "{reply:?}");
    let mut stream = served.connect();
    let head = "POST /networks/create HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}";
    stream.write_all(head.as_bytes()).unwrap();
    assert!(read(&mut stream).message().contains("must be 'application/json'"));
    for nonsense in
        [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET\r\n\r\n", b"\0\0\0\0\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"]
    {
        let mut stream = served.connect();
        stream.write_all(nonsense).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        assert!([0, 400, 404, 505].contains(&read(&mut stream).status), "{nonsense:?}");
    }
    // No clock has that time: it listens for good, and the answer has begun.
    let mut stream = served.connect();
    stream.write_all(b"GET /events?until=18446744073709551615 HTTP/1.1\r\nHost: d\r\n\r\n").unwrap();
    let mut begun = [0; 12];
    std::io::Read::read_exact(&mut stream, &mut begun).unwrap();
    assert_eq!(&begun, b"HTTP/1.1 200");
    drop(stream);
    assert_eq!(served.world.json(&["network", "ls"]), untouched);
    served.world.verify();
}

#[test]
fn clients_that_are_slow_or_leave() {
    let Some(served) = Served::or_skip("docker-api-slow") else { return };
    let create = |name: &str| json!({"Name": name, "CheckDuplicate": true}).to_string();
    let head = |length: usize| {
        format!(
            "POST /networks/create HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    // Those that never finish keep nobody else.
    let mut halves: Vec<UnixStream> = (0..40)
        .map(|_| {
            let mut stream = served.connect();
            stream.write_all((head(100) + "{\"Name\":").as_bytes()).unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    assert_eq!(served.get("/_ping").body, "OK");
    assert!(began.elapsed() < LONG);
    // Half of them go, in the middle of a body.
    halves.truncate(20);
    // A body that comes byte by byte, and one in chunks.
    let body = create("slow");
    let mut stream = served.connect();
    stream.write_all(head(body.len()).as_bytes()).unwrap();
    for byte in body.as_bytes() {
        stream.write_all(&[*byte]).unwrap();
        stream.flush().unwrap();
    }
    assert_eq!(read(&mut stream).status, 201);
    let body = create("chunked");
    let (first, second) = body.split_at(7);
    let mut stream = served.connect();
    let chunks = format!(
        "POST /networks/create HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{first}\r\n{:x}\r\n{second}\r\n0\r\n\r\n",
        first.len(),
        second.len()
    );
    stream.write_all(chunks.as_bytes()).unwrap();
    assert_eq!(read(&mut stream).status, 201);
    // One that asks and does not wait for the answer is done all the same, or not at all.
    for round in 0..20 {
        let body = create(&format!("left{round}"));
        let mut stream = served.connect();
        stream.write_all((head(body.len()) + &body).as_bytes()).unwrap();
    }
    let count = || served.get("/networks").json().as_array().unwrap().len();
    // Whoever is gone before he was read is not heard.
    assert!(eventually(LONG, || count() == 3 + 2 + 20) || count() > 3 + 2, "{}", served.get("/networks").body);
    drop(halves);
    served.world.verify();
}

#[test]
fn the_same_again_and_many_at_once() {
    let Some(served) = Served::or_skip("docker-api-parallel") else { return };
    served.run("aa", &["--network", "none"]);
    let created: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..100)
            .map(|at| {
                let served = &served;
                scope.spawn(move || {
                    let name = format!("n{}", at % 50);
                    let reply = served.post("/v1.41/networks/create", &json!({"Name": name, "CheckDuplicate": true}));
                    assert!(served.get("/networks").json().as_array().is_some_and(|all| all.len() >= 3));
                    reply.status
                })
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let count = |status: u16| created.iter().filter(|found| **found == status).count();
    assert_eq!((count(201), count(409)), (50, 50), "{created:?}");
    let removed: Vec<u16> = std::thread::scope(|scope| {
        let clients: Vec<_> = (0..100)
            .map(|at| {
                let served = &served;
                scope.spawn(move || served.send("DELETE", &format!("/networks/n{}", at % 50), b"").status)
            })
            .collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let count = |status: u16| removed.iter().filter(|found| **found == status).count();
    assert_eq!((count(204), count(404)), (50, 50), "{removed:?}");

    // Connecting twice is refused, so is disconnecting.
    served.world.network("web", &[]);
    let container = served.world.container("bb", &["--network", "web"]);
    let about = |what: &str| served.post(&format!("/networks/web/{what}"), &json!({"Container": "bb"}));
    let again = about("connect");
    assert_eq!((again.status, again.message().as_str()), (403, "endpoint with name bb already exists in network web"));
    assert_eq!(about("disconnect").status, 200);
    let again = about("disconnect");
    assert!(again.status == 500 && again.message().contains("is not connected to network web"), "{again:?}");
    assert_eq!(about("connect").status, 200);
    // What has no stack of its own stays as it is.
    let refused = served.post("/networks/web/connect", &json!({"Container": "aa"}));
    assert!(refused.status == 400 && refused.message().contains("private (none) mode"), "{refused:?}");
    drop(container);
    served.world.verify();
}

#[test]
fn names_ids_and_the_starts_of_ids() {
    let Some(served) = Served::or_skip("docker-api-ids") else { return };
    let ids: Vec<String> = (0..17)
        .map(|at| {
            let created = served.post("/networks/create", &json!({"Name": format!("n{at}")})).json();
            created["Id"].as_str().unwrap().to_owned()
        })
        .collect();
    for (at, id) in ids.iter().enumerate() {
        for term in [id.as_str(), &format!("n{at}"), &id[..40]] {
            let shown = served.get(&format!("/networks/{term}")).json();
            assert_eq!(shown["Id"], id.as_str(), "{term}");
        }
    }
    // Of seventeen, two start with the same digit.
    let first = ids.iter().map(|id| &id[..1]).find(|digit| ids.iter().filter(|id| id.starts_with(digit)).count() > 1);
    let first = first.unwrap();
    let reply = served.get(&format!("/networks/{first}"));
    assert_eq!(reply.status, 400, "{reply:?}");
    assert!(reply.message().starts_with(&format!("network {first} is ambiguous (")), "{reply:?}");
    assert!(reply.message().ends_with("matches found based on ID prefix)"), "{reply:?}");
}

/// What an older client is shown is what its version had.
#[test]
fn shapes_by_version() {
    let Some(served) = Served::or_skip("docker-api-versions") else { return };
    served.world.network("web", &[]);
    let container = served.world.container("aa", &["--network", "web", "--mac-address", "02:00:00:00:00:77"]);
    let of = |version: &str, path: &str| -> Value { served.get(&format!("{version}{path}")).json() };
    let listed =
        |version| of(version, "/networks").as_array().unwrap().iter().find(|n| n["Name"] == "web").unwrap().clone();
    assert_eq!(listed("/v1.27")["Containers"].as_object().unwrap().len(), 1);
    assert_eq!(listed("/v1.28")["Containers"], json!({}));
    assert_eq!(of("/v1.28", "/networks/web")["Containers"].as_object().unwrap().len(), 1);
    assert_eq!(
        (&of("/v1.47", "/networks/web")["EnableIPv4"], &of("", "/networks/web")["EnableIPv4"]),
        (&Value::Null, &json!(true))
    );
    let endpoint = |version| of(version, "/containers/aa/json")["NetworkSettings"]["Networks"]["web"].clone();
    assert_eq!((&endpoint("/v1.43")["DNSNames"], &endpoint("/v1.47")["GwPriority"]), (&Value::Null, &Value::Null));
    assert_eq!((&endpoint("/v1.44")["DNSNames"][0], &endpoint("/v1.48")["GwPriority"]), (&json!("aa"), &json!(0)));
    assert_eq!(of("/v1.43", "/containers/aa/json")["Config"]["MacAddress"], "02:00:00:00:00:77");
    assert_eq!(of("/v1.44", "/containers/aa/json")["Config"]["MacAddress"], Value::Null);
    drop(container);
}

#[test]
fn the_socket_and_whom_it_is_for() {
    let Some(served) = Served::or_skip("docker-api-socket") else { return };
    let group = |name: &str| portolan_kernel::groups::id_of(name).unwrap();
    let found = || {
        let found = std::fs::metadata(&served.socket).unwrap();
        (found.permissions().mode() & 0o777, found.gid())
    };
    assert_eq!(found(), (0o660, group("docker").unwrap_or(0)));
    let world = &served.world;
    // Asked once more, the daemon that runs is fine, unless it does not serve there.
    world.portolan_ok(&["daemon", "start", "--api"]);
    let elsewhere = world.lab.dir().join("api.sock");
    let elsewhere = elsewhere.to_str().unwrap();
    let refused = world.refused(&["daemon", "start", "--api", elsewhere]);
    assert!(refused.contains("does not serve Docker's API"), "{refused}");
    // It goes on over an upgrade, and nobody else takes its place.
    world.portolan_ok(&["daemon", "upgrade"]);
    assert_eq!((served.get("/_ping").status, found().0), (200, 0o660));
    world.portolan_ok(&["daemon", "stop"]);
    assert!(!served.socket.exists());

    // One that was killed leaves a socket, which is replaced; one that is answered at is not.
    drop(UnixListener::bind(&served.socket).unwrap());
    world.portolan_ok(&["daemon", "start", "--api", "--api-group", "1234"]);
    assert_eq!((served.get("/_ping").body.as_str(), found()), ("OK", (0o660, 1234)));
    world.portolan_ok(&["daemon", "stop"]);
    let other = UnixListener::bind(&served.socket).unwrap();
    let refused = world.refused(&["daemon", "start", "--api"]);
    assert!(refused.contains("another process answers there"), "{refused}");
    drop(other);
    std::fs::remove_file(&served.socket).unwrap();
    let refused = world.refused(&["daemon", "start", "--api", "--api-group", "no-such-group"]);
    assert!(refused.contains("no group `no-such-group`"), "{refused}");
    world.portolan_ok(&["daemon", "start", "--api", "--api-group", "root"]);
    assert_eq!(found(), (0o660, 0));
}
