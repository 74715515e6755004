//! Namespaces of other containers that one is in: `--pid`, `--ipc` and `--network
//! container:NAME`. They are looked up at each start, because the other one's processes are
//! what names them.

use std::path::PathBuf;
use std::sync::Arc;

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
}

impl Joined {
    /// Looks up those that the configuration names; they have to run.
    ///
    /// # Errors
    /// 404 for one that there is not, 409 for one that does not run or has its own kernel, 400
    /// for one that does not share its IPC namespace.
    pub(super) fn find(shared: &Arc<Shared>, record: &Record) -> ApiResult<Self> {
        let mut joined = Self::default();
        let other = |mode: &Option<String>| {
            let mode = mode.as_deref()?;
            Some(mode.strip_prefix("container:")?.to_owned())
        };
        if let Some(reference) = other(&record.host_config.pid_mode) {
            let other = running(shared, &reference, "PID")?;
            joined.pid = Some(namespace_file(&other, "pid"));
        }
        if let Some(reference) = other(&record.host_config.ipc_mode) {
            let other = running(shared, &reference, "IPC")?;
            if other.host_config.ipc_mode.as_deref() != Some("shareable") {
                return Err(ApiError::bad_request(format!(
                    "cannot join IPC of container {}: non-shareable IPC (hint: use \
                     IpcMode:shareable for the donor container)",
                    other.id
                )));
            }
            joined.ipc = Some(namespace_file(&other, "ipc"));
            let taken = record.mounts.iter().any(|one| one.destination == SHM);
            if !taken {
                joined.mounts.push(shared_memory(&other));
            }
        }
        if let Namespace::Of(reference) = network::namespace(&record.host_config) {
            let other = network::joined(shared, reference)?;
            joined.hostname = Some(other.hostname().to_owned());
        }
        Ok(joined)
    }
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
        return Err(ApiError::conflict(format!(
            "cannot join {what} of a non running container: {}",
            record.id
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
