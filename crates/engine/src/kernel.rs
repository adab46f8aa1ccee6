//! The port through which the engine reads and changes the kernel.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use portolan_model::{IfName, Mac, Mtu, ProcessId, Protocol, Publication, Sandbox};
use portolan_plan::{Firewall, Objects, Step};

use crate::error::Kind;

/// The kernel refused, or could not be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelError {
    /// What was being done to what, e.g. ``create veth `pv0a1b` ``.
    pub doing: String,
    /// The kernel's reason, with errno and what it added: `file exists (EEXIST)`.
    pub reason: String,
    /// The kernel's error number; 0 where it was not the kernel that refused.
    pub errno: i32,
    /// What it asks of the caller.
    pub kind: Kind,
    /// What to do about it.
    pub hint: Option<String>,
    /// What it is about, where that is among what [`About`] has. Boxed: errors are passed by value everywhere.
    pub about: Option<Box<About>>,
}

/// What a refusal is about, for callers who have words of their own for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// A sysctl that could not be read or written: its path below `/proc/sys`.
    Setting(String),
    /// An interface that could not be made: its name in the sandbox.
    Interface(IfName),
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.doing, self.reason)
    }
}

impl std::error::Error for KernelError {}

/// A route of the host, in any of its tables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// The destination; never the default route.
    pub net: IpNet,
    /// The index of the interface it leads out of, if it does.
    pub device: Option<u32>,
    /// The routing table's number.
    pub table: u32,
}

/// An interface of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostInterface {
    /// Its MTU.
    pub mtu: Mtu,
    /// Its MAC, if it has one.
    pub mac: Option<Mac>,
}

/// Why a host port cannot be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortClash {
    /// A process has it.
    Listening {
        /// The port.
        port: u16,
        /// The process, as far as it can be told.
        holder: String,
    },
    /// The host has no such address.
    NotLocal(IpAddr),
}

/// The kernel of this host, and the few other facts of the machine that verbs depend on.
pub trait Kernel {
    /// Takes `steps` in order; stops at the first that fails. Steps that belong together (all elements) are one
    /// transaction. Of rules, those are taken that the driver of `firewall` holds ([`Firewall::holds`]).
    ///
    /// # Errors
    /// [`KernelError`] of the step that failed; some of the steps may have been taken, [`Kernel::repair`] of their
    /// inverse undoes them.
    fn apply(&self, firewall: &Firewall, steps: &[Step]) -> Result<(), KernelError>;

    /// Takes `steps` as far as they go: what is to be deleted may be gone, what is to be created may be there.
    /// Goes on after failures and returns them all.
    fn repair(&self, firewall: &Firewall, steps: &[Step]) -> Vec<KernelError>;

    /// Reads what the kernel holds for root `root`: every object that is ours by name, and those places that
    /// `desired` speaks of (sandboxes, sysctls).
    ///
    /// # Errors
    /// [`KernelError`] when the kernel cannot be read.
    fn observe(&self, root: &str, firewall: &Firewall, desired: &Objects) -> Result<Objects, KernelError>;

    /// The part of [`Kernel::observe`] that is about rules: what the driver holds of ours, with its elements.
    /// `desired` is what is to be there.
    ///
    /// # Errors
    /// [`KernelError`] when they cannot be read.
    fn observe_rules(&self, firewall: &Firewall, desired: &Objects) -> Result<Objects, KernelError>;

    /// Whether programs can pass packets on at the ingress of interfaces.
    ///
    /// # Errors
    /// [`KernelError`].
    fn runs_programs(&self) -> Result<bool, KernelError>;

    /// Whether shortcuts of an end of tunnels are a program at its ingress: if not, a table of nftables.
    ///
    /// # Errors
    /// [`KernelError`].
    fn runs_program(&self, device: &IfName) -> Result<bool, KernelError>;

    /// The names of nftables tables of the inet family.
    ///
    /// # Errors
    /// [`KernelError`], kind unsupported where the kernel has no nftables.
    fn tables(&self) -> Result<Vec<String>, KernelError>;

    /// Whether the host has rules besides ours that its own packets pass. It has unless it is known not to.
    fn has_other_firewall(&self) -> bool;

    /// All routes but the default ones.
    ///
    /// # Errors
    /// [`KernelError`].
    fn routes(&self) -> Result<Vec<HostRoute>, KernelError>;

    /// The MTU of the path that the default route takes; Ethernet's when there is none.
    ///
    /// # Errors
    /// [`KernelError`].
    fn path_mtu(&self) -> Result<Mtu, KernelError>;

    /// The host's interface of this name, if there is one.
    ///
    /// # Errors
    /// [`KernelError`].
    fn find_interface(&self, name: &str) -> Result<Option<HostInterface>, KernelError>;

    /// The interface that the default route leads out of, IPv4's first.
    ///
    /// # Errors
    /// [`KernelError`].
    fn default_interface(&self) -> Result<Option<IfName>, KernelError>;

    /// The name of the host's interface with this index; none where there is no such.
    fn interface_name(&self, index: u32) -> Option<String>;

    /// The interfaces of the host but loopback, with their aliases.
    ///
    /// # Errors
    /// [`KernelError`].
    fn interfaces(&self) -> Result<Vec<(IfName, Option<String>)>, KernelError>;

    /// A sysctl below `/proc/sys`, none where the kernel has it not.
    fn setting(&self, path: &str) -> Option<String>;

    /// A sysctl in a sandbox, below `/proc/sys`; none where the kernel has it not, or does not tell.
    ///
    /// # Errors
    /// [`KernelError`] when the namespace is gone.
    fn setting_in(&self, sandbox: &Sandbox, path: &str) -> Result<Option<String>, KernelError>;

    /// The namespace at `path`.
    ///
    /// # Errors
    /// [`KernelError`] when it is no network namespace, is gone, or is the host's own.
    fn sandbox(&self, path: &Path) -> Result<Sandbox, KernelError>;

    /// The host's own namespace, where interfaces are left for others to take.
    ///
    /// # Errors
    /// When it cannot be opened.
    fn here(&self) -> Result<Sandbox, KernelError>;

    /// Whether the namespace is still there. It is unless it is known not to be.
    fn sandbox_alive(&self, sandbox: &Sandbox) -> bool;

    /// Whether the process still runs. It does unless it is known not to.
    fn process_alive(&self, process: ProcessId) -> bool;

    /// This process.
    fn this_process(&self) -> ProcessId;

    /// The boot's identity.
    ///
    /// # Errors
    /// [`KernelError`] when it cannot be read: taken for another one, it would have all containers taken down.
    fn boot(&self) -> Result<String, KernelError>;

    /// Seconds since 1970.
    fn now(&self) -> u64;

    /// Random bytes.
    fn random(&self) -> [u8; 32];

    /// The ports for outgoing connections, first and last, and those of them that are reserved.
    fn ephemeral_ports(&self) -> (u16, u16, Vec<u16>);

    /// Whether the host ports of `publication` are free of listeners; those of a program called `keeper` do not count:
    /// it holds ports on behalf of containers, and never answers on them.
    ///
    /// # Errors
    /// [`PortClash`] names the port and who has it.
    fn host_ports_free(&self, publication: &Publication, keeper: Option<&str>) -> Result<(), PortClash>;

    /// Forgets UDP and SCTP flows to published ports, by their *host* port, so that a client's next packet goes
    /// where the port leads now. TCP starts over by itself.
    fn forget_flows(&self, publications: &[Publication]);
}

/// The protocols whose flows outlive the port they were translated by.
pub(crate) fn is_connectionless(protocol: Protocol) -> bool {
    protocol != Protocol::Tcp
}
