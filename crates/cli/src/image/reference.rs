//! Image references as users write and read them: `busybox` for
//! `docker.io/library/busybox:latest`.

/// Why a text is no reference.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadReference {
    /// It has not the form of one.
    #[error("invalid reference format")]
    Format,
    /// It would be one in lower case.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Case(String),
}

/// A parsed reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A whole image ID, with or without its algorithm.
    Id(String),
    /// A name.
    Named {
        /// The registry, `docker.io` if none was written.
        domain: String,
        /// The repository in the registry, `library/…` for short names.
        path: String,
        /// The tag.
        tag: Option<String>,
        /// `sha256:…`
        digest: Option<String>,
    },
}

const DEFAULT_DOMAIN: &str = "docker.io";
const OFFICIAL: &str = "library/";

fn hexadecimal(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn component_ok(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    if !alphanumeric(*first) || !alphanumeric(*last) {
        return false;
    }
    // Between alphanumerics: one dot, one or two underscores, any number of dashes.
    part.split(|c: char| c.is_ascii_alphanumeric())
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
        && bytes.iter().all(|b| alphanumeric(*b) || b"._-".contains(b))
}

fn tag_ok(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !tag.is_empty()
        && tag.len() <= 128
        && tag
            .bytes()
            .enumerate()
            .all(|(i, b)| word(b) || (i > 0 && b".-".contains(&b)))
}

impl Reference {
    /// Understands an ID, a name, `name:tag`, `name@digest` and `name:tag@digest`.
    pub fn parse(text: &str) -> Result<Self, BadReference> {
        let bare = text.strip_prefix("sha256:").unwrap_or(text);
        if hexadecimal(bare, 64) {
            return Ok(Self::Id(text.to_owned()));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let (algorithm, hex) = digest.split_once(':').ok_or(BadReference::Format)?;
                let valid = !algorithm.is_empty()
                    && hex.len() >= 32
                    && hex.bytes().all(|b| b.is_ascii_hexdigit());
                if !valid {
                    return Err(BadReference::Format);
                }
                (rest, Some(digest.to_owned()))
            }
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|t| !tag_ok(t)) {
            return Err(BadReference::Format);
        }
        let (domain, path) = match name.split_once('/') {
            Some((first, path))
                if first.contains(['.', ':'])
                    || first == "localhost"
                    || first.chars().any(|c| c.is_ascii_uppercase()) =>
            {
                (first.to_owned(), path.to_owned())
            }
            _ => (DEFAULT_DOMAIN.to_owned(), name.to_owned()),
        };
        let domain = if domain == "index.docker.io" {
            DEFAULT_DOMAIN.to_owned()
        } else {
            domain
        };
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{OFFICIAL}{path}")
        } else {
            path
        };
        if !path.split('/').all(component_ok) || path.len() > 255 {
            let lower = path.to_lowercase();
            return Err(match lower != path && lower.split('/').all(component_ok) {
                true => BadReference::Case(path),
                false => BadReference::Format,
            });
        }
        Ok(Self::Named {
            domain,
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// True for an ID.
    pub fn is_id(&self) -> bool {
        matches!(self, Self::Id(_))
    }

    /// With the tag `latest` if there is neither tag nor digest.
    pub fn with_default_tag(&self) -> Self {
        let mut named = self.clone();
        if let Self::Named {
            tag: tag @ None,
            digest: None,
            ..
        } = &mut named
        {
            *tag = Some("latest".to_owned());
        }
        named
    }

    /// Without the digest, if there is a tag; without it and any other way too.
    pub fn without_digest(&self) -> Self {
        let mut named = self.clone();
        if let Self::Named { digest, .. } = &mut named {
            *digest = None;
        }
        named
    }

    /// The tag.
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Named { tag, .. } => tag.as_deref(),
            Self::Id(_) => None,
        }
    }

    /// The digest.
    pub fn digest(&self) -> Option<&str> {
        match self {
            Self::Named { digest, .. } => digest.as_deref(),
            Self::Id(_) => None,
        }
    }

    /// The registry.
    pub fn domain(&self) -> &str {
        match self {
            Self::Named { domain, .. } => domain,
            Self::Id(_) => DEFAULT_DOMAIN,
        }
    }

    /// The shortest name that means the same, without tag and digest.
    pub fn familiar_name(&self) -> String {
        match self {
            Self::Id(id) => id.clone(),
            Self::Named { domain, path, .. } if domain == DEFAULT_DOMAIN => {
                path.strip_prefix(OFFICIAL).unwrap_or(path).to_owned()
            }
            Self::Named { domain, path, .. } => format!("{domain}/{path}"),
        }
    }

    /// The whole name, without tag and digest.
    pub fn name(&self) -> String {
        match self {
            Self::Id(id) => id.clone(),
            Self::Named { domain, path, .. } => format!("{domain}/{path}"),
        }
    }

    /// The shortest text that means the same.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        if let Some(tag) = self.tag() {
            text = format!("{text}:{tag}");
        }
        if let Some(digest) = self.digest() {
            text = format!("{text}@{digest}");
        }
        text
    }

    /// The whole text.
    pub fn canonical(&self) -> String {
        match self {
            Self::Id(id) => id.clone(),
            Self::Named { domain, path, .. } => {
                let rest = self.familiar();
                format!("{domain}/{path}{}", &rest[self.familiar_name().len()..])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_and_long_names() {
        let parse = |t: &str| Reference::parse(t).unwrap();
        assert_eq!(
            parse("busybox").with_default_tag().familiar(),
            "busybox:latest"
        );
        assert_eq!(
            parse("busybox").with_default_tag().canonical(),
            "docker.io/library/busybox:latest"
        );
        assert_eq!(parse("docker.io/library/busybox:1").familiar(), "busybox:1");
        assert_eq!(parse("a/b").canonical(), "docker.io/a/b");
        assert_eq!(parse("localhost:5000/x:y").familiar(), "localhost:5000/x:y");
        assert_eq!(parse("localhost:5000/x").domain(), "localhost:5000");
        let digest = format!("x:1@sha256:{}", "a".repeat(64));
        assert_eq!(parse(&digest).without_digest().familiar(), "x:1");
        assert_eq!(parse(&digest).familiar(), digest);
        assert!(parse(&"a".repeat(64)).is_id());
    }

    #[test]
    fn refusals() {
        for bad in [
            "", "a:b:c", "a//b", "-a", "a:", "a@b", "a b", "a___b", "a..b",
        ] {
            assert_eq!(Reference::parse(bad), Err(BadReference::Format), "{bad}");
        }
        let upper = Reference::parse("Busybox").unwrap_err().to_string();
        assert!(
            upper.ends_with("(library/Busybox) must be lowercase"),
            "{upper}"
        );
        assert!(Reference::parse("a__b").is_ok() && Reference::parse("a---b").is_ok());
    }
}
