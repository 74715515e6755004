//! What `info` and `version` tell: the host, and whether and how each isolation works on it.
//!
//! Which isolations work is the supervisor's to find out (`probe`). It is asked when the daemon
//! starts, in the background, and again whenever somebody wants to know while one does not
//! work. A container does not depend on the answer: its own supervisor says what is missing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_isolation::VmEngine;
use bulkhead_task::options::Probe;
use tokio::sync::Mutex;

use crate::config::Config;
use crate::services::supervisor;

/// How long a probe may take. It looks for files and opens devices, and may boot a VM.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long `info` and `version` wait for a probe that is still going on.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the probe found, or why there is no answer; a sentence for a person.
pub type ProbeOutcome = Result<Probe, String>;

/// The system service.
#[derive(Debug)]
pub struct System {
    prober: Arc<Prober>,
    /// An identifier of this installation, a UUID.
    pub id: String,
    /// The host, as it does not change.
    pub host: Host,
}

/// The host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// The name.
    pub name: String,
    /// The kernel's release.
    pub kernel: String,
    /// The distribution with its version.
    pub operating_system: String,
    /// The distribution's version.
    pub os_version: String,
    /// The machine (`x86_64`).
    pub machine: String,
}

impl System {
    /// Looks at the host and begins to probe. Called on the runtime.
    pub fn new(config: &Config) -> Self {
        let prober = Arc::new(Prober {
            engine: config.vm.engine,
            guest_dir: config.vm.guest_dir.clone(),
            outcome: Mutex::new(None),
        });
        let background = Arc::clone(&prober);
        tokio::spawn(async move {
            if let Err(reason) = background.get().await {
                tracing::warn!(%reason, "isolations could not be probed");
            }
        });
        Self {
            prober,
            id: installation_id(&config.data_root),
            host: Host::detect(),
        }
    }

    /// What the probe found, if it has within a few seconds.
    pub async fn probe(&self) -> ProbeOutcome {
        tokio::time::timeout(PATIENCE, self.prober.get())
            .await
            .unwrap_or_else(|_| Err("still being probed".to_owned()))
    }
}

/// Asks the supervisor's executable.
#[derive(Debug)]
struct Prober {
    engine: VmEngine,
    guest_dir: Option<PathBuf>,
    /// Held while a probe runs, so that there is one at a time.
    outcome: Mutex<Option<ProbeOutcome>>,
}

impl Prober {
    /// What was found once, as long as all is well: what was missing may be there by now.
    async fn get(&self) -> ProbeOutcome {
        let mut outcome = self.outcome.lock().await;
        if let Some(Ok(known)) = &*outcome
            && known.process.available
            && known.hyperv.available
        {
            return Ok(known.clone());
        }
        let found = self.run().await;
        *outcome = Some(found.clone());
        found
    }

    async fn run(&self) -> ProbeOutcome {
        let binary = supervisor::find_binary().map_err(|error| error.message)?;
        let mut command = tokio::process::Command::new(&binary);
        command
            .arg("probe")
            .arg("--vm-engine")
            .arg(match self.engine {
                VmEngine::Auto => "auto",
                VmEngine::Kvm => "kvm",
                VmEngine::Qemu => "qemu",
            })
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        if let Some(directory) = &self.guest_dir {
            command.arg("--guest-dir").arg(directory);
        }
        let name = binary.display();
        let output = tokio::time::timeout(PROBE_TIMEOUT, command.output())
            .await
            .map_err(|_| format!("{name} probe did not answer in {PROBE_TIMEOUT:?}"))?
            .map_err(|error| format!("{name} could not be run: {error}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{name} probe failed: {}", said.trim()));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{name} probe answered nonsense: {error}"))
    }
}

impl Host {
    fn detect() -> Self {
        let uname = rustix::system::uname();
        let release = std::fs::read_to_string("/etc/os-release")
            .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
            .unwrap_or_default();
        let field = |name: &str| {
            release.lines().find_map(|line| {
                let value = line.strip_prefix(name)?.strip_prefix('=')?;
                Some(value.trim_matches(['"', '\'']).to_owned())
            })
        };
        Self {
            name: uname.nodename().to_string_lossy().into_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            operating_system: field("PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned()),
            os_version: field("VERSION_ID").unwrap_or_default(),
            machine: uname.machine().to_string_lossy().into_owned(),
        }
    }
}

/// Reads the identifier of this installation, or makes one. Where it cannot be kept, it is
/// made anew each time: it only tells installations apart.
fn installation_id(data_root: &Path) -> String {
    let file = data_root.join("engine-id");
    if let Ok(known) = std::fs::read_to_string(&file)
        && !known.trim().is_empty()
    {
        return known.trim().to_owned();
    }
    let mut bytes: [u8; 16] = rand::random();
    // RFC 9562, version 4.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let id = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-");
    if let Err(error) = std::fs::write(&file, &id) {
        tracing::warn!(path = %file.display(), %error, "engine ID not kept");
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identifier_stays() {
        let directory = std::env::temp_dir().join(format!("bulkhead-id-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let first = installation_id(&directory);
        assert_eq!(first.len(), 36);
        assert_eq!(installation_id(&directory), first);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
