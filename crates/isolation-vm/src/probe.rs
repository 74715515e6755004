//! Whether VMs work on this host, and how.

use std::path::Path;

use bulkhead_isolation::{VmEngine, VmSettings};
use bulkhead_machine::{ChoiceError, EngineChoice, HostFacts, choose};

use crate::guest_dir::GuestDir;
use crate::{sizing, trial, worker_path};

/// What `info` and `version` show about hyperv isolation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmProbe {
    /// `Ok` when VMs can be started; else why not, and what to do.
    pub available: Result<(), String>,
    /// The engine, when there is one.
    pub engine: Option<&'static str>,
    /// How it runs instructions.
    pub accelerator: Option<&'static str>,
    /// Why that one, or why none: a sentence.
    pub reason: String,
    /// The guest kernel's release, when there is a guest that says it.
    pub guest_kernel: Option<String>,
    /// What a VM of the default size takes beyond its payload's memory, bytes.
    pub overhead: u64,
}

/// Looks at this host. Reads files, and boots a VM for a moment where it takes that to know
/// whether they can be booted. Blocks meanwhile.
pub fn probe(engine: VmEngine, guest_dir: Option<&Path>) -> VmProbe {
    let guest = GuestDir::find(guest_dir);
    let worker = worker_path::find();
    let choice = choice(
        engine,
        guest.as_ref().ok(),
        worker.as_ref().ok().map(AsRef::as_ref),
    );
    let available = match (&choice, &guest, &worker) {
        (Err(error), _, _) => Err(error.to_string()),
        (_, Err(error), _) => Err(error.to_string()),
        (_, _, Err(error)) => Err(error.to_string()),
        _ => Ok(()),
    };
    VmProbe {
        available,
        engine: choice.as_ref().ok().map(|choice| choice.engine.as_str()),
        accelerator: choice
            .as_ref()
            .ok()
            .map(|choice| choice.accelerator.as_str()),
        reason: match choice {
            Ok(choice) => choice.reason,
            Err(error) => error.to_string(),
        },
        guest_kernel: guest.ok().and_then(|guest| guest.kernel_release()),
        overhead: sizing::overhead(VmSettings::default().default_memory),
    }
}

fn choice(
    engine: VmEngine,
    guest: Option<&GuestDir>,
    worker: Option<&Path>,
) -> Result<EngineChoice, ChoiceError> {
    let facts = match (guest, worker) {
        (Some(guest), Some(worker)) => facts(engine, guest, worker),
        // No VM will run, which is told; this is only about which engine it would be.
        _ => None,
    };
    choose(engine, &facts.unwrap_or_else(HostFacts::probe))
}

/// On a thread of its own, so that it does not matter whether the caller is within a runtime.
fn facts(engine: VmEngine, guest: &GuestDir, worker: &Path) -> Option<HostFacts> {
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .ok()?;
            Some(runtime.block_on(trial::host_facts(engine, guest, worker)))
        });
        looking.join().ok().flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let probe = probe(VmEngine::Kvm, Some(Path::new("/nonexistent")));
        assert!(probe.available.is_err());
        assert_eq!(probe.engine, None);
        assert!(!probe.reason.is_empty());
    }
}
