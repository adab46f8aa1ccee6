//! A real swarm of three hosts, with Docker's own driver `overlay` and with ours as a plugin that Docker manages: Docker lets no
//! other into a swarm.
//!
//! Ours must do everything in [`STEPS`] but what is said there. `PORTOLAN_BLESS=1` has Docker's own driver do the same, and
//! writes the outcomes of both, as a table, to `docs/docker-swarm-outcomes.md`.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use portolan_lab::eventually;

use crate::machine::IMAGE;
use crate::world::{LONG, NEIGHBOUR, Node, SHORT, World, at, reaches, says, tcp_server, timed};

/// How long a swarm may take to do what it was asked to.
const PATIENCE: Duration = Duration::from_secs(25);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Driver {
    Overlay,
    Portolan,
}

struct Swarm {
    world: World,
    driver: Driver,
}

/// What a user would call it, whether ours must do it, and the attempt. Each finds what those before have left.
type Step = (&'static str, bool, fn(&Swarm) -> Result<()>);

const STEPS: [Step; 12] = [
    ("a service's replicas run on all hosts", true, Swarm::spread),
    ("its name leads to all of them, on every host (`--endpoint-mode dnsrr`)", true, Swarm::service_name),
    ("a task is found by its own name from another host", true, Swarm::task_name),
    (
        "`docker run` on a worker is on the network as well (`--attachable`), and is found by its name",
        true,
        Swarm::alone,
    ),
    ("IPv6 between hosts", true, Swarm::ipv6),
    ("the way out takes the host's address", true, Swarm::way_out),
    ("more replicas, and none on a host that is drained", true, Swarm::drain),
    ("tasks that are made anew (`service update --force`)", true, Swarm::anew),
    ("a port published on each host (`--publish mode=host`)", true, Swarm::published),
    ("a service that asks for no endpoint mode (`vip`)", true, Swarm::vip),
    // Docker carries it by IPVS, which a kernel may lack.
    ("a port published by the routing mesh", false, Swarm::mesh),
    ("services and network removed: nothing is left", true, Swarm::removed),
];

#[test]
fn a_swarm_does_with_us_what_it_does_with_its_own_overlay() {
    let Some(world) = World::swarm_or_skip("docker-swarm", &["a", "b", "c"]) else { return };
    let bless = env::var_os("PORTOLAN_BLESS").is_some();
    let mut swarm = Swarm { world, driver: Driver::Overlay };
    let theirs = bless.then(|| play(&swarm));
    swarm.driver = Driver::Portolan;
    let ours = play(&swarm);
    if let Some(theirs) = theirs {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/docker-swarm-outcomes.md");
        fs::write(path, table(&theirs, &ours)).unwrap();
    }
    let failed: Vec<_> = STEPS.iter().zip(&ours).filter(|((_, must, _), outcome)| *must && outcome.is_err()).collect();
    let failed: Vec<String> = failed.iter().map(|((name, ..), outcome)| format!("{name}: {outcome:?}")).collect();
    assert!(failed.is_empty(), "with us a swarm fails at: {failed:#?}");
}

fn play(swarm: &Swarm) -> Vec<std::result::Result<(), String>> {
    let steps = STEPS.iter().map(|(name, _, step)| {
        let (time, outcome) = timed(|| step(swarm).map_err(|error| format!("{error:#}")));
        eprintln!("{:?}: {name}: {outcome:?} ({:.1} s)", swarm.driver, time.as_secs_f64());
        outcome
    });
    steps.collect()
}

/// Both outcomes of every step, as Markdown.
fn table(theirs: &[std::result::Result<(), String>], ours: &[std::result::Result<(), String>]) -> String {
    let mut text = String::from(
        "# What a swarm does with either driver\n\nThree hosts with Docker 20.10 of Debian 12 in one swarm, run by \
         `crates/portolan/tests/docker_cluster`, with Docker's own driver `overlay` and with the plugin `portolan`, managed by \
         Docker. The kernel has no IPVS, which Docker's virtual addresses and its routing mesh need. `PORTOLAN_BLESS=1 cargo test \
         -p portolan --test docker_cluster swarm` writes this page.\n\n| | Docker's overlay | Portolan |\n|---|---|---|\n",
    );
    let say = |outcome: &std::result::Result<(), String>| match outcome {
        Ok(()) => "ok".to_owned(),
        Err(reason) => format!("fails: {}", reason.lines().next().unwrap_or_default().replace('|', "\\|")),
    };
    for ((name, ..), (theirs, ours)) in STEPS.iter().zip(theirs.iter().zip(ours)) {
        writeln!(text, "| {name} | {} | {} |", say(theirs), say(ours)).unwrap();
    }
    text
}

impl Swarm {
    fn manager(&self) -> &Node {
        &self.world.nodes[0]
    }

    /// Creates a service whose tasks say their names.
    fn service(&self, name: &str, args: &[&str]) -> Result<()> {
        let fixed = ["service", "create", "-d", "--no-resolve-image", "--network", "web", "-e", "NAME={{.Task.Name}}"];
        self.manager().docker(&[&fixed[..], &["--name", name], args, &[IMAGE]].concat())?;
        Ok(())
    }

    /// The names of the tasks that run on a host.
    fn on(node: &Node, service: &str) -> BTreeSet<String> {
        let filter = format!("label=com.docker.swarm.service.name={service}");
        let said = node.docker(&["ps", "--filter", &filter, "--format", "{{.Names}}"]).unwrap_or_default();
        said.split_whitespace().map(str::to_owned).collect()
    }

    fn tasks(&self, service: &str) -> BTreeSet<String> {
        self.world.nodes.iter().flat_map(|node| Self::on(node, service)).collect()
    }

    /// A task on a host.
    fn one(node: &Node) -> Result<String> {
        Self::on(node, "site").into_iter().next().with_context(|| format!("no task runs on host {}", node.name))
    }

    /// Waits until the name of a service leads to `count` tasks on every host, and to nothing else.
    fn leads(&self, service: &str, count: usize) -> Result<()> {
        for node in &self.world.nodes {
            let Ok(from) = Self::one(node) else { continue };
            let mut last = (BTreeSet::new(), BTreeSet::new());
            let is_so = || {
                let addresses = node.resolves(&from, service);
                let answers = addresses.iter().filter_map(|address| node.fetch(&from, address)).collect();
                last = (answers, self.tasks(service));
                last.0 == last.1 && last.0.len() == count
            };
            ensure!(eventually(PATIENCE, is_so), "of {count} tasks {} run, and {} answer", last.1.len(), last.0.len());
        }
        Ok(())
    }

    fn spread(&self) -> Result<()> {
        match self.driver {
            Driver::Overlay => {
                self.manager().docker(&["network", "create", "-d", "overlay", "--attachable", "web"])?;
            }
            Driver::Portolan => {
                let here: [&str; 8] =
                    ["--config-only", "--ipam-driver", "null", "-o", "driver=overlay", "-o", "network=web", "web-here"];
                self.world.at_all(|node| node.docker(&[&["network", "create"], &here[..]].concat()).map(drop))?;
                let all =
                    ["-d", "portolan:latest", "--scope", "swarm", "--attachable", "--config-from", "web-here", "web"];
                self.manager().docker(&[&["network", "create"], &all[..]].concat())?;
            }
        }
        self.service("site", &["--endpoint-mode", "dnsrr", "--replicas", "3"])?;
        let is_there = || self.world.nodes.iter().all(|node| Self::on(node, "site").len() == 1);
        let said = || self.manager().docker(&["service", "ps", "--no-trunc", "site"]).unwrap_or_default();
        ensure!(eventually(PATIENCE, is_there), "they do not: {}", said());
        if self.driver == Driver::Portolan {
            self.world.at_all(|node| node.portolan(&["doctor", "--open"]).map(drop))?;
        }
        Ok(())
    }

    fn service_name(&self) -> Result<()> {
        self.leads("site", 3)
    }

    fn task_name(&self) -> Result<()> {
        let [a, b, ..] = &self.world.nodes[..] else { panic!("three hosts") };
        let (from, to) = (Self::one(a)?, Self::one(b)?);
        a.finds(&from, &to, &to)
    }

    fn alone(&self) -> Result<()> {
        let [a, b, c] = &self.world.nodes[..] else { panic!("three hosts") };
        b.run("alone", &["--network", "web"])?;
        for node in [a, c] {
            node.finds(&Self::one(node)?, "alone", "alone")?;
        }
        let to = Self::one(a)?;
        b.finds("alone", &to, &to)
    }

    fn ipv6(&self) -> Result<()> {
        let [a, b, ..] = &self.world.nodes[..] else { panic!("three hosts") };
        let to = Self::one(b)?;
        let six = b.look(&to)?.addresses("web").into_iter().find(std::net::IpAddr::is_ipv6);
        let six = six.context("it has no IPv6 address")?;
        a.finds(&Self::one(a)?, &format!("[{six}]"), &to)
    }

    fn way_out(&self) -> Result<()> {
        let server = tcp_server(&self.world.neighbour, 9000, "outside")?;
        for node in &self.world.nodes {
            let task = node.look(&Self::one(node)?)?;
            let seen = reaches(&task, at(NEIGHBOUR, 9000), "outside")?;
            ensure!(seen.to_string() == node.address, "it leaves as {seen}");
        }
        drop(server);
        Ok(())
    }

    fn drain(&self) -> Result<()> {
        self.manager().docker(&["service", "scale", "-d", "site=6"])?;
        self.leads("site", 6)?;
        self.manager().docker(&["node", "update", "--availability", "drain", "c"])?;
        let is_empty = || Self::on(&self.world.nodes[2], "site").is_empty();
        let drained = eventually(PATIENCE, is_empty);
        let leads = self.leads("site", 6);
        self.manager().docker(&["node", "update", "--availability", "active", "c"])?;
        ensure!(drained, "tasks stay");
        leads
    }

    fn anew(&self) -> Result<()> {
        let before = self.tasks("site");
        let all_at_once = ["service", "update", "-d", "--force", "--update-parallelism", "0", "site"];
        self.manager().docker(&all_at_once)?;
        let is_new = || self.tasks("site").is_disjoint(&before);
        ensure!(eventually(PATIENCE, is_new), "old tasks stay");
        self.leads("site", 6)
    }

    fn published(&self) -> Result<()> {
        let publish = "mode=host,target=80,published=8080";
        self.service("each", &["--mode", "global", "--endpoint-mode", "dnsrr", "--publish", publish])?;
        let is_there = || self.world.nodes.iter().all(|node| Self::on(node, "each").len() == 1);
        ensure!(eventually(PATIENCE, is_there), "it does not run on each host");
        for node in &self.world.nodes {
            let task = Self::on(node, "each").into_iter().next().context("it runs")?;
            says(&self.world.neighbour, at(&node.address, 8080), &task)?;
        }
        self.manager().docker(&["service", "rm", "each"])?;
        Ok(())
    }

    fn vip(&self) -> Result<()> {
        self.service("usual", &["--replicas", "2"])?;
        ensure!(eventually(PATIENCE, || self.tasks("usual").len() == 2), "it does not run");
        for node in &self.world.nodes {
            let from = Self::one(node)?;
            let answers = || node.fetch(&from, "usual").is_some_and(|said| said.starts_with("usual."));
            ensure!(eventually(LONG / 2, answers), "nobody answers by its name");
        }
        self.manager().docker(&["service", "rm", "usual"])?;
        Ok(())
    }

    fn mesh(&self) -> Result<()> {
        self.service("mesh", &["--publish", "8081:80"])?;
        ensure!(eventually(PATIENCE, || self.tasks("mesh").len() == 1), "it does not run");
        let [a, b, c] = &self.world.nodes[..] else { panic!("three hosts") };
        for node in [a, b, c] {
            let answers = || {
                let to = at(&node.address, 8081);
                portolan_lab::probe::http_get(&self.world.neighbour, to, "/", SHORT).is_ok()
            };
            ensure!(eventually(LONG / 4, answers), "not every host answers");
        }
        Ok(())
    }

    fn removed(&self) -> Result<()> {
        let [manager, b, _] = &self.world.nodes[..] else { panic!("three hosts") };
        let services = manager.docker(&["service", "ls", "-q"])?;
        let services: Vec<&str> = services.split_whitespace().collect();
        manager.docker(&[&["service", "rm"], &services[..]].concat())?;
        b.docker(&["rm", "-f", "alone"])?;
        let is_empty =
            || self.world.nodes.iter().all(|node| node.docker(&["ps", "-aq"]).is_ok_and(|said| said.is_empty()));
        ensure!(eventually(PATIENCE, is_empty), "containers stay");
        let is_gone = || manager.docker(&["network", "rm", "web"]).is_ok();
        ensure!(eventually(PATIENCE, is_gone), "the network stays");
        for node in &self.world.nodes {
            let has_none = || {
                let networks = node.docker(&["network", "ls", "--filter", "name=^web$", "-q"]);
                networks.is_ok_and(|said| said.is_empty())
            };
            ensure!(eventually(PATIENCE, has_none), "the network stays on host {}", node.name);
            if self.driver == Driver::Portolan {
                let left = node.portolan(&["ps", "-aq"])?;
                ensure!(left.is_empty(), "left are {left}");
                node.portolan(&["verify"])?;
                node.docker(&["network", "rm", "web-here"])?;
            }
        }
        if self.driver == Driver::Portolan {
            manager.portolan(&["network", "rm", "web"])?;
        }
        Ok(())
    }
}
