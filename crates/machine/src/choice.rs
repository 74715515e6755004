//! Which engine runs VMs on this host, and why.
//!
//! `/dev/kvm` that opens proves little: there are hosts (KVM on PVM) where VMs can be
//! created and a stock kernel then crawls in an instruction emulator and dies. So the CPU
//! must also claim virtualization extensions, and our own engine must have booted a guest,
//! which is somebody else's to try ([`HostFacts::wants_trial`]).

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
    /// What came of booting a guest with our own engine: what was booted, or why it failed;
    /// `None` when that was not tried.
    pub trial: Option<Result<String, String>>,
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
            trial: None,
        }
    }

    /// Whether the choice hangs on a trial boot that was not made yet.
    pub fn wants_trial(&self, asked: VmEngine) -> bool {
        asked == VmEngine::Auto && self.trial.is_none() && self.hardware().is_ok()
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
    /// Our own engine has nothing to run on.
    #[error(
        "the VM engine 'kvm' cannot run here: {0}; use '--vm-engine auto' or '--vm-engine qemu', \
         which emulates the CPU where it must"
    )]
    NoKvm(String),
    /// There is no QEMU.
    #[error(
        "no VM engine is available: qemu-system-x86_64 was not found in PATH; install it \
         (Debian: apt-get install qemu-system-x86)"
    )]
    NoQemu,
    /// KVM is there and does not work, and nothing else is there.
    #[error(
        "no VM engine works: a trial boot on /dev/kvm failed ({0}), and qemu-system-x86_64, \
         which could emulate the CPU, was not found in PATH (Debian: apt-get install \
         qemu-system-x86)"
    )]
    TrialFailed(String),
}

/// Chooses the engine.
///
/// # Errors
/// That the host or this build lacks what was asked for, and what to do about it.
pub fn choose(asked: VmEngine, facts: &HostFacts) -> Result<EngineChoice, ChoiceError> {
    let hardware = facts.hardware();
    if asked == VmEngine::Kvm {
        let flag = hardware.map_err(ChoiceError::NoKvm)?;
        return Ok(EngineChoice {
            engine: EngineKind::Kvm,
            accelerator: Accelerator::Kvm,
            reason: format!("our own VMM as asked for: /dev/kvm opens and the CPU has {flag}"),
        });
    }
    if asked == VmEngine::Auto
        && let (Ok(flag), Some(Ok(booted))) = (&hardware, &facts.trial)
    {
        return Ok(EngineChoice {
            engine: EngineKind::Kvm,
            accelerator: Accelerator::Kvm,
            reason: format!(
                "our own VMM: /dev/kvm opens, the CPU has {flag}, and a trial boot of {booted} \
                 worked"
            ),
        });
    }
    if facts.qemu.is_none() {
        return Err(match (&hardware, &facts.trial) {
            (Ok(_), Some(Err(why))) => ChoiceError::TrialFailed(why.clone()),
            _ => ChoiceError::NoQemu,
        });
    }
    let wish = if asked == VmEngine::Qemu {
        " as asked for"
    } else {
        ""
    };
    // Where our own engine cannot boot a guest on KVM, nobody else's attempt is trusted
    // either: slow is better than a guest that dies of an instruction.
    let (accelerator, reason) = match (hardware, &facts.trial) {
        (Ok(_), Some(Err(why))) if asked == VmEngine::Auto => (
            Accelerator::Tcg,
            format!("QEMU with software emulation: a trial boot on /dev/kvm failed: {why}"),
        ),
        (Ok(flag), _) => (
            Accelerator::Kvm,
            format!("QEMU{wish} on KVM: /dev/kvm opens and the CPU has {flag}"),
        ),
        (Err(why), _) => (
            Accelerator::Tcg,
            format!("QEMU{wish} with software emulation: {why}"),
        ),
    };
    Ok(EngineChoice {
        engine: EngineKind::Qemu,
        accelerator,
        reason,
    })
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
            trial: None,
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
    fn our_own_engine_is_taken_when_it_has_booted_a_guest() {
        let tried = |trial: Result<&str, &str>| HostFacts {
            trial: Some(trial.map(str::to_owned).map_err(str::to_owned)),
            ..facts(true, Some("svm"))
        };
        let untried = facts(true, Some("svm"));
        assert!(untried.wants_trial(VmEngine::Auto));
        assert!(!untried.wants_trial(VmEngine::Qemu));
        assert!(!facts(true, None).wants_trial(VmEngine::Auto));
        let choice = choose(VmEngine::Auto, &tried(Ok("6.12"))).unwrap();
        assert_eq!(choice.engine, EngineKind::Kvm);
        assert!(choice.reason.contains("trial boot of 6.12"), "{choice:?}");

        let choice = choose(VmEngine::Auto, &tried(Err("it hung"))).unwrap();
        assert_eq!(choice.engine, EngineKind::Qemu);
        assert_eq!(choice.accelerator, Accelerator::Tcg);
        assert!(choice.reason.ends_with("failed: it hung"), "{choice:?}");
        let alone = HostFacts {
            qemu: None,
            ..tried(Err("it hung"))
        };
        assert!(matches!(
            choose(VmEngine::Auto, &alone),
            Err(ChoiceError::TrialFailed(_))
        ));
        let alone = HostFacts {
            qemu: None,
            ..tried(Ok("6.12"))
        };
        assert!(choose(VmEngine::Auto, &alone).is_ok(), "nobody needs QEMU");
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert!(choose(VmEngine::Kvm, &facts(true, Some("vmx"))).is_ok());
        for lacking in [facts(true, None), facts(false, Some("vmx"))] {
            assert!(matches!(
                choose(VmEngine::Kvm, &lacking),
                Err(ChoiceError::NoKvm(_))
            ));
        }
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
