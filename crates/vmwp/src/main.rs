//! The worker process of one VM.
//!
//! Started by the supervisor with its control socket, the transport to the agent and a pipe
//! for its last words as descriptors 0, 1 and 2 (see `bulkhead_machine::worker`). It boots
//! one machine, serves requests about it, says how it ended, and ends. It ends too when the
//! control socket closes, so that no machine outlives its supervisor. Single-threaded: an
//! engine's child process dies with the thread that started it.

mod confine;
mod serve;

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

const USAGE: &str = "vmwp is the worker of one VM and is started by containerd-shim-bulkhead-v2, \
                     with sockets as its standard input and output";

fn main() -> ExitCode {
    let sockets = match confine::take_sockets() {
        Ok(sockets) => sockets,
        Err(error) => {
            eprintln!("{USAGE}: {error}");
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("BULKHEAD_LOG").unwrap_or_else(|_| EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .init();
    if let Err(error) = confine::confine() {
        eprintln!("vmwp cannot confine itself: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("vmwp cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve::serve(sockets)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmwp: {error}");
            ExitCode::FAILURE
        }
    }
}
