//! The supervisor's life after it has detached: serve the Task API and attach clients until
//! it is shut down.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

use bulkhead_isolation::IsolationError;
use bulkhead_task::bundle::Bundle;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc::asynchronous::Server;
use containerd_shim_protos::ttrpc::asynchronous::transport::Listener;
use tokio::signal::unix::{SignalKind, signal};

use crate::service::TaskService;
use crate::stdio::attach;
use crate::task::Task;

/// What the supervisor listens on.
pub struct Sockets {
    pub task: UnixListener,
    pub attach: UnixListener,
    /// Removed at the end.
    pub paths: [PathBuf; 2],
}

/// Serves until Shutdown, or until SIGTERM, which ends the container too.
pub fn run(bundle: Bundle, sockets: Sockets) -> Result<(), IsolationError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_keep_alive(std::time::Duration::from_millis(100))
        .build()
        .map_err(|error| IsolationError::other("start the runtime", error))?;
    let paths = sockets.paths.clone();
    let served = runtime.block_on(serve(bundle, sockets));
    for path in paths {
        // The daemon may have removed its directory already.
        let _ = std::fs::remove_file(path);
    }
    // A thread that is stuck in the kernel must not keep the supervisor.
    runtime.shutdown_background();
    served.map_err(|error| IsolationError::other("serve the Task API", error))
}

async fn serve(bundle: Bundle, sockets: Sockets) -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let task = Arc::new(Task::new(bundle));
    let listener = Listener::try_from(sockets.task)?;
    let mut server = Server::new()
        .add_listener(listener)
        .register_service(create_task(Arc::new(TaskService::new(Arc::clone(&task)))));
    server.start().await.map_err(std::io::Error::other)?;
    tokio::spawn(attach::serve(
        tokio::net::UnixListener::from_std(sockets.attach)?,
        Arc::clone(&task),
    ));
    loop {
        tokio::select! {
            () = task.shut_down() => break,
            _ = terminate.recv() => {
                task.end().await;
                break;
            }
            // The supervisor outlives its caller's session.
            _ = hang_up.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    // Answers what was asked, the Shutdown too, before the connections close.
    server.shutdown().await.map_err(std::io::Error::other)
}
