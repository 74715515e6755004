//! What a guest does to its devices.

mod script;
mod witness;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::{Arc, Mutex, PoisonError};

use bulkhead_virtio::balloon::{Balloon, PAGE};
use bulkhead_virtio::block::{Backing, Block};
use bulkhead_virtio::console::{AGENT_PORT, Console};
use bulkhead_virtio::entropy::Entropy;
use bulkhead_virtio::net::Net;

use crate::Target;
use script::Script;
use witness::{Outcome, feed};

/// What has left a machine is not kept beyond this.
const KEPT: usize = 1 << 20;

fn inputs(scripts: Vec<Script>) -> Vec<Vec<u8>> {
    scripts.into_iter().map(Script::bytes).collect()
}

pub(crate) const ENTROPY: Target = Target {
    name: "virtio_entropy",
    run: |bytes| drop(entropy(bytes)),
    seeds: || inputs(entropy_scripts()),
    tries: 600,
};

fn entropy(bytes: &[u8]) -> Outcome {
    feed(Entropy::new(), bytes, |_| {})
}

/// What random bytes are like no script can say: the test looks at the room of the first.
fn entropy_scripts() -> Vec<Script> {
    let mut script = Script::new();
    let (head, _) = script.ask(0, &[], &[64]);
    script.given_back(0, head, 64);
    // As much as there is, in pieces.
    let (head, _) = script.ask(0, &[], &[32, 4000, 200]);
    script.given_back(0, head, 4096);
    let (head, _) = script.ask_indirectly(0, &[], &[16]);
    script.given_back(0, head, 16);
    script.linger(0);
    vec![script]
}

pub(crate) const BALLOON: Target = Target {
    name: "virtio_balloon",
    run: |bytes| drop(balloon(bytes)),
    seeds: || inputs(balloon_scripts()),
    tries: 600,
};

/// What leaves the machine: bytes that went back to the host, and those that the driver says
/// it has given up.
fn balloon(bytes: &[u8]) -> Outcome {
    let (balloon, handle) = Balloon::new();
    handle.set_target(16 * PAGE);
    let mut outcome = feed(balloon, bytes, |number| {
        handle.set_target(u64::from(number) * PAGE);
    });
    for number in [handle.returned(), handle.actual()] {
        outcome.out.extend(number.to_le_bytes());
    }
    outcome
}

fn balloon_scripts() -> Vec<Script> {
    const INFLATE: u32 = 0;
    const DEFLATE: u32 = 1;
    const REPORTING: u32 = 2;
    /// Where the driver writes how many pages it has given up.
    const ACTUAL: u32 = 0x104;
    let left = |returned: u64, actual: u64| {
        let pages = [returned, actual];
        pages.map(|pages| (pages * PAGE).to_le_bytes()).concat()
    };

    let mut script = Script::new();
    // Neighbours up and down, and one alone; they are nothing afterwards.
    let pages = [0x300u32, 0x301, 0x310, 0x30f, 0x320];
    for page in pages {
        script.put(u64::from(page) * PAGE, b"kept");
        script.holds(u64::from(page) * PAGE, &[0; 4]);
    }
    script.read_and_write(0x100, 8);
    let (head, _) = script.ask(INFLATE, &[&pages.map(u32::to_le_bytes).concat()], &[]);
    script.given_back(INFLATE, head, 0);
    script.register(ACTUAL, 5);
    script.linger(INFLATE);
    let (head, _) = script.ask(DEFLATE, &[&0x320u32.to_le_bytes()], &[]);
    script.given_back(DEFLATE, head, 0);
    script.register(ACTUAL, 4);
    script.out = left(5, 4);
    let both_ways = script;

    let mut script = Script::new();
    // Of what is reported whole pages go: three and a half are three.
    let (head, rooms) = script.ask(REPORTING, &[], &[0x3800]);
    script.given_back(REPORTING, head, 0);
    for room in rooms {
        script.holds(room, &[0; 4]);
    }
    script.linger(REPORTING);
    script.out = left(3, 0);
    vec![both_ways, script]
}

/// Bytes of a sector.
const SECTOR: u16 = 512;
/// Bytes of the disk that can be written.
const DISK: u16 = 1 << 15;
/// Files of the disk that cannot: most edges are within a sector, and one file is empty.
const LAYERS: [u16; 5] = [1536, 700, 0, 4096, 1860];

/// Kinds of requests to a disk, and answers.
mod disk {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
    pub(super) const UNMAP: u32 = 1;

    pub(super) const OK: u8 = 0;
    pub(super) const IOERR: u8 = 1;
    pub(super) const UNSUPP: u8 = 2;
}

pub(crate) const BLOCK: Target = Target {
    name: "virtio_block",
    run: |bytes| {
        // Without files there is nothing to try.
        let _ = scratch(bytes);
    },
    seeds: || inputs(scratch_scripts()),
    tries: 600,
};

/// What leaves the machine is the whole disk.
fn scratch(bytes: &[u8]) -> io::Result<Outcome> {
    let file = tempfile::tempfile()?;
    file.set_len(DISK.into())?;
    let backing = Backing::scratch(file.try_clone()?)?;
    let mut outcome = feed(Block::new(backing, "scratch"), bytes, |_| {});
    let length = file.metadata()?.len();
    assert_eq!(length, u64::from(DISK), "the disk has another size");
    outcome.out = vec![0; DISK.into()];
    file.read_exact_at(&mut outcome.out, 0)?;
    Ok(outcome)
}

pub(crate) const LAYERED: Target = Target {
    name: "virtio_block_layers",
    run: |bytes| {
        let _ = layered(bytes);
    },
    seeds: || inputs(layered_scripts()),
    tries: 600,
};

/// What the disk that cannot be written holds: no two sectors are alike.
fn layered_bytes() -> Vec<u8> {
    let length: u16 = LAYERS.iter().sum();
    let word = |at: u16| at.wrapping_mul(0x9e37).to_le_bytes();
    (0..length / 2).flat_map(word).collect()
}

/// What leaves the machine are the files, end to end.
fn layered(bytes: &[u8]) -> io::Result<Outcome> {
    let contents = layered_bytes();
    let mut rest = contents.as_slice();
    let mut files: Vec<(File, u64)> = Vec::new();
    for length in LAYERS {
        let (here, after) = rest
            .split_at_checked(length.into())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        rest = after;
        let file = tempfile::tempfile()?;
        file.write_all_at(here, 0)?;
        files.push((file, length.into()));
    }
    let lent = files
        .iter()
        .map(|(file, length)| Ok((file.try_clone()?, *length)))
        .collect::<io::Result<Vec<_>>>()?;
    let block = Block::new(Backing::layers(lent)?, "layers");
    let mut outcome = feed(block, bytes, |_| {});
    for (file, length) in &files {
        assert_eq!(file.metadata()?.len(), *length, "a layer has another size");
        let mut here = vec![0; usize::try_from(*length).unwrap_or(0)];
        file.read_exact_at(&mut here, 0)?;
        outcome.out.extend(here);
    }
    assert!(outcome.out == contents, "a layer was written");
    Ok(outcome)
}

impl Script {
    /// A request to a disk, which is to be answered so, with so many bytes before the answer.
    fn disk(
        &mut self,
        (kind, sector): (u32, u64),
        data: &[&[u8]],
        rooms: &[u16],
        (answer, written): (u8, u32),
    ) -> Vec<u64> {
        let mut header = Vec::new();
        header.extend(u64::from(kind).to_le_bytes());
        header.extend(sector.to_le_bytes());
        let readable: Vec<&[u8]> = std::iter::once(header.as_slice())
            .chain(data.iter().copied())
            .collect();
        let writable: Vec<u16> = rooms.iter().copied().chain([1]).collect();
        let (head, mut places) = self.ask(0, &readable, &writable);
        self.given_back(0, head, written + 1);
        if let Some(status) = places.pop() {
            self.holds(status, &[answer]);
        }
        places
    }

    /// A read of a disk that succeeds with these bytes, into rooms that are as long together.
    fn disk_reads(&mut self, sector: u64, mut bytes: &[u8], rooms: &[u16]) {
        let length = u32::try_from(bytes.len()).unwrap_or(0);
        let places = self.disk((disk::IN, sector), &[], rooms, (disk::OK, length));
        for (place, room) in places.into_iter().zip(rooms) {
            let here = bytes.split_off(..usize::from(*room)).unwrap_or_default();
            self.holds(place, here);
        }
    }
}

/// A sector that is not nothing, and takes few deeds to make.
fn sector(word: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR.into()];
    for at in [0, 256, 508] {
        bytes.splice(at..at + 4, word);
    }
    bytes
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

fn scratch_scripts() -> Vec<Script> {
    let done = (disk::OK, 0);
    let (one, two) = (sector(*b"ones"), sector(*b"twos"));
    let nothing = || vec![0; DISK.into()];
    let put = |disk: &mut Vec<u8>, at: usize, bytes: &[u8]| {
        let start = at * usize::from(SECTOR);
        disk.splice(start..start + bytes.len(), bytes.iter().copied());
    };
    let mut scripts = Vec::new();

    let mut script = Script::new();
    script.out = nothing();
    script.read_and_write(0x100, 8);
    // Two sectors in pieces that are none, and read back in others.
    let both = [one.as_slice(), two.as_slice()].concat();
    let (head, tail) = both.split_at(260);
    script.disk((disk::OUT, 3), &[head, tail], &[], done);
    script.disk((disk::FLUSH, 0), &[], &[], done);
    script.disk_reads(3, &both, &[500, 24, 500]);
    put(&mut script.out, 3, &both);
    scripts.push(script);

    let mut script = Script::new();
    script.out = nothing();
    let mut serial = b"scratch".to_vec();
    serial.resize(20, 0);
    for again in [false, true] {
        if again {
            script.linger(0);
            script.start_again();
        }
        let places = script.disk((disk::GET_ID, 0), &[], &[20], (disk::OK, 20));
        for place in places {
            script.holds(place, &serial);
        }
    }
    scripts.push(script);

    // Holes of a page; what is between them stays.
    let mut script = Script::new();
    script.out = nothing();
    for at in [8, 17, 24] {
        script.disk((disk::OUT, at), &[&one], &[], done);
    }
    put(&mut script.out, 17, &one);
    let ranges = [range(8, 8, 0), range(24, 8, 0), range(0, 0, 0)].concat();
    script.disk((disk::DISCARD, 0), &[&ranges], &[], done);
    script.disk_reads(8, &vec![0; SECTOR.into()], &[SECTOR]);
    scripts.push(script);

    let mut script = Script::new();
    script.out = nothing();
    for at in [1, 2, 3] {
        script.disk((disk::OUT, at), &[&two], &[], done);
    }
    put(&mut script.out, 2, &two);
    let ranges = [range(1, 1, 0), range(3, 1, disk::UNMAP)].concat();
    script.disk((disk::WRITE_ZEROES, 0), &[&ranges], &[], done);
    script.disk_reads(3, &vec![0; SECTOR.into()], &[SECTOR]);
    scripts.push(script);

    let mut script = Script::new();
    script.out = nothing();
    let last = u64::from(DISK / SECTOR) - 1;
    let refused = (disk::IOERR, 0);
    script.disk((disk::IN, last), &[], &[2 * SECTOR], refused);
    script.disk((disk::IN, u64::MAX), &[], &[SECTOR], refused);
    script.disk((disk::OUT, 0), &[b"half"], &[], refused);
    let beyond = range(last, 2, 0);
    script.disk((disk::DISCARD, 0), &[&beyond], &[], refused);
    let unknown = (disk::UNSUPP, 0);
    script.disk((7, 0), &[], &[SECTOR], unknown);
    let unmap = range(0, 1, disk::UNMAP);
    script.disk((disk::DISCARD, 0), &[&unmap], &[], unknown);
    scripts.push(script);

    let mut script = Script::new();
    script.out = nothing();
    let mut header = u64::from(disk::OUT).to_le_bytes().to_vec();
    header.extend(5u64.to_le_bytes());
    let (head, places) = script.ask_indirectly(0, &[&header, &one], &[1]);
    script.given_back(0, head, 1);
    for place in places {
        script.holds(place, &[disk::OK]);
    }
    put(&mut script.out, 5, &one);
    scripts.push(script);
    scripts
}

fn layered_scripts() -> Vec<Script> {
    let contents = layered_bytes();
    let part = |at: u64, bytes: u16| {
        let start = usize::try_from(at).unwrap_or(0) * usize::from(SECTOR);
        contents
            .get(start..start + usize::from(bytes))
            .unwrap_or_default()
    };
    let mut scripts = Vec::new();

    let mut script = Script::new();
    script.read_and_write(0x100, 8);
    // One sector over an edge between files; one that is of the empty one's neighbours too.
    script.disk_reads(3, part(3, 2 * SECTOR), &[100, 412, 512]);
    script.disk_reads(12, part(12, SECTOR), &[SECTOR]);
    script.disk((disk::FLUSH, 0), &[], &[], (disk::OK, 0));
    script.out.clone_from(&contents);
    scripts.push(script);

    let mut script = Script::new();
    let all: u16 = LAYERS.iter().sum();
    script.disk_reads(0, part(0, all), &[SECTOR, all - SECTOR]);
    script.out.clone_from(&contents);
    scripts.push(script);

    let mut script = Script::new();
    let one = sector(*b"ones");
    let end = u64::from(all / SECTOR);
    script.disk((disk::OUT, 1), &[&one], &[], (disk::IOERR, 0));
    let ranges = range(0, 1, 0);
    for kind in [disk::DISCARD, disk::WRITE_ZEROES] {
        script.disk((kind, 0), &[&ranges], &[], (disk::UNSUPP, 0));
    }
    script.disk((disk::IN, end), &[], &[SECTOR], (disk::IOERR, 0));
    script.disk_reads(end - 1, part(end - 1, SECTOR), &[SECTOR]);
    script.out.clone_from(&contents);
    scripts.push(script);
    scripts
}

pub(crate) const NET: Target = Target {
    name: "virtio_net",
    run: |bytes| {
        let _ = net(bytes);
    },
    seeds: || inputs(net_scripts()),
    tries: 600,
};

/// Bytes before a frame.
const NET_HEADER: usize = 12;

/// What leaves the machine are frames with their headers.
fn net(bytes: &[u8]) -> io::Result<Outcome> {
    let (wire, tap) = UnixDatagram::pair()?;
    tap.set_nonblocking(true)?;
    wire.set_nonblocking(true)?;
    // Frames are taken off the wire after the card is gone too.
    let held = tap.try_clone()?;
    let mut out = Vec::new();
    let mut frame = vec![0; 1 << 17];
    let mut take = |out: &mut Vec<u8>| {
        let length = wire.recv(&mut frame).ok()?;
        if out.len() < KEPT {
            out.extend_from_slice(frame.get(..length)?);
        }
        Some(())
    };
    let card = Net::on(tap.into(), [2, 0, 0, 0, 0, 1]);
    let mut outcome = feed(card, bytes, |number| {
        // Frames of any length come in; those that go out are taken.
        let _ = wire.send(&vec![number; 16 * usize::from(number)]);
        take(&mut out);
    });
    while take(&mut out).is_some() {}
    drop(held);
    outcome.out = out;
    Ok(outcome)
}

fn net_scripts() -> Vec<Script> {
    const RECEIVE: u32 = 0;
    const TRANSMIT: u32 = 1;
    // A frame of 640 bytes comes in, in so many buffers, as its header then says.
    let number = 40;
    let incoming = |buffers: u16| {
        let mut frame = vec![number; 640];
        frame.splice(10..NET_HEADER, buffers.to_le_bytes());
        frame
    };
    let mut scripts = Vec::new();

    let mut script = Script::new();
    script.read_and_write(0x100, 6);
    let (head, rooms) = script.ask(RECEIVE, &[], &[100, 1400]);
    script.outside(number);
    script.given_back(RECEIVE, head, 640);
    for (room, bytes) in rooms.into_iter().zip(incoming(1).chunks(100)) {
        script.holds(room, bytes);
    }
    scripts.push(script);

    // The frame is there first, and finds too little room until there is more.
    let mut script = Script::new();
    script.outside(number);
    let (first, mut rooms) = script.ask(RECEIVE, &[], &[512]);
    let (second, more) = script.ask(RECEIVE, &[], &[512]);
    rooms.extend(more);
    script.given_back(RECEIVE, first, 512);
    script.given_back(RECEIVE, second, 128);
    for (room, bytes) in rooms.into_iter().zip(incoming(2).chunks(512)) {
        script.holds(room, bytes);
    }
    script.linger(RECEIVE);
    scripts.push(script);

    let mut script = Script::new();
    for again in [false, true] {
        if again {
            script.linger(TRANSMIT);
            script.start_again();
        }
        let mut frame = vec![0; NET_HEADER];
        frame.extend([0xff; 6]);
        frame.extend([2, 0, 0, 0, 0, 1, 8, 6]);
        frame.extend(b"a question to everybody");
        let (header, rest) = frame.split_at(NET_HEADER);
        let (head, _) = script.ask(TRANSMIT, &[header, rest], &[]);
        script.given_back(TRANSMIT, head, 0);
        let (head, _) = script.ask_indirectly(TRANSMIT, &[&frame], &[]);
        script.given_back(TRANSMIT, head, 0);
        script.out.extend([frame.as_slice(), &frame].concat());
    }
    // Nothing but a header is no frame.
    let (head, _) = script.ask(TRANSMIT, &[&[0; NET_HEADER]], &[]);
    script.given_back(TRANSMIT, head, 0);
    scripts.push(script);
    scripts
}

pub(crate) const CONSOLE: Target = Target {
    name: "virtio_console",
    run: |bytes| {
        let _ = console(bytes);
    },
    seeds: || inputs(console_scripts()),
    tries: 600,
};

/// What leaves the machine are the kernel's words and then what the agent has said.
fn console(bytes: &[u8]) -> io::Result<Outcome> {
    let (mut agent, port) = UnixStream::pair()?;
    agent.set_nonblocking(true)?;
    // What was said can be read after the device is gone too.
    let held = port.try_clone()?;
    let words = Arc::<Mutex<Vec<u8>>>::default();
    let keep = Arc::clone(&words);
    let keep = move |bytes: &[u8]| {
        let mut words = keep.lock().unwrap_or_else(PoisonError::into_inner);
        if words.len() < KEPT {
            words.extend_from_slice(bytes);
        }
    };
    let console = Console::new(port.into(), Some(Box::new(keep)))?;
    let mut said = Vec::new();
    let mut room = vec![0; 1 << 18];
    let mut take = |agent: &mut UnixStream, most: usize| {
        let room = room.get_mut(..most).unwrap_or_default();
        let length = agent.read(room).ok().filter(|length| *length > 0)?;
        if said.len() < KEPT {
            said.extend_from_slice(room.get(..length)?);
        }
        Some(())
    };
    let mut outcome = feed(console, bytes, |number| {
        if number == 255 {
            let _ = agent.shutdown(std::net::Shutdown::Both);
        } else if number % 2 == 0 {
            let _ = agent.write(&vec![number; 16 * usize::from(number)]);
        } else {
            take(&mut agent, 1024 * usize::from(number));
        }
    });
    while take(&mut agent, 1 << 18).is_some() {}
    drop(held);
    let words = words.lock().unwrap_or_else(PoisonError::into_inner);
    outcome.out = [words.as_slice(), &said].concat();
    Ok(outcome)
}

/// Control messages of the console and their meanings.
mod control {
    pub(super) const DEVICE_READY: u16 = 0;
    pub(super) const PORT_ADD: u16 = 1;
    pub(super) const PORT_READY: u16 = 3;
    pub(super) const CONSOLE_PORT: u16 = 4;
    pub(super) const PORT_OPEN: u16 = 6;
    pub(super) const PORT_NAME: u16 = 7;

    pub(super) fn message(port: u32, event: u16, value: u16) -> Vec<u8> {
        let mut bytes = port.to_le_bytes().to_vec();
        bytes.extend(event.to_le_bytes());
        bytes.extend(value.to_le_bytes());
        bytes
    }
}

fn console_scripts() -> Vec<Script> {
    use control::message;
    const WORDS: u32 = 1;
    const CONTROL_IN: u32 = 2;
    const CONTROL_OUT: u32 = 3;
    const AGENT_IN: u32 = 4;
    const AGENT_OUT: u32 = 5;
    let tell = |script: &mut Script, port: u32, event: u16, value: u16| {
        let (head, _) = script.ask(CONTROL_OUT, &[&message(port, event, value)], &[]);
        script.given_back(CONTROL_OUT, head, 0);
    };
    let hear = |script: &mut Script, bytes: &[u8]| {
        let (head, rooms) = script.ask(CONTROL_IN, &[], &[32]);
        for room in rooms {
            script.holds(room, bytes);
        }
        script.given_back(CONTROL_IN, head, u32::try_from(bytes.len()).unwrap_or(0));
    };
    let mut name = message(1, control::PORT_NAME, 1);
    name.extend(AGENT_PORT.as_bytes());
    name.push(0);
    let mut scripts = Vec::new();

    // As a kernel starts, talks, and its agent with whoever is there.
    let mut script = Script::new();
    script.read_and_write(0x104, 4);
    hear(&mut script, &message(0, control::PORT_ADD, 1));
    hear(&mut script, &message(1, control::PORT_ADD, 1));
    hear(&mut script, &message(0, control::CONSOLE_PORT, 1));
    hear(&mut script, &message(0, control::PORT_OPEN, 1));
    hear(&mut script, &name);
    tell(&mut script, u32::MAX, control::DEVICE_READY, 1);
    tell(&mut script, 0, control::PORT_READY, 1);
    tell(&mut script, 1, control::PORT_READY, 1);
    // The last of the answers waits until there is room for it.
    hear(&mut script, &message(1, control::PORT_OPEN, 1));
    tell(&mut script, 1, control::PORT_OPEN, 1);
    let (head, _) = script.ask(WORDS, &[b"a kernel's ", b"words\n"], &[]);
    script.given_back(WORDS, head, 0);
    let (head, rooms) = script.ask(AGENT_IN, &[], &[100, 64]);
    script.outside(8);
    script.given_back(AGENT_IN, head, 128);
    for (room, length) in rooms.into_iter().zip([100, 28]) {
        script.holds(room, &vec![8; length]);
    }
    let (head, _) = script.ask(AGENT_OUT, &[b"an agent's"], &[]);
    script.given_back(AGENT_OUT, head, 0);
    script.outside(1);
    script.linger(CONTROL_IN);
    script.out = b"a kernel's words\nan agent's".to_vec();
    scripts.push(script);

    // What comes waits for room, and the end is told.
    let mut script = Script::new();
    tell(&mut script, 1, control::PORT_OPEN, 1);
    script.outside(2);
    let (head, rooms) = script.ask(AGENT_IN, &[], &[64]);
    script.given_back(AGENT_IN, head, 32);
    for room in rooms {
        script.holds(room, &[2; 32]);
    }
    // Kept, for there is nothing more to come.
    script.ask(AGENT_IN, &[], &[64]);
    hear(&mut script, &message(1, control::PORT_OPEN, 0));
    script.outside(255);
    let (head, _) = script.ask(AGENT_OUT, &[b"to nobody"], &[]);
    script.given_back(AGENT_OUT, head, 0);
    scripts.push(script);

    // More than a socket takes at once: the rest is sent when it has been read.
    let mut script = Script::new();
    tell(&mut script, 1, control::PORT_OPEN, 1);
    let times = 4;
    let head = script.ask_of_nothing(AGENT_OUT, times);
    script.given_back(AGENT_OUT, head, 0);
    script.outside(253);
    script.out = vec![0; usize::from(u16::MAX) * times];
    scripts.push(script);

    let mut script = Script::new();
    for again in [false, true] {
        if again {
            script.linger(AGENT_OUT);
            script.start_again();
        }
        tell(&mut script, 1, control::PORT_OPEN, 1);
        let (head, _) = script.ask_indirectly(AGENT_OUT, &[b"over", b" and "], &[]);
        script.given_back(AGENT_OUT, head, 0);
        script.out.extend(b"over and ");
    }
    scripts.push(script);
    scripts
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;

    fn held(outcome: &Outcome, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        let memory = outcome.memory.as_ref().unwrap();
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    /// Runs every script, and looks at what became of it.
    fn come_true(scripts: fn() -> Vec<Script>, run: impl Fn(&[u8]) -> Outcome) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        for (script, input) in scripts().iter().zip(inputs(scripts())) {
            let number = outcomes.len();
            let outcome = run(&input);
            assert_eq!(outcome.faults, [], "script {number}");
            for (address, bytes) in script.expected() {
                let held = held(&outcome, address, bytes.len());
                assert!(
                    held == bytes,
                    "script {number}, at {address:#x}: {held:x?}, not {bytes:x?}"
                );
            }
            assert!(
                outcome.out == script.out,
                "script {number}: what left the machine is {:x?}, not {:x?}",
                outcome.out,
                script.out
            );
            outcomes.push(outcome);
        }
        outcomes
    }

    #[test]
    fn entropy_is_given() {
        use bulkhead_virtio::testing::BUFFERS;
        let outcomes = come_true(entropy_scripts, entropy);
        let bytes = held(&outcomes[0], BUFFERS, 64);
        // Neither as it was nor nothing, in any part of it.
        for piece in bytes.chunks(16) {
            assert!(piece[4..] != [0; 12] && piece[..4] != [0xee; 4]);
        }
    }

    #[test]
    fn memory_goes_back_to_the_host() {
        come_true(balloon_scripts, balloon);
    }

    #[test]
    fn a_disk_is_read_and_written() {
        come_true(scratch_scripts, |bytes| scratch(bytes).unwrap());
    }

    #[test]
    fn a_disk_of_layers_is_read() {
        come_true(layered_scripts, |bytes| layered(bytes).unwrap());
    }

    #[test]
    fn frames_go_both_ways() {
        come_true(net_scripts, |bytes| net(bytes).unwrap());
    }

    #[test]
    fn ports_are_opened_and_carry_bytes() {
        come_true(console_scripts, |bytes| console(bytes).unwrap());
    }
}
