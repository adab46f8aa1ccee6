//! As Docker's network driver, beside Docker's own.
//!
//! `cargo bench -p portolan --bench docker` runs everything; with `-- run`, `-- ports` or `-- networks` one part:
//!
//! - `run`: `docker run -d -p 8080:80` until a neighbour's first reply through the published port.
//! - `ports`: the same with 206 published ports, until the reply through the last one.
//! - `networks`: a hundred networks, made by Docker's API, and by `docker network create`, which takes longer to start than either
//!   driver to make one.
//!
//! Either driver has a host and a Docker of its own, as Debian has it: its userland proxies are on. They take turns, and each goes
//! first as often.

mod figures;
#[path = "../tests/machine/mod.rs"]
mod machine;
#[path = "../tests/docker/scene.rs"]
#[allow(dead_code, reason = "it is that of the tests")]
mod scene;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use figures::{median, ms, quarters, ratio};
use machine::IMAGE;
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
    if is_wanted("run") {
        run(&scenes).context("benchmark `run`")?;
    }
    let mut sums = Vec::new();
    if is_wanted("ports") {
        sums.push(ports(&scenes).context("benchmark `ports`")?);
    }
    if is_wanted("networks") {
        sums.push(networks(&scenes).context("benchmark `networks`")?);
    }
    if sums.len() == 2 {
        let sum = |side: usize| sums.iter().map(|times| times[side]).sum::<Duration>();
        println!("\nBoth together: {} and {}, {:.1} times.", ms(sum(0)), ms(sum(1)), times(sum(1), sum(0)));
    }
    Ok(())
}

fn times(theirs: Duration, ours: Duration) -> f64 {
    theirs.as_secs_f64() / ours.as_secs_f64()
}

/// Measures `work` on either side, `count` times; the first is not counted.
fn in_turn(
    scenes: &[Scene; 2],
    count: usize,
    work: impl Fn(&Scene, usize) -> Result<Duration>,
) -> Result<[Vec<Duration>; 2]> {
    let mut measured = [Vec::new(), Vec::new()];
    for turn in 0..=count {
        for side in if turn % 2 == 0 { [0, 1] } else { [1, 0] } {
            let time = work(&scenes[side], turn)?;
            if turn > 0 {
                measured[side].push(time);
            }
        }
    }
    Ok(measured)
}

fn print(title: &str, measured: &[Vec<Duration>; 2]) {
    let [ours, theirs] = measured;
    println!("\n### {title} ({} pairs)\n", ours.len());
    println!("| driver | median | middle half | times ours |\n|---|---|---|---|");
    for (name, side) in [("portolan", ours), ("bridge", theirs)] {
        let (low, high) = quarters(side);
        println!("| {name} | {} | {} to {} | {:.2} |", ms(median(side)), ms(low), ms(high), ratio(side, ours));
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

fn run(scenes: &[Scene; 2]) -> Result<()> {
    const PAIRS: usize = 30;
    let command = "echo here >/www/index.html; exec httpd -f -p 80 -h /www";
    let measured = in_turn(scenes, PAIRS, |scene, _| first_reply(scene, "8080:80", command, 8080))?;
    print("`docker run -d -p 8080:80` to the first reply", &measured);
    Ok(())
}

/// The medians, ours and theirs.
fn ports(scenes: &[Scene; 2]) -> Result<[Duration; 2]> {
    const PAIRS: usize = 6;
    let command = "echo here >/www/index.html; exec httpd -f -p 285 -h /www";
    let measured = in_turn(scenes, PAIRS, |scene, _| first_reply(scene, "9000-9205:80-285", command, 9205))?;
    print("`docker run -d` with 206 published ports to the reply through the last", &measured);
    Ok([median(&measured[0]), median(&measured[1])])
}

/// All of them by the API, ours and theirs.
fn networks(scenes: &[Scene; 2]) -> Result<[Duration; 2]> {
    let by_command = in_turn(scenes, NETWORKS, |scene, n| {
        let start = Instant::now();
        scene.network(&format!("c{n}"), &["--subnet", &format!("10.70.{n}.0/24")])?;
        Ok(start.elapsed())
    })?;
    report("`docker network create`", scenes, &by_command)?;
    let by_api = in_turn(scenes, NETWORKS, |scene, n| {
        let pool = json!([{"Subnet": format!("10.70.{n}.0/24")}]);
        let asked =
            json!({"Name": format!("a{n}"), "Driver": scene.driver.name(), "IPAM": {"Config": pool}}).to_string();
        let start = Instant::now();
        let mut docker = UnixStream::connect(scene.machine.outside("/run/docker.sock"))?;
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
    report("`POST /networks/create`", scenes, &by_api)
}

/// Prints what was measured, and takes the networks away; the sums.
fn report(title: &str, scenes: &[Scene; 2], measured: &[Vec<Duration>; 2]) -> Result<[Duration; 2]> {
    print(title, measured);
    let sums = [measured[0].iter().sum(), measured[1].iter().sum()];
    println!("\nA hundred: {} and {}, {:.1} times.", ms(sums[0]), ms(sums[1]), times(sums[1], sums[0]));
    for scene in scenes {
        scene.docker(&["network", "prune", "--force"])?;
    }
    Ok(sums)
}

const NETWORKS: usize = 100;
