//! Whether our own engine boots our own guest on this host: tried once, and remembered until
//! the host boots anew, or the guest or the worker is another one.
//!
//! `/dev/kvm` and a CPU flag are promises; there are hosts that break them at an instruction
//! that a stock kernel uses. So a machine without disks is booted until its agent speaks.

use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bulkhead_agent_protocol::hello;
use bulkhead_isolation::VmEngine;
use bulkhead_machine::worker::Worker;
use bulkhead_machine::{Accelerator, Console, EngineKind, HostFacts, MachineConfig};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::guest_dir::GuestDir;

/// How long the guest may take. Hardware needs a fraction of a second; a host that needs
/// longer than this is none to run VMs on.
const LIMIT: Duration = Duration::from_secs(45);

/// A failure is tried again after this: what was in the way may be gone.
const RETRY: Duration = Duration::from_secs(600);

/// Where results are kept: gone when the host boots.
const DIRECTORY: &str = "/run/bulkhead/trial";

const MIB: u64 = 1 << 20;

/// Looks at this host, with a trial boot if the choice depends on one.
pub(crate) async fn host_facts(asked: VmEngine, guest: &GuestDir, worker: &Path) -> HostFacts {
    let mut facts = HostFacts::probe();
    if facts.wants_trial(asked) {
        facts.trial = Some(remembered(Path::new(DIRECTORY), guest, worker).await);
    }
    facts
}

/// A result as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    /// What was tried.
    subject: Subject,
    /// What was booted, or why it failed.
    result: Result<String, String>,
}

/// What a result is about. Another one of anything, and it is tried again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Subject {
    /// The host, as it was booted.
    boot: String,
    /// The worker, the guest's kernel and its initramfs: path, length, time of change.
    files: Vec<(PathBuf, u64, i64, i64)>,
}

impl Subject {
    fn new(guest: &GuestDir, worker: &Path) -> io::Result<Self> {
        let files = [worker.to_owned(), guest.kernel(), guest.initramfs()];
        Ok(Self {
            boot: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?,
            files: files
                .into_iter()
                .map(|path| {
                    let metadata = std::fs::metadata(&path)?;
                    let changed = (metadata.mtime(), metadata.mtime_nsec());
                    Ok((path, metadata.len(), changed.0, changed.1))
                })
                .collect::<io::Result<_>>()?,
        })
    }

    /// A file's name for the result.
    fn name(&self) -> String {
        // Only a name: what is in the file says what it is about.
        let mut hasher = std::hash::DefaultHasher::new();
        self.hash(&mut hasher);
        format!("{:016x}.json", hasher.finish())
    }
}

/// The result that is kept, or that of a new trial.
async fn remembered(directory: &Path, guest: &GuestDir, worker: &Path) -> Result<String, String> {
    let subject = Subject::new(guest, worker)
        .map_err(|error| format!("cannot look at the guest: {error}"))?;
    let file = directory.join(subject.name());
    if let Some(result) = read(&file, &subject) {
        return result;
    }
    make_directory(directory)
        .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    let lock = lock(directory)
        .await
        .map_err(|error| format!("cannot lock {}: {error}", directory.display()))?;
    // Whoever had it before has tried the same, most likely.
    if let Some(result) = read(&file, &subject) {
        return result;
    }
    let result = attempt(directory, guest, worker).await?;
    let kept = Kept {
        subject,
        result: result.clone(),
    };
    if let Err(error) = write(&file, &kept) {
        tracing::warn!(file = %file.display(), %error, "the result of a trial boot is not kept");
    }
    drop(lock);
    result
}

/// One trial at a time: ten containers that start at once need no ten of them, and each would
/// take its time from the others.
async fn lock(directory: &Path) -> io::Result<File> {
    let path = directory.join("lock");
    let locked = tokio::task::spawn_blocking(move || {
        let file = File::create(path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
        Ok(file)
    });
    locked.await.map_err(io::Error::other)?
}

fn read(file: &Path, subject: &Subject) -> Option<Result<String, String>> {
    let kept: Kept = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let age = std::fs::metadata(file).ok()?.modified().ok()?;
    let is_old = SystemTime::now()
        .duration_since(age)
        .is_ok_and(|age| age > RETRY);
    (kept.subject == *subject && (kept.result.is_ok() || !is_old)).then_some(kept.result)
}

fn write(file: &Path, kept: &Kept) -> io::Result<()> {
    let temporary = file.with_extension(std::process::id().to_string());
    std::fs::write(&temporary, serde_json::to_vec(kept)?)?;
    std::fs::rename(&temporary, file)
}

fn make_directory(directory: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
}

/// Boots a machine until its agent speaks.
///
/// # Errors
/// Why there was no attempt: that says nothing about KVM.
async fn attempt(
    directory: &Path,
    guest: &GuestDir,
    worker: &Path,
) -> Result<Result<String, String>, String> {
    let config = MachineConfig {
        id: "trial".to_owned(),
        engine: EngineKind::Kvm,
        accelerator: Accelerator::Kvm,
        kernel: guest.kernel(),
        kernel_hz: guest.kernel_hz(),
        initramfs: guest.initramfs(),
        cmdline_extra: Vec::new(),
        memory_bytes: 256 * MIB,
        balloon_bytes: 0,
        vcpus: 1,
        placement: bulkhead_machine::Placement::default(),
        disks: Vec::new(),
        nics: Vec::new(),
        runtime_dir: directory.to_owned(),
        console: Console::Quiet,
    };
    let name = || {
        guest
            .kernel_release()
            .unwrap_or_else(|| "the guest".to_owned())
    };
    for _ in 0..crate::vm::STARTS {
        if let Some(result) = boot(worker, &config).await? {
            return Ok(result.map(|()| name()));
        }
    }
    Ok(Err(hello::HelloError::Mistimed.to_string()))
}

/// Boots once; `None` when the guest could not measure its timer.
async fn boot(worker: &Path, config: &MachineConfig) -> Result<Option<Result<(), String>>, String> {
    let (worker, mut transport) = Worker::spawn(worker, config, Vec::new())
        .await
        .map_err(|error| error.to_string())?;
    let spoken = tokio::select! {
        biased;
        exit = worker.wait() => Err(exit.detail),
        greeting = timeout(LIMIT, hello::receive(&mut transport)) => match greeting {
            Ok(Ok(_)) => Ok(true),
            Ok(Err(hello::HelloError::Mistimed)) => Ok(false),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("the guest did not start up within {} s", LIMIT.as_secs())),
        },
    };
    let exit = worker.kill().await;
    Ok(match spoken {
        Ok(has_spoken) => has_spoken.then_some(Ok(())),
        // A broken connection is only what is seen of the machine's end.
        Err(_) if exit.reason != bulkhead_machine::ExitReason::Killed => {
            Some(Err(crate::vm::clean(&exit.detail)))
        }
        Err(why) => Some(Err(crate::vm::clean(&why))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject {
            boot: "b".to_owned(),
            files: vec![("/k".into(), 1, 2, 3)],
        }
    }

    #[test]
    fn a_result_is_kept_for_what_it_is_about() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join(subject().name());
        assert_eq!(read(&file, &subject()), None);
        let kept = Kept {
            subject: subject(),
            result: Ok("6.12".to_owned()),
        };
        write(&file, &kept).unwrap();
        assert_eq!(read(&file, &subject()), Some(Ok("6.12".to_owned())));
        let other = Subject {
            boot: "c".to_owned(),
            ..subject()
        };
        assert_eq!(read(&file, &other), None);
        assert_ne!(other.name(), subject().name());
        std::fs::write(&file, "{").unwrap();
        assert_eq!(read(&file, &subject()), None);
    }

    #[test]
    fn failures_are_tried_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("f");
        let kept = Kept {
            subject: subject(),
            result: Err("it hung".to_owned()),
        };
        write(&file, &kept).unwrap();
        assert_eq!(read(&file, &subject()), Some(Err("it hung".to_owned())));
        let long_ago = SystemTime::now() - RETRY * 2;
        let opened = std::fs::File::options().write(true).open(&file).unwrap();
        opened.set_modified(long_ago).unwrap();
        assert_eq!(read(&file, &subject()), None);
    }
}
