//! The daemons that are measured, on directories of their own, and the trees that images
//! and layers are made from.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::quiet;

/// Whose daemon.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bulkhead,
    Dockerd,
}

/// A daemon; dropping it removes its containers and stops it.
pub(super) struct Daemon {
    base: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts it, and gives it a busybox image.
    pub(super) fn start(kind: Kind, binaries: &Path, base: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(base)?;
        let mut command = match kind {
            Kind::Bulkhead => {
                let mut command = Command::new(binaries.join("bulkhead"));
                command.arg("daemon");
                command
            }
            Kind::Dockerd => {
                let mut command = Command::new("dockerd");
                command.args(["--bridge", "none", "--iptables=false"]);
                command
            }
        };
        let log = File::create(base.join("log"))?;
        command
            .arg("-H")
            .arg(format!("unix://{}", base.join("d.sock").display()))
            .arg("--data-root")
            .arg(base.join("data"))
            .arg("--exec-root")
            .arg(base.join("exec"))
            .arg("--pidfile")
            .arg(base.join("pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = command
            .spawn()
            .with_context(|| format!("{command:?} does not start; is it built?"))?;
        let mut daemon = Self {
            base: base.to_owned(),
            child,
        };
        let end = Instant::now() + Duration::from_secs(30);
        while daemon.docker(&["version".to_owned()]).is_err() {
            if Instant::now() > end || daemon.child.try_wait()?.is_some() {
                let log = fs::read_to_string(base.join("log")).unwrap_or_default();
                bail!("{command:?} does not serve\n{log}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let (tree, tar) = (base.join("tree"), base.join("busybox.tar"));
        busybox_tree(&tree)?;
        quiet(
            Command::new("tar")
                .arg("-cf")
                .arg(&tar)
                .arg("-C")
                .arg(&tree)
                .arg("."),
        )?;
        let tar = tar.display().to_string();
        daemon.docker(&["import".to_owned(), tar, "busybox".to_owned()])?;
        Ok(daemon)
    }

    /// Its address for clients.
    pub(super) fn host(&self) -> String {
        format!("unix://{}", self.base.join("d.sock").display())
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn client(&self, words: &[String]) -> Command {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", self.base.join("client"))
            .env_remove("DOCKER_CONTEXT")
            .stdin(Stdio::null())
            .args(words);
        command
    }

    /// Runs the docker CLI against it.
    pub(super) fn docker(&self, words: &[String]) -> anyhow::Result<()> {
        quiet(&mut self.client(words))
    }

    /// As [`Daemon::docker`]; what it printed, trimmed.
    pub(super) fn docker_output(&self, words: &[String]) -> anyhow::Result<String> {
        let output = self.client(words).output()?;
        if !output.status.success() {
            bail!(
                "docker {words:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let all = ["ps", "-aq"].map(str::to_owned);
        let ids = self.docker_output(&all).unwrap_or_default();
        if !ids.is_empty() {
            let mut words = vec!["rm".to_owned(), "-f".to_owned()];
            words.extend(ids.lines().map(str::to_owned));
            if let Err(error) = self.docker(&words) {
                eprintln!("bench: {error}");
            }
        }
        let pid = self.child.id().to_string();
        drop(Command::new("kill").arg(pid).status());
        drop(self.child.wait());
    }
}

/// Resident memory of a process, KiB.
pub(super) fn rss(pid: u32) -> anyhow::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let value = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    value.with_context(|| format!("no VmRSS for {pid}"))
}

/// Processes whose command line has all of these words: PID and name.
pub(super) fn with_words(words: &[&str]) -> Vec<(u32, String)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if words.iter().all(|word| command.contains(word)) {
            found.push((pid, name.trim().to_owned()));
        }
    }
    found.sort_unstable();
    found
}

/// A root file system around the host's static busybox.
pub(super) fn busybox_tree(root: &Path) -> anyhow::Result<()> {
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        fs::create_dir_all(root.join(directory))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))
        .context("/bin/busybox, from package busybox-static")?;
    for applet in ["sh", "true", "sleep"] {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    Ok(())
}

/// A tree like that of a language runtime: many small files, some large, in directories of
/// a hundred; the same on every machine.
pub(super) fn layer_tree(root: &Path, files: u32, bytes: usize) -> anyhow::Result<()> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = vec![0_u8; 1 << 20];
    for chunk in noise.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes());
    }
    let count = usize::try_from(files)?;
    // Nine of ten files share a quarter of the bytes.
    let large = count / 10;
    let (small_size, large_size) = (bytes / 4 / (count - large), bytes * 3 / 4 / large);
    for number in 0..count {
        let directory = root.join(format!("directory-{:03}", number / 100));
        if number % 100 == 0 {
            fs::create_dir_all(&directory)?;
        }
        let size = if number % 10 == 0 {
            large_size
        } else {
            small_size
        };
        let from = (number * 37) % (noise.len() - size);
        let mut file = File::create(directory.join(format!("file-{number:05}")))?;
        file.write_all(&noise[from..from + size])?;
    }
    Ok(())
}
