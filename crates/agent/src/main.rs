//! The guest agent: PID 1 in a VM, and the other end of `bulkhead-isolation-vm`.
//!
//! It makes a machine of a booted kernel ([`boot`]), waits for the host on the virtio
//! console port ([`port`]), and serves the requests of `bulkhead-agent-protocol`
//! ([`service`]) by means of process isolation, which is the same code that the host uses.
//! It decides nothing: what a container may do is in the specification that the host sends.

mod boot;
mod clock;
mod debug;
mod disks;
mod files;
mod ground;
mod modules;
mod network;
mod port;
mod service;
mod shares;
mod shutdown;
mod sysctl;
mod timer;
mod uevent;

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use bulkhead_agent_protocol::{Connection, Role, hello};
use tokio::io::{AsyncRead, AsyncWrite};

use ground::Ground;
use service::Service;

/// Makes an ordinary process serve the connection that is its standard input, with a
/// directory as the root and one for files of its own; for tests without a VM.
const SERVE_STDIN: &str = "--serve-stdin";

fn main() -> ExitCode {
    // Process isolation runs this binary again for what must not happen in a process with
    // threads.
    if let Some(code) = bulkhead_isolation_process::helper_main() {
        return code;
    }
    if rustix::process::getpid() == rustix::process::Pid::INIT {
        return guest();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [flag, rootfs, state] if flag == SERVE_STDIN => {
            ordinary_process(rootfs.into(), state.into())
        }
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("bulkhead-agent: runs as the first process of a bulkhead guest, and by nobody else");
    ExitCode::from(2)
}

/// The life of PID 1. Returning from it would be a kernel panic, which ends the machine
/// and tells the host the reason by way of the console.
fn guest() -> ExitCode {
    let init = clock::uptime_millis();
    let error = match boot::prepare() {
        Ok(port) => {
            debug::start_if_asked();
            if !timer::is_sound() {
                // The host starts another machine. It sees the end of this one in any case.
                let _ = (&port).write_all(&hello::mistimed());
                boot::last_words(&shutdown::power_off());
                return ExitCode::FAILURE;
            }
            let times = bulkhead_agent_protocol::ReadinessTimes {
                init,
                transport: clock::uptime_millis(),
                ..Default::default()
            };
            let served = run(async {
                let port = port::Port::greet(port)?;
                serve(port, Ground::machine(times)).await
            });
            match served {
                Ok(()) => shutdown::power_off(),
                Err(error) => error.to_string(),
            }
        }
        Err(error) => boot::describe(&error),
    };
    boot::last_words(&error);
    ExitCode::FAILURE
}

fn ordinary_process(rootfs: PathBuf, state: PathBuf) -> ExitCode {
    let served = take_stdin().and_then(|transport| {
        run(async {
            let transport = std::os::unix::net::UnixStream::from(transport);
            transport.set_nonblocking(true)?;
            let mut transport = tokio::net::UnixStream::from_std(transport)?;
            hello::send(&mut transport)
                .await
                .map_err(std::io::Error::other)?;
            serve(transport, Ground::directory(rootfs, state)).await
        })
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Standard input as a descriptor that children do not inherit.
fn take_stdin() -> std::io::Result<OwnedFd> {
    let transport = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(transport)
}

fn run<F>(future: F) -> std::io::Result<()>
where
    F: Future<Output = std::io::Result<()>>,
{
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .build()?
        .block_on(future)
}

/// Serves one connection, on which our hello was sent, until the host closes it or asks for the end.
async fn serve<T>(mut transport: T, ground: Ground) -> std::io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    hello::receive(&mut transport)
        .await
        .map_err(std::io::Error::other)?;
    let (connection, mut incoming) = Connection::spawn(transport, Role::Guest);
    let service = Arc::new(Service::start(ground)?);
    loop {
        tokio::select! {
            stream = incoming.accept() => match stream {
                Some(stream) => {
                    let service = Arc::clone(&service);
                    tokio::spawn(async move { service.serve(stream).await });
                }
                None => break,
            },
            () = service.ended() => break,
        }
    }
    drop(connection);
    // Without the host nobody can use this container any more.
    service.release().await;
    Ok(())
}
