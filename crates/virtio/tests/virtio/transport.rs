//! Registers, in order and out of it.

use bulkhead_virtio::VirtioDevice;
use bulkhead_virtio::balloon::Balloon;
use bulkhead_virtio::entropy::Entropy;
use bulkhead_virtio::testing::{BUFFERS, Driver, NEXT, WRITE};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::every::Case;

const ENTROPY_QUEUE: usize = 0;

fn entropy() -> Driver {
    Driver::new(Box::new(Entropy::new()))
}

#[test]
fn a_driver_finds_its_device() {
    let driver = entropy();
    assert_eq!(driver.read(0x00), 0x7472_6976);
    assert_eq!(driver.read(0x04), 2);
    assert_eq!(driver.read(0x08), 4);
    assert_eq!(driver.read(0x34), 64);
    // No shared memory.
    assert_eq!(driver.read(0xb0), u32::MAX);
    driver.write(0x30, 7);
    assert_eq!(driver.read(0x34), 0, "a queue that is not there");
}

#[test]
fn random_bytes_arrive_and_the_driver_is_told() {
    let mut driver = entropy();
    driver.start(0, 16);
    let _ = driver.interrupts();
    let (written, rooms) = driver.request(ENTROPY_QUEUE, &[], &[32, 33]).unwrap();
    assert_eq!(written, 65);
    assert_ne!(rooms[0], vec![0xee; 32]);
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.read(0x60), 1);
    driver.write(0x64, 1);
    assert_eq!(driver.read(0x60), 0);
}

#[test]
fn rooms_without_a_byte_get_none() {
    let mut driver = entropy();
    driver.start(0, 16);
    for (rooms, expected) in [(&[0][..], 0), (&[0, 0], 0), (&[0, 7, 0, 9], 16)] {
        let (written, rooms) = driver.request(ENTROPY_QUEUE, &[], rooms).unwrap();
        assert_eq!(written, expected);
        let missing = rooms
            .iter()
            .any(|room| room.len() > 6 && *room == vec![0xee; room.len()]);
        assert!(!missing, "{rooms:?}");
    }
    // Nor do those that are there to be read.
    let (written, _) = driver.request(ENTROPY_QUEUE, &[b"seed", b""], &[]).unwrap();
    assert_eq!(written, 0);
    assert_eq!(driver.get(BUFFERS, 4), b"seed");
    assert!(driver.faults().is_empty());
}

#[test]
fn a_driver_that_wants_no_interrupts_gets_none() {
    const EVENT_IDX: u64 = 1 << 29;
    let mut driver = entropy();
    driver.start(EVENT_IDX, 16);
    let flags = Driver::base(ENTROPY_QUEUE) + 0x4000;
    let _ = driver.interrupts();
    for (wanted, expected) in [(1u16, 0), (0, 1), (0xfffe, 1), (0xffff, 0), (0, 1)] {
        driver.put(flags, &wanted.to_le_bytes());
        assert!(driver.request(ENTROPY_QUEUE, &[], &[32]).is_some());
        assert_eq!(driver.interrupts(), expected, "{wanted:#x}");
        assert_eq!(driver.read(0x60), u32::from(expected > 0));
        driver.write(0x64, 1);
    }
    // Where it says by number which it wants, the flag means nothing (section 2.7.7.2).
    driver.start(0, 16);
    let _ = driver.interrupts();
    driver.put(flags, &[1, 0]);
    assert!(driver.request(ENTROPY_QUEUE, &[], &[32]).is_some());
    assert_eq!(driver.interrupts(), 1);
}

#[test]
fn features_that_nobody_offered_are_not_accepted() {
    let driver = entropy();
    driver.write(0x70, 1);
    driver.write(0x70, 3);
    driver.write(0x24, 0);
    driver.write(0x20, u32::MAX);
    driver.write(0x24, 1);
    driver.write(0x20, 1);
    driver.write(0x70, 11);
    assert_eq!(driver.read(0x70), 3);
    // Nor is one that is missing: VERSION_1.
    driver.write(0x24, 0);
    driver.write(0x20, 0);
    driver.write(0x24, 1);
    driver.write(0x20, 0);
    driver.write(0x70, 11);
    assert_eq!(driver.read(0x70), 3);
}

#[test]
fn a_queue_in_use_stays_where_it_is() {
    for mut case in Case::all() {
        case.driver.start(0, 16);
        for queue in 0..case.driver.device.notifiers().len() {
            case.driver.write(0x30, u32::try_from(queue).unwrap());
            for register in [0x38, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
                case.driver.write(register, 0xdead_0000);
                case.driver.write(register, 2);
            }
            case.driver.write(0x44, 0);
            assert_eq!(case.driver.read(0x44), 1, "{}", case.name);
        }
        case.serves();
        case.serves();
        assert_eq!(case.why_broken(), None);
    }
}

#[test]
fn a_notification_before_there_is_anything_does_nothing() {
    for mut case in Case::all() {
        let before = case.driver.get(0, 0x20_0000);
        let notify = |case: &mut Case| {
            case.outside.stir(&[5; 100]);
            for queue in 0..8 {
                case.driver.kick(queue);
            }
            case.driver.kick(77);
            assert_eq!(case.why_broken(), None, "{}", case.name);
        };
        notify(&mut case);
        for status in [1, 3] {
            case.driver.write(0x70, status);
            notify(&mut case);
        }
        case.driver.write(0x24, 1);
        case.driver.write(0x20, 1);
        case.driver.write(0x70, 11);
        for queue in 0..case.driver.device.notifiers().len() {
            case.driver.set_up(queue, 16);
            case.driver
                .describe(Driver::base(queue), 0, BUFFERS, 64, WRITE, 0);
            case.driver.publish(queue, 0);
            case.driver.put(Driver::base(queue), &[0; 16]);
            case.driver.put(Driver::base(queue) + 0x4000, &[0; 8]);
        }
        notify(&mut case);
        assert_eq!(case.driver.interrupts(), 0, "{}", case.name);
        assert!(case.driver.get(0, 0x20_0000) == before, "{}", case.name);
        case.outside.stir(&[]);
        case.serves_again();
    }
}

#[test]
fn queues_that_cannot_be_break_the_device() {
    // size, descriptors, available, used
    let cases: [(u32, u64, u64, u64); 7] = [
        (0, 0x1_0000, 0x1_4000, 0x1_8000),
        (3, 0x1_0000, 0x1_4000, 0x1_8000),
        (128, 0x1_0000, 0x1_4000, 0x1_8000),
        (16, 0x1_0008, 0x1_4000, 0x1_8000),
        (16, 0x1_0000, 0x1_4001, 0x1_8000),
        (16, !0xf, 0x1_4000, 0x1_8000),
        (16, 0x1_0000, 0x1_4000, 0xffff_fff0),
    ];
    for (size, descriptors, available, used) in cases {
        let driver = entropy();
        driver.write(0x70, 1);
        driver.write(0x70, 3);
        driver.write(0x24, 1);
        driver.write(0x20, 1);
        driver.write(0x70, 11);
        assert_eq!(driver.read(0x70), 11);
        driver.write(0x30, 0);
        driver.write(0x38, size);
        for (register, address) in [(0x80, descriptors), (0x90, available), (0xa0, used)] {
            driver.write(register, u32::try_from(address & 0xffff_ffff).unwrap());
            driver.write(register + 4, u32::try_from(address >> 32).unwrap());
        }
        driver.write(0x44, 1);
        driver.write(0x70, 15);
        assert_eq!(driver.faults().len(), 1, "size {size} at {descriptors:#x}");
        assert_eq!(driver.read(0x70) & 64, 64);
        driver.kick(ENTROPY_QUEUE);
    }
}

#[test]
fn a_reset_in_between_starts_anew() {
    let mut driver = entropy();
    driver.start(0, 16);
    let base = Driver::base(ENTROPY_QUEUE);
    driver.describe(base, 0, BUFFERS, 64, WRITE, 0);
    driver.publish(ENTROPY_QUEUE, 0);
    driver.write(0x50, 0);
    // The notification is pending when the driver changes its mind.
    driver.write(0x70, 0);
    driver.pump();
    assert_eq!(driver.get(BUFFERS, 4), [0; 4]);
    assert_eq!(driver.read(0x70), 0);
    assert_eq!(driver.read(0x44), 0);
    driver.start(0, 8);
    assert!(driver.request(ENTROPY_QUEUE, &[], &[16]).is_some());
}

#[test]
fn a_broken_device_works_again_after_a_reset() {
    let mut driver = entropy();
    driver.start(0, 16);
    let base = Driver::base(ENTROPY_QUEUE);
    driver.describe(base, 0, BUFFERS, 64, WRITE | NEXT, 0);
    driver.publish(ENTROPY_QUEUE, 0);
    driver.kick(ENTROPY_QUEUE);
    assert_eq!(driver.faults().len(), 1);
    assert!(
        driver.faults()[0].contains("circle"),
        "{:?}",
        driver.faults()
    );
    // Told once, however often it is notified.
    driver.kick(ENTROPY_QUEUE);
    assert_eq!(driver.faults().len(), 1);
    driver.start(0, 16);
    assert!(driver.request(ENTROPY_QUEUE, &[], &[16]).is_some());
}

#[test]
fn all_registers_take_random_values_in_any_width() {
    let mut random = StdRng::seed_from_u64(7);
    for mut case in Case::all() {
        for round in 0..8_000 {
            if round % 400 == 0 {
                case.driver.start(0, 16);
            }
            let offset = if random.random_bool(0.9) {
                random.random_range(0..0x200)
            } else {
                random.random()
            };
            let mut data = vec![0; random.random_range(0..=16)];
            case.driver.device.read(offset, &mut data);
            random.fill(&mut data[..]);
            case.driver.device.write(offset, &data);
            case.driver.write(offset & !3, random.random());
            case.driver.pump();
        }
        case.serves_again();
    }
}

#[test]
fn a_device_goes_on_where_it_was_saved() {
    let mut driver = entropy();
    driver.start(0, 16);
    for _ in 0..20 {
        assert!(driver.request(ENTROPY_QUEUE, &[], &[16]).is_some());
    }
    // A chain that nobody has looked at yet comes along.
    let base = Driver::base(ENTROPY_QUEUE);
    driver.describe(base, 0, BUFFERS, 64, WRITE, 0);
    driver.publish(ENTROPY_QUEUE, 0);
    let mut driver = driver.moved_to(Box::new(Entropy::new())).unwrap();
    driver.pump();
    assert_eq!(driver.used(ENTROPY_QUEUE), [(0, 64)]);
    assert!(driver.interrupts() > 0);
    assert!(driver.request(ENTROPY_QUEUE, &[], &[16]).is_some());
}

#[test]
fn a_device_that_was_given_up_does_not_come_alive_elsewhere() {
    let restored = [
        || -> Box<dyn VirtioDevice> { Box::new(Entropy::new()) },
        || -> Box<dyn VirtioDevice> { Box::new(Balloon::new().0) },
    ];
    for make in restored {
        let mut driver = Driver::new(make());
        driver.start(0, 16);
        // FAILED, beside all that was there.
        driver.write(0x70, 0x8f);
        assert_eq!(driver.read(0x70), 0x8f);
        driver.describe(Driver::base(0), 0, BUFFERS, 64, WRITE, 0);
        driver.publish(0, 0);
        driver.kick(0);
        assert!(driver.used(0).is_empty());
        let mut driver = driver.moved_to(make()).unwrap();
        driver.kick(0);
        assert_eq!(driver.read(0x70), 0x8f);
        assert!(driver.used(0).is_empty(), "it is alive");
        assert_eq!(driver.get(BUFFERS, 64), [0; 64]);
        assert_eq!(driver.interrupts(), 0);
        driver.start(0, 16);
        driver.describe(Driver::base(0), 0, BUFFERS, 64, WRITE, 0);
        driver.publish(0, 0);
        driver.kick(0);
        assert_eq!(driver.used(0).len(), 1);
    }
}
