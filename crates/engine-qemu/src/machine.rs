//! One QEMU process: from spawn to reaped.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bulkhead_machine::{
    Accelerator, BootError, Capabilities, Disk, ExitReason, MAX_LAYERS, Machine, MachineConfig,
    MachineError, MachineExit,
};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{Notify, watch};

use crate::command::{self, Clock, Descriptors};
use crate::qmp::{self, Client, Event};
use crate::tail::Tail;
use crate::{tsc, vmdk};

/// The name in messages.
const ENGINE: &str = "QEMU";
/// Most characters of a foreign message that go into a text of ours.
const QUOTED: usize = 600;

fn io_error(context: impl Into<String>) -> impl FnOnce(io::Error) -> BootError {
    let context = context.into();
    move |source| BootError::Io { context, source }
}

/// Boots; see [`bulkhead_machine::Engine::boot`].
pub(crate) async fn boot(
    binary: &Path,
    config: &MachineConfig,
    transport: OwnedFd,
    taps: Vec<OwnedFd>,
    capabilities: Capabilities,
) -> Result<QemuMachine, BootError> {
    check(config, capabilities)?;
    if taps.len() != config.nics.len() {
        return Err(BootError::InvalidConfig(format!(
            "{} tap devices were given for {} network cards",
            taps.len(),
            config.nics.len()
        )));
    }
    let layers = LayersFile::write(config)?;
    let (monitor, qemu_monitor) = UnixStream::pair().map_err(io_error("make a socket"))?;
    let (words, qemu_words) = UnixStream::pair().map_err(io_error("make a socket"))?;
    let qemu_monitor = blocking(qemu_monitor).map_err(io_error("make a socket"))?;
    let qemu_words = blocking(qemu_words).map_err(io_error("make a socket"))?;
    let descriptors = Descriptors {
        transport: transport.as_raw_fd(),
        monitor: qemu_monitor.as_raw_fd(),
        last_words: qemu_words.as_raw_fd(),
        taps: taps.iter().map(AsRawFd::as_raw_fd).collect(),
    };
    let arguments = command::arguments(config, clock(config).await, &descriptors, layers.path())?;
    let mut child = spawn(binary, &arguments, descriptors)?;
    drop((transport, qemu_monitor, qemu_words, taps));

    let complaints = Tail::default();
    let complaining = child.stderr.take().map(|stderr| {
        let complaints = complaints.clone();
        tokio::spawn(async move { complaints.read(stderr).await })
    });
    let console = Tail::default();
    let talking = tokio::spawn({
        let console = console.clone();
        async move { console.read(words).await }
    });

    // QEMU greets when it has opened every file and built the machine. When it does not, it
    // ends, and the socket with it.
    let connected = qmp::connect(monitor).await;
    // Open or not needed: nothing is left of it whatever happens from here on.
    drop(layers);
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
    Ok(QemuMachine {
        client,
        killed,
        exit,
    })
}

/// A running QEMU.
pub(crate) struct QemuMachine {
    client: Client,
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

fn check(config: &MachineConfig, capabilities: Capabilities) -> Result<(), BootError> {
    let invalid = |message: String| Err(BootError::InvalidConfig(message));
    if config.vcpus == 0 || config.vcpus > capabilities.max_vcpus {
        return invalid(format!(
            "a VM has 1 to {} CPUs, not {}",
            capabilities.max_vcpus, config.vcpus
        ));
    }
    if config.memory_bytes < command::MIN_MEMORY {
        return invalid(format!(
            "a VM with {} MiB of memory cannot boot: it needs at least {} MiB, its kernel's \
             part included",
            config.memory_bytes >> 20,
            command::MIN_MEMORY >> 20
        ));
    }
    if config.nics.len() > capabilities.max_nics {
        return invalid(format!(
            "a VM has at most {} network cards, not {}",
            capabilities.max_nics,
            config.nics.len()
        ));
    }
    for (what, path) in [
        ("guest kernel", &config.kernel),
        ("guest initramfs", &config.initramfs),
    ] {
        readable(path).map_err(io_error(format!("read the {what} '{}'", path.display())))?;
    }
    if !is_vmlinux(&config.kernel) {
        return invalid(format!(
            "the guest kernel '{}' is not an uncompressed x86-64 vmlinux",
            config.kernel.display()
        ));
    }
    for disk in &config.disks {
        match disk {
            Disk::Layers { files } if files.is_empty() || files.len() > MAX_LAYERS => {
                return invalid(format!(
                    "a VM has 1 to {MAX_LAYERS} layers, not {}",
                    files.len()
                ));
            }
            Disk::Layers { files } => {
                for file in files {
                    let path = file.path.display();
                    let length = readable(&file.path)
                        .map_err(io_error(format!("read the layer '{path}'")))?;
                    if length != file.bytes {
                        return invalid(format!(
                            "the layer '{path}' has {length} bytes where {} were expected",
                            file.bytes
                        ));
                    }
                }
            }
            Disk::Scratch { path } => {
                let path_shown = path.display();
                std::fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open(path)
                    .map_err(io_error(format!("open the scratch disk '{path_shown}'")))?;
            }
        }
    }
    Ok(())
}

/// The best clock that this host can give to such a machine.
async fn clock(config: &MachineConfig) -> Clock {
    match config.accelerator {
        Accelerator::Kvm => Clock::Kvm,
        Accelerator::Tcg => tsc::frequency_khz().await.map_or(Clock::Pit, Clock::Tsc),
    }
}

/// That a file starts as ELF does (class 64, little-endian); QEMU has misleading words for
/// what does not.
fn is_vmlinux(path: &Path) -> bool {
    let mut head = [0; 6];
    std::fs::File::open(path)
        .and_then(|mut file| io::Read::read_exact(&mut file, &mut head))
        .is_ok_and(|()| head == *b"\x7fELF\x02\x01")
}

/// That a file opens, and its length.
fn readable(path: &Path) -> io::Result<u64> {
    let metadata = std::fs::File::open(path)?.metadata()?;
    if metadata.is_file() {
        Ok(metadata.len())
    } else {
        Err(io::Error::other("not a regular file"))
    }
}

/// The descriptor file of the layers' disk. Removed when dropped.
struct LayersFile(Option<PathBuf>);

impl LayersFile {
    /// Writes it where it is needed: for one layer QEMU opens that one.
    fn write(config: &MachineConfig) -> Result<Self, BootError> {
        let files = config.disks.iter().find_map(|disk| match disk {
            Disk::Layers { files } if files.len() > 1 => Some(files),
            _ => None,
        });
        let Some(files) = files else {
            return Ok(Self(None));
        };
        let text =
            vmdk::descriptor(files).map_err(|error| BootError::InvalidConfig(error.to_string()))?;
        let path = config.runtime_dir.join("layers.vmdk");
        let file = Self(Some(path.clone()));
        std::fs::write(&path, text).map_err(io_error(format!("write '{}'", path.display())))?;
        Ok(file)
    }

    fn path(&self) -> Option<&Path> {
        self.0.as_deref()
    }
}

impl Drop for LayersFile {
    fn drop(&mut self) {
        if let Some(path) = &self.0
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove a file");
        }
    }
}

fn blocking(stream: UnixStream) -> io::Result<OwnedFd> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream.into())
}

fn spawn(
    binary: &Path,
    arguments: &[std::ffi::OsString],
    descriptors: Descriptors,
) -> Result<Child, BootError> {
    let parent = rustix::process::getpid();
    let mut command = Command::new(binary);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    // SAFETY: between fork and exec only async-signal-safe system calls are made and nothing
    // is allocated; the descriptors are open, since the caller holds them past the spawn.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The worker may have died before the line above; then nobody would tell us.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            keep(descriptors.transport)?;
            keep(descriptors.monitor)?;
            keep(descriptors.last_words)?;
            for tap in &descriptors.taps {
                keep(*tap)?;
            }
            Ok(())
        });
    }
    command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BootError::Unavailable(format!(
            "there is no QEMU at '{}': install it (Debian: apt-get install qemu-system-x86)",
            binary.display()
        )),
        _ => BootError::Io {
            context: format!("start '{}'", binary.display()),
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

/// The last lines of what was said on a stream, in one line.
fn said(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .map(|line| line.trim().trim_start_matches("qemu-system-x86_64: "))
        .filter(|line| !line.is_empty())
        .collect();
    let joined = lines.join("; ");
    let surplus = joined.chars().count().saturating_sub(QUOTED);
    joined.chars().skip(surplus).collect()
}

/// What the guest's kernel said when it panicked.
fn panic_message(console: &str) -> Option<&str> {
    console
        .lines()
        .filter_map(|line| line.split_once("Kernel panic - ").map(|(_, rest)| rest))
        .next_back()
        .map(str::trim)
}

/// What led to a panic that was no decision of the kernel's: the fault and where it was.
fn panic_cause(console: &str) -> String {
    /// Words with which the kernel begins to report a fault, `arch/x86/kernel/traps.c` and
    /// `arch/x86/mm/fault.c`, and the place that it tells after.
    const SIGNS: [&str; 5] = [
        "BUG: ",
        "Oops: ",
        "general protection fault",
        "kernel BUG",
        "RIP: ",
    ];
    let facts: Vec<&str> = console
        .lines()
        .filter_map(|line| {
            let at = SIGNS.iter().filter_map(|sign| line.find(sign)).min()?;
            line.get(at..).map(str::trim)
        })
        .take(SIGNS.len())
        .collect();
    if facts.is_empty() {
        return String::new();
    }
    let facts: String = facts.join("; ").chars().take(QUOTED).collect();
    format!(" ({facts})")
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
        Some("guest-reset" | "guest-panic") => MachineExit::new(
            ExitReason::GuestPanic,
            match panic_message(console) {
                Some(message) => {
                    tracing::warn!(console, "the guest's kernel panicked");
                    let message: String = message.chars().take(QUOTED).collect();
                    let cause = panic_cause(console);
                    format!("the guest's kernel panicked: {message}{cause}")
                }
                None => match said(console) {
                    words if words.is_empty() => {
                        "the guest's kernel reset itself without a word".to_owned()
                    }
                    words => format!("the guest's kernel reset itself; its last words: {words}"),
                },
            },
        ),
        _ if killed => MachineExit::new(ExitReason::Killed, "the VM was killed"),
        _ => match (signal, status) {
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

    #[test]
    fn the_cause_is_quoted_too() {
        let console = "[ 0.5] BUG: unable to handle page fault for address: ffffffff\n\
                       [ 0.5] Code: 90\n[ 0.5] RIP: 0010:here+0x1/0x2\n\
                       [ 0.6] Kernel panic - not syncing: Fatal exception in interrupt\n";
        let exit = classify(false, Some("guest-reset"), status(0), "", console);
        assert_eq!(
            exit.detail,
            "the guest's kernel panicked: not syncing: Fatal exception in interrupt (BUG: \
             unable to handle page fault for address: ffffffff; RIP: 0010:here+0x1/0x2)"
        );
    }

    #[test]
    fn the_panic_is_quoted() {
        let console = "[ 1.0] x\n[ 2.0] Kernel panic - not syncing: Attempted to kill init!\n";
        let exit = classify(false, Some("guest-reset"), status(0), "", console);
        assert_eq!(
            exit.detail,
            "the guest's kernel panicked: not syncing: Attempted to kill init!"
        );
    }
}
