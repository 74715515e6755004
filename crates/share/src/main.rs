//! The process that serves one share of the host's files to one VM.
//!
//! Started by the supervisor with a socket as its standard input, over which it is told what
//! to share, says whether it can, and then exchanges FUSE messages with the guest. It ends
//! when the socket closes. Its command line names the container that it is for.

use std::ffi::CStr;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

use bulkhead_share::server::{Limits, Server};
use bulkhead_share::{ShareConfig, jail, read_frame, serve, write_frame};
use rustix::process::{Pid, Signal, WaitOptions};

const NAME: &CStr = c"bulkhead-share";
const USAGE: &str = "bulkhead-share serves a part of the host's files to a VM and is started by \
                     containerd-shim-bulkhead-v2, with a socket as its standard input";

fn main() -> ExitCode {
    let socket = match bulkhead_jail::take_socket() {
        Ok(socket) => UnixStream::from(socket),
        Err(error) => {
            eprintln!("{USAGE}: {error}");
            return ExitCode::from(2);
        }
    };
    // A thread that panicked would leave its request without an answer.
    std::panic::set_hook(Box::new(|info| {
        eprintln!("bulkhead-share: {info}");
        std::process::exit(70);
    }));
    match run(socket) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bulkhead-share: {error}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

fn run(mut socket: UnixStream) -> Result<ExitCode, Failure> {
    let config: ShareConfig = read_frame(&mut socket)?;
    let inside = match jail::leave_host() {
        Ok(()) => fork()?,
        Err(error) => {
            write_frame(&mut socket, &Err::<(), _>(error.to_string()))?;
            return Err(error.into());
        }
    };
    if let Some(child) = inside {
        // This process is there to be waited for; the other one ends with the socket, or
        // when this one does.
        drop(socket);
        return Ok(wait(child));
    }
    rustix::thread::set_name(NAME)?;
    let prepared = prepare(&config);
    if let Err(error) = &prepared {
        write_frame(&mut socket, &Err::<(), _>(error.to_string()))?;
    }
    serve(socket, Arc::new(prepared?), |mut socket| {
        let confined = jail::filter_calls().map_err(|error| error.to_string());
        write_frame(&mut socket, &confined).map_err(std::io::Error::other)?;
        confined.map_err(std::io::Error::other)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn prepare(config: &ShareConfig) -> Result<Server, Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    let descriptors = jail::take_descriptors()?;
    let root = jail::enter(config)?;
    jail::give_up_rights()?;
    Ok(Server::new(
        root,
        config.read_only && !config.writable_below,
        config.events,
        Limits::within(descriptors),
    )?)
}

/// The child's number, or `None` in the child.
fn fork() -> std::io::Result<Option<Pid>> {
    // SAFETY: this process has one thread, so nothing is left locked in the child.
    let forked = unsafe { libc::fork() };
    if forked < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(Pid::from_raw(forked))
}

fn wait(child: Pid) -> ExitCode {
    loop {
        match rustix::process::waitpid(Some(child), WaitOptions::empty()) {
            Ok(Some((_, status))) => {
                let code = status
                    .exit_status()
                    .and_then(|code| u8::try_from(code).ok());
                return ExitCode::from(code.unwrap_or(1));
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return ExitCode::FAILURE,
        }
    }
}
