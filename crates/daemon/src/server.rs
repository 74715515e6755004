//! Starting and stopping the daemon.
//!
//! Containers are not the daemon's to stop: it goes, their supervisors stay, and the next
//! daemon finds them again.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use axum::Router;
use bulkhead_image::{ImageError, ImageStore};
use bulkhead_network::NetworkNamespaceError;
use bulkhead_registry::Registry;
use clap::Parser;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::args::DaemonArgs;
use crate::config::{Config, ConfigError};
use crate::error::ApiError;
use crate::events::EventBus;
use crate::lifetime::{DataRootLock, LifetimeError, Pidfile, make_private_dir};
use crate::remote::{RemoteError, RemoteListener};
use crate::services::build::BuildCaches;
use crate::services::containers::{Containers, Stored};
use crate::services::images::Images;
use crate::services::networks::Networks;
use crate::services::system::System;
use crate::services::volumes::Volumes;
use crate::state::{AppState, Daemon};
use crate::store::{Store, StoreError};

/// Why the daemon did not come up.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The command line.
    #[error("invalid configuration")]
    Config(#[from] ConfigError),
    /// Another daemon.
    #[error("cannot start")]
    Lifetime(#[from] LifetimeError),
    /// The database.
    #[error("state store")]
    Store(#[from] StoreError),
    /// The image store.
    #[error("image store")]
    Images(#[from] ImageError),
    /// Network namespaces.
    #[error("network namespaces")]
    Namespaces(#[from] NetworkNamespaceError),
    /// The networks of an earlier daemon.
    #[error("networks")]
    Networks(#[source] ApiError),
    /// The containers and volumes of an earlier daemon.
    #[error("containers and volumes")]
    Recovery(#[source] ApiError),
    /// A socket.
    #[error("cannot listen on {path}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// TCP.
    #[error("remote access")]
    Remote(#[from] RemoteError),
    /// Another daemon answers there.
    #[error("cannot listen on {0}: a daemon is listening there already")]
    SocketHeld(PathBuf),
    /// The runtime or the signals.
    #[error("cannot set up the process")]
    Process(#[source] io::Error),
}

/// `bulkhead daemon`: `args` begins with the program's name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match DaemonArgs::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(125)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match start(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut message = format!("bulkhead daemon: {error}");
            let mut cause = std::error::Error::source(&error);
            while let Some(next) = cause {
                message.push_str(&format!(": {next}"));
                cause = next.source();
            }
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

fn start(args: &DaemonArgs) -> Result<(), ServerError> {
    let config = Config::from_args(args)?;
    let level = match config.log_level.as_str() {
        "fatal" => "error",
        level => level,
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("BULKHEAD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    // In-process users may have set a subscriber already; theirs stays.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .try_init();
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(ServerError::Process)?
        .block_on(async {
            let shutdown = CancellationToken::new();
            let mut terminate = signal(SignalKind::terminate()).map_err(ServerError::Process)?;
            let mut interrupt = signal(SignalKind::interrupt()).map_err(ServerError::Process)?;
            let on_signal = shutdown.clone();
            tokio::spawn(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::info!("shutting down; containers keep running");
                on_signal.cancel();
            });
            run(config, shutdown).await
        })
}

/// Runs a daemon until `shutdown` is cancelled. Several may run in one process, on
/// different roots.
///
/// # Errors
/// Why it did not come up.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), ServerError> {
    let config = Arc::new(config);
    let _lock = DataRootLock::acquire(&config.data_root)?;
    let _pidfile = Pidfile::acquire(&config.pidfile)?;
    make_private_dir(&config.exec_root)?;
    let events = EventBus::default();
    let store = Store::open(&config.data_root)?;
    let stored = Stored::read(&store).await.map_err(ServerError::Recovery)?;
    let image_store = open_images(&config.data_root, stored.layers()).await?;
    let volumes = Volumes::new(&config, store.clone(), events.clone());
    volumes.recover().await.map_err(ServerError::Recovery)?;
    let networks = Networks::open(&config, store.clone(), events.clone())
        .await
        .map_err(ServerError::Networks)?;
    let containers = Containers::new(
        Arc::clone(&config),
        store.clone(),
        events.clone(),
        Arc::clone(&image_store),
        volumes.clone(),
        networks.clone(),
    )?;
    containers
        .recover(stored)
        .await
        .map_err(ServerError::Recovery)?;
    crate::services::build::sweep(&config, &containers).await;
    let state: AppState = Arc::new(Daemon {
        store,
        containers: containers.clone(),
        registry: Arc::new(Registry::new(
            Arc::clone(&image_store),
            config.registries.clone(),
        )),
        networks,
        images: Images::new(image_store, events.clone()),
        volumes,
        build_caches: BuildCaches::new(config.data_root.join("build/caches")),
        system: System::new(&config),
        events,
        shutdown: shutdown.clone(),
        config: Arc::clone(&config),
    });
    let router = crate::routes::router(Arc::clone(&state));
    let mut sockets = Vec::new();
    for path in &config.sockets {
        sockets.push(ListeningSocket::bind(path, config.group)?);
    }
    let mut remotes = Vec::new();
    for address in &config.addresses {
        let remote = RemoteListener::bind(address, config.tls.as_ref()).await?;
        let address = remote.address().map_err(ServerError::Process)?;
        if config
            .tls
            .as_ref()
            .is_none_or(|files| files.authority.is_none())
        {
            tracing::warn!(%address, "everybody who can connect is root on this host");
        }
        tracing::info!(%address, tls = config.tls.is_some(), "API listening");
        remotes.push(remote);
    }
    let connections = TaskTracker::new();
    for socket in &sockets {
        tracing::info!(socket = %socket.path.display(), "API listening");
    }
    let accepting = TaskTracker::new();
    for remote in remotes {
        let (router, shutdown) = (router.clone(), shutdown.clone());
        accepting.spawn(remote.accept(router, shutdown, connections.clone()));
    }
    let guards: Vec<SocketFile> = sockets
        .into_iter()
        .map(|socket| {
            let guard = SocketFile { path: socket.path };
            accepting.spawn(accept(
                socket.listener,
                router.clone(),
                shutdown.clone(),
                connections.clone(),
            ));
            guard
        })
        .collect();
    shutdown.cancelled().await;
    accepting.close();
    accepting.wait().await;
    drop(guards);
    connections.close();
    let patience = std::time::Duration::from_secs(config.shutdown_timeout);
    let ended = tokio::time::timeout(patience, async {
        connections.wait().await;
        containers.close().await;
    });
    if ended.await.is_err() {
        tracing::warn!("requests in flight were cut off");
    }
    Ok(())
}

async fn open_images(data_root: &Path, held: Vec<PathBuf>) -> Result<Arc<ImageStore>, ServerError> {
    let data_root = data_root.to_owned();
    let store = tokio::task::spawn_blocking(move || ImageStore::open_holding(&data_root, &held))
        .await
        .map_err(|error| ServerError::Process(io::Error::other(error)))??;
    Ok(Arc::new(store))
}

async fn accept(
    listener: UnixListener,
    router: Router,
    shutdown: CancellationToken,
    connections: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                connections.spawn(crate::connection::serve(
                    stream,
                    router.clone(),
                    shutdown.clone(),
                ));
            }
            Err(error) => {
                // Out of descriptors or memory: the listener stays readable, so give the
                // connections that hold them a moment instead of spinning.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
}

struct ListeningSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// Removes the socket's file when dropped.
struct SocketFile {
    path: PathBuf,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl ListeningSocket {
    fn bind(path: &Path, group: Option<u32>) -> Result<Self, ServerError> {
        use std::os::unix::fs::PermissionsExt;
        let failed = |source| ServerError::Listen {
            path: path.to_owned(),
            source,
        };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(ServerError::SocketHeld(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Nobody listens: what a killed daemon left.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
        std::os::unix::fs::chown(path, None, group).map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }
}
