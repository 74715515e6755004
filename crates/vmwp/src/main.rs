//! The worker process of one VM.
//!
//! Started by the supervisor with its control socket and a pipe for its last words as
//! descriptors 0 and 2 (see `bulkhead_machine::worker`). It boots one machine, serves requests about it, says how it ended, and ends. It ends too when the
//! control socket closes, so that no machine outlives its supervisor. Single-threaded: an
//! engine's child process dies with the thread that started it.

mod serve;

use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use bulkhead_machine::worker::protocol::receive_files;
use bulkhead_vmwp::confine::Jail;
use tracing_subscriber::EnvFilter;

use serve::ServeError;

const USAGE: &str = "vmwp is the worker of one VM and is started by containerd-shim-bulkhead-v2, \
                     with a socket as its standard input";

fn main() -> ExitCode {
    // One arena for all threads: each further one takes 128 MiB of the address space, which
    // is limited, and looks into /proc when it shrinks, which a filter forbids.
    // SAFETY: mallopt(3) takes plain numbers; no other thread exists yet.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    let control = match bulkhead_jail::take_socket().map(UnixStream::from) {
        Ok(control) => control,
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
    match run(control) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vmwp: {error}");
            ExitCode::FAILURE
        }
    }
}

/// From the supervisor's first message to the end.
fn run(control: UnixStream) -> Result<(), ServeError> {
    let (config, files) = receive_files(&control)?;
    control.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let jail = Jail::begin(&config, &files);
    let prepared = {
        let _within = runtime.enter();
        serve::prepare(&config, files, &jail)
    };
    let missing = jail.enter(&control)?;
    runtime.block_on(serve::serve(control, missing, prepared))
}
