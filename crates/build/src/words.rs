//! Words of a Dockerfile: splitting at blanks, quotes, escapes, and the substitution of
//! variables with all modifiers of the Dockerfile reference.

use std::fmt::Write as _;

/// Longest result of one substitution, bytes: `ENV A=$A$A` again and again doubles it.
const MAX_RESULT: usize = 1 << 20;
/// Deepest nesting of `${a:-${b:-…}}`.
const MAX_DEPTH: usize = 32;

/// Why a text cannot be expanded.
pub type WordError = String;

/// Splits at blanks outside quotes. Quotes and escapes stay.
pub fn split(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            (character, None | Some('"')) if character == escape => {
                word.push(character);
                word.extend(characters.next());
            }
            ('"' | '\'', None) => {
                quote = Some(character);
                word.push(character);
            }
            (character, Some(open)) if character == open => {
                quote = None;
                word.push(character);
            }
            (blank, None) if blank.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (character, _) => word.push(character),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Where values come from.
pub trait Variables {
    /// The value of a variable that is set.
    fn get(&self, name: &str) -> Option<String>;
}

impl Variables for Vec<String> {
    fn get(&self, name: &str) -> Option<String> {
        self.iter()
            .rev()
            .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
            .map(str::to_owned)
    }
}

/// Takes quotes and escapes away and puts variables in.
///
/// # Errors
/// An open quote or brace, an unknown modifier, `${x:?message}` of an unset variable, a
/// result over the bound.
pub fn expand(text: &str, escape: char, variables: &dyn Variables) -> Result<String, WordError> {
    Ok(run(text, escape, variables)?.text)
}

/// The same, and then splits at blanks that were not quoted, also in values.
///
/// # Errors
/// As [`expand`].
pub fn expand_to_words(
    text: &str,
    escape: char,
    variables: &dyn Variables,
) -> Result<Vec<String>, WordError> {
    let mut lexer = run(text, escape, variables)?;
    lexer.end_word();
    Ok(lexer.words)
}

fn run<'a>(text: &str, escape: char, variables: &'a dyn Variables) -> Result<Lexer<'a>, WordError> {
    let mut lexer = Lexer {
        input: text.chars().collect(),
        at: 0,
        escape,
        variables,
        depth: 0,
        text: String::new(),
        words: Vec::new(),
        word: String::new(),
        in_word: false,
    };
    let result = lexer.until(None, false)?;
    lexer.text = result;
    Ok(lexer)
}

/// Replaces variables in a heredoc's text: quotes are text there.
///
/// # Errors
/// As [`expand`].
pub fn expand_heredoc(
    text: &str,
    escape: char,
    variables: &dyn Variables,
) -> Result<String, WordError> {
    let mut lexer = Lexer {
        input: text.chars().collect(),
        at: 0,
        escape,
        variables,
        depth: 0,
        text: String::new(),
        words: Vec::new(),
        word: String::new(),
        in_word: false,
    };
    lexer.until(None, true)
}

struct Lexer<'a> {
    input: Vec<char>,
    at: usize,
    escape: char,
    variables: &'a dyn Variables,
    depth: usize,
    text: String,
    words: Vec<String>,
    word: String,
    in_word: bool,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.input.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    fn end_word(&mut self) {
        if self.in_word {
            self.words.push(std::mem::take(&mut self.word));
            self.in_word = false;
        }
    }

    /// Text that may hold blanks which separate words.
    fn add(&mut self, text: &str) {
        for character in text.chars() {
            if character.is_whitespace() {
                self.end_word();
            } else {
                self.in_word = true;
                self.word.push(character);
            }
        }
    }

    /// Text that stays together.
    fn add_raw(&mut self, text: &str) {
        self.in_word = true;
        self.word.push_str(text);
    }

    fn check(&self, result: &str) -> Result<(), WordError> {
        if result.len() > MAX_RESULT || self.word.len() > MAX_RESULT {
            return Err(format!(
                "the substitution's result is over {MAX_RESULT} bytes"
            ));
        }
        Ok(())
    }

    /// Reads to the stop character (which is consumed) or to the end.
    fn until(&mut self, stop: Option<char>, plain_quotes: bool) -> Result<String, WordError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("substitutions are nested too deeply".to_owned());
        }
        let mut result = String::new();
        loop {
            let Some(character) = self.next() else {
                if let Some(stop) = stop {
                    return Err(format!(
                        "unexpected end of statement while looking for matching {stop}"
                    ));
                }
                break;
            };
            if Some(character) == stop {
                break;
            }
            match character {
                '\'' if !plain_quotes => {
                    let text = self.single_quoted()?;
                    self.add_raw(&text);
                    result.push_str(&text);
                }
                '"' if !plain_quotes => {
                    let text = self.double_quoted()?;
                    self.add_raw(&text);
                    result.push_str(&text);
                }
                '$' => {
                    let text = self.dollar()?;
                    self.add(&text);
                    result.push_str(&text);
                }
                character if character == self.escape => match self.next() {
                    // In a heredoc only what would mean something is escaped.
                    Some(escaped) if plain_quotes && !self.means_something(escaped) => {
                        result.push(character);
                        result.push(escaped);
                    }
                    Some(escaped) => {
                        self.add_raw(escaped.encode_utf8(&mut [0; 4]));
                        result.push(escaped);
                    }
                    None if plain_quotes => result.push(character),
                    None => {}
                },
                other => {
                    self.add(other.encode_utf8(&mut [0; 4]));
                    result.push(other);
                }
            }
            self.check(&result)?;
        }
        self.depth -= 1;
        Ok(result)
    }

    fn means_something(&self, character: char) -> bool {
        character == '$' || character == self.escape
    }

    fn single_quoted(&mut self) -> Result<String, WordError> {
        let mut text = String::new();
        loop {
            match self.next() {
                None => {
                    return Err(
                        "unexpected end of statement while looking for matching single-quote"
                            .to_owned(),
                    );
                }
                Some('\'') => return Ok(text),
                Some(character) => text.push(character),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<String, WordError> {
        let mut text = String::new();
        loop {
            let Some(character) = self.next() else {
                return Err(
                    "unexpected end of statement while looking for matching double-quote"
                        .to_owned(),
                );
            };
            match character {
                '"' => return Ok(text),
                '$' => {
                    let value = self.dollar()?;
                    text.push_str(&value);
                    self.check(&text)?;
                }
                character if character == self.escape => match self.next() {
                    Some(next) if next == '"' || self.means_something(next) => text.push(next),
                    Some(next) => {
                        text.push(character);
                        text.push(next);
                    }
                    None => text.push(character),
                },
                character => text.push(character),
            }
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.peek() {
            Some(first) if first.is_ascii_digit() => {
                while let Some(digit) = self.peek().filter(char::is_ascii_digit) {
                    name.push(digit);
                    self.at += 1;
                }
            }
            Some(first) if first.is_ascii_alphabetic() || first == '_' => {
                while let Some(part) = self
                    .peek()
                    .filter(|c| c.is_ascii_alphanumeric() || *c == '_')
                {
                    name.push(part);
                    self.at += 1;
                }
            }
            Some(special @ ('@' | '*' | '#')) => {
                name.push(special);
                self.at += 1;
            }
            _ => {}
        }
        name
    }

    /// What stands behind a `$`.
    fn dollar(&mut self) -> Result<String, WordError> {
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(self.variables.get(&name).unwrap_or_default());
        }
        self.at += 1;
        let name = self.name();
        if name.is_empty() {
            return Err("syntax error: bad substitution".to_owned());
        }
        let value = self.variables.get(&name);
        let Some(modifier) = self.next() else {
            return Err("syntax error: missing '}'".to_owned());
        };
        match modifier {
            '}' => Ok(value.unwrap_or_default()),
            ':' => {
                let Some(kind) = self.next() else {
                    return Err("syntax error: missing '}'".to_owned());
                };
                let word = self.modifier_word()?;
                // With a colon, empty counts as unset.
                let set = value.filter(|value| !value.is_empty());
                choose(&name, kind, set, word, true)
            }
            '+' | '-' | '?' => {
                let word = self.modifier_word()?;
                choose(&name, modifier, value, word, false)
            }
            '#' | '%' => {
                let greedy = self.peek() == Some(modifier);
                self.at += usize::from(greedy);
                let pattern = self.raw_until_brace()?;
                Ok(strip(
                    &value.unwrap_or_default(),
                    &pattern,
                    modifier == '#',
                    greedy,
                ))
            }
            '/' => {
                let all = self.peek() == Some('/');
                self.at += usize::from(all);
                let text = self.raw_until_brace()?;
                let (pattern, replacement) = split_replacement(&text);
                Ok(replace(
                    &value.unwrap_or_default(),
                    &pattern,
                    &replacement,
                    all,
                ))
            }
            other => Err(format!("unsupported modifier ({other}) in substitution")),
        }
    }

    /// The word of a modifier, up to the brace. It adds nothing to the words by itself.
    fn modifier_word(&mut self) -> Result<String, WordError> {
        let kept = (
            std::mem::take(&mut self.word),
            std::mem::take(&mut self.words),
        );
        let in_word = std::mem::replace(&mut self.in_word, false);
        let result = self.until(Some('}'), false);
        (self.word, self.words) = kept;
        self.in_word = in_word;
        result.map_err(|error| {
            if error.ends_with("matching }") {
                "syntax error: missing '}'".to_owned()
            } else {
                error
            }
        })
    }

    /// A pattern: variables are put in, escapes stay for the matcher.
    fn raw_until_brace(&mut self) -> Result<String, WordError> {
        let mut text = String::new();
        loop {
            match self.next() {
                None => return Err("syntax error: missing '}'".to_owned()),
                Some('}') => return Ok(text),
                Some('$') => {
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err("substitutions are nested too deeply".to_owned());
                    }
                    let value = self.dollar()?;
                    self.depth -= 1;
                    text.push_str(&value);
                    self.check(&text)?;
                }
                Some(character) if character == self.escape => {
                    text.push('\\');
                    text.extend(self.next());
                }
                Some(character) => text.push(character),
            }
        }
    }
}

fn choose(
    name: &str,
    kind: char,
    set: Option<String>,
    word: String,
    colon: bool,
) -> Result<String, WordError> {
    match (kind, set) {
        ('-', Some(value)) | ('?', Some(value)) => Ok(value),
        ('-', None) => Ok(word),
        ('+', Some(_)) => Ok(word),
        ('+', None) => Ok(String::new()),
        ('?', None) => {
            let mut why = format!("{name}: ");
            let missing = if colon { "not set or empty" } else { "not set" };
            let _ = write!(why, "{}", if word.is_empty() { missing } else { &word });
            Err(why)
        }
        (other, _) => Err(format!(
            "unsupported modifier ({}{other}) in substitution",
            if colon { ":" } else { "" }
        )),
    }
}

/// One part of a pattern of `${x#…}`.
#[derive(Clone, Copy)]
enum Part {
    Any,
    One,
    Exactly(char),
}

fn parts(pattern: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    let mut characters = pattern.chars();
    while let Some(character) = characters.next() {
        parts.push(match character {
            '*' => Part::Any,
            '?' => Part::One,
            '\\' => match characters.next() {
                Some(escaped) => Part::Exactly(escaped),
                None => Part::Exactly('\\'),
            },
            other => Part::Exactly(other),
        });
    }
    parts
}

/// Every length of a prefix of `text` that the pattern matches, in one pass over both.
fn prefix_matches(text: &[char], pattern: &[Part]) -> Vec<usize> {
    // reachable[j]: the pattern's first j parts match what was read so far.
    let mut reachable = vec![false; pattern.len() + 1];
    reachable[0] = true;
    let close = |reachable: &mut Vec<bool>| {
        for (index, part) in pattern.iter().enumerate() {
            if reachable[index] && matches!(part, Part::Any) {
                reachable[index + 1] = true;
            }
        }
    };
    close(&mut reachable);
    let mut lengths = Vec::new();
    if reachable[pattern.len()] {
        lengths.push(0);
    }
    for (length, character) in text.iter().enumerate() {
        let mut next = vec![false; pattern.len() + 1];
        for (index, part) in pattern.iter().enumerate() {
            if reachable[index] {
                match part {
                    Part::Any => next[index] = true,
                    Part::One => next[index + 1] = true,
                    Part::Exactly(wanted) => next[index + 1] |= wanted == character,
                }
            }
        }
        close(&mut next);
        reachable = next;
        if !reachable.contains(&true) {
            break;
        }
        if reachable[pattern.len()] {
            lengths.push(length + 1);
        }
    }
    lengths
}

fn strip(value: &str, pattern: &str, front: bool, greedy: bool) -> String {
    let mut text: Vec<char> = value.chars().collect();
    let mut parts = parts(pattern);
    if !front {
        text.reverse();
        parts.reverse();
    }
    let lengths = prefix_matches(&text, &parts);
    let length = if greedy {
        lengths.last()
    } else {
        lengths.first()
    };
    text.drain(..length.copied().unwrap_or(0));
    if !front {
        text.reverse();
    }
    text.into_iter().collect()
}

fn split_replacement(text: &str) -> (String, String) {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        match character {
            '\\' if !escaped => escaped = true,
            '/' if !escaped => {
                let pattern = text[..at].replace("\\/", "/");
                return (pattern, unescape(&text[at + 1..]));
            }
            _ => escaped = false,
        }
    }
    (text.replace("\\/", "/"), String::new())
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => out.extend(characters.next()),
            other => out.push(other),
        }
    }
    out
}

/// Longest values in which patterns are replaced: the search takes quadratic time.
const MAX_REPLACE: usize = 64 << 10;

fn replace(value: &str, pattern: &str, replacement: &str, all: bool) -> String {
    let text: Vec<char> = value.chars().collect();
    let parts = parts(pattern);
    let mut out = String::new();
    let mut at = 0;
    if parts.is_empty() || text.len() > MAX_REPLACE {
        return value.to_owned();
    }
    while at < text.len() {
        let longest = prefix_matches(&text[at..], &parts).last().copied();
        match longest {
            Some(length) if length > 0 => {
                out.push_str(replacement);
                at += length;
                if !all {
                    break;
                }
                if out.len() > MAX_RESULT {
                    break;
                }
            }
            _ => {
                out.push(text[at]);
                at += 1;
            }
        }
    }
    out.extend(&text[at..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env() -> Vec<String> {
        ["A=a value", "E=", "P=/usr/local/bin.tar.gz", "N=3"]
            .map(str::to_owned)
            .to_vec()
    }

    #[test]
    fn every_form() {
        for (text, expected) in [
            ("$A", "a value"),
            ("${A}x", "a valuex"),
            ("'$A'", "$A"),
            ("\"$A\"", "a value"),
            ("\\$A", "$A"),
            ("a\\ b", "a b"),
            ("\"\\a\\\"\"", "\\a\""),
            ("$", "$"),
            ("$-", "$-"),
            ("${U:-d}", "d"),
            ("${E:-d}", "d"),
            ("${E-d}", ""),
            ("${U-d}", "d"),
            ("${A:+x}", "x"),
            ("${E:+x}", ""),
            ("${E+x}", "x"),
            ("${U+x}", ""),
            ("${U:-${N}/${E:-z}}", "3/z"),
            ("${U:-\"}\"}", "}"),
            ("${A:?no}", "a value"),
            ("${P#*/}", "usr/local/bin.tar.gz"),
            ("${P##*/}", "bin.tar.gz"),
            ("${P%.*}", "/usr/local/bin.tar"),
            ("${P%%.*}", "/usr/local/bin"),
            ("${P/local/share}", "/usr/share/bin.tar.gz"),
            ("${P//\\//_}", "_usr_local_bin.tar.gz"),
            ("${P/nothing/x}", "/usr/local/bin.tar.gz"),
            ("${A/a}", " value"),
            ("$UNSET", ""),
            ("x\\", "x"),
        ] {
            assert_eq!(
                expand(text, '\\', &env()).as_deref(),
                Ok(expected),
                "{text}"
            );
        }
        assert_eq!(expand("C:\\$N`$N", '`', &env()).as_deref(), Ok("C:\\3$N"));
        for bad in [
            "'a",
            "\"a",
            "${A",
            "${A:",
            "${A:-b",
            "${A!}",
            "${A:=x}",
            "${}",
            "${U:?gone}",
            "${U?}",
        ] {
            assert!(expand(bad, '\\', &env()).is_err(), "{bad}");
        }
        assert_eq!(
            expand("${U:?gone}", '\\', &env()),
            Err("U: gone".to_owned())
        );
    }

    #[test]
    fn words_and_heredocs() {
        let words = |text| expand_to_words(text, '\\', &env()).unwrap();
        assert_eq!(words("x$A \"$A\" y"), ["xa", "value", "a value", "y"]);
        assert_eq!(words("${U:-8 9}"), ["8", "9"]);
        assert_eq!(words("''"), [""]);
        assert_eq!(
            split("a \"b c\" d\\ e 'f\\' g", '\\'),
            ["a", "\"b c\"", "d\\ e", "'f\\'", "g"]
        );
        let text = "say \"$A\" it's \\$A \\n";
        assert_eq!(
            expand_heredoc(text, '\\', &env()).unwrap(),
            "say \"a value\" it's $A \\n"
        );
    }

    #[test]
    fn bounds() {
        let deep = "${U:-".repeat(100) + &"}".repeat(100);
        assert!(expand(&deep, '\\', &env()).is_err());
        let long = vec![format!("L={}", "x".repeat(300_000))];
        assert!(expand("$L$L$L$L", '\\', &long).is_err());
    }
}
