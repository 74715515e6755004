//! Which isolation serves a container.

use std::io;
use std::sync::Arc;

use bulkhead_isolation::Isolation;
use bulkhead_isolation_process::{ProcessIsolation, Reaper};
use bulkhead_isolation_vm::VmIsolation;
use bulkhead_task::options::IsolationKind;

/// Makes the isolation, on the current runtime. Only process isolation reaps all children
/// of this process; the other keeps its own.
pub fn make(kind: IsolationKind) -> io::Result<Arc<dyn Isolation>> {
    Ok(match kind {
        IsolationKind::Process => Arc::new(ProcessIsolation::new(Reaper::start()?)),
        IsolationKind::Hyperv => Arc::new(VmIsolation::new()),
    })
}
