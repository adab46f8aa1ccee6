//! What passes an interface.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};

use portolan_kernel::process::PidFd;
use portolan_kernel::signals;
use portolan_lab::{Host, Lab};

/// All that passes an interface, by tcpdump(8).
pub(crate) struct Capture {
    file: PathBuf,
    dump: Child,
}

impl Capture {
    pub(crate) fn start(lab: &Lab, host: &Host, interface: &str) -> Self {
        let file = lab.dir().join(format!("{}-{interface}.pcap", host.name()));
        let mut dump = host.command("tcpdump").unwrap();
        dump.args(["-i", interface, "--immediate-mode", "-U", "-Z", "root", "-B", "16384", "-w"]).arg(&file);
        let mut dump = dump.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        // It says so as soon as it listens.
        let mut said = String::new();
        BufReader::new(dump.stderr.as_mut().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains("listening on"), "tcpdump of `{}`: {said}", host.name());
        Self { file, dump }
    }

    /// Ends it; what was captured.
    pub(crate) fn stop(&mut self) -> Vec<u8> {
        let daemon = PidFd::open(self.dump.id().try_into().unwrap()).unwrap();
        daemon.signal(signals::TERM).unwrap();
        self.dump.wait().unwrap();
        fs::read(&self.file).unwrap()
    }

    /// The packets that a filter (pcap-filter(7)) lets pass, a line each, of one that has ended.
    pub(crate) fn packets(&self, host: &Host, filter: &str) -> Vec<String> {
        let mut read = host.command("tcpdump").unwrap();
        let output = read.args(["-nn", "-t", "-r"]).arg(&self.file).args(filter.split(' ')).output().unwrap();
        assert!(output.status.success(), "{filter}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.dump.kill();
        let _ = self.dump.wait();
    }
}
