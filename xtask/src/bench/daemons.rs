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

/// Which network a daemon's bridge and published ports are in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// This machine's. dockerd gets no bridge there: its rules would outlive it.
    Host,
    /// A namespace of its own, which goes with it.
    Own,
}

/// A daemon; dropping it removes its containers and stops it.
pub(super) struct Daemon {
    base: PathBuf,
    child: Child,
}

impl Daemon {
    /// Starts it, and gives it a busybox image.
    pub(super) fn start(
        kind: Kind,
        network: Network,
        binaries: &Path,
        base: &Path,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(base)?;
        let mut command = match network {
            Network::Host => Command::new("env"),
            Network::Own => {
                let mut command = Command::new("unshare");
                // What sysctls and names of networks it changes is its own too.
                command.args(["--net", "--mount", "--propagation", "slave", "sh", "-c"]);
                command.args(["ip link set lo up && exec \"$@\"", "sh"]);
                command
            }
        };
        match kind {
            Kind::Bulkhead => {
                command.arg(binaries.join("bulkhead")).arg("daemon");
            }
            Kind::Dockerd => {
                command.arg("dockerd");
                if network == Network::Host {
                    command.args(["--bridge", "none", "--iptables=false"]);
                }
            }
        }
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
        let tree = base.join("tree");
        busybox_tree(&tree)?;
        daemon.import(&tree, "busybox")?;
        Ok(daemon)
    }

    /// Makes an image of a tree.
    pub(super) fn import(&self, tree: &Path, name: &str) -> anyhow::Result<()> {
        let tar = self.base.join("import.tar");
        pack(tree, &tar)?;
        let words = ["import", &tar.display().to_string(), name].map(str::to_owned);
        self.docker(&words)?;
        Ok(fs::remove_file(&tar)?)
    }

    /// Its address for clients.
    pub(super) fn host(&self) -> String {
        format!("unix://{}", self.base.join("d.sock").display())
    }

    /// A program of this machine, in the network that the daemon is in.
    pub(super) fn nearby(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--net").arg("--target");
        command.arg(self.pid().to_string()).arg("--").arg(program);
        command
    }

    /// Where it keeps what it has.
    pub(super) fn data_root(&self) -> PathBuf {
        self.base.join("data")
    }

    /// Its process.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The docker CLI, with this daemon, and the builder that both daemons have.
    pub(super) fn client(&self, words: &[String]) -> Command {
        let mut command = Command::new("docker");
        command
            .env("DOCKER_HOST", self.host())
            .env("DOCKER_CONFIG", self.base.join("client"))
            .env("DOCKER_BUILDKIT", "0")
            .env_remove("DOCKER_CONTEXT")
            .stdin(Stdio::null())
            .args(words);
        command
    }

    /// Runs the docker CLI against it.
    pub(super) fn docker(&self, words: &[String]) -> anyhow::Result<()> {
        quiet(&mut self.client(words))
    }

    /// As [`Daemon::docker`], with words that are known here.
    pub(super) fn run(&self, words: &str) -> anyhow::Result<String> {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        self.docker_output(&words)
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
    status(pid, "VmRSS")
}

/// The most that it has had since [`forget_peak`], KiB.
pub(super) fn peak(pid: u32) -> anyhow::Result<u32> {
    status(pid, "VmHWM")
}

/// Resets what [`peak`] tells: proc(5), `clear_refs`, 5.
pub(super) fn forget_peak(pid: u32) -> anyhow::Result<()> {
    Ok(fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

fn status(pid: u32, name: &str) -> anyhow::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mut fields = status.lines().filter_map(|line| line.split_once(':'));
    let value = fields.find(|(field, _)| *field == name);
    let value = value.and_then(|(_, value)| value.trim().trim_end_matches(" kB").parse().ok());
    value.with_context(|| format!("no {name} for {pid}"))
}

/// What a process alone holds, KiB: the dirty private pages of its mappings but for those of
/// at least `guest` bytes, which are a guest's memory.
pub(super) fn private(pid: u32, guest: u64) -> anyhow::Result<u32> {
    let maps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    private_in(&maps, guest).with_context(|| format!("the mappings of {pid}"))
}

fn private_in(maps: &str, guest: u64) -> anyhow::Result<u32> {
    let mut sum = 0;
    let mut guests = 0;
    let mut is_guest = false;
    for line in maps.lines() {
        let mut words = line.split_ascii_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            let (start, end) = first.split_once('-').context("not a line of smaps")?;
            let [start, end] = [start, end].map(|text| u64::from_str_radix(text, 16));
            is_guest = end? - start? >= guest;
            guests += u32::from(is_guest);
        } else if matches!(first, "Private_Dirty:" | "Private_Hugetlb:") && !is_guest {
            sum += words.next().unwrap_or_default().parse::<u32>()?;
        }
    }
    if guests == 0 {
        bail!("no guest's memory is among them");
    }
    Ok(sum)
}

/// Archives a tree.
pub(super) fn pack(tree: &Path, tar: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("tar");
    quiet(command.arg("-cf").arg(tar).arg("-C").arg(tree).arg("."))
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
    for applet in [
        "sh", "true", "rm", "sleep", "cat", "ping", "head", "dd", "seq",
    ] {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("busybox", link)?;
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    Ok(())
}

/// Adds programs of this machine to a tree, with the libraries that they load.
pub(super) fn add_programs(root: &Path, programs: &[&str]) -> anyhow::Result<()> {
    for program in programs {
        let path = Path::new("/usr/bin").join(program);
        let needs = Command::new("ldd").arg(&path).output()?;
        let needs = String::from_utf8_lossy(&needs.stdout).into_owned();
        let libraries = needs
            .split_whitespace()
            .filter(|word| word.starts_with('/'));
        for file in libraries.chain(path.to_str()) {
            let to = root.join(file.trim_start_matches('/'));
            let directory = to.parent().context("a program below /")?;
            fs::create_dir_all(directory)?;
            fs::copy(file, &to).with_context(|| format!("copying {file}"))?;
        }
    }
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

#[cfg(test)]
mod tests {
    use super::private_in;

    #[test]
    fn private_memory_is_without_the_guests() {
        let maps = "\
7f0000000000-7f0010000000 rw-p 00000000 00:00 0 
Size:             262144 kB
Private_Clean:         0 kB
Private_Dirty:     90112 kB
VmFlags: rd wr mr mw me ac sd nr hg
55d000000000-55d000005000 r--p 00000000 fe:00 77 /usr/bin/vmwp
Private_Clean:        20 kB
Private_Dirty:         0 kB
Private_Hugetlb:       0 kB
55d000006000-55d000027000 rw-p 00000000 00:00 0 [heap]
Private_Dirty:       132 kB
Private_Hugetlb:       8 kB
";
        assert_eq!(private_in(maps, 64 << 20).unwrap(), 140);
        // Then it is another process than was meant, or its guest's memory is elsewhere.
        assert!(private_in(maps, 1 << 30).is_err());
    }
}
