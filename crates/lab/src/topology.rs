use std::ffi::OsStr;
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use portolan_kernel::netlink::{Batch, ROUTE, Socket};
use portolan_kernel::netns::{self, NetnsFd, enter_for_good, with_netns};
use portolan_kernel::process::{command_in, pid_start_time};
use portolan_kernel::rtnl::Family;
use portolan_kernel::rtnl::addr::{self, Address};
use portolan_kernel::rtnl::link::{self, AddrGenMode, BridgeSpec, LinkChange, VethPeer, VethSpec};
use portolan_kernel::rtnl::route::{self, Route};
use portolan_kernel::sysctl;

const ROOT: &str = "/run/portolan-lab";
const SWITCH: &str = "br0";

/// Something with a network namespace.
pub trait InNetns {
    /// The namespace.
    fn netns(&self) -> &NetnsFd;
}

impl InNetns for NetnsFd {
    fn netns(&self) -> &NetnsFd {
        self
    }
}

impl InNetns for Host {
    fn netns(&self) -> &NetnsFd {
        &self.ns
    }
}

impl InNetns for Lan {
    fn netns(&self) -> &NetnsFd {
        &self.switch
    }
}

/// A set of hosts and LANs that is removed on drop.
///
/// Its namespaces are pinned below `/run/portolan-lab/<pid>-<start time>-<n>`; [`Lab::new`] removes
/// the directories whose process is gone.
#[derive(Debug)]
pub struct Lab {
    name: String,
    dir: PathBuf,
}

impl Lab {
    /// Makes an empty lab.
    ///
    /// # Errors
    /// Without root, or where network namespaces cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        sweep();
        let pid = std::process::id();
        let start = pid_start_time(pid as i32).context("read our own start time")?;
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = Path::new(ROOT).join(format!("{pid}-{start}-{n}"));
        fs::create_dir_all(&dir).with_context(|| format!("create `{}` (not root?)", dir.display()))?;
        let lab = Self { name: name.into(), dir };
        NetnsFd::create().with_context(|| format!("lab `{name}`"))?;
        Ok(lab)
    }

    /// Makes an empty lab; where that is impossible prints a loud `SKIP` and returns `None`.
    ///
    /// # Panics
    /// Instead of skipping when the environment has `CI` set.
    pub fn or_skip(name: &str) -> Option<Self> {
        match Self::new(name) {
            Ok(lab) => Some(lab),
            Err(error) => {
                let reason = format!("SKIP: `{name}`: {error:#}");
                assert!(std::env::var_os("CI").is_none(), "{reason}");
                eprintln!("{reason}");
                None
            }
        }
    }

    /// The name given to it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Directory of the lab's own, for files that shall go with it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes a host: a namespace with the loopback interface up and nothing else.
    ///
    /// # Errors
    /// When a host or LAN of that name exists, or the kernel refuses.
    pub fn host(&self, name: &str) -> Result<Host> {
        let path = self.dir.join(name);
        let ns = netns::create_pinned(&path)?;
        let host = Host { name: name.into(), path, ns };
        let mut batch = Batch::new();
        link::set(&mut batch, "lo", &LinkChange { up: Some(true), ..LinkChange::default() });
        host.route_socket()?.transact(&batch).with_context(|| format!("bring up `lo` of `{name}`"))?;
        Ok(host)
    }

    /// Connects hosts by a switch: each gets an interface with addresses in prefix notation.
    ///
    /// IPv6 addresses are usable at once (no duplicate address detection). The switch is a bridge in
    /// a namespace of its own.
    ///
    /// # Errors
    /// When an address is malformed, a name is taken, or the kernel refuses.
    pub fn lan(&self, name: &str, members: &[(&Host, &str, &[&str])]) -> Result<Lan> {
        let switch = netns::create_pinned(self.dir.join(name))?;
        let mut socket = with_netns(&switch, || Socket::open(ROUTE))??;
        let mut batch = Batch::new();
        link::create_bridge(&mut batch, &BridgeSpec { name: SWITCH, up: true, ..BridgeSpec::default() });
        socket.transact(&batch).with_context(|| format!("create switch of `{name}`"))?;
        let bridge = link::lookup(&mut socket, SWITCH)?.context("switch is gone")?.index;
        let mut lan = Lan { name: name.into(), switch, bridge, ports: 0 };
        for (host, ifname, addresses) in members {
            lan.connect(host, ifname, addresses)?;
        }
        Ok(lan)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        remove(&self.dir);
    }
}

/// Removes what labs of dead processes left.
fn sweep() {
    let Ok(entries) = fs::read_dir(ROOT) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let mut parts = name.to_str().unwrap_or_default().split('-').map(str::parse::<u64>);
        let (Some(Ok(pid)), Some(Ok(start))) = (parts.next(), parts.next()) else { continue };
        if pid_start_time(pid as i32).ok() != Some(start) {
            remove(&entry.path());
        }
    }
}

fn remove(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_file()
            && let Err(error) = netns::unpin(entry.path())
        {
            eprintln!("lab: {error}: {:?}", error.errno());
        }
    }
    if let Err(error) = fs::remove_dir_all(dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("lab: remove `{}`: {error}", dir.display());
    }
}

/// A network namespace playing a host, a container or a router.
#[derive(Debug)]
pub struct Host {
    name: String,
    path: PathBuf,
    ns: NetnsFd,
}

impl Host {
    /// One that somebody else made, such as a container of Docker's: nothing here removes it.
    pub fn of(name: &str, ns: NetnsFd) -> Self {
        let path = format!("/proc/self/fd/{}", ns.as_fd().as_raw_fd()).into();
        Self { name: name.to_owned(), path, ns }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its namespace is pinned.
    pub fn netns_path(&self) -> &Path {
        &self.path
    }

    /// Another handle of the same namespace.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn again(&self) -> Result<Self> {
        Ok(Self { name: self.name.clone(), path: self.path.clone(), ns: NetnsFd::open(&self.path)? })
    }

    /// A netlink socket in it.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn route_socket(&self) -> Result<Socket> {
        Ok(with_netns(&self.ns, || Socket::open(ROUTE))??)
    }

    /// Runs `f` inside, on a thread of its own.
    ///
    /// # Panics
    /// When `f` does, or the namespace cannot be entered.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter_for_good(&self.ns).expect("an open namespace can be entered");
                f()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that will run inside, with a `/sys` that shows the devices here.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        Ok(command_in(&self.ns, Command::new(program), true)?)
    }

    /// Makes an existing command run inside, in our own mount namespace, so that what it mounts and
    /// pins is seen here.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn adopt(&self, command: Command) -> Result<Command> {
        Ok(command_in(&self.ns, command, false)?)
    }

    /// Adds a default route by way of `gateway`.
    ///
    /// # Errors
    /// When the address is malformed or not reachable.
    pub fn add_default_route(&self, gateway: &str) -> Result<()> {
        let gateway: IpAddr = gateway.parse().with_context(|| format!("gateway `{gateway}`"))?;
        self.add(Route { gateway: Some(gateway), ..Route::default_of(Family::of(gateway)) })
    }

    /// Adds a route to `dst` (`10.0.0.0/8`) by way of `gateway`.
    ///
    /// # Errors
    /// When an address is malformed or the gateway is not reachable.
    pub fn add_route(&self, dst: &str, gateway: &str) -> Result<()> {
        let (dst, prefix_len) = parse_prefix(dst)?;
        let gateway = gateway.parse().with_context(|| format!("gateway `{gateway}`"))?;
        self.add(Route { gateway: Some(gateway), ..Route::new(dst, prefix_len) })
    }

    fn add(&self, route: Route) -> Result<()> {
        let mut batch = Batch::new();
        route::add(&mut batch, &route);
        self.route_socket()?
            .transact(&batch)
            .with_context(|| format!("route `{}/{}` on `{}`", route.dst, route.prefix_len, self.name))?;
        Ok(())
    }

    /// Assigns an address in prefix notation to an interface that exists.
    ///
    /// # Errors
    /// When the address is malformed, or the interface has it or does not exist.
    pub fn add_address(&self, ifname: &str, address: &str) -> Result<()> {
        self.change_address(ifname, address, |batch, link, addr, prefix_len| {
            addr::add(batch, &Address::new(link, addr, prefix_len));
        })
    }

    /// Removes an address like `10.0.0.1/24` from an interface.
    ///
    /// # Errors
    /// No such interface or address.
    pub fn remove_address(&self, ifname: &str, address: &str) -> Result<()> {
        self.change_address(ifname, address, |batch, link, addr, prefix_len| {
            addr::delete(batch, link, addr, prefix_len);
        })
    }

    fn change_address(
        &self,
        ifname: &str,
        address: &str,
        change: impl FnOnce(&mut Batch, u32, IpAddr, u8),
    ) -> Result<()> {
        let (addr, prefix_len) = parse_prefix(address)?;
        let mut socket = self.route_socket()?;
        let link = link::lookup(&mut socket, ifname)?
            .with_context(|| format!("`{}` has no interface `{ifname}`", self.name))?;
        let mut batch = Batch::new();
        change(&mut batch, link.index, addr, prefix_len);
        socket.transact(&batch).with_context(|| format!("address `{address}` of `{ifname}`"))?;
        Ok(())
    }

    /// Makes it forward packets of both families.
    ///
    /// # Errors
    /// When `/proc/sys` cannot be written.
    pub fn enable_forwarding(&self) -> Result<()> {
        self.sysctl(&["net", "ipv4", "ip_forward"], "1")?;
        self.sysctl(&["net", "ipv6", "conf", "all", "forwarding"], "1")
    }

    /// Writes a setting, named by its path components.
    ///
    /// # Errors
    /// When there is no such, or `/proc/sys` cannot be written.
    pub fn sysctl(&self, components: &[&str], value: &str) -> Result<()> {
        self.enter(|| sysctl::write(components, value))?;
        Ok(())
    }
}

/// A switch that hosts are connected to.
#[derive(Debug)]
pub struct Lan {
    name: String,
    switch: NetnsFd,
    bridge: u32,
    ports: u32,
}

impl Lan {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Connects one more host; see [`Lab::lan`].
    ///
    /// # Errors
    /// As there.
    pub fn connect(&mut self, host: &Host, ifname: &str, addresses: &[&str]) -> Result<()> {
        let addresses = addresses.iter().map(|text| parse_prefix(text)).collect::<Result<Vec<_>>>()?;
        let port = format!("p{}", self.ports);
        self.ports += 1;
        let mut socket = with_netns(&self.switch, || Socket::open(ROUTE))??;
        let mut batch = Batch::new();
        let peer = VethPeer { name: ifname, netns: Some(host.ns.as_fd()), ..VethPeer::default() };
        link::create_veth(
            &mut batch,
            &VethSpec { name: &port, master: Some(self.bridge), up: true, peer, ..VethSpec::default() },
        );
        let context = || format!("connect `{}` to `{}` as `{ifname}`", host.name, self.name);
        socket.transact(&batch).with_context(context)?;

        let mut socket = host.route_socket()?;
        let link = link::lookup(&mut socket, ifname)?.with_context(context)?;
        let index = link.index;
        let mut batch = Batch::new();
        link::set(
            &mut batch,
            index,
            &LinkChange { up: Some(true), addr_gen_mode: Some(AddrGenMode::None), ..LinkChange::default() },
        );
        if let Some(mac) = link.mac
            && addresses.iter().any(|(addr, _)| addr.is_ipv6())
        {
            addr::add(&mut batch, &Address::new(index, addr::link_local(mac).into(), 64));
        }
        for (addr, prefix_len) in addresses {
            addr::add(&mut batch, &Address::new(index, addr, prefix_len));
        }
        socket.transact(&batch).with_context(context)?;
        Ok(())
    }

    /// Has frames of `mtu` bytes of packet pass; what hosts send is their interfaces' business.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        let mut socket = with_netns(&self.switch, || Socket::open(ROUTE))??;
        let mut batch = Batch::new();
        for port in 0..self.ports {
            link::set(&mut batch, format!("p{port}").as_str(), &LinkChange { mtu: Some(mtu), ..LinkChange::default() });
        }
        link::set(&mut batch, self.bridge, &LinkChange { mtu: Some(mtu), ..LinkChange::default() });
        socket.transact(&batch).with_context(|| format!("set the MTU of `{}`", self.name))?;
        Ok(())
    }

    /// A command that will run in the switch, which sees all frames that hosts send each other.
    ///
    /// # Errors
    /// When out of descriptors.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        Ok(command_in(&self.switch, Command::new(program), true)?)
    }

    /// Pulls the plug of `host`: removes its interface `ifname`.
    ///
    /// # Errors
    /// When it has no such interface.
    pub fn disconnect(&self, host: &Host, ifname: &str) -> Result<()> {
        let mut batch = Batch::new();
        link::delete(&mut batch, ifname);
        host.route_socket()?.transact(&batch).with_context(|| format!("remove `{ifname}` of `{}`", host.name))?;
        Ok(())
    }
}

/// Parses `10.0.1.1/24`.
fn parse_prefix(text: &str) -> Result<(IpAddr, u8)> {
    let parsed = text
        .split_once('/')
        .and_then(|(addr, len)| Some((addr.parse::<IpAddr>().ok()?, len.parse::<u8>().ok()?)))
        .filter(|(addr, len)| *len <= if addr.is_ipv4() { 32 } else { 128 });
    match parsed {
        Some(parsed) => Ok(parsed),
        None => bail!("`{text}` is not an address with prefix length"),
    }
}
