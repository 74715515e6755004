//! What a driver does that does everything right, as bytes for [`misbehave`], and what has to
//! come of it: an input that is refused at the first check leads mutations nowhere.
//!
//! [`misbehave`]: bulkhead_virtio::testing::misbehave

use bulkhead_virtio::testing::{BUFFERS, Driver, INDIRECT, NEXT, WRITE};

/// Where a used ring is from its queue's descriptors on, as the driver of tests lays it out.
#[cfg(test)]
const USED: u64 = 0x8000;
/// Entries of a queue, as exponent of two, which the first word of the input has.
const SIZE: u8 = 6;
/// What room for the device holds before: what is still there was not written.
const UNTOUCHED: u8 = 0xee;
/// Room is no nearer to the next buffer than this.
const ALIGNMENT: u32 = 16;
/// Buffers that start no later are described by one deed.
const FARTHEST: u32 = 0xfff;

/// The deeds that [`misbehave`] knows and a good driver has a use for.
///
/// [`misbehave`]: bulkhead_virtio::testing::misbehave
mod deed {
    pub(super) const REGISTER: u32 = 0;
    pub(super) const READ_AND_WRITE: u32 = 1;
    pub(super) const START: u32 = 2;
    pub(super) const MEMORY: u32 = 5;
    pub(super) const DESCRIBE: u32 = 7;
    pub(super) const PUBLISH: u32 = 10;
    pub(super) const KICK: u32 = 12;
    pub(super) const OUTSIDE: u32 = 13;
    pub(super) const PUMP: u32 = 14;
    pub(super) const SAVE: u32 = 15;
}

#[derive(Debug, Clone, Default)]
struct Queue {
    descriptors: u16,
    /// Chains that are to have been given back: head and bytes written.
    used: Vec<(u16, u32)>,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Script {
    bytes: Vec<u8>,
    queues: [Queue; 8],
    /// Where the next buffer may be, from [`BUFFERS`] on.
    free: u32,
    /// What memory holds in the end.
    memory: Vec<(u64, Vec<u8>)>,
    /// What has left the machine in the end; what that is, each target says.
    pub(super) out: Vec<u8>,
}

impl Script {
    /// The device is started with everything that it offers.
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0, SIZE, 0, 0],
            queues: Default::default(),
            free: 0,
            memory: Vec::new(),
            out: Vec::new(),
        }
    }

    fn deed(&mut self, deed: u32, what: u32, value: u32) {
        for word in [deed, what, value] {
            self.bytes.extend(word.to_le_bytes());
        }
    }

    /// The input.
    pub(super) fn bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes a register.
    pub(super) fn register(&mut self, offset: u32, value: u32) {
        self.deed(deed::REGISTER, offset, value);
    }

    /// Reads registers and writes them back.
    pub(super) fn read_and_write(&mut self, offset: u32, bytes: u32) {
        self.deed(deed::READ_AND_WRITE, offset, bytes);
    }

    /// Resets the device and starts it again.
    pub(super) fn start_again(&mut self) {
        self.queues = Default::default();
        self.deed(deed::START, 0, SIZE.into());
    }

    /// Something happens on the host.
    pub(super) fn outside(&mut self, number: u8) {
        self.deed(deed::OUTSIDE, 0, number.into());
        self.deed(deed::PUMP, 0, 0);
    }

    /// Notifies a queue without anything new in it, and has the device saved.
    pub(super) fn linger(&mut self, queue: u32) {
        self.deed(deed::KICK, queue, 0);
        self.deed(deed::SAVE, 0, 0);
    }

    /// Puts bytes anywhere in memory, of which only words that are not zero take a deed.
    pub(super) fn put(&mut self, address: u64, bytes: &[u8]) {
        let mut at = u32::try_from(address).unwrap_or(0);
        for piece in bytes.chunks(4) {
            let mut word = [0; 4];
            for (place, byte) in word.iter_mut().zip(piece) {
                *place = *byte;
            }
            let word = u32::from_le_bytes(word);
            if word != 0 {
                self.deed(deed::MEMORY, at, word);
            }
            at += 4;
        }
    }

    /// Room for a buffer that nothing else uses.
    fn place(&mut self, length: u16) -> u32 {
        let place = self.free;
        self.free = (place + u32::from(length)).next_multiple_of(ALIGNMENT);
        place
    }

    /// Buffers of a chain: places, lengths, whether they are written; filled.
    fn buffers(&mut self, readable: &[&[u8]], rooms: &[u16]) -> Vec<(u32, u16, bool)> {
        let mut buffers = Vec::new();
        for bytes in readable {
            let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
            let place = self.place(length);
            self.put(BUFFERS + u64::from(place), bytes);
            buffers.push((place, length, false));
        }
        for room in rooms {
            let place = self.place(*room);
            self.put(BUFFERS + u64::from(place), &[UNTOUCHED; 4]);
            buffers.push((place, *room, true));
        }
        buffers
    }

    fn describe(&mut self, queue: u32, place: u32, length: u16, flags: u16) -> u16 {
        let entry = self.queue(queue);
        let index = entry.descriptors;
        entry.descriptors += 1;
        if place > FARTHEST {
            let mut bytes = (BUFFERS + u64::from(place)).to_le_bytes().to_vec();
            bytes.extend(u32::from(length).to_le_bytes());
            bytes.extend(flags.to_le_bytes());
            bytes.extend((index + 1).to_le_bytes());
            let table = Driver::base(usize::try_from(queue).unwrap_or(0));
            self.put(table + 16 * u64::from(index), &bytes);
            return index;
        }
        let value = u32::from(length) | u32::from(flags) << 16 | u32::from(index + 1) << 24;
        let deed = deed::DESCRIBE | u32::from(index) << 8;
        self.deed(deed, queue | place << 3, value);
        index
    }

    fn queue(&mut self, queue: u32) -> &mut Queue {
        let index = usize::try_from(queue & 7).unwrap_or(0);
        // A mask of three bits stays below eight.
        &mut self.queues[index]
    }

    /// Makes a chain available and kicks the queue; its head, and where the rooms are.
    pub(super) fn ask(&mut self, queue: u32, readable: &[&[u8]], rooms: &[u16]) -> (u16, Vec<u64>) {
        let buffers = self.buffers(readable, rooms);
        let mut head = None;
        for (number, (place, length, written)) in buffers.iter().enumerate() {
            let mut flags = if *written { WRITE } else { 0 };
            if number + 1 < buffers.len() {
                flags |= NEXT;
            }
            let index = self.describe(queue, *place, *length, flags);
            head.get_or_insert(index);
        }
        let head = head.unwrap_or(0);
        self.deed(deed::PUBLISH, queue, head.into());
        (head, rooms_of(&buffers))
    }

    /// The same with the longest buffer there can be, so many times: what nobody has filled.
    pub(super) fn ask_of_nothing(&mut self, queue: u32, times: usize) -> u16 {
        let place = self.place(u16::MAX);
        let mut head = None;
        for number in 1..=times {
            let flags = if number < times { NEXT } else { 0 };
            head.get_or_insert(self.describe(queue, place, u16::MAX, flags));
        }
        let head = head.unwrap_or(0);
        self.deed(deed::PUBLISH, queue, head.into());
        head
    }

    /// As [`Script::ask`], with the descriptors in a table of their own.
    pub(super) fn ask_indirectly(
        &mut self,
        queue: u32,
        readable: &[&[u8]],
        rooms: &[u16],
    ) -> (u16, Vec<u64>) {
        let buffers = self.buffers(readable, rooms);
        let mut table = Vec::new();
        for (number, (place, length, written)) in (1u16..).zip(&buffers) {
            let mut flags = if *written { WRITE } else { 0 };
            if usize::from(number) < buffers.len() {
                flags |= NEXT;
            }
            table.extend((BUFFERS + u64::from(*place)).to_le_bytes());
            table.extend(u32::from(*length).to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend(number.to_le_bytes());
        }
        let length = u16::try_from(table.len()).unwrap_or(u16::MAX);
        let place = self.place(length);
        self.put(BUFFERS + u64::from(place), &table);
        let head = self.describe(queue, place, length, INDIRECT);
        self.deed(deed::PUBLISH, queue, head.into());
        (head, rooms_of(&buffers))
    }

    /// A chain is to be given back with so many bytes written.
    pub(super) fn given_back(&mut self, queue: u32, head: u16, written: u32) {
        self.queue(queue).used.push((head, written));
    }

    /// Memory is to hold this in the end.
    pub(super) fn holds(&mut self, address: u64, bytes: &[u8]) {
        self.memory.push((address, bytes.to_vec()));
    }

    /// What memory has to hold in the end, all of it.
    #[cfg(test)]
    pub(super) fn expected(&self) -> Vec<(u64, Vec<u8>)> {
        let mut all = self.memory.clone();
        for (index, queue) in self.queues.iter().enumerate() {
            if queue.descriptors == 0 {
                continue;
            }
            let ring = Driver::base(index) + USED;
            let count = u16::try_from(queue.used.len()).unwrap();
            all.push((ring + 2, count.to_le_bytes().to_vec()));
            let mut entries = Vec::new();
            for (head, written) in &queue.used {
                entries.extend(u32::from(*head).to_le_bytes());
                entries.extend(written.to_le_bytes());
            }
            all.push((ring + 4, entries));
        }
        all
    }
}

fn rooms_of(buffers: &[(u32, u16, bool)]) -> Vec<u64> {
    let rooms = buffers.iter().filter(|(_, _, written)| *written);
    rooms
        .map(|(place, _, _)| BUFFERS + u64::from(*place))
        .collect()
}
