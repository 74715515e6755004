//! Patterns: those of `.dockerignore`, and the wildcards of `COPY` and `ADD`.

use std::path::Path;

/// Longest pattern, bytes.
const MAX_PATTERN: usize = 4096;
/// Most patterns of a file.
const MAX_PATTERNS: usize = 10_000;

/// Why a pattern cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("error checking .dockerignore: {0}")]
pub struct PatternError(String);

/// The patterns of a `.dockerignore`, in order: the last that matches decides.
#[derive(Debug, Default)]
pub struct IgnoreFile {
    patterns: Vec<Pattern>,
}

#[derive(Debug)]
struct Pattern {
    text: String,
    keeps: bool,
    regex: regex::bytes::Regex,
}

impl IgnoreFile {
    /// Parses a file: comments, blank lines, `!` for exceptions.
    ///
    /// # Errors
    /// A malformed pattern; too many.
    pub fn parse(bytes: &[u8]) -> Result<Self, PatternError> {
        let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
        let mut file = Self::default();
        for line in String::from_utf8_lossy(bytes).lines() {
            if !line.starts_with('#') {
                file.push(line)?;
            }
        }
        Ok(file)
    }

    /// Adds a line.
    ///
    /// # Errors
    /// As [`IgnoreFile::parse`].
    pub fn push(&mut self, line: &str) -> Result<(), PatternError> {
        let line = line.trim();
        let (keeps, text) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        if line.is_empty() {
            return Ok(());
        }
        if text.is_empty() {
            return Err(PatternError("illegal exclusion pattern: \"!\"".to_owned()));
        }
        if text.len() > MAX_PATTERN || self.patterns.len() == MAX_PATTERNS {
            return Err(PatternError("too long".to_owned()));
        }
        let text = cleaned(text);
        let regex = regex::bytes::RegexBuilder::new(&translate(&text)?)
            .unicode(false)
            .dot_matches_new_line(true)
            .size_limit(1 << 20)
            .build()
            .map_err(|_| PatternError(format!("syntax error in pattern {text:?}")))?;
        self.patterns.push(Pattern { text, keeps, regex });
        Ok(())
    }

    /// Whether there is nothing to ignore.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether a path below the context is left out: a pattern counts if it matches the path
    /// or any directory above it.
    pub fn excludes(&self, path: &Path) -> bool {
        use std::os::unix::ffi::OsStrExt;
        let mut excluded = false;
        for pattern in &self.patterns {
            let matches = path
                .ancestors()
                .filter(|part| !part.as_os_str().is_empty())
                .any(|part| pattern.regex.is_match(part.as_os_str().as_bytes()));
            if matches {
                excluded = !pattern.keeps;
            }
        }
        excluded
    }

    /// Whether something below an excluded directory could be kept, so that it must be looked
    /// through: an exception's text begins with the directory.
    pub fn may_keep_below(&self, directory: &Path) -> bool {
        let prefix = format!("{}/", directory.to_string_lossy());
        self.patterns
            .iter()
            .any(|pattern| pattern.keeps && format!("{}/", pattern.text).starts_with(&prefix))
    }
}

/// As Go's `filepath.Clean`, and without a slash in front.
fn cleaned(text: &str) -> String {
    let rooted = text.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(last) if *last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    if parts.is_empty() {
        return if rooted { "/" } else { "." }.to_owned();
    }
    parts.join("/")
}

/// A pattern as a regular expression over the whole path.
fn translate(pattern: &str) -> Result<String, PatternError> {
    let bad = || PatternError(format!("syntax error in pattern {pattern:?}"));
    let characters: Vec<char> = pattern.chars().collect();
    let mut out = String::from("^");
    let mut at = 0;
    while let Some(character) = characters.get(at) {
        at += 1;
        match character {
            '*' if characters.get(at) == Some(&'*') => {
                at += 1;
                // `**/` is `**` too.
                if characters.get(at) == Some(&'/') {
                    at += 1;
                }
                if at == characters.len() {
                    out.push_str(".*");
                } else {
                    out.push_str("(.*/)?");
                }
            }
            '*' => out.push_str("[^/]*"),
            '?' => out.push_str("[^/]"),
            '\\' => {
                let escaped = characters.get(at).ok_or_else(bad)?;
                at += 1;
                out.push_str(&regex::escape(&escaped.to_string()));
            }
            '[' => {
                let end = class_end(&characters, at).ok_or_else(bad)?;
                out.push('[');
                let mut inner = &characters[at..end];
                if inner.first() == Some(&'^') {
                    out.push('^');
                    inner = &inner[1..];
                }
                let mut inner = inner.iter();
                while let Some(character) = inner.next() {
                    match character {
                        '-' => out.push('-'),
                        '\\' => {
                            let escaped = inner.next().ok_or_else(bad)?;
                            push_in_class(&mut out, *escaped);
                        }
                        other => push_in_class(&mut out, *other),
                    }
                }
                out.push(']');
                at = end + 1;
            }
            other => out.push_str(&regex::escape(&other.to_string())),
        }
    }
    out.push('$');
    Ok(out)
}

fn push_in_class(out: &mut String, character: char) {
    if !character.is_alphanumeric() {
        out.push('\\');
    }
    out.push(character);
}

fn class_end(characters: &[char], start: usize) -> Option<usize> {
    let mut at = start;
    if characters.get(at) == Some(&'^') {
        at += 1;
    }
    let first = at;
    while let Some(character) = characters.get(at) {
        match character {
            ']' if at > first => return Some(at),
            '\\' => at += 2,
            _ => at += 1,
        }
    }
    None
}

/// Go's `filepath.Match` for one part of a path: `*`, `?`, `[…]`, `\`. A malformed pattern
/// matches nothing. Time is bounded by the product of the lengths.
pub fn glob_matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        let step = pattern.get(p).and_then(|byte| match byte {
            b'*' => None,
            b'?' => Some(1),
            b'[' => class_matches(&pattern[p..], text[t]),
            b'\\' => (pattern.get(p + 1) == Some(&text[t])).then_some(2),
            byte => (*byte == text[t]).then_some(1),
        });
        if pattern.get(p) == Some(&b'*') {
            star = Some((p, t));
            p += 1;
        } else if let Some(length) = step {
            p += length;
            t += 1;
        } else if let Some((at, taken)) = star {
            star = Some((at, taken + 1));
            p = at + 1;
            t = taken + 1;
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|byte| *byte == b'*')
}

/// The length of the class at the pattern's head if it has the byte.
fn class_matches(pattern: &[u8], byte: u8) -> Option<usize> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let mut found = false;
    let mut first = true;
    loop {
        let low = *pattern.get(at)?;
        if low == b']' && !first {
            return (found != negated).then_some(at + 1);
        }
        first = false;
        let one = |at: &mut usize| -> Option<u8> {
            let mut byte = *pattern.get(*at)?;
            if byte == b'\\' {
                *at += 1;
                byte = *pattern.get(*at)?;
            }
            *at += 1;
            Some(byte)
        };
        let low = one(&mut at)?;
        let mut high = low;
        if pattern.get(at) == Some(&b'-') && pattern.get(at + 1) != Some(&b']') {
            at += 1;
            high = one(&mut at)?;
        }
        found |= (low..=high).contains(&byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(patterns: &str, path: &str) -> bool {
        IgnoreFile::parse(patterns.as_bytes())
            .unwrap()
            .excludes(Path::new(path))
    }

    #[test]
    fn rules() {
        for (patterns, path, expected) in [
            ("a", "a", true),
            ("a", "a/b", true),
            ("/a/", "a/b", true),
            ("a", "b/a", false),
            ("*/a", "b/a", true),
            ("*/a", "b/c/a", false),
            ("**/a", "b/c/a", true),
            ("**/a", "a", true),
            ("**", "x/y", true),
            ("a/**", "a/b/c", true),
            ("*.md\n!README.md", "README.md", false),
            ("*.md\n!README.md", "X.md", true),
            (
                "*.md\n!README*.md\nREADME-secret.md",
                "README-secret.md",
                true,
            ),
            ("README-secret.md\n!README*.md", "README-secret.md", false),
            ("dir\n!dir/keep", "dir/keep/x", false),
            ("dir\n!dir/keep", "dir/other", true),
            ("# comment\n\n  a  ", "a", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("./a/../b", "b", true),
            ("a.b", "axb", false),
            ("a+b$", "a+b$", true),
            ("**/*.go", "a/b/c.go", true),
            ("a**/c", "ab/c", true),
        ] {
            assert_eq!(excluded(patterns, path), expected, "{patterns:?} {path}");
        }
        for bad in ["[", "a\\", "!", "[z-a]"] {
            assert!(IgnoreFile::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        let file = IgnoreFile::parse(b"dir\n!dir/keep\n!*/x").unwrap();
        assert!(file.may_keep_below(Path::new("dir")));
        assert!(!file.may_keep_below(Path::new("other")));
    }

    #[test]
    fn wildcards() {
        for (pattern, text, expected) in [
            ("*", "anything", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?", "x", true),
            ("?", "", false),
            ("[a-c]?", "b1", true),
            ("[^a-c]", "b", false),
            ("[]", "x", false),
            ("[a", "a", false),
            ("\\*", "*", true),
            ("*.txt", ".txt", true),
        ] {
            assert_eq!(
                glob_matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }
}
