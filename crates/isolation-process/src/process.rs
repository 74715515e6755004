//! A process of a container: made by a helper, waiting for the word to go, then running,
//! then exited.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio as CommandStdio};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bulkhead_isolation::{
    ByteReader, ByteWriter, ErrorKind, ExitStatus, IsolationError, Process, Result, Stdio,
    TerminalSize,
};
use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use tokio::net::unix::pipe;
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::console::{ConsoleSocket, Terminal};
use crate::helper;
use crate::output::UntilExit;
use crate::reaper::{Child, Reaper};
use crate::wire::{self, Control, Order, Report};
use bulkhead_cgroup::Cgroup;

/// A process of a container.
pub struct ContainerProcess {
    reaper: Arc<Reaper>,
    child: Child,
    terminal: Option<Terminal>,
    stdio: Mutex<Stdio>,
    /// The container's group, when this is its init.
    group: Option<Arc<OomWatch>>,
    phase: AsyncMutex<Phase>,
    status: watch::Receiver<Option<ExitStatus>>,
}

enum Phase {
    /// Waits for the word to go.
    Created(Control),
    Started,
}

/// The ends of a process's streams that the process gets, and ours.
pub struct Streams {
    theirs: Vec<OwnedFd>,
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    console: Option<ConsoleSocket>,
}

impl Streams {
    /// A terminal, whose socket is made in `directory`.
    pub fn terminal(directory: &Path) -> io::Result<Self> {
        Ok(Self {
            theirs: Vec::new(),
            stdin: None,
            stdout: None,
            stderr: None,
            console: Some(ConsoleSocket::bind(directory)?),
        })
    }

    /// Pipes, and `/dev/null` in place of a stdin that nobody will write to.
    pub fn pipes(stdin: bool) -> io::Result<Self> {
        let (stdin, stdin_writer) = if stdin {
            let (reader, writer) = new_pipe()?;
            (reader, Some(pipe::Sender::from_owned_fd(writer)?))
        } else {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            (rustix::fs::open("/dev/null", flags, Mode::empty())?, None)
        };
        let (stdout_reader, stdout) = new_pipe()?;
        let (stderr_reader, stderr) = new_pipe()?;
        Ok(Self {
            theirs: vec![stdin, stdout, stderr],
            stdin: stdin_writer,
            stdout: Some(pipe::Receiver::from_owned_fd(stdout_reader)?),
            stderr: Some(pipe::Receiver::from_owned_fd(stderr_reader)?),
            console: None,
        })
    }

    /// Where the terminal is sent, for the order.
    pub fn console_path(&self) -> Option<std::path::PathBuf> {
        self.console
            .as_ref()
            .map(|console| console.path().to_owned())
    }
}

fn new_pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
}

/// What a process is made from.
pub struct Launch {
    pub order: Order,
    pub streams: Streams,
    /// Whether stdin is fed from us; with a terminal both directions share it.
    pub stdin: bool,
    /// Size of the terminal at first.
    pub size: Option<TerminalSize>,
    /// The group whose OOM kills count as this process's.
    pub oom: Option<Arc<OomWatch>>,
}

/// The container's group, known only once its init exists.
pub type OomWatch = std::sync::OnceLock<Cgroup>;

impl ContainerProcess {
    /// Runs a helper that carries out the order, and returns the process that it made,
    /// which waits for [`Process::start`].
    pub async fn launch(reaper: &Arc<Reaper>, launch: Launch) -> Result<Arc<Self>> {
        let Launch {
            order,
            streams,
            stdin,
            size,
            oom,
        } = launch;
        let (ours, theirs) =
            wire::pair().map_err(|error| IsolationError::other("create socket pair", error))?;
        wire::send_order(ours.as_fd(), &order, &streams.theirs)
            .map_err(|error| IsolationError::other("send order to helper", error))?;
        let expected = reaper.expect();
        let mut command = Command::new(helper::program());
        command
            .arg(helper::ARGUMENT)
            .env_clear()
            .stdin(theirs)
            .stdout(CommandStdio::null());
        let helper = reaper
            .spawn(&mut command)
            .map_err(|error| IsolationError::other("start helper", error))?;
        drop(command);
        // The process holds the only writing ends from here on.
        drop(streams.theirs);
        let control =
            Control::new(ours).map_err(|error| IsolationError::other("poll helper", error))?;
        let pid = created(&control, matches!(order, Order::Exec(_))).await;
        let pid = match pid {
            Ok(pid) => pid,
            Err(error) => {
                // It cleans up after itself, and has nothing left to wait for.
                helper.wait().await;
                return Err(error);
            }
        };
        let child = reaper.adopt(pid, &expected);
        drop(expected);

        let output = |reader| Box::pin(UntilExit::new(reader, child.clone())) as ByteReader;
        let mut stdio = Stdio {
            stdin: streams.stdin.map(|writer| Box::pin(writer) as ByteWriter),
            stdout: streams.stdout.map(output),
            stderr: streams.stderr.map(output),
        };
        let terminal = match streams.console {
            None => None,
            Some(socket) => match open_terminal(socket, size) {
                Ok(terminal) => {
                    let output = UntilExit::new(terminal.clone(), child.clone());
                    stdio.stdout = Some(Box::pin(output));
                    if stdin {
                        stdio.stdin = Some(Box::pin(terminal.clone()));
                    }
                    Some(terminal)
                }
                Err(error) => {
                    // Dropping the control socket ends the process.
                    drop(control);
                    child.wait().await;
                    return Err(IsolationError::other("open terminal", error));
                }
            },
        };
        Ok(Arc::new(Self {
            status: watch_exit(child.clone(), oom.clone()),
            group: oom,
            reaper: Arc::clone(reaper),
            child,
            terminal,
            stdio: Mutex::new(stdio),
            phase: AsyncMutex::new(Phase::Created(control)),
        }))
    }

    /// The exit, if it has happened.
    pub fn exited(&self) -> bool {
        self.child.exited().is_some()
    }

    /// Whether the payload was told to run.
    pub async fn started(&self) -> bool {
        matches!(*self.phase.lock().await, Phase::Started)
    }

    /// The number of this process.
    pub fn number(&self) -> Pid {
        self.child.pid()
    }
}

/// The PID of the process that a helper made, once it waits for the word to go.
async fn created(control: &Control, exec: bool) -> Result<Pid> {
    loop {
        let report = control
            .report()
            .await
            .map_err(|error| IsolationError::other("read from helper", error))?;
        match report {
            // The helper of an exec lives until the payload runs, so the process itself is
            // the first to be heard; the init of a container is announced by its helper,
            // when libcontainer is done with it.
            Some((Report::Ready, Some(pid))) if exec => return Ok(pid),
            Some((Report::Ready | Report::Done, _)) => {}
            Some((Report::Created { pid }, _)) => {
                return Pid::from_raw(pid)
                    .ok_or_else(|| IsolationError::new(ErrorKind::Other, "init without a PID"));
            }
            Some((Report::Failed(error), _)) => return Err(error),
            None => {
                return Err(IsolationError::new(
                    ErrorKind::Other,
                    "the process died while it was created",
                ));
            }
        }
    }
}

fn open_terminal(socket: ConsoleSocket, size: Option<TerminalSize>) -> io::Result<Terminal> {
    let terminal = Terminal::new(socket.receive()?)?;
    if let Some(size) = size {
        terminal.resize(size)?;
    }
    Ok(terminal)
}

/// Turns the exit into a status, with the OOM killer's share in it read before anybody can
/// have removed the group.
fn watch_exit(child: Child, oom: Option<Arc<OomWatch>>) -> watch::Receiver<Option<ExitStatus>> {
    let (sender, receiver) = watch::channel(None);
    tokio::spawn(async move {
        let mut status = child.wait().await.status();
        status.oom_killed = oom
            .as_ref()
            .and_then(|watch| watch.get())
            .is_some_and(Cgroup::oom_killed);
        sender.send_replace(Some(status));
    });
    receiver
}

#[async_trait]
impl Process for ContainerProcess {
    fn pid(&self) -> Option<u32> {
        u32::try_from(self.child.pid().as_raw_nonzero().get()).ok()
    }

    fn take_stdio(&self) -> Stdio {
        std::mem::take(&mut *self.stdio.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn start(&self) -> Result<()> {
        let mut phase = self.phase.lock().await;
        let Phase::Created(control) = &*phase else {
            return Err(IsolationError::new(
                ErrorKind::FailedPrecondition,
                "process is already started",
            ));
        };
        let exited = || IsolationError::new(ErrorKind::FailedPrecondition, "process has exited");
        if self.exited() || control.go().is_err() {
            return Err(exited());
        }
        let mut result = Ok(());
        loop {
            match control.report().await {
                Ok(Some((Report::Failed(error), _))) => result = Err(error),
                // `Ready` of an init, or `Created` after it, read late.
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    result = Err(IsolationError::other("read from process", error));
                    break;
                }
            }
        }
        *phase = Phase::Started;
        result
    }

    async fn kill(&self, signal: i32) -> Result<()> {
        // Until it runs the payload it is PID 1 of its namespace with no handlers, which
        // ignores everything but SIGKILL.
        let signal = match &*self.phase.lock().await {
            Phase::Created(_) if signal != 0 => libc::SIGKILL,
            _ => signal,
        };
        let sent = self.reaper.kill_raw(self.child.pid(), signal);
        if signal == libc::SIGKILL
            && let Some(cgroup) = self.group.as_ref().and_then(|group| group.get())
        {
            cgroup.let_die();
        }
        sent.map_err(|error| match error.raw_os_error() {
            Some(libc::ESRCH) => IsolationError::new(ErrorKind::NotFound, "process has exited"),
            Some(libc::EINVAL) => IsolationError::new(
                ErrorKind::InvalidArgument,
                format!("invalid signal: {signal}"),
            ),
            _ => IsolationError::other(format!("send signal {signal}"), error),
        })
    }

    async fn resize(&self, size: TerminalSize) -> Result<()> {
        let Some(terminal) = &self.terminal else {
            return Ok(());
        };
        terminal
            .resize(size)
            .map_err(|error| IsolationError::other("resize terminal", error))
    }

    async fn wait(&self) -> ExitStatus {
        let mut status = self.status.clone();
        match status.wait_for(Option::is_some).await {
            Ok(value) => value.clone().unwrap_or_else(lost),
            Err(_) => lost(),
        }
    }
}

/// The runtime is going down, and nobody will know better.
fn lost() -> ExitStatus {
    ExitStatus {
        code: 137,
        at: jiff::Timestamp::now(),
        oom_killed: false,
        failure: Some("the exit status was lost".to_owned()),
    }
}
