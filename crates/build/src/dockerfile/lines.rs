//! From a file's bytes to logical lines: parser directives, continuation, comments, heredocs.
//! Knows no instruction but those that take heredocs.

use super::{MAX_DOCKERFILE_BYTES, MAX_HEREDOCS, ParseError};

/// A logical line: continued ones joined, with the heredocs that it opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it begins, from 1.
    pub number: usize,
    /// Its text.
    pub text: String,
    /// In the order in which they are opened.
    pub heredocs: Vec<Heredoc>,
}

/// A heredoc of `RUN`, `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it; for `COPY` and `ADD` also the file's name.
    pub name: String,
    /// Before the `<<`: the descriptor.
    pub descriptor: String,
    /// The lines, each with its newline.
    pub content: String,
    /// Whether variables are replaced in it: its name was not quoted.
    pub expand: bool,
    /// `<<-`: leading tabs go.
    pub chomp: bool,
}

/// A file in logical lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lines {
    /// The escape character: backslash or backtick.
    pub escape: char,
    /// The lines, without comments and blank ones.
    pub lines: Vec<Line>,
}

/// Splits a file.
pub fn split(bytes: &[u8]) -> Result<Lines, ParseError> {
    if bytes.len() > MAX_DOCKERFILE_BYTES {
        return Err(ParseError::whole(format!(
            "the Dockerfile is over {MAX_DOCKERFILE_BYTES} bytes"
        )));
    }
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let text = String::from_utf8_lossy(bytes);
    let physical: Vec<&str> = text
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .collect();
    let escape = directives(&physical)?;
    let mut lines = Vec::new();
    let mut at = 0;
    while at < physical.len() {
        let number = at + 1;
        let first = physical[at].trim_start();
        at += 1;
        if first.is_empty() || is_comment(first) {
            continue;
        }
        let (mut text, mut continued) = continuation(first, escape);
        while continued && at < physical.len() {
            let next = physical[at];
            at += 1;
            // Comments and blank lines do not end a continued one.
            if is_comment(next) || next.trim().is_empty() {
                continue;
            }
            let (part, goes_on) = continuation(next, escape);
            text.push_str(&part);
            continued = goes_on;
        }
        let mut heredocs = Vec::new();
        for mut heredoc in openings(&text, escape) {
            if heredocs.len() == MAX_HEREDOCS {
                return Err(ParseError::at(number, "too many heredocs in one line"));
            }
            let mut closed = false;
            while at < physical.len() && !closed {
                let mut line = physical[at];
                at += 1;
                if heredoc.chomp {
                    line = line.trim_start_matches('\t');
                }
                closed = line == heredoc.name;
                if !closed {
                    heredoc.content.push_str(line);
                    heredoc.content.push('\n');
                }
            }
            if !closed {
                return Err(ParseError::at(number, "unterminated heredoc"));
            }
            heredocs.push(heredoc);
        }
        let text = text.trim_end().to_owned();
        if !text.is_empty() {
            lines.push(Line {
                number,
                text,
                heredocs,
            });
        }
    }
    Ok(Lines { escape, lines })
}

/// The directives at the head of the file: `# name=value`. The first line that is none ends
/// them.
fn directives(lines: &[&str]) -> Result<char, ParseError> {
    let mut escape = None;
    let mut seen: Vec<String> = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        let Some((name, value)) = directive(line) else {
            break;
        };
        if !matches!(name.as_str(), "escape" | "syntax" | "check") {
            break;
        }
        if seen.contains(&name) {
            let why = format!("only one {name} parser directive can be used");
            return Err(ParseError::at(index + 1, why));
        }
        if name == "escape" {
            escape = Some(match value {
                "\\" => '\\',
                "`" => '`',
                other => {
                    let why = format!("invalid ESCAPE '{other}'. Must be ` or \\");
                    return Err(ParseError::at(index + 1, why));
                }
            });
        }
        seen.push(name);
    }
    Ok(escape.unwrap_or('\\'))
}

fn directive(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.trim().strip_prefix('#')?.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    let valid = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && !value.is_empty();
    valid.then(|| (name.to_ascii_lowercase(), value))
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

/// A physical line without its continuation mark, and whether it had one.
fn continuation(line: &str, escape: char) -> (String, bool) {
    let trimmed = line.trim_end_matches([' ', '\t']);
    match trimmed.strip_suffix(escape) {
        // An escaped escape character is text.
        Some(rest) if !rest.ends_with(escape) => (rest.to_owned(), true),
        _ => (line.to_owned(), false),
    }
}

/// The heredocs that a line opens. Only some instructions have them; `ONBUILD` may stand
/// before one.
fn openings(text: &str, escape: char) -> Vec<Heredoc> {
    let mut rest = text.trim_start();
    let mut instruction;
    loop {
        let (word, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        instruction = word.to_ascii_uppercase();
        rest = after.trim_start();
        if instruction != "ONBUILD" {
            break;
        }
    }
    if !matches!(instruction.as_str(), "RUN" | "COPY" | "ADD") || !rest.contains("<<") {
        return Vec::new();
    }
    let mut arguments = rest;
    while arguments.starts_with("--") {
        let after = arguments
            .split_once(char::is_whitespace)
            .map_or("", |(_, after)| after);
        arguments = after.trim_start();
    }
    if super::json_array(arguments).is_some() {
        return Vec::new();
    }
    crate::words::split(rest, escape)
        .iter()
        .filter_map(|word| opening(word))
        .collect()
}

/// `[n]<<[-]NAME`, where the name may be quoted.
fn opening(word: &str) -> Option<Heredoc> {
    let start = word
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(word.len());
    let (descriptor, rest) = word.split_at(start);
    let rest = rest.strip_prefix("<<")?;
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    if rest.is_empty() || rest.contains('<') {
        return None;
    }
    let mut name = String::new();
    let mut quote = None;
    let mut quoted = false;
    for character in rest.chars() {
        match (character, quote) {
            ('"' | '\'', None) => {
                quote = Some(character);
                quoted = true;
            }
            (character, Some(open)) if character == open => quote = None,
            ('\\', None) => quoted = true,
            (character, _) => name.push(character),
        }
    }
    if quote.is_some() || name.is_empty() {
        return None;
    }
    Some(Heredoc {
        name,
        descriptor: descriptor.to_owned(),
        content: String::new(),
        expand: !quoted,
        chomp,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(file: &str) -> Vec<String> {
        let lines = split(file.as_bytes()).unwrap().lines;
        lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn continuation_comments_and_directives() {
        assert_eq!(
            texts("# c\nFROM a\n\n  RUN x \\\n  # in between\n\n  y\n"),
            ["FROM a", "RUN x   y"]
        );
        assert_eq!(
            texts("# escape=`\r\nRUN x `\r\n y\r\nRUN z\\\r\n"),
            ["RUN x  y", "RUN z\\"]
        );
        assert_eq!(texts("RUN x \\\\\nRUN y"), ["RUN x \\\\", "RUN y"]);
        // After a comment a directive is a comment.
        assert_eq!(split(b"#\n# escape=`\nRUN x").unwrap().escape, '\\');
        assert_eq!(split(b"\xef\xbb\xbf#escape=`\nRUN x").unwrap().escape, '`');
        assert!(split(b"# escape=x\nRUN").is_err());
        assert!(split(b"# escape=`\n# escape=`\nRUN").is_err());
        assert_eq!(texts("RUN x \\"), ["RUN x"]);
    }

    #[test]
    fn heredocs() {
        let file =
            "RUN <<EOF cat && <<-'TWO' x\n a\nEOF\n\t\tb $c\n\tTWO\nCOPY <<a /b\nA\na\nFROM x";
        let lines = split(file.as_bytes()).unwrap().lines;
        assert_eq!(lines.len(), 3);
        let run = &lines[0].heredocs;
        assert_eq!(
            (run[0].content.as_str(), run[0].expand, run[0].chomp),
            (" a\n", true, false)
        );
        assert_eq!(
            (run[1].content.as_str(), run[1].expand, run[1].chomp),
            ("b $c\n", false, true)
        );
        assert_eq!(lines[1].heredocs[0].content, "A\n");
        assert_eq!(lines[2].number, 9);
        assert!(split(b"RUN <<EOF\nx").is_err());
        for none in [
            "RUN a << b",
            "RUN echo '<<EOF'",
            "RUN x<<EOF",
            "RUN [\"<<EOF\"]",
            "ENV a=<<b",
        ] {
            assert!(
                split(none.as_bytes()).unwrap().lines[0].heredocs.is_empty(),
                "{none}"
            );
        }
        let onbuild = split(b"ONBUILD RUN <<EOF\nx\nEOF\n").unwrap().lines;
        assert_eq!(onbuild[0].heredocs[0].content, "x\n");
    }
}
