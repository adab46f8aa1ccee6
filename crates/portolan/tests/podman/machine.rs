//! A Podman that has a machine to itself: namespaces, control groups, `/run`, `/etc`, storage.
//!
//! Nothing outside is seen or changed by it, and everything of it, processes first, ends with the [`Machine`]: they live in
//! a PID namespace whose first process ends when ours does.

#![allow(dead_code, reason = "the benchmark uses a part of it, the test another")]

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use portolan_kernel::netns::NetnsFd;
use portolan_lab::{Host, Lab, eventually};

/// The image: busybox, and a command that serves HTTP on port 80, saying `$NAME`.
pub(crate) const IMAGE: &str = "localhost/lab:latest";

/// What must be installed, with the Debian package it is in.
const PROGRAMS: [(&str, &str); 6] = [
    ("/usr/bin/podman", "podman"),
    ("/usr/bin/conmon", "conmon"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/bin/busybox", "busybox-static"),
    (NETAVARK, "netavark"),
    (AARDVARK, "aardvark-dns"),
];
const NETAVARK: &str = "/usr/lib/podman/netavark";
const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";

/// What Podman calls `netavark`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Debian's.
    Netavark,
    /// Ours.
    Portolan,
}

/// The first program that Podman needs and is not there.
pub(crate) fn missing() -> Option<String> {
    let (path, package) = PROGRAMS.into_iter().find(|(path, _)| !Path::new(path).exists())?;
    Some(format!("no `{path}` (package {package})"))
}

/// What is called `netavark` and `aardvark-dns`.
pub(crate) fn programs(backend: Backend) -> [&'static str; 2] {
    match backend {
        Backend::Netavark => [NETAVARK, AARDVARK],
        Backend::Portolan => [env!("CARGO_BIN_EXE_portolan"); 2],
    }
}

/// Podman on a host of a lab.
#[derive(Debug)]
pub(crate) struct Machine {
    keeper: Child,
    /// The first process of the machine's PID namespace, as we see it.
    init: u32,
    dir: PathBuf,
    group: String,
}

impl Machine {
    /// Starts one on `host`, whose network namespace it shares; `name` distinguishes the machines of a lab.
    ///
    /// # Errors
    /// When Podman is not installed, or a namespace, a mount or a control group cannot be had.
    pub(crate) fn start(lab: &Lab, host: &Host, name: &str, backend: Backend) -> Result<Self> {
        sweep();
        let lab_name = lab.dir().file_name().and_then(OsStr::to_str).context("the lab has a directory")?;
        let group = format!("{PREFIX}{lab_name}-{name}");
        // Not in the lab's directory: that is below /run, where often nothing can be executed.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&group);
        for part in ["run", "etc/containers/networks", "containers", "tmp", "bin"] {
            fs::create_dir_all(dir.join(part))?;
        }
        configure(&dir, backend)?;
        let script = dir.join("keeper.sh");
        fs::write(&script, include_str!("keeper.sh"))?;
        let mut command = Command::new("sh");
        command.arg(script).arg(&dir).arg(&group).env_clear().env("PATH", PATH);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let keeper = host.adopt(command)?.spawn().context("start the keeper of the machine")?;
        let mut machine = Self { keeper, init: 0, dir, group };
        let mut line = String::new();
        BufReader::new(machine.keeper.stdout.take().context("it has a pipe")?).read_line(&mut line)?;
        let pid = line.trim().strip_prefix("ready ").with_context(|| format!("the keeper says `{line}`"))?;
        machine.init = pid.parse()?;
        machine.import_image()?;
        Ok(machine)
    }

    /// A program in the machine, not yet started.
    pub(crate) fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.to_string());
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", program]).args(args);
        command
            .env_clear()
            .env("PATH", PATH)
            .env("HOME", "/root")
            .env("CONTAINERS_CONF", "/etc/containers/containers.conf");
        command.stdin(Stdio::null());
        command
    }

    /// Runs a program in the machine; answers standard output, trimmed.
    ///
    /// # Errors
    /// When it fails: with the last line of what it said.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program, args).output().with_context(|| format!("start `{program}`"))?;
        finished(program, args, &output)
    }

    /// Runs `podman`.
    ///
    /// # Errors
    /// As [`Machine::run`].
    pub(crate) fn podman(&self, args: &[&str]) -> Result<String> {
        self.run("podman", args)
    }

    /// Runs what `podman` must refuse; answers its words.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn refused(&self, args: &[&str]) -> Result<String> {
        let output = self.command("podman", args).output()?;
        ensure!(!output.status.success(), "`podman {}` is not refused", args[0]);
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// A network namespace by the path that processes of the machine know it by.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) fn netns(&self, path: &str) -> Result<NetnsFd> {
        Ok(NetnsFd::open(self.outside(path))?)
    }

    /// How a path of the machine is reached from outside.
    pub(crate) fn outside(&self, path: &str) -> PathBuf {
        Path::new("/proc").join(self.init.to_string()).join("root").join(path.trim_start_matches('/'))
    }

    /// Makes the image out of nothing but busybox.
    fn import_image(&self) -> Result<()> {
        let tree = self.dir.join("image");
        for part in ["bin", "etc", "www", "tmp", "root"] {
            fs::create_dir_all(tree.join(part))?;
        }
        fs::copy("/usr/bin/busybox", tree.join("bin/busybox"))?;
        let applets = Command::new("/usr/bin/busybox").arg("--list").output()?;
        for applet in String::from_utf8(applets.stdout)?.lines().filter(|applet| *applet != "busybox") {
            std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet))?;
        }
        fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(tree.join("etc/group"), "root:x:0:\n")?;
        let archive = self.dir.join("image.tar");
        let archived = Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&archive).arg(".").status()?;
        ensure!(archived.success(), "tar: {archived}");
        let archive = archive.to_str().context("a UTF-8 path")?;
        let serve = r#"CMD ["/bin/sh", "-c", "echo $NAME >/www/index.html; exec httpd -f -p 80 -h /www"]"#;
        self.podman(&["import", "--change", serve, "--change", "STOPSIGNAL KILL", archive, IMAGE])?;
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It waits for this, and all processes go with it.
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
        remove(&self.group);
    }
}

const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";
const PREFIX: &str = "podman-";

/// Standard output of a program that did what it was asked to.
pub(crate) fn finished(program: &str, args: &[&str], output: &Output) -> Result<String> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let last = stderr.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("without a word");
    eprintln!("{program} {}: {}\n{stderr}", args.join(" "), output.status);
    bail!("`{program} {}`: {last}", args.iter().take(2).copied().collect::<Vec<_>>().join(" "));
}

/// Writes the files that Podman reads.
fn configure(dir: &Path, backend: Backend) -> Result<()> {
    let bin = dir.join("bin");
    let [netavark, aardvark] = programs(backend);
    std::os::unix::fs::symlink(netavark, bin.join("netavark"))?;
    std::os::unix::fs::symlink(aardvark, bin.join("aardvark-dns"))?;
    let etc = dir.join("etc");
    fs::write(etc.join("resolv.conf"), "nameserver 10.0.1.2\n")?;
    fs::write(etc.join("hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
    let containers = etc.join("containers");
    fs::write(
        containers.join("containers.conf"),
        format!(
            r#"[containers]
apparmor_profile = ""
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
helper_binaries_dir = ["{}"]
infra_command = "/bin/sleep 1000000"
infra_image = "{IMAGE}"
pull_policy = "never"
runtime = "runc"
[network]
network_backend = "netavark"
network_config_dir = "/etc/containers/networks"
"#,
            bin.display()
        ),
    )?;
    let storage = "[storage]\ndriver = \"vfs\"\ngraphroot = \"/var/lib/containers/storage\"\nrunroot = \"/run/containers/storage\"\n";
    fs::write(containers.join("storage.conf"), storage)?;
    fs::write(containers.join("registries.conf"), "unqualified-search-registries = []\n")?;
    fs::write(containers.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
    Ok(())
}

/// Removes what machines of killed processes left: those whose lab is gone.
fn sweep() {
    for entry in fs::read_dir(env!("CARGO_TARGET_TMPDIR")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(lab) = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('-')) else { continue };
        if !Path::new("/run/portolan-lab").join(lab.0).exists() {
            remove(&name);
        }
    }
}

/// Removes the control groups and the directory of a machine without processes.
fn remove(group: &str) {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let is_hierarchy = |kind: &str| kind == "cgroup" || kind == "cgroup2";
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(at), Some(kind)) = (fields.next(), fields.next())
            && is_hierarchy(kind)
        {
            let path = Path::new(at).join(group);
            // A group is busy for a moment after its last process.
            if !eventually(Duration::from_secs(5), || remove_group(&path)) {
                eprintln!("machine: control group `{}` stays", path.display());
            }
        }
    }
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(group);
    if let Err(error) = fs::remove_dir_all(&dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        eprintln!("machine: remove `{}`: {error}", dir.display());
    }
}

/// Removes a control group with those below it; `false` if something is left.
fn remove_group(path: &Path) -> bool {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path());
        }
    }
    match fs::remove_dir(path) {
        Ok(()) => true,
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}
