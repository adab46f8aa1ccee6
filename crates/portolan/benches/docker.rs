//! As Docker's network driver, beside Docker's own.
//!
//! `cargo bench -p portolan --bench docker` runs everything; with `-- run`, `-- ports` or `-- networks` one part:
//!
//! - `run`: `docker run -d -p 8080:80` until a neighbour's first reply through the published port.
//! - `ports`: the same with 206 published ports, until the reply through the last one.
//! - `networks`: a hundred networks, made by Docker's API, and by `docker network create`, which takes longer to start than either
//!   driver to make one. Beside them a driver that does nothing, which shows what Docker itself takes, and ours under a Docker
//!   with `"iptables": false`, which has nothing to run iptables(8) for.
//!
//! Either driver has a host and a Docker of its own, as Debian has it: its userland proxies are on. They take turns, and each goes
//! first as often.

mod figures;
#[path = "../tests/machine/mod.rs"]
mod machine;
#[path = "../tests/docker/scene.rs"]
#[allow(dead_code, reason = "it is that of the tests")]
mod scene;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use figures::{median, ms, quarters, ratio};
use machine::{IMAGE, Machine};
use portolan_lab::probe::http_get;
use scene::{Driver, HOST, PROGRAMS, SHORT, Scene, at};
use serde_json::json;

fn main() -> Result<()> {
    if let Some(missing) = machine::missing_of(&PROGRAMS) {
        bail!("the benchmark needs Docker: {missing}");
    }
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|w| w == part);
    let scenes = [Driver::Portolan, Driver::Bridge].map(|driver| Scene::new(driver.name(), driver));
    let [ours, theirs] = scenes;
    let scenes = [ours?, theirs?];
    for scene in &scenes {
        // One that stays keeps the network, as on a host in use.
        scene.network("web", &["--subnet", "10.60.0.0/24"])?;
        scene.run("stays", &["--network", "web"])?;
    }
    let [ours, theirs] = &scenes;
    let both = [Side::new("portolan", ours), Side::new("bridge", theirs)];
    if is_wanted("run") {
        run(&both).context("benchmark `run`")?;
    }
    if is_wanted("ports") {
        ports(&both).context("benchmark `ports`")?;
    }
    if is_wanted("networks") {
        let nothing = Nothing::serve(&ours.machine)?;
        let alone = Scene::without_iptables("portolan-alone", Driver::Portolan)?;
        let [ours, theirs] = both;
        let alone = Side::new("portolan, Docker with `\"iptables\": false`", &alone);
        networks(&[ours, theirs, alone, nothing.side(&scenes[0])]).context("benchmark `networks`")?;
    }
    Ok(())
}

/// What is measured beside others: a driver of a Docker.
struct Side<'a> {
    title: &'static str,
    scene: &'a Scene,
    driver: &'static str,
}

impl<'a> Side<'a> {
    fn new(title: &'static str, scene: &'a Scene) -> Self {
        Self { title, scene, driver: scene.driver.name() }
    }
}

/// A network driver that says yes to everything and does nothing: what a network takes with it is Docker's own.
struct Nothing;

impl Nothing {
    /// Serves it to a machine's Docker for as long as the benchmark runs.
    fn serve(machine: &Machine) -> Result<Self> {
        let dir = machine.outside("/run/docker/plugins");
        std::fs::create_dir_all(&dir)?;
        let listener = UnixListener::bind(dir.join("nothing.sock"))?;
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || Self::answer(stream));
            }
        });
        Ok(Self)
    }

    fn side<'a>(&self, scene: &'a Scene) -> Side<'a> {
        Side { title: "a driver that does nothing", scene, driver: "nothing" }
    }

    /// Answers the requests of a connection until it ends.
    fn answer(stream: UnixStream) -> Option<()> {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let mut writer = stream;
        loop {
            let (mut path, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                if reader.read_line(&mut line).ok()? == 0 {
                    return None;
                }
                let line = line.trim_end().to_ascii_lowercase();
                if let Some(value) = line.strip_prefix("content-length:") {
                    length = value.trim().parse().ok()?;
                } else if line.is_empty() {
                    break;
                } else if path.is_empty() {
                    path = line.split(' ').nth(1)?.to_owned();
                }
            }
            reader.read_exact(&mut vec![0; length]).ok()?;
            let body = match &*path {
                "/plugin.activate" => r#"{"Implements":["NetworkDriver"]}"#,
                "/networkdriver.getcapabilities" => r#"{"Scope":"local","ConnectivityScope":"local"}"#,
                _ => "{}",
            };
            let kind = "application/vnd.docker.plugins.v1.1+json";
            write!(writer, "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
                .ok()?;
        }
    }
}

fn times(theirs: Duration, ours: Duration) -> f64 {
    theirs.as_secs_f64() / ours.as_secs_f64()
}

/// Measures `work` on each side, `count` times; the first is not counted.
fn in_turn(
    sides: &[Side<'_>],
    count: usize,
    work: impl Fn(&Side<'_>, usize) -> Result<Duration>,
) -> Result<Vec<Vec<Duration>>> {
    let mut measured = vec![Vec::new(); sides.len()];
    for turn in 0..=count {
        for place in 0..sides.len() {
            let side = (place + turn) % sides.len();
            let time = work(&sides[side], turn)?;
            if turn > 0 {
                measured[side].push(time);
            }
        }
    }
    Ok(measured)
}

fn print(title: &str, sides: &[Side<'_>], measured: &[Vec<Duration>]) {
    println!("\n### {title} ({} of each, in turn)\n", measured[0].len());
    println!("| driver | median | middle half | times ours | all of them | times ours |\n|---|---|---|---|---|---|");
    let sum = |times: &[Duration]| times.iter().sum::<Duration>();
    for (side, found) in sides.iter().zip(measured) {
        let (low, high) = quarters(found);
        let (title, median, ratio) = (side.title, ms(median(found)), ratio(found, &measured[0]));
        let (all, times) = (ms(sum(found)), times(sum(found), sum(&measured[0])));
        println!("| {title} | {median} | {} to {} | {ratio:.2} | {all} | {times:.2} |", ms(low), ms(high));
    }
}

/// Runs a container; how long until it replies at the host's `port`. Removes it.
fn first_reply(scene: &Scene, publish: &str, command: &str, port: u16) -> Result<Duration> {
    let to = at(HOST, port);
    let args = ["run", "-d", "--name", "site", "--network", "web", "-p", publish, IMAGE, "sh", "-c", command];
    let start = Instant::now();
    scene.docker(&args)?;
    let took = until_reply(scene, to, start)?;
    scene.docker(&["rm", "-f", "site"])?;
    Ok(took)
}

fn until_reply(scene: &Scene, to: SocketAddr, start: Instant) -> Result<Duration> {
    loop {
        if http_get(&scene.neighbour, to, "/", SHORT).is_ok_and(|reply| reply.body.trim() == "here") {
            return Ok(start.elapsed());
        }
        ensure!(start.elapsed() < Duration::from_secs(60), "no reply at {to}");
    }
}

fn run(sides: &[Side<'_>]) -> Result<()> {
    const PAIRS: usize = 30;
    let command = "echo here >/www/index.html; exec httpd -f -p 80 -h /www";
    let measured = in_turn(sides, PAIRS, |side, _| first_reply(side.scene, "8080:80", command, 8080))?;
    print("`docker run -d -p 8080:80` to the first reply", sides, &measured);
    Ok(())
}

fn ports(sides: &[Side<'_>]) -> Result<()> {
    const PAIRS: usize = 6;
    let command = "echo here >/www/index.html; exec httpd -f -p 285 -h /www";
    let measured = in_turn(sides, PAIRS, |side, _| first_reply(side.scene, "9000-9205:80-285", command, 9205))?;
    print("`docker run -d` with 206 published ports to the reply through the last", sides, &measured);
    Ok(())
}

fn networks(sides: &[Side<'_>]) -> Result<()> {
    let by_command = in_turn(sides, NETWORKS, |side, n| {
        let (name, subnet) = (format!("c{n}-{}", side.driver.len()), subnet(side, n));
        let start = Instant::now();
        side.scene.docker(&["network", "create", "-d", side.driver, "--subnet", &subnet, &name])?;
        Ok(start.elapsed())
    })?;
    print("`docker network create`", sides, &by_command);
    prune(sides)?;
    let by_api = in_turn(sides, NETWORKS, |side, n| {
        let pool = json!([{"Subnet": subnet(side, n)}]);
        let name = format!("a{n}-{}", side.driver.len());
        let asked = json!({"Name": name, "Driver": side.driver, "IPAM": {"Config": pool}}).to_string();
        let start = Instant::now();
        let mut docker = UnixStream::connect(side.scene.machine.outside("/run/docker.sock"))?;
        let length = asked.len();
        write!(
            docker,
            "POST /networks/create HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{asked}"
        )?;
        let mut answer = String::new();
        docker.read_to_string(&mut answer)?;
        ensure!(answer.contains(" 201 Created"), "Docker says {answer}");
        Ok(start.elapsed())
    })?;
    print("`POST /networks/create`", sides, &by_api);
    prune(sides)
}

/// A subnet that no other network of that Docker has.
fn subnet(side: &Side<'_>, n: usize) -> String {
    format!("10.{}.{n}.0/24", if side.driver == "nothing" { 71 } else { 70 })
}

fn prune(sides: &[Side<'_>]) -> Result<()> {
    sides.iter().try_for_each(|side| side.scene.docker(&["network", "prune", "--force"]).map(drop))
}

const NETWORKS: usize = 100;
