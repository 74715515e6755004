//! The machine of the rig: how QEMU is started, how long it may run, how it is ended.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Signal, set_parent_process_death_signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::kernel::Kernel;

/// What a run needs to know.
pub struct Machine<'a> {
    pub kernel: &'a Kernel,
    /// A directory of this run's own, which the machine can write to.
    pub share: &'a Path,
    /// MiB
    pub memory: u32,
    pub cpus: u32,
    pub append: &'a str,
}

/// Why a machine is no more.
pub enum End {
    /// It turned itself off.
    Off,
    /// Its time was over. What QEMU said of it then.
    TimeLimit(String),
    /// Its own kernel has not run a program for [`BEATS_LIMIT`]. What QEMU said of it.
    Stalled(String),
    /// The chore got this signal.
    Interrupted(i32),
}

/// How long the machine may be without the sign of life that `init.sh` gives every 5 s. That
/// needs nothing but its kernel, which no program should be able to stop.
pub const BEATS_LIMIT: Duration = Duration::from_secs(180);

/// With SVM and nested paging. Without the promise that copying by single bytes (`rep movsb`,
/// `rep stosb`) is fast: QEMU takes a round for each, and starts of VMs twice as long.
const CPU: &str = "max,+svm,+npt,-erms,-fsrm";

/// Ends the machine however its owner is left.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself; there is nobody to tell of anything else.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Machine<'_> {
    /// Runs it to its end.
    pub fn run(&self, limit: Duration) -> anyhow::Result<End> {
        let signal = Arc::new(AtomicUsize::new(0));
        for number in [SIGINT, SIGTERM, SIGHUP] {
            let value = usize::try_from(number)?;
            signal_hook::flag::register_usize(number, Arc::clone(&signal), value)
                .context("taking signals")?;
        }
        let (mut monitor, theirs) = UnixStream::pair().context("a monitor's sockets")?;
        let started = Instant::now();
        let mut running = Running(
            self.command(theirs.as_fd())
                .spawn()
                .context("running QEMU")?,
        );
        drop(theirs);
        let mut beat = (String::new(), started);
        loop {
            if running.0.try_wait()?.is_some() {
                return Ok(End::Off);
            }
            let signal = signal.load(Ordering::Relaxed);
            if signal != 0 {
                return Ok(End::Interrupted(i32::try_from(signal)?));
            }
            if started.elapsed() > limit {
                return Ok(End::TimeLimit(state(&mut monitor)));
            }
            let now = std::fs::read_to_string(self.share.join("beat")).unwrap_or_default();
            if now != beat.0 {
                beat = (now, Instant::now());
            } else if beat.1.elapsed() > BEATS_LIMIT {
                return Ok(End::Stalled(state(&mut monitor)));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn command(&self, monitor: BorrowedFd<'_>) -> Command {
        let share = self.share.display();
        // Nothing in there needs defending, and the clock must not be doubted when the
        // emulation stalls.
        let append = format!(
            "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable \
             tsc_early_khz={} nowatchdog no_timer_check apparmor=0 audit=0 {}",
            counter_khz(),
            self.append
        );
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35", "-accel", "tcg,thread=multi,tb-size=1024"])
            .args(["-cpu", CPU])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-m", &self.memory.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .arg("-no-reboot")
            .args([
                "-chardev",
                &format!("socket,id=monitor,fd={}", monitor.as_raw_fd()),
            ])
            .args(["-mon", "chardev=monitor,mode=readline"])
            .arg("-kernel")
            .arg(self.kernel.image())
            .arg("-initrd")
            .arg(self.kernel.initramfs())
            .args(["-append", &append])
            .args(["-serial", &format!("file:{share}/console")])
            .args(["-chardev", "stdio,id=output,signal=off"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-device", "virtserialport,chardev=output,nr=1"])
            .args(["-device", "virtio-rng-pci"])
            .args([
                "-fsdev",
                "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
            ])
            .args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"])
            .args([
                "-fsdev",
                &format!("local,id=rig,path={share},security_model=none,multidevs=remap"),
            ])
            .args(["-device", "virtio-9p-pci,fsdev=rig,mount_tag=rig"])
            // Open for as long as it runs: at its end QEMU takes the output for closed too.
            .stdin(Stdio::piped());
        // A terminal's signals are the chore's to handle.
        command.process_group(0);
        let parent = rustix::process::getpid();
        let monitor = monitor.as_raw_fd();
        // SAFETY: between fork and exec only system calls are made, by functions that do not
        // allocate.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
                // SAFETY: the caller has it open until the process is spawned.
                let monitor = BorrowedFd::borrow_raw(monitor);
                rustix::io::fcntl_setfd(monitor, rustix::io::FdFlags::empty())?;
                if rustix::process::getppid() == Some(parent) {
                    Ok(())
                } else {
                    Err(io::Error::other("the chore has ended"))
                }
            })
        };
        command
    }
}

/// What QEMU says of the processors and their timers: all that there is to find out why a
/// machine stands still.
fn state(monitor: &mut UnixStream) -> String {
    let mut said = Vec::new();
    let asked = monitor
        .set_read_timeout(Some(Duration::from_secs(2)))
        .and_then(|()| monitor.write_all(b"info status\ninfo registers\ninfo lapic\n"));
    if let Err(error) = asked {
        return format!("QEMU does not listen: {error}");
    }
    // Its end is the time limit: QEMU keeps the socket open.
    let mut buffer = [0; 4096];
    while let Ok(got @ 1..) = monitor.read(&mut buffer) {
        said.extend_from_slice(&buffer[..got]);
    }
    let said = String::from_utf8_lossy(&said);
    // Without the echo of what was asked, and without the registers of floating point.
    said.lines()
        .filter(|line| {
            !line.contains('\x1b') && !["XMM", "FPR", "FCW"].iter().any(|no| line.starts_with(no))
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// How fast the time stamp counter counts, kHz; QEMU's software emulation hands out this
/// machine's. A kernel that measures it by itself while this machine is busy may be wrong by
/// any factor, and its clock then runs away (seen: eight times too fast).
fn counter_khz() -> u128 {
    /// A moment and its count; of several the one that was least interrupted.
    fn moment() -> (Instant, u64) {
        let mut best: Option<(Duration, Instant, u64)> = None;
        for _ in 0..16 {
            let before = Instant::now();
            // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
            let count = unsafe { std::arch::x86_64::_rdtsc() };
            let took = before.elapsed();
            if best.is_none_or(|(least, ..)| took < least) {
                best = Some((took, before, count));
            }
        }
        best.map_or_else(|| (Instant::now(), 0), |(_, before, count)| (before, count))
    }
    let (start, first) = moment();
    std::thread::sleep(Duration::from_millis(200));
    let (end, last) = moment();
    let micros = end.duration_since(start).as_micros().max(1);
    u128::from(last.saturating_sub(first)) * 1000 / micros
}
