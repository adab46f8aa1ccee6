//! Why an answer of ours is not dockerd's.

/// A difference that is meant.
#[derive(Debug)]
pub(crate) struct Difference {
    /// A part of the line that was asked.
    pub(crate) line: &'static str,
    /// A part of dockerd's answer.
    pub(crate) theirs: &'static str,
    /// A part of ours.
    pub(crate) ours: &'static str,
    /// Why.
    pub(crate) why: &'static str,
}

const fn differs(line: &'static str, theirs: &'static str, ours: &'static str, why: &'static str) -> Difference {
    Difference { line, theirs, ours, why }
}

const NEWER: &str = "the words of Docker 28, whose version of the API is served";
const NOT_OURS: &str =
    "Portolan has no images, volumes and swarms, and makes no containers by this API; it says what it is";

/// All of them; the first that fits is meant.
pub(crate) const DIFFERENCES: &[Difference] = &[
    // Docker 28 words them differently.
    differs("filter", "Invalid filter '", "invalid filter '", NEWER),
    differs("connect --ip", "Invalid address 10.200.0.1", "invalid endpoint settings: / no configured subnet", NEWER),
    differs("connect --ip", "Invalid IPv4 address", "invalid endpoint settings: / invalid IPv4 address", NEWER),
    differs("connect --ip", "user configured subnets", "invalid endpoint settings: / user specified", NEWER),
    differs("connect --ip", "user defined networks only", "invalid endpoint settings: / user-specified", NEWER),
    differs("connect --alias", "user defined networks", "invalid endpoint settings: / network-scoped aliases", NEWER),
    differs("connect host", "or connected to host network", "cannot connect container to host network", NEWER),
    differs("rm ", "has active endpoints", "has active endpoints (name:", "as Docker 28, it says which"),
    differs("remove()", "has active endpoints", "has active endpoints (name:", "as Docker 28, it says which"),
    differs("'odd'", "APIError 500", "APIError 400", "as Docker 28: it is the request that is wrong"),
    differs("create ''", "network with name  already exists", "invalid name: name is empty", NEWER),
    differs(
        "--subnet 10.64.0.1/24",
        "ID",
        "invalid network config: / invalid subnet",
        "as Docker 28, it says what is meant",
    ),
    differs("--subnet ten", "Invalid subnet ten", "invalid network config: / invalid subnet ten", NEWER),
    // What dockerd leaves unsaid.
    differs(
        "pigeon",
        "plugin \"pigeon\" not found",
        "plugin \"pigeon\" not found (Portolan has",
        "and says what there is",
    ),
    differs("create", "Pool overlaps", "Pool overlaps with other one on this address space (", "and says with what"),
    differs("IPAM.Config", "\"Subnet\"", "\"Gateway\"", "and says which gateway was chosen"),
    differs("println .Subnet", "fd61::/64", "fd61::/64 fd61::1", "and says which gateway was chosen"),
    differs("events", "disconnect", "disconnect", "dockerd tells of each disconnect twice"),
    // What Portolan has not, or has otherwise.
    differs("--config-", "", "configuration-only networks: Portolan does not have this", "Portolan has none"),
    differs(
        "network ls",
        "bridge bridge local false false",
        "bridge bridge local false true",
        "our default network has both families",
    ),
    differs("-o com.docker.network.driver.mtu", "failed to parse", "is not a number", "in Portolan's words"),
    differs(
        "-o no.such.option",
        "ID",
        "is unknown",
        "dockerd takes it and does nothing; an option that nothing heeds is a mistake",
    ),
    differs("create a/b", "ID", "holds the character '/'", "names are file names and host names as well"),
    differs("volume ls", "", "is not served here", NOT_OURS),
    differs("images", "", "is not served here", NOT_OURS),
    differs("start nosuch", "", "is not served here", NOT_OURS),
];
