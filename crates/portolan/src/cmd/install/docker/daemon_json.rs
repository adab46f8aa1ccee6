//! Docker's `daemon.json` with one setting more, and as it was before.
//!
//! The text is kept to the letter: the setting is put behind the opening brace, and what was there is kept beside the file,
//! which tells that the setting is ours as well.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};

use crate::cmd::install::remove;
use crate::failure::Refused;

/// What takes Docker's own network away (dockerd(8), `--bridge`).
const KEY: &str = "bridge";
const VALUE: &str = "none";
/// The setting as text.
const SETTING: &str = r#""bridge": "none""#;
/// Settings of that network, which Docker refuses beside one of its bridge.
const EXCLUSIVE: &str = "bip";

/// The file, and what is kept of before.
#[derive(Debug)]
pub(super) struct DaemonJson {
    file: PathBuf,
    kept: PathBuf,
}

/// A decided change.
#[derive(Debug)]
pub(super) struct Change {
    file: PathBuf,
    kept: PathBuf,
    /// What is to be kept of before: none to keep nothing any more.
    keep: Option<String>,
    /// What the file is to be: none for no file.
    text: Option<String>,
    permissions: Option<Permissions>,
}

impl DaemonJson {
    /// The one in this directory; where it is a link, what that leads to.
    pub(super) fn new(config: &Path) -> Self {
        let file = config.join("daemon.json");
        Self { kept: config.join("daemon.json.portolan"), file: file.canonicalize().unwrap_or(file) }
    }

    /// How the setting gets in; none if it is there.
    ///
    /// # Errors
    /// When the file cannot be read, or says something that does not go with it.
    pub(super) fn with_ours(&self) -> Result<Option<Change>> {
        let text = read(&self.file)?;
        let settings = self.parse(text.as_deref().unwrap_or("{}"))?;
        match settings.get(KEY) {
            Some(Value::String(value)) if value == VALUE => return Ok(None),
            Some(other) => {
                return Err(self.refuse(
                    &format!("has `{KEY}` already: {other}"),
                    "take it out, if Docker is to make no network of its own",
                ));
            }
            None => {}
        }
        if settings.contains_key(EXCLUSIVE) {
            let why = format!("has `{EXCLUSIVE}`, which Docker refuses beside `{KEY}`");
            return Err(self.refuse(&why, "take it out: it is about the network that Docker is not to make"));
        }
        let with = text.as_deref().map_or_else(|| format!("{{\n  {SETTING}\n}}\n"), added);
        self.change(Some(text.unwrap_or_default()), Some(with)).map(Some)
    }

    /// How the setting gets out again; none if it is not ours.
    ///
    /// # Errors
    /// When the file cannot be read, or was changed so that ours cannot be told from it.
    pub(super) fn without_ours(&self) -> Result<Option<Change>> {
        let Some(before) = read(&self.kept)? else { return Ok(None) };
        let Some(now) = read(&self.file)? else { return self.change(None, None).map(Some) };
        if before.is_empty() && now == format!("{{\n  {SETTING}\n}}\n") {
            return self.change(None, None).map(Some);
        }
        if !before.is_empty() && now == added(&before) {
            return self.change(None, Some(before)).map(Some);
        }
        if self.parse(&now)?.get(KEY).and_then(Value::as_str) != Some(VALUE) {
            return self.change(None, Some(now)).map(Some);
        }
        // Somebody has gone on editing.
        if let Some((head, tail)) = now.split_once(SETTING) {
            let without = match tail.trim_start().strip_prefix(',') {
                Some(tail) => format!("{}{tail}", head.trim_end()),
                None => format!("{}{tail}", head.trim_end().trim_end_matches(',')),
            };
            if self.parse(&without).is_ok_and(|settings| !settings.contains_key(KEY)) {
                return self.change(None, Some(without)).map(Some);
            }
        }
        Err(self
            .refuse("was changed after this command had written it", &format!("take `{SETTING}` out of it by hand")))
    }

    fn change(&self, keep: Option<String>, text: Option<String>) -> Result<Change> {
        let permissions = match fs::metadata(&self.file) {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            found => Some(found.with_context(|| format!("look at `{}`", self.file.display()))?.permissions()),
        };
        Ok(Change { file: self.file.clone(), kept: self.kept.clone(), keep, text, permissions })
    }

    fn parse(&self, text: &str) -> Result<Map<String, Value>> {
        serde_json::from_str(text).map_err(|error| {
            self.refuse(&format!("cannot be read: {error}"), "Docker does not start with it either: mend it first")
        })
    }

    fn refuse(&self, why: &str, hint: &str) -> anyhow::Error {
        Refused::new(format!("`{}` {why}", self.file.display())).hint(hint).into()
    }
}

impl Change {
    /// Does it; the file.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub(super) fn carry_out(self) -> Result<PathBuf> {
        // What was before is known as long as the setting may be there.
        if let Some(keep) = &self.keep {
            let directory = self.kept.parent().unwrap_or(Path::new("/"));
            fs::create_dir_all(directory).with_context(|| format!("create `{}`", directory.display()))?;
            self.put(&self.kept, keep)?;
        }
        match &self.text {
            Some(text) => self.put(&self.file, text)?,
            None => remove(&self.file).with_context(|| format!("remove `{}`", self.file.display()))?,
        }
        if self.keep.is_none() {
            remove(&self.kept).with_context(|| format!("remove `{}`", self.kept.display()))?;
        }
        Ok(self.file)
    }

    /// Replaces a file as a whole; what is in it may not be everybody's to read.
    fn put(&self, path: &Path, text: &str) -> Result<()> {
        let beside = path.with_extension("new");
        let mode = self.permissions.clone().unwrap_or_else(|| Permissions::from_mode(0o644));
        let written = (|| {
            remove(&beside)?;
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            file.write_all(text.as_bytes())?;
            file.set_permissions(mode)?;
            fs::rename(&beside, path)
        })();
        written.with_context(|| format!("write `{}`", path.display()))
    }
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some).with_context(|| format!("read `{}`", path.display())),
    }
}

/// The text of an object with the setting first, in the line and with the indent of what was first.
fn added(text: &str) -> String {
    let Some((head, tail)) = text.split_once('{') else { return text.to_owned() };
    let gap = &tail[..tail.len() - tail.trim_start().len()];
    let comma = if tail.trim_start().starts_with('}') { "" } else { "," };
    format!("{head}{{{gap}{SETTING}{comma}{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_setting_comes_first_and_the_rest_stays() {
        for (text, with) in [
            ("{}", r#"{"bridge": "none"}"#),
            (r#"{"debug":true}"#, r#"{"bridge": "none","debug":true}"#),
            (
                "\n{\n\t\"debug\": true,\n\t\"x\": 1e3\n}\n\n",
                "\n{\n\t\"bridge\": \"none\",\n\t\"debug\": true,\n\t\"x\": 1e3\n}\n\n",
            ),
            ("{\n}\n", "{\n\"bridge\": \"none\"\n}\n"),
        ] {
            assert_eq!(added(text), with);
            let settings: Map<String, Value> = serde_json::from_str(with).unwrap();
            assert_eq!(settings["bridge"], "none");
        }
    }
}
