//! The worker process of one VM, as the supervisor holds it.
//!
//! Owns the worker's process: starts it, kills it, reaps it by its pidfd (so a reaper that
//! waits for every child does no harm). Knows nothing of what an engine does in there.

mod affinity;
mod first_process;
pub mod protocol;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Signal, WaitId, WaitIdOptions};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{ExitReason, FilesError, MachineConfig, MachineExit, MachineFiles, Placement};
use first_process::StartError;
use protocol::{Event, MAX_LINE, Request, Verb};

/// Most bytes of the worker's last words that are kept.
const LAST_WORDS: u64 = 4096;

/// What the worker needs of the supervisor's environment: where QEMU is, and how much to log.
const KEPT_ENVIRONMENT: [&str; 2] = ["PATH", "BULKHEAD_LOG"];

/// A worker could not be started, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The binary does not start.
    #[error("cannot start the VM worker '{}'", .path.display())]
    Spawn {
        /// The binary.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system said no.
    #[error("cannot {context}")]
    Io {
        /// What was being done.
        context: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the machine cannot be used.
    #[error("the VM cannot start")]
    Files(#[from] FilesError),
    /// There is no machine any more.
    #[error("the VM has ended: {}", .0.detail)]
    Ended(MachineExit),
    /// The engine said no.
    #[error("the VM worker refused: {0}")]
    Refused(String),
}

fn io_error(context: &'static str) -> impl Fn(io::Error) -> WorkerError {
    move |source| WorkerError::Io { context, source }
}

type Pending = Arc<Mutex<HashMap<u64, oneshot::Sender<Option<String>>>>>;

/// A worker process and the machine in it. Dropping it kills both.
#[derive(Debug)]
pub struct Worker {
    pid: u32,
    pidfd: Arc<OwnedFd>,
    requests: mpsc::UnboundedSender<Request>,
    pending: Pending,
    sequence: std::sync::atomic::AtomicU64,
    state: watch::Receiver<State>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Starting,
    Running,
    Ended(MachineExit),
}

impl Worker {
    /// Starts the worker binary `vmwp` with a machine to boot, whose network cards are these
    /// tap devices, in the configuration's order. Opens the machine's files and hands them
    /// over. Returns at once with the host's end of the transport to the agent; whether the
    /// machine comes up shows by the agent's first bytes, or by [`Worker::wait`].
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`WorkerError::Files`] when a file of the machine cannot be used,
    /// [`WorkerError::Spawn`] when the binary does not start, [`WorkerError::Io`].
    pub async fn spawn(
        vmwp: &Path,
        config: &MachineConfig,
        taps: Vec<OwnedFd>,
    ) -> Result<(Self, UnixStream), WorkerError> {
        let (control, worker_control) = UnixStream::pair().map_err(io_error("make a socket"))?;
        let (transport, worker_transport) =
            UnixStream::pair().map_err(io_error("make a socket"))?;
        let files = MachineFiles::open(config, blocking(worker_transport)?, taps)?;
        // They are the worker's alone from now on, and go with it.
        let first = protocol::send_files(&control, config, files)
            .map_err(io_error("hand over the VM's files"))?;
        let mut command = Command::new(vmwp);
        command
            .arg("--id")
            .arg(&config.id)
            .env_clear()
            .envs(KEPT_ENVIRONMENT.iter().filter_map(|name| {
                let value = std::env::var_os(name)?;
                Some((*name, value))
            }))
            .stdin(blocking(worker_control)?)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let (mut child, pidfd) =
            first_process::start(command)
                .await
                .map_err(|error| match error {
                    StartError::Spawn(source) => WorkerError::Spawn {
                        path: vmwp.to_owned(),
                        source,
                    },
                    StartError::Watch(source) => io_error("watch the VM worker")(source),
                })?;
        let pid = child.id();
        let pidfd = Arc::new(pidfd);
        let last_words = child
            .stderr
            .take()
            .map(|pipe| tokio::net::unix::pipe::Receiver::from_owned_fd(OwnedFd::from(pipe)))
            .transpose();
        let (events, writer) = control.into_split();
        let (requests, queue) = mpsc::unbounded_channel();
        let (state_sender, state) = watch::channel(State::Starting);
        let pending = Pending::default();
        let worker = Self {
            pid,
            pidfd: Arc::clone(&pidfd),
            requests,
            pending: Arc::clone(&pending),
            sequence: std::sync::atomic::AtomicU64::new(1),
            state,
        };
        // From here on dropping `worker` kills the process and the task reaps it. It has not been
        // told yet what to start.
        let placed = worker.place(&config.placement);
        tokio::spawn(write_requests(writer, first, queue));
        tokio::spawn(follow(
            events,
            pidfd,
            last_words.ok().flatten(),
            pending,
            state_sender,
        ));
        placed?;
        Ok((worker, transport))
    }

    /// The worker's process number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Puts it where it is to be before it starts something. What only counts or weighs is
    /// not worth a container that does not start.
    fn place(&self, placement: &Placement) -> Result<(), WorkerError> {
        for group in &placement.control_groups {
            let file = group.join("cgroup.procs");
            if let Err(error) = std::fs::write(&file, self.pid.to_string()) {
                tracing::warn!(%error, file = %file.display(), "the VM worker is not in its group");
            }
        }
        if let Some(score) = placement.oom_score_adj {
            let file = format!("/proc/{}/oom_score_adj", self.pid);
            if let Err(error) = std::fs::write(file, score.to_string()) {
                tracing::warn!(%error, score, "the OOM killer does not prefer the VM worker");
            }
        }
        match placement.host_cpus.as_deref() {
            Some(cpus) => self.pin(cpus),
            None => Ok(()),
        }
    }

    /// Keeps the worker, and what runs the machine under it, to these CPUs of the host.
    ///
    /// # Errors
    /// [`WorkerError::Io`].
    pub fn pin(&self, cpus: &[u32]) -> Result<(), WorkerError> {
        affinity::pin(self.pid, cpus).map_err(io_error("keep the VM to CPUs of the host"))
    }

    /// Waits until the machine's CPUs run. The guest starts up after that.
    ///
    /// # Errors
    /// [`WorkerError::Ended`] when it never did, or has ended already.
    pub async fn running(&self) -> Result<(), WorkerError> {
        let mut state = self.state.clone();
        let seen = state
            .wait_for(|state| *state != State::Starting)
            .await
            .map(|state| state.clone());
        match seen {
            Ok(State::Ended(exit)) => Err(WorkerError::Ended(exit)),
            Ok(_) => Ok(()),
            Err(_) => Err(WorkerError::Ended(lost(""))),
        }
    }

    /// Waits for the end of the machine and of the worker, which is reaped then. Any number
    /// of callers, before or after it; all get the same answer.
    pub async fn wait(&self) -> MachineExit {
        let mut state = self.state.clone();
        let seen = state
            .wait_for(|state| matches!(state, State::Ended(_)))
            .await
            .map(|state| state.clone());
        match seen {
            Ok(State::Ended(exit)) => exit,
            // The task that holds the sender sends the end before it goes; only a runtime
            // that is shutting down drops it earlier.
            _ => lost(""),
        }
    }

    /// Stops the machine's CPUs. Returns when they stand.
    ///
    /// # Errors
    /// [`WorkerError::Ended`], [`WorkerError::Refused`].
    pub async fn pause(&self) -> Result<(), WorkerError> {
        self.request(Verb::Pause).await
    }

    /// Lets the machine's CPUs run on.
    ///
    /// # Errors
    /// [`WorkerError::Ended`], [`WorkerError::Refused`].
    pub async fn resume(&self) -> Result<(), WorkerError> {
        self.request(Verb::Resume).await
    }

    /// Has the guest give up so much of its memory, bytes, in all. Returns before it has.
    ///
    /// # Errors
    /// [`WorkerError::Ended`], [`WorkerError::Refused`].
    pub async fn balloon(&self, bytes: u64) -> Result<(), WorkerError> {
        self.request(Verb::Balloon(bytes)).await
    }

    /// Pulls the plug: kills the machine and waits for the worker's end. Killing one that
    /// has ended does nothing. A worker that does not react is killed by SIGKILL, which the
    /// kernel passes on to the engine.
    pub async fn kill(&self) -> MachineExit {
        let request = Request {
            sequence: 0,
            verb: Verb::Kill,
        };
        if self.requests.send(request).is_ok()
            && let Ok(exit) =
                tokio::time::timeout(std::time::Duration::from_secs(2), self.wait()).await
        {
            return exit;
        }
        self.kill_process();
        self.wait().await
    }

    fn kill_process(&self) {
        // ESRCH: it has ended already, which is what was wanted.
        let _ = rustix::process::pidfd_send_signal(&*self.pidfd, Signal::KILL);
    }

    async fn request(&self, verb: Verb) -> Result<(), WorkerError> {
        self.running().await?;
        let sequence = self
            .sequence
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (sender, reply) = oneshot::channel();
        lock(&self.pending).insert(sequence, sender);
        let sent = self.requests.send(Request { sequence, verb });
        match (sent, reply.await) {
            (Ok(()), Ok(None)) => Ok(()),
            (Ok(()), Ok(Some(message))) => Err(WorkerError::Refused(message)),
            _ => Err(WorkerError::Ended(self.wait().await)),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.kill_process();
    }
}

fn lock(
    pending: &Mutex<HashMap<u64, oneshot::Sender<Option<String>>>>,
) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Option<String>>>> {
    // Whoever panicked with it held only inserted or removed an entry.
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An end for a child: tokio's are non-blocking, and the flag is shared with the child.
fn blocking(stream: UnixStream) -> Result<OwnedFd, WorkerError> {
    let stream = stream.into_std().map_err(io_error("make a socket"))?;
    stream
        .set_nonblocking(false)
        .map_err(io_error("make a socket"))?;
    Ok(stream.into())
}

async fn write_requests(
    mut writer: OwnedWriteHalf,
    first: Vec<u8>,
    mut queue: mpsc::UnboundedReceiver<Request>,
) {
    // A worker that no longer reads has ended, which `follow` notices and reports.
    if writer.write_all(&first).await.is_err() {
        return;
    }
    while let Some(request) = queue.recv().await {
        let Ok(mut line) = serde_json::to_vec(&request) else {
            return;
        };
        line.push(b'\n');
        if writer.write_all(&line).await.is_err() {
            return;
        }
    }
}

/// Reads the worker's events until it ends, reaps it, and tells how it ended.
async fn follow(
    events: OwnedReadHalf,
    pidfd: Arc<OwnedFd>,
    last_words: Option<tokio::net::unix::pipe::Receiver>,
    pending: Pending,
    state: watch::Sender<State>,
) {
    let words = async {
        let mut text = Vec::new();
        if let Some(pipe) = last_words {
            let mut limited = pipe.take(LAST_WORDS);
            // What could be read is what is told.
            let _ = limited.read_to_end(&mut text).await;
            let mut rest = limited.into_inner();
            let _ = tokio::io::copy(&mut rest, &mut tokio::io::sink()).await;
        }
        String::from_utf8_lossy(&text).trim().to_owned()
    };
    let told = async {
        let told = read_events(events, &pending, &state).await;
        // It said its last line, after it had released everything, or closed its control
        // socket without a word: whatever it does now, it is over.
        let _ = rustix::process::pidfd_send_signal(&*pidfd, Signal::KILL);
        told
    };
    let (told, words) = tokio::join!(told, words);
    let status = reap(&pidfd).await;
    let exit = told.unwrap_or_else(|| lost(&describe(status, &words)));
    state.send_replace(State::Ended(exit));
    lock(&pending).clear();
}

async fn read_events(
    events: OwnedReadHalf,
    pending: &Pending,
    state: &watch::Sender<State>,
) -> Option<MachineExit> {
    let mut reader = BufReader::new(events);
    loop {
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let read = (&mut reader).take(limit).read_until(b'\n', &mut line).await;
        match read {
            Ok(read) if read > 0 => {}
            _ => return None,
        }
        match serde_json::from_slice(&line) {
            Ok(Event::Confined { missing }) => {
                if !missing.is_empty() {
                    tracing::warn!(?missing, "the jail of the VM worker has gaps on this host");
                }
            }
            Ok(Event::Running) => {
                state.send_replace(State::Running);
            }
            Ok(Event::Reply { sequence, error }) => {
                if let Some(waiter) = lock(pending).remove(&sequence) {
                    // The asker may have been cancelled.
                    let _ = waiter.send(error);
                }
            }
            Ok(Event::Exited(exit)) => return Some(exit),
            Err(error) => {
                tracing::warn!(%error, "the VM worker broke the protocol");
                return None;
            }
        }
    }
}

/// Waits until the process has ended and reaps it, unless somebody else did.
async fn reap(pidfd: &Arc<OwnedFd>) -> Option<rustix::process::WaitIdStatus> {
    // SAFETY: the Arc keeps this one descriptor open, under the same number, for as long as
    // the AsyncFd lives; nothing else takes it out of its OwnedFd.
    let readable = unsafe {
        tokio::io::unix::AsyncFd::register_with_interest(
            Arc::clone(pidfd),
            tokio::io::Interest::READABLE,
        )
    };
    match readable {
        Ok(watched) => {
            // A pidfd becomes readable when its process has ended.
            let _ = watched.readable().await;
        }
        Err(error) => tracing::warn!(%error, "cannot watch the VM worker"),
    }
    use std::os::fd::AsFd;
    rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)
        .ok()
        .flatten()
}

fn describe(status: Option<rustix::process::WaitIdStatus>, words: &str) -> String {
    let how = match status {
        Some(status) if status.killed() || status.dumped() => match status.terminating_signal() {
            Some(signal) if signal == Signal::SYS.as_raw() => {
                "it made a system call that its jail forbids (SIGSYS)".to_owned()
            }
            Some(signal) => format!("killed by signal {signal}"),
            None => "killed by a signal".to_owned(),
        },
        Some(status) => match status.exit_status() {
            Some(code) => format!("exited with code {code}"),
            None => String::new(),
        },
        None => String::new(),
    };
    match (how.is_empty(), words.is_empty()) {
        (true, true) => String::new(),
        (false, true) => how,
        (true, false) => words.to_owned(),
        (false, false) => format!("{how}: {words}"),
    }
}

fn lost(how: &str) -> MachineExit {
    let detail = if how.is_empty() {
        "the VM worker vmwp was lost".to_owned()
    } else {
        format!("the VM worker vmwp was lost: {how}")
    };
    MachineExit::new(ExitReason::WorkerLost, detail)
}
