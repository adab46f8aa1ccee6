//! Whether what runs in a container is well: asked, as long as it runs, by the process that waits for it.

use std::ffi::OsString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use portolan_kernel::process::{JoinTarget, PidFd, SandboxChild, SpawnSpec};
use portolan_kernel::signals;
use portolan_model::{Health, HealthCheck, HealthFailure, HealthState, Id};

use crate::cmd::daemon;
use crate::cmd::run::status_code;
use crate::context::Context;
use crate::failure::Refused;
use crate::spec;

/// So much is kept of what a check says, as Docker keeps it.
const SAID: usize = 4096;
/// What a check says comes at the latest so long after its end: who has it say more in the background is not waited for.
const LATE: Duration = Duration::from_millis(200);
/// The status of one that did not end.
const NO_STATUS: i32 = -1;

/// How a command is to be asked whether it is well.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Health options")]
pub(crate) struct HealthArgs {
    /// Command that says whether the container is well: with status 0. A shell runs it inside
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time from one check to the next (default 30s)
    #[arg(long, value_name = "TIME", value_parser = spec::duration)]
    health_interval: Option<Duration>,
    /// What takes longer has failed (default 30s)
    #[arg(long, value_name = "TIME", value_parser = spec::duration)]
    health_timeout: Option<Duration>,
    /// So many failures one after the other are needed to be unhealthy (default 3)
    #[arg(long, value_name = "NUMBER")]
    health_retries: Option<u32>,
    /// For so long after the start failures do not count, until the first success (default 0s)
    #[arg(long, value_name = "TIME", value_parser = spec::duration)]
    health_start_period: Option<Duration>,
    /// Time between checks during that (default 5s)
    #[arg(long, value_name = "TIME", value_parser = spec::duration)]
    health_start_interval: Option<Duration>,
    /// No check
    #[arg(long)]
    no_healthcheck: bool,
}

impl HealthArgs {
    /// The check that is asked for. Zero stands for the default, as Docker has it.
    pub(crate) fn check(&self) -> Result<Option<HealthCheck>> {
        let times = [self.health_interval, self.health_timeout, self.health_start_period, self.health_start_interval];
        let has_more = times.iter().any(Option::is_some) || self.health_retries.is_some();
        let command = self.health_cmd.as_ref().filter(|command| !command.is_empty());
        if self.no_healthcheck && (has_more || command.is_some()) {
            return Err(Refused::new("--no-healthcheck conflicts with --health-* options")
                .hint("leave out one of the two")
                .into());
        }
        let Some(command) = command else {
            if has_more {
                return Err(Refused::new("--health-* options are given without --health-cmd")
                    .hint("there is no image that could have a check: say which command it is")
                    .into());
            }
            return Ok(None);
        };
        if let Some(short) = times.iter().flatten().find(|time| !time.is_zero() && **time < Duration::from_millis(1)) {
            return Err(Refused::new(format!("{short:?} is too short for a health check"))
                .hint("times are 1ms or longer")
                .into());
        }
        let usual = HealthCheck::new(command);
        let or = |given: Option<Duration>, usual| given.filter(|time| !time.is_zero()).unwrap_or(usual);
        Ok(Some(HealthCheck {
            interval: or(self.health_interval, usual.interval),
            timeout: or(self.health_timeout, usual.timeout),
            start_period: or(self.health_start_period, usual.start_period),
            start_interval: or(self.health_start_interval, usual.start_interval),
            retries: self.health_retries.filter(|retries| *retries > 0).unwrap_or(usual.retries),
            ..usual
        }))
    }
}

/// The checks of a container.
#[derive(Debug)]
pub(crate) struct Checks {
    check: HealthCheck,
    env: Vec<(OsString, OsString)>,
    workdir: Option<PathBuf>,
    no_netfilter: bool,
    now: Mutex<Now>,
    woken: Condvar,
}

#[derive(Debug, Default)]
struct Now {
    is_over: bool,
    /// The check that runs.
    running: Option<PidFd>,
}

impl Checks {
    /// By `check`, in the surroundings that the container's command has.
    pub(crate) fn new(
        check: HealthCheck,
        env: Vec<(OsString, OsString)>,
        workdir: Option<PathBuf>,
        no_netfilter: bool,
    ) -> Self {
        Self { check, env, workdir, no_netfilter, now: Mutex::default(), woken: Condvar::new() }
    }

    /// Checks container `id`, whose process is `pid`, until [`Self::stop`].
    pub(crate) fn run(&self, context: &Context, id: Id, pid: i32) {
        let began = Instant::now();
        let mut health = Health::new(HealthState::Starting);
        // What nobody could be told yet.
        let mut is_untold = false;
        while self.pause(self.check.pause(health.state, began.elapsed())) {
            let age = began.elapsed();
            let failure = match self.ask(pid) {
                Ok(failure) => failure,
                Err(error) => Some(HealthFailure { at: now(), status: NO_STATUS, output: format!("{error:#}") }),
            };
            if self.now().is_over {
                return;
            }
            let after = health.after(&self.check, age, failure);
            // As long as all is well nothing is written.
            is_untold |= after != health;
            health = after;
            if is_untold {
                match context.engine().and_then(|engine| Ok(engine.report_health(id, &health)?)) {
                    Ok(()) => {
                        is_untold = false;
                        daemon::settle(context, false);
                    }
                    Err(error) => tracing::warn!("health of container {}: {error:#}", id.short()),
                }
            }
        }
    }

    /// Has [`Self::run`] end.
    pub(crate) fn stop(&self) {
        let mut now = self.now();
        now.is_over = true;
        if let Some(running) = &now.running {
            let _ = running.signal(signals::KILL);
        }
        self.woken.notify_all();
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().expect("nobody panics with it")
    }

    /// Waits; false when it is over.
    fn pause(&self, time: Duration) -> bool {
        let waited = self.woken.wait_timeout_while(self.now(), time, |now| !now.is_over);
        !waited.expect("nobody panics with it").0.is_over
    }

    /// Runs the command beside process `pid`: what came of it, unless it is well.
    fn ask(&self, pid: i32) -> Result<Option<HealthFailure>> {
        let (reader, writer) = std::io::pipe().context("make a pipe")?;
        let mut child = SandboxChild::spawn(&SpawnSpec {
            argv: ["/bin/sh", "-c", self.check.command.as_str()].map(OsString::from).to_vec(),
            env: self.env.clone(),
            workdir: self.workdir.clone(),
            stdin: Some(OwnedFd::from(File::open("/dev/null").context("open `/dev/null`")?)),
            stdout: Some(OwnedFd::from(writer.try_clone().context("pass on a pipe")?)),
            stderr: Some(OwnedFd::from(writer)),
            new_session: true,
            die_with_parent: true,
            join: Some(JoinTarget::of_pid(pid)?),
            no_netfilter: self.no_netfilter,
            ..SpawnSpec::default()
        })?;
        {
            let mut now = self.now();
            if now.is_over {
                return Ok(None);
            }
            now.running = Some(PidFd::open(child.pid()).context("watch the check")?);
        }
        let said = listen(OwnedFd::from(reader));
        let released = child.release();
        let ended = released.map_err(anyhow::Error::from).and_then(|()| {
            let is_done = child.pidfd().wait_readable(self.check.timeout).context("wait for the check")?;
            // What it left running goes with it; its number is its own until it is reaped.
            child.kill_session();
            let status = child.wait().context("wait for the check")?;
            Ok(is_done.then_some(status))
        });
        self.now().running = None;
        let output = || said.recv_timeout(LATE).unwrap_or_default();
        Ok(match ended? {
            Some(status) if status.success() => None,
            Some(status) => Some(HealthFailure { at: now(), status: status_code(status), output: output() }),
            None => {
                let output = format!("Health check exceeded timeout ({:?})", self.check.timeout);
                Some(HealthFailure { at: now(), status: NO_STATUS, output })
            }
        })
    }
}

/// Reads what comes, to the end, so that nobody waits for room; hands out the beginning of it.
fn listen(from: OwnedFd) -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut file, mut kept, mut buffer) = (File::from(from), Vec::new(), [0; SAID]);
        while let Ok(length @ 1..) = file.read(&mut buffer) {
            let room = SAID - kept.len();
            kept.extend_from_slice(&buffer[..length.min(room)]);
        }
        let _ = tell.send(String::from_utf8_lossy(&kept).into_owned());
    });
    told
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs())
}
