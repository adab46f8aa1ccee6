//! `portolan install`: what it writes, keeps and takes away, in directories of the test's own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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
        let output = self.run(flags);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    #[track_caller]
    fn refused(&self, flags: &[&str]) -> String {
        let output = self.run(flags);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
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
        let output = self.run(args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn refused(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
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
