//! Disks.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

use bulkhead_virtio::block::{Backing, Block};
use bulkhead_virtio::testing::{BUFFERS, Driver, NEXT, WRITE};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

pub fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

pub fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(sector.to_le_bytes());
    bytes
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

pub fn scratch(bytes: u64) -> (Driver, File) {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    let disk = Block::new(
        Backing::scratch(file.try_clone().unwrap()).unwrap(),
        "scratch",
    );
    let mut driver = Driver::new(Box::new(disk));
    driver.start(0, 64);
    (driver, file)
}

fn layers() -> Driver {
    let parts = [vec![1; 512], vec![2; 4096], vec![3; 1024]];
    let files = parts.iter().map(|part| {
        let length = u64::try_from(part.len()).unwrap();
        (file(part), length)
    });
    let disk = Block::new(Backing::layers(files).unwrap(), "layers");
    let mut driver = Driver::new(Box::new(disk));
    driver.start(0, 64);
    driver
}

/// The status of a request that writes these bytes, or of one without data.
fn status(driver: &mut Driver, head: &[u8], data: &[&[u8]]) -> u8 {
    let mut readable = vec![head];
    readable.extend(data);
    let (written, rooms) = driver.request(0, &readable, &[1]).unwrap();
    assert_eq!(written, 1);
    rooms[0][0]
}

#[test]
fn many_files_are_one_disk() {
    let mut driver = layers();
    assert_eq!(driver.read(0x100), 11);
    let (written, rooms) = driver
        .request(0, &[&header(IN, 0)], &[700, 4420, 512, 1])
        .unwrap();
    assert_eq!(written, 5633);
    assert_eq!(rooms[3], [0]);
    let all = rooms[..3].concat();
    assert_eq!(&all[..512], &[1; 512]);
    assert_eq!(&all[512..4608], &[2; 4096]);
    assert_eq!(&all[4608..], &[3; 1024]);
    // One that begins in the middle of a file.
    let (_, rooms) = driver.request(0, &[&header(IN, 8)], &[1024, 1]).unwrap();
    assert_eq!(rooms[0][..512], [2; 512]);
    assert_eq!(rooms[0][512..], [3; 512]);
}

#[test]
fn a_layer_cannot_be_written() {
    let mut driver = layers();
    driver.write(0x14, 0);
    assert_ne!(driver.read(0x10) & 1 << 5, 0, "VIRTIO_BLK_F_RO");
    assert_eq!(status(&mut driver, &header(OUT, 0), &[&[9; 512]]), 1);
    assert_eq!(
        status(&mut driver, &header(DISCARD, 0), &[&range(0, 1, 0)]),
        2
    );
    assert_eq!(status(&mut driver, &header(FLUSH, 0), &[]), 0);
    let (_, rooms) = driver.request(0, &[&header(IN, 0)], &[512, 1]).unwrap();
    assert_eq!(rooms[0], [1; 512]);
}

#[test]
fn a_scratch_disk_is_written_and_read() {
    let (mut driver, mut file) = scratch(1 << 20);
    let data = vec![7; 1024];
    // The header may be cut anywhere.
    let head = header(OUT, 3);
    let (_, rooms) = driver
        .request(
            0,
            &[&head[..5], &head[5..], &data[..100], &data[100..]],
            &[1],
        )
        .unwrap();
    assert_eq!(rooms[0], [0]);
    assert_eq!(status(&mut driver, &header(FLUSH, 0), &[]), 0);
    file.seek(SeekFrom::Start(3 * 512)).unwrap();
    let mut found = vec![0; 1024];
    file.read_exact(&mut found).unwrap();
    assert_eq!(found, data);
    let (written, rooms) = driver.request(0, &[&header(IN, 3)], &[1024, 1]).unwrap();
    assert_eq!((written, &rooms[0]), (1025, &data));
}

#[test]
fn what_is_discarded_is_a_hole() {
    let (mut driver, file) = scratch(1 << 20);
    file.write_all_at(&vec![5; 1 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let full = file.metadata().unwrap().blocks();
    let ranges = [range(0, 1024, 0), range(1024, 512, 0)].concat();
    assert_eq!(status(&mut driver, &header(DISCARD, 0), &[&ranges]), 0);
    assert!(file.metadata().unwrap().blocks() <= full / 2);
    let zeroed = range(2040, 8, 1);
    assert_eq!(status(&mut driver, &header(WRITE_ZEROES, 0), &[&zeroed]), 0);
    let zeroed = range(1600, 8, 0);
    assert_eq!(status(&mut driver, &header(WRITE_ZEROES, 0), &[&zeroed]), 0);
    let mut end = [9; 4096];
    file.read_exact_at(&mut end, 2040 * 512).unwrap();
    assert_eq!(end, [0; 4096]);
    file.read_exact_at(&mut end, 1600 * 512).unwrap();
    assert_eq!(end, [0; 4096]);
}

#[test]
fn requests_that_cannot_be_are_refused_and_change_nothing() {
    let (mut driver, file) = scratch(1 << 20);
    file.write_all_at(&[5; 4096], 0).unwrap();
    let before = file.metadata().unwrap().blocks();
    let two = range(0, 8, 0);
    let cases: [(Vec<u8>, Vec<u8>, u8); 11] = [
        // Beyond the end, also by a sum that wraps around.
        (header(OUT, 2048), vec![0; 512], 1),
        (header(OUT, 2047), vec![0; 1024], 1),
        (header(OUT, u64::MAX), vec![0; 512], 1),
        (header(OUT, u64::MAX / 512), vec![0; 512], 1),
        // Not whole sectors.
        (header(OUT, 0), vec![0; 100], 1),
        // Ranges that are none, too long, or with flags that are not there.
        (header(DISCARD, 0), vec![0; 15], 1),
        (header(DISCARD, 0), range(2047, 2, 0), 1),
        (header(DISCARD, 0), range(u64::MAX, 1, 0), 1),
        (
            header(DISCARD, 0),
            [two.clone(), range(0, 8, 1)].concat(),
            2,
        ),
        (header(DISCARD, 0), two.repeat(17), 1),
        (header(0x77, 0), vec![], 2),
    ];
    for (head, data, expected) in cases {
        let found = status(&mut driver, &head, &[&data]);
        assert_eq!(found, expected, "{head:?} {data:?}");
    }
    let (_, rooms) = driver.request(0, &[&header(IN, 2048)], &[512, 1]).unwrap();
    assert_eq!(rooms[1], [1]);
    assert_eq!(rooms[0], [0xee; 512]);
    assert_eq!(file.metadata().unwrap().blocks(), before);
    assert_eq!(file.metadata().unwrap().len(), 1 << 20);
    assert!(driver.faults().is_empty());
}

#[test]
fn a_request_without_header_or_status_breaks_the_disk() {
    let (mut driver, _file) = scratch(1 << 20);
    assert!(driver.request(0, &[&[0; 15]], &[1]).is_none());
    assert_eq!(driver.faults().len(), 1);
    let (mut driver, _file) = scratch(1 << 20);
    assert!(driver.request(0, &[&header(IN, 0)], &[]).is_none());
    assert_eq!(driver.faults().len(), 1);
}

/// Makes a request of sectors from the third on, whose data is in these places.
fn scattered(driver: &mut Driver, kind: u32, places: &[(u64, u32)], status: u64) {
    let base = Driver::base(0);
    let flags = if kind == IN { WRITE } else { 0 };
    driver.put(BUFFERS, &header(kind, 3));
    driver.describe(base, 0, BUFFERS, 16, NEXT, 1);
    let mut last = 1;
    for (address, length) in places {
        driver.describe(base, last, *address, *length, flags | NEXT, last + 1);
        last += 1;
    }
    driver.describe(base, last, status, 1, WRITE, 0);
    driver.publish(0, 0);
    driver.kick(0);
}

#[test]
fn data_goes_where_it_is_wanted_in_the_order_of_its_pieces() {
    let (mut driver, file) = scratch(1 << 20);
    let data: Vec<u8> = (0..1024u32)
        .map(|at| u8::try_from(at % 250 + 1).unwrap())
        .collect();
    file.write_all_at(&data, 3 * 512).unwrap();
    let (base, at) = (Driver::base(0), BUFFERS + 0x1000);
    let table = base;
    let (available, used) = (base + 0x4000, base + 0x8000);

    // Each over a part of the one before, and the status over data and over the header.
    scattered(&mut driver, IN, &[(at, 512), (at + 256, 512)], at + 100);
    assert_eq!(driver.used(0), [(0, 1025)]);
    let mut expected = [&data[..256], &data[512..]].concat();
    expected[100] = 0;
    assert_eq!(driver.get(at, 768), expected);
    scattered(&mut driver, IN, &[(BUFFERS, 512)], BUFFERS);
    assert_eq!(driver.used(0), [(0, 513)]);
    expected = data[..512].to_vec();
    expected[0] = 0;
    assert_eq!(driver.get(BUFFERS, 512), expected);

    // Over the descriptors, which have been looked at.
    scattered(&mut driver, IN, &[(table, 512), (table, 512)], at);
    assert_eq!(driver.used(0), [(0, 1025)]);
    assert_eq!(driver.get(table, 512), data[512..]);
    assert_eq!(driver.get(at, 1), [0]);

    // Over the device's ring, in which what was done is entered afterwards.
    scattered(&mut driver, IN, &[(used, 512)], at);
    expected = data[..512].to_vec();
    expected[2..4].copy_from_slice(&4u16.to_le_bytes());
    expected[28..32].copy_from_slice(&0u32.to_le_bytes());
    expected[32..36].copy_from_slice(&513u32.to_le_bytes());
    assert_eq!(driver.get(used, 512), expected);
    assert!(driver.faults().is_empty());

    // Out of the descriptors and the rings.
    for place in [table, available, used] {
        driver.start(0, 64);
        scattered(&mut driver, OUT, &[(place, 512)], at);
        assert_eq!(driver.get(at, 1), [0]);
        let mut found = [0; 512];
        file.read_exact_at(&mut found, 3 * 512).unwrap();
        let mut expected = driver.get(place, 512);
        if place == used {
            // Before this request was entered, which is in the place of one like it.
            expected[2..4].fill(0);
        }
        assert_eq!(found[..], expected);
    }
    assert!(driver.faults().is_empty());

    // Over the driver's ring, which then jumps.
    driver.start(0, 64);
    file.write_all_at(&data, 3 * 512).unwrap();
    scattered(&mut driver, IN, &[(available, 512)], at);
    assert_eq!(driver.get(available, 512), data[..512]);
    assert_eq!(driver.used(0), [(0, 513)], "it was done before");
    assert_eq!(driver.faults().len(), 1);
    assert!(
        driver.faults()[0].contains("is damaged"),
        "{:?}",
        driver.faults()
    );
    driver.start(0, 64);
    scattered(&mut driver, IN, &[(at, 512)], at + 512);
    assert_eq!(driver.used(0), [(0, 513)]);
}

#[test]
fn pieces_without_a_byte_change_nothing() {
    let (mut driver, file) = scratch(1 << 20);
    file.write_all_at(&[5; 512], 3 * 512).unwrap();
    let at = BUFFERS + 0x1000;
    let places = [(at, 0), (at, 100), (0, 0), (at + 100, 412), (at, 0)];
    scattered(&mut driver, IN, &places, at + 512);
    assert_eq!(driver.used(0), [(0, 513)]);
    assert_eq!(driver.get(at, 513), [&[5; 512][..], &[0]].concat());
    // No data at all is no sector.
    scattered(&mut driver, IN, &[(at, 0)], at);
    assert_eq!(driver.used(0), [(0, 1)]);
    assert_eq!(driver.get(at, 2), [0, 5]);
    // A status without a byte is none: the last byte of data is in its place.
    let base = Driver::base(0);
    for length in [0, 513] {
        driver.start(0, 64);
        driver.put(BUFFERS, &header(IN, 3));
        driver.describe(base, 0, BUFFERS, 16, NEXT, 1);
        driver.describe(base, 1, at, length, WRITE | NEXT, 2);
        driver.describe(base, 2, at + 0x1000, 0, WRITE, 0);
        driver.publish(0, 0);
        driver.kick(0);
        if length == 0 {
            assert_eq!(driver.faults().len(), 1);
        } else {
            assert_eq!(driver.used(0), [(0, 513)]);
        }
    }
    assert_eq!(driver.faults().len(), 1);
}

#[test]
fn what_was_not_accepted_is_not_done() {
    const DISCARD_FEATURE: u64 = 1 << 13;
    const WRITE_ZEROES_FEATURE: u64 = 1 << 14;
    let (mut driver, file) = scratch(1 << 20);
    file.write_all_at(&[5; 8192], 0).unwrap();
    for (without, discarded, zeroed) in [
        (DISCARD_FEATURE | WRITE_ZEROES_FEATURE, 2, 2),
        (DISCARD_FEATURE, 2, 0),
        (WRITE_ZEROES_FEATURE, 0, 2),
    ] {
        driver.start(without, 64);
        let found = status(&mut driver, &header(DISCARD, 0), &[&range(0, 8, 0)]);
        assert_eq!(found, discarded);
        for flags in [0, 1] {
            let zeroes = range(8, 8, flags);
            let found = status(&mut driver, &header(WRITE_ZEROES, 0), &[&zeroes]);
            assert_eq!(found, zeroed);
        }
        let mut bytes = [0; 8192];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let expected = |status: u8| if status == 0 { [0; 4096] } else { [5; 4096] };
        assert_eq!(bytes[..4096], expected(discarded));
        assert_eq!(bytes[4096..], expected(zeroed));
        file.write_all_at(&[5; 8192], 0).unwrap();
    }
}

#[test]
fn a_driver_that_does_not_flush_finds_its_writes_on_the_disk() {
    const FLUSH_FEATURE: u64 = 1 << 9;
    // It takes what is written, and has nothing that could be put on a disk.
    let file = File::options().write(true).open("/dev/null").unwrap();
    let bytes = 1 << 20;
    let disk = Block::new(Backing::Scratch { file, bytes }, "null");
    let mut driver = Driver::new(Box::new(disk));
    driver.start(0, 64);
    let write = |driver: &mut Driver| status(driver, &header(OUT, 0), &[&[9; 512]]);
    assert_eq!(write(&mut driver), 0, "it is in the cache");
    assert_eq!(status(&mut driver, &header(FLUSH, 0), &[]), 1);
    driver.start(FLUSH_FEATURE, 64);
    assert_eq!(write(&mut driver), 1, "it is not on the disk");

    // One that has a disk has it there; in a machine that has moved, too.
    let (mut driver, file) = scratch(1 << 20);
    driver.start(FLUSH_FEATURE, 64);
    assert_eq!(write(&mut driver), 0);
    let zeroes = range(8, 8, 0);
    let found = status(&mut driver, &header(WRITE_ZEROES, 0), &[&zeroes]);
    assert_eq!(found, 0);
    let file = file.try_clone().unwrap();
    let other = Block::new(Backing::scratch(file).unwrap(), "scratch");
    let mut driver = driver.moved_to(Box::new(other)).unwrap();
    assert_eq!(write(&mut driver), 0);
}

#[test]
fn the_serial_is_told() {
    let mut driver = layers();
    let (_, rooms) = driver.request(0, &[&header(GET_ID, 0)], &[20, 1]).unwrap();
    assert_eq!(rooms[0], *b"layers\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn a_file_that_ended_early_is_an_error() {
    let short = Backing::layers([(file(&[1; 512]), 4096)]).unwrap();
    let mut driver = Driver::new(Box::new(Block::new(short, "layers")));
    driver.start(0, 64);
    let (_, rooms) = driver.request(0, &[&header(IN, 0)], &[1024, 1]).unwrap();
    assert_eq!(rooms[1], [1]);
}

#[test]
fn a_disk_goes_on_with_another_file() {
    let (mut driver, file) = scratch(1 << 20);
    assert_eq!(status(&mut driver, &header(OUT, 0), &[&[4; 512]]), 0);
    let copy = tempfile::tempfile().unwrap();
    copy.set_len(1 << 20).unwrap();
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 0).unwrap();
    copy.write_all_at(&sector, 0).unwrap();
    let other = Block::new(
        Backing::scratch(copy.try_clone().unwrap()).unwrap(),
        "scratch",
    );
    let mut driver = driver.moved_to(Box::new(other)).unwrap();
    assert_eq!(status(&mut driver, &header(OUT, 1), &[&[6; 512]]), 0);
    copy.read_exact_at(&mut sector, 512).unwrap();
    assert_eq!(sector, [6; 512]);
    file.read_exact_at(&mut sector, 512).unwrap();
    assert_eq!(sector, [0; 512]);
    // One of another size is not the same disk.
    let small = tempfile::tempfile().unwrap();
    small.set_len(4096).unwrap();
    let small = Block::new(Backing::scratch(small).unwrap(), "scratch");
    assert!(driver.moved_to(Box::new(small)).is_err());
}
