//! One QEMU process: from spawn to reaped.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bulkhead_machine::{
    Accelerator, BootError, Disk, DiskFiles, Engine, ExitReason, Machine, MachineConfig,
    MachineError, MachineExit, MachineFiles, PreparedMachine, Tail,
};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, watch};

use crate::command::{self, Clock, Descriptors, DiskDescriptors};
use crate::jail::QemuJail;
use crate::qmp::{self, Client, Event};
use crate::{QemuEngine, filter, jail, tail, tsc, vmdk};

/// The name in messages.
const ENGINE: &str = "QEMU";

fn io_error(context: impl Into<String>) -> impl FnOnce(io::Error) -> BootError {
    let context = context.into();
    move |source| BootError::Io { context, source }
}

/// Starts QEMU; see [`bulkhead_machine::Engine::prepare`].
pub(crate) fn prepare(
    engine: &QemuEngine,
    config: &MachineConfig,
    files: MachineFiles,
) -> Result<PreparedQemu, BootError> {
    engine.capabilities().check(config)?;
    let clock = ClockChoice::begin(config);
    if !is_vmlinux(&files.kernel) {
        return Err(BootError::InvalidConfig(format!(
            "the guest kernel '{}' is not an uncompressed x86-64 vmlinux",
            config.kernel.display()
        )));
    }
    let joints = joints(config, &files)?;
    let (monitor, qemu_monitor) = UnixStream::pair().map_err(io_error("make a socket"))?;
    let (words, qemu_words) = UnixStream::pair().map_err(io_error("make a socket"))?;
    let qemu_monitor = blocking(qemu_monitor).map_err(io_error("make a socket"))?;
    let qemu_words = blocking(qemu_words).map_err(io_error("make a socket"))?;
    let descriptors = Descriptors {
        transport: files.transport.as_raw_fd(),
        monitor: qemu_monitor.as_raw_fd(),
        last_words: qemu_words.as_raw_fd(),
        kernel: jail::KERNEL.to_owned(),
        initramfs: jail::INITRAMFS.to_owned(),
        disks: files
            .disks
            .iter()
            .zip(&joints)
            .map(|(disk, joint)| disk_descriptors(disk, joint.as_ref()))
            .collect(),
        console: files.console.as_ref().map(AsRawFd::as_raw_fd),
        taps: files.taps.iter().map(AsRawFd::as_raw_fd).collect(),
    };
    let jail = QemuJail::new(engine, config, &files)?;
    let arguments = command::arguments(config, clock.end(), &descriptors);
    let child = spawn(jail, &arguments, descriptors.all())?;
    // QEMU's alone from here on: locks and the ends of sockets go with it.
    drop((files, joints, qemu_monitor, qemu_words));
    Ok(PreparedQemu {
        child,
        monitor,
        words,
        memory: command::memory(config),
        balloon: config.balloon_bytes,
    })
}

/// A QEMU that was started and builds its machine.
pub(crate) struct PreparedQemu {
    child: Child,
    monitor: UnixStream,
    words: UnixStream,
    /// Bytes.
    memory: u64,
    /// What the guest is to give up of it.
    balloon: u64,
}

#[async_trait]
impl PreparedMachine for PreparedQemu {
    async fn boot(self: Box<Self>) -> Result<Box<dyn Machine>, BootError> {
        boot(*self).await.map(|machine| Box::new(machine) as _)
    }
}

async fn boot(prepared: PreparedQemu) -> Result<QemuMachine, BootError> {
    let PreparedQemu {
        mut child,
        monitor,
        words,
        memory,
        balloon,
    } = prepared;
    filter::worker()
        .and_then(|filter| filter.set())
        .map_err(|error| io_error("restrict the worker's system calls")(io::Error::other(error)))?;
    let complaints = Tail::default();
    let complaining = child.stderr.take().map(|stderr| {
        let complaints = complaints.clone();
        tokio::spawn(async move { tail::read(&complaints, stderr).await })
    });
    let console = Tail::default();
    let talking = tokio::spawn({
        let console = console.clone();
        async move { tail::read(&console, words).await }
    });

    // QEMU greets when it has opened every file and built the machine. When it does not, it
    // ends, and the socket with it.
    let connected = qmp::connect(monitor).await;
    let (client, listener) = match connected {
        Ok(connected) => connected,
        Err(error) => {
            // `start_kill` fails on a process that has ended, which is what is wanted.
            let _ = child.start_kill();
            let status = child.wait().await;
            talking.abort();
            if let Some(complaining) = complaining {
                // A reader that was cancelled or panicked has nothing more to tell.
                let _ = complaining.await;
            }
            return Err(refusal(&complaints, status.ok(), &error));
        }
    };

    let shutdown = Arc::new(Mutex::new(None));
    let listening = tokio::spawn({
        let shutdown = Arc::clone(&shutdown);
        listener.run(move |Event::Shutdown(reason)| {
            *shutdown.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        })
    });
    let killed = Arc::new(Killed::default());
    let (sender, exit) = watch::channel(None);
    tokio::spawn({
        let killed = Arc::clone(&killed);
        async move {
            let status = end(&mut child, &killed).await;
            // These end with the process, since its descriptors close.
            let _ = tokio::join!(listening, talking);
            if let Some(complaining) = complaining {
                let _ = complaining.await;
            }
            let reason = shutdown
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            sender.send_replace(Some(classify(
                killed.flag.load(Ordering::Acquire),
                reason.as_deref(),
                status,
                &complaints.text(),
                &console.text(),
            )));
        }
    });
    let machine = QemuMachine {
        client,
        memory,
        killed,
        exit,
    };
    if balloon > 0 {
        // The driver finds it there when it starts.
        let inflated = machine.balloon(balloon).await;
        inflated.map_err(|error| BootError::Refused {
            engine: ENGINE,
            message: error.to_string(),
        })?;
    }
    Ok(machine)
}

/// A running QEMU.
pub(crate) struct QemuMachine {
    client: Client,
    /// Bytes.
    memory: u64,
    killed: Arc<Killed>,
    exit: watch::Receiver<Option<MachineExit>>,
}

#[derive(Default)]
struct Killed {
    flag: AtomicBool,
    wanted: Notify,
}

#[async_trait]
impl Machine for QemuMachine {
    async fn pause(&self) -> Result<(), MachineError> {
        self.client.execute("stop").await.map(drop)
    }

    async fn resume(&self) -> Result<(), MachineError> {
        self.client.execute("cont").await.map(drop)
    }

    async fn balloon(&self, bytes: u64) -> Result<(), MachineError> {
        // QEMU is told what is left.
        let value = self.memory.saturating_sub(bytes);
        let arguments = serde_json::json!({ "value": value });
        let done = self.client.execute_with("balloon", &arguments).await;
        done.map(drop)
    }

    fn kill(&self) {
        self.killed.flag.store(true, Ordering::Release);
        self.killed.wanted.notify_one();
    }

    async fn wait(&self) -> MachineExit {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await.ok();
        ended
            .and_then(|exit| exit.clone())
            // Only a runtime that shuts down drops the sender first.
            .unwrap_or_else(|| MachineExit::new(ExitReason::Killed, "the worker has ended"))
    }
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for QEMU's end, or brings it about.
async fn end(child: &mut Child, killed: &Killed) -> io::Result<ExitStatus> {
    tokio::select! {
        status = child.wait() => return status,
        () = killed.wanted.notified() => {}
    }
    // As above: it may have ended by itself.
    let _ = child.start_kill();
    child.wait().await
}

/// The best clock that this host can give to such a machine, once it is known.
enum ClockChoice {
    Known(Clock),
    Measured(tsc::Measurement),
}

impl ClockChoice {
    fn begin(config: &MachineConfig) -> Self {
        match config.accelerator {
            Accelerator::Kvm => Self::Known(Clock::Kvm),
            Accelerator::Tcg => {
                tsc::Measurement::begin().map_or(Self::Known(Clock::Pit), Self::Measured)
            }
        }
    }

    fn end(self) -> Clock {
        match self {
            Self::Known(clock) => clock,
            Self::Measured(measurement) => measurement.end().map_or(Clock::Pit, Clock::Tsc),
        }
    }
}

/// That a file starts as ELF does (class 64, little-endian); QEMU has misleading words for
/// what does not.
fn is_vmlinux(file: &File) -> bool {
    let mut head = [0; 6];
    file.read_exact_at(&mut head, 0)
        .is_ok_and(|()| head == *b"\x7fELF\x02\x01")
}

/// For each disk what joins its files, where there are several.
fn joints(config: &MachineConfig, files: &MachineFiles) -> Result<Vec<Option<File>>, BootError> {
    let joint = |(disk, files): (&Disk, &DiskFiles)| match (disk, files) {
        (Disk::Layers { files: layers }, DiskFiles::Layers(files)) if files.len() > 1 => {
            let numbers: Vec<_> = files.iter().map(AsRawFd::as_raw_fd).collect();
            let text = vmdk::descriptor(layers, &numbers)
                .map_err(|error| BootError::InvalidConfig(error.to_string()))?;
            read_only_memory(&text)
                .map(Some)
                .map_err(io_error("write down the VM's layers"))
        }
        _ => Ok(None),
    };
    config.disks.iter().zip(&files.disks).map(joint).collect()
}

/// A file without a name, to be read: QEMU refuses a descriptor that allows more than it
/// needs.
fn read_only_memory(text: &str) -> io::Result<File> {
    let file = rustix::fs::memfd_create(c"layers", rustix::fs::MemfdFlags::CLOEXEC)?;
    let file = File::from(file);
    file.write_all_at(text.as_bytes(), 0)?;
    File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn disk_descriptors(disk: &DiskFiles, joint: Option<&File>) -> DiskDescriptors {
    match (disk, joint) {
        (DiskFiles::Scratch(file), _) => DiskDescriptors::Scratch(file.as_raw_fd()),
        (DiskFiles::Layers(files), Some(joint)) => DiskDescriptors::Layers {
            joint: joint.as_raw_fd(),
            files: files.iter().map(AsRawFd::as_raw_fd).collect(),
        },
        // `MachineFiles` has at least one.
        (DiskFiles::Layers(files), None) => {
            DiskDescriptors::Layer(files.first().map_or(-1, AsRawFd::as_raw_fd))
        }
    }
}

fn blocking(stream: UnixStream) -> io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

fn spawn(
    jail: QemuJail,
    arguments: &[std::ffi::OsString],
    inherited: Vec<RawFd>,
) -> Result<Child, BootError> {
    let parent = rustix::process::getpid();
    let binary = jail.binary().to_owned();
    let mut command = Command::new(&binary);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // SAFETY: the worker has one thread, so nothing is locked in its child; the descriptors
    // are open, since the caller holds them past the spawn.
    unsafe {
        command.pre_exec(move || {
            jail.enter()?;
            // After the change of user, which undoes it.
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The worker may have died before the line above; then nobody would tell us.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            inherited.iter().copied().try_for_each(keep)
        });
    }
    command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BootError::Unavailable(format!(
            "there is no QEMU at '{}', or it is not a program of this system: install it \
             (Debian: apt-get install qemu-system-x86)",
            binary.display()
        )),
        _ => BootError::Io {
            context: format!("start '{}' in its jail", binary.display()),
            source,
        },
    })
}

/// Lets a descriptor survive the exec.
fn keep(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: the caller of `spawn` holds the descriptor open, and it is not closed here.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(descriptor) };
    rustix::io::fcntl_setfd(borrowed, rustix::io::FdFlags::empty())?;
    Ok(())
}

fn refusal(complaints: &Tail, status: Option<ExitStatus>, error: &io::Error) -> BootError {
    let said = said(&complaints.text());
    let message = match (said.is_empty(), status) {
        (false, _) => said,
        (true, Some(status)) => format!("it ended without a word ({status})"),
        (true, None) => error.to_string(),
    };
    BootError::Refused {
        engine: ENGINE,
        message,
    }
}

/// What QEMU has said, in one line.
fn said(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.trim().trim_start_matches("qemu-system-x86_64: "))
        .collect();
    bulkhead_machine::last_lines(&lines.join("\n"))
}

fn classify(
    killed: bool,
    shutdown: Option<&str>,
    status: io::Result<ExitStatus>,
    complaints: &str,
    console: &str,
) -> MachineExit {
    let signal = status.as_ref().ok().and_then(ExitStatus::signal);
    // QEMU's ShutdownCause, `qapi/run-state.json`.
    match shutdown {
        Some("guest-shutdown") => {
            MachineExit::new(ExitReason::PoweredOff, "the guest powered itself off")
        }
        Some("guest-reset" | "guest-panic") => bulkhead_machine::guest_reset(console),
        _ if killed => MachineExit::new(ExitReason::Killed, "the VM was killed"),
        _ => match (signal, status) {
            (Some(libc::SIGSYS), _) => MachineExit::new(
                ExitReason::EngineKilled,
                "QEMU made a system call that its sandbox forbids (SIGSYS)",
            ),
            (Some(signal), _) => MachineExit::new(
                ExitReason::EngineKilled,
                format!("QEMU was killed by signal {signal}"),
            ),
            (None, Ok(status)) => {
                let said = said(complaints);
                let cause = shutdown.unwrap_or("no reason given");
                let mut detail = format!("QEMU ended by itself ({status}, {cause})");
                if !said.is_empty() {
                    detail = format!("{detail}: {said}");
                }
                MachineExit::new(ExitReason::EngineFailed, detail)
            }
            (None, Err(error)) => {
                MachineExit::new(ExitReason::EngineFailed, format!("QEMU was lost: {error}"))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(raw: i32) -> io::Result<ExitStatus> {
        Ok(ExitStatus::from_raw(raw))
    }

    #[test]
    fn ends_are_told_apart() {
        let reason = |killed, shutdown, raw| classify(killed, shutdown, status(raw), "", "").reason;
        assert_eq!(
            reason(false, Some("guest-shutdown"), 0),
            ExitReason::PoweredOff
        );
        assert_eq!(
            reason(false, Some("guest-reset"), 0),
            ExitReason::GuestPanic
        );
        assert_eq!(reason(true, None, 9), ExitReason::Killed);
        assert_eq!(reason(false, None, 9), ExitReason::EngineKilled);
        assert_eq!(reason(false, None, 1 << 8), ExitReason::EngineFailed);
    }
}
