//! Files of `KEY=value` lines (`--env-file`, `--label-file`).

use std::io;

/// The longest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;

/// What a line that has only a key becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BareKey {
    /// The key with this process's environment's value; dropped if there is none.
    Environment,
    /// The key without a value.
    Keep,
}

/// The words for a failed system call that Go uses.
pub fn go_error(path: &str, operation: &str, error: &io::Error) -> String {
    let text = match error.raw_os_error() {
        Some(_) => {
            let text = error.to_string();
            let text = text
                .split(" (os error")
                .next()
                .unwrap_or_default()
                .to_owned();
            let mut chars = text.chars();
            match chars.next() {
                Some(first) => first.to_lowercase().collect::<String>() + chars.as_str(),
                None => text,
            }
        }
        None => error.to_string(),
    };
    format!("{operation} {path}: {text}")
}

/// Reads the lines of the files in turn, then the values from the command line.
pub fn key_values(files: &[String], own: &[String], bare: BareKey) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    for path in files {
        let metadata = std::fs::metadata(path).map_err(|e| go_error(path, "open", &e))?;
        if metadata.len() > MAX_FILE {
            return Err(format!("{path}: larger than {MAX_FILE} bytes"));
        }
        let bytes = std::fs::read(path).map_err(|e| go_error(path, "open", &e))?;
        parse(path, &bytes, bare, &mut all)?;
    }
    all.extend_from_slice(own);
    Ok(all)
}

fn parse(path: &str, bytes: &[u8], bare: BareKey, all: &mut Vec<String>) -> Result<(), String> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    for (index, line) in bytes.split(|b| *b == b'\n').enumerate() {
        let wrong = |what: &str| format!("invalid env file ({path}): {what} at line {}", index + 1);
        let line = std::str::from_utf8(line).map_err(|_| wrong("invalid utf8 bytes"))?;
        let line = line.strip_suffix('\r').unwrap_or(line).trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (key, value) = match line.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (line, None),
        };
        if key.is_empty() {
            return Err(wrong("no variable name on line"));
        }
        let name = key.trim_end();
        if key.contains([' ', '\t']) && (value.is_some() || name.contains([' ', '\t'])) {
            return Err(format!(
                "invalid env file ({path}): variable '{key}' contains whitespaces"
            ));
        }
        match (value, bare) {
            (Some(value), _) => all.push(format!("{key}={value}")),
            (None, BareKey::Keep) => all.push(name.to_owned()),
            (None, BareKey::Environment) => {
                if let Some(value) = std::env::var_os(name) {
                    all.push(format!("{name}={}", value.to_string_lossy()));
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        parse("f", text.as_bytes(), BareKey::Keep, &mut all).map(|()| all)
    }

    #[test]
    fn comments_blanks_and_values() {
        let text = "\u{feff}A=1\n# no\n\n  B=x y \r\nC\nD==\n";
        assert_eq!(lines(text).unwrap(), ["A=1", "B=x y ", "C", "D=="]);
        assert!(lines("=x").unwrap_err().contains("no variable name"));
        assert!(lines("a b=c").unwrap_err().contains("whitespaces"));
    }

    #[test]
    fn missing_files_have_gos_words() {
        assert_eq!(
            key_values(&["/nope".to_owned()], &[], BareKey::Keep).unwrap_err(),
            "open /nope: no such file or directory"
        );
    }
}
