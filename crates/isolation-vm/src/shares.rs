//! The host's files in a VM: what the specification binds from the host is served live, each
//! source by a process of its own that sees nothing else (`bulkhead-share`), and bound in the
//! guest from where the agent has mounted it. A socket of the host is stood for by one in
//! the guest, and each connection to it is carried to the host's.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use bulkhead_agent_protocol::{
    AcceptShare, Connection, ListenShare, MAX_SHARES, MountShare, share_path, socket_path,
};
use bulkhead_isolation::{ErrorKind, IsolationError, Result};
use bulkhead_share::{FILE_ENTRY, ShareConfig, read_frame, write_frame};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{Mode, OFlags, StatVfsMountFlags};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::group::MachineGroup;
use crate::vm::Vm;

/// The server's binary, which is beside the worker's.
const BINARY: &str = "bulkhead-share";
/// How long a server may take to say whether it can serve.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// How long one may take to end when its guest has gone; it may be writing.
const END_DEADLINE: Duration = Duration::from_secs(5);
/// Copied at a time in either direction.
const BUFFER: usize = 64 << 10;
/// Connections to sockets of the host that one container has at a time; further ones wait.
const MAX_CONNECTIONS: usize = 256;

/// What is to be shared.
#[derive(Debug, Default)]
pub struct SharePlan {
    files: Vec<(u32, ShareConfig)>,
    sockets: Vec<SocketShare>,
}

#[derive(Debug)]
struct SocketShare {
    listen: ListenShare,
    /// The socket itself: another one under its name is not what was asked for.
    socket: OwnedFd,
}

impl SharePlan {
    /// Takes the host's sources out of a specification and puts the guest's in their place.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for sources that are not there or that a VM cannot use.
    pub fn take(spec: &mut Spec) -> Result<Self> {
        let mut plan = Self::default();
        let mut number = 0;
        for mount in spec.mounts_mut().iter_mut().flatten() {
            if !is_bind(mount) {
                continue;
            }
            if number >= MAX_SHARES {
                return Err(invalid(format!(
                    "a VM takes at most {MAX_SHARES} bind mounts and volumes"
                )));
            }
            plan.add(number, mount)?;
            number += 1;
        }
        Ok(plan)
    }

    fn add(&mut self, number: u32, mount: &mut Mount) -> Result<()> {
        let destination = mount.destination().display().to_string();
        let source = match mount.source() {
            Some(source) if source.is_absolute() => source.clone(),
            _ => {
                return Err(invalid(format!(
                    "the bind mount at {destination} has no absolute source"
                )));
            }
        };
        let metadata = std::fs::metadata(&source).map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::NotFound => ErrorKind::InvalidArgument,
                _ => ErrorKind::Other,
            };
            let source = source.display();
            IsolationError::new(
                kind,
                format!("cannot mount the host's {source} at {destination}: {error}"),
            )
        })?;
        let options = Options::of(mount, &destination)?;
        let place = if metadata.is_dir() {
            share_path(number)
        } else if metadata.is_file() {
            share_path(number).join(FILE_ENTRY)
        } else if metadata.file_type().is_socket() {
            socket_path(number)
        } else {
            return Err(invalid(format!(
                "{} cannot be mounted at {destination} with hyperv isolation, because it is a \
                 device or a pipe of the host: the container has its own kernel; use \
                 --isolation=process for it",
                source.display()
            )));
        };
        if metadata.file_type().is_socket() {
            let flags = OFlags::PATH | OFlags::CLOEXEC;
            let socket = rustix::fs::open(&source, flags, Mode::empty()).map_err(|error| {
                IsolationError::other(format!("cannot open {}", source.display()), error)
            })?;
            self.sockets.push(SocketShare {
                listen: ListenShare {
                    share: number,
                    mode: metadata.mode() & 0o777,
                    uid: metadata.uid(),
                    gid: metadata.gid(),
                },
                socket,
            });
        } else {
            let writable_below = options.read_only
                && options.recursive
                && !options.read_only_below
                && has_mounts_below(&source);
            if writable_below {
                // The guest sees one mount, and its server knows of each file which it is on.
                let kept = mount.options().iter().flatten();
                let kept = kept.filter(|option| *option != "ro").cloned().collect();
                mount.set_options(Some(kept));
            }
            inherit(mount, &source);
            self.files.push((
                number,
                ShareConfig {
                    source,
                    read_only: options.read_only,
                    writable_below,
                    recursive: options.recursive,
                    follow_mounts: options.follow_mounts,
                    events: true,
                },
            ));
        }
        mount.set_source(Some(place));
        mount.set_typ(Some("bind".to_owned()));
        Ok(())
    }

    /// Starts the servers, in the machine's group. When one cannot serve, none is left.
    ///
    /// # Errors
    /// What the server says, with the source.
    pub async fn serve(self, id: &str, worker: &Path, group: &MachineGroup) -> Result<Shares> {
        let mut servers = Vec::with_capacity(self.files.len());
        for (number, config) in self.files {
            let binary = worker.with_file_name(BINARY);
            let (id, group) = (id.to_owned(), group.clone());
            let started =
                tokio::task::spawn_blocking(move || Server::start(&binary, &id, &config, &group));
            let server = started
                .await
                .unwrap_or_else(|error| Err(IsolationError::other("a task failed", error)))?;
            servers.push((number, server));
        }
        Ok(Shares {
            servers,
            sockets: self.sockets,
            tasks: Vec::new(),
        })
    }
}

fn is_bind(mount: &Mount) -> bool {
    let asked = |option: &String| option == "bind" || option == "rbind";
    mount.typ().as_deref() == Some("bind") || mount.options().iter().flatten().any(asked)
}

struct Options {
    read_only: bool,
    read_only_below: bool,
    recursive: bool,
    follow_mounts: bool,
}

impl Options {
    fn of(mount: &Mount, destination: &str) -> Result<Self> {
        let mut options = Self {
            read_only: false,
            read_only_below: false,
            recursive: false,
            follow_mounts: false,
        };
        for option in mount.options().iter().flatten() {
            match option.as_str() {
                "ro" => options.read_only = true,
                "rro" => (options.read_only, options.read_only_below) = (true, true),
                "rw" | "rrw" => (options.read_only, options.read_only_below) = (false, false),
                "rbind" => options.recursive = true,
                "slave" | "rslave" => options.follow_mounts = true,
                "shared" | "rshared" => {
                    return Err(invalid(format!(
                        "the propagation '{option}' of {destination} cannot be used with hyperv \
                         isolation: what is mounted in a VM does not appear on the host"
                    )));
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

/// Whether something is mounted below a path; not, where that cannot be told.
fn has_mounts_below(path: &Path) -> bool {
    // The table is written in octal where a path has one of these (proc_pid_mountinfo(5)).
    let mut shown = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => shown.extend(format!("\\{byte:03o}").into_bytes()),
            byte => shown.push(byte),
        }
    }
    if shown.last() != Some(&b'/') {
        shown.push(b'/');
    }
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    table.split(|byte| *byte == b'\n').any(|line| {
        let point = line.split(|byte| *byte == b' ').nth(4);
        point.is_some_and(|point| point.len() > shown.len() && point.starts_with(&shown))
    })
}

/// What the host's mount does not allow, the guest's does not either.
fn inherit(mount: &mut Mount, source: &Path) {
    let Ok(status) = rustix::fs::statvfs(source) else {
        return;
    };
    let mut options = mount.options().clone().unwrap_or_default();
    for (flag, option, opposite) in [
        (StatVfsMountFlags::RDONLY, "ro", "rw"),
        (StatVfsMountFlags::NOEXEC, "noexec", "exec"),
        (StatVfsMountFlags::NOSUID, "nosuid", "suid"),
        (StatVfsMountFlags::NODEV, "nodev", "dev"),
    ] {
        if status.f_flag.contains(flag) && !options.iter().any(|known| known == option) {
            options.retain(|known| known != opposite);
            options.push(option.to_owned());
        }
    }
    mount.set_options(Some(options));
}

fn invalid(message: String) -> IsolationError {
    IsolationError::new(ErrorKind::InvalidArgument, message)
}

/// What is shared with one machine. Dropping it ends the servers.
#[derive(Debug)]
pub struct Shares {
    servers: Vec<(u32, Server)>,
    sockets: Vec<SocketShare>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Shares {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Shares {
    /// Joins the servers with the guest's mounts, and sockets with sockets. After the setup
    /// of the guest and before its container is made.
    ///
    /// # Errors
    /// The agent's.
    pub async fn connect(&mut self, vm: &Vm) -> Result<()> {
        for (share, server) in &mut self.servers {
            let share = *share;
            let Some(socket) = server.socket.take() else {
                continue;
            };
            let joined = socket
                .set_nonblocking(true)
                .and_then(|()| tokio::net::UnixStream::from_std(socket));
            let mut socket = joined.map_err(|error| IsolationError::other("join", error))?;
            let ((), mut stream) = vm.request(MountShare { share }).await?;
            self.tasks.push(tokio::spawn(async move {
                // Ends with the machine, or with the server; the other one notices.
                let copied = tokio::io::copy_bidirectional_with_sizes(
                    &mut stream,
                    &mut socket,
                    BUFFER,
                    BUFFER,
                );
                if let Err(error) = copied.await {
                    tracing::debug!(%error, share, "a share has ended");
                }
            }));
        }
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        for socket in std::mem::take(&mut self.sockets) {
            vm.call(socket.listen).await?;
            let connection = vm.connection();
            let slots = Arc::clone(&slots);
            self.tasks
                .push(tokio::spawn(forward(connection, socket, slots)));
        }
        Ok(())
    }

    /// Ends the servers and waits until they have ended. The machine must have ended.
    pub async fn release(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
            // What it held is dropped then.
            let _ = task.await;
        }
        for (_, server) in self.servers.drain(..) {
            server.end().await;
        }
    }
}

/// Takes the guest's connections to a socket, one after the other, and carries each.
async fn forward(connection: Connection, socket: SocketShare, slots: Arc<Semaphore>) {
    let share = socket.listen.share;
    let socket = Arc::new(socket.socket);
    let mut carried = tokio::task::JoinSet::new();
    loop {
        while carried.try_join_next().is_some() {}
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
            return;
        };
        let Ok(mut stream) = connection.open().await else {
            return;
        };
        match bulkhead_agent_protocol::call(&mut stream, AcceptShare { share }).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                let error = crate::vm::clean(&error.message);
                tracing::warn!(error, "the guest takes no connections to a socket any more");
                return;
            }
            // The machine has ended.
            Err(_) => return,
        }
        let socket = Arc::clone(&socket);
        carried.spawn(async move {
            let _slot = slot;
            // By the descriptor's own name: the path may be another socket's by now.
            let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
            match tokio::net::UnixStream::connect(path).await {
                Ok(mut host) => {
                    let copied = tokio::io::copy_bidirectional_with_sizes(
                        &mut stream,
                        &mut host,
                        BUFFER,
                        BUFFER,
                    );
                    // Either side's going away is its right.
                    let _ = copied.await;
                }
                // The guest's connection is reset.
                Err(error) => tracing::debug!(%error, "nobody listens at the host's socket"),
            }
        });
    }
}

/// A server process. Dropping it kills it.
#[derive(Debug)]
struct Server {
    process: Option<Child>,
    /// Until it is joined with the guest.
    socket: Option<UnixStream>,
}

impl Server {
    /// Starts a process and waits until it serves. Blocks.
    fn start(binary: &Path, id: &str, config: &ShareConfig, group: &MachineGroup) -> Result<Self> {
        let failed = |what: &'static str| move |error| IsolationError::other(what, error);
        let (mut ours, theirs) = UnixStream::pair().map_err(failed("cannot make a socket"))?;
        let process = Command::new(binary)
            .arg("--id")
            .arg(id)
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .spawn()
            .map_err(|error| {
                let kind = match error.kind() {
                    io::ErrorKind::NotFound => ErrorKind::Unavailable,
                    _ => ErrorKind::Other,
                };
                let binary = binary.display();
                IsolationError::new(
                    kind,
                    format!("cannot start the share server '{binary}': {error}"),
                )
            })?;
        // It waits to be told what to share; what it starts after that is born there.
        group.add(process.id());
        let mut server = Self {
            process: Some(process),
            socket: None,
        };
        ours.set_read_timeout(Some(START_DEADLINE))
            .map_err(failed("cannot set a deadline"))?;
        let source = config.source.display();
        let lost = |error| IsolationError::other(format!("the server of {source} was lost"), error);
        write_frame(&mut ours, config).map_err(lost)?;
        let ready: std::result::Result<(), String> = read_frame(&mut ours).map_err(lost)?;
        ready.map_err(|error| {
            IsolationError::new(ErrorKind::Other, format!("cannot share {source}: {error}"))
        })?;
        ours.set_read_timeout(None)
            .map_err(failed("cannot take a deadline back"))?;
        server.socket = Some(ours);
        Ok(server)
    }

    /// Waits for its end, which comes by itself when its socket closes.
    async fn end(mut self) {
        drop(self.socket.take());
        let Some(mut process) = self.process.take() else {
            return;
        };
        let number = process.id();
        let waited = tokio::task::spawn_blocking(move || process.wait());
        tokio::pin!(waited);
        if tokio::time::timeout(END_DEADLINE, &mut waited)
            .await
            .is_ok()
        {
            return;
        }
        tracing::warn!(number, "a share server does not end and is killed");
        if let Some(pid) = i32::try_from(number)
            .ok()
            .and_then(rustix::process::Pid::from_raw)
        {
            // Not reaped yet, so the number is still its own.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        if tokio::time::timeout(END_DEADLINE, waited).await.is_err() {
            tracing::warn!(number, "a share server hangs in the kernel");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            // Its child goes with it. Reaped here, or with the supervisor.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
