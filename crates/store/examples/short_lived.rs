//! Times a short-lived process that opens the store, commits two small transactions and exits:
//! `cargo run --release -p portolan-store --example short_lived [ROOT] [PROCESSES] [attach|small]`.
//!
//! `attach` writes the rows of an attach with one published port, pending and then settled; `small` one value each
//! time.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use portolan_engine::{Durability, Store, StoreError, Tx};
use portolan_model::{
    Container, ContainerKind, ContainerState, Endpoint, EndpointAddress, Id, Mac, NetworkMode, Phase, ProcessId,
    Publication,
};
use portolan_store::SqliteStore;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("nothing") => Ok(()),
        Some("child") => {
            let root = PathBuf::from(args.next().expect("the parent passes a root"));
            let number = args.next().expect("the parent passes a number").parse()?;
            let times = if args.next().as_deref() == Some("small") { small(&root)? } else { child(&root, number)? };
            println!("{}", times.map(|t| t.as_nanos().to_string()).join(" "));
            Ok(())
        }
        root => parent(
            &root.map_or_else(|| std::env::temp_dir().join("portolan-short-lived"), PathBuf::from),
            args.next().map_or(Ok(2000), |n| n.parse())?,
            args.next().as_deref().unwrap_or("attach"),
        ),
    }
}

fn parent(root: &Path, processes: u32, what: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut parts: [Vec<Duration>; 4] = Default::default();
    let (mut whole, mut nothing) = (Vec::new(), Vec::new());
    let mut longest_log = 0;
    for number in 0..processes {
        let start = Instant::now();
        Command::new(std::env::current_exe()?).arg("nothing").status()?;
        nothing.push(start.elapsed());
        let start = Instant::now();
        let child = Command::new(std::env::current_exe()?)
            .arg("child")
            .arg(root)
            .arg(number.to_string())
            .arg(what)
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.wait_with_output()?;
        whole.push(start.elapsed());
        let text = String::from_utf8(out.stdout)?;
        for (part, nanos) in parts.iter_mut().zip(text.split_whitespace()) {
            part.push(Duration::from_nanos(nanos.parse()?));
        }
        longest_log = longest_log.max(std::fs::metadata(root.join("state.db-wal"))?.len());
    }
    let total = (0..parts[0].len()).map(|n| parts.iter().map(|part| part[n]).sum()).collect();
    let [open, first, second, close] = parts;
    for (what, mut times) in [
        ("open", open),
        ("intent", first),
        ("settled", second),
        ("close", close),
        ("open to close", total),
        ("whole process", whole),
        ("empty process", nothing),
    ] {
        times.sort();
        let at = |per_mille: usize| times[(times.len() - 1) * per_mille / 1000].as_nanos() as f64 / 1e3;
        let mean = times.iter().sum::<Duration>().as_nanos() as f64 / 1e3 / times.len() as f64;
        println!(
            "{what:14} mean {mean:7.0}  p50 {:7.0}  p90 {:7.0}  p99 {:7.0}  max {:7.0} µs",
            at(500),
            at(900),
            at(990),
            at(1000)
        );
    }
    println!("longest log {longest_log} bytes");
    Ok(())
}

fn small(root: &Path) -> Result<[Duration; 4], StoreError> {
    let start = Instant::now();
    let store = SqliteStore::open(root)?;
    let mut times = [start.elapsed(); 4];
    for (n, value) in ["pending", "settled"].into_iter().enumerate() {
        let start = Instant::now();
        let guard = store.lock()?;
        let tx = store.write(&guard)?;
        tx.put_meta("state", Some(value))?;
        tx.commit(Durability::Process)?;
        drop(guard);
        times[1 + n] = start.elapsed();
    }
    let start = Instant::now();
    drop(store);
    times[3] = start.elapsed();
    Ok(times)
}

fn child(root: &Path, number: u32) -> Result<[Duration; 4], StoreError> {
    let start = Instant::now();
    let store = SqliteStore::open(root)?;
    let opened = start.elapsed();
    let mut container = container(number);
    let mut endpoint = endpoint(number, container.id);
    let address: IpAddr = endpoint.addresses[0].address.addr();
    let subnet = endpoint.addresses[0].address.trunc();
    let publication = Publication {
        protocol: Default::default(),
        host_ip: None,
        host: format!("{}", 1 + number % 65535).parse().expect("in range"),
        container: "80".parse().expect("in range"),
    };
    let mut row = portolan_engine::PublicationRow { container: container.id, publication, phase: container.phase };
    {
        let guard = store.lock()?;
        let tx = store.write(&guard)?;
        tx.container_named(container.name.as_str())?;
        tx.lease_cursor(endpoint.network, subnet)?;
        tx.host_end_taken(endpoint.host_end.as_str())?;
        tx.publications_overlapping(publication.protocol, publication.host)?;
        tx.put_container(&container)?;
        tx.put_endpoint(&endpoint)?;
        tx.take_lease(endpoint.network, address, endpoint.id, endpoint.mac)?;
        tx.put_lease_cursor(endpoint.network, subnet, address)?;
        tx.put_publication(&row)?;
        tx.commit(Durability::Process)?;
    }
    let first = start.elapsed();
    {
        let guard = store.lock()?;
        let tx = store.write(&guard)?;
        container.phase = Phase::Settled;
        endpoint.phase = Phase::Settled;
        row.phase = Phase::Settled;
        tx.put_container(&container)?;
        tx.put_endpoint(&endpoint)?;
        tx.put_publication(&row)?;
        tx.commit(Durability::Process)?;
    }
    let second = start.elapsed();
    drop(store);
    let closed = start.elapsed();
    Ok([opened, first - opened, second - first, closed - second])
}

fn id(kind: u8, number: u32) -> Id {
    // Spread as random ones are.
    let mut bytes = [0; 32];
    let mut state = (u64::from(kind) << 32 | u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for chunk in bytes.chunks_mut(8) {
        state = (state ^ state >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        chunk.copy_from_slice(&state.to_be_bytes());
    }
    Id::from_bytes(bytes)
}

fn pending() -> Phase {
    Phase::Pending(ProcessId { pid: 4711, started: 12345 })
}

fn container(number: u32) -> Container {
    Container {
        id: id(1, number),
        name: format!("c{number}").parse().expect("a valid name"),
        kind: ContainerKind::Run,
        mode: NetworkMode::Own,
        sandbox: None,
        supervisor: None,
        process: None,
        state: ContainerState::Running,
        hostname: None,
        command: vec!["sleep".into(), "infinity".into()],
        exposed: vec![],
        dns: Default::default(),
        hosts: vec![],
        sysctls: Default::default(),
        settings: Vec::new(),
        labels: Default::default(),
        auto_remove: true,
        port_keeper: None,
        no_netfilter: false,
        health_check: None,
        health: None,
        boot: "0c5b3d2e-31a7-4a77-8b1a-2f3a7f1d1c55".into(),
        created: 1_800_000_000,
        phase: pending(),
    }
}

fn endpoint(number: u32, container: Id) -> Endpoint {
    let address = IpAddr::from((0x0a00_0002 + number).to_be_bytes());
    Endpoint {
        id: id(2, number),
        network: id(3, 0),
        container,
        ifname: "eth0".parse().expect("a valid name"),
        host_end: format!("pv{number}").parse().expect("a valid name"),
        mac: Mac::local([2, 66, 10, (number >> 16) as u8, (number >> 8) as u8, number as u8]),
        mac_configured: false,
        addresses: vec![EndpointAddress {
            address: ipnet::IpNet::new(address, 8).expect("a valid prefix"),
            configured: false,
        }],
        gateway_priority: 0,
        aliases: vec![],
        links: vec![],
        bandwidth: Default::default(),
        tuning: Default::default(),
        announce: false,
        leases: Default::default(),
        phase: pending(),
    }
}
