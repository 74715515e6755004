//! `ARG`: what is declared where, and which values count.

use std::collections::{BTreeMap, BTreeSet};

use crate::words::Variables;

/// Arguments that need no declaration and leave no trace in the image's history.
const PREDEFINED: [&str; 10] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// The arguments before the stages, and as one of them sees its own copy.
#[derive(Debug, Clone, Default)]
pub(super) struct Arguments {
    /// `--build-arg`.
    given: BTreeMap<String, Option<String>>,
    /// Declared before the first `FROM`, with their values.
    global: BTreeMap<String, Option<String>>,
    /// Declared in a stage.
    declared: BTreeMap<String, Option<String>>,
    /// Of the platform: available to who declares them.
    automatic: BTreeMap<String, String>,
}

impl Arguments {
    pub(super) fn new(given: BTreeMap<String, Option<String>>) -> Self {
        let architecture = bulkhead_image::Platform::host().architecture;
        let mut automatic = BTreeMap::new();
        for kind in ["TARGET", "BUILD"] {
            automatic.insert(format!("{kind}PLATFORM"), format!("linux/{architecture}"));
            automatic.insert(format!("{kind}OS"), "linux".to_owned());
            automatic.insert(format!("{kind}ARCH"), architecture.clone());
            automatic.insert(format!("{kind}VARIANT"), String::new());
        }
        Self {
            given,
            automatic,
            ..Self::default()
        }
    }

    pub(super) fn declare_global(&mut self, name: &str, default: Option<String>) {
        let value = match self.given.get(name) {
            Some(Some(value)) => Some(value.clone()),
            _ => default.or_else(|| self.automatic.get(name).cloned()),
        };
        self.global.insert(name.to_owned(), value);
    }

    pub(super) fn declare(&mut self, name: &str, default: Option<String>) {
        self.declared.insert(name.to_owned(), default);
    }

    /// What was given and is declared nowhere, neither before the stages nor in them.
    pub(super) fn unused(&self, in_stages: &BTreeSet<String>) -> Vec<String> {
        self.given
            .keys()
            .filter(|name| {
                !in_stages.contains(*name)
                    && !self.global.contains_key(*name)
                    && !PREDEFINED.contains(&name.as_str())
                    && name.as_str() != "SOURCE_DATE_EPOCH"
            })
            .cloned()
            .collect()
    }

    /// A declared argument's value.
    fn value(&self, name: &str) -> Option<String> {
        let default = self.declared.get(name)?;
        if let Some(Some(value)) = self.given.get(name) {
            return Some(value.clone());
        }
        default
            .clone()
            .or_else(|| self.global.get(name).cloned().flatten())
            .or_else(|| self.automatic.get(name).cloned())
    }

    /// `NAME=value` of all that commands see and the environment does not set: those that
    /// are part of the image's history, and those that are not. Sorted.
    pub(super) fn for_commands(&self, environment: &[String]) -> (Vec<String>, Vec<String>) {
        let is_set = |name: &str| {
            environment
                .iter()
                .any(|entry| entry.split('=').next() == Some(name))
        };
        let mut recorded = Vec::new();
        for name in self.declared.keys() {
            if let Some(value) = self.value(name)
                && !is_set(name)
            {
                recorded.push(format!("{name}={value}"));
            }
        }
        let mut silent = Vec::new();
        for name in PREDEFINED {
            if let Some(Some(value)) = self.given.get(name)
                && !self.declared.contains_key(name)
                && !is_set(name)
            {
                silent.push(format!("{name}={value}"));
            }
        }
        (recorded, silent)
    }

    /// What `FROM` may use.
    pub(super) fn globals(&self) -> impl Variables + '_ {
        Globals(self)
    }
}

struct Globals<'a>(&'a Arguments);

impl Variables for Globals<'_> {
    fn get(&self, name: &str) -> Option<String> {
        match self.0.global.get(name) {
            Some(value) => value.clone(),
            None => self.0.automatic.get(name).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes() {
        let given = BTreeMap::from([
            ("A".to_owned(), Some("given".to_owned())),
            ("HTTP_PROXY".to_owned(), Some("p".to_owned())),
            ("UNUSED".to_owned(), Some("x".to_owned())),
        ]);
        let mut arguments = Arguments::new(given);
        arguments.declare_global("A", Some("default".to_owned()));
        arguments.declare_global("B", Some("b".to_owned()));
        assert_eq!(arguments.globals().get("A").as_deref(), Some("given"));
        assert_eq!(
            arguments.for_commands(&[]),
            (Vec::new(), vec!["HTTP_PROXY=p".to_owned()])
        );
        arguments.declare("A", None);
        arguments.declare("B", None);
        arguments.declare("C", Some("c".to_owned()));
        arguments.declare("D", None);
        let environment = ["C=env".to_owned()];
        assert_eq!(arguments.for_commands(&environment).0, ["A=given", "B=b"]);
        assert_eq!(arguments.unused(&BTreeSet::new()), ["UNUSED"]);
    }
}
