//! The worker's side of `bulkhead_machine::worker::protocol`.

use std::io;

use bulkhead_engine_kvm::KvmEngine;
use bulkhead_engine_qemu::QemuEngine;
use bulkhead_jail::JailError;
use bulkhead_machine::worker::protocol::{Event, MAX_LINE, Request, Verb};
use bulkhead_machine::{
    BootError, Engine, EngineKind, ExitReason, Machine, MachineConfig, MachineExit, MachineFiles,
    PreparedMachine,
};
use bulkhead_vmwp::confine::Jail;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// The conversation with the supervisor broke.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// The socket said no.
    #[error("the control socket failed: {0}")]
    Control(#[from] io::Error),
    /// The worker cannot give up its rights.
    #[error("{0}: {source}", source = .0.source_error())]
    Confine(#[from] JailError),
    /// A line was not what it should be.
    #[error("the supervisor broke the protocol: {0}")]
    Protocol(String),
}

/// What the engine does before the worker is confined.
pub(crate) fn prepare(
    config: &MachineConfig,
    files: MachineFiles,
    jail: &Jail,
) -> Result<Box<dyn PreparedMachine>, BootError> {
    match config.engine {
        EngineKind::Qemu => QemuEngine::find(jail.identity.clone())?.prepare(config, files),
        EngineKind::Kvm => KvmEngine.prepare(config, files),
    }
}

/// Boots the machine and serves it to its end.
pub(crate) async fn serve(
    control: std::os::unix::net::UnixStream,
    missing: Vec<String>,
    prepared: Result<Box<dyn PreparedMachine>, BootError>,
) -> Result<(), ServeError> {
    let (reader, mut writer) = UnixStream::from_std(control)?.into_split();
    let mut reader = BufReader::new(reader);
    tell(&mut writer, &Event::Confined { missing }).await?;
    let boot = async { prepared?.boot().await };
    let booted = tokio::select! {
        booted = boot => booted,
        // No request is legal before the machine runs, but a kill is, and the supervisor's
        // end. Dropping the half-booted machine releases it.
        request = read_line::<Request>(&mut reader) => {
            return match request? {
                None => Ok(()),
                Some(request) if request.verb == Verb::Kill => {
                    let exit = MachineExit::new(ExitReason::Killed, "the VM was killed");
                    Ok(tell(&mut writer, &Event::Exited(exit)).await?)
                }
                Some(_) => Err(ServeError::Protocol("a request before the boot".to_owned())),
            };
        }
    };
    let machine = match booted {
        Ok(machine) => machine,
        Err(error) => {
            let exit = MachineExit::new(ExitReason::BootFailed, describe(&error));
            return Ok(tell(&mut writer, &Event::Exited(exit)).await?);
        }
    };
    tell(&mut writer, &Event::Running).await?;
    let exit = run(&*machine, &mut reader, &mut writer).await?;
    if let Some(exit) = exit {
        tell(&mut writer, &Event::Exited(exit)).await?;
    }
    Ok(())
}

/// Serves requests until the machine has ended; `None` when nobody is left to be told.
async fn run(
    machine: &dyn Machine,
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> Result<Option<MachineExit>, ServeError> {
    let ended = machine.wait();
    tokio::pin!(ended);
    let mut listening = true;
    loop {
        let request = tokio::select! {
            exit = &mut ended => return Ok(Some(exit)),
            request = read_line::<Request>(reader), if listening => request,
        };
        let (sequence, done) = match request {
            Ok(Some(request)) => match request.verb {
                Verb::Pause => (request.sequence, machine.pause().await),
                Verb::Resume => (request.sequence, machine.resume().await),
                Verb::Balloon(bytes) => (request.sequence, machine.balloon(bytes).await),
                Verb::Kill => {
                    machine.kill();
                    continue;
                }
            },
            Ok(None) => {
                // The supervisor is gone, and the machine goes with it.
                machine.kill();
                (&mut ended).await;
                return Ok(None);
            }
            Err(error) => {
                machine.kill();
                listening = false;
                tracing::warn!(%error, "control socket");
                continue;
            }
        };
        let reply = Event::Reply {
            sequence,
            error: done.err().map(|error| error.to_string()),
        };
        tell(writer, &reply).await?;
    }
}

/// Reads one line; `None` at the end of the stream.
///
/// Not cancel-safe in the middle of a line, which is why only the choice between a line
/// and the end of everything is ever raced.
async fn read_line<T: for<'a> serde::Deserialize<'a>>(
    reader: &mut BufReader<OwnedReadHalf>,
) -> Result<Option<T>, ServeError> {
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    let read = reader.take(limit).read_until(b'\n', &mut line).await?;
    if read == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&line)
        .map(Some)
        .map_err(|error| ServeError::Protocol(error.to_string()))
}

async fn tell(writer: &mut OwnedWriteHalf, event: &Event) -> io::Result<()> {
    let mut line = serde_json::to_vec(event)?;
    line.push(b'\n');
    match writer.write_all(&line).await {
        // The supervisor is gone; there is nobody to tell.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// An error with its causes.
fn describe(error: &BootError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
