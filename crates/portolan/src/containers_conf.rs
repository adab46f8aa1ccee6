//! The one list of containers.conf(5) that concerns us: `helper_binaries_dir` of its table `engine`.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The files that Podman reads whoever it runs for; each has drop-ins beside it, in `NAME.d`.
const SYSTEM: [&str; 2] = ["/usr/share/containers/containers.conf", "/etc/containers/containers.conf"];

/// Why the list is not known.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unknown {
    #[error("read `{}`", file.display())]
    Read {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` has a helper_binaries_dir that is not a list of plain strings", file.display())]
    Form { file: PathBuf },
}

/// What the files beside a drop-in say.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Where Podman looks by what it reads before.
    pub(crate) before: Option<Vec<String>>,
    /// The file of the same directory that is read later and says something else.
    pub(crate) after: Option<PathBuf>,
}

/// Looks through the files that there are beside the drop-in `ours`: the last that has the list is the one that counts.
///
/// # Errors
/// When one of them cannot be read, or its list is not one of plain strings.
pub(crate) fn find(ours: &Path) -> Result<Found, Unknown> {
    let directory = ours.parent().unwrap_or(Path::new("/"));
    let system = SYSTEM.iter().map(|main| (PathBuf::from(main), Path::new(main).with_extension("conf.d")));
    let mut places: Vec<(PathBuf, PathBuf)> = system.collect();
    if !places.iter().any(|(_, drop_ins)| drop_ins == directory) {
        let main = directory.with_file_name("containers.conf");
        places.push((main, directory.to_owned()));
    }
    let mut found = Found::default();
    for (main, drop_ins) in places {
        for file in std::iter::once(main).chain(list(&drop_ins)?).filter(|file| file != ours) {
            let Some(directories) = read(&file)? else { continue };
            if file.parent() == Some(directory) && file.as_path() > ours {
                found.after = Some(file);
            } else {
                found.before = Some(directories);
            }
        }
    }
    Ok(found)
}

/// The drop-ins of a directory, in the order in which they are read.
fn list(directory: &Path) -> Result<BTreeSet<PathBuf>, Unknown> {
    let failed = |source| Unknown::Read { file: directory.to_owned(), source };
    match fs::read_dir(directory) {
        Ok(entries) => {
            let paths = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<BTreeSet<PathBuf>>>();
            let mut paths = paths.map_err(failed)?;
            paths.retain(|path| path.extension().is_some_and(|extension| extension == "conf"));
            Ok(paths)
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(failed(error)),
    }
}

fn read(file: &Path) -> Result<Option<Vec<String>>, Unknown> {
    match fs::read_to_string(file) {
        Ok(text) => directories(&text).map_err(|AnotherForm| Unknown::Form { file: file.to_owned() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Unknown::Read { file: file.to_owned(), source }),
    }
}

/// The list is there, and none of plain strings.
#[derive(Debug)]
pub(crate) struct AnotherForm;

/// The list in a file's text.
pub(crate) fn directories(text: &str) -> Result<Option<Vec<String>>, AnotherForm> {
    let (mut table, mut rest) = ("", text);
    while !rest.is_empty() {
        let (line, next) = rest.split_once('\n').unwrap_or((rest, ""));
        let line = line.trim();
        if let Some((key, _)) = line.split_once('=').filter(|_| !line.starts_with(['#', '['])) {
            let is_it = match table {
                "engine" => key.trim() == "helper_binaries_dir",
                "" => key.trim() == "engine.helper_binaries_dir",
                _ => false,
            };
            if is_it {
                let value = rest.split_once('=').map_or("", |(_, value)| value);
                return array(value).map(Some).ok_or(AnotherForm);
            }
        } else if let Some(name) = line.strip_prefix('[').and_then(|name| name.split_once(']')) {
            table = name.0.trim();
        }
        rest = next;
    }
    Ok(None)
}

/// An array of strings at the beginning of `text` (TOML 1.0); none if it is anything else.
fn array(text: &str) -> Option<Vec<String>> {
    let (mut rest, mut all) = (blank(text).strip_prefix('[')?, Vec::new());
    loop {
        rest = blank(rest);
        if rest.starts_with(']') {
            return Some(all);
        }
        let quote = rest.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        let (string, next) = rest[1..].split_once(quote)?;
        if string.contains('\n') || (quote == '"' && string.contains('\\')) {
            return None;
        }
        all.push(string.to_owned());
        rest = blank(next);
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => return rest.starts_with(']').then_some(all),
        }
    }
}

/// What comes after blanks, ends of lines and comments.
fn blank(text: &str) -> &str {
    let mut rest = text.trim_start();
    while rest.starts_with('#') {
        rest = rest.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_found_where_it_counts() {
        let found = |text: &str| directories(text).unwrap().map(|all| all.join(":"));
        assert_eq!(found("[engine]\nhelper_binaries_dir = [\"/a\", '/b']\n").as_deref(), Some("/a:/b"));
        let over_lines =
            "[ engine ] # x\n a=1\nhelper_binaries_dir=[ # why\n  \"/a\",\n  # \"/no\",\n\"/b\" ,\n]\n[network]";
        assert_eq!(found(over_lines).as_deref(), Some("/a:/b"));
        assert_eq!(found("engine.helper_binaries_dir = []").as_deref(), Some(""));
        for other in [
            "",
            "[engine]\n#helper_binaries_dir = [\"/a\"]\n",
            "[network]\nhelper_binaries_dir = [\"/a\"]\n",
            "[engine]\n",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_not_understood_is_not_replaced() {
        for value in
            ["[\"/a\", {append=true}]", "[\"/a", "\"/a\"", "", "[\"/a\\u0062\"]", "[\"/a\" \"/b\"]", "[\"\"\"/a\"\"\"]"]
        {
            let text = format!("[engine]\nhelper_binaries_dir = {value}\n");
            assert!(directories(&text).is_err(), "{value}");
        }
    }
}
