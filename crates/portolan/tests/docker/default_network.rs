//! Docker without a network of its own, and back: the commands of `docs/docker-default.md`, in their order, as they stand there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use portolan_lab::eventually;
use portolan_lab::probe::http_get;

use crate::has_docker;
use crate::machine::IMAGE;
use crate::scene::*;

const PAGE: &str = include_str!("../../../../docs/docker-default.md");
/// What a host had in its configuration of Docker.
const OWN: &str = "{\n    \"debug\": false,\n    \"max-concurrent-downloads\": 2\n}\n";

#[test]
fn dockers_default_network_is_taken_away_and_brought_back() {
    if has_docker("docker-default") {
        let walks = [None, Some(OWN)].map(|own| thread::spawn(move || walk(own)));
        for walk in walks {
            walk.join().expect("nothing panics").expect("the page is right");
        }
    }
}

#[test]
fn a_docker_without_iptables_leaves_the_firewall_to_us() {
    if has_docker("docker-alone") {
        alone().expect("our networks need nothing of Docker's rules");
    }
}

fn alone() -> Result<()> {
    let scene = Scene::without_iptables("docker-alone", Driver::Portolan)?;
    scene.network("web", &[])?;
    scene.network("other", &[])?;
    let site = scene.run("site", &["--network", "web", "-p", "8080:80"])?;
    let client = scene.run("client", &["--network", "web"])?;
    let stranger = scene.run("stranger", &["--network", "other"])?;
    let inside = at(&site.ip("web"), 80);
    says(&scene.neighbour, at(HOST, 8080), "site")?;
    says(&client, inside, "site")?;
    ensure!(scene.docker(&["exec", "client", "wget", "-qO-", "http://site/"])? == "site", "no name");
    ensure!(http_get(&stranger, inside, "/", SHORT).is_err(), "networks are not kept apart");
    let rules = scene.machine.run("iptables-save", &[])?;
    ensure!(!rules.contains("DOCKER"), "Docker has made rules: {rules}");
    scene.clear()
}

/// A host with systemd, as far as the page needs one.
struct Walk {
    scene: Scene,
    /// What systemd has started of our unit.
    daemon: Option<Child>,
}

fn walk(own: Option<&str>) -> Result<()> {
    let scene = Scene::without_docker("docker-default", Driver::Portolan)?;
    let daemon_json = scene.machine.outside("/etc/docker/daemon.json");
    if let Some(own) = own {
        fs::create_dir_all(daemon_json.parent().context("it has a directory")?)?;
        fs::write(&daemon_json, own)?;
    }
    scene.start_docker()?;
    scene.load_image()?;
    scene.docker(&["tag", IMAGE, "busybox"])?;
    let programs = scene.machine.outside("/var/tmp/programs");
    fs::create_dir(&programs)?;
    symlink(PORTOLAN, programs.join("portolan"))?;
    let mut walk = Walk { scene, daemon: None };
    for (command, said) in commands() {
        let output = walk.run(command).with_context(|| format!("`{command}`"))?;
        for line in said {
            ensure!(output.contains(line), "`{command}` does not say `{line}` but `{output}`");
        }
        if command.contains(" -p 8080:80 ") {
            says(&walk.scene.neighbour, at(HOST, 8080), "hello").with_context(|| format!("after `{command}`"))?;
        }
    }
    ensure!(fs::read_to_string(&daemon_json).ok().as_deref() == own, "`daemon.json` is not what it was");
    let left = walk.scene.machine.run("find", &["/etc/systemd", "/etc/docker", "-name", "*portolan*"])?;
    ensure!(left.is_empty(), "left are {left}");
    Ok(())
}

/// The commands of the page, with the lines that it says they print.
fn commands() -> Vec<(&'static str, Vec<&'static str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for block in PAGE.split("```console\n").skip(1) {
        for line in block.lines().take_while(|line| *line != "```") {
            match (line.strip_prefix("# "), found.last_mut()) {
                (Some(command), _) => found.push((command, Vec::new())),
                (None, Some((_, said))) => said.push(line),
                (None, None) => panic!("`{line}` follows no command"),
            }
        }
    }
    assert!(found.len() > 15, "the page has {} commands", found.len());
    found
}

impl Walk {
    /// Does what a command of the page does; what it says.
    fn run(&mut self, command: &str) -> Result<String> {
        match command.strip_prefix("systemctl ") {
            Some(verb) => self.systemctl(verb).map(|()| String::new()),
            None => {
                let script = format!("export PATH=/var/tmp/programs:$PATH; {{ {command}; }} 2>&1");
                self.scene.machine.run("sh", &["-c", &script])
            }
        }
    }

    /// What systemd would do.
    fn systemctl(&mut self, verb: &str) -> Result<()> {
        match verb {
            "enable --now portolan-docker.service" => {
                let unit = fs::read_to_string(self.unit())?;
                let line =
                    unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).context("it starts something")?;
                let words: Vec<&str> = line.split(' ').collect();
                let mut daemon = self.scene.machine.command(words[0], &words[1..]);
                self.daemon = Some(daemon.stdout(Stdio::null()).spawn()?);
                for link in self.links() {
                    fs::create_dir_all(link.parent().context("it has a directory")?)?;
                    symlink("/etc/systemd/system/portolan-docker.service", link)?;
                }
                let socket = self.scene.machine.outside("/run/docker/plugins/portolan.sock");
                ensure!(eventually(LONG, || socket.exists()), "the unit's daemon does not serve Docker");
            }
            "disable --now portolan-docker.service" => {
                let mut daemon = self.daemon.take().context("it runs")?;
                self.scene.portolan(&["daemon", "stop"])?;
                daemon.wait()?;
                self.links().iter().try_for_each(fs::remove_file)?;
            }
            "restart docker.service" => {
                self.scene.stop_docker()?;
                self.scene.start_docker()?;
            }
            // It looks for units that are gone.
            "daemon-reload" => ensure!(!self.unit().exists(), "the unit is there"),
            other => bail!("systemd does not know `{other}`"),
        }
        Ok(())
    }

    fn unit(&self) -> PathBuf {
        self.scene.machine.outside("/etc/systemd/system/portolan-docker.service")
    }

    /// Where `systemctl enable` links the unit.
    fn links(&self) -> Vec<PathBuf> {
        let unit = fs::read_to_string(self.unit()).unwrap_or_default();
        let wanted = unit.lines().find_map(|line| line.strip_prefix("WantedBy=")).unwrap_or_default();
        let link = |by| self.unit().with_file_name(format!("{by}.wants")).join("portolan-docker.service");
        wanted.split(' ').map(link).collect()
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}
