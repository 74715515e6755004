//! Asking for no more than this host grants: raising a hard limit, or lowering the OOM
//! score, takes a capability that even root may not have.

use oci_spec::runtime::{PosixRlimitBuilder, PosixRlimitType, Process};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lowers what the process asks for to what can be had, and says so.
pub fn clamp(process: &mut Process) {
    if let Some(mut limits) = process.rlimits().clone() {
        for limit in &mut limits {
            let Some(resource) = resource(limit.typ()) else {
                continue;
            };
            let wanted = Rlimit {
                current: Some(limit.soft()).filter(|value| *value != u64::MAX),
                maximum: Some(limit.hard()).filter(|value| *value != u64::MAX),
            };
            // On ourselves: the payload inherits it, and libcontainer sets the same again.
            if !matches!(setrlimit(resource, wanted), Err(Errno::PERM | Errno::INVAL)) {
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
