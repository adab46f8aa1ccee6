//! How failures reach people: one sentence, one hint, an exit status.

use std::fmt::Write as _;
use std::io::Write as _;

use portolan_kernel::process::SpawnError;
use portolan_model::Invalid;

use crate::cli;

/// A failure of the command line's own, with advice.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    message: String,
    hint: Option<String>,
}

impl Refused {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Prints a failure; the exit status it asks for, `fallback` if none.
pub(crate) fn report(error: &anyhow::Error, fallback: i32) -> i32 {
    print(&chain(error), hint(error).as_deref());
    match error.chain().find_map(|cause| cause.downcast_ref::<SpawnError>()) {
        Some(spawn) => spawn.exit_code(),
        None => fallback,
    }
}

/// Prints a message and advice to standard error.
pub(crate) fn print(message: &str, hint: Option<&str>) {
    let mut text = format!("portolan: {}\n", message.replace('\n', " "));
    if let Some(hint) = hint {
        let _ = writeln!(text, "hint: {hint}");
    }
    // One write, so that lines of several processes do not mix; nobody is left to tell if it fails.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// The error and its causes, outermost first, each said once.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// The first advice that one of the causes gives.
pub(crate) fn hint(error: &anyhow::Error) -> Option<String> {
    error.chain().find_map(|cause| {
        if let Some(refused) = cause.downcast_ref::<Refused>() {
            refused.hint.clone()
        } else if let Some(engine) = cause.downcast_ref::<portolan_engine::Error>() {
            engine.hint().or_else(|| missing_hint(engine)).or_else(|| help_hint(engine))
        } else if let Some(invalid) = cause.downcast_ref::<Invalid>() {
            invalid.hint.as_ref().map(ToString::to_string).or_else(|| Some(cli::see_help()))
        } else if let Some(store) = cause.downcast_ref::<portolan_engine::StoreError>() {
            store.hint()
        } else if let Some(silent) = cause.downcast_ref::<portolan_resident::control::Silent>() {
            silent.hint()
        } else if let Some(etcd) = cause.downcast_ref::<portolan_etcd::Error>() {
            etcd.hint().map(str::to_owned)
        } else if let Some(spawn) = cause.downcast_ref::<SpawnError>() {
            spawn_hint(spawn)
        } else {
            None
        }
    })
}

/// Where it says what a malformed request could be instead.
fn help_hint(error: &portolan_engine::Error) -> Option<String> {
    (error.kind() == portolan_engine::Kind::Invalid).then(cli::see_help)
}

/// Where to look for what could be of two kinds.
fn missing_hint(error: &portolan_engine::Error) -> Option<String> {
    matches!(error, portolan_engine::Error::NotFound { .. })
        .then(|| "`portolan ps -a` lists the containers, `portolan network ls` the networks".to_owned())
}

fn spawn_hint(error: &SpawnError) -> Option<String> {
    match error.exit_code() {
        127 => Some("the file system is the host's: the command must be installed there".to_owned()),
        126 => Some("the file must be executable and in a format this machine runs".to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::anyhow!("file exists").context("create veth `v`: file exists").context("attach `c1`");
        assert_eq!(chain(&error), "attach `c1`: create veth `v`: file exists");
    }

    #[test]
    fn advice_comes_from_any_cause() {
        let error = anyhow::Error::new(Refused::new("no").hint("do this")).context("run");
        assert_eq!(hint(&error).as_deref(), Some("do this"));
    }
}
