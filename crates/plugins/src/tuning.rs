//! The plugin `tuning`: settings of a container's namespace and attributes of its interface.
//!
//! What the interface was before is kept in a file of the original's form, so that either takes back what the other did.

mod wanted;

use std::fs;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use portolan_cni::{Call, Code, Config, Error, Verb};
use portolan_kernel::netlink::{Batch, NetlinkError, Socket};
use portolan_kernel::rtnl::link::{self, IFF_ALLMULTI, IFF_PROMISC, Link, LinkChange};
use portolan_kernel::sysctl::{self, Written};
use regex_lite::Regex;
use serde::{Deserialize, Serialize};

use crate::Answer;
use crate::chain::{previous, validity};
use crate::inside::{exists, inside};
use crate::nat::failed;
use wanted::{Setting, Wanted, data_dir, parse_mac};

/// Which settings a configuration may have: an expression a line. Without the file all of them (the original's README).
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";

/// What an interface was.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Before {
    #[serde(skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    promisc: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    allmulti: Option<bool>,
    #[serde(rename = "txQLen", skip_serializing_if = "Option::is_none")]
    tx_queue_len: Option<u32>,
    /// Whose it is, for GC: the original leaves it out, and reads past it.
    #[serde(skip_serializing_if = "String::is_empty")]
    network: String,
    #[serde(rename = "containerID", skip_serializing_if = "String::is_empty")]
    container: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    ifname: String,
}

pub(crate) fn run(call: &Call, config: &Config, text: &[u8]) -> Answer {
    match call.verb {
        Verb::Add => {
            let wanted = Wanted::of(call, config, text)?;
            check_allowed(&wanted.settings)?;
            let mut previous = previous(config, "Required prevResult missing")?;
            add(call, config, &wanted)?;
            for interface in previous.interfaces.iter_mut().filter(|interface| interface.name == call.ifname) {
                if wanted.mac.is_some() {
                    interface.mac.clone_from(&wanted.mac_text);
                }
                if interface.mtu.is_some() {
                    interface.mtu = wanted.mtu.or(interface.mtu);
                }
            }
            Ok(Some((previous, config.version())))
        }
        Verb::Check => {
            let wanted = Wanted::of(call, config, text)?;
            previous(config, "Required prevResult missing")?;
            inside(call, "tuning", |socket| Ok(check(socket, call, &wanted)))??;
            Ok(None)
        }
        Verb::Del => {
            let file = backup(&data_dir(text), &call.container, &call.ifname);
            if exists(&call.netns) {
                inside(call, "tuning", |socket| Ok(restore(socket, call, &file)))??;
            }
            remove(&file).map(|()| None)
        }
        Verb::Gc => collect(config, &data_dir(text)).map(|()| None),
        Verb::Status => {
            Wanted::of(call, config, text).and_then(|wanted| check_allowed(&wanted.settings)).map(|()| None)
        }
        Verb::Version => Ok(None),
    }
}

/// Refuses what the administrator does not allow.
fn check_allowed(settings: &[Setting]) -> Result<(), Error> {
    let allowed = match fs::read_to_string(ALLOWED) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::new(Code::Io, format!("read {ALLOWED}: {error}"))),
    };
    let lines: Vec<&str> = allowed.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let expressions = lines.iter().map(|line| Regex::new(line)).collect::<Result<Vec<_>, _>>();
    let expressions =
        expressions.map_err(|error| Error::new(Code::InvalidConfig, format!("read {ALLOWED}: {error}")))?;
    let is_allowed = |setting: &&Setting| expressions.iter().any(|expression| expression.is_match(&setting.key));
    match settings.iter().find(|setting| !is_allowed(setting)) {
        None => Ok(()),
        Some(setting) => Err(Error::new(
            Code::InvalidConfig,
            format!(
                "Sysctl {} is not allowed. Only the following sysctls are allowed: [{}]",
                setting.key,
                lines.join(" ")
            ),
        )),
    }
}

fn backup(dir: &str, container: &str, ifname: &str) -> PathBuf {
    Path::new(dir).join(format!("{container}_{ifname}.json"))
}

/// All of it, or nothing.
fn add(call: &Call, config: &Config, wanted: &Wanted) -> Result<(), Error> {
    let file = backup(&wanted.data_dir, &call.container, &call.ifname);
    inside(call, "tuning", |socket| {
        let mut written: Vec<(&Setting, String)> = Vec::new();
        let done = write_all(&wanted.settings, &mut written).and_then(|()| change(socket, call, config, wanted, &file));
        if done.is_err() {
            for (setting, before) in written.iter().rev() {
                let _ = sysctl::write(&parts(setting), before);
            }
            let _ = restore(socket, call, &file).and_then(|()| remove(&file));
        }
        Ok(done)
    })?
}

fn parts(setting: &Setting) -> Vec<&str> {
    setting.path.iter().map(String::as_str).collect()
}

fn write_all<'a>(settings: &'a [Setting], written: &mut Vec<(&'a Setting, String)>) -> Result<(), Error> {
    for setting in settings {
        let done = sysctl::write(&parts(setting), &setting.value);
        let done = done.map_err(|error| {
            let cause = std::error::Error::source(&error).map_or_else(String::new, |cause| format!(": {cause}"));
            Error::new(Code::Internal, format!("{error}{cause}"))
        })?;
        if let Written::Changed(before) = done {
            written.push((setting, before));
        }
    }
    Ok(())
}

fn find(socket: &mut Socket, ifname: &str) -> Result<Link, Error> {
    let found = link::lookup(socket, ifname).map_err(|error| failed(&format!("failed to get {ifname:?}"), &error))?;
    found.ok_or_else(|| Error::new(Code::InvalidConfig, format!("failed to get {ifname:?}: Link not found")))
}

fn change(socket: &mut Socket, call: &Call, config: &Config, wanted: &Wanted, file: &Path) -> Result<(), Error> {
    if !wanted.changes_interface() {
        return Ok(());
    }
    let link = find(socket, &call.ifname)?;
    let before = Before {
        mac: wanted.mac.and(link.mac).map_or_else(String::new, shown),
        promisc: wanted.promisc.then_some(link.flags & IFF_PROMISC != 0),
        mtu: wanted.mtu.map(|_| link.mtu),
        allmulti: wanted.allmulti.map(|_| link.flags & IFF_ALLMULTI != 0),
        tx_queue_len: wanted.tx_queue_len.map(|_| link.tx_queue_len),
        network: config.name.clone(),
        container: call.container.clone(),
        ifname: call.ifname.clone(),
    };
    save(&before, file)
        .map_err(|error| Error::new(Code::Io, format!("failed to save file {}: {error}", file.display())))?;
    apply(
        socket,
        link.index,
        &LinkChange {
            mac: wanted.mac,
            promisc: wanted.promisc.then_some(true),
            mtu: wanted.mtu,
            allmulti: wanted.allmulti,
            tx_queue_len: wanted.tx_queue_len,
            ..LinkChange::default()
        },
    )
    .map_err(|error| failed(&format!("change interface {:?}", call.ifname), &error))
}

/// One attribute after the other, so that the kernel says which one it refuses.
fn apply(socket: &mut Socket, index: u32, change: &LinkChange<'_>) -> Result<(), NetlinkError> {
    let none = LinkChange::default();
    let each = [
        LinkChange { mac: change.mac, ..none },
        LinkChange { promisc: change.promisc, allmulti: change.allmulti, ..none },
        LinkChange { mtu: change.mtu, ..none },
        LinkChange { tx_queue_len: change.tx_queue_len, ..none },
    ];
    let mut batch = Batch::new();
    for one in &each {
        link::set(&mut batch, index, one);
    }
    socket.transact(&batch).map(drop)
}

/// As a whole: a DEL that finds half of it would take back nothing.
fn save(before: &Before, file: &Path) -> std::io::Result<()> {
    let dir = file.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let text = serde_json::to_vec_pretty(before).expect("plain values serialise");
    let new = file.with_extension(format!("{}.new", std::process::id()));
    let mut opened = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    opened.write_all(&text)?;
    opened.sync_all()?;
    fs::rename(new, file)
}

fn restore(socket: &mut Socket, call: &Call, file: &Path) -> Result<(), Error> {
    let Ok(text) = fs::read(file) else { return Ok(()) };
    // What cannot be read says nothing about what was.
    let Ok(before) = serde_json::from_slice::<Before>(&text) else { return Ok(()) };
    let refused = |error: NetlinkError| failed(&format!("failed to restore {:?}", call.ifname), &error);
    let Some(link) = link::lookup(socket, call.ifname.as_str()).map_err(refused)? else { return Ok(()) };
    let change = LinkChange {
        mac: (!before.mac.is_empty()).then(|| parse_mac(&before.mac)).transpose()?,
        promisc: before.promisc,
        mtu: before.mtu.filter(|mtu| *mtu != 0),
        allmulti: before.allmulti,
        tx_queue_len: before.tx_queue_len,
        ..LinkChange::default()
    };
    apply(socket, link.index, &change).map_err(refused)
}

fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::new(Code::Io, format!("failed to remove file {}: {error}", file.display())))
        }
        _ => Ok(()),
    }
}

fn check(socket: &mut Socket, call: &Call, wanted: &Wanted) -> Result<(), Error> {
    for setting in &wanted.settings {
        let is = sysctl::read(&parts(setting)).map_err(|error| Error::differs(error.to_string()))?;
        if !is.split_whitespace().eq(setting.value.split_whitespace()) {
            let path = setting.path.join("/");
            return Err(Error::differs(format!(
                "Error: Tuning configured value of /proc/sys/{path} is {}, current value is {is}",
                setting.value
            )));
        }
    }
    let name = &call.ifname;
    let link = link::lookup(socket, name.as_str()).map_err(|error| failed("find the interface", &error))?;
    let link = link.ok_or_else(|| Error::differs(format!("Cannot find container link {name}")))?;
    let flag = |bit: u32| Some((link.flags & bit != 0).to_string());
    let text = |value: &dyn ToString| value.to_string();
    for (what, should, is) in [
        ("Ethernet", wanted.mac.map(shown), link.mac.map(shown)),
        ("promisc", wanted.promisc.then(|| "true".to_owned()), flag(IFF_PROMISC)),
        ("MTU", wanted.mtu.map(|mtu| text(&mtu)), Some(text(&link.mtu))),
        ("all-multicast mode", wanted.allmulti.map(|on| text(&on)), flag(IFF_ALLMULTI)),
        ("txQLen", wanted.tx_queue_len.map(|len| text(&len)), Some(text(&link.tx_queue_len))),
    ] {
        let is = is.unwrap_or_default();
        if let Some(should) = should.filter(|should| *should != is) {
            let msg = format!("Error: Tuning configured {what} of {name} is {should}, current value is {is}");
            return Err(Error::differs(msg));
        }
    }
    Ok(())
}

fn shown(mac: portolan_kernel::rtnl::Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Removes what is kept for containers that are gone; files of the original do not say whose they are.
fn collect(config: &Config, dir: &str) -> Result<(), Error> {
    let is_valid = validity(config)?;
    let Ok(entries) = fs::read_dir(dir) else { return Ok(()) };
    for file in entries.flatten().map(|entry| entry.path()) {
        let before = fs::read(&file).ok().and_then(|text| serde_json::from_slice::<Before>(&text).ok());
        if before.is_some_and(|before| before.network == config.name && !is_valid(&before.container, &before.ifname)) {
            remove(&file)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_original() {
        let before: Before = serde_json::from_str(r#"{"mac":"02:00:00:00:00:01","promisc":false,"mtu":1500}"#).unwrap();
        assert_eq!((before.mac.as_str(), before.promisc, before.mtu), ("02:00:00:00:00:01", Some(false), Some(1500)));
        let text = serde_json::to_string(&Before { mtu: Some(1500), ..Before::default() }).unwrap();
        assert_eq!(text, r#"{"mtu":1500}"#);
    }
}
