//! Measures the kernel's share of an attach: one veth pair with its bridge port, addresses and
//! routes, in network namespaces made for the purpose. Run as root:
//! `cargo run --release -p portolan-kernel --example attach_cost`.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::netns::{NetnsFd, with_netns};
use portolan_kernel::rtnl::addr::{self, Address};
use portolan_kernel::rtnl::link::{self, AddrGenMode, BrPort, BridgeSpec, LinkChange, VethPeer, VethSpec};
use portolan_kernel::rtnl::route::{self, Route};

const ROUNDS: u32 = 100;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host_ns = NetnsFd::create()?;
    with_netns(&host_ns, run)?
}

fn run() -> Result<(), Box<dyn std::error::Error>> {
    let mut host = Socket::open(ROUTE)?;
    let mut batch = Batch::new();
    link::create_bridge(&mut batch, &BridgeSpec { name: "br0", up: true, ..BridgeSpec::default() });
    host.transact(&batch)?;
    let master = link::lookup(&mut host, "br0")?.ok_or("no bridge")?.index;
    let mut spent = [Duration::ZERO; 3];
    for round in 0..ROUNDS {
        let sandbox = NetnsFd::create()?;
        let name = format!("v{round}");
        let start = Instant::now();
        let mut batch = Batch::new();
        link::create_veth(
            &mut batch,
            &VethSpec {
                name: &name,
                mtu: Some(1500),
                master: Some(master),
                echo: true,
                peer: VethPeer { name: "eth0", netns: Some(sandbox.as_fd()), ..VethPeer::default() },
                ..VethSpec::default()
            },
        );
        let port = BrPort { isolated: Some(true), ..BrPort::default() };
        link::set(
            &mut batch,
            name.as_str(),
            &LinkChange {
                up: Some(true),
                alias: Some("container web"),
                addr_gen_mode: Some(AddrGenMode::None),
                brport: Some(port),
                ..LinkChange::default()
            },
        );
        let replies = host.transact(&batch)?;
        spent[0] += start.elapsed();

        let start = Instant::now();
        let mut inside = with_netns(&sandbox, || Socket::open(ROUTE))??;
        spent[1] += start.elapsed();

        let start = Instant::now();
        let index = match replies.first().and_then(|reply| link::parse(&reply.payload).link) {
            Some(index) => index,
            None => link::lookup(&mut inside, "eth0")?.ok_or("no peer")?.index,
        };
        let mut batch = Batch::new();
        link::set(&mut batch, "lo", &LinkChange { up: Some(true), ..LinkChange::default() });
        link::set(
            &mut batch,
            index,
            &LinkChange { up: Some(true), addr_gen_mode: Some(AddrGenMode::None), ..LinkChange::default() },
        );
        let gateways = ["10.0.0.1", "fd00::1"];
        for (addr, len) in [("10.0.0.2", 24), ("fd00::2", 64)] {
            addr::add(&mut batch, &Address::new(index, addr.parse()?, len));
        }
        for gateway in gateways {
            let gateway = gateway.parse()?;
            let route = Route::default_of(portolan_kernel::rtnl::Family::of(gateway));
            route::add(&mut batch, &Route { gateway: Some(gateway), oif: Some(index), ..route });
        }
        inside.transact(&batch)?;
        spent[2] += start.elapsed();
    }
    for (what, time) in ["veth and port", "socket inside", "addresses and routes"].iter().zip(spent) {
        println!("{what:20} {:?}", time / ROUNDS);
    }
    println!("{:20} {:?}", "total", spent.iter().sum::<Duration>() / ROUNDS);
    Ok(())
}
