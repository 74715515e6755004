//! A daemon's half, as small as it can be: makes a bundle, starts the supervisor binary,
//! speaks the Task API and the attach protocol to it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use bulkhead_isolation::{ErrorKind, ExitStatus, IsolationError};
use bulkhead_task::attach::{self, AttachRequest};
use bulkhead_task::bundle::{self, Bundle};
use bulkhead_task::exit_record;
use bulkhead_task::options::{
    self, EXEC_TYPE_URL, ExecSpec, IsolationKind, LogOptions, TYPE_URL, TaskOptions,
};
use bulkhead_task::wire_error::from_ttrpc;
use containerd_shim_protos::api::{
    CloseIORequest, CreateTaskRequest, DeleteRequest, DeleteResponse, ExecProcessRequest,
    KillRequest, PauseRequest, PidsRequest, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StateRequest, StatsRequest, Status, UpdateTaskRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim_async::TaskClient;
use containerd_shim_protos::ttrpc;
use oci_spec::runtime::{
    Arch, LinuxBuilder, LinuxNamespaceBuilder, LinuxNamespaceType, LinuxSeccompAction,
    LinuxSeccompArgBuilder, LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscallBuilder, Mount,
    MountBuilder, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder, Spec,
    SpecBuilder, User,
};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use ttrpc::context::Context;

/// The blob of a root filesystem with Debian's static busybox, made once.
pub fn busybox() -> &'static Path {
    static BLOB: OnceLock<PathBuf> = OnceLock::new();
    BLOB.get_or_init(|| {
        let path = std::env::temp_dir().join("bulkhead-test-busybox.erofs");
        let new = path.with_extension(std::process::id().to_string());
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        for directory in [
            "bin", "sbin", "etc", "dev", "proc", "sys", "tmp", "root", "home/ann",
        ] {
            std::fs::create_dir_all(root.join(directory)).unwrap();
        }
        std::fs::copy("/usr/bin/busybox", root.join("bin/busybox")).unwrap();
        let list = Command::new("/usr/bin/busybox")
            .arg("--list")
            .output()
            .unwrap();
        for name in String::from_utf8(list.stdout).unwrap().lines() {
            let link = root.join("bin").join(name);
            if !link.exists() {
                std::os::unix::fs::symlink("busybox", link).unwrap();
            }
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nann:x:1000:100::/home/ann:/bin/sh\n";
        std::fs::write(root.join("etc/passwd"), passwd).unwrap();
        std::fs::write(
            root.join("etc/group"),
            "root:x:0:\nusers:x:100:\nwheel:x:10:root,ann\n",
        )
        .unwrap();
        std::fs::write(root.join("bin/notexec"), "data").unwrap();
        make_blob(root, &new);
        std::fs::rename(&new, &path).unwrap();
        path
    })
}

/// An EROFS image of a directory.
pub fn make_blob(tree: &Path, blob: &Path) {
    let made = Command::new("mkfs.erofs")
        .args(["--quiet", "-T0"])
        .arg(blob)
        .arg(tree)
        .output()
        .unwrap();
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
}

/// What a container is to be.
pub struct Wish {
    pub args: Vec<String>,
    pub terminal: bool,
    pub user: Option<String>,
    pub stdin: bool,
    pub init: bool,
    pub layers: Vec<PathBuf>,
    pub edit: Box<dyn FnOnce(&mut Spec)>,
}

impl Wish {
    pub fn new(args: &[&str]) -> Self {
        Self {
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            terminal: false,
            user: Some(String::new()),
            stdin: false,
            init: false,
            layers: vec![busybox().to_owned()],
            edit: Box::new(|_| {}),
        }
    }

    pub fn shell(script: &str) -> Self {
        Self::new(&["sh", "-c", script])
    }
}

pub const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub fn process(args: &[&str], terminal: bool, user: Option<&str>) -> Process {
    let mut identity = User::default();
    identity.set_username(user.map(str::to_owned));
    let mut process = ProcessBuilder::default()
        .args(args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
        .env(vec![PATH.to_owned(), "MARK=1".to_owned()])
        .cwd("/")
        .terminal(terminal)
        .user(identity)
        .build()
        .unwrap();
    process.set_rlimits(Some(vec![
        PosixRlimitBuilder::default()
            .typ(PosixRlimitType::RlimitNofile)
            .soft(1u64 << 20)
            .hard(1u64 << 21)
            .build()
            .unwrap(),
    ]));
    process.set_oom_score_adj(Some(-500));
    process.set_no_new_privileges(Some(false));
    process
}

fn mount(kind: &str, destination: &str, options: &[&str]) -> Mount {
    MountBuilder::default()
        .typ(kind)
        .source(kind)
        .destination(destination)
        .options(
            options
                .iter()
                .map(|option| (*option).to_owned())
                .collect::<Vec<_>>(),
        )
        .build()
        .unwrap()
}

fn spec(wish: &Wish, id: &str) -> Spec {
    let args: Vec<&str> = wish.args.iter().map(String::as_str).collect();
    let kinds = [
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Mount,
    ];
    let namespaces: Vec<_> = kinds
        .into_iter()
        .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build().unwrap())
        .collect();
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .cgroups_path(format!("/bulkhead-test/{id}"))
        .build()
        .unwrap();
    linux.set_seccomp(Some(
        LinuxSeccompBuilder::default()
            .default_action(LinuxSeccompAction::ScmpActAllow)
            .architectures(vec![Arch::ScmpArchX86_64])
            .syscalls(vec![
                // No new host names; other namespaces are the business of capabilities.
                LinuxSyscallBuilder::default()
                    .names(vec!["unshare".to_owned()])
                    .action(LinuxSeccompAction::ScmpActErrno)
                    .errno_ret(95u32)
                    .args(vec![
                        LinuxSeccompArgBuilder::default()
                            .index(0usize)
                            .value(0x0400_0000u64)
                            .value_two(0x0400_0000u64)
                            .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
                            .build()
                            .unwrap(),
                    ])
                    .build()
                    .unwrap(),
                LinuxSyscallBuilder::default()
                    .names(vec!["mkdir".to_owned(), "mkdirat".to_owned()])
                    .action(LinuxSeccompAction::ScmpActErrno)
                    .errno_ret(95u32)
                    .build()
                    .unwrap(),
            ])
            .build()
            .unwrap(),
    ));
    let mut spec = SpecBuilder::default()
        .process(process(&args, wish.terminal, wish.user.as_deref()))
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(false)
                .build()
                .unwrap(),
        )
        .hostname("tester")
        .linux(linux)
        .mounts(vec![
            mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
            mount(
                "tmpfs",
                "/dev",
                &["nosuid", "strictatime", "mode=755", "size=65536k"],
            ),
            mount(
                "devpts",
                "/dev/pts",
                &[
                    "nosuid",
                    "noexec",
                    "newinstance",
                    "ptmxmode=0666",
                    "mode=0620",
                    "gid=5",
                ],
            ),
            mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
        ])
        .build()
        .unwrap();
    spec.set_hooks(None);
    spec
}

/// A supervisor and the container that it owns.
pub struct Shim {
    pub id: String,
    pub client: TaskClient,
    pub bundle: Bundle,
    pub writable: PathBuf,
    exec_root: PathBuf,
    pub log: PathBuf,
    pub directory: tempfile::TempDir,
}

pub type Outcome<T> = Result<T, IsolationError>;

fn context() -> Context {
    ttrpc::context::with_timeout(60_000_000_000)
}

fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_containerd-shim-bulkhead-v2")
}

impl Shim {
    /// Starts the supervisor; creates nothing.
    pub async fn start(wish: Wish) -> (Self, TaskOptions) {
        let directory = tempfile::Builder::new().prefix("bkh").tempdir().unwrap();
        Self::start_in(directory, wish).await
    }

    pub async fn start_in(directory: tempfile::TempDir, wish: Wish) -> (Self, TaskOptions) {
        let random: u64 =
            std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), directory.path());
        let id = format!("{random:016x}").repeat(4);
        let exec_root = directory.path().join("x");
        let bundle = Bundle::of(&exec_root, &id);
        std::fs::create_dir_all(bundle.path()).unwrap();
        let mut spec = spec(&wish, &id);
        (wish.edit)(&mut spec);
        spec.save(bundle.config()).unwrap();
        let writable = directory.path().join("w");
        let log = directory.path().join("log.json");
        let options = TaskOptions {
            isolation: IsolationKind::Process,
            layers: wish.layers,
            writable: writable.clone(),
            injected_files: Vec::new(),
            open_stdin: wish.stdin,
            stdin_once: wish.stdin,
            init: wish.init,
            log: Some(LogOptions {
                path: log.clone(),
                max_size: None,
                max_files: 1,
                attributes: Default::default(),
            }),
            vm: Default::default(),
            files_only: false,
        };
        let started = Command::new(binary())
            .args([
                "-namespace",
                "bulkhead",
                "-id",
                &id,
                "-address",
                "",
                "start",
            ])
            .current_dir(bundle.path())
            .output()
            .unwrap();
        assert!(
            started.status.success(),
            "{}",
            String::from_utf8_lossy(&started.stderr)
        );
        let address = String::from_utf8(started.stdout).unwrap();
        let expected = format!("unix://{}", bundle::task_socket(&exec_root, &id).display());
        assert_eq!(address, expected);
        let client = ttrpc::asynchronous::Client::connect(&address)
            .await
            .unwrap();
        let shim = Self {
            id,
            client: TaskClient::new(client),
            bundle,
            writable,
            exec_root,
            log,
            directory,
        };
        (shim, options)
    }

    /// Starts the supervisor and creates the container.
    pub async fn create(wish: Wish) -> Self {
        let (shim, options) = Self::start(wish).await;
        shim.create_with(&options).await.unwrap();
        shim
    }

    pub async fn create_with(&self, options: &TaskOptions) -> Outcome<u32> {
        let mut request = CreateTaskRequest::new();
        request.id = self.id.clone();
        request.bundle = self.bundle.path().to_str().unwrap().to_owned();
        request.options = Some(any(TYPE_URL, options)).into();
        let response = self.client.create(context(), &request).await;
        response
            .map(|answer| answer.pid)
            .map_err(|error| from_ttrpc(&error))
    }

    /// Create as containerd sends it, with the blob as a mount.
    pub async fn create_foreign(&self, blob: &Path, stdin: &Path, stdout: &Path) -> Outcome<u32> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        // containerd passes loop devices; a file will do on kernels that mount it.
        let mut mount = containerd_shim_protos::types::mount::Mount::new();
        mount.type_ = "erofs".to_owned();
        mount.source = text(blob);
        mount.options = vec!["ro".to_owned()];
        let mut request = CreateTaskRequest::new();
        request.id = self.id.clone();
        request.bundle = text(self.bundle.path());
        request.stdin = text(stdin);
        request.stdout = text(stdout);
        request.rootfs.push(mount);
        let response = self.client.create(context(), &request).await;
        response
            .map(|answer| answer.pid)
            .map_err(|error| from_ttrpc(&error))
    }

    pub async fn close_stdin(&self) -> Outcome<()> {
        let mut request = CloseIORequest::new();
        request.stdin = true;
        let response = self.client.close_io(context(), &request).await;
        response.map(|_| ()).map_err(|error| from_ttrpc(&error))
    }

    pub async fn attach(&self, exec_id: &str, stdin: bool) -> UnixStream {
        let request = AttachRequest {
            exec_id: exec_id.to_owned(),
            stdin,
            stdout: true,
            stderr: true,
            files: false,
        };
        let socket = bundle::attach_socket(&self.exec_root, &self.id);
        attach::connect(&socket, &request).await.unwrap().0
    }

    pub async fn begin(&self, exec_id: &str) -> Outcome<u32> {
        let mut request = StartRequest::new();
        request.exec_id = exec_id.to_owned();
        let response = self.client.start(context(), &request).await;
        response
            .map(|answer| answer.pid)
            .map_err(|error| from_ttrpc(&error))
    }

    pub async fn wait(&self, exec_id: &str) -> u32 {
        let mut request = WaitRequest::new();
        request.exec_id = exec_id.to_owned();
        self.client
            .wait(context(), &request)
            .await
            .unwrap()
            .exit_status
    }

    pub async fn kill(&self, exec_id: &str, signal: i32, all: bool) -> Outcome<()> {
        let mut request = KillRequest::new();
        request.exec_id = exec_id.to_owned();
        request.signal = u32::try_from(signal).unwrap();
        request.all = all;
        let response = self.client.kill(context(), &request).await;
        response.map(|_| ()).map_err(|error| from_ttrpc(&error))
    }

    pub async fn exec(&self, exec_id: &str, process: &Process, stdin: bool) -> Outcome<()> {
        let spec = ExecSpec {
            process: serde_json::to_value(process).unwrap(),
            stdin,
        };
        let mut request = ExecProcessRequest::new();
        request.exec_id = exec_id.to_owned();
        request.terminal = process.terminal().unwrap_or(false);
        request.spec = Some(any(EXEC_TYPE_URL, &spec)).into();
        let response = self.client.exec(context(), &request).await;
        response.map(|_| ()).map_err(|error| from_ttrpc(&error))
    }

    /// Execs, starts, waits: output (without frames) and exit code.
    pub async fn run_exec(&self, exec_id: &str, args: &[&str]) -> (String, u32) {
        self.exec(exec_id, &process(args, false, Some("")), false)
            .await
            .unwrap();
        let mut stream = self.attach(exec_id, false).await;
        self.begin(exec_id).await.unwrap();
        let mut output = Vec::new();
        stream.read_to_end(&mut output).await.unwrap();
        let code = self.wait(exec_id).await;
        self.delete(exec_id).await.unwrap();
        (unframed(&output), code)
    }

    pub async fn resize(&self, exec_id: &str, width: u32, height: u32) -> Outcome<()> {
        let mut request = ResizePtyRequest::new();
        request.exec_id = exec_id.to_owned();
        request.width = width;
        request.height = height;
        let response = self.client.resize_pty(context(), &request).await;
        response.map(|_| ()).map_err(|error| from_ttrpc(&error))
    }

    pub async fn pause(&self) -> Outcome<()> {
        let response = self.client.pause(context(), &PauseRequest::new()).await;
        response.map(|_| ()).map_err(|error| from_ttrpc(&error))
    }

    pub async fn resume(&self) -> Outcome<()> {
        let response = self.client.resume(context(), &ResumeRequest::new()).await;
        response.map(|_| ()).map_err(|error| from_ttrpc(&error))
    }

    pub async fn status(&self) -> Status {
        let response = self.client.state(context(), &StateRequest::new()).await;
        response.unwrap().status.enum_value().unwrap()
    }

    pub async fn pids(&self) -> Vec<bulkhead_isolation::ProcessInfo> {
        let response = self
            .client
            .pids(context(), &PidsRequest::new())
            .await
            .unwrap();
        let listed = response.processes.iter();
        listed
            .map(|process| serde_json::from_slice(&process.info.value).unwrap())
            .collect()
    }

    pub async fn stats(&self) -> bulkhead_isolation::Stats {
        let response = self
            .client
            .stats(context(), &StatsRequest::new())
            .await
            .unwrap();
        serde_json::from_slice(&response.stats.value).unwrap()
    }

    pub async fn update(&self, resources: &bulkhead_isolation::Resources) -> Outcome<()> {
        let mut request = UpdateTaskRequest::new();
        request.resources = Some(any(options::RESOURCES_TYPE_URL, resources)).into();
        let response = self.client.update(context(), &request).await;
        response.map(|_| ()).map_err(|error| from_ttrpc(&error))
    }

    pub async fn delete(&self, exec_id: &str) -> Outcome<u32> {
        let mut request = DeleteRequest::new();
        request.exec_id = exec_id.to_owned();
        let response = self.client.delete(context(), &request).await;
        response
            .map(|answer| answer.exit_status)
            .map_err(|error| from_ttrpc(&error))
    }

    pub fn supervisor_pid(&self) -> i32 {
        let text = std::fs::read_to_string(self.bundle.supervisor_pid()).unwrap();
        text.trim().parse().unwrap()
    }

    pub fn exit_record(&self) -> Option<ExitStatus> {
        exit_record::read(&self.bundle.exit_record()).unwrap()
    }

    /// What was logged, without its envelope.
    pub fn logged(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let lines = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty());
        lines
            .map(|line| bulkhead_task::json_log::decode(line).unwrap().log)
            .collect()
    }

    /// Deletes the container, ends the supervisor, and looks for leftovers.
    pub async fn finish(self) {
        if self.status().await != Status::STOPPED {
            // It may have stopped meanwhile.
            let _ = self.kill("", libc::SIGKILL, false).await;
            self.wait("").await;
        }
        self.delete("").await.unwrap();
        self.shutdown().await;
        self.nothing_is_left();
    }

    pub async fn shutdown(&self) {
        let pid = self.supervisor_pid();
        self.client
            .shutdown(context(), &ShutdownRequest::new())
            .await
            .unwrap();
        wait_until_gone(pid);
    }

    pub fn nothing_is_left(&self) {
        let mut found = Vec::new();
        collect(Path::new("/sys/fs/cgroup"), &self.id, 0, &mut found);
        assert!(found.is_empty(), "left: {found:?}");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.directory.path().to_str().unwrap()));
        let names: Vec<_> = std::fs::read_dir(self.bundle.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        for name in ["runtime", "rootfs"] {
            assert!(!names.iter().any(|other| other == name), "left: {names:?}");
        }
        let sockets = self.exec_root.join("s");
        assert_eq!(std::fs::read_dir(sockets).unwrap().count(), 0);
    }

    /// Runs the binary's `delete`.
    pub fn sweep(&self) -> (bool, DeleteResponse) {
        use containerd_shim_protos::protobuf::Message;
        let swept = Command::new(binary())
            .args([
                "-id",
                &self.id,
                "-bundle",
                self.bundle.path().to_str().unwrap(),
                "delete",
            ])
            .output()
            .unwrap();
        eprint!("{}", String::from_utf8_lossy(&swept.stderr));
        let response = DeleteResponse::parse_from_bytes(&swept.stdout).unwrap();
        (swept.status.success(), response)
    }
}

/// Waits until a process that is not our child has gone.
pub fn wait_until_gone(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let flags = rustix::process::PidfdFlags::empty();
    if let Ok(pinned) = rustix::process::pidfd_open(pid, flags) {
        let mut watched = [rustix::event::PollFd::new(
            &pinned,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut watched, None).unwrap();
    }
}

fn collect(directory: &Path, name: &str, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(entry.path());
            }
            if depth < 4 {
                collect(&entry.path(), name, depth + 1, found);
            }
        }
    }
}

fn any(type_url: &str, value: &impl serde::Serialize) -> Any {
    let mut any = Any::new();
    any.type_url = type_url.to_owned();
    any.value = serde_json::to_vec(value).unwrap();
    any
}

/// Both streams' bytes, in the order in which they came.
pub fn unframed(mut bytes: &[u8]) -> String {
    let mut text = Vec::new();
    while let Some((head, tail)) = bytes.split_at_checked(8) {
        let length = u32::from_be_bytes(head[4..].try_into().unwrap());
        let (payload, rest) = tail.split_at(usize::try_from(length).unwrap());
        text.extend_from_slice(payload);
        bytes = rest;
    }
    String::from_utf8(text).unwrap()
}

pub fn is(error: &IsolationError, kind: ErrorKind, message: &str) {
    assert_eq!((error.kind, error.message.as_str()), (kind, message));
}
