//! Chains that take long: whoever else is served by the same thread has its turn, and
//! whoever wants the thread to stand or to end has it do so.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use bulkhead_virtio::QUEUE_NOTIFY;
use bulkhead_virtio::balloon::Balloon;
use bulkhead_virtio::block::{Backing, Block};
use bulkhead_virtio::console::Console;
use bulkhead_virtio::entropy::Entropy;
use bulkhead_virtio::testing::{BUFFERS, Driver, INDIRECT, NEXT, WRITE};

use crate::block::{file, header};
use crate::event_loop::{Running, until};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const DISCARD: u32 = 11;

const PAGE: u64 = 4096;
const MIB: usize = 1 << 20;
/// Where data is: 4 MiB that every descriptor of a long chain leads to.
const DATA: u64 = BUFFERS + 0x10_0000;
const DATA_LENGTH: u32 = 4 << 20;

/// Writes an indirect table at the beginning of the buffers, and a chain of it.
fn indirect(driver: &mut Driver, queue: usize, head: u16, pieces: &[(u64, u32, u16)]) {
    let table = BUFFERS + 0x8000;
    let last = pieces.len() - 1;
    for (index, (address, length, flags)) in pieces.iter().enumerate() {
        let next = if index == last { 0 } else { NEXT };
        let index = u16::try_from(index).unwrap();
        driver.describe(table, index, *address, *length, flags | next, index + 1);
    }
    let length = u32::try_from(16 * pieces.len()).unwrap();
    let base = Driver::base(queue);
    driver.describe(base, head, table, length, INDIRECT, 0);
    driver.publish(queue, head);
}

/// A disk's request of so many times the same 4 MiB.
fn long(driver: &mut Driver, head: u16, kind: u32, times: usize) {
    driver.put(BUFFERS, &header(kind, 0));
    let flags = if kind == IN { WRITE } else { 0 };
    let mut pieces = vec![(BUFFERS, 16, 0)];
    pieces.extend(vec![(DATA, DATA_LENGTH, flags); times]);
    pieces.push((BUFFERS + 64, 1, WRITE));
    indirect(driver, 0, head, &pieces);
}

/// Turns until the device wants no more.
fn turns(driver: &Driver, queue: usize) -> u32 {
    let mut count = 1;
    while driver.turn(queue) {
        count += 1;
        assert!(count < 100_000, "it never ends");
    }
    count
}

#[test]
fn a_long_read_goes_on_where_it_was() {
    let layers = (0..12u8).map(|number| (file(&vec![number; 3 * MIB]), 3 << 20));
    let disk = Block::new(Backing::layers(layers).unwrap(), "layers");
    let mut driver = Driver::new(Box::new(disk));
    driver.start(0, 64);
    long(&mut driver, 0, IN, 9);
    assert!(driver.turn(0), "36 MiB in one turn");
    assert!(driver.used(0).is_empty());
    turns(&driver, 0);
    assert_eq!(driver.used(0), [(0, (36 << 20) + 1)]);
    assert_eq!(driver.get(BUFFERS + 64, 1), [0]);
    let mut last = vec![10; MIB];
    last.extend(vec![11; 3 * MIB]);
    assert!(driver.get(DATA, 4 * MIB) == last);
}

#[test]
fn a_long_write_goes_on_where_it_was() {
    let (mut driver, file) = crate::block::scratch(33 << 20);
    let data: Vec<u8> = (0..4 * MIB)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    driver.put(DATA, &data);
    long(&mut driver, 5, OUT, 8);
    assert!(driver.turn(0), "32 MiB in one turn");
    // The rest is another device's, as of a machine that moves in between. What was done is
    // done again.
    let other = Block::new(
        Backing::scratch(file.try_clone().unwrap()).unwrap(),
        "scratch",
    );
    let mut driver = driver.moved_to(Box::new(other)).unwrap();
    assert!(turns(&driver, 0) > 1);
    assert_eq!(driver.used(0), [(5, 1)]);
    assert_eq!(driver.get(BUFFERS + 64, 1), [0]);
    let mut found = vec![0; 4 * MIB];
    for at in 0..8u64 {
        file.read_exact_at(&mut found, at << 22).unwrap();
        assert!(found == data, "{at}");
    }
    file.read_exact_at(&mut found[..MIB], 32 << 20).unwrap();
    assert!(found[..MIB] == vec![0; MIB]);
}

#[test]
fn a_chain_that_shrinks_meanwhile_is_a_shorter_one() {
    let (mut driver, file) = crate::block::scratch(33 << 20);
    long(&mut driver, 0, OUT, 8);
    assert!(driver.turn(0));
    driver.put(DATA, &[7; 512]);
    // The first piece becomes one sector, and the only one.
    let table = BUFFERS + 0x8000;
    driver.describe(table, 1, DATA, 512, NEXT, 9);
    assert_eq!(turns(&driver, 0), 1);
    assert_eq!(driver.used(0), [(0, 1)]);
    assert!(driver.faults().is_empty());
    let mut found = [1; 512];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(found, [0; 512], "it was done before");
}

#[test]
fn many_ranges_and_flushes_take_turns() {
    let (mut driver, _file) = crate::block::scratch(40 << 30);
    driver.put(BUFFERS, &header(DISCARD, 0));
    for range in 0..16u64 {
        let mut bytes = (range << 22).to_le_bytes().to_vec();
        bytes.extend((1u32 << 22).to_le_bytes());
        bytes.extend([0; 4]);
        driver.put(DATA + 16 * range, &bytes);
    }
    let pieces = [(BUFFERS, 16, 0), (DATA, 256, 0), (BUFFERS + 64, 1, WRITE)];
    indirect(&mut driver, 0, 0, &pieces);
    assert!(driver.turn(0), "32 GiB in one turn");
    assert!(turns(&driver, 0) > 4);
    assert_eq!(driver.used(0), [(0, 1)]);
    assert_eq!(driver.get(BUFFERS + 64, 1), [0]);

    driver.put(BUFFERS, &header(FLUSH, 0));
    for head in 0..3 {
        indirect(&mut driver, 0, head, &[pieces[0], pieces[2]]);
    }
    for head in 0..3 {
        assert_eq!(driver.turn(0), head < 2);
        assert_eq!(driver.used(0), [(head, 1)]);
    }
}

/// As many page numbers as a chain may have: every other page, so that none are neighbours, of
/// 256 pages of memory.
fn scattered_pages() -> Vec<u8> {
    let first = u32::try_from(DATA / PAGE).unwrap();
    (0..65536)
        .flat_map(|index| (first + 2 * (index % 128)).to_le_bytes())
        .collect()
}

#[test]
fn a_chain_of_many_pages_takes_turns_and_gives_each_up_once() {
    let (balloon, handle) = Balloon::new();
    let mut driver = Driver::new(Box::new(balloon));
    driver.start(0, 64);
    let at = DATA + 0x20_0000;
    let numbers = scattered_pages();
    driver.put(at, &numbers);
    driver.put(DATA, &[7]);
    let length = u32::try_from(numbers.len()).unwrap();
    indirect(&mut driver, 0, 0, &[(at, length, 0)]);
    assert!(driver.turn(0), "65,536 pages in one turn");
    assert!(driver.used(0).is_empty());
    assert!(handle.returned() <= 2048 * PAGE, "{}", handle.returned());
    assert!(turns(&driver, 0) > 16);
    assert_eq!(driver.used(0), [(0, 0)]);
    assert_eq!(handle.returned(), 65536 * PAGE);
    assert_eq!(driver.get(DATA, 1), [0]);
    // Numbers of no pages take time as well.
    driver.put(at, &vec![0xff; numbers.len()]);
    for head in 0..16 {
        indirect(&mut driver, 0, head, &[(at, length, 0)]);
    }
    assert!(driver.turn(0));
    assert!(turns(&driver, 0) > 1);
    assert_eq!(driver.used(0).len(), 16);
    assert_eq!(handle.returned(), 65536 * PAGE);
}

#[test]
fn a_report_of_many_pages_takes_turns() {
    let (balloon, handle) = Balloon::new();
    let mut driver = Driver::new(Box::new(balloon));
    driver.start(0, 64);
    let place = (DATA, 4096, WRITE);
    indirect(&mut driver, 2, 0, &[place; 1024]);
    assert!(driver.turn(2), "1024 pages in one turn");
    assert!(driver.used(2).is_empty());
    assert_eq!(turns(&driver, 2), 1);
    assert_eq!(driver.used(2), [(0, 0)]);
    assert_eq!(handle.returned(), 1024 * PAGE);
}

#[test]
fn a_long_word_to_the_agent_arrives_whole_and_once() {
    let (mut agent, port) = UnixStream::pair().unwrap();
    let mut driver = Driver::new(Box::new(Console::new(port.into(), None).unwrap()));
    driver.start(0, 64);
    let data: Vec<u8> = (0..4 * MIB)
        .map(|at| u8::try_from(at % 253).unwrap())
        .collect();
    driver.put(DATA, &data);
    indirect(&mut driver, 5, 0, &[(DATA, DATA_LENGTH, 0); 10]);
    // Somebody who hears faster than it can be said, mostly.
    let hearing = thread::spawn(move || {
        let mut heard = vec![0; 4 * MIB];
        for time in 0..10 {
            agent.read_exact(&mut heard).unwrap();
            assert!(heard == data, "{time}");
        }
        agent.set_nonblocking(true).unwrap();
        let more = agent.read(&mut heard).map_err(|error| error.kind());
        assert_eq!(more, Err(ErrorKind::WouldBlock));
    });
    let _ = driver.turn(5);
    assert!(driver.used(5).is_empty(), "40 MiB in one turn");
    let mut used = Vec::new();
    until("the end of it", || {
        driver.pump();
        used.extend(driver.used(5));
        !used.is_empty()
    });
    assert_eq!(used, [(0, 0)]);
    hearing.join().unwrap();
    assert!(driver.faults().is_empty());
}

/// A disk of nearly 4 GiB that is one file many times.
fn large() -> (Driver, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(64 << 20).unwrap();
    let layers = (0..63).map(|_| (file.try_clone().unwrap(), 64 << 20));
    let disk = Block::new(Backing::layers(layers).unwrap(), "layers");
    let mut driver = Driver::new(Box::new(disk));
    driver.start(0, 64);
    (driver, file)
}

#[test]
fn a_busy_disk_holds_up_nobody() {
    let (mut disk, _file) = large();
    for head in 0..64 {
        // 4000 MiB each: a minute in all, or more.
        long(&mut disk, head, IN, 1000);
    }
    let mut entropy = Driver::new(Box::new(Entropy::new()));
    entropy.start(0, 16);
    let mut running = Running::new(&[&disk, &entropy]);
    let soon = |what: &str, since: Instant| {
        // Milliseconds, where nobody else uses the processor.
        let after = since.elapsed();
        assert!(after < Duration::from_secs(3), "{what} after {after:?}");
    };
    disk.write(QUEUE_NOTIFY, 0);
    thread::sleep(Duration::from_millis(30));

    let since = Instant::now();
    crate::event_loop::ask(&mut entropy);
    until("random bytes", || !entropy.used(0).is_empty());
    soon("random bytes", since);

    // A CPU that reads a register.
    let since = Instant::now();
    assert_eq!(disk.read(0x70), 15);
    soon("the status", since);

    for _ in 0..3 {
        let since = Instant::now();
        running.serving.pause();
        soon("a pause", since);
        disk.put(DATA, &[9]);
        thread::sleep(Duration::from_millis(5));
        assert_eq!(disk.get(DATA, 1), [9], "it does not stand");
        running.serving.resume();
        until("the disk goes on", || disk.get(DATA, 1) == [0]);
    }

    let since = Instant::now();
    running.stop();
    soon("the end", since);
    assert!(disk.used(0).len() < 64, "it was not busy");
    assert!(disk.faults().is_empty());
}

#[test]
fn a_disk_that_is_reset_at_work_forgets_what_it_did() {
    let (mut disk, file) = large();
    file.write_all_at(&[6; 4096], 0).unwrap();
    let mut running = Running::new(&[&disk]);
    for round in 0..20u64 {
        disk.bring_up(0, 64);
        long(&mut disk, 0, IN, 1000);
        disk.write(QUEUE_NOTIFY, 0);
        thread::sleep(Duration::from_micros(500 * (round % 7)));
        disk.write(0x70, 0);
        let used = disk.get(Driver::base(0) + 0x8000, 1024);
        disk.put(DATA, &[9; 4096]);
        thread::sleep(Duration::from_millis(2));
        assert_eq!(disk.get(DATA, 4096), [9; 4096], "it goes on");
        assert_eq!(disk.get(Driver::base(0) + 0x8000, 1024), used);

        disk.bring_up(0, 64);
        let pieces = [
            (BUFFERS, 16, 0),
            (DATA, 4096, WRITE),
            (BUFFERS + 64, 1, WRITE),
        ];
        disk.put(BUFFERS, &header(IN, 0));
        indirect(&mut disk, 0, 3, &pieces);
        disk.write(QUEUE_NOTIFY, 0);
        let mut answers = Vec::new();
        until("an answer", || {
            answers.extend(disk.used(0));
            !answers.is_empty()
        });
        assert_eq!(answers, [(3, 4097)]);
        assert_eq!(disk.get(DATA, 4096), [6; 4096]);
    }
    running.stop();
}

#[test]
fn a_busy_balloon_holds_up_nobody() {
    let (balloon, _handle) = Balloon::new();
    let mut driver = Driver::new(Box::new(balloon));
    driver.start(0, 128);
    let at = DATA + 0x20_0000;
    let numbers = scattered_pages();
    driver.put(at, &numbers);
    let length = u32::try_from(numbers.len()).unwrap();
    for head in 0..128 {
        driver.describe(Driver::base(0), head, at, length, 0, 0);
        driver.publish(0, head);
    }
    let mut running = Running::new(&[&driver]);
    driver.write(QUEUE_NOTIFY, 0);
    thread::sleep(Duration::from_millis(10));
    running.stop();
    assert!(driver.used(0).len() < 128, "all eight million pages first");
}
