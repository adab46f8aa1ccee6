//! `portolan install`: what it writes, keeps and takes away, in directories of the test's own.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a run that succeeded said.
#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Why a run was refused.
#[track_caller]
fn refused(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A configuration of Podman's and a directory for links.
struct Place {
    dir: PathBuf,
}

impl Place {
    fn new(name: &str) -> Self {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("install-{name}-{}", std::process::id()));
        fs::create_dir_all(dir.join("containers.conf.d")).unwrap();
        Self { dir }
    }

    fn bin(&self) -> PathBuf {
        self.dir.join("libexec")
    }

    fn drop_in(&self) -> PathBuf {
        self.dir.join("containers.conf.d/50-portolan.conf")
    }

    fn link(&self, name: &str) -> PathBuf {
        self.bin().join(name)
    }

    fn run(&self, flags: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_portolan"))
            .args(["install", "podman", "--config"])
            .arg(self.dir.join("containers.conf.d"))
            .arg("--bin")
            .arg(self.bin())
            .args(flags)
            .output()
            .unwrap()
    }

    #[track_caller]
    fn done(&self, flags: &[&str]) {
        done(&self.run(flags));
    }

    #[track_caller]
    fn refused(&self, flags: &[&str]) -> String {
        refused(&self.run(flags))
    }

    /// The line of the drop-in with the list, without the first directory, which is ours.
    #[track_caller]
    fn behind_ours(&self) -> String {
        let text = fs::read_to_string(self.drop_in()).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("helper_binaries_dir = [")).unwrap();
        let ours = format!("{:?}", self.bin());
        line.strip_prefix(&ours).unwrap_or_else(|| panic!("{line}")).to_owned()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

#[test]
fn nothing_is_left_of_it() {
    let place = Place::new("back");
    place.done(&[]);
    place.done(&[]);
    for name in ["netavark", "aardvark-dns"] {
        assert_eq!(fs::read_link(place.link(name)).unwrap(), Path::new(env!("CARGO_BIN_EXE_portolan")));
    }
    assert!(place.behind_ours().starts_with(", "), "{}", place.behind_ours());
    place.done(&["--uninstall"]);
    assert!(!place.drop_in().exists());
    assert!(!place.bin().exists(), "the directory goes with the links");
    place.done(&["--uninstall"]);
}

#[test]
fn the_driver_is_linked_if_that_is_asked_for() {
    let place = Place::new("driver");
    let plugins = place.dir.join("plugins");
    let flag = plugins.display().to_string();
    place.done(&["--plugins", &flag]);
    assert_eq!(fs::read_link(plugins.join("overlay")).unwrap(), Path::new(env!("CARGO_BIN_EXE_portolan")));
    place.done(&["--uninstall", "--plugins", &flag]);
    assert!(!plugins.join("overlay").exists() && !place.drop_in().exists());
    fs::write(plugins.join("overlay"), "").unwrap();
    let said = place.refused(&["--plugins", &flag]);
    assert!(said.contains("overlay` is there and is no link\nhint: choose another directory with --plugins"), "{said}");
    assert!(!place.drop_in().exists(), "all or nothing");
}

#[test]
fn links_of_others_stay() {
    let place = Place::new("links");
    fs::create_dir(place.bin()).unwrap();
    symlink("/usr/lib/podman/netavark", place.link("netavark")).unwrap();
    let said = place.refused(&[]);
    assert!(said.contains("is a link to another program\nhint: choose another directory with --bin"), "{said}");
    assert!(!place.drop_in().exists() && fs::symlink_metadata(place.link("aardvark-dns")).is_err(), "all or nothing");
    place.done(&["--uninstall"]);
    assert_eq!(fs::read_link(place.link("netavark")).unwrap(), Path::new("/usr/lib/podman/netavark"));

    // One that was made by a Portolan that has moved since then is replaced.
    fs::remove_file(place.link("netavark")).unwrap();
    symlink("/nowhere/portolan", place.link("netavark")).unwrap();
    place.done(&[]);
    assert_eq!(fs::read_link(place.link("netavark")).unwrap(), Path::new(env!("CARGO_BIN_EXE_portolan")));
    fs::write(place.link("mine"), "").unwrap();
    place.done(&["--uninstall"]);
    assert_eq!(fs::read_dir(place.bin()).unwrap().count(), 1, "what else is in the directory stays");
}

#[test]
fn directories_of_the_administrator_stay() {
    let place = Place::new("directories");
    let main = place.dir.join("containers.conf");
    fs::write(&main, "[engine]\nhelper_binaries_dir = [\"/opt/a\", \"/opt/b\"]\n").unwrap();
    place.done(&[]);
    assert_eq!(place.behind_ours(), r#", "/opt/a", "/opt/b"]"#);
    // A drop-in that is read before ours has the last word among the others.
    fs::write(place.dir.join("containers.conf.d/10-own.conf"), "[engine]\nhelper_binaries_dir = [\"/opt/c\"]\n")
        .unwrap();
    place.done(&[]);
    assert_eq!(place.behind_ours(), r#", "/opt/c"]"#);
    let before = fs::read_to_string(place.drop_in()).unwrap();

    let later = place.dir.join("containers.conf.d/90-own.conf");
    fs::write(&later, "[engine]\nhelper_binaries_dir = [\"/opt/d\"]\n").unwrap();
    let said = place.refused(&[]);
    assert!(said.contains("90-own.conf") && said.contains("hint: put `"), "{said}");
    fs::remove_file(later).unwrap();
    fs::write(&main, "[engine]\nhelper_binaries_dir = [\"/opt/a\", {append=true}]\n").unwrap();
    let said = place.refused(&[]);
    assert!(said.contains("is not a list of plain strings\nhint: put `"), "{said}");
    assert_eq!(fs::read_to_string(place.drop_in()).unwrap(), before);
    place.done(&["--uninstall"]);
}

/// Directories of plugins and of networks.
struct Cni {
    place: Place,
}

impl Cni {
    fn new(name: &str) -> Self {
        Self { place: Place::new(&format!("cni-{name}")) }
    }

    fn bin(&self) -> PathBuf {
        self.place.dir.join("bin")
    }

    fn networks(&self) -> PathBuf {
        self.place.dir.join("net.d")
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command.args(["install", "cni", "--dir"]).arg(self.bin()).args(args).output().unwrap()
    }

    #[track_caller]
    fn done(&self, args: &[&str]) -> String {
        done(&self.run(args))
    }

    #[track_caller]
    fn refused(&self, args: &[&str]) -> String {
        refused(&self.run(args))
    }

    /// What is in the directory of plugins.
    fn links(&self) -> Vec<String> {
        let files = fs::read_dir(self.bin()).into_iter().flatten().flatten();
        let mut names: Vec<String> = files.map(|file| file.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn cni_plugins_and_back() {
    let cni = Cni::new("back");
    for _ in 0..2 {
        assert!(cni.done(&[]).contains("as `portolan` and `loopback`"));
        assert_eq!(cni.links(), ["loopback", "portolan"]);
    }
    for name in cni.links() {
        assert_eq!(fs::read_link(cni.bin().join(name)).unwrap(), Path::new(env!("CARGO_BIN_EXE_portolan")));
    }
    fs::write(cni.bin().join("bridge"), "").unwrap();
    for _ in 0..2 {
        cni.done(&["--uninstall"]);
        assert_eq!(cni.links(), ["bridge"]);
    }
    let said: serde_json::Value = serde_json::from_str(&cni.done(&["--json", "loopback"])).unwrap();
    assert_eq!((&said["Installed"], said["Links"].as_array().unwrap().len()), (&true.into(), 1), "{said}");
    assert_eq!(cni.links(), ["bridge", "loopback"]);
}

#[test]
fn cni_plugins_of_others_stay() {
    let cni = Cni::new("others");
    fs::create_dir(cni.bin()).unwrap();
    fs::write(cni.bin().join("loopback"), "original").unwrap();
    let said = cni.refused(&[]);
    assert!(said.contains("loopback` is there and is no link\nhint: move it away, or name the plugins"), "{said}");
    assert_eq!(cni.links(), ["loopback"], "all or nothing");
    cni.done(&["portolan"]);
    assert_eq!(cni.links(), ["loopback", "portolan"]);
    cni.done(&["--uninstall"]);
    assert_eq!(fs::read_to_string(cni.bin().join("loopback")).unwrap(), "original");
    assert_eq!(cni.links(), ["loopback"]);
}

#[test]
fn cni_network() {
    let cni = Cni::new("network");
    let networks = cni.networks();
    let config = networks.to_str().unwrap();
    let file = networks.join("10-portolan.conflist");
    for (args, part) in [
        (&["--config", config][..], "has to have a subnet\nhint: say which"),
        (&["--config", config, "--subnet", "10.22.0.7/16"], "network has host bits set: 10.22.0.7/16"),
        (&["--config", config, "--subnet", "10.22.0.0/16", "--name", "../x"], "invalid characters"),
    ] {
        let said = cni.refused(args);
        assert!(said.contains(part) && said.contains("\nhint: "), "{said}");
        assert!(cni.links().is_empty() && !file.exists(), "all or nothing");
    }
    assert_eq!(cni.run(&["--subnet", "10.22.0.0/16"]).status.code(), Some(2), "of which network?");
    let install = ["--config", config, "--subnet", "10.22.0.0/16", "--subnet", "fd22::/64"];
    cni.done(&install);
    let list: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!((&list["name"], &list["plugins"][0]["type"]), (&"portolan".into(), &"portolan".into()), "{list}");
    assert_eq!(list["plugins"][0]["ipam"]["ranges"][1][0]["subnet"], "fd22::/64");
    cni.done(&[&install[..], &["--name", "lab"]].concat());
    assert!(fs::read_to_string(&file).unwrap().contains(r#""name": "lab""#));
    // What it does not know is not its own to take.
    cni.done(&["--uninstall"]);
    assert!(file.exists());
    cni.done(&["--uninstall", "--config", config]);
    assert!(!file.exists());
    fs::write(&file, "{}").unwrap();
    assert!(cni.refused(&install).contains("was not written by this command"));
    assert!(cni.refused(&["--uninstall", "--config", config]).contains("was not written by this command"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "{}");
}

/// Units and Docker's configuration.
struct Docker {
    place: Place,
}

impl Docker {
    fn new(name: &str) -> Self {
        let place = Place::new(&format!("docker-{name}"));
        fs::create_dir(place.dir.join("docker")).unwrap();
        Self { place }
    }

    fn unit(&self) -> PathBuf {
        self.place.dir.join("units/portolan-docker.service")
    }

    fn spec(&self) -> PathBuf {
        self.place.dir.join("docker/plugins/portolan.spec")
    }

    fn daemon_json(&self) -> PathBuf {
        self.place.dir.join("docker/daemon.json")
    }

    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portolan"));
        command.args(["install", "docker", "--units"]).arg(self.place.dir.join("units"));
        command.arg("--config").arg(self.place.dir.join("docker")).args(args).env_remove("PORTOLAN_ROOT");
        command.output().unwrap()
    }

    #[track_caller]
    fn done(&self, args: &[&str]) -> String {
        done(&self.run(args))
    }

    #[track_caller]
    fn refused(&self, args: &[&str]) -> String {
        refused(&self.run(args))
    }

    /// All files, with their texts.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        let mut directories = vec![self.place.dir.join("units"), self.place.dir.join("docker")];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    directories.push(entry.path());
                } else {
                    found.push((entry.path(), fs::read_to_string(entry.path()).unwrap()));
                }
            }
        }
        found.sort();
        found
    }
}

/// systemd-analyze(1), where it is.
fn systemd_analyze() -> Option<Command> {
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        assert!(std::env::var_os("CI").is_none(), "systemd-analyze is missing");
        eprintln!("SKIP: no systemd-analyze");
        return None;
    }
    Some(Command::new("/usr/bin/systemd-analyze"))
}

/// What is asked of a unit's exposure, in tenths: systemd-analyze(1) counts from 0 to 100, the fewer the better.
/// Whoever encrypts between hosts needs /dev/net/tun, and may have no other device: that is two of them.
const EXPOSURE: &str = "42";

/// Both units are read by systemd without complaint, and leave the daemon little more than it needs.
#[test]
fn units_are_sound_and_fenced() {
    let docker = Docker::new("fenced");
    docker.done(&[]);
    let plain = docker.place.dir.join("portolan.service");
    let text = include_str!("../../../packaging/systemd/portolan.service");
    fs::write(&plain, text.replace("/usr/local/bin/portolan", env!("CARGO_BIN_EXE_portolan"))).unwrap();
    let bare = docker.place.dir.join("bare.service");
    fs::write(&bare, "[Service]\nExecStart=/bin/true\n").unwrap();
    let analyze = |args: &[&str], unit: &Path| Some(systemd_analyze()?.args(args).arg(unit).output().unwrap());
    let threshold = format!("--threshold={EXPOSURE}");
    let security = ["security", "--offline=yes", "--no-pager", &threshold];
    let Some(output) = analyze(&security, &bare) else { return };
    assert!(!output.status.success(), "a unit that keeps nothing back is told from one that does");
    for unit in [plain, docker.unit()] {
        for args in [&["verify", "--man=no"][..], &security] {
            let output = analyze(args, &unit).unwrap();
            let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
            assert!(output.status.success(), "{args:?} {}: {said}", unit.display());
        }
    }
}

#[test]
fn docker_and_back() {
    let docker = Docker::new("back");
    for _ in 0..2 {
        let said = docker.done(&[]);
        assert!(said.contains("systemctl enable --now portolan-docker.service"), "{said}");
        assert_eq!(docker.files().len(), 1, "{:?}", docker.files());
    }
    let text = fs::read_to_string(docker.unit()).unwrap();
    let command = format!("\nExecStart={} daemon --docker\n", env!("CARGO_BIN_EXE_portolan"));
    assert!(text.contains(&command) && text.contains("\nBefore=network.target docker.service\n"), "{text}");

    // As `systemctl enable` links it.
    let link = docker.place.dir.join("units/docker.service.wants/portolan-docker.service");
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    symlink(docker.unit(), &link).unwrap();
    let said: serde_json::Value = serde_json::from_str(&docker.done(&["--uninstall", "--json"])).unwrap();
    assert_eq!((&said["Installed"], &said["Unit"]), (&false.into(), &docker.unit().to_str().unwrap().into()), "{said}");
    assert!(docker.files().is_empty() && fs::symlink_metadata(&link).is_err(), "{:?}", docker.files());
    docker.done(&["--uninstall"]);
}

#[test]
fn dockers_unit_is_one_that_systemd_takes() {
    let docker = Docker::new("verify");
    let root = docker.place.dir.join("100% mine");
    docker.done(&["--root", root.to_str().unwrap(), "--socket", "/run/portolan/docker plugin.sock"]);
    let text = fs::read_to_string(docker.unit()).unwrap();
    assert!(text.contains("100%% mine\" --docker \"/run/portolan/docker plugin.sock\"\n"), "{text}");
    let Some(mut analyze) = systemd_analyze() else { return };
    let verify = analyze.args(["verify", "--man=no"]).arg(docker.unit()).output().unwrap();
    let said = String::from_utf8_lossy(&verify.stderr).into_owned();
    assert!(verify.status.success() && !said.contains("portolan-docker"), "{said}");
}

#[test]
fn dockers_spec_follows_the_socket() {
    let docker = Docker::new("spec");
    docker.done(&["--socket", "/run/portolan/plugin.sock"]);
    assert_eq!(fs::read_to_string(docker.spec()).unwrap(), "unix:///run/portolan/plugin.sock\n");
    docker.done(&["--socket", "/run/portolan/other.sock"]);
    assert_eq!(fs::read_to_string(docker.spec()).unwrap(), "unix:///run/portolan/other.sock\n");
    docker.done(&[]);
    assert!(!docker.spec().exists(), "Docker finds the usual place by itself");
    docker.done(&["--socket", "/run/portolan/plugin.sock"]);
    docker.done(&["--uninstall"]);
    assert!(docker.files().is_empty(), "{:?}", docker.files());
}

#[test]
fn what_others_wrote_for_docker_stays() {
    let docker = Docker::new("others");
    fs::create_dir_all(docker.spec().parent().unwrap()).unwrap();
    fs::write(docker.spec(), "tcp://10.0.0.1:9000\n").unwrap();
    let said = docker.refused(&["--socket", "/run/portolan/plugin.sock", "--default-network"]);
    assert!(said.contains("portolan.spec` is there and was not written by this command\nhint: "), "{said}");
    assert_eq!(docker.files().len(), 1, "all or nothing: {:?}", docker.files());
    docker.done(&[]);
    docker.done(&["--uninstall"]);
    assert_eq!(fs::read_to_string(docker.spec()).unwrap(), "tcp://10.0.0.1:9000\n");

    fs::write(docker.unit(), "[Unit]\n").unwrap();
    for args in [&[][..], &["--uninstall"]] {
        let said = docker.refused(args);
        assert!(said.contains("portolan-docker.service` is there and was not written by this command"), "{said}");
    }
    assert_eq!(fs::read_to_string(docker.unit()).unwrap(), "[Unit]\n");
}

#[test]
fn dockers_default_network_and_back_to_the_letter() {
    const OWN: &str = "{\n\t\"debug\" : true,   \"log-opts\": {\"max-size\":\"1m\"},\n\t\"mtu\": 1.4e3}\n\n";
    let docker = Docker::new("default");
    let file = docker.daemon_json();
    let bridge =
        || serde_json::from_str::<serde_json::Value>(&fs::read_to_string(&file).unwrap()).unwrap()["bridge"].clone();
    // Where there was none.
    for _ in 0..2 {
        docker.done(&["--default-network"]);
        assert_eq!(bridge(), "none");
    }
    docker.done(&[]);
    assert_eq!(bridge(), "none", "it is not said to go");
    docker.done(&["--uninstall"]);
    assert!(docker.files().is_empty(), "{:?}", docker.files());

    // Where there was one, for root alone.
    fs::write(&file, OWN).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    docker.done(&["--default-network"]);
    let text = fs::read_to_string(&file).unwrap();
    assert!(text.starts_with("{\n\t\"bridge\": \"none\",\n\t\"debug\" : true,"), "{text}");
    for (path, _) in docker.files().iter().filter(|(path, _)| path.starts_with(file.parent().unwrap())) {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600, "{}", path.display());
    }
    docker.done(&["--uninstall"]);
    assert_eq!(docker.files(), [(file.clone(), OWN.to_owned())]);

    // Where somebody went on editing.
    docker.done(&["--default-network"]);
    fs::write(&file, fs::read_to_string(&file).unwrap().replace("1m", "5m")).unwrap();
    docker.done(&["--uninstall"]);
    assert_eq!(docker.files(), [(file.clone(), OWN.replace("1m", "5m"))]);
    docker.done(&["--default-network"]);
    fs::write(&file, r#"{"mtu": 1400, "bridge": "none"}"#).unwrap();
    docker.done(&["--uninstall"]);
    assert_eq!(docker.files(), [(file.clone(), r#"{"mtu": 1400}"#.to_owned())]);
    docker.done(&["--default-network"]);
    fs::write(&file, r#"{"bridge": "br0"}"#).unwrap();
    docker.done(&["--uninstall"]);
    assert_eq!(docker.files(), [(file.clone(), r#"{"bridge": "br0"}"#.to_owned())]);
}

#[test]
fn dockers_settings_that_do_not_go_with_it_are_refused() {
    let docker = Docker::new("refused");
    let file = docker.daemon_json();
    for (text, why) in [
        ("{\"debug\": true,}", "cannot be read: trailing comma"),
        ("", "cannot be read: EOF"),
        ("[]", "cannot be read: invalid type"),
        (r#"{"bridge": "br0"}"#, "has `bridge` already: \"br0\""),
        (r#"{"bip": "10.9.0.1/24"}"#, "has `bip`, which Docker refuses beside `bridge`"),
    ] {
        fs::write(&file, text).unwrap();
        let said = docker.refused(&["--default-network"]);
        assert!(said.contains(why) && said.contains("\nhint: "), "{said}");
        assert_eq!(docker.files(), [(file.clone(), text.to_owned())], "all or nothing");
    }
    // Somebody's own is not ours to take away.
    let own = r#"{"bridge": "none"}"#;
    fs::write(&file, own).unwrap();
    docker.done(&["--default-network"]);
    docker.done(&["--uninstall"]);
    assert_eq!(docker.files(), [(file, own.to_owned())]);
}
