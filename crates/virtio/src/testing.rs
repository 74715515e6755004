//! A driver as tests and fuzzers want one: it can do all that a good driver does, and
//! everything else that a guest could.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::device::Readiness;
use crate::{Fault, GuestMemory, MmioDevice, QUEUE_NOTIFY, VirtioDevice};

/// Bytes of the guest's memory.
pub const MEMORY: u64 = 8 << 20;
/// Where queues lie: one after the other from here, so far apart.
pub const QUEUES: u64 = 0x1_0000;
const QUEUE_STRIDE: u64 = 0x1_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
/// Where buffers may be.
pub const BUFFERS: u64 = 0x10_0000;

/// Descriptor flags.
pub const NEXT: u16 = 1;
/// See [`NEXT`].
pub const WRITE: u16 = 2;
/// See [`NEXT`].
pub const INDIRECT: u16 = 4;

/// Nobody interrupts a device that is driven from here.
static NEVER: AtomicBool = AtomicBool::new(false);

/// See the module.
pub struct Driver {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The device.
    pub device: Arc<MmioDevice>,
    faults: Arc<Mutex<Vec<String>>>,
    /// Per queue: size, next position in the available ring, seen in the used ring.
    queues: Vec<(u16, u16, u16)>,
    line: Arc<EventFd>,
}

/// Memory for a guest.
///
/// # Panics
/// When the system has none.
#[must_use]
pub fn memory() -> GuestMemory {
    let size = usize::try_from(MEMORY).unwrap_or(0);
    match GuestMemory::from_ranges(&[(GuestAddress(0), size)]) {
        Ok(memory) => memory,
        Err(error) => panic!("no memory: {error}"),
    }
}

fn line() -> Arc<EventFd> {
    match EventFd::new(libc::EFD_NONBLOCK) {
        Ok(line) => Arc::new(line),
        Err(error) => panic!("no event: {error}"),
    }
}

impl Driver {
    /// A device in a guest that has just started.
    ///
    /// # Panics
    /// When the system has no descriptors left.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let memory = memory();
        let faults = Arc::<Mutex<Vec<String>>>::default();
        let line = line();
        let device = MmioDevice::new(
            device,
            memory.clone(),
            Arc::<EventFd>::clone(&line),
            note(&faults),
        );
        match device {
            Ok(device) => Self::with(memory, device, faults, line),
            Err(error) => panic!("no device: {error}"),
        }
    }

    fn with(
        memory: GuestMemory,
        device: Arc<MmioDevice>,
        faults: Arc<Mutex<Vec<String>>>,
        line: Arc<EventFd>,
    ) -> Self {
        let queues = vec![(0, 0, 0); device.notifiers().len()];
        Self {
            memory,
            device,
            faults,
            queues,
            line,
        }
    }

    /// The same guest with another device, which goes on where this one was saved.
    ///
    /// # Errors
    /// As [`MmioDevice::restore`].
    pub fn moved_to(self, device: Box<dyn VirtioDevice>) -> Result<Self, crate::RestoreError> {
        let state = self.device.save();
        let line = line();
        let device = MmioDevice::restore(
            device,
            self.memory.clone(),
            Arc::<EventFd>::clone(&line),
            note(&self.faults),
            &state,
        )?;
        Ok(Self {
            device,
            line,
            ..self
        })
    }

    /// What the guest was found to have done.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        self.faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Reads a register.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        let mut word = [0; 4];
        self.device.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// Writes a register.
    pub fn write(&self, offset: u64, value: u32) {
        self.device.write(offset, &value.to_le_bytes());
    }

    /// Starts the device as section 3.1.1 says, with all features but these, and every queue
    /// of this many entries at most. The device does what it has to.
    pub fn start(&mut self, without: u64, size: u16) {
        self.bring_up(without, size);
        self.pump();
    }

    /// The same where a loop drives the device.
    pub fn bring_up(&mut self, without: u64, size: u16) {
        self.write(0x70, 0);
        self.write(0x70, 1);
        self.write(0x70, 3);
        for half in 0..2u32 {
            self.write(0x14, half);
            self.write(0x24, half);
            let mask = u32::try_from((without >> (32 * half)) & 0xffff_ffff).unwrap_or(0);
            self.write(0x20, self.read(0x10) & !mask);
        }
        self.write(0x70, 3 | 8);
        for index in 0..self.queues.len() {
            self.set_up(index, size);
        }
        self.write(0x70, 3 | 8 | 4);
    }

    /// Sets one queue up.
    pub fn set_up(&mut self, index: usize, size: u16) {
        let number = u32::try_from(index).unwrap_or(0);
        self.write(0x30, number);
        let most = u16::try_from(self.read(0x34)).unwrap_or(0);
        let size = size.min(most);
        self.write(0x38, size.into());
        let base = Self::base(index);
        for (register, address) in [(0x80, base), (0x90, base + AVAIL), (0xa0, base + USED)] {
            self.write(register, u32::try_from(address).unwrap_or(0));
            self.write(register + 4, 0);
        }
        self.write(0x44, 1);
        if let Some(queue) = self.queues.get_mut(index) {
            *queue = (size, 0, 0);
        }
        // Rings begin empty.
        let nothing = [0; 8];
        self.put(base + AVAIL, &nothing);
        self.put(base + USED, &nothing);
    }

    /// Where a queue's descriptors are.
    #[must_use]
    pub fn base(index: usize) -> u64 {
        QUEUES + u64::try_from(index).unwrap_or(0) * QUEUE_STRIDE
    }

    /// Writes guest memory; what lies outside is nothing.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        // A partial write is what a guest would get too.
        let _ = self.memory.write_slice(bytes, GuestAddress(address));
    }

    /// Reads guest memory.
    #[must_use]
    pub fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let _ = self.memory.read_slice(&mut bytes, GuestAddress(address));
        bytes
    }

    /// Writes a descriptor into a table.
    pub fn describe(
        &self,
        table: u64,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = Vec::with_capacity(16);
        bytes.extend(address.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain available.
    pub fn publish(&mut self, queue: usize, head: u16) {
        let base = Self::base(queue);
        let Some((size, position, _)) = self.queues.get_mut(queue) else {
            return;
        };
        let slot = u64::from(position.checked_rem(*size).unwrap_or(0));
        *position = position.wrapping_add(1);
        let position = *position;
        self.put(base + AVAIL + 4 + 2 * slot, &head.to_le_bytes());
        self.put(base + AVAIL + 2, &position.to_le_bytes());
    }

    /// Notifies a queue and lets the device do what it has to.
    pub fn kick(&self, queue: usize) {
        self.write(QUEUE_NOTIFY, u32::try_from(queue).unwrap_or(u32::MAX));
        self.pump();
    }

    /// Lets the device have one turn at a queue, and no more; whether it wants another.
    #[must_use]
    pub fn turn(&self, queue: usize) -> bool {
        let Some(notifier) = self.device.notifiers().get(queue) else {
            return false;
        };
        let _ = notifier.read();
        self.device.queue_event(queue, &NEVER);
        let again = notifier.read().is_ok();
        if again {
            self.write(QUEUE_NOTIFY, u32::try_from(queue).unwrap_or(u32::MAX));
        }
        again
    }

    /// Handles everything that is pending, as the device loop does.
    pub fn pump(&self) {
        let _ = self.comes_to_rest();
    }

    /// The same; whether nothing is pending any more.
    #[must_use]
    pub fn comes_to_rest(&self) -> bool {
        // What a device asks for again and again is bounded by what it is given.
        for _ in 0..64 {
            let mut idle = true;
            for (queue, notifier) in self.device.notifiers().iter().enumerate() {
                if notifier.read().is_ok() {
                    idle = false;
                    self.device.queue_event(queue, &NEVER);
                }
            }
            for (index, source) in self.device.sources().into_iter().enumerate() {
                let mut wanted = PollFlags::empty();
                wanted.set(PollFlags::IN, source.readable);
                wanted.set(PollFlags::OUT, source.writable);
                if wanted.is_empty() {
                    continue;
                }
                // SAFETY: the device holds its descriptors open, and it lives past the call.
                let descriptor = unsafe { BorrowedFd::borrow_raw(source.descriptor) };
                let mut list = [PollFd::from_borrowed_fd(descriptor.as_fd(), wanted)];
                let ready = rustix::event::poll(&mut list, Some(&Timespec::default()));
                if ready.is_ok_and(|count| count > 0) {
                    let flags = list.first().map_or(PollFlags::empty(), PollFd::revents);
                    let ended = flags.intersects(PollFlags::HUP | PollFlags::ERR);
                    idle = false;
                    self.device.source_event(
                        index,
                        Readiness {
                            readable: ended || flags.contains(PollFlags::IN),
                            writable: ended || flags.contains(PollFlags::OUT),
                        },
                        &NEVER,
                    );
                }
            }
            if idle {
                return true;
            }
        }
        false
    }

    /// What the device has given back since the last call: heads and written bytes.
    pub fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let base = Self::base(queue) + USED;
        let Some((size, _, seen)) = self.queues.get(queue).copied() else {
            return Vec::new();
        };
        let word = |at: u64| -> u32 {
            let bytes = self.get(at, 4);
            <[u8; 4]>::try_from(bytes).map_or(0, u32::from_le_bytes)
        };
        let now = word(base).checked_shr(16).unwrap_or(0);
        let now = u16::try_from(now).unwrap_or(0);
        let mut list = Vec::new();
        let mut at = seen;
        while at != now && size > 0 {
            let slot = base + 4 + 8 * u64::from(at % size);
            list.push((word(slot), word(slot + 4)));
            at = at.wrapping_add(1);
        }
        if let Some(queue) = self.queues.get_mut(queue) {
            queue.2 = now;
        }
        list
    }

    /// One chain of these bytes to read and rooms to write, kicked; what was written in each
    /// room, or nothing if it was not given back.
    pub fn request(
        &mut self,
        queue: usize,
        readable: &[&[u8]],
        writable: &[usize],
    ) -> Option<(u32, Vec<Vec<u8>>)> {
        let base = Self::base(queue);
        let mut address = BUFFERS;
        let mut rooms = Vec::new();
        let last = u16::try_from(readable.len() + writable.len())
            .ok()?
            .checked_sub(1)?;
        let mut index = 0u16;
        for bytes in readable {
            self.put(address, bytes);
            let length = u32::try_from(bytes.len()).ok()?;
            let flags = if index == last { 0 } else { NEXT };
            self.describe(base, index, address, length, flags, index + 1);
            address += u64::from(length).next_multiple_of(64);
            index += 1;
        }
        for room in writable {
            let length = u32::try_from(*room).ok()?;
            self.put(address, &vec![0xee; *room]);
            let flags = if index == last { WRITE } else { WRITE | NEXT };
            self.describe(base, index, address, length, flags, index + 1);
            rooms.push((address, *room));
            address += u64::from(length).next_multiple_of(64);
            index += 1;
        }
        self.publish(queue, 0);
        self.kick(queue);
        let (_, written) = self.used(queue).pop()?;
        let rooms = rooms.into_iter().map(|(at, room)| self.get(at, room));
        Some((written, rooms.collect()))
    }

    /// How often the guest was interrupted since the last call.
    #[must_use]
    pub fn interrupts(&self) -> u64 {
        match self.line.read() {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => panic!("the line: {error}"),
        }
    }
}

fn note(faults: &Arc<Mutex<Vec<String>>>) -> impl Fn(&str, &Fault) + Send + Sync + 'static {
    let faults = Arc::clone(faults);
    move |device, fault| {
        faults
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(format!("{device}: {fault}"));
    }
}

/// A guest's deeds as bytes, for a fuzzer: a good start, then anything.
///
/// `outside` is called in between with a number, for what the host does meanwhile.
pub fn misbehave(device: Box<dyn VirtioDevice>, bytes: &[u8], mut outside: impl FnMut(u8)) {
    let mut driver = Driver::new(device);
    let mut input = bytes.iter().copied();
    let mut word = move || -> Option<u32> {
        let mut word = [0; 4];
        for place in &mut word {
            *place = input.next()?;
        }
        Some(u32::from_le_bytes(word))
    };
    let Some(first) = word() else { return };
    driver.start(
        u64::from(first & 0xff) << 28,
        1 << (first >> 8 & 0xf).min(8),
    );
    for _ in 0..512 {
        let (Some(deed), Some(what), Some(value)) = (word(), word(), word()) else {
            break;
        };
        let low = u16::try_from(value & 0xffff).unwrap_or(0);
        let high = u16::try_from(value >> 16).unwrap_or(0);
        let queue = usize::try_from(what & 7).unwrap_or(0);
        match deed & 0xf {
            // Any register, any value, any width.
            0 => driver.write(u64::from(what & 0x1ff), value),
            1 => {
                let width = usize::from(low % 17);
                let mut data = vec![0; width];
                driver.device.read(u64::from(what), &mut data);
                driver.device.write(u64::from(what), &data);
            }
            2 => driver.start(u64::from(what & 0xff) << 28, 1 << (value & 7)),
            3 => driver.write(0x70, value & 0xff),
            // Memory where rings and tables are.
            4 => driver.put(QUEUES + u64::from(what & 0xf_ffff), &value.to_le_bytes()),
            5 => driver.put(u64::from(what), &value.to_le_bytes()),
            // A buffer's contents.
            6 => driver.put(
                BUFFERS + u64::from(what & 0xfff),
                &[value.to_le_bytes(), value.to_be_bytes()].concat(),
            ),
            // Descriptors: good ones, then any.
            7 | 8 => {
                let address = BUFFERS + u64::from(what >> 3 & 0xfff);
                let next = high >> 8;
                let flags = high & 7;
                driver.describe(
                    Driver::base(queue),
                    u16::try_from(deed >> 8 & 0xff).unwrap_or(0),
                    address,
                    low.into(),
                    flags,
                    next,
                );
            }
            9 => {
                let address = u64::from(what) << (value & 31);
                driver.describe(
                    Driver::base(queue),
                    u16::try_from(deed >> 8 & 0xff).unwrap_or(0),
                    address,
                    value,
                    u16::try_from(deed >> 16 & 7).unwrap_or(0),
                    high,
                );
            }
            10 | 11 => {
                driver.publish(queue, low & 0xff);
                driver.kick(queue);
            }
            12 => driver.kick(queue),
            13 => outside(u8::try_from(value & 0xff).unwrap_or(0)),
            14 => driver.pump(),
            _ => {
                driver.used(queue);
                driver.device.save();
            }
        }
    }
    driver.pump();
}
