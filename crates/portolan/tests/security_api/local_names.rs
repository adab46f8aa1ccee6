//! Who is on a network is nobody else's business: names of containers, and names without a dot, are not asked of others.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use portolan_kernel::netns::with_netns;
use portolan_kernel::rtnl::Family;
use portolan_lab::InNetns;

use crate::common::upstream::output;
use crate::common::*;
use crate::table::{Row, row};

/// A name server of the world that knows nothing, and keeps what it was asked.
struct Curious(Arc<Mutex<Vec<String>>>);

impl Curious {
    fn start(place: &impl InNetns, bind: SocketAddr) -> Self {
        let socket = with_netns(place.netns(), || std::net::UdpSocket::bind(bind).unwrap()).unwrap();
        let heard: Arc<Mutex<Vec<String>>> = Arc::default();
        let keep = Arc::downgrade(&heard);
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Some(keep) = keep.upgrade() {
                let Ok((length, client)) = socket.recv_from(&mut bytes) else { continue };
                let mut labels = Vec::new();
                let mut at = 12;
                while bytes[at] != 0 {
                    let end = at + 1 + usize::from(bytes[at]);
                    labels.push(String::from_utf8_lossy(&bytes[at + 1..end]).to_lowercase());
                    at = end;
                }
                keep.lock().unwrap().push(labels.join("."));
                // No such name (RFC 1035 §4.1.1).
                bytes[2..4].copy_from_slice(&[0x81, 0x83]);
                let _ = socket.send_to(&bytes[..length], client);
            }
        });
        Self(heard)
    }

    /// What it was asked since the last time.
    fn heard(&self) -> Vec<String> {
        let mut names = std::mem::take(&mut *self.0.lock().unwrap());
        names.sort();
        names.dedup();
        names
    }
}

pub(crate) fn case() -> Option<Vec<Row>> {
    let mut world = World::or_skip("sec-names")?;
    world.daemon = true;
    output(&world.n, "dig", &["-v"])?;
    let resolv_conf = world.lab.dir().join("resolv.conf");
    std::fs::write(&resolv_conf, "nameserver 10.0.1.2\nsearch corp.example example.org\noptions ndots:5\n").unwrap();
    world.environment.push(("PORTOLAN_RESOLV_CONF".into(), resolv_conf.into()));
    let curious = Curious::start(&world.n, "10.0.1.2:53".parse().unwrap());
    world.network("web", &["--subnet", "10.91.1.0/24", "--subnet", "fd91:1::/64"]);
    world.container("site", &["--network", "name=web,alias=www"]);
    let asks = world.container("asks", &["--network", "web"]);
    // A resolver as containers have it, with whatever it is told about names.
    let lookup = |options: &[&str], names: &[&str]| {
        let run = [&["run", "--rm", "--network", "web"], options, &["--", "getent", "ahosts"], names].concat();
        drop(world.portolan(&run));
        curious.heard()
    };
    let mut rows = Vec::new();
    let searches: [(&str, &[&str]); 4] = [
        ("the host's search list and `ndots:5`", &[]),
        ("search list `example.org`, `ndots:15`", &["--dns-search", "example.org", "--dns-opt", "ndots:15"]),
        ("no search list, `ndots:0`", &["--dns-search", ".", "--dns-opt", "ndots:0"]),
        ("search list of the network's own name, `ndots:1`", &["--dns-search", "web", "--dns-opt", "ndots:1"]),
    ];
    for (search, options) in searches {
        let left = lookup(options, &["site", "www", "SITE", "site.web"]);
        assert!(left.is_empty(), "with {search}: {left:?}");
        // Nobody has it; as it stands it is asked of nobody, whatever becomes of it in a search list.
        let left = lookup(options, &["nobody"]);
        assert!(!left.iter().any(|name| !name.contains('.')), "nobody with {search}: {left:?}");
        // With a dot it may be anybody's.
        let left = lookup(options, &["www.example.net"]);
        assert!(left.contains(&"www.example.net".to_owned()), "{search}: {left:?}");
        rows.push(row(
            format!("containers' names and names without a dot, with {search}"),
            "a name with a dot is asked of the host's name server",
            "asked of nobody",
        ));
    }
    // Asked by hand: by either transport, of every type.
    for family in FAMILIES {
        let gateway = format!("@{}", pick(family, "10.91.1.1", "fd91:1::1"));
        let mut command = vec![gateway.as_str(), "+time=2", "+tries=1"];
        for name in ["site", "nobody", "nobody.web", "site.corp.example", "9.1.91.10.in-addr.arpa", "portolan.internal"]
        {
            command.extend([name, "A", name, "AAAA", name, "MX", "+tcp", name, "ANY", "+tcp"]);
        }
        let said = output(&asks, "dig", &command).unwrap_or_default();
        assert_eq!(said.matches("->>HEADER<<-").count(), 24, "{said}");
    }
    assert_eq!(curious.heard(), [""; 0], "by hand");
    // The host's own resolver asks whatever it is told to ask: so would a container that is given its file as it is.
    let upstream = format!("@{}", neighbour_ip(Family::V4));
    output(&world.h, "dig", &[&upstream, "site", "+time=2", "+tries=1"]);
    output(&world.h, "dig", &[&upstream, "site.corp.example", "+time=2", "+tries=1"]);
    assert_eq!(curious.heard(), ["site", "site.corp.example"]);
    rows.push(row(
        "the same by dig(1), of types A, AAAA, MX and ANY, by UDP and TCP, and addresses of the network",
        "the host's own resolver asks for `site` and `site.corp.example`",
        "asked of nobody",
    ));
    Some(rows)
}
