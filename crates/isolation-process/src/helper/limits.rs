//! Asking for no more than this host grants: raising a hard limit, or lowering the OOM
//! score, takes a capability that even root may not have.
//!
//! Limits are meant for the payload, and what is done until it runs might not get by with
//! them: files are written, and more descriptors are needed than some would allow. So hard
//! limits are raised early, while that may be done, and everything else comes late.

use bulkhead_isolation::{IsolationError, Result};
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Fewer open files than this are set at the very end: libcontainer's process has some itself.
const FEW_FILES: u64 = 64;

/// Lowers what the process asks for to what can be had, and says so.
pub fn clamp(process: &mut Process) {
    if let Some(mut limits) = process.rlimits().clone() {
        for limit in &mut limits {
            let Some(resource) = resource(limit.typ()) else {
                continue;
            };
            // On ourselves: the payload inherits it.
            let own = getrlimit(resource);
            let raised = Rlimit {
                current: own.current,
                maximum: value(limit.hard()),
            };
            if own.maximum.is_none_or(|own| limit.hard() <= own)
                || !matches!(setrlimit(resource, raised), Err(Errno::PERM | Errno::INVAL))
            {
                continue;
            }
            let granted = getrlimit(resource).maximum.unwrap_or(u64::MAX);
            let (soft, hard) = (limit.soft().min(granted), limit.hard().min(granted));
            tracing::warn!(
                limit = ?limit.typ(), wanted = limit.hard(), granted,
                "resource limit lowered to what this host grants"
            );
            let lowered = PosixRlimitBuilder::default()
                .typ(limit.typ())
                .soft(soft)
                .hard(hard)
                .build();
            if let Ok(lowered) = lowered {
                *limit = lowered;
            }
        }
        process.set_rlimits(Some(limits));
    }
    if let Some(score) = process.oom_score_adj() {
        match std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(score, %error, "OOM score left as it is");
            }
        }
        // The payload inherits ours; libcontainer would fail where we do.
        process.set_oom_score_adj(None);
    }
}

/// The limits of a payload, which only lower what [`clamp`] has raised.
#[derive(Debug, Clone, Default)]
pub struct Late(Vec<PosixRlimit>);

impl Late {
    /// Takes them from a process that was [clamped](clamp), so that libcontainer sets none.
    pub fn take(process: &mut Process) -> Self {
        let limits = process.rlimits().clone().unwrap_or_default();
        process.set_rlimits(None);
        Self(limits)
    }

    /// Sets what the rest of the way to the payload can do with. Before the filter for system
    /// calls, which need not allow this.
    pub fn set(&self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        // The log would rather be cut off than end us; the payload gets the default back.
        // SAFETY: no handler is installed.
        unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
        self.set_those(|limit| !is_few_files(limit))
    }

    /// Sets the others, when no descriptor is needed any more.
    pub fn set_last(&self) -> Result<()> {
        self.set_those(is_few_files)
    }

    fn set_those(&self, which: impl Fn(&PosixRlimit) -> bool) -> Result<()> {
        for limit in self.0.iter().filter(|limit| which(limit)) {
            let Some(resource) = resource(limit.typ()) else {
                continue;
            };
            let wanted = Rlimit {
                current: value(limit.soft()),
                maximum: value(limit.hard()),
            };
            setrlimit(resource, wanted).map_err(|error| {
                IsolationError::other(format!("set the limit {:?}", limit.typ()), error)
            })?;
        }
        Ok(())
    }
}

fn is_few_files(limit: &PosixRlimit) -> bool {
    limit.typ() == PosixRlimitType::RlimitNofile && limit.soft() < FEW_FILES
}

fn value(limit: u64) -> Option<u64> {
    Some(limit).filter(|limit| *limit != u64::MAX)
}

fn resource(kind: PosixRlimitType) -> Option<Resource> {
    Some(match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    })
}
