//! The engine's port onto the kernel of this host: [`HostKernel`].

mod apply;
mod changes;
mod facts;
mod firewalld;
mod iptables;
mod observe;
mod others;
mod removal;

mod shortcuts;

use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, BorrowedFd};

use portolan_engine::{About, Kernel, KernelError, Kind, PortClash};
use portolan_model::{IfName, Mtu, ProcessId, Publication, Sandbox};
use portolan_plan::{Firewall, Objects, Step};

use crate::netlink::{self, NetlinkError, Socket};
use crate::sysctl::SysctlError;

pub use shortcuts::{EndOfTunnels, Taken, programs, remove_program, took_shortcuts};

/// The namespace of the calling thread, seen as the host. Holds one routing and one netfilter socket, opened when
/// first needed.
#[derive(Debug, Default)]
pub struct HostKernel {
    route: RefCell<Option<Socket>>,
    netfilter: RefCell<Option<Socket>>,
    // Neither changes while the process lives, and reading either takes as long as a netlink message.
    boot: OnceCell<String>,
    process: OnceCell<ProcessId>,
    /// Whether shortcuts can be programs, and whether they can be tables, once somebody asked.
    programs: Cell<Option<bool>>,
    tables: OnceCell<bool>,
    /// Whether others' rules are on this host, and of which generation of the ruleset that is.
    others: Cell<Option<(u32, bool)>>,
    leaves_waits: Cell<bool>,
    /// Whether closing the netfilter socket would have to wait for what it removed.
    lingers: Cell<bool>,
    /// Whether a copy of this process has it open too, and will close it later than this one does.
    is_kept: Cell<bool>,
}

impl HostKernel {
    /// The kernel as this thread's namespace shows it. Opens nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on, waits for what the kernel does after an interface is gone are left to copies of this process. For those
    /// who end soon: a copy takes a fraction of the wait to make.
    pub fn leave_waits_to_a_copy(&self) {
        self.leaves_waits.set(true);
    }

    fn leaves_waits_to_a_copy(&self) -> bool {
        self.leaves_waits.get()
    }

    /// Runs `hand`, which makes a copy of this process, with the netfilter socket, if there is one, for the copy to keep.
    fn with_netfilter_kept<T>(&self, hand: impl FnOnce(Option<BorrowedFd<'_>>) -> io::Result<T>) -> io::Result<T> {
        let netfilter = self.netfilter.borrow();
        let netfilter = netfilter.as_ref().map(Socket::as_fd);
        let handed = hand(netfilter)?;
        self.is_kept.set(netfilter.is_some());
        Ok(handed)
    }

    /// Leaves the netfilter socket to a copy of this process if closing it would take long and none has it.
    fn leave_lingering(&self) {
        if !(self.leaves_waits.get() && self.lingers.get()) || self.is_kept.get() {
            return;
        }
        if let Err(error) = self.with_netfilter_kept(|netfilter| netfilter.map_or(Ok(()), netlink::outlive)) {
            tracing::debug!(%error, "no copy of this process to be had");
        }
    }

    /// An interface of the host; none if there is no such, or it cannot be asked for.
    pub fn interface(&self, index: u32) -> Option<crate::rtnl::link::Link> {
        let look = |socket: &mut Socket| {
            crate::rtnl::link::lookup(socket, index).map_err(|error| refusal("read an interface", &error))
        };
        self.with_route(look).ok().flatten()
    }

    /// The addresses of an interface of the host by which others on its link reach the host: not those of the link alone.
    /// None if there is no such interface.
    ///
    /// # Errors
    /// [`KernelError`].
    pub fn addresses(&self, name: &str) -> Result<Option<Vec<IpAddr>>, KernelError> {
        facts::addresses(self, name)
    }

    /// Tells firewalld, where one runs, to let these bridges pass: a reload makes it forget. For drivers other than
    /// firewalld itself.
    ///
    /// # Errors
    /// [`KernelError`] with what firewalld says.
    pub fn trust(&self, bridges: &[String]) -> Result<(), KernelError> {
        firewalld::trust(bridges)
    }

    fn with_route<T>(&self, ask: impl FnOnce(&mut Socket) -> Result<T, KernelError>) -> Result<T, KernelError> {
        with(&self.route, netlink::ROUTE, ask)
    }

    fn with_netfilter<T>(&self, ask: impl FnOnce(&mut Socket) -> Result<T, KernelError>) -> Result<T, KernelError> {
        with(&self.netfilter, netlink::NETFILTER, ask)
    }
}

fn with<T>(
    cell: &RefCell<Option<Socket>>,
    protocol: i32,
    ask: impl FnOnce(&mut Socket) -> Result<T, KernelError>,
) -> Result<T, KernelError> {
    let mut slot = cell.borrow_mut();
    let socket = match &mut *slot {
        Some(socket) => socket,
        empty => empty.insert(Socket::open(protocol).map_err(|error| refusal("open a netlink socket", &error))?),
    };
    ask(socket)
}

/// What the kernel's errno asks of the caller.
fn kind(errno: i32) -> Kind {
    match errno {
        libc::EEXIST | libc::EADDRINUSE => Kind::Conflict,
        libc::ENOENT | libc::ENODEV | libc::ESRCH | libc::ENXIO => Kind::NotFound,
        libc::EPERM | libc::EACCES | libc::EROFS => Kind::Denied,
        libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT | libc::ENOSYS => Kind::Unsupported,
        libc::ENOBUFS
        | libc::ENOMEM
        | libc::EMFILE
        | libc::ENFILE
        | libc::EBUSY
        | libc::EAGAIN
        | libc::EINTR
        | libc::ENOSPC => Kind::Transient,
        libc::EXFULL => Kind::Exhausted,
        _ => Kind::Bug,
    }
}

fn refusal(doing: impl Into<String>, error: &NetlinkError) -> KernelError {
    failure(doing, error.to_string(), error.errno())
}

pub(crate) fn failure(doing: impl Into<String>, reason: String, errno: i32) -> KernelError {
    let kind = kind(errno);
    let hint = match (kind, errno) {
        (Kind::Unsupported, _) => Some(
            "this kernel lacks what that takes: load its module (one of bridge, veth, nf_tables, vxlan, macvlan, ipvlan, 8021q), or \
             use a kernel built with it"
                .to_owned(),
        ),
        (Kind::Conflict, libc::EADDRINUSE) => Some(
            "a program of this host has that port: `ss -lunp` shows which; end it, or begin the cluster with another --vxlan-port"
                .to_owned(),
        ),
        (Kind::Denied, libc::EROFS) => {
            Some("/proc/sys is read-only here: set the value outside, or mount it writable".to_owned())
        }
        (Kind::Denied, _) => Some("run as root, or with the capabilities CAP_NET_ADMIN and CAP_SYS_ADMIN".to_owned()),
        _ => None,
    };
    KernelError { doing: doing.into(), reason, errno, kind, hint, about: None }
}

fn unset(doing: impl Into<String>, error: &SysctlError) -> KernelError {
    let about = error.setting().map(|setting| Box::new(About::Setting(setting)));
    KernelError { about, ..failure(doing, error.to_string(), error.errno().unwrap_or(0)) }
}

impl Kernel for HostKernel {
    fn apply(&self, firewall: &Firewall, steps: &[Step]) -> Result<(), KernelError> {
        apply::run(self, firewall, steps, apply::Mode::Strict).into_iter().next().map_or(Ok(()), Err)
    }

    fn repair(&self, firewall: &Firewall, steps: &[Step]) -> Vec<KernelError> {
        apply::run(self, firewall, steps, apply::Mode::Lenient)
    }

    fn observe(&self, root: &str, firewall: &Firewall, desired: &Objects) -> Result<Objects, KernelError> {
        observe::observe(self, root, firewall, desired)
    }

    fn observe_rules(&self, firewall: &Firewall, desired: &Objects) -> Result<Objects, KernelError> {
        observe::rules(self, firewall, desired)
    }

    fn runs_programs(&self) -> Result<bool, KernelError> {
        self.has_programs()
    }

    fn runs_program(&self, device: &IfName) -> Result<bool, KernelError> {
        shortcuts::runs_program(device)
    }

    fn tables(&self) -> Result<Vec<String>, KernelError> {
        self.with_netfilter(|socket| {
            crate::nft::decode::table_names(socket, portolan_plan::Table::Inet)
                .map_err(|error| refusal("list nftables tables", &error))
        })
    }

    fn has_other_firewall(&self) -> bool {
        self.has_others()
    }

    fn routes(&self) -> Result<Vec<portolan_engine::HostRoute>, KernelError> {
        facts::routes(self)
    }

    fn path_mtu(&self) -> Result<Mtu, KernelError> {
        facts::path_mtu(self)
    }

    fn find_interface(&self, name: &str) -> Result<Option<portolan_engine::HostInterface>, KernelError> {
        facts::find_interface(self, name)
    }

    fn default_interface(&self) -> Result<Option<IfName>, KernelError> {
        facts::default_interface(self)
    }

    fn interface_name(&self, index: u32) -> Option<String> {
        facts::interface_name(self, index)
    }

    fn interfaces(&self) -> Result<Vec<(IfName, Option<String>)>, KernelError> {
        facts::interfaces(self)
    }

    fn setting(&self, path: &str) -> Option<String> {
        crate::sysctl::read(&path.split('/').collect::<Vec<_>>()).ok()
    }

    fn setting_in(&self, sandbox: &Sandbox, path: &str) -> Result<Option<String>, KernelError> {
        facts::setting_in(sandbox, path)
    }

    fn sandbox(&self, path: &std::path::Path) -> Result<Sandbox, KernelError> {
        facts::sandbox(path)
    }

    fn here(&self) -> Result<Sandbox, KernelError> {
        facts::here()
    }

    fn sandbox_alive(&self, sandbox: &Sandbox) -> bool {
        facts::sandbox_alive(sandbox)
    }

    fn process_alive(&self, process: ProcessId) -> bool {
        facts::process_alive(process)
    }

    fn this_process(&self) -> ProcessId {
        *self.process.get_or_init(|| {
            let pid = std::process::id() as i32;
            ProcessId { pid, started: facts::start_time(pid).ok().flatten().unwrap_or_default() }
        })
    }

    fn boot(&self) -> Result<String, KernelError> {
        const PATH: &str = "/proc/sys/kernel/random/boot_id";
        if let Some(boot) = self.boot.get() {
            return Ok(boot.clone());
        }
        let text = std::fs::read_to_string(PATH)
            .map_err(|error| failure(format!("read `{PATH}`"), error.to_string(), error.raw_os_error().unwrap_or(0)))?;
        Ok(self.boot.get_or_init(|| text.trim().to_owned()).clone())
    }

    fn now(&self) -> u64 {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }

    fn random(&self) -> [u8; 32] {
        crate::sys::random()
    }

    fn ephemeral_ports(&self) -> (u16, u16, Vec<u16>) {
        facts::ephemeral_ports(self)
    }

    fn host_ports_free(&self, publication: &Publication, keeper: Option<&str>) -> Result<(), PortClash> {
        facts::host_ports_free(self, publication, keeper)
    }

    fn forget_flows(&self, publications: &[Publication]) {
        facts::forget_flows(self, publications);
    }
}
