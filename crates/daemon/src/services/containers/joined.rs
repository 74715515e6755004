//! Namespaces of other containers that one is in: `--pid`, `--ipc` and `--network
//! container:NAME`. They are looked up at each start, because the other one's processes are
//! what names them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bollard_stubs::models::HostConfig;
use bulkhead_spec::HostMount;
use bulkhead_task::options::{IsolationKind, SHM_OF_OPTION};

use super::model::Record;
use super::network::{self, Namespace};
use super::{Containers, Shared};
use crate::error::{ApiError, ApiResult};

/// What a container has of others.
#[derive(Debug, Default)]
pub(super) struct Joined {
    /// Its PID namespace.
    pub(super) pid: Option<PathBuf>,
    /// Its IPC namespace.
    pub(super) ipc: Option<PathBuf>,
    /// The other's shared memory.
    pub(super) mounts: Vec<HostMount>,
    /// The name of the one whose network it is in.
    pub(super) hostname: Option<String>,
    /// The user namespace that it has to be in, to be in those of others.
    pub(super) user: Option<PathBuf>,
}

impl Joined {
    /// Looks up those that the configuration names; they have to run.
    ///
    /// # Errors
    /// 404 for one that there is not, 409 for one that does not run or has its own kernel, 400
    /// for one that does not share its IPC namespace.
    pub(super) fn find(shared: &Arc<Shared>, record: &Record) -> ApiResult<Self> {
        let mut joined = Self::default();
        let mut others = Vec::new();
        let other =
            |mode: &'_ Option<String>| mode.as_deref().and_then(of_container).map(str::to_owned);
        if let Some(reference) = other(&record.host_config.pid_mode) {
            let other = running(shared, &reference, "PID")?;
            joined.pid = Some(namespace_file(&other, "pid"));
            others.push(other);
        }
        if let Some(reference) = other(&record.host_config.ipc_mode) {
            let other = running(shared, &reference, "IPC")?;
            if other.host_config.ipc_mode.as_deref() != Some("shareable") {
                return Err(ApiError::bad_request(format!(
                    "can't join IPC of container {}: non-shareable IPC (hint: use \
                     IpcMode:shareable for the donor container)",
                    other.id
                )));
            }
            joined.ipc = Some(namespace_file(&other, "ipc"));
            let taken = record.mounts.iter().any(|one| one.destination == SHM);
            if !taken {
                joined.mounts.push(shared_memory(&other));
            }
            others.push(other);
        }
        if let Namespace::Of(reference) = network::namespace(&record.host_config) {
            let other = network::joined(shared, reference)?;
            joined.hostname = Some(other.hostname().to_owned());
            others.push(other);
        }
        if shared.mappings_of(record).is_some() {
            joined.user = common_user_namespace(&others)?;
        }
        Ok(joined)
    }
}

impl Containers {
    /// Has the modes of a container that is being made name others by their IDs, so that it
    /// joins the same ones whatever their names become. Those of its PID and IPC namespaces
    /// have to be there already.
    ///
    /// # Errors
    /// 400 for one that there is not.
    pub(super) fn settle_joined(&self, host_config: &mut HostConfig) -> ApiResult<()> {
        let settle = |mode: &mut Option<String>| -> ApiResult<()> {
            let Some(reference) = mode.as_deref().and_then(of_container) else {
                return Ok(());
            };
            // A missing image is what clients take a 404 for, and pull it.
            let other = self
                .find(reference)
                .map_err(|error| ApiError::bad_request(error.message))?;
            *mode = Some(format!("container:{}", other.id));
            Ok(())
        };
        settle(&mut host_config.pid_mode)?;
        settle(&mut host_config.ipc_mode)?;
        // Docker looks for it when the container starts.
        let _ = settle(&mut host_config.network_mode);
        Ok(())
    }
}

/// The container that a mode names.
fn of_container(mode: &str) -> Option<&str> {
    mode.strip_prefix("container:")
        .filter(|other| !other.is_empty())
}

/// Whoever joins a namespace has to be in the user namespace that owns it.
fn common_user_namespace(others: &[Record]) -> ApiResult<Option<PathBuf>> {
    use std::os::unix::fs::MetadataExt;
    let number = |path: &Path| {
        let metadata = std::fs::metadata(path);
        metadata.map(|metadata| metadata.ino()).map_err(|error| {
            ApiError::conflict(format!("cannot join a container that ends: {error}"))
        })
    };
    let host = number(Path::new("/proc/self/ns/user"))?;
    let mut common: Option<(PathBuf, u64)> = None;
    for other in others {
        let path = namespace_file(other, "user");
        let found = number(&path)?;
        if found == host {
            return Err(ApiError::conflict(format!(
                "cannot join a namespace of container {}: it is in the host's user namespace, \
                 and only a container with --userns=host can join it",
                other.id
            )));
        }
        match &common {
            Some((_, first)) if *first != found => {
                return Err(ApiError::conflict(
                    "cannot join namespaces of containers in different user namespaces",
                ));
            }
            Some(_) => {}
            None => common = Some((path, found)),
        }
    }
    Ok(common.map(|(path, _)| path))
}

/// Where shared memory is mounted.
const SHM: &str = "/dev/shm";

fn shared_memory(other: &Record) -> HostMount {
    HostMount {
        source: PathBuf::from(SHM),
        destination: SHM.to_owned(),
        options: vec![
            "bind".to_owned(),
            "nosuid".to_owned(),
            "nodev".to_owned(),
            "noexec".to_owned(),
            format!("{SHM_OF_OPTION}{}", other.state.pid),
        ],
    }
}

fn namespace_file(record: &Record, kind: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{}/ns/{kind}", record.state.pid))
}

/// A container that runs on the host's kernel.
fn running(shared: &Arc<Shared>, reference: &str, what: &str) -> ApiResult<Record> {
    let containers = Containers {
        shared: Arc::clone(shared),
    };
    let view = containers.find(reference)?.view();
    let record = &view.record;
    if !record.state.status.is_alive() || record.state.pid == 0 {
        let id = &record.id;
        let join = match what {
            "IPC" => format!("can't join IPC of container {id}: "),
            _ => String::new(),
        };
        return Err(ApiError::conflict(format!(
            "{join}container {id} is not running"
        )));
    }
    if record.isolation != IsolationKind::Process {
        return Err(ApiError::conflict(format!(
            "cannot join {what} of container {}: it has its own kernel",
            record.id
        )));
    }
    Ok(record.clone())
}
