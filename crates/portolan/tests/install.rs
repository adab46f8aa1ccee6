//! `portolan install podman`: what it writes, keeps and takes away, in directories of the test's own.

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
