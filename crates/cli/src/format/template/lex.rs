//! Splits a template into text and the tokens of its actions.

use super::TemplateError;

/// A piece of an action.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// `.`
    Dot,
    /// `.Name`
    Field(String),
    /// `$` or `$name`, with the `$`.
    Variable(String),
    /// A function's name or a keyword.
    Word(String),
    /// A string constant, unquoted.
    Text(String),
    /// A number constant.
    Number(serde_json::Number),
    /// `(`
    Open,
    /// `)`
    Close,
    /// `|`
    Pipe,
    /// `,`
    Comma,
    /// `:=`
    Declare,
    /// `=`
    Assign,
    /// Blanks that separate operands.
    Space,
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    /// Text to copy.
    Text(String),
    /// An action: its tokens with their byte positions.
    Action(Vec<(usize, Token)>),
}

pub(super) fn line_of(text: &str, position: usize) -> usize {
    1 + text
        .as_bytes()
        .iter()
        .take(position)
        .filter(|b| **b == b'\n')
        .count()
}

fn fail<T>(text: &str, position: usize, message: impl Into<String>) -> Result<T, TemplateError> {
    Err(TemplateError(format!(
        "{}: {}",
        line_of(text, position),
        message.into()
    )))
}

/// Splits `text` into pieces. The words of actions are not checked yet.
pub(super) fn split(text: &str) -> Result<Vec<(usize, Piece)>, TemplateError> {
    let mut pieces = Vec::new();
    let mut at = 0;
    let mut trim_left = false;
    while at <= text.len() {
        let open = text[at..].find("{{").map(|o| at + o);
        let mut plain = &text[at..open.unwrap_or(text.len())];
        if trim_left {
            plain = plain.trim_start_matches([' ', '\t', '\r', '\n']);
        }
        let Some(open) = open else {
            if !plain.is_empty() {
                pieces.push((at, Piece::Text(plain.to_owned())));
            }
            break;
        };
        let mut body = open + 2;
        let after = &text.as_bytes()[body..];
        if after.first() == Some(&b'-') && after.get(1).is_some_and(u8::is_ascii_whitespace) {
            plain = plain.trim_end_matches([' ', '\t', '\r', '\n']);
            body += 2;
        }
        if !plain.is_empty() {
            pieces.push((at, Piece::Text(plain.to_owned())));
        }
        if text[body..].starts_with("/*") {
            let Some(end) = text[body..].find("*/").map(|e| body + e + 2) else {
                return fail(text, open, "unclosed comment");
            };
            let rest = text[end..].trim_start_matches([' ', '\t', '\r', '\n']);
            trim_left = rest.starts_with("-}}") && rest.len() < text.len() - end;
            let rest = if trim_left { &rest[1..] } else { &text[end..] };
            if !rest.starts_with("}}") {
                return fail(text, open, "comment ends before closing delimiter");
            }
            at = text.len() - rest.len() + 2;
            continue;
        }
        let (tokens, end, trimmed) = action(text, body)?;
        trim_left = trimmed;
        pieces.push((open, Piece::Action(tokens)));
        at = end;
    }
    Ok(pieces)
}

type Action = (Vec<(usize, Token)>, usize, bool);

/// The tokens of the action whose body begins at `at`; where it ends; whether it trims the
/// text after it.
fn action(text: &str, mut at: usize) -> Result<Action, TemplateError> {
    let mut tokens = Vec::new();
    loop {
        let rest = &text[at..];
        if rest.starts_with("}}") {
            return Ok((tokens, at + 2, false));
        }
        let Some(c) = rest.chars().next() else {
            return fail(text, at, "unclosed action");
        };
        let start = at;
        if c.is_ascii_whitespace() {
            let blanks = rest.len() - rest.trim_start_matches([' ', '\t', '\r', '\n']).len();
            if rest[blanks..].starts_with("-}}") {
                return Ok((tokens, at + blanks + 3, true));
            }
            at += blanks.max(1);
            tokens.push((start, Token::Space));
            continue;
        }
        let name = |from: usize| -> String {
            text[from..]
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect()
        };
        let token = match c {
            '(' => Token::Open,
            ')' => Token::Close,
            '|' => Token::Pipe,
            ',' => Token::Comma,
            '=' => Token::Assign,
            ':' if rest.starts_with(":=") => Token::Declare,
            '"' => {
                let (value, end) = quoted(text, at)?;
                at = end;
                tokens.push((start, Token::Text(value)));
                continue;
            }
            '`' => {
                let Some(end) = rest[1..].find('`') else {
                    return fail(text, at, "unterminated raw quoted string");
                };
                at += end + 2;
                tokens.push((start, Token::Text(rest[1..=end].to_owned())));
                continue;
            }
            '\'' => {
                let (value, end) = character(text, at)?;
                at = end;
                tokens.push((start, Token::Number(u32::from(value).into())));
                continue;
            }
            '$' => {
                let name = name(at + 1);
                at += 1 + name.len();
                tokens.push((start, Token::Variable(format!("${name}"))));
                continue;
            }
            '.' if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                let name = name(at + 1);
                at += 1 + name.len();
                let token = if name.is_empty() {
                    Token::Dot
                } else {
                    Token::Field(name)
                };
                tokens.push((start, token));
                continue;
            }
            '+' | '-' | '.' | '0'..='9' => {
                let body: String = rest
                    .chars()
                    .enumerate()
                    .take_while(|(i, c)| {
                        c.is_ascii_alphanumeric() || *c == '.' || (*i == 0 && "+-".contains(*c))
                    })
                    .map(|(_, c)| c)
                    .collect();
                let Some(number) = parse_number(&body) else {
                    return fail(text, at, format!("bad number syntax: {body:?}"));
                };
                at += body.len();
                tokens.push((start, Token::Number(number)));
                continue;
            }
            c if c.is_alphabetic() || c == '_' => {
                let name = name(at);
                at += name.len();
                tokens.push((start, Token::Word(name)));
                continue;
            }
            c => {
                return fail(
                    text,
                    at,
                    format!("unexpected bad character U+{:04X} {c:?}", u32::from(c)),
                );
            }
        };
        at += if token == Token::Declare { 2 } else { 1 };
        tokens.push((start, token));
    }
}

fn parse_number(body: &str) -> Option<serde_json::Number> {
    let plain = body.strip_prefix('+').unwrap_or(body);
    if let Ok(n) = plain.parse::<i64>() {
        return Some(n.into());
    }
    if let Some(hex) = plain
        .strip_prefix("0x")
        .or_else(|| plain.strip_prefix("0X"))
    {
        return i64::from_str_radix(hex, 16).ok().map(Into::into);
    }
    plain
        .parse::<f64>()
        .ok()
        .and_then(serde_json::Number::from_f64)
}

/// The string constant that begins at `at`, and where it ends.
fn quoted(text: &str, at: usize) -> Result<(String, usize), TemplateError> {
    let mut value = String::new();
    let mut position = at + 1;
    loop {
        let mut chars = text[position..].chars();
        match chars.next() {
            None | Some('\n') => return fail(text, at, "unterminated quoted string"),
            Some('"') => return Ok((value, position + 1)),
            Some('\\') => {
                let (c, used) = escape(text, position)?;
                value.push(c);
                position += used;
            }
            Some(c) => {
                value.push(c);
                position += c.len_utf8();
            }
        }
    }
}

fn character(text: &str, at: usize) -> Result<(char, usize), TemplateError> {
    let (value, used) = match text[at + 1..].chars().next() {
        Some('\\') => escape(text, at + 1)?,
        Some(c) if c != '\n' && c != '\'' => (c, c.len_utf8()),
        _ => return fail(text, at, "unterminated character constant"),
    };
    if !text[at + 1 + used..].starts_with('\'') {
        return fail(text, at, "unterminated character constant");
    }
    Ok((value, at + used + 2))
}

/// The character that the escape at `at` stands for, and the escape's length.
fn escape(text: &str, at: usize) -> Result<(char, usize), TemplateError> {
    let rest = &text[at + 1..];
    let code = |skip: usize, length: usize| -> Result<(char, usize), TemplateError> {
        match rest
            .get(skip..skip + length)
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .and_then(char::from_u32)
        {
            Some(c) => Ok((c, 1 + skip + length)),
            None => fail(text, at, "invalid syntax"),
        }
    };
    match rest.chars().next() {
        Some('n') => Ok(('\n', 2)),
        Some('t') => Ok(('\t', 2)),
        Some('r') => Ok(('\r', 2)),
        Some('a') => Ok(('\x07', 2)),
        Some('b') => Ok(('\x08', 2)),
        Some('f') => Ok(('\x0c', 2)),
        Some('v') => Ok(('\x0b', 2)),
        Some(c @ ('\\' | '"' | '\'')) => Ok((c, 2)),
        Some('x') => code(1, 2),
        Some('u') => code(1, 4),
        Some('U') => code(1, 8),
        _ => fail(text, at, "invalid syntax"),
    }
}
