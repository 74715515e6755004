//! Serves the host's requests on the one container of this machine.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bulkhead_agent_protocol::{
    AcceptShare, Call, Create, CreateReply, Delete, Exec, FileHeader, Files, Kill, KillAll,
    ListenShare, MAX_FILE_BYTES, MAX_FILES, MAX_MESSAGE, MountShare, Network, Nic, Pause,
    Processes, Request, Resize, Resolver, Resume, Setup, SetupReply, Shutdown, StandardStream,
    Start, Stats, Stdio, Stream, Update, Wait, WireError, WriteFiles, read_message, reply,
};
use bulkhead_isolation::{
    Container, ContainerFiles, CreateRequest, ErrorKind, InjectedFile, Isolation, IsolationError,
    Process, ProcessInfo, Result, VmSettings,
};
use bulkhead_isolation_process::{ProcessIsolation, Reaper};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use crate::clock;
use crate::ground::Ground;
use crate::network::{CardError, Cards, GuestResolver};
use crate::shares::{self, ShareError, Shares};

/// Most bytes of all injected files together; they are kept in the guest's memory.
const MAX_FILES_TOTAL: u64 = 32 << 20;

/// Longest command line in a process list when the list would otherwise be too long.
const SHORT_ARGS: usize = 256;

const SIGKILL: i32 = 9;

/// How long a killed init may take to die; it may be writing to its disk.
const DEATH: Duration = Duration::from_secs(10);

/// The name of the container's init among its processes.
const INIT: &str = "";

/// What became of an answer.
type Sent = std::result::Result<(), WireError>;

/// See the module.
pub struct Service {
    ground: Arc<Ground>,
    isolation: Arc<dyn Isolation>,
    /// Held through Setup, Create, Delete and Shutdown, which follow each other.
    life: tokio::sync::Mutex<Life>,
    /// Taken for moments only, and inside `life`.
    running: Mutex<Running>,
    shares: Arc<Shares>,
    /// Taken inside `life`, or alone.
    cards: tokio::sync::Mutex<Cards>,
    over: Notify,
}

/// How far the container has come.
enum Life {
    Booted,
    SetUp,
    Created,
    Deleted,
}

#[derive(Default)]
struct Running {
    container: Option<Arc<dyn Container>>,
    processes: HashMap<String, Entry>,
    /// What it was given, with our own paths.
    files: Vec<InjectedFile>,
}

struct Entry {
    process: Arc<dyn Process>,
    stdio: bulkhead_isolation::Stdio,
}

impl Service {
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// That children cannot be waited for.
    pub fn start(ground: Ground) -> std::io::Result<Self> {
        Ok(Self {
            ground: Arc::new(ground),
            isolation: Arc::new(ProcessIsolation::new(Reaper::start()?)),
            life: tokio::sync::Mutex::new(Life::Booted),
            running: Mutex::default(),
            shares: Arc::default(),
            cards: tokio::sync::Mutex::default(),
            over: Notify::new(),
        })
    }

    /// Returns when the host has asked for the end and was answered.
    pub async fn ended(&self) {
        self.over.notified().await;
    }

    /// Kills the container and writes back what it wrote; for the case that the host has
    /// gone without asking for it. Doing it again does nothing.
    pub async fn release(&self) {
        let mut life = self.life.lock().await;
        if let Err(error) = self.wind_up(&mut life).await {
            tracing::warn!(%error, "not everything could be released");
        }
    }

    /// Serves one stream: one request, its reply, and the bytes that belong to it.
    pub async fn serve(&self, mut stream: Stream) {
        let served = async {
            let request: Request = read_message(&mut stream).await?;
            let name = request.name();
            tracing::debug!(request = name, "begins");
            let dispatched = self.dispatch(request, &mut stream).await;
            tracing::debug!(request = name, "ends");
            dispatched
        };
        if let Err(error) = served.await {
            // The host resets streams whose answer nobody waits for any more.
            tracing::debug!(%error, "a request was not finished");
        }
    }

    async fn dispatch(&self, request: Request, stream: &mut Stream) -> Sent {
        match request {
            Request::Setup(setup) => {
                let result = self.set_up(setup).await;
                answer::<Setup>(stream, result).await
            }
            Request::Create(create) => {
                let result = match receive_files(stream, &create.files).await {
                    Ok(contents) => self.create(create, contents).await,
                    Err(FilesError::Wire(error)) => return Err(error),
                    Err(FilesError::Refused(error)) => Err(error),
                };
                answer::<Create>(stream, result).await
            }
            Request::Start(Start { process }) => {
                let result = match self.process(&process) {
                    Ok(process) => process.start().await,
                    Err(error) => Err(error),
                };
                answer::<Start>(stream, result).await
            }
            Request::Exec(exec) => {
                let result = self.exec(exec).await;
                answer::<Exec>(stream, result).await
            }
            Request::Kill(Kill { process, signal }) => {
                let result = match self.process(&process) {
                    Ok(process) => process.kill(signal).await,
                    Err(error) => Err(error),
                };
                answer::<Kill>(stream, result).await
            }
            Request::Wait(Wait { process }) => self.wait(&process, stream).await,
            Request::Resize(Resize { process, size }) => {
                let result = match self.process(&process) {
                    Ok(process) => process.resize(size).await,
                    Err(error) => Err(error),
                };
                answer::<Resize>(stream, result).await
            }
            Request::Stdio(stdio) => self.stdio(&stdio, stream).await,
            Request::MountShare(mount) => self.mount_share(mount, stream).await,
            Request::ListenShare(listen) => {
                let result = self
                    .check_machine()
                    .and_then(|()| self.shares.listen(listen).map_err(share_error));
                answer::<ListenShare>(stream, result).await
            }
            Request::AcceptShare(accept) => self.accept_share(accept, stream).await,
            Request::KillAll(KillAll { signal }) => {
                let result = match self.container() {
                    Ok(container) => container.kill_all(signal).await,
                    Err(error) => Err(error),
                };
                answer::<KillAll>(stream, result).await
            }
            Request::Pause(Pause) => {
                let result = match self.container() {
                    Ok(container) => container.pause().await,
                    Err(error) => Err(error),
                };
                answer::<Pause>(stream, result).await
            }
            Request::Resume(Resume) => {
                let result = match self.container() {
                    Ok(container) => container.resume().await,
                    Err(error) => Err(error),
                };
                answer::<Resume>(stream, result).await
            }
            Request::Processes(Processes) => {
                let result = match self.container() {
                    Ok(container) => container.processes().await.map(shortened),
                    Err(error) => Err(error),
                };
                answer::<Processes>(stream, result).await
            }
            Request::Stats(Stats) => {
                let result = match self.container() {
                    Ok(container) => container.stats().await,
                    Err(error) => Err(error),
                };
                answer::<Stats>(stream, result).await
            }
            Request::Update(Update { resources }) => {
                let result = match self.container() {
                    Ok(container) => container.update(resources).await,
                    Err(error) => Err(error),
                };
                answer::<Update>(stream, result).await
            }
            Request::Files(files) => {
                let files = self.files(files).await;
                let (found, result) = match files {
                    Ok(files) => (Some(files), Ok(())),
                    Err(error) => (None, Err(error)),
                };
                answer::<Files>(stream, result).await?;
                match found {
                    Some(found) => crate::files::serve(&*found, stream).await,
                    None => Ok(()),
                }
            }
            Request::Network(network) => {
                let result = self.configure_network(&network.nics).await;
                answer::<Network>(stream, result).await
            }
            Request::Resolver(resolver) => self.resolve_names(resolver, stream).await,
            Request::WriteFiles(write) => {
                let result = match receive_files(stream, &write.files).await {
                    Ok(contents) => self.rewrite_files(&write.files, &contents),
                    Err(FilesError::Wire(error)) => return Err(error),
                    Err(FilesError::Refused(error)) => Err(error),
                };
                answer::<WriteFiles>(stream, result).await
            }
            Request::Delete(Delete) => {
                let result = self.delete().await;
                answer::<Delete>(stream, result).await
            }
            Request::Shutdown(Shutdown) => self.shut_down(stream).await,
        }
    }

    fn running(&self) -> MutexGuard<'_, Running> {
        // Whoever panicked with it held only looked up, inserted or removed something.
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn container(&self) -> Result<Arc<dyn Container>> {
        self.running().container.clone().ok_or_else(|| {
            IsolationError::new(
                ErrorKind::FailedPrecondition,
                "the container is not running",
            )
        })
    }

    fn process(&self, name: &str) -> Result<Arc<dyn Process>> {
        let running = self.running();
        let entry = running
            .processes
            .get(name)
            .ok_or_else(|| no_process(name))?;
        Ok(Arc::clone(&entry.process))
    }

    async fn set_up(&self, setup: Setup) -> Result<SetupReply> {
        let request = clock::uptime_millis();
        let mut life = self.life.lock().await;
        if !matches!(*life, Life::Booted) {
            return Err(out_of_order("the machine is set up already"));
        }
        let ground = Arc::clone(&self.ground);
        let nics = setup.nics.clone();
        let done = blocking(move || ground.set_up(&setup, request)).await?;
        self.configure_network(&nics).await?;
        *life = Life::SetUp;
        Ok(done)
    }

    async fn configure_network(&self, nics: &[Nic]) -> Result<()> {
        if !self.ground.is_machine() && !nics.is_empty() {
            return Err(IsolationError::new(
                ErrorKind::Unsupported,
                "the network is not ours to change",
            ));
        }
        let mut cards = self.cards.lock().await;
        cards.configure(nics).await.map_err(|error| {
            let kind = match error {
                CardError::Invalid(_) => ErrorKind::InvalidArgument,
                _ => ErrorKind::Other,
            };
            IsolationError::new(kind, error.to_string())
        })
    }

    async fn resolve_names(&self, resolver: Resolver, stream: &mut Stream) -> Sent {
        let listening = if self.ground.is_machine() {
            GuestResolver::listen(resolver.address)
                .await
                .map_err(|error| IsolationError::other("cannot listen for name queries", error))
        } else {
            Err(IsolationError::new(
                ErrorKind::Unsupported,
                "the network is not ours to change",
            ))
        };
        match listening {
            Ok(resolver) => {
                answer::<Resolver>(stream, Ok(())).await?;
                resolver.serve(stream).await;
                Ok(())
            }
            Err(error) => answer::<Resolver>(stream, Err(error)).await,
        }
    }

    /// In place: the container has them as bind mounts.
    fn rewrite_files(&self, files: &[FileHeader], contents: &[Vec<u8>]) -> Result<()> {
        let running = self.running();
        for (file, bytes) in files.iter().zip(contents) {
            let given = running
                .files
                .iter()
                .find(|given| given.destination == file.destination)
                .ok_or_else(|| {
                    let path = file.destination.display();
                    IsolationError::new(
                        ErrorKind::NotFound,
                        format!("the container was not given {path}"),
                    )
                })?;
            std::fs::write(&given.source, bytes)
                .map_err(|error| IsolationError::other("cannot write an injected file", error))?;
        }
        Ok(())
    }

    async fn create(&self, create: Create, contents: Vec<Vec<u8>>) -> Result<CreateReply> {
        let mut life = self.life.lock().await;
        if !matches!(*life, Life::SetUp) {
            return Err(out_of_order("a container is created once, after the setup"));
        }
        let state = self.ground.state().to_owned();
        let bundle = state.join("bundle");
        let directory = state.join("files");
        let files = create.files.clone();
        let injected_files = {
            let bundle = bundle.clone();
            blocking(move || {
                std::fs::create_dir_all(&bundle).map_err(|error| {
                    IsolationError::other("cannot create the container's directory", error)
                })?;
                write_files(&directory, &files, &contents)
            })
            .await?
        };
        let mut spec = protected(*create.spec);
        if self.ground.is_machine() {
            crate::sysctl::apply(&mut spec)?;
            crate::modules::load_for(&spec)?;
        }
        let given = injected_files.clone();
        let request = CreateRequest {
            id: create.id,
            bundle,
            spec,
            rootfs: self.ground.rootfs(),
            injected_files,
            stdin: create.stdin,
            init: create.init,
            vm: VmSettings::default(),
        };
        let container = self.isolation.create(request).await?;
        let init = container.init();
        let pid = init.pid();
        let mut running = self.running();
        running.container = Some(container);
        running.files = given;
        running.processes.insert(INIT.to_owned(), entry(init));
        *life = Life::Created;
        Ok(CreateReply { pid })
    }

    async fn exec(&self, exec: Exec) -> Result<CreateReply> {
        let container = self.container()?;
        if exec.process == INIT || self.running().processes.contains_key(&exec.process) {
            let name = exec.process;
            return Err(IsolationError::new(
                ErrorKind::AlreadyExists,
                format!("there is a process '{name}' already"),
            ));
        }
        let mut spec = *exec.spec;
        if spec.oom_score_adj().is_none() {
            spec.set_oom_score_adj(Some(0));
        }
        let process = container.exec(&exec.process, spec, exec.stdin).await?;
        let pid = process.pid();
        self.running()
            .processes
            .insert(exec.process, entry(process));
        Ok(CreateReply { pid })
    }

    async fn wait(&self, name: &str, stream: &mut Stream) -> Sent {
        let result = match self.process(name) {
            Ok(process) => Ok(process.wait().await),
            Err(error) => Err(error),
        };
        let exited = result.is_ok();
        answer::<Wait>(stream, result).await?;
        if exited && name != INIT {
            // The host keeps the answer and asks no more.
            self.running().processes.remove(name);
        }
        Ok(())
    }

    async fn stdio(&self, stdio: &Stdio, stream: &mut Stream) -> Sent {
        let taken = self.take_stream(stdio);
        let (endpoint, result) = match taken {
            Ok(endpoint) => (Some(endpoint), Ok(())),
            Err(error) => (None, Err(error)),
        };
        answer::<Stdio>(stream, result).await?;
        match endpoint {
            Some(Endpoint::Writer(mut writer)) => {
                let mut feed = aside(move |mut ours| async move {
                    // An error is the process's end, or its having closed stdin.
                    if tokio::io::copy(&mut ours, &mut writer).await.is_ok() {
                        let _ = writer.shutdown().await;
                    }
                })?;
                // Dropping the stream tells the host that nobody reads.
                let copied = tokio::io::copy(stream, &mut feed).await;
                if copied.is_ok() {
                    let _ = feed.shutdown().await;
                    // Until the other side has passed everything on.
                    let _ = feed.read(&mut [0]).await;
                }
            }
            Some(Endpoint::Reader(reader)) => {
                let output = aside(move |mut ours| async move {
                    // A terminal ends with an error where a pipe ends with nothing.
                    let mut reader = tokio::io::BufReader::with_capacity(32 << 10, reader);
                    let _ = tokio::io::copy_buf(&mut reader, &mut ours).await;
                })?;
                let mut output = tokio::io::BufReader::with_capacity(32 << 10, output);
                let _ = tokio::io::copy_buf(&mut output, stream).await;
                stream.shutdown().await?;
            }
            None => {}
        }
        Ok(())
    }

    fn take_stream(&self, stdio: &Stdio) -> Result<Endpoint> {
        let mut running = self.running();
        let entry = running
            .processes
            .get_mut(&stdio.process)
            .ok_or_else(|| no_process(&stdio.process))?;
        let streams = &mut entry.stdio;
        let endpoint = match stdio.stream {
            StandardStream::Stdin => streams.stdin.take().map(Endpoint::Writer),
            StandardStream::Stdout => streams.stdout.take().map(Endpoint::Reader),
            StandardStream::Stderr => streams.stderr.take().map(Endpoint::Reader),
        };
        endpoint.ok_or_else(|| {
            IsolationError::new(
                ErrorKind::FailedPrecondition,
                format!("the process has no {:?}, or it was taken", stdio.stream),
            )
        })
    }

    /// Shares are mounted, which an ordinary process of the host has no business to do.
    fn check_machine(&self) -> Result<()> {
        if self.ground.is_machine() {
            return Ok(());
        }
        Err(IsolationError::new(
            ErrorKind::Unsupported,
            "there are no shares outside of a VM",
        ))
    }

    async fn mount_share(&self, mount: MountShare, stream: &mut Stream) -> Sent {
        let mounted = self
            .check_machine()
            .and_then(|()| self.shares.mount(mount.share).map_err(share_error));
        match mounted {
            Ok(device) => {
                answer::<MountShare>(stream, Ok(())).await?;
                device.carry(stream).await;
                Ok(())
            }
            Err(error) => answer::<MountShare>(stream, Err(error)).await,
        }
    }

    async fn accept_share(&self, accept: AcceptShare, stream: &mut Stream) -> Sent {
        match self.shares.accept(accept.share).await {
            Ok(connection) => {
                answer::<AcceptShare>(stream, Ok(())).await?;
                shares::carry_connection(connection, stream).await;
                Ok(())
            }
            Err(error) => answer::<AcceptShare>(stream, Err(share_error(error))).await,
        }
    }

    /// The files of the container, or of one that is not there.
    async fn files(&self, files: Files) -> Result<Arc<dyn ContainerFiles>> {
        if let Ok(container) = self.container() {
            return Ok(container.files());
        }
        let life = self.life.lock().await;
        let (Life::SetUp, Some(spec)) = (&*life, files.spec) else {
            return Err(out_of_order(
                "there is no container whose files could be shown",
            ));
        };
        let request = CreateRequest {
            id: files.id,
            bundle: self.ground.state().join("bundle"),
            spec: *spec,
            rootfs: self.ground.rootfs(),
            injected_files: Vec::new(),
            stdin: false,
            init: false,
            vm: VmSettings::default(),
        };
        self.isolation.open_files(request).await
    }

    async fn delete(&self) -> Result<()> {
        let mut life = self.life.lock().await;
        self.release_container(&mut life).await
    }

    async fn release_container(&self, life: &mut Life) -> Result<()> {
        let container = self.running().container.clone();
        if let Some(container) = container {
            end_init(&*container).await;
            container.delete().await?;
            let mut running = self.running();
            running.container = None;
            running.processes.clear();
        }
        if !matches!(*life, Life::Booted) {
            *life = Life::Deleted;
        }
        Ok(())
    }

    async fn wind_up(&self, life: &mut Life) -> Result<()> {
        let released = self.release_container(life).await;
        let shares = Arc::clone(&self.shares);
        blocking(move || {
            shares.release();
            Ok(())
        })
        .await?;
        let ground = Arc::clone(&self.ground);
        blocking(move || ground.tear_down()).await?;
        released
    }

    async fn shut_down(&self, stream: &mut Stream) -> Sent {
        let result = {
            let mut life = self.life.lock().await;
            self.wind_up(&mut life).await
        };
        let answered = answer::<Shutdown>(stream, result).await;
        // The host closes its half when it has read the answer, which is gone otherwise with
        // the machine.
        let mut rest = [0; 16];
        while matches!(stream.read(&mut rest).await, Ok(read) if read > 0) {}
        self.over.notify_one();
        answered
    }
}

/// Has a thread of its own do what can block although it should not: a process that splices
/// between a share and its standard stream holds the pipe's lock until the host has answered,
/// and the answer comes through our main thread. The result is the other end of what `work`
/// gets.
fn aside<F>(
    work: impl FnOnce(tokio::io::DuplexStream) -> F + Send + 'static,
) -> std::io::Result<tokio::io::DuplexStream>
where
    F: Future<Output = ()>,
{
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let runtime = tokio::runtime::Handle::current();
    std::thread::Builder::new()
        .stack_size(128 << 10)
        .spawn(move || runtime.block_on(work(theirs)))?;
    Ok(ours)
}

/// Kills the container's init if it lives: a container can only be deleted without one.
async fn end_init(container: &dyn Container) {
    let init = container.init();
    // Refused when it has exited, which is what is wanted.
    if init.kill(SIGKILL).await.is_ok() && tokio::time::timeout(DEATH, init.wait()).await.is_err() {
        tracing::warn!("the container's init does not die");
    }
}

/// One end of a standard stream.
enum Endpoint {
    Writer(bulkhead_isolation::ByteWriter),
    Reader(bulkhead_isolation::ByteReader),
}

fn entry(process: Arc<dyn Process>) -> Entry {
    let stdio = process.take_stdio();
    Entry { process, stdio }
}

fn share_error(error: ShareError) -> IsolationError {
    let kind = match &error {
        ShareError::Unknown(_) => ErrorKind::InvalidArgument,
        ShareError::Io { .. } => ErrorKind::Other,
    };
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    let message = match cause {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    };
    IsolationError::new(kind, message)
}

fn no_process(name: &str) -> IsolationError {
    let message = if name == INIT {
        "the container has no process".to_owned()
    } else {
        format!("there is no process '{name}'")
    };
    IsolationError::new(ErrorKind::NotFound, message)
}

fn out_of_order(message: &str) -> IsolationError {
    IsolationError::new(ErrorKind::FailedPrecondition, message)
}

/// Sends a reply; one that is too long becomes an error that says so.
async fn answer<C: Call>(stream: &mut Stream, result: Result<C::Reply>) -> Sent {
    match reply::<C, _>(stream, &result).await {
        Err(error @ (WireError::TooLong(_) | WireError::Malformed(_))) => {
            let error = IsolationError::other("the guest's answer cannot be sent", error);
            reply::<C, _>(stream, &Err(error)).await
        }
        sent => sent,
    }
}

/// The agent's own protection is inherited; a payload must not have it.
fn protected(mut spec: oci_spec::runtime::Spec) -> oci_spec::runtime::Spec {
    if let Some(process) = spec.process_mut()
        && process.oom_score_adj().is_none()
    {
        process.set_oom_score_adj(Some(0));
    }
    spec
}

/// A list that fits in a message, command lines cut if they must be.
fn shortened(mut processes: Vec<ProcessInfo>) -> Vec<ProcessInfo> {
    // Names and numbers take less than 600 bytes; a control character in a command line
    // takes six in JSON.
    let size: usize = processes
        .iter()
        .map(|process| 600 + 6 * process.args.len())
        .sum();
    if size > MAX_MESSAGE {
        for process in &mut processes {
            if process.args.len() > SHORT_ARGS {
                let cut = process.args.floor_char_boundary(SHORT_ARGS);
                process.args.truncate(cut);
            }
        }
    }
    processes
}

enum FilesError {
    Wire(WireError),
    Refused(IsolationError),
}

/// Reads the files that follow a Create.
async fn receive_files(
    stream: &mut Stream,
    files: &[FileHeader],
) -> std::result::Result<Vec<Vec<u8>>, FilesError> {
    let total = files
        .iter()
        .fold(0u64, |total, file| total.saturating_add(file.length));
    if files.len() > MAX_FILES
        || total > MAX_FILES_TOTAL
        || files.iter().any(|file| file.length > MAX_FILE_BYTES)
    {
        return Err(FilesError::Refused(IsolationError::new(
            ErrorKind::InvalidArgument,
            format!(
                "at most {MAX_FILES} files of {} MiB, {} MiB in all, can be given to a VM",
                MAX_FILE_BYTES >> 20,
                MAX_FILES_TOTAL >> 20
            ),
        )));
    }
    let mut contents = Vec::with_capacity(files.len());
    for file in files {
        let mut bytes = Vec::new();
        let read = (&mut *stream)
            .take(file.length)
            .read_to_end(&mut bytes)
            .await;
        let complete = read.and_then(|read| match u64::try_from(read) {
            Ok(read) if read == file.length => Ok(()),
            _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
        });
        complete.map_err(|error| FilesError::Wire(error.into()))?;
        contents.push(bytes);
    }
    Ok(contents)
}

fn write_files(
    directory: &Path,
    files: &[FileHeader],
    contents: &[Vec<u8>],
) -> Result<Vec<InjectedFile>> {
    use std::os::unix::fs::PermissionsExt;
    let failed =
        |error: std::io::Error| IsolationError::other("cannot write an injected file", error);
    std::fs::create_dir_all(directory).map_err(failed)?;
    let mut injected = Vec::with_capacity(files.len());
    for (index, (file, bytes)) in files.iter().zip(contents).enumerate() {
        let source: PathBuf = directory.join(index.to_string());
        std::fs::write(&source, bytes).map_err(failed)?;
        let mode = std::fs::Permissions::from_mode(file.mode & 0o7777);
        std::fs::set_permissions(&source, mode).map_err(failed)?;
        injected.push(InjectedFile {
            source,
            destination: file.destination.clone(),
        });
    }
    Ok(injected)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(IsolationError::other("a task of the agent failed", error)))
}
