//! The steps, in order.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use portolan_lab::probe::{Probe, http_get, ping, tcp_probe};
use portolan_lab::server::TcpServer;
use portolan_lab::snapshot::{diff, snapshot};
use portolan_lab::{InNetns, eventually};

use super::picture::{self, Picture};
use super::report::Report;
use super::stage::{Container, Interrupt, Stage};

/// How long to wait for what must come.
const LONG: Duration = Duration::from_secs(3);
/// How long to wait for what must not come.
const SHORT: Duration = Duration::from_millis(400);

const HOST: [&str; 2] = ["10.0.1.1", "fd00:1::1"];
const NEIGHBOUR: [&str; 2] = ["10.0.1.2", "fd00:1::2"];
/// Where the web server is published, and where it listens.
const PUBLISHED: u16 = 1880;
const INSIDE: u16 = 80;
/// Where the other one listens, published nowhere.
const PRIVATE: u16 = 5432;

type Act = fn(&mut Stage, &mut Report) -> Result<()>;

struct Step {
    title: &'static str,
    about: &'static str,
    act: Act,
    /// The steps after it would have nothing to show without it.
    vital: bool,
}

/// How many there are.
pub(super) const COUNT: usize = STEPS.len() + 2;

const STEPS: [Step; 7] = [
    Step {
        title: "A network",
        about: "A bridge on the host with a private subnet of each family, free of clashes with the host's routes.",
        act: network,
        vital: true,
    },
    Step {
        title: "Two containers on it",
        about: "A web server, published on the host's port 1880, and one that nobody outside shall reach.",
        act: containers,
        vital: true,
    },
    Step {
        title: "Containers reach each other",
        about: "ICMP echo from one to the other through the bridge, and a request to the port that is published nowhere.",
        act: each_other,
        vital: false,
    },
    Step {
        title: "Containers reach the neighbour, in the host's name",
        about: "The neighbour knows no route to them. Their source address is masqueraded.",
        act: outwards,
        vital: false,
    },
    Step {
        title: "The neighbour reaches the published port",
        about: "A web page over TCP. The server sees who asks: the client's address is kept.",
        act: published,
        vital: false,
    },
    Step {
        title: "What is not published stays closed",
        about: "The neighbour tries the host's port, and then the containers themselves, to which it is given routes.",
        act: unpublished,
        vital: false,
    },
    Step {
        title: "The rules, and whose they are",
        about: "Read back from the kernel, in sentences and in the form of `iptables -t nat -L -n`.",
        act: rules,
        vital: false,
    },
];

/// Plays all steps; what failed is in the report.
pub(super) fn play(report: &mut Report, interrupt: &Interrupt) {
    report.step(
        1,
        "Two machines on a LAN",
        "Network namespaces stand for machines, a bridge in one of its own for the switch between them.",
    );
    let mut stage = match Stage::set(interrupt) {
        Ok(stage) => stage,
        Err(error) => return failed(report, &error),
    };
    let dir = stage.dir();
    if let Err(error) = machines(&stage, report) {
        failed(report, &error);
    }
    for (number, step) in (2..).zip(&STEPS) {
        report.step(number, step.title, step.about);
        if let Err(error) = (step.act)(&mut stage, report) {
            failed(report, &error);
            if step.vital || interrupt.happened() || report.is_unread() {
                break;
            }
        }
    }
    if interrupt.happened() || report.is_unread() {
        return;
    }
    report.step(
        COUNT,
        "Nothing is left",
        "Containers and network go; then the host is compared with what it was before step 2.",
    );
    if let Err(error) = removal(&mut stage, report) {
        failed(report, &error);
    }
    drop(stage);
    report.check(!dir.exists(), "the machines themselves are gone too", &format!("no {}", dir.display()));
}

fn failed(report: &mut Report, error: &anyhow::Error) {
    report.check(false, "this step", &format!("{error:#}"));
}

fn machines(stage: &Stage, report: &mut Report) -> Result<()> {
    for (name, addresses) in [("host", HOST), ("neighbour", NEIGHBOUR)] {
        report.text(&format!("{name:<11}eth0  {}/24  {}/64", addresses[0], addresses[1]));
    }
    for to in both(HOST)? {
        pings(report, "neighbour", &stage.neighbour, "host", to);
    }
    Ok(())
}

fn network(stage: &mut Stage, report: &mut Report) -> Result<()> {
    succeed(stage, report, "network create web", shortened)?;
    succeed(stage, report, "network ls", str::to_owned)?;
    let network = stage.learn_network(report)?;
    let seen = format!("{} with {}", network.bridge, network.gateways.join(" and "));
    report.check(network.gateways.len() == 2, "bridge", &seen);
    Ok(())
}

fn containers(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let site = format!("run -d --name site --network web -p {PUBLISHED}:{INSIDE} -- portolan demo-serve");
    succeed(stage, report, &site, shortened)?;
    stage.learn_container(report, "site")?;
    let db = format!("run -d --name db --network web -- portolan demo-serve --port {PRIVATE}");
    succeed(stage, report, &db, shortened)?;
    stage.learn_container(report, "db")?;
    succeed(stage, report, "ps", str::to_owned)?;
    for (container, port) in stage.containers.iter().zip([INSIDE, PRIVATE]) {
        let itself = SocketAddr::new(container.v4, port);
        let up = eventually(LONG, || http_get(&container.netns, itself, "/", LONG).is_ok());
        report.check(up, &format!("{} serves", container.name), &format!("{itself} and [{}]:{port}", container.v6));
    }
    report.drawing(&draw(stage)?);
    Ok(())
}

fn each_other(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let (site, db) = pair(stage)?;
    for to in db.addresses() {
        pings(report, "site", &site.netns, "db", to);
    }
    for to in site.addresses() {
        pings(report, "db", &db.netns, "site", to);
    }
    for (to, from) in db.addresses().into_iter().zip(site.addresses()) {
        fetches(report, "site", &site.netns, SocketAddr::new(to, PRIVATE), Some(from));
    }
    Ok(())
}

fn outwards(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let (_, db) = pair(stage)?;
    for ((to, expected), own) in both(NEIGHBOUR)?.into_iter().zip(both(HOST)?).zip(db.addresses()) {
        let server = TcpServer::start(&stage.neighbour, SocketAddr::new(to, 7), "neighbour")?;
        let probe = tcp_probe(&db.netns, server.addr(), LONG);
        let what = format!("db ({own}) → neighbour {}", server.addr());
        match probe.seen() {
            Some(seen) => {
                report.check(seen.ip() == expected, &what, &format!("the neighbour sees {}, the host", seen.ip()))
            }
            None => report.check(false, &what, &probe.to_string()),
        }
    }
    Ok(())
}

fn published(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let (_, db) = pair(stage)?;
    for (to, client) in both(HOST)?.into_iter().zip(both(NEIGHBOUR)?) {
        fetches(report, "neighbour", &stage.neighbour, SocketAddr::new(to, PUBLISHED), Some(client));
    }
    for (to, client) in both(HOST)?.into_iter().zip(both(HOST)?) {
        fetches(report, "host", &stage.host, SocketAddr::new(to, PUBLISHED), Some(client));
    }
    fetches(report, "host", &stage.host, SocketAddr::new([127, 0, 0, 1].into(), PUBLISHED), None);
    // Through the host and back into the network they came from: the answer has to take the same way.
    for to in both(HOST)? {
        fetches(report, "db", &db.netns, SocketAddr::new(to, PUBLISHED), None);
    }
    Ok(())
}

fn unpublished(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let (site, db) = pair(stage)?;
    for (container, via) in
        [(db.v4, HOST[0]), (db.v6, HOST[1])].into_iter().chain([(site.v4, HOST[0]), (site.v6, HOST[1])])
    {
        let length = if container.is_ipv4() { 32 } else { 128 };
        stage.neighbour.add_route(&format!("{container}/{length}"), via)?;
    }
    let mut targets = Vec::new();
    for to in both(HOST)? {
        targets.push(("the host", SocketAddr::new(to, PRIVATE)));
    }
    for (name, container, port) in [("db", db, PRIVATE), ("site", site, INSIDE)] {
        targets.extend(container.addresses().map(|to| (name, SocketAddr::new(to, port))));
    }
    let from = &stage.neighbour;
    // Those that are dropped take their time: all at once.
    let probes: Vec<Probe> = std::thread::scope(|scope| {
        let started: Vec<_> = targets.iter().map(|(_, to)| scope.spawn(move || tcp_probe(from, *to, SHORT))).collect();
        started
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    for ((name, to), probe) in targets.iter().zip(&probes) {
        report.check(!probe.is_open(), &format!("neighbour → {name} {to} stays closed"), &probe.to_string());
    }
    Ok(())
}

fn rules(stage: &mut Stage, report: &mut Report) -> Result<()> {
    let (site, _) = pair(stage)?;
    let words = succeed(stage, report, "rules site", str::to_owned)?;
    let owner = format!("container site {PUBLISHED}:{INSIDE}/tcp");
    report.check(words.contains(&owner), "the published port has an owner", &owner);
    let table = succeed(stage, report, "rules --as iptables", translations)?;
    let both = [format!("to:{}:{INSIDE}", site.v4), format!("to:[{}]:{INSIDE}", site.v6)];
    let found =
        both.iter().all(|target| table.lines().any(|line| line.starts_with("DNAT") && line.contains(target.as_str())));
    report.check(found, "destination NAT of both families", &both.join(" and "));
    let verify = stage.run(report, "verify")?;
    report.check(
        verify.exit == 0 && verify.output.is_empty(),
        "the kernel holds what the state says, no more and no less",
        &format!("exit status {}", verify.exit),
    );
    Ok(())
}

fn removal(stage: &mut Stage, report: &mut Report) -> Result<()> {
    succeed(stage, report, "rm -f site db", str::to_owned)?;
    succeed(stage, report, "network rm web", str::to_owned)?;
    stage.cleared();
    let after = snapshot(&stage.host)?;
    let changes = diff(&stage.before, &after);
    let same = format!("{} facts before, the same {} after", stage.before.lines().len(), after.lines().len());
    report.check(
        changes.is_empty(),
        "links, addresses, routes, neighbours, nftables and sysctls of the host",
        if changes.is_empty() { &same } else { "changed" },
    );
    report.text(&changes.join("\n"));
    let (networks, containers) = stage.rows(report)?;
    report.check(
        (networks, containers) == (0, 0),
        "the state",
        &format!("{networks} networks, {containers} containers"),
    );
    Ok(())
}

/// Runs a command that has to succeed; all it printed.
fn succeed(stage: &Stage, report: &mut Report, line: &str, excerpt: impl FnOnce(&str) -> String) -> Result<String> {
    let ran = stage.run_showing(report, line, excerpt)?;
    if ran.exit != 0 {
        bail!("exit status {}", ran.exit);
    }
    Ok(ran.output)
}

fn pair(stage: &Stage) -> Result<(&Container, &Container)> {
    match stage.containers.as_slice() {
        [site, db] => Ok((site, db)),
        _ => bail!("the containers do not run"),
    }
}

fn pings(report: &mut Report, name: &str, from: &impl InNetns, whom: &str, to: IpAddr) {
    // The first one has the neighbour to find.
    let first = ping(from, to, LONG);
    let start = Instant::now();
    let probe = if first.is_open() { ping(from, to, LONG) } else { first };
    let took = start.elapsed();
    let seen =
        if probe.is_open() { format!("reply in {:.2} ms", took.as_secs_f64() * 1000.0) } else { probe.to_string() };
    report.check(probe.is_open(), &format!("{name} pings {whom} {to}"), &seen);
}

/// Gets the page; the server must have seen `client`, if that is known beforehand.
fn fetches(report: &mut Report, name: &str, from: &impl InNetns, to: SocketAddr, client: Option<IpAddr>) {
    let what = format!("{name} → http://{to}/");
    match http_get(from, to, "/", LONG) {
        Ok(reply) => {
            let seen =
                reply.body.strip_prefix("hello ").and_then(|rest| rest.split_once(',')?.0.parse::<SocketAddr>().ok());
            let expected = seen.is_some_and(|seen| client.is_none_or(|client| seen.ip() == client));
            let wanted = client.filter(|_| !expected).map_or_else(String::new, |client| format!(", wanted {client}"));
            report.check(
                reply.status == 200 && expected,
                &what,
                &format!("{} `{}`{wanted}", reply.status, reply.body.trim_end()),
            );
        }
        Err(error) => report.check(false, &what, &format!("{error:#}")),
    }
}

fn both(texts: [&str; 2]) -> Result<[IpAddr; 2]> {
    Ok([texts[0].parse()?, texts[1].parse()?])
}

/// An id as Docker abbreviates it.
fn shortened(output: &str) -> String {
    match output.trim_end() {
        id if id.len() == 64 => format!("{}…\n", &id[..12]),
        other => other.to_owned(),
    }
}

/// Of iptables' form, what translates addresses for us, under the headings it stands under.
fn translations(text: &str) -> String {
    let mut shown = String::new();
    let (mut table, mut chain) = ("", "");
    for line in text.lines() {
        if line.starts_with("# ip") {
            table = line;
        } else if line.starts_with("Chain ") {
            chain = line;
        } else if line.starts_with("DNAT") || (line.starts_with("MASQUERADE") && line.contains("network web")) {
            for heading in [&mut table, &mut chain] {
                if !heading.is_empty() {
                    shown.push_str(&format!("{heading}\n"));
                    *heading = "";
                }
            }
            shown.push_str(&format!("  {line}\n"));
        }
    }
    shown.push_str("(what filters is left out here)\n");
    shown
}

/// The network as it is now.
fn draw(stage: &Stage) -> Result<String> {
    let (site, db) = pair(stage)?;
    let network = stage.network.as_ref().context("the network is not there")?;
    let on_lan = |addresses: [&str; 2]| format!("eth0  {}/24  {}/64", addresses[0], addresses[1]);
    let container = |container: &Container| picture::Container {
        name: container.name.clone(),
        host_end: container.host_end.clone(),
        lines: vec![
            format!("{}  {}/{}", container.ifname, container.v4, container.prefix_v4),
            format!("{:>width$}  {}/{}", "", container.v6, container.prefix_v6, width = container.ifname.len()),
            container.command.clone(),
        ],
    };
    let picture = Picture {
        neighbour: vec![on_lan(NEIGHBOUR)],
        host: vec![on_lan(HOST)],
        bridge: network.bridge.clone(),
        network: "web".to_owned(),
        gateways: network.gateways.clone(),
        published: (PUBLISHED, INSIDE),
        masquerade: HOST[0].to_owned(),
        containers: [container(site), container(db)],
    };
    Ok(picture.to_string())
}
