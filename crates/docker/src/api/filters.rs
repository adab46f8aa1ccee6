//! `?filters=`: which of many are asked for, in either form that clients send.

use std::collections::BTreeMap;

use regex_lite::Regex;
use serde::Deserialize;

use super::failure::Failure;

/// The values of each key; an element is shown when it fits one value of every key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Filters(BTreeMap<String, Vec<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    /// `{"value": true}`, since 1.22.
    Set(BTreeMap<String, bool>),
    /// `["value"]`, before.
    List(Vec<String>),
}

impl Filters {
    /// Reads the parameter; `known` are the keys there are.
    ///
    /// # Errors
    /// What is neither form, or names another key.
    pub(super) fn read(text: &str, known: &[&str]) -> Result<Self, Failure> {
        let filters = Self::of_any_keys(text)?;
        match filters.0.keys().find(|key| !known.contains(&key.as_str())) {
            Some(unknown) => Err(Failure::invalid(format!("invalid filter '{unknown}'"))),
            None => Ok(filters),
        }
    }

    /// Reads the parameter, whatever its keys are.
    ///
    /// # Errors
    /// What is neither form.
    pub(super) fn of_any_keys(text: &str) -> Result<Self, Failure> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let read: BTreeMap<String, Values> =
            serde_json::from_str(text).map_err(|error| Failure::invalid(format!("invalid filter: {error}")))?;
        let values = |values| match values {
            Values::Set(set) => set.into_iter().filter_map(|(value, on)| on.then_some(value)).collect(),
            Values::List(list) => list,
        };
        Ok(Self(read.into_iter().map(|(key, found)| (key, values(found))).collect()))
    }

    /// The values of `key`; empty where it is not given.
    pub(super) fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether a key is given.
    pub(super) fn has(&self, key: &str) -> bool {
        !self.values(key).is_empty()
    }

    /// Whether `text` is one of the values, or none is given.
    pub(super) fn is(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| value == text)
    }

    /// Whether `text` starts with one of the values, or none is given.
    pub(super) fn starts(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| text.starts_with(value))
    }

    /// Whether one of the values, as a regular expression, is found in `text`, or none is given.
    pub(super) fn matches(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| value == text || Regex::new(value).is_ok_and(|pattern| pattern.is_match(text)))
    }

    /// Whether all values of `key`, `NAME` or `NAME=VALUE` each, are among `labels`.
    pub(super) fn labelled(&self, key: &str, labels: &BTreeMap<String, String>) -> bool {
        self.values(key).iter().all(|wanted| match wanted.split_once('=') {
            Some((name, value)) => labels.get(name).is_some_and(|found| found == value),
            None => labels.contains_key(wanted),
        })
    }

    /// Whether `fits` says so of one of the values, or none is given.
    pub(super) fn any(&self, key: &str, fits: impl Fn(&str) -> bool) -> bool {
        !self.has(key) || self.values(key).iter().any(|value| fits(value))
    }

    /// The value of a key that is yes or no.
    ///
    /// # Errors
    /// More than one value, or something else.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, Failure> {
        match self.values(key) {
            [] => Ok(None),
            [value] => match value.as_str() {
                "1" | "true" => Ok(Some(true)),
                "0" | "false" => Ok(Some(false)),
                _ => Err(Failure::invalid(format!(
                    r#"invalid value for filter '{key}', must be "true" (or "1"), or "false" (or "0")"#
                ))),
            },
            _ => Err(Failure::invalid(format!(r#"got more than one value for filter key "{key}""#))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Filters {
        Filters::read(text, &["name", "label", "dangling"]).unwrap()
    }

    #[test]
    fn both_forms() {
        let new = read(r#"{"name":{"web":true,"db":true,"no":false}}"#);
        assert_eq!(new.values("name"), ["db", "web"]);
        assert_eq!(read(r#"{"name":["web"]}"#).values("name"), ["web"]);
        assert_eq!(read(""), read("{}"));
        for (text, why) in [
            ("[", "invalid filter: "),
            ("[]", "invalid filter: "),
            (r#"{"name":"web"}"#, "invalid filter: "),
            (r#"{"nmae":{"web":true}}"#, "invalid filter 'nmae'"),
        ] {
            let failure = Filters::read(text, &["name"]).unwrap_err();
            assert!(failure.message.starts_with(why) && failure.status() == 400, "{failure:?}");
        }
    }

    #[test]
    fn what_fits() {
        let filters = read(r#"{"name":["^w.b$","data"],"label":["a","b=2"]}"#);
        assert!(
            filters.matches("name", "web") && filters.matches("name", "mydata") && !filters.matches("name", "webs")
        );
        assert!(filters.is("name", "data") && !filters.is("name", "dat") && filters.is("driver", "any"));
        assert!(filters.starts("name", "database") && !filters.starts("name", "my"));
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        assert!(filters.labelled("label", &labels(&[("a", ""), ("b", "2")])));
        assert!(!filters.labelled("label", &labels(&[("a", ""), ("b", "3")])));
        assert!(!read(r#"{"name":["("]}"#).matches("name", "web"), "what is no expression fits nothing but itself");
        assert!(read(r#"{"name":["("]}"#).matches("name", "("));
    }

    #[test]
    fn flags() {
        assert_eq!(read("{}").flag("dangling"), Ok(None));
        assert_eq!(read(r#"{"dangling":{"1":true}}"#).flag("dangling"), Ok(Some(true)));
        assert_eq!(read(r#"{"dangling":["false"]}"#).flag("dangling"), Ok(Some(false)));
        assert!(read(r#"{"dangling":["maybe"]}"#).flag("dangling").unwrap_err().message.contains("must be"));
        assert!(read(r#"{"dangling":["0","1"]}"#).flag("dangling").unwrap_err().message.contains("more than one"));
    }
}
