//! Standard output and error. Output errors end the command quietly when the reader has gone.

use std::fmt::Display;
use std::io::{self, Write};

use crate::error::{CliError, CliResult};

/// Writes `text` to standard output as it is.
pub fn emit(text: impl AsRef<[u8]>) -> CliResult {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref())
        .and_then(|()| out.flush())
        .map_err(output_error)
}

/// Writes a line to standard output.
pub fn emit_line(line: impl Display) -> CliResult {
    emit(format!("{line}\n"))
}

/// Writes a line to standard error; there is nobody to tell if that fails.
pub fn complain(line: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// The failure that a broken standard output is.
pub fn output_error(source: io::Error) -> CliError {
    if source.kind() == io::ErrorKind::BrokenPipe {
        CliError::OutputClosed
    } else {
        CliError::io("write /dev/stdout", source)
    }
}

/// What a yes-or-no question of a destructive command is answered with on standard input.
pub fn confirm(question: &str) -> CliResult<bool> {
    emit(format!("{question} [y/N] "))?;
    let mut answer = String::new();
    io::stdin()
        .read_line(&mut answer)
        .map_err(|e| CliError::io("read /dev/stdin", e))?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}
