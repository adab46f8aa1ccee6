//! A container runtime that has a machine to itself: namespaces, control groups, `/run`, `/etc`, storage.
//!
//! Nothing outside is seen or changed by it, but that a directory which is to be its own is made, empty, where there is
//! none. Everything of it, processes first, ends with the [`Machine`]: they live in a PID namespace whose first process ends
//! when ours does.

#![allow(dead_code, reason = "each runtime's tests and benchmarks use a part of it")]

pub(crate) mod lanes;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use portolan_kernel::netns::NetnsFd;
use portolan_lab::{Host, Lab, eventually};
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// The image: busybox, and a command that serves HTTP on port 80, saying `$NAME`.
pub(crate) const IMAGE: &str = "localhost/lab:latest";

/// What must be installed of a list of programs, with the Debian package each is in: the first that is not there.
pub(crate) fn missing_of(programs: &[(&str, &str)]) -> Option<String> {
    let (path, package) = programs.iter().find(|(path, _)| !Path::new(path).exists())?;
    Some(format!("no `{path}` (package {package})"))
}

/// A host of a lab with all that a runtime wants of a machine.
#[derive(Debug)]
pub(crate) struct Machine {
    keeper: Child,
    /// The first process of the machine's PID namespace, as we see it.
    init: u32,
    dir: PathBuf,
    group: String,
}

impl Machine {
    /// Starts one on `host`, whose network namespace it shares; `name` distinguishes the machines of a lab. `/run`, `/etc`
    /// and `places` are its own; what `configure` writes below the directory it is given is there from the start.
    ///
    /// # Errors
    /// When a namespace, a mount or a control group cannot be had.
    pub(crate) fn start(
        lab: &Lab,
        host: &Host,
        name: &str,
        places: &[&str],
        configure: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        sweep();
        let lab_name = lab.dir().file_name().and_then(OsStr::to_str).context("the lab has a directory")?;
        let group = format!("{PREFIX}{lab_name}.{name}");
        // Not in the lab's directory: that is below /run, where often nothing can be executed.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&group);
        let places = [&["/run", "/etc"], places].concat();
        for place in &places {
            fs::create_dir_all(inside(&dir, place))?;
        }
        let etc = dir.join("etc");
        fs::write(etc.join("resolv.conf"), "nameserver 10.0.1.2\n")?;
        fs::write(etc.join("hosts"), "127.0.0.1 localhost\n::1 localhost\n")?;
        configure(&dir)?;
        let script = dir.join("keeper.sh");
        fs::write(&script, include_str!("keeper.sh"))?;
        let mut command = Command::new("sh");
        command.arg(script).arg(&dir).arg(&group).args(places).env_clear().env("PATH", PATH);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let keeper = host.adopt(command)?.spawn().context("start the keeper of the machine")?;
        let mut machine = Self { keeper, init: 0, dir, group };
        let mut line = String::new();
        BufReader::new(machine.keeper.stdout.take().context("it has a pipe")?).read_line(&mut line)?;
        let pid = line.trim().strip_prefix("ready ").with_context(|| format!("the keeper says `{line}`"))?;
        machine.init = pid.parse()?;
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

    /// Runs what `program` must refuse; answers its words.
    ///
    /// # Errors
    /// When it does not.
    pub(crate) fn refused(&self, program: &str, args: &[&str]) -> Result<String> {
        let output = self.command(program, args).output()?;
        ensure!(!output.status.success(), "`{program} {}` is not refused", args[0]);
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
        inside(&Path::new("/proc").join(self.init.to_string()).join("root"), path)
    }

    /// Makes the image out of nothing but busybox: the path of an archive as `docker save` writes them.
    ///
    /// # Errors
    /// When busybox or tar(1) fail.
    pub(crate) fn make_image(&self) -> Result<String> {
        let (tree, image) = (self.dir.join("tree"), self.dir.join("image"));
        for part in ["bin", "etc", "www", "tmp", "root"] {
            fs::create_dir_all(tree.join(part))?;
        }
        fs::create_dir_all(&image)?;
        fs::copy("/usr/bin/busybox", tree.join("bin/busybox"))?;
        let applets = Command::new("/usr/bin/busybox").arg("--list").output()?;
        for applet in
            String::from_utf8(applets.stdout)?.lines().filter(|applet| *applet != "busybox").chain(["busybox-extras"])
        {
            symlink("busybox", tree.join("bin").join(applet))?;
        }
        fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(tree.join("etc/group"), "root:x:0:\n")?;
        archive(&tree, &image.join("layer.tar"))?;
        let layer = Sha256::digest(fs::read(image.join("layer.tar"))?);
        let config = json!({
            "os": "linux",
            // Go's word for it.
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "config": {
                "Cmd": ["/bin/sh", "-c", "echo $NAME >/www/index.html; exec httpd -f -p 80 -h /www"],
                "Env": [format!("PATH={PATH}")],
                "StopSignal": "KILL",
            },
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer:x}")]},
        });
        fs::write(image.join("config.json"), config.to_string())?;
        let manifest = json!([{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]);
        fs::write(image.join("manifest.json"), manifest.to_string())?;
        let file = self.dir.join("image.tar");
        archive(&image, &file)?;
        Ok(file.to_str().context("a UTF-8 path")?.to_owned())
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
const PREFIX: &str = "machine-";

/// The path below `dir` that is `place` in a machine.
fn inside(dir: &Path, place: &str) -> PathBuf {
    dir.join(place.trim_start_matches('/'))
}

fn archive(tree: &Path, file: &Path) -> Result<()> {
    let archived = Command::new("tar").arg("-C").arg(tree).arg("-cf").arg(file).arg(".").status()?;
    ensure!(archived.success(), "tar: {archived}");
    Ok(())
}

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

/// Removes what machines of killed processes left: those whose lab is gone.
fn sweep() {
    for entry in fs::read_dir(env!("CARGO_TARGET_TMPDIR")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(lab) = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('.')) else { continue };
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
