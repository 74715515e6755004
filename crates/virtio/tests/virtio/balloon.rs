//! Memory that goes back.

use bulkhead_virtio::balloon::Balloon;
use bulkhead_virtio::testing::{BUFFERS, Driver, MEMORY, WRITE};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const REPORTING: usize = 2;
const PAGE: u64 = 4096;

fn numbers(pages: &[u64]) -> Vec<u8> {
    pages
        .iter()
        .flat_map(|page| u32::try_from(*page).unwrap().to_le_bytes())
        .collect()
}

#[test]
fn pages_that_are_given_up_read_as_zeroes() {
    let (balloon, handle) = Balloon::new();
    let mut driver = Driver::new(Box::new(balloon));
    driver.start(0, 64);
    let first = BUFFERS / PAGE + 100;
    for page in 0..5 {
        driver.put((first + page) * PAGE, &[7; 4096]);
    }
    // In descending order, as Linux does, and one elsewhere.
    let given = numbers(&[first + 2, first + 1, first, first + 4]);
    driver
        .request(INFLATE, &[&given[..6], &given[6..]], &[])
        .unwrap();
    for (page, byte) in [(0, 0), (1, 0), (2, 0), (3, 7), (4, 0)] {
        assert_eq!(driver.get((first + page) * PAGE, 1), [byte], "page {page}");
    }
    assert_eq!(handle.returned(), 4 * PAGE);
    driver.request(DEFLATE, &[&given], &[]).unwrap();
    driver.write(0x104, 4);
    assert_eq!(handle.actual(), 4 * PAGE);
}

#[test]
fn a_target_is_told() {
    let (balloon, handle) = Balloon::new();
    let mut driver = Driver::new(Box::new(balloon));
    driver.start(0, 64);
    let _ = driver.interrupts();
    handle.set_target(10 * PAGE);
    driver.device.notify_configuration();
    assert_eq!(driver.read(0x100), 10);
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.read(0x60), 2);
    assert_eq!(driver.read(0xfc), 1);
}

#[test]
fn free_pages_are_released_and_partial_ones_kept() {
    let (balloon, handle) = Balloon::new();
    let mut driver = Driver::new(Box::new(balloon));
    driver.start(0, 64);
    let base = Driver::base(REPORTING);
    let at = BUFFERS + 0x10_0000;
    driver.put(at, &[7; 4 * 4096]);
    driver.describe(base, 0, at + 10, 3 * 4096, WRITE, 0);
    driver.publish(REPORTING, 0);
    driver.kick(REPORTING);
    assert_eq!(driver.used(REPORTING), [(0, 0)]);
    let firsts: Vec<u8> = (0..4)
        .map(|page| driver.get(at + page * PAGE, 1)[0])
        .collect();
    assert_eq!(firsts, [7, 0, 0, 7]);
    assert_eq!(handle.returned(), 2 * PAGE);
}

#[test]
fn what_is_no_memory_is_no_harm() {
    let (balloon, handle) = Balloon::new();
    let mut driver = Driver::new(Box::new(balloon));
    driver.start(0, 64);
    let end = MEMORY / PAGE;
    let given = numbers(&[end, end + 1, u64::from(u32::MAX), u64::from(u32::MAX) - 1]);
    driver.request(INFLATE, &[&given], &[]).unwrap();
    let base = Driver::base(REPORTING);
    for (index, address, length) in [
        (0u16, u64::MAX - 5, 4096u32),
        (1, MEMORY - 4096, u32::MAX),
        (2, 0, 0),
        (3, u64::MAX, u32::MAX),
    ] {
        driver.describe(base, index, address, length, WRITE, 0);
        driver.publish(REPORTING, index);
    }
    driver.kick(REPORTING);
    assert_eq!(driver.used(REPORTING).len(), 4);
    assert_eq!(handle.returned(), 0);
    assert!(driver.faults().is_empty());
}

#[test]
fn a_balloon_goes_on_half_inflated() {
    let (balloon, handle) = Balloon::new();
    let mut driver = Driver::new(Box::new(balloon));
    driver.start(0, 64);
    handle.set_target(3 * PAGE);
    driver.device.notify_configuration();
    let first = BUFFERS / PAGE + 100;
    for page in 0..3 {
        driver.put((first + page) * PAGE, &[7; 4096]);
    }
    driver
        .request(INFLATE, &[&numbers(&[first, first + 1])], &[])
        .unwrap();
    driver.write(0x104, 2);
    // The third is on its way, and nobody has looked at it.
    driver.put(BUFFERS, &numbers(&[first + 2]));
    driver.describe(Driver::base(INFLATE), 0, BUFFERS, 4, 0, 0);
    driver.publish(INFLATE, 0);
    let (other, handle) = Balloon::new();
    let mut driver = driver.moved_to(Box::new(other)).unwrap();
    driver.pump();
    assert_eq!(driver.used(INFLATE), [(0, 0)]);
    assert_eq!(driver.get((first + 2) * PAGE, 1), [0]);
    assert_eq!(handle.actual(), 2 * PAGE);
    assert_eq!(driver.read(0x100), 3, "what the host wants of it");
    assert_eq!(driver.read(0xfc), 1, "the generation of that");
}
