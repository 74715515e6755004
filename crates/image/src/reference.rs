//! Image references as docker reads and writes them: `busybox` means
//! `docker.io/library/busybox:latest`, and is shown as `busybox:latest`.
//! Knows grammar only, no store. The grammar is that of the OCI distribution specification
//! and docker's documentation of `docker tag`.

use std::fmt;

use crate::digest::Digest;

/// Longest repository name, domain included (docker's limit).
const MAX_NAME: usize = 255;
/// Longest tag.
const MAX_TAG: usize = 128;
const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL_PATH: &str = "library/";

/// Why a text is not a reference; the words are docker's, since users see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The grammar is violated.
    #[error("invalid reference format")]
    Format,
    /// The repository has upper-case letters.
    #[error("invalid reference format: repository name must be lowercase")]
    UpperCase,
    /// The repository is longer than 255 characters.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// 64 hex digits would be mistaken for an ID.
    #[error("invalid repository name, cannot specify 64-byte hexadecimal strings")]
    LooksLikeId,
}

/// A normalised reference: domain and path, and a tag, a digest, both or neither.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Parses a familiar or a full name; adds no tag ([`Reference::with_default_tag`] does).
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if Digest::from_hex(text).is_ok() {
            return Err(ReferenceError::LooksLikeId);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|_| ReferenceError::Format)?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (domain, remainder) = split_domain(rest);
        let (path, tag) = match remainder.rsplit_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (remainder, None),
        };
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ReferenceError::UpperCase);
        }
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{OFFICIAL_PATH}{path}")
        } else {
            path.to_owned()
        };
        let valid =
            is_domain(domain) && path.split('/').all(is_path_component) && tag.is_none_or(is_tag);
        if !valid {
            return Err(ReferenceError::Format);
        }
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self {
            domain: domain.to_owned(),
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The same with `:latest` if it has neither tag nor digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// The same repository with this tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Format);
        }
        Ok(Self {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        })
    }

    /// The same repository with this digest and no tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The registry: `docker.io`, `localhost:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository's path in its registry: `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Domain and path: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The repository as people write it: `busybox`, `user/app`, `ghcr.io/a/b`.
    pub fn familiar_name(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.name();
        }
        match self.path.strip_prefix(OFFICIAL_PATH) {
            Some(official) if !official.contains('/') => official.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// The whole reference as people write it: `busybox:latest`, `busybox@sha256:…`.
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_name(), self.suffix())
    }

    fn suffix(&self) -> String {
        let tag = self.tag.iter().map(|tag| format!(":{tag}"));
        let digest = self.digest.iter().map(|digest| format!("@{digest}"));
        tag.chain(digest).collect()
    }
}

/// The full form: `docker.io/library/busybox:latest`.
impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}{}", self.domain, self.path, self.suffix())
    }
}

/// What stands before the first slash is a registry if it has a dot, a port or an upper-case
/// letter, or is `localhost`; otherwise it belongs to a repository of the default registry.
fn split_domain(text: &str) -> (&str, &str) {
    let Some((first, rest)) = text.split_once('/') else {
        return (DEFAULT_DOMAIN, text);
    };
    let is_registry = first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|byte| byte.is_ascii_uppercase());
    match first {
        "index.docker.io" => (DEFAULT_DOMAIN, rest),
        _ if is_registry => (first, rest),
        _ => (DEFAULT_DOMAIN, text),
    }
}

fn is_domain(text: &str) -> bool {
    let (host, port) = if text.starts_with('[') {
        let Some(end) = text.find(']') else {
            return false;
        };
        let (host, rest) = text.split_at(end + 1);
        let address = &host[1..end];
        let valid = address
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b':');
        if address.is_empty() || !valid {
            return false;
        }
        match rest.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if rest.is_empty() => (None, None),
            None => return false,
        }
    } else {
        match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        }
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port
            .is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `[a-z0-9]+` separated by `.`, `_`, `__` or any number of `-`.
fn is_path_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let mut at = 0;
    loop {
        let word = bytes[at..]
            .iter()
            .take_while(|byte| is_word(**byte))
            .count();
        if word == 0 {
            return false;
        }
        at += word;
        let separator = bytes[at..]
            .iter()
            .take_while(|byte| !is_word(**byte))
            .count();
        match &bytes[at..at + separator] {
            [] => return true,
            b"." | b"_" | b"__" => {}
            dashes if dashes.iter().all(|byte| *byte == b'-') => {}
            _ => return false,
        }
        at += separator;
    }
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let bytes = text.as_bytes();
    bytes.len() <= MAX_TAG
        && bytes.first().is_some_and(|byte| is_word(*byte))
        && bytes
            .iter()
            .all(|byte| is_word(*byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn full(text: &str) -> String {
        Reference::parse(text)
            .unwrap()
            .with_default_tag()
            .to_string()
    }

    fn familiar(text: &str) -> String {
        Reference::parse(text)
            .unwrap()
            .with_default_tag()
            .familiar()
    }

    #[test]
    fn normalises() {
        for (given, whole, short) in [
            (
                "busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "busybox:1.36",
                "docker.io/library/busybox:1.36",
                "busybox:1.36",
            ),
            ("user/app", "docker.io/user/app:latest", "user/app:latest"),
            (
                "docker.io/busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "index.docker.io/library/b",
                "docker.io/library/b:latest",
                "b:latest",
            ),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            (
                "localhost:5000/x:T",
                "localhost:5000/x:T",
                "localhost:5000/x:T",
            ),
            (
                "ghcr.io/a/b/c",
                "ghcr.io/a/b/c:latest",
                "ghcr.io/a/b/c:latest",
            ),
            ("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest"),
            (
                "a__b/c--d",
                "docker.io/a__b/c--d:latest",
                "a__b/c--d:latest",
            ),
            (
                "library/busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "docker.io/library/a/b",
                "docker.io/library/a/b:latest",
                "library/a/b:latest",
            ),
        ] {
            assert_eq!(full(given), whole);
            assert_eq!(familiar(given), short);
        }
        let pinned = format!("busybox@sha256:{HEX}");
        assert_eq!(familiar(&pinned), pinned);
        assert_eq!(
            full(&format!("b:1@sha256:{HEX}")),
            format!("docker.io/library/b:1@sha256:{HEX}")
        );
    }

    #[test]
    fn refuses() {
        assert_eq!(Reference::parse(HEX), Err(ReferenceError::LooksLikeId));
        assert_eq!(Reference::parse("BusyBox"), Err(ReferenceError::UpperCase));
        assert_eq!(
            Reference::parse(&"a".repeat(300)),
            Err(ReferenceError::TooLong)
        );
        let long_tag = format!("a:{}", "t".repeat(129));
        for bad in [
            "",
            ":",
            "a:",
            ":a",
            "a b",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a//b",
            "/a",
            "a/",
            "a:b:c",
            "a@sha256:12",
            "a@",
            "é",
            "a:é",
            "[::1/a",
            "[]/a",
            "x.y:/a",
            "a:-b",
            "..",
            ".",
            "a\n",
            &long_tag,
        ] {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
