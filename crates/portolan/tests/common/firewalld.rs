//! The real firewalld, on a bus of its own.

use std::fs;
use std::path::Path;

use portolan_lab::eventually;

use super::{LONG, World};

/// firewalld on a bus of its own, in the network namespace of a world's host and a mount namespace in which its
/// configuration is a copy. Both processes end with this.
#[derive(Debug)]
pub(crate) struct Firewalld {
    pub(crate) processes: Vec<std::process::Child>,
    pub(crate) address: String,
}

const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=SOCKET</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow receive_type="method_call"/>
    <allow receive_type="signal"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
  </policy>
</busconfig>
"#;

impl Firewalld {
    /// Starts a bus alone.
    pub(crate) fn bus_or_skip(world: &mut World) -> Option<Self> {
        for needed in ["/usr/sbin/firewalld", "/usr/bin/dbus-daemon"] {
            if !Path::new(needed).exists() {
                assert!(std::env::var_os("CI").is_none(), "{needed} is missing");
                eprintln!("SKIP: no {needed}");
                return None;
            }
        }
        let dir = world.lab.dir().join("firewalld");
        fs::create_dir_all(&dir).unwrap();
        let socket = dir.join("bus");
        let config = dir.join("bus.conf");
        fs::write(&config, BUS.replace("SOCKET", socket.to_str().unwrap())).unwrap();
        let address = format!("unix:path={}", socket.display());
        let mut bus = std::process::Command::new("dbus-daemon");
        bus.args(["--nofork", "--nopidfile"]).arg(format!("--config-file={}", config.display()));
        let processes = vec![world.h.adopt(bus).unwrap().spawn().unwrap()];
        assert!(eventually(LONG, || socket.exists()), "the bus does not come up");
        world.environment.push(("DBUS_SYSTEM_BUS_ADDRESS".into(), address.clone().into()));
        Some(Self { processes, address })
    }

    /// Starts both and waits until firewalld answers; the world's commands find them. Skips loudly without the programs.
    pub(crate) fn or_skip(world: &mut World) -> Option<Self> {
        let mut firewalld = Self::bus_or_skip(world)?;
        let dir = world.lab.dir().join("firewalld");
        let mut daemon = std::process::Command::new("unshare");
        let script = r#"cp -a /etc/firewalld "$0/etc" && mount --bind "$0/etc" /etc/firewalld &&
            mount -t tmpfs none /var/log && exec firewalld --nofork --nopid"#;
        daemon.args(["--mount", "sh", "-c", script]).arg(&dir).env("DBUS_SYSTEM_BUS_ADDRESS", &firewalld.address);
        daemon.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        firewalld.processes.push(world.h.adopt(daemon).unwrap().spawn().unwrap());
        let minute = std::time::Duration::from_secs(60);
        assert!(eventually(minute, || firewalld.try_cmd(world, "--state").is_some()), "firewalld does not come up");
        Some(firewalld)
    }

    pub(crate) fn try_cmd(&self, world: &World, args: &str) -> Option<String> {
        let mut command = std::process::Command::new("firewall-cmd");
        command.args(args.split(' ')).env("DBUS_SYSTEM_BUS_ADDRESS", &self.address);
        let output = world.h.adopt(command).unwrap().output().unwrap();
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
    }

    /// What firewall-cmd(1) answers.
    #[track_caller]
    pub(crate) fn cmd(&self, world: &World, args: &str) -> String {
        self.try_cmd(world, args).unwrap_or_else(|| panic!("firewall-cmd {args} fails"))
    }
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        for process in self.processes.iter_mut().rev() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
