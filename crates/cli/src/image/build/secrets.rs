//! `--secret`: files and variables that commands of a build may read and that are no part of
//! the image.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use hyper::header::HeaderName;

use crate::error::{CliError, CliResult};

/// The header that the daemon takes them from.
pub(super) const HEADER: HeaderName = HeaderName::from_static("x-bulkhead-build-secrets");

/// Where a secret is.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    File(String),
    Variable(String),
    /// A variable of this name if there is one, else a file.
    Either(String),
}

/// The header's value, if there are any.
pub(super) fn header(given: &[String]) -> CliResult<Option<String>> {
    let mut secrets = BTreeMap::new();
    for text in given {
        let (id, source) = parse(text).map_err(CliError::msg)?;
        secrets.insert(id, STANDARD.encode(read(&source)?));
    }
    if secrets.is_empty() {
        return Ok(None);
    }
    let json = serde_json::to_vec(&secrets).map_err(|e| CliError::msg(e.to_string()))?;
    Ok(Some(URL_SAFE.encode(json)))
}

/// The check of the flag.
pub(super) fn check(text: &str) -> Result<String, String> {
    parse(text).map(|_| text.to_owned())
}

/// As buildx has it: `id=…,src=…`, `id=…,env=…`, `type=file|env`.
fn parse(text: &str) -> Result<(String, Source), String> {
    let (mut id, mut source, mut variable, mut kind) = (None, None, None, None);
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("invalid field '{field}' must be a key=value pair"))?;
        let slot = match key.to_ascii_lowercase().as_str() {
            "type" if !matches!(value, "file" | "env") => {
                return Err(format!("unsupported secret type {value:?}"));
            }
            "type" => &mut kind,
            "id" => &mut id,
            "source" | "src" => &mut source,
            "env" => &mut variable,
            _ => return Err(format!("unexpected key '{key}' in '{field}'")),
        };
        *slot = Some(value.to_owned());
    }
    let id = id
        .filter(|id| !id.is_empty())
        .ok_or("a secret needs an id: --secret id=NAME,src=FILE or id=NAME,env=VARIABLE")?;
    let source = match (kind.as_deref(), source, variable) {
        (_, Some(_), Some(_)) => return Err("a secret is either a file or a variable".to_owned()),
        (Some("file"), None, Some(_)) => {
            return Err("a secret of type file has no variable".to_owned());
        }
        (_, None, Some(variable)) => Source::Variable(variable),
        (Some("env"), source, None) => Source::Variable(source.unwrap_or_else(|| id.clone())),
        (_, Some(path), None) => Source::File(path),
        (Some(_), None, None) => Source::File(id.clone()),
        (None, None, None) => Source::Either(id.clone()),
    };
    Ok((id, source))
}

fn read(source: &Source) -> CliResult<Vec<u8>> {
    use std::os::unix::ffi::OsStringExt as _;
    match source {
        Source::File(path) => {
            std::fs::read(Path::new(path)).map_err(|e| CliError::io(format!("secret {path}"), e))
        }
        Source::Variable(name) => match std::env::var_os(name) {
            Some(value) => Ok(value.into_vec()),
            None => Err(CliError::msg(format!("secret: variable {name} is not set"))),
        },
        Source::Either(name) if std::env::var_os(name).is_some() => {
            read(&Source::Variable(name.clone()))
        }
        Source::Either(name) => read(&Source::File(name.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let parsed = |text| parse(text).unwrap().1;
        assert_eq!(parsed("id=a,src=/f"), Source::File("/f".to_owned()));
        assert_eq!(parsed("id=a,env=V"), Source::Variable("V".to_owned()));
        assert_eq!(parsed("type=env,id=a"), Source::Variable("a".to_owned()));
        assert_eq!(parsed("type=file,id=a"), Source::File("a".to_owned()));
        assert_eq!(parsed("id=a"), Source::Either("a".to_owned()));
        for wrong in [
            "src=/f",
            "id=",
            "id=a,src=/f,env=V",
            "id=a,what=x",
            "a",
            "id=a,type=other",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
