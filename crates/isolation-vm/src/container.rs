//! A container in a VM.

use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_agent_protocol::{
    Exec, KillAll, Network, Pause, Processes, Resume, Update, WriteFiles,
};
use bulkhead_isolation::{
    Container, ContainerFiles, ErrorKind, IsolationError, Process, ProcessInfo, Resources, Result,
    Stats,
};

use tokio::sync::Mutex;

use crate::adapt;
use crate::files::VmFiles;
use crate::given::GivenFiles;
use crate::group::MachineGroup;
use crate::network::VmNetwork;
use crate::process::{VmProcess, Wanted};
use crate::sizing::{self, Size};
use crate::vm::Vm;

/// See the module.
pub struct VmContainer {
    vm: Arc<Vm>,
    init: Arc<VmProcess>,
    size: Size,
    files: Arc<VmFiles>,
    group: MachineGroup,
    outside: Mutex<Outside>,
}

/// What the guest has of the host's, and may have to be given again.
struct Outside {
    network: VmNetwork,
    files: GivenFiles,
}

impl VmContainer {
    /// The container whose init this is.
    pub fn new(
        vm: Arc<Vm>,
        init: Arc<VmProcess>,
        size: Size,
        id: String,
        network: VmNetwork,
        group: MachineGroup,
        given: GivenFiles,
    ) -> Self {
        let files = Arc::new(VmFiles::of_container(Arc::clone(&vm), id));
        let outside = Mutex::new(Outside {
            network,
            files: given,
        });
        Self {
            vm,
            init,
            size,
            files,
            group,
            outside,
        }
    }
}

/// Which streams a process with this specification has.
pub fn wanted(process: &oci_spec::runtime::Process, stdin: bool) -> Wanted {
    Wanted {
        stdin,
        terminal: process.terminal().unwrap_or(false),
    }
}

#[async_trait]
impl Container for VmContainer {
    fn init(&self) -> Arc<dyn Process> {
        Arc::clone(&self.init) as _
    }

    async fn exec(
        &self,
        exec_id: &str,
        mut process: oci_spec::runtime::Process,
        stdin: bool,
    ) -> Result<Arc<dyn Process>> {
        adapt::adapt_process(&mut process);
        let wanted = wanted(&process, stdin);
        let exec = Exec {
            process: exec_id.to_owned(),
            spec: Box::new(process),
            stdin,
        };
        let created = self.vm.call(exec).await?;
        let vm = Arc::clone(&self.vm);
        let process = VmProcess::attach(vm, exec_id.to_owned(), created.pid, wanted).await?;
        Ok(process)
    }

    async fn pause(&self) -> Result<()> {
        self.vm.call(Pause).await
    }

    async fn resume(&self) -> Result<()> {
        self.vm.call(Resume).await
    }

    async fn kill_all(&self, signal: i32) -> Result<()> {
        self.vm.call(KillAll { signal }).await
    }

    async fn processes(&self) -> Result<Vec<ProcessInfo>> {
        self.vm.call(Processes).await
    }

    async fn stats(&self) -> Result<Stats> {
        let mut stats = self.vm.call(bulkhead_agent_protocol::Stats).await?;
        // Rates are computed by the host's clock.
        stats.at = jiff::Timestamp::now();
        Ok(stats)
    }

    async fn update(&self, resources: Resources) -> Result<()> {
        let host_cpus = match resources.cpuset_cpus.as_deref() {
            Some(list) => sizing::host_cpu_list(list)?,
            None => None,
        };
        let resources = updatable(resources, &self.size)?;
        if let Some(cpus) = host_cpus {
            self.vm.pin(&cpus)?;
        }
        let host = resources.clone();
        self.vm.call(Update { resources }).await?;
        self.group.limit(&host);
        Ok(())
    }

    async fn network_changed(&self) -> Result<()> {
        let mut outside = self.outside.lock().await;
        let nics = outside.network.refresh().await?;
        self.vm.call(Network { nics }).await?;
        let changed = outside.files.changed().await?;
        if !changed.headers.is_empty() {
            let files = changed.headers.clone();
            let write = WriteFiles { files };
            self.vm.request_with(write, &changed.contents).await?;
            outside.files.given(changed);
        }
        Ok(())
    }

    fn files(&self) -> Arc<dyn ContainerFiles> {
        Arc::clone(&self.files) as _
    }

    async fn delete(&self) -> Result<()> {
        self.vm.shut_down().await
    }
}

/// The new limits as they can hold in this machine.
fn updatable(mut resources: Resources, size: &Size) -> Result<Resources> {
    let invalid = |message: String| Err(IsolationError::new(ErrorKind::InvalidArgument, message));
    if let Some(memory) = resources.memory {
        let within = u64::try_from(memory).is_ok_and(|memory| memory <= size.payload);
        if !within {
            return invalid(format!(
                "the VM was made for {} MiB, so its memory limit can be lowered and not raised: \
                 create the container with a higher one",
                size.payload >> 20
            ));
        }
    }
    // A guest has no swap, and CPUs and memory of its own.
    resources.memory_swap = None;
    resources.cpuset_cpus = None;
    resources.cpuset_mems = None;
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size {
        payload: 64 << 20,
        memory: 128 << 20,
        vcpus: 1,
        host_cpus: None,
    };

    #[test]
    fn memory_is_lowered_and_not_raised() {
        let with = |memory| Resources {
            memory: Some(memory),
            memory_swap: Some(-1),
            ..Resources::default()
        };
        let lower = updatable(with(32 << 20), &SIZE).unwrap();
        assert_eq!(lower.memory, Some(32 << 20));
        assert_eq!(lower.memory_swap, None);
        for memory in [65 << 20, -1] {
            let error = updatable(with(memory), &SIZE).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidArgument);
        }
    }
}
