//! From a record to a running payload, and back: bundle, network namespace, supervisor,
//! Create, waiting attaches, Start; release of all that after the end.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::http::StatusCode;
use bulkhead_isolation::{ErrorKind, InjectedFile, IsolationError};
use bulkhead_network::{NetworkNamespace, NetworkNamespaceError};
use bulkhead_spec::{HostMount, SpecError, SpecInput};
use bulkhead_task::bundle::Bundle;
use bulkhead_task::options::TaskOptions;
use bulkhead_userns::{Mappings, Owner};

use super::actor::Actor;
use super::joined::Joined;
use super::model::Record;
use super::network::{self, Namespace};
use super::{Containers, Files, Shared};
use crate::error::ApiError;
use crate::services::supervisor::{self, Task};

/// Why a container did not start.
pub(super) struct LaunchFailure {
    /// What its state says: 127, 126 or 128.
    pub(super) exit_code: u32,
    /// For the client.
    pub(super) error: ApiError,
}

impl LaunchFailure {
    fn other(error: ApiError) -> Self {
        Self {
            exit_code: 128,
            error,
        }
    }

    fn host(context: &str, error: &std::io::Error) -> Self {
        Self::other(ApiError::internal(context, error))
    }
}

/// Starts a container's payload. On an error nothing is left.
pub(super) async fn launch(actor: &mut Actor) -> Result<(Arc<Task>, u32), LaunchFailure> {
    let shared = Arc::clone(&actor.shared);
    let outcome = attempt(actor, &shared).await;
    if outcome.is_err() {
        actor.record.networks.sandbox = None;
        forget(&shared, &actor.record.id).await;
        super::mounts::unmount(&shared, &actor.record).await;
    } else {
        super::mounts::announce_mounted(&shared, &actor.record);
    }
    outcome
}

async fn attempt(
    actor: &mut Actor,
    shared: &Arc<Shared>,
) -> Result<(Arc<Task>, u32), LaunchFailure> {
    let binary = supervisor::find_binary().map_err(|error| LaunchFailure::other(error.into()))?;
    let bundle = Bundle::of(&shared.config.exec_root, &actor.record.id);
    let mounts = super::mounts::prepare(shared, &actor.record)
        .await
        .map_err(LaunchFailure::other)?;
    let netns = network::namespace_path(shared, &actor.record).map_err(LaunchFailure::other)?;
    if shared.mappings_of(&actor.record).is_some() {
        // It may be older than the flag.
        bulkhead_spec::check_user_namespace(&actor.record.host_config)
            .map_err(|error| LaunchFailure::other(super::create::invalid(error)))?;
    }
    let joined = Joined::find(shared, &actor.record).map_err(LaunchFailure::other)?;
    let user_namespace = joined.user.clone();
    write_bundle(
        shared,
        &actor.record,
        &bundle,
        mounts,
        netns.as_deref(),
        joined,
    )?;
    // The namespace's file is a mount that has to be there when the supervisor takes its copy
    // of the mounts.
    let injected_files = prepare(actor, shared, user_namespace).await?;
    let record = &actor.record.clone();
    tracing::debug!(id = %record.id, "bundle, namespace and files are there");
    let task = match Task::launch(&binary, &shared.config.exec_root, &record.id).await {
        Ok(task) => Arc::new(task),
        Err(error) => {
            sweep(shared, &record.id).await;
            return Err(start_failure(record, error));
        }
    };
    tracing::debug!(id = %record.id, "supervisor is up");
    let outcome = run(
        actor,
        record,
        &task,
        options(shared, record, injected_files),
    )
    .await;
    match outcome {
        Ok(pid) => Ok((task, pid)),
        Err(failure) => {
            // A create that failed has released what it made, unless its supervisor died of it.
            if task.is_gone() {
                sweep(shared, &record.id).await;
            } else {
                if let Err(error) = task.delete("").await {
                    tracing::debug!(id = %record.id, %error, "delete after failed start");
                }
                task.shutdown().await;
            }
            Err(failure)
        }
    }
}

async fn run(
    actor: &mut Actor,
    record: &Record,
    task: &Arc<Task>,
    options: TaskOptions,
) -> Result<u32, LaunchFailure> {
    let created = task
        .create(&options, record.tty())
        .await
        .map_err(|error| start_failure(record, error))?;
    tracing::debug!(id = %record.id, "created");
    // Those who attached before the start get the very first byte.
    for (request, waiting) in actor.waiting_attaches.drain(..) {
        if waiting.is_closed() {
            continue;
        }
        match task.attach(&request).await {
            Ok((stream, _)) => {
                let _ = waiting.send(stream);
            }
            Err(error) => tracing::warn!(id = %record.id, %error, "attach before start"),
        }
    }
    actor.show_starting(task, created);
    let started = task
        .start("")
        .await
        .map_err(|error| start_failure(record, error))?;
    tracing::debug!(id = %record.id, "started");
    Ok(if started == 0 { created } else { started })
}

pub(super) fn write_bundle(
    shared: &Arc<Shared>,
    record: &Record,
    bundle: &Bundle,
    mut mounts: Vec<HostMount>,
    netns: Option<&Path>,
    joined: Joined,
) -> Result<(), LaunchFailure> {
    mounts.extend(joined.mounts);
    let config = super::links::with_variables(shared, record).map_err(LaunchFailure::other)?;
    let parent = record
        .host_config
        .cgroup_parent
        .as_deref()
        .filter(|parent| !parent.is_empty())
        .unwrap_or(&shared.config.cgroup_parent);
    let cgroup = format!("/{}/{}", parent.trim_matches('/'), record.id);
    let spec = bulkhead_spec::build(&SpecInput {
        id: &record.id,
        isolation: record.isolation,
        hostname: joined.hostname.as_deref().unwrap_or(record.hostname()),
        config: &config,
        host_config: &record.host_config,
        network_namespace: netns,
        pid_namespace: joined.pid.as_deref(),
        ipc_namespace: joined.ipc.as_deref(),
        cgroups_path: Path::new(&cgroup),
        mappings: shared.mappings_of(record),
        mounts: &mounts,
        facts: &shared.facts,
    })
    .map_err(|error| LaunchFailure::other(spec_error(error)))?;
    let json = serde_json::to_vec(&spec).map_err(|error| {
        LaunchFailure::other(ApiError::internal("encode specification", &error))
    })?;
    // What a daemon that was killed in a start may have left was swept at ours.
    super::files::make_private_dirs(bundle.path())
        .and_then(|()| std::fs::write(bundle.config(), json))
        .map_err(|error| LaunchFailure::host("make bundle", &error))
}

/// A specification that could not be made, for HTTP.
pub(super) fn spec_error(error: SpecError) -> ApiError {
    match error {
        SpecError::Invalid(error) => super::create::invalid(error),
        other => ApiError::internal("make specification", &other),
    }
}

/// Namespace, networks and files. What is made is in the actor's record, and in the store
/// before anything runs there.
async fn prepare(
    actor: &mut Actor,
    shared: &Arc<Shared>,
    user_namespace: Option<PathBuf>,
) -> Result<Vec<InjectedFile>, LaunchFailure> {
    let record = actor.record.clone();
    match network::namespace(&record.host_config) {
        Namespace::Own => {
            let netns = shared.netns_path(&record.id);
            let mappings = shared.mappings_of(&record).cloned();
            blocking(move || {
                make_namespace(&netns, mappings.as_ref(), user_namespace.as_deref())
                    .map_err(|error| ApiError::internal("make network namespace", &error))
            })
            .await?;
            let member = network::member(shared, &record).map_err(LaunchFailure::other)?;
            let attachments = record.networks.attachments.clone();
            let placement = shared
                .networks
                .join(member, attachments)
                .await
                .map_err(LaunchFailure::other)?;
            actor.record.networks.attachments = placement.attachments;
            actor.record.networks.sandbox = Some(placement.sandbox);
            actor.commit().await.map_err(LaunchFailure::other)?;
        }
        Namespace::Host => {}
        Namespace::Of(other) => {
            let other = network::joined(shared, other).map_err(LaunchFailure::other)?;
            return Ok(super::files::shared_with(&files_of(shared, &other)));
        }
    }
    let record = actor.record.clone();
    let names = network::names(shared, &record)
        .await
        .map_err(LaunchFailure::other)?;
    let files = files_of(shared, &record);
    blocking(move || {
        super::files::generate(&record, &files, &names)
            .map_err(|error| ApiError::internal("write files of the container", &error))
    })
    .await
}

/// A network namespace: the host's own, or one of the container's user namespace.
fn make_namespace(
    path: &Path,
    mappings: Option<&Mappings>,
    user_namespace: Option<&Path>,
) -> Result<NetworkNamespace, NetworkNamespaceError> {
    let Some(mappings) = mappings else {
        return NetworkNamespace::create(path);
    };
    match user_namespace {
        None => NetworkNamespace::create_of(path, Owner::New(mappings)),
        Some(other) => {
            let other = File::open(other).map_err(|source| NetworkNamespaceError::Create {
                path: path.to_owned(),
                source,
            })?;
            NetworkNamespace::create_of(path, Owner::Existing(other.as_fd()))
        }
    }
}

fn files_of(shared: &Arc<Shared>, record: &Record) -> Files {
    Containers {
        shared: Arc::clone(shared),
    }
    .files(record)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, LaunchFailure> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(ApiError::internal("prepare container", &error)))
        .map_err(LaunchFailure::other)
}

pub(super) fn options(
    shared: &Arc<Shared>,
    record: &Record,
    injected_files: Vec<InjectedFile>,
) -> TaskOptions {
    let files = files_of(shared, record);
    TaskOptions {
        isolation: record.isolation,
        layers: record.layers.clone(),
        writable: files.writable.clone(),
        injected_files,
        open_stdin: record.config.open_stdin.unwrap_or(false),
        stdin_once: record.config.stdin_once.unwrap_or(false),
        init: record.host_config.init.unwrap_or(false),
        log: super::files::log_options(record, &files),
        vm: shared.config.vm.clone(),
        files_only: false,
    }
}

/// What the payload's failure to start means for state and client. Docker's CLI takes its
/// exit code from these words.
fn start_failure(record: &Record, error: IsolationError) -> LaunchFailure {
    let (exit_code, status, reason) = command_failure(&record.path, &error);
    LaunchFailure {
        exit_code,
        error: ApiError::new(
            status,
            format!(
                "failed to create task for container: failed to create shim task: OCI runtime \
                 create failed: {reason}"
            ),
        ),
    }
}

/// Exit code, HTTP status and words for a process that did not start.
pub(super) fn command_failure(command: &str, error: &IsolationError) -> (u32, StatusCode, String) {
    match error.kind {
        ErrorKind::WorkingDirectory => (
            code_of(&error.message),
            StatusCode::BAD_REQUEST,
            format!(
                "unable to start container process: {}: unknown",
                error.message
            ),
        ),
        ErrorKind::CommandNotFound => {
            let why = if command.contains('/') {
                format!("stat {command}: no such file or directory")
            } else {
                "executable file not found in $PATH".to_owned()
            };
            (
                127,
                StatusCode::BAD_REQUEST,
                format!("unable to start container process: exec: \"{command}\": {why}: unknown"),
            )
        }
        ErrorKind::CommandNotExecutable => (
            126,
            StatusCode::BAD_REQUEST,
            format!(
                "unable to start container process: exec: \"{command}\": permission denied: unknown"
            ),
        ),
        ErrorKind::InvalidArgument => (
            code_of(&error.message),
            StatusCode::BAD_REQUEST,
            error.message.clone(),
        ),
        _ => (
            code_of(&error.message),
            StatusCode::INTERNAL_SERVER_ERROR,
            error.message.clone(),
        ),
    }
}

/// The exit code that dockerd reads from an error's words, whatever was missing or forbidden:
/// a mount's source is as good as the command.
fn code_of(message: &str) -> u32 {
    let message = message.to_ascii_lowercase();
    if ["no such file or directory", "not a directory"]
        .iter()
        .any(|words| message.contains(words))
    {
        127
    } else if message.contains("permission denied") {
        126
    } else {
        128
    }
}

/// Releases what a task that has ended held: its isolation, its supervisor, namespace,
/// bundle. The writable layer stays.
pub(super) async fn release(shared: &Arc<Shared>, record: &Record, task: &Task) {
    let released = task.delete("").await;
    if let Err(error) = &released {
        tracing::warn!(id = %record.id, %error, "supervisor could not release; sweeping");
    }
    // Taking the namespace away makes the kernel wait, as the supervisor's end does.
    tokio::join!(task.shutdown(), forget_namespace(shared, &record.id));
    if released.is_err() {
        sweep(shared, &record.id).await;
    }
    tracing::debug!(id = %record.id, "supervisor and namespace are gone");
    forget_bundle(shared, &record.id);
    super::mounts::unmount(shared, record).await;
}

/// Has the supervisor's executable clean up after a supervisor that is gone.
pub(super) async fn sweep(shared: &Shared, id: &str) {
    if !Bundle::of(&shared.config.exec_root, id).path().exists() {
        return;
    }
    let swept = match supervisor::find_binary() {
        Ok(binary) => supervisor::sweep(&binary, &shared.config.exec_root, id).await,
        Err(error) => Err(error),
    };
    if let Err(error) = swept {
        tracing::error!(%id, %error, "left behind by a supervisor that was lost");
    }
}

/// Removes network namespace, sockets and bundle.
pub(super) async fn forget(shared: &Arc<Shared>, id: &str) {
    forget_namespace(shared, id).await;
    forget_bundle(shared, id);
}

async fn forget_namespace(shared: &Shared, id: &str) {
    shared.networks.leave(id).await;
    let netns = shared.netns_path(id);
    let removed = tokio::task::spawn_blocking(move || bulkhead_network::remove(&netns)).await;
    match removed {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%id, %error, "network namespace not removed"),
        Err(error) => tracing::error!(%id, %error, "network namespace not removed"),
    }
}

/// A handful of small files.
pub(super) fn forget_bundle(shared: &Shared, id: &str) {
    let exec_root = &shared.config.exec_root;
    for socket in [
        bulkhead_task::bundle::task_socket(exec_root, id),
        bulkhead_task::bundle::attach_socket(exec_root, id),
    ] {
        let _ = std::fs::remove_file(socket);
    }
    match std::fs::remove_dir_all(Bundle::of(exec_root, id).path()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::error!(%id, %error, "bundle not removed");
        }
        _ => {}
    }
}
