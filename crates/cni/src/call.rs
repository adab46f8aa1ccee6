//! What a runtime says in the environment (CNI spec, "CNI operations").

use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::{Code, Error};

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Put a container on the network.
    Add,
    /// Take it off.
    Del,
    /// Tell whether it is on it as it should be.
    Check,
    /// Take off all but those that are listed.
    Gc,
    /// Tell whether an ADD would succeed.
    Status,
    /// Tell which versions are spoken.
    Version,
}

/// A call, as its environment has it.
#[derive(Debug, Clone)]
pub struct Call {
    /// What is to be done.
    pub verb: Verb,
    /// The runtime's name for the container; empty for GC, STATUS and VERSION.
    pub container: String,
    /// The file of its namespace; empty where there is none.
    pub netns: PathBuf,
    /// The interface inside; empty for GC, STATUS and VERSION.
    pub ifname: String,
    /// `CNI_ARGS`: pairs that a person or orchestrator adds.
    pub args: Vec<(String, String)>,
    /// Where plugins are.
    pub path: Vec<PathBuf>,
    /// The namespace may be the plugin's own (`CNI_NETNS_OVERRIDE`).
    pub may_be_own_netns: bool,
}

impl Call {
    /// Reads a call from the environment; none if it has no `CNI_COMMAND`.
    ///
    /// # Errors
    /// [`Code::Environment`] for what is missing, unknown or malformed, as the reference implementation says it.
    pub fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, Error> {
        let text = |name: &str| -> Result<String, Error> {
            get(name)
                .unwrap_or_default()
                .into_string()
                .map_err(|_| Error::new(Code::Environment, format!("environment variable {name} is not valid UTF-8")))
        };
        let command = text("CNI_COMMAND")?;
        let verb = match command.as_str() {
            "" => return Ok(None),
            "ADD" => Verb::Add,
            "DEL" => Verb::Del,
            "CHECK" => Verb::Check,
            "GC" => Verb::Gc,
            "STATUS" => Verb::Status,
            "VERSION" => Verb::Version,
            other => return Err(Error::new(Code::Environment, format!("unknown CNI_COMMAND: {other}"))),
        };
        let needed: &[&str] = match verb {
            Verb::Add | Verb::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Verb::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Verb::Gc | Verb::Status => &["CNI_PATH"],
            Verb::Version => &[],
        };
        let missing: Vec<&str> =
            needed.iter().copied().filter(|name| get(name).is_none_or(|value| value.is_empty())).collect();
        if !missing.is_empty() {
            let missing = missing.join(",");
            return Err(Error::new(Code::Environment, format!("required env variables [{missing}] missing")));
        }
        let is_of_a_container = matches!(verb, Verb::Add | Verb::Check | Verb::Del);
        let of_a_container = |name| if is_of_a_container { text(name) } else { Ok(String::new()) };
        let path = get("CNI_PATH").unwrap_or_default();
        Ok(Some(Self {
            verb,
            container: of_a_container("CNI_CONTAINERID")?,
            netns: get("CNI_NETNS").unwrap_or_default().into(),
            ifname: of_a_container("CNI_IFNAME")?,
            args: args(&text("CNI_ARGS")?)?,
            path: std::env::split_paths(&path).filter(|dir| !dir.as_os_str().is_empty()).collect(),
            may_be_own_netns: matches!(text("CNI_NETNS_OVERRIDE")?.to_ascii_uppercase().as_str(), "TRUE" | "1"),
        }))
    }

    /// Refuses names that are none, which other programs make files of.
    ///
    /// # Errors
    /// [`Code::Environment`], as the reference implementation says it.
    pub fn check(&self) -> Result<(), Error> {
        if !matches!(self.verb, Verb::Add | Verb::Check | Verb::Del) {
            return Ok(());
        }
        if !is_name(&self.container) {
            return Err(
                Error::new(Code::Environment, "invalid characters in containerID").details(self.container.clone())
            );
        }
        let refuse = |msg: &str, details: &str| Err(Error::new(Code::Environment, msg).details(details));
        // What was let in once can be taken off whatever it is called.
        if self.verb == Verb::Add && self.container.len() > LONGEST_CONTAINER {
            return refuse("containerID is too long", "a container's name has at most 255 characters, as a file's has");
        }
        let ifname = self.ifname.as_str();
        if ifname.len() > 15 {
            return refuse("interface name is too long", "interface name should be less than 16 characters");
        }
        if ifname == "." || ifname == ".." {
            return refuse("interface name is . or ..", "");
        }
        if ifname.contains(|c: char| c == '/' || c == ':' || c.is_whitespace()) {
            return refuse("interface name contains / or : or whitespace characters", "");
        }
        Ok(())
    }

    /// What `CNI_ARGS` says about `key`.
    pub fn arg(&self, key: &str) -> Option<&str> {
        let found = self.args.iter().find(|(name, _)| name == key);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }
}

/// How long a container's name can be: the reference implementation makes a file's name of it (`NAME_MAX`), and fails with
/// longer ones only after all plugins have done their work.
const LONGEST_CONTAINER: usize = 255;

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]*`
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Pairs between semicolons. Keys that mean nothing here are somebody else's.
fn args(text: &str) -> Result<Vec<(String, String)>, Error> {
    let pairs = text.split(';').filter(|pair| !pair.is_empty());
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(Error::new(Code::Environment, format!("CNI_ARGS invalid key/value pair {pair:?}"))),
    };
    pairs.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Call>, Error> {
        Call::read(|name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into()))
    }

    const ADD: [(&str, &str); 5] = [
        ("CNI_COMMAND", "ADD"),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/run/netns/c1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin:/usr/lib/cni"),
    ];

    #[test]
    fn whole_and_missing() {
        assert!(read(&[]).unwrap().is_none());
        let call = read(&[&ADD[..], &[("CNI_ARGS", "IgnoreUnknown=1;IP=10.0.0.9;EMPTY=")]].concat()).unwrap().unwrap();
        assert_eq!((call.verb, call.arg("IP"), call.arg("EMPTY")), (Verb::Add, Some("10.0.0.9"), None));
        assert_eq!(call.path.len(), 2);
        call.check().unwrap();
        let error = read(&ADD[..2]).unwrap_err();
        assert_eq!(error.msg, "required env variables [CNI_NETNS,CNI_IFNAME,CNI_PATH] missing");
        assert_eq!(error.code, Code::Environment);
        assert_eq!(read(&[("CNI_COMMAND", "GET")]).unwrap_err().msg, "unknown CNI_COMMAND: GET");
        assert_eq!(read(&[("CNI_COMMAND", "STATUS")]).unwrap_err().msg, "required env variables [CNI_PATH] missing");
        assert_eq!(read(&[("CNI_COMMAND", "VERSION")]).unwrap().unwrap().verb, Verb::Version);
        assert!(read(&[&ADD[..], &[("CNI_ARGS", "IP")]].concat()).is_err());
    }

    #[test]
    fn names_are_no_paths() {
        for (key, value) in [
            ("CNI_CONTAINERID", "../x"),
            ("CNI_CONTAINERID", "-x"),
            ("CNI_CONTAINERID", "a b"),
            ("CNI_IFNAME", "a-name-of-sixteen"),
            ("CNI_IFNAME", ".."),
            ("CNI_IFNAME", "a/b"),
            ("CNI_IFNAME", "a b"),
        ] {
            let pairs: Vec<_> = ADD.iter().map(|(k, v)| (*k, if *k == key { value } else { v })).collect();
            assert_eq!(read(&pairs).unwrap().unwrap().check().unwrap_err().code, Code::Environment, "{key}={value}");
        }
    }

    #[test]
    fn a_container_is_called_what_a_file_can_be_called() {
        let call = |verb: &'static str, length: usize| {
            let name = "c".repeat(length);
            let pairs: Vec<_> = ADD
                .iter()
                .map(|(key, value)| match *key {
                    "CNI_COMMAND" => (*key, verb),
                    "CNI_CONTAINERID" => (*key, name.as_str()),
                    _ => (*key, *value),
                })
                .collect();
            read(&pairs).unwrap().unwrap().check().map_err(|error| error.msg)
        };
        assert_eq!(call("ADD", 255), Ok(()));
        assert_eq!(call("ADD", 10_000), Err("containerID is too long".to_owned()));
        assert_eq!(call("DEL", 10_000), Ok(()));
    }
}
