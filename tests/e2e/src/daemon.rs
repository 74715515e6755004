//! A daemon of the suite's own: its directories, its start, its end. The shared one is
//! started by the first case that asks and stopped when the test program ends; cases that
//! kill or configure a daemon start another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::{api, host, images, leaks, until};

/// Whether the suite runs against dockerd.
#[must_use]
pub fn is_reference() -> bool {
    std::env::var_os("BULKHEAD_E2E_REFERENCE").is_some()
}

/// Where the binaries under test are.
#[must_use]
pub fn binaries() -> PathBuf {
    if let Some(directory) = std::env::var_os("BULKHEAD_E2E_BIN") {
        return std::path::absolute(&directory).unwrap_or_else(|_| directory.into());
    }
    let exe = std::env::current_exe().expect("own path");
    let profile = exe
        .ancestors()
        .nth(2)
        .expect("target/<triple>/<profile>/deps");
    profile.to_owned()
}

/// A running (or killed) daemon and its directories.
pub struct Daemon {
    base: tempfile::TempDir,
    arguments: Vec<String>,
    /// A command that executes the words after it, and with them the daemon.
    before: Vec<String>,
    environment: Vec<(String, String)>,
    child: Mutex<Option<Child>>,
    guard: Mutex<Option<Child>>,
    /// IDs and first names of all containers that were ever made, from the event stream.
    ids: Arc<Mutex<BTreeMap<String, String>>>,
    fresh: Mutex<BTreeSet<PathBuf>>,
    finished: AtomicBool,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Daemon {
    /// The one that most cases share.
    pub fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Daemon>> = OnceLock::new();

        extern "C" fn at_exit() {
            let Some(daemon) = SHARED.get() else { return };
            let left = daemon.finish();
            if !left.is_empty() {
                eprintln!("\nleft behind by the run:\n  {}", left.join("\n  "));
                // SAFETY: ends the process at once; nothing is run or unwound after it.
                unsafe { libc::_exit(1) };
            }
        }

        let shared = SHARED.get_or_init(|| {
            let daemon = Arc::new(Self::start(&[]));
            // SAFETY: the handler takes no argument and does not unwind: it only reads
            // statics that are never dropped.
            let registered = unsafe { libc::atexit(at_exit) };
            assert_eq!(registered, 0, "atexit");
            daemon
        });
        Arc::clone(shared)
    }

    /// Starts one with these arguments beside the usual ones, and the busybox image.
    #[track_caller]
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &[])
    }

    /// As [`Daemon::start`], with variables in its environment.
    #[track_caller]
    #[must_use]
    pub fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_on(&[], arguments, environment, None)
    }

    /// As [`Daemon::start_with`], executed by a command that changes what it sees.
    #[track_caller]
    #[must_use]
    pub fn start_behind(before: &[&str], arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_on(before, arguments, environment, None)
    }

    /// As [`Daemon::start`], with a data root that is a disk of so many MiB.
    #[track_caller]
    #[must_use]
    pub fn start_on_disk(mebibytes: u32) -> Self {
        Self::start_on(&[], &[], &[], Some(mebibytes))
    }

    #[track_caller]
    fn start_on(
        before: &[&str],
        arguments: &[&str],
        environment: &[(&str, &str)],
        mebibytes: Option<u32>,
    ) -> Self {
        let base = tempfile::Builder::new()
            .prefix("bh-e2e-")
            .disable_cleanup(true)
            .tempdir()
            .expect("a directory for a daemon");
        let daemon = Self {
            base,
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
            before: before.iter().map(|&text| text.to_owned()).collect(),
            environment: environment
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            child: Mutex::new(None),
            guard: Mutex::new(None),
            ids: Arc::default(),
            fresh: Mutex::default(),
            finished: AtomicBool::new(false),
        };
        *locked(&daemon.guard) = Some(daemon.guard());
        if let Some(mebibytes) = mebibytes {
            std::fs::create_dir(daemon.data_root()).expect("a data root");
            let size = format!("size={mebibytes}m,mode=0700");
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &size, "tmpfs"]);
            let status = mount.arg(daemon.data_root()).status().expect("mount");
            assert!(status.success(), "mount of a small disk: {status}");
        }
        if is_reference() {
            daemon.make_reference_bridge();
        }
        daemon.launch();
        *locked(&daemon.fresh) = daemon.files();
        daemon.watch();
        let answer = api::request(
            &daemon.socket(),
            "POST",
            &format!(
                "/images/create?fromSrc=-&repo=busybox&tag=latest&changes={}&changes={}",
                "CMD%20%5B%22sh%22%5D",
                "ENV%20PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
            ),
            Some(("application/x-tar", images::busybox_tar())),
        )
        .expect("import of busybox");
        assert!(
            answer.status == 200 && !String::from_utf8_lossy(&answer.body).contains("\"error\""),
            "import of busybox: {} {}\n{}",
            answer.status,
            String::from_utf8_lossy(&answer.body),
            daemon.log()
        );
        daemon
    }

    fn command(&self) -> Command {
        let base = self.base.path();
        let behind = |program: PathBuf| match self.before.split_first() {
            Some((first, rest)) => {
                let mut command = Command::new(first);
                command.args(rest).arg(program);
                command
            }
            None => Command::new(program),
        };
        let mut command = if is_reference() {
            let mut command = behind("dockerd".into());
            command.args(["--bridge", &self.reference_bridge()]);
            command.args(["--iptables=false", "--live-restore", "--log-level=error"]);
            command
        } else {
            let mut command = behind(binaries().join("bulkhead"));
            command.arg("daemon");
            let engine = std::env::var("BULKHEAD_E2E_VM_ENGINE");
            if !self.arguments.iter().any(|word| word == "--vm-engine") {
                command.args(["--vm-engine", engine.as_deref().unwrap_or("auto")]);
            }
            command
        };
        command
            .arg("-H")
            .arg(self.host())
            .arg("--data-root")
            .arg(base.join("data"))
            .arg("--exec-root")
            .arg(base.join("exec"))
            .arg("--pidfile")
            .arg(base.join("pid"))
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// The reference's default bridge: all of them would have the same one.
    fn reference_bridge(&self) -> String {
        let base = self.base.path().to_string_lossy();
        format!("bhr{}", &base[base.len() - "-random".len()..])
    }

    /// Made by us, and found by its alias and removed as what a daemon leaves.
    fn make_reference_bridge(&self) {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = std::process::id() * 16 + MADE.fetch_add(1, Ordering::Relaxed);
        let address = format!("10.{}.{}.1/24", 201 + number / 256 % 50, number % 256);
        let alias = self.base.path().to_string_lossy();
        let name = self.reference_bridge();
        for words in [
            &["link", "add", &name, "type", "bridge"][..],
            &["link", "set", &name, "alias", &alias, "up"],
            &["address", "add", &address, "dev", &name],
        ] {
            let status = Command::new("ip").args(words).status().expect("ip");
            assert!(status.success(), "ip {words:?}: {status}");
        }
    }

    /// What cleans up when this program is killed and cannot: it notices that the pipe to
    /// it closes without a word.
    fn guard(&self) -> Child {
        use std::os::unix::process::CommandExt;
        const SCRIPT: &str = r#"
            read -r line && exit
            # Clients that were killed with us may have made more meanwhile.
            for _ in 1 2 3; do
                docker ps -aq | xargs -r docker rm -f
            done
            kill $(cat "$BASE/pid")
            sleep 2
            umount -q "$BASE/data"
            [ -z "$BRIDGE" ] || ip link delete "$BRIDGE"
            rm -rf "$BASE"
        "#;
        Command::new("sh")
            .args(["-c", SCRIPT])
            .env("BASE", self.base.path())
            .env("DOCKER_HOST", self.host())
            .env(
                "BRIDGE",
                if is_reference() {
                    self.reference_bridge()
                } else {
                    String::new()
                },
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .expect("sh")
    }

    /// Starts the process and waits until it serves.
    #[track_caller]
    fn launch(&self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.base.path().join("log"))
            .expect("the daemon's log");
        let mut command = self.command();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| {
                panic!("{command:?} does not start: {error}; are the binaries built?")
            });
        until("the daemon serves", Duration::from_secs(60), || {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the daemon ended: {status}\n{}", self.log());
            }
            let answer = api::request(&self.socket(), "GET", "/_ping", None).ok()?;
            (answer.status == 200).then_some(())
        });
        *locked(&self.child) = Some(child);
    }

    /// Collects the IDs of new containers for as long as the daemon lives.
    fn watch(&self) {
        let (ids, socket) = (Arc::clone(&self.ids), self.socket());
        let filters = "%7B%22type%22%3A%5B%22container%22%5D%2C%22event%22%3A%5B%22create%22%5D%7D";
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let ended = api::stream(&socket, &format!("/events?filters={filters}"), |chunk| {
                text.extend_from_slice(chunk);
                while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = text.drain(..=end).collect();
                    let event: serde_json::Value =
                        serde_json::from_slice(&line).unwrap_or_default();
                    let actor = &event["Actor"];
                    if let Some(id) = actor["ID"].as_str() {
                        // The label of the suite says which case it was.
                        let attributes = &actor["Attributes"];
                        let words = [&attributes["e2e"], &attributes["name"]];
                        let words = words.map(|word| word.as_str().unwrap_or_default());
                        locked(&ids).insert(id.to_owned(), words.join(" "));
                    }
                }
                ControlFlow::Continue(())
            });
            // The daemon was killed or has ended; a restart watches anew.
            drop(ended);
        });
    }

    /// `unix://…` of its socket.
    #[must_use]
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The path of its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.base.path().join("d.sock")
    }

    /// The directory that everything of it is below.
    #[must_use]
    pub fn base(&self) -> &Path {
        self.base.path()
    }

    /// `--data-root`.
    #[must_use]
    pub fn data_root(&self) -> PathBuf {
        self.base.path().join("data")
    }

    /// `--exec-root`.
    #[must_use]
    pub fn exec_root(&self) -> PathBuf {
        self.base.path().join("exec")
    }

    fn has_disk(&self) -> bool {
        let device = |path: &Path| {
            use std::os::unix::fs::MetadataExt as _;
            std::fs::metadata(path).map(|metadata| metadata.dev()).ok()
        };
        device(&self.data_root()) != device(self.base.path())
    }

    /// IDs of all containers it ever made.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        locked(&self.ids).keys().cloned().collect()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        locked(&self.child).as_ref().expect("it runs").id()
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        let bytes = std::fs::read(self.base.path().join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    /// All files below its directories, with their sizes left out: what it is made of.
    #[must_use]
    pub fn files(&self) -> BTreeSet<PathBuf> {
        let mut files = BTreeSet::new();
        for root in [self.data_root(), self.exec_root()] {
            host::walk(&root, 12, &mut |path, directory| {
                if !directory {
                    files.insert(path.to_owned());
                }
            });
        }
        files
    }

    /// The files there were when it had just started for the first time.
    #[must_use]
    pub fn fresh_files(&self) -> BTreeSet<PathBuf> {
        locked(&self.fresh).clone()
    }

    /// `kill -9`.
    pub fn kill(&self) {
        self.end(Signal::KILL);
    }

    /// SIGTERM, and waits for its end.
    pub fn stop(&self) {
        self.end(Signal::TERM);
    }

    fn end(&self, signal: Signal) {
        let Some(mut child) = locked(&self.child).take() else {
            return;
        };
        let _ = kill_process(Pid::from_child(&child), signal);
        let pid = child.id();
        let (done, ended) = std::sync::mpsc::channel::<()>();
        // A daemon that does not end within a minute of SIGTERM is killed.
        std::thread::spawn(move || {
            if ended.recv_timeout(Duration::from_secs(60))
                == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
                && let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw)
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        drop(child.wait());
        drop(done);
        if is_reference() {
            // dockerd takes its containerd's PID file for a living one as long as init has
            // not reaped it.
            let file = self.exec_root().join("containerd/containerd.pid");
            let pid = std::fs::read_to_string(file).unwrap_or_default();
            let process = Path::new("/proc").join(if pid.is_empty() { "none" } else { &pid });
            until("containerd ends", Duration::from_secs(60), || {
                (!process.exists()).then_some(())
            });
        }
    }

    /// Starts it again on the same directories.
    #[track_caller]
    pub fn restart(&self) {
        self.end(Signal::KILL);
        self.launch();
        self.watch();
    }

    /// Removes all containers and images, stops it, and says what is left of it.
    pub fn finish(&self) -> Vec<String> {
        if self.finished.swap(true, Ordering::SeqCst) {
            return Vec::new();
        }
        let mut left = Vec::new();
        self.empty(&mut left);
        if !is_reference() {
            left.extend(leaks::files(self));
        }
        self.stop();
        if self.has_disk() {
            drop(Command::new("umount").arg(self.data_root()).status());
        }
        left.extend(leaks::host(self));
        for line in &mut left {
            let ids = locked(&self.ids);
            let of = ids.iter().find(|(id, _)| line.contains(&id[..12]));
            if let Some((_, name)) = of {
                line.push_str(&format!(" (of {name})"));
            }
        }
        if is_reference() {
            // What dockerd leaves after a kill -9 is its own affair.
            left.clear();
        }
        if std::env::var_os("BULKHEAD_E2E_KEEP").is_some() {
            eprintln!("kept: {}", self.base.path().display());
        } else {
            leaks::sweep(self);
        }
        if let Some(mut guard) = locked(&self.guard).take() {
            if let Some(mut pipe) = guard.stdin.take() {
                drop(pipe.write_all(b"done\n"));
            }
            drop(guard.wait());
        }
        left
    }

    fn empty(&self, left: &mut Vec<String>) {
        let mut ask =
            |method: &str, path: &str| match api::request(&self.socket(), method, path, None) {
                Ok(answer) if answer.status < 300 => answer.json(),
                Ok(answer) => {
                    left.push(format!(
                        "{method} {path}: {} {}",
                        answer.status,
                        answer.message()
                    ));
                    serde_json::Value::Null
                }
                Err(error) => {
                    left.push(format!("{method} {path}: {error}"));
                    serde_json::Value::Null
                }
            };
        let containers = ask("GET", "/containers/json?all=1");
        for id in ids(&containers) {
            ask("DELETE", &format!("/containers/{id}?force=1&v=1"));
        }
        // Images may share layers and tags: ask until none is left.
        for _ in 0..3 {
            let images = ask("GET", "/images/json?all=1");
            for id in ids(&images) {
                drop(api::request(
                    &self.socket(),
                    "DELETE",
                    &format!("/images/{id}?force=1"),
                    None,
                ));
            }
        }
        let images = ask("GET", "/images/json?all=1");
        for id in ids(&images) {
            left.push(format!("image {id}"));
        }
    }
}

fn ids(list: &serde_json::Value) -> Vec<String> {
    let list = list.as_array().map_or(&[][..], Vec::as_slice);
    let ids = list.iter().filter_map(|item| item["Id"].as_str());
    ids.map(str::to_owned).collect()
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let left = self.finish();
        if !left.is_empty() && !std::thread::panicking() {
            panic!("left behind:\n  {}\n{}", left.join("\n  "), self.log());
        }
    }
}
