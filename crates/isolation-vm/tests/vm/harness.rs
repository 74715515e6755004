//! One image, one container at a time, and what is left of it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use bulkhead_isolation::{
    Container, CreateRequest, Isolation, Process, Rootfs, Stdio, VmEngine, VmSettings,
};
use bulkhead_isolation_vm::{VmIsolation, probe};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

pub struct Host {
    pub worker: PathBuf,
    /// A busybox root, and a layer above it that adds `/second`.
    pub layers: Vec<PathBuf>,
}

/// What the tests need of this host; `None`, with the reason printed, when it is not there.
pub fn host() -> Option<&'static Host> {
    static HOST: OnceLock<Result<Host, String>> = OnceLock::new();
    match HOST.get_or_init(look) {
        Ok(host) => Some(host),
        Err(reason) => {
            eprintln!("skipped: {reason}");
            None
        }
    }
}

fn look() -> Result<Host, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    let worker = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.parent()?.join("vmwp")))
        .filter(|worker| worker.is_file())
        .ok_or("vmwp is not built")?;
    let probe = probe(VmEngine::Auto, guest_dir().as_deref());
    if probe.engine.is_none() {
        return Err(probe.reason);
    }
    if let (Err(reason), None) = (&probe.available, &probe.guest_kernel) {
        return Err(reason.clone());
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).is_file())
        .ok_or("there is no busybox")?;
    let layers = layers(busybox).map_err(|error| error.to_string())?;
    Ok(Host { worker, layers })
}

/// The image's layers, which one run of the tests leaves to the next.
fn layers(busybox: &str) -> std::io::Result<Vec<PathBuf>> {
    // Counts up when what is in them changes.
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm-layers-2");
    if !kept.is_dir() {
        let made = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        make_layers(made.path(), busybox)?;
        // Another process may have been faster.
        if std::fs::rename(made.path(), &kept).is_ok() {
            let _ = made.keep();
        }
    }
    Ok(["0.erofs", "1.erofs"].map(|name| kept.join(name)).into())
}

/// Where this workspace's guest is.
pub fn guest_dir() -> Option<PathBuf> {
    if std::env::var_os("BULKHEAD_GUEST_DIR").is_some() {
        return None;
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
    directory.is_dir().then_some(directory)
}

fn make_layers(directory: &Path, busybox: &str) -> std::io::Result<()> {
    use std::os::unix::fs::symlink;
    let root = directory.join("root");
    for name in ["bin", "dev", "etc", "proc", "sys", "tmp", "root"] {
        std::fs::create_dir_all(root.join(name))?;
    }
    std::fs::copy(busybox, root.join("bin/busybox"))?;
    for applet in [
        "sh", "cat", "echo", "sleep", "true", "ls", "ps", "id", "hostname", "uname", "date",
        "stty", "tail", "head", "dd", "mknod", "kill", "mount", "ping", "wc", "rm", "sync", "df",
        "seq", "chmod", "stat", "od", "nproc", "grep", "find", "touch", "mkdir", "nc", "ip",
        "nslookup", "ping6",
    ] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:7:8::/tmp:/bin/sh\n",
    )?;
    std::fs::write(root.join("etc/group"), "root:x:0:\napp:x:8:\n")?;
    std::fs::write(root.join("not-executable"), "")?;
    let second = directory.join("second");
    std::fs::create_dir_all(&second)?;
    std::fs::write(second.join("second"), "from the second layer\n")?;
    for (name, source) in [("0.erofs", root), ("1.erofs", second)] {
        let layer = directory.join(name);
        let made = Command::new("mkfs.erofs")
            .arg(&layer)
            .arg(&source)
            .output()?;
        if !made.status.success() {
            return Err(std::io::Error::other(
                String::from_utf8_lossy(&made.stderr).into_owned(),
            ));
        }
    }
    Ok(())
}

/// A container to be made, its directories, and its end.
pub struct TestBox {
    pub id: String,
    pub directory: tempfile::TempDir,
    pub isolation: VmIsolation,
    pub request: CreateRequest,
}

impl TestBox {
    pub fn new(host: &Host, args: &[&str]) -> Self {
        Self::with(host, args, |_| {})
    }

    /// `change` gets the specification before it is parsed.
    pub fn with(host: &Host, args: &[&str], change: impl FnOnce(&mut Value)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let unique = directory.path().file_name().unwrap().to_string_lossy();
        let id = format!("vmtest-{}", unique.trim_start_matches('.'));
        let bundle = directory.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        let mut spec = spec(args, &id);
        change(&mut spec);
        let request = CreateRequest {
            id: id.clone(),
            bundle,
            spec: serde_json::from_value(spec).unwrap(),
            rootfs: Rootfs::Layers {
                layers: host.layers.clone(),
                writable: directory.path().join("writable"),
            },
            injected_files: Vec::new(),
            stdin: false,
            init: false,
            vm: VmSettings {
                guest_dir: guest_dir(),
                debug: std::env::var_os("VMTEST_CONSOLE").is_some(),
                ..VmSettings::default()
            },
        };
        Self {
            id,
            directory,
            isolation: VmIsolation::with_worker(host.worker.clone()),
            request,
        }
    }

    pub fn bundle(&self) -> PathBuf {
        self.request.bundle.clone()
    }

    pub async fn create(&self) -> bulkhead_isolation::Result<Arc<dyn Container>> {
        let created = self.isolation.create(self.request.clone()).await;
        if std::env::var_os("VMTEST_CONSOLE").is_some() && created.is_err() {
            let console = std::fs::read_to_string(self.bundle().join("console.log"));
            eprintln!("{}", console.unwrap_or_default());
        }
        created
    }

    /// Nothing of the container is on the host but its scratch disk.
    pub fn check_gone(&self) {
        let left: Vec<_> = std::fs::read_dir(self.bundle())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "console.log")
            .collect();
        assert!(left.is_empty(), "{left:?}");
        let processes = processes_with(&self.id);
        assert!(processes.is_empty(), "{processes:?}");
    }

    /// Runs the container to its end: exit code, stdout, stderr.
    pub async fn run(&self) -> (u32, String, String) {
        let container = self.create().await.unwrap();
        let init = container.init();
        let streams = init.take_stdio();
        init.start().await.unwrap();
        let (out, err) = output(streams).await;
        let status = init.wait().await;
        assert_eq!(status.failure, None);
        container.delete().await.unwrap();
        container.delete().await.unwrap();
        self.check_gone();
        (status.code, out, err)
    }
}

/// The worker and engine processes of a container, by their command lines.
pub fn processes_with(id: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains(id) {
            found.push((pid, comm.trim_end().to_owned()));
        }
    }
    found
}

/// Everything that comes on stdout and stderr until both end.
pub async fn output(mut streams: Stdio) -> (String, String) {
    drop(streams.stdin.take());
    let out = async {
        let mut bytes = Vec::new();
        if let Some(mut stream) = streams.stdout {
            stream.read_to_end(&mut bytes).await.unwrap();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let err = async {
        let mut bytes = Vec::new();
        if let Some(mut stream) = streams.stderr {
            stream.read_to_end(&mut bytes).await.unwrap();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    };
    tokio::join!(out, err)
}

/// A process for an exec.
pub fn process(args: &[&str]) -> oci_spec::runtime::Process {
    serde_json::from_value(process_value(args)).unwrap()
}

/// Runs something in the container: exit code, stdout, stderr.
pub async fn exec(
    container: &Arc<dyn Container>,
    id: &str,
    args: &[&str],
) -> (u32, String, String) {
    let process: Arc<dyn Process> = container.exec(id, process(args), false).await.unwrap();
    let streams = process.take_stdio();
    process.start().await.unwrap();
    let (out, err) = output(streams).await;
    (process.wait().await.code, out, err)
}

fn process_value(args: &[&str]) -> Value {
    let capabilities = json!([
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_NET_BIND_SERVICE",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_AUDIT_WRITE"
    ]);
    json!({
        "args": args, "cwd": "/", "env": ["PATH=/bin", "TERM=xterm"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        },
    })
}

fn spec(args: &[&str], id: &str) -> Value {
    json!({
        "ociVersion": "1.0.2",
        "hostname": "inside",
        "root": {"path": "ignored"},
        "process": process_value(args),
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc",
                "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620",
                    "gid=5"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
                "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": ["ro", "nosuid", "noexec", "nodev"]},
        ],
        "linux": {
            "cgroupsPath": format!("/bulkhead/{id}"),
            "namespaces": [
                {"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "cgroup"}, {"type": "network"},
            ],
            "resources": {},
        },
    })
}
