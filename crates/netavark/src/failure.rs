//! Failures as netavark words them: a chain of texts, outermost first, joined by colons.

use std::fmt;
use std::io;

use portolan_engine::{About, AttachRequest, EndpointRequest, Error, Kind};
use portolan_model::Driver;
use serde::Serialize;

/// What went wrong, in netavark's words where it has any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// A failure without a cause.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// What the operating system refused.
    pub fn io(error: &io::Error) -> Self {
        Self(format!("IO error: {error}"))
    }

    /// The same, as the cause of `outer`.
    #[must_use]
    pub fn within(self, outer: impl fmt::Display) -> Self {
        Self(format!("{outer}: {}", self.0))
    }

    /// The object that Podman reads: it has this one key and no other.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        struct Object<'a> {
            error: &'a str,
        }
        serde_json::to_string(&Object { error: &self.0 }).expect("text serialises")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Several failures as one; none of none.
pub fn all(failures: Vec<Failure>) -> Option<Failure> {
    match failures.len() {
        0 => None,
        1 => failures.into_iter().next(),
        _ => {
            let mut text = String::from("netavark encountered multiple errors:");
            for failure in failures {
                text.push_str("\n\t- ");
                text.push_str(&failure.0);
            }
            Some(Failure(text))
        }
    }
}

/// A refusal of an attach, in netavark's words where it refuses the same.
pub fn attach_failure(error: &Error, request: &AttachRequest) -> Failure {
    let endpoint = match (error, about(error)) {
        (_, Some((EEXIST, About::Interface(name)))) => {
            request.endpoints.iter().find(|endpoint| endpoint.ifname.as_ref() == Some(name))
        }
        (Error::NameTaken { what: "interface", name }, _) => request.endpoints.iter().find(|endpoint| {
            [&endpoint.host_end, &endpoint.ifname].into_iter().flatten().any(|there| there.as_str() == name)
        }),
        _ => None,
    };
    endpoint.and_then(taken).unwrap_or_else(|| engine_failure(error))
}

/// That an interface of `endpoint` cannot have its name.
fn taken(endpoint: &EndpointRequest) -> Option<Failure> {
    let ifname = endpoint.ifname.as_ref()?;
    let doing = match (endpoint.transient.as_ref()?.driver, &endpoint.host_end) {
        (driver @ (Driver::Macvlan | Driver::Ipvlan), _) => format!("rename tmp {driver} interface"),
        (_, None) => format!("create veth pair: interface {ifname} already exists on container namespace"),
        (_, Some(host_end)) => format!(
            "create veth pair: interface {ifname} already exists on container namespace or {host_end} exists on host \
             namespace"
        ),
    };
    Some(Failure(format!("{doing}: Netlink error: {}", io::Error::from_raw_os_error(EEXIST))))
}

/// A refusal of the engine: in netavark's words where it refuses the same, else in our own with our advice.
pub fn engine_failure(error: &Error) -> Failure {
    let os = |errno| io::Error::from_raw_os_error(errno);
    if let Some((errno, About::Setting(name))) = about(error) {
        return Failure(format!("set sysctl {name}: IO error: {}", os(errno)));
    }
    match error {
        Error::NotFound { what: "bridge", .. } => {
            return Failure(format!(
                "in unmanaged mode, the bridge must already exist on the host: Netlink error: {}",
                os(ENODEV)
            ));
        }
        Error::NotFound { what: "VRF", .. } => {
            return Failure(format!("get vrf to set up bridge interface: Netlink error: {}", os(ENODEV)));
        }
        Error::NameTaken { what: "bridge device of network", name } => {
            return Failure(format!(
                "network `{name}` has that bridge already: several networks, as VLANs or not, share one only with \
                 mode=unmanaged"
            ));
        }
        Error::DeviceTaken { name } => {
            return Failure(format!(
                "{error}: the rules of a managed network would hold for all that is on it (if it is a bridge of your own, \
                 have the network join it as it is: podman network create --opt mode=unmanaged --interface-name {name}; if \
                 another network backend made it, stop the containers that it keeps there first)"
            ));
        }
        _ => {}
    }
    let mut text = error.to_string();
    if let Error::Kernel { source, .. } = error {
        text = format!("{text}: {source}");
    }
    if let Some(hint) = error.hint().filter(|_| speaks_to_podman(error)) {
        text = format!("{text} ({hint})");
    }
    Failure(text)
}

/// What the kernel refused, and by which number.
fn about(error: &Error) -> Option<(i32, &About)> {
    let Error::Kernel { source, .. } = error else { return None };
    Some((source.errno, source.about.as_deref()?))
}

/// Whether our advice helps someone who typed a podman command: most of it names commands and flags of ours.
fn speaks_to_podman(error: &Error) -> bool {
    match error {
        Error::PortListening { .. } | Error::NotLocal { .. } | Error::BridgeFull { .. } | Error::Store(_) => true,
        Error::Kernel { source, .. } => source.kind == Kind::Unsupported,
        _ => false,
    }
}

/// Error numbers of Linux on all of our platforms (asm-generic/errno-base.h).
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;

#[cfg(test)]
mod tests {
    use portolan_engine::KernelError;

    use super::*;

    #[test]
    fn the_object_has_one_key() {
        assert_eq!(Failure::new("a \"b\"").within("c").to_json(), r#"{"error":"c: a \"b\""}"#);
    }

    #[test]
    fn several_are_a_list() {
        assert_eq!(all(Vec::new()), None);
        assert_eq!(all(vec![Failure::new("a")]), Some(Failure::new("a")));
        let two = all(vec![Failure::new("a"), Failure::new("b")]).unwrap();
        assert_eq!(two.to_string(), "netavark encountered multiple errors:\n\t- a\n\t- b");
    }

    #[test]
    fn a_read_only_proc_in_netavarks_words() {
        let source = KernelError {
            doing: "set sysctl `net.ipv4.ip_forward` to 1".into(),
            reason: "read-only file system (EROFS)".into(),
            errno: 30,
            kind: portolan_engine::Kind::Denied,
            hint: None,
            about: Some(Box::new(About::Setting("net/ipv4/ip_forward".into()))),
        };
        let error = Error::Kernel { doing: "attach".into(), source };
        assert_eq!(
            engine_failure(&error).to_string(),
            "set sysctl net/ipv4/ip_forward: IO error: Read-only file system (os error 30)"
        );
    }
}
