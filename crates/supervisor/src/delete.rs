//! `delete`: cleaning up after a supervisor that was killed, as containerd and the daemon
//! call it, with the supervisor known to be gone.

use std::io::Write;

use bulkhead_isolation::{ExitStatus, IsolationError};
use bulkhead_task::bundle::Bundle;
use bulkhead_task::exit_record;
use bulkhead_task::options::IsolationKind;
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;

use crate::command_line::CommandLine;
use crate::service::timestamp;
use crate::{isolations, memory};

/// Kills what is left of the container, releases what it held, records its end if nobody
/// has, and writes a `DeleteResponse` to stdout.
pub fn run(command_line: &CommandLine) -> Result<(), IsolationError> {
    let failed = |what: &'static str| move |error| IsolationError::other(what, error);
    memory::economise();
    let path = match &command_line.bundle {
        Some(path) => path.clone(),
        None => std::env::current_dir().map_err(failed("find the bundle"))?,
    };
    let bundle = Bundle::new(path);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed("start the runtime"))?;
    runtime.block_on(async {
        // Which of them had made it is not worth knowing: each finds what is its own. The
        // one that reaps all children of this process comes last.
        for kind in [IsolationKind::Hyperv, IsolationKind::Process] {
            let isolation = isolations::make(kind).map_err(failed("prepare the cleanup"))?;
            isolation.sweep(&command_line.id, bundle.path()).await?;
        }
        Ok::<(), IsolationError>(())
    })?;
    let status = record(&bundle).map_err(failed("record the exit"))?;
    let mut response = DeleteResponse::new();
    response.exit_status = status.code;
    response.exited_at = Some(timestamp(status.at)).into();
    let bytes = response
        .write_to_bytes()
        .map_err(|error| IsolationError::other("encode the answer", error))?;
    std::io::stdout()
        .write_all(&bytes)
        .map_err(failed("answer"))
}

/// How the container ended: as recorded, or killed now.
fn record(bundle: &Bundle) -> std::io::Result<ExitStatus> {
    let path = bundle.exit_record();
    if let Some(status) = exit_record::read(&path)? {
        return Ok(status);
    }
    let status = ExitStatus {
        code: 137,
        at: jiff::Timestamp::now(),
        oom_killed: false,
        failure: Some("the container's supervisor was killed".to_owned()),
    };
    if bundle.path().is_dir() {
        exit_record::write(&path, &status)?;
    }
    Ok(status)
}
