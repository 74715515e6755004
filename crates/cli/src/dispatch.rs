//! From the argument vector to a command with its parsed flags: global options, groups, help,
//! and Docker's words for what is wrong.

use crate::client::{Client, Endpoint};
use crate::command::{Command, Ctx, PROGRAM, Run};
use crate::config;
use crate::error::{CliError, CliResult, EXIT_DAEMON};
use crate::flags::{self, Flag, Kind, Parsed};
use crate::help;
use crate::output::{complain, emit};
use crate::tree;

/// A command that is ready to run.
pub struct Invocation {
    /// What runs it.
    pub command: Run,
    /// Its flags and arguments.
    pub parsed: Parsed,
    /// Its surroundings.
    pub ctx: Ctx,
}

const GLOBAL: &[Flag] = &[
    Flag::text("config", "Directory of the client's configuration file"),
    Flag::text("context", "Not supported: name the daemon with --host").short('c'),
    Flag::switch("debug", "Show more about what goes wrong").short('D'),
    Flag::list("host", "Socket of the daemon to talk to").short('H'),
    Flag::text(
        "log-level",
        "Least severe messages to show (\"debug\" to \"fatal\")",
    )
    .short('l')
    .default("info"),
    Flag::switch("tls", "Not supported: use a UNIX socket or a tunnel").hidden(),
    Flag::switch("tlsverify", "Not supported: use a UNIX socket or a tunnel").hidden(),
    Flag::new("tlscacert", Kind::Text, "Not supported").hidden(),
    Flag::new("tlscert", Kind::Text, "Not supported").hidden(),
    Flag::new("tlskey", Kind::Text, "Not supported").hidden(),
    Flag::switch("version", "Print the version and quit").short('v'),
];

fn bad_flags(message: &str, command: &Command, path: &str) -> CliError {
    CliError::Status {
        message: format!(
            "{message}\n\nUsage:  {}\n\nRun '{path} --help' for more information",
            command.usage_line(path)
        ),
        code: EXIT_DAEMON,
    }
}

/// Finds the command. Nothing is left to run if help or the version was asked for.
pub fn resolve(args: &[String]) -> CliResult<Option<Invocation>> {
    let root = tree::root();
    let globals = flags::parse(&[GLOBAL], false, args).map_err(|message| CliError::Status {
        message: format!(
            "{message}\n\nUsage:  {PROGRAM} [OPTIONS] COMMAND [ARG...]\n\n\
             Run '{PROGRAM} --help' for more information"
        ),
        code: EXIT_DAEMON,
    })?;
    for note in &globals.notes {
        complain(note);
    }
    if globals.help {
        emit(help::page(&root, PROGRAM, Some(GLOBAL)))?;
        return Ok(None);
    }
    if globals.on("version") {
        emit(format!("{PROGRAM} version {}\n", env!("CARGO_PKG_VERSION")))?;
        return Ok(None);
    }
    let Some((word, rest)) = globals.args.split_first() else {
        complain(help::page(&root, PROGRAM, Some(GLOBAL)).trim_end());
        return Ok(None);
    };
    if word == "help" {
        return show_help(&root, rest).map(|()| None);
    }
    let Some(first) = root.subs.iter().find(|c| c.answers_to(word)) else {
        return Err(CliError::msg(format!(
            "{PROGRAM}: unknown command: {PROGRAM} {word}\n\nRun '{PROGRAM} --help' for more information"
        )));
    };
    let mut command = first;
    let mut path = format!("{PROGRAM} {}", command.name);
    let mut rest = rest;
    while command.run.is_none() {
        let parsed = flags::parse(&[], false, rest).map_err(|m| bad_flags(&m, command, &path))?;
        let word = parsed.args.first();
        let sub = word.and_then(|w| command.subs.iter().find(|c| c.answers_to(w)));
        match (sub, word) {
            _ if parsed.help => {
                emit(help::page(command, &path, None))?;
                return Ok(None);
            }
            (Some(sub), _) => {
                command = sub;
                path = format!("{path} {}", command.name);
                rest = &rest[rest.len() - (parsed.args.len() - 1)..];
            }
            (None, Some(word)) => {
                return Err(CliError::msg(format!(
                    "{PROGRAM}: unknown command: {path} {word}\n\nUsage:  {path}\n\n\
                     Run '{path} --help' for more information"
                )));
            }
            (None, None) => {
                complain(help::page(command, &path, None).trim_end());
                return Ok(None);
            }
        }
    }
    let Some(run) = command.run else {
        return Ok(None);
    };
    let parsed = flags::parse(command.flags, command.interspersed, rest)
        .map_err(|message| bad_flags(&message, command, &path))?;
    for note in &parsed.notes {
        complain(note);
    }
    if parsed.help {
        emit(help::page(command, &path, None))?;
        return Ok(None);
    }
    command.check_arity(&path, &parsed.args)?;
    let ctx = context(&globals)?;
    Ok(Some(Invocation {
        command: run,
        parsed,
        ctx,
    }))
}

fn show_help(root: &Command, words: &[String]) -> CliResult {
    let mut command = root;
    let mut path = PROGRAM.to_owned();
    for word in words {
        let Some(sub) = command.subs.iter().find(|c| c.answers_to(word)) else {
            return Err(CliError::msg(format!(
                "unknown help topic: {}",
                words.join(" ")
            )));
        };
        command = sub;
        path = format!("{path} {}", command.name);
    }
    emit(help::page(
        command,
        &path,
        words.is_empty().then_some(GLOBAL),
    ))
}

fn context(globals: &Parsed) -> CliResult<Ctx> {
    if let Some(name) = globals.given("context").filter(|n| *n != "default") {
        return Err(CliError::msg(format!(
            "contexts are not supported (--context {name}): name the daemon's socket with --host, \
             BULKHEAD_HOST or DOCKER_HOST"
        )));
    }
    for flag in ["tls", "tlsverify", "tlscacert", "tlscert", "tlskey"] {
        if globals.changed(flag) && globals.text(flag) != "false" {
            return Err(CliError::msg(format!(
                "--{flag} is not supported: use a UNIX socket, or a tunnel to it"
            )));
        }
    }
    let level = globals.text("log-level");
    if ![
        "debug", "info", "warn", "warning", "error", "fatal", "panic", "trace",
    ]
    .contains(&level)
    {
        return Err(CliError::msg(format!(
            "Unable to parse logging level: {level}"
        )));
    }
    let hosts = globals.list("host");
    if hosts.len() > 1 {
        return Err(CliError::msg("Failed to initialize: specify only one -H"));
    }
    let env = |name| std::env::var(name).ok().filter(|v| !v.is_empty());
    let host = hosts
        .first()
        .cloned()
        .or_else(|| env("BULKHEAD_HOST"))
        .or_else(|| env("DOCKER_HOST"));
    let endpoint = Endpoint::parse(host.as_deref().unwrap_or_default()).map_err(|reason| {
        CliError::msg(format!(
            "Failed to initialize: unable to resolve {PROGRAM} endpoint: {reason}"
        ))
    })?;
    let client = Client::new(endpoint, env("DOCKER_API_VERSION"));
    Ok(Ctx::new(
        client,
        config::directory(globals.given("config")),
        globals.on("debug"),
    ))
}
