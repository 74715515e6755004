//! The stream of messages with which the daemon reports a pull, a push, a load or a build.
//!
//! On a terminal every layer has its line, which is redrawn in place; elsewhere only what
//! does not repeat is printed.

use std::io::{IsTerminal, Write};

use serde::Deserialize;
use serde_json::Value;

use crate::client::JsonStream;
use crate::error::{CliError, CliResult};
use crate::format::units;

/// A message.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Message {
    stream: String,
    status: String,
    id: String,
    progress: String,
    progress_detail: Option<Progress>,
    error: String,
    error_detail: Option<ErrorDetail>,
    aux: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Progress {
    current: i64,
    total: i64,
    units: String,
    hidecounts: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ErrorDetail {
    code: i64,
    message: String,
}

/// Where messages are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// On standard output.
    Stdout,
    /// On standard error.
    Stderr,
    /// Nowhere; failures are still reported.
    Nothing,
}

/// Shows the stream to its end; `aux` gets the daemon's extra values. A message with an error
/// is the failure.
pub async fn show(stream: JsonStream, show: Show, aux: impl FnMut(&Value)) -> CliResult {
    follow(stream, show, aux, |_| {}).await
}

/// Shows nothing of a stream, and gives its text; that of one that fails is shown on standard
/// error.
pub async fn quietly(stream: JsonStream) -> CliResult<String> {
    let mut said = String::new();
    let followed = follow(stream, Show::Nothing, |_| {}, |text| said.push_str(text)).await;
    if followed.is_err() {
        let mut err = std::io::stderr().lock();
        err.write_all(said.as_bytes())
            .map_err(crate::output::output_error)?;
    }
    followed.map(|()| said)
}

async fn follow(
    mut stream: JsonStream,
    show: Show,
    mut aux: impl FnMut(&Value),
    mut unshown: impl FnMut(&str),
) -> CliResult {
    let terminal = match show {
        Show::Stdout => std::io::stdout().is_terminal(),
        Show::Stderr => std::io::stderr().is_terminal(),
        Show::Nothing => false,
    };
    let mut screen = Screen {
        terminal,
        lines: Vec::new(),
    };
    while let Some(message) = stream.next::<Message>().await? {
        if let Some(value) = &message.aux {
            aux(value);
            continue;
        }
        let failed = match &message.error_detail {
            Some(detail) if !detail.message.is_empty() => Some((detail.code, &detail.message)),
            _ if !message.error.is_empty() => Some((0, &message.error)),
            _ => None,
        };
        if let Some((code, text)) = failed {
            let code = i32::try_from(code)
                .ok()
                .filter(|c| *c > 0 && *c < 256)
                .unwrap_or(1);
            return Err(CliError::Status {
                message: text.clone(),
                code,
            });
        }
        let text = screen.render(&message);
        let written = match show {
            Show::Nothing => {
                unshown(&text);
                Ok(())
            }
            Show::Stdout => {
                let mut out = std::io::stdout().lock();
                out.write_all(text.as_bytes()).and_then(|()| out.flush())
            }
            Show::Stderr => std::io::stderr().lock().write_all(text.as_bytes()),
        };
        written.map_err(crate::output::output_error)?;
    }
    Ok(())
}

/// The lines on the terminal that are redrawn.
struct Screen {
    terminal: bool,
    lines: Vec<String>,
}

impl Screen {
    fn render(&mut self, message: &Message) -> String {
        let body = message.line();
        let moving = message
            .progress_detail
            .as_ref()
            .is_some_and(|p| p.current > 0)
            || !message.progress.is_empty();
        if !self.terminal {
            return if moving { String::new() } else { body };
        }
        if message.id.is_empty() || (!message.stream.is_empty()) {
            // Ordinary text ends the block of redrawn lines.
            self.lines.clear();
            return body;
        }
        let body = body.trim_end_matches('\n').to_owned();
        let (up, new) = match self.lines.iter().position(|id| *id == message.id) {
            Some(line) => (self.lines.len() - line, false),
            None => {
                self.lines.push(message.id.clone());
                (0, true)
            }
        };
        if new {
            return format!("{body}\n");
        }
        format!("\x1b[{up}A\r\x1b[2K{body}\r\x1b[{up}B")
    }
}

impl Message {
    /// The message as a line.
    fn line(&self) -> String {
        if !self.stream.is_empty() {
            return self.stream.clone();
        }
        let prefix = if self.id.is_empty() {
            String::new()
        } else {
            format!("{}: ", self.id)
        };
        let bar = match &self.progress_detail {
            Some(progress) => progress.bar(),
            None => self.progress.clone(),
        };
        let gap = if bar.is_empty() { "" } else { " " };
        format!("{prefix}{}{gap}{bar}\n", self.status)
    }
}

impl Progress {
    fn bar(&self) -> String {
        if self.current <= 0 && self.total <= 0 {
            return String::new();
        }
        let count = |n: i64| match self.units.as_str() {
            "" => units::size4(units::float(n)),
            unit => format!("{n} {unit}"),
        };
        if self.total <= 0 || self.current > self.total {
            return format!("{:>8}", count(self.current));
        }
        let halves = usize::try_from(self.current * 50 / self.total)
            .unwrap_or(0)
            .min(50);
        let counts = if self.hidecounts {
            String::new()
        } else {
            format!("{:>8}/{}", count(self.current), count(self.total))
        };
        format!(
            "[{}>{}] {counts}",
            "=".repeat(halves),
            " ".repeat(50 - halves)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(json: Value) -> Message {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn lines() {
        let line = |json| message(json).line();
        assert_eq!(
            line(serde_json::json!({"status": "Pulling", "id": "x"})),
            "x: Pulling\n"
        );
        assert_eq!(
            line(serde_json::json!({"stream": "Loaded image: x\n"})),
            "Loaded image: x\n"
        );
        let bar = line(serde_json::json!({"status": "Downloading", "id": "x",
            "progressDetail": {"current": 5_000_000, "total": 10_000_000}}));
        assert!(
            bar.starts_with("x: Downloading [=========================>"),
            "{bar}"
        );
        assert!(bar.ends_with("     5MB/10MB\n"), "{bar}");
    }

    #[test]
    fn moving_lines_are_left_out_without_a_terminal() {
        let mut screen = Screen {
            terminal: false,
            lines: Vec::new(),
        };
        let moving = serde_json::json!({"status": "D", "id": "x", "progressDetail": {"current": 1, "total": 2}});
        assert_eq!(screen.render(&message(moving)), "");
        assert_eq!(
            screen.render(&message(serde_json::json!({"status": "Done", "id": "x"}))),
            "x: Done\n"
        );
    }
}
