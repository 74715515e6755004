//! The MMIO transport, section 4.2: a device's registers.

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use crate::context::Context;
use crate::device::{Fault, Readiness, Source, VirtioDevice};
use crate::interrupt::{Interrupt, InterruptLine};
use crate::persist::{QueueState, RestoreError, TransportState};
use crate::{GuestMemory, feature};

/// Bytes of a device's registers, configuration space included.
pub const MMIO_SIZE: u64 = 0x200;
/// Where the driver writes a queue's number to notify the device.
pub const QUEUE_NOTIFY: u64 = 0x50;

/// Offsets of the registers, table 4.1.
mod register {
    pub(super) const MAGIC: u64 = 0x00;
    pub(super) const VERSION: u64 = 0x04;
    pub(super) const DEVICE_ID: u64 = 0x08;
    pub(super) const VENDOR_ID: u64 = 0x0c;
    pub(super) const DEVICE_FEATURES: u64 = 0x10;
    pub(super) const DEVICE_FEATURES_SEL: u64 = 0x14;
    pub(super) const DRIVER_FEATURES: u64 = 0x20;
    pub(super) const DRIVER_FEATURES_SEL: u64 = 0x24;
    pub(super) const QUEUE_SEL: u64 = 0x30;
    pub(super) const QUEUE_NUM_MAX: u64 = 0x34;
    pub(super) const QUEUE_NUM: u64 = 0x38;
    pub(super) const QUEUE_READY: u64 = 0x44;
    pub(super) const INTERRUPT_STATUS: u64 = 0x60;
    pub(super) const INTERRUPT_ACK: u64 = 0x64;
    pub(super) const STATUS: u64 = 0x70;
    pub(super) const QUEUE_DESC_LOW: u64 = 0x80;
    pub(super) const QUEUE_DESC_HIGH: u64 = 0x84;
    pub(super) const QUEUE_DRIVER_LOW: u64 = 0x90;
    pub(super) const QUEUE_DRIVER_HIGH: u64 = 0x94;
    pub(super) const QUEUE_DEVICE_LOW: u64 = 0xa0;
    pub(super) const QUEUE_DEVICE_HIGH: u64 = 0xa4;
    pub(super) const SHM_LEN_LOW: u64 = 0xb0;
    pub(super) const SHM_BASE_HIGH: u64 = 0xbc;
    pub(super) const CONFIG_GENERATION: u64 = 0xfc;
    pub(super) const CONFIG: u64 = 0x100;
}

/// "virt"
const MAGIC: u32 = 0x7472_6976;
/// The one that is not legacy.
const VERSION: u32 = 2;
/// Nobody's; drivers do not look at it.
const VENDOR: u32 = 0x6b6c_6862;

/// Bits of the device status, section 2.1.
mod status {
    pub(super) const ACKNOWLEDGE: u32 = 1;
    pub(super) const DRIVER: u32 = 2;
    pub(super) const DRIVER_OK: u32 = 4;
    pub(super) const FEATURES_OK: u32 = 8;
    pub(super) const NEEDS_RESET: u32 = 64;
    pub(super) const FAILED: u32 = 128;
}

/// Called with a device's name and what its guest did.
type FaultHandler = Box<dyn Fn(&str, &Fault) + Send + Sync>;

/// A device on the MMIO bus. Shared by the CPUs' threads, which read and write registers,
/// and by the device loop; locked inside.
pub struct MmioDevice {
    registers: Mutex<Registers>,
    interrupt: Interrupt,
    notifiers: Vec<EventFd>,
    memory: GuestMemory,
    on_fault: FaultHandler,
}

struct Registers {
    device: Box<dyn VirtioDevice>,
    status: u32,
    driver_features: u64,
    device_features_sel: u32,
    driver_features_sel: u32,
    queue_sel: u32,
    generation: u32,
    /// As the driver sets them up.
    configured: Vec<QueueState>,
    /// As the device uses them; empty while it is not active.
    queues: Vec<Queue>,
    /// How much of each queue's next chain is done, see [`crate::Chain::begun`]. No part of
    /// the state that is saved: what was done is done again then, which comes to the same.
    begun: Vec<usize>,
}

impl MmioDevice {
    /// A device that was just plugged in. `on_fault` is called, once between two resets, when
    /// the guest breaks it.
    ///
    /// # Errors
    /// That the system has no descriptors left.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        line: Arc<dyn InterruptLine>,
        on_fault: impl Fn(&str, &Fault) + Send + Sync + 'static,
    ) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self::make(device, memory, line, on_fault)?))
    }

    fn make(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        line: Arc<dyn InterruptLine>,
        on_fault: impl Fn(&str, &Fault) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let sizes = device.queue_sizes();
        let configured: Vec<QueueState> = sizes
            .iter()
            .copied()
            .map(QueueState::unconfigured)
            .collect();
        let notifiers = sizes
            .iter()
            .map(|_| EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            registers: Mutex::new(Registers {
                device,
                status: 0,
                driver_features: 0,
                device_features_sel: 0,
                driver_features_sel: 0,
                queue_sel: 0,
                generation: 0,
                configured,
                queues: Vec::new(),
                begun: Vec::new(),
            }),
            interrupt: Interrupt::new(line),
            notifiers,
            memory,
            on_fault: Box::new(on_fault),
        })
    }

    /// A device that goes on where another one was saved, on memory with the same contents.
    ///
    /// # Errors
    /// See [`RestoreError`].
    pub fn restore(
        mut device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        line: Arc<dyn InterruptLine>,
        on_fault: impl Fn(&str, &Fault) + Send + Sync + 'static,
        state: &TransportState,
    ) -> Result<Arc<Self>, RestoreError> {
        if state.version != TransportState::VERSION {
            return Err(RestoreError::Version(state.version));
        }
        device.restore(&state.device)?;
        let name = device.name();
        let made = Self::make(device, memory, line, on_fault)?;
        let mut registers = made.lock();
        let impossible = |why: String| RestoreError::Impossible { device: name, why };
        if state.queues.len() != registers.configured.len() {
            return Err(impossible(format!("{} queues", state.queues.len())));
        }
        if state.driver_features & !registers.offered() != 0 {
            return Err(impossible("features that are not offered".to_owned()));
        }
        registers.configured.clone_from(&state.queues);
        registers.status = state.status;
        registers.driver_features = state.driver_features;
        [
            registers.device_features_sel,
            registers.driver_features_sel,
            registers.queue_sel,
        ] = state.selected;
        registers.generation = state.generation;
        // One that has given up on its device, or is to, gets it back by a reset only.
        let over = status::FAILED | status::NEEDS_RESET;
        if state.status & status::DRIVER_OK != 0 && state.status & over == 0 {
            registers
                .activate(&made.memory)
                .map_err(|fault| impossible(fault.to_string()))?;
        }
        drop(registers);
        made.interrupt.restore(state.interrupt);
        // What was under way when it was saved is looked at again.
        made.notify_all();
        Ok(Arc::new(made))
    }

    /// Its state. The CPUs and the device loop must stand.
    pub fn save(&self) -> TransportState {
        let mut registers = self.lock();
        let registers = &mut *registers;
        for (configured, queue) in registers.configured.iter_mut().zip(&registers.queues) {
            configured.follow(queue);
        }
        TransportState {
            version: TransportState::VERSION,
            status: registers.status,
            interrupt: self.interrupt.status(),
            driver_features: registers.driver_features,
            selected: [
                registers.device_features_sel,
                registers.driver_features_sel,
                registers.queue_sel,
            ],
            generation: registers.generation,
            queues: registers.configured.clone(),
            device: registers.device.save(),
        }
    }

    /// One for each queue: what the driver's notification of that queue is to be written to.
    pub fn notifiers(&self) -> &[EventFd] {
        &self.notifiers
    }

    /// For logs.
    pub fn name(&self) -> &'static str {
        self.lock().device.name()
    }

    /// Tells the driver that the configuration has changed, after whoever owns the device
    /// has changed it.
    pub fn notify_configuration(&self) {
        let mut registers = self.lock();
        if registers.status & status::DRIVER_OK != 0 {
            registers.generation = registers.generation.wrapping_add(1);
            self.interrupt.configuration();
        }
    }

    /// A read of the guest's. Registers are read as aligned words of four bytes, the
    /// configuration space in any way; everything else reads as zeroes.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= register::CONFIG {
            let registers = self.lock();
            registers
                .device
                .read_config(offset - register::CONFIG, data);
            return;
        }
        let Ok(word) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        let value = match offset {
            // Asked for with every interrupt, and not worth waiting for the device.
            register::INTERRUPT_STATUS => self.interrupt.status(),
            register::MAGIC => MAGIC,
            register::VERSION => VERSION,
            register::VENDOR_ID => VENDOR,
            // Shared memory regions: none, which a length of all ones says.
            register::SHM_LEN_LOW..=register::SHM_BASE_HIGH => u32::MAX,
            _ => self.lock().read(offset),
        };
        *word = value.to_le_bytes();
    }

    /// A write of the guest's.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if offset >= register::CONFIG {
            let mut registers = self.lock();
            if registers.status & status::DRIVER != 0 {
                registers
                    .device
                    .write_config(offset - register::CONFIG, data);
            }
            return;
        }
        let Ok(word) = <[u8; 4]>::try_from(data) else {
            return;
        };
        let value = u32::from_le_bytes(word);
        match offset {
            QUEUE_NOTIFY => {
                let notifier = usize::try_from(value)
                    .ok()
                    .and_then(|index| self.notifiers.get(index));
                if let Some(notifier) = notifier {
                    notify(notifier);
                }
            }
            register::INTERRUPT_ACK => self.interrupt.acknowledge(value),
            register::STATUS => self.write_status(value),
            _ => self.lock().write(offset, value),
        }
    }

    fn write_status(&self, value: u32) {
        let mut registers = self.lock();
        if value == 0 {
            registers.reset();
            self.interrupt.acknowledge(u32::MAX);
            drop(registers);
            // The loop then stops watching what a device at rest has no use for.
            self.notify_all();
            return;
        }
        if registers.add_status(value) {
            let activated = registers.activate(&self.memory);
            let name = registers.device.name();
            match activated {
                Ok(()) => {
                    drop(registers);
                    // Buffers may be there already, and the device's descriptors are to be
                    // watched from now on.
                    self.notify_all();
                }
                Err(fault) => {
                    self.break_down(&mut registers);
                    drop(registers);
                    self.report(name, &fault);
                }
            }
        }
    }

    /// The driver has notified a queue, or may have. It is left early when `interrupted` is
    /// set, and then notified again.
    pub(crate) fn queue_event(&self, queue: usize, interrupted: &AtomicBool) {
        self.event(interrupted, |device, context| {
            device.queue_event(context, queue)
        });
    }

    /// One of the device's own descriptors is ready.
    pub(crate) fn source_event(&self, source: usize, ready: Readiness, interrupted: &AtomicBool) {
        self.event(interrupted, |device, context| {
            device.source_event(context, source, ready)
        });
    }

    fn event(
        &self,
        interrupted: &AtomicBool,
        handle: impl FnOnce(&mut dyn VirtioDevice, &mut Context<'_>) -> Result<(), Fault>,
    ) {
        let mut guard = self.lock();
        let registers = &mut *guard;
        if !registers.is_active() {
            return;
        }
        let mut context = Context::new(
            &self.memory,
            &mut registers.queues,
            &mut registers.begun,
            registers.driver_features,
            &self.interrupt,
            interrupted,
        );
        let handled = handle(&mut *registers.device, &mut context).and_then(|()| context.finish());
        match handled {
            Ok(again) => {
                for (index, notifier) in self.notifiers.iter().enumerate() {
                    if again & (1 << index) != 0 {
                        notify(notifier);
                    }
                }
            }
            Err(fault) => {
                let name = registers.device.name();
                self.break_down(registers);
                drop(guard);
                self.report(name, &fault);
            }
        }
    }

    /// What is to be watched for it now.
    pub(crate) fn sources(&self) -> Vec<Source> {
        let registers = self.lock();
        let mut sources = registers.device.sources();
        if !registers.is_active() {
            for source in &mut sources {
                source.readable = false;
                source.writable = false;
            }
        }
        sources
    }

    fn break_down(&self, registers: &mut Registers) {
        registers.status |= status::NEEDS_RESET;
        registers.queues.clear();
        self.interrupt.configuration();
    }

    fn report(&self, name: &str, fault: &Fault) {
        tracing::warn!(device = name, reason = %fault, "a guest broke its device");
        (self.on_fault)(name, fault);
    }

    fn notify_all(&self) {
        self.notifiers.iter().for_each(notify);
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        // Whoever panicked with it held ends the machine; until then it is only looked at.
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn notify(notifier: &EventFd) {
    // Fails only when it has been written 2^64 times and never read.
    let _ = notifier.write(1);
}

impl Registers {
    fn offered(&self) -> u64 {
        self.device.features() | feature::VERSION_1 | feature::EVENT_IDX | feature::INDIRECT_DESC
    }

    fn is_active(&self) -> bool {
        !self.queues.is_empty()
    }

    fn read(&self, offset: u64) -> u32 {
        match offset {
            register::DEVICE_ID => self.device.id(),
            register::DEVICE_FEATURES => half(self.offered(), self.device_features_sel),
            register::QUEUE_NUM_MAX => {
                let index = usize::try_from(self.queue_sel).unwrap_or(usize::MAX);
                let size = self.device.queue_sizes().get(index);
                size.copied().map_or(0, u32::from)
            }
            register::QUEUE_READY => u32::from(self.selected().is_some_and(|queue| queue.ready)),
            register::STATUS => self.status,
            register::CONFIG_GENERATION => self.generation,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        match offset {
            register::DEVICE_FEATURES_SEL => self.device_features_sel = value,
            register::DRIVER_FEATURES_SEL => self.driver_features_sel = value,
            register::QUEUE_SEL => self.queue_sel = value,
            register::DRIVER_FEATURES => {
                // Legal between DRIVER and FEATURES_OK, section 3.1.1.
                if self.is_between(status::DRIVER, status::FEATURES_OK) {
                    let accepted = &mut self.driver_features;
                    match self.driver_features_sel {
                        0 => *accepted = *accepted & !0xffff_ffff | u64::from(value),
                        1 => *accepted = *accepted & 0xffff_ffff | u64::from(value) << 32,
                        _ => {}
                    }
                }
            }
            _ => self.write_queue(offset, value),
        }
    }

    /// A register of the selected queue. A queue that is in use stays what it is: where it
    /// lies was checked when it was enabled.
    fn write_queue(&mut self, offset: u64, value: u32) {
        let configurable = self.is_between(status::FEATURES_OK, status::DRIVER_OK);
        let index = usize::try_from(self.queue_sel).unwrap_or(usize::MAX);
        let Some(queue) = self.configured.get_mut(index).filter(|_| configurable) else {
            return;
        };
        if offset == register::QUEUE_READY {
            queue.ready = value == 1;
            return;
        }
        if queue.ready {
            return;
        }
        let low = |address: &mut u64| *address = *address & !0xffff_ffff | u64::from(value);
        let high = |address: &mut u64| *address = *address & 0xffff_ffff | u64::from(value) << 32;
        match offset {
            register::QUEUE_NUM => {
                // What does not fit is found when the device is activated.
                queue.size = u16::try_from(value).unwrap_or(0);
            }
            register::QUEUE_DESC_LOW => low(&mut queue.descriptors),
            register::QUEUE_DESC_HIGH => high(&mut queue.descriptors),
            register::QUEUE_DRIVER_LOW => low(&mut queue.driver),
            register::QUEUE_DRIVER_HIGH => high(&mut queue.driver),
            register::QUEUE_DEVICE_LOW => low(&mut queue.device),
            register::QUEUE_DEVICE_HIGH => high(&mut queue.device),
            _ => {}
        }
    }

    /// Whether one status bit is set and another, later one, not.
    fn is_between(&self, after: u32, before: u32) -> bool {
        self.status & after != 0
            && self.status & (before | status::FAILED | status::NEEDS_RESET) == 0
    }

    fn selected(&self) -> Option<&QueueState> {
        let index = usize::try_from(self.queue_sel).ok()?;
        self.configured.get(index)
    }

    /// Sets status bits in the order of section 3.1.1. True when the device is to be
    /// activated.
    fn add_status(&mut self, value: u32) -> bool {
        let new = value & !self.status;
        if new & status::FAILED != 0 {
            self.status |= status::FAILED;
            self.queues.clear();
            return false;
        }
        if self.status & (status::FAILED | status::NEEDS_RESET) != 0 {
            return false;
        }
        if new & status::ACKNOWLEDGE != 0 {
            self.status |= status::ACKNOWLEDGE;
        }
        if new & status::DRIVER != 0 && self.status & status::ACKNOWLEDGE != 0 {
            self.status |= status::DRIVER;
        }
        if new & status::FEATURES_OK != 0 && self.status & status::DRIVER != 0 {
            let known = self.driver_features & !self.offered() == 0;
            // A driver that sees the bit missing gives up, section 3.1.1 step 6.
            if known && self.driver_features & feature::VERSION_1 != 0 {
                self.status |= status::FEATURES_OK;
            }
        }
        if new & status::DRIVER_OK != 0 && self.status & status::FEATURES_OK != 0 {
            self.status |= status::DRIVER_OK;
            return true;
        }
        false
    }

    fn activate(&mut self, memory: &GuestMemory) -> Result<(), Fault> {
        let event_idx = self.driver_features & feature::EVENT_IDX != 0;
        let mut queues = Vec::with_capacity(self.configured.len());
        let sizes = self.device.queue_sizes();
        for (index, (state, max)) in self.configured.iter().zip(sizes).enumerate() {
            if !state.ready {
                // A driver need not use every queue. This one never has anything in it.
                let unused = QueueState::unconfigured(*max);
                let unused = unused.queue(*max, event_idx);
                queues.push(unused.map_err(|error| queue_fault(index, &error))?);
                continue;
            }
            let queue = state
                .queue(*max, event_idx)
                .map_err(|error| queue_fault(index, &error))?;
            if !queue.is_valid(memory) {
                return Err(Fault::new(format!("queue {index} does not lie in memory")));
            }
            queues.push(queue);
        }
        self.device.activate(self.driver_features, memory)?;
        self.begun = vec![0; queues.len()];
        self.queues = queues;
        Ok(())
    }

    fn reset(&mut self) {
        if self.status != 0 {
            self.device.reset();
        }
        self.status = 0;
        self.driver_features = 0;
        self.device_features_sel = 0;
        self.driver_features_sel = 0;
        self.queue_sel = 0;
        self.queues.clear();
        for (queue, max) in self.configured.iter_mut().zip(self.device.queue_sizes()) {
            *queue = QueueState::unconfigured(*max);
        }
    }
}

fn queue_fault(index: usize, error: &virtio_queue::Error) -> Fault {
    Fault::new(format!("queue {index} was set up wrongly: {error}"))
}

/// One of the two words of the features.
fn half(features: u64, selector: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match selector {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}
