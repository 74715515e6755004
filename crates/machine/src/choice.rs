//! Which engine runs VMs on this host, and why.
//!
//! `/dev/kvm` that opens proves little: there are hosts (KVM on PVM) where VMs can be
//! created and a stock kernel then crawls in an instruction emulator and dies. So the CPU
//! must also claim virtualization extensions.

use std::io;
use std::path::Path;

use bulkhead_isolation::VmEngine;

use crate::{Accelerator, EngineKind};

/// Where QEMU is looked for: Debian's name in PATH, and the places PATH may lack.
const QEMU: &str = "qemu-system-x86_64";

/// What the choice depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// `Ok` when `/dev/kvm` opens for reading and writing, else why not.
    pub dev_kvm: Result<(), String>,
    /// The CPU flag that `/proc/cpuinfo` shows: `vmx` or `svm`.
    pub virtualization_flag: Option<&'static str>,
    /// Where QEMU is.
    pub qemu: Option<std::path::PathBuf>,
}

impl HostFacts {
    /// Looks at this host.
    pub fn probe() -> Self {
        let dev_kvm = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map(drop)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => "there is no /dev/kvm".to_owned(),
                _ => format!("/dev/kvm does not open ({error})"),
            });
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            dev_kvm,
            virtualization_flag: virtualization_flag(&cpuinfo),
            qemu: find_qemu(),
        }
    }

    /// Whether KVM is the real thing, and if not why.
    fn hardware(&self) -> Result<&'static str, String> {
        match (&self.dev_kvm, self.virtualization_flag) {
            (Ok(()), Some(flag)) => Ok(flag),
            (Ok(()), None) => Err(
                "/dev/kvm opens, but the CPU shows neither vmx nor svm, so stock guest \
                 kernels would not run on it"
                    .to_owned(),
            ),
            (Err(why), Some(flag)) => Err(format!("the CPU has {flag}, but {why}")),
            (Err(why), None) => Err(format!("{why}, and the CPU shows neither vmx nor svm")),
        }
    }
}

/// Finds QEMU in PATH; without a PATH, where distributions put it.
pub fn find_qemu() -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin".into());
    std::env::split_paths(&path)
        .map(|directory| directory.join(QEMU))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

fn virtualization_flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'))?
        .1;
    ["vmx", "svm"]
        .into_iter()
        .find(|wanted| flags.split_ascii_whitespace().any(|flag| flag == *wanted))
}

/// The engine that runs VMs here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineChoice {
    /// Which.
    pub engine: EngineKind,
    /// How it runs instructions.
    pub accelerator: Accelerator,
    /// Why, a sentence for a person.
    pub reason: String,
}

/// No engine can run VMs here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChoiceError {
    /// The engine asked for is not part of this build.
    #[error(
        "the VM engine 'kvm' is not part of this build: use '--vm-engine auto' or \
         '--vm-engine qemu' (QEMU uses KVM by itself where it works)"
    )]
    NotBuilt,
    /// There is no QEMU.
    #[error(
        "no VM engine is available: qemu-system-x86_64 was not found in PATH; install it \
         (Debian: apt-get install qemu-system-x86)"
    )]
    NoQemu,
}

/// Chooses the engine.
///
/// # Errors
/// That the host or this build lacks what was asked for, and what to do about it.
pub fn choose(asked: VmEngine, facts: &HostFacts) -> Result<EngineChoice, ChoiceError> {
    match asked {
        VmEngine::Kvm => Err(ChoiceError::NotBuilt),
        VmEngine::Auto | VmEngine::Qemu => {
            if facts.qemu.is_none() {
                return Err(ChoiceError::NoQemu);
            }
            let asked = if asked == VmEngine::Qemu {
                " as asked for"
            } else {
                ""
            };
            let (accelerator, reason) = match facts.hardware() {
                Ok(flag) => (
                    Accelerator::Kvm,
                    format!("QEMU{asked} on KVM: /dev/kvm opens and the CPU has {flag}"),
                ),
                Err(why) => (
                    Accelerator::Tcg,
                    format!("QEMU{asked} with software emulation: {why}"),
                ),
            };
            Ok(EngineChoice {
                engine: EngineKind::Qemu,
                accelerator,
                reason,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(kvm: bool, flag: Option<&'static str>) -> HostFacts {
        HostFacts {
            dev_kvm: if kvm {
                Ok(())
            } else {
                Err("there is no /dev/kvm".to_owned())
            },
            virtualization_flag: flag,
            qemu: Some("/usr/bin/qemu-system-x86_64".into()),
        }
    }

    #[test]
    fn kvm_needs_the_device_and_the_flag() {
        let accelerator = |facts: &HostFacts| choose(VmEngine::Auto, facts).unwrap().accelerator;
        assert_eq!(accelerator(&facts(true, Some("svm"))), Accelerator::Kvm);
        assert_eq!(accelerator(&facts(true, None)), Accelerator::Tcg);
        assert_eq!(accelerator(&facts(false, Some("vmx"))), Accelerator::Tcg);
        assert_eq!(accelerator(&facts(false, None)), Accelerator::Tcg);
    }

    #[test]
    fn the_reason_names_what_is_missing() {
        let choice = choose(VmEngine::Auto, &facts(true, None)).unwrap();
        assert!(choice.reason.contains("neither vmx nor svm"), "{choice:?}");
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert_eq!(
            choose(VmEngine::Kvm, &facts(true, Some("vmx"))),
            Err(ChoiceError::NotBuilt)
        );
        let without = HostFacts {
            qemu: None,
            ..facts(true, None)
        };
        assert_eq!(choose(VmEngine::Qemu, &without), Err(ChoiceError::NoQemu));
    }

    #[test]
    fn flags_are_words() {
        let cpuinfo = "model name\t: x svm\nflags\t\t: fpu npt vmxnot svm_lock\n";
        assert_eq!(virtualization_flag(cpuinfo), None);
        assert_eq!(virtualization_flag("flags\t\t: fpu svm npt\n"), Some("svm"));
    }
}
