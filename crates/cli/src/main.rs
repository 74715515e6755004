//! `bulkhead`: the docker-compatible command line, and the daemon's entry point.
//!
//! `bulkhead daemon …` hands over to the daemon crate; every other command is an API request
//! and the printing of its answer.

mod app;
mod client;
mod command;
mod config;
mod container;
mod dispatch;
mod error;
mod flags;
mod format;
mod help;
mod image;
mod network;
mod output;
mod registry;
mod system;
mod terminal;
mod tree;
mod volume;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let mut rest = args.peekable();
    if rest.peek().is_some_and(|a| a == "daemon") {
        rest.next();
        return bulkhead_daemon::main(std::iter::once(program).chain(rest));
    }
    let args: Vec<String> = rest.map(|a| a.to_string_lossy().into_owned()).collect();
    std::process::exit(app::main(&args))
}
