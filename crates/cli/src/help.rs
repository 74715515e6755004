//! The help page of a command, in the layout of the Docker CLI.

use crate::command::{Command, Group};
use crate::flags::{Flag, Kind};
use crate::terminal;

/// Width of help when there is no terminal.
const DEFAULT_WIDTH: usize = 80;

/// The page for the command reached by `path`. `root_flags` is set for the program itself.
pub fn page(command: &Command, path: &str, root_flags: Option<&[Flag]>) -> String {
    let mut out = String::from("Usage:");
    if command.subs.is_empty() {
        out.push_str(&format!("  {}", command.usage_line(path)));
    } else {
        let options = if root_flags.is_some() {
            " [OPTIONS]"
        } else {
            ""
        };
        out.push_str(&format!("  {path}{options} COMMAND"));
    }
    out.push_str(&format!("\n\n{}", command.about));
    if !command.spellings.is_empty() {
        out.push_str(&format!("\n\nAliases:\n  {}", command.spellings.join(", ")));
    }
    let width = terminal::stdin_width().unwrap_or(DEFAULT_WIDTH).max(30) - 1;
    let usages = flag_usages(command.flags, width);
    if !usages.is_empty() {
        out.push_str(&format!("\n\nOptions:\n{usages}"));
    }
    for (title, group) in [
        ("Common Commands", Group::Common),
        ("Management Commands", Group::Management),
        ("Commands", Group::Other),
    ] {
        let mut members: Vec<&Command> = command.subs.iter().filter(|c| c.group == group).collect();
        if members.is_empty() {
            continue;
        }
        if group != Group::Common {
            members.sort_by_key(|c| c.name);
        }
        out.push_str(&format!("\n\n{title}:"));
        for member in members {
            out.push_str(&format!("\n  {:<11} {}", member.name, member.about));
        }
    }
    if let Some(flags) = root_flags {
        out.push_str(&format!(
            "\n\nGlobal Options:\n{}",
            flag_usages(&[flags], width)
        ));
    }
    if !command.subs.is_empty() {
        out.push_str(&format!(
            "\n\nRun '{path} COMMAND --help' for more information on a command."
        ));
    }
    out.push('\n');
    out
}

fn type_name(flag: &Flag) -> &'static str {
    match flag.kind {
        Kind::Bool => "",
        Kind::Text => "string",
        Kind::Int => "int",
        Kind::Uint16 => "uint16",
        Kind::Uint => "uint",
        Kind::Duration => "duration",
        Kind::Bytes | Kind::SwapBytes => "bytes",
        Kind::Cpus => "decimal",
        Kind::List(name) => name,
    }
}

fn flag_usages(sets: &[&[Flag]], width: usize) -> String {
    let mut flags: Vec<&Flag> = sets
        .iter()
        .flat_map(|s| s.iter())
        .filter(|f| !f.hidden)
        .collect();
    flags.sort_by_key(|f| f.long);
    let names: Vec<String> = flags
        .iter()
        .map(|flag| {
            let short = flag
                .short
                .map_or_else(|| "   ".to_owned(), |c| format!("-{c},"));
            let kind = type_name(flag);
            let space = if kind.is_empty() { "" } else { " " };
            format!("  {short} --{}{space}{kind}", flag.long)
        })
        .collect();
    let column = names.iter().map(String::len).max().unwrap_or(0) + 3;
    let mut out = Vec::new();
    for (flag, name) in flags.iter().zip(&names) {
        let mut usage = flag.usage.to_owned();
        match (flag.kind, flag.default) {
            (_, "") => {}
            (Kind::Text, default) => usage.push_str(&format!(" (default \"{default}\")")),
            (_, default) => usage.push_str(&format!(" (default {default})")),
        }
        out.push(format!("{name:<column$}{}", wrap(&usage, column, width)));
    }
    out.join("\n")
}

/// Breaks `text` into lines of at most `width`, the following ones indented by `indent`.
fn wrap(text: &str, indent: usize, width: usize) -> String {
    let room = width.saturating_sub(indent);
    if room < 24 {
        return text.to_owned();
    }
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.len() + 1 + word.len() <= room => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines.join(&format!("\n{}", " ".repeat(indent)))
}
