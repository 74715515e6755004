//! Network cards, on a socket of frames in place of a tap.

use std::os::unix::net::UnixDatagram;

use bulkhead_virtio::net::Net;
use bulkhead_virtio::testing::{BUFFERS, Driver, WRITE};

const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const HEADER: usize = 12;

pub fn card() -> (Driver, UnixDatagram) {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    ours.set_nonblocking(true).unwrap();
    let card = Net::on(theirs.into(), [2, 0, 0, 0, 0, 1]);
    let mut driver = Driver::new(Box::new(card));
    driver.start(0, 64);
    (driver, ours)
}

fn offer(driver: &mut Driver, first: u16, sizes: &[u32]) {
    let base = Driver::base(RECEIVE);
    for (index, size) in (first..).zip(sizes) {
        let address = BUFFERS + 0x1_0000 * u64::from(index);
        driver.describe(base, index, address, *size, WRITE, 0);
        driver.publish(RECEIVE, index);
    }
    driver.kick(RECEIVE);
}

fn received(driver: &Driver, index: u16, length: usize) -> Vec<u8> {
    driver.get(BUFFERS + 0x1_0000 * u64::from(index), length)
}

#[test]
fn the_address_is_told() {
    let (driver, _wire) = card();
    let mut mac = [0; 6];
    driver.device.read(0x100, &mut mac);
    assert_eq!(mac, [2, 0, 0, 0, 0, 1]);
}

#[test]
fn frames_go_out_with_their_header() {
    let (mut driver, wire) = card();
    let mut frame = vec![0; HEADER];
    frame.extend(b"a frame");
    driver
        .request(TRANSMIT, &[&frame[..4], &frame[4..]], &[])
        .unwrap();
    let mut found = [0; 100];
    let length = wire.recv(&mut found).unwrap();
    assert_eq!(&found[..length], frame);
}

#[test]
fn frames_of_any_length_leave_the_card_working() {
    let (mut driver, wire) = card();
    for length in [0, 1, 11, 12, 65_000, 70_000, 200_000] {
        let frame = vec![1; length];
        assert!(
            driver.request(TRANSMIT, &[&frame], &[]).is_some(),
            "{length}"
        );
    }
    let mut found = vec![0; 70_000];
    assert_eq!(wire.recv(&mut found).unwrap(), 65_000);
    assert!(wire.recv(&mut found).is_err(), "a frame too many");
    assert!(driver.faults().is_empty());
}

#[test]
fn a_large_frame_is_spread_over_buffers() {
    let (mut driver, wire) = card();
    offer(&mut driver, 0, &[1000, 1000, 1000]);
    let mut frame = vec![0; HEADER];
    frame.extend((0..2000u32).map(|number| u8::try_from(number % 251).unwrap()));
    wire.send(&frame).unwrap();
    driver.pump();
    assert_eq!(driver.used(RECEIVE), [(0, 1000), (1, 1000), (2, 12)]);
    let mut all = received(&driver, 0, 1000);
    all.extend(received(&driver, 1, 1000));
    all.extend(received(&driver, 2, 12));
    assert_eq!(&all[10..12], [3, 0], "the number of buffers");
    assert_eq!(&all[12..], &frame[12..]);
}

#[test]
fn a_frame_waits_for_room_and_none_is_mixed_up() {
    let (mut driver, wire) = card();
    for number in 0..5u8 {
        let mut frame = vec![0; HEADER];
        frame.extend([number; 60]);
        wire.send(&frame).unwrap();
    }
    driver.pump();
    assert!(driver.used(RECEIVE).is_empty());
    offer(&mut driver, 0, &[50]);
    assert!(
        driver.used(RECEIVE).is_empty(),
        "there is no room for all of it"
    );
    offer(&mut driver, 1, &[50, 200, 200]);
    let used = driver.used(RECEIVE);
    assert_eq!(used, [(0, 50), (1, 22), (2, 72), (3, 72)]);
    assert_eq!(received(&driver, 2, 13)[12], 1);
    assert_eq!(received(&driver, 3, 13)[12], 2);
    offer(&mut driver, 4, &[100, 100]);
    assert_eq!(driver.used(RECEIVE).len(), 2);
    assert_eq!(received(&driver, 5, 13)[12], 4);
}

#[test]
fn without_merging_a_frame_has_one_buffer_or_is_lost() {
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let mut driver = Driver::new(Box::new(Net::on(theirs.into(), [2; 6])));
    driver.start(1 << 15, 64);
    ours.send(&[0; 500]).unwrap();
    ours.send(&[1; 90]).unwrap();
    offer(&mut driver, 0, &[100, 100]);
    assert_eq!(driver.used(RECEIVE), [(0, 90)]);
    assert!(driver.faults().is_empty());
}

#[test]
fn a_card_goes_on_behind_another_tap() {
    let (mut driver, _wire) = card();
    offer(&mut driver, 0, &[200]);
    let (ours, theirs) = UnixDatagram::pair().unwrap();
    theirs.set_nonblocking(true).unwrap();
    let other = Net::on(theirs.into(), [9; 6]);
    let mut driver = driver.moved_to(Box::new(other)).unwrap();
    let mut mac = [0; 6];
    driver.device.read(0x100, &mut mac);
    assert_eq!(
        mac,
        [2, 0, 0, 0, 0, 1],
        "the driver has read it and keeps it"
    );
    ours.send(&[3; 40]).unwrap();
    driver.pump();
    assert_eq!(driver.used(RECEIVE), [(0, 40)]);
}

#[test]
fn a_tap_that_is_gone_is_left_alone() {
    // As of a deleted interface: always ready for reading, and every read fails.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut driver = Driver::new(Box::new(Net::on(writer.into(), [2; 6])));
    driver.start(0, 64);
    assert!(driver.comes_to_rest(), "it is asked again and again");
    offer(&mut driver, 0, &[200]);
    assert!(driver.comes_to_rest());
    assert!(driver.request(TRANSMIT, &[&[1; 60]], &[]).is_some());
    assert!(driver.faults().is_empty());
}
