//! One machine: from the open files to the joined threads.

use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use bulkhead_jail::filter::{Filter, FilterError};
use bulkhead_machine::{
    BootError, Console, ExitReason, Machine, MachineConfig, MachineError, MachineExit,
    MachineFiles, PreparedMachine, QUICK_WORDS, QUIET_WORDS, RESET_ON_PANIC, TALKATIVE_WORD, Tail,
};
use tokio::sync::watch;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::Killable;

use crate::acpi::Platform;
use crate::boot::{self, LoadError};
use crate::bus::Bus;
use crate::devices::{self, Devices};
use crate::end::{Cause, Ending};
use crate::filter::Filters;
use crate::gate::{self, Gate, Wanted};
use crate::layout;
use crate::memory::{self, MemoryError};
use crate::serial::{Serial, Sink};
use crate::stats::Counters;
use crate::vcpu::{self, Surroundings, Vcpu};
use crate::vm::{Vm, VmError};

/// The name in messages.
pub(crate) const ENGINE: &str = "the kvm engine";

/// How long the end of a machine may wait for its threads. They need no time, but for one
/// that a slow disk of the host holds up, and nobody is to wait for that.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a guest may leave in its console's file, bytes: many boots with all their words.
const CONSOLE_LOG: usize = 16 << 20;

/// Bytes of a thread's stack. None recurses, and hundreds of CPUs count against the worker's
/// limit of address space.
const STACK: usize = 256 << 10;

fn io_error(context: impl Into<String>) -> impl FnOnce(io::Error) -> BootError {
    let context = context.into();
    move |source| BootError::Io { context, source }
}

fn unrestricted(error: FilterError) -> BootError {
    io_error("restrict the worker's system calls")(io::Error::other(error))
}

fn refused(error: &VmError) -> BootError {
    BootError::Refused {
        engine: ENGINE,
        message: error.to_string(),
    }
}

fn no_memory(error: MemoryError) -> BootError {
    BootError::Io {
        context: error.to_string(),
        source: error.source,
    }
}

fn cannot_use(what: &str, path: &std::path::Path) -> impl FnOnce(LoadError) -> BootError {
    let what = format!("the {what} '{}' cannot be used", path.display());
    move |error| BootError::InvalidConfig(format!("{what}: {error}"))
}

/// A machine whose guest is about to run its first instruction.
pub struct PreparedKvm {
    vm: Vm,
    vcpus: Vec<Vcpu>,
    bus: Arc<Bus>,
    devices: Devices,
    console: Tail,
    ending: Ending,
}

impl PreparedKvm {
    pub(crate) fn new(config: &MachineConfig, files: MachineFiles) -> Result<Self, BootError> {
        let MachineFiles {
            transport,
            mut kernel,
            mut initramfs,
            disks,
            console: console_file,
            kvm,
            taps,
        } = files;
        let kvm = kvm.ok_or_else(|| {
            BootError::InvalidConfig("the kvm engine has no software emulation".to_owned())
        })?;
        let cpus = u8::try_from(config.vcpus)
            .map_err(|_| BootError::InvalidConfig("too many CPUs".to_owned()))?;
        let memory_bytes = config
            .memory_bytes
            .div_ceil(layout::MEMORY_UNIT)
            .saturating_mul(layout::MEMORY_UNIT);
        let memory = memory::make(memory_bytes).map_err(no_memory)?;
        let vm = Vm::new(kvm, memory.clone(), config.vcpus).map_err(|error| refused(&error))?;

        let console = Tail::default();
        let ending = Ending::new();
        let devices = Devices::new(
            &vm,
            &memory,
            devices::Parts {
                config,
                disks,
                taps,
                transport,
                words: console.clone(),
                ending: ending.clone(),
            },
        )?;
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).map_err(io_error("make an event"))?;
        vm.connect_interrupt(&interrupt, layout::SERIAL_GSI)
            .map_err(|error| refused(&error))?;
        let serial = Serial::new(serial_sink(console_file, console.clone()), interrupt);
        let bus = Arc::new(Bus::new(serial, devices.on_bus()));

        let loaded = boot::kernel(&memory, &mut kernel)
            .map_err(cannot_use("guest kernel", &config.kernel))?;
        let ramdisk = boot::initramfs(&memory, memory_bytes, loaded, &mut initramfs)
            .map_err(cannot_use("guest initramfs", &config.initramfs))?;
        let platform = Platform {
            cpus,
            devices: bus.devices.len(),
            serial: matches!(config.console, Console::File { .. }),
        };
        boot::start_info(
            &memory,
            memory_bytes,
            &command_line(config),
            ramdisk,
            platform,
        )
        .map_err(|error| BootError::InvalidConfig(error.to_string()))?;
        let vcpus = vcpu::make(&vm, cpus).map_err(|error| refused(&error))?;
        if let Some(first) = vcpus.first() {
            vcpu::prepare_boot(first, loaded.entry).map_err(|error| refused(&error))?;
        }
        gate::install_handler().map_err(io_error("install a signal handler"))?;
        Ok(Self {
            vm,
            vcpus,
            bus,
            devices,
            console,
            ending,
        })
    }

    /// Starts the machine without restricting the thread that calls this: for programs that
    /// have more to do than to serve one machine.
    ///
    /// # Errors
    /// That the system has no threads left, or does not restrict them; those that were started
    /// are gone again.
    pub fn start(self) -> Result<KvmMachine, BootError> {
        let filters = Filters::new().map_err(unrestricted)?;
        self.start_as(&filters, || Ok(()))
    }

    /// Starts the threads, which restrict themselves, and does what is left to do before the
    /// guest's first instruction.
    fn start_as(
        self,
        filters: &Filters,
        last: impl FnOnce() -> Result<(), FilterError>,
    ) -> Result<KvmMachine, BootError> {
        let gate = Arc::new(Gate::new(Wanted::Stand));
        let around = Surroundings {
            bus: self.bus,
            gate: Arc::clone(&gate),
            ending: self.ending.clone(),
        };
        let alive = watch::Sender::new(0);
        let mut crew = Crew {
            threads: Vec::new(),
            alive: alive.clone(),
            gate: Arc::clone(&gate),
            devices: self.devices,
        };
        let started = crew
            .start(&self.vcpus, &around, filters)
            .and_then(|()| last().map_err(unrestricted));
        let crew = Arc::new(Mutex::new(crew));
        let (sender, exit) = watch::channel(None);
        if let Err(error) = started {
            crew.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .dismiss();
            return Err(error);
        }
        gate.want(Wanted::Run);
        tokio::spawn({
            let (crew, ending, console, vm) = (
                Arc::clone(&crew),
                self.ending.clone(),
                self.console,
                self.vm,
            );
            async move {
                let cause = ending.ended().await;
                lock(&crew).send_away();
                let exit = cause.into_exit(&console.text());
                let mut alive = alive.subscribe();
                // The sender is in the crew.
                let gone = alive.wait_for(|alive| *alive == 0);
                if tokio::time::timeout(PATIENCE, gone).await.is_err() {
                    // The guest has ended all the same. Who hears of it ends the process.
                    sender.send_replace(Some(exit.clone()));
                    let _ = alive.wait_for(|alive| *alive == 0).await;
                }
                lock(&crew).dismiss();
                drop(around);
                drop(vm);
                sender.send_replace(Some(exit));
            }
        });
        Ok(KvmMachine {
            vcpus: self.vcpus,
            gate,
            crew,
            ending: self.ending,
            exit,
        })
    }
}

#[async_trait]
impl PreparedMachine for PreparedKvm {
    async fn boot(self: Box<Self>) -> Result<Box<dyn Machine>, BootError> {
        let filters = Filters::new().map_err(unrestricted)?;
        let machine = self.start_as(&filters, || filters.main.set())?;
        Ok(Box::new(machine))
    }
}

/// What the serial port's words become.
fn serial_sink(file: Option<std::fs::File>, tail: Tail) -> Sink {
    match file {
        Some(file) => {
            let mut log = Limited {
                file,
                left: CONSOLE_LOG,
            };
            Box::new(move |bytes| {
                tail.push(bytes);
                // A full disk costs the log and not the guest.
                let _ = log.write_all(bytes);
            })
        }
        None => Box::new(move |bytes| tail.push(bytes)),
    }
}

/// A file that takes no more than so many bytes, and loses what is over.
struct Limited<W> {
    file: W,
    left: usize,
}

impl<W: io::Write> io::Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = &bytes[..bytes.len().min(self.left)];
        self.file.write_all(taken)?;
        self.left -= taken.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn command_line(config: &MachineConfig) -> String {
    let mut words = vec![RESET_ON_PANIC];
    words.extend(QUICK_WORDS);
    match config.console {
        Console::Quiet => words.extend(QUIET_WORDS),
        Console::File { .. } => words.push(TALKATIVE_WORD),
    }
    words.extend(config.cmdline_extra.iter().map(String::as_str));
    words.join(" ")
}

fn lock(crew: &Mutex<Crew>) -> std::sync::MutexGuard<'_, Crew> {
    // Whoever panicked with it held has sent signals or not.
    crew.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The machine's threads.
struct Crew {
    threads: Vec<Thread>,
    /// How many have not reached their end.
    alive: watch::Sender<usize>,
    gate: Arc<Gate>,
    devices: Devices,
}

/// What a thread is given at its start.
struct Birth {
    ending: Ending,
    /// Where it says that it has restricted itself, or why not.
    restricted: mpsc::Sender<Result<(), FilterError>>,
}

struct Thread {
    handle: JoinHandle<()>,
    role: Role,
}

/// What a thread is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Disks,
    Devices,
    Vcpu(usize),
}

impl Role {
    fn name(self) -> String {
        match self {
            Self::Disks => "disks".to_owned(),
            Self::Devices => "devices".to_owned(),
            Self::Vcpu(index) => format!("vcpu{index}"),
        }
    }
}

impl Crew {
    /// Returns when all threads have restricted themselves. The CPUs' wait at the gate.
    fn start(
        &mut self,
        vcpus: &[Vcpu],
        around: &Surroundings,
        filters: &Filters,
    ) -> Result<(), BootError> {
        let (restricted, answers) = mpsc::channel();
        let birth = Birth {
            ending: around.ending.clone(),
            restricted,
        };
        for (role, filter, serving) in [
            (Role::Disks, &filters.disks, self.devices.disks()),
            (Role::Devices, &filters.devices, self.devices.others()),
        ] {
            let failed = around.ending.clone();
            self.spawn(role, &birth, filter, move || {
                if let Err(error) = serving.run() {
                    failed.end(Cause::Engine(error.to_string()));
                }
            })?;
        }
        for (index, vcpu) in vcpus.iter().enumerate() {
            let (vcpu, around) = (Arc::clone(vcpu), around.clone());
            self.spawn(Role::Vcpu(index), &birth, &filters.vcpu, move || {
                vcpu::run(&vcpu, &around);
            })?;
        }
        drop(birth);
        answers
            .into_iter()
            .collect::<Result<(), _>>()
            .map_err(unrestricted)
    }

    fn spawn(
        &mut self,
        role: Role,
        birth: &Birth,
        filter: &Filter,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), BootError> {
        /// Tells of a thread's end, and ends the machine when it was a panic.
        struct Alive(watch::Sender<usize>, Ending);
        impl Drop for Alive {
            fn drop(&mut self) {
                if std::thread::panicking() {
                    let name = std::thread::current().name().unwrap_or_default().to_owned();
                    let reason = format!("the thread {name} of the VM worker panicked");
                    self.1.end(Cause::Engine(reason));
                }
                self.0.send_modify(|alive| *alive -= 1);
            }
        }
        self.alive.send_modify(|alive| *alive += 1);
        let alive = Alive(self.alive.clone(), birth.ending.clone());
        let thread = std::thread::Builder::new()
            .name(role.name())
            .stack_size(STACK);
        let (filter, restricted) = (filter.clone(), birth.restricted.clone());
        let body = move || {
            let _alive = alive;
            let set = filter.set();
            let may_go_on = set.is_ok();
            // Nobody listens any more when another thread could not be started.
            let heard = restricted.send(set).is_ok();
            drop((filter, restricted));
            if may_go_on && heard {
                body();
            }
        };
        let handle = thread.spawn(body).map_err(io_error("start a thread"))?;
        self.threads.push(Thread { handle, role });
        Ok(())
    }

    /// Has every CPU look at what is wanted.
    fn signal(&self) {
        let vcpu = |thread: &&Thread| matches!(thread.role, Role::Vcpu(_));
        for thread in self.threads.iter().filter(vcpu) {
            // One that has ended needs no signal.
            let _ = thread.handle.kill(gate::signal());
        }
    }

    /// Tells all threads to end.
    fn send_away(&self) {
        self.gate.want(Wanted::Leave);
        self.signal();
        self.devices.disks().stop();
        self.devices.others().stop();
    }

    /// Tells all threads to end and waits for it.
    fn dismiss(&mut self) {
        self.send_away();
        for thread in self.threads.drain(..) {
            // Its panic was told already.
            let _ = thread.handle.join();
        }
    }
}

/// A machine that runs. Dropping it kills it.
pub struct KvmMachine {
    vcpus: Vec<Vcpu>,
    gate: Arc<Gate>,
    crew: Arc<Mutex<Crew>>,
    ending: Ending,
    exit: watch::Receiver<Option<MachineExit>>,
}

impl KvmMachine {
    /// How often the guest was left since its start, all CPUs together; `None` where the
    /// host's KVM does not count. The CPUs must stand.
    pub fn exits(&self) -> Option<u64> {
        self.vcpus
            .iter()
            .map(|vcpu| {
                let fd = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
                Counters::open(&fd)?.read("exits")
            })
            .sum::<io::Result<u64>>()
            .ok()
    }

    fn has_ended(&self) -> bool {
        self.exit.borrow().is_some()
    }
}

#[async_trait]
impl Machine for KvmMachine {
    async fn pause(&self) -> Result<(), MachineError> {
        self.gate.want(Wanted::Stand);
        lock(&self.crew).signal();
        tokio::select! {
            () = self.gate.all_stand(self.vcpus.len()) => {}
            _ = self.ending.ended() => return Err(MachineError::Ended),
        }
        Ok(())
    }

    async fn resume(&self) -> Result<(), MachineError> {
        if self.has_ended() {
            return Err(MachineError::Ended);
        }
        self.gate.want(Wanted::Run);
        Ok(())
    }

    async fn balloon(&self, bytes: u64) -> Result<(), MachineError> {
        if self.has_ended() {
            return Err(MachineError::Ended);
        }
        lock(&self.crew).devices.inflate(bytes);
        Ok(())
    }

    fn kill(&self) {
        self.ending.end(Cause::Killed);
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

impl Drop for KvmMachine {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_words_do_not_fill_the_host() {
        let mut log = Limited {
            file: Vec::new(),
            left: 7,
        };
        for words in ["four", "five", "six"] {
            log.write_all(words.as_bytes()).unwrap();
        }
        assert_eq!(log.file, b"fourfiv");
    }
}
