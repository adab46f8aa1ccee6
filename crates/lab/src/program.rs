use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Writes a program that everybody may start.
///
/// A process of its own, install(1), writes it: a file that this one had open for writing could still be so in a process
/// that another thread has just forked, and is not to be started then (execve(2), `ETXTBSY`).
///
/// # Errors
/// With what install(1) said, or when it cannot be started.
pub fn write_program(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped()).stderr(Stdio::piped());
    let mut child = install.spawn().context("start install")?;
    let written = child.stdin.take().context("no pipe to install")?.write_all(bytes.as_ref());
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "write {}: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
    Ok(written?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn it_starts_while_other_threads_start_others() {
        let dir = std::env::temp_dir().join(format!("lab-program-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    assert!(Command::new("true").status().unwrap().success());
                }
            });
            let all = (0..50).all(|number| {
                let path = dir.join(number.to_string());
                write_program(&path, "#!/bin/sh\n").unwrap();
                Command::new(path).status().is_ok_and(|status| status.success())
            });
            over.store(true, Ordering::Relaxed);
            assert!(all);
        });
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn it_says_why_it_cannot() {
        let error = write_program(Path::new("/proc/no/such"), "").unwrap_err().to_string();
        assert!(error.contains("/proc/no/such"), "{error}");
    }
}
