//! The daemon alone, without the command line client: `cargo run -p bulkhead-daemon --example
//! standalone -- -H unix:///tmp/d.sock …`.

use std::process::ExitCode;

fn main() -> ExitCode {
    bulkhead_daemon::main(std::env::args_os())
}
