//! What hostile bytes must not do: one function for each fuzz target, a module for each area.
//!
//! `./test fuzz` searches; the test `hostile` of `crates/resident` runs the same functions over the corpus and random
//! changes of it, without any of that. Each takes any bytes, and panics if a property does not hold.

#![allow(dead_code, unreachable_pub, reason = "fuzzer and test use their parts")]

pub mod cni;
pub mod dhcp;
pub mod dns;
pub mod docker;
pub mod files;
pub mod firewalld;
pub mod iptables;
pub mod kernel;
pub mod netavark;
pub mod resident;
pub mod scratch;
pub mod store;
pub mod text;

/// A target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// What it does with bytes.
    pub check: fn(&[u8]),
    /// How many changes of its corpus the test tries.
    pub changes: u32,
    /// What it takes apart.
    pub what: &'static str,
    /// What must hold of that.
    pub properties: &'static str,
}

/// All of them.
#[rustfmt::skip]
pub const ALL: &[Target] = &[
    Target {
        name: "dns_query", check: dns::query, changes: 20_000,
        what: "a container's question, and what is sent on to an upstream",
        properties: "an answer is well formed, no longer than the client takes and has its number; what is asked upstream is the same question; a bare name stays here",
    },
    Target {
        name: "dns_response", check: dns::response, changes: 5_000,
        what: "an upstream's answer",
        properties: "what is taken is well formed when it is passed on, at any age and size; limits hold",
    },
    Target {
        name: "dns_cache", check: dns::cache, changes: 2_000,
        what: "any order of putting, getting and waiting",
        properties: "the memory limit holds; what is found was put there and is in time",
    },
    Target {
        name: "text", check: text::everything, changes: 2_000,
        what: "`-p`, subnets, ranges, addresses, MACs, names, rates, sysctls, `--network`, `-o` and the other texts of flags",
        properties: "what is read and written again is the same, also as JSON of a row; a refusal is short and has no control characters",
    },
    Target {
        name: "cni", check: cni::call, changes: 2_000,
        what: "a CNI call: environment, configuration, `runtimeConfig`, `prevResult`, and a result of another plugin",
        properties: "an error is an object of the spec; a result is the same after it was written in a version and read; subnets and routes of a plan have no host bits",
    },
    Target {
        name: "netavark_setup", check: netavark::setup, changes: 3_000,
        what: "Podman's `setup` and `teardown`",
        properties: "every address of a plan is in a subnet of its network; names are names; a refusal is no longer than what was said",
    },
    Target {
        name: "netavark_create", check: netavark::create, changes: 3_000,
        what: "Podman's `create` and `update`",
        properties: "a network that is made can be read again and is the same, has subnets apart from each other and from what is used, gateways inside, and `setup` takes it",
    },
    Target {
        name: "docker_plugin", check: docker::plugin, changes: 200,
        what: "calls of the plugin protocol, network and IPAM, several on one engine",
        properties: "an answer is an object; a refusal says why; what was made can be removed, and then nothing is left in the kernel",
    },
    Target {
        name: "docker_api", check: docker::api, changes: 150,
        what: "calls of the Engine API: method, path, query, filters, times, body, several on one engine",
        properties: "a status of HTTP with a body of JSON; events do not end before they begin; what was made can be removed, and then nothing is left in the kernel",
    },
    Target {
        name: "docker_names", check: docker::names, changes: 5_000,
        what: "what Docker's API says of containers, networks and events",
        properties: "only what can be a name becomes one",
    },
    Target {
        name: "netlink", check: kernel::netlink, changes: 10_000,
        what: "datagrams of netlink, acknowledgements, notifications, and the payloads of links, addresses, routes, rules, neighbours, shapers, filters, connections, sockets",
        properties: "no more is taken than came; an error keeps its number",
    },
    Target {
        name: "nft", check: kernel::nft, changes: 10_000,
        what: "elements of every set and rules, as nftables lists them",
        properties: "an element that is taken for one of ours is the same after it was written and read",
    },
    Target {
        name: "iptables", check: iptables::saved, changes: 1_000,
        what: "what iptables-save prints",
        properties: "what goes to iptables-restore is tables of lines that each have a verb, and ends; time has a limit",
    },
    Target {
        name: "dhcp_proxy", check: dhcp::question, changes: 10_000,
        what: "a question of netavark's DHCP service: frame and protobuf",
        properties: "what is taken has a MAC and names that an interface can have; a refusal fits into a header",
    },
    Target {
        name: "gob", check: dhcp::gob, changes: 3_000,
        what: "Go's `net/rpc` as the plugin `dhcp` and its daemon speak it",
        properties: "the same values however it comes in pieces; no more values than bytes; a lease is the same after it was written and read",
    },
    Target {
        name: "greeting", check: dhcp::greeting, changes: 10_000,
        what: "the head of HTTP by which a caller of the plugin `dhcp`'s daemon asks for `net/rpc`",
        properties: "no more is taken than a head's length; only who asks for it in full is let in",
    },
    Target {
        name: "dhcp_lease", check: dhcp::lease, changes: 10_000,
        what: "what a DHCP server grants, of either family, and the same taken over later; its messages are the library `mozim`'s",
        properties: "a row of it is the same when it is read; routes have no host bits; domains can be written into resolv.conf; taken over, it is the same and its times are in order",
    },
    Target {
        name: "firewalld", check: firewalld::answer, changes: 10_000,
        what: "answers of firewalld over D-Bus: the settings of a policy; the bus's messages are the library `zbus`'s",
        properties: "rules are no longer than what came, and the same after they were written and read",
    },
    Target {
        name: "host_local", check: cni::host_local, changes: 2_000,
        what: "the configurations of `host-local`, `static` and `dhcp`",
        properties: "an address that is given is in its subnet and not the gateway",
    },
    Target {
        name: "leases", check: files::leases, changes: 200,
        what: "a directory of host-local leases",
        properties: "a lease is a file whose name is an address; no text is longer than 4096 bytes",
    },
    Target {
        name: "files", check: files::texts, changes: 3_000,
        what: "resolv.conf (three readers), containers.conf",
        properties: "limits of resolv.conf(5) hold; what a container gets has lines of three kinds, and a server whenever it can have one",
    },
    Target {
        name: "store_file", check: store::file, changes: 60,
        what: "a state file of which bytes were changed",
        properties: "it is read, or an error names it; never anything else",
    },
    Target {
        name: "store_rows", check: store::rows, changes: 50,
        what: "rows of a state file whose bodies say anything",
        properties: "a row is read and is the same when it is written again, or an error names the file; the engine, reading it, goes on or says why not",
    },
    Target {
        name: "control", check: resident::control, changes: 10_000,
        what: "lines of the control socket, both ways, and what a predecessor remembers at an upgrade",
        properties: "what is read and written again is the same",
    },
    Target {
        name: "metrics", check: resident::metrics, changes: 10_000,
        what: "a request for metrics",
        properties: "one whole answer of HTTP, whatever is asked; metrics for those who ask for them only",
    },
];

/// Checks a refusal that a terminal shows: short, whatever was said, and without what a terminal would obey.
fn shown(text: &str) {
    assert!(text.chars().count() <= 700, "{} characters: {text}", text.chars().count());
    assert!(!text.chars().any(char::is_control), "{text:?}");
}

/// The same of a text that may be long because somebody else's words are in it.
fn terminal(text: &str) {
    assert!(!text.chars().any(char::is_control), "{text:?}");
}
