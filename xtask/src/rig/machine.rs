//! The machine of the rig: how QEMU is started, how long it may run, how it is ended.

use std::io;
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
    /// Its time was over.
    TimeLimit,
    /// The chore got this signal.
    Interrupted(i32),
}

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
        let started = Instant::now();
        let mut running = Running(self.command().spawn().context("running QEMU")?);
        loop {
            if running.0.try_wait()?.is_some() {
                return Ok(End::Off);
            }
            let signal = signal.load(Ordering::Relaxed);
            if signal != 0 {
                return Ok(End::Interrupted(i32::try_from(signal)?));
            }
            if started.elapsed() > limit {
                return Ok(End::TimeLimit);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn command(&self) -> Command {
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
            .args(["-cpu", "max,+svm,+npt"])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-m", &self.memory.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-no-reboot", "-monitor", "none"])
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
        // SAFETY: between fork and exec only system calls are made, by functions that do not
        // allocate.
        unsafe {
            command.pre_exec(move || {
                set_parent_process_death_signal(Some(Signal::KILL))?;
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
