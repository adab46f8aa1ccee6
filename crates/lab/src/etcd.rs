//! etcd for tests: members in namespaces, killed and started again at will.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::{Host, eventually};

/// How long a member may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);
const CLIENTS: u16 = 2379;
const PEERS: u16 = 2380;
/// Where a member says how it is, whatever clients have to show.
const HEALTH: u16 = 2381;

/// A cluster of etcd; its members are killed when this is dropped.
#[derive(Debug)]
pub struct Etcd {
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    host: Host,
    address: IpAddr,
    dir: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
}

/// Whether there is an etcd, and what tests of it ask it with; a loud word if not.
///
/// # Panics
/// When there is none and `CI` is set: there nothing may be skipped.
pub fn is_there(test: &str) -> bool {
    let is_missing = |program: &&str| {
        Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err()
    };
    let missing = ["etcd", "etcdctl", "openssl"].into_iter().find(is_missing);
    if let Some(program) = missing {
        assert!(std::env::var_os("CI").is_none(), "{program} is not installed");
        eprintln!("SKIP: `{test}`: {program} is not installed");
    }
    missing.is_none()
}

impl Etcd {
    /// A member on each of these hosts, at its address; what they keep is below `dir`. All of them get `options` as well,
    /// and `scheme` is what clients speak, `http` or `https`.
    ///
    /// # Errors
    /// When one does not come up.
    pub fn start(dir: &Path, places: &[(&Host, IpAddr)], scheme: &str, options: &[&str]) -> Result<Self> {
        let url = |scheme: &str, address: IpAddr, port: u16| format!("{scheme}://{}", SocketAddr::new(address, port));
        let all: Vec<String> = places
            .iter()
            .enumerate()
            .map(|(number, (_, address))| format!("m{number}={}", url("http", *address, PEERS)))
            .collect();
        let member = |(number, (host, address)): (usize, &(&Host, IpAddr))| {
            let dir = dir.join(format!("etcd-{number}"));
            let (clients, peers) = (url(scheme, *address, CLIENTS), url("http", *address, PEERS));
            let arguments = [
                format!("--name=m{number}"),
                format!("--data-dir={}", dir.display()),
                format!("--listen-client-urls={clients}"),
                format!("--advertise-client-urls={clients}"),
                format!("--listen-metrics-urls={}", url("http", *address, HEALTH)),
                format!("--listen-peer-urls={peers}"),
                format!("--initial-advertise-peer-urls={peers}"),
                format!("--initial-cluster={}", all.join(",")),
                "--initial-cluster-state=new".to_owned(),
                // What a test loses by a power cut is gone anyway.
                "--unsafe-no-fsync".to_owned(),
                "--log-level=warn".to_owned(),
            ];
            let arguments = arguments.into_iter().chain(options.iter().map(|&option| option.to_owned())).collect();
            Ok(Member { host: host.again()?, address: *address, dir, arguments, child: None })
        };
        let mut etcd = Self { members: places.iter().enumerate().map(member).collect::<Result<_>>()? };
        for number in 0..etcd.members.len() {
            etcd.launch(number)?;
        }
        let all: Vec<usize> = (0..etcd.members.len()).collect();
        etcd.wait(&all)?;
        Ok(etcd)
    }

    /// The members' URLs for clients.
    pub fn endpoints(&self, scheme: &str) -> Vec<String> {
        let url = |member: &Member| format!("{scheme}://{}", SocketAddr::new(member.address, CLIENTS));
        self.members.iter().map(url).collect()
    }

    /// Kills a member.
    pub fn kill(&mut self, number: usize) {
        if let Some(mut child) = self.members[number].child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts a member that was killed, and waits until it answers.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn restart(&mut self, number: usize) -> Result<()> {
        self.launch(number)?;
        self.wait(&[number])
    }

    /// Runs etcdctl(1) at the first member with these words; it has to work. What it says.
    ///
    /// # Errors
    /// When it cannot be started; what it says when it fails.
    pub fn ctl(&self, words: &[&str]) -> Result<String> {
        let member = &self.members[0];
        let mut command = Command::new("etcdctl");
        command.args(words).stdin(Stdio::null()).env("ETCDCTL_API", "3");
        command.env("ETCDCTL_ENDPOINTS", format!("http://{}", SocketAddr::new(member.address, CLIENTS)));
        let output = member.host.adopt(command)?.output().context("start etcdctl")?;
        ensure!(output.status.success(), "etcdctl {words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Asks everybody for a password from now on: `root` has `secret` and may do all, `host` has `word` and may read and write
    /// below `prefix`.
    ///
    /// # Errors
    /// As for [`Self::ctl`].
    pub fn let_in_users(&self, prefix: &str) -> Result<()> {
        let grant = format!("role grant-permission --prefix hosts readwrite {prefix}");
        for line in [
            "user add root:secret",
            "user grant-role root root",
            "user add host:word",
            "role add hosts",
            &grant,
            "user grant-role host hosts",
            "auth enable",
        ] {
            self.ctl(&line.split(' ').collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// The process of a member that runs.
    pub fn pid(&self, number: usize) -> Option<u32> {
        self.members[number].child.as_ref().map(Child::id)
    }

    /// Starts a member that was killed, and does not wait for it.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn launch(&mut self, number: usize) -> Result<()> {
        let member = &mut self.members[number];
        let log = File::options().create(true).append(true).open(member.dir.with_extension("log"))?;
        let mut command = Command::new("etcd");
        command.args(&member.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        member.child = Some(member.host.adopt(command)?.spawn().context("start etcd")?);
        Ok(())
    }

    fn wait(&self, numbers: &[usize]) -> Result<()> {
        for number in numbers {
            let member = &self.members[*number];
            let at = SocketAddr::new(member.address, HEALTH);
            let is_up = eventually(PATIENCE, || member.host.enter(|| is_healthy(at)).unwrap_or(false));
            let log = || std::fs::read_to_string(member.dir.with_extension("log")).unwrap_or_default();
            ensure!(is_up, "etcd at {} does not come up: {}", member.address, log());
        }
        Ok(())
    }
}

/// Whether a member takes part: it has a leader, and what it reads is what all have.
fn is_healthy(at: SocketAddr) -> io::Result<bool> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /health HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.contains(r#""health":"true""#))
}

impl Drop for Etcd {
    fn drop(&mut self) {
        (0..self.members.len()).for_each(|number| self.kill(number));
    }
}
