//! A device's queues, as it sees them while it handles an event.

use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::buffers::{Buffers, MAX_SEGMENTS};
use crate::device::Fault;
use crate::interrupt::Interrupt;
use crate::{GuestMemory, feature};

/// What a device does in one go, in bytes that are copied: a few milliseconds where they are
/// in the host's memory, of which some GiB are copied in a second, and as long as a human
/// notices where a disk has to bring them. A guest that always has another chain, or one that
/// is long, does not keep the loop from its other devices for longer.
const TURN: u64 = 1024 * OPERATION;
/// What else takes time, as bytes that could be copied meanwhile: a system call, or a chain
/// that is looked up and given back, takes one to a few microseconds.
pub(crate) const OPERATION: u64 = 16 << 10;
/// One descriptor, of which a chain may have [`MAX_SEGMENTS`]: tens of nanoseconds.
const DESCRIPTOR: u64 = 128;
/// How many bytes of pages are given back to the host, by a hole in memory or in a file,
/// while one is copied.
const RELEASED: u64 = 4;

/// Descriptor flags, section 2.7.5.
const NEXT: u16 = 1;
const INDIRECT: u16 = 4;
/// VIRTQ_AVAIL_F_NO_INTERRUPT, section 2.7.6.
const NO_INTERRUPT: u16 = 1;

/// How much a device may still do before it is the others' turn.
#[derive(Debug)]
pub struct Turn<'a> {
    left: u64,
    /// Whether the loop is to stand or to end.
    interrupted: &'a AtomicBool,
}

impl<'a> Turn<'a> {
    fn new(interrupted: &'a AtomicBool) -> Self {
        Self {
            left: TURN,
            interrupted,
        }
    }

    /// Whether the device has to let go now. It has its next turn soon.
    pub fn is_over(&self) -> bool {
        // Nothing but the flag itself is read by its reader.
        self.left == 0 || self.interrupted.load(Ordering::Relaxed)
    }

    /// A system call has moved so many bytes.
    pub fn moved(&mut self, bytes: usize) {
        self.spend(OPERATION.saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX)));
    }

    /// A system call has given pages of so many bytes back to the host.
    pub fn released(&mut self, bytes: u64) {
        self.spend(OPERATION.saturating_add(bytes / RELEASED));
    }

    /// Something was done of which nobody knows how long it takes.
    pub fn end(&mut self) {
        self.left = 0;
    }

    fn spend(&mut self, work: u64) {
        self.left = self.left.saturating_sub(work);
    }
}

/// One request of the driver: what the device may read, then what it may write.
#[derive(Debug)]
pub struct Chain<'a> {
    /// By which it is given back.
    pub head: u16,
    /// For the device to read.
    pub readable: Buffers<'a>,
    /// For the device to write.
    pub writable: Buffers<'a>,
    /// How much of it was done in turns before this one, as its device counts. A driver that
    /// has changed the chain meanwhile may have left less than that.
    pub begun: usize,
}

/// What a device has done with a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// It is done; so many bytes of it were written.
    Done(u32),
    /// The device's turn was over: so much of it is done, the rest follows.
    Part(usize),
    /// It cannot be done now and stays the next one.
    Later,
}

/// See the module.
pub struct Context<'a> {
    memory: &'a GuestMemory,
    queues: &'a mut [Queue],
    /// How much of each queue's next chain is done, see [`Chain::begun`].
    begun: &'a mut [usize],
    /// What the driver has accepted.
    features: u64,
    interrupt: &'a Interrupt,
    turn: Turn<'a>,
    /// Queues with buffers that were given back, by their bits.
    used: u64,
    /// Queues that have more than could be handled in one go.
    again: u64,
    configuration: bool,
}

impl<'a> Context<'a> {
    pub(crate) fn new(
        memory: &'a GuestMemory,
        queues: &'a mut [Queue],
        begun: &'a mut [usize],
        features: u64,
        interrupt: &'a Interrupt,
        interrupted: &'a AtomicBool,
    ) -> Self {
        Self {
            memory,
            queues,
            begun,
            features,
            interrupt,
            turn: Turn::new(interrupted),
            used: 0,
            again: 0,
            configuration: false,
        }
    }

    /// The guest's memory.
    pub fn memory(&self) -> &'a GuestMemory {
        self.memory
    }

    /// The driver is told at the end of the event that the configuration has changed.
    pub fn configuration_changed(&mut self) {
        self.configuration = true;
    }

    /// How long this goes on.
    pub fn turn(&mut self) -> &mut Turn<'a> {
        &mut self.turn
    }

    /// Has the queue handled again, after the others had their turn.
    pub fn again(&mut self, index: usize) {
        self.again |= 1 << index;
    }

    /// Handles chains of a queue until there is none, one has to wait or the turn is over.
    /// The driver's notifications are off meanwhile, and on again when there is none.
    ///
    /// # Errors
    /// A queue or a chain that no driver makes; what `handle` finds.
    pub fn process(
        &mut self,
        index: usize,
        mut handle: impl FnMut(Chain<'a>, &mut Turn<'a>) -> Result<Progress, Fault>,
    ) -> Result<(), Fault> {
        self.each(index, resolve, |mut chain, begun, turn| {
            chain.begun = begun;
            handle(chain, turn)
        })
    }

    /// The same, with the places of a chain's buffers in guest-physical memory, address and
    /// length, which may or may not be memory, and how many of them are done.
    ///
    /// # Errors
    /// As [`Context::process`].
    pub fn process_places(
        &mut self,
        index: usize,
        handle: impl FnMut(Vec<(u64, u64)>, usize, &mut Turn<'a>) -> Result<Progress, Fault>,
    ) -> Result<(), Fault> {
        self.each(index, places, handle)
    }

    fn each<T>(
        &mut self,
        index: usize,
        look_up: impl Fn(Table<'a>, DescriptorChain<&'a GuestMemory>, &mut Turn<'a>) -> Result<T, Fault>,
        mut handle: impl FnMut(T, usize, &mut Turn<'a>) -> Result<Progress, Fault>,
    ) -> Result<(), Fault> {
        let (memory, features) = (self.memory, self.features);
        let turn = &mut self.turn;
        let Some(begun) = self.begun.get_mut(index) else {
            return Ok(());
        };
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else {
            return Ok(());
        };
        loop {
            // A driver can have chains come and go for as long as it likes.
            turn.spend(DESCRIPTOR);
            queue
                .disable_notification(memory)
                .map_err(|error| damaged(index, &error))?;
            loop {
                let next = queue
                    .iter(memory)
                    .map_err(|error| damaged(index, &error))?
                    .next();
                let Some(descriptors) = next else { break };
                if turn.is_over() {
                    // Others have their turn; this goes on after them.
                    queue.go_to_previous_position();
                    self.again |= 1 << index;
                    return Ok(());
                }
                turn.spend(OPERATION);
                let head = descriptors.head_index();
                let table = Table::new(memory, queue, features);
                let found = look_up(table, descriptors, turn)?;
                match handle(found, *begun, turn)? {
                    Progress::Done(written) => {
                        *begun = 0;
                        queue
                            .add_used(memory, head, written)
                            .map_err(|error| damaged(index, &error))?;
                        self.used |= 1 << index;
                    }
                    Progress::Part(done) => {
                        *begun = done;
                        queue.go_to_previous_position();
                        self.again |= 1 << index;
                        return Ok(());
                    }
                    Progress::Later => {
                        queue.go_to_previous_position();
                        return Ok(());
                    }
                }
            }
            let more = queue
                .enable_notification(memory)
                .map_err(|error| damaged(index, &error))?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Takes chains to write to off a queue, until they have room for so many bytes or there
    /// are as many as allowed. When there are too few, the driver's notifications are on
    /// afterwards. The taker gives each of them back, or puts all back.
    ///
    /// # Errors
    /// A queue or a chain that no driver makes.
    pub fn take(&mut self, index: usize, most: u16, bytes: usize) -> Result<Vec<Chain<'a>>, Fault> {
        let (memory, features) = (self.memory, self.features);
        let mut chains = Vec::new();
        let mut room = 0usize;
        let Some(queue) = self.queues.get_mut(index).filter(|queue| queue.ready()) else {
            return Ok(chains);
        };
        while room < bytes && chains.len() < usize::from(most) {
            let next = queue
                .iter(memory)
                .map_err(|error| damaged(index, &error))?
                .next();
            match next {
                Some(descriptors) => {
                    let table = Table::new(memory, queue, features);
                    let chain = resolve(table, descriptors, &mut self.turn)?;
                    room = room.saturating_add(chain.writable.len());
                    chains.push(chain);
                }
                None => {
                    let more = queue
                        .enable_notification(memory)
                        .map_err(|error| damaged(index, &error))?;
                    if !more {
                        break;
                    }
                }
            }
        }
        Ok(chains)
    }

    /// Puts the chains that were taken last back, to be taken again.
    pub fn put_back(&mut self, index: usize, count: usize) {
        if let Some(queue) = self.queues.get_mut(index) {
            for _ in 0..count {
                queue.go_to_previous_position();
            }
        }
    }

    /// Gives a chain back to the driver, with so many bytes written.
    ///
    /// # Errors
    /// A queue that is damaged.
    pub fn give_back(&mut self, index: usize, head: u16, written: u32) -> Result<(), Fault> {
        let memory = self.memory;
        let Some(queue) = self.queues.get_mut(index) else {
            return Ok(());
        };
        queue
            .add_used(memory, head, written)
            .map_err(|error| damaged(index, &error))?;
        self.used |= 1 << index;
        Ok(())
    }

    /// Interrupts the driver where it wants to be; queues that are to be handled again, by
    /// their bits.
    pub(crate) fn finish(self) -> Result<u64, Fault> {
        let mut wanted = false;
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if self.used & (1 << index) != 0 {
                let due = queue
                    .needs_notification(self.memory)
                    .map_err(|error| damaged(index, &error))?;
                wanted |= due && !is_unwanted(self.memory, queue, self.features);
            }
        }
        if wanted {
            self.interrupt.used_buffer();
        }
        if self.configuration {
            self.interrupt.configuration();
        }
        Ok(self.again)
    }
}

/// Whether the driver has said by the flag of its ring that it wants no interrupts. It is
/// that flag only for one that cannot say from which entry on it wants one, at which the
/// queue itself looks (section 2.7.7.2). To be asked once what was used can be seen.
fn is_unwanted(memory: &GuestMemory, queue: &Queue, features: u64) -> bool {
    // The flags are what the ring begins with.
    features & feature::EVENT_IDX == 0
        && memory
            .load::<u16>(GuestAddress(queue.avail_ring()), Ordering::Relaxed)
            .is_ok_and(|flags| u16::from_le(flags) & NO_INTERRUPT != 0)
}

fn damaged(index: usize, error: &virtio_queue::Error) -> Fault {
    Fault::new(format!("queue {index} is damaged: {error}"))
}

/// A queue's descriptors.
#[derive(Clone, Copy)]
struct Table<'a> {
    memory: &'a GuestMemory,
    address: u64,
    size: u16,
    /// Whether the driver has accepted that there are others.
    indirect: bool,
}

impl<'a> Table<'a> {
    fn new(memory: &'a GuestMemory, queue: &Queue, features: u64) -> Self {
        Self {
            memory,
            address: queue.desc_table(),
            size: queue.size(),
            indirect: features & feature::INDIRECT_DESC != 0,
        }
    }

    /// Whether a descriptor leads to another table, as it may where it is the last one of its
    /// chain, section 2.7.5.3.1. The queue's iterator follows it in any case, and does not
    /// show it: what this finds is what is there just before the iterator looks.
    fn leads_on(self, index: u16) -> Result<bool, Fault> {
        let flags = self
            .address
            .checked_add(16 * u64::from(index) + 12)
            .filter(|_| index < self.size)
            .and_then(|at| self.memory.read_obj::<u16>(GuestAddress(at)).ok());
        // One that is not in the table is the iterator's to find.
        let flags = flags.map_or(0, u16::from_le);
        if flags & INDIRECT == 0 {
            return Ok(false);
        }
        if !self.indirect {
            return Err(Fault::new(
                "a descriptor leads to a table, which the driver has not accepted",
            ));
        }
        if flags & NEXT != 0 {
            return Err(Fault::new(
                "a descriptor leads to a table in the middle of a chain",
            ));
        }
        Ok(true)
    }
}

/// Looks up a chain's buffers.
fn resolve<'a>(
    table: Table<'a>,
    descriptors: DescriptorChain<&GuestMemory>,
    turn: &mut Turn<'_>,
) -> Result<Chain<'a>, Fault> {
    let mut chain = Chain {
        head: descriptors.head_index(),
        readable: Buffers::default(),
        writable: Buffers::default(),
        begun: 0,
    };
    walk(table, descriptors, turn, |address, length, writable| {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let piece = table
            .memory
            .get_slice(GuestAddress(address), length)
            .map_err(|_| {
                Fault::new(format!(
                    "a descriptor leads out of memory: {length} bytes at {address:#x}"
                ))
            })?;
        if writable {
            chain.writable.push(piece);
        } else if chain.writable.is_empty() {
            chain.readable.push(piece);
        } else {
            return Err(Fault::new(
                "a chain has a descriptor to read after one to write",
            ));
        }
        Ok(())
    })?;
    Ok(chain)
}

/// Where a chain's buffers are said to be.
fn places(
    table: Table<'_>,
    descriptors: DescriptorChain<&GuestMemory>,
    turn: &mut Turn<'_>,
) -> Result<Vec<(u64, u64)>, Fault> {
    let mut places = Vec::new();
    walk(table, descriptors, turn, |address, length, _| {
        places.push((address, u64::from(length)));
        Ok(())
    })?;
    Ok(places)
}

/// Follows a chain: address, length, whether it is to be written.
fn walk(
    table: Table<'_>,
    mut descriptors: DescriptorChain<&GuestMemory>,
    turn: &mut Turn<'_>,
    mut each: impl FnMut(u64, u32, bool) -> Result<(), Fault>,
) -> Result<(), Fault> {
    // The iterator ends without a word where a chain leads in a circle, out of its table or
    // over 4 GiB: then its last descriptor says that there is another.
    let mut unfinished = true;
    // In the queue's table; `None` when it is in another, which leads to none.
    let mut index = Some(descriptors.head_index());
    for count in 0.. {
        if let Some(here) = index
            && table.leads_on(here)?
        {
            index = None;
        }
        let Some(descriptor) = descriptors.next() else {
            break;
        };
        if count == MAX_SEGMENTS {
            return Err(Fault::new(format!(
                "a chain has more than {MAX_SEGMENTS} descriptors"
            )));
        }
        turn.spend(DESCRIPTOR);
        unfinished = descriptor.has_next();
        // After the last one nothing is looked at.
        index = index.filter(|_| unfinished).map(|_| descriptor.next());
        each(
            descriptor.addr().0,
            descriptor.len(),
            descriptor.is_write_only(),
        )?;
    }
    if unfinished {
        return Err(Fault::new(
            "a chain of descriptors leads in a circle or out of its table",
        ));
    }
    Ok(())
}
