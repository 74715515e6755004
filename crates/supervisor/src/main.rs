//! The per-container supervisor, a containerd shim v2.
//!
//! It owns one container from Create to Delete: the isolation, the streams, the log, the
//! record of the exit; and it lives on when the daemon dies. It knows the Task API and the
//! isolations; it knows no image, no network and no API of Docker's.

mod binds;
mod command_line;
mod delete;
mod isolations;
mod memory;
mod mounts;
mod populate;
mod probe;
mod process;
mod server;
mod service;
mod start;
mod stdio;
mod task;

use std::process::ExitCode;

use command_line::{Action, CommandLine};

fn main() -> ExitCode {
    // Before anything that could start a thread: this may be another process altogether.
    if let Some(code) = bulkhead_isolation_process::helper_main() {
        return code;
    }
    let command_line = match CommandLine::parse(std::env::args().skip(1)) {
        Ok(command_line) => command_line,
        Err(error) => {
            eprintln!("containerd-shim-bulkhead-v2: {error}");
            return ExitCode::from(2);
        }
    };
    let outcome = match command_line.action {
        Action::Start => start::run(&command_line),
        Action::Delete => delete::run(&command_line),
        Action::Populate => populate::run(),
        Action::Probe => probe::run(&command_line),
        Action::Version => {
            println!("{}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("containerd-shim-bulkhead-v2: {error}");
            ExitCode::FAILURE
        }
    }
}
