//! A container in a VM.

use std::sync::Arc;

use async_trait::async_trait;
use bulkhead_agent_protocol::{
    Exec, KillAll, Network, Pause, Processes, Resume, Update, WriteFiles,
};
use bulkhead_isolation::{
    Container, ContainerFiles, Process, ProcessInfo, Resources, Result, Stats,
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
    /// The limit of the payload's memory, bytes.
    payload: Mutex<u64>,
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
            payload: Mutex::new(size.payload),
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
        let memory = resources.memory.map(|asked| self.size.limit(asked));
        let memory = memory.transpose()?;
        let resources = updatable(resources, memory);
        if let Some(cpus) = host_cpus {
            self.vm.pin(&cpus)?;
        }
        let host = resources.clone();
        // One change at a time: the balloon and the limit belong together.
        let mut payload = self.payload.lock().await;
        let wanted = memory.unwrap_or(*payload);
        if wanted > *payload {
            self.vm.balloon(self.size.balloon(wanted)).await?;
        }
        let updated = self.vm.call(Update { resources }).await;
        if updated.is_ok() {
            *payload = wanted;
        }
        if memory.is_some() {
            // Smaller now, or as before when the guest refused.
            self.vm.balloon(self.size.balloon(*payload)).await?;
        }
        updated?;
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

/// The new limits as they can hold in the machine.
fn updatable(resources: Resources, memory: Option<u64>) -> Resources {
    Resources {
        memory: memory.and_then(|memory| i64::try_from(memory).ok()),
        // A guest has no swap, and CPUs and memory of its own.
        memory_swap: None,
        cpuset_cpus: None,
        cpuset_mems: None,
        ..resources
    }
}
